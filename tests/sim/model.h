/* What the node must answer, known from the history of what was asked and acknowledged.
 *
 * Every write of a record is kept with the tick at which it was issued and the tick from which it
 * is known to have been applied. A read that ran from tick r0 to tick r1 may show a write that was
 * issued before r1 and was not surely replaced before r0. A write without an answer may take effect
 * later or never, but only once: seen and replaced, it must not come back.
 *
 * Each record has one writing client, which waits for one answer before it writes that record
 * again. */
#ifndef SK_SIM_MODEL_H
#define SK_SIM_MODEL_H

#include "tests/sim/rng.h"

#include <msgpack.h>

/* No message of the world is longer on its way, resends and all. */
enum { MODEL_LATE_US = 12000000 };
enum { MODEL_SLOTS_MAX = 96, MODEL_DIM_MAX = 16, MODEL_GROUPS = 5, MODEL_COLLECTIONS_MAX = 2 };
enum model_metric { MODEL_L2, MODEL_IP, MODEL_COSINE };
enum model_state { MODEL_PENDING, MODEL_ACKED, MODEL_UNKNOWN, MODEL_REFUSED };

struct model_write {
    uint32_t request; /* writes of one request are atomic in a shard */
    bool is_present;
    uint32_t vector_serial, payload_serial;
    uint32_t group;
    uint32_t ttl_s; /* 0: never expires */
    enum model_state state;
    uint64_t issued, acked, applied_by; /* ticks; UINT64_MAX: not (known) */
    uint64_t issued_us, acked_us;       /* virtual time, for the expiry */
};

struct model_slot {
    struct model_write *writes; /* in the order of issue; [0] is "absent from the beginning" */
    unsigned count, capacity;
    uint64_t frozen_until_us; /* a write that depends on what is there may come until then */
};

struct model_collection {
    char name[32];
    enum model_metric metric;
    unsigned dim, shards, slot_count;
    unsigned index; /* of model_index_names: what it is created with */
    bool may_have_lists; /* since then, at any time: it may miss what lies in another list */
    uint64_t created_tick; /* known to be there from here on; UINT64_MAX: not yet */
    struct model_slot slots[MODEL_SLOTS_MAX];
};

struct model {
    struct model_collection collections[MODEL_COLLECTIONS_MAX];
    unsigned collection_count, created; /* client 0 creates them one after the other */
    int64_t wall_low_us, wall_high_us;  /* how far the wall clock has ever been from its start */
    uint32_t serial;                    /* of the last value made */
    uint64_t checked;                   /* answers compared */
    uint64_t missed;                    /* records that an approximate answer lacked */
    char violation[400];                /* "" while all is well */
};

/* One read and its interval. now_us are virtual times of its begin and end. */
struct model_read {
    struct model_collection *collection;
    uint64_t r0, r1;
    uint64_t r0_us, r1_us;
};

enum { MODEL_INDEXES = 5, MODEL_WITH_LISTS = 2 }; /* those from here on have lists */
extern const char *const model_index_names[MODEL_INDEXES];

void model_init(struct model *self, struct sim_rng *rng);
void model_deinit(struct model *self);
__attribute__((format(printf, 2, 3))) void model_violate(struct model *self, const char *format,
                                                         ...);

/* The vector that a serial stands for; never all zeros. */
void model_vector(uint32_t serial, unsigned dim, float *out);
float model_score(enum model_metric metric, const float *a, const float *b, unsigned dim);
/* Record ids by slot: an integer, a UUID or a string. */
void model_pack_id(msgpack_packer *to, unsigned slot);
int model_slot_of(const struct model_collection *collection,
                  const msgpack_object *id);   /* -1: none */
int model_compare_ids(unsigned a, unsigned b); /* the order of ties */

/* A new write of a slot, PENDING; the returned pointer is good until the next one of that slot. */
struct model_write *model_issue(struct model *self, struct model_collection *c, unsigned slot,
                                uint64_t tick, uint64_t now_us);
/* A worker has lost its memory of what it refused: a late copy of that may be applied after all. */
void model_forget_refusals(struct model *self, uint64_t now_us);
void model_settle(struct model *self, struct model_collection *c, unsigned slot, uint32_t request,
                  enum model_state state, uint64_t tick, uint64_t now_us);
/* The one value that every read in this interval must show (an absent one too), or NULL when more
 * than one is possible. */
const struct model_write *model_certain(const struct model *self, const struct model_read *read,
                                        unsigned slot);

/* A record that an answer shows: its payload and, where asked for, its vector. Returns the write it
 * comes from, or NULL after a violation. */
struct model_write *model_check_shown(struct model *self, const struct model_read *read,
                                      unsigned slot, const msgpack_object *payload,
                                      const msgpack_object *vector, const char *where);
/* An answer says that there is no such record. */
void model_check_absent(struct model *self, const struct model_read *read, unsigned slot,
                        const char *where);
/* The records of one get (NULL: absent) of a collection with one shard: no request half applied. */
void model_check_atomic(struct model *self, const struct model_read *read, const unsigned *slots,
                        struct model_write *const *shown, unsigned count);

#endif
