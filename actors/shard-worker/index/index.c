/* One vector index: making it, rows in and out, numbers about it. */
#include "actors/shard-worker/index/ivf.h"
#include "actors/shard-worker/index/recall.h"

#include <math.h>
#include <stdlib.h>

enum {
    M_DEFAULT = 16,
    EF_CONSTRUCTION_DEFAULT = 200,
    MEAN_CHECK_FIRST = 256,
    ROWS_AHEAD_MAX = 65536
};
/* Address space for the rows of one index where no budget is given (nothing is committed of it). */
static const uint64_t RESERVE_BYTES = (uint64_t)64 << 30;
static const float NORM_SQ_MAX = 1e36F;

static bool has_lists(enum sk_index_kind kind)
{
    return kind >= SK_INDEX_IVF_FLAT;
}

static enum sk_err check_params(struct sk_index_params *params, struct sk_diag *d)
{
    if (params->kind < SK_INDEX_FLAT || params->kind > SK_INDEX_HYBRID)
        return sk_fail(d, SK_ERR_INVALID,
                       "index kind %d, want flat, hnsw, ivf_flat, ivf_pq or hybrid", (int)params->kind);
    if (params->metric < SK_METRIC_L2 || params->metric > SK_METRIC_COSINE)
        return sk_fail(d, SK_ERR_INVALID, "metric %d, want l2, ip or cosine", (int)params->metric);
    if (params->dim < 1 || params->dim > SK_INDEX_DIM_MAX)
        return sk_fail(d, SK_ERR_INVALID, "dim %u, want 1..%d", params->dim, SK_INDEX_DIM_MAX);
    if (params->profile > SK_INDEX_MEMORY)
        return sk_fail_field(d, SK_ERR_INVALID, "profile",
                             "profile %d, want balanced, speed or memory", (int)params->profile);
    if (has_lists(params->kind)) {
        enum sk_err rc = sk_ivf_check_params(params, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    if (params->m == 0)
        params->m = M_DEFAULT;
    if (params->ef_construction == 0)
        params->ef_construction = EF_CONSTRUCTION_DEFAULT;
    if (params->m < SK_INDEX_M_MIN || params->m > SK_INDEX_M_MAX)
        return sk_fail(d, SK_ERR_INVALID, "m %u, want %d..%d", params->m, SK_INDEX_M_MIN,
                       SK_INDEX_M_MAX);
    if (params->ef_construction > SK_INDEX_EF_MAX)
        return sk_fail(d, SK_ERR_INVALID, "ef_construction %u, want 1..%d", params->ef_construction,
                       SK_INDEX_EF_MAX);
    if (params->flat_below == 0)
        params->flat_below = SK_INDEX_FLAT_BELOW;
    if (params->ef_construction < params->m)
        params->ef_construction = params->m;
    return SK_ERR_OK;
}

uint32_t sk_part_bytes(const struct sk_index *self, enum sk_index_profile profile, unsigned part)
{
    if (has_lists(self->params.kind))
        return 0;
    const bool is_bare = profile == SK_INDEX_MEMORY && self->code_bytes > 0;
    switch ((enum sk_part)part) {
    case SK_PART_CODES:
        return self->code_bytes;
    case SK_PART_SHORT_FACTORS:
        return self->code_bytes > 0 ? sizeof(struct sk_short_factors) : 0;
    case SK_PART_PLANES:
        return is_bare ? 0 : self->padded;
    case SK_PART_FACTORS: /* for inner products lengths are always needed */
        return is_bare && self->params.metric != SK_METRIC_IP ? 0 : sizeof(struct sk_factors);
    case SK_PART_SKETCHES:
        return sk_sketch_bytes(self, profile);
    case SK_PART_COUNT:
        break;
    }
    return 0;
}

/* The codes of kinds with lists are in these. */
static bool layout_rows(struct sk_index *self)
{
    const bool is_graph = self->params.kind == SK_INDEX_HNSW;
    self->row_bytes = self->links_stride * 4 + 1 + 8 + (is_graph ? 4 : 0);
    for (unsigned part = 0; part < SK_PART_COUNT; part++)
        self->row_bytes += self->part_bytes[part];
    self->row_bytes += sk_near_row_bytes(self);
    if (has_lists(self->params.kind)) {
        if (!sk_ivf_init(self))
            return false;
        self->row_bytes += sk_ivf_row_bytes(self);
    }
    uint64_t budget = self->params.memory_bytes_max;
    uint64_t rows =
        (budget > 0 && budget < RESERVE_BYTES ? budget : RESERVE_BYTES) / self->row_bytes + 1;
    self->rows_max = rows < SK_INDEX_ROWS_MAX ? (uint32_t)rows : SK_INDEX_ROWS_MAX;
    return true;
}

static void layout(struct sk_index *self)
{
    self->padded = sk_rotation_padded(self->params.dim);
    self->degree = self->params.kind == SK_INDEX_HNSW ? 2 * self->params.m : 0;
    self->links_stride = (self->degree + 15) / 16 * 16;
    self->prune_to = self->degree - self->degree / 4;
    self->in_degree_kept = self->degree * 3 / 8;
    /* At 64 dimensions and below 4 bits are too coarse and save little: walk on the 8-bit codes. */
    self->code_bytes =
        self->params.kind == SK_INDEX_HNSW && self->padded > 64 ? self->padded / 2 : 0;
    for (unsigned part = 0; part < SK_PART_COUNT; part++)
        self->part_bytes[part] = sk_part_bytes(self, self->params.profile, part);
}

static bool allocate(struct sk_index *self)
{
    if (!layout_rows(self))
        return false;
    const size_t rows = self->rows_max;
    self->rotation_words =
        malloc(SK_ROTATION_ROUNDS_MAX * (self->padded / 32) * sizeof *self->rotation_words);
    self->sum = calloc(self->padded, sizeof *self->sum);
    self->recall = sk_recall_new();
    if (self->rotation_words == NULL || self->sum == NULL || self->recall == NULL ||
        !sk_bare_init(self) || !sk_near_init(self) || !sk_scratch_init(&self->scratch, self) ||
        !sk_region_reserve(&self->states, rows) ||
        !sk_region_reserve(&self->lseqs, rows * sizeof(uint64_t)) ||
        !sk_region_reserve(&self->in_degrees, rows * sizeof(uint32_t)) ||
        !sk_region_reserve(&self->links, (rows * self->links_stride + 1) * sizeof(uint32_t)))
        return false;
    atomic_store(&self->generation, sk_generation_new(self, 1));
    atomic_store(&self->generation_number, 1);
    return sk_generation_now(self) != NULL;
}

enum sk_err sk_index_new(struct sk_index **out, const struct sk_index_params *params,
                         const struct sk_index_source *source, struct sk_diag *d)
{
    struct sk_index_params checked = *params;
    *out = NULL;
    enum sk_err rc = check_params(&checked, d);
    if (rc != SK_ERR_OK)
        return rc;
    const struct sk_kernels *kernels = sk_kernels_get(params->isa);
    if (kernels == NULL)
        return sk_fail(d, SK_ERR_INVALID, "kernels \"%s\" are not available here; the best is %s",
                       params->isa, sk_kernels_name(0));
    struct sk_index *self = aligned_alloc(64, (sizeof *self + 63) / 64 * 64);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for an index");
    memset(self, 0, sizeof *self);
    self->params = checked;
    self->params.isa = kernels->isa;
    if (source != NULL)
        self->source = *source;
    self->kernels = kernels;
    self->mean_check_at = MEAN_CHECK_FIRST;
    atomic_store(&self->epoch, 1);
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++)
        atomic_store(&self->entries[at], SK_NO_ROW);
    layout(self);
    if (!allocate(self)) {
        sk_index_destroy(&self);
        return sk_fail(d, SK_ERR_NOMEM, "no memory or address space for an index of dim %u",
                       params->dim);
    }
    sk_rotation_init(&self->rotation, self->padded, checked.seed, self->rotation_words);
    *out = self;
    return SK_ERR_OK;
}

void sk_index_destroy(struct sk_index **self)
{
    struct sk_index *index = *self;
    if (index == NULL)
        return;
    struct sk_generation *generation = sk_generation_now(index);
    sk_index_checkpoint_abort(index);
    sk_walk_end(index);
    sk_recall_destroy(&index->recall);
    sk_generation_destroy(&generation);
    sk_generation_destroy(&index->next);
    sk_generation_destroy(&index->old);
    sk_region_release(&index->states);
    sk_region_release(&index->links);
    sk_region_release(&index->lseqs);
    sk_region_release(&index->in_degrees);
    sk_near_deinit(index);
    sk_scratch_deinit(&index->scratch);
    sk_ivf_deinit(index);
    free(index->candidates);
    free(index->bare);
    free(index->sum);
    free(index->rotation_words);
    free(index->orphans.rows);
    free(index->reclaimed.rows);
    free(index->needs_code);
    free(index->delta);
    free(index);
    *self = NULL;
}

/* ---- rows ---- */

enum sk_err sk_rows_commit(struct sk_index *self, uint32_t row_count, struct sk_diag *d)
{
    struct sk_generation *generation = sk_generation_now(self);
    const size_t rows = row_count;
    if (row_count > self->rows_max)
        return sk_fail(d, SK_ERR_NOMEM, "%u rows of %u bytes pass the index's memory of %llu bytes",
                       row_count, self->row_bytes,
                       (unsigned long long)self->params.memory_bytes_max);
    const struct {
        struct sk_region *region;
        size_t bytes;
    } parts[] = {{&self->states, rows},
                 {&self->lseqs, rows * sizeof(uint64_t)},
                 {&self->in_degrees, self->degree > 0 ? rows * sizeof(uint32_t) : 0},
                 {&self->links, rows * self->links_stride * sizeof(uint32_t)}};
    size_t growth = sk_generation_growth(self, generation, row_count) + sk_near_growth(self, row_count);
    for (size_t i = 0; i < SK_COUNT_OF(parts); i++)
        growth += sk_region_growth(parts[i].region, parts[i].bytes);
    if (growth == 0)
        return SK_ERR_OK;
    uint64_t used = atomic_load_explicit(&self->memory_bytes, memory_order_relaxed);
    if (self->params.memory_bytes_max > 0 && used + growth > self->params.memory_bytes_max)
        return sk_fail(d, SK_ERR_NOMEM, "the index uses %llu of its %llu bytes and needs %zu more",
                       (unsigned long long)used, (unsigned long long)self->params.memory_bytes_max,
                       growth);
    for (size_t i = 0; i < SK_COUNT_OF(parts); i++) {
        size_t before = parts[i].region->committed;
        if (!sk_region_commit(parts[i].region, parts[i].bytes))
            return sk_fail(d, SK_ERR_NOMEM, "the system has no memory for %u rows", row_count);
        if (parts[i].region == &self->links) /* the end mark of a list is all ones */
            memset(self->links.base + before, 0xFF, self->links.committed - before);
        atomic_fetch_add_explicit(&self->memory_bytes, parts[i].region->committed - before,
                                  memory_order_relaxed);
    }
    if (!sk_generation_commit(self, generation, row_count) ||
        (self->near.rows.committed > 0 && !sk_near_commit(self, row_count)))
        return sk_fail(d, SK_ERR_NOMEM, "the system has no memory for %u rows", row_count);
    return SK_ERR_OK;
}

uint32_t sk_links_get(const struct sk_index *self, uint32_t row, uint32_t *out)
{
    const _Atomic uint32_t *links = sk_links_of(self, row);
    uint32_t count = 0;
    while (count < self->degree) {
        uint32_t id = atomic_load_explicit(&links[count], memory_order_acquire);
        if (id == SK_NO_ROW)
            break;
        out[count++] = id;
    }
    return count;
}

bool sk_row_list_push(struct sk_row_list *self, uint32_t row)
{
    if (self->count == self->capacity) {
        uint32_t capacity = self->capacity == 0 ? 64 : self->capacity * 2;
        uint32_t *rows = realloc(self->rows, capacity * sizeof *rows);
        if (rows == NULL)
            return false;
        self->rows = rows;
        self->capacity = capacity;
    }
    self->rows[self->count++] = row;
    return true;
}

void sk_links_set(struct sk_index *self, uint32_t row, const uint32_t *rows, uint32_t count)
{
    uint32_t old[SK_DEGREE_MAX];
    const uint32_t old_count = sk_links_get(self, row, old);
    _Atomic uint32_t *links = sk_links_of(self, row);
    for (uint32_t i = 0; i < count; i++) {
        (*sk_in_degree_of(self, rows[i]))++;
        atomic_store_explicit(&links[i], rows[i], memory_order_release);
    }
    for (uint32_t i = count; i < self->links_stride && i < self->degree; i++)
        atomic_store_explicit(&links[i], SK_NO_ROW, memory_order_release);
    self->wants_walk = self->wants_walk || old_count > 0;
    for (uint32_t i = 0; i < old_count; i++)
        if (--*sk_in_degree_of(self, old[i]) == 0 && sk_state(self, old[i]) == SK_ROW_LIVE)
            self->wants_walk = !sk_row_list_push(&self->orphans, old[i]) || self->wants_walk;
    sk_near_links_changed(self, row);
}

void sk_links_append(struct sk_index *self, uint32_t row, uint32_t at, uint32_t id)
{
    (*sk_in_degree_of(self, id))++;
    atomic_store_explicit(&sk_links_of(self, row)[at], id, memory_order_release);
    sk_near_links_changed(self, row);
}

/* ---- writing ---- */

static enum sk_err check_vector(const struct sk_index *self, const float *vector, float *norm_sq,
                                struct sk_diag *d)
{
    if (!sk_vector_is_finite(vector, self->params.dim))
        return sk_fail_field(d, SK_ERR_INVALID, "vector", "the vector has NaN or infinity in it");
    double exact = self->kernels->dot_f64(vector, vector, self->params.dim);
    if (self->params.metric == SK_METRIC_COSINE) {
        if (!(exact > 0))
            return sk_fail_field(d, SK_ERR_INVALID, "vector",
                                 "a zero vector has no direction for cosine");
        exact = 1;
    }
    if (exact > (double)NORM_SQ_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "vector", "the vector's length %g is over 1e18",
                             sqrt(exact));
    *norm_sq = (float)exact;
    return SK_ERR_OK;
}

static enum sk_err check_row(struct sk_index *self, uint32_t row, struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    if (row >= SK_INDEX_ROWS_MAX || row > (uint64_t)row_count + ROWS_AHEAD_MAX)
        return sk_fail(d, SK_ERR_INVALID, "row %u is far beyond the %u rows in use", row,
                       row_count);
    if (row < row_count && sk_state(self, row) != SK_ROW_EMPTY)
        return sk_fail(d, SK_ERR_EXISTS, "row %u is in use", row);
    return SK_ERR_OK;
}

static void count_row(struct sk_index *self, uint32_t row, uint64_t lseq)
{
    if (row >= sk_row_count(self))
        atomic_store_explicit(&self->row_count, row + 1, memory_order_release);
    *sk_lseq_of(self, row) = lseq;
    sk_index_advance(self, lseq);
}

static enum sk_err insert_into_lists(struct sk_index *self, uint32_t row, uint64_t lseq,
                                     const float *vector, struct sk_diag *d)
{
    sk_rotate(self, vector, self->scratch.raw);
    enum sk_err rc = sk_ivf_insert(self, row, lseq, self->scratch.raw, d);
    if (rc != SK_ERR_OK)
        return rc;
    count_row(self, row, lseq);
    atomic_fetch_add_explicit(&self->live_count, 1, memory_order_relaxed);
    return SK_ERR_OK;
}

enum sk_err sk_index_insert(struct sk_index *self, uint32_t row, uint64_t lseq, const float *vector,
                            struct sk_diag *d)
{
    float norm_sq;
    enum sk_err rc = check_row(self, row, d);
    if (rc == SK_ERR_OK)
        rc = check_vector(self, vector, &norm_sq, d);
    if (rc == SK_ERR_OK)
        rc = sk_rows_commit(self, row + 1, d);
    if (rc == SK_ERR_OK)
        rc = sk_delta_reserve(self, sk_delta_insert_bytes_max(self), d);
    if (rc == SK_ERR_OK && self->ivf != NULL)
        return insert_into_lists(self, row, lseq, vector, d);
    if (rc != SK_ERR_OK)
        return rc;
    /* the next codes while they are made, the old ones while a reader may still walk on them */
    struct sk_generation *const others[] = {self->next, self->old};
    for (unsigned i = 0; i < SK_COUNT_OF(others); i++)
        if (others[i] != NULL && !sk_generation_commit(self, others[i], row + 1))
            return sk_fail(d, SK_ERR_NOMEM, "the system has no memory for row %u", row);
    sk_rotate(self, vector, self->scratch.raw);
    sk_mean_add(self, self->scratch.raw);
    if (norm_sq > self->max_norm_sq)
        self->max_norm_sq = norm_sq;
    for (unsigned i = 0; i < SK_COUNT_OF(others); i++)
        if (others[i] != NULL) {
            memcpy(self->scratch.prepared.vector, self->scratch.raw,
                   self->padded * sizeof *self->scratch.raw);
            sk_encode(self, others[i], row, self->scratch.prepared.vector, norm_sq, 0);
        }
    sk_encode(self, sk_generation_now(self), row, self->scratch.raw, norm_sq, 0);
    if (!sk_has_planes(sk_generation_now(self)))
        sk_bare_hold(self, sk_generation_now(self), row, self->scratch.raw);
    if (self->params.kind == SK_INDEX_HNSW) {
        *sk_lseq_of(self, row) = lseq;
        rc = sk_graph_link(self, row, d);
        if (rc != SK_ERR_OK)
            return rc;
        count_row(self, row, lseq);
        sk_entries_consider(self, row);
    } else {
        *sk_lseq_of(self, row) = lseq;
        sk_state_set(self, row, SK_ROW_LIVE);
        count_row(self, row, lseq);
        sk_delta_insert(self, row);
    }
    atomic_fetch_add_explicit(&self->live_count, 1, memory_order_relaxed);
    if (self->orphans.count > 0 && sk_attach_orphans(self, NULL) != SK_ERR_OK)
        self->wants_walk = true; /* the row itself is in */
    return SK_ERR_OK;
}

enum sk_err sk_index_insert_many(struct sk_index *self, const uint32_t *rows, const uint64_t *lseqs,
                                 const float *vectors, uint32_t count, uint32_t *done_count,
                                 struct sk_diag *d)
{
    uint32_t done = 0;
    enum sk_err rc = SK_ERR_OK;
    float norm_sq;
    for (uint32_t i = 0; i < count && rc == SK_ERR_OK; i++) {
        rc = check_row(self, rows[i], d);
        if (rc == SK_ERR_OK)
            rc = check_vector(self, vectors + (size_t)i * self->params.dim, &norm_sq, d);
        if (rc != SK_ERR_OK)
            rc = sk_wrap(d, rc, "vector %u of %u", i, count);
    }
    while (done < count && rc == SK_ERR_OK) {
        rc = sk_index_insert(self, rows[done], lseqs[done],
                             vectors + (size_t)done * self->params.dim, d);
        done += rc == SK_ERR_OK;
    }
    if (done_count != NULL)
        *done_count = done;
    return rc;
}

bool sk_index_has(const struct sk_index *self, uint32_t row, uint64_t lseq)
{
    return row < sk_row_count(self) && sk_state(self, row) == SK_ROW_LIVE &&
           *sk_lseq_of(self, row) == lseq;
}

bool sk_index_lseq(const struct sk_index *self, uint32_t row, uint64_t *lseq)
{
    if (row >= sk_row_count(self) || sk_state(self, row) != SK_ROW_LIVE)
        return false;
    *lseq = *sk_lseq_of(self, row);
    return true;
}

bool sk_index_row_is_free(const struct sk_index *self, uint32_t row)
{
    return row >= sk_row_count(self) || sk_state(self, row) == SK_ROW_EMPTY;
}

enum sk_err sk_index_remove(struct sk_index *self, uint32_t row, uint64_t lseq, struct sk_diag *d)
{
    if (!sk_index_has(self, row, lseq))
        return sk_fail(d, SK_ERR_NOT_FOUND, "row %u of life %llu is not in the index", row,
                       (unsigned long long)lseq);
    sk_state_set(self, row, SK_ROW_DEAD);
    atomic_fetch_sub_explicit(&self->live_count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&self->dead_count, 1, memory_order_relaxed);
    if (sk_delta_reserve(self, 16, NULL) == SK_ERR_OK) /* else load_finish finds it gone */
        sk_delta_row(self, false, row);
    return SK_ERR_OK;
}

uint32_t sk_index_reclaim_rows(struct sk_index *self, uint32_t *rows, uint32_t capacity)
{
    if (self->checkpoint.is_running) /* their codes are still being written */
        return 0;
    uint32_t count = self->reclaimed.count < capacity ? self->reclaimed.count : capacity;
    self->reclaimed.count -= count;
    if (count != 0)
        memcpy(rows, self->reclaimed.rows + self->reclaimed.count, count * sizeof *rows);
    return count;
}

uint64_t sk_index_watermark(const struct sk_index *self)
{
    return atomic_load_explicit(&self->watermark, memory_order_relaxed);
}

void sk_index_advance(struct sk_index *self, uint64_t lseq)
{
    if (lseq > sk_index_watermark(self))
        atomic_store_explicit(&self->watermark, lseq, memory_order_relaxed);
}

void sk_index_get_stats(const struct sk_index *self, struct sk_index_stats *out)
{
    const uint32_t row_count = sk_row_count(self);
    *out = (struct sk_index_stats){
        .rows = atomic_load_explicit(&self->live_count, memory_order_relaxed),
        .tombstones = atomic_load_explicit(&self->dead_count, memory_order_relaxed),
        .memory_bytes = atomic_load_explicit(&self->memory_bytes, memory_order_relaxed),
        .image_bytes = sk_image_bytes(self),
        .watermark_lseq = sk_index_watermark(self),
        .generation = atomic_load_explicit(&self->generation_number, memory_order_relaxed),
        .row_bytes = self->row_bytes,
        .is_flat = self->params.kind == SK_INDEX_FLAT ||
                   (self->ivf != NULL
                        ? atomic_load_explicit(&self->ivf->list_count, memory_order_relaxed) == 0
                        : row_count < self->params.flat_below),
        .lists = self->ivf != NULL
                     ? atomic_load_explicit(&self->ivf->list_count, memory_order_relaxed)
                     : 0,
        .buffered = self->ivf != NULL
                        ? atomic_load_explicit(&self->ivf->buffer_count, memory_order_relaxed)
                        : 0,
        .recall_target = atomic_load_explicit(&self->recall->measured_target, memory_order_relaxed),
        .recall_measured = atomic_load_explicit(&self->recall->measured, memory_order_relaxed),
        .recall_ef_mean = atomic_load_explicit(&self->recall->level_mean, memory_order_relaxed),
        .recall_samples = atomic_load_explicit(&self->recall->real_count, memory_order_relaxed),
        .is_sweeping = atomic_load_explicit(&self->is_sweeping, memory_order_relaxed),
        .isa = self->kernels->isa,
    };
}
