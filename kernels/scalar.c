/* The oracle: what every other set must return, bit for bit. Compiled without vectorisation. */
#include "kernels/near.h"
#include "kernels/set.h"

#include <math.h>
#include <stdlib.h>

enum { LANES = 16 };

static float reduce(float lanes[LANES])
{
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    float lanes[LANES] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % LANES] += a[i] * b[i];
    return reduce(lanes);
}

static float l2sq_f32(const float *a, const float *b, size_t n)
{
    float lanes[LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        float difference = a[i] - b[i];
        lanes[i % LANES] += difference * difference;
    }
    return reduce(lanes);
}

static double reduce_f64(double lanes[8])
{
    for (size_t half = 4; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static double dot_f64(const float *a, const float *b, size_t n)
{
    double lanes[8] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 8] += (double)a[i] * (double)b[i];
    return reduce_f64(lanes);
}

static double dot_norm_f64(const float *a, const float *b, size_t n, double *b_norm_sq)
{
    *b_norm_sq = dot_f64(b, b, n);
    return dot_f64(a, b, n);
}

static double l2sq_f64(const float *a, const float *b, size_t n)
{
    double lanes[8] = {0};
    for (size_t i = 0; i < n; i++) {
        double difference = (double)a[i] - (double)b[i];
        lanes[i % 8] += difference * difference;
    }
    return reduce_f64(lanes);
}

static int32_t dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (int32_t)a[i] * b[i];
    return sum;
}

static int32_t l2sq_s8(const int8_t *a, const int8_t *b, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t difference = (int32_t)a[i] - b[i];
        sum += difference * difference;
    }
    return sum;
}

static int32_t dot_s16_s8(const int16_t *a, const int8_t *b, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (int32_t)a[i] * b[i];
    return sum;
}

static int32_t dot_u4_s8(const uint8_t *codes, const int8_t *b, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        size_t in_block = i % 64;
        uint8_t pair = codes[i / 64 * 32 + in_block % 32];
        sum += (int32_t)(in_block < 32 ? pair & 15 : pair >> 4) * b[i];
    }
    return sum;
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
    for (size_t i = 0; i < count; i++) {
        const uint8_t *row = bits + rows[i] * stride;
        out[i] = 0;
        for (size_t j = 0; j < n; j++)
            if ((row[j / 8] >> j % 8 & 1) != 0)
                out[i] += b[j];
    }
}

static void fht_f32(float *x, size_t n)
{
    for (size_t h = 1; h < n; h *= 2)
        for (size_t block = 0; block < n; block += 2 * h)
            for (size_t i = block; i < block + h; i++) {
                float sum = x[i] + x[i + h];
                x[i + h] = x[i] - x[i + h];
                x[i] = sum;
            }
}

static float max_abs_f32(const float *x, size_t n)
{
    float max = 0;
    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) > max)
            max = fabsf(x[i]);
    return max;
}

static void scale_f32(float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void flip_signs_f32(float *x, const uint32_t *bits, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((bits[i / 32] >> i % 32 & 1) != 0)
            x[i] = -x[i];
}

static float clamp(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static void quantise_s8(const float *x, size_t n, float scale, int limit, int8_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (int8_t)lrintf(clamp(x[i] * scale, (float)-limit, (float)limit));
}

static void quantise_u4(const float *x, size_t n, float scale, uint8_t *codes)
{
    for (size_t i = 0; i < n; i++) {
        size_t in_block = i % 64;
        uint8_t *pair = &codes[i / 64 * 32 + in_block % 32];
        uint8_t code = (uint8_t)lrintf(clamp(x[i] * scale + 7.5F, 0, 15));
        if (in_block < 32)
            *pair = code;
        else
            *pair = (uint8_t)(*pair | code << 4);
    }
}

static void scan_u4x32(const uint8_t *codes, const uint8_t *luts, size_t segments, uint16_t *out)
{
    for (size_t k = 0; k < 32; k++) {
        uint32_t sum = 0;
        for (size_t segment = 0; segment < segments; segment += 2) {
            uint8_t pair = codes[segment / 2 * 32 + k];
            sum += luts[segment * 16 + (pair & 15)];
            sum += luts[(segment + 1) * 16 + (pair >> 4)];
        }
        out[k] = (uint16_t)sum;
    }
}

static void dots_f32x16(const float *rows, size_t count, const float *columns, size_t n, float *out)
{
    for (size_t row = 0; row < count; row++)
        for (size_t lane = 0; lane < LANES; lane++) {
            float sum = 0;
            for (size_t i = 0; i < n; i++)
                sum += rows[row * n + i] * columns[i * LANES + lane];
            out[row * LANES + lane] = sum;
        }
}

static void dots_s16x16_s8(const int16_t *queries, const int8_t *rows, size_t stride, size_t count,
                           size_t n, int32_t *out)
{
    for (size_t row = 0; row < count; row++)
        for (size_t lane = 0; lane < LANES; lane++) {
            int32_t sum = 0;
            for (size_t i = 0; i < n; i++)
                sum += (int32_t)queries[(i / 2 * LANES + lane) * 2 + i % 2] * rows[row * stride + i];
            out[row * LANES + lane] = sum;
        }
}

SK_NEAR_PORTABLE

const struct sk_kernels sk_kernels_scalar = {
    .isa = "scalar",
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
