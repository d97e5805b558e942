/* Roles, names, the closest name, ids: what requests are made of besides fields (see codec.h). */
#include "proto/codec.h"

static const char *const role_names[] = {"none", "read", "write", "admin", "link"};

const char *sk_role_name(enum sk_role role)
{
    return role < SK_COUNT_OF(role_names) ? role_names[role] : "none";
}

enum sk_err sk_role_parse(enum sk_role *out, struct sk_span text, struct sk_diag *d)
{
    for (enum sk_role role = SK_ROLE_READ; role <= SK_ROLE_ADMIN; role++) {
        if (sk_span_is(text, role_names[role])) {
            *out = role;
            return SK_ERR_OK;
        }
    }
    *out = SK_ROLE_NONE;
    return sk_fail_field(d, SK_ERR_INVALID, "role", "role is '%.*s', want admin, write or read",
                         (int)(text.size > 32 ? 32 : text.size), (const char *)text.bytes);
}

static bool is_alnum(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

enum sk_err sk_name_check(struct sk_span name, const char *field, struct sk_diag *d)
{
    if (name.size == 0 || name.size > SK_NAME_BYTES_MAX)
        return sk_fail_field(d, name.size == 0 ? SK_ERR_INVALID : SK_ERR_TOO_LARGE, field,
                             "a name has %zu bytes, want 1 to %d", name.size, SK_NAME_BYTES_MAX);
    bool is_good = is_alnum(name.bytes[0]);
    for (size_t i = 0; i < name.size && is_good; i++)
        is_good = is_alnum(name.bytes[i]) || name.bytes[i] == '_' || name.bytes[i] == '-' ||
                  name.bytes[i] == '.';
    if (!is_good)
        return sk_fail_field(d, SK_ERR_INVALID, field,
                             "a name has letters, digits, '_', '-' and '.', and begins with a "
                             "letter or digit");
    return SK_ERR_OK;
}

enum { CLOSEST_BYTES_MAX = 64 };

static size_t edit_distance(struct sk_span a, const char *b)
{
    size_t columns = strlen(b);
    size_t row[CLOSEST_BYTES_MAX + 1];
    if (columns > CLOSEST_BYTES_MAX || a.size > CLOSEST_BYTES_MAX)
        return SIZE_MAX;
    for (size_t j = 0; j <= columns; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.size; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= columns; j++) {
            size_t above = row[j];
            size_t best = diagonal + (a.bytes[i - 1] == (uint8_t)b[j - 1] ? 0 : 1);
            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[columns];
}

const char *sk_closest(struct sk_span name, const char *const *candidates, size_t count)
{
    const char *closest = NULL;
    size_t best = name.size / 3 + 2;
    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(name, candidates[i]);
        if (distance < best) {
            best = distance;
            closest = candidates[i];
        }
    }
    return closest;
}

/* ---- ids ---- */

enum sk_err sk_read_id(struct sk_reader *from, struct sk_id *out, struct sk_diag *d)
{
    struct sk_value value;
    memset(out, 0, sizeof *out);
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_UNSIGNED) {
        *out = sk_id_from_u64(value.u64);
        return SK_ERR_OK;
    }
    if (value.kind == SK_VALUE_TEXT)
        return sk_id_from_string(out, value.span, d);
    return sk_fail(d, SK_ERR_INVALID,
                   "an id is %s, want an unsigned integer, a UUID or a string of 1 to 64 bytes",
                   sk_value_kind_name(value.kind));
}

void sk_put_id(struct sk_buffer *to, const struct sk_id *id)
{
    char text[SK_ID_TEXT_BYTES];
    if (sk_id_kind(id) == SK_ID_U64)
        sk_put_u64(to, sk_id_u64(id));
    else
        sk_put_text(to, sk_id_text(id, text));
}

bool sk_ids_next(struct sk_reader *members, struct sk_id *out)
{
    if (sk_reader_left(members) == 0)
        return false;
    return sk_read_id(members, out, NULL) == SK_ERR_OK;
}

void sk_put_request_id(struct sk_buffer *to, const struct sk_request_id *id)
{
    if (id == NULL || !id->is_present)
        sk_put_nil(to);
    else if (id->is_text)
        sk_put_text_of(to, id->text);
    else
        sk_put_u64(to, id->number);
}
