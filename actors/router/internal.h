/* What the files of the router's core share. Nobody else includes this. */
#ifndef SK_ROUTER_INTERNAL_H
#define SK_ROUTER_INTERNAL_H

#include "actors/router/router.h"
#include "common/base/metric.h"
#include "proto/codec.h"
#include "proto/link.h"
#include "proto/map.h"
#include "proto/reply.h"
#include "proto/schema.h"

enum {
    MAP_RETRY_US = 1000 * 1000,     /* map_get without an answer */
    MAP_POLL_US = 30 * 1000 * 1000, /* a hint may be lost */
    QUIET_US_MIN = 250 * 1000,      /* a peer silent for so long is asked again */
    QUIET_US_MAX = 2 * 1000 * 1000,
    WRITE_RESENDS_MAX = 8,
    REPLY_KEPT_BYTES = 256 * 1024,
    MAP_REQUEST = 1,         /* number of map_get on the keeper's link; never one of a request */
    STOP_US = 2 * 1000 * 1000,
    UNDO_MS = 30 * 1000,     /* a failed restore has so long to take its collection away again */
    STATS_BYTES_MAX = 16 * 1024 * 1024,
    CODES = SK_ERR_INTERNAL + 1,
};

/* When a part may be sent a second time. */
enum resend {
    RESEND_NEVER,   /* a second copy would do harm: snapshot, restore */
    RESEND_REPLACED, /* when its worker was replaced */
    RESEND_READ,    /* and once when the worker is silent */
    RESEND_WRITE,   /* and again and again: the stamp makes copies harmless */
};

enum part_state { PART_UNSENT, PART_SENT, PART_DONE };

/* Why there is no answer of the peer in a part that is done. */
enum fault { FAULT_NONE, FAULT_LATE, FAULT_GONE, FAULT_MALFORMED };

/* What one peer has to do for a request. */
struct part {
    sk_peer peer;
    uint16_t shard;
    enum part_state state;
    bool was_sent; /* at least once: the outcome of a write is unknown */
    bool is_part;  /* frame was re-encoded for this shard */
    uint8_t resends;
    enum sk_err code; /* DONE */
    enum fault fault;
    uint64_t sequence; /* of its stamp, given at the first send */
    uint64_t sent_us;
    struct sk_buffer frame; /* empty: the client's */
    struct sk_buffer body;  /* the reply, where it must be kept */
};

enum stage {
    STAGE_MAP,        /* waits for the first map */
    STAGE_PARTS,      /* waits for its parts */
    STAGE_VERSION,    /* waits for a map of at least map_version */
    STAGE_SUPERVISOR, /* waits for node_status */
};

struct request;
/* All parts are done. Answers the request (which frees it) or begins another stage. When a part failed
 * it must not begin a stage that needs the client to wait. */
typedef void finish_fn(struct sk_router *self, struct request *request);

struct request {
    struct request *before, *after; /* all in flight */
    uint64_t number;                /* on the links; a new one for each stage */
    sk_peer client; /* 0: answered already, the rest is ours alone */
    enum sk_op op;
    enum sk_role role;
    struct sk_request_id id; /* text borrowed from frame */
    struct sk_span collection;
    uint32_t deadline_ms;
    uint64_t arrived_us, deadline_us, wake_us;
    uint32_t heap_at;
    enum stage stage;
    enum resend resend;
    bool is_stamped;
    bool is_late; /* the deadline has passed: finish must answer */
    uint64_t map_version; /* wanted */
    finish_fn *finish;    /* NULL: one part, its reply goes to the client as it is */
    finish_fn *then;      /* after STAGE_VERSION */
    uint8_t uuid[SK_UUID_BYTES];
    uint32_t schema_version;
    uint32_t shard_count;
    enum sk_schema_metric metric;     /* of a search */
    char using[SK_NAME_BYTES_MAX + 1];
    struct sk_request *decoded;       /* owned; NULL where it is passed on unread */
    struct sk_buffer kept;            /* a reply for later */
    enum sk_err kept_code;            /* its code */
    uint32_t part_count, pending;
    struct part *parts; /* owned, or &one */
    struct part one;
    size_t charged; /* in bytes_in_flight */
    size_t size;
    uint8_t frame[];
};

struct worker {
    bool is_up;
    uint64_t incarnation; /* 0: not known */
    uint64_t heard_us;
    struct sk_buffer stats; /* the last one it sent, checked for form */
    uint64_t stats_asked, stats_told; /* numbers of the last question and of the last answer */
};

struct sk_router {
    /* settings */
    struct sk_router_config config;
    char public_key[SK_Z85_KEY_BYTES];
    char version[32];
    const struct sk_io *io;
    /* state */
    uint64_t incarnation;
    uint64_t sequence;
    uint64_t number_next;
    uint64_t started_us;
    uint64_t stop_by_us; /* UINT64_MAX: nobody asked to stop */
    struct sk_map map;
    bool is_map_asked;
    uint64_t map_next_us;
    uint64_t map_wanted; /* a version that is said to exist */
    uint64_t map_asked;  /* map_wanted when the keeper was asked last */
    uint64_t keeper_heard_us;
    struct worker workers[SK_WORKERS_MAX];
    struct request *requests, *requests_last; /* oldest first */
    uint32_t request_count;
    uint64_t bytes;
    struct request **table; /* by number, open addressing */
    uint32_t table_mask;
    struct request **heap; /* by wake_us */
    struct sk_buffer node_status; /* the supervisor's last reply; empty: none */
    uint64_t node_status_asked; /* id of the question that is open; 0: none */
    uint64_t node_status_until_us; /* no answer to it is waited for any more */
    uint64_t stats_number; /* of the last question to the workers */
    char wakeup_mode[16], wakeup_state[16];
    float *scratch; /* SK_DIM_MAX */
    struct sk_buffer reply;
    struct sk_buffer encoded;
    /* counters */
    struct sk_router_status status;
    uint64_t counts[SK_OPS_END][CODES];
    struct sk_histogram latency[SK_OPS_END];
};

/* flight.c: requests in flight */
SK_CHECKED enum sk_err flight_init(struct sk_router *self, struct sk_diag *d);
void flight_deinit(struct sk_router *self);
uint64_t now_us(const struct sk_router *self);
/* BUSY past a limit, NOMEM. */
SK_CHECKED enum sk_err request_new(struct sk_router *self, struct request **out, sk_peer from,
                                   enum sk_role role, const struct sk_envelope *envelope,
                                   struct sk_span frame, struct sk_diag *d);
void request_free(struct sk_router *self, struct request *request);
/* A number of its own for the stage that begins; replies to earlier ones are unwanted. */
void request_renumber(struct sk_router *self, struct request *request);
struct request *request_find(const struct sk_router *self, uint64_t number);
void request_wake_at(struct sk_router *self, struct request *request, uint64_t wake_us);
uint64_t flight_next_us(const struct sk_router *self);
struct request *flight_due(const struct sk_router *self, uint64_t now); /* NULL: none */
/* Room for `count` parts, all zero. False: NOMEM. */
SK_CHECKED bool request_make_parts(struct sk_router *self, struct request *request, uint32_t count);
void request_charge(struct sk_router *self, struct request *request, size_t bytes);
static inline struct sk_span request_span(const struct request *request)
{
    return sk_span_of(request->frame, request->size);
}

/* answer.c: what clients are told. All but answer_early take the request. */
void answer(struct sk_router *self, struct request *request, enum sk_err code, struct sk_span body);
void answer_error(struct sk_router *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d);
/* The client is told, the request goes on without it. */
void answer_early(struct sk_router *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d);
/* self->reply, opened with reply_begin. Checks memory and size. */
void answer_reply(struct sk_router *self, struct request *request, struct sk_reply_writer *reply);
void reply_begin(struct sk_router *self, const struct request *request,
                 struct sk_reply_writer *reply);
void answer_part(struct sk_router *self, struct request *request, struct part *part);
void part_diag(const struct request *request, const struct part *part, struct sk_diag *d);
/* The error to tell when not all parts are good; NULL when all are. */
struct part *request_worst(struct request *request);
void answer_malformed(struct sk_router *self, struct request *request, const struct part *part);
/* Without a request of ours. */
void refuse(struct sk_router *self, sk_peer from, enum sk_op op, const struct sk_request_id *id,
            enum sk_err code, const struct sk_diag *d);
void count_answer(struct sk_router *self, enum sk_op op, enum sk_err code, uint64_t took_us);

/* links.c: peers, parts on their way, the map */
void note(struct sk_router *self, enum sk_router_note kind, uint64_t a, uint64_t b);
/* Sends all parts; a request without a pending part is finished at once. */
void request_start(struct sk_router *self, struct request *request);
void ask_map(struct sk_router *self);
void on_worker_message(struct sk_router *self, uint32_t number, struct sk_span bytes);
void on_keeper_message(struct sk_router *self, struct sk_span bytes);
/* incarnation 0: not told. is_new_link: what was on its way may be lost. */
void worker_is_up(struct sk_router *self, uint32_t number, uint64_t incarnation, bool is_new_link);
void worker_is_gone(struct sk_router *self, uint32_t number);
void keeper_is_up(struct sk_router *self);
/* Silent peers are asked again; returns when to look next. */
uint64_t request_resend(struct sk_router *self, struct request *request, uint64_t now);

/* router.c */
void request_begin(struct sk_router *self, struct request *request);
/* Everything without an answer is settled as late. */
void request_expire(struct sk_router *self, struct request *request);

/* plan.c: what goes to the shards */
void plan_shards(struct sk_router *self, struct request *request,
                 const struct sk_map_collection *collection);
SK_CHECKED enum sk_err request_decode(struct sk_router *self, struct request *request,
                                      struct sk_diag *d);
/* One part for each shard, all with the same frame. False: NOMEM, answered. */
SK_CHECKED bool plan_all(struct sk_router *self, struct request *request,
                         const struct sk_map_collection *collection);
void request_target(struct request *request, const struct sk_map_collection *collection);

/* merge.c, merge_search.c: what comes back from several */
finish_fn finish_sum_write, finish_get, finish_scroll, finish_count, finish_all_ok, finish_sums;
finish_fn finish_search, finish_like;

/* changes.c: what the keeper decides; restore */
void plan_change(struct sk_router *self, struct request *request);
void plan_restore(struct sk_router *self, struct request *request);
/* Tells the client the error, then has the keeper drop the collection that the restore made. */
void restore_undo(struct sk_router *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d);

/* observe.c: what the router says by itself */
void observe_ping(struct sk_router *self, struct request *request);
void observe_info(struct sk_router *self, struct request *request);
void observe_collections(struct sk_router *self, struct request *request);
void observe_keys(struct sk_router *self, struct request *request);
void observe_ask(struct sk_router *self, struct request *request); /* stats, topology */
void observe_answer(struct sk_router *self, struct request *request);
void on_supervisor_message(struct sk_router *self, struct sk_span bytes);
/* A worker has told its stats, or is gone: answers those who waited for it last. */
void observe_heard(struct sk_router *self);

/* collections.c: what is known of collections */
void plan_describe(struct sk_router *self, struct request *request,
                   const struct sk_map_collection *collection);
/* The members of stats and topology, from what the workers have told last. False: NOMEM. */
SK_CHECKED bool put_collections(struct sk_router *self, struct sk_buffer *to, bool has_shards);

#endif
