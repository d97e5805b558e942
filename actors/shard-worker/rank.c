#include "actors/shard-worker/rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void sk_scorer_init(struct sk_scorer *self, const struct sk_kernels *kernels, enum sk_metric metric,
                    const float *query, uint32_t dim)
{
    *self = (struct sk_scorer){.kernels = kernels, .metric = metric, .dim = dim, .query = query};
    self->query_norm = sk_score_length(query, dim);
    /* kernels.h: at most (n / 16 + 8) x 2^-24 x sum of |terms|; doubled, so that the roundings of
     * the comparison itself are covered too */
    self->epsilon = 2.0 * ((double)dim / 16 + 8) * 0x1p-24;
}

float sk_scorer_exact(const struct sk_scorer *self, const float *vector)
{
    return sk_score_exact_query(self->metric, self->query, self->query_norm, vector, self->dim);
}

bool sk_scorer_may_reach(const struct sk_scorer *self, const float *vector, float worst)
{
    const struct sk_kernels *k = self->kernels;
    if (self->metric == SK_METRIC_L2) {
        double sum = (double)k->l2sq_f32(self->query, vector, self->dim);
        if (!isfinite(sum)) /* overflowed in float32, not in truth */
            return true;
        double bound = (double)worst * (double)worst;
        return sum * (1 - self->epsilon) - self->dim * 0x1p-148 <= bound * (1 + 0x1p-22);
    }
    double dot = (double)k->dot_f32(self->query, vector, self->dim);
    double squares = (double)k->dot_f32(vector, vector, self->dim);
    double norm = sqrt(squares);
    double scale = self->query_norm * norm;
    /* squares that over- or underflow say nothing about the length */
    if (!isfinite(dot) || !isfinite(squares) || squares < 1e-30 || !(scale > 1e-30))
        return true;
    if (self->metric == SK_METRIC_COSINE)
        return dot / scale + 2 * self->epsilon >= (double)worst;
    return dot + 2 * self->epsilon * scale >= (double)worst - fabs((double)worst) * 0x1p-23;
}

enum sk_err sk_rank_init(struct sk_rank *self, enum sk_metric metric, uint32_t limit,
                         struct sk_diag *d)
{
    SK_CHECK(limit >= 1);
    *self = (struct sk_rank){.metric = metric, .limit = limit};
    self->hits = malloc(limit * sizeof *self->hits);
    if (self->hits == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u hits", limit);
    return SK_ERR_OK;
}

void sk_rank_deinit(struct sk_rank *self)
{
    free(self->hits);
    self->hits = NULL;
    self->count = 0;
}

void sk_rank_reset(struct sk_rank *self)
{
    self->count = 0;
    self->has_more = false;
}

void sk_rank_set_threshold(struct sk_rank *self, float worst)
{
    self->has_threshold = true;
    self->threshold = worst;
}

/* True when a ranks after b. */
static bool is_after(const struct sk_rank *self, const struct sk_hit *a, const struct sk_hit *b)
{
    if (a->score != b->score)
        return sk_score_is_better(self->metric, b->score, a->score);
    return sk_id_compare(&a->id, &b->id) > 0;
}

bool sk_rank_may_take(const struct sk_rank *self, float score)
{
    if (self->has_threshold && sk_score_is_better(self->metric, self->threshold, score))
        return false;
    /* a full rank still wants to hear of what passes the threshold: it makes `more` true */
    return self->count < self->limit || (self->has_threshold && !self->has_more) ||
           !sk_score_is_better(self->metric, self->hits[0].score, score);
}

bool sk_rank_worst(const struct sk_rank *self, float *worst)
{
    if (self->count == self->limit && (!self->has_threshold || self->has_more)) {
        *worst = self->hits[0].score;
        return true;
    }
    if (self->has_threshold)
        *worst = self->threshold;
    return self->has_threshold;
}

static void sift_down(struct sk_rank *self, uint32_t at, uint32_t count)
{
    struct sk_hit moving = self->hits[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && is_after(self, &self->hits[child + 1], &self->hits[child]))
            child++;
        if (!is_after(self, &self->hits[child], &moving))
            break;
        self->hits[at] = self->hits[child];
        at = child;
    }
    self->hits[at] = moving;
}

void sk_rank_offer(struct sk_rank *self, float score, uint32_t row, const struct sk_id *id)
{
    if (!sk_rank_may_take(self, score))
        return;
    struct sk_hit hit = {.score = score, .row = row, .id = *id};
    if (self->count == self->limit) {
        self->has_more = true;
        if (!is_after(self, &self->hits[0], &hit))
            return;
        self->hits[0] = hit;
        sift_down(self, 0, self->count);
        return;
    }
    uint32_t at = self->count++;
    while (at > 0) {
        uint32_t parent = (at - 1) / 2;
        if (!is_after(self, &hit, &self->hits[parent]))
            break;
        self->hits[at] = self->hits[parent];
        at = parent;
    }
    self->hits[at] = hit;
}

void sk_rank_finish(struct sk_rank *self)
{
    for (uint32_t left = self->count; left > 1; left--) {
        struct sk_hit worst = self->hits[0];
        self->hits[0] = self->hits[left - 1];
        sift_down(self, 0, left - 1);
        self->hits[left - 1] = worst;
    }
}
