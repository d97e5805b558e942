/* AVX-512 with VNNI for x86-64 (Ice Lake, Zen 4 and later). As in avx2.c multiply and add of floats stay
 * apart, and lanes are added in halves, so that the results are those of scalar.c. */
#include "kernels/set.h"

#include <immintrin.h>
#include <string.h>

static __mmask16 first16(size_t count)
{
    return (__mmask16)(count >= 16 ? 0xFFFFU : (1U << count) - 1);
}

static __mmask8 first8(size_t count)
{
    return (__mmask8)(count >= 8 ? 0xFFU : (1U << count) - 1);
}

static __mmask32 first32(size_t count)
{
    return count >= 32 ? 0xFFFFFFFFU : (__mmask32)((1ULL << count) - 1);
}

static __mmask64 first64(size_t count)
{
    return count >= 64 ? ~0ULL : (__mmask64)((1ULL << count) - 1);
}

static float reduce(__m512 sum16)
{
    __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(sum16), _mm512_extractf32x8_ps(sum16, 1));
    __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
    __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
    return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_shuffle_ps(sum2, sum2, 1)));
}

static double reduce_f64(__m512d sum8)
{
    __m256d sum4 = _mm256_add_pd(_mm512_castpd512_pd256(sum8), _mm512_extractf64x4_pd(sum8, 1));
    __m128d sum2 = _mm_add_pd(_mm256_castpd256_pd128(sum4), _mm256_extractf128_pd(sum4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(sum2, _mm_unpackhi_pd(sum2, sum2)));
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    __m512 sum = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i)));
    if (i < n) {
        const __mmask16 rest = first16(n - i);
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, a + i),
                                               _mm512_maskz_loadu_ps(rest, b + i)));
    }
    return reduce(sum);
}

static float l2sq_f32(const float *a, const float *b, size_t n)
{
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 rest = first16(n - i);
        __m512 difference = _mm512_sub_ps(_mm512_maskz_loadu_ps(rest, a + i),
                                          _mm512_maskz_loadu_ps(rest, b + i));
        sum = _mm512_add_ps(sum, _mm512_mul_ps(difference, difference));
    }
    return reduce(sum);
}

static __m512d load_f64(const float *x, size_t count)
{
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(first8(count), x));
}

static double dot_f64(const float *a, const float *b, size_t n)
{
    __m512d sum = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 8)
        sum = _mm512_add_pd(sum, _mm512_mul_pd(load_f64(a + i, n - i), load_f64(b + i, n - i)));
    return reduce_f64(sum);
}

/* Two chains of additions run in the time of one. */
static double dot_norm_f64(const float *a, const float *b, size_t n, double *b_norm_sq)
{
    __m512d sum = _mm512_setzero_pd(), norm = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        __m512d at_b = load_f64(b + i, n - i);
        sum = _mm512_add_pd(sum, _mm512_mul_pd(load_f64(a + i, n - i), at_b));
        norm = _mm512_add_pd(norm, _mm512_mul_pd(at_b, at_b));
    }
    *b_norm_sq = reduce_f64(norm);
    return reduce_f64(sum);
}

static double l2sq_f64(const float *a, const float *b, size_t n)
{
    __m512d sum = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 8) {
        __m512d difference = _mm512_sub_pd(load_f64(a + i, n - i), load_f64(b + i, n - i));
        sum = _mm512_add_pd(sum, _mm512_mul_pd(difference, difference));
    }
    return reduce_f64(sum);
}

/* vpdpbusd multiplies unsigned by signed bytes: a + 128 is unsigned, and 128 x b is taken off again. */
static int32_t dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i sum = _mm512_setzero_si512(), excess = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 64) {
        const __mmask64 rest = first64(n - i);
        __m512i at_a = _mm512_maskz_loadu_epi8(rest, a + i);
        __m512i at_b = _mm512_maskz_loadu_epi8(rest, b + i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(at_a, offset), at_b);
        excess = _mm512_dpbusd_epi32(excess, offset, at_b);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, excess));
}

static int32_t l2sq_s8(const int8_t *a, const int8_t *b, size_t n)
{
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 32) {
        const __mmask32 rest = first32(n - i);
        __m512i difference =
            _mm512_sub_epi16(_mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(rest, a + i)),
                             _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(rest, b + i)));
        sum = _mm512_dpwssd_epi32(sum, difference, difference);
    }
    return _mm512_reduce_add_epi32(sum);
}

static int32_t dot_s16_s8(const int16_t *a, const int8_t *b, size_t n)
{
    __m512i sum0 = _mm512_setzero_si512(), sum1 = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        sum0 = _mm512_dpwssd_epi32(
            sum0, _mm512_loadu_si512(a + i),
            _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(b + i))));
        sum1 = _mm512_dpwssd_epi32(
            sum1, _mm512_loadu_si512(a + i + 32),
            _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(b + i + 32))));
    }
    for (; i < n; i += 32) {
        const __mmask32 rest = first32(n - i);
        sum0 = _mm512_dpwssd_epi32(sum0, _mm512_maskz_loadu_epi16(rest, a + i),
                                   _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(rest, b + i)));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0, sum1));
}

/* Two blocks of 64 dimensions a step: their low nibbles go with the first halves of both blocks of b,
 * the high ones with the second halves. */
static int32_t dot_u4_s8(const uint8_t *codes, const int8_t *b, size_t n)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i sum0 = _mm512_setzero_si512(), sum1 = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 128 <= n; i += 128) {
        __m512i pairs = _mm512_loadu_si512(codes + i / 2);
        __m512i b0 = _mm512_loadu_si512(b + i), b1 = _mm512_loadu_si512(b + i + 64);
        sum0 = _mm512_dpbusd_epi32(sum0, _mm512_and_si512(pairs, nibble),
                                   _mm512_shuffle_i64x2(b0, b1, 0x44));
        sum1 = _mm512_dpbusd_epi32(sum1, _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble),
                                   _mm512_shuffle_i64x2(b0, b1, 0xEE));
    }
    if (i < n) {
        __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)(codes + i / 2));
        __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(pairs), _mm256_srli_epi16(pairs, 4), 1);
        sum0 = _mm512_dpbusd_epi32(sum0, _mm512_and_si512(both, nibble), _mm512_loadu_si512(b + i));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0, sum1));
}

static void dots_u4_s8(const uint8_t *codes, const uint32_t *rows, size_t count, const int8_t *b,
                       size_t n, int32_t *out)
{
    for (size_t i = 0; i < count; i++) {
        sk_prefetch_row(codes, n / 2, rows, count, i + SK_ROWS_AHEAD);
        out[i] = dot_u4_s8(codes + rows[i] * (n / 2), b, n);
    }
}

static void dots_u1_s8(const uint8_t *bits, size_t stride, const uint32_t *rows, size_t count,
                       const int8_t *b, size_t n, int32_t *out)
{
    const __m512i one = _mm512_set1_epi8(1);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *row = bits + rows[i] * stride;
        __m512i sum0 = _mm512_setzero_si512(), sum1 = _mm512_setzero_si512();
        uint64_t words[2];
        size_t j = 0;
        for (; j + 128 <= n; j += 128) {
            memcpy(words, row + j / 8, sizeof words);
            sum0 = _mm512_dpbusd_epi32(sum0, one, _mm512_maskz_loadu_epi8(words[0], b + j));
            sum1 = _mm512_dpbusd_epi32(sum1, one, _mm512_maskz_loadu_epi8(words[1], b + j + 64));
        }
        if (j < n) {
            memcpy(words, row + j / 8, sizeof words[0]);
            sum0 = _mm512_dpbusd_epi32(sum0, one, _mm512_maskz_loadu_epi8(words[0], b + j));
        }
        out[i] = _mm512_reduce_add_epi32(_mm512_add_epi32(sum0, sum1));
    }
}

/* Distances 1, 2, 4 and 8 inside one register. */
static __m512 fht16(__m512 x)
{
    __m512 other = _mm512_permute_ps(x, 0xB1);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xAAAA, other, x);
    other = _mm512_permute_ps(x, 0x4E);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xCCCC, other, x);
    other = _mm512_shuffle_f32x4(x, x, 0xB1);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xF0F0, other, x);
    other = _mm512_shuffle_f32x4(x, x, 0x4E);
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xFF00, other, x);
}

static void fht_f32(float *x, size_t n)
{
    if (n < 16) {
        sk_kernels_scalar.fht_f32(x, n);
        return;
    }
    for (size_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(x + i, fht16(_mm512_loadu_ps(x + i)));
    size_t h = 16;
    for (; 4 * h <= n; h *= 4) /* two levels a pass over memory */
        for (size_t block = 0; block < n; block += 4 * h)
            for (size_t i = block; i < block + h; i += 16) {
                __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + h);
                __m512 c = _mm512_loadu_ps(x + i + 2 * h), e = _mm512_loadu_ps(x + i + 3 * h);
                __m512 ab = _mm512_add_ps(a, b), a_b = _mm512_sub_ps(a, b);
                __m512 ce = _mm512_add_ps(c, e), c_e = _mm512_sub_ps(c, e);
                _mm512_storeu_ps(x + i, _mm512_add_ps(ab, ce));
                _mm512_storeu_ps(x + i + h, _mm512_add_ps(a_b, c_e));
                _mm512_storeu_ps(x + i + 2 * h, _mm512_sub_ps(ab, ce));
                _mm512_storeu_ps(x + i + 3 * h, _mm512_sub_ps(a_b, c_e));
            }
    if (h < n)
        for (size_t i = 0; i < h; i += 16) {
            __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + h);
            _mm512_storeu_ps(x + i, _mm512_add_ps(a, b));
            _mm512_storeu_ps(x + i + h, _mm512_sub_ps(a, b));
        }
}

static float max_abs_f32(const float *x, size_t n)
{
    __m512 max16 = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16)
        max16 = _mm512_max_ps(max16, _mm512_abs_ps(_mm512_maskz_loadu_ps(first16(n - i), x + i)));
    return _mm512_reduce_max_ps(max16);
}

static void scale_f32(float *x, float factor, size_t n)
{
    const __m512 factor16 = _mm512_set1_ps(factor);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 rest = first16(n - i);
        _mm512_mask_storeu_ps(x + i, rest,
                              _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, x + i), factor16));
    }
}

static void flip_signs_f32(float *x, const uint32_t *bits, size_t n)
{
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 is_set = (__mmask16)(bits[i / 32] >> i % 32);
        __m512i at = _mm512_loadu_si512(x + i);
        _mm512_storeu_si512(x + i, _mm512_mask_xor_epi32(at, is_set, at, sign));
    }
}

static __m128i quantise16(__m512 x, __m512 scale, __m512 shift, __m512 low, __m512 high)
{
    __m512 scaled = _mm512_add_ps(_mm512_mul_ps(x, scale), shift);
    return _mm512_cvtepi32_epi8(
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, low), high)));
}

static void quantise_s8(const float *x, size_t n, float scale, int limit, int8_t *out)
{
    const __m512 scale16 = _mm512_set1_ps(scale), high = _mm512_set1_ps((float)limit),
                 low = _mm512_set1_ps((float)-limit);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 rest = first16(n - i);
        _mm_mask_storeu_epi8(out + i, rest,
                             quantise16(_mm512_maskz_loadu_ps(rest, x + i), scale16,
                                        _mm512_setzero_ps(), low, high));
    }
}

static void quantise_u4(const float *x, size_t n, float scale, uint8_t *codes)
{
    const __m512 scale16 = _mm512_set1_ps(scale), shift = _mm512_set1_ps(7.5F),
                 high = _mm512_set1_ps(15), low = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 64)
        for (size_t half = 0; half < 32; half += 16) {
            __m128i first = quantise16(_mm512_loadu_ps(x + i + half), scale16, shift, low, high);
            __m128i second =
                quantise16(_mm512_loadu_ps(x + i + half + 32), scale16, shift, low, high);
            __m128i pairs = _mm_or_si128(first, _mm_slli_epi16(second, 4));
            memcpy(codes + i / 2 + half, &pairs, sizeof pairs);
        }
}

struct scan_sums {
    __m512i both0, both1, odd0, odd1; /* see avx2.c */
};

/* Two chunks (four segments): the first in the lower half, the second in the upper. */
static struct scan_sums scan_step(struct scan_sums sums, __m512i pairs, __m512i lut)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_shuffle_epi8(_mm512_shuffle_i64x2(lut, lut, 0xA0),
                                      _mm512_and_si512(pairs, nibble));
    __m512i high = _mm512_shuffle_epi8(_mm512_shuffle_i64x2(lut, lut, 0xF5),
                                       _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble));
    sums.both0 = _mm512_add_epi16(sums.both0, low);
    sums.both1 = _mm512_add_epi16(sums.both1, high);
    sums.odd0 = _mm512_add_epi16(sums.odd0, _mm512_srli_epi16(low, 8));
    sums.odd1 = _mm512_add_epi16(sums.odd1, _mm512_srli_epi16(high, 8));
    return sums;
}

static void scan_u4x32(const uint8_t *codes, const uint8_t *luts, size_t segments, uint16_t *out)
{
    const __m512i zero = _mm512_setzero_si512();
    struct scan_sums sums = {zero, zero, zero, zero};
    size_t segment = 0;
    for (; segment + 4 <= segments; segment += 4)
        sums = scan_step(sums, _mm512_loadu_si512(codes + segment * 16),
                         _mm512_loadu_si512(luts + segment * 16));
    if (segment < segments) { /* the halves that are not there add zeros */
        const __mmask64 first = first64(32);
        sums = scan_step(sums, _mm512_maskz_loadu_epi8(first, codes + segment * 16),
                         _mm512_maskz_loadu_epi8(first, luts + segment * 16));
    }
    __m512i both = _mm512_add_epi16(sums.both0, sums.both1);
    __m512i odd = _mm512_add_epi16(sums.odd0, sums.odd1);
    __m256i odds =
        _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
    __m256i evens =
        _mm256_add_epi16(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
    evens = _mm256_sub_epi16(evens, _mm256_slli_epi16(odds, 8));
    __m256i first = _mm256_unpacklo_epi16(evens, odds), second = _mm256_unpackhi_epi16(evens, odds);
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)(out + 16), _mm256_permute2x128_si256(first, second, 0x31));
}

/* Eight rows at a time: eight sums keep the adders busy while a column is loaded once. */
static void dots_f32x16(const float *rows, size_t count, const float *columns, size_t n, float *out)
{
    for (size_t row = 0; row < count; row += 8) {
        const float *at[8];
        __m512 sum[8];
        for (size_t r = 0; r < 8; r++) { /* past the end the last row is worked on again */
            at[r] = rows + (row + r < count ? row + r : count - 1) * n;
            sum[r] = _mm512_setzero_ps();
        }
        for (size_t i = 0; i < n; i++) {
            __m512 column = _mm512_loadu_ps(columns + i * 16);
            for (size_t r = 0; r < 8; r++)
                sum[r] = _mm512_add_ps(sum[r], _mm512_mul_ps(_mm512_set1_ps(at[r][i]), column));
        }
        for (size_t r = 0; r < 8 && row + r < count; r++)
            _mm512_storeu_ps(out + (row + r) * 16, sum[r]);
    }
}

enum { WIDENED = 256 }; /* elements of a row that are widened at a time, even */

/* Eight rows against the 16 queries; sums go on from what is in them. */
static void dots_s16x16_step(const int16_t *queries, int16_t rows[8][WIDENED], size_t n, __m512i sum[8])
{
    for (size_t i = 0; i < n; i += 2) {
        __m512i query = _mm512_loadu_si512(queries + i * 16);
        for (size_t r = 0; r < 8; r++) {
            int32_t pair;
            memcpy(&pair, &rows[r][i], sizeof pair);
            sum[r] = _mm512_dpwssd_epi32(sum[r], query, _mm512_set1_epi32(pair));
        }
    }
}

static void dots_s16x16_s8(const int16_t *queries, const int8_t *rows, size_t stride, size_t count,
                           size_t n, int32_t *out)
{
    int16_t wide[8][WIDENED];
    for (size_t row = 0; row < count; row += 8) {
        __m512i sum[8];
        for (size_t r = 0; r < 8; r++)
            sum[r] = _mm512_setzero_si512();
        for (size_t at = 0; at < n; at += WIDENED) {
            const size_t run = n - at < WIDENED ? n - at : WIDENED;
            for (size_t r = 0; r < 8; r++) { /* past the end the last row is worked on again */
                const int8_t *from = rows + (row + r < count ? row + r : count - 1) * stride + at;
                for (size_t i = 0; i < run; i += 32)
                    _mm512_storeu_si512(wide[r] + i, _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(
                                                         first32(run - i), from + i)));
            }
            dots_s16x16_step(queries + at * 16, wide, run, sum);
        }
        for (size_t r = 0; r < 8 && row + r < count; r++)
            _mm512_storeu_si512(out + (row + r) * 16, sum[r]);
    }
}

/* ---- rows of neighbours ---- */

/* Four segments a register: element j of each spread over its 16 bytes, negated where the entry lacks bit j. */
static void luts_signs(const int8_t *q, size_t n, uint8_t *luts)
{
    static const __mmask64 lacks[4] = {0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F,
                                       0x00FF00FF00FF00FF};
    __m512i spread[4]; /* which of 16 elements goes where */
    const __m512i lane = _mm512_set_epi32(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
    for (int j = 0; j < 4; j++) {
        __m512i byte = _mm512_add_epi32(lane, _mm512_set1_epi32(j));
        spread[j] = _mm512_mullo_epi32(byte, _mm512_set1_epi32(0x01010101));
    }
    for (size_t i = 0; i < n; i += 16) {
        const __m512i q16 = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(q + i)));
        __m512i entries = _mm512_set1_epi8(124);
        for (int j = 0; j < 4; j++) {
            __m512i at = _mm512_shuffle_epi8(q16, spread[j]);
            at = _mm512_mask_sub_epi8(at, lacks[j], _mm512_setzero_si512(), at);
            entries = _mm512_add_epi8(entries, at);
        }
        _mm512_storeu_si512(luts + 4 * i, entries);
    }
}

static void signs_f32(const float *a, const float *b, size_t n, uint8_t *bits)
{
    for (size_t i = 0; i < n; i += 16) {
        const uint16_t mask = (uint16_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(a + i),
                                                           _mm512_loadu_ps(b + i), _CMP_GE_OQ);
        memcpy(bits + i / 8, &mask, sizeof mask);
    }
}

/* sk_float_ordered of 16 */
static __m512i ordered16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
    return _mm512_xor_si512(bits, flip);
}

static size_t near_x32(const struct sk_near_block *block, const uint16_t *sums, uint64_t *keys)
{
    const __m512 base = _mm512_set1_ps(block->base), add_scale = _mm512_set1_ps(block->add_scale),
                 factor_scale = _mm512_set1_ps(block->factor_scale),
                 bias = _mm512_set1_ps(block->bias), limit = _mm512_set1_ps(block->limit);
    const uint32_t there = (uint32_t)((1ULL << block->count) - 1);
    size_t count = 0;
    for (unsigned k = 0; k < SK_SCAN_BLOCK; k += 16) {
        __m512 adds = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(
            _mm256_loadu_si256((const __m256i *)(const void *)(block->adds + k))));
        __m512 factors = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
            _mm_loadu_si128((const __m128i *)(const void *)(block->factors + k))));
        __m512 dots = _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(
                                        _mm256_loadu_si256((const __m256i *)(const void *)(sums + k)))), bias);
        __m512 far = _mm512_add_ps(base, _mm512_mul_ps(add_scale, adds));
        __m512 distances =
            _mm512_sub_ps(far, _mm512_mul_ps(_mm512_mul_ps(factor_scale, factors), dots));
        const __mmask16 is_near = _mm512_mask_cmp_ps_mask(
            (__mmask16)(there >> k), distances, limit, _CMP_LT_OQ);
        const __m512i high = ordered16(distances);
        const __m512i low = _mm512_slli_epi32(_mm512_loadu_si512(block->ids + k), 1);
        for (unsigned half = 0; half < 2; half++) {
            const __mmask8 wanted = (__mmask8)(is_near >> 8 * half);
            const __m256i high8 = half == 0 ? _mm512_castsi512_si256(high) : _mm512_extracti64x4_epi64(high, 1);
            const __m256i low8 = half == 0 ? _mm512_castsi512_si256(low) : _mm512_extracti64x4_epi64(low, 1);
            const __m512i keys8 = _mm512_or_si512(_mm512_slli_epi64(_mm512_cvtepu32_epi64(high8), 32),
                                                  _mm512_cvtepu32_epi64(low8));
            /* compressed in a register: to memory it is slow on Zen 4 */
            _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi64(wanted, keys8));
            count += (unsigned)__builtin_popcount(wanted);
        }
    }
    return count;
}

enum { MERGE_REGISTERS = 8 };

/* A key goes into a sorted list by out[i] = max(old[i - 1], min(old[i], key)), without looking for its place;
 * what falls out at the end of 64 goes on to the next 64. */
static inline __attribute__((always_inline)) void merge_block(uint64_t *sorted, unsigned registers,
                                                              uint64_t *keys, size_t count)
{
    const __m512i zero = _mm512_setzero_si512();
    __m512i list[MERGE_REGISTERS];
    for (unsigned r = 0; r < registers; r++)
        list[r] = _mm512_loadu_si512(sorted + 8 * r);
    for (size_t i = 0; i < count; i++) {
        const __m512i key = _mm512_set1_epi64((long long)keys[i]);
        const __m512i last = list[registers - 1];
        __m512i before = zero;
        for (unsigned r = 0; r < registers; r++) {
            const __m512i old = list[r];
            list[r] = _mm512_max_epu64(_mm512_alignr_epi64(old, before, 7), _mm512_min_epu64(old, key));
            before = old;
        }
        const __m512i out = _mm512_max_epu64(last, key);
        keys[i] = (uint64_t)_mm_extract_epi64(_mm512_extracti32x4_epi32(out, 3), 1);
    }
    for (unsigned r = 0; r < registers; r++)
        _mm512_storeu_si512(sorted + 8 * r, list[r]);
}

static void merge_keys(uint64_t *sorted, size_t capacity, uint64_t *keys, size_t count)
{
    if (count == 0)
        return;
    for (; capacity >= 64; capacity -= 64, sorted += 64)
        merge_block(sorted, 8, keys, count);
    for (; capacity >= 32; capacity -= 32, sorted += 32)
        merge_block(sorted, 4, keys, count);
    for (; capacity >= 16; capacity -= 16, sorted += 16)
        merge_block(sorted, 2, keys, count);
    if (capacity > 0)
        merge_block(sorted, 1, keys, count);
}

const struct sk_kernels sk_kernels_avx512 = {
    .isa = "avx512",
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
