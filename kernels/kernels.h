/* Arithmetic on vectors: distances, code dots, rotation, selection. One table of functions for each
 * instruction set; nothing here allocates, fails, or keeps state. Uses nothing of ours.
 *
 * Same answers everywhere: the integer kernels are exact; the float kernels add in one fixed order
 * (16 lanes, lane i takes elements i, i + 16, ..., lanes are then added in halves: 8, 4, 2, 1) and
 * never fuse a multiply with an add, so that every set returns the same bits as the scalar one.
 * Error of dot_f32 and l2sq_f32 against the real sum s: at most (n / 16 + 8) x 2^-24 x sum of
 * |terms|. Any length (0 gives 0) and any alignment, unless a function says otherwise. Thread: any.
 */
#ifndef SK_KERNELS_H
#define SK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sk_metric { SK_METRIC_L2 = 1, SK_METRIC_IP = 2, SK_METRIC_COSINE = 3 };

/* How many rows at random places are asked for before the first of them is needed. */
enum { SK_ROWS_AHEAD = 6 };
/* Asks for bytes that are needed a little later. Into the second-level cache: the first one takes about two
 * dozen misses at a time and stops the program at the next, and a walk asks for more at once. */
static inline void sk_prefetch(const void *bytes, size_t size)
{
    for (size_t line = 0; line < size; line += 64)
        __builtin_prefetch((const uint8_t *)bytes + line, 0, 2);
    __asm__ volatile(""); /* gcc takes a function that only prefetches for one without effect: calls vanish */
}

/* At most 32 edges of one node, see near_x32. */
struct sk_near_block {
    unsigned count; /* how many of the 32 there are */
    const int16_t *adds;
    const uint8_t *factors;
    const uint32_t *ids;
    float base, add_scale, factor_scale, bias, limit;
};

struct sk_kernels {
    const char *isa; /* "scalar", "avx2", "avx512", "neon" */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    float (*l2sq_f32)(const float *a, const float *b, size_t n); /* squared Euclidean */
    /* In double precision, 8 lanes (lane i takes elements i, i + 8, ...), added in halves. */
    double (*dot_f64)(const float *a, const float *b, size_t n);
    double (*l2sq_f64)(const float *a, const float *b, size_t n);
    /* dot_f64(a, b) and *b_norm_sq = dot_f64(b, b), in one pass over b */
    double (*dot_norm_f64)(const float *a, const float *b, size_t n, double *b_norm_sq);
    /* -128 must not occur in a or b. n at most 65,536. */
    int32_t (*dot_s8)(const int8_t *a, const int8_t *b, size_t n);
    int32_t (*l2sq_s8)(const int8_t *a, const int8_t *b, size_t n);
    /* wide query against byte codes: |a| at most 4,095 and n at most 4,096
     */
    int32_t (*dot_s16_s8)(const int16_t *a, const int8_t *b, size_t n);
    /* 4-bit codes: block b of 64 dimensions is 32 bytes, byte j holds dimension 64b + j in its low
     * and 64b + 32 + j in its high nibble, values 0..15. n is a multiple of 64. -128 must not occur
     * in b. */
    int32_t (*dot_u4_s8)(const uint8_t *codes, const int8_t *b, size_t n);
    /* out[i] = dot_u4_s8(codes + rows[i] x n / 2, b, n), rows at random places: the code of
     * rows[i + SK_ROWS_AHEAD] is prefetched while row i is worked on. */
    void (*dots_u4_s8)(const uint8_t *codes, const uint32_t *rows, size_t count, const int8_t *b,
                       size_t n, int32_t *out);
    /* out[i] = the sum of those elements of b whose bit is set (element j: bit j % 8 of byte j / 8) in
     * the n / 8 bytes at bits + rows[i] x stride. n is a multiple of 64, at most 65,536. */
    void (*dots_u1_s8)(const uint8_t *bits, size_t stride, const uint32_t *rows, size_t count,
                       const int8_t *b, size_t n, int32_t *out);
    /* In-place fast Hadamard transform without scaling; n is a power of two. */
    void (*fht_f32)(float *x, size_t n);
    float (*max_abs_f32)(const float *x, size_t n); /* 0 for n = 0 */
    void (*scale_f32)(float *x, float factor, size_t n);
    /* x[i] changes its sign where bit i % 32 of bits[i / 32] is set; n a multiple of 32 */
    void (*flip_signs_f32)(float *x, const uint32_t *bits, size_t n);
    /* out[i] = clamp(round half to even(x[i] * scale), -limit, limit); limit 1..127 */
    void (*quantise_s8)(const float *x, size_t n, float scale, int limit, int8_t *out);
    /* out codes (layout of dot_u4_s8) = clamp(round(x[i] * scale + 7.5), 0, 15); n a multiple of 64
     */
    void (*quantise_u4)(const float *x, size_t n, float scale, uint8_t *codes);
    /* Look-up scan of one block of 32 vectors, 4 bits a segment: out[k] = the sum over all segments of
     * luts[16 x segment + code of vector k]. Each pair of segments (2s, 2s + 1) is a chunk of 32 bytes:
     * byte k of chunk s holds vector k, segment 2s in its low nibble, 2s + 1 in its high one. segments
     * is even and at most SK_SCAN_SEGMENTS_MAX, so that no sum passes 16 bits: see sk_scan_u4x32. */
    void (*scan_u4x32)(const uint8_t *codes, const uint8_t *luts, size_t segments, uint16_t *out);
    /* Look-up tables for scan_u4x32 of sign bits, 4 dimensions a segment: entry e of segment s = 124 + the sum
     * over j of +q[4s + j] where bit j of e is set, else of -q[4s + j]. |q| at most 31; n a multiple of 64;
     * luts has 4 x n bytes. */
    void (*luts_signs)(const int8_t *q, size_t n, uint8_t *luts);
    /* bit i % 8 of bits[i / 8] is set where a[i] >= b[i]; n a multiple of 64. */
    void (*signs_f32)(const float *a, const float *b, size_t n, uint8_t *bits);
    /* Of these edges those nearer than limit, in their order, as keys (ordered distance << 32 | id << 1); returns
     * how many. keys has room for SK_NEAR_KEYS_MAX. Distance k = (base + add_scale x adds[k]) - factor_scale x factors[k] x (sums[k] + bias). */
    size_t (*near_x32)(const struct sk_near_block *block, const uint16_t *sums, uint64_t *keys);
    /* sorted[0..capacity) becomes the capacity smallest of itself and keys[0..count), rising; keys are used
     * up. capacity is a multiple of 8; free places at the end hold UINT64_MAX. */
    void (*merge_keys)(uint64_t *sorted, size_t capacity, uint64_t *keys, size_t count);
    /* Many rows (count x n) against 16 columns side by side (n x 16): out (count x 16) = the sums of
     * products, each added in the order of the elements. Error: at most n x 2^-24 x sum of |terms|. */
    void (*dots_f32x16)(const float *rows, size_t count, const float *columns, size_t n, float *out);
    /* 16 wide queries side by side against rows of byte codes, each `stride` bytes after the one before:
     * out[16 x row + q] = dot_s16_s8(query q, row, n). Elements 2i and 2i + 1 of query q stand at
     * queries[32i + 2q] and the next. n is even; limits as for dot_s16_s8. */
    void (*dots_s16x16_s8)(const int16_t *queries, const int8_t *rows, size_t stride, size_t count,
                           size_t n, int32_t *out);
};
enum { SK_SCAN_BLOCK = 32, SK_SCAN_SEGMENTS_MAX = 256 }; /* 256 x 255 = 65,280 */
enum { SK_NEAR_Q_MAX = 31, SK_NEAR_KEYS_MAX = 40 };

/* The set for this processor, or the one named: NULL or "auto", "scalar", "avx2", "avx512", "neon". NULL is
 * returned for a name that is unknown or that this processor cannot run. */
const struct sk_kernels *sk_kernels_get(const char *isa);
/* The names that sk_kernels_get takes here, best first, the last is "scalar"; NULL past the end. */
const char *sk_kernels_name(unsigned at);

/* scan_u4x32 for any even number of segments: sums of 32 bits. out has SK_SCAN_BLOCK elements. */
void sk_scan_u4x32(const struct sk_kernels *kernels, const uint8_t *codes, const uint8_t *luts,
                   size_t segments, uint32_t *out);

bool sk_vector_is_finite(const float *x, size_t n); /* no NaN, no infinity */

/* The score that users see, the same on every machine: summed in double precision in one order
 * (see dot_f64), rounded to float once. l2: the Euclidean distance (smaller is better); ip: the
 * inner product; cosine: of the raw vectors, 0 when one of them is all zeros, clamped to -1..1. */
float sk_score_exact(enum sk_metric metric, const float *a, const float *b, size_t dim);
/* The same, when one query meets many vectors: query_length = sk_score_length(query, dim) is found
 * once. */
double sk_score_length(const float *query, size_t dim);
float sk_score_exact_query(enum sk_metric metric, const float *query, double query_length,
                           const float *b, size_t dim);
/* True when score a ranks before score b (l2: smaller; ip, cosine: larger). */
bool sk_score_is_better(enum sk_metric metric, float a, float b);

/* Makes keys[0..k) the k smallest of keys[0..count), in rising order. O(count + k log k). */
void sk_select_smallest(uint64_t *keys, size_t count, size_t k);

/* A float as an integer that sorts alike (no NaN), and back. For keys: (ordered << 32) | row. */
static inline uint32_t sk_float_ordered(float x)
{
    union {
        float f;
        uint32_t u;
    } bits = {x};
    return (bits.u & 0x80000000U) != 0 ? ~bits.u : bits.u | 0x80000000U;
}

static inline float sk_float_from_ordered(uint32_t ordered)
{
    union {
        uint32_t u;
        float f;
    } bits = {(ordered & 0x80000000U) != 0 ? ordered & 0x7FFFFFFFU : ~ordered};
    return bits.f;
}

/* An orthogonal map of `padded` dimensions made from a seed: rounds of random signs, fast Hadamard
 * transforms on the first or the last power of two elements in turn, scaled to keep lengths. */
enum { SK_ROTATION_ALIGN = 64 };
struct sk_rotation {
    uint32_t padded; /* multiple of 64 */
    uint32_t power;  /* largest power of two that is at most padded */
    uint32_t round_count;
    const uint32_t *sign_bits; /* round_count x padded / 32 words; borrowed */
};
enum { SK_ROTATION_ROUNDS_MAX = 6 };
uint32_t sk_rotation_padded(uint32_t dim); /* dim up to the next multiple of 64 */
/* words must have SK_ROTATION_ROUNDS_MAX * padded / 32 elements and outlive the rotation. */
void sk_rotation_init(struct sk_rotation *self, uint32_t padded, uint64_t seed, uint32_t *words);
void sk_rotation_apply(const struct sk_rotation *self, const struct sk_kernels *kernels, float *x);

#endif
