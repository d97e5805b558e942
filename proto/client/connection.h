/* The parts of one connection: requests in flight and who waits for them (in_flight.c), the socket
 * and what its monitor tells (socket.c), calls (connection.c). Everything here is called under the
 * lock of the handle. Not installed. */
#ifndef SK_CLIENT_CONNECTION_H
#define SK_CLIENT_CONNECTION_H

#include "proto/client/internal.h"

#include <pthread.h>

enum { BUCKET_COUNT = 1024 };

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

uint64_t sk_client_now_us(void);

/* ---- Who waits (in_flight.c) ---- */

void sk_waiter_init(struct waiter *self);
void sk_waiter_deinit(struct waiter *self);
/* One sleep with the lock given up, as the reader or behind it, and what came is handed out. The
 * caller looks at its condition and comes again. */
void sk_waiter_sleep(struct skerry *self, struct waiter *waiter, uint64_t until_us);
void sk_waiters_wake(struct skerry *self);
/* The place of the reader is free: the next who waits takes it. */
void sk_waiters_hand_over(struct skerry *self);

/* ---- Requests in flight (in_flight.c) ---- */

void sk_pending_add(struct skerry *self, struct pending *pending);
void sk_pending_remove(struct skerry *self, struct pending *pending);
struct pending *sk_pending_find(struct skerry *self, uint64_t id);
/* reply or error: one of the two. The reply is taken. */
void sk_pending_end(struct skerry *self, struct pending *pending, struct skerry_reply *reply,
                    const struct skerry_error *error);
void sk_pending_end_all(struct skerry *self, const struct skerry_error *error);
/* Ends submitted requests whose deadline is over. */
void sk_pending_expire(struct skerry *self, uint64_t now_us);

/* ---- The socket (socket.c) ---- */

enum skerry_code sk_socket_open(struct skerry *self, struct skerry_error *error);
void sk_socket_close(struct skerry *self);
/* Takes everything that came: replies end their requests, the monitor's events change the state. */
void sk_socket_drain(struct skerry *self);
void sk_socket_drain_monitor(struct skerry *self);

#endif
