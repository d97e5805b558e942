/* Exact scores and the best of them.
 *
 * struct sk_scorer scores stored vectors against one query: sk_score_exact() decides, and a fast
 * float32 kernel with a certified error bound tells which vectors need not be asked. So an exact
 * scan returns the same hits as scoring everything in double precision, for a tenth of the time.
 * struct sk_rank keeps the best `limit` hits: by score, ties by id.
 * Thread: one. Memory: limit x 80 bytes from malloc. */
#ifndef SK_WORKER_RANK_H
#define SK_WORKER_RANK_H

#include "common/base/err.h"
#include "common/base/id.h"
#include "kernels/kernels.h"

struct sk_scorer {
    const struct sk_kernels *kernels;
    enum sk_metric metric;
    uint32_t dim;
    const float *query; /* borrowed */
    double query_norm;
    double epsilon; /* relative error bound of the float32 kernels, doubled */
};

void sk_scorer_init(struct sk_scorer *self, const struct sk_kernels *kernels, enum sk_metric metric,
                    const float *query, uint32_t dim);
float sk_scorer_exact(const struct sk_scorer *self, const float *vector);
/* False only when the exact score is certainly worse than `worst`. */
bool sk_scorer_may_reach(const struct sk_scorer *self, const float *vector, float worst);

struct sk_hit {
    float score;
    uint32_t row;
    struct sk_id id;
};

struct sk_rank {
    enum sk_metric metric;
    uint32_t limit;
    uint32_t count;
    bool has_threshold;
    float threshold;     /* the worst score let in */
    bool has_more;       /* something that passed the threshold did not fit */
    struct sk_hit *hits; /* a heap, the worst on top; sorted by sk_rank_finish */
};

/* NOMEM. limit >= 1. */
SK_CHECKED enum sk_err sk_rank_init(struct sk_rank *self, enum sk_metric metric, uint32_t limit,
                                    struct sk_diag *d);
void sk_rank_deinit(struct sk_rank *self);
/* Empties it for the next query of the same request. */
void sk_rank_reset(struct sk_rank *self);
void sk_rank_set_threshold(struct sk_rank *self, float worst);
/* True when a hit of this score could enter (then its id is worth fetching). */
bool sk_rank_may_take(const struct sk_rank *self, float score);
/* The score that a newcomer must reach; false while anything is welcome. */
bool sk_rank_worst(const struct sk_rank *self, float *worst);
void sk_rank_offer(struct sk_rank *self, float score, uint32_t row, const struct sk_id *id);
/* Best first. */
void sk_rank_finish(struct sk_rank *self);

#endif
