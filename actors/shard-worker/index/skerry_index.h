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
#define SKERRY_INDEX_ABI 2
#define SKERRY_NO_ID UINT64_MAX /* fills up where fewer than k were found; its score is NaN */

struct skerry_index;        /* opaque */
struct skerry_index_filter; /* opaque */

/* Begin with all zeros and set abi: 0 and NULL mean the default everywhere but in keep_vectors. */
struct skerry_index_options {
    uint32_t abi; /* SKERRY_INDEX_ABI */
    uint32_t dim;
    const char *metric;       /* "l2", "ip", "cosine" */
    const char *index;        /* "flat", "hnsw", "ivf_flat", "ivf_pq", "hybrid"; NULL = hnsw; below 4
                               * dimensions always flat */
    const char *profile;      /* hnsw: "balanced", "speed", "memory"; NULL = balanced */
    uint32_t m;               /* hnsw; 0 = 16 */
    uint32_t ef_construction; /* hnsw; 0 = 200 */
    uint32_t nlist;           /* ivf_flat, ivf_pq, hybrid: lists; 0 = automatic */
    uint32_t pq_m;            /* ivf_pq, hybrid: 4-bit sub-quantisers; 0 = dim / 4 */
    uint32_t refine;          /* ivf_pq, hybrid: k x refine candidates are scored again; 0 = automatic */
    uint64_t seed;
    uint64_t memory_bytes_max; /* 0 = no limit */
    const char *isa;           /* NULL = the best here; "scalar", "avx2", "avx512", "neon" */
    /* 1: the float32 vectors are kept in memory and every score is exact; 0: they are not, and scores
     * come from codes (8 bits: about 0.1 % off; profile memory, 4 bits: about 1 %); -1: 1 for flat,
     * else 0 */
    int32_t keep_vectors;
    /* A file that the float32 vectors are kept in, written and read through the page cache (which
     * memory_bytes does not count): scores are exact as with keep_vectors 1, without the memory. Made
     * here: EXISTS when there is a file that is not empty. Locked while it is open; one that something
     * else shortens meanwhile ends the process (SIGBUS). NULL = none. */
    const char *vectors_path;
};

/* How to search; NULL for the defaults. ef, nprobe and recall exclude one another. */
struct skerry_index_search_options {
    uint32_t abi;     /* SKERRY_INDEX_ABI */
    uint32_t threads; /* 0 = 1, at most 64; shared out by queries */
    uint32_t ef;      /* hnsw; 0 = 64 */
    uint32_t nprobe;  /* ivf_flat, ivf_pq, hybrid: lists; 0 = automatic */
    float recall;     /* 0.5..0.999: as much work as reaches it; 0 = none */
    const struct skerry_index_filter *filter; /* borrowed for the call; NULL: every id */
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
/* ids and scores have room for count x k; k is 1..20,000. Fewer than k are found only where fewer
 * match. */
SKERRY_INDEX_API int skerry_index_search(struct skerry_index *self, size_t count,
                                         const float *queries, uint32_t k,
                                         const struct skerry_index_search_options *options,
                                         uint64_t *ids, float *scores, char *error,
                                         size_t error_size);
/* Sweeps removed rows out and gives their room back now, rather than with later adds. */
SKERRY_INDEX_API int skerry_index_compact(struct skerry_index *self, char *error,
                                          size_t error_size);

/* Learns what searches with a recall target need (hnsw; nothing else has to): from typical queries (count x
 * dim; 0: from the rows alone) for about this k. Takes some ms a query and 100,000 rows, and a second or
 * two for what it makes itself; searches wait meanwhile. Without it adds and removes do the same in passing once a search had a
 * target; until then such searches walk with a large fixed beam. Not saved. */
SKERRY_INDEX_API int skerry_index_calibrate(struct skerry_index *self, size_t count,
                                            const float *queries, uint32_t k, char *error,
                                            size_t error_size);
/* Of searches with the target asked for last: the share of true neighbours that the latest `samples` known
 * queries (given, or sampled from searches) find, and their mean ef. All 0: not known yet. */
struct skerry_index_recall {
    float target, measured, ef_mean;
    uint32_t samples;
};
SKERRY_INDEX_API void skerry_index_get_recall(struct skerry_index *self,
                                              struct skerry_index_recall *out);

/* ---- filters ----
 * Which ids a search may return, prepared once for any number of searches of the index it was made
 * for, from any thread. It goes on meaning the same ids while the index changes (what it holds of them
 * is looked up again at the next search after a change). Free it before the index. */

/* The ids of the list, in any order, repeated or not there at all as they like. ids is borrowed until
 * the filter is freed. */
SKERRY_INDEX_API int skerry_index_filter_new(struct skerry_index_filter **out,
                                             struct skerry_index *index, size_t count,
                                             const uint64_t *ids, char *error, size_t error_size);
/* The ids i below count with mask[i] not 0. mask is borrowed until the filter is freed. */
SKERRY_INDEX_API int skerry_index_filter_new_mask(struct skerry_index_filter **out,
                                                  struct skerry_index *index, size_t count,
                                                  const uint8_t *mask, char *error,
                                                  size_t error_size);
SKERRY_INDEX_API void skerry_index_filter_free(struct skerry_index_filter *self); /* NULL is allowed */
/* How many rows of the index match now; 0 too where memory for looking is short. */
SKERRY_INDEX_API uint64_t skerry_index_filter_count(struct skerry_index_filter *self);

/* ---- files ---- */

/* Written beside path first, then renamed over it. Vectors in a file of their own stay there: the
 * index file notes its path and state. */
SKERRY_INDEX_API int skerry_index_save(struct skerry_index *self, const char *path, char *error,
                                       size_t error_size);
/* Everything comes from the file but memory_bytes_max, isa, profile and vectors_path (options may be
 * NULL; its other fields but abi are not looked at). profile: another than the index was saved with
 * converts it (from memory to others where vectors are kept), NULL = as it was. vectors_path: where the vectors' file is now, NULL = where
 * it was; for an index that kept its vectors in memory, the file that they go to instead. INVALID: the
 * vectors' file is another index's, is cut off, or rows in it were replaced after the save. */
SKERRY_INDEX_API int skerry_index_load(struct skerry_index **out, const char *path,
                                       const struct skerry_index_options *options, char *error,
                                       size_t error_size);

SKERRY_INDEX_API uint64_t skerry_index_count(struct skerry_index *self);
SKERRY_INDEX_API uint32_t skerry_index_dim(struct skerry_index *self);
/* "l2", "ip", "cosine"; "hnsw", "flat", ...; "balanced", "speed", "memory" */
SKERRY_INDEX_API const char *skerry_index_metric(struct skerry_index *self);
SKERRY_INDEX_API const char *skerry_index_kind(struct skerry_index *self);
SKERRY_INDEX_API const char *skerry_index_profile(struct skerry_index *self);
/* All memory of the index: graph, codes, vectors where kept in memory, id tables. */
SKERRY_INDEX_API uint64_t skerry_index_memory_bytes(struct skerry_index *self);

#ifdef __cplusplus
}
#endif
#endif
