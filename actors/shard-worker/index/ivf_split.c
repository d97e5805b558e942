/* Lists that have grown too long are split, short ones dissolved. After a split the rows around it are
 * looked at again, in the new lists and in the nearest old ones, so that each stays where its nearest centre
 * is (LIRE: Xu et al. 2023, SPFresh). A centre never changes: a list that is split ends and others begin. */
#include "actors/shard-worker/index/ivf.h"
#include "kernels/kmeans.h"

#include <stdlib.h>

enum { NEIGHBOURS = 8, PARTS_MAX = 32, ITERATIONS = 8 };

/* The lists nearest to a centre but for that of `slot` itself; returns how many. */
static uint32_t neighbours_of(struct sk_index *self, uint32_t slot, uint32_t *out)
{
    const struct sk_ivf_directory *directory = sk_ivf_directory_now(self->ivf);
    struct sk_prepared *prepared = &self->scratch.prepared;
    uint64_t best[NEIGHBOURS];
    uint32_t count = 0;
    sk_ivf_centre_get(self, slot, prepared->vector);
    sk_prepare(self, prepared);
    for (uint32_t other = 0; other < directory->slot_count; other++) {
        if (other == slot || !sk_ivf_has_list(directory, other))
            continue;
        const uint64_t key = sk_key(sk_ivf_centre(self, other)->norm_sq -
                                        2 * sk_ivf_centre_dot(self, prepared, other),
                                    other);
        if (count == NEIGHBOURS && key >= best[count - 1])
            continue;
        uint32_t at = count < NEIGHBOURS ? count++ : count - 1;
        for (; at > 0 && best[at - 1] > key; at--)
            best[at] = best[at - 1];
        best[at] = key;
    }
    for (uint32_t i = 0; i < count; i++)
        out[i] = sk_key_row(best[i]);
    return count;
}

static uint32_t nearest_of(const struct sk_index *self, const uint32_t *slots, uint32_t count,
                           float *distance)
{
    uint32_t nearest = slots[0];
    for (uint32_t i = 0; i < count; i++) {
        const float other = sk_ivf_centre(self, slots[i])->norm_sq -
                            2 * sk_ivf_centre_dot(self, &self->scratch.prepared, slots[i]);
        if (i == 0 || other < *distance) {
            *distance = other;
            nearest = slots[i];
        }
    }
    return nearest;
}

static void prepare(struct sk_index *self, const struct sk_ivf_pool *pool, uint32_t vector)
{
    struct sk_prepared *prepared = &self->scratch.prepared;
    memcpy(prepared->vector, sk_ivf_pool_vector(self, pool, vector), self->padded * sizeof(float));
    sk_prepare(self, prepared);
}

/* Centres of the parts of a list into fresh slots: the rows of it are the first of the pool. Fewer than
 * two where they are all equal, or nearly so. */
static enum sk_err find_parts(struct sk_index *self, const struct sk_ivf_pool *pool, uint32_t wanted,
                              float *centres, uint32_t *counts, struct sk_diag *d)
{
    struct sk_kmeans kmeans;
    const struct sk_kmeans_params params = {
        .kernels = self->kernels,
        .rows = pool->vectors,
        .row_count = pool->count,
        .dim = self->padded,
        .k = wanted,
        .iterations = ITERATIONS,
        .seed = self->params.seed,
    };
    void *scratch = malloc(sk_kmeans_scratch_bytes(pool->count, self->padded, wanted));
    if (scratch == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory to split a list of %u rows", pool->count);
    sk_kmeans_init(&kmeans, &params, centres, counts, scratch);
    while (!sk_kmeans_step(&kmeans, SIZE_MAX))
        continue;
    free(scratch);
    return SK_ERR_OK;
}

/* Rows of the neighbours that a new list is nearer to stay in the pool, those that are not leave it. */
static void keep_those_that_move(struct sk_index *self, struct sk_ivf_pool *pool, uint32_t first,
                                 const uint32_t *parts, uint32_t part_count)
{
    uint32_t kept = first;
    for (uint32_t i = first; i < pool->count; i++) {
        float own, other;
        prepare(self, pool, pool->movers[i].vector);
        (void)nearest_of(self, &pool->movers[i].from, 1, &own);
        const uint32_t part = nearest_of(self, parts, part_count, &other);
        if (!(other < own))
            continue;
        pool->movers[kept] = pool->movers[i];
        pool->movers[kept++].to = part;
    }
    pool->count = kept;
}

static bool stays(const struct sk_index *self, void *context, uint32_t row)
{
    const struct sk_ivf_pool *pool = context;
    if (sk_state(self, row) != SK_ROW_LIVE)
        return false;
    for (uint32_t i = 0; i < pool->count; i++) /* few: those that move from a neighbour */
        if (pool->movers[i].row == row)
            return false;
    return true;
}

/* The chains of the neighbours without the rows that move, in a directory that nobody sees yet. */
static void shorten(struct sk_index *self, struct sk_ivf_directory *directory,
                    const struct sk_ivf_pool *movers, const uint32_t *lists, uint32_t list_count)
{
    struct sk_ivf *ivf = self->ivf;
    for (uint32_t i = 0; i < list_count; i++) {
        const uint32_t before = sk_ivf_head(directory, lists[i]);
        struct sk_ivf_pool own = {.movers = movers->movers};
        while (own.count < movers->count && own.movers->from != lists[i]) {
            own.movers++;
            own.count++;
        }
        own.count = 0;
        while (own.movers + own.count < movers->movers + movers->count &&
               own.movers[own.count].from == lists[i])
            own.count++;
        if (own.count == 0)
            continue;
        uint32_t kept = 0;
        for (uint32_t head = before; head != SK_IVF_NO_BLOCK;) {
            const uint8_t *block = sk_ivf_block(ivf, ivf->list_form, head);
            const uint32_t *tail = sk_ivf_tail(ivf, ivf->list_form, block);
            for (uint32_t at = 0; at < tail[1]; at++)
                kept += stays(self, &own, sk_ivf_rows(ivf, ivf->list_form, block)[at]);
            head = tail[0];
        }
        atomic_store_explicit(&directory->heads[lists[i]],
                              sk_ivf_rewrite(self, ivf->list_form, before, kept, stays, &own),
                              memory_order_relaxed);
        sk_ivf_retire_chain(ivf, ivf->list_form, before);
        ivf->counts[lists[i]] = kept;
    }
}

/* One list ends, its rows and those of others that move go where the pool says. */
static enum sk_err replace(struct sk_index *self, uint32_t slot, struct sk_ivf_pool *pool, uint32_t own_count,
                           const uint32_t *lists, uint32_t list_count, uint32_t begun,
                           struct sk_ivf_directory *directory)
{
    struct sk_ivf *ivf = self->ivf;
    const struct sk_ivf_pool others = {.movers = pool->movers + own_count,
                                       .count = pool->count - own_count};
    const uint32_t before = sk_ivf_head(directory, slot);
    shorten(self, directory, &others, lists, list_count);
    sk_ivf_pool_place(self, pool, directory);
    atomic_store_explicit(&directory->heads[slot], SK_IVF_NO_LIST, memory_order_relaxed);
    sk_ivf_delta_end(self, slot);
    sk_ivf_publish(ivf, directory);
    sk_ivf_retire_chain(ivf, ivf->list_form, before);
    sk_ivf_retire(ivf, SK_IVF_OLD_SLOT, slot, NULL);
    atomic_fetch_add_explicit(&ivf->list_count, begun - 1, memory_order_relaxed);
    return SK_ERR_OK;
}

static enum sk_err reserve(struct sk_index *self, const struct sk_ivf_pool *pool, uint32_t slot,
                           const uint32_t *lists, uint32_t list_count, uint32_t slots, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const struct sk_ivf_directory *directory = sk_ivf_directory_now(ivf);
    uint32_t old_blocks = sk_ivf_chain_blocks(ivf, ivf->list_form, sk_ivf_head(directory, slot));
    for (uint32_t i = 0; i < list_count; i++)
        old_blocks += sk_ivf_chain_blocks(ivf, ivf->list_form, sk_ivf_head(directory, lists[i]));
    /* where the rows go is not known yet, but they go to these lists; and these are written again */
    const uint32_t blocks = pool->count / SK_IVF_BLOCK + 3 * (list_count + slots) + old_blocks;
    enum sk_err rc = sk_ivf_reserve(self, ivf->list_form, blocks, slots, 2 * blocks + 4, d);
    if (rc == SK_ERR_OK)
        rc = sk_delta_reserve(
            self, sk_ivf_pool_delta_bytes(pool) + slots * sk_ivf_delta_centre_bytes(self), d);
    return rc;
}

static enum sk_err split_pool(struct sk_index *self, uint32_t slot, struct sk_ivf_pool *pool,
                              const uint32_t *neighbours, uint32_t neighbour_count, uint32_t wanted,
                              const float *centres, const uint32_t *counts, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const uint32_t own_count = pool->count;
    uint32_t lists[PARTS_MAX + NEIGHBOURS], parts = 0;
    for (uint32_t i = 0; i < neighbour_count; i++)
        sk_ivf_pool_add_list(self, pool, neighbours[i], 0);
    enum sk_err rc = reserve(self, pool, slot, neighbours, neighbour_count, wanted, d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_ivf_directory *directory = sk_ivf_directory_copy(ivf, ivf->slot_count + wanted);
    if (directory == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for another directory of lists");
    for (uint32_t i = 0; i < wanted; i++) {
        if (counts[i] == 0)
            continue;
        lists[parts] = sk_ivf_slot_take(ivf);
        sk_ivf_centre_set(self, lists[parts], centres + (size_t)i * self->padded);
        ivf->counts[lists[parts]] = 0;
        ivf->split_from[lists[parts]] = 2 * sk_ivf_list_target(self);
        sk_ivf_delta_centre(self, lists[parts]);
        atomic_store_explicit(&directory->heads[lists[parts++]], SK_IVF_NO_BLOCK, memory_order_relaxed);
    }
    memcpy(lists + parts, neighbours, neighbour_count * sizeof *neighbours);
    for (uint32_t i = 0; i < own_count; i++) {
        float distance;
        prepare(self, pool, pool->movers[i].vector);
        pool->movers[i].to = nearest_of(self, lists, parts + neighbour_count, &distance);
    }
    keep_those_that_move(self, pool, own_count, lists, parts);
    return replace(self, slot, pool, own_count, neighbours, neighbour_count, parts, directory);
}

enum sk_err sk_ivf_split(struct sk_index *self, uint32_t slot, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    uint32_t neighbours[NEIGHBOURS], counts[PARTS_MAX];
    const uint32_t neighbour_count = neighbours_of(self, slot, neighbours);
    uint32_t capacity = ivf->counts[slot], parts = ivf->counts[slot] / sk_ivf_list_target(self);
    parts = parts < 2 ? 2 : parts > PARTS_MAX ? PARTS_MAX : parts;
    for (uint32_t i = 0; i < neighbour_count; i++)
        capacity += ivf->counts[neighbours[i]];
    struct sk_ivf_pool pool;
    enum sk_err rc = sk_ivf_pool_init(self, &pool, capacity, d);
    if (rc != SK_ERR_OK)
        return rc;
    float *centres = malloc((size_t)parts * self->padded * sizeof *centres);
    if (centres == NULL) {
        rc = sk_fail(d, SK_ERR_NOMEM, "no memory to split a list");
        goto out;
    }
    sk_ivf_pool_add_list(self, &pool, slot, 0);
    ivf->split_from[slot] = 2 * ivf->counts[slot]; /* when nothing comes of it: not at once again */
    if (pool.count < 2 * parts)
        goto out;
    rc = find_parts(self, &pool, parts, centres, counts, d);
    uint32_t filled = 0;
    for (uint32_t i = 0; i < parts && rc == SK_ERR_OK; i++)
        filled += counts[i] > 0;
    if (rc == SK_ERR_OK && filled > 1)
        rc = split_pool(self, slot, &pool, neighbours, neighbour_count, parts, centres, counts, d);
out:
    free(centres);
    sk_ivf_pool_deinit(&pool);
    return rc;
}

enum sk_err sk_ivf_merge(struct sk_index *self, uint32_t slot, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    uint32_t neighbours[NEIGHBOURS];
    const uint32_t neighbour_count = neighbours_of(self, slot, neighbours);
    struct sk_ivf_pool pool;
    if (neighbour_count == 0)
        return SK_ERR_OK; /* the only list */
    enum sk_err rc = sk_ivf_pool_init(self, &pool, ivf->counts[slot], d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_ivf_pool_add_list(self, &pool, slot, 0);
    for (uint32_t i = 0; i < pool.count; i++) {
        float distance;
        prepare(self, &pool, i);
        pool.movers[i].to = nearest_of(self, neighbours, neighbour_count, &distance);
    }
    rc = reserve(self, &pool, slot, neighbours, neighbour_count, 0, d);
    struct sk_ivf_directory *directory = rc == SK_ERR_OK ? sk_ivf_directory_copy(ivf, 0) : NULL;
    if (rc == SK_ERR_OK && directory == NULL)
        rc = sk_fail(d, SK_ERR_NOMEM, "no memory for another directory of lists");
    if (rc == SK_ERR_OK)
        rc = replace(self, slot, &pool, pool.count, NULL, 0, 0, directory);
    sk_ivf_pool_deinit(&pool);
    return rc;
}
