#include "tests/sim/client_parts.h"
#include "tests/sim/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[CLIENT_KIND_COUNT] = {"create_collection",
                                                          "upsert",
                                                          "delete",
                                                          "set_payload",
                                                          "get",
                                                          "search",
                                                          "scroll",
                                                          "count",
                                                          "look",
                                                          "scratch"};

static const char *question(const struct sim_client *self)
{
    static const char *const scratch[] = {"scratch create", "scratch upsert", "scratch count",
                                          "scratch drop"};
    return self->kind == CLIENT_LOOK      ? client_look_name(self)
           : self->kind == CLIENT_SCRATCH ? scratch[self->scratch.asked]
                                          : kind_names[self->kind];
}

static bool is_write(enum client_kind kind)
{
    return kind == CLIENT_UPSERT || kind == CLIENT_DELETE || kind == CLIENT_SET_PAYLOAD;
}

const char *sim_client_asks(const struct sim_client *self, char *text, size_t size)
{
    const struct model_collection *c = self->read.collection;
    int used = snprintf(text, size, "%s %s", question(self), c->name);
    for (unsigned i = 0; is_write(self->kind) && i < self->slot_count && used < (int)size - 40;
         i++) {
        const struct model_slot *slot = &c->slots[self->slots[i]];
        const struct model_write *write = &slot->writes[slot->count - 1];
        used += snprintf(text + used, size - (size_t)used, ", slot %u n=%u", self->slots[i],
                         write->payload_serial);
        if (write->ttl_s != 0)
            used += snprintf(text + used, size - (size_t)used, " ttl=%u", write->ttl_s);
    }
    return text;
}

struct model *client_model(const struct sim_client *self)
{
    return self->world->model;
}

uint64_t client_below(struct sim_client *self, uint64_t bound)
{
    return sim_below(self->world->rng, bound);
}

bool client_chance(struct sim_client *self, unsigned per_mille)
{
    return sim_chance(self->world->rng, per_mille);
}

void sim_client_init(struct sim_client *self, const struct client_world *world, unsigned number,
                     unsigned client_count)
{
    memset(self, 0, sizeof(*self));
    self->world = world;
    self->number = number;
    self->client_count = client_count;
    self->next_us = world->now_us(world->impl) + 1000 + client_below(self, 50000);
    self->give_up_us = UINT64_MAX;
}

static void act(struct sim_client *self)
{
    struct model *model = client_model(self);
    if (self->number == 0 && model->created < model->collection_count) {
        client_send_create(self, &model->collections[model->created]);
        return;
    }
    struct model_collection *c = &model->collections[client_below(self, model->collection_count)];
    uint64_t draw = client_below(self, 108);
    if (self->number == 0 && client_chance(self, 120) && client_scratch_act(self, c))
        return;
    if (draw < 32)
        client_send_upsert(self, c);
    else if (draw < 42)
        client_send_delete(self, c);
    else if (draw < 50)
        client_send_set_payload(self, c);
    else if (draw < 65)
        client_send_get(self, c, false);
    else if (draw < 88)
        client_send_search(self, c, -1);
    else if (draw < 94)
        client_begin_scroll(self, c);
    else if (draw < 100)
        client_send_count(self, c);
    else
        client_send_look(self, c, (unsigned)client_below(self, 10));
}

bool sim_client_final(struct sim_client *self, unsigned collection, unsigned what)
{
    if (self->request != 0)
        return false;
    struct model_collection *c = &client_model(self)->collections[collection];
    switch (what) {
    case 0:
        client_send_get(self, c, true);
        break;
    case 1:
        client_send_search(self, c, 1);
        break;
    case 2:
        client_send_search(self, c, 0);
        break;
    case 3:
        client_send_count(self, c);
        break;
    case 4:
        client_begin_scroll(self, c);
        break;
    case 5:
        client_send_upsert(self, c);
        break;
    default:
        client_send_look(self, c, what - 6);
        break;
    }
    return true;
}

/* ---- answers ---- */

static void close_question(struct sim_client *self)
{
    self->request = 0;
    self->give_up_us = UINT64_MAX;
    self->next_us = self->is_healed
                        ? UINT64_MAX
                        : self->world->now_us(self->world->impl) + 200 + client_below(self, 60000);
}

static void settle(struct sim_client *self, enum model_state state)
{
    const struct client_world *world = self->world;
    uint64_t tick = world->tick(world->impl), now_us = world->now_us(world->impl);
    for (unsigned i = 0; is_write(self->kind) && i < self->slot_count; i++)
        model_settle(world->model, self->read.collection, self->slots[i], client_request(self),
                     state, tick, now_us);
    for (unsigned i = 0; state != MODEL_ACKED && i < self->touched_count; i++)
        self->read.collection->slots[self->touched[i]].frozen_until_us = now_us + MODEL_LATE_US;
}

static void on_created(struct sim_client *self)
{
    self->read.collection->created_tick = self->world->tick(self->world->impl);
    client_model(self)->created++;
}

static void on_error(struct sim_client *self, const struct wire_reply *reply)
{
    struct model *model = client_model(self);
    const struct client_world *world = self->world;
    bool is_spread = self->read.collection->shards > 1;
    world->say(world->impl, "client %u: %s: error %u: %s", self->number, question(self),
               reply->code, reply->message);
    self->failed_kinds[reply->code % 16]++;
    if (self->kind == CLIENT_SCRATCH) {
        client_scratch_on_error(self, reply->code, reply->message);
        return;
    }
    bool is_alter = self->kind == CLIENT_LOOK && self->look == 4;
    bool is_there = self->read.r0 > self->read.collection->created_tick;
    if (is_alter && (reply->code == ERR_EXISTS || (reply->code == ERR_NOT_FOUND && is_there)))
        return; /* it has that field, or has it not, already */
    switch (reply->code) {
    case ERR_DEADLINE:
    case ERR_UNAVAILABLE:
        settle(self, MODEL_UNKNOWN);
        break;
    case ERR_BUSY:
        settle(self, is_spread ? MODEL_UNKNOWN : MODEL_REFUSED);
        break;
    case ERR_DISK_FULL:
        if (!world->may_be_full(world->impl))
            model_violate(model, "%s: disk_full on a disk that is not full", question(self));
        settle(self, is_spread ? MODEL_UNKNOWN : MODEL_REFUSED);
        break;
    case ERR_EXISTS:
        if (self->kind == CLIENT_CREATE) {
            on_created(self);
            break;
        }
        model_violate(model, "%s: exists: %s", question(self), reply->message);
        break;
    case ERR_NOT_FOUND:
        /* Only before the collection is known to be there. */
        if (self->read.r0 > self->read.collection->created_tick)
            model_violate(model, "%s: not_found: %s", question(self), reply->message);
        settle(self, MODEL_REFUSED);
        break;
    default:
        model_violate(model, "%s: error %u that no fault explains: %s", question(self), reply->code,
                      reply->message);
    }
    if (self->is_healed)
        model_violate(model, "%s: error %u after everything healed: %s", question(self),
                      reply->code, reply->message);
    if (self->kind == CLIENT_CREATE)
        self->next_us = 0;
}

void sim_client_on_reply(struct sim_client *self, const uint8_t *bytes, size_t size)
{
    struct model *model = client_model(self);
    const struct client_world *world = self->world;
    struct wire_reply reply;
    if (!wire_reply_decode(&reply, bytes, size)) {
        model_violate(model, "client %u: a reply that is not of the protocol", self->number);
        wire_reply_end(&reply);
        return;
    }
    if (reply.id != self->request || self->request == 0) { /* late: it had given up */
        wire_reply_end(&reply);
        return;
    }
    self->answered++;
    self->read.r1 = world->tick(world->impl);
    self->read.r1_us = world->now_us(world->impl);
    bool goes_on = false;
    if (!reply.is_ok) {
        on_error(self, &reply);
    } else {
        const msgpack_object *map = &reply.unpacked.data;
        switch (self->kind) {
        case CLIENT_CREATE:
            on_created(self);
            break;
        case CLIENT_LOOK:
            client_check_look(self, map);
            break;
        case CLIENT_SCRATCH:
            client_scratch_on_ok(self, client_number_of(wire_member(map, "count")));
            break;
        case CLIENT_UPSERT:
            if (client_number_of(wire_member(map, "upserted")) != self->slot_count)
                model_violate(model, "upsert: not as many as were sent");
            /* fall through */
        case CLIENT_DELETE:
        case CLIENT_SET_PAYLOAD:
            settle(self, MODEL_ACKED);
            break;
        case CLIENT_GET:
            client_check_get(self, map);
            break;
        case CLIENT_SEARCH:
            client_check_search(self, map);
            break;
        case CLIENT_SCROLL:
            goes_on = client_check_scroll(self, map);
            break;
        default:
            client_check_count(self, map);
            break;
        }
        world->say(world->impl, "client %u: %s %s: ok", self->number, question(self),
                   self->read.collection->name);
    }
    wire_reply_end(&reply);
    if (!goes_on)
        close_question(self);
}

void sim_client_on_time(struct sim_client *self)
{
    const struct client_world *world = self->world;
    uint64_t now_us = world->now_us(world->impl);
    if (self->request != 0 && now_us >= self->give_up_us) {
        world->say(world->impl, "client %u: %s: no answer", self->number, question(self));
        self->failed_kinds[0]++;
        if (self->is_healed)
            model_violate(world->model, "%s: no answer after everything healed", question(self));
        if (self->kind == CLIENT_SCRATCH)
            client_scratch_on_unknown(self);
        settle(self, MODEL_UNKNOWN);
        close_question(self);
    } else if (self->request == 0 && now_us >= self->next_us) {
        act(self);
    }
}
