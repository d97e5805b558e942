/* Sockets of a reactor: what all of them share, and those of ZeroMQ (tcp doors, PUB, SUB). ipc doors and
 * links are our own (ipc.c). Every option of ZeroMQ is set explicitly (research: a ROUTER without MANDATORY
 * drops silently, with HANDOVER a peer may take another's routing id, MAXMSGSIZE is per part). */
#include "common/shell/internal.h"
#include "common/shell/keys.h"
#include "common/shell/log.h"
#include "common/shell/zap.h"

#include <errno.h>
#include <stdlib.h>

enum {
    LINK_QUEUE = 1000,        /* messages a direction of a publisher or subscriber */
    CLIENT_SEND_QUEUE = 1000, /* replies that wait for a client that does not read */
    CLIENT_RECEIVE_QUEUE = 64,
    LINK_BYTES_MAX = SK_FRAME_BYTES_MAX + (2 << 20), /* a client's frame with its header */
    CLIENT_BYTES_MAX = SK_FRAME_BYTES_MAX + (1 << 20), /* a little over gets words, more is cut off */
    HANDSHAKE_MS = 10000,
    TCP_HEARTBEAT_MS = 15000,
    TCP_HEARTBEAT_TIMEOUT_MS = 45000,
    RECONNECT_MS = 20,
    RECONNECT_MS_MAX = 500,
    BACKLOG = 1024,
    SUBSCRIPTION_BYTES_MAX = 4096,
    ZAP_ENFORCE_DOMAIN = 93, /* ZMQ_ZAP_ENFORCE_DOMAIN, behind the draft macro in 4.3.4 */
};

/* ---- making ---- */

static bool is_ipc(const char *endpoint)
{
    return strncmp(endpoint, "ipc://", 6) == 0;
}

size_t sk_socket_bytes_max(const struct sk_reactor_door *door)
{
    return door->message_bytes_max != 0 ? door->message_bytes_max
           : door->takes_clients        ? CLIENT_BYTES_MAX
                                        : LINK_BYTES_MAX;
}

enum sk_err sk_socket_make(struct sk_socket **out, struct sk_reactor *reactor,
                           enum sk_socket_kind kind, struct sk_diag *d)
{
    *out = NULL;
    if (reactor->socket_count == SK_SOCKETS_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE, "over %d sockets in one process", SK_SOCKETS_MAX);
    struct sk_socket *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a socket");
    self->reactor = reactor;
    self->kind = kind;
    self->source.fd = -1;
    self->retry_us = UINT64_MAX;
    self->bytes_max = LINK_BYTES_MAX;
    *out = self;
    return SK_ERR_OK;
}

void sk_socket_close(struct sk_socket *self)
{
    sk_loop_remove(&self->reactor->loop, &self->source);
    sk_loop_remove(&self->reactor->loop, &self->monitor_source);
    if (self->zsock == NULL)
        sk_ipc_close(self);
    if (self->monitor != NULL)
        (void)zmq_socket_monitor(self->raw, NULL, 0);
    zsock_destroy(&self->monitor);
    zsock_destroy(&self->zsock);
    free(self);
}

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

static int fd_of(void *raw)
{
    int fd = -1;
    size_t size = sizeof fd;
    SK_CHECK(zmq_getsockopt(raw, ZMQ_FD, &fd, &size) == 0);
    return fd;
}

/* A socket of ZeroMQ, not yet watched. On failure self is closed. */
static enum sk_err open_zmq(struct sk_socket *self, int type, struct sk_diag *d)
{
    self->zsock = zsock_new(type);
    if (self->zsock != NULL) {
        self->raw = zsock_resolve(self->zsock);
        return SK_ERR_OK;
    }
    enum sk_err rc =
        sk_fail(d, SK_ERR_UNAVAILABLE, "cannot make a socket: %s", zmq_strerror(errno));
    sk_socket_close(self);
    return rc;
}

/* Its fd fires once when something has come after the socket was found empty, so that it must be read to
 * the end, or be marked as dirty. */
static void on_fd(void *arg, uint32_t events)
{
    struct sk_socket *self = arg;
    (void)events;
    self->is_dirty = true;
}

static enum sk_err socket_ready(struct sk_socket *self, struct sk_diag *d)
{
    struct sk_reactor *reactor = self->reactor;
    if (self->zsock != NULL) {
        self->source = (struct sk_source){.fd = fd_of(self->raw), .fn = on_fd, .arg = self};
        self->is_dirty = true;
        if (!sk_loop_add(&reactor->loop, &self->source, EPOLLIN)) {
            sk_socket_close(self);
            return sk_fail(d, SK_ERR_NOMEM, "cannot watch a socket");
        }
    }
    reactor->sockets[reactor->socket_count++] = self;
    return SK_ERR_OK;
}

enum sk_err sk_bind_failed(struct sk_diag *d, const char *endpoint, int reason)
{
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

/* ---- links, subscribers, publishers ---- */

void sk_socket_is_up(struct sk_socket *self)
{
    struct sk_reactor *reactor = self->reactor;
    if (self->on_up != NULL)
        self->on_up(self->on_up_arg);
    if (reactor->core.on_connected != NULL)
        reactor->core.on_connected(reactor->core.core, self->peer);
}

/* Tells when the connection of a subscriber has shaken hands. */
static void on_monitor(void *arg, uint32_t events)
{
    struct sk_socket *self = arg;
    uint16_t event = 0;
    zmq_msg_t part;
    (void)events;
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, zsock_resolve(self->monitor), ZMQ_DONTWAIT) >= 0) {
        if (zmq_msg_more(&part) && zmq_msg_size(&part) >= sizeof event)
            memcpy(&event, zmq_msg_data(&part), sizeof event);
        if (!zmq_msg_more(&part) && event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
            sk_socket_is_up(self);
    }
    zmq_msg_close(&part);
    self->is_dirty = true;
}

static bool monitor_start(struct sk_socket *self)
{
    static unsigned number; /* a name is free again only some time after its socket is closed */
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://sk-monitor-%u", number++);
    if (zmq_socket_monitor(self->raw, endpoint, ZMQ_EVENT_HANDSHAKE_SUCCEEDED) != 0)
        return false;
    self->monitor = zsock_new(ZMQ_PAIR);
    if (self->monitor == NULL || zsock_connect(self->monitor, "%s", endpoint) != 0)
        return false;
    self->monitor_source = (struct sk_source){
        .fd = fd_of(zsock_resolve(self->monitor)), .fn = on_monitor, .arg = self};
    return sk_loop_add(&self->reactor->loop, &self->monitor_source, EPOLLIN);
}

enum sk_err sk_reactor_connect(struct sk_reactor *reactor, sk_peer peer, const char *endpoint,
                               const char *routing_id, struct sk_diag *d)
{
    struct sk_socket *self;
    SK_CHECK(peer < SK_PEER_FIRST_CLIENT && strlen(routing_id) <= SK_ROUTING_ID_BYTES_MAX);
    SK_CHECK(is_ipc(endpoint)); /* the processes of a node are on one machine */
    enum sk_err rc = sk_socket_make(&self, reactor, SK_SOCKET_LINK, d);
    if (rc != SK_ERR_OK)
        return rc;
    self->peer = peer;
    snprintf(self->routing_id, sizeof self->routing_id, "%s%s%s", routing_id,
             reactor->token[0] != '\0' ? "." : "", reactor->token);
    rc = sk_ipc_connect(self, endpoint, d);
    if (rc == SK_ERR_OK)
        return socket_ready(self, d);
    sk_socket_close(self);
    return rc;
}

enum sk_err sk_reactor_subscribe(struct sk_reactor *reactor, sk_peer peer, const char *endpoint,
                                 struct sk_diag *d)
{
    struct sk_socket *self;
    SK_CHECK(peer < SK_PEER_FIRST_CLIENT);
    enum sk_err rc = sk_socket_make(&self, reactor, SK_SOCKET_SUBSCRIBER, d);
    if (rc == SK_ERR_OK)
        rc = open_zmq(self, ZMQ_SUB, d);
    if (rc != SK_ERR_OK)
        return rc;
    set_common(self->raw, LINK_QUEUE, LINK_QUEUE, LINK_BYTES_MAX);
    zmq_setsockopt(self->raw, ZMQ_SUBSCRIBE, "", 0);
    self->peer = peer;
    if (monitor_start(self) && zmq_connect(self->raw, endpoint) == 0)
        return socket_ready(self, d);
    rc = sk_fail(d, SK_ERR_UNAVAILABLE, "cannot connect to %s: %s", endpoint, zmq_strerror(errno));
    sk_socket_close(self);
    return rc;
}

enum sk_err sk_reactor_bind_publisher(struct sk_reactor *reactor, sk_peer peer,
                                      const char *endpoint, struct sk_diag *d)
{
    struct sk_socket *self;
    SK_CHECK(peer < SK_PEER_FIRST_CLIENT);
    enum sk_err rc = sk_socket_make(&self, reactor, SK_SOCKET_PUBLISHER, d);
    if (rc == SK_ERR_OK)
        rc = open_zmq(self, ZMQ_PUB, d);
    if (rc != SK_ERR_OK)
        return rc;
    set_common(self->raw, LINK_QUEUE, LINK_QUEUE, SUBSCRIPTION_BYTES_MAX);
    self->peer = peer;
    if (zmq_bind(self->raw, endpoint) != 0) {
        rc = sk_bind_failed(d, endpoint, errno);
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
    int receive_queue =
        door->receive_queue_max != 0 ? door->receive_queue_max : CLIENT_RECEIVE_QUEUE;
    SK_CHECK(door->link_count == 0); /* processes of a node meet on ipc */
    set_common(self->raw, CLIENT_SEND_QUEUE, receive_queue, self->bytes_max);
    set_int(self->raw, ZMQ_ROUTER_MANDATORY, 1);
    set_int(self->raw, ZMQ_ROUTER_HANDOVER, 0); /* nobody may take the mail of another */
    set_int(self->raw, ZMQ_IPV6, strchr(door->endpoint, '[') != NULL);
    set_int(self->raw, ZMQ_HEARTBEAT_IVL, TCP_HEARTBEAT_MS);
    set_int(self->raw, ZMQ_HEARTBEAT_TIMEOUT, TCP_HEARTBEAT_TIMEOUT_MS);
    set_int(self->raw, ZMQ_HEARTBEAT_TTL, TCP_HEARTBEAT_TIMEOUT_MS);
    if (door->keys != NULL) {
        SK_CHECK(door->zap != NULL);
        set_int(self->raw, ZMQ_CURVE_SERVER, 1);
        zmq_setsockopt(self->raw, ZMQ_CURVE_PUBLICKEY, door->keys->public_key, SK_KEY_TEXT_BYTES);
        zmq_setsockopt(self->raw, ZMQ_CURVE_SECRETKEY, door->keys->secret_key, SK_KEY_TEXT_BYTES);
        zmq_setsockopt(self->raw, ZMQ_ZAP_DOMAIN, "skerry", 6);
        set_int(self->raw, ZAP_ENFORCE_DOMAIN, 1); /* closed where there is no handler */
    }
}

static enum sk_err bind_tcp(struct sk_socket *self, char *endpoint, size_t size, struct sk_diag *d)
{
    const char *wanted = self->door.endpoint;
    set_door(self);
    if (zmq_bind(self->raw, wanted) != 0)
        return sk_bind_failed(d, wanted, errno);
    zmq_getsockopt(self->raw, ZMQ_LAST_ENDPOINT, endpoint, &size);
    return SK_ERR_OK;
}

enum sk_err sk_reactor_bind(struct sk_reactor *reactor, const struct sk_reactor_door *door,
                            char *bound, size_t bound_size, struct sk_diag *d)
{
    char endpoint[512] = "";
    struct sk_socket *self;
    enum sk_err rc = sk_socket_make(&self, reactor, SK_SOCKET_DOOR, d);
    if (rc != SK_ERR_OK)
        return rc;
    self->door = *door;
    self->bytes_max = sk_socket_bytes_max(door);
    if (is_ipc(door->endpoint)) {
        SK_CHECK(door->keys == NULL); /* who may open the socket's file decides */
        snprintf(endpoint, sizeof endpoint, "%s", door->endpoint);
        rc = sk_ipc_bind(self, door->endpoint, d);
    } else {
        rc = open_zmq(self, ZMQ_ROUTER, d);
        if (rc != SK_ERR_OK)
            return rc;
        rc = bind_tcp(self, endpoint, sizeof endpoint, d);
    }
    if (rc != SK_ERR_OK) {
        sk_socket_close(self);
        return rc;
    }
    if (bound != NULL)
        snprintf(bound, bound_size, "%s", endpoint);
    return socket_ready(self, d);
}

/* ---- sending ---- */

static void count_drop(struct sk_reactor *reactor)
{
    if (errno == EHOSTUNREACH)
        reactor->counters.dropped_gone++;
    else
        reactor->counters.dropped_slow++;
}

/* The core hears of it when its handler has returned. Once a turn is enough; where there are too many
 * for the list, the next send tells again. */
void sk_link_gone(struct sk_reactor *reactor, sk_peer peer)
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
        count_drop(reactor);
        zmq_msg_close(&body);
        return;
    }
    reactor->counters.sent++;
}

static uint64_t serial_of(zmq_msg_t *routing_id)
{
    uint64_t serial = 0;
    SK_CHECK(zmq_msg_size(routing_id) == sizeof serial);
    memcpy(&serial, zmq_msg_data(routing_id), sizeof serial);
    return serial;
}

static void send_to_client(struct sk_reactor *reactor, sk_peer to, const struct sk_span *parts,
                           unsigned part_count)
{
    struct sk_return *entry = sk_returns_take(&reactor->returns, to);
    if (entry == NULL) {
        reactor->counters.dropped_unknown++;
        return;
    }
    struct sk_socket *socket = entry->socket;
    void *raw = socket->raw;
    if (raw == NULL) {
        sk_ipc_send_to_client(reactor, serial_of(&entry->routing_id), entry->has_delimiter, parts,
                              part_count);
        sk_returns_free(&reactor->returns, entry);
        return;
    }
    socket->is_dirty = true;
    if (zmq_msg_send(&entry->routing_id, raw, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        count_drop(reactor);
    else if (entry->has_delimiter && zmq_send(raw, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        count_drop(reactor);
    else
        send_body(reactor, raw, parts, part_count);
    sk_returns_free(&reactor->returns, entry);
}

static bool is_of(const struct sk_socket *self, sk_peer peer)
{
    if (self->kind == SK_SOCKET_DOOR)
        return sk_door_has_peer(&self->door, peer);
    return self->kind != SK_SOCKET_SUBSCRIBER && self->peer == peer;
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
        if (!is_of(self, to))
            continue;
        if (self->zsock == NULL)
            sk_ipc_send(self, to, parts, part_count);
        else
            send_body(reactor, self->raw, parts, part_count); /* a publisher */
        return;
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

static void arrived(struct sk_socket *self, struct incoming *in)
{
    struct sk_arrival arrival = {.socket = self,
                                 .routing_id = &in->routing_id,
                                 .parts = {span_of(&in->parts[0]), span_of(&in->parts[1])},
                                 .part_count = in->part_count};
    if (self->kind != SK_SOCKET_DOOR) {
        sk_link_arrived(self, self->peer, &arrival);
    } else if (in->part_count == 0) {
        self->reactor->counters.dropped_unknown++;
    } else if (self->door.takes_clients) {
        arrival.user = self->door.keys != NULL ? zmq_msg_gets(&in->parts[0], "User-Id") : NULL;
        sk_client_arrived(&arrival);
    } else {
        self->reactor->counters.dropped_unknown++;
    }
}

/* True: there may be more. A bad peer never stops the loop; only a signal does. */
static bool drain(struct sk_socket *self)
{
    struct sk_reactor *reactor = self->reactor;
    for (unsigned i = 0; i < reactor->drain_max && !reactor->is_stopped; i++) {
        struct incoming in;
        bool is_there = receive(self, &in);
        if (is_there)
            arrived(self, &in);
        incoming_close(&in);
        if (!is_there)
            return false;
    }
    return true;
}

void sk_sockets_look(struct sk_reactor *reactor)
{
    for (unsigned i = 0; i < reactor->socket_count; i++) {
        struct sk_socket *self = reactor->sockets[i];
        if (!self->is_dirty || self->kind == SK_SOCKET_PUBLISHER)
            continue;
        self->is_dirty = false;
        if (drain(self))
            self->is_dirty = true;
    }
}

bool sk_sockets_are_dirty(const struct sk_reactor *reactor)
{
    for (unsigned i = 0; i < reactor->socket_count; i++)
        if (reactor->sockets[i]->is_dirty && reactor->sockets[i]->kind != SK_SOCKET_PUBLISHER)
            return true;
    return false;
}
