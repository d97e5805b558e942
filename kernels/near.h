/* Inside kernels/ only: the portable form of the kernels of neighbour rows. Each instruction set compiles it with
 * its own flags, where it has nothing better. */
#ifndef SK_KERNELS_NEAR_H
#define SK_KERNELS_NEAR_H

#include "kernels/kernels.h"

#include <string.h>

static inline void sk_near_luts_signs(const int8_t *q, size_t n, uint8_t *luts)
{
    for (size_t segment = 0; segment < n / 4; segment++, q += 4, luts += 16) {
        luts[0] = (uint8_t)(124 - q[0] - q[1] - q[2] - q[3]);
        for (unsigned bit = 0; bit < 4; bit++) /* twice as many are known after each */
            for (unsigned entry = 0; entry < 1U << bit; entry++)
                luts[(1U << bit) + entry] = (uint8_t)(luts[entry] + 2 * q[bit]);
    }
}

static inline void sk_near_signs_f32(const float *a, const float *b, size_t n, uint8_t *bits)
{
    for (size_t i = 0; i < n; i += 8) {
        unsigned byte = 0;
        for (unsigned j = 0; j < 8; j++)
            byte |= (unsigned)(a[i + j] >= b[i + j]) << j;
        bits[i / 8] = (uint8_t)byte;
    }
}

static inline size_t sk_near_near_x32(const struct sk_near_block *block, const uint16_t *sums,
                                      uint64_t *keys)
{
    float distances[SK_SCAN_BLOCK];
    size_t count = 0;
    for (unsigned k = 0; k < SK_SCAN_BLOCK; k++) {
        float far = block->base + block->add_scale * (float)block->adds[k];
        float factor = block->factor_scale * (float)block->factors[k];
        distances[k] = far - factor * ((float)sums[k] + block->bias);
    }
    for (unsigned k = 0; k < SK_SCAN_BLOCK; k++) { /* which pass cannot be predicted */
        keys[count] =
            (uint64_t)sk_float_ordered(distances[k]) << 32 | (uint64_t)block->ids[k] << 1;
        count += k < block->count && distances[k] < block->limit;
    }
    return count;
}

static inline void sk_near_merge_keys(uint64_t *sorted, size_t capacity, const uint64_t *keys,
                                      size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const uint64_t key = keys[i];
        if (key >= sorted[capacity - 1])
            continue;
        size_t low = 0;
        for (size_t left = capacity - 1; left > 0;) { /* halves by arithmetic, not by branches */
            const size_t half = (left + 1) / 2;
            low += sorted[low + half - 1] < key ? half : 0;
            left -= half;
        }
        memmove(sorted + low + 1, sorted + low, (capacity - 1 - low) * sizeof *sorted);
        sorted[low] = key;
    }
}

/* The four as functions of the file that includes this. */
#define SK_NEAR_PORTABLE                                                                           \
    static void luts_signs(const int8_t *q, size_t n, uint8_t *luts)                               \
    {                                                                                              \
        sk_near_luts_signs(q, n, luts);                                                            \
    }                                                                                              \
    static void signs_f32(const float *a, const float *b, size_t n, uint8_t *bits)                 \
    {                                                                                              \
        sk_near_signs_f32(a, b, n, bits);                                                          \
    }                                                                                              \
    static size_t near_x32(const struct sk_near_block *block, const uint16_t *sums,                \
                           uint64_t *keys)                                                         \
    {                                                                                              \
        return sk_near_near_x32(block, sums, keys);                                                \
    }                                                                                              \
    static void merge_keys(uint64_t *sorted, size_t capacity, uint64_t *keys, size_t count)        \
    {                                                                                              \
        sk_near_merge_keys(sorted, capacity, keys, count);                                         \
    }

#endif
