/* JSON text to msgpack and back, without a tree in between. */
#include "common/base/utf8.h"
#include "proto/client/internal.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { JSON_DEPTH_MAX = 32 };

/* A program's locale must not turn 0.5 into 0,5. */
static locale_t c_locale;

static void make_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

static double parse_double(const char *text)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_locale);
    return c_locale == (locale_t)0 ? strtod(text, NULL) : strtod_l(text, NULL, c_locale);
}

/* ---- JSON to msgpack ---- */

struct parser {
    const char *start, *at, *end;
    struct sk_buffer wire;
    struct skerry_error *error;
    enum skerry_code code;
};

static bool fail(struct parser *self, const char *what)
{
    if (self->code == SKERRY_OK)
        self->code = sk_client_fail(self->error, SKERRY_INVALID, "not JSON at byte %zu: %s",
                                    (size_t)(self->at - self->start), what);
    return false;
}

static void skip_space(struct parser *self)
{
    while (self->at < self->end &&
           (*self->at == ' ' || *self->at == '\t' || *self->at == '\n' || *self->at == '\r'))
        self->at++;
}

static bool take_char(struct parser *self, char wanted)
{
    skip_space(self);
    if (self->at >= self->end || *self->at != wanted)
        return false;
    self->at++;
    return true;
}

static bool take_word(struct parser *self, const char *word)
{
    size_t size = strlen(word);
    if ((size_t)(self->end - self->at) < size || memcmp(self->at, word, size) != 0)
        return false;
    self->at += size;
    return true;
}

static bool parse_hex4(struct parser *self, unsigned *out)
{
    *out = 0;
    for (unsigned i = 0; i < 4; i++, self->at++) {
        char c = self->at < self->end ? *self->at : '\0';
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
                                                : 16;
        if (digit == 16)
            return fail(self, "\\u wants four hexadecimal digits");
        *out = *out * 16 + digit;
    }
    return true;
}

static void put_utf8(struct sk_buffer *wire, unsigned code)
{
    uint8_t bytes[4];
    unsigned size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const uint8_t heads[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (unsigned i = size - 1; i > 0; i--, code >>= 6)
        bytes[i] = (uint8_t)(0x80 | (code & 0x3f));
    bytes[0] = (uint8_t)(heads[size] | code);
    sk_buffer_append(wire, bytes, size);
}

static bool parse_escape(struct parser *self)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (self->at >= self->end)
        return fail(self, "the text ends in an escape");
    char name = *self->at++;
    if (name != 'u') {
        const char *found = name == '\0' ? NULL : strchr(names, name);
        if (found == NULL)
            return fail(self, "an unknown escape");
        sk_buffer_append(&self->wire, &values[found - names], 1);
        return true;
    }
    unsigned code = 0, low = 0;
    if (!parse_hex4(self, &code))
        return false;
    if (code >= 0xdc00 && code <= 0xdfff)
        return fail(self, "the second half of a surrogate pair without its first");
    if (code >= 0xd800 && code <= 0xdbff) {
        if (!take_word(self, "\\u") || !parse_hex4(self, &low) || low < 0xdc00 || low > 0xdfff)
            return fail(self, "half a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    put_utf8(&self->wire, code);
    return true;
}

/* Content is written behind one spare byte; the head is put right when the size is known. */
static bool finish_head(struct parser *self, size_t head_at, uint64_t count, bool is_text,
                        bool is_map)
{
    uint64_t tiny_max = is_text ? 31 : 15;
    uint8_t tiny = is_text ? 0xa0 : is_map ? 0x80 : 0x90;
    uint8_t type16 = is_text ? 0xda : is_map ? 0xde : 0xdc;
    if (self->wire.is_broken)
        return false;
    if (count <= tiny_max) {
        self->wire.bytes[head_at] = (uint8_t)(tiny | count);
        return true;
    }
    if (count > UINT32_MAX)
        return fail(self, "too long");
    unsigned more = is_text && count <= UINT8_MAX ? 1 : count <= UINT16_MAX ? 2 : 4;
    size_t content = self->wire.size - head_at - 1;
    if (sk_buffer_grow(&self->wire, more) == NULL)
        return false;
    uint8_t *head = self->wire.bytes + head_at;
    memmove(head + 1 + more, head + 1, content);
    head[0] = more == 1 ? 0xd9 : more == 2 ? type16 : (uint8_t)(type16 + 1);
    for (unsigned i = 0; i < more; i++)
        head[1 + i] = (uint8_t)(count >> (8 * (more - 1 - i)));
    return true;
}

static size_t begin_head(struct parser *self)
{
    size_t at = self->wire.size;
    sk_put_nil(&self->wire);
    return at;
}

static bool parse_text(struct parser *self)
{
    if (!take_char(self, '"'))
        return fail(self, "a text in double quotes is wanted here");
    size_t head_at = begin_head(self);
    while (self->at < self->end && *self->at != '"') {
        const char *run = self->at;
        while (self->at < self->end && *self->at != '"' && *self->at != '\\' &&
               (unsigned char)*self->at >= 0x20)
            self->at++;
        sk_buffer_append(&self->wire, run, (size_t)(self->at - run));
        if (self->at >= self->end || *self->at == '"')
            break;
        if (*self->at != '\\')
            return fail(self, "a control character in a text must be escaped");
        self->at++;
        if (!parse_escape(self))
            return false;
    }
    if (self->at >= self->end)
        return fail(self, "the text has no end");
    self->at++;
    if (self->wire.is_broken)
        return false;
    size_t size = self->wire.size - head_at - 1;
    if (!sk_utf8_valid(sk_span_of(self->wire.bytes + head_at + 1, size)))
        return fail(self, "the text before this byte is not UTF-8, or has a zero in it");
    return finish_head(self, head_at, size, true, false);
}

static const char *skip_digits(const char *at, const char *end)
{
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at;
}

/* The extent of a number by the grammar of JSON; NULL when it is not one. */
static const char *number_end(const char *at, const char *end, bool *is_integer)
{
    *is_integer = true;
    at += at < end && *at == '-';
    const char *digits = at;
    at = skip_digits(at, end);
    if (at == digits || (*digits == '0' && at > digits + 1))
        return NULL;
    if (at < end && *at == '.') {
        *is_integer = false;
        digits = ++at;
        at = skip_digits(at, end);
        if (at == digits)
            return NULL;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        *is_integer = false;
        at++;
        at += at < end && (*at == '+' || *at == '-');
        digits = at;
        at = skip_digits(at, end);
        if (at == digits)
            return NULL;
    }
    return at;
}

static bool parse_number(struct parser *self)
{
    char text[400];
    bool is_integer = true;
    const char *end = number_end(self->at, self->end, &is_integer);
    if (end == NULL)
        return fail(self, "a value is wanted here");
    size_t size = (size_t)(end - self->at);
    if (size >= sizeof text)
        return fail(self, "a number of this many digits");
    memcpy(text, self->at, size);
    text[size] = '\0';
    errno = 0;
    if (!is_integer) {
        double value = parse_double(text);
        if (isinf(value))
            return fail(self, "a number too large for 64 bits");
        sk_put_f64(&self->wire, value);
    } else if (text[0] == '-') {
        sk_put_i64(&self->wire, strtoll(text, NULL, 10));
    } else {
        sk_put_u64(&self->wire, strtoull(text, NULL, 10));
    }
    if (is_integer && errno == ERANGE)
        return fail(self, "an integer too large for 64 bits");
    self->at = end;
    return true;
}

static bool parse_value(struct parser *self, unsigned depth);

static bool parse_members(struct parser *self, unsigned depth, bool is_map)
{
    char closing = is_map ? '}' : ']';
    size_t head_at = begin_head(self);
    uint64_t count = 0;
    self->at++;
    if (depth >= JSON_DEPTH_MAX)
        return fail(self, "nested deeper than 32");
    if (take_char(self, closing))
        return finish_head(self, head_at, 0, false, is_map);
    for (;;) {
        if (is_map && !parse_text(self))
            return false;
        if (is_map && !take_char(self, ':'))
            return fail(self, "a ':' is wanted here");
        if (!parse_value(self, depth + 1))
            return false;
        count++;
        if (take_char(self, closing))
            return finish_head(self, head_at, count, false, is_map);
        if (!take_char(self, ','))
            return fail(self,
                        is_map ? "a ',' or '}' is wanted here" : "a ',' or ']' is wanted here");
    }
}

static bool parse_value(struct parser *self, unsigned depth)
{
    skip_space(self);
    if (self->at >= self->end)
        return fail(self, "the text ends where a value is wanted");
    switch (*self->at) {
    case '{':
    case '[':
        return parse_members(self, depth, *self->at == '{');
    case '"':
        return parse_text(self);
    case 't':
    case 'f': {
        bool value = *self->at == 't';
        if (!take_word(self, value ? "true" : "false"))
            return fail(self, "a value is wanted here");
        sk_put_bool(&self->wire, value);
        return true;
    }
    case 'n':
        if (!take_word(self, "null"))
            return fail(self, "a value is wanted here");
        sk_put_nil(&self->wire);
        return true;
    default:
        return parse_number(self);
    }
}

enum skerry_code skerry_json_to_msgpack(const char *json, size_t size, struct skerry_bytes *out,
                                        struct skerry_error *error)
{
    struct parser parser = {.start = json, .at = json, .end = json + size, .error = error};
    *out = (struct skerry_bytes){0};
    if (parse_value(&parser, 0)) {
        skip_space(&parser);
        if (parser.at != parser.end)
            fail(&parser, "more text after the value");
    }
    if (parser.code == SKERRY_OK && parser.wire.is_broken)
        parser.code =
            sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for %zu bytes of JSON", size);
    if (parser.code != SKERRY_OK) {
        sk_buffer_deinit(&parser.wire);
        return parser.code;
    }
    *out = (struct skerry_bytes){parser.wire.bytes, parser.wire.size};
    return SKERRY_OK;
}

void skerry_bytes_free(struct skerry_bytes *bytes)
{
    if (bytes == NULL)
        return;
    free((void *)(uintptr_t)bytes->bytes);
    *bytes = (struct skerry_bytes){0};
}

/* ---- msgpack to JSON ---- */

static void put(struct sk_buffer *out, const char *text)
{
    sk_buffer_append(out, text, strlen(text));
}

static void write_double(struct sk_buffer *out, double value)
{
    char text[40];
    bool is_single = (double)(float)value == value;
    if (isnan(value) || isinf(value)) {
        put(out, "null"); /* JSON has no word for them; the node lets none in */
        return;
    }
    /* The shortest that reads back as the same: nine digits are enough for float32, 17 for float64.
     */
    for (int digits = is_single ? 6 : 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        for (char *c = text; *c != '\0'; c++)
            if (strchr("+-0123456789eE", *c) == NULL)
                *c = '.';
        double back = parse_double(text);
        if (is_single ? (float)back == (float)value : back == value)
            break;
    }
    put(out, text);
    if (strpbrk(text, ".e") == NULL)
        put(out, ".0"); /* a float stays one when it is read again */
}

static void write_text(struct sk_buffer *out, struct sk_span text)
{
    put(out, "\"");
    for (size_t i = 0; i < text.size;) {
        size_t run = i;
        while (run < text.size && text.bytes[run] >= 0x20 && text.bytes[run] != '"' &&
               text.bytes[run] != '\\' && text.bytes[run] != 0x7f)
            run++;
        sk_buffer_append(out, text.bytes + i, run - i);
        if (run < text.size) {
            char escape[8];
            uint8_t c = text.bytes[run++];
            if (c == '"' || c == '\\')
                snprintf(escape, sizeof escape, "\\%c", c);
            else if (c == '\n')
                snprintf(escape, sizeof escape, "\\n");
            else
                snprintf(escape, sizeof escape, "\\u%04x", c);
            put(out, escape);
        }
        i = run;
    }
    put(out, "\"");
}

static void write_base64(struct sk_buffer *out, struct sk_span bytes)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    put(out, "\"");
    for (size_t i = 0; i < bytes.size; i += 3) {
        size_t left = bytes.size - i;
        unsigned bits = (unsigned)bytes.bytes[i] << 16;
        bits |= left > 1 ? (unsigned)bytes.bytes[i + 1] << 8 : 0;
        bits |= left > 2 ? bytes.bytes[i + 2] : 0;
        char quad[4] = {digits[bits >> 18], digits[bits >> 12 & 63],
                        left > 1 ? digits[bits >> 6 & 63] : '=',
                        left > 2 ? digits[bits & 63] : '='};
        sk_buffer_append(out, quad, sizeof quad);
    }
    put(out, "\"");
}

static void write_vector(struct sk_buffer *out, struct sk_span bytes)
{
    put(out, "[");
    for (size_t i = 0; i + sizeof(float) <= bytes.size; i += sizeof(float)) {
        float value;
        memcpy(&value, bytes.bytes + i, sizeof value);
        if (i > 0)
            put(out, ",");
        write_double(out, (double)value);
    }
    put(out, "]");
}

static bool write_value(struct sk_buffer *out, struct sk_reader *scan, unsigned depth,
                        bool is_vector);

static bool write_members(struct sk_buffer *out, struct sk_reader *scan,
                          const struct sk_value *list, unsigned depth, bool is_vector)
{
    bool is_map = list->kind == SK_VALUE_MAP;
    put(out, is_map ? "{" : "[");
    for (uint32_t i = 0; i < list->count; i++) {
        bool is_vector_inside = is_vector;
        if (i > 0)
            put(out, ",");
        if (is_map) {
            struct sk_value key;
            if (!sk_scan_next(scan, &key) || key.kind != SK_VALUE_TEXT)
                return false;
            write_text(out, key.span);
            put(out, ":");
            is_vector_inside = is_vector || sk_span_is(key.span, "vector");
        }
        if (!write_value(out, scan, depth + 1, is_vector_inside))
            return false;
    }
    put(out, is_map ? "}" : "]");
    return true;
}

static bool write_value(struct sk_buffer *out, struct sk_reader *scan, unsigned depth,
                        bool is_vector)
{
    struct sk_value value;
    char text[32];
    if (depth > JSON_DEPTH_MAX || !sk_scan_next(scan, &value))
        return false;
    switch (value.kind) {
    case SK_VALUE_NIL:
        put(out, "null");
        break;
    case SK_VALUE_BOOL:
        put(out, value.boolean ? "true" : "false");
        break;
    case SK_VALUE_UNSIGNED:
        snprintf(text, sizeof text, "%llu", (unsigned long long)value.u64);
        put(out, text);
        break;
    case SK_VALUE_NEGATIVE:
        snprintf(text, sizeof text, "%lld", (long long)value.i64);
        put(out, text);
        break;
    case SK_VALUE_FLOAT:
        write_double(out, value.f64);
        break;
    case SK_VALUE_TEXT:
        write_text(out, value.span);
        break;
    case SK_VALUE_BIN:
        if (is_vector && value.span.size % sizeof(float) == 0)
            write_vector(out, value.span);
        else
            write_base64(out, value.span);
        break;
    case SK_VALUE_ARRAY:
    case SK_VALUE_MAP:
        return write_members(out, scan, &value, depth, is_vector);
    }
    return true;
}

enum skerry_code skerry_msgpack_to_json(struct skerry_bytes msgpack, char **out,
                                        struct skerry_error *error)
{
    struct sk_buffer text = {0};
    struct sk_reader scan = {msgpack.bytes, (const uint8_t *)msgpack.bytes + msgpack.size};
    *out = NULL;
    bool is_whole = write_value(&text, &scan, 0, false) && scan.at == scan.end;
    sk_buffer_append(&text, "", 1);
    if (is_whole && !text.is_broken) {
        *out = (char *)text.bytes;
        return SKERRY_OK;
    }
    bool is_broken = text.is_broken;
    sk_buffer_deinit(&text);
    return is_broken ? sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the text")
                     : sk_client_fail(error, SKERRY_INVALID,
                                      "these bytes are not one msgpack value that JSON could hold");
}

void skerry_text_free(char **text)
{
    if (text == NULL)
        return;
    free(*text);
    *text = NULL;
}

char *skerry_reply_json(const struct skerry_reply *self)
{
    struct skerry_bytes bytes = skerry_reply_bytes(self);
    struct sk_reader scan = {bytes.bytes, (const uint8_t *)bytes.bytes + bytes.size};
    struct sk_value map, key;
    struct sk_buffer text = {0};
    bool is_whole = bytes.bytes != NULL && sk_scan_next(&scan, &map) && map.kind == SK_VALUE_MAP;
    put(&text, "{");
    for (uint32_t i = 0, written = 0; is_whole && i < map.count; i++) {
        is_whole = sk_scan_next(&scan, &key) && key.kind == SK_VALUE_TEXT;
        if (is_whole && (sk_span_is(key.span, "v") || sk_span_is(key.span, "id") ||
                         sk_span_is(key.span, "ok"))) {
            is_whole = sk_scan_skip(&scan, NULL);
            continue;
        }
        if (!is_whole)
            break;
        put(&text, written++ > 0 ? "," : "");
        write_text(&text, key.span);
        put(&text, ":");
        is_whole = write_value(&text, &scan, 1, sk_span_is(key.span, "vector"));
    }
    put(&text, "}");
    sk_buffer_append(&text, "", 1);
    if (is_whole && !text.is_broken)
        return (char *)text.bytes;
    sk_buffer_deinit(&text);
    return NULL;
}
