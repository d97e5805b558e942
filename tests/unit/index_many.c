/* links: sk_index */
/* Many searches in one call find what each of them finds alone. */
#include "tests/unit/index_world.h"

enum { DIM = 200, DIM_MAX = 384, ROWS = 1500, BATCH_MAX = 40, ROOM = 400 };

/* A query with all that it points to. */
struct asked {
    struct sk_index_query query;
    float vector[DIM_MAX];
    struct sk_index_filter filter;
    uint64_t words[ROWS / 64 + 1];
    uint64_t ticks[2]; /* alone and among others */
};

/* What one way of asking has answered. */
struct answers {
    struct sk_index_result results[BATCH_MAX];
    enum sk_err errs[BATCH_MAX];
    uint32_t rows[BATCH_MAX][ROOM];
    float scores[BATCH_MAX][ROOM];
};

static uint64_t tick(void *impl)
{
    uint64_t *now = impl;
    return *now += 10;
}

static void ask_anything(struct world *w, struct asked *asked, bool is_filtered)
{
    *asked = (struct asked){.query = {.vector = asked->vector,
                                      .k = 1 + (uint32_t)world_random(w, 30),
                                      .ef = (uint32_t)world_random(w, 200)}};
    world_vector(w, asked->vector);
    switch (world_random(w, 10)) {
    case 0:
        asked->query.is_exact = true;
        break;
    case 1:
    case 2: /* many rows or few */
        if (!is_filtered)
            break;
        for (size_t i = 0; i < SK_COUNT_OF(asked->words); i++)
            asked->words[i] = asked->query.k % 2 == 0 ? ~7ULL : 1ULL << i % 64;
        asked->filter.words = asked->words;
        asked->filter.word_count = SK_COUNT_OF(asked->words);
        asked->query.filter = &asked->filter;
        break;
    case 3: /* some give up, some do not */
        asked->query.clock.mono_us = tick;
        asked->query.deadline_us = 5 + world_random(w, 30);
        break;
    case 4:
        asked->query.has_score_worst = true;
        asked->query.score_worst = w->params.metric == SK_METRIC_L2 ? 20 : 0.3F;
        break;
    case 5:
        if (world_random(w, 3) == 0)
            asked->query.k = 0; /* refused */
        break;
    default:
        break;
    }
}

static void answers_init(struct answers *self, struct asked *asked, unsigned way)
{
    memset(self, 0, sizeof *self);
    for (uint32_t i = 0; i < BATCH_MAX; i++) {
        self->results[i] = (struct sk_index_result){
            .rows = self->rows[i], .scores = self->scores[i], .capacity = ROOM};
        asked[i].query.clock.impl = &asked[i].ticks[way];
    }
}

static void compare(const struct answers *alone, const struct answers *together, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct sk_index_result *a = &alone->results[i], *b = &together->results[i];
        assert_int_equal(alone->errs[i], together->errs[i]);
        if (alone->errs[i] != SK_ERR_OK)
            continue;
        assert_int_equal(a->count, b->count);
        assert_memory_equal(a->rows, b->rows, a->count * sizeof *a->rows);
        assert_memory_equal(a->scores, b->scores, a->count * sizeof *a->scores);
        assert_int_equal(a->is_certain, b->is_certain);
        assert_int_equal(a->is_truncated, b->is_truncated);
        assert_int_equal(a->hops, b->hops);
        assert_int_equal(a->distances, b->distances);
        assert_int_equal(a->reranks, b->reranks);
        assert_int_equal(a->retries, b->retries);
    }
}

/* Batches of 1..40, of all kinds of queries. */
static void compare_some(struct world *w, bool is_filtered)
{
    static struct answers alone, together;
    static struct asked asked[BATCH_MAX];
    static struct sk_index_query queries[BATCH_MAX];
    for (uint32_t count = 1; count <= BATCH_MAX; count++) {
        enum sk_err first = SK_ERR_OK;
        struct sk_diag first_d = {0};
        for (uint32_t i = 0; i < BATCH_MAX; i++)
            ask_anything(w, &asked[i], is_filtered);
        answers_init(&alone, asked, 0);
        for (uint32_t i = 0; i < count; i++) {
            struct sk_diag d = {0};
            alone.errs[i] =
                sk_index_search(w->index, w->reader, &asked[i].query, &alone.results[i], &d);
            if (first == SK_ERR_OK && alone.errs[i] != SK_ERR_OK) {
                first = alone.errs[i];
                first_d = d;
            }
        }
        answers_init(&together, asked, 1);
        for (uint32_t i = 0; i < count; i++)
            queries[i] = asked[i].query;
        assert_int_equal(sk_index_search_many(w->index, w->reader, queries, together.results,
                                              together.errs, count, &w->d),
                         first);
        if (first != SK_ERR_OK)
            assert_string_equal(w->d.text, first_d.text);
        compare(&alone, &together, count);
    }
}

static void compare_batches(struct world *w)
{
    compare_some(w, true);
}

static void a_batch_finds_what_single_searches_find(void **state)
{
    static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
    static const uint32_t dims[] = {DIM, 128, 20}; /* with signs, without, and without short codes */
    (void)state;
    for (size_t i = 0; i < SK_COUNT_OF(metrics); i++) {
        struct world world, *w = &world;
        const struct sk_index_params params =
            world_params(SK_INDEX_HNSW, metrics[i], dims[i]);
        world_init(w, &params, ROWS);
        world_fill(w, LESS(ROWS));
        compare_batches(w);
        for (uint32_t row = 0; row < LESS(ROWS); row += 3) /* tombstones, not swept */
            world_remove(w, row);
        compare_batches(w);
        world_rest(w, SK_INDEX_STEP_EAGER);
        compare_batches(w);
        world_deinit(w);
    }
}

static void a_flat_or_empty_index_answers_batches_too(void **state)
{
    (void)state;
    for (int kind = SK_INDEX_FLAT; kind <= SK_INDEX_HNSW; kind++) {
        struct world world, *w = &world;
        const struct sk_index_params params =
            world_params((enum sk_index_kind)kind, SK_METRIC_L2, 96);
        world_init(w, &params, 300);
        compare_batches(w);
        world_fill(w, 1);
        compare_batches(w);
        world_deinit(w);
    }
}

/* Complete scans of all rows: 16 queries share a pass over the codes. */
static void scans_share_a_pass_over_the_rows(void **state)
{
    static const uint32_t dims[] = {DIM, 384, 20};
    (void)state;
    for (int metric = SK_METRIC_L2; metric <= SK_METRIC_COSINE; metric++) {
        struct world world, *w = &world;
        const struct sk_index_params params =
            world_params(SK_INDEX_FLAT, (enum sk_metric)metric, dims[metric - 1]);
        world_init(w, &params, ROWS);
        world_fill(w, LESS(ROWS));
        compare_some(w, false);
        for (uint32_t row = 0; row < LESS(ROWS); row += 1 + row % 5)
            world_remove(w, row);
        compare_some(w, false);
        world_rest(w, SK_INDEX_STEP_EAGER);
        compare_some(w, false);
        world_deinit(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_batch_finds_what_single_searches_find),
        cmocka_unit_test(a_flat_or_empty_index_answers_batches_too),
        cmocka_unit_test(scans_share_a_pass_over_the_rows),
    };
    return cmocka_run_group_tests_name("index_many", tests, NULL, NULL);
}
