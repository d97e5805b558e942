/* k-means (Lloyd 1982) over float32 rows, in steps, so that an owner with a time budget can spread it.
 * Starts from rows drawn by the seed. A cluster that loses all its rows is moved onto the row that lies
 * farthest from its own centre. Nothing is allocated: the caller lends the scratch. Sums run in row order
 * and ties go to the lower cluster, so the centres are the same bits on every instruction set.
 * Distances come from inner products: centre the rows first when their mean is far from zero.
 * Thread: one at a time an object. */
#ifndef SK_KERNELS_KMEANS_H
#define SK_KERNELS_KMEANS_H

#include "kernels/kernels.h"

struct sk_kmeans_params {
    const struct sk_kernels *kernels;
    const float *rows; /* row_count x dim, finite; borrowed until the last step */
    size_t row_count;  /* 1 or more */
    size_t dim;        /* 1 or more */
    size_t k;          /* 1..row_count */
    size_t iterations; /* 1 or more */
    uint64_t seed;
};

struct sk_kmeans {
    struct sk_kmeans_params params;
    float *centres;      /* k x dim, the caller's */
    uint32_t *counts;    /* k, the caller's: rows of each cluster in the last pass */
    double *sums;        /* k x dim */
    float *blocks;       /* the centres, 16 side by side: see dots_f32x16 */
    float *norms;        /* of the centres, squared, up to a multiple of 16 */
    float *distances;    /* of each row to its centre, squared */
    uint32_t *clusters;  /* of each row */
    size_t row_next;     /* of this pass */
    size_t pass;         /* passes that are done */
};

size_t sk_kmeans_scratch_bytes(size_t row_count, size_t dim, size_t k);
/* centres (k x dim) and counts (k) are written, and hold the result after the last step; scratch is
 * sk_kmeans_scratch_bytes long, aligned as malloc aligns, borrowed until the last step. */
void sk_kmeans_init(struct sk_kmeans *self, const struct sk_kmeans_params *params, float *centres,
                    uint32_t *counts, void *scratch);
/* Works on at most row_count_max rows (at least one); true when all is done. counts[i] is 0 only where
 * there were fewer different rows than clusters. */
bool sk_kmeans_step(struct sk_kmeans *self, size_t row_count_max);

/* For k centres: blocks is sk_kmeans_blocks_floats(dim, k) floats, norms k up to a multiple of 16. */
size_t sk_kmeans_blocks_floats(size_t dim, size_t k);
void sk_kmeans_blocks_make(const struct sk_kernels *kernels, const float *centres, size_t dim, size_t k,
                           float *blocks, float *norms);
/* clusters[i] = the nearest centre of row i, ties to the lower; distances[i] = |centre|^2 - 2 x the inner
 * product (add the row's own squared length for the distance); distances may be NULL. */
void sk_kmeans_assign(const struct sk_kernels *kernels, const float *blocks, const float *norms, size_t k,
                      const float *rows, size_t row_count, size_t dim, uint32_t *clusters,
                      float *distances);

#endif
