/* Complete scans by the short codes: for filters that few rows pass, and where there are no others. */
#include "actors/shard-worker/index/search.h"

enum { RUN = 64, KEYS_MORE = 1024 };

/* The best rows so far, and those not sorted in yet. */
struct best {
    struct sk_search *search;
    uint32_t wanted, count, capacity;
    uint64_t worst; /* keys from here on are not among the wanted */
    uint32_t rows[RUN], row_count;
};

static void best_settle(struct best *self)
{
    uint64_t *keys = self->search->scratch->keys;
    if (self->count <= self->wanted)
        return;
    sk_select_smallest(keys, self->count, self->wanted);
    self->count = self->wanted;
    self->worst = keys[self->wanted - 1];
}

static void best_run(struct best *self)
{
    struct sk_search *s = self->search;
    float distances[RUN];
    for (uint32_t i = 0; i < self->row_count && i < SK_ROWS_AHEAD; i++)
        sk_prefetch_code(s->index, s->generation, self->rows[i]);
    sk_distances_short(s->index, s->generation, &s->scratch->prepared, self->rows, self->row_count,
                       distances);
    s->counters.distances += self->row_count;
    if (self->count + self->row_count > self->capacity)
        best_settle(self);
    for (uint32_t i = 0; i < self->row_count; i++) {
        const uint64_t key = sk_key(distances[i], self->rows[i]);
        s->scratch->keys[self->count] = key;
        self->count += key < self->worst;
    }
    self->row_count = 0;
}

/* False: the deadline has passed. */
static bool best_offer(struct best *self, uint32_t row)
{
    if (!sk_search_matches(self->search, row))
        return true;
    self->rows[self->row_count++] = row;
    if (self->row_count < RUN)
        return true;
    best_run(self);
    return !sk_deadline_passed(&self->search->deadline);
}

static bool offer_all(struct best *self)
{
    const struct sk_search *s = self->search;
    const struct sk_index_filter *filter = s->query->filter;
    bool is_in_time = true;
    if (filter == NULL || filter->words == NULL) {
        for (uint32_t row = 0; row < s->row_count && is_in_time; row++)
            is_in_time = best_offer(self, row);
        return is_in_time;
    }
    for (uint32_t word = 0; word < filter->word_count && word <= s->row_count / 64; word++)
        for (uint64_t bits = filter->words[word]; bits != 0 && is_in_time; bits &= bits - 1) {
            const uint32_t row = word * 64 + (uint32_t)__builtin_ctzll(bits);
            is_in_time = row >= s->row_count || best_offer(self, row);
        }
    return is_in_time;
}

enum sk_err sk_search_scan_short(struct sk_search *s, struct sk_diag *d)
{
    struct sk_scratch *scratch = s->scratch;
    if (s->ef < s->result->capacity)
        s->ef = s->result->capacity;
    struct best best = {
        .search = s, .wanted = s->ef, .capacity = s->ef + KEYS_MORE, .worst = UINT64_MAX};
    if (!sk_scratch_fit(scratch, s->row_count, s->ef, best.capacity + RUN))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a scan");
    s->result->is_truncated = !offer_all(&best);
    best_run(&best);
    best_settle(&best);
    sk_select_smallest(scratch->keys, best.count, best.count);
    memcpy(scratch->beam, scratch->keys, best.count * sizeof *scratch->beam);
    scratch->beam_count = best.count;
    return sk_search_rank_beam(s, d);
}
