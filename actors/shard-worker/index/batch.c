/* See batch.h. */
#include "actors/shard-worker/index/batch.h"

#include <math.h>
#include <stdlib.h>

enum { WIDTH = SK_BATCH_WIDTH, ROWS_AT_ONCE = 32, RUN = 4096 /* as in sk_distance_plane */ };

bool sk_batch_init(struct sk_batch *self, const struct sk_index *index,
                   const struct sk_generation *generation)
{
    const size_t padded = index->padded;
    *self = (struct sk_batch){.index = index, .generation = generation};
    self->queries = calloc(padded * WIDTH, sizeof *self->queries);
    self->room = malloc(padded * WIDTH * (sizeof(float) + sizeof(int16_t) + sizeof(int8_t)));
    if (self->queries == NULL || self->room == NULL) {
        sk_batch_deinit(self);
        return false;
    }
    float *vectors = self->room;
    int16_t *wides = (void *)(vectors + padded * WIDTH);
    int8_t *narrows = (void *)(wides + padded * WIDTH);
    for (uint32_t lane = 0; lane < WIDTH; lane++) {
        self->lanes[lane].vector = vectors + lane * padded;
        self->lanes[lane].wide = wides + lane * padded;
        self->lanes[lane].narrow = narrows + lane * padded;
        self->limit[lane] = -INFINITY;
    }
    return true;
}

void sk_batch_deinit(struct sk_batch *self)
{
    free(self->queries);
    free(self->room);
    self->queries = NULL;
    self->room = NULL;
}

void sk_batch_set(struct sk_batch *self, uint32_t lane, const struct sk_prepared *query, float limit)
{
    const uint32_t padded = self->index->padded;
    struct sk_prepared *copy = &self->lanes[lane], own = *copy;
    *copy = *query;
    copy->vector = memcpy(own.vector, query->vector, padded * sizeof *own.vector);
    copy->wide = memcpy(own.wide, query->wide, padded * sizeof *own.wide);
    copy->narrow = memcpy(own.narrow, query->narrow, padded * sizeof *own.narrow);
    for (uint32_t i = 0; i < padded; i++)
        self->queries[(size_t)i / 2 * 2 * WIDTH + lane * 2 + i % 2] = query->wide[i];
    self->norm_sq[lane] = query->norm_sq;
    self->norm[lane] = query->norm;
    self->add_weight[lane] = query->add_weight;
    self->wide_scale[lane] = query->wide_scale;
    self->wide_error[lane] = query->wide_error;
    self->limit[lane] = limit;
    if (lane >= self->lane_count)
        self->lane_count = lane + 1;
}

static void block_sums(const struct sk_batch *self, uint32_t begin, uint32_t count, float *sums)
{
    int32_t dots[ROWS_AT_ONCE * WIDTH];
    const uint32_t padded = self->index->padded;
    const int8_t *rows = sk_plane_of(self->index, self->generation, begin);
    if (count == 0)
        return;
    memset(sums, 0, count * WIDTH * sizeof *sums);
    for (uint32_t at = 0; at < padded; at += RUN) {
        const uint32_t run = padded - at < RUN ? padded - at : RUN;
        self->index->kernels->dots_s16x16_s8(self->queries + (size_t)at * WIDTH, rows + at, padded,
                                             count, run, dots);
        for (uint32_t i = 0; i < count * WIDTH; i++)
            sums[i] += (float)dots[i];
    }
}

/* The arithmetic of sk_distance_plane for all lanes. True when a lane wants the row. */
static bool block_row(const struct sk_batch *self, uint32_t row, const float *restrict sums,
                      float *restrict distances, float *restrict errors)
{
    const struct sk_factors *factors = sk_factors_of(self->generation, row);
    const float length = sqrtf(factors->norm_sq);
    uint32_t is_wanted = 0;
    for (uint32_t lane = 0; lane < WIDTH; lane++) {
        float dot = sums[lane] * self->wide_scale[lane] * factors->plane_scale;
        float base = self->norm_sq[lane] + self->add_weight[lane] * factors->norm_sq;
        errors[lane] = 2 * (self->norm[lane] * factors->plane_error +
                            self->wide_error[lane] * (length + factors->plane_error)) +
                       4e-6F * (base + self->norm[lane] * length);
        distances[lane] = base - 2 * dot;
    }
    for (uint32_t lane = 0; lane < WIDTH; lane++)
        is_wanted |= distances[lane] - errors[lane] <= self->limit[lane];
    return is_wanted != 0;
}

/* Rows from begin on that are live one after the other: the codes of others may be being written. */
static uint32_t live_run(const struct sk_batch *self, uint32_t begin, uint32_t end)
{
    uint32_t count = 0;
    while (count < ROWS_AT_ONCE && begin + count < end &&
           sk_state(self->index, begin + count) == SK_ROW_LIVE)
        count++;
    return count;
}

static bool offer(struct sk_batch *self, uint32_t row, const float *distances, const float *errors)
{
    for (uint32_t lane = 0; lane < self->lane_count; lane++)
        if (distances[lane] - errors[lane] <= self->limit[lane] &&
            !self->on_row(self->impl, lane, row, distances[lane], errors[lane]))
            return false;
    return true;
}

/* Rows with a short code: in profile memory they have no other. */
static bool scan_one_by_one(struct sk_batch *self, uint32_t begin, uint32_t end)
{
    float distances[WIDTH], errors[WIDTH];
    const bool has_planes = sk_has_planes(self->generation);
    for (uint32_t row = begin; row < end; row++) {
        if (sk_state(self->index, row) != SK_ROW_LIVE)
            continue;
        self->rows_seen++;
        for (uint32_t lane = 0; lane < self->lane_count; lane++) {
            errors[lane] = 0;
            distances[lane] =
                has_planes ? sk_distance_plane(self->index, self->generation, &self->lanes[lane],
                                               row, &errors[lane])
                           : sk_distance_short(self->index, self->generation, &self->lanes[lane], row);
        }
        if (!offer(self, row, distances, errors))
            return false;
    }
    return true;
}

bool sk_batch_scan(struct sk_batch *self, uint32_t begin, uint32_t end)
{
    float sums[ROWS_AT_ONCE * WIDTH], distances[WIDTH], errors[WIDTH];
    if (self->index->code_bytes > 0)
        return scan_one_by_one(self, begin, end);
    while (begin < end) {
        const uint32_t count = live_run(self, begin, end);
        self->rows_seen += count;
        block_sums(self, begin, count, sums);
        for (uint32_t i = 0; i < count; i++)
            if (block_row(self, begin + i, sums + (size_t)i * WIDTH, distances, errors) &&
                !offer(self, begin + i, distances, errors))
                return false;
        begin += count < ROWS_AT_ONCE ? count + 1 : count; /* the row after a short run is not live */
    }
    return true;
}
