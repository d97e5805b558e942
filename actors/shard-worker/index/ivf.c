/* Blocks, lists and the directory: where rows are kept, and how what was replaced comes back. */
#include "actors/shard-worker/index/ivf.h"

#include <math.h>
#include <stdlib.h>

enum {
    OLD_AT_ONCE = 16, /* so much is let go of together: one look at the readers for all of it */
    LIST_ROWS_MIN = 64,
    REFINE_MAX = 1000,
    BUFFER_ROWS_MIN = 256, /* hybrid: twice flat_below within these */
    BUFFER_ROWS_MAX = 16384,
};
static const uint64_t RESERVE_BYTES = (uint64_t)64 << 30;

enum sk_err sk_ivf_check_params(struct sk_index_params *params, struct sk_diag *d)
{
    if (params->nlist > SK_IVF_LISTS_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "nlist", "nlist %u, want 0 (automatic) to %d",
                             params->nlist, SK_IVF_LISTS_MAX);
    if (params->pq_m > sk_rotation_padded(params->dim))
        return sk_fail_field(d, SK_ERR_INVALID, "pq_m", "pq_m %u, want 0 (automatic) to %u for dim %u",
                             params->pq_m, sk_rotation_padded(params->dim), params->dim);
    if (params->refine > REFINE_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "refine", "refine %u, want 0 (automatic) to %d",
                             params->refine, REFINE_MAX);
    return SK_ERR_OK;
}

/* ---- making ---- */

static uint32_t aligned(uint32_t bytes, uint32_t to)
{
    return (bytes + to - 1) / to * to;
}

static void layout_init(struct sk_ivf_layout *self, enum sk_ivf_form form, uint32_t codes_bytes)
{
    const bool is_plain = form == SK_IVF_PLAIN;
    self->codes_bytes = codes_bytes;
    self->adds_at = codes_bytes;
    self->scales_at = self->adds_at + SK_IVF_BLOCK * 4;
    self->errors_at = self->scales_at + SK_IVF_BLOCK * (is_plain ? 4U : 2U);
    self->rows_at = self->errors_at + (is_plain ? SK_IVF_BLOCK * 4U : 0U);
    self->tail_at = self->rows_at + SK_IVF_BLOCK * 4;
    self->block_bytes = aligned(self->tail_at + 8, 64);
}

static bool regions_init(struct sk_index *self)
{
    struct sk_ivf *ivf = self->ivf;
    const uint64_t budget = self->params.memory_bytes_max;
    const size_t bytes = budget > 0 && budget < RESERVE_BYTES ? budget : RESERVE_BYTES;
    layout_init(&ivf->blocks[SK_IVF_PLAIN].layout, SK_IVF_PLAIN, SK_IVF_BLOCK * self->padded);
    layout_init(&ivf->blocks[SK_IVF_CODED].layout, SK_IVF_CODED, SK_IVF_BLOCK / 2 * ivf->segments);
    return sk_region_reserve(&ivf->blocks[SK_IVF_PLAIN].region, bytes) &&
           sk_region_reserve(&ivf->blocks[SK_IVF_CODED].region, bytes) &&
           sk_region_reserve(&ivf->centre_planes, (size_t)SK_IVF_LISTS_MAX * self->padded) &&
           sk_region_reserve(&ivf->centres, SK_IVF_LISTS_MAX * sizeof(struct sk_ivf_centre));
}

bool sk_ivf_init(struct sk_index *self)
{
    struct sk_ivf *ivf = calloc(1, sizeof *ivf);
    uint32_t dims = 4; /* a segment's: the most of 1, 2, 4, 8 that gives at least pq_m segments */
    if (ivf == NULL)
        return false;
    self->ivf = ivf;
    if (self->params.pq_m > 0)
        for (dims = SK_IVF_SEGMENT_DIMS_MAX; self->padded / dims < self->params.pq_m;)
            dims /= 2;
    ivf->segments = self->padded / dims;
    ivf->buffer_rows_max = 2 * self->params.flat_below;
    if (ivf->buffer_rows_max < BUFFER_ROWS_MIN)
        ivf->buffer_rows_max = BUFFER_ROWS_MIN;
    if (ivf->buffer_rows_max > BUFFER_ROWS_MAX)
        ivf->buffer_rows_max = BUFFER_ROWS_MAX;
    ivf->list_form = self->params.kind == SK_INDEX_IVF_FLAT ? SK_IVF_PLAIN : SK_IVF_CODED;
    sk_ivf_codes_init(ivf, dims);
    ivf->vector = malloc(self->padded * sizeof(float));
    ivf->centre = malloc(self->padded * sizeof(float));
    ivf->code = malloc(self->padded * sizeof(float));
    struct sk_ivf_directory *directory = calloc(1, sizeof *directory);
    if (directory != NULL)
        atomic_store(&directory->buffer, SK_IVF_NO_BLOCK);
    atomic_store(&ivf->directory, directory);
    return directory != NULL && ivf->vector != NULL && ivf->centre != NULL && ivf->code != NULL &&
           regions_init(self);
}

void sk_ivf_deinit(struct sk_index *self)
{
    struct sk_ivf *ivf = self->ivf;
    if (ivf == NULL)
        return;
    sk_ivf_train_end(ivf);
    for (uint32_t i = 0; i < ivf->old_count; i++)
        free(ivf->old[i].directory);
    for (unsigned form = 0; form < SK_IVF_FORM_COUNT; form++) {
        sk_region_release(&ivf->blocks[form].region);
        free(ivf->blocks[form].free);
    }
    sk_region_release(&ivf->centre_planes);
    sk_region_release(&ivf->centres);
    free(sk_ivf_directory_now(ivf));
    free(ivf->counts);
    free(ivf->split_from);
    free(ivf->free_slots.rows);
    free(ivf->to_split.rows);
    free(ivf->to_merge.rows);
    free(ivf->old);
    free(ivf->vector);
    free(ivf->centre);
    free(ivf->code);
    free(ivf->placed);
    free(ivf->placed_live);
    free(ivf);
    self->ivf = NULL;
}

uint32_t sk_ivf_row_bytes(const struct sk_index *self)
{
    const uint32_t block_bytes = self->ivf->blocks[self->ivf->list_form].layout.block_bytes;
    return (block_bytes + SK_IVF_BLOCK - 1) / SK_IVF_BLOCK;
}

/* ---- room ---- */

static bool commit(struct sk_index *self, struct sk_region *region, size_t bytes)
{
    const size_t before = region->committed, growth = sk_region_growth(region, bytes);
    const uint64_t used = atomic_load_explicit(&self->memory_bytes, memory_order_relaxed);
    if (self->params.memory_bytes_max > 0 && used + growth > self->params.memory_bytes_max)
        return false;
    if (!sk_region_commit(region, bytes))
        return false;
    atomic_fetch_add_explicit(&self->memory_bytes, region->committed - before, memory_order_relaxed);
    return true;
}

static bool grow(void *array, uint32_t *capacity, uint32_t count, size_t item_bytes)
{
    void **slot = array;
    if (count <= *capacity)
        return true;
    const uint32_t wanted = count + count / 2 + 16;
    void *grown = realloc(*slot, wanted * item_bytes);
    if (grown == NULL)
        return false;
    *slot = grown;
    *capacity = wanted;
    return true;
}

static bool reserve_blocks(struct sk_index *self, struct sk_ivf_blocks *blocks, uint32_t count)
{
    if (blocks->free_count >= count)
        return true;
    const uint32_t all = blocks->count + (count - blocks->free_count);
    return commit(self, &blocks->region, (size_t)all * blocks->layout.block_bytes) &&
           grow(&blocks->free, &blocks->free_capacity, all, sizeof *blocks->free);
}

static bool reserve_slots(struct sk_index *self, uint32_t count)
{
    struct sk_ivf *ivf = self->ivf;
    uint32_t capacity = ivf->slot_capacity;
    if (ivf->free_slots.count >= count)
        return true;
    const uint32_t all = ivf->slot_count + (count - ivf->free_slots.count);
    if (all > SK_IVF_LISTS_MAX || !commit(self, &ivf->centre_planes, (size_t)all * self->padded) ||
        !commit(self, &ivf->centres, all * sizeof(struct sk_ivf_centre)) ||
        !grow(&ivf->counts, &capacity, all, sizeof *ivf->counts))
        return false;
    capacity = ivf->slot_capacity;
    return grow(&ivf->split_from, &capacity, all, sizeof *ivf->split_from) &&
           grow(&ivf->free_slots.rows, &ivf->free_slots.capacity, all, sizeof(uint32_t)) &&
           (ivf->slot_capacity = capacity, true);
}

enum sk_err sk_ivf_reserve(struct sk_index *self, enum sk_ivf_form form, uint32_t blocks,
                           uint32_t slots, uint32_t olds, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    if (ivf->blocks[form].free_count < blocks)
        sk_ivf_reclaim(self);
    if (!grow(&ivf->old, &ivf->old_capacity, ivf->old_count + olds, sizeof *ivf->old))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u changes of lists", olds);
    if (!reserve_blocks(self, &ivf->blocks[form], blocks) || !reserve_slots(self, slots))
        return sk_fail(d, SK_ERR_NOMEM,
                       "the index uses %llu of its %llu bytes and has no room for %u more blocks of %u "
                       "bytes",
                       (unsigned long long)atomic_load(&self->memory_bytes),
                       (unsigned long long)self->params.memory_bytes_max, blocks,
                       ivf->blocks[form].layout.block_bytes);
    return SK_ERR_OK;
}

uint32_t sk_ivf_block_take(struct sk_ivf *ivf, enum sk_ivf_form form)
{
    struct sk_ivf_blocks *blocks = &ivf->blocks[form];
    if (blocks->free_count > 0)
        return blocks->free[--blocks->free_count];
    SK_CHECK((size_t)(blocks->count + 1) * blocks->layout.block_bytes <= blocks->region.committed);
    return blocks->count++;
}

uint32_t sk_ivf_slot_take(struct sk_ivf *ivf)
{
    if (ivf->free_slots.count > 0)
        return ivf->free_slots.rows[--ivf->free_slots.count];
    SK_CHECK(ivf->slot_count < ivf->slot_capacity);
    return ivf->slot_count++;
}

void sk_ivf_retire(struct sk_ivf *ivf, enum sk_ivf_what what, uint32_t at,
                   struct sk_ivf_directory *directory)
{
    SK_CHECK(ivf->old_count < ivf->old_capacity);
    ivf->old[ivf->old_count++] = (struct sk_ivf_old){what, at, directory};
}

uint32_t sk_ivf_chain_blocks(const struct sk_ivf *ivf, enum sk_ivf_form form, uint32_t head)
{
    uint32_t count = 0;
    for (; head != SK_IVF_NO_BLOCK; head = sk_ivf_tail(ivf, form, sk_ivf_block(ivf, form, head))[0])
        count++;
    return count;
}

void sk_ivf_retire_chain(struct sk_ivf *ivf, enum sk_ivf_form form, uint32_t head)
{
    for (; head != SK_IVF_NO_BLOCK; head = sk_ivf_tail(ivf, form, sk_ivf_block(ivf, form, head))[0])
        sk_ivf_retire(ivf, form == SK_IVF_PLAIN ? SK_IVF_OLD_PLAIN : SK_IVF_OLD_CODED, head, NULL);
}

static void let_go(struct sk_ivf *ivf, const struct sk_ivf_old *old)
{
    struct sk_ivf_blocks *blocks = &ivf->blocks[old->what == SK_IVF_OLD_CODED];
    if (old->what == SK_IVF_OLD_DIRECTORY)
        free(old->directory);
    else if (old->what == SK_IVF_OLD_SLOT)
        ivf->free_slots.rows[ivf->free_slots.count++] = old->at;
    else
        blocks->free[blocks->free_count++] = old->at;
}

/* Blocks at the end of a region that nobody uses are given back, when they are most of it. */
static void trim(struct sk_index *self, struct sk_ivf_blocks *blocks)
{
    if (blocks->free_count < blocks->count || blocks->count == 0)
        return;
    atomic_fetch_sub_explicit(&self->memory_bytes, blocks->region.committed, memory_order_relaxed);
    sk_region_empty(&blocks->region);
    blocks->count = blocks->free_count = 0;
}

void sk_ivf_reclaim(struct sk_index *self)
{
    struct sk_ivf *ivf = self->ivf;
    if (self->checkpoint.is_running) /* it may still have to write what was let go of */
        return;
    for (unsigned round = 0; round < 2; round++) {
        if (ivf->old_waiting == 0 && ivf->old_count > 0) {
            ivf->old_waiting = ivf->old_count;
            ivf->old_epoch = sk_epoch_next(self);
        }
        if (ivf->old_waiting == 0 || !sk_epoch_has_passed(self, ivf->old_epoch))
            break;
        for (uint32_t i = 0; i < ivf->old_waiting; i++)
            let_go(ivf, &ivf->old[i]);
        ivf->old_count -= ivf->old_waiting;
        memmove(ivf->old, ivf->old + ivf->old_waiting, ivf->old_count * sizeof *ivf->old);
        ivf->old_waiting = 0;
    }
    trim(self, &ivf->blocks[SK_IVF_PLAIN]);
    trim(self, &ivf->blocks[SK_IVF_CODED]);
}

/* ---- lists ---- */

uint32_t sk_ivf_chain_push(struct sk_ivf *ivf, struct sk_ivf_chain *chain, uint8_t **block)
{
    uint32_t *tail = NULL;
    if (chain->head != SK_IVF_NO_BLOCK)
        tail = sk_ivf_tail(ivf, chain->form, sk_ivf_block(ivf, chain->form, chain->head));
    if (tail == NULL || tail[1] == SK_IVF_BLOCK) {
        const uint32_t fresh = sk_ivf_block_take(ivf, chain->form);
        tail = sk_ivf_tail(ivf, chain->form, sk_ivf_block(ivf, chain->form, fresh));
        tail[0] = chain->head;
        tail[1] = 0;
        chain->head = fresh;
    }
    chain->count++;
    *block = sk_ivf_block(ivf, chain->form, chain->head);
    return tail[1]++;
}

void sk_ivf_copy_row(const struct sk_ivf *ivf, enum sk_ivf_form form, uint8_t *to, uint32_t to_at,
                     const uint8_t *from, uint32_t from_at)
{
    const struct sk_ivf_layout *layout = &ivf->blocks[form].layout;
    const uint32_t padded = layout->codes_bytes / SK_IVF_BLOCK;
    sk_ivf_rows(ivf, form, to)[to_at] = sk_ivf_rows(ivf, form, from)[from_at];
    sk_ivf_adds(ivf, form, to)[to_at] = sk_ivf_adds(ivf, form, from)[from_at];
    if (form == SK_IVF_PLAIN) {
        memcpy(to + (size_t)to_at * padded, from + (size_t)from_at * padded, padded);
        sk_ivf_scales(ivf, to)[to_at] = sk_ivf_scales(ivf, from)[from_at];
        sk_ivf_errors(ivf, to)[to_at] = sk_ivf_errors(ivf, from)[from_at];
        return;
    }
    for (uint32_t chunk = 0; chunk < ivf->segments / 2; chunk++)
        to[chunk * SK_IVF_BLOCK + to_at] = from[chunk * SK_IVF_BLOCK + from_at];
    sk_ivf_halves(ivf, to)[to_at] = sk_ivf_halves(ivf, from)[from_at];
}

struct sk_ivf_directory *sk_ivf_directory_copy(const struct sk_ivf *ivf, uint32_t slot_count)
{
    const struct sk_ivf_directory *now = sk_ivf_directory_now(ivf);
    if (slot_count < now->slot_count)
        slot_count = now->slot_count;
    struct sk_ivf_directory *copy = malloc(sizeof *copy + slot_count * sizeof *copy->heads);
    if (copy == NULL)
        return NULL;
    copy->slot_count = slot_count;
    atomic_init(&copy->buffer, sk_ivf_head(now, SK_IVF_BUFFER));
    for (uint32_t slot = 0; slot < slot_count; slot++)
        atomic_init(&copy->heads[slot],
                    slot < now->slot_count ? sk_ivf_head(now, slot) : SK_IVF_NO_LIST);
    return copy;
}

void sk_ivf_publish(struct sk_ivf *ivf, struct sk_ivf_directory *directory)
{
    struct sk_ivf_directory *before = sk_ivf_directory_now(ivf);
    atomic_store_explicit(&ivf->directory, directory, memory_order_release);
    sk_ivf_retire(ivf, SK_IVF_OLD_DIRECTORY, 0, before);
}

uint32_t sk_ivf_list_target(const struct sk_index *self)
{
    const double rows = (double)atomic_load_explicit(&self->live_count, memory_order_relaxed);
    /* Lists have between one and two times the target, about 1.4 times: 4 sqrt(n) lists, fewer where these
     * would leave most blocks half empty. */
    double target = self->params.nlist > 0 ? rows / (1.4 * self->params.nlist) : sqrt(rows) / 4;
    return target < LIST_ROWS_MIN ? LIST_ROWS_MIN : (uint32_t)target;
}

void sk_ivf_append(struct sk_index *self, uint32_t list, uint32_t row, const float *rotated)
{
    struct sk_ivf *ivf = self->ivf;
    const enum sk_ivf_form form = sk_ivf_form_of(ivf, list);
    struct sk_ivf_directory *directory = sk_ivf_directory_now(ivf);
    const uint32_t head = sk_ivf_head(directory, list);
    const uint8_t *before = head == SK_IVF_NO_BLOCK ? NULL : sk_ivf_block(ivf, form, head);
    const uint32_t count = before == NULL ? 0 : sk_ivf_tail(ivf, form, before)[1];
    const uint32_t fresh = sk_ivf_block_take(ivf, form);
    uint8_t *block = sk_ivf_block(ivf, form, fresh);
    const bool is_new = before == NULL || count == SK_IVF_BLOCK;
    if (is_new) {
        sk_ivf_tail(ivf, form, block)[0] = head;
        sk_ivf_tail(ivf, form, block)[1] = 1;
    } else {
        memcpy(block, before, ivf->blocks[form].layout.block_bytes);
        sk_ivf_tail(ivf, form, block)[1] = count + 1;
    }
    sk_ivf_centre_get(self, list, ivf->centre);
    sk_ivf_encode(self, form, block, is_new ? 0 : count, row, rotated, ivf->centre);
    atomic_store_explicit(list == SK_IVF_BUFFER ? &directory->buffer : &directory->heads[list], fresh,
                          memory_order_release);
    if (!is_new)
        sk_ivf_retire(ivf, form == SK_IVF_PLAIN ? SK_IVF_OLD_PLAIN : SK_IVF_OLD_CODED, head, NULL);
    if (list == SK_IVF_BUFFER)
        atomic_fetch_add_explicit(&ivf->buffer_count, 1, memory_order_relaxed);
    else
        ivf->counts[list]++;
}

enum sk_err sk_ivf_insert(struct sk_index *self, uint32_t row, uint64_t lseq, const float *rotated,
                          struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    struct sk_prepared *prepared = &self->scratch.prepared;
    uint32_t list = SK_IVF_BUFFER;
    if (ivf->list_form == SK_IVF_PLAIN || self->params.kind != SK_INDEX_HYBRID) {
        memcpy(prepared->vector, rotated, self->padded * sizeof *rotated);
        sk_prepare(self, prepared);
        list = sk_ivf_nearest(self, prepared);
        if (list == SK_IVF_NO_LIST)
            list = SK_IVF_BUFFER;
    }
    if (ivf->old_count - ivf->old_waiting >= OLD_AT_ONCE)
        sk_ivf_reclaim(self);
    enum sk_err rc = sk_ivf_reserve(self, sk_ivf_form_of(ivf, list), 1, 0, 1, d);
    if (rc != SK_ERR_OK)
        return rc;
    *sk_lseq_of(self, row) = lseq;
    sk_ivf_append(self, list, row, rotated);
    sk_state_set(self, row, SK_ROW_LIVE);
    if (list != SK_IVF_BUFFER && ivf->counts[list] > ivf->split_from[list]) {
        ivf->split_from[list] *= 2; /* asked for once; without memory for it again at twice the size */
        (void)sk_row_list_push(&ivf->to_split, list);
    }
    sk_ivf_delta_place(self, row, list);
    return SK_ERR_OK;
}
