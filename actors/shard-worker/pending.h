/* The rows of one vector field that are committed (or about to be) and not yet in its index:
 * searched exactly, so that an acknowledged write is found by every later search.
 *
 * A list of chunks, oldest first; a chunk is what one group commit brought. It is published before
 * its transaction commits, so that whoever sees the transaction sees the chunk; a reader drops rows
 * that its own transaction does not have. Rows leave from the front, after they are in the index.
 *
 * Threads: the writer lane publishes, withdraws and pops (one thread at a time). Readers on any
 * thread scan without a lock. A chunk that left the list goes to the retired list; the owner of the
 * readers takes it from there between two jobs of the writer lane and frees it when every reader
 * that began before that has ended. Memory: rows x (dim x 4 + 16) bytes while they wait. */
#ifndef SK_WORKER_PENDING_H
#define SK_WORKER_PENDING_H

#include "common/base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct sk_pending_chunk {
    struct sk_pending_chunk *_Atomic next; /* newer */
    struct sk_pending_chunk *retired_next;
    uint32_t count;
    uint32_t capacity;
    uint32_t dim;
    _Atomic uint32_t linked; /* rows [0, linked) are in the index */
    uint32_t *rows;
    uint64_t *lseqs;
    float *vectors; /* capacity x dim */
};

struct sk_pending {
    struct sk_pending_chunk *_Atomic first; /* oldest; NULL when empty */
    struct sk_pending_chunk *last;          /* the writer's */
    struct sk_pending_chunk *retired;       /* the writer's */
    _Atomic uint32_t rows;                  /* waiting over all chunks */
    uint32_t dim;
};

void sk_pending_init(struct sk_pending *self, uint32_t dim);
/* No reader may be left. */
void sk_pending_deinit(struct sk_pending *self);

/* NOMEM. Owned by the caller until published. */
SK_CHECKED enum sk_err sk_pending_chunk_new(struct sk_pending_chunk **out, uint32_t dim,
                                            uint32_t capacity, struct sk_diag *d);
void sk_pending_chunk_free(struct sk_pending_chunk *chunk); /* safe on NULL */
/* The place of the next row's vector (dim floats, to be filled before publish); NULL when full. */
float *sk_pending_chunk_take(struct sk_pending_chunk *chunk, uint32_t row, uint64_t lseq);
/* Copies the vector; false when the chunk is full. */
bool sk_pending_chunk_add(struct sk_pending_chunk *chunk, uint32_t row, uint64_t lseq,
                          const float *vector);

/* Takes the chunk; an empty one is freed at once. */
void sk_pending_publish(struct sk_pending *self, struct sk_pending_chunk *chunk);
/* Takes back the newest chunk, whose transaction did not commit: it goes to the retired list. */
void sk_pending_withdraw(struct sk_pending *self, const struct sk_pending_chunk *chunk);

/* The oldest row that is not in the index; false when there is none. vector is borrowed until pop.
 */
bool sk_pending_front(const struct sk_pending *self, uint32_t *row, uint64_t *lseq,
                      const float **vector);
/* The front row is in the index now (or is gone from the store). */
void sk_pending_pop(struct sk_pending *self);
/* Everything goes to the retired list: its rows are covered by other means (an exact scan). */
void sk_pending_clear(struct sk_pending *self);
uint32_t sk_pending_count(const struct sk_pending *self); /* any thread */
/* The retired chunks, linked by retired_next; the caller owns them. Between jobs of the writer
 * lane. */
struct sk_pending_chunk *sk_pending_take_retired(struct sk_pending *self);

/* Readers: for (c = sk_pending_begin(p); c; c = sk_pending_next(c)) rows [sk_pending_from(c),
 * c->count). */
static inline const struct sk_pending_chunk *sk_pending_begin(const struct sk_pending *self)
{
    return atomic_load_explicit(&self->first, memory_order_acquire);
}
static inline const struct sk_pending_chunk *sk_pending_next(const struct sk_pending_chunk *chunk)
{
    return atomic_load_explicit(&chunk->next, memory_order_acquire);
}
static inline uint32_t sk_pending_from(const struct sk_pending_chunk *chunk)
{
    return atomic_load_explicit(&chunk->linked, memory_order_acquire);
}

#endif
