/* links: sk_kernels */
/* Every instruction set against the scalar one, bit for bit, and the scalar one against double
 * precision, at every length and odd alignments. Plain C: it also runs where cmocka is not, under
 * qemu. */
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_MAX = 260, ROOM = 8192 + 64 };
static unsigned failed_count, checked_count;

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        checked_count++;                                                                           \
        if (!(condition)) {                                                                        \
            if (failed_count++ < 20) {                                                             \
                fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                    \
                fprintf(stderr, __VA_ARGS__);                                                      \
                fputc('\n', stderr);                                                               \
            }                                                                                      \
        }                                                                                          \
    } while (0)

static uint64_t state = 88172645463325252U;

static uint32_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static float next_float(void)
{
    float unit = (float)next_random() / 4294967296.0F * 2 - 1;
    return next_random() % 8 == 0 ? unit * 1000 : unit;
}

static void fill(float *x, int8_t *bytes, int16_t *wide, uint8_t *codes, size_t n, int s8_max)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = next_float();
        bytes[i] = (int8_t)((int)(next_random() % (unsigned)(2 * s8_max + 1)) - s8_max);
        wide[i] = (int16_t)((int)(next_random() % 8191) - 4095);
        codes[i] = (uint8_t)next_random();
    }
}

static float xa[ROOM], xb[ROOM], xc[ROOM], xd[ROOM];
static int8_t ba[ROOM], bb[ROOM], bc[ROOM], bd[ROOM];
static int16_t wa[ROOM], wb[ROOM];
static uint8_t ca[ROOM], cb[ROOM], cc[ROOM], cd[ROOM];

static bool same_bits(const void *a, const void *b, size_t size)
{
    return memcmp(a, b, size) == 0;
}

static void floats_match(const struct sk_kernels *set, const struct sk_kernels *oracle,
                         const float *a, const float *b, size_t n)
{
    double dot = 0, l2 = 0, dot_size = 0;
    for (size_t i = 0; i < n; i++) {
        double product = (double)a[i] * (double)b[i];
        double difference = (double)a[i] - (double)b[i];
        dot += product;
        dot_size += fabs(product);
        l2 += difference * difference;
    }
    const double bound = ((double)n / 16 + 8) * 0x1p-24;
    const float got_dot = set->dot_f32(a, b, n), got_l2 = set->l2sq_f32(a, b, n);
    EXPECT(fabs((double)got_dot - dot) <= bound * dot_size, "dot_f32 n %zu", n);
    /* each difference is rounded once before it is squared */
    EXPECT(fabs((double)got_l2 - l2) <= (bound + 0x1p-22) * l2, "l2sq_f32 n %zu", n);
    const float want_dot = oracle->dot_f32(a, b, n), want_l2 = oracle->l2sq_f32(a, b, n);
    EXPECT(same_bits(&got_dot, &want_dot, sizeof want_dot), "dot_f32 n %zu", n);
    EXPECT(same_bits(&got_l2, &want_l2, sizeof want_l2), "l2sq_f32 n %zu", n);
    const double got_dot64 = set->dot_f64(a, b, n), want_dot64 = oracle->dot_f64(a, b, n);
    const double got_l264 = set->l2sq_f64(a, b, n), want_l264 = oracle->l2sq_f64(a, b, n);
    EXPECT(same_bits(&got_dot64, &want_dot64, sizeof want_dot64), "dot_f64 n %zu", n);
    double norm_sq, want_norm_sq = oracle->dot_f64(b, b, n), both = set->dot_norm_f64(a, b, n, &norm_sq);
    EXPECT(same_bits(&both, &want_dot64, sizeof both), "dot_norm_f64 n %zu", n);
    EXPECT(same_bits(&norm_sq, &want_norm_sq, sizeof norm_sq), "dot_norm_f64 n %zu", n);
    EXPECT(same_bits(&got_l264, &want_l264, sizeof want_l264), "l2sq_f64 n %zu", n);
    EXPECT(fabs(got_dot64 - dot) <= 1e-12 * (dot_size + 1), "dot_f64 n %zu", n);
    EXPECT(fabs(got_l264 - l2) <= 1e-12 * (l2 + 1), "l2sq_f64 n %zu", n);
}

/* Rows and columns of n elements at odd places, counts that leave a rest in every set. */
static void many_dots_match(const struct sk_kernels *set, const struct sk_kernels *oracle, size_t n,
                            size_t shift)
{
    enum { ROWS_MAX = 11 };
    static float rows[ROWS_MAX * LENGTH_MAX + 4], columns[LENGTH_MAX * 16 + 4];
    static float got[ROWS_MAX * 16 + 1], want[ROWS_MAX * 16];
    const size_t count = 1 + n % ROWS_MAX;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        rows[i] = next_float();
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        columns[i] = next_float();
    got[count * 16] = 77;
    set->dots_f32x16(rows + shift, count, columns + shift, n, got);
    oracle->dots_f32x16(rows + shift, count, columns + shift, n, want);
    EXPECT(same_bits(got, want, count * 16 * sizeof *got), "%s dots_f32x16 n %zu", set->isa, n);
    EXPECT(got[count * 16] == 77, "%s dots_f32x16 n %zu wrote past its end", set->isa, n);
    for (size_t i = 0; i < count * 16; i++) {
        double dot = 0, size = 0;
        for (size_t at = 0; at < n; at++) {
            double product = (double)rows[shift + i / 16 * n + at] * (double)columns[shift + at * 16 + i % 16];
            dot += product;
            size += fabs(product);
        }
        EXPECT(fabs((double)got[i] - dot) <= (double)n * 0x1p-24 * size, "dots_f32x16 n %zu", n);
    }
}

static void many_integers_match(const struct sk_kernels *set, size_t n, size_t shift, bool is_extreme)
{
    enum { ROWS_MAX = 11, N_MAX = 4096 };
    static int16_t queries[N_MAX * 16 + 4], own[N_MAX];
    static int8_t rows[ROWS_MAX * (N_MAX + 5) + 4];
    static int32_t got[ROWS_MAX * 16 + 1];
    const size_t count = 1 + n / 2 % ROWS_MAX, stride = n + n % 5;
    for (size_t i = 0; i < n * 16 + 4; i++)
        queries[i] = (int16_t)(is_extreme ? -4095 : (int)(next_random() % 8191) - 4095);
    for (size_t i = 0; i < count * stride + 4; i++)
        rows[i] = (int8_t)(is_extreme ? 127 : (int)(next_random() % 255) - 127);
    got[count * 16] = 77;
    set->dots_s16x16_s8(queries + shift, rows + shift, stride, count, n, got);
    EXPECT(got[count * 16] == 77, "%s dots_s16x16_s8 n %zu wrote past its end", set->isa, n);
    for (size_t lane = 0; lane < 16; lane++) {
        for (size_t i = 0; i < n; i++)
            own[i] = queries[shift + i / 2 * 32 + lane * 2 + i % 2];
        for (size_t row = 0; row < count; row++)
            EXPECT(got[row * 16 + lane] == set->dot_s16_s8(own, rows + shift + row * stride, n),
                   "%s dots_s16x16_s8 n %zu row %zu query %zu", set->isa, n, row, lane);
    }
}

static void integers_match(const struct sk_kernels *set, const int8_t *a, const int8_t *b,
                           const int16_t *w, const uint8_t *codes, size_t n)
{
    int64_t dot = 0, l2 = 0, wide = 0, short_dot = 0;
    for (size_t i = 0; i < n; i++) {
        dot += a[i] * b[i];
        l2 += (a[i] - b[i]) * (a[i] - b[i]);
        wide += w[i] * b[i];
    }
    EXPECT(set->dot_s8(a, b, n) == dot, "%s dot_s8 n %zu", set->isa, n);
    EXPECT(set->l2sq_s8(a, b, n) == l2, "%s l2sq_s8 n %zu", set->isa, n);
    EXPECT(set->dot_s16_s8(w, b, n) == wide, "%s dot_s16_s8 n %zu", set->isa, n);
    if (n % 64 != 0)
        return;
    for (size_t block = 0; block < n; block += 64)
        for (size_t j = 0; j < 32; j++) {
            short_dot += (codes[block / 2 + j] & 15) * b[block + j];
            short_dot += (codes[block / 2 + j] >> 4) * b[block + 32 + j];
        }
    EXPECT(set->dot_u4_s8(codes, b, n) == short_dot, "%s dot_u4_s8 n %zu", set->isa, n);
    const uint32_t rows[] = {3, 0, 2, 2, 1, 0, 3, 1, 2};
    int32_t dots[9];
    if (2 * n > ROOM / 8) /* four codes of n / 2 bytes were filled */
        return;
    set->dots_u4_s8(codes, rows, 9, b, n, dots);
    for (size_t i = 0; i < 9; i++)
        EXPECT(dots[i] == set->dot_u4_s8(codes + rows[i] * (n / 2), b, n),
               "%s dots_u4_s8 n %zu at %zu", set->isa, n, i);
    set->dots_u1_s8(codes, n / 2, rows, 9, b, n, dots);
    for (size_t i = 0; i < 9; i++) {
        int32_t sum = 0;
        for (size_t j = 0; j < n; j++)
            sum += (codes[rows[i] * (n / 2) + j / 8] >> j % 8 & 1) * b[j];
        EXPECT(dots[i] == sum, "%s dots_u1_s8 n %zu at %zu", set->isa, n, i);
    }
}

static void conversions_match(const struct sk_kernels *set, const struct sk_kernels *oracle,
                              const float *x, size_t n)
{
    const float scale = 17.3F;
    const float got_max = set->max_abs_f32(x, n), want_max = oracle->max_abs_f32(x, n);
    EXPECT(same_bits(&got_max, &want_max, sizeof got_max), "%s max_abs n %zu", set->isa, n);
    memset(bc, 99, sizeof bc);
    memset(bd, 99, sizeof bd);
    set->quantise_s8(x, n, scale, 127, bc + 1);
    oracle->quantise_s8(x, n, scale, 127, bd + 1);
    EXPECT(same_bits(bc, bd, n + 2), "%s quantise_s8 n %zu", set->isa, n);
    for (size_t i = 0; i < n; i++) {
        float want = rintf(fmaxf(-127, fminf(127, x[i] * scale)));
        EXPECT((float)bc[i + 1] == want, "quantise_s8 of %g", (double)x[i]);
    }
    memcpy(xc, x, n * sizeof *x);
    memcpy(xd, x, n * sizeof *x);
    set->scale_f32(xc, scale, n);
    oracle->scale_f32(xd, scale, n);
    EXPECT(same_bits(xc, xd, n * sizeof *x), "%s scale n %zu", set->isa, n);
    if (n % 32 == 0) {
        set->flip_signs_f32(xc, (const uint32_t *)(const void *)wa, n);
        oracle->flip_signs_f32(xd, (const uint32_t *)(const void *)wa, n);
        EXPECT(same_bits(xc, xd, n * sizeof *x), "%s flip_signs n %zu", set->isa, n);
    }
    if (n % 64 == 0) {
        memset(cc, 0, sizeof cc);
        memset(cd, 0, sizeof cd);
        set->quantise_u4(x, n, 3.1F, cc);
        oracle->quantise_u4(x, n, 3.1F, cd);
        EXPECT(same_bits(cc, cd, n / 2 + 1), "%s quantise_u4 n %zu", set->isa, n);
    }
    if (n > 0 && (n & (n - 1)) == 0) {
        set->fht_f32(xc, n);
        oracle->fht_f32(xd, n);
        EXPECT(same_bits(xc, xd, n * sizeof *x), "%s fht n %zu", set->isa, n);
    }
}

static void every_set_returns_the_bits_of_the_scalar_one(const struct sk_kernels *set)
{
    const struct sk_kernels *oracle = sk_kernels_get("scalar");
    for (size_t n = 0; n <= LENGTH_MAX; n++)
        for (size_t shift = 0; shift < 3; shift++) {
            fill(xa, ba, wa, ca, ROOM / 8, 127);
            fill(xb, bb, wb, cb, ROOM / 8, 127);
            floats_match(set, oracle, xa + shift, xb + 2 * shift + 1, n);
            integers_match(set, ba + shift, bb + 2 * shift + 1, wa + shift, ca + shift, n);
            conversions_match(set, oracle, xa + shift, n);
            many_dots_match(set, oracle, n, shift);
            if (n % 2 == 0)
                many_integers_match(set, n, shift, false);
        }
    for (size_t n = 320; n <= 8192; n *= 2) {
        fill(xa, ba, wa, ca, ROOM, 127);
        fill(xb, bb, wb, cb, ROOM, 127);
        floats_match(set, oracle, xa + 1, xb, n);
        integers_match(set, ba + 1, bb, wa, ca, n < 4096 ? n : 4096);
        conversions_match(set, oracle, xa + 1, n);
        conversions_match(set, oracle, xa, n / 5 * 4 == 256 ? 256 : n);
    }
    many_integers_match(set, 1536, 1, false);
    many_integers_match(set, 4096, 0, true);
    memset(ba, 127, sizeof ba); /* the largest sums there are */
    memset(bb, -127, sizeof bb);
    memset(ca, 0xFF, sizeof ca);
    for (size_t i = 0; i < ROOM; i++)
        wa[i] = 4095;
    integers_match(set, ba, bb, wa, ca, 4096);
    integers_match(set, bb, ba, wa, ca, 4096);
}

static void known_answers_hold(const struct sk_kernels *set)
{
    const float a[] = {1, 2, 3}, b[] = {4, -5, 6};
    EXPECT(set->dot_f32(a, b, 3) == 12, "%s", set->isa);
    EXPECT(set->l2sq_f32(a, b, 3) == 67, "%s", set->isa);
    float h[8] = {1, 0, 0, 0, 0, 0, 0, 0};
    set->fht_f32(h, 8);
    for (size_t i = 0; i < 8; i++)
        EXPECT(h[i] == 1, "%s", set->isa);
    h[0] = 0;
    h[5] = 1;
    for (size_t i = 0; i < 8; i++)
        h[i] = i == 5 ? 1.0F : 0.0F;
    set->fht_f32(h, 8);
    for (size_t i = 0; i < 8; i++)
        EXPECT(h[i] == (__builtin_parity((unsigned)i & 5) ? -1.0F : 1.0F), "%s at %zu", set->isa,
               i);
}

static void a_rotation_keeps_lengths_and_spreads_single_elements(const struct sk_kernels *set)
{
    static const uint32_t dims[] = {64, 128, 192, 384, 448, 768, 960, 1024, 1536, 4096};
    static uint32_t words[SK_ROTATION_ROUNDS_MAX * 4096 / 32];
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        struct sk_rotation rotation;
        const uint32_t n = sk_rotation_padded(dims[d]);
        sk_rotation_init(&rotation, n, 42, words);
        for (uint32_t hot = 0; hot < n; hot += n / 7) {
            memset(xa, 0, sizeof xa);
            xa[hot] = 3;
            sk_rotation_apply(&rotation, set, xa);
            EXPECT(fabs(set->dot_f64(xa, xa, n) - 9) < 1e-4, "dim %u", n);
            /* 5 deviations of a normal distribution is far beyond the maximum of 4,096 values */
            EXPECT(set->max_abs_f32(xa, n) < 3 * 5.0F / sqrtf((float)n), "dim %u element %u: %g", n,
                   hot, (double)set->max_abs_f32(xa, n) * sqrt(n) / 3);
        }
    }
}

static void scores_are_what_the_metric_says(void)
{
    const float a[] = {3, 4, 0}, b[] = {0, 4, 3}, zero[] = {0, 0, 0};
    EXPECT(sk_score_exact(SK_METRIC_L2, a, b, 3) == sqrtf(18), "l2");
    EXPECT(sk_score_exact(SK_METRIC_IP, a, b, 3) == 16, "ip");
    EXPECT(sk_score_exact(SK_METRIC_COSINE, a, b, 3) == 0.64F, "cosine");
    EXPECT(sk_score_exact(SK_METRIC_COSINE, a, zero, 3) == 0, "cosine of zero");
    EXPECT(sk_score_exact(SK_METRIC_COSINE, a, a, 3) == 1, "cosine of itself");
    EXPECT(sk_score_is_better(SK_METRIC_L2, 1, 2) && sk_score_is_better(SK_METRIC_IP, 2, 1),
           "order");
}

static void bad_numbers_are_seen_wherever_they_are(void)
{
    for (size_t n = 1; n < 70; n++)
        for (size_t at = 0; at < n; at++) {
            for (size_t i = 0; i < n; i++)
                xa[i] = i % 2 == 0 ? -FLT_MAX : 0;
            EXPECT(sk_vector_is_finite(xa, n), "n %zu", n);
            xa[at] = at % 3 == 0 ? NAN : at % 3 == 1 ? INFINITY : -INFINITY;
            EXPECT(!sk_vector_is_finite(xa, n), "n %zu at %zu", n, at);
        }
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void selection_is_a_sort_cut_short(void)
{
    uint64_t keys[300], sorted[300];
    for (size_t count = 0; count <= 300; count += 7)
        for (size_t k = 0; k <= count + 3; k += 1 + k / 3) {
            for (size_t i = 0; i < count; i++)
                keys[i] = sorted[i] = next_random() % 200;
            qsort(sorted, count, sizeof *sorted, compare_u64);
            sk_select_smallest(keys, count, k);
            EXPECT(same_bits(keys, sorted, (k < count ? k : count) * sizeof *keys),
                   "count %zu k %zu", count, k);
        }
    const float order[] = {-INFINITY, -3, -1e-30F, 0, 1e-30F, 2, INFINITY};
    for (size_t i = 0; i + 1 < sizeof order / sizeof *order; i++) {
        EXPECT(sk_float_ordered(order[i]) < sk_float_ordered(order[i + 1]), "at %zu", i);
        EXPECT(sk_float_from_ordered(sk_float_ordered(order[i])) == order[i], "at %zu", i);
    }
}

int main(void)
{
    const char *name;
    unsigned set_count = 0;
    for (; (name = sk_kernels_name(set_count)) != NULL; set_count++) {
        const struct sk_kernels *set = sk_kernels_get(name);
        EXPECT(set != NULL && strcmp(set->isa, name) == 0, "%s", name);
        every_set_returns_the_bits_of_the_scalar_one(set);
        known_answers_hold(set);
        a_rotation_keeps_lengths_and_spreads_single_elements(set);
    }
    EXPECT(sk_kernels_get("mmx") == NULL, "an unknown set");
    EXPECT(sk_kernels_get(NULL) == sk_kernels_get(sk_kernels_name(0)), "the best is the default");
    scores_are_what_the_metric_says();
    bad_numbers_are_seen_wherever_they_are();
    selection_is_a_sort_cut_short();
    printf("%u sets, %u checks, %u failed\n", set_count, checked_count, failed_count);
    return failed_count == 0 ? 0 : 1;
}
