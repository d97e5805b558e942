/* links: sk_index Threads::Threads */
/* Filtered searches: whichever way is taken, only what matches, never fewer than there are, and the nearest. */
#include "tests/unit/index_world.h"

#include <pthread.h>
#include <stdatomic.h>

enum { DIM = 96 };

struct allowed {
    uint64_t *words;
    uint32_t word_count, count;
};

static bool is_allowed(void *impl, uint32_t row)
{
    const struct allowed *allowed = impl;
    return row / 64 < allowed->word_count && (allowed->words[row / 64] >> row % 64 & 1) != 0;
}

static void allow(struct allowed *self, uint32_t row)
{
    self->count += !is_allowed(self, row);
    self->words[row / 64] |= 1ULL << row % 64;
}

static struct allowed allowed_new(uint32_t rows)
{
    return (struct allowed){.words = calloc(rows / 64 + 1, sizeof(uint64_t)), .word_count = rows / 64 + 1};
}

static void make(struct world *w, enum sk_metric metric, enum sk_index_profile profile, uint32_t rows)
{
    struct sk_index_params params = world_params(SK_INDEX_HNSW, metric, DIM);
    params.profile = profile;
    world_init(w, &params, rows);
    world_fill(w, rows);
}

/* Recall over some queries; everything else holds for each of them. by_words: else by the function. */
static double recall_of(struct world *w, struct allowed *allowed, uint32_t ef, bool by_words,
                        uint64_t *retries)
{
    const struct sk_index_filter words = {.words = allowed->words,
                                          .word_count = allowed->word_count,
                                          .match_count = allowed->count},
                                 function = {.impl = allowed, .accepts = is_allowed};
    uint32_t hits = 0, wanted = 0;
    for (unsigned n = 0; n < 30; n++) {
        float query[DIM];
        struct sk_index_result counters;
        world_vector(w, query);
        struct found exact = world_exact(w, query, is_allowed, allowed);
        struct found found = world_search(w, query, ef, by_words ? &words : &function, &counters);
        assert_int_equal(found.count, exact.count); /* never short */
        for (uint32_t i = 0; i < found.count; i++)
            assert_true(is_allowed(allowed, found.rows[i]));
        hits += world_hits(w, &exact, &found);
        wanted += exact.count;
        *retries += counters.retries;
    }
    return wanted == 0 ? 1 : (double)hits / (double)wanted;
}

static void every_selectivity_and_profile_finds_the_nearest_that_match(void **state)
{
    static const enum sk_index_profile profiles[] = {SK_INDEX_BALANCED, SK_INDEX_MEMORY};
    static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
    static const uint32_t per_mille[] = {0, 1, 3, 10, 50, 100, 300, 600, 900, 1000};
    (void)state;
    for (unsigned p = 0; p < SK_COUNT_OF(profiles); p++)
        for (unsigned m = 0; m < SK_COUNT_OF(metrics); m++) {
            struct world w;
            make(&w, metrics[m], profiles[p], LESS(4000));
            for (uint32_t row = 0; row < w.rows; row += 11)
                world_remove(&w, row); /* a bit for a row that is gone means nothing */
            for (unsigned s = 0; s < SK_COUNT_OF(per_mille); s++) {
                struct allowed allowed = allowed_new(w.rows);
                uint64_t retries = 0;
                for (uint32_t row = 0; row < w.rows; row++)
                    if (world_random(&w, 1000) < per_mille[s])
                        allow(&allowed, row);
                assert_true(recall_of(&w, &allowed, 100, true, &retries) >= 0.95);
                assert_true(recall_of(&w, &allowed, 100, false, &retries) >= 0.95);
                free(allowed.words);
            }
            world_deinit(&w);
        }
}

/* What matches is far from the query: the walk gives up and the rows are scanned. */
static void a_filter_against_the_query_is_found_by_a_scan(void **state)
{
    struct world w;
    struct allowed allowed;
    uint64_t retries = 0;
    (void)state;
    make(&w, SK_METRIC_L2, SK_INDEX_BALANCED, LESS(6000));
    float *centre = w.centres; /* of cluster 0 */
    allowed = allowed_new(w.rows);
    /* the farther half of the rows from where all queries come from */
    float *distances = malloc(w.rows * sizeof *distances);
    double mean = 0;
    for (uint32_t row = 0; row < w.rows; row++) {
        distances[row] = sk_score_exact(SK_METRIC_L2, centre, w.vectors + (size_t)row * DIM, DIM);
        mean += (double)distances[row] / w.rows;
    }
    for (uint32_t row = 0; row < w.rows; row++)
        if ((double)distances[row] > 0.9 * mean)
            allow(&allowed, row);
    assert_true(allowed.count > w.rows / 2);
    const struct sk_index_filter filter = {.words = allowed.words, .word_count = allowed.word_count};
    uint32_t hits = 0;
    for (unsigned n = 0; n < 20; n++) {
        float query[DIM];
        struct sk_index_result counters;
        for (unsigned i = 0; i < DIM; i++)
            query[i] = centre[i] + 0.3F * world_normal(&w);
        struct found exact = world_exact(&w, query, is_allowed, &allowed);
        struct found found = world_search(&w, query, 20, &filter, &counters);
        assert_int_equal(found.count, K);
        hits += world_hits(&w, &exact, &found);
        retries += counters.retries;
    }
    assert_true(hits >= 20 * K * 0.9);
    free(distances);
    free(allowed.words);
    world_deinit(&w);
}

static void a_filter_of_a_few_rows_is_answered_for_certain(void **state)
{
    struct world w;
    struct allowed allowed;
    uint32_t rows[600];
    float scores[600];
    (void)state;
    make(&w, SK_METRIC_COSINE, SK_INDEX_BALANCED, LESS(4000));
    allowed = allowed_new(w.rows);
    for (uint32_t row = 0; row < w.rows; row += 40)
        allow(&allowed, row);
    const struct sk_index_filter filter = {.words = allowed.words, .word_count = allowed.word_count};
    const struct sk_index_query query = {.vector = w.vectors, .k = K, .filter = &filter};
    struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = 600};
    if (sk_index_search(w.index, w.reader, &query, &result, &w.d) != SK_ERR_OK)
        fail_msg("%s", w.d.text);
    assert_true(result.is_certain);
    free(allowed.words);
    world_deinit(&w);
}

/* ---- readers beside the writer ---- */

struct reading {
    struct sk_index *index;
    _Atomic bool *stop;
    const struct sk_index_filter *filter;
    const float *vectors;
    uint32_t rows;
    uint64_t searches;
    bool is_wrong;
};

static void *read_on(void *impl)
{
    struct reading *self = impl;
    struct sk_index_reader *reader;
    struct sk_diag d;
    uint32_t rows[64];
    float scores[64];
    if (sk_index_reader_new(&reader, self->index, &d) != SK_ERR_OK)
        return NULL;
    while (!atomic_load(self->stop)) {
        const struct sk_index_query query = {
            .vector = self->vectors + (size_t)(self->searches * 37 % self->rows) * DIM,
            .k = K,
            .filter = self->searches % 3 == 0 ? NULL : self->filter};
        struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = 64};
        if (sk_index_search(self->index, reader, &query, &result, &d) != SK_ERR_OK)
            self->is_wrong = true;
        for (uint32_t i = 0; i < result.count && query.filter != NULL; i++)
            self->is_wrong = self->is_wrong || (query.filter->words[rows[i] / 64] >> rows[i] % 64 & 1) == 0;
        self->searches++;
    }
    sk_index_reader_destroy(&reader);
    return NULL;
}

static void searches_go_on_beside_a_writer(void **state)
{
    static const enum sk_index_profile profiles[] = {SK_INDEX_BALANCED, SK_INDEX_MEMORY};
    enum { THREADS = 3, ROWS = 1200 };
    (void)state;
    for (unsigned p = 0; p < SK_COUNT_OF(profiles); p++) {
        struct world w;
        struct reading readings[THREADS];
        pthread_t threads[THREADS];
        _Atomic bool stop = false;
        uint32_t freed[256], count;
        make(&w, SK_METRIC_L2, profiles[p], ROWS);
        float *vectors = malloc((size_t)ROWS * DIM * sizeof *vectors);
        memcpy(vectors, w.vectors, (size_t)ROWS * DIM * sizeof *vectors);
        struct allowed allowed = allowed_new(ROWS);
        for (uint32_t row = 0; row < ROWS; row++)
            if (row % 4 != 0)
                allow(&allowed, row);
        const struct sk_index_filter filter = {.words = allowed.words, .word_count = allowed.word_count};
        for (unsigned t = 0; t < THREADS; t++) {
            readings[t] = (struct reading){.index = w.index,
                                           .stop = &stop,
                                           .filter = &filter,
                                           .vectors = vectors,
                                           .rows = ROWS};
            assert_int_equal(pthread_create(&threads[t], NULL, read_on, &readings[t]), 0);
        }
        for (unsigned round = 0; round < 3; round++) {
            for (uint32_t row = round; row < ROWS; row += 4)
                if (w.lseqs[row] != 0)
                    world_remove(&w, row);
            bool has_more = true;
            while (has_more)
                if (sk_index_step(w.index, 0, NULL, SK_INDEX_STEP_EAGER, &has_more, &w.d) != SK_ERR_OK)
                    fail_msg("%s", w.d.text);
            while ((count = sk_index_reclaim_rows(w.index, freed, 256)) > 0)
                for (uint32_t i = 0; i < count; i++)
                    assert_int_equal(world_insert(&w, freed[i]), SK_ERR_OK);
        }
        atomic_store(&stop, true);
        for (unsigned t = 0; t < THREADS; t++) {
            pthread_join(threads[t], NULL);
            assert_false(readings[t].is_wrong);
            assert_true(readings[t].searches > 0);
        }
        free(allowed.words);
        free(vectors);
        world_deinit(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_selectivity_and_profile_finds_the_nearest_that_match),
        cmocka_unit_test(a_filter_against_the_query_is_found_by_a_scan),
        cmocka_unit_test(a_filter_of_a_few_rows_is_answered_for_certain),
        cmocka_unit_test(searches_go_on_beside_a_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
