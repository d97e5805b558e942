/* The index engine in your own process: no node, no sockets. C ABI, made for numpy and ctypes too.
 *
 * Calls may come from any thread; adding and removing take turns with everything else, searches run
 * side by side. Every function that returns int gives 0, or a number of the error table
 * (common/base/err.h) and a text in error (NUL-terminated, may be NULL). Vectors are dim float32
 * each, row after row. Scores: `ip` and `cosine` larger is better, `l2` the Euclidean distance. */
#ifndef SKERRY_INDEX_H
#define SKERRY_INDEX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKERRY_INDEX_API __attribute__((visibility("default")))
#define SKERRY_INDEX_ABI 1
#define SKERRY_NO_ID UINT64_MAX /* fills up where fewer than k were found; its score is NaN */

struct skerry_index; /* opaque */

struct skerry_index_options {
    uint32_t abi; /* SKERRY_INDEX_ABI */
    uint32_t dim;
    const char *metric;       /* "l2", "ip", "cosine" */
    const char *index;        /* "hnsw", "flat"; NULL = hnsw; below 4 dimensions always flat */
    const char *profile;      /* "balanced"; NULL = that */
    uint32_t m;               /* 0 = 16 */
    uint32_t ef_construction; /* 0 = 200 */
    uint64_t seed;
    uint64_t memory_bytes_max; /* 0 = no limit */
    const char *isa;           /* NULL = the best here; "scalar", "avx2", "avx512", "neon" */
    /* 1: the float32 vectors are kept and every score is exact; 0: scores come from 8-bit codes
     * (about 0.1 % off); -1: 1 for flat, 0 for hnsw */
    int32_t keep_vectors;
};

SKERRY_INDEX_API uint32_t skerry_index_abi(void);
SKERRY_INDEX_API int skerry_index_new(struct skerry_index **out,
                                      const struct skerry_index_options *options, char *error,
                                      size_t error_size);
SKERRY_INDEX_API void skerry_index_free(struct skerry_index *self); /* NULL is allowed */

/* An id that is there already gets the new vector. On an error the rows before the one at fault are
 * in. SKERRY_NO_ID is not an id. */
SKERRY_INDEX_API int skerry_index_add(struct skerry_index *self, size_t count, const uint64_t *ids,
                                      const float *vectors, char *error, size_t error_size);
/* Ids that are not there are passed over; *removed (may be NULL) counts those that were. */
SKERRY_INDEX_API int skerry_index_remove(struct skerry_index *self, size_t count,
                                         const uint64_t *ids, size_t *removed, char *error,
                                         size_t error_size);
/* ids and scores have room for count x k. ef 0 = 64 (hnsw). threads 0 = 1, at most 64. */
SKERRY_INDEX_API int skerry_index_search(struct skerry_index *self, size_t count,
                                         const float *queries, uint32_t k, uint32_t ef,
                                         uint32_t threads, uint64_t *ids, float *scores,
                                         char *error, size_t error_size);
/* Sweeps removed rows out and gives their room back now, rather than with later adds. */
SKERRY_INDEX_API int skerry_index_compact(struct skerry_index *self, char *error,
                                          size_t error_size);

/* Written beside path first, then renamed over it. */
SKERRY_INDEX_API int skerry_index_save(struct skerry_index *self, const char *path, char *error,
                                       size_t error_size);
/* Everything comes from the file but memory_bytes_max and isa (options may be NULL). */
SKERRY_INDEX_API int skerry_index_load(struct skerry_index **out, const char *path,
                                       const struct skerry_index_options *options, char *error,
                                       size_t error_size);

SKERRY_INDEX_API uint64_t skerry_index_count(struct skerry_index *self);
SKERRY_INDEX_API uint32_t skerry_index_dim(struct skerry_index *self);
/* "l2", "ip", "cosine"; "hnsw", "flat" */
SKERRY_INDEX_API const char *skerry_index_metric(struct skerry_index *self);
SKERRY_INDEX_API const char *skerry_index_kind(struct skerry_index *self);
/* All memory of the index: graph, codes, vectors where kept, id tables. */
SKERRY_INDEX_API uint64_t skerry_index_memory_bytes(struct skerry_index *self);

#ifdef __cplusplus
}
#endif
#endif
