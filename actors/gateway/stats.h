/* A reply to `stats`, read once into arrays of bounded size. */
#ifndef SK_GATEWAY_STATS_H
#define SK_GATEWAY_STATS_H

#include "actors/gateway/gateway.h"

enum {
    /* one more of each for what this release has no name for */
    STATS_OPS = SK_OPS_END + 1,
    STATS_CODES = SK_ERR_INTERNAL + 2,
    STATS_BOUNDS_MAX = 64,
};

struct stats_histogram {
    bool is_present;
    uint32_t bound_count;
    uint64_t bounds_us[STATS_BOUNDS_MAX];
    uint64_t counts[STATS_BOUNDS_MAX + 1]; /* not cumulative; the last one: above every bound */
    uint64_t sum_us;
};

struct stats_index {
    struct sk_span vector; /* "" for the one without a name */
    uint64_t state;        /* 0 flat, 1 loading, 2 building, 3 ready, 4 altering */
    uint64_t done, total;
    bool has_recall; /* of searches with a recall target, held against exact answers */
    double recall, recall_target;
};

struct stats_collection {
    struct sk_span name;
    uint64_t records, disk_bytes, index_bytes, pending_rows;
    uint32_t index_count;
    struct stats_index indexes[SK_VECTOR_FIELDS_MAX];
};

struct stats_process {
    char name[48]; /* "router", "shard-worker-0" */
    bool is_up;
    uint64_t restarts, rss_bytes;
    bool has_cpu;
    double cpu_s;
};

struct stats {
    uint64_t uptime_s;
    uint64_t requests_in_flight, reads_in_flight, writes_queued;
    struct sk_span wakeup_mode, wakeup_state;
    uint64_t requests[STATS_OPS][STATS_CODES];
    bool has_requests[STATS_OPS][STATS_CODES];
    struct stats_histogram latency[STATS_OPS];
    uint32_t collection_count;
    struct stats_collection *collections; /* owned */
    uint32_t process_count;
    struct stats_process processes[SK_GATEWAY_PROCESSES_MAX];
};

/* Spans are borrowed from reply. *out is owned by the caller. INVALID, NOMEM, or the error it says. */
SK_CHECKED enum sk_err stats_read(struct stats **out, struct sk_span reply, struct sk_diag *d);
void stats_free(struct stats **self);
const char *stats_op_name(unsigned op);
const char *stats_code_name(unsigned code);

#endif
