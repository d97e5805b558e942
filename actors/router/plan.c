/* What goes to which shard. */
#include "actors/router/internal.h"

#include "proto/records.h"

#include <stdlib.h>
#include <string.h>

enum sk_err request_decode(struct sk_router *self, struct request *request, struct sk_diag *d)
{
    if (request->decoded != NULL)
        return SK_ERR_OK;
    request->decoded = malloc(sizeof *request->decoded);
    if (request->decoded == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a request");
    request_charge(self, request, sizeof *request->decoded);
    enum sk_err rc = sk_request_decode(request->decoded, request_span(request), d);
    if (rc != SK_ERR_OK) {
        free(request->decoded);
        request->decoded = NULL;
    }
    return rc;
}

static void answer_nomem(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    enum sk_err rc = sk_fail(&d, SK_ERR_NOMEM, "no memory to send the request to %u shards",
                             request->shard_count);
    answer_error(self, request, rc, &d);
}

void request_target(struct request *request, const struct sk_map_collection *collection)
{
    memcpy(request->uuid, collection->schema.uuid, sizeof request->uuid);
    request->schema_version = collection->schema.version;
    request->shard_count = collection->schema.shard_count;
}

static void part_target(struct part *part, const struct sk_map_collection *collection,
                        uint32_t shard)
{
    part->shard = (uint16_t)shard;
    part->peer = SK_ROUTER_PEER_WORKER_0 + collection->workers[shard];
}

bool plan_all(struct sk_router *self, struct request *request,
              const struct sk_map_collection *collection)
{
    if (!request_make_parts(self, request, collection->schema.shard_count)) {
        answer_nomem(self, request);
        return false;
    }
    for (uint32_t s = 0; s < collection->schema.shard_count; s++)
        part_target(&request->parts[s], collection, s);
    return true;
}

/* The frame as it came, to the one shard that it concerns. */
static void pass_on(struct sk_router *self, struct request *request,
                    const struct sk_map_collection *collection, uint32_t shard)
{
    bool is_made = request_make_parts(self, request, 1);
    SK_CHECK(is_made); /* one part needs no memory */
    part_target(&request->parts[0], collection, shard);
    request->finish = NULL;
    request_start(self, request);
}

/* ---- ids over shards ---- */

struct id_place {
    struct sk_span packed;
    uint32_t shard;
};

static void encode_part_of_ids(struct request *request, struct part *part,
                               const struct id_place *places, struct sk_buffer *members)
{
    struct sk_request out = *request->decoded;
    uint32_t count = 0;
    sk_buffer_clear(members);
    for (uint32_t i = 0; i < request->decoded->ids.count; i++)
        if (places[i].shard == part->shard) {
            sk_put_raw(members, places[i].packed);
            count++;
        }
    out.ids = (struct sk_list){
        .members = sk_buffer_span(members), .count = count, .is_present = true};
    sk_request_encode(&part->frame, &out);
    part->frame.is_broken = part->frame.is_broken || members->is_broken;
    part->is_part = true;
}

static struct id_place *place_ids(const struct request *request, const struct sk_schema *schema,
                                  bool is_used[SK_SHARDS_MAX])
{
    const struct sk_list *ids = &request->decoded->ids;
    struct id_place *places = calloc(ids->count + 1, sizeof *places);
    struct sk_reader from = sk_reader_of(ids->members);
    struct sk_id id;
    for (uint32_t i = 0; places != NULL && i < ids->count; i++) {
        const uint8_t *at = from.at;
        bool is_read = sk_ids_next(&from, &id);
        SK_CHECK(is_read); /* sk_request_decode has counted them */
        places[i].packed = sk_span_of(at, (size_t)(from.at - at));
        places[i].shard = sk_shard_of_slot(schema, sk_id_slot(&id));
        is_used[places[i].shard] = true;
    }
    return places;
}

/* Makes parts for the shards that are used; one alone gets the client's own frame. False: answered or
 * passed on already. */
static bool plan_used(struct sk_router *self, struct request *request,
                      const struct sk_map_collection *collection,
                      const bool is_used[SK_SHARDS_MAX])
{
    uint32_t count = 0, only = 0;
    for (uint32_t s = 0; s < request->shard_count; s++)
        if (is_used[s]) {
            count++;
            only = s;
        }
    if (count <= 1) {
        pass_on(self, request, collection, only);
        return false;
    }
    if (!request_make_parts(self, request, count)) {
        answer_nomem(self, request);
        return false;
    }
    count = 0;
    for (uint32_t s = 0; s < request->shard_count; s++)
        if (is_used[s])
            part_target(&request->parts[count++], collection, s);
    return true;
}

/* False: answered. */
static bool check_frames(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        enum sk_err rc = sk_buffer_check(&part->frame, &d);
        if (rc == SK_ERR_OK && part->frame.size > SK_FRAME_BYTES_MAX)
            rc = sk_fail(&d, SK_ERR_TOO_LARGE,
                         "the part for shard %u has %zu bytes, the most is %d: send fewer rows",
                         part->shard, part->frame.size, SK_FRAME_BYTES_MAX);
        if (rc != SK_ERR_OK) {
            answer_error(self, request, rc, &d);
            return false;
        }
        request_charge(self, request, part->frame.capacity);
    }
    return true;
}

static void plan_ids(struct sk_router *self, struct request *request,
                     const struct sk_map_collection *collection, finish_fn *finish)
{
    bool is_used[SK_SHARDS_MAX] = {false};
    struct id_place *places = place_ids(request, &collection->schema, is_used);
    if (places == NULL) {
        answer_nomem(self, request);
        return;
    }
    request->finish = finish;
    bool is_split = plan_used(self, request, collection, is_used);
    if (is_split) {
        for (uint32_t p = 0; p < request->part_count; p++)
            encode_part_of_ids(request, &request->parts[p], places, &self->encoded);
        if (check_frames(self, request))
            request_start(self, request);
    }
    free(places);
}

/* ---- rows over shards ---- */

static void put_view(struct sk_buffer *to, const struct sk_vector_view *view)
{
    if (view->bin.bytes != NULL) {
        sk_put_bin(to, view->bin.bytes, view->bin.size);
    } else {
        sk_put_array(to, view->dim);
        sk_put_raw(to, view->values);
    }
}

static void put_row(struct sk_buffer *to, const struct sk_schema *schema, const struct sk_row *row)
{
    bool is_named = schema->vector_count != 1 || schema->vectors[0].name[0] != '\0';
    sk_put_map(to, 2U + (row->payload.bytes != NULL) + row->has_ttl);
    sk_put_text(to, "id");
    sk_put_id(to, &row->id);
    sk_put_text(to, "vector");
    if (is_named)
        sk_put_map(to, (size_t)__builtin_popcount(row->vector_mask));
    for (uint32_t f = 0; f < schema->vector_count; f++) {
        if ((row->vector_mask >> f & 1) == 0)
            continue;
        if (is_named)
            sk_put_text(to, schema->vectors[f].name);
        put_view(to, &row->vectors[f]);
    }
    if (row->payload.bytes != NULL) {
        sk_put_text(to, "payload");
        sk_put_raw(to, row->payload);
    }
    if (row->has_ttl) {
        sk_put_text(to, "ttl_s");
        sk_put_f64(to, row->ttl_s);
    }
}

static void begin_rows(const struct request *request, struct sk_buffer *to)
{
    sk_put_map(to, 5);
    sk_put_text(to, "v");
    sk_put_u64(to, SK_PROTOCOL_VERSION);
    sk_put_text(to, "op");
    sk_put_text(to, sk_op_name(request->op));
    sk_put_text(to, "id");
    sk_put_request_id(to, &request->id);
    sk_put_text(to, "collection");
    sk_put_text_of(to, request->collection);
    sk_put_text(to, "records");
}

/* Rows were checked: none fails now. */
static void split_rows(struct request *request, const struct sk_schema *schema)
{
    struct part *part_of_shard[SK_SHARDS_MAX] = {NULL};
    size_t array_at[SK_SHARDS_MAX];
    uint32_t counts[SK_SHARDS_MAX] = {0};
    struct sk_rows rows;
    struct sk_row row;
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        part_of_shard[part->shard] = part;
        part->is_part = true;
        begin_rows(request, &part->frame);
        array_at[part->shard] = sk_put_array_open(&part->frame);
    }
    enum sk_err rc = sk_rows_begin(&rows, schema, request->decoded, NULL);
    while (rc == SK_ERR_OK && sk_rows_next(&rows, &row, &rc, NULL)) {
        uint32_t shard = sk_shard_of_slot(schema, sk_id_slot(&row.id));
        put_row(&part_of_shard[shard]->frame, schema, &row);
        counts[shard]++;
    }
    SK_CHECK(rc == SK_ERR_OK);
    for (uint32_t p = 0; p < request->part_count; p++) {
        uint16_t shard = request->parts[p].shard;
        sk_put_count_at(&request->parts[p].frame, array_at[shard], counts[shard]);
    }
}

static void plan_upsert(struct sk_router *self, struct request *request,
                        const struct sk_map_collection *collection)
{
    const struct sk_schema *schema = &collection->schema;
    bool is_used[SK_SHARDS_MAX] = {false};
    uint32_t count;
    struct sk_rows rows;
    struct sk_row row;
    struct sk_diag d = {0};
    enum sk_err rc = sk_upsert_check(schema, request->decoded, self->scratch, &count, &d);
    if (rc == SK_ERR_OK)
        rc = sk_rows_begin(&rows, schema, request->decoded, &d);
    while (rc == SK_ERR_OK && sk_rows_next(&rows, &row, &rc, &d))
        is_used[sk_shard_of_slot(schema, sk_id_slot(&row.id))] = true;
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    request->finish = finish_sum_write;
    if (!plan_used(self, request, collection, is_used))
        return;
    split_rows(request, schema);
    if (check_frames(self, request))
        request_start(self, request);
}

/* ---- searches ---- */

/* Neighbours of a record: its shard is asked for its vector first. */
static void plan_like(struct sk_router *self, struct request *request,
                      const struct sk_map_collection *collection)
{
    struct sk_diag d = {0};
    const struct sk_id *like = &request->decoded->like;
    if (request->decoded->limit >= SK_LIMIT_MAX) {
        enum sk_err rc = sk_fail_field(&d, SK_ERR_TOO_LARGE, "limit",
                                       "with like over several shards limit is at most %d",
                                       SK_LIMIT_MAX - 1);
        answer_error(self, request, rc, &d);
        return;
    }
    bool is_made = request_make_parts(self, request, 1);
    SK_CHECK(is_made);
    struct part *part = &request->parts[0];
    part_target(part, collection, sk_shard_of_slot(&collection->schema, sk_id_slot(like)));
    part->is_part = true;
    struct sk_request get = {.op = SK_OP_GET, .id = request->id, .with_vector = true};
    get.deadline_ms = request->deadline_ms;
    get.collection = request->collection;
    sk_buffer_clear(&self->encoded);
    sk_put_id(&self->encoded, like);
    get.ids = (struct sk_list){sk_buffer_span(&self->encoded), 1, true};
    get.present = UINT64_C(1) << SK_FIELD_collection | UINT64_C(1) << SK_FIELD_ids |
                  UINT64_C(1) << SK_FIELD_with_vector;
    sk_request_encode(&part->frame, &get);
    request->finish = finish_like;
    if (check_frames(self, request))
        request_start(self, request);
}

static void plan_search(struct sk_router *self, struct request *request,
                        const struct sk_map_collection *collection)
{
    const struct sk_schema *schema = &collection->schema;
    struct sk_diag d = {0};
    uint32_t field;
    enum sk_err rc = sk_schema_vector(schema, request->decoded->using, &field, &d);
    if (rc == SK_ERR_OK)
        rc = sk_schema_check_search(&schema->vectors[field], request->decoded, &d);
    if (rc != SK_ERR_OK) {
        if (d.field[0] == '\0')
            snprintf(d.field, sizeof d.field, "using");
        answer_error(self, request, rc, &d);
        return;
    }
    request->metric = schema->vectors[field].metric;
    memcpy(request->using, schema->vectors[field].name, sizeof request->using);
    if (sk_request_has(request->decoded, SK_FIELD_like)) {
        plan_like(self, request, collection);
        return;
    }
    request->finish = finish_search;
    if (plan_all(self, request, collection))
        request_start(self, request);
}

/* ---- all ---- */

static enum resend resend_of(enum sk_op op)
{
    switch (op) {
    case SK_OP_UPSERT:
    case SK_OP_DELETE:
    case SK_OP_SET_PAYLOAD:
        return RESEND_WRITE;
    case SK_OP_GET:
    case SK_OP_SEARCH:
    case SK_OP_SCROLL:
    case SK_OP_COUNT:
        return RESEND_READ;
    case SK_OP_SNAPSHOT:
        return RESEND_NEVER;
    default:
        return RESEND_REPLACED;
    }
}

static finish_fn *finish_of(enum sk_op op)
{
    switch (op) {
    case SK_OP_DELETE:
    case SK_OP_SET_PAYLOAD:
        return finish_sum_write;
    case SK_OP_SCROLL:
        return finish_scroll;
    case SK_OP_COUNT:
        return finish_count;
    case SK_OP_VERIFY:
    case SK_OP_COMPACT:
    case SK_OP_SNAPSHOT:
        return finish_sums;
    default:
        return finish_all_ok;
    }
}

void plan_shards(struct sk_router *self, struct request *request,
                 const struct sk_map_collection *collection)
{
    request_target(request, collection);
    request->resend = resend_of(request->op);
    request->is_stamped = sk_op_is_write(request->op);
    if (request->shard_count == 1) {
        pass_on(self, request, collection, 0);
        return;
    }
    struct sk_diag d = {0};
    enum sk_err rc = request_decode(self, request, &d);
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    bool has_ids = sk_request_has(request->decoded, SK_FIELD_ids);
    if (request->op == SK_OP_UPSERT) {
        plan_upsert(self, request, collection);
    } else if (request->op == SK_OP_SEARCH) {
        plan_search(self, request, collection);
    } else if (has_ids) {
        plan_ids(self, request, collection,
                 request->op == SK_OP_GET ? finish_get : finish_sum_write);
    } else {
        request->finish = finish_of(request->op);
        if (plan_all(self, request, collection))
            request_start(self, request);
    }
}
