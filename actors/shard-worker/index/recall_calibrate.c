/* See recall.h: the writer's part. Work comes in quanta: 16 queries get their true neighbours, slice by
 * slice of the rows; each then walks through all levels; from time to time the model is fitted anew. */
#include "actors/shard-worker/index/batch.h"
#include "actors/shard-worker/index/recall.h"

#include <math.h>
#include <stdlib.h>

enum {
    TRUTH_ROWS = 2048, /* a quantum */
    FIT_STEPS_MAX = 30,
    REAL_BATCHES_A_FIT = 4,
    ROW_TRIES = 256,
    NORM_ROWS = 1024, /* looked at for the mean length */
};
static const double FIT_ENOUGH = 1e-3;
static const float SHIFT_MILD = 0.5F, SHIFT_STRONG = 1;

enum stage { STAGE_IDLE, STAGE_TRUTH, STAGE_WALK, STAGE_FIT, STAGE_BARS };

struct truth {
    uint64_t keys[SK_RECALL_K_MAX]; /* rising */
    uint32_t count;
};

struct sk_recall_calibration {
    struct sk_recall_samples *samples[SK_RECALL_CLASSES]; /* NULL until wanted */
    struct sk_recall_model models[SK_RECALL_CLASSES];
    uint64_t random;
    uint32_t made_rows;    /* live rows when the made samples were begun */
    uint32_t real_batches; /* since the last fit */

    enum stage stage;
    unsigned class_at; /* being walked or fitted */
    bool is_real;      /* the batch */
    uint32_t lane_count, lane, generation_number, cursor;
    float *vectors; /* SK_BATCH_WIDTH x padded, rotated */
    struct sk_batch batch;
    struct truth truth[SK_BATCH_WIDTH];
    unsigned fit_step, target_at;
    double bars[SK_RECALL_TARGETS];
};

struct sk_recall *sk_recall_new(void)
{
    return calloc(1, sizeof(struct sk_recall));
}

void sk_recall_destroy(struct sk_recall **self)
{
    if (*self == NULL)
        return;
    struct sk_recall_calibration *calibration = (*self)->calibration;
    if (calibration != NULL) {
        sk_batch_deinit(&calibration->batch);
        for (unsigned i = 0; i < SK_RECALL_CLASSES; i++)
            free(calibration->samples[i]);
        free(calibration->vectors);
        free(calibration);
    }
    free(atomic_load_explicit(&(*self)->ring, memory_order_relaxed));
    free(*self);
    *self = NULL;
}

/* ---- what is to be done ---- */

static bool is_wanted(const struct sk_recall *recall, unsigned class_at)
{
    return (atomic_load_explicit(&recall->wanted, memory_order_relaxed) >> class_at & 1) != 0;
}

static uint32_t live_rows(const struct sk_index *self)
{
    return atomic_load_explicit(&self->live_count, memory_order_relaxed);
}

static bool ring_is_full(const struct sk_recall *recall)
{
    struct sk_recall_ring *ring = atomic_load_explicit(&recall->ring, memory_order_relaxed);
    for (unsigned at = 0; ring != NULL && at < SK_RECALL_RING; at++)
        if (atomic_load_explicit(&ring->slots[at].state, memory_order_acquire) != SK_RECALL_FULL)
            return false;
    return ring != NULL;
}

/* The rows are no longer those that the made samples were made of. */
static bool has_outgrown(const struct sk_index *self)
{
    const struct sk_recall_calibration *calibration = self->recall->calibration;
    const uint32_t live = live_rows(self), then = calibration->made_rows;
    return live > then + then / 2 || live < then / 2;
}

static bool lacks_made(const struct sk_index *self)
{
    const struct sk_recall_calibration *calibration = self->recall->calibration;
    for (unsigned i = 0; i < SK_RECALL_CLASSES; i++)
        if (is_wanted(self->recall, i) &&
            (calibration->samples[i] == NULL || calibration->samples[i]->made_count < SK_RECALL_MADE))
            return true;
    return has_outgrown(self);
}

bool sk_recall_is_due(const struct sk_index *self)
{
    const struct sk_recall *recall = self->recall;
    /* without 8-bit codes (profile memory) there is nothing to measure by: searches keep the default size */
    if (self->params.kind != SK_INDEX_HNSW || !sk_has_planes(sk_generation_now(self)) ||
        atomic_load_explicit(&recall->wanted, memory_order_relaxed) == 0 ||
        live_rows(self) < self->params.flat_below || live_rows(self) < 4 * SK_RECALL_K_MAX)
        return false;
    return recall->calibration == NULL || recall->calibration->stage != STAGE_IDLE ||
           lacks_made(self) || ring_is_full(recall);
}

static bool prepare(struct sk_index *self)
{
    struct sk_recall *recall = self->recall;
    size_t bytes = 0;
    if (recall->calibration == NULL) {
        const size_t vectors = (size_t)SK_BATCH_WIDTH * self->padded * sizeof(float);
        const size_t ring = sizeof(struct sk_recall_ring) +
                            (size_t)SK_RECALL_RING * self->params.dim * sizeof(float);
        struct sk_recall_calibration *made = calloc(1, sizeof *made);
        struct sk_recall_ring *new_ring = calloc(1, ring);
        if (made != NULL)
            made->vectors = malloc(vectors);
        if (made == NULL || new_ring == NULL || made->vectors == NULL) {
            if (made != NULL)
                free(made->vectors);
            free(made);
            free(new_ring);
            return false;
        }
        made->random = self->params.seed;
        recall->calibration = made;
        atomic_store_explicit(&recall->ring, new_ring, memory_order_release);
        bytes += sizeof *made + vectors + ring;
    }
    struct sk_recall_calibration *calibration = recall->calibration;
    for (unsigned i = 0; i < SK_RECALL_CLASSES; i++) {
        if (!is_wanted(recall, i) || calibration->samples[i] != NULL)
            continue;
        calibration->samples[i] = calloc(1, sizeof *calibration->samples[i]);
        if (calibration->samples[i] == NULL)
            return false;
        bytes += sizeof *calibration->samples[i];
    }
    if (bytes > 0)
        atomic_fetch_add_explicit(&self->memory_bytes, bytes, memory_order_relaxed);
    return true;
}

/* ---- queries ---- */

static uint64_t next_random(struct sk_recall_calibration *self)
{
    uint64_t z = (self->random += 0x9E3779B97F4A7C15U);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static uint32_t any_live_row(const struct sk_index *self, struct sk_recall_calibration *calibration)
{
    const uint32_t row_count = sk_row_count(self);
    for (unsigned n = 0; n < ROW_TRIES; n++) {
        const uint32_t row = (uint32_t)(next_random(calibration) % row_count);
        if (sk_state(self, row) == SK_ROW_LIVE)
            return row;
    }
    return SK_NO_ROW;
}

/* A row, moved by `shift` of the difference of two others. */
static bool make_query(struct sk_index *self, float shift, float *out)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    const struct sk_generation *generation = sk_generation_now(self);
    float *part = self->scratch.raw;
    const float weights[3] = {1, shift, -shift};
    memcpy(out, generation->mean, self->padded * sizeof *out);
    for (unsigned n = 0; n < 3; n++) {
        const uint32_t row = any_live_row(self, calibration);
        if (row == SK_NO_ROW)
            return false;
        sk_decode(self, generation, row, part);
        for (uint32_t i = 0; i < self->padded; i++)
            out[i] += weights[n] * part[i];
    }
    const float norm_sq = self->kernels->dot_f32(out, out, self->padded);
    if (!(norm_sq > 1e-20F))
        return false;
    if (self->params.metric == SK_METRIC_COSINE)
        self->kernels->scale_f32(out, 1 / sqrtf(norm_sq), self->padded);
    return true;
}

static void make_queries(struct sk_index *self)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    calibration->is_real = false;
    for (uint32_t n = 0; n < SK_BATCH_WIDTH; n++)
        if (make_query(self, n % 2 == 0 ? SHIFT_MILD : SHIFT_STRONG,
                       calibration->vectors + (size_t)calibration->lane_count * self->padded))
            calibration->lane_count++;
}

static void take_ring(struct sk_index *self)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    struct sk_recall_ring *ring = atomic_load_explicit(&self->recall->ring, memory_order_relaxed);
    calibration->is_real = true;
    for (unsigned at = 0; at < SK_RECALL_RING; at++) {
        sk_rotate(self, ring->vectors + (size_t)at * self->params.dim,
                  calibration->vectors + (size_t)calibration->lane_count++ * self->padded);
        atomic_store_explicit(&ring->slots[at].state, SK_RECALL_FREE, memory_order_release);
    }
}

/* ---- their true neighbours ---- */

static bool on_row(void *impl, uint32_t lane, uint32_t row, float distance, float error)
{
    struct sk_recall_calibration *self = impl;
    struct truth *truth = &self->truth[lane];
    const uint64_t key = sk_key(distance, row);
    (void)error;
    uint32_t at = truth->count;
    if (at == SK_RECALL_K_MAX) {
        if (key >= truth->keys[at - 1])
            return true;
        at--;
    } else {
        truth->count++;
    }
    for (; at > 0 && truth->keys[at - 1] > key; at--)
        truth->keys[at] = truth->keys[at - 1];
    truth->keys[at] = key;
    if (truth->count == SK_RECALL_K_MAX)
        self->batch.limit[lane] = sk_key_distance(truth->keys[SK_RECALL_K_MAX - 1]);
    return true;
}

static void drop_batch(struct sk_recall_calibration *self)
{
    sk_batch_deinit(&self->batch);
    self->stage = STAGE_IDLE;
    self->lane_count = 0;
}

/* calibration->vectors holds lane_count queries. */
static void begin_truth(struct sk_index *self)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    const struct sk_generation *generation = sk_generation_now(self);
    if (calibration->lane_count == 0 || !sk_batch_init(&calibration->batch, self, generation)) {
        calibration->lane_count = 0;
        return;
    }
    calibration->batch.impl = calibration;
    calibration->batch.on_row = on_row;
    for (uint32_t lane = 0; lane < calibration->lane_count; lane++) {
        sk_prepare_rotated(self, generation, calibration->vectors + (size_t)lane * self->padded,
                           &self->scratch.prepared);
        sk_batch_set(&calibration->batch, lane, &self->scratch.prepared, INFINITY);
        calibration->truth[lane].count = 0;
    }
    calibration->generation_number = generation->number;
    calibration->cursor = calibration->lane = 0;
    calibration->class_at = 0;
    calibration->stage = STAGE_TRUTH;
}

static void truth_quantum(struct sk_index *self)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    const uint32_t row_count = sk_row_count(self), left = row_count - calibration->cursor;
    if (calibration->generation_number != sk_generation_now(self)->number) {
        drop_batch(calibration); /* the codes are others now */
        return;
    }
    const uint32_t end = calibration->cursor + (left < TRUTH_ROWS ? left : TRUTH_ROWS);
    (void)sk_batch_scan(&calibration->batch, calibration->cursor, end);
    calibration->cursor = end;
    if (end == row_count)
        calibration->stage = STAGE_WALK;
}

/* ---- walks ---- */

static int compare_rows(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void walk_one(struct sk_index *self, unsigned class_at, uint32_t lane)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    const struct sk_generation *generation = sk_generation_now(self);
    struct sk_recall_samples *samples = calibration->samples[class_at];
    const struct truth *truth = &calibration->truth[lane];
    const uint32_t k = sk_recall_class_k(class_at);
    uint32_t rows[SK_RECALL_K_MAX];
    struct sk_recall_walk walk;
    if (truth->count < k || !sk_scratch_fit(&self->scratch, sk_row_count(self), sk_recall_room(k), 1))
        return;
    for (uint32_t i = 0; i < k; i++) {
        rows[i] = sk_key_row(truth->keys[i]);
        if (sk_state(self, rows[i]) != SK_ROW_LIVE)
            return; /* removed since it was found */
    }
    qsort(rows, k, sizeof *rows, compare_rows);
    sk_prepare_rotated(self, generation, calibration->vectors + (size_t)lane * self->padded,
                       &self->scratch.prepared);
    sk_recall_walk_init(&walk, self, k, &self->scratch.prepared);
    walk.truth = rows;
    walk.sample = calibration->is_real ? &samples->real[samples->real_next]
                                       : &samples->made[samples->made_count];
    *walk.sample = (struct sk_recall_sample){.hits = {0}};
    struct sk_beam beam = {.index = self, .generation = generation, .scratch = &self->scratch};
    sk_recall_attach(&beam, &walk);
    sk_beam_run(&beam);
    if (walk.level + 1 < SK_RECALL_LEVELS)
        return; /* nothing to walk on */
    if (!calibration->is_real) {
        samples->made_count++;
        return;
    }
    samples->real_next = (samples->real_next + 1) % SK_RECALL_REAL;
    if (samples->real_count < SK_RECALL_REAL)
        samples->real_count++;
}

static bool wants_sample(const struct sk_recall *recall, unsigned class_at)
{
    const struct sk_recall_samples *samples = recall->calibration->samples[class_at];
    return samples != NULL && (recall->calibration->is_real || samples->made_count < SK_RECALL_MADE);
}

static void begin_fit(struct sk_recall_calibration *self, unsigned class_at)
{
    self->class_at = class_at;
    self->fit_step = self->target_at = 0;
    self->stage = STAGE_FIT;
}

/* After the last walk of a batch: is it time for a new model? */
static void end_batch(struct sk_recall *recall)
{
    struct sk_recall_calibration *calibration = recall->calibration;
    const bool is_real = calibration->is_real;
    drop_batch(calibration);
    calibration->real_batches += is_real;
    for (unsigned i = 0; i < SK_RECALL_CLASSES; i++) {
        const struct sk_recall_samples *samples = calibration->samples[i];
        if (samples != NULL && samples->made_count < SK_RECALL_MADE)
            return;
    }
    if (!is_real || calibration->real_batches >= REAL_BATCHES_A_FIT) {
        calibration->real_batches = 0;
        begin_fit(calibration, 0);
    }
}

static void walk_quantum(struct sk_index *self)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    if (calibration->lane == calibration->lane_count) {
        calibration->lane = 0;
        calibration->class_at++;
    }
    if (calibration->class_at == SK_RECALL_CLASSES ||
        calibration->generation_number != sk_generation_now(self)->number) {
        end_batch(self->recall);
        return;
    }
    if (wants_sample(self->recall, calibration->class_at))
        walk_one(self, calibration->class_at, calibration->lane);
    calibration->lane++;
}

/* ---- the model ---- */

static void publish(struct sk_recall *recall, unsigned class_at)
{
    const struct sk_recall_calibration *calibration = recall->calibration;
    const struct sk_recall_samples *samples = calibration->samples[class_at];
    const struct sk_recall_model *model = &calibration->models[class_at];
    struct sk_recall_shared *shared = &recall->classes[class_at];
    const uint32_t k = sk_recall_class_k(class_at);
    atomic_store_explicit(&shared->bias, (float)model->bias, memory_order_relaxed);
    atomic_store_explicit(&shared->contrast_weight, (float)model->contrast_weight,
                          memory_order_relaxed);
    atomic_store_explicit(&shared->spread_weight, (float)model->spread_weight, memory_order_relaxed);
    for (unsigned i = 0; i < SK_RECALL_TARGETS; i++) {
        atomic_store_explicit(&shared->bars[i], (float)calibration->bars[i], memory_order_relaxed);
        atomic_store_explicit(&shared->levels[i],
                              sk_recall_fit_level(samples, k, (double)sk_recall_targets[i]),
                              memory_order_relaxed);
    }
    atomic_store_explicit(&shared->is_ready, true, memory_order_release);
    atomic_store_explicit(&recall->real_count, samples->real_count, memory_order_relaxed);
    if (class_at != atomic_load_explicit(&recall->asked_class, memory_order_relaxed))
        return;
    const float target = atomic_load_explicit(&recall->asked_target, memory_order_relaxed);
    double level_mean = 0;
    const double measured =
        sk_recall_measure(samples, k, model, (double)sk_recall_bar(shared, target), &level_mean);
    atomic_store_explicit(&recall->measured, (float)measured, memory_order_relaxed);
    atomic_store_explicit(&recall->measured_target, target, memory_order_relaxed);
    atomic_store_explicit(&recall->level_mean, (float)level_mean, memory_order_relaxed);
}

static void fit_quantum(struct sk_recall *recall)
{
    struct sk_recall_calibration *calibration = recall->calibration;
    const unsigned class_at = calibration->class_at;
    if (class_at == SK_RECALL_CLASSES) {
        calibration->stage = STAGE_IDLE;
        return;
    }
    const struct sk_recall_samples *samples = calibration->samples[class_at];
    const uint32_t k = sk_recall_class_k(class_at);
    if (samples == NULL) {
        begin_fit(calibration, class_at + 1);
    } else if (calibration->stage == STAGE_FIT) {
        if (sk_recall_fit_step(samples, k, &calibration->models[class_at]) < FIT_ENOUGH ||
            ++calibration->fit_step == FIT_STEPS_MAX)
            calibration->stage = STAGE_BARS;
    } else {
        calibration->bars[calibration->target_at] =
            sk_recall_fit_bar(samples, k, &calibration->models[class_at],
                              (double)sk_recall_targets[calibration->target_at]);
        if (++calibration->target_at < SK_RECALL_TARGETS)
            return;
        publish(recall, class_at);
        begin_fit(calibration, class_at + 1);
    }
}

static void measure_norms(struct sk_index *self)
{
    const struct sk_generation *generation = sk_generation_now(self);
    double sum = 0;
    uint32_t count = 0;
    for (unsigned n = 0; n < NORM_ROWS; n++) {
        const uint32_t row = any_live_row(self, self->recall->calibration);
        if (row == SK_NO_ROW)
            continue;
        sum += (double)sk_factors_of(generation, row)->norm_sq;
        count++;
    }
    if (count > 0)
        atomic_store_explicit(&self->recall->norm_mean, (float)(sum / count), memory_order_relaxed);
}

static void begin_something(struct sk_index *self)
{
    struct sk_recall_calibration *calibration = self->recall->calibration;
    if (has_outgrown(self)) {
        calibration->made_rows = live_rows(self);
        for (unsigned i = 0; i < SK_RECALL_CLASSES; i++)
            if (calibration->samples[i] != NULL)
                calibration->samples[i]->made_count = 0;
        measure_norms(self);
    }
    if (lacks_made(self))
        make_queries(self);
    else if (ring_is_full(self->recall))
        take_ring(self);
    begin_truth(self);
}

void sk_recall_quantum(struct sk_index *self)
{
    if (!prepare(self)) { /* until it is asked for again */
        atomic_store_explicit(&self->recall->wanted, 0, memory_order_relaxed);
        return;
    }
    switch (self->recall->calibration->stage) {
    case STAGE_IDLE:
        begin_something(self);
        break;
    case STAGE_TRUTH:
        truth_quantum(self);
        break;
    case STAGE_WALK:
        walk_quantum(self);
        break;
    case STAGE_FIT:
    case STAGE_BARS:
        fit_quantum(self->recall);
        break;
    }
}

/* ---- at once ---- */

enum sk_err sk_index_calibrate(struct sk_index *self, const float *queries, uint32_t count, uint32_t k,
                               struct sk_diag *d)
{
    struct sk_recall *recall = self->recall;
    const uint32_t dim = self->params.dim;
    if (k < 1 || k > SK_INDEX_EF_MAX)
        return sk_fail(d, SK_ERR_INVALID, "k %u, want 1..%d", k, SK_INDEX_EF_MAX);
    if (self->params.kind == SK_INDEX_HNSW && !sk_has_planes(sk_generation_now(self)))
        return sk_fail(d, SK_ERR_INVALID, "profile memory has no 8-bit codes to calibrate by: its searches with "
                                          "a recall target take a wide beam; use balanced or speed");
    for (uint32_t i = 0; i < count; i++) {
        const float *x = queries + (size_t)i * dim;
        if (!sk_vector_is_finite(x, dim) || (self->params.metric == SK_METRIC_COSINE &&
                                            !(self->kernels->dot_f64(x, x, dim) > 0)))
            return sk_fail(d, SK_ERR_INVALID, "query %u is zero, or has NaN or infinity in it", i);
    }
    atomic_fetch_or_explicit(&recall->wanted, 1U << sk_recall_class(k), memory_order_relaxed);
    while (sk_recall_is_due(self)) /* what was under way, and what it makes itself */
        sk_recall_quantum(self);
    struct sk_recall_calibration *calibration = recall->calibration;
    if (calibration == NULL)
        return SK_ERR_OK; /* a complete scan answers: nothing to calibrate */
    for (uint32_t at = 0; at < count; at += SK_BATCH_WIDTH) {
        calibration->is_real = true;
        for (uint32_t i = at; i < count && i < at + SK_BATCH_WIDTH; i++)
            sk_rotate(self, queries + (size_t)i * dim,
                      calibration->vectors + (size_t)calibration->lane_count++ * self->padded);
        begin_truth(self);
        while (calibration->stage != STAGE_IDLE)
            sk_recall_quantum(self);
    }
    begin_fit(calibration, 0);
    while (calibration->stage != STAGE_IDLE)
        sk_recall_quantum(self);
    return SK_ERR_OK;
}
