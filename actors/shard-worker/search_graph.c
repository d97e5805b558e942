/* The nearest neighbours of a query: by the graph and the rows that wait to be linked, or by a scan. */
#include "actors/shard-worker/search.h"

#include <stdlib.h>
#include <string.h>

enum { ORDERED_MAX = 64 }; /* more candidates are offered as the index has them */

struct candidate {
    float score; /* exact */
    uint32_t row;
};

static uint64_t search_clock_us(void *impl)
{
    return now_us(impl);
}

bool search_is_too_slow_here(struct search *self, uint64_t rows)
{
    struct reader *reader = self->reader;
    if (reader->job.lane != SK_LANE_QUICK || search_scan_us(rows, self->field->schema.dim) <=
                                                 reader->shard->worker->config.quick_cost_max_us)
        return false;
    self->read->wants_slow = true;
    return true;
}

/* ---- scoring ---- */

static void scorer_init(struct search *self)
{
    sk_scorer_init(&self->scorer, self->reader->shard->worker->kernels,
                   (enum sk_metric)self->field->schema.metric, self->query, self->field->schema.dim);
}

static bool is_late(struct search *self)
{
    if (self->looked++ % DEADLINE_EVERY != 0)
        return false;
    struct sk_diag *d = &self->read->diag;
    if (self->code == SK_ERR_OK)
        self->code = read_deadline(self->reader, d);
    return self->code != SK_ERR_OK;
}

/* Offers a row with its exact score; false when the snapshot does not have it (any more). */
static bool offer(struct search *self, uint32_t row, float score)
{
    struct sk_record record;
    struct sk_diag ignored = {0};
    if (!sk_rank_may_take(&self->rank, score))
        return true;
    enum sk_err rc = sk_store_record(self->reader->store, row, &record, &ignored);
    if (rc == SK_ERR_NOT_FOUND)
        return false;
    if (rc != SK_ERR_OK) {
        self->code = rc;
        self->read->diag = ignored;
        return true;
    }
    if (self->like.size != 0 && sk_id_compare(&record.id, &self->like) == 0)
        return true;
    sk_rank_offer(&self->rank, score, row, &record.id);
    return true;
}

/* A fast bound first: most rows of a scan need no exact score. */
static bool offer_row(struct search *self, uint32_t row)
{
    const float *vector = sk_store_vector(self->reader->store, self->field->at, row);
    float worst;
    if (vector == NULL)
        return false;
    if (sk_rank_worst(&self->rank, &worst) && !sk_scorer_may_reach(&self->scorer, vector, worst))
        return true;
    return offer(self, row, sk_scorer_exact(&self->scorer, vector));
}

static bool scan_each(void *impl, uint32_t row)
{
    struct search *self = impl;
    if (is_late(self))
        return false;
    offer_row(self, row);
    return self->code == SK_ERR_OK;
}

enum sk_err search_select(struct search *self, struct sk_diag *d)
{
    if (self->is_selected)
        return SK_ERR_OK;
    enum sk_err rc = sk_store_select(self->reader->store, self->filter, &self->selection, d);
    self->is_selected = rc == SK_ERR_OK;
    return rc;
}

/* Every live row that matches is scored. */
static enum sk_err scan(struct search *self, struct sk_diag *d)
{
    enum sk_err rc = search_select(self, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (search_is_too_slow_here(self, self->selection.count))
        return SK_ERR_OK;
    sk_rank_reset(&self->rank);
    sk_selection_each(&self->selection, scan_each, self);
    return self->code;
}

/* ---- the graph ---- */

static enum sk_err index_reader(struct search *self, struct sk_index *index,
                                struct sk_index_reader **out, struct sk_diag *d)
{
    struct reader *reader = self->reader;
    unsigned f = self->field->at;
    if (reader->index_of[f] != index) {
        /* Another index took over after this job was submitted. The one from before is there until the
         * job has ended: its grave waits for all jobs numbered below. */
        sk_index_reader_destroy(&reader->index_readers[f]);
        reader->index_of[f] = NULL;
        enum sk_err rc = sk_index_reader_new(&reader->index_readers[f], index, d);
        if (rc != SK_ERR_OK)
            return rc;
        reader->index_of[f] = index;
    }
    *out = reader->index_readers[f];
    return SK_ERR_OK;
}

static bool matches(const struct search *self, uint32_t row)
{
    return self->filter == NULL || sk_selection_has(&self->selection, row);
}

/* Rows that came from the pending buffer, so that the graph does not bring them a second time. */
static bool remember(struct search *self, uint32_t row)
{
    if (self->offered_count == self->offered_capacity) {
        uint32_t capacity = self->offered_capacity == 0 ? 64 : self->offered_capacity * 2;
        uint32_t *grown = sk_arena_alloc(&self->reader->arena, capacity * sizeof *grown);
        if (grown == NULL)
            return false;
        if (self->offered_count != 0)
            memcpy(grown, self->offered, self->offered_count * sizeof *grown);
        self->offered = grown;
        self->offered_capacity = capacity;
    }
    self->offered[self->offered_count++] = row;
    return true;
}

static bool is_offered(const struct search *self, uint32_t row)
{
    for (uint32_t i = 0; i < self->offered_count; i++)
        if (self->offered[i] == row)
            return true;
    return false;
}

/* Pending rows are scored like all others; rows that the snapshot does not have are left alone. */
static void scan_pending(struct search *self)
{
    const struct sk_pending *pending = &self->field->pending;
    self->offered_count = 0;
    for (const struct sk_pending_chunk *c = sk_pending_begin(pending);
         c != NULL && self->code == SK_ERR_OK; c = sk_pending_next(c))
        for (uint32_t i = sk_pending_from(c); i < c->count; i++) {
            float worst;
            uint64_t birth;
            const float *vector = c->vectors + (size_t)i * c->dim;
            if (sk_rank_worst(&self->rank, &worst) &&
                !sk_scorer_may_reach(&self->scorer, vector, worst))
                continue;
            if (!sk_store_row_birth(self->reader->store, c->rows[i], &birth) ||
                birth != c->lseqs[i] || !matches(self, c->rows[i]))
                continue;
            if (!remember(self, c->rows[i])) {
                self->code = sk_fail(&self->read->diag, SK_ERR_NOMEM, "no memory to search with");
                break;
            }
            offer_row(self, c->rows[i]);
        }
}

/* NULL: no memory. */
static const float **look_up(struct search *self, const struct sk_index_result *result)
{
    const float **vectors =
        sk_arena_alloc(&self->reader->arena, (size_t)(result->count + 1) * sizeof *vectors);
    if (vectors != NULL)
        sk_store_vectors(self->reader->store, self->field->at, result->rows, result->count, vectors);
    return vectors;
}

/* Best first: then only those that enter the rank have their record looked up. */
static void put_in_order(const struct search *self, struct candidate *candidates, uint32_t count)
{
    enum sk_metric metric = (enum sk_metric)self->field->schema.metric;
    if (count > ORDERED_MAX)
        return;
    for (uint32_t i = 1; i < count; i++) {
        struct candidate moving = candidates[i];
        uint32_t at = i;
        for (; at > 0 && sk_score_is_better(metric, moving.score, candidates[at - 1].score); at--)
            candidates[at] = candidates[at - 1];
        candidates[at] = moving;
    }
}

/* The stored vectors of all candidates are on their way before the first is scored. */
static enum sk_err offer_result(struct search *self, const struct sk_index_result *result,
                                uint32_t *dropped, struct sk_diag *d)
{
    const float **vectors = self->ahead.vectors;
    struct candidate *candidates =
        sk_arena_alloc(&self->reader->arena, (size_t)(result->count + 1) * sizeof *candidates);
    self->ahead.vectors = NULL;
    if (vectors == NULL)
        vectors = look_up(self, result);
    if (vectors == NULL || candidates == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", result->count);
    uint32_t count = 0;
    *dropped = 0;
    for (uint32_t i = 0; i < result->count; i++) {
        if (is_offered(self, result->rows[i]))
            continue;
        if (vectors[i] == NULL)
            ++*dropped;
        else
            candidates[count++] = (struct candidate){sk_scorer_exact(&self->scorer, vectors[i]),
                                                     result->rows[i]};
    }
    put_in_order(self, candidates, count);
    for (uint32_t i = 0; i < count && self->code == SK_ERR_OK; i++)
        if (!offer(self, candidates[i].row, candidates[i].score))
            ++*dropped;
    return self->code;
}

/* ---- asking the index ---- */

/* How many candidates: what is left out afterwards must not make the answer short. */
static uint32_t first_k(const struct search *self)
{
    return self->rank.limit + (self->like.size != 0) + self->rank.has_threshold;
}

static enum sk_err result_init(struct search *self, const struct sk_index *index, uint32_t k,
                               struct sk_index_result *result, struct sk_diag *d)
{
    uint32_t capacity = sk_index_candidates(index, k);
    *result = (struct sk_index_result){.capacity = capacity};
    result->rows = sk_arena_alloc(&self->reader->arena, capacity * sizeof *result->rows);
    result->scores = sk_arena_alloc(&self->reader->arena, capacity * sizeof *result->scores);
    if (result->rows == NULL || result->scores == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", capacity);
    return SK_ERR_OK;
}

static struct sk_index_query query_of(const struct search *self, uint32_t k,
                                      const struct sk_index_filter *filter)
{
    const struct sk_request *request = self->request;
    return (struct sk_index_query){
        .vector = self->query,
        .k = k,
        .ef = sk_request_has(request, SK_FIELD_ef) ? request->ef : 0,
        .nprobe = request->nprobe,
        .recall_target = (float)request->recall,
        .has_score_worst = sk_request_has(request, SK_FIELD_score_threshold),
        .score_worst = (float)request->score_threshold,
        .filter = self->filter != NULL ? filter : NULL,
        .deadline_us = self->read->request->deadline_us,
        .clock = {self->reader->shard->worker, search_clock_us},
        .is_exact = request->exact,
    };
}

static enum sk_err ask_index(struct search *self, struct sk_index *index, uint32_t k,
                             struct sk_index_result *result, struct sk_diag *d)
{
    struct sk_index_reader *index_reader_;
    const struct sk_index_filter filter = {.words = self->words,
                                           .word_count = self->word_count,
                                           .match_count = (uint32_t)self->selection.count};
    const struct sk_index_query query = query_of(self, k, &filter);
    sk_rank_reset(&self->rank);
    scan_pending(self);
    if (self->code != SK_ERR_OK)
        return self->code;
    enum sk_err rc = result_init(self, index, k, result, d);
    if (rc == SK_ERR_OK)
        rc = index_reader(self, index, &index_reader_, d);
    if (rc == SK_ERR_OK)
        rc = sk_index_search(index, index_reader_, &query, result, d);
    if (rc == SK_ERR_OK && result->is_truncated)
        rc = sk_fail(d, SK_ERR_DEADLINE, "the deadline passed while searching");
    return rc;
}

void search_ahead(struct search **searches, unsigned count, struct sk_index *index)
{
    struct sk_index_query queries[READS_TOGETHER_MAX];
    struct sk_index_result results[READS_TOGETHER_MAX];
    enum sk_err rcs[READS_TOGETHER_MAX];
    struct search *asked[READS_TOGETHER_MAX];
    struct sk_index_reader *index_reader_;
    struct sk_diag ignored = {0}; /* what fails here fails in search_one, which tells */
    unsigned asked_count = 0;
    SK_CHECK(count <= READS_TOGETHER_MAX);
    for (unsigned i = 0; i < count; i++) {
        struct search *self = searches[i];
        uint32_t k = first_k(self);
        scorer_init(self);
        sk_rank_reset(&self->rank);
        scan_pending(self); /* before the index is asked: see the head of search.c */
        if (self->code != SK_ERR_OK || k > SK_INDEX_EF_MAX ||
            result_init(self, index, k, &results[asked_count], &ignored) != SK_ERR_OK)
            continue;
        queries[asked_count] = query_of(self, k, NULL);
        asked[asked_count++] = self;
    }
    if (asked_count == 0 || index_reader(asked[0], index, &index_reader_, &ignored) != SK_ERR_OK)
        return;
    enum sk_err first = sk_index_search_many(index, index_reader_, queries, results, rcs, asked_count,
                                             &ignored);
    (void)first; /* rcs has it */
    for (unsigned i = 0; i < asked_count; i++) {
        asked[i]->ahead.is_there = rcs[i] == SK_ERR_OK && !results[i].is_truncated;
        asked[i]->ahead.result = results[i];
    }
}

void search_expect(struct search *self)
{
    if (self->ahead.is_there)
        self->ahead.vectors = look_up(self, &self->ahead.result);
}

/* ---- all of it ---- */

/* Once: k candidates of the graph and the pending rows. *dropped: candidates the snapshot lacks. */
static enum sk_err graph_once(struct search *self, struct sk_index *index, uint32_t k,
                              struct sk_index_result *result, uint32_t *dropped, struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    if (self->ahead.is_there)
        *result = self->ahead.result;
    else
        rc = ask_index(self, index, k, result, d);
    self->ahead.is_there = false;
    return rc == SK_ERR_OK ? offer_result(self, result, dropped, d) : rc;
}

/* *is_answered false: the scan must answer. */
static enum sk_err graph(struct search *self, struct sk_index *index, bool *is_answered,
                         struct sk_diag *d)
{
    uint32_t k = first_k(self);
    *is_answered = false;
    for (unsigned tries = 0; tries < 4 && k <= SK_INDEX_EF_MAX; tries++) {
        struct sk_index_result result;
        uint32_t dropped = 0;
        enum sk_err rc = graph_once(self, index, k, &result, &dropped, d);
        if (rc != SK_ERR_OK)
            return rc;
        bool is_certain = result.is_certain && dropped == 0;
        if (self->request->exact && !is_certain)
            return SK_ERR_OK;
        /* The rank may be full of pending rows that are worse than what the index still has. */
        bool is_short = dropped != 0 && result.count >= k && result.count - dropped < k;
        if (!is_short) {
            self->is_exact = self->is_exact && is_certain;
            *is_answered = true;
            return SK_ERR_OK;
        }
        k = 2 * k + dropped; /* rows that died while we looked: ask further */
    }
    return SK_ERR_OK;
}

enum sk_err search_one(struct search *self, struct sk_index *index, struct sk_diag *d)
{
    bool is_answered = false;
    struct field *field = self->field;
    if (!self->ahead.is_there)
        scorer_init(self);
    bool is_small = self->filter != NULL && self->selection.count <= SEARCH_MATCHES_SCANNED_MAX;
    if (index != NULL && !is_small) {
        enum sk_err rc = graph(self, index, &is_answered, d);
        if (rc != SK_ERR_OK && rc != SK_ERR_INVALID) /* INVALID: a length it cannot take, a scan can */
            return rc;
        /* the index was given up in the meantime: its pending rows may be gone */
        if (atomic_load_explicit(&field->serving, memory_order_acquire) != index)
            is_answered = false;
    }
    if (!is_answered) {
        self->code = SK_ERR_OK;
        enum sk_err rc = scan(self, d);
        if (rc != SK_ERR_OK || self->read->wants_slow)
            return rc;
    }
    self->has_more = self->has_more || self->rank.has_more;
    sk_rank_finish(&self->rank);
    return SK_ERR_OK;
}

