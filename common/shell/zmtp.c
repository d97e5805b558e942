#include "common/shell/zmtp.h"

enum { FLAG_MORE = 1, FLAG_LONG = 2, FLAG_COMMAND = 4, PING_CONTEXT_BYTES_MAX = 16 };

static const char signature[10] = "\xff\0\0\0\0\0\0\0\1\x7f";

void sk_zmtp_greeting(uint8_t out[SK_ZMTP_GREETING_BYTES])
{
    memset(out, 0, SK_ZMTP_GREETING_BYTES);
    memcpy(out, signature, sizeof signature);
    out[10] = 3;
    out[11] = 1;
    memcpy(out + 12, "NULL", 4);
}

bool sk_zmtp_greeting_check(const uint8_t *in, size_t size)
{
    static const uint8_t mechanism[20] = "NULL";
    /* the eight bytes between the ends of the signature may be anything */
    if ((size > 0 && in[0] != 0xff) || (size > 9 && in[9] != 0x7f) || (size > 10 && in[10] < 3))
        return false;
    if (size < 32)
        return true;
    return memcmp(in + 12, mechanism, sizeof mechanism) == 0;
}

static size_t put_property(uint8_t *out, const char *name, struct sk_span value)
{
    size_t name_size = strlen(name), at = 0;
    out[at++] = (uint8_t)name_size;
    memcpy(out + at, name, name_size);
    at += name_size;
    memset(out + at, 0, 3);
    out[at + 3] = (uint8_t)value.size;
    at += 4;
    if (value.size != 0)
        memcpy(out + at, value.bytes, value.size);
    return at + value.size;
}

size_t sk_zmtp_ready(uint8_t out[SK_ZMTP_READY_BYTES_MAX], const char *socket_type,
                     struct sk_span identity)
{
    uint8_t body[SK_ZMTP_READY_BYTES_MAX];
    SK_CHECK(identity.size <= SK_ZMTP_IDENTITY_BYTES_MAX && strlen(socket_type) < 16);
    memcpy(body, "\5READY", 6);
    size_t size = 6 + put_property(body + 6, "Socket-Type", sk_span_text(socket_type));
    size += put_property(body + size, "Identity", identity);
    size_t head = sk_zmtp_head(out, size, false, true);
    memcpy(out + head, body, size);
    return head + size;
}

static uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Names of properties are compared without case. */
static bool is_name(struct sk_span name, const char *wanted)
{
    if (name.size != strlen(wanted))
        return false;
    for (size_t i = 0; i < name.size; i++) {
        uint8_t a = name.bytes[i], b = (uint8_t)wanted[i];
        a = a >= 'A' && a <= 'Z' ? (uint8_t)(a + 32) : a;
        b = b >= 'A' && b <= 'Z' ? (uint8_t)(b + 32) : b;
        if (a != b)
            return false;
    }
    return true;
}

static bool may_talk(struct sk_span type, const char *own_type)
{
    if (strcmp(own_type, "ROUTER") == 0)
        return sk_span_is(type, "DEALER") || sk_span_is(type, "REQ") || sk_span_is(type, "ROUTER");
    return sk_span_is(type, "ROUTER") || sk_span_is(type, "REP") || sk_span_is(type, "DEALER");
}

bool sk_zmtp_ready_read(struct sk_span command, const char *own_type, struct sk_span *identity)
{
    const uint8_t *at = command.bytes, *end = command.bytes + command.size;
    bool has_type = false;
    *identity = (struct sk_span){0};
    if (command.size < 6 || memcmp(at, "\5READY", 6) != 0)
        return false;
    at += 6;
    while (at < end) {
        size_t name_size = *at++;
        if (name_size == 0 || (size_t)(end - at) < name_size + 4)
            return false;
        struct sk_span name = sk_span_of(at, name_size);
        at += name_size;
        uint32_t value_size = get_u32(at);
        at += 4;
        if (value_size > (size_t)(end - at))
            return false;
        struct sk_span value = sk_span_of(at, value_size);
        at += value_size;
        if (is_name(name, "Socket-Type")) {
            if (!may_talk(value, own_type))
                return false;
            has_type = true;
        } else if (is_name(name, "Identity")) {
            if (value.size > SK_ZMTP_IDENTITY_BYTES_MAX)
                return false;
            *identity = value;
        }
    }
    return has_type;
}

int sk_zmtp_head_read(struct sk_zmtp_frame *out, const uint8_t *in, size_t size)
{
    if (size < 2)
        return 0;
    uint8_t flags = in[0];
    if ((flags & ~(FLAG_MORE | FLAG_LONG | FLAG_COMMAND)) != 0 ||
        (flags & (FLAG_MORE | FLAG_COMMAND)) == (FLAG_MORE | FLAG_COMMAND))
        return -1;
    out->has_more = (flags & FLAG_MORE) != 0;
    out->is_command = (flags & FLAG_COMMAND) != 0;
    if ((flags & FLAG_LONG) == 0) {
        out->head_bytes = 2;
        out->size = in[1];
        return 1;
    }
    if (size < SK_ZMTP_HEAD_BYTES_MAX)
        return 0;
    out->head_bytes = SK_ZMTP_HEAD_BYTES_MAX;
    out->size = (uint64_t)get_u32(in + 1) << 32 | get_u32(in + 5);
    return out->size > INT64_MAX ? -1 : 1;
}

size_t sk_zmtp_head(uint8_t out[SK_ZMTP_HEAD_BYTES_MAX], uint64_t size, bool has_more,
                    bool is_command)
{
    out[0] = (uint8_t)((has_more ? FLAG_MORE : 0) | (is_command ? FLAG_COMMAND : 0));
    if (size <= 255) {
        out[1] = (uint8_t)size;
        return 2;
    }
    out[0] |= FLAG_LONG;
    for (unsigned i = 0; i < 8; i++)
        out[1 + i] = (uint8_t)(size >> (56 - 8 * i));
    return SK_ZMTP_HEAD_BYTES_MAX;
}

size_t sk_zmtp_pong(uint8_t out[64], struct sk_span command)
{
    if (command.size < 7 || memcmp(command.bytes, "\4PING", 5) != 0)
        return 0;
    size_t context = command.size - 7; /* behind the ttl of two bytes */
    if (context > PING_CONTEXT_BYTES_MAX)
        context = PING_CONTEXT_BYTES_MAX;
    size_t head = sk_zmtp_head(out, 5 + context, false, true);
    memcpy(out + head, "\4PONG", 5);
    memcpy(out + head + 5, command.bytes + 7, context);
    return head + 5 + context;
}
