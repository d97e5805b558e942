/* What the keeper decides (collections, keys), and restore, which is made of several steps. A change is
 * answered when this router's own map has it, so that the next request of the same client meets it. */
#include "actors/router/internal.h"

#include <string.h>

static void to_keeper(struct sk_router *self, struct request *request, finish_fn *finish)
{
    bool is_made = request_make_parts(self, request, 1);
    SK_CHECK(is_made); /* one part needs no memory */
    request->parts[0].peer = SK_ROUTER_PEER_KEEPER;
    request->is_stamped = true;
    request->resend = RESEND_WRITE;
    request->schema_version = 0;
    memset(request->uuid, 0, sizeof request->uuid);
    request->finish = finish;
}

static void answer_kept(struct sk_router *self, struct request *request)
{
    answer(self, request, request->kept_code, sk_buffer_span(&request->kept));
}

/* Goes on with `then` as soon as the map has the change. */
static void wait_for_map(struct sk_router *self, struct request *request, finish_fn *then)
{
    request->then = then;
    if (request->map_version <= self->map.version) {
        then(self, request);
        return;
    }
    request->stage = STAGE_VERSION;
    request_wake_at(self, request, request->deadline_us);
    sk_router_on_map_hint(self, request->map_version);
}

static void finish_change(struct sk_router *self, struct request *request)
{
    struct part *part = &request->parts[0];
    if (part->fault != FAULT_NONE) {
        answer_part(self, request, part);
        return;
    }
    /* A refusal waits as well: after `exists` the client may use what exists. */
    request->kept_code = part->code;
    request->kept = part->body;
    part->body = (struct sk_buffer){0};
    wait_for_map(self, request, answer_kept);
}

void plan_change(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    enum sk_err rc = request_decode(self, request, &d);
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    to_keeper(self, request, finish_change);
    request_start(self, request);
}

/* ---- restore: manifest, collection, shards; taken away again when a shard fails ---- */

static void finish_undo(struct sk_router *self, struct request *request)
{
    answer(self, request, SK_ERR_OK, (struct sk_span){0}); /* nobody waits any more */
}

void restore_undo(struct sk_router *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d)
{
    struct sk_request drop = {.op = SK_OP_DROP_COLLECTION, .id = request->id};
    drop.deadline_ms = UNDO_MS;
    drop.collection = request->collection;
    drop.present = UINT64_C(1) << SK_FIELD_collection;
    answer_early(self, request, code, d);
    request->role = SK_ROLE_ADMIN;
    request->deadline_ms = UNDO_MS;
    request->deadline_us = now_us(self) + (uint64_t)UNDO_MS * 1000;
    to_keeper(self, request, finish_undo);
    sk_request_encode(&request->parts[0].frame, &drop);
    if (request->parts[0].frame.is_broken) {
        finish_undo(self, request);
        return;
    }
    request_renumber(self, request);
    request_start(self, request);
}

static void finish_restore(struct sk_router *self, struct request *request)
{
    struct part *worst = request_worst(request);
    struct sk_reply_writer reply;
    struct sk_diag d = {0}, why;
    if (worst != NULL) {
        part_diag(request, worst, &why);
        enum sk_err rc = sk_fail(&d, worst->code, "shard %u: %.300s; nothing of it is kept",
                                 worst->shard, why.text);
        memcpy(d.field, why.field, sizeof d.field);
        restore_undo(self, request, rc, &d);
        return;
    }
    uint64_t records = 0;
    for (uint32_t p = 0; p < request->part_count; p++) {
        uint64_t value = 0;
        (void)sk_map_member_u64(sk_buffer_span(&request->parts[p].body), "records", &value);
        records += value;
    }
    reply_begin(self, request, &reply);
    sk_reply_key(&reply, "records");
    sk_put_u64(reply.to, records);
    answer_reply(self, request, &reply);
}

static void restore_shards(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    const struct sk_map_collection *collection = NULL;
    enum sk_err rc = sk_map_collection_of(&self->map, request->collection, &collection, &d);
    if (rc != SK_ERR_OK) { /* somebody has dropped it in between */
        answer_error(self, request, rc, &d);
        return;
    }
    request_target(request, collection);
    request->role = SK_ROLE_ADMIN;
    request->is_stamped = false;
    request->resend = RESEND_NEVER;
    request->finish = finish_restore;
    if (!plan_all(self, request, collection))
        return;
    request_renumber(self, request);
    request_start(self, request);
}

static void finish_create(struct sk_router *self, struct request *request)
{
    struct part *part = &request->parts[0];
    if (part->code != SK_ERR_OK)
        answer_part(self, request, part);
    else
        wait_for_map(self, request, restore_shards);
}

static void finish_manifest(struct sk_router *self, struct request *request)
{
    struct part *part = &request->parts[0];
    struct sk_span schema;
    if (part->code != SK_ERR_OK) {
        answer_part(self, request, part);
        return;
    }
    if (!sk_map_member(sk_buffer_span(&part->body), "schema", &schema)) {
        answer_malformed(self, request, part);
        return;
    }
    struct sk_request create = {.op = SK_OP_CREATE_FROM_SCHEMA, .id = request->id};
    create.deadline_ms = request->deadline_ms;
    create.collection = request->collection;
    create.schema = schema;
    create.present = UINT64_C(1) << SK_FIELD_collection | UINT64_C(1) << SK_FIELD_schema;
    struct sk_buffer frame = {0};
    sk_request_encode(&frame, &create);
    struct sk_diag d = {0};
    enum sk_err rc = sk_buffer_check(&frame, &d);
    if (rc != SK_ERR_OK) {
        sk_buffer_deinit(&frame);
        answer_error(self, request, rc, &d);
        return;
    }
    to_keeper(self, request, finish_create);
    request->role = SK_ROLE_LINK; /* create_from_schema is for the node's own processes */
    request->parts[0].frame = frame;
    request_renumber(self, request);
    request_start(self, request);
}

void plan_restore(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    enum sk_err rc = request_decode(self, request, &d);
    if (rc == SK_ERR_OK && sk_map_find(&self->map, request->collection) != NULL)
        rc = sk_fail_field(&d, SK_ERR_EXISTS, "collection",
                           "there is a collection '%.*s'; drop it, or restore under another name",
                           (int)request->collection.size, (const char *)request->collection.bytes);
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    bool is_made = request_make_parts(self, request, 1);
    SK_CHECK(is_made);
    request->parts[0].peer = SK_ROUTER_PEER_WORKER_0; /* every worker sees the snapshots */
    request->resend = RESEND_REPLACED;
    request->finish = finish_manifest;
    request_start(self, request);
}
