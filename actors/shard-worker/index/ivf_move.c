/* Rows on their way from list to list: gathered with their vectors, sorted by where they go, written into
 * chains that a new directory shows all at once. */
#include "actors/shard-worker/index/ivf.h"

#include <stdlib.h>

enum sk_err sk_ivf_pool_init(const struct sk_index *self, struct sk_ivf_pool *pool, uint32_t capacity,
                             struct sk_diag *d)
{
    *pool = (struct sk_ivf_pool){.capacity = capacity};
    pool->movers = malloc((capacity + 1) * sizeof *pool->movers);
    pool->rows = malloc((capacity + 1) * sizeof *pool->rows);
    pool->vectors = malloc(((size_t)capacity * self->padded + 1) * sizeof *pool->vectors);
    if (pool->movers != NULL && pool->rows != NULL && pool->vectors != NULL)
        return SK_ERR_OK;
    sk_ivf_pool_deinit(pool);
    return sk_fail(d, SK_ERR_NOMEM, "no memory to move %u rows", capacity);
}

void sk_ivf_pool_deinit(struct sk_ivf_pool *pool)
{
    free(pool->movers);
    free(pool->rows);
    free(pool->vectors);
    *pool = (struct sk_ivf_pool){.movers = NULL};
}

float *sk_ivf_pool_vector(const struct sk_index *self, const struct sk_ivf_pool *pool, uint32_t at)
{
    return pool->vectors + (size_t)at * self->padded;
}

void sk_ivf_pool_add_list(struct sk_index *self, struct sk_ivf_pool *pool, uint32_t list, uint32_t skipped)
{
    struct sk_ivf *ivf = self->ivf;
    const enum sk_ivf_form form = sk_ivf_form_of(ivf, list);
    uint32_t head = sk_ivf_head(sk_ivf_directory_now(ivf), list);
    sk_ivf_centre_get(self, list, ivf->centre);
    while (head != SK_IVF_NO_BLOCK) {
        const uint8_t *block = sk_ivf_block(ivf, form, head);
        const uint32_t *tail = sk_ivf_tail(ivf, form, block);
        for (uint32_t i = tail[1]; i-- > 0;) {
            const uint32_t row = sk_ivf_rows(ivf, form, block)[i];
            if (sk_state(self, row) != SK_ROW_LIVE)
                continue;
            if (skipped > 0) {
                skipped--;
                continue;
            }
            SK_CHECK(pool->count < pool->capacity);
            sk_ivf_vector(self, form, block, i, ivf->centre,
                          sk_ivf_pool_vector(self, pool, pool->count));
            pool->movers[pool->count] = (struct sk_ivf_mover){list, row, list, pool->count};
            pool->count++;
        }
        head = tail[0];
    }
}

uint32_t sk_ivf_rewrite(const struct sk_index *self, enum sk_ivf_form form, uint32_t head, uint32_t kept,
                        sk_ivf_keeps *keeps, void *context)
{
    struct sk_ivf *ivf = self->ivf;
    uint32_t fresh = SK_IVF_NO_BLOCK, *link = &fresh, room = 0;
    uint8_t *to = NULL;
    while (head != SK_IVF_NO_BLOCK && kept > 0) {
        const uint8_t *block = sk_ivf_block(ivf, form, head);
        const uint32_t *tail = sk_ivf_tail(ivf, form, block);
        for (uint32_t i = tail[1]; i-- > 0 && kept > 0;) {
            if (!keeps(self, context, sk_ivf_rows(ivf, form, block)[i]))
                continue;
            if (room == 0) {
                *link = sk_ivf_block_take(ivf, form);
                to = sk_ivf_block(ivf, form, *link);
                room = (kept - 1) % SK_IVF_BLOCK + 1;
                link = &sk_ivf_tail(ivf, form, to)[0];
                sk_ivf_tail(ivf, form, to)[1] = room;
                *link = SK_IVF_NO_BLOCK;
            }
            sk_ivf_copy_row(ivf, form, to, --room, block, i);
            kept--;
        }
        head = tail[0];
    }
    SK_CHECK(kept == 0);
    return fresh;
}

static int compare(const void *a, const void *b)
{
    const struct sk_ivf_mover *x = a, *y = b;
    if (x->to != y->to)
        return x->to < y->to ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

/* Rows of one list behind those that it has in this directory, which nobody sees yet. */
static void extend(struct sk_index *self, struct sk_ivf_directory *directory,
                   const struct sk_ivf_pool *pool, const struct sk_ivf_mover *movers, uint32_t count)
{
    struct sk_ivf *ivf = self->ivf;
    const enum sk_ivf_form form = ivf->list_form;
    const uint32_t list = movers[0].to, before = sk_ivf_head(directory, list);
    struct sk_ivf_chain chain = {form, before, 0};
    if (before != SK_IVF_NO_BLOCK) {
        const uint8_t *from = sk_ivf_block(ivf, form, before);
        if (sk_ivf_tail(ivf, form, from)[1] < SK_IVF_BLOCK) {
            chain.head = sk_ivf_block_take(ivf, form);
            memcpy(sk_ivf_block(ivf, form, chain.head), from, ivf->blocks[form].layout.block_bytes);
            sk_ivf_retire(ivf, form == SK_IVF_PLAIN ? SK_IVF_OLD_PLAIN : SK_IVF_OLD_CODED, before, NULL);
        }
    }
    sk_ivf_centre_get(self, list, ivf->centre);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *block;
        const uint32_t at = sk_ivf_chain_push(ivf, &chain, &block);
        sk_ivf_encode(self, form, block, at, movers[i].row,
                      sk_ivf_pool_vector(self, pool, movers[i].vector), ivf->centre);
        pool->rows[i] = movers[i].row;
    }
    atomic_store_explicit(&directory->heads[list], chain.head, memory_order_relaxed);
    ivf->counts[list] += count;
    sk_ivf_delta_moves(self, list, pool->rows, count);
}

void sk_ivf_pool_sort(struct sk_ivf_pool *pool)
{
    if (pool->count > 0)
        qsort(pool->movers, pool->count, sizeof *pool->movers, compare);
}

uint32_t sk_ivf_pool_blocks(const struct sk_ivf_pool *pool)
{
    uint32_t blocks = 0;
    for (uint32_t i = 0, end; i < pool->count; i = end) {
        for (end = i; end < pool->count && pool->movers[end].to == pool->movers[i].to; end++)
            continue;
        blocks += (end - i) / SK_IVF_BLOCK + 2; /* a copy of one that is part full, and one part full */
    }
    return blocks;
}

size_t sk_ivf_pool_delta_bytes(const struct sk_ivf_pool *pool)
{
    return (size_t)pool->count * (4 + 9) + 16;
}

void sk_ivf_pool_place(struct sk_index *self, struct sk_ivf_pool *pool,
                       struct sk_ivf_directory *directory)
{
    struct sk_ivf *ivf = self->ivf;
    sk_ivf_pool_sort(pool);
    for (uint32_t i = 0, end; i < pool->count; i = end) {
        const uint32_t list = pool->movers[i].to;
        for (end = i; end < pool->count && pool->movers[end].to == list; end++)
            continue;
        extend(self, directory, pool, pool->movers + i, end - i);
        if (ivf->counts[list] > ivf->split_from[list] && sk_row_list_push(&ivf->to_split, list))
            ivf->split_from[list] = 2 * ivf->counts[list];
    }
}
