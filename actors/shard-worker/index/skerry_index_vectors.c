/* Full vectors of the library, by row: in memory, or in a file that is mapped.
 *
 * The file: a page of header, then dim float32 a row. An index file notes the tag (which vectors file)
 * and the generation. A row that an index file stands on is replaced only after the generation has been
 * raised on the disk, so that index files saved before then refuse it. */
#include "actors/shard-worker/index/internal.h"
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FORMAT = 1,
    ROWS_AT = 4096,
    ROWS_STEP = 1024,
    COLD_CHUNKS = 256, /* of queries, for which rows are asked for after a fault */
};
static const char MAGIC[8] = {'S', 'K', 'V', 'E', 'C', 'T', 'O', 'R'};

struct header {
    char magic[8];
    uint32_t format, dim;
    uint64_t tag, generation;
    uint64_t saved_rows; /* the first so many rows are those of index files of this generation */
    uint64_t hash; /* of what is before it */
};

static uint64_t header_hash(const struct header *header)
{
    return sk_hash(FORMAT, header, offsetof(struct header, hash));
}

static enum sk_err failed(struct sk_diag *d, const char *path)
{
    const enum sk_err rc = errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? SK_ERR_DISK_FULL
                           : errno == ENOENT                                   ? SK_ERR_NOT_FOUND
                                                                               : SK_ERR_UNAVAILABLE;
    return sk_fail_field(d, rc, "vectors_path", "vectors file %s: %s", path, strerror(errno));
}

static enum sk_err open_file(struct skerry_vectors *self, const char *path, int flags,
                             struct sk_diag *d)
{
    if (strlen(path) >= SKERRY_PATH_BYTES_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path", "a path of %zu bytes, want at most %d",
                             strlen(path), SKERRY_PATH_BYTES_MAX - 1);
    self->path = strdup(path);
    if (self->path == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a path");
    self->fd = open(path, flags | O_CLOEXEC, 0666);
    if (self->fd < 0)
        return failed(d, path);
    if (flock(self->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? sk_fail_field(d, SK_ERR_BUSY, "vectors_path",
                                   "vectors file %s is open in another index", path)
                   : failed(d, path);
    return SK_ERR_OK;
}

/* Blocks are taken now: a full disk is an error here, and not a signal when a page is written. */
static enum sk_err map_rows(struct skerry_vectors *self, uint32_t capacity, struct sk_diag *d)
{
    const size_t bytes = ROWS_AT + (size_t)capacity * self->dim * sizeof(float);
    errno = posix_fallocate(self->fd, 0, (off_t)bytes);
    if (errno != 0)
        return failed(d, self->path);
    void *map = self->map == NULL
                    ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0)
                    : mremap(self->map, self->map_bytes, bytes, MREMAP_MAYMOVE);
    if (map == MAP_FAILED)
        return failed(d, self->path);
    self->map = map;
    self->map_bytes = bytes;
    self->capacity = capacity;
    self->rows = (float *)(void *)(self->map + ROWS_AT);
    /* which rows a search wants cannot be guessed from the last one */
    (void)madvise(self->map, bytes, MADV_RANDOM);
    return SK_ERR_OK;
}

static struct header *header_of(const struct skerry_vectors *self)
{
    return (struct header *)(void *)self->map;
}

static enum sk_err put_header(struct skerry_vectors *self, struct sk_diag *d)
{
    header_of(self)->hash = header_hash(header_of(self));
    return msync(self->map, ROWS_AT, MS_SYNC) == 0 ? SK_ERR_OK : failed(d, self->path);
}

enum sk_err skerry_vectors_create(struct skerry_vectors *self, const char *path, struct sk_diag *d)
{
    struct stat info;
    struct header header = {.format = FORMAT, .dim = self->dim, .generation = 1};
    enum sk_err rc = open_file(self, path, O_RDWR | O_CREAT, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (fstat(self->fd, &info) != 0)
        return failed(d, path);
    if (!S_ISREG(info.st_mode) || info.st_size != 0)
        return sk_fail_field(d, SK_ERR_EXISTS, "vectors_path",
                             "%s is there and not empty: load the index that was saved with it, or give "
                             "another path",
                             path);
    if (getrandom(&header.tag, sizeof header.tag, 0) != sizeof header.tag)
        return failed(d, path);
    rc = map_rows(self, ROWS_STEP, d);
    if (rc != SK_ERR_OK)
        return rc;
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    *header_of(self) = header;
    return put_header(self, d);
}

enum sk_err skerry_vectors_open(struct skerry_vectors *self, const char *path,
                                const struct skerry_vectors_state *state, uint32_t row_count,
                                struct sk_diag *d)
{
    struct stat info;
    struct header header;
    enum sk_err rc = open_file(self, path, O_RDWR, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (fstat(self->fd, &info) != 0)
        return failed(d, path);
    if (!S_ISREG(info.st_mode) || pread(self->fd, &header, sizeof header, 0) != sizeof header ||
        memcmp(header.magic, MAGIC, sizeof MAGIC) != 0)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path", "%s is not a vectors file", path);
    if (header.format != FORMAT)
        return sk_fail_field(d, SK_ERR_VERSION, "vectors_path",
                             "vectors file %s of format %u, this build reads %d", path, header.format,
                             FORMAT);
    if (header.hash != header_hash(&header) || header.saved_rows > SK_INDEX_ROWS_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path",
                             "vectors file %s: the header's checksum does not match", path);
    if (header.tag != state->tag || header.dim != self->dim)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path",
                             "vectors file %s (dim %u) belongs to another index", path, header.dim);
    if (header.generation != state->generation)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path",
                             "vectors file %s: rows were replaced after this index was saved (its "
                             "generation is %llu, the index wants %llu): load the index file that was "
                             "saved last",
                             path, (unsigned long long)header.generation,
                             (unsigned long long)state->generation);
    const uint64_t row_bytes = (uint64_t)self->dim * sizeof(float);
    if ((uint64_t)info.st_size < ROWS_AT + row_count * row_bytes || header.saved_rows < row_count)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path",
                             "vectors file %s: %lld bytes are too few for %u rows of dim %u", path,
                             (long long)info.st_size, row_count, self->dim);
    self->saved_rows = (uint32_t)header.saved_rows;
    return map_rows(self, row_count < ROWS_STEP ? ROWS_STEP : row_count, d);
}

void skerry_vectors_close(struct skerry_vectors *self)
{
    if (self->path == NULL) {
        free(self->rows);
    } else {
        if (self->map != NULL)
            munmap(self->map, self->map_bytes);
        if (self->fd >= 0)
            (void)close(self->fd); /* and the lock goes */
        free(self->path);
    }
    self->path = NULL;
    self->rows = NULL;
    self->map = NULL;
    self->fd = -1;
    self->capacity = self->saved_rows = 0;
}

enum sk_err skerry_vectors_fit(struct skerry_vectors *self, uint32_t row, struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    if (row >= self->capacity) {
        uint32_t capacity = self->capacity + self->capacity / 8 + ROWS_STEP;
        if (capacity <= row)
            capacity = row + 1;
        if (self->path != NULL) {
            rc = map_rows(self, capacity, d);
        } else {
            float *rows = realloc(self->rows, sizeof *rows * self->dim * capacity);
            if (rows == NULL)
                return sk_fail(d, SK_ERR_NOMEM, "no memory for %u vectors of dim %u", capacity,
                               self->dim);
            self->rows = rows;
            self->capacity = capacity;
        }
    }
    if (rc == SK_ERR_OK && row < self->saved_rows) {
        header_of(self)->generation++;
        header_of(self)->saved_rows = 0;
        rc = put_header(self, d);
        if (rc == SK_ERR_OK)
            self->saved_rows = 0;
    }
    return rc;
}

/* A page of the file that is not in memory costs a hundred times what a query does. One after the other,
 * as they are touched, they would cost all of that each; asked for together they come together. Asking
 * costs too: it is done only while faults show that it must. */
void skerry_vectors_ask(struct skerry_vectors *self, const uint32_t *rows, uint32_t count)
{
    const size_t row_bytes = self->dim * sizeof(float), page = (size_t)sysconf(_SC_PAGESIZE);
    if (self->path == NULL || atomic_load_explicit(&self->cold, memory_order_relaxed) == 0)
        return;
    for (uint32_t i = 0; i < count; i++) {
        const uintptr_t at = (uintptr_t)skerry_vectors_at(self, rows[i]), from = at / page * page;
        (void)madvise((void *)from, at + row_bytes - from, MADV_WILLNEED);
    }
}

static uint64_t faults_now(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? (uint64_t)usage.ru_majflt : 0;
}

void skerry_vectors_watch(struct skerry_vectors *self, struct skerry_vectors_watch *watch, bool is_begin)
{
    if (self->path == NULL)
        return;
    if (is_begin) {
        watch->faults = faults_now();
        return;
    }
    const uint32_t cold = atomic_load_explicit(&self->cold, memory_order_relaxed);
    if (faults_now() != watch->faults)
        atomic_store_explicit(&self->cold, COLD_CHUNKS, memory_order_relaxed);
    else if (cold > 0)
        atomic_store_explicit(&self->cold, cold - 1, memory_order_relaxed);
}

enum sk_err skerry_vectors_save(struct skerry_vectors *self, uint32_t row_count,
                                struct skerry_vectors_state *state, struct sk_diag *d)
{
    if (row_count > self->saved_rows)
        self->saved_rows = row_count;
    header_of(self)->saved_rows = self->saved_rows;
    header_of(self)->hash = header_hash(header_of(self));
    if (msync(self->map, self->map_bytes, MS_SYNC) != 0)
        return failed(d, self->path);
    *state = (struct skerry_vectors_state){header_of(self)->tag, header_of(self)->generation};
    return SK_ERR_OK;
}
