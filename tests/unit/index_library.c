/* links: skerry_index Threads::Threads sk_kernels */
/* The C ABI: ids instead of rows, files, many threads. */
#include "actors/shard-worker/index/skerry_index.h"
#include "common/base/err.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIM = 64, COUNT = 400, K = 5 };

static char text[400];
#define assert_done(call)                                                                          \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, text);                                                       \
    } while (0)

static struct skerry_index *make(const char *kind, const char *metric, int keep_vectors)
{
    const struct skerry_index_options options = {.abi = SKERRY_INDEX_ABI,
                                                 .dim = DIM,
                                                 .metric = metric,
                                                 .index = kind,
                                                 .keep_vectors = keep_vectors};
    struct skerry_index *index;
    assert_done(skerry_index_new(&index, &options, text, sizeof text));
    return index;
}

static void vector_of(uint64_t id, float *out)
{
    uint64_t x = (id + 1) * 0x9E3779B97F4A7C15U;
    for (unsigned i = 0; i < DIM; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out[i] = (float)(x >> 40) / 16777216.0F - 0.5F;
    }
}

static void add(struct skerry_index *index, uint64_t first, uint64_t count)
{
    uint64_t *ids = malloc(count * sizeof *ids);
    float *vectors = malloc(count * DIM * sizeof *vectors);
    for (uint64_t i = 0; i < count; i++) {
        ids[i] = first + i * 1000003; /* ids are no rows */
        vector_of(ids[i], vectors + i * DIM);
    }
    assert_done(skerry_index_add(index, count, ids, vectors, text, sizeof text));
    free(ids);
    free(vectors);
}

/* Every id finds itself. */
static void expect(struct skerry_index *index, uint64_t first, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++) {
        float query[DIM], scores[K];
        uint64_t ids[K], id = first + i * 1000003;
        vector_of(id, query);
        assert_done(skerry_index_search(index, 1, query, K, NULL, ids, scores, text, sizeof text));
        assert_int_equal(ids[0], id);
    }
}

static void what_was_added_is_found_and_what_was_removed_is_not(void **state)
{
    static const char *const kinds[] = {"flat", "hnsw"}, *const metrics[] = {"l2", "cosine"};
    (void)state;
    for (unsigned k = 0; k < 2; k++)
        for (unsigned m = 0; m < 2; m++) {
            struct skerry_index *index = make(kinds[k], metrics[m], -1);
            size_t removed;
            assert_string_equal(skerry_index_kind(index), kinds[k]);
            assert_string_equal(skerry_index_metric(index), metrics[m]);
            assert_int_equal(skerry_index_dim(index), DIM);
            add(index, 7, COUNT);
            add(index, 7, COUNT); /* the same again: still one of each */
            assert_int_equal(skerry_index_count(index), COUNT);
            expect(index, 7, 0, COUNT);
            for (uint64_t i = 0; i < COUNT / 2; i++) {
                uint64_t ids[2] = {7 + i * 1000003, 5};
                assert_done(skerry_index_remove(index, 2, ids, &removed, text, sizeof text));
                assert_int_equal(removed, 1);
            }
            assert_int_equal(skerry_index_count(index), COUNT / 2);
            expect(index, 7, COUNT / 2, COUNT);
            float query[DIM], scores[K];
            uint64_t ids[K];
            vector_of(7, query);
            assert_done(skerry_index_search(index, 1, query, K, NULL, ids, scores, NULL, 0));
            assert_int_not_equal(ids[0], 7);
            assert_done(skerry_index_compact(index, text, sizeof text));
            add(index, 7, COUNT / 2);
            expect(index, 7, 0, COUNT);
            assert_true(skerry_index_memory_bytes(index) > COUNT * DIM);
            skerry_index_free(index);
        }
    skerry_index_free(NULL);
}

static void kept_vectors_make_scores_exact(void **state)
{
    struct skerry_index *index = make("hnsw", "l2", 1);
    float query[DIM], other[DIM], scores[K];
    uint64_t ids[K];
    (void)state;
    add(index, 7, COUNT);
    vector_of(3, query);
    assert_done(skerry_index_search(index, 1, query, K, NULL, ids, scores, text, sizeof text));
    for (unsigned i = 0; i < K; i++) {
        double sum = 0;
        vector_of(ids[i], other);
        for (unsigned j = 0; j < DIM; j++)
            sum += ((double)query[j] - (double)other[j]) * ((double)query[j] - (double)other[j]);
        assert_true(fabs((double)scores[i] - sqrt(sum)) < 1e-6 * sqrt(sum));
        assert_true(i == 0 || scores[i] >= scores[i - 1]);
    }
    skerry_index_free(index);
}

static void fewer_than_k_are_filled_up(void **state)
{
    struct skerry_index *index = make("hnsw", "ip", 0);
    float queries[2 * DIM] = {1}, scores[2 * K];
    uint64_t ids[2 * K];
    (void)state;
    const struct skerry_index_search_options two_threads = {.abi = SKERRY_INDEX_ABI, .threads = 2};
    queries[DIM] = 1;
    add(index, 7, 2);
    assert_done(skerry_index_search(index, 2, queries, K, &two_threads, ids, scores, text, sizeof text));
    for (unsigned i = 0; i < 2 * K; i++) {
        assert_int_equal(ids[i] == SKERRY_NO_ID, i % K >= 2);
        assert_int_equal(isnan(scores[i]), i % K >= 2);
    }
    skerry_index_free(index);
}

static void errors_have_a_number_and_a_text(void **state)
{
    struct skerry_index *index = make("hnsw", "cosine", -1), *none;
    struct skerry_index_options options = {.abi = SKERRY_INDEX_ABI, .dim = DIM, .metric = "cosine"};
    float vectors[2 * DIM] = {1}, scores[K];
    uint64_t ids[2] = {1, 2}, found[K], bad = SKERRY_NO_ID;
    struct skerry_index_search_options options_of_search = {.abi = SKERRY_INDEX_ABI, .threads = 65};
    (void)state;
    assert_int_equal(skerry_index_add(index, 2, ids, vectors, text, sizeof text), SK_ERR_INVALID);
    assert_non_null(strstr(text, "row 1 of 2"));
    assert_int_equal(skerry_index_count(index), 1); /* the rows before are in */
    assert_int_equal(skerry_index_add(index, 1, &bad, vectors, text, sizeof text), SK_ERR_INVALID);
    assert_int_equal(skerry_index_search(index, 1, vectors, 0, NULL, found, scores, text, sizeof text),
                     SK_ERR_INVALID);
    assert_int_equal(skerry_index_search(index, 1, vectors, K, &options_of_search, found, scores, text,
                                         sizeof text),
                     SK_ERR_INVALID);
    assert_non_null(strstr(text, "threads 65"));
    options_of_search = (struct skerry_index_search_options){.abi = 1};
    assert_int_equal(skerry_index_search(index, 1, vectors, K, &options_of_search, found, scores, text,
                                         sizeof text),
                     SK_ERR_VERSION);
    options_of_search = (struct skerry_index_search_options){.abi = SKERRY_INDEX_ABI, .nprobe = 3};
    assert_int_equal(skerry_index_search(index, 1, vectors, K, &options_of_search, found, scores, text,
                                         sizeof text),
                     SK_ERR_INVALID);
    vectors[3] = NAN;
    assert_int_equal(skerry_index_search(index, 1, vectors, K, NULL, found, scores, text, sizeof text),
                     SK_ERR_INVALID);
    assert_non_null(strstr(text, "query 0"));
    skerry_index_free(index);
    options.metric = "manhattan";
    assert_int_equal(skerry_index_new(&none, &options, text, sizeof text), SK_ERR_INVALID);
    assert_null(none);
    options.metric = NULL;
    assert_int_equal(skerry_index_new(&none, &options, text, sizeof text), SK_ERR_INVALID);
    options.metric = "ip";
    options.index = "ivf";
    assert_int_equal(skerry_index_new(&none, &options, text, sizeof text), SK_ERR_INVALID);
    options.index = NULL;
    options.profile = "quick";
    assert_int_equal(skerry_index_new(&none, &options, text, sizeof text), SK_ERR_INVALID);
    options.profile = NULL;
    options.abi = 99;
    assert_int_equal(skerry_index_new(&none, &options, text, sizeof text), SK_ERR_VERSION);
    assert_int_equal(skerry_index_abi(), SKERRY_INDEX_ABI);
}

static void a_budget_is_an_error_and_what_is_in_stays(void **state)
{
    const struct skerry_index_options options = {
        .abi = SKERRY_INDEX_ABI, .dim = DIM, .metric = "l2", .memory_bytes_max = 700000};
    struct skerry_index *index;
    int rc = 0;
    uint64_t id = 0;
    (void)state;
    assert_done(skerry_index_new(&index, &options, text, sizeof text));
    for (; rc == 0 && id < 100000; id++) {
        float vector[DIM];
        uint64_t name = 7 + id * 1000003;
        vector_of(name, vector);
        rc = skerry_index_add(index, 1, &name, vector, text, sizeof text);
    }
    assert_int_equal(rc, SK_ERR_NOMEM);
    assert_int_equal(skerry_index_count(index), id - 1);
    expect(index, 7, 0, 50);
    skerry_index_free(index);
}

/* ---- files ---- */

static const char *file_path(void)
{
    static char path[128];
    const char *tmp = getenv("TMPDIR");
    (void)snprintf(path, sizeof path, "%s/sk-index-%d.bin", tmp != NULL ? tmp : "/tmp", (int)getpid());
    return path;
}

static void a_file_holds_everything(void **state)
{
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        struct skerry_index *index = make("hnsw", "l2", keep), *loaded;
        uint64_t ids[30];
        add(index, 7, COUNT);
        for (unsigned i = 0; i < 30; i++)
            ids[i] = 7 + i * 1000003;
        assert_done(skerry_index_remove(index, 30, ids, NULL, text, sizeof text));
        assert_done(skerry_index_save(index, file_path(), text, sizeof text));
        skerry_index_free(index);
        assert_done(skerry_index_load(&loaded, file_path(), NULL, text, sizeof text));
        assert_int_equal(skerry_index_count(loaded), COUNT - 30);
        assert_int_equal(skerry_index_dim(loaded), DIM);
        expect(loaded, 7, 30, COUNT);
        add(loaded, 7, COUNT + 100); /* and it goes on */
        assert_int_equal(skerry_index_count(loaded), COUNT + 100);
        expect(loaded, 7, 0, COUNT + 100);
        skerry_index_free(loaded);
    }
    (void)unlink(file_path());
}

static void damaged_files_are_refused(void **state)
{
    struct skerry_index *index = make("hnsw", "l2", 1), *loaded;
    struct stat info;
    (void)state;
    assert_int_equal(skerry_index_load(&loaded, "/nonexistent/x", NULL, text, sizeof text),
                     SK_ERR_NOT_FOUND);
    assert_int_equal(skerry_index_save(index, "/nonexistent/x", text, sizeof text),
                     SK_ERR_UNAVAILABLE);
    add(index, 7, 60);
    assert_done(skerry_index_save(index, file_path(), text, sizeof text));
    skerry_index_free(index);
    int fd = open(file_path(), O_RDWR);
    assert_int_equal(fstat(fd, &info), 0);
    size_t size = (size_t)info.st_size;
    uint8_t *bytes = malloc(size);
    assert_int_equal(pread(fd, bytes, size, 0), size);
    uint64_t random = 88172645463325252U;
    for (unsigned n = 0; n < 1500; n++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        size_t at = n < 64 * 8 ? n / 8 : (size_t)((random >> 11) % size);
        uint8_t flipped = (uint8_t)(bytes[at] ^ 1U << (n % 8));
        size_t cut = n % 3 == 0 ? (size_t)((random >> 20) % size) : size;
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
        assert_int_equal(ftruncate(fd, (off_t)cut), 0);
        const int rc = skerry_index_load(&loaded, file_path(), NULL, text, sizeof text);
        assert_true(rc == SK_ERR_INVALID || (at == 7 && rc == SK_ERR_VERSION));
        assert_null(loaded);
        assert_int_equal(pwrite(fd, bytes, size, 0), size);
    }
    assert_done(skerry_index_load(&loaded, file_path(), NULL, text, sizeof text));
    skerry_index_free(loaded);
    free(bytes);
    (void)close(fd);
    (void)unlink(file_path());
}

/* ---- threads ---- */

static void *search_many(void *impl)
{
    struct skerry_index *index = impl;
    enum { QUERIES = 16 };
    float queries[QUERIES * DIM], scores[QUERIES * K];
    uint64_t ids[QUERIES * K];
    char error[200];
    for (unsigned n = 0; n < 30; n++) {
        for (unsigned i = 0; i < QUERIES; i++)
            vector_of(n * 31 + i, queries + i * DIM);
        const struct skerry_index_search_options options = {
            .abi = SKERRY_INDEX_ABI, .ef = 32, .threads = 1 + n % 3};
        if (skerry_index_search(index, QUERIES, queries, K, &options, ids, scores, error,
                                sizeof error) != 0 ||
            skerry_index_count(index) > 2 * COUNT || skerry_index_memory_bytes(index) == 0)
            return index;
    }
    return NULL;
}

static void calls_come_from_any_thread(void **state)
{
    enum { THREADS = 4 };
    struct skerry_index *index = make("hnsw", "l2", 1);
    pthread_t threads[THREADS];
    (void)state;
    add(index, 7, COUNT / 2);
    for (unsigned t = 0; t < THREADS; t++)
        assert_int_equal(pthread_create(&threads[t], NULL, search_many, index), 0);
    for (uint64_t round = 0; round < 5; round++) {
        uint64_t ids[10];
        add(index, 7, COUNT);
        for (uint64_t i = 0; i < 10; i++)
            ids[i] = 7 + (round * 10 + i) * 1000003;
        assert_done(skerry_index_remove(index, 10, ids, NULL, text, sizeof text));
        assert_done(skerry_index_compact(index, text, sizeof text));
    }
    for (unsigned t = 0; t < THREADS; t++) {
        void *failed;
        assert_int_equal(pthread_join(threads[t], &failed), 0);
        assert_null(failed);
    }
    expect(index, 7, 50, COUNT);
    skerry_index_free(index);
}

/* 64 random dimensions: hard for a graph, so that there is something to learn. */
static void a_recall_target_is_kept_and_measured(void **state)
{
    (void)state;
    enum { ROWS = 5000, QUERIES = 100 };
    struct skerry_index *index = make("hnsw", "l2", 1);
    struct skerry_index_recall recall;
    const struct skerry_index_search_options options = {.abi = SKERRY_INDEX_ABI, .recall = 0.9F};
    const struct skerry_index_search_options wide = {.abi = SKERRY_INDEX_ABI, .ef = 3000};
    static float queries[QUERIES * DIM], scores[2][QUERIES * K];
    static uint64_t ids[2][QUERIES * K];
    add(index, 0, ROWS);
    for (unsigned i = 0; i < QUERIES; i++)
        vector_of(~(uint64_t)i, queries + (size_t)i * DIM);
    skerry_index_get_recall(index, &recall);
    assert_true(recall.target == 0 && recall.samples == 0);
    assert_int_equal(skerry_index_calibrate(index, 1, queries, 0, text, sizeof text), SK_ERR_INVALID);
    assert_done(skerry_index_calibrate(index, QUERIES, queries, 10, text, sizeof text));
    assert_done(skerry_index_search(index, QUERIES, queries, K, &options, ids[0], scores[0], text, sizeof text));
    assert_done(skerry_index_search(index, QUERIES, queries, K, &wide, ids[1], scores[1], text, sizeof text));
    unsigned found = 0;
    for (unsigned i = 0; i < QUERIES * K; i++)
        for (unsigned j = 0; j < K; j++)
            found += ids[1][i] == ids[0][i / K * K + j];
    assert_true(found >= QUERIES * K * 87 / 100);
    skerry_index_get_recall(index, &recall);
    assert_int_equal(recall.samples, QUERIES);
    assert_done(skerry_index_calibrate(index, 0, NULL, 10, text, sizeof text));
    skerry_index_get_recall(index, &recall);
    assert_true(recall.target == 0.9F && recall.measured >= 0.9F && recall.ef_mean >= 12);
    skerry_index_free(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_added_is_found_and_what_was_removed_is_not),
        cmocka_unit_test(kept_vectors_make_scores_exact),
        cmocka_unit_test(fewer_than_k_are_filled_up),
        cmocka_unit_test(errors_have_a_number_and_a_text),
        cmocka_unit_test(a_budget_is_an_error_and_what_is_in_stays),
        cmocka_unit_test(a_file_holds_everything),
        cmocka_unit_test(damaged_files_are_refused),
        cmocka_unit_test(calls_come_from_any_thread),
        cmocka_unit_test(a_recall_target_is_kept_and_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
