/* links: sk_store sk_proto PkgConfig::LMDB */
/* A reader that remembers where rows are says the same as one that does not, whatever is committed.
 */
#include "actors/shard-worker/store/internal.h"
#include "tests/unit/store_world.h"

enum { DIM = 24, IDS = 200 };

struct test {
    struct world w;
    struct sk_store_reader *plain;
    uint32_t rows; /* row numbers that may be in use */
};

static int setup(void **state)
{
    struct test *test = calloc(1, sizeof *test);
    struct world *w = &test->w;
    world_init(w, NULL, DIM);
    w->schema.vector_count = 2; /* the words of a row are as many as it has fields */
    w->schema.vectors[1] = w->schema.vectors[0];
    (void)snprintf(w->schema.vectors[0].name, sizeof w->schema.vectors[0].name, "a");
    (void)snprintf(w->schema.vectors[1].name, sizeof w->schema.vectors[1].name, "b");
    world_open(w);
    sk_store_reader_remember(w->reader);
    assert_ok(sk_store_reader_new(&test->plain, w->store, &w->d));
    *state = test;
    return 0;
}

static int teardown(void **state)
{
    struct test *test = *state;
    sk_store_reader_destroy(&test->plain);
    world_deinit(&test->w);
    free(test);
    return 0;
}

static void same_record(struct test *test, uint32_t row)
{
    struct world *w = &test->w;
    struct sk_record a = {0}, b = {0};
    enum sk_err plain = sk_store_record(test->plain, row, &a, &w->d);
    assert_int_equal(sk_store_record(w->reader, row, &b, &w->d), plain);
    if (plain != SK_ERR_OK)
        return;
    assert_int_equal(sk_id_compare(&a.id, &b.id), 0);
    assert_int_equal(a.lseq, b.lseq);
    assert_int_equal(a.birth_lseq, b.birth_lseq);
    assert_int_equal(a.expiry_us, b.expiry_us);
    assert_int_equal(a.payload.size, b.payload.size);
    assert_memory_equal(a.payload.bytes, b.payload.bytes, a.payload.size);
}

/* In one read each; the vectors once one by one, once together. */
static void agree(struct test *test)
{
    struct world *w = &test->w;
    assert_ok(sk_store_read_begin(test->plain, w->wall_us, &w->d));
    world_read(w);
    for (uint32_t row = 0; row < test->rows; row++) {
        same_record(test, row);
        for (unsigned f = 0; f < 2; f++) {
            const float *a = sk_store_vector(test->plain, f, row), *b, *c;
            b = sk_store_vector(w->reader, f, row);
            sk_store_vectors(w->reader, f, &row, 1, &c);
            assert_ptr_equal(b, a); /* both look into the same map */
            assert_ptr_equal(c, a);
        }
    }
    sk_store_read_end(w->reader);
    sk_store_read_end(test->plain);
}

static void change_something(struct test *test)
{
    struct world *w = &test->w;
    world_begin(w);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t id = world_random(w, IDS);
        struct sk_id key = sk_id_from_u64(id);
        struct sk_change change = {0};
        enum sk_err rc = SK_ERR_OK;
        bool was_there;
        switch (world_random(w, 4)) {
        case 0:
            rc = sk_store_delete(w->store, &key, &change, &w->d);
            break;
        case 1:
            rc = sk_store_set_payload(w->store, &key,
                                      world_payload(w, (int64_t)world_random(w, 1000000)), false,
                                      &was_there, &w->d);
            break;
        default:
            change = world_upsert(w, id, world_random(w, 60000));
        }
        assert_true(rc == SK_ERR_OK || rc == SK_ERR_NOT_FOUND);
        if (change.has_new && change.row >= test->rows)
            test->rows = change.row + 1;
        if (change.has_old && world_random(w, 2) == 0) /* so that row numbers live again */
            assert_ok(sk_store_release_row(w->store, change.old_row, &w->d));
    }
    if (world_random(w, 8) == 0)
        sk_store_abort(w->store);
    else
        world_commit(w);
}

static void after_every_commit_it_says_what_is_there_now(void **state)
{
    struct test *test = *state;
    struct world *w = &test->w;
    for (unsigned round = 0; round < 150; round++) {
        change_something(test);
        if (world_random(w, 3) == 0) {
            agree(test);
            agree(test); /* from memory */
        }
    }
    assert_true(w->reader->known.capacity >= test->rows);
}

/* After four thousand million commits: nothing of the first is taken for what is there now. */
static void its_generations_may_begin_anew(void **state)
{
    struct test *test = *state;
    struct world *w = &test->w;
    for (unsigned round = 0; round < 20; round++)
        change_something(test);
    agree(test);
    assert_int_equal(w->reader->known.generation, 1);
    for (unsigned round = 0; round < 20; round++)
        change_something(test);
    w->reader->known.generation = UINT32_MAX;
    agree(test);
    assert_int_equal(w->reader->known.generation, 1);
}

/* A shard that was compacted counts its transactions from the beginning: the same number is another
 * one. */
static void nothing_is_remembered_over_a_compaction(void **state)
{
    struct test *test = *state;
    struct world *w = &test->w;
    uint64_t before, after;
    for (unsigned round = 0; round < 20; round++)
        change_something(test);
    agree(test);
    uint64_t number = w->reader->known.number;
    assert_ok(sk_store_compact(w->store, &before, &after, &w->d));
    for (uint64_t now = 0; now < number;) {
        assert_ok(sk_store_read_begin(test->plain, w->wall_us, &w->d));
        now = mdb_txn_id(test->plain->txn);
        sk_store_read_end(test->plain);
        assert_true(now <= number);
        if (now == number)
            break;
        change_something(test);
    }
    agree(test);
    assert_int_equal(w->reader->known.number, number);
}

static void what_expires_is_gone_from_memory_too(void **state)
{
    struct test *test = *state;
    struct world *w = &test->w;
    struct sk_change change;
    struct sk_row row = world_row(w, sk_id_from_u64(1), 1, world_payload(w, 1));
    row.has_ttl = true;
    row.ttl_s = 10;
    world_begin(w);
    assert_ok(sk_store_upsert(w->store, &row, &change, &w->d));
    world_commit(w);
    test->rows = change.row + 1;
    agree(test);
    w->wall_us += 11 * 1000000;
    agree(test);
    struct sk_record record;
    world_read(w);
    assert_int_equal(sk_store_record(w->reader, change.row, &record, &w->d), SK_ERR_NOT_FOUND);
    sk_store_read_end(w->reader);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(after_every_commit_it_says_what_is_there_now, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(its_generations_may_begin_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_remembered_over_a_compaction, setup, teardown),
        cmocka_unit_test_setup_teardown(what_expires_is_gone_from_memory_too, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
