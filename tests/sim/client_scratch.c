/* One collection that is made, filled, counted and dropped, over and over: one that was dropped and
 * made again must never meet its old records, and a late copy of a change must not undo a newer
 * one. */
#include "tests/sim/client_parts.h"
#include "tests/sim/wire.h"

#include <stdio.h>

enum { DIM = 3 };

static void pack_rows(struct sim_client *self, msgpack_packer *p)
{
    struct client_scratch *s = &self->scratch;
    s->rows = 1 + (unsigned)client_below(self, 8);
    wire_text(p, "ids");
    msgpack_pack_array(p, s->rows);
    for (unsigned i = 0; i < s->rows; i++)
        msgpack_pack_unsigned_int(p, ++s->serial);
    wire_text(p, "vectors");
    msgpack_pack_array(p, s->rows);
    for (unsigned i = 0; i < s->rows; i++) {
        msgpack_pack_array(p, DIM);
        for (unsigned d = 0; d < DIM; d++)
            msgpack_pack_float(p, (float)(i + d));
    }
}

bool client_scratch_act(struct sim_client *self, struct model_collection *c)
{
    static const char *const ops[] = {"create_collection", "upsert", "count", "drop_collection"};
    struct client_scratch *s = &self->scratch;
    msgpack_sbuffer frame;
    msgpack_packer p;
    if (self->world->now_us(self->world->impl) < s->rest_until_us)
        return false;
    unsigned draw = (unsigned)client_below(self, 10);
    if (s->state == SCRATCH_ABSENT)
        s->asked = draw < 7 ? SCRATCH_CREATE : SCRATCH_COUNT;
    else if (s->state == SCRATCH_UNKNOWN)
        s->asked = SCRATCH_DROP;
    else
        s->asked = draw < 4 ? SCRATCH_UPSERT : draw < 7 ? SCRATCH_COUNT : SCRATCH_DROP;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    client_begin(self, CLIENT_SCRATCH, c);
    wire_begin(&p, ops[s->asked], self->request, client_deadline(self), "scratch",
               s->asked == SCRATCH_CREATE || s->asked == SCRATCH_UPSERT ? 2 : 0);
    if (s->asked == SCRATCH_CREATE) {
        s->shards = 1 + (unsigned)client_below(self, 2);
        wire_text(&p, "vectors");
        msgpack_pack_map(&p, 2);
        wire_text(&p, "dim");
        msgpack_pack_unsigned_int(&p, DIM);
        wire_text(&p, "metric");
        wire_text(&p, "l2");
        wire_text(&p, "shards");
        msgpack_pack_unsigned_int(&p, s->shards);
    } else if (s->asked == SCRATCH_UPSERT) {
        pack_rows(self, &p);
    }
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
    return true;
}

void client_scratch_on_ok(struct sim_client *self, uint64_t count)
{
    struct client_scratch *s = &self->scratch;
    struct model *model = client_model(self);
    switch (s->asked) {
    case SCRATCH_CREATE:
        s->state = SCRATCH_THERE;
        s->low = s->high = 0;
        break;
    case SCRATCH_UPSERT:
        s->low += s->rows;
        s->high += s->rows;
        break;
    case SCRATCH_COUNT:
        if (s->state == SCRATCH_ABSENT)
            model_violate(model, "scratch: it answers after it was dropped");
        else if (count < s->low || count > s->high)
            model_violate(model, "scratch: %llu records, but there are %u to %u",
                          (unsigned long long)count, s->low, s->high);
        break;
    case SCRATCH_DROP:
        s->state = SCRATCH_ABSENT;
        break;
    }
}

void client_scratch_on_unknown(struct sim_client *self)
{
    struct client_scratch *s = &self->scratch;
    if (s->asked == SCRATCH_UPSERT)
        s->high += s->rows;
    if (s->asked != SCRATCH_CREATE && s->asked != SCRATCH_DROP)
        return;
    s->state = SCRATCH_UNKNOWN;
    s->rest_until_us = self->world->now_us(self->world->impl) + MODEL_LATE_US;
}

void client_scratch_on_error(struct sim_client *self, unsigned code, const char *message)
{
    struct client_scratch *s = &self->scratch;
    struct model *model = client_model(self);
    switch (code) {
    case ERR_DEADLINE:
    case ERR_UNAVAILABLE:
        client_scratch_on_unknown(self);
        return;
    case ERR_BUSY:
    case ERR_DISK_FULL:
        if (code == ERR_DISK_FULL && !self->world->may_be_full(self->world->impl))
            model_violate(model, "scratch: disk_full on a disk that is not full");
        /* One of two shards may have applied its part; a keeper or worker that is killed forgets
         * what it refused, and may apply a late copy. */
        if (s->asked != SCRATCH_COUNT)
            client_scratch_on_unknown(self);
        return;
    case ERR_NOT_FOUND:
        if (s->state == SCRATCH_THERE)
            model_violate(model, "scratch: it is gone, and nobody dropped it: %s", message);
        if (s->asked == SCRATCH_DROP) {
            s->state = SCRATCH_ABSENT;
            s->rest_until_us = self->world->now_us(self->world->impl) + MODEL_LATE_US;
        }
        return;
    default:
        model_violate(model, "scratch: error %u that no fault explains: %s", code, message);
    }
}
