/* Complete scans of the 8-bit codes with the certified bound: one query, or 16 at a time. */
#include "actors/shard-worker/index/batch.h"
#include "actors/shard-worker/index/search.h"

#include <stdlib.h>

enum { KEYS_FIRST = 4096, DEADLINE_ROWS = 1024, MANY_MIN = 16 };

static void bounds_add(struct sk_scan *self, float upper)
{
    uint64_t key = sk_float_ordered(upper);
    uint32_t at;
    if (self->count < self->k) {
        at = self->count++;
        while (at > 0 && self->heap[(at - 1) / 2] < key) {
            self->heap[at] = self->heap[(at - 1) / 2];
            at = (at - 1) / 2;
        }
        self->heap[at] = key;
        return;
    }
    if (key >= self->heap[0])
        return;
    at = 0;
    for (uint32_t child = 1; child < self->count; child = 2 * at + 1) {
        if (child + 1 < self->count && self->heap[child + 1] > self->heap[child])
            child++;
        if (self->heap[child] <= key)
            break;
        self->heap[at] = self->heap[child];
        at = child;
    }
    self->heap[at] = key;
}

static bool is_within(const struct sk_search *s, const struct sk_scan *scan, float lower)
{
    return lower <= s->worst &&
           (scan->count < scan->k || sk_float_ordered(lower) <= (uint32_t)scan->heap[0]);
}

/* Drops what has become hopeless; grows the buffer when that did not help. */
static bool make_room(const struct sk_search *s, struct sk_scan *scan)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < scan->key_count; i++)
        if (is_within(s, scan, sk_key_distance(s->scratch->keys[i])))
            s->scratch->keys[kept++] = s->scratch->keys[i];
    scan->key_count = kept;
    return kept < s->scratch->keys_capacity / 2 ||
           sk_scratch_fit(s->scratch, s->row_count, s->query->k, s->scratch->keys_capacity * 2);
}

bool sk_scan_offer(struct sk_search *s, struct sk_scan *scan, uint32_t row, float distance, float error)
{
    if (!is_within(s, scan, distance - error))
        return true;
    if (scan->key_count == s->scratch->keys_capacity && !make_room(s, scan))
        return false;
    bounds_add(scan, distance + error);
    s->scratch->keys[scan->key_count++] = sk_key(distance - error, row);
    return true;
}

float sk_scan_limit(const struct sk_search *s, const struct sk_scan *scan)
{
    if (scan->count < scan->k)
        return s->worst;
    const float kth = sk_float_from_ordered((uint32_t)scan->heap[0]);
    return kth < s->worst ? kth : s->worst;
}

bool sk_scan_begin(struct sk_search *s, struct sk_scan *scan)
{
    if (!sk_scratch_fit(s->scratch, s->row_count, s->query->k, KEYS_FIRST))
        return false;
    *scan = (struct sk_scan){.heap = s->scratch->beam, .k = s->query->k};
    return true;
}

void sk_scan_end(struct sk_search *s, const struct sk_scan *scan)
{
    struct sk_scratch *scratch = s->scratch;
    uint32_t kept = 0;
    float error;
    for (uint32_t i = 0; i < scan->key_count; i++) {
        if (!is_within(s, scan, sk_key_distance(scratch->keys[i])))
            continue;
        uint32_t row = sk_key_row(scratch->keys[i]);
        float distance =
            sk_distance_plane(s->index, s->generation, &scratch->prepared, row, &error);
        scratch->keys[kept++] = sk_key(distance, row);
    }
    sk_select_smallest(scratch->keys, kept, s->result->capacity);
    sk_search_emit(s, kept);
    s->result->is_certain = kept <= s->result->capacity && !s->result->is_truncated;
}

/* ---- one query ---- */

static bool scan_row(struct sk_search *s, struct sk_scan *scan, uint32_t row)
{
    float error;
    if (!sk_search_matches(s, row))
        return true;
    float distance = sk_distance_plane(s->index, s->generation, &s->scratch->prepared, row, &error);
    s->counters.reranks++;
    return sk_scan_offer(s, scan, row, distance, error);
}

static bool scan_should_stop(struct sk_search *s, uint32_t *until_check)
{
    if ((*until_check)-- > 0)
        return false;
    *until_check = DEADLINE_ROWS;
    if (!sk_deadline_passed(&s->deadline))
        return false;
    s->result->is_truncated = true;
    return true;
}

/* Rows in the order of the filter's bits, or all of them. */
static bool scan_rows(struct sk_search *s, struct sk_scan *scan)
{
    const struct sk_index_filter *filter = s->query->filter;
    uint32_t until_check = DEADLINE_ROWS;
    if (filter == NULL || filter->words == NULL) {
        for (uint32_t row = 0; row < s->row_count; row++)
            if (scan_should_stop(s, &until_check))
                return true;
            else if (!scan_row(s, scan, row))
                return false;
        return true;
    }
    for (uint32_t word = 0; word < filter->word_count && word <= s->row_count / 64; word++)
        for (uint64_t bits = filter->words[word]; bits != 0; bits &= bits - 1) {
            uint32_t row = word * 64 + (uint32_t)__builtin_ctzll(bits);
            if (row >= s->row_count || scan_should_stop(s, &until_check))
                return true;
            if (!scan_row(s, scan, row))
                return false;
        }
    return true;
}

enum sk_err sk_search_scan(struct sk_search *s, struct sk_diag *d)
{
    struct sk_scan scan;
    if (!sk_has_planes(s->generation))
        return sk_search_scan_short(s, d);
    if (!sk_scan_begin(s, &scan) || !scan_rows(s, &scan))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a scan");
    sk_scan_end(s, &scan);
    return SK_ERR_OK;
}

/* ---- many queries ---- */

struct scan_lane {
    struct sk_search search;
    struct sk_scratch scratch;
    struct sk_scan scan;
    bool is_busy;
};

struct many_scan {
    struct scan_lane lanes[SK_BATCH_WIDTH];
    struct sk_batch batch;
};

bool sk_scan_takes(const struct sk_index *self, const struct sk_index_query *queries, uint32_t count)
{
    const bool is_flat = self->params.kind == SK_INDEX_FLAT || sk_row_count(self) < self->params.flat_below;
    if (count < MANY_MIN || self->params.kind > SK_INDEX_HNSW || self->code_bytes > 0)
        return false; /* lists have scans of their own; rows with a short code go one by one */
    for (uint32_t i = 0; i < count; i++)
        if (queries[i].filter != NULL || !(is_flat || queries[i].is_exact))
            return false;
    return true;
}

static bool on_row(void *impl, uint32_t lane, uint32_t row, float distance, float error)
{
    struct many_scan *self = impl;
    struct scan_lane *at = &self->lanes[lane];
    const bool has_room = sk_scan_offer(&at->search, &at->scan, row, distance, error);
    self->batch.limit[lane] = sk_scan_limit(&at->search, &at->scan);
    return has_room;
}

static void many_deinit(struct many_scan *self)
{
    for (uint32_t lane = 0; lane < SK_BATCH_WIDTH; lane++)
        sk_scratch_deinit(&self->lanes[lane].scratch);
    sk_batch_deinit(&self->batch);
    free(self);
}

static struct many_scan *many_new(const struct sk_index *index)
{
    struct many_scan *self = calloc(1, sizeof *self);
    bool is_made = self != NULL && sk_batch_init(&self->batch, index, sk_generation_now(index));
    for (uint32_t lane = 0; lane < SK_BATCH_WIDTH && is_made; lane++)
        is_made = sk_scratch_init(&self->lanes[lane].scratch, index);
    if (is_made) {
        self->batch.impl = self;
        self->batch.on_row = on_row;
        return self;
    }
    if (self != NULL)
        many_deinit(self);
    return NULL;
}

static bool many_rows(struct many_scan *self)
{
    const uint32_t row_count = sk_row_count(self->batch.index);
    for (uint32_t begin = 0; begin < row_count; begin += DEADLINE_ROWS) {
        const uint32_t left = row_count - begin;
        for (uint32_t lane = 0; lane < SK_BATCH_WIDTH; lane++) {
            struct scan_lane *at = &self->lanes[lane];
            if (begin == 0 || !at->is_busy || at->search.result->is_truncated ||
                !sk_deadline_passed(&at->search.deadline))
                continue;
            at->search.result->is_truncated = true;
            at->search.counters.reranks = self->batch.rows_seen;
            self->batch.limit[lane] = -INFINITY;
        }
        if (!sk_batch_scan(&self->batch, begin, begin + (left < DEADLINE_ROWS ? left : DEADLINE_ROWS)))
            return false;
    }
    return true;
}

static enum sk_err many_run(const struct sk_index *self, const struct sk_index_query *queries,
                            struct sk_index_result *results, enum sk_err *rcs, uint32_t count,
                            struct sk_diag *diags)
{
    struct many_scan *many = many_new(self);
    if (many == NULL)
        return SK_ERR_NOMEM;
    for (uint32_t i = 0; i < count; i++) {
        struct scan_lane *lane = &many->lanes[i];
        bool is_walk = false;
        rcs[i] = sk_search_begin(&lane->search, self, &lane->scratch, &queries[i], &results[i],
                                 &is_walk, &diags[i]);
        if (rcs[i] == SK_ERR_OK && !sk_scan_begin(&lane->search, &lane->scan))
            rcs[i] = sk_fail(&diags[i], SK_ERR_NOMEM, "no memory for a scan");
        lane->is_busy = rcs[i] == SK_ERR_OK;
        if (lane->is_busy)
            sk_batch_set(&many->batch, i, &lane->scratch.prepared, lane->search.worst);
    }
    const bool has_room = many_rows(many);
    for (uint32_t i = 0; i < count && has_room; i++)
        if (many->lanes[i].is_busy) {
            if (!results[i].is_truncated)
                many->lanes[i].search.counters.reranks = many->batch.rows_seen;
            sk_scan_end(&many->lanes[i].search, &many->lanes[i].scan);
            sk_search_count(&many->lanes[i].search);
        }
    many_deinit(many);
    return has_room ? SK_ERR_OK : SK_ERR_NOMEM;
}

enum sk_err sk_scan_many(const struct sk_index *self, struct sk_index_reader *reader,
                         const struct sk_index_query *queries, struct sk_index_result *results,
                         enum sk_err *rcs, uint32_t count, struct sk_diag *d)
{
    struct sk_diag diags[SK_BATCH_WIDTH];
    enum sk_err first = SK_ERR_OK;
    for (uint32_t at = 0; at < count; at += SK_BATCH_WIDTH) {
        const uint32_t some = count - at < SK_BATCH_WIDTH ? count - at : SK_BATCH_WIDTH;
        memset(diags, 0, sizeof diags);
        (void)sk_epoch_enter(reader->index, reader->slot);
        const enum sk_err rc = many_run(self, queries + at, results + at, rcs + at, some, diags);
        sk_epoch_leave(reader->index, reader->slot);
        for (uint32_t i = 0; i < some; i++) {
            if (rc != SK_ERR_OK)
                rcs[at + i] = sk_fail(&diags[i], rc, "no memory for a scan");
            if (rcs[at + i] == SK_ERR_OK || first != SK_ERR_OK)
                continue;
            first = rcs[at + i];
            if (d != NULL)
                *d = diags[i];
        }
    }
    return first;
}
