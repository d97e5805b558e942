/* Many searches of one thread: walks in turns, so that while one waits for memory others compute. */
#include "actors/shard-worker/index/search.h"

#include <stdlib.h>

enum {
    LANES = 4,
    EPOCH_QUERIES = 256, /* what is removed may wait for so many until its room is given back */
};

enum lane_stage { LANE_IDLE, LANE_WALK, LANE_RANK };

/* One search on its way. */
struct lane {
    enum lane_stage stage;
    uint32_t at; /* of the query */
    struct sk_search search;
    struct sk_scratch scratch;
};

struct sk_lanes {
    struct lane lanes[LANES];
};

/* The batch that the lanes work at. */
struct many {
    const struct sk_index *index;
    struct sk_lanes *lanes;
    const struct sk_index_query *queries;
    struct sk_index_result *results;
    enum sk_err *rcs;
    uint32_t next, end;
    enum sk_err first;
    uint32_t first_at;
    struct sk_diag *d;
};

void sk_lanes_destroy(struct sk_lanes **self)
{
    if (*self == NULL)
        return;
    for (uint32_t i = 0; i < LANES; i++)
        sk_scratch_deinit(&(*self)->lanes[i].scratch);
    free(*self);
    *self = NULL;
}

static bool lanes_new(struct sk_lanes **out, const struct sk_index *index)
{
    struct sk_lanes *self = calloc(1, sizeof *self);
    bool is_made = self != NULL;
    for (uint32_t i = 0; i < LANES && is_made; i++)
        is_made = sk_scratch_init(&self->lanes[i].scratch, index);
    if (!is_made)
        sk_lanes_destroy(&self);
    *out = self;
    return is_made;
}

static void finish(struct many *self, uint32_t at, enum sk_err rc, const struct sk_diag *d)
{
    self->rcs[at] = rc;
    if (rc == SK_ERR_OK || (self->first != SK_ERR_OK && self->first_at < at))
        return;
    self->first = rc;
    self->first_at = at;
    if (self->d != NULL)
        *self->d = *d;
}

/* Takes queries until one wants a walk; the others are answered on the spot. */
static void lane_refill(struct many *self, struct lane *lane)
{
    lane->stage = LANE_IDLE;
    while (self->next < self->end && lane->stage == LANE_IDLE) {
        struct sk_diag d = {0};
        bool is_walk = false;
        lane->at = self->next++;
        enum sk_err rc =
            sk_search_begin(&lane->search, self->index, &lane->scratch, &self->queries[lane->at],
                            &self->results[lane->at], &is_walk, &d);
        if (rc == SK_ERR_OK && is_walk) {
            lane->stage = LANE_WALK;
            continue;
        }
        if (rc == SK_ERR_OK)
            rc = sk_search_complete(&lane->search, &d);
        if (rc == SK_ERR_OK)
            sk_search_count(&lane->search);
        finish(self, lane->at, rc, &d);
    }
}

static void lane_turn(struct many *self, struct lane *lane)
{
    struct sk_diag d = {0};
    enum sk_err rc = SK_ERR_OK;
    switch (lane->stage) {
    case LANE_IDLE:
        return;
    case LANE_WALK:
        if (sk_search_walk_turn(&lane->search))
            return;
        rc = sk_search_end_walk(&lane->search, &d);
        lane->stage = LANE_RANK;
        if (rc == SK_ERR_OK)
            return;
        break;
    case LANE_RANK:
        if (sk_search_rank_turn(&lane->search))
            return;
        sk_search_count(&lane->search);
        break;
    }
    finish(self, lane->at, rc, &d);
    lane_refill(self, lane);
}

static void run(struct many *self)
{
    uint32_t busy;
    for (uint32_t i = 0; i < LANES; i++)
        lane_refill(self, &self->lanes->lanes[i]);
    do {
        busy = 0;
        for (uint32_t i = 0; i < LANES; i++) {
            lane_turn(self, &self->lanes->lanes[i]);
            busy += self->lanes->lanes[i].stage != LANE_IDLE;
        }
    } while (busy > 0);
}

enum sk_err sk_index_search_many(const struct sk_index *self, struct sk_index_reader *reader,
                                 const struct sk_index_query *queries,
                                 struct sk_index_result *results, enum sk_err *rcs, uint32_t count,
                                 struct sk_diag *d)
{
    if (count == 1)
        return rcs[0] = sk_index_search(self, reader, queries, results, d);
    if (sk_scan_takes(self, queries, count))
        return sk_scan_many(self, reader, queries, results, rcs, count, d);
    if (reader->lanes == NULL && !lanes_new(&reader->lanes, self)) {
        for (uint32_t i = 0; i < count; i++)
            rcs[i] = SK_ERR_NOMEM;
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %d searches at once", LANES);
    }
    struct many many = {.index = self,
                        .lanes = reader->lanes,
                        .queries = queries,
                        .results = results,
                        .rcs = rcs,
                        .d = d};
    while (many.end < count) {
        many.end = count - many.end < EPOCH_QUERIES ? count : many.end + EPOCH_QUERIES;
        (void)sk_epoch_enter(reader->index, reader->slot);
        run(&many);
        sk_epoch_leave(reader->index, reader->slot);
    }
    return many.first;
}
