/* What readers run: walks and scans (filtered walks: filter.c); no locks, no waiting. */
#include "actors/shard-worker/index/near.h"
#include "actors/shard-worker/index/search.h"

#include <math.h>
#include <stdlib.h>

enum { EF_DEFAULT = 64, RANK_TURN = 4 };

/* How many deviations of a 4-bit distance behind the k-th best a row is ranked still. At 2 the recall falls by
 * 0.0006, at 3 it is that of ranking all. */
static const float RANK_MARGIN = 3.0F;

uint32_t sk_index_result_rows(uint32_t k)
{
    return k + k / 2 + 16;
}

enum sk_err sk_index_reader_new(struct sk_index_reader **out, struct sk_index *index,
                                struct sk_diag *d)
{
    *out = NULL;
    struct sk_index_reader *self = calloc(1, sizeof *self);
    if (self == NULL || !sk_scratch_init(&self->scratch, index)) {
        free(self);
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a reader");
    }
    for (uint32_t slot = 0; slot < SK_INDEX_READERS_MAX; slot++) {
        bool is_used = false;
        if (atomic_compare_exchange_strong(&index->readers[slot].is_used, &is_used, true)) {
            self->index = index;
            self->slot = slot;
            *out = self;
            return SK_ERR_OK;
        }
    }
    sk_scratch_deinit(&self->scratch);
    free(self);
    return sk_fail(d, SK_ERR_BUSY, "all %d readers of the index are in use", SK_INDEX_READERS_MAX);
}

void sk_index_reader_destroy(struct sk_index_reader **self)
{
    if (*self == NULL)
        return;
    atomic_store(&(*self)->index->readers[(*self)->slot].is_used, false);
    sk_lanes_destroy(&(*self)->lanes);
    sk_scratch_deinit(&(*self)->scratch);
    free(*self);
    *self = NULL;
}

void sk_search_emit(struct sk_search *s, uint32_t count)
{
    struct sk_index_result *result = s->result;
    const uint64_t *keys = s->scratch->keys;
    if (count > result->capacity)
        count = result->capacity;
    for (uint32_t i = 0; i < count; i++) {
        result->rows[i] = sk_key_row(keys[i]);
        result->scores[i] = sk_score_of(s->index, &s->scratch->prepared, sk_key_distance(keys[i]));
    }
    result->count = count;
}

/* ---- walks ---- */

static void ask_planes(const struct sk_search *s, uint32_t begin)
{
    for (uint32_t i = begin; i < begin + RANK_TURN && i < s->rank_count; i++) {
        const uint32_t row = sk_key_row(s->scratch->keys[i]);
        sk_prefetch(sk_factors_of(s->generation, row), sizeof(struct sk_factors));
        sk_prefetch(sk_plane_of(s->index, s->generation, row), s->index->padded);
    }
}

static enum sk_err rank_begin(struct sk_search *s, struct sk_diag *d)
{
    struct sk_scratch *scratch = s->scratch;
    const uint32_t wanted = sk_rank_count(s->query->k, s->ef);
    uint32_t count = 0;
    s->is_ranked = !sk_has_planes(s->generation);
    if (s->is_ranked)
        return sk_bare_rank(s, d);
    if (!sk_scratch_fit(scratch, s->row_count, s->ef, wanted + 1))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", wanted);
    float last = INFINITY;
    for (uint32_t i = 0; i < scratch->beam_count && count < wanted; i++) {
        const uint32_t row = sk_key_row(scratch->beam[i]);
        const float distance = sk_key_distance(scratch->beam[i]);
        if (distance > last)
            break;
        if (sk_state(s->index, row) != SK_ROW_LIVE)
            continue;
        scratch->keys[count++] = sk_key(0, row);
        if (count == s->query->k && s->index->code_bytes > 0) /* those behind it cannot pass it */
            last = distance + RANK_MARGIN * sk_bare_deviation(s->index, scratch->prepared.norm,
                                                              sk_norm_sq_of(s->index, s->generation,
                                                                            row));
    }
    s->rank_count = count;
    s->ranked = 0;
    s->rank_error = 0;
    ask_planes(s, 0);
    return SK_ERR_OK;
}

/* All are ranked: the best and those that cannot be told from them. */
static void rank_end(struct sk_search *s)
{
    const uint64_t *keys = s->scratch->keys;
    const uint32_t count = s->rank_count;
    s->counters.reranks += count;
    sk_select_smallest(s->scratch->keys, count, count);
    uint32_t kept = count < s->query->k ? count : s->query->k;
    if (kept > 0) {
        /* The bound is for the worst direction; by chance it is smaller by the root of the
         * dimension. */
        float margin = 4 * s->rank_error / sqrtf((float)s->index->padded);
        float last = sk_key_distance(keys[kept - 1]) + margin;
        while (kept < count && sk_key_distance(keys[kept]) <= last)
            kept++;
        while (kept > 0 && sk_key_distance(keys[kept - 1]) > s->worst + margin)
            kept--;
    }
    sk_search_emit(s, kept);
    s->is_ranked = true;
}

bool sk_search_rank_turn(struct sk_search *s)
{
    uint64_t *keys = s->scratch->keys;
    if (s->is_ranked)
        return false;
    const uint32_t end =
        s->rank_count - s->ranked < RANK_TURN ? s->rank_count : s->ranked + RANK_TURN;
    ask_planes(s, end);
    for (uint32_t i = s->ranked; i < end; i++) {
        const uint32_t row = sk_key_row(keys[i]);
        keys[i] = sk_key(sk_distance_plane(s->index, s->generation, &s->scratch->prepared, row,
                                           &s->rank_error),
                         row);
    }
    s->ranked = end;
    if (end == s->rank_count)
        rank_end(s);
    return !s->is_ranked;
}

enum sk_err sk_search_rank_beam(struct sk_search *s, struct sk_diag *d)
{
    enum sk_err rc = rank_begin(s, d);
    while (rc == SK_ERR_OK && sk_search_rank_turn(s))
        ;
    return rc;
}

/* With a recall target walks go by the codes in every profile: that is what the model knows. */
static enum sk_err walk_begin(struct sk_search *s, bool is_adaptive, struct sk_diag *d)
{
    const uint32_t room = is_adaptive ? sk_recall_room(s->query->k) : s->ef;
    s->is_near = s->query->recall_target == 0 && sk_near_is_ready(s->index);
    s->beam.level = 0;
    s->beam.recall = NULL;
    if (s->is_near) {
        s->near = (struct sk_near_walk){.index = s->index,
                                        .generation = s->generation,
                                        .scratch = s->scratch,
                                        .deadline = s->deadline};
        if (!sk_near_fit(&s->near, s->query->k, s->ef))
            return sk_fail(d, SK_ERR_NOMEM, "no memory for a beam of %u", s->ef);
        sk_near_begin(&s->near);
        return SK_ERR_OK;
    }
    if (!sk_scratch_fit(s->scratch, s->row_count, room, 1))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a beam of %u", room);
    s->beam.index = s->index;
    s->beam.generation = s->generation;
    s->beam.scratch = s->scratch;
    s->beam.deadline = s->deadline;
    s->beam.ef = s->ef;
    s->beam.cursor = 0;
    s->beam.counters = s->counters;
    s->beam.is_truncated = false;
    if (is_adaptive)
        sk_recall_attach(&s->beam, &s->recall);
    sk_beam_begin(&s->beam);
    return SK_ERR_OK;
}

bool sk_search_walk_turn(struct sk_search *s)
{
    if (s->is_near) {
        if (s->near.row != SK_NO_ROW)
            sk_near_take(&s->near);
        return s->near.row != SK_NO_ROW;
    }
    if (s->beam.row != SK_NO_ROW)
        sk_beam_turn(&s->beam);
    return s->beam.row != SK_NO_ROW;
}

enum sk_err sk_search_end_walk(struct sk_search *s, struct sk_diag *d)
{
    const uint32_t live = atomic_load_explicit(&s->index->live_count, memory_order_relaxed);
    uint32_t usable = 0;
    if (s->is_near)
        sk_near_end(&s->near);
    else
        sk_beam_end(&s->beam);
    s->counters = s->is_near ? s->near.counters : s->beam.counters;
    s->result->is_truncated = s->is_near ? s->near.is_truncated : s->beam.is_truncated;
    if (s->beam.recall != NULL)
        s->ef = s->beam.level;
    for (uint32_t i = 0; i < s->scratch->beam_count; i++)
        usable += sk_state(s->index, sk_key_row(s->scratch->beam[i])) == SK_ROW_LIVE;
    if (usable >= s->query->k || usable >= live || s->result->is_truncated)
        return rank_begin(s, d);
    s->counters.retries++; /* tombstones fill the beam */
    s->is_ranked = true;
    return sk_search_filtered(s, d);
}

/* ---- entry ---- */

static enum sk_err check_query(const struct sk_index *self, const struct sk_index_query *query,
                               const struct sk_index_result *result, struct sk_diag *d)
{
    if (query->k < 1 || query->ef > SK_INDEX_EF_MAX || query->k > SK_INDEX_EF_MAX)
        return sk_fail(d, SK_ERR_INVALID, "k %u and ef %u, want 1..%d and 0..%d", query->k,
                       query->ef, SK_INDEX_EF_MAX, SK_INDEX_EF_MAX);
    if ((query->ef != 0) + (query->nprobe != 0) + (query->recall_target != 0) > 1)
        return sk_fail(d, SK_ERR_INVALID, "ef, nprobe and recall exclude one another");
    if (query->nprobe != 0 && self->params.kind < SK_INDEX_IVF_FLAT)
        return sk_fail(d, SK_ERR_INVALID, "nprobe %u, but this index has no lists", query->nprobe);
    if (query->recall_target != 0 &&
        !(query->recall_target >= SK_INDEX_RECALL_MIN && query->recall_target <= SK_INDEX_RECALL_MAX))
        return sk_fail(d, SK_ERR_INVALID, "recall %g, want %g to %g", (double)query->recall_target,
                       (double)SK_INDEX_RECALL_MIN, (double)SK_INDEX_RECALL_MAX);
    if (result->capacity < query->k)
        return sk_fail(d, SK_ERR_INVALID, "room for %u rows, k is %u", result->capacity, query->k);
    if (!sk_vector_is_finite(query->vector, self->params.dim))
        return sk_fail_field(d, SK_ERR_INVALID, "vector", "the vector has NaN or infinity in it");
    double norm_sq = self->kernels->dot_f64(query->vector, query->vector, self->params.dim);
    if (self->params.metric == SK_METRIC_COSINE ? !(norm_sq > 0) : norm_sq > 1e36)
        return sk_fail_field(d, SK_ERR_INVALID, "vector", "the vector's length is %g",
                             sqrt(norm_sq));
    if (query->has_score_worst && !(fabsf(query->score_worst) <= 3e18F))
        return sk_fail_field(d, SK_ERR_INVALID, "score_threshold", "%g is out of range",
                             (double)query->score_worst);
    return SK_ERR_OK;
}

static float worst_distance(const struct sk_index *self, const struct sk_index_query *query,
                            const struct sk_prepared *prepared)
{
    if (!query->has_score_worst)
        return INFINITY;
    float score = query->score_worst, slack = 1e-5F;
    switch (self->params.metric) {
    case SK_METRIC_L2:
        return score < 0 ? -INFINITY : score * score * (1 + slack) + slack * prepared->norm_sq;
    case SK_METRIC_IP:
        return 2 * (prepared->offset - score) + slack * (fabsf(prepared->offset) + fabsf(score));
    case SK_METRIC_COSINE:
        return 2 * (1 - score) + slack;
    }
    return INFINITY;
}

enum sk_err sk_search_begin(struct sk_search *s, const struct sk_index *index,
                            struct sk_scratch *scratch, const struct sk_index_query *query,
                            struct sk_index_result *result, bool *is_walk, struct sk_diag *d)
{
    *is_walk = false;
    result->count = 0;
    result->is_certain = result->is_truncated = false;
    result->hops = result->distances = result->reranks = result->retries = 0;
    enum sk_err rc = check_query(index, query, result, d);
    if (rc != SK_ERR_OK)
        return rc;
    s->index = index;
    s->generation = sk_generation_now(index);
    s->scratch = scratch;
    s->query = query;
    s->result = result;
    s->deadline = (struct sk_deadline){query->clock.mono_us != NULL ? &query->clock : NULL,
                                       query->deadline_us};
    s->counters = (struct sk_counters){0};
    s->row_count = sk_row_count(index);
    s->ef = query->ef == 0 ? EF_DEFAULT : query->ef;
    if (s->ef < query->k)
        s->ef = query->k;
    sk_prepare_query(index, s->generation, query->vector, &scratch->prepared);
    s->worst = worst_distance(index, query, &scratch->prepared);
    *is_walk = false;
    if (index->ivf != NULL)
        return SK_ERR_OK;
    s->is_scan = query->is_exact || index->params.kind == SK_INDEX_FLAT ||
                 s->row_count < index->params.flat_below;
    bool is_adaptive = false;
    if (query->recall_target > 0 && !s->is_scan) {
        s->ef = sk_recall_begin(index, query, &scratch->prepared, &s->recall, &is_adaptive);
        sk_recall_note(index, scratch, query->vector);
    }
    *is_walk = !s->is_scan && query->filter == NULL;
    return *is_walk ? walk_begin(s, is_adaptive, d) : SK_ERR_OK;
}

enum sk_err sk_search_complete(struct sk_search *s, struct sk_diag *d)
{
    if (s->index->ivf != NULL)
        return sk_ivf_search(s, d);
    return s->is_scan ? sk_search_scan(s, d) : sk_search_filtered(s, d);
}

void sk_search_count(struct sk_search *s)
{
    s->result->hops = s->counters.hops;
    s->result->distances = s->counters.distances;
    s->result->reranks = s->counters.reranks;
    s->result->retries = s->counters.retries;
}

enum sk_err sk_index_search(const struct sk_index *self, struct sk_index_reader *reader,
                            const struct sk_index_query *query, struct sk_index_result *result,
                            struct sk_diag *d)
{
    struct sk_search s;
    bool is_walk;
    (void)sk_epoch_enter(reader->index, reader->slot);
    enum sk_err rc = sk_search_begin(&s, self, &reader->scratch, query, result, &is_walk, d);
    if (rc == SK_ERR_OK && is_walk) {
        while (sk_search_walk_turn(&s))
            ;
        rc = sk_search_end_walk(&s, d);
        while (rc == SK_ERR_OK && sk_search_rank_turn(&s))
            ;
    } else if (rc == SK_ERR_OK) {
        rc = sk_search_complete(&s, d);
    }
    sk_epoch_leave(reader->index, reader->slot);
    if (rc == SK_ERR_OK)
        sk_search_count(&s);
    return rc;
}
