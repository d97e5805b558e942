/* Where a reader has found the rows of its snapshot.
 *
 * A search looks up a record and a vector for each of a dozen candidates: two descents of a B-tree
 * each, whose leaf pages are rarely in a cache of the processor (a fifth of a search). As long as
 * nobody commits, a row stays where it is: pages of a committed transaction are written again only
 * when no reader can come to them any more, and the next one begins at the newest. So addresses
 * hold from one read transaction to the next of the same number, and none outlives that number or
 * the environment. */
#include "actors/shard-worker/store/internal.h"

/* Words of a row: generation and size of the record, its address, the address of each vector; 0:
 * not known. One array, so that a row is one or two lines of cache. */
enum { WORD_HEAD, WORD_RECORD, WORD_VECTORS, CAPACITY_MIN = 1024 };

static size_t stride_of(const struct sk_store_reader *self)
{
    return WORD_VECTORS + self->store->schema.vector_count;
}

void sk_store_reader_remember(struct sk_store_reader *self)
{
    self->known.is_on = true;
}

void sk_known_forget(struct sk_store_reader *self)
{
    free(self->known.words);
    self->known = (struct known_rows){.is_on = self->known.is_on};
}

void sk_known_begin(struct sk_store_reader *self)
{
    struct known_rows *known = &self->known;
    uint64_t number = mdb_txn_id(self->txn);
    bool is_same = known->number == number || sk_mutant("stale_places");
    if (!known->is_on || (is_same && known->generation != 0))
        return;
    known->number = number;
    if (++known->generation != 0)
        return;
    memset(known->words, 0, known->capacity * stride_of(self) * sizeof *known->words);
    known->generation = 1;
}

/* The words of a row, of this snapshot; NULL: there is no room for it. */
static uint64_t *words_to_fill(struct sk_store_reader *self, uint32_t row)
{
    struct known_rows *known = &self->known;
    size_t stride = stride_of(self);
    if (!known->is_on || row >= SK_STORE_KNOWN_ROWS_MAX)
        return NULL;
    if (row >= known->capacity) {
        size_t capacity = CAPACITY_MIN;
        while (capacity <= row)
            capacity *= 2;
        uint64_t *words = calloc(capacity * stride, sizeof *words); /* pages come with use */
        if (words == NULL)
            return NULL;
        free(known->words); /* what it knew is found again */
        known->words = words;
        known->capacity = capacity;
    }
    uint64_t *at = known->words + row * stride;
    if ((uint32_t)at[WORD_HEAD] != known->generation) {
        memset(at, 0, stride * sizeof *at);
        at[WORD_HEAD] = known->generation;
    }
    return at;
}

static const uint64_t *words_of(const struct sk_store_reader *self, uint32_t row)
{
    const struct known_rows *known = &self->known;
    if (row >= known->capacity)
        return NULL;
    const uint64_t *at = known->words + row * stride_of(self);
    return (uint32_t)at[WORD_HEAD] == known->generation ? at : NULL;
}

/* An address as it stands in a word, and back: integers of 64 bits hold a pointer on every machine
 * here. */
static const uint8_t *address_of(uint64_t word)
{
    return (const uint8_t *)(uintptr_t)word;
}

bool sk_known_record(const struct sk_store_reader *self, uint32_t row, MDB_val *value)
{
    const uint64_t *at = words_of(self, row);
    if (at == NULL || at[WORD_RECORD] == 0)
        return false;
    *value = sk_val(address_of(at[WORD_RECORD]), (size_t)(at[WORD_HEAD] >> 32));
    return true;
}

void sk_known_record_is(struct sk_store_reader *self, uint32_t row, MDB_val value)
{
    uint64_t *at = words_to_fill(self, row);
    if (at == NULL || value.mv_size > UINT32_MAX)
        return;
    at[WORD_HEAD] = (uint64_t)value.mv_size << 32 | self->known.generation;
    at[WORD_RECORD] = (uint64_t)(uintptr_t)value.mv_data;
}

const uint8_t *sk_known_vector(const struct sk_store_reader *self, unsigned field, uint32_t row)
{
    const uint64_t *at = words_of(self, row);
    return at == NULL ? NULL : address_of(at[WORD_VECTORS + field]);
}

void sk_known_vector_is(struct sk_store_reader *self, unsigned field, uint32_t row,
                        const uint8_t *vector)
{
    uint64_t *at = words_to_fill(self, row);
    if (at != NULL)
        at[WORD_VECTORS + field] = (uint64_t)(uintptr_t)vector;
}

void sk_known_expect(const struct sk_store_reader *self, uint32_t row)
{
    if (row < self->known.capacity)
        __builtin_prefetch(self->known.words + row * stride_of(self));
}
