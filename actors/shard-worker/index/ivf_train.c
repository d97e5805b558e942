/* The first lists: k-means over rows of the buffer, in steps. */
#include "actors/shard-worker/index/ivf.h"
#include "kernels/kmeans.h"

#include <stdlib.h>

enum {
    ROWS_MIN = 256,
    LISTS_FIRST_MAX = 256, /* more come by splitting, which costs less than k-means with many centres */
    ROWS_PER_LIST = 64,    /* of the sample */
    ITERATIONS = 10,
    ROWS_AT_ONCE = 512, /* of a step */
};

bool sk_ivf_wants_training(const struct sk_index *self)
{
    const struct sk_ivf *ivf = self->ivf;
    uint32_t wanted = self->params.flat_below > ROWS_MIN ? self->params.flat_below : ROWS_MIN;
    if (self->params.kind == SK_INDEX_HYBRID)
        wanted = ivf->buffer_rows_max + 1;
    else if (!sk_ivf_can_split(self))
        wanted *= 4; /* what is found now stays: better from more rows */
    return atomic_load_explicit(&ivf->list_count, memory_order_relaxed) == 0 &&
           atomic_load_explicit(&self->live_count, memory_order_relaxed) >= wanted;
}

void sk_ivf_train_end(struct sk_ivf *ivf)
{
    free(ivf->training.kmeans);
    free(ivf->training.rows);
    free(ivf->training.centres);
    free(ivf->training.counts);
    free(ivf->training.scratch);
    ivf->training = (struct sk_ivf_training){.is_running = false};
}

/* Every stride-th live row of the buffer, as its code has it. */
static size_t draw_sample(const struct sk_index *self, uint32_t live, size_t rows_max, float *rows)
{
    const struct sk_ivf *ivf = self->ivf;
    uint32_t head = sk_ivf_head(sk_ivf_directory_now(ivf), SK_IVF_BUFFER);
    size_t count = 0;
    uint64_t seen = 0;
    memset(ivf->centre, 0, self->padded * sizeof *ivf->centre);
    while (head != SK_IVF_NO_BLOCK) {
        const uint8_t *block = sk_ivf_block(ivf, SK_IVF_PLAIN, head);
        const uint32_t *tail = sk_ivf_tail(ivf, SK_IVF_PLAIN, block);
        for (uint32_t i = 0; i < tail[1]; i++) {
            if (sk_state(self, sk_ivf_rows(ivf, SK_IVF_PLAIN, block)[i]) != SK_ROW_LIVE)
                continue;
            /* row number `seen` is taken when the number of samples due rises with it */
            if (count < rows_max && (seen + 1) * rows_max / live > seen * rows_max / live)
                sk_ivf_decode(self, SK_IVF_PLAIN, block, i, ivf->centre,
                              rows + count++ * self->padded);
            seen++;
        }
        head = tail[0];
    }
    return count;
}

static enum sk_err begin(struct sk_index *self, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    struct sk_ivf_training *training = &ivf->training;
    const uint32_t live = atomic_load_explicit(&self->live_count, memory_order_relaxed);
    const uint32_t target = sk_ivf_list_target(self);
    uint32_t lists = live / target > 0 ? live / target : 1;
    if (lists > LISTS_FIRST_MAX)
        lists = LISTS_FIRST_MAX;
    const size_t sample = live < lists * ROWS_PER_LIST ? live : lists * ROWS_PER_LIST;
    training->list_count = lists;
    training->kmeans = malloc(sizeof *training->kmeans);
    training->rows = malloc(sample * self->padded * sizeof *training->rows);
    training->centres = malloc((size_t)lists * self->padded * sizeof *training->centres);
    training->counts = malloc(lists * sizeof *training->counts);
    training->scratch = malloc(sk_kmeans_scratch_bytes(sample, self->padded, lists));
    if (training->kmeans == NULL || training->rows == NULL || training->centres == NULL ||
        training->counts == NULL || training->scratch == NULL) {
        sk_ivf_train_end(ivf);
        return sk_fail(d, SK_ERR_NOMEM, "no memory to find %u lists", lists);
    }
    const struct sk_kmeans_params params = {
        .kernels = self->kernels,
        .rows = training->rows,
        .row_count = draw_sample(self, live, sample, training->rows),
        .dim = self->padded,
        .k = lists,
        .iterations = ITERATIONS,
        .seed = self->params.seed,
    };
    if (params.row_count < lists) { /* rows went in the meantime */
        sk_ivf_train_end(ivf);
        return SK_ERR_OK;
    }
    sk_kmeans_init(training->kmeans, &params, training->centres, training->counts, training->scratch);
    training->is_running = true;
    return SK_ERR_OK;
}

/* Empty lists around the centres; the buffer is then merged into them like any other. */
static enum sk_err publish(struct sk_index *self, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    const struct sk_ivf_training *training = &ivf->training;
    enum sk_err rc = sk_ivf_reserve(self, ivf->list_form, 0, training->list_count, 1, d);
    if (rc == SK_ERR_OK)
        rc = sk_delta_reserve(self, training->list_count * sk_ivf_delta_centre_bytes(self), d);
    if (rc != SK_ERR_OK)
        return rc;
    struct sk_ivf_directory *directory =
        sk_ivf_directory_copy(ivf, ivf->slot_count + training->list_count);
    if (directory == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u lists", training->list_count);
    uint32_t count = 0;
    for (uint32_t i = 0; i < training->list_count; i++) {
        if (training->counts[i] == 0)
            continue;
        const uint32_t slot = sk_ivf_slot_take(ivf);
        sk_ivf_centre_set(self, slot, training->centres + (size_t)i * self->padded);
        ivf->counts[slot] = 0;
        ivf->split_from[slot] = 2 * sk_ivf_list_target(self);
        atomic_store_explicit(&directory->heads[slot], SK_IVF_NO_BLOCK, memory_order_relaxed);
        sk_ivf_delta_centre(self, slot);
        count++;
    }
    sk_ivf_publish(ivf, directory);
    atomic_store_explicit(&ivf->list_count, count, memory_order_relaxed);
    return SK_ERR_OK;
}

enum sk_err sk_ivf_train_step(struct sk_index *self, struct sk_diag *d)
{
    struct sk_ivf *ivf = self->ivf;
    if (!ivf->training.is_running)
        return begin(self, d);
    if (!sk_kmeans_step(ivf->training.kmeans, ROWS_AT_ONCE))
        return SK_ERR_OK;
    enum sk_err rc = publish(self, d);
    sk_ivf_train_end(ivf);
    return rc;
}
