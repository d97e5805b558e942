/* links: sk_worker sk_store sk_index sk_proto sk_kernels */
/* The worker's core in a world of its own: virtual clocks, jobs that run in place (or are held back), a
 * keeper and a router that are this file. */
#include "tests/harness.h"

#include "actors/shard-worker/worker.h"
#include "common/base/id.h"
#include "kernels/kernels.h"
#include "proto/link.h"
#include "proto/map.h"
#include "proto/reply.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIM = 24, REPLIES_MAX = 64, DEADLINE_MS = 5000 };

struct reply_slot {
    uint64_t request;
    uint8_t *bytes;
    size_t size;
};

struct world {
    struct sk_io io;
    struct sk_worker *worker;
    char dir[64], data[96], snapshots[96];
    struct sk_worker_config config;
    uint64_t mono, wall, seed;
    struct sk_map map;
    struct reply_slot replies[REPLIES_MAX];
    unsigned reply_next;
    uint64_t request_next, sequence;
    bool is_holding; /* WRITE jobs wait in held */
    struct sk_job *held;
    unsigned hellos, stats;
    uint64_t incarnation;
};

/* ---- the world ---- */

static uint64_t io_mono(void *impl)
{
    return ++((struct world *)impl)->mono;
}

static uint64_t io_wall(void *impl)
{
    struct world *self = impl;
    return self->wall + self->mono;
}

static uint64_t io_random(void *impl)
{
    struct world *self = impl;
    self->seed = self->seed * 6364136223846793005U + 1442695040888963407U;
    return self->seed >> 11;
}

static void on_map_get(struct world *self)
{
    struct sk_buffer reply = {0};
    struct sk_reply_writer writer;
    const struct sk_request_id id = {.is_present = true, .number = 1};
    sk_reply_begin(&writer, &reply, &id);
    sk_reply_key(&writer, "map");
    sk_map_encode(&reply, &self->map);
    sk_reply_end(&writer);
    struct sk_buffer frame = {0};
    const struct sk_link_header header = {.kind = SK_LINK_REPLY, .map_version = self->map.version};
    sk_link_header_encode(sk_buffer_grow(&frame, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&frame, reply.bytes, reply.size);
    sk_worker_on_message(self->worker, SK_PEER_KEEPER, sk_buffer_span(&frame));
    sk_buffer_deinit(&frame);
    sk_buffer_deinit(&reply);
}

static bool is_map_asked;

static void io_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned count)
{
    struct world *self = impl;
    struct sk_link_header header;
    struct sk_span body;
    struct sk_diag d = {0};
    struct sk_buffer joined = {0};
    for (unsigned i = 0; i < count; i++)
        sk_buffer_append(&joined, parts[i].bytes, parts[i].size);
    assert_int_equal(sk_link_decode(&header, &body, sk_buffer_span(&joined), &d), SK_ERR_OK);
    if (to == SK_PEER_KEEPER) {
        is_map_asked = true;
    } else if (header.kind == SK_LINK_REPLY) {
        struct reply_slot *slot = &self->replies[self->reply_next++ % REPLIES_MAX];
        free(slot->bytes);
        slot->request = header.request;
        slot->bytes = malloc(body.size);
        slot->size = body.size;
        memcpy(slot->bytes, body.bytes, body.size);
    } else if (header.kind == SK_LINK_HELLO) {
        self->hellos++;
    } else if (header.kind == SK_LINK_STATS) {
        self->stats++;
    }
    sk_buffer_deinit(&joined);
}

static void io_submit(void *impl, struct sk_job *job)
{
    struct world *self = impl;
    if (job->lane == SK_LANE_WRITE && self->is_holding) {
        assert_null(self->held); /* one at a time */
        self->held = job;
        return;
    }
    job->run(job);
    sk_worker_on_job_done(self->worker, job);
}

static void release(struct world *self)
{
    self->is_holding = false;
    struct sk_job *job = self->held;
    self->held = NULL;
    if (job != NULL) {
        job->run(job);
        sk_worker_on_job_done(self->worker, job);
    }
}

/* Lets virtual time pass: every call that the core asked for is made. */
static void pass(struct world *self, uint64_t us)
{
    uint64_t end = self->mono + us;
    for (unsigned turns = 0; turns < 100000; turns++) {
        if (is_map_asked) {
            is_map_asked = false;
            on_map_get(self);
        }
        uint64_t next = sk_worker_on_time(self->worker);
        if (is_map_asked)
            continue;
        if (next > end)
            break;
        if (next > self->mono)
            self->mono = next;
    }
    if (self->mono < end)
        self->mono = end;
}

static void start(struct world *self)
{
    struct sk_diag d = {0};
    is_map_asked = false;
    self->hellos = 0;
    assert_int_equal(sk_worker_new(&self->worker, &self->config, &self->io, &d), SK_ERR_OK);
    sk_worker_on_connected(self->worker, SK_PEER_KEEPER);
    sk_worker_on_connected(self->worker, SK_PEER_ROUTER);
    pass(self, 1000);
    assert_int_equal(self->hellos, 1);
}

/* As kill -9 does it: nobody tells the core. */
static void crash(struct world *self)
{
    self->held = NULL;
    self->is_holding = false;
    sk_worker_destroy(&self->worker);
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

static struct world *world_new(void)
{
    struct world *self = calloc(1, sizeof *self);
    snprintf(self->dir, sizeof self->dir, "/tmp/skerry-worker-XXXXXX");
    assert_non_null(mkdtemp(self->dir));
    snprintf(self->data, sizeof self->data, "%s/data", self->dir);
    snprintf(self->snapshots, sizeof self->snapshots, "%s/snapshots", self->dir);
    assert_int_equal(mkdir(self->data, 0700), 0);
    self->io = (struct sk_io){.impl = self,
                              .mono_us = io_mono,
                              .wall_us = io_wall,
                              .random = io_random,
                              .send = io_send,
                              .submit = io_submit};
    self->config = (struct sk_worker_config){.data_dir = self->data,
                                             .snapshot_dir = self->snapshots,
                                             .process_id = 7,
                                             .map_bytes_max = 1U << 30,
                                             .no_sync = true};
    self->mono = 1000000;
    self->wall = 1700000000000000U;
    self->seed = 42;
    self->incarnation = 99;
    self->map.version = 1;
    self->map.node_id = 5;
    return self;
}

static void world_free(struct world *self)
{
    sk_worker_destroy(&self->worker);
    sk_map_deinit(&self->map);
    for (unsigned i = 0; i < REPLIES_MAX; i++)
        free(self->replies[i].bytes);
    nftw(self->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(self);
}

static struct sk_schema *add_collection(struct world *self, const char *name,
                                        enum sk_schema_index index, enum sk_schema_metric metric)
{
    struct sk_map *map = &self->map;
    map->collections =
        realloc(map->collections, (map->collection_count + 1) * sizeof *map->collections);
    struct sk_map_collection *c = &map->collections[map->collection_count++];
    memset(c, 0, sizeof *c);
    snprintf(c->schema.name, sizeof c->schema.name, "%s", name);
    memset(c->schema.uuid, (int)(0xA0 + map->collection_count), SK_UUID_BYTES);
    c->schema.version = 1;
    c->schema.shard_count = 1;
    c->schema.vector_count = 1;
    c->schema.vectors[0] = (struct sk_vector_field){
        .dim = DIM, .metric = metric, .index = index, .m = 8, .ef_construction = 60};
    c->schema.field_count = 2;
    c->schema.fields[0] =
        (struct sk_payload_field){.name = "color", .kind = SK_PAYLOAD_KEYWORD, .id = 1};
    c->schema.fields[1] =
        (struct sk_payload_field){.name = "size", .kind = SK_PAYLOAD_INTEGER, .id = 2};
    c->schema.field_id_next = 3;
    map->version++;
    return &c->schema;
}

static void publish(struct world *self)
{
    self->map.version++;
    sk_worker_on_map_hint(self->worker, self->map.version);
    pass(self, 1000);
}

/* ---- requests ---- */

struct asked {
    struct sk_buffer frame;
    size_t at;
    uint32_t count;
    unsigned collection;
    bool is_write;
    uint64_t sequence;    /* 0: the next one */
    uint32_t deadline_ms; /* 0: DEADLINE_MS */
};

static struct asked begin(const char *op, unsigned collection)
{
    struct asked self = {.collection = collection, .count = 3};
    self.at = sk_put_map_open(&self.frame);
    sk_put_text(&self.frame, "v");
    sk_put_u64(&self.frame, 1);
    sk_put_text(&self.frame, "op");
    sk_put_text(&self.frame, op);
    sk_put_text(&self.frame, "id");
    sk_put_u64(&self.frame, 77);
    self.is_write = strcmp(op, "upsert") == 0 || strcmp(op, "delete") == 0 ||
                    strcmp(op, "set_payload") == 0;
    return self;
}

static struct sk_buffer *key(struct asked *self, const char *name)
{
    sk_put_text(&self->frame, name);
    self->count++;
    return &self->frame;
}

/* Sends it; the number under which its reply will come. */
static uint64_t post(struct world *self, struct asked *asked)
{
    struct sk_map_collection *c = &self->map.collections[asked->collection];
    sk_put_text(key(asked, "collection"), c->schema.name);
    sk_put_count_at(&asked->frame, asked->at, asked->count);
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = SK_ROLE_ADMIN,
                                    .request = ++self->request_next,
                                    .deadline_ms = asked->deadline_ms ? asked->deadline_ms : DEADLINE_MS,
                                    .schema_version = c->schema.version,
                                    .map_version = self->map.version};
    memcpy(header.collection, c->schema.uuid, SK_UUID_BYTES);
    if (asked->is_write) {
        header.incarnation = self->incarnation;
        header.sequence = asked->sequence != 0 ? asked->sequence : ++self->sequence;
    }
    struct sk_buffer message = {0};
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, asked->frame.bytes, asked->frame.size);
    sk_worker_on_message(self->worker, SK_PEER_ROUTER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
    sk_buffer_deinit(&asked->frame);
    return header.request;
}

static bool reply_of(struct world *self, uint64_t request, struct sk_reply *out)
{
    struct sk_diag d = {0};
    for (unsigned i = 0; i < REPLIES_MAX; i++)
        if (self->replies[i].bytes != NULL && self->replies[i].request == request) {
            struct sk_span bytes = sk_span_of(self->replies[i].bytes, self->replies[i].size);
            assert_int_equal(sk_reply_decode(out, bytes, &d), SK_ERR_OK);
            return true;
        }
    return false;
}

static struct sk_reply ask(struct world *self, struct asked asked)
{
    struct sk_reply reply = {0};
    uint64_t request = post(self, &asked);
    for (unsigned turns = 0; turns < 20000; turns++) {
        if (reply_of(self, request, &reply))
            return reply;
        pass(self, 1000);
    }
    fail_msg("no answer");
    return reply;
}

static struct sk_reply ask_ok(struct world *self, struct asked asked)
{
    struct sk_reply reply = ask(self, asked);
    if (!reply.is_ok)
        fail_msg("error %d: %.*s", reply.code, (int)reply.error_message.size,
                 (const char *)reply.error_message.bytes);
    return reply;
}

static uint64_t number_of(const struct sk_reply *reply, const char *name)
{
    uint64_t value = 0;
    assert_true(sk_map_member_u64(reply->map, name, &value));
    return value;
}

static bool bool_of(const struct sk_reply *reply, const char *name)
{
    bool value = false;
    assert_true(sk_map_member_bool(reply->map, name, &value));
    return value;
}

/* The same vector for the same id and salt, whoever asks. */
static void vector_of(uint64_t id, uint64_t salt, float *out)
{
    uint64_t state = (id + 1) * 0x9E3779B97F4A7C15U ^ (salt + 1) * 0xD1B54A32D192ED03U;
    for (unsigned i = 0; i < DIM; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out[i] = (float)(int32_t)(state >> 32) / 2147483648.0F;
    }
}

static const char *const colors[3] = {"red", "green", "blue"};

static struct asked upsert_of(unsigned collection, uint64_t first, uint64_t count, uint64_t salt)
{
    struct asked asked = begin("upsert", collection);
    sk_put_array(key(&asked, "ids"), count);
    for (uint64_t i = 0; i < count; i++)
        sk_put_u64(&asked.frame, first + i);
    sk_put_bin_head(key(&asked, "vectors"), count * DIM * sizeof(float));
    for (uint64_t i = 0; i < count; i++) {
        float vector[DIM];
        vector_of(first + i, salt, vector);
        sk_buffer_append(&asked.frame, vector, sizeof vector);
    }
    sk_put_array(key(&asked, "payloads"), count);
    for (uint64_t i = 0; i < count; i++) {
        sk_put_map(&asked.frame, 2);
        sk_put_text(&asked.frame, "color");
        sk_put_text(&asked.frame, colors[(first + i) % 3]);
        sk_put_text(&asked.frame, "size");
        sk_put_u64(&asked.frame, first + i);
    }
    return asked;
}

static void upsert(struct world *self, unsigned collection, uint64_t first, uint64_t count,
                   uint64_t salt)
{
    struct sk_reply reply = ask_ok(self, upsert_of(collection, first, count, salt));
    assert_int_equal(number_of(&reply, "upserted"), count);
}

static struct asked with_ids(const char *op, unsigned collection, const uint64_t *ids, size_t count)
{
    struct asked asked = begin(op, collection);
    sk_put_array(key(&asked, "ids"), count);
    for (size_t i = 0; i < count; i++)
        sk_put_u64(&asked.frame, ids[i]);
    return asked;
}

static uint64_t count_of(struct world *self, unsigned collection)
{
    struct sk_reply reply = ask_ok(self, begin("count", collection));
    return number_of(&reply, "count");
}

static struct asked search_of(unsigned collection, uint64_t id, uint64_t salt, uint64_t limit)
{
    float vector[DIM];
    struct asked asked = begin("search", collection);
    vector_of(id, salt, vector);
    sk_put_bin(key(&asked, "vector"), vector, sizeof vector);
    sk_put_u64(key(&asked, "limit"), limit);
    return asked;
}

/* Ids of the hits (or of one of many lists of them), in order; returns how many. */
static size_t ids_of(const struct sk_reply *reply, const char *list, uint64_t *ids, double *scores)
{
    struct sk_list hits;
    size_t count = 0;
    assert_true(sk_map_member_list(reply->map, list, &hits));
    struct sk_reader from = sk_reader_of(hits.members);
    for (uint32_t i = 0; i < hits.count; i++) {
        struct sk_span hit, score;
        struct sk_diag d = {0};
        assert_int_equal(sk_read_raw(&from, 8, &hit, &d), SK_ERR_OK);
        assert_true(sk_map_member_u64(hit, "id", &ids[count]));
        if (scores != NULL) {
            struct sk_value value;
            assert_true(sk_map_member(hit, "score", &score));
            struct sk_reader at = sk_reader_of(score);
            assert_int_equal(sk_read(&at, &value, &d), SK_ERR_OK);
            scores[count] = value.f64;
        }
        count++;
    }
    return count;
}

static bool has_record(struct world *self, unsigned collection, uint64_t id, uint64_t salt)
{
    struct asked asked = with_ids("get", collection, &id, 1);
    sk_put_bool(key(&asked, "with_vector"), true);
    struct sk_reply reply = ask_ok(self, asked);
    struct sk_list records;
    struct sk_span vector;
    struct sk_value value;
    struct sk_diag d = {0};
    assert_true(sk_map_member_list(reply.map, "records", &records));
    assert_int_equal(records.count, 1);
    struct sk_reader from = sk_reader_of(records.members);
    struct sk_span record;
    assert_int_equal(sk_read_raw(&from, 8, &record, &d), SK_ERR_OK);
    if (!sk_map_member(record, "vector", &vector))
        return false;
    float wanted[DIM];
    vector_of(id, salt, wanted);
    from = sk_reader_of(vector);
    assert_int_equal(sk_read(&from, &value, &d), SK_ERR_OK);
    return value.kind == SK_VALUE_BIN && value.span.size == sizeof wanted &&
           memcmp(value.span.bytes, wanted, sizeof wanted) == 0;
}

static void check(struct world *self)
{
    struct sk_diag d = {0};
    if (sk_worker_check(self->worker, &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
}

/* The state of the first index, from describe's source. */
static void state_of(struct world *self, unsigned collection, char state[16])
{
    struct asked asked = begin("shard_stats", collection);
    struct sk_reply reply = {0};
    struct sk_map_collection *c = &self->map.collections[collection];
    sk_put_count_at(&asked.frame, asked.at, asked.count);
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = SK_ROLE_LINK,
                                    .request = ++self->request_next,
                                    .deadline_ms = 1000};
    memcpy(header.collection, c->schema.uuid, SK_UUID_BYTES);
    struct sk_buffer message = {0};
    sk_link_header_encode(sk_buffer_grow(&message, SK_LINK_HEADER_BYTES), &header);
    sk_buffer_append(&message, asked.frame.bytes, asked.frame.size);
    sk_worker_on_message(self->worker, SK_PEER_ROUTER, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
    sk_buffer_deinit(&asked.frame);
    assert_true(reply_of(self, header.request, &reply));
    struct sk_list indexes;
    struct sk_span text;
    assert_true(sk_map_member_list(reply.map, "indexes", &indexes));
    assert_true(sk_map_member_text(indexes.members, "state", &text));
    snprintf(state, 16, "%.*s", (int)text.size, (const char *)text.bytes);
}

static void wait_indexed(struct world *self, unsigned collection)
{
    struct asked asked = begin("wait", collection);
    asked.deadline_ms = 600000;
    sk_put_text(key(&asked, "for"), "indexed");
    ask_ok(self, asked);
}

/* ---- tests ---- */

static void records_are_written_found_and_deleted(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_FLAT, SK_SCHEMA_COSINE);
    start(w);
    upsert(w, 0, 0, 300, 1);
    assert_int_equal(count_of(w, 0), 300);
    assert_true(has_record(w, 0, 17, 1));
    uint64_t ids[10];
    double scores[10];
    struct sk_reply reply = ask_ok(w, search_of(0, 17, 1, 5));
    assert_int_equal(ids_of(&reply, "hits", ids, scores), 5);
    assert_int_equal(ids[0], 17);
    assert_true(scores[0] > 0.9999 && scores[1] <= scores[0]);
    assert_true(bool_of(&reply, "exact"));
    const uint64_t gone[2] = {17, 1000};
    reply = ask_ok(w, with_ids("delete", 0, gone, 2));
    assert_int_equal(number_of(&reply, "deleted"), 1);
    assert_false(has_record(w, 0, 17, 1));
    reply = ask_ok(w, search_of(0, 17, 1, 5));
    assert_int_equal(ids_of(&reply, "hits", ids, NULL), 5);
    assert_int_not_equal(ids[0], 17);
    upsert(w, 0, 17, 1, 2); /* again, and another vector */
    assert_true(has_record(w, 0, 17, 2));
    assert_int_equal(count_of(w, 0), 300);
    pass(w, 10000000);
    check(w);
    world_free(w);
}

static void a_replaced_vector_is_found_where_it_is_now(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    start(w);
    upsert(w, 0, 0, 500, 1);
    wait_indexed(w, 0);
    upsert(w, 0, 100, 100, 2);
    uint64_t ids[4];
    double scores[4];
    for (uint64_t id = 100; id < 200; id += 7) {
        struct sk_reply reply = ask_ok(w, search_of(0, id, 2, 1));
        assert_int_equal(ids_of(&reply, "hits", ids, scores), 1);
        assert_int_equal(ids[0], id);
        assert_true(scores[0] == 0);
        reply = ask_ok(w, search_of(0, id, 1, 1)); /* its old place is empty */
        assert_int_equal(ids_of(&reply, "hits", ids, scores), 1);
        assert_true(scores[0] > 0);
    }
    wait_indexed(w, 0);
    pass(w, 20000000);
    check(w);
    world_free(w);
}

static void payloads_filters_and_scrolls_work(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_IP);
    start(w);
    upsert(w, 0, 0, 90, 1);
    struct asked asked = begin("set_payload", 0);
    sk_put_array(key(&asked, "ids"), 2);
    sk_put_u64(&asked.frame, 3);
    sk_put_u64(&asked.frame, 5000);
    sk_put_map(key(&asked, "payload"), 2);
    sk_put_text(&asked.frame, "color");
    sk_put_text(&asked.frame, "gold");
    sk_put_text(&asked.frame, "size");
    sk_put_nil(&asked.frame);
    struct sk_reply reply = ask_ok(w, asked);
    assert_int_equal(number_of(&reply, "updated"), 1);

    const char *const gold = "gold";
    for (unsigned round = 0; round < 2; round++) { /* 0: search, 1: count and delete by filter */
        asked = round == 0 ? search_of(0, 1, 1, 50) : begin("count", 0);
        sk_put_map(key(&asked, "filter"), 1);
        sk_put_text(&asked.frame, "must");
        sk_put_array(&asked.frame, 1);
        sk_put_map(&asked.frame, 2);
        sk_put_text(&asked.frame, "key");
        sk_put_text(&asked.frame, "color");
        sk_put_text(&asked.frame, "match");
        sk_put_text(&asked.frame, round == 0 ? gold : "green");
        reply = ask_ok(w, asked);
        uint64_t ids[50];
        if (round == 0) {
            assert_int_equal(ids_of(&reply, "hits", ids, NULL), 1);
            assert_int_equal(ids[0], 3);
        } else {
            assert_int_equal(number_of(&reply, "count"), 30);
        }
    }
    /* pages cover everything once */
    uint64_t seen = 0, cursor = 0;
    for (bool has_cursor = false;;) {
        uint64_t ids[32];
        asked = begin("scroll", 0);
        sk_put_u64(key(&asked, "limit"), 25);
        if (has_cursor)
            sk_put_u64(key(&asked, "cursor"), cursor);
        reply = ask_ok(w, asked);
        size_t count = ids_of(&reply, "records", ids, NULL);
        for (size_t i = 0; i < count; i++)
            assert_int_equal(ids[i], seen++);
        has_cursor = sk_map_member_u64(reply.map, "cursor", &cursor);
        if (!has_cursor)
            break;
    }
    assert_int_equal(seen, 90);
    asked = begin("delete", 0);
    sk_put_map(key(&asked, "filter"), 1);
    sk_put_text(&asked.frame, "must_not");
    sk_put_array(&asked.frame, 1);
    sk_put_map(&asked.frame, 2);
    sk_put_text(&asked.frame, "key");
    sk_put_text(&asked.frame, "color");
    sk_put_text(&asked.frame, "match");
    sk_put_text(&asked.frame, "gold");
    reply = ask_ok(w, asked);
    assert_int_equal(number_of(&reply, "deleted"), 89);
    assert_int_equal(count_of(w, 0), 1);
    check(w);
    world_free(w);
}

static void nothing_is_acknowledged_before_its_commit(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_reply reply;
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    upsert(w, 0, 0, 10, 1);
    pass(w, 1000000);
    w->is_holding = true;
    struct asked first = upsert_of(0, 100, 5, 1), second = upsert_of(0, 200, 5, 1);
    uint64_t a = post(w, &first), b = post(w, &second);
    pass(w, 100000);
    assert_false(reply_of(w, a, &reply));
    assert_false(reply_of(w, b, &reply));
    assert_int_equal(count_of(w, 0), 10); /* reads go on, and see what is committed */
    crash(w);
    start(w);
    assert_int_equal(count_of(w, 0), 10);
    /* several requests share a commit */
    w->is_holding = true;
    struct sk_worker_status before, after;
    first = upsert_of(0, 100, 1, 1);
    post(w, &first);
    uint64_t posted[20];
    for (unsigned i = 0; i < 20; i++) {
        first = upsert_of(0, 300 + i, 1, 1);
        posted[i] = post(w, &first);
    }
    sk_worker_get_status(w->worker, &before);
    assert_int_equal(before.writes_queued, 20);
    release(w);
    pass(w, 10000);
    sk_worker_get_status(w->worker, &after);
    assert_true(after.commits - before.commits <= 3);
    for (unsigned i = 0; i < 20; i++)
        assert_true(reply_of(w, posted[i], &reply) && reply.is_ok);
    crash(w);
    start(w);
    assert_int_equal(count_of(w, 0), 31);
    check(w);
    world_free(w);
}

static void a_late_copy_of_a_write_is_answered_and_not_applied(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    struct asked asked = upsert_of(0, 1, 1, 1);
    asked.sequence = w->sequence = 10;
    ask_ok(w, asked);
    upsert(w, 0, 1, 1, 2); /* newer */
    for (unsigned round = 0; round < 2; round++) {
        asked = upsert_of(0, 1, 1, 1);
        asked.sequence = 10;
        struct sk_reply reply = ask_ok(w, asked);
        assert_int_equal(number_of(&reply, "upserted"), 1);
        assert_true(has_record(w, 0, 1, 2));
        crash(w); /* the window is in the store */
        start(w);
    }
    world_free(w);
}

static void a_full_pending_buffer_makes_writes_wait_and_then_busy(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    w->config.pending_rows_max = 8;
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 64; id++)
        upsert(w, 0, id, 1, 1);
    upsert(w, 0, 100, 50, 1); /* larger than the bound: alone, when nothing waits */
    assert_int_equal(count_of(w, 0), 114);
    /* while the lane does not move the queue fills, up to its bound */
    crash(w);
    w->config.writes_queued_max = 4;
    start(w);
    w->is_holding = true;
    struct asked asked = upsert_of(0, 500, 1, 1);
    post(w, &asked);
    uint64_t posted[5];
    for (unsigned i = 0; i < 5; i++) {
        asked = upsert_of(0, 501 + i, 1, 1);
        posted[i] = post(w, &asked);
    }
    struct sk_reply reply;
    assert_true(reply_of(w, posted[4], &reply));
    assert_int_equal(reply.code, SK_ERR_BUSY);
    assert_false(reply_of(w, posted[3], &reply));
    pass(w, 6000000); /* those that wait are told at their deadline */
    assert_true(reply_of(w, posted[3], &reply));
    assert_false(reply.is_ok);
    release(w);
    pass(w, 1000000);
    assert_int_equal(count_of(w, 0), 115);
    check(w);
    world_free(w);
}

static void records_expire(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    upsert(w, 0, 0, 20, 1);
    struct asked asked = upsert_of(0, 100, 20, 1);
    sk_put_u64(key(&asked, "ttl_s"), 30);
    ask_ok(w, asked);
    pass(w, 29000000);
    assert_true(has_record(w, 0, 105, 1));
    w->wall += 2000000;
    assert_false(has_record(w, 0, 105, 1)); /* at once, whenever the sweep comes */
    uint64_t ids[40];
    struct sk_reply reply = ask_ok(w, search_of(0, 105, 1, 40));
    assert_int_equal(ids_of(&reply, "hits", ids, NULL), 20);
    pass(w, 70000000);
    struct sk_worker_status status;
    sk_worker_get_status(w->worker, &status);
    assert_int_equal(status.records, 20);
    check(w);
    world_free(w);
}

static void like_thresholds_and_many_queries(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    start(w);
    upsert(w, 0, 0, 400, 1);
    uint64_t ids[64];
    double scores[64];
    struct asked asked = begin("search", 0);
    sk_put_u64(key(&asked, "like"), 7);
    sk_put_u64(key(&asked, "limit"), 20);
    struct sk_reply reply = ask_ok(w, asked);
    assert_int_equal(ids_of(&reply, "hits", ids, scores), 20);
    for (unsigned i = 0; i < 20; i++)
        assert_int_not_equal(ids[i], 7);
    double radius = scores[9];
    for (unsigned limit = 5; limit <= 20; limit += 15) {
        asked = begin("search", 0);
        sk_put_u64(key(&asked, "like"), 7);
        sk_put_u64(key(&asked, "limit"), limit);
        sk_put_f64(key(&asked, "score_threshold"), radius);
        reply = ask_ok(w, asked);
        assert_int_equal(ids_of(&reply, "hits", ids, scores), limit == 5 ? 5 : 10);
        assert_int_equal(bool_of(&reply, "more"), limit == 5);
    }
    asked = begin("search", 0);
    sk_put_u64(key(&asked, "like"), 99999);
    reply = ask(w, asked);
    assert_int_equal(reply.code, SK_ERR_NOT_FOUND);
    float queries[3 * DIM];
    for (unsigned q = 0; q < 3; q++)
        vector_of(40 + q, 1, queries + (size_t)q * DIM);
    asked = begin("search", 0);
    sk_put_bin(key(&asked, "vectors"), queries, sizeof queries);
    sk_put_u64(key(&asked, "limit"), 2);
    reply = ask_ok(w, asked);
    struct sk_list lists;
    assert_true(sk_map_member_list(reply.map, "hits", &lists));
    assert_int_equal(lists.count, 3);
    asked = begin("search", 0);
    sk_put_bin(key(&asked, "vector"), queries, 4 * 7);
    reply = ask(w, asked);
    assert_int_equal(reply.code, SK_ERR_DIM_MISMATCH);
    world_free(w);
}

static void named_vectors_are_searched_by_name(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_schema *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    schema->vector_count = 2;
    schema->vectors[1] = schema->vectors[0];
    schema->vectors[1].index = SK_SCHEMA_FLAT;
    snprintf(schema->vectors[0].name, 8, "text");
    snprintf(schema->vectors[1].name, 8, "image");
    start(w);
    struct asked asked = begin("upsert", 0);
    sk_put_array(key(&asked, "ids"), 50);
    for (unsigned i = 0; i < 50; i++)
        sk_put_u64(&asked.frame, i);
    sk_put_map(key(&asked, "vectors"), 2);
    for (unsigned f = 0; f < 2; f++) {
        sk_put_text(&asked.frame, f == 0 ? "text" : "image");
        sk_put_bin_head(&asked.frame, 50 * DIM * sizeof(float));
        for (unsigned i = 0; i < 50; i++) {
            float vector[DIM];
            vector_of(f == 0 ? i : 49 - i, 1, vector);
            sk_buffer_append(&asked.frame, vector, sizeof vector);
        }
    }
    ask_ok(w, asked);
    for (unsigned f = 0; f < 2; f++) {
        uint64_t id;
        asked = search_of(0, 10, 1, 1);
        sk_put_text(key(&asked, "using"), f == 0 ? "text" : "image");
        struct sk_reply reply = ask_ok(w, asked);
        assert_int_equal(ids_of(&reply, "hits", &id, NULL), 1);
        assert_int_equal(id, f == 0 ? 10 : 39);
    }
    struct sk_reply reply = ask(w, search_of(0, 10, 1, 1));
    assert_int_equal(reply.code, SK_ERR_INVALID);
    check(w);
    world_free(w);
}

/* Share of the true ten that the graph finds. */
static double recall(struct world *w, uint64_t salt, unsigned rounds)
{
    unsigned found = 0;
    for (unsigned q = 0; q < rounds; q++) {
        uint64_t wanted[10], got[10];
        struct asked exact = search_of(0, 1000000 + q, salt, 10);
        sk_put_bool(key(&exact, "exact"), true);
        struct sk_reply reply = ask_ok(w, exact);
        assert_true(bool_of(&reply, "exact"));
        assert_int_equal(ids_of(&reply, "hits", wanted, NULL), 10);
        struct asked asked = search_of(0, 1000000 + q, salt, 10);
        sk_put_u64(key(&asked, "ef"), 100);
        reply = ask_ok(w, asked);
        assert_int_equal(ids_of(&reply, "hits", got, NULL), 10);
        for (unsigned i = 0; i < 10; i++)
            for (unsigned j = 0; j < 10; j++)
                found += got[i] == wanted[j];
    }
    return found / (10.0 * rounds);
}

static void path_of(const struct world *w, const char *below, char path[200])
{
    char text[SK_UUID_TEXT_BYTES];
    snprintf(path, 200, "%s/%s/%s", w->data, sk_uuid_text(w->map.collections[0].schema.uuid, text),
             below);
}

static void the_graph_survives_stops_crashes_and_damage(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    char state[16], path[200];
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 6000; id += 500)
        upsert(w, 0, id, 500, 1);
    wait_indexed(w, 0);
    double before = recall(w, 3, 20);
    assert_true(before >= 0.9);
    struct sk_reply reply = ask_ok(w, search_of(0, 5, 3, 10));
    assert_false(bool_of(&reply, "exact"));
    check(w);
    /* a crash: deltas only, or an early checkpoint and deltas */
    crash(w);
    start(w);
    wait_indexed(w, 0);
    check(w);
    assert_true(recall(w, 3, 20) >= 0.9);
    /* deletes and upserts, then a stop that writes a checkpoint */
    uint64_t gone[200];
    for (unsigned i = 0; i < 200; i++)
        gone[i] = i * 7;
    ask_ok(w, with_ids("delete", 0, gone, 200));
    upsert(w, 0, 3000, 500, 2);
    pass(w, 10000000);
    sk_worker_stop(w->worker);
    struct sk_worker_status status;
    for (unsigned turns = 0; turns < 1000; turns++) {
        sk_worker_get_status(w->worker, &status);
        if (status.is_stopped)
            break;
        pass(w, 10000);
    }
    assert_true(status.is_stopped);
    crash(w);
    path_of(w, "shard-0/index-0.ckpt", path);
    assert_int_equal(access(path, R_OK), 0);
    start(w);
    wait_indexed(w, 0);
    check(w);
    assert_true(recall(w, 3, 20) >= 0.9);
    assert_false(has_record(w, 0, 7, 1));
    crash(w);
    /* a torn checkpoint: exact at once, built again behind */
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, info.st_size / 2, SEEK_SET);
    fwrite("garbage garbage", 1, 15, file);
    fclose(file);
    w->is_holding = true;
    start(w);
    reply = ask_ok(w, search_of(0, 5, 3, 10));
    assert_true(bool_of(&reply, "exact"));
    state_of(w, 0, state);
    assert_string_equal(state, "loading");
    release(w);
    wait_indexed(w, 0);
    state_of(w, 0, state);
    assert_string_equal(state, "ready");
    assert_true(recall(w, 3, 20) >= 0.9);
    check(w);
    world_free(w);
}

static void writes_and_deletes_while_building_are_found(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 5000; id += 500)
        upsert(w, 0, id, 500, 1);
    crash(w); /* nothing of the index may be there: that is the hardest start */
    char path[200], state[16];
    path_of(w, "shard-0/index-0.ckpt", path);
    unlink(path);
    w->config.index_slice_us = 500;
    start(w);
    for (uint64_t id = 0; id < 40; id++) {
        upsert(w, 0, 7000 + id, 5, 1);
        uint64_t dead = id * 3, found[1];
        ask_ok(w, with_ids("delete", 0, &dead, 1));
        struct sk_reply reply = ask_ok(w, search_of(0, 7000 + id, 1, 1));
        assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
        assert_int_equal(found[0], 7000 + id);
        reply = ask_ok(w, search_of(0, dead, 1, 1));
        assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
        assert_int_not_equal(found[0], dead);
    }
    wait_indexed(w, 0);
    state_of(w, 0, state);
    assert_string_equal(state, "ready");
    check(w);
    world_free(w);
}

static void a_used_memory_budget_refuses_upserts_only(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_schema *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    schema->memory_bytes_max = 2 * 1024 * 1024;
    start(w);
    uint64_t id = 0;
    struct sk_reply reply = {0};
    for (; id < 40000; id += 500) {
        reply = ask(w, upsert_of(0, id, 500, 1));
        if (!reply.is_ok)
            break;
        pass(w, 2000000);
    }
    assert_false(reply.is_ok);
    assert_int_equal(reply.code, SK_ERR_NOMEM);
    assert_true(has_record(w, 0, id - 1, 1));
    uint64_t found[1];
    reply = ask_ok(w, search_of(0, id - 1, 1, 1));
    assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
    assert_int_equal(found[0], id - 1);
    check(w);
    /* more memory by alter */
    schema->version++;
    schema->memory_bytes_max = 64 * 1024 * 1024;
    publish(w);
    wait_indexed(w, 0);
    upsert(w, 0, id, 500, 1);
    check(w);
    world_free(w);
}

static void the_schema_can_be_altered(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_schema *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    schema->field_count = 1;
    start(w);
    upsert(w, 0, 0, 200, 1);
    schema->field_count = 2; /* "size", indexed behind */
    schema->version++;
    publish(w);
    wait_indexed(w, 0);
    struct asked asked = begin("count", 0);
    sk_put_map(key(&asked, "filter"), 1);
    sk_put_text(&asked.frame, "must");
    sk_put_array(&asked.frame, 1);
    sk_put_map(&asked.frame, 2);
    sk_put_text(&asked.frame, "key");
    sk_put_text(&asked.frame, "size");
    sk_put_text(&asked.frame, "range");
    sk_put_map(&asked.frame, 1);
    sk_put_text(&asked.frame, "lt");
    sk_put_u64(&asked.frame, 50);
    struct sk_reply reply = ask_ok(w, asked);
    struct sk_span warning;
    assert_int_equal(number_of(&reply, "count"), 50);
    assert_false(sk_map_member(reply.map, "warning", &warning));
    check(w);
    world_free(w);
}

static void a_request_with_a_newer_map_waits_for_it(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    add_collection(w, "more", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    upsert(w, 1, 0, 5, 1); /* nobody sent a hint */
    assert_int_equal(count_of(w, 1), 5);
    /* a drop takes the folder away, and nothing else */
    char path[200];
    uint8_t uuid[SK_UUID_BYTES];
    memcpy(uuid, w->map.collections[0].schema.uuid, sizeof uuid);
    path_of(w, "", path);
    assert_int_equal(access(path, F_OK), 0);
    w->map.collections[0] = w->map.collections[1];
    w->map.collection_count = 1;
    publish(w);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(count_of(w, 0), 5);
    world_free(w);
}

static void verify_compact_snapshot_restore(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 3000; id += 500)
        upsert(w, 0, id, 500, 1);
    struct asked asked = begin("verify", 0);
    asked.deadline_ms = 60000;
    struct sk_reply reply = ask_ok(w, asked);
    assert_true(number_of(&reply, "checked") >= 3000);
    assert_int_equal(number_of(&reply, "mended"), 0);
    uint64_t gone[1000];
    for (unsigned i = 0; i < 1000; i++)
        gone[i] = i * 2;
    ask_ok(w, with_ids("delete", 0, gone, 1000));
    pass(w, 20000000);
    reply = ask_ok(w, begin("compact", 0));
    assert_true(number_of(&reply, "bytes_after") <= number_of(&reply, "bytes_before"));
    assert_int_equal(count_of(w, 0), 2000);
    assert_true(has_record(w, 0, 2999, 1));
    for (unsigned round = 0; round < 2; round++) {
        asked = begin("snapshot", 0);
        sk_put_text(key(&asked, "name"), "evening");
        reply = ask(w, asked);
        assert_int_equal(reply.is_ok, round == 0);
        if (round == 1)
            assert_int_equal(reply.code, SK_ERR_EXISTS);
    }
    add_collection(w, "copy", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    publish(w);
    asked = begin("restore", 1);
    sk_put_text(key(&asked, "name"), "evening");
    reply = ask_ok(w, asked);
    assert_int_equal(number_of(&reply, "records"), 2000);
    wait_indexed(w, 1);
    assert_int_equal(count_of(w, 1), 2000);
    assert_true(has_record(w, 1, 2999, 1));
    uint64_t found[1];
    reply = ask_ok(w, search_of(1, 2999, 1, 1));
    assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
    assert_int_equal(found[0], 2999);
    asked = begin("restore", 1);
    sk_put_text(key(&asked, "name"), "evening");
    reply = ask(w, asked);
    assert_int_equal(reply.code, SK_ERR_EXISTS);
    asked = begin("restore", 1);
    sk_put_text(key(&asked, "name"), "morning");
    reply = ask(w, asked);
    assert_false(reply.is_ok);
    check(w);
    world_free(w);
}

static void messages_that_make_no_sense_are_dropped_or_answered(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_reply reply;
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    uint8_t noise[300];
    for (unsigned round = 0; round < 2000; round++) {
        for (unsigned i = 0; i < sizeof noise; i++)
            noise[i] = (uint8_t)io_random(w);
        const struct sk_link_header header = {.kind = 1 + round % 6, .request = 9, .deadline_ms = 50};
        if (round % 2 == 0)
            sk_link_header_encode(noise, &header);
        sk_worker_on_message(w->worker, round % 3 + 1, sk_span_of(noise, io_random(w) % 300));
    }
    assert_true(reply_of(w, 9, &reply));
    assert_false(reply.is_ok);
    pass(w, 100000);
    upsert(w, 0, 0, 5, 1);
    assert_int_equal(count_of(w, 0), 5);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_written_found_and_deleted),
        cmocka_unit_test(a_replaced_vector_is_found_where_it_is_now),
        cmocka_unit_test(payloads_filters_and_scrolls_work),
        cmocka_unit_test(nothing_is_acknowledged_before_its_commit),
        cmocka_unit_test(a_late_copy_of_a_write_is_answered_and_not_applied),
        cmocka_unit_test(a_full_pending_buffer_makes_writes_wait_and_then_busy),
        cmocka_unit_test(records_expire),
        cmocka_unit_test(like_thresholds_and_many_queries),
        cmocka_unit_test(named_vectors_are_searched_by_name),
        cmocka_unit_test(the_graph_survives_stops_crashes_and_damage),
        cmocka_unit_test(writes_and_deletes_while_building_are_found),
        cmocka_unit_test(a_used_memory_budget_refuses_upserts_only),
        cmocka_unit_test(the_schema_can_be_altered),
        cmocka_unit_test(a_request_with_a_newer_map_waits_for_it),
        cmocka_unit_test(verify_compact_snapshot_restore),
        cmocka_unit_test(messages_that_make_no_sense_are_dropped_or_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
