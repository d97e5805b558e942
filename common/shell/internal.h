/* Inside common/shell: the parts of a reactor. */
#ifndef SK_SHELL_INTERNAL_H
#define SK_SHELL_INTERNAL_H

#include "common/shell/reactor.h"

#include <czmq.h>

/* ---- jobs.c: the lanes SLOW and WRITE and the way back ---- */

struct sk_jobs; /* opaque */

SK_CHECKED enum sk_err sk_jobs_new(struct sk_jobs **out, unsigned search_threads, struct sk_diag *d);
/* Waits for jobs that are running; drops what is queued. */
void sk_jobs_destroy(struct sk_jobs **self);
int sk_jobs_fd(const struct sk_jobs *self); /* readable while jobs are done */
/* false: no thread could be started, run it in place. */
bool sk_jobs_submit(struct sk_jobs *self, struct sk_job *job);
/* The jobs that are done, oldest first, linked by next. */
struct sk_job *sk_jobs_take_done(struct sk_jobs *self);

/* ---- returns.c: return addresses of clients, and how many each connection has open ---- */

struct sk_return {
    zmq_msg_t routing_id;
    struct sk_socket *socket;
    uint32_t client; /* index of its connection */
    uint32_t generation;
    uint32_t next_free; /* index + 1 */
    bool is_used;
    bool has_delimiter; /* the reply has the shape of its request */
};

/* A connection with open requests, known by a keyed hash of its socket and routing id. */
struct sk_return_client {
    uint64_t hash;
    uint32_t open_count;
    uint32_t next; /* index + 1: in its bucket, or of the free ones */
};

struct sk_returns {
    struct sk_return *entries;
    struct sk_return_client *clients;
    uint32_t *buckets; /* index + 1 of a client */
    uint32_t capacity, fresh, fresh_clients; /* from `fresh` on they were never used */
    uint32_t free_first, free_client;        /* index + 1 */
    uint64_t hash_key;
};

SK_CHECKED enum sk_err sk_returns_init(struct sk_returns *self, uint32_t capacity, uint64_t hash_key,
                                       struct sk_diag *d);
void sk_returns_deinit(struct sk_returns *self);
/* Takes the routing id (the message is empty afterwards); 0 when all are in use. *open_count: how
 * many this connection has now. */
sk_peer sk_returns_give(struct sk_returns *self, struct sk_socket *socket, zmq_msg_t *routing_id,
                        bool has_delimiter, uint32_t *open_count);
/* The entry of a return address, once; NULL when it was used or is nobody's. It must be given back
 * with sk_returns_free after use. */
struct sk_return *sk_returns_take(struct sk_returns *self, sk_peer peer);
void sk_returns_free(struct sk_returns *self, struct sk_return *entry);

/* ---- sockets.c ---- */

enum sk_socket_kind { SK_SOCKET_LINK, SK_SOCKET_SUBSCRIBER, SK_SOCKET_PUBLISHER, SK_SOCKET_DOOR };
enum { SK_SOCKETS_MAX = 32, SK_GONE_MAX = 16 };

struct sk_socket {
    struct sk_reactor *reactor;
    enum sk_socket_kind kind;
    zsock_t *zsock;
    void *raw;        /* of zsock */
    zsock_t *monitor; /* of links and subscribers */
    sk_peer peer;     /* of all but doors */
    struct sk_reactor_door door;
    void (*on_up)(void *arg); /* a shell's module on this link */
    void *on_up_arg;
};

void sk_socket_close(struct sk_socket *self);
/* The parts joined as one message to a link, a subscriber or a client; drops and counts. */
void sk_socket_send(struct sk_reactor *self, sk_peer to, const struct sk_span *parts,
                    unsigned part_count);
/* Calls fn(arg) too whenever the link of that peer comes up. */
void sk_reactor_on_up(struct sk_reactor *self, sk_peer peer, void (*fn)(void *arg), void *arg);

/* ---- watch.c ---- */

enum { SK_WATCHES_MAX = 64 };

struct sk_watch {
    struct sk_reactor *reactor;
    void (*fn)(void *arg);
    void *arg;
    int fd; /* -1: a timer, or free where fn is NULL */
};

/* ---- reactor.c ---- */

struct sk_reactor {
    /* settings */
    unsigned drain_max;
    const struct sk_note_kind *notes;
    unsigned note_count;
    struct sk_reactor_core core;
    struct sk_io io;
    /* state */
    zloop_t *loop;
    struct sk_jobs *jobs;
    struct sk_returns returns;
    struct sk_socket *sockets[SK_SOCKETS_MAX];
    unsigned socket_count;
    struct sk_watch watches[SK_WATCHES_MAX];
    sk_peer gone[SK_GONE_MAX]; /* links whose send has failed in this turn */
    unsigned gone_count;
    struct sk_job *quick_first, *quick_last; /* submitted by a job that runs in place */
    bool is_in_place;
    int timer_fd, signal_fd;
    uint64_t armed_us; /* of timer_fd; UINT64_MAX: not armed */
    unsigned signals;
    bool is_stopped;
    int status;
    uint64_t random[32];
    unsigned random_left;
    struct sk_reactor_counters counters;
};

/* What every handler of the loop ends with: the core's timer, and whether the loop goes on (0). */
int sk_reactor_turn(struct sk_reactor *self);
/* Before the first socket of a process. */
void sk_reactor_context(void);

#endif
