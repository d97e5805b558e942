/* links: sk_index */
/* Profile memory: rows without 8-bit codes, and images that become those of another profile. */
#include "tests/unit/image_in_memory.h"
#include "tests/unit/index_world.h"

static void save(struct world *w, struct image *image)
{
    struct sk_span delta;
    uint64_t watermark;
    struct sk_index_stats stats;
    const struct sk_index_writer writer = {image, write_image};
    sk_index_take_delta(w->index, &delta, &watermark);
    *image = (struct image){.bytes = NULL};
    sk_index_get_stats(w->index, &stats);
    assert_ok(sk_index_checkpoint_write(w->index, &writer, &w->d));
    assert_int_equal(image->size, stats.image_bytes);
}

static enum sk_err load(struct world *w, struct image *image, enum sk_index_profile profile,
                        bool has_source, struct sk_index **out)
{
    const struct sk_index_source source = {w, world_fetch};
    const struct sk_index_image_reader reader = {image, read_image};
    struct sk_index_params params = w->params;
    params.profile = profile;
    image->at = 0;
    return sk_index_checkpoint_read(out, &params, has_source ? &source : NULL, &reader, &w->d);
}

static void use(struct world *w, struct sk_index *index)
{
    sk_index_reader_destroy(&w->reader);
    sk_index_destroy(&w->index);
    w->index = index;
    assert_ok(sk_index_reader_new(&w->reader, index, &w->d));
}

static void make(struct world *w, enum sk_metric metric, uint32_t dim, enum sk_index_profile profile,
                 uint32_t rows)
{
    struct sk_index_params params = world_params(SK_INDEX_HNSW, metric, dim);
    params.profile = profile;
    params.seed = 12345;
    world_init(w, &params, 2 * rows);
    world_fill(w, rows);
}

static uint32_t row_bytes_of(const struct world *w)
{
    struct sk_index_stats stats;
    sk_index_get_stats(w->index, &stats);
    return stats.row_bytes;
}

static void a_row_takes_what_is_said_and_is_found(void **state)
{
    static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
    (void)state;
    for (unsigned m = 0; m < 3; m++)
        for (uint32_t dim = 96; dim <= 384; dim += 288) {
            struct world world, *const w = &world;
            make(w, metrics[m], dim, SK_INDEX_MEMORY, LESS(3000));
            const uint32_t padded = dim == 96 ? 128 : dim;
            assert_int_equal(row_bytes_of(w), 128 + padded / 2 + 8 + 13 +
                                                   (metrics[m] == SK_METRIC_IP ? 16 : 0));
            /* with 384 dimensions the clusters are islands far apart, for every graph */
            assert_true(world_recall(w, 60, 200) >= (dim == 96 ? 0.99 : 0.9));
            assert_int_equal(world_check(w).unreachable_rows, 0);
            world_deinit(w);
        }
}

static void deletes_and_inserts_leave_recall_where_it_was(void **state)
{
    struct world world, *const w = &world;
    uint32_t rows[256], count;
    (void)state;
    make(w, SK_METRIC_L2, 128, SK_INDEX_MEMORY, LESS(3000));
    const uint32_t half = w->rows / 2;
    const double before = world_recall(w, 60, 60);
    for (uint32_t turn = 0; turn < 3; turn++) {
        for (uint32_t row = 0; row < half; row++)
            if (row % 3 == turn)
                world_remove(w, row);
        world_rest(w, SK_INDEX_STEP_EAGER);
        while ((count = sk_index_reclaim_rows(w->index, rows, 256)) > 0)
            for (uint32_t i = 0; i < count; i++)
                assert_ok(world_insert(w, rows[i]));
        world_rest(w, 0);
        assert_int_equal(world_check(w).unreachable_rows, 0);
    }
    assert_true(world_recall(w, 60, 60) >= before - 0.03);
    world_deinit(w);
}

/* The same rows in another form: what they say about a query stays. */
static void images_of_one_profile_become_those_of_another(void **state)
{
    static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
    static const enum sk_index_profile profiles[] = {SK_INDEX_BALANCED, SK_INDEX_MEMORY};
    (void)state;
    for (unsigned m = 0; m < 3; m++)
        for (unsigned from = 0; from < 2; from++)
            for (unsigned to = 0; to < 2; to++) {
                struct world world, *const w = &world;
                struct image image;
                struct sk_index *index;
                const struct sk_index_live live = {w, world_lseq_of};
                make(w, metrics[m], 96, profiles[from], LESS(1500));
                for (uint32_t row = 4; row < w->rows / 2; row += 9)
                    world_remove(w, row);
                const double recall = world_recall(w, 40, 80);
                save(w, &image);
                if (from == 1 && to == 0) { /* without vectors there is nothing to make them from */
                    assert_int_equal(load(w, &image, profiles[to], false, &index), SK_ERR_INVALID);
                    assert_non_null(strstr(w->d.text, "8-bit codes"));
                    assert_null(index);
                }
                assert_ok(load(w, &image, profiles[to], true, &index));
                assert_ok(sk_index_load_finish(index, &live, &w->d));
                use(w, index);
                w->params.profile = profiles[to];
                assert_int_equal(row_bytes_of(w),
                                 128 + 64 + 8 + 13 + (to == 0 ? 128 + 16 : m == 1 ? 16 : 0));
                assert_true(world_recall(w, 40, 80) >= recall - 0.02);
                assert_int_equal(world_check(w).unreachable_rows, 0);
                for (uint32_t row = w->rows / 2; row < w->rows / 2 + 100; row++)
                    assert_ok(world_insert(w, row)); /* and it goes on */
                assert_true(world_recall(w, 40, 80) >= recall - 0.03);
                if (to == 0) { /* 8-bit codes as if they had always been there: certain again */
                    struct sk_index_result result;
                    uint32_t rows[64];
                    float scores[64];
                    const struct sk_index_query query = {
                        .vector = w->vectors, .k = K, .is_exact = true};
                    result = (struct sk_index_result){.capacity = 64, .rows = rows, .scores = scores};
                    assert_ok(sk_index_search(w->index, w->reader, &query, &result, &w->d));
                    assert_true(result.is_certain);
                }
                struct image again;
                save(w, &again);
                assert_ok(load(w, &again, profiles[to], false, &index));
                assert_ok(sk_index_load_finish(index, &live, &w->d));
                use(w, index);
                assert_true(world_recall(w, 40, 80) >= recall - 0.03);
                free(image.bytes);
                free(again.bytes);
                world_deinit(w);
            }
}

static void damaged_images_are_refused_in_every_form(void **state)
{
    struct world world, *const w = &world;
    struct image image;
    struct sk_index *index;
    (void)state;
    make(w, SK_METRIC_L2, 96, SK_INDEX_MEMORY, 60);
    save(w, &image);
    for (unsigned n = 0; n < 1000; n++) {
        const size_t at = n < 160 ? n : (size_t)world_random(w, image.size);
        const uint8_t byte = image.bytes[at];
        const size_t size = image.size;
        image.bytes[at] = (uint8_t)(byte ^ 1U << n % 8);
        image.size = n % 3 == 0 ? (size_t)world_random(w, size) : size;
        enum sk_err rc = load(w, &image, n % 2 == 0 ? SK_INDEX_MEMORY : SK_INDEX_BALANCED, true, &index);
        assert_true(rc == SK_ERR_INVALID || rc == SK_ERR_VERSION);
        assert_null(index);
        image.bytes[at] = byte;
        image.size = size;
    }
    free(image.bytes);
    world_deinit(w);
}

/* Without 4-bit codes there is nothing to do without. */
static void below_the_least_dimensions_it_is_balanced(void **state)
{
    struct world world, *const w = &world;
    (void)state;
    make(w, SK_METRIC_L2, 64, SK_INDEX_MEMORY, LESS(1000));
    assert_int_equal(row_bytes_of(w), 128 + 64 + 16 + 13);
    assert_true(world_recall(w, 40, 80) >= 0.97);
    world_deinit(w);
}

/* The same codes and graph on every instruction set, so the same answers. */
static void answers_are_the_same_on_every_instruction_set(void **state)
{
    struct world first;
    float query[96];
    (void)state;
    make(&first, SK_METRIC_COSINE, 96, SK_INDEX_MEMORY, LESS(1000));
    for (unsigned n = 0; sk_kernels_name(n) != NULL; n++) {
        struct world world, *const w = &world;
        struct sk_index_params params = first.params;
        params.isa = sk_kernels_name(n);
        world_init(w, &params, first.rows);
        world_fill(w, first.rows / 2);
        for (unsigned i = 0; i < 30; i++) {
            world_vector(w, query);
            struct found a = world_search(&first, query, 40, NULL, NULL),
                         b = world_search(w, query, 40, NULL, NULL);
            assert_int_equal(a.count, b.count);
            assert_memory_equal(a.rows, b.rows, a.count * sizeof *a.rows);
        }
        world_deinit(w);
    }
    world_deinit(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_takes_what_is_said_and_is_found),
        cmocka_unit_test(deletes_and_inserts_leave_recall_where_it_was),
        cmocka_unit_test(images_of_one_profile_become_those_of_another),
        cmocka_unit_test(damaged_images_are_refused_in_every_form),
        cmocka_unit_test(below_the_least_dimensions_it_is_balanced),
        cmocka_unit_test(answers_are_the_same_on_every_instruction_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
