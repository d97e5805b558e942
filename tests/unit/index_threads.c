/* links: sk_index Threads::Threads */
/* Readers that never wait beside the one writer: inserts, removes, sweeps, renewals of the codes and
 * checkpoints go on below them. */
#include "tests/unit/index_world.h"

#include <pthread.h>
#include <stdatomic.h>

enum { READERS = 3, DIM = 192, ROWS = 900, STEPS = 260 };

struct reading {
    struct world *w;
    atomic_bool *is_over;
    unsigned seed;
    uint64_t searches, found;
    const char *failure; /* cmocka's asserts belong to the main thread */
};

static const char *check(struct reading *self, const struct sk_index_result *result,
                         const uint64_t *words)
{
    for (uint32_t i = 0; i < result->count; i++) {
        const uint32_t row = result->rows[i];
        if (row >= ROWS)
            return "a row that does not exist";
        if (words != NULL && (words[row / 64] >> row % 64 & 1) == 0)
            return "a row that the filter does not let in";
        if (!isfinite(result->scores[i]) || result->scores[i] < 0)
            return "a score that is none";
        for (uint32_t j = 0; j < i; j++)
            if (result->rows[j] == row)
                return "a row twice";
    }
    self->found += result->count;
    return NULL;
}

/* The same query alone, or six times over with other beams. */
static const char *look(struct reading *self, struct sk_index_reader *reader, unsigned n)
{
    enum { MANY = 6, ROOM = 64 };
    struct sk_diag d;
    float query[DIM], scores[MANY][ROOM];
    uint32_t rows[MANY][ROOM];
    uint64_t words[ROWS / 64 + 1];
    memset(words, (int)(0x5A + n), sizeof words);
    const struct sk_index_filter filter = {.words = words, .word_count = ROWS / 64 + 1};
    for (unsigned i = 0; i < DIM; i++)
        query[i] = (float)((n * 7919 + i * 104729 + self->seed) % 1000) / 500.0F - 1;
    struct sk_index_query asked[MANY];
    struct sk_index_result results[MANY];
    enum sk_err errs[MANY];
    for (uint32_t i = 0; i < MANY; i++) {
        asked[i] = (struct sk_index_query){.vector = query,
                                           .k = 10,
                                           .ef = 40 + i,
                                           .filter = n % 3 == 0 ? &filter : NULL,
                                           .is_exact = n % 5 == 0};
        results[i] =
            (struct sk_index_result){.rows = rows[i], .scores = scores[i], .capacity = ROOM};
    }
    struct sk_index_stats stats;
    sk_index_get_stats(self->w->index, &stats);
    const uint32_t count = n % 2 == 0 ? 1 : MANY;
    if (sk_index_search_many(self->w->index, reader, asked, results, errs, count, &d) != SK_ERR_OK)
        return "search";
    for (uint32_t i = 0; i < count; i++) {
        const char *failure = check(self, &results[i], n % 3 == 0 ? words : NULL);
        if (failure != NULL)
            return failure;
    }
    return NULL;
}

static void *read_on(void *impl)
{
    struct reading *self = impl;
    struct sk_index_reader *reader = NULL;
    struct sk_diag d;
    for (unsigned n = 0; self->failure == NULL && !atomic_load(self->is_over); n++) {
        /* a reader comes and goes now and then */
        if (reader == NULL && sk_index_reader_new(&reader, self->w->index, &d) != SK_ERR_OK)
            self->failure = "reader_new";
        else if ((self->failure = look(self, reader, n)) == NULL)
            self->searches++;
        if (n % 50 == 49)
            sk_index_reader_destroy(&reader);
    }
    sk_index_reader_destroy(&reader);
    return NULL;
}

static bool count_bytes(void *impl, const void *bytes, size_t size)
{
    size_t *total = impl;
    (void)bytes;
    *total += size;
    return true;
}

struct writing {
    uint32_t free_rows[ROWS], free_count, in_use;
};

static void write_step(struct world *w, struct writing *writing, unsigned step)
{
    bool has_more, is_done;
    size_t total = 0;
    struct sk_span delta;
    uint64_t watermark;
    const struct sk_index_writer writer = {&total, count_bytes};
    for (unsigned n = 0; n < 12; n++) {
        if (writing->free_count > 0 && world_random(w, 5) < 3) {
            assert_ok(world_insert(w, writing->free_rows[--writing->free_count]));
            writing->in_use++;
        } else if (writing->in_use > 100) {
            uint32_t row;
            do
                row = (uint32_t)world_random(w, ROWS);
            while (w->lseqs[row] == 0);
            world_remove(w, row);
            writing->in_use--;
        }
    }
    if (step % 60 == 30)
        for (uint32_t i = 0; i < CLUSTERS * DIM; i++)
            w->centres[i] += 2; /* the codes' centre has to follow */
    for (unsigned n = 0; n < 3; n++)
        assert_ok(sk_index_step(w->index, 0, NULL, step % 3 == 0 ? SK_INDEX_STEP_EAGER : 0, &has_more,
                                &w->d));
    sk_index_take_delta(w->index, &delta, &watermark);
    if (step % 20 == 0)
        assert_ok(sk_index_checkpoint_begin(w->index, &w->d));
    if (step % 20 < 10) {
        enum sk_err err = sk_index_checkpoint_step(w->index, 40000, &writer, &is_done, &w->d);
        assert_true(err == SK_ERR_OK || err == SK_ERR_INVALID); /* done before */
    } else {
        sk_index_checkpoint_abort(w->index);
    }
    writing->free_count += sk_index_reclaim_rows(
        w->index, writing->free_rows + writing->free_count, ROWS - writing->free_count);
}

static void readers_and_the_writer_do_not_meet(enum sk_index_kind kind, enum sk_index_profile profile)
{
    struct world world, *w = &world;
    struct sk_index_params params = world_params(kind, SK_METRIC_L2, DIM);
    struct writing writing = {.in_use = 0};
    pthread_t threads[READERS];
    struct reading readings[READERS];
    struct sk_index_stats stats;
    atomic_bool is_over = false;
    params.profile = profile;
    world_init(w, &params, ROWS);
    for (uint32_t row = ROWS; row-- > 0;)
        writing.free_rows[writing.free_count++] = row;
    for (unsigned i = 0; i < READERS; i++) {
        readings[i] = (struct reading){.w = w, .is_over = &is_over, .seed = i * 31};
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &readings[i]), 0);
    }
    for (unsigned step = 0; step < STEPS; step++)
        write_step(w, &writing, step);
    atomic_store(&is_over, true);
    for (unsigned i = 0; i < READERS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        if (readings[i].failure != NULL)
            fail_msg("reader %u: %s", i, readings[i].failure);
        assert_true(readings[i].searches > 10 && readings[i].found > 0);
    }
    sk_index_checkpoint_abort(w->index);
    world_rest(w, SK_INDEX_STEP_EAGER);
    sk_index_get_stats(w->index, &stats);
    assert_true(kind != SK_INDEX_HNSW || stats.generation > 1); /* codes were renewed below the readers */
    assert_int_equal(stats.rows, writing.in_use);
    (void)world_check(w);
    assert_true(world_recall(w, 30, 64) >= 0.9);
    world_deinit(w);
}

static void readers_walk_by_codes_while_the_writer_writes(void **state)
{
    (void)state;
    readers_and_the_writer_do_not_meet(SK_INDEX_HNSW, SK_INDEX_BALANCED);
}

static void readers_walk_by_neighbour_rows_while_the_writer_writes(void **state)
{
    (void)state;
    readers_and_the_writer_do_not_meet(SK_INDEX_HNSW, SK_INDEX_SPEED);
}

static void readers_scan_lists_while_the_writer_writes(void **state)
{
    (void)state;
    readers_and_the_writer_do_not_meet(SK_INDEX_IVF_FLAT, SK_INDEX_BALANCED);
    readers_and_the_writer_do_not_meet(SK_INDEX_IVF_PQ, SK_INDEX_BALANCED);
    readers_and_the_writer_do_not_meet(SK_INDEX_HYBRID, SK_INDEX_BALANCED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_walk_by_codes_while_the_writer_writes),
        cmocka_unit_test(readers_walk_by_neighbour_rows_while_the_writer_writes),
        cmocka_unit_test(readers_scan_lists_while_the_writer_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
