/* The library's files: magic, settings, rows, their hash, then the engine's image. */
#include "actors/shard-worker/index/internal.h"
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES_MAX = 4096 };
static const char MAGIC[8] = {'S', 'K', 'I', 'D', 'X', 'L', 'B', '1'};

struct file_header {
    char magic[8];
    uint32_t kind, metric, dim, m, ef_construction, keeps_vectors, row_count, free_count;
    uint64_t seed, lseq;
};

static bool write_file(void *impl, const void *bytes, size_t size)
{
    return size == 0 || fwrite(bytes, 1, size, impl) == size;
}

static bool read_file(void *impl, void *bytes, size_t size)
{
    return size == 0 || fread(bytes, 1, size, impl) == size;
}

/* Bytes on their way to or from a file, and their hash so far. */
struct stream {
    FILE *file;
    uint64_t hash;
};

static bool put(struct stream *self, const void *bytes, size_t size)
{
    self->hash = sk_hash(self->hash, bytes, size);
    return write_file(self->file, bytes, size);
}

static bool get(struct stream *self, void *bytes, size_t size)
{
    if (!read_file(self->file, bytes, size))
        return false;
    self->hash = sk_hash(self->hash, bytes, size);
    return true;
}

static bool write_rows(struct skerry_index *self, FILE *file)
{
    struct file_header header = {.kind = self->params.kind,
                                 .metric = self->params.metric,
                                 .dim = self->params.dim,
                                 .m = self->params.m,
                                 .ef_construction = self->params.ef_construction,
                                 .keeps_vectors = self->keeps_vectors,
                                 .row_count = self->row_count,
                                 .free_count = self->free_count,
                                 .seed = self->params.seed,
                                 .lseq = self->lseq};
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    struct stream to = {.file = file};
    size_t rows = self->row_count;
    return put(&to, &header, sizeof header) && put(&to, self->ids, rows * 8) &&
           put(&to, self->lseqs, rows * 8) &&
           put(&to, self->free_rows, (size_t)self->free_count * 4) &&
           (!self->keeps_vectors ||
            put(&to, self->vectors, rows * self->params.dim * sizeof(float))) &&
           write_file(file, &to.hash, sizeof to.hash);
}

int skerry_index_save(struct skerry_index *self, const char *path, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    char beside[PATH_BYTES_MAX];
    int length = snprintf(beside, sizeof beside, "%s.tmp-%d", path, (int)getpid());
    if (length < 0 || (size_t)length >= sizeof beside)
        return skerry_index_report(sk_fail(&d, SK_ERR_TOO_LARGE, "the path is too long"), &d, error,
                                   error_size);
    FILE *file = fopen(beside, "wb");
    if (file == NULL)
        return skerry_index_report(
            sk_fail(&d, SK_ERR_UNAVAILABLE, "%s: %s", beside, strerror(errno)), &d, error,
            error_size);
    pthread_rwlock_wrlock(&self->lock);
    enum sk_err rc = write_rows(self, file)
                         ? SK_ERR_OK
                         : sk_fail(&d, SK_ERR_DISK_FULL, "%s: %s", beside, strerror(errno));
    const struct sk_index_writer writer = {file, write_file};
    if (rc == SK_ERR_OK)
        rc = sk_index_checkpoint_write(self->index, &writer, &d);
    pthread_rwlock_unlock(&self->lock);
    if (rc == SK_ERR_OK && (fflush(file) != 0 || fsync(fileno(file)) != 0))
        rc = sk_fail(&d, SK_ERR_DISK_FULL, "%s: %s", beside, strerror(errno));
    fclose(file);
    if (rc == SK_ERR_OK && rename(beside, path) != 0)
        rc = sk_fail(&d, SK_ERR_UNAVAILABLE, "%s: %s", path, strerror(errno));
    if (rc != SK_ERR_OK)
        (void)remove(beside);
    return skerry_index_report(rc, &d, error, error_size);
}

static bool read_rows(struct skerry_index *self, const struct file_header *header, FILE *file)
{
    const size_t rows = header->row_count;
    if (rows > 0 && !skerry_index_grow_rows(self, header->row_count - 1))
        return false;
    self->free_rows = malloc((size_t)header->free_count * 4 + 4);
    if (self->free_rows == NULL)
        return false;
    self->free_count = self->free_capacity = header->free_count;
    struct stream from = {file, sk_hash(0, header, sizeof *header)};
    uint64_t hash;
    return get(&from, self->ids, rows * 8) && get(&from, self->lseqs, rows * 8) &&
           get(&from, self->free_rows, (size_t)header->free_count * 4) &&
           (!self->keeps_vectors ||
            get(&from, self->vectors, rows * self->params.dim * sizeof(float))) &&
           read_file(file, &hash, sizeof hash) && hash == from.hash;
}

static bool lseq_of(void *impl, uint32_t row, uint64_t *lseq)
{
    const struct skerry_index *self = impl;
    if (row >= self->row_count || self->ids[row] == SKERRY_NO_ID)
        return false;
    *lseq = self->lseqs[row];
    return true;
}

/* The tables must say the same as the engine's image. */
static enum sk_err check_tables(struct skerry_index *self, struct sk_diag *d)
{
    uint32_t count = 0;
    for (uint32_t row = 0; row < self->row_count; row++)
        count += self->ids[row] != SKERRY_NO_ID;
    if (!skerry_index_table_fit(self, count))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u ids", count);
    for (uint32_t row = 0; row < self->row_count; row++) {
        if (self->ids[row] == SKERRY_NO_ID)
            continue;
        if (!sk_index_has(self->index, row, self->lseqs[row]))
            return sk_fail(d, SK_ERR_INVALID, "index file: row %u is not in the image", row);
        uint32_t at = skerry_index_table_at(self, self->ids[row]);
        if (self->table[at] != 0)
            return sk_fail(d, SK_ERR_INVALID, "index file: an id twice");
        self->table[at] = row + 1;
        self->table_used++;
    }
    for (uint32_t i = 0; i < self->free_count; i++)
        if (self->free_rows[i] >= self->row_count ||
            !sk_index_row_is_free(self->index, self->free_rows[i]))
            return sk_fail(d, SK_ERR_INVALID, "index file: row %u is not free", self->free_rows[i]);
    return SK_ERR_OK;
}

static enum sk_err load(struct skerry_index **out, FILE *file,
                        const struct skerry_index_options *options, struct sk_diag *d)
{
    struct file_header header;
    if (!read_file(file, &header, sizeof header) || memcmp(header.magic, MAGIC, sizeof MAGIC) != 0)
        return sk_fail(d, SK_ERR_INVALID, "not an index file");
    if (header.row_count > SK_INDEX_ROWS_MAX || header.free_count > header.row_count ||
        header.dim < 1 || header.dim > SK_INDEX_DIM_MAX)
        return sk_fail(d, SK_ERR_INVALID, "index file: the header makes no sense");
    const struct sk_index_params params = {
        .kind = (enum sk_index_kind)header.kind,
        .metric = (enum sk_metric)header.metric,
        .dim = header.dim,
        .m = header.m,
        .ef_construction = header.ef_construction,
        .seed = header.seed,
        .is_unlogged = true,
        .memory_bytes_max = options != NULL ? options->memory_bytes_max : 0,
        .isa = options != NULL ? options->isa : NULL,
    };
    /* before memory is asked for: are the rows there? */
    struct stat info;
    uint64_t row_bytes = 16 + (header.keeps_vectors != 0 ? (uint64_t)header.dim * 4 : 0);
    if (fstat(fileno(file), &info) != 0 ||
        header.row_count * row_bytes + header.free_count * 4U > (uint64_t)info.st_size)
        return sk_fail(d, SK_ERR_INVALID, "index file: cut off");
    struct skerry_index *self = skerry_index_make_shell(&params, header.keeps_vectors != 0);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for an index");
    *out = self;
    self->lseq = header.lseq;
    if (!read_rows(self, &header, file))
        return sk_fail(d, SK_ERR_INVALID, "index file: damaged, unreadable or too large");
    const struct sk_index_image_reader reader = {file, read_file};
    const struct sk_index_live live = {self, lseq_of};
    enum sk_err rc = sk_index_checkpoint_read(&self->index, &params, NULL, &reader, d);
    if (rc == SK_ERR_OK)
        rc = sk_index_load_finish(self->index, &live, d);
    return rc == SK_ERR_OK ? check_tables(self, d) : rc;
}

int skerry_index_load(struct skerry_index **out, const char *path,
                      const struct skerry_index_options *options, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    *out = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return skerry_index_report(sk_fail(&d, SK_ERR_NOT_FOUND, "%s: %s", path, strerror(errno)),
                                   &d, error, error_size);
    enum sk_err rc = load(out, file, options, &d);
    fclose(file);
    if (rc != SK_ERR_OK) {
        rc = sk_wrap(&d, rc, "%s", path);
        skerry_index_free(*out);
        *out = NULL;
    }
    return skerry_index_report(rc, &d, error, error_size);
}
