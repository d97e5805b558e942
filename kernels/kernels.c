#include "kernels/kernels.h"

#include "kernels/set.h"

#include <math.h>
#include <string.h>

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
           __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
           __builtin_cpu_supports("avx512vnni") != 0;
}
#endif

static const struct {
    const struct sk_kernels *set;
    bool (*supported)(void);
} candidates[] = {
/* best first */
#if defined(__x86_64__)
    {&sk_kernels_avx512, has_avx512},
    {&sk_kernels_avx2, has_avx2},
#endif
#if defined(__aarch64__)
    {&sk_kernels_neon, always}, /* part of the architecture */
#endif
    {&sk_kernels_scalar, always},
};
enum { CANDIDATE_COUNT = sizeof candidates / sizeof candidates[0] };

const struct sk_kernels *sk_kernels_get(const char *isa)
{
    bool any = isa == NULL || strcmp(isa, "auto") == 0;
    for (unsigned i = 0; i < CANDIDATE_COUNT; i++)
        if (candidates[i].supported() && (any || strcmp(isa, candidates[i].set->isa) == 0))
            return candidates[i].set;
    return NULL;
}

const char *sk_kernels_name(unsigned at)
{
    for (unsigned i = 0; i < CANDIDATE_COUNT; i++)
        if (candidates[i].supported() && at-- == 0)
            return candidates[i].set->isa;
    return NULL;
}

void sk_scan_u4x32(const struct sk_kernels *kernels, const uint8_t *codes, const uint8_t *luts,
                   size_t segments, uint32_t *out)
{
    memset(out, 0, SK_SCAN_BLOCK * sizeof *out);
    while (segments > 0) {
        const size_t run = segments < SK_SCAN_SEGMENTS_MAX ? segments : SK_SCAN_SEGMENTS_MAX;
        uint16_t sums[SK_SCAN_BLOCK];
        kernels->scan_u4x32(codes, luts, run, sums);
        for (size_t k = 0; k < SK_SCAN_BLOCK; k++)
            out[k] += sums[k];
        codes += run * (SK_SCAN_BLOCK / 2);
        luts += run * 16;
        segments -= run;
    }
}

bool sk_vector_is_finite(const float *x, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bad |= (uint32_t)((bits & 0x7F800000U) == 0x7F800000U);
    }
    return bad == 0;
}

double sk_score_length(const float *query, size_t dim)
{
    return sqrt(sk_kernels_get(NULL)->dot_f64(query, query, dim));
}

float sk_score_exact_query(enum sk_metric metric, const float *query, double query_length,
                           const float *b, size_t dim)
{
    const struct sk_kernels *kernels = sk_kernels_get(NULL);
    if (metric == SK_METRIC_L2)
        return (float)sqrt(kernels->l2sq_f64(query, b, dim));
    if (metric == SK_METRIC_IP)
        return (float)kernels->dot_f64(query, b, dim);
    double norm_sq, dot = kernels->dot_norm_f64(query, b, dim, &norm_sq);
    double length = query_length * sqrt(norm_sq);
    if (length <= 0)
        return 0;
    dot /= length;
    return (float)(dot < -1 ? -1 : dot > 1 ? 1 : dot);
}

float sk_score_exact(enum sk_metric metric, const float *a, const float *b, size_t dim)
{
    double length = metric == SK_METRIC_COSINE ? sk_score_length(a, dim) : 0;
    return sk_score_exact_query(metric, a, length, b, dim);
}

bool sk_score_is_better(enum sk_metric metric, float a, float b)
{
    return metric == SK_METRIC_L2 ? a < b : a > b;
}

static void sift_down(uint64_t *heap, size_t count, size_t at)
{
    uint64_t key = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && heap[child + 1] > heap[child])
            child++;
        if (heap[child] <= key)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

/* A heap of the k smallest with the largest on top, then sorted in place. */
void sk_select_smallest(uint64_t *keys, size_t count, size_t k)
{
    if (k > count)
        k = count;
    if (k == 0)
        return;
    for (size_t at = k / 2; at-- > 0;)
        sift_down(keys, k, at);
    for (size_t i = k; i < count; i++)
        if (keys[i] < keys[0]) {
            uint64_t key = keys[i];
            keys[i] = keys[0];
            keys[0] = key;
            sift_down(keys, k, 0);
        }
    for (size_t end = k - 1; end > 0; end--) {
        uint64_t key = keys[end];
        keys[end] = keys[0];
        keys[0] = key;
        sift_down(keys, end, 0);
    }
}

uint32_t sk_rotation_padded(uint32_t dim)
{
    return (dim + SK_ROTATION_ALIGN - 1) / SK_ROTATION_ALIGN * SK_ROTATION_ALIGN;
}

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15U);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

void sk_rotation_init(struct sk_rotation *self, uint32_t padded, uint64_t seed, uint32_t *words)
{
    uint32_t power = SK_ROTATION_ALIGN;
    while (power * 2 <= padded)
        power *= 2;
    /* Just below the next power of two the two parts share few elements: they need more turns. */
    const uint32_t rounds = power == padded              ? 3
                            : padded - power > power / 2 ? SK_ROTATION_ROUNDS_MAX
                                                         : 4;
    *self = (struct sk_rotation){
        .padded = padded, .power = power, .round_count = rounds, .sign_bits = words};
    for (uint32_t i = 0; i < SK_ROTATION_ROUNDS_MAX * (padded / 32); i++)
        words[i] = (uint32_t)(splitmix(&seed) >> 32);
}

void sk_rotation_apply(const struct sk_rotation *self, const struct sk_kernels *kernels, float *x)
{
    const uint32_t n = self->padded, power = self->power;
    const float scale = 1.0F / sqrtf((float)power);
    for (uint32_t round = 0; round < self->round_count; round++) {
        kernels->flip_signs_f32(x, self->sign_bits + (size_t)round * (n / 32), n);
        float *part = round % 2 == 0 ? x : x + (n - power);
        kernels->fht_f32(part, power);
        kernels->scale_f32(part, scale, power);
    }
}
