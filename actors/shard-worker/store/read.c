/* Reading: snapshots, records, vectors, scrolls, what an index asks at its start. */
#include "actors/shard-worker/store/internal.h"

enum sk_err sk_store_reader_new(struct sk_store_reader **out, struct sk_store *store,
                                struct sk_diag *d)
{
    *out = calloc(1, sizeof **out);
    if (*out == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a reader");
    (*out)->store = store;
    (void)pthread_mutex_lock(&store->readers_lock);
    (*out)->next = store->readers;
    store->readers = *out;
    (void)pthread_mutex_unlock(&store->readers_lock);
    return SK_ERR_OK;
}

void sk_store_reader_destroy(struct sk_store_reader **self)
{
    if (*self == NULL)
        return;
    struct sk_store *store = (*self)->store;
    if (store != NULL) {
        (void)pthread_mutex_lock(&store->readers_lock);
        struct sk_store_reader **at = &store->readers;
        while (*at != *self)
            at = &(*at)->next;
        *at = (*self)->next;
        (void)pthread_mutex_unlock(&store->readers_lock);
    }
    if ((*self)->txn != NULL)
        mdb_txn_abort((*self)->txn);
    sk_known_forget(*self);
    free(*self);
    *self = NULL;
}

void sk_readers_let_go(struct sk_store *self, bool is_for_good)
{
    (void)pthread_mutex_lock(&self->readers_lock);
    for (struct sk_store_reader *reader = self->readers; reader != NULL; reader = reader->next) {
        SK_CHECK(!reader->is_active);
        if (reader->txn != NULL)
            mdb_txn_abort(reader->txn);
        reader->txn = NULL;
        sk_known_forget(reader);
        if (is_for_good)
            reader->store = NULL;
    }
    (void)pthread_mutex_unlock(&self->readers_lock);
}

enum sk_err sk_store_read_begin(struct sk_store_reader *self, uint64_t wall_us, struct sk_diag *d)
{
    SK_CHECK(!self->is_active && self->store != NULL);
    if (self->store->env == NULL)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "shard '%s' could not be opened again",
                       self->store->folder);
    int rc = self->txn != NULL ? mdb_txn_renew(self->txn)
                               : mdb_txn_begin(self->store->env, NULL, MDB_RDONLY, &self->txn);
    if (rc != 0) {
        if (self->txn != NULL)
            mdb_txn_abort(self->txn);
        self->txn = NULL;
        return sk_store_fail(NULL, rc, "read", d);
    }
    self->is_active = true;
    self->block = NULL;
    sk_known_begin(self);
    self->wall_us = wall_us;
    return SK_ERR_OK;
}

void sk_store_read_end(struct sk_store_reader *self)
{
    if (!self->is_active)
        return;
    mdb_txn_reset(self->txn);
    self->is_active = false;
}

static bool is_live(const struct sk_store_reader *self, const struct record_view *view)
{
    return view->head.expiry_us == 0 || view->head.expiry_us > self->wall_us;
}

static void fill(struct sk_record *out, const struct record_view *view)
{
    struct stored_version version;
    memcpy(&version, view->registers, sizeof version);
    out->id = view->id;
    out->payload = view->payload;
    out->birth_lseq = view->head.birth_lseq;
    out->lseq = view->head.lseq;
    out->expiry_us = view->head.expiry_us;
    out->hlc = version.hlc;
    out->actor = version.actor;
    out->seq = version.seq;
}

enum sk_err sk_store_record(struct sk_store_reader *self, uint32_t row, struct sk_record *out,
                            struct sk_diag *d)
{
    struct record_view view;
    MDB_val value;
    enum sk_err err = SK_ERR_OK;
    bool is_known = sk_known_record(self, row, &value);
    if (!is_known)
        err = sk_record_find(self->store, self->txn, row, &value, d);
    if (err == SK_ERR_OK)
        err = sk_record_parse(&view, value, row, d);
    if (err != SK_ERR_OK)
        return err;
    if (!is_known)
        sk_known_record_is(self, row, value);
    if (!is_live(self, &view))
        return SK_ERR_NOT_FOUND;
    fill(out, &view);
    return SK_ERR_OK;
}

enum sk_err sk_store_find(struct sk_store_reader *self, const struct sk_id *id, uint32_t *row,
                          struct sk_diag *d)
{
    MDB_val key = sk_val(id->bytes, id->size), value;
    struct record_view view;
    int rc = mdb_get(self->txn, self->store->tables[T_IDS], &key, &value);
    if (rc == MDB_NOTFOUND)
        return SK_ERR_NOT_FOUND;
    if (rc != 0)
        return sk_store_fail(NULL, rc, "ids", d);
    if (value.mv_size != sizeof *row)
        return sk_store_corrupt(d, "ids", 0, "not a row");
    memcpy(row, value.mv_data, sizeof *row);
    enum sk_err err = sk_record_get(self->store, self->txn, *row, &view, d);
    if (err == SK_ERR_NOT_FOUND)
        return sk_store_corrupt(d, "ids", *row, "names a row that has no record");
    if (err == SK_ERR_OK && !is_live(self, &view))
        return SK_ERR_NOT_FOUND;
    return err;
}

const float *sk_store_vector(struct sk_store_reader *self, unsigned field, uint32_t row)
{
    const struct sk_store *store = self->store;
    uint32_t rows = store->block_rows[field], dim = store->schema.vectors[field].dim;
    uint64_t number = sk_block_key(field, row / rows);
    const uint8_t *known = sk_known_vector(self, field, row);
    if (known != NULL)
        return (const float *)(const void *)known;
    if (self->block == NULL || self->block_key != number) { /* a scan asks for its rows in order */
        MDB_val key = sk_val(&number, sizeof number), value;
        if (mdb_get(self->txn, store->tables[T_VECTORS], &key, &value) != 0 ||
            value.mv_size != (size_t)rows * dim * sizeof(float))
            return NULL;
        self->block = value.mv_data;
        self->block_key = number;
    }
    /* values of LMDB are aligned to 2; a block is a value of its own pages (16 bytes behind a page's
     * begin) or, for small dimensions, a node in a page, where the 16-byte key keeps it even */
    const uint8_t *at = self->block + (size_t)(row % rows) * dim * sizeof(float);
    if ((uintptr_t)at % sizeof(float) != 0)
        return NULL;
    sk_known_vector_is(self, field, row, at);
    return (const float *)(const void *)at;
}

static void prefetch(const uint8_t *at, size_t bytes)
{
    enum { LINE_BYTES = 64 };
    for (size_t i = 0; i < bytes; i += LINE_BYTES)
        __builtin_prefetch(at + i);
}

void sk_store_vectors(struct sk_store_reader *self, unsigned field, const uint32_t *rows,
                      uint32_t count, const float **out)
{
    enum { RECORD_BYTES = 192 }; /* head, registers, id and the begin of a payload */
    size_t bytes = self->store->schema.vectors[field].dim * sizeof **out;
    for (uint32_t i = 0; i < count; i++)
        sk_known_expect(self, rows[i]);
    for (uint32_t i = 0; i < count; i++) {
        MDB_val record;
        out[i] = sk_store_vector(self, field, rows[i]);
        if (out[i] != NULL)
            prefetch((const uint8_t *)out[i], bytes);
        if (sk_known_record(self, rows[i], &record))
            prefetch(record.mv_data, record.mv_size < RECORD_BYTES ? record.mv_size : RECORD_BYTES);
    }
}

uint32_t sk_store_row_words(struct sk_store_reader *self)
{
    struct stored_counters counters;
    if (!sk_store_meta_get(self->store, self->txn, "counters", &counters, sizeof counters))
        return 0;
    return (counters.row_end + 63) / 64;
}

enum sk_err sk_store_count(struct sk_store_reader *self, uint64_t *count, struct sk_diag *d)
{
    MDB_stat info;
    *count = 0;
    int rc = mdb_stat(self->txn, self->store->tables[T_IDS], &info);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "ids", d);
    *count = info.ms_entries;
    return SK_ERR_OK;
}

uint64_t sk_store_lseq(struct sk_store_reader *self)
{
    struct stored_counters counters;
    if (!sk_store_meta_get(self->store, self->txn, "counters", &counters, sizeof counters))
        return 0;
    return counters.lseq;
}

uint64_t sk_store_next_expiry_us(struct sk_store_reader *self)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    uint64_t next = UINT64_MAX;
    if (mdb_cursor_open(self->txn, self->store->tables[T_EXPIRY], &cursor) != 0)
        return next;
    if (mdb_cursor_get(cursor, &key, &value, MDB_FIRST) == 0 && key.mv_size == 12)
        next = sk_get_be(key.mv_data, 8);
    mdb_cursor_close(cursor);
    return next;
}

/* ---- scroll ---- */

enum sk_err sk_store_scroll_begin(struct sk_store_scroll *self, struct sk_store_reader *reader,
                                  const struct sk_id *after, struct sk_diag *d)
{
    MDB_cursor *cursor = NULL;
    memset(self, 0, sizeof *self);
    self->reader = reader;
    if (after != NULL) {
        self->after = *after;
        self->has_after = true;
    }
    int rc = mdb_cursor_open(reader->txn, reader->store->tables[T_IDS], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "ids", d);
    self->cursor = cursor;
    return SK_ERR_OK;
}

bool sk_store_scroll_next(struct sk_store_scroll *self, uint32_t *row, struct sk_record *record,
                          enum sk_err *err, struct sk_diag *d)
{
    MDB_cursor *cursor = self->cursor;
    MDB_val key, value;
    *err = SK_ERR_OK;
    for (;;) {
        int rc;
        if (self->is_started) {
            rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
        } else if (self->has_after) {
            key = sk_val(self->after.bytes, self->after.size);
            rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
            if (rc == 0 && sk_span_equals(sk_span_of(key.mv_data, key.mv_size),
                                          sk_id_canonical(&self->after)))
                rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
        } else {
            rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
        }
        self->is_started = true;
        if (rc == MDB_NOTFOUND)
            return false;
        if (rc != 0 || value.mv_size != sizeof *row) {
            *err = rc != 0 ? sk_store_fail(NULL, rc, "ids", d) : sk_store_corrupt(d, "ids", 0, "not a row");
            return false;
        }
        memcpy(row, value.mv_data, sizeof *row);
        *err = sk_store_record(self->reader, *row, record, d);
        if (*err == SK_ERR_OK)
            return true;
        if (*err != SK_ERR_NOT_FOUND)
            return false;
        *err = SK_ERR_OK; /* expired */
    }
}

void sk_store_scroll_end(struct sk_store_scroll *self)
{
    if (self->cursor != NULL)
        mdb_cursor_close(self->cursor);
    self->cursor = NULL;
}

/* ---- for indexes ---- */

enum sk_err sk_store_births(struct sk_store_reader *self, uint64_t above_lseq, struct sk_birth *out,
                            uint32_t capacity, uint32_t *count, struct sk_diag *d)
{
    MDB_cursor *cursor = NULL;
    MDB_val value;
    uint64_t from = above_lseq + 1;
    MDB_val key = sk_val(&from, sizeof from);
    *count = 0;
    int rc = mdb_cursor_open(self->txn, self->store->tables[T_BIRTHS], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "births", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; rc == 0 && *count < capacity; rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        if (key.mv_size != 8 || value.mv_size != 4) {
            mdb_cursor_close(cursor);
            return sk_store_corrupt(d, "births", 0, "not lseq and row");
        }
        memcpy(&out[*count].lseq, key.mv_data, 8);
        memcpy(&out[*count].row, value.mv_data, 4);
        (*count)++;
    }
    mdb_cursor_close(cursor);
    return SK_ERR_OK;
}

bool sk_store_row_birth(struct sk_store_reader *self, uint32_t row, uint64_t *birth_lseq)
{
    struct record_view view;
    if (sk_record_get(self->store, self->txn, row, &view, NULL) != SK_ERR_OK)
        return false;
    *birth_lseq = view.head.birth_lseq;
    return true;
}

enum sk_err sk_store_limbo(struct sk_store_reader *self, uint32_t from_row, uint32_t *out,
                           uint32_t capacity, uint32_t *count, struct sk_diag *d)
{
    MDB_cursor *cursor = NULL;
    MDB_val value, key = sk_val(&from_row, sizeof from_row);
    *count = 0;
    int rc = mdb_cursor_open(self->txn, self->store->tables[T_LIMBO], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "limbo", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; rc == 0 && *count < capacity; rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT))
        if (key.mv_size == sizeof *out)
            memcpy(&out[(*count)++], key.mv_data, sizeof *out);
    mdb_cursor_close(cursor);
    return SK_ERR_OK;
}

/* ---- stats ---- */

static uint64_t entries(struct sk_store_reader *self, enum table table)
{
    MDB_stat info;
    return mdb_stat(self->txn, self->store->tables[table], &info) == 0 ? info.ms_entries : 0;
}

uint64_t sk_store_file_bytes(const struct sk_store *self)
{
    return sk_files_bytes(self, "data.mdb") + sk_files_bytes(self, "lock.mdb") +
           sk_files_bytes(self, "reserve");
}

enum sk_err sk_store_get_stats(struct sk_store_reader *self, struct sk_store_stats *out,
                               struct sk_diag *d)
{
    struct field_states states;
    const struct sk_store *store = self->store;
    (void)d;
    memset(out, 0, sizeof *out);
    out->records = entries(self, T_IDS);
    out->tombstones = entries(self, T_TOMBS);
    out->limbo_rows = entries(self, T_LIMBO);
    out->free_rows = entries(self, T_FREE);
    out->expiring = entries(self, T_EXPIRY);
    out->lseq = sk_store_lseq(self);
    for (int t = 0; t < TABLE_COUNT; t++) {
        MDB_stat table;
        if (mdb_stat(self->txn, store->tables[t], &table) == 0)
            out->used_bytes += (uint64_t)(table.ms_branch_pages + table.ms_leaf_pages +
                                          table.ms_overflow_pages) * table.ms_psize;
    }
    out->file_bytes = sk_store_file_bytes(store);
    out->is_disk_full = atomic_load(&store->is_reserve_used);
    sk_states_load(store, self->txn, &states);
    for (unsigned s = 0; s < states.count; s++)
        if (!states.at[s].is_ready || states.at[s].is_dropping) {
            out->fields_building++;
            out->build_done += states.at[s].next_row;
            out->build_total += (uint64_t)sk_store_row_words(self) * 64;
        }
    return SK_ERR_OK;
}
