/* What goes out over connections of ipc.c. What the peer does not take waits in `out`: past OUT_PAUSE_BYTES
 * nothing more is taken from it, past OUT_BYTES_MAX its replies are dropped.
 *
 * Small messages of one turn are gathered there too (the connection is corked) and leave in one system call:
 * one a message is a fifth of what a search costs, and wakes its receiver for each. They leave at the end of
 * the turn, or before work that would hold them longer than CORK_US_MAX. */
#include "common/shell/connection.h"
#include "common/shell/log.h"

#include <errno.h>
#include <sys/socket.h>

enum {
    OUT_CLIENT_BYTES_KEPT = 16 * 1024, /* of a buffer that is empty; a node may have many clients */
    OUT_LINK_BYTES_KEPT = 128 * 1024,
    OUT_PAUSE_BYTES = 1 << 20,
    OUT_BYTES_MAX = 64 << 20,       /* of a client */
    OUT_LINK_BYTES_MAX = 512 << 20, /* of a process of ours, whose requests are bounded by our own */
    OUT_BYTES_ALL_MAX = 256 << 20,  /* of all clients */
    WRITE_PARTS_MAX = 12,
    CORK_MESSAGE_BYTES_MAX = 8 * 1024, /* larger ones are not copied */
    CORK_BYTES_MAX = 64 * 1024,        /* of a connection; more leaves at once */
    CORK_US_MAX = 100,
};

/* Of two processes that both have much for each other one must read, or both wait for ever: it is the one
 * with the door. The other (a worker, whose replies are larger than its requests) takes no more work than
 * it gets rid of. */
bool sk_connection_is_paused(const struct sk_connection *self)
{
    bool is_read_always = self->is_link && self->socket->kind == SK_SOCKET_DOOR;
    return !is_read_always && sk_connection_waiting(self) > OUT_PAUSE_BYTES;
}

static void want(struct sk_connection *self)
{
    bool is_paused = sk_connection_is_paused(self);
    uint32_t events = (sk_connection_waiting(self) != 0 ? EPOLLOUT : 0) | (is_paused ? 0 : EPOLLIN);
    if (!is_paused && self->has_unread)
        sk_connection_hold(self);
    if (events == self->events)
        return;
    self->events = events;
    sk_loop_change(&self->socket->reactor->loop, &self->source, events);
}

/* Clients share one limit; a process of ours is not held up by them. */
static void count_out(const struct sk_connection *self, size_t more, size_t less)
{
    if (!self->is_link)
        self->socket->reactor->out_bytes += more - less;
}

/* The one that has left most of what it asked for. */
static struct sk_connection *slowest_client(const struct sk_reactor *reactor)
{
    struct sk_connection *slowest = NULL;
    for (uint32_t slot = 0; slot < reactor->connection_slots; slot++) {
        struct sk_connection *at = reactor->connections[slot];
        if (at != NULL && !at->is_link &&
            (slowest == NULL || sk_connection_waiting(at) > sk_connection_waiting(slowest)))
            slowest = at;
    }
    return slowest;
}

/* Whether a message of that size may wait for this peer. One that never reads takes nothing from those
 * that do: where all that waits is too much, the one with most of it is ended. */
static bool make_room(struct sk_connection *self, size_t size)
{
    struct sk_reactor *reactor = self->socket->reactor;
    size_t most = self->is_link ? OUT_LINK_BYTES_MAX : OUT_BYTES_MAX;
    if (sk_connection_waiting(self) + size > most)
        return false;
    while (!self->is_link && reactor->out_bytes + size > OUT_BYTES_ALL_MAX) {
        struct sk_connection *slowest = slowest_client(reactor);
        if (slowest == NULL || sk_connection_waiting(slowest) == 0)
            return false;
        sk_log(SK_LEVEL_WARN, "slow_client", "socket=\"%s\" waiting_bytes=%zu",
               slowest->socket->path, sk_connection_waiting(slowest));
        sk_connection_kill(slowest);
        if (slowest == self)
            return false;
    }
    return true;
}

/* Pieces from byte `sent` on wait behind what waits already. */
static bool append(struct sk_connection *self, const struct iovec *pieces, unsigned count, size_t sent,
                 size_t total)
{
    size_t waiting = sk_connection_waiting(self);
    /* of a message that was begun the rest must follow */
    if (sent == 0 && !make_room(self, total)) {
        self->socket->reactor->counters.dropped_slow++;
        return false;
    }
    for (unsigned p = 0; p < count; p++) {
        size_t skip = sent < pieces[p].iov_len ? sent : pieces[p].iov_len;
        sk_buffer_append(&self->out, (const uint8_t *)pieces[p].iov_base + skip,
                         pieces[p].iov_len - skip);
        sent -= skip;
    }
    count_out(self, sk_connection_waiting(self), waiting);
    if (!self->out.is_broken)
        return true;
    sk_connection_kill(self);
    return false;
}

/* What could not be sent waits for the loop to tell that there is room. */
static bool keep(struct sk_connection *self, const struct iovec *pieces, unsigned count, size_t sent,
                 size_t total)
{
    if (!append(self, pieces, count, sent, total))
        return false;
    want(self);
    return true;
}

/* A client that has closed may have sent much before: that is read to its end. */
static void write_failed(struct sk_connection *self)
{
    if (self->is_link || (errno != EPIPE && errno != ECONNRESET)) {
        sk_connection_kill(self);
        return;
    }
    count_out(self, 0, sk_connection_waiting(self));
    sk_buffer_deinit(&self->out);
    self->out_at = 0;
    self->is_deaf = true;
    want(self);
}

bool sk_connection_write(struct sk_connection *self, struct iovec *pieces, unsigned count)
{
    size_t total = 0, sent = 0;
    if (self->is_deaf) {
        self->socket->reactor->counters.dropped_gone++;
        return false;
    }
    for (unsigned p = 0; p < count; p++)
        total += pieces[p].iov_len;
    if (sk_connection_waiting(self) == 0) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
        self->socket->reactor->counters.writes++;
        ssize_t done = sendmsg(self->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            write_failed(self);
            return false;
        }
        sent = done > 0 ? (size_t)done : 0;
        if (sent == total)
            return true;
    }
    return keep(self, pieces, count, sent, total);
}

void sk_connection_flush(struct sk_connection *self)
{
    size_t waiting = sk_connection_waiting(self);
    ssize_t done = 0;
    if (waiting != 0) {
        self->socket->reactor->counters.writes++;
        done = send(self->source.fd, self->out.bytes + self->out_at, waiting,
                    MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    if (done < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            write_failed(self);
        else
            want(self);
        return;
    }
    self->out_at += (size_t)done;
    count_out(self, 0, (size_t)done);
    if (self->out_at == self->out.size) {
        self->out_at = 0;
        if (self->out.capacity > (self->is_link ? OUT_LINK_BYTES_KEPT : OUT_CLIENT_BYTES_KEPT))
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

/* ---- gathering ---- */

/* Takes it out of the list; sends nothing. */
static void uncork(struct sk_connection *self)
{
    if (!self->is_corked)
        return;
    struct sk_connection **at = &self->socket->reactor->corked;
    while (*at != self)
        at = &(*at)->next_corked;
    *at = self->next_corked;
    self->is_corked = false;
}

void sk_connection_send_last(struct sk_connection *self)
{
    size_t waiting = sk_connection_waiting(self);
    if (!self->is_corked)
        return; /* what waits for it was tried before, and there was no room */
    uncork(self);
    if (waiting == 0)
        return;
    self->socket->reactor->counters.writes++;
    (void)!send(self->source.fd, self->out.bytes + self->out_at, waiting, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void sk_connections_flush(struct sk_reactor *reactor)
{
    while (reactor->corked != NULL) {
        struct sk_connection *self = reactor->corked;
        uncork(self);
        sk_connection_flush(self);
    }
}

void sk_connections_flush_before(struct sk_reactor *reactor, uint32_t work_us)
{
    if (reactor->corked == NULL)
        return;
    if (work_us == 0 || sk_reactor_now_us() - reactor->corked_us + work_us > CORK_US_MAX)
        sk_connections_flush(reactor);
}

/* Gathers a message; false: it is dropped. */
static bool cork(struct sk_connection *self, const struct iovec *pieces, unsigned count, size_t total)
{
    struct sk_reactor *reactor = self->socket->reactor;
    uint64_t now = sk_reactor_now_us();
    if (reactor->corked == NULL)
        reactor->corked_us = now;
    if (!self->is_corked) {
        self->is_corked = true;
        self->next_corked = reactor->corked;
        reactor->corked = self;
    }
    if (!append(self, pieces, count, 0, total))
        return false;
    if (now - reactor->corked_us >= CORK_US_MAX)
        sk_connections_flush(reactor);
    else if (sk_connection_waiting(self) >= CORK_BYTES_MAX) {
        uncork(self);
        sk_connection_flush(self);
    }
    return true;
}

/* In order behind what is gathered already. */
static bool cork_or_write(struct sk_connection *self, struct iovec *pieces, unsigned count, size_t total)
{
    bool is_blocked = sk_connection_waiting(self) != 0 && !self->is_corked; /* the loop will tell */
    if (total <= CORK_MESSAGE_BYTES_MAX && !is_blocked && !self->is_deaf)
        return cork(self, pieces, count, total);
    if (self->is_corked) {
        uncork(self);
        sk_connection_flush(self);
    }
    if (self->state == DEAD) { /* that has found it gone */
        self->socket->reactor->counters.dropped_gone++;
        return false;
    }
    return sk_connection_write(self, pieces, count);
}

static void message_write(struct sk_connection *self, bool has_delimiter,
                          const struct sk_span *parts, unsigned part_count)
{
    struct iovec pieces[WRITE_PARTS_MAX];
    uint8_t delimiter[2] = {1, 0}, head[SK_ZMTP_HEAD_BYTES_MAX]; /* an empty frame, more follows */
    unsigned count = 0;
    size_t size = 0, total = 0;
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
    for (unsigned p = 0; p < count; p++)
        total += pieces[p].iov_len;
    if (cork_or_write(self, pieces, count, total))
        reactor->counters.sent++;
}

void sk_ipc_send(struct sk_socket *socket, sk_peer to, const struct sk_span *parts,
                 unsigned part_count)
{
    struct sk_connection *self = sk_connection_of(socket, to);
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
    uint32_t slot = (uint32_t)serial & ((1U << SK_SLOT_BITS) - 1);
    struct sk_connection *self =
        slot < reactor->connection_slots ? reactor->connections[slot] : NULL;
    if (self != NULL && self->serial == serial)
        message_write(self, has_delimiter, parts, part_count);
    else
        reactor->counters.dropped_gone++;
}
