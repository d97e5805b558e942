/* Payload indexes: roaring bitmaps of rows by field and value, in chunks of 65,536 rows so that a write
 * rewrites at most 8 KiB a key. Changes of a transaction are gathered and written at its commit. */
#include "actors/shard-worker/store/internal.h"

#include <errno.h>
#include <xxhash.h>

enum { KEYWORD_PLAIN_BYTES = 400 };

/* ---- keys ---- */

uint16_t sk_index_key(uint8_t *key, uint16_t field, uint8_t kind_of_key, const void *value, size_t size)
{
    sk_put_be(key, field, 2);
    key[2] = kind_of_key;
    if (size > 0)
        memcpy(key + 3, value, size);
    return (uint16_t)(3 + size);
}

void sk_put_ordered_i64(uint8_t out[8], int64_t value)
{
    sk_put_be(out, (uint64_t)value ^ (UINT64_C(1) << 63), 8);
}

void sk_put_ordered_f64(uint8_t out[8], double value)
{
    uint64_t bits;
    value = value == 0 ? 0 : value; /* one zero */
    memcpy(&bits, &value, sizeof bits);
    sk_put_be(out, (bits >> 63) != 0 ? ~bits : bits | UINT64_C(1) << 63, 8);
}

static uint64_t spread(uint32_t x)
{
    uint64_t v = x;
    v = (v | v << 16) & UINT64_C(0x0000FFFF0000FFFF);
    v = (v | v << 8) & UINT64_C(0x00FF00FF00FF00FF);
    v = (v | v << 4) & UINT64_C(0x0F0F0F0F0F0F0F0F);
    v = (v | v << 2) & UINT64_C(0x3333333333333333);
    return (v | v << 1) & UINT64_C(0x5555555555555555);
}

/* Interleaved bits of latitude and longitude, longitude first (the order of a geohash). */
uint64_t sk_morton(double lat, double lon)
{
    double y = (lat + 90) / 180 * 4294967296.0, x = (lon + 180) / 360 * 4294967296.0;
    uint32_t lat_bits = y >= 4294967295.0 ? UINT32_MAX : (uint32_t)y;
    uint32_t lon_bits = x >= 4294967295.0 ? UINT32_MAX : (uint32_t)x;
    return spread(lon_bits) << 1 | spread(lat_bits);
}

size_t sk_index_value(const struct sk_typed *typed, uint8_t out[460])
{
    switch (typed->kind) {
    case SK_PAYLOAD_KEYWORD:
        /* length first, so that no value is the beginning of another's keys; long ones by hash */
        if (typed->text.size <= KEYWORD_PLAIN_BYTES) {
            sk_put_be(out, typed->text.size, 2);
            memcpy(out + 2, typed->text.bytes, typed->text.size);
            return 2 + typed->text.size;
        } else {
            XXH128_hash_t hash = XXH3_128bits(typed->text.bytes, typed->text.size);
            sk_put_be(out, UINT16_MAX, 2);
            sk_put_be(out + 2, hash.high64, 8);
            sk_put_be(out + 10, hash.low64, 8);
            return 18;
        }
    case SK_PAYLOAD_INTEGER:
    case SK_PAYLOAD_DATETIME:
        sk_put_ordered_i64(out, typed->i64);
        return 8;
    case SK_PAYLOAD_FLOAT:
        sk_put_ordered_f64(out, typed->f64);
        return 8;
    case SK_PAYLOAD_BOOL:
        out[0] = typed->boolean;
        return 1;
    case SK_PAYLOAD_GEO:
        sk_put_be(out, sk_morton(typed->lat, typed->lon), 8);
        return 8;
    }
    return 0;
}

/* ---- gathered changes ---- */

static struct index_change **find_slot(struct index_changes *self, const uint8_t *key, uint16_t size)
{
    size_t mask = self->capacity - 1;
    size_t at = (size_t)XXH3_64bits(key, size) & mask;
    while (self->slots[at] != NULL && (self->slots[at]->key_size != size ||
                                       memcmp(self->slots[at]->key, key, size) != 0))
        at = (at + 1) & mask;
    return &self->slots[at];
}

static bool make_room(struct index_changes *self)
{
    if (self->count * 2 < self->capacity)
        return true;
    struct index_changes larger = {.capacity = self->capacity == 0 ? 256 : self->capacity * 2,
                                   .count = self->count};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (larger.slots == NULL)
        return false;
    for (size_t i = 0; i < self->capacity; i++)
        if (self->slots[i] != NULL)
            *find_slot(&larger, self->slots[i]->key, self->slots[i]->key_size) = self->slots[i];
    free(self->slots);
    *self = larger;
    return true;
}

static enum sk_err note_change(struct sk_store *self, const uint8_t *prefix, uint16_t prefix_size,
                               uint32_t row, bool is_added, struct sk_diag *d)
{
    uint8_t key[512];
    memcpy(key, prefix, prefix_size);
    sk_put_be(key + prefix_size, row >> 16, 2);
    uint16_t size = (uint16_t)(prefix_size + 2);
    if (!make_room(&self->changes))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for payload indexes");
    struct index_change **slot = find_slot(&self->changes, key, size);
    if (*slot == NULL) {
        struct index_change *change = calloc(1, sizeof *change);
        if (change != NULL) {
            change->added = roaring_bitmap_create();
            change->removed = roaring_bitmap_create();
        }
        if (change == NULL || change->added == NULL || change->removed == NULL) {
            if (change != NULL) {
                sk_bitmap_free(change->added);
                sk_bitmap_free(change->removed);
            }
            free(change);
            return sk_fail(d, SK_ERR_NOMEM, "no memory for payload indexes");
        }
        memcpy(change->key, key, size);
        change->key_size = size;
        *slot = change;
        self->changes.count++;
    }
    roaring_bitmap_add(is_added ? (*slot)->added : (*slot)->removed, row);
    roaring_bitmap_remove(is_added ? (*slot)->removed : (*slot)->added, row);
    return SK_ERR_OK;
}

void sk_index_forget(struct sk_store *self)
{
    for (size_t i = 0; i < self->changes.capacity; i++) {
        struct index_change *change = self->changes.slots[i];
        if (change == NULL)
            continue;
        roaring_bitmap_free(change->added);
        roaring_bitmap_free(change->removed);
        free(change);
        self->changes.slots[i] = NULL;
    }
    self->changes.count = 0;
}

/* libroaring 0.2.66 checks lengths but not contents, so only bytes that it wrote itself get to it. */
roaring_bitmap_t *sk_index_bitmap(MDB_val value)
{
    uint64_t hash;
    if (value.mv_size < sizeof hash)
        return NULL;
    memcpy(&hash, value.mv_data, sizeof hash);
    const char *bytes = (const char *)value.mv_data + sizeof hash;
    size_t size = value.mv_size - sizeof hash;
    if (XXH3_64bits(bytes, size) != hash)
        return NULL;
    return roaring_bitmap_portable_deserialize_safe(bytes, size);
}

/* Writes or, where rows is empty, deletes the bitmap of one key. */
int sk_index_bitmap_put(struct sk_store *self, MDB_val key, roaring_bitmap_t *rows)
{
    MDB_val value;
    if (roaring_bitmap_is_empty(rows)) {
        int rc = mdb_del(self->txn, self->tables[T_PINDEX], &key, NULL);
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    (void)roaring_bitmap_run_optimize(rows);
    size_t size = roaring_bitmap_portable_size_in_bytes(rows);
    value = (MDB_val){.mv_size = size + sizeof(uint64_t), .mv_data = NULL};
    int rc = mdb_put(self->txn, self->tables[T_PINDEX], &key, &value, MDB_RESERVE);
    if (rc != 0)
        return rc;
    char *bytes = (char *)value.mv_data + sizeof(uint64_t);
    (void)roaring_bitmap_portable_serialize(rows, bytes);
    uint64_t hash = XXH3_64bits(bytes, size);
    memcpy(value.mv_data, &hash, sizeof hash);
    return 0;
}

static enum sk_err apply_change(struct sk_store *self, struct index_change *change,
                                struct sk_diag *d)
{
    MDB_val key = sk_val(change->key, change->key_size), value;
    int rc = mdb_get(self->txn, self->tables[T_PINDEX], &key, &value);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return sk_store_fail(self, rc, "pindex", d);
    roaring_bitmap_t *rows = rc == 0 ? sk_index_bitmap(value) : roaring_bitmap_create();
    if (rows == NULL)
        return sk_store_corrupt(d, "pindex", 0, "not a roaring bitmap; verify mends it");
    roaring_bitmap_andnot_inplace(rows, change->removed);
    roaring_bitmap_or_inplace(rows, change->added);
    rc = sk_index_bitmap_put(self, key, rows);
    roaring_bitmap_free(rows);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "pindex", d);
}

static int by_key(const void *a, const void *b)
{
    const struct index_change *x = *(struct index_change *const *)a;
    const struct index_change *y = *(struct index_change *const *)b;
    uint16_t shorter = x->key_size < y->key_size ? x->key_size : y->key_size;
    int order = memcmp(x->key, y->key, shorter);
    return order != 0 ? order : (int)x->key_size - (int)y->key_size;
}

enum sk_err sk_index_flush(struct sk_store *self, struct sk_diag *d)
{
    size_t count = 0;
    enum sk_err err = SK_ERR_OK;
    if (self->changes.count == 0)
        return SK_ERR_OK;
    struct index_change **sorted = calloc(self->changes.count, sizeof *sorted);
    if (sorted == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for payload indexes");
    for (size_t i = 0; i < self->changes.capacity; i++)
        if (self->changes.slots[i] != NULL)
            sorted[count++] = self->changes.slots[i];
    qsort(sorted, count, sizeof *sorted, by_key); /* one pass over the tree */
    for (size_t i = 0; i < count && err == SK_ERR_OK; i++)
        err = apply_change(self, sorted[i], d);
    free(sorted);
    sk_index_forget(self);
    return err;
}

/* ---- rows ---- */

enum sk_err sk_index_field_keys(const struct sk_payload_field *field, struct sk_span payload,
                                sk_index_each *each, void *impl, struct sk_diag *d)
{
    uint8_t key[512], value[460];
    struct sk_span found, element;
    struct sk_elements elements;
    if (!sk_payload_find(payload, field->name, &found))
        return SK_ERR_OK;
    uint16_t size = sk_index_key(key, field->id, KEY_EXISTS, NULL, 0);
    enum sk_err err = each(impl, key, size, d);
    sk_elements_begin(&elements, found);
    while (err == SK_ERR_OK && sk_elements_next(&elements, &element)) {
        struct sk_typed typed;
        if (!sk_typed_from(field->kind, element, &typed))
            continue; /* a record older than the field's declaration may have another type */
        size = sk_index_key(key, field->id, KEY_VALUE, value, sk_index_value(&typed, value));
        err = each(impl, key, size, d);
    }
    return err;
}

enum sk_err sk_index_own_keys(sk_index_each *each, void *impl, struct sk_diag *d)
{
    uint8_t key[8];
    return each(impl, key, sk_index_key(key, 0, KEY_ALL, NULL, 0), d);
}

struct noting {
    struct sk_store *store;
    uint32_t row;
    bool is_added;
};

static enum sk_err note_key(void *impl, const uint8_t *key, uint16_t size, struct sk_diag *d)
{
    struct noting *self = impl;
    return note_change(self->store, key, size, self->row, self->is_added, d);
}

enum sk_err sk_index_row_field(struct sk_store *self, const struct sk_payload_field *field,
                               uint32_t row, struct sk_span payload, bool is_added,
                               struct sk_diag *d)
{
    struct noting noting = {self, row, is_added};
    return sk_index_field_keys(field, payload, note_key, &noting, d);
}

enum sk_err sk_index_row(struct sk_store *self, uint32_t row, struct sk_span payload,
                         bool is_added, struct sk_diag *d)
{
    struct noting noting = {self, row, is_added};
    enum sk_err err = sk_index_own_keys(note_key, &noting, d);
    for (uint32_t i = 0; i < self->schema.field_count && err == SK_ERR_OK; i++)
        err = sk_index_field_keys(&self->schema.fields[i], payload, note_key, &noting, d);
    return err;
}

/* ---- reading ---- */

enum sk_err sk_index_or(const struct sk_store *self, MDB_txn *txn, const uint8_t *prefix,
                        uint16_t size, roaring_bitmap_t *out, struct sk_diag *d)
{
    uint8_t bytes[512];
    MDB_cursor *cursor = NULL;
    MDB_val value;
    memcpy(bytes, prefix, size);
    memset(bytes + size, 0, 2);
    MDB_val key = sk_val(bytes, (size_t)size + 2);
    int rc = mdb_cursor_open(txn, self->tables[T_PINDEX], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "pindex", d);
    enum sk_err err = SK_ERR_OK;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && key.mv_size == (size_t)size + 2 && memcmp(key.mv_data, prefix, size) == 0) {
        uint32_t chunk = (uint32_t)sk_get_be((const uint8_t *)key.mv_data + size, 2);
        roaring_bitmap_t *rows = sk_index_bitmap(value);
        if (rows == NULL) {
            err = sk_store_corrupt(d, "pindex", chunk, "not a roaring bitmap; verify mends it");
            break;
        }
        roaring_bitmap_or_inplace(out, rows);
        roaring_bitmap_free(rows);
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return err;
}

enum sk_err sk_index_drop_field(struct sk_store *self, uint16_t field, uint32_t *budget,
                                struct sk_diag *d)
{
    uint8_t prefix[8]; /* kinds below KEY_EXISTS are not the field's */
    MDB_cursor *cursor = NULL;
    MDB_val value;
    MDB_val key = sk_val(prefix, sk_index_key(prefix, field, KEY_EXISTS, NULL, 0));
    int rc = mdb_cursor_open(self->txn, self->tables[T_PINDEX], &cursor);
    if (rc != 0)
        return sk_store_fail(self, rc, "pindex", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && *budget > 0 && key.mv_size >= 3 && memcmp(key.mv_data, prefix, 2) == 0) {
        rc = mdb_cursor_del(cursor, 0);
        (*budget)--;
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == 0 || rc == MDB_NOTFOUND ? SK_ERR_OK : sk_store_fail(self, rc, "pindex", d);
}
