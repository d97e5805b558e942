/* The metadata keeper's core: what a node knows of itself (collections, where their shards live, client
 * keys), kept durable, changed one step after the other, and given to everybody as one map.
 *
 * A state machine without sockets, clock, randomness or threads of its own. Its storage is one struct
 * sk_state (state.h), opened in config.folder.
 *
 * Peers. SK_KEEPER_PEER_ROUTER sends requests of clients and asks for the map; workers ask for the map.
 * Every message is one link frame (proto/link.h); every request is answered on the link it came from.
 * To SK_KEEPER_PEER_HINTS go hints: a header of kind HINT with the version of the map, after every
 * change and every few seconds. Hints may be lost: who wants the map asks again now and then.
 *
 * Changes. One at a time; each is one compare-and-set transaction and one job of the WRITE lane, and
 * raises the version of the map by one. It is answered, and hinted at, after it is durable; the reply's
 * map_version is that of a map which contains it. A change carries the router's stamp {incarnation,
 * sequence}: the last SK_KEEPER_APPLIED_MAX stamps are kept in the state, so that a late copy of a
 * change is answered again and never applied again. Stamps of changes that were refused are kept in
 * memory only.
 *
 * Keys. The first one, "admin", is config.admin_public_key, when the state is made. Every key may be
 * revoked, the last admin too: who can open the node's folder is admin there (run/client.ipc).
 *
 * Workers. The shards of a new collection go to the workers that have the fewest. When the state is
 * opened with another number of workers than before, shards move from workers that are gone, and then
 * until no worker has two more than another.
 *
 * Thread: new, destroy and every handler on one thread; run() of its job on any, one at a time.
 * Limits: SK_COLLECTIONS_MAX, SK_KEYS_MAX; SK_KEEPER_QUEUE_MAX changes wait, past it `busy`. */
#ifndef SK_KEEPER_H
#define SK_KEEPER_H

#include "common/base/io.h"
#include "common/base/note.h"
#include "proto/map.h"

enum {
    SK_KEEPER_PEER_ROUTER = 1,
    SK_KEEPER_PEER_HINTS = 2,
    SK_KEEPER_PEER_SUPERVISOR = 3, /* the shell's heartbeat; the core sends nothing there */
    SK_KEEPER_PEER_WORKER_0 = 16, /* + number, below SK_WORKERS_MAX */
};
enum {
    SK_KEEPER_QUEUE_MAX = 256,
    SK_KEEPER_APPLIED_MAX = 1024,
    SK_KEEPER_REFUSED_MAX = 64,
    SK_KEEPER_HINT_US = 5000000,
};

#define SK_KEEPER_NOTES(SK_NOTE)                                                                   \
    SK_NOTE(map_changed, INFO, "version", "op")                                                    \
    SK_NOTE(change_failed, WARN, "code", "version")                                                \
    SK_NOTE(change_conflict, WARN, "version", "in_a_row")                                          \
    SK_NOTE(state_unread, ERROR, "code", "version")                                                \
    SK_NOTE(message_malformed, WARN, "peer", "bytes")
enum sk_keeper_note {
#define SK_KEEPER_NOTE_ENUM(name, ...) SK_KEEPER_NOTE_##name,
    SK_KEEPER_NOTES(SK_KEEPER_NOTE_ENUM)
#undef SK_KEEPER_NOTE_ENUM
    SK_KEEPER_NOTE_COUNT
};
extern const struct sk_note_kind sk_keeper_notes[SK_KEEPER_NOTE_COUNT];

struct sk_keeper; /* opaque */

struct sk_keeper_config {
    const char *folder;           /* DIR/data/keeper; made when it is not there */
    uint32_t worker_count;        /* workers of this node, 1..SK_WORKERS_MAX */
    const char *admin_public_key; /* Z85 text, only looked at when the state is made; NULL: no key */
    uint64_t state_bytes_max;     /* 0 = the engine's default */
    bool no_sync;                 /* tests/sim only */
};

struct sk_keeper_status {
    uint64_t map_version;
    uint32_t collections;
    uint32_t keys;
    uint64_t requests;  /* answered since the start */
    uint64_t changes;   /* committed */
    uint64_t refused;   /* answered with an error */
    uint64_t malformed; /* messages that made no sense */
    uint32_t queued;
    bool is_stopped; /* stop was asked and nothing is in flight any more */
    char last_error[200];
};

/* Opens (or makes) the state: file work with a few fsyncs. On success *out is owned by the caller; io is
 * borrowed and must outlive it. INVALID: a setting; VERSION: a state of another format; UNAVAILABLE: a
 * folder that cannot be used or that another keeper uses; DISK_FULL; INTERNAL: a damaged state. */
SK_CHECKED enum sk_err sk_keeper_new(struct sk_keeper **out, const struct sk_keeper_config *config,
                                     const struct sk_io *io, struct sk_diag *d);
/* Sets *self to NULL; safe on NULL. No job may be in flight in another thread; one that was submitted
 * and never run (a simulated crash) is freed with it. */
void sk_keeper_destroy(struct sk_keeper **self);

/* bytes are borrowed for the call. What makes no sense is counted and dropped; a request whose header
 * could be read is always answered. */
void sk_keeper_on_message(struct sk_keeper *self, sk_peer from, struct sk_span bytes);
/* Returns the mono_us at which it wants to be called next. */
uint64_t sk_keeper_on_time(struct sk_keeper *self);
void sk_keeper_on_job_done(struct sk_keeper *self, struct sk_job *job);

/* From now on changes are answered `unavailable`; the one that is being committed is finished. */
void sk_keeper_stop(struct sk_keeper *self);
void sk_keeper_get_status(const struct sk_keeper *self, struct sk_keeper_status *out);
/* Borrowed until the next handler. */
const struct sk_map *sk_keeper_map(const struct sk_keeper *self);

/* For tests: names, uuids and keys are unique, names in order, workers in range. INTERNAL names the
 * first that does not hold. */
SK_CHECKED enum sk_err sk_keeper_check(const struct sk_keeper *self, struct sk_diag *d);

/* A Curve public key as text: 40 characters of Z85 that stand for 32 bytes. INVALID says which. */
SK_CHECKED enum sk_err sk_public_key_check(struct sk_span text, struct sk_diag *d);

#endif
