/* The worker's core in a world of its own: virtual clocks, jobs that run in place, are held back or go to
 * threads, a keeper and a router that are this file. */
#ifndef SK_TESTS_WORKER_WORLD_H
#define SK_TESTS_WORKER_WORLD_H

#include "tests/harness.h"

#include "actors/shard-worker/worker.h"
#include "common/base/id.h"
#include "kernels/kernels.h"
#include "proto/link.h"
#include "proto/map.h"
#include "proto/reply.h"

#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIM = 24, REPLIES_MAX = 64, DEADLINE_MS = 5000, SEARCH_THREADS = 2 };

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
    _Atomic uint64_t mono, wall;
    uint64_t seed;
    struct sk_map map;
    struct reply_slot replies[REPLIES_MAX];
    unsigned reply_next;
    uint64_t request_next, sequence;
    bool is_holding; /* WRITE jobs wait in held */
    struct sk_job *held;
    /* with threads: QUICK runs in place, SLOW and WRITE in the lanes */
    bool has_threads, is_ended;
    pthread_t threads[1 + SEARCH_THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t is_changed;
    struct sk_job *waiting[2], *done; /* [0]: SLOW, [1]: WRITE */
    unsigned in_flight;
    unsigned hellos, stats;
    uint64_t incarnation;
};

/* ---- the world ---- */

static inline uint64_t io_mono(void *impl)
{
    return atomic_fetch_add(&((struct world *)impl)->mono, 1) + 1;
}

static inline uint64_t io_wall(void *impl)
{
    struct world *self = impl;
    return self->wall + self->mono;
}

static inline uint64_t io_random(void *impl)
{
    struct world *self = impl;
    self->seed = self->seed * 6364136223846793005U + 1442695040888963407U;
    return self->seed >> 11;
}

static inline void on_map_get(struct world *self)
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

static inline void io_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned count)
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

static inline void io_submit(void *impl, struct sk_job *job)
{
    struct world *self = impl;
    if (self->has_threads && job->lane != SK_LANE_QUICK) {
        struct sk_job **at = &self->waiting[job->lane == SK_LANE_WRITE];
        pthread_mutex_lock(&self->mutex);
        job->next = NULL;
        while (*at != NULL)
            at = &(*at)->next;
        *at = job;
        self->in_flight++;
        pthread_cond_broadcast(&self->is_changed);
        pthread_mutex_unlock(&self->mutex);
        return;
    }
    if (job->lane == SK_LANE_WRITE && self->is_holding) {
        assert_null(self->held); /* one at a time */
        self->held = job;
        return;
    }
    job->run(job);
    sk_worker_on_job_done(self->worker, job);
}

static inline void release(struct world *self)
{
    self->is_holding = false;
    struct sk_job *job = self->held;
    self->held = NULL;
    if (job != NULL) {
        job->run(job);
        sk_worker_on_job_done(self->worker, job);
    }
}

static inline void *run_lane(struct world *self, unsigned lane)
{
    pthread_mutex_lock(&self->mutex);
    while (!self->is_ended) {
        struct sk_job *job = self->waiting[lane];
        if (job == NULL) {
            pthread_cond_wait(&self->is_changed, &self->mutex);
            continue;
        }
        self->waiting[lane] = job->next;
        pthread_mutex_unlock(&self->mutex);
        job->run(job);
        pthread_mutex_lock(&self->mutex);
        job->next = self->done;
        self->done = job;
        pthread_cond_broadcast(&self->is_changed);
    }
    pthread_mutex_unlock(&self->mutex);
    return NULL;
}

static inline void *run_writes(void *self)
{
    return run_lane(self, 1);
}

static inline void *run_searches(void *self)
{
    return run_lane(self, 0);
}

static inline void start_threads(struct world *self)
{
    self->has_threads = true;
    assert_int_equal(pthread_mutex_init(&self->mutex, NULL), 0);
    assert_int_equal(pthread_cond_init(&self->is_changed, NULL), 0);
    for (unsigned i = 0; i <= SEARCH_THREADS; i++)
        assert_int_equal(
            pthread_create(&self->threads[i], NULL, i == 0 ? run_writes : run_searches, self), 0);
}

/* Gives the core what threads have done; waits a moment when that is nothing. */
static inline void take_done(struct world *self)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&self->mutex);
    while (self->done == NULL && self->in_flight != 0 &&
           pthread_cond_timedwait(&self->is_changed, &self->mutex, &until) == 0)
        continue;
    struct sk_job *done = self->done;
    self->done = NULL;
    for (const struct sk_job *job = done; job != NULL; job = job->next)
        self->in_flight--;
    pthread_mutex_unlock(&self->mutex);
    while (done != NULL) {
        struct sk_job *next = done->next;
        sk_worker_on_job_done(self->worker, done);
        done = next;
    }
}

static inline void end_threads(struct world *self)
{
    while (self->in_flight != 0)
        take_done(self);
    pthread_mutex_lock(&self->mutex);
    self->is_ended = true;
    pthread_cond_broadcast(&self->is_changed);
    pthread_mutex_unlock(&self->mutex);
    for (unsigned i = 0; i <= SEARCH_THREADS; i++)
        pthread_join(self->threads[i], NULL);
    pthread_cond_destroy(&self->is_changed);
    pthread_mutex_destroy(&self->mutex);
    self->has_threads = false;
}

/* Lets virtual time pass: every call that the core asked for is made. */
static inline void pass(struct world *self, uint64_t us)
{
    uint64_t end = self->mono + us;
    for (unsigned turns = 0; turns < 100000; turns++) {
        if (self->has_threads)
            take_done(self);
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

static inline void start(struct world *self)
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
static inline void crash(struct world *self)
{
    self->held = NULL;
    self->is_holding = false;
    sk_worker_destroy(&self->worker);
}

static inline int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

static inline struct world *world_new(void)
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

static inline void world_free(struct world *self)
{
    sk_worker_destroy(&self->worker);
    sk_map_deinit(&self->map);
    for (unsigned i = 0; i < REPLIES_MAX; i++)
        free(self->replies[i].bytes);
    nftw(self->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(self);
}

static inline struct sk_schema *add_collection(struct world *self, const char *name,
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

static inline void publish(struct world *self)
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

static inline struct asked begin(const char *op, unsigned collection)
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

static inline struct sk_buffer *key(struct asked *self, const char *name)
{
    sk_put_text(&self->frame, name);
    self->count++;
    return &self->frame;
}

/* Sends it; the number under which its reply will come. */
static inline uint64_t post(struct world *self, struct asked *asked)
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

static inline bool reply_of(struct world *self, uint64_t request, struct sk_reply *out)
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

static inline struct sk_reply ask(struct world *self, struct asked asked)
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

static inline struct sk_reply ask_ok(struct world *self, struct asked asked)
{
    struct sk_reply reply = ask(self, asked);
    if (!reply.is_ok)
        fail_msg("error %d: %.*s", reply.code, (int)reply.error_message.size,
                 (const char *)reply.error_message.bytes);
    return reply;
}

static inline uint64_t number_of(const struct sk_reply *reply, const char *name)
{
    uint64_t value = 0;
    assert_true(sk_map_member_u64(reply->map, name, &value));
    return value;
}

static inline bool bool_of(const struct sk_reply *reply, const char *name)
{
    bool value = false;
    assert_true(sk_map_member_bool(reply->map, name, &value));
    return value;
}

/* The same vector for the same id and salt, whoever asks. */
static inline void vector_of(uint64_t id, uint64_t salt, float *out)
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

static inline struct asked upsert_of(unsigned collection, uint64_t first, uint64_t count, uint64_t salt)
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

static inline void upsert(struct world *self, unsigned collection, uint64_t first, uint64_t count,
                   uint64_t salt)
{
    struct sk_reply reply = ask_ok(self, upsert_of(collection, first, count, salt));
    assert_int_equal(number_of(&reply, "upserted"), count);
}

static inline struct asked with_ids(const char *op, unsigned collection, const uint64_t *ids, size_t count)
{
    struct asked asked = begin(op, collection);
    sk_put_array(key(&asked, "ids"), count);
    for (size_t i = 0; i < count; i++)
        sk_put_u64(&asked.frame, ids[i]);
    return asked;
}

static inline uint64_t count_of(struct world *self, unsigned collection)
{
    struct sk_reply reply = ask_ok(self, begin("count", collection));
    return number_of(&reply, "count");
}

static inline struct asked search_of(unsigned collection, uint64_t id, uint64_t salt, uint64_t limit)
{
    float vector[DIM];
    struct asked asked = begin("search", collection);
    vector_of(id, salt, vector);
    sk_put_bin(key(&asked, "vector"), vector, sizeof vector);
    sk_put_u64(key(&asked, "limit"), limit);
    return asked;
}

/* Ids of the hits (or of one of many lists of them), in order; returns how many. */
static inline size_t ids_of(const struct sk_reply *reply, const char *list, uint64_t *ids, double *scores)
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

static inline bool has_record(struct world *self, unsigned collection, uint64_t id, uint64_t salt)
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

static inline void check(struct world *self)
{
    struct sk_diag d = {0};
    if (sk_worker_check(self->worker, &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
}

/* The state of the first index, from describe's source. */
static inline void state_of(struct world *self, unsigned collection, char state[16])
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

static inline void wait_indexed(struct world *self, unsigned collection)
{
    struct asked asked = begin("wait", collection);
    asked.deadline_ms = 600000;
    sk_put_text(key(&asked, "for"), "indexed");
    ask_ok(self, asked);
}

#endif
