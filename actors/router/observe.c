/* What the router says by itself: ping, info, lists, counters, the picture of the node. */
#include "actors/router/internal.h"

#include "proto/filter.h"
#include "proto/payload.h"

#include <string.h>

/* False: answered, the request has a field that does not exist. */
static bool check_fields(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    enum sk_err rc = request_decode(self, request, &d);
    if (rc != SK_ERR_OK)
        answer_error(self, request, rc, &d);
    return rc == SK_ERR_OK;
}

static void put_number(struct sk_buffer *to, const char *key, uint64_t value)
{
    sk_put_text(to, key);
    sk_put_u64(to, value);
}

static void put_word(struct sk_buffer *to, const char *key, const char *value)
{
    sk_put_text(to, key);
    sk_put_text(to, value);
}

static void reply_number(struct sk_reply_writer *reply, const char *key, uint64_t value)
{
    sk_reply_key(reply, key);
    sk_put_u64(reply->to, value);
}

static void reply_word(struct sk_reply_writer *reply, const char *key, const char *value)
{
    sk_reply_key(reply, key);
    sk_put_text(reply->to, value);
}

static uint64_t uptime_s(const struct sk_router *self)
{
    return (now_us(self) - self->started_us) / 1000000;
}

/* ---- from the map and the clock ---- */

void observe_ping(struct sk_router *self, struct request *request)
{
    struct sk_reply_writer reply;
    if (!check_fields(self, request))
        return;
    reply_begin(self, request, &reply);
    reply_word(&reply, "node", self->public_key);
    reply_word(&reply, "version", self->version);
    reply_number(&reply, "took_us", now_us(self) - request->arrived_us);
    answer_reply(self, request, &reply);
}

void observe_info(struct sk_router *self, struct request *request)
{
    static const struct {
        const char *name;
        uint64_t value;
    } limits[] = {
        {"frame_bytes", SK_FRAME_BYTES_MAX},     {"rows", SK_ROWS_MAX},
        {"queries", SK_QUERIES_MAX},             {"limit", SK_LIMIT_MAX},
        {"dim", SK_DIM_MAX},                     {"vector_fields", SK_VECTOR_FIELDS_MAX},
        {"payload_bytes", SK_PAYLOAD_BYTES_MAX}, {"payload_fields", SK_PAYLOAD_FIELDS_MAX},
        {"filter_depth", SK_FILTER_DEPTH_MAX},   {"shards", SK_SHARDS_MAX},
        {"name_bytes", SK_NAME_BYTES_MAX},       {"id_bytes", SK_ID_STRING_BYTES_MAX},
        {"deadline_ms", SK_DEADLINE_MS_MAX},     {"collections", SK_COLLECTIONS_MAX},
        {"keys", SK_KEYS_MAX},
    };
    struct sk_reply_writer reply;
    if (!check_fields(self, request))
        return;
    reply_begin(self, request, &reply);
    reply_word(&reply, "node", self->public_key);
    reply_word(&reply, "version", self->version);
    reply_number(&reply, "uptime_s", uptime_s(self));
    reply_number(&reply, "collections", self->map.collection_count);
    sk_reply_key(&reply, "limits");
    sk_put_map(reply.to, SK_COUNT_OF(limits));
    for (size_t i = 0; i < SK_COUNT_OF(limits); i++)
        put_number(reply.to, limits[i].name, limits[i].value);
    answer_reply(self, request, &reply);
}

void observe_collections(struct sk_router *self, struct request *request)
{
    struct sk_reply_writer reply;
    if (!check_fields(self, request))
        return;
    reply_begin(self, request, &reply);
    sk_reply_key(&reply, "collections");
    sk_put_array(reply.to, self->map.collection_count);
    for (uint32_t c = 0; c < self->map.collection_count; c++)
        sk_put_text(reply.to, self->map.collections[c].schema.name);
    answer_reply(self, request, &reply);
}

void observe_keys(struct sk_router *self, struct request *request)
{
    struct sk_reply_writer reply;
    if (!check_fields(self, request))
        return;
    reply_begin(self, request, &reply);
    sk_reply_key(&reply, "keys");
    sk_put_array(reply.to, self->map.key_count);
    for (uint32_t k = 0; k < self->map.key_count; k++) {
        const struct sk_map_key *key = &self->map.keys[k];
        sk_put_map(reply.to, 3);
        put_word(reply.to, "name", key->name);
        put_word(reply.to, "public_key", key->public_key);
        put_word(reply.to, "role", sk_role_name(key->role));
    }
    answer_reply(self, request, &reply);
}

/* ---- stats and topology: the supervisor is asked for the processes, the workers for their shards ---- */

static void ask_supervisor(struct sk_router *self, uint64_t now, uint64_t wait_us)
{
    struct sk_request ask = {.op = SK_OP_NODE_STATUS};
    self->node_status_asked = self->number_next++;
    self->node_status_until_us = now + wait_us;
    sk_buffer_clear(&self->node_status);
    ask.id = (struct sk_request_id){.is_present = true, .number = self->node_status_asked};
    ask.deadline_ms = self->config.supervisor_wait_ms;
    sk_buffer_clear(&self->encoded);
    sk_request_encode(&self->encoded, &ask);
    if (self->encoded.is_broken)
        return;
    const struct sk_span part = sk_buffer_span(&self->encoded);
    self->io->send(self->io->impl, SK_ROUTER_PEER_SUPERVISOR, &part, 1);
}

/* What they told last may be a second old: who asks after a write wants to see it. */
static void ask_workers(struct sk_router *self)
{
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    const struct sk_link_header header = {.kind = SK_LINK_STATS,
                                          .role = SK_ROLE_LINK,
                                          .request = ++self->stats_number,
                                          .map_version = self->map.version};
    sk_link_header_encode(bytes, &header);
    const struct sk_span part = sk_span_of(bytes, sizeof bytes);
    for (uint32_t w = 0; w < SK_WORKERS_MAX; w++) {
        if (!self->workers[w].is_up)
            continue;
        self->workers[w].stats_asked = self->stats_number;
        self->io->send(self->io->impl, SK_ROUTER_PEER_WORKER_0 + w, &part, 1);
    }
}

static bool have_all_told(const struct sk_router *self)
{
    bool have_told = self->node_status_asked == 0;
    for (uint32_t w = 0; w < SK_WORKERS_MAX && have_told; w++)
        have_told = !self->workers[w].is_up ||
                    self->workers[w].stats_told >= self->workers[w].stats_asked;
    return have_told;
}

void observe_heard(struct sk_router *self)
{
    if (!have_all_told(self))
        return;
    for (struct request *request = self->requests, *next; request != NULL; request = next) {
        next = request->after;
        if (request->stage == STAGE_SUPERVISOR)
            observe_answer(self, request);
    }
}

void observe_ask(struct sk_router *self, struct request *request)
{
    uint64_t now = now_us(self);
    uint64_t wait_us = (uint64_t)self->config.supervisor_wait_ms * 1000;
    if (!check_fields(self, request))
        return;
    if (self->node_status_asked == 0 || now >= self->node_status_until_us)
        ask_supervisor(self, now, wait_us);
    ask_workers(self);
    request->stage = STAGE_SUPERVISOR;
    uint64_t until = self->node_status_until_us;
    request_wake_at(self, request, until < request->deadline_us ? until : request->deadline_us);
}

void on_supervisor_message(struct sk_router *self, struct sk_span bytes)
{
    struct sk_reply reply;
    if (sk_reply_decode(&reply, bytes, NULL) != SK_ERR_OK) {
        self->status.malformed++;
        note(self, SK_ROUTER_NOTE_message_malformed, SK_ROUTER_PEER_SUPERVISOR, bytes.size);
        return;
    }
    if (self->node_status_asked == 0 || !reply.id.is_present || reply.id.is_text ||
        reply.id.number != self->node_status_asked)
        return;
    self->node_status_asked = 0;
    sk_buffer_clear(&self->node_status);
    if (reply.is_ok)
        sk_buffer_append(&self->node_status, bytes.bytes, bytes.size);
    if (self->node_status.is_broken)
        sk_buffer_deinit(&self->node_status);
    observe_heard(self);
}

static void put_wakeup(struct sk_router *self, struct sk_buffer *to)
{
    sk_put_map(to, 2);
    put_word(to, "mode", self->wakeup_mode);
    put_word(to, "state", self->wakeup_state);
}

static void put_processes(struct sk_router *self, struct sk_reply_writer *reply)
{
    struct sk_list processes;
    struct sk_span packed;
    bool is_there = self->node_status.size != 0 &&
                    sk_map_member_list(sk_buffer_span(&self->node_status), "processes", &processes);
    sk_reply_key(reply, "processes");
    if (is_there) {
        bool is_found = sk_map_member(sk_buffer_span(&self->node_status), "processes", &packed);
        SK_CHECK(is_found);
        sk_put_raw(reply->to, packed);
        return;
    }
    sk_put_array(reply->to, 0);
    sk_reply_key(reply, "warning");
    sk_put_text(reply->to, "the supervisor did not answer: the list of processes is missing");
}

static bool is_node_ready(struct sk_router *self)
{
    struct sk_router_status status;
    bool is_ready;
    if (self->node_status.size != 0 &&
        sk_map_member_bool(sk_buffer_span(&self->node_status), "ready", &is_ready))
        return is_ready;
    sk_router_get_status(self, &status);
    return status.is_ready && status.workers_up == status.workers_wanted;
}

static void answer_topology(struct sk_router *self, struct request *request)
{
    struct sk_reply_writer reply;
    reply_begin(self, request, &reply);
    struct sk_buffer *to = reply.to;
    sk_reply_key(&reply, "node");
    sk_put_map(to, 5);
    put_word(to, "public_key", self->public_key);
    put_word(to, "version", self->version);
    put_number(to, "uptime_s", uptime_s(self));
    sk_put_text(to, "ready");
    sk_put_bool(to, is_node_ready(self));
    sk_put_text(to, "wakeup");
    put_wakeup(self, to);
    put_processes(self, &reply);
    sk_reply_key(&reply, "collections");
    to->is_broken = !put_collections(self, to, true) || to->is_broken;
    answer_reply(self, request, &reply);
}

static const char *op_text(unsigned op)
{
    return op == SK_OP_NONE ? "unknown" : sk_op_name((enum sk_op)op);
}

static void put_requests(struct sk_router *self, struct sk_buffer *to)
{
    size_t at = sk_put_array_open(to);
    uint32_t count = 0;
    for (unsigned op = 0; op < SK_OPS_END; op++)
        for (unsigned code = 0; code < CODES; code++) {
            if (self->counts[op][code] == 0)
                continue;
            sk_put_map(to, 3);
            put_word(to, "op", op_text(op));
            put_word(to, "code", sk_err_name((enum sk_err)code));
            put_number(to, "count", self->counts[op][code]);
            count++;
        }
    sk_put_count_at(to, at, count);
}

static void put_latency(struct sk_router *self, struct sk_buffer *to)
{
    size_t at = sk_put_array_open(to);
    uint32_t count = 0;
    for (unsigned op = 0; op < SK_OPS_END; op++) {
        const struct sk_histogram *histogram = &self->latency[op];
        if (histogram->count == 0)
            continue;
        sk_put_map(to, 5);
        put_word(to, "op", op_text(op));
        put_number(to, "count", histogram->count);
        put_number(to, "sum_us", histogram->sum_us);
        sk_put_text(to, "bounds_us");
        sk_put_array(to, SK_HISTOGRAM_BOUNDS);
        for (unsigned b = 0; b < SK_HISTOGRAM_BOUNDS; b++)
            sk_put_u64(to, sk_histogram_bounds_us[b]);
        sk_put_text(to, "counts");
        sk_put_array(to, SK_HISTOGRAM_BOUNDS + 1);
        for (unsigned b = 0; b <= SK_HISTOGRAM_BOUNDS; b++)
            sk_put_u64(to, histogram->counts[b]);
        count++;
    }
    sk_put_count_at(to, at, count);
}

static void put_queue(struct sk_router *self, struct sk_buffer *to)
{
    uint64_t reads = 0, writes = 0;
    for (unsigned w = 0; w < SK_WORKERS_MAX; w++) {
        struct sk_span stats = sk_buffer_span(&self->workers[w].stats);
        uint64_t value;
        if (stats.size == 0)
            continue;
        if (sk_map_member_u64(stats, "reads_in_flight", &value))
            reads += value;
        if (sk_map_member_u64(stats, "writes_queued", &value))
            writes += value;
    }
    sk_put_map(to, 3);
    put_number(to, "requests_in_flight", self->request_count);
    put_number(to, "reads_in_flight", reads);
    put_number(to, "writes_queued", writes);
}

static void answer_stats(struct sk_router *self, struct request *request)
{
    struct sk_reply_writer reply;
    reply_begin(self, request, &reply);
    struct sk_buffer *to = reply.to;
    reply_number(&reply, "uptime_s", uptime_s(self));
    sk_reply_key(&reply, "requests");
    put_requests(self, to);
    sk_reply_key(&reply, "latency");
    put_latency(self, to);
    sk_reply_key(&reply, "queue");
    put_queue(self, to);
    sk_reply_key(&reply, "wakeup");
    put_wakeup(self, to);
    sk_reply_key(&reply, "collections");
    to->is_broken = !put_collections(self, to, false) || to->is_broken;
    put_processes(self, &reply);
    answer_reply(self, request, &reply);
}

void observe_answer(struct sk_router *self, struct request *request)
{
    if (request->op == SK_OP_STATS)
        answer_stats(self, request);
    else
        answer_topology(self, request);
}
