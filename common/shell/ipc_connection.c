/* One connection of ipc.c: from bytes to messages.
 *
 * A connection reads into the reactor's scratch; what is not a whole message yet waits in a buffer of its
 * own that grows with what has come, never with what was claimed. In a turn of the loop a connection has
 * drain_max frames taken; where more have been read it is held for the next turn, since its descriptor says
 * nothing about them. */
#include "common/shell/connection.h"
#include "common/shell/log.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READS_MAX = 8, /* of one connection before the next one's turn */
    IN_BYTES_ALL_MAX = 256 << 20, /* of the clients' messages that are not complete */
};

/* ---- life of a connection ---- */

static bool slots_grow(struct sk_reactor *reactor)
{
    uint32_t slots = reactor->connection_slots == 0 ? 64 : reactor->connection_slots * 2;
    struct sk_connection **grown =
        slots > 1U << SK_SLOT_BITS ? NULL : realloc(reactor->connections, slots * sizeof(*grown));
    if (grown == NULL)
        return false;
    memset(grown + reactor->connection_slots, 0,
           (slots - reactor->connection_slots) * sizeof(*grown));
    reactor->connections = grown;
    reactor->connection_slots = slots;
    return true;
}

void sk_ipc_schedule(struct sk_reactor *reactor, uint64_t at_us)
{
    if (at_us < reactor->ipc_next_us)
        reactor->ipc_next_us = at_us;
}

static void connection_on_ready(void *arg, uint32_t events);

struct sk_connection *sk_connection_new(struct sk_socket *socket, int fd)
{
    struct sk_reactor *reactor = socket->reactor;
    uint32_t slot = 0;
    struct sk_connection *self = calloc(1, sizeof *self);
    if (self == NULL ||
        (reactor->connection_count == reactor->connection_slots && !slots_grow(reactor)))
        goto fail;
    for (slot = (uint32_t)reactor->generation % reactor->connection_slots;
         reactor->connections[slot] != NULL; slot = (slot + 1) % reactor->connection_slots)
        ;
    *self = (struct sk_connection){.socket = socket,
                                   .serial = ++reactor->generation << SK_SLOT_BITS | slot,
                                   .events = EPOLLIN};
    self->source = (struct sk_source){.fd = fd, .fn = connection_on_ready, .arg = self};
    if (!sk_loop_add(&reactor->loop, &self->source, EPOLLIN))
        goto fail;
    self->handshake_us = sk_reactor_now_us() + (uint64_t)reactor->handshake_ms * 1000;
    sk_ipc_schedule(reactor, self->handshake_us);
    reactor->connections[slot] = self;
    reactor->connection_count++;
    uint8_t greeting[SK_ZMTP_GREETING_BYTES];
    sk_zmtp_greeting(greeting);
    struct iovec part = {greeting, sizeof greeting};
    (void)sk_connection_write(self, &part, 1);
    return self;
fail:
    free(self);
    close(fd);
    return NULL;
}

static void unlink_link(struct sk_connection *self)
{
    struct sk_connection **at = &self->socket->links;
    while (*at != NULL && *at != self)
        at = &(*at)->next;
    if (*at == self)
        *at = self->next;
    self->next = NULL;
}

struct sk_connection *sk_connection_of(const struct sk_socket *socket, sk_peer peer)
{
    struct sk_connection *at = socket->links;
    while (at != NULL && at->peer != peer)
        at = at->next;
    return at;
}

void sk_connection_hold(struct sk_connection *self)
{
    struct sk_reactor *reactor = self->socket->reactor;
    if (self->is_held)
        return;
    self->is_held = true;
    self->next_held = NULL;
    if (reactor->held_last == NULL)
        reactor->held = self;
    else
        reactor->held_last->next_held = self;
    reactor->held_last = self;
}

static void unhold(struct sk_connection *self)
{
    struct sk_reactor *reactor = self->socket->reactor;
    struct sk_connection **at = &reactor->held, *before = NULL;
    while (*at != self) {
        before = *at;
        at = &before->next_held;
    }
    *at = self->next_held;
    if (reactor->held_last == self)
        reactor->held_last = before;
    self->is_held = false;
}

void sk_connection_kill(struct sk_connection *self)
{
    struct sk_socket *socket = self->socket;
    struct sk_reactor *reactor = socket->reactor;
    if (self->state == DEAD)
        return;
    bool was_open = self->state == OPEN;
    self->state = DEAD;
    sk_connection_send_last(self);
    sk_loop_remove(&reactor->loop, &self->source);
    close(self->source.fd);
    if (!self->is_link) {
        reactor->out_bytes -= sk_connection_waiting(self);
        reactor->in_bytes -= self->in_capacity;
    }
    if (self->is_held)
        unhold(self);
    reactor->connections[self->serial & ((1U << SK_SLOT_BITS) - 1)] = NULL;
    reactor->connection_count--;
    unlink_link(self);
    if (socket->kind == SK_SOCKET_LINK) {
        sk_ipc_retry(socket, was_open);
    } else if (was_open && self->is_link && sk_connection_of(socket, self->peer) == NULL) {
        sk_link_gone(reactor, self->peer);
    }
    self->next = reactor->dead;
    reactor->dead = self;
}

void sk_ipc_reap(struct sk_reactor *reactor)
{
    while (reactor->dead != NULL) {
        struct sk_connection *self = reactor->dead;
        reactor->dead = self->next;
        free(self->in);
        sk_buffer_deinit(&self->out);
        free(self);
    }
}

/* ---- reading ---- */

/* "worker-1.<token>" without its end; false: a stranger, whatever it calls itself. */
static bool cut_token(const struct sk_reactor *reactor, struct sk_span *identity)
{
    size_t size = strlen(reactor->token);
    if (size == 0)
        return identity->size != 0; /* started by hand: the socket's folder is all there is */
    if (identity->size <= size + 1 || identity->bytes[identity->size - size - 1] != '.' ||
        memcmp(identity->bytes + identity->size - size, reactor->token, size) != 0)
        return false;
    identity->size -= size + 1;
    return true;
}

/* What waits for it and from it counts no longer as a client's. */
static void become_link(struct sk_connection *self)
{
    struct sk_socket *socket = self->socket;
    socket->reactor->out_bytes -= sk_connection_waiting(self);
    socket->reactor->in_bytes -= self->in_capacity;
    self->is_link = true;
    self->next = socket->links;
    socket->links = self;
}

static void on_open(struct sk_connection *self, struct sk_span identity)
{
    struct sk_socket *socket = self->socket;
    self->state = OPEN;
    if (socket->kind == SK_SOCKET_LINK) {
        self->peer = socket->peer;
        become_link(self);
        sk_socket_is_up(socket);
        return;
    }
    if (!cut_token(socket->reactor, &identity) ||
        !sk_door_peer_of(&socket->door, identity, &self->peer))
        return;
    /* a process that was started again takes the place of the one before */
    struct sk_connection *before = sk_connection_of(socket, self->peer);
    become_link(self);
    if (before != NULL)
        sk_connection_kill(before);
}

static void on_command(struct sk_connection *self, struct sk_span command)
{
    uint8_t pong[64];
    struct sk_span identity;
    if (self->state == AT_READY) {
        bool is_link = self->socket->kind == SK_SOCKET_LINK;
        if (sk_zmtp_ready_read(command, is_link ? "DEALER" : "ROUTER", &identity))
            on_open(self, identity);
        else
            sk_connection_kill(self);
        return;
    }
    size_t size = sk_zmtp_pong(pong, command);
    struct iovec part = {pong, size};
    if (size != 0)
        (void)sk_connection_write(self, &part, 1);
}

static void on_message(struct sk_connection *self, const uint8_t *base)
{
    struct sk_socket *socket = self->socket;
    struct sk_arrival arrival = {.socket = socket, .part_count = self->part_count};
    for (unsigned p = 0; p < self->part_count && p < 2; p++)
        arrival.parts[p] = sk_span_of(base + self->parts[p].at, self->parts[p].size);
    socket->reactor->counters.received++;
    if (self->is_link) {
        sk_link_arrived(socket, self->peer, &arrival);
    } else if (socket->door.takes_clients) {
        zmq_msg_t id;
        SK_CHECK(zmq_msg_init_size(&id, sizeof self->serial) == 0); /* so small: needs no memory */
        memcpy(zmq_msg_data(&id), &self->serial, sizeof self->serial);
        arrival.routing_id = &id;
        sk_client_arrived(&arrival);
        zmq_msg_close(&id);
    } else {
        socket->reactor->counters.dropped_unknown++;
    }
}

static void on_greeting(struct sk_connection *self)
{
    uint8_t ready[SK_ZMTP_READY_BYTES_MAX];
    bool is_link = self->socket->kind == SK_SOCKET_LINK;
    size_t size = sk_zmtp_ready(ready, is_link ? "DEALER" : "ROUTER",
                                sk_span_text(self->socket->routing_id));
    struct iovec part = {ready, size};
    self->state = AT_READY;
    (void)sk_connection_write(self, &part, 1);
}

/* What it may not be, as soon as its head is there. */
static bool is_refused(const struct sk_connection *self, const struct sk_zmtp_frame *frame)
{
    size_t most = self->socket->bytes_max;
    if (frame->size > most || self->scan + frame->size > most)
        return true;
    if (frame->is_command)
        return frame->size > SK_ZMTP_COMMAND_BYTES_MAX || self->scan != 0; /* none inside a message */
    return self->state != OPEN;
}

/* One frame at base + scan. 1: taken; 0: not all of it is there; the connection may be dead. */
static int take_frame(struct sk_connection *self, const uint8_t *base, size_t size, size_t *begin)
{
    struct sk_zmtp_frame frame;
    size_t at = *begin + self->scan;
    int rc = sk_zmtp_head_read(&frame, base + at, size - at);
    if (rc < 0 || (rc > 0 && is_refused(self, &frame))) {
        self->socket->reactor->counters.refused++;
        sk_connection_kill(self);
        return 0;
    }
    if (rc == 0 || size - at - frame.head_bytes < frame.size)
        return 0;
    size_t body = at + frame.head_bytes, taken = frame.head_bytes + (size_t)frame.size;
    if (frame.is_command) {
        on_command(self, sk_span_of(base + body, (size_t)frame.size));
        *begin += taken;
        return 1;
    }
    if (self->part_count < SK_COUNT_OF(self->parts)) {
        self->parts[self->part_count].at = self->scan + frame.head_bytes;
        self->parts[self->part_count].size = (size_t)frame.size;
    }
    self->part_count++;
    self->scan += taken;
    if (frame.has_more)
        return 1;
    on_message(self, base + *begin);
    *begin += self->scan;
    self->scan = 0;
    self->part_count = 0;
    return 1;
}

/* Takes what is whole; returns how many bytes those were. */
static size_t consume(struct sk_connection *self, const uint8_t *base, size_t size)
{
    size_t begin = 0;
    if (self->state == AT_GREETING) {
        if (!sk_zmtp_greeting_check(base, size < SK_ZMTP_GREETING_BYTES ? size : SK_ZMTP_GREETING_BYTES))
            sk_connection_kill(self);
        else if (size >= SK_ZMTP_GREETING_BYTES) {
            on_greeting(self);
            begin = SK_ZMTP_GREETING_BYTES;
        }
        if (self->state != AT_READY)
            return begin;
    }
    struct sk_reactor *reactor = self->socket->reactor;
    for (unsigned i = 0; self->state != DEAD && !reactor->is_stopped; i++) {
        self->has_unread = begin + self->scan < size &&
                           (i == reactor->drain_max || sk_connection_is_paused(self));
        if (self->has_unread || take_frame(self, base, size, &begin) == 0)
            break;
    }
    if (self->state != DEAD && self->has_unread && !sk_connection_is_paused(self))
        sk_connection_hold(self); /* else when it has taken what waits for it */
    return begin;
}

/* Of those who have begun a message and do not end it, the first one. */
static struct sk_connection *oldest_half(const struct sk_connection *but)
{
    const struct sk_reactor *reactor = but->socket->reactor;
    struct sk_connection *oldest = NULL;
    for (uint32_t slot = 0; slot < reactor->connection_slots; slot++) {
        struct sk_connection *at = reactor->connections[slot];
        if (at != NULL && at != but && !at->is_link && at->in_capacity != 0 &&
            (oldest == NULL || at->in_order < oldest->in_order))
            oldest = at;
    }
    return oldest;
}

static bool in_reserve(struct sk_connection *self, size_t capacity)
{
    struct sk_reactor *reactor = self->socket->reactor;
    if (capacity <= self->in_capacity)
        return true;
    size_t more = capacity - self->in_capacity;
    while (!self->is_link && reactor->in_bytes + more > IN_BYTES_ALL_MAX) {
        struct sk_connection *oldest = oldest_half(self);
        if (oldest == NULL)
            break; /* one alone has its own limit */
        sk_log(SK_LEVEL_WARN, "half_a_message", "socket=\"%s\" bytes=%zu", oldest->socket->path,
               oldest->in_size);
        sk_connection_kill(oldest);
    }
    uint8_t *grown = realloc(self->in, capacity);
    if (grown == NULL)
        return false;
    self->in = grown;
    self->in_capacity = capacity;
    reactor->in_bytes += self->is_link ? 0 : more;
    return true;
}

/* What is left of a read into the scratch. */
static bool in_keep(struct sk_connection *self, const uint8_t *rest, size_t size)
{
    if (size == 0)
        return true;
    if (!in_reserve(self, size < 1024 ? 1024 : size))
        return false;
    memcpy(self->in, rest, size);
    self->in_size = size;
    self->in_order = ++self->socket->reactor->in_order;
    return true;
}

/* Takes what is whole of `in`. */
static void in_consume(struct sk_connection *self)
{
    struct sk_reactor *reactor = self->socket->reactor;
    size_t taken = consume(self, self->in + self->in_at, self->in_size - self->in_at);
    if (self->state == DEAD)
        return;
    if (taken != 0)
        self->in_order = ++reactor->in_order;
    self->in_at += taken;
    if (self->has_unread)
        return; /* the rest is moved once, when there is only half a message of it */
    self->in_size -= self->in_at;
    if (self->in_size != 0 && self->in_at != 0)
        memmove(self->in, self->in + self->in_at, self->in_size);
    self->in_at = 0;
    if (self->in_size == 0) {
        reactor->in_bytes -= self->is_link ? 0 : self->in_capacity;
        free(self->in);
        self->in = NULL;
        self->in_capacity = 0;
    }
}

/* One read. False: nothing more now, or dead. */
static bool connection_read(struct sk_connection *self)
{
    struct sk_reactor *reactor = self->socket->reactor;
    bool is_fresh = self->in_size == 0;
    if (!is_fresh && self->in_capacity - self->in_size < SK_IPC_SCRATCH_BYTES / 4 &&
        !in_reserve(self, self->in_capacity * 2 + SK_IPC_SCRATCH_BYTES)) {
        sk_connection_kill(self);
        return false;
    }
    uint8_t *to = is_fresh ? reactor->scratch : self->in + self->in_size;
    size_t room = is_fresh ? SK_IPC_SCRATCH_BYTES : self->in_capacity - self->in_size;
    ssize_t got = recv(self->source.fd, to, room, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            sk_connection_kill(self);
        return false;
    }
    size_t size = (size_t)got;
    if (is_fresh) {
        size_t taken = consume(self, to, size);
        if (self->state != DEAD && !in_keep(self, to + taken, size - taken))
            sk_connection_kill(self);
    } else {
        self->in_size += size;
        in_consume(self);
    }
    return self->state != DEAD && size == room;
}

static void connection_on_ready(void *arg, uint32_t events)
{
    struct sk_connection *self = arg;
    if ((events & EPOLLOUT) != 0)
        sk_connection_flush(self);
    if (self->state != DEAD && (events & (EPOLLHUP | EPOLLERR)) != 0 && sk_connection_is_paused(self))
        sk_connection_kill(self); /* it has gone without its answers */
    for (unsigned i = 0; i < READS_MAX && self->state != DEAD && !self->has_unread &&
                         !sk_connection_is_paused(self) && connection_read(self);
         i++)
        ;
}

void sk_connections_look(struct sk_reactor *reactor)
{
    struct sk_connection *last = reactor->held_last, *self;
    while ((self = reactor->held) != NULL && last != NULL) {
        if (self == last || !last->is_held)
            last = NULL; /* what is held from here on is for the next turn */
        unhold(self);
        if (!sk_connection_is_paused(self))
            in_consume(self);
    }
}

uint64_t sk_connections_on_time(struct sk_reactor *reactor, uint64_t now_us)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t slot = 0; slot < reactor->connection_slots; slot++) {
        struct sk_connection *self = reactor->connections[slot];
        if (self == NULL || self->state == OPEN)
            continue;
        if (self->handshake_us <= now_us)
            sk_connection_kill(self);
        else if (self->handshake_us < next)
            next = self->handshake_us;
    }
    return next;
}

void sk_connections_close(struct sk_socket *socket)
{
    struct sk_reactor *reactor = socket->reactor;
    for (uint32_t slot = 0; slot < reactor->connection_slots; slot++)
        if (reactor->connections[slot] != NULL && reactor->connections[slot]->socket == socket)
            sk_connection_kill(reactor->connections[slot]);
    sk_ipc_reap(reactor);
}
