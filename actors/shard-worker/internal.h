/* What the files of the worker's core share. Nobody else includes this.
 *
 * State belongs to one of three:
 *   core    the thread that calls the handlers of worker.h: maps, queues, lists of jobs
 *   writer  the WRITE job that runs now. At most one is submitted at any time, so the core may touch this
 *           state too while none is: stores' write side, indexes, the ends of pending buffers
 *   shared  read by read jobs on any thread: field.serving, the pending lists, atomics
 *
 * Nothing that a read job may hold is freed while it runs: read jobs are numbered in the order they were
 * submitted, and what was taken out of sight goes to the shard's grave with the number of the next one;
 * it is freed once every job below that number has ended. */
#ifndef SK_WORKER_INTERNAL_H
#define SK_WORKER_INTERNAL_H

#include "actors/shard-worker/files.h"
#include "actors/shard-worker/index/index.h"
#include "actors/shard-worker/pending.h"
#include "actors/shard-worker/rank.h"
#include "actors/shard-worker/store/store.h"
#include "actors/shard-worker/worker.h"
#include "common/base/arena.h"
#include "proto/codec.h"
#include "proto/filter.h"
#include "proto/link.h"
#include "proto/map.h"
#include "proto/payload.h"
#include "proto/records.h"
#include "proto/reply.h"
#include "proto/schema.h"

enum {
    FRAME_BYTES_MAX = SK_FRAME_BYTES_MAX + 4096,
    MAP_RETRY_US = 1000 * 1000,        /* map_get without an answer */
    MAP_POLL_US = 30 * 1000 * 1000,    /* a hint may be lost */
    SHARD_RETRY_US = 5 * 1000 * 1000,  /* a store that could not be opened */
    STATS_BUSY_US = 1000 * 1000,
    STATS_IDLE_US = 5 * 1000 * 1000,
    REPLY_MARGIN_US = 20 * 1000, /* answers at a deadline leave a little earlier, to arrive in time */
    DEADLINE_EVERY = 256,        /* rows between two looks at the clock */
    BATCH_BYTES_MAX = 16 * 1024 * 1024, /* of frames in one group commit; one request may be larger */
    INDEX_IDLE_US = 3 * 1000 * 1000,    /* without a change: eager work and checkpoints are welcome */
    REST_US = 1000 * 1000,              /* after a turn that failed */
    SWEEP_EVERY_US = 1000 * 1000,       /* of expired records, at most so often */
    SWEEP_LATEST_US = 60 * 1000 * 1000, /* wall clocks jump: looked at again at least so often */
};

/* ---- requests (core, then the job that holds it) ---- */

struct request {
    struct request *next;
    struct sk_link_header header;
    uint64_t deadline_us;
    uint64_t arrived_us;
    size_t frame_size;
    size_t size;               /* of all this; counted in worker.queued_bytes */
    uint32_t rows;             /* that a write brings or names */
    bool wants_slow;           /* a read that was found to be more work than was thought */
    bool waited_for_index;     /* it stood in front of the queue while the pending buffer was full */
    struct sk_request decoded; /* spans into frame */
    /* the writer's answer */
    enum sk_err code;
    struct sk_diag diag;
    uint64_t affected;
    bool is_settled;
    _Alignas(16) uint8_t frame[];
};

struct queue {
    struct request *first;
    struct request *last;
    uint32_t count;
};

/* ---- shards ---- */

enum field_state {
    FIELD_FLAT,     /* no index, or one that could not be kept (note says why): scans of the store */
    FIELD_UNLOADED, /* checkpoint and deltas not looked at yet; searched exactly */
    FIELD_BUILDING, /* rows are linked in log order up to the store's newest; searched exactly */
    FIELD_READY,    /* graph and pending buffer */
    FIELD_ALTERING, /* shown only: READY with the index from before, while its heir is built */
};

/* A row that died: out of the indexes once no read job can want it, then back to the store once they
 * have let go of it. */
struct dead_row {
    uint32_t row;
    uint64_t lseq;
    uint64_t after; /* read jobs numbered below may still want it; UINT64_MAX: not known yet */
};
struct dead_rows {
    struct dead_row *rows;
    size_t first, count, capacity;
};

struct field {
    struct shard *shard;
    unsigned at;
    struct sk_vector_field schema;
    enum field_state state;           /* writer */
    struct sk_index *index;           /* writer; NULL for FLAT and UNLOADED */
    bool is_altering;                 /* another index is wanted than the one that serves */
    struct sk_index *heir;            /* writer: that one, linked in log order up to heir_lseq */
    uint64_t heir_lseq;
    struct sk_index *_Atomic serving; /* shared: what searches use; NULL: scans of the store */
    struct sk_pending pending;        /* shared */
    uint64_t built_lseq;              /* writer: BUILDING has linked rows born up to here */
    struct sk_buffer unsaved;         /* writer: deltas taken and not durable: u32 size, bytes, ... */
    uint64_t delta_next;              /* number of the first of them */
    uint64_t delta_put;               /* one past the last one put into the open transaction */
    uint64_t delta_drop;              /* deltas numbered below are in a durable image */
    bool has_more;                    /* the last step of the index wants another */
    bool has_dead;                    /* rows were removed that the last eager step has not seen */
    bool must_rebuild;                /* what is stored is not to be trusted */
    uint64_t step_rest_us;            /* no step before: it waits for readers to move on */
    uint64_t checkpoint_rest_us;      /* no checkpoint before: the last one failed */
    /* The disk was full, and what is derived gave way: there is neither image nor delta of the index on
     * it (a start builds it again), and changes are not logged until an image could be written. */
    bool is_unlogged;
    bool is_image_gone;
    bool is_checkpointing;
    struct sk_file_writer checkpoint;
    uint64_t checkpoint_delta;        /* deltas numbered below are in the image being written */
    uint64_t changed_us;              /* when it last changed */
    _Atomic uint32_t state_seen;      /* enum field_state, for stats */
    _Atomic uint64_t index_bytes;     /* memory of the index, for stats */
    _Atomic uint64_t index_rows;
    bool is_recall_asked;   /* core: searches had a recall target since the last slice */
    uint64_t recall_due_us; /* core: no slice for their sake before */
    _Atomic uint32_t recall_samples; /* for stats, as the index says; 0: not measured */
    _Atomic float recall_target, recall_measured, recall_ef_mean;
    char note[160];                   /* writer: why it was rebuilt, "" when it was not */
    char note_seen[160];              /* core's copy */
};

struct grave {
    struct grave *next;
    uint64_t after;
    struct sk_pending_chunk *chunk; /* one of these */
    struct sk_index *index;
};

enum { READS_TOGETHER_MAX = 8 };

/* One request of a read job. */
struct read {
    struct request *request;
    struct sk_buffer reply;
    bool wants_slow; /* QUICK looked at it and found too much work: nothing was done */
    enum sk_err code;
    struct sk_diag diag;
};

/* One read job and all that it needs; pooled by its shard. Plain searches that wait at the same time are
 * one job: it looks at one snapshot, and the index answers them together. */
struct reader {
    struct sk_job job; /* first */
    struct reader *next;
    struct shard *shard;
    uint64_t number; /* see the head of this file */
    bool is_quick;   /* of QUICK jobs: its store reader remembers places */
    bool takes_more; /* it has not begun to run: plain searches may join */
    uint64_t cost_us;
    struct read reads[READS_TOGETHER_MAX];
    unsigned read_count;
    /* what run() works with */
    struct read *read; /* the one it works on */
    struct sk_store_reader *store;
    struct sk_index_reader *index_readers[SK_VECTOR_FIELDS_MAX];
    struct sk_index *index_of[SK_VECTOR_FIELDS_MAX]; /* whose reader that is */
    struct sk_arena arena;
};

enum turn {
    TURN_NONE,
    TURN_COMMIT, /* requests of one shard in one transaction */
    TURN_INDEX,  /* a slice of index work of one field */
    TURN_SAVE,   /* deltas of an idle shard */
    TURN_FIELDS, /* the store indexes payload fields that alter_collection added */
    TURN_SWEEP,  /* expired records */
    TURN_ADMIN,  /* verify, compact, snapshot, restore */
};

/* The one job of the writer lane. */
struct writer {
    struct sk_job job; /* first */
    struct sk_worker *worker;
    struct shard *shard;
    struct field *field;
    enum turn turn;
    bool is_submitted;
    struct queue batch;
    uint64_t reads_ended; /* read jobs of the shard numbered below have ended: removals may follow */
    bool is_stopping;     /* the core's, as it was when the job was submitted */
    uint64_t commits; /* of this turn */
    uint64_t rows_written;
    enum sk_err code;
    struct sk_diag diag;
    struct sk_index *retired_indexes[SK_VECTOR_FIELDS_MAX];
    bool has_become_ready; /* the field's index, in this turn */
    bool has_checkpoint;   /* one became durable in this turn */
    struct sk_buffer reply;
    _Atomic bool is_wanted; /* the core has a write waiting: index work ends its slice */
};

struct shard {
    struct shard *next;
    struct sk_worker *worker;
    uint8_t uuid[SK_UUID_BYTES];
    uint16_t number;
    char folder[SK_PATH_BYTES];
    struct sk_schema *schema;      /* replaced by the core while nothing of the shard is in flight */
    struct sk_schema *schema_next; /* a newer one waiting for that */
    struct sk_store *store;        /* NULL: could not be opened, diag says why */
    struct sk_diag diag;
    uint64_t retry_us;
    unsigned field_count;
    struct field fields[SK_VECTOR_FIELDS_MAX];
    bool is_dropped;      /* closed as soon as it is quiet */
    bool is_removed;      /* ... and its folder goes */
    bool is_exclusive;    /* compact or restore waits for the reads to end, or runs */

    struct reader *idle; /* core */
    struct reader *running_first; /* by number */
    struct reader *running_last;
    struct reader *quick; /* its job of QUICK: there is one at a time */
    uint64_t read_next; /* number of the next read job */
    struct queue reads;

    struct queue writes; /* core */
    struct queue waits;  /* `wait`: answered when the index has caught up */
    struct queue admin;  /* verify, compact, snapshot, restore */
    uint64_t build_credit; /* rows linked since the last commit: it may bring as many while building */
    uint64_t sweep_us;   /* when the next record expires (mono), UINT64_MAX never */
    uint64_t index_rest_us; /* no index work before: the last turn failed */
    unsigned field_turn;
    uint64_t saved_us;
    uint64_t commits;
    enum turn last_turn;
    size_t released; /* writer: rows at the front of limbo given back by the open transaction */
    bool is_starting_reads;
    bool is_loading_fields; /* writer: the store still indexes payload fields behind */
    uint64_t looked_us;     /* writer: when disk_bytes was read */
    _Atomic bool is_over_budget; /* an index could not take a row: upserts are refused */

    struct grave *graves;
    struct sk_store_reader *writer_reader; /* writer */
    struct dead_rows dying; /* writer: still in the indexes */
    struct dead_rows limbo; /* writer: out of them, not let go of */
    uint64_t next_expiry_us; /* wall; writer */
    _Atomic uint64_t records;
    _Atomic uint64_t disk_bytes;
};

/* Looking into a snapshot before there is a collection: one at a time. */
struct describe {
    struct sk_job job; /* first */
    struct sk_worker *worker;
    struct request *request; /* NULL: none is under way */
    struct sk_buffer reply;
    enum sk_err code;
    struct sk_diag diag;
};

/* A write that was answered with an error: a late copy of it gets that answer too, and is not applied
 * when the disk has room again. Those that were applied are remembered by the store. */
struct refusal {
    uint64_t incarnation, sequence;
    enum sk_err code; /* OK: an empty place */
};
enum { REFUSALS_MAX = 1024 }; /* by sequence; a newer one takes the place */

struct sk_worker {
    struct sk_worker_config config;
    char data_dir[SK_PATH_BYTES];
    char snapshot_dir[SK_PATH_BYTES];
    const struct sk_io *io;
    const struct sk_kernels *kernels;
    char kernels_name[16];
    uint64_t incarnation; /* random: tells this process from the one before it */

    struct sk_map map;
    bool is_map_asked;
    bool is_map_wanted;
    uint64_t map_next_us;
    bool is_ready;
    bool is_stopping;

    struct shard *shards;
    struct shard *turn_next; /* round robin of the writer lane */
    uint64_t turn_us;        /* no shard wants the lane before; 0: not known, look */
    struct writer writer;
    struct describe describe;
    struct queue parked;
    struct refusal refusals[REFUSALS_MAX];
    uint64_t queued_bytes;
    uint64_t expire_us; /* no request passes its deadline before */
    unsigned reads_in_flight;
    unsigned reads_waiting;
    float *scratch; /* SK_DIM_MAX floats, core */
    struct sk_buffer reply; /* core */

    uint64_t malformed; /* messages that made no sense */
    uint64_t stats_us;
    uint64_t stats_next_us;
    uint64_t stats_digest;
    struct sk_worker_status status; /* the counters of it */
};

/* worker.c */
uint64_t now_us(const struct sk_worker *self);
uint64_t wall_us(const struct sk_worker *self);
uint64_t sooner(uint64_t a, uint64_t b);
void note(struct sk_worker *self, enum sk_worker_note kind, uint64_t a, uint64_t b);
void queue_push(struct queue *self, struct request *request);
void queue_push_front(struct queue *self, struct request *request);
struct request *queue_pop(struct queue *self); /* NULL when empty */
void queue_free(struct queue *self);
void request_free(struct sk_worker *self, struct request *request);
void queue_refuse(struct sk_worker *self, struct queue *queue, enum sk_err code,
                  const struct sk_diag *d);
void send_to(struct sk_worker *self, sk_peer peer, const struct sk_link_header *header,
             struct sk_span body);
/* When an answer must leave to be there by the deadline. */
uint64_t request_answer_by(const struct request *request);
/* Both take the request. */
void answer(struct sk_worker *self, struct request *request, enum sk_err code, struct sk_span body);
void answer_error(struct sk_worker *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d);
/* The reply alone; the request is still the caller's. */
void answer_early(struct sk_worker *self, const struct request *request, enum sk_err code,
                  struct sk_span body);
void schedule(struct sk_worker *self);

/* requests.c */
void requests_take(struct sk_worker *self, const struct sk_link_header *header,
                   struct sk_span frame);
/* A newer map or schema is here: those that waited for it go on, or wait again. */
void requests_unpark(struct sk_worker *self);
/* Answers what has passed its deadline in any queue; returns the next deadline. */
uint64_t requests_expire(struct sk_worker *self, uint64_t now);
/* `wait` requests, once the index has caught up. No writer job submitted. */
void requests_waited(struct shard *shard);

/* shards.c */
void shards_apply_map(struct sk_worker *self);
struct shard *shard_find(struct sk_worker *self, const uint8_t uuid[SK_UUID_BYTES], uint16_t number);
/* Tries again what could not be opened; returns when it wants to be called next. */
uint64_t shards_retry(struct sk_worker *self, uint64_t now);
void shard_destroy(struct shard *shard); /* closed and freed; not taken out of the list */
/* Takes over a newer schema, or goes when it was dropped, as soon as nothing of it is in flight. Reads
 * that waited for that begin. shard may be gone afterwards. */
void shard_settle(struct shard *shard);
/* Indexes begin from what the disk has: at open and after a restore. No reader is left. */
SK_CHECKED enum sk_err shard_reset(struct shard *shard, struct sk_diag *d);
/* Counts and sizes as they are now committed. Writer lane, no transaction open. */
void shard_look(struct shard *shard);
/* When records expire next, on the monotonic clock. */
uint64_t shard_next_sweep(const struct shard *shard, uint64_t now);

/* reads.c */
void reads_enqueue(struct shard *shard, struct request *request);
void reads_start(struct shard *shard);
void reads_on_done(struct reader *reader);
void reader_destroy(struct reader *reader);
void readers_destroy_idle(struct shard *shard);
/* Every read job numbered below has ended. */
uint64_t reads_ended_below(const struct shard *shard);
/* Gives back what the reader keeps of an index that is going. */
void reader_drop_index(struct reader *reader, const struct sk_index *index);
/* payload and vector of a record, as the request wants them; as many keys as record_key_count says. */
void put_record_keys(struct reader *reader, struct sk_buffer *to, uint32_t row,
                     const struct sk_record *record);
uint32_t record_key_count(const struct reader *reader);
SK_CHECKED enum sk_err read_filter(struct reader *reader, struct sk_filter **out, struct sk_diag *d);
SK_CHECKED enum sk_err read_deadline(const struct reader *reader, struct sk_diag *d);

/* graves.c */
void grave_put_chunks(struct shard *shard, struct sk_pending_chunk *chunk);
void grave_put_index(struct shard *shard, struct sk_index *index);
void graves_dig(struct shard *shard, bool is_all);

/* search.c */
/* What it will about take. */
uint64_t search_cost_us(const struct shard *shard, const struct sk_request *request);
/* One vector against one field, no filter: it can be answered together with others. */
bool search_is_plain(const struct sk_request *request);
void search_run(struct reader *reader); /* all of its reads */

/* writes.c */
void writes_enqueue(struct shard *shard, struct request *request);
bool writes_are_admitted(struct shard *shard);
void writes_take_batch(struct shard *shard);
void writes_on_done(struct shard *shard);
/* Upserts that wait for an index which has no memory left are told so. */
void writes_refuse_over_budget(struct shard *shard);

/* commit.c */
void turn_commit(struct sk_job *job);
void turn_sweep(struct sk_job *job);
void dead_rows_free(struct dead_rows *self);
SK_CHECKED enum sk_err dead_rows_push(struct dead_rows *self, struct dead_row row,
                                      struct sk_diag *d);

/* indexing.c */
/* What index work the shard wants now, and of which field. Core, no writer job submitted. */
enum turn indexing_turn(struct shard *shard, uint64_t now, struct field **field);
uint64_t indexing_next_us(const struct shard *shard, uint64_t now);
void turn_index(struct sk_job *job);
bool shard_is_indexed(const struct shard *shard);
/* A search with a recall target has ended: the index holds some against exact answers in its steps. Core. */
void indexing_recall_asked(struct shard *shard);
/* The field is served by scans from now on; its index goes. */
void field_give_up(struct writer *writer, struct field *field, const char *why);
/* Loaded again, as the altered schema says: from the checkpoint and the stored deltas. Core, nothing of
 * the shard in flight. */
void field_reload(struct field *field);
/* Scans from now on, and nothing of an index is left. Core, nothing of the shard in flight. */
void field_scan(struct field *field);
/* The same as after a reload, but it is built again from nothing. */
void field_rebuild(struct writer *writer, struct field *field, const char *why);
void field_set_state(struct field *field, enum field_state state);
struct sk_index_params field_params(const struct field *field);
bool field_fetch_row(void *field, uint32_t row, float *out); /* for sk_index_source */
bool is_slice_over(struct writer *writer, uint64_t end_us);
/* Links one row if it still lives. BUSY: its number is not free in the index yet. */
SK_CHECKED enum sk_err field_link_row(struct field *field, struct sk_index *index, uint32_t row,
                                      uint64_t lseq, const float *vector, struct sk_diag *d);
/* Links rows born above *built_lseq until the slice is over; *is_complete: none is left. */
SK_CHECKED enum sk_err field_link_births(struct writer *writer, struct field *field,
                                         struct sk_index *index, uint64_t *built_lseq,
                                         uint64_t end_us, bool *is_complete, struct sk_diag *d);
void field_become_ready(struct writer *writer, struct field *field);

/* checking.c */
/* Edges, and rows against the store and the pending buffer. INTERNAL names what does not hold;
 * *checked grows by the rows looked at. Inside a read of writer_reader. */
SK_CHECKED enum sk_err field_check(struct field *field, uint64_t *checked, struct sk_diag *d);

/* altering.c */
bool field_is_scanned(const struct field *field);
/* Core, nothing of the shard in flight. */
void field_take_schema(struct field *field, const struct sk_vector_field *next,
                       bool has_other_budget);
/* Builds what the altered schema wants, and lets it take over when it has every row. */
SK_CHECKED enum sk_err heir_slice(struct writer *writer, struct field *field, uint64_t end_us,
                                  struct sk_diag *d);

/* saving.c */
void turn_save(struct sk_job *job);
/* A full disk: checkpoints and deltas of the shard go. False when they have gone before. */
bool saving_give_way(struct shard *shard);
/* The image and the deltas of one index go, and it is not logged until an image could be written. */
void saving_forget(struct field *field);
void turn_fields(struct sk_job *job);
/* Into the open transaction: deltas, watermarks, rows given back. saved() after its commit. */
SK_CHECKED enum sk_err saving_put(struct shard *shard, struct sk_diag *d);
void saving_saved(struct shard *shard);
/* A read transaction of writer_reader is open: out of the indexes go rows that no read can want. */
SK_CHECKED enum sk_err bury_rows(struct shard *shard, uint64_t reads_ended, struct sk_diag *d);
bool is_dying_due(const struct shard *shard, uint64_t reads_ended);
bool is_release_due(const struct shard *shard);
uint64_t unsaved_bytes(const struct shard *shard);
SK_CHECKED enum sk_err checkpoint_path(const struct field *field, char path[SK_PATH_BYTES],
                                       struct sk_diag *d);
bool is_checkpoint_due(const struct field *field, uint64_t now, bool is_stopping);
SK_CHECKED enum sk_err checkpoint_begin(struct field *field, struct sk_diag *d);
SK_CHECKED enum sk_err checkpoint_slice(struct field *field, struct sk_diag *d);
/* NOT_FOUND: there is none, which is how every index begins. */
SK_CHECKED enum sk_err checkpoint_load(struct field *field, const struct sk_index_params *params,
                                       const struct sk_index_source *source, uint64_t *delta_from,
                                       struct sk_diag *d);

/* admin.c */
bool admin_is_exclusive(const struct request *request);
void turn_admin(struct sk_job *job);
void admin_on_done(struct shard *shard);
void describe_start(struct sk_worker *self, struct request *request);
void describe_on_done(struct sk_worker *self);

/* stats.c */
void shard_put_stats(struct shard *shard, struct sk_reply_writer *map);
void worker_put_stats(struct sk_worker *self, struct sk_buffer *to);
/* The disk that it takes now. Core. */
void shard_look_at_disk(struct shard *shard);
/* Sends them now: the router asked, with this number. */
void stats_answer(struct sk_worker *self, uint64_t number);
/* Sends the stats when it is time; returns when it wants to be called next. */
uint64_t stats_send(struct sk_worker *self, uint64_t now);

#endif
