/* Profile speed: beside each node a row with the signs of the differences to its neighbours, so that a hop reads
 * one run of memory and knows about how far all of them are. Inside the index library only.
 *
 * A row, 64-byte aligned, for each block of 32 links:
 *   header 32 | adds 32 x s16 | factors 32 x u8 | ids 32 x u32 | signs 32 x padded bits (scan_u4x32)
 * For an edge u -> v with r = v - u: d2(q, v) = d2(q, u) + |r|2 - 2 <q - u, r>, and <q - u, r> is about
 * c <q - u, sign r> with c = |r|2 / sum |r| (RaBitQ, SymphonyQG): adds hold |r|2 + 2 c <u, sign r>, factors 2 c.
 * For inner products d(q, v) = d(q, u) - 2 <q, r>: adds are 0.
 *
 * Rows are derived from links and codes: not logged, not in images. One whose generation is not the reader's
 * is as if it were not there: that node is expanded by the 4-bit codes of its neighbours. The writer makes the
 * sequence odd while it changes a row; a reader looks at it before and after, and uses nothing of a row that
 * has changed meanwhile. Everything that both touch is written with relaxed atomic stores. */
#ifndef SK_INDEX_NEAR_H
#define SK_INDEX_NEAR_H

#include "actors/shard-worker/index/internal.h"

enum {
    SK_NEAR_BLOCK = 32,
    SK_NEAR_ADDS_AT = 32,
    SK_NEAR_FACTORS_AT = SK_NEAR_ADDS_AT + 64,
    SK_NEAR_IDS_AT = SK_NEAR_FACTORS_AT + 32,
    SK_NEAR_FIXED_BYTES = SK_NEAR_IDS_AT + 128,
};

struct sk_near_header {
    _Atomic uint32_t sequence; /* of the first block: of all; odd while written */
    _Atomic uint32_t generation; /* that the row is made from; 0: none */
    _Atomic uint32_t count;      /* of this block */
    _Atomic float add_scale, factor_scale;
    uint32_t unused[3];
};
_Static_assert(sizeof(struct sk_near_header) == 32, "the header has no padding");

static inline uint32_t sk_near_block_bytes(const struct sk_index *self)
{
    return SK_NEAR_FIXED_BYTES + self->padded * 4;
}
static inline uint8_t *sk_near_row(const struct sk_index *self, uint32_t row)
{
    return self->near.rows.base + (size_t)row * self->near.row_bytes;
}

/* A walk to the nearest rows, in turns like struct sk_beam: take expands `row`, whose row was asked for at the
 * end of the turn before. Those found end up in scratch->beam, tombstones not among them. */
struct sk_near_walk {
    const struct sk_index *index;
    const struct sk_generation *generation;
    struct sk_scratch *scratch; /* prepared is set */
    struct sk_deadline deadline;
    uint32_t k, frontier_size, best_size;
    float stretch, offset;
    float scale, bias;  /* <q, signs> = scale x (sum + bias) */
    uint32_t sum_shift; /* sums are cut by so many bits to fit 16 */
    uint32_t row_count; /* neighbour rows that may be read */
    uint32_t cursor;    /* nothing before it in the frontier is left to expand */
    uint32_t row;       /* to be expanded; SK_NO_ROW: the walk is over */
    struct sk_counters counters;
    bool is_truncated; /* the deadline has passed */
};
bool sk_near_is_ready(const struct sk_index *self); /* any rows to walk by */
bool sk_near_fit(struct sk_near_walk *self, uint32_t k, uint32_t ef); /* false: no memory */
void sk_near_begin(struct sk_near_walk *self);
void sk_near_take(struct sk_near_walk *self);
void sk_near_end(struct sk_near_walk *self);

#endif
