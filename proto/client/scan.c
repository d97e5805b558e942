#include "proto/client/internal.h"

enum { SCAN_DEPTH_MAX = 64 };

static uint64_t big_endian(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

static bool take(struct sk_scan *self, unsigned size, uint64_t *out)
{
    if ((size_t)(self->end - self->at) < size)
        return false;
    *out = big_endian(self->at, size);
    self->at += size;
    return true;
}

static bool take_bytes(struct sk_scan *self, uint64_t size, struct sk_scan_value *out)
{
    if ((uint64_t)(self->end - self->at) < size)
        return false;
    out->bytes = sk_span_of(self->at, (size_t)size);
    self->at += size;
    return true;
}

/* Every member takes at least a byte: a count over what is left is a lie, whoever tells it. */
static bool take_count(struct sk_scan *self, uint64_t count, unsigned bytes_each,
                       struct sk_scan_value *out)
{
    if (count * bytes_each > (uint64_t)(self->end - self->at))
        return false;
    out->count = (uint32_t)count;
    return true;
}

static void set_signed(struct sk_scan_value *out, int64_t value)
{
    out->kind = value < 0 ? SK_SCAN_NEGATIVE : SK_SCAN_UNSIGNED;
    out->as_i64 = value;
}

static bool next_number(struct sk_scan *self, uint8_t type, struct sk_scan_value *out)
{
    uint64_t bits = 0;
    if (type >= 0xcc && type <= 0xcf) {
        out->kind = SK_SCAN_UNSIGNED;
        return take(self, 1U << (type - 0xcc), &out->as_u64);
    }
    if (!take(self, type == 0xca ? 4 : type == 0xcb ? 8 : 1U << (type - 0xd0), &bits))
        return false;
    if (type == 0xca) {
        uint32_t bits32 = (uint32_t)bits;
        float value;
        memcpy(&value, &bits32, sizeof value);
        out->kind = SK_SCAN_FLOAT;
        out->as_double = (double)value;
    } else if (type == 0xcb) {
        out->kind = SK_SCAN_FLOAT;
        memcpy(&out->as_double, &bits, sizeof out->as_double);
    } else {
        set_signed(out, type == 0xd0   ? (int8_t)bits
                        : type == 0xd1 ? (int16_t)bits
                        : type == 0xd2 ? (int32_t)bits
                                       : (int64_t)bits);
    }
    return true;
}

static bool next_long(struct sk_scan *self, uint8_t type, struct sk_scan_value *out)
{
    uint64_t size = 0;
    switch (type) {
    case 0xc4:
    case 0xc5:
    case 0xc6:
        out->kind = SK_SCAN_BIN;
        return take(self, 1U << (type - 0xc4), &size) && take_bytes(self, size, out);
    case 0xd9:
    case 0xda:
    case 0xdb:
        out->kind = SK_SCAN_TEXT;
        return take(self, 1U << (type - 0xd9), &size) && take_bytes(self, size, out);
    case 0xdc:
    case 0xdd:
        out->kind = SK_SCAN_ARRAY;
        return take(self, type == 0xdc ? 2 : 4, &size) && take_count(self, size, 1, out);
    case 0xde:
    case 0xdf:
        out->kind = SK_SCAN_MAP;
        return take(self, type == 0xde ? 2 : 4, &size) && take_count(self, size, 2, out);
    case 0xca:
    case 0xcb:
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return next_number(self, type, out);
    default: /* extension types and the byte that is never used */
        return false;
    }
}

bool sk_scan_next(struct sk_scan *self, struct sk_scan_value *out)
{
    if (self->at >= self->end)
        return false;
    uint8_t type = *self->at++;
    if (type < 0x80 || type >= 0xe0) {
        set_signed(out, type < 0x80 ? type : (int8_t)type);
        return true;
    }
    if (type < 0x90) {
        out->kind = SK_SCAN_MAP;
        return take_count(self, type & 15U, 2, out);
    }
    if (type < 0xa0) {
        out->kind = SK_SCAN_ARRAY;
        return take_count(self, type & 15U, 1, out);
    }
    if (type < 0xc0) {
        out->kind = SK_SCAN_TEXT;
        return take_bytes(self, type & 31U, out);
    }
    if (type == 0xc0) {
        out->kind = SK_SCAN_NIL;
        return true;
    }
    if (type == 0xc2 || type == 0xc3) {
        out->kind = SK_SCAN_BOOL;
        out->as_bool = type == 0xc3;
        return true;
    }
    return next_long(self, type, out);
}

static bool skip(struct sk_scan *self, unsigned depth)
{
    struct sk_scan_value value;
    if (depth > SCAN_DEPTH_MAX || !sk_scan_next(self, &value))
        return false;
    uint64_t members = value.kind == SK_SCAN_ARRAY ? value.count
                       : value.kind == SK_SCAN_MAP ? 2 * (uint64_t)value.count
                                                   : 0;
    for (uint64_t i = 0; i < members; i++)
        if (!skip(self, depth + 1))
            return false;
    return true;
}

bool sk_scan_skip(struct sk_scan *self, struct sk_span *out)
{
    const uint8_t *start = self->at;
    if (!skip(self, 0))
        return false;
    if (out != NULL)
        *out = sk_span_of(start, (size_t)(self->at - start));
    return true;
}
