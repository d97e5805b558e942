/* The DEALER socket and its monitor. */
#include "proto/client/connection.h"

#include <errno.h>
#include <stdio.h>
#include <zmq.h>

enum {
    /* Not the tries to connect: while a node is away they would pile up in an idle handle. */
    MONITORED_EVENTS = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                       ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                       ZMQ_EVENT_DISCONNECTED,
    HANDSHAKE_ENDS_MAX = 2, /* handshakes cut short before it is called a refusal */
};

/* ---- The socket ---- */

static void set_int(void *socket, int option, int value)
{
    /* Fails for a bad option or value only: a defect of ours. */
    SK_CHECK(zmq_setsockopt(socket, option, &value, sizeof value) == 0);
}

static int get_fd(void *socket)
{
    int fd = -1;
    size_t size = sizeof fd;
    return zmq_getsockopt(socket, ZMQ_FD, &fd, &size) == 0 ? fd : -1;
}

void sk_socket_close(struct skerry *self)
{
    if (self->socket != NULL)
        zmq_socket_monitor(self->socket, NULL, 0); /* sends to our end: that must be there still */
    if (self->monitor != NULL)
        zmq_close(self->monitor);
    if (self->socket != NULL)
        zmq_close(self->socket);
    self->monitor = self->socket = NULL;
    self->socket_fd = self->monitor_fd = -1;
    self->is_connected = false;
}

static enum skerry_code set_keys(struct skerry *self, struct skerry_error *error)
{
    if (!self->endpoint.is_curve)
        return SKERRY_OK;
    if (zmq_setsockopt(self->socket, ZMQ_CURVE_SERVERKEY, self->endpoint.server_key,
                       SK_Z85_KEY_CHARS + 1) != 0 ||
        zmq_setsockopt(self->socket, ZMQ_CURVE_PUBLICKEY, self->endpoint.public_key,
                       SK_Z85_KEY_CHARS + 1) != 0 ||
        zmq_setsockopt(self->socket, ZMQ_CURVE_SECRETKEY, self->endpoint.secret_key,
                       SK_Z85_KEY_CHARS + 1) != 0)
        return sk_client_fail(error, SKERRY_INVALID,
                              "the keys are not Curve keys of %d Z85 characters", SK_Z85_KEY_CHARS);
    return SKERRY_OK;
}

enum skerry_code sk_socket_open(struct skerry *self, struct skerry_error *error)
{
    char monitor_name[64];
    snprintf(monitor_name, sizeof monitor_name, "inproc://skerry-monitor-%u", ++self->generation);
    self->socket = zmq_socket(self->context, ZMQ_DEALER);
    if (self->socket == NULL)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no socket: %s", zmq_strerror(errno));
    set_int(self->socket, ZMQ_LINGER, 0);
    set_int(self->socket, ZMQ_IMMEDIATE, 1);
    set_int(self->socket, ZMQ_SNDHWM, 4096);
    set_int(self->socket, ZMQ_RCVHWM, 0); /* bounded by the requests in flight */
    set_int(self->socket, ZMQ_RECONNECT_IVL, 50);
    set_int(self->socket, ZMQ_RECONNECT_IVL_MAX, 1000);
    set_int(self->socket, ZMQ_HANDSHAKE_IVL, 10000);
    if (strncmp(self->endpoint.text, "tcp:", 4) == 0) {
        set_int(self->socket, ZMQ_IPV6, 1);
        set_int(self->socket, ZMQ_TCP_KEEPALIVE, 1);
        set_int(self->socket, ZMQ_HEARTBEAT_IVL,
                5000); /* a peer that lost its power says nothing */
        set_int(self->socket, ZMQ_HEARTBEAT_TIMEOUT, 20000);
    }
    enum skerry_code code = set_keys(self, error);
    if (code == SKERRY_OK && zmq_socket_monitor(self->socket, monitor_name, MONITORED_EVENTS) != 0)
        code = sk_client_fail(error, SKERRY_INTERNAL, "no monitor: %s", zmq_strerror(errno));
    if (code == SKERRY_OK) {
        self->monitor = zmq_socket(self->context, ZMQ_PAIR);
        if (self->monitor != NULL)
            set_int(self->monitor, ZMQ_RCVHWM,
                    0); /* an event that does not fit would stop libzmq */
        if (self->monitor == NULL || zmq_connect(self->monitor, monitor_name) != 0)
            code = sk_client_fail(error, SKERRY_INTERNAL, "no monitor: %s", zmq_strerror(errno));
    }
    if (code == SKERRY_OK && zmq_connect(self->socket, self->endpoint.text) != 0)
        code = sk_client_unreachable(error, SKERRY_INVALID, "cannot connect to '%s': %s",
                                     self->endpoint.text, zmq_strerror(errno));
    if (code == SKERRY_OK) {
        self->socket_fd = get_fd(self->socket);
        self->monitor_fd = get_fd(self->monitor);
        self->is_refused = false;
        self->handshakes_cut = 0;
    } else {
        sk_socket_close(self);
    }
    return code;
}

/* ---- What the monitor tells ---- */

static void refuse(struct skerry *self, const char *words)
{
    (void)sk_client_unreachable(&self->refusal, SKERRY_UNAUTHORIZED, "%s: %s", self->endpoint.text,
                                words);
    self->is_refused = true;
    self->refused_us = sk_client_now_us();
    self->is_connected = false;
    sk_pending_end_all(self, &self->refusal);
    sk_waiters_wake(self);
}

static void on_disconnected(struct skerry *self)
{
    if (!self->is_connected) {
        /* With CURVE a node that cannot open our first message just hangs up: that is what a wrong
         * server key looks like. Once can be a node that stops; libzmq tries again at once. */
        if (self->endpoint.is_curve && ++self->handshakes_cut >= HANDSHAKE_ENDS_MAX)
            refuse(self, "the node hung up in the handshake: the server key is probably not this "
                         "node's (its own is in run/node.json, member public_key)");
        return;
    }
    struct skerry_error error;
    (void)sk_client_unreachable(&error, SKERRY_UNAVAILABLE,
                                "the connection to %s was lost before the answer came; the outcome "
                                "of a write is unknown",
                                self->endpoint.text);
    self->is_connected = false;
    sk_pending_end_all(self, &error);
    sk_waiters_wake(self);
}

static void on_event(struct skerry *self, unsigned event, uint32_t value)
{
    switch (event) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        self->is_connected = true;
        self->handshakes_cut = 0;
        sk_waiters_wake(self);
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        refuse(self, value == 500
                         ? "the node could not check the client's key (ZAP 500)"
                         : "the handshake was refused: this client's key is not known to the "
                           "node or was revoked");
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        refuse(self,
               self->endpoint.is_curve
                   ? "the handshake failed: the server key is not this node's, or what listens "
                     "there does not speak CURVE"
                   : "the handshake failed: what listens there wants CURVE keys or is not a node");
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
    case ZMQ_EVENT_DISCONNECTED:
        on_disconnected(self);
        break;
    default:
        break;
    }
}

void sk_socket_drain_monitor(struct skerry *self)
{
    zmq_msg_t message;
    while (self->monitor != NULL) {
        zmq_msg_init(&message);
        if (zmq_msg_recv(&message, self->monitor, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&message);
            return;
        }
        uint16_t event = 0;
        uint32_t value = 0;
        if (zmq_msg_size(&message) >= 6) {
            memcpy(&event, zmq_msg_data(&message), sizeof event);
            memcpy(&value, (const char *)zmq_msg_data(&message) + 2, sizeof value);
        }
        bool has_more = zmq_msg_more(&message) != 0;
        zmq_msg_close(&message);
        if (has_more) { /* the endpoint */
            zmq_msg_init(&message);
            (void)zmq_msg_recv(&message, self->monitor, ZMQ_DONTWAIT);
            zmq_msg_close(&message);
        }
        on_event(self, event, value);
    }
}

/* ---- Receiving ---- */

/* A reply is one frame, perhaps after an empty one. Anything else is dropped: its request ends at
 * its deadline. */
static bool receive_frame(struct skerry *self, zmq_msg_t *frame)
{
    zmq_msg_init(frame);
    if (zmq_msg_recv(frame, self->socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(frame);
        return false;
    }
    while (zmq_msg_more(frame)) {
        zmq_msg_close(frame);
        zmq_msg_init(frame);
        if (zmq_msg_recv(frame, self->socket, ZMQ_DONTWAIT) < 0)
            break; /* the parts of a message come together: an empty frame is left */
    }
    return true;
}

static void drain_socket(struct skerry *self)
{
    zmq_msg_t frame;
    while (self->socket != NULL && receive_frame(self, &frame)) {
        uint64_t id = 0;
        struct pending *pending = NULL;
        if (sk_reply_request_id(sk_span_of(zmq_msg_data(&frame), zmq_msg_size(&frame)), &id))
            pending = sk_pending_find(self, id);
        if (pending == NULL) { /* late, or not ours */
            zmq_msg_close(&frame);
            continue;
        }
        struct skerry_error error;
        struct skerry_reply *reply = sk_reply_new_message(&frame);
        if (reply == NULL)
            (void)sk_client_fail(&error, SKERRY_OUT_OF_MEMORY, "no memory for the reply");
        sk_pending_end(self, pending, reply, &error);
    }
}

void sk_socket_drain(struct skerry *self)
{
    drain_socket(self); /* first: a reply that came before the connection ended counts */
    sk_socket_drain_monitor(self);
}
