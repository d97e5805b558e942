#include "common/shell/heartbeat.h"

#include "common/shell/internal.h"
#include "proto/link.h"
#include "proto/pack.h"

#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

enum { INTERVAL_MS = 1000 };

struct sk_heartbeat {
    /* settings */
    struct sk_reactor *reactor;
    const struct sk_process *process;
    sk_peer peer;
    /* state */
    bool is_ready;
    char status[200];
    char endpoint[200];
    char wakeup_mode[16], wakeup_state[16];
    struct sk_buffer body; /* kept for the next one */
};

static void put_pair(struct sk_buffer *to, uint32_t *count, const char *key, const char *value)
{
    sk_put_text(to, key);
    sk_put_text(to, value);
    ++*count;
}

static void beat(void *arg)
{
    struct sk_heartbeat *self = arg;
    struct sk_buffer *to = &self->body;
    struct sk_link_header header = {.kind = SK_LINK_STATS, .role = SK_ROLE_LINK};
    uint8_t head[SK_LINK_HEADER_BYTES];
    uint32_t count = 0;
    header.worker = (uint16_t)self->process->number;
    sk_link_header_encode(head, &header);
    sk_buffer_clear(to);
    size_t at = sk_put_map_open(to);
    put_pair(to, &count, "process", self->process->name);
    sk_put_text(to, "number");
    sk_put_u64(to, self->process->number);
    sk_put_text(to, "pid");
    sk_put_u64(to, (uint64_t)getpid());
    sk_put_text(to, "ready");
    sk_put_bool(to, self->is_ready);
    count += 3;
    put_pair(to, &count, "status", self->status);
    if (self->endpoint[0] != '\0')
        put_pair(to, &count, "endpoint", self->endpoint);
    if (self->wakeup_mode[0] != '\0') {
        sk_put_text(to, "wakeup");
        sk_put_map(to, 2);
        uint32_t ignored = 0;
        put_pair(to, &ignored, "mode", self->wakeup_mode);
        put_pair(to, &ignored, "state", self->wakeup_state);
        count++;
    }
    sk_put_count_at(to, at, count);
    if (to->is_broken) {
        sk_buffer_deinit(to); /* out of memory: the next beat tries again */
        return;
    }
    struct sk_span parts[] = {sk_span_of(head, sizeof head), sk_buffer_span(to)};
    sk_socket_send(self->reactor, self->peer, parts, 2);
}

/* Copies what is new, cut to its room, and tells at once. */
static void change(struct sk_heartbeat *self, char *text, size_t size, const char *wanted)
{
    size_t length = strnlen(wanted, size - 1);
    if (strlen(text) == length && memcmp(text, wanted, length) == 0)
        return;
    memcpy(text, wanted, length);
    text[length] = '\0';
    beat(self);
}

enum sk_err sk_heartbeat_new(struct sk_heartbeat **out, struct sk_reactor *reactor,
                             const struct sk_process *process, sk_peer peer, struct sk_diag *d)
{
    char endpoint[SK_PATH_BYTES];
    *out = NULL;
    struct sk_heartbeat *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for heartbeats");
    self->reactor = reactor;
    self->process = process;
    self->peer = peer;
    sk_process_endpoint(process, endpoint, "supervisor.ipc");
    enum sk_err rc = sk_reactor_connect(reactor, peer, endpoint, process->id, d);
    if (rc == SK_ERR_OK)
        rc = sk_reactor_every(reactor, INTERVAL_MS, beat, self, d);
    if (rc != SK_ERR_OK) {
        sk_heartbeat_destroy(&self);
        return rc;
    }
    sk_reactor_on_up(reactor, peer, beat, self);
    *out = self;
    return SK_ERR_OK;
}

void sk_heartbeat_destroy(struct sk_heartbeat **self_ref)
{
    struct sk_heartbeat *self = *self_ref;
    if (self == NULL)
        return;
    sk_buffer_deinit(&self->body);
    free(self);
    *self_ref = NULL;
}

void sk_heartbeat_set_ready(struct sk_heartbeat *self, bool is_ready)
{
    if (self->is_ready == is_ready)
        return;
    self->is_ready = is_ready;
    beat(self);
}

void sk_heartbeat_set_status(struct sk_heartbeat *self, const char *format, ...)
{
    char text[sizeof self->status];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    change(self, self->status, sizeof self->status, text);
}

void sk_heartbeat_set_endpoint(struct sk_heartbeat *self, const char *endpoint)
{
    change(self, self->endpoint, sizeof self->endpoint, endpoint);
}

void sk_heartbeat_set_wakeup(struct sk_heartbeat *self, const char *mode, const char *state)
{
    snprintf(self->wakeup_mode, sizeof self->wakeup_mode, "%s", mode);
    change(self, self->wakeup_state, sizeof self->wakeup_state, state);
}
