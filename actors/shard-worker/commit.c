/* The writer lane's transactions: a batch of requests of one shard in one commit, and the sweep of
 * expired records. Nothing of a transaction is seen or acknowledged unless it is durable: changes to the
 * lists of dead and pending rows are taken back when it fails. */
#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>

enum { EXPIRED_AT_ONCE = 512, FAULTS_MAX = 8, COMMIT_ARENA_BYTES_MAX = 16 * 1024 * 1024 };

/* ---- dead rows ---- */

void dead_rows_free(struct dead_rows *self)
{
    free(self->rows);
    *self = (struct dead_rows){0};
}

enum sk_err dead_rows_push(struct dead_rows *self, struct dead_row row, struct sk_diag *d)
{
    if (self->first + self->count == self->capacity) {
        if (self->first > self->capacity / 2) {
            memmove(self->rows, self->rows + self->first, self->count * sizeof *self->rows);
            self->first = 0;
        } else {
            size_t capacity = self->capacity == 0 ? 256 : self->capacity * 2;
            struct dead_row *rows = realloc(self->rows, capacity * sizeof *rows);
            if (rows == NULL)
                return sk_fail(d, SK_ERR_NOMEM, "no memory for %zu dead rows", capacity);
            self->rows = rows;
            self->capacity = capacity;
        }
    }
    self->rows[self->first + self->count++] = row;
    return SK_ERR_OK;
}

/* ---- one request ---- */

struct commit {
    struct writer *writer;
    struct shard *shard;
    struct sk_pending_chunk *chunks[SK_VECTOR_FIELDS_MAX]; /* of fields that are ready */
    size_t dying_before;
    struct sk_arena arena; /* filters */
    struct request *faulty; /* whose error it was; NULL: everybody's */
    uint64_t rows_written;
};

static enum sk_err bury_old(struct shard *shard, const struct sk_change *change, struct sk_diag *d)
{
    if (!change->has_old)
        return SK_ERR_OK;
    const struct dead_row dead = {
        .row = change->old_row, .lseq = change->old_lseq, .after = UINT64_MAX};
    return dead_rows_push(&shard->dying, dead, d);
}

static enum sk_err add_pending(struct commit *self, const struct sk_row *row,
                               const struct sk_change *change, struct sk_diag *d)
{
    for (unsigned f = 0; f < self->shard->field_count; f++) {
        struct sk_pending_chunk *chunk = self->chunks[f];
        if (chunk == NULL)
            continue;
        float *vector = sk_pending_chunk_take(chunk, change->row, change->lseq);
        if (vector == NULL || !sk_vector_view_copy(&row->vectors[f], vector))
            return sk_fail(d, SK_ERR_INTERNAL, "a row that was checked does not fit any more");
    }
    return SK_ERR_OK;
}

static enum sk_err upsert(struct commit *self, struct request *request, struct sk_diag *d)
{
    struct sk_rows rows;
    struct sk_row row;
    enum sk_err rc = sk_rows_begin(&rows, self->shard->schema, &request->decoded, d);
    if (rc != SK_ERR_OK)
        return rc;
    while (sk_rows_next(&rows, &row, &rc, d)) {
        struct sk_change change;
        rc = sk_store_upsert(self->shard->store, &row, &change, d);
        if (rc == SK_ERR_OK)
            rc = bury_old(self->shard, &change, d);
        if (rc == SK_ERR_OK)
            rc = add_pending(self, &row, &change, d);
        if (rc != SK_ERR_OK)
            return rc;
        request->affected++;
    }
    self->rows_written += request->affected;
    return rc;
}

static enum sk_err change_one(struct commit *self, struct request *request, const struct sk_id *id,
                              struct sk_diag *d)
{
    struct sk_store *store = self->shard->store;
    const struct sk_request *r = &request->decoded;
    enum sk_err rc;
    if (r->op == SK_OP_DELETE) {
        struct sk_change change;
        rc = sk_store_delete(store, id, &change, d);
        if (rc != SK_ERR_OK)
            return rc;
        request->affected += change.was_live;
        return bury_old(self->shard, &change, d);
    }
    bool was_there = false;
    rc = sk_store_set_payload(store, id, r->payload, sk_span_is(r->mode, "replace"), &was_there, d);
    request->affected += was_there;
    return rc;
}

static enum sk_err change_matching(struct commit *self, struct request *request, struct sk_diag *d)
{
    struct sk_filter *filter = NULL;
    struct sk_id *ids = NULL;
    uint32_t count = 0;
    sk_arena_reset(&self->arena);
    enum sk_err rc = sk_filter_parse(&filter, &self->arena, request->decoded.filter, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_write_select(self->shard->store, filter, &ids, &count, d);
    for (uint32_t i = 0; i < count && rc == SK_ERR_OK; i++)
        rc = change_one(self, request, &ids[i], d);
    free(ids);
    return rc;
}

static void settle(struct request *request, enum sk_err code, const struct sk_diag *d)
{
    request->is_settled = true;
    request->code = code;
    request->diag = *d;
}

/* Is the first of this late copy in the same batch, so that it can still fail? */
static bool is_with_its_first(const struct commit *self, const struct request *request)
{
    for (const struct request *r = self->writer->batch.first; r != request; r = r->next)
        if (!r->is_settled && r->header.incarnation == request->header.incarnation &&
            r->header.sequence == request->header.sequence)
            return true;
    return false;
}

static enum sk_err apply(struct commit *self, struct request *request, struct sk_diag *d)
{
    struct sk_store *store = self->shard->store;
    const struct sk_request *r = &request->decoded;
    const struct sk_link_header *stamp = &request->header;
    bool is_applied = false;
    uint64_t outcome = 0;
    request->affected = 0;
    enum sk_err rc = sk_store_applied_get(store, stamp->incarnation, stamp->sequence, &is_applied,
                                          &outcome, d);
    if (sk_mutant("late_copy_applied_twice")) {
        is_applied = false;
        rc = SK_ERR_OK;
    }
    if (rc != SK_ERR_OK)
        return rc;
    if (is_applied) { /* a late copy: its answer is that of the first */
        request->affected = outcome;
        if (!is_with_its_first(self, request)) /* done, whatever becomes of this transaction */
            settle(request, SK_ERR_OK, &(struct sk_diag){0});
        return SK_ERR_OK;
    }
    if (r->op == SK_OP_UPSERT) {
        rc = upsert(self, request, d);
    } else if (sk_request_has(r, SK_FIELD_ids)) {
        struct sk_reader members = sk_reader_of(r->ids.members);
        struct sk_id id;
        while (rc == SK_ERR_OK && sk_ids_next(&members, &id))
            rc = change_one(self, request, &id, d);
    } else {
        rc = change_matching(self, request, d);
    }
    if (rc != SK_ERR_OK)
        return rc;
    return sk_store_applied_put(store, stamp->incarnation, stamp->sequence, request->affected, d);
}

/* ---- one transaction ---- */

static enum sk_err make_chunks(struct commit *self, struct sk_diag *d)
{
    uint32_t rows = 0;
    for (const struct request *r = self->writer->batch.first; r != NULL; r = r->next)
        if (!r->is_settled && r->decoded.op == SK_OP_UPSERT)
            rows += r->rows;
    enum sk_err rc = SK_ERR_OK;
    for (unsigned f = 0; f < self->shard->field_count && rc == SK_ERR_OK && rows != 0; f++)
        if (self->shard->fields[f].state == FIELD_READY)
            rc = sk_pending_chunk_new(&self->chunks[f], self->shard->fields[f].schema.dim, rows, d);
    return rc;
}

static void drop_chunks(struct commit *self)
{
    for (unsigned f = 0; f < SK_VECTOR_FIELDS_MAX; f++) {
        sk_pending_chunk_free(self->chunks[f]);
        self->chunks[f] = NULL;
    }
}

/* Visible to whoever sees the transaction, so before it commits. */
static enum sk_err publish_and_commit(struct commit *self, struct sk_diag *d)
{
    struct shard *shard = self->shard;
    for (unsigned f = 0; f < shard->field_count; f++) {
        if (self->chunks[f] != NULL && self->chunks[f]->count == 0) {
            sk_pending_chunk_free(self->chunks[f]);
            self->chunks[f] = NULL;
        }
        if (self->chunks[f] != NULL)
            sk_pending_publish(&shard->fields[f].pending, self->chunks[f]);
    }
    enum sk_err rc = sk_store_commit(shard->store, d);
    for (unsigned f = 0; f < shard->field_count; f++) {
        if (self->chunks[f] != NULL && rc != SK_ERR_OK)
            sk_pending_withdraw(&shard->fields[f].pending, self->chunks[f]);
        self->chunks[f] = NULL; /* the list's, or the retired list's */
    }
    return rc;
}

static enum sk_err commit_once(struct commit *self, bool is_relief, struct sk_diag *d)
{
    struct shard *shard = self->shard;
    self->dying_before = shard->dying.count;
    self->faulty = NULL;
    self->rows_written = 0;
    enum sk_err rc = make_chunks(self, d);
    if (is_relief && sk_store_is_short(shard->store)) /* the reserve is for deletes, not for deltas */
        (void)saving_give_way(shard);
    if (rc == SK_ERR_OK)
        rc = sk_store_begin(shard->store, wall_us(self->writer->worker), is_relief, d);
    if (rc != SK_ERR_OK) {
        drop_chunks(self);
        return rc;
    }
    for (struct request *r = self->writer->batch.first; r != NULL && rc == SK_ERR_OK; r = r->next)
        if (!r->is_settled && (rc = apply(self, r, d)) != SK_ERR_OK)
            self->faulty = r;
    if (rc == SK_ERR_OK)
        rc = saving_put(shard, d);
    if (rc == SK_ERR_OK)
        rc = publish_and_commit(self, d);
    else
        sk_store_abort(shard->store);
    if (rc != SK_ERR_OK) {
        drop_chunks(self);
        shard->dying.count = self->dying_before;
    }
    return rc;
}

/* ---- the batch ---- */

static bool is_growing(const struct request *request)
{
    return request->decoded.op != SK_OP_DELETE;
}

static bool has_open(const struct writer *writer, bool is_growth_only)
{
    for (const struct request *r = writer->batch.first; r != NULL; r = r->next)
        if (!r->is_settled && (!is_growth_only || is_growing(r)))
            return true;
    return false;
}

static void settle_all(struct writer *writer, bool is_growth_only, enum sk_err code,
                       const struct sk_diag *d)
{
    for (struct request *r = writer->batch.first; r != NULL; r = r->next)
        if (!r->is_settled && (!is_growth_only || is_growing(r)))
            settle(r, code, d);
}

/* All in one transaction. A request that fails alone is put aside and the others are tried again; on a
 * full disk the deletes go alone, and may use the reserve. */
void turn_commit(struct sk_job *job)
{
    struct writer *writer = (struct writer *)job;
    struct commit self = {.writer = writer, .shard = writer->shard};
    bool was_relief = false;
    unsigned faults = 0;
    sk_arena_init(&self.arena, COMMIT_ARENA_BYTES_MAX);
    while (has_open(writer, false)) {
        struct sk_diag d = {0};
        bool is_relief = !has_open(writer, true);
        enum sk_err rc = commit_once(&self, is_relief, &d);
        if (rc == SK_ERR_OK) {
            saving_saved(self.shard);
            writer->commits++;
            writer->rows_written += self.rows_written;
            settle_all(writer, false, SK_ERR_OK, &d);
            break;
        }
        if (rc == SK_ERR_DISK_FULL && !is_relief) {
            settle_all(writer, true, rc, &d);
        } else if (rc == SK_ERR_DISK_FULL && !was_relief) {
            was_relief = true; /* the store knows now that the disk is full */
        } else if (rc == SK_ERR_DISK_FULL && saving_give_way(self.shard)) {
            continue;
        } else if (self.faulty != NULL && rc != SK_ERR_DISK_FULL && faults < FAULTS_MAX) {
            faults++;
            settle(self.faulty, rc, &d);
        } else {
            writer->code = rc;
            writer->diag = d;
            settle_all(writer, false, rc, &d);
        }
    }
    sk_arena_deinit(&self.arena);
    shard_look(self.shard);
}

/* ---- expired records ---- */

static enum sk_err sweep(struct writer *writer, struct sk_diag *d)
{
    struct shard *shard = writer->shard;
    struct sk_id *ids = NULL;
    uint32_t count = 0;
    size_t dying_before = shard->dying.count;
    enum sk_err rc = sk_store_begin(shard->store, wall_us(writer->worker), true, d);
    if (rc != SK_ERR_OK)
        return rc;
    rc = sk_store_expired(shard->store, EXPIRED_AT_ONCE, &ids, &count, d);
    for (uint32_t i = 0; i < count && rc == SK_ERR_OK; i++) {
        struct sk_change change;
        rc = sk_store_delete(shard->store, &ids[i], &change, d);
        if (rc == SK_ERR_OK)
            rc = bury_old(shard, &change, d);
    }
    free(ids);
    if (rc == SK_ERR_OK)
        rc = saving_put(shard, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_commit(shard->store, d);
    else
        sk_store_abort(shard->store);
    if (rc != SK_ERR_OK) {
        shard->dying.count = dying_before;
        return rc;
    }
    saving_saved(shard);
    writer->commits++;
    return SK_ERR_OK;
}

void turn_sweep(struct sk_job *job)
{
    struct writer *writer = (struct writer *)job;
    writer->code = sweep(writer, &writer->diag);
    shard_look(writer->shard);
}
