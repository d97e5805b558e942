/* Sockets of a reactor, every option set explicitly (research: a ROUTER without MANDATORY drops
 * silently, with HANDOVER a peer may take another's routing id, MAXMSGSIZE is per part). */
#include "common/shell/internal.h"
#include "common/shell/keys.h"
#include "common/shell/log.h"
#include "common/shell/zap.h"
#include "proto/reply.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum {
    LINK_QUEUE = 1000,        /* messages a direction of a link */
    CLIENT_SEND_QUEUE = 1000, /* replies that wait for a client that does not read */
    CLIENT_RECEIVE_QUEUE = 64,
    CLIENT_OPEN_MAX = 512,
    LINK_BYTES_MAX = SK_FRAME_BYTES_MAX + (2 << 20), /* a client's frame with its header */
    CLIENT_BYTES_MAX = SK_FRAME_BYTES_MAX + (1 << 20), /* a little over gets words, more is cut off */
    HANDSHAKE_MS = 10000,
    TCP_HEARTBEAT_MS = 15000,
    TCP_HEARTBEAT_TIMEOUT_MS = 45000,
    RECONNECT_MS = 20,
    RECONNECT_MS_MAX = 500,
    BACKLOG = 1024,
    ROUTING_ID_BYTES_MAX = 64,
    SUBSCRIPTION_BYTES_MAX = 4096,
    ZAP_ENFORCE_DOMAIN = 93, /* ZMQ_ZAP_ENFORCE_DOMAIN, behind the draft macro in 4.3.4 */
};

/* ---- making ---- */

static void set_int(void *raw, int option, int value)
{
    SK_CHECK(zmq_setsockopt(raw, option, &value, sizeof value) == 0);
}

static void set_common(void *raw, int send_queue, int receive_queue, size_t bytes_max)
{
    int64_t size_max = (int64_t)bytes_max;
    set_int(raw, ZMQ_LINGER, 0);
    set_int(raw, ZMQ_SNDTIMEO, 0);
    set_int(raw, ZMQ_RCVTIMEO, 0);
    set_int(raw, ZMQ_SNDHWM, send_queue);
    set_int(raw, ZMQ_RCVHWM, receive_queue);
    set_int(raw, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
    set_int(raw, ZMQ_BACKLOG, BACKLOG);
    set_int(raw, ZMQ_RECONNECT_IVL, RECONNECT_MS);
    set_int(raw, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MS_MAX);
    SK_CHECK(zmq_setsockopt(raw, ZMQ_MAXMSGSIZE, &size_max, sizeof size_max) == 0);
}

static struct sk_socket *socket_new(struct sk_reactor *reactor, enum sk_socket_kind kind, int type,
                                    struct sk_diag *d)
{
    if (reactor->socket_count == SK_SOCKETS_MAX) {
        (void)sk_fail(d, SK_ERR_TOO_LARGE, "over %d sockets in one process", SK_SOCKETS_MAX);
        return NULL;
    }
    struct sk_socket *self = calloc(1, sizeof *self);
    zsock_t *zsock = self == NULL ? NULL : zsock_new(type);
    if (zsock == NULL) {
        free(self);
        (void)sk_fail(d, SK_ERR_UNAVAILABLE, "cannot make a socket: %s", zmq_strerror(errno));
        return NULL;
    }
    self->reactor = reactor;
    self->kind = kind;
    self->zsock = zsock;
    self->raw = zsock_resolve(zsock);
    return self;
}

void sk_socket_close(struct sk_socket *self)
{
    if (self->monitor != NULL)
        (void)zmq_socket_monitor(self->raw, NULL, 0);
    zsock_destroy(&self->monitor);
    zsock_destroy(&self->zsock);
    free(self);
}

static int on_readable(zloop_t *loop, zsock_t *zsock, void *arg);

static enum sk_err socket_ready(struct sk_socket *self, struct sk_diag *d)
{
    struct sk_reactor *reactor = self->reactor;
    if (zloop_reader(reactor->loop, self->zsock, on_readable, self) != 0) {
        sk_socket_close(self);
        return sk_fail(d, SK_ERR_NOMEM, "cannot watch a socket");
    }
    zloop_reader_set_tolerant(reactor->loop, self->zsock);
    reactor->sockets[reactor->socket_count++] = self;
    return SK_ERR_OK;
}

static enum sk_err bind_failed(struct sk_diag *d, const char *endpoint)
{
    int reason = errno;
    if (reason == EADDRINUSE)
        return sk_fail(d, SK_ERR_UNAVAILABLE,
                       "%s is in use by another program: stop it, or choose another port (0 takes "
                       "a free one)",
                       endpoint);
    if (reason == ENODEV || reason == EADDRNOTAVAIL || reason == EINVAL)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "%s: not an address of this machine", endpoint);
    return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot listen at %s: %s", endpoint,
                   zmq_strerror(reason));
}

/* ---- links and publishers ---- */

/* Tells when a connection of ours has shaken hands. */
static int on_monitor(zloop_t *loop, zsock_t *monitor, void *arg)
{
    struct sk_socket *self = arg;
    struct sk_reactor *reactor = self->reactor;
    uint16_t event = 0;
    zmq_msg_t part;
    (void)loop;
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, zsock_resolve(monitor), ZMQ_DONTWAIT) >= 0) {
        if (zmq_msg_more(&part) && zmq_msg_size(&part) >= sizeof event)
            memcpy(&event, zmq_msg_data(&part), sizeof event);
        if (zmq_msg_more(&part) || event != ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
            continue;
        (void)zsock_events(self->zsock); /* lets the socket see its new pipe before we send */
        if (self->on_up != NULL)
            self->on_up(self->on_up_arg);
        if (reactor->core.on_connected != NULL)
            reactor->core.on_connected(reactor->core.core, self->peer);
    }
    zmq_msg_close(&part);
    return sk_reactor_turn(reactor);
}

static bool monitor_start(struct sk_socket *self)
{
    static unsigned number; /* a name is free again only some time after its socket is closed */
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://sk-monitor-%u", number++);
    if (zmq_socket_monitor(self->raw, endpoint, ZMQ_EVENT_HANDSHAKE_SUCCEEDED) != 0)
        return false;
    self->monitor = zsock_new(ZMQ_PAIR);
    if (self->monitor == NULL || zsock_connect(self->monitor, "%s", endpoint) != 0 ||
        zloop_reader(self->reactor->loop, self->monitor, on_monitor, self) != 0)
        return false;
    zloop_reader_set_tolerant(self->reactor->loop, self->monitor);
    return true;
}

static enum sk_err connect_to(struct sk_socket *self, const char *endpoint, struct sk_diag *d)
{
    if (monitor_start(self) && zmq_connect(self->raw, endpoint) == 0)
        return socket_ready(self, d);
    enum sk_err rc = sk_fail(d, SK_ERR_UNAVAILABLE, "cannot connect to %s: %s", endpoint,
                             zmq_strerror(errno));
    sk_socket_close(self);
    return rc;
}

enum sk_err sk_reactor_connect(struct sk_reactor *reactor, sk_peer peer, const char *endpoint,
                               const char *routing_id, struct sk_diag *d)
{
    SK_CHECK(peer < SK_PEER_FIRST_CLIENT && strlen(routing_id) <= ROUTING_ID_BYTES_MAX);
    struct sk_socket *self = socket_new(reactor, SK_SOCKET_LINK, ZMQ_DEALER, d);
    if (self == NULL)
        return SK_ERR_UNAVAILABLE;
    set_common(self->raw, LINK_QUEUE, LINK_QUEUE, LINK_BYTES_MAX);
    set_int(self->raw, ZMQ_IMMEDIATE, 1); /* nothing is kept for a peer that is not there */
    zmq_setsockopt(self->raw, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
    self->peer = peer;
    return connect_to(self, endpoint, d);
}

enum sk_err sk_reactor_subscribe(struct sk_reactor *reactor, sk_peer peer, const char *endpoint,
                                 struct sk_diag *d)
{
    SK_CHECK(peer < SK_PEER_FIRST_CLIENT);
    struct sk_socket *self = socket_new(reactor, SK_SOCKET_SUBSCRIBER, ZMQ_SUB, d);
    if (self == NULL)
        return SK_ERR_UNAVAILABLE;
    set_common(self->raw, LINK_QUEUE, LINK_QUEUE, LINK_BYTES_MAX);
    zmq_setsockopt(self->raw, ZMQ_SUBSCRIBE, "", 0);
    self->peer = peer;
    return connect_to(self, endpoint, d);
}

enum sk_err sk_reactor_bind_publisher(struct sk_reactor *reactor, sk_peer peer,
                                      const char *endpoint, struct sk_diag *d)
{
    SK_CHECK(peer < SK_PEER_FIRST_CLIENT);
    struct sk_socket *self = socket_new(reactor, SK_SOCKET_PUBLISHER, ZMQ_PUB, d);
    if (self == NULL)
        return SK_ERR_UNAVAILABLE;
    set_common(self->raw, LINK_QUEUE, LINK_QUEUE, SUBSCRIPTION_BYTES_MAX);
    self->peer = peer;
    if (zmq_bind(self->raw, endpoint) != 0) {
        enum sk_err rc = bind_failed(d, endpoint);
        sk_socket_close(self);
        return rc;
    }
    /* Nothing to read from: it need not be watched. */
    reactor->sockets[reactor->socket_count++] = self;
    return SK_ERR_OK;
}

/* ---- doors ---- */

static void set_door(struct sk_socket *self)
{
    const struct sk_reactor_door *door = &self->door;
    bool is_tcp = strncmp(door->endpoint, "tcp:", 4) == 0;
    int receive_queue = door->receive_queue_max != 0 ? door->receive_queue_max
                        : door->takes_clients        ? CLIENT_RECEIVE_QUEUE
                                                     : LINK_QUEUE;
    size_t bytes_max = door->message_bytes_max != 0 ? door->message_bytes_max
                       : door->takes_clients        ? CLIENT_BYTES_MAX
                                                    : LINK_BYTES_MAX;
    set_common(self->raw, CLIENT_SEND_QUEUE, receive_queue, bytes_max);
    set_int(self->raw, ZMQ_ROUTER_MANDATORY, 1);
    /* A process that was started again takes its routing id over. Clients name no ids; where only they
     * come in, nobody may take the mail of another. */
    set_int(self->raw, ZMQ_ROUTER_HANDOVER, door->link_count > 0);
    set_int(self->raw, ZMQ_IPV6, is_tcp && strchr(door->endpoint, '[') != NULL);
    if (is_tcp) {
        set_int(self->raw, ZMQ_HEARTBEAT_IVL, TCP_HEARTBEAT_MS);
        set_int(self->raw, ZMQ_HEARTBEAT_TIMEOUT, TCP_HEARTBEAT_TIMEOUT_MS);
        set_int(self->raw, ZMQ_HEARTBEAT_TTL, TCP_HEARTBEAT_TIMEOUT_MS);
    }
    if (door->keys != NULL) {
        SK_CHECK(door->zap != NULL);
        set_int(self->raw, ZMQ_CURVE_SERVER, 1);
        zmq_setsockopt(self->raw, ZMQ_CURVE_PUBLICKEY, door->keys->public_key, SK_KEY_TEXT_BYTES);
        zmq_setsockopt(self->raw, ZMQ_CURVE_SECRETKEY, door->keys->secret_key, SK_KEY_TEXT_BYTES);
        zmq_setsockopt(self->raw, ZMQ_ZAP_DOMAIN, "skerry", 6);
        set_int(self->raw, ZAP_ENFORCE_DOMAIN, 1); /* closed where there is no handler */
    }
}

enum sk_err sk_reactor_bind(struct sk_reactor *reactor, const struct sk_reactor_door *door,
                            char *bound, size_t bound_size, struct sk_diag *d)
{
    char endpoint[512] = "";
    size_t size = sizeof endpoint;
    struct sk_socket *self = socket_new(reactor, SK_SOCKET_DOOR, ZMQ_ROUTER, d);
    if (self == NULL)
        return SK_ERR_UNAVAILABLE;
    self->door = *door;
    set_door(self);
    if (zmq_bind(self->raw, door->endpoint) != 0) {
        enum sk_err rc = bind_failed(d, door->endpoint);
        sk_socket_close(self);
        return rc;
    }
    zmq_getsockopt(self->raw, ZMQ_LAST_ENDPOINT, endpoint, &size);
    if (bound != NULL)
        snprintf(bound, bound_size, "%s", endpoint);
    return socket_ready(self, d);
}

/* ---- sending ---- */

/* true: nobody is there. */
static bool count_drop(struct sk_reactor *reactor)
{
    bool is_gone = errno == EHOSTUNREACH;
    if (is_gone)
        reactor->counters.dropped_gone++;
    else
        reactor->counters.dropped_slow++;
    return is_gone;
}

/* The core hears of it when its handler has returned. Once a turn is enough; where there are too many
 * for the list, the next send tells again. */
static void link_gone(struct sk_reactor *reactor, sk_peer peer)
{
    for (unsigned i = 0; i < reactor->gone_count; i++)
        if (reactor->gone[i] == peer)
            return;
    if (reactor->gone_count < SK_GONE_MAX)
        reactor->gone[reactor->gone_count++] = peer;
}

/* The parts as the last part of a message. */
static void send_body(struct sk_reactor *reactor, void *raw, const struct sk_span *parts,
                      unsigned part_count)
{
    size_t size = 0;
    zmq_msg_t body;
    for (unsigned i = 0; i < part_count; i++)
        size += parts[i].size;
    if (zmq_msg_init_size(&body, size) != 0) {
        zmq_msg_init(&body); /* an empty one ends the message; the peer takes it for malformed */
        parts = NULL, part_count = 0;
    }
    uint8_t *at = zmq_msg_data(&body);
    for (unsigned i = 0; i < part_count; i++) {
        if (parts[i].size > 0)
            memcpy(at, parts[i].bytes, parts[i].size);
        at += parts[i].size;
    }
    if (zmq_msg_send(&body, raw, ZMQ_DONTWAIT) < 0) {
        (void)count_drop(reactor);
        zmq_msg_close(&body);
        return;
    }
    reactor->counters.sent++;
}

static void send_to_client(struct sk_reactor *reactor, sk_peer to, const struct sk_span *parts,
                           unsigned part_count)
{
    struct sk_return *entry = sk_returns_take(&reactor->returns, to);
    if (entry == NULL) {
        reactor->counters.dropped_unknown++;
        return;
    }
    void *raw = entry->socket->raw;
    if (zmq_msg_send(&entry->routing_id, raw, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        (void)count_drop(reactor);
    else if (entry->has_delimiter && zmq_send(raw, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        (void)count_drop(reactor);
    else
        send_body(reactor, raw, parts, part_count);
    sk_returns_free(&reactor->returns, entry);
}

/* The link of a door that a peer belongs to; writes its routing id. */
static bool door_has_peer(const struct sk_reactor_door *door, sk_peer peer,
                          char id[ROUTING_ID_BYTES_MAX + 12])
{
    for (unsigned i = 0; i < door->link_count; i++) {
        const struct sk_reactor_link *link = &door->links[i];
        if (link->count == 0 && peer == link->first_peer)
            snprintf(id, ROUTING_ID_BYTES_MAX + 12, "%s", link->routing_id);
        else if (peer >= link->first_peer && peer - link->first_peer < link->count)
            snprintf(id, ROUTING_ID_BYTES_MAX + 12, "%s-%" PRIu32, link->routing_id,
                     peer - link->first_peer);
        else
            continue;
        return true;
    }
    return false;
}

void sk_socket_send(struct sk_reactor *reactor, sk_peer to, const struct sk_span *parts,
                    unsigned part_count)
{
    if (to >= SK_PEER_FIRST_CLIENT) {
        send_to_client(reactor, to, parts, part_count);
        return;
    }
    for (unsigned i = 0; i < reactor->socket_count; i++) {
        struct sk_socket *self = reactor->sockets[i];
        char id[ROUTING_ID_BYTES_MAX + 12];
        if (self->kind == SK_SOCKET_DOOR) {
            if (!door_has_peer(&self->door, to, id))
                continue;
            if (zmq_send(self->raw, id, strlen(id), ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0)
                send_body(reactor, self->raw, parts, part_count);
            else if (count_drop(reactor))
                link_gone(reactor, to);
            return;
        }
        if (self->peer == to && self->kind != SK_SOCKET_SUBSCRIBER) {
            send_body(reactor, self->raw, parts, part_count);
            return;
        }
    }
    reactor->counters.dropped_unknown++;
}

/* ---- receiving ---- */

/* What came in one message behind its routing id. */
struct incoming {
    zmq_msg_t routing_id; /* empty where the socket has none */
    zmq_msg_t parts[2];
    unsigned part_count; /* how many there were: more than two are not kept */
};

static void incoming_close(struct incoming *self)
{
    zmq_msg_close(&self->routing_id);
    zmq_msg_close(&self->parts[0]);
    zmq_msg_close(&self->parts[1]);
}

/* false: nothing there. */
static bool receive(struct sk_socket *self, struct incoming *in)
{
    zmq_msg_init(&in->routing_id);
    zmq_msg_init(&in->parts[0]);
    zmq_msg_init(&in->parts[1]);
    in->part_count = 0;
    bool has_more = true;
    if (self->kind == SK_SOCKET_DOOR) {
        if (zmq_msg_recv(&in->routing_id, self->raw, ZMQ_DONTWAIT) < 0)
            return false;
        has_more = zmq_msg_more(&in->routing_id) != 0;
    }
    while (has_more) {
        zmq_msg_t rest, *part = in->part_count < 2 ? &in->parts[in->part_count] : &rest;
        if (part == &rest)
            zmq_msg_init(&rest);
        bool is_there = zmq_msg_recv(part, self->raw, ZMQ_DONTWAIT) >= 0;
        has_more = is_there && zmq_msg_more(part) != 0;
        if (part == &rest)
            zmq_msg_close(&rest);
        if (!is_there)
            break; /* a link without a message; the parts of one always come together */
        in->part_count++;
    }
    if (self->kind != SK_SOCKET_DOOR && in->part_count == 0)
        return false;
    self->reactor->counters.received++;
    return true;
}

static struct sk_span span_of(zmq_msg_t *part)
{
    return sk_span_of(zmq_msg_data(part), zmq_msg_size(part));
}

/* The peer of a routing id: "router", or "worker-7" with no more digits than needed. */
static bool peer_of(const struct sk_reactor_door *door, struct sk_span id, sk_peer *out)
{
    for (unsigned i = 0; i < door->link_count; i++) {
        const struct sk_reactor_link *link = &door->links[i];
        size_t prefix = strlen(link->routing_id);
        if (id.size < prefix || memcmp(id.bytes, link->routing_id, prefix) != 0)
            continue;
        *out = link->first_peer;
        if (link->count == 0 && id.size == prefix)
            return true;
        uint32_t number = 0;
        size_t at = prefix + 1;
        if (link->count == 0 || id.size < prefix + 2 || id.size > prefix + 6 || id.bytes[prefix] != '-')
            continue;
        while (at < id.size && id.bytes[at] >= '0' && id.bytes[at] <= '9')
            number = number * 10 + (uint32_t)(id.bytes[at++] - '0');
        bool is_plain = at == id.size && (id.bytes[prefix + 1] != '0' || id.size == prefix + 2);
        if (!is_plain || number >= link->count)
            continue;
        *out = link->first_peer + number;
        return true;
    }
    return false;
}

static void refuse(struct sk_reactor *reactor, sk_peer to, struct sk_span frame, enum sk_err code,
                   const struct sk_diag *d)
{
    struct sk_buffer reply = {0};
    struct sk_envelope envelope = {0};
    struct sk_diag ignored = {0};
    if (frame.bytes != NULL && sk_envelope_decode(&envelope, frame, &ignored) != SK_ERR_OK)
        envelope.op = SK_OP_NONE; /* its id, where there was one, is all that is wanted */
    sk_reply_error(&reply, &envelope.id, code, d);
    struct sk_span part = sk_buffer_span(&reply);
    if (!reply.is_broken)
        sk_socket_send(reactor, to, &part, 1);
    sk_buffer_deinit(&reply);
    reactor->counters.refused++;
}

static void on_client_message(struct sk_socket *self, struct incoming *in)
{
    struct sk_reactor *reactor = self->reactor;
    bool has_delimiter = in->part_count >= 2 && zmq_msg_size(&in->parts[0]) == 0;
    bool is_one_frame = in->part_count == 1 || (in->part_count == 2 && has_delimiter);
    struct sk_span frame = span_of(&in->parts[has_delimiter ? 1 : 0]);
    enum sk_role role = self->door.role;
    const char *key = "";
    if (self->door.keys != NULL) {
        const char *user = zmq_msg_gets(&in->parts[0], "User-Id");
        key = user == NULL ? "" : user;
        role = user == NULL ? SK_ROLE_NONE : sk_zap_role(self->door.zap, user);
    }
    uint32_t open_count = 0;
    sk_peer from = sk_returns_give(&reactor->returns, self, &in->routing_id, has_delimiter, &open_count);
    if (from == 0) { /* the core's own limit is lower, so this is rare: the client sees a deadline */
        reactor->counters.refused++;
        return;
    }
    if (!is_one_frame) {
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_INVALID, "a request is one frame, this one had %u",
                                 in->part_count);
        refuse(reactor, from, (struct sk_span){0}, rc, &d);
        return;
    }
    uint32_t open_max = self->door.client_open_max == 0 ? CLIENT_OPEN_MAX : self->door.client_open_max;
    if (open_count > open_max) { /* one that floods does not fill the queues of all */
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_BUSY, "%u requests of this connection are unanswered",
                                 open_max);
        refuse(reactor, from, frame, rc, &d);
        return;
    }
    if (reactor->core.on_client != NULL)
        reactor->core.on_client(reactor->core.core, from, role, key, frame);
    else
        refuse(reactor, from, frame, SK_ERR_UNAVAILABLE, NULL);
}

static void on_door_message(struct sk_socket *self, struct incoming *in)
{
    struct sk_reactor *reactor = self->reactor;
    sk_peer from;
    if (in->part_count == 0) {
        reactor->counters.dropped_unknown++;
    } else if (peer_of(&self->door, span_of(&in->routing_id), &from)) {
        if (in->part_count == 1 && reactor->core.on_message != NULL)
            reactor->core.on_message(reactor->core.core, from, span_of(&in->parts[0]));
        else
            reactor->counters.dropped_unknown++;
    } else if (self->door.takes_clients) {
        on_client_message(self, in);
    } else {
        reactor->counters.dropped_unknown++;
    }
}

static int on_readable(zloop_t *loop, zsock_t *zsock, void *arg)
{
    struct sk_socket *self = arg;
    struct sk_reactor *reactor = self->reactor;
    (void)loop;
    (void)zsock;
    for (unsigned i = 0; i < reactor->drain_max && !reactor->is_stopped; i++) {
        struct incoming in;
        bool is_there = receive(self, &in);
        if (is_there && self->kind == SK_SOCKET_DOOR)
            on_door_message(self, &in);
        else if (is_there && in.part_count == 1 && reactor->core.on_message != NULL)
            reactor->core.on_message(reactor->core.core, self->peer, span_of(&in.parts[0]));
        else if (is_there)
            reactor->counters.dropped_unknown++;
        incoming_close(&in);
        if (!is_there)
            break;
    }
    return sk_reactor_turn(reactor); /* a bad peer never stops the loop; only a signal does */
}
