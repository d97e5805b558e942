#include "proto/filter.h"
#include "common/base/utf8.h"
#include "proto/codec.h"

#include <math.h>

struct parser {
    struct sk_arena *arena;
    uint32_t node_count;
    char path[SK_DIAG_FIELD_BYTES]; /* where we are, for error texts */
};

static enum sk_err parse_group(struct parser *self, struct sk_reader *from, unsigned depth,
                               struct sk_filter *out, struct sk_diag *d);

static enum sk_err bad(struct parser *self, enum sk_err code, struct sk_diag *d, const char *text)
{
    char field[SK_DIAG_FIELD_BYTES];
    (void)snprintf(field, sizeof field, "filter%.*s", (int)sizeof field - 8, self->path);
    return sk_fail_field(d, code, field, "%s: %s", field, text);
}

static void *allocate(struct parser *self, size_t count, size_t size)
{
    return sk_arena_zalloc(self->arena, count == 0 ? 1 : count, size);
}

static enum sk_err new_node(struct parser *self, struct sk_filter **out, struct sk_diag *d)
{
    if (++self->node_count > SK_FILTER_NODES_MAX)
        return bad(self, SK_ERR_TOO_LARGE, d, "more than 1,024 conditions");
    *out = allocate(self, 1, sizeof **out);
    if (*out == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter");
    return SK_ERR_OK;
}

/* A name that is not there: says which, the closest and all there are. */
static enum sk_err unknown(struct parser *self, struct sk_span key, const char *const *known,
                           size_t count, struct sk_diag *d)
{
    char text[SK_DIAG_TEXT_BYTES];
    const char *closest = sk_closest(key, known, count);
    bool is_shown = sk_utf8_valid(key);
    int used =
        snprintf(text, sizeof text, "no name '%.*s' here%s%s%s; there are",
                 (int)(key.size > 40 ? 40 : key.size), is_shown ? (const char *)key.bytes : "?",
                 closest != NULL ? "; the closest name is '" : "", closest != NULL ? closest : "",
                 closest != NULL ? "'" : "");
    for (size_t i = 0; i < count && (size_t)used < sizeof text; i++)
        used +=
            snprintf(text + used, sizeof text - (size_t)used, "%s %s", i == 0 ? "" : ",", known[i]);
    return bad(self, SK_ERR_UNKNOWN_FIELD, d, text);
}

/* Appends ".name" or "[n]"; returns the length to cut back to. */
static size_t enter(struct parser *self, const char *name, int index)
{
    size_t at = strlen(self->path);
    if (name != NULL)
        (void)snprintf(self->path + at, sizeof self->path - at, ".%.40s", name);
    else
        (void)snprintf(self->path + at, sizeof self->path - at, "[%d]", index);
    return at;
}

static enum sk_err read_operand(struct parser *self, struct sk_reader *from, struct sk_operand *out,
                                struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_TEXT) {
        if (!sk_utf8_valid(value.span) && value.span.size > 0)
            return bad(self, SK_ERR_INVALID, d, "text is not valid UTF-8");
        out->kind = SK_OPERAND_TEXT;
        out->text = value.span;
    } else if (sk_value_i64(&value, &out->i64)) {
        out->kind = SK_OPERAND_I64;
    } else if (value.kind == SK_VALUE_FLOAT && isfinite(value.f64)) {
        out->kind = SK_OPERAND_F64;
        out->f64 = value.f64;
    } else if (value.kind == SK_VALUE_BOOL) {
        out->kind = SK_OPERAND_BOOL;
        out->boolean = value.boolean;
    } else {
        return bad(self, SK_ERR_INVALID, d, "want text, an integer, a finite number or a bool");
    }
    return SK_ERR_OK;
}

static enum sk_err read_map_head(struct parser *self, struct sk_reader *from, uint32_t *count,
                                 const char *text, struct sk_diag *d)
{
    struct sk_value head;
    enum sk_err err = sk_read(from, &head, d);
    if (err == SK_ERR_OK && head.kind != SK_VALUE_MAP)
        err = bad(self, SK_ERR_INVALID, d, text);
    *count = err == SK_ERR_OK ? head.count : 0;
    return err;
}

static enum sk_err read_degrees(struct parser *self, struct sk_reader *from, double *lat,
                                double *lon, struct sk_diag *d)
{
    struct sk_span packed;
    struct sk_typed typed;
    enum sk_err err = sk_read_raw(from, SK_PACK_DEPTH_MAX, &packed, d);
    if (err != SK_ERR_OK)
        return err;
    if (!sk_typed_from(SK_PAYLOAD_GEO, packed, &typed))
        return bad(self, SK_ERR_INVALID, d, "want {lat: -90..90, lon: -180..180} in degrees");
    *lat = typed.lat;
    *lon = typed.lon;
    return SK_ERR_OK;
}

static enum sk_err parse_any(struct parser *self, struct sk_reader *from, bool is_one,
                             struct sk_filter *out, struct sk_diag *d)
{
    out->kind = SK_FILTER_ANY;
    out->u.any.count = 1;
    if (!is_one) {
        struct sk_value head;
        enum sk_err err = sk_read(from, &head, d);
        if (err != SK_ERR_OK)
            return err;
        if (head.kind != SK_VALUE_ARRAY)
            return bad(self, SK_ERR_INVALID, d, "any wants an array of values");
        if (head.count > SK_ROWS_MAX)
            return bad(self, SK_ERR_TOO_LARGE, d, "any has more than 10,000 values");
        out->u.any.count = head.count;
    }
    out->u.any.values = allocate(self, out->u.any.count, sizeof *out->u.any.values);
    if (out->u.any.values == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter");
    for (uint32_t i = 0; i < out->u.any.count; i++) {
        enum sk_err err = read_operand(self, from, &out->u.any.values[i], d);
        if (err != SK_ERR_OK)
            return err;
    }
    return SK_ERR_OK;
}

static enum sk_err parse_range(struct parser *self, struct sk_reader *from, struct sk_filter *out,
                               struct sk_diag *d)
{
    static const char *const bounds[] = {"gt", "gte", "lt", "lte"};
    uint32_t count;
    out->kind = SK_FILTER_RANGE;
    enum sk_err err = read_map_head(self, from, &count, "range wants {gt, gte, lt, lte}", d);
    if (err == SK_ERR_OK && count == 0)
        err = bad(self, SK_ERR_INVALID, d, "range wants at least one of gt, gte, lt, lte");
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        err = sk_read_key(from, &key, d);
        if (err != SK_ERR_OK)
            break;
        bool is_low = sk_span_is(key, "gt") || sk_span_is(key, "gte");
        if (!is_low && !sk_span_is(key, "lt") && !sk_span_is(key, "lte"))
            return unknown(self, key, bounds, SK_COUNT_OF(bounds), d);
        enum sk_bound *bound = is_low ? &out->u.range.low : &out->u.range.high;
        if (*bound != SK_BOUND_NONE)
            return bad(self, SK_ERR_INVALID, d, "one end of the range is given twice");
        *bound = key.size == 3 ? SK_BOUND_CLOSED : SK_BOUND_OPEN;
        struct sk_operand *value = is_low ? &out->u.range.low_value : &out->u.range.high_value;
        err = read_operand(self, from, value, d);
        int64_t us;
        if (err == SK_ERR_OK &&
            (value->kind == SK_OPERAND_BOOL ||
             (value->kind == SK_OPERAND_TEXT && !sk_datetime_parse(value->text, &us))))
            return bad(self, SK_ERR_INVALID, d, "a range wants numbers or RFC 3339 datetimes");
    }
    return err;
}

static enum sk_err parse_radius(struct parser *self, struct sk_reader *from, struct sk_filter *out,
                                struct sk_diag *d)
{
    static const char *const radius_keys[] = {"center", "radius_m"};
    uint32_t count;
    bool has_center = false, has_radius = false;
    out->kind = SK_FILTER_GEO_RADIUS;
    enum sk_err err = read_map_head(self, from, &count, "geo_radius wants {center, radius_m}", d);
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        struct sk_value value;
        err = sk_read_key(from, &key, d);
        if (err != SK_ERR_OK)
            break;
        if (sk_span_is(key, "center")) {
            has_center = true;
            err = read_degrees(self, from, &out->u.radius.lat, &out->u.radius.lon, d);
        } else if (sk_span_is(key, "radius_m") || sk_span_is(key, "radius")) {
            has_radius = true;
            err = sk_read(from, &value, d);
            if (err == SK_ERR_OK &&
                (!sk_value_number(&value, &out->u.radius.radius_m) ||
                 !(out->u.radius.radius_m >= 0) || !isfinite(out->u.radius.radius_m)))
                err = bad(self, SK_ERR_INVALID, d, "radius_m wants metres, 0 or more");
        } else {
            err = unknown(self, key, radius_keys, SK_COUNT_OF(radius_keys), d);
        }
    }
    if (err == SK_ERR_OK && (!has_center || !has_radius))
        err = bad(self, SK_ERR_INVALID, d, "geo_radius wants center and radius_m");
    return err;
}

static enum sk_err parse_box(struct parser *self, struct sk_reader *from, struct sk_filter *out,
                             struct sk_diag *d)
{
    static const char *const box_keys[] = {"min", "max"};
    uint32_t count;
    unsigned seen = 0;
    out->kind = SK_FILTER_GEO_BOX;
    enum sk_err err = read_map_head(self, from, &count, "geo_box wants {min, max}", d);
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        err = sk_read_key(from, &key, d);
        if (err != SK_ERR_OK)
            break;
        if (sk_span_is(key, "min")) {
            seen |= 1;
            err = read_degrees(self, from, &out->u.box.lat_min, &out->u.box.lon_min, d);
        } else if (sk_span_is(key, "max")) {
            seen |= 2;
            err = read_degrees(self, from, &out->u.box.lat_max, &out->u.box.lon_max, d);
        } else {
            err = unknown(self, key, box_keys, SK_COUNT_OF(box_keys), d);
        }
    }
    if (err == SK_ERR_OK && seen != 3)
        err = bad(self, SK_ERR_INVALID, d, "geo_box wants min and max, each {lat, lon}");
    if (err == SK_ERR_OK && out->u.box.lat_min > out->u.box.lat_max)
        err = bad(self, SK_ERR_INVALID, d, "geo_box min.lat is above max.lat");
    return err;
}

static enum sk_err parse_ids(struct parser *self, struct sk_reader *from, struct sk_filter *out,
                             struct sk_diag *d)
{
    struct sk_value head;
    out->kind = SK_FILTER_IDS;
    enum sk_err err = sk_read(from, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_ARRAY || head.count > SK_ROWS_MAX)
        return bad(self, SK_ERR_INVALID, d, "ids wants an array of at most 10,000 ids");
    out->u.ids.count = head.count;
    out->u.ids.ids = allocate(self, head.count, sizeof *out->u.ids.ids);
    if (out->u.ids.ids == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter");
    for (uint32_t i = 0; i < head.count && err == SK_ERR_OK; i++)
        err = sk_read_id(from, &out->u.ids.ids[i], d);
    return err;
}

static bool is_text_in(struct sk_span key, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (sk_span_is(key, names[i]))
            return true;
    return false;
}

static const char *const group_keys[] = {"must", "should", "must_not"};

static enum sk_err parse_key(struct parser *self, struct sk_reader *from, struct sk_filter *out,
                             struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind != SK_VALUE_TEXT || value.span.size == 0 ||
        value.span.size > SK_FILTER_KEY_BYTES_MAX || !sk_utf8_valid(value.span))
        return bad(self, SK_ERR_INVALID, d, "key wants a payload path of 1 to 256 bytes");
    if (out->key != NULL)
        return bad(self, SK_ERR_INVALID, d, "key is given twice");
    out->key = allocate(self, value.span.size + 1, 1);
    if (out->key == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter");
    memcpy(out->key, value.span.bytes, value.span.size);
    return SK_ERR_OK;
}

/* One member of a condition other than its key. */
static enum sk_err parse_test(struct parser *self, struct sk_reader *from, struct sk_span name,
                              struct sk_filter *out, struct sk_diag *d)
{
    static const char *const known[] = {"key",        "match",   "any",     "range",
                                        "geo_radius", "geo_box", "exists",  "ids",
                                        "must",       "should",  "must_not"};
    if (sk_span_is(name, "match"))
        return parse_any(self, from, true, out, d);
    if (sk_span_is(name, "any"))
        return parse_any(self, from, false, out, d);
    if (sk_span_is(name, "range"))
        return parse_range(self, from, out, d);
    if (sk_span_is(name, "geo_radius"))
        return parse_radius(self, from, out, d);
    if (sk_span_is(name, "geo_box"))
        return parse_box(self, from, out, d);
    if (sk_span_is(name, "ids"))
        return parse_ids(self, from, out, d);
    if (sk_span_is(name, "exists")) {
        struct sk_value value;
        out->kind = SK_FILTER_EXISTS;
        enum sk_err err = sk_read(from, &value, d);
        if (err == SK_ERR_OK && value.kind != SK_VALUE_BOOL)
            err = bad(self, SK_ERR_INVALID, d, "exists wants a bool");
        out->u.exists = value.boolean;
        return err;
    }
    return unknown(self, name, known, SK_COUNT_OF(known), d);
}

static enum sk_err parse_condition(struct parser *self, struct sk_reader *from, unsigned depth,
                                   struct sk_filter **out, struct sk_diag *d)
{
    struct sk_reader peek = *from;
    uint32_t count;
    unsigned tests = 0;
    enum sk_err err = new_node(self, out, d);
    if (err == SK_ERR_OK)
        err = read_map_head(self, &peek, &count, "a condition is a map", d);
    if (err != SK_ERR_OK)
        return err;
    struct sk_reader first = peek;
    struct sk_span key;
    if (count > 0 && sk_read_key(&first, &key, NULL) == SK_ERR_OK &&
        is_text_in(key, group_keys, SK_COUNT_OF(group_keys)))
        return parse_group(self, from, depth, *out, d);
    *from = peek;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        err = sk_read_key(from, &key, d);
        if (err != SK_ERR_OK)
            break;
        if (sk_span_is(key, "key")) {
            err = parse_key(self, from, *out, d);
        } else {
            char name[16];
            (void)snprintf(name, sizeof name, "%.*s", (int)(key.size > 15 ? 15 : key.size),
                           sk_utf8_valid(key) ? (const char *)key.bytes : "?");
            size_t cut = enter(self, name, 0);
            err = parse_test(self, from, key, *out, d);
            self->path[cut] = '\0';
            tests++;
        }
    }
    if (err != SK_ERR_OK)
        return err;
    bool wants_key = (*out)->kind != SK_FILTER_IDS;
    if (tests != 1 || wants_key != ((*out)->key != NULL))
        return bad(self, SK_ERR_INVALID, d,
                   "a condition wants a key and exactly one of match, any, range, geo_radius, "
                   "geo_box, exists; or ids alone");
    return SK_ERR_OK;
}

static enum sk_err parse_list(struct parser *self, struct sk_reader *from, unsigned depth,
                              struct sk_filter ***list, uint32_t *list_count, struct sk_diag *d)
{
    struct sk_reader peek = *from;
    struct sk_value head;
    if (*list != NULL)
        return bad(self, SK_ERR_INVALID, d, "given twice");
    enum sk_err err = sk_read(&peek, &head, d);
    if (err != SK_ERR_OK)
        return err;
    uint32_t count = 1; /* one condition may stand without its array */
    if (head.kind == SK_VALUE_ARRAY) {
        count = head.count;
        *from = peek;
    } else if (head.kind != SK_VALUE_MAP) {
        return bad(self, SK_ERR_INVALID, d, "want an array of conditions");
    }
    if (count > SK_FILTER_NODES_MAX)
        return bad(self, SK_ERR_TOO_LARGE, d, "more than 1,024 conditions");
    *list = allocate(self, count, sizeof **list);
    if (*list == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a filter");
    *list_count = count;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        size_t cut = enter(self, NULL, (int)i);
        err = parse_condition(self, from, depth, &(*list)[i], d);
        if (err == SK_ERR_OK)
            self->path[cut] = '\0';
    }
    return err;
}

static enum sk_err parse_group(struct parser *self, struct sk_reader *from, unsigned depth,
                               struct sk_filter *out, struct sk_diag *d)
{
    uint32_t count;
    out->kind = SK_FILTER_GROUP;
    if (depth == 0)
        return bad(self, SK_ERR_TOO_LARGE, d, "filters are nested more than 8 deep");
    enum sk_err err =
        read_map_head(self, from, &count, "a filter is a map {must, should, must_not}", d);
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        err = sk_read_key(from, &key, d);
        if (err != SK_ERR_OK)
            break;
        struct sk_filter ***list;
        uint32_t *list_count;
        const char *name;
        if (sk_span_is(key, "must")) {
            name = "must", list = &out->u.group.must, list_count = &out->u.group.must_count;
        } else if (sk_span_is(key, "should")) {
            name = "should", list = &out->u.group.should, list_count = &out->u.group.should_count;
        } else if (sk_span_is(key, "must_not")) {
            name = "must_not", list = &out->u.group.must_not;
            list_count = &out->u.group.must_not_count;
        } else {
            return unknown(self, key, group_keys, SK_COUNT_OF(group_keys), d);
        }
        size_t cut = enter(self, name, 0);
        err = parse_list(self, from, depth - 1, list, list_count, d);
        if (err == SK_ERR_OK)
            self->path[cut] = '\0';
    }
    return err;
}

enum sk_err sk_filter_parse(struct sk_filter **out, struct sk_arena *arena, struct sk_span packed,
                            struct sk_diag *d)
{
    struct parser self = {.arena = arena};
    struct sk_reader from = sk_reader_of(packed);
    *out = NULL;
    struct sk_filter *root = NULL;
    enum sk_err err = new_node(&self, &root, d);
    if (err == SK_ERR_OK)
        err = parse_group(&self, &from, SK_FILTER_DEPTH_MAX, root, d);
    if (err == SK_ERR_OK)
        err = sk_read_end(&from, d);
    if (err == SK_ERR_OK)
        *out = root;
    else if (d != NULL && d->field[0] == '\0')
        (void)snprintf(d->field, sizeof d->field, "filter");
    return err;
}

/* ---- against a schema ---- */

const struct sk_payload_field *sk_schema_field(const struct sk_schema *schema, const char *name)
{
    for (uint32_t i = 0; schema != NULL && i < schema->field_count; i++)
        if (strcmp(schema->fields[i].name, name) == 0)
            return &schema->fields[i];
    return NULL;
}

static bool operand_fits(const struct sk_operand *value, enum sk_payload_kind kind)
{
    int64_t us;
    switch (kind) {
    case SK_PAYLOAD_KEYWORD:
        return value->kind == SK_OPERAND_TEXT;
    case SK_PAYLOAD_INTEGER:
    case SK_PAYLOAD_FLOAT:
        return value->kind == SK_OPERAND_I64 || value->kind == SK_OPERAND_F64;
    case SK_PAYLOAD_BOOL:
        return value->kind == SK_OPERAND_BOOL;
    case SK_PAYLOAD_DATETIME:
        return value->kind == SK_OPERAND_I64 ||
               (value->kind == SK_OPERAND_TEXT && sk_datetime_parse(value->text, &us));
    case SK_PAYLOAD_GEO:
        return false;
    }
    return false;
}

static bool condition_fits(const struct sk_filter *filter, enum sk_payload_kind kind)
{
    switch (filter->kind) {
    case SK_FILTER_ANY:
        for (uint32_t i = 0; i < filter->u.any.count; i++)
            if (!operand_fits(&filter->u.any.values[i], kind))
                return false;
        return true;
    case SK_FILTER_RANGE:
        return kind != SK_PAYLOAD_KEYWORD && kind != SK_PAYLOAD_BOOL &&
               (filter->u.range.low == SK_BOUND_NONE ||
                operand_fits(&filter->u.range.low_value, kind)) &&
               (filter->u.range.high == SK_BOUND_NONE ||
                operand_fits(&filter->u.range.high_value, kind));
    case SK_FILTER_GEO_RADIUS:
    case SK_FILTER_GEO_BOX:
        return kind == SK_PAYLOAD_GEO;
    default:
        return true;
    }
}

static enum sk_err check_all(const struct sk_schema *schema, struct sk_filter *const *list,
                             uint32_t count, struct sk_diag *d)
{
    enum sk_err err = SK_ERR_OK;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++)
        err = sk_filter_check(schema, list[i], d);
    return err;
}

enum sk_err sk_filter_check(const struct sk_schema *schema, const struct sk_filter *filter,
                            struct sk_diag *d)
{
    if (filter->kind == SK_FILTER_GROUP) {
        enum sk_err err = check_all(schema, filter->u.group.must, filter->u.group.must_count, d);
        if (err == SK_ERR_OK)
            err = check_all(schema, filter->u.group.should, filter->u.group.should_count, d);
        if (err == SK_ERR_OK)
            err = check_all(schema, filter->u.group.must_not, filter->u.group.must_not_count, d);
        return err;
    }
    if (filter->kind == SK_FILTER_IDS)
        return SK_ERR_OK;
    const struct sk_payload_field *field = sk_schema_field(schema, filter->key);
    if (field != NULL && !condition_fits(filter, field->kind))
        return sk_fail_field(
            d, SK_ERR_INVALID, "filter",
            "filter: payload field '%s' is declared %s; this condition compares it "
            "with another type",
            field->name, sk_payload_kind_name(field->kind));
    return SK_ERR_OK;
}

static const char *undeclared_in(struct sk_filter *const *list, uint32_t count,
                                 const struct sk_schema *schema)
{
    const char *key = NULL;
    for (uint32_t i = 0; i < count && key == NULL; i++)
        key = sk_filter_undeclared(list[i], schema);
    return key;
}

const char *sk_filter_undeclared(const struct sk_filter *filter, const struct sk_schema *schema)
{
    if (filter->kind == SK_FILTER_GROUP) {
        const char *key = undeclared_in(filter->u.group.must, filter->u.group.must_count, schema);
        if (key == NULL)
            key = undeclared_in(filter->u.group.should, filter->u.group.should_count, schema);
        if (key == NULL)
            key = undeclared_in(filter->u.group.must_not, filter->u.group.must_not_count, schema);
        return key;
    }
    if (filter->kind == SK_FILTER_IDS || sk_schema_field(schema, filter->key) != NULL)
        return NULL;
    return filter->key;
}
