/* The supervisor's core: starts the processes of a node, watches their heartbeats, starts them
 * again with back-off, stops them in order; answers node_status and node_stop.
 *
 * A state machine: processes are started and killed through struct sk_supervisor_hands, time and
 * messages come through struct sk_io. No jobs.
 *
 * Start. All processes at once; they find each other when their sockets are there. The node is
 * ready when each has said so. A process that ends before the node was ready for the first time is
 * tried `start_attempts_max` times (at once no more when it says that its arguments are wrong,
 * status 2), then the whole start has failed and the reason is kept. Once the node was ready it
 * never gives up. Back-off. At once after a process that had been ready for a second, else 50 ms,
 * doubled each time. Heartbeats. A ready process that says nothing for heartbeat_timeout_us is
 * killed. A pause of the supervisor itself (SIGSTOP, a suspended machine) counts for nobody. Stop.
 * First router and gateway, so that nothing new comes in; then workers, which write checkpoints;
 * then the keeper. What is left after stop_timeout_us is killed.
 *
 * Thread: one. Limits: SK_SUPERVISOR_CHILDREN_MAX processes. */
#ifndef SK_SUPERVISOR_H
#define SK_SUPERVISOR_H

#include "common/base/io.h"
#include "common/base/note.h"
#include "proto/codec.h"
#include "proto/map.h"

#include <sys/types.h>

/* Peers: the heartbeats of its processes (and frames of theirs). */
enum {
    SK_SUPERVISOR_PEER_KEEPER = 1,
    SK_SUPERVISOR_PEER_ROUTER = 2,
    SK_SUPERVISOR_PEER_GATEWAY = 3,
    SK_SUPERVISOR_PEER_WORKER_0 = 16,
};
enum { SK_SUPERVISOR_CHILDREN_MAX = 3 + SK_WORKERS_MAX, SK_ENDPOINT_BYTES = 200 };

/* name, level, what the number means (NULL: nothing) */
#define SK_SUPERVISOR_EVENTS(X)                                                                    \
    X(process_started, INFO, "pid")                                                                \
    X(process_ready, INFO, "after_us")                                                             \
    X(process_exited, WARN, "status")                                                              \
    X(process_killed, WARN, "signal")                                                              \
    X(process_not_started, ERROR, NULL)                                                            \
    X(process_silent, ERROR, "silent_us")                                                          \
    X(process_restarts, INFO, "in_us")                                                             \
    X(process_killed_at_stop, WARN, "pid")                                                         \
    X(node_ready, INFO, "after_us")                                                                \
    X(node_not_ready, WARN, "processes_ready")                                                     \
    X(node_stopping, INFO, NULL)                                                                   \
    X(message_malformed, WARN, "bytes")
enum sk_supervisor_event {
#define SK_SUPERVISOR_EVENT(name, ...) SK_SUPERVISOR_EVENT_##name,
    SK_SUPERVISOR_EVENTS(SK_SUPERVISOR_EVENT)
#undef SK_SUPERVISOR_EVENT
        SK_SUPERVISOR_EVENT_COUNT
};
/* a_name is the number's; b_name is not used. */
extern const struct sk_note_kind sk_supervisor_events[SK_SUPERVISOR_EVENT_COUNT];

struct sk_supervisor; /* opaque */

struct sk_supervisor_usage {
    uint64_t rss_bytes;
    double cpu_s;
};

/* What a core cannot do itself. name: "router"; number: 0.. */
struct sk_supervisor_hands {
    void *impl;
    /* Starts skerry-<name> --number; the pid, or -1. port: the one that it had before and should
     * take again, where its setting is 0; 0: as configured. */
    pid_t (*start)(void *impl, const char *name, uint32_t number, uint32_t port);
    void (*kill)(void *impl, pid_t pid, int signal);
    /* Something for the log. process: "router-0", or "" where the node is meant. */
    void (*tell)(void *impl, enum sk_supervisor_event event, const char *process, uint64_t number);
    struct sk_supervisor_usage (*usage)(void *impl, pid_t pid); /* zeros where it cannot be read */
};

struct sk_supervisor_config {
    uint32_t workers;
    uint64_t heartbeat_timeout_us;
    uint64_t backoff_us_max;
    uint64_t stop_timeout_us;
    uint32_t start_attempts_max; /* 0 = 5 */
    pid_t own_pid;
    char public_key[SK_Z85_KEY_BYTES];
    char client_ipc[SK_ENDPOINT_BYTES]; /* "ipc://DIR/run/client.ipc" */
};

struct sk_supervisor_status {
    bool is_ready;   /* every process is */
    bool is_stopped; /* no process is left, none will be started */
    bool has_failed; /* the first start did: is_stopped follows; words say why */
    char words[300]; /* for STATUS=: what it is doing */
    char client_tcp[SK_ENDPOINT_BYTES], http[SK_ENDPOINT_BYTES]; /* "" until known */
};

/* On success *out is owned by the caller; io and hands are copied, what they point to is borrowed.
 * INVALID: workers out of 1..SK_WORKERS_MAX. Starts nothing yet. */
SK_CHECKED enum sk_err sk_supervisor_new(struct sk_supervisor **out,
                                         const struct sk_supervisor_config *config,
                                         const struct sk_io *io,
                                         const struct sk_supervisor_hands *hands,
                                         struct sk_diag *d);
void sk_supervisor_destroy(struct sk_supervisor **self); /* the processes live on */
void sk_supervisor_start(struct sk_supervisor *self);
void sk_supervisor_stop(struct sk_supervisor *self);

/* A heartbeat (link message of kind STATS), or a request of one of its processes. */
void sk_supervisor_on_message(struct sk_supervisor *self, sk_peer from, struct sk_span bytes);
/* A request: node_status or node_stop; anything else is an error reply. */
void sk_supervisor_on_client(struct sk_supervisor *self, sk_peer from, struct sk_span frame);
/* A process has ended, with a status as of waitpid(); reason: its last words, "" where it had none.
 * Pids that are nobody's are ignored. */
void sk_supervisor_on_exit(struct sk_supervisor *self, pid_t pid, int wait_status,
                           const char *reason);
/* The process "router-0" of a pid; false where it is nobody's. */
bool sk_supervisor_process_of(const struct sk_supervisor *self, pid_t pid, char *out, size_t size);
uint64_t sk_supervisor_on_time(struct sk_supervisor *self);
void sk_supervisor_get_status(const struct sk_supervisor *self, struct sk_supervisor_status *out);

#endif
