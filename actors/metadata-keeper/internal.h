/* What the files of the keeper's core share. */
#ifndef SK_KEEPER_INTERNAL_H
#define SK_KEEPER_INTERNAL_H

#include "actors/metadata-keeper/keeper.h"
#include "actors/metadata-keeper/state.h"
#include "proto/link.h"
#include "proto/reply.h"

/* A change that waits or is being committed. */
struct command {
    struct command *next;
    struct sk_link_header header;
    sk_peer from;
    uint64_t deadline_us;
    struct sk_request request; /* borrows from frame */
    size_t size;
    uint8_t frame[];
};

struct stamp {
    uint64_t incarnation;
    uint64_t sequence;
};

/* A stamp that was applied; `serial` is its place in the window and in the state's keys. */
struct applied {
    struct stamp stamp;
    uint64_t serial;
};

struct refused {
    struct stamp stamp;
    enum sk_err code;
    struct sk_diag diag;
};

enum { TXN_CHANGES_MAX = 8 + SK_COLLECTIONS_MAX };

/* The transaction that is planned, then committed by its job. Keys and values lie in bytes, by offset
 * while it grows. */
struct commit {
    struct sk_job job;
    struct sk_state *state;
    struct sk_buffer bytes;
    struct {
        size_t key_at, key_size, value_at, value_size;
        bool is_removed;
    } changes[TXN_CHANGES_MAX];
    unsigned change_count;
    struct sk_state_pair pairs[TXN_CHANGES_MAX];
    uint8_t version_before[16]; /* packed */
    size_t version_before_size;
    bool is_release;
    bool is_submitted;
    bool is_applied;
    enum sk_err code;
    struct sk_diag diag;
};

struct sk_keeper {
    /* settings */
    const struct sk_io *io;
    uint32_t worker_count;
    /* state: as the engine's watch told it */
    struct sk_state state;
    struct sk_map map;
    uint32_t collection_capacity;
    uint32_t key_capacity;
    uint32_t workers_known;                        /* as stored: worker_count of the last start */
    struct applied applied[SK_KEEPER_APPLIED_MAX]; /* slot: serial modulo the size */
    uint64_t applied_next;                         /* serial of the next one; they begin at 1 */
    struct refused refused[SK_KEEPER_REFUSED_MAX];
    unsigned refused_next;
    /* work */
    struct command *first, *last; /* first: the one being committed while commit.is_submitted */
    unsigned queued;
    struct commit commit;
    unsigned conflicts; /* in a row */
    uint64_t hint_next_us;
    bool is_stopping;
    bool is_stale;            /* the watch failed: the map here may be behind the state */
    struct sk_buffer packed;  /* the map, encoded; empty: encode it anew */
    struct sk_buffer reply;
    struct sk_keeper_status counters;
};

/* keeper_records.c: the form of what is stored, and the map made from it. */
void sk_keeper_put_collection(struct commit *to, const struct sk_map_collection *collection);
void sk_keeper_remove_collection(struct commit *to, const char *name);
void sk_keeper_put_key(struct commit *to, const struct sk_map_key *key);
void sk_keeper_remove_key(struct commit *to, const char *name);
void sk_keeper_put_number(struct commit *to, const char *name, uint64_t value);
void sk_keeper_put_applied(struct commit *to, uint64_t serial, const struct stamp *stamp);
void sk_keeper_remove_applied(struct commit *to, uint64_t serial);
void sk_keeper_commit_begin(struct commit *self, uint64_t version);
/* Turns offsets into pairs; NOMEM where the buffer broke. */
SK_CHECKED enum sk_err sk_keeper_commit_close(struct commit *self, struct sk_diag *d);
void sk_keeper_commit_run(struct sk_job *job);
/* Room for one more collection and key, so that what is committed can always be taken over. */
SK_CHECKED enum sk_err sk_keeper_reserve(struct sk_keeper *self, struct sk_diag *d);
/* A sk_state_visit; arg is the keeper. */
enum sk_err sk_keeper_on_pair(void *arg, const struct sk_state_pair *pair, struct sk_diag *d);
bool sk_keeper_was_applied(const struct sk_keeper *self, const struct stamp *stamp);

/* keeper_changes.c: what each operation changes. OK with change_count 0: nothing to do. */
SK_CHECKED enum sk_err sk_keeper_plan(struct sk_keeper *self, const struct command *command,
                                      struct commit *out, struct sk_diag *d);
/* Shards of workers that are gone, and an even share for those that came. */
SK_CHECKED enum sk_err sk_keeper_plan_workers(struct sk_keeper *self, struct commit *out,
                                              struct sk_diag *d);
const struct sk_map_key *sk_keeper_find_key(const struct sk_map *map, struct sk_span name);

#endif
