/* Tombstones: what a replica that was away must hear of. One may go once every member has seen it
 * (research: frontier rule). A shard has one member as yet, so they are kept only as long as they do no
 * harm: the newest ones, and none while the disk is full. */
#include "actors/shard-worker/store/internal.h"

enum { KEPT = 65536, LOOKS_A_DELETE = 16 };

static int drop(struct sk_store *self, MDB_val id, uint64_t lseq)
{
    MDB_val key = sk_val(&lseq, sizeof lseq);
    int rc = mdb_del(self->txn, self->tables[T_LOG], &key, NULL);
    return rc == 0 || rc == MDB_NOTFOUND ? mdb_del(self->txn, self->tables[T_TOMBS], &id, NULL) : rc;
}

/* The oldest of the log, a few entries a time from where it was left: so many that the table does not
 * grow beyond KEPT. Entries of records are passed over. */
static int drop_old(struct sk_store *self, size_t kept)
{
    MDB_cursor *cursor = NULL;
    MDB_stat info;
    MDB_val value, key = sk_val(&self->tombs_from, sizeof self->tombs_from);
    int rc = mdb_stat(self->txn, self->tables[T_TOMBS], &info);
    if (rc != 0 || info.ms_entries <= kept)
        return rc;
    rc = mdb_cursor_open(self->txn, self->tables[T_LOG], &cursor);
    if (rc != 0)
        return rc;
    uint64_t from = self->tombs_from;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (unsigned n = 0; rc == 0 && n < LOOKS_A_DELETE; n++) {
        uint8_t id[SK_ID_BYTES_MAX];
        uint64_t lseq;
        memcpy(&lseq, key.mv_data, sizeof lseq);
        from = lseq + 1;
        const uint8_t *named = value.mv_data;
        if (value.mv_size > 1 && value.mv_size <= 1 + sizeof id && named[0] == 'T') {
            const size_t size = value.mv_size - 1;
            memcpy(id, named + 1, size);
            rc = drop(self, sk_val(id, size), lseq);
            key = sk_val(&from, sizeof from);
            if (rc == 0)
                rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
        } else {
            rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
        }
    }
    mdb_cursor_close(cursor);
    self->tombs_from = from;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

enum sk_err sk_tombs_put(struct sk_store *self, const struct sk_id *id,
                         const struct stored_version *version, struct sk_diag *d)
{
    struct stored_tombstone tomb = {version->hlc, version->actor, version->seq,
                                    ++self->counters.lseq};
    bool is_short = self->is_disk_full || atomic_load(&self->is_reserve_used);
    int rc = 0;
    if (!is_short) {
        uint8_t named[1 + SK_ID_BYTES_MAX] = {'T'};
        memcpy(named + 1, id->bytes, id->size);
        MDB_val key = sk_val(id->bytes, id->size), value = sk_val(&tomb, sizeof tomb);
        rc = mdb_put(self->txn, self->tables[T_TOMBS], &key, &value, 0);
        key = sk_val(&tomb.lseq, sizeof tomb.lseq);
        value = sk_val(named, 1 + (size_t)id->size);
        if (rc == 0)
            rc = mdb_put(self->txn, self->tables[T_LOG], &key, &value, MDB_APPEND);
    }
    if (rc == 0)
        rc = drop_old(self, is_short ? 0 : KEPT);
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "tombs", d);
}

enum sk_err sk_tombs_forget(struct sk_store *self, const struct sk_id *id, struct sk_diag *d)
{
    MDB_val key = sk_val(id->bytes, id->size), value;
    struct stored_tombstone tomb;
    int rc = mdb_get(self->txn, self->tables[T_TOMBS], &key, &value);
    if (rc == MDB_NOTFOUND)
        return SK_ERR_OK;
    if (rc == 0 && value.mv_size != sizeof tomb)
        return sk_store_corrupt(d, "tombs", 0, "not a tombstone");
    if (rc == 0) {
        memcpy(&tomb, value.mv_data, sizeof tomb);
        rc = drop(self, key, tomb.lseq);
    }
    return rc == 0 ? SK_ERR_OK : sk_store_fail(self, rc, "tombs", d);
}

int sk_tombs_drop_some(struct sk_store *self, unsigned count, bool *is_end)
{
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    int rc = mdb_cursor_open(self->txn, self->tables[T_TOMBS], &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    for (unsigned n = 0; rc == 0 && n < count; n++) {
        struct stored_tombstone tomb;
        if (value.mv_size == sizeof tomb) {
            memcpy(&tomb, value.mv_data, sizeof tomb);
            MDB_val lseq = sk_val(&tomb.lseq, sizeof tomb.lseq);
            rc = mdb_del(self->txn, self->tables[T_LOG], &lseq, NULL);
        }
        if (rc == 0 || rc == MDB_NOTFOUND)
            rc = mdb_cursor_del(cursor, 0);
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
    }
    mdb_cursor_close(cursor);
    *is_end = rc == MDB_NOTFOUND;
    return *is_end ? 0 : rc;
}
