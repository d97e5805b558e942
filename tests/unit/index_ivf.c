/* links: sk_index */
/* Kinds with lists: what they find, what inserts and removes in any order leave, lists that follow data that
 * moves, and the log and the image of it. */
#include "tests/unit/index_world.h"

enum { DIM = 96, ROWS = 3000 };
static const enum sk_index_kind KINDS[] = {SK_INDEX_IVF_FLAT, SK_INDEX_IVF_PQ, SK_INDEX_HYBRID};
static const enum sk_metric METRICS[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};

static struct sk_index_stats stats_of(const struct world *w)
{
    struct sk_index_stats stats;
    sk_index_get_stats(w->index, &stats);
    return stats;
}

static void rest_every(struct world *w, uint32_t row)
{
    if (row % 64 == 63)
        world_rest(w, 0);
}

static void fill(struct world *w, uint32_t from, uint32_t until)
{
    for (uint32_t row = from; row < until; row++) {
        assert_ok(world_insert(w, row));
        rest_every(w, row);
    }
    world_rest(w, 0);
}

static void make(struct world *w, enum sk_index_kind kind, enum sk_metric metric, uint32_t rows)
{
    struct sk_index_params params = world_params(kind, metric, DIM);
    world_init(w, &params, rows);
}

/* ---- what is found ---- */

static void every_kind_finds_the_nearest_with_every_metric(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++)
        for (size_t m = 0; m < SK_COUNT_OF(METRICS); m++) {
            struct world world, *w = &world;
            make(w, KINDS[k], METRICS[m], LESS(ROWS));
            fill(w, 0, LESS(ROWS) / 20); /* no lists yet: exact */
            assert_true(stats_of(w).is_flat);
            assert_true(world_recall(w, 20, 0) > 0.999);
            fill(w, LESS(ROWS) / 20, LESS(ROWS));
            (void)world_check(w);
#ifndef __SANITIZE_THREAD__
            assert_false(stats_of(w).is_flat);
            assert_true(stats_of(w).lists >= 20);
#endif
            const double recall = world_recall(w, 100, 0);
            if (recall < 0.93)
                fail_msg("kind %d metric %d: recall %.3f", (int)KINDS[k], (int)METRICS[m], recall);
            world_deinit(w);
        }
}

static void a_new_row_is_found_at_once_and_a_removed_one_is_not(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        make(w, KINDS[k], SK_METRIC_L2, 1500);
        for (uint32_t row = 0; row < 1500; row++) {
            assert_ok(world_insert(w, row));
            const float *vector = w->vectors + (size_t)row * DIM;
            if (row % 50 == 7) {
                assert_int_equal(world_search(w, vector, 0, NULL, NULL).rows[0], row);
                world_remove(w, row);
                const struct found found = world_search(w, vector, 0, NULL, NULL);
                assert_true(found.count == 0 || found.rows[0] != row);
            }
            rest_every(w, row);
        }
        (void)world_check(w);
        world_deinit(w);
    }
}

static bool is_let_in(void *impl, uint32_t row)
{
    return row % *(const uint32_t *)impl == 3;
}

static void a_filter_never_leaves_fewer_than_match(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++)
        for (uint32_t step = 2; step < 1300; step *= 6) {
            struct world world, *w = &world;
            uint64_t words[2000 / 64 + 1] = {0};
            float query[DIM];
            uint64_t hits = 0, wanted = 0;
            make(w, KINDS[k], SK_METRIC_COSINE, 2000);
            fill(w, 0, 2000);
            for (uint32_t row = 0; row < 2000; row++)
                if (is_let_in(&step, row))
                    words[row / 64] |= 1ULL << row % 64;
            const struct sk_index_filter filters[] = {
                {.words = words, .word_count = SK_COUNT_OF(words)},
                {.impl = &step, .accepts = is_let_in}};
            for (unsigned n = 0; n < 20; n++) {
                world_vector(w, query);
                const struct found exact = world_exact(w, query, is_let_in, &step);
                const struct found found = world_search(w, query, 0, &filters[n % 2], NULL);
                assert_int_equal(found.count, exact.count);
                for (uint32_t i = 0; i < found.count; i++)
                    assert_true(is_let_in(&step, found.rows[i]));
                hits += n % 2 == 0 ? world_hits(w, &exact, &found) : 0;
                wanted += n % 2 == 0 ? exact.count : 0;
            }
            assert_true((double)hits >= 0.95 * (double)wanted);
            world_deinit(w);
        }
}

static void more_lists_find_more_and_all_lists_everything(void **state)
{
    (void)state;
    struct world world, *w = &world;
    make(w, SK_INDEX_IVF_FLAT, SK_METRIC_L2, LESS(ROWS));
    fill(w, 0, LESS(ROWS));
    uint64_t hits[3] = {0};
    static const uint32_t probes[] = {1, 8, 1U << 20};
    for (unsigned n = 0; n < 60; n++) {
        float query[DIM], scores[64];
        uint32_t rows[64];
        world_vector(w, query);
        const struct found exact = world_exact(w, query, NULL, NULL);
        for (size_t i = 0; i < SK_COUNT_OF(probes); i++) {
            const struct sk_index_query asked = {.vector = query, .k = K, .nprobe = probes[i]};
            struct sk_index_result result = {.capacity = 64, .rows = rows, .scores = scores};
            assert_ok(sk_index_search(w->index, w->reader, &asked, &result, &w->d));
            for (uint32_t j = 0; j < result.count; j++)
                for (uint32_t l = 0; l < exact.count; l++)
                    hits[i] += rows[j] == exact.rows[l];
        }
    }
#ifndef __SANITIZE_THREAD__
    assert_true(hits[0] < hits[1]);
#endif
    assert_true(hits[1] <= hits[2]);
    assert_int_equal(hits[2], 60 * K); /* nothing is lost within lists that are looked at */
    world_deinit(w);
}

static void params_out_of_range_are_refused_and_say_so(void **state)
{
    struct world world = {0}, *w = &world;
    struct sk_index *index;
    (void)state;
    struct sk_index_params params = world_params(SK_INDEX_IVF_PQ, SK_METRIC_L2, DIM);
    params.pq_m = 129;
    assert_int_equal(sk_index_new(&index, &params, NULL, &w->d), SK_ERR_INVALID);
    assert_non_null(strstr(w->d.text, "pq_m 129, want 0 (automatic) to 128"));
    params.pq_m = 0;
    params.nlist = 2000000;
    assert_int_equal(sk_index_new(&index, &params, NULL, &w->d), SK_ERR_INVALID);
    assert_non_null(strstr(w->d.text, "nlist 2000000"));
    params.nlist = 0;
    params.refine = 1001;
    assert_int_equal(sk_index_new(&index, &params, NULL, &w->d), SK_ERR_INVALID);
    assert_non_null(strstr(w->d.text, "refine 1001"));
}

static void finer_codes_order_better(void **state)
{
    static const uint32_t parts[] = {16, 32, 64, 128};
    double last = 0;
    (void)state;
    for (size_t i = 0; i < SK_COUNT_OF(parts); i++) {
        struct world world, *w = &world;
        struct sk_index_params params = world_params(SK_INDEX_IVF_PQ, SK_METRIC_L2, DIM);
        params.pq_m = parts[i];
        params.refine = 1;
        world_init(w, &params, 1500);
        fill(w, 0, 1500);
        const double recall = world_recall(w, 60, 0);
        assert_true(recall > last - 0.01);
        last = recall;
        world_deinit(w);
    }
    assert_true(last > 0.93);
}

/* ---- what changes leave ---- */

struct numbers {
    uint32_t free_rows[ROWS], count;
};

static void reclaim(struct world *w, struct numbers *numbers)
{
    numbers->count +=
        sk_index_reclaim_rows(w->index, numbers->free_rows + numbers->count, ROWS - numbers->count);
}

/* Everything is deleted and comes again `turns` times, cluster by cluster or in any order. */
static void turn_over(struct world *w, struct numbers *numbers, uint32_t rows, unsigned turns)
{
    for (uint32_t n = 0; n < turns * rows; n++) {
        const uint32_t old = n % rows;
        if (w->lseqs[old] != 0)
            world_remove(w, old);
        if (n % 32 == 31) {
            world_rest(w, SK_INDEX_STEP_EAGER);
            reclaim(w, numbers);
            while (numbers->count > 0)
                assert_ok(world_insert(w, numbers->free_rows[--numbers->count]));
            world_rest(w, 0);
        }
        if (n % 512 == 511)
            (void)world_check(w);
    }
}

static void turnovers_leave_recall_and_memory_where_they_were(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        struct numbers *numbers = calloc(1, sizeof *numbers);
        const uint32_t rows = LESS(2000) / 32 * 32;
        make(w, KINDS[k], SK_METRIC_L2, rows);
        fill(w, 0, rows);
        const double before = world_recall(w, 80, 0);
        const uint64_t bytes = stats_of(w).memory_bytes;
        turn_over(w, numbers, rows, LESS(30) / 10);
        world_rest(w, SK_INDEX_STEP_EAGER);
        (void)world_check(w);
        assert_int_equal(stats_of(w).tombstones, 0);
        const double after = world_recall(w, 80, 0);
        if (after < before - 0.03)
            fail_msg("kind %d: recall %.3f, was %.3f", (int)KINDS[k], after, before);
        assert_true(stats_of(w).memory_bytes <= bytes + bytes / 2);
        free(numbers);
        world_deinit(w);
    }
}

/* The first rows lie elsewhere than the last: lists that were found for those must split for these. */
static void lists_follow_data_that_drifts(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        make(w, KINDS[k], SK_METRIC_L2, ROWS);
        for (uint32_t row = 0; row < ROWS; row++) {
            float *vector = w->vectors + (size_t)row * DIM;
            const float *centre = w->centres + (size_t)(row * CLUSTERS / ROWS) * DIM;
            for (uint32_t i = 0; i < DIM; i++)
                vector[i] = 2 * centre[i] + 0.7F * world_normal(w);
            assert_ok(sk_index_insert(w->index, row, w->lseq + 1, vector, &w->d));
            w->lseqs[row] = ++w->lseq;
            rest_every(w, row);
        }
        world_rest(w, 0);
        (void)world_check(w);
        assert_true(stats_of(w).lists >= 15);
        uint64_t hits = 0;
        for (unsigned n = 0; n < 100; n++) {
            float query[DIM];
            const float *vector = w->vectors + world_random(w, ROWS) * DIM;
            for (uint32_t i = 0; i < DIM; i++)
                query[i] = vector[i] + 0.3F * world_normal(w);
            const struct found exact = world_exact(w, query, NULL, NULL);
            const struct found found = world_search(w, query, 0, NULL, NULL);
            hits += world_hits(w, &exact, &found);
        }
        if (hits < 100 * K * 93 / 100)
            fail_msg("kind %d: %llu of %d", (int)KINDS[k], (unsigned long long)hits, 100 * K);
        world_deinit(w);
    }
}

static void equal_rows_and_an_index_that_empties_do_no_harm(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        make(w, KINDS[k], SK_METRIC_L2, 2000);
        w->is_coarse = true;
        fill(w, 0, 2000);
        (void)world_check(w);
        float query[DIM] = {1};
        assert_int_equal(world_search(w, query, 0, NULL, NULL).count, K);
        for (uint32_t row = 0; row < 2000; row++)
            world_remove(w, row);
        world_rest(w, SK_INDEX_STEP_EAGER);
        (void)world_check(w);
        assert_int_equal(world_search(w, query, 0, NULL, NULL).count, 0);
        assert_int_equal(stats_of(w).tombstones, 0);
        assert_true(stats_of(w).lists <= 1);
        world_deinit(w);
    }
}

static void a_memory_limit_stops_inserts_and_nothing_else(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        struct sk_index_params params = world_params(KINDS[k], SK_METRIC_L2, DIM);
        params.memory_bytes_max = 1 << 20;
        world_init(w, &params, 100000);
        uint32_t row = 0;
        enum sk_err rc = SK_ERR_OK;
        for (; row < w->rows && rc == SK_ERR_OK; row++) {
            rc = world_insert(w, row);
            rest_every(w, row);
        }
        assert_int_equal(rc, SK_ERR_NOMEM);
        assert_true(row > 1000);
        assert_true(stats_of(w).memory_bytes <= params.memory_bytes_max);
        (void)world_check(w);
        assert_int_equal(world_search(w, w->vectors, 0, NULL, NULL).count, K);
        world_remove(w, 5);
        world_rest(w, 0);
        (void)world_check(w);
        world_deinit(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_finds_the_nearest_with_every_metric),
        cmocka_unit_test(a_new_row_is_found_at_once_and_a_removed_one_is_not),
        cmocka_unit_test(a_filter_never_leaves_fewer_than_match),
        cmocka_unit_test(more_lists_find_more_and_all_lists_everything),
        cmocka_unit_test(params_out_of_range_are_refused_and_say_so),
        cmocka_unit_test(finer_codes_order_better),
        cmocka_unit_test(turnovers_leave_recall_and_memory_where_they_were),
        cmocka_unit_test(lists_follow_data_that_drifts),
        cmocka_unit_test(equal_rows_and_an_index_that_empties_do_no_harm),
        cmocka_unit_test(a_memory_limit_stops_inserts_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
