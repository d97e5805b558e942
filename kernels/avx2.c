/* AVX2 for x86-64. Multiply and add stay apart (no FMA) so that the float results are those of
 * scalar.c. */
#include "kernels/near.h"
#include "kernels/set.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

static float reduce(__m256 low, __m256 high)
{
    __m256 sum8 = _mm256_add_ps(low, high);
    __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
    __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
    return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_shuffle_ps(sum2, sum2, 1)));
}

static int32_t reduce_s32(__m256i sum8)
{
    __m128i sum4 = _mm_add_epi32(_mm256_castsi256_si128(sum8), _mm256_extracti128_si256(sum8, 1));
    __m128i sum2 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum2, _mm_shuffle_epi32(sum2, 0xB1)));
}

static __m256i load(const void *bytes)
{
    __m256i value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static __m128i load_half(const void *bytes)
{
    __m128i value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
        high = _mm256_add_ps(high,
                             _mm256_mul_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8)));
    }
    if (i < n) {
        float rest_a[16] = {0}, rest_b[16] = {0};
        memcpy(rest_a, a + i, (n - i) * sizeof *a);
        memcpy(rest_b, b + i, (n - i) * sizeof *b);
        low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(rest_a), _mm256_loadu_ps(rest_b)));
        high = _mm256_add_ps(
            high, _mm256_mul_ps(_mm256_loadu_ps(rest_a + 8), _mm256_loadu_ps(rest_b + 8)));
    }
    return reduce(low, high);
}

static float l2sq_f32(const float *a, const float *b, size_t n)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 d0 = _mm256_sub_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i));
        __m256 d1 = _mm256_sub_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8));
        low = _mm256_add_ps(low, _mm256_mul_ps(d0, d0));
        high = _mm256_add_ps(high, _mm256_mul_ps(d1, d1));
    }
    if (i < n) {
        float rest_a[16] = {0}, rest_b[16] = {0};
        memcpy(rest_a, a + i, (n - i) * sizeof *a);
        memcpy(rest_b, b + i, (n - i) * sizeof *b);
        __m256 d0 = _mm256_sub_ps(_mm256_loadu_ps(rest_a), _mm256_loadu_ps(rest_b));
        __m256 d1 = _mm256_sub_ps(_mm256_loadu_ps(rest_a + 8), _mm256_loadu_ps(rest_b + 8));
        low = _mm256_add_ps(low, _mm256_mul_ps(d0, d0));
        high = _mm256_add_ps(high, _mm256_mul_ps(d1, d1));
    }
    return reduce(low, high);
}

static double reduce_f64(__m256d low, __m256d high)
{
    __m256d sum4 = _mm256_add_pd(low, high);
    __m128d sum2 = _mm_add_pd(_mm256_castpd256_pd128(sum4), _mm256_extractf128_pd(sum4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(sum2, _mm_unpackhi_pd(sum2, sum2)));
}

static __m256d load_f64(const float *x)
{
    return _mm256_cvtps_pd(_mm_loadu_ps(x));
}

static double dot_f64(const float *a, const float *b, size_t n)
{
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        float rest_a[8] = {0}, rest_b[8] = {0};
        const float *at_a = a + i, *at_b = b + i;
        if (n - i < 8) {
            memcpy(rest_a, at_a, (n - i) * sizeof *a);
            memcpy(rest_b, at_b, (n - i) * sizeof *b);
            at_a = rest_a;
            at_b = rest_b;
        }
        low = _mm256_add_pd(low, _mm256_mul_pd(load_f64(at_a), load_f64(at_b)));
        high = _mm256_add_pd(high, _mm256_mul_pd(load_f64(at_a + 4), load_f64(at_b + 4)));
    }
    return reduce_f64(low, high);
}

/* Two chains of additions run in the time of one. */
static double dot_norm_f64(const float *a, const float *b, size_t n, double *b_norm_sq)
{
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    __m256d norm_low = _mm256_setzero_pd(), norm_high = _mm256_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        float rest_a[8] = {0}, rest_b[8] = {0};
        const float *at_a = a + i, *at_b = b + i;
        if (n - i < 8) {
            memcpy(rest_a, at_a, (n - i) * sizeof *a);
            memcpy(rest_b, at_b, (n - i) * sizeof *b);
            at_a = rest_a;
            at_b = rest_b;
        }
        __m256d b_low = load_f64(at_b), b_high = load_f64(at_b + 4);
        low = _mm256_add_pd(low, _mm256_mul_pd(load_f64(at_a), b_low));
        high = _mm256_add_pd(high, _mm256_mul_pd(load_f64(at_a + 4), b_high));
        norm_low = _mm256_add_pd(norm_low, _mm256_mul_pd(b_low, b_low));
        norm_high = _mm256_add_pd(norm_high, _mm256_mul_pd(b_high, b_high));
    }
    *b_norm_sq = reduce_f64(norm_low, norm_high);
    return reduce_f64(low, high);
}

static double l2sq_f64(const float *a, const float *b, size_t n)
{
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        float rest_a[8] = {0}, rest_b[8] = {0};
        const float *at_a = a + i, *at_b = b + i;
        if (n - i < 8) {
            memcpy(rest_a, at_a, (n - i) * sizeof *a);
            memcpy(rest_b, at_b, (n - i) * sizeof *b);
            at_a = rest_a;
            at_b = rest_b;
        }
        __m256d d0 = _mm256_sub_pd(load_f64(at_a), load_f64(at_b));
        __m256d d1 = _mm256_sub_pd(load_f64(at_a + 4), load_f64(at_b + 4));
        low = _mm256_add_pd(low, _mm256_mul_pd(d0, d0));
        high = _mm256_add_pd(high, _mm256_mul_pd(d1, d1));
    }
    return reduce_f64(low, high);
}

/* |a| x (b with the sign of a): at most 2 x 127 x 127 in an int16 lane, so maddubs cannot saturate.
 */
static __m256i dot_s8_step(__m256i sum, __m256i a, __m256i b)
{
    __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}

static int32_t dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
    __m256i sum0 = _mm256_setzero_si256(), sum1 = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        sum0 = dot_s8_step(sum0, load(a + i), load(b + i));
        sum1 = dot_s8_step(sum1, load(a + i + 32), load(b + i + 32));
    }
    for (; i < n; i += 32) {
        int8_t rest_a[32] = {0}, rest_b[32] = {0};
        size_t count = n - i < 32 ? n - i : 32;
        memcpy(rest_a, a + i, count);
        memcpy(rest_b, b + i, count);
        sum0 = dot_s8_step(sum0, load(rest_a), load(rest_b));
    }
    return reduce_s32(_mm256_add_epi32(sum0, sum1));
}

static int32_t l2sq_s8(const int8_t *a, const int8_t *b, size_t n)
{
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 16) {
        int8_t rest_a[16] = {0}, rest_b[16] = {0};
        const int8_t *at_a = a + i, *at_b = b + i;
        if (n - i < 16) {
            memcpy(rest_a, at_a, n - i);
            memcpy(rest_b, at_b, n - i);
            at_a = rest_a;
            at_b = rest_b;
        }
        __m256i difference = _mm256_sub_epi16(_mm256_cvtepi8_epi16(load_half(at_a)),
                                              _mm256_cvtepi8_epi16(load_half(at_b)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(difference, difference));
    }
    return reduce_s32(sum);
}

static int32_t dot_s16_s8(const int16_t *a, const int8_t *b, size_t n)
{
    __m256i sum0 = _mm256_setzero_si256(), sum1 = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        sum0 = _mm256_add_epi32(
            sum0, _mm256_madd_epi16(load(a + i), _mm256_cvtepi8_epi16(load_half(b + i))));
        sum1 = _mm256_add_epi32(
            sum1, _mm256_madd_epi16(load(a + i + 16), _mm256_cvtepi8_epi16(load_half(b + i + 16))));
    }
    for (; i < n; i += 16) {
        int16_t rest_a[16] = {0};
        int8_t rest_b[16] = {0};
        size_t count = n - i < 16 ? n - i : 16;
        memcpy(rest_a, a + i, count * sizeof *a);
        memcpy(rest_b, b + i, count);
        sum0 = _mm256_add_epi32(
            sum0, _mm256_madd_epi16(load(rest_a), _mm256_cvtepi8_epi16(load_half(rest_b))));
    }
    return reduce_s32(_mm256_add_epi32(sum0, sum1));
}

/* An int16 lane holds 8 sums of two products u4 x s8 (8 x 2 x 15 x 127 = 30,480): widen every 4
 * blocks. */
static int32_t dot_u4_s8(const uint8_t *codes, const int8_t *b, size_t n)
{
    const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    while (n > 0) {
        __m256i narrow0 = _mm256_setzero_si256(), narrow1 = _mm256_setzero_si256();
        size_t run = n < 256 ? n : 256;
        for (size_t i = 0; i < run; i += 64) {
            __m256i pairs = load(codes + i / 2);
            __m256i low = _mm256_and_si256(pairs, nibble);
            __m256i high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
            narrow0 = _mm256_add_epi16(narrow0, _mm256_maddubs_epi16(low, load(b + i)));
            narrow1 = _mm256_add_epi16(narrow1, _mm256_maddubs_epi16(high, load(b + i + 32)));
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(narrow0, narrow1), one));
        codes += run / 2;
        b += run;
        n -= run;
    }
    return reduce_s32(sum);
}

static void dots_u4_s8(const uint8_t *codes, const uint32_t *rows, size_t count, const int8_t *b,
                       size_t n, int32_t *out)
{
    for (size_t i = 0; i < count; i++) {
        sk_prefetch_row(codes, n / 2, rows, count, i + SK_ROWS_AHEAD);
        out[i] = dot_u4_s8(codes + rows[i] * (n / 2), b, n);
    }
}

/* Bit k of the 32 becomes byte k of a mask. */
static __m256i bits_to_bytes(uint32_t bits)
{
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2,
                                            2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201U);
    __m256i at = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), spread);
    return _mm256_cmpeq_epi8(_mm256_and_si256(at, bit), bit);
}

/* An int16 lane holds 129 sums of two elements (129 x 2 x 127 = 32,766): widened every 64. */
static int32_t dot_u1_s8(const uint8_t *bits, const int8_t *b, size_t n)
{
    const __m256i one_u8 = _mm256_set1_epi8(1), one_s16 = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    while (n > 0) {
        __m256i narrow = _mm256_setzero_si256();
        const size_t run = n < 2048 ? n : 2048;
        for (size_t i = 0; i < run; i += 32) {
            uint32_t word;
            memcpy(&word, bits + i / 8, sizeof word);
            __m256i chosen = _mm256_and_si256(bits_to_bytes(word), load(b + i));
            narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(one_u8, chosen));
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, one_s16));
        bits += run / 8;
        b += run;
        n -= run;
    }
    return reduce_s32(sum);
}

static void dots_u1_s8(const uint8_t *bits, size_t stride, const uint32_t *rows, size_t count,
                       const int8_t *b, size_t n, int32_t *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = dot_u1_s8(bits + rows[i] * stride, b, n);
}

/* Distances 1, 2 and 4 inside one register. */
static __m256 fht8(__m256 x)
{
    __m256 other = _mm256_permute_ps(x, 0xB1);
    x = _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), 0xAA);
    other = _mm256_permute_ps(x, 0x4E);
    x = _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), 0xCC);
    other = _mm256_permute2f128_ps(x, x, 1);
    return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), 0xF0);
}

static void fht_f32(float *x, size_t n)
{
    if (n < 8) {
        sk_kernels_scalar.fht_f32(x, n);
        return;
    }
    for (size_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(x + i, fht8(_mm256_loadu_ps(x + i)));
    for (size_t h = 8; h < n; h *= 2)
        for (size_t block = 0; block < n; block += 2 * h)
            for (size_t i = block; i < block + h; i += 8) {
                __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + h);
                _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
                _mm256_storeu_ps(x + i + h, _mm256_sub_ps(a, b));
            }
}

static float max_abs_f32(const float *x, size_t n)
{
    const __m256 sign = _mm256_set1_ps(-0.0F);
    __m256 max8 = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        max8 = _mm256_max_ps(max8, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    float lanes[8], max = 0;
    _mm256_storeu_ps(lanes, max8);
    for (size_t lane = 0; lane < 8; lane++)
        if (lanes[lane] > max)
            max = lanes[lane];
    for (; i < n; i++)
        if (fabsf(x[i]) > max)
            max = fabsf(x[i]);
    return max;
}

static void scale_f32(float *x, float factor, size_t n)
{
    __m256 factor8 = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), factor8));
    for (; i < n; i++)
        x[i] *= factor;
}

static void flip_signs_f32(float *x, const uint32_t *bits, size_t n)
{
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (size_t i = 0; i < n; i += 8) {
        __m256i byte8 = _mm256_set1_epi32((int)(bits[i / 32] >> i % 32 & 255));
        __m256i is_set = _mm256_cmpeq_epi32(_mm256_and_si256(byte8, lane_bit), lane_bit);
        __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(is_set, 31));
        _mm256_storeu_ps(x + i, _mm256_xor_ps(_mm256_loadu_ps(x + i), sign));
    }
}

static __m256i quantise8(const float *x, __m256 scale, __m256 shift, __m256 low, __m256 high)
{
    __m256 scaled = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(x), scale), shift);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(scaled, low), high));
}

/* 32 floats to 32 bytes in order; values fit int8. */
static __m256i quantise32(const float *x, __m256 scale, __m256 shift, __m256 low, __m256 high)
{
    __m256i a = _mm256_packs_epi32(quantise8(x, scale, shift, low, high),
                                   quantise8(x + 8, scale, shift, low, high));
    __m256i b = _mm256_packs_epi32(quantise8(x + 16, scale, shift, low, high),
                                   quantise8(x + 24, scale, shift, low, high));
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static void quantise_s8(const float *x, size_t n, float scale, int limit, int8_t *out)
{
    __m256 scale8 = _mm256_set1_ps(scale), high = _mm256_set1_ps((float)limit),
           low = _mm256_set1_ps((float)-limit);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i bytes = quantise32(x + i, scale8, _mm256_setzero_ps(), low, high);
        memcpy(out + i, &bytes, sizeof bytes);
    }
    if (i < n)
        sk_kernels_scalar.quantise_s8(x + i, n - i, scale, limit, out + i);
}

static void quantise_u4(const float *x, size_t n, float scale, uint8_t *codes)
{
    __m256 scale8 = _mm256_set1_ps(scale), shift = _mm256_set1_ps(7.5F), high = _mm256_set1_ps(15),
           low = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 64) {
        __m256i first = quantise32(x + i, scale8, shift, low, high);
        __m256i second = quantise32(x + i + 32, scale8, shift, low, high);
        __m256i pairs = _mm256_or_si256(first, _mm256_slli_epi16(second, 4));
        memcpy(codes + i / 2, &pairs, sizeof pairs);
    }
}

/* Bytes are added as if pairs of them were one 16-bit number; the sums of the odd bytes are kept apart
 * and taken off again at the end, which saves half of the widening (the scan of FAISS: André, Kermarrec,
 * Le Scouarnec 2015, "Cache locality is not enough"). Right modulo 65,536, which no sum reaches. */
static void scan_u4x32(const uint8_t *codes, const uint8_t *luts, size_t segments, uint16_t *out)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i both0 = _mm256_setzero_si256(), both1 = both0, odd0 = both0, odd1 = both0;
    for (size_t segment = 0; segment < segments; segment += 2) {
        __m256i pairs = load(codes + segment * 16);
        __m256i lut0 = _mm256_broadcastsi128_si256(load_half(luts + segment * 16));
        __m256i lut1 = _mm256_broadcastsi128_si256(load_half(luts + segment * 16 + 16));
        __m256i low = _mm256_shuffle_epi8(lut0, _mm256_and_si256(pairs, nibble));
        __m256i high =
            _mm256_shuffle_epi8(lut1, _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble));
        both0 = _mm256_add_epi16(both0, low);
        both1 = _mm256_add_epi16(both1, high);
        odd0 = _mm256_add_epi16(odd0, _mm256_srli_epi16(low, 8));
        odd1 = _mm256_add_epi16(odd1, _mm256_srli_epi16(high, 8));
    }
    __m256i odd = _mm256_add_epi16(odd0, odd1);
    __m256i even = _mm256_sub_epi16(_mm256_add_epi16(both0, both1), _mm256_slli_epi16(odd, 8));
    __m256i first = _mm256_unpacklo_epi16(even, odd), second = _mm256_unpackhi_epi16(even, odd);
    __m256i low_half = _mm256_permute2x128_si256(first, second, 0x20);
    __m256i high_half = _mm256_permute2x128_si256(first, second, 0x31);
    memcpy(out, &low_half, sizeof low_half);
    memcpy(out + 16, &high_half, sizeof high_half);
}

/* Four rows at a time: eight sums keep the adders busy while a column is loaded once. */
static void dots_f32x16(const float *rows, size_t count, const float *columns, size_t n, float *out)
{
    for (size_t row = 0; row < count; row += 4) {
        const float *at[4];
        __m256 low[4], high[4];
        for (size_t r = 0; r < 4; r++) { /* past the end the last row is worked on again */
            at[r] = rows + (row + r < count ? row + r : count - 1) * n;
            low[r] = high[r] = _mm256_setzero_ps();
        }
        for (size_t i = 0; i < n; i++) {
            __m256 column0 = _mm256_loadu_ps(columns + i * 16);
            __m256 column1 = _mm256_loadu_ps(columns + i * 16 + 8);
            for (size_t r = 0; r < 4; r++) {
                __m256 x = _mm256_broadcast_ss(at[r] + i);
                low[r] = _mm256_add_ps(low[r], _mm256_mul_ps(x, column0));
                high[r] = _mm256_add_ps(high[r], _mm256_mul_ps(x, column1));
            }
        }
        for (size_t r = 0; r < 4 && row + r < count; r++) {
            _mm256_storeu_ps(out + (row + r) * 16, low[r]);
            _mm256_storeu_ps(out + (row + r) * 16 + 8, high[r]);
        }
    }
}

enum { WIDENED = 256 }; /* elements of a row that are widened at a time, even */

static __m256i broadcast_pair(const int16_t *pair)
{
    int32_t both;
    memcpy(&both, pair, sizeof both);
    return _mm256_set1_epi32(both);
}

/* Four rows against the 16 queries; sums go on from what is in them. */
static void dots_s16x16_step(const int16_t *queries, int16_t rows[4][WIDENED], size_t n, __m256i low[4],
                             __m256i high[4])
{
    for (size_t i = 0; i < n; i += 2) {
        __m256i query0 = load(queries + i * 16), query1 = load(queries + i * 16 + 16);
        for (size_t r = 0; r < 4; r++) {
            __m256i pair = broadcast_pair(&rows[r][i]);
            low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(query0, pair));
            high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(query1, pair));
        }
    }
}

static void dots_s16x16_s8(const int16_t *queries, const int8_t *rows, size_t stride, size_t count,
                           size_t n, int32_t *out)
{
    int16_t wide[4][WIDENED];
    for (size_t row = 0; row < count; row += 4) {
        __m256i low[4], high[4];
        for (size_t r = 0; r < 4; r++)
            low[r] = high[r] = _mm256_setzero_si256();
        for (size_t at = 0; at < n; at += WIDENED) {
            const size_t run = n - at < WIDENED ? n - at : WIDENED;
            for (size_t r = 0; r < 4; r++) { /* past the end the last row is worked on again */
                const int8_t *from = rows + (row + r < count ? row + r : count - 1) * stride + at;
                for (size_t i = 0; i < run; i++)
                    wide[r][i] = from[i];
            }
            dots_s16x16_step(queries + at * 16, wide, run, low, high);
        }
        for (size_t r = 0; r < 4 && row + r < count; r++) {
            memcpy(out + (row + r) * 16, &low[r], sizeof low[r]);
            memcpy(out + (row + r) * 16 + 8, &high[r], sizeof high[r]);
        }
    }
}

SK_NEAR_PORTABLE

const struct sk_kernels sk_kernels_avx2 = {
    .isa = "avx2",
    .dot_f32 = dot_f32,
    .l2sq_f32 = l2sq_f32,
    .dot_f64 = dot_f64,
    .l2sq_f64 = l2sq_f64,
    .dot_norm_f64 = dot_norm_f64,
    .dot_s8 = dot_s8,
    .l2sq_s8 = l2sq_s8,
    .dot_s16_s8 = dot_s16_s8,
    .dot_u4_s8 = dot_u4_s8,
    .dots_u4_s8 = dots_u4_s8,
    .dots_u1_s8 = dots_u1_s8,
    .fht_f32 = fht_f32,
    .max_abs_f32 = max_abs_f32,
    .scale_f32 = scale_f32,
    .flip_signs_f32 = flip_signs_f32,
    .quantise_s8 = quantise_s8,
    .quantise_u4 = quantise_u4,
    .scan_u4x32 = scan_u4x32,
    .luts_signs = luts_signs,
    .signs_f32 = signs_f32,
    .near_x32 = near_x32,
    .merge_keys = merge_keys,
    .dots_f32x16 = dots_f32x16,
    .dots_s16x16_s8 = dots_s16x16_s8,
};
