/* links: sk_index */
/* Profile speed: rows of neighbours' signs that are made behind and follow their links through inserts,
 * removes, sweeps and renewals, and walks by them. */
#include "actors/shard-worker/index/near.h"
#include "tests/unit/index_world.h"

static struct sk_index_params speed(enum sk_metric metric, uint32_t dim)
{
    struct sk_index_params params = world_params(SK_INDEX_HNSW, metric, dim);
    params.profile = SK_INDEX_SPEED;
    return params;
}

static uint32_t rows_made(const struct world *w)
{
    uint32_t count = 0;
    const uint32_t there = atomic_load(&w->index->near.row_count);
    for (uint32_t row = 0; row < there; row++)
        count += atomic_load(&((struct sk_near_header *)(void *)sk_near_row(w->index, row))->generation) ==
                 sk_generation_now(w->index)->number;
    return count;
}

static void rows_are_made_behind_and_then_walked_by(void **state)
{
    struct world w_, *w = &w_;
    (void)state;
    for (int metric = SK_METRIC_L2; metric <= SK_METRIC_COSINE; metric++) {
        const struct sk_index_params params = speed((enum sk_metric)metric, 100);
        world_init(w, &params, LESS(3000));
        world_fill(w, LESS(3000));
        assert_int_equal(rows_made(w), 0); /* until a step: as balanced */
        assert_true(world_recall(w, 50, 100) > 0.9);
        struct sk_index_stats before, after;
        sk_index_get_stats(w->index, &before);
        world_rest(w, SK_INDEX_STEP_BULK);
        assert_int_equal(rows_made(w), 0); /* more is to come */
        world_rest(w, 0);
        sk_index_get_stats(w->index, &after);
        assert_int_equal(rows_made(w), LESS(3000));
        assert_true(after.memory_bytes >= before.memory_bytes + (uint64_t)LESS(3000) * sk_near_row_bytes(w->index));
        world_check(w);
        double recall = world_recall(w, 100, 100);
        if (recall < 0.93)
            fail_msg("metric %d: recall %.3f", metric, recall);
        world_deinit(w);
    }
}

static double squared_between(const float *a, const float *b, uint32_t dim)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++)
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

/* What a neighbour's estimate is off by: 2 |q - u| |v - u| x 0.755 / sqrt(n) in the mean of squares. */
static void look_at_estimates(uint32_t dim, uint32_t rows)
{
    struct world w_, *w = &w_;
    float *query = malloc(dim * sizeof *query);
    double sum = 0, sum_sq = 0, want_sq = 0;
    uint64_t count = 0;
    const struct sk_index_params params = speed(SK_METRIC_L2, dim);
    world_init(w, &params, rows);
    world_fill(w, rows);
    world_rest(w, 0);
    for (unsigned n = 0; n < 40; n++) {
        struct sk_near_walk walk = {.index = w->index,
                                    .generation = sk_generation_now(w->index),
                                    .scratch = &w->reader->scratch};
        world_vector(w, query);
        assert_true(sk_near_fit(&walk, K, 200));
        sk_prepare_query(w->index, walk.generation, query, &walk.scratch->prepared);
        sk_near_begin(&walk);
        const float *node = w->vectors + (size_t)walk.row * dim;
        const uint32_t first = walk.row;
        sk_near_take(&walk);
        for (uint32_t i = 0; i < walk.frontier_size && walk.scratch->heap[i] != UINT64_MAX; i++) {
            const uint64_t key = walk.scratch->heap[i];
            const float *other = w->vectors + (size_t)sk_key_row(key) * dim;
            if (sk_key_row(key) == first)
                continue;
            const double error =
                (double)sk_key_distance(key) - squared_between(query, other, dim);
            sum += error;
            sum_sq += error * error;
            want_sq += 4 * squared_between(query, node, dim) * squared_between(node, other, dim) *
                       0.57 / dim;
            count++;
        }
        sk_near_end(&walk);
    }
    assert_true(count > 300);
    const double deviation = sqrt(sum_sq / (double)count), want = sqrt(want_sq / (double)count);
    if (deviation > 1.25 * want || deviation < 0.5 * want || fabs(sum / (double)count) > 0.25 * want)
        fail_msg("%u dimensions: %llu estimates are off by %g, want about %g; in the mean by %g",
                 dim, (unsigned long long)count, deviation, want, sum / (double)count);
    free(query);
    world_deinit(w);
}

static void estimates_are_as_near_as_signs_allow(void **state)
{
    (void)state;
    look_at_estimates(256, LESS(2000));
    look_at_estimates(2500, LESS(600)); /* sums do not fit 16 bits */
}

/* Links and rows of signs are compared by sk_index_check after every step. */
static void rows_follow_their_links(void **state)
{
    enum { DIM = 128, ROWS = 700 };
    (void)state;
    for (uint32_t m = 4; m <= 40; m += 18) { /* part of a block, more than one, three */
        struct world w_, *w = &w_;
        struct sk_index_params params = speed(SK_METRIC_L2, DIM);
        uint32_t free_rows[ROWS], free_count = 0, in_use = 0;
        params.m = m;
        world_init(w, &params, ROWS);
        for (uint32_t row = ROWS; row-- > 0;)
            free_rows[free_count++] = row;
        for (unsigned step = 0; step < LESS(150); step++) {
            bool has_more;
            for (unsigned n = 0; n < 12; n++)
                if (free_count > 0 && world_random(w, 5) < 3) {
                    assert_ok(world_insert(w, free_rows[--free_count]));
                    in_use++;
                } else if (in_use > 100) {
                    uint32_t row;
                    do
                        row = (uint32_t)world_random(w, ROWS);
                    while (w->lseqs[row] == 0);
                    world_remove(w, row);
                    in_use--;
                }
            if (step % 50 == 30) /* the codes' centre has to follow, and all rows with it */
                for (uint32_t i = 0; i < CLUSTERS * DIM; i++)
                    w->centres[i] += 2;
            assert_ok(sk_index_step(w->index, 0, NULL, step % 7 == 0 ? SK_INDEX_STEP_EAGER : 0,
                                    &has_more, &w->d));
            world_check(w);
            free_count += sk_index_reclaim_rows(w->index, free_rows + free_count, ROWS - free_count);
        }
        world_rest(w, SK_INDEX_STEP_EAGER);
        world_check(w);
        assert_true(rows_made(w) >= in_use);
        if (m >= 16)
            assert_true(world_recall(w, 30, 64) >= 0.9);
        world_deinit(w);
    }
}

/* A row that the writer is at, or that is of other codes, is as if it were not there. */
static void a_walk_goes_on_without_rows(void **state)
{
    enum { ROWS = 1500 };
    struct world w_, *w = &w_;
    (void)state;
    const struct sk_index_params params = speed(SK_METRIC_COSINE, 96);
    world_init(w, &params, LESS(ROWS));
    world_fill(w, LESS(ROWS));
    world_rest(w, 0);
    for (uint32_t row = 0; row < LESS(ROWS); row++) {
        struct sk_near_header *header = (void *)sk_near_row(w->index, row);
        if (row % 3 == 0)
            atomic_fetch_add(&header->sequence, 1);
        else if (row % 3 == 1)
            atomic_store(&header->generation, 7);
    }
    assert_true(world_recall(w, 50, 100) > 0.93);
    world_deinit(w);
}

static void the_same_is_found_on_every_instruction_set(void **state)
{
    enum { ROWS = 1200, DIM = 200, QUERIES = 40 };
    static uint32_t rows[QUERIES][K];
    static float scores[QUERIES][K];
    const char *name;
    (void)state;
    for (unsigned at = 0; (name = sk_kernels_name(at)) != NULL; at++)
        for (int metric = SK_METRIC_L2; metric <= SK_METRIC_COSINE; metric += 1) {
            struct world w_, *w = &w_;
            struct sk_index_params params = speed((enum sk_metric)metric, DIM);
            float query[DIM];
            params.isa = name;
            world_init(w, &params, LESS(ROWS));
            world_fill(w, LESS(ROWS));
            world_rest(w, 0);
            for (unsigned n = 0; n < QUERIES; n++) {
                uint32_t found[64];
                float found_scores[64];
                world_vector(w, query);
                const struct sk_index_query asked = {.vector = query, .k = K, .ef = 30};
                struct sk_index_result result = {
                    .rows = found, .scores = found_scores, .capacity = 64};
                assert_ok(sk_index_search(w->index, w->reader, &asked, &result, &w->d));
                assert_true(result.count >= K);
                if (at == 0 && metric == SK_METRIC_L2) {
                    memcpy(rows[n], found, sizeof rows[n]);
                    memcpy(scores[n], found_scores, sizeof scores[n]);
                } else if (metric == SK_METRIC_L2) {
                    assert_memory_equal(rows[n], found, sizeof rows[n]);
                    assert_memory_equal(scores[n], found_scores, sizeof scores[n]);
                }
            }
            world_deinit(w);
        }
}

struct bytes {
    uint8_t *bytes;
    size_t size, at;
};

static bool put(void *impl, const void *bytes, size_t size)
{
    struct bytes *self = impl;
    self->bytes = realloc(self->bytes, self->size + size);
    memcpy(self->bytes + self->size, bytes, size);
    self->size += size;
    return true;
}

static bool get(void *impl, void *bytes, size_t size)
{
    struct bytes *self = impl;
    if (size > self->size - self->at)
        return false;
    if (size > 0)
        memcpy(bytes, self->bytes + self->at, size);
    self->at += size;
    return true;
}

/* The image holds no rows of signs: either profile reads what the other has written. */
static void an_image_is_read_by_the_other_profile(void **state)
{
    enum { ROWS = 1200 };
    (void)state;
    for (unsigned from = 0; from < 2; from++) {
        struct world w_, *w = &w_;
        struct sk_index_params params = speed(SK_METRIC_L2, 128);
        struct bytes image = {.bytes = NULL};
        const struct sk_index_writer writer = {&image, put};
        const struct sk_index_image_reader reader = {&image, get};
        struct sk_span delta;
        uint64_t watermark;
        params.profile = from == 0 ? SK_INDEX_BALANCED : SK_INDEX_SPEED;
        world_init(w, &params, LESS(ROWS));
        world_fill(w, LESS(ROWS));
        world_rest(w, 0);
        sk_index_take_delta(w->index, &delta, &watermark);
        assert_ok(sk_index_checkpoint_write(w->index, &writer, &w->d));
        sk_index_reader_destroy(&w->reader);
        sk_index_destroy(&w->index);
        w->params.profile = from == 0 ? SK_INDEX_SPEED : SK_INDEX_BALANCED;
        assert_ok(sk_index_checkpoint_read(&w->index, &w->params, NULL, &reader, &w->d));
        assert_ok(sk_index_load_finish(w->index, NULL, &w->d));
        assert_ok(sk_index_reader_new(&w->reader, w->index, &w->d));
        assert_true(world_recall(w, 30, 100) > 0.9); /* before the rows are there */
        world_rest(w, 0);
        assert_int_equal(sk_near_is_ready(w->index), from == 0);
        assert_int_equal(rows_made(w), from == 0 ? LESS(ROWS) : 0);
        world_check(w);
        assert_true(world_recall(w, 30, 100) > 0.9);
        free(image.bytes);
        world_deinit(w);
    }
}

static void without_memory_for_rows_walks_go_by_codes(void **state)
{
    enum { ROWS = 2000 };
    struct world w_, *w = &w_;
    struct sk_index_stats stats;
    (void)state;
    struct sk_index_params params = speed(SK_METRIC_L2, 128);
    params.memory_bytes_max = (size_t)64 << 20;
    world_init(w, &params, LESS(ROWS));
    world_fill(w, LESS(ROWS));
    sk_index_get_stats(w->index, &stats);
    w->index->params.memory_bytes_max = stats.memory_bytes + 1000;
    world_rest(w, 0);
    assert_false(sk_near_is_ready(w->index));
    assert_true(world_recall(w, 30, 100) > 0.9);
    world_deinit(w);
}

/* Too few dimensions for signs: balanced serves. */
static void below_65_dimensions_there_are_no_rows(void **state)
{
    struct world w_, *w = &w_;
    (void)state;
    const struct sk_index_params params = speed(SK_METRIC_L2, 64);
    world_init(w, &params, 500);
    world_fill(w, 500);
    world_rest(w, 0);
    assert_false(sk_near_is_ready(w->index));
    assert_true(world_recall(w, 30, 100) > 0.9);
    world_deinit(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_made_behind_and_then_walked_by),
        cmocka_unit_test(estimates_are_as_near_as_signs_allow),
        cmocka_unit_test(rows_follow_their_links),
        cmocka_unit_test(a_walk_goes_on_without_rows),
        cmocka_unit_test(the_same_is_found_on_every_instruction_set),
        cmocka_unit_test(an_image_is_read_by_the_other_profile),
        cmocka_unit_test(without_memory_for_rows_walks_go_by_codes),
        cmocka_unit_test(below_65_dimensions_there_are_no_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
