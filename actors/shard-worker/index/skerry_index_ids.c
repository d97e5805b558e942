/* Ids to rows. As long as every id is the number of its row (0, 1, 2, ... in order, as arrays are
 * usually added) nothing is kept; the first other id makes the tables. */
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <stdlib.h>

static uint32_t hash_id(uint64_t id)
{
    id = (id ^ id >> 33) * 0xFF51AFD7ED558CCDU;
    id = (id ^ id >> 33) * 0xC4CEB9FE1A85EC53U;
    return (uint32_t)(id >> 32);
}

/* The place of the id, or of the empty slot where it would be. */
static uint32_t table_at(const struct skerry_index *self, uint64_t id)
{
    uint32_t at = hash_id(id) & (self->table_size - 1);
    while (self->table[at] != 0 && self->ids[self->table[at] - 1] != id)
        at = (at + 1) & (self->table_size - 1);
    return at;
}

/* Room for count ids at three quarters full; what is in the table stays. */
static bool table_fit(struct skerry_index *self, uint32_t count)
{
    uint32_t size = self->table_size == 0 ? 64 : self->table_size;
    while ((uint64_t)count * 4 > (uint64_t)size * 3)
        size *= 2;
    if (size == self->table_size)
        return true;
    uint32_t *table = calloc(size, sizeof *table), *old = self->table;
    if (table == NULL)
        return false;
    const uint32_t old_size = self->table_size;
    self->table = table;
    self->table_size = size;
    for (uint32_t i = 0; i < old_size; i++)
        if (old[i] != 0)
            self->table[table_at(self, self->ids[old[i] - 1])] = old[i];
    free(old);
    return true;
}

/* Closes the gap, so that no chain of probes is broken. */
static void table_remove(struct skerry_index *self, uint32_t at)
{
    const uint32_t mask = self->table_size - 1;
    uint32_t hole = at;
    for (uint32_t next = (at + 1) & mask; self->table[next] != 0; next = (next + 1) & mask) {
        uint32_t home = hash_id(self->ids[self->table[next] - 1]) & mask;
        if (((next - home) & mask) >= ((next - hole) & mask)) {
            self->table[hole] = self->table[next];
            hole = next;
        }
    }
    self->table[hole] = 0;
    self->table_used--;
}

static bool ids_fit_rows(struct skerry_index *self, uint32_t rows)
{
    if (rows <= self->ids_capacity)
        return true;
    uint32_t capacity = self->ids_capacity + self->ids_capacity / 8 + 1024;
    if (capacity < rows)
        capacity = rows;
    uint64_t *ids = realloc(self->ids, capacity * sizeof *ids);
    if (ids == NULL)
        return false;
    for (uint32_t row = self->ids_capacity; row < capacity; row++)
        ids[row] = SKERRY_NO_ID;
    self->ids = ids;
    self->ids_capacity = capacity;
    return true;
}

static bool make_tables(struct skerry_index *self)
{
    uint64_t lseq;
    if (!ids_fit_rows(self, self->row_count + 1) || !table_fit(self, self->row_count + 1))
        return false;
    for (uint32_t row = 0; row < self->row_count; row++) {
        if (!sk_index_lseq(self->index, row, &lseq))
            continue;
        self->ids[row] = row;
        self->table[table_at(self, row)] = row + 1;
        self->table_used++;
    }
    self->is_identity = false;
    return true;
}

bool skerry_index_row_of(const struct skerry_index *self, uint64_t id, uint32_t *row)
{
    uint64_t lseq;
    if (self->is_identity) {
        *row = (uint32_t)id;
        return id < self->row_count && sk_index_lseq(self->index, *row, &lseq);
    }
    if (self->table_size == 0 || id == SKERRY_NO_ID)
        return false;
    const uint32_t at = table_at(self, id);
    *row = self->table[at] - 1;
    return self->table[at] != 0;
}

bool skerry_index_ids_fit(struct skerry_index *self, uint64_t id, uint32_t row)
{
    if (self->is_identity && id == row)
        return true;
    if (self->is_identity && !make_tables(self))
        return false;
    return ids_fit_rows(self, row + 1) && table_fit(self, self->table_used + 1);
}

void skerry_index_ids_set(struct skerry_index *self, uint64_t id, uint32_t row)
{
    self->changes++;
    if (self->is_identity)
        return;
    const uint32_t at = table_at(self, id);
    if (self->table[at] != 0)
        self->ids[self->table[at] - 1] = SKERRY_NO_ID;
    else
        self->table_used++;
    self->ids[row] = id;
    self->table[at] = row + 1;
}

void skerry_index_ids_remove(struct skerry_index *self, uint64_t id, uint32_t row)
{
    self->changes++;
    if (self->is_identity)
        return;
    table_remove(self, table_at(self, id));
    self->ids[row] = SKERRY_NO_ID;
}

enum sk_err skerry_index_ids_load(struct skerry_index *self, struct sk_diag *d)
{
    uint32_t count = 0;
    uint64_t lseq;
    struct sk_index_stats stats;
    for (uint32_t row = 0; row < self->row_count; row++)
        if (self->is_identity)
            count += sk_index_lseq(self->index, row, &lseq);
        else
            count += self->ids[row] != SKERRY_NO_ID;
    sk_index_get_stats(self->index, &stats);
    if (count != stats.rows)
        return sk_fail(d, SK_ERR_INVALID, "index file: %u ids for %llu rows", count,
                       (unsigned long long)stats.rows);
    if (self->is_identity)
        return SK_ERR_OK;
    if (!table_fit(self, count))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u ids", count);
    for (uint32_t row = 0; row < self->row_count; row++) {
        if (self->ids[row] == SKERRY_NO_ID)
            continue;
        if (!sk_index_lseq(self->index, row, &lseq))
            return sk_fail(d, SK_ERR_INVALID, "index file: row %u is not in the image", row);
        const uint32_t at = table_at(self, self->ids[row]);
        if (self->table[at] != 0)
            return sk_fail(d, SK_ERR_INVALID, "index file: an id twice");
        self->table[at] = row + 1;
        self->table_used++;
    }
    return SK_ERR_OK;
}

uint64_t skerry_index_ids_bytes(const struct skerry_index *self)
{
    return (uint64_t)self->ids_capacity * sizeof *self->ids +
           (uint64_t)self->table_size * sizeof *self->table;
}
