/* Brute force over all records of a collection: what one shard that held everything would answer, and
 * what each shard answers over its own part. */
#ifndef SK_TESTS_ROUTER_MODEL_H
#define SK_TESTS_ROUTER_MODEL_H

#include "tests/unit/router_world.h"

#include "proto/records.h"

#include <math.h>

enum { DIM = 2, RECORDS_MAX = 400, SHARDS = 3, WORKERS = 2 };

struct record {
    struct sk_id id;
    float vector[DIM];
    uint64_t n; /* its payload is {n} */
    bool is_there;
};

struct model {
    struct record records[RECORDS_MAX];
    unsigned count;
    enum sk_schema_metric metric;
    const struct sk_schema *schema;
};

static struct model model;
static struct world w;
static uint64_t seed = 1;

static uint64_t draw(uint64_t below)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (seed >> 33) % below;
}

/* ---- the model ---- */

static struct sk_id id_of(uint64_t number)
{
    if (number % 3 != 0)
        return sk_id_from_u64(number);
    char text[40];
    struct sk_id id;
    snprintf(text, sizeof text, number % 2 != 0 ? "%08x-0000-4000-8000-000000000000" : "name %u",
             (unsigned)number);
    assert_int_equal(sk_id_from_string(&id, sk_span_text(text), NULL), SK_ERR_OK);
    return id;
}

static struct record *model_find(const struct sk_id *id)
{
    for (unsigned r = 0; r < model.count; r++)
        if (sk_id_compare(&model.records[r].id, id) == 0)
            return &model.records[r];
    return NULL;
}

static bool is_of(const struct record *record, int shard)
{
    return record->is_there &&
           (shard < 0 || (int)(sk_id_slot(&record->id) % SHARDS) == shard);
}

static float score_of(const struct record *record, const float *query)
{
    double dot = 0, distance = 0;
    for (unsigned i = 0; i < DIM; i++) {
        dot += (double)record->vector[i] * query[i];
        distance += ((double)record->vector[i] - query[i]) * ((double)record->vector[i] - query[i]);
    }
    return (float)(model.metric == SK_SCHEMA_L2 ? sqrt(distance) : dot);
}

static void put_record(struct sk_buffer *to, const struct record *record, const float *query,
                       const struct sk_request *r)
{
    sk_put_map(to, 1U + (query != NULL) + r->with_payload.is_wanted + r->with_vector);
    sk_put_text(to, "id");
    sk_put_id(to, &record->id);
    if (query != NULL) {
        sk_put_text(to, "score");
        sk_put_f32(to, score_of(record, query));
    }
    if (r->with_payload.is_wanted) {
        sk_put_text(to, "payload");
        sk_put_map(to, 1);
        sk_put_text(to, "n");
        sk_put_u64(to, record->n);
    }
    if (r->with_vector) {
        sk_put_text(to, "vector");
        sk_put_bin(to, record->vector, sizeof record->vector);
    }
}

static const float *sort_query;
static int by_score(const void *a_at, const void *b_at)
{
    const struct record *a = *(const struct record *const *)a_at;
    const struct record *b = *(const struct record *const *)b_at;
    float x = score_of(a, sort_query), y = score_of(b, sort_query);
    if (x != y)
        return (model.metric == SK_SCHEMA_L2 ? x < y : x > y) ? -1 : 1;
    return sk_id_compare(&a->id, &b->id);
}

static int by_id(const void *a_at, const void *b_at)
{
    const struct record *a = *(const struct record *const *)a_at;
    const struct record *b = *(const struct record *const *)b_at;
    return sk_id_compare(&a->id, &b->id);
}

static unsigned collect(const struct record **out, int shard, const struct sk_id *but)
{
    unsigned count = 0;
    for (unsigned r = 0; r < model.count; r++)
        if (is_of(&model.records[r], shard) &&
            (but == NULL || sk_id_compare(&model.records[r].id, but) != 0))
            out[count++] = &model.records[r];
    return count;
}

static bool put_hits(struct sk_buffer *to, const struct sk_request *r, const float *query,
                     int shard, const struct sk_id *but)
{
    const struct record *found[RECORDS_MAX];
    unsigned count = collect(found, shard, but), shown = 0;
    sort_query = query;
    qsort(found, count, sizeof *found, by_score);
    bool has_worst = sk_request_has(r, SK_FIELD_score_threshold), has_more = false;
    size_t at = sk_put_array_open(to);
    for (unsigned i = 0; i < count; i++) {
        float score = score_of(found[i], query);
        if (has_worst && (model.metric == SK_SCHEMA_L2 ? score > (float)r->score_threshold
                                                       : score < (float)r->score_threshold))
            break;
        if (shown == r->limit) {
            has_more = true;
            break;
        }
        put_record(to, found[i], query, r);
        shown++;
    }
    sk_put_count_at(to, at, shown);
    return has_more;
}

static void model_search(struct sk_reply_writer *reply, const struct sk_request *r, int shard)
{
    struct sk_queries queries = {.count = 1};
    float query[DIM];
    bool has_more = false;
    const struct sk_id *like = sk_request_has(r, SK_FIELD_like) ? &r->like : NULL;
    if (like == NULL)
        assert_int_equal(sk_queries_begin(&queries, r, DIM, NULL), SK_ERR_OK);
    else
        memcpy(query, model_find(like)->vector, sizeof query);
    sk_reply_key(reply, "hits");
    if (queries.is_many)
        sk_put_array(reply->to, queries.count);
    for (unsigned q = 0; q < queries.count; q++) {
        if (like == NULL)
            assert_int_equal(sk_queries_next(&queries, model.metric, query, NULL), SK_ERR_OK);
        has_more = put_hits(reply->to, r, query, shard, like) || has_more;
    }
    sk_reply_key(reply, "exact");
    sk_put_bool(reply->to, r->exact);
    if (sk_request_has(r, SK_FIELD_score_threshold)) {
        sk_reply_key(reply, "more");
        sk_put_bool(reply->to, has_more);
    }
}

static void model_scroll(struct sk_reply_writer *reply, const struct sk_request *r, int shard)
{
    const struct record *found[RECORDS_MAX];
    unsigned count = collect(found, shard, NULL), shown = 0;
    struct sk_id after = {0};
    const struct sk_id *last = NULL;
    bool has_more = false;
    qsort(found, count, sizeof *found, by_id);
    if (sk_request_has(r, SK_FIELD_cursor)) {
        struct sk_reader from = sk_reader_of(r->cursor);
        assert_int_equal(sk_read_id(&from, &after, NULL), SK_ERR_OK);
    }
    sk_reply_key(reply, "records");
    size_t at = sk_put_array_open(reply->to);
    for (unsigned i = 0; i < count; i++) {
        if (after.size != 0 && sk_id_compare(&found[i]->id, &after) <= 0)
            continue;
        /* a shard may end its page early, as it does for large records */
        if (shown == r->limit || (shard == 1 && shown == 5)) {
            has_more = true;
            break;
        }
        put_record(reply->to, found[i], NULL, r);
        last = &found[i]->id;
        shown++;
    }
    sk_put_count_at(reply->to, at, shown);
    sk_reply_key(reply, "cursor");
    if (has_more)
        sk_put_id(reply->to, last);
    else
        sk_put_nil(reply->to);
}

static void model_get(struct sk_reply_writer *reply, const struct sk_request *r, int shard)
{
    struct sk_reader ids = sk_reader_of(r->ids.members);
    struct sk_id id;
    sk_reply_key(reply, "records");
    sk_put_array(reply->to, r->ids.count);
    while (sk_ids_next(&ids, &id)) {
        const struct record *record = model_find(&id);
        if (shard >= 0) /* a shard is asked for its own alone */
            assert_int_equal(sk_id_slot(&id) % SHARDS, shard);
        if (record != NULL && record->is_there)
            put_record(reply->to, record, NULL, r);
        else
            sk_put_nil(reply->to);
    }
}

static void model_upsert(struct sk_reply_writer *reply, const struct sk_request *r, int shard)
{
    static float scratch[SK_DIM_MAX];
    struct sk_rows rows;
    struct sk_row row;
    uint32_t count;
    struct sk_diag d = {0};
    enum sk_err rc = sk_upsert_check(model.schema, r, scratch, &count, &d);
    if (rc != SK_ERR_OK)
        fail_msg("a part is not a valid request: %s", d.text);
    assert_int_equal(sk_rows_begin(&rows, model.schema, r, NULL), SK_ERR_OK);
    while (sk_rows_next(&rows, &row, &rc, NULL)) {
        struct record *record = model_find(&row.id);
        uint64_t n = 0;
        assert_int_equal(sk_id_slot(&row.id) % SHARDS, shard);
        if (record == NULL) {
            assert_true(model.count < RECORDS_MAX);
            record = &model.records[model.count++];
        }
        record->id = row.id;
        record->is_there = true;
        assert_true(sk_vector_view_copy(&row.vectors[0], record->vector));
        assert_true(row.payload.bytes == NULL || sk_map_member_u64(row.payload, "n", &n));
        record->n = n + (row.has_ttl ? (uint64_t)row.ttl_s * 1000000 : 0);
    }
    sk_reply_key(reply, "upserted");
    sk_put_u64(reply->to, count);
}

static void model_delete(struct sk_reply_writer *reply, const struct sk_request *r, int shard)
{
    struct sk_reader ids = sk_reader_of(r->ids.members);
    struct sk_id id;
    uint64_t deleted = 0;
    while (sk_ids_next(&ids, &id)) {
        struct record *record = model_find(&id);
        assert_int_equal(sk_id_slot(&id) % SHARDS, shard);
        deleted += record != NULL && record->is_there;
        if (record != NULL)
            record->is_there = false;
    }
    sk_reply_key(reply, "deleted");
    sk_put_u64(reply->to, deleted);
}

/* The answer of a shard; shard -1: of one that held everything. */
static void model_answer(struct sk_buffer *to, struct sk_span frame, int shard)
{
    struct sk_request r;
    struct sk_diag d = {0};
    struct sk_reply_writer reply;
    if (sk_request_decode(&r, frame, &d) != SK_ERR_OK)
        fail_msg("a part is not a valid request: %s", d.text);
    sk_reply_begin(&reply, to, &r.id);
    if (r.op == SK_OP_SEARCH) {
        model_search(&reply, &r, shard);
    } else if (r.op == SK_OP_SCROLL) {
        model_scroll(&reply, &r, shard);
    } else if (r.op == SK_OP_GET) {
        model_get(&reply, &r, shard);
    } else if (r.op == SK_OP_UPSERT) {
        model_upsert(&reply, &r, shard);
    } else if (r.op == SK_OP_DELETE) {
        model_delete(&reply, &r, shard);
    } else {
        const struct record *found[RECORDS_MAX];
        assert_int_equal(r.op, SK_OP_COUNT);
        sk_reply_key(&reply, "count");
        sk_put_u64(to, collect(found, shard, NULL));
        if (shard == 2) {
            sk_reply_key(&reply, "warning");
            sk_put_text(to, "by scan");
        }
    }
    sk_reply_end(&reply);
}

#endif
