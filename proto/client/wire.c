#include "proto/client/internal.h"

#include <stdlib.h>

enum { WIRE_FIRST_BYTES = 4096, FRAME_HEAD_FIELDS = 4 };

void sk_wire_deinit(struct sk_wire *self)
{
    free(self->bytes);
    *self = (struct sk_wire){0};
}

uint8_t *sk_wire_grow(struct sk_wire *self, size_t more)
{
    if (self->is_broken)
        return NULL;
    if (more > self->capacity - self->size) {
        size_t capacity = self->capacity == 0 ? WIRE_FIRST_BYTES : self->capacity;
        while (capacity - self->size < more && capacity <= SIZE_MAX / 2)
            capacity *= 2;
        uint8_t *bytes = capacity - self->size < more ? NULL : realloc(self->bytes, capacity);
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

void sk_wire_raw(struct sk_wire *self, const void *bytes, size_t size)
{
    uint8_t *at = sk_wire_grow(self, size);
    if (at != NULL && size > 0)
        memcpy(at, bytes, size);
}

static void put_big_endian(uint8_t *at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
}

static void head(struct sk_wire *self, uint8_t type, uint64_t value, unsigned size)
{
    uint8_t *at = sk_wire_grow(self, 1 + (size_t)size);
    if (at == NULL)
        return;
    at[0] = type;
    put_big_endian(at + 1, value, size);
}

void sk_wire_map(struct sk_wire *self, size_t count)
{
    if (count < 16)
        head(self, (uint8_t)(0x80 | count), 0, 0);
    else if (count <= UINT16_MAX)
        head(self, 0xde, count, 2);
    else if (count <= UINT32_MAX)
        head(self, 0xdf, count, 4);
    else
        self->is_broken = true;
}

void sk_wire_array(struct sk_wire *self, size_t count)
{
    if (count < 16)
        head(self, (uint8_t)(0x90 | count), 0, 0);
    else if (count <= UINT16_MAX)
        head(self, 0xdc, count, 2);
    else if (count <= UINT32_MAX)
        head(self, 0xdd, count, 4);
    else
        self->is_broken = true;
}

void sk_wire_text_of(struct sk_wire *self, const void *text, size_t size)
{
    if (size < 32)
        head(self, (uint8_t)(0xa0 | size), 0, 0);
    else if (size <= UINT8_MAX)
        head(self, 0xd9, size, 1);
    else if (size <= UINT16_MAX)
        head(self, 0xda, size, 2);
    else if (size <= UINT32_MAX)
        head(self, 0xdb, size, 4);
    else
        self->is_broken = true;
    sk_wire_raw(self, text, size);
}

void sk_wire_text(struct sk_wire *self, const char *text)
{
    sk_wire_text_of(self, text, strlen(text));
}

void sk_wire_bin(struct sk_wire *self, const void *bytes, size_t size)
{
    if (size <= UINT8_MAX)
        head(self, 0xc4, size, 1);
    else if (size <= UINT16_MAX)
        head(self, 0xc5, size, 2);
    else if (size <= UINT32_MAX)
        head(self, 0xc6, size, 4);
    else
        self->is_broken = true;
    sk_wire_raw(self, bytes, size);
}

void sk_wire_u64(struct sk_wire *self, uint64_t value)
{
    if (value < 128)
        head(self, (uint8_t)value, 0, 0);
    else if (value <= UINT8_MAX)
        head(self, 0xcc, value, 1);
    else if (value <= UINT16_MAX)
        head(self, 0xcd, value, 2);
    else if (value <= UINT32_MAX)
        head(self, 0xce, value, 4);
    else
        head(self, 0xcf, value, 8);
}

void sk_wire_i64(struct sk_wire *self, int64_t value)
{
    if (value >= 0)
        sk_wire_u64(self, (uint64_t)value);
    else if (value >= -32)
        head(self, (uint8_t)value, 0, 0);
    else if (value >= INT8_MIN)
        head(self, 0xd0, (uint8_t)value, 1);
    else if (value >= INT16_MIN)
        head(self, 0xd1, (uint16_t)value, 2);
    else if (value >= INT32_MIN)
        head(self, 0xd2, (uint32_t)value, 4);
    else
        head(self, 0xd3, (uint64_t)value, 8);
}

void sk_wire_double(struct sk_wire *self, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    head(self, 0xcb, bits, 8);
}

void sk_wire_float(struct sk_wire *self, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    head(self, 0xca, bits, 4);
}

void sk_wire_bool(struct sk_wire *self, bool value)
{
    head(self, value ? 0xc3 : 0xc2, 0, 0);
}

void sk_wire_nil(struct sk_wire *self)
{
    head(self, 0xc0, 0, 0);
}

void sk_frame_begin(struct sk_frame *self, const char *op)
{
    *self = (struct sk_frame){0};
    head(&self->wire, 0xde, FRAME_HEAD_FIELDS, 2);
    sk_wire_text(&self->wire, "v");
    sk_wire_u64(&self->wire, 1);
    sk_wire_text(&self->wire, "op");
    sk_wire_text(&self->wire, op);
    sk_wire_text(&self->wire, "id");
    self->id_at = self->wire.size + 1;
    head(&self->wire, 0xcf, 0, 8);
    sk_wire_text(&self->wire, "deadline_ms");
    self->deadline_at = self->wire.size + 1;
    head(&self->wire, 0xce, 0, 4);
}

void sk_frame_deinit(struct sk_frame *self)
{
    sk_wire_deinit(&self->wire);
}

void sk_frame_key(struct sk_frame *self, const char *name)
{
    self->field_count++;
    sk_wire_text(&self->wire, name);
}

enum skerry_code sk_frame_fields(struct sk_frame *self, struct skerry_bytes map,
                                 struct skerry_error *error)
{
    if (map.bytes == NULL)
        return SKERRY_OK;
    const uint8_t *bytes = map.bytes;
    struct sk_scan scan = {bytes, bytes + map.size};
    struct sk_scan whole = scan;
    struct sk_scan_value value;
    if (!sk_scan_skip(&whole, NULL) || whole.at != whole.end || !sk_scan_next(&scan, &value) ||
        value.kind != SK_SCAN_MAP)
        return sk_client_fail(
            error, SKERRY_INVALID,
            "the fields of a request are one msgpack map, and these bytes are not");
    self->field_count += value.count;
    sk_wire_raw(&self->wire, scan.at, (size_t)(scan.end - scan.at));
    return SKERRY_OK;
}
