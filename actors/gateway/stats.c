#include "actors/gateway/stats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *stats_op_name(unsigned op)
{
    return op == SK_OP_NONE || op >= SK_OPS_END ? "unknown" : sk_op_name((enum sk_op)op);
}

const char *stats_code_name(unsigned code)
{
    return code > SK_ERR_INTERNAL ? "unknown" : sk_err_name((enum sk_err)code);
}

static unsigned op_of(struct sk_span name)
{
    for (unsigned op = SK_OP_NONE + 1; op < SK_OPS_END; op++)
        if (sk_span_is(name, sk_op_name((enum sk_op)op)))
            return op;
    return SK_OPS_END;
}

static unsigned code_of(struct sk_span name)
{
    for (unsigned code = 0; code <= SK_ERR_INTERNAL; code++)
        if (sk_span_is(name, sk_err_name((enum sk_err)code)))
            return code;
    return SK_ERR_INTERNAL + 1;
}

static uint64_t number(struct sk_span map, const char *key)
{
    uint64_t value = 0;
    return sk_map_member_u64(map, key, &value) ? value : 0;
}

static struct sk_span text(struct sk_span map, const char *key)
{
    struct sk_span value;
    return sk_map_member_text(map, key, &value) ? value : sk_span_text("");
}

static uint64_t add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* Calls each(arg, member) for the members of a list that are maps. The reply is well formed: it was
 * skipped over as a whole. */
static void for_each(struct sk_span map, const char *key, uint32_t most,
                     void (*each)(struct stats *stats, struct sk_span member), struct stats *stats)
{
    struct sk_list list;
    if (!sk_map_member_list(map, key, &list))
        return;
    struct sk_reader from = sk_reader_of(list.members);
    for (uint32_t i = 0; i < list.count && i < most; i++) {
        struct sk_span member;
        if (sk_read_raw(&from, SK_PACK_DEPTH_MAX, &member, NULL) != SK_ERR_OK)
            return;
        each(stats, member);
    }
}

static void on_request(struct stats *self, struct sk_span member)
{
    unsigned op = op_of(text(member, "op")), code = code_of(text(member, "code"));
    self->requests[op][code] = add(self->requests[op][code], number(member, "count"));
    self->has_requests[op][code] = true;
}

/* False unless it is a list of at most `most` unsigned numbers. */
static bool read_numbers(struct sk_span map, const char *key, uint32_t most, uint64_t *out,
                         uint32_t *count)
{
    struct sk_list list;
    if (!sk_map_member_list(map, key, &list) || list.count > most)
        return false;
    struct sk_reader from = sk_reader_of(list.members);
    for (uint32_t i = 0; i < list.count; i++) {
        struct sk_value value;
        if (sk_read(&from, &value, NULL) != SK_ERR_OK || value.kind != SK_VALUE_UNSIGNED)
            return false;
        out[i] = value.u64;
    }
    *count = list.count;
    return true;
}

static void on_latency(struct stats *self, struct sk_span member)
{
    struct stats_histogram histogram = {.is_present = true};
    uint32_t count = 0;
    if (!read_numbers(member, "bounds_us", STATS_BOUNDS_MAX, histogram.bounds_us,
                      &histogram.bound_count) ||
        !read_numbers(member, "counts", STATS_BOUNDS_MAX + 1, histogram.counts, &count) ||
        count != histogram.bound_count + 1)
        return;
    for (uint32_t i = 1; i < histogram.bound_count; i++)
        if (histogram.bounds_us[i] <= histogram.bounds_us[i - 1])
            return;
    histogram.sum_us = number(member, "sum_us");
    struct stats_histogram *slot = &self->latency[op_of(text(member, "op"))];
    if (!slot->is_present)
        *slot = histogram;
}

static uint64_t state_of(struct sk_span name)
{
    static const char *const names[] = {"flat", "loading", "building", "ready", "altering"};
    uint64_t state = 0;
    while (state < SK_COUNT_OF(names) - 1 && !sk_span_is(name, names[state]))
        state++;
    return sk_span_is(name, names[state]) ? state : 0;
}

static bool is_share(struct sk_span map, const char *key, double *out)
{
    return sk_map_member_number(map, key, out) && *out >= 0 && *out <= 1;
}

static void read_indexes(struct stats_collection *to, struct sk_span packed)
{
    struct sk_list list;
    if (!sk_map_member_list(packed, "indexes", &list))
        return;
    struct sk_reader from = sk_reader_of(list.members);
    for (uint32_t i = 0; i < list.count && to->index_count < SK_VECTOR_FIELDS_MAX; i++) {
        struct sk_span member;
        if (sk_read_raw(&from, SK_PACK_DEPTH_MAX, &member, NULL) != SK_ERR_OK)
            return;
        struct stats_index index = {.vector = text(member, "vector"),
                                    .state = state_of(text(member, "state")),
                                    .done = number(member, "done"),
                                    .total = number(member, "total")};
        struct sk_span recall;
        index.has_recall = sk_map_member(member, "recall", &recall) &&
                           is_share(recall, "measured", &index.recall) &&
                           is_share(recall, "target", &index.recall_target);
        bool is_known = index.vector.size > SK_NAME_BYTES_MAX;
        for (uint32_t k = 0; k < to->index_count && !is_known; k++)
            is_known = sk_span_equals(to->indexes[k].vector, index.vector);
        if (!is_known)
            to->indexes[to->index_count++] = index;
    }
}

/* Names come in order; a name out of order would be a second sample under the same labels. */
static bool is_after(struct sk_span name, struct sk_span before)
{
    size_t least = name.size < before.size ? name.size : before.size;
    int order = memcmp(name.bytes, before.bytes, least);
    return order > 0 || (order == 0 && name.size > before.size);
}

static void on_collection(struct stats *self, struct sk_span member)
{
    struct stats_collection *to = &self->collections[self->collection_count];
    *to = (struct stats_collection){.name = text(member, "name"),
                                    .records = number(member, "records"),
                                    .disk_bytes = number(member, "disk_bytes"),
                                    .index_bytes = number(member, "index_bytes"),
                                    .pending_rows = number(member, "pending_rows")};
    if (sk_name_check(to->name, "name", NULL) != SK_ERR_OK ||
        (self->collection_count > 0 &&
         !is_after(to->name, self->collections[self->collection_count - 1].name)))
        return;
    read_indexes(to, member);
    self->collection_count++;
}

static void on_process(struct stats *self, struct sk_span member)
{
    struct stats_process *to = &self->processes[self->process_count];
    struct sk_span name = text(member, "name"), state = text(member, "state"), cpu;
    *to = (struct stats_process){.restarts = number(member, "restarts"),
                                 .rss_bytes = number(member, "rss_bytes")};
    if (name.size == 0 || name.size > 32 || sk_name_check(name, "name", NULL) != SK_ERR_OK)
        return;
    /* only workers are several */
    if (sk_span_is(name, "shard-worker"))
        (void)snprintf(to->name, sizeof to->name, "shard-worker-%u",
                       (unsigned)(number(member, "number") & UINT16_MAX));
    else
        (void)snprintf(to->name, sizeof to->name, "%.*s", (int)name.size,
                       (const char *)name.bytes);
    to->is_up = sk_span_is(state, "ready") || sk_span_is(state, "running");
    if (sk_map_member(member, "cpu_s", &cpu)) {
        struct sk_reader from = sk_reader_of(cpu);
        struct sk_value value;
        to->has_cpu = sk_read(&from, &value, NULL) == SK_ERR_OK &&
                      sk_value_number(&value, &to->cpu_s) && isfinite(to->cpu_s) && to->cpu_s >= 0;
    }
    for (uint32_t i = 0; i < self->process_count; i++)
        if (strcmp(self->processes[i].name, to->name) == 0)
            return;
    self->process_count++;
}

enum sk_err stats_read(struct stats **out, struct sk_span bytes, struct sk_diag *d)
{
    struct sk_reply reply;
    struct sk_list list;
    struct sk_span part;
    *out = NULL;
    enum sk_err err = sk_reply_decode(&reply, bytes, d);
    if (err != SK_ERR_OK)
        return err;
    if (!reply.is_ok)
        return sk_fail(d, reply.code, "the router says %s", sk_err_name(reply.code));
    if (!sk_map_member_list(bytes, "requests", &list))
        return sk_fail(d, SK_ERR_INVALID, "this is not a reply to 'stats'");
    uint32_t most = sk_map_member_list(bytes, "collections", &list) ? list.count : 0;
    most = most < SK_COLLECTIONS_MAX ? most : SK_COLLECTIONS_MAX;
    struct stats *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for statistics");
    self->collections = calloc(most + 1, sizeof *self->collections);
    if (self->collections == NULL) {
        stats_free(&self);
        return sk_fail(d, SK_ERR_NOMEM, "no memory for statistics");
    }
    self->uptime_s = number(bytes, "uptime_s");
    if (sk_map_member(bytes, "queue", &part)) {
        self->requests_in_flight = number(part, "requests_in_flight");
        self->reads_in_flight = number(part, "reads_in_flight");
        self->writes_queued = number(part, "writes_queued");
    }
    self->wakeup_mode = self->wakeup_state = sk_span_text("");
    if (sk_map_member(bytes, "wakeup", &part)) {
        self->wakeup_mode = text(part, "mode");
        self->wakeup_state = text(part, "state");
    }
    for_each(bytes, "requests", STATS_OPS * STATS_CODES, on_request, self);
    for_each(bytes, "latency", STATS_OPS, on_latency, self);
    for_each(bytes, "collections", most, on_collection, self);
    for_each(bytes, "processes", SK_GATEWAY_PROCESSES_MAX, on_process, self);
    *out = self;
    return SK_ERR_OK;
}

void stats_free(struct stats **self_at)
{
    struct stats *self = *self_at;
    if (self == NULL)
        return;
    *self_at = NULL;
    free(self->collections);
    free(self);
}
