/* The stored form of a schema: in the map, in shards and in snapshots. Arrays, so append only. A vector
 * field that needs none of what came with 0.2 is written as 0.1 wrote it, so that 0.1 can read it. */
#include "common/base/utf8.h"
#include "proto/schema.h"

enum { FIELD_MEMBERS_0_1 = 6, FIELD_MEMBERS = 10 };

static bool is_of_0_1(const struct sk_vector_field *field)
{
    return field->index <= SK_SCHEMA_HNSW && field->profile == SK_SCHEMA_BALANCED &&
           field->nlist == 0 && field->pq_m == 0 && field->refine == 0;
}

void sk_schema_encode(struct sk_buffer *to, const struct sk_schema *schema)
{
    sk_put_array(to, 8);
    sk_put_text(to, schema->name);
    sk_put_bin(to, schema->uuid, sizeof schema->uuid);
    sk_put_u64(to, schema->version);
    sk_put_u64(to, schema->shard_count);
    sk_put_u64(to, schema->memory_bytes_max);
    sk_put_u64(to, schema->field_id_next);
    sk_put_array(to, schema->vector_count);
    for (uint32_t i = 0; i < schema->vector_count; i++) {
        const struct sk_vector_field *field = &schema->vectors[i];
        sk_put_array(to, is_of_0_1(field) ? FIELD_MEMBERS_0_1 : FIELD_MEMBERS);
        sk_put_text(to, field->name);
        sk_put_u64(to, field->dim);
        sk_put_u64(to, field->metric);
        sk_put_u64(to, field->index);
        sk_put_u64(to, field->m);
        sk_put_u64(to, field->ef_construction);
        if (is_of_0_1(field))
            continue;
        sk_put_u64(to, field->profile);
        sk_put_u64(to, field->nlist);
        sk_put_u64(to, field->pq_m);
        sk_put_u64(to, field->refine);
    }
    sk_put_array(to, schema->field_count);
    for (uint32_t i = 0; i < schema->field_count; i++) {
        sk_put_array(to, 3);
        sk_put_text(to, schema->fields[i].name);
        sk_put_u64(to, schema->fields[i].kind);
        sk_put_u64(to, schema->fields[i].id);
    }
}

/* Sticky: after the first fault everything reads as 0, checked once at the end. */
struct decoder {
    struct sk_reader *from;
    bool is_bad;
};

static uint64_t take(struct decoder *self, uint64_t most)
{
    struct sk_value value;
    if (self->is_bad || sk_read(self->from, &value, NULL) != SK_ERR_OK ||
        value.kind != SK_VALUE_UNSIGNED || value.u64 > most) {
        self->is_bad = true;
        return 0;
    }
    return value.u64;
}

static uint32_t take_count(struct decoder *self, uint32_t most)
{
    struct sk_value value;
    if (self->is_bad || sk_read(self->from, &value, NULL) != SK_ERR_OK ||
        value.kind != SK_VALUE_ARRAY || value.count > most) {
        self->is_bad = true;
        return 0;
    }
    return value.count;
}

static void take_run(struct decoder *self, enum sk_value_kind kind, void *out, size_t least,
                     size_t most)
{
    struct sk_value value;
    if (self->is_bad || sk_read(self->from, &value, NULL) != SK_ERR_OK || value.kind != kind ||
        value.span.size < least || value.span.size > most ||
        (kind == SK_VALUE_TEXT && memchr(value.span.bytes, '\0', value.span.size) != NULL)) {
        self->is_bad = true;
        return;
    }
    memcpy(out, value.span.bytes, value.span.size);
}

static void take_vector_field(struct decoder *in, struct sk_vector_field *field)
{
    uint32_t members = take_count(in, FIELD_MEMBERS);
    in->is_bad = in->is_bad || (members != FIELD_MEMBERS_0_1 && members != FIELD_MEMBERS);
    take_run(in, SK_VALUE_TEXT, field->name, 0, SK_NAME_BYTES_MAX);
    field->dim = (uint32_t)take(in, SK_DIM_MAX);
    field->metric = (enum sk_schema_metric)take(in, SK_SCHEMA_COSINE);
    field->index = (enum sk_schema_index)take(in, SK_SCHEMA_HYBRID);
    field->m = (uint32_t)take(in, SK_M_MAX);
    field->ef_construction = (uint32_t)take(in, SK_EF_CONSTRUCTION_MAX);
    if (members == FIELD_MEMBERS) {
        field->profile = (enum sk_schema_profile)take(in, SK_SCHEMA_MEMORY);
        field->nlist = (uint32_t)take(in, SK_NLIST_MAX);
        field->pq_m = (uint32_t)take(in, SK_PQ_M_MAX);
        field->refine = (uint32_t)take(in, SK_REFINE_MAX);
    }
    if (field->dim == 0 || field->metric == 0 || field->index == 0 || field->m < SK_M_MIN ||
        field->ef_construction < SK_EF_CONSTRUCTION_MIN || field->pq_m % 2 != 0 ||
        field->pq_m > field->dim)
        in->is_bad = true;
}

/* Names are good and given once; "" only as the name of the one vector field. */
static bool names_are_good(const struct sk_schema *schema)
{
    bool is_good = sk_name_check(sk_span_text(schema->name), "name", NULL) == SK_ERR_OK;
    for (uint32_t i = 0; i < schema->vector_count && is_good; i++) {
        const char *name = schema->vectors[i].name;
        is_good = name[0] == '\0' ? schema->vector_count == 1
                                  : sk_name_check(sk_span_text(name), "", NULL) == SK_ERR_OK;
        for (uint32_t k = 0; k < i && is_good; k++)
            is_good = strcmp(name, schema->vectors[k].name) != 0;
    }
    for (uint32_t i = 0; i < schema->field_count && is_good; i++) {
        is_good = sk_utf8_valid(sk_span_text(schema->fields[i].name)) &&
                  schema->fields[i].id != 0 && schema->fields[i].id <= schema->field_id_next;
        for (uint32_t k = 0; k < i && is_good; k++)
            is_good = strcmp(schema->fields[i].name, schema->fields[k].name) != 0 &&
                      schema->fields[i].id != schema->fields[k].id;
    }
    return is_good;
}

enum sk_err sk_schema_decode(struct sk_schema *out, struct sk_reader *from, struct sk_diag *d)
{
    struct decoder in = {from, false};
    memset(out, 0, sizeof *out);
    in.is_bad = take_count(&in, 8) != 8;
    take_run(&in, SK_VALUE_TEXT, out->name, 1, SK_NAME_BYTES_MAX);
    take_run(&in, SK_VALUE_BIN, out->uuid, SK_UUID_BYTES, SK_UUID_BYTES);
    out->version = (uint32_t)take(&in, UINT32_MAX);
    out->shard_count = (uint32_t)take(&in, SK_SHARDS_MAX);
    out->memory_bytes_max = take(&in, UINT64_MAX);
    out->field_id_next = (uint16_t)take(&in, UINT16_MAX);
    out->vector_count = take_count(&in, SK_VECTOR_FIELDS_MAX);
    for (uint32_t i = 0; i < out->vector_count && !in.is_bad; i++)
        take_vector_field(&in, &out->vectors[i]);
    out->field_count = take_count(&in, SK_PAYLOAD_FIELDS_MAX);
    for (uint32_t i = 0; i < out->field_count && !in.is_bad; i++) {
        in.is_bad = take_count(&in, 3) != 3;
        take_run(&in, SK_VALUE_TEXT, out->fields[i].name, 1, SK_NAME_BYTES_MAX);
        out->fields[i].kind = (enum sk_payload_kind)take(&in, SK_PAYLOAD_GEO);
        out->fields[i].id = (uint16_t)take(&in, UINT16_MAX);
        in.is_bad = in.is_bad || out->fields[i].kind == 0;
    }
    if (in.is_bad || out->shard_count == 0 || out->vector_count == 0 || !names_are_good(out)) {
        memset(out, 0, sizeof *out);
        return sk_fail(d, SK_ERR_INVALID, "this is not the stored form of a schema");
    }
    return SK_ERR_OK;
}
