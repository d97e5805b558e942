/* One connection of ipc.c: ZMTP from bytes to messages and back.
 *
 * A connection reads into the reactor's scratch; what is not a whole message yet waits in a buffer of its
 * own that grows with what has come, never with what was claimed. What the peer does not take waits in
 * `out`: past OUT_PAUSE_BYTES we read nothing more from it, past OUT_BYTES_MAX its replies are dropped. */
#include "common/shell/internal.h"
#include "common/shell/zmtp.h"
#include "proto/pack.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    READS_MAX = 8, /* of one connection before the next one's turn */
    IN_BYTES_KEPT = 64 * 1024,
    OUT_BYTES_KEPT = 64 * 1024,
    OUT_PAUSE_BYTES = 1 << 20,
    OUT_BYTES_MAX = 64 << 20,      /* of one connection */
    OUT_BYTES_ALL_MAX = 256 << 20, /* of all */
    SLOT_BITS = 20,
    WRITE_PARTS_MAX = 12,
};

enum state { AT_GREETING, AT_READY, OPEN, DEAD };

struct sk_connection {
    struct sk_source source;
    struct sk_socket *socket;
    struct sk_connection *next;      /* of the socket's links, or of the dead */
    uint64_t serial;                 /* generation, slot */
    enum state state;
    bool is_link;                    /* a known process */
    sk_peer peer;                    /* of a link */
    uint64_t handshake_us;           /* it must be open by then */
    uint32_t events;                 /* that the loop waits for */
    uint8_t *in;                     /* the message that is not complete yet */
    size_t in_size, in_capacity;
    size_t scan;                     /* bytes of whole frames of it */
    struct {
        size_t at, size;
    } parts[2];
    unsigned part_count;
    struct sk_buffer out;
    size_t out_at; /* sent already */
};

/* ---- life of a connection ---- */

static bool slots_grow(struct sk_reactor *reactor)
{
    uint32_t slots = reactor->connection_slots == 0 ? 64 : reactor->connection_slots * 2;
    struct sk_connection **grown =
        slots > 1U << SLOT_BITS ? NULL : realloc(reactor->connections, slots * sizeof(*grown));
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
static bool connection_write(struct sk_connection *self, struct iovec *parts, unsigned count);

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
                                   .serial = ++reactor->generation << SLOT_BITS | slot,
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
    (void)connection_write(self, &part, 1);
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

static struct sk_connection *link_of(const struct sk_socket *socket, sk_peer peer)
{
    struct sk_connection *at = socket->links;
    while (at != NULL && at->peer != peer)
        at = at->next;
    return at;
}

void sk_connection_kill(struct sk_connection *self)
{
    struct sk_socket *socket = self->socket;
    struct sk_reactor *reactor = socket->reactor;
    if (self->state == DEAD)
        return;
    bool was_open = self->state == OPEN;
    self->state = DEAD;
    sk_loop_remove(&reactor->loop, &self->source);
    close(self->source.fd);
    reactor->out_bytes -= self->out.size - self->out_at;
    reactor->connections[self->serial & ((1U << SLOT_BITS) - 1)] = NULL;
    reactor->connection_count--;
    unlink_link(self);
    if (socket->kind == SK_SOCKET_LINK) {
        sk_ipc_retry(socket, was_open);
    } else if (was_open && self->is_link && link_of(socket, self->peer) == NULL) {
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

/* ---- writing ---- */

static void want(struct sk_connection *self)
{
    size_t waiting = self->out.size - self->out_at;
    /* a process that waits for us while we wait for it would wait for ever: links are always read */
    bool is_read = self->is_link || waiting <= OUT_PAUSE_BYTES;
    uint32_t events = (waiting != 0 ? EPOLLOUT : 0) | (is_read ? EPOLLIN : 0);
    if (events == self->events)
        return;
    self->events = events;
    sk_loop_change(&self->socket->reactor->loop, &self->source, events);
}

/* What could not be sent waits: parts from byte `sent` on. */
static bool connection_keep(struct sk_connection *self, const struct iovec *parts, unsigned count,
                            size_t sent, size_t total)
{
    struct sk_reactor *reactor = self->socket->reactor;
    size_t waiting = self->out.size - self->out_at;
    /* of a message that was begun the rest must follow */
    if (sent == 0 && (waiting + total > OUT_BYTES_MAX ||
                      reactor->out_bytes + total > OUT_BYTES_ALL_MAX)) {
        reactor->counters.dropped_slow++;
        return false;
    }
    for (unsigned p = 0; p < count; p++) {
        size_t skip = sent < parts[p].iov_len ? sent : parts[p].iov_len;
        sk_buffer_append(&self->out, (const uint8_t *)parts[p].iov_base + skip,
                         parts[p].iov_len - skip);
        sent -= skip;
    }
    if (self->out.is_broken) {
        sk_connection_kill(self);
        return false;
    }
    reactor->out_bytes += self->out.size - self->out_at - waiting;
    want(self);
    return true;
}

static bool connection_write(struct sk_connection *self, struct iovec *parts, unsigned count)
{
    size_t total = 0, sent = 0;
    for (unsigned p = 0; p < count; p++)
        total += parts[p].iov_len;
    if (self->out.size == self->out_at) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t done = sendmsg(self->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            sk_connection_kill(self);
            return false;
        }
        sent = done > 0 ? (size_t)done : 0;
        if (sent == total)
            return true;
    }
    return connection_keep(self, parts, count, sent, total);
}

static void connection_flush(struct sk_connection *self)
{
    struct sk_reactor *reactor = self->socket->reactor;
    size_t waiting = self->out.size - self->out_at;
    ssize_t done = waiting == 0 ? 0
                                : send(self->source.fd, self->out.bytes + self->out_at, waiting,
                                       MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            sk_connection_kill(self);
        return;
    }
    self->out_at += (size_t)done;
    reactor->out_bytes -= (size_t)done;
    if (self->out_at == self->out.size) {
        self->out_at = 0;
        if (self->out.capacity > OUT_BYTES_KEPT)
            sk_buffer_deinit(&self->out);
        else
            sk_buffer_clear(&self->out);
    } else if (self->out_at > self->out.size / 2) {
        memmove(self->out.bytes, self->out.bytes + self->out_at, self->out.size - self->out_at);
        self->out.size -= self->out_at;
        self->out_at = 0;
    }
    want(self);
}

static void message_write(struct sk_connection *self, bool has_delimiter,
                          const struct sk_span *parts, unsigned part_count)
{
    struct iovec pieces[WRITE_PARTS_MAX];
    uint8_t delimiter[2] = {1, 0}, head[SK_ZMTP_HEAD_BYTES_MAX]; /* an empty frame, more follows */
    unsigned count = 0;
    size_t size = 0;
    struct sk_reactor *reactor = self->socket->reactor;
    SK_CHECK(part_count + 2 <= WRITE_PARTS_MAX);
    for (unsigned p = 0; p < part_count; p++)
        size += parts[p].size;
    if (has_delimiter)
        pieces[count++] = (struct iovec){delimiter, sizeof delimiter};
    pieces[count++] = (struct iovec){head, sk_zmtp_head(head, size, false, false)};
    for (unsigned p = 0; p < part_count; p++)
        if (parts[p].size != 0)
            pieces[count++] =
                (struct iovec){(void *)(uintptr_t)parts[p].bytes, parts[p].size};
    if (connection_write(self, pieces, count))
        reactor->counters.sent++;
}

void sk_ipc_send(struct sk_socket *socket, sk_peer to, const struct sk_span *parts,
                 unsigned part_count)
{
    struct sk_connection *self = link_of(socket, to);
    if (self != NULL && self->state == OPEN) {
        message_write(self, false, parts, part_count);
        return;
    }
    socket->reactor->counters.dropped_gone++;
    if (socket->kind == SK_SOCKET_DOOR)
        sk_link_gone(socket->reactor, to);
}

void sk_ipc_send_to_client(struct sk_reactor *reactor, uint64_t serial, bool has_delimiter,
                           const struct sk_span *parts, unsigned part_count)
{
    uint32_t slot = (uint32_t)serial & ((1U << SLOT_BITS) - 1);
    struct sk_connection *self =
        slot < reactor->connection_slots ? reactor->connections[slot] : NULL;
    if (self != NULL && self->serial == serial)
        message_write(self, has_delimiter, parts, part_count);
    else
        reactor->counters.dropped_gone++;
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

static void on_open(struct sk_connection *self, struct sk_span identity)
{
    struct sk_socket *socket = self->socket;
    self->state = OPEN;
    if (socket->kind == SK_SOCKET_LINK) {
        self->is_link = true;
        self->peer = socket->peer;
        self->next = socket->links;
        socket->links = self;
        sk_socket_is_up(socket);
        return;
    }
    self->is_link = cut_token(socket->reactor, &identity) &&
                    sk_door_peer_of(&socket->door, identity, &self->peer);
    if (!self->is_link)
        return;
    /* a process that was started again takes the place of the one before */
    struct sk_connection *before = link_of(socket, self->peer);
    self->next = socket->links;
    socket->links = self;
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
        (void)connection_write(self, &part, 1);
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
    (void)connection_write(self, &part, 1);
}

/* One frame at base + scan. 1: taken; 0: not all of it is there; the connection may be dead. */
static int take_frame(struct sk_connection *self, const uint8_t *base, size_t size, size_t *begin)
{
    struct sk_zmtp_frame frame;
    size_t at = *begin + self->scan;
    int rc = sk_zmtp_head_read(&frame, base + at, size - at);
    if (rc < 0 || (rc > 0 && (frame.size > self->socket->bytes_max ||
                              self->scan + frame.size > self->socket->bytes_max ||
                              (frame.is_command && frame.size > SK_ZMTP_COMMAND_BYTES_MAX)))) {
        self->socket->reactor->counters.refused++;
        sk_connection_kill(self);
        return 0;
    }
    if (rc == 0 || size - at - frame.head_bytes < frame.size)
        return 0;
    size_t body = at + frame.head_bytes, taken = frame.head_bytes + (size_t)frame.size;
    if (frame.is_command && self->scan == 0) {
        on_command(self, sk_span_of(base + body, (size_t)frame.size));
        *begin += taken;
        return 1;
    }
    if (frame.is_command || self->state != OPEN) {
        sk_connection_kill(self);
        return 0;
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
    while (self->state != DEAD && !self->socket->reactor->is_stopped &&
           take_frame(self, base, size, &begin) > 0)
        ;
    return begin;
}

static bool in_reserve(struct sk_connection *self, size_t capacity)
{
    if (capacity <= self->in_capacity)
        return true;
    uint8_t *grown = realloc(self->in, capacity);
    if (grown == NULL)
        return false;
    self->in = grown;
    self->in_capacity = capacity;
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
    return true;
}

static void in_taken(struct sk_connection *self, size_t taken)
{
    self->in_size -= taken;
    if (self->in_size != 0 && taken != 0)
        memmove(self->in, self->in + taken, self->in_size);
    if (self->in_size == 0 && self->in_capacity > IN_BYTES_KEPT) {
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
        size_t taken = consume(self, self->in, self->in_size);
        if (self->state != DEAD)
            in_taken(self, taken);
    }
    return self->state != DEAD && size == room && (self->events & EPOLLIN) != 0;
}

static void connection_on_ready(void *arg, uint32_t events)
{
    struct sk_connection *self = arg;
    if ((events & EPOLLOUT) != 0)
        connection_flush(self);
    if (self->state != DEAD && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        for (unsigned i = 0; i < READS_MAX && connection_read(self); i++)
            ;
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
