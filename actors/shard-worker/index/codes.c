/* Vectors to codes and distances between them. */
#include "actors/shard-worker/index/internal.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Step of a 16-level uniform quantiser with the least error for normally distributed values, in
 * standard deviations; a rotated vector's elements are close to that. */
static const float STEP_OF_DEVIATION = 0.3352F;
static const float EQUAL_SHARE = 0.05F; /* of the length: rounding alone stays below */
static const float NORM_TINY = 1e-30F; /* below, a vector counts as the centre itself */
/* Added and taken away again, it leaves a float of at most 22 bits rounded to a whole, half to even. */
static const float TO_WHOLE = 0x1.8p23F;
enum { WIDE_MAX = 4095, NARROW_MAX = 127 };

float sk_augmented(const struct sk_index *self, float raw_norm_sq)
{
    float rest = self->max_norm_sq - raw_norm_sq;
    return rest > 0 ? sqrtf(rest) : 0;
}

struct sk_generation *sk_generation_new(const struct sk_index *self, uint32_t number)
{
    struct sk_generation *generation = calloc(1, sizeof *generation);
    if (generation == NULL)
        return NULL;
    generation->number = number;
    generation->mean = calloc(self->padded, sizeof *generation->mean);
    bool is_reserved = generation->mean != NULL;
    for (unsigned part = 0; part < SK_PART_COUNT && is_reserved; part++)
        is_reserved = self->part_bytes[part] == 0 ||
                      sk_region_reserve(&generation->parts[part],
                                        (size_t)self->rows_max * self->part_bytes[part]);
    if (!is_reserved)
        sk_generation_destroy(&generation);
    return generation;
}

void sk_generation_destroy(struct sk_generation **generation)
{
    if (*generation == NULL)
        return;
    for (unsigned part = 0; part < SK_PART_COUNT; part++)
        sk_region_release(&(*generation)->parts[part]);
    free((*generation)->mean);
    free(*generation);
    *generation = NULL;
}

size_t sk_generation_growth(const struct sk_index *self, const struct sk_generation *generation,
                            uint32_t row_count)
{
    size_t growth = 0;
    for (unsigned part = 0; part < SK_PART_COUNT; part++)
        growth += sk_region_growth(&generation->parts[part],
                                   (size_t)row_count * self->part_bytes[part]);
    return growth;
}

size_t sk_generation_committed(const struct sk_generation *generation)
{
    size_t committed = 0;
    for (unsigned part = 0; part < SK_PART_COUNT; part++)
        committed += generation->parts[part].committed;
    return committed;
}

bool sk_generation_commit(struct sk_index *self, struct sk_generation *generation,
                          uint32_t row_count)
{
    const size_t growth = sk_generation_growth(self, generation, row_count);
    if (growth == 0)
        return true;
    for (unsigned part = 0; part < SK_PART_COUNT; part++)
        if (!sk_region_commit(&generation->parts[part],
                              (size_t)row_count * self->part_bytes[part]))
            return false;
    atomic_fetch_add_explicit(&self->memory_bytes, growth, memory_order_relaxed);
    return true;
}

void sk_rotate(const struct sk_index *self, const float *vector, float *out)
{
    const uint32_t dim = self->params.dim;
    memcpy(out, vector, dim * sizeof *out);
    memset(out + dim, 0, (self->padded - dim) * sizeof *out);
    if (self->params.metric == SK_METRIC_COSINE) {
        double norm_sq = self->kernels->dot_f64(out, out, dim);
        if (norm_sq > 0)
            self->kernels->scale_f32(out, (float)(1 / sqrt(norm_sq)), dim);
    }
    sk_rotation_apply(&self->rotation, self->kernels, out);
}

static void centre(const struct sk_index *self, const struct sk_generation *generation, float *x)
{
    for (uint32_t i = 0; i < self->padded; i++)
        x[i] -= generation->mean[i];
}

/* The 4-bit code; returns the factor that makes <q, code - 7.5> an unbiased <q, x>, times 2. */
static float encode_short(const struct sk_index *self, const float *x, float norm_sq, uint8_t *code)
{
    const float step = STEP_OF_DEVIATION * sqrtf(norm_sq / (float)self->padded);
    if (norm_sq < NORM_TINY) {
        memset(code, 0x88, self->code_bytes);
        return 0;
    }
    self->kernels->quantise_u4(x, self->padded, 1 / step, code);
    float lanes[8] = {0};
    for (uint32_t block = 0; block < self->padded; block += 64)
        for (uint32_t j = 0; j < 32; j++) {
            uint8_t pair = code[block / 2 + j];
            lanes[j % 8] += x[block + j] * ((float)(pair & 15) - 7.5F) +
                            x[block + 32 + j] * ((float)(pair >> 4) - 7.5F);
        }
    float dot = 0; /* <x, code - 7.5> */
    for (unsigned lane = 0; lane < 8; lane++)
        dot += lanes[lane];
    return dot > 0 ? 2 * norm_sq / dot : 2 * step;
}

/* The 8-bit code, and what it leaves out. */
static void encode_plane(const struct sk_index *self, struct sk_generation *generation, uint32_t row,
                         const float *x, float error_before, struct sk_factors *factors)
{
    int8_t *plane = sk_plane_of(self, generation, row);
    const float max = self->kernels->max_abs_f32(x, self->padded);
    const bool is_tiny = factors->norm_sq < NORM_TINY;
    const float inverse = is_tiny ? 0 : NARROW_MAX / max;
    factors->plane_scale = is_tiny ? 0 : max / NARROW_MAX;
    self->kernels->quantise_s8(x, self->padded, inverse, NARROW_MAX, plane);
    double error_sq = 0;
    for (uint32_t i = 0; i < self->padded; i++) {
        double left = (double)x[i] - (double)factors->plane_scale * plane[i];
        error_sq += left * left;
    }
    factors->plane_error = (float)sqrt(error_sq) * 1.00001F + error_before;
}

void sk_encode(const struct sk_index *self, struct sk_generation *generation, uint32_t row,
               float *rotated, float raw_norm_sq, float error_before)
{
    const struct sk_kernels *kernels = self->kernels;
    uint8_t *code = NULL; /* without short codes there is no part of them */
    if (self->code_bytes > 0)
        code = generation->parts[SK_PART_CODES].base + (size_t)row * self->code_bytes;
    centre(self, generation, rotated);
    struct sk_factors factors = {.norm_sq = (float)kernels->dot_f64(rotated, rotated, self->padded),
                                 .raw_norm_sq = raw_norm_sq};
    if (sk_has_planes(generation))
        encode_plane(self, generation, row, rotated, error_before, &factors);
    if (self->code_bytes > 0) {
        const struct sk_short_factors short_factors = {
            factors.norm_sq, encode_short(self, rotated, factors.norm_sq, code)};
        memcpy(generation->parts[SK_PART_SHORT_FACTORS].base + row * sizeof short_factors,
               &short_factors, sizeof short_factors);
    }
    if (generation->parts[SK_PART_FACTORS].base != NULL)
        memcpy(generation->parts[SK_PART_FACTORS].base + row * sizeof factors, &factors,
               sizeof factors);
    if (self->part_bytes[SK_PART_SKETCHES] > 0)
        sk_sketch_write(self, generation, row);
}

void sk_decode(const struct sk_index *self, const struct sk_generation *generation, uint32_t row,
               float *out)
{
    if (!sk_has_planes(generation)) {
        sk_bare_decode(self, generation, row, out);
        return;
    }
    const int8_t *plane = sk_plane_of(self, generation, row);
    const float scale = sk_factors_of(generation, row)->plane_scale;
    for (uint32_t i = 0; i < self->padded; i++)
        out[i] = scale * (float)plane[i];
}

void sk_prepare(const struct sk_index *self, struct sk_prepared *out)
{
    const struct sk_kernels *kernels = self->kernels;
    const uint32_t n = self->padded;
    const float max = kernels->max_abs_f32(out->vector, n);
    out->norm_sq = kernels->dot_f32(out->vector, out->vector, n);
    out->norm = sqrtf(out->norm_sq);
    const bool is_tiny = !(max > 1e-18F);
    const float narrow_inverse = is_tiny ? 0 : NARROW_MAX / max;
    const float wide_inverse = is_tiny ? 0 : WIDE_MAX / max;
    out->narrow_scale = is_tiny ? 0 : max / NARROW_MAX;
    out->wide_scale = is_tiny ? 0 : max / WIDE_MAX;
    kernels->quantise_s8(out->vector, n, narrow_inverse, NARROW_MAX, out->narrow);
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += out->narrow[i];
        out->wide[i] = (int16_t)((out->vector[i] * wide_inverse + TO_WHOLE) - TO_WHOLE);
    }
    out->narrow_sum = out->narrow_scale * (float)sum;
    out->narrow_bias = -7.5F * out->narrow_scale * (float)sum;
    /* At most half a step in each element. */
    out->wide_error = 0.501F * out->wide_scale * sqrtf((float)n);
}

/* out->vector is rotated. */
static void prepare_query(const struct sk_index *self, const struct sk_generation *generation,
                          struct sk_prepared *out)
{
    out->is_augmented = false;
    out->add_weight = 1;
    out->offset = 0;
    if (self->params.metric == SK_METRIC_IP) {
        out->add_weight = 0;
        out->offset = self->kernels->dot_f32(out->vector, generation->mean, self->padded);
    } else {
        centre(self, generation, out->vector);
    }
    sk_prepare(self, out);
    if (self->params.metric == SK_METRIC_IP)
        out->norm_sq = 0; /* distances are -2 <q, x>, without lengths */
}

void sk_prepare_query(const struct sk_index *self, const struct sk_generation *generation,
                      const float *vector, struct sk_prepared *out)
{
    sk_rotate(self, vector, out->vector);
    prepare_query(self, generation, out);
}

void sk_prepare_rotated(const struct sk_index *self, const struct sk_generation *generation,
                        const float *rotated, struct sk_prepared *out)
{
    memcpy(out->vector, rotated, self->padded * sizeof *out->vector);
    prepare_query(self, generation, out);
}

void sk_prepare_row(const struct sk_index *self, const struct sk_generation *generation,
                    uint32_t row, struct sk_prepared *out)
{
    if (!sk_has_planes(generation) && sk_bare_is_held(self, generation, row))
        sk_bare_get(self, out->vector);
    else
        sk_decode(self, generation, row, out->vector);
    out->add_weight = 1;
    out->offset = 0;
    out->is_augmented = self->params.metric == SK_METRIC_IP;
    sk_prepare(self, out);
    if (out->is_augmented)
        out->augmented = sk_augmented(self, sk_factors_of(generation, row)->raw_norm_sq);
}

void sk_prefetch_code(const struct sk_index *self, const struct sk_generation *generation,
                      uint32_t row)
{
    if (self->code_bytes > 0) {
        sk_prefetch(sk_near_factors_of(self, generation, row), sizeof(struct sk_short_factors));
        sk_prefetch(sk_code_of(self, generation, row), self->code_bytes);
        return;
    }
    sk_prefetch(sk_factors_of(generation, row), sizeof(struct sk_factors));
    sk_prefetch(sk_plane_of(self, generation, row), self->padded);
}

static float add_augmented(const struct sk_index *self, const struct sk_prepared *query,
                           const struct sk_factors *factors, float distance)
{
    float difference = sk_augmented(self, factors->raw_norm_sq) - query->augmented;
    return distance + difference * difference;
}

float sk_distance_short(const struct sk_index *self, const struct sk_generation *generation,
                        const struct sk_prepared *query, uint32_t row)
{
    float distance = query->norm_sq;
    if (self->code_bytes > 0) {
        const struct sk_short_factors *factors = sk_near_factors_of(self, generation, row);
        int32_t dot = self->kernels->dot_u4_s8(sk_code_of(self, generation, row), query->narrow,
                                               self->padded);
        distance += query->add_weight * factors->norm_sq;
        distance -= factors->multiplier * (query->narrow_scale * (float)dot + query->narrow_bias);
    } else {
        const struct sk_factors *factors = sk_factors_of(generation, row);
        int32_t dot =
            self->kernels->dot_s8(sk_plane_of(self, generation, row), query->narrow, self->padded);
        distance += query->add_weight * factors->norm_sq;
        distance -= 2 * factors->plane_scale * query->narrow_scale * (float)dot;
    }
    return query->is_augmented
               ? add_augmented(self, query, sk_factors_of(generation, row), distance)
               : distance;
}

void sk_distances_short(const struct sk_index *self, const struct sk_generation *generation,
                        const struct sk_prepared *query, const uint32_t *rows, uint32_t count,
                        float *out)
{
    int32_t dots[SK_DEGREE_MAX];
    if (self->code_bytes == 0 || query->is_augmented) {
        for (uint32_t i = 0; i < count; i++) {
            if (i + SK_ROWS_AHEAD < count)
                sk_prefetch_code(self, generation, rows[i + SK_ROWS_AHEAD]);
            out[i] = sk_distance_short(self, generation, query, rows[i]);
        }
        return;
    }
    self->kernels->dots_u4_s8(generation->parts[SK_PART_CODES].base, rows, count, query->narrow,
                              self->padded, dots);
    for (uint32_t i = 0; i < count; i++) {
        const struct sk_short_factors *factors = sk_near_factors_of(self, generation, rows[i]);
        out[i] = query->norm_sq;
        out[i] += query->add_weight * factors->norm_sq;
        out[i] -= factors->multiplier * (query->narrow_scale * (float)dots[i] + query->narrow_bias);
    }
}

float sk_distance_plane(const struct sk_index *self, const struct sk_generation *generation,
                        const struct sk_prepared *query, uint32_t row, float *error)
{
    enum { RUN = 4096 };
    const struct sk_factors *factors = sk_factors_of(generation, row);
    const int8_t *plane = sk_plane_of(self, generation, row);
    float sum = 0;
    for (uint32_t at = 0; at < self->padded; at += RUN) {
        uint32_t count = self->padded - at < RUN ? self->padded - at : RUN;
        sum += (float)self->kernels->dot_s16_s8(query->wide + at, plane + at, count);
    }
    float dot = sum * query->wide_scale * factors->plane_scale;
    float base = query->norm_sq + query->add_weight * factors->norm_sq;
    /* |<q, x> - <q', x'>| <= |q| |x - x'| + |q - q'| |x'|, and float rounding. */
    float length = sqrtf(factors->norm_sq);
    *error = 2 * (query->norm * factors->plane_error +
                  query->wide_error * (length + factors->plane_error)) +
             4e-6F * (base + query->norm * length);
    float distance = base - 2 * dot;
    return query->is_augmented ? add_augmented(self, query, factors, distance) : distance;
}

static bool has_same_code(const struct sk_index *self, const struct sk_generation *generation,
                          uint32_t a, uint32_t b)
{
    if (!sk_has_planes(generation))
        return sk_bare_has_same_code(self, generation, a, b);
    return memcmp(sk_factors_of(generation, a), sk_factors_of(generation, b),
                  sizeof(struct sk_factors)) == 0 &&
           memcmp(sk_plane_of(self, generation, a), sk_plane_of(self, generation, b),
                  self->padded) == 0;
}

static float distance_planes(const struct sk_index *self, const struct sk_generation *generation,
                             uint32_t a, uint32_t b)
{
    const struct sk_factors *of_a = sk_factors_of(generation, a);
    const struct sk_factors *of_b = sk_factors_of(generation, b);
    int32_t dot = self->kernels->dot_s8(sk_plane_of(self, generation, a),
                                        sk_plane_of(self, generation, b), self->padded);
    return of_a->norm_sq + of_b->norm_sq - 2 * of_a->plane_scale * of_b->plane_scale * (float)dot;
}

float sk_distance_rows(const struct sk_index *self, const struct sk_generation *generation,
                       uint32_t a, uint32_t b)
{
    float distance = sk_has_planes(generation) ? distance_planes(self, generation, a, b)
                                               : sk_bare_distance_rows(self, generation, a, b);
    if (self->params.metric == SK_METRIC_IP) {
        float difference = sk_augmented(self, sk_raw_norm_sq_of(generation, a)) -
                           sk_augmented(self, sk_raw_norm_sq_of(generation, b));
        distance += difference * difference;
    }
    /* What the code leaves out of a vector must not part it from its equal. */
    if (distance < EQUAL_SHARE * sk_norm_sq_of(self, generation, a) &&
        has_same_code(self, generation, a, b))
        return 0;
    return distance > 0 ? distance : 0;
}

float sk_score_of(const struct sk_index *self, const struct sk_prepared *query, float distance)
{
    switch (self->params.metric) {
    case SK_METRIC_L2:
        return distance > 0 ? sqrtf(distance) : 0;
    case SK_METRIC_IP:
        return query->offset - distance / 2;
    case SK_METRIC_COSINE: {
        float cosine = 1 - distance / 2;
        return cosine < -1 ? -1 : cosine > 1 ? 1 : cosine;
    }
    }
    return 0;
}

void sk_mean_add(struct sk_index *self, const float *rotated)
{
    for (uint32_t i = 0; i < self->padded; i++)
        self->sum[i] += (double)rotated[i];
    self->sum_count++;
}

/* Looked at whenever the number of inserts has doubled: has the mean moved by more than a tenth of
 * the vectors' spread around it? */
bool sk_mean_wants_renewal(struct sk_index *self)
{
    if (self->sum_count < self->mean_check_at)
        return false;
    self->mean_check_at = self->sum_count * 2;
    const struct sk_generation *generation = sk_generation_now(self);
    const uint32_t row_count = sk_row_count(self);
    double shift_sq = 0, spread = 0, seen = 0;
    for (uint32_t i = 0; i < self->padded; i++) {
        double shift = self->sum[i] / (double)self->sum_count - (double)generation->mean[i];
        shift_sq += shift * shift;
    }
    const uint32_t stride = row_count / 256 + 1;
    for (uint32_t row = 0; row < row_count; row += stride)
        if (sk_state(self, row) == SK_ROW_LIVE) {
            spread += (double)sk_norm_sq_of(self, generation, row);
            seen++;
        }
    return seen > 0 && shift_sq > 0.01 * spread / seen;
}
