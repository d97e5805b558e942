/* Compares answers with the model. */
#include "tests/sim/client_parts.h"
#include "tests/sim/wire.h"

#include <stdio.h>
#include <string.h>

uint64_t client_number_of(const msgpack_object *value)
{
    return value != NULL && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? value->via.u64
                                                                           : UINT64_MAX;
}

void client_check_get(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = client_model(self);
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

bool client_fits(const struct sim_client *self, const struct model_write *write)
{
    switch (self->filter) {
    case FILTER_NONE:
        return true;
    case FILTER_RANGE:
        return write->payload_serial >= self->serial_from &&
               write->payload_serial < self->serial_end;
    default:
        return write->group == self->group;
    }
}

/* How many records an answer that calls itself approximate may lack, while faults last: deletes
 * hurt the graph, and what nothing links to any more is linked again a little later. */
enum { MISSED_MAX = 2 };

/* Every record that is certainly there and fits must be among the hits, unless it ranks behind them
 * all and the hits are full. */
static void check_complete(struct sim_client *self, bool is_exact, const bool *hit,
                           unsigned hit_count, float last_score, unsigned last_slot)
{
    struct model *model = client_model(self);
    struct model_collection *c = self->read.collection;
    unsigned missed = 0;
    for (unsigned slot = 0; slot < c->slot_count; slot++) {
        const struct model_write *write = model_certain(model, &self->read, slot);
        if (hit[slot] || write == NULL || !write->is_present || !client_fits(self, write))
            continue;
        float score = score_of(self, write->vector_serial);
        if (hit_count >= self->limit && !ranks_before(self, score, slot, last_score, last_slot))
            continue;
        model->missed++;
        if (!is_exact && (c->may_have_lists || (!self->is_healed && ++missed <= MISSED_MAX)))
            continue;
        model_violate(
            model,
            "%s search %s: slot %u (n=%u, score %.6g) is missing among %u hits of %u asked "
            "for%s, the last scores %.6g, read @%llu-%llu",
            is_exact ? "exact" : "index", c->name, slot, write->payload_serial, (double)score,
            hit_count, self->limit, self->filter != FILTER_NONE ? " with a filter" : "",
            (double)last_score, (unsigned long long)self->read.r0,
            (unsigned long long)self->read.r1);
    }
}

void client_check_search(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = client_model(self);
    const char *where = self->is_exact ? "exact search" : "index search";
    const msgpack_object *hits = wire_member(map, "hits");
    bool hit[MODEL_SLOTS_MAX] = {false};
    float last_score = 0;
    unsigned last_slot = 0;
    if (hits == NULL || hits->type != MSGPACK_OBJECT_ARRAY || hits->via.array.size > self->limit) {
        model_violate(model, "%s: no hits, or more than the limit of %u", where, self->limit);
        return;
    }
    const msgpack_object *exact = wire_member(map, "exact"), *shards = wire_member(map, "shards");
    uint64_t asked = client_number_of(wire_member(shards, "asked"));
    uint64_t answered = client_number_of(wire_member(shards, "answered"));
    bool is_exact = exact != NULL && exact->type == MSGPACK_OBJECT_BOOLEAN && exact->via.boolean;
    bool is_partial = answered < asked;
    if (asked != self->read.collection->shards || answered == 0 || answered > asked) {
        model_violate(model, "%s: %llu of %llu shards answered", where,
                      (unsigned long long)answered, (unsigned long long)asked);
        return;
    }
    if (self->is_exact && is_exact == is_partial) {
        model_violate(model, "exact search: says %s, %llu of %llu shards answered",
                      is_exact ? "exact" : "not exact", (unsigned long long)answered,
                      (unsigned long long)asked);
        return;
    }
    if (is_partial && (self->is_healed || wire_member(map, "warning") == NULL)) {
        model_violate(model, "%s: a partial answer %s", where,
                      self->is_healed ? "after everything healed" : "without a warning");
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
        if (!client_fits(self, write)) {
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
    if (!is_partial)
        check_complete(self, is_exact, hit, hits->via.array.size, last_score, last_slot);
}

/* true: the answer was a page and the next one has been asked for. */
bool client_check_scroll(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = client_model(self);
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
        client_send_scroll(self, cursor);
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

void client_check_count(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = client_model(self);
    struct model_collection *c = self->read.collection;
    uint64_t count = client_number_of(wire_member(map, "count"));
    unsigned low = 0, high = 0;
    for (unsigned slot = 0; slot < c->slot_count; slot++) {
        const struct model_write *write = model_certain(model, &self->read, slot);
        if (write == NULL) {
            high++;
        } else if (write->is_present && client_fits(self, write)) {
            low++;
            high++;
        }
    }
    model->checked++;
    if (count < low || count > high)
        model_violate(model, "count %s%s: %llu, but there are %u to %u", c->name,
                      self->filter != FILTER_NONE ? " with a filter" : "",
                      (unsigned long long)count, low, high);
}

void client_check_look(struct sim_client *self, const msgpack_object *map)
{
    struct model *model = client_model(self);
    const char *op = client_look_name(self);
    if (strcmp(op, "verify") == 0) {
        uint64_t mended = client_number_of(wire_member(map, "mended"));
        if (mended != 0)
            model_violate(model, "verify %s: %llu things had to be mended",
                          self->read.collection->name, (unsigned long long)mended);
    } else if (strcmp(op, "list_collections") == 0) {
        const msgpack_object *names = wire_member(map, "collections");
        unsigned wanted = 0;
        for (unsigned c = 0; c < model->collection_count; c++)
            wanted += model->collections[c].created_tick < self->read.r0;
        if (names == NULL || names->type != MSGPACK_OBJECT_ARRAY || names->via.array.size < wanted)
            model_violate(model, "list_collections: fewer than the %u that are there", wanted);
    }
}
