/* What a simulated client sends. */
#include "tests/sim/client_parts.h"
#include "tests/sim/wire.h"

#include <stdio.h>
#include <string.h>

enum { PATIENCE_US = 2000000, UNSETTLED_MAX = 4 };

void client_begin(struct sim_client *self, enum client_kind kind,
                  struct model_collection *collection)
{
    const struct client_world *world = self->world;
    self->kind = kind;
    self->actions++;
    self->request = (uint64_t)(self->number + 1) << 32 | self->actions;
    self->read = (struct model_read){.collection = collection,
                                     .r0 = world->tick(world->impl),
                                     .r0_us = world->now_us(world->impl)};
    self->slot_count = self->touched_count = 0;
    self->filter = FILTER_NONE;
    self->next_us = UINT64_MAX;
}

uint32_t client_deadline(struct sim_client *self)
{
    uint32_t deadline_ms = self->is_healed ? 20000 : (uint32_t)(50 + client_below(self, 1950));
    self->deadline_us = self->read.r0_us + (uint64_t)deadline_ms * 1000;
    self->give_up_us = self->deadline_us + PATIENCE_US;
    return deadline_ms;
}

void client_ask(struct sim_client *self, const msgpack_sbuffer *frame)
{
    self->world->send(self->world->impl, self->number, frame->data, frame->size);
}

/* A type, and now and then what only this type takes. */
static void pack_index(struct sim_client *self, msgpack_packer *p, unsigned index)
{
    static const char *const profiles[] = {"speed", "balanced", "memory"};
    bool has_lists = index >= MODEL_WITH_LISTS, is_graph = index == 1;
    bool has_parameter = client_chance(self, 500) && (has_lists || is_graph);
    bool has_profile = client_chance(self, 500) && is_graph;
    msgpack_pack_map(p, 1 + (size_t)has_parameter + (size_t)has_profile);
    wire_text(p, "type");
    wire_text(p, model_index_names[index]);
    if (has_parameter) {
        bool is_links = client_chance(self, 500);
        wire_text(p, has_lists ? "nlist" : is_links ? "m" : "ef_construction");
        msgpack_pack_unsigned_int(p, has_lists  ? 1 + (unsigned)client_below(self, 8)
                                     : is_links ? 4 + (unsigned)client_below(self, 12)
                                                : 20 + (unsigned)client_below(self, 80));
    }
    if (has_profile) {
        wire_text(p, "profile");
        wire_text(p, profiles[client_below(self, 3)]);
    }
}

void client_send_create(struct sim_client *self, struct model_collection *c)
{
    static const char *const metrics[] = {"l2", "ip", "cosine"};
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    client_begin(self, CLIENT_CREATE, c);
    wire_begin(&p, "create_collection", self->request, client_deadline(self), c->name, 3);
    wire_text(&p, "vectors");
    msgpack_pack_map(&p, 3);
    wire_text(&p, "dim");
    msgpack_pack_unsigned_int(&p, c->dim);
    wire_text(&p, "metric");
    wire_text(&p, metrics[c->metric]);
    wire_text(&p, "index");
    pack_index(self, &p, c->index);
    wire_text(&p, "payload");
    msgpack_pack_map(&p, 2);
    wire_text(&p, "g");
    wire_text(&p, "integer");
    wire_text(&p, "k");
    wire_text(&p, "keyword");
    wire_text(&p, "shards");
    msgpack_pack_unsigned_int(&p, c->shards);
    client_ask(self, &frame);
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
    unsigned start = (unsigned)client_below(self, c->slot_count);
    for (unsigned i = 0; i < c->slot_count && self->slot_count < count_max; i++) {
        unsigned slot = (start + i * 1) % c->slot_count;
        if (is_own(self, slot) && unsettled(&c->slots[slot]) < UNSETTLED_MAX &&
            self->read.r0_us >= c->slots[slot].frozen_until_us &&
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

uint32_t client_request(const struct sim_client *self)
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

void client_send_upsert(struct sim_client *self, struct model_collection *c)
{
    struct model *model = client_model(self);
    client_begin(self, CLIENT_UPSERT, c);
    pick_own(self, 1 + (unsigned)client_below(self, 6), NULL);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    bool as_rows = client_chance(self, 300);
    uint32_t ttl_s =
        !self->is_healed && client_chance(self, 60) ? 1 + (uint32_t)client_below(self, 4) : 0;
    wire_begin(&p, "upsert", self->request, client_deadline(self), c->name,
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
        write->group = (uint32_t)client_below(self, MODEL_GROUPS);
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
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

/* What a slot certainly holds right now, NULL when that cannot be known. */
static const struct model_write *holds(struct sim_client *self, unsigned slot)
{
    struct model_read now = self->read;
    now.r1 = now.r0;
    now.r1_us = now.r0_us;
    const struct model_write *write = model_certain(client_model(self), &now, slot);
    return write == NULL || write->ttl_s != 0 ? NULL : write; /* it may expire under way */
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
    wire_text(p, self->filter == FILTER_KEYWORD ? "k" : self->filter == FILTER_GROUP ? "g" : "n");
    wire_text(p, self->filter == FILTER_RANGE ? "range" : "match");
    if (self->filter == FILTER_KEYWORD) {
        wire_text(p, keyword);
    } else if (self->filter == FILTER_GROUP) {
        msgpack_pack_unsigned_int(p, self->group);
    } else {
        msgpack_pack_map(p, 2);
        wire_text(p, "gte");
        msgpack_pack_uint32(p, self->serial_from);
        wire_text(p, "lt");
        msgpack_pack_uint32(p, self->serial_end);
    }
}

static void draw_filter(struct sim_client *self)
{
    uint32_t serial = client_model(self)->serial;
    self->group = (unsigned)client_below(self, MODEL_GROUPS);
    self->filter = FILTER_GROUP + (enum client_filter)client_below(self, 3);
    self->serial_from = (uint32_t)client_below(self, serial + 1);
    self->serial_end = self->serial_from + 1 + (uint32_t)client_below(self, serial / 2 + 1);
}

void client_send_delete(struct sim_client *self, struct model_collection *c)
{
    client_begin(self, CLIENT_DELETE, c);
    bool by_filter = client_chance(self, 300);
    pick_own(self, 1 + (unsigned)client_below(self, 5), by_filter ? is_certain : NULL);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "delete", self->request, client_deadline(self), c->name, 1);
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
    for (unsigned i = 0; by_filter && i < self->slot_count; i++)
        self->touched[self->touched_count++] = self->slots[i];
    for (unsigned i = 0; i < self->slot_count; i++) {
        unsigned slot = self->slots[i];
        if (by_filter) {
            const struct model_write *held = holds(self, slot);
            if (held == NULL || !held->is_present || !client_fits(self, held))
                continue; /* the filter leaves it alone */
        }
        issue(self, slot);
        self->slots[kept++] = slot;
    }
    self->slot_count = kept;
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

void client_send_set_payload(struct sim_client *self, struct model_collection *c)
{
    client_begin(self, CLIENT_SET_PAYLOAD, c);
    pick_own(self, 1, is_certainly_there);
    if (self->slot_count == 0) {
        client_send_upsert(self, c);
        return;
    }
    const struct model_write old = *holds(self, self->slots[0]);
    self->touched[self->touched_count++] = self->slots[0];
    struct model_write *write = issue(self, self->slots[0]);
    write->is_present = true;
    write->vector_serial = old.vector_serial;
    write->payload_serial = ++client_model(self)->serial;
    write->group = (uint32_t)client_below(self, MODEL_GROUPS);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "set_payload", self->request, client_deadline(self), c->name, 3);
    pack_ids(self, &p);
    wire_text(&p, "payload");
    pack_payload(&p, write);
    wire_text(&p, "mode");
    wire_text(&p, client_chance(self, 500) ? "merge" : "replace");
    client_ask(self, &frame);
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

void client_send_get(struct sim_client *self, struct model_collection *c, bool all)
{
    client_begin(self, CLIENT_GET, c);
    unsigned start = (unsigned)client_below(self, c->slot_count);
    unsigned count = all ? c->slot_count : 1 + (unsigned)client_below(self, c->slot_count);
    for (unsigned i = 0; i < count; i++)
        self->slots[self->slot_count++] = (start + i) % c->slot_count;
    self->with_vector = true;
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "get", self->request, client_deadline(self), c->name, 3);
    pack_ids(self, &p);
    pack_bool(&p, "with_payload", true);
    pack_bool(&p, "with_vector", true);
    client_ask(self, &frame);
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

void client_send_search(struct sim_client *self, struct model_collection *c, int exact)
{
    client_begin(self, CLIENT_SEARCH, c);
    bool is_final = exact >= 0;
    self->is_exact = is_final ? exact == 1 : client_chance(self, 500);
    self->with_vector = client_chance(self, 300);
    self->limit = is_final ? MODEL_SLOTS_MAX : 1 + (unsigned)client_below(self, c->slot_count + 5);
    self->query_serial = 1000000 + (uint32_t)client_below(self, 1000000);
    if (!is_final && client_chance(self, 400))
        draw_filter(self);
    bool has_recall = !is_final && client_chance(self, 200); /* any index takes it */
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "search", self->request, client_deadline(self), c->name,
               5U + (self->filter != FILTER_NONE) + has_recall);
    wire_text(&p, "vector");
    pack_vector(&p, self->query_serial, c->dim, client_chance(self, 500));
    wire_text(&p, "limit");
    msgpack_pack_unsigned_int(&p, self->limit);
    pack_bool(&p, "with_payload", true);
    pack_bool(&p, "with_vector", self->with_vector);
    pack_bool(&p, "exact", self->is_exact);
    if (has_recall) {
        wire_text(&p, "recall");
        msgpack_pack_double(&p, 0.95);
    }
    if (self->filter != FILTER_NONE)
        pack_filter(self, &p);
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

void client_send_scroll(struct sim_client *self, const msgpack_object *cursor)
{
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "scroll", self->request, client_deadline(self), self->read.collection->name,
               cursor != NULL ? 4 : 3);
    wire_text(&p, "limit");
    msgpack_pack_unsigned_int(&p, self->limit);
    pack_bool(&p, "with_payload", true);
    pack_bool(&p, "with_vector", true);
    if (cursor != NULL) {
        wire_text(&p, "cursor");
        msgpack_pack_object(&p, *cursor);
    }
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

void client_begin_scroll(struct sim_client *self, struct model_collection *c)
{
    client_begin(self, CLIENT_SCROLL, c);
    self->limit = 1 + (unsigned)client_below(self, 20);
    memset(self->seen, 0, sizeof(self->seen));
    client_send_scroll(self, NULL);
}

void client_send_count(struct sim_client *self, struct model_collection *c)
{
    client_begin(self, CLIENT_COUNT, c);
    if (!self->is_healed && client_chance(self, 500))
        draw_filter(self);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_begin(&p, "count", self->request, client_deadline(self), c->name,
               self->filter != FILTER_NONE ? 1 : 0);
    if (self->filter != FILTER_NONE)
        pack_filter(self, &p);
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}

/* What an operator asks now and then. */
static const char *const looks[] = {"verify",
                                    "compact",
                                    "wait",
                                    "describe_collection",
                                    "alter_collection",
                                    "list_collections",
                                    "stats",
                                    "topology",
                                    "info",
                                    "ping"};

const char *client_look_name(const struct sim_client *self)
{
    return looks[self->look];
}

void client_send_look(struct sim_client *self, struct model_collection *c, unsigned look)
{
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    client_begin(self, CLIENT_LOOK, c);
    self->look = look;
    bool is_wait = strcmp(looks[look], "wait") == 0;
    bool is_alter = strcmp(looks[look], "alter_collection") == 0;
    bool of_collection = look < 5;
    wire_begin(&p, looks[look], self->request, client_deadline(self),
               of_collection ? c->name : NULL, is_wait || is_alter);
    if (is_wait) {
        wire_text(&p, "for");
        wire_text(&p, "indexed");
    }
    if (is_alter && client_chance(self, 500)) {
        unsigned index = (unsigned)client_below(self, MODEL_INDEXES);
        c->may_have_lists = c->may_have_lists || index >= MODEL_WITH_LISTS;
        wire_text(&p, "index");
        pack_index(self, &p, index);
    } else if (is_alter) { /* "n" is filtered on with and without an index of it */
        wire_text(&p, "payload");
        msgpack_pack_map(&p, 1);
        wire_text(&p, "n");
        if (client_chance(self, 500))
            wire_text(&p, "integer");
        else
            msgpack_pack_nil(&p);
    }
    client_ask(self, &frame);
    msgpack_sbuffer_destroy(&frame);
}
