#include "kernels/kmeans.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 16, ROWS_AT_ONCE = 64 };

static size_t rounded(size_t k)
{
    return (k + WIDTH - 1) / WIDTH * WIDTH;
}

size_t sk_kmeans_blocks_floats(size_t dim, size_t k)
{
    return rounded(k) * dim;
}

size_t sk_kmeans_scratch_bytes(size_t row_count, size_t dim, size_t k)
{
    return k * dim * sizeof(double) + sk_kmeans_blocks_floats(dim, k) * sizeof(float) +
           rounded(k) * sizeof(float) + row_count * (sizeof(float) + sizeof(uint32_t));
}

void sk_kmeans_blocks_make(const struct sk_kernels *kernels, const float *centres, size_t dim, size_t k,
                           float *blocks, float *norms)
{
    memset(blocks, 0, sk_kmeans_blocks_floats(dim, k) * sizeof *blocks);
    for (size_t i = 0; i < rounded(k); i++)
        norms[i] = INFINITY; /* of the centres that fill up the last block: never the nearest */
    for (size_t i = 0; i < k; i++) {
        const float *centre = centres + i * dim;
        float *block = blocks + i / WIDTH * WIDTH * dim + i % WIDTH;
        for (size_t at = 0; at < dim; at++)
            block[at * WIDTH] = centre[at];
        norms[i] = kernels->dot_f32(centre, centre, dim);
    }
}

void sk_kmeans_assign(const struct sk_kernels *kernels, const float *blocks, const float *norms, size_t k,
                      const float *rows, size_t row_count, size_t dim, uint32_t *clusters,
                      float *distances)
{
    float dots[ROWS_AT_ONCE * WIDTH], best[ROWS_AT_ONCE];
    for (size_t first = 0; first < row_count; first += ROWS_AT_ONCE) {
        const size_t count = row_count - first < ROWS_AT_ONCE ? row_count - first : ROWS_AT_ONCE;
        for (size_t i = 0; i < count; i++) {
            best[i] = INFINITY;
            clusters[first + i] = 0;
        }
        for (size_t block = 0; block < k; block += WIDTH) {
            kernels->dots_f32x16(rows + first * dim, count, blocks + block * dim, dim, dots);
            for (size_t i = 0; i < count; i++)
                for (size_t lane = 0; lane < WIDTH; lane++) {
                    float distance = norms[block + lane] - 2 * dots[i * WIDTH + lane];
                    if (distance < best[i]) {
                        best[i] = distance;
                        clusters[first + i] = (uint32_t)(block + lane);
                    }
                }
        }
        if (distances != NULL)
            memcpy(distances + first, best, count * sizeof *best);
    }
}

/* k different rows out of row_count, in rising order: each is taken with the chance that leaves the
 * right number for the rest (Knuth, volume 2, algorithm S). */
static void draw_centres(struct sk_kmeans *self)
{
    const struct sk_kmeans_params *p = &self->params;
    uint64_t state = p->seed;
    size_t chosen = 0;
    for (size_t row = 0; chosen < p->k; row++) {
        state += 0x9E3779B97F4A7C15U;
        uint64_t z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9U;
        z = (z ^ z >> 27) * 0x94D049BB133111EBU;
        z ^= z >> 31;
        if (z % (p->row_count - row) < p->k - chosen) {
            memcpy(self->centres + chosen * p->dim, p->rows + row * p->dim, p->dim * sizeof(float));
            chosen++;
        }
    }
}

static void begin_pass(struct sk_kmeans *self)
{
    const struct sk_kmeans_params *p = &self->params;
    sk_kmeans_blocks_make(p->kernels, self->centres, p->dim, p->k, self->blocks, self->norms);
    memset(self->sums, 0, p->k * p->dim * sizeof *self->sums);
    memset(self->counts, 0, p->k * sizeof *self->counts);
    self->row_next = 0;
}

void sk_kmeans_init(struct sk_kmeans *self, const struct sk_kmeans_params *params, float *centres,
                    uint32_t *counts, void *scratch)
{
    char *at = scratch;
    *self = (struct sk_kmeans){.params = *params, .centres = centres, .counts = counts};
    self->sums = (void *)at;
    at += params->k * params->dim * sizeof *self->sums;
    self->blocks = (void *)at;
    at += sk_kmeans_blocks_floats(params->dim, params->k) * sizeof *self->blocks;
    self->norms = (void *)at;
    at += rounded(params->k) * sizeof *self->norms;
    self->distances = (void *)at;
    at += params->row_count * sizeof *self->distances;
    self->clusters = (void *)at;
    draw_centres(self);
    begin_pass(self);
}

static void add_row(struct sk_kmeans *self, size_t row, int sign)
{
    const size_t dim = self->params.dim;
    const float *x = self->params.rows + row * dim;
    double *sum = self->sums + self->clusters[row] * dim;
    for (size_t at = 0; at < dim; at++)
        sum[at] += sign > 0 ? (double)x[at] : -(double)x[at];
    self->counts[self->clusters[row]] += sign > 0 ? 1U : UINT32_MAX;
}

/* The row farthest from its centre becomes the only one of an empty cluster. */
static void fill_empty_cluster(struct sk_kmeans *self, size_t cluster)
{
    size_t farthest = 0;
    float distance = 0;
    for (size_t row = 0; row < self->params.row_count; row++)
        if (self->distances[row] > distance && self->counts[self->clusters[row]] > 1) {
            distance = self->distances[row];
            farthest = row;
        }
    if (!(distance > 0))
        return; /* every row lies on its centre */
    add_row(self, farthest, -1);
    self->clusters[farthest] = (uint32_t)cluster;
    self->distances[farthest] = 0;
    add_row(self, farthest, 1);
}

static void end_pass(struct sk_kmeans *self)
{
    const struct sk_kmeans_params *p = &self->params;
    for (size_t i = 0; i < p->k; i++)
        if (self->counts[i] == 0)
            fill_empty_cluster(self, i);
    for (size_t i = 0; i < p->k; i++)
        if (self->counts[i] > 0)
            for (size_t at = 0; at < p->dim; at++)
                self->centres[i * p->dim + at] =
                    (float)(self->sums[i * p->dim + at] / (double)self->counts[i]);
    self->pass++;
    if (self->pass < p->iterations)
        begin_pass(self);
}

bool sk_kmeans_step(struct sk_kmeans *self, size_t row_count_max)
{
    const struct sk_kmeans_params *p = &self->params;
    const size_t first = self->row_next;
    size_t count = p->row_count - first;
    if (self->pass >= p->iterations)
        return true;
    if (count > row_count_max)
        count = row_count_max > 0 ? row_count_max : 1;
    const float *rows = p->rows + first * p->dim;
    sk_kmeans_assign(p->kernels, self->blocks, self->norms, p->k, rows, count, p->dim,
                     self->clusters + first, self->distances + first);
    for (size_t i = 0; i < count; i++) {
        const float *x = rows + i * p->dim;
        self->distances[first + i] += p->kernels->dot_f32(x, x, p->dim);
        add_row(self, first + i, 1);
    }
    self->row_next += count;
    if (self->row_next == p->row_count)
        end_pass(self);
    return self->pass >= p->iterations;
}
