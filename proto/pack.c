#include "proto/pack.h"

#include <msgpack.h>

/* ---- buffer ---- */

void sk_buffer_deinit(struct sk_buffer *self)
{
    free(self->bytes);
    memset(self, 0, sizeof *self);
}

void sk_buffer_clear(struct sk_buffer *self)
{
    self->size = 0;
    self->is_broken = false;
}

uint8_t *sk_buffer_grow(struct sk_buffer *self, size_t more)
{
    if (self->is_broken)
        return NULL;
    if (more > self->capacity - self->size) {
        if (more > SIZE_MAX / 4 - self->size) {
            self->is_broken = true;
            return NULL;
        }
        size_t capacity = self->capacity < 128 ? 256 : self->capacity * 2;
        if (capacity < self->size + more)
            capacity = self->size + more;
        uint8_t *bytes = realloc(self->bytes, capacity);
        if (bytes == NULL) {
            self->is_broken = true;
            return NULL;
        }
        self->bytes = bytes;
        self->capacity = capacity;
    }
    uint8_t *at = self->bytes + self->size;
    self->size += more;
    return at;
}

void sk_buffer_append(struct sk_buffer *self, const void *bytes, size_t size)
{
    if (size == 0)
        return;
    uint8_t *at = sk_buffer_grow(self, size);
    if (at != NULL)
        memcpy(at, bytes, size);
}

enum sk_err sk_buffer_check(const struct sk_buffer *self, struct sk_diag *d)
{
    if (self->is_broken)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a message of %zu bytes", self->size);
    return SK_ERR_OK;
}

/* ---- writing ---- */

static int write_bytes(void *data, const char *bytes, size_t size)
{
    struct sk_buffer *to = data;
    sk_buffer_append(to, bytes, size);
    return to->is_broken ? -1 : 0;
}

static msgpack_packer packer_of(struct sk_buffer *to)
{
    msgpack_packer packer;
    msgpack_packer_init(&packer, to, write_bytes);
    return packer;
}

void sk_put_nil(struct sk_buffer *to)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_nil(&packer);
}

void sk_put_bool(struct sk_buffer *to, bool value)
{
    msgpack_packer packer = packer_of(to);
    (void)(value ? msgpack_pack_true(&packer) : msgpack_pack_false(&packer));
}

void sk_put_u64(struct sk_buffer *to, uint64_t value)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_uint64(&packer, value);
}

void sk_put_i64(struct sk_buffer *to, int64_t value)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_int64(&packer, value);
}

void sk_put_f32(struct sk_buffer *to, float value)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_float(&packer, value);
}

void sk_put_f64(struct sk_buffer *to, double value)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_double(&packer, value);
}

void sk_put_text_of(struct sk_buffer *to, struct sk_span text)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_str(&packer, text.size);
    sk_buffer_append(to, text.bytes, text.size);
}

void sk_put_text(struct sk_buffer *to, const char *text)
{
    sk_put_text_of(to, sk_span_text(text));
}

void sk_put_bin_head(struct sk_buffer *to, size_t size)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_bin(&packer, size);
}

void sk_put_bin(struct sk_buffer *to, const void *bytes, size_t size)
{
    sk_put_bin_head(to, size);
    sk_buffer_append(to, bytes, size);
}

void sk_put_array(struct sk_buffer *to, size_t count)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_array(&packer, count);
}

void sk_put_map(struct sk_buffer *to, size_t count)
{
    msgpack_packer packer = packer_of(to);
    (void)msgpack_pack_map(&packer, count);
}

void sk_put_raw(struct sk_buffer *to, struct sk_span packed)
{
    sk_buffer_append(to, packed.bytes, packed.size);
}

static size_t put_open(struct sk_buffer *to, uint8_t tag)
{
    size_t at = to->size;
    uint8_t *bytes = sk_buffer_grow(to, 5);
    if (bytes != NULL) {
        memset(bytes, 0, 5);
        bytes[0] = tag;
    }
    return at;
}

size_t sk_put_map_open(struct sk_buffer *to)
{
    return put_open(to, 0xDF);
}

size_t sk_put_array_open(struct sk_buffer *to)
{
    return put_open(to, 0xDD);
}

void sk_put_count_at(struct sk_buffer *to, size_t at, uint32_t count)
{
    if (to->is_broken)
        return;
    SK_CHECK(at + 5 <= to->size);
    for (unsigned i = 0; i < 4; i++)
        to->bytes[at + 1 + i] = (uint8_t)(count >> (24 - 8 * i));
}

/* ---- reading ---- */

const char *sk_value_kind_name(enum sk_value_kind kind)
{
    static const char *const names[] = {"nil",      "a bool", "an integer", "a negative integer",
                                        "a number", "text",   "bin",        "an array",
                                        "a map"};
    return names[kind];
}

static uint64_t big_endian(const uint8_t *at, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

static enum sk_err cut(struct sk_diag *d)
{
    return sk_fail(d, SK_ERR_INVALID, "the message is cut short inside a value");
}

static enum sk_err read_run(struct sk_reader *self, struct sk_value *out, enum sk_value_kind kind,
                            uint64_t size, struct sk_diag *d)
{
    if (size > sk_reader_left(self))
        return cut(d);
    out->kind = kind;
    out->span = sk_span_of(self->at, (size_t)size);
    self->at += size;
    return SK_ERR_OK;
}

static enum sk_err read_many(struct sk_reader *self, struct sk_value *out, enum sk_value_kind kind,
                             uint64_t count, struct sk_diag *d)
{
    size_t least = kind == SK_VALUE_MAP ? 2 : 1; /* bytes of the smallest member */
    if (count > sk_reader_left(self) / least)
        return sk_fail(d, SK_ERR_INVALID, "%s claims %llu members, more than there are bytes",
                       sk_value_kind_name(kind), (unsigned long long)count);
    out->kind = kind;
    out->count = (uint32_t)count;
    return SK_ERR_OK;
}

static void set_signed(struct sk_value *out, int64_t value)
{
    if (value >= 0) {
        out->kind = SK_VALUE_UNSIGNED;
        out->u64 = (uint64_t)value;
    } else {
        out->kind = SK_VALUE_NEGATIVE;
        out->i64 = value;
    }
}

static void set_float(struct sk_value *out, uint64_t bits, size_t size)
{
    out->kind = SK_VALUE_FLOAT;
    if (size == 4) {
        uint32_t half = (uint32_t)bits;
        float value;
        memcpy(&value, &half, sizeof value);
        out->f64 = (double)value;
    } else {
        memcpy(&out->f64, &bits, sizeof out->f64);
    }
}

/* The forms whose head has a length or number of 1, 2, 4 or 8 bytes behind the tag. */
static enum sk_err read_wide(struct sk_reader *self, uint8_t tag, struct sk_value *out,
                             struct sk_diag *d)
{
    static const uint8_t sizes[] = {/* c4 */ 1, 2, 4,          0,          0,          0,
                                    /* ca */ 4, 8, /* cc */ 1, 2,          4,          8,
                                    /* d0 */ 1, 2, 4,          8,          /* d4 */ 0, 0,
                                    0,          0, 0,          /* d9 */ 1, 2,          4,
                                    /* dc */ 2, 4, /* de */ 2, 4};
    size_t size = tag >= 0xC4 ? sizes[tag - 0xC4] : 0;
    if (size == 0)
        return sk_fail(d, SK_ERR_INVALID, "byte 0x%02x begins no value that is allowed here", tag);
    if (size > sk_reader_left(self))
        return cut(d);
    uint64_t bits = big_endian(self->at, size);
    self->at += size;
    if (tag <= 0xC6)
        return read_run(self, out, SK_VALUE_BIN, bits, d);
    if (tag <= 0xCB) {
        set_float(out, bits, size);
    } else if (tag <= 0xCF) {
        out->kind = SK_VALUE_UNSIGNED;
        out->u64 = bits;
    } else if (tag <= 0xD3) {
        unsigned shift = (unsigned)(64 - 8 * size);
        set_signed(out, (int64_t)(bits << shift) >> shift);
    } else if (tag <= 0xDB) {
        return read_run(self, out, SK_VALUE_TEXT, bits, d);
    } else {
        return read_many(self, out, tag <= 0xDD ? SK_VALUE_ARRAY : SK_VALUE_MAP, bits, d);
    }
    return SK_ERR_OK;
}

enum sk_err sk_read(struct sk_reader *self, struct sk_value *out, struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    if (self->at == self->end)
        return cut(d);
    uint8_t tag = *self->at++;
    if (tag <= 0x7F) {
        out->kind = SK_VALUE_UNSIGNED;
        out->u64 = tag;
    } else if (tag >= 0xE0) {
        set_signed(out, (int8_t)tag);
    } else if (tag <= 0x8F) {
        return read_many(self, out, SK_VALUE_MAP, tag & 0x0FU, d);
    } else if (tag <= 0x9F) {
        return read_many(self, out, SK_VALUE_ARRAY, tag & 0x0FU, d);
    } else if (tag <= 0xBF) {
        return read_run(self, out, SK_VALUE_TEXT, tag & 0x1FU, d);
    } else if (tag == 0xC0) {
        out->kind = SK_VALUE_NIL;
    } else if (tag == 0xC2 || tag == 0xC3) {
        out->kind = SK_VALUE_BOOL;
        out->boolean = tag == 0xC3;
    } else {
        return read_wide(self, tag, out, d);
    }
    return SK_ERR_OK;
}

enum sk_err sk_read_key(struct sk_reader *self, struct sk_span *out, struct sk_diag *d)
{
    struct sk_value value;
    enum sk_err err = sk_read(self, &value, d);
    *out = (struct sk_span){0};
    if (err == SK_ERR_OK && value.kind == SK_VALUE_TEXT)
        *out = value.span;
    else if (err == SK_ERR_OK)
        err = sk_fail(d, SK_ERR_INVALID, "a key of a map is %s, want text",
                      sk_value_kind_name(value.kind));
    return err;
}

enum sk_err sk_skip(struct sk_reader *self, unsigned depth, struct sk_diag *d)
{
    uint64_t left[SK_PACK_DEPTH_MAX + 1];
    unsigned level = 0;
    if (depth > SK_PACK_DEPTH_MAX)
        depth = SK_PACK_DEPTH_MAX;
    left[0] = 1;
    for (;;) {
        while (left[level] == 0) {
            if (level == 0)
                return SK_ERR_OK;
            level--;
        }
        left[level]--;
        struct sk_value value;
        enum sk_err err = sk_read(self, &value, d);
        if (err != SK_ERR_OK)
            return err;
        if (value.kind != SK_VALUE_ARRAY && value.kind != SK_VALUE_MAP)
            continue;
        if (level >= depth)
            return sk_fail(d, SK_ERR_INVALID, "values are nested more than %u deep", depth);
        left[++level] = value.kind == SK_VALUE_MAP ? 2 * (uint64_t)value.count : value.count;
    }
}

enum sk_err sk_read_raw(struct sk_reader *self, unsigned depth, struct sk_span *out,
                        struct sk_diag *d)
{
    const uint8_t *from = self->at;
    enum sk_err err = sk_skip(self, depth, d);
    *out = err == SK_ERR_OK ? sk_span_of(from, (size_t)(self->at - from)) : (struct sk_span){0};
    return err;
}

enum sk_err sk_read_end(const struct sk_reader *self, struct sk_diag *d)
{
    if (self->at != self->end)
        return sk_fail(d, SK_ERR_INVALID, "%zu bytes follow the end of the message",
                       sk_reader_left(self));
    return SK_ERR_OK;
}

bool sk_value_number(const struct sk_value *value, double *out)
{
    switch (value->kind) {
    case SK_VALUE_UNSIGNED:
        *out = (double)value->u64;
        return true;
    case SK_VALUE_NEGATIVE:
        *out = (double)value->i64;
        return true;
    case SK_VALUE_FLOAT:
        *out = value->f64;
        return true;
    default:
        return false;
    }
}

bool sk_value_i64(const struct sk_value *value, int64_t *out)
{
    if (value->kind == SK_VALUE_NEGATIVE) {
        *out = value->i64;
        return true;
    }
    if (value->kind == SK_VALUE_UNSIGNED && value->u64 <= INT64_MAX) {
        *out = (int64_t)value->u64;
        return true;
    }
    return false;
}
