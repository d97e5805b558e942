/* links: sk_index */
/* Kinds with lists on disk: the log of changes played back, images read back on every instruction set, and
 * everything else refused. */
#include "tests/unit/image_in_memory.h"
#include "tests/unit/index_world.h"

enum { DIM = 96, ROWS = 1500 };
static const enum sk_index_kind KINDS[] = {SK_INDEX_IVF_FLAT, SK_INDEX_IVF_PQ, SK_INDEX_HYBRID};

static void make(struct world *w, enum sk_index_kind kind, uint32_t rows)
{
    struct sk_index_params params = world_params(kind, SK_METRIC_L2, DIM);
    world_init(w, &params, rows);
}

/* Some inserts and removes with all their maintenance, and numbers given back used again. */
static void change(struct world *w, uint32_t *next, uint32_t inserts, uint32_t removes)
{
    uint32_t numbers[ROWS], count = 0;
    for (uint32_t i = 0; i < removes && *next > 0; i++) {
        const uint32_t row = (uint32_t)world_random(w, *next);
        if (w->lseqs[row] != 0)
            world_remove(w, row);
    }
    world_rest(w, 0);
    count = sk_index_reclaim_rows(w->index, numbers, ROWS);
    for (uint32_t i = 0; i < inserts; i++) {
        if (count > 0)
            assert_ok(world_insert(w, numbers[--count]));
        else if (*next < w->rows)
            assert_ok(world_insert(w, (*next)++));
        if (i % 64 == 63)
            world_rest(w, 0);
    }
    world_rest(w, 0);
}

static void expect_same_rows(struct world *w, const struct sk_index *other)
{
    for (uint32_t row = 0; row < w->rows; row++)
        assert_int_equal(sk_index_has(other, row, w->lseqs[row]), w->lseqs[row] != 0);
}

static void take(struct world *w, struct image *log)
{
    struct sk_span delta;
    uint64_t watermark;
    sk_index_take_delta(w->index, &delta, &watermark);
    const uint64_t size = delta.size;
    if (size == 0)
        return;
    (void)write_image(log, &size, sizeof size);
    (void)write_image(log, delta.bytes, delta.size);
}

static void play(struct world *w, struct image *log, struct sk_index *index)
{
    for (log->at = 0; log->at < log->size;) {
        uint64_t size = 0;
        assert_true(read_image(log, &size, sizeof size));
        assert_ok(sk_index_apply_delta(index, sk_span_of(log->bytes + log->at, size), &w->d));
        log->at += size;
    }
    const struct sk_index_live live = {w, world_lseq_of};
    assert_ok(sk_index_load_finish(index, &live, &w->d));
}

static void use(struct world *w, struct sk_index *index)
{
    sk_index_reader_destroy(&w->reader);
    sk_index_destroy(&w->index);
    w->index = index;
    assert_ok(sk_index_reader_new(&w->reader, index, &w->d));
}

static void save(struct world *w, struct image *image)
{
    const struct sk_index_writer writer = {image, write_image};
    *image = (struct image){.bytes = NULL};
    assert_ok(sk_index_checkpoint_write(w->index, &writer, &w->d));
}

static enum sk_err load(struct world *w, struct image *image, const struct sk_index_params *params,
                        struct sk_index **out)
{
    const struct sk_index_source source = {w, world_fetch};
    const struct sk_index_image_reader reader = {image, read_image};
    image->at = 0;
    return sk_index_checkpoint_read(out, params, &source, &reader, &w->d);
}

static void the_log_played_back_gives_an_index_of_the_same_rows(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        struct image log = {.bytes = NULL};
        struct sk_index *index;
        uint32_t next = 0;
        make(w, KINDS[k], ROWS);
        const struct sk_index_source source = {w, world_fetch};
        for (unsigned n = 0; n < 10; n++) {
            change(w, &next, 130, n * 6);
            take(w, &log);
            assert_ok(sk_index_new(&index, &w->params, &source, &w->d));
            play(w, &log, index);
            struct sk_index_check_report report;
            assert_ok(sk_index_check(index, &report, &w->d));
            expect_same_rows(w, index);
            if (n < 9)
                sk_index_destroy(&index);
        }
        const double before = world_recall(w, 60, 0);
        struct sk_index_stats stats, other;
        sk_index_get_stats(w->index, &stats);
        sk_index_get_stats(index, &other);
        assert_int_equal(stats.lists, other.lists);
        assert_true(stats.lists > 5);
        use(w, index);
        assert_true(world_recall(w, 60, 0) > before - 0.02);
        change(w, &next, 200, 100); /* and it goes on */
        (void)world_check(w);
        free(log.bytes);
        world_deinit(w);
    }
}

static void an_image_and_the_log_after_it_give_the_same_answers(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        struct image image, log = {.bytes = NULL};
        uint32_t next = 0;
        make(w, KINDS[k], ROWS);
        change(w, &next, 900, 0);
        change(w, &next, 0, 100);
        take(w, &log);
        log.size = 0;
        save(w, &image);
        enum { QUERIES = 20 };
        float queries[QUERIES][DIM];
        struct found first[QUERIES];
        for (unsigned n = 0; n < QUERIES; n++) {
            world_vector(w, queries[n]);
            first[n] = world_search(w, queries[n], 0, NULL, NULL);
        }
        for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
            struct sk_index_params params = w->params;
            struct sk_index *index;
            params.isa = sk_kernels_name(isa);
            assert_ok(load(w, &image, &params, &index));
            assert_ok(sk_index_load_finish(index, NULL, &w->d));
            use(w, index);
            (void)world_check(w);
            for (unsigned n = 0; n < QUERIES; n++) {
                const struct found found = world_search(w, queries[n], 0, NULL, NULL);
                assert_int_equal(found.count, first[n].count);
                assert_memory_equal(found.rows, first[n].rows, found.count * sizeof *found.rows);
            }
        }
        /* more changes, then the image again with their log */
        for (unsigned n = 0; n < 4; n++) {
            change(w, &next, 120, 60);
            take(w, &log);
        }
        struct sk_index *index;
        assert_ok(load(w, &image, &w->params, &index));
        play(w, &log, index);
        expect_same_rows(w, index);
        use(w, index);
        (void)world_check(w);
        assert_true(world_recall(w, 60, 0) > 0.9);
        free(image.bytes);
        free(log.bytes);
        world_deinit(w);
    }
}

/* The same rows in the same order give the same lists on every instruction set. */
static void building_is_the_same_on_every_instruction_set(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct found first[10];
        uint32_t lists = 0;
        for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
            struct world world, *w = &world;
            struct sk_index_params params = world_params(KINDS[k], SK_METRIC_COSINE, DIM);
            struct sk_index_stats stats;
            uint32_t next = 0;
            params.isa = sk_kernels_name(isa);
            world_init(w, &params, ROWS);
            change(w, &next, LESS(1200), 0);
            sk_index_get_stats(w->index, &stats);
            assert_true(isa == 0 || stats.lists == lists);
            lists = stats.lists;
            for (unsigned n = 0; n < 10; n++) {
                float query[DIM];
                world_vector(w, query);
                const struct found found = world_search(w, query, 0, NULL, NULL);
                if (isa == 0)
                    first[n] = found;
                assert_int_equal(found.count, first[n].count);
                assert_memory_equal(found.rows, first[n].rows, found.count * sizeof *found.rows);
            }
            world_deinit(w);
        }
    }
}

static void a_damaged_image_is_refused(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        struct image image, log = {.bytes = NULL};
        struct sk_index *index;
        uint32_t next = 0;
        make(w, KINDS[k], ROWS);
        change(w, &next, 400, 20);
        take(w, &log);
        save(w, &image);
        for (size_t at = 0; at < image.size; at += at < 4000 ? 7 : 997) {
            image.bytes[at] ^= 0x10;
            enum sk_err err = load(w, &image, &w->params, &index);
            assert_true(err == SK_ERR_INVALID || err == SK_ERR_VERSION);
            assert_null(index);
            image.bytes[at] ^= 0x10;
        }
        const size_t size = image.size;
        for (size_t cut = 0; cut < size; cut += 1 + size / 50) {
            image.size = cut;
            assert_int_equal(load(w, &image, &w->params, &index), SK_ERR_INVALID);
        }
        image.size = size;
        struct sk_index_params params = w->params;
        params.pq_m = 16;
        assert_int_equal(load(w, &image, &params, &index), SK_ERR_INVALID);
        assert_non_null(strstr(w->d.text, "pq_m"));
        params = w->params;
        params.kind = SK_INDEX_FLAT;
        assert_int_equal(load(w, &image, &params, &index), SK_ERR_INVALID);
        free(image.bytes);
        free(log.bytes);
        world_deinit(w);
    }
}

static void writing_goes_on_while_a_checkpoint_is_written(void **state)
{
    (void)state;
    for (size_t k = 0; k < SK_COUNT_OF(KINDS); k++) {
        struct world world, *w = &world;
        struct image image = {.bytes = NULL}, log = {.bytes = NULL};
        const struct sk_index_writer writer = {&image, write_image};
        uint32_t next = 0;
        bool is_done = false;
        make(w, KINDS[k], ROWS);
        change(w, &next, 700, 10);
        take(w, &log);
        log.size = 0;
        assert_ok(sk_index_checkpoint_begin(w->index, &w->d));
        while (!is_done) {
            change(w, &next, 20, 10);
            assert_ok(sk_index_checkpoint_step(w->index, 40000, &writer, &is_done, &w->d));
        }
        change(w, &next, 20, 10);
        take(w, &log);
        (void)world_check(w);
        struct sk_index *index;
        assert_ok(load(w, &image, &w->params, &index));
        play(w, &log, index);
        expect_same_rows(w, index);
        use(w, index);
        (void)world_check(w);
        free(image.bytes);
        free(log.bytes);
        world_deinit(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_log_played_back_gives_an_index_of_the_same_rows),
        cmocka_unit_test(an_image_and_the_log_after_it_give_the_same_answers),
        cmocka_unit_test(building_is_the_same_on_every_instruction_set),
        cmocka_unit_test(a_damaged_image_is_refused),
        cmocka_unit_test(writing_goes_on_while_a_checkpoint_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
