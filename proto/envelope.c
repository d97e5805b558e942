/* The members that every request has: v, op, id, deadline_ms, and the collection. */
#include "common/base/utf8.h"
#include "proto/codec_internal.h"

enum sk_err sk_codec_name_field(struct sk_diag *d, enum sk_err err, struct sk_span name)
{
    if (d == NULL || d->field[0] != '\0' || !sk_utf8_valid(name))
        return err;
    (void)snprintf(d->field, sizeof d->field, "%.*s", (int)(name.size > 64 ? 64 : name.size),
                   (const char *)name.bytes);
    return strncmp(d->text, d->field, strlen(d->field)) == 0 ? err
                                                             : sk_wrap(d, err, "%s", d->field);
}

static enum sk_err find_op(struct sk_span name, enum sk_op *out, struct sk_diag *d)
{
    for (enum sk_op op = 1; op < SK_OPS_END; op++) {
        if (sk_span_is(name, sk_op_name(op))) {
            *out = op;
            return SK_ERR_OK;
        }
    }
    const char *candidates[SK_OPS_END];
    size_t count = 0;
    for (enum sk_op op = 1; op < SK_OPS_END; op++)
        if (sk_op_role(op) != SK_ROLE_LINK)
            candidates[count++] = sk_op_name(op);
    const char *closest = sk_closest(name, candidates, count);
    int shown = (int)(name.size > 64 ? 64 : name.size);
    const char *text = sk_utf8_valid(name) ? (const char *)name.bytes : "?";
    shown = text[0] == '?' ? 1 : shown;
    if (closest != NULL)
        return sk_fail_field(d, SK_ERR_INVALID, "op",
                             "no operation '%.*s'; the closest name is '%s'", shown, text, closest);
    return sk_fail_field(d, SK_ERR_INVALID, "op", "no operation '%.*s'", shown, text);
}

static enum sk_err read_envelope_id(struct sk_reader *from, struct sk_request_id *out,
                                    struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK || value.kind == SK_VALUE_NIL)
        return err;
    if (value.kind == SK_VALUE_UNSIGNED) {
        out->is_present = true;
        out->number = value.u64;
        return SK_ERR_OK;
    }
    if (value.kind == SK_VALUE_TEXT && value.span.size <= 64 && sk_utf8_valid(value.span)) {
        out->is_present = out->is_text = true;
        out->text = value.span;
        return SK_ERR_OK;
    }
    return sk_fail_field(d, SK_ERR_INVALID, "id",
                         "id is %s, want an unsigned integer or text of at most 64 bytes",
                         sk_value_kind_name(value.kind));
}

unsigned sk_codec_envelope_bit(struct sk_span key)
{
    static const struct {
        const char *name;
        unsigned bit;
    } names[] = {{"v", ENVELOPE_V},
                 {"op", ENVELOPE_OP},
                 {"id", ENVELOPE_ID},
                 {"deadline_ms", ENVELOPE_DEADLINE},
                 {"collection", ENVELOPE_COLLECTION},
                 {"collection_name", ENVELOPE_COLLECTION}};
    for (size_t i = 0; i < SK_COUNT_OF(names); i++)
        if (sk_span_is(key, names[i].name))
            return names[i].bit;
    return 0;
}

static enum sk_err read_deadline(const struct sk_value *value, uint32_t *out, struct sk_diag *d)
{
    if (value->kind != SK_VALUE_UNSIGNED || value->u64 == 0 || value->u64 > SK_DEADLINE_MS_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "deadline_ms",
                             "deadline_ms wants an integer of 1 to %d", SK_DEADLINE_MS_MAX);
    *out = (uint32_t)value->u64;
    return SK_ERR_OK;
}

static enum sk_err read_version(const struct sk_value *value, struct sk_diag *d)
{
    if (value->kind == SK_VALUE_UNSIGNED && value->u64 == SK_PROTOCOL_VERSION)
        return SK_ERR_OK;
    if (value->kind == SK_VALUE_UNSIGNED)
        return sk_fail_field(d, SK_ERR_VERSION, "v", "v is %llu, this node speaks %d",
                             (unsigned long long)value->u64, SK_PROTOCOL_VERSION);
    return sk_fail_field(d, SK_ERR_VERSION, "v", "v is %s, this node speaks %d",
                         sk_value_kind_name(value->kind), SK_PROTOCOL_VERSION);
}

static enum sk_err read_envelope_field(struct sk_reader *from, unsigned bit,
                                       struct sk_envelope *out, struct sk_diag *d)
{
    struct sk_value value;
    if (bit == ENVELOPE_ID)
        return read_envelope_id(from, &out->id, d);
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_NIL && bit != ENVELOPE_V && bit != ENVELOPE_OP)
        return SK_ERR_OK; /* as if it were not there */
    switch (bit) {
    case ENVELOPE_V:
        return read_version(&value, d);
    case ENVELOPE_OP:
        if (value.kind != SK_VALUE_TEXT)
            return sk_fail_field(d, SK_ERR_INVALID, "op", "op is %s, want text",
                                 sk_value_kind_name(value.kind));
        return find_op(value.span, &out->op, d);
    case ENVELOPE_DEADLINE:
        return read_deadline(&value, &out->deadline_ms, d);
    default:
        if (value.kind != SK_VALUE_TEXT)
            return sk_fail_field(d, SK_ERR_INVALID, "collection", "collection is %s, want text",
                                 sk_value_kind_name(value.kind));
        out->collection = value.span;
        return sk_name_check(value.span, "collection", d);
    }
}

enum sk_err sk_codec_read_head(struct sk_reader *from, struct sk_span frame, uint32_t *count,
                               struct sk_diag *d)
{
    struct sk_value head;
    if (frame.size > SK_FRAME_BYTES_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE, "the frame has %zu bytes, want at most %d", frame.size,
                       SK_FRAME_BYTES_MAX);
    *from = sk_reader_of(frame);
    enum sk_err err = sk_read(from, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_MAP)
        return sk_fail(d, SK_ERR_INVALID, "a request is one msgpack map, this is %s",
                       sk_value_kind_name(head.kind));
    *count = head.count;
    return SK_ERR_OK;
}

enum sk_err sk_envelope_decode(struct sk_envelope *out, struct sk_span frame, struct sk_diag *d)
{
    struct sk_reader from;
    uint32_t count = 0;
    unsigned seen = 0;
    memset(out, 0, sizeof *out);
    out->deadline_ms = SK_DEADLINE_MS_DEFAULT;
    enum sk_err first = SK_ERR_OK;
    enum sk_err err = sk_codec_read_head(&from, frame, &count, d);
    if (err != SK_ERR_OK)
        return err;
    for (uint32_t i = 0; i < count; i++) {
        struct sk_span key;
        struct sk_diag *into = first == SK_ERR_OK ? d : NULL; /* the first fault is the one told */
        err = sk_read_key(&from, &key, into);
        if (err != SK_ERR_OK)
            return first == SK_ERR_OK ? err : first;
        unsigned bit = sk_codec_envelope_bit(key);
        struct sk_reader value = from;
        err = sk_skip(&from, SK_REQUEST_DEPTH_MAX, into);
        if (err != SK_ERR_OK)
            return first == SK_ERR_OK ? sk_codec_name_field(into, err, key) : first;
        if (bit == 0)
            continue;
        if ((seen & bit) != 0)
            err = sk_codec_name_field(into, sk_fail(into, SK_ERR_INVALID, "is given twice"), key);
        else
            err = read_envelope_field(&value, bit, out, into);
        seen |= bit;
        if (first == SK_ERR_OK)
            first = err; /* go on: a later id is wanted for the error reply */
    }
    if (first != SK_ERR_OK)
        return first;
    err = sk_read_end(&from, d);
    if (err != SK_ERR_OK)
        return err;
    if ((seen & ENVELOPE_V) == 0)
        return sk_fail_field(d, SK_ERR_VERSION, "v", "v is missing, this node speaks %d",
                             SK_PROTOCOL_VERSION);
    if ((seen & ENVELOPE_OP) == 0)
        return sk_fail_field(d, SK_ERR_INVALID, "op", "op is missing: the name of an operation");
    return SK_ERR_OK;
}
