/* skerry-gateway: HTTP on one side, an ordinary client of the node's router on the other. */
#include "actors/gateway/gateway.h"
#include "actors/gateway/http.h"
#include "common/shell/heartbeat.h"
#include "common/shell/process.h"
#include "common/shell/reactor.h"

#include <stdlib.h>

enum { PEER_ROUTER = 1, PEER_SUPERVISOR = 2 };
enum { CACHE_US = 1000000, WAIT_US = 1800000, WAITING_MAX = 64 };

/* A page that needs an answer of the router. One question at a time; everybody who waits gets its
 * answer, and so does who comes within CACHE_US. */
struct source {
    enum sk_op op;
    struct sk_buffer body; /* the last page */
    unsigned status;
    uint64_t made_us;
    uint64_t asked; /* number of the question under way, 0 = none */
    uint64_t until_us;
    struct sk_http_request *waiting[WAITING_MAX];
    unsigned waiting_count;
};

struct shell {
    struct sk_process process;
    struct sk_reactor *reactor;
    struct sk_heartbeat *heartbeat;
    const struct sk_io *io;
    struct sk_http *http;
    struct source metrics, ready;
    struct sk_buffer frame;
    uint64_t number_next;
};

static const char text_type[] = "text/plain; charset=utf-8";
static const char metrics_type[] = "text/plain; version=0.0.4; charset=utf-8";

static uint64_t now_us(const struct shell *self)
{
    return self->io->mono_us(self->io->impl);
}

static void answer_words(struct sk_http_request *request, unsigned status, const char *words)
{
    sk_http_answer(request, status, text_type, sk_span_text(words));
}

/* ---- pages of the router ---- */

static void ask(struct shell *self, struct source *source, uint64_t now)
{
    struct sk_request request = {.op = source->op, .deadline_ms = WAIT_US / 1000};
    source->asked = ++self->number_next;
    source->until_us = now + WAIT_US;
    request.id = (struct sk_request_id){.is_present = true, .number = source->asked};
    sk_buffer_clear(&self->frame);
    sk_request_encode(&self->frame, &request);
    if (self->frame.is_broken) {
        sk_buffer_deinit(&self->frame);
        return; /* who waits is answered when the time is over */
    }
    const struct sk_span part = sk_buffer_span(&self->frame);
    self->io->send(self->io->impl, PEER_ROUTER, &part, 1);
}

static void answer_all(struct source *source, unsigned status, const char *type, struct sk_span body)
{
    unsigned count = source->waiting_count;
    source->waiting_count = 0;
    source->asked = 0;
    for (unsigned i = 0; i < count; i++)
        sk_http_answer(source->waiting[i], status, type, body);
}

static void want(struct shell *self, struct source *source, struct sk_http_request *request)
{
    uint64_t now = now_us(self);
    if (source->made_us != 0 && now - source->made_us < CACHE_US) {
        sk_http_answer(request, source->status,
                       source == &self->metrics && source->status == 200 ? metrics_type : text_type,
                       sk_buffer_span(&source->body));
        return;
    }
    if (source->waiting_count == WAITING_MAX) {
        answer_words(request, 503, "too many wait for this page\n");
        return;
    }
    source->waiting[source->waiting_count++] = request;
    if (source->asked == 0)
        ask(self, source, now);
}

static void make_metrics(struct source *source, struct sk_span reply)
{
    struct sk_diag d = {0};
    sk_buffer_clear(&source->body);
    source->status = 200;
    if (sk_gateway_render(&source->body, reply, SK_VERSION, &d) != SK_ERR_OK) {
        source->status = 503;
        sk_buffer_deinit(&source->body);
        sk_buffer_append(&source->body, d.text, strlen(d.text));
        sk_buffer_append(&source->body, "\n", 1);
    }
}

static void make_ready(struct source *source, struct sk_span reply)
{
    char words[SK_GATEWAY_WORDS_BYTES];
    source->status = sk_gateway_is_ready(reply, words) ? 200 : 503;
    sk_buffer_clear(&source->body);
    sk_buffer_append(&source->body, words, strlen(words));
    sk_buffer_append(&source->body, "\n", 1);
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct shell *self = core;
    struct sk_reply reply;
    struct sk_diag d = {0};
    if (from != PEER_ROUTER || sk_reply_decode(&reply, bytes, &d) != SK_ERR_OK ||
        !reply.id.is_present || reply.id.is_text || reply.id.number == 0)
        return;
    struct source *source = reply.id.number == self->metrics.asked ? &self->metrics
                            : reply.id.number == self->ready.asked ? &self->ready
                                                                   : NULL;
    if (source == NULL)
        return; /* too late: who waited was told */
    if (source == &self->metrics)
        make_metrics(source, bytes);
    else
        make_ready(source, bytes);
    source->made_us = now_us(self);
    answer_all(source, source->status,
               source == &self->metrics && source->status == 200 ? metrics_type : text_type,
               sk_buffer_span(&source->body));
}

/* ---- HTTP ---- */

static void on_request(void *arg, struct sk_http_request *request, const char *method,
                       const char *path)
{
    struct shell *self = arg;
    switch (sk_gateway_route(method, path)) {
    case SK_ROUTE_METRICS:
        want(self, &self->metrics, request);
        break;
    case SK_ROUTE_READY:
        want(self, &self->ready, request);
        break;
    case SK_ROUTE_HEALTH:
        answer_words(request, 200, "ok\n");
        break;
    case SK_ROUTE_NOT_A_GET:
        answer_words(request, 405, "only GET and HEAD are taken here\n");
        break;
    case SK_ROUTE_NONE:
        answer_words(request, 404, "not found: there is /metrics, /healthz and /readyz\n");
        break;
    }
}

static void on_http(void *arg)
{
    struct shell *self = arg;
    (void)sk_http_run(self->http, now_us(self)); /* on_time comes next and runs what is left */
}

static uint64_t expire(struct source *source, uint64_t now)
{
    if (source->asked == 0)
        return UINT64_MAX;
    if (now < source->until_us)
        return source->until_us;
    answer_all(source, 503, text_type, sk_span_text("not ready: the router does not answer\n"));
    return UINT64_MAX;
}

static uint64_t on_time(void *core)
{
    struct shell *self = core;
    uint64_t now = now_us(self);
    uint64_t metrics = expire(&self->metrics, now), ready = expire(&self->ready, now);
    uint64_t wait = sk_http_run(self->http, now);
    uint64_t next = metrics < ready ? metrics : ready;
    return wait != UINT64_MAX && now + wait < next ? now + wait : next;
}

/* ---- life ---- */

static enum sk_err open_all(struct shell *self, struct sk_diag *d)
{
    char endpoint[SK_PATH_BYTES];
    const struct sk_http_config http = {.address = self->process.config.http_address,
                                        .port = (uint16_t)self->process.config.http_port,
                                        .on_request = on_request,
                                        .arg = self};
    enum sk_err err = sk_http_new(&self->http, &http, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_watch(self->reactor, sk_http_fd(self->http), on_http, self, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_connect(self->reactor, PEER_ROUTER,
                                 sk_process_endpoint(&self->process, endpoint, "client.ipc"),
                                 self->process.id, d);
    if (err == SK_ERR_OK)
        err = sk_heartbeat_new(&self->heartbeat, self->reactor, &self->process, PEER_SUPERVISOR, d);
    return err;
}

int main(int argc, char **argv)
{
    static struct shell self = {.metrics = {.op = SK_OP_STATS}, .ready = {.op = SK_OP_TOPOLOGY}};
    struct sk_diag d = {0};
    int status = sk_process_start(&self.process, "gateway", "metrics and health of a node over HTTP",
                                  SK_PROCESS_IS_CHILD, argc, argv);
    if (status >= 0)
        return status;
    const struct sk_reactor_config config = {0};
    enum sk_err err = sk_reactor_new(&self.reactor, &config, &d);
    if (err == SK_ERR_OK) {
        self.io = sk_reactor_io(self.reactor);
        sk_reactor_set_core(self.reactor, &(struct sk_reactor_core){.core = &self,
                                                                    .on_message = on_message,
                                                                    .on_time = on_time});
        err = open_all(&self, &d);
    }
    if (err == SK_ERR_OK) {
        sk_heartbeat_set_endpoint(self.heartbeat, sk_http_url(self.http));
        sk_heartbeat_set_status(self.heartbeat, "%s", sk_http_url(self.http));
        sk_heartbeat_set_ready(self.heartbeat, true);
        status = sk_reactor_run(self.reactor);
        sk_reactor_unwatch(self.reactor, sk_http_fd(self.http));
    } else {
        status = sk_process_fail(&self.process, &d);
    }
    sk_http_destroy(&self.http);
    sk_heartbeat_destroy(&self.heartbeat);
    sk_reactor_destroy(&self.reactor);
    sk_buffer_deinit(&self.metrics.body);
    sk_buffer_deinit(&self.ready.body);
    sk_buffer_deinit(&self.frame);
    return status;
}
