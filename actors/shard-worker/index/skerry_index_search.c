/* The library's searches: threads for batches of queries, exact scores, prepared filters. */
#include "actors/shard-worker/index/skerry_index_internal.h"

#include <math.h>
#include <stdlib.h>

enum {
    CHUNK_MAX = 128, /* queries that a thread searches together */
    CHUNK_ROWS_MAX = 65536,
    FLAT_MORE = 1024,
};

/* ---- filters ---- */

struct skerry_index_filter {
    struct skerry_index *index;
    const uint64_t *ids; /* or mask */
    const uint8_t *mask;
    size_t count;
    pthread_mutex_t lock;
    /* As the index was after so many changes. Written under the lock by the first search after a
     * change; none can be using them then, because changes wait for searches and these for changes. */
    uint64_t changes;
    bool is_made;
    uint64_t *words;
    uint32_t word_count, word_capacity, match_count;
};

static void words_of_ids(struct skerry_index_filter *self)
{
    const struct skerry_index *index = self->index;
    for (size_t i = 0; i < self->count; i++) {
        uint32_t row;
        /* without tables an id is its row, and a search looks at what is live anyway */
        if (index->is_identity ? self->ids[i] < index->row_count
                               : skerry_index_row_of(index, self->ids[i], &row)) {
            row = index->is_identity ? (uint32_t)self->ids[i] : row;
            self->words[row / 64] |= 1ULL << row % 64;
        }
    }
}

/* Bit i: byte i is not 0. Eight at a time: the top bit of each byte says it, and a multiplication brings
 * the eight of them together. */
static uint64_t word_of_bytes(const uint8_t *bytes)
{
    const uint64_t low = 0x7F7F7F7F7F7F7F7FU;
    uint64_t word = 0;
    for (unsigned i = 0; i < 8; i++) {
        uint64_t eight = 0;
        memcpy(&eight, bytes + 8 * (size_t)i, sizeof eight);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        eight = __builtin_bswap64(eight);
#endif
        eight = (((eight & low) + low) | eight) >> 7 & 0x0101010101010101U;
        word |= (eight * 0x0102040810204080U >> 56) << 8 * i;
    }
    return word;
}

static void words_of_mask(struct skerry_index_filter *self)
{
    const struct skerry_index *index = self->index;
    const size_t count = self->count;
    if (index->is_identity) {
        const uint32_t rows = count < index->row_count ? (uint32_t)count : index->row_count;
        for (uint32_t word = 0; word < rows / 64; word++)
            self->words[word] = word_of_bytes(self->mask + (size_t)word * 64);
        for (uint32_t row = rows / 64 * 64; row < rows; row++)
            self->words[row / 64] |= (uint64_t)(self->mask[row] != 0) << row % 64;
        return;
    }
    for (uint32_t row = 0; row < index->row_count; row++) {
        const uint64_t id = index->ids[row];
        self->words[row / 64] |= (uint64_t)(id < count && self->mask[id] != 0) << row % 64;
    }
}

/* The caller holds the index's lock for reading. */
static enum sk_err filter_prepare(struct skerry_index_filter *self, struct sk_diag *d)
{
    const struct skerry_index *index = self->index;
    enum sk_err rc = SK_ERR_OK;
    pthread_mutex_lock(&self->lock);
    if (!self->is_made || self->changes != index->changes) {
        const uint32_t word_count = index->row_count / 64 + 1;
        if (word_count > self->word_capacity) {
            free(self->words);
            self->word_capacity = 0;
            self->words = malloc(word_count * sizeof *self->words);
            if (self->words != NULL)
                self->word_capacity = word_count;
        }
        if (self->word_capacity > 0) {
            memset(self->words, 0, word_count * sizeof *self->words);
            self->word_count = word_count;
            if (self->ids != NULL)
                words_of_ids(self);
            else
                words_of_mask(self);
            uint64_t matches = 0;
            for (uint32_t word = 0; word < word_count; word++)
                matches += (uint64_t)__builtin_popcountll(self->words[word]);
            self->match_count = (uint32_t)matches;
            self->changes = index->changes;
            self->is_made = true;
        } else {
            self->is_made = false;
            rc = sk_fail(d, SK_ERR_NOMEM, "no memory for a filter of %u rows", index->row_count);
        }
    }
    pthread_mutex_unlock(&self->lock);
    return rc;
}

static int filter_new(struct skerry_index_filter **out, struct skerry_index *index, size_t count,
                      const uint64_t *ids, const uint8_t *mask, char *error, size_t error_size)
{
    struct sk_diag d = {0};
    *out = calloc(1, sizeof **out);
    if (*out == NULL)
        return skerry_index_report(sk_fail(&d, SK_ERR_NOMEM, "no memory for a filter"), &d, error,
                                   error_size);
    **out = (struct skerry_index_filter){.index = index, .ids = ids, .mask = mask, .count = count};
    pthread_mutex_init(&(*out)->lock, NULL);
    return skerry_index_report(SK_ERR_OK, &d, error, error_size);
}

int skerry_index_filter_new(struct skerry_index_filter **out, struct skerry_index *index, size_t count,
                            const uint64_t *ids, char *error, size_t error_size)
{
    static const uint64_t none;
    return filter_new(out, index, count, count == 0 ? &none : ids, NULL, error, error_size);
}

int skerry_index_filter_new_mask(struct skerry_index_filter **out, struct skerry_index *index,
                                 size_t count, const uint8_t *mask, char *error, size_t error_size)
{
    return filter_new(out, index, count, NULL, mask, error, error_size);
}

void skerry_index_filter_free(struct skerry_index_filter *self)
{
    if (self == NULL)
        return;
    pthread_mutex_destroy(&self->lock);
    free(self->words);
    free(self);
}

uint64_t skerry_index_filter_count(struct skerry_index_filter *self)
{
    struct sk_diag d;
    uint64_t count = 0, lseq;
    pthread_rwlock_rdlock(&self->index->lock);
    if (filter_prepare(self, &d) == SK_ERR_OK)
        for (uint32_t word = 0; word < self->word_count; word++)
            for (uint64_t bits = self->words[word]; bits != 0; bits &= bits - 1)
                count += sk_index_lseq(self->index->index,
                                       word * 64 + (uint32_t)__builtin_ctzll(bits), &lseq);
    pthread_rwlock_unlock(&self->index->lock);
    return count;
}

/* ---- searching ---- */

struct batch {
    struct skerry_index *self;
    const float *queries;
    size_t begin, end;
    uint32_t k;
    const struct skerry_index_search_options *options;
    const struct sk_index_filter *filter;
    uint64_t *ids;
    float *scores;
    enum sk_err rc;
    struct sk_diag d;
};

static enum sk_err take_reader(struct skerry_index *self, struct sk_index_reader **reader,
                               struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    *reader = NULL;
    pthread_mutex_lock(&self->readers_lock);
    if (self->reader_count > 0)
        *reader = self->readers[--self->reader_count];
    else
        rc = sk_index_reader_new(reader, self->index, d);
    pthread_mutex_unlock(&self->readers_lock);
    return rc;
}

static void give_reader(struct skerry_index *self, struct sk_index_reader *reader)
{
    pthread_mutex_lock(&self->readers_lock);
    self->readers[self->reader_count++] = reader;
    pthread_mutex_unlock(&self->readers_lock);
}

/* The first lines: the processor follows by itself. */
static void prefetch_vector(const float *vector, uint32_t dim)
{
    for (uint32_t i = 0; i < dim && i < 128; i += 16)
        __builtin_prefetch(vector + i);
}

static void rescore(struct skerry_index *self, const float *query,
                    struct sk_index_result *result, uint64_t *keys)
{
    const bool is_l2 = self->params.metric == SK_METRIC_L2;
    for (uint32_t i = 0; i < result->count; i++) {
        const float *vector = skerry_vectors_at(&self->vectors, result->rows[i]);
        if (i + 1 < result->count)
            prefetch_vector(skerry_vectors_at(&self->vectors, result->rows[i + 1]), self->params.dim);
        float score = sk_score_exact(self->params.metric, query, vector, self->params.dim);
        keys[i] = (uint64_t)sk_float_ordered(is_l2 ? score : -score) << 32 | result->rows[i];
    }
    sk_select_smallest(keys, result->count, result->count);
    for (uint32_t i = 0; i < result->count; i++) {
        float score = sk_float_from_ordered((uint32_t)(keys[i] >> 32));
        result->rows[i] = (uint32_t)keys[i];
        result->scores[i] = is_l2 ? score : -score;
    }
}

/* Query `at` of the batch has its result. */
static void put(const struct batch *batch, size_t at, struct sk_index_result *result, uint64_t *keys)
{
    struct skerry_index *self = batch->self;
    if (self->keeps_vectors)
        rescore(self, batch->queries + at * self->params.dim, result, keys);
    for (uint32_t j = 0; j < batch->k; j++) {
        const bool is_found = j < result->count;
        batch->ids[at * batch->k + j] = is_found ? skerry_index_id_of(self, result->rows[j]) : SKERRY_NO_ID;
        batch->scores[at * batch->k + j] = is_found ? result->scores[j] : NAN;
    }
}

/* What a thread of a batch works with: results of up to `size` queries at a time. */
struct chunk {
    uint32_t size;
    struct sk_index_query queries[CHUNK_MAX];
    struct sk_index_result results[CHUNK_MAX];
    enum sk_err rcs[CHUNK_MAX];
    uint32_t *rows;
    float *scores;
    uint64_t *keys;
};

static bool is_exact(const struct batch *batch)
{
    return batch->self->keeps_vectors && batch->self->params.kind == SK_INDEX_FLAT;
}

static enum sk_err chunk_init(struct chunk *self, const struct batch *batch, struct sk_diag *d)
{
    /* Flat with vectors: room for what the codes cannot decide, as a rule (see put_certain). */
    uint32_t capacity = sk_index_candidates(batch->self->index, batch->k);
    if (is_exact(batch))
        capacity += batch->self->row_count < FLAT_MORE ? batch->self->row_count : FLAT_MORE;
    self->size = CHUNK_ROWS_MAX / capacity;
    self->size = self->size < 1 ? 1 : self->size > CHUNK_MAX ? CHUNK_MAX : self->size;
    self->rows = malloc((size_t)self->size * capacity * sizeof *self->rows);
    self->scores = malloc((size_t)self->size * capacity * sizeof *self->scores);
    self->keys = malloc(capacity * sizeof *self->keys);
    if (self->rows == NULL || self->scores == NULL || self->keys == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a search of k %u", batch->k);
    for (uint32_t i = 0; i < self->size; i++)
        self->results[i] = (struct sk_index_result){.capacity = capacity,
                                                    .rows = self->rows + (size_t)i * capacity,
                                                    .scores = self->scores + (size_t)i * capacity};
    return SK_ERR_OK;
}

/* A flat search whose k best may be among rows that there was no room for: again, with room for all. */
static enum sk_err put_certain(struct batch *batch, struct sk_index_reader *reader,
                               const struct sk_index_query *query, size_t at)
{
    const size_t capacity = (size_t)batch->self->row_count + batch->k;
    struct sk_index_result result = {.capacity = (uint32_t)capacity};
    uint64_t *keys = malloc(capacity * sizeof *keys);
    result.rows = malloc(capacity * sizeof *result.rows);
    result.scores = malloc(capacity * sizeof *result.scores);
    enum sk_err rc =
        keys == NULL || result.rows == NULL || result.scores == NULL
            ? sk_fail(&batch->d, SK_ERR_NOMEM, "no memory for a search of k %u", batch->k)
            : sk_index_search(batch->self->index, reader, query, &result, &batch->d);
    if (rc == SK_ERR_OK)
        put(batch, at, &result, keys);
    free(keys);
    free(result.rows);
    free(result.scores);
    return rc;
}

static enum sk_err chunk_run(struct chunk *self, struct batch *batch, struct sk_index_reader *reader,
                             size_t begin, uint32_t count)
{
    const uint32_t dim = batch->self->params.dim;
    for (uint32_t i = 0; i < count; i++)
        self->queries[i] = (struct sk_index_query){.vector = batch->queries + (begin + i) * dim,
                                                   .k = batch->k,
                                                   .ef = batch->options->ef,
                                                   .nprobe = batch->options->nprobe,
                                                   .recall_target = batch->options->recall,
                                                   .filter = batch->filter};
    enum sk_err rc = sk_index_search_many(batch->self->index, reader, self->queries, self->results,
                                          self->rcs, count, &batch->d);
    struct skerry_vectors_watch watch;
    skerry_vectors_watch(&batch->self->vectors, &watch, true);
    for (uint32_t i = 0; i < count; i++)
        skerry_vectors_ask(&batch->self->vectors, self->results[i].rows, self->results[i].count);
    for (uint32_t i = 0; i < count; i++) {
        const bool is_undecided = is_exact(batch) && !self->results[i].is_certain;
        rc = self->rcs[i];
        if (rc == SK_ERR_OK && is_undecided)
            rc = put_certain(batch, reader, &self->queries[i], begin + i);
        else if (rc == SK_ERR_OK)
            put(batch, begin + i, &self->results[i], self->keys);
        if (rc != SK_ERR_OK)
            return sk_wrap(&batch->d, rc, "query %zu", begin + i);
    }
    skerry_vectors_watch(&batch->self->vectors, &watch, false);
    return rc;
}

static void *run_batch(void *arg)
{
    struct batch *batch = arg;
    struct sk_index_reader *reader = NULL;
    struct chunk chunk = {0};
    batch->rc = chunk_init(&chunk, batch, &batch->d);
    if (batch->rc == SK_ERR_OK)
        batch->rc = take_reader(batch->self, &reader, &batch->d);
    for (size_t at = batch->begin; at < batch->end && batch->rc == SK_ERR_OK; at += chunk.size) {
        const size_t left = batch->end - at;
        batch->rc =
            chunk_run(&chunk, batch, reader, at, left < chunk.size ? (uint32_t)left : chunk.size);
    }
    if (reader != NULL)
        give_reader(batch->self, reader);
    free(chunk.rows);
    free(chunk.scores);
    free(chunk.keys);
    return NULL;
}

static enum sk_err check_search(const struct skerry_index *self, uint32_t k,
                                const struct skerry_index_search_options *options, struct sk_diag *d)
{
    if (options->abi != SKERRY_INDEX_ABI)
        return sk_fail(d, SK_ERR_VERSION, "search options of ABI %u, this library has %d",
                       options->abi, SKERRY_INDEX_ABI);
    if (k == 0 || k > SK_INDEX_EF_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "k", "k %u, want 1..%d", k, SK_INDEX_EF_MAX);
    if (options->threads > SKERRY_THREADS_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "threads", "threads %u, want 0..%d",
                             options->threads, SKERRY_THREADS_MAX);
    if (options->filter != NULL && options->filter->index != self)
        return sk_fail_field(d, SK_ERR_INVALID, "filter", "the filter was made for another index");
    return SK_ERR_OK;
}

/* The index's lock is held for reading. */
static enum sk_err search_locked(struct batch *whole, size_t count, struct sk_diag *d)
{
    struct batch batches[SKERRY_THREADS_MAX];
    pthread_t threads[SKERRY_THREADS_MAX];
    bool is_started[SKERRY_THREADS_MAX] = {false};
    uint32_t used = whole->options->threads == 0 ? 1 : whole->options->threads;
    if (used > count)
        used = count == 0 ? 1 : (uint32_t)count;
    for (uint32_t t = used; t-- > 0;) { /* the first part runs here, last */
        batches[t] = *whole;
        batches[t].begin = count * t / used;
        batches[t].end = count * (t + 1) / used;
        is_started[t] = t > 0 && pthread_create(&threads[t], NULL, run_batch, &batches[t]) == 0;
        if (!is_started[t])
            run_batch(&batches[t]);
    }
    for (uint32_t t = 0; t < used; t++)
        if (is_started[t])
            pthread_join(threads[t], NULL);
    for (uint32_t t = 0; t < used; t++)
        if (batches[t].rc != SK_ERR_OK) {
            *d = batches[t].d;
            return batches[t].rc;
        }
    return SK_ERR_OK;
}

int skerry_index_search(struct skerry_index *self, size_t count, const float *queries, uint32_t k,
                        const struct skerry_index_search_options *options, uint64_t *ids,
                        float *scores, char *error, size_t error_size)
{
    static const struct skerry_index_search_options defaults = {.abi = SKERRY_INDEX_ABI};
    struct sk_diag d = {0};
    struct sk_index_filter filter = {0};
    struct batch whole = {.self = self,
                          .queries = queries,
                          .k = k,
                          .options = options != NULL ? options : &defaults,
                          .ids = ids,
                          .scores = scores};
    enum sk_err rc = check_search(self, k, whole.options, &d);
    if (rc != SK_ERR_OK)
        return skerry_index_report(rc, &d, error, error_size);
    pthread_rwlock_rdlock(&self->lock);
    struct skerry_index_filter *prepared =
        (struct skerry_index_filter *)(uintptr_t)whole.options->filter; /* its own lock guards it */
    if (prepared != NULL) {
        rc = filter_prepare(prepared, &d);
        filter = (struct sk_index_filter){.words = prepared->words,
                                          .word_count = prepared->word_count,
                                          .match_count = prepared->match_count};
        whole.filter = &filter;
    }
    if (rc == SK_ERR_OK)
        rc = search_locked(&whole, count, &d);
    pthread_rwlock_unlock(&self->lock);
    return skerry_index_report(rc, &d, error, error_size);
}
