/* The library around the engine: ids to rows, locks, threads for batches of queries. */
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    STEP_EVERY_ROWS = 256,
    CHUNK_MAX = 32, /* queries that a thread searches together */
    CHUNK_ROWS_MAX = 65536,
};

int skerry_index_report(enum sk_err rc, const struct sk_diag *d, char *error, size_t error_size)
{
    if (error != NULL && error_size > 0)
        snprintf(error, error_size, "%s", rc == SK_ERR_OK ? "" : d->text);
    return (int)rc;
}

/* ---- ids ---- */

static uint32_t hash_id(uint64_t id)
{
    id = (id ^ id >> 33) * 0xFF51AFD7ED558CCDU;
    id = (id ^ id >> 33) * 0xC4CEB9FE1A85EC53U;
    return (uint32_t)(id >> 32);
}

uint32_t skerry_index_table_at(const struct skerry_index *self, uint64_t id)
{
    uint32_t at = hash_id(id) & (self->table_size - 1);
    while (self->table[at] != 0 && self->ids[self->table[at] - 1] != id)
        at = (at + 1) & (self->table_size - 1);
    return at;
}

bool skerry_index_table_fit(struct skerry_index *self, uint32_t count)
{
    uint32_t size = self->table_size == 0 ? 64 : self->table_size;
    while ((uint64_t)count * 4 > (uint64_t)size * 3)
        size *= 2;
    if (size == self->table_size)
        return true;
    uint32_t *table = calloc(size, sizeof *table), *old = self->table;
    if (table == NULL)
        return false;
    const uint32_t old_size = self->table_size;
    self->table = table;
    self->table_size = size;
    for (uint32_t i = 0; i < old_size; i++)
        if (old[i] != 0)
            self->table[skerry_index_table_at(self, self->ids[old[i] - 1])] = old[i];
    free(old);
    return true;
}

/* Closes the gap, so that no chain of probes is broken. */
static void table_remove(struct skerry_index *self, uint32_t at)
{
    const uint32_t mask = self->table_size - 1;
    uint32_t hole = at;
    for (uint32_t next = (at + 1) & mask; self->table[next] != 0; next = (next + 1) & mask) {
        uint32_t home = hash_id(self->ids[self->table[next] - 1]) & mask;
        if (((next - home) & mask) >= ((next - hole) & mask)) {
            self->table[hole] = self->table[next];
            hole = next;
        }
    }
    self->table[hole] = 0;
    self->table_used--;
}

static bool grow_array(void *array, size_t item_bytes, uint32_t capacity)
{
    void **slot = array;
    void *grown = realloc(*slot, item_bytes * capacity);
    if (grown == NULL)
        return false;
    *slot = grown;
    return true;
}

bool skerry_index_grow_rows(struct skerry_index *self, uint32_t row)
{
    if (row >= self->row_capacity) {
        uint32_t capacity = self->row_capacity + self->row_capacity / 8 + 1024;
        if (capacity <= row)
            capacity = row + 1;
        if (!grow_array(&self->ids, sizeof *self->ids, capacity) ||
            !grow_array(&self->lseqs, sizeof *self->lseqs, capacity) ||
            (self->keeps_vectors &&
             !grow_array(&self->vectors, sizeof *self->vectors * self->params.dim, capacity)))
            return false;
        self->row_capacity = capacity;
    }
    while (self->row_count <= row)
        self->ids[self->row_count++] = SKERRY_NO_ID;
    return true;
}

/* ---- making ---- */

static enum sk_err parse(const struct skerry_index_options *options, struct sk_index_params *params,
                         struct sk_diag *d)
{
    static const char *const metrics[] = {"l2", "ip", "cosine"};
    *params = (struct sk_index_params){.dim = options->dim,
                                       .m = options->m,
                                       .ef_construction = options->ef_construction,
                                       .seed = options->seed,
                                       .memory_bytes_max = options->memory_bytes_max,
                                       .isa = options->isa,
                                       .is_unlogged = true};
    if (options->abi != SKERRY_INDEX_ABI)
        return sk_fail(d, SK_ERR_VERSION, "options of ABI %u, this library has %d", options->abi,
                       SKERRY_INDEX_ABI);
    for (int i = 0; i < 3 && options->metric != NULL; i++)
        if (strcmp(options->metric, metrics[i]) == 0)
            params->metric = (enum sk_metric)(i + 1);
    if (params->metric == 0)
        return sk_fail_field(d, SK_ERR_INVALID, "metric", "metric \"%s\", want l2, ip or cosine",
                             options->metric == NULL ? "" : options->metric);
    if (options->index == NULL || strcmp(options->index, "hnsw") == 0)
        params->kind = SK_INDEX_HNSW;
    else if (strcmp(options->index, "flat") == 0)
        params->kind = SK_INDEX_FLAT;
    else
        return sk_fail_field(d, SK_ERR_INVALID, "index", "index \"%s\", want hnsw or flat",
                             options->index);
    if (params->dim < SK_INDEX_GRAPH_DIM_MIN)
        params->kind = SK_INDEX_FLAT;
    if (options->profile != NULL && strcmp(options->profile, "balanced") != 0)
        return sk_fail_field(d, SK_ERR_INVALID, "profile", "profile \"%s\", want balanced",
                             options->profile);
    return SK_ERR_OK;
}

struct skerry_index *skerry_index_make_shell(const struct sk_index_params *params,
                                             bool keeps_vectors)
{
    struct skerry_index *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->params = *params;
    self->keeps_vectors = keeps_vectors;
    pthread_rwlock_init(&self->lock, NULL);
    pthread_mutex_init(&self->readers_lock, NULL);
    return self;
}

uint32_t skerry_index_abi(void)
{
    return SKERRY_INDEX_ABI;
}

int skerry_index_new(struct skerry_index **out, const struct skerry_index_options *options,
                     char *error, size_t error_size)
{
    struct sk_diag d = {0};
    struct sk_index_params params;
    *out = NULL;
    enum sk_err rc = parse(options, &params, &d);
    if (rc != SK_ERR_OK)
        return skerry_index_report(rc, &d, error, error_size);
    bool keeps_vectors =
        options->keep_vectors < 0 ? params.kind == SK_INDEX_FLAT : options->keep_vectors > 0;
    struct skerry_index *self = skerry_index_make_shell(&params, keeps_vectors);
    rc = self == NULL ? sk_fail(&d, SK_ERR_NOMEM, "no memory for an index")
                      : sk_index_new(&self->index, &params, NULL, &d);
    if (rc != SK_ERR_OK) {
        skerry_index_free(self);
        return skerry_index_report(rc, &d, error, error_size);
    }
    *out = self;
    return skerry_index_report(rc, &d, error, error_size);
}

void skerry_index_free(struct skerry_index *self)
{
    if (self == NULL)
        return;
    while (self->reader_count > 0)
        sk_index_reader_destroy(&self->readers[--self->reader_count]);
    sk_index_destroy(&self->index);
    pthread_rwlock_destroy(&self->lock);
    pthread_mutex_destroy(&self->readers_lock);
    free(self->ids);
    free(self->lseqs);
    free(self->vectors);
    free(self->free_rows);
    free(self->table);
    free(self);
}

/* ---- adding and removing ---- */

static enum sk_err take_reclaimed(struct skerry_index *self, struct sk_diag *d)
{
    uint32_t rows[256], count;
    while ((count = sk_index_reclaim_rows(self->index, rows, SK_COUNT_OF(rows))) > 0) {
        if (self->free_count + count > self->free_capacity) {
            uint32_t capacity = (self->free_count + count) * 2;
            if (!grow_array(&self->free_rows, sizeof *rows, capacity))
                return sk_fail(d, SK_ERR_NOMEM, "no memory to list free rows");
            self->free_capacity = capacity;
        }
        memcpy(self->free_rows + self->free_count, rows, count * sizeof *rows);
        self->free_count += count;
    }
    return SK_ERR_OK;
}

/* All the maintenance that is due. Writers hold the lock, so no search can hold it up. */
static enum sk_err maintain(struct skerry_index *self, unsigned flags, struct sk_diag *d)
{
    bool has_more = true;
    enum sk_err rc = SK_ERR_OK;
    while (has_more && rc == SK_ERR_OK)
        rc = sk_index_step(self->index, 0, NULL, flags, &has_more, d);
    return rc == SK_ERR_OK ? take_reclaimed(self, d) : rc;
}

static enum sk_err add_one(struct skerry_index *self, uint64_t id, const float *vector,
                           struct sk_diag *d)
{
    if (id == SKERRY_NO_ID)
        return sk_fail_field(d, SK_ERR_INVALID, "ids", "2^64 - 1 is not an id");
    const bool is_reused = self->free_count > 0;
    const uint32_t row = is_reused ? self->free_rows[self->free_count - 1] : self->row_count;
    if ((!is_reused && !skerry_index_grow_rows(self, row)) ||
        !skerry_index_table_fit(self, self->table_used + 1)) {
        if (!is_reused && self->row_count > row)
            self->row_count = row;
        return sk_fail(d, SK_ERR_NOMEM, "no memory for another id");
    }
    enum sk_err rc = sk_index_insert(self->index, row, self->lseq + 1, vector, d);
    if (rc != SK_ERR_OK) {
        if (!is_reused)
            self->row_count = row;
        return rc;
    }
    self->lseq++;
    self->free_count -= is_reused;
    const uint32_t at = skerry_index_table_at(self, id);
    if (self->table[at] != 0) {
        uint32_t old = self->table[at] - 1;
        rc = sk_index_remove(self->index, old, self->lseqs[old], d);
        self->ids[old] = SKERRY_NO_ID;
    } else {
        self->table_used++;
    }
    self->table[at] = row + 1;
    self->ids[row] = id;
    self->lseqs[row] = self->lseq;
    if (self->keeps_vectors)
        memcpy(self->vectors + (size_t)row * self->params.dim, vector,
               self->params.dim * sizeof *vector);
    return rc;
}

int skerry_index_add(struct skerry_index *self, size_t count, const uint64_t *ids,
                     const float *vectors, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    enum sk_err rc = SK_ERR_OK;
    for (size_t i = 0; i < count && rc == SK_ERR_OK;) {
        pthread_rwlock_wrlock(&self->lock);
        for (unsigned n = 0; n < STEP_EVERY_ROWS && i < count && rc == SK_ERR_OK; n++, i++) {
            rc = add_one(self, ids[i], vectors + i * self->params.dim, &d);
            if (rc != SK_ERR_OK)
                rc = sk_wrap(&d, rc, "row %zu of %zu", i, count);
        }
        if (rc == SK_ERR_OK)
            rc = maintain(self, 0, &d);
        pthread_rwlock_unlock(&self->lock);
    }
    return skerry_index_report(rc, &d, error, error_size);
}

int skerry_index_remove(struct skerry_index *self, size_t count, const uint64_t *ids,
                        size_t *removed, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    enum sk_err rc = SK_ERR_OK;
    size_t done = 0;
    pthread_rwlock_wrlock(&self->lock);
    for (size_t i = 0; i < count && rc == SK_ERR_OK && self->table_size > 0; i++) {
        uint32_t at = skerry_index_table_at(self, ids[i]);
        if (ids[i] == SKERRY_NO_ID || self->table[at] == 0)
            continue;
        uint32_t row = self->table[at] - 1;
        rc = sk_index_remove(self->index, row, self->lseqs[row], &d);
        if (rc != SK_ERR_OK)
            break;
        table_remove(self, at);
        self->ids[row] = SKERRY_NO_ID;
        done++;
    }
    if (rc == SK_ERR_OK)
        rc = maintain(self, 0, &d);
    pthread_rwlock_unlock(&self->lock);
    if (removed != NULL)
        *removed = done;
    return skerry_index_report(rc, &d, error, error_size);
}

int skerry_index_compact(struct skerry_index *self, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    pthread_rwlock_wrlock(&self->lock);
    enum sk_err rc = maintain(self, SK_INDEX_STEP_EAGER, &d);
    pthread_rwlock_unlock(&self->lock);
    return skerry_index_report(rc, &d, error, error_size);
}

/* ---- searching ---- */

struct batch {
    struct skerry_index *self;
    const float *queries;
    size_t begin, end;
    uint32_t k, ef;
    uint64_t *ids;
    float *scores;
    enum sk_err rc;
    struct sk_diag d;
};

static enum sk_err take_reader(struct skerry_index *self, struct sk_index_reader **reader,
                               struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    *reader = NULL;
    pthread_mutex_lock(&self->readers_lock);
    if (self->reader_count > 0)
        *reader = self->readers[--self->reader_count];
    else
        rc = sk_index_reader_new(reader, self->index, d);
    pthread_mutex_unlock(&self->readers_lock);
    return rc;
}

static void give_reader(struct skerry_index *self, struct sk_index_reader *reader)
{
    pthread_mutex_lock(&self->readers_lock);
    self->readers[self->reader_count++] = reader;
    pthread_mutex_unlock(&self->readers_lock);
}

static void rescore(const struct skerry_index *self, const float *query,
                    struct sk_index_result *result, uint64_t *keys)
{
    const bool is_l2 = self->params.metric == SK_METRIC_L2;
    for (uint32_t i = 0; i < result->count; i++) {
        const float *vector = self->vectors + (size_t)result->rows[i] * self->params.dim;
        float score = sk_score_exact(self->params.metric, query, vector, self->params.dim);
        keys[i] = (uint64_t)sk_float_ordered(is_l2 ? score : -score) << 32 | result->rows[i];
    }
    sk_select_smallest(keys, result->count, result->count);
    for (uint32_t i = 0; i < result->count; i++) {
        float score = sk_float_from_ordered((uint32_t)(keys[i] >> 32));
        result->rows[i] = (uint32_t)keys[i];
        result->scores[i] = is_l2 ? score : -score;
    }
}

/* Query `at` of the batch has its result. */
static void put(const struct batch *batch, size_t at, struct sk_index_result *result, uint64_t *keys)
{
    const struct skerry_index *self = batch->self;
    if (self->keeps_vectors)
        rescore(self, batch->queries + at * self->params.dim, result, keys);
    for (uint32_t j = 0; j < batch->k; j++) {
        const bool is_found = j < result->count;
        batch->ids[at * batch->k + j] = is_found ? self->ids[result->rows[j]] : SKERRY_NO_ID;
        batch->scores[at * batch->k + j] = is_found ? result->scores[j] : NAN;
    }
}

/* What a thread of a batch works with: results of up to `size` queries at a time. */
struct chunk {
    uint32_t size;
    struct sk_index_query queries[CHUNK_MAX];
    struct sk_index_result results[CHUNK_MAX];
    enum sk_err rcs[CHUNK_MAX];
    uint32_t *rows;
    float *scores;
    uint64_t *keys;
};

static enum sk_err chunk_init(struct chunk *self, const struct batch *batch, struct sk_diag *d)
{
    /* Flat with vectors: room for everything that the codes cannot decide. */
    uint32_t capacity = sk_index_result_rows(batch->k);
    if (batch->self->keeps_vectors && batch->self->params.kind == SK_INDEX_FLAT)
        capacity += batch->self->row_count;
    self->size = CHUNK_ROWS_MAX / capacity;
    self->size = self->size < 1 ? 1 : self->size > CHUNK_MAX ? CHUNK_MAX : self->size;
    self->rows = malloc((size_t)self->size * capacity * sizeof *self->rows);
    self->scores = malloc((size_t)self->size * capacity * sizeof *self->scores);
    self->keys = malloc(capacity * sizeof *self->keys);
    if (self->rows == NULL || self->scores == NULL || self->keys == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a search of k %u", batch->k);
    for (uint32_t i = 0; i < self->size; i++)
        self->results[i] = (struct sk_index_result){.capacity = capacity,
                                                    .rows = self->rows + (size_t)i * capacity,
                                                    .scores = self->scores + (size_t)i * capacity};
    return SK_ERR_OK;
}

static enum sk_err chunk_run(struct chunk *self, struct batch *batch, struct sk_index_reader *reader,
                             size_t begin, uint32_t count)
{
    const uint32_t dim = batch->self->params.dim;
    for (uint32_t i = 0; i < count; i++)
        self->queries[i] = (struct sk_index_query){
            .vector = batch->queries + (begin + i) * dim, .k = batch->k, .ef = batch->ef};
    enum sk_err rc = sk_index_search_many(batch->self->index, reader, self->queries, self->results,
                                          self->rcs, count, &batch->d);
    for (uint32_t i = 0; i < count; i++)
        if (self->rcs[i] != SK_ERR_OK)
            return sk_wrap(&batch->d, rc, "query %zu", begin + i);
        else
            put(batch, begin + i, &self->results[i], self->keys);
    return rc;
}

static void *run_batch(void *arg)
{
    struct batch *batch = arg;
    struct sk_index_reader *reader = NULL;
    struct chunk chunk = {0};
    batch->rc = chunk_init(&chunk, batch, &batch->d);
    if (batch->rc == SK_ERR_OK)
        batch->rc = take_reader(batch->self, &reader, &batch->d);
    for (size_t at = batch->begin; at < batch->end && batch->rc == SK_ERR_OK; at += chunk.size) {
        const size_t left = batch->end - at;
        batch->rc =
            chunk_run(&chunk, batch, reader, at, left < chunk.size ? (uint32_t)left : chunk.size);
    }
    if (reader != NULL)
        give_reader(batch->self, reader);
    free(chunk.rows);
    free(chunk.scores);
    free(chunk.keys);
    return NULL;
}

int skerry_index_search(struct skerry_index *self, size_t count, const float *queries, uint32_t k,
                        uint32_t ef, uint32_t threads, uint64_t *ids, float *scores, char *error,
                        size_t error_size)
{
    struct batch batches[THREADS_MAX];
    pthread_t ids_of[THREADS_MAX];
    struct sk_diag d = {0};
    if (threads > THREADS_MAX || k == 0 || k > SK_INDEX_EF_MAX)
        return skerry_index_report(sk_fail(&d, SK_ERR_INVALID,
                                           "threads %u and k %u, want 0..%d and 1..%d", threads, k,
                                           THREADS_MAX, SK_INDEX_EF_MAX),
                                   &d, error, error_size);
    uint32_t used = threads == 0 ? 1 : threads;
    if (used > count)
        used = count == 0 ? 1 : (uint32_t)count;
    pthread_rwlock_rdlock(&self->lock);
    bool is_started[THREADS_MAX] = {false};
    for (uint32_t t = used; t-- > 0;) { /* the first part runs here, last */
        batches[t] = (struct batch){.self = self,
                                    .queries = queries,
                                    .begin = count * t / used,
                                    .end = count * (t + 1) / used,
                                    .k = k,
                                    .ef = ef,
                                    .ids = ids,
                                    .scores = scores};
        is_started[t] = t > 0 && pthread_create(&ids_of[t], NULL, run_batch, &batches[t]) == 0;
        if (!is_started[t])
            run_batch(&batches[t]);
    }
    for (uint32_t t = 0; t < used; t++)
        if (is_started[t])
            pthread_join(ids_of[t], NULL);
    pthread_rwlock_unlock(&self->lock);
    for (uint32_t t = 0; t < used; t++)
        if (batches[t].rc != SK_ERR_OK)
            return skerry_index_report(batches[t].rc, &batches[t].d, error, error_size);
    return skerry_index_report(SK_ERR_OK, &d, error, error_size);
}

/* ---- numbers ---- */

uint64_t skerry_index_count(struct skerry_index *self)
{
    struct sk_index_stats stats;
    sk_index_get_stats(self->index, &stats);
    return stats.rows;
}

uint32_t skerry_index_dim(struct skerry_index *self)
{
    return self->params.dim;
}

const char *skerry_index_metric(struct skerry_index *self)
{
    return self->params.metric == SK_METRIC_L2   ? "l2"
           : self->params.metric == SK_METRIC_IP ? "ip"
                                                 : "cosine";
}

const char *skerry_index_kind(struct skerry_index *self)
{
    return self->params.kind == SK_INDEX_FLAT ? "flat" : "hnsw";
}

uint64_t skerry_index_memory_bytes(struct skerry_index *self)
{
    struct sk_index_stats stats;
    pthread_rwlock_rdlock(&self->lock);
    sk_index_get_stats(self->index, &stats);
    uint64_t bytes = stats.memory_bytes + (uint64_t)self->row_capacity * 16 +
                     (uint64_t)self->free_capacity * 4 + (uint64_t)self->table_size * 4;
    if (self->keeps_vectors)
        bytes += (uint64_t)self->row_capacity * self->params.dim * sizeof(float);
    pthread_rwlock_unlock(&self->lock);
    return bytes;
}
