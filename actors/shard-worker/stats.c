/* What the worker tells of itself: to the router every second while something happens, to its shell, and
 * whether all of it holds. */
#include "actors/shard-worker/internal.h"

#include <math.h>

static const char *const state_names[] = {[FIELD_FLAT] = "flat",
                                          [FIELD_UNLOADED] = "loading",
                                          [FIELD_BUILDING] = "building",
                                          [FIELD_READY] = "ready",
                                          [FIELD_ALTERING] = "altering"};

static uint64_t load_u64(const _Atomic uint64_t *at)
{
    return atomic_load_explicit(at, memory_order_relaxed);
}

static struct sk_reply_writer map_begin(struct sk_buffer *to)
{
    return (struct sk_reply_writer){.to = to, .at = sk_put_map_open(to)};
}

static void put_number(struct sk_reply_writer *map, const char *key, uint64_t value)
{
    sk_reply_key(map, key);
    sk_put_u64(map->to, value);
}

static void put_string(struct sk_reply_writer *map, const char *key, const char *value)
{
    sk_reply_key(map, key);
    sk_put_text(map->to, value);
}

static void put_float(struct sk_reply_writer *map, const char *key, const _Atomic float *at)
{
    sk_reply_key(map, key);
    double value = (double)atomic_load_explicit(at, memory_order_relaxed);
    sk_put_f64(map->to, round(value * 1e6) / 1e6); /* 0.95, not its nearest float */
}

/* What searches with a recall target have reached; nothing before it was measured. */
static void put_recall(const struct field *field, struct sk_reply_writer *map)
{
    uint32_t samples = atomic_load_explicit(&field->recall_samples, memory_order_relaxed);
    if (samples == 0)
        return;
    sk_reply_key(map, "recall");
    struct sk_reply_writer recall = map_begin(map->to);
    put_float(&recall, "target", &field->recall_target);
    put_float(&recall, "measured", &field->recall_measured);
    put_float(&recall, "ef_mean", &field->recall_ef_mean);
    put_number(&recall, "queries", samples);
    sk_reply_end(&recall);
}

static uint32_t pending_of(const struct shard *shard)
{
    uint32_t rows = 0;
    for (unsigned f = 0; f < shard->field_count; f++)
        rows += sk_pending_count(&shard->fields[f].pending);
    return rows;
}

static void put_index(const struct field *field, struct sk_buffer *to)
{
    uint32_t state = atomic_load_explicit(&field->state_seen, memory_order_relaxed);
    uint64_t rows = load_u64(&field->index_rows);
    uint64_t records = load_u64(&field->shard->records);
    struct sk_reply_writer map = map_begin(to);
    put_string(&map, "vector", field->schema.name);
    put_string(&map, "type", sk_schema_index_name(field->schema.index));
    put_string(&map, "state", state_names[state]);
    put_number(&map, "done", state == FIELD_FLAT ? records : rows < records ? rows : records);
    put_number(&map, "total", records);
    put_number(&map, "rows", rows);
    put_string(&map, "note", field->note_seen);
    put_recall(field, &map);
    sk_reply_end(&map);
}

void shard_put_stats(struct shard *shard, struct sk_reply_writer *map)
{
    struct sk_buffer *to = map->to;
    uint64_t index_bytes = 0;
    for (unsigned f = 0; f < shard->field_count; f++)
        index_bytes += load_u64(&shard->fields[f].index_bytes);
    sk_reply_key(map, "collection");
    sk_put_bin(to, shard->uuid, SK_UUID_BYTES);
    put_number(map, "shard", shard->number);
    put_string(map, "state", shard->store != NULL ? "ok" : "failed");
    put_string(map, "error", shard->diag.text);
    put_number(map, "records", load_u64(&shard->records));
    put_number(map, "pending_rows", pending_of(shard));
    put_number(map, "disk_bytes", load_u64(&shard->disk_bytes));
    put_number(map, "index_bytes", index_bytes);
    put_number(map, "commits", shard->commits);
    sk_reply_key(map, "indexes");
    sk_put_array(to, shard->field_count);
    for (unsigned f = 0; f < shard->field_count; f++)
        put_index(&shard->fields[f], to);
}

void worker_put_stats(struct sk_worker *self, struct sk_buffer *to)
{
    uint64_t writes = 0, pending = 0, shards = 0;
    for (const struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        writes += shard->writes.count;
        pending += pending_of(shard);
        shards += !shard->is_dropped;
    }
    struct sk_reply_writer map = map_begin(to);
    put_number(&map, "number", self->config.number);
    put_number(&map, "pid", self->config.process_id);
    put_number(&map, "requests", self->status.requests);
    put_number(&map, "errors", self->status.errors);
    put_number(&map, "searches", self->status.searches);
    put_number(&map, "commits", self->status.commits);
    put_number(&map, "rows_written", self->status.rows_written);
    put_number(&map, "reads_in_flight", self->reads_in_flight);
    put_number(&map, "writes_queued", writes);
    put_number(&map, "pending_rows", pending);
    sk_reply_key(&map, "shards");
    sk_put_array(to, shards);
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        if (shard->is_dropped)
            continue;
        struct sk_reply_writer one = map_begin(to);
        shard_put_stats(shard, &one);
        sk_reply_end(&one);
    }
    sk_reply_end(&map);
}

/* Changes when anything did that somebody would like to see. */
static uint64_t digest(const struct sk_worker *self)
{
    uint64_t sum = self->status.requests + self->status.commits + self->map.version;
    for (const struct shard *shard = self->shards; shard != NULL; shard = shard->next)
        for (unsigned f = 0; f < shard->field_count; f++) {
            const struct field *field = &shard->fields[f];
            sum = sum * 31 + load_u64(&field->index_rows) + sk_pending_count(&field->pending) +
                  atomic_load_explicit(&field->state_seen, memory_order_relaxed);
        }
    return sum;
}

static void send_stats(struct sk_worker *self, uint64_t number)
{
    const struct sk_link_header header = {.kind = SK_LINK_STATS,
                                          .worker = (uint16_t)self->config.number,
                                          .request = number,
                                          .incarnation = self->incarnation,
                                          .map_version = self->map.version};
    sk_buffer_clear(&self->reply);
    worker_put_stats(self, &self->reply);
    if (!self->reply.is_broken)
        send_to(self, SK_PEER_ROUTER, &header, sk_buffer_span(&self->reply));
}

void shard_look_at_disk(struct shard *shard)
{
    if (shard->store != NULL)
        atomic_store_explicit(&shard->disk_bytes, sk_store_file_bytes(shard->store),
                              memory_order_relaxed);
}

void stats_answer(struct sk_worker *self, uint64_t number)
{
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next)
        shard_look_at_disk(shard);
    send_stats(self, number);
}

uint64_t stats_send(struct sk_worker *self, uint64_t now)
{
    if (!self->is_ready)
        return UINT64_MAX;
    if (now < self->stats_next_us)
        return self->stats_next_us;
    uint64_t sum = digest(self);
    self->stats_next_us = now + STATS_BUSY_US;
    if (sum == self->stats_digest && now < self->stats_us + STATS_IDLE_US) {
        /* nothing happened: sleep until the idle beat, or until something wakes us */
        return self->stats_us + STATS_IDLE_US;
    }
    self->stats_digest = sum;
    self->stats_us = now;
    send_stats(self, 0);
    return self->stats_next_us;
}

/* ---- for the shell and the simulator ---- */

static bool is_stopped(const struct sk_worker *self)
{
    if (!self->is_stopping || self->writer.is_submitted || self->reads_in_flight != 0 ||
        self->reads_waiting != 0 || self->describe.request != NULL)
        return false;
    uint64_t now = now_us(self);
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        struct field *field;
        if (shard->store != NULL && indexing_turn(shard, now, &field) != TURN_NONE)
            return false;
    }
    return true;
}

void sk_worker_get_status(const struct sk_worker *self, struct sk_worker_status *out)
{
    *out = self->status;
    out->is_ready = self->is_ready;
    out->is_stopped = is_stopped(self);
    out->map_version = self->map.version;
    out->reads_in_flight = self->reads_in_flight;
    for (const struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        if (shard->store == NULL) {
            out->shards_failed++;
            continue;
        }
        out->shards++;
        out->records += atomic_load_explicit(&shard->records, memory_order_relaxed);
        out->disk_bytes += atomic_load_explicit(&shard->disk_bytes, memory_order_relaxed);
        out->writes_queued += shard->writes.count;
        for (unsigned f = 0; f < shard->field_count; f++) {
            const struct field *field = &shard->fields[f];
            out->pending_rows += sk_pending_count(&field->pending);
            out->index_bytes += atomic_load_explicit(&field->index_bytes, memory_order_relaxed);
        }
    }
}

static enum sk_err check_shard(struct shard *shard, struct sk_diag *d)
{
    struct sk_store_check checked;
    uint64_t rows = 0;
    enum sk_err rc = sk_store_verify(shard->store, wall_us(shard->worker), &checked, d);
    if (rc == SK_ERR_OK && checked.mended != 0)
        rc = sk_fail(d, SK_ERR_INTERNAL, "%llu entries of the payload indexes were wrong",
                     (unsigned long long)checked.mended);
    if (rc == SK_ERR_OK)
        rc = sk_store_read_begin(shard->writer_reader, 0, d);
    if (rc != SK_ERR_OK)
        return rc;
    for (unsigned f = 0; f < shard->field_count && rc == SK_ERR_OK; f++)
        rc = field_check(&shard->fields[f], &rows, d);
    sk_store_read_end(shard->writer_reader);
    return rc;
}

enum sk_err sk_worker_check(struct sk_worker *self, struct sk_diag *d)
{
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        enum sk_err rc = shard->store == NULL ? SK_ERR_OK : check_shard(shard, d);
        if (rc != SK_ERR_OK)
            return sk_wrap(d, rc, "shard %u", shard->number);
    }
    return SK_ERR_OK;
}
