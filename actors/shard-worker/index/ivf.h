/* Lists of rows in place of a graph: kinds ivf_flat, ivf_pq and hybrid. Inside the index library only.
 *   ivf.c           blocks, lists, the directory      ivf_codes.c   vectors to codes, look-up tables
 *   ivf_search.c    what readers run                  ivf_train.c   the first lists
 *   ivf_maintain.c  sweeps, merging the buffer        ivf_split.c   lists that grow and shrink
 *   ivf_move.c      rows on their way between lists
 *   ivf_delta.c     the log of changes                ivf_image.c   checkpoints and the checker
 *
 * A list is a centre and a chain of blocks of 32 rows, the newest first. Blocks never change once they
 * are published: a row is added by a copy of the first block, so readers need nothing but the head of the
 * chain. Which lists there are says a directory, replaced as a whole when rows move from list to list, so
 * that a search meets every row exactly once. What was replaced is used again when every reader that could
 * see it has left (and no checkpoint is being written).
 *
 * Two forms of blocks. PLAIN: 8 bits a dimension with a certified error: the buffer of rows that are in no
 * list yet (before there are lists; the most recent rows of hybrid), and the lists of ivf_flat. CODED: 4
 * bits for each segment of 1, 2, 4 or 8 dimensions of the rotated residual, one of 16 points that are best
 * for normally distributed values (the rotation makes them so, whatever the data: nothing to train, nothing
 * that ages), scanned 32 rows at a time; a factor a row makes the inner product with it unbiased (Gao, Long
 * 2024, RaBitQ, for 1-bit codes). Centres are kept in 8 bits and codes belong to those.
 *
 * distance = base of the list + add of the row - scale of the row x <query, code> (add is |residual|^2 + 2 x
 * <centre, residual>, left out for inner products); one set of tables serves
 * all lists of a query. */
#ifndef SK_INDEX_IVF_H
#define SK_INDEX_IVF_H

#include "actors/shard-worker/index/internal.h"

enum {
    SK_IVF_BLOCK = 32,
    SK_IVF_POINTS = 16,
    SK_IVF_SEGMENT_DIMS_MAX = 8,
    SK_IVF_LISTS_MAX = 1 << 20,
};
#define SK_IVF_NO_BLOCK UINT32_MAX       /* of an empty list */
#define SK_IVF_NO_LIST (UINT32_MAX - 1)  /* in heads: a slot without a list */
#define SK_IVF_BUFFER (UINT32_MAX - 2)   /* where a list is meant: the buffer */

enum sk_ivf_form { SK_IVF_PLAIN, SK_IVF_CODED, SK_IVF_FORM_COUNT };

/* Where the parts of a block are; codes come first. Arrays of 32 but the last two. */
struct sk_ivf_layout {
    uint32_t codes_bytes, adds_at, scales_at, errors_at, rows_at, tail_at, block_bytes;
};

struct sk_ivf_blocks {
    struct sk_ivf_layout layout;
    struct sk_region region;
    uint32_t count; /* ever used */
    uint32_t *free;
    uint32_t free_count, free_capacity;
};

struct sk_ivf_directory {
    uint32_t slot_count;
    _Atomic uint32_t buffer;  /* head of the buffer, plain blocks */
    _Atomic uint32_t heads[]; /* by slot */
};

struct sk_ivf_centre {
    float scale; /* x is scale x plane */
    float norm_sq;
};

enum sk_ivf_what { SK_IVF_OLD_PLAIN, SK_IVF_OLD_CODED, SK_IVF_OLD_SLOT, SK_IVF_OLD_DIRECTORY };
struct sk_ivf_old {
    enum sk_ivf_what what;
    uint32_t at;
    struct sk_ivf_directory *directory;
};

struct sk_kmeans;
struct sk_ivf_training {
    bool is_running;
    struct sk_kmeans *kmeans;
    float *rows, *centres;
    uint32_t *counts;
    void *scratch;
    uint32_t list_count;
};

struct sk_ivf {
    /* settings */
    enum sk_ivf_form list_form;
    uint32_t segment_dims, segments;
    float points[SK_IVF_SEGMENT_DIMS_MAX][SK_IVF_POINTS]; /* dimension by dimension */
    float point_halves[SK_IVF_POINTS];                    /* half of their squared lengths */
    uint32_t buffer_rows_max;

    /* shared with readers */
    _Atomic(struct sk_ivf_directory *) directory;
    struct sk_ivf_blocks blocks[SK_IVF_FORM_COUNT];
    struct sk_region centre_planes; /* slot x padded */
    struct sk_region centres;       /* struct sk_ivf_centre */
    _Atomic uint32_t list_count, buffer_count; /* rows in the buffer, dead ones too */

    /* writer */
    bool has_work;
    uint32_t slot_count;
    uint32_t *counts;     /* by slot: rows in the list, dead ones too */
    uint32_t *split_from; /* by slot: as many rows are too many */
    uint32_t slot_capacity;
    struct sk_row_list free_slots, to_split, to_merge;
    struct sk_ivf_old *old; /* the first old_waiting wait for old_epoch, the others for the next one */
    uint32_t old_count, old_waiting, old_capacity;
    uint64_t old_epoch;
    float *vector, *centre, *code; /* padded floats each */
    struct sk_ivf_training training;
    uint32_t *placed; /* while loading: list by row */
    uint32_t placed_count;
    uint32_t *placed_live; /* by slot: live rows */
    uint32_t placed_slots;
};

/* A list that is being written, seen by nobody yet. */
struct sk_ivf_chain {
    enum sk_ivf_form form;
    uint32_t head, count;
};

/* ---- blocks ---- */
static inline uint8_t *sk_ivf_block(const struct sk_ivf *ivf, enum sk_ivf_form form, uint32_t block)
{
    return ivf->blocks[form].region.base + (size_t)block * ivf->blocks[form].layout.block_bytes;
}
static inline float *sk_ivf_adds(const struct sk_ivf *ivf, enum sk_ivf_form form, const uint8_t *block)
{
    return (float *)(void *)(uintptr_t)(block + ivf->blocks[form].layout.adds_at);
}
static inline uint32_t *sk_ivf_rows(const struct sk_ivf *ivf, enum sk_ivf_form form,
                                    const uint8_t *block)
{
    return (uint32_t *)(void *)(uintptr_t)(block + ivf->blocks[form].layout.rows_at);
}
/* PLAIN: float32. */
static inline float *sk_ivf_scales(const struct sk_ivf *ivf, const uint8_t *block)
{
    return (float *)(void *)(uintptr_t)(block + ivf->blocks[SK_IVF_PLAIN].layout.scales_at);
}
static inline float *sk_ivf_errors(const struct sk_ivf *ivf, const uint8_t *block)
{
    return (float *)(void *)(uintptr_t)(block + ivf->blocks[SK_IVF_PLAIN].layout.errors_at);
}
/* CODED: the upper half of a float32. */
static inline uint16_t *sk_ivf_halves(const struct sk_ivf *ivf, const uint8_t *block)
{
    return (uint16_t *)(void *)(uintptr_t)(block + ivf->blocks[SK_IVF_CODED].layout.scales_at);
}
static inline float sk_ivf_from_half(uint16_t half)
{
    union {
        uint32_t u;
        float f;
    } bits = {(uint32_t)half << 16};
    return bits.f;
}
/* tail[0]: the next block of the chain, tail[1]: how many rows are in this one. */
static inline uint32_t *sk_ivf_tail(const struct sk_ivf *ivf, enum sk_ivf_form form, const uint8_t *block)
{
    return (uint32_t *)(void *)(uintptr_t)(block + ivf->blocks[form].layout.tail_at);
}
static inline struct sk_ivf_directory *sk_ivf_directory_now(const struct sk_ivf *ivf)
{
    return atomic_load_explicit(&ivf->directory, memory_order_acquire);
}
static inline int8_t *sk_ivf_centre_plane(const struct sk_index *self, uint32_t slot)
{
    return (int8_t *)self->ivf->centre_planes.base + (size_t)slot * self->padded;
}
static inline struct sk_ivf_centre *sk_ivf_centre(const struct sk_index *self, uint32_t slot)
{
    return (struct sk_ivf_centre *)(void *)self->ivf->centres.base + slot;
}
static inline enum sk_ivf_form sk_ivf_form_of(const struct sk_ivf *ivf, uint32_t list)
{
    return list == SK_IVF_BUFFER ? SK_IVF_PLAIN : ivf->list_form;
}
static inline uint32_t sk_ivf_head(const struct sk_ivf_directory *directory, uint32_t list)
{
    return atomic_load_explicit(list == SK_IVF_BUFFER ? &directory->buffer : &directory->heads[list],
                                memory_order_acquire);
}
static inline bool sk_ivf_has_list(const struct sk_ivf_directory *directory, uint32_t slot)
{
    return slot < directory->slot_count &&
           atomic_load_explicit(&directory->heads[slot], memory_order_relaxed) != SK_IVF_NO_LIST;
}

/* ---- ivf.c ---- */
SK_CHECKED enum sk_err sk_ivf_check_params(struct sk_index_params *params, struct sk_diag *d);
/* After padded is known; false: no memory. */
bool sk_ivf_init(struct sk_index *self);
void sk_ivf_deinit(struct sk_index *self);
uint32_t sk_ivf_row_bytes(const struct sk_index *self);
/* Makes room for so many new blocks and lists; afterwards the calls below cannot fail. */
SK_CHECKED enum sk_err sk_ivf_reserve(struct sk_index *self, enum sk_ivf_form form, uint32_t blocks,
                                      uint32_t slots, uint32_t olds, struct sk_diag *d);
uint32_t sk_ivf_block_take(struct sk_ivf *ivf, enum sk_ivf_form form);
void sk_ivf_retire(struct sk_ivf *ivf, enum sk_ivf_what what, uint32_t at,
                   struct sk_ivf_directory *directory);
void sk_ivf_retire_chain(struct sk_ivf *ivf, enum sk_ivf_form form, uint32_t head);
uint32_t sk_ivf_chain_blocks(const struct sk_ivf *ivf, enum sk_ivf_form form, uint32_t head);
/* Uses again what no reader can see any more. */
void sk_ivf_reclaim(struct sk_index *self);
/* The place of one more row at the end of a chain; the caller writes it. */
uint32_t sk_ivf_chain_push(struct sk_ivf *ivf, struct sk_ivf_chain *chain, uint8_t **block);
void sk_ivf_copy_row(const struct sk_ivf *ivf, enum sk_ivf_form form, uint8_t *to, uint32_t to_at,
                     const uint8_t *from, uint32_t from_at);
/* A copy of the directory with room for slot_count; NULL: no memory. */
struct sk_ivf_directory *sk_ivf_directory_copy(const struct sk_ivf *ivf, uint32_t slot_count);
void sk_ivf_publish(struct sk_ivf *ivf, struct sk_ivf_directory *directory);
/* A slot for a new list; its centre is written by sk_ivf_centre_set. Room was reserved. */
uint32_t sk_ivf_slot_take(struct sk_ivf *ivf);
/* How many rows a list should have now, and above how many it is split. */
uint32_t sk_ivf_list_target(const struct sk_index *self);
/* One row that is in no list is added to one that is published: room for a block was reserved. */
void sk_ivf_append(struct sk_index *self, uint32_t list, uint32_t row, const float *rotated);
/* A row arrives; on an error nothing has changed. rotated is padded floats. */
SK_CHECKED enum sk_err sk_ivf_insert(struct sk_index *self, uint32_t row, uint64_t lseq,
                                     const float *rotated, struct sk_diag *d);

/* ---- ivf_codes.c ---- */
void sk_ivf_codes_init(struct sk_ivf *ivf, uint32_t segment_dims);
void sk_ivf_centre_set(struct sk_index *self, uint32_t slot, const float *centre);
/* Works out what follows from a plane and its scale. */
void sk_ivf_centre_measure(struct sk_index *self, uint32_t slot, float scale);
bool sk_ivf_centre_is_sound(const struct sk_index *self, const int8_t *plane, float scale);
void sk_ivf_centre_get(const struct sk_index *self, uint32_t list, float *out);
/* Writes a row into a block that nobody sees yet; centre: what sk_ivf_centre_get gives for its list. */
void sk_ivf_encode(struct sk_index *self, enum sk_ivf_form form, uint8_t *block, uint32_t at, uint32_t row,
                   const float *rotated, const float *centre);
/* About the rotated vector of a row, from its code. */
void sk_ivf_decode(const struct sk_index *self, enum sk_ivf_form form, const uint8_t *block, uint32_t at,
                   const float *centre, float *out);
/* Rows of 4-bit codes move only when their vectors can be fetched: made again from codes each time, they
 * would lose what told them apart. */
bool sk_ivf_can_split(const struct sk_index *self);
/* The rotated vector of a row of a list: as exactly as it can be had. */
void sk_ivf_vector(struct sk_index *self, enum sk_ivf_form form, const uint8_t *block, uint32_t at,
                   const float *centre, float *out);
/* Look-up tables of a rotated query: <query, code> is about bias + step x sum. */
void sk_ivf_tables_make(const struct sk_index *self, const float *query, struct sk_scratch *scratch);
/* Inner products of the wide query with the centre of a list, and the distance to it. */
float sk_ivf_centre_dot(const struct sk_index *self, const struct sk_prepared *query, uint32_t slot);
/* The list whose centre is nearest to a vector that was prepared; SK_IVF_NO_LIST where there is none. */
uint32_t sk_ivf_nearest(const struct sk_index *self, const struct sk_prepared *prepared);
/* Distances of 32 rows (what lies behind the last row of the block is nonsense): base is that of the list,
 * add_weight that of the query. */
void sk_ivf_estimate(const struct sk_index *self, const struct sk_scratch *scratch, const uint8_t *block,
                     float add_weight, float base, float *out);
/* PLAIN: with the certified error. */
float sk_ivf_distance_plain(const struct sk_index *self, const struct sk_prepared *query,
                            const uint8_t *block, uint32_t at, float base, float base_error,
                            float *error);

/* ---- ivf_train.c, ivf_maintain.c, ivf_split.c ---- */
/* One small piece of work, *has_done false: there was none. */
SK_CHECKED enum sk_err sk_ivf_work(struct sk_index *self, unsigned flags, bool *has_done,
                                   struct sk_diag *d);
bool sk_ivf_wants_training(const struct sk_index *self);
SK_CHECKED enum sk_err sk_ivf_train_step(struct sk_index *self, struct sk_diag *d);
void sk_ivf_train_end(struct sk_ivf *ivf);
SK_CHECKED enum sk_err sk_ivf_split(struct sk_index *self, uint32_t slot, struct sk_diag *d);
SK_CHECKED enum sk_err sk_ivf_merge(struct sk_index *self, uint32_t slot, struct sk_diag *d);
/* Takes SWEPT rows out of the next lists; *is_done after the last. */
SK_CHECKED enum sk_err sk_ivf_sweep_slice(struct sk_index *self, bool *is_done, struct sk_diag *d);
/* Rewrites a list without the rows that are not to be kept. */
typedef bool sk_ivf_keeps(const struct sk_index *self, void *context, uint32_t row);
SK_CHECKED enum sk_err sk_ivf_filter_list(struct sk_index *self, uint32_t list, sk_ivf_keeps *keeps,
                                          void *context, struct sk_diag *d);

/* ---- ivf_move.c ---- */
struct sk_ivf_mover {
    uint32_t to, row, from;
    uint32_t vector; /* number in the pool */
};
struct sk_ivf_pool {
    struct sk_ivf_mover *movers;
    float *vectors;
    uint32_t *rows; /* scratch */
    uint32_t count, capacity;
};
SK_CHECKED enum sk_err sk_ivf_pool_init(const struct sk_index *self, struct sk_ivf_pool *pool,
                                        uint32_t capacity, struct sk_diag *d);
void sk_ivf_pool_deinit(struct sk_ivf_pool *pool);
float *sk_ivf_pool_vector(const struct sk_index *self, const struct sk_ivf_pool *pool, uint32_t at);
/* The live rows of a list, the newest first, without the first `skipped`; they go where they are. */
void sk_ivf_pool_add_list(struct sk_index *self, struct sk_ivf_pool *pool, uint32_t list,
                          uint32_t skipped);
/* By list. */
void sk_ivf_pool_sort(struct sk_ivf_pool *pool);
/* Room that placing the pool, sorted, may need: blocks, and bytes of the log. */
uint32_t sk_ivf_pool_blocks(const struct sk_ivf_pool *pool);
size_t sk_ivf_pool_delta_bytes(const struct sk_ivf_pool *pool);
/* Adds every row to its list in this directory, which nobody sees yet, and logs it; room was reserved. */
void sk_ivf_pool_place(struct sk_index *self, struct sk_ivf_pool *pool, struct sk_ivf_directory *directory);
/* The `kept` rows of a chain that are to be kept, in the same order, as a new chain. */
uint32_t sk_ivf_rewrite(const struct sk_index *self, enum sk_ivf_form form, uint32_t head, uint32_t kept,
                        sk_ivf_keeps *keeps, void *context);

/* ---- ivf_image.c ---- */
size_t sk_ivf_image_bytes(const struct sk_index *self);
size_t sk_ivf_frozen_bytes(const struct sk_index *self);
/* Copies what can change into frozen and says what is to be written: SK_IVF_SECTIONS parts. */
void sk_ivf_freeze(const struct sk_index *self, uint8_t *frozen, struct sk_section *sections);
SK_CHECKED enum sk_err sk_ivf_image_read(struct sk_index *self, const struct sk_index_image_reader *reader,
                                         uint64_t *hash, struct sk_diag *d);
/* Looks at all lists. is_loading: INVALID where something does not hold, and counters and free blocks are
 * taken over; else INTERNAL, and they are compared. */
SK_CHECKED enum sk_err sk_ivf_verify(struct sk_index *self, bool is_loading, struct sk_diag *d);

/* ---- ivf_delta.c ---- */
void sk_ivf_delta_place(struct sk_index *self, uint32_t row, uint32_t list);
void sk_ivf_delta_centre(struct sk_index *self, uint32_t slot);
void sk_ivf_delta_end(struct sk_index *self, uint32_t slot);
void sk_ivf_delta_moves(struct sk_index *self, uint32_t list, const uint32_t *rows, uint32_t count);
size_t sk_ivf_delta_centre_bytes(const struct sk_index *self);
SK_CHECKED enum sk_err sk_ivf_apply_record(struct sk_delta_cursor *c, unsigned record);
void sk_ivf_replay_removed(struct sk_index *self, uint32_t row);
/* The end of a load, in this order: rows leave lists that they are in no longer; those that came or moved
 * are added from their vectors; counters and free lists. */
SK_CHECKED enum sk_err sk_ivf_load_drop(struct sk_index *self, struct sk_diag *d);
SK_CHECKED enum sk_err sk_ivf_load_row(struct sk_index *self, uint32_t row, const float *rotated,
                                       struct sk_diag *d);
void sk_ivf_load_end(struct sk_index *self);

#endif
