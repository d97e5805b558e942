/* What rides in the commits of a shard beside its records: the window of applied writes, deltas and
 * watermarks of the indexes. */
#include "actors/shard-worker/store/internal.h"

/* lseq: when, so that the incarnation that has not written for longest goes first. */
struct stored_applied {
    uint64_t outcome, lseq;
};

/* ---- the window of applied writes ---- */

static void applied_key(uint8_t key[16], uint64_t incarnation, uint64_t sequence)
{
    sk_put_be(key, incarnation, 8);
    sk_put_be(key + 8, sequence, 8);
}

/* Puts the cursor on the newest entry of an incarnation; MDB_NOTFOUND when there is none. */
static int last_of(MDB_cursor *cursor, uint64_t incarnation, MDB_val *key, MDB_val *value)
{
    uint8_t bytes[16];
    int rc = MDB_NOTFOUND;
    if (incarnation < UINT64_MAX) {
        applied_key(bytes, incarnation + 1, 0);
        *key = sk_val(bytes, sizeof bytes);
        rc = mdb_cursor_get(cursor, key, value, MDB_SET_RANGE);
    }
    rc = mdb_cursor_get(cursor, key, value, rc == 0 ? MDB_PREV : MDB_LAST);
    if (rc == 0 && (key->mv_size != 16 || sk_get_be(key->mv_data, 8) != incarnation))
        rc = MDB_NOTFOUND;
    return rc;
}

enum sk_err sk_store_applied_get(struct sk_store *self, uint64_t incarnation, uint64_t sequence,
                                 bool *is_applied, uint64_t *outcome, struct sk_diag *d)
{
    uint8_t bytes[16];
    struct stored_applied applied;
    applied_key(bytes, incarnation, sequence);
    MDB_val key = sk_val(bytes, sizeof bytes), value;
    *is_applied = false;
    *outcome = 0;
    int rc = mdb_get(self->txn, self->tables[T_APPLIED], &key, &value);
    if (rc == 0 && value.mv_size == sizeof applied) {
        memcpy(&applied, value.mv_data, sizeof applied);
        *is_applied = true;
        *outcome = applied.outcome;
        return SK_ERR_OK;
    }
    if (rc != MDB_NOTFOUND && rc != 0)
        return sk_store_fail(self, rc, "applied", d);
    /* not in the window: new, unless the window has passed it */
    MDB_cursor *cursor = NULL;
    rc = mdb_cursor_open(self->txn, self->tables[T_APPLIED], &cursor);
    if (rc != 0)
        return sk_store_fail(self, rc, "applied", d);
    enum sk_err err = SK_ERR_OK;
    if (last_of(cursor, incarnation, &key, &value) == 0 &&
        sequence + APPLIED_WINDOW <= sk_get_be((const uint8_t *)key.mv_data + 8, 8))
        err = sk_fail(d, SK_ERR_UNAVAILABLE,
                      "a write that is older than the last %d; its outcome is unknown",
                      APPLIED_WINDOW);
    mdb_cursor_close(cursor);
    return err;
}

/* Deletes the entries of an incarnation with sequences up to `last`. */
static int drop_until(MDB_cursor *cursor, uint64_t incarnation, uint64_t last)
{
    MDB_val value;
    uint8_t bytes[16];
    applied_key(bytes, incarnation, 0);
    MDB_val key = sk_val(bytes, sizeof bytes);
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && key.mv_size == 16 && sk_get_be(key.mv_data, 8) == incarnation &&
           sk_get_be((const uint8_t *)key.mv_data + 8, 8) <= last) {
        rc = mdb_cursor_del(cursor, 0);
        if (rc == 0) {
            key = sk_val(bytes, sizeof bytes);
            rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
        }
    }
    return rc == MDB_NOTFOUND ? 0 : rc;
}

/* What the window has passed goes, and of more than INCARNATIONS_MAX the one silent for longest. */
static int applied_prune(struct sk_store *self, uint64_t incarnation, uint64_t sequence)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    unsigned incarnations = 0;
    uint64_t silent = 0, silent_lseq = UINT64_MAX;
    int rc = mdb_cursor_open(self->txn, self->tables[T_APPLIED], &cursor);
    if (rc != 0)
        return rc;
    if (sequence >= APPLIED_WINDOW)
        rc = drop_until(cursor, incarnation, sequence - APPLIED_WINDOW);
    int at = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    while (rc == 0 && at == 0 && key.mv_size == 16) {
        struct stored_applied applied = {0};
        uint64_t one = sk_get_be(key.mv_data, 8);
        incarnations++;
        if (last_of(cursor, one, &key, &value) == 0 && value.mv_size == sizeof applied)
            memcpy(&applied, value.mv_data, sizeof applied);
        if (one != incarnation && applied.lseq <= silent_lseq) {
            silent = one;
            silent_lseq = applied.lseq;
        }
        at = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    if (rc == 0 && incarnations > INCARNATIONS_MAX)
        rc = drop_until(cursor, silent, UINT64_MAX);
    mdb_cursor_close(cursor);
    return rc;
}

enum sk_err sk_store_applied_put(struct sk_store *self, uint64_t incarnation, uint64_t sequence,
                                 uint64_t outcome, struct sk_diag *d)
{
    uint8_t bytes[16];
    struct stored_applied applied = {outcome, self->counters.lseq};
    applied_key(bytes, incarnation, sequence);
    MDB_val key = sk_val(bytes, sizeof bytes), value = sk_val(&applied, sizeof applied);
    int rc = mdb_put(self->txn, self->tables[T_APPLIED], &key, &value, 0);
    if (rc == 0)
        rc = applied_prune(self, incarnation, sequence);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "applied", d);
}

/* ---- deltas of the indexes ---- */

static void graph_key(uint8_t key[9], unsigned field, uint64_t number)
{
    key[0] = (uint8_t)field;
    sk_put_be(key + 1, number, 8);
}

enum sk_err sk_store_delta_put(struct sk_store *self, unsigned field, uint64_t number,
                               struct sk_span delta, struct sk_diag *d)
{
    uint8_t bytes[9];
    graph_key(bytes, field, number);
    MDB_val key = sk_val(bytes, sizeof bytes), value = sk_val(delta.bytes, delta.size);
    int rc = mdb_put(self->txn, self->tables[T_GRAPH], &key, &value, 0);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "graph", d);
}

enum sk_err sk_store_delta_drop(struct sk_store *self, unsigned field, uint64_t below_number,
                                struct sk_diag *d)
{
    uint8_t bytes[9];
    MDB_cursor *cursor = NULL;
    MDB_val value;
    graph_key(bytes, field, 0);
    MDB_val key = sk_val(bytes, sizeof bytes);
    int rc = mdb_cursor_open(self->txn, self->tables[T_GRAPH], &cursor);
    if (rc != 0)
        return sk_store_fail(self, rc, "graph", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && key.mv_size == 9 && *(const uint8_t *)key.mv_data == field &&
           sk_get_be((const uint8_t *)key.mv_data + 1, 8) < below_number) {
        rc = mdb_cursor_del(cursor, 0);
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == 0 || rc == MDB_NOTFOUND ? SK_ERR_OK : sk_store_fail(self, rc, "graph", d);
}

static void watermark_name(char name[24], unsigned field)
{
    (void)snprintf(name, 24, "watermark.%u", field);
}

enum sk_err sk_store_watermark_put(struct sk_store *self, unsigned field, uint64_t lseq,
                                   struct sk_diag *d)
{
    char name[24];
    watermark_name(name, field);
    return sk_store_meta_put(self, name, &lseq, sizeof lseq, d);
}

enum sk_err sk_store_watermark(struct sk_store_reader *self, unsigned field, uint64_t *lseq,
                               struct sk_diag *d)
{
    char name[24];
    (void)d;
    watermark_name(name, field);
    *lseq = 0;
    (void)sk_store_meta_get(self->store, self->txn, name, lseq, sizeof *lseq);
    return SK_ERR_OK;
}

enum sk_err sk_store_delta_get(struct sk_store_reader *self, unsigned field, uint64_t from,
                               uint64_t *number, struct sk_span *delta, struct sk_diag *d)
{
    uint8_t bytes[9];
    MDB_cursor *cursor = NULL;
    MDB_val value;
    graph_key(bytes, field, from);
    MDB_val key = sk_val(bytes, sizeof bytes);
    *delta = (struct sk_span){0};
    *number = 0;
    int rc = mdb_cursor_open(self->txn, self->store->tables[T_GRAPH], &cursor);
    if (rc != 0)
        return sk_store_fail(NULL, rc, "graph", d);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    mdb_cursor_close(cursor);
    if (rc == MDB_NOTFOUND || (rc == 0 && (key.mv_size != 9 || *(const uint8_t *)key.mv_data != field)))
        return SK_ERR_NOT_FOUND;
    if (rc != 0)
        return sk_store_fail(NULL, rc, "graph", d);
    *number = sk_get_be((const uint8_t *)key.mv_data + 1, 8);
    *delta = sk_span_of(value.mv_data, value.mv_size);
    return SK_ERR_OK;
}
