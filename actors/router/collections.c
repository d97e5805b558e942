/* What is known of collections: describe_collection asks the shards; stats and topology use what the
 * workers have told last. */
#include "actors/router/internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- sums over the shards of one collection ---- */

static const char *const state_names[] = {"ready",   "flat",     "altering",
                                          "loading", "building", "unknown"};

struct index_sum {
    uint64_t done, total, rows;
    unsigned state; /* the worst, in state_names */
    struct sk_span note;
    double target, found, ef; /* found and ef: sums over the queries */
    uint64_t queries;         /* whose recall was measured */
};

struct sums {
    const struct sk_schema *schema;
    uint64_t records, pending_rows, disk_bytes, index_bytes;
    struct index_sum indexes[SK_VECTOR_FIELDS_MAX];
};

static uint64_t number_of(struct sk_span map, const char *key)
{
    uint64_t value = 0;
    (void)sk_map_member_u64(map, key, &value);
    return value;
}

/* What searches with a recall target have reached, the shards weighed by their queries. */
static void sums_add_recall(struct index_sum *sum, struct sk_span packed)
{
    struct sk_span recall;
    double target = 0, measured = 0, ef = 0;
    if (!sk_map_member(packed, "recall", &recall) ||
        !sk_map_member_number(recall, "target", &target) ||
        !sk_map_member_number(recall, "measured", &measured) ||
        !sk_map_member_number(recall, "ef_mean", &ef))
        return;
    double queries = (double)number_of(recall, "queries");
    sum->target = target > sum->target ? target : sum->target;
    sum->found += measured * queries;
    sum->ef += ef * queries;
    sum->queries += number_of(recall, "queries");
}

static void sums_add_index(struct sums *sums, struct sk_span packed)
{
    struct sk_span vector, state;
    if (!sk_map_member_text(packed, "vector", &vector) ||
        !sk_map_member_text(packed, "state", &state))
        return;
    for (uint32_t f = 0; f < sums->schema->vector_count; f++) {
        struct index_sum *sum = &sums->indexes[f];
        if (!sk_span_is(vector, sums->schema->vectors[f].name))
            continue;
        unsigned at = 0;
        while (at < SK_COUNT_OF(state_names) - 1 && !sk_span_is(state, state_names[at]))
            at++;
        sum->state = at > sum->state ? at : sum->state;
        sum->done += number_of(packed, "done");
        sum->total += number_of(packed, "total");
        sum->rows += number_of(packed, "rows");
        sums_add_recall(sum, packed);
        if (sum->note.size == 0)
            (void)sk_map_member_text(packed, "note", &sum->note);
        return;
    }
}

static void sums_add(struct sums *sums, struct sk_span shard)
{
    struct sk_list indexes;
    struct sk_span packed;
    sums->records += number_of(shard, "records");
    sums->pending_rows += number_of(shard, "pending_rows");
    sums->disk_bytes += number_of(shard, "disk_bytes");
    sums->index_bytes += number_of(shard, "index_bytes");
    if (!sk_map_member_list(shard, "indexes", &indexes))
        return;
    struct sk_reader from = sk_reader_of(indexes.members);
    while (sk_reader_left(&from) != 0 &&
           sk_read_raw(&from, SK_PACK_DEPTH_MAX, &packed, NULL) == SK_ERR_OK)
        sums_add_index(sums, packed);
}

/* A shard of which nothing was heard. */
static void sums_add_unknown(struct sums *sums)
{
    for (uint32_t f = 0; f < sums->schema->vector_count; f++)
        sums->indexes[f].state = SK_COUNT_OF(state_names) - 1;
}

static void put_number(struct sk_buffer *to, const char *key, uint64_t value)
{
    sk_put_text(to, key);
    sk_put_u64(to, value);
}

static void put_word(struct sk_buffer *to, const char *key, const char *value)
{
    sk_put_text(to, key);
    sk_put_text(to, value);
}

static void put_recall(struct sk_buffer *to, const struct index_sum *sum)
{
    sk_put_text(to, "recall");
    sk_put_map(to, 4);
    sk_put_text(to, "target");
    sk_put_f64(to, sum->target);
    sk_put_text(to, "measured");
    sk_put_f64(to, sum->found / (double)sum->queries);
    sk_put_text(to, "ef_mean");
    sk_put_f64(to, sum->ef / (double)sum->queries);
    put_number(to, "queries", sum->queries);
}

static void put_indexes(struct sk_buffer *to, const struct sums *sums)
{
    const struct sk_schema *schema = sums->schema;
    sk_put_array(to, schema->vector_count);
    for (uint32_t f = 0; f < schema->vector_count; f++) {
        const struct index_sum *sum = &sums->indexes[f];
        sk_put_map(to, 7 + (sum->queries != 0));
        put_word(to, "vector", schema->vectors[f].name);
        put_word(to, "type", sk_schema_index_name(schema->vectors[f].index));
        put_word(to, "state", state_names[sum->state]);
        put_number(to, "done", sum->done);
        put_number(to, "total", sum->total);
        put_number(to, "rows", sum->rows);
        sk_put_text(to, "note");
        sk_put_text_of(to, sum->note.bytes != NULL ? sum->note : sk_span_text(""));
        if (sum->queries != 0)
            put_recall(to, sum);
    }
}

/* ---- describe_collection ---- */

static void finish_describe(struct sk_router *self, struct request *request)
{
    struct sk_diag d = {0};
    char uuid[SK_UUID_TEXT_BYTES];
    struct sk_reply_writer reply;
    struct part *worst = request_worst(request);
    if (worst != NULL) {
        answer_part(self, request, worst);
        return;
    }
    const struct sk_map_collection *collection = NULL;
    enum sk_err rc = sk_map_collection_of(&self->map, request->collection, &collection, &d);
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    struct sums sums = {.schema = &collection->schema};
    for (uint32_t p = 0; p < request->part_count; p++)
        sums_add(&sums, sk_buffer_span(&request->parts[p].body));
    reply_begin(self, request, &reply);
    struct sk_buffer *to = reply.to;
    sk_reply_key(&reply, "collection");
    sk_put_text_of(to, request->collection);
    sk_reply_key(&reply, "uuid");
    sk_put_text(to, sk_uuid_text(collection->schema.uuid, uuid));
    sk_reply_key(&reply, "version");
    sk_put_u64(to, collection->schema.version);
    sk_schema_describe(to, &collection->schema);
    reply.count += 2; /* vectors and payload */
    sk_reply_key(&reply, "shards");
    sk_put_u64(to, collection->schema.shard_count);
    sk_reply_key(&reply, "memory_bytes_max");
    sk_put_u64(to, collection->schema.memory_bytes_max);
    sk_reply_key(&reply, "records");
    sk_put_u64(to, sums.records);
    sk_reply_key(&reply, "pending_rows");
    sk_put_u64(to, sums.pending_rows);
    sk_reply_key(&reply, "disk_bytes");
    sk_put_u64(to, sums.disk_bytes);
    sk_reply_key(&reply, "index_bytes");
    sk_put_u64(to, sums.index_bytes);
    sk_reply_key(&reply, "index");
    put_indexes(to, &sums);
    answer_reply(self, request, &reply);
}

void plan_describe(struct sk_router *self, struct request *request,
                   const struct sk_map_collection *collection)
{
    struct sk_diag d = {0};
    enum sk_err rc = request_decode(self, request, &d);
    if (rc != SK_ERR_OK) {
        answer_error(self, request, rc, &d);
        return;
    }
    request_target(request, collection);
    request->role = SK_ROLE_LINK;
    request->resend = RESEND_READ;
    request->finish = finish_describe;
    if (!plan_all(self, request, collection))
        return;
    struct sk_request ask = {.op = SK_OP_SHARD_STATS, .id = request->id};
    ask.deadline_ms = request->deadline_ms;
    for (uint32_t p = 0; p < request->part_count && rc == SK_ERR_OK; p++) {
        sk_request_encode(&request->parts[p].frame, &ask);
        rc = sk_buffer_check(&request->parts[p].frame, &d);
    }
    if (rc != SK_ERR_OK)
        answer_error(self, request, rc, &d);
    else
        request_start(self, request);
}

/* ---- what the workers have told ---- */

struct told {
    uint8_t uuid[SK_UUID_BYTES];
    uint64_t shard;
    uint32_t worker;
    struct sk_span packed;
};

struct told_list {
    struct told *items;
    size_t count, capacity;
};

static int told_compare(const void *a_at, const void *b_at)
{
    const struct told *a = a_at, *b = b_at;
    int order = memcmp(a->uuid, b->uuid, sizeof a->uuid);
    if (order != 0)
        return order;
    if (a->shard != b->shard)
        return a->shard < b->shard ? -1 : 1;
    return a->worker < b->worker ? -1 : a->worker > b->worker;
}

static bool told_push(struct told_list *list, uint32_t worker, struct sk_span packed)
{
    struct sk_span uuid;
    struct sk_value value;
    struct told item = {.worker = worker, .packed = packed};
    if (!sk_map_member(packed, "collection", &uuid) ||
        !sk_map_member_u64(packed, "shard", &item.shard))
        return true; /* makes no sense: left out */
    struct sk_reader from = sk_reader_of(uuid);
    if (sk_read(&from, &value, NULL) != SK_ERR_OK || value.kind != SK_VALUE_BIN ||
        value.span.size != sizeof item.uuid)
        return true;
    memcpy(item.uuid, value.span.bytes, sizeof item.uuid);
    if (list->count == list->capacity) {
        size_t capacity = list->capacity == 0 ? 64 : list->capacity * 2;
        struct told *items = realloc(list->items, capacity * sizeof *items);
        if (items == NULL)
            return false;
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
    return true;
}

static bool told_collect(const struct sk_router *self, struct told_list *list)
{
    for (uint32_t w = 0; w < SK_WORKERS_MAX; w++) {
        struct sk_list shards;
        struct sk_span packed;
        if (self->workers[w].stats.size == 0 ||
            !sk_map_member_list(sk_buffer_span(&self->workers[w].stats), "shards", &shards))
            continue;
        struct sk_reader from = sk_reader_of(shards.members);
        for (uint32_t i = 0; i < shards.count; i++)
            if (sk_read_raw(&from, SK_PACK_DEPTH_MAX, &packed, NULL) != SK_ERR_OK)
                break;
            else if (!told_push(list, w, packed))
                return false;
    }
    if (list->count != 0)
        qsort(list->items, list->count, sizeof *list->items, told_compare);
    return true;
}

static const struct told *told_find(const struct told_list *list,
                                    const struct sk_map_collection *collection, uint32_t shard)
{
    struct told key = {.shard = shard, .worker = collection->workers[shard]};
    memcpy(key.uuid, collection->schema.uuid, sizeof key.uuid);
    return list->count == 0 ? NULL
                            : bsearch(&key, list->items, list->count, sizeof key, told_compare);
}

static void put_shard(struct sk_buffer *to, const struct sk_map_collection *collection,
                      uint32_t shard, const struct told *told)
{
    struct sk_span state = sk_span_text("unknown"), error = sk_span_text(""), indexes = {0};
    struct sk_span packed = told != NULL ? told->packed : sk_span_of("\x80", 1);
    (void)sk_map_member_text(packed, "state", &state);
    (void)sk_map_member_text(packed, "error", &error);
    sk_put_map(to, 9);
    put_number(to, "number", shard);
    put_number(to, "worker", collection->workers[shard]);
    sk_put_text(to, "state");
    sk_put_text_of(to, state);
    sk_put_text(to, "error");
    sk_put_text_of(to, error);
    put_number(to, "records", number_of(packed, "records"));
    put_number(to, "pending_rows", number_of(packed, "pending_rows"));
    put_number(to, "disk_bytes", number_of(packed, "disk_bytes"));
    put_number(to, "index_bytes", number_of(packed, "index_bytes"));
    sk_put_text(to, "indexes");
    if (sk_map_member(packed, "indexes", &indexes))
        sk_put_raw(to, indexes);
    else
        sk_put_array(to, 0);
}

static void put_collection(struct sk_buffer *to, const struct sk_map_collection *collection,
                           const struct told_list *list, bool has_shards)
{
    const struct sk_schema *schema = &collection->schema;
    struct sums sums = {.schema = schema};
    for (uint32_t s = 0; s < schema->shard_count; s++) {
        const struct told *told = told_find(list, collection, s);
        if (told != NULL)
            sums_add(&sums, told->packed);
        else
            sums_add_unknown(&sums);
    }
    sk_put_map(to, has_shards ? 5 : 6);
    put_word(to, "name", schema->name);
    put_number(to, "records", sums.records);
    if (!has_shards) {
        put_number(to, "disk_bytes", sums.disk_bytes);
        put_number(to, "index_bytes", sums.index_bytes);
        put_number(to, "pending_rows", sums.pending_rows);
        sk_put_text(to, "indexes");
        put_indexes(to, &sums);
        return;
    }
    sk_schema_describe(to, schema);
    sk_put_text(to, "shards");
    sk_put_array(to, schema->shard_count);
    for (uint32_t s = 0; s < schema->shard_count; s++)
        put_shard(to, collection, s, told_find(list, collection, s));
}

bool put_collections(struct sk_router *self, struct sk_buffer *to, bool has_shards)
{
    struct told_list list = {0};
    bool is_good = told_collect(self, &list);
    sk_put_array(to, self->map.collection_count);
    for (uint32_t c = 0; c < self->map.collection_count; c++)
        put_collection(to, &self->map.collections[c], &list, has_shards);
    free(list.items);
    return is_good;
}
