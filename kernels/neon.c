/* NEON as every aarch64 has it (no dotprod). Multiply and add stay apart, see kernels.h. */
#include "kernels/near.h"
#include "kernels/set.h"

#include <arm_neon.h>
#include <math.h>
#include <string.h>

struct lanes16 {
    float32x4_t part[4];
};

static float reduce(struct lanes16 lanes)
{
    float32x4_t low = vaddq_f32(lanes.part[0], lanes.part[2]);
    float32x4_t high = vaddq_f32(lanes.part[1], lanes.part[3]);
    float32x4_t sum4 = vaddq_f32(low, high);
    float32x2_t sum2 = vadd_f32(vget_low_f32(sum4), vget_high_f32(sum4));
    return vget_lane_f32(sum2, 0) + vget_lane_f32(sum2, 1);
}

static void dot_step(struct lanes16 *lanes, const float *a, const float *b)
{
    for (size_t part = 0; part < 4; part++)
        lanes->part[part] = vaddq_f32(lanes->part[part],
                                      vmulq_f32(vld1q_f32(a + 4 * part), vld1q_f32(b + 4 * part)));
}

static void l2sq_step(struct lanes16 *lanes, const float *a, const float *b)
{
    for (size_t part = 0; part < 4; part++) {
        float32x4_t difference = vsubq_f32(vld1q_f32(a + 4 * part), vld1q_f32(b + 4 * part));
        lanes->part[part] = vaddq_f32(lanes->part[part], vmulq_f32(difference, difference));
    }
}

static float sum_f32(const float *a, const float *b, size_t n,
                     void (*step)(struct lanes16 *, const float *, const float *))
{
    struct lanes16 lanes = {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        step(&lanes, a + i, b + i);
    if (i < n) {
        float rest_a[16] = {0}, rest_b[16] = {0};
        memcpy(rest_a, a + i, (n - i) * sizeof *a);
        memcpy(rest_b, b + i, (n - i) * sizeof *b);
        step(&lanes, rest_a, rest_b);
    }
    return reduce(lanes);
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    return sum_f32(a, b, n, dot_step);
}

static float l2sq_f32(const float *a, const float *b, size_t n)
{
    return sum_f32(a, b, n, l2sq_step);
}

struct lanes8 {
    float64x2_t part[4];
};

static void dot_f64_step(struct lanes8 *lanes, const float *a, const float *b)
{
    for (size_t part = 0; part < 4; part++)
        lanes->part[part] =
            vaddq_f64(lanes->part[part], vmulq_f64(vcvt_f64_f32(vld1_f32(a + 2 * part)),
                                                   vcvt_f64_f32(vld1_f32(b + 2 * part))));
}

static void l2sq_f64_step(struct lanes8 *lanes, const float *a, const float *b)
{
    for (size_t part = 0; part < 4; part++) {
        float64x2_t difference =
            vsubq_f64(vcvt_f64_f32(vld1_f32(a + 2 * part)), vcvt_f64_f32(vld1_f32(b + 2 * part)));
        lanes->part[part] = vaddq_f64(lanes->part[part], vmulq_f64(difference, difference));
    }
}

static double sum_f64(const float *a, const float *b, size_t n,
                      void (*step)(struct lanes8 *, const float *, const float *))
{
    struct lanes8 lanes = {{vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)}};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        step(&lanes, a + i, b + i);
    if (i < n) {
        float rest_a[8] = {0}, rest_b[8] = {0};
        memcpy(rest_a, a + i, (n - i) * sizeof *a);
        memcpy(rest_b, b + i, (n - i) * sizeof *b);
        step(&lanes, rest_a, rest_b);
    }
    float64x2_t low = vaddq_f64(lanes.part[0], lanes.part[2]);
    float64x2_t high = vaddq_f64(lanes.part[1], lanes.part[3]);
    float64x2_t sum2 = vaddq_f64(low, high);
    return vgetq_lane_f64(sum2, 0) + vgetq_lane_f64(sum2, 1);
}

static double dot_f64(const float *a, const float *b, size_t n)
{
    return sum_f64(a, b, n, dot_f64_step);
}

static double dot_norm_f64(const float *a, const float *b, size_t n, double *b_norm_sq)
{
    *b_norm_sq = dot_f64(b, b, n);
    return dot_f64(a, b, n);
}

static double l2sq_f64(const float *a, const float *b, size_t n)
{
    return sum_f64(a, b, n, l2sq_f64_step);
}

static int32_t dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < n; i += 16) {
        int8_t rest_a[16] = {0}, rest_b[16] = {0};
        const int8_t *at_a = a + i, *at_b = b + i;
        if (n - i < 16) {
            memcpy(rest_a, at_a, n - i);
            memcpy(rest_b, at_b, n - i);
            at_a = rest_a;
            at_b = rest_b;
        }
        int8x16_t a16 = vld1q_s8(at_a), b16 = vld1q_s8(at_b);
        int16x8_t products = vmull_s8(vget_low_s8(a16), vget_low_s8(b16));
        products = vmlal_s8(products, vget_high_s8(a16), vget_high_s8(b16)); /* 2 x 127 x 127 */
        sum = vpadalq_s16(sum, products);
    }
    return vaddvq_s32(sum);
}

static int32_t l2sq_s8(const int8_t *a, const int8_t *b, size_t n)
{
    int32x4_t sum = vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        int16x8_t difference = vsubl_s8(vld1_s8(a + i), vld1_s8(b + i));
        sum = vmlal_s16(sum, vget_low_s16(difference), vget_low_s16(difference));
        sum = vmlal_s16(sum, vget_high_s16(difference), vget_high_s16(difference));
    }
    return vaddvq_s32(sum) + sk_kernels_scalar.l2sq_s8(a + i, b + i, n - i);
}

static int32_t dot_s16_s8(const int16_t *a, const int8_t *b, size_t n)
{
    int32x4_t sum = vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        int16x8_t a8 = vld1q_s16(a + i), b8 = vmovl_s8(vld1_s8(b + i));
        sum = vmlal_s16(sum, vget_low_s16(a8), vget_low_s16(b8));
        sum = vmlal_s16(sum, vget_high_s16(a8), vget_high_s16(b8));
    }
    return vaddvq_s32(sum) + sk_kernels_scalar.dot_s16_s8(a + i, b + i, n - i);
}

/* Per block an int16 lane takes 8 products u4 x s8 (15,240 at most): widen every 2 blocks. */
static int16x8_t dot_u4_block(int16x8_t narrow, const uint8_t *codes, const int8_t *b)
{
    for (size_t half = 0; half < 2; half++) {
        uint8x16_t pairs = vld1q_u8(codes + 16 * half);
        int8x16_t low = vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15)));
        int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4));
        int8x16_t b_low = vld1q_s8(b + 16 * half), b_high = vld1q_s8(b + 32 + 16 * half);
        narrow = vmlal_s8(narrow, vget_low_s8(low), vget_low_s8(b_low));
        narrow = vmlal_s8(narrow, vget_high_s8(low), vget_high_s8(b_low));
        narrow = vmlal_s8(narrow, vget_low_s8(high), vget_low_s8(b_high));
        narrow = vmlal_s8(narrow, vget_high_s8(high), vget_high_s8(b_high));
    }
    return narrow;
}

static int32_t dot_u4_s8(const uint8_t *codes, const int8_t *b, size_t n)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < n; i += 128) {
        int16x8_t narrow = dot_u4_block(vdupq_n_s16(0), codes + i / 2, b + i);
        if (i + 64 < n)
            narrow = dot_u4_block(narrow, codes + i / 2 + 32, b + i + 64);
        sum = vpadalq_s16(sum, narrow);
    }
    return vaddvq_s32(sum);
}

static void dots_u4_s8(const uint8_t *codes, const uint32_t *rows, size_t count, const int8_t *b,
                       size_t n, int32_t *out)
{
    for (size_t i = 0; i < count; i++) {
        sk_prefetch_row(codes, n / 2, rows, count, i + SK_ROWS_AHEAD);
        out[i] = dot_u4_s8(codes + rows[i] * (n / 2), b, n);
    }
}

/* An int16 lane takes two elements of at most 127 a step and holds 129 steps: widened every 64. */
static int32_t dot_u1_s8(const uint8_t *bits, const int8_t *b, size_t n)
{
    static const uint8_t bit_of[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bit = vld1q_u8(bit_of);
    int32x4_t sum = vdupq_n_s32(0);
    while (n > 0) {
        int16x8_t narrow = vdupq_n_s16(0);
        const size_t run = n < 1024 ? n : 1024;
        for (size_t i = 0; i < run; i += 16) {
            uint8x16_t at = vcombine_u8(vdup_n_u8(bits[i / 8]), vdup_n_u8(bits[i / 8 + 1]));
            int8x16_t chosen = vandq_s8(vreinterpretq_s8_u8(vtstq_u8(at, bit)), vld1q_s8(b + i));
            narrow = vpadalq_s8(narrow, chosen);
        }
        sum = vpadalq_s16(sum, narrow);
        bits += run / 8;
        b += run;
        n -= run;
    }
    return vaddvq_s32(sum);
}

static void dots_u1_s8(const uint8_t *bits, size_t stride, const uint32_t *rows, size_t count,
                       const int8_t *b, size_t n, int32_t *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = dot_u1_s8(bits + rows[i] * stride, b, n);
}

static void fht_f32(float *x, size_t n)
{
    if (n < 4) {
        sk_kernels_scalar.fht_f32(x, n);
        return;
    }
    for (size_t i = 0; i < n; i += 4)
        sk_kernels_scalar.fht_f32(x + i, 4);
    for (size_t h = 4; h < n; h *= 2)
        for (size_t block = 0; block < n; block += 2 * h)
            for (size_t i = block; i < block + h; i += 4) {
                float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + h);
                vst1q_f32(x + i, vaddq_f32(a, b));
                vst1q_f32(x + i + h, vsubq_f32(a, b));
            }
}

static float max_abs_f32(const float *x, size_t n)
{
    float32x4_t max4 = vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        max4 = vmaxq_f32(max4, vabsq_f32(vld1q_f32(x + i)));
    float max = vmaxvq_f32(max4);
    for (; i < n; i++)
        if (fabsf(x[i]) > max)
            max = fabsf(x[i]);
    return max;
}

static void scale_f32(float *x, float factor, size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), factor));
    for (; i < n; i++)
        x[i] *= factor;
}

static void flip_signs_f32(float *x, const uint32_t *bits, size_t n)
{
    static const int32_t shifts[4] = {31, 30, 29, 28};
    const int32x4_t shift4 = vld1q_s32(shifts);
    for (size_t i = 0; i < n; i += 4) {
        uint32x4_t word = vdupq_n_u32(bits[i / 32] >> i % 32);
        uint32x4_t sign = vandq_u32(vshlq_u32(word, shift4), vdupq_n_u32(0x80000000U));
        vst1q_f32(x + i,
                  vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), sign)));
    }
}

static int16x4_t quantise4(const float *x, float scale, float shift, float low, float high)
{
    float32x4_t scaled = vaddq_f32(vmulq_n_f32(vld1q_f32(x), scale), vdupq_n_f32(shift));
    return vmovn_s32(
        vcvtnq_s32_f32(vminq_f32(vmaxq_f32(scaled, vdupq_n_f32(low)), vdupq_n_f32(high))));
}

static int8x8_t quantise8(const float *x, float scale, float shift, float low, float high)
{
    return vmovn_s16(vcombine_s16(quantise4(x, scale, shift, low, high),
                                  quantise4(x + 4, scale, shift, low, high)));
}

static void quantise_s8(const float *x, size_t n, float scale, int limit, int8_t *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        vst1_s8(out + i, quantise8(x + i, scale, 0, (float)-limit, (float)limit));
    if (i < n)
        sk_kernels_scalar.quantise_s8(x + i, n - i, scale, limit, out + i);
}

static void quantise_u4(const float *x, size_t n, float scale, uint8_t *codes)
{
    for (size_t block = 0; block < n; block += 64)
        for (size_t j = 0; j < 32; j += 8) {
            uint8x8_t low = vreinterpret_u8_s8(quantise8(x + block + j, scale, 7.5F, 0, 15));
            uint8x8_t high = vreinterpret_u8_s8(quantise8(x + block + 32 + j, scale, 7.5F, 0, 15));
            vst1_u8(codes + block / 2 + j, vorr_u8(low, vshl_n_u8(high, 4)));
        }
}

static void scan_u4x32(const uint8_t *codes, const uint8_t *luts, size_t segments, uint16_t *out)
{
    uint16x8_t sum[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
    for (size_t segment = 0; segment < segments; segment += 2) {
        const uint8x16_t lut0 = vld1q_u8(luts + segment * 16);
        const uint8x16_t lut1 = vld1q_u8(luts + segment * 16 + 16);
        for (size_t half = 0; half < 2; half++) {
            uint8x16_t pairs = vld1q_u8(codes + segment * 16 + half * 16);
            uint8x16_t low = vqtbl1q_u8(lut0, vandq_u8(pairs, vdupq_n_u8(15)));
            uint8x16_t high = vqtbl1q_u8(lut1, vshrq_n_u8(pairs, 4));
            uint16x8_t *at = sum + 2 * half;
            at[0] = vaddq_u16(at[0], vaddl_u8(vget_low_u8(low), vget_low_u8(high)));
            at[1] = vaddq_u16(at[1], vaddl_high_u8(low, high));
        }
    }
    for (size_t part = 0; part < 4; part++)
        vst1q_u16(out + 8 * part, sum[part]);
}

/* Four rows at a time: sixteen sums keep the adders busy while a column is loaded once. */
static void dots_f32x16(const float *rows, size_t count, const float *columns, size_t n, float *out)
{
    for (size_t row = 0; row < count; row += 4) {
        const float *at[4];
        float32x4_t sum[4][4];
        for (size_t r = 0; r < 4; r++) { /* past the end the last row is worked on again */
            at[r] = rows + (row + r < count ? row + r : count - 1) * n;
            for (size_t part = 0; part < 4; part++)
                sum[r][part] = vdupq_n_f32(0);
        }
        for (size_t i = 0; i < n; i++)
            for (size_t part = 0; part < 4; part++) {
                float32x4_t column = vld1q_f32(columns + i * 16 + part * 4);
                for (size_t r = 0; r < 4; r++)
                    sum[r][part] = vaddq_f32(sum[r][part], vmulq_n_f32(column, at[r][i]));
            }
        for (size_t r = 0; r < 4 && row + r < count; r++)
            for (size_t part = 0; part < 4; part++)
                vst1q_f32(out + (row + r) * 16 + part * 4, sum[r][part]);
    }
}

/* Two rows at a time; the two elements of a pair are taken apart as they are loaded. */
static void dots_s16x16_s8(const int16_t *queries, const int8_t *rows, size_t stride, size_t count,
                           size_t n, int32_t *out)
{
    for (size_t row = 0; row < count; row += 2) {
        const int8_t *at[2] = {rows + row * stride,
                               rows + (row + 1 < count ? row + 1 : row) * stride};
        int32x4_t sum[2][4];
        for (size_t part = 0; part < 4; part++)
            sum[0][part] = sum[1][part] = vdupq_n_s32(0);
        for (size_t i = 0; i < n; i += 2)
            for (size_t half = 0; half < 2; half++) {
                int16x8x2_t query = vld2q_s16(queries + i * 16 + half * 16);
                for (size_t r = 0; r < 2; r++)
                    for (size_t which = 0; which < 2; which++) {
                        int32x4_t *to = sum[r] + 2 * half;
                        int16_t x = at[r][i + which];
                        to[0] = vmlal_n_s16(to[0], vget_low_s16(query.val[which]), x);
                        to[1] = vmlal_n_s16(to[1], vget_high_s16(query.val[which]), x);
                    }
            }
        for (size_t r = 0; r < 2 && row + r < count; r++)
            for (size_t part = 0; part < 4; part++)
                vst1q_s32(out + (row + r) * 16 + part * 4, sum[r][part]);
    }
}

SK_NEAR_PORTABLE

const struct sk_kernels sk_kernels_neon = {
    .isa = "neon",
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
