/* links: sk_worker sk_kernels */
#include "tests/harness.h"

#include "actors/shard-worker/pending.h"
#include "actors/shard-worker/rank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 72, ROWS = 3000, LIMIT = 25 };

static uint64_t state = 0x9E3779B97F4A7C15U;

static float uniform(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float)(int32_t)(state >> 32) / 2147483648.0F;
}

struct reference {
    float score;
    uint64_t id;
};
static enum sk_metric sort_metric;

static int compare(const void *a, const void *b)
{
    const struct reference *x = a;
    const struct reference *y = b;
    if (x->score != y->score)
        return sk_score_is_better(sort_metric, x->score, y->score) ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static void the_best_of_a_scan(enum sk_metric metric, float scale)
{
    float(*rows)[DIM] = malloc(ROWS * sizeof *rows);
    struct reference *all = malloc(ROWS * sizeof *all);
    float query[DIM];
    for (unsigned i = 0; i < DIM; i++)
        query[i] = uniform() * scale;
    for (unsigned r = 0; r < ROWS; r++) {
        for (unsigned i = 0; i < DIM; i++)
            rows[r][i] = uniform() * scale;
        if (r % 3 == 2) /* ties: the id decides */
            memcpy(rows[r], rows[r / 2], sizeof rows[r]);
        all[r] = (struct reference){sk_score_exact(metric, query, rows[r], DIM), ROWS - r};
    }
    struct sk_scorer scorer;
    sk_scorer_init(&scorer, sk_kernels_get(NULL), metric, query, DIM);
    struct sk_rank rank;
    struct sk_diag d = {0};
    assert_int_equal(sk_rank_init(&rank, metric, LIMIT, &d), SK_ERR_OK);
    unsigned scored = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        float worst;
        if (sk_rank_worst(&rank, &worst) && !sk_scorer_may_reach(&scorer, rows[r], worst)) {
            assert_true(sk_score_is_better(metric, worst, all[r].score));
            continue;
        }
        scored++;
        struct sk_id id = sk_id_from_u64(ROWS - r);
        sk_rank_offer(&rank, sk_scorer_exact(&scorer, rows[r]), r, &id);
    }
    sk_rank_finish(&rank);
    sort_metric = metric;
    qsort(all, ROWS, sizeof *all, compare);
    assert_int_equal(rank.count, LIMIT);
    for (unsigned i = 0; i < LIMIT; i++) {
        assert_true(rank.hits[i].score == all[i].score);
        assert_int_equal(sk_id_u64(&rank.hits[i].id), all[i].id);
    }
    if (scale == 1.0F)
        assert_true(scored < ROWS / 4);
    sk_rank_deinit(&rank);
    free(rows);
    free(all);
}

static void a_scan_with_the_fast_bound_finds_what_double_precision_finds(void **unused)
{
    (void)unused;
    const float scales[] = {1.0F, 1e-25F, 1e25F, 3e-20F};
    for (unsigned i = 0; i < SK_COUNT_OF(scales); i++) {
        the_best_of_a_scan(SK_METRIC_L2, scales[i]);
        the_best_of_a_scan(SK_METRIC_COSINE, scales[i]);
        if (scales[i] < 2) /* the inner product itself would pass the range of a float */
            the_best_of_a_scan(SK_METRIC_IP, scales[i]);
    }
}

static void a_threshold_lets_in_equal_scores_and_says_when_there_is_more(void **unused)
{
    (void)unused;
    struct sk_rank rank;
    struct sk_diag d = {0};
    assert_int_equal(sk_rank_init(&rank, SK_METRIC_L2, 2, &d), SK_ERR_OK);
    sk_rank_set_threshold(&rank, 1.5F);
    const float scores[] = {1.6F, 1.5F, 0.5F};
    for (uint32_t i = 0; i < 3; i++) {
        struct sk_id id = sk_id_from_u64(i);
        sk_rank_offer(&rank, scores[i], i, &id);
    }
    assert_int_equal(rank.count, 2);
    assert_false(rank.has_more);
    struct sk_id id = sk_id_from_u64(9);
    sk_rank_offer(&rank, 1.45F, 9, &id);
    assert_true(rank.has_more);
    sk_rank_finish(&rank);
    assert_int_equal(rank.hits[0].row, 2);
    assert_int_equal(rank.hits[1].row, 9);
    sk_rank_deinit(&rank);
}

static struct sk_pending_chunk *chunk_of(uint32_t first, uint32_t count)
{
    struct sk_pending_chunk *chunk = NULL;
    struct sk_diag d = {0};
    assert_int_equal(sk_pending_chunk_new(&chunk, 2, count, &d), SK_ERR_OK);
    for (uint32_t i = 0; i < count; i++) {
        float vector[2] = {(float)(first + i), 0};
        assert_true(sk_pending_chunk_add(chunk, first + i, 100 + first + i, vector));
    }
    return chunk;
}

static uint32_t sum_of_rows(const struct sk_pending *pending)
{
    uint32_t sum = 0;
    for (const struct sk_pending_chunk *c = sk_pending_begin(pending); c; c = sk_pending_next(c))
        for (uint32_t i = sk_pending_from(c); i < c->count; i++)
            sum += c->rows[i];
    return sum;
}

static void free_retired(struct sk_pending *pending, unsigned want)
{
    unsigned count = 0;
    for (struct sk_pending_chunk *c = sk_pending_take_retired(pending); c != NULL; count++) {
        struct sk_pending_chunk *next = c->retired_next;
        sk_pending_chunk_free(c);
        c = next;
    }
    assert_int_equal(count, want);
}

static void pending_rows_leave_in_order_and_a_failed_commit_takes_its_own_back(void **unused)
{
    (void)unused;
    struct sk_pending pending;
    sk_pending_init(&pending, 2);
    sk_pending_publish(&pending, chunk_of(1, 2));
    struct sk_pending_chunk *failed = chunk_of(50, 3);
    sk_pending_publish(&pending, failed);
    assert_int_equal(sk_pending_count(&pending), 5);
    sk_pending_withdraw(&pending, failed);
    sk_pending_publish(&pending, chunk_of(3, 1));
    assert_int_equal(sk_pending_count(&pending), 3);
    assert_int_equal(sum_of_rows(&pending), 6);
    for (uint32_t want = 1; want <= 3; want++) {
        uint32_t row;
        uint64_t lseq;
        const float *vector;
        assert_true(sk_pending_front(&pending, &row, &lseq, &vector));
        assert_int_equal(row, want);
        assert_int_equal(lseq, 100 + want);
        assert_true(vector[0] == (float)want);
        sk_pending_pop(&pending);
    }
    assert_int_equal(sk_pending_count(&pending), 0);
    assert_null(sk_pending_begin(&pending));
    free_retired(&pending, 3);
    sk_pending_publish(&pending, chunk_of(9, 1));
    assert_int_equal(sum_of_rows(&pending), 9);
    struct sk_pending_chunk *first = chunk_of(10, 1);
    sk_pending_clear(&pending);
    sk_pending_publish(&pending, first);
    sk_pending_withdraw(&pending, first);
    assert_null(sk_pending_begin(&pending));
    sk_pending_publish(&pending, chunk_of(11, 4));
    sk_pending_deinit(&pending);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_scan_with_the_fast_bound_finds_what_double_precision_finds),
        cmocka_unit_test(a_threshold_lets_in_equal_scores_and_says_when_there_is_more),
        cmocka_unit_test(pending_rows_leave_in_order_and_a_failed_commit_takes_its_own_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
