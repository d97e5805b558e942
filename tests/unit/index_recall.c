/* links: sk_index Threads::Threads */
/* Searches that keep a recall target by themselves: calibrated at once or in steps, on queries like the
 * rows and unlike them. */
#include "actors/shard-worker/index/recall.h"
#include "tests/unit/index_world.h"

#include <pthread.h>

enum { DIM = 96, ROWS = 2000, QUERIES = 150, ROOM = 64 };

static struct sk_index_params params_of(enum sk_metric metric)
{
    return (struct sk_index_params){.kind = SK_INDEX_HNSW,
                                    .metric = metric,
                                    .dim = DIM,
                                    .ef_construction = 60,
                                    .flat_below = 1,
                                    .seed = 5,
                                    .is_unlogged = true};
}

enum kind { LIKE_ROWS, NOISY, MIXED };

static void query_of(struct world *w, enum kind kind, float *out)
{
    float part[DIM];
    world_vector(w, out);
    for (unsigned n = 0; n < 2 && kind == MIXED; n++) {
        world_vector(w, part);
        for (unsigned i = 0; i < DIM; i++)
            out[i] += part[i];
    }
    for (unsigned i = 0; i < DIM && kind != LIKE_ROWS; i++)
        out[i] = out[i] / (kind == MIXED ? 2 : 1) + 0.4F * world_normal(w);
}

static void search(struct world *w, const struct sk_index_query *query, struct sk_index_result *result)
{
    assert_ok(sk_index_search(w->index, w->reader, query, result, &w->d));
}

struct reached {
    double share, distances; /* means */
};

static struct reached ask(struct world *w, float target, enum kind kind)
{
    struct reached out = {0, 0};
    w->random = 99; /* the same queries each time */
    for (unsigned n = 0; n < QUERIES; n++) {
        float vector[DIM], scores[2][ROOM];
        uint32_t rows[2][ROOM];
        struct sk_index_result results[2];
        for (unsigned i = 0; i < 2; i++)
            results[i] = (struct sk_index_result){
                .rows = rows[i], .scores = scores[i], .capacity = ROOM};
        query_of(w, kind, vector);
        search(w, &(struct sk_index_query){.vector = vector, .k = K, .is_exact = true}, &results[0]);
        search(w, &(struct sk_index_query){.vector = vector, .k = K, .recall_target = target},
               &results[1]);
        assert_true(results[1].count >= K);
        for (uint32_t i = 0; i < K; i++)
            for (uint32_t j = 0; j < results[1].count; j++)
                out.share += rows[0][i] == rows[1][j];
        out.distances += (double)results[1].distances;
    }
    out.share /= QUERIES * K;
    out.distances /= QUERIES;
    return out;
}

static void assert_reached(struct reached got, float target, const char *what)
{
    if (got.share < (double)target - 0.03)
        fail_msg("%s: recall %.3f, want %.3f", what, got.share, (double)target);
}

static void a_target_is_reached_on_queries_of_any_kind(void **state)
{
    static float queries[100 * DIM];
    (void)state;
    if (LESS(10) == 1)
        skip(); /* one thread only */
    for (int metric = SK_METRIC_L2; metric <= SK_METRIC_COSINE; metric++) {
        const struct sk_index_params params = params_of((enum sk_metric)metric);
        struct world world, *w = &world;
        world_init(w, &params, ROWS);
        world_fill(w, ROWS);
        const struct reached before = ask(w, 0.9F, LIKE_ROWS);
        assert_reached(before, 0.9F, "before anything is known");
        for (unsigned i = 0; i < 100; i++)
            world_vector(w, queries + i * DIM);
        assert_ok(sk_index_calibrate(w->index, queries, 100, K, &w->d));
        const struct reached low = ask(w, 0.8F, LIKE_ROWS), same = ask(w, 0.9F, LIKE_ROWS);
        const struct reached high = ask(w, 0.98F, LIKE_ROWS), other = ask(w, 0.9F, NOISY);
        assert_reached(low, 0.8F, "low");
        assert_reached(same, 0.9F, "like the rows");
        assert_reached(high, 0.98F, "high");
        assert_reached(other, 0.9F, "unlike the rows");
        assert_true(low.distances <= same.distances && same.distances <= high.distances);
        assert_true(same.distances < before.distances);
        struct sk_index_stats stats;
        sk_index_get_stats(w->index, &stats);
        assert_int_equal(stats.recall_samples, 100);
        assert_ok(sk_index_check(w->index, &(struct sk_index_check_report){0}, &w->d));
        world_deinit(w);
    }
}

static void run_steps(struct world *w)
{
    bool has_more = true;
    for (unsigned n = 0; has_more; n++) {
        assert_ok(sk_index_step(w->index, 0, NULL, 0, &has_more, &w->d));
        assert_true(n < 100000);
    }
}

static void steps_calibrate_once_searches_have_asked(void **state)
{
    (void)state;
    if (LESS(10) == 1)
        skip(); /* one thread only */
    const struct sk_index_params params = params_of(SK_METRIC_L2);
    struct world world, *w = &world;
    struct sk_index_stats stats;
    world_init(w, &params, ROWS);
    world_fill(w, ROWS);
    run_steps(w);
    assert_null(w->index->recall->calibration); /* nobody has asked */
    const struct reached before = ask(w, 0.9F, LIKE_ROWS);
    run_steps(w);
    for (unsigned n = 0; n < 8; n++) { /* a ring full of shadow queries each time */
        (void)ask(w, 0.9F, LIKE_ROWS);
        run_steps(w);
    }
    const struct reached after = ask(w, 0.9F, LIKE_ROWS);
    assert_reached(after, 0.9F, "after steps");
    assert_true(after.distances < before.distances);
    sk_index_get_stats(w->index, &stats);
    assert_true(stats.recall_samples >= SK_RECALL_REAL_MIN);
    assert_true(stats.recall_target == 0.9F);
    assert_true(stats.recall_measured >= 0.9F && stats.recall_measured <= 1);
    assert_true(stats.recall_ef_mean >= K && stats.recall_ef_mean < 640);
    /* queries of a kind that nothing has prepared it for teach it */
    for (unsigned n = 0; n < 12; n++) {
        for (unsigned more = 0; more < 2048 / QUERIES; more++)
            (void)ask(w, 0.9F, MIXED);
        run_steps(w);
    }
    assert_reached(ask(w, 0.9F, MIXED), 0.9F, "a kind of its own");
    /* the rows become others: it is measured anew */
    const uint32_t gone = ROWS * 2 / 3;
    for (uint32_t row = 0; row < gone; row++)
        world_remove(w, row);
    run_steps(w);
    assert_reached(ask(w, 0.9F, LIKE_ROWS), 0.9F, "with a third of the rows");
    world_deinit(w);
}

/* It has no 8-bit codes to measure by (once the steps of a worker read them nevertheless, and died). */
static void profile_memory_keeps_a_wide_beam(void **state)
{
    (void)state;
    struct sk_index_params params = params_of(SK_METRIC_L2);
    params.profile = SK_INDEX_MEMORY;
    struct world world, *w = &world;
    world_init(w, &params, ROWS);
    world_fill(w, ROWS);
    const float query[DIM] = {1};
    float scores[ROOM];
    uint32_t rows[ROOM];
    for (unsigned n = 0; n < 300; n++) {
        struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = ROOM};
        search(w, &(struct sk_index_query){.vector = query, .k = K, .recall_target = 0.9F}, &result);
        assert_true(result.count >= K);
    }
    run_steps(w);
    assert_null(w->index->recall->calibration);
    assert_int_equal(sk_index_calibrate(w->index, query, 1, K, &w->d), SK_ERR_INVALID);
    assert_non_null(strstr(w->d.text, "profile memory"));
    world_deinit(w);
}

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    const struct sk_index_params params = params_of(SK_METRIC_COSINE);
    struct world world, *w = &world;
    float vector[DIM] = {1};
    world_init(w, &params, ROWS);
    assert_int_equal(sk_index_calibrate(w->index, vector, 1, 0, &w->d), SK_ERR_INVALID);
    assert_int_equal(sk_index_calibrate(w->index, vector, 1, SK_INDEX_EF_MAX + 1, &w->d), SK_ERR_INVALID);
    vector[3] = NAN;
    assert_int_equal(sk_index_calibrate(w->index, vector, 1, K, &w->d), SK_ERR_INVALID);
    assert_non_null(strstr(w->d.text, "query 0"));
    memset(vector, 0, sizeof vector);
    assert_int_equal(sk_index_calibrate(w->index, vector, 1, K, &w->d), SK_ERR_INVALID);
    vector[0] = 1; /* too few rows: a complete scan answers */
    assert_ok(sk_index_calibrate(w->index, vector, 1, K, &w->d));
    assert_null(w->index->recall->calibration);
    world_deinit(w);
}

static void answers_are_the_same_on_every_instruction_set(void **state)
{
    static uint32_t first[QUERIES][ROOM];
    (void)state;
    if (LESS(10) == 1)
        skip(); /* one thread only */
    for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
        struct sk_index_params params = params_of(SK_METRIC_IP);
        struct world world, *w = &world;
        params.isa = sk_kernels_name(isa);
        world_init(w, &params, LESS(ROWS) + 500);
        world_fill(w, LESS(ROWS) + 500);
        assert_ok(sk_index_calibrate(w->index, NULL, 0, K, &w->d));
        for (unsigned n = 0; n < QUERIES; n++) {
            float vector[DIM], scores[ROOM];
            uint32_t rows[ROOM] = {0};
            struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = ROOM};
            world_vector(w, vector);
            search(w, &(struct sk_index_query){.vector = vector, .k = K, .recall_target = 0.93F},
                   &result);
            if (isa == 0)
                memcpy(first[n], rows, sizeof rows);
            assert_memory_equal(first[n], rows, sizeof rows);
        }
        world_deinit(w);
    }
}

/* ---- the arithmetic of the fit ---- */

static void make_samples(struct sk_recall_samples *samples, uint32_t count)
{
    memset(samples, 0, sizeof *samples);
    samples->made_count = count;
    for (uint32_t i = 0; i < count; i++)
        for (unsigned level = 0; level < SK_RECALL_LEVELS; level++) {
            struct sk_recall_sample *sample = &samples->made[i];
            sample->contrast[level] = (float)(i % 50) / 50;
            sample->spread[level] = (float)(level * (1 + i % 3)) / 40;
            double score = 1 - 4 * (double)sample->contrast[level] + 6 * (double)sample->spread[level];
            sample->hits[level] = (uint8_t)lrint(100 / (1 + exp(-score)));
        }
}

static void the_model_behind_samples_is_found_again(void **state)
{
    (void)state;
    struct sk_recall_samples *samples = malloc(sizeof *samples);
    struct sk_recall_model model = {0, 0, 0};
    assert_non_null(samples);
    make_samples(samples, 500);
    unsigned steps = 0;
    while (sk_recall_fit_step(samples, 100, &model) > 1e-6)
        assert_true(++steps < 30);
    assert_true(fabs(model.bias - 1) < 0.1);
    assert_true(fabs(model.contrast_weight + 4) < 0.1);
    assert_true(fabs(model.spread_weight - 6) < 0.2);
    double bar = -INFINITY;
    for (unsigned i = 0; i < SK_RECALL_TARGETS; i++) {
        const double target = (double)sk_recall_targets[i];
        const double next = sk_recall_fit_bar(samples, 100, &model, target);
        assert_true(next >= bar);
        bar = next;
        /* taken for real ones, they reach what was asked for, and not much more */
        memcpy(samples->real, samples->made, sizeof samples->made);
        samples->real_count = samples->made_count;
        double level_mean = 0;
        const double measured = sk_recall_measure(samples, 100, &model, bar, &level_mean);
        samples->real_count = 0;
        assert_true(bar == INFINITY || measured >= target);
        assert_true(level_mean >= sk_recall_level_size(100, 0));
        if (i > 0 && target >= 0.8 && target < 0.97)
            assert_true(measured < target + 0.1 * (1 - target) + 0.03);
    }
    for (uint32_t i = 0; i < samples->made_count; i++) /* nothing finds more than half */
        memset(samples->made[i].hits, 50, sizeof samples->made[i].hits);
    assert_true(sk_recall_fit_bar(samples, 100, &model, 0.9) == INFINITY);
    assert_int_equal(sk_recall_fit_level(samples, 100, 0.9), SK_RECALL_LEVELS - 1);
    assert_int_equal(sk_recall_fit_level(samples, 100, 0.4), 0);
    free(samples);
}

/* Real queries that are harder than the made ones raise the bar; easier ones do not lower it. */
static void the_harder_samples_decide(void **state)
{
    (void)state;
    struct sk_recall_samples *samples = malloc(sizeof *samples);
    const struct sk_recall_model model = {1, -4, 6};
    assert_non_null(samples);
    make_samples(samples, 500);
    const double made = sk_recall_fit_bar(samples, 100, &model, 0.8);
    memcpy(samples->real, samples->made, sizeof samples->real);
    samples->real_count = 500;
    for (uint32_t i = 0; i < 500; i++)
        for (unsigned level = 0; level < SK_RECALL_LEVELS; level++)
            samples->real[i].hits[level] = (uint8_t)(samples->real[i].hits[level] * 9 / 10);
    assert_true(sk_recall_fit_bar(samples, 100, &model, 0.8) > made + 0.1);
    for (uint32_t i = 0; i < 500; i++)
        memset(samples->real[i].hits, 100, sizeof samples->real[i].hits);
    assert_true(sk_recall_fit_bar(samples, 100, &model, 0.8) == made);
    samples->real_count = SK_RECALL_REAL_MIN - 1; /* too few to say anything */
    for (uint32_t i = 0; i < 500; i++)
        memset(samples->real[i].hits, 0, sizeof samples->real[i].hits);
    assert_true(sk_recall_fit_bar(samples, 100, &model, 0.8) == made);
    free(samples);
}

/* ---- beside the writer ---- */

struct reading {
    struct world *w;
    _Atomic bool is_over;
    bool has_failed; /* cmocka's asserts belong to the main thread */
};

static void *read_on(void *impl)
{
    struct reading *self = impl;
    struct sk_index_reader *reader = NULL;
    struct sk_diag d;
    if (sk_index_reader_new(&reader, self->w->index, &d) != SK_ERR_OK)
        self->has_failed = true;
    for (unsigned n = 0; !self->has_failed && !atomic_load(&self->is_over); n++) {
        float vector[DIM], scores[ROOM];
        uint32_t rows[ROOM];
        for (unsigned i = 0; i < DIM; i++)
            vector[i] = (float)((n * 7919 + i * 104729) % 1000) / 500.0F - 1;
        const struct sk_index_query query = {.vector = vector, .k = K, .recall_target = 0.9F};
        struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = ROOM};
        self->has_failed =
            sk_index_search(self->w->index, reader, &query, &result, &d) != SK_ERR_OK ||
            result.count < K;
    }
    sk_index_reader_destroy(&reader);
    return NULL;
}

static void searches_go_on_while_it_is_learned(void **state)
{
    (void)state;
    enum { READERS = 2 };
    const struct sk_index_params params = params_of(SK_METRIC_L2);
    struct world world, *w = &world;
    struct sk_index_stats stats;
    pthread_t threads[READERS];
    struct reading readings[READERS];
    world_init(w, &params, ROWS);
    world_fill(w, 500);
    for (unsigned i = 0; i < READERS; i++) {
        readings[i] = (struct reading){.w = w};
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &readings[i]), 0);
    }
    for (uint32_t row = 500; row < 900; row++) {
        assert_ok(world_insert(w, row));
        bool has_more;
        for (unsigned n = 0; n < 4; n++)
            assert_ok(sk_index_step(w->index, 0, NULL, 0, &has_more, &w->d));
    }
    for (unsigned i = 0; i < READERS; i++) {
        atomic_store(&readings[i].is_over, true);
        pthread_join(threads[i], NULL);
        assert_false(readings[i].has_failed);
    }
    run_steps(w);
    sk_index_get_stats(w->index, &stats);
    assert_true(stats.recall_target == 0.9F);
    world_deinit(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_target_is_reached_on_queries_of_any_kind),
        cmocka_unit_test(steps_calibrate_once_searches_have_asked),
        cmocka_unit_test(profile_memory_keeps_a_wide_beam),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(answers_are_the_same_on_every_instruction_set),
        cmocka_unit_test(the_model_behind_samples_is_found_again),
        cmocka_unit_test(the_harder_samples_decide),
        cmocka_unit_test(searches_go_on_while_it_is_learned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
