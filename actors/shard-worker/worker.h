/* The shard-worker's core: holds shards (a store and its indexes each), writes in groups, searches.
 *
 * A state machine without sockets, clock, randomness or threads of its own: it sees the world
 * through struct sk_io. Files are its own: it opens stores and index files under config.data_dir.
 *
 * Peers. SK_PEER_ROUTER and SK_PEER_KEEPER; every message on both links is one link frame
 * (proto/link.h: header, then a body). From the router come requests (the client's frame behind the
 * header); to it go replies (complete client replies), hello once the shards are open, and stats.
 * To the keeper goes map_get; from it comes the map. From SK_PEER_HINTS come the keeper's hints.
 *
 * Thread: new, destroy and every handler on one thread, and run() of QUICK jobs. run() of SLOW jobs may
 * be called on any threads side by side, of WRITE jobs on any, one at a time; run() calls io->mono_us and
 * io->wall_us, nothing else of io. io->submit may call run() and then sk_worker_on_job_done() before it
 * returns, or much later: plain searches that come until then are answered by the same job.
 *
 * Durability. A write is acknowledged by on_job_done() of the WRITE job that committed it, never
 * earlier. A core that is destroyed (or whose process dies) without sk_worker_stop() loses nothing
 * that was acknowledged.
 *
 * Limits: see struct sk_worker_config; every queue is bounded by count and by bytes, past it the
 * request is answered `busy`. */
#ifndef SK_WORKER_H
#define SK_WORKER_H

#include "common/base/io.h"
#include "common/base/note.h"

enum { SK_PEER_ROUTER = 1, SK_PEER_KEEPER = 2, SK_PEER_HINTS = 3 };

/* What it notes (common/base/note.h): name, level, what a and b are. */
#define SK_WORKER_NOTES(SK_NOTE)                                                                   \
    SK_NOTE(shard_opened, INFO, "shard", "records")                                                \
    SK_NOTE(shard_failed, ERROR, "shard", "code")                                                  \
    SK_NOTE(shard_dropped, INFO, "shard", "is_removed")                                            \
    SK_NOTE(index_ready, INFO, "shard", "rows")                                                    \
    SK_NOTE(index_given_up, WARN, "shard", "field")                                                \
    SK_NOTE(checkpoint_written, INFO, "shard", "rows")                                             \
    SK_NOTE(turn_failed, WARN, "turn", "code")                                                     \
    SK_NOTE(map_applied, INFO, "version", "collections")                                           \
    SK_NOTE(map_refused, WARN, "version", "code")
enum sk_worker_note {
#define SK_WORKER_NOTE_ENUM(name, level, a_name, b_name) SK_WORKER_NOTE_##name,
    SK_WORKER_NOTES(SK_WORKER_NOTE_ENUM)
#undef SK_WORKER_NOTE_ENUM
    SK_WORKER_NOTE_COUNT
};
extern const struct sk_note_kind sk_worker_notes[SK_WORKER_NOTE_COUNT];

struct sk_worker; /* opaque */

struct sk_worker_config {
    const char *data_dir;     /* DIR/data; copied. Shards: <data_dir>/<uuid hex>/shard-<n>/ */
    const char *snapshot_dir; /* DIR/snapshots; copied. Snapshot N: <snapshot_dir>/<name>/... */
    uint32_t number;          /* this worker's number in the map: it opens the shards given to it */
    uint32_t process_id;      /* for hello and stats only */
    uint32_t reads_in_flight_max; /* jobs of QUICK and SLOW submitted at once; 1..64, 0 = 32 */
    uint32_t reads_queued_max;    /* behind those; 0 = 1,024 */
    uint32_t writes_queued_max;   /* a shard, requests; 0 = 4,096 */
    uint64_t queued_bytes_max;    /* all waiting requests of this worker; 0 = 256 MiB */
    uint32_t batch_rows_max;   /* rows of one group commit; 0 = 4,096 (one request may be larger) */
    uint32_t pending_rows_max; /* rows committed and not yet linked, a vector field; 0 = 1,024 */
    uint32_t index_slice_us;   /* one index step before waiting writes get their turn; 0 = 4,000 */
    uint32_t flat_below;       /* an hnsw index scans below this many rows; 0 = the index's default */
    uint32_t quick_cost_max_us; /* a read estimated above this goes to a search thread; 0 = 1,500 */
    uint64_t memory_bytes_max;  /* budget of a collection that has none of its own; 0 = no bound */
    const char *kernels;        /* set of vector kernels (copied); NULL: the best that is here */
    uint64_t map_bytes_max;    /* address space of a shard's file; 0 = the store's default */
    bool no_sync;              /* tests only: commits without fsync */
};

/* What the shell shows in `status`, logs and metrics. */
struct sk_worker_status {
    bool is_ready;          /* it has an authentic map and has opened (or failed) all its shards */
    bool is_stopped;        /* stop was asked and nothing is in flight any more */
    uint32_t shards;        /* open */
    uint32_t shards_failed; /* in the map, but their store could not be opened */
    uint64_t map_version;
    uint64_t records;
    uint64_t pending_rows; /* committed, not yet in their index */
    uint64_t requests;     /* answered since the start */
    uint64_t errors;       /* of those, with an error */
    uint64_t searches;
    uint64_t commits;
    uint64_t rows_written;
    uint64_t disk_bytes;
    uint64_t index_bytes; /* memory */
    uint32_t reads_in_flight;
    uint32_t writes_queued;
    char last_error[200]; /* of the last shard that could not be opened or committed */
};

/* Reads no file yet: the shards are opened when the map has come. On success *out is owned by the
 * caller; io is borrowed and must outlive it. INVALID: a setting out of range; UNAVAILABLE:
 * data_dir is not there or cannot be written. */
SK_CHECKED enum sk_err sk_worker_new(struct sk_worker **out, const struct sk_worker_config *config,
                                     const struct sk_io *io, struct sk_diag *d);
/* Sets *self to NULL; safe on NULL. No job may be in flight in another thread. Jobs that were
 * submitted and never run (a simulated crash) are freed with it and must not be touched afterwards.
 */
void sk_worker_destroy(struct sk_worker **self);

/* bytes are borrowed for the call. A message that makes no sense is counted and dropped; a request
 * whose header could be read is always answered. */
void sk_worker_on_message(struct sk_worker *self, sk_peer from, struct sk_span bytes);
/* A link is new or came back: SK_PEER_ROUTER gets hello again, SK_PEER_KEEPER map_get. */
void sk_worker_on_connected(struct sk_worker *self, sk_peer peer);
/* The keeper published: fetch the map if it is newer than ours. */
void sk_worker_on_map_hint(struct sk_worker *self, uint64_t version);
/* Returns the mono_us at which it wants to be called next; UINT64_MAX never. Call it after every
 * other handler too, or at least before sleeping: what it returns may have become sooner. */
uint64_t sk_worker_on_time(struct sk_worker *self);
void sk_worker_on_job_done(struct sk_worker *self, struct sk_job *job);

/* From now on requests are answered `unavailable`; what is queued is finished, indexes write their
 * checkpoints. Poll sk_worker_status().is_stopped (it changes in on_job_done). */
void sk_worker_stop(struct sk_worker *self);
void sk_worker_get_status(const struct sk_worker *self, struct sk_worker_status *out);

/* For tests/sim: checks every shard's index (dangling edges, rows that LMDB does not have, records
 * that neither index nor pending buffer has) and the store's own invariants. INTERNAL names the
 * first that does not hold. Call it between jobs only. */
SK_CHECKED enum sk_err sk_worker_check(struct sk_worker *self, struct sk_diag *d);

#endif
