/* The best of several shards: by score in the order of the metric, ties by id. */
#include "actors/router/internal.h"

#include "proto/records.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The hits of one shard for one query, best first. */
struct run {
    struct sk_reader from;
    uint32_t left;
    bool has_head;
    double score;
    struct sk_id id;
    struct sk_span hit;
};

struct merge {
    struct sk_router *self;
    struct request *request;
    uint32_t run_count;
    struct run runs[SK_SHARDS_MAX];
    struct part *part_of_run[SK_SHARDS_MAX];
    struct sk_reader queries[SK_SHARDS_MAX]; /* of many: the lists that follow */
    uint32_t query_count;
    bool is_many;
    bool has_more;
    uint32_t bad; /* run that makes no sense, UINT32_MAX: none */
};

static bool is_better(enum sk_schema_metric metric, const struct run *a, const struct run *b)
{
    if (a->score != b->score)
        return metric == SK_SCHEMA_L2 ? a->score < b->score : a->score > b->score;
    return sk_id_compare(&a->id, &b->id) < 0;
}

static bool run_next(struct run *self)
{
    struct sk_span packed;
    struct sk_value score;
    self->has_head = false;
    if (self->left == 0)
        return true;
    if (sk_read_raw(&self->from, SK_PACK_DEPTH_MAX, &self->hit, NULL) != SK_ERR_OK ||
        !sk_map_member(self->hit, "id", &packed))
        return false;
    struct sk_reader from = sk_reader_of(packed);
    if (sk_read_id(&from, &self->id, NULL) != SK_ERR_OK ||
        !sk_map_member(self->hit, "score", &packed))
        return false;
    from = sk_reader_of(packed);
    if (sk_read(&from, &score, NULL) != SK_ERR_OK || !sk_value_number(&score, &self->score) ||
        isnan(self->score))
        return false;
    self->left--;
    self->has_head = true;
    return true;
}

/* An array head at `from`; it is left behind its members. */
static bool run_begin(struct run *self, struct sk_reader *from)
{
    struct sk_span packed;
    struct sk_value head;
    if (sk_read_raw(from, SK_PACK_DEPTH_MAX, &packed, NULL) != SK_ERR_OK)
        return false;
    self->from = sk_reader_of(packed);
    if (sk_read(&self->from, &head, NULL) != SK_ERR_OK || head.kind != SK_VALUE_ARRAY)
        return false;
    self->left = head.count;
    return run_next(self);
}

static struct run *best_run(struct merge *merge)
{
    struct run *best = NULL;
    for (uint32_t r = 0; r < merge->run_count; r++)
        if (merge->runs[r].has_head &&
            (best == NULL || is_better(merge->request->metric, &merge->runs[r], best)))
            best = &merge->runs[r];
    return best;
}

/* One query: the lists at queries[..], merged into `to`. False: merge->bad. */
static bool merge_query(struct merge *merge, struct sk_buffer *to)
{
    const struct sk_request *asked = merge->request->decoded;
    bool is_like = sk_request_has(asked, SK_FIELD_like);
    for (uint32_t r = 0; r < merge->run_count; r++)
        if (!run_begin(&merge->runs[r], &merge->queries[r])) {
            merge->bad = r;
            return false;
        }
    size_t at = sk_put_array_open(to);
    uint32_t count = 0;
    struct run *best = best_run(merge);
    while (best != NULL) {
        bool is_itself = is_like && sk_id_compare(&best->id, &asked->like) == 0;
        if (!is_itself && count == asked->limit) {
            merge->has_more = true;
            break;
        }
        if (!is_itself) {
            sk_put_raw(to, best->hit);
            count++;
        }
        if (!run_next(best)) {
            merge->bad = (uint32_t)(best - merge->runs);
            return false;
        }
        best = best_run(merge);
    }
    sk_put_count_at(to, at, count);
    return true;
}

static bool runs_begin(struct merge *merge)
{
    merge->is_many = sk_request_has(merge->request->decoded, SK_FIELD_queries);
    merge->query_count = 1;
    for (uint32_t r = 0; r < merge->run_count; r++) {
        struct sk_span hits;
        struct sk_value head;
        merge->bad = r;
        if (!sk_map_member(sk_buffer_span(&merge->part_of_run[r]->body), "hits", &hits))
            return false;
        merge->queries[r] = sk_reader_of(hits);
        if (!merge->is_many)
            continue;
        if (sk_read(&merge->queries[r], &head, NULL) != SK_ERR_OK ||
            head.kind != SK_VALUE_ARRAY || (r != 0 && head.count != merge->query_count))
            return false;
        merge->query_count = head.count;
    }
    merge->bad = UINT32_MAX;
    return true;
}

static void put_warnings(struct merge *merge, struct sk_reply_writer *reply)
{
    const struct request *request = merge->request;
    struct sk_span warning = {0};
    char text[480] = "";
    size_t at = 0;
    for (uint32_t r = 0; r < merge->run_count && warning.bytes == NULL; r++)
        (void)sk_map_member_text(sk_buffer_span(&merge->part_of_run[r]->body), "warning",
                                 &warning);
    if (warning.bytes != NULL)
        at = (size_t)snprintf(text, sizeof text - 200, "%.*s", (int)warning.size,
                              (const char *)warning.bytes);
    if (at > sizeof text - 201)
        at = sizeof text - 201;
    if (merge->run_count < request->part_count)
        snprintf(text + at, sizeof text - at,
                 "%sa partial answer: %u of %u shards did not answer", at != 0 ? "; " : "",
                 request->part_count - merge->run_count, request->part_count);
    if (text[0] == '\0')
        return;
    sk_reply_key(reply, "warning");
    sk_put_text(reply->to, text);
}

static void put_end(struct merge *merge, struct sk_reply_writer *reply)
{
    struct request *request = merge->request;
    struct sk_buffer *to = reply->to;
    bool is_exact = true, is_one_exact;
    struct sk_span source = sk_span_text("index");
    for (uint32_t r = 0; r < merge->run_count; r++) {
        struct sk_span body = sk_buffer_span(&merge->part_of_run[r]->body);
        bool has_more = false;
        is_exact = sk_map_member_bool(body, "exact", &is_one_exact) && is_one_exact && is_exact;
        if (sk_map_member_bool(body, "more", &has_more) && has_more)
            merge->has_more = true;
        (void)sk_map_member_text(body, "source", &source);
    }
    sk_reply_key(reply, "exact");
    sk_put_bool(to, is_exact && merge->run_count == request->part_count);
    sk_reply_key(reply, "shards");
    sk_put_map(to, 2);
    sk_put_text(to, "asked");
    sk_put_u64(to, request->part_count);
    sk_put_text(to, "answered");
    sk_put_u64(to, merge->run_count);
    sk_reply_key(reply, "source");
    sk_put_text_of(to, source);
    if (sk_request_has(request->decoded, SK_FIELD_score_threshold)) {
        sk_reply_key(reply, "more");
        sk_put_bool(to, merge->has_more);
    }
    put_warnings(merge, reply);
    sk_reply_key(reply, "took_us");
    sk_put_u64(to, now_us(merge->self) - request->arrived_us);
}

/* True: the shard did not answer, but the others' hits stand. An error that says what is wrong with the
 * request is everybody's. */
static bool is_absent(const struct part *part)
{
    switch (part->code) {
    case SK_ERR_BUSY:
    case SK_ERR_DEADLINE:
    case SK_ERR_UNAVAILABLE:
    case SK_ERR_INTERNAL:
    case SK_ERR_NOMEM:
    case SK_ERR_DISK_FULL:
        return true;
    default:
        return false;
    }
}

static void answer_merged(struct merge *merge)
{
    struct sk_router *self = merge->self;
    struct request *request = merge->request;
    struct sk_reply_writer reply;
    bool is_good = runs_begin(merge);
    if (is_good) {
        reply_begin(self, request, &reply);
        sk_reply_key(&reply, "hits");
        if (merge->is_many)
            sk_put_array(reply.to, merge->query_count);
    }
    for (uint32_t q = 0; q < merge->query_count && is_good; q++)
        is_good = merge_query(merge, reply.to);
    if (!is_good) {
        answer_malformed(self, request, merge->part_of_run[merge->bad]);
        return;
    }
    put_end(merge, &reply);
    answer_reply(self, request, &reply);
}

void finish_search(struct sk_router *self, struct request *request)
{
    struct merge *merge = calloc(1, sizeof *merge);
    if (merge == NULL) {
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_NOMEM, "no memory to merge %u answers",
                                 request->part_count);
        answer_error(self, request, rc, &d);
        return;
    }
    merge->self = self;
    merge->request = request;
    struct part *worst = request_worst(request);
    bool is_hopeless = worst != NULL && !is_absent(worst);
    for (uint32_t p = 0; p < request->part_count; p++)
        if (request->parts[p].code == SK_ERR_OK)
            merge->part_of_run[merge->run_count++] = &request->parts[p];
    if (is_hopeless || merge->run_count == 0)
        answer_part(self, request, worst);
    else
        answer_merged(merge);
    free(merge);
}

/* ---- like ---- */

/* The vector of the record, by name where the fields have names. */
static bool find_vector(const struct request *request, struct sk_span record, struct sk_span *out)
{
    struct sk_span vector;
    if (!sk_map_member(record, "vector", &vector))
        return false;
    if (request->using[0] != '\0')
        return sk_map_member(vector, request->using, out);
    *out = vector;
    return true;
}

/* Sends the search with the record's vector to every shard; the record itself comes back as one hit more
 * and is left out when the answers are merged. */
static void search_with(struct sk_router *self, struct request *request,
                        const struct sk_map_collection *collection, struct sk_span vector)
{
    struct sk_request search = *request->decoded;
    struct sk_diag d = {0};
    search.vector = vector;
    search.limit = request->decoded->limit + 1;
    search.present &= ~(UINT64_C(1) << SK_FIELD_like);
    search.present |= UINT64_C(1) << SK_FIELD_vector | UINT64_C(1) << SK_FIELD_limit;
    sk_buffer_clear(&self->encoded);
    sk_request_encode(&self->encoded, &search); /* before the parts that hold the vector go */
    if (!plan_all(self, request, collection))
        return;
    bool is_broken = self->encoded.is_broken;
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        sk_buffer_append(&part->frame, self->encoded.bytes, self->encoded.size);
        is_broken = is_broken || part->frame.is_broken;
        part->is_part = true;
        request_charge(self, request, part->frame.capacity);
    }
    if (is_broken) {
        enum sk_err rc = sk_fail(&d, SK_ERR_NOMEM, "no memory for a search over %u shards",
                                 request->part_count);
        answer_error(self, request, rc, &d);
        return;
    }
    request_renumber(self, request);
    request->finish = finish_search;
    request_start(self, request);
}

void finish_like(struct sk_router *self, struct request *request)
{
    struct part *part = &request->parts[0];
    struct sk_diag d = {0};
    struct sk_list records;
    struct sk_span vector;
    if (part->code != SK_ERR_OK) {
        answer_part(self, request, part);
        return;
    }
    if (!sk_map_member_list(sk_buffer_span(&part->body), "records", &records) ||
        records.count != 1) {
        answer_malformed(self, request, part);
        return;
    }
    if (records.members.bytes[0] == 0xC0) {
        char text[SK_ID_TEXT_BYTES];
        enum sk_err rc = sk_fail_field(&d, SK_ERR_NOT_FOUND, "like", "no record '%s'",
                                       sk_id_text(&request->decoded->like, text));
        answer_error(self, request, rc, &d);
        return;
    }
    const struct sk_map_collection *collection = sk_map_find_uuid(&self->map, request->uuid);
    if (collection == NULL) {
        enum sk_err rc = sk_map_collection_of(&self->map, request->collection, &collection, &d);
        if (rc == SK_ERR_OK) /* dropped and made again in between */
            rc = sk_fail_field(&d, SK_ERR_NOT_FOUND, "collection", "the collection was dropped");
        answer_error(self, request, rc, &d);
        return;
    }
    if (!find_vector(request, records.members, &vector)) {
        answer_malformed(self, request, part);
        return;
    }
    search_with(self, request, collection, vector);
}
