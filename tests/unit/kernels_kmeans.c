/* links: sk_kernels */
/* k-means on every instruction set: the same centres to the last bit, clusters that are found again, and
 * the hard cases: equal rows, as many clusters as rows, one of each. Plain C: also run under qemu. */
#include "kernels/kmeans.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned failed_count, checked_count;

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        checked_count++;                                                                           \
        if (!(condition) && failed_count++ < 20) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

enum { ROWS = 600, DIM_MAX = 70, K_MAX = 64 };
static float rows[ROWS * DIM_MAX];
static uint64_t state = 88172645463325252U;

static float next_float(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)(state >> 40) / 16777216.0F - 0.5F;
}

/* Rows around `groups` places far apart: row i belongs to i % groups. */
static void make_groups(size_t row_count, size_t dim, size_t groups, float spread)
{
    for (size_t i = 0; i < row_count; i++)
        for (size_t at = 0; at < dim; at++) {
            float place = (i % groups >> at % 6 & 1) != 0 ? 10.0F : -10.0F;
            rows[i * dim + at] = place + spread * next_float();
        }
}

static void train(const struct sk_kmeans_params *params, size_t step, float *centres, uint32_t *counts)
{
    struct sk_kmeans task;
    void *scratch = malloc(sk_kmeans_scratch_bytes(params->row_count, params->dim, params->k));
    if (scratch == NULL)
        abort();
    sk_kmeans_init(&task, params, centres, counts, scratch);
    size_t steps = 1;
    while (!sk_kmeans_step(&task, step))
        steps++;
    const size_t want = (params->row_count + step - 1) / step * params->iterations;
    EXPECT(steps == want, "%zu steps, want %zu", steps, want);
    EXPECT(sk_kmeans_step(&task, step), "a step past the end does nothing");
    free(scratch);
}

static void every_set_finds_the_same_centres(void)
{
    static const size_t dims[] = {1, 2, 4, 7, 16, 33, 70}, ks[] = {1, 3, 16, 17, 64};
    static float centres[K_MAX * DIM_MAX], want[K_MAX * DIM_MAX];
    uint32_t counts[K_MAX], want_counts[K_MAX];
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t j = 0; j < sizeof ks / sizeof *ks; j++) {
            struct sk_kmeans_params params = {.kernels = sk_kernels_get("scalar"), .rows = rows,
                                              .row_count = ROWS - j, .dim = dims[d], .k = ks[j],
                                              .iterations = 4, .seed = 7 + j};
            make_groups(ROWS, dims[d], 5, 9);
            train(&params, ROWS, want, want_counts);
            for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
                params.kernels = sk_kernels_get(sk_kernels_name(isa));
                train(&params, 97, centres, counts);
                EXPECT(memcmp(centres, want, ks[j] * dims[d] * sizeof *want) == 0, "%s dim %zu k %zu",
                       params.kernels->isa, dims[d], ks[j]);
                EXPECT(memcmp(counts, want_counts, ks[j] * sizeof *counts) == 0, "%s counts",
                       params.kernels->isa);
            }
            size_t sum = 0;
            for (size_t i = 0; i < ks[j]; i++) {
                sum += want_counts[i];
                EXPECT(want_counts[i] > 0, "dim %zu k %zu: cluster %zu is empty", dims[d], ks[j], i);
            }
            EXPECT(sum == params.row_count, "%zu rows have a cluster", sum);
        }
}

/* 64 groups and drawn starts: some groups get two centres, some none; only rows that lie far from all
 * centres are mended by moving centres that became empty, so most groups must be found. */
static void separate_groups_are_found(const struct sk_kernels *set)
{
    enum { GROUPS = 8 };
    float centres[GROUPS * 6];
    uint32_t counts[GROUPS], clusters[ROWS];
    float distances[ROWS];
    static float blocks[16 * 6], norms[16];
    double best = INFINITY;
    make_groups(ROWS, 6, GROUPS, 1);
    for (uint64_t seed = 0; seed < 20; seed++) {
        const struct sk_kmeans_params params = {.kernels = set, .rows = rows, .row_count = ROWS,
                                                .dim = 6, .k = GROUPS, .iterations = 10, .seed = seed};
        train(&params, 50, centres, counts);
        sk_kmeans_blocks_make(set, centres, 6, GROUPS, blocks, norms);
        sk_kmeans_assign(set, blocks, norms, GROUPS, rows, ROWS, 6, clusters, distances);
        double error = 0;
        for (size_t i = 0; i < ROWS; i++) {
            double nearest = INFINITY, own = 0;
            for (size_t c = 0; c < GROUPS; c++) {
                double distance = set->l2sq_f64(rows + i * 6, centres + c * 6, 6);
                nearest = distance < nearest ? distance : nearest;
                own = c == clusters[i] ? distance : own;
            }
            EXPECT(own <= nearest + 1e-3, "%s row %zu", set->isa, i);
            EXPECT(fabs((double)distances[i] + set->dot_f64(rows + i * 6, rows + i * 6, 6) - own) < 1e-2,
                   "%s row %zu", set->isa, i);
            error += own;
        }
        best = error < best ? error : best;
    }
    EXPECT(best < ROWS * 6.0 / 10, "%s: error %g", set->isa, best); /* variance 1 / 12 an element */
}

static void hard_cases_end_well(const struct sk_kernels *set)
{
    float centres[K_MAX * 4];
    uint32_t counts[K_MAX];
    struct sk_kmeans_params params = {.kernels = set, .rows = rows, .row_count = K_MAX, .dim = 4,
                                      .k = K_MAX, .iterations = 3, .seed = 1};
    make_groups(K_MAX, 4, 3, 1);
    train(&params, 1, centres, counts);
    for (size_t i = 0; i < K_MAX; i++)
        EXPECT(counts[i] == 1, "%s: a cluster a row: %u", set->isa, counts[i]);
    for (size_t i = 0; i < K_MAX * 4; i++)
        rows[i] = i / 4 < 2 ? (float)(i / 4) : 3.0F; /* three different rows */
    train(&params, 10, centres, counts);
    size_t used = 0, sum = 0;
    for (size_t i = 0; i < K_MAX; i++) {
        used += counts[i] > 0;
        sum += counts[i];
        EXPECT(sk_vector_is_finite(centres + i * 4, 4), "%s: centre %zu", set->isa, i);
    }
    EXPECT(used == 3 && sum == K_MAX, "%s: %zu clusters, %zu rows", set->isa, used, sum);
    params.row_count = params.k = 1;
    train(&params, 1, centres, counts);
    EXPECT(counts[0] == 1 && centres[0] == 0 && centres[3] == 0, "%s", set->isa);
}

/* 40 rows at one place and one far from it, two clusters that both start in the crowd. */
static void an_empty_cluster_moves_to_the_farthest_row(const struct sk_kernels *set)
{
    float centres[2];
    uint32_t counts[2];
    for (size_t i = 0; i < 41; i++)
        rows[i] = i == 40 ? 100.0F : 1.0F;
    const struct sk_kmeans_params params = {
        .kernels = set, .rows = rows, .row_count = 41, .dim = 1, .k = 2, .iterations = 2, .seed = 5};
    train(&params, 41, centres, counts);
    EXPECT(counts[0] + counts[1] == 41 && (counts[0] == 1 || counts[1] == 1), "%s: %u and %u", set->isa,
           counts[0], counts[1]);
    EXPECT(fabsf(centres[0] - centres[1]) == 99, "%s: %g, %g", set->isa, (double)centres[0],
           (double)centres[1]);
}

int main(void)
{
    every_set_finds_the_same_centres();
    const char *name;
    for (unsigned at = 0; (name = sk_kernels_name(at)) != NULL; at++) {
        separate_groups_are_found(sk_kernels_get(name));
        hard_cases_end_well(sk_kernels_get(name));
        an_empty_cluster_moves_to_the_farthest_row(sk_kernels_get(name));
    }
    printf("%u checks, %u failed\n", checked_count, failed_count);
    return failed_count == 0 ? 0 : 1;
}
