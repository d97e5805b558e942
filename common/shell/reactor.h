/* The loop of a process: one epoll (loop.h), which gives a core its world (struct sk_io of
 * common/base/io.h): sockets, clocks, one timer, threads for jobs, SIGTERM. ipc doors and links speak
 * ZMTP in the loop's own thread (ipc.c); CURVE over tcp and the hints are libzmq's.
 *
 * A shell is short:
 *     sk_process_start(&process, "router", argc, argv)          arguments, config, limits, log
 *     sk_reactor_new(&reactor, &config, &d)
 *     sk_router_new(&core, ..., sk_reactor_io(reactor), &d)
 *     sk_reactor_set_core(reactor, &(struct sk_reactor_core){.core = core, .on_message = ...})
 *     sk_reactor_connect / _bind / _bind_publisher / _subscribe ...
 *     status = sk_reactor_run(reactor)
 *     sk_router_destroy(&core); sk_reactor_destroy(&reactor)
 *
 * What the peers do wrong (too large, too many parts, unknown routing id, gone, slow) is counted and
 * dropped, or answered where it was a client; it never ends the loop.
 * Thread: all of it on the one that made it, before and during run; only run() of jobs goes elsewhere
 * (and may call io->mono_us, io->wall_us). Not after fork: the ZeroMQ context is made by
 * sk_reactor_new, so pin the process to its core before (sk_process_start does). */
#ifndef SK_REACTOR_H
#define SK_REACTOR_H

#include "common/base/io.h"
#include "common/base/note.h"
#include "proto/codec.h"

struct sk_reactor; /* opaque */
struct sk_zap;
struct sk_keys;

struct sk_reactor_config {
    unsigned drain_max;        /* messages of a socket before the next one's turn; 0 = 64 */
    unsigned search_threads;   /* of the SLOW lane, started with its first job; 0 = 1 */
    unsigned handshake_ms;     /* a connection over ipc that is not open by then is closed; 0 = 10,000 */
    unsigned clients_open_max; /* return addresses given out and not used yet; 0 = 16,384 */
    const struct sk_note_kind *notes; /* of the core; borrowed until destroy */
    unsigned note_count;
};

/* Any callback may be NULL: the core has no use for it. */
struct sk_reactor_core {
    void *core;
    /* bytes and frame are borrowed for the call. */
    void (*on_message)(void *core, sk_peer from, struct sk_span bytes);
    /* A client's request. `from` is good for one send. role NONE: its key is not in the live set
     * (any more): answer unauthorized. key: its public key in Z85, "" on local sockets. */
    void (*on_client)(void *core, sk_peer from, enum sk_role role, const char *key,
                      struct sk_span frame);
    /* A link made by sk_reactor_connect or _subscribe is up, again or for the first time. */
    void (*on_connected)(void *core, sk_peer peer);
    /* A send to a link of a door found nobody there: that process has ended. Called after the handler
     * that sent. Links made by sk_reactor_connect just drop. */
    void (*on_disconnected)(void *core, sk_peer peer);
    /* Called after every turn of the loop (each batch of messages or completions) and when the time
     * it returned has come. mono_us; UINT64_MAX: never. */
    uint64_t (*on_time)(void *core);
    void (*on_job_done)(void *core, struct sk_job *job);
    /* SIGTERM or SIGINT. The loop goes on until sk_reactor_stop; NULL: it ends at once. A second
     * signal ends it in any case. */
    void (*on_stop)(void *core);
};

/* On success *out is owned by the caller. NOMEM, UNAVAILABLE. Blocks SIGTERM and SIGINT for the
 * process (they come through a signalfd) and ignores SIGPIPE. */
SK_CHECKED enum sk_err sk_reactor_new(struct sk_reactor **out, const struct sk_reactor_config *config,
                                      struct sk_diag *d);
/* Waits for jobs that are running; what is queued is dropped. Destroy the core first or after, it
 * is not called any more. */
void sk_reactor_destroy(struct sk_reactor **self);
const struct sk_io *sk_reactor_io(struct sk_reactor *self); /* borrowed until destroy */
void sk_reactor_set_core(struct sk_reactor *self, const struct sk_reactor_core *core); /* copied */
/* Returns when sk_reactor_stop was called: its status. */
int sk_reactor_run(struct sk_reactor *self);
void sk_reactor_stop(struct sk_reactor *self, int status);

/* ---- sockets. endpoint: "ipc:///..." or "tcp://..."; every function fails with UNAVAILABLE and
 * words of what to do (port in use, folder not writable). ---- */

/* Links of one node share a token (environment SKERRY_LINK_TOKEN, made by the supervisor) that stands
 * behind each routing id on the wire. ROUTER hands the mail of an id over to whoever comes last under
 * it, and leaves the one before in silence: a stranger must not be able to name one. */

/* A DEALER to one process, under a routing id by which it knows us ("worker-0"). What is sent while
 * the link is down is dropped; on_connected tells when it is up. peer < SK_PEER_FIRST_CLIENT. */
SK_CHECKED enum sk_err sk_reactor_connect(struct sk_reactor *self, sk_peer peer, const char *endpoint,
                                          const char *routing_id, struct sk_diag *d);
/* SUB to everything; messages come to on_message(peer). */
SK_CHECKED enum sk_err sk_reactor_subscribe(struct sk_reactor *self, sk_peer peer,
                                            const char *endpoint, struct sk_diag *d);
/* PUB; io->send(peer) publishes. What others send there (subscriptions) is bounded. */
SK_CHECKED enum sk_err sk_reactor_bind_publisher(struct sk_reactor *self, sk_peer peer,
                                                 const char *endpoint, struct sk_diag *d);

/* "router" alone when count is 0, else "worker-0".."worker-<count-1>", to consecutive peers. */
struct sk_reactor_link {
    const char *routing_id; /* without number; borrowed until destroy */
    unsigned count;
    sk_peer first_peer;
};
enum { SK_REACTOR_LINKS_MAX = 8 };

/* A ROUTER socket: a door for known processes (ipc only), for clients, or both. */
struct sk_reactor_door {
    const char *endpoint; /* tcp port 0 takes a free one */
    struct sk_reactor_link links[SK_REACTOR_LINKS_MAX];
    unsigned link_count;
    bool takes_clients;        /* else a message from an unknown routing id is dropped */
    enum sk_role role;         /* of clients where keys is NULL: the file mode decides who they are */
    const struct sk_keys *keys; /* CURVE server with these; zap then tells the role of each message */
    struct sk_zap *zap;        /* with keys: borrowed until destroy */
    size_t message_bytes_max;  /* a larger one closes that connection; 0 = SK_FRAME_BYTES_MAX */
    int receive_queue_max;     /* messages a peer; 0 = 64 for doors that take clients, else 1,000 */
    unsigned client_open_max;  /* unanswered requests a client; past it `busy` at once; 0 = 512 */
};
/* bound (NULL is fine): the endpoint with its real port. */
SK_CHECKED enum sk_err sk_reactor_bind(struct sk_reactor *self, const struct sk_reactor_door *door,
                                       char *bound, size_t bound_size, struct sk_diag *d);

/* ---- for shells ---- */
/* Calls fn(arg) every interval_ms while the loop runs. */
SK_CHECKED enum sk_err sk_reactor_every(struct sk_reactor *self, unsigned interval_ms,
                                        void (*fn)(void *arg), void *arg, struct sk_diag *d);
/* Calls fn(arg) while fd is readable (level-triggered); fd stays the caller's. */
SK_CHECKED enum sk_err sk_reactor_watch(struct sk_reactor *self, int fd, void (*fn)(void *arg),
                                        void *arg, struct sk_diag *d);
void sk_reactor_unwatch(struct sk_reactor *self, int fd);

struct sk_reactor_counters {
    uint64_t received, sent;
    uint64_t writes;          /* system calls that sent messages over ipc; fewer than messages under load */
    uint64_t dropped_slow;    /* the peer does not read: its queue was full */
    uint64_t dropped_gone;    /* the peer went away */
    uint64_t dropped_unknown; /* from a routing id that is nobody's, or to a return address twice */
    uint64_t refused;         /* a client's message of too many parts, or one too many in flight */
    uint64_t jobs_quick, jobs_slow, jobs_write;
};
const struct sk_reactor_counters *sk_reactor_counters(const struct sk_reactor *self);

#endif
