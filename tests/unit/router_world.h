/* The world of a router in a test: clocks that stand still, every message kept, peers that answer when
 * the test says so. */
#ifndef SK_TESTS_ROUTER_WORLD_H
#define SK_TESTS_ROUTER_WORLD_H

#include "tests/harness.h"

#include "actors/router/router.h"
#include "proto/codec.h"
#include "proto/link.h"
#include "proto/map.h"
#include "proto/reply.h"

#include <stdlib.h>

enum { WORLD_MESSAGES_MAX = 4096, WORLD_CLIENT = SK_PEER_FIRST_CLIENT };

struct message {
    sk_peer to;
    struct sk_link_header header; /* of links */
    uint8_t *bytes;               /* owned: the body of a link message, the whole of others */
    size_t size;
    bool is_taken;
};

struct world {
    struct sk_io io;
    struct sk_router *router;
    uint64_t mono_us;
    uint64_t random;
    sk_peer client_next;
    struct message messages[WORLD_MESSAGES_MAX];
    unsigned count;
    uint64_t map_version;
    struct sk_map map;
};

static uint64_t world_mono_us(void *impl)
{
    return ((struct world *)impl)->mono_us;
}

static uint64_t world_wall_us(void *impl)
{
    return ((struct world *)impl)->mono_us + UINT64_C(1700000000000000);
}

static uint64_t world_random(void *impl)
{
    struct world *self = impl;
    self->random = self->random * UINT64_C(6364136223846793005) + 1442695040888963407;
    return self->random ^ self->random >> 29;
}

static void world_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    struct world *self = impl;
    assert_true(self->count < WORLD_MESSAGES_MAX);
    struct message *message = &self->messages[self->count++];
    struct sk_buffer all = {0};
    memset(message, 0, sizeof *message);
    for (unsigned p = 0; p < part_count; p++)
        sk_buffer_append(&all, parts[p].bytes, parts[p].size);
    message->to = to;
    message->bytes = all.bytes;
    message->size = all.size;
    if (to < SK_PEER_FIRST_CLIENT && to != SK_ROUTER_PEER_SUPERVISOR) {
        struct sk_span body;
        struct sk_diag d = {0};
        if (sk_link_decode(&message->header, &body, sk_buffer_span(&all), &d) != SK_ERR_OK)
            fail_msg("%s", d.text);
        memmove(message->bytes, body.bytes, body.size);
        message->size = body.size;
    } else if (to >= SK_PEER_FIRST_CLIENT) {
        for (unsigned m = 0; m + 1 < self->count; m++) /* a return address is good for one send */
            assert_int_not_equal(self->messages[m].to, to);
    }
}

static void world_submit(void *impl, struct sk_job *job)
{
    (void)impl;
    (void)job;
    fail_msg("the router has no jobs");
}

static void world_note(void *impl, unsigned kind, uint64_t a, uint64_t b)
{
    (void)impl;
    (void)a;
    (void)b;
    assert_true(kind < SK_ROUTER_NOTE_COUNT);
}

static inline void world_begin_with(struct world *self, const struct sk_router_config *config)
{
    struct sk_diag d = {0};
    memset(self, 0, sizeof *self);
    self->mono_us = 1000000;
    self->random = 7;
    self->client_next = WORLD_CLIENT;
    self->io = (struct sk_io){.impl = self,
                              .mono_us = world_mono_us,
                              .wall_us = world_wall_us,
                              .random = world_random,
                              .send = world_send,
                              .submit = world_submit,
                              .note = world_note};
    struct sk_router_config all = *config;
    all.public_key = "0123456789012345678901234567890123456789";
    all.version = "0.1.0";
    if (sk_router_new(&self->router, &all, &self->io, &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
}

static inline void world_begin(struct world *self)
{
    world_begin_with(self, &(struct sk_router_config){0});
}

static inline void world_end(struct world *self)
{
    sk_router_destroy(&self->router);
    for (unsigned m = 0; m < self->count; m++)
        free(self->messages[m].bytes);
    sk_map_deinit(&self->map);
}

/* Lets time pass, in small steps, as a shell would. */
static inline void world_pass(struct world *self, uint64_t us)
{
    uint64_t end = self->mono_us + us;
    uint64_t next = sk_router_on_time(self->router);
    while (next <= end) {
        if (next > self->mono_us)
            self->mono_us = next;
        uint64_t then = sk_router_on_time(self->router);
        assert_true(then > self->mono_us); /* else the shell would spin */
        next = then;
    }
    self->mono_us = end;
    (void)sk_router_on_time(self->router);
}

/* The oldest message to that peer that was not taken yet; NULL: none. */
static inline struct message *world_take(struct world *self, sk_peer to)
{
    for (unsigned m = 0; m < self->count; m++)
        if (self->messages[m].to == to && !self->messages[m].is_taken) {
            self->messages[m].is_taken = true;
            return &self->messages[m];
        }
    return NULL;
}

static inline struct sk_span message_span(const struct message *message)
{
    return sk_span_of(message->bytes, message->size);
}

static inline void world_deliver(struct world *self, sk_peer from,
                                 const struct sk_link_header *header, struct sk_span body)
{
    uint8_t *bytes = malloc(SK_LINK_HEADER_BYTES + body.size); /* exact: a sanitizer sees an overrun */
    sk_link_header_encode(bytes, header);
    if (body.size != 0)
        memcpy(bytes + SK_LINK_HEADER_BYTES, body.bytes, body.size);
    sk_router_on_message(self->router, from,
                         sk_span_of(bytes, SK_LINK_HEADER_BYTES + body.size));
    free(bytes);
}

/* The peer's answer to a request that the router sent it. */
static inline void world_reply(struct world *self, const struct message *to, enum sk_err status,
                               struct sk_span body, uint64_t map_version)
{
    struct sk_link_header header = to->header;
    header.kind = SK_LINK_REPLY;
    header.status = status;
    header.map_version = map_version;
    world_deliver(self, to->to, &header, body);
}

static inline struct sk_request_id message_id(const struct message *message)
{
    struct sk_envelope envelope;
    (void)!sk_envelope_decode(&envelope, message_span(message), NULL);
    return envelope.id;
}

static inline void world_reply_ok(struct world *self, const struct message *to, const char *name,
                                  uint64_t number)
{
    struct sk_buffer body = {0};
    struct sk_request_id id = message_id(to);
    struct sk_reply_writer reply;
    sk_reply_begin(&reply, &body, &id);
    if (name != NULL) {
        sk_reply_key(&reply, name);
        sk_put_u64(&body, number);
    }
    sk_reply_end(&reply);
    world_reply(self, to, SK_ERR_OK, sk_buffer_span(&body), self->map_version);
    sk_buffer_deinit(&body);
}

static inline void world_reply_error(struct world *self, const struct message *to, enum sk_err code,
                                     const char *text)
{
    struct sk_buffer body = {0};
    struct sk_diag d = {0};
    struct sk_request_id id = message_id(to);
    (void)!sk_fail(&d, code, "%s", text);
    sk_reply_error(&body, &id, code, &d);
    world_reply(self, to, code, sk_buffer_span(&body), self->map_version);
    sk_buffer_deinit(&body);
}

/* ---- the map ---- */

static inline struct sk_map_collection *world_add_collection(struct world *self, const char *name,
                                                             uint32_t dim,
                                                             enum sk_schema_metric metric,
                                                             uint32_t shards, uint32_t workers)
{
    struct sk_map *map = &self->map;
    map->collections =
        realloc(map->collections, (map->collection_count + 1) * sizeof *map->collections);
    struct sk_map_collection *c = &map->collections[map->collection_count++];
    memset(c, 0, sizeof *c);
    snprintf(c->schema.name, sizeof c->schema.name, "%s", name);
    memset(c->schema.uuid, (int)map->collection_count, sizeof c->schema.uuid);
    c->schema.version = 1;
    c->schema.shard_count = shards;
    c->schema.vector_count = 1;
    c->schema.field_id_next = 1;
    c->schema.vectors[0] = (struct sk_vector_field){.dim = dim,
                                                    .metric = metric,
                                                    .index = SK_SCHEMA_HNSW,
                                                    .m = 16,
                                                    .ef_construction = 200};
    for (uint32_t s = 0; s < shards; s++)
        c->workers[s] = (uint16_t)(s % workers);
    return c;
}

static inline void world_add_key(struct world *self, const char *name, enum sk_role role)
{
    struct sk_map *map = &self->map;
    map->keys = realloc(map->keys, (map->key_count + 1) * sizeof *map->keys);
    struct sk_map_key *key = &map->keys[map->key_count++];
    memset(key, 0, sizeof *key);
    snprintf(key->name, sizeof key->name, "%s", name);
    snprintf(key->public_key, sizeof key->public_key, "%040u", map->key_count);
    key->role = role;
}

/* The keeper answers the map_get that the router has sent (a newest one is waited for). */
static inline void world_give_map(struct world *self)
{
    struct message *ask = NULL;
    (void)sk_router_on_time(self->router);
    for (struct message *m = world_take(self, SK_ROUTER_PEER_KEEPER); m != NULL;
         m = world_take(self, SK_ROUTER_PEER_KEEPER))
        ask = m;
    assert_non_null(ask);
    struct sk_buffer body = {0};
    struct sk_request_id id = message_id(ask);
    struct sk_reply_writer reply;
    self->map.version = self->map_version;
    self->map.node_id = 77;
    sk_reply_begin(&reply, &body, &id);
    sk_reply_key(&reply, "map");
    sk_map_encode(&body, &self->map);
    sk_reply_end(&reply);
    world_reply(self, ask, SK_ERR_OK, sk_buffer_span(&body), self->map_version);
    sk_buffer_deinit(&body);
    assert_int_equal(sk_router_get_map(self->router)->version, self->map_version);
}

static inline void world_hello(struct world *self, uint32_t worker, uint64_t incarnation)
{
    struct sk_link_header header = {.kind = SK_LINK_HELLO,
                                    .worker = (uint16_t)worker,
                                    .incarnation = incarnation};
    world_deliver(self, SK_ROUTER_PEER_WORKER_0 + worker, &header, sk_span_of("\x80", 1));
}

/* A node with one collection. */
static inline void world_begin_node(struct world *self, uint32_t dim, enum sk_schema_metric metric,
                                    uint32_t shards, uint32_t workers)
{
    world_begin(self);
    self->map_version = 5;
    world_add_collection(self, "docs", dim, metric, shards, workers);
    world_give_map(self);
    for (uint32_t w = 0; w < workers; w++)
        world_hello(self, w, 100 + w);
}

/* ---- clients ---- */

static inline sk_peer world_ask_frame(struct world *self, enum sk_role role, struct sk_span frame)
{
    sk_peer client = self->client_next++;
    uint8_t *copy = malloc(frame.size + 1);
    if (frame.size != 0)
        memcpy(copy, frame.bytes, frame.size);
    sk_router_on_client(self->router, client, role, sk_span_of(copy, frame.size));
    free(copy); /* borrowed for the call only */
    return client;
}

static inline sk_peer world_ask(struct world *self, const struct sk_request *request)
{
    struct sk_buffer frame = {0};
    sk_request_encode(&frame, request);
    sk_peer client = world_ask_frame(self, SK_ROLE_ADMIN, sk_buffer_span(&frame));
    sk_buffer_deinit(&frame);
    return client;
}

/* The reply to that client; NULL: none yet. */
static inline struct message *world_answer(struct world *self, sk_peer client)
{
    for (unsigned m = 0; m < self->count; m++)
        if (self->messages[m].to == client)
            return &self->messages[m];
    return NULL;
}

static inline struct sk_reply world_decoded(struct world *self, sk_peer client)
{
    struct sk_reply reply;
    struct sk_diag d = {0};
    struct message *message = world_answer(self, client);
    assert_non_null(message);
    if (sk_reply_decode(&reply, message_span(message), &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
    return reply;
}

static inline void assert_error(struct world *self, sk_peer client, enum sk_err code,
                                const char *words)
{
    struct sk_reply reply = world_decoded(self, client);
    char text[512];
    snprintf(text, sizeof text, "%.*s", (int)reply.error_message.size,
             (const char *)reply.error_message.bytes);
    assert_false(reply.is_ok);
    if (reply.code != code || strstr(text, words) == NULL)
        fail_msg("got %s: %s; want %s: ...%s...", sk_err_name(reply.code), text, sk_err_name(code),
                 words);
}

static inline void assert_number(struct world *self, sk_peer client, const char *name,
                                 uint64_t value)
{
    uint64_t got;
    struct sk_reply reply = world_decoded(self, client);
    if (!reply.is_ok)
        fail_msg("%.*s", (int)reply.error_message.size, (const char *)reply.error_message.bytes);
    assert_true(sk_map_member_u64(reply.map, name, &got));
    assert_int_equal(got, value);
}

static inline struct sk_request request_of(enum sk_op op, uint64_t id)
{
    struct sk_request request = {.op = op, .deadline_ms = 5000};
    request.id = (struct sk_request_id){.is_present = true, .number = id};
    return request;
}

static inline struct sk_request request_on_docs(enum sk_op op, uint64_t id)
{
    struct sk_request request = request_of(op, id);
    request.collection = sk_span_text("docs");
    request.present = UINT64_C(1) << SK_FIELD_collection;
    return request;
}

static inline struct sk_request search_request(uint64_t id, const float *query, size_t dim)
{
    static uint8_t packed[4096];
    struct sk_buffer vector = {0};
    struct sk_request request = request_on_docs(SK_OP_SEARCH, id);
    sk_put_bin(&vector, query, dim * sizeof *query);
    memcpy(packed, vector.bytes, vector.size);
    request.vector = sk_span_of(packed, vector.size);
    request.present |= UINT64_C(1) << SK_FIELD_vector;
    sk_buffer_deinit(&vector);
    return request;
}

#endif
