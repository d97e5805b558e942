/* Nearest neighbours in one shard: which lane, the request, its answer. How the neighbours are found is in
 * search_graph.c.
 *
 * The order that makes an acknowledged write visible and never loses a record that is being replaced:
 * which index serves, then the snapshot of the store, then the pending rows, then the graph. A row that is
 * in the snapshot was published as pending before its transaction committed, and leaves the pending rows
 * only when the graph has it; a row that died after the snapshot stays in the graph until this job has
 * ended (the dying rows of internal.h). Candidates that the snapshot does not have are dropped. */
#include "actors/shard-worker/search.h"

#include <stdlib.h>
#include <string.h>

/* ---- which lane ---- */

uint64_t search_scan_us(uint64_t rows, uint32_t dim)
{
    enum { ROW_SCAN_NS = 120 }; /* finding a row's vector in the store */
    return rows * (ROW_SCAN_NS + dim / 4) / 1000;
}

uint64_t search_cost_us(const struct shard *shard, const struct sk_request *request)
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
        is_scan ? search_scan_us(records, (uint32_t)dim)
                : (uint64_t)(request->ef > request->limit ? request->ef : request->limit) * (dim / 256 + 1) *
                          2 +
                      search_scan_us(sk_pending_count(&field->pending), (uint32_t)dim);
    return queries * each;
}

/* ---- the filter ---- */

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
        search_is_too_slow_here(self, records * 4))
        return SK_ERR_OK;
    rc = search_select(self, d);
    if (rc != SK_ERR_OK || self->selection.count <= SEARCH_MATCHES_SCANNED_MAX)
        return rc;
    self->word_count = sk_store_row_words(reader->store);
    self->words = sk_arena_zalloc(&reader->arena, self->word_count, sizeof *self->words);
    if (self->words == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter over %u rows",
                       self->word_count * 64);
    sk_selection_words(&self->selection, self->words, self->word_count);
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
    sk_put_u64(to, now_us(reader->shard->worker) - reader->read->request->arrived_us);
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

static enum sk_err read_query(struct search *self, struct sk_queries *queries, struct sk_diag *d)
{
    const struct sk_vector_field *schema = &self->field->schema;
    if (self->vector == NULL)
        self->vector = sk_arena_alloc(&self->reader->arena, schema->dim * sizeof *self->vector);
    if (self->vector == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a query");
    self->query = self->vector;
    return sk_queries_next(queries, schema->metric, self->vector, d);
}

/* The only query of a plain search. */
static enum sk_err read_only_query(struct search *self, struct sk_diag *d)
{
    struct sk_queries queries;
    enum sk_err rc = sk_queries_begin(&queries, self->request, self->field->schema.dim, d);
    return rc == SK_ERR_OK ? read_query(self, &queries, d) : rc;
}

static enum sk_err run_queries(struct search *self, struct sk_index *index, struct sk_diag *d)
{
    struct reader *reader = self->reader;
    struct sk_buffer *to = &self->read->reply;
    struct sk_queries queries = {.count = 1};
    bool is_read = self->query != NULL; /* like, or read ahead */
    enum sk_err rc =
        is_read ? SK_ERR_OK
                : sk_queries_begin(&queries, self->request, self->field->schema.dim, d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_reply_writer reply;
    sk_reply_begin(&reply, to, &self->request->id);
    sk_reply_key(&reply, "hits");
    if (queries.is_many)
        sk_put_array(to, queries.count);
    for (uint32_t q = 0; q < queries.count; q++) {
        if (!is_read)
            rc = read_query(self, &queries, d);
        if (rc == SK_ERR_OK)
            rc = search_one(self, index, d);
        if (rc != SK_ERR_OK || self->read->wants_slow)
            return rc;
        rc = put_hits(self, to, d);
        if (rc == SK_ERR_OK && queries.count > 1)
            rc = read_deadline(reader, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    put_end(self, &reply);
    return sk_buffer_check(to, d);
}

bool search_is_plain(const struct sk_request *request)
{
    return sk_request_has(request, SK_FIELD_vector) && !sk_request_has(request, SK_FIELD_queries) &&
           !sk_request_has(request, SK_FIELD_like) && !sk_request_has(request, SK_FIELD_filter) &&
           !request->exact;
}

/* What can be said without looking into the store. */
static enum sk_err begin(struct search *self, struct sk_diag *d)
{
    enum sk_err rc = read_deadline(self->reader, d);
    if (rc == SK_ERR_OK)
        rc = check_form(self->request, d);
    if (rc == SK_ERR_OK)
        rc = find_field(self, d);
    if (rc == SK_ERR_OK)
        rc = sk_rank_init(&self->rank, (enum sk_metric)self->field->schema.metric,
                          self->request->limit, d);
    if (rc == SK_ERR_OK && sk_request_has(self->request, SK_FIELD_score_threshold))
        sk_rank_set_threshold(&self->rank, (float)self->request->score_threshold);
    return rc;
}

static void end(struct search *self)
{
    sk_rank_deinit(&self->rank);
    if (self->is_selected)
        sk_selection_deinit(&self->selection);
}

static struct read *turn_to(struct search *self)
{
    self->reader->read = self->read;
    return self->read;
}

/* Alone. Inside the snapshot. */
static enum sk_err run_one(struct search *self, struct sk_index *index, struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    if (sk_request_has(self->request, SK_FIELD_like))
        rc = find_like(self, &self->query, d);
    if (rc == SK_ERR_OK)
        rc = prepare_filter(self, d);
    if (rc == SK_ERR_OK && !self->read->wants_slow)
        rc = run_queries(self, index, d);
    return rc;
}

/* Plain searches of one field together: the walks of one wait for memory while others compute. */
static void run_ahead(struct search *searches, unsigned count, struct sk_index *index)
{
    struct search *ahead[READS_TOGETHER_MAX];
    unsigned ahead_count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct read *read = turn_to(&searches[i]);
        if (read->code == SK_ERR_OK)
            read->code = read_only_query(&searches[i], &read->diag);
        if (read->code == SK_ERR_OK)
            ahead[ahead_count++] = &searches[i];
    }
    if (ahead_count > 1 && index != NULL)
        search_ahead(ahead, ahead_count, index);
}

void search_run(struct reader *reader)
{
    struct search searches[READS_TOGETHER_MAX];
    const unsigned count = reader->read_count;
    struct field *field = NULL;
    for (unsigned i = 0; i < count; i++) {
        struct read *read = &reader->reads[i];
        searches[i] = (struct search){.reader = reader,
                                      .read = read,
                                      .request = &read->request->decoded,
                                      .is_exact = true};
        (void)turn_to(&searches[i]);
        read->code = begin(&searches[i], &read->diag);
        if (read->code == SK_ERR_OK)
            field = searches[i].field;
    }
    /* before the snapshot: see the head of this file */
    struct sk_index *index =
        field != NULL ? atomic_load_explicit(&field->serving, memory_order_acquire) : NULL;
    struct sk_diag d = {0};
    enum sk_err rc = field == NULL ? SK_ERR_OK
                                   : sk_store_read_begin(reader->store,
                                                         wall_us(reader->shard->worker), &d);
    if (count > 1 && rc == SK_ERR_OK)
        run_ahead(searches, count, index);
    search_expect(&searches[0]);
    for (unsigned i = 0; i < count; i++) {
        struct read *read = turn_to(&searches[i]);
        if (i + 1 < count)
            search_expect(&searches[i + 1]);
        if (read->code == SK_ERR_OK && rc != SK_ERR_OK) {
            read->code = rc;
            read->diag = d;
        } else if (read->code == SK_ERR_OK) {
            read->code = run_one(&searches[i], index, &read->diag);
        }
        end(&searches[i]);
    }
    sk_store_read_end(reader->store);
}
