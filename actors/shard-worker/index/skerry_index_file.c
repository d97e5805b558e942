/* The library's files: magic, settings, rows, their hash, then the engine's image. */
#include "actors/shard-worker/index/internal.h"
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char MAGIC[8] = {'S', 'K', 'I', 'D', 'X', 'L', 'B', '2'};
enum { MAGIC_NAME_BYTES = 7, IN_MEMORY = 1, IN_FILE = 2 };

struct file_header {
    char magic[8];
    uint32_t kind, metric, dim, m, ef_construction, profile, nlist, pq_m, refine;
    uint32_t vectors; /* 0: none, IN_MEMORY: behind the ids, IN_FILE */
    uint32_t row_count, free_count;
    uint32_t is_identity; /* the ids are the rows' numbers and not written */
    uint32_t path_bytes;
    uint64_t seed, lseq;
    struct skerry_vectors_state vectors_state;
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

static bool write_rows(struct skerry_index *self, const struct skerry_vectors_state *state,
                       FILE *file)
{
    const char *path = self->vectors.path != NULL ? self->vectors.path : "";
    struct file_header header = {.kind = self->params.kind,
                                 .metric = self->params.metric,
                                 .dim = self->params.dim,
                                 .m = self->params.m,
                                 .ef_construction = self->params.ef_construction,
                                 .profile = self->params.profile,
                                 .nlist = self->params.nlist,
                                 .pq_m = self->params.pq_m,
                                 .refine = self->params.refine,
                                 .vectors = self->vectors.path != NULL ? IN_FILE
                                            : self->keeps_vectors      ? IN_MEMORY
                                                                       : 0,
                                 .row_count = self->row_count,
                                 .free_count = self->free_count,
                                 .is_identity = self->is_identity,
                                 .path_bytes = (uint32_t)strlen(path),
                                 .seed = self->params.seed,
                                 .lseq = self->lseq,
                                 .vectors_state = *state};
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    struct stream to = {.file = file};
    const size_t rows = self->row_count;
    return put(&to, &header, sizeof header) && put(&to, path, header.path_bytes) &&
           (self->is_identity || put(&to, self->ids, rows * 8)) &&
           put(&to, self->free_rows, (size_t)self->free_count * 4) &&
           (header.vectors != IN_MEMORY ||
            put(&to, self->vectors.rows, rows * self->params.dim * sizeof(float))) &&
           write_file(file, &to.hash, sizeof to.hash);
}

int skerry_index_save(struct skerry_index *self, const char *path, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    char beside[SKERRY_PATH_BYTES_MAX];
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
    struct skerry_vectors_state state = {0};
    enum sk_err rc = self->vectors.path != NULL
                         ? skerry_vectors_save(&self->vectors, self->row_count, &state, &d)
                         : SK_ERR_OK;
    if (rc == SK_ERR_OK && !write_rows(self, &state, file))
        rc = sk_fail(&d, SK_ERR_DISK_FULL, "%s: %s", beside, strerror(errno));
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

/* Where the vectors go: into memory, into the file that has them, or from memory into a new file. */
static enum sk_err read_vectors(struct skerry_index *self, const struct file_header *header,
                                const char *stored_path, const char *wanted_path,
                                struct stream *from, struct sk_diag *d)
{
    const char *path = wanted_path != NULL ? wanted_path : stored_path;
    const uint32_t rows = header->row_count;
    self->keeps_vectors = header->vectors != 0;
    if (header->vectors == IN_FILE)
        return skerry_vectors_open(&self->vectors, path, &header->vectors_state, rows, d);
    if (header->vectors == 0)
        return wanted_path == NULL
                   ? SK_ERR_OK
                   : sk_fail_field(d, SK_ERR_INVALID, "vectors_path",
                                   "this index was saved without its vectors: there is nothing to put "
                                   "into %s",
                                   wanted_path);
    enum sk_err rc = SK_ERR_OK;
    if (wanted_path != NULL)
        rc = skerry_vectors_create(&self->vectors, wanted_path, d);
    if (rc == SK_ERR_OK && rows > 0)
        rc = skerry_vectors_fit(&self->vectors, rows - 1, d);
    if (rc == SK_ERR_OK && rows > 0 &&
        !get(from, self->vectors.rows, (size_t)rows * self->params.dim * sizeof(float)))
        rc = sk_fail(d, SK_ERR_INVALID, "index file: cut off");
    return rc;
}

static enum sk_err read_rows(struct skerry_index *self, const struct file_header *header,
                             const char *wanted_path, FILE *file, struct sk_diag *d)
{
    const size_t rows = header->row_count;
    char path[SKERRY_PATH_BYTES_MAX] = "";
    struct stream from = {file, sk_hash(0, header, sizeof *header)};
    uint64_t hash;
    self->is_identity = header->is_identity != 0;
    self->row_count = header->row_count;
    self->free_rows = malloc((size_t)header->free_count * 4 + 4);
    if (!self->is_identity) {
        self->ids = malloc(rows * 8 + 8);
        self->ids_capacity = header->row_count;
    }
    if (self->free_rows == NULL || (!self->is_identity && self->ids == NULL))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %zu ids", rows);
    self->free_count = self->free_capacity = header->free_count;
    if (!get(&from, path, header->path_bytes) ||
        (!self->is_identity && !get(&from, self->ids, rows * 8)) ||
        !get(&from, self->free_rows, (size_t)header->free_count * 4))
        return sk_fail(d, SK_ERR_INVALID, "index file: cut off");
    if (strlen(path) != header->path_bytes || (header->vectors == IN_FILE) != (path[0] != 0))
        return sk_fail(d, SK_ERR_INVALID, "index file: the path of its vectors makes no sense");
    enum sk_err rc = read_vectors(self, header, path, wanted_path, &from, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (!read_file(file, &hash, sizeof hash) || hash != from.hash)
        return sk_fail(d, SK_ERR_INVALID, "index file: the checksum does not match");
    return SK_ERR_OK;
}

static enum sk_err check_free_rows(const struct skerry_index *self, struct sk_diag *d)
{
    for (uint32_t i = 0; i < self->free_count; i++)
        if (self->free_rows[i] >= self->row_count ||
            !sk_index_row_is_free(self->index, self->free_rows[i]))
            return sk_fail(d, SK_ERR_INVALID, "index file: row %u is not free", self->free_rows[i]);
    return SK_ERR_OK;
}

static enum sk_err check_header(const struct file_header *header, FILE *file, struct sk_diag *d)
{
    if (memcmp(header->magic, MAGIC, MAGIC_NAME_BYTES) != 0)
        return sk_fail(d, SK_ERR_INVALID, "not an index file");
    if (header->magic[MAGIC_NAME_BYTES] == '1')
        return sk_fail(d, SK_ERR_VERSION,
                       "an index file of ABI 1, this library reads those of ABI 2: add the vectors anew");
    if (header->magic[MAGIC_NAME_BYTES] != MAGIC[MAGIC_NAME_BYTES] ||
        header->row_count > SK_INDEX_ROWS_MAX || header->free_count > header->row_count ||
        header->dim < 1 || header->dim > SK_INDEX_DIM_MAX || header->vectors > IN_FILE ||
        header->is_identity > 1 || header->path_bytes >= SKERRY_PATH_BYTES_MAX ||
        header->kind < SK_INDEX_FLAT || header->kind > SK_INDEX_HYBRID ||
        header->profile > SK_INDEX_MEMORY)
        return sk_fail(d, SK_ERR_INVALID, "index file: the header makes no sense");
    /* before memory is asked for: are the rows there? */
    struct stat info;
    const uint64_t row_bytes = (header->is_identity != 0 ? 0 : 8) +
                               (header->vectors == IN_MEMORY ? (uint64_t)header->dim * 4 : 0);
    if (fstat(fileno(file), &info) != 0 ||
        header->row_count * row_bytes + header->free_count * 4U > (uint64_t)info.st_size)
        return sk_fail(d, SK_ERR_INVALID, "index file: cut off");
    return SK_ERR_OK;
}

static enum sk_err load(struct skerry_index **out, FILE *file,
                        const struct skerry_index_options *options, struct sk_diag *d)
{
    struct file_header header;
    if (!read_file(file, &header, sizeof header))
        return sk_fail(d, SK_ERR_INVALID, "not an index file");
    enum sk_err rc = check_header(&header, file, d);
    if (rc != SK_ERR_OK)
        return rc;
    enum sk_index_profile profile = (enum sk_index_profile)header.profile;
    if (options != NULL && options->profile != NULL && header.kind == SK_INDEX_HNSW)
        rc = skerry_index_profile_of(options->profile, &profile, d);
    if (rc != SK_ERR_OK)
        return rc;
    const struct sk_index_params params = {
        .kind = (enum sk_index_kind)header.kind,
        .metric = (enum sk_metric)header.metric,
        .dim = header.dim,
        .m = header.m,
        .ef_construction = header.ef_construction,
        .profile = profile,
        .nlist = header.nlist,
        .pq_m = header.pq_m,
        .refine = header.refine,
        .seed = header.seed,
        .is_unlogged = true,
        .memory_bytes_max = options != NULL ? options->memory_bytes_max : 0,
        .isa = options != NULL ? options->isa : NULL,
    };
    struct skerry_index *self = skerry_index_make_shell(&params);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for an index");
    *out = self;
    self->lseq = header.lseq;
    rc = read_rows(self, &header, options != NULL ? options->vectors_path : NULL, file, d);
    if (rc != SK_ERR_OK)
        return rc;
    const struct sk_index_image_reader reader = {file, read_file};
    const struct sk_index_source source = {self, skerry_index_fetch};
    rc = sk_index_checkpoint_read(&self->index, &params, self->keeps_vectors ? &source : NULL,
                                  &reader, d);
    if (rc == SK_ERR_OK)
        rc = sk_index_load_finish(self->index, NULL, d);
    if (rc == SK_ERR_OK)
        rc = skerry_index_ids_load(self, d);
    return rc == SK_ERR_OK ? check_free_rows(self, d) : rc;
}

int skerry_index_load(struct skerry_index **out, const char *path,
                      const struct skerry_index_options *options, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    *out = NULL;
    if (options != NULL && options->abi != SKERRY_INDEX_ABI)
        return skerry_index_report(skerry_index_check_options(options, &d), &d, error, error_size);
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
