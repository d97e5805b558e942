#include "tests/sim/wire.h"

#include <stdio.h>
#include <string.h>

void wire_text(msgpack_packer *to, const char *text)
{
    size_t size = strlen(text);
    msgpack_pack_str(to, size);
    msgpack_pack_str_body(to, text, size);
}

void wire_begin(msgpack_packer *to, const char *op, uint64_t id, uint32_t deadline_ms,
                const char *collection, unsigned more)
{
    msgpack_pack_map(to, (collection != NULL ? 5 : 4) + more);
    wire_text(to, "v");
    msgpack_pack_uint8(to, 1);
    wire_text(to, "op");
    wire_text(to, op);
    wire_text(to, "id");
    msgpack_pack_uint64(to, id);
    wire_text(to, "deadline_ms");
    msgpack_pack_uint32(to, deadline_ms);
    if (collection == NULL)
        return;
    wire_text(to, "collection");
    wire_text(to, collection);
}

bool wire_is(const msgpack_object *value, const char *text)
{
    return value != NULL && value->type == MSGPACK_OBJECT_STR &&
           value->via.str.size == strlen(text) &&
           memcmp(value->via.str.ptr, text, value->via.str.size) == 0;
}

const msgpack_object *wire_member(const msgpack_object *map, const char *name)
{
    if (map == NULL || map->type != MSGPACK_OBJECT_MAP)
        return NULL;
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        if (wire_is(&map->via.map.ptr[i].key, name))
            return &map->via.map.ptr[i].val;
    }
    return NULL;
}

bool wire_reply_decode(struct wire_reply *out, const uint8_t *bytes, size_t size)
{
    memset(out, 0, sizeof(*out));
    msgpack_unpacked_init(&out->unpacked);
    size_t at = 0;
    if (msgpack_unpack_next(&out->unpacked, (const char *)bytes, size, &at) !=
            MSGPACK_UNPACK_SUCCESS ||
        at != size)
        return false;
    const msgpack_object *map = &out->unpacked.data;
    const msgpack_object *v = wire_member(map, "v"), *id = wire_member(map, "id"),
                         *ok = wire_member(map, "ok");
    if (v == NULL || v->type != MSGPACK_OBJECT_POSITIVE_INTEGER || v->via.u64 != 1 || id == NULL ||
        ok == NULL || ok->type != MSGPACK_OBJECT_BOOLEAN)
        return false;
    out->id = id->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? id->via.u64 : 0;
    out->is_ok = ok->via.boolean;
    if (out->is_ok)
        return true;
    const msgpack_object *error = wire_member(map, "error");
    const msgpack_object *code = wire_member(error, "code"),
                         *message = wire_member(error, "message");
    if (code == NULL || code->type != MSGPACK_OBJECT_POSITIVE_INTEGER || message == NULL ||
        message->type != MSGPACK_OBJECT_STR)
        return false;
    out->code = (unsigned)code->via.u64;
    snprintf(out->message, sizeof(out->message), "%.*s", (int)message->via.str.size,
             message->via.str.ptr);
    return true;
}

void wire_reply_end(struct wire_reply *reply)
{
    msgpack_unpacked_destroy(&reply->unpacked);
}
