/* Checkpoints: one sequential file.
 *   header | mean | states | lseqs | links | 4-bit codes | their factors | 8-bit codes | their factors
 *   | hash u64
 * and, of kinds with lists, what ivf_image.c says before the hash.
 * The hash runs over blocks of BLOCK bytes of each part in turn, the header included. */
#include "actors/shard-worker/index/ivf.h"

#include <stdlib.h>

enum { FORMAT = 1, BLOCK = 64 << 10, FIRST_PART = 5,
       IVF_PART = FIRST_PART + SK_PART_STORED,
       SECTION_COUNT = IVF_PART + SK_IVF_SECTIONS };
static const char MAGIC[8] = {'S', 'K', 'I', 'N', 'D', 'E', 'X', '\n'};

struct header {
    char magic[8];
    uint32_t format, header_bytes;
    uint32_t kind, metric, dim, m, profile, generation;
    uint32_t row_count, degree, links_stride, code_bytes, padded;
    uint32_t hash; /* of the header with 0 here: its counts decide how much memory is asked for */
    uint64_t seed, watermark;
    uint32_t entries[SK_ENTRY_COUNT];
};
_Static_assert(sizeof(struct header) == 144, "the header has no padding");

size_t sk_image_bytes(const struct sk_index *self)
{
    size_t row_bytes = 1 + 8 + self->links_stride * 4;
    for (unsigned part = 0; part < SK_PART_STORED; part++)
        row_bytes += self->part_bytes[part];
    return sizeof(struct header) + (size_t)self->padded * sizeof(float) +
           (size_t)sk_row_count(self) * row_bytes + 8 +
           (self->ivf != NULL ? sk_ivf_image_bytes(self) : 0);
}

static uint32_t header_hash(struct header header)
{
    header.hash = 0;
    return (uint32_t)sk_hash(FORMAT, &header, sizeof header);
}

static struct header make_header(const struct sk_index *self)
{
    struct header header = {
        .format = FORMAT,
        .header_bytes = sizeof header,
        .kind = self->params.kind,
        .metric = self->params.metric,
        .dim = self->params.dim,
        .m = self->params.m,
        .profile = self->params.profile,
        .generation = sk_generation_now(self)->number,
        .row_count = sk_row_count(self),
        .degree = self->degree,
        .links_stride = self->links_stride,
        .code_bytes = self->code_bytes,
        .padded = self->padded,
        .seed = self->params.seed,
        .watermark = sk_index_watermark(self),
    };
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++)
        header.entries[at] = atomic_load(&self->entries[at]);
    header.hash = header_hash(header);
    return header;
}

/* ---- writing ---- */

enum sk_err sk_index_checkpoint_begin(struct sk_index *self, struct sk_diag *d)
{
    struct sk_checkpoint *checkpoint = &self->checkpoint;
    const size_t rows = sk_row_count(self);
    const struct sk_generation *generation = sk_generation_now(self);
    const size_t links_bytes = rows * self->links_stride * sizeof(uint32_t);
    const size_t mean_bytes = self->padded * sizeof(float);
    if (checkpoint->is_running)
        return sk_fail(d, SK_ERR_BUSY, "a checkpoint of this index is being written");
    if (sk_index_delta_pending_bytes(self) > 0)
        return sk_fail(d, SK_ERR_INVALID, "changes of this index wait to be taken");
    const size_t frozen_bytes = sizeof(struct header) + mean_bytes + rows * 9 + links_bytes + 64 +
                                (self->ivf != NULL ? sk_ivf_frozen_bytes(self) : 0);
    uint8_t *frozen = malloc(frozen_bytes);
    if (frozen == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a checkpoint (%zu bytes)", frozen_bytes);
    const struct header header = make_header(self);
    const struct {
        const void *bytes;
        size_t size;
    } copies[] = {{&header, sizeof header},
                  {generation->mean, mean_bytes},
                  {self->states.base, rows},
                  {self->lseqs.base, rows * 8},
                  {self->links.base, links_bytes}};
    *checkpoint = (struct sk_checkpoint){.is_running = true, .frozen = frozen};
    for (size_t i = 0; i < SK_COUNT_OF(copies); i++) {
        if (copies[i].size > 0)
            memcpy(frozen, copies[i].bytes, copies[i].size);
        checkpoint->sections[i].bytes = frozen;
        checkpoint->sections[i].size = copies[i].size;
        frozen += copies[i].size;
    }
    for (unsigned part = 0; part < SK_PART_STORED; part++) {
        checkpoint->sections[FIRST_PART + part].bytes = generation->parts[part].base;
        checkpoint->sections[FIRST_PART + part].size = rows * self->part_bytes[part];
    }
    if (self->ivf != NULL)
        sk_ivf_freeze(self, frozen, &checkpoint->sections[IVF_PART]);
    self->delta_log_bytes = 0;
    return SK_ERR_OK;
}

void sk_index_checkpoint_abort(struct sk_index *self)
{
    free(self->checkpoint.frozen);
    self->checkpoint = (struct sk_checkpoint){0};
}

enum sk_err sk_index_checkpoint_step(struct sk_index *self, size_t bytes_max,
                                     const struct sk_index_writer *writer, bool *is_done,
                                     struct sk_diag *d)
{
    struct sk_checkpoint *checkpoint = &self->checkpoint;
    size_t written = 0;
    *is_done = false;
    if (!checkpoint->is_running)
        return sk_fail(d, SK_ERR_INVALID, "no checkpoint was begun");
    while (checkpoint->section < SECTION_COUNT && written < bytes_max) {
        const size_t size = checkpoint->sections[checkpoint->section].size;
        const uint8_t *bytes = checkpoint->sections[checkpoint->section].bytes;
        if (checkpoint->offset == size) {
            checkpoint->section++;
            checkpoint->offset = 0;
            continue;
        }
        size_t count = size - checkpoint->offset < BLOCK ? size - checkpoint->offset : BLOCK;
        checkpoint->hash = sk_hash(checkpoint->hash, bytes + checkpoint->offset, count);
        if (!writer->write(writer->impl, bytes + checkpoint->offset, count)) {
            sk_index_checkpoint_abort(self);
            return sk_fail(d, SK_ERR_INTERNAL, "the checkpoint could not be written");
        }
        checkpoint->offset += count;
        written += count;
    }
    if (checkpoint->section < SECTION_COUNT)
        return SK_ERR_OK;
    const uint64_t hash = checkpoint->hash;
    sk_index_checkpoint_abort(self);
    if (!writer->write(writer->impl, &hash, sizeof hash))
        return sk_fail(d, SK_ERR_INTERNAL, "the checkpoint could not be written");
    *is_done = true;
    return SK_ERR_OK;
}

enum sk_err sk_index_checkpoint_write(struct sk_index *self, const struct sk_index_writer *writer,
                                      struct sk_diag *d)
{
    bool is_done = false;
    enum sk_err rc = sk_index_checkpoint_begin(self, d);
    while (rc == SK_ERR_OK && !is_done)
        rc = sk_index_checkpoint_step(self, SIZE_MAX, writer, &is_done, d);
    return rc;
}

/* ---- reading ---- */

static bool lacks_codes(const struct sk_index *self, const struct header *header)
{
    return sk_part_bytes(self, (enum sk_index_profile)header->profile, SK_PART_PLANES) <
           self->part_bytes[SK_PART_PLANES];
}

static enum sk_err check_header(const struct header *header, const struct sk_index *self,
                                struct sk_diag *d)
{
    const struct header wanted = make_header(self);
    if (memcmp(header->magic, MAGIC, sizeof MAGIC) != 0)
        return sk_fail(d, SK_ERR_INVALID, "not an index image");
    if (header->format != FORMAT || header->header_bytes != sizeof *header)
        return sk_fail(d, SK_ERR_VERSION, "index image of format %u, this build reads %d",
                       header->format, FORMAT);
    if (header->hash != header_hash(*header))
        return sk_fail(d, SK_ERR_INVALID, "index image: the header's checksum does not match");
    if (header->kind != wanted.kind || header->metric != wanted.metric ||
        header->dim != wanted.dim || header->m != wanted.m || header->profile > SK_INDEX_MEMORY ||
        header->seed != wanted.seed)
        return sk_fail(d, SK_ERR_INVALID,
                       "index image with kind %u metric %u dim %u m %u profile %u, want "
                       "kind %u metric %u dim %u m %u profile %u and the same seed",
                       header->kind, header->metric, header->dim, header->m, header->profile,
                       wanted.kind, wanted.metric, wanted.dim, wanted.m, wanted.profile);
    if (header->degree != wanted.degree || header->links_stride != wanted.links_stride ||
        header->code_bytes != wanted.code_bytes || header->padded != wanted.padded ||
        header->row_count > self->rows_max || header->generation == 0)
        return sk_fail(d, SK_ERR_INVALID, "index image with a layout that does not fit");
    if (lacks_codes(self, header) && self->source.fetch == NULL)
        return sk_fail_field(d, SK_ERR_INVALID, "profile",
                             "index image of profile memory: the 8-bit codes of another profile are made "
                             "from the vectors, and none are kept");
    return SK_ERR_OK;
}

bool sk_image_read(const struct sk_index_image_reader *reader, void *bytes, size_t size, uint64_t *hash)
{
    uint8_t *at = bytes;
    for (size_t done = 0; done < size;) {
        size_t count = size - done < BLOCK ? size - done : BLOCK;
        if (!reader->read(reader->impl, at + done, count))
            return false;
        *hash = sk_hash(*hash, at + done, count);
        done += count;
    }
    return true;
}

/* What another profile's image has and this index does not need is passed over; what it does not have
 * is encoded when the load is finished. */
static bool read_part(struct sk_index *self, const struct header *header, unsigned part,
                      const struct sk_index_image_reader *reader, uint64_t *hash)
{
    const size_t rows = header->row_count;
    const uint32_t row_bytes = sk_part_bytes(self, (enum sk_index_profile)header->profile, part);
    if (row_bytes == self->part_bytes[part])
        return sk_image_read(reader, sk_generation_now(self)->parts[part].base, rows * row_bytes, hash);
    uint8_t *passed_over = malloc(BLOCK);
    bool is_read = passed_over != NULL;
    for (size_t left = rows * row_bytes; left > 0 && is_read;) {
        const size_t count = left < BLOCK ? left : BLOCK; /* as the hash was made */
        is_read = sk_image_read(reader, passed_over, count, hash);
        left -= count;
    }
    free(passed_over);
    return is_read;
}

static enum sk_err check_rows(struct sk_index *self, struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    uint32_t live = 0, dead = 0;
    for (uint32_t row = 0; row < row_count; row++) {
        const enum sk_row_state state = sk_state(self, row);
        if (state > SK_ROW_RETIRED)
            return sk_fail(d, SK_ERR_INVALID, "index image: row %u is in no known state", row);
        live += state == SK_ROW_LIVE;
        dead += state > SK_ROW_LIVE;
        if (state > SK_ROW_DEAD) /* the sweep begins again */
            sk_state_set(self, row, SK_ROW_DEAD);
        if (state == SK_ROW_EMPTY)
            continue;
        const struct sk_factors none = {0};
        const struct sk_short_factors no_short = {0};
        const struct sk_generation *now = sk_generation_now(self);
        const struct sk_factors *factors =
            now->parts[SK_PART_FACTORS].base == NULL ? &none : sk_factors_of(now, row);
        const struct sk_short_factors *short_factors =
            self->code_bytes == 0 ? &no_short : sk_short_factors_of(now, row);
        const float parts[] = {factors->norm_sq,     factors->plane_scale,
                               factors->plane_error, factors->raw_norm_sq,
                               short_factors->norm_sq, short_factors->multiplier};
        for (size_t i = 0; i < SK_COUNT_OF(parts); i++)
            if (!(parts[i] >= 0 && parts[i] <= 4e36F))
                return sk_fail(d, SK_ERR_INVALID, "index image: row %u has impossible lengths",
                               row);
        if (self->part_bytes[SK_PART_SKETCHES] > 0)
            sk_sketch_write(self, sk_generation_now(self), row);
    }
    atomic_store(&self->live_count, live);
    atomic_store(&self->dead_count, dead);
    return SK_ERR_OK;
}

static enum sk_err check_links(struct sk_index *self, struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    uint32_t list[SK_DEGREE_MAX];
    for (uint32_t row = 0; row < row_count; row++) {
        const uint32_t length = sk_links_get(self, row, list);
        if (length > 0 && sk_state(self, row) == SK_ROW_EMPTY)
            return sk_fail(d, SK_ERR_INVALID, "index image: row %u is free and has edges", row);
        for (uint32_t i = 0; i < length; i++) {
            if (list[i] >= row_count || list[i] == row ||
                (sk_state(self, list[i]) == SK_ROW_EMPTY && sk_state(self, row) == SK_ROW_LIVE))
                return sk_fail(d, SK_ERR_INVALID, "index image: row %u has an edge to row %u", row,
                               list[i]);
            for (uint32_t j = 0; j < i; j++)
                if (list[j] == list[i])
                    return sk_fail(d, SK_ERR_INVALID, "index image: row %u has an edge twice", row);
            ++*sk_in_degree_of(self, list[i]);
        }
        for (uint32_t i = length; i < self->links_stride; i++) /* nothing behind the end */
            atomic_store_explicit(&sk_links_of(self, row)[i], SK_NO_ROW, memory_order_relaxed);
    }
    return SK_ERR_OK;
}

static enum sk_err read_rows(struct sk_index *self, const struct header *header,
                             const struct sk_index_image_reader *reader, struct sk_diag *d)
{
    struct sk_generation *generation = sk_generation_now(self);
    const size_t rows = header->row_count;
    uint64_t hash = sk_hash(0, header, sizeof *header), stored;
    enum sk_err rc = sk_rows_commit(self, header->row_count, d);
    if (rc != SK_ERR_OK)
        return rc;
    atomic_store(&self->row_count, header->row_count);
    if (!sk_image_read(reader, generation->mean, self->padded * sizeof(float), &hash) ||
        !sk_image_read(reader, self->states.base, rows, &hash) ||
        !sk_image_read(reader, self->lseqs.base, rows * 8, &hash) ||
        !sk_image_read(reader, self->links.base, rows * self->links_stride * 4, &hash))
        return sk_fail(d, SK_ERR_INVALID, "index image: cut off or unreadable");
    for (unsigned part = 0; part < SK_PART_STORED; part++)
        if (!read_part(self, header, part, reader, &hash))
            return sk_fail(d, SK_ERR_INVALID, "index image: cut off or unreadable");
    if (self->ivf != NULL) {
        rc = sk_ivf_image_read(self, reader, &hash, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    if (!reader->read(reader->impl, &stored, sizeof stored))
        return sk_fail(d, SK_ERR_INVALID, "index image: cut off or unreadable");
    if (hash != stored)
        return sk_fail(d, SK_ERR_INVALID, "index image: the checksum does not match");
    if (!sk_vector_is_finite(generation->mean, self->padded))
        return sk_fail(d, SK_ERR_INVALID, "index image: the centre is not finite");
    for (uint32_t i = 0; i < self->padded; i++)
        if (generation->mean[i] > 1e18F || generation->mean[i] < -1e18F)
            return sk_fail(d, SK_ERR_INVALID, "index image: the centre is out of range");
    rc = check_rows(self, d);
    if (rc == SK_ERR_OK)
        rc = check_links(self, d);
    if (rc == SK_ERR_OK && self->ivf != NULL)
        rc = sk_ivf_verify(self, true, d);
    for (uint32_t at = 0; at < SK_ENTRY_COUNT && rc == SK_ERR_OK; at++) {
        uint32_t row = header->entries[at];
        if (row != SK_NO_ROW && (row >= rows || sk_state(self, row) == SK_ROW_EMPTY))
            rc = sk_fail(d, SK_ERR_INVALID, "index image: entry %u is not a row", row);
        atomic_store(&self->entries[at], row);
    }
    return rc;
}

enum sk_err sk_index_checkpoint_read(struct sk_index **out, const struct sk_index_params *params,
                                     const struct sk_index_source *source,
                                     const struct sk_index_image_reader *reader, struct sk_diag *d)
{
    struct sk_index *self = NULL;
    struct header header;
    *out = NULL;
    if (!reader->read(reader->impl, &header, sizeof header))
        return sk_fail(d, SK_ERR_INVALID, "index image: cut off in its header");
    enum sk_err rc = sk_index_new(&self, params, source, d);
    if (rc == SK_ERR_OK)
        rc = check_header(&header, self, d);
    if (rc == SK_ERR_OK)
        rc = read_rows(self, &header, reader, d);
    if (rc != SK_ERR_OK) {
        sk_index_destroy(&self);
        return rc;
    }
    if (lacks_codes(self, &header) && !sk_mark_need_codes(self)) {
        sk_index_destroy(&self);
        return sk_fail(d, SK_ERR_NOMEM, "no memory to convert an index image");
    }
    self->is_loading = true;
    sk_generation_now(self)->number = header.generation;
    atomic_store(&self->generation_number, header.generation);
    sk_index_advance(self, header.watermark);
    *out = self;
    return SK_ERR_OK;
}
