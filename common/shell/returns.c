/* A return address is {generation, index}: an old one never reaches the client that has its place. */
#include "common/shell/internal.h"

#include <stdlib.h>

enum { INDEX_BITS = 14, CAPACITY_MAX = 1 << INDEX_BITS };
/* FIRST_CLIENT + (generation << INDEX_BITS | index) must fit 32 bits. */
enum { GENERATION_MAX = (1 << (31 - INDEX_BITS)) - 1 };

enum sk_err sk_returns_init(struct sk_returns *self, uint32_t capacity, struct sk_diag *d)
{
    memset(self, 0, sizeof *self);
    self->capacity = capacity == 0 || capacity > CAPACITY_MAX ? CAPACITY_MAX : capacity;
    self->entries = calloc(self->capacity, sizeof *self->entries); /* pages come with use */
    if (self->entries == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u return addresses", self->capacity);
    return SK_ERR_OK;
}

void sk_returns_deinit(struct sk_returns *self)
{
    for (uint32_t i = 0; i < self->fresh; i++)
        if (self->entries[i].is_used)
            zmq_msg_close(&self->entries[i].routing_id);
    free(self->entries);
    memset(self, 0, sizeof *self);
}

sk_peer sk_returns_give(struct sk_returns *self, struct sk_socket *socket, zmq_msg_t *routing_id,
                        bool has_delimiter)
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
    zmq_msg_close(&entry->routing_id);
    entry->is_used = false;
    entry->next_free = self->free_first;
    self->free_first = (uint32_t)(entry - self->entries) + 1;
}
