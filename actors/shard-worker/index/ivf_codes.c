/* Vectors to codes and back, and the distances that codes give. */
#include "actors/shard-worker/index/ivf.h"

#include <math.h>
#include <stdlib.h>

static const float NORM_TINY = 1e-30F; /* below, a residual counts as none */
static const float SCALE_MAX = 1e18F;
enum { PLANE_MAX = 127 };

/* The 16 points with the least mean squared error for normally distributed values of deviation 1, by
 * dimensions of a segment (k-means over 300,000 draws; errors of a dimension 0.010, 0.107, 0.341, 0.602). */
static const float POINTS_1[SK_IVF_POINTS * 1] = {
    -2.7691F, -2.1105F, -1.6578F, -1.3063F, -1.0056F, -0.7379F, -0.4873F, -0.2459F,
    -0.0076F, 0.2349F, 0.4895F, 0.7667F, 1.0781F, 1.4515F, 1.9154F, 2.5930F};
static const float POINTS_2[SK_IVF_POINTS * 2] = {
    -1.8455F, 0.7492F, -1.7885F, -0.5635F, -0.9771F, -1.5873F, -0.8867F, 1.6307F,
    -0.8853F, 0.3481F, -0.7051F, -0.5492F, -0.1137F, 0.8689F, 0.0036F, -0.0040F,
    0.1280F, -0.9347F, 0.2532F, -1.9625F, 0.4091F, 1.8003F, 0.7688F, 0.5761F,
    0.8375F, -0.3408F, 1.3578F, -1.2721F, 1.5690F, 1.2438F, 1.8858F, -0.0360F};
static const float POINTS_4[SK_IVF_POINTS * 4] = {
    -1.2780F, -0.8014F, 0.7560F, -0.0191F, -1.1213F, 0.9459F, -0.8026F, -0.3071F,
    -1.0139F, -0.1514F, -0.5063F, 1.2793F, -0.8648F, 0.9930F, 1.0102F, 0.3720F,
    -0.8303F, -0.9381F, -1.0180F, -0.5841F, -0.6545F, 0.2633F, 0.4573F, -1.4985F,
    -0.0028F, 0.0075F, 0.0070F, -0.0215F, 0.2369F, -0.5726F, 1.0597F, 1.1782F,
    0.3725F, -1.3702F, 0.6370F, -0.6975F, 0.4028F, 0.3259F, -1.5922F, 0.3057F,
    0.4559F, -1.2859F, -0.6440F, 0.7437F, 0.4620F, 0.9904F, -0.0588F, 1.2790F,
    0.5680F, 1.5116F, -0.1148F, -0.5708F, 0.6735F, 0.3384F, 1.4692F, -0.4494F,
    0.8178F, -0.1876F, -0.6939F, -1.3069F, 1.6893F, -0.0890F, 0.0200F, 0.2306F};
static const float POINTS_8[SK_IVF_POINTS * 8] = {
    -1.1573F, 0.4482F, 0.3724F, -0.6507F, 0.2196F, -0.5009F, -0.6426F, -0.5981F,
    -0.8446F, -0.5056F, -0.5524F, 0.5050F, -0.3903F, 1.0956F, -0.1038F, -0.5652F,
    -0.8333F, -0.6167F, 0.2877F, -0.3745F, 0.2578F, 0.1653F, 0.2237F, 1.3345F,
    -0.4169F, 1.0596F, -0.2384F, -0.1011F, -0.0818F, 0.1321F, 1.3452F, 0.0098F,
    -0.4149F, -0.3296F, 0.5851F, 1.2929F, 0.3801F, -0.6857F, 0.4662F, -0.1896F,
    -0.2627F, -0.4060F, -1.0974F, -0.0423F, -0.7483F, -1.0731F, 0.1333F, 0.0945F,
    -0.1812F, 0.9586F, -0.2412F, 0.8316F, -0.3214F, 0.0632F, -0.8358F, 0.8154F,
    -0.0212F, -0.0429F, 0.9986F, -0.1018F, -1.4708F, -0.0371F, 0.1062F, 0.0056F,
    0.0030F, 0.0587F, -1.0072F, 0.0556F, 1.4647F, -0.0388F, -0.0698F, 0.0254F,
    0.2115F, -0.9367F, 0.2193F, -0.8564F, 0.2681F, -0.0431F, 0.8380F, -0.8238F,
    0.2494F, 0.4205F, 1.1198F, 0.0686F, 0.7303F, 1.0573F, -0.0858F, -0.1572F,
    0.4120F, 0.3364F, -0.5751F, -1.2789F, -0.3783F, 0.7322F, -0.4451F, 0.2133F,
    0.4384F, -1.0803F, 0.2123F, 0.1018F, 0.1284F, -0.1442F, -1.3101F, 0.0050F,
    0.7752F, 0.6375F, -0.3054F, 0.3837F, -0.2212F, -0.1872F, -0.2413F, -1.3337F,
    0.8744F, 0.5042F, 0.5422F, -0.4576F, 0.3675F, -1.1219F, 0.0600F, 0.5623F,
    1.1691F, -0.4553F, -0.3412F, 0.5907F, -0.2244F, 0.5574F, 0.6324F, 0.6219F};

void sk_ivf_codes_init(struct sk_ivf *ivf, uint32_t segment_dims)
{
    const float *points = segment_dims == 1   ? POINTS_1
                          : segment_dims == 2 ? POINTS_2
                          : segment_dims == 4 ? POINTS_4
                                              : POINTS_8;
    ivf->segment_dims = segment_dims;
    for (uint32_t j = 0; j < SK_IVF_POINTS; j++) {
        float norm_sq = 0;
        for (uint32_t i = 0; i < segment_dims; i++) {
            ivf->points[i][j] = points[j * segment_dims + i];
            norm_sq += ivf->points[i][j] * ivf->points[i][j];
        }
        ivf->point_halves[j] = norm_sq / 2;
    }
}

/* ---- centres ---- */

void sk_ivf_centre_set(struct sk_index *self, uint32_t slot, const float *centre)
{
    int8_t *plane = sk_ivf_centre_plane(self, slot);
    const float max = self->kernels->max_abs_f32(centre, self->padded);
    const bool is_tiny = !(max > 1e-18F);
    self->kernels->quantise_s8(centre, self->padded, is_tiny ? 0 : PLANE_MAX / max, PLANE_MAX, plane);
    sk_ivf_centre_measure(self, slot, is_tiny ? 0 : max / PLANE_MAX);
}

void sk_ivf_centre_measure(struct sk_index *self, uint32_t slot, float scale)
{
    const int8_t *plane = sk_ivf_centre_plane(self, slot);
    int64_t sum = 0;
    for (uint32_t i = 0; i < self->padded; i++)
        sum += plane[i] * plane[i];
    *sk_ivf_centre(self, slot) = (struct sk_ivf_centre){scale, scale * scale * (float)sum};
}

bool sk_ivf_centre_is_sound(const struct sk_index *self, const int8_t *plane, float scale)
{
    bool is_sound = scale >= 0 && scale <= SCALE_MAX;
    for (uint32_t i = 0; i < self->padded; i++)
        is_sound = is_sound && plane[i] >= -PLANE_MAX;
    return is_sound;
}

void sk_ivf_centre_get(const struct sk_index *self, uint32_t list, float *out)
{
    if (list == SK_IVF_BUFFER) {
        memset(out, 0, self->padded * sizeof *out);
        return;
    }
    const int8_t *plane = sk_ivf_centre_plane(self, list);
    const float scale = sk_ivf_centre(self, list)->scale;
    for (uint32_t i = 0; i < self->padded; i++)
        out[i] = scale * (float)plane[i];
}

float sk_ivf_centre_dot(const struct sk_index *self, const struct sk_prepared *query, uint32_t slot)
{
    enum { RUN = 4096 };
    const int8_t *plane = sk_ivf_centre_plane(self, slot);
    float sum = 0;
    for (uint32_t at = 0; at < self->padded; at += RUN) {
        const uint32_t count = self->padded - at < RUN ? self->padded - at : RUN;
        sum += (float)self->kernels->dot_s16_s8(query->wide + at, plane + at, count);
    }
    return sum * query->wide_scale * sk_ivf_centre(self, slot)->scale;
}

uint32_t sk_ivf_nearest(const struct sk_index *self, const struct sk_prepared *prepared)
{
    const struct sk_ivf_directory *directory = sk_ivf_directory_now(self->ivf);
    uint32_t nearest = SK_IVF_NO_LIST;
    float best = INFINITY;
    for (uint32_t slot = 0; slot < directory->slot_count; slot++) {
        if (!sk_ivf_has_list(directory, slot))
            continue;
        const float distance =
            sk_ivf_centre(self, slot)->norm_sq - 2 * sk_ivf_centre_dot(self, prepared, slot);
        if (distance < best || nearest == SK_IVF_NO_LIST) {
            best = distance;
            nearest = slot;
        }
    }
    return nearest;
}

/* ---- rows ---- */

/* Rounded to the nearest of the numbers that have 8 bits of mantissa. */
static uint16_t to_half(float x)
{
    union {
        float f;
        uint32_t u;
    } bits = {x};
    return (uint16_t)((bits.u + 0x8000U) >> 16);
}

static void encode_plain(struct sk_index *self, uint8_t *block, uint32_t at, const float *residual,
                         const float *centre)
{
    struct sk_ivf *ivf = self->ivf;
    const struct sk_kernels *kernels = self->kernels;
    int8_t *plane = (int8_t *)block + (size_t)at * self->padded;
    const float max = kernels->max_abs_f32(residual, self->padded);
    const bool is_tiny = !(max > 1e-18F);
    const float scale = is_tiny ? 0 : max / PLANE_MAX;
    kernels->quantise_s8(residual, self->padded, is_tiny ? 0 : PLANE_MAX / max, PLANE_MAX, plane);
    double error_sq = 0;
    for (uint32_t i = 0; i < self->padded; i++) {
        const double left = (double)residual[i] - (double)scale * plane[i];
        error_sq += left * left;
    }
    sk_ivf_scales(ivf, block)[at] = scale;
    sk_ivf_errors(ivf, block)[at] = (float)sqrt(error_sq) * 1.00001F;
    sk_ivf_adds(ivf, SK_IVF_PLAIN, block)[at] =
        (float)(kernels->dot_f64(residual, residual, self->padded) +
                2 * kernels->dot_f64(residual, centre, self->padded));
}

static uint32_t nearest_point(const struct sk_ivf *ivf, const float *x, float inverse)
{
    float scores[SK_IVF_POINTS];
    uint32_t best = 0;
    for (uint32_t j = 0; j < SK_IVF_POINTS; j++)
        scores[j] = -ivf->point_halves[j];
    for (uint32_t i = 0; i < ivf->segment_dims; i++) {
        const float value = x[i] * inverse;
        for (uint32_t j = 0; j < SK_IVF_POINTS; j++)
            scores[j] += value * ivf->points[i][j];
    }
    for (uint32_t j = 1; j < SK_IVF_POINTS; j++)
        if (scores[j] > scores[best])
            best = j;
    return best;
}

/* <q, x> is estimated as multiplier x <q, code>, so that the residual's own product comes out exact. */
static void encode_coded(struct sk_index *self, uint8_t *block, uint32_t at, const float *residual,
                         const float *centre)
{
    struct sk_ivf *ivf = self->ivf;
    const uint32_t dims = ivf->segment_dims;
    const float norm_sq = (float)self->kernels->dot_f64(residual, residual, self->padded);
    const float inverse = norm_sq > NORM_TINY ? 1 / sqrtf(norm_sq / (float)self->padded) : 0;
    uint32_t pair = 0;
    for (uint32_t segment = 0; segment < ivf->segments; segment++) {
        const uint32_t point = nearest_point(ivf, residual + segment * dims, inverse);
        for (uint32_t i = 0; i < dims; i++)
            ivf->code[segment * dims + i] = ivf->points[i][point];
        if (segment % 2 == 0)
            pair = point;
        else
            block[segment / 2 * SK_IVF_BLOCK + at] = (uint8_t)(pair | point << 4);
    }
    const float dot = self->kernels->dot_f32(residual, ivf->code, self->padded);
    const uint16_t half = dot > 0 && norm_sq > NORM_TINY ? to_half(2 * norm_sq / dot) : 0;
    sk_ivf_halves(ivf, block)[at] = half;
    sk_ivf_adds(ivf, SK_IVF_CODED, block)[at] =
        norm_sq + sk_ivf_from_half(half) * self->kernels->dot_f32(centre, ivf->code, self->padded);
}

void sk_ivf_encode(struct sk_index *self, enum sk_ivf_form form, uint8_t *block, uint32_t at, uint32_t row,
                   const float *rotated, const float *centre)
{
    float *residual = self->ivf->vector;
    for (uint32_t i = 0; i < self->padded; i++)
        residual[i] = rotated[i] - centre[i];
    if (form == SK_IVF_PLAIN)
        encode_plain(self, block, at, residual, centre);
    else
        encode_coded(self, block, at, residual, centre);
    sk_ivf_rows(self->ivf, form, block)[at] = row;
}

void sk_ivf_decode(const struct sk_index *self, enum sk_ivf_form form, const uint8_t *block, uint32_t at,
                   const float *centre, float *out)
{
    const struct sk_ivf *ivf = self->ivf;
    const uint32_t dims = ivf->segment_dims;
    if (form == SK_IVF_PLAIN) {
        const int8_t *plane = (const int8_t *)block + (size_t)at * self->padded;
        const float scale = sk_ivf_scales(ivf, block)[at];
        for (uint32_t i = 0; i < self->padded; i++)
            out[i] = centre[i] + scale * (float)plane[i];
        return;
    }
    /* the best point of the code's direction is shorter than the one that makes products unbiased */
    static const float shares[] = {1, 0.9903F, 0.8931F, 0, 0.6589F, 0, 0, 0, 0.3982F};
    const float scale = sk_ivf_from_half(sk_ivf_halves(ivf, block)[at]) / 2 * shares[dims];
    for (uint32_t segment = 0; segment < ivf->segments; segment++) {
        const uint8_t pair = block[segment / 2 * SK_IVF_BLOCK + at];
        const uint32_t point = segment % 2 == 0 ? pair & 15U : pair >> 4;
        for (uint32_t i = 0; i < dims; i++)
            out[segment * dims + i] = centre[segment * dims + i] + scale * ivf->points[i][point];
    }
}

bool sk_ivf_can_split(const struct sk_index *self)
{
    return self->ivf->list_form == SK_IVF_PLAIN || self->source.fetch != NULL;
}

void sk_ivf_vector(struct sk_index *self, enum sk_ivf_form form, const uint8_t *block, uint32_t at,
                   const float *centre, float *out)
{
    const uint32_t row = sk_ivf_rows(self->ivf, form, block)[at];
    float *raw = self->scratch.raw;
    if (form == SK_IVF_CODED && self->source.fetch != NULL &&
        self->source.fetch(self->source.impl, row, raw) &&
        sk_vector_is_finite(raw, self->params.dim)) {
        sk_rotate(self, raw, out);
        return;
    }
    sk_ivf_decode(self, form, block, at, centre, out);
}

/* ---- queries ---- */

bool sk_ivf_scratch_init(struct sk_scratch *self, const struct sk_index *index)
{
    const size_t count = (size_t)index->ivf->segments * SK_IVF_POINTS;
    self->ivf_luts = malloc(count);
    self->ivf_tables = malloc(count * sizeof *self->ivf_tables);
    return self->ivf_luts != NULL && self->ivf_tables != NULL;
}

void sk_ivf_tables_make(const struct sk_index *self, const float *query, struct sk_scratch *scratch)
{
    const struct sk_ivf *ivf = self->ivf;
    float *tables = scratch->ivf_tables;
    float range_max = 0, bias = 0;
    for (uint32_t segment = 0; segment < ivf->segments; segment++) {
        float *table = tables + (size_t)segment * SK_IVF_POINTS;
        const float *x = query + segment * ivf->segment_dims;
        for (uint32_t j = 0; j < SK_IVF_POINTS; j++)
            table[j] = 0;
        for (uint32_t i = 0; i < ivf->segment_dims; i++)
            for (uint32_t j = 0; j < SK_IVF_POINTS; j++)
                table[j] += x[i] * ivf->points[i][j];
        float low = table[0], high = table[0];
        for (uint32_t j = 1; j < SK_IVF_POINTS; j++) {
            low = table[j] < low ? table[j] : low;
            high = table[j] > high ? table[j] : high;
        }
        for (uint32_t j = 0; j < SK_IVF_POINTS; j++)
            table[j] -= low;
        range_max = high - low > range_max ? high - low : range_max;
        bias += low;
    }
    const float inverse = range_max > 1e-30F ? 255 / range_max : 0;
    for (uint32_t i = 0; i < ivf->segments * SK_IVF_POINTS; i++) {
        const int32_t value = (int32_t)(tables[i] * inverse + 0.5F);
        scratch->ivf_luts[i] = (uint8_t)(value > 255 ? 255 : value);
    }
    scratch->ivf_step = range_max > 1e-30F ? range_max / 255 : 0;
    scratch->ivf_bias = bias;
}

/* Loops over 32 with nothing that could overlap, so that the compiler uses vectors. */
static void distances_of(const float *restrict dots, const float *restrict adds,
                         const uint16_t *restrict halves, float add_weight, float base,
                         float *restrict out)
{
    uint32_t bits[SK_IVF_BLOCK];
    float scales[SK_IVF_BLOCK];
    for (uint32_t i = 0; i < SK_IVF_BLOCK; i++)
        bits[i] = (uint32_t)halves[i] << 16;
    memcpy(scales, bits, sizeof scales);
    for (uint32_t i = 0; i < SK_IVF_BLOCK; i++)
        out[i] = base + add_weight * adds[i] - scales[i] * dots[i];
}

static void dots_of(const uint16_t *restrict sums, float bias, float step, float *restrict out)
{
    for (uint32_t i = 0; i < SK_IVF_BLOCK; i++)
        out[i] = bias + step * (float)(int32_t)sums[i];
}

void sk_ivf_estimate(const struct sk_index *self, const struct sk_scratch *scratch, const uint8_t *block,
                     float add_weight, float base, float *out)
{
    const struct sk_ivf *ivf = self->ivf;
    float dots[SK_IVF_BLOCK];
    if (ivf->segments <= SK_SCAN_SEGMENTS_MAX) {
        uint16_t sums[SK_IVF_BLOCK];
        self->kernels->scan_u4x32(block, scratch->ivf_luts, ivf->segments, sums);
        dots_of(sums, scratch->ivf_bias, scratch->ivf_step, dots);
    } else {
        uint32_t sums[SK_IVF_BLOCK];
        sk_scan_u4x32(self->kernels, block, scratch->ivf_luts, ivf->segments, sums);
        for (uint32_t i = 0; i < SK_IVF_BLOCK; i++)
            dots[i] = scratch->ivf_bias + scratch->ivf_step * (float)(int32_t)sums[i];
    }
    distances_of(dots, sk_ivf_adds(ivf, SK_IVF_CODED, block), sk_ivf_halves(ivf, block), add_weight, base,
                 out);
}

float sk_ivf_distance_plain(const struct sk_index *self, const struct sk_prepared *query,
                            const uint8_t *block, uint32_t at, float base, float base_error, float *error)
{
    enum { RUN = 4096 };
    const struct sk_ivf *ivf = self->ivf;
    const int8_t *plane = (const int8_t *)block + (size_t)at * self->padded;
    const float scale = sk_ivf_scales(ivf, block)[at], left = sk_ivf_errors(ivf, block)[at];
    const float add = query->add_weight * sk_ivf_adds(ivf, SK_IVF_PLAIN, block)[at];
    float sum = 0;
    for (uint32_t from = 0; from < self->padded; from += RUN) {
        const uint32_t count = self->padded - from < RUN ? self->padded - from : RUN;
        sum += (float)self->kernels->dot_s16_s8(query->wide + from, plane + from, count);
    }
    const float dot = sum * query->wide_scale * scale;
    /* |<q, r> - <q', r'>| <= |q| |r - r'| + |q - q'| |r'|; an element of r' is at most 127 scales. */
    const float length = scale * PLANE_MAX * sqrtf((float)self->padded);
    *error = 2 * (query->norm * left + query->wide_error * length) + base_error +
             4e-6F * (fabsf(base) + fabsf(add) + query->norm * length);
    return base + add - 2 * dot;
}
