/* The library around the engine: ids to rows, locks, threads for batches of queries. */
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <stdio.h>
#include <stdlib.h>

enum { STEP_EVERY_ROWS = 256 };

int skerry_index_report(enum sk_err rc, const struct sk_diag *d, char *error, size_t error_size)
{
    if (error != NULL && error_size > 0)
        snprintf(error, error_size, "%s", rc == SK_ERR_OK ? "" : d->text);
    return (int)rc;
}

/* ---- making ---- */

static const char *const KINDS[] = {"flat", "hnsw", "ivf_flat", "ivf_pq", "hybrid"};
static const char *const PROFILES[] = {"balanced", "speed", "memory"};

const char *skerry_index_kind_name(enum sk_index_kind kind)
{
    return KINDS[kind - SK_INDEX_FLAT];
}

const char *skerry_index_profile_name(enum sk_index_profile profile)
{
    return PROFILES[profile];
}

static uint32_t index_of(const char *const *names, uint32_t count, const char *name)
{
    uint32_t at = 0;
    while (at < count && strcmp(names[at], name) != 0)
        at++;
    return at;
}

enum sk_err skerry_index_profile_of(const char *name, enum sk_index_profile *out, struct sk_diag *d)
{
    const uint32_t at = index_of(PROFILES, SK_COUNT_OF(PROFILES), name);
    if (at == SK_COUNT_OF(PROFILES))
        return sk_fail_field(d, SK_ERR_INVALID, "profile",
                             "profile \"%s\", want balanced, speed or memory", name);
    *out = (enum sk_index_profile)at;
    return SK_ERR_OK;
}

enum sk_err skerry_index_check_options(const struct skerry_index_options *options, struct sk_diag *d)
{
    if (options->abi != SKERRY_INDEX_ABI)
        return sk_fail(d, SK_ERR_VERSION, "options of ABI %u, this library has %d", options->abi,
                       SKERRY_INDEX_ABI);
    if (options->keep_vectors < -1 || options->keep_vectors > 1)
        return sk_fail_field(d, SK_ERR_INVALID, "keep_vectors", "keep_vectors %d, want -1, 0 or 1",
                             (int)options->keep_vectors);
    if (options->vectors_path != NULL && options->keep_vectors == 1)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors_path",
                             "vectors are kept in memory (keep_vectors) or in a file (vectors_path), "
                             "not in both");
    return SK_ERR_OK;
}

static enum sk_err parse(const struct skerry_index_options *options, struct sk_index_params *params,
                         struct sk_diag *d)
{
    static const char *const metrics[] = {"l2", "ip", "cosine"};
    enum sk_err rc = skerry_index_check_options(options, d);
    if (rc != SK_ERR_OK)
        return rc;
    const char *metric = options->metric != NULL ? options->metric : "",
               *kind = options->index != NULL ? options->index : "hnsw",
               *profile = options->profile != NULL ? options->profile : "balanced";
    const uint32_t metric_at = index_of(metrics, SK_COUNT_OF(metrics), metric),
                   kind_at = index_of(KINDS, SK_COUNT_OF(KINDS), kind);
    *params = (struct sk_index_params){
        .kind = (enum sk_index_kind)(SK_INDEX_FLAT + kind_at),
        .metric = (enum sk_metric)(metric_at + 1),
        .dim = options->dim,
        .m = options->m,
        .ef_construction = options->ef_construction,
        .nlist = options->nlist,
        .pq_m = options->pq_m,
        .refine = options->refine,
        .seed = options->seed,
        .memory_bytes_max = options->memory_bytes_max,
        .isa = options->isa,
        .is_unlogged = true,
    };
    if (metric_at == SK_COUNT_OF(metrics))
        return sk_fail_field(d, SK_ERR_INVALID, "metric", "metric \"%s\", want l2, ip or cosine",
                             metric);
    if (kind_at == SK_COUNT_OF(KINDS))
        return sk_fail_field(d, SK_ERR_INVALID, "index",
                             "index \"%s\", want flat, hnsw, ivf_flat, ivf_pq or hybrid", kind);
    rc = skerry_index_profile_of(profile, &params->profile, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (params->kind != SK_INDEX_HNSW && options->profile != NULL)
        return sk_fail_field(d, SK_ERR_INVALID, "profile", "profile \"%s\": %s has none, only hnsw",
                             profile, kind);
    if (params->kind < SK_INDEX_IVF_FLAT && (params->nlist | params->pq_m | params->refine) != 0)
        return sk_fail_field(d, SK_ERR_INVALID, "nlist",
                             "nlist %u, pq_m %u, refine %u: %s has none of these", params->nlist,
                             params->pq_m, params->refine, kind);
    if (params->dim < SK_INDEX_GRAPH_DIM_MIN) {
        params->kind = SK_INDEX_FLAT;
        params->profile = SK_INDEX_BALANCED;
    }
    return SK_ERR_OK;
}

struct skerry_index *skerry_index_make_shell(const struct sk_index_params *params)
{
    struct skerry_index *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->params = *params;
    self->is_identity = true;
    self->vectors.dim = params->dim;
    self->vectors.fd = -1;
    pthread_rwlock_init(&self->lock, NULL);
    pthread_mutex_init(&self->readers_lock, NULL);
    return self;
}

bool skerry_index_fetch(void *impl, uint32_t row, float *out)
{
    const struct skerry_index *self = impl;
    if (row >= self->row_count)
        return false;
    memcpy(out, skerry_vectors_at(&self->vectors, row), self->params.dim * sizeof *out);
    return true;
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
    struct skerry_index *self = skerry_index_make_shell(&params);
    if (self == NULL)
        return skerry_index_report(sk_fail(&d, SK_ERR_NOMEM, "no memory for an index"), &d, error,
                                   error_size);
    self->keeps_vectors = options->vectors_path != NULL ||
                          (options->keep_vectors < 0 ? params.kind == SK_INDEX_FLAT
                                                     : options->keep_vectors > 0);
    const struct sk_index_source source = {self, skerry_index_fetch};
    if (options->vectors_path != NULL)
        rc = skerry_vectors_create(&self->vectors, options->vectors_path, &d);
    if (rc == SK_ERR_OK)
        rc = sk_index_new(&self->index, &params, self->keeps_vectors ? &source : NULL, &d);
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
    skerry_vectors_close(&self->vectors);
    free(self->ids);
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
            uint32_t *grown = realloc(self->free_rows, capacity * sizeof *grown);
            if (grown == NULL)
                return sk_fail(d, SK_ERR_NOMEM, "no memory to list free rows");
            self->free_rows = grown;
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
    uint32_t old;
    uint64_t lseq;
    if (id == SKERRY_NO_ID)
        return sk_fail_field(d, SK_ERR_INVALID, "ids", "2^64 - 1 is not an id");
    const bool is_reused = self->free_count > 0;
    const uint32_t row = is_reused ? self->free_rows[self->free_count - 1] : self->row_count;
    if (!skerry_index_ids_fit(self, id, row))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for another id");
    enum sk_err rc = self->keeps_vectors ? skerry_vectors_fit(&self->vectors, row, d) : SK_ERR_OK;
    if (rc != SK_ERR_OK)
        return rc;
    if (self->keeps_vectors) /* the engine may fetch it at once */
        memcpy(skerry_vectors_at(&self->vectors, row), vector, self->params.dim * sizeof *vector);
    self->row_count += !is_reused;
    rc = sk_index_insert(self->index, row, self->lseq + 1, vector, d);
    if (rc != SK_ERR_OK) {
        self->row_count -= !is_reused;
        return rc;
    }
    self->lseq++;
    self->free_count -= is_reused;
    if (skerry_index_row_of(self, id, &old) && old != row && sk_index_lseq(self->index, old, &lseq))
        rc = sk_index_remove(self->index, old, lseq, d);
    skerry_index_ids_set(self, id, row);
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
            rc = maintain(self, i < count ? SK_INDEX_STEP_BULK : 0, &d);
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
    for (size_t i = 0; i < count && rc == SK_ERR_OK; i++) {
        uint32_t row;
        uint64_t lseq;
        if (!skerry_index_row_of(self, ids[i], &row) || !sk_index_lseq(self->index, row, &lseq))
            continue;
        rc = sk_index_remove(self->index, row, lseq, &d);
        if (rc != SK_ERR_OK)
            break;
        skerry_index_ids_remove(self, ids[i], row);
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

int skerry_index_calibrate(struct skerry_index *self, size_t count, const float *queries, uint32_t k,
                           char *error, size_t error_size)
{
    struct sk_diag d = {0};
    if (count > UINT32_MAX)
        return skerry_index_report(sk_fail(&d, SK_ERR_INVALID, "%zu queries, want at most %u", count,
                                           UINT32_MAX),
                                   &d, error, error_size);
    pthread_rwlock_wrlock(&self->lock);
    enum sk_err rc = sk_index_calibrate(self->index, queries, (uint32_t)count, k, &d);
    pthread_rwlock_unlock(&self->lock);
    return skerry_index_report(rc, &d, error, error_size);
}

/* ---- numbers ---- */

void skerry_index_get_recall(struct skerry_index *self, struct skerry_index_recall *out)
{
    struct sk_index_stats stats;
    sk_index_get_stats(self->index, &stats);
    *out = (struct skerry_index_recall){.target = stats.recall_target,
                                        .measured = stats.recall_measured,
                                        .ef_mean = stats.recall_ef_mean,
                                        .samples = stats.recall_samples};
}

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
    return skerry_index_kind_name(self->params.kind);
}

const char *skerry_index_profile(struct skerry_index *self)
{
    return skerry_index_profile_name(self->params.profile);
}

uint64_t skerry_index_memory_bytes(struct skerry_index *self)
{
    struct sk_index_stats stats;
    pthread_rwlock_rdlock(&self->lock);
    sk_index_get_stats(self->index, &stats);
    uint64_t bytes = stats.memory_bytes + skerry_index_ids_bytes(self) +
                     (uint64_t)self->free_capacity * sizeof *self->free_rows;
    if (self->vectors.path == NULL)
        bytes += (uint64_t)self->vectors.capacity * self->params.dim * sizeof(float);
    pthread_rwlock_unlock(&self->lock);
    return bytes;
}
