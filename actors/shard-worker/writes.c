#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- core: checked whole, queued, admitted ---- */

static enum sk_err check_targets(const struct sk_request *request, struct sk_arena *arena,
                                 const struct sk_schema *schema, uint32_t *rows, struct sk_diag *d)
{
    bool has_ids = sk_request_has(request, SK_FIELD_ids);
    bool has_filter = sk_request_has(request, SK_FIELD_filter);
    if (has_ids == has_filter)
        return sk_fail_field(d, SK_ERR_INVALID, has_ids ? "filter" : "ids",
                             "%s wants ids or a filter, and not both", sk_op_name(request->op));
    *rows = request->ids.count;
    if (has_ids)
        return SK_ERR_OK;
    struct sk_filter *filter = NULL;
    enum sk_err rc = sk_filter_parse(&filter, arena, request->filter, d);
    return rc != SK_ERR_OK ? rc : sk_filter_check(schema, filter, d);
}

static enum sk_err over_budget(const struct shard *shard, struct sk_diag *d)
{
    uint64_t bytes = shard->schema->memory_bytes_max;
    return sk_fail(d, SK_ERR_NOMEM,
                   "the memory budget of the collection (%llu bytes) is used: delete records or raise "
                   "memory_bytes_max",
                   (unsigned long long)(bytes != 0 ? bytes : shard->worker->config.memory_bytes_max));
}

static enum sk_err check_write(struct shard *shard, struct request *request, struct sk_diag *d)
{
    struct sk_worker *self = shard->worker;
    const struct sk_request *r = &request->decoded;
    if (request->header.incarnation == 0)
        return sk_fail(d, SK_ERR_INVALID, "a write without the router's stamp");
    if (r->op == SK_OP_UPSERT && atomic_load_explicit(&shard->is_over_budget, memory_order_relaxed))
        return over_budget(shard, d);
    if (r->op == SK_OP_UPSERT)
        return sk_upsert_check(shard->schema, r, self->scratch, &request->rows, d);
    struct sk_arena arena;
    sk_arena_init(&arena, 8 * 1024 * 1024);
    enum sk_err rc = check_targets(r, &arena, shard->schema, &request->rows, d);
    sk_arena_deinit(&arena);
    if (rc == SK_ERR_OK && r->op == SK_OP_SET_PAYLOAD) {
        bool is_replace = sk_span_is(r->mode, "replace");
        if (!is_replace && !sk_span_is(r->mode, "merge"))
            return sk_fail_field(d, SK_ERR_INVALID, "mode", "want merge or replace");
        rc = sk_payload_check(r->payload, d);
        if (rc == SK_ERR_OK)
            rc = sk_payload_check_types(shard->schema, r->payload, d);
    }
    return rc;
}

void writes_enqueue(struct shard *shard, struct request *request)
{
    struct sk_worker *self = shard->worker;
    struct sk_diag d = {0};
    enum sk_err rc = SK_ERR_OK;
    if (shard->writes.count >= self->config.writes_queued_max)
        rc = sk_fail(&d, SK_ERR_BUSY, "%u writes of this shard wait already",
                     self->config.writes_queued_max);
    if (rc == SK_ERR_OK)
        rc = check_write(shard, request, &d);
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    queue_push(&shard->writes, request);
    self->turn_us = 0;
    atomic_store_explicit(&self->writer.is_wanted, true, memory_order_relaxed);
}

/* Rows that wait for the slowest index of the shard. */
static uint32_t pending_rows(const struct shard *shard)
{
    uint32_t most = 0;
    for (unsigned f = 0; f < shard->field_count; f++) {
        uint32_t rows = sk_pending_count(&shard->fields[f].pending);
        most = rows > most ? rows : most;
    }
    return most;
}

/* A batch may bring this many rows now. While an index is rebuilt its searches scan the store, so that
 * nothing is pending; but rows come in only half as fast as they are linked, or it would never end. */
static uint64_t rows_admitted(const struct shard *shard)
{
    const struct sk_worker_config *config = &shard->worker->config;
    uint64_t room = config->batch_rows_max;
    uint32_t pending = pending_rows(shard);
    uint64_t left = pending >= config->pending_rows_max ? 0 : config->pending_rows_max - pending;
    room = left < room ? left : room;
    for (unsigned f = 0; f < shard->field_count; f++)
        if (shard->fields[f].state == FIELD_BUILDING && shard->build_credit / 2 < room)
            room = shard->build_credit / 2;
    return room;
}

/* The first request always fits a shard where nothing is pending: it may be larger than the limit. */
static bool fits(const struct shard *shard, const struct request *request, uint64_t room,
                 bool is_first)
{
    if (request->decoded.op != SK_OP_UPSERT || request->rows <= room)
        return true;
    return is_first && pending_rows(shard) == 0 &&
           room >= (request->rows < shard->worker->config.pending_rows_max
                        ? request->rows
                        : shard->worker->config.pending_rows_max);
}

static void answer_write(struct sk_worker *self, const struct request *request)
{
    static const char *const names[SK_OPS_END] = {[SK_OP_UPSERT] = "upserted",
                                                  [SK_OP_DELETE] = "deleted",
                                                  [SK_OP_SET_PAYLOAD] = "updated"};
    struct sk_reply_writer reply;
    sk_buffer_clear(&self->reply);
    sk_reply_begin(&reply, &self->reply, &request->decoded.id);
    sk_reply_key(&reply, names[request->decoded.op]);
    sk_put_u64(&self->reply, request->affected);
    sk_reply_end(&reply);
    if (!self->reply.is_broken)
        answer_early(self, request, SK_ERR_OK, sk_buffer_span(&self->reply));
}

/* A copy of a write that was refused is refused again, whatever has changed since. */
static bool was_refused(const struct sk_worker *self, const struct request *request)
{
    const struct sk_link_header *stamp = &request->header;
    const struct refusal *refusal = &self->refusals[stamp->sequence % REFUSALS_MAX];
    return refusal->code != SK_ERR_OK && refusal->incarnation == stamp->incarnation &&
           refusal->sequence == stamp->sequence;
}

static void refuse_again(struct sk_worker *self, struct request *request)
{
    enum sk_err code = self->refusals[request->header.sequence % REFUSALS_MAX].code;
    answer_error(self, request, code, NULL);
}

bool writes_are_admitted(struct shard *shard)
{
    while (shard->writes.first != NULL && was_refused(shard->worker, shard->writes.first))
        refuse_again(shard->worker, queue_pop(&shard->writes));
    struct request *request = shard->writes.first;
    if (request == NULL || shard->schema_next != NULL || shard->is_dropped)
        return false;
    bool is_admitted = fits(shard, request, rows_admitted(shard), true);
    if (!is_admitted)
        request->waited_for_index = true;
    return is_admitted;
}

void writes_take_batch(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    struct queue *batch = &self->writer.batch;
    uint64_t room = rows_admitted(shard);
    size_t bytes = 0;
    while (shard->writes.first != NULL) {
        struct request *request = shard->writes.first;
        bool is_first = batch->first == NULL;
        if (was_refused(self, request)) {
            refuse_again(self, queue_pop(&shard->writes));
            continue;
        }
        if (!fits(shard, request, room, is_first) ||
            (!is_first && bytes + request->size > BATCH_BYTES_MAX))
            break;
        bytes += request->size;
        if (request->decoded.op == SK_OP_UPSERT)
            room -= request->rows < room ? request->rows : room;
        queue_push(batch, queue_pop(&shard->writes));
    }
    SK_CHECK(batch->first != NULL);
    shard->build_credit = 0;
    for (struct request *r = batch->first; r != NULL && sk_mutant("ack_before_commit"); r = r->next) {
        r->affected = r->rows;
        answer_write(self, r);
    }
}

void writes_refuse_over_budget(struct shard *shard)
{
    struct queue kept = {0};
    struct sk_diag d = {0};
    if (!atomic_load_explicit(&shard->is_over_budget, memory_order_relaxed))
        return;
    enum sk_err rc = over_budget(shard, &d);
    for (struct request *r = queue_pop(&shard->writes); r != NULL; r = queue_pop(&shard->writes)) {
        if (r->decoded.op == SK_OP_UPSERT)
            answer_error(shard->worker, r, rc, &d);
        else
            queue_push(&kept, r);
    }
    shard->writes = kept;
}

/* The transaction is durable, or failed: now everyone in it may know. */
void writes_on_done(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    struct queue *batch = &self->writer.batch;
    for (struct request *request = queue_pop(batch); request != NULL; request = queue_pop(batch)) {
        if (request->code != SK_ERR_OK) {
            struct sk_diag d = request->diag;
            answer_error(self, request, request->code, &d);
            continue;
        }
        if (!sk_mutant("ack_before_commit"))
            answer_write(self, request);
        request_free(self, request);
    }
}
