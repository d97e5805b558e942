/* links: skerry_index Threads::Threads sk_kernels */
/* The library's ids, filters and its file of vectors. */
#include "actors/shard-worker/index/skerry_index.h"
#include "common/base/err.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIM = 64, COUNT = 400, K = 10 };

static char text[600];
#define assert_done(call)                                                                          \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, text);                                                       \
    } while (0)
#define assert_refused(rc, words, call)                                                            \
    do {                                                                                           \
        assert_int_equal((call), (rc));                                                            \
        if (strstr(text, (words)) == NULL)                                                         \
            fail_msg("%s: \"%s\" without \"%s\"", #call, text, (words));                           \
    } while (0)

static const char *path_of(const char *name)
{
    static char paths[4][160];
    static unsigned next;
    const char *tmp = getenv("TMPDIR");
    char *path = paths[next++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/sk-vectors-%d-%s", tmp != NULL ? tmp : "/tmp",
                   (int)getpid(), name);
    return path;
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

static float distance_of(uint64_t a, uint64_t b)
{
    float x[DIM], y[DIM];
    double sum = 0;
    vector_of(a, x);
    vector_of(b, y);
    for (unsigned i = 0; i < DIM; i++)
        sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return (float)sqrt(sum);
}

static struct skerry_index_options options_of(const char *vectors_path)
{
    return (struct skerry_index_options){.abi = SKERRY_INDEX_ABI,
                                         .dim = DIM,
                                         .metric = "l2",
                                         .keep_vectors = vectors_path == NULL,
                                         .vectors_path = vectors_path};
}

static struct skerry_index *make(const char *vectors_path)
{
    const struct skerry_index_options options = options_of(vectors_path);
    struct skerry_index *index;
    assert_done(skerry_index_new(&index, &options, text, sizeof text));
    return index;
}

static void add(struct skerry_index *index, uint64_t from, uint64_t to)
{
    for (uint64_t id = from; id < to; id++) {
        float vector[DIM];
        vector_of(id, vector);
        assert_done(skerry_index_add(index, 1, &id, vector, text, sizeof text));
    }
}

static void remove_ids(struct skerry_index *index, uint64_t from, uint64_t to)
{
    for (uint64_t id = from; id < to; id++)
        assert_done(skerry_index_remove(index, 1, &id, NULL, text, sizeof text));
}

/* The K best of the ids from..to by a full comparison, with their exact scores. */
static void expect(struct skerry_index *index, uint64_t query_id, uint64_t from, uint64_t to,
                   const struct skerry_index_filter *filter)
{
    const struct skerry_index_search_options options = {.abi = SKERRY_INDEX_ABI, .filter = filter};
    float query[DIM], scores[K], last = 0;
    uint64_t ids[K];
    vector_of(query_id, query);
    assert_done(skerry_index_search(index, 1, query, K, &options, ids, scores, text, sizeof text));
    for (uint64_t i = 0; i < K && i < to - from; i++) {
        uint64_t nearer = 0;
        assert_in_range(ids[i], from, to - 1);
        assert_true(fabsf(scores[i] - distance_of(query_id, ids[i])) < 1e-5F);
        for (uint64_t id = from; id < to; id++)
            nearer += distance_of(query_id, id) < scores[i] - 1e-5F;
        assert_true(nearer == i && scores[i] >= last);
        last = scores[i];
    }
    assert_true(to - from >= K || ids[to - from] == SKERRY_NO_ID);
}

static void vectors_in_a_file_are_those_that_were_added(void **state)
{
    struct skerry_index *index = make(path_of("v")), *loaded, *kept;
    struct skerry_index_options options = options_of(path_of("v"));
    (void)state;
    add(index, 0, COUNT);
    add(index, 0, 50); /* upserts: ids are rows no longer */
    expect(index, 7777, 0, COUNT, NULL);
    kept = make(NULL);
    add(kept, 0, COUNT);
    add(kept, 0, 50);
    assert_true(skerry_index_memory_bytes(kept) >=
                skerry_index_memory_bytes(index) + COUNT * DIM * sizeof(float));
    assert_done(skerry_index_save(index, path_of("i"), text, sizeof text));
    assert_refused(SK_ERR_BUSY, "open in another index",
                   skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    skerry_index_free(index);
    assert_done(skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    expect(loaded, 8888, 0, COUNT, NULL);
    add(loaded, COUNT, COUNT + 100);
    expect(loaded, 9999, 0, COUNT + 100, NULL);
    skerry_index_free(loaded);
    assert_refused(SK_ERR_EXISTS, "not empty", skerry_index_new(&loaded, &options, text, sizeof text));
    /* what was kept in memory goes into a file */
    assert_done(skerry_index_save(kept, path_of("i"), text, sizeof text));
    skerry_index_free(kept);
    options.vectors_path = path_of("w");
    assert_done(skerry_index_load(&loaded, path_of("i"), &options, text, sizeof text));
    expect(loaded, 8888, 0, COUNT, NULL);
    assert_done(skerry_index_save(loaded, path_of("i"), text, sizeof text));
    skerry_index_free(loaded);
    assert_done(skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    expect(loaded, 8888, 0, COUNT, NULL);
    skerry_index_free(loaded);
    (void)unlink(path_of("v"));
    (void)unlink(path_of("w"));
    (void)unlink(path_of("i"));
}

static void a_file_of_vectors_that_does_not_fit_is_refused(void **state)
{
    struct skerry_index *index = make(path_of("v")), *other = make(path_of("o")), *loaded;
    struct skerry_index_options options = options_of(path_of("o"));
    struct stat info;
    (void)state;
    add(index, 0, COUNT);
    add(other, 0, COUNT);
    assert_done(skerry_index_save(other, path_of("j"), text, sizeof text));
    skerry_index_free(other);
    assert_done(skerry_index_save(index, path_of("i"), text, sizeof text));
    skerry_index_free(index);
    assert_refused(SK_ERR_INVALID, "another index",
                   skerry_index_load(&loaded, path_of("i"), &options, text, sizeof text));
    options.vectors_path = path_of("i");
    assert_refused(SK_ERR_INVALID, "not a vectors file",
                   skerry_index_load(&loaded, path_of("i"), &options, text, sizeof text));
    options.vectors_path = path_of("none");
    assert_refused(SK_ERR_NOT_FOUND, "No such file",
                   skerry_index_load(&loaded, path_of("i"), &options, text, sizeof text));
    /* every byte of the header */
    int fd = open(path_of("v"), O_RDWR);
    for (unsigned at = 0; at < 48; at++) {
        uint8_t byte, flipped;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        flipped = byte ^ 0x10;
        assert_int_equal(pwrite(fd, &flipped, 1, at), 1);
        int rc = skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text);
        assert_true(rc == SK_ERR_INVALID || rc == SK_ERR_VERSION);
        assert_null(loaded);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    assert_int_equal(fstat(fd, &info), 0);
    assert_int_equal(ftruncate(fd, 4096 + COUNT * DIM * 4 - 1), 0);
    assert_refused(SK_ERR_INVALID, "too few",
                   skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    (void)close(fd);
    (void)unlink(path_of("v"));
    (void)unlink(path_of("o"));
    (void)unlink(path_of("i"));
    (void)unlink(path_of("j"));
}

/* Rows appended after a save do not hurt it; rows replaced do, and it says so. */
static void an_index_file_refuses_vectors_replaced_after_it(void **state)
{
    struct skerry_index *index = make(path_of("v")), *loaded;
    (void)state;
    add(index, 0, COUNT);
    assert_done(skerry_index_save(index, path_of("i"), text, sizeof text));
    add(index, COUNT, COUNT + 50);
    skerry_index_free(index); /* forgets the 50 */
    assert_done(skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    expect(loaded, 7777, 0, COUNT, NULL);
    add(loaded, COUNT, COUNT + 80);
    assert_done(skerry_index_save(loaded, path_of("j"), text, sizeof text)); /* both fit */
    skerry_index_free(loaded);
    assert_done(skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    expect(loaded, 7777, 0, COUNT, NULL);
    add(loaded, 5000, 5001); /* over a row of j */
    skerry_index_free(loaded);
    assert_refused(SK_ERR_INVALID, "replaced",
                   skerry_index_load(&loaded, path_of("j"), NULL, text, sizeof text));
    assert_refused(SK_ERR_INVALID, "generation",
                   skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    (void)unlink(path_of("v"));
    (void)unlink(path_of("i"));
    (void)unlink(path_of("j"));
}

static void options_that_contradict_are_refused(void **state)
{
    struct skerry_index_options options = options_of(path_of("v"));
    struct skerry_index *index;
    (void)state;
    options.keep_vectors = 1;
    assert_refused(SK_ERR_INVALID, "not in both", skerry_index_new(&index, &options, text, sizeof text));
    options.vectors_path = NULL;
    options.keep_vectors = 7;
    assert_refused(SK_ERR_INVALID, "keep_vectors 7", skerry_index_new(&index, &options, text, sizeof text));
    options.keep_vectors = 0;
    options.nlist = 5;
    assert_refused(SK_ERR_INVALID, "nlist 5", skerry_index_new(&index, &options, text, sizeof text));
    options.nlist = 0;
    options.index = "flat";
    options.profile = "balanced";
    assert_refused(SK_ERR_INVALID, "only hnsw", skerry_index_new(&index, &options, text, sizeof text));
    options.profile = NULL;
    options.vectors_path = "/nonexistent/v";
    assert_refused(SK_ERR_NOT_FOUND, "/nonexistent/v",
                   skerry_index_new(&index, &options, text, sizeof text));
    assert_null(index);
    options.vectors_path = NULL;
    assert_done(skerry_index_new(&index, &options, text, sizeof text));
    assert_done(skerry_index_save(index, path_of("i"), text, sizeof text));
    skerry_index_free(index);
    options.vectors_path = path_of("v");
    assert_refused(SK_ERR_INVALID, "without its vectors",
                   skerry_index_load(&index, path_of("i"), &options, text, sizeof text));
    options.abi = 1;
    assert_refused(SK_ERR_VERSION, "ABI 1",
                   skerry_index_load(&index, path_of("i"), &options, text, sizeof text));
    (void)unlink(path_of("i"));
}

/* Ids that are rows need no table; those that come later do, and nothing is lost on the way. */
static void ids_in_order_cost_nothing_until_others_come(void **state)
{
    struct skerry_index *index = make(NULL), *loaded;
    uint64_t id;
    (void)state;
    add(index, 0, COUNT);
    const uint64_t before = skerry_index_memory_bytes(index);
    remove_ids(index, 10, 20);
    size_t removed;
    id = 12;
    assert_done(skerry_index_remove(index, 1, &id, &removed, text, sizeof text));
    assert_int_equal(removed, 0); /* it is gone already */
    id = UINT64_MAX - 1;
    assert_done(skerry_index_remove(index, 1, &id, &removed, text, sizeof text));
    assert_int_equal(removed, 0);
    assert_int_equal(skerry_index_count(index), COUNT - 10);
    assert_done(skerry_index_save(index, path_of("i"), text, sizeof text));
    assert_done(skerry_index_load(&loaded, path_of("i"), NULL, text, sizeof text));
    for (unsigned n = 0; n < 2; n++) {
        struct skerry_index *self = n == 0 ? index : loaded;
        add(self, 10, 20);
        add(self, 0, 5);
        assert_int_equal(skerry_index_count(self), COUNT);
        expect(self, 4242, 0, COUNT, NULL);
        assert_true(skerry_index_memory_bytes(self) >= before + COUNT * 8);
        skerry_index_free(self);
    }
    (void)unlink(path_of("i"));
}

static void a_filter_goes_on_meaning_its_ids(void **state)
{
    uint8_t mask[300] = {0};
    uint64_t ids[150];
    (void)state;
    memset(mask + 100, 1, 150);
    for (uint64_t i = 0; i < 150; i++)
        ids[i] = 249 - i;
    for (unsigned by_mask = 0; by_mask < 2; by_mask++) {
        struct skerry_index *index = make(NULL), *other = make(NULL);
        struct skerry_index_filter *filter, *none;
        const struct skerry_index_search_options options = {.abi = SKERRY_INDEX_ABI};
        assert_done(by_mask != 0 ? skerry_index_filter_new_mask(&filter, index, 300, mask, text, sizeof text)
                                 : skerry_index_filter_new(&filter, index, 150, ids, text, sizeof text));
        assert_done(skerry_index_filter_new(&none, index, 0, NULL, text, sizeof text));
        assert_int_equal(skerry_index_filter_count(filter), 0);
        add(index, 0, 200);
        expect(index, 7777, 100, 200, filter);
        assert_int_equal(skerry_index_filter_count(filter), 100);
        add(index, 200, COUNT);
        expect(index, 7777, 100, 250, filter);
        expect(index, 7777, 0, COUNT, NULL);
        expect(index, 7777, 0, 0, none);
        add(index, 150, 200); /* in other rows now */
        expect(index, 8888, 100, 250, filter);
        remove_ids(index, 105, 250);
        expect(index, 7777, 100, 105, filter);
        assert_int_equal(skerry_index_filter_count(filter), 5);
        struct skerry_index_search_options wrong = options;
        wrong.filter = filter;
        float query[DIM] = {1}, scores[K];
        uint64_t found[K];
        assert_refused(SK_ERR_INVALID, "another index",
                       skerry_index_search(other, 1, query, K, &wrong, found, scores, text, sizeof text));
        skerry_index_filter_free(filter);
        skerry_index_filter_free(none);
        skerry_index_filter_free(NULL);
        skerry_index_free(index);
        skerry_index_free(other);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_in_a_file_are_those_that_were_added),
        cmocka_unit_test(a_file_of_vectors_that_does_not_fit_is_refused),
        cmocka_unit_test(an_index_file_refuses_vectors_replaced_after_it),
        cmocka_unit_test(options_that_contradict_are_refused),
        cmocka_unit_test(ids_in_order_cost_nothing_until_others_come),
        cmocka_unit_test(a_filter_goes_on_meaning_its_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
