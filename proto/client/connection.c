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
#include "proto/client/connection.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

enum {
    IN_FLIGHT_MAX = 65536,
    CONNECT_DEADLINE_MS = 2000,
    CALL_DEADLINE_MS = 5000,
    GRACE_US = 150 * 1000, /* the node ends a request at its deadline with better words than ours */
    NO_COPY_BYTES = 16 * 1024,
    REFUSED_PAUSE_US = 500 * 1000, /* between handshakes with a node that refused the last one */
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
    while (self->is_refused && self->reader != NULL && sk_client_now_us() < until_us)
        sk_waiter_sleep(self, waiter, until_us); /* it was woken and leaves */
    if (self->is_refused && self->reader == NULL &&
        sk_client_now_us() - self->refused_us >= REFUSED_PAUSE_US)
        sk_socket_close(self); /* libzmq does not try again by itself */
    else if (self->is_refused) {
        if (error != NULL)
            *error = self->refusal;
        return self->refusal.code;
    }
    return self->socket == NULL ? sk_socket_open(self, error) : SKERRY_OK;
}

/* Sends, waiting for the connection where there is none. message is taken when this succeeds. */
static enum skerry_code send_message(struct skerry *self, struct waiter *waiter, zmq_msg_t *message,
                                     uint64_t until_us, struct skerry_error *error)
{
    for (;;) {
        enum skerry_code code = ready_socket(self, waiter, until_us, error);
        if (code != SKERRY_OK)
            return code;
        sk_socket_drain_monitor(self); /* an end that was not seen yet must not end this request */
        if (self->is_refused)
            continue;
        if (self->is_connected && zmq_msg_send(message, self->socket, ZMQ_DONTWAIT) >= 0)
            return SKERRY_OK;
        if (self->is_connected && errno != EAGAIN && errno != EINTR)
            return sk_client_unreachable(error, SKERRY_UNAVAILABLE, "cannot send to %s: %s",
                                         self->endpoint.text, zmq_strerror(errno));
        sk_socket_drain(self);
        if (sk_client_now_us() >= until_us)
            return no_connection(self, error);
        /* A free place in a full queue is told by the socket's descriptor, but not for certain by
         * an edge of its own: look again soon. */
        uint64_t soon = sk_client_now_us() + (self->is_connected ? 1000 : 50000);
        sk_waiter_sleep(self, waiter, soon < until_us ? soon : until_us);
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
    uint64_t now = sk_client_now_us();
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
    sk_pending_add(self, pending);
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
    sk_waiter_init(&waiter);
    pthread_mutex_lock(&self->lock);
    enum skerry_code code =
        start(self, frame, &pending, &waiter, deadline_of(self, deadline_ms), error);
    if (code == SKERRY_OK) {
        sk_socket_drain(self); /* sending may have taken the edge of a message that is there */
        while (!pending.is_done && sk_client_now_us() < pending.expires_us)
            sk_waiter_sleep(self, &waiter, pending.expires_us);
        if (!pending.is_done) {
            sk_pending_remove(self, &pending);
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
    sk_waiters_hand_over(self);
    pthread_mutex_unlock(&self->lock);
    sk_waiter_deinit(&waiter);
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
    sk_waiter_init(&waiter);
    pthread_mutex_lock(&self->lock);
    enum skerry_code code =
        start(self, frame, pending, &waiter, deadline_of(self, deadline_ms), error);
    if (code == SKERRY_OK) {
        *ticket = pending->id;
        self->submitted++;
        sk_socket_drain(self);
    } else {
        free(pending);
    }
    sk_waiters_hand_over(self);
    pthread_mutex_unlock(&self->lock);
    sk_waiter_deinit(&waiter);
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
    uint64_t now = sk_client_now_us(), until_us = now + 1000 * (uint64_t)timeout_ms;
    sk_waiter_init(&waiter);
    pthread_mutex_lock(&self->lock);
    if (self->done_first == NULL && self->sent_first != NULL && self->reader == NULL)
        sk_socket_drain(self);
    while (self->done_first == NULL && self->sent_first != NULL && now < until_us) {
        sk_waiter_sleep(self, &waiter, first_expiry(self, until_us));
        now = sk_client_now_us();
        if (self->done_first == NULL)
            sk_pending_expire(self, now);
    }
    if (self->done_first != NULL && (*out = take_done(self, ticket)) == NULL)
        code = sk_client_fail(error, SKERRY_OUT_OF_MEMORY, "no memory for a reply");
    sk_waiters_hand_over(self);
    pthread_mutex_unlock(&self->lock);
    sk_waiter_deinit(&waiter);
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
        sk_socket_close(self);
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
