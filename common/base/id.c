#include "common/base/id.h"
#include "common/base/utf8.h"

#include <inttypes.h>
#include <xxhash.h>

static const uint8_t dash_at[] = {8, 13, 18, 23};

static int hex_value(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool is_dash_position(size_t at)
{
    for (size_t i = 0; i < sizeof dash_at; i++)
        if (dash_at[i] == at)
            return true;
    return false;
}

static bool parse_uuid(uint8_t out[16], struct sk_span text)
{
    if (text.size != 36)
        return false;
    size_t nibble = 0;
    for (size_t i = 0; i < 36; i++) {
        if (is_dash_position(i)) {
            if (text.bytes[i] != '-')
                return false;
            continue;
        }
        int value = hex_value(text.bytes[i]);
        if (value < 0)
            return false;
        if (nibble % 2 == 0)
            out[nibble / 2] = (uint8_t)(value << 4);
        else
            out[nibble / 2] = (uint8_t)(out[nibble / 2] | value);
        nibble++;
    }
    return true;
}

struct sk_id sk_id_from_u64(uint64_t value)
{
    struct sk_id id = {.size = 9};
    id.bytes[0] = SK_ID_U64;
    for (int i = 0; i < 8; i++)
        id.bytes[1 + i] = (uint8_t)(value >> (56 - 8 * i));
    return id;
}

enum sk_err sk_id_from_string(struct sk_id *out, struct sk_span text, struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    if (text.size == 0)
        return sk_fail(d, SK_ERR_INVALID, "an id is empty, want 1 to 64 bytes");
    if (text.size > SK_ID_STRING_BYTES_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE, "an id has %zu bytes, want 1 to 64", text.size);
    if (!sk_utf8_valid(text))
        return sk_fail(d, SK_ERR_INVALID, "an id is not valid UTF-8");
    uint8_t uuid[16] = {0};
    if (parse_uuid(uuid, text)) {
        out->size = 17;
        out->bytes[0] = SK_ID_UUID;
        memcpy(out->bytes + 1, uuid, 16);
        return SK_ERR_OK;
    }
    out->size = (uint8_t)(1 + text.size);
    out->bytes[0] = SK_ID_STRING;
    memcpy(out->bytes + 1, text.bytes, text.size);
    return SK_ERR_OK;
}

enum sk_err sk_id_from_canonical(struct sk_id *out, struct sk_span bytes, struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    bool is_valid = bytes.size >= 2 && bytes.size <= SK_ID_BYTES_MAX &&
                    ((bytes.bytes[0] == SK_ID_U64 && bytes.size == 9) ||
                     (bytes.bytes[0] == SK_ID_UUID && bytes.size == 17) ||
                     bytes.bytes[0] == SK_ID_STRING);
    if (!is_valid)
        return sk_fail(d, SK_ERR_INVALID, "%zu bytes are not the canonical form of an id",
                       bytes.size);
    out->size = (uint8_t)bytes.size;
    memcpy(out->bytes, bytes.bytes, bytes.size);
    return SK_ERR_OK;
}

enum sk_id_kind sk_id_kind(const struct sk_id *id)
{
    SK_CHECK(id->size >= 2);
    return (enum sk_id_kind)id->bytes[0];
}

uint64_t sk_id_u64(const struct sk_id *id)
{
    SK_CHECK(id->size == 9 && id->bytes[0] == SK_ID_U64);
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | id->bytes[1 + i];
    return value;
}

struct sk_span sk_id_canonical(const struct sk_id *id)
{
    return sk_span_of(id->bytes, id->size);
}

int sk_id_compare(const struct sk_id *a, const struct sk_id *b)
{
    size_t shorter = a->size < b->size ? a->size : b->size;
    int order = memcmp(a->bytes, b->bytes, shorter);
    return order != 0 ? order : (int)a->size - (int)b->size;
}

const char *sk_id_text(const struct sk_id *id, char text[SK_ID_TEXT_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    if (id->size < 2) {
        text[0] = '\0';
        return text;
    }
    switch (sk_id_kind(id)) {
    case SK_ID_U64:
        (void)snprintf(text, SK_ID_TEXT_BYTES, "%" PRIu64, sk_id_u64(id));
        break;
    case SK_ID_UUID: {
        size_t at = 0;
        for (size_t i = 0; i < 16; i++) {
            if (is_dash_position(at))
                text[at++] = '-';
            text[at++] = digits[id->bytes[1 + i] >> 4];
            text[at++] = digits[id->bytes[1 + i] & 15];
        }
        text[at] = '\0';
        break;
    }
    case SK_ID_STRING:
        memcpy(text, id->bytes + 1, (size_t)id->size - 1);
        text[id->size - 1] = '\0';
        break;
    }
    return text;
}

uint32_t sk_id_slot(const struct sk_id *id)
{
    return (uint32_t)(XXH3_64bits(id->bytes, id->size) >> 52);
}
