/* links: sk_worker */
/* The shard-worker's core with a real store: clients' frames reach it as they came. Every request
 * must be answered once its jobs have run, and the shard must hold together afterwards. One store
 * serves all inputs of a run; each input ends by deleting every record. Input: steps of u8 what,
 * u16 size (little-endian), size bytes: the client's frame. */
#include "actors/shard-worker/worker.h"
#include "proto/map.h"
#include "proto/link.h"
#include "proto/reply.h"
#include "tests/fuzz/fuzz.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { ROOM_BYTES = 64 << 20 };

static struct {
    struct sk_worker *worker;
    struct sk_job *first, *last; /* submitted, not run yet, in order */
    uint64_t now_us;
    uint64_t sequence;
    uint64_t random;
    uint64_t map_request; /* what was asked of the keeper */
    uint64_t asked, answered;
    uint8_t collection[SK_UUID_BYTES];
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
    struct sk_link_header header;
    struct sk_span body;
    SK_CHECK(part_count >= 1 && sk_link_decode(&header, &body, parts[0], NULL) == SK_ERR_OK);
    if (to == SK_PEER_KEEPER)
        world.map_request = header.request;
    else if (header.kind == SK_LINK_REPLY && header.request == world.asked)
        world.answered = header.request;
}

static void submit(void *impl, struct sk_job *job)
{
    (void)impl;
    job->next = NULL;
    if (world.first == NULL)
        world.first = job;
    else
        world.last->next = job;
    world.last = job;
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
    for (unsigned i = 0; i < 10000 && world.first != NULL; i++) {
        struct sk_job *job = world.first;
        world.first = job->next;
        job->run(job);
        sk_worker_on_job_done(world.worker, job);
        world.now_us += 10;
        (void)sk_worker_on_time(world.worker);
    }
}

static char folder[] = "/tmp/fuzz-worker-XXXXXX";

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *at)
{
    (void)status;
    (void)kind;
    (void)at;
    return remove(path);
}

static void clean(void)
{
    sk_worker_destroy(&world.worker);
    (void)nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void give_map(void)
{
    struct sk_map_collection collection = {
        .schema = {.name = "docs",
                   .version = 1,
                   .shard_count = 1,
                   .vector_count = 1,
                   .vectors = {{.dim = 2,
                                .metric = SK_SCHEMA_COSINE,
                                .index = SK_SCHEMA_HNSW,
                                .m = 4,
                                .ef_construction = 16}},
                   .field_count = 3,
                   .field_id_next = 3,
                   .fields = {{.name = "n", .kind = SK_PAYLOAD_INTEGER, .id = 1},
                              {.name = "place", .kind = SK_PAYLOAD_GEO, .id = 2},
                              {.name = "lexname", .kind = SK_PAYLOAD_KEYWORD, .id = 3}}}};
    struct sk_map map = {
        .version = 1, .node_id = 1, .collection_count = 1, .collections = &collection};
    struct sk_link_header header = {
        .kind = SK_LINK_REPLY, .request = world.map_request, .map_version = 1};
    struct sk_buffer message = {0};
    struct sk_reply_writer reply;
    memset(collection.schema.uuid, 0xAB, sizeof collection.schema.uuid);
    memcpy(world.collection, collection.schema.uuid, sizeof world.collection);
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_reply_begin(&reply, &message, NULL);
    sk_reply_key(&reply, "map");
    sk_map_encode(&message, &map);
    sk_reply_end(&reply);
    sk_worker_on_message(world.worker, SK_PEER_KEEPER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
}

static void begin(void)
{
    static const struct sk_io io = {.mono_us = now,
                                    .wall_us = now,
                                    .random = random_of,
                                    .send = take,
                                    .submit = submit,
                                    .note = forget};
    static char data[300], snapshots[300];
    struct sk_diag d = {0};
    struct sk_worker_status status;
    SK_CHECK(mkdtemp(folder) != NULL);
    (void)snprintf(data, sizeof data, "%s/data", folder);
    (void)snprintf(snapshots, sizeof snapshots, "%s/snapshots", folder);
    SK_CHECK(mkdir(data, 0700) == 0 && mkdir(snapshots, 0700) == 0);
    const struct sk_worker_config config = {.data_dir = data,
                                            .snapshot_dir = snapshots,
                                            .no_sync = true,
                                            .kernels = "scalar",
                                            .flat_below = 4,
                                            .map_bytes_max = ROOM_BYTES};
    world.now_us = 1000000000;
    if (sk_worker_new(&world.worker, &config, &io, &d) != SK_ERR_OK) {
        fprintf(stderr, "worker: %s\n", d.text);
        abort();
    }
    atexit(clean);
    sk_worker_on_connected(world.worker, SK_PEER_KEEPER);
    (void)sk_worker_on_time(world.worker);
    give_map();
    run_jobs();
    sk_worker_get_status(world.worker, &status);
    SK_CHECK(status.is_ready && status.shards == 1);
}

static void ask(enum sk_role role, bool is_write, struct sk_span body)
{
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = role,
                                    .request = ++world.asked,
                                    .deadline_ms = 60000,
                                    .schema_version = 1,
                                    .map_version = 1};
    struct sk_buffer message = {0};
    if (is_write) {
        header.incarnation = 7;
        header.sequence = ++world.sequence;
    }
    memcpy(header.collection, world.collection, sizeof header.collection);
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, body.bytes, body.size);
    sk_worker_on_message(world.worker, SK_PEER_ROUTER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
    for (unsigned i = 0; i < 100 && world.answered != world.asked; i++) {
        (void)sk_worker_on_time(world.worker);
        run_jobs();
        world.now_us += 100000;
    }
    SK_CHECK(world.answered == world.asked);
}

static void delete_everything(void)
{
    static const uint8_t all[] = {0x80};
    struct sk_request request = {.op = SK_OP_DELETE,
                                 .deadline_ms = 5000,
                                 .collection = sk_span_text("docs"),
                                 .filter = sk_span_of(all, sizeof all)};
    struct sk_buffer body = {0};
    request.present = UINT64_C(1) << SK_FIELD_collection | UINT64_C(1) << SK_FIELD_filter;
    sk_request_encode(&body, &request);
    ask(SK_ROLE_WRITE, true, sk_buffer_span(&body));
    sk_buffer_deinit(&body);
}

static void step(uint8_t what, struct sk_span bytes)
{
    struct sk_envelope envelope;
    bool is_request = sk_envelope_decode(&envelope, bytes, NULL) == SK_ERR_OK;
    if (is_request && (envelope.op == SK_OP_SNAPSHOT || envelope.op == SK_OP_RESTORE ||
                       envelope.op == SK_OP_WAIT))
        return; /* they leave files behind, or wait for work that only time brings */
    if (what & 1)
        sk_worker_on_message(world.worker, what & 2 ? SK_PEER_KEEPER : SK_PEER_ROUTER, bytes);
    else
        ask((enum sk_role)(1 + what / 2 % 4), is_request && sk_op_is_write(envelope.op), bytes);
    run_jobs();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_diag d = {0};
    if (world.worker == NULL)
        begin();
    while (size >= 3) {
        uint8_t what = bytes[0];
        size_t length = (size_t)bytes[1] | (size_t)bytes[2] << 8;
        bytes += 3;
        size -= 3;
        if (length > size)
            length = size;
        step(what, sk_span_of(bytes, length));
        bytes += length;
        size -= length;
    }
    run_jobs();
    if (sk_worker_check(world.worker, &d) != SK_ERR_OK) {
        fprintf(stderr, "worker: %s\n", d.text);
        abort();
    }
    delete_everything();
    return 0;
}
