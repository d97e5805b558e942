/* The router's core: the node's door. Takes requests of clients, checks who may ask what, sends them to
 * the workers that hold the shards (or to the keeper), merges what comes back, and answers every
 * request by its deadline.
 *
 * A state machine without sockets, clock, randomness or threads of its own: it sees the world through
 * struct sk_io. It has no jobs.
 *
 * Peers. A message to or from KEEPER and WORKER_0 + n is one link frame (proto/link.h: header, then a
 * body); from HINTS comes a link header of kind HINT; SUPERVISOR speaks plain client frames (the core
 * asks it node_status). Numbers from SK_PEER_FIRST_CLIENT on are clients: return addresses, each used
 * for exactly one send.
 *
 * A request to a collection of one shard is passed on as it came, and its reply too: the worker checks
 * it whole. Over several shards the router checks the whole before any part is sent.
 *
 * Writes carry a stamp {incarnation, sequence}; the same stamped write is sent again while its worker
 * is silent or was replaced, inside the deadline: the worker applies it once. Reads are sent again too,
 * more rarely. What was never sent waits for its worker until the deadline.
 *
 * Thread: one. Limits: see struct sk_router_config; past them requests are answered `busy`. */
#ifndef SK_ROUTER_H
#define SK_ROUTER_H

#include "common/base/io.h"
#include "common/base/note.h"
#include "proto/map.h"

enum {
    SK_ROUTER_PEER_KEEPER = 1,
    SK_ROUTER_PEER_SUPERVISOR = 2,
    SK_ROUTER_PEER_HINTS = 3,
    SK_ROUTER_PEER_WORKER_0 = 16, /* to WORKER_0 + SK_WORKERS_MAX - 1 */
};

#define SK_ROUTER_NOTES(SK_NOTE)                                                                   \
    SK_NOTE(worker_up, INFO, "worker", "sent_again")                                               \
    SK_NOTE(worker_gone, WARN, "worker", "requests")                                               \
    SK_NOTE(request_sent_again, WARN, "peer", "request")                                           \
    SK_NOTE(reply_unwanted, DEBUG, "peer", "request")                                              \
    SK_NOTE(message_malformed, WARN, "peer", "bytes")                                              \
    SK_NOTE(map_applied, INFO, "version", "collections")                                           \
    SK_NOTE(map_refused, WARN, "version", "version_here")                                          \
    SK_NOTE(deadline_passed, DEBUG, "op", "request")
enum sk_router_note {
#define SK_ROUTER_NOTE_ENUM(name, ...) SK_ROUTER_NOTE_##name,
    SK_ROUTER_NOTES(SK_ROUTER_NOTE_ENUM)
#undef SK_ROUTER_NOTE_ENUM
    SK_ROUTER_NOTE_COUNT
};
extern const struct sk_note_kind sk_router_notes[SK_ROUTER_NOTE_COUNT];

struct sk_router; /* opaque */

struct sk_router_config {
    const char *public_key;          /* the node's identity, Z85; copied */
    const char *version;             /* of the software; copied */
    uint32_t requests_in_flight_max; /* 0 = 4,096; at most 65,536 */
    uint64_t bytes_in_flight_max;    /* frames and gathered replies of them; 0 = 256 MiB */
    uint32_t supervisor_wait_ms;     /* stats and topology wait so long for node_status; 0 = 500 */
};

struct sk_router_status {
    bool is_ready;   /* a map is here */
    bool is_stopped; /* stop was asked, and everybody has an answer */
    uint64_t map_version;
    uint32_t requests_in_flight;
    uint64_t bytes_in_flight;
    uint32_t workers_up;     /* of those that the map names */
    uint32_t workers_wanted; /* that the map names */
    uint64_t requests;       /* answered since the start */
    uint64_t errors;         /* of those, with an error */
    uint64_t resent;
    uint64_t malformed; /* messages of peers that made no sense */
};

/* On success *out is owned by the caller; io is borrowed and must outlive it. INVALID: a setting out
 * of range; NOMEM. */
SK_CHECKED enum sk_err sk_router_new(struct sk_router **out, const struct sk_router_config *config,
                                     const struct sk_io *io, struct sk_diag *d);
void sk_router_destroy(struct sk_router **self); /* sets *self to NULL; safe on NULL */

/* frame is borrowed for the call. Every call is answered by exactly one send to `from`, at once or by
 * the deadline of the request. role NONE: the key is not known (any more), answered unauthorized. */
void sk_router_on_client(struct sk_router *self, sk_peer from, enum sk_role role,
                         struct sk_span frame);
/* bytes are borrowed for the call. What makes no sense is counted, noted and dropped. */
void sk_router_on_message(struct sk_router *self, sk_peer from, struct sk_span bytes);
/* A link is new or came back. */
void sk_router_on_connected(struct sk_router *self, sk_peer peer);
/* What was sent last could not be delivered: the worker is not there. */
void sk_router_on_disconnected(struct sk_router *self, sk_peer peer);
/* The keeper published: fetch the map if it is newer than ours. (A message from HINTS does the same.) */
void sk_router_on_map_hint(struct sk_router *self, uint64_t version);
/* Returns the mono_us at which it wants to be called next; UINT64_MAX never. Call it before sleeping:
 * every other handler may make it sooner. */
uint64_t sk_router_on_time(struct sk_router *self);

/* From now on requests are refused `unavailable`; what is in flight has 2 s to end, then it is answered
 * with the same. Poll sk_router_status().is_stopped after on_time. */
void sk_router_stop(struct sk_router *self);

/* Borrowed until the next handler. version 0: none yet. Its keys are the allow-list of the door. */
const struct sk_map *sk_router_get_map(const struct sk_router *self);
void sk_router_get_status(const struct sk_router *self, struct sk_router_status *out);
/* What stats and topology say of the node's power request; copied (15 bytes of each). */
void sk_router_set_wakeup(struct sk_router *self, const char *mode, const char *state);

#endif
