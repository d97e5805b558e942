/* What the files of the library share:
 *   skerry_index.c    making, adding, removing      skerry_index_search.c   searches and filters
 *   skerry_index_ids.c  ids to rows                 skerry_index_vectors.c  vectors in memory or a file
 *   skerry_index_file.c saving and loading */
#ifndef SKERRY_INDEX_INTERNAL_H
#define SKERRY_INDEX_INTERNAL_H

#include "actors/shard-worker/index/index.h"
#include "actors/shard-worker/index/skerry_index.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SKERRY_THREADS_MAX = 64, SKERRY_PATH_BYTES_MAX = 4096 };

/* Full vectors by row: in memory, or in a file that is mapped. */
struct skerry_vectors {
    uint32_t dim, capacity; /* rows */
    float *rows;            /* NULL: none yet */
    /* in a file */
    char *path; /* NULL: in memory */
    int fd;
    uint8_t *map;
    size_t map_bytes;
    uint32_t saved_rows; /* an index file that was saved stands on these */
    _Atomic uint32_t cold; /* not 0: pages had to be read not long ago */
};
struct skerry_vectors_watch {
    uint64_t faults;
};

/* What an index file notes of its vectors' file. */
struct skerry_vectors_state {
    uint64_t tag, generation;
};

struct skerry_index {
    struct sk_index *index;
    struct sk_index_params params;
    bool keeps_vectors;
    struct skerry_vectors vectors;
    pthread_rwlock_t lock; /* adding and removing / searching */
    pthread_mutex_t readers_lock;
    struct sk_index_reader *readers[SKERRY_THREADS_MAX]; /* not in use now */
    uint32_t reader_count;
    uint64_t lseq;
    uint64_t changes; /* of which id is in which row: filters compare */
    uint32_t row_count;
    uint32_t *free_rows;
    uint32_t free_count, free_capacity;
    /* While every id is the number of its row there are no tables. */
    bool is_identity;
    uint64_t *ids; /* by row; SKERRY_NO_ID when the row is not in use */
    uint32_t ids_capacity;
    uint32_t *table; /* open addressing: row + 1 by id; 0 empty */
    uint32_t table_size, table_used;
};

/* The number for the caller, and the text where he wants it. */
int skerry_index_report(enum sk_err rc, const struct sk_diag *d, char *error, size_t error_size);
/* Everything but the engine. */
struct skerry_index *skerry_index_make_shell(const struct sk_index_params *params);
bool skerry_index_fetch(void *impl, uint32_t row, float *out);
SK_CHECKED enum sk_err skerry_index_check_options(const struct skerry_index_options *options,
                                                  struct sk_diag *d);
const char *skerry_index_kind_name(enum sk_index_kind kind);
SK_CHECKED enum sk_err skerry_index_profile_of(const char *name, enum sk_index_profile *out,
                                               struct sk_diag *d);
const char *skerry_index_profile_name(enum sk_index_profile profile);

/* ---- ids ---- */
/* The row of an id that is there. */
bool skerry_index_row_of(const struct skerry_index *self, uint64_t id, uint32_t *row);
static inline uint64_t skerry_index_id_of(const struct skerry_index *self, uint32_t row)
{
    return self->is_identity ? row : self->ids[row];
}
/* Room for one more id, which will be in row; tables are made when they are needed from now on. */
bool skerry_index_ids_fit(struct skerry_index *self, uint64_t id, uint32_t row);
/* id is in row from now on, and no longer in another; there is room. */
void skerry_index_ids_set(struct skerry_index *self, uint64_t id, uint32_t row);
void skerry_index_ids_remove(struct skerry_index *self, uint64_t id, uint32_t row);
/* Makes the table of the ids that are there; INVALID: an id twice. */
SK_CHECKED enum sk_err skerry_index_ids_load(struct skerry_index *self, struct sk_diag *d);
uint64_t skerry_index_ids_bytes(const struct skerry_index *self);

/* ---- vectors ---- */
SK_CHECKED enum sk_err skerry_vectors_create(struct skerry_vectors *self, const char *path,
                                             struct sk_diag *d);
/* A file that an index was saved with. */
SK_CHECKED enum sk_err skerry_vectors_open(struct skerry_vectors *self, const char *path,
                                           const struct skerry_vectors_state *state,
                                           uint32_t row_count, struct sk_diag *d);
void skerry_vectors_close(struct skerry_vectors *self);
/* Room for the row, which will be written. */
SK_CHECKED enum sk_err skerry_vectors_fit(struct skerry_vectors *self, uint32_t row,
                                          struct sk_diag *d);
/* Makes the first row_count rows durable and gives their state a number. */
SK_CHECKED enum sk_err skerry_vectors_save(struct skerry_vectors *self, uint32_t row_count,
                                           struct skerry_vectors_state *state, struct sk_diag *d);
/* These will be read next. */
void skerry_vectors_ask(struct skerry_vectors *self, const uint32_t *rows, uint32_t count);
/* Around a chunk of searches: were there faults? */
void skerry_vectors_watch(struct skerry_vectors *self, struct skerry_vectors_watch *watch, bool is_begin);
static inline float *skerry_vectors_at(const struct skerry_vectors *self, uint32_t row)
{
    return self->rows + (size_t)row * self->dim;
}

#endif
