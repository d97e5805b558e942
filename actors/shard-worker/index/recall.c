/* See recall.h: what searches do. */
#include "actors/shard-worker/index/search.h"

#include <math.h>

enum {
    NOTE_EVERY = 1024,       /* one search in so many is kept, once there are enough */
    DEFAULT_LEVEL = 14,      /* 32 x k: before anything is known */
    DEFAULT_LEVEL_HIGH = 16, /* 64 x k */
};
static const float HIGH_TARGET = 0.97F;
static const float MULTIPLES[SK_RECALL_LEVELS] = {1.2F, 1.6F,  2,   2.4F,  2.8F, 3.2F,  4, 4.8F, 6.4F,
                                                  8,    9.6F, 12.8F, 16, 22.4F, 32, 44.8F, 64};
const float sk_recall_targets[SK_RECALL_TARGETS] = {0.5F,  0.7F,  0.8F,  0.85F,  0.9F,
                                                    0.95F, 0.97F, 0.98F, 0.99F, 0.999F};

uint32_t sk_recall_level_size(uint32_t k, unsigned level)
{
    const float size = ceilf((float)k * MULTIPLES[level]);
    return size < SK_INDEX_EF_MAX ? (uint32_t)size : SK_INDEX_EF_MAX;
}

/* The beam keeps more than the level has, so that the next one does not begin from nothing. */
static uint32_t beam_size(uint32_t k, unsigned level)
{
    const uint32_t size = sk_recall_level_size(k, level);
    return size < SK_INDEX_EF_MAX / 2 ? 2 * size : SK_INDEX_EF_MAX;
}

uint32_t sk_recall_room(uint32_t k)
{
    return beam_size(k < SK_RECALL_K_MIN ? SK_RECALL_K_MIN : k, SK_RECALL_LEVELS - 1);
}

void sk_recall_walk_init(struct sk_recall_walk *walk, const struct sk_index *self, uint32_t k,
                         const struct sk_prepared *prepared)
{
    const float norm_mean =
        atomic_load_explicit(&self->recall->norm_mean, memory_order_relaxed);
    *walk = (struct sk_recall_walk){.k = k < SK_RECALL_K_MIN ? SK_RECALL_K_MIN : k, .bar = INFINITY};
    /* |q - x|2 is |q|2 + |x|2 on the mean over centred rows; -2 <q, x> is 0. */
    walk->typical = prepared->norm_sq + prepared->add_weight * norm_mean;
    walk->scale = prepared->add_weight > 0 ? walk->typical : 2 * prepared->norm * sqrtf(norm_mean);
    if (!(walk->scale > 1e-30F))
        walk->scale = 1e-30F;
}

static uint32_t default_size(uint32_t k, float target)
{
    return sk_recall_level_size(k < SK_RECALL_K_MIN ? SK_RECALL_K_MIN : k,
                                target < HIGH_TARGET ? DEFAULT_LEVEL : DEFAULT_LEVEL_HIGH);
}

/* Remembers what is asked for, so that the writer works for it. */
static void ask(struct sk_recall *recall, uint32_t k, float target)
{
    const uint32_t class_at = sk_recall_class(k);
    if ((atomic_load_explicit(&recall->wanted, memory_order_relaxed) & 1U << class_at) == 0)
        atomic_fetch_or_explicit(&recall->wanted, 1U << class_at, memory_order_relaxed);
    if (atomic_load_explicit(&recall->asked_target, memory_order_relaxed) != target ||
        atomic_load_explicit(&recall->asked_class, memory_order_relaxed) != class_at) {
        atomic_store_explicit(&recall->asked_target, target, memory_order_relaxed);
        atomic_store_explicit(&recall->asked_class, class_at, memory_order_relaxed);
    }
}

/* Between two targets whose bars are kept: a straight line over the logarithm of what is missed. */
float sk_recall_bar(const struct sk_recall_shared *shared, float target)
{
    unsigned above = 0;
    while (above + 1 < SK_RECALL_TARGETS && sk_recall_targets[above] < target)
        above++;
    const float high = atomic_load_explicit(&shared->bars[above], memory_order_relaxed);
    if (above == 0 || sk_recall_targets[above] <= target || high == INFINITY)
        return high;
    const float low = atomic_load_explicit(&shared->bars[above - 1], memory_order_relaxed);
    const float from = logf(1 - sk_recall_targets[above - 1]), to = logf(1 - sk_recall_targets[above]);
    return low + (high - low) * (logf(1 - target) - from) / (to - from);
}

static uint32_t level_for(const struct sk_recall_shared *shared, uint32_t k, float target)
{
    unsigned above = 0;
    while (above + 1 < SK_RECALL_TARGETS && sk_recall_targets[above] < target)
        above++;
    return sk_recall_level_size(k < SK_RECALL_K_MIN ? SK_RECALL_K_MIN : k,
                                atomic_load_explicit(&shared->levels[above], memory_order_relaxed));
}

uint32_t sk_recall_begin(const struct sk_index *self, const struct sk_index_query *query,
                         const struct sk_prepared *prepared, struct sk_recall_walk *walk,
                         bool *is_adaptive)
{
    const struct sk_recall_shared *shared = &self->recall->classes[sk_recall_class(query->k)];
    *is_adaptive = false;
    ask(self->recall, query->k, query->recall_target);
    if (!atomic_load_explicit(&shared->is_ready, memory_order_acquire))
        return default_size(query->k, query->recall_target);
    if (query->filter != NULL) /* the planner wants a size for the whole walk */
        return level_for(shared, query->k, query->recall_target);
    sk_recall_walk_init(walk, self, query->k, prepared);
    walk->bias = atomic_load_explicit(&shared->bias, memory_order_relaxed);
    walk->contrast_weight = atomic_load_explicit(&shared->contrast_weight, memory_order_relaxed);
    walk->spread_weight = atomic_load_explicit(&shared->spread_weight, memory_order_relaxed);
    walk->bar = sk_recall_bar(shared, query->recall_target);
    *is_adaptive = true;
    return sk_recall_level_size(walk->k, 0);
}

void sk_recall_note(const struct sk_index *self, struct sk_scratch *scratch, const float *vector)
{
    struct sk_recall *recall = self->recall;
    struct sk_recall_ring *ring = atomic_load_explicit(&recall->ring, memory_order_acquire);
    const bool is_hungry = atomic_load_explicit(&recall->real_count, memory_order_relaxed) <
                           SK_RECALL_REAL_MIN;
    if (ring == NULL || (scratch->recall_tick++ % NOTE_EVERY != 0 && !is_hungry))
        return;
    for (unsigned at = 0; at < SK_RECALL_RING; at++) {
        uint32_t state = SK_RECALL_FREE;
        if (atomic_load_explicit(&ring->slots[at].state, memory_order_relaxed) == SK_RECALL_FREE &&
            atomic_compare_exchange_strong(&ring->slots[at].state, &state, SK_RECALL_BUSY)) {
            memcpy(ring->vectors + (size_t)at * self->params.dim, vector,
                   self->params.dim * sizeof *vector);
            atomic_store_explicit(&ring->slots[at].state, SK_RECALL_FULL, memory_order_release);
            return;
        }
    }
}

static bool is_in(const uint32_t *rows, uint32_t count, uint32_t row)
{
    uint32_t low = 0;
    for (uint32_t left = count; left > 0;) {
        const uint32_t half = left / 2;
        if (rows[low + half] < row) {
            low += half + 1;
            left -= half + 1;
        } else {
            left = half;
        }
    }
    return low < count && rows[low] == row;
}

/* The true neighbours among what would be ranked if the walk ended here. */
static uint8_t hits_of(const struct sk_beam *beam)
{
    const struct sk_recall_walk *walk = beam->recall;
    const uint32_t ranked = sk_rank_count(walk->k, beam->level);
    uint32_t hits = 0;
    for (uint32_t i = 0; i < beam->scratch->beam_count && i < ranked; i++)
        hits += is_in(walk->truth, walk->k, sk_key_row(beam->scratch->beam[i]));
    return (uint8_t)hits;
}

void sk_recall_attach(struct sk_beam *beam, struct sk_recall_walk *walk)
{
    beam->recall = walk;
    beam->level = sk_recall_level_size(walk->k, 0);
    beam->ef = beam_size(walk->k, 0);
}

bool sk_recall_widen(struct sk_beam *beam)
{
    struct sk_recall_walk *walk = beam->recall;
    const struct sk_scratch *scratch = beam->scratch;
    const uint32_t count = scratch->beam_count;
    if (count == 0)
        return false;
    const float kth = sk_key_distance(scratch->beam[walk->k < count ? walk->k - 1 : count - 1]);
    const float last = sk_key_distance(scratch->beam[beam->level < count ? beam->level - 1 : count - 1]);
    const float gap = walk->typical - kth, floor = 0.001F * walk->scale;
    const float contrast = 1 - gap / walk->scale;
    const float spread = (last - kth) / (gap > floor ? gap : floor);
    if (walk->sample != NULL) {
        walk->sample->contrast[walk->level] = contrast;
        walk->sample->spread[walk->level] = spread;
        walk->sample->hits[walk->level] = hits_of(beam);
    } else if (walk->bias + walk->contrast_weight * contrast + walk->spread_weight * spread >=
               walk->bar) {
        return false;
    }
    if (walk->level + 1 == SK_RECALL_LEVELS)
        return false;
    walk->level++;
    beam->level = sk_recall_level_size(walk->k, walk->level);
    beam->ef = beam_size(walk->k, walk->level);
    return true;
}
