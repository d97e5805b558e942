#include "proto/client/internal.h"

/* Room of fixed width for a number that is known when the frame is sent; returns where it goes. */
static size_t put_room(struct sk_buffer *wire, uint8_t type, unsigned size)
{
    uint8_t *at = sk_buffer_grow(wire, 1 + (size_t)size);
    if (at == NULL)
        return 0;
    memset(at, 0, 1 + (size_t)size);
    at[0] = type;
    return wire->size - size;
}

void sk_frame_begin(struct sk_frame *self, const char *op)
{
    *self = (struct sk_frame){0};
    (void)put_room(&self->wire, 0xde, 2); /* a map of as many as there will be */
    sk_put_text(&self->wire, "v");
    sk_put_u64(&self->wire, 1);
    sk_put_text(&self->wire, "op");
    sk_put_text(&self->wire, op);
    sk_put_text(&self->wire, "id");
    self->id_at = put_room(&self->wire, 0xcf, 8);
    sk_put_text(&self->wire, "deadline_ms");
    self->deadline_at = put_room(&self->wire, 0xce, 4);
}

void sk_frame_deinit(struct sk_frame *self)
{
    sk_buffer_deinit(&self->wire);
}

void sk_frame_key(struct sk_frame *self, const char *name)
{
    self->field_count++;
    sk_put_text(&self->wire, name);
}

enum skerry_code sk_frame_fields(struct sk_frame *self, struct skerry_bytes map,
                                 struct skerry_error *error)
{
    if (map.bytes == NULL)
        return SKERRY_OK;
    const uint8_t *bytes = map.bytes;
    struct sk_reader scan = {bytes, bytes + map.size};
    struct sk_reader whole = scan;
    struct sk_value value;
    if (!sk_scan_skip(&whole, NULL) || whole.at != whole.end || !sk_scan_next(&scan, &value) ||
        value.kind != SK_VALUE_MAP)
        return sk_client_fail(
            error, SKERRY_INVALID,
            "the fields of a request are one msgpack map, and these bytes are not");
    self->field_count += value.count;
    sk_buffer_append(&self->wire, scan.at, (size_t)(scan.end - scan.at));
    return SKERRY_OK;
}
