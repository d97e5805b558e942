/* Profile memory: rows that have their 4-bit code only ("bare"). What the 8-bit codes are for elsewhere is
 * done from the 4 bits: the survivors of a search go to the owner, who scores them from the vectors he
 * has; links are chosen by distances between 4-bit codes, where the row that is being linked and those
 * that its neighbours' lists are about stand as 8-bit numbers for the time of that. */
#include "actors/shard-worker/index/search.h"

#include <math.h>
#include <stdlib.h>

/* A row as 8-bit numbers: x is about scale x values. Kept from one call to the next, because distances
 * are asked for in runs with one row fixed. Writer only. */
struct sk_bare_row {
    uint32_t row, generation;
    float scale;
    int32_t sum; /* of the values */
    int8_t values[];
};

enum { NARROW_MAX = 127 };
/* Angle between a vector and its 4-bit code, as a tangent: what an estimate leaves out, in lengths. The
 * rest points anywhere, so that an estimate of <q, x> is off by |q| |x| x this / sqrt(dimensions). */
static const float CODE_TANGENT = 0.115F;
/* Rows farther behind the k-th estimate than so many deviations are not worth a read. */
static const float MARGIN = 2.0F;

bool sk_bare_init(struct sk_index *self)
{
    self->bare = malloc(sizeof *self->bare + self->padded);
    if (self->bare == NULL)
        return false;
    self->bare->row = SK_NO_ROW;
    return true;
}

float sk_bare_deviation(const struct sk_index *self, float query_norm, float norm_sq)
{
    return 2 * CODE_TANGENT * query_norm * sqrtf(norm_sq / (float)self->padded);
}

void sk_bare_decode(const struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                    float *out)
{
    const uint8_t *code = sk_code_of(self, generation, row);
    const float scale = sk_short_factors_of(generation, row)->multiplier / 2;
    for (uint32_t block = 0; block < self->padded; block += 64)
        for (uint32_t j = 0; j < 32; j++) {
            const uint8_t pair = code[block / 2 + j];
            out[block + j] = scale * ((float)(pair & 15) - 7.5F);
            out[block + 32 + j] = scale * ((float)(pair >> 4) - 7.5F);
        }
}

void sk_bare_hold(struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                  const float *centred)
{
    struct sk_bare_row *held = self->bare;
    const float max = self->kernels->max_abs_f32(centred, self->padded);
    const bool is_tiny = !(max > 1e-18F);
    held->row = row;
    held->generation = generation->number;
    held->scale = is_tiny ? 0 : max / NARROW_MAX;
    self->kernels->quantise_s8(centred, self->padded, is_tiny ? 0 : NARROW_MAX / max, NARROW_MAX,
                               held->values);
    held->sum = 0;
    for (uint32_t i = 0; i < self->padded; i++)
        held->sum += held->values[i];
}

bool sk_bare_is_held(const struct sk_index *self, const struct sk_generation *generation, uint32_t row)
{
    return self->bare->row == row && self->bare->generation == generation->number;
}

void sk_bare_get(const struct sk_index *self, float *out)
{
    for (uint32_t i = 0; i < self->padded; i++)
        out[i] = self->bare->scale * (float)self->bare->values[i];
}

/* From the code: twice it, so that the halves become whole. */
static void hold_code(const struct sk_index *self, const struct sk_generation *generation, uint32_t row)
{
    struct sk_bare_row *held = self->bare;
    const uint8_t *code = sk_code_of(self, generation, row);
    int32_t sum = 0;
    held->row = row;
    held->generation = generation->number;
    held->scale = sk_short_factors_of(generation, row)->multiplier / 4;
    for (uint32_t block = 0; block < self->padded; block += 64)
        for (uint32_t j = 0; j < 32; j++) {
            const uint8_t pair = code[block / 2 + j];
            const int8_t low = (int8_t)(2 * (pair & 15) - 15), high = (int8_t)(2 * (pair >> 4) - 15);
            held->values[block + j] = low;
            held->values[block + 32 + j] = high;
            sum += low + high;
        }
    held->sum = sum;
}

bool sk_bare_has_same_code(const struct sk_index *self, const struct sk_generation *generation,
                           uint32_t a, uint32_t b)
{
    return memcmp(sk_short_factors_of(generation, a), sk_short_factors_of(generation, b),
                  sizeof(struct sk_short_factors)) == 0 &&
           memcmp(sk_code_of(self, generation, a), sk_code_of(self, generation, b),
                  self->code_bytes) == 0;
}

float sk_bare_distance_rows(const struct sk_index *self, const struct sk_generation *generation,
                            uint32_t a, uint32_t b)
{
    const bool is_a_held = sk_bare_is_held(self, generation, a);
    if (!is_a_held && !sk_bare_is_held(self, generation, b))
        hold_code(self, generation, b);
    const uint32_t other = is_a_held ? b : a;
    const struct sk_short_factors *factors = sk_short_factors_of(generation, other);
    const struct sk_bare_row *held = self->bare;
    const int32_t dot =
        self->kernels->dot_u4_s8(sk_code_of(self, generation, other), held->values, self->padded);
    return sk_short_factors_of(generation, held->row)->norm_sq + factors->norm_sq -
           factors->multiplier * held->scale * ((float)dot - 7.5F * (float)held->sum);
}

/* The survivors of a walk, best estimate first: the k best and those that the 4 bits cannot tell from
 * them. The owner scores them from the vectors. */
enum sk_err sk_bare_rank(struct sk_search *s, struct sk_diag *d)
{
    struct sk_scratch *scratch = s->scratch;
    uint32_t count = 0;
    float last = INFINITY;
    if (!sk_scratch_fit(scratch, s->row_count, s->ef, s->result->capacity))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", s->result->capacity);
    for (uint32_t i = 0; i < scratch->beam_count && count < s->result->capacity; i++) {
        const uint64_t key = scratch->beam[i];
        const uint32_t row = sk_key_row(key);
        if (sk_key_distance(key) > last)
            break;
        if (sk_state(s->index, row) != SK_ROW_LIVE)
            continue;
        const float deviation =
            sk_bare_deviation(s->index, scratch->prepared.norm,
                              sk_short_factors_of(s->generation, row)->norm_sq);
        if (sk_key_distance(key) > s->worst + 4 * deviation)
            continue;
        scratch->keys[count++] = key & ~(uint64_t)1;
        if (count == s->query->k)
            last = sk_key_distance(key) + MARGIN * deviation;
    }
    sk_search_emit(s, count);
    return SK_ERR_OK;
}
