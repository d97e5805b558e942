/* The shards that the map gives to this worker: opened, altered, closed, removed. */
#include "actors/shard-worker/internal.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LIMBO_AT_ONCE = 1024, LOOK_EVERY_US = 1000 * 1000 };

struct shard *shard_find(struct sk_worker *self, const uint8_t uuid[SK_UUID_BYTES], uint16_t number)
{
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next)
        if (shard->number == number && memcmp(shard->uuid, uuid, SK_UUID_BYTES) == 0 &&
            !shard->is_dropped)
            return shard;
    return NULL;
}

/* ---- folders ---- */

static enum sk_err collection_path(const struct sk_worker *self, const uint8_t uuid[SK_UUID_BYTES],
                                   char path[SK_PATH_BYTES], struct sk_diag *d)
{
    char text[SK_UUID_TEXT_BYTES];
    return sk_path(path, d, "%s/%s", self->data_dir, sk_uuid_text(uuid, text));
}

/* Beside the shards of a collection stands whose map gave it to us, and in which version: a folder that
 * the map does not name is removed only when a newer map of the same node has left it out. */
static enum sk_err origin_write(const struct sk_worker *self, const char *collection,
                                struct sk_diag *d)
{
    char path[SK_PATH_BYTES], own[SK_PATH_BYTES], text[80];
    struct sk_file_writer file;
    enum sk_err rc = sk_path(path, d, "%s/origin", collection);
    if (rc != SK_ERR_OK || access(path, F_OK) == 0)
        return rc;
    /* under a name of our own first: other workers that have shards of it write theirs just now */
    rc = sk_path(own, d, "%s/origin-%u", collection, self->config.number);
    if (rc != SK_ERR_OK)
        return rc;
    int size = snprintf(text, sizeof text, "node=%016" PRIx64 " map=%" PRIu64 "\n",
                        self->map.node_id, self->map.version);
    rc = sk_file_begin(&file, own, d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_file_write(&file, text, (size_t)size);
    rc = sk_file_commit(&file, d);
    if (rc == SK_ERR_OK && rename(own, path) != 0)
        rc = sk_fail_errno(d, errno, "cannot name", path);
    return rc == SK_ERR_OK ? sk_folder_sync(collection, d) : rc;
}

static bool is_left_out(const struct sk_worker *self, const char *collection)
{
    char path[SK_PATH_BYTES];
    struct sk_diag ignored = {0};
    uint64_t node_id = 0, version = 0;
    if (sk_path(path, &ignored, "%s/origin", collection) != SK_ERR_OK)
        return false;
    FILE *stream = fopen(path, "re");
    if (stream == NULL)
        return false;
    int found = fscanf(stream, "node=%16" SCNx64 " map=%20" SCNu64, &node_id, &version);
    fclose(stream);
    return found == 2 && node_id == self->map.node_id && version < self->map.version;
}

static bool is_open(const struct sk_worker *self, const uint8_t uuid[SK_UUID_BYTES])
{
    for (const struct shard *shard = self->shards; shard != NULL; shard = shard->next)
        if (memcmp(shard->uuid, uuid, SK_UUID_BYTES) == 0)
            return true;
    return false;
}

/* Collections that were dropped while we were not there to see it. What cannot be removed now is looked
 * at again with the next map. */
static void remove_left_out(const struct sk_worker *self)
{
    DIR *folder = opendir(self->data_dir);
    if (folder == NULL)
        return;
    for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        uint8_t uuid[SK_UUID_BYTES];
        char path[SK_PATH_BYTES];
        struct sk_diag ignored = {0};
        if (!sk_uuid_parse(entry->d_name, uuid) || sk_map_find_uuid(&self->map, uuid) != NULL ||
            is_open(self, uuid) || collection_path(self, uuid, path, &ignored) != SK_ERR_OK ||
            !is_left_out(self, path))
            continue;
        enum sk_err rc = sk_folder_remove(path, &ignored);
        (void)rc;
    }
    closedir(folder);
}

/* ---- opening ---- */

void shard_look(struct shard *shard)
{
    struct sk_diag ignored = {0};
    uint64_t now = now_us(shard->worker);
    uint64_t records = 0;
    if (sk_store_read_begin(shard->writer_reader, 0, &ignored) != SK_ERR_OK)
        return;
    if (sk_store_count(shard->writer_reader, &records, &ignored) == SK_ERR_OK)
        atomic_store_explicit(&shard->records, records, memory_order_relaxed);
    shard->next_expiry_us = sk_store_next_expiry_us(shard->writer_reader);
    struct sk_store_stats stats;
    if ((shard->looked_us == 0 || now >= shard->looked_us + LOOK_EVERY_US) &&
        sk_store_get_stats(shard->writer_reader, &stats, &ignored) == SK_ERR_OK) {
        atomic_store_explicit(&shard->disk_bytes, stats.file_bytes, memory_order_relaxed);
        shard->looked_us = now;
    }
    sk_store_read_end(shard->writer_reader);
}

uint64_t shard_next_sweep(const struct shard *shard, uint64_t now)
{
    if (shard->next_expiry_us == UINT64_MAX)
        return UINT64_MAX;
    uint64_t wall = wall_us(shard->worker);
    uint64_t wait = shard->next_expiry_us > wall ? shard->next_expiry_us - wall : 0;
    wait = wait < SWEEP_EVERY_US ? SWEEP_EVERY_US : wait;
    return now + sooner(wait, SWEEP_LATEST_US);
}

/* Rows that no record uses and that the indexes may still have: after the load these let go of them. */
static enum sk_err read_limbo(struct shard *shard, struct sk_diag *d)
{
    uint32_t rows[LIMBO_AT_ONCE];
    uint32_t count = 0, from = 0;
    enum sk_err rc = sk_store_read_begin(shard->writer_reader, 0, d);
    if (rc != SK_ERR_OK)
        return rc;
    do {
        rc = sk_store_limbo(shard->writer_reader, from, rows, LIMBO_AT_ONCE, &count, d);
        for (uint32_t i = 0; i < count && rc == SK_ERR_OK; i++)
            rc = dead_rows_push(&shard->limbo, (struct dead_row){.row = rows[i]}, d);
        if (count != 0)
            from = rows[count - 1] + 1;
    } while (rc == SK_ERR_OK && count == LIMBO_AT_ONCE && from != 0);
    sk_store_read_end(shard->writer_reader);
    return rc;
}

static void free_fields(struct shard *shard)
{
    graves_dig(shard, true);
    for (unsigned f = 0; f < shard->field_count; f++) {
        struct field *field = &shard->fields[f];
        if (field->is_checkpointing)
            sk_file_abort(&field->checkpoint);
        sk_index_destroy(&field->index);
        sk_index_destroy(&field->heir);
        sk_pending_deinit(&field->pending);
        sk_buffer_deinit(&field->unsaved);
    }
    dead_rows_free(&shard->dying);
    dead_rows_free(&shard->limbo);
}

enum sk_err shard_reset(struct shard *shard, struct sk_diag *d)
{
    SK_CHECK(shard->running_first == NULL);
    free_fields(shard);
    shard->field_count = shard->schema->vector_count;
    for (unsigned f = 0; f < shard->field_count; f++) {
        struct field *field = &shard->fields[f];
        memset(field, 0, sizeof *field);
        field->shard = shard;
        field->at = f;
        field->schema = shard->schema->vectors[f];
        field->delta_next = 1;
        sk_pending_init(&field->pending, field->schema.dim);
        bool is_scanned = field_is_scanned(field);
        if (is_scanned && field->schema.index != SK_SCHEMA_FLAT)
            snprintf(field->note, sizeof field->note,
                     "below %d dimensions every search is an exact scan", SK_INDEX_GRAPH_DIM_MIN);
        field_set_state(field, is_scanned ? FIELD_FLAT : FIELD_UNLOADED);
    }
    shard->released = 0;
    shard->is_loading_fields = true; /* the store says when there is nothing to do */
    shard->looked_us = 0;
    atomic_store_explicit(&shard->is_over_budget, false, memory_order_relaxed);
    shard_look(shard);
    return read_limbo(shard, d);
}

static enum sk_err open_store(struct shard *shard, struct sk_diag *d)
{
    struct sk_worker *self = shard->worker;
    char collection[SK_PATH_BYTES];
    enum sk_err rc = collection_path(self, shard->uuid, collection, d);
    if (rc == SK_ERR_OK)
        rc = sk_path(shard->folder, d, "%s/shard-%u", collection, shard->number);
    if (rc == SK_ERR_OK)
        rc = sk_folder_make(collection, d);
    if (rc == SK_ERR_OK)
        rc = origin_write(self, collection, d);
    if (rc == SK_ERR_OK)
        rc = sk_folder_make(shard->folder, d);
    if (rc != SK_ERR_OK)
        return rc;
    const struct sk_store_config config = {
        .folder = shard->folder,
        .map_bytes_max = self->config.map_bytes_max,
        .actor = self->io->random(self->io->impl) | 1,
        .no_sync = self->config.no_sync,
    };
    rc = sk_store_open(&shard->store, &config, shard->schema, d);
    if (rc == SK_ERR_OK)
        rc = sk_store_reader_new(&shard->writer_reader, shard->store, d);
    if (rc == SK_ERR_OK)
        rc = shard_reset(shard, d);
    return rc;
}

static void shard_open(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    struct sk_diag d = {0};
    enum sk_err rc = open_store(shard, &d);
    shard->diag = d;
    if (rc != SK_ERR_OK) {
        free_fields(shard);
        shard->field_count = 0;
        sk_store_reader_destroy(&shard->writer_reader);
        sk_store_close(&shard->store);
        shard->diag.code = rc;
        shard->retry_us = now_us(self) + SHARD_RETRY_US;
        snprintf(self->status.last_error, sizeof self->status.last_error, "%.190s", d.text);
        note(self, SK_WORKER_NOTE_shard_failed, shard->number, (uint64_t)rc);
        return;
    }
    uint64_t now = now_us(self);
    shard->retry_us = UINT64_MAX;
    shard->sweep_us = shard_next_sweep(shard, now);
    shard->saved_us = now;
    self->turn_us = 0;
    note(self, SK_WORKER_NOTE_shard_opened, shard->number,
         atomic_load_explicit(&shard->records, memory_order_relaxed));
}

static struct shard *shard_new(struct sk_worker *self, const struct sk_schema *schema,
                               uint16_t number)
{
    struct shard *shard = calloc(1, sizeof *shard);
    if (shard == NULL)
        return NULL;
    shard->schema = malloc(sizeof *shard->schema);
    if (shard->schema == NULL) {
        free(shard);
        return NULL;
    }
    *shard->schema = *schema;
    shard->worker = self;
    memcpy(shard->uuid, schema->uuid, SK_UUID_BYTES);
    shard->number = number;
    shard->sweep_us = UINT64_MAX;
    shard->next_expiry_us = UINT64_MAX;
    shard->next = self->shards;
    self->shards = shard;
    shard_open(shard);
    return shard;
}

void shard_destroy(struct shard *shard)
{
    queue_free(&shard->reads);
    queue_free(&shard->writes);
    queue_free(&shard->waits);
    queue_free(&shard->admin);
    while (shard->running_first != NULL) { /* submitted, and never run any more */
        struct reader *reader = shard->running_first;
        shard->running_first = reader->next;
        for (unsigned i = 0; i < reader->read_count; i++)
            free(reader->reads[i].request);
        reader_destroy(reader);
    }
    readers_destroy_idle(shard);
    struct writer *writer = &shard->worker->writer;
    for (unsigned f = 0; writer->shard == shard && f < shard->field_count; f++)
        sk_index_destroy(&writer->retired_indexes[f]); /* of a job whose end was never told */
    free_fields(shard);
    sk_store_reader_destroy(&shard->writer_reader);
    sk_store_close(&shard->store);
    free(shard->schema);
    free(shard->schema_next);
    free(shard);
}

/* ---- changes ---- */

static void remove_shard(struct shard *shard)
{
    struct sk_worker *self = shard->worker;
    bool is_removed = shard->is_removed;
    struct shard **at = &self->shards;
    while (*at != shard)
        at = &(*at)->next;
    *at = shard->next;
    if (self->turn_next == shard)
        self->turn_next = NULL;
    if (self->writer.shard == shard)
        self->writer.shard = NULL;
    note(self, SK_WORKER_NOTE_shard_dropped, shard->number, is_removed);
    shard_destroy(shard);
    if (is_removed)
        remove_left_out(self);
}

static void take_schema(struct shard *shard)
{
    struct sk_schema *next = shard->schema_next;
    struct sk_diag d = {0};
    shard->schema_next = NULL;
    enum sk_err rc = sk_store_set_schema(shard->store, next, &d);
    if (rc != SK_ERR_OK) { /* a full disk: served as it is, and tried again */
        free(next);
        shard->diag = d;
        shard->retry_us = now_us(shard->worker) + SHARD_RETRY_US;
        snprintf(shard->worker->status.last_error, sizeof shard->worker->status.last_error, "%.190s",
                 d.text);
        note(shard->worker, SK_WORKER_NOTE_shard_failed, shard->number, (uint64_t)rc);
        return;
    }
    struct sk_schema *before = shard->schema;
    shard->schema = next;
    shard->is_loading_fields = true;
    for (unsigned f = 0; f < shard->field_count; f++)
        field_take_schema(&shard->fields[f], &next->vectors[f],
                          before->memory_bytes_max != next->memory_bytes_max);
    free(before);
    atomic_store_explicit(&shard->is_over_budget, false, memory_order_relaxed);
    shard->index_rest_us = 0;
    shard->worker->turn_us = 0;
    requests_unpark(shard->worker);
}

void shard_settle(struct shard *shard)
{
    const struct writer *writer = &shard->worker->writer;
    bool is_quiet = shard->running_first == NULL && !(writer->is_submitted && writer->shard == shard);
    if (is_quiet && shard->is_dropped) {
        remove_shard(shard);
        return;
    }
    if (is_quiet && shard->schema_next != NULL && shard->store != NULL)
        take_schema(shard);
    reads_start(shard);
}

static void drop(struct shard *shard, bool is_removed)
{
    struct sk_worker *self = shard->worker;
    struct sk_diag d = {0};
    enum sk_err rc = is_removed ? sk_fail_field(&d, SK_ERR_NOT_FOUND, "collection",
                                                "the collection was dropped")
                                : sk_fail(&d, SK_ERR_UNAVAILABLE, "another worker has the shard now");
    shard->is_dropped = true;
    shard->is_removed = is_removed;
    self->reads_waiting -= shard->reads.count;
    queue_refuse(self, &shard->reads, rc, &d);
    queue_refuse(self, &shard->writes, rc, &d);
    queue_refuse(self, &shard->waits, rc, &d);
    queue_refuse(self, &shard->admin, rc, &d);
}

static void alter(struct shard *shard, const struct sk_schema *schema)
{
    if (schema->version <= shard->schema->version ||
        (shard->schema_next != NULL && schema->version <= shard->schema_next->version))
        return;
    if (shard->store == NULL) { /* it opens with the newest */
        *shard->schema = *schema;
        return;
    }
    struct sk_schema *next = malloc(sizeof *next);
    if (next == NULL) {
        shard->retry_us = now_us(shard->worker) + SHARD_RETRY_US;
        return;
    }
    *next = *schema;
    free(shard->schema_next);
    shard->schema_next = next;
}

void shards_apply_map(struct sk_worker *self)
{
    struct shard *next;
    for (struct shard *shard = self->shards; shard != NULL; shard = next) {
        next = shard->next;
        const struct sk_map_collection *c = sk_map_find_uuid(&self->map, shard->uuid);
        bool is_ours = c != NULL && shard->number < c->schema.shard_count &&
                       c->workers[shard->number] == self->config.number;
        if (!is_ours && !shard->is_dropped)
            drop(shard, c == NULL);
        else if (is_ours)
            alter(shard, &c->schema);
    }
    for (uint32_t i = 0; i < self->map.collection_count; i++) {
        const struct sk_map_collection *c = &self->map.collections[i];
        for (uint32_t n = 0; n < c->schema.shard_count; n++)
            if (c->workers[n] == self->config.number &&
                shard_find(self, c->schema.uuid, (uint16_t)n) == NULL)
                (void)shard_new(self, &c->schema, (uint16_t)n);
    }
    for (struct shard *shard = self->shards; shard != NULL; shard = next) {
        next = shard->next;
        if (shard->is_dropped || shard->schema_next != NULL)
            shard_settle(shard);
    }
    remove_left_out(self);
}

uint64_t shards_retry(struct sk_worker *self, uint64_t now)
{
    uint64_t next = UINT64_MAX;
    for (struct shard *shard = self->shards; shard != NULL; shard = shard->next) {
        if (shard->retry_us != 0 && now >= shard->retry_us && !shard->is_dropped) {
            shard->retry_us = UINT64_MAX;
            const struct sk_map_collection *c = sk_map_find_uuid(&self->map, shard->uuid);
            if (shard->store == NULL) {
                shard_open(shard);
            } else if (c != NULL) {
                alter(shard, &c->schema);
                shard_settle(shard);
            }
        }
        next = sooner(next, shard->retry_us);
    }
    return next;
}
