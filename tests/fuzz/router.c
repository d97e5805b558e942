/* links: sk_router */
/* The router's core among strangers: clients, the keeper, workers and the supervisor all say what
 * the input says. Every request must be answered exactly once, by its deadline. Input: steps of u8
 * what, u16 size (little-endian), size bytes. */
#include "actors/router/router.h"
#include "proto/link.h"
#include "proto/reply.h"
#include "tests/fuzz/fuzz.h"

enum { CLIENTS_MAX = 64, WORKERS = 2, STEP_US = 300000, LONG_US = 700000000, ASKED_KEPT = 8 };
enum step { CLIENT, REPLY, RAW, TIME, CONNECTED, GONE, HELLO, STATS, STEP_COUNT };

static struct {
    uint64_t now_us;
    unsigned answers[CLIENTS_MAX];
    unsigned clients;
    struct asked { /* what the router asked of others: the last ones, by asked_count */
        sk_peer peer;
        uint64_t request;
        uint64_t incarnation;
        uint16_t shard;
    } asked[ASKED_KEPT];
    unsigned asked_count;
} world;

static uint64_t now(void *impl)
{
    (void)impl;
    return world.now_us;
}

static uint64_t random_of(void *impl)
{
    (void)impl;
    return 4; /* as good as any */
}

static void take(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    (void)impl;
    struct sk_buffer joined = {0};
    for (unsigned i = 0; i < part_count; i++)
        sk_buffer_append(&joined, parts[i].bytes, parts[i].size);
    if (to >= SK_PEER_FIRST_CLIENT) {
        struct sk_reply reply;
        SK_CHECK(to - SK_PEER_FIRST_CLIENT < world.clients);
        SK_CHECK(++world.answers[to - SK_PEER_FIRST_CLIENT] == 1);
        /* What is passed on from a worker is the worker's; what the router makes is a reply. */
        (void)!sk_reply_decode(&reply, sk_buffer_span(&joined), NULL);
    } else if (to != SK_ROUTER_PEER_SUPERVISOR) {
        struct sk_link_header header;
        struct sk_span body;
        SK_CHECK(sk_link_decode(&header, &body, sk_buffer_span(&joined), NULL) == SK_ERR_OK);
        world.asked[world.asked_count++ % ASKED_KEPT] =
            (struct asked){to, header.request, header.incarnation, header.shard};
    } else {
        world.asked[world.asked_count++ % ASKED_KEPT] = (struct asked){.peer = to};
    }
    sk_buffer_deinit(&joined);
}

static void forget(void *impl, unsigned kind, uint64_t a, uint64_t b)
{
    (void)impl;
    (void)kind;
    (void)a;
    (void)b;
}

/* An answer to one of the last things that the router asked, as if the other side had said these
 * bytes. */
static void reply(struct sk_router *router, uint8_t how, struct sk_span bytes)
{
    unsigned back = how / STEP_COUNT % ASKED_KEPT;
    if (back >= world.asked_count)
        return;
    const struct asked to = world.asked[(world.asked_count - 1 - back) % ASKED_KEPT];
    struct sk_link_header header = {.kind = SK_LINK_REPLY,
                                    .request = to.request,
                                    .map_version = 3 + how / 128,
                                    .status = how & 64 ? SK_ERR_BUSY : SK_ERR_OK,
                                    .shard = to.shard,
                                    .incarnation = to.incarnation};
    struct sk_buffer message = {0};
    struct sk_reply says;
    if ((how & 64) == 0 && sk_reply_decode(&says, bytes, NULL) == SK_ERR_OK)
        header.status = says.code <= SK_ERR_INTERNAL ? says.code : SK_ERR_INTERNAL;
    if (to.peer != SK_ROUTER_PEER_SUPERVISOR) {
        if (to.peer >= SK_ROUTER_PEER_WORKER_0)
            header.worker = (uint16_t)(to.peer - SK_ROUTER_PEER_WORKER_0);
        sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    }
    sk_buffer_append(&message, bytes.bytes, bytes.size);
    sk_router_on_message(router, to.peer, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
}

/* What a worker says by itself. */
static void speak(struct sk_router *router, enum sk_link_kind kind, sk_peer worker,
                  struct sk_span body)
{
    struct sk_link_header header = {
        .kind = kind, .worker = (uint16_t)(worker - SK_ROUTER_PEER_WORKER_0), .incarnation = 9};
    struct sk_buffer message = {0};
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, body.bytes, body.size);
    sk_router_on_message(router, worker, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
}

static void step(struct sk_router *router, uint8_t what, struct sk_span bytes)
{
    sk_peer worker = SK_ROUTER_PEER_WORKER_0 + (what >> 3) % WORKERS;
    switch ((enum step)(what % STEP_COUNT)) {
    case CLIENT:
        if (world.clients < CLIENTS_MAX)
            sk_router_on_client(router, SK_PEER_FIRST_CLIENT + world.clients++,
                                (enum sk_role)(what / 16 % 4), bytes);
        break;
    case REPLY:
        reply(router, what, bytes);
        break;
    case RAW:
        sk_router_on_message(router, what & 128 ? worker : (sk_peer)(1 + what / 8 % 3), bytes);
        break;
    case TIME:
        world.now_us += STEP_US;
        (void)sk_router_on_time(router);
        break;
    case CONNECTED:
        sk_router_on_connected(router, what & 128 ? worker : SK_ROUTER_PEER_KEEPER);
        break;
    case HELLO:
        speak(router, SK_LINK_HELLO, worker, bytes);
        break;
    case STATS:
        speak(router, SK_LINK_STATS, worker, bytes);
        break;
    default:
        sk_router_on_disconnected(router, worker);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const struct sk_router_config config = {.public_key =
                                                       "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk",
                                                   .version = "0.1.0",
                                                   .requests_in_flight_max = 16,
                                                   .bytes_in_flight_max = 1 << 20};
    const struct sk_io io = {
        .mono_us = now, .wall_us = now, .random = random_of, .send = take, .note = forget};
    struct sk_router *router = NULL;
    memset(&world, 0, sizeof world);
    world.now_us = 1000000;
    SK_CHECK(sk_router_new(&router, &config, &io, NULL) == SK_ERR_OK);
    sk_router_on_connected(router, SK_ROUTER_PEER_KEEPER);
    while (size >= 3) {
        uint8_t what = bytes[0];
        size_t length = (size_t)bytes[1] | (size_t)bytes[2] << 8;
        bytes += 3;
        size -= 3;
        if (length > size)
            length = size;
        step(router, what, sk_span_of(bytes, length));
        bytes += length;
        size -= length;
    }
    world.now_us += LONG_US; /* past every deadline */
    (void)sk_router_on_time(router);
    for (unsigned i = 0; i < world.clients; i++)
        SK_CHECK(world.answers[i] == 1);
    sk_router_destroy(&router);
    return 0;
}
