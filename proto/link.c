#include "proto/link.h"

static void put(uint8_t *at, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, size_t size)
{
    uint64_t value = 0;
    for (size_t i = size; i > 0; i--)
        value = value << 8 | at[i - 1];
    return value;
}

/* offset: 0 magic 4, 4 kind 1, 5 status 1, 6 role 1, 7 flags 1, 8 shard 2, 10 worker 2, 12 deadline
 * 4, 16 request 8, 24 schema_version 4, 28 zero 4, 32 collection 16, 48 incarnation 8, 56 sequence
 * 8, 64 map_version 8, 72 zero 8 */
void sk_link_header_encode(uint8_t out[SK_LINK_HEADER_BYTES], const struct sk_link_header *header)
{
    memset(out, 0, SK_LINK_HEADER_BYTES);
    put(out, SK_LINK_MAGIC, 4);
    put(out + 4, header->kind, 1);
    put(out + 5, header->status, 1);
    put(out + 6, header->role, 1);
    put(out + 7, header->is_part ? 1 : 0, 1);
    put(out + 8, header->shard, 2);
    put(out + 10, header->worker, 2);
    put(out + 12, header->deadline_ms, 4);
    put(out + 16, header->request, 8);
    put(out + 24, header->schema_version, 4);
    memcpy(out + 32, header->collection, 16);
    put(out + 48, header->incarnation, 8);
    put(out + 56, header->sequence, 8);
    put(out + 64, header->map_version, 8);
}

enum sk_err sk_link_decode(struct sk_link_header *out, struct sk_span *body, struct sk_span bytes,
                           struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    *body = (struct sk_span){0};
    if (bytes.size < SK_LINK_HEADER_BYTES)
        return sk_fail(d, SK_ERR_INVALID, "a link message has %zu bytes, want at least %d",
                       bytes.size, SK_LINK_HEADER_BYTES);
    const uint8_t *at = bytes.bytes;
    if (get(at, 4) != SK_LINK_MAGIC)
        return sk_fail(d, SK_ERR_VERSION, "a link message begins with %08llx, want %08x",
                       (unsigned long long)get(at, 4), SK_LINK_MAGIC);
    uint8_t kind = at[4];
    if (kind < SK_LINK_REQUEST || kind > SK_LINK_GOODBYE)
        return sk_fail(d, SK_ERR_INVALID, "no kind %u of link message", kind);
    if (at[5] > SK_ERR_INTERNAL || at[6] > SK_ROLE_LINK || at[7] > 1)
        return sk_fail(d, SK_ERR_INVALID, "status, role or flags of a link message out of range");
    out->kind = (enum sk_link_kind)kind;
    out->status = (enum sk_err)at[5];
    out->role = (enum sk_role)at[6];
    out->is_part = at[7] == 1;
    out->shard = (uint16_t)get(at + 8, 2);
    out->worker = (uint16_t)get(at + 10, 2);
    out->deadline_ms = (uint32_t)get(at + 12, 4);
    out->request = get(at + 16, 8);
    out->schema_version = (uint32_t)get(at + 24, 4);
    memcpy(out->collection, at + 32, 16);
    out->incarnation = get(at + 48, 8);
    out->sequence = get(at + 56, 8);
    out->map_version = get(at + 64, 8);
    *body = sk_span_of(at + SK_LINK_HEADER_BYTES, bytes.size - SK_LINK_HEADER_BYTES);
    return SK_ERR_OK;
}
