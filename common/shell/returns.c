/* A return address is {generation, index}: an old one never reaches the client that has its place. */
#include "common/shell/internal.h"

#include <stdlib.h>

enum { INDEX_BITS = 14, CAPACITY_MAX = 1 << INDEX_BITS };
/* FIRST_CLIENT + (generation << INDEX_BITS | index) must fit 32 bits. */
enum { GENERATION_MAX = (1 << (31 - INDEX_BITS)) - 1 };

enum sk_err sk_returns_init(struct sk_returns *self, uint32_t capacity, uint64_t hash_key,
                            struct sk_diag *d)
{
    memset(self, 0, sizeof *self);
    self->capacity = capacity == 0 || capacity > CAPACITY_MAX ? CAPACITY_MAX : capacity;
    self->hash_key = hash_key;
    self->entries = calloc(self->capacity, sizeof *self->entries); /* pages come with use */
    self->clients = calloc(self->capacity, sizeof *self->clients);
    self->buckets = calloc(self->capacity, sizeof *self->buckets);
    if (self->entries == NULL || self->clients == NULL || self->buckets == NULL) {
        sk_returns_deinit(self);
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u return addresses", capacity);
    }
    return SK_ERR_OK;
}

void sk_returns_deinit(struct sk_returns *self)
{
    for (uint32_t i = 0; i < self->fresh; i++)
        if (self->entries[i].is_used)
            zmq_msg_close(&self->entries[i].routing_id);
    free(self->entries);
    free(self->clients);
    free(self->buckets);
    memset(self, 0, sizeof *self);
}

/* ---- connections ---- */

static uint64_t hash_of(const struct sk_returns *self, const struct sk_socket *socket,
                        zmq_msg_t *routing_id)
{
    uint64_t hash = 14695981039346656037ULL ^ self->hash_key ^ (uint64_t)(uintptr_t)socket;
    const uint8_t *bytes = zmq_msg_data(routing_id);
    for (size_t i = 0; i < zmq_msg_size(routing_id); i++)
        hash = (hash ^ bytes[i]) * 1099511628211ULL;
    hash ^= hash >> 32;
    return hash * 0x9E3779B97F4A7C15ULL;
}

/* As many connections as return addresses: there is always room for one more. */
static uint32_t client_open(struct sk_returns *self, uint64_t hash)
{
    uint32_t *bucket = &self->buckets[(hash >> 32) % self->capacity], index;
    for (uint32_t at = *bucket; at != 0; at = self->clients[at - 1].next)
        if (self->clients[at - 1].hash == hash) {
            self->clients[at - 1].open_count++;
            return at - 1;
        }
    if (self->free_client != 0) {
        index = self->free_client - 1;
        self->free_client = self->clients[index].next;
    } else {
        index = self->fresh_clients++;
        SK_CHECK(index < self->capacity);
    }
    self->clients[index] = (struct sk_return_client){hash, 1, *bucket};
    *bucket = index + 1;
    return index;
}

static void client_close(struct sk_returns *self, uint32_t index)
{
    struct sk_return_client *client = &self->clients[index];
    SK_CHECK(client->open_count > 0);
    if (--client->open_count > 0)
        return;
    uint32_t *at = &self->buckets[(client->hash >> 32) % self->capacity];
    while (*at != index + 1) {
        SK_CHECK(*at != 0);
        at = &self->clients[*at - 1].next;
    }
    *at = client->next;
    client->next = self->free_client;
    self->free_client = index + 1;
}

/* ---- addresses ---- */

sk_peer sk_returns_give(struct sk_returns *self, struct sk_socket *socket, zmq_msg_t *routing_id,
                        bool has_delimiter, uint32_t *open_count)
{
    uint32_t index;
    if (self->free_first != 0) {
        index = self->free_first - 1;
        self->free_first = self->entries[index].next_free;
    } else if (self->fresh < self->capacity) {
        index = self->fresh++;
    } else {
        return 0;
    }
    struct sk_return *entry = &self->entries[index];
    SK_CHECK(!entry->is_used);
    entry->client = client_open(self, hash_of(self, socket, routing_id));
    *open_count = self->clients[entry->client].open_count;
    zmq_msg_init(&entry->routing_id);
    zmq_msg_move(&entry->routing_id, routing_id);
    entry->socket = socket;
    entry->has_delimiter = has_delimiter;
    entry->is_used = true;
    entry->generation = entry->generation == GENERATION_MAX ? 0 : entry->generation + 1;
    return SK_PEER_FIRST_CLIENT + (entry->generation << INDEX_BITS | index);
}

struct sk_return *sk_returns_take(struct sk_returns *self, sk_peer peer)
{
    SK_CHECK(peer >= SK_PEER_FIRST_CLIENT);
    uint32_t index = (peer - SK_PEER_FIRST_CLIENT) & (CAPACITY_MAX - 1);
    uint32_t generation = (peer - SK_PEER_FIRST_CLIENT) >> INDEX_BITS;
    if (index >= self->fresh)
        return NULL;
    struct sk_return *entry = &self->entries[index];
    return entry->is_used && entry->generation == generation ? entry : NULL;
}

void sk_returns_free(struct sk_returns *self, struct sk_return *entry)
{
    client_close(self, entry->client);
    zmq_msg_close(&entry->routing_id);
    entry->is_used = false;
    entry->next_free = self->free_first;
    self->free_first = (uint32_t)(entry - self->entries) + 1;
}
