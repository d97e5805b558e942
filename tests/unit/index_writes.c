/* links: sk_index */
/* Inserts, removes and upserts in any order, with the whole structure looked at after every step; and
 * the log of changes played back. */
#include "tests/unit/index_world.h"

enum { DIM = 128, ROWS = 1200 };

/* ---- churn ---- */

struct free_rows {
    uint32_t rows[ROWS], count;
};

static void reclaim(struct world *w, struct free_rows *free_rows)
{
    uint32_t count = sk_index_reclaim_rows(w->index, free_rows->rows + free_rows->count,
                                           ROWS - free_rows->count);
    for (uint32_t i = 0; i < count; i++)
        assert_true(sk_index_row_is_free(w->index, free_rows->rows[free_rows->count + i]));
    free_rows->count += count;
}

static uint32_t any_in_use(struct world *w)
{
    uint32_t row;
    do
        row = (uint32_t)world_random(w, ROWS);
    while (w->lseqs[row] == 0);
    return row;
}

/* Some inserts, removes and upserts (a new row, then the old one goes). */
static void churn(struct world *w, struct free_rows *free_rows, uint32_t *in_use, unsigned changes)
{
    for (unsigned n = 0; n < changes; n++) {
        uint64_t what = world_random(w, 10);
        bool has_room = free_rows->count > 0;
        if (what < 5 && has_room && *in_use < ROWS * 3 / 4) {
            assert_ok(world_insert(w, free_rows->rows[--free_rows->count]));
            ++*in_use;
        } else if (what < 8 && *in_use > 40) {
            world_remove(w, any_in_use(w));
            --*in_use;
        } else if (has_room && *in_use > 0) {
            assert_ok(world_insert(w, free_rows->rows[--free_rows->count]));
            world_remove(w, any_in_use(w));
        }
    }
}

static void start_churn(struct free_rows *free_rows)
{
    free_rows->count = 0;
    for (uint32_t row = ROWS; row-- > 0;)
        free_rows->rows[free_rows->count++] = row;
}

static void the_structure_holds_after_every_step_of_a_long_churn(void **state)
{
    static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
    (void)state;
    for (size_t m = 0; m < SK_COUNT_OF(metrics); m++) {
        struct world world, *w = &world;
        const struct sk_index_params params = world_params(SK_INDEX_HNSW, metrics[m], DIM);
        struct free_rows free_rows;
        struct sk_index_stats stats;
        uint32_t in_use = 0;
        uint64_t unreachable = 0, checked = 0;
        world_init(w, &params, ROWS);
        start_churn(&free_rows);
        for (unsigned step = 0; step < LESS(250); step++) {
            bool has_more;
            churn(w, &free_rows, &in_use, 16);
            assert_ok(sk_index_step(w->index, 0, NULL, step % 7 == 0 ? SK_INDEX_STEP_EAGER : 0,
                                    &has_more, &w->d));
            reclaim(w, &free_rows);
            unreachable += world_check(w).unreachable_rows;
            sk_index_get_stats(w->index, &stats);
            assert_int_equal(stats.rows, in_use);
            checked += in_use;
        }
        world_rest(w, SK_INDEX_STEP_EAGER);
        reclaim(w, &free_rows);
        assert_int_equal(free_rows.count, ROWS - in_use);
        sk_index_get_stats(w->index, &stats);
        assert_int_equal(stats.tombstones, 0);
        assert_int_equal(world_check(w).dead_edges, 0);
        double recall = world_recall(w, 60, 64);
        print_message("             recall %.3f, %llu of %llu rows unreachable over all steps\n",
                      recall, (unsigned long long)unreachable, (unsigned long long)checked);
        assert_true(recall >= 0.95);
        assert_int_equal(world_check(w).unreachable_rows, 0);
        world_deinit(w);
    }
}

/* So few rows that every edge counts. */
static void a_handful_of_rows_is_always_reached(void **state)
{
    (void)state;
    for (unsigned round = 0; round < LESS(800); round++) {
        struct world world, *w = &world;
        struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, 4 + round % 20);
        struct free_rows free_rows = {.count = 0};
        uint32_t in_use = 0, most = 6 + round % 20;
        params.m = round % 2 == 0 ? 16 : 4;
        params.metric = (enum sk_metric)(SK_METRIC_L2 + round % 3);
        world_init(w, &params, ROWS);
        w->is_coarse = round % 4 < 2; /* many are equal */
        w->random = 7919 + round * 104729;
        for (uint32_t row = 2 * most; row-- > 0;)
            free_rows.rows[free_rows.count++] = row;
        for (unsigned step = 0; step < 60; step++) {
            bool has_room = free_rows.count > 0;
            if (has_room && in_use < most && world_random(w, 3) > 0) {
                assert_ok(world_insert(w, free_rows.rows[--free_rows.count]));
                in_use++;
            } else if (has_room && in_use > 1 && world_random(w, 3) > 0) {
                assert_ok(world_insert(w, free_rows.rows[--free_rows.count]));
                world_remove(w, any_in_use(w));
            } else if (in_use > 2) {
                world_remove(w, any_in_use(w));
                in_use--;
            }
            if (step % 3 == 0) {
                world_rest(w, SK_INDEX_STEP_EAGER);
                reclaim(w, &free_rows);
                if (world_check(w).unreachable_rows > 0)
                    fail_msg("round %u, step %u: a row cannot be reached", round, step);
                struct found found = world_search(w, w->centres, 64, NULL, NULL);
                assert_int_equal(found.count, in_use < K ? in_use : K);
            }
        }
        world_deinit(w);
    }
}

static void flat_keeps_its_counters_too(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_FLAT, SK_METRIC_L2, 32);
    struct free_rows free_rows;
    uint32_t in_use = 0;
    (void)state;
    world_init(w, &params, ROWS);
    start_churn(&free_rows);
    for (unsigned step = 0; step < LESS(200); step++) {
        churn(w, &free_rows, &in_use, 16);
        world_rest(w, 0);
        reclaim(w, &free_rows);
        (void)world_check(w);
    }
    assert_true(world_recall(w, 30, 0) == 1);
    world_deinit(w);
}

static void an_index_that_was_emptied_can_be_filled_again(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, DIM);
    uint32_t rows[256];
    (void)state;
    world_init(w, &params, 256);
    for (unsigned round = 0; round < 4; round++) {
        world_fill(w, 200);
        world_rest(w, 0);
        assert_true(world_recall(w, 20, 64) >= 0.95);
        for (uint32_t row = 0; row < 200; row++)
            world_remove(w, row);
        assert_int_equal(world_search(w, w->centres, 64, NULL, NULL).count, 0);
        world_rest(w, round % 2 == 0 ? SK_INDEX_STEP_EAGER : 0);
        assert_int_equal(sk_index_reclaim_rows(w->index, rows, 256), 200);
        assert_int_equal(world_check(w).edges, 0);
    }
    world_deinit(w);
}

/* The mean of the vectors moves: codes are made again behind, and nothing is lost. */
static void codes_are_renewed_when_the_vectors_drift(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, DIM);
    struct sk_index_stats before, after;
    (void)state;
    world_init(w, &params, 2000);
    world_fill(w, 500);
    world_rest(w, 0);
    sk_index_get_stats(w->index, &before);
    for (uint32_t i = 0; i < CLUSTERS * DIM; i++)
        w->centres[i] += 5; /* far from where the others are */
    for (uint32_t row = 500; row < 2000; row++) {
        bool has_more;
        assert_ok(world_insert(w, row));
        if (row % 16 == 0)
            assert_ok(sk_index_step(w->index, 0, NULL, 0, &has_more, &w->d));
        if (row % 100 == 0)
            (void)world_check(w);
    }
    world_rest(w, 0);
    sk_index_get_stats(w->index, &after);
    assert_true(after.generation > before.generation);
    assert_true(world_recall(w, 40, 64) >= 0.95);
    (void)world_check(w);
    world_deinit(w);
}

static void many_at_once_are_checked_first(void **state)
{
    struct world world, *w = &world;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, 8);
    float vectors[3 * 8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const uint32_t rows[3] = {0, 1, 2};
    const uint64_t lseqs[3] = {1, 2, 3};
    uint32_t done = 7;
    (void)state;
    world_init(w, &params, 8);
    vectors[17] = NAN;
    assert_int_equal(sk_index_insert_many(w->index, rows, lseqs, vectors, 3, &done, &w->d),
                     SK_ERR_INVALID);
    assert_int_equal(done, 0);
    assert_non_null(strstr(w->d.text, "vector 2 of 3"));
    assert_true(sk_index_row_is_free(w->index, 0));
    vectors[17] = 1;
    assert_ok(sk_index_insert_many(w->index, rows, lseqs, vectors, 3, &done, &w->d));
    assert_int_equal(done, 3);
    assert_true(sk_index_has(w->index, 2, 3) && !sk_index_has(w->index, 2, 2));
    assert_int_equal(sk_index_watermark(w->index), 3);
    sk_index_advance(w->index, 10);
    sk_index_advance(w->index, 5);
    assert_int_equal(sk_index_watermark(w->index), 10);
    world_deinit(w);
}

/* ---- the log ---- */

struct log {
    uint8_t *bytes[400];
    size_t sizes[400];
    uint64_t watermarks[400];
    uint32_t count;
};

static void take(struct world *w, struct log *log)
{
    struct sk_span delta;
    uint64_t watermark;
    sk_index_take_delta(w->index, &delta, &watermark);
    if (delta.size == 0)
        return;
    assert_true(log->count < SK_COUNT_OF(log->bytes));
    log->bytes[log->count] = malloc(delta.size); /* of exactly its size, for ASan */
    memcpy(log->bytes[log->count], delta.bytes, delta.size);
    log->sizes[log->count] = delta.size;
    log->watermarks[log->count++] = watermark;
    assert_int_equal(sk_index_delta_pending_bytes(w->index), 0);
}

static void log_deinit(struct log *log)
{
    for (uint32_t i = 0; i < log->count; i++)
        free(log->bytes[i]);
}

/* An index from the first `count` deltas; NULL for live: the store knows no more than the log. */
static struct sk_index *replay(struct world *w, const struct log *log, uint32_t count,
                               const struct sk_index_live *live)
{
    const struct sk_index_source source = {w, world_fetch};
    struct sk_index *index;
    assert_ok(sk_index_new(&index, &w->params, &source, &w->d));
    for (uint32_t i = 0; i < count; i++)
        assert_ok(sk_index_apply_delta(index, sk_span_of(log->bytes[i], log->sizes[i]), &w->d));
    assert_ok(sk_index_load_finish(index, live, &w->d));
    return index;
}

/* Swaps another index in for the world's own. */
static void use(struct world *w, struct sk_index *index)
{
    sk_index_reader_destroy(&w->reader);
    sk_index_destroy(&w->index);
    w->index = index;
    assert_ok(sk_index_reader_new(&w->reader, index, &w->d));
}

static void make_log(struct world *w, struct log *log, struct free_rows *free_rows, unsigned steps)
{
    uint32_t in_use = 0;
    for (unsigned step = 0; step < steps; step++) {
        bool has_more;
        churn(w, free_rows, &in_use, 16);
        assert_ok(sk_index_step(w->index, 0, NULL, step % 5 == 0 ? SK_INDEX_STEP_EAGER : 0,
                                &has_more, &w->d));
        take(w, log);
        reclaim(w, free_rows);
    }
    take(w, log);
}

static void a_log_played_back_gives_the_same_answers(void **state)
{
    struct world world, *w = &world;
    struct log log = {.count = 0};
    struct free_rows free_rows;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, DIM);
    const struct sk_index_live live = {&world, world_lseq_of};
    struct found found[40];
    struct sk_index_stats stats;
    float queries[40][DIM];
    uint64_t hops[40], edges;
    (void)state;
    world_init(w, &params, ROWS);
    start_churn(&free_rows);
    make_log(w, &log, &free_rows, LESS(120));
    sk_index_get_stats(w->index, &stats);
    edges = world_check(w).edges;
    uint64_t watermark = sk_index_watermark(w->index);
    assert_int_equal(log.watermarks[log.count - 1], watermark);
    for (unsigned n = 0; n < 40; n++) {
        struct sk_index_result counters;
        world_vector(w, queries[n]);
        found[n] = world_search(w, queries[n], 64, NULL, &counters);
        hops[n] = counters.hops;
    }
    use(w, replay(w, &log, log.count, &live));
    assert_int_equal(sk_index_watermark(w->index), watermark);
    assert_int_equal(world_check(w).edges, edges);
    unsigned same_hops = 0;
    for (unsigned n = 0; n < 40; n++) {
        struct sk_index_result counters;
        struct found again = world_search(w, queries[n], 64, NULL, &counters);
        assert_int_equal(again.count, found[n].count);
        assert_memory_equal(again.scores, found[n].scores, sizeof again.scores);
        same_hops += counters.hops == hops[n];
    }
    /* codes that were renewed while the log was written may differ in their last bit */
    assert_true(same_hops >= 30 || stats.generation > 1);
    log_deinit(&log);
    world_deinit(w);
}

/* The store is ahead of the index by any number of commits: what the log lacks is removed or inserted. */
static void a_log_that_ends_anywhere_is_brought_up_to_the_store(void **state)
{
    struct world world, *w = &world;
    struct log log = {.count = 0};
    struct free_rows free_rows;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_COSINE, DIM);
    const struct sk_index_live live = {&world, world_lseq_of};
    (void)state;
    world_init(w, &params, ROWS);
    start_churn(&free_rows);
    make_log(w, &log, &free_rows, LESS(60));
    for (uint32_t count = 0; count <= log.count; count += count < 5 ? 1 : 4) {
        use(w, replay(w, &log, count, &live));
        (void)world_check(w);
        for (uint32_t row = 0; row < ROWS; row++) /* those that the log does not have */
            if (w->lseqs[row] != 0 && !sk_index_has(w->index, row, w->lseqs[row])) {
                const float *vector = w->vectors + (size_t)row * DIM;
                enum sk_err err = sk_index_insert(w->index, row, w->lseqs[row], vector, &w->d);
                while (err == SK_ERR_EXISTS) { /* its number is still held by a tombstone */
                    world_rest(w, SK_INDEX_STEP_EAGER);
                    uint32_t rows[ROWS];
                    (void)sk_index_reclaim_rows(w->index, rows, ROWS);
                    err = sk_index_insert(w->index, row, w->lseqs[row], vector, &w->d);
                }
                assert_ok(err);
            }
        world_rest(w, SK_INDEX_STEP_EAGER);
        (void)world_check(w);
        double recall = world_recall(w, 15, 64);
        if (recall < 0.9)
            fail_msg("after %u of %u deltas: recall %.3f", count, log.count, recall);
    }
    log_deinit(&log);
    world_deinit(w);
}

/* Refused, or harmless: what is left is still a sound index. */
static void apply_hostile(struct world *w, const struct log *log, uint32_t at, const uint8_t *bytes,
                          size_t size)
{
    const struct sk_index_source source = {w, world_fetch};
    const struct sk_index_live live = {w, world_lseq_of};
    struct sk_index *index;
    assert_ok(sk_index_new(&index, &w->params, &source, &w->d));
    for (uint32_t i = 0; i < at; i++)
        assert_ok(sk_index_apply_delta(index, sk_span_of(log->bytes[i], log->sizes[i]), &w->d));
    enum sk_err err = sk_index_apply_delta(index, sk_span_of(bytes, size), &w->d);
    if (err == SK_ERR_OK) {
        struct sk_index_check_report report;
        assert_ok(sk_index_load_finish(index, &live, &w->d));
        assert_ok(sk_index_check(index, &report, &w->d));
    } else {
        assert_true(err == SK_ERR_INVALID || err == SK_ERR_NOMEM);
    }
    sk_index_destroy(&index);
}

/* The index's own (delta.c): hostile deltas are signed, so that what is behind the hash is reached. */
uint64_t sk_hash(uint64_t seed, const void *bytes, size_t size);

static void sign(uint8_t *bytes, size_t size)
{
    uint32_t magic;
    memcpy(&magic, bytes, sizeof magic);
    uint64_t hash = sk_hash(magic, bytes + 16, size - 16);
    memcpy(bytes + 8, &hash, sizeof hash);
}

static void hostile_deltas_are_refused_or_harmless(void **state)
{
    struct world world, *w = &world;
    struct log log = {.count = 0};
    struct free_rows free_rows;
    const struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, 64);
    (void)state;
    world_init(w, &params, ROWS);
    start_churn(&free_rows);
    make_log(w, &log, &free_rows, 12);
    const uint32_t at = log.count - 2;
    const size_t size = log.sizes[at];
    for (size_t cut = 0; cut < size; cut += cut < LESS(64) ? 1 : 1 + size / LESS(200)) {
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy, log.bytes[at], cut);
        apply_hostile(w, &log, at, copy, cut); /* cut off */
        if (cut > 16) {
            uint32_t claimed = (uint32_t)(cut - 16);
            memcpy(copy + 4, &claimed, sizeof claimed);
            sign(copy, cut);
            apply_hostile(w, &log, at, copy, cut); /* and signed again */
        }
        free(copy);
    }
    uint8_t *copy = malloc(size);
    for (unsigned n = 0; n < LESS(1500); n++) {
        memcpy(copy, log.bytes[at], size);
        for (uint64_t flips = 1 + world_random(w, 3); flips > 0; flips--)
            copy[world_random(w, size)] ^= (uint8_t)(1U << world_random(w, 8));
        if (n % 4 == 0)
            apply_hostile(w, &log, at, copy, size);
        memcpy(copy, log.bytes[at], 8);
        sign(copy, size);
        apply_hostile(w, &log, at, copy, size);
    }
    free(copy);
    log_deinit(&log);
    world_deinit(w);
}

static void an_unlogged_index_keeps_no_log(void **state)
{
    struct world world, *w = &world;
    struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_L2, 64);
    struct sk_span delta;
    uint64_t watermark;
    (void)state;
    params.is_unlogged = true;
    world_init(w, &params, 100);
    world_fill(w, 100);
    world_remove(w, 5);
    world_rest(w, SK_INDEX_STEP_EAGER);
    sk_index_take_delta(w->index, &delta, &watermark);
    assert_int_equal(delta.size, 0);
    assert_int_equal(watermark, 100);
    assert_int_equal(sk_index_delta_log_bytes(w->index), 0);
    world_deinit(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_structure_holds_after_every_step_of_a_long_churn),
        cmocka_unit_test(a_handful_of_rows_is_always_reached),
        cmocka_unit_test(flat_keeps_its_counters_too),
        cmocka_unit_test(an_index_that_was_emptied_can_be_filled_again),
        cmocka_unit_test(codes_are_renewed_when_the_vectors_drift),
        cmocka_unit_test(many_at_once_are_checked_first),
        cmocka_unit_test(a_log_played_back_gives_the_same_answers),
        cmocka_unit_test(a_log_that_ends_anywhere_is_brought_up_to_the_store),
        cmocka_unit_test(hostile_deltas_are_refused_or_harmless),
        cmocka_unit_test(an_unlogged_index_keeps_no_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
