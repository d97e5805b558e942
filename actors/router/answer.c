/* What clients are told. */
#include "actors/router/internal.h"

#include <string.h>

void count_answer(struct sk_router *self, enum sk_op op, enum sk_err code, uint64_t took_us)
{
    unsigned at = (unsigned)code < CODES ? (unsigned)code : SK_ERR_INTERNAL;
    self->counts[op][at]++;
    sk_histogram_add(&self->latency[op], took_us);
    self->status.requests++;
    self->status.errors += code != SK_ERR_OK;
}

static void send_to_client(struct sk_router *self, sk_peer client, struct sk_span body)
{
    self->io->send(self->io->impl, client, &body, 1);
}

/* Large replies do not keep their memory. */
static void reply_clear(struct sk_router *self)
{
    if (self->reply.capacity > REPLY_KEPT_BYTES)
        sk_buffer_deinit(&self->reply);
    sk_buffer_clear(&self->reply);
}

/* An error that needs no memory: what is left when even an error reply cannot be made. */
static struct sk_span last_words(void)
{
    static const uint8_t words[] = "\x84\xa1v\x01\xa2id\xc0\xa2ok\xc2\xa5"
                                   "error\x85\xa4"
                                   "code\x01\xa4name\xad"
                                   "out_of_memory\xa5"
                                   "field\xc0\xa9retriable\xc2\xa7message\xb7"
                                   "no memory for an answer";
    return sk_span_of(words, sizeof words - 1);
}

void refuse(struct sk_router *self, sk_peer from, enum sk_op op, const struct sk_request_id *id,
            enum sk_err code, const struct sk_diag *d)
{
    reply_clear(self);
    sk_reply_error(&self->reply, id, code, d);
    count_answer(self, op, code, 0);
    send_to_client(self, from,
                   self->reply.is_broken ? last_words() : sk_buffer_span(&self->reply));
}

void answer(struct sk_router *self, struct request *request, enum sk_err code, struct sk_span body)
{
    if (request->client != 0) {
        count_answer(self, request->op, code, now_us(self) - request->arrived_us);
        send_to_client(self, request->client, body);
    }
    request_free(self, request);
}

void answer_error(struct sk_router *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d)
{
    reply_clear(self);
    sk_reply_error(&self->reply, &request->id, code, d);
    if (self->reply.is_broken)
        answer(self, request, SK_ERR_NOMEM, last_words());
    else
        answer(self, request, code, sk_buffer_span(&self->reply));
}

void answer_early(struct sk_router *self, struct request *request, enum sk_err code,
                  const struct sk_diag *d)
{
    if (request->client == 0)
        return;
    reply_clear(self);
    sk_reply_error(&self->reply, &request->id, code, d);
    count_answer(self, request->op, code, now_us(self) - request->arrived_us);
    send_to_client(self, request->client,
                   self->reply.is_broken ? last_words() : sk_buffer_span(&self->reply));
    request->client = 0;
}

void reply_begin(struct sk_router *self, const struct request *request,
                 struct sk_reply_writer *reply)
{
    reply_clear(self);
    sk_reply_begin(reply, &self->reply, &request->id);
}

void answer_reply(struct sk_router *self, struct request *request, struct sk_reply_writer *reply)
{
    struct sk_diag d = {0};
    sk_reply_end(reply);
    enum sk_err rc = sk_buffer_check(&self->reply, &d);
    if (rc == SK_ERR_OK && self->reply.size > SK_FRAME_BYTES_MAX)
        rc = sk_fail(&d, SK_ERR_TOO_LARGE,
                     "the answer has %zu bytes, the most is %d: ask for fewer records",
                     self->reply.size, SK_FRAME_BYTES_MAX);
    if (rc != SK_ERR_OK)
        answer_error(self, request, rc, &d);
    else
        answer(self, request, SK_ERR_OK, sk_buffer_span(&self->reply));
}

/* ---- parts that failed ---- */

static const char *peer_text(const struct part *part, char text[32])
{
    if (part->peer == SK_ROUTER_PEER_KEEPER)
        snprintf(text, 32, "the keeper");
    else
        snprintf(text, 32, "shard-worker %u", part->peer - SK_ROUTER_PEER_WORKER_0);
    return text;
}

/* What is known of a write that got no answer. */
static const char *outcome_text(const struct request *request, const struct part *part)
{
    if (!request->is_stamped && request->resend != RESEND_NEVER)
        return "";
    return part->was_sent ? "; the outcome is unknown" : "; nothing was changed";
}

void part_diag(const struct request *request, const struct part *part, struct sk_diag *d)
{
    char peer[32];
    peer_text(part, peer);
    memset(d, 0, sizeof *d);
    enum sk_err rc;
    switch (part->fault) {
    case FAULT_LATE:
        rc = sk_fail(d, part->code, "no answer of %s within %u ms%s", peer, request->deadline_ms,
                     outcome_text(request, part));
        break;
    case FAULT_GONE:
        rc = sk_fail(d, part->code, "%s is not there (it may be starting)%s", peer,
                     outcome_text(request, part));
        break;
    case FAULT_MALFORMED:
        rc = sk_fail(d, part->code, "%s gave an answer that makes no sense%s", peer,
                     outcome_text(request, part));
        break;
    default: {
        struct sk_reply reply;
        rc = sk_reply_decode(&reply, sk_buffer_span(&part->body), NULL);
        if (rc != SK_ERR_OK || reply.is_ok) {
            rc = sk_fail(d, part->code, "%s said so", peer);
            break;
        }
        rc = sk_fail(d, part->code, "%.*s", (int)reply.error_message.size,
                     (const char *)reply.error_message.bytes);
        if (reply.error_field.size < sizeof d->field && reply.error_field.bytes != NULL) {
            memcpy(d->field, reply.error_field.bytes, reply.error_field.size);
            d->field[reply.error_field.size] = '\0';
        }
    }
    }
    (void)rc; /* the code is the part's */
}

void answer_part(struct sk_router *self, struct request *request, struct part *part)
{
    if (part->fault == FAULT_NONE) {
        answer(self, request, part->code, sk_buffer_span(&part->body));
        return;
    }
    struct sk_diag d;
    part_diag(request, part, &d);
    answer_error(self, request, part->code, &d);
}

void answer_malformed(struct sk_router *self, struct request *request, const struct part *part)
{
    struct part bad = {.peer = part->peer,
                       .was_sent = part->was_sent,
                       .code = SK_ERR_INTERNAL,
                       .fault = FAULT_MALFORMED};
    struct sk_diag d;
    note(self, SK_ROUTER_NOTE_message_malformed, part->peer, part->body.size);
    self->status.malformed++;
    part_diag(request, &bad, &d);
    answer_error(self, request, SK_ERR_INTERNAL, &d);
}

/* What the client did wrong is told before what went wrong here. */
static unsigned weight(enum sk_err code)
{
    switch (code) {
    case SK_ERR_OK:
        return 0;
    case SK_ERR_INVALID:
    case SK_ERR_UNKNOWN_FIELD:
    case SK_ERR_TOO_LARGE:
    case SK_ERR_DIM_MISMATCH:
    case SK_ERR_NOT_FOUND:
    case SK_ERR_EXISTS:
        return 4;
    case SK_ERR_DEADLINE:
    case SK_ERR_UNAVAILABLE:
        return 3;
    case SK_ERR_BUSY:
        return 1;
    default:
        return 2;
    }
}

struct part *request_worst(struct request *request)
{
    struct part *worst = NULL;
    for (uint32_t p = 0; p < request->part_count; p++) {
        struct part *part = &request->parts[p];
        if (part->code != SK_ERR_OK &&
            (worst == NULL || weight(part->code) > weight(worst->code)))
            worst = part;
    }
    return worst;
}
