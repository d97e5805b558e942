/* Writing records: ids, rows, versions, vectors, change log. */
#include "actors/shard-worker/store/internal.h"

#include <math.h>
#include <xxhash.h>

enum { RECORD_FORMAT = 1, CONTEXT_MAX = 8 };

/* ---- stored form ---- */

enum sk_err sk_record_parse(struct record_view *out, MDB_val value, uint32_t row, struct sk_diag *d)
{
    const uint8_t *at = value.mv_data;
    memset(out, 0, sizeof *out);
    if (value.mv_size < sizeof out->head)
        return sk_store_corrupt(d, "records", row, "too short");
    memcpy(&out->head, at, sizeof out->head);
    size_t fixed = sizeof out->head + out->head.register_count * sizeof(struct stored_version) +
                   out->head.context_count * (size_t)16 + out->head.id_size;
    if (out->head.format != RECORD_FORMAT || out->head.context_count > CONTEXT_MAX ||
        out->head.register_count == 0 || out->head.register_count > SK_VECTOR_FIELDS_MAX + 1 ||
        fixed > value.mv_size)
        return sk_store_corrupt(d, "records", row, "the head does not fit the value");
    out->registers = at + sizeof out->head;
    struct sk_span id = sk_span_of(at + fixed - out->head.id_size, out->head.id_size);
    if (sk_id_from_canonical(&out->id, id, NULL) != SK_ERR_OK)
        return sk_store_corrupt(d, "records", row, "the id is not canonical");
    out->payload = sk_span_of(at + fixed, value.mv_size - fixed);
    return SK_ERR_OK;
}

enum sk_err sk_record_find(const struct sk_store *self, MDB_txn *txn, uint32_t row, MDB_val *value,
                           struct sk_diag *d)
{
    MDB_val key = sk_val(&row, sizeof row);
    int rc = mdb_get(txn, self->tables[T_RECORDS], &key, value);
    if (rc == MDB_NOTFOUND)
        return SK_ERR_NOT_FOUND;
    return rc == 0 ? SK_ERR_OK : sk_store_fail(NULL, rc, "records", d);
}

enum sk_err sk_record_get(const struct sk_store *self, MDB_txn *txn, uint32_t row,
                          struct record_view *out, struct sk_diag *d)
{
    MDB_val value;
    enum sk_err err = sk_record_find(self, txn, row, &value, d);
    return err == SK_ERR_OK ? sk_record_parse(out, value, row, d) : err;
}

/* ---- vectors, packed in blocks ---- */

void sk_blocks_forget(struct sk_store *self)
{
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++) {
        self->blocks[f].is_dirty = false;
        self->blocks[f].key = UINT64_MAX;
    }
}

static size_t block_bytes(const struct sk_store *self, unsigned field)
{
    return (size_t)self->block_rows[field] * self->schema.vectors[field].dim * sizeof(float);
}

static enum sk_err flush_block(struct sk_store *self, unsigned field, struct sk_diag *d)
{
    struct open_block *block = &self->blocks[field];
    if (!block->is_dirty)
        return SK_ERR_OK;
    MDB_val key = sk_val(&block->key, sizeof block->key);
    MDB_val value = sk_val(block->bytes, block_bytes(self, field));
    int rc = mdb_put(self->txn, self->tables[T_VECTORS], &key, &value, 0);
    block->is_dirty = false;
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "vectors", d);
}

enum sk_err sk_blocks_flush(struct sk_store *self, struct sk_diag *d)
{
    enum sk_err err = SK_ERR_OK;
    for (unsigned f = 0; f < self->schema.vector_count && err == SK_ERR_OK; f++)
        err = flush_block(self, f, d);
    return err;
}

static enum sk_err put_vector(struct sk_store *self, unsigned field, uint32_t row,
                              const struct sk_vector_view *view, uint64_t *hash, struct sk_diag *d)
{
    struct open_block *block = &self->blocks[field];
    uint32_t dim = self->schema.vectors[field].dim;
    uint64_t key = sk_block_key(field, row / self->block_rows[field]);
    if (block->bytes == NULL) {
        block->bytes = malloc(block_bytes(self, field));
        block->key = UINT64_MAX;
        if (block->bytes == NULL)
            return sk_fail(d, SK_ERR_NOMEM, "no memory for a block of vectors");
    }
    if (block->key != key) {
        enum sk_err err = flush_block(self, field, d);
        if (err != SK_ERR_OK)
            return err;
        MDB_val at = sk_val(&key, sizeof key), value;
        int rc = mdb_get(self->txn, self->tables[T_VECTORS], &at, &value);
        if (rc != 0 && rc != MDB_NOTFOUND)
            return sk_store_fail(self, rc, "vectors", d);
        if (rc == 0 && value.mv_size != block_bytes(self, field))
            return sk_store_corrupt(d, "vectors", key, "the block has another size than its field says");
        if (rc == 0)
            memcpy(block->bytes, value.mv_data, value.mv_size);
        else
            memset(block->bytes, 0, block_bytes(self, field));
        block->key = key;
    }
    /* a block is a multiple of 4 bytes from malloc: aligned for floats */
    float *to = (float *)(void *)(block->bytes +
                                  (size_t)(row % self->block_rows[field]) * dim * sizeof(float));
    block->is_dirty = true;
    if (!sk_vector_view_copy(view, to))
        return sk_fail(d, SK_ERR_INVALID, "a vector is not finite");
    *hash = XXH3_64bits(to, (size_t)dim * sizeof(float));
    return SK_ERR_OK;
}

/* ---- rows ---- */

static enum sk_err take_row(struct sk_store *self, uint32_t *row, struct sk_diag *d)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    int rc = mdb_cursor_open(self->txn, self->tables[T_FREE], &cursor);
    if (rc != 0)
        return sk_store_fail(self, rc, "free", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    *row = self->counters.row_end;
    if (rc == 0) {
        memcpy(row, key.mv_data, sizeof *row); /* LMDB holds keys of such a table to 4 bytes */
        rc = mdb_cursor_del(cursor, 0);
    } else if (rc == MDB_NOTFOUND) {
        rc = 0;
        self->counters.row_end++;
    }
    mdb_cursor_close(cursor);
    if (*row >= INT32_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE, "a shard holds at most 2,147,483,647 rows");
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "free", d);
}

static int put_birth(struct sk_store *self, uint64_t lseq, uint32_t row)
{
    MDB_val key = sk_val(&lseq, sizeof lseq), value = sk_val(&row, sizeof row);
    return mdb_put(self->txn, self->tables[T_BIRTHS], &key, &value, MDB_APPEND);
}

static int put_log(struct sk_store *self, uint64_t lseq, uint32_t row)
{
    uint8_t named[LOG_ROW_BYTES];
    sk_log_row(named, row);
    MDB_val key = sk_val(&lseq, sizeof lseq), value = sk_val(named, sizeof named);
    return mdb_put(self->txn, self->tables[T_LOG], &key, &value, MDB_APPEND);
}

static int del_u64(struct sk_store *self, enum table table, uint64_t number)
{
    MDB_val key = sk_val(&number, sizeof number);
    int rc = mdb_del(self->txn, self->tables[table], &key, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static void expiry_key(uint8_t key[12], uint64_t expiry_us, uint32_t row)
{
    sk_put_be(key, expiry_us, 8);
    sk_put_be(key + 8, row, 4);
}

static int put_expiry(struct sk_store *self, uint64_t expiry_us, uint32_t row, bool is_added)
{
    uint8_t bytes[12];
    if (expiry_us == 0)
        return 0;
    expiry_key(bytes, expiry_us, row);
    MDB_val key = sk_val(bytes, sizeof bytes), value = sk_val("", 0);
    if (is_added)
        return mdb_put(self->txn, self->tables[T_EXPIRY], &key, &value, 0);
    int rc = mdb_del(self->txn, self->tables[T_EXPIRY], &key, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int find_row(struct sk_store *self, const struct sk_id *id, uint32_t *row)
{
    MDB_val key = sk_val(id->bytes, id->size), value;
    int rc = mdb_get(self->txn, self->tables[T_IDS], &key, &value);
    if (rc == 0 && value.mv_size != sizeof *row)
        return MDB_CORRUPTED;
    if (rc == 0)
        memcpy(row, value.mv_data, sizeof *row);
    return rc;
}

/* Takes the record of a row out of every table but ids and log; the row goes to limbo. */
static enum sk_err retire_row(struct sk_store *self, uint32_t row, const struct record_view *view,
                              struct sk_change *change, struct sk_diag *d)
{
    enum sk_err err = sk_index_row(self, row, view->payload, false, d);
    if (err != SK_ERR_OK)
        return err;
    uint64_t lseq = view->head.lseq, birth = view->head.birth_lseq;
    change->has_old = true;
    change->old_row = row;
    change->old_lseq = birth;
    int rc = put_expiry(self, view->head.expiry_us, row, false);
    if (rc == 0)
        rc = del_u64(self, T_LOG, lseq);
    if (rc == 0)
        rc = del_u64(self, T_BIRTHS, birth);
    MDB_val key = sk_val(&row, sizeof row), nothing = sk_val("", 0);
    if (rc == 0)
        rc = mdb_del(self->txn, self->tables[T_RECORDS], &key, NULL);
    if (rc == 0)
        rc = mdb_put(self->txn, self->tables[T_LIMBO], &key, &nothing, 0);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "records", d);
}

static void next_version(struct sk_store *self, struct stored_version *out, uint64_t hash)
{
    out->hlc = sk_store_new_hlc(self);
    out->actor = self->actor;
    out->seq = ++self->counters.seq;
    out->hash = hash;
}

/* The context of a write: what it has seen. With one member of the cluster everything up to our own
 * clock is covered by the base (research: frontier rule), so pairs of other actors are kept only when
 * they are above it. */
static uint64_t context_base(const struct sk_store *self)
{
    return self->counters.hlc;
}

static enum sk_err put_record(struct sk_store *self, uint32_t row, bool is_last,
                              const struct stored_record *head, const struct stored_version *registers,
                              const struct sk_id *id, struct sk_span payload, struct sk_diag *d)
{
    size_t register_bytes = head->register_count * sizeof *registers;
    size_t size = sizeof *head + register_bytes + id->size + payload.size;
    MDB_val key = sk_val(&row, sizeof row), value = {.mv_size = size, .mv_data = NULL};
    int rc = mdb_put(self->txn, self->tables[T_RECORDS], &key, &value,
                     MDB_RESERVE | (is_last ? MDB_APPEND : 0));
    if (rc != 0)
        return sk_store_fail(self, rc, "records", d);
    uint8_t *at = value.mv_data;
    memcpy(at, head, sizeof *head);
    memcpy(at + sizeof *head, registers, register_bytes);
    memcpy(at + sizeof *head + register_bytes, id->bytes, id->size);
    if (payload.size > 0)
        memcpy(at + size - payload.size, payload.bytes, payload.size);
    return SK_ERR_OK;
}

static uint64_t hash_of(struct sk_span bytes)
{
    return bytes.size == 0 ? 0 : XXH3_64bits(bytes.bytes, bytes.size);
}

static uint64_t expiry_of(const struct sk_store *self, const struct sk_row *row)
{
    double us = ceil(row->ttl_s * 1e6);
    if (!row->has_ttl)
        return 0;
    /* beyond any clock: kept, and still a time after now */
    return us < 9e18 ? self->wall_us + (uint64_t)us : UINT64_MAX;
}

/* What is there under this id goes: *change tells. NOT_FOUND when nothing is. */
static enum sk_err retire_id(struct sk_store *self, const struct sk_id *id,
                             struct sk_change *change, struct sk_diag *d)
{
    uint32_t row;
    struct record_view view;
    int rc = find_row(self, id, &row);
    if (rc == MDB_NOTFOUND)
        return SK_ERR_NOT_FOUND;
    if (rc != 0)
        return sk_store_fail(self, rc, "ids", d);
    enum sk_err err = sk_record_get(self, self->txn, row, &view, d);
    if (err == SK_ERR_NOT_FOUND)
        return sk_store_corrupt(d, "ids", row, "names a row that has no record");
    if (err != SK_ERR_OK)
        return err;
    change->was_live = view.head.expiry_us == 0 || view.head.expiry_us > self->wall_us;
    self->counters.record_count--;
    return retire_row(self, row, &view, change, d);
}

enum sk_err sk_store_upsert(struct sk_store *self, const struct sk_row *row,
                            struct sk_change *change, struct sk_diag *d)
{
    struct stored_version registers[SK_VECTOR_FIELDS_MAX + 1];
    memset(change, 0, sizeof *change);
    SK_CHECK(self->txn != NULL);
    enum sk_err err = retire_id(self, &row->id, change, d);
    if (err == SK_ERR_NOT_FOUND)
        err = sk_tombs_forget(self, &row->id, d);
    if (err != SK_ERR_OK)
        return err;
    uint32_t fresh = self->counters.row_end;
    err = take_row(self, &change->row, d);
    if (err != SK_ERR_OK)
        return err;
    next_version(self, &registers[0], hash_of(row->payload));
    for (unsigned f = 0; f < self->schema.vector_count; f++) {
        uint64_t hash = 0;
        err = put_vector(self, f, change->row, &row->vectors[f], &hash, d);
        if (err != SK_ERR_OK)
            return err;
        registers[f + 1] = registers[0];
        registers[f + 1].hash = hash;
    }
    change->has_new = true;
    change->lseq = ++self->counters.lseq;
    struct stored_record head = {.format = RECORD_FORMAT,
                                 .register_count = (uint8_t)(self->schema.vector_count + 1),
                                 .id_size = row->id.size,
                                 .birth_lseq = change->lseq,
                                 .lseq = change->lseq,
                                 .expiry_us = expiry_of(self, row),
                                 .context_base = context_base(self)};
    err = put_record(self, change->row, change->row == fresh, &head, registers, &row->id,
                     row->payload, d);
    if (err != SK_ERR_OK)
        return err;
    MDB_val key = sk_val(row->id.bytes, row->id.size), value = sk_val(&change->row, 4);
    int rc = mdb_put(self->txn, self->tables[T_IDS], &key, &value, 0);
    if (rc == 0)
        rc = put_log(self, change->lseq, change->row);
    if (rc == 0)
        rc = put_birth(self, change->lseq, change->row);
    if (rc == 0)
        rc = put_expiry(self, head.expiry_us, change->row, true);
    if (rc != 0)
        return sk_store_fail(self, rc, "ids", d);
    self->counters.record_count++;
    return sk_index_row(self, change->row, row->payload, true, d);
}

enum sk_err sk_store_delete(struct sk_store *self, const struct sk_id *id, struct sk_change *change,
                            struct sk_diag *d)
{
    memset(change, 0, sizeof *change);
    SK_CHECK(self->txn != NULL);
    if (sk_mutant("lost_delete")) {
        uint32_t row;
        change->has_old = change->was_live = find_row(self, id, &row) == 0;
        change->old_row = UINT32_MAX;
        return SK_ERR_OK;
    }
    enum sk_err err = retire_id(self, id, change, d);
    if (err == SK_ERR_NOT_FOUND)
        return SK_ERR_OK;
    if (err != SK_ERR_OK)
        return err;
    struct stored_version version;
    next_version(self, &version, 0);
    MDB_val key = sk_val(id->bytes, id->size);
    int rc = mdb_del(self->txn, self->tables[T_IDS], &key, NULL);
    if (rc != 0)
        return sk_store_fail(self, rc, "ids", d);
    return sk_tombs_put(self, id, &version, d);
}

/* A merged map has a head of five bytes; in its shortest form it has the hash of an equal upsert. */
static struct sk_span shortest(struct sk_buffer *merged)
{
    uint8_t *bytes = merged->bytes;
    uint64_t count = sk_get_be(bytes + 1, 4);
    if (count < 16) {
        bytes[4] = (uint8_t)(0x80 | count);
        return sk_span_of(bytes + 4, merged->size - 4);
    }
    if (count <= UINT16_MAX) {
        bytes[2] = 0xDE; /* its count is in place behind it */
        return sk_span_of(bytes + 2, merged->size - 2);
    }
    return sk_buffer_span(merged);
}

enum sk_err sk_store_set_payload(struct sk_store *self, const struct sk_id *id,
                                 struct sk_span payload, bool is_replace, bool *was_there,
                                 struct sk_diag *d)
{
    uint32_t row;
    struct record_view view;
    *was_there = false;
    int rc = find_row(self, id, &row);
    if (rc == MDB_NOTFOUND)
        return SK_ERR_OK;
    if (rc != 0)
        return sk_store_fail(self, rc, "ids", d);
    enum sk_err err = sk_record_get(self, self->txn, row, &view, d);
    if (err != SK_ERR_OK)
        return err == SK_ERR_NOT_FOUND ? sk_store_corrupt(d, "ids", row, "names a row that has no record")
                                       : err;
    if (view.head.expiry_us != 0 && view.head.expiry_us <= self->wall_us)
        return SK_ERR_OK;
    sk_buffer_clear(&self->scratch);
    sk_payload_merge(&self->scratch, is_replace ? (struct sk_span){0} : view.payload, payload);
    err = sk_buffer_check(&self->scratch, d);
    if (err != SK_ERR_OK)
        return err;
    struct sk_span merged = shortest(&self->scratch);
    if (merged.size > SK_PAYLOAD_BYTES_MAX)
        err = sk_fail_field(d, SK_ERR_TOO_LARGE, "payload",
                            "the merged payload has %zu bytes, want at most %d", merged.size,
                            SK_PAYLOAD_BYTES_MAX);
    if (err == SK_ERR_OK)
        err = sk_index_row(self, row, view.payload, false, d);
    if (err == SK_ERR_OK)
        err = sk_index_row(self, row, merged, true, d);
    if (err != SK_ERR_OK)
        return err;
    struct stored_record head = view.head;
    struct sk_id own = view.id;
    struct stored_version registers[SK_VECTOR_FIELDS_MAX + 1];
    memcpy(registers, view.registers, head.register_count * sizeof registers[0]);
    next_version(self, &registers[0], hash_of(merged));
    uint64_t before = head.lseq;
    head.lseq = ++self->counters.lseq;
    head.context_base = context_base(self);
    head.context_count = 0;
    err = put_record(self, row, false, &head, registers, &own, merged, d);
    if (err != SK_ERR_OK)
        return err;
    rc = del_u64(self, T_LOG, before);
    if (rc == 0)
        rc = put_log(self, head.lseq, row);
    *was_there = rc == 0;
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "log", d);
}

enum sk_err sk_store_release_row(struct sk_store *self, uint32_t row, struct sk_diag *d)
{
    MDB_val key = sk_val(&row, sizeof row), nothing = sk_val("", 0);
    int rc = mdb_del(self->txn, self->tables[T_LIMBO], &key, NULL);
    if (rc == MDB_NOTFOUND)
        return SK_ERR_OK; /* released before: a restart asks again */
    if (rc == 0)
        rc = mdb_put(self->txn, self->tables[T_FREE], &key, &nothing, 0);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "limbo", d);
}

/* ---- sets of ids for a write ---- */

struct collector {
    struct sk_store *store;
    struct sk_id *ids;
    uint32_t count, capacity;
    enum sk_err err;
    struct sk_diag *d;
};

static bool collect(void *impl, uint32_t row)
{
    struct collector *self = impl;
    struct record_view view;
    if (self->count == self->capacity) {
        uint32_t capacity = self->capacity == 0 ? 256 : self->capacity * 2;
        struct sk_id *ids = realloc(self->ids, capacity * sizeof *ids);
        if (ids == NULL) {
            self->err = sk_fail(self->d, SK_ERR_NOMEM, "no memory for %u ids", capacity);
            return false;
        }
        self->ids = ids;
        self->capacity = capacity;
    }
    self->err = sk_record_get(self->store, self->store->txn, row, &view, self->d);
    if (self->err == SK_ERR_NOT_FOUND)
        self->err = sk_store_corrupt(self->d, "pindex", row, "names a row that has no record");
    if (self->err != SK_ERR_OK)
        return false;
    self->ids[self->count++] = view.id;
    return true;
}

enum sk_err sk_store_write_select(struct sk_store *self, const struct sk_filter *filter,
                                  struct sk_id **ids, uint32_t *count, struct sk_diag *d)
{
    struct sk_selection selection = {0};
    struct collector collector = {.store = self, .d = d};
    *ids = NULL;
    *count = 0;
    enum sk_err err = sk_index_flush(self, d); /* the filter reads the tables */
    if (err == SK_ERR_OK)
        err = sk_store_select_txn(self, self->txn, self->wall_us, filter, &selection, d);
    if (err == SK_ERR_OK) {
        sk_selection_each(&selection, collect, &collector);
        err = collector.err;
    }
    sk_selection_deinit(&selection);
    if (err != SK_ERR_OK) {
        free(collector.ids);
        return err;
    }
    *ids = collector.ids;
    *count = collector.count;
    return SK_ERR_OK;
}

enum sk_err sk_store_expired(struct sk_store *self, uint32_t limit, struct sk_id **ids,
                             uint32_t *count, struct sk_diag *d)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    struct collector collector = {.store = self, .d = d};
    *ids = NULL;
    *count = 0;
    int rc = mdb_cursor_open(self->txn, self->tables[T_EXPIRY], &cursor);
    if (rc != 0)
        return sk_store_fail(self, rc, "expiry", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (rc == 0 && key.mv_size == 12 && sk_get_be(key.mv_data, 8) <= self->wall_us &&
           collector.count < limit) {
        if (!collect(&collector, (uint32_t)sk_get_be((const uint8_t *)key.mv_data + 8, 4)))
            break;
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    if (collector.err != SK_ERR_OK) {
        free(collector.ids);
        return collector.err;
    }
    *ids = collector.ids;
    *count = collector.count;
    return SK_ERR_OK;
}
