/* Filters: must, should, must_not over conditions on the payload; nested filters are conditions too.
 * A parsed filter is a tree of nodes in an arena; texts are borrowed from the frame. */
#ifndef SK_FILTER_H
#define SK_FILTER_H

#include "common/base/arena.h"
#include "proto/payload.h"

enum { SK_FILTER_DEPTH_MAX = 8, SK_FILTER_NODES_MAX = 1024, SK_FILTER_KEY_BYTES_MAX = 256 };

enum sk_filter_kind {
    SK_FILTER_GROUP, /* must, should, must_not */
    SK_FILTER_ANY,   /* one of values (match is ANY with one) */
    SK_FILTER_RANGE,
    SK_FILTER_GEO_RADIUS,
    SK_FILTER_GEO_BOX,
    SK_FILTER_EXISTS,
    SK_FILTER_IDS,
};

/* A value to compare with: text, integer, float or bool, as the user wrote it. */
struct sk_operand {
    enum { SK_OPERAND_TEXT, SK_OPERAND_I64, SK_OPERAND_F64, SK_OPERAND_BOOL } kind;
    struct sk_span text;
    int64_t i64;
    double f64;
    bool boolean;
};

enum sk_bound { SK_BOUND_NONE, SK_BOUND_OPEN, SK_BOUND_CLOSED };

struct sk_filter {
    enum sk_filter_kind kind;
    char *key; /* zero-terminated copy in the arena; NULL for groups and ids */
    union {
        struct {
            struct sk_filter **must, **should, **must_not;
            uint32_t must_count, should_count, must_not_count;
        } group;
        struct {
            struct sk_operand *values;
            uint32_t count;
        } any;
        struct {
            enum sk_bound low, high;
            struct sk_operand low_value, high_value;
        } range;
        struct {
            double lat, lon, radius_m;
        } radius;
        struct {
            double lat_min, lat_max, lon_min, lon_max; /* lon_min > lon_max crosses the date line */
        } box;
        bool exists;
        struct {
            struct sk_id *ids;
            uint32_t count;
        } ids;
    } u;
};

/* packed: the filter map of a request. INVALID or TOO_LARGE name the path ("must[1].range.gte"). */
SK_CHECKED enum sk_err sk_filter_parse(struct sk_filter **out, struct sk_arena *arena,
                                       struct sk_span packed, struct sk_diag *d);
/* Operands fit the declared kinds of the schema: a range on a keyword, a text compared with an integer
 * field ... are INVALID. */
SK_CHECKED enum sk_err sk_filter_check(const struct sk_schema *schema, const struct sk_filter *filter,
                                       struct sk_diag *d);
/* The reference: does a record match? An array matches when any element does; a condition on a missing
 * field is false; a non-empty should wants one. Declared kinds of the schema decide how a value is read
 * (datetime text); schema may be NULL. */
bool sk_filter_matches(const struct sk_filter *filter, const struct sk_schema *schema,
                       const struct sk_id *id, struct sk_span payload);
/* One element against a condition that is not a group and not ids. */
bool sk_filter_element_matches(const struct sk_filter *condition, enum sk_payload_kind kind,
                               struct sk_span packed);
/* The first key that is not a declared field of the schema, or NULL. */
const char *sk_filter_undeclared(const struct sk_filter *filter, const struct sk_schema *schema);
const struct sk_payload_field *sk_schema_field(const struct sk_schema *schema, const char *name);

#endif
