/* The operations: the fields of each request, and what its reply gives. */
#include "proto/client/internal.h"

#include <stdio.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error                                                                                             \
    "vectors go to the wire as little-endian float32; a big-endian machine would have to swap them"
#endif

enum { DIM_MAX = 8192 };

static void put_text(struct sk_frame *frame, const char *name, const char *text)
{
    if (text == NULL)
        return;
    sk_frame_key(frame, name);
    sk_put_text(&frame->wire, text);
}

static void put_u32(struct sk_frame *frame, const char *name, uint32_t value)
{
    if (value == 0)
        return;
    sk_frame_key(frame, name);
    sk_put_u64(&frame->wire, value);
}

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

static enum skerry_code check_reserved(const uint64_t *reserved, size_t count,
                                       struct skerry_error *error)
{
    for (size_t i = 0; i < count; i++)
        if (reserved[i] != 0)
            return sk_client_fail_field(error, SKERRY_INVALID, "reserved",
                                        "reserved members must be zero: was the struct zeroed?");
    return SKERRY_OK;
}

static enum skerry_code check_name(const char *collection, struct skerry_error *error)
{
    if (collection == NULL)
        return sk_client_fail_field(error, SKERRY_INVALID, "collection", "no collection was named");
    return SKERRY_OK;
}

/* ---- Replies of one number, of nothing, or as they are ---- */

static enum skerry_code call_for_reply(struct skerry *self, struct sk_frame *frame,
                                       enum skerry_code code, uint32_t deadline_ms,
                                       struct skerry_reply **out, struct skerry_error *error)
{
    *out = NULL;
    if (code == SKERRY_OK)
        return sk_connection_call(self, frame, deadline_ms, out, error);
    sk_frame_deinit(frame);
    return code;
}

static enum skerry_code call_for_nothing(struct skerry *self, struct sk_frame *frame,
                                         enum skerry_code code, uint32_t deadline_ms,
                                         struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    code = call_for_reply(self, frame, code, deadline_ms, &reply, error);
    skerry_reply_free(&reply);
    return code;
}

static enum skerry_code call_for_number(struct skerry *self, struct sk_frame *frame,
                                        enum skerry_code code, uint32_t deadline_ms,
                                        const char *name, uint64_t *out, struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    uint64_t number = 0;
    code = call_for_reply(self, frame, code, deadline_ms, &reply, error);
    if (code == SKERRY_OK && !skerry_reply_u64(reply, name, &number))
        code = sk_client_fail(error, SKERRY_VERSION, "the reply has no number '%s'", name);
    skerry_reply_free(&reply);
    if (out != NULL)
        *out = number;
    return code;
}

static void begin_for(struct sk_frame *frame, const char *op, const char *collection)
{
    sk_frame_begin(frame, op);
    put_text(frame, "collection", collection);
}

/* ---- Any operation ---- */

enum skerry_code skerry_call(struct skerry *self, const char *op, struct skerry_bytes fields,
                             uint32_t deadline_ms, struct skerry_reply **out,
                             struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, op);
    enum skerry_code code = sk_frame_fields(&frame, fields, error);
    return call_for_reply(self, &frame, code, deadline_ms, out, error);
}

static enum skerry_code put_json_fields(struct sk_frame *frame, const char *fields,
                                        struct skerry_error *error)
{
    struct skerry_bytes bytes = {0};
    if (fields == NULL)
        return SKERRY_OK;
    enum skerry_code code = skerry_json_to_msgpack(fields, strlen(fields), &bytes, error);
    if (code == SKERRY_OK)
        code = sk_frame_fields(frame, bytes, error);
    skerry_bytes_free(&bytes);
    return code;
}

enum skerry_code skerry_call_json(struct skerry *self, const char *op, const char *fields,
                                  uint32_t deadline_ms, struct skerry_reply **out,
                                  struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, op);
    enum skerry_code code = put_json_fields(&frame, fields, error);
    return call_for_reply(self, &frame, code, deadline_ms, out, error);
}

enum skerry_code skerry_submit(struct skerry *self, const char *op, struct skerry_bytes fields,
                               uint32_t deadline_ms, uint64_t *ticket, struct skerry_error *error)
{
    struct sk_frame frame;
    *ticket = 0;
    sk_frame_begin(&frame, op);
    enum skerry_code code = sk_frame_fields(&frame, fields, error);
    if (code == SKERRY_OK)
        return sk_connection_submit(self, &frame, deadline_ms, ticket, error);
    sk_frame_deinit(&frame);
    return code;
}

/* ---- Node and collections ---- */

enum skerry_code skerry_ping(struct skerry *self, uint32_t deadline_ms, struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, "ping");
    return call_for_nothing(self, &frame, SKERRY_OK, deadline_ms, error);
}

static enum skerry_code plain(struct skerry *self, const char *op, struct skerry_reply **out,
                              struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, op);
    return call_for_reply(self, &frame, SKERRY_OK, 0, out, error);
}

enum skerry_code skerry_info(struct skerry *self, struct skerry_reply **out,
                             struct skerry_error *error)
{
    return plain(self, "info", out, error);
}

enum skerry_code skerry_stats(struct skerry *self, struct skerry_reply **out,
                              struct skerry_error *error)
{
    return plain(self, "stats", out, error);
}

enum skerry_code skerry_topology(struct skerry *self, struct skerry_reply **out,
                                 struct skerry_error *error)
{
    return plain(self, "topology", out, error);
}

enum skerry_code skerry_list_collections(struct skerry *self, struct skerry_reply **out,
                                         struct skerry_error *error)
{
    return plain(self, "list_collections", out, error);
}

enum skerry_code skerry_list_keys(struct skerry *self, struct skerry_reply **out,
                                  struct skerry_error *error)
{
    return plain(self, "list_keys", out, error);
}

static void put_vector_field(struct sk_buffer *wire, const struct skerry_vector_field *field)
{
    bool has_index = field->index != NULL || field->m != 0 || field->ef_construction != 0 ||
                     field->profile != NULL;
    sk_put_map(wire, 2U + has_index);
    sk_put_text(wire, "dim");
    sk_put_u64(wire, field->dim);
    sk_put_text(wire, "metric");
    sk_put_text(wire, field->metric == NULL ? "cosine" : field->metric);
    if (!has_index)
        return;
    sk_put_text(wire, "index");
    sk_put_map(wire,
               1U + (field->m != 0) + (field->ef_construction != 0) + (field->profile != NULL));
    sk_put_text(wire, "type");
    sk_put_text(wire, field->index == NULL ? "hnsw" : field->index);
    if (field->m != 0) {
        sk_put_text(wire, "m");
        sk_put_u64(wire, field->m);
    }
    if (field->ef_construction != 0) {
        sk_put_text(wire, "ef_construction");
        sk_put_u64(wire, field->ef_construction);
    }
    if (field->profile != NULL) {
        sk_put_text(wire, "profile");
        sk_put_text(wire, field->profile);
    }
}

static enum skerry_code put_collection(struct sk_frame *frame,
                                       const struct skerry_collection_options *options,
                                       struct skerry_error *error)
{
    bool is_named = options->vector_count > 1 ||
                    (options->vector_count == 1 && options->vectors[0].name != NULL);
    if (options->vector_count > 0) {
        sk_frame_key(frame, "vectors");
        if (is_named)
            sk_put_map(&frame->wire, options->vector_count);
    }
    for (size_t i = 0; i < options->vector_count; i++) {
        const struct skerry_vector_field *field = &options->vectors[i];
        if (is_named && field->name == NULL)
            return sk_client_fail_field(error, SKERRY_INVALID, "vectors",
                                        "vector field %zu of %zu has no name", i,
                                        options->vector_count);
        if (is_named)
            sk_put_text(&frame->wire, field->name);
        put_vector_field(&frame->wire, field);
    }
    if (options->field_count > 0) {
        sk_frame_key(frame, "payload");
        sk_put_map(&frame->wire, options->field_count);
    }
    for (size_t i = 0; i < options->field_count; i++) {
        const struct skerry_payload_field *field = &options->fields[i];
        if (field->name == NULL || field->kind == NULL)
            return sk_client_fail_field(error, SKERRY_INVALID, "payload",
                                        "payload field %zu has no name or no kind", i);
        sk_put_text(&frame->wire, field->name);
        sk_put_text(&frame->wire, field->kind);
    }
    put_u32(frame, "shards", options->shards);
    return SKERRY_OK;
}

enum skerry_code skerry_create_collection(struct skerry *self,
                                          const struct skerry_collection_options *options,
                                          struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code =
        check_reserved(options->reserved, SK_COUNT_OF(options->reserved), error);
    for (size_t i = 0; code == SKERRY_OK && i < options->vector_count; i++)
        code = check_reserved(options->vectors[i].reserved,
                              SK_COUNT_OF(options->vectors[i].reserved), error);
    if (code == SKERRY_OK)
        code = check_name(options->name, error);
    begin_for(&frame, "create_collection", options->name);
    if (code == SKERRY_OK)
        code = put_collection(&frame, options, error);
    return call_for_nothing(self, &frame, code, options->deadline_ms, error);
}

static enum skerry_code for_collection(struct skerry *self, const char *op, const char *collection,
                                       uint32_t deadline_ms, struct skerry_reply **out,
                                       struct skerry_error *error)
{
    struct sk_frame frame;
    begin_for(&frame, op, collection);
    return call_for_reply(self, &frame, check_name(collection, error), deadline_ms, out, error);
}

enum skerry_code skerry_describe_collection(struct skerry *self, const char *collection,
                                            struct skerry_reply **out, struct skerry_error *error)
{
    return for_collection(self, "describe_collection", collection, 0, out, error);
}

enum skerry_code skerry_drop_collection(struct skerry *self, const char *collection,
                                        struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    enum skerry_code code = for_collection(self, "drop_collection", collection, 0, &reply, error);
    skerry_reply_free(&reply);
    return code;
}

enum skerry_code skerry_alter_collection(struct skerry *self, const char *collection,
                                         const char *changes, struct skerry_reply **out,
                                         struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = check_name(collection, error);
    begin_for(&frame, "alter_collection", collection);
    if (code == SKERRY_OK)
        code = put_json_fields(&frame, changes, error);
    return call_for_reply(self, &frame, code, 0, out, error);
}

enum skerry_code skerry_wait_indexed(struct skerry *self, const char *collection,
                                     uint32_t deadline_ms, struct skerry_error *error)
{
    struct sk_frame frame;
    begin_for(&frame, "wait", collection);
    put_text(&frame, "for", "indexed");
    return call_for_nothing(self, &frame, check_name(collection, error), deadline_ms, error);
}

enum skerry_code skerry_verify(struct skerry *self, const char *collection, uint32_t deadline_ms,
                               struct skerry_reply **out, struct skerry_error *error)
{
    return for_collection(self, "verify", collection, deadline_ms, out, error);
}

enum skerry_code skerry_compact(struct skerry *self, const char *collection, uint32_t deadline_ms,
                                struct skerry_reply **out, struct skerry_error *error)
{
    return for_collection(self, "compact", collection, deadline_ms, out, error);
}

static enum skerry_code named(struct skerry *self, const char *op, const char *collection,
                              const char *name, uint32_t deadline_ms, struct skerry_reply **out,
                              struct skerry_error *error)
{
    struct sk_frame frame;
    begin_for(&frame, op, collection);
    put_text(&frame, "name", name);
    return call_for_reply(self, &frame, check_name(collection, error), deadline_ms, out, error);
}

enum skerry_code skerry_snapshot(struct skerry *self, const char *collection, const char *name,
                                 uint32_t deadline_ms, struct skerry_reply **out,
                                 struct skerry_error *error)
{
    return named(self, "snapshot", collection, name, deadline_ms, out, error);
}

enum skerry_code skerry_restore(struct skerry *self, const char *collection, const char *name,
                                uint32_t deadline_ms, struct skerry_reply **out,
                                struct skerry_error *error)
{
    return named(self, "restore", collection, name, deadline_ms, out, error);
}

enum skerry_code skerry_create_key(struct skerry *self, const char *name, const char *public_key,
                                   const char *role, struct skerry_reply **out,
                                   struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, "create_key");
    put_text(&frame, "name", name);
    put_text(&frame, "public_key", public_key);
    put_text(&frame, "role", role);
    return call_for_reply(self, &frame, SKERRY_OK, 0, out, error);
}

enum skerry_code skerry_revoke_key(struct skerry *self, const char *name,
                                   struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, "revoke_key");
    put_text(&frame, "name", name);
    return call_for_nothing(self, &frame, SKERRY_OK, 0, error);
}

/* ---- Records ---- */

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
        put_u32(frame, "ttl_s", request->ttl_s_all);
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
    begin_for(frame, "upsert", request->collection);
    enum skerry_code code =
        check_reserved(request->reserved, SK_COUNT_OF(request->reserved), error);
    if (code == SKERRY_OK)
        code = check_name(request->collection, error);
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
    enum skerry_code code = check_name(collection, error);
    begin_for(&frame, "delete", collection);
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
    enum skerry_code code = check_name(collection, error);
    begin_for(&frame, "delete", collection);
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
    code = call_for_reply(self, frame, code, deadline_ms, &reply, error);
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
    enum skerry_code code = check_name(collection, error);
    begin_for(&frame, "get", collection);
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

static enum skerry_code search_frame(struct sk_frame *frame, const struct skerry_search *request,
                                     struct skerry_error *error)
{
    begin_for(frame, "search", request->collection);
    enum skerry_code code =
        check_reserved(request->reserved, SK_COUNT_OF(request->reserved), error);
    if (code == SKERRY_OK)
        code = check_name(request->collection, error);
    if (code == SKERRY_OK)
        code = put_query(frame, request, error);
    if (code == SKERRY_OK)
        code = put_filter(frame, &request->filter, error);
    put_text(frame, "using", request->vector_name);
    put_u32(frame, "limit", request->limit);
    put_u32(frame, "ef", request->ef);
    put_true(frame, "with_payload", request->with_payload);
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
    code = call_for_reply(self, &frame, code, request->deadline_ms, &reply, error);
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
        check_reserved(request->reserved, SK_COUNT_OF(request->reserved), error);
    begin_for(&frame, "scroll", request->collection);
    if (code == SKERRY_OK)
        code = check_name(request->collection, error);
    if (code == SKERRY_OK)
        code = put_filter(&frame, &request->filter, error);
    if (code == SKERRY_OK && request->cursor.bytes != NULL)
        code = put_value(&frame, "cursor", request->cursor, error);
    put_u32(&frame, "limit", request->limit);
    put_true(&frame, "with_payload", request->with_payload);
    put_true(&frame, "with_vector", request->with_vector);
    return call_for_records(self, &frame, code, request->deadline_ms, out, error);
}

enum skerry_code skerry_count(struct skerry *self, const char *collection,
                              const struct skerry_filter *filter, uint32_t deadline_ms,
                              uint64_t *count, struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code = check_name(collection, error);
    begin_for(&frame, "count", collection);
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
    enum skerry_code code = check_name(collection, error);
    begin_for(&frame, "set_payload", collection);
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
    put_text(&frame, "mode", mode);
    return call_for_number(self, &frame, code, deadline_ms, "updated", updated, error);
}
