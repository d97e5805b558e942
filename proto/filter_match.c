/* The reference evaluator of filters: what a condition means. Indexes must agree with it. */
#include "proto/filter.h"

#include <math.h>

/* Compares an integer with a float exactly: -1, 0, 1. */
static int compare_i64_f64(int64_t a, double b)
{
    if (b >= 9223372036854775808.0)
        return -1;
    if (b < -9223372036854775808.0)
        return 1;
    int64_t whole = (int64_t)b;
    if (a != whole)
        return a < whole ? -1 : 1;
    double fraction = b - (double)whole;
    return fraction > 0 ? -1 : fraction < 0 ? 1 : 0;
}

/* The element (a number, or a datetime's microseconds) against an operand; false: not comparable.
 */
static bool compare(enum sk_payload_kind kind, struct sk_span packed,
                    const struct sk_operand *operand, int *order)
{
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value value;
    int64_t integer, us = operand->i64;
    if (sk_read(&from, &value, NULL) != SK_ERR_OK)
        return false;
    bool is_time = kind == SK_PAYLOAD_DATETIME || operand->kind == SK_OPERAND_TEXT;
    if (is_time) {
        struct sk_typed typed;
        if (!sk_typed_from(SK_PAYLOAD_DATETIME, packed, &typed) ||
            (operand->kind == SK_OPERAND_TEXT && !sk_datetime_parse(operand->text, &us)) ||
            operand->kind == SK_OPERAND_F64 || operand->kind == SK_OPERAND_BOOL)
            return false;
        *order = typed.i64 < us ? -1 : typed.i64 > us;
        return true;
    }
    if (operand->kind == SK_OPERAND_BOOL)
        return false;
    if (kind == SK_PAYLOAD_FLOAT && sk_value_number(&value, &value.f64))
        value.kind = SK_VALUE_FLOAT; /* an integer there is read as a float, as its index does */
    if (value.kind == SK_VALUE_FLOAT) {
        if (isnan(value.f64))
            return false;
        if (operand->kind == SK_OPERAND_I64)
            *order = -compare_i64_f64(operand->i64, value.f64);
        else
            *order = value.f64 < operand->f64 ? -1 : value.f64 > operand->f64;
        return true;
    }
    if (!sk_value_i64(&value, &integer))
        return false;
    if (operand->kind == SK_OPERAND_I64)
        *order = integer < operand->i64 ? -1 : integer > operand->i64;
    else
        *order = compare_i64_f64(integer, operand->f64);
    return true;
}

static bool equals(enum sk_payload_kind kind, struct sk_span packed,
                   const struct sk_operand *operand)
{
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value value;
    int order;
    if (sk_read(&from, &value, NULL) != SK_ERR_OK)
        return false;
    if (kind == SK_PAYLOAD_DATETIME)
        return compare(kind, packed, operand, &order) && order == 0;
    switch (operand->kind) {
    case SK_OPERAND_TEXT:
        return value.kind == SK_VALUE_TEXT && sk_span_equals(value.span, operand->text);
    case SK_OPERAND_BOOL:
        return value.kind == SK_VALUE_BOOL && value.boolean == operand->boolean;
    default:
        return compare(kind, packed, operand, &order) && order == 0;
    }
}

bool sk_filter_element_matches(const struct sk_filter *condition, enum sk_payload_kind kind,
                               struct sk_span packed)
{
    struct sk_typed typed;
    int order;
    if (kind != 0 && !sk_typed_from(kind, packed, &typed))
        return false; /* a record older than the field's declaration */
    switch (condition->kind) {
    case SK_FILTER_ANY:
        for (uint32_t i = 0; i < condition->u.any.count; i++)
            if (equals(kind, packed, &condition->u.any.values[i]))
                return true;
        return false;
    case SK_FILTER_RANGE:
        if (condition->u.range.low != SK_BOUND_NONE &&
            (!compare(kind, packed, &condition->u.range.low_value, &order) || order < 0 ||
             (order == 0 && condition->u.range.low == SK_BOUND_OPEN)))
            return false;
        if (condition->u.range.high != SK_BOUND_NONE &&
            (!compare(kind, packed, &condition->u.range.high_value, &order) || order > 0 ||
             (order == 0 && condition->u.range.high == SK_BOUND_OPEN)))
            return false;
        return true;
    case SK_FILTER_GEO_RADIUS:
        return sk_typed_from(SK_PAYLOAD_GEO, packed, &typed) &&
               sk_geo_distance_m(typed.lat, typed.lon, condition->u.radius.lat,
                                 condition->u.radius.lon) <= condition->u.radius.radius_m;
    case SK_FILTER_GEO_BOX: {
        if (!sk_typed_from(SK_PAYLOAD_GEO, packed, &typed) ||
            typed.lat < condition->u.box.lat_min || typed.lat > condition->u.box.lat_max)
            return false;
        bool is_east = typed.lon >= condition->u.box.lon_min;
        bool is_west = typed.lon <= condition->u.box.lon_max;
        return condition->u.box.lon_min <= condition->u.box.lon_max ? is_east && is_west
                                                                    : is_east || is_west;
    }
    default:
        return false;
    }
}

bool sk_filter_matches(const struct sk_filter *filter, const struct sk_schema *schema,
                       const struct sk_id *id, struct sk_span payload)
{
    struct sk_span value, element;
    struct sk_elements elements;
    if (filter->kind == SK_FILTER_GROUP) {
        for (uint32_t i = 0; i < filter->u.group.must_count; i++)
            if (!sk_filter_matches(filter->u.group.must[i], schema, id, payload))
                return false;
        for (uint32_t i = 0; i < filter->u.group.must_not_count; i++)
            if (sk_filter_matches(filter->u.group.must_not[i], schema, id, payload))
                return false;
        for (uint32_t i = 0; i < filter->u.group.should_count; i++)
            if (sk_filter_matches(filter->u.group.should[i], schema, id, payload))
                return true;
        return filter->u.group.should_count == 0;
    }
    if (filter->kind == SK_FILTER_IDS) {
        for (uint32_t i = 0; i < filter->u.ids.count; i++)
            if (sk_id_compare(&filter->u.ids.ids[i], id) == 0)
                return true;
        return false;
    }
    bool is_there = sk_payload_find(payload, filter->key, &value);
    if (filter->kind == SK_FILTER_EXISTS)
        return is_there == filter->u.exists;
    if (!is_there)
        return false;
    const struct sk_payload_field *field = sk_schema_field(schema, filter->key);
    enum sk_payload_kind kind = field != NULL ? field->kind : (enum sk_payload_kind)0;
    sk_elements_begin(&elements, value);
    while (sk_elements_next(&elements, &element))
        if (sk_filter_element_matches(filter, kind, element))
            return true;
    return false;
}
