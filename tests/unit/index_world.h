/* Vectors with some structure, an index over them, and the exact answer by brute force. */
#ifndef SK_TESTS_INDEX_WORLD_H
#define SK_TESTS_INDEX_WORLD_H

#include "actors/shard-worker/index/index.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        enum sk_err assert_ok_err = (call);                                                        \
        if (assert_ok_err != SK_ERR_OK)                                                            \
            fail_msg("%s: %s: %s", #call, sk_err_name(assert_ok_err), w->d.text);                  \
    } while (0)

/* ThreadSanitizer makes these tests, which have one thread, twenty times slower: less of them there. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define LESS(count) ((count) / 10)
#else
#define LESS(count) (count)
#endif

enum { CLUSTERS = 40, K = 10 };

struct world {
    struct sk_index_params params;
    struct sk_index *index;
    struct sk_index_reader *reader;
    uint64_t random;
    uint32_t rows;     /* there is room for */
    float *vectors;    /* rows x dim */
    uint64_t *lseqs;   /* 0: the row is not in use */
    float *centres;    /* CLUSTERS x dim */
    uint64_t lseq;
    bool is_coarse; /* one of a few vectors */
    struct sk_diag d;
};

static inline uint64_t world_random(struct world *w, uint64_t below)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (w->random >> 11) % below;
}

static inline float world_normal(struct world *w)
{
    float sum = 0;
    for (int i = 0; i < 6; i++)
        sum += (float)world_random(w, 65536) / 65536.0F;
    return (sum - 3) * 1.41F;
}

/* Clusters of one size, in lengths that differ by a factor of three (inner product). */
static inline void world_vector(struct world *w, float *out)
{
    const uint32_t dim = w->params.dim;
    const float *centre = w->centres + world_random(w, CLUSTERS) * dim;
    float length = 0.5F + (float)world_random(w, 1000) / 1000.0F;
    if (w->is_coarse) {
        memset(out, 0, dim * sizeof *out);
        out[world_random(w, dim)] = (float)(1 + world_random(w, 3));
        return;
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (centre[i] + 0.7F * world_normal(w)) * length + 0.2F;
}

static inline bool world_fetch(void *impl, uint32_t row, float *out)
{
    struct world *w = impl;
    if (row >= w->rows || w->lseqs[row] == 0)
        return false;
    memcpy(out, w->vectors + (size_t)row * w->params.dim, w->params.dim * sizeof *out);
    return true;
}

static inline bool world_lseq_of(void *impl, uint32_t row, uint64_t *lseq)
{
    struct world *w = impl;
    *lseq = row < w->rows ? w->lseqs[row] : 0;
    return *lseq != 0;
}

static inline void world_init(struct world *w, const struct sk_index_params *params, uint32_t rows)
{
    const struct sk_index_source source = {w, world_fetch};
    const char *seed = getenv("SK_SEED");
    *w = (struct world){.params = *params, .rows = rows};
    w->random = seed != NULL ? strtoull(seed, NULL, 0) | 1 : 88172645463325252U;
    w->vectors = calloc((size_t)rows * params->dim, sizeof *w->vectors);
    w->centres = calloc((size_t)CLUSTERS * params->dim, sizeof *w->centres);
    w->lseqs = calloc(rows, sizeof *w->lseqs);
    for (uint32_t i = 0; i < CLUSTERS * params->dim; i++)
        w->centres[i] = world_normal(w);
    assert_ok(sk_index_new(&w->index, params, &source, &w->d));
    assert_ok(sk_index_reader_new(&w->reader, w->index, &w->d));
}

static inline void world_deinit(struct world *w)
{
    sk_index_reader_destroy(&w->reader);
    sk_index_destroy(&w->index);
    free(w->vectors);
    free(w->centres);
    free(w->lseqs);
}

static inline enum sk_err world_insert(struct world *w, uint32_t row)
{
    float *vector = w->vectors + (size_t)row * w->params.dim;
    world_vector(w, vector);
    enum sk_err err = sk_index_insert(w->index, row, w->lseq + 1, vector, &w->d);
    if (err == SK_ERR_OK)
        w->lseqs[row] = ++w->lseq;
    return err;
}

static inline void world_fill(struct world *w, uint32_t count)
{
    for (uint32_t row = 0; row < count; row++)
        assert_ok(world_insert(w, row));
}

static inline void world_remove(struct world *w, uint32_t row)
{
    assert_ok(sk_index_remove(w->index, row, w->lseqs[row], &w->d));
    w->lseqs[row] = 0;
}

/* All the maintenance there is. */
static inline void world_rest(struct world *w, unsigned flags)
{
    bool has_more = true;
    while (has_more)
        assert_ok(sk_index_step(w->index, 0, NULL, flags, &has_more, &w->d));
}

static inline struct sk_index_check_report world_check(struct world *w)
{
    struct sk_index_check_report report;
    assert_ok(sk_index_check(w->index, &report, &w->d));
    return report;
}

typedef bool world_matches(void *impl, uint32_t row);

struct found {
    uint32_t rows[K];
    float scores[K];
    uint32_t count;
};

static inline void found_add(struct world *w, struct found *found, uint32_t row, float score)
{
    uint32_t at = found->count < K ? found->count++ : K;
    if (at == K) {
        if (!sk_score_is_better(w->params.metric, score, found->scores[K - 1]))
            return;
        at = K - 1;
    }
    for (; at > 0 && sk_score_is_better(w->params.metric, score, found->scores[at - 1]); at--) {
        found->rows[at] = found->rows[at - 1];
        found->scores[at] = found->scores[at - 1];
    }
    found->rows[at] = row;
    found->scores[at] = score;
}

/* The K best rows in use, ties by row. */
static inline struct found world_exact(struct world *w, const float *query, world_matches *matches,
                                       void *impl)
{
    struct found found = {.count = 0};
    for (uint32_t row = 0; row < w->rows; row++)
        if (w->lseqs[row] != 0 && (matches == NULL || matches(impl, row)))
            found_add(w, &found, row,
                      sk_score_exact(w->params.metric, query,
                                     w->vectors + (size_t)row * w->params.dim, w->params.dim));
    return found;
}

/* What the index finds, scored from the vectors as a worker does. */
static inline struct found world_search(struct world *w, const float *vector, uint32_t ef,
                                        const struct sk_index_filter *filter,
                                        struct sk_index_result *counters)
{
    enum { ROOM = 4096 };
    static uint32_t rows[ROOM];
    static float scores[ROOM];
    const struct sk_index_query query = {.vector = vector, .k = K, .ef = ef, .filter = filter};
    struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = ROOM};
    struct found found = {.count = 0};
    assert_ok(sk_index_search(w->index, w->reader, &query, &result, &w->d));
    for (uint32_t i = 0; i < result.count; i++) {
        assert_true(rows[i] < w->rows && w->lseqs[rows[i]] != 0); /* in use */
        float score = sk_score_exact(w->params.metric, vector,
                                     w->vectors + (size_t)rows[i] * w->params.dim, w->params.dim);
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(rows[j], rows[i]);
        found_add(w, &found, rows[i], score);
    }
    if (counters != NULL)
        *counters = result;
    return found;
}

/* Of the exact answer's rows, how many were found (by score: equal ones count). */
static inline uint32_t world_hits(const struct world *w, const struct found *exact,
                                  const struct found *found)
{
    uint32_t hits = 0;
    for (uint32_t i = 0; i < found->count && exact->count > 0; i++)
        hits += !sk_score_is_better(w->params.metric, exact->scores[exact->count - 1],
                                    found->scores[i]);
    return hits;
}

static inline double world_recall(struct world *w, unsigned queries, uint32_t ef)
{
    float *query = malloc(w->params.dim * sizeof *query);
    uint64_t hits = 0, wanted = 0;
    for (unsigned n = 0; n < queries; n++) {
        world_vector(w, query);
        struct found exact = world_exact(w, query, NULL, NULL);
        struct found found = world_search(w, query, ef, NULL, NULL);
        assert_int_equal(found.count, exact.count);
        hits += world_hits(w, &exact, &found);
        wanted += exact.count;
    }
    free(query);
    return wanted == 0 ? 1 : (double)hits / (double)wanted;
}

static inline struct sk_index_params world_params(enum sk_index_kind kind, enum sk_metric metric,
                                                  uint32_t dim)
{
    return (struct sk_index_params){
        .kind = kind, .metric = metric, .dim = dim, .m = 16, .ef_construction = 100, .flat_below = 1};
}

#endif
