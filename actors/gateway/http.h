/* The HTTP side of the gateway: libmicrohttpd driven by the loop of the process, without threads.
 *
 * Only what can be answered without a body is served: a request that brings one is refused. A connection
 * that has not finished a request within `request_ms_max` is closed, however it trickles; so are those
 * that read too slowly.
 * Thread: one. */
#ifndef SK_GATEWAY_HTTP_H
#define SK_GATEWAY_HTTP_H

#include "common/base/err.h"
#include "common/base/span.h"

struct sk_http;         /* opaque */
struct sk_http_request; /* opaque; good until it is answered */

struct sk_http_config {
    const char *address;      /* numeric, IPv4 or IPv6 */
    uint16_t port;            /* 0 takes a free one */
    unsigned connections_max; /* 0 = 64 */
    uint32_t request_ms_max;  /* 0 = 10,000 */
    /* Must call sk_http_answer, now or later. method and path are borrowed for the call. */
    void (*on_request)(void *arg, struct sk_http_request *request, const char *method,
                       const char *path);
    void *arg;
};

/* UNAVAILABLE: the address or port cannot be had, with words of what to do. */
SK_CHECKED enum sk_err sk_http_new(struct sk_http **out, const struct sk_http_config *config,
                                   struct sk_diag *d);
void sk_http_destroy(struct sk_http **self); /* unanswered requests are dropped */
/* body is copied. status 405 says which methods there are. */
void sk_http_answer(struct sk_http_request *request, unsigned status, const char *content_type,
                    struct sk_span body);
int sk_http_fd(const struct sk_http *self); /* readable: call sk_http_run */
/* Does what is to do; returns the us until it wants to be called anyway, UINT64_MAX: not by itself. */
uint64_t sk_http_run(struct sk_http *self, uint64_t now_us);
const char *sk_http_url(const struct sk_http *self); /* "http://127.0.0.1:7421" */

#endif
