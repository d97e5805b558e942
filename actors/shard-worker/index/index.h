/* One vector index: rows in, nearest rows out. A library: no thread, no file, no message, no clock
 * of its own. The owner hands in vectors, a clock where a bound in time is wanted, and calls
 * sk_index_step() for maintenance.
 *
 * Rows are 32-bit numbers given by the caller, dense from 0. A row's vector never changes: an
 * upsert takes a new row, inserts it, then removes the old one. A row number may be used again,
 * with another lseq, only after sk_index_reclaim_rows() has returned it.
 *
 * What is kept in memory for a row (profile balanced): links, a 4-bit code for traversal and an
 * 8-bit code for ordering the survivors, from 192 dimensions a 1-bit sketch; not the float32
 * vector. Scores returned are therefore
 * approximate (about 0.1 % of |query| x |vector|): ask for some rows more than k
 * (sk_index_result_rows), score them with sk_score_exact() from the stored vectors and keep the
 * best k. Profile memory has no 8-bit codes (341 bytes a row at 384 dimensions and m 16; ip 357): the rows
 * returned are those that 4-bit estimates (about 1 %) cannot tell from the best k, and the owner's scores
 * decide. At 64 dimensions and below, where there are no 4-bit codes, it is the same as balanced.
 * Profile speed adds a row of 1-bit codes of its neighbours to each row (1,792 bytes at 384 dimensions and m 16;
 * none at 64 dimensions and below): a hop reads one run of memory. They are made behind, by sk_index_step, once
 * there are flat_below rows and memory for them; until then, and for a filter, it is the same as balanced.
 * flat (and hnsw below 4,096 rows) scans all 8-bit codes with a certified error bound:
 * is_certain then says that the exact best k are surely among the rows returned.
 * ivf_flat keeps the 8-bit code only, in lists around centres; ivf_pq a 4-bit code for each pq_m-th part;
 * hybrid the same behind a buffer of the most recent rows in 8 bits. Until there are lists (from
 * max(flat_below, 256) rows on, made by sk_index_step) all three scan everything as flat does.
 *
 * Threads: ONE writer (every function that takes struct sk_index * without const, and
 * sk_index_check); any number of readers up to SK_INDEX_READERS_MAX, each with its own
 * struct sk_index_reader, call sk_index_search at any time: they take no lock and never wait.
 * sk_index_get_stats may be called by any thread.
 *
 * Errors: NOMEM when memory_bytes_max would be passed (nothing has changed; searches, removes and
 * steps still work), INVALID for a bad argument or image, VERSION for an image of another format.
 */
#ifndef SK_INDEX_H
#define SK_INDEX_H

#include "common/base/err.h"
#include "common/base/span.h"
#include "kernels/kernels.h"

/* Numbers are in images: append only. */
enum sk_index_kind {
    SK_INDEX_FLAT = 1,
    SK_INDEX_HNSW = 2,
    SK_INDEX_IVF_FLAT = 3,
    SK_INDEX_IVF_PQ = 4,
    SK_INDEX_HYBRID = 5,
};
enum sk_index_profile { SK_INDEX_BALANCED = 0, SK_INDEX_SPEED = 1, SK_INDEX_MEMORY = 2 };

enum {
    SK_INDEX_DIM_MAX = 8192,
    SK_INDEX_M_MIN = 4,
    SK_INDEX_M_MAX = 64, /* degree of the graph is 2 x m */
    SK_INDEX_EF_MAX = 20000,
    SK_INDEX_READERS_MAX = 64,
    SK_INDEX_ROWS_MAX = 0x7FFFFFFF,
    SK_INDEX_FLAT_BELOW = 4096, /* hnsw answers by a complete scan below this many rows */
    /* Below so many dimensions many rows share their 8-bit codes and a walk cannot tell them apart, at
     * any ef (10,000 rows on a line: 627 of 1,024 nearest wrong): owners scan the vectors instead. */
    SK_INDEX_GRAPH_DIM_MIN = 4,
};

#define SK_INDEX_RECALL_MIN 0.5F
#define SK_INDEX_RECALL_MAX 0.999F

struct sk_index_params {
    enum sk_index_kind kind;
    enum sk_metric metric;
    uint32_t dim;             /* 1..SK_INDEX_DIM_MAX */
    uint32_t m;               /* hnsw; 0 = 16 */
    uint32_t ef_construction; /* hnsw; 0 = 200; at most SK_INDEX_EF_MAX */
    enum sk_index_profile profile; /* hnsw */
    uint32_t nlist;  /* ivf kinds and hybrid: lists; 0 = automatic, adapted as rows come and go */
    uint32_t pq_m;   /* ivf_pq, hybrid: 4-bit sub-quantisers; 0 = dim / 4 rounded to even */
    uint32_t refine; /* ivf_pq, hybrid: k x refine candidates are scored again; 0 = automatic */
    uint64_t seed;             /* of the rotation; the same seed and order give the same index */
    uint64_t memory_bytes_max; /* 0 = no limit but the address space */
    bool is_unlogged;          /* no deltas are kept: sk_index_take_delta stays empty */
    uint32_t flat_below;       /* hnsw: a complete scan below this many rows; 0 = the constant */
    const char *isa;           /* kernels: NULL = the best here; INVALID when not available */
};

/* Where full vectors come from. fetch writes dim floats and returns true, or false when the row is
 * not there (any more). Called on the thread that called into the index. */
struct sk_index_source {
    void *impl;
    bool (*fetch)(void *impl, uint32_t row, float *out);
};

/* A clock for bounds in time; NULL function = no bound. */
struct sk_index_clock {
    void *impl;
    uint64_t (*mono_us)(void *impl);
};

struct sk_index;        /* opaque */
struct sk_index_reader; /* opaque */

/* On success *out is owned by the caller. source may be NULL (then rows of a replayed log cannot be
 * encoded); it is copied, source->impl is borrowed and must outlive the index. */
SK_CHECKED enum sk_err sk_index_new(struct sk_index **out, const struct sk_index_params *params,
                                    const struct sk_index_source *source, struct sk_diag *d);
void sk_index_destroy(
    struct sk_index **self); /* NULLs *self; safe on NULL; no reader may be left */

/* ---- writer ---- */

/* Searchable when it returns. vector (dim floats) is borrowed for the call; cosine normalises a
 * copy. lseq names the row's life: it rises from insert to insert. INVALID: row over the limit, not
 * finite, a zero vector under cosine; EXISTS: the row is in use (live, or not let go of yet). */
SK_CHECKED enum sk_err sk_index_insert(struct sk_index *self, uint32_t row, uint64_t lseq,
                                       const float *vector, struct sk_diag *d);
/* The same for count rows; vectors are count x dim. All are checked first; on NOMEM the first
 * *done_count are in. done_count may be NULL. */
SK_CHECKED enum sk_err sk_index_insert_many(struct sk_index *self, const uint32_t *rows,
                                            const uint64_t *lseqs, const float *vectors,
                                            uint32_t count, uint32_t *done_count,
                                            struct sk_diag *d);
/* Takes effect for every search that begins afterwards. NOT_FOUND unless the row is live with
 * exactly this lseq. Never fails for lack of memory budget. */
SK_CHECKED enum sk_err sk_index_remove(struct sk_index *self, uint32_t row, uint64_t lseq,
                                       struct sk_diag *d);
/* True when the row is live with this lseq (false too when it is there with another, or removed).
 */
bool sk_index_has(const struct sk_index *self, uint32_t row, uint64_t lseq);
/* The lseq of a live row; false when it is not one. */
bool sk_index_lseq(const struct sk_index *self, uint32_t row, uint64_t *lseq);
/* True when the number may be inserted: never used, or let go of. After a start the store finds its
 * free rows with it (those that it does not use itself and that are free here). */
bool sk_index_row_is_free(const struct sk_index *self, uint32_t row);

enum sk_index_step_flags {
    SK_INDEX_STEP_EAGER = 1, /* sweep tombstones even below 1 % of the rows: the node is idle */
    /* many more inserts follow at once: what is derived for the searches' speed alone waits (the rows of
     * profile speed, which each insert would change again) */
    SK_INDEX_STEP_BULK = 2,
};
/* Bounded maintenance: repairs what deletes have hurt, lets go of rows, renews the codes' centre,
 * attaches rows that nothing links to. Works until clock->mono_us() passes its start + budget_us
 * (clock NULL: a fixed small amount). *has_more: call again soon. */
SK_CHECKED enum sk_err sk_index_step(struct sk_index *self, uint64_t budget_us,
                                     const struct sk_index_clock *clock, unsigned flags,
                                     bool *has_more, struct sk_diag *d);
/* Moves up to capacity row numbers that the index has fully let go of into rows; each is returned
 * once. From then on the number may be inserted again. Give them to the store only after the delta
 * that was taken next is durable. */
uint32_t sk_index_reclaim_rows(struct sk_index *self, uint32_t *rows, uint32_t capacity);

/* Learns what searches with a recall target need (see sk_index_query), from `count` queries (count x dim,
 * typical ones; 0: from the rows alone) and from queries that it makes of its rows, at once: about
 * 3 ms a query and 100,000 rows, and half a second for its own. Steps do the same bit by bit once such searches have come, with samples
 * of these; until then they walk with a large fixed beam. Not kept in images. INVALID: k out of range, a
 * query that no search would take. */
SK_CHECKED enum sk_err sk_index_calibrate(struct sk_index *self, const float *queries, uint32_t count,
                                          uint32_t k, struct sk_diag *d);

/* ---- persistence: deltas ---- */

/* The changes since the last take, to be stored in order after the last checkpoint; borrowed until
 * the next call of a writer function; empty when nothing changed. *watermark_lseq: every insert
 * with an lseq up to it is contained in the deltas so far. */
void sk_index_take_delta(struct sk_index *self, struct sk_span *delta, uint64_t *watermark_lseq);
uint64_t sk_index_watermark(const struct sk_index *self);
/* Raises the watermark without an insert (changes that do not concern this index). */
void sk_index_advance(struct sk_index *self, uint64_t lseq);
/* Bytes waiting to be taken, and all bytes taken since the last checkpoint: when the latter passes
 * half of sk_index_stats.image_bytes a checkpoint pays. */
uint64_t sk_index_delta_pending_bytes(const struct sk_index *self);
uint64_t sk_index_delta_log_bytes(const struct sk_index *self);

/* Start: sk_index_checkpoint_read() or sk_index_new(), then each stored delta in order, then
 * sk_index_load_finish(), and only then searches and inserts. Hostile bytes give INVALID and leave
 * the index fit only for sk_index_destroy (rebuild it). */
SK_CHECKED enum sk_err sk_index_apply_delta(struct sk_index *self, struct sk_span delta,
                                            struct sk_diag *d);
/* Tells what the store has in this row now: true and its lseq, or false when the row is not in use.
 */
struct sk_index_live {
    void *impl;
    bool (*lseq_of)(void *impl, uint32_t row, uint64_t *lseq);
};
/* Encodes rows that came by delta (source.fetch), removes rows that the store no longer has, and
 * lets go at once of those whose number the store uses for another life. live may be NULL: all are
 * live. Rows above the watermark are then inserted by the caller as usual (sk_index_has tells which
 * are there). */
SK_CHECKED enum sk_err sk_index_load_finish(struct sk_index *self, const struct sk_index_live *live,
                                            struct sk_diag *d);

/* ---- persistence: checkpoints ---- */

/* One sequential image, written in slices so that other writer calls may come between. Begin copies
 * what can change (links, row table: a memcpy, about 20 ms a million rows); the codes of a row
 * never change and rows that are let go of stay until the end of the checkpoint. Deltas taken
 * before begin are contained in the image: their rows in the log may be dropped once the image is
 * durable (those taken later must be kept). BUSY: one is running. INVALID: changes wait to be taken
 * (they would be in the image and, a second time, in a later delta). */
SK_CHECKED enum sk_err sk_index_checkpoint_begin(struct sk_index *self, struct sk_diag *d);
struct sk_index_writer {
    void *impl;
    /* false stops the checkpoint with INTERNAL (the caller knows why) */
    bool (*write)(void *impl, const void *bytes, size_t size);
};
/* Writes about bytes_max more; *is_done when the image is complete. An error ends the checkpoint.
 */
SK_CHECKED enum sk_err sk_index_checkpoint_step(struct sk_index *self, size_t bytes_max,
                                                const struct sk_index_writer *writer, bool *is_done,
                                                struct sk_diag *d);
void sk_index_checkpoint_abort(struct sk_index *self); /* nothing when none is running */
/* begin and all steps in one go. */
SK_CHECKED enum sk_err sk_index_checkpoint_write(struct sk_index *self,
                                                 const struct sk_index_writer *writer,
                                                 struct sk_diag *d);
struct sk_index_image_reader {
    void *impl;
    /* Fills all size bytes or returns false (end of file, error). */
    bool (*read)(void *impl, void *bytes, size_t size);
};
/* Makes an index from an image: call instead of sk_index_new, with the parameters that the caller
 * wants: INVALID (with the reason) when kind, metric, dim or m differ or anything does not verify,
 * VERSION for another format. An image of another profile is converted: codes that it has too many are
 * dropped, those that it lacks are made by sk_index_load_finish (source.fetch; INVALID without). Then apply deltas, then sk_index_load_finish. */
SK_CHECKED enum sk_err sk_index_checkpoint_read(struct sk_index **out,
                                                const struct sk_index_params *params,
                                                const struct sk_index_source *source,
                                                const struct sk_index_image_reader *reader,
                                                struct sk_diag *d);

/* ---- readers ---- */

/* Owned by the caller; destroy it before the index. BUSY: SK_INDEX_READERS_MAX are in use. May be
 * called by any thread at any time. */
SK_CHECKED enum sk_err sk_index_reader_new(struct sk_index_reader **out, struct sk_index *index,
                                           struct sk_diag *d);
void sk_index_reader_destroy(struct sk_index_reader **self);

/* Which rows may be returned. Either words (bit row % 64 of words[row / 64]; rows at or past
 * word_count x 64 do not match) or accepts(); both NULL: all rows. */
struct sk_index_filter {
    const uint64_t *words;
    uint32_t word_count;
    uint32_t match_count; /* rows set in words where known, else 0 (then they are counted) */
    void *impl;
    bool (*accepts)(void *impl, uint32_t row);
};

struct sk_index_query {
    const float *vector; /* dim floats, finite; checked */
    uint32_t k;          /* 1.. */
    /* At most one of these three is not 0, else INVALID. */
    uint32_t ef;         /* beam of hnsw; raised to k; 0 = 64 */
    uint32_t nprobe;     /* lists looked at, ivf kinds and hybrid; 0 = automatic */
    float recall_target; /* 0.5..0.999: as much work as reaches it; 0 = none */
    bool has_score_worst;
    float score_worst; /* rows surely worse than this are left out (l2: larger; else smaller) */
    const struct sk_index_filter *filter; /* NULL: all rows */
    uint64_t deadline_us;                 /* with clock: give up when mono_us passes it */
    struct sk_index_clock clock;
    bool is_exact; /* scan every 8-bit code with the certified bound whatever the kind */
};

/* Arrays are the caller's: rows and scores have room for `capacity`, at least k; give
 * sk_index_result_rows(k) or more so that re-scoring can mend what the codes cannot decide. */
struct sk_index_result {
    uint32_t capacity;
    uint32_t *rows;
    float *scores; /* approximate, in the user's terms (see sk_score_exact); best first */
    uint32_t count;
    bool is_certain;    /* a complete scan whose k exact best are surely among the rows returned */
    bool is_truncated;  /* the deadline passed: what was found until then */
    uint64_t hops;      /* nodes expanded */
    uint64_t distances; /* short codes compared */
    uint64_t reranks;   /* 8-bit codes compared */
    uint64_t
        retries; /* widened or replaced by a scan, because a filter or tombstones left too few */
};
uint32_t sk_index_result_rows(uint32_t k); /* k + k / 2 + 16 */
/* The same for this index: ivf_pq and hybrid return about refine x k candidates, ordered by what their
 * codes say (an error of some per cent of the distance), all to be scored exactly. */
uint32_t sk_index_candidates(const struct sk_index *self, uint32_t k);

/* NOMEM: scratch. DEADLINE is not an error here: see is_truncated. Fewer than k rows are returned
 * only when fewer match (or the deadline passed, or score_worst). */
SK_CHECKED enum sk_err sk_index_search(const struct sk_index *self, struct sk_index_reader *reader,
                                       const struct sk_index_query *query,
                                       struct sk_index_result *result, struct sk_diag *d);
/* The same for count queries, sooner than one after the other: they may differ in everything, and the
 * results are those of single searches. Each is answered whatever becomes of the others: rcs[i] is
 * what it came to. Returns the first of rcs that is not OK, with its text, else OK. */
SK_CHECKED enum sk_err sk_index_search_many(const struct sk_index *self,
                                            struct sk_index_reader *reader,
                                            const struct sk_index_query *queries,
                                            struct sk_index_result *results, enum sk_err *rcs,
                                            uint32_t count, struct sk_diag *d);

/* ---- looking inside ---- */

struct sk_index_stats {
    uint64_t rows;         /* live */
    uint64_t tombstones;   /* removed, not let go of yet */
    uint64_t memory_bytes; /* committed by the index, readers' scratch not counted */
    uint64_t image_bytes;  /* what a checkpoint would have now */
    uint64_t watermark_lseq;
    uint32_t generation; /* of the codes */
    uint32_t row_bytes;  /* memory for one row */
    uint32_t lists;      /* kinds with lists */
    uint32_t buffered;   /* their rows that are in no list yet, removed ones too */
    bool is_flat;        /* answers by complete scan now */
    bool is_sweeping;    /* maintenance is under way */
    /* Searches with a recall target, at the target asked for last: the share of true neighbours that
     * sampled searches (recall_samples of them) found, and the mean size of their beams. 0: none yet. */
    float recall_target, recall_measured, recall_ef_mean;
    uint32_t recall_samples;
    const char *isa;
};
void sk_index_get_stats(const struct sk_index *self, struct sk_index_stats *out);

/* The whole structure is looked at: INTERNAL and the first thing that does not hold (edges to rows
 * that are free or to the row itself, duplicates, wrong in-degrees, counters), writer thread. */
struct sk_index_check_report {
    uint64_t edges;
    uint64_t unreachable_rows; /* live rows that no walk from the entry points finds */
    uint64_t dead_edges;       /* to tombstones: fine until swept */
};
SK_CHECKED enum sk_err sk_index_check(struct sk_index *self, struct sk_index_check_report *report,
                                      struct sk_diag *d);

#endif
