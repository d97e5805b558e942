/* One search and what its two files share: search.c (the request and its answer), search_graph.c
 * (how the neighbours are found). */
#ifndef SK_WORKER_SEARCH_H
#define SK_WORKER_SEARCH_H

#include "actors/shard-worker/internal.h"

struct search {
    struct reader *reader;
    struct read *read; /* of the reader */
    const struct sk_request *request;
    struct field *field;
    struct sk_filter *filter;
    bool is_selected; /* selection is filled */
    struct sk_selection selection;
    uint64_t *words; /* of the selection, for the graph */
    uint32_t word_count;
    struct sk_rank rank;
    struct sk_scorer scorer;
    const float *query; /* NULL: not read yet */
    float *vector;      /* where queries are read to */
    struct sk_id like;
    uint32_t *offered; /* pending rows that were offered to the rank */
    uint32_t offered_count;
    uint32_t offered_capacity;
    bool is_exact; /* of all queries so far */
    bool has_more;
    uint64_t looked; /* rows since the clock was read */
    enum sk_err code;
    /* of a search that is answered together with others: what the index has found for it already */
    struct {
        bool is_there;
        uint32_t k;
        struct sk_index_result result;
        const float **vectors; /* of the result's rows; NULL: not looked up yet */
    } ahead;
};

/* A job in place has found out that it would take long: nothing was done yet, a search thread does
 * it. */
bool search_is_too_slow_here(struct search *self, uint64_t rows);
uint64_t search_scan_us(uint64_t rows, uint32_t dim);
SK_CHECKED enum sk_err search_select(struct search *self, struct sk_diag *d);
/* The rank is filled and in order. index: what serves, NULL: scans. Inside a read of the store. */
SK_CHECKED enum sk_err search_one(struct search *self, struct sk_index *index, struct sk_diag *d);
/* Asks the index for all of them at once; each goes on with search_one. Their queries are read,
 * they have no filter, one field and one snapshot. What cannot be done here is left to search_one.
 */
void search_ahead(struct search **searches, unsigned count, struct sk_index *index);
/* The vectors that it will score are on their way into the processor's caches. */
void search_expect(struct search *self);

enum {
    SEARCH_MATCHES_SCANNED_MAX =
        2000, /* so few matches are scored one by one, whatever the index */
};

#endif
