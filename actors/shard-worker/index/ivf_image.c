/* Lists in a checkpoint, and what must hold of them. In the image, behind the parts of rows:
 *   head | heads of the lists u32 x slots | planes of the centres | their scales | plain blocks | coded blocks
 * Blocks are written as they lie, those that are free among them: a block that is in use never changes. */
#include "actors/shard-worker/index/ivf.h"

#include <stdlib.h>

enum { READ_BYTES = 1 << 20 /* whole blocks of the hash */, BLOCKS_SPARE = 1 << 16 };
static const float LENGTH_MAX = 4e36F;

struct sk_ivf_image_head {
    uint32_t segment_dims, list_form;
    uint32_t slot_count, buffer;
    uint32_t block_counts[SK_IVF_FORM_COUNT], block_bytes[SK_IVF_FORM_COUNT];
    uint32_t padding, hash; /* of the head with 0 here */
};
_Static_assert(sizeof(struct sk_ivf_image_head) == 40, "the head has no padding of the compiler's");

static uint32_t head_hash(struct sk_ivf_image_head head)
{
    head.hash = 0;
    return (uint32_t)sk_hash(1, &head, sizeof head);
}

static struct sk_ivf_image_head make_head(const struct sk_index *self)
{
    const struct sk_ivf *ivf = self->ivf;
    struct sk_ivf_image_head head = {
        .segment_dims = ivf->segment_dims,
        .list_form = ivf->list_form,
        .slot_count = sk_ivf_directory_now(ivf)->slot_count,
        .buffer = sk_ivf_head(sk_ivf_directory_now(ivf), SK_IVF_BUFFER),
    };
    if (head.slot_count > ivf->slot_count)
        head.slot_count = ivf->slot_count; /* room for more to come */
    for (unsigned form = 0; form < SK_IVF_FORM_COUNT; form++) {
        head.block_counts[form] = ivf->blocks[form].count;
        head.block_bytes[form] = ivf->blocks[form].layout.block_bytes;
    }
    head.hash = head_hash(head);
    return head;
}

/* ---- writing ---- */

size_t sk_ivf_image_bytes(const struct sk_index *self)
{
    const struct sk_ivf *ivf = self->ivf;
    /* any thread may ask: of the blocks as many as rows need, half a block a list more */
    const size_t lists = atomic_load_explicit(&ivf->list_count, memory_order_relaxed);
    const size_t blocks = atomic_load_explicit(&self->live_count, memory_order_relaxed) / SK_IVF_BLOCK +
                          lists / 2 + 1;
    return sizeof(struct sk_ivf_image_head) +
           lists * (sizeof(uint32_t) + sizeof(struct sk_ivf_centre) + self->padded) +
           blocks * ivf->blocks[ivf->list_form].layout.block_bytes;
}

size_t sk_ivf_frozen_bytes(const struct sk_index *self)
{
    return sizeof(struct sk_ivf_image_head) + make_head(self).slot_count * sizeof(uint32_t);
}

void sk_ivf_freeze(const struct sk_index *self, uint8_t *frozen, struct sk_section *sections)
{
    const struct sk_ivf *ivf = self->ivf;
    const struct sk_ivf_directory *directory = sk_ivf_directory_now(ivf);
    const struct sk_ivf_image_head head = make_head(self);
    memcpy(frozen, &head, sizeof head);
    for (uint32_t slot = 0; slot < head.slot_count; slot++) {
        const uint32_t block = sk_ivf_head(directory, slot);
        memcpy(frozen + sizeof head + slot * sizeof block, &block, sizeof block);
    }
    sections[0] = (struct sk_section){frozen, sizeof head};
    sections[1] = (struct sk_section){frozen + sizeof head, head.slot_count * sizeof(uint32_t)};
    sections[2] =
        (struct sk_section){ivf->centre_planes.base, (size_t)head.slot_count * self->padded};
    sections[3] =
        (struct sk_section){ivf->centres.base, head.slot_count * sizeof(struct sk_ivf_centre)};
    for (unsigned form = 0; form < SK_IVF_FORM_COUNT; form++)
        sections[4 + form] = (struct sk_section){
            ivf->blocks[form].region.base, (size_t)head.block_counts[form] * head.block_bytes[form]};
}

/* ---- reading ---- */

static enum sk_err check_head(const struct sk_index *self, const struct sk_ivf_image_head *head,
                              struct sk_diag *d)
{
    const struct sk_ivf *ivf = self->ivf;
    const uint64_t rows = sk_row_count(self);
    if (head->hash != head_hash(*head))
        return sk_fail(d, SK_ERR_INVALID, "index image: the checksum of the lists' head does not match");
    if (head->segment_dims != ivf->segment_dims || head->list_form != (uint32_t)ivf->list_form)
        return sk_fail(d, SK_ERR_INVALID, "index image: pq_m is %u, want %u",
                       self->padded / (head->segment_dims != 0 ? head->segment_dims : 1),
                       ivf->segments);
    bool fits = head->slot_count <= SK_IVF_LISTS_MAX && head->slot_count <= rows + BLOCKS_SPARE;
    for (unsigned form = 0; form < SK_IVF_FORM_COUNT; form++)
        fits = fits && head->block_bytes[form] == ivf->blocks[form].layout.block_bytes &&
               head->block_counts[form] <= 2 * rows + BLOCKS_SPARE;
    if (!fits)
        return sk_fail(d, SK_ERR_INVALID, "index image: the head of the lists makes no sense");
    return SK_ERR_OK;
}

/* Memory is asked for as the bytes come: a count that lies costs no more than the file is long. */
static enum sk_err read_blocks(struct sk_index *self, struct sk_ivf_blocks *blocks,
                               enum sk_ivf_form form, uint32_t count,
                               const struct sk_index_image_reader *reader, uint64_t *hash,
                               struct sk_diag *d)
{
    const uint32_t block_bytes = blocks->layout.block_bytes;
    const size_t all = (size_t)count * block_bytes;
    for (size_t done = 0; done < all;) {
        const size_t more = all - done < READ_BYTES ? all - done : READ_BYTES;
        const uint32_t so_far = (uint32_t)((done + more + block_bytes - 1) / block_bytes);
        enum sk_err rc = sk_ivf_reserve(self, form, so_far - blocks->count, 0, 0, d);
        if (rc != SK_ERR_OK)
            return rc;
        if (!sk_image_read(reader, blocks->region.base + done, more, hash))
            return sk_fail(d, SK_ERR_INVALID, "index image: cut off or unreadable");
        blocks->count = so_far;
        done += more;
    }
    return SK_ERR_OK;
}

enum sk_err sk_ivf_image_read(struct sk_index *self, const struct sk_index_image_reader *reader,
                              uint64_t *hash, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    struct sk_ivf_image_head head;
    if (!sk_image_read(reader, &head, sizeof head, hash))
        return sk_fail(d, SK_ERR_INVALID, "index image: cut off or unreadable");
    enum sk_err rc = check_head(self, &head, d);
    if (rc == SK_ERR_OK)
        rc = sk_ivf_reserve(self, ivf->list_form, 0, head.slot_count, 1, d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_ivf_directory *directory = sk_ivf_directory_copy(ivf, head.slot_count);
    if (directory == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u lists", head.slot_count);
    sk_ivf_publish(ivf, directory);
    ivf->slot_count = head.slot_count;
    atomic_store(&directory->buffer, head.buffer);
    if (!sk_image_read(reader, directory->heads, head.slot_count * sizeof(uint32_t), hash) ||
        !sk_image_read(reader, ivf->centre_planes.base, (size_t)head.slot_count * self->padded, hash) ||
        !sk_image_read(reader, ivf->centres.base, head.slot_count * sizeof(struct sk_ivf_centre), hash))
        return sk_fail(d, SK_ERR_INVALID, "index image: cut off or unreadable");
    for (unsigned form = 0; form < SK_IVF_FORM_COUNT && rc == SK_ERR_OK; form++)
        rc = read_blocks(self, &ivf->blocks[form], (enum sk_ivf_form)form, head.block_counts[form],
                         reader, hash, d);
    return rc;
}

/* ---- what must hold ---- */

struct verify {
    struct sk_index *index;
    const struct sk_ivf_directory *directory;
    uint8_t *rows;                       /* by row: is in a list */
    uint8_t *blocks[SK_IVF_FORM_COUNT]; /* by block: is in a chain */
    bool is_loading;
    enum sk_err code;
    struct sk_diag *d;
};

static bool is_length(float x)
{
    return x >= -LENGTH_MAX && x <= LENGTH_MAX;
}

static enum sk_err verify_block(struct verify *v, enum sk_ivf_form form, const uint8_t *block,
                                uint32_t count)
{
    const struct sk_ivf *ivf = v->index->ivf;
    const uint32_t padded = v->index->padded;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t row = sk_ivf_rows(ivf, form, block)[i];
        if (row >= sk_row_count(v->index) || sk_state(v->index, row) == SK_ROW_EMPTY)
            return sk_fail(v->d, v->code, "index lists: row %u is free and in a list", row);
        if (v->rows[row] != 0)
            return sk_fail(v->d, v->code, "index lists: row %u is there twice", row);
        v->rows[row] = 1;
        bool is_sound = is_length(sk_ivf_adds(ivf, form, block)[i]);
        if (form == SK_IVF_PLAIN) {
            const int8_t *plane = (const int8_t *)block + (size_t)i * padded;
            is_sound = is_sound && is_length(sk_ivf_scales(ivf, block)[i]) &&
                       sk_ivf_errors(ivf, block)[i] >= 0 && is_length(sk_ivf_errors(ivf, block)[i]) &&
                       sk_ivf_centre_is_sound(v->index, plane, 0);
        } else {
            is_sound = is_sound && is_length(sk_ivf_from_half(sk_ivf_halves(ivf, block)[i]));
        }
        if (!is_sound)
            return sk_fail(v->d, v->code, "index lists: row %u has impossible lengths", row);
    }
    return SK_ERR_OK;
}

static enum sk_err verify_chain(struct verify *v, uint32_t list, uint32_t *count)
{
    const struct sk_ivf *ivf = v->index->ivf;
    const enum sk_ivf_form form = sk_ivf_form_of(ivf, list);
    uint32_t head = sk_ivf_head(v->directory, list);
    enum sk_err rc = SK_ERR_OK;
    for (*count = 0; head != SK_IVF_NO_BLOCK && rc == SK_ERR_OK;) {
        if (head >= ivf->blocks[form].count || v->blocks[form][head] != 0)
            return sk_fail(v->d, v->code, "index lists: list %u has block %u of %u, or twice", list, head,
                           ivf->blocks[form].count);
        v->blocks[form][head] = 1;
        const uint8_t *block = sk_ivf_block(ivf, form, head);
        const uint32_t *tail = sk_ivf_tail(ivf, form, block);
        if (tail[1] < 1 || tail[1] > SK_IVF_BLOCK)
            return sk_fail(v->d, v->code, "index lists: block %u has %u rows", head, tail[1]);
        rc = verify_block(v, form, block, tail[1]);
        *count += tail[1];
        head = tail[0];
    }
    return rc;
}

/* Takes over what follows from the chains, or compares. */
static enum sk_err verify_count(const struct verify *v, const char *what, uint32_t list, uint32_t count,
                                uint32_t *stored)
{
    if (v->is_loading)
        *stored = count;
    else if (*stored != count)
        return sk_fail(v->d, v->code, "index lists: %s %u has %u, the counter says %u", what, list, count,
                       *stored);
    return SK_ERR_OK;
}

static enum sk_err verify_lists(struct verify *v)
{
    struct sk_ivf *ivf = v->index->ivf;
    uint32_t lists = 0, count, list_count = atomic_load(&ivf->list_count),
             buffer_count = atomic_load(&ivf->buffer_count);
    enum sk_err rc = verify_chain(v, SK_IVF_BUFFER, &count);
    if (rc == SK_ERR_OK)
        rc = verify_count(v, "the buffer, rows", 0, count, &buffer_count);
    for (uint32_t slot = 0; slot < v->directory->slot_count && rc == SK_ERR_OK; slot++) {
        if (!sk_ivf_has_list(v->directory, slot))
            continue;
        const float scale = sk_ivf_centre(v->index, slot)->scale;
        lists++;
        if (slot >= ivf->slot_count ||
            !sk_ivf_centre_is_sound(v->index, sk_ivf_centre_plane(v->index, slot), scale))
            return sk_fail(v->d, v->code, "index lists: list %u has no sound centre", slot);
        if (v->is_loading)
            sk_ivf_centre_measure(v->index, slot, scale);
        rc = verify_chain(v, slot, &count);
        if (rc == SK_ERR_OK)
            rc = verify_count(v, "list", slot, count, &ivf->counts[slot]);
    }
    if (rc == SK_ERR_OK)
        rc = verify_count(v, "lists", 0, lists, &list_count);
    atomic_store(&ivf->list_count, list_count);
    atomic_store(&ivf->buffer_count, buffer_count);
    return rc;
}

/* Every live row is in one list; a block that is free is in none. */
static enum sk_err verify_rest(struct verify *v)
{
    struct sk_ivf *ivf = v->index->ivf;
    for (uint32_t row = 0; row < sk_row_count(v->index); row++)
        if (sk_state(v->index, row) == SK_ROW_LIVE && v->rows[row] == 0)
            return sk_fail(v->d, v->code, "index lists: row %u is in none", row);
    for (unsigned form = 0; form < SK_IVF_FORM_COUNT; form++) {
        struct sk_ivf_blocks *blocks = &ivf->blocks[form];
        for (uint32_t i = 0; i < blocks->free_count; i++)
            if (blocks->free[i] >= blocks->count || v->blocks[form][blocks->free[i]]++ != 0)
                return sk_fail(v->d, v->code, "index lists: block %u is free and in use, or twice",
                               blocks->free[i]);
        for (uint32_t block = blocks->count; v->is_loading && block-- > 0;)
            if (v->blocks[form][block] == 0)
                blocks->free[blocks->free_count++] = block;
    }
    return SK_ERR_OK;
}

enum sk_err sk_ivf_verify(struct sk_index *self, bool is_loading, struct sk_diag *d)
{
    const struct sk_ivf *ivf = self->ivf;
    struct verify v = {.index = self,
                       .directory = sk_ivf_directory_now(ivf),
                       .is_loading = is_loading,
                       .code = is_loading ? SK_ERR_INVALID : SK_ERR_INTERNAL,
                       .d = d};
    v.rows = calloc((size_t)sk_row_count(self) + 1, 1);
    v.blocks[SK_IVF_PLAIN] = calloc((size_t)ivf->blocks[SK_IVF_PLAIN].count + 1, 1);
    v.blocks[SK_IVF_CODED] = calloc((size_t)ivf->blocks[SK_IVF_CODED].count + 1, 1);
    enum sk_err rc = SK_ERR_OK;
    if (v.rows == NULL || v.blocks[SK_IVF_PLAIN] == NULL || v.blocks[SK_IVF_CODED] == NULL)
        rc = sk_fail(d, SK_ERR_NOMEM, "no memory to check lists");
    if (rc == SK_ERR_OK)
        rc = verify_lists(&v);
    if (rc == SK_ERR_OK)
        rc = verify_rest(&v);
    free(v.rows);
    free(v.blocks[SK_IVF_PLAIN]);
    free(v.blocks[SK_IVF_CODED]);
    return rc;
}
