/* A recall target: how far each search walks so that the mean recall stays at what was asked for.
 *
 * A walk goes level by level: only the first `level` rows of its beam are expanded, and when all of them
 * are, the walk looks at itself: how near the k-th row is compared with a typical row (contrast), and how
 * much farther the level's last row is than the k-th (spread). Queries unlike the data have little of
 * both. A logistic model of the share of true neighbours found says whether that is enough or the next
 * level is needed (after DARTH, arXiv 2505.19001, and Ada-ef, 2512.06636).
 *
 * Walks with a target go by the short codes in every profile, whatever else there is to walk by.
 *
 * The model is fitted by the writer's maintenance steps, on queries whose true neighbours a complete scan
 * of the 8-bit codes finds: queries the index makes itself by moving a row along the difference of two
 * others, half of them by half of it (mild), half by all of it (strong), so that queries unlike any seen
 * are covered; queries given to sk_index_calibrate; and samples of the searches themselves (shadow
 * queries). The bar for a target is the lowest at which both the made and the real ones reach it, and a
 * tenth of what may be missed more. Measured against the complete scan of the codes that there are, so
 * what these leave out (0.1 %; more in profile memory, whose codes have 4 bits) is not seen.
 *
 * recall.c: what searches do. recall_calibrate.c: samples. recall_fit.c: the arithmetic of the fit.
 * Threads: searches read the model through relaxed atomics while the writer replaces it; a search that
 * sees half of each model walks a little too far or too short, no more. */
#ifndef SK_INDEX_RECALL_H
#define SK_INDEX_RECALL_H

#include "actors/shard-worker/index/internal.h"

enum {
    SK_RECALL_LEVELS = 17,
    SK_RECALL_TARGETS = 10,
    SK_RECALL_CLASSES = 2,  /* of k: up to 32, and above */
    SK_RECALL_K_MIN = 10,   /* a smaller k walks as this one */
    SK_RECALL_K_MAX = 100,  /* of the calibration */
    SK_RECALL_MADE = 512,   /* samples that the index makes */
    SK_RECALL_REAL = 512,   /* the latest that were given or sampled */
    SK_RECALL_REAL_MIN = 64, /* fewer decide nothing */
};

/* One query's walk through all levels. */
struct sk_recall_sample {
    float contrast[SK_RECALL_LEVELS], spread[SK_RECALL_LEVELS];
    uint8_t hits[SK_RECALL_LEVELS]; /* of the class's k */
};
struct sk_recall_samples {
    struct sk_recall_sample made[SK_RECALL_MADE], real[SK_RECALL_REAL];
    uint32_t made_count, real_count, real_next;
};

/* score = bias + contrast_weight x contrast + spread_weight x spread: the logit of the share found. */
struct sk_recall_model {
    double bias, contrast_weight, spread_weight;
};
/* One step of Newton's method from *model; returns the largest change of a coefficient. The made and the
 * real samples weigh the same together. */
double sk_recall_fit_step(const struct sk_recall_samples *samples, uint32_t k,
                          struct sk_recall_model *model);
double sk_recall_score(const struct sk_recall_model *model, const struct sk_recall_sample *sample,
                       unsigned level);
/* The lowest score to stop at for a mean share of target, over the samples of either kind that there are;
 * INFINITY where even the last level falls short. */
double sk_recall_fit_bar(const struct sk_recall_samples *samples, uint32_t k,
                         const struct sk_recall_model *model, double target);
/* The level that reaches target on the made samples, the same for all of them. */
unsigned sk_recall_fit_level(const struct sk_recall_samples *samples, uint32_t k, double target);
/* The mean share found, and the mean of the levels' sizes, when the real samples stop at the bar. */
double sk_recall_measure(const struct sk_recall_samples *samples, uint32_t k,
                         const struct sk_recall_model *model, double bar, double *level_mean);

extern const float sk_recall_targets[SK_RECALL_TARGETS]; /* bars are kept for these */
uint32_t sk_recall_level_size(uint32_t k, unsigned level);
static inline unsigned sk_recall_class(uint32_t k)
{
    return k <= 32 ? 0 : 1;
}
static inline uint32_t sk_recall_class_k(unsigned class_at)
{
    return class_at == 0 ? SK_RECALL_K_MIN : SK_RECALL_K_MAX;
}

/* What searches read. */
struct sk_recall_shared {
    _Atomic bool is_ready;
    _Atomic float bias, contrast_weight, spread_weight;
    _Atomic float bars[SK_RECALL_TARGETS];
    _Atomic uint32_t levels[SK_RECALL_TARGETS];
};

enum { SK_RECALL_RING = 16 };
enum sk_recall_slot { SK_RECALL_FREE, SK_RECALL_BUSY, SK_RECALL_FULL };
struct sk_recall_ring {
    struct {
        _Atomic uint32_t state; /* enum sk_recall_slot */
    } slots[SK_RECALL_RING];
    float vectors[]; /* SK_RECALL_RING x dim, as the searches gave them */
};

struct sk_recall_calibration; /* recall_calibrate.c: the writer's part */

struct sk_recall {
    struct sk_recall_shared classes[SK_RECALL_CLASSES];
    _Atomic float norm_mean; /* of the centred rows, squared */
    _Atomic(struct sk_recall_ring *) ring;
    _Atomic uint32_t wanted; /* a bit a class: searches have asked for it */
    _Atomic uint32_t asked_class;
    _Atomic float asked_target;
    _Atomic float measured, measured_target, level_mean;
    _Atomic uint32_t real_count;
    struct sk_recall_calibration *calibration; /* writer; NULL until wanted */
};

/* A walk that follows the target; beam->recall. */
struct sk_recall_walk {
    uint32_t k;
    unsigned level; /* being walked */
    float bias, contrast_weight, spread_weight, bar;
    float typical, scale; /* distance of a typical row; what distances are measured by */
    /* calibration: the walk goes through all levels and notes them here */
    struct sk_recall_sample *sample;
    const uint32_t *truth; /* k rows, rising */
};

/* Readies the walk of a search with a target; returns the first size of the beam. *is_adaptive is false
 * while there is no model yet: then it is the size for the whole walk. */
uint32_t sk_recall_begin(const struct sk_index *self, const struct sk_index_query *query,
                         const struct sk_prepared *prepared, struct sk_recall_walk *walk,
                         bool *is_adaptive);
/* What beam->recall->k is in the largest level's beam: room for it must be there before the walk. */
uint32_t sk_recall_room(uint32_t k);
/* Now and then keeps the query as a shadow query; any number of readers. */
void sk_recall_note(const struct sk_index *self, struct sk_scratch *scratch, const float *vector);
/* All of the level is expanded: a larger one, or false when the walk is over. */
bool sk_recall_widen(struct sk_beam *beam);
/* The walk begins at its first level. */
void sk_recall_attach(struct sk_beam *beam, struct sk_recall_walk *walk);
float sk_recall_bar(const struct sk_recall_shared *shared, float target);
void sk_recall_walk_init(struct sk_recall_walk *walk, const struct sk_index *self, uint32_t k,
                         const struct sk_prepared *prepared);

/* recall_calibrate.c, writer */
struct sk_recall *sk_recall_new(void);
void sk_recall_destroy(struct sk_recall **self);
bool sk_recall_is_due(const struct sk_index *self);
/* A small piece of work. Without memory nothing is lost but the work. */
void sk_recall_quantum(struct sk_index *self);

#endif
