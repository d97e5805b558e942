/* links: sk_index */
/* Checkpoints: what was written is read back, on every instruction set; anything else is refused. */
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
    assert_int_equal(sk_index_delta_log_bytes(w->index), 0);
}

static enum sk_err load(struct world *w, struct image *image, const struct sk_index_params *params,
                        struct sk_index **out)
{
    const struct sk_index_source source = {w, world_fetch};
    const struct sk_index_image_reader reader = {image, read_image};
    image->at = 0;
    return sk_index_checkpoint_read(out, params, &source, &reader, &w->d);
}

static void use(struct world *w, struct sk_index *index)
{
    sk_index_reader_destroy(&w->reader);
    sk_index_destroy(&w->index);
    w->index = index;
    assert_ok(sk_index_reader_new(&w->reader, index, &w->d));
}

static void make(struct world *w, enum sk_index_kind kind, enum sk_metric metric, uint32_t dim,
                 uint32_t rows)
{
    struct sk_index_params params = world_params(kind, metric, dim);
    params.seed = 12345;
    world_init(w, &params, rows + 200);
    world_fill(w, rows);
    for (uint32_t row = 0; row < rows; row += 9)
        world_remove(w, row);
    world_rest(w, 0);
    for (uint32_t row = 4; row < rows; row += 9)
        world_remove(w, row); /* and some tombstones that stay */
}

static void an_image_gives_the_same_answers_on_every_instruction_set(void **state)
{
    static const enum sk_metric metrics[] = {SK_METRIC_L2, SK_METRIC_IP, SK_METRIC_COSINE};
    (void)state;
    for (size_t m = 0; m < SK_COUNT_OF(metrics); m++)
        for (uint32_t dim = 24; dim <= 200; dim += 88) {
            struct world world, *w = &world;
            struct image image;
            float *queries = malloc(20 * dim * sizeof *queries);
            uint32_t rows[20][64];
            float scores[20][64];
            uint32_t counts[20];
            make(w, SK_INDEX_HNSW, metrics[m], dim, 700);
            save(w, &image);
            for (unsigned n = 0; n < 20; n++)
                world_vector(w, queries + n * dim);
            for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
                struct sk_index_params params = w->params;
                struct sk_index_stats stats;
                struct sk_index *index;
                params.isa = sk_kernels_name(isa);
                assert_ok(load(w, &image, &params, &index));
                assert_ok(sk_index_load_finish(index, NULL, &w->d));
                use(w, index);
                (void)world_check(w);
                sk_index_get_stats(w->index, &stats);
                assert_string_equal(stats.isa, params.isa);
                assert_int_equal(stats.rows, 700 - 78 - 78);
                for (unsigned n = 0; n < 20; n++) {
                    uint32_t found[64];
                    float found_scores[64];
                    const struct sk_index_query query = {.vector = queries + n * dim, .k = 20};
                    struct sk_index_result result = {.rows = found, .scores = found_scores, .capacity = 64};
                    assert_ok(sk_index_search(w->index, w->reader, &query, &result, &w->d));
                    if (isa == 0) {
                        memcpy(rows[n], found, sizeof found);
                        memcpy(scores[n], found_scores, sizeof found_scores);
                        counts[n] = result.count;
                        continue;
                    }
                    assert_int_equal(result.count, counts[n]);
                    assert_memory_equal(found, rows[n], counts[n] * sizeof *found);
                    assert_memory_equal(found_scores, scores[n], counts[n] * sizeof *found_scores);
                }
            }
            free(queries);
            free(image.bytes);
            world_deinit(w);
        }
}

/* The same rows in the same order make the same index, whatever computes it. */
static void an_index_is_the_same_to_the_last_bit_on_every_instruction_set(void **state)
{
    struct image first = {.bytes = NULL};
    (void)state;
    for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
        struct world world, *w = &world;
        struct image image;
        struct sk_index_params params = world_params(SK_INDEX_HNSW, SK_METRIC_COSINE, 200);
        params.isa = sk_kernels_name(isa);
        world_init(w, &params, 500);
        world_fill(w, 500);
        for (uint32_t row = 0; row < 500; row += 5)
            world_remove(w, row);
        world_rest(w, 0);
        save(w, &image);
        if (isa == 0) {
            first = image;
        } else {
            assert_int_equal(image.size, first.size);
            assert_memory_equal(image.bytes, first.bytes, first.size);
            free(image.bytes);
        }
        world_deinit(w);
    }
    free(first.bytes);
}

static void an_image_written_in_slices_is_of_the_moment_it_was_begun(void **state)
{
    struct world world, *w = &world;
    struct image image = {.bytes = NULL};
    struct sk_span delta;
    uint64_t watermark, begun_lseq;
    const struct sk_index_writer writer = {&image, write_image};
    const struct sk_index_live live = {&world, world_lseq_of};
    uint32_t rows[600], next = 500, reclaimed;
    uint8_t *log = NULL;
    size_t log_size = 0, sizes[2000];
    unsigned deltas = 0;
    bool is_done = false, has_more;
    (void)state;
    make(w, SK_INDEX_HNSW, SK_METRIC_L2, 128, 500);
    assert_int_equal(sk_index_checkpoint_begin(w->index, &w->d), SK_ERR_INVALID); /* take first */
    sk_index_take_delta(w->index, &delta, &watermark);
    assert_ok(sk_index_checkpoint_begin(w->index, &w->d));
    assert_int_equal(sk_index_checkpoint_begin(w->index, &w->d), SK_ERR_BUSY);
    begun_lseq = sk_index_watermark(w->index);
    while (!is_done) {
        assert_ok(sk_index_checkpoint_step(w->index, 4096, &writer, &is_done, &w->d));
        for (unsigned n = 0; n < 8 && next < 600 && !is_done; n++) {
            assert_ok(world_insert(w, next++));
            if (w->lseqs[next - 400] != 0)
                world_remove(w, next - 400);
            assert_ok(sk_index_step(w->index, 0, NULL, SK_INDEX_STEP_EAGER, &has_more, &w->d));
            /* rows that are let go of stay until the image is written */
            assert_int_equal(sk_index_reclaim_rows(w->index, rows, 600), 0);
        }
        sk_index_take_delta(w->index, &delta, &watermark);
        log = realloc(log, log_size + delta.size + 1);
        memcpy(log + log_size, delta.bytes, delta.size);
        log_size += delta.size;
        sizes[deltas++] = delta.size;
    }
    assert_true(next > 510);
    reclaimed = sk_index_reclaim_rows(w->index, rows, 600);
    assert_true(reclaimed > 0);
    struct sk_index *index;
    assert_ok(load(w, &image, &w->params, &index));
    assert_int_equal(sk_index_watermark(index), begun_lseq);
    const uint8_t *at = log;
    for (unsigned i = 0; i < deltas; at += sizes[i++])
        if (sizes[i] > 0)
            assert_ok(sk_index_apply_delta(index, sk_span_of(at, sizes[i]), &w->d));
    assert_ok(sk_index_load_finish(index, &live, &w->d));
    use(w, index);
    (void)world_check(w);
    for (uint32_t row = 0; row < next; row++)
        if (w->lseqs[row] != 0)
            assert_true(sk_index_has(w->index, row, w->lseqs[row]));
    assert_true(world_recall(w, 40, 64) >= 0.95);
    free(log);
    free(image.bytes);
    world_deinit(w);
}

static void a_write_that_fails_ends_the_checkpoint_and_the_next_works(void **state)
{
    struct world world, *w = &world;
    struct image image = {.fail_at = 30000}, whole;
    struct sk_span delta;
    uint64_t watermark;
    const struct sk_index_writer writer = {&image, write_image};
    (void)state;
    make(w, SK_INDEX_HNSW, SK_METRIC_L2, 128, 300);
    sk_index_take_delta(w->index, &delta, &watermark);
    assert_int_equal(sk_index_checkpoint_write(w->index, &writer, &w->d), SK_ERR_INTERNAL);
    sk_index_checkpoint_abort(w->index); /* nothing is running */
    save(w, &whole);
    struct sk_index *index;
    assert_ok(load(w, &whole, &w->params, &index));
    sk_index_destroy(&index);
    free(image.bytes);
    free(whole.bytes);
    world_deinit(w);
}

static void an_image_of_something_else_is_refused_with_the_reason(void **state)
{
    struct world world, *w = &world;
    struct image image;
    struct sk_index *index;
    (void)state;
    make(w, SK_INDEX_HNSW, SK_METRIC_L2, 128, 100);
    save(w, &image);
    struct sk_index_params wrong[6];
    for (size_t i = 0; i < SK_COUNT_OF(wrong); i++)
        wrong[i] = w->params;
    wrong[0].kind = SK_INDEX_FLAT;
    wrong[1].metric = SK_METRIC_IP;
    wrong[2].dim = 127;
    wrong[3].m = 8;
    wrong[4].seed = 1;
    wrong[5].dim = 300;
    for (size_t i = 0; i < SK_COUNT_OF(wrong); i++) {
        assert_int_equal(load(w, &image, &wrong[i], &index), SK_ERR_INVALID);
        assert_null(index);
    }
    image.bytes[8] ^= 2; /* the format */
    assert_int_equal(load(w, &image, &w->params, &index), SK_ERR_VERSION);
    assert_non_null(strstr(w->d.text, "format 3"));
    image.bytes[8] ^= 2;
    struct sk_index_params small = w->params;
    small.memory_bytes_max = 100000; /* less than the rows need */
    enum sk_err err = load(w, &image, &small, &index);
    assert_true(err == SK_ERR_NOMEM || err == SK_ERR_INVALID);
    assert_null(index);
    free(image.bytes);
    world_deinit(w);
}

/* Refused, or an index that is sound and answers. */
static bool load_hostile(struct world *w, const uint8_t *bytes, size_t size)
{
    struct image image = {.bytes = malloc(size + 1), .size = size};
    struct sk_index *index;
    float query[128] = {1};
    memcpy(image.bytes, bytes, size);
    enum sk_err err = load(w, &image, &w->params, &index);
    free(image.bytes);
    if (err != SK_ERR_OK) {
        assert_null(index);
        assert_true(err == SK_ERR_INVALID || err == SK_ERR_VERSION || err == SK_ERR_NOMEM);
        return false;
    }
    struct sk_index *own = w->index;
    struct sk_index_reader *reader = w->reader;
    const struct sk_index_live live = {w, world_lseq_of};
    uint32_t rows[64];
    float scores[64];
    const struct sk_index_query asked = {.vector = query, .k = 10};
    struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = 64};
    w->index = index;
    assert_ok(sk_index_load_finish(index, &live, &w->d));
    (void)world_check(w);
    assert_ok(sk_index_reader_new(&w->reader, index, &w->d));
    assert_ok(sk_index_search(index, w->reader, &asked, &result, &w->d));
    world_rest(w, SK_INDEX_STEP_EAGER);
    sk_index_reader_destroy(&w->reader);
    sk_index_destroy(&index);
    w->index = own;
    w->reader = reader;
    return true;
}

/* The checksums that an image has (image.c), so that what is behind them is reached. */
uint64_t sk_hash(uint64_t seed, const void *bytes, size_t size);

static void sign(uint8_t *bytes, size_t size, const size_t *sections, size_t count)
{
    enum { BLOCK = 65536, HASH_AT = 60 };
    uint64_t hash = 0;
    memset(bytes + HASH_AT, 0, 4);
    uint32_t of_header = (uint32_t)sk_hash(1, bytes, 144);
    memcpy(bytes + HASH_AT, &of_header, 4);
    size_t at = 0;
    for (size_t i = 0; i < count; i++)
        for (size_t left = sections[i]; left > 0;) {
            size_t part = left < BLOCK ? left : BLOCK;
            hash = sk_hash(hash, bytes + at, part);
            at += part;
            left -= part;
        }
    assert_int_equal(at + 8, size);
    memcpy(bytes + at, &hash, sizeof hash);
}

static void damaged_images_are_refused_or_harmless(void **state)
{
    struct world world, *w = &world;
    struct image image;
    (void)state;
    make(w, SK_INDEX_HNSW, SK_METRIC_L2, 100, 120);
    save(w, &image);
    assert_true(load_hostile(w, image.bytes, image.size));
    for (size_t cut = 0; cut < image.size; cut += cut < LESS(300) ? 1 : 1 + image.size / LESS(300))
        assert_false(load_hostile(w, image.bytes, cut));
    uint8_t *copy = malloc(image.size);
    for (unsigned n = 0; n < LESS(3000); n++) {
        size_t at = n < 152 * 8 ? n / 8 : world_random(w, image.size);
        memcpy(copy, image.bytes, image.size);
        copy[at] ^= (uint8_t)(1U << (n % 8));
        assert_false(load_hostile(w, copy, image.size)); /* the checksum sees every one */
    }
    /* and signed again: header, centre, states, lseqs, links, codes and factors */
    const size_t rows = 120, padded = 128;
    const size_t sections[] = {144,           padded * 4,        rows,     rows * 8, rows * 128,
                               rows * padded / 2, rows * 8, rows * padded, rows * 16};
    memcpy(copy, image.bytes, image.size);
    sign(copy, image.size, sections, SK_COUNT_OF(sections));
    assert_memory_equal(copy, image.bytes, image.size); /* the sections are the right ones */
    unsigned loaded = 0;
    for (unsigned n = 0; n < LESS(6000); n++) {
        memcpy(copy, image.bytes, image.size);
        for (uint64_t flips = 1 + world_random(w, 3); flips > 0; flips--) {
            size_t limit = n % 2 == 0 ? 144 + padded * 4 + rows * (9 + 128) : image.size;
            copy[world_random(w, limit)] ^= (uint8_t)(1U << world_random(w, 8));
        }
        sign(copy, image.size, sections, SK_COUNT_OF(sections));
        loaded += load_hostile(w, copy, image.size);
    }
    assert_true(loaded > 0 && loaded < LESS(6000));
    free(copy);
    free(image.bytes);
    world_deinit(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_image_gives_the_same_answers_on_every_instruction_set),
        cmocka_unit_test(an_index_is_the_same_to_the_last_bit_on_every_instruction_set),
        cmocka_unit_test(an_image_written_in_slices_is_of_the_moment_it_was_begun),
        cmocka_unit_test(a_write_that_fails_ends_the_checkpoint_and_the_next_works),
        cmocka_unit_test(an_image_of_something_else_is_refused_with_the_reason),
        cmocka_unit_test(damaged_images_are_refused_or_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
