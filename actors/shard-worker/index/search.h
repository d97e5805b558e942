/* What the files of the reader's side share. Inside the index library only. */
#ifndef SK_INDEX_SEARCH_H
#define SK_INDEX_SEARCH_H

#include "actors/shard-worker/index/near.h"
#include "actors/shard-worker/index/recall.h"

/* One search on its way. */
struct sk_search {
    const struct sk_index *index;
    const struct sk_generation *generation;
    struct sk_scratch *scratch;
    const struct sk_index_query *query;
    struct sk_index_result *result;
    struct sk_deadline deadline;
    struct sk_counters counters;
    uint32_t row_count, ef;
    float worst; /* internal distance; rows surely beyond it are left out */
    bool is_scan, is_near, is_ranked;
    struct sk_beam beam;      /* a walk by the codes */
    struct sk_recall_walk recall;
    struct sk_near_walk near; /* or by neighbour rows */
    uint32_t rank_count, ranked; /* of the scratch's keys: all to be re-ranked, and those that are */
    float rank_error;
};

/* So many of a beam of ef are ranked by their 8-bit codes. */
static inline uint32_t sk_rank_count(uint32_t k, uint32_t ef)
{
    return 2 * k + ef / 4;
}

/* A search in turns, between which others may go on: begin; while walk_turn says so, again; end_walk; while
 * rank_turn says so, again; count. The caller is inside an epoch all the while. begin looks at the
 * query and makes it ready and the result empty; where *is_walk is false, complete answers it instead of
 * the turns. */
SK_CHECKED enum sk_err sk_search_begin(struct sk_search *s, const struct sk_index *index,
                                       struct sk_scratch *scratch, const struct sk_index_query *query,
                                       struct sk_index_result *result, bool *is_walk,
                                       struct sk_diag *d);
SK_CHECKED enum sk_err sk_search_complete(struct sk_search *s, struct sk_diag *d);
bool sk_search_walk_turn(struct sk_search *s);
/* Begins the ranking, or answers the query where tombstones have filled the beam. */
SK_CHECKED enum sk_err sk_search_end_walk(struct sk_search *s, struct sk_diag *d);
bool sk_search_rank_turn(struct sk_search *s);
void sk_search_count(struct sk_search *s); /* counters to the result */

static inline bool sk_search_matches(const struct sk_search *s, uint32_t row)
{
    if (sk_state(s->index, row) != SK_ROW_LIVE)
        return false;
    const struct sk_index_filter *filter = s->query->filter;
    if (filter == NULL)
        return true;
    if (filter->words != NULL)
        return row / 64 < filter->word_count && (filter->words[row / 64] >> row % 64 & 1) != 0;
    return filter->accepts == NULL || filter->accepts(filter->impl, row);
}

/* ---- scan.c ---- */
/* A scan on its way: the k smallest upper bounds seen so far, the largest on top, and in the search's
 * scratch the rows whose lower bound is not above it. */
struct sk_scan {
    uint64_t *heap;
    uint32_t count, k, key_count;
};
bool sk_scan_begin(struct sk_search *s, struct sk_scan *scan); /* false: no memory */
/* A row that matches, its distance and how far that can be off; false: no memory. */
bool sk_scan_offer(struct sk_search *s, struct sk_scan *scan, uint32_t row, float distance,
                   float error);
/* Rows surely farther are hopeless. */
float sk_scan_limit(const struct sk_search *s, const struct sk_scan *scan);
void sk_scan_end(struct sk_search *s, const struct sk_scan *scan); /* the result */
/* Are these better answered by sk_scan_many: enough of them, all complete scans of all rows? */
bool sk_scan_takes(const struct sk_index *self, const struct sk_index_query *queries, uint32_t count);
/* sk_index_search_many for them: reads each row once for 16 queries. */
enum sk_err sk_scan_many(const struct sk_index *self, struct sk_index_reader *reader,
                         const struct sk_index_query *queries, struct sk_index_result *results,
                         enum sk_err *rcs, uint32_t count, struct sk_diag *d);
/* Every row that matches, by its 8-bit code with the certified bound; result->count is set. */
SK_CHECKED enum sk_err sk_search_scan(struct sk_search *s, struct sk_diag *d);
/* The best of the beam by their 8-bit codes, and those after the k-th that these cannot tell from
 * it. */
SK_CHECKED enum sk_err sk_search_rank_beam(struct sk_search *s, struct sk_diag *d);
/* filter_scan.c: every row that matches, by its short code first, the best of them as those of a beam. */
SK_CHECKED enum sk_err sk_search_scan_short(struct sk_search *s, struct sk_diag *d);
/* bare.c: rank_beam of profile memory. */
SK_CHECKED enum sk_err sk_bare_rank(struct sk_search *s, struct sk_diag *d);
/* The first of scratch->keys are the result. */
void sk_search_emit(struct sk_search *s, uint32_t count);
/* ivf_search.c: kinds with lists, whatever the query. */
SK_CHECKED enum sk_err sk_ivf_search(struct sk_search *s, struct sk_diag *d);
/* filter.c: the k best rows that match, by whichever way costs least. */
SK_CHECKED enum sk_err sk_search_filtered(struct sk_search *s, struct sk_diag *d);

#endif
