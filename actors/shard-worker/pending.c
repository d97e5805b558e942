#include "actors/shard-worker/pending.h"

#include <stdlib.h>
#include <string.h>

void sk_pending_init(struct sk_pending *self, uint32_t dim)
{
    memset(self, 0, sizeof *self);
    self->dim = dim;
}

void sk_pending_deinit(struct sk_pending *self)
{
    sk_pending_clear(self);
    for (struct sk_pending_chunk *chunk = sk_pending_take_retired(self); chunk != NULL;) {
        struct sk_pending_chunk *next = chunk->retired_next;
        sk_pending_chunk_free(chunk);
        chunk = next;
    }
}

enum sk_err sk_pending_chunk_new(struct sk_pending_chunk **out, uint32_t dim, uint32_t capacity,
                                 struct sk_diag *d)
{
    *out = NULL;
    struct sk_pending_chunk *chunk = calloc(1, sizeof *chunk);
    if (chunk == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the pending rows");
    size_t slots = capacity != 0 ? capacity : 1;
    chunk->dim = dim;
    chunk->capacity = capacity;
    chunk->rows = malloc(slots * sizeof *chunk->rows);
    chunk->lseqs = malloc(slots * sizeof *chunk->lseqs);
    chunk->vectors = aligned_alloc(64, (slots * dim * sizeof(float) + 63) / 64 * 64);
    if (chunk->rows == NULL || chunk->lseqs == NULL || chunk->vectors == NULL) {
        sk_pending_chunk_free(chunk);
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u pending rows of dim %u", capacity, dim);
    }
    *out = chunk;
    return SK_ERR_OK;
}

void sk_pending_chunk_free(struct sk_pending_chunk *chunk)
{
    if (chunk == NULL)
        return;
    free(chunk->rows);
    free(chunk->lseqs);
    free(chunk->vectors);
    free(chunk);
}

float *sk_pending_chunk_take(struct sk_pending_chunk *chunk, uint32_t row, uint64_t lseq)
{
    if (chunk->count == chunk->capacity)
        return NULL;
    uint32_t at = chunk->count++;
    chunk->rows[at] = row;
    chunk->lseqs[at] = lseq;
    return chunk->vectors + (size_t)at * chunk->dim;
}

bool sk_pending_chunk_add(struct sk_pending_chunk *chunk, uint32_t row, uint64_t lseq,
                          const float *vector)
{
    float *to = sk_pending_chunk_take(chunk, row, lseq);
    if (to != NULL)
        memcpy(to, vector, chunk->dim * sizeof *to);
    return to != NULL;
}

void sk_pending_publish(struct sk_pending *self, struct sk_pending_chunk *chunk)
{
    SK_CHECK(chunk->dim == self->dim);
    if (chunk->count == 0) {
        sk_pending_chunk_free(chunk);
        return;
    }
    atomic_fetch_add_explicit(&self->rows, chunk->count, memory_order_relaxed);
    if (self->last == NULL)
        atomic_store_explicit(&self->first, chunk, memory_order_release);
    else
        atomic_store_explicit(&self->last->next, chunk, memory_order_release);
    self->last = chunk;
}

static void retire(struct sk_pending *self, struct sk_pending_chunk *chunk)
{
    chunk->retired_next = self->retired;
    self->retired = chunk;
}

void sk_pending_withdraw(struct sk_pending *self, const struct sk_pending_chunk *chunk)
{
    struct sk_pending_chunk *newest = self->last;
    SK_CHECK(newest == chunk);
    SK_CHECK(atomic_load_explicit(&newest->linked, memory_order_relaxed) == 0);
    struct sk_pending_chunk *at = atomic_load_explicit(&self->first, memory_order_relaxed);
    if (at == newest) {
        atomic_store_explicit(&self->first, NULL, memory_order_release);
        self->last = NULL;
    } else {
        while (atomic_load_explicit(&at->next, memory_order_relaxed) != newest)
            at = atomic_load_explicit(&at->next, memory_order_relaxed);
        atomic_store_explicit(&at->next, NULL, memory_order_release);
        self->last = at;
    }
    atomic_fetch_sub_explicit(&self->rows, newest->count, memory_order_relaxed);
    retire(self, newest);
}

bool sk_pending_front(const struct sk_pending *self, uint32_t *row, uint64_t *lseq,
                      const float **vector)
{
    const struct sk_pending_chunk *chunk = sk_pending_begin(self);
    if (chunk == NULL)
        return false;
    uint32_t at = sk_pending_from(chunk);
    SK_CHECK(at < chunk->count); /* a chunk with nothing left is not in the list */
    *row = chunk->rows[at];
    *lseq = chunk->lseqs[at];
    *vector = chunk->vectors + (size_t)at * chunk->dim;
    return true;
}

void sk_pending_pop(struct sk_pending *self)
{
    struct sk_pending_chunk *chunk = atomic_load_explicit(&self->first, memory_order_relaxed);
    SK_CHECK(chunk != NULL);
    uint32_t linked = atomic_load_explicit(&chunk->linked, memory_order_relaxed) + 1;
    atomic_store_explicit(&chunk->linked, linked, memory_order_release);
    atomic_fetch_sub_explicit(&self->rows, 1, memory_order_relaxed);
    if (linked < chunk->count)
        return;
    struct sk_pending_chunk *next = atomic_load_explicit(&chunk->next, memory_order_relaxed);
    atomic_store_explicit(&self->first, next, memory_order_release);
    if (next == NULL)
        self->last = NULL;
    retire(self, chunk);
}

void sk_pending_clear(struct sk_pending *self)
{
    struct sk_pending_chunk *chunk = atomic_load_explicit(&self->first, memory_order_relaxed);
    atomic_store_explicit(&self->first, NULL, memory_order_release);
    self->last = NULL;
    atomic_store_explicit(&self->rows, 0, memory_order_relaxed);
    while (chunk != NULL) {
        struct sk_pending_chunk *next = atomic_load_explicit(&chunk->next, memory_order_relaxed);
        retire(self, chunk);
        chunk = next;
    }
}

uint32_t sk_pending_count(const struct sk_pending *self)
{
    return atomic_load_explicit(&self->rows, memory_order_relaxed);
}

struct sk_pending_chunk *sk_pending_take_retired(struct sk_pending *self)
{
    struct sk_pending_chunk *retired = self->retired;
    self->retired = NULL;
    return retired;
}
