/* The same index as the worker's, in this process and nothing around it: vectors in memory, beam
 * search, then the returned k scored from the full vectors, as a worker does. */
#ifndef SK_BENCH_FLOOR_INDEX_H
#define SK_BENCH_FLOOR_INDEX_H

#include "actors/shard-worker/index/index.h"

struct sk_floor_index {
    struct sk_index *index;
    struct sk_index_reader *reader;
    float *vectors;
    uint32_t count;
    uint32_t dim;
    enum sk_metric metric;
    uint32_t *rows;
    float *scores;
    uint32_t capacity;
    double build_s; /* 0 when it came from an image */
};

struct sk_floor_hit {
    uint32_t row;
    float score;
};

/* vectors_path: raw float32. image_path: read when it is there and fits, else built and written
 * (NULL: always built, nothing written). Exits with words on failure: it is a benchmark. */
void sk_floor_index_open(struct sk_floor_index *self, const char *vectors_path, uint32_t dim,
                         uint32_t m, uint32_t ef_construction, const char *image_path);
/* Returns how many hits there are, best first. */
uint32_t sk_floor_index_search(struct sk_floor_index *self, const float *query, uint32_t k,
                               uint32_t ef, struct sk_floor_hit *hits);

#endif
