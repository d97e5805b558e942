/* A simulated user: asks for one thing at a time, remembers what it asked, and compares every
 * answer with the model. Each record has one writing client (slot % client count); all read
 * everything. */
#ifndef SK_SIM_CLIENT_H
#define SK_SIM_CLIENT_H

#include "tests/sim/model.h"

#include <stddef.h>

enum client_kind {
    CLIENT_CREATE,
    CLIENT_UPSERT,
    CLIENT_DELETE,
    CLIENT_SET_PAYLOAD,
    CLIENT_GET,
    CLIENT_SEARCH,
    CLIENT_SCROLL,
    CLIENT_COUNT,
    CLIENT_LOOK,    /* verify, compact, wait, describe, alter and the like */
    CLIENT_SCRATCH, /* a collection that is dropped and made again, over and over */
    CLIENT_KIND_COUNT
};

struct client_world {
    void *impl;
    struct model *model;
    struct sim_rng *rng;
    uint64_t (*now_us)(void *impl);
    uint64_t (*tick)(void *impl); /* rises with every call */
    void (*send)(void *impl, unsigned client, const void *bytes, size_t size);
    bool (*may_be_full)(void *impl); /* the disk has been full in this run */
    void (*say)(void *impl, const char *format, ...) __attribute__((format(printf, 2, 3)));
};

enum client_filter { FILTER_NONE, FILTER_GROUP, FILTER_KEYWORD, FILTER_RANGE };

/* What is known of the scratch collection. */
struct client_scratch {
    enum { SCRATCH_ABSENT, SCRATCH_THERE, SCRATCH_UNKNOWN } state;
    enum { SCRATCH_CREATE, SCRATCH_UPSERT, SCRATCH_COUNT, SCRATCH_DROP } asked;
    unsigned low, high; /* records in it */
    unsigned rows, serial, shards;
    uint64_t rest_until_us; /* messages of before may come until then */
};

struct sim_client {
    const struct client_world *world;
    unsigned number, client_count;
    uint64_t next_us; /* when it wants to act; UINT64_MAX: it waits for an answer */
    uint64_t give_up_us;
    uint64_t request; /* of the question that is open; 0 none */
    uint64_t actions, answered, failed_kinds[16];
    bool is_healed; /* from now on every answer must be ok */
    /* the open question */
    enum client_kind kind;
    struct model_read read;
    unsigned slots[MODEL_SLOTS_MAX], slot_count;
    unsigned touched[MODEL_SLOTS_MAX], touched_count; /* of a write that depends on what it finds */
    bool is_exact, with_vector;
    enum client_filter filter;
    unsigned group, limit, look;
    uint32_t query_serial, serial_from, serial_end; /* of FILTER_RANGE */
    struct client_scratch scratch;
    bool seen[MODEL_SLOTS_MAX]; /* scroll: over its pages */
    struct model_write *shown[MODEL_SLOTS_MAX];
    uint64_t deadline_us;
};

void sim_client_init(struct sim_client *self, const struct client_world *world, unsigned number,
                     unsigned client_count);
/* Acts or gives up when it is time; the world calls it at next_us or give_up_us, whichever is open.
 */
void sim_client_on_time(struct sim_client *self);
/* What its open question is, for a person. Returns text. */
const char *sim_client_asks(const struct sim_client *self, char *text, size_t size);
void sim_client_on_reply(struct sim_client *self, const uint8_t *bytes, size_t size);
/* The last look: asks for everything (0: get of every record, 1: exact search, 2: search, 3: count,
 * 4: scroll, 5: a write, 6 and on: verify, compact, wait, ...) of a collection. false: something is
 * open still. */
bool sim_client_final(struct sim_client *self, unsigned collection, unsigned what);

#endif
