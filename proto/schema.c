#include "common/base/utf8.h"
#include "proto/payload.h"
#include "proto/reply.h"
#include "proto/schema_internal.h"

#include <strings.h>

static const char *const metric_names[] = {"", "l2", "ip", "cosine"};

const char *sk_schema_metric_name(enum sk_schema_metric metric)
{
    return metric < SK_COUNT_OF(metric_names) ? metric_names[metric] : "";
}

const char *sk_uuid_text(const uint8_t uuid[SK_UUID_BYTES], char text[SK_UUID_TEXT_BYTES])
{
    char *at = text;
    for (size_t i = 0; i < SK_UUID_BYTES; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        at += sprintf(at, "%02x", uuid[i]);
    }
    return text;
}

/* ---- one vector field ---- */

/* Names of other systems too, in any case: Cosine, Dot, Euclid. */
static bool is_metric(struct sk_span text, enum sk_schema_metric *out)
{
    static const struct {
        const char *name;
        enum sk_schema_metric metric;
    } names[] = {{"l2", SK_SCHEMA_L2},     {"ip", SK_SCHEMA_IP},  {"cosine", SK_SCHEMA_COSINE},
                 {"euclid", SK_SCHEMA_L2}, {"dot", SK_SCHEMA_IP}, {"euclidean", SK_SCHEMA_L2}};
    for (size_t i = 0; i < SK_COUNT_OF(names); i++) {
        if (text.size == strlen(names[i].name) &&
            strncasecmp((const char *)text.bytes, names[i].name, text.size) == 0) {
            *out = names[i].metric;
            return true;
        }
    }
    return false;
}

static enum sk_err read_vector_field(struct sk_reader *from, struct sk_vector_field *out,
                                     struct sk_diag *d)
{
    static const char *const known[] = {"dim", "metric", "index"};
    struct sk_value value;
    uint32_t seen = 0, index_seen = 0;
    out->metric = SK_SCHEMA_COSINE;
    sk_schema_index_defaults(out, SK_SCHEMA_HNSW);
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind != SK_VALUE_MAP)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors",
                             "a vector field is %s, want {dim, metric, index}",
                             sk_value_kind_name(value.kind));
    uint32_t count = value.count;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        uint32_t bit = 0;
        err = sk_read_key(from, &key, d);
        if (err != SK_ERR_OK)
            break;
        if (sk_schema_key_is(key, "dim", "size", "dimension")) {
            bit = 1;
            err = sk_schema_read_bounded(from, "dim", 1, SK_DIM_MAX, &out->dim, d);
        } else if (sk_schema_key_is(key, "metric", "distance", NULL)) {
            bit = 2;
            err = sk_read(from, &value, d);
            if (err == SK_ERR_OK &&
                (value.kind != SK_VALUE_TEXT || !is_metric(value.span, &out->metric)))
                err = sk_fail_field(d, SK_ERR_INVALID, "metric", "metric is l2, ip or cosine");
        } else if (sk_span_is(key, "index")) {
            bit = 4;
            err = sk_schema_read_index(from, out, &index_seen, d);
        } else {
            err = sk_schema_unknown_key(key, "vectors", known, SK_COUNT_OF(known), d);
        }
        if (err == SK_ERR_OK && (seen & bit) != 0)
            err =
                sk_fail_field(d, SK_ERR_INVALID, "vectors", "dim, metric or index is given twice");
        seen |= bit;
    }
    if (err == SK_ERR_OK && out->dim == 0)
        err = sk_fail_field(d, SK_ERR_INVALID, "dim", "a vector field wants a dim of 1 to %d",
                            SK_DIM_MAX);
    if (err == SK_ERR_OK)
        err = sk_schema_check_index(out, index_seen, d);
    return err;
}

/* ---- create ---- */

static bool is_reserved(struct sk_span name)
{
    return sk_schema_key_is(name, "dim", "size", "metric") ||
           sk_schema_key_is(name, "dimension", "distance", "index");
}

static enum sk_err read_vectors(struct sk_schema *out, struct sk_span packed, struct sk_diag *d)
{
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value head;
    enum sk_err err = sk_read(&from, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_MAP || head.count == 0)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors",
                             "vectors wants {dim, metric, index} or a map: name -> that");
    struct sk_reader peek = from;
    struct sk_span key;
    bool is_single =
        false; /* a map beside a reserved name is a vector field, a number or text a parameter */
    for (uint32_t i = 0; i < head.count && err == SK_ERR_OK; i++) {
        struct sk_value value;
        err = sk_read_key(&peek, &key, d);
        struct sk_reader at = peek;
        if (err == SK_ERR_OK)
            err = sk_read(&at, &value, d);
        if (err == SK_ERR_OK)
            err = sk_skip(&peek, SK_PACK_DEPTH_MAX, d);
        if (err == SK_ERR_OK && is_reserved(key) && value.kind != SK_VALUE_MAP)
            is_single = true;
    }
    if (err != SK_ERR_OK)
        return err;
    if (is_single) {
        out->vector_count = 1;
        from = sk_reader_of(packed);
        return read_vector_field(&from, &out->vectors[0], d);
    }
    if (head.count > SK_VECTOR_FIELDS_MAX)
        return sk_fail_field(d, SK_ERR_TOO_LARGE, "vectors", "%u vector fields, want at most %d",
                             head.count, SK_VECTOR_FIELDS_MAX);
    for (uint32_t i = 0; i < head.count && err == SK_ERR_OK; i++) {
        struct sk_vector_field *field = &out->vectors[out->vector_count];
        err = sk_read_key(&from, &key, d);
        if (err == SK_ERR_OK && is_reserved(key))
            err = sk_fail_field(d, SK_ERR_INVALID, "vectors",
                                "a vector field may not be named '%.*s'", (int)key.size,
                                (const char *)key.bytes);
        if (err == SK_ERR_OK)
            err = sk_name_check(key, "vectors", d);
        if (err != SK_ERR_OK)
            break;
        memcpy(field->name, key.bytes, key.size);
        for (uint32_t k = 0; k < out->vector_count; k++)
            if (strcmp(out->vectors[k].name, field->name) == 0)
                return sk_fail_field(d, SK_ERR_INVALID, "vectors",
                                     "vector field '%s' is given twice", field->name);
        out->vector_count++;
        err = read_vector_field(&from, field, d);
        if (err != SK_ERR_OK) {
            char where[SK_DIAG_FIELD_BYTES];
            (void)snprintf(where, sizeof where, "vectors.%s", field->name);
            err = sk_wrap(d, err, "%s", where);
        }
    }
    return err;
}

static enum sk_err check_path(struct sk_span name, struct sk_diag *d)
{
    if (name.size == 0 || name.size > SK_NAME_BYTES_MAX || !sk_utf8_valid(name))
        return sk_fail_field(d, SK_ERR_INVALID, "payload",
                             "a payload field's name has %zu bytes, want 1 to %d of UTF-8",
                             name.size, SK_NAME_BYTES_MAX);
    return SK_ERR_OK;
}

static uint32_t find_payload_field(const struct sk_schema *schema, struct sk_span name)
{
    uint32_t at = 0;
    while (at < schema->field_count && !sk_span_is(name, schema->fields[at].name))
        at++;
    return at;
}

/* Adds fields; a nil drops one where that is allowed. */
static enum sk_err read_payload_fields(struct sk_schema *schema, struct sk_span packed,
                                       bool may_drop, bool *is_changed, struct sk_diag *d)
{
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value head;
    enum sk_err err = sk_read(&from, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_MAP)
        return sk_fail_field(d, SK_ERR_INVALID, "payload",
                             "payload is %s, want a map {field: kind}",
                             sk_value_kind_name(head.kind));
    for (uint32_t i = 0; i < head.count; i++) {
        struct sk_span key;
        struct sk_value value;
        enum sk_payload_kind kind = SK_PAYLOAD_KEYWORD;
        err = sk_read_key(&from, &key, d);
        if (err == SK_ERR_OK)
            err = sk_read(&from, &value, d);
        if (err == SK_ERR_OK)
            err = check_path(key, d);
        if (err != SK_ERR_OK)
            return err;
        uint32_t at = find_payload_field(schema, key);
        if (value.kind == SK_VALUE_NIL && may_drop) {
            if (at == schema->field_count)
                return sk_fail_field(d, SK_ERR_NOT_FOUND, "payload",
                                     "no payload field '%.*s' to drop", (int)key.size,
                                     (const char *)key.bytes);
            schema->fields[at] = schema->fields[--schema->field_count];
            *is_changed = true;
            continue;
        }
        if (value.kind != SK_VALUE_TEXT)
            return sk_fail_field(
                d, SK_ERR_INVALID, "payload", "payload field '%.*s' is %s, want the name of a kind",
                (int)key.size, (const char *)key.bytes, sk_value_kind_name(value.kind));
        err = sk_payload_kind_parse(value.span, &kind, d);
        if (err != SK_ERR_OK)
            return err;
        if (at < schema->field_count) {
            if (schema->fields[at].kind == kind && may_drop)
                continue; /* there already: a repeated request has the effect of one */
            return sk_fail_field(
                d, SK_ERR_EXISTS, "payload", "payload field '%s' is there as %s; drop it first",
                schema->fields[at].name, sk_payload_kind_name(schema->fields[at].kind));
        }
        if (schema->field_count == SK_PAYLOAD_FIELDS_MAX || schema->field_id_next == UINT16_MAX)
            return sk_fail_field(d, SK_ERR_TOO_LARGE, "payload", "more than %d payload fields",
                                 SK_PAYLOAD_FIELDS_MAX);
        struct sk_payload_field *field = &schema->fields[schema->field_count++];
        memset(field, 0, sizeof *field);
        memcpy(field->name, key.bytes, key.size);
        field->kind = kind;
        field->id = ++schema->field_id_next;
        *is_changed = true;
    }
    return SK_ERR_OK;
}

enum sk_err sk_schema_from_request(struct sk_schema *out, const struct sk_request *request,
                                   struct sk_diag *d)
{
    bool is_changed = false;
    memset(out, 0, sizeof *out);
    memcpy(out->name, request->collection.bytes, request->collection.size);
    out->shard_count = sk_request_has(request, SK_FIELD_shards) ? request->shards : 1;
    out->memory_bytes_max = request->memory_bytes_max;
    enum sk_err err = read_vectors(out, request->vector_schema, d);
    if (err == SK_ERR_OK && sk_request_has(request, SK_FIELD_payload_schema))
        err = read_payload_fields(out, request->payload_schema, false, &is_changed, d);
    if (err != SK_ERR_OK)
        memset(out, 0, sizeof *out);
    return err;
}

enum sk_err sk_schema_alter(struct sk_schema *schema, const struct sk_request *request,
                            struct sk_diag *d)
{
    struct sk_schema changed = *schema;
    bool is_changed = false;
    enum sk_err err = SK_ERR_OK;
    if (sk_request_has(request, SK_FIELD_payload_schema))
        err = read_payload_fields(&changed, request->payload_schema, true, &is_changed, d);
    if (err == SK_ERR_OK && sk_request_has(request, SK_FIELD_index_schema))
        err = sk_schema_alter_index(&changed, request->index_schema, &is_changed, d);
    if (err != SK_ERR_OK)
        return err;
    if (sk_request_has(request, SK_FIELD_memory_bytes_max) &&
        changed.memory_bytes_max != request->memory_bytes_max) {
        changed.memory_bytes_max = request->memory_bytes_max;
        is_changed = true;
    }
    if (is_changed)
        changed.version++;
    *schema = changed;
    return SK_ERR_OK;
}

/* ---- description ---- */

static void describe_vector(struct sk_buffer *to, const struct sk_vector_field *field)
{
    sk_put_map(to, 3);
    sk_put_text(to, "dim");
    sk_put_u64(to, field->dim);
    sk_put_text(to, "metric");
    sk_put_text(to, sk_schema_metric_name(field->metric));
    sk_put_text(to, "index");
    sk_schema_describe_index(to, field);
}

void sk_schema_describe(struct sk_buffer *to, const struct sk_schema *schema)
{
    sk_put_text(to, "vectors");
    if (schema->vector_count == 1 && schema->vectors[0].name[0] == '\0') {
        describe_vector(to, &schema->vectors[0]);
    } else {
        sk_put_map(to, schema->vector_count);
        for (uint32_t i = 0; i < schema->vector_count; i++) {
            sk_put_text(to, schema->vectors[i].name);
            describe_vector(to, &schema->vectors[i]);
        }
    }
    sk_put_text(to, "payload");
    sk_put_map(to, schema->field_count);
    for (uint32_t i = 0; i < schema->field_count; i++) {
        sk_put_text(to, schema->fields[i].name);
        sk_put_text(to, sk_payload_kind_name(schema->fields[i].kind));
    }
}

enum sk_err sk_schema_vector(const struct sk_schema *schema, struct sk_span name, uint32_t *out,
                             struct sk_diag *d)
{
    char names[200] = "";
    size_t used = 0;
    *out = 0;
    if (name.bytes == NULL || name.size == 0) {
        if (schema->vector_count == 1)
            return SK_ERR_OK;
    } else {
        for (uint32_t i = 0; i < schema->vector_count; i++) {
            if (sk_span_is(name, schema->vectors[i].name)) {
                *out = i;
                return SK_ERR_OK;
            }
        }
    }
    for (uint32_t i = 0; i < schema->vector_count && used < sizeof names - 1; i++) {
        int more = snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "",
                            schema->vectors[i].name);
        used += more > 0 ? (size_t)more : 0;
    }
    if (name.bytes == NULL || name.size == 0)
        return sk_fail_field(d, SK_ERR_INVALID, "using", "say which vector field: %s", names);
    if (schema->vector_count == 1 && schema->vectors[0].name[0] == '\0')
        return sk_fail_field(d, SK_ERR_NOT_FOUND, "using",
                             "no vector field '%.*s': this collection has one without a name",
                             (int)name.size, (const char *)name.bytes);
    return sk_fail_field(d, SK_ERR_NOT_FOUND, "using", "no vector field '%.*s', there is %s",
                         (int)name.size, (const char *)name.bytes, names);
}
