/* Inside common/shell: the parts of a reactor. */
#ifndef SK_SHELL_INTERNAL_H
#define SK_SHELL_INTERNAL_H

#include "common/shell/loop.h"
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

/* ---- sockets.c: what all sockets share, and those of ZeroMQ (tcp doors, PUB, SUB) ---- */

enum sk_socket_kind { SK_SOCKET_LINK, SK_SOCKET_SUBSCRIBER, SK_SOCKET_PUBLISHER, SK_SOCKET_DOOR };
enum { SK_SOCKETS_MAX = 32, SK_GONE_MAX = 16, SK_ROUTING_ID_BYTES_MAX = 64, SK_TOKEN_BYTES_MAX = 64 };

struct sk_connection; /* ipc.c */

struct sk_socket {
    struct sk_reactor *reactor;
    enum sk_socket_kind kind;
    sk_peer peer; /* of all but doors */
    struct sk_reactor_door door;
    void (*on_up)(void *arg); /* a shell's module on this link */
    void *on_up_arg;
    size_t bytes_max;        /* of a message */
    struct sk_source source; /* fd of ZeroMQ, or the listening one */
    /* ZeroMQ */
    zsock_t *zsock; /* NULL: an ipc door or link of our own */
    void *raw;      /* of zsock */
    bool is_dirty;  /* used in this turn: its fd may not tell what has come */
    zsock_t *monitor; /* of subscribers */
    struct sk_source monitor_source;
    /* ipc.c */
    char path[108];
    char routing_id[SK_ROUTING_ID_BYTES_MAX + SK_TOKEN_BYTES_MAX + 2]; /* ours, of a link, with the token */
    struct sk_connection *links; /* a link's one, or a door's connections of known processes */
    uint64_t retry_us;           /* when a link connects, or a door listens, again; UINT64_MAX */
    unsigned retry_ms;
};

/* Owned by the reactor once it is in its list; what fails before is closed. */
SK_CHECKED enum sk_err sk_socket_make(struct sk_socket **out, struct sk_reactor *reactor,
                                      enum sk_socket_kind kind, struct sk_diag *d);
void sk_socket_close(struct sk_socket *self);
size_t sk_socket_bytes_max(const struct sk_reactor_door *door);
SK_CHECKED enum sk_err sk_bind_failed(struct sk_diag *d, const char *endpoint, int reason);
/* The parts joined as one message to a link, a subscriber or a client; drops and counts. */
void sk_socket_send(struct sk_reactor *self, sk_peer to, const struct sk_span *parts,
                    unsigned part_count);
/* Reads ZeroMQ sockets that were used in this turn. */
void sk_sockets_look(struct sk_reactor *self);
/* Whether one was used since: its fd may not tell what has come. */
bool sk_sockets_are_dirty(const struct sk_reactor *self);
/* A link's peer is not there: the core hears of it at the end of the turn. */
void sk_link_gone(struct sk_reactor *reactor, sk_peer peer);
/* Calls fn(arg) too whenever the link of that peer comes up. */
void sk_reactor_on_up(struct sk_reactor *self, sk_peer peer, void (*fn)(void *arg), void *arg);
void sk_socket_is_up(struct sk_socket *self);

/* ---- ipc.c: doors and links over unix sockets, ZMTP spoken in the loop's own thread ---- */

/* endpoint begins with "ipc://". */
SK_CHECKED enum sk_err sk_ipc_bind(struct sk_socket *self, const char *endpoint, struct sk_diag *d);
SK_CHECKED enum sk_err sk_ipc_connect(struct sk_socket *self, const char *endpoint,
                                      struct sk_diag *d);
void sk_ipc_close(struct sk_socket *self);
/* To a known process; a client, by what its return address keeps. */
void sk_ipc_send(struct sk_socket *self, sk_peer to, const struct sk_span *parts,
                 unsigned part_count);
void sk_ipc_send_to_client(struct sk_reactor *reactor, uint64_t serial, bool has_delimiter,
                           const struct sk_span *parts, unsigned part_count);
void sk_ipc_schedule(struct sk_reactor *reactor, uint64_t at_us); /* sk_ipc_on_time by then */
void sk_ipc_retry(struct sk_socket *self, bool was_open);         /* a link connects again */
/* Connects again, ends handshakes that take too long; returns when it wants to be called next. */
uint64_t sk_ipc_on_time(struct sk_reactor *reactor, uint64_t now_us);
/* Frees what was closed in this turn. */
void sk_ipc_reap(struct sk_reactor *reactor);
void sk_ipc_deinit(struct sk_reactor *reactor);

/* ---- ipc_connection.c, ipc_out.c ---- */

enum { SK_IPC_SCRATCH_BYTES = 64 * 1024 };
/* Takes the fd; NULL: it was closed. */
struct sk_connection *sk_connection_new(struct sk_socket *socket, int fd);
/* Closed at once, freed at the end of the turn: whoever called may still look at it. */
void sk_connection_kill(struct sk_connection *self);
void sk_connections_close(struct sk_socket *socket);
/* Gives those that are held a turn. */
void sk_connections_look(struct sk_reactor *reactor);
/* Sends what this turn has gathered; nothing is held while the loop waits. */
void sk_connections_flush(struct sk_reactor *reactor);
/* The same when what is gathered would be held too long by work of so many us; 0: not known, at once. */
void sk_connections_flush_before(struct sk_reactor *reactor, uint32_t work_us);
/* Ends handshakes that take too long; returns when to look next. */
uint64_t sk_connections_on_time(struct sk_reactor *reactor, uint64_t now_us);

/* ---- arrive.c: what a message that came is, and who gets it ---- */

/* One message behind its routing id. The parts are borrowed. */
struct sk_arrival {
    struct sk_socket *socket;
    zmq_msg_t *routing_id; /* of clients; taken */
    const char *user;      /* a client's public key where the door has CURVE, else NULL */
    struct sk_span parts[2];
    unsigned part_count; /* how many there were: more than two are not kept */
};
void sk_link_arrived(struct sk_socket *socket, sk_peer from, const struct sk_arrival *arrival);
void sk_client_arrived(struct sk_arrival *arrival);
/* The peer of a routing id (without the token) at this door: "router", or "worker-7" with no more digits
 * than needed. */
bool sk_door_peer_of(const struct sk_reactor_door *door, struct sk_span id, sk_peer *out);
bool sk_door_has_peer(const struct sk_reactor_door *door, sk_peer peer);

/* ---- watch.c ---- */

enum { SK_WATCHES_MAX = 64 };

struct sk_watch {
    struct sk_reactor *reactor;
    void (*fn)(void *arg); /* NULL: free */
    void *arg;
    bool is_period; /* fd is a timer of ours */
    struct sk_source source;
};
void sk_watches_deinit(struct sk_reactor *self);

/* ---- reactor.c ---- */

struct sk_reactor {
    /* settings */
    unsigned drain_max;
    unsigned handshake_ms;
    const struct sk_note_kind *notes;
    unsigned note_count;
    struct sk_reactor_core core;
    struct sk_io io;
    /* state */
    struct sk_loop loop;
    struct sk_source timer, signals_source, jobs_done;
    struct sk_jobs *jobs;
    struct sk_returns returns;
    struct sk_socket *sockets[SK_SOCKETS_MAX];
    unsigned socket_count;
    struct sk_watch watches[SK_WATCHES_MAX];
    sk_peer gone[SK_GONE_MAX]; /* links whose send has failed in this turn */
    unsigned gone_count;
    struct sk_job *quick_first, *quick_last; /* run at the end of the turn */
    char token[SK_TOKEN_BYTES_MAX + 1]; /* of this node's links; "": none */
    uint64_t armed_us; /* of timer; UINT64_MAX: not armed */
    struct sk_connection **connections; /* by slot */
    uint32_t connection_slots, connection_count;
    uint64_t generation;
    struct sk_connection *dead; /* closed in this turn */
    struct sk_connection *held, *held_last; /* messages that were read wait for the next turn */
    struct sk_connection *corked; /* messages for them are gathered to be sent together */
    uint64_t corked_us;         /* since when */
    uint32_t connections_max;   /* more are not let in */
    uint8_t *scratch;           /* what is read first */
    uint64_t out_bytes;         /* that wait for clients that do not read */
    uint64_t in_bytes;          /* of clients' messages that are not complete */
    uint64_t in_order;
    uint64_t ipc_next_us;       /* when sk_ipc_on_time wants to be called */
    unsigned signals;
    bool is_stopped;
    int status;
    uint64_t random[32];
    unsigned random_left;
    struct sk_reactor_counters counters;
};

uint64_t sk_reactor_now_us(void);
/* Before the first socket of a process. */
void sk_reactor_context(void);

#endif
