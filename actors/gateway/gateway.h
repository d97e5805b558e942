/* The gateway's core: from answers of the router (stats, topology) to what HTTP shows. Pure functions;
 * what they read is bounded and checked like everything that comes from another process.
 *
 * Names of metrics are stable and end with their unit. Labels are few and bounded: operations and codes
 * of this release, collections up to SK_COLLECTIONS_MAX, processes up to SK_GATEWAY_PROCESSES_MAX.
 * Thread: any. */
#ifndef SK_GATEWAY_H
#define SK_GATEWAY_H

#include "proto/map.h"
#include "proto/reply.h"

enum { SK_GATEWAY_PROCESSES_MAX = 256, SK_GATEWAY_WORDS_BYTES = 320 };

enum sk_route {
    SK_ROUTE_METRICS,
    SK_ROUTE_HEALTH,
    SK_ROUTE_READY,
    SK_ROUTE_NONE,      /* 404 */
    SK_ROUTE_NOT_A_GET, /* 405: the path is there, GET and HEAD are what it takes */
};
enum sk_route sk_gateway_route(const char *method, const char *path);

/* Appends the Prometheus text (format 0.0.4) made from a reply to `stats`. INVALID: it is not one, or
 * none of this protocol; UNAVAILABLE and others: it is an error reply, d has its words; NOMEM. What
 * is malformed inside (a collection without a name, a histogram whose bounds do not rise) is left out. */
SK_CHECKED enum sk_err sk_gateway_render(struct sk_buffer *out, struct sk_span stats_reply,
                                         const char *version, struct sk_diag *d);
/* From a reply to `topology`: is the node ready? words: one line, why or why not. */
bool sk_gateway_is_ready(struct sk_span topology_reply, char words[SK_GATEWAY_WORDS_BYTES]);

#endif
