#include "proto/payload.h"
#include "common/base/utf8.h"

#include <math.h>
#include <xxhash.h>

static const char *const kind_names[] = {"",     "keyword",  "integer", "float",
                                         "bool", "datetime", "geo"};

const char *sk_payload_kind_name(enum sk_payload_kind kind)
{
    return kind < SK_COUNT_OF(kind_names) ? kind_names[kind] : "";
}

enum sk_err sk_payload_kind_parse(struct sk_span text, enum sk_payload_kind *out, struct sk_diag *d)
{
    for (size_t i = 1; i < SK_COUNT_OF(kind_names); i++) {
        if (sk_span_is(text, kind_names[i])) {
            *out = (enum sk_payload_kind)i;
            return SK_ERR_OK;
        }
    }
    return sk_fail_field(d, SK_ERR_INVALID, "payload",
                         "no kind '%.*s', want keyword, integer, float, bool, datetime or geo",
                         (int)(text.size > 32 ? 32 : text.size), (const char *)text.bytes);
}

/* ---- form ---- */

/* Keys of one map are looked up in a table, not compared pair by pair: a map of 1,024 keys with one
 * large value would otherwise cost a minute for a frame full of them. */
enum { PAYLOAD_KEYS_MAX = 1024, KEY_SLOTS = 2048 };

struct key_table {
    struct sk_span keys[KEY_SLOTS]; /* bytes NULL: free */
};

/* False when the key was there. */
static bool add_key(struct key_table *self, struct sk_span key)
{
    size_t slot = XXH3_64bits(key.bytes, key.size) % KEY_SLOTS;
    while (self->keys[slot].bytes != NULL) {
        if (sk_span_equals(self->keys[slot], key))
            return false;
        slot = (slot + 1) % KEY_SLOTS;
    }
    self->keys[slot] = key;
    return true;
}

static bool has_key(const struct sk_span *keys, uint32_t count, struct sk_span key)
{
    for (uint32_t i = 0; i < count; i++)
        if (sk_span_equals(keys[i], key))
            return true;
    return false;
}

/* Passes over a map's values and looks at its keys. Not inlined: its table is on the stack only
 * here, not in every level of check_value. */
__attribute__((noinline)) static enum sk_err check_many_keys(struct sk_reader from, uint32_t count,
                                                             struct sk_span *twice)
{
    struct key_table table;
    memset(&table, 0, sizeof table);
    for (uint32_t i = 0; i < count; i++) {
        struct sk_span key;
        if (sk_read_key(&from, &key, NULL) != SK_ERR_OK ||
            sk_skip(&from, SK_PACK_DEPTH_MAX, NULL) != SK_ERR_OK)
            return SK_ERR_OK; /* the values' own check says what is wrong */
        if (!add_key(&table, key)) {
            *twice = key;
            return SK_ERR_INVALID;
        }
    }
    return SK_ERR_OK;
}

static enum sk_err check_value(struct sk_reader *from, unsigned depth, struct sk_diag *d);

static enum sk_err check_map(struct sk_reader *from, uint32_t count, unsigned depth,
                             struct sk_diag *d)
{
    enum { FEW = 8 };
    struct sk_span few[FEW], twice = {0};
    enum sk_err err = SK_ERR_OK;
    if (count > FEW)
        err = check_many_keys(*from, count, &twice);
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        err = sk_read_key(from, &key, d);
        if (err == SK_ERR_OK && !sk_utf8_valid(key))
            err = sk_fail(d, SK_ERR_INVALID, "a key of a payload is not valid UTF-8");
        if (err != SK_ERR_OK)
            return err;
        if (count <= FEW) {
            if (has_key(few, i, key)) {
                twice = key;
                break;
            }
            few[i] = key;
        }
        err = check_value(from, depth, d);
    }
    if (twice.bytes != NULL)
        return sk_fail(d, SK_ERR_INVALID, "payload key '%.*s' is given twice",
                       (int)(twice.size > 64 ? 64 : twice.size), (const char *)twice.bytes);
    return err;
}

static enum sk_err check_value(struct sk_reader *from, unsigned depth, struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_TEXT && !sk_utf8_valid(value.span))
        return sk_fail(d, SK_ERR_INVALID, "a text of a payload is not valid UTF-8");
    if (value.kind == SK_VALUE_FLOAT && !isfinite(value.f64))
        return sk_fail(d, SK_ERR_INVALID, "a number of a payload is not finite");
    if (value.kind != SK_VALUE_ARRAY && value.kind != SK_VALUE_MAP)
        return SK_ERR_OK;
    if (depth == 0)
        return sk_fail(d, SK_ERR_TOO_LARGE, "a payload is nested more than %d deep",
                       SK_PAYLOAD_DEPTH_MAX);
    if (value.kind == SK_VALUE_MAP) {
        if (value.count > PAYLOAD_KEYS_MAX)
            return sk_fail(d, SK_ERR_TOO_LARGE, "a map of a payload has %u keys, want at most %d",
                           value.count, PAYLOAD_KEYS_MAX);
        return check_map(from, value.count, depth - 1, d);
    }
    for (uint32_t i = 0; i < value.count && err == SK_ERR_OK; i++)
        err = check_value(from, depth - 1, d);
    return err;
}

enum sk_err sk_payload_check(struct sk_span payload, struct sk_diag *d)
{
    struct sk_reader from = sk_reader_of(payload);
    struct sk_value head;
    if (payload.size > SK_PAYLOAD_BYTES_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE, "a payload has %zu bytes, want at most %d",
                       payload.size, SK_PAYLOAD_BYTES_MAX);
    struct sk_reader peek = from;
    enum sk_err err = sk_read(&peek, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_MAP)
        return sk_fail(d, SK_ERR_INVALID, "a payload is %s, want a map",
                       sk_value_kind_name(head.kind));
    err = check_value(&from, SK_PAYLOAD_DEPTH_MAX, d);
    return err == SK_ERR_OK ? sk_read_end(&from, d) : err;
}

enum sk_err sk_payload_check_types(const struct sk_schema *schema, struct sk_span payload,
                                   struct sk_diag *d)
{
    static const char *const wanted[] = {
        [SK_PAYLOAD_KEYWORD] = "text",
        [SK_PAYLOAD_INTEGER] = "an integer of 64 bits, signed",
        [SK_PAYLOAD_FLOAT] = "a number",
        [SK_PAYLOAD_BOOL] = "true or false",
        [SK_PAYLOAD_DATETIME] = "RFC 3339 text or microseconds since 1970",
        [SK_PAYLOAD_GEO] = "{lat, lon} in degrees, -90 to 90 and -180 to 180"};
    enum sk_err err = sk_payload_check(payload, d);
    if (err != SK_ERR_OK)
        return err;
    for (uint32_t i = 0; i < schema->field_count; i++) {
        const struct sk_payload_field *field = &schema->fields[i];
        struct sk_span value, element;
        struct sk_elements elements;
        struct sk_typed typed;
        if (!sk_payload_find(payload, field->name, &value))
            continue;
        sk_elements_begin(&elements, value);
        while (sk_elements_next(&elements, &element))
            if (element.bytes[0] != 0xC0 && !sk_typed_from(field->kind, element, &typed))
                return sk_fail_field(
                    d, SK_ERR_INVALID, field->name,
                    "payload field '%s' is declared %s and wants %s, or an array of such",
                    field->name, sk_payload_kind_name(field->kind), wanted[field->kind]);
    }
    return SK_ERR_OK;
}

/* ---- finding ---- */

static bool find_key(struct sk_span packed_map, const char *key, size_t size, struct sk_span *out)
{
    struct sk_reader from = sk_reader_of(packed_map);
    struct sk_value head;
    if (sk_read(&from, &head, NULL) != SK_ERR_OK || head.kind != SK_VALUE_MAP)
        return false;
    for (uint32_t i = 0; i < head.count; i++) {
        struct sk_span name, value;
        if (sk_read_key(&from, &name, NULL) != SK_ERR_OK ||
            sk_read_raw(&from, SK_PACK_DEPTH_MAX, &value, NULL) != SK_ERR_OK)
            return false;
        if (name.size == size && memcmp(name.bytes, key, size) == 0) {
            *out = value;
            return true;
        }
    }
    return false;
}

bool sk_payload_find(struct sk_span payload, const char *path, struct sk_span *out)
{
    if (payload.bytes == NULL || payload.size == 0)
        return false;
    if (find_key(payload, path, strlen(path), out))
        return out->bytes[0] != 0xC0;
    for (const char *dot = strchr(path, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
        struct sk_span inner;
        if (find_key(payload, path, (size_t)(dot - path), &inner) &&
            sk_payload_find(inner, dot + 1, out))
            return true;
    }
    return false;
}

void sk_elements_begin(struct sk_elements *self, struct sk_span packed)
{
    struct sk_value head;
    self->from = sk_reader_of(packed);
    self->left = 1;
    struct sk_reader inner = self->from;
    if (sk_read(&inner, &head, NULL) == SK_ERR_OK && head.kind == SK_VALUE_ARRAY) {
        self->from = inner;
        self->left = head.count;
    }
}

bool sk_elements_next(struct sk_elements *self, struct sk_span *packed)
{
    if (self->left == 0)
        return false;
    self->left--;
    return sk_read_raw(&self->from, SK_PACK_DEPTH_MAX, packed, NULL) == SK_ERR_OK;
}

/* ---- typed values ---- */

static bool digits(const uint8_t **at, const uint8_t *end, unsigned count, int *out)
{
    *out = 0;
    for (unsigned i = 0; i < count; i++, (*at)++) {
        if (*at == end || **at < '0' || **at > '9')
            return false;
        *out = *out * 10 + (**at - '0');
    }
    return true;
}

static bool mark(const uint8_t **at, const uint8_t *end, char one, char other)
{
    if (*at == end || (**at != (uint8_t)one && **at != (uint8_t)other))
        return false;
    (*at)++;
    return true;
}

static bool zone(const uint8_t **at, const uint8_t *end, int *seconds)
{
    int hours = 0, minutes = 0;
    *seconds = 0;
    if (mark(at, end, 'Z', 'z'))
        return true;
    bool is_behind = *at < end && **at == '-';
    if (!mark(at, end, '+', '-') || !digits(at, end, 2, &hours) || !mark(at, end, ':', ':') ||
        !digits(at, end, 2, &minutes) || hours > 23 || minutes > 59)
        return false;
    *seconds = (hours * 3600 + minutes * 60) * (is_behind ? -1 : 1);
    return true;
}

/* Days from 1970-01-01; month 1 to 12. The year begins in March here, so that leap days come last.
 */
static int64_t days_of(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t of_era = y - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int days_in(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return days[month - 1] + (month == 2 && is_leap ? 1 : 0);
}

static bool parse_fraction(const uint8_t **at, const uint8_t *end, int64_t *us)
{
    int64_t unit = 100000;
    if (*at == end || **at != '.')
        return true;
    (*at)++;
    if (*at == end || **at < '0' || **at > '9')
        return false;
    for (; *at < end && **at >= '0' && **at <= '9'; (*at)++, unit /= 10)
        *us += (**at - '0') * unit;
    return true;
}

bool sk_datetime_parse(struct sk_span text, int64_t *us)
{
    const uint8_t *at = text.bytes, *end = text.bytes + text.size;
    int year, month, day, hour = 0, minute = 0, second = 0, offset_s = 0;
    int64_t fraction_us = 0;
    if (!digits(&at, end, 4, &year) || !mark(&at, end, '-', '-') || !digits(&at, end, 2, &month) ||
        !mark(&at, end, '-', '-') || !digits(&at, end, 2, &day))
        return false;
    if (at != end) { /* a bare date is its midnight, UTC */
        if ((!mark(&at, end, 'T', ' ') && !mark(&at, end, 't', 't')) ||
            !digits(&at, end, 2, &hour) || !mark(&at, end, ':', ':') ||
            !digits(&at, end, 2, &minute) || !mark(&at, end, ':', ':') ||
            !digits(&at, end, 2, &second) || !parse_fraction(&at, end, &fraction_us) ||
            !zone(&at, end, &offset_s))
            return false;
    }
    if (at != end || month < 1 || month > 12 || day < 1 || day > days_in(year, month) ||
        hour > 23 || minute > 59 || second > 60)
        return false;
    int64_t seconds = days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
    *us = (seconds - offset_s) * 1000000 + fraction_us;
    return true;
}

static bool geo_from(struct sk_span packed, struct sk_typed *out)
{
    struct sk_span lat, lon;
    struct sk_value value;
    if (!find_key(packed, "lat", 3, &lat) || !find_key(packed, "lon", 3, &lon))
        return false;
    struct sk_reader from = sk_reader_of(lat);
    if (sk_read(&from, &value, NULL) != SK_ERR_OK || !sk_value_number(&value, &out->lat))
        return false;
    from = sk_reader_of(lon);
    if (sk_read(&from, &value, NULL) != SK_ERR_OK || !sk_value_number(&value, &out->lon))
        return false;
    return out->lat >= -90 && out->lat <= 90 && out->lon >= -180 && out->lon <= 180;
}

bool sk_typed_from(enum sk_payload_kind kind, struct sk_span packed, struct sk_typed *out)
{
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value value;
    memset(out, 0, sizeof *out);
    out->kind = kind;
    if (sk_read(&from, &value, NULL) != SK_ERR_OK)
        return false;
    switch (kind) {
    case SK_PAYLOAD_KEYWORD:
        out->text = value.span;
        return value.kind == SK_VALUE_TEXT;
    case SK_PAYLOAD_INTEGER:
        return sk_value_i64(&value, &out->i64);
    case SK_PAYLOAD_FLOAT:
        return sk_value_number(&value, &out->f64) && isfinite(out->f64);
    case SK_PAYLOAD_BOOL:
        out->boolean = value.boolean;
        return value.kind == SK_VALUE_BOOL;
    case SK_PAYLOAD_DATETIME:
        if (value.kind == SK_VALUE_TEXT)
            return sk_datetime_parse(value.span, &out->i64);
        return sk_value_i64(&value, &out->i64);
    case SK_PAYLOAD_GEO:
        return geo_from(packed, out);
    }
    return false;
}

double sk_geo_distance_m(double lat1, double lon1, double lat2, double lon2)
{
    const double radians = 0.017453292519943295;
    double dlat = (lat2 - lat1) * radians, dlon = (lon2 - lon1) * radians;
    double a = sin(dlat / 2) * sin(dlat / 2) +
               cos(lat1 * radians) * cos(lat2 * radians) * sin(dlon / 2) * sin(dlon / 2);
    return 2 * 6371008.8 * asin(a < 1 ? sqrt(a) : 1);
}

/* ---- changing ---- */

static uint32_t head_count(struct sk_reader *from)
{
    struct sk_value head;
    return sk_read(from, &head, NULL) == SK_ERR_OK && head.kind == SK_VALUE_MAP ? head.count : 0;
}

void sk_payload_merge(struct sk_buffer *to, struct sk_span old, struct sk_span change)
{
    size_t at = sk_put_map_open(to);
    uint32_t count = 0;
    struct sk_span key, value, other;
    struct sk_reader from = sk_reader_of(old);
    for (uint32_t left = old.size > 0 ? head_count(&from) : 0; left > 0; left--) {
        if (sk_read_key(&from, &key, NULL) != SK_ERR_OK ||
            sk_read_raw(&from, SK_PACK_DEPTH_MAX, &value, NULL) != SK_ERR_OK)
            break;
        if (find_key(change, (const char *)key.bytes, key.size, &other))
            continue;
        sk_put_text_of(to, key);
        sk_put_raw(to, value);
        count++;
    }
    from = sk_reader_of(change);
    for (uint32_t left = head_count(&from); left > 0; left--) {
        if (sk_read_key(&from, &key, NULL) != SK_ERR_OK ||
            sk_read_raw(&from, SK_PACK_DEPTH_MAX, &value, NULL) != SK_ERR_OK)
            break;
        if (value.bytes[0] == 0xC0)
            continue;
        sk_put_text_of(to, key);
        sk_put_raw(to, value);
        count++;
    }
    sk_put_count_at(to, at, count);
}

void sk_payload_select(struct sk_buffer *to, struct sk_span payload, const struct sk_list *names)
{
    size_t at = sk_put_map_open(to);
    uint32_t count = 0;
    struct sk_reader from = sk_reader_of(names->members);
    for (uint32_t i = 0; i < names->count; i++) {
        struct sk_span name, value;
        if (sk_read_key(&from, &name, NULL) != SK_ERR_OK)
            break;
        if (payload.size == 0 || !find_key(payload, (const char *)name.bytes, name.size, &value))
            continue;
        sk_put_text_of(to, name);
        sk_put_raw(to, value);
        count++;
    }
    sk_put_count_at(to, at, count);
}
