/* See recall.h. Plain arithmetic over samples, in double precision, in a fixed order. */
#include "actors/shard-worker/index/recall.h"

#include <math.h>

enum { PARAMETERS = 3, HALVINGS = 24 };
static const double SCORE_MIN = -20, SCORE_MAX = 40;
/* Aimed above the target by this share of what may be missed: other queries than the samples come. */
static const double MARGIN = 0.1;
static const double RIDGE = 1e-3, STEP_MAX = 20;

double sk_recall_score(const struct sk_recall_model *model, const struct sk_recall_sample *sample,
                       unsigned level)
{
    return model->bias + model->contrast_weight * (double)sample->contrast[level] +
           model->spread_weight * (double)sample->spread[level];
}

/* ---- the model ---- */

struct normal {
    double hessian[PARAMETERS][PARAMETERS], gradient[PARAMETERS];
};

static void add_sample(struct normal *normal, const struct sk_recall_model *model,
                       const struct sk_recall_sample *sample, uint32_t k, double weight)
{
    for (unsigned level = 0; level < SK_RECALL_LEVELS; level++) {
        const double x[PARAMETERS] = {1, (double)sample->contrast[level],
                                      (double)sample->spread[level]};
        const double p = 1 / (1 + exp(-sk_recall_score(model, sample, level)));
        const double error = p - (double)sample->hits[level] / k;
        for (unsigned i = 0; i < PARAMETERS; i++) {
            normal->gradient[i] += weight * error * x[i];
            for (unsigned j = 0; j < PARAMETERS; j++)
                normal->hessian[i][j] += weight * p * (1 - p) * x[i] * x[j];
        }
    }
}

/* Gaussian elimination; the ridge keeps the matrix positive definite, so no pivot is sought. */
static void solve(struct normal *normal, double *out)
{
    double (*a)[PARAMETERS] = normal->hessian, *b = normal->gradient;
    for (unsigned column = 0; column < PARAMETERS; column++)
        for (unsigned row = column + 1; row < PARAMETERS; row++) {
            const double factor = a[row][column] / a[column][column];
            for (unsigned i = column; i < PARAMETERS; i++)
                a[row][i] -= factor * a[column][i];
            b[row] -= factor * b[column];
        }
    for (unsigned row = PARAMETERS; row-- > 0;) {
        out[row] = b[row];
        for (unsigned i = row + 1; i < PARAMETERS; i++)
            out[row] -= a[row][i] * out[i];
        out[row] /= a[row][row];
    }
}

double sk_recall_fit_step(const struct sk_recall_samples *samples, uint32_t k,
                          struct sk_recall_model *model)
{
    struct normal normal = {.gradient = {0}};
    double *parameters[PARAMETERS] = {&model->bias, &model->contrast_weight, &model->spread_weight};
    double step[PARAMETERS], largest = 0;
    const double real_weight =
        samples->real_count == 0 || samples->made_count == 0
            ? 1
            : (double)samples->made_count / (double)samples->real_count;
    for (uint32_t i = 0; i < samples->made_count; i++)
        add_sample(&normal, model, &samples->made[i], k, 1);
    for (uint32_t i = 0; i < samples->real_count; i++)
        add_sample(&normal, model, &samples->real[i], k, real_weight < 1 ? real_weight : 1);
    for (unsigned i = 0; i < PARAMETERS; i++) {
        normal.hessian[i][i] += RIDGE;
        normal.gradient[i] += RIDGE * *parameters[i];
    }
    solve(&normal, step);
    for (unsigned i = 0; i < PARAMETERS; i++) {
        /* A step of Newton's method may overshoot where the curve is flat. */
        const double bounded = fmax(-STEP_MAX, fmin(STEP_MAX, step[i]));
        *parameters[i] -= bounded;
        largest = fmax(largest, fabs(bounded));
    }
    return largest;
}

/* ---- bars ---- */

static unsigned stop_at(const struct sk_recall_model *model, const struct sk_recall_sample *sample,
                        double bar)
{
    unsigned level = 0;
    while (level + 1 < SK_RECALL_LEVELS && sk_recall_score(model, sample, level) < bar)
        level++;
    return level;
}

static double mean_share(const struct sk_recall_sample *samples, uint32_t count, uint32_t k,
                         const struct sk_recall_model *model, double bar, double *level_mean)
{
    double hits = 0, sizes = 0;
    for (uint32_t i = 0; i < count; i++) {
        const unsigned level = stop_at(model, &samples[i], bar);
        hits += samples[i].hits[level];
        sizes += sk_recall_level_size(k, level);
    }
    if (level_mean != NULL)
        *level_mean = count == 0 ? 0 : sizes / count;
    return count == 0 ? 0 : hits / ((double)count * k);
}

static double lowest_bar(const struct sk_recall_sample *samples, uint32_t count, uint32_t k,
                         const struct sk_recall_model *model, double target)
{
    double low = SCORE_MIN, high = SCORE_MAX;
    if (mean_share(samples, count, k, model, INFINITY, NULL) < target)
        return INFINITY;
    for (unsigned i = 0; i < HALVINGS; i++) {
        const double middle = (low + high) / 2;
        if (mean_share(samples, count, k, model, middle, NULL) < target)
            low = middle;
        else
            high = middle;
    }
    return high;
}

double sk_recall_fit_bar(const struct sk_recall_samples *samples, uint32_t k,
                         const struct sk_recall_model *model, double target)
{
    double bar = SCORE_MIN;
    target += MARGIN * (1 - target);
    if (samples->made_count > 0)
        bar = lowest_bar(samples->made, samples->made_count, k, model, target);
    if (samples->real_count >= SK_RECALL_REAL_MIN)
        bar = fmax(bar, lowest_bar(samples->real, samples->real_count, k, model, target));
    return bar;
}

unsigned sk_recall_fit_level(const struct sk_recall_samples *samples, uint32_t k, double target)
{
    for (unsigned level = 0; level + 1 < SK_RECALL_LEVELS; level++) {
        double hits = 0;
        for (uint32_t i = 0; i < samples->made_count; i++)
            hits += samples->made[i].hits[level];
        if (hits >= target * (double)samples->made_count * k)
            return level;
    }
    return SK_RECALL_LEVELS - 1;
}

double sk_recall_measure(const struct sk_recall_samples *samples, uint32_t k,
                         const struct sk_recall_model *model, double bar, double *level_mean)
{
    return mean_share(samples->real, samples->real_count, k, model, bar, level_mean);
}
