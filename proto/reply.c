#include "proto/reply.h"
#include "common/base/utf8.h"

#include <math.h>

void sk_reply_begin(struct sk_reply_writer *self, struct sk_buffer *to,
                    const struct sk_request_id *id)
{
    self->to = to;
    self->at = sk_put_map_open(to);
    self->count = 3;
    sk_put_text(to, "v");
    sk_put_u64(to, SK_PROTOCOL_VERSION);
    sk_put_text(to, "id");
    sk_put_request_id(to, id);
    sk_put_text(to, "ok");
    sk_put_bool(to, true);
}

void sk_reply_key(struct sk_reply_writer *self, const char *name)
{
    sk_put_text(self->to, name);
    self->count++;
}

void sk_reply_end(struct sk_reply_writer *self)
{
    sk_put_count_at(self->to, self->at, self->count);
}

void sk_reply_ok(struct sk_buffer *to, const struct sk_request_id *id)
{
    struct sk_reply_writer writer;
    sk_reply_begin(&writer, to, id);
    sk_reply_end(&writer);
}

/* Error texts quote what a stranger wrote and are cut at a length: what is not UTF-8 becomes '?',
 * so that every reply can be read as text. */
static void put_words(struct sk_buffer *to, const char *text)
{
    uint8_t clean[SK_DIAG_TEXT_BYTES];
    size_t size = 0;
    for (const char *at = text; *at != '\0' && size + 4 < sizeof clean;) {
        size_t run = 1;
        while (run < 4 && (at[run] & 0xC0) == 0x80)
            run++;
        if (!sk_utf8_valid(sk_span_of(at, run))) {
            clean[size++] = '?';
            at++;
            continue;
        }
        memcpy(clean + size, at, run);
        size += run;
        at += run;
    }
    sk_put_text_of(to, sk_span_of(clean, size));
}

void sk_reply_error_with(struct sk_buffer *to, const struct sk_request_id *id, enum sk_err code,
                         const struct sk_diag *d, uint32_t extra_count, struct sk_span extra_pairs)
{
    bool has_field = d != NULL && d->field[0] != '\0';
    bool has_text = d != NULL && d->text[0] != '\0';
    sk_put_map(to, 4);
    sk_put_text(to, "v");
    sk_put_u64(to, SK_PROTOCOL_VERSION);
    sk_put_text(to, "id");
    sk_put_request_id(to, id);
    sk_put_text(to, "ok");
    sk_put_bool(to, false);
    sk_put_text(to, "error");
    sk_put_map(to, 5 + extra_count);
    sk_put_text(to, "code");
    sk_put_u64(to, (uint64_t)code);
    sk_put_text(to, "name");
    sk_put_text(to, sk_err_name(code));
    sk_put_text(to, "field");
    if (has_field)
        put_words(to, d->field);
    else
        sk_put_nil(to);
    sk_put_text(to, "retriable");
    sk_put_bool(to, sk_err_retriable(code));
    sk_put_text(to, "message");
    put_words(to, has_text ? d->text : sk_err_meaning(code));
    sk_put_raw(to, extra_pairs);
}

void sk_reply_error(struct sk_buffer *to, const struct sk_request_id *id, enum sk_err code,
                    const struct sk_diag *d)
{
    sk_reply_error_with(to, id, code, d, 0, (struct sk_span){0});
}

/* ---- reading ---- */

bool sk_map_member(struct sk_span packed_map, const char *key, struct sk_span *out)
{
    struct sk_reader from = sk_reader_of(packed_map);
    struct sk_value head;
    if (sk_read(&from, &head, NULL) != SK_ERR_OK || head.kind != SK_VALUE_MAP)
        return false;
    for (uint32_t i = 0; i < head.count; i++) {
        struct sk_value name;
        struct sk_span value;
        if (sk_read(&from, &name, NULL) != SK_ERR_OK || name.kind != SK_VALUE_TEXT ||
            sk_read_raw(&from, SK_PACK_DEPTH_MAX, &value, NULL) != SK_ERR_OK)
            return false;
        if (sk_span_is(name.span, key)) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool member(struct sk_span packed_map, const char *key, struct sk_value *out)
{
    struct sk_span packed;
    if (!sk_map_member(packed_map, key, &packed))
        return false;
    struct sk_reader from = sk_reader_of(packed);
    return sk_read(&from, out, NULL) == SK_ERR_OK;
}

bool sk_map_member_u64(struct sk_span packed_map, const char *key, uint64_t *out)
{
    struct sk_value value;
    if (!member(packed_map, key, &value) || value.kind != SK_VALUE_UNSIGNED)
        return false;
    *out = value.u64;
    return true;
}

bool sk_map_member_number(struct sk_span packed_map, const char *key, double *out)
{
    struct sk_value value;
    double number;
    if (!member(packed_map, key, &value) || !sk_value_number(&value, &number) || !isfinite(number))
        return false;
    *out = number;
    return true;
}

bool sk_map_member_text(struct sk_span packed_map, const char *key, struct sk_span *out)
{
    struct sk_value value;
    if (!member(packed_map, key, &value) || value.kind != SK_VALUE_TEXT)
        return false;
    *out = value.span;
    return true;
}

bool sk_map_member_bool(struct sk_span packed_map, const char *key, bool *out)
{
    struct sk_value value;
    if (!member(packed_map, key, &value) || value.kind != SK_VALUE_BOOL)
        return false;
    *out = value.boolean;
    return true;
}

bool sk_map_member_list(struct sk_span packed_map, const char *key, struct sk_list *out)
{
    struct sk_span packed;
    struct sk_value head;
    if (!sk_map_member(packed_map, key, &packed))
        return false;
    struct sk_reader from = sk_reader_of(packed);
    if (sk_read(&from, &head, NULL) != SK_ERR_OK || head.kind != SK_VALUE_ARRAY)
        return false;
    out->is_present = true;
    out->count = head.count;
    out->members = sk_span_of(from.at, sk_reader_left(&from));
    return true;
}

enum sk_err sk_reply_decode(struct sk_reply *out, struct sk_span frame, struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    struct sk_reader from = sk_reader_of(frame);
    enum sk_err err = sk_skip(&from, SK_PACK_DEPTH_MAX, d);
    if (err == SK_ERR_OK)
        err = sk_read_end(&from, d);
    if (err != SK_ERR_OK)
        return sk_wrap(d, err, "reply");
    struct sk_value id = {0};
    if (!sk_map_member_bool(frame, "ok", &out->is_ok))
        return sk_fail(d, SK_ERR_INVALID, "a reply is a map with a bool 'ok'");
    if (member(frame, "id", &id)) {
        out->id.is_present = id.kind == SK_VALUE_UNSIGNED || id.kind == SK_VALUE_TEXT;
        out->id.is_text = id.kind == SK_VALUE_TEXT;
        out->id.number = id.u64;
        out->id.text = id.span;
    }
    out->map = frame;
    if (out->is_ok)
        return SK_ERR_OK;
    struct sk_span error;
    uint64_t code = 0;
    if (!sk_map_member(frame, "error", &error) || !sk_map_member_u64(error, "code", &code) ||
        code == 0 || code > UINT8_MAX)
        return sk_fail(d, SK_ERR_INVALID, "an error reply has an 'error' with a code of 1 to 255");
    out->code = (enum sk_err)code;
    (void)sk_map_member_text(error, "field", &out->error_field);
    (void)sk_map_member_text(error, "message", &out->error_message);
    (void)sk_map_member_bool(error, "retriable", &out->is_retriable);
    return SK_ERR_OK;
}
