#include "common/base/arena.h"
#include "common/base/check.h"

#include <string.h>

enum { BLOCK_BYTES_MIN = 64 * 1024, BLOCK_BYTES_KEPT = 1024 * 1024, ALIGN = 16 };

struct sk_arena_block {
    struct sk_arena_block *next;
    size_t size;
    _Alignas(ALIGN) uint8_t bytes[];
};

void sk_arena_init(struct sk_arena *self, size_t size_max)
{
    memset(self, 0, sizeof *self);
    self->size_max = size_max;
}

void sk_arena_deinit(struct sk_arena *self)
{
    while (self->blocks != NULL) {
        struct sk_arena_block *next = self->blocks->next;
        free(self->blocks);
        self->blocks = next;
    }
    self->used = 0;
    self->total = 0;
}

void *sk_arena_alloc(struct sk_arena *self, size_t size)
{
    if (size > SIZE_MAX - ALIGN)
        return NULL;
    size_t rounded = (size + ALIGN - 1) / ALIGN * ALIGN;
    struct sk_arena_block *block = self->blocks;
    if (block == NULL || rounded > block->size - self->used) {
        size_t bytes = rounded > BLOCK_BYTES_MIN ? rounded : BLOCK_BYTES_MIN;
        if (bytes > self->size_max || self->total > self->size_max - bytes)
            return NULL;
        block = malloc(sizeof *block + bytes);
        if (block == NULL)
            return NULL;
        block->size = bytes;
        block->next = self->blocks;
        self->blocks = block;
        self->total += bytes;
        self->used = 0;
    }
    void *at = block->bytes + self->used;
    self->used += rounded;
    SK_CHECK(self->used <= block->size);
    return at;
}

void *sk_arena_zalloc(struct sk_arena *self, size_t count, size_t size)
{
    if (size != 0 && count > SIZE_MAX / size)
        return NULL;
    void *at = sk_arena_alloc(self, count * size);
    if (at != NULL)
        memset(at, 0, count * size);
    return at;
}

void sk_arena_reset(struct sk_arena *self)
{
    struct sk_arena_block *kept = self->blocks;
    if (kept == NULL)
        return;
    while (kept->next != NULL) {
        struct sk_arena_block *next = kept->next->next;
        free(kept->next);
        kept->next = next;
    }
    if (kept->size > BLOCK_BYTES_KEPT) {
        free(kept);
        self->blocks = NULL;
        self->total = 0;
    } else {
        self->total = kept->size;
    }
    self->used = 0;
}
