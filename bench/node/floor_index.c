#include "bench/node/floor_index.h"

#include "bench/node/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(enum sk_err rc, const char *what, const struct sk_diag *d)
{
    if (rc == SK_ERR_OK)
        return;
    fprintf(stderr, "bench: %s: %s\n", what, d->text);
    exit(1);
}

static bool fetch_row(void *impl, uint32_t row, float *out)
{
    const struct sk_floor_index *self = impl;
    if (row >= self->count)
        return false;
    memcpy(out, self->vectors + (size_t)row * self->dim, self->dim * sizeof(*out));
    return true;
}

static bool write_bytes(void *impl, const void *bytes, size_t size)
{
    return fwrite(bytes, 1, size, impl) == size;
}

static bool read_bytes(void *impl, void *bytes, size_t size)
{
    return fread(bytes, 1, size, impl) == size;
}

static void build(struct sk_floor_index *self, const struct sk_index_params *params,
                  const struct sk_index_source *source)
{
    struct sk_diag d = {0};
    uint64_t began = sk_bench_now_ns();
    must(sk_index_new(&self->index, params, source, &d), "new index", &d);
    for (uint32_t row = 0; row < self->count; row++)
        must(
            sk_index_insert(self->index, row, row + 1, self->vectors + (size_t)row * self->dim, &d),
            "insert", &d);
    bool has_more = true;
    while (has_more)
        must(sk_index_step(self->index, 1000000, NULL, SK_INDEX_STEP_EAGER, &has_more, &d), "step",
             &d);
    self->build_s = (double)(sk_bench_now_ns() - began) / 1e9;
}

/* "speed", "balanced" (also NULL) or "memory". */
static enum sk_index_profile profile_of(const char *name)
{
    static const char *const names[] = {
        [SK_INDEX_BALANCED] = "balanced", [SK_INDEX_SPEED] = "speed", [SK_INDEX_MEMORY] = "memory"};
    for (unsigned i = 0; name != NULL && i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0)
            return (enum sk_index_profile)i;
    if (name != NULL) {
        fprintf(stderr, "bench: no profile %s\n", name);
        exit(1);
    }
    return SK_INDEX_BALANCED;
}

void sk_floor_index_open(struct sk_floor_index *self, const char *vectors_path, uint32_t dim,
                         uint32_t m, uint32_t ef_construction, const char *image_path)
{
    struct sk_diag d = {0};
    struct sk_queries all;
    sk_queries_load(&all, vectors_path, dim);
    *self = (struct sk_floor_index){.vectors = all.values,
                                    .count = (uint32_t)all.count,
                                    .dim = dim,
                                    .metric = SK_METRIC_COSINE};
    struct sk_index_params params = {.kind = SK_INDEX_HNSW,
                                     .metric = self->metric,
                                     .dim = dim,
                                     .m = m,
                                     .ef_construction = ef_construction,
                                     .seed = 1,
                                     .is_unlogged = true,
                                     .profile = profile_of(getenv("SK_PROFILE")),
                                     .isa = getenv("SK_ISA")}; /* to compare kernel sets */
    struct sk_index_source source = {self, fetch_row};
    FILE *image = image_path != NULL ? fopen(image_path, "rb") : NULL;
    if (image != NULL) {
        struct sk_index_image_reader reader = {image, read_bytes};
        if (sk_index_checkpoint_read(&self->index, &params, &source, &reader, &d) == SK_ERR_OK)
            must(sk_index_load_finish(self->index, NULL, &d), image_path, &d);
        else
            fprintf(stderr, "bench: %s: %s; building\n", image_path, d.text);
        fclose(image);
    }
    if (self->index == NULL) {
        build(self, &params, &source);
        image = image_path != NULL ? fopen(image_path, "wb") : NULL;
        struct sk_index_writer writer = {image, write_bytes};
        if (image != NULL)
            must(sk_index_checkpoint_write(self->index, &writer, &d), image_path, &d);
        if (image_path != NULL && (image == NULL || fclose(image) != 0)) {
            fprintf(stderr, "bench: %s cannot be written\n", image_path);
            exit(1);
        }
    }
    must(sk_index_reader_new(&self->reader, self->index, &d), "reader", &d);
    self->capacity = sk_index_result_rows(1000);
    self->rows = calloc(self->capacity, sizeof(*self->rows));
    self->scores = calloc(self->capacity, sizeof(*self->scores));
    if (self->rows == NULL || self->scores == NULL)
        exit(1);
}

uint32_t sk_floor_index_search(struct sk_floor_index *self, const float *query, uint32_t k,
                               uint32_t ef, struct sk_floor_hit *hits)
{
    struct sk_diag d = {0};
    struct sk_index_query q = {.vector = query, .k = k, .ef = ef};
    struct sk_index_result result = {
        .capacity = sk_index_result_rows(k), .rows = self->rows, .scores = self->scores};
    if (k == 0 || result.capacity > self->capacity)
        return 0;
    must(sk_index_search(self->index, self->reader, &q, &result, &d), "search", &d);
    uint32_t kept = 0;
    const double length = sk_score_length(query, self->dim);
    for (uint32_t i = 0; i < result.count; i++)
        for (uint32_t at = 0; at < self->dim; at += 16)
            __builtin_prefetch(self->vectors + (size_t)result.rows[i] * self->dim + at);
    for (uint32_t i = 0; i < result.count; i++) {
        uint32_t row = result.rows[i];
        float score = sk_score_exact_query(self->metric, query, length,
                                           self->vectors + (size_t)row * self->dim, self->dim);
        uint32_t at = kept < k ? kept++ : k;
        while (at > 0 && sk_score_is_better(self->metric, score, hits[at - 1].score)) {
            if (at < k)
                hits[at] = hits[at - 1];
            at--;
        }
        if (at < k)
            hits[at] = (struct sk_floor_hit){row, score};
    }
    return kept;
}
