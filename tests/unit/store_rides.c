/* links: sk_store sk_proto */
/* What rides along with the records of a shard: stamps of writes, deltas of indexes; and selections of rows. */
#include "tests/unit/store_world.h"

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    world_init(w, NULL, 8);
    world_field(w, "n", SK_PAYLOAD_INTEGER);
    world_open(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    world_deinit(*state);
    free(*state);
    return 0;
}

/* ---- what rides along ---- */

static void a_late_copy_of_a_write_is_known_and_an_older_one_is_refused(void **state)
{
    struct world *w = *state;
    bool is_applied;
    uint64_t outcome;
    for (uint64_t sequence = 1; sequence <= 5000; sequence += 1000) {
        world_begin(w);
        for (uint64_t s = sequence; s < sequence + 1000; s++)
            assert_ok(sk_store_applied_put(w->store, 3, s, s * 2, &w->d));
        world_commit(w);
    }
    world_close(w);
    world_open(w);
    world_begin(w);
    assert_ok(sk_store_applied_get(w->store, 3, 5000, &is_applied, &outcome, &w->d));
    assert_true(is_applied);
    assert_int_equal(outcome, 10000);
    assert_ok(sk_store_applied_get(w->store, 3, 905, &is_applied, &outcome, &w->d));
    assert_true(is_applied);
    assert_int_equal(sk_store_applied_get(w->store, 3, 904, &is_applied, &outcome, &w->d),
                     SK_ERR_UNAVAILABLE);
    assert_ok(sk_store_applied_get(w->store, 3, 5001, &is_applied, &outcome, &w->d));
    assert_false(is_applied);
    assert_ok(sk_store_applied_get(w->store, 4, 1, &is_applied, &outcome, &w->d));
    assert_false(is_applied);
    assert_ok(sk_store_applied_get(w->store, UINT64_MAX, 1, &is_applied, &outcome, &w->d));
    assert_false(is_applied);
    sk_store_abort(w->store);
}

static void of_many_incarnations_the_one_silent_for_longest_goes_first(void **state)
{
    struct world *w = *state;
    static const uint64_t names[] = {900, 17, UINT64_MAX, 4, 300, 2, 77, 1000};
    bool is_applied;
    uint64_t outcome;
    world_begin(w);
    for (size_t i = 0; i < SK_COUNT_OF(names); i++) {
        (void)world_upsert(w, i, i);
        assert_ok(sk_store_applied_put(w->store, names[i], 1, i, &w->d));
    }
    (void)world_upsert(w, 100, 1);
    assert_ok(sk_store_applied_put(w->store, 900, 2, 5, &w->d)); /* not silent any more */
    assert_ok(sk_store_applied_put(w->store, 55, 1, 6, &w->d));  /* the ninth */
    for (size_t i = 0; i < SK_COUNT_OF(names); i++) {
        assert_ok(sk_store_applied_get(w->store, names[i], 1, &is_applied, &outcome, &w->d));
        assert_int_equal(is_applied, names[i] != 17);
        assert_true(!is_applied || outcome == i);
    }
    world_commit(w);
}

static void a_stamp_of_an_aborted_write_is_not_known(void **state)
{
    struct world *w = *state;
    bool is_applied;
    uint64_t outcome;
    world_begin(w);
    assert_ok(sk_store_applied_put(w->store, 3, 1, 1, &w->d));
    sk_store_abort(w->store);
    world_begin(w);
    assert_ok(sk_store_applied_get(w->store, 3, 1, &is_applied, &outcome, &w->d));
    assert_false(is_applied);
    sk_store_abort(w->store);
}

static void deltas_are_kept_by_field_in_order_and_dropped_from_the_front(void **state)
{
    struct world *w = *state;
    struct sk_span delta;
    uint64_t number, lseq;
    char text[32];
    world_begin(w);
    for (unsigned field = 0; field < 3; field++)
        for (uint64_t n = 1; n <= 300; n++) {
            int size = snprintf(text, sizeof text, "%u:%llu", field, (unsigned long long)n);
            assert_ok(sk_store_delta_put(w->store, field, n, sk_span_of(text, (size_t)size), &w->d));
        }
    assert_ok(sk_store_watermark_put(w->store, 1, 4711, &w->d));
    world_commit(w);
    world_begin(w);
    assert_ok(sk_store_delta_drop(w->store, 1, 299, &w->d));
    assert_ok(sk_store_delta_drop(w->store, 2, 1000, &w->d));
    world_commit(w);
    world_close(w);
    world_open(w);
    world_read(w);
    assert_ok(sk_store_delta_get(w->reader, 0, 1, &number, &delta, &w->d));
    assert_int_equal(number, 1);
    assert_ok(sk_store_delta_get(w->reader, 1, 1, &number, &delta, &w->d));
    assert_int_equal(number, 299);
    assert_true(sk_span_is(delta, "1:299"));
    assert_int_equal(sk_store_delta_get(w->reader, 1, 301, &number, &delta, &w->d), SK_ERR_NOT_FOUND);
    assert_int_equal(sk_store_delta_get(w->reader, 2, 0, &number, &delta, &w->d), SK_ERR_NOT_FOUND);
    assert_ok(sk_store_watermark(w->reader, 1, &lseq, &w->d));
    assert_int_equal(lseq, 4711);
    assert_ok(sk_store_watermark(w->reader, 0, &lseq, &w->d));
    assert_int_equal(lseq, 0);
    sk_store_read_end(w->reader);
}

/* ---- selections ---- */

static bool note_row(void *impl, uint32_t row)
{
    uint32_t *rows = impl;
    rows[++rows[0]] = row;
    return rows[0] < 5;
}

static void a_selection_gives_rows_as_a_set_in_order_and_as_bits(void **state)
{
    struct world *w = *state;
    struct sk_selection all;
    uint32_t rows[8] = {0};
    world_begin(w);
    for (uint64_t id = 0; id < 200; id++)
        (void)world_upsert(w, id, id);
    for (uint64_t id = 0; id < 200; id += 2)
        (void)world_delete(w, id);
    world_commit(w);
    world_read(w);
    assert_ok(sk_store_select(w->reader, NULL, &all, &w->d));
    assert_int_equal(all.count, 100);
    assert_string_equal(all.warning, "");
    assert_true(sk_selection_has(&all, 1) && !sk_selection_has(&all, 2));
    sk_selection_each(&all, note_row, rows);
    assert_int_equal(rows[0], 5);
    for (uint32_t i = 1; i <= 5; i++)
        assert_int_equal(rows[i], 2 * i - 1);
    uint32_t words = sk_store_row_words(w->reader);
    assert_int_equal(words, 4);
    uint64_t bits[4];
    sk_selection_words(&all, bits, words);
    assert_int_equal(bits[0], UINT64_C(0xAAAAAAAAAAAAAAAA));
    assert_int_equal(bits[3], UINT64_C(0xAA));
    sk_selection_words(&all, bits, 1); /* rows beyond are left out */
    assert_int_equal(bits[0], UINT64_C(0xAAAAAAAAAAAAAAAA));
    sk_selection_deinit(&all);
    sk_store_read_end(w->reader);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_late_copy_of_a_write_is_known_and_an_older_one_is_refused),
        TEST(of_many_incarnations_the_one_silent_for_longest_goes_first),
        TEST(a_stamp_of_an_aborted_write_is_not_known),
        TEST(deltas_are_kept_by_field_in_order_and_dropped_from_the_front),
        TEST(a_selection_gives_rows_as_a_set_in_order_and_as_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
