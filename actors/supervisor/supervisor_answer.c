/* node_status and node_stop, in the words of the client protocol. */
#include "actors/supervisor/internal.h"
#include "proto/reply.h"

const char *supervisor_state_name(const struct child *child)
{
    switch (child->state) {
    case CHILD_WAITING:
        return "waiting";
    case CHILD_STARTING:
        return "starting";
    case CHILD_READY:
        return "ready";
    case CHILD_STOPPING:
        return "stopping";
    case CHILD_ENDED:
        return "ended";
    }
    return "ended";
}

static void put_process(struct sk_supervisor *self, struct sk_buffer *to, const char *name,
                        uint32_t number, pid_t pid, const char *state, uint32_t restarts)
{
    struct sk_supervisor_usage usage = {0};
    if (pid > 0)
        usage = self->hands.usage(self->hands.impl, pid);
    sk_put_map(to, 7);
    sk_put_text(to, "name");
    sk_put_text(to, name);
    sk_put_text(to, "number");
    sk_put_u64(to, number);
    sk_put_text(to, "pid");
    sk_put_u64(to, (uint64_t)pid);
    sk_put_text(to, "state");
    sk_put_text(to, state);
    sk_put_text(to, "restarts");
    sk_put_u64(to, restarts);
    sk_put_text(to, "rss_bytes");
    sk_put_u64(to, usage.rss_bytes);
    sk_put_text(to, "cpu_s");
    sk_put_f64(to, usage.cpu_s);
}

static void put_processes(struct sk_supervisor *self, struct sk_buffer *to)
{
    sk_put_array(to, self->child_count + 1);
    put_process(self, to, "supervisor", 0, self->config.own_pid,
                self->phase == STOP_NONE ? "ready" : "stopping", 0);
    for (unsigned i = 0; i < self->child_count; i++) {
        const struct child *child = &self->children[i];
        put_process(self, to, child->name, child->number, child->pid, supervisor_state_name(child),
                    child->restarts);
    }
}

static void put_status(struct sk_supervisor *self, struct sk_buffer *to,
                       const struct sk_request_id *id)
{
    struct sk_reply_writer reply;
    sk_reply_begin(&reply, to, id);
    sk_reply_key(&reply, "ready");
    sk_put_bool(to, self->is_ready);
    sk_reply_key(&reply, "status");
    sk_put_text(to, self->words);
    sk_reply_key(&reply, "version");
    sk_put_text(to, SK_VERSION);
    sk_reply_key(&reply, "uptime_s");
    sk_put_u64(to, (self->io.mono_us(self->io.impl) - self->born_us) / 1000000);
    sk_reply_key(&reply, "endpoints");
    sk_put_map(to, 3);
    sk_put_text(to, "client_ipc");
    sk_put_text(to, self->config.client_ipc);
    sk_put_text(to, "client_tcp");
    sk_put_text(to, supervisor_endpoint_of(self, SK_SUPERVISOR_PEER_ROUTER));
    sk_put_text(to, "http");
    sk_put_text(to, supervisor_endpoint_of(self, SK_SUPERVISOR_PEER_GATEWAY));
    sk_reply_key(&reply, "public_key");
    sk_put_text(to, self->config.public_key);
    sk_reply_key(&reply, "wakeup");
    sk_put_map(to, 2);
    sk_put_text(to, "mode");
    sk_put_text(to, self->wakeup_mode);
    sk_put_text(to, "state");
    sk_put_text(to, self->wakeup_state);
    sk_reply_key(&reply, "processes");
    put_processes(self, to);
    sk_reply_end(&reply);
}

void supervisor_answer(struct sk_supervisor *self, sk_peer to, struct sk_span frame)
{
    struct sk_buffer reply = {0};
    struct sk_envelope envelope = {0};
    struct sk_request request;
    struct sk_diag d = {0};
    bool is_stop = false;
    enum sk_err rc = sk_envelope_decode(&envelope, frame, &d);
    if (rc == SK_ERR_OK && envelope.op != SK_OP_NODE_STATUS && envelope.op != SK_OP_NODE_STOP)
        rc = sk_fail_field(&d, SK_ERR_INVALID, "op",
                           "the supervisor answers node_status and node_stop; '%s' goes to "
                           "run/client.ipc",
                           sk_op_name(envelope.op));
    if (rc == SK_ERR_OK)
        rc = sk_request_decode(&request, frame, &d);
    if (rc != SK_ERR_OK) {
        sk_reply_error(&reply, &envelope.id, rc, &d);
    } else if (envelope.op == SK_OP_NODE_STATUS) {
        put_status(self, &reply, &envelope.id);
    } else {
        sk_reply_ok(&reply, &envelope.id);
        is_stop = true;
    }
    struct sk_span part = sk_buffer_span(&reply);
    if (!reply.is_broken)
        self->io.send(self->io.impl, to, &part, 1);
    sk_buffer_deinit(&reply);
    if (is_stop)
        sk_supervisor_stop(self);
}
