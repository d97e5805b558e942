/* Looking whether an index is right: by its own checker, and against what the store knows. */
#include "actors/shard-worker/internal.h"

enum { BIRTHS_AT_ONCE = 256 };

static bool is_in_pending(const struct field *field, uint32_t row, uint64_t lseq)
{
    for (const struct sk_pending_chunk *c = sk_pending_begin(&field->pending); c != NULL;
         c = sk_pending_next(c))
        for (uint32_t i = sk_pending_from(c); i < c->count; i++)
            if (c->rows[i] == row && c->lseqs[i] == lseq)
                return true;
    return false;
}

/* One index against the store: it has every row up to `linked_lseq`, but for those that are pending, and
 * none that the store does not know. */
static enum sk_err check_index(struct field *field, const struct sk_index *index,
                               uint64_t linked_lseq, uint64_t *checked, struct sk_diag *d)
{
    struct shard *shard = field->shard;
    struct sk_birth births[BIRTHS_AT_ONCE];
    struct sk_index_stats stats;
    uint64_t above = 0, found = 0;
    uint32_t count = 0;
    do {
        enum sk_err rc =
            sk_store_births(shard->writer_reader, above, births, BIRTHS_AT_ONCE, &count, d);
        if (rc != SK_ERR_OK)
            return rc;
        for (uint32_t i = 0; i < count; i++) {
            bool is_there = sk_index_has(index, births[i].row, births[i].lseq);
            found += is_there;
            if (!is_there && births[i].lseq <= linked_lseq &&
                (index != field->index || !is_in_pending(field, births[i].row, births[i].lseq)))
                return sk_fail(d, SK_ERR_INTERNAL,
                               "row %u born at %llu is neither in the index nor pending",
                               births[i].row, (unsigned long long)births[i].lseq);
            above = births[i].lseq;
        }
        *checked += count;
    } while (count != 0);
    for (size_t i = 0; i < shard->dying.count; i++) {
        const struct dead_row *dead = &shard->dying.rows[shard->dying.first + i];
        found += sk_index_has(index, dead->row, dead->lseq);
    }
    sk_index_get_stats(index, &stats);
    return stats.rows == found
               ? SK_ERR_OK
               : sk_fail(d, SK_ERR_INTERNAL, "the index has %llu rows, the store knows of %llu",
                         (unsigned long long)stats.rows, (unsigned long long)found);
}

enum sk_err field_check(struct field *field, uint64_t *checked, struct sk_diag *d)
{
    struct sk_index_check_report report;
    uint64_t heirs = 0;
    if (field->state != FIELD_READY)
        return SK_ERR_OK;
    enum sk_err rc = sk_index_check(field->index, &report, d);
    if (rc == SK_ERR_OK)
        rc = check_index(field, field->index, UINT64_MAX, checked, d);
    if (rc == SK_ERR_OK && field->heir != NULL)
        rc = sk_index_check(field->heir, &report, d);
    if (rc == SK_ERR_OK && field->heir != NULL)
        rc = check_index(field, field->heir, field->heir_lseq, &heirs, d);
    return rc;
}
