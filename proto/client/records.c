/* Operations on records: their fields, and what their replies give. */
#include "proto/client/fields.h"

#include <stdio.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error                                                                                             \
    "vectors go to the wire as little-endian float32; a big-endian machine would have to swap them"
#endif

enum { DIM_MAX = 8192 };

/* ---- Fields ---- */

static void put_true(struct sk_frame *frame, const char *name, bool value)
{
    if (!value)
        return;
    sk_frame_key(frame, name);
    sk_put_bool(&frame->wire, true);
}

static void put_id(struct sk_buffer *wire, const char *text, uint64_t number)
{
    if (text != NULL)
        sk_put_text(wire, text);
    else
        sk_put_u64(wire, number);
}

static enum skerry_code put_ids(struct sk_frame *frame, const struct skerry_ids *ids,
                                struct skerry_error *error)
{
    if (ids->count > 0 && ids->numbers == NULL && ids->texts == NULL)
        return sk_client_fail_field(error, SKERRY_INVALID, "ids",
                                    "neither numbers nor texts is set");
    sk_frame_key(frame, "ids");
    sk_put_array(&frame->wire, ids->count);
    for (size_t i = 0; i < ids->count; i++) {
        const char *text = ids->texts == NULL ? NULL : ids->texts[i];
        if (text == NULL && ids->numbers == NULL)
            return sk_client_fail_field(error, SKERRY_INVALID, "ids",
                                        "row %zu: the text is NULL and there are no numbers", i);
        put_id(&frame->wire, text, text == NULL ? ids->numbers[i] : 0);
    }
    return SKERRY_OK;
}

/* A value that is there as JSON text or as msgpack. */
static enum skerry_code put_json(struct sk_frame *frame, const char *name, const char *json,
                                 struct skerry_error *error)
{
    struct skerry_bytes bytes;
    enum skerry_code code = skerry_json_to_msgpack(json, strlen(json), &bytes, error);
    if (code != SKERRY_OK) {
        if (error != NULL && error->field[0] == '\0')
            snprintf(error->field, sizeof error->field, "%s", name);
        return code;
    }
    sk_frame_key(frame, name);
    sk_buffer_append(&frame->wire, bytes.bytes, bytes.size);
    skerry_bytes_free(&bytes);
    return SKERRY_OK;
}

/* Bytes that the caller gave as one msgpack value: a broken one would break the whole frame. */
static enum skerry_code put_value(struct sk_frame *frame, const char *name,
                                  struct skerry_bytes value, struct skerry_error *error)
{
    struct sk_reader scan = {value.bytes, (const uint8_t *)value.bytes + value.size};
    if (!sk_scan_skip(&scan, NULL) || scan.at != scan.end)
        return sk_client_fail_field(error, SKERRY_INVALID, name,
                                    "these bytes are not one msgpack value");
    sk_frame_key(frame, name);
    sk_buffer_append(&frame->wire, value.bytes, value.size);
    return SKERRY_OK;
}

static enum skerry_code put_filter(struct sk_frame *frame, const struct skerry_filter *filter,
                                   struct skerry_error *error)
{
    if (filter == NULL || (filter->json == NULL && filter->msgpack.bytes == NULL))
        return SKERRY_OK;
    if (filter->json != NULL && filter->msgpack.bytes != NULL)
        return sk_client_fail_field(error, SKERRY_INVALID, "filter",
                                    "give json or msgpack, not both");
    return filter->json != NULL ? put_json(frame, "filter", filter->json, error)
                                : put_value(frame, "filter", filter->msgpack, error);
}

static enum skerry_code call_for_number(struct skerry *self, struct sk_frame *frame,
                                        enum skerry_code code, uint32_t deadline_ms,
                                        const char *name, uint64_t *out, struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    uint64_t number = 0;
    code = sk_call_for_reply(self, frame, code, deadline_ms, &reply, error);
    if (code == SKERRY_OK && !skerry_reply_u64(reply, name, &number))
        code = sk_client_fail(error, SKERRY_VERSION, "the reply has no number '%s'", name);
    skerry_reply_free(&reply);
    if (out != NULL)
        *out = number;
    return code;
}

/* ---- Writes and reads ---- */

static enum skerry_code put_columns(struct sk_frame *frame, const struct skerry_upsert *request,
                                    struct skerry_error *error)
{
    bool is_named = request->vector_count > 1 ||
                    (request->vector_count == 1 && request->vectors[0].name != NULL);
    if (request->vector_count == 0)
        return SKERRY_OK;
    sk_frame_key(frame, "vectors");
    if (is_named)
        sk_put_map(&frame->wire, request->vector_count);
    for (size_t i = 0; i < request->vector_count; i++) {
        const struct skerry_vectors *column = &request->vectors[i];
        if (column->values == NULL || column->dim == 0 || column->dim > DIM_MAX)
            return sk_client_fail_field(error, SKERRY_INVALID, "vectors",
                                        "column %zu: dim is %u, want 1 to %d, and values", i,
                                        column->dim, DIM_MAX);
        if (is_named && column->name == NULL)
            return sk_client_fail_field(error, SKERRY_INVALID, "vectors",
                                        "column %zu of %zu has no name", i, request->vector_count);
        if (is_named)
            sk_put_text(&frame->wire, column->name);
        sk_put_bin(&frame->wire, column->values,
                   request->ids.count * column->dim * sizeof *column->values);
    }
    return SKERRY_OK;
}

static enum skerry_code put_payloads(struct sk_frame *frame, const struct skerry_upsert *request,
                                     struct skerry_error *error)
{
    if (request->payloads != NULL && request->payload_list.bytes != NULL)
        return sk_client_fail_field(error, SKERRY_INVALID, "payloads",
                                    "give payloads or payload_list, not both");
    if (request->payload_list.bytes != NULL)
        return put_value(frame, "payloads", request->payload_list, error);
    if (request->payloads == NULL)
        return SKERRY_OK;
    sk_frame_key(frame, "payloads");
    sk_put_array(&frame->wire, request->ids.count);
    for (size_t i = 0; i < request->ids.count; i++) {
        struct skerry_bytes payload = request->payloads[i];
        struct sk_reader scan = {payload.bytes, (const uint8_t *)payload.bytes + payload.size};
        if (payload.bytes == NULL) {
            sk_put_nil(&frame->wire);
            continue;
        }
        if (!sk_scan_skip(&scan, NULL) || scan.at != scan.end)
            return sk_client_fail_field(error, SKERRY_INVALID, "payloads",
                                        "row %zu: these bytes are not one msgpack value", i);
        sk_buffer_append(&frame->wire, payload.bytes, payload.size);
    }
    return SKERRY_OK;
}

static void put_ttl(struct sk_frame *frame, const struct skerry_upsert *request)
{
    if (request->ttl_s == NULL) {
        sk_fields_u32(frame, "ttl_s", request->ttl_s_all);
        return;
    }
    sk_frame_key(frame, "ttl_s");
    sk_put_array(&frame->wire, request->ids.count);
    for (size_t i = 0; i < request->ids.count; i++) {
        if (request->ttl_s[i] == 0)
            sk_put_nil(&frame->wire);
        else
            sk_put_u64(&frame->wire, request->ttl_s[i]);
    }
}

static enum skerry_code upsert_frame(struct sk_frame *frame, const struct skerry_upsert *request,
                                     struct skerry_error *error)
{
    sk_frame_begin_for(frame, "upsert", request->collection);
    enum skerry_code code =
        sk_fields_check_reserved(request->reserved, SK_COUNT_OF(request->reserved), error);
    if (code == SKERRY_OK)
        code = sk_fields_check_collection(request->collection, error);
    if (code == SKERRY_OK && request->ids.count > SK_ROWS_MAX)
        code = sk_client_fail_field(error, SKERRY_TOO_LARGE, "ids",
                                    "%zu rows in a request, at most %d: send several",
                                    request->ids.count, SK_ROWS_MAX);
    if (code == SKERRY_OK)
        code = put_ids(frame, &request->ids, error);
    if (code == SKERRY_OK)
        code = put_columns(frame, request, error);
    if (code == SKERRY_OK)
        code = put_payloads(frame, request, error);
    if (code == SKERRY_OK)
        put_ttl(frame, request);
    if (code == SKERRY_OK && frame->wire.size > SK_FRAME_BYTES_MAX)
        code =
            sk_client_fail(error, SKERRY_TOO_LARGE,
                           "the request has %zu bytes, a frame holds at most %d: send fewer rows",
                           frame->wire.size, SK_FRAME_BYTES_MAX);
    return code;
}

enum skerry_code skerry_upsert(struct skerry *self, const struct skerry_upsert *request,
                               uint64_t *upserted, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = upsert_frame(&frame, request, error);
    return call_for_number(self, &frame, code, request->deadline_ms, "upserted", upserted, error);
}

static enum skerry_code submit(struct skerry *self, struct sk_frame *frame, enum skerry_code code,
                               uint32_t deadline_ms, uint64_t *ticket, struct skerry_error *error)
{
    *ticket = 0;
    if (code == SKERRY_OK)
        return sk_connection_submit(self, frame, deadline_ms, ticket, error);
    sk_frame_deinit(frame);
    return code;
}

enum skerry_code skerry_upsert_submit(struct skerry *self, const struct skerry_upsert *request,
                                      uint64_t *ticket, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = upsert_frame(&frame, request, error);
    return submit(self, &frame, code, request->deadline_ms, ticket, error);
}

enum skerry_code skerry_delete(struct skerry *self, const char *collection,
                               const struct skerry_ids *ids, uint32_t deadline_ms,
                               uint64_t *deleted, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = sk_fields_check_collection(collection, error);
    sk_frame_begin_for(&frame, "delete", collection);
    if (code == SKERRY_OK)
        code = put_ids(&frame, ids, error);
    return call_for_number(self, &frame, code, deadline_ms, "deleted", deleted, error);
}

/* A write that takes a filter must have one: without it, it would be a write to every record. */
static enum skerry_code need_filter(const struct skerry_filter *filter, struct skerry_error *error)
{
    if (filter == NULL || (filter->json == NULL && filter->msgpack.bytes == NULL))
        return sk_client_fail_field(error, SKERRY_INVALID, "filter", "a filter or ids are needed");
    return SKERRY_OK;
}

enum skerry_code skerry_delete_where(struct skerry *self, const char *collection,
                                     const struct skerry_filter *filter, uint32_t deadline_ms,
                                     uint64_t *deleted, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = sk_fields_check_collection(collection, error);
    sk_frame_begin_for(&frame, "delete", collection);
    if (code == SKERRY_OK)
        code = need_filter(filter, error);
    if (code == SKERRY_OK)
        code = put_filter(&frame, filter, error);
    return call_for_number(self, &frame, code, deadline_ms, "deleted", deleted, error);
}

static enum skerry_code call_for_records(struct skerry *self, struct sk_frame *frame,
                                         enum skerry_code code, uint32_t deadline_ms,
                                         struct skerry_records **out, struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    *out = NULL;
    code = sk_call_for_reply(self, frame, code, deadline_ms, &reply, error);
    if (code == SKERRY_OK)
        code = skerry_reply_records(&reply, out, error);
    skerry_reply_free(&reply);
    return code;
}

enum skerry_code skerry_get(struct skerry *self, const char *collection,
                            const struct skerry_ids *ids, bool with_payload, bool with_vector,
                            uint32_t deadline_ms, struct skerry_records **out,
                            struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = sk_fields_check_collection(collection, error);
    sk_frame_begin_for(&frame, "get", collection);
    if (code == SKERRY_OK)
        code = put_ids(&frame, ids, error);
    put_true(&frame, "with_payload", with_payload);
    put_true(&frame, "with_vector", with_vector);
    return call_for_records(self, &frame, code, deadline_ms, out, error);
}

static enum skerry_code put_query(struct sk_frame *frame, const struct skerry_search *request,
                                  struct skerry_error *error)
{
    size_t query_count = request->query_count == 0 ? 1 : request->query_count;
    if ((request->vectors == NULL) == (request->like == NULL))
        return sk_client_fail_field(error, SKERRY_INVALID, "vector",
                                    "a search needs vectors or like, and one of them only");
    if (request->like != NULL) {
        sk_frame_key(frame, "like");
        put_id(&frame->wire, request->like->text, request->like->number);
        return SKERRY_OK;
    }
    if (request->dim == 0 || request->dim > DIM_MAX)
        return sk_client_fail_field(error, SKERRY_INVALID, "vector", "dim is %u, want 1 to %d",
                                    request->dim, DIM_MAX);
    if (query_count > SK_QUERIES_MAX)
        return sk_client_fail_field(error, SKERRY_TOO_LARGE, "vectors",
                                    "%zu queries in a request, at most %d: send several",
                                    query_count, SK_QUERIES_MAX);
    sk_frame_key(frame, request->query_count == 0 ? "vector" : "vectors");
    sk_put_bin(&frame->wire, request->vectors, query_count * request->dim * sizeof(float));
    return SKERRY_OK;
}

static void put_payload_wanted(struct sk_frame *frame, const struct skerry_search *request)
{
    if (request->payload_key_count == 0) {
        put_true(frame, "with_payload", request->with_payload);
        return;
    }
    sk_frame_key(frame, "with_payload");
    sk_put_array(&frame->wire, request->payload_key_count);
    for (size_t i = 0; i < request->payload_key_count; i++)
        sk_put_text(&frame->wire, request->payload_keys[i]);
}

static enum skerry_code search_frame(struct sk_frame *frame, const struct skerry_search *request,
                                     struct skerry_error *error)
{
    sk_frame_begin_for(frame, "search", request->collection);
    enum skerry_code code =
        sk_fields_check_reserved(request->reserved, SK_COUNT_OF(request->reserved), error);
    if (code == SKERRY_OK && request->reserved_u32 != 0)
        code = sk_fields_check_reserved(&(uint64_t){request->reserved_u32}, 1, error);
    if (code == SKERRY_OK)
        code = sk_fields_check_collection(request->collection, error);
    if (code == SKERRY_OK)
        code = put_query(frame, request, error);
    if (code == SKERRY_OK)
        code = put_filter(frame, &request->filter, error);
    sk_fields_text(frame, "using", request->vector_name);
    sk_fields_u32(frame, "limit", request->limit);
    sk_fields_u32(frame, "ef", request->ef);
    sk_fields_u32(frame, "nprobe", request->nprobe);
    if (request->recall != 0) {
        sk_frame_key(frame, "recall");
        sk_put_f64(&frame->wire, request->recall);
    }
    put_payload_wanted(frame, request);
    put_true(frame, "with_vector", request->with_vector);
    put_true(frame, "exact", request->exact);
    if (request->score_threshold != NULL) {
        sk_frame_key(frame, "score_threshold");
        sk_put_f32(&frame->wire, *request->score_threshold);
    }
    return code;
}

enum skerry_code skerry_search(struct skerry *self, const struct skerry_search *request,
                               struct skerry_hits **out, struct skerry_error *error)
{
    struct sk_frame frame;
    struct skerry_reply *reply = NULL;
    *out = NULL;
    enum skerry_code code = search_frame(&frame, request, error);
    code = sk_call_for_reply(self, &frame, code, request->deadline_ms, &reply, error);
    if (code == SKERRY_OK)
        code = skerry_reply_hits(&reply, out, error);
    skerry_reply_free(&reply);
    return code;
}

enum skerry_code skerry_search_submit(struct skerry *self, const struct skerry_search *request,
                                      uint64_t *ticket, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = search_frame(&frame, request, error);
    return submit(self, &frame, code, request->deadline_ms, ticket, error);
}

enum skerry_code skerry_scroll(struct skerry *self, const struct skerry_scroll *request,
                               struct skerry_records **out, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code =
        sk_fields_check_reserved(request->reserved, SK_COUNT_OF(request->reserved), error);
    sk_frame_begin_for(&frame, "scroll", request->collection);
    if (code == SKERRY_OK)
        code = sk_fields_check_collection(request->collection, error);
    if (code == SKERRY_OK)
        code = put_filter(&frame, &request->filter, error);
    if (code == SKERRY_OK && request->cursor.bytes != NULL)
        code = put_value(&frame, "cursor", request->cursor, error);
    sk_fields_u32(&frame, "limit", request->limit);
    put_true(&frame, "with_payload", request->with_payload);
    put_true(&frame, "with_vector", request->with_vector);
    return call_for_records(self, &frame, code, request->deadline_ms, out, error);
}

enum skerry_code skerry_count(struct skerry *self, const char *collection,
                              const struct skerry_filter *filter, uint32_t deadline_ms,
                              uint64_t *count, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = sk_fields_check_collection(collection, error);
    sk_frame_begin_for(&frame, "count", collection);
    if (code == SKERRY_OK)
        code = put_filter(&frame, filter, error);
    return call_for_number(self, &frame, code, deadline_ms, "count", count, error);
}

enum skerry_code skerry_set_payload(struct skerry *self, const char *collection,
                                    const struct skerry_ids *ids,
                                    const struct skerry_filter *filter, const char *payload,
                                    const char *mode, uint32_t deadline_ms, uint64_t *updated,
                                    struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = sk_fields_check_collection(collection, error);
    sk_frame_begin_for(&frame, "set_payload", collection);
    if (code == SKERRY_OK && ids == NULL)
        code = need_filter(filter, error);
    if (code == SKERRY_OK && ids != NULL)
        code = put_ids(&frame, ids, error);
    if (code == SKERRY_OK)
        code = put_filter(&frame, filter, error);
    if (code == SKERRY_OK && payload == NULL)
        code = sk_client_fail_field(error, SKERRY_INVALID, "payload", "no payload was given");
    if (code == SKERRY_OK)
        code = put_json(&frame, "payload", payload, error);
    sk_fields_text(&frame, "mode", mode);
    return call_for_number(self, &frame, code, deadline_ms, "updated", updated, error);
}
