/* Searching lists: the nearest centres, their rows by code, the best of them by estimate. */
#include "actors/shard-worker/index/ivf.h"
#include "actors/shard-worker/index/search.h"

#include <math.h>

enum {
    PROBES_MIN = 8,
    PROBE_SHARE = 20, /* automatic: one list in so many */
    KEYS_MIN = 256,
};

struct probe {
    struct sk_search *s;
    const struct sk_ivf *ivf;
    const struct sk_ivf_directory *directory;
    uint32_t keep;  /* the best so many are of interest */
    uint32_t count; /* in scratch->keys */
    float bound;    /* farther ones are not among them */
    float error;    /* largest certified error so far */
    bool is_coded;  /* codes without a certified error were compared */
};

static uint32_t refine_of(const struct sk_index *self)
{
    if (self->params.refine > 0)
        return self->params.refine;
    switch (self->ivf->segment_dims) {
    case 1:
        return 2;
    case 2:
        return 3;
    case 4:
        return 5;
    default:
        return 12;
    }
}

uint32_t sk_index_candidates(const struct sk_index *self, uint32_t k)
{
    const uint32_t rows = sk_index_result_rows(k);
    if (self->ivf == NULL || self->ivf->list_form == SK_IVF_PLAIN)
        return rows;
    const uint64_t wanted = (uint64_t)k * refine_of(self) + 10;
    return wanted < rows ? rows : wanted > SK_INDEX_EF_MAX ? SK_INDEX_EF_MAX : (uint32_t)wanted;
}

/* ---- candidates ---- */

static void shrink(struct probe *p)
{
    struct sk_scratch *scratch = p->s->scratch;
    if (p->count <= p->keep)
        return;
    sk_select_smallest(scratch->keys, p->count, p->keep);
    p->count = p->keep;
    p->bound = sk_key_distance(scratch->keys[p->keep - 1]);
}

static inline void offer(struct probe *p, float distance, uint32_t row)
{
    if (p->count == p->s->scratch->keys_capacity)
        shrink(p);
    p->s->scratch->keys[p->count++] = sk_key(distance, row);
}

/* Which rows of a block match, as bits; without a filter all, then only those of interest are looked at. */
static uint32_t matches_of(const struct probe *p, const uint32_t *rows, uint32_t count)
{
    uint32_t bits = 0;
    if (p->s->query->filter == NULL)
        return count == SK_IVF_BLOCK ? UINT32_MAX : (1U << count) - 1;
    for (uint32_t i = 0; i < count; i++)
        bits |= (uint32_t)sk_search_matches(p->s, rows[i]) << i;
    return bits;
}

/* Which of 32 are below the bound, as bits. */
static uint32_t below(const float *restrict distances, float bound)
{
    int32_t is_below[SK_IVF_BLOCK], any[4] = {0};
    uint32_t bits = 0;
    for (uint32_t i = 0; i < SK_IVF_BLOCK; i++)
        is_below[i] = distances[i] < bound ? -1 : 0;
    for (uint32_t i = 0; i < SK_IVF_BLOCK; i += 4)
        for (uint32_t j = 0; j < 4; j++)
            any[j] |= is_below[i + j];
    if ((any[0] | any[1] | any[2] | any[3]) == 0)
        return 0;
    for (uint32_t i = 0; i < SK_IVF_BLOCK; i++)
        bits |= (uint32_t)(is_below[i] & 1) << i;
    return bits;
}

static void scan_coded(struct probe *p, uint32_t head, float base)
{
    float distances[SK_IVF_BLOCK];
    while (head != SK_IVF_NO_BLOCK) {
        const uint8_t *block = sk_ivf_block(p->ivf, SK_IVF_CODED, head);
        const uint32_t *rows = sk_ivf_rows(p->ivf, SK_IVF_CODED, block);
        const uint32_t *tail = sk_ivf_tail(p->ivf, SK_IVF_CODED, block);
        head = tail[0];
        if (head != SK_IVF_NO_BLOCK)
            for (uint32_t line = 0; line < p->ivf->blocks[SK_IVF_CODED].layout.block_bytes; line += 64)
                __builtin_prefetch(sk_ivf_block(p->ivf, SK_IVF_CODED, head) + line);
        const uint32_t bits = matches_of(p, rows, tail[1]);
        if (bits == 0)
            continue;
        p->s->counters.distances += tail[1];
        sk_ivf_estimate(p->s->index, p->s->scratch, block, p->s->scratch->prepared.add_weight, base,
                        distances);
        for (uint32_t near = bits & below(distances, p->bound); near != 0; near &= near - 1) {
            const uint32_t i = (uint32_t)__builtin_ctz(near);
            if (sk_search_matches(p->s, rows[i]))
                offer(p, distances[i], rows[i]);
        }
    }
    p->is_coded = true;
}

static void scan_plain(struct probe *p, uint32_t head, float base, float base_error)
{
    while (head != SK_IVF_NO_BLOCK) {
        const uint8_t *block = sk_ivf_block(p->ivf, SK_IVF_PLAIN, head);
        const uint32_t *rows = sk_ivf_rows(p->ivf, SK_IVF_PLAIN, block);
        const uint32_t *tail = sk_ivf_tail(p->ivf, SK_IVF_PLAIN, block);
        head = tail[0];
        for (uint32_t bits = matches_of(p, rows, tail[1]); bits != 0; bits &= bits - 1) {
            const uint32_t i = (uint32_t)__builtin_ctz(bits);
            float error;
            const float distance = sk_ivf_distance_plain(
                p->s->index, &p->s->scratch->prepared, block, i, base, base_error, &error);
            p->s->counters.reranks++;
            if (!sk_search_matches(p->s, rows[i]))
                continue;
            p->error = error > p->error ? error : p->error;
            if (distance < p->bound)
                offer(p, distance, rows[i]);
        }
    }
}

/* ---- lists ---- */

/* All lists by the distance of their centre, in scratch->heap; the first `sorted` of them in order. */
static uint32_t rank_lists(struct probe *p)
{
    const struct sk_index *self = p->s->index;
    const struct sk_prepared *query = &p->s->scratch->prepared;
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < p->directory->slot_count; slot++) {
        if (!sk_ivf_has_list(p->directory, slot))
            continue;
        float distance = query->norm_sq - 2 * sk_ivf_centre_dot(self, query, slot);
        distance += query->add_weight * sk_ivf_centre(self, slot)->norm_sq;
        p->s->scratch->heap[count++] = sk_key(distance, slot);
    }
    return count;
}

static void scan_list(struct probe *p, uint64_t key)
{
    const uint32_t slot = sk_key_row(key);
    const float base = sk_key_distance(key);
    const struct sk_prepared *query = &p->s->scratch->prepared;
    const uint32_t head = sk_ivf_head(p->directory, slot);
    p->s->counters.hops++;
    if (p->ivf->list_form == SK_IVF_CODED) {
        scan_coded(p, head, base);
        return;
    }
    const float length = sqrtf(sk_ivf_centre(p->s->index, slot)->norm_sq);
    scan_plain(p, head, base, 2 * query->wide_error * length + 4e-6F * query->norm * length);
}

/* Lists to look at: more of them where a filter leaves few rows of each. */
static uint32_t probes_of(const struct sk_search *s, uint32_t list_count)
{
    const struct sk_index_query *query = s->query;
    const struct sk_index_filter *filter = query->filter;
    uint64_t probes = query->nprobe > 0 ? query->nprobe : list_count / PROBE_SHARE + PROBES_MIN;
    if (query->is_exact || query->recall_target > 0)
        return list_count;
    if (filter != NULL && filter->words != NULL && query->nprobe == 0) {
        uint64_t matches = filter->match_count;
        if (matches == 0)
            for (uint32_t word = 0; word < filter->word_count; word++)
                matches += (uint64_t)__builtin_popcountll(filter->words[word]);
        const double share = (double)(matches + 1) / (double)(s->row_count + 1);
        if (share < 1)
            probes = (uint64_t)((double)probes / share) + 1;
    }
    return probes < list_count ? (uint32_t)probes : list_count;
}

static bool should_stop(struct sk_search *s)
{
    if (!sk_deadline_passed(&s->deadline))
        return false;
    s->result->is_truncated = true;
    return true;
}

/* The best by estimate, with those that the certified error cannot tell from the k-th. */
static void emit(struct probe *p, bool is_complete)
{
    struct sk_search *s = p->s;
    struct sk_index_result *result = s->result;
    const uint64_t *keys = s->scratch->keys;
    const uint32_t k = s->query->k;
    shrink(p);
    sk_select_smallest(s->scratch->keys, p->count, p->count);
    uint32_t count = p->count;
    bool is_certain = is_complete && !p->is_coded;
    if (!p->is_coded && count > 0) {
        while (count > 0 && sk_key_distance(keys[count - 1]) > s->worst + p->error)
            count--;
        if (count > k) {
            const float last = sk_key_distance(keys[k - 1]) + 2 * p->error;
            while (count > k && sk_key_distance(keys[count - 1]) > last)
                count--;
        }
        is_certain = is_certain && count <= result->capacity;
    }
    result->count = count < result->capacity ? count : result->capacity;
    result->is_certain = is_certain && !result->is_truncated;
    for (uint32_t i = 0; i < result->count; i++) {
        result->rows[i] = sk_key_row(keys[i]);
        result->scores[i] = sk_score_of(s->index, &s->scratch->prepared, sk_key_distance(keys[i]));
    }
}

enum sk_err sk_ivf_search(struct sk_search *s, struct sk_diag *d)
{
    const struct sk_ivf *ivf = s->index->ivf;
    struct probe p = {.s = s, .ivf = ivf, .directory = sk_ivf_directory_now(ivf), .bound = INFINITY};
    const uint32_t wanted = sk_index_candidates(s->index, s->query->k);
    p.keep = s->result->capacity;
    if (ivf->list_form == SK_IVF_CODED && !s->query->is_exact && p.directory->slot_count > 0 &&
        wanted < p.keep)
        p.keep = wanted;
    p.keep++; /* whether one more is there says whether all are */
    if (!sk_scratch_fit(s->scratch, 0, 1, 2 * p.keep + KEYS_MIN) ||
        !sk_scratch_fit_heap(s->scratch, p.directory->slot_count + 1))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u candidates", p.keep);
    const uint32_t list_count = rank_lists(&p);
    const uint32_t live = atomic_load_explicit(&s->index->live_count, memory_order_relaxed);
    if (list_count > 0 && ivf->list_form == SK_IVF_CODED)
        sk_ivf_tables_make(s->index, s->scratch->prepared.vector, s->scratch);
    scan_plain(&p, sk_ivf_head(p.directory, SK_IVF_BUFFER), s->scratch->prepared.norm_sq, 0);
    uint32_t done = 0, until = probes_of(s, list_count);
    while (done < list_count && !s->result->is_truncated) {
        sk_select_smallest(s->scratch->heap + done, list_count - done, until - done);
        for (; done < until && !should_stop(s); done++)
            scan_list(&p, s->scratch->heap[done]);
        if (p.count >= s->query->k || p.count >= live || s->result->is_truncated)
            break;
        s->counters.retries++; /* the filter or tombstones left too few */
        until = until * 2 + 1 < list_count ? until * 2 + 1 : list_count;
    }
    emit(&p, done == list_count);
    return SK_ERR_OK;
}
