/* From a link frame to the queue of its shard; parking, deadlines, waiting. */
#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>

enum { MAP_AGAIN_US = 50 * 1000 }; /* a map that is still older than a request wants */

uint64_t request_answer_by(const struct request *request)
{
    uint64_t left = request->deadline_us - request->arrived_us;
    uint64_t margin = left / 4 < REPLY_MARGIN_US ? left / 4 : REPLY_MARGIN_US;
    return request->deadline_us - margin;
}

/* Before there is a request of ours to hold it. */
static void refuse(struct sk_worker *self, const struct sk_link_header *header, struct sk_span frame,
                   enum sk_err code, const struct sk_diag *d)
{
    struct sk_envelope envelope = {0};
    struct sk_diag ignored = {0};
    struct request request = {.header = *header};
    enum sk_err rc = sk_envelope_decode(&envelope, frame, &ignored);
    (void)rc; /* the id is filled wherever it could be read */
    sk_buffer_clear(&self->reply);
    sk_reply_error(&self->reply, &envelope.id, code, d);
    if (!self->reply.is_broken)
        answer_early(self, &request, code, sk_buffer_span(&self->reply));
}

/* Waits for a newer map, until its deadline. */
static void park(struct sk_worker *self, struct request *request, bool is_map_stale, bool is_again)
{
    queue_push(&self->parked, request);
    if (!is_map_stale || self->is_map_asked)
        return;
    if (is_again)
        self->map_next_us = sooner(self->map_next_us, now_us(self) + MAP_AGAIN_US);
    else
        self->is_map_wanted = true;
}

static void answer_stats(struct shard *shard, struct request *request)
{
    struct sk_worker *self = shard->worker;
    struct sk_reply_writer reply;
    sk_buffer_clear(&self->reply);
    sk_reply_begin(&reply, &self->reply, &request->decoded.id);
    shard_look_at_disk(shard);
    shard_put_stats(shard, &reply);
    sk_reply_end(&reply);
    answer(self, request, SK_ERR_OK, sk_buffer_span(&self->reply));
}

static void to_shard(struct shard *shard, struct request *request)
{
    struct sk_worker *self = shard->worker;
    struct sk_diag d = {0};
    if (request->decoded.op == SK_OP_SHARD_STATS) {
        answer_stats(shard, request);
        return;
    }
    if (shard->store == NULL) {
        d = shard->diag;
        answer_error(self, request,
                     d.code == SK_ERR_VERSION ? SK_ERR_VERSION : SK_ERR_UNAVAILABLE, &d);
        return;
    }
    switch (request->decoded.op) {
    case SK_OP_UPSERT:
    case SK_OP_DELETE:
    case SK_OP_SET_PAYLOAD:
        writes_enqueue(shard, request);
        return;
    case SK_OP_GET:
    case SK_OP_SEARCH:
    case SK_OP_SCROLL:
    case SK_OP_COUNT:
        reads_enqueue(shard, request);
        return;
    case SK_OP_WAIT:
        if (sk_request_has(&request->decoded, SK_FIELD_wait_for) &&
            !sk_span_is(request->decoded.wait_for, "indexed")) {
            enum sk_err rc = sk_fail_field(&d, SK_ERR_INVALID, "for", "want indexed");
            answer_error(self, request, rc, &d);
            return;
        }
        queue_push(&shard->waits, request);
        if (!self->writer.is_submitted)
            requests_waited(shard);
        return;
    case SK_OP_VERIFY:
    case SK_OP_COMPACT:
    case SK_OP_SNAPSHOT:
    case SK_OP_RESTORE:
        queue_push(&shard->admin, request);
        self->turn_us = 0;
        return;
    default: {
        enum sk_err rc = sk_fail(&d, SK_ERR_INVALID, "a shard does not serve '%s'",
                                 sk_op_name(request->decoded.op));
        answer_error(self, request, rc, &d);
    }
    }
}

/* is_again: it has waited, and a map that was asked for since is here. */
static void dispatch(struct sk_worker *self, struct request *request, bool is_again)
{
    static const uint8_t nobody[SK_UUID_BYTES] = {0};
    struct sk_diag d = {0};
    if (self->is_stopping) {
        enum sk_err rc = sk_fail(&d, SK_ERR_UNAVAILABLE, "the worker is stopping");
        answer_error(self, request, rc, &d);
        return;
    }
    if (request->decoded.op == SK_OP_RESTORE &&
        memcmp(request->header.collection, nobody, sizeof nobody) == 0) {
        describe_start(self, request);
        return;
    }
    struct shard *shard = shard_find(self, request->header.collection, request->header.shard);
    bool is_map_new = self->map.version != 0 && self->map.version >= request->header.map_version;
    if (shard == NULL && is_again && is_map_new) {
        enum sk_err rc =
            sk_fail_field(&d, SK_ERR_NOT_FOUND, "collection",
                          "worker %u has no shard %u of this collection in map version %llu",
                          self->config.number, request->header.shard,
                          (unsigned long long)self->map.version);
        answer_error(self, request, rc, &d);
    } else if (shard == NULL) {
        park(self, request, true, is_again);
    } else if (request->header.schema_version > shard->schema->version) {
        /* newer than ours: a newer map brings it, or it waits for the shard to be quiet */
        park(self, request, shard->schema_next == NULL, is_again);
    } else {
        to_shard(shard, request);
    }
}

void requests_unpark(struct sk_worker *self)
{
    struct queue parked = self->parked;
    self->parked = (struct queue){0};
    for (struct request *request = queue_pop(&parked); request != NULL;
         request = queue_pop(&parked))
        dispatch(self, request, true);
}

static struct request *request_new(struct sk_worker *self, const struct sk_link_header *header,
                                   struct sk_span frame)
{
    struct request *request = malloc(sizeof *request + frame.size);
    if (request == NULL)
        return NULL;
    memset(request, 0, sizeof *request);
    if (frame.size != 0)
        memcpy(request->frame, frame.bytes, frame.size);
    request->frame_size = frame.size;
    request->size = sizeof *request + frame.size;
    request->header = *header;
    request->arrived_us = now_us(self);
    request->deadline_us = request->arrived_us + (uint64_t)header->deadline_ms * 1000;
    self->queued_bytes += request->size;
    self->expire_us = sooner(self->expire_us, request_answer_by(request));
    return request;
}

void requests_take(struct sk_worker *self, const struct sk_link_header *header,
                   struct sk_span frame)
{
    struct sk_diag d = {0};
    enum sk_err rc = SK_ERR_OK;
    struct request *request = NULL;
    if (frame.size > FRAME_BYTES_MAX)
        rc = sk_fail(&d, SK_ERR_TOO_LARGE, "a frame of %zu bytes; the most is %d", frame.size,
                     SK_FRAME_BYTES_MAX);
    else if (self->queued_bytes + frame.size > self->config.queued_bytes_max)
        rc = sk_fail(&d, SK_ERR_BUSY, "requests of %llu bytes wait already",
                     (unsigned long long)self->queued_bytes);
    else if ((request = request_new(self, header, frame)) == NULL)
        rc = sk_fail(&d, SK_ERR_NOMEM, "no memory for a request of %zu bytes", frame.size);
    if (rc != SK_ERR_OK) {
        refuse(self, header, frame, rc, &d);
        return;
    }
    struct sk_span held = sk_span_of(request->frame, request->frame_size);
    rc = sk_request_decode(&request->decoded, held, &d);
    if (rc != SK_ERR_OK) {
        struct sk_envelope envelope = {0};
        struct sk_diag ignored = {0};
        enum sk_err envelope_rc = sk_envelope_decode(&envelope, held, &ignored);
        (void)envelope_rc; /* the id is filled wherever it could be read */
        request->decoded.id = envelope.id;
        answer_error(self, request, rc, &d);
        return;
    }
    dispatch(self, request, false);
}

void requests_waited(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    if (shard->waits.first == NULL || !shard_is_indexed(shard))
        return;
    for (struct request *request = queue_pop(&shard->waits); request != NULL;
         request = queue_pop(&shard->waits)) {
        sk_buffer_clear(&self->reply);
        sk_reply_ok(&self->reply, &request->decoded.id);
        answer(self, request, SK_ERR_OK, sk_buffer_span(&self->reply));
    }
}

/* ---- deadlines ---- */

/* Answers what has passed its deadline in a queue; returns the next deadline in it. */
static uint64_t expire(struct sk_worker *self, struct queue *queue, uint64_t now, const char *what)
{
    uint64_t next = UINT64_MAX;
    bool is_due = false;
    for (const struct request *request = queue->first; request != NULL; request = request->next) {
        uint64_t by = request_answer_by(request);
        is_due = is_due || by <= now;
        next = sooner(next, by);
    }
    if (!is_due)
        return next;
    struct queue kept = {0};
    next = UINT64_MAX;
    for (struct request *request = queue_pop(queue); request != NULL; request = queue_pop(queue)) {
        if (request_answer_by(request) > now) {
            next = sooner(next, request_answer_by(request));
            queue_push(&kept, request);
            continue;
        }
        struct sk_diag d = {0};
        enum sk_err rc =
            request->waited_for_index
                ? sk_fail(&d, SK_ERR_BUSY, "nothing was written: %u rows wait for their index",
                          self->config.pending_rows_max)
                : sk_fail(&d, SK_ERR_DEADLINE, "the deadline of %u ms passed %s",
                          request->header.deadline_ms, what);
        answer_error(self, request, rc, &d);
    }
    *queue = kept;
    return next;
}

uint64_t requests_expire(struct sk_worker *self, uint64_t now)
{
    if (now < self->expire_us) /* of requests long answered too: an early look does no harm */
        return self->expire_us;
    self->turn_us = 0;
    uint64_t next = expire(self, &self->parked, now, "while the worker waited for a newer map");
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        unsigned waiting = shard->reads.count;
        next = sooner(next, expire(self, &shard->reads, now, "before the read began"));
        self->reads_waiting -= waiting - shard->reads.count;
        next = sooner(next,
                      expire(self, &shard->writes, now, "before it was written; nothing was"));
        next = sooner(next, expire(self, &shard->waits, now, "before the index had caught up"));
        next = sooner(next, expire(self, &shard->admin, now, "before its turn came"));
    }
    self->expire_us = next;
    return next;
}
