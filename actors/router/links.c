/* The links to workers and keeper: parts on their way there, replies, who is there, the map. */
#include "actors/router/internal.h"

#include <string.h>

void note(struct sk_router *self, enum sk_router_note kind, uint64_t a, uint64_t b)
{
    self->io->note(self->io->impl, (unsigned)kind, a, b);
}

static bool is_worker(sk_peer peer)
{
    return peer >= SK_ROUTER_PEER_WORKER_0 && peer < SK_ROUTER_PEER_WORKER_0 + SK_WORKERS_MAX;
}

static struct worker *worker_of(struct sk_router *self, sk_peer peer)
{
    SK_CHECK(is_worker(peer));
    return &self->workers[peer - SK_ROUTER_PEER_WORKER_0];
}

/* ---- sending ---- */

static void part_send(struct sk_router *self, struct request *request, struct part *part,
                      uint64_t now)
{
    if (is_worker(part->peer) && !worker_of(self, part->peer)->is_up)
        return; /* when it comes */
    if (now + 1000 > request->deadline_us)
        return; /* nothing could come back in time */
    if (request->is_stamped && part->sequence == 0)
        part->sequence = ++self->sequence;
    struct sk_link_header header = {
        .kind = SK_LINK_REQUEST,
        .role = request->role,
        .shard = part->shard,
        .request = request->number,
        .deadline_ms = (uint32_t)((request->deadline_us - now) / 1000),
        .schema_version = request->schema_version,
        .incarnation = request->is_stamped ? self->incarnation : 0,
        .sequence = part->sequence,
        .map_version = self->map.version,
        .is_part = part->is_part,
    };
    memcpy(header.collection, request->uuid, sizeof header.collection);
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    sk_link_header_encode(bytes, &header);
    const struct sk_span parts[2] = {
        sk_span_of(bytes, sizeof bytes),
        part->frame.size != 0 ? sk_buffer_span(&part->frame) : request_span(request)};
    part->state = PART_SENT;
    part->was_sent = true;
    part->sent_us = now;
    self->io->send(self->io->impl, part->peer, parts, 2);
}

static void part_send_again(struct sk_router *self, struct request *request, struct part *part,
                            uint64_t now)
{
    part->resends++;
    self->status.resent++;
    note(self, SK_ROUTER_NOTE_request_sent_again, part->peer, request->number);
    part_send(self, request, part, now);
}

static uint64_t quiet_us(const struct request *request)
{
    uint64_t quiet = (uint64_t)request->deadline_ms * 1000 / 4;
    return quiet < QUIET_US_MIN ? QUIET_US_MIN : quiet > QUIET_US_MAX ? QUIET_US_MAX : quiet;
}

static unsigned resends_max(enum resend resend)
{
    return resend == RESEND_WRITE ? WRITE_RESENDS_MAX : resend == RESEND_READ ? 1 : 0;
}

uint64_t request_resend(struct sk_router *self, struct request *request, uint64_t now)
{
    uint64_t next = request->deadline_us;
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        if (part->state != PART_SENT || part->resends >= resends_max(request->resend) ||
            (is_worker(part->peer) && !worker_of(self, part->peer)->is_up))
            continue; /* a worker that comes back gets it anyway */
        uint64_t heard_us = is_worker(part->peer) ? worker_of(self, part->peer)->heard_us
                                                  : self->keeper_heard_us;
        uint64_t since = heard_us > part->sent_us ? heard_us : part->sent_us;
        /* each time it waits longer */
        uint64_t at = since + (quiet_us(request) << (part->resends < 4 ? part->resends : 4));
        if (at <= now) {
            part_send_again(self, request, part, now);
            at = now + (quiet_us(request) << (part->resends < 4 ? part->resends : 4));
        }
        next = at < next ? at : next;
    }
    return next;
}

void request_start(struct sk_router *self, struct request *request)
{
    uint64_t now = now_us(self);
    request->stage = STAGE_PARTS;
    request->pending = request->part_count;
    for (uint32_t p = 0; p < request->part_count; p++)
        part_send(self, request, &request->parts[p], now);
    uint64_t wake = request->deadline_us;
    if (resends_max(request->resend) != 0 && now + quiet_us(request) < wake)
        wake = now + quiet_us(request);
    request_wake_at(self, request, wake);
    if (request->pending == 0)
        request->finish(self, request);
}

/* ---- replies ---- */

static struct part *part_of(struct request *request, sk_peer from,
                            const struct sk_link_header *header)
{
    if (request->stage != STAGE_PARTS)
        return NULL;
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        if (part->peer == from && part->shard == header->shard)
            return part->state == PART_SENT &&
                           (from == SK_ROUTER_PEER_KEEPER || part->sequence == header->sequence)
                       ? part
                       : NULL;
    }
    return NULL;
}

static bool is_reply(struct sk_span body, enum sk_err status)
{
    struct sk_reply reply;
    return body.size != 0 && sk_reply_decode(&reply, body, NULL) == SK_ERR_OK &&
           (reply.is_ok ? status == SK_ERR_OK : status == reply.code);
}

static void part_settle(struct sk_router *self, struct request *request, struct part *part,
                        enum sk_err code, enum fault fault)
{
    part->state = PART_DONE;
    part->code = code;
    part->fault = fault;
    SK_CHECK(request->pending > 0);
    if (--request->pending != 0)
        return;
    if (request->finish != NULL)
        request->finish(self, request);
    else
        answer_part(self, request, part);
}

static void on_reply(struct sk_router *self, sk_peer from, const struct sk_link_header *header,
                     struct sk_span body)
{
    struct request *request = request_find(self, header->request);
    struct part *part = request != NULL ? part_of(request, from, header) : NULL;
    if (part == NULL) { /* late, a second copy, or to somebody before us */
        note(self, SK_ROUTER_NOTE_reply_unwanted, from, header->request);
        return;
    }
    if (!is_reply(body, header->status)) {
        self->status.malformed++;
        note(self, SK_ROUTER_NOTE_message_malformed, from, body.size);
        part_settle(self, request, part, SK_ERR_INTERNAL, FAULT_MALFORMED);
        return;
    }
    if (request->finish == NULL) { /* the usual way: the reply goes on as it is */
        answer(self, request, header->status, body);
        return;
    }
    if (header->map_version > request->map_version && from == SK_ROUTER_PEER_KEEPER)
        request->map_version = header->map_version;
    sk_buffer_clear(&part->body);
    sk_buffer_append(&part->body, body.bytes, body.size);
    request_charge(self, request, body.size);
    if (part->body.is_broken || self->bytes > self->config.bytes_in_flight_max * 2) {
        sk_buffer_deinit(&part->body);
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_NOMEM, "no memory to gather answers of %zu bytes%s",
                                 request->charged, sk_op_is_write(request->op) ? "; they were written" : "");
        answer_error(self, request, rc, &d);
        return;
    }
    part_settle(self, request, part, header->status, FAULT_NONE);
}

/* ---- workers ---- */

/* The worker is there (again): what waits for it goes out. On a new link, what was sent on the one
 * before goes out again; what must not, fails when its process was replaced. */
static void worker_serve(struct sk_router *self, uint32_t number, bool is_new_link,
                         bool is_replaced)
{
    uint64_t now = now_us(self);
    uint64_t again = 0;
    sk_peer peer = SK_ROUTER_PEER_WORKER_0 + number;
    for (struct request *request = self->requests, *next; request != NULL; request = next) {
        next = request->after;
        if (request->stage != STAGE_PARTS)
            continue;
        for (uint32_t p = 0; p < request->part_count; p++) {
            struct part *part = &request->parts[p];
            if (part->peer != peer || part->state == PART_DONE)
                continue;
            if (part->state == PART_UNSENT) {
                part_send(self, request, part, now);
                continue;
            }
            if (is_new_link && request->resend != RESEND_NEVER) {
                part_send(self, request, part, now);
                self->status.resent++;
                again++;
            }
            if (!is_replaced || request->resend != RESEND_NEVER)
                continue;
            bool is_last = request->pending == 1;
            part_settle(self, request, part, SK_ERR_UNAVAILABLE, FAULT_GONE);
            if (is_last) /* answered, or in another stage */
                break;
        }
    }
    note(self, SK_ROUTER_NOTE_worker_up, number, again);
}

void worker_is_up(struct sk_router *self, uint32_t number, uint64_t incarnation, bool is_new_link)
{
    struct worker *worker = &self->workers[number];
    bool is_replaced =
        incarnation != 0 && worker->incarnation != 0 && worker->incarnation != incarnation;
    bool was_up = worker->is_up;
    if (incarnation != 0)
        worker->incarnation = incarnation;
    worker->is_up = true;
    if (!was_up || is_replaced || is_new_link)
        worker_serve(self, number, is_replaced || is_new_link, is_replaced);
}

void worker_is_gone(struct sk_router *self, uint32_t number)
{
    struct worker *worker = &self->workers[number];
    if (!worker->is_up)
        return;
    worker->is_up = false;
    uint64_t waiting = 0;
    for (struct request *request = self->requests; request != NULL; request = request->after)
        for (uint32_t p = 0; p < request->part_count; p++)
            waiting += request->parts[p].peer == SK_ROUTER_PEER_WORKER_0 + number &&
                       request->parts[p].state != PART_DONE;
    note(self, SK_ROUTER_NOTE_worker_gone, number, waiting);
    if (worker->stats_told < worker->stats_asked)
        observe_heard(self);
}

static void keep_stats(struct worker *worker, struct sk_span body)
{
    struct sk_reader from = sk_reader_of(body);
    if (body.size == 0 || body.size > STATS_BYTES_MAX ||
        sk_skip(&from, SK_PACK_DEPTH_MAX, NULL) != SK_ERR_OK ||
        sk_read_end(&from, NULL) != SK_ERR_OK)
        return;
    sk_buffer_clear(&worker->stats);
    sk_buffer_append(&worker->stats, body.bytes, body.size);
    if (worker->stats.is_broken)
        sk_buffer_deinit(&worker->stats);
}

void on_worker_message(struct sk_router *self, uint32_t number, struct sk_span bytes)
{
    struct sk_link_header header;
    struct sk_span body;
    struct worker *worker = &self->workers[number];
    sk_peer peer = SK_ROUTER_PEER_WORKER_0 + number;
    if (sk_link_decode(&header, &body, bytes, NULL) != SK_ERR_OK) {
        self->status.malformed++;
        note(self, SK_ROUTER_NOTE_message_malformed, peer, bytes.size);
        return;
    }
    switch (header.kind) {
    case SK_LINK_REPLY:
        worker->heard_us = now_us(self);
        worker_is_up(self, number, 0, false);
        on_reply(self, peer, &header, body);
        break;
    case SK_LINK_HELLO:
        worker_is_up(self, number, header.incarnation, true);
        break;
    case SK_LINK_STATS:
        worker_is_up(self, number, header.incarnation, false);
        keep_stats(worker, body);
        if (header.request > worker->stats_told) { /* an answer, not its own beat */
            worker->stats_told = header.request;
            observe_heard(self);
        }
        break;
    case SK_LINK_GOODBYE:
        if (header.incarnation == worker->incarnation)
            worker_is_gone(self, number);
        break;
    default:
        self->status.malformed++;
        note(self, SK_ROUTER_NOTE_message_malformed, peer, bytes.size);
    }
}

/* ---- the keeper ---- */

void ask_map(struct sk_router *self)
{
    struct sk_request ask = {.op = SK_OP_MAP_GET, .deadline_ms = 5000};
    ask.id = (struct sk_request_id){.is_present = true, .number = MAP_REQUEST};
    ask.map_version = self->map.version;
    ask.present = UINT64_C(1) << SK_FIELD_map_version;
    sk_buffer_clear(&self->encoded);
    sk_request_encode(&self->encoded, &ask);
    self->is_map_asked = true;
    self->map_asked = self->map_wanted;
    self->map_next_us = now_us(self) + MAP_RETRY_US;
    if (self->encoded.is_broken)
        return;
    struct sk_link_header header = {.kind = SK_LINK_REQUEST,
                                    .role = SK_ROLE_LINK,
                                    .request = MAP_REQUEST,
                                    .deadline_ms = 5000,
                                    .map_version = self->map.version};
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    sk_link_header_encode(bytes, &header);
    const struct sk_span parts[2] = {sk_span_of(bytes, sizeof bytes),
                                     sk_buffer_span(&self->encoded)};
    self->io->send(self->io->impl, SK_ROUTER_PEER_KEEPER, parts, 2);
}

/* Requests that waited for a map of this version go on. */
static void map_serve(struct sk_router *self)
{
    for (struct request *request = self->requests, *next; request != NULL; request = next) {
        next = request->after;
        if (request->stage == STAGE_MAP)
            request_begin(self, request);
        else if (request->stage == STAGE_VERSION && request->map_version <= self->map.version)
            request->then(self, request);
    }
}

static void on_map(struct sk_router *self, const struct sk_link_header *header, struct sk_span body)
{
    struct sk_reply reply;
    struct sk_span packed;
    if (sk_reply_decode(&reply, body, NULL) != SK_ERR_OK || !reply.is_ok ||
        header->status != SK_ERR_OK)
        return; /* asked again by on_time */
    self->is_map_asked = false;
    self->map_next_us = now_us(self) + (self->map.version != 0 ? MAP_POLL_US : MAP_RETRY_US);
    if (!sk_map_member(reply.map, "map", &packed) || packed.size <= 1) { /* ours is the newest */
        if (self->map_wanted > self->map_asked)
            ask_map(self); /* a hint came while it answered */
        return;
    }
    struct sk_map map = {0};
    enum sk_err rc = sk_map_decode(&map, packed, NULL);
    bool is_other = self->map.version != 0 && map.node_id != self->map.node_id;
    if (rc != SK_ERR_OK || map.version == 0 || map.version < self->map.version || is_other) {
        note(self, SK_ROUTER_NOTE_map_refused, map.version, self->map.version);
        sk_map_deinit(&map);
        self->map_next_us = now_us(self) + MAP_RETRY_US;
        return;
    }
    bool is_newer = map.version > self->map.version;
    sk_map_deinit(&self->map);
    self->map = map;
    self->map_next_us = now_us(self) + MAP_POLL_US;
    if (!is_newer)
        return;
    note(self, SK_ROUTER_NOTE_map_applied, map.version, map.collection_count);
    if (self->map_wanted > self->map.version)
        ask_map(self);
    map_serve(self);
}

void on_keeper_message(struct sk_router *self, struct sk_span bytes)
{
    struct sk_link_header header;
    struct sk_span body;
    if (sk_link_decode(&header, &body, bytes, NULL) != SK_ERR_OK || header.kind != SK_LINK_REPLY) {
        self->status.malformed++;
        note(self, SK_ROUTER_NOTE_message_malformed, SK_ROUTER_PEER_KEEPER, bytes.size);
        return;
    }
    self->keeper_heard_us = now_us(self);
    if (header.request == MAP_REQUEST)
        on_map(self, &header, body);
    else
        on_reply(self, SK_ROUTER_PEER_KEEPER, &header, body);
}

void keeper_is_up(struct sk_router *self)
{
    uint64_t now = now_us(self);
    ask_map(self);
    for (struct request *request = self->requests; request != NULL; request = request->after)
        if (request->stage == STAGE_PARTS && request->part_count == 1 &&
            request->parts[0].peer == SK_ROUTER_PEER_KEEPER &&
            request->parts[0].state == PART_SENT)
            part_send_again(self, request, &request->parts[0], now);
}
