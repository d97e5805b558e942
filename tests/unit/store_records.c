/* links: sk_store sk_proto */
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

static void what_was_committed_is_read_back_and_what_was_not_is_gone(void **state)
{
    struct world *w = *state;
    uint32_t row;
    struct sk_record record;
    world_begin(w);
    struct sk_change change = world_upsert(w, 1, 11);
    assert_true(change.has_new && !change.has_old && !change.was_live);
    world_commit(w);
    world_begin(w);
    (void)world_upsert(w, 1, 12);
    (void)world_upsert(w, 2, 22);
    sk_store_abort(w->store);
    world_read(w);
    world_expect(w, 1, 11);
    assert_false(world_find(w, 2, &row, &record));
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

static void a_reader_keeps_its_snapshot_while_the_writer_goes_on(void **state)
{
    struct world *w = *state;
    world_begin(w);
    (void)world_upsert(w, 1, 11);
    world_commit(w);
    world_read(w);
    world_begin(w);
    (void)world_upsert(w, 1, 12);
    world_commit(w);
    world_expect(w, 1, 11);
    sk_store_read_end(w->reader);
    world_read(w);
    world_expect(w, 1, 12);
    sk_store_read_end(w->reader);
}

static void an_upsert_over_a_record_takes_another_row_and_names_the_old_life(void **state)
{
    struct world *w = *state;
    uint32_t limbo[4], count;
    world_begin(w);
    struct sk_change first = world_upsert(w, 1, 11);
    struct sk_change second = world_upsert(w, 1, 12);
    world_commit(w);
    assert_true(second.has_old && second.was_live);
    assert_int_equal(second.old_row, first.row);
    assert_int_equal(second.old_lseq, first.lseq);
    assert_int_not_equal(second.row, first.row);
    assert_true(second.lseq > first.lseq);
    world_read(w);
    assert_ok(sk_store_limbo(w->reader, 0, limbo, 4, &count, &w->d));
    assert_int_equal(count, 1);
    assert_int_equal(limbo[0], first.row);
    sk_store_read_end(w->reader);
}

static void a_row_is_used_again_only_after_it_was_released(void **state)
{
    struct world *w = *state;
    uint32_t limbo[4], count;
    world_begin(w);
    struct sk_change first = world_upsert(w, 1, 11);
    (void)world_delete(w, 1);
    struct sk_change second = world_upsert(w, 2, 22);
    assert_int_not_equal(second.row, first.row);
    assert_ok(sk_store_release_row(w->store, first.row, &w->d));
    assert_ok(sk_store_release_row(w->store, first.row, &w->d)); /* a restart asks again */
    assert_ok(sk_store_release_row(w->store, second.row, &w->d)); /* in use: stays */
    struct sk_change third = world_upsert(w, 3, 33);
    assert_int_equal(third.row, first.row);
    assert_true(third.lseq > first.lseq);
    world_commit(w);
    world_read(w);
    world_expect(w, 2, 22);
    world_expect(w, 3, 33);
    assert_ok(sk_store_limbo(w->reader, 0, limbo, 4, &count, &w->d));
    assert_int_equal(count, 0);
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

static void a_delete_says_what_was_there_and_leaves_a_tombstone_until_the_id_returns(void **state)
{
    struct world *w = *state;
    struct sk_store_stats stats;
    uint32_t row;
    struct sk_record record;
    world_begin(w);
    assert_false(world_delete(w, 1).has_old);
    struct sk_change born = world_upsert(w, 1, 11);
    struct sk_change gone = world_delete(w, 1);
    assert_true(gone.has_old && gone.was_live && !gone.has_new);
    assert_int_equal(gone.old_row, born.row);
    assert_int_equal(gone.old_lseq, born.lseq);
    assert_false(world_delete(w, 1).has_old);
    world_commit(w);
    world_read(w);
    assert_false(world_find(w, 1, &row, &record));
    assert_ok(sk_store_get_stats(w->reader, &stats, &w->d));
    assert_int_equal(stats.records, 0);
    assert_int_equal(stats.tombstones, 1);
    assert_int_equal(stats.limbo_rows, 1);
    sk_store_read_end(w->reader);
    world_begin(w);
    (void)world_upsert(w, 1, 12);
    world_commit(w);
    world_read(w);
    assert_ok(sk_store_get_stats(w->reader, &stats, &w->d));
    assert_int_equal(stats.tombstones, 0);
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

/* Records that come and go leave a bounded trace. */
static void tombstones_are_kept_up_to_a_number(void **state)
{
    struct world *w = *state;
    struct sk_store_stats stats;
    struct sk_record record;
    uint32_t row;
    for (uint64_t from = 0; from < 90000; from += 10000) {
        world_begin(w);
        for (uint64_t id = from; id < from + 10000; id++) {
            (void)world_upsert(w, id, id);
            if (id % 10000 != 0) { /* one stays, in the way of a look at the log */
                struct sk_change change = world_delete(w, id);
                assert_ok(sk_store_release_row(w->store, change.old_row, &w->d));
            }
        }
        if (from == 50000)
            sk_store_abort(w->store);
        else
            world_commit(w);
    }
    world_read(w);
    assert_ok(sk_store_get_stats(w->reader, &stats, &w->d));
    assert_int_equal(stats.records, 8);
    assert_true(stats.tombstones >= 60000 && stats.tombstones <= 65536);
    assert_true(world_find(w, 80000, &row, &record));
    assert_false(world_find(w, 80001, &row, &record));
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

static struct sk_span packed_pairs(struct sk_buffer *to, const char *a, int64_t x, const char *b,
                                   int64_t y)
{
    sk_buffer_clear(to);
    sk_put_map(to, 2);
    sk_put_text(to, a);
    x == 0 ? sk_put_nil(to) : sk_put_i64(to, x);
    sk_put_text(to, b);
    y == 0 ? sk_put_nil(to) : sk_put_i64(to, y);
    return sk_buffer_span(to);
}

static void set_payload_keeps_row_and_birth_and_gives_a_new_version(void **state)
{
    struct world *w = *state;
    struct sk_buffer packed = {0}, wanted = {0};
    struct sk_record before, after;
    uint32_t row, row_after;
    bool was_there;
    struct sk_id id = sk_id_from_u64(1), other = sk_id_from_u64(9);
    world_begin(w);
    (void)world_upsert(w, 1, 11);
    world_commit(w);
    world_read(w);
    assert_true(world_find(w, 1, &row, &before));
    sk_store_read_end(w->reader);
    world_begin(w);
    assert_ok(sk_store_set_payload(w->store, &id, packed_pairs(&packed, "a", 5, "n", 0), false,
                                   &was_there, &w->d));
    assert_true(was_there);
    assert_ok(sk_store_set_payload(w->store, &other, sk_buffer_span(&packed), false, &was_there,
                                   &w->d));
    assert_false(was_there);
    world_commit(w);
    world_read(w);
    assert_true(world_find(w, 1, &row_after, &after));
    assert_int_equal(row_after, row);
    assert_int_equal(after.birth_lseq, before.birth_lseq);
    assert_true(after.lseq > before.lseq && after.hlc > before.hlc && after.seq > before.seq);
    sk_put_map(&wanted, 1); /* as short as an upsert would have sent it */
    sk_put_text(&wanted, "a");
    sk_put_i64(&wanted, 5);
    assert_int_equal(after.payload.size, wanted.size);
    assert_memory_equal(after.payload.bytes, wanted.bytes, wanted.size);
    sk_store_read_end(w->reader);
    world_begin(w);
    assert_ok(sk_store_set_payload(w->store, &id, world_payload(w, 42), true, &was_there, &w->d));
    world_commit(w);
    world_read(w);
    assert_true(world_find(w, 1, &row_after, &after));
    assert_memory_equal(after.payload.bytes, world_payload(w, 42).bytes, after.payload.size);
    sk_store_read_end(w->reader);
    sk_buffer_deinit(&packed);
    sk_buffer_deinit(&wanted);
    world_verify(w, 0);
}

static void a_payload_merged_past_its_limit_is_refused_and_nothing_changes(void **state)
{
    struct world *w = *state;
    struct sk_buffer large = {0};
    bool was_there;
    struct sk_id id = sk_id_from_u64(1);
    world_begin(w);
    (void)world_upsert(w, 1, 11);
    world_commit(w);
    for (int i = 0; i < 2; i++) {
        sk_buffer_clear(&large);
        sk_put_map(&large, 1);
        sk_put_text(&large, i == 0 ? "one" : "two");
        sk_put_bin_head(&large, 40000);
        memset(sk_buffer_grow(&large, 40000), i, 40000);
        world_begin(w);
        enum sk_err err = sk_store_set_payload(w->store, &id, sk_buffer_span(&large), false,
                                               &was_there, &w->d);
        assert_int_equal(err, i == 0 ? SK_ERR_OK : SK_ERR_TOO_LARGE);
        if (i == 0)
            world_commit(w);
        else
            sk_store_abort(w->store);
    }
    assert_string_equal(w->d.field, "payload");
    sk_buffer_deinit(&large);
    world_verify(w, 0);
}

static void versions_rise_over_clock_jumps_and_reopening(void **state)
{
    struct world *w = *state;
    static const int64_t jumps_us[] = {0, 1000000, -3600000000, 5, -1, 86400000000, -86400000000, 0};
    uint64_t hlc = 0, seq = 0, lseq = 0;
    for (size_t i = 0; i < SK_COUNT_OF(jumps_us) * 4; i++) {
        struct sk_record record;
        uint32_t row;
        w->wall_us += (uint64_t)jumps_us[i % SK_COUNT_OF(jumps_us)];
        world_begin(w);
        (void)world_upsert(w, i % 3, i);
        world_commit(w);
        world_read(w);
        assert_true(world_find(w, i % 3, &row, &record));
        assert_true(record.hlc > hlc && record.seq == seq + 1 && record.lseq == lseq + 1);
        assert_int_equal(record.actor, 7);
        hlc = record.hlc, seq = record.seq, lseq = record.lseq;
        assert_int_equal(sk_store_lseq(w->reader), lseq);
        sk_store_read_end(w->reader);
        if (i % 2 == 1) {
            world_close(w);
            w->config.actor = 8; /* only for a shard that is made */
            world_open(w);
        }
    }
    world_verify(w, 0);
}

static void an_aborted_write_leaves_no_gap_in_the_versions(void **state)
{
    struct world *w = *state;
    world_begin(w);
    struct sk_change first = world_upsert(w, 1, 1);
    world_commit(w);
    world_begin(w);
    (void)world_upsert(w, 2, 2);
    sk_store_abort(w->store);
    world_begin(w);
    struct sk_change second = world_upsert(w, 2, 2);
    world_commit(w);
    assert_int_equal(second.lseq, first.lseq + 1);
}

static void records_expire_are_listed_and_swept(void **state)
{
    struct world *w = *state;
    struct sk_id *ids;
    uint32_t count, row;
    struct sk_record record;
    struct sk_selection all;
    struct sk_change change;
    uint64_t records;
    bool was_there;
    world_begin(w);
    for (uint64_t id = 1; id <= 4; id++) {
        struct sk_row one = world_row(w, sk_id_from_u64(id), id, world_payload(w, 1));
        one.has_ttl = id <= 3;
        one.ttl_s = id == 3 ? 1e300 : (double)id * 0.5;
        assert_ok(sk_store_upsert(w->store, &one, &change, &w->d));
    }
    world_commit(w);
    world_read(w);
    assert_int_equal(sk_store_next_expiry_us(w->reader), w->wall_us + 500000);
    sk_store_read_end(w->reader);
    w->wall_us += 500000;
    world_read(w);
    assert_false(world_find(w, 1, &row, &record));
    assert_true(world_find(w, 2, &row, &record));
    assert_int_equal(record.expiry_us, w->wall_us + 500000);
    assert_ok(sk_store_select(w->reader, NULL, &all, &w->d));
    assert_int_equal(all.count, 3);
    sk_selection_deinit(&all);
    assert_ok(sk_store_count(w->reader, &records, &w->d));
    assert_int_equal(records, 4);
    sk_store_read_end(w->reader);
    world_begin(w);
    struct sk_id first = sk_id_from_u64(1), second = sk_id_from_u64(2);
    assert_ok(sk_store_set_payload(w->store, &first, world_payload(w, 2), false, &was_there, &w->d));
    assert_false(was_there);
    assert_ok(sk_store_set_payload(w->store, &second, world_payload(w, 2), false, &was_there, &w->d));
    assert_true(was_there); /* and its time goes on */
    assert_ok(sk_store_expired(w->store, 10, &ids, &count, &w->d));
    assert_int_equal(count, 1);
    change = world_delete(w, sk_id_u64(&ids[0]));
    assert_true(change.has_old && !change.was_live);
    free(ids);
    world_commit(w);
    w->wall_us += 500000;
    world_begin(w);
    assert_ok(sk_store_expired(w->store, 10, &ids, &count, &w->d));
    assert_int_equal(count, 1);
    (void)world_delete(w, sk_id_u64(&ids[0]));
    free(ids);
    (void)world_upsert(w, 3, 3); /* without a ttl: never again */
    world_commit(w);
    world_read(w);
    assert_int_equal(sk_store_next_expiry_us(w->reader), UINT64_MAX);
    assert_ok(sk_store_count(w->reader, &records, &w->d));
    assert_int_equal(records, 2);
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

static void births_come_in_order_above_a_watermark(void **state)
{
    struct world *w = *state;
    struct sk_birth births[16];
    uint32_t count;
    uint64_t lseq[6];
    bool was_there;
    world_begin(w);
    for (uint64_t id = 0; id < 6; id++)
        lseq[id] = world_upsert(w, id, id).lseq;
    (void)world_delete(w, 3);
    uint64_t again = world_upsert(w, 1, 10).lseq;
    struct sk_id four = sk_id_from_u64(4);
    assert_ok(sk_store_set_payload(w->store, &four, world_payload(w, 9), true, &was_there, &w->d));
    world_commit(w);
    world_read(w);
    assert_ok(sk_store_births(w->reader, lseq[0], births, 16, &count, &w->d));
    assert_int_equal(count, 4); /* 2, 4, 5, and 1 in its new life */
    assert_int_equal(births[0].lseq, lseq[2]);
    assert_int_equal(births[1].lseq, lseq[4]);
    assert_int_equal(births[2].lseq, lseq[5]);
    assert_int_equal(births[3].lseq, again);
    uint64_t birth;
    assert_true(sk_store_row_birth(w->reader, births[3].row, &birth));
    assert_int_equal(birth, again);
    assert_ok(sk_store_births(w->reader, lseq[0], births, 2, &count, &w->d));
    assert_int_equal(count, 2);
    assert_ok(sk_store_births(w->reader, UINT64_MAX - 1, births, 2, &count, &w->d));
    assert_int_equal(count, 0);
    assert_false(sk_store_row_birth(w->reader, 1000, &birth));
    sk_store_read_end(w->reader);
}

static void a_scroll_goes_over_every_record_in_the_order_of_ids(void **state)
{
    struct world *w = *state;
    enum { COUNT = 100 };
    struct sk_store_scroll scroll;
    struct sk_record record;
    struct sk_id last = {0};
    uint32_t row, seen = 0;
    enum sk_err err;
    world_begin(w);
    for (uint64_t id = 0; id < COUNT; id++)
        (void)world_upsert(w, (id * 37) % COUNT, id);
    for (uint64_t id = 0; id < COUNT; id += 10)
        (void)world_delete(w, id);
    world_commit(w);
    world_read(w);
    while (seen < COUNT) { /* seven at a time, from the last one on */
        unsigned n = 0;
        assert_ok(sk_store_scroll_begin(&scroll, w->reader, seen == 0 ? NULL : &last, &w->d));
        while (n < 7 && sk_store_scroll_next(&scroll, &row, &record, &err, &w->d)) {
            assert_true(seen == 0 || sk_id_compare(&last, &record.id) < 0);
            last = record.id;
            seen++;
            n++;
        }
        sk_store_scroll_end(&scroll);
        assert_int_equal(err, SK_ERR_OK);
        if (n == 0)
            break;
    }
    assert_int_equal(seen, 90);
    sk_store_read_end(w->reader);
}

static void ids_of_every_kind_are_kept_apart(void **state)
{
    struct world *w = *state;
    static const char *const texts[] = {"5", "a", "0191f2a0-7b3c-7000-8000-00000000abcd",
                                        "a string of exactly sixty-four bytes, which is the longest......"};
    struct sk_change change;
    uint32_t row;
    world_begin(w);
    for (size_t i = 0; i < SK_COUNT_OF(texts); i++) {
        struct sk_id id;
        assert_ok(sk_id_from_string(&id, sk_span_text(texts[i]), &w->d));
        struct sk_row one = world_row(w, id, 100 + i, world_payload(w, 1));
        assert_ok(sk_store_upsert(w->store, &one, &change, &w->d));
        assert_false(change.has_old);
    }
    assert_false(world_upsert(w, 5, 5).has_old); /* 5 is not "5" */
    world_commit(w);
    world_read(w);
    for (size_t i = 0; i < SK_COUNT_OF(texts); i++) {
        struct sk_id id;
        assert_ok(sk_id_from_string(&id, sk_span_text(texts[i]), &w->d));
        assert_ok(sk_store_find(w->reader, &id, &row, &w->d));
        world_vector(w->vector, 8, 100 + i);
        assert_memory_equal(sk_store_vector(w->reader, 0, row), w->vector, 32);
    }
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

static void a_record_without_a_payload_has_none(void **state)
{
    struct world *w = *state;
    struct sk_change change;
    struct sk_record record;
    uint32_t row;
    struct sk_row one = world_row(w, sk_id_from_u64(1), 1, (struct sk_span){0});
    world_begin(w);
    assert_ok(sk_store_upsert(w->store, &one, &change, &w->d));
    world_commit(w);
    world_read(w);
    assert_true(world_find(w, 1, &row, &record));
    assert_int_equal(record.payload.size, 0);
    sk_store_read_end(w->reader);
    world_verify(w, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(what_was_committed_is_read_back_and_what_was_not_is_gone),
        TEST(a_reader_keeps_its_snapshot_while_the_writer_goes_on),
        TEST(an_upsert_over_a_record_takes_another_row_and_names_the_old_life),
        TEST(a_row_is_used_again_only_after_it_was_released),
        TEST(a_delete_says_what_was_there_and_leaves_a_tombstone_until_the_id_returns),
        TEST(tombstones_are_kept_up_to_a_number),
        TEST(set_payload_keeps_row_and_birth_and_gives_a_new_version),
        TEST(a_payload_merged_past_its_limit_is_refused_and_nothing_changes),
        TEST(versions_rise_over_clock_jumps_and_reopening),
        TEST(an_aborted_write_leaves_no_gap_in_the_versions),
        TEST(records_expire_are_listed_and_swept),
        TEST(births_come_in_order_above_a_watermark),
        TEST(a_scroll_goes_over_every_record_in_the_order_of_ids),
        TEST(ids_of_every_kind_are_kept_apart),
        TEST(a_record_without_a_payload_has_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
