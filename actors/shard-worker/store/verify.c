/* Looking after a shard: tables against each other, contents against their hashes, and payload indexes
 * (derived) against the records.
 *
 * Indexes are compared without a second copy of them: every stored pair of key and row must follow from
 * the row's record, and there must be as many pairs as the records give. */
#include "actors/shard-worker/store/internal.h"

#include <xxhash.h>

enum { BATCH = 4096 };

struct checking {
    struct sk_store *store;
    MDB_txn *txn;
    struct field_states states;
    struct sk_store_check *out;
    struct sk_diag *d;
    uint64_t *hashes; /* of the keys of one record */
    size_t hash_count, hash_capacity;
    uint64_t pairs_wanted, pairs_found;
    uint64_t expiring;
};

static enum sk_err say(struct checking *self, int rc, const char *table)
{
    return sk_store_fail(self->store, rc, table, self->d);
}

static enum sk_err corrupt(struct checking *self, const char *table, uint64_t row, const char *what)
{
    return sk_store_corrupt(self->d, table, row, what);
}

/* Calls each for every entry of a table. */
static enum sk_err for_each(struct checking *self, enum table table, const char *name,
                            enum sk_err (*each)(struct checking *self, MDB_val key, MDB_val value))
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    enum sk_err err = SK_ERR_OK;
    int rc = mdb_cursor_open(self->txn, self->store->tables[table], &cursor);
    if (rc != 0)
        return say(self, rc, name);
    while (err == SK_ERR_OK && (rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        self->out->checked++;
        err = each(self, key, value);
    }
    mdb_cursor_close(cursor);
    if (err == SK_ERR_OK && rc != MDB_NOTFOUND)
        err = say(self, rc, name);
    return err;
}

static bool has(struct checking *self, enum table table, const void *key_bytes, size_t size,
                const void *wanted, size_t wanted_size)
{
    MDB_val key = sk_val(key_bytes, size), value;
    return mdb_get(self->txn, self->store->tables[table], &key, &value) == 0 &&
           sk_span_equals(sk_span_of(value.mv_data, value.mv_size), sk_span_of(wanted, wanted_size));
}

static uint64_t entries_of(struct checking *self, enum table table)
{
    MDB_stat info;
    return mdb_stat(self->txn, self->store->tables[table], &info) == 0 ? info.ms_entries : UINT64_MAX;
}

static bool is_indexed(const struct checking *self, uint16_t id)
{
    const struct field_state *state = sk_states_find(&self->states, id);
    return state != NULL && state->is_ready && !state->is_dropping;
}

/* ---- pairs that the records give ---- */

static enum sk_err count_key(void *impl, const uint8_t *key, uint16_t size, struct sk_diag *d)
{
    struct checking *self = impl;
    if (self->hash_count == self->hash_capacity) {
        size_t capacity = self->hash_capacity == 0 ? 256 : self->hash_capacity * 2;
        uint64_t *hashes = realloc(self->hashes, capacity * sizeof *hashes);
        if (hashes == NULL)
            return sk_fail(d, SK_ERR_NOMEM, "no memory to verify");
        self->hashes = hashes;
        self->hash_capacity = capacity;
    }
    self->hashes[self->hash_count++] = XXH3_64bits(key, size);
    return SK_ERR_OK;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static enum sk_err count_pairs(struct checking *self, struct sk_span payload)
{
    const struct sk_schema *schema = &self->store->schema;
    self->hash_count = 0;
    enum sk_err err = sk_index_own_keys(count_key, self, self->d);
    for (uint32_t i = 0; i < schema->field_count && err == SK_ERR_OK; i++)
        if (is_indexed(self, schema->fields[i].id))
            err = sk_index_field_keys(&schema->fields[i], payload, count_key, self, self->d);
    if (err != SK_ERR_OK)
        return err;
    qsort(self->hashes, self->hash_count, sizeof *self->hashes, by_number);
    for (size_t i = 0; i < self->hash_count; i++)
        if (i == 0 || self->hashes[i] != self->hashes[i - 1])
            self->pairs_wanted++;
    return SK_ERR_OK;
}

/* ---- tables ---- */

static enum sk_err check_vectors(struct checking *self, uint32_t row, const struct record_view *view)
{
    struct sk_store *store = self->store;
    for (unsigned f = 0; f < store->schema.vector_count; f++) {
        struct stored_version version;
        size_t bytes = store->schema.vectors[f].dim * sizeof(float);
        uint64_t number = sk_block_key(f, row / store->block_rows[f]);
        MDB_val key = sk_val(&number, sizeof number), value;
        int rc = mdb_get(self->txn, store->tables[T_VECTORS], &key, &value);
        if (rc != 0 && rc != MDB_NOTFOUND)
            return say(self, rc, "vectors");
        if (rc == MDB_NOTFOUND || value.mv_size != bytes * store->block_rows[f])
            return corrupt(self, "vectors", row, "the vector is missing");
        memcpy(&version, view->registers + (f + 1) * sizeof version, sizeof version);
        const uint8_t *at = (const uint8_t *)value.mv_data + (row % store->block_rows[f]) * bytes;
        if (XXH3_64bits(at, bytes) != version.hash)
            return corrupt(self, "vectors", row, "the vector does not have its hash");
    }
    return SK_ERR_OK;
}

static enum sk_err check_record(struct checking *self, MDB_val key, MDB_val value)
{
    uint32_t row;
    struct record_view view;
    struct stored_version version;
    uint8_t named[LOG_ROW_BYTES];
    const struct sk_store *store = self->store;
    memcpy(&row, key.mv_data, sizeof row);
    sk_log_row(named, row);
    enum sk_err err = sk_record_parse(&view, value, row, self->d);
    if (err != SK_ERR_OK)
        return err;
    self->out->records++;
    if (row >= store->counters.row_end)
        return corrupt(self, "records", row, "the row was never given out");
    if (view.head.register_count != store->schema.vector_count + 1)
        return corrupt(self, "records", row, "it has not one version a vector field");
    memcpy(&version, view.registers, sizeof version);
    uint64_t hash = view.payload.size == 0 ? 0 : XXH3_64bits(view.payload.bytes, view.payload.size);
    if (hash != version.hash)
        return corrupt(self, "records", row, "the payload does not have its hash");
    if (!has(self, T_IDS, view.id.bytes, view.id.size, &row, sizeof row))
        return corrupt(self, "ids", row, "the record's id does not lead to it");
    if (view.head.lseq > store->counters.lseq || view.head.birth_lseq > view.head.lseq)
        return corrupt(self, "records", row, "its change is in the future");
    if (!has(self, T_LOG, &view.head.lseq, 8, named, sizeof named))
        return corrupt(self, "log", row, "the record's last change is not in it");
    if (!has(self, T_BIRTHS, &view.head.birth_lseq, 8, &row, sizeof row))
        return corrupt(self, "births", row, "the record's birth is not in it");
    if (view.head.expiry_us != 0) {
        uint8_t bytes[12];
        sk_put_be(bytes, view.head.expiry_us, 8);
        sk_put_be(bytes + 8, row, 4);
        if (!has(self, T_EXPIRY, bytes, sizeof bytes, "", 0))
            return corrupt(self, "expiry", row, "the record's expiry is not in it");
        self->expiring++;
    }
    err = check_vectors(self, row, &view);
    return err == SK_ERR_OK ? count_pairs(self, view.payload) : err;
}

static enum sk_err check_tombstone(struct checking *self, MDB_val key, MDB_val value)
{
    struct stored_tombstone tomb;
    uint8_t named[1 + SK_ID_BYTES_MAX] = {'T'};
    if (value.mv_size != sizeof tomb || key.mv_size > SK_ID_BYTES_MAX)
        return corrupt(self, "tombs", 0, "not a tombstone");
    memcpy(&tomb, value.mv_data, sizeof tomb);
    memcpy(named + 1, key.mv_data, key.mv_size);
    if (!has(self, T_LOG, &tomb.lseq, 8, named, 1 + key.mv_size))
        return corrupt(self, "log", tomb.lseq, "a delete is not in it");
    MDB_val record;
    if (mdb_get(self->txn, self->store->tables[T_IDS], &key, &record) == 0)
        return corrupt(self, "tombs", tomb.lseq, "a deleted id leads to a record");
    return SK_ERR_OK;
}

/* A row in limbo or free holds no record. */
static enum sk_err check_unused(struct checking *self, MDB_val key, MDB_val value)
{
    uint32_t row;
    MDB_val record;
    (void)value;
    memcpy(&row, key.mv_data, sizeof row);
    if (row >= self->store->counters.row_end ||
        mdb_get(self->txn, self->store->tables[T_RECORDS], &key, &record) == 0)
        return corrupt(self, "free", row, "the row is in use");
    return SK_ERR_OK;
}

/* With every record found in ids, log and births, equal numbers of entries mean equal sets. */
static enum sk_err check_counts(struct checking *self)
{
    uint64_t records = self->out->records, tombs = entries_of(self, T_TOMBS);
    uint64_t unused = entries_of(self, T_FREE) + entries_of(self, T_LIMBO);
    if (entries_of(self, T_IDS) != records)
        return corrupt(self, "ids", records, "an id leads to no record");
    if (self->store->counters.record_count != records)
        return corrupt(self, "meta", records, "the count of records is wrong");
    if (entries_of(self, T_LOG) != records + tombs)
        return corrupt(self, "log", records, "a change of no record is in it");
    if (entries_of(self, T_BIRTHS) != records)
        return corrupt(self, "births", records, "a birth of no record is in it");
    if (entries_of(self, T_EXPIRY) != self->expiring)
        return corrupt(self, "expiry", records, "an expiry of no record is in it");
    if (records + unused != self->store->counters.row_end)
        return corrupt(self, "free", records, "rows are lost or used twice");
    return SK_ERR_OK;
}

static enum sk_err check_tables(struct checking *self)
{
    enum sk_err err = for_each(self, T_RECORDS, "records", check_record);
    if (err == SK_ERR_OK)
        err = for_each(self, T_TOMBS, "tombs", check_tombstone);
    if (err == SK_ERR_OK)
        err = for_each(self, T_FREE, "free", check_unused);
    if (err == SK_ERR_OK)
        err = for_each(self, T_LIMBO, "limbo", check_unused);
    return err == SK_ERR_OK ? check_counts(self) : err;
}

/* ---- payload indexes ---- */

struct looking {
    const uint8_t *key;
    size_t size;
    bool is_found;
};

static enum sk_err look(void *impl, const uint8_t *key, uint16_t size, struct sk_diag *d)
{
    struct looking *self = impl;
    (void)d;
    self->is_found = self->is_found || (size == self->size && memcmp(key, self->key, size) == 0);
    return SK_ERR_OK;
}

static const struct sk_payload_field *field_of(const struct sk_store *store, uint16_t id)
{
    for (uint32_t i = 0; i < store->schema.field_count; i++)
        if (store->schema.fields[i].id == id)
            return &store->schema.fields[i];
    return NULL;
}

/* Does the record of a row have this key (without its chunk)? */
static enum sk_err follows(struct checking *self, uint32_t row, struct looking *looking)
{
    struct record_view view;
    enum sk_err err = sk_record_get(self->store, self->txn, row, &view, self->d);
    if (err == SK_ERR_NOT_FOUND)
        return SK_ERR_OK;
    if (err != SK_ERR_OK)
        return err;
    uint16_t id = (uint16_t)sk_get_be(looking->key, 2);
    if (looking->key[2] == KEY_ALL)
        return sk_index_own_keys(look, looking, self->d);
    const struct sk_payload_field *field = field_of(self->store, id);
    return field == NULL ? SK_ERR_OK
                         : sk_index_field_keys(field, view.payload, look, looking, self->d);
}

/* Keeps of one stored bitmap what follows from the records; *is_changed when that is not all. */
static enum sk_err keep_true_rows(struct checking *self, MDB_val key, const roaring_bitmap_t *rows,
                                  roaring_bitmap_t *kept)
{
    roaring_uint32_iterator_t each;
    uint32_t chunk = (uint32_t)sk_get_be((const uint8_t *)key.mv_data + key.mv_size - 2, 2);
    roaring_init_iterator(rows, &each);
    for (; each.has_value; roaring_advance_uint32_iterator(&each)) {
        struct looking looking = {key.mv_data, key.mv_size - 2, false};
        enum sk_err err = each.current_value >> 16 == chunk
                              ? follows(self, each.current_value, &looking)
                              : SK_ERR_OK;
        if (err != SK_ERR_OK)
            return err;
        if (looking.is_found)
            roaring_bitmap_add(kept, each.current_value);
    }
    return SK_ERR_OK;
}

/* In the open write transaction. */
static enum sk_err check_entry(struct checking *self, MDB_val key, MDB_val value)
{
    uint8_t bytes[512];
    uint16_t id = key.mv_size < 5 ? 0 : (uint16_t)sk_get_be(key.mv_data, 2);
    const struct field_state *state = sk_states_find(&self->states, id);
    if (key.mv_size > sizeof bytes || (state != NULL && !is_indexed(self, id)))
        return SK_ERR_OK; /* being built or dropped: not looked at by filters */
    roaring_bitmap_t *rows = sk_index_bitmap(value), *kept = roaring_bitmap_create();
    bool is_known = key.mv_size >= 5 && (id == 0) == (((const uint8_t *)key.mv_data)[2] == KEY_ALL);
    enum sk_err err = kept == NULL ? sk_fail(self->d, SK_ERR_NOMEM, "no memory to verify") : SK_ERR_OK;
    if (err == SK_ERR_OK && rows != NULL && is_known)
        err = keep_true_rows(self, key, rows, kept);
    if (err == SK_ERR_OK) {
        uint64_t before = rows == NULL ? 0 : roaring_bitmap_get_cardinality(rows);
        uint64_t after = roaring_bitmap_get_cardinality(kept);
        self->pairs_found += after;
        if (rows == NULL || before != after) {
            self->out->mended += rows == NULL ? 1 : before - after;
            memcpy(bytes, key.mv_data, key.mv_size); /* the put may move what key points to */
            int rc = sk_index_bitmap_put(self->store, sk_val(bytes, key.mv_size), kept);
            err = rc == 0 ? SK_ERR_OK : say(self, rc, "pindex");
        }
    }
    sk_bitmap_free(rows);
    sk_bitmap_free(kept);
    return err;
}

/* Puts in again what every record gives; what is there stays. */
static enum sk_err mend(struct checking *self, uint64_t wall_us)
{
    struct sk_store *store = self->store;
    uint32_t from = 0;
    for (bool is_end = false; !is_end;) {
        MDB_cursor *cursor = NULL;
        MDB_val value, key = sk_val(&from, sizeof from);
        enum sk_err err = sk_store_begin(store, wall_us, true, self->d);
        if (err != SK_ERR_OK)
            return err;
        int rc = mdb_cursor_open(store->txn, store->tables[T_RECORDS], &cursor);
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
        for (unsigned n = 0; rc == 0 && n < BATCH && err == SK_ERR_OK; n++) {
            struct record_view view;
            uint32_t row;
            memcpy(&row, key.mv_data, sizeof row);
            err = sk_record_parse(&view, value, row, self->d);
            if (err == SK_ERR_OK)
                err = sk_index_row(store, row, view.payload, true, self->d);
            from = row + 1;
            rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
        }
        if (cursor != NULL)
            mdb_cursor_close(cursor);
        is_end = rc == MDB_NOTFOUND;
        if (err == SK_ERR_OK && rc != 0 && rc != MDB_NOTFOUND)
            err = say(self, rc, "records");
        if (err == SK_ERR_OK)
            err = sk_store_commit(store, self->d);
        sk_store_abort(store);
        if (err != SK_ERR_OK)
            return err;
    }
    return SK_ERR_OK;
}

static enum sk_err verify(struct checking *self, uint64_t wall_us)
{
    struct sk_store *store = self->store;
    enum sk_err err = sk_store_begin(store, wall_us, true, self->d);
    if (err != SK_ERR_OK)
        return err;
    self->txn = store->txn;
    sk_states_load(store, self->txn, &self->states);
    err = check_tables(self);
    if (err == SK_ERR_OK)
        err = for_each(self, T_PINDEX, "pindex", check_entry);
    if (err == SK_ERR_OK && self->out->mended > 0)
        err = sk_store_commit(store, self->d);
    sk_store_abort(store);
    if (err != SK_ERR_OK || self->pairs_found >= self->pairs_wanted)
        return err;
    self->out->mended += self->pairs_wanted - self->pairs_found;
    return mend(self, wall_us);
}

enum sk_err sk_store_verify(struct sk_store *self, uint64_t wall_us, struct sk_store_check *out,
                            struct sk_diag *d)
{
    memset(out, 0, sizeof *out);
    struct checking *checking = calloc(1, sizeof *checking);
    if (checking == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory to verify");
    checking->store = self;
    checking->out = out;
    checking->d = d;
    enum sk_err err = verify(checking, wall_us);
    free(checking->hashes);
    free(checking);
    if (err != SK_ERR_OK)
        memset(out, 0, sizeof *out);
    return err == SK_ERR_OK ? err : sk_wrap(d, err, "verify");
}
