/* Rows of neighbours' signs: making them from links and codes, and keeping them as links change. */
#include "actors/shard-worker/index/near.h"

#include <math.h>
#include <stdlib.h>

enum {
    SLICE_ROWS = 64,
    COLUMNS_MAX = 8, /* more of them at once: the whole row */
    ADD_MAX = 32767,
    FACTOR_MAX = 255,
    LANES = 16,
};
/* Room that later edges may be longer than the longest of now. */
static const float ADD_ROOM = 2.0F, FACTOR_ROOM = 1.25F;

/* One edge on its way into a row. */
struct edge {
    float add, factor;
    const uint8_t *signs; /* padded / 8 bytes */
};

static bool is_profile_on(const struct sk_index *self)
{
    return self->params.profile == SK_INDEX_SPEED && self->params.kind == SK_INDEX_HNSW &&
           self->code_bytes > 0;
}

bool sk_near_init(struct sk_index *self)
{
    struct sk_near *near = &self->near;
    if (!is_profile_on(self))
        return true;
    near->block_count = (self->degree + SK_NEAR_BLOCK - 1) / SK_NEAR_BLOCK;
    near->row_bytes = sk_near_row_bytes(self);
    near->node = malloc(self->padded * sizeof *near->node);
    near->other = malloc(self->padded * sizeof *near->other);
    near->signs = malloc((size_t)near->block_count * SK_NEAR_BLOCK * self->padded / 8);
    near->draft = aligned_alloc(64, near->row_bytes);
    return near->node != NULL && near->other != NULL && near->signs != NULL &&
           near->draft != NULL &&
           sk_region_reserve(&near->rows, (size_t)self->rows_max * near->row_bytes);
}

void sk_near_deinit(struct sk_index *self)
{
    struct sk_near *near = &self->near;
    sk_region_release(&near->rows);
    free(near->node);
    free(near->other);
    free(near->signs);
    free(near->draft);
    *near = (struct sk_near){.node = NULL};
}

uint32_t sk_near_row_bytes(const struct sk_index *self)
{
    return is_profile_on(self) ? (self->degree + SK_NEAR_BLOCK - 1) / SK_NEAR_BLOCK *
                                     sk_near_block_bytes(self)
                               : 0;
}

size_t sk_near_growth(const struct sk_index *self, uint32_t row_count)
{
    return self->near.rows.committed == 0
               ? 0
               : sk_region_growth(&self->near.rows, (size_t)row_count * self->near.row_bytes);
}

bool sk_near_commit(struct sk_index *self, uint32_t row_count)
{
    struct sk_near *near = &self->near;
    const size_t before = near->rows.committed;
    if (!sk_region_commit(&near->rows, (size_t)row_count * near->row_bytes))
        return false;
    atomic_fetch_add_explicit(&self->memory_bytes, near->rows.committed - before,
                              memory_order_relaxed);
    if (row_count > atomic_load_explicit(&near->row_count, memory_order_relaxed))
        atomic_store_explicit(&near->row_count, row_count, memory_order_release);
    return true;
}

/* ---- edges ---- */

/* near->node is decoded. The sums are added in lanes, so that they are the same on every machine. */
static struct edge edge_to(struct sk_index *self, uint32_t other, uint8_t *signs)
{
    struct sk_near *near = &self->near;
    const float *u = near->node, *v = near->other;
    float lengths[LANES] = {0}, squares[LANES] = {0}, dots[LANES] = {0};
    sk_decode(self, sk_generation_now(self), other, near->other);
    for (uint32_t i = 0; i < self->padded; i += LANES)
        for (uint32_t lane = 0; lane < LANES; lane++) {
            const float difference = v[i + lane] - u[i + lane];
            lengths[lane] += fabsf(difference);
            squares[lane] += difference * difference;
            dots[lane] += difference >= 0 ? u[i + lane] : -u[i + lane];
        }
    for (uint32_t half = LANES / 2; half > 0; half /= 2)
        for (uint32_t lane = 0; lane < half; lane++) {
            lengths[lane] += lengths[lane + half];
            squares[lane] += squares[lane + half];
            dots[lane] += dots[lane + half];
        }
    self->kernels->signs_f32(v, u, self->padded, signs);
    const float share = lengths[0] > 0 ? squares[0] / lengths[0] : 0;
    return (struct edge){
        .add = self->params.metric == SK_METRIC_IP ? 0 : squares[0] + 2 * share * dots[0],
        .factor = 2 * share,
        .signs = signs};
}

/* ---- parts of a block ---- */

static struct sk_near_header *header_of(uint8_t *block)
{
    return (struct sk_near_header *)(void *)block;
}
static _Atomic int16_t *adds_of(uint8_t *block)
{
    return (_Atomic int16_t *)(void *)(block + SK_NEAR_ADDS_AT);
}
static _Atomic uint8_t *factors_of(uint8_t *block)
{
    return (_Atomic uint8_t *)(block + SK_NEAR_FACTORS_AT);
}
static _Atomic uint32_t *ids_of(uint8_t *block)
{
    return (_Atomic uint32_t *)(void *)(block + SK_NEAR_IDS_AT);
}

/* False when the edge is too long for the block's scales. */
static bool edge_fits(uint8_t *block, const struct edge *edge)
{
    const struct sk_near_header *header = header_of(block);
    const float add_scale = atomic_load_explicit(&header->add_scale, memory_order_relaxed);
    const float factor_scale = atomic_load_explicit(&header->factor_scale, memory_order_relaxed);
    return fabsf(edge->add) <= add_scale * ADD_MAX && edge->factor <= factor_scale * FACTOR_MAX;
}

static void edge_put(const struct sk_index *self, uint8_t *block, uint32_t column, uint32_t id,
                     const struct edge *edge)
{
    const struct sk_near_header *header = header_of(block);
    const float add_scale = atomic_load_explicit(&header->add_scale, memory_order_relaxed);
    const float factor_scale = atomic_load_explicit(&header->factor_scale, memory_order_relaxed);
    const long add = add_scale > 0 ? lrintf(edge->add / add_scale) : 0;
    const long factor = factor_scale > 0 ? lrintf(edge->factor / factor_scale) : 0;
    _Atomic uint8_t *signs = (_Atomic uint8_t *)(block + SK_NEAR_FIXED_BYTES) + column;
    atomic_store_explicit(&adds_of(block)[column], (int16_t)add, memory_order_relaxed);
    atomic_store_explicit(&factors_of(block)[column], (uint8_t)factor, memory_order_relaxed);
    atomic_store_explicit(&ids_of(block)[column], id, memory_order_relaxed);
    for (uint32_t i = 0; i < self->padded / 8; i++)
        atomic_store_explicit(&signs[(size_t)i * SK_NEAR_BLOCK], edge->signs[i],
                              memory_order_relaxed);
}

/* ---- rows ---- */

static void write_begin(uint8_t *row)
{
    /* an exchange: nothing that follows may be seen before it */
    const uint32_t sequence =
        atomic_load_explicit(&header_of(row)->sequence, memory_order_relaxed);
    (void)atomic_exchange_explicit(&header_of(row)->sequence, sequence + 1, memory_order_acq_rel);
}

static void write_end(uint8_t *row)
{
    const uint32_t sequence =
        atomic_load_explicit(&header_of(row)->sequence, memory_order_relaxed);
    atomic_store_explicit(&header_of(row)->sequence, sequence + 1, memory_order_release);
}

static void draft_block(struct sk_index *self, uint8_t *block, const uint32_t *ids, uint32_t count)
{
    struct sk_near *near = &self->near;
    struct edge edges[SK_NEAR_BLOCK];
    float add_max = 0, factor_max = 0;
    for (uint32_t k = 0; k < count; k++) {
        edges[k] = edge_to(self, ids[k], near->signs + (size_t)k * self->padded / 8);
        add_max = fmaxf(add_max, fabsf(edges[k].add));
        factor_max = fmaxf(factor_max, edges[k].factor);
    }
    struct sk_near_header *header = header_of(block);
    atomic_store_explicit(&header->count, count, memory_order_relaxed);
    atomic_store_explicit(&header->add_scale, add_max * ADD_ROOM / ADD_MAX, memory_order_relaxed);
    atomic_store_explicit(&header->factor_scale, factor_max * FACTOR_ROOM / FACTOR_MAX,
                          memory_order_relaxed);
    for (uint32_t k = 0; k < count; k++)
        edge_put(self, block, k, ids[k], &edges[k]);
}

/* The whole row from its links. */
static void derive(struct sk_index *self, uint32_t row)
{
    struct sk_near *near = &self->near;
    uint32_t list[SK_DEGREE_MAX];
    const uint32_t length = sk_links_get(self, row, list), block_bytes = sk_near_block_bytes(self);
    memset(near->draft, 0, near->row_bytes);
    sk_decode(self, sk_generation_now(self), row, near->node);
    for (uint32_t at = 0; at < length; at += SK_NEAR_BLOCK)
        draft_block(self, near->draft + (size_t)(at / SK_NEAR_BLOCK) * block_bytes, list + at,
                    length - at < SK_NEAR_BLOCK ? length - at : SK_NEAR_BLOCK);
    uint8_t *to = sk_near_row(self, row);
    write_begin(to);
    atomic_store_explicit(&header_of(to)->generation, sk_generation_now(self)->number,
                          memory_order_relaxed);
    for (size_t at = 8; at < near->row_bytes; at += 8) { /* behind sequence and generation */
        uint64_t word;
        memcpy(&word, near->draft + at, sizeof word);
        atomic_store_explicit((_Atomic uint64_t *)(void *)(to + at), word, memory_order_relaxed);
    }
    write_end(to);
}

/* ---- links that change ---- */

/* Columns of a row whose ids the list lacks, and ids of the list that have no column. */
struct change {
    uint32_t columns[COLUMNS_MAX], ids[COLUMNS_MAX];
    uint32_t column_count, id_count;
};

static bool has(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* False when they are too many. */
static bool compare(struct sk_index *self, uint8_t *row, const uint32_t *list, uint32_t length,
                    struct change *out)
{
    uint32_t there[SK_DEGREE_MAX], count = 0;
    *out = (struct change){.column_count = 0};
    for (uint32_t b = 0; b < self->near.block_count; b++) {
        uint8_t *block = row + (size_t)b * sk_near_block_bytes(self);
        const uint32_t in_block =
            atomic_load_explicit(&header_of(block)->count, memory_order_relaxed);
        for (uint32_t k = 0; k < in_block; k++)
            there[count++] = atomic_load_explicit(&ids_of(block)[k], memory_order_relaxed);
    }
    if (length < count)
        return false;
    for (uint32_t k = 0; k < count; k++)
        if (!has(list, length, there[k])) {
            if (out->column_count == COLUMNS_MAX)
                return false;
            out->columns[out->column_count++] = k;
        }
    for (uint32_t i = 0; i < length; i++)
        if (!has(there, count, list[i])) {
            if (out->id_count == COLUMNS_MAX)
                return false;
            out->ids[out->id_count++] = list[i];
        }
    while (out->column_count < out->id_count) /* the list has grown */
        out->columns[out->column_count++] = count++;
    return out->column_count == out->id_count;
}

void sk_near_links_changed(struct sk_index *self, uint32_t row)
{
    struct sk_near *near = &self->near;
    if (self->is_loading || row >= atomic_load_explicit(&near->row_count, memory_order_relaxed))
        return;
    uint8_t *to = sk_near_row(self, row);
    uint32_t list[SK_DEGREE_MAX];
    struct change change;
    struct edge edges[COLUMNS_MAX];
    const uint32_t length = sk_links_get(self, row, list), block_bytes = sk_near_block_bytes(self);
    if (atomic_load_explicit(&header_of(to)->generation, memory_order_relaxed) !=
        sk_generation_now(self)->number) {
        if (row < near->cursor) /* else it is made when the cursor comes by */
            derive(self, row);
        return;
    }
    bool fits = compare(self, to, list, length, &change);
    if (fits && change.id_count > 0)
        sk_decode(self, sk_generation_now(self), row, near->node);
    for (uint32_t i = 0; i < change.id_count && fits; i++) {
        edges[i] = edge_to(self, change.ids[i], near->signs + (size_t)i * self->padded / 8);
        fits = edge_fits(to + (size_t)(change.columns[i] / SK_NEAR_BLOCK) * block_bytes, &edges[i]);
    }
    if (!fits) {
        derive(self, row);
        return;
    }
    if (change.id_count == 0)
        return;
    write_begin(to);
    for (uint32_t i = 0; i < change.id_count; i++) {
        const uint32_t column = change.columns[i] % SK_NEAR_BLOCK;
        uint8_t *block = to + (size_t)(change.columns[i] / SK_NEAR_BLOCK) * block_bytes;
        edge_put(self, block, column, change.ids[i], &edges[i]);
        if (column >= atomic_load_explicit(&header_of(block)->count, memory_order_relaxed))
            atomic_store_explicit(&header_of(block)->count, column + 1, memory_order_relaxed);
    }
    write_end(to);
}

/* ---- behind ---- */

/* Without memory for the rows the walks go on by the 4-bit codes. */
static bool begin(struct sk_index *self, uint32_t row_count)
{
    const size_t growth =
        sk_region_growth(&self->near.rows, (size_t)row_count * self->near.row_bytes);
    const uint64_t used = atomic_load_explicit(&self->memory_bytes, memory_order_relaxed);
    if (self->params.memory_bytes_max > 0 && used + growth > self->params.memory_bytes_max)
        return false;
    return sk_near_commit(self, row_count);
}

bool sk_near_has_work(const struct sk_index *self)
{
    const uint32_t row_count = sk_row_count(self);
    return is_profile_on(self) && !self->is_loading && !self->near.is_refused &&
           row_count >= self->params.flat_below && self->near.cursor < row_count;
}

void sk_near_slice(struct sk_index *self)
{
    struct sk_near *near = &self->near;
    const uint32_t row_count = sk_row_count(self);
    if (row_count > atomic_load_explicit(&near->row_count, memory_order_relaxed) &&
        !begin(self, row_count)) {
        near->is_refused = true;
        return;
    }
    for (unsigned n = 0; n < SLICE_ROWS && near->cursor < row_count; n++, near->cursor++)
        if (sk_state(self, near->cursor) != SK_ROW_EMPTY &&
            atomic_load_explicit(&header_of(sk_near_row(self, near->cursor))->generation,
                                 memory_order_relaxed) != sk_generation_now(self)->number)
            derive(self, near->cursor);
}

void sk_near_restart(struct sk_index *self)
{
    self->near.cursor = 0;
    self->near.is_refused = false;
}

/* ---- checking ---- */

enum sk_err sk_near_check(struct sk_index *self, struct sk_diag *d)
{
    struct sk_near *near = &self->near;
    uint32_t list[SK_DEGREE_MAX];
    const uint32_t row_count = atomic_load_explicit(&near->row_count, memory_order_relaxed);
    for (uint32_t row = 0; row < row_count; row++) {
        uint8_t *at = sk_near_row(self, row);
        const uint32_t length = sk_links_get(self, row, list);
        uint32_t found = 0;
        if (sk_state(self, row) == SK_ROW_EMPTY ||
            atomic_load_explicit(&header_of(at)->generation, memory_order_relaxed) !=
                sk_generation_now(self)->number) {
            if (sk_state(self, row) != SK_ROW_EMPTY && row < near->cursor)
                return sk_fail(d, SK_ERR_INTERNAL, "row %u has no neighbour row", row);
            continue;
        }
        sk_decode(self, sk_generation_now(self), row, near->node);
        for (uint32_t b = 0; b < near->block_count; b++) {
            uint8_t *block = at + (size_t)b * sk_near_block_bytes(self);
            const uint32_t count =
                atomic_load_explicit(&header_of(block)->count, memory_order_relaxed);
            memcpy(near->draft, block, sk_near_block_bytes(self));
            for (uint32_t k = 0; k < count; k++, found++) {
                const uint32_t id = atomic_load_explicit(&ids_of(block)[k], memory_order_relaxed);
                if (!has(list, length, id))
                    return sk_fail(d, SK_ERR_INTERNAL, "row %u has the signs of %u, not linked",
                                   row, id);
                const struct edge edge = edge_to(self, id, near->signs);
                edge_put(self, near->draft, k, id, &edge);
            }
            if (memcmp(near->draft, block, sk_near_block_bytes(self)) != 0)
                return sk_fail(d, SK_ERR_INTERNAL, "row %u has other signs than its links", row);
        }
        if (found != length)
            return sk_fail(d, SK_ERR_INTERNAL, "row %u has the signs of %u of %u links", row,
                           found, length);
    }
    return SK_ERR_OK;
}
