/* One connection of ipc.c: ipc_connection.c reads it, ipc_out.c writes to it. */
#ifndef SK_SHELL_CONNECTION_H
#define SK_SHELL_CONNECTION_H

#include "common/shell/internal.h"
#include "common/shell/zmtp.h"
#include "proto/pack.h"

#include <sys/uio.h>

enum { SK_SLOT_BITS = 20 };

enum sk_connection_state { AT_GREETING, AT_READY, OPEN, DEAD };

struct sk_connection {
    struct sk_source source;
    struct sk_socket *socket;
    struct sk_connection *next;      /* of the socket's links, or of the dead */
    struct sk_connection *next_held; /* of the reactor's held */
    struct sk_connection *next_corked; /* of the reactor's corked */
    uint64_t serial;                 /* generation, slot */
    enum sk_connection_state state;
    bool is_link;                    /* a known process */
    bool is_held;                    /* in the reactor's list */
    bool is_corked;                  /* `out` has messages that nobody has tried to send yet */
    bool has_unread;                 /* in `in` are bytes that nobody has looked at yet */
    bool is_deaf;                    /* it has closed: what it had sent still counts, answers do not */
    sk_peer peer;                    /* of a link */
    uint64_t handshake_us;           /* it must be open by then */
    uint32_t events;                 /* that the loop waits for */
    uint8_t *in;                     /* the message that is not complete yet, or not taken yet */
    size_t in_size, in_capacity;
    size_t in_at;                    /* bytes of it that are taken already */
    uint64_t in_order;               /* when that message began: the lower the older */
    size_t scan;                     /* bytes of whole frames of it */
    struct {
        size_t at, size;
    } parts[2];
    unsigned part_count;
    struct sk_buffer out;
    size_t out_at; /* sent already */
};

static inline size_t sk_connection_waiting(const struct sk_connection *self)
{
    return self->out.size - self->out_at;
}

/* Whether its messages rest until it has taken what we have for it. */
bool sk_connection_is_paused(const struct sk_connection *self);
/* Puts it into the reactor's list: its turn comes without new bytes. */
void sk_connection_hold(struct sk_connection *self);
/* The pieces of one message or command; what cannot be sent now is kept. False: dropped. */
bool sk_connection_write(struct sk_connection *self, struct iovec *pieces, unsigned count);
void sk_connection_flush(struct sk_connection *self);
/* Of one that is about to be closed: what is gathered for it answers what came before the reason for that. */
void sk_connection_send_last(struct sk_connection *self);
struct sk_connection *sk_connection_of(const struct sk_socket *socket, sk_peer peer);

#endif
