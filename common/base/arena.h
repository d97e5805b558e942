/* One request's memory: bump allocation, everything freed at once by reset.
 * Thread: one. Limit: size_max bytes over all blocks; past it sk_arena_alloc returns NULL. */
#ifndef SK_ARENA_H
#define SK_ARENA_H

#include <stddef.h>
#include <stdint.h>

struct sk_arena_block;
struct sk_arena {
    struct sk_arena_block *blocks; /* newest first */
    size_t used;                   /* in the newest block */
    size_t total;                  /* over all blocks */
    size_t size_max;
};

void sk_arena_init(struct sk_arena *self, size_t size_max);
void sk_arena_deinit(struct sk_arena *self);
/* 16-byte aligned, not zeroed; NULL when out of memory or over size_max. size 0 gives a valid pointer. */
void *sk_arena_alloc(struct sk_arena *self, size_t size);
void *sk_arena_zalloc(struct sk_arena *self, size_t count, size_t size); /* zeroed; checks the product */
void sk_arena_reset(struct sk_arena *self); /* keeps one block for the next request */

#endif
