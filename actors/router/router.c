#include "actors/router/internal.h"

#include <stdlib.h>
#include <string.h>

const struct sk_note_kind sk_router_notes[SK_ROUTER_NOTE_COUNT] = {SK_ROUTER_NOTES(SK_NOTE_KIND)};

/* ---- life ---- */

static enum sk_err configure(struct sk_router *self, const struct sk_router_config *config,
                             struct sk_diag *d)
{
    struct sk_router_config *c = &self->config;
    *c = *config;
    if (c->requests_in_flight_max == 0)
        c->requests_in_flight_max = 4096;
    if (c->bytes_in_flight_max == 0)
        c->bytes_in_flight_max = (uint64_t)256 * 1024 * 1024;
    if (c->supervisor_wait_ms == 0)
        c->supervisor_wait_ms = 500;
    if (c->requests_in_flight_max > 65536)
        return sk_fail_field(d, SK_ERR_INVALID, "requests_in_flight_max",
                             "requests_in_flight_max: %u, want 1..65536",
                             c->requests_in_flight_max);
    if (config->public_key == NULL || strlen(config->public_key) >= sizeof self->public_key ||
        config->version == NULL || strlen(config->version) >= sizeof self->version)
        return sk_fail(d, SK_ERR_INVALID, "a router wants the node's public key and a version");
    snprintf(self->public_key, sizeof self->public_key, "%s", config->public_key);
    snprintf(self->version, sizeof self->version, "%s", config->version);
    c->public_key = self->public_key;
    c->version = self->version;
    return SK_ERR_OK;
}

enum sk_err sk_router_new(struct sk_router **out, const struct sk_router_config *config,
                          const struct sk_io *io, struct sk_diag *d)
{
    *out = NULL;
    struct sk_router *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the router");
    self->io = io;
    enum sk_err rc = configure(self, config, d);
    if (rc == SK_ERR_OK)
        rc = flight_init(self, d);
    if (rc == SK_ERR_OK) {
        self->scratch = malloc(SK_DIM_MAX * sizeof *self->scratch);
        if (self->scratch == NULL)
            rc = sk_fail(d, SK_ERR_NOMEM, "no memory for the router");
    }
    if (rc != SK_ERR_OK) {
        sk_router_destroy(&self);
        return rc;
    }
    self->incarnation = io->random(io->impl) | 1;
    /* a reply to the router before this one must find nobody: numbers begin at a random place */
    self->number_next = (io->random(io->impl) | UINT64_C(1) << 63) & ~UINT64_C(0xFFFFFFFF);
    self->number_next += 1;
    self->started_us = now_us(self);
    self->stop_by_us = UINT64_MAX;
    sk_router_set_wakeup(self, "off", "off");
    *out = self;
    return SK_ERR_OK;
}

void sk_router_destroy(struct sk_router **self_at)
{
    struct sk_router *self = *self_at;
    if (self == NULL)
        return;
    *self_at = NULL;
    flight_deinit(self);
    for (unsigned w = 0; w < SK_WORKERS_MAX; w++)
        sk_buffer_deinit(&self->workers[w].stats);
    sk_buffer_deinit(&self->node_status);
    sk_buffer_deinit(&self->reply);
    sk_buffer_deinit(&self->encoded);
    sk_map_deinit(&self->map);
    free(self->scratch);
    free(self);
}

void sk_router_set_wakeup(struct sk_router *self, const char *mode, const char *state)
{
    snprintf(self->wakeup_mode, sizeof self->wakeup_mode, "%s", mode);
    snprintf(self->wakeup_state, sizeof self->wakeup_state, "%s", state);
}

/* ---- requests of clients ---- */

/* Collections are ordered by name. */
static const struct sk_map_collection *find_collection(const struct sk_map *map,
                                                       struct sk_span name)
{
    uint32_t low = 0, high = map->collection_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const char *other = map->collections[middle].schema.name;
        size_t size = strlen(other);
        int order = memcmp(name.bytes, other, size < name.size ? size : name.size);
        if (order == 0)
            order = name.size < size ? -1 : name.size > size;
        if (order == 0)
            return &map->collections[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return sk_map_find(map, name); /* should the order ever be another one */
}

static void begin_on_collection(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    enum sk_err rc = SK_ERR_OK;
    const struct sk_map_collection *collection = NULL;
    if (request->collection.bytes == NULL) {
        rc = request_decode(self, request, &d); /* has its own words for what is missing */
        if (rc == SK_ERR_OK)
            rc = sk_fail_field(&d, SK_ERR_INVALID, "collection", "%s wants a field 'collection'",
                               sk_op_name(request->op));
    } else {
        collection = find_collection(&self->map, request->collection);
        if (collection == NULL)
            rc = sk_map_collection_of(&self->map, request->collection, &collection, &d);
    }
    if (rc != SK_ERR_OK)
        answer_error(self, request, rc, &d);
    else if (request->op == SK_OP_DESCRIBE_COLLECTION)
        plan_describe(self, request, collection);
    else
        plan_shards(self, request, collection);
}

void request_begin(struct sk_router *self, struct request *request)
{
    if (self->map.version == 0 && request->op != SK_OP_PING) {
        request->stage = STAGE_MAP;
        return;
    }
    switch (request->op) {
    case SK_OP_PING:
        observe_ping(self, request);
        break;
    case SK_OP_INFO:
        observe_info(self, request);
        break;
    case SK_OP_STATS:
    case SK_OP_TOPOLOGY:
        observe_ask(self, request);
        break;
    case SK_OP_LIST_COLLECTIONS:
        observe_collections(self, request);
        break;
    case SK_OP_LIST_KEYS:
        observe_keys(self, request);
        break;
    case SK_OP_CREATE_COLLECTION:
    case SK_OP_DROP_COLLECTION:
    case SK_OP_ALTER_COLLECTION:
    case SK_OP_CREATE_KEY:
    case SK_OP_REVOKE_KEY:
        plan_change(self, request);
        break;
    case SK_OP_RESTORE:
        plan_restore(self, request);
        break;
    default:
        begin_on_collection(self, request);
    }
}

static enum sk_err check_role(enum sk_op op, enum sk_role role, struct sk_diag *d)
{
    enum sk_role wanted = sk_op_role(op);
    if (wanted == SK_ROLE_LINK)
        return sk_fail_field(d, SK_ERR_FORBIDDEN, "op", "%s is for the node's own processes",
                             sk_op_name(op));
    if (role < wanted)
        return sk_fail_field(d, SK_ERR_FORBIDDEN, "op", "%s wants a key of role %s, this one has %s",
                             sk_op_name(op), sk_role_name(wanted), sk_role_name(role));
    return SK_ERR_OK;
}

void sk_router_on_client(struct sk_router *self, sk_peer from, enum sk_role role,
                         struct sk_span frame)
{
    struct sk_envelope envelope;
    struct sk_diag d = {0};
    struct request *request = NULL;
    enum sk_err rc = sk_envelope_decode(&envelope, frame, &d);
    if (role == SK_ROLE_NONE)
        rc = sk_fail(&d, SK_ERR_UNAUTHORIZED, "this key is not known here (any more)");
    if (rc == SK_ERR_OK)
        rc = check_role(envelope.op, role, &d);
    if (rc == SK_ERR_OK && self->stop_by_us != UINT64_MAX)
        rc = sk_fail(&d, SK_ERR_UNAVAILABLE, "the node is stopping; nothing was changed");
    if (rc == SK_ERR_OK)
        rc = request_new(self, &request, from, role, &envelope, frame, &d);
    if (rc != SK_ERR_OK)
        refuse(self, from, envelope.op, &envelope.id, rc, &d);
    else
        request_begin(self, request);
}

/* ---- messages ---- */

static void on_hint(struct sk_router *self, struct sk_span bytes)
{
    struct sk_link_header header;
    struct sk_span body;
    if (sk_link_decode(&header, &body, bytes, NULL) == SK_ERR_OK && header.kind == SK_LINK_HINT) {
        sk_router_on_map_hint(self, header.map_version);
        return;
    }
    self->status.malformed++;
    note(self, SK_ROUTER_NOTE_message_malformed, SK_ROUTER_PEER_HINTS, bytes.size);
}

void sk_router_on_message(struct sk_router *self, sk_peer from, struct sk_span bytes)
{
    if (from >= SK_ROUTER_PEER_WORKER_0 && from < SK_ROUTER_PEER_WORKER_0 + SK_WORKERS_MAX)
        on_worker_message(self, from - SK_ROUTER_PEER_WORKER_0, bytes);
    else if (from == SK_ROUTER_PEER_KEEPER)
        on_keeper_message(self, bytes);
    else if (from == SK_ROUTER_PEER_SUPERVISOR)
        on_supervisor_message(self, bytes);
    else if (from == SK_ROUTER_PEER_HINTS)
        on_hint(self, bytes);
    else
        self->status.malformed++;
}

void sk_router_on_connected(struct sk_router *self, sk_peer peer)
{
    if (peer == SK_ROUTER_PEER_KEEPER)
        keeper_is_up(self);
    else if (peer == SK_ROUTER_PEER_HINTS) /* what was published in between is lost */
        ask_map(self);
    else if (peer >= SK_ROUTER_PEER_WORKER_0 && peer < SK_ROUTER_PEER_WORKER_0 + SK_WORKERS_MAX)
        worker_is_up(self, peer - SK_ROUTER_PEER_WORKER_0, 0, true);
}

void sk_router_on_disconnected(struct sk_router *self, sk_peer peer)
{
    if (peer >= SK_ROUTER_PEER_WORKER_0 && peer < SK_ROUTER_PEER_WORKER_0 + SK_WORKERS_MAX)
        worker_is_gone(self, peer - SK_ROUTER_PEER_WORKER_0);
}

void sk_router_on_map_hint(struct sk_router *self, uint64_t version)
{
    if (version > self->map_wanted)
        self->map_wanted = version;
    if (version > self->map.version && !self->is_map_asked)
        ask_map(self);
}

/* ---- time ---- */

static void expire_parts(struct sk_router *self, struct request *request)
{
    request->is_late = true;
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        if (part->state == PART_DONE)
            continue;
        bool is_gone = part->peer != SK_ROUTER_PEER_KEEPER &&
                       !self->workers[part->peer - SK_ROUTER_PEER_WORKER_0].is_up;
        part->state = PART_DONE;
        part->code = is_gone ? SK_ERR_UNAVAILABLE : SK_ERR_DEADLINE;
        part->fault = is_gone ? FAULT_GONE : FAULT_LATE;
    }
    request->pending = 0;
    if (request->finish != NULL)
        request->finish(self, request);
    else
        answer_part(self, request, &request->parts[0]);
}

void request_expire(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    enum sk_err rc;
    note(self, SK_ROUTER_NOTE_deadline_passed, (uint64_t)request->op, request->number);
    switch (request->stage) {
    case STAGE_MAP:
        rc = sk_fail(&d, SK_ERR_UNAVAILABLE,
                     "the keeper has not told what this node holds within %u ms; nothing was changed",
                     request->deadline_ms);
        answer_error(self, request, rc, &d);
        break;
    case STAGE_VERSION:
        rc = sk_fail(&d, SK_ERR_DEADLINE, "%s, but this router has not seen it within %u ms",
                     request->kept_code == SK_ERR_OK ? "the change is made"
                                                     : "another change came first",
                     request->deadline_ms);
        if (request->op == SK_OP_RESTORE)
            restore_undo(self, request, rc, &d);
        else
            answer_error(self, request, rc, &d);
        break;
    case STAGE_SUPERVISOR:
        observe_answer(self, request);
        break;
    case STAGE_PARTS:
        expire_parts(self, request);
        break;
    }
}

void sk_router_stop(struct sk_router *self)
{
    if (self->stop_by_us == UINT64_MAX)
        self->stop_by_us = now_us(self) + STOP_US;
}

static void answer_all_stopping(struct sk_router *self)
{
    struct sk_diag d = {0};
    enum sk_err rc = sk_fail(&d, SK_ERR_UNAVAILABLE,
                             "the node is stopping; the outcome of a write is unknown");
    while (self->requests != NULL)
        answer_error(self, self->requests, rc, &d);
}

uint64_t sk_router_on_time(struct sk_router *self)
{
    uint64_t now = now_us(self);
    if (now >= self->stop_by_us)
        answer_all_stopping(self);
    if (now >= self->map_next_us) /* no answer, or time to look whether a hint was lost */
        ask_map(self);
    for (struct request *request = flight_due(self, now); request != NULL;
         request = flight_due(self, now)) {
        if (now >= request->deadline_us)
            request_expire(self, request);
        else if (request->stage == STAGE_SUPERVISOR)
            observe_answer(self, request);
        else if (request->stage == STAGE_PARTS)
            request_wake_at(self, request, request_resend(self, request, now));
        else
            request_wake_at(self, request, request->deadline_us);
    }
    uint64_t next = flight_next_us(self);
    if (self->stop_by_us > now && self->stop_by_us < next)
        next = self->stop_by_us;
    return next < self->map_next_us ? next : self->map_next_us;
}

/* ---- what the shell sees ---- */

const struct sk_map *sk_router_get_map(const struct sk_router *self)
{
    return &self->map;
}

void sk_router_get_status(const struct sk_router *self, struct sk_router_status *out)
{
    bool is_named[SK_WORKERS_MAX] = {false};
    *out = self->status;
    out->is_ready = self->map.version != 0;
    out->is_stopped = self->stop_by_us != UINT64_MAX && self->request_count == 0;
    out->map_version = self->map.version;
    out->requests_in_flight = self->request_count;
    out->bytes_in_flight = self->bytes;
    for (uint32_t c = 0; c < self->map.collection_count; c++)
        for (uint32_t s = 0; s < self->map.collections[c].schema.shard_count; s++)
            is_named[self->map.collections[c].workers[s]] = true;
    for (unsigned w = 0; w < SK_WORKERS_MAX; w++) {
        out->workers_wanted += is_named[w];
        out->workers_up += is_named[w] && self->workers[w].is_up;
    }
}
