#include "tests/sim/client.h"

#include "tests/sim/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ERR_NOMEM = 1,
    ERR_BUSY = 4,
    ERR_EXISTS = 6,
    ERR_DEADLINE = 10,
    ERR_UNAVAILABLE = 11,
    ERR_NOT_FOUND = 12,
    ERR_DISK_FULL = 13
};
enum { PATIENCE_US = 2000000, UNSETTLED_MAX = 4 };

static const char *const kind_names[CLIENT_KIND_COUNT] = {
    "create_collection", "upsert", "delete", "set_payload", "get", "search", "scroll", "count"};

static struct model *model_of(const struct sim_client *self)
{
    return self->world->model;
}

static uint64_t below(struct sim_client *self, uint64_t bound)
{
    return sim_below(self->world->rng, bound);
}

static bool chance(struct sim_client *self, unsigned per_mille)
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
    self->next_us = world->now_us(world->impl) + 1000 + below(self, 50000);
    self->give_up_us = UINT64_MAX;
}

/* ---- asking ---- */

static void begin(struct sim_client *self, enum client_kind kind,
                  struct model_collection *collection)
{
    const struct client_world *world = self->world;
    self->kind = kind;
    self->actions++;
    self->request = (uint64_t)(self->number + 1) << 32 | self->actions;
    self->read = (struct model_read){.collection = collection,
                                     .r0 = world->tick(world->impl),
                                     .r0_us = world->now_us(world->impl)};
    self->slot_count = 0;
    self->has_filter = false;
    self->next_us = UINT64_MAX;
}

static uint32_t deadline_of(struct sim_client *self)
{
    uint32_t deadline_ms = self->is_healed ? 20000 : (uint32_t)(50 + below(self, 1950));
    self->deadline_us = self->read.r0_us + (uint64_t)deadline_ms * 1000;
    self->give_up_us = self->deadline_us + PATIENCE_US;
    return deadline_ms;
}

static void ask(struct sim_client *self, const msgpack_sbuffer *frame)
{
    self->world->send(self->world->impl, self->number, frame->data, frame->size);
}

static void send_create(struct sim_client *self, struct model_collection *c)
{
    static const char *const metrics[] = {"l2", "ip", "cosine"};
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    begin(self, CLIENT_CREATE, c);
    wire_begin(&p, "create_collection", self->request, deadline_of(self), c->name, 3);
    wire_text(&p, "vectors");
    msgpack_pack_map(&p, 3);
    wire_text(&p, "dim");
    msgpack_pack_unsigned_int(&p, c->dim);
    wire_text(&p, "metric");
    wire_text(&p, metrics[c->metric]);
    wire_text(&p, "index");
    msgpack_pack_map(&p, 1);
    wire_text(&p, "type");
    wire_text(&p, c->is_flat ? "flat" : "hnsw");
    wire_text(&p, "payload");
    msgpack_pack_map(&p, 2);
    wire_text(&p, "g");
    wire_text(&p, "integer");
    wire_text(&p, "k");
    wire_text(&p, "keyword");
    wire_text(&p, "shards");
    msgpack_pack_unsigned_int(&p, c->shards);
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static bool is_own(const struct sim_client *self, unsigned slot)
{
    return slot % self->client_count == self->number;
}

/* Writes of this slot that may take effect at any time still. */
static unsigned unsettled(const struct model_slot *slot)
{
    unsigned n = 0;
    for (unsigned i = 0; i < slot->count; i++)
        n += slot->writes[i].state == MODEL_UNKNOWN && slot->writes[i].applied_by == UINT64_MAX;
    return n;
}

/* Own slots, each once, in a drawn order. wanted NULL takes any. */
static void pick_own(struct sim_client *self, unsigned count_max,
                     bool (*wanted)(struct sim_client *self, unsigned slot))
{
    struct model_collection *c = self->read.collection;
    unsigned start = (unsigned)below(self, c->slot_count);
    for (unsigned i = 0; i < c->slot_count && self->slot_count < count_max; i++) {
        unsigned slot = (start + i * 1) % c->slot_count;
        if (is_own(self, slot) && unsettled(&c->slots[slot]) < UNSETTLED_MAX &&
            (wanted == NULL || wanted(self, slot)))
            self->slots[self->slot_count++] = slot;
    }
}

static struct model_write *issue(struct sim_client *self, unsigned slot)
{
    const struct client_world *world = self->world;
    struct model_write *write =
        model_issue(world->model, self->read.collection, slot, self->read.r0, self->read.r0_us);
    write->request = (uint32_t)(self->request ^ (self->request >> 32) << 24);
    return write;
}

static uint32_t request_of(const struct sim_client *self)
{
    return (uint32_t)(self->request ^ (self->request >> 32) << 24);
}

static void pack_payload(msgpack_packer *p, const struct model_write *write)
{
    char keyword[8];
    snprintf(keyword, sizeof(keyword), "k%u", write->group);
    msgpack_pack_map(p, 3);
    wire_text(p, "n");
    msgpack_pack_uint32(p, write->payload_serial);
    wire_text(p, "g");
    msgpack_pack_unsigned_int(p, write->group);
    wire_text(p, "k");
    wire_text(p, keyword);
}

static void pack_vector(msgpack_packer *p, uint32_t serial, unsigned dim, bool as_array)
{
    float vector[MODEL_DIM_MAX];
    model_vector(serial, dim, vector);
    if (!as_array) {
        msgpack_pack_bin(p, dim * sizeof(float));
        msgpack_pack_bin_body(p, vector, dim * sizeof(float));
        return;
    }
    msgpack_pack_array(p, dim);
    for (unsigned i = 0; i < dim; i++)
        msgpack_pack_float(p, vector[i]);
}

static void pack_ids(struct sim_client *self, msgpack_packer *p)
{
    wire_text(p, "ids");
    msgpack_pack_array(p, self->slot_count);
    for (unsigned i = 0; i < self->slot_count; i++)
        model_pack_id(p, self->slots[i]);
}

static void send_upsert(struct sim_client *self, struct model_collection *c)
{
    struct model *model = model_of(self);
    begin(self, CLIENT_UPSERT, c);
    pick_own(self, 1 + (unsigned)below(self, 6), NULL);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    bool as_rows = chance(self, 300);
    uint32_t ttl_s = !self->is_healed && chance(self, 60) ? 1 + (uint32_t)below(self, 4) : 0;
    wire_begin(&p, "upsert", self->request, deadline_of(self), c->name,
               as_rows      ? 1
               : ttl_s != 0 ? 4
                            : 3);
    if (as_rows) {
        wire_text(&p, "records");
        msgpack_pack_array(&p, self->slot_count);
    } else {
        pack_ids(self, &p);
        wire_text(&p, "vectors");
        msgpack_pack_array(&p, self->slot_count);
    }
    for (unsigned i = 0; i < self->slot_count; i++) {
        struct model_write *write = issue(self, self->slots[i]);
        write->is_present = true;
        write->vector_serial = write->payload_serial = ++model->serial;
        write->group = (uint32_t)below(self, MODEL_GROUPS);
        write->ttl_s = ttl_s;
        if (as_rows) {
            msgpack_pack_map(&p, ttl_s != 0 ? 4 : 3);
            wire_text(&p, "id");
            model_pack_id(&p, self->slots[i]);
            wire_text(&p, "vector");
            pack_vector(&p, write->vector_serial, c->dim, i % 2 == 0);
            wire_text(&p, "payload");
            pack_payload(&p, write);
            if (ttl_s != 0) {
                wire_text(&p, "ttl_s");
                msgpack_pack_uint32(&p, ttl_s);
            }
        } else {
            pack_vector(&p, write->vector_serial, c->dim, true);
        }
    }
    if (!as_rows) {
        wire_text(&p, "payloads");
        msgpack_pack_array(&p, self->slot_count);
        for (unsigned i = 0; i < self->slot_count; i++) {
            const struct model_slot *slot = &c->slots[self->slots[i]];
            pack_payload(&p, &slot->writes[slot->count - 1]);
        }
        if (ttl_s != 0) {
            wire_text(&p, "ttl_s");
            msgpack_pack_uint32(&p, ttl_s);
        }
    }
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

/* What a slot certainly holds right now, NULL when that cannot be known. */
static const struct model_write *holds(struct sim_client *self, unsigned slot)
{
    struct model_read now = self->read;
    now.r1 = now.r0;
    now.r1_us = now.r0_us;
    const struct model_slot *of = &now.collection->slots[slot];
    if (of->writes[of->count - 1].ttl_s != 0)
        return NULL;
    return model_certain(model_of(self), &now, slot);
}

static bool is_certain(struct sim_client *self, unsigned slot)
{
    return holds(self, slot) != NULL;
}

static bool is_certainly_there(struct sim_client *self, unsigned slot)
{
    const struct model_write *write = holds(self, slot);
    return write != NULL && write->is_present;
}

static void pack_condition(struct sim_client *self, msgpack_packer *p)
{
    char keyword[8];
    snprintf(keyword, sizeof(keyword), "k%u", self->group);
    msgpack_pack_map(p, 2);
    wire_text(p, "key");
    wire_text(p, self->by_keyword ? "k" : "g");
    wire_text(p, "match");
    if (self->by_keyword)
        wire_text(p, keyword);
    else
        msgpack_pack_unsigned_int(p, self->group);
}

static void draw_filter(struct sim_client *self)
{
    self->group = (unsigned)below(self, MODEL_GROUPS);
    self->by_keyword = chance(self, 500);
    self->has_filter = true;
}

static void send_delete(struct sim_client *self, struct model_collection *c)
{
    begin(self, CLIENT_DELETE, c);
    bool by_filter = chance(self, 300);
    pick_own(self, 1 + (unsigned)below(self, 5), by_filter ? is_certain : NULL);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "delete", self->request, deadline_of(self), c->name, 1);
    if (by_filter) {
        draw_filter(self);
        wire_text(&p, "filter");
        msgpack_pack_map(&p, 1);
        wire_text(&p, "must");
        msgpack_pack_array(&p, 2);
        msgpack_pack_map(&p, 1);
        pack_ids(self, &p);
        pack_condition(self, &p);
    } else {
        pack_ids(self, &p);
    }
    unsigned kept = 0;
    for (unsigned i = 0; i < self->slot_count; i++) {
        unsigned slot = self->slots[i];
        if (by_filter) {
            const struct model_write *held = holds(self, slot);
            if (held == NULL || !held->is_present || held->group != self->group)
                continue; /* the filter leaves it alone */
        }
        issue(self, slot);
        self->slots[kept++] = slot;
    }
    self->slot_count = kept;
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static void send_set_payload(struct sim_client *self, struct model_collection *c)
{
    begin(self, CLIENT_SET_PAYLOAD, c);
    pick_own(self, 1, is_certainly_there);
    if (self->slot_count == 0) {
        send_upsert(self, c);
        return;
    }
    const struct model_write old = *holds(self, self->slots[0]);
    struct model_write *write = issue(self, self->slots[0]);
    write->is_present = true;
    write->vector_serial = old.vector_serial;
    write->payload_serial = ++model_of(self)->serial;
    write->group = (uint32_t)below(self, MODEL_GROUPS);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "set_payload", self->request, deadline_of(self), c->name, 3);
    pack_ids(self, &p);
    wire_text(&p, "payload");
    pack_payload(&p, write);
    wire_text(&p, "mode");
    wire_text(&p, chance(self, 500) ? "merge" : "replace");
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static void pack_bool(msgpack_packer *p, const char *name, bool value)
{
    wire_text(p, name);
    if (value)
        msgpack_pack_true(p);
    else
        msgpack_pack_false(p);
}

static void send_get(struct sim_client *self, struct model_collection *c, bool all)
{
    begin(self, CLIENT_GET, c);
    unsigned start = (unsigned)below(self, c->slot_count);
    unsigned count = all ? c->slot_count : 1 + (unsigned)below(self, c->slot_count);
    for (unsigned i = 0; i < count; i++)
        self->slots[self->slot_count++] = (start + i) % c->slot_count;
    self->with_vector = true;
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "get", self->request, deadline_of(self), c->name, 3);
    pack_ids(self, &p);
    pack_bool(&p, "with_payload", true);
    pack_bool(&p, "with_vector", true);
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static void pack_filter(struct sim_client *self, msgpack_packer *p)
{
    wire_text(p, "filter");
    msgpack_pack_map(p, 1);
    wire_text(p, "must");
    msgpack_pack_array(p, 1);
    pack_condition(self, p);
}

static void send_search(struct sim_client *self, struct model_collection *c, int exact)
{
    begin(self, CLIENT_SEARCH, c);
    bool is_final = exact >= 0;
    self->is_exact = is_final ? exact == 1 : chance(self, 500);
    self->with_vector = chance(self, 300);
    self->limit = is_final ? MODEL_SLOTS_MAX : 1 + (unsigned)below(self, c->slot_count + 5);
    self->query_serial = 1000000 + (uint32_t)below(self, 1000000);
    if (!is_final && chance(self, 400))
        draw_filter(self);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "search", self->request, deadline_of(self), c->name, self->has_filter ? 6 : 5);
    wire_text(&p, "vector");
    pack_vector(&p, self->query_serial, c->dim, chance(self, 500));
    wire_text(&p, "limit");
    msgpack_pack_unsigned_int(&p, self->limit);
    pack_bool(&p, "with_payload", true);
    pack_bool(&p, "with_vector", self->with_vector);
    pack_bool(&p, "exact", self->is_exact);
    if (self->has_filter)
        pack_filter(self, &p);
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static void send_scroll(struct sim_client *self, const msgpack_object *cursor)
{
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "scroll", self->request, deadline_of(self), self->read.collection->name,
               cursor != NULL ? 4 : 3);
    wire_text(&p, "limit");
    msgpack_pack_unsigned_int(&p, self->limit);
    pack_bool(&p, "with_payload", true);
    pack_bool(&p, "with_vector", true);
    if (cursor != NULL) {
        wire_text(&p, "cursor");
        msgpack_pack_object(&p, *cursor);
    }
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static void begin_scroll(struct sim_client *self, struct model_collection *c)
{
    begin(self, CLIENT_SCROLL, c);
    self->limit = 1 + (unsigned)below(self, 20);
    memset(self->seen, 0, sizeof(self->seen));
    send_scroll(self, NULL);
}

static void send_count(struct sim_client *self, struct model_collection *c)
{
    begin(self, CLIENT_COUNT, c);
    if (!self->is_healed && chance(self, 500))
        draw_filter(self);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "count", self->request, deadline_of(self), c->name, self->has_filter ? 1 : 0);
    if (self->has_filter)
        pack_filter(self, &p);
    ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

static void act(struct sim_client *self)
{
    struct model *model = model_of(self);
    if (self->number == 0 && model->created < model->collection_count) {
        send_create(self, &model->collections[model->created]);
        return;
    }
    struct model_collection *c = &model->collections[below(self, model->collection_count)];
    uint64_t draw = below(self, 100);
    if (draw < 32)
        send_upsert(self, c);
    else if (draw < 42)
        send_delete(self, c);
    else if (draw < 50)
        send_set_payload(self, c);
    else if (draw < 65)
        send_get(self, c, false);
    else if (draw < 88)
        send_search(self, c, -1);
    else if (draw < 94)
        begin_scroll(self, c);
    else
        send_count(self, c);
}

bool sim_client_final(struct sim_client *self, unsigned collection, unsigned what)
{
    if (self->request != 0)
        return false;
    struct model_collection *c = &model_of(self)->collections[collection];
    switch (what) {
    case 0:
        send_get(self, c, true);
        break;
    case 1:
        send_search(self, c, 1);
        break;
    case 2:
        send_search(self, c, 0);
        break;
    case 3:
        send_count(self, c);
        break;
    case 4:
        begin_scroll(self, c);
        break;
    default:
        send_upsert(self, c);
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
                        : self->world->now_us(self->world->impl) + 200 + below(self, 60000);
}

static bool is_write(enum client_kind kind)
{
    return kind == CLIENT_UPSERT || kind == CLIENT_DELETE || kind == CLIENT_SET_PAYLOAD;
}

static void settle(struct sim_client *self, enum model_state state)
{
    const struct client_world *world = self->world;
    uint64_t tick = world->tick(world->impl), now_us = world->now_us(world->impl);
    for (unsigned i = 0; is_write(self->kind) && i < self->slot_count; i++)
        model_settle(world->model, self->read.collection, self->slots[i], request_of(self), state,
                     tick, now_us);
}

static void on_created(struct sim_client *self)
{
    self->read.collection->created_tick = self->world->tick(self->world->impl);
    model_of(self)->created++;
}

static void on_error(struct sim_client *self, const struct wire_reply *reply)
{
    struct model *model = model_of(self);
    const struct client_world *world = self->world;
    bool is_spread = self->read.collection->shards > 1;
    world->say(world->impl, "client %u: %s: error %u: %s", self->number, kind_names[self->kind],
               reply->code, reply->message);
    self->failed_kinds[reply->code % 16]++;
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
            model_violate(model, "%s: disk_full on a disk that is not full",
                          kind_names[self->kind]);
        settle(self, is_spread ? MODEL_UNKNOWN : MODEL_REFUSED);
        break;
    case ERR_EXISTS:
        if (self->kind == CLIENT_CREATE) {
            on_created(self);
            break;
        }
        model_violate(model, "%s: exists: %s", kind_names[self->kind], reply->message);
        break;
    case ERR_NOT_FOUND:
        /* Only before the collection is known to be there. */
        if (self->read.r0 > self->read.collection->created_tick)
            model_violate(model, "%s: not_found: %s", kind_names[self->kind], reply->message);
        settle(self, MODEL_REFUSED);
        break;
    default:
        model_violate(model, "%s: error %u that no fault explains: %s", kind_names[self->kind],
                      reply->code, reply->message);
    }
    if (self->is_healed)
        model_violate(model, "%s: error %u after everything healed: %s", kind_names[self->kind],
                      reply->code, reply->message);
    if (self->kind == CLIENT_CREATE)
        self->next_us = 0;
}

static uint64_t number_of(const msgpack_object *value)
{
    return value != NULL && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? value->via.u64
                                                                           : UINT64_MAX;
}

static void check_get(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = model_of(self);
    const msgpack_object *records = wire_member(map, "records");
    if (records == NULL || records->type != MSGPACK_OBJECT_ARRAY ||
        records->via.array.size != self->slot_count) {
        model_violate(model, "get: not one record for each id that was asked for");
        return;
    }
    for (unsigned i = 0; i < self->slot_count; i++) {
        const msgpack_object *record = &records->via.array.ptr[i];
        self->shown[i] = NULL;
        if (record->type == MSGPACK_OBJECT_NIL) {
            model_check_absent(model, &self->read, self->slots[i], "get");
            continue;
        }
        if (model_slot_of(self->read.collection, wire_member(record, "id")) !=
            (int)self->slots[i]) {
            model_violate(model, "get: another record than was asked for");
            return;
        }
        self->shown[i] =
            model_check_shown(model, &self->read, self->slots[i], wire_member(record, "payload"),
                              wire_member(record, "vector"), "get");
    }
    if (self->read.collection->shards == 1)
        model_check_atomic(model, &self->read, self->slots, self->shown, self->slot_count);
}

static float score_of(const struct sim_client *self, uint32_t vector_serial)
{
    float query[MODEL_DIM_MAX], vector[MODEL_DIM_MAX];
    unsigned dim = self->read.collection->dim;
    model_vector(self->query_serial, dim, query);
    model_vector(vector_serial, dim, vector);
    return model_score(self->read.collection->metric, query, vector, dim);
}

/* Whether a record of that score and slot ranks before the other. */
static bool ranks_before(const struct sim_client *self, float score, unsigned slot, float than,
                         unsigned than_slot)
{
    if (score != than)
        return self->read.collection->metric == MODEL_L2 ? score < than : score > than;
    return model_compare_ids(slot, than_slot) < 0;
}

static bool fits(const struct sim_client *self, const struct model_write *write)
{
    return !self->has_filter || write->group == self->group;
}

/* Every record that is certainly there and fits must be among the hits, unless it ranks behind them
 * all and the hits are full. */
static void check_complete(struct sim_client *self, const bool *hit, unsigned hit_count,
                           float last_score, unsigned last_slot)
{
    struct model *model = model_of(self);
    struct model_collection *c = self->read.collection;
    for (unsigned slot = 0; slot < c->slot_count; slot++) {
        const struct model_write *write = model_certain(model, &self->read, slot);
        if (hit[slot] || write == NULL || !write->is_present || !fits(self, write))
            continue;
        float score = score_of(self, write->vector_serial);
        if (hit_count < self->limit || ranks_before(self, score, slot, last_score, last_slot))
            model_violate(
                model,
                "%s search %s: slot %u (n=%u, score %.6g) is missing among %u hits of %u asked "
                "for%s, read @%llu-%llu",
                self->is_exact ? "exact" : "index", c->name, slot, write->payload_serial,
                (double)score, hit_count, self->limit, self->has_filter ? " with a filter" : "",
                (unsigned long long)self->read.r0, (unsigned long long)self->read.r1);
    }
}

static void check_search(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = model_of(self);
    const char *where = self->is_exact ? "exact search" : "index search";
    const msgpack_object *hits = wire_member(map, "hits");
    bool hit[MODEL_SLOTS_MAX] = {false};
    float last_score = 0;
    unsigned last_slot = 0;
    if (hits == NULL || hits->type != MSGPACK_OBJECT_ARRAY || hits->via.array.size > self->limit) {
        model_violate(model, "%s: no hits, or more than the limit of %u", where, self->limit);
        return;
    }
    const msgpack_object *exact = wire_member(map, "exact");
    if (self->is_exact &&
        (exact == NULL || exact->type != MSGPACK_OBJECT_BOOLEAN || !exact->via.boolean)) {
        model_violate(model, "exact search: the answer does not say that it is exact");
        return;
    }
    for (uint32_t i = 0; i < hits->via.array.size; i++) {
        const msgpack_object *one = &hits->via.array.ptr[i], *score = wire_member(one, "score");
        int slot = model_slot_of(self->read.collection, wire_member(one, "id"));
        if (slot < 0 || hit[slot]) {
            model_violate(model, "%s: hit %u is a record that nobody wrote, or comes twice", where,
                          i);
            return;
        }
        hit[slot] = true;
        const struct model_write *write =
            model_check_shown(model, &self->read, (unsigned)slot, wire_member(one, "payload"),
                              self->with_vector ? wire_member(one, "vector") : NULL, where);
        if (write == NULL)
            return;
        float wanted = score_of(self, write->vector_serial);
        float got = score == NULL ? 0 : (float)score->via.f64;
        if (score == NULL ||
            (score->type != MSGPACK_OBJECT_FLOAT32 && score->type != MSGPACK_OBJECT_FLOAT64) ||
            got != wanted) {
            model_violate(model, "%s: slot %d scores %.9g, brute force says %.9g", where, slot,
                          (double)got, (double)wanted);
            return;
        }
        if (!fits(self, write)) {
            model_violate(model, "%s: slot %d does not fit the filter", where, slot);
            return;
        }
        if (i > 0 && !ranks_before(self, last_score, last_slot, got, (unsigned)slot)) {
            model_violate(model, "%s: hit %u ranks before hit %u", where, i, i - 1);
            return;
        }
        last_score = got;
        last_slot = (unsigned)slot;
    }
    check_complete(self, hit, hits->via.array.size, last_score, last_slot);
}

/* true: the answer was a page and the next one has been asked for. */
static bool check_scroll(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = model_of(self);
    struct model_collection *c = self->read.collection;
    const msgpack_object *records = wire_member(map, "records"),
                         *cursor = wire_member(map, "cursor");
    if (records == NULL || records->type != MSGPACK_OBJECT_ARRAY ||
        records->via.array.size > self->limit) {
        model_violate(model, "scroll: no records, or more than the limit of %u", self->limit);
        return false;
    }
    for (uint32_t i = 0; i < records->via.array.size; i++) {
        const msgpack_object *record = &records->via.array.ptr[i];
        int slot = model_slot_of(c, wire_member(record, "id"));
        if (slot < 0 || self->seen[slot]) {
            model_violate(model, "scroll: slot %d comes twice, or nobody wrote it", slot);
            return false;
        }
        self->seen[slot] = true;
        if (model_check_shown(model, &self->read, (unsigned)slot, wire_member(record, "payload"),
                              wire_member(record, "vector"), "scroll") == NULL)
            return false;
    }
    if (cursor != NULL && cursor->type != MSGPACK_OBJECT_NIL) {
        if (records->via.array.size == 0)
            model_violate(model, "scroll: an empty page with a cursor");
        self->actions++;
        self->request = (uint64_t)(self->number + 1) << 32 | self->actions;
        uint64_t r0_us = self->read.r0_us;
        self->read.r0_us = self->world->now_us(self->world->impl); /* the page's own deadline */
        send_scroll(self, cursor);
        self->read.r0_us = r0_us;
        return true;
    }
    for (unsigned slot = 0; slot < c->slot_count; slot++) {
        const struct model_write *write = model_certain(model, &self->read, slot);
        if (write != NULL && write->is_present && !self->seen[slot])
            model_violate(model, "scroll %s: slot %u (n=%u) is missing", c->name, slot,
                          write->payload_serial);
    }
    return false;
}

static void check_count(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = model_of(self);
    struct model_collection *c = self->read.collection;
    uint64_t count = number_of(wire_member(map, "count"));
    unsigned low = 0, high = 0;
    for (unsigned slot = 0; slot < c->slot_count; slot++) {
        const struct model_write *write = model_certain(model, &self->read, slot);
        if (write == NULL) {
            high++;
        } else if (write->is_present && fits(self, write)) {
            low++;
            high++;
        }
    }
    model->checked++;
    if (count < low || count > high)
        model_violate(model, "count %s%s: %llu, but there are %u to %u", c->name,
                      self->has_filter ? " with a filter" : "", (unsigned long long)count, low,
                      high);
}

void sim_client_on_reply(struct sim_client *self, const uint8_t *bytes, size_t size)
{
    struct model *model = model_of(self);
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
        case CLIENT_UPSERT:
            if (number_of(wire_member(map, "upserted")) != self->slot_count)
                model_violate(model, "upsert: not as many as were sent");
            /* fall through */
        case CLIENT_DELETE:
        case CLIENT_SET_PAYLOAD:
            settle(self, MODEL_ACKED);
            break;
        case CLIENT_GET:
            check_get(self, map);
            break;
        case CLIENT_SEARCH:
            check_search(self, map);
            break;
        case CLIENT_SCROLL:
            goes_on = check_scroll(self, map);
            break;
        default:
            check_count(self, map);
            break;
        }
        world->say(world->impl, "client %u: %s %s: ok", self->number, kind_names[self->kind],
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
        world->say(world->impl, "client %u: %s: no answer", self->number, kind_names[self->kind]);
        self->failed_kinds[0]++;
        if (self->is_healed)
            model_violate(world->model, "%s: no answer after everything healed",
                          kind_names[self->kind]);
        settle(self, MODEL_UNKNOWN);
        close_question(self);
    } else if (self->request == 0 && now_us >= self->next_us) {
        act(self);
    }
}
