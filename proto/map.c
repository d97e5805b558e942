#include "proto/map.h"
#include "proto/reply.h"

void sk_map_deinit(struct sk_map *self)
{
    free(self->collections);
    free(self->keys);
    memset(self, 0, sizeof *self);
}

void sk_map_encode(struct sk_buffer *to, const struct sk_map *map)
{
    sk_put_map(to, 4);
    sk_put_text(to, "version");
    sk_put_u64(to, map->version);
    sk_put_text(to, "node_id");
    sk_put_u64(to, map->node_id);
    sk_put_text(to, "collections");
    sk_put_array(to, map->collection_count);
    for (uint32_t i = 0; i < map->collection_count; i++) {
        const struct sk_map_collection *collection = &map->collections[i];
        sk_put_map(to, 2);
        sk_put_text(to, "schema");
        sk_schema_encode(to, &collection->schema);
        sk_put_text(to, "workers");
        sk_put_array(to, collection->schema.shard_count);
        for (uint32_t s = 0; s < collection->schema.shard_count; s++)
            sk_put_u64(to, collection->workers[s]);
    }
    sk_put_text(to, "keys");
    sk_put_array(to, map->key_count);
    for (uint32_t i = 0; i < map->key_count; i++) {
        sk_put_map(to, 3);
        sk_put_text(to, "name");
        sk_put_text(to, map->keys[i].name);
        sk_put_text(to, "public_key");
        sk_put_text(to, map->keys[i].public_key);
        sk_put_text(to, "role");
        sk_put_text(to, sk_role_name(map->keys[i].role));
    }
}

static bool copy_text(char *to, size_t capacity, struct sk_span text)
{
    if (text.size >= capacity || memchr(text.bytes, '\0', text.size) != NULL)
        return false;
    memcpy(to, text.bytes, text.size);
    to[text.size] = '\0';
    return true;
}

static enum sk_err decode_collection(struct sk_map_collection *out, struct sk_span packed,
                                     struct sk_diag *d)
{
    struct sk_span schema;
    struct sk_list workers;
    if (!sk_map_member(packed, "schema", &schema) ||
        !sk_map_member_list(packed, "workers", &workers))
        return sk_fail(d, SK_ERR_INVALID, "a collection of the map has no schema or no workers");
    struct sk_reader from = sk_reader_of(schema);
    enum sk_err err = sk_schema_decode(&out->schema, &from, d);
    if (err != SK_ERR_OK)
        return err;
    if (workers.count != out->schema.shard_count)
        return sk_fail(d, SK_ERR_INVALID, "collection '%s' has %u shards and %u workers",
                       out->schema.name, out->schema.shard_count, workers.count);
    struct sk_reader numbers = sk_reader_of(workers.members);
    for (uint32_t s = 0; s < workers.count; s++) {
        struct sk_value value;
        err = sk_read(&numbers, &value, d);
        if (err != SK_ERR_OK)
            return err;
        if (value.kind != SK_VALUE_UNSIGNED || value.u64 >= SK_WORKERS_MAX)
            return sk_fail(d, SK_ERR_INVALID, "a worker's number in the map is out of range");
        out->workers[s] = (uint16_t)value.u64;
    }
    return SK_ERR_OK;
}

static enum sk_err decode_key(struct sk_map_key *out, struct sk_span packed, struct sk_diag *d)
{
    struct sk_span name, public_key, role;
    if (!sk_map_member_text(packed, "name", &name) ||
        !sk_map_member_text(packed, "public_key", &public_key) ||
        !sk_map_member_text(packed, "role", &role) ||
        sk_name_check(name, "name", NULL) != SK_ERR_OK ||
        !copy_text(out->name, sizeof out->name, name) || public_key.size != SK_Z85_KEY_BYTES - 1 ||
        !copy_text(out->public_key, sizeof out->public_key, public_key))
        return sk_fail(d, SK_ERR_INVALID, "a key of the map is not {name, public_key, role}");
    return sk_role_parse(&out->role, role, d);
}

static enum sk_err decode_lists(struct sk_map *map, struct sk_span packed, struct sk_diag *d)
{
    struct sk_list collections, keys;
    if (!sk_map_member_u64(packed, "version", &map->version) ||
        !sk_map_member_u64(packed, "node_id", &map->node_id) ||
        !sk_map_member_list(packed, "collections", &collections) ||
        !sk_map_member_list(packed, "keys", &keys))
        return sk_fail(d, SK_ERR_INVALID, "a map has version, node_id, collections and keys");
    if (collections.count > SK_COLLECTIONS_MAX || keys.count > SK_KEYS_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE,
                       "a map has %u collections and %u keys, want at most %d, %d",
                       collections.count, keys.count, SK_COLLECTIONS_MAX, SK_KEYS_MAX);
    map->collections = calloc(collections.count + 1, sizeof *map->collections);
    map->keys = calloc(keys.count + 1, sizeof *map->keys);
    if (map->collections == NULL || map->keys == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a map");
    enum sk_err err = SK_ERR_OK;
    struct sk_span member;
    struct sk_reader from = sk_reader_of(collections.members);
    for (uint32_t i = 0; i < collections.count && err == SK_ERR_OK; i++) {
        err = sk_read_raw(&from, SK_PACK_DEPTH_MAX, &member, d);
        if (err == SK_ERR_OK)
            err = decode_collection(&map->collections[map->collection_count++], member, d);
    }
    from = sk_reader_of(keys.members);
    for (uint32_t i = 0; i < keys.count && err == SK_ERR_OK; i++) {
        err = sk_read_raw(&from, SK_PACK_DEPTH_MAX, &member, d);
        if (err == SK_ERR_OK)
            err = decode_key(&map->keys[map->key_count++], member, d);
    }
    return err;
}

enum sk_err sk_map_decode(struct sk_map *out, struct sk_span packed, struct sk_diag *d)
{
    struct sk_map map = {0};
    struct sk_reader from = sk_reader_of(packed);
    enum sk_err err = sk_skip(&from, SK_PACK_DEPTH_MAX, d);
    if (err == SK_ERR_OK)
        err = sk_read_end(&from, d);
    if (err == SK_ERR_OK)
        err = decode_lists(&map, packed, d);
    if (err != SK_ERR_OK) {
        sk_map_deinit(&map);
        return sk_wrap(d, err, "map");
    }
    sk_map_deinit(out);
    *out = map;
    return SK_ERR_OK;
}

const struct sk_map_collection *sk_map_find(const struct sk_map *map, struct sk_span name)
{
    for (uint32_t i = 0; i < map->collection_count; i++)
        if (sk_span_is(name, map->collections[i].schema.name))
            return &map->collections[i];
    return NULL;
}

const struct sk_map_collection *sk_map_find_uuid(const struct sk_map *map,
                                                 const uint8_t uuid[SK_UUID_BYTES])
{
    for (uint32_t i = 0; i < map->collection_count; i++)
        if (memcmp(map->collections[i].schema.uuid, uuid, SK_UUID_BYTES) == 0)
            return &map->collections[i];
    return NULL;
}

enum sk_err sk_map_collection_of(const struct sk_map *map, struct sk_span name,
                                 const struct sk_map_collection **out, struct sk_diag *d)
{
    *out = sk_map_find(map, name);
    if (*out != NULL)
        return SK_ERR_OK;
    const char *candidates[SK_COLLECTIONS_MAX];
    for (uint32_t i = 0; i < map->collection_count; i++)
        candidates[i] = map->collections[i].schema.name;
    const char *closest = sk_closest(name, candidates, map->collection_count);
    int shown = (int)(name.size > 64 ? 64 : name.size);
    if (closest != NULL)
        return sk_fail_field(d, SK_ERR_NOT_FOUND, "collection",
                             "no collection '%.*s'; the closest name is '%s'", shown,
                             (const char *)name.bytes, closest);
    return sk_fail_field(d, SK_ERR_NOT_FOUND, "collection", "no collection '%.*s'", shown,
                         (const char *)name.bytes);
}
