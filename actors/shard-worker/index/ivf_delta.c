/* The log of changes of lists, behind the records of delta.c:
 *   10 row u32, lseq u64, list u32                a row came (list all ones - 2: into the buffer)
 *   11 slot u32, scale f32, padded x i8           a list begins, with its centre
 *   12 slot u32                                   it ends; no live row is in it any more
 *   13 list u32, count u32, rows u32 x count      rows are in this list now, wherever they were
 * Played back, records say which list a row is in; the codes of rows that came or moved are made again at
 * the end, from their vectors. */
#include "actors/shard-worker/index/ivf.h"

#include <stdlib.h>

enum { PLACE = 10, CENTRE = 11, END = 12, MOVES = 13 };

/* ---- writing ---- */

static void put_u8(struct sk_index *self, unsigned value)
{
    const uint8_t byte = (uint8_t)value;
    sk_delta_put(self, &byte, 1);
}

static void put_u32(struct sk_index *self, uint32_t value)
{
    sk_delta_put(self, &value, sizeof value);
}

void sk_ivf_delta_place(struct sk_index *self, uint32_t row, uint32_t list)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, PLACE);
    put_u32(self, row);
    sk_delta_put(self, sk_lseq_of(self, row), sizeof(uint64_t));
    put_u32(self, list);
}

size_t sk_ivf_delta_centre_bytes(const struct sk_index *self)
{
    return 1 + 4 + sizeof(float) + self->padded;
}

void sk_ivf_delta_centre(struct sk_index *self, uint32_t slot)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, CENTRE);
    put_u32(self, slot);
    sk_delta_put(self, &sk_ivf_centre(self, slot)->scale, sizeof(float));
    sk_delta_put(self, sk_ivf_centre_plane(self, slot), self->padded);
}

void sk_ivf_delta_end(struct sk_index *self, uint32_t slot)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, END);
    put_u32(self, slot);
}

void sk_ivf_delta_moves(struct sk_index *self, uint32_t list, const uint32_t *rows, uint32_t count)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, MOVES);
    put_u32(self, list);
    put_u32(self, count);
    sk_delta_put(self, rows, count * sizeof *rows);
}

/* ---- reading ---- */

static uint32_t *live_in(struct sk_ivf *ivf, uint32_t list)
{
    return list < ivf->placed_slots ? &ivf->placed_live[list] : NULL;
}

static void count_live(struct sk_ivf *ivf, uint32_t list, int change)
{
    uint32_t *live = live_in(ivf, list);
    if (live != NULL)
        *live += (uint32_t)change;
}

static bool fit(struct sk_ivf *ivf, uint32_t rows, uint32_t slots)
{
    if (rows > ivf->placed_count) {
        const uint32_t wanted = rows + rows / 2 + 64;
        uint32_t *grown = realloc(ivf->placed, wanted * sizeof *grown);
        if (grown == NULL)
            return false;
        memset(grown + ivf->placed_count, 0xFF, (wanted - ivf->placed_count) * sizeof *grown);
        ivf->placed = grown;
        ivf->placed_count = wanted;
    }
    if (slots > ivf->placed_slots) {
        const uint32_t wanted = slots + slots / 2 + 16;
        uint32_t *grown = realloc(ivf->placed_live, wanted * sizeof *grown);
        if (grown == NULL)
            return false;
        memset(grown + ivf->placed_slots, 0, (wanted - ivf->placed_slots) * sizeof *grown);
        ivf->placed_live = grown;
        ivf->placed_slots = wanted;
    }
    return true;
}

/* Where rows are, as the image had it. */
static bool begin(struct sk_index *self)
{
    struct sk_ivf *ivf = self->ivf;
    const struct sk_ivf_directory *directory = sk_ivf_directory_now(ivf);
    if (ivf->placed != NULL)
        return true;
    if (!fit(ivf, sk_row_count(self) + 1, directory->slot_count + 1))
        return false;
    for (uint32_t slot = 0; slot <= directory->slot_count; slot++) {
        const uint32_t list = slot == directory->slot_count ? SK_IVF_BUFFER : slot;
        const enum sk_ivf_form form = sk_ivf_form_of(ivf, list);
        uint32_t head = list == SK_IVF_BUFFER || sk_ivf_has_list(directory, list)
                            ? sk_ivf_head(directory, list)
                            : SK_IVF_NO_BLOCK;
        while (head != SK_IVF_NO_BLOCK) {
            const uint8_t *block = sk_ivf_block(ivf, form, head);
            const uint32_t *tail = sk_ivf_tail(ivf, form, block);
            for (uint32_t i = 0; i < tail[1]; i++) {
                const uint32_t row = sk_ivf_rows(ivf, form, block)[i];
                ivf->placed[row] = list;
                if (sk_state(self, row) == SK_ROW_LIVE)
                    count_live(ivf, list, 1);
            }
            head = tail[0];
        }
    }
    return true;
}

void sk_ivf_replay_removed(struct sk_index *self, uint32_t row)
{
    if (self->ivf->placed != NULL && row < self->ivf->placed_count)
        count_live(self->ivf, self->ivf->placed[row], -1);
}

static bool is_list(const struct sk_index *self, uint32_t list)
{
    return list == SK_IVF_BUFFER || sk_ivf_has_list(sk_ivf_directory_now(self->ivf), list);
}

static enum sk_err apply_place(struct sk_delta_cursor *c)
{
    struct sk_index *self = c->index;
    uint32_t row, list;
    uint64_t lseq;
    if (!sk_delta_get(c, &row, sizeof row) || !sk_delta_get(c, &lseq, sizeof lseq) ||
        !sk_delta_get(c, &list, sizeof list))
        return sk_delta_bad(c, "cut off", 0);
    if (!is_list(self, list))
        return sk_delta_bad(c, "a row in a list that is not there", row);
    enum sk_err rc = sk_delta_new_row(c, row, lseq);
    if (rc != SK_ERR_OK)
        return rc;
    if (!fit(self->ivf, row + 1, 0))
        return sk_fail(c->d, SK_ERR_NOMEM, "no memory to replay an index delta");
    self->ivf->placed[row] = list;
    count_live(self->ivf, list, 1);
    return SK_ERR_OK;
}

static enum sk_err apply_centre(struct sk_delta_cursor *c)
{
    struct sk_index *self = c->index;
    struct sk_ivf *ivf = self->ivf;
    int8_t *plane = self->scratch.prepared.narrow;
    uint32_t slot;
    float scale;
    if (!sk_delta_get(c, &slot, sizeof slot) || !sk_delta_get(c, &scale, sizeof scale) ||
        !sk_delta_get(c, plane, self->padded))
        return sk_delta_bad(c, "cut off", 0);
    if (slot > ivf->slot_count || is_list(self, slot) || !sk_ivf_centre_is_sound(self, plane, scale))
        return sk_delta_bad(c, "the centre of a list that is there, or no centre", slot);
    if (slot == ivf->slot_count) {
        enum sk_err rc = sk_ivf_reserve(self, ivf->list_form, 0, ivf->free_slots.count + 1, 1, c->d);
        struct sk_ivf_directory *directory =
            rc == SK_ERR_OK ? sk_ivf_directory_copy(ivf, slot + slot / 4 + 16) : NULL;
        if (rc != SK_ERR_OK)
            return rc;
        if (directory == NULL)
            return sk_fail(c->d, SK_ERR_NOMEM, "no memory to replay an index delta");
        sk_ivf_publish(ivf, directory);
        ivf->slot_count++;
        sk_ivf_reclaim(self);
    }
    if (!fit(ivf, 0, slot + 1))
        return sk_fail(c->d, SK_ERR_NOMEM, "no memory to replay an index delta");
    memcpy(sk_ivf_centre_plane(self, slot), plane, self->padded);
    sk_ivf_centre_measure(self, slot, scale);
    ivf->counts[slot] = 0;
    ivf->placed_live[slot] = 0;
    atomic_store(&sk_ivf_directory_now(ivf)->heads[slot], SK_IVF_NO_BLOCK);
    atomic_fetch_add(&ivf->list_count, 1);
    return SK_ERR_OK;
}

static enum sk_err apply_end(struct sk_delta_cursor *c)
{
    struct sk_index *self = c->index;
    struct sk_ivf *ivf = self->ivf;
    uint32_t slot;
    if (!sk_delta_get(c, &slot, sizeof slot) || slot == SK_IVF_BUFFER || !is_list(self, slot))
        return sk_delta_bad(c, "the end of a list that is not there", 0);
    if (ivf->placed_live[slot] != 0)
        return sk_delta_bad(c, "the end of a list that has rows", slot);
    const uint32_t head = sk_ivf_head(sk_ivf_directory_now(ivf), slot);
    enum sk_err rc = sk_ivf_reserve(self, ivf->list_form, 0, 0,
                                    sk_ivf_chain_blocks(ivf, ivf->list_form, head) + 1, c->d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_ivf_retire_chain(ivf, ivf->list_form, head);
    atomic_store(&sk_ivf_directory_now(ivf)->heads[slot], SK_IVF_NO_LIST);
    atomic_fetch_sub(&ivf->list_count, 1);
    return SK_ERR_OK;
}

static enum sk_err apply_moves(struct sk_delta_cursor *c)
{
    struct sk_index *self = c->index;
    struct sk_ivf *ivf = self->ivf;
    uint32_t list, count, row;
    if (!sk_delta_get(c, &list, sizeof list) || !sk_delta_get(c, &count, sizeof count) ||
        !is_list(self, list))
        return sk_delta_bad(c, "rows that move to a list that is not there", 0);
    for (uint32_t i = 0; i < count; i++) {
        if (!sk_delta_get(c, &row, sizeof row) || row >= sk_row_count(self) ||
            sk_state(self, row) == SK_ROW_EMPTY)
            return sk_delta_bad(c, "a row that moves is not there", i);
        if (!sk_mark_needs_code(self, row) || !fit(ivf, row + 1, 0))
            return sk_fail(c->d, SK_ERR_NOMEM, "no memory to replay an index delta");
        if (sk_state(self, row) == SK_ROW_LIVE) {
            count_live(ivf, ivf->placed[row], -1);
            count_live(ivf, list, 1);
        }
        ivf->placed[row] = list;
    }
    return SK_ERR_OK;
}

enum sk_err sk_ivf_apply_record(struct sk_delta_cursor *c, unsigned record)
{
    if (c->index->ivf == NULL || record < PLACE || record > MOVES)
        return sk_delta_bad(c, "an unknown record", record);
    if (!begin(c->index))
        return sk_fail(c->d, SK_ERR_NOMEM, "no memory to replay an index delta");
    switch (record) {
    case PLACE:
        return apply_place(c);
    case CENTRE:
        return apply_centre(c);
    case END:
        return apply_end(c);
    default:
        return apply_moves(c);
    }
}

/* ---- the end of a load ---- */

static bool is_still_there(const struct sk_index *self, void *context, uint32_t row)
{
    const uint32_t *list = context;
    return sk_state(self, row) != SK_ROW_EMPTY && self->ivf->placed[row] == *list &&
           !sk_needs_code(self, row);
}

enum sk_err sk_ivf_load_drop(struct sk_index *self, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    uint32_t list = SK_IVF_BUFFER;
    if (!begin(self))
        return sk_fail(d, SK_ERR_NOMEM, "no memory to finish loading an index");
    enum sk_err rc = sk_ivf_filter_list(self, list, is_still_there, &list, d);
    for (list = 0; list < ivf->slot_count && rc == SK_ERR_OK; list++)
        if (is_list(self, list)) {
            rc = sk_ivf_filter_list(self, list, is_still_there, &list, d);
            sk_ivf_reclaim(self);
        }
    return rc;
}

enum sk_err sk_ivf_load_row(struct sk_index *self, uint32_t row, const float *rotated, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const uint32_t list = ivf->placed[row];
    sk_ivf_reclaim(self);
    enum sk_err rc = sk_ivf_reserve(self, sk_ivf_form_of(ivf, list), 1, 0, 1, d);
    if (rc == SK_ERR_OK)
        sk_ivf_append(self, list, row, rotated);
    return rc;
}

void sk_ivf_load_end(struct sk_index *self)
{
    struct sk_ivf *ivf = self->ivf;
    const uint32_t from = 2 * sk_ivf_list_target(self);
    free(ivf->placed);
    free(ivf->placed_live);
    ivf->placed = ivf->placed_live = NULL;
    ivf->placed_count = ivf->placed_slots = 0;
    sk_ivf_reclaim(self);
    ivf->free_slots.count = 0;
    for (uint32_t slot = ivf->slot_count; slot-- > 0;) {
        if (!is_list(self, slot)) {
            ivf->free_slots.rows[ivf->free_slots.count++] = slot;
            continue;
        }
        ivf->split_from[slot] = from;
        if (ivf->counts[slot] > from)
            (void)sk_row_list_push(&ivf->to_split, slot); /* else when the next row comes */
    }
}
