/* Inside the index library only. How the parts fit:
 *   region.c   arrays at fixed addresses      codes.c   vectors to codes, distances, generations
 *   graph.c    beam search, linking, pruning  search.c  what readers run
 *   near.c     rows of neighbours' signs      near_walk.c  walks by them (profile speed)
 *   many.c     searches of a batch in turns   sketch.c     what spares a walk most codes
 *   recall*.c  recall targets                 batch.c   16 queries against all rows
 *   scan.c     complete scans                 many.c    many queries of one thread
 *   maintain.c tombstones, sweeps, epochs     delta.c   the log of changes
 *   image.c    checkpoints                    check.c   the checker
 * Shared between the writer and readers: row states, links, entries, row_count, the generation
 * pointer and the epochs, all atomic. A row's codes are written before the first link to it is
 * published and are not touched again until no reader can hold its number: reading them needs no
 * atomics. */
#ifndef SK_INDEX_INTERNAL_H
#define SK_INDEX_INTERNAL_H

#include "actors/shard-worker/index/index.h"

#include <math.h>
#include <stdatomic.h>

enum {
    SK_ENTRY_COUNT = 16,
    SK_DEGREE_MAX = 2 * SK_INDEX_M_MAX,
    SK_DELTA_HEADER_BYTES = 16,
};
#define SK_NO_ROW UINT32_MAX

enum sk_row_state {
    SK_ROW_EMPTY = 0, /* never used, or let go of */
    SK_ROW_LIVE = 1,
    SK_ROW_DEAD = 2,   /* tombstone: traversed, never returned */
    SK_ROW_SWEPT = 3,  /* tombstone that the running sweep is removing from all lists */
    SK_ROW_RETIRED = 4 /* nothing links to it; waits until the last reader has left */
};

/* Reserved address space of which the first part is committed; never moves. */
struct sk_region {
    uint8_t *base;
    size_t reserved;
    size_t committed;
};
bool sk_region_reserve(struct sk_region *self, size_t bytes);
void sk_region_release(struct sk_region *self);
/* Bytes that committing up to `bytes` would add. */
size_t sk_region_growth(const struct sk_region *self, size_t bytes);
bool sk_region_commit(struct sk_region *self, size_t bytes);
/* Gives all memory back, keeps the addresses. */
void sk_region_empty(struct sk_region *self);

/* Beside the 4-bit code of each row. In arrays of their own: behind the code they would cost a walk one
 * more line of memory for each distance (a quarter at 384 dimensions), here they stay in the cache. */
struct sk_short_factors {
    float norm_sq;    /* |x|2 of the centred vector */
    float multiplier; /* distance = norm_sq - multiplier x <query, code - 7.5> */
};
/* Beside the 8-bit code. */
struct sk_factors {
    float norm_sq;     /* the same */
    float plane_scale; /* x is about plane_scale x the 8-bit code */
    float plane_error; /* length of what that leaves out: certified */
    float raw_norm_sq; /* |v|2 before centring */
};
_Static_assert(sizeof(struct sk_short_factors) == 8 && sizeof(struct sk_factors) == 16,
               "factors have no padding");

/* What a generation keeps for each row. */
enum sk_part {
    SK_PART_CODES,
    SK_PART_SHORT_FACTORS,
    SK_PART_PLANES,
    SK_PART_FACTORS,
    SK_PART_STORED, /* those before it are in images */
    SK_PART_SKETCHES = SK_PART_STORED,
    SK_PART_COUNT
};

/* A sketch (not in profile memory) is what a walk reads first of a row, derived from its other parts: the
 * short factors again, those of the signs, and the signs of the 8-bit code. At 384 dimensions it is one
 * line of memory where the 4-bit code has three, and shows of two rows in three that the code need
 * not be read. */
struct sk_sketch {
    struct sk_short_factors factors;
    float multiplier; /* distance = norm_sq - multiplier x <query, signs>, */
    float error;      /* off by this x |query| (one standard deviation) */
    uint8_t signs[];  /* of dimension j: bit j % 8 of byte j / 8; set: not negative */
};
enum { SK_SKETCH_FROM = 192 }; /* dimensions; below, a code is hardly longer */

/* Codes that share one centre. Replaced as a whole (codes.c), the graph stays. */
struct sk_generation {
    uint32_t number;
    struct sk_region parts[SK_PART_COUNT]; /* row x part_bytes */
    float *mean;                           /* rotated, padded floats */
};

struct sk_counters {
    uint64_t hops, distances, reranks, retries;
};

/* A query or a row that is being linked, ready for distances. */
struct sk_prepared {
    float *vector;  /* rotated (and centred where the metric wants it) */
    int8_t *narrow; /* for traversal */
    int16_t *wide;  /* for the 8-bit codes */
    float narrow_scale, narrow_bias;
    float narrow_sum; /* of the elements of narrow, scaled */
    float wide_scale, wide_error;
    float norm_sq, norm;
    float add_weight; /* 0 for inner-product queries: rank by -<q, x> alone */
    float offset;     /* inner-product queries: <q, mean> */
    bool is_augmented;
    float augmented;
};

struct sk_bare_row; /* bare.c */

struct sk_scratch {
    uint64_t *visited;
    uint32_t *touched;
    uint32_t visited_words, touched_count;
    uint64_t *beam;
    uint32_t beam_capacity, beam_count;
    uint64_t *heap; /* filtered search: nodes not expanded yet */
    uint32_t heap_capacity, heap_count;
    uint64_t *keys; /* candidates of scans and re-ranks */
    float *values;
    uint32_t keys_capacity;
    struct sk_prepared prepared;
    float *raw;
    uint8_t *luts; /* near_walk.c; NULL until used */
    uint32_t recall_tick; /* searches with a recall target */
    uint8_t *ivf_luts; /* kinds with lists: tables of the query, see ivf.h */
    float *ivf_tables;
    float ivf_step, ivf_bias;
};

/* Profile speed: rows of neighbours' signs, see near.h. row_bytes is 0 without. */
struct sk_near {
    struct sk_region rows;
    uint32_t row_bytes, block_count;
    _Atomic uint32_t row_count; /* that may be read: committed; 0 until the first is made */
    /* writer */
    uint32_t cursor; /* rows before it are made whenever their links change */
    bool is_refused; /* there was no memory for them */
    float *node, *other;
    uint8_t *signs, *draft;
};

struct sk_reader_slot {
    _Alignas(64) _Atomic uint64_t epoch; /* 0: not inside a search */
    _Atomic bool is_used;
};

struct sk_recall;      /* recall.h */
struct sk_recall_walk; /* recall.h */
struct sk_index_reader {
    struct sk_index *index;
    uint32_t slot;
    struct sk_scratch scratch;
    struct sk_lanes *lanes; /* many.c; NULL until many searches come at once */
};
struct sk_lanes;
void sk_lanes_destroy(struct sk_lanes **self);

enum sk_maintain_stage {
    SK_STAGE_IDLE,
    SK_STAGE_MARK,
    SK_STAGE_LINKS,
    SK_STAGE_WAIT,
    SK_STAGE_FREE,
    SK_STAGE_REACH,   /* walking everything, attaching what is not met */
    SK_STAGE_ENCODE,  /* renewing the codes */
    SK_STAGE_PUBLISH, /* waits for a running checkpoint */
    SK_STAGE_DISCARD, /* waits until no reader uses the old codes */
};

struct sk_row_list {
    uint32_t *rows;
    uint32_t count, capacity;
};

/* A walk over all edges from the entry points, in slices. The edge by which a row was met first is one of
 * a tree: with these alone everything that was met can be reached. */
struct sk_walk {
    uint32_t *parents; /* by row; SK_NO_ROW: not met; an entry is its own */
    uint32_t *queue;   /* every row once, in the order met */
    uint32_t rows, next, count;
    uint32_t attached, rounds;
};

enum { SK_IVF_SECTIONS = 6 }; /* of an image, behind the others */
struct sk_section {
    const uint8_t *bytes;
    size_t size;
};

struct sk_checkpoint {
    bool is_running;
    unsigned section;
    size_t offset;
    uint64_t hash;
    size_t section_count;
    struct sk_section sections[5 + SK_PART_STORED + SK_IVF_SECTIONS];
    uint8_t *frozen; /* copies of what can change */
};

struct sk_ivf; /* ivf.h */

struct sk_index {
    struct sk_ivf *ivf; /* NULL: flat and hnsw */
    /* settings */
    struct sk_index_params params;
    struct sk_index_source source;
    const struct sk_kernels *kernels;
    struct sk_rotation rotation;
    uint32_t *rotation_words;
    uint32_t padded, degree, links_stride; /* stride in ids */
    uint32_t code_bytes;                   /* 0: traversal on the 8-bit codes */
    uint32_t part_bytes[SK_PART_COUNT];    /* of a row */
    uint32_t row_bytes, rows_max;
    uint32_t prune_to;
    uint32_t in_degree_kept; /* a full list keeps its links to rows that have no more than so many */

    /* shared with readers */
    _Atomic uint32_t row_count; /* one past the highest row ever used */
    _Atomic uint32_t live_count, dead_count;
    _Atomic(struct sk_generation *) generation;
    _Atomic uint32_t entries[SK_ENTRY_COUNT];
    struct sk_region states; /* _Atomic uint8_t */
    struct sk_region links;  /* _Atomic uint32_t x links_stride */
    _Atomic uint64_t epoch;
    _Atomic uint64_t memory_bytes, watermark;
    _Atomic uint32_t generation_number;
    _Atomic bool is_sweeping;
    struct sk_reader_slot readers[SK_INDEX_READERS_MAX];
    struct sk_near near;

    /* writer */
    struct sk_region lseqs;      /* uint64_t */
    struct sk_region in_degrees; /* uint32_t */
    struct sk_scratch scratch;
    struct sk_bare_row *bare; /* profile memory */
    uint64_t *candidates; /* of linking: (distance, row) */
    uint32_t candidates_capacity;
    float max_norm_sq; /* inner product: the length that rows are padded to */
    double *sum;       /* of the rotated vectors of all inserts, for the mean */
    uint64_t sum_count;
    uint64_t mean_check_at;
    struct sk_row_list orphans, reclaimed;
    bool is_loading;
    uint64_t *needs_code; /* bitmap while loading */
    uint32_t needs_code_words;

    enum sk_maintain_stage stage;
    uint32_t cursor;
    uint64_t wait_epoch;
    struct sk_generation *next, *old;
    bool wants_walk; /* edges have gone since the last one */
    struct sk_walk walk;

    uint8_t *delta;
    size_t delta_size, delta_capacity;
    bool delta_was_taken;
    uint64_t delta_log_bytes;
    struct sk_checkpoint checkpoint;

    struct sk_recall *recall;
};

/* ---- rows ---- */
static inline _Atomic uint8_t *sk_state_of(const struct sk_index *self, uint32_t row)
{
    return (_Atomic uint8_t *)self->states.base + row;
}
static inline enum sk_row_state sk_state(const struct sk_index *self, uint32_t row)
{
    return (enum sk_row_state)atomic_load_explicit(sk_state_of(self, row), memory_order_acquire);
}
static inline void sk_state_set(struct sk_index *self, uint32_t row, enum sk_row_state state)
{
    atomic_store_explicit(sk_state_of(self, row), (uint8_t)state, memory_order_release);
}
static inline _Atomic uint32_t *sk_links_of(const struct sk_index *self, uint32_t row)
{
    return (_Atomic uint32_t *)(void *)self->links.base + (size_t)row * self->links_stride;
}
static inline uint64_t *sk_lseq_of(const struct sk_index *self, uint32_t row)
{
    return (uint64_t *)(void *)self->lseqs.base + row;
}
static inline uint32_t *sk_in_degree_of(const struct sk_index *self, uint32_t row)
{
    return (uint32_t *)(void *)self->in_degrees.base + row;
}
static inline uint32_t sk_row_count(const struct sk_index *self)
{
    return atomic_load_explicit(&self->row_count, memory_order_acquire);
}
static inline struct sk_generation *sk_generation_now(const struct sk_index *self)
{
    return atomic_load_explicit(&self->generation, memory_order_acquire);
}
/* Of a row, in an index or image of that profile. */
uint32_t sk_part_bytes(const struct sk_index *self, enum sk_index_profile profile, unsigned part);
SK_CHECKED enum sk_err sk_rows_commit(struct sk_index *self, uint32_t row_count, struct sk_diag *d);
/* Copies the list; returns its length. */
uint32_t sk_links_get(const struct sk_index *self, uint32_t row, uint32_t *out);
/* Replaces the list and keeps the in-degrees; rows whose last in-link goes are queued as orphans.
 */
void sk_links_set(struct sk_index *self, uint32_t row, const uint32_t *rows, uint32_t count);
void sk_links_append(struct sk_index *self, uint32_t row, uint32_t at, uint32_t id);
bool sk_row_list_push(struct sk_row_list *self, uint32_t row);

/* ---- codes.c ---- */
static inline const uint8_t *sk_code_of(const struct sk_index *self,
                                        const struct sk_generation *generation, uint32_t row)
{
    return generation->parts[SK_PART_CODES].base +
           (size_t)row * self->part_bytes[SK_PART_CODES];
}
static inline const struct sk_short_factors *
sk_short_factors_of(const struct sk_generation *generation, uint32_t row)
{
    return (const struct sk_short_factors *)(const void *)generation->parts[SK_PART_SHORT_FACTORS].base +
           row;
}
/* NULL where there are none. */
static inline const struct sk_sketch *sk_sketch_of(const struct sk_index *self,
                                                   const struct sk_generation *generation,
                                                   uint32_t row)
{
    if (self->part_bytes[SK_PART_SKETCHES] == 0)
        return NULL;
    return (const struct sk_sketch *)(const void *)(generation->parts[SK_PART_SKETCHES].base +
                                                    (size_t)row *
                                                        self->part_bytes[SK_PART_SKETCHES]);
}
/* The short factors from where a walk has them. */
static inline const struct sk_short_factors *
sk_near_factors_of(const struct sk_index *self, const struct sk_generation *generation, uint32_t row)
{
    const struct sk_sketch *sketch = sk_sketch_of(self, generation, row);
    return sketch != NULL ? &sketch->factors : sk_short_factors_of(generation, row);
}
static inline const struct sk_factors *
sk_factors_of(const struct sk_generation *generation, uint32_t row)
{
    return (const struct sk_factors *)(const void *)generation->parts[SK_PART_FACTORS].base + row;
}
static inline int8_t *sk_plane_of(const struct sk_index *self,
                                  const struct sk_generation *generation, uint32_t row)
{
    return (int8_t *)generation->parts[SK_PART_PLANES].base + (size_t)row * self->padded;
}
/* Profile memory does without (bare.c). */
static inline bool sk_has_planes(const struct sk_generation *generation)
{
    return generation->parts[SK_PART_PLANES].base != NULL;
}
static inline float sk_norm_sq_of(const struct sk_index *self, const struct sk_generation *generation,
                                  uint32_t row)
{
    return self->code_bytes > 0 ? sk_short_factors_of(generation, row)->norm_sq
                                : sk_factors_of(generation, row)->norm_sq;
}
/* 0 where nobody needs it. */
static inline float sk_raw_norm_sq_of(const struct sk_generation *generation, uint32_t row)
{
    return generation->parts[SK_PART_FACTORS].base == NULL
               ? 0
               : sk_factors_of(generation, row)->raw_norm_sq;
}
float sk_augmented(const struct sk_index *self, float raw_norm_sq);
struct sk_generation *sk_generation_new(const struct sk_index *self, uint32_t number);
/* Bytes that committing rows would add, and that are committed. */
size_t sk_generation_growth(const struct sk_index *self, const struct sk_generation *generation,
                            uint32_t row_count);
size_t sk_generation_committed(const struct sk_generation *generation);
void sk_generation_destroy(struct sk_generation **generation);
bool sk_generation_commit(struct sk_index *self, struct sk_generation *generation,
                          uint32_t row_count);
/* vector -> rotated (not centred) in out (padded floats); normalised under cosine. */
void sk_rotate(const struct sk_index *self, const float *vector, float *out);
/* Writes the codes of a row from its rotated vector; rotated is centred in place. */
void sk_encode(const struct sk_index *self, struct sk_generation *generation, uint32_t row,
               float *rotated, float raw_norm_sq, float error_before);
/* The 8-bit code of a row as floats (centred). */
void sk_decode(const struct sk_index *self, const struct sk_generation *generation, uint32_t row,
               float *out);
/* Everything that follows from out->vector. */
void sk_prepare(const struct sk_index *self, struct sk_prepared *out);
/* A reader's query from the user's vector. */
void sk_prepare_query(const struct sk_index *self, const struct sk_generation *generation,
                      const float *vector, struct sk_prepared *out);
/* The same from a vector that sk_rotate has made (not centred). */
void sk_prepare_rotated(const struct sk_index *self, const struct sk_generation *generation,
                        const float *rotated, struct sk_prepared *out);
/* The query that finds neighbours of a row whose codes are written. */
void sk_prepare_row(const struct sk_index *self, const struct sk_generation *generation,
                    uint32_t row, struct sk_prepared *out);
float sk_distance_short(const struct sk_index *self, const struct sk_generation *generation,
                        const struct sk_prepared *query, uint32_t row);
/* The same for count rows (at most SK_DEGREE_MAX); the first of them have been asked for. */
void sk_distances_short(const struct sk_index *self, const struct sk_generation *generation,
                        const struct sk_prepared *query, const uint32_t *rows, uint32_t count,
                        float *out);
/* By the 8-bit code; *error: how far it can be off. */
float sk_distance_plane(const struct sk_index *self, const struct sk_generation *generation,
                        const struct sk_prepared *query, uint32_t row, float *error);
/* Between two rows, for pruning. */
float sk_distance_rows(const struct sk_index *self, const struct sk_generation *generation,
                       uint32_t a, uint32_t b);
/* Internal distance to the user's score. */
float sk_score_of(const struct sk_index *self, const struct sk_prepared *query, float distance);
void sk_mean_add(struct sk_index *self, const float *rotated);
bool sk_mean_wants_renewal(struct sk_index *self);
void sk_prefetch_code(const struct sk_index *self, const struct sk_generation *generation,
                      uint32_t row);

/* ---- sketch.c ---- */
uint32_t sk_sketch_bytes(const struct sk_index *self, enum sk_index_profile profile);
/* From the row's 8-bit code and its factors, which are there. */
void sk_sketch_write(const struct sk_index *self, struct sk_generation *generation, uint32_t row);
/* Asks the memory for what is read first of a row: the sketch, or where there are none the code. */
void sk_prefetch_first(const struct sk_index *self, const struct sk_generation *generation,
                       uint32_t row);
/* Takes out of rows those whose sketches say that they are farther than `worst` and asks the memory for
 * the codes of the others, whose number is returned. sk_gather has asked for the sketches. */
uint32_t sk_sift(const struct sk_index *self, const struct sk_generation *generation,
                 const struct sk_prepared *query, uint32_t *rows, uint32_t count, float worst);

/* ---- bare.c: rows of profile memory ---- */
bool sk_bare_init(struct sk_index *self);
/* One standard deviation of a distance that is estimated from a 4-bit code. */
float sk_bare_deviation(const struct sk_index *self, float query_norm, float norm_sq);
/* From the code: what is left over is lost. */
void sk_bare_decode(const struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                    float *out);
/* Distances from and to this row are better until those of another are asked for: its vector, rotated
 * and centred, is at hand. */
void sk_bare_hold(struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                  const float *centred);
bool sk_bare_is_held(const struct sk_index *self, const struct sk_generation *generation, uint32_t row);
void sk_bare_get(const struct sk_index *self, float *out);
bool sk_bare_has_same_code(const struct sk_index *self, const struct sk_generation *generation,
                           uint32_t a, uint32_t b);
float sk_bare_distance_rows(const struct sk_index *self, const struct sk_generation *generation,
                            uint32_t a, uint32_t b);

/* ---- graph.c, edges.c ---- */
bool sk_ivf_scratch_init(struct sk_scratch *self, const struct sk_index *index);
bool sk_scratch_init(struct sk_scratch *self, const struct sk_index *index);
void sk_scratch_deinit(struct sk_scratch *self);
bool sk_scratch_fit(struct sk_scratch *self, uint32_t row_count, uint32_t beam, uint32_t keys);
bool sk_scratch_fit_heap(struct sk_scratch *self, uint32_t count);
void sk_scratch_unvisit(struct sk_scratch *self);
static inline bool sk_visit(struct sk_scratch *self, uint32_t row)
{
    uint64_t *word = &self->visited[row / 64];
    const uint64_t bit = 1ULL << row % 64;
    if ((*word & bit) != 0)
        return false;
    if (*word == 0)
        self->touched[self->touched_count++] = row / 64;
    *word |= bit;
    return true;
}
/* In a key: distance (ordered) << 32 | row << 1 | was expanded. */
static inline uint64_t sk_key(float distance, uint32_t row)
{
    return (uint64_t)sk_float_ordered(distance) << 32 | (uint64_t)row << 1;
}
static inline uint32_t sk_key_row(uint64_t key)
{
    return (uint32_t)key >> 1;
}
static inline float sk_key_distance(uint64_t key)
{
    return sk_float_from_ordered((uint32_t)(key >> 32));
}
/* Nothing farther has a place in the beam any more. */
static inline float sk_beam_worst(const struct sk_scratch *scratch, uint32_t ef)
{
    return scratch->beam_count < ef ? INFINITY : sk_key_distance(scratch->beam[ef - 1]);
}
struct sk_deadline {
    const struct sk_index_clock *clock; /* NULL: none */
    uint64_t at_us;
};
bool sk_deadline_passed(const struct sk_deadline *deadline);
/* A walk to the ef nearest rows, tombstones among them, which end up in scratch->beam. It goes in turns,
 * each of which ends by asking the memory for what the next one reads: links, sketches, codes. Between
 * the turns other walks may go on, so that none waits for memory. */
enum sk_beam_turn { SK_BEAM_LINKS, SK_BEAM_SKETCHES, SK_BEAM_CODES };
struct sk_beam {
    const struct sk_index *index;
    const struct sk_generation *generation;
    struct sk_scratch *scratch; /* fits ef; prepared is set */
    struct sk_deadline deadline;
    uint32_t ef;    /* rows that the beam keeps */
    uint32_t level; /* of these, the first so many are expanded; 0: all */
    struct sk_recall_walk *recall; /* asked for another level at the end of each; NULL: one is all */
    uint32_t cursor; /* nothing before it in the beam is left to expand */
    uint32_t row;    /* being expanded; SK_NO_ROW: the walk is over */
    enum sk_beam_turn next;
    uint32_t fresh_count;
    struct sk_counters counters;
    bool is_truncated; /* the deadline has passed */
    uint32_t fresh[SK_DEGREE_MAX];
};
void sk_beam_begin(struct sk_beam *self);
void sk_beam_turn(struct sk_beam *self);
void sk_beam_end(struct sk_beam *self);
void sk_beam_run(struct sk_beam *self); /* all of it at once */
SK_CHECKED enum sk_err sk_graph_link(struct sk_index *self, uint32_t row, struct sk_diag *d);
/* New links for a live row that lost some. */
SK_CHECKED enum sk_err sk_graph_repair(struct sk_index *self, uint32_t row, struct sk_diag *d);
/* New ways to a live row that nothing that can be reached links to; its own links stay in the choice. */
SK_CHECKED enum sk_err sk_graph_attach(struct sk_index *self, uint32_t row, struct sk_diag *d);
/* A way from what the walk has met to a row that it has not, which takes no edge of its tree away;
 * *from: the row it begins at. */
SK_CHECKED enum sk_err sk_graph_bridge(struct sk_index *self, uint32_t row, uint32_t *from,
                                       struct sk_diag *d);
bool sk_scratch_fit_candidates(struct sk_index *self, uint32_t count);
void sk_beam_push(struct sk_scratch *scratch, uint32_t ef, uint64_t key);
uint32_t sk_gather(const struct sk_index *self, const struct sk_generation *generation,
                   struct sk_scratch *scratch, uint32_t row, uint32_t *fresh);
void sk_entries_consider(struct sk_index *self, uint32_t row);
void sk_entries_mend(struct sk_index *self);
void sk_entries_renew(struct sk_index *self); /* after the centre has moved */

/* ---- near.c ---- */
bool sk_near_init(struct sk_index *self);
void sk_near_deinit(struct sk_index *self);
uint32_t sk_near_row_bytes(const struct sk_index *self); /* of the profile; 0 without rows */
/* Bytes that committing rows would add; 0 until the first is made. */
size_t sk_near_growth(const struct sk_index *self, uint32_t row_count);
bool sk_near_commit(struct sk_index *self, uint32_t row_count);
void sk_near_links_changed(struct sk_index *self, uint32_t row);
/* Making rows behind, some at a time. */
bool sk_near_has_work(const struct sk_index *self);
void sk_near_slice(struct sk_index *self);
void sk_near_restart(struct sk_index *self); /* the codes are new */
/* INTERNAL: a row is not what its links and codes make it. */
SK_CHECKED enum sk_err sk_near_check(struct sk_index *self, struct sk_diag *d);

/* ---- maintain.c ---- */
/* Attaches the rows that lost their last in-link just now. */
SK_CHECKED enum sk_err sk_attach_orphans(struct sk_index *self, struct sk_diag *d);
void sk_walk_end(struct sk_index *self);
/* Readers that enter from now on have the epoch returned, or a later one. */
uint64_t sk_epoch_next(struct sk_index *self);
/* No reader is left that entered before. */
bool sk_epoch_has_passed(const struct sk_index *self, uint64_t epoch);
uint64_t sk_epoch_enter(const struct sk_index *self, uint32_t slot);
void sk_epoch_leave(const struct sk_index *self, uint32_t slot);
/* Takes every SWEPT row out of all lists and lets go of it, at once (no readers). */
SK_CHECKED enum sk_err sk_sweep_now(struct sk_index *self, struct sk_diag *d);
/* New codes around the given mean, at once (no readers). */
SK_CHECKED enum sk_err sk_renew_now(struct sk_index *self, uint32_t number, const float *mean,
                                    struct sk_diag *d);

/* ---- delta.c ---- */
/* A delta that is being played back. */
struct sk_delta_cursor {
    struct sk_index *index;
    const uint8_t *at;
    size_t left;
    struct sk_diag *d;
};
bool sk_delta_get(struct sk_delta_cursor *c, void *out, size_t size);
SK_CHECKED enum sk_err sk_delta_bad(struct sk_delta_cursor *c, const char *what, uint32_t row);
/* A row that was not there is live from now on and waits for its code. */
SK_CHECKED enum sk_err sk_delta_new_row(struct sk_delta_cursor *c, uint32_t row, uint64_t lseq);
/* While loading: rows whose codes are made from their vectors at the end. false: no memory. */
bool sk_mark_needs_code(struct sk_index *self, uint32_t row);
bool sk_needs_code(const struct sk_index *self, uint32_t row);
/* Room was reserved; a record that would not fit (a defect) is caught rather than written. */
void sk_delta_put(struct sk_index *self, const void *bytes, size_t size);
SK_CHECKED enum sk_err sk_delta_reserve(struct sk_index *self, size_t bytes, struct sk_diag *d);
size_t sk_delta_insert_bytes_max(const struct sk_index *self);
/* Every row in use is encoded from the source when the load is finished. */
bool sk_mark_need_codes(struct sk_index *self);
void sk_delta_insert(struct sk_index *self, uint32_t row);
void sk_delta_append(struct sk_index *self, uint32_t row, uint32_t id);
void sk_delta_keep(struct sk_index *self, uint32_t row, const uint8_t *mask, uint32_t id);
void sk_delta_list(struct sk_index *self, uint32_t row);
void sk_delta_row(struct sk_index *self, bool is_free, uint32_t row);
void sk_delta_mean(struct sk_index *self, uint32_t number, const float *mean);
void sk_delta_entry(struct sk_index *self, uint32_t at, uint32_t row);
uint64_t sk_hash(uint64_t seed, const void *bytes, size_t size);
/* Reads and hashes bytes as they were written; false: cut off or unreadable. */
bool sk_image_read(const struct sk_index_image_reader *reader, void *bytes, size_t size, uint64_t *hash);
size_t sk_image_bytes(const struct sk_index *self);

#endif
