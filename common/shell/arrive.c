/* What a message that came is, and who gets it: a link's goes to the core as it is, a client's gets a return
 * address first. */
#include "common/shell/internal.h"
#include "common/shell/zap.h"
#include "proto/reply.h"

enum { CLIENT_OPEN_MAX = 512 };

bool sk_door_peer_of(const struct sk_reactor_door *door, struct sk_span id, sk_peer *out)
{
    for (unsigned i = 0; i < door->link_count; i++) {
        const struct sk_reactor_link *link = &door->links[i];
        size_t prefix = strlen(link->routing_id);
        if (id.size < prefix || memcmp(id.bytes, link->routing_id, prefix) != 0)
            continue;
        *out = link->first_peer;
        if (link->count == 0 && id.size == prefix)
            return true;
        uint32_t number = 0;
        size_t at = prefix + 1;
        if (link->count == 0 || id.size < prefix + 2 || id.size > prefix + 6 || id.bytes[prefix] != '-')
            continue;
        while (at < id.size && id.bytes[at] >= '0' && id.bytes[at] <= '9')
            number = number * 10 + (uint32_t)(id.bytes[at++] - '0');
        bool is_plain = at == id.size && (id.bytes[prefix + 1] != '0' || id.size == prefix + 2);
        if (!is_plain || number >= link->count)
            continue;
        *out = link->first_peer + number;
        return true;
    }
    return false;
}

bool sk_door_has_peer(const struct sk_reactor_door *door, sk_peer peer)
{
    for (unsigned i = 0; i < door->link_count; i++) {
        const struct sk_reactor_link *link = &door->links[i];
        uint32_t count = link->count == 0 ? 1 : link->count;
        if (peer >= link->first_peer && peer - link->first_peer < count)
            return true;
    }
    return false;
}

static void refuse(struct sk_reactor *reactor, sk_peer to, struct sk_span frame, enum sk_err code,
                   const struct sk_diag *d)
{
    struct sk_buffer reply = {0};
    struct sk_envelope envelope = {0};
    struct sk_diag ignored = {0};
    if (frame.bytes != NULL && sk_envelope_decode(&envelope, frame, &ignored) != SK_ERR_OK)
        envelope.op = SK_OP_NONE; /* its id, where there was one, is all that is wanted */
    sk_reply_error(&reply, &envelope.id, code, d);
    struct sk_span part = sk_buffer_span(&reply);
    if (!reply.is_broken)
        sk_socket_send(reactor, to, &part, 1);
    sk_buffer_deinit(&reply);
    reactor->counters.refused++;
}

void sk_client_arrived(struct sk_arrival *in)
{
    struct sk_socket *self = in->socket;
    struct sk_reactor *reactor = self->reactor;
    bool has_delimiter = in->part_count >= 2 && in->parts[0].size == 0;
    bool is_one_frame = in->part_count == 1 || (in->part_count == 2 && has_delimiter);
    struct sk_span frame = in->parts[has_delimiter ? 1 : 0];
    enum sk_role role = self->door.role;
    const char *key = "";
    if (self->door.keys != NULL) {
        key = in->user == NULL ? "" : in->user;
        role = in->user == NULL ? SK_ROLE_NONE : sk_zap_role(self->door.zap, in->user);
    }
    uint32_t open_count = 0;
    sk_peer from =
        sk_returns_give(&reactor->returns, self, in->routing_id, has_delimiter, &open_count);
    if (from == 0) { /* the core's own limit is lower, so this is rare: the client sees a deadline */
        reactor->counters.refused++;
        return;
    }
    if (!is_one_frame) {
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_INVALID, "a request is one frame, this one had %u",
                                 in->part_count);
        refuse(reactor, from, (struct sk_span){0}, rc, &d);
        return;
    }
    uint32_t open_max = self->door.client_open_max == 0 ? CLIENT_OPEN_MAX : self->door.client_open_max;
    if (open_count > open_max) { /* one that floods does not fill the queues of all */
        struct sk_diag d = {0};
        enum sk_err rc = sk_fail(&d, SK_ERR_BUSY, "%u requests of this connection are unanswered",
                                 open_max);
        refuse(reactor, from, frame, rc, &d);
        return;
    }
    if (reactor->core.on_client != NULL)
        reactor->core.on_client(reactor->core.core, from, role, key, frame);
    else
        refuse(reactor, from, frame, SK_ERR_UNAVAILABLE, NULL);
}

void sk_link_arrived(struct sk_socket *socket, sk_peer from, const struct sk_arrival *in)
{
    struct sk_reactor *reactor = socket->reactor;
    if (in->part_count == 1 && reactor->core.on_message != NULL)
        reactor->core.on_message(reactor->core.core, from, in->parts[0]);
    else
        reactor->counters.dropped_unknown++;
}
