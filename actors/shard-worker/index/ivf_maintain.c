/* Work between inserts: merging the buffer into the lists, taking swept rows out. */
#include "actors/shard-worker/index/ivf.h"

enum {
    MERGE_ROWS = 1024, /* of a step */
    SWEEP_LISTS = 8,
};

/* ---- the buffer ---- */

static bool is_live(const struct sk_index *self, void *context, uint32_t row)
{
    (void)context;
    return sk_state(self, row) == SK_ROW_LIVE;
}

static uint32_t count_rows(const struct sk_index *self, uint32_t list, sk_ivf_keeps *keeps, void *context,
                           uint32_t *blocks)
{
    const struct sk_ivf *ivf = self->ivf;
    const enum sk_ivf_form form = sk_ivf_form_of(ivf, list);
    uint32_t head = sk_ivf_head(sk_ivf_directory_now(ivf), list), count = 0;
    for (*blocks = 0; head != SK_IVF_NO_BLOCK; ++*blocks) {
        const uint8_t *block = sk_ivf_block(ivf, form, head);
        const uint32_t *tail = sk_ivf_tail(ivf, form, block);
        for (uint32_t i = 0; i < tail[1]; i++)
            count += keeps(self, context, sk_ivf_rows(ivf, form, block)[i]);
        head = tail[0];
    }
    return count;
}

/* The rows of the pool, the oldest of the buffer, go to their lists; the newest `staying` do not. */
static enum sk_err merge_pool(struct sk_index *self, struct sk_ivf_pool *pool, uint32_t staying,
                              uint32_t old_blocks, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const uint32_t before = sk_ivf_head(sk_ivf_directory_now(ivf), SK_IVF_BUFFER);
    sk_ivf_pool_sort(pool);
    const uint32_t blocks = sk_ivf_pool_blocks(pool), olds = old_blocks + blocks + 1;
    const bool is_one_form = ivf->list_form == SK_IVF_PLAIN;
    enum sk_err rc =
        sk_ivf_reserve(self, SK_IVF_PLAIN, staying / SK_IVF_BLOCK + 1 + (is_one_form ? blocks : 0), 0, olds, d);
    if (rc == SK_ERR_OK && !is_one_form)
        rc = sk_ivf_reserve(self, SK_IVF_CODED, blocks, 0, olds, d);
    if (rc == SK_ERR_OK)
        rc = sk_delta_reserve(self, sk_ivf_pool_delta_bytes(pool), d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_ivf_directory *directory = sk_ivf_directory_copy(ivf, 0);
    if (directory == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for another directory of lists");
    sk_ivf_pool_place(self, pool, directory);
    atomic_store_explicit(&directory->buffer,
                          sk_ivf_rewrite(self, SK_IVF_PLAIN, before, staying, is_live, NULL),
                          memory_order_relaxed);
    sk_ivf_publish(ivf, directory);
    sk_ivf_retire_chain(ivf, SK_IVF_PLAIN, before);
    atomic_store_explicit(&ivf->buffer_count, staying, memory_order_relaxed);
    return SK_ERR_OK;
}

static enum sk_err merge_buffer(struct sk_index *self, struct sk_diag *d)
{
    struct sk_ivf_pool pool;
    uint32_t blocks;
    const uint32_t live = count_rows(self, SK_IVF_BUFFER, is_live, NULL, &blocks);
    const uint32_t moving = live < MERGE_ROWS ? live : MERGE_ROWS;
    enum sk_err rc = sk_ivf_pool_init(self, &pool, moving, d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_ivf_pool_add_list(self, &pool, SK_IVF_BUFFER, live - moving);
    for (uint32_t i = 0; i < pool.count; i++) {
        struct sk_prepared *prepared = &self->scratch.prepared;
        memcpy(prepared->vector, sk_ivf_pool_vector(self, &pool, i), self->padded * sizeof(float));
        sk_prepare(self, prepared);
        pool.movers[i].to = sk_ivf_nearest(self, prepared);
    }
    rc = merge_pool(self, &pool, live - moving, blocks, d);
    sk_ivf_pool_deinit(&pool);
    return rc;
}

/* ---- sweeping ---- */

enum sk_err sk_ivf_filter_list(struct sk_index *self, uint32_t list, sk_ivf_keeps *keeps, void *context,
                               struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const enum sk_ivf_form form = sk_ivf_form_of(ivf, list);
    struct sk_ivf_directory *directory = sk_ivf_directory_now(ivf);
    const uint32_t before = sk_ivf_head(directory, list);
    uint32_t blocks;
    const uint32_t kept = count_rows(self, list, keeps, context, &blocks);
    const uint32_t count = list == SK_IVF_BUFFER
                               ? atomic_load_explicit(&ivf->buffer_count, memory_order_relaxed)
                               : ivf->counts[list];
    if (kept == count)
        return SK_ERR_OK;
    enum sk_err rc = sk_ivf_reserve(self, form, blocks, 0, blocks, d);
    if (rc != SK_ERR_OK)
        return rc;
    atomic_store_explicit(list == SK_IVF_BUFFER ? &directory->buffer : &directory->heads[list],
                          sk_ivf_rewrite(self, form, before, kept, keeps, context),
                          memory_order_release);
    sk_ivf_retire_chain(ivf, form, before);
    if (list == SK_IVF_BUFFER)
        atomic_store_explicit(&ivf->buffer_count, kept, memory_order_relaxed);
    else
        ivf->counts[list] = kept;
    return SK_ERR_OK;
}

static bool is_not_swept(const struct sk_index *self, void *context, uint32_t row)
{
    (void)context;
    return sk_state(self, row) != SK_ROW_SWEPT;
}

enum sk_err sk_ivf_sweep_slice(struct sk_index *self, bool *is_done, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const struct sk_ivf_directory *directory = sk_ivf_directory_now(ivf);
    enum sk_err rc = SK_ERR_OK;
    *is_done = false;
    if (self->cursor == 0)
        rc = sk_ivf_filter_list(self, SK_IVF_BUFFER, is_not_swept, NULL, d);
    for (uint32_t n = 0; n < SWEEP_LISTS && rc == SK_ERR_OK && self->cursor < directory->slot_count; n++) {
        const uint32_t slot = self->cursor++;
        if (!sk_ivf_has_list(directory, slot))
            continue;
        rc = sk_ivf_filter_list(self, slot, is_not_swept, NULL, d);
        if (rc == SK_ERR_OK && ivf->counts[slot] < sk_ivf_list_target(self) / 4)
            (void)sk_row_list_push(&ivf->to_merge, slot); /* else the next sweep finds it */
        sk_ivf_reclaim(self);
    }
    *is_done = rc == SK_ERR_OK && self->cursor >= directory->slot_count;
    ivf->has_work = true; /* the lists that have become small */
    return rc;
}

/* ---- what there is to do ---- */

static bool wants_merge(const struct sk_index *self, unsigned flags)
{
    const struct sk_ivf *ivf = self->ivf;
    const uint32_t rows = atomic_load_explicit(&ivf->buffer_count, memory_order_relaxed);
    if (rows == 0 || atomic_load_explicit(&ivf->list_count, memory_order_relaxed) == 0)
        return false;
    (void)flags;
    return self->params.kind != SK_INDEX_HYBRID || rows > ivf->buffer_rows_max;
}

static enum sk_err change_list(struct sk_index *self, struct sk_row_list *from, bool is_split,
                               struct sk_diag *d)
{
    const uint32_t slot = from->rows[--from->count];
    const struct sk_ivf *ivf = self->ivf;
    const uint32_t target = sk_ivf_list_target(self);
    if (!sk_ivf_has_list(sk_ivf_directory_now(ivf), slot))
        return SK_ERR_OK; /* it has gone another way */
    if (is_split ? ivf->counts[slot] <= 2 * target : ivf->counts[slot] >= target / 4) {
        ivf->split_from[slot] = 2 * target;
        return SK_ERR_OK;
    }
    if (!sk_ivf_can_split(self))
        return SK_ERR_OK;
    return is_split ? sk_ivf_split(self, slot, d) : sk_ivf_merge(self, slot, d);
}

enum sk_err sk_ivf_work(struct sk_index *self, unsigned flags, bool *has_done, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    enum sk_err rc = SK_ERR_OK;
    *has_done = true;
    if (ivf->training.is_running || sk_ivf_wants_training(self))
        rc = sk_ivf_train_step(self, d);
    else if (wants_merge(self, flags))
        rc = merge_buffer(self, d);
    else if (ivf->to_split.count > 0)
        rc = change_list(self, &ivf->to_split, true, d);
    else if (ivf->to_merge.count > 0)
        rc = change_list(self, &ivf->to_merge, false, d);
    else
        *has_done = false;
    if (*has_done)
        sk_ivf_reclaim(self);
    if (rc == SK_ERR_NOMEM) { /* searches go on as before; tried again when there is more to do */
        *has_done = false;
        rc = SK_ERR_OK;
    }
    return rc;
}
