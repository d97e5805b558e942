/* links: sk_index */
#include "tests/unit/index_world.h"

static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
static const char *const names[] = {"l2", "ip", "cosine"};

static void recall_is_above_its_floor_under_every_metric(void **state)
{
    (void)state;
    for (size_t m = 0; m < SK_COUNT_OF(metrics); m++) {
        struct world world, *w = &world;
        const struct sk_index_params params = world_params(SK_INDEX_HNSW, metrics[m], 128);
        struct sk_index_stats stats;
        const uint32_t rows = LESS(4000);
        world_init(w, &params, rows);
        world_fill(w, rows);
        world_rest(w, 0);
        sk_index_get_stats(w->index, &stats);
        assert_false(stats.is_flat);
        assert_int_equal(stats.rows, rows);
        double recall = world_recall(w, 100, 64), wide = world_recall(w, 50, 400);
        print_message("             %s: recall@%d %.3f at ef 64, %.3f at ef 400\n", names[m], K,
                      recall, wide);
        assert_true(recall >= 0.95);
        assert_true(wide >= 0.99);
        assert_int_equal(world_check(w).unreachable_rows, 0);
        world_deinit(w);
    }
}

static void a_certain_answer_is_the_exact_one(void **state)
{
    (void)state;
    for (size_t m = 0; m < SK_COUNT_OF(metrics); m++)
        for (int kind = SK_INDEX_FLAT; kind <= SK_INDEX_HNSW; kind++) {
            struct world world, *w = &world;
            struct sk_index_params params =
                world_params((enum sk_index_kind)kind, metrics[m], 96);
            params.flat_below = 0; /* 1,500 rows are scanned by hnsw too */
            world_init(w, &params, 1500);
            world_fill(w, 1500);
            for (uint32_t row = 0; row < 1500; row += 3)
                world_remove(w, row);
            float query[96];
            for (unsigned n = 0; n < 50; n++) {
                struct sk_index_result result;
                world_vector(w, query);
                struct found exact = world_exact(w, query, NULL, NULL);
                struct found found = world_search(w, query, 0, NULL, &result);
                assert_true(result.is_certain);
                assert_memory_equal(&exact.rows, &found.rows, sizeof exact.rows);
                assert_memory_equal(&exact.scores, &found.scores, sizeof exact.scores);
            }
            world_deinit(w);
        }
}

static void every_small_dimension_works(void **state)
{
    (void)state;
    for (uint32_t dim = 1; dim <= 66; dim += dim < LESS(10) ? 1 : 7)
        for (size_t m = 0; m < SK_COUNT_OF(metrics); m++) {
            struct world world, *w = &world;
            const struct sk_index_params params = world_params(SK_INDEX_HNSW, metrics[m], dim);
            world_init(w, &params, 600);
            world_fill(w, LESS(600));
            world_rest(w, 0);
            double recall = world_recall(w, 30, 64);
            if (recall < 0.9)
                fail_msg("dim %u, %s: recall %.3f", dim, names[m], recall);
            (void)world_check(w);
            world_deinit(w);
        }
}

static void sizes_that_are_no_power_of_two_work(void **state)
{
    static const uint32_t dims[] = {100, 129, 500, 960, 1000};
    (void)state;
    for (size_t i = 0; i < SK_COUNT_OF(dims); i++) {
        struct world world, *w = &world;
        const struct sk_index_params params =
            world_params(SK_INDEX_HNSW, metrics[i % SK_COUNT_OF(metrics)], dims[i]);
        world_init(w, &params, 500);
        world_fill(w, 500);
        double recall = world_recall(w, 30, 64);
        if (recall < 0.95)
            fail_msg("dim %u: recall %.3f", dims[i], recall);
        world_deinit(w);
    }
}

/* Hundreds of equal vectors: none is lost and they do not cut off the others. */
static void equal_vectors_are_islands_that_are_found(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, 128);
    float copy[128];
    (void)state;
    world_init(w, &params, 2000);
    world_vector(w, copy);
    for (uint32_t row = 0; row < 2000; row++) {
        float *vector = w->vectors + (size_t)row * 128;
        world_vector(w, vector);
        if (row % 4 == 0)
            memcpy(vector, copy, sizeof copy);
        assert_ok(sk_index_insert(w->index, row, w->lseq + 1, vector, &w->d));
        w->lseqs[row] = ++w->lseq;
    }
    world_rest(w, 0);
    assert_int_equal(world_check(w).unreachable_rows, 0);
    struct found found = world_search(w, copy, 64, NULL, NULL);
    assert_int_equal(found.count, K);
    for (unsigned i = 0; i < K; i++)
        assert_true(found.scores[i] == 0);
    assert_true(world_recall(w, 50, 64) >= 0.9);
    world_deinit(w);
}

static void only_equal_vectors_are_no_trap(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_COSINE, 64);
    float one[64];
    (void)state;
    world_init(w, &params, 300);
    for (unsigned i = 0; i < 64; i++)
        one[i] = 0.25F;
    for (uint32_t row = 0; row < 300; row++) {
        memcpy(w->vectors + (size_t)row * 64, one, sizeof one);
        assert_ok(sk_index_insert(w->index, row, w->lseq + 1, one, &w->d));
        w->lseqs[row] = ++w->lseq;
    }
    world_rest(w, 0);
    (void)world_check(w);
    assert_int_equal(world_search(w, one, 64, NULL, NULL).count, K);
    world_deinit(w);
}

/* ---- filters ---- */

struct mask {
    uint64_t words[64];
    uint32_t modulus;
};

static bool in_mask(void *impl, uint32_t row)
{
    const struct mask *mask = impl;
    return (mask->words[row / 64] >> row % 64 & 1) != 0;
}

static void a_filter_lets_only_its_rows_in_and_finds_them(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_COSINE, 128);
    static const uint32_t moduli[] = {1, 2, 10, 50, 300, 1500, 4000};
    float query[128];
    (void)state;
    world_init(w, &params, 3000);
    world_fill(w, 3000);
    world_rest(w, 0);
    for (uint32_t row = 0; row < 3000; row += 11)
        world_remove(w, row);
    for (size_t i = 0; i < SK_COUNT_OF(moduli); i++)
        for (int as_function = 0; as_function < 2; as_function++) {
            struct mask mask = {.modulus = moduli[i]};
            uint64_t hits = 0, wanted = 0;
            for (uint32_t row = 5; row < 3000; row += moduli[i])
                mask.words[row / 64] |= UINT64_C(1) << row % 64;
            const struct sk_index_filter by_words = {.words = mask.words, .word_count = 47};
            const struct sk_index_filter by_function = {.impl = &mask, .accepts = in_mask};
            for (unsigned n = 0; n < 25; n++) {
                world_vector(w, query);
                struct found exact = world_exact(w, query, in_mask, &mask);
                struct found found = world_search(
                    w, query, 64, as_function != 0 ? &by_function : &by_words, NULL);
                for (uint32_t f = 0; f < found.count; f++)
                    assert_true(in_mask(&mask, found.rows[f]));
                assert_int_equal(found.count, exact.count); /* never fewer than there are */
                hits += world_hits(w, &exact, &found);
                wanted += exact.count;
            }
            if ((double)hits < 0.95 * (double)wanted)
                fail_msg("one in %u: %llu of %llu", moduli[i], (unsigned long long)hits,
                         (unsigned long long)wanted);
        }
    struct mask none = {.modulus = 0};
    const struct sk_index_filter nothing = {.words = none.words, .word_count = 47};
    assert_int_equal(world_search(w, query, 64, &nothing, NULL).count, 0);
    const struct sk_index_filter short_words = {.words = none.words, .word_count = 0};
    assert_int_equal(world_search(w, query, 64, &short_words, NULL).count, 0);
    world_deinit(w);
}

static void tombstones_around_the_query_do_not_hide_what_is_behind(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, 128);
    (void)state;
    world_init(w, &params, 2000);
    world_fill(w, 2000);
    world_rest(w, 0);
    float query[128];
    memcpy(query, w->vectors, sizeof query);
    for (unsigned n = 0; n < 30; n++) { /* the nearest ten, thirty times: no sweep between */
        struct found exact = world_exact(w, query, NULL, NULL);
        for (uint32_t i = 0; i < exact.count; i++)
            world_remove(w, exact.rows[i]);
    }
    struct found exact = world_exact(w, query, NULL, NULL), found = world_search(w, query, 64, NULL, NULL);
    assert_int_equal(found.count, K);
    assert_true(world_hits(w, &exact, &found) >= 8);
    world_deinit(w);
}

/* ---- bounds ---- */

static void a_worst_score_leaves_out_what_is_surely_worse(void **state)
{
    (void)state;
    for (size_t m = 0; m < SK_COUNT_OF(metrics); m++)
        for (int kind = SK_INDEX_FLAT; kind <= SK_INDEX_HNSW; kind++) {
            struct world world, *w = &world;
            const struct sk_index_params params =
                world_params((enum sk_index_kind)kind, metrics[m], 128);
            uint32_t rows[64];
            float query[128], scores[64];
            world_init(w, &params, 800);
            world_fill(w, 800);
            for (unsigned n = 0; n < 20; n++) {
                world_vector(w, query);
                struct found exact = world_exact(w, query, NULL, NULL);
                const struct sk_index_query asked = {.vector = query,
                                                     .k = K,
                                                     .ef = 200,
                                                     .has_score_worst = true,
                                                     .score_worst = exact.scores[4]};
                struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = 64};
                assert_ok(sk_index_search(w->index, w->reader, &asked, &result, &w->d));
                unsigned found = 0;
                for (uint32_t i = 0; i < result.count; i++)
                    for (unsigned e = 0; e < 5; e++)
                        found += rows[i] == exact.rows[e];
                assert_true(found >= (kind == SK_INDEX_FLAT ? 5 : 4));
                assert_true(result.count < 40);
            }
            world_deinit(w);
        }
}

static uint64_t ticking(void *impl)
{
    uint64_t *now = impl;
    return *now += 10;
}

static void a_deadline_gives_what_was_found_until_then(void **state)
{
    (void)state;
    for (int kind = SK_INDEX_FLAT; kind <= SK_INDEX_HNSW; kind++) {
        struct world world, *w = &world;
        const struct sk_index_params params =
            world_params((enum sk_index_kind)kind, SK_METRIC_L2, 64);
        uint64_t now = 0;
        uint32_t rows[1200];
        float query[64], scores[1200];
        world_init(w, &params, 5000);
        world_fill(w, kind == SK_INDEX_FLAT ? 5000 : 1500);
        world_vector(w, query);
        const struct sk_index_query asked = {.vector = query,
                                             .k = 1000,
                                             .ef = 1000,
                                             .deadline_us = 5,
                                             .clock = {&now, ticking}};
        struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = 1200};
        assert_ok(sk_index_search(w->index, w->reader, &asked, &result, &w->d));
        assert_true(result.is_truncated && !result.is_certain);
        now = 0;
        struct sk_index_query patient = asked;
        patient.deadline_us = 1000000;
        assert_ok(sk_index_search(w->index, w->reader, &patient, &result, &w->d));
        assert_false(result.is_truncated);
        assert_true(result.count >= 1000);
        world_deinit(w);
    }
}

static void what_makes_no_sense_is_refused(void **state)
{
    struct world world, *w = &world;
    struct sk_index *other;
    struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_COSINE, 8);
    float vector[8] = {1, 2, 3, 4, 5, 6, 7, 8}, zero[8] = {0}, scores[16];
    uint32_t rows[16];
    (void)state;
    world_init(w, &params, 10);
    struct sk_index_query query = {.vector = vector, .k = 0};
    struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = 16};
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    query.k = 17; /* no room */
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    query.k = 5;
    assert_ok(sk_index_search(w->index, w->reader, &query, &result, &w->d));
    assert_int_equal(result.count, 0); /* an empty index */
    query.ef = 32;
    query.nprobe = 8;
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    query.ef = 0; /* this one has no lists */
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    query.nprobe = 0;
    static const float recalls[] = {-1, 0.49F, 0.9991F, NAN};
    for (size_t i = 0; i < SK_COUNT_OF(recalls); i++) {
        query.recall_target = recalls[i];
        assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d),
                         SK_ERR_INVALID);
    }
    query.recall_target = 0;
    query.ef = SK_INDEX_EF_MAX + 1;
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    query.ef = 0;
    query.vector = zero;
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    query.vector = vector;
    vector[3] = NAN;
    assert_int_equal(sk_index_search(w->index, w->reader, &query, &result, &w->d), SK_ERR_INVALID);
    assert_int_equal(sk_index_insert(w->index, 0, 1, vector, &w->d), SK_ERR_INVALID);
    assert_string_equal(w->d.field, "vector");
    vector[3] = INFINITY;
    assert_int_equal(sk_index_insert(w->index, 0, 1, vector, &w->d), SK_ERR_INVALID);
    vector[3] = 4;
    assert_int_equal(sk_index_insert(w->index, 0, 1, zero, &w->d), SK_ERR_INVALID);
    assert_int_equal(sk_index_insert(w->index, 4000000, 1, vector, &w->d), SK_ERR_INVALID);
    assert_ok(sk_index_insert(w->index, 3, 1, vector, &w->d));
    assert_int_equal(sk_index_insert(w->index, 3, 2, vector, &w->d), SK_ERR_EXISTS);
    assert_int_equal(sk_index_remove(w->index, 3, 2, &w->d), SK_ERR_NOT_FOUND);
    assert_ok(sk_index_remove(w->index, 3, 1, &w->d));
    assert_int_equal(sk_index_remove(w->index, 3, 1, &w->d), SK_ERR_NOT_FOUND);
    assert_int_equal(sk_index_insert(w->index, 3, 2, vector, &w->d), SK_ERR_EXISTS); /* not let go */
    world_deinit(w);
    static const struct {
        uint32_t dim, m, ef;
        int kind, metric;
        const char *isa;
    } wrong[] = {{0, 0, 0, 2, 1, NULL},      {8193, 0, 0, 2, 1, NULL}, {8, 3, 0, 2, 1, NULL},
                 {8, 65, 0, 2, 1, NULL},     {8, 0, 20001, 2, 1, NULL}, {8, 0, 0, 6, 1, NULL},
                 {8, 0, 0, 2, 0, NULL},      {8, 0, 0, 2, 4, NULL},     {8, 0, 0, 2, 1, "mmx"}};
    for (size_t i = 0; i < SK_COUNT_OF(wrong); i++) {
        params = (struct sk_index_params){.kind = (enum sk_index_kind)wrong[i].kind,
                                          .metric = (enum sk_metric)wrong[i].metric,
                                          .dim = wrong[i].dim,
                                          .m = wrong[i].m,
                                          .ef_construction = wrong[i].ef,
                                          .isa = wrong[i].isa};
        assert_int_equal(sk_index_new(&other, &params, NULL, &w->d), SK_ERR_INVALID);
        assert_null(other);
    }
}

static void readers_are_counted(void **state)
{
    struct world world, *w = &world;
    struct sk_index_reader *readers[SK_INDEX_READERS_MAX], *one_more;
    const struct sk_index_params params = world_params(SK_INDEX_FLAT, SK_METRIC_L2, 4);
    (void)state;
    world_init(w, &params, 10);
    for (unsigned i = 1; i < SK_INDEX_READERS_MAX; i++)
        assert_ok(sk_index_reader_new(&readers[i], w->index, &w->d));
    assert_int_equal(sk_index_reader_new(&one_more, w->index, &w->d), SK_ERR_BUSY);
    assert_null(one_more);
    for (unsigned i = 1; i < SK_INDEX_READERS_MAX; i++)
        sk_index_reader_destroy(&readers[i]);
    assert_ok(sk_index_reader_new(&one_more, w->index, &w->d));
    sk_index_reader_destroy(&one_more);
    world_deinit(w);
}

/* ---- memory ---- */

static void a_memory_budget_is_kept_and_everything_but_inserts_goes_on(void **state)
{
    (void)state;
    for (int kind = SK_INDEX_FLAT; kind <= SK_INDEX_HNSW; kind++) {
        struct world world, *w = &world;
        struct sk_index_params params = world_params((enum sk_index_kind)kind, SK_METRIC_L2, 256);
        struct sk_index_stats stats;
        enum sk_err err = SK_ERR_OK;
        uint32_t count = 0, reclaimed[64];
        params.memory_bytes_max = 1 << 20;
        world_init(w, &params, 10000);
        while (count < 10000 && (err = world_insert(w, count)) == SK_ERR_OK)
            count++;
        assert_int_equal(err, SK_ERR_NOMEM);
        assert_true(count > 500);
        sk_index_get_stats(w->index, &stats);
        assert_true(stats.memory_bytes <= params.memory_bytes_max);
        assert_true(stats.memory_bytes >= (uint64_t)count * (stats.row_bytes - 8));
        assert_int_equal(world_insert(w, count), SK_ERR_NOMEM);
        assert_true(world_recall(w, 20, 64) >= 0.9);
        for (uint32_t row = 0; row < 50; row++)
            world_remove(w, row);
        world_rest(w, SK_INDEX_STEP_EAGER);
        assert_int_equal(sk_index_reclaim_rows(w->index, reclaimed, 64), 50);
        for (uint32_t i = 0; i < 50; i++)
            assert_ok(world_insert(w, reclaimed[i])); /* in the room of those that left */
        (void)world_check(w);
        assert_true(world_recall(w, 20, 64) >= 0.9);
        world_deinit(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recall_is_above_its_floor_under_every_metric),
        cmocka_unit_test(a_certain_answer_is_the_exact_one),
        cmocka_unit_test(every_small_dimension_works),
        cmocka_unit_test(sizes_that_are_no_power_of_two_work),
        cmocka_unit_test(equal_vectors_are_islands_that_are_found),
        cmocka_unit_test(only_equal_vectors_are_no_trap),
        cmocka_unit_test(a_filter_lets_only_its_rows_in_and_finds_them),
        cmocka_unit_test(tombstones_around_the_query_do_not_hide_what_is_behind),
        cmocka_unit_test(a_worst_score_leaves_out_what_is_surely_worse),
        cmocka_unit_test(a_deadline_gives_what_was_found_until_then),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(readers_are_counted),
        cmocka_unit_test(a_memory_budget_is_kept_and_everything_but_inserts_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
