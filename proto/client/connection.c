/* One DEALER socket that many threads share.
 *
 * A ZeroMQ socket may be used by any thread as long as one uses it at a time: the handle's lock
 * does that. Nobody holds the lock while waiting. Whoever waits first becomes the reader: it sleeps
 * in ppoll() on the socket's descriptor, then takes the lock and hands every reply that came to the
 * request it belongs to; the others sleep on conditions of their own, and when the reader has its
 * reply, the next one takes its place. So a lone caller pays no hand-off to another thread.
 * The descriptor tells edges only: after every use of the socket it is drained again. A thread that
 * drains what the sleeping reader waits for wakes it through wake_fd.
 *
 * ZMQ_IMMEDIATE keeps a request from being queued for a node that is not there: it would be applied
 * when the node comes back, long after its caller was told otherwise. When a connection ends, every
 * request that was on its way ends with `unavailable`; nothing is ever sent again. */
#include "proto/client/internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum {
    BUCKET_COUNT = 1024,
    IN_FLIGHT_MAX = 65536,
    CONNECT_DEADLINE_MS = 2000,
    CALL_DEADLINE_MS = 5000,
    GRACE_US = 150 * 1000, /* the node ends a request at its deadline with better words than ours */
    NO_COPY_BYTES = 16 * 1024,
    REFUSED_PAUSE_US = 500 * 1000, /* between handshakes with a node that refused the last one */
    /* Not the tries to connect: while a node is away they would pile up in an idle handle. */
    MONITORED_EVENTS = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                       ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                       ZMQ_EVENT_DISCONNECTED,
    HANDSHAKE_ENDS_MAX = 2, /* handshakes cut short before it is called a refusal */
};

struct waiter {
    pthread_cond_t wake;
    struct waiter *next, *previous;
    bool is_listed;
};

struct pending {
    struct pending *next, *previous;           /* of its bucket */
    struct pending *next_sent, *previous_sent; /* submitted ones, oldest first */
    struct pending *next_done;
    struct waiter *waiter; /* NULL: submitted */
    uint64_t id;
    uint64_t expires_us;
    bool is_done;
    struct skerry_reply *reply; /* owned */
    struct skerry_error error;  /* where reply is NULL */
};

struct skerry {
    /* settings */
    struct sk_endpoint endpoint;
    uint32_t deadline_ms;
    uint32_t connect_deadline_ms;
    uint64_t fork_generation;
    char node_key[64];
    char node_version[32];
    /* state; the lock guards all of it */
    pthread_mutex_t lock;
    void *context;
    void *socket;
    void *monitor;
    int socket_fd, monitor_fd, wake_fd;
    unsigned generation; /* of the socket, in the name of its monitor */
    bool is_connected;
    bool is_refused;
    uint64_t refused_us;
    unsigned handshakes_cut;
    struct skerry_error refusal;
    struct waiter *reader;
    struct waiter *waiters;
    uint64_t id_next;
    size_t in_flight;
    struct pending *buckets[BUCKET_COUNT];
    struct pending *sent_first, *sent_last;
    struct pending *done_first, *done_last;
    size_t submitted;
};

static uint64_t fork_generation;

static void on_fork_in_child(void)
{
    fork_generation++;
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, on_fork_in_child);
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static struct timespec timespec_of(uint64_t us)
{
    return (struct timespec){.tv_sec = (time_t)(us / 1000000),
                             .tv_nsec = (long)(us % 1000000) * 1000};
}

/* ---- Waiting ---- */

static void waiter_init(struct waiter *self)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    *self = (struct waiter){0};
    pthread_cond_init(&self->wake, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void waiter_deinit(struct waiter *self)
{
    pthread_cond_destroy(&self->wake);
}

static void waiter_list(struct skerry *self, struct waiter *waiter)
{
    waiter->next = self->waiters;
    waiter->previous = NULL;
    if (self->waiters != NULL)
        self->waiters->previous = waiter;
    self->waiters = waiter;
    waiter->is_listed = true;
}

static void waiter_unlist(struct skerry *self, struct waiter *waiter)
{
    if (waiter->previous != NULL)
        waiter->previous->next = waiter->next;
    else
        self->waiters = waiter->next;
    if (waiter->next != NULL)
        waiter->next->previous = waiter->previous;
    waiter->is_listed = false;
}

static void wake_reader(struct skerry *self)
{
    uint64_t one = 1;
    while (write(self->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void wake(struct skerry *self, struct waiter *waiter)
{
    if (waiter == self->reader)
        wake_reader(self);
    else if (waiter->is_listed)
        pthread_cond_signal(&waiter->wake);
}

static void wake_all(struct skerry *self)
{
    if (self->reader != NULL)
        wake_reader(self);
    for (struct waiter *waiter = self->waiters; waiter != NULL; waiter = waiter->next)
        pthread_cond_signal(&waiter->wake);
}

/* ---- Requests in flight ---- */

static void pending_add(struct skerry *self, struct pending *pending)
{
    struct pending **bucket = &self->buckets[pending->id % BUCKET_COUNT];
    pending->next = *bucket;
    pending->previous = NULL;
    if (*bucket != NULL)
        (*bucket)->previous = pending;
    *bucket = pending;
    self->in_flight++;
    if (pending->waiter == NULL) {
        pending->previous_sent = self->sent_last;
        pending->next_sent = NULL;
        if (self->sent_last != NULL)
            self->sent_last->next_sent = pending;
        else
            self->sent_first = pending;
        self->sent_last = pending;
    }
}

static void pending_remove(struct skerry *self, struct pending *pending)
{
    if (pending->previous != NULL)
        pending->previous->next = pending->next;
    else
        self->buckets[pending->id % BUCKET_COUNT] = pending->next;
    if (pending->next != NULL)
        pending->next->previous = pending->previous;
    self->in_flight--;
    if (pending->waiter == NULL) {
        if (pending->previous_sent != NULL)
            pending->previous_sent->next_sent = pending->next_sent;
        else
            self->sent_first = pending->next_sent;
        if (pending->next_sent != NULL)
            pending->next_sent->previous_sent = pending->previous_sent;
        else
            self->sent_last = pending->previous_sent;
    }
}

static struct pending *pending_find(struct skerry *self, uint64_t id)
{
    struct pending *pending = self->buckets[id % BUCKET_COUNT];
    while (pending != NULL && pending->id != id)
        pending = pending->next;
    return pending;
}

/* reply or error: one of the two. The reply is taken. */
static void pending_end(struct skerry *self, struct pending *pending, struct skerry_reply *reply,
                        const struct skerry_error *error)
{
    pending_remove(self, pending);
    pending->is_done = true;
    pending->reply = reply;
    if (reply == NULL)
        pending->error = *error;
    if (pending->waiter != NULL) {
        wake(self, pending->waiter);
        return;
    }
    pending->next_done = NULL;
    if (self->done_last != NULL)
        self->done_last->next_done = pending;
    else
        self->done_first = pending;
    self->done_last = pending;
    wake_all(self); /* one of them may be polling */
}

static void end_all(struct skerry *self, const struct skerry_error *error)
{
    for (unsigned i = 0; i < BUCKET_COUNT && self->in_flight > 0; i++)
        while (self->buckets[i] != NULL)
            pending_end(self, self->buckets[i], NULL, error);
}

static void expire_submitted(struct skerry *self, uint64_t now)
{
    struct pending *next = NULL;
    for (struct pending *pending = self->sent_first; pending != NULL; pending = next) {
        next = pending->next_sent;
        if (now < pending->expires_us)
            continue;
        struct skerry_error error;
        (void)sk_client_fail(&error, SKERRY_DEADLINE,
                             "the node did not answer in time; the outcome of a write is unknown");
        pending_end(self, pending, NULL, &error);
    }
}

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

static void close_socket(struct skerry *self)
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

static enum skerry_code open_socket(struct skerry *self, struct skerry_error *error)
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
        close_socket(self);
    }
    return code;
}

/* ---- What the monitor tells ---- */

static void refuse(struct skerry *self, const char *words)
{
    (void)sk_client_unreachable(&self->refusal, SKERRY_UNAUTHORIZED, "%s: %s", self->endpoint.text,
                                words);
    self->is_refused = true;
    self->refused_us = now_us();
    self->is_connected = false;
    end_all(self, &self->refusal);
    wake_all(self);
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
    end_all(self, &error);
    wake_all(self);
}

static void on_event(struct skerry *self, unsigned event, uint32_t value)
{
    switch (event) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        self->is_connected = true;
        self->handshakes_cut = 0;
        wake_all(self);
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

static void drain_monitor(struct skerry *self)
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
            pending = pending_find(self, id);
        if (pending == NULL) { /* late, or not ours */
            zmq_msg_close(&frame);
            continue;
        }
        struct skerry_error error;
        struct skerry_reply *reply = sk_reply_new_message(&frame);
        if (reply == NULL)
            (void)sk_client_fail(&error, SKERRY_OUT_OF_MEMORY, "no memory for the reply");
        pending_end(self, pending, reply, &error);
    }
}

static void drain(struct skerry *self)
{
    drain_socket(self); /* first: a reply that came before the connection ended counts */
    drain_monitor(self);
}

/* One sleep, as the reader or behind it. The caller looks at its condition and comes again. */
static void wait_once(struct skerry *self, struct waiter *waiter, uint64_t until_us)
{
    uint64_t now = now_us();
    if (now >= until_us)
        return;
    if (self->reader != NULL) {
        struct timespec until = timespec_of(until_us);
        waiter_list(self, waiter);
        pthread_cond_timedwait(&waiter->wake, &self->lock, &until);
        waiter_unlist(self, waiter);
        return;
    }
    struct pollfd fds[3] = {
        {self->wake_fd, POLLIN, 0}, {self->socket_fd, POLLIN, 0}, {self->monitor_fd, POLLIN, 0}};
    struct timespec timeout = timespec_of(until_us - now);
    self->reader = waiter;
    pthread_mutex_unlock(&self->lock);
    int ready = ppoll(fds, 3, &timeout, NULL);
    pthread_mutex_lock(&self->lock);
    self->reader = NULL;
    if (ready > 0 && fds[0].revents != 0) {
        uint64_t count;
        (void)!read(self->wake_fd, &count, sizeof count);
    }
    drain(self);
}

/* The place of the reader is free: the next who waits takes it. */
static void hand_over(struct skerry *self)
{
    if (self->reader == NULL && self->waiters != NULL)
        pthread_cond_signal(&self->waiters->wake);
}

/* ---- Sending ---- */

static void free_frame(void *bytes, void *hint)
{
    (void)hint;
    free(bytes);
}

static enum skerry_code message_of(struct sk_frame *frame, zmq_msg_t *message,
                                   struct skerry_error *error)
{
    struct sk_buffer *wire = &frame->wire;
    if (wire->size > NO_COPY_BYTES) {
        if (zmq_msg_init_data(message, wire->bytes, wire->size, free_frame, NULL) != 0)
            return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the request");
        wire->bytes = NULL;
        return SKERRY_OK;
    }
    if (zmq_msg_init_size(message, wire->size) != 0)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the request");
    memcpy(zmq_msg_data(message), wire->bytes, wire->size);
    return SKERRY_OK;
}

static void put_big_endian(uint8_t *at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
}

static void patch(struct sk_frame *frame, uint64_t id, uint32_t deadline_ms)
{
    put_big_endian(frame->wire.bytes + 1, 4 + (uint64_t)frame->field_count, 2);
    put_big_endian(frame->wire.bytes + frame->id_at, id, 8);
    put_big_endian(frame->wire.bytes + frame->deadline_at, deadline_ms, 4);
}

static enum skerry_code no_connection(struct skerry *self, struct skerry_error *error)
{
    return sk_client_unreachable(
        error, SKERRY_UNAVAILABLE, "no connection to %s: %s", self->endpoint.text,
        self->is_connected ? "it takes no more requests, its queue is full"
        : strncmp(self->endpoint.text, "ipc:", 4) == 0
            ? "nothing listens there; is the node running? (skerry node status)"
            : "nothing answers there; are the address, the port and the node right?");
}

/* Makes sure that there is a socket whose last handshake was not refused just now. */
static enum skerry_code ready_socket(struct skerry *self, struct waiter *waiter, uint64_t until_us,
                                     struct skerry_error *error)
{
    while (self->is_refused && self->reader != NULL && now_us() < until_us)
        wait_once(self, waiter, until_us); /* it was woken and leaves */
    if (self->is_refused && self->reader == NULL && now_us() - self->refused_us >= REFUSED_PAUSE_US)
        close_socket(self); /* libzmq does not try again by itself */
    else if (self->is_refused) {
        if (error != NULL)
            *error = self->refusal;
        return self->refusal.code;
    }
    return self->socket == NULL ? open_socket(self, error) : SKERRY_OK;
}

/* Sends, waiting for the connection where there is none. message is taken when this succeeds. */
static enum skerry_code send_message(struct skerry *self, struct waiter *waiter, zmq_msg_t *message,
                                     uint64_t until_us, struct skerry_error *error)
{
    for (;;) {
        enum skerry_code code = ready_socket(self, waiter, until_us, error);
        if (code != SKERRY_OK)
            return code;
        drain_monitor(self); /* an end that was not seen yet must not end this request */
        if (self->is_refused)
            continue;
        if (self->is_connected && zmq_msg_send(message, self->socket, ZMQ_DONTWAIT) >= 0)
            return SKERRY_OK;
        if (self->is_connected && errno != EAGAIN && errno != EINTR)
            return sk_client_unreachable(error, SKERRY_UNAVAILABLE, "cannot send to %s: %s",
                                         self->endpoint.text, zmq_strerror(errno));
        drain(self);
        if (now_us() >= until_us)
            return no_connection(self, error);
        /* A free place in a full queue is told by the socket's descriptor, but not for certain by
         * an edge of its own: look again soon. */
        uint64_t soon = now_us() + (self->is_connected ? 1000 : 50000);
        wait_once(self, waiter, soon < until_us ? soon : until_us);
    }
}

/* Under the lock. On success the request is on its way and listed. */
static enum skerry_code start(struct skerry *self, struct sk_frame *frame, struct pending *pending,
                              struct waiter *waiter, uint32_t deadline_ms,
                              struct skerry_error *error)
{
    if (self->fork_generation != fork_generation)
        return sk_client_fail(error, SKERRY_INVALID,
                              "this handle was made before fork(): connect again in the child");
    if (self->in_flight >= IN_FLIGHT_MAX)
        return sk_client_fail(error, SKERRY_BUSY, "%d requests are in flight on this handle",
                              IN_FLIGHT_MAX);
    if (frame->wire.is_broken)
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the request");
    if (frame->field_count > UINT16_MAX - 4)
        return sk_client_fail(error, SKERRY_TOO_LARGE, "%u fields in a request",
                              frame->field_count);
    uint64_t now = now_us();
    uint64_t patience_us =
        1000 * (uint64_t)(deadline_ms < self->connect_deadline_ms ? deadline_ms
                                                                  : self->connect_deadline_ms);
    pending->id = self->id_next++;
    pending->expires_us = now + 1000 * (uint64_t)deadline_ms + GRACE_US;
    patch(frame, pending->id, deadline_ms);
    zmq_msg_t message;
    enum skerry_code code = message_of(frame, &message, error);
    if (code != SKERRY_OK)
        return code;
    /* Listed before it is sent: with the lock given up in a wait, its reply cannot come first, but
     * an end of the connection seen while waiting must not end a request that was not sent. So list
     * after. */
    code = send_message(self, waiter, &message, now + patience_us, error);
    if (code != SKERRY_OK) {
        zmq_msg_close(&message);
        return code;
    }
    pending_add(self, pending);
    return SKERRY_OK;
}

static uint32_t deadline_of(const struct skerry *self, uint32_t deadline_ms)
{
    uint32_t wanted = deadline_ms == 0 ? self->deadline_ms : deadline_ms;
    return wanted > SK_DEADLINE_MS_MAX ? SK_DEADLINE_MS_MAX : wanted;
}

enum skerry_code sk_connection_call(struct skerry *self, struct sk_frame *frame,
                                    uint32_t deadline_ms, struct skerry_reply **out,
                                    struct skerry_error *error)
{
    *out = NULL;
    struct waiter waiter;
    struct pending pending = {.waiter = &waiter};
    waiter_init(&waiter);
    pthread_mutex_lock(&self->lock);
    enum skerry_code code =
        start(self, frame, &pending, &waiter, deadline_of(self, deadline_ms), error);
    if (code == SKERRY_OK) {
        drain(self); /* sending may have taken the edge of a message that is there */
        while (!pending.is_done && now_us() < pending.expires_us)
            wait_once(self, &waiter, pending.expires_us);
        if (!pending.is_done) {
            pending_remove(self, &pending);
            code = sk_client_fail(
                error, SKERRY_DEADLINE,
                "the node did not answer in %u ms; the outcome of a write is unknown",
                deadline_of(self, deadline_ms));
        } else if (pending.reply == NULL) {
            code = pending.error.code;
            if (error != NULL)
                *error = pending.error;
        }
    }
    hand_over(self);
    pthread_mutex_unlock(&self->lock);
    waiter_deinit(&waiter);
    sk_frame_deinit(frame);
    if (code == SKERRY_OK)
        code = skerry_reply_error(pending.reply, error);
    if (code == SKERRY_OK)
        *out = pending.reply;
    else
        skerry_reply_free(&pending.reply);
    return code;
}

enum skerry_code sk_connection_submit(struct skerry *self, struct sk_frame *frame,
                                      uint32_t deadline_ms, uint64_t *ticket,
                                      struct skerry_error *error)
{
    *ticket = 0;
    struct waiter waiter;
    struct pending *pending = calloc(1, sizeof *pending);
    if (pending == NULL) {
        sk_frame_deinit(frame);
        return sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for the request");
    }
    waiter_init(&waiter);
    pthread_mutex_lock(&self->lock);
    enum skerry_code code =
        start(self, frame, pending, &waiter, deadline_of(self, deadline_ms), error);
    if (code == SKERRY_OK) {
        *ticket = pending->id;
        self->submitted++;
        drain(self);
    } else {
        free(pending);
    }
    hand_over(self);
    pthread_mutex_unlock(&self->lock);
    waiter_deinit(&waiter);
    sk_frame_deinit(frame);
    return code;
}

/* Takes the first submitted request that has ended; NULL when out of memory for its reply. */
static struct skerry_reply *take_done(struct skerry *self, uint64_t *ticket)
{
    struct pending *pending = self->done_first;
    struct skerry_reply *reply = pending->reply;
    if (reply == NULL)
        reply = sk_reply_new_error(&pending->error);
    if (reply == NULL)
        return NULL;
    self->done_first = pending->next_done;
    if (self->done_first == NULL)
        self->done_last = NULL;
    self->submitted--;
    *ticket = pending->id;
    free(pending);
    return reply;
}

static uint64_t first_expiry(const struct skerry *self, uint64_t until_us)
{
    for (const struct pending *pending = self->sent_first; pending != NULL;
         pending = pending->next_sent)
        if (pending->expires_us < until_us)
            until_us = pending->expires_us;
    return until_us;
}

enum skerry_code skerry_poll(struct skerry *self, uint32_t timeout_ms, uint64_t *ticket,
                             struct skerry_reply **out, struct skerry_error *error)
{
    *ticket = 0;
    *out = NULL;
    enum skerry_code code = SKERRY_OK;
    struct waiter waiter;
    uint64_t now = now_us(), until_us = now + 1000 * (uint64_t)timeout_ms;
    waiter_init(&waiter);
    pthread_mutex_lock(&self->lock);
    if (self->done_first == NULL && self->sent_first != NULL && self->reader == NULL)
        drain(self);
    while (self->done_first == NULL && self->sent_first != NULL && now < until_us) {
        wait_once(self, &waiter, first_expiry(self, until_us));
        now = now_us();
        if (self->done_first == NULL)
            expire_submitted(self, now);
    }
    if (self->done_first != NULL && (*out = take_done(self, ticket)) == NULL)
        code = sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for a reply");
    hand_over(self);
    pthread_mutex_unlock(&self->lock);
    waiter_deinit(&waiter);
    return code;
}

size_t skerry_in_flight(struct skerry *self)
{
    pthread_mutex_lock(&self->lock);
    size_t submitted = self->submitted;
    pthread_mutex_unlock(&self->lock);
    return submitted;
}

/* ---- Opening and closing ---- */

static enum skerry_code configure(struct skerry *self, const char *target,
                                  const struct skerry_options *options, struct skerry_error *error)
{
    for (size_t i = 0; i < SK_COUNT_OF(options->reserved); i++)
        if (options->reserved[i] != 0)
            return sk_client_fail_field(error, SKERRY_INVALID, "reserved",
                                        "reserved members of skerry_options must be zero");
    self->deadline_ms = options->deadline_ms == 0 ? CALL_DEADLINE_MS : options->deadline_ms;
    self->connect_deadline_ms =
        options->connect_deadline_ms == 0 ? CONNECT_DEADLINE_MS : options->connect_deadline_ms;
    return sk_endpoint_resolve(&self->endpoint, target, options, error);
}

static void copy_text_member(const struct skerry_reply *reply, const char *name, char *out,
                             size_t size)
{
    struct sk_span member = sk_reply_member(reply, name);
    struct sk_reader scan = {member.bytes, member.bytes + member.size};
    struct sk_value value;
    if (member.bytes == NULL || !sk_scan_next(&scan, &value) || value.kind != SK_VALUE_TEXT)
        return;
    snprintf(out, size, "%.*s", (int)value.span.size, (const char *)value.span.bytes);
}

/* The ping shows that a node of this protocol answers, and not only that somebody listens. */
static enum skerry_code greet(struct skerry *self, struct skerry_error *error)
{
    struct sk_frame frame;
    struct skerry_reply *reply = NULL;
    sk_frame_begin(&frame, "ping");
    enum skerry_code code =
        sk_connection_call(self, &frame, self->connect_deadline_ms, &reply, error);
    if (code != SKERRY_OK) {
        if (error != NULL)
            error->is_unreachable = true;
        return code;
    }
    copy_text_member(reply, "node", self->node_key, sizeof self->node_key);
    copy_text_member(reply, "version", self->node_version, sizeof self->node_version);
    if (self->node_version[0] == '\0')
        code = sk_client_unreachable(
            error, SKERRY_VERSION,
            "%s answers, but not like a Skerry node: its ping has no version", self->endpoint.text);
    skerry_reply_free(&reply);
    return code;
}

struct skerry *sk_client_open(const char *target, const struct skerry_options *options,
                              bool is_greeted, struct skerry_error *error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static const struct skerry_options no_options = {0};
    pthread_once(&once, watch_forks);
    if (target == NULL || target[0] == '\0') {
        (void)sk_client_fail(error, SKERRY_INVALID,
                             "no node was named: give its folder or tcp://...");
        return NULL;
    }
    struct skerry *self = calloc(1, sizeof *self);
    if (self == NULL) {
        (void)sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for a handle");
        return NULL;
    }
    pthread_mutex_init(&self->lock, NULL);
    self->socket_fd = self->monitor_fd = -1;
    self->id_next = 1;
    self->fork_generation = fork_generation;
    self->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum skerry_code code = configure(self, target, options == NULL ? &no_options : options, error);
    if (code == SKERRY_OK && self->wake_fd < 0)
        code = sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no eventfd: %s", strerror(errno));
    if (code == SKERRY_OK && (self->context = zmq_ctx_new()) == NULL)
        code = sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no ZeroMQ context: %s",
                              zmq_strerror(errno));
    if (code == SKERRY_OK && is_greeted)
        code = greet(self, error);
    if (code != SKERRY_OK)
        skerry_close(&self);
    return self;
}

struct skerry *skerry_connect(const char *target, const struct skerry_options *options,
                              struct skerry_error *error)
{
    return sk_client_open(target, options, true, error);
}

void skerry_close(struct skerry **self_pointer)
{
    struct skerry *self = self_pointer == NULL ? NULL : *self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    if (self->fork_generation == fork_generation) {
        close_socket(self);
        if (self->context != NULL)
            zmq_ctx_term(self->context);
    } /* else: the parent's sockets, which its own threads use; they end with this process */
    for (unsigned i = 0; i < BUCKET_COUNT; i++)
        for (struct pending *next, *pending = self->buckets[i]; pending != NULL; pending = next) {
            next = pending->next;
            free(pending); /* only submitted ones can be left: no call is running */
        }
    for (struct pending *next, *pending = self->done_first; pending != NULL; pending = next) {
        next = pending->next_done;
        skerry_reply_free(&pending->reply);
        free(pending);
    }
    if (self->wake_fd >= 0)
        close(self->wake_fd);
    pthread_mutex_destroy(&self->lock);
    explicit_bzero(&self->endpoint, sizeof self->endpoint);
    free(self);
}

const char *skerry_node_key(const struct skerry *self)
{
    return self->node_key;
}

const char *skerry_node_version(const struct skerry *self)
{
    return self->node_version;
}
