/* The index of a vector field: its type and parameters, what goes with what. */
#include "proto/reply.h"
#include "proto/schema_internal.h"

#include <strings.h>

static const char *const index_names[] = {"", "flat", "hnsw", "ivf_flat", "ivf_pq", "hybrid"};
static const char *const profile_names[] = {"balanced", "speed", "memory"};

enum {
    OF_HNSW = 1 << SK_SCHEMA_HNSW,
    OF_PQ = 1 << SK_SCHEMA_IVF_PQ | 1 << SK_SCHEMA_HYBRID,
    OF_LISTS = 1 << SK_SCHEMA_IVF_FLAT | OF_PQ,
};

/* Parameters that are numbers; type and profile are read by themselves. */
static const struct parameter {
    const char *name;
    const char *alias, *alias2; /* those of other systems */
    uint32_t least, most;
    size_t offset;
    unsigned types; /* bits of enum sk_schema_index */
} parameters[] = {
    {"m", "M", "max_neighbors", SK_M_MIN, SK_M_MAX, offsetof(struct sk_vector_field, m), OF_HNSW},
    {"ef_construction", "ef_construct", "efConstruction", SK_EF_CONSTRUCTION_MIN,
     SK_EF_CONSTRUCTION_MAX, offsetof(struct sk_vector_field, ef_construction), OF_HNSW},
    {"nlist", "num_partitions", "centroids", 0, SK_NLIST_MAX,
     offsetof(struct sk_vector_field, nlist), OF_LISTS},
    {"pq_m", "num_sub_vectors", "subquantizers", 0, SK_PQ_M_MAX,
     offsetof(struct sk_vector_field, pq_m), OF_PQ},
    {"refine", "refine_k", "refine_factor", 0, SK_REFINE_MAX,
     offsetof(struct sk_vector_field, refine), OF_PQ},
};
enum {
    PARAMETERS = SK_COUNT_OF(parameters),
    SEEN_TYPE = 1 << PARAMETERS,
    SEEN_PROFILE = SEEN_TYPE << 1,
};

static uint32_t *value_of(struct sk_vector_field *field, const struct parameter *parameter)
{
    return (uint32_t *)((char *)field + parameter->offset);
}

const char *sk_schema_index_name(enum sk_schema_index index)
{
    return index < SK_COUNT_OF(index_names) ? index_names[index] : "";
}

const char *sk_schema_profile_name(enum sk_schema_profile profile)
{
    return profile < SK_COUNT_OF(profile_names) ? profile_names[profile] : "";
}

bool sk_schema_has_lists(enum sk_schema_index index)
{
    return (OF_LISTS >> index & 1) != 0;
}

void sk_schema_index_defaults(struct sk_vector_field *out, enum sk_schema_index index)
{
    out->index = index;
    out->m = SK_M_DEFAULT;
    out->ef_construction = SK_EF_CONSTRUCTION_DEFAULT;
    out->profile = SK_SCHEMA_BALANCED;
    out->nlist = out->pq_m = out->refine = 0;
}

/* ---- helpers of schema.c too ---- */

bool sk_schema_key_is(struct sk_span key, const char *a, const char *b, const char *c)
{
    return sk_span_is(key, a) || (b != NULL && sk_span_is(key, b)) ||
           (c != NULL && sk_span_is(key, c));
}

enum sk_err sk_schema_unknown_key(struct sk_span key, const char *where, const char *const *known,
                                  size_t count, struct sk_diag *d)
{
    const char *closest = sk_closest(key, known, count);
    int shown = (int)(key.size > 64 ? 64 : key.size);
    return sk_fail_field(d, SK_ERR_UNKNOWN_FIELD, where, "%s has no field '%.*s'%s%s%s", where,
                         shown, (const char *)key.bytes,
                         closest != NULL ? "; the closest name is '" : "",
                         closest != NULL ? closest : "", closest != NULL ? "'" : "");
}

enum sk_err sk_schema_read_bounded(struct sk_reader *from, const char *name, uint32_t least,
                                   uint32_t most, uint32_t *out, struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind != SK_VALUE_UNSIGNED)
        return sk_fail_field(d, SK_ERR_INVALID, name, "%s is %s, want %u to %u", name,
                             sk_value_kind_name(value.kind), least, most);
    if (value.u64 < least || value.u64 > most)
        return sk_fail_field(d, value.u64 > most ? SK_ERR_TOO_LARGE : SK_ERR_INVALID, name,
                             "%s is %llu, want %u to %u", name, (unsigned long long)value.u64,
                             least, most);
    *out = (uint32_t)value.u64;
    return SK_ERR_OK;
}

/* ---- reading ---- */

/* The number of the name, in any case (other systems write IVF_PQ); count when there is none. */
static size_t find_name(const struct sk_value *value, const char *const *names, size_t count)
{
    size_t at = 0;
    while (at < count && (value->kind != SK_VALUE_TEXT || value->span.size == 0 ||
                          value->span.size != strlen(names[at]) ||
                          strncasecmp((const char *)value->span.bytes, names[at],
                                      value->span.size) != 0))
        at++;
    return at;
}

static enum sk_err take_type(const struct sk_value *value, enum sk_schema_index *out,
                             struct sk_diag *d)
{
    size_t at = find_name(value, index_names, SK_COUNT_OF(index_names));
    if (at == SK_COUNT_OF(index_names))
        return sk_fail_field(d, SK_ERR_INVALID, "index",
                             "an index type is flat, hnsw, ivf_flat, ivf_pq or hybrid");
    *out = (enum sk_schema_index)at;
    return SK_ERR_OK;
}

static enum sk_err read_profile(struct sk_reader *from, enum sk_schema_profile *out,
                                struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    size_t at = find_name(&value, profile_names, SK_COUNT_OF(profile_names));
    if (at == SK_COUNT_OF(profile_names))
        return sk_fail_field(d, SK_ERR_INVALID, "profile",
                             "profile is speed, balanced or memory");
    *out = (enum sk_schema_profile)at;
    return SK_ERR_OK;
}

/* One member of the map; *bit says which. */
static enum sk_err read_member(struct sk_reader *from, struct sk_span key,
                               struct sk_vector_field *given, uint32_t *bit, struct sk_diag *d)
{
    static const char *const known[] = {"type",  "m",    "ef_construction", "profile",
                                        "nlist", "pq_m", "refine"};
    struct sk_value value;
    for (unsigned i = 0; i < PARAMETERS; i++) {
        const struct parameter *p = &parameters[i];
        if (!sk_schema_key_is(key, p->name, p->alias, p->alias2))
            continue;
        *bit = 1U << i;
        return sk_schema_read_bounded(from, p->name, p->least, p->most, value_of(given, p), d);
    }
    if (sk_schema_key_is(key, "type", "index_type", NULL)) {
        *bit = SEEN_TYPE;
        enum sk_err err = sk_read(from, &value, d);
        return err != SK_ERR_OK ? err : take_type(&value, &given->index, d);
    }
    if (sk_span_is(key, "profile")) {
        *bit = SEEN_PROFILE;
        return read_profile(from, &given->profile, d);
    }
    return sk_schema_unknown_key(key, "index", known, SK_COUNT_OF(known), d);
}

static void take_given(struct sk_vector_field *out, struct sk_vector_field *given, uint32_t seen)
{
    if ((seen & SEEN_TYPE) != 0 && given->index != out->index)
        sk_schema_index_defaults(out, given->index);
    for (unsigned i = 0; i < PARAMETERS; i++)
        if ((seen >> i & 1) != 0)
            *value_of(out, &parameters[i]) = *value_of(given, &parameters[i]);
    if ((seen & SEEN_PROFILE) != 0)
        out->profile = given->profile;
}

enum sk_err sk_schema_read_index(struct sk_reader *from, struct sk_vector_field *out, uint32_t *seen,
                                 struct sk_diag *d)
{
    struct sk_vector_field given = {.index = out->index};
    struct sk_value value;
    *seen = 0;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_TEXT) {
        err = take_type(&value, &given.index, d);
        *seen = SEEN_TYPE;
    } else if (value.kind != SK_VALUE_MAP) {
        return sk_fail_field(d, SK_ERR_INVALID, "index", "index is %s, want text or a map",
                             sk_value_kind_name(value.kind));
    }
    uint32_t count = value.kind == SK_VALUE_MAP ? value.count : 0;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        uint32_t bit = 0;
        err = sk_read_key(from, &key, d);
        if (err == SK_ERR_OK)
            err = read_member(from, key, &given, &bit, d);
        if (err == SK_ERR_OK && (*seen & bit) != 0)
            err = sk_fail_field(d, SK_ERR_INVALID, "index",
                                "'%.*s' is given twice (perhaps under another of its names)",
                                (int)key.size, (const char *)key.bytes);
        *seen |= bit;
    }
    if (err == SK_ERR_OK)
        take_given(out, &given, *seen);
    return err;
}

enum sk_err sk_schema_check_index(const struct sk_vector_field *field, uint32_t seen,
                                  struct sk_diag *d)
{
    const char *type = sk_schema_index_name(field->index);
    for (unsigned i = 0; i < PARAMETERS; i++) {
        const struct parameter *p = &parameters[i];
        char types[64] = "";
        if ((seen >> i & 1) == 0 || (p->types >> field->index & 1) != 0)
            continue;
        for (unsigned t = 1; t < SK_COUNT_OF(index_names); t++)
            if ((p->types >> t & 1) != 0)
                (void)snprintf(types + strlen(types), sizeof types - strlen(types), "%s%s",
                               types[0] != '\0' ? ", " : "", index_names[t]);
        return sk_fail_field(d, SK_ERR_INVALID, p->name, "%s is for %s; this index is %s%s",
                             p->name, types, type,
                             i == 0 && (OF_PQ >> field->index & 1) != 0 ? ", which takes pq_m" : "");
    }
    if ((seen & SEEN_PROFILE) != 0 && field->index != SK_SCHEMA_HNSW)
        return sk_fail_field(d, SK_ERR_INVALID, "profile", "profile is for hnsw; this index is %s",
                             type);
    if (field->pq_m % 2 != 0 || field->pq_m > field->dim)
        return sk_fail_field(d, SK_ERR_INVALID, "pq_m",
                             "pq_m is %u, want an even number up to the dimension, %u", field->pq_m,
                             field->dim);
    return SK_ERR_OK;
}

/* ---- altering ---- */

static bool is_same(struct sk_vector_field *a, struct sk_vector_field *b)
{
    bool is_same = a->index == b->index && a->profile == b->profile;
    for (unsigned i = 0; i < PARAMETERS; i++)
        is_same = is_same && *value_of(a, &parameters[i]) == *value_of(b, &parameters[i]);
    return is_same;
}

static enum sk_err alter_one(struct sk_vector_field *field, struct sk_reader *from, bool *is_changed,
                             struct sk_diag *d)
{
    struct sk_vector_field changed = *field;
    uint32_t seen;
    enum sk_err err = sk_schema_read_index(from, &changed, &seen, d);
    if (err == SK_ERR_OK)
        err = sk_schema_check_index(&changed, seen, d);
    if (err != SK_ERR_OK)
        return err;
    *is_changed = *is_changed || !is_same(&changed, field);
    *field = changed;
    return SK_ERR_OK;
}

/* A type or parameters; in a collection of several vector fields a map: vector name -> that. */
enum sk_err sk_schema_alter_index(struct sk_schema *schema, struct sk_span packed, bool *is_changed,
                                  struct sk_diag *d)
{
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value head;
    if (schema->vectors[0].name[0] == '\0')
        return alter_one(&schema->vectors[0], &from, is_changed, d);
    enum sk_err err = sk_read(&from, &head, d);
    if (err == SK_ERR_OK && head.kind != SK_VALUE_MAP)
        err = sk_fail_field(d, SK_ERR_INVALID, "index",
                            "index wants a map: vector name -> a type or parameters");
    for (uint32_t i = 0; err == SK_ERR_OK && i < head.count; i++) {
        struct sk_span key;
        uint32_t f = 0;
        err = sk_read_key(&from, &key, d);
        if (err == SK_ERR_OK)
            err = sk_schema_vector(schema, key, &f, d);
        if (err == SK_ERR_OK)
            err = alter_one(&schema->vectors[f], &from, is_changed, d);
    }
    return err;
}

/* ---- description ---- */

/* What is left to the index is not shown: it differs from shard to shard and from day to day. */
void sk_schema_describe_index(struct sk_buffer *to, const struct sk_vector_field *field)
{
    struct sk_vector_field copy = *field;
    bool has_profile = field->index == SK_SCHEMA_HNSW;
    unsigned shown = 0;
    for (unsigned i = 0; i < PARAMETERS; i++)
        if ((parameters[i].types >> field->index & 1) != 0 && *value_of(&copy, &parameters[i]) != 0)
            shown |= 1U << i;
    sk_put_map(to, 1 + (size_t)__builtin_popcount(shown) + has_profile);
    sk_put_text(to, "type");
    sk_put_text(to, sk_schema_index_name(field->index));
    for (unsigned i = 0; i < PARAMETERS; i++) {
        if ((shown >> i & 1) == 0)
            continue;
        sk_put_text(to, parameters[i].name);
        sk_put_u64(to, *value_of(&copy, &parameters[i]));
    }
    if (has_profile) {
        sk_put_text(to, "profile");
        sk_put_text(to, sk_schema_profile_name(field->profile));
    }
}

/* ---- searching ---- */

enum sk_err sk_schema_check_search(const struct sk_vector_field *field,
                                   const struct sk_request *request, struct sk_diag *d)
{
    bool has_lists = sk_schema_has_lists(field->index);
    if (sk_request_has(request, SK_FIELD_nprobe) && !has_lists)
        return sk_fail_field(d, SK_ERR_INVALID, "nprobe",
                             "nprobe is for ivf_flat, ivf_pq and hybrid; this index is %s%s",
                             sk_schema_index_name(field->index),
                             field->index == SK_SCHEMA_HNSW ? ": give ef or recall" : "");
    if (sk_request_has(request, SK_FIELD_ef) && has_lists)
        return sk_fail_field(d, SK_ERR_INVALID, "ef",
                             "ef is for hnsw; this index is %s: give nprobe or recall",
                             sk_schema_index_name(field->index));
    return SK_ERR_OK;
}
