/* Filtered searches: planned from how many rows match. */
#include "actors/shard-worker/index/search.h"

enum { DEADLINE_HOPS = 32, SCAN_EXACTLY_ROWS = 512 };

static void heap_push(struct sk_scratch *scratch, uint64_t key)
{
    uint32_t at = scratch->heap_count++;
    while (at > 0 && scratch->heap[(at - 1) / 2] > key) {
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    scratch->heap[at] = key;
}

static uint64_t heap_pop(struct sk_scratch *scratch)
{
    uint64_t *heap = scratch->heap, top = heap[0], key = heap[--scratch->heap_count];
    uint32_t at = 0, count = scratch->heap_count;
    for (uint32_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= key)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
    return top;
}

static void filtered_offer(struct sk_search *s, uint32_t row, float distance)
{
    uint64_t key = sk_key(distance, row);
    if (s->scratch->beam_count == s->ef && key >= s->scratch->beam[s->ef - 1])
        return;
    heap_push(s->scratch, key);
    if (sk_search_matches(s, row))
        sk_beam_push(s->scratch, s->ef, key);
}

/* A walk whose beam holds matching rows only. *is_enough is false when it has cost more than a scan
 * would have, or found too few. */
static enum sk_err filtered_walk(struct sk_search *s, uint64_t budget, bool *is_enough,
                                 struct sk_diag *d)
{
    uint32_t fresh[SK_DEGREE_MAX];
    float distances[SK_DEGREE_MAX];
    struct sk_scratch *scratch = s->scratch;
    *is_enough = false;
    if (!sk_scratch_fit(scratch, s->row_count, s->ef, 1) ||
        !sk_scratch_fit_heap(scratch, SK_ENTRY_COUNT))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a beam of %u", s->ef);
    scratch->beam_count = scratch->heap_count = 0;
    const uint64_t distances_max = s->counters.distances + budget;
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        uint32_t row = atomic_load_explicit(&s->index->entries[at], memory_order_acquire);
        if (row == SK_NO_ROW || row / 64 >= scratch->visited_words || !sk_visit(scratch, row))
            continue;
        s->counters.distances++;
        filtered_offer(s, row,
                       sk_distance_short(s->index, s->generation, &scratch->prepared, row));
    }
    enum sk_err rc = SK_ERR_OK;
    while (scratch->heap_count > 0 && s->counters.distances <= distances_max) {
        uint64_t key = heap_pop(scratch);
        if (scratch->beam_count == s->ef && key > scratch->beam[s->ef - 1])
            break;
        if (++s->counters.hops % DEADLINE_HOPS == 0 && sk_deadline_passed(&s->deadline)) {
            s->result->is_truncated = true;
            break;
        }
        uint32_t count = sk_gather(s->index, s->generation, scratch, sk_key_row(key), fresh);
        s->counters.distances += count;
        count = sk_sift(s->index, s->generation, &scratch->prepared, fresh, count,
                        sk_beam_worst(scratch, s->ef));
        if (!sk_scratch_fit_heap(scratch, scratch->heap_count + count)) {
            rc = sk_fail(d, SK_ERR_NOMEM, "no memory for the frontier of a filtered search");
            break;
        }
        sk_distances_short(s->index, s->generation, &scratch->prepared, fresh, count, distances);
        for (uint32_t i = 0; i < count; i++)
            filtered_offer(s, fresh[i], distances[i]);
    }
    sk_scratch_unvisit(scratch);
    *is_enough = s->result->is_truncated ||
                 (s->counters.distances <= distances_max && scratch->beam_count >= s->query->k);
    return rc;
}

static uint64_t count_matches(const struct sk_search *s)
{
    const struct sk_index_filter *filter = s->query->filter;
    if (filter == NULL || filter->words == NULL)
        return s->row_count;
    if (filter->match_count > 0)
        return filter->match_count;
    uint64_t count = 0;
    for (uint32_t word = 0; word < filter->word_count; word++)
        count += (uint64_t)__builtin_popcountll(filter->words[word]);
    return count;
}

/* What each way costs, in sixteenths of a distance in a scan (17 ns at 384 dimensions, measured with
 * AVX-512 on wordnet-384, 100,000 rows; a distance in a walk takes 2.6 times as long, because its rows are
 * anywhere). A walk of beam ef computes about 200 + 12 ef distances when every row matches, and to meet
 * as many rows that match, row_count / match_count times that. */
static uint64_t scan_cost(uint64_t match_count)
{
    return 16 * match_count;
}

static uint64_t walk_distances(const struct sk_search *s, uint64_t match_count)
{
    return (200 + (uint64_t)12 * s->ef) * s->row_count / (match_count + 1);
}

static uint64_t walk_cost(uint64_t distances)
{
    return 42 * distances;
}

/* Three ways: all matching rows by their 8-bit codes, where that is nothing; all of them by their short
 * codes; a walk. Where the filter goes along with the vectors a walk may take several times what was
 * thought, when the query is far from all that matches: it is given twice that, and then they are
 * scanned. So no search costs much more than a scan of what matches, and none returns fewer than k while
 * k match. */
enum sk_err sk_search_filtered(struct sk_search *s, struct sk_diag *d)
{
    const struct sk_index_filter *filter = s->query->filter;
    const bool is_counted = filter == NULL || filter->words != NULL;
    const uint64_t match_count = count_matches(s), distances = walk_distances(s, match_count);
    bool is_enough = false;
    if (match_count <= SCAN_EXACTLY_ROWS)
        return sk_search_scan(s, d);
    /* Half as much again for the walk: what it takes is uncertain, what a scan takes is not. */
    if (is_counted && 2 * scan_cost(match_count) <= 3 * walk_cost(distances))
        return sk_search_scan_short(s, d);
    const uint64_t as_scan = 16 * match_count / 42;
    const uint64_t budget = is_counted && 2 * distances < as_scan ? 2 * distances : as_scan;
    enum sk_err rc = filtered_walk(s, budget, &is_enough, d);
    if (rc != SK_ERR_OK || is_enough)
        return rc == SK_ERR_OK ? sk_search_rank_beam(s, d) : rc;
    s->counters.retries++;
    return sk_search_scan_short(s, d);
}
