/* The worker's core in a world of its own: virtual clocks, jobs that run in place, are held back or go to
 * threads, a keeper and a router that are this file. worker_requests.h asks it. */
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
    bool is_gathering; /* QUICK jobs wait in gathered, as they do for the end of a turn */
    struct sk_job *gathered;
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
    if (job->lane == SK_LANE_QUICK && self->is_gathering) {
        assert_null(self->gathered); /* one at a time: more wait for its end */
        self->gathered = job;
        return;
    }
    job->run(job);
    sk_worker_on_job_done(self->worker, job);
}

/* The end of a turn; how many jobs that were. */
static inline unsigned run_gathered(struct world *self)
{
    unsigned count = 0;
    for (struct sk_job *job; (job = self->gathered) != NULL; count++) {
        self->gathered = NULL;
        job->run(job);
        sk_worker_on_job_done(self->worker, job);
    }
    return count;
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

#endif
