/* links: sk_index sk_kernels */
/* The index on every instruction set of this machine: the same rows make the same image, to the last
 * bit, and the same answers; and these are good. Plain C: it also runs where cmocka is not, under qemu. */
#include "actors/shard-worker/index/index.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 200, QUERIES = 10, K = 10, ROOM = 64 };

struct image {
    uint8_t *bytes;
    size_t size;
};

static unsigned failed_count;
static float vectors[ROWS * 200], queries[QUERIES * 200];

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            failed_count++;                                                                        \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

static void fill(float *out, size_t count, uint64_t state)
{
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        out[i] = (float)(state >> 40) / 16777216.0F - 0.4F;
    }
}

static bool write_image(void *impl, const void *bytes, size_t size)
{
    struct image *image = impl;
    uint8_t *grown = realloc(image->bytes, image->size + size);
    if (grown == NULL)
        return false;
    image->bytes = grown;
    memcpy(image->bytes + image->size, bytes, size);
    image->size += size;
    return true;
}

static struct sk_index *make(const struct sk_index_params *params, struct image *image)
{
    struct sk_diag d = {0};
    struct sk_index *index = NULL;
    struct sk_index_check_report report;
    bool has_more = true;
    const struct sk_index_writer writer = {image, write_image};
    enum sk_err rc = sk_index_new(&index, params, NULL, &d);
    for (uint32_t row = 0; row < ROWS && rc == SK_ERR_OK; row++)
        rc = sk_index_insert(index, row, row + 1, vectors + row * params->dim, &d);
    for (uint32_t row = 0; row < ROWS && rc == SK_ERR_OK; row += 7)
        rc = sk_index_remove(index, row, row + 1, &d);
    while (rc == SK_ERR_OK && has_more)
        rc = sk_index_step(index, 0, NULL, SK_INDEX_STEP_EAGER, &has_more, &d);
    if (rc == SK_ERR_OK)
        rc = sk_index_check(index, &report, &d);
    if (rc == SK_ERR_OK)
        rc = sk_index_checkpoint_write(index, &writer, &d);
    EXPECT(rc == SK_ERR_OK, "%s, dim %u: %s", params->isa, params->dim, d.text);
    return index;
}

static unsigned hits_of(const struct sk_index_params *params, const float *query,
                        const struct sk_index_result *result)
{
    unsigned hits = 0;
    for (uint32_t i = 0; i < K && i < result->count; i++) {
        const float *found = vectors + result->rows[i] * params->dim;
        float score = sk_score_exact(params->metric, query, found, params->dim);
        unsigned better = 0;
        for (uint32_t row = 0; row < ROWS; row++)
            better += row % 7 != 0 &&
                      sk_score_is_better(params->metric,
                                         sk_score_exact(params->metric, query,
                                                        vectors + row * params->dim, params->dim),
                                         score);
        hits += better < K;
    }
    return hits;
}

static void one(enum sk_metric metric, uint32_t dim)
{
    struct image first = {NULL, 0};
    static uint32_t first_rows[QUERIES][ROOM];
    static float first_scores[QUERIES][ROOM];
    for (unsigned isa = 0; sk_kernels_name(isa) != NULL; isa++) {
        const struct sk_index_params params = {.kind = SK_INDEX_HNSW,
                                               .metric = metric,
                                               .dim = dim,
                                               .ef_construction = 60,
                                               .flat_below = 1,
                                               .seed = 99,
                                               .is_unlogged = true,
                                               .isa = sk_kernels_name(isa)};
        struct image image = {NULL, 0};
        struct sk_index_reader *reader = NULL;
        struct sk_diag d = {0};
        struct sk_index *index = make(&params, &image);
        unsigned hits = 0;
        if (index == NULL || sk_index_reader_new(&reader, index, &d) != SK_ERR_OK) {
            EXPECT(false, "no index");
            return;
        }
        for (unsigned n = 0; n < QUERIES; n++) {
            uint32_t rows[ROOM] = {0};
            float scores[ROOM] = {0};
            const struct sk_index_query query = {.vector = queries + n * dim, .k = K, .ef = 80};
            struct sk_index_result result = {.rows = rows, .scores = scores, .capacity = ROOM};
            enum sk_err rc = sk_index_search(index, reader, &query, &result, &d);
            EXPECT(rc == SK_ERR_OK && result.count >= K, "%s: %s", params.isa, d.text);
            hits += hits_of(&params, query.vector, &result);
            if (isa == 0) {
                memcpy(first_rows[n], rows, sizeof rows);
                memcpy(first_scores[n], scores, sizeof scores);
            }
            EXPECT(memcmp(first_rows[n], rows, sizeof rows) == 0, "%s: other rows", params.isa);
            EXPECT(memcmp(first_scores[n], scores, sizeof scores) == 0, "%s: other scores", params.isa);
        }
        EXPECT(hits >= QUERIES * K * 9 / 10, "%s, dim %u: %u of %u", params.isa, dim, hits, QUERIES * K);
        sk_index_reader_destroy(&reader);
        sk_index_destroy(&index);
        if (isa == 0) {
            uint64_t sum = 14695981039346656037U;
            for (size_t i = 0; i < image.size; i++)
                sum = (sum ^ image.bytes[i]) * 1099511628211U;
            printf("metric %d, dim %u: image of %zu bytes, %016llx\n", (int)metric, dim, image.size,
                   (unsigned long long)sum);
            first = image;
            continue;
        }
        EXPECT(image.size == first.size && memcmp(image.bytes, first.bytes, image.size) == 0,
               "%s: another image than %s", params.isa, sk_kernels_name(0));
        free(image.bytes);
    }
    free(first.bytes);
}

int main(void)
{
    static const uint32_t dims[] = {3, 64, 200};
    fill(vectors, SK_COUNT_OF(vectors), 1);
    fill(queries, SK_COUNT_OF(queries), 2);
    for (size_t i = 0; i < SK_COUNT_OF(dims); i++)
        for (int metric = SK_METRIC_L2; metric <= SK_METRIC_COSINE; metric++)
            one((enum sk_metric)metric, dims[i]);
    printf("%u failed\n", failed_count);
    return failed_count == 0 ? 0 : 1;
}
