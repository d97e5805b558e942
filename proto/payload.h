/* Payloads: a msgpack map with text keys, at most 64 KiB and 8 deep. */
#ifndef SK_PAYLOAD_H
#define SK_PAYLOAD_H

#include "proto/schema.h"

enum { SK_PAYLOAD_BYTES_MAX = 65536, SK_PAYLOAD_DEPTH_MAX = 8 };

/* One value of a declared kind, in the form that indexes and comparisons use. */
struct sk_typed {
    enum sk_payload_kind kind;
    struct sk_span text; /* keyword */
    int64_t i64;         /* integer; datetime in us since 1970 */
    double f64;          /* float */
    bool boolean;
    double lat, lon; /* geo, degrees */
};

/* Form only: a map, text keys in UTF-8 and without duplicates at every level, depth, size. */
SK_CHECKED enum sk_err sk_payload_check(struct sk_span payload, struct sk_diag *d);
/* And every declared field has a value of its kind (an array: each element), or is missing or nil. */
SK_CHECKED enum sk_err sk_payload_check_types(const struct sk_schema *schema, struct sk_span payload,
                                              struct sk_diag *d);
/* The packed value at a path: the key itself where there is one, else by dots into nested maps.
 * False when missing (nil counts as missing). */
bool sk_payload_find(struct sk_span payload, const char *path, struct sk_span *out);
/* One packed value as a typed one; false when it is of another kind. Integers pass as float; datetime
 * takes RFC 3339 text or an integer of microseconds. */
bool sk_typed_from(enum sk_payload_kind kind, struct sk_span packed, struct sk_typed *out);
/* The elements of a value: itself, or the members of an array. */
struct sk_elements {
    struct sk_reader from;
    uint32_t left;
};
void sk_elements_begin(struct sk_elements *self, struct sk_span packed);
bool sk_elements_next(struct sk_elements *self, struct sk_span *packed);

/* old with the keys of change put in; a nil removes its key. old may be absent. */
void sk_payload_merge(struct sk_buffer *to, struct sk_span old, struct sk_span change);
/* Only these top-level keys. */
void sk_payload_select(struct sk_buffer *to, struct sk_span payload, const struct sk_list *names);
/* RFC 3339 ("2026-11-23T08:00:00.5Z", offsets too) to microseconds since 1970. */
bool sk_datetime_parse(struct sk_span text, int64_t *us);
const char *sk_payload_kind_name(enum sk_payload_kind kind);
SK_CHECKED enum sk_err sk_payload_kind_parse(struct sk_span text, enum sk_payload_kind *out,
                                             struct sk_diag *d);
/* Great-circle distance in metres on a sphere of 6,371,008.8 m (haversine). */
double sk_geo_distance_m(double lat1, double lon1, double lat2, double lon2);

#endif
