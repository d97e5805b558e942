/* The log of changes. A chunk is a header (magic, size, hash) and records, little-endian:
 *   1 row u32, lseq u64, count u8, links u32 x count     a row came
 *   2 row u32, id u32                                    one edge was added at the end
 *   3 row u32, mask (a bit for each link), id u32        links that stay, and one more (or none:
 * all ones) 4 row u32, count u8, links u32 x count               the whole list 5 row u32 removed
 *   6 row u32                                            let go of
 *   7 number u32, padded x float                         new centre of the codes
 *   8 at u8, row u32                                     entry point
 *   9 lseq u64                                           watermark
 *   10 and above: ivf_delta.c */
#include "actors/shard-worker/index/ivf.h"

#include <stdlib.h>

enum { MAGIC = 0x31444B53, ROWS_AHEAD_MAX = 65536 };
enum record { INSERT = 1, APPEND, KEEP, LIST, REMOVE, RELEASE, MEAN, ENTRY, WATERMARK };
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "images and deltas are little-endian");

uint64_t sk_hash(uint64_t seed, const void *bytes, size_t size)
{
    const uint64_t p1 = 0x9E3779B185EBCA87U, p2 = 0xC2B2AE3D27D4EB4FU;
    uint64_t lanes[4] = {seed + p1, seed ^ p2, seed * p1 + 1, ~seed};
    const uint8_t *at = bytes;
    size_t left = size;
    for (; left >= 32; left -= 32, at += 32)
        for (unsigned lane = 0; lane < 4; lane++) {
            uint64_t word;
            memcpy(&word, at + 8 * lane, sizeof word);
            lanes[lane] = (lanes[lane] ^ word) * p2;
            lanes[lane] ^= lanes[lane] >> 29;
        }
    uint8_t rest[32] = {0};
    if (left > 0)
        memcpy(rest, at, left);
    uint64_t hash = size * p1;
    for (unsigned lane = 0; lane < 4; lane++) {
        uint64_t word;
        memcpy(&word, rest + 8 * lane, sizeof word);
        hash = (hash ^ lanes[lane] ^ word * p1) * p2;
        hash ^= hash >> 32;
    }
    return hash;
}

/* ---- writing ---- */

size_t sk_delta_insert_bytes_max(const struct sk_index *self)
{
    return 256 + (size_t)self->degree * (32 + SK_DEGREE_MAX / 8 + 16);
}

enum sk_err sk_delta_reserve(struct sk_index *self, size_t bytes, struct sk_diag *d)
{
    if (self->params.is_unlogged)
        return SK_ERR_OK;
    if (self->delta_was_taken) {
        self->delta_size = 0;
        self->delta_was_taken = false;
    }
    if (self->delta_size == 0)
        bytes += SK_DELTA_HEADER_BYTES;
    bytes += 16; /* the watermark */
    if (self->delta_size + bytes > self->delta_capacity) {
        size_t capacity = (self->delta_size + bytes) * 2;
        uint8_t *grown = realloc(self->delta, capacity);
        if (grown == NULL)
            return sk_fail(d, SK_ERR_NOMEM, "no memory for %zu bytes of changes", capacity);
        self->delta = grown;
        self->delta_capacity = capacity;
    }
    if (self->delta_size == 0)
        self->delta_size = SK_DELTA_HEADER_BYTES;
    return SK_ERR_OK;
}

void sk_delta_put(struct sk_index *self, const void *bytes, size_t size)
{
    SK_CHECK(self->delta_size + size <= self->delta_capacity);
    memcpy(self->delta + self->delta_size, bytes, size);
    self->delta_size += size;
}

static void put_u8(struct sk_index *self, unsigned value)
{
    uint8_t byte = (uint8_t)value;
    sk_delta_put(self, &byte, 1);
}

static void put_u32(struct sk_index *self, uint32_t value)
{
    sk_delta_put(self, &value, sizeof value);
}

static void put_links(struct sk_index *self, uint32_t row)
{
    uint32_t list[SK_DEGREE_MAX];
    uint32_t count = sk_links_get(self, row, list);
    put_u8(self, count);
    sk_delta_put(self, list, count * sizeof *list);
}

void sk_delta_insert(struct sk_index *self, uint32_t row)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, INSERT);
    put_u32(self, row);
    sk_delta_put(self, sk_lseq_of(self, row), sizeof(uint64_t));
    put_links(self, row);
}

void sk_delta_append(struct sk_index *self, uint32_t row, uint32_t id)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, APPEND);
    put_u32(self, row);
    put_u32(self, id);
}

void sk_delta_keep(struct sk_index *self, uint32_t row, const uint8_t *mask, uint32_t id)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, KEEP);
    put_u32(self, row);
    sk_delta_put(self, mask, (self->degree + 7) / 8);
    put_u32(self, id);
}

void sk_delta_list(struct sk_index *self, uint32_t row)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, LIST);
    put_u32(self, row);
    put_links(self, row);
}

void sk_delta_row(struct sk_index *self, bool is_free, uint32_t row)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, is_free ? RELEASE : REMOVE);
    put_u32(self, row);
}

void sk_delta_mean(struct sk_index *self, uint32_t number, const float *mean)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, MEAN);
    put_u32(self, number);
    sk_delta_put(self, mean, self->padded * sizeof *mean);
}

void sk_delta_entry(struct sk_index *self, uint32_t at, uint32_t row)
{
    if (self->params.is_unlogged)
        return;
    put_u8(self, ENTRY);
    put_u8(self, at);
    put_u32(self, row);
}

uint64_t sk_index_delta_pending_bytes(const struct sk_index *self)
{
    return self->delta_was_taken || self->delta_size == 0 ? 0 : self->delta_size;
}

uint64_t sk_index_delta_log_bytes(const struct sk_index *self)
{
    return self->delta_log_bytes;
}

void sk_index_take_delta(struct sk_index *self, struct sk_span *delta, uint64_t *watermark_lseq)
{
    *watermark_lseq = sk_index_watermark(self);
    *delta = sk_span_of("", 0);
    if (sk_index_delta_pending_bytes(self) == 0)
        return;
    put_u8(self, WATERMARK); /* its room is part of every reserve */
    sk_delta_put(self, watermark_lseq, sizeof *watermark_lseq);
    const uint32_t magic = MAGIC, size = (uint32_t)(self->delta_size - SK_DELTA_HEADER_BYTES);
    const uint64_t hash = sk_hash(MAGIC, self->delta + SK_DELTA_HEADER_BYTES, size);
    memcpy(self->delta, &magic, sizeof magic);
    memcpy(self->delta + 4, &size, sizeof size);
    memcpy(self->delta + 8, &hash, sizeof hash);
    self->delta_log_bytes += self->delta_size;
    self->delta_was_taken = true;
    *delta = sk_span_of(self->delta, self->delta_size);
}

/* ---- reading ---- */

bool sk_delta_get(struct sk_delta_cursor *c, void *out, size_t size)
{
    if (c->left < size)
        return false;
    memcpy(out, c->at, size);
    c->at += size;
    c->left -= size;
    return true;
}

enum sk_err sk_delta_bad(struct sk_delta_cursor *c, const char *what, uint32_t row)
{
    return sk_fail(c->d, SK_ERR_INVALID, "index delta: %s (row %u, %zu bytes before the end)", what,
                   row, c->left);
}

static bool is_in_use(const struct sk_index *self, uint32_t row)
{
    return row < sk_row_count(self) && sk_state(self, row) != SK_ROW_EMPTY;
}

static enum sk_err check_list(struct sk_delta_cursor *c, uint32_t row, const uint32_t *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (list[i] == row || !is_in_use(c->index, list[i]))
            return sk_delta_bad(c, "an edge to a row that is not there, or to itself", row);
        for (uint32_t j = 0; j < i; j++)
            if (list[j] == list[i])
                return sk_delta_bad(c, "an edge twice", row);
    }
    return SK_ERR_OK;
}

static enum sk_err get_list(struct sk_delta_cursor *c, uint32_t row, uint32_t *list, uint32_t *count)
{
    uint8_t count8;
    if (!sk_delta_get(c, &count8, 1) || count8 > c->index->degree || !sk_delta_get(c, list, count8 * sizeof *list))
        return sk_delta_bad(c, "a list that is too long or cut off", row);
    *count = count8;
    return check_list(c, row, list, *count);
}

bool sk_mark_needs_code(struct sk_index *self, uint32_t row)
{
    if (row / 64 >= self->needs_code_words) {
        uint32_t words = (row / 64 + 1) * 2;
        uint64_t *grown = realloc(self->needs_code, words * sizeof *grown);
        if (grown == NULL)
            return false;
        memset(grown + self->needs_code_words, 0, (words - self->needs_code_words) * sizeof *grown);
        self->needs_code = grown;
        self->needs_code_words = words;
    }
    self->needs_code[row / 64] |= 1ULL << row % 64;
    return true;
}

bool sk_mark_need_codes(struct sk_index *self)
{
    bool is_marked = true;
    for (uint32_t row = sk_row_count(self); row-- > 0 && is_marked;)
        if (sk_state(self, row) != SK_ROW_EMPTY)
            is_marked = sk_mark_needs_code(self, row);
    return is_marked;
}

bool sk_needs_code(const struct sk_index *self, uint32_t row)
{
    return row / 64 < self->needs_code_words && (self->needs_code[row / 64] >> row % 64 & 1) != 0;
}

static enum sk_err check_new_row(struct sk_delta_cursor *c, uint32_t row)
{
    if (row >= SK_INDEX_ROWS_MAX || row > (uint64_t)sk_row_count(c->index) + ROWS_AHEAD_MAX ||
        is_in_use(c->index, row))
        return sk_delta_bad(c, "a row that is in use or far beyond the others", row);
    return SK_ERR_OK;
}

enum sk_err sk_delta_new_row(struct sk_delta_cursor *c, uint32_t row, uint64_t lseq)
{
    struct sk_index *self = c->index;
    enum sk_err rc = check_new_row(c, row);
    if (rc == SK_ERR_OK)
        rc = sk_rows_commit(self, row + 1, c->d);
    if (rc != SK_ERR_OK)
        return rc;
    if (!sk_mark_needs_code(self, row))
        return sk_fail(c->d, SK_ERR_NOMEM, "no memory to replay an index delta");
    if (row >= sk_row_count(self))
        atomic_store(&self->row_count, row + 1);
    *sk_lseq_of(self, row) = lseq;
    sk_state_set(self, row, SK_ROW_LIVE);
    atomic_fetch_add(&self->live_count, 1);
    sk_index_advance(self, lseq);
    return SK_ERR_OK;
}

static enum sk_err apply_insert(struct sk_delta_cursor *c)
{
    struct sk_index *self = c->index;
    uint32_t row, count, list[SK_DEGREE_MAX];
    uint64_t lseq;
    if (self->ivf != NULL)
        return sk_delta_bad(c, "a row without a list", 0);
    if (!sk_delta_get(c, &row, sizeof row) || !sk_delta_get(c, &lseq, sizeof lseq))
        return sk_delta_bad(c, "cut off", 0);
    enum sk_err rc = check_new_row(c, row);
    if (rc == SK_ERR_OK)
        rc = get_list(c, row, list, &count);
    if (rc == SK_ERR_OK)
        rc = sk_delta_new_row(c, row, lseq);
    if (rc == SK_ERR_OK)
        sk_links_set(self, row, list, count);
    return rc;
}

static enum sk_err apply_change(struct sk_delta_cursor *c, enum record record)
{
    struct sk_index *self = c->index;
    uint32_t row, id = SK_NO_ROW, length, count = 0;
    uint32_t list[SK_DEGREE_MAX + 1];
    uint8_t mask[SK_DEGREE_MAX / 8] = {0};
    if (!sk_delta_get(c, &row, sizeof row) || !is_in_use(self, row))
        return sk_delta_bad(c, "a change of a row that is not there", 0);
    if (record == LIST) {
        enum sk_err rc = get_list(c, row, list, &count);
        if (rc == SK_ERR_OK)
            sk_links_set(self, row, list, count);
        return rc;
    }
    length = sk_links_get(self, row, list);
    if (record == KEEP && !sk_delta_get(c, mask, (self->degree + 7) / 8))
        return sk_delta_bad(c, "cut off", row);
    if (!sk_delta_get(c, &id, sizeof id))
        return sk_delta_bad(c, "cut off", row);
    for (uint32_t i = 0; i < length; i++)
        if (record == APPEND || (mask[i / 8] >> i % 8 & 1) != 0)
            list[count++] = list[i];
    for (uint32_t i = length; i < self->degree; i++)
        if ((mask[i / 8] >> i % 8 & 1) != 0)
            return sk_delta_bad(c, "keeps an edge that is not there", row);
    if (record == APPEND || id != SK_NO_ROW)
        list[count++] = id;
    if (count > self->degree)
        return sk_delta_bad(c, "one edge too many", row);
    enum sk_err rc = check_list(c, row, list, count);
    if (rc == SK_ERR_OK)
        sk_links_set(self, row, list, count);
    return rc;
}

static enum sk_err apply_row(struct sk_delta_cursor *c, enum record record)
{
    struct sk_index *self = c->index;
    uint32_t row;
    if (!sk_delta_get(c, &row, sizeof row) || !is_in_use(self, row) ||
        sk_state(self, row) != (record == REMOVE ? SK_ROW_LIVE : SK_ROW_DEAD))
        return sk_delta_bad(c, "removes or lets go of a row that is not there", 0);
    if (record == REMOVE) {
        sk_state_set(self, row, SK_ROW_DEAD);
        atomic_fetch_sub(&self->live_count, 1);
        atomic_fetch_add(&self->dead_count, 1);
        if (self->ivf != NULL)
            sk_ivf_replay_removed(self, row);
        return SK_ERR_OK;
    }
    sk_links_set(self, row, NULL, 0);
    sk_state_set(self, row, SK_ROW_EMPTY);
    if (row / 64 < self->needs_code_words)
        self->needs_code[row / 64] &= ~(1ULL << row % 64);
    atomic_fetch_sub(&self->dead_count, 1);
    return SK_ERR_OK;
}

static enum sk_err apply_mean(struct sk_delta_cursor *c)
{
    struct sk_index *self = c->index;
    float *mean = self->scratch.prepared.vector;
    uint32_t number;
    if (self->ivf != NULL)
        return sk_delta_bad(c, "a centre of codes that this index does not have", 0);
    if (!sk_delta_get(c, &number, sizeof number) || !sk_delta_get(c, mean, self->padded * sizeof *mean) ||
        !sk_vector_is_finite(mean, self->padded) || number <= sk_generation_now(self)->number)
        return sk_delta_bad(c, "a centre that makes no sense", 0);
    for (uint32_t i = 0; i < self->padded; i++)
        if (mean[i] > 1e18F || mean[i] < -1e18F)
            return sk_delta_bad(c, "a centre that makes no sense", 0);
    return sk_renew_now(self, number, mean, c->d);
}

static enum sk_err apply_record(struct sk_delta_cursor *c)
{
    uint8_t record, at;
    uint32_t row;
    uint64_t lseq;
    if (!sk_delta_get(c, &record, 1))
        return sk_delta_bad(c, "cut off", 0);
    switch (record) {
    case INSERT:
        return apply_insert(c);
    case APPEND:
    case KEEP:
    case LIST:
        return apply_change(c, (enum record)record);
    case REMOVE:
    case RELEASE:
        return apply_row(c, (enum record)record);
    case MEAN:
        return apply_mean(c);
    case ENTRY:
        if (!sk_delta_get(c, &at, 1) || !sk_delta_get(c, &row, sizeof row) || at >= SK_ENTRY_COUNT ||
            (row != SK_NO_ROW && !is_in_use(c->index, row)))
            return sk_delta_bad(c, "an entry that is not there", 0);
        atomic_store(&c->index->entries[at], row);
        return SK_ERR_OK;
    case WATERMARK:
        if (!sk_delta_get(c, &lseq, sizeof lseq))
            return sk_delta_bad(c, "cut off", 0);
        sk_index_advance(c->index, lseq);
        return SK_ERR_OK;
    default:
        return sk_ivf_apply_record(c, record);
    }
}

enum sk_err sk_index_apply_delta(struct sk_index *self, struct sk_span delta, struct sk_diag *d)
{
    struct sk_delta_cursor c = {self, delta.bytes, delta.size, d};
    uint32_t magic, size;
    uint64_t hash;
    self->is_loading = true;
    if (!sk_delta_get(&c, &magic, sizeof magic) || !sk_delta_get(&c, &size, sizeof size) ||
        !sk_delta_get(&c, &hash, sizeof hash) || magic != MAGIC || size != c.left ||
        hash != sk_hash(MAGIC, c.at, c.left))
        return sk_fail(d, SK_ERR_INVALID, "index delta of %zu bytes: header or checksum is wrong",
                       delta.size);
    enum sk_err rc = SK_ERR_OK;
    while (c.left > 0 && rc == SK_ERR_OK)
        rc = apply_record(&c);
    if (rc == SK_ERR_OK)
        self->delta_log_bytes += delta.size;
    self->orphans.count = 0; /* found again when the load is finished */
    return rc;
}

/* ---- the end of a load ---- */

static bool encode_from_source(struct sk_index *self, uint32_t row)
{
    float *vector = self->scratch.prepared.vector;
    if (self->source.fetch == NULL || !self->source.fetch(self->source.impl, row, vector) ||
        !sk_vector_is_finite(vector, self->params.dim))
        return false;
    double norm_sq = self->params.metric == SK_METRIC_COSINE
                         ? 1
                         : self->kernels->dot_f64(vector, vector, self->params.dim);
    if (norm_sq > 1e36)
        return false;
    sk_rotate(self, vector, self->scratch.raw);
    if (self->ivf != NULL)
        return sk_ivf_load_row(self, row, self->scratch.raw, NULL) == SK_ERR_OK;
    sk_encode(self, sk_generation_now(self), row, self->scratch.raw, (float)norm_sq, 0);
    return true;
}

static void make_dead(struct sk_index *self, uint32_t row)
{
    if (sk_state(self, row) != SK_ROW_LIVE)
        return;
    sk_state_set(self, row, SK_ROW_DEAD);
    atomic_fetch_sub(&self->live_count, 1);
    atomic_fetch_add(&self->dead_count, 1);
    if (sk_delta_reserve(self, 16, NULL) == SK_ERR_OK)
        sk_delta_row(self, false, row);
}

/* LIVE, DEAD (a tombstone as usual) or SWEPT (must go before anything else happens). */
static void settle_row(struct sk_index *self, uint32_t row, const struct sk_index_live *live)
{
    uint64_t lseq = 0;
    bool is_used = live != NULL && live->lseq_of(live->impl, row, &lseq);
    if (live != NULL && (!is_used || lseq != *sk_lseq_of(self, row)))
        make_dead(self, row);
    if (sk_needs_code(self, row) && sk_state(self, row) == SK_ROW_LIVE &&
        !encode_from_source(self, row))
        make_dead(self, row);
    if (sk_state(self, row) == SK_ROW_DEAD && (is_used || sk_needs_code(self, row)))
        sk_state_set(self, row, SK_ROW_SWEPT);
}

/* A log that ends inside a sweep leaves tombstones with edges to rows that are gone. */
static void drop_edges_to_nothing(struct sk_index *self)
{
    uint32_t list[SK_DEGREE_MAX];
    for (uint32_t row = 0; row < sk_row_count(self); row++) {
        uint32_t length = sk_links_get(self, row, list), kept = 0;
        for (uint32_t i = 0; i < length; i++)
            if (sk_state(self, list[i]) != SK_ROW_EMPTY)
                list[kept++] = list[i];
        if (kept < length) {
            sk_links_set(self, row, list, kept);
            if (sk_delta_reserve(self, sk_delta_insert_bytes_max(self), NULL) == SK_ERR_OK)
                sk_delta_list(self, row);
        }
    }
}

static void settle_numbers(struct sk_index *self)
{
    const struct sk_generation *generation = sk_generation_now(self);
    const uint32_t row_count = sk_row_count(self);
    self->max_norm_sq = 0;
    if (self->ivf != NULL)
        return;
    for (uint32_t row = 0; row < row_count; row++)
        if (sk_state(self, row) != SK_ROW_EMPTY) {
            float norm_sq = sk_raw_norm_sq_of(generation, row);
            if (norm_sq > self->max_norm_sq)
                self->max_norm_sq = norm_sq;
        }
    self->sum_count = atomic_load(&self->live_count);
    for (uint32_t i = 0; i < self->padded; i++)
        self->sum[i] = (double)generation->mean[i] * (double)self->sum_count;
    if (self->mean_check_at < self->sum_count * 2)
        self->mean_check_at = self->sum_count * 2;
}

static void settle_entries(struct sk_index *self)
{
    if (self->ivf != NULL)
        return;
    sk_entries_mend(self);
    if (atomic_load(&self->entries[0]) == SK_NO_ROW && atomic_load(&self->live_count) > 0)
        sk_entries_renew(self);
    self->orphans.count = 0;
    for (uint32_t row = 0; row < sk_row_count(self) && self->degree > 0; row++)
        if (sk_state(self, row) == SK_ROW_LIVE && *sk_in_degree_of(self, row) == 0 &&
            row != atomic_load(&self->entries[0]))
            (void)sk_row_list_push(&self->orphans, row);
}

enum sk_err sk_index_load_finish(struct sk_index *self, const struct sk_index_live *live,
                                 struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    uint32_t swept = 0;
    uint64_t lseq;
    if (self->ivf != NULL) {
        enum sk_err rc = sk_ivf_load_drop(self, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    for (uint32_t row = 0; row < row_count; row++)
        if (sk_state(self, row) != SK_ROW_EMPTY) {
            settle_row(self, row, live);
            swept += sk_state(self, row) == SK_ROW_SWEPT;
        }
    drop_edges_to_nothing(self);
    settle_numbers(self);
    settle_entries(self);
    if (swept > 0) {
        enum sk_err rc = sk_sweep_now(self, d);
        if (rc != SK_ERR_OK)
            return sk_wrap(d, rc, "letting go of %u rows of a loaded index", swept);
        /* Numbers that the store uses already are not given back to it. */
        uint32_t kept = 0;
        for (uint32_t i = 0; i < self->reclaimed.count; i++)
            if (live == NULL || !live->lseq_of(live->impl, self->reclaimed.rows[i], &lseq))
                self->reclaimed.rows[kept++] = self->reclaimed.rows[i];
        self->reclaimed.count = kept;
        settle_entries(self);
    }
    if (self->ivf != NULL)
        sk_ivf_load_end(self);
    free(self->needs_code);
    self->needs_code = NULL;
    self->needs_code_words = 0;
    self->is_loading = false;
    self->wants_walk = true;
    return SK_ERR_OK;
}
