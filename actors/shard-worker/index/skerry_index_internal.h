/* What the two files of the library share. */
#ifndef SKERRY_INDEX_INTERNAL_H
#define SKERRY_INDEX_INTERNAL_H

#include "actors/shard-worker/index/index.h"
#include "actors/shard-worker/index/skerry_index.h"

#include <pthread.h>

enum { THREADS_MAX = 64 };

struct skerry_index {
    struct sk_index *index;
    struct sk_index_params params;
    bool keeps_vectors;
    pthread_rwlock_t lock; /* adding and removing / searching */
    pthread_mutex_t readers_lock;
    struct sk_index_reader *readers[THREADS_MAX]; /* not in use now */
    uint32_t reader_count;
    uint64_t lseq;
    uint64_t *ids; /* by row; SKERRY_NO_ID when the row is not in use */
    uint64_t *lseqs;
    float *vectors;
    uint32_t row_count, row_capacity;
    uint32_t *free_rows;
    uint32_t free_count, free_capacity;
    uint32_t *table; /* open addressing: row + 1 by id; 0 empty */
    uint32_t table_size, table_used;
};

/* The number for the caller, and the text where he wants it. */
int skerry_index_report(enum sk_err rc, const struct sk_diag *d, char *error, size_t error_size);
/* The place of the id, or of the empty slot where it would be. */
uint32_t skerry_index_table_at(const struct skerry_index *self, uint64_t id);
/* Room for count ids at three quarters full; what is in the table stays. */
bool skerry_index_table_fit(struct skerry_index *self, uint32_t count);
bool skerry_index_grow_rows(struct skerry_index *self, uint32_t row);
/* Everything but the engine. */
struct skerry_index *skerry_index_make_shell(const struct sk_index_params *params,
                                             bool keeps_vectors);

#endif
