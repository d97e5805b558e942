/* Walks by neighbour rows: which node comes next is decided by estimates, what is kept by the 4-bit code of
 * each node that was expanded. */
#include "actors/shard-worker/index/near.h"

#include <math.h>
#include <stdlib.h>

enum { DEADLINE_HOPS = 32, RETRIES_MAX = 3, K_MIN = 10 };
/* How much farther (squared) than the k-th best a node may be and still be expanded, more for each ef / k; the
 * frontier's length matters only where many are about equally far. With these, ef takes about as much time as
 * in profile balanced. */
static const float STRETCH_PER_EF = 0.02F;
/* 4-bit distances are off by about 0.2 |q| |x| / sqrt(n) (1 in 3 more): three times that. */
static const float SHORT_ERRORS = 0.6F;
enum { FRONTIER_PER_EF = 2, FRONTIER_MORE = 20 };

static uint32_t rounded(uint32_t count)
{
    return (count + 7) / 8 * 8;
}

bool sk_near_is_ready(const struct sk_index *self)
{
    return atomic_load_explicit(&self->near.row_count, memory_order_acquire) > 0;
}

bool sk_near_fit(struct sk_near_walk *self, uint32_t k, uint32_t ef)
{
    const struct sk_index *index = self->index;
    struct sk_scratch *scratch = self->scratch;
    self->k = k > K_MIN ? k : K_MIN;
    self->frontier_size = rounded(FRONTIER_PER_EF * ef + FRONTIER_MORE);
    self->best_size = rounded(2 * self->k + ef / 4);
    self->stretch = 1 + STRETCH_PER_EF * ((float)ef / (float)self->k - 1);
    if (self->stretch < 1)
        self->stretch = 1;
    if (!sk_scratch_fit(scratch, sk_row_count(index), self->best_size, 1) ||
        !sk_scratch_fit_heap(scratch, self->frontier_size))
        return false;
    if (scratch->luts == NULL)
        scratch->luts = aligned_alloc(64, (size_t)index->padded * 4);
    return scratch->luts != NULL;
}

/* ---- the next node ---- */

static float limit(const struct sk_near_walk *self)
{
    const uint64_t last = self->scratch->heap[self->frontier_size - 1];
    const uint64_t worst = self->scratch->beam[self->k - 1];
    float out = last == UINT64_MAX ? INFINITY : sk_key_distance(last);
    if (worst != UINT64_MAX) {
        const float bound =
            (sk_key_distance(worst) + self->offset) * self->stretch - self->offset;
        out = bound < out ? bound : out;
    }
    return out;
}

/* Rows into the second level of the cache: it can wait for more lines at once than the first, and they are
 * about 30 (measured: 1.2 times the queries a second of one walk, 1.35 times of three in turns). */
static void prefetch(const struct sk_near_walk *self, uint32_t row)
{
    const struct sk_index *index = self->index;
    sk_prefetch_code(index, self->generation, row);
    if (row >= self->row_count)
        return;
    const uint8_t *at = sk_near_row(index, row);
    for (uint32_t line = 0; line < index->near.row_bytes; line += 64)
        __builtin_prefetch(at + line, 0, 2);
}

static void pick(struct sk_near_walk *self)
{
    struct sk_scratch *scratch = self->scratch;
    uint64_t *frontier = scratch->heap;
    self->row = SK_NO_ROW;
    for (; self->cursor < self->frontier_size; self->cursor++) {
        const uint64_t key = frontier[self->cursor];
        if ((key & 1) != 0 && key != UINT64_MAX)
            continue;
        if (key == UINT64_MAX || !(sk_key_distance(key) <= limit(self)))
            return;
        /* all that are equal, so that the order holds */
        for (uint32_t i = self->cursor; i < self->frontier_size && frontier[i] == key; i++)
            frontier[i] |= 1;
        if (!sk_visit(scratch, sk_key_row(key)))
            continue; /* expanded by another estimate */
        if (++self->counters.hops % DEADLINE_HOPS == 0 && sk_deadline_passed(&self->deadline)) {
            self->is_truncated = true;
            return;
        }
        self->row = sk_key_row(key);
        prefetch(self, self->row);
        return;
    }
}

/* Keys of rows that were not expanded go into the frontier. */
static void offer(struct sk_near_walk *self, uint64_t *keys, size_t count)
{
    struct sk_scratch *scratch = self->scratch;
    const uint32_t visited_rows = scratch->visited_words * 64;
    uint64_t smallest = UINT64_MAX;
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        const uint64_t key = keys[i];
        const uint32_t row = sk_key_row(key);
        if (row >= visited_rows) /* newer than this search's scratch */
            continue;
        keys[kept] = key;
        const bool is_new = (scratch->visited[row / 64] >> row % 64 & 1) == 0;
        smallest = is_new && key < smallest ? key : smallest;
        kept += is_new;
    }
    self->counters.distances += count;
    if (kept == 0)
        return;
    self->index->kernels->merge_keys(scratch->heap, self->frontier_size, keys, kept);
    while (self->cursor > 0 && scratch->heap[self->cursor - 1] >= smallest)
        self->cursor--;
}

/* ---- expanding ---- */

/* What a reader takes of a row must not have changed meanwhile. ThreadSanitizer knows no fences: there the row
 * is copied by atomic loads, and looked at again by a write that changes nothing. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
enum { COPY_BYTES_MAX = SK_DEGREE_MAX / SK_NEAR_BLOCK * (SK_NEAR_FIXED_BYTES + SK_INDEX_DIM_MAX * 4) };
static const uint8_t *view(const struct sk_index *index, uint32_t row)
{
    static _Thread_local _Alignas(64) uint8_t copy[COPY_BYTES_MAX];
    const uint8_t *at = sk_near_row(index, row);
    for (size_t i = 0; i < index->near.row_bytes; i += 8) {
        const uint64_t word = atomic_load_explicit((const _Atomic uint64_t *)(const void *)(at + i),
                                                   memory_order_acquire);
        memcpy(copy + i, &word, sizeof word);
    }
    return copy;
}
static uint32_t sequence_again(const struct sk_near_header *header)
{
    return atomic_fetch_add_explicit(&((struct sk_near_header *)(uintptr_t)header)->sequence, 0,
                                     memory_order_acq_rel);
}
#else
static const uint8_t *view(const struct sk_index *index, uint32_t row)
{
    return sk_near_row(index, row);
}
static uint32_t sequence_again(const struct sk_near_header *header)
{
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&header->sequence, memory_order_relaxed);
}
#endif

/* Sums of 16 bits; beyond 1,024 dimensions those of 32 without their last bits. */
static void scan(const struct sk_near_walk *self, const uint8_t *signs, uint16_t *sums)
{
    const uint32_t segments = self->index->padded / 4;
    uint32_t wide[SK_SCAN_BLOCK];
    if (segments <= SK_SCAN_SEGMENTS_MAX) {
        self->index->kernels->scan_u4x32(signs, self->scratch->luts, segments, sums);
        return;
    }
    sk_scan_u4x32(self->index->kernels, signs, self->scratch->luts, segments, wide);
    for (uint32_t k = 0; k < SK_SCAN_BLOCK; k++)
        sums[k] = (uint16_t)(wide[k] >> self->sum_shift);
}

static size_t estimate_block(const struct sk_near_walk *self, const uint8_t *block, float base,
                             float far, uint64_t *keys)
{
    const struct sk_near_header *header = (const struct sk_near_header *)(const void *)block;
    const uint32_t count = atomic_load_explicit(&header->count, memory_order_relaxed);
    const struct sk_near_block near = {
        .count = count < SK_NEAR_BLOCK ? count : SK_NEAR_BLOCK,
        .adds = (const int16_t *)(const void *)(block + SK_NEAR_ADDS_AT),
        .factors = block + SK_NEAR_FACTORS_AT,
        .ids = (const uint32_t *)(const void *)(block + SK_NEAR_IDS_AT),
        .base = base,
        .add_scale = atomic_load_explicit(&header->add_scale, memory_order_relaxed),
        .factor_scale = atomic_load_explicit(&header->factor_scale, memory_order_relaxed) *
                        self->scale,
        .bias = self->bias,
        .limit = far};
    uint16_t sums[SK_SCAN_BLOCK];
    scan(self, block + SK_NEAR_FIXED_BYTES, sums);
    return self->index->kernels->near_x32(&near, sums, keys);
}

/* False when the row is not there, or the writer is at it all the time. */
static bool estimate(const struct sk_near_walk *self, uint32_t row, float base, float far,
                     uint64_t *keys, size_t *count)
{
    const struct sk_index *index = self->index;
    if (row >= self->row_count)
        return false;
    const struct sk_near_header *header =
        (const struct sk_near_header *)(const void *)sk_near_row(index, row);
    for (unsigned n = 0; n < RETRIES_MAX; n++) {
        const uint32_t sequence = atomic_load_explicit(&header->sequence, memory_order_acquire);
        if (atomic_load_explicit(&header->generation, memory_order_relaxed) !=
            self->generation->number)
            return false;
        const uint8_t *at = view(index, row);
        *count = 0;
        for (uint32_t b = 0; b < index->near.block_count; b++, at += sk_near_block_bytes(index))
            *count += estimate_block(self, at, base, far, keys + *count);
        if (sequence % 2 == 0 && sequence_again(header) == sequence)
            return true;
    }
    return false;
}

/* The neighbours by their 4-bit codes, as profile balanced does it. */
static size_t measure(const struct sk_near_walk *self, uint32_t row, float far, uint64_t *keys)
{
    uint32_t list[SK_DEGREE_MAX], length = sk_links_get(self->index, row, list), fresh = 0;
    float distances[SK_DEGREE_MAX];
    const uint32_t visited_rows = self->scratch->visited_words * 64;
    size_t count = 0;
    for (uint32_t i = 0; i < length; i++)
        if (list[i] < visited_rows &&
            (self->scratch->visited[list[i] / 64] >> list[i] % 64 & 1) == 0)
            list[fresh++] = list[i];
    for (uint32_t i = 0; i < fresh && i < SK_ROWS_AHEAD; i++)
        sk_prefetch_code(self->index, self->generation, list[i]);
    sk_distances_short(self->index, self->generation, &self->scratch->prepared, list, fresh,
                       distances);
    for (uint32_t i = 0; i < fresh; i++)
        if (distances[i] < far)
            keys[count++] = sk_key(distances[i], list[i]);
    return count;
}

/* ---- walking ---- */

void sk_near_begin(struct sk_near_walk *self)
{
    struct sk_scratch *scratch = self->scratch;
    const struct sk_prepared *query = &scratch->prepared;
    const struct sk_index *index = self->index;
    int8_t narrow[SK_INDEX_DIM_MAX];
    uint64_t keys[SK_ENTRY_COUNT];
    size_t count = 0;
    sk_scratch_unvisit(scratch);
    self->row_count = atomic_load_explicit(&index->near.row_count, memory_order_acquire);
    self->cursor = 0;
    self->offset = index->params.metric == SK_METRIC_IP ? query->norm * query->norm : 0;
    const float max = index->kernels->max_abs_f32(query->vector, index->padded);
    self->sum_shift = 0;
    while (index->padded / 4 > (uint32_t)SK_SCAN_SEGMENTS_MAX << self->sum_shift)
        self->sum_shift++;
    /* of what the sums are short of, half a bit that was cut off is put back */
    self->bias = 0.5F - 0.5F / (float)(1U << self->sum_shift) -
                 (float)(SK_NEAR_Q_MAX * index->padded) / (float)(1U << self->sum_shift);
    self->scale = max > 1e-18F ? max / SK_NEAR_Q_MAX * (float)(1U << self->sum_shift) : 0;
    index->kernels->quantise_s8(query->vector, index->padded,
                                max > 1e-18F ? SK_NEAR_Q_MAX / max : 0, SK_NEAR_Q_MAX, narrow);
    index->kernels->luts_signs(narrow, index->padded, scratch->luts);
    for (uint32_t i = 0; i < self->frontier_size; i++)
        scratch->heap[i] = UINT64_MAX;
    for (uint32_t i = 0; i < self->best_size; i++)
        scratch->beam[i] = UINT64_MAX;
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        const uint32_t row = atomic_load_explicit(&index->entries[at], memory_order_acquire);
        if (row != SK_NO_ROW)
            keys[count++] =
                sk_key(sk_distance_short(index, self->generation, query, row), row);
    }
    offer(self, keys, count);
    pick(self);
}

void sk_near_take(struct sk_near_walk *self)
{
    struct sk_scratch *scratch = self->scratch;
    const struct sk_index *index = self->index;
    uint64_t keys[SK_DEGREE_MAX + SK_NEAR_KEYS_MAX];
    const uint32_t row = self->row;
    size_t count;
    const float distance =
        sk_distance_short(index, self->generation, &scratch->prepared, row);
    if (index->params.metric == SK_METRIC_IP) /* so that the stretch is of a length, not of a product */
        self->offset = scratch->prepared.norm * scratch->prepared.norm +
                       sk_short_factors_of(self->generation, row)->norm_sq;
    if (sk_state(index, row) == SK_ROW_LIVE) {
        uint64_t key = sk_key(distance, row);
        index->kernels->merge_keys(scratch->beam, self->best_size, &key, 1);
    }
    const float far = limit(self);
    if (!estimate(self, row, distance, far, keys, &count))
        count = measure(self, row, far, keys);
    offer(self, keys, count);
    pick(self);
}

void sk_near_end(struct sk_near_walk *self)
{
    struct sk_scratch *scratch = self->scratch;
    const uint64_t *best = scratch->beam;
    uint32_t count = 0;
    float far = INFINITY; /* those surely not among the k best need no second look */
    if (best[self->k - 1] != UINT64_MAX)
        far = sk_key_distance(best[self->k - 1]) +
              SHORT_ERRORS * scratch->prepared.norm *
                  sqrtf(sk_short_factors_of(self->generation, sk_key_row(best[self->k - 1]))->norm_sq /
                        (float)self->index->padded);
    while (count < self->best_size && best[count] != UINT64_MAX && sk_key_distance(best[count]) <= far)
        count++;
    scratch->beam_count = count;
    sk_scratch_unvisit(scratch);
}
