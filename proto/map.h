/* The map: what every process of a node knows of collections, shards and keys. Made by the keeper, one
 * version after the other; everybody else replaces the whole of his copy. */
#ifndef SK_MAP_H
#define SK_MAP_H

#include "proto/schema.h"

enum { SK_COLLECTIONS_MAX = 1024, SK_KEYS_MAX = 1024, SK_WORKERS_MAX = 64, SK_Z85_KEY_BYTES = 41 };

struct sk_map_collection {
    struct sk_schema schema;
    uint16_t workers[SK_SHARDS_MAX]; /* by shard; shard s owns slots s, s + shard_count, ... */
};

struct sk_map_key {
    char name[SK_NAME_BYTES_MAX + 1];
    char public_key[SK_Z85_KEY_BYTES];
    enum sk_role role;
};

struct sk_map {
    uint64_t version; /* 0: nothing is known yet */
    uint64_t node_id; /* random, made once: tells a new node in an old folder */
    uint32_t collection_count;
    struct sk_map_collection *collections; /* owned; ordered by name */
    uint32_t key_count;
    struct sk_map_key *keys; /* owned */
};

void sk_map_deinit(struct sk_map *self);
/* Replaces *out (deinit first). INVALID, NOMEM. */
SK_CHECKED enum sk_err sk_map_decode(struct sk_map *out, struct sk_span packed, struct sk_diag *d);
void sk_map_encode(struct sk_buffer *to, const struct sk_map *map);
const struct sk_map_collection *sk_map_find(const struct sk_map *map, struct sk_span name);
const struct sk_map_collection *sk_map_find_uuid(const struct sk_map *map,
                                                 const uint8_t uuid[SK_UUID_BYTES]);
/* NOT_FOUND with the closest name there is. */
SK_CHECKED enum sk_err sk_map_collection_of(const struct sk_map *map, struct sk_span name,
                                            const struct sk_map_collection **out, struct sk_diag *d);
static inline uint32_t sk_shard_of_slot(const struct sk_schema *schema, uint32_t slot)
{
    return slot % schema->shard_count;
}

#endif
