/* Nearest neighbours in one shard.
 *
 * The order that makes an acknowledged write visible and never loses a record that is being replaced:
 * which index serves, then the snapshot of the store, then the pending rows, then the graph. A row that is
 * in the snapshot was published as pending before its transaction committed, and leaves the pending rows
 * only when the graph has it; a row that died after the snapshot stays in the graph until this job has
 * ended (the dying rows of internal.h). Candidates that the snapshot does not have are dropped. */
#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    SCAN_MATCHES_MAX = 2000, /* so few matches are scored one by one, whatever the index */
    ROW_SCAN_NS = 120,       /* finding a row's vector in the store */
};

struct search {
    struct reader *reader;
    const struct sk_request *request;
    struct field *field;
    struct sk_filter *filter;
    bool is_selected; /* selection is filled */
    struct sk_selection selection;
    uint64_t *words; /* of the selection, for the graph */
    uint32_t word_count;
    struct sk_rank rank;
    struct sk_scorer scorer;
    const float *query;
    struct sk_id like;
    uint32_t *offered; /* pending rows that were offered to the rank */
    uint32_t offered_count;
    uint32_t offered_capacity;
    bool is_exact; /* of all queries so far */
    bool has_more;
    uint64_t looked; /* rows since the clock was read */
    enum sk_err code;
};

static uint64_t search_clock_us(void *impl)
{
    return now_us(impl);
}

/* ---- which lane ---- */

static uint64_t scan_us(uint64_t rows, uint32_t dim)
{
    return rows * (ROW_SCAN_NS + dim / 4) / 1000;
}

enum sk_lane search_lane(const struct shard *shard, const struct sk_request *request)
{
    uint64_t dim = shard->field_count != 0 ? shard->fields[0].schema.dim : 1;
    uint64_t queries = 1;
    if (sk_request_has(request, SK_FIELD_queries)) {
        queries = request->queries.size / (dim * 4) + 1; /* a bin; arrays are larger */
        if (queries > SK_QUERIES_MAX)
            queries = SK_QUERIES_MAX;
    }
    const struct field *field = &shard->fields[0]; /* the guess is as good for the others */
    bool is_scan = request->exact || field->state != FIELD_READY;
    uint64_t records = atomic_load_explicit(&shard->records, memory_order_relaxed);
    uint64_t each =
        is_scan ? scan_us(records, (uint32_t)dim)
                : (uint64_t)(request->ef > request->limit ? request->ef : request->limit) * (dim / 256 + 1) *
                          2 +
                      scan_us(sk_pending_count(&field->pending), (uint32_t)dim);
    return queries * each <= shard->worker->config.quick_cost_max_us ? SK_LANE_QUICK
                                                                     : SK_LANE_SLOW;
}

/* A job in place has found out that it would take long: nothing was done yet, a search thread does it. */
static bool is_too_slow_here(struct search *self, uint64_t rows)
{
    struct reader *reader = self->reader;
    if (reader->job.lane != SK_LANE_QUICK || scan_us(rows, self->field->schema.dim) <=
                                                 reader->shard->worker->config.quick_cost_max_us)
        return false;
    reader->wants_slow = true;
    return true;
}

/* ---- scoring ---- */

static bool is_late(struct search *self)
{
    if (self->looked++ % DEADLINE_EVERY != 0)
        return false;
    struct sk_diag *d = &self->reader->diag;
    if (self->code == SK_ERR_OK)
        self->code = read_deadline(self->reader, d);
    return self->code != SK_ERR_OK;
}

/* Offers a row and its vector; false when the snapshot does not have it (any more). */
static bool offer(struct search *self, uint32_t row, const float *vector)
{
    struct sk_record record;
    struct sk_diag ignored = {0};
    float score = sk_scorer_exact(&self->scorer, vector);
    if (!sk_rank_may_take(&self->rank, score))
        return true;
    enum sk_err rc = sk_store_record(self->reader->store, row, &record, &ignored);
    if (rc == SK_ERR_NOT_FOUND)
        return false;
    if (rc != SK_ERR_OK) {
        self->code = rc;
        self->reader->diag = ignored;
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
    return offer(self, row, vector);
}

static bool scan_each(void *impl, uint32_t row)
{
    struct search *self = impl;
    if (is_late(self))
        return false;
    offer_row(self, row);
    return self->code == SK_ERR_OK;
}

static enum sk_err select_rows(struct search *self, struct sk_diag *d)
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
    enum sk_err rc = select_rows(self, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (is_too_slow_here(self, self->selection.count))
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
        SK_CHECK(reader->index_readers[f] == NULL); /* taken away when its index was buried */
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
                self->code = sk_fail(&self->reader->diag, SK_ERR_NOMEM, "no memory to search with");
                break;
            }
            offer_row(self, c->rows[i]);
        }
}

static void prefetch(const float *vector, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i += 16)
        __builtin_prefetch(vector + i);
}

/* The stored vectors of all candidates are on their way before the first is scored. */
static enum sk_err offer_result(struct search *self, const struct sk_index_result *result,
                                uint32_t *dropped, struct sk_diag *d)
{
    const float **vectors = sk_arena_alloc(&self->reader->arena,
                                           (size_t)result->count * sizeof *vectors);
    if (vectors == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", result->count);
    for (uint32_t i = 0; i < result->count; i++) {
        vectors[i] = sk_store_vector(self->reader->store, self->field->at, result->rows[i]);
        if (vectors[i] != NULL)
            prefetch(vectors[i], self->field->schema.dim);
    }
    *dropped = 0;
    for (uint32_t i = 0; i < result->count && self->code == SK_ERR_OK; i++) {
        if (is_offered(self, result->rows[i]))
            continue;
        if (vectors[i] == NULL || !offer(self, result->rows[i], vectors[i]))
            ++*dropped;
    }
    return self->code;
}

/* Once: k candidates of the graph and the pending rows. *dropped: candidates the snapshot lacks. */
static enum sk_err graph_once(struct search *self, struct sk_index *index, uint32_t k,
                              struct sk_index_result *result, uint32_t *dropped, struct sk_diag *d)
{
    struct sk_index_reader *index_reader_;
    const struct sk_request *request = self->request;
    struct sk_worker *worker = self->reader->shard->worker;
    struct sk_index_filter filter = {.words = self->words,
                                     .word_count = self->word_count,
                                     .match_count = (uint32_t)self->selection.count};
    sk_rank_reset(&self->rank);
    scan_pending(self);
    if (self->code != SK_ERR_OK)
        return self->code;
    const struct sk_index_query query = {
        .vector = self->query,
        .k = k,
        .ef = sk_request_has(request, SK_FIELD_ef) ? request->ef : 0,
        .nprobe = request->nprobe,
        .recall_target = (float)request->recall,
        .has_score_worst = sk_request_has(request, SK_FIELD_score_threshold),
        .score_worst = (float)request->score_threshold,
        .filter = self->filter != NULL ? &filter : NULL,
        .deadline_us = self->reader->request->deadline_us,
        .clock = {worker, search_clock_us},
        .is_exact = request->exact,
    };
    enum sk_err rc = index_reader(self, index, &index_reader_, d);
    if (rc == SK_ERR_OK)
        rc = sk_index_search(index, index_reader_, &query, result, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (result->is_truncated)
        return sk_fail(d, SK_ERR_DEADLINE, "the deadline passed while searching");
    return offer_result(self, result, dropped, d);
}

/* *is_answered false: the scan must answer. */
static enum sk_err graph(struct search *self, struct sk_index *index, bool *is_answered,
                         struct sk_diag *d)
{
    uint32_t k = self->rank.limit + (self->like.size != 0) + self->rank.has_threshold;
    *is_answered = false;
    for (unsigned tries = 0; tries < 4 && k <= SK_INDEX_EF_MAX; tries++) {
        uint32_t capacity = sk_index_result_rows(k);
        struct sk_index_result result = {.capacity = capacity};
        result.rows = sk_arena_alloc(&self->reader->arena, capacity * sizeof *result.rows);
        result.scores = sk_arena_alloc(&self->reader->arena, capacity * sizeof *result.scores);
        if (result.rows == NULL || result.scores == NULL)
            return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", capacity);
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

/* A range or a place may be the union of as many sets as there are records. */
static bool is_heavy(const struct sk_filter *filter)
{
    if (filter->kind == SK_FILTER_RANGE || filter->kind == SK_FILTER_GEO_RADIUS ||
        filter->kind == SK_FILTER_GEO_BOX)
        return true;
    if (filter->kind != SK_FILTER_GROUP)
        return false;
    for (uint32_t i = 0; i < filter->u.group.must_count; i++)
        if (is_heavy(filter->u.group.must[i]))
            return true;
    for (uint32_t i = 0; i < filter->u.group.should_count; i++)
        if (is_heavy(filter->u.group.should[i]))
            return true;
    for (uint32_t i = 0; i < filter->u.group.must_not_count; i++)
        if (is_heavy(filter->u.group.must_not[i]))
            return true;
    return false;
}

static enum sk_err prepare_filter(struct search *self, struct sk_diag *d)
{
    struct reader *reader = self->reader;
    enum sk_err rc = read_filter(reader, &self->filter, d);
    if (rc != SK_ERR_OK || self->filter == NULL)
        return rc;
    uint64_t records = atomic_load_explicit(&reader->shard->records, memory_order_relaxed);
    if ((is_heavy(self->filter) ||
         sk_filter_undeclared(self->filter, reader->shard->schema) != NULL) &&
        is_too_slow_here(self, records * 4))
        return SK_ERR_OK;
    rc = select_rows(self, d);
    if (rc != SK_ERR_OK || self->selection.count <= SCAN_MATCHES_MAX)
        return rc;
    self->word_count = sk_store_row_words(reader->store);
    self->words = sk_arena_zalloc(&reader->arena, self->word_count, sizeof *self->words);
    if (self->words == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter over %u rows",
                       self->word_count * 64);
    sk_selection_words(&self->selection, self->words, self->word_count);
    return SK_ERR_OK;
}

static enum sk_err search_one(struct search *self, struct sk_index *index, struct sk_diag *d)
{
    bool is_answered = false;
    struct field *field = self->field;
    sk_scorer_init(&self->scorer, self->reader->shard->worker->kernels,
                   (enum sk_metric)field->schema.metric, self->query, field->schema.dim);
    bool is_small = self->filter != NULL && self->selection.count <= SCAN_MATCHES_MAX;
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
        if (rc != SK_ERR_OK || self->reader->wants_slow)
            return rc;
    }
    self->has_more = self->has_more || self->rank.has_more;
    sk_rank_finish(&self->rank);
    return SK_ERR_OK;
}

/* ---- the answer ---- */

static enum sk_err put_hits(struct search *self, struct sk_buffer *to, struct sk_diag *d)
{
    sk_put_array(to, self->rank.count);
    for (uint32_t i = 0; i < self->rank.count; i++) {
        const struct sk_hit *hit = &self->rank.hits[i];
        struct sk_record record = {.id = hit->id};
        if (self->request->with_payload.is_wanted) {
            enum sk_err rc = sk_store_record(self->reader->store, hit->row, &record, d);
            if (rc != SK_ERR_OK)
                return sk_wrap(d, SK_ERR_INTERNAL, "row %u of a hit", hit->row);
        }
        sk_put_map(to, 2 + record_key_count(self->reader));
        sk_put_text(to, "id");
        sk_put_id(to, &record.id);
        sk_put_text(to, "score");
        sk_put_f32(to, hit->score);
        put_record_keys(self->reader, to, hit->row, &record);
    }
    return SK_ERR_OK;
}

static void put_end(struct search *self, struct sk_reply_writer *reply)
{
    struct sk_buffer *to = reply->to;
    struct reader *reader = self->reader;
    sk_reply_key(reply, "exact");
    sk_put_bool(to, self->is_exact);
    sk_reply_key(reply, "shards");
    sk_put_map(to, 2);
    sk_put_text(to, "asked");
    sk_put_u64(to, 1);
    sk_put_text(to, "answered");
    sk_put_u64(to, 1);
    sk_reply_key(reply, "source");
    sk_put_text(to, "index");
    if (self->rank.has_threshold) {
        sk_reply_key(reply, "more");
        sk_put_bool(to, self->has_more);
    }
    if (self->is_selected && self->selection.warning[0] != '\0') {
        sk_reply_key(reply, "warning");
        sk_put_text(to, self->selection.warning);
    }
    sk_reply_key(reply, "took_us");
    sk_put_u64(to, now_us(reader->shard->worker) - reader->request->arrived_us);
    sk_reply_end(reply);
}

/* ---- the request ---- */

static enum sk_err find_field(struct search *self, struct sk_diag *d)
{
    struct shard *shard = self->reader->shard;
    struct sk_span using = self->request->using;
    for (unsigned f = 0; f < shard->field_count; f++)
        if (using.bytes != NULL ? sk_span_is(using, shard->fields[f].schema.name)
                                : shard->field_count == 1) {
            self->field = &shard->fields[f];
            return sk_schema_check_search(&self->field->schema, self->request, d);
        }
    char names[240] = "";
    size_t at = 0;
    for (unsigned f = 0; f < shard->field_count && at < sizeof names - 70; f++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s'%s'", f != 0 ? ", " : "",
                               shard->fields[f].schema.name);
    if (using.bytes == NULL)
        return sk_fail_field(d, SK_ERR_INVALID, "using",
                             "the collection has several vector fields, name one: %s", names);
    return sk_fail_field(d, SK_ERR_NOT_FOUND, "using", "no vector field '%.*s'; there is %s",
                         (int)using.size, (const char *)using.bytes, names);
}

static enum sk_err find_like(struct search *self, const float **vector, struct sk_diag *d)
{
    const struct sk_request *request = self->request;
    uint32_t row;
    self->like = request->like;
    if (sk_request_has(request, SK_FIELD_vector)) /* another shard has it: the router sent its vector */
        return SK_ERR_OK;
    enum sk_err rc = sk_store_find(self->reader->store, &self->like, &row, d);
    if (rc == SK_ERR_NOT_FOUND) {
        char text[SK_ID_TEXT_BYTES];
        return sk_fail_field(d, rc, "like", "no record '%s'", sk_id_text(&self->like, text));
    }
    if (rc == SK_ERR_OK) {
        *vector = sk_store_vector(self->reader->store, self->field->at, row);
        if (*vector == NULL)
            rc = sk_fail(d, SK_ERR_INTERNAL, "row %u has no vector", row);
    }
    return rc;
}

static enum sk_err check_form(const struct sk_request *request, struct sk_diag *d)
{
    unsigned forms = (unsigned)sk_request_has(request, SK_FIELD_vector) +
                     (unsigned)sk_request_has(request, SK_FIELD_queries);
    bool is_like = sk_request_has(request, SK_FIELD_like);
    if (forms > 1 || (forms == 0 && !is_like) ||
        (is_like && sk_request_has(request, SK_FIELD_queries)))
        return sk_fail_field(d, SK_ERR_INVALID, "vector",
                             "search wants one of vector, vectors or like");
    return SK_ERR_OK;
}

static enum sk_err run_queries(struct search *self, struct sk_index *index, const float *like,
                               struct sk_diag *d)
{
    struct reader *reader = self->reader;
    const struct sk_vector_field *schema = &self->field->schema;
    struct sk_queries queries = {.count = 1};
    float *vector = sk_arena_alloc(&reader->arena, schema->dim * sizeof *vector);
    if (vector == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a query");
    enum sk_err rc =
        like != NULL ? SK_ERR_OK : sk_queries_begin(&queries, self->request, schema->dim, d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_reply_writer reply;
    sk_reply_begin(&reply, &reader->reply, &self->request->id);
    sk_reply_key(&reply, "hits");
    if (queries.is_many)
        sk_put_array(&reader->reply, queries.count);
    for (uint32_t q = 0; q < queries.count; q++) {
        self->query = like != NULL ? like : vector;
        if (like == NULL)
            rc = sk_queries_next(&queries, schema->metric, vector, d);
        if (rc == SK_ERR_OK)
            rc = search_one(self, index, d);
        if (rc != SK_ERR_OK || reader->wants_slow)
            return rc;
        rc = put_hits(self, &reader->reply, d);
        if (rc == SK_ERR_OK && queries.count > 1)
            rc = read_deadline(reader, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    put_end(self, &reply);
    return sk_buffer_check(&reader->reply, d);
}

enum sk_err search_run(struct reader *reader, struct sk_diag *d)
{
    struct search self = {.reader = reader, .request = &reader->request->decoded, .is_exact = true};
    struct sk_rank *rank = &self.rank;
    enum sk_err rc = check_form(self.request, d);
    if (rc == SK_ERR_OK)
        rc = find_field(&self, d);
    if (rc != SK_ERR_OK)
        return rc;
    /* before the snapshot: see the head of this file */
    struct sk_index *index = atomic_load_explicit(&self.field->serving, memory_order_acquire);
    const float *like = NULL;
    rc = sk_store_read_begin(reader->store, wall_us(reader->shard->worker), d);
    if (rc != SK_ERR_OK)
        return rc;
    rc = sk_rank_init(rank, (enum sk_metric)self.field->schema.metric, self.request->limit, d);
    if (rc == SK_ERR_OK && sk_request_has(self.request, SK_FIELD_score_threshold))
        sk_rank_set_threshold(rank, (float)self.request->score_threshold);
    if (rc == SK_ERR_OK && sk_request_has(self.request, SK_FIELD_like))
        rc = find_like(&self, &like, d);
    if (rc == SK_ERR_OK)
        rc = prepare_filter(&self, d);
    if (rc == SK_ERR_OK && !reader->wants_slow)
        rc = run_queries(&self, index, like, d);
    sk_rank_deinit(rank);
    if (self.is_selected)
        sk_selection_deinit(&self.selection);
    sk_store_read_end(reader->store);
    return rc;
}
