/* A shard's store as a whole: opening, what meta holds, write transactions. */
#include "actors/shard-worker/store/internal.h"

#include <errno.h>

/* ---- errors ---- */

/* LMDB makes EIO of a short write, which is what a full disk gives; a failing disk says EIO too. */
static bool is_failing_disk(const struct sk_store *self)
{
    return self != NULL && sk_files_disk_has(self, 8 * self->config.reserve_bytes);
}

enum sk_err sk_store_fail(struct sk_store *self, int rc, const char *what, struct sk_diag *d)
{
    if (rc == MDB_MAP_FULL || rc == ENOSPC || rc == EDQUOT || rc == EFBIG ||
        (rc == EIO && !is_failing_disk(self))) {
        if (self != NULL)
            self->is_disk_full = true;
        return sk_fail(d, SK_ERR_DISK_FULL, "%s: %s", what,
                       rc == MDB_MAP_FULL ? "the shard has reached map_bytes_max"
                                          : "no space left on the disk");
    }
    if (rc == ENOMEM)
        return sk_fail(d, SK_ERR_NOMEM, "%s: out of memory", what);
    if (rc == MDB_VERSION_MISMATCH || rc == MDB_INVALID)
        return sk_fail(d, SK_ERR_VERSION, "%s: not a database of this LMDB: %s", what,
                       mdb_strerror(rc));
    if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND)
        return sk_fail(d, SK_ERR_INTERNAL, "%s: %s", what, mdb_strerror(rc));
    return sk_fail(d, SK_ERR_UNAVAILABLE, "%s: %s", what, mdb_strerror(rc));
}

enum sk_err sk_store_corrupt(struct sk_diag *d, const char *table, uint64_t row, const char *what)
{
    return sk_fail(d, SK_ERR_INTERNAL, "stored bytes of table '%s', row %llu: %s", table,
                   (unsigned long long)row, what);
}

/* ---- meta ---- */

enum sk_err sk_store_meta_put(struct sk_store *self, const char *name, const void *bytes, size_t size,
                              struct sk_diag *d)
{
    MDB_val key = sk_val(name, strlen(name)), value = sk_val(bytes, size), before;
    /* nothing changes: nothing is written, so that a shard opens on a full disk */
    if (mdb_get(self->txn, self->tables[T_META], &key, &before) == 0 &&
        sk_span_equals(sk_span_of(before.mv_data, before.mv_size), sk_span_of(bytes, size)))
        return SK_ERR_OK;
    int rc = mdb_put(self->txn, self->tables[T_META], &key, &value, 0);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, name, d);
}

bool sk_store_meta_get(const struct sk_store *self, MDB_txn *txn, const char *name, void *out,
                       size_t size)
{
    MDB_val key = sk_val(name, strlen(name)), value;
    if (mdb_get(txn, self->tables[T_META], &key, &value) != 0 || value.mv_size != size)
        return false;
    memcpy(out, value.mv_data, size);
    return true;
}

enum sk_err sk_store_check_shape(const struct sk_store *self, const struct sk_schema *schema,
                                 struct sk_diag *d)
{
    bool is_same = self->schema.vector_count == schema->vector_count;
    for (uint32_t f = 0; is_same && f < schema->vector_count; f++)
        is_same = self->schema.vectors[f].dim == schema->vectors[f].dim &&
                  self->schema.vectors[f].metric == schema->vectors[f].metric;
    if (!is_same)
        return sk_fail(d, SK_ERR_VERSION, "shard '%s' was made for other vector fields than '%s' has",
                       self->folder, schema->name);
    return SK_ERR_OK;
}

static enum sk_err meta_read(struct sk_store *self, const struct sk_schema *schema, struct sk_diag *d)
{
    uint32_t format = 0;
    MDB_val key = sk_val("schema", 6), stored;
    if (!sk_store_meta_get(self, self->txn, "format", &format, sizeof format))
        return sk_store_corrupt(d, "meta", 0, "the format is missing");
    if (format != SK_STORE_FORMAT)
        return sk_fail(d, SK_ERR_VERSION, "shard '%s' has format %u, this release reads %d",
                       self->folder, format, SK_STORE_FORMAT);
    if (!sk_store_meta_get(self, self->txn, "actor", &self->actor, sizeof self->actor) ||
        !sk_store_meta_get(self, self->txn, "counters", &self->counters, sizeof self->counters) ||
        mdb_get(self->txn, self->tables[T_META], &key, &stored) != 0)
        return sk_store_corrupt(d, "meta", 0, "actor, counters or schema is missing");
    struct sk_reader from = sk_reader_of(sk_span_of(stored.mv_data, stored.mv_size));
    enum sk_err err = sk_schema_decode(&self->schema, &from, d);
    if (err != SK_ERR_OK)
        return sk_wrap(d, SK_ERR_INTERNAL, "the stored schema of shard '%s'", self->folder);
    sk_states_load(self, self->txn, &self->states);
    return schema == NULL ? SK_ERR_OK : sk_store_check_shape(self, schema, d);
}

static enum sk_err meta_new(struct sk_store *self, struct sk_diag *d)
{
    uint32_t format = SK_STORE_FORMAT;
    self->actor = self->config.actor;
    memset(&self->counters, 0, sizeof self->counters);
    enum sk_err err = sk_store_meta_put(self, "format", &format, sizeof format, d);
    if (err == SK_ERR_OK)
        err = sk_store_meta_put(self, "actor", &self->actor, sizeof self->actor, d);
    if (err == SK_ERR_OK)
        err = sk_store_meta_put(self, "counters", &self->counters, sizeof self->counters, d);
    return err;
}

/* What the file has becomes what `schema` says; NULL: nothing changes. A new shard has no meta. */
static enum sk_err meta_begin(struct sk_store *self, const struct sk_schema *schema, bool is_new,
                              struct sk_diag *d)
{
    int rc = mdb_txn_begin(self->env, NULL, 0, &self->txn);
    if (rc != 0)
        return sk_store_fail(self, rc, "begin", d);
    enum sk_err err = is_new ? meta_new(self, d) : meta_read(self, schema, d);
    if (err == SK_ERR_OK && schema != NULL) {
        self->schema = *schema;
        sk_states_follow(self);
        err = sk_states_save(self, d);
    }
    if (err != SK_ERR_OK) {
        mdb_txn_abort(self->txn);
        self->txn = NULL;
        return err;
    }
    rc = mdb_txn_commit(self->txn);
    self->txn = NULL;
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "commit", d);
}

enum sk_err sk_store_meta_begin(struct sk_store *self, const struct sk_schema *schema,
                                struct sk_diag *d)
{
    return meta_begin(self, schema, false, d);
}

/* ---- opening ---- */

/* Rows a block so that a page is not wasted on each vector: of the counts whose block is at most 16 KiB
 * the one that wastes least, small ones first (a changed block is copied whole). LMDB puts values over
 * about half a page on pages of their own with a 16-byte head. */
static uint32_t block_rows_for(uint32_t dim, uint64_t page_bytes)
{
    uint64_t bytes = (uint64_t)dim * 4, head = 16;
    uint32_t best = 1;
    double best_waste = 1e9;
    for (uint32_t rows = 1; rows == 1 || rows * bytes <= BLOCK_BYTES_MAX; rows++) {
        uint64_t pages = (rows * bytes + head + page_bytes - 1) / page_bytes;
        double waste = (double)(pages * page_bytes) / (double)(rows * bytes);
        if (waste < best_waste - 0.03) {
            best_waste = waste;
            best = rows;
        }
    }
    return best;
}

/* A new shard is made aside: a power cut leaves none or a whole one. */
static enum sk_err make_new(struct sk_store *self, const struct sk_schema *schema, struct sk_diag *d)
{
    char folder[PATH_BYTES];
    if (schema == NULL)
        return sk_fail(d, SK_ERR_INVALID, "'%s' holds no shard", self->folder);
    enum sk_err err = sk_files_making(self, folder, d);
    if (err != SK_ERR_OK)
        return err;
    struct sk_store *made = calloc(1, sizeof *made);
    if (made == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a store");
    made->config = self->config;
    memcpy(made->folder, folder, sizeof made->folder);
    err = sk_files_open(made, d);
    if (err == SK_ERR_OK)
        err = meta_begin(made, schema, true, d);
    if (made->env != NULL)
        mdb_env_close(made->env);
    free(made);
    if (err != SK_ERR_OK) {
        sk_files_making_drop(self);
        return err;
    }
    return sk_files_replace(self, d);
}

static enum sk_err open_once(struct sk_store *self, const struct sk_schema *schema, struct sk_diag *d)
{
    enum sk_err err;
    if (sk_files_exist(self)) {
        sk_files_making_drop(self);
        err = sk_files_open(self, d);
    } else {
        err = make_new(self, schema, d);
    }
    if (err == SK_ERR_OK)
        err = meta_begin(self, schema, false, d);
    if (err != SK_ERR_OK && self->env != NULL) {
        mdb_env_close(self->env);
        self->env = NULL;
    }
    return err;
}

enum sk_err sk_store_open(struct sk_store **out, const struct sk_store_config *config,
                          const struct sk_schema *schema, struct sk_diag *d)
{
    *out = NULL;
    if (strlen(config->folder) >= PATH_BYTES - sizeof "/making")
        return sk_fail(d, SK_ERR_INVALID, "the path of shard '%s' is too long", config->folder);
    struct sk_store *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a store");
    (void)pthread_mutex_init(&self->readers_lock, NULL);
    (void)snprintf(self->folder, sizeof self->folder, "%s", config->folder);
    self->config = *config;
    self->config.folder = self->folder;
    if (self->config.map_bytes_max == 0)
        self->config.map_bytes_max = UINT64_C(64) << 30;
    if (self->config.reserve_bytes == 0)
        self->config.reserve_bytes = 1 << 20;
    enum sk_err err = open_once(self, schema, d);
    if (err == SK_ERR_DISK_FULL && sk_files_exist(self)) {
        sk_files_reserve_give_up(self);
        err = open_once(self, schema, d);
    }
    if (err != SK_ERR_OK) {
        sk_store_close(&self);
        return sk_wrap(d, err, "open");
    }
    for (uint32_t f = 0; f < self->schema.vector_count; f++)
        self->block_rows[f] = block_rows_for(self->schema.vectors[f].dim, self->page_bytes);
    self->is_disk_full = !sk_files_reserve_make(self);
    if (!self->is_disk_full)
        atomic_store(&self->is_reserve_used, false);
    *out = self;
    return SK_ERR_OK;
}

void sk_store_close(struct sk_store **self)
{
    struct sk_store *store = *self;
    if (store == NULL)
        return;
    sk_store_abort(store);
    sk_readers_let_go(store, true);
    free(store->changes.slots);
    sk_buffer_deinit(&store->scratch);
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++)
        free(store->blocks[f].bytes);
    if (store->env != NULL)
        mdb_env_close(store->env);
    (void)pthread_mutex_destroy(&store->readers_lock);
    free(store);
    *self = NULL;
}

/* ---- transactions ---- */

static bool was_full(const struct sk_store *self)
{
    return self->is_disk_full || atomic_load(&self->is_reserve_used);
}

bool sk_store_is_short(const struct sk_store *self)
{
    return was_full(self) || !sk_files_disk_has(self, self->config.reserve_bytes);
}

static enum sk_err make_room(struct sk_store *self, bool is_relief, struct sk_diag *d)
{
    if (is_relief) {
        if (sk_store_is_short(self))
            sk_files_reserve_give_up(self);
        return SK_ERR_OK;
    }
    bool is_short = was_full(self);
    if (is_short && sk_files_reserve_make(self)) {
        is_short = self->is_disk_full = false;
        atomic_store(&self->is_reserve_used, false);
    } else if (!is_short && sk_files_reserve_is_small(self)) {
        (void)sk_files_reserve_make(self); /* a small one is better than none */
    }
    /* pages that deletes gave back can be written without the disk's help */
    bool is_map_full = sk_files_map_is_full(self);
    if ((is_short || is_map_full) && !sk_files_has_free_pages(self))
        return sk_fail(d, SK_ERR_DISK_FULL, "%s; deletes and compact still work",
                       is_map_full ? "the shard has reached map_bytes_max"
                                   : "no space left on the disk");
    return SK_ERR_OK;
}

enum sk_err sk_store_begin(struct sk_store *self, uint64_t wall_us, bool is_relief,
                           struct sk_diag *d)
{
    SK_CHECK(self->txn == NULL);
    if (self->env == NULL)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "shard '%s' could not be opened again", self->folder);
    enum sk_err err = make_room(self, is_relief, d);
    if (err != SK_ERR_OK)
        return err;
    int rc = mdb_txn_begin(self->env, NULL, 0, &self->txn);
    if (rc != 0) {
        self->txn = NULL;
        return sk_store_fail(self, rc, "begin", d);
    }
    if (!sk_store_meta_get(self, self->txn, "counters", &self->counters, sizeof self->counters)) {
        sk_store_abort(self);
        return sk_store_corrupt(d, "meta", 0, "counters are missing");
    }
    self->wall_us = wall_us;
    self->tombs_from_before = self->tombs_from;
    return SK_ERR_OK;
}

/* Never below one given out before, whatever the wall clock does (HLC of a single writer). */
uint64_t sk_store_new_hlc(struct sk_store *self)
{
    uint64_t now = (self->wall_us / 1000 & ((UINT64_C(1) << 47) - 1)) << 16;
    self->counters.hlc = now > self->counters.hlc ? now : self->counters.hlc + 1;
    return self->counters.hlc;
}

enum sk_err sk_store_commit(struct sk_store *self, struct sk_diag *d)
{
    SK_CHECK(self->txn != NULL);
    enum sk_err err = sk_blocks_flush(self, d);
    if (err == SK_ERR_OK)
        err = sk_index_flush(self, d);
    if (err == SK_ERR_OK)
        err = sk_store_meta_put(self, "counters", &self->counters, sizeof self->counters, d);
    if (err != SK_ERR_OK) {
        sk_store_abort(self);
        return err;
    }
    int rc = mdb_txn_commit(self->txn);
    self->txn = NULL;
    sk_blocks_forget(self);
    if (rc == 0)
        return SK_ERR_OK;
    self->tombs_from = self->tombs_from_before;
    return sk_store_fail(self, rc, "commit", d);
}

void sk_store_abort(struct sk_store *self)
{
    if (self->txn != NULL) {
        mdb_txn_abort(self->txn);
        self->tombs_from = self->tombs_from_before;
    }
    self->txn = NULL;
    sk_blocks_forget(self);
    sk_index_forget(self);
}
