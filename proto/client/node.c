/* Operations on the node and its collections, and any operation by its name. */
#include "proto/client/fields.h"

/* ---- Any operation ---- */

enum skerry_code skerry_call(struct skerry *self, const char *op, struct skerry_bytes fields,
                             uint32_t deadline_ms, struct skerry_reply **out,
                             struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, op);
    enum skerry_code code = sk_frame_fields(&frame, fields, error);
    return sk_call_for_reply(self, &frame, code, deadline_ms, out, error);
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
    return sk_call_for_reply(self, &frame, code, deadline_ms, out, error);
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
    return sk_call_for_nothing(self, &frame, SKERRY_OK, deadline_ms, error);
}

static enum skerry_code plain(struct skerry *self, const char *op, struct skerry_reply **out,
                              struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, op);
    return sk_call_for_reply(self, &frame, SKERRY_OK, 0, out, error);
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
    const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {{"m", field->m},
                   {"ef_construction", field->ef_construction},
                   {"nlist", field->nlist},
                   {"pq_m", field->pq_m},
                   {"refine", field->refine}};
    uint32_t given = field->profile != NULL;
    for (size_t i = 0; i < SK_COUNT_OF(numbers); i++)
        given += numbers[i].value != 0;
    bool has_index = field->index != NULL || given != 0;
    sk_put_map(wire, 2U + has_index);
    sk_put_text(wire, "dim");
    sk_put_u64(wire, field->dim);
    sk_put_text(wire, "metric");
    sk_put_text(wire, field->metric == NULL ? "cosine" : field->metric);
    if (!has_index)
        return;
    sk_put_text(wire, "index");
    sk_put_map(wire, 1U + given);
    sk_put_text(wire, "type");
    sk_put_text(wire, field->index == NULL ? "hnsw" : field->index);
    for (size_t i = 0; i < SK_COUNT_OF(numbers); i++)
        if (numbers[i].value != 0) {
            sk_put_text(wire, numbers[i].name);
            sk_put_u64(wire, numbers[i].value);
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
    sk_fields_u32(frame, "shards", options->shards);
    if (options->memory_bytes_max != 0) {
        sk_frame_key(frame, "memory_bytes_max");
        sk_put_u64(&frame->wire, options->memory_bytes_max);
    }
    return SKERRY_OK;
}

enum skerry_code skerry_create_collection(struct skerry *self,
                                          const struct skerry_collection_options *options,
                                          struct skerry_error *error)
{
    struct sk_frame frame;
    enum skerry_code code =
        sk_fields_check_reserved(options->reserved, SK_COUNT_OF(options->reserved), error);
    for (size_t i = 0; code == SKERRY_OK && i < options->vector_count; i++)
        code = sk_fields_check_reserved(options->vectors[i].reserved,
                                        SK_COUNT_OF(options->vectors[i].reserved), error);
    for (size_t i = 0; code == SKERRY_OK && i < options->vector_count; i++)
        code = sk_fields_check_reserved(&(uint64_t){options->vectors[i].reserved_u32}, 1, error);
    if (code == SKERRY_OK)
        code = sk_fields_check_collection(options->name, error);
    sk_frame_begin_for(&frame, "create_collection", options->name);
    if (code == SKERRY_OK)
        code = put_collection(&frame, options, error);
    return sk_call_for_nothing(self, &frame, code, options->deadline_ms, error);
}

static enum skerry_code for_collection(struct skerry *self, const char *op, const char *collection,
                                       uint32_t deadline_ms, struct skerry_reply **out,
                                       struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin_for(&frame, op, collection);
    return sk_call_for_reply(self, &frame, sk_fields_check_collection(collection, error),
                             deadline_ms, out, error);
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
    enum skerry_code code = sk_fields_check_collection(collection, error);
    sk_frame_begin_for(&frame, "alter_collection", collection);
    if (code == SKERRY_OK)
        code = put_json_fields(&frame, changes, error);
    return sk_call_for_reply(self, &frame, code, 0, out, error);
}

enum skerry_code skerry_wait_indexed(struct skerry *self, const char *collection,
                                     uint32_t deadline_ms, struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin_for(&frame, "wait", collection);
    sk_fields_text(&frame, "for", "indexed");
    return sk_call_for_nothing(self, &frame, sk_fields_check_collection(collection, error),
                               deadline_ms, error);
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
    sk_frame_begin_for(&frame, op, collection);
    sk_fields_text(&frame, "name", name);
    return sk_call_for_reply(self, &frame, sk_fields_check_collection(collection, error),
                             deadline_ms, out, error);
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
    sk_fields_text(&frame, "name", name);
    sk_fields_text(&frame, "public_key", public_key);
    sk_fields_text(&frame, "role", role);
    return sk_call_for_reply(self, &frame, SKERRY_OK, 0, out, error);
}

enum skerry_code skerry_revoke_key(struct skerry *self, const char *name,
                                   struct skerry_error *error)
{
    struct sk_frame frame;
    sk_frame_begin(&frame, "revoke_key");
    sk_fields_text(&frame, "name", name);
    return sk_call_for_nothing(self, &frame, SKERRY_OK, 0, error);
}
