#include "tests/sim/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void model_violate(struct model *self, const char *format, ...)
{
    if (self->violation[0] != '\0')
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(self->violation, sizeof(self->violation), format, args);
    va_end(args);
}

static struct model_write *append(struct model_slot *slot)
{
    if (slot->count == slot->capacity) {
        slot->capacity = slot->capacity == 0 ? 8 : slot->capacity * 2;
        slot->writes = realloc(slot->writes, slot->capacity * sizeof(*slot->writes));
        if (slot->writes == NULL)
            abort();
    }
    struct model_write *write = &slot->writes[slot->count++];
    memset(write, 0, sizeof(*write));
    return write;
}

const char *const model_index_names[MODEL_INDEXES] = {"flat", "hnsw", "ivf_flat", "ivf_pq",
                                                      "hybrid"};

void model_init(struct model *self, struct sim_rng *rng)
{
    memset(self, 0, sizeof(*self));
    self->collection_count = 1 + sim_chance(rng, 400);
    for (unsigned c = 0; c < self->collection_count; c++) {
        struct model_collection *collection = &self->collections[c];
        snprintf(collection->name, sizeof(collection->name), "c%u", c);
        collection->metric = (enum model_metric)sim_below(rng, 3);
        collection->dim = (unsigned)sim_between(rng, 2, MODEL_DIM_MAX);
        collection->shards = sim_chance(rng, 600) ? 1 : (unsigned)sim_between(rng, 2, 3);
        collection->index = sim_chance(rng, 500) ? 1 : (unsigned)sim_below(rng, MODEL_INDEXES);
        collection->may_have_lists = collection->index >= MODEL_WITH_LISTS;
        collection->created_tick = UINT64_MAX;
        collection->slot_count = (unsigned)sim_between(rng, 12, MODEL_SLOTS_MAX / 2);
        for (unsigned s = 0; s < collection->slot_count; s++)
            append(&collection->slots[s])->state = MODEL_ACKED;
    }
}

void model_deinit(struct model *self)
{
    for (unsigned c = 0; c < self->collection_count; c++) {
        for (unsigned s = 0; s < self->collections[c].slot_count; s++)
            free(self->collections[c].slots[s].writes);
    }
}

void model_vector(uint32_t serial, unsigned dim, float *out)
{
    for (unsigned i = 0; i < dim; i++) {
        uint64_t h = sim_mix(serial * 1000003U + i + 1);
        out[i] = (float)((int)(h % 2001) - 1000) / 500.0F;
    }
    if (out[0] == 0.0F)
        out[0] = 0.5F;
}

float model_score(enum model_metric metric, const float *a, const float *b, unsigned dim)
{
    double dot = 0, aa = 0, bb = 0, gap = 0;
    for (unsigned i = 0; i < dim; i++) {
        double x = (double)a[i], y = (double)b[i];
        dot += x * y;
        aa += x * x;
        bb += y * y;
        gap += (x - y) * (x - y);
    }
    if (metric == MODEL_L2)
        return (float)sqrt(gap);
    return (float)(metric == MODEL_IP ? dot : dot / (sqrt(aa) * sqrt(bb)));
}

static void uuid_of(unsigned slot, char text[40])
{
    snprintf(text, 40, "%08x-0000-4000-8000-%012x", slot * 2654435761U, slot);
}

void model_pack_id(msgpack_packer *to, unsigned slot)
{
    char text[40];
    if (slot % 3 == 0) {
        msgpack_pack_uint64(to, 1000 + slot);
        return;
    }
    if (slot % 3 == 1)
        snprintf(text, sizeof(text), "r%u", slot);
    else
        uuid_of(slot, text);
    msgpack_pack_str(to, strlen(text));
    msgpack_pack_str_body(to, text, strlen(text));
}

int model_slot_of(const struct model_collection *collection, const msgpack_object *id)
{
    unsigned slot = UINT32_MAX;
    char text[64] = "", wanted[40];
    if (id == NULL)
        return -1;
    if (id->type == MSGPACK_OBJECT_POSITIVE_INTEGER && id->via.u64 >= 1000 &&
        id->via.u64 < 100000) {
        slot = (unsigned)id->via.u64 - 1000;
        return slot < collection->slot_count && slot % 3 == 0 ? (int)slot : -1;
    }
    if (id->type != MSGPACK_OBJECT_STR || id->via.str.size >= sizeof(text))
        return -1;
    memcpy(text, id->via.str.ptr, id->via.str.size);
    if (sscanf(text, "r%u", &slot) == 1)
        return slot < collection->slot_count && slot % 3 == 1 ? (int)slot : -1;
    for (slot = 2; slot < collection->slot_count; slot += 3) {
        uuid_of(slot, wanted);
        if (strcmp(text, wanted) == 0)
            return (int)slot;
    }
    return -1;
}

/* Canonical order: integers, then UUIDs, then strings; bytewise, the shorter first. */
int model_compare_ids(unsigned a, unsigned b)
{
    static const int rank_of[] = {1, 3, 2};
    if (a % 3 != b % 3)
        return rank_of[a % 3] - rank_of[b % 3];
    if (a % 3 == 0)
        return (a > b) - (a < b);
    char x[40], y[40];
    if (a % 3 == 1) {
        snprintf(x, sizeof(x), "r%u", a);
        snprintf(y, sizeof(y), "r%u", b);
    } else {
        uuid_of(a, x);
        uuid_of(b, y);
    }
    return strcmp(x, y);
}

struct model_write *model_issue(struct model *self, struct model_collection *c, unsigned slot,
                                uint64_t tick, uint64_t now_us)
{
    (void)self;
    struct model_write *write = append(&c->slots[slot]);
    write->state = MODEL_PENDING;
    write->issued = tick;
    write->issued_us = now_us;
    write->acked = write->applied_by = write->acked_us = UINT64_MAX;
    return write;
}

void model_settle(struct model *self, struct model_collection *c, unsigned slot, uint32_t request,
                  enum model_state state, uint64_t tick, uint64_t now_us)
{
    struct model_slot *of = &c->slots[slot];
    for (unsigned i = of->count; i-- > 0;) {
        struct model_write *write = &of->writes[i];
        if (write->request != request)
            continue;
        if (state == MODEL_REFUSED && write->applied_by != UINT64_MAX)
            model_violate(self, "%s slot %u: a write was refused, but a read had shown it", c->name,
                          slot);
        write->state = state;
        if (state == MODEL_ACKED) {
            write->acked = tick;
            write->acked_us = now_us;
            if (write->applied_by > tick)
                write->applied_by = tick;
        }
    }
}

void model_forget_refusals(struct model *self, uint64_t now_us)
{
    for (unsigned c = 0; c < self->collection_count; c++) {
        for (unsigned s = 0; s < self->collections[c].slot_count; s++) {
            struct model_slot *slot = &self->collections[c].slots[s];
            for (unsigned i = 0; i < slot->count; i++) {
                struct model_write *write = &slot->writes[i];
                if (write->state == MODEL_REFUSED && write->issued_us + MODEL_LATE_US > now_us)
                    write->state = MODEL_UNKNOWN;
            }
        }
    }
}

static bool is_replaced(const struct model_slot *slot, const struct model_write *write, uint64_t r0)
{
    for (unsigned i = 0; i < slot->count; i++) {
        const struct model_write *later = &slot->writes[i];
        if (later != write && later->state == MODEL_ACKED && later->acked <= r0 &&
            later->issued >= write->applied_by && later->issued > write->issued)
            return true;
    }
    return false;
}

static bool is_possible(const struct model_slot *slot, const struct model_write *write,
                        const struct model_read *read)
{
    return write->state != MODEL_REFUSED && (write->issued == 0 || write->issued < read->r1) &&
           !is_replaced(slot, write, read->r0);
}

/* Whether a record with a time to live may be there, and may be gone, during the read. */
static bool may_live(const struct model *self, const struct model_write *write,
                     const struct model_read *read)
{
    if (write->ttl_s == 0)
        return true;
    uint64_t latest = write->acked_us == UINT64_MAX ? read->r1_us : write->acked_us;
    return (int64_t)read->r0_us + self->wall_low_us <
           (int64_t)latest + self->wall_high_us + (int64_t)write->ttl_s * 1000000;
}

static bool may_be_expired(const struct model *self, const struct model_write *write,
                           const struct model_read *read)
{
    return write->ttl_s != 0 &&
           (int64_t)read->r1_us + self->wall_high_us >=
               (int64_t)write->issued_us + self->wall_low_us + (int64_t)write->ttl_s * 1000000;
}

const struct model_write *model_certain(const struct model *self, const struct model_read *read,
                                        unsigned slot)
{
    const struct model_slot *of = &read->collection->slots[slot];
    const struct model_write *only = NULL;
    for (unsigned i = 0; i < of->count; i++) {
        const struct model_write *write = &of->writes[i];
        if (!is_possible(of, write, read))
            continue;
        if (only != NULL || (write->is_present && may_be_expired(self, write, read)))
            return NULL;
        only = write;
    }
    return only;
}

static const char *state_name(enum model_state state)
{
    static const char *const names[] = {"pending", "acknowledged", "unanswered", "refused"};
    return names[state];
}

/* What the slot's history says, newest last: for the words of a violation. */
static const char *history(const struct model_slot *slot, char text[200])
{
    size_t used = 0;
    unsigned from = slot->count > 5 ? slot->count - 5 : 0;
    for (unsigned i = from; i < slot->count && used < 170; i++) {
        const struct model_write *w = &slot->writes[i];
        char ttl[16] = "";
        if (w->ttl_s != 0)
            snprintf(ttl, sizeof(ttl), " ttl=%u", w->ttl_s);
        int more = snprintf(text + used, 200 - used, "%s%s n=%u%s %s @%llu", i > from ? ", " : "",
                            w->is_present ? "put" : "gone", w->payload_serial, ttl,
                            state_name(w->state), (unsigned long long)w->issued);
        used += more > 0 ? (size_t)more : 0;
    }
    return text;
}

static bool vector_matches(const msgpack_object *shown, uint32_t serial, unsigned dim)
{
    float wanted[MODEL_DIM_MAX], got[MODEL_DIM_MAX];
    model_vector(serial, dim, wanted);
    if (shown->type != MSGPACK_OBJECT_BIN || shown->via.bin.size != dim * sizeof(float))
        return false;
    memcpy(got, shown->via.bin.ptr, shown->via.bin.size);
    return memcmp(got, wanted, dim * sizeof(float)) == 0;
}

static const msgpack_object *member(const msgpack_object *map, const char *name)
{
    for (uint32_t i = 0; map != NULL && map->type == MSGPACK_OBJECT_MAP && i < map->via.map.size;
         i++) {
        const msgpack_object *key = &map->via.map.ptr[i].key;
        if (key->type == MSGPACK_OBJECT_STR && key->via.str.size == strlen(name) &&
            memcmp(key->via.str.ptr, name, key->via.str.size) == 0)
            return &map->via.map.ptr[i].val;
    }
    return NULL;
}

struct model_write *model_check_shown(struct model *self, const struct model_read *read,
                                      unsigned slot, const msgpack_object *payload,
                                      const msgpack_object *vector, const char *where)
{
    struct model_slot *of = &read->collection->slots[slot];
    const char *name = read->collection->name;
    const msgpack_object *n = member(payload, "n"), *g = member(payload, "g");
    char text[200];
    self->checked++;
    if (n == NULL || n->type != MSGPACK_OBJECT_POSITIVE_INTEGER || g == NULL ||
        g->type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
        model_violate(self, "%s %s slot %u: a payload that nobody wrote", where, name, slot);
        return NULL;
    }
    for (unsigned i = 0; i < of->count; i++) {
        struct model_write *write = &of->writes[i];
        if (!write->is_present || write->payload_serial != n->via.u64)
            continue;
        if (write->group != g->via.u64 ||
            (vector != NULL &&
             !vector_matches(vector, write->vector_serial, read->collection->dim))) {
            model_violate(self, "%s %s slot %u: n=%u with another write's payload or vector", where,
                          name, slot, write->payload_serial);
            return NULL;
        }
        if (!is_possible(of, write, read) || !may_live(self, write, read)) {
            model_violate(
                self, "%s %s slot %u shows n=%u, which it must not any more (read @%llu-%llu; %s)",
                where, name, slot, write->payload_serial, (unsigned long long)read->r0,
                (unsigned long long)read->r1, history(of, text));
            return NULL;
        }
        if (write->applied_by > read->r1)
            write->applied_by = read->r1;
        return write;
    }
    model_violate(self, "%s %s slot %u: n=%llu was never written", where, name, slot,
                  (unsigned long long)n->via.u64);
    return NULL;
}

void model_check_absent(struct model *self, const struct model_read *read, unsigned slot,
                        const char *where)
{
    const struct model_slot *of = &read->collection->slots[slot];
    char text[200];
    self->checked++;
    for (unsigned i = 0; i < of->count; i++) {
        const struct model_write *write = &of->writes[i];
        if (is_possible(of, write, read) &&
            (!write->is_present || may_be_expired(self, write, read)))
            return;
    }
    model_violate(self, "%s %s slot %u: a record is lost (read @%llu-%llu; %s)", where,
                  read->collection->name, slot, (unsigned long long)read->r0,
                  (unsigned long long)read->r1, history(of, text));
}

/* Whether the slot may show nothing although the write `at` was applied: something newer removed
 * it, or something older that came late. */
static bool may_be_gone_since(const struct model *self, const struct model_read *read,
                              const struct model_slot *of, unsigned at)
{
    for (unsigned i = 0; i < of->count; i++) {
        const struct model_write *write = &of->writes[i];
        if ((i >= at || write->state == MODEL_UNKNOWN) && is_possible(of, write, read) &&
            (!write->is_present || may_be_expired(self, write, read)))
            return true;
    }
    return false;
}

void model_check_atomic(struct model *self, const struct model_read *read, const unsigned *slots,
                        struct model_write *const *shown, unsigned count)
{
    for (unsigned a = 0; a < count; a++) {
        if (shown[a] == NULL || shown[a]->request == 0)
            continue;
        for (unsigned b = 0; b < count; b++) {
            const struct model_slot *of = &read->collection->slots[slots[b]];
            for (unsigned i = 1; i < of->count; i++) {
                if (of->writes[i].request != shown[a]->request)
                    continue;
                /* b was written by the same request: it must show that write or a newer one. A
                 * write that had no answer when this one was issued may also have come after it. */
                bool is_old = shown[b] != NULL ? shown[b] < &of->writes[i] &&
                                                     shown[b]->applied_by < shown[a]->issued
                                               : !may_be_gone_since(self, read, of, i);
                if (is_old)
                    model_violate(
                        self,
                        "get %s: a request is half applied: slot %u shows n=%u of it, slot %u n=%u",
                        read->collection->name, slots[a], shown[a]->payload_serial, slots[b],
                        shown[b] == NULL ? 0 : shown[b]->payload_serial);
            }
        }
    }
}
