/* links: sk_keeper */
/* The keeper's core: link messages of the router and of workers. Its state must stay good whatever
 * they say. One state serves all inputs of a run; each input ends by dropping what it made. Input:
 * steps of u8 what, u16 size (little-endian), size bytes: bodies of requests, or whole messages. */
#include "actors/metadata-keeper/keeper.h"
#include "proto/link.h"
#include "proto/reply.h"
#include "tests/fuzz/fuzz.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct {
    struct sk_keeper *keeper;
    struct sk_job *jobs; /* submitted, not run yet */
    uint64_t now_us;
    uint64_t sequence;
    uint64_t random;
    uint64_t asked, answered; /* request numbers */
} world;

static uint64_t now(void *impl)
{
    (void)impl;
    return world.now_us;
}

static uint64_t random_of(void *impl)
{
    (void)impl;
    return world.random = world.random * 6364136223846793005U + 1442695040888963407U;
}

static void take(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    (void)impl;
    (void)part_count;
    struct sk_link_header header;
    struct sk_span body;
    if (to != SK_KEEPER_PEER_ROUTER)
        return;
    SK_CHECK(parts[0].size >= SK_LINK_HEADER_BYTES);
    SK_CHECK(sk_link_decode(&header, &body, parts[0], NULL) == SK_ERR_OK);
    if (header.kind == SK_LINK_REPLY && header.request == world.asked)
        world.answered = header.request;
}

static void submit(void *impl, struct sk_job *job)
{
    (void)impl;
    job->next = world.jobs;
    world.jobs = job;
}

static void forget(void *impl, unsigned kind, uint64_t a, uint64_t b)
{
    (void)impl;
    (void)kind;
    (void)a;
    (void)b;
}

static void run_jobs(void)
{
    while (world.jobs != NULL) {
        struct sk_job *job = world.jobs;
        world.jobs = job->next;
        job->run(job);
        sk_keeper_on_job_done(world.keeper, job);
    }
}

static char folder[] = "/tmp/fuzz-keeper-XXXXXX";

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *at)
{
    (void)status;
    (void)kind;
    (void)at;
    return remove(path);
}

static void clean(void)
{
    sk_keeper_destroy(&world.keeper);
    (void)nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void begin(void)
{
    static const struct sk_io io = {.mono_us = now,
                                    .wall_us = now,
                                    .random = random_of,
                                    .send = take,
                                    .submit = submit,
                                    .note = forget};
    static char path[300];
    struct sk_diag d = {0};
    SK_CHECK(mkdtemp(folder) != NULL);
    (void)snprintf(path, sizeof path, "%s/keeper", folder);
    const struct sk_keeper_config config = {.folder = path, .worker_count = 2, .no_sync = true};
    if (sk_keeper_new(&world.keeper, &config, &io, &d) != SK_ERR_OK) {
        fprintf(stderr, "keeper: %s\n", d.text);
        abort();
    }
    atexit(clean);
}

/* One request of the router; it must be answered once its jobs have run. */
static void ask(enum sk_role role, struct sk_span body)
{
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = role,
                                    .request = ++world.asked,
                                    .deadline_ms = 5000,
                                    .incarnation = 7,
                                    .sequence = ++world.sequence};
    struct sk_buffer message = {0};
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, body.bytes, body.size);
    sk_keeper_on_message(world.keeper, SK_KEEPER_PEER_ROUTER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
    run_jobs();
    SK_CHECK(world.answered == world.asked);
}

static void drop_everything(void)
{
    for (;;) {
        const struct sk_map *map = sk_keeper_map(world.keeper);
        if (map->collection_count + map->key_count == 0)
            return;
        struct sk_request request = {.deadline_ms = 5000};
        struct sk_buffer body = {0};
        char name[SK_NAME_BYTES_MAX + 1];
        bool is_key = map->collection_count == 0;
        memcpy(name, is_key ? map->keys[0].name : map->collections[0].schema.name, sizeof name);
        request.op = is_key ? SK_OP_REVOKE_KEY : SK_OP_DROP_COLLECTION;
        request.name = request.collection = sk_span_text(name);
        request.present = UINT64_C(1) << (is_key ? SK_FIELD_name : SK_FIELD_collection);
        sk_request_encode(&body, &request);
        uint32_t before = map->collection_count + map->key_count;
        ask(SK_ROLE_ADMIN, sk_buffer_span(&body));
        sk_buffer_deinit(&body);
        map = sk_keeper_map(world.keeper);
        SK_CHECK(map->collection_count + map->key_count < before);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_diag d = {0};
    if (world.keeper == NULL)
        begin();
    while (size >= 3) {
        uint8_t what = bytes[0];
        size_t length = (size_t)bytes[1] | (size_t)bytes[2] << 8;
        bytes += 3;
        size -= 3;
        if (length > size)
            length = size;
        if (what & 1) {
            ask((enum sk_role)(what / 2 % 5), sk_span_of(bytes, length));
        } else {
            sk_keeper_on_message(world.keeper,
                                 what & 2 ? SK_KEEPER_PEER_WORKER_0 : SK_KEEPER_PEER_ROUTER,
                                 sk_span_of(bytes, length));
            run_jobs();
        }
        world.now_us += 1000000;
        (void)sk_keeper_on_time(world.keeper);
        run_jobs();
        bytes += length;
        size -= length;
    }
    if (sk_keeper_check(world.keeper, &d) != SK_ERR_OK) {
        fprintf(stderr, "keeper: %s\n", d.text);
        abort();
    }
    drop_everything();
    return 0;
}
