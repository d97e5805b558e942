/* Up to 16 queries against all rows at once, by the 8-bit codes: each row is read once for all of them.
 * Distances and error bounds are those of sk_distance_plane, to the last bit. Where rows have no short
 * code (flat) 16 queries cost little more than two. Inside the index library only; one thread an
 * object. */
#ifndef SK_INDEX_BATCH_H
#define SK_INDEX_BATCH_H

#include "actors/shard-worker/index/internal.h"

enum { SK_BATCH_WIDTH = 16 };

struct sk_batch {
    const struct sk_index *index;
    const struct sk_generation *generation; /* must stay: be inside an epoch, or be the writer */
    int16_t *queries;                       /* as dots_s16x16_s8 wants them */
    struct sk_prepared lanes[SK_BATCH_WIDTH]; /* copies of the queries */
    void *room;                               /* of the arrays of the lanes */
    uint32_t lane_count;
    uint64_t rows_seen; /* live ones, so far */
    float norm_sq[SK_BATCH_WIDTH], norm[SK_BATCH_WIDTH], add_weight[SK_BATCH_WIDTH];
    float wide_scale[SK_BATCH_WIDTH], wide_error[SK_BATCH_WIDTH];
    /* Rows whose distance is surely above it are passed over; the receiver lowers it. */
    float limit[SK_BATCH_WIDTH];
    void *impl;
    /* A live row whose distance less its error is within the limit. False stops the scan. */
    bool (*on_row)(void *impl, uint32_t lane, uint32_t row, float distance, float error);
};

/* False: no memory. No lane is in use yet. */
bool sk_batch_init(struct sk_batch *self, const struct sk_index *index,
                   const struct sk_generation *generation);
void sk_batch_deinit(struct sk_batch *self);
void sk_batch_set(struct sk_batch *self, uint32_t lane, const struct sk_prepared *query, float limit);
/* Rows begin..end - 1; false when on_row said so. */
bool sk_batch_scan(struct sk_batch *self, uint32_t begin, uint32_t end);

#endif
