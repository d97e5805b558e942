/* Copies of a whole shard: compact, snapshot, restore. A snapshot is data.mdb (LMDB's compact copy) and a
 * manifest: a msgpack map {kind, format, bytes, hash, records, schema}, then XXH3_64 of the map. */
#include "actors/shard-worker/store/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { MANIFEST_BYTES_MAX = 1 << 20, COPY_BYTES = 1 << 18, BLOCKS_A_STEP = 1000,
       TOMBSTONES_A_STEP = 2000, PATH_MORE_BYTES = 32 };

static const char manifest_kind[] = "skerry-store-snapshot";

struct manifest {
    uint64_t bytes, hash, records;
    struct sk_schema schema;
};

static enum sk_err path_in(const char *folder, const char *name, char path[PATH_BYTES + PATH_MORE_BYTES],
                           struct sk_diag *d)
{
    int size = snprintf(path, PATH_BYTES + PATH_MORE_BYTES, "%s/%s", folder, name);
    if (size < 0 || size >= PATH_BYTES + PATH_MORE_BYTES)
        return sk_fail(d, SK_ERR_INVALID, "the path '%.100s...' is too long", folder);
    return SK_ERR_OK;
}

/* ---- bytes ---- */

static enum sk_err write_all(struct sk_store *self, int fd, const uint8_t *bytes, size_t size,
                             const char *path, struct sk_diag *d)
{
    while (size > 0) {
        ssize_t count = write(fd, bytes, size);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return sk_store_fail(self, count < 0 ? errno : ENOSPC, path, d);
        bytes += count;
        size -= (size_t)count;
    }
    return SK_ERR_OK;
}

/* Reads a file to its end; writes it to `to` unless that is -1. */
static enum sk_err pump(struct sk_store *self, const char *path, int to, uint64_t *bytes,
                        uint64_t *hash, struct sk_diag *d)
{
    enum sk_err err = SK_ERR_OK;
    *bytes = *hash = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return sk_fail(d, errno == ENOENT ? SK_ERR_NOT_FOUND : SK_ERR_UNAVAILABLE, "'%s': %s", path,
                       strerror(errno));
    uint8_t *chunk = malloc(COPY_BYTES);
    XXH3_state_t *state = XXH3_createState();
    if (chunk == NULL || state == NULL) {
        err = sk_fail(d, SK_ERR_NOMEM, "no memory to copy '%s'", path);
        goto out;
    }
    (void)XXH3_64bits_reset(state);
    for (;;) {
        ssize_t count = read(fd, chunk, COPY_BYTES);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            err = sk_fail(d, SK_ERR_UNAVAILABLE, "'%s': %s", path, strerror(errno));
        if (count <= 0)
            break;
        (void)XXH3_64bits_update(state, chunk, (size_t)count);
        *bytes += (uint64_t)count;
        if (to >= 0)
            err = write_all(self, to, chunk, (size_t)count, path, d);
        if (err != SK_ERR_OK)
            break;
    }
    *hash = XXH3_64bits_digest(state);
out:
    (void)XXH3_freeState(state);
    free(chunk);
    (void)close(fd);
    return err;
}

/* A new file and, unless it was kept out, its end on the disk. */
static enum sk_err make_file(struct sk_store *self, const char *path, int *fd, struct sk_diag *d)
{
    *fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (*fd >= 0)
        return SK_ERR_OK;
    if (errno == EEXIST)
        return sk_fail(d, SK_ERR_EXISTS, "'%s' is there already", path);
    return sk_store_fail(self, errno, path, d);
}

static enum sk_err end_file(struct sk_store *self, const char *path, int fd, enum sk_err err,
                            struct sk_diag *d)
{
    if (err == SK_ERR_OK && fsync(fd) != 0)
        err = sk_store_fail(self, errno, path, d);
    if (close(fd) != 0 && err == SK_ERR_OK)
        err = sk_store_fail(self, errno, path, d);
    if (err != SK_ERR_OK)
        (void)unlink(path);
    return err;
}

static enum sk_err copy_env(struct sk_store *self, const char *path, struct sk_diag *d)
{
    int fd;
    enum sk_err err = make_file(self, path, &fd, d);
    if (err != SK_ERR_OK)
        return err;
    int rc = mdb_env_copyfd2(self->env, fd, MDB_CP_COMPACT);
    if (rc != 0)
        err = sk_store_fail(self, rc, path, d);
    return end_file(self, path, fd, err, d);
}

/* ---- compact ---- */

/* Blocks of vectors whose every row is free, beginning with the row *from: at most BLOCKS_A_STEP of them;
 * *from: where to go on. */
static int drop_blocks(struct sk_store *self, unsigned field, uint32_t *from, bool *is_end)
{
    MDB_cursor *cursor = NULL;
    MDB_val value, key = sk_val(from, sizeof *from);
    uint32_t rows = self->block_rows[field], run = 0, before = 0;
    unsigned dropped = 0;
    int rc = mdb_cursor_open(self->txn, self->tables[T_FREE], &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && dropped < BLOCKS_A_STEP) {
        uint32_t row;
        memcpy(&row, key.mv_data, sizeof row);
        run = row % rows == 0 ? 1 : run > 0 && row == before + 1 ? run + 1 : 0;
        before = row;
        *from = row + 1;
        if (run == rows) {
            uint64_t number = sk_block_key(field, row / rows);
            MDB_val block = sk_val(&number, sizeof number);
            rc = mdb_del(self->txn, self->tables[T_VECTORS], &block, NULL);
            dropped += rc == 0;
            if (rc != 0 && rc != MDB_NOTFOUND)
                break;
            run = 0;
        }
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    *is_end = rc == MDB_NOTFOUND;
    return *is_end ? 0 : rc;
}

/* What nobody needs any more is not copied. In steps: a full disk has room for small ones only. */
static enum sk_err drop_what_is_gone(struct sk_store *self, struct sk_diag *d)
{
    uint32_t from = 0;
    for (unsigned part = 0; part <= self->schema.vector_count;) {
        bool is_end = false;
        enum sk_err err = sk_store_begin(self, self->wall_us, true, d);
        if (err != SK_ERR_OK)
            return err;
        int rc = part < self->schema.vector_count ? drop_blocks(self, part, &from, &is_end)
                                                  : sk_tombs_drop_some(self, TOMBSTONES_A_STEP, &is_end);
        err = rc == 0 ? sk_store_commit(self, d) : sk_store_fail(self, rc, "compact", d);
        sk_store_abort(self);
        if (err != SK_ERR_OK)
            return err;
        if (is_end) {
            part++;
            from = 0;
        }
    }
    return SK_ERR_OK;
}

static enum sk_err compact_once(struct sk_store *self, struct sk_diag *d)
{
    char folder[PATH_BYTES], path[PATH_BYTES + PATH_MORE_BYTES];
    enum sk_err err = sk_files_making(self, folder, d);
    if (err == SK_ERR_OK)
        err = path_in(folder, "data.mdb", path, d);
    if (err == SK_ERR_OK)
        err = copy_env(self, path, d);
    if (err == SK_ERR_OK)
        return sk_files_replace(self, d);
    sk_files_making_drop(self);
    return err;
}

enum sk_err sk_store_compact(struct sk_store *self, uint64_t *bytes_before, uint64_t *bytes_after,
                             struct sk_diag *d)
{
    SK_CHECK(self->txn == NULL);
    *bytes_before = *bytes_after = 0;
    if (self->env == NULL)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "shard '%s' could not be opened again", self->folder);
    uint64_t before = sk_files_bytes(self, "data.mdb");
    enum sk_err err = drop_what_is_gone(self, d);
    if (err == SK_ERR_OK)
        err = compact_once(self, d);
    if (err == SK_ERR_DISK_FULL) {
        sk_files_reserve_give_up(self);
        err = compact_once(self, d);
    }
    if (err != SK_ERR_OK)
        return sk_wrap(d, err, "compact");
    *bytes_before = before;
    *bytes_after = sk_files_bytes(self, "data.mdb");
    return SK_ERR_OK;
}

/* ---- manifest ---- */

static enum sk_err manifest_write(struct sk_store *self, const char *folder,
                                  const struct manifest *manifest, uint64_t *bytes, struct sk_diag *d)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    int fd;
    struct sk_buffer to = {0};
    sk_put_map(&to, 6);
    sk_put_text(&to, "kind");
    sk_put_text(&to, manifest_kind);
    sk_put_text(&to, "format");
    sk_put_u64(&to, SK_STORE_FORMAT);
    sk_put_text(&to, "bytes");
    sk_put_u64(&to, manifest->bytes);
    sk_put_text(&to, "hash");
    sk_put_u64(&to, manifest->hash);
    sk_put_text(&to, "records");
    sk_put_u64(&to, manifest->records);
    sk_put_text(&to, "schema");
    sk_schema_encode(&to, &manifest->schema);
    uint64_t hash = XXH3_64bits(to.bytes, to.size);
    sk_buffer_append(&to, &hash, sizeof hash);
    enum sk_err err = sk_buffer_check(&to, d);
    if (err == SK_ERR_OK)
        err = path_in(folder, "manifest", path, d);
    if (err == SK_ERR_OK)
        err = make_file(self, path, &fd, d);
    if (err == SK_ERR_OK)
        err = end_file(self, path, fd, write_all(self, fd, to.bytes, to.size, path, d), d);
    *bytes = err == SK_ERR_OK ? to.size : 0;
    sk_buffer_deinit(&to);
    return err;
}

/* The members in the order they were written; another order or name is another format. */
static bool member(struct sk_reader *from, const char *name, struct sk_value *value)
{
    struct sk_value key;
    return sk_read(from, &key, NULL) == SK_ERR_OK && key.kind == SK_VALUE_TEXT &&
           sk_span_is(key.span, name) && (value == NULL || sk_read(from, value, NULL) == SK_ERR_OK);
}

static bool number(struct sk_reader *from, const char *name, uint64_t *out)
{
    struct sk_value value;
    if (!member(from, name, &value) || value.kind != SK_VALUE_UNSIGNED)
        return false;
    *out = value.u64;
    return true;
}

static enum sk_err manifest_parse(struct manifest *out, const char *path, struct sk_span bytes,
                                  struct sk_diag *d)
{
    uint64_t hash = 0, format = 0;
    struct sk_value value;
    if (bytes.size > sizeof hash)
        memcpy(&hash, bytes.bytes + bytes.size - sizeof hash, sizeof hash);
    if (bytes.size <= sizeof hash || XXH3_64bits(bytes.bytes, bytes.size - sizeof hash) != hash)
        return sk_fail(d, SK_ERR_INVALID, "'%s' is damaged: its checksum is wrong", path);
    struct sk_reader from = sk_reader_of(sk_span_of(bytes.bytes, bytes.size - sizeof hash));
    if (sk_read(&from, &value, NULL) != SK_ERR_OK || value.kind != SK_VALUE_MAP ||
        !member(&from, "kind", &value) || value.kind != SK_VALUE_TEXT ||
        !sk_span_is(value.span, manifest_kind) || !number(&from, "format", &format))
        return sk_fail(d, SK_ERR_INVALID, "'%s' is not the manifest of a snapshot", path);
    if (format != SK_STORE_FORMAT)
        return sk_fail(d, SK_ERR_VERSION, "'%s' has format %llu, this release reads %d", path,
                       (unsigned long long)format, SK_STORE_FORMAT);
    if (!number(&from, "bytes", &out->bytes) || !number(&from, "hash", &out->hash) ||
        !number(&from, "records", &out->records) || !member(&from, "schema", NULL))
        return sk_fail(d, SK_ERR_INVALID, "'%s' lacks a member of a manifest", path);
    enum sk_err err = sk_schema_decode(&out->schema, &from, d);
    if (err == SK_ERR_OK)
        err = sk_read_end(&from, d);
    return err == SK_ERR_OK ? err : sk_wrap(d, SK_ERR_INVALID, "'%s'", path);
}

static enum sk_err manifest_read(struct manifest *out, const char *folder, struct sk_diag *d)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    memset(out, 0, sizeof *out);
    enum sk_err err = path_in(folder, "manifest", path, d);
    if (err != SK_ERR_OK)
        return err;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return sk_fail(d, errno == ENOENT ? SK_ERR_NOT_FOUND : SK_ERR_UNAVAILABLE,
                       "no snapshot in '%s': %s", folder, strerror(errno));
    uint8_t *bytes = malloc(MANIFEST_BYTES_MAX);
    ssize_t size = bytes == NULL ? -1 : read(fd, bytes, MANIFEST_BYTES_MAX);
    int error = errno;
    (void)close(fd);
    if (size < 0)
        err = bytes == NULL ? sk_fail(d, SK_ERR_NOMEM, "no memory for a manifest")
                            : sk_fail(d, SK_ERR_UNAVAILABLE, "'%s': %s", path, strerror(error));
    else
        err = manifest_parse(out, path, sk_span_of(bytes, (size_t)size), d);
    free(bytes);
    return err;
}

/* ---- snapshot ---- */

static enum sk_err count_records(struct sk_store *self, uint64_t *records, struct sk_diag *d)
{
    struct sk_store_reader *reader = NULL;
    enum sk_err err = sk_store_reader_new(&reader, self, d);
    if (err == SK_ERR_OK)
        err = sk_store_read_begin(reader, 0, d);
    if (err == SK_ERR_OK) {
        err = sk_store_count(reader, records, d);
        sk_store_read_end(reader);
    }
    sk_store_reader_destroy(&reader);
    return err;
}

enum sk_err sk_store_snapshot(struct sk_store *self, const char *folder, uint64_t *bytes,
                              struct sk_diag *d)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    uint64_t more = 0;
    SK_CHECK(self->txn == NULL);
    *bytes = 0;
    struct manifest *manifest = calloc(1, sizeof *manifest);
    if (manifest == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a manifest");
    manifest->schema = self->schema;
    enum sk_err err = self->env == NULL ? sk_fail(d, SK_ERR_UNAVAILABLE, "the shard is not open")
                                        : path_in(folder, "data.mdb", path, d);
    bool was_full = self->is_disk_full; /* the snapshot's disk is not the shard's */
    if (err == SK_ERR_OK)
        err = count_records(self, &manifest->records, d);
    if (err == SK_ERR_OK)
        err = copy_env(self, path, d);
    if (err == SK_ERR_OK) {
        err = pump(self, path, -1, &manifest->bytes, &manifest->hash, d);
        if (err == SK_ERR_OK)
            err = manifest_write(self, folder, manifest, &more, d);
        if (err == SK_ERR_OK)
            err = sk_files_sync_folder(folder, d);
        if (err != SK_ERR_OK)
            (void)unlink(path);
    }
    self->is_disk_full = was_full;
    if (err == SK_ERR_OK)
        *bytes = manifest->bytes + more;
    free(manifest);
    return err == SK_ERR_OK ? err : sk_wrap(d, err, "snapshot");
}

static enum sk_err snapshot_check(struct manifest *out, const char *folder, int copy_to,
                                  struct sk_store *self, struct sk_diag *d)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    uint64_t bytes, hash;
    enum sk_err err = manifest_read(out, folder, d);
    if (err == SK_ERR_OK)
        err = path_in(folder, "data.mdb", path, d);
    if (err == SK_ERR_OK)
        err = pump(self, path, copy_to, &bytes, &hash, d);
    if (err == SK_ERR_OK && (bytes != out->bytes || hash != out->hash))
        err = sk_fail(d, SK_ERR_INVALID, "'%s' is damaged: %s", path,
                      bytes != out->bytes ? "it has another size than its manifest says"
                                          : "its checksum is wrong");
    return err;
}

enum sk_err sk_store_snapshot_schema(const char *folder, struct sk_schema *out, struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    struct manifest *manifest = malloc(sizeof *manifest);
    if (manifest == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a manifest");
    enum sk_err err = snapshot_check(manifest, folder, -1, NULL, d);
    if (err == SK_ERR_OK)
        *out = manifest->schema;
    free(manifest);
    return err == SK_ERR_OK ? err : sk_wrap(d, err, "snapshot");
}

/* ---- restore ---- */

/* Payload indexes are taken over by the number of their field, so it must mean the same. */
static enum sk_err check_fields(const struct sk_schema *ours, const struct sk_schema *theirs,
                                struct sk_diag *d)
{
    for (uint32_t i = 0; i < ours->field_count; i++)
        for (uint32_t k = 0; k < theirs->field_count; k++)
            if (ours->fields[i].id == theirs->fields[k].id &&
                (ours->fields[i].kind != theirs->fields[k].kind ||
                 strcmp(ours->fields[i].name, theirs->fields[k].name) != 0))
                return sk_fail(d, SK_ERR_INVALID,
                               "payload field '%s' of the snapshot is '%s' in the collection",
                               theirs->fields[k].name, ours->fields[i].name);
    return SK_ERR_OK;
}

/* Rows that an index had not let go of: there is no index any more. */
static int free_limbo(struct sk_store *self)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value, nothing = sk_val("", 0);
    int rc = mdb_cursor_open(self->txn, self->tables[T_LIMBO], &cursor);
    if (rc != 0)
        return rc;
    while (rc == 0 && (rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0)
        rc = mdb_put(self->txn, self->tables[T_FREE], &key, &nothing, 0);
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? mdb_drop(self->txn, self->tables[T_LIMBO], 0) : rc;
}

/* What belongs to the life of the shard that was copied, and not to its records. */
static enum sk_err become_new(struct sk_store *self, const struct sk_schema *schema, uint64_t actor,
                              struct sk_diag *d)
{
    enum sk_err err = sk_store_meta_begin(self, schema, d);
    if (err == SK_ERR_OK)
        err = sk_store_begin(self, 0, true, d);
    if (err != SK_ERR_OK)
        return err;
    int rc = mdb_drop(self->txn, self->tables[T_GRAPH], 0);
    if (rc == 0)
        rc = mdb_drop(self->txn, self->tables[T_APPLIED], 0);
    if (rc == 0)
        rc = free_limbo(self);
    if (rc != 0)
        err = sk_store_fail(self, rc, "restore", d);
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX && err == SK_ERR_OK; f++)
        err = sk_store_watermark_put(self, f, 0, d);
    if (err == SK_ERR_OK)
        err = sk_store_meta_put(self, "actor", &actor, sizeof actor, d);
    if (err == SK_ERR_OK)
        err = sk_store_commit(self, d);
    sk_store_abort(self);
    return err;
}

static enum sk_err make_from(struct sk_store *self, const char *folder, const char *making,
                             uint64_t *records, struct sk_diag *d)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    int fd = -1;
    struct manifest *manifest = malloc(sizeof *manifest);
    struct sk_store *made = calloc(1, sizeof *made);
    enum sk_err err = manifest == NULL || made == NULL
                          ? sk_fail(d, SK_ERR_NOMEM, "no memory for a store")
                          : path_in(making, "data.mdb", path, d);
    if (err == SK_ERR_OK)
        err = make_file(self, path, &fd, d);
    if (err == SK_ERR_OK)
        err = end_file(self, path, fd, snapshot_check(manifest, folder, fd, self, d), d);
    if (err == SK_ERR_OK)
        err = sk_store_check_shape(self, &manifest->schema, d);
    if (err == SK_ERR_OK)
        err = check_fields(&self->schema, &manifest->schema, d);
    if (err != SK_ERR_OK)
        goto out;
    made->config = self->config;
    (void)snprintf(made->folder, sizeof made->folder, "%s", making);
    err = sk_files_open(made, d);
    if (err == SK_ERR_OK)
        err = become_new(made, &self->schema, self->config.actor, d);
    if (made->env != NULL)
        mdb_env_close(made->env);
    *records = manifest->records;
out:
    if (made != NULL)
        free(made->changes.slots);
    free(made);
    free(manifest);
    return err;
}

enum sk_err sk_store_restore(struct sk_store *self, const char *folder, uint64_t *records,
                             struct sk_diag *d)
{
    char making[PATH_BYTES];
    uint64_t there = 0, made = 0;
    SK_CHECK(self->txn == NULL);
    *records = 0;
    if (self->env == NULL)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "shard '%s' could not be opened again", self->folder);
    enum sk_err err = count_records(self, &there, d);
    if (err == SK_ERR_OK && there != 0)
        err = sk_fail(d, SK_ERR_EXISTS, "the shard holds %llu records; a snapshot goes to an empty one",
                      (unsigned long long)there);
    if (err == SK_ERR_OK)
        err = sk_files_making(self, making, d);
    if (err != SK_ERR_OK)
        return sk_wrap(d, err, "restore");
    struct sk_schema *schema = malloc(sizeof *schema);
    if (schema == NULL)
        err = sk_fail(d, SK_ERR_NOMEM, "no memory for a schema");
    else
        *schema = self->schema;
    if (err == SK_ERR_OK)
        err = make_from(self, folder, making, &made, d);
    if (err == SK_ERR_OK)
        err = sk_files_replace(self, d);
    else
        sk_files_making_drop(self);
    if (err == SK_ERR_OK)
        err = sk_store_meta_begin(self, schema, d);
    free(schema);
    if (err != SK_ERR_OK)
        return sk_wrap(d, err, "restore");
    *records = made;
    return SK_ERR_OK;
}
