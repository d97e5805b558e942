/* Index work, in slices on the writer lane.
 *
 * UNLOADED -> BUILDING: the checkpoint and the stored deltas are read; whatever is missing, torn, old or of
 * another life of the store is put aside and the index begins empty.
 * BUILDING -> READY: rows born above the index's watermark are linked in the order of their birth.
 * Searches are exact scans of the store all the while.
 * READY: pending rows are linked, dead rows taken out, deltas saved, checkpoints written. */
#include "actors/shard-worker/internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SAVE_IDLE_US = 200 * 1000,
    SAVE_BYTES = 8 * 1024 * 1024,
    BIRTHS_AT_ONCE = 256,
    STEP_REST_US = 2000,
    RECALL_EVERY_US = 1000 * 1000,
};

/* ---- where vectors and liveness come from (writer lane, inside a read of writer_reader) ---- */

bool field_fetch_row(void *impl, uint32_t row, float *out)
{
    const struct field *field = impl;
    const float *vector = sk_store_vector(field->shard->writer_reader, field->at, row);
    if (vector != NULL)
        memcpy(out, vector, field->schema.dim * sizeof *out);
    return vector != NULL;
}

static bool live_lseq(void *impl, uint32_t row, uint64_t *lseq)
{
    const struct field *field = impl;
    return sk_store_row_birth(field->shard->writer_reader, row, lseq);
}

static uint64_t clock_us(void *impl)
{
    return now_us(impl);
}

struct sk_index_params field_params(const struct field *field)
{
    const struct sk_schema *schema = field->shard->schema;
    uint64_t budget = schema->memory_bytes_max != 0 ? schema->memory_bytes_max
                                                    : field->shard->worker->config.memory_bytes_max;
    uint64_t parts = (uint64_t)schema->shard_count * schema->vector_count;
    return (struct sk_index_params){
        .kind = (enum sk_index_kind)field->schema.index,
        .metric = (enum sk_metric)field->schema.metric,
        .dim = field->schema.dim,
        .m = field->schema.m,
        .ef_construction = field->schema.ef_construction,
        .profile = (enum sk_index_profile)field->schema.profile,
        .nlist = field->schema.nlist,
        .pq_m = field->schema.pq_m,
        .refine = field->schema.refine,
        .seed = 0x536B657272790000U | field->at,
        .isa = field->shard->worker->config.kernels,
        .flat_below = field->shard->worker->config.flat_below,
        .memory_bytes_max = budget / (parts != 0 ? parts : 1),
    };
}

void field_set_state(struct field *field, enum field_state state)
{
    field->state = state;
    if (state == FIELD_READY && field->is_altering)
        state = FIELD_ALTERING;
    atomic_store_explicit(&field->state_seen, state, memory_order_relaxed);
}

/* Searches go back to scans; readers may still hold the index, so the core buries it. */
static struct sk_index *take_away(struct field *field, const char *why)
{
    if (why != field->note)
        snprintf(field->note, sizeof field->note, "%s", why);
    atomic_store_explicit(&field->serving, NULL, memory_order_release);
    if (field->is_checkpointing) {
        sk_file_abort(&field->checkpoint);
        field->is_checkpointing = false;
    }
    sk_pending_clear(&field->pending);
    struct sk_index *index = field->index;
    field->index = NULL;
    sk_index_destroy(&field->heir); /* no reader has seen it */
    field->is_altering = false;
    field->has_more = false;
    field->has_dead = false;
    sk_buffer_clear(&field->unsaved);
    atomic_store_explicit(&field->index_bytes, 0, memory_order_relaxed);
    atomic_store_explicit(&field->index_rows, 0, memory_order_relaxed);
    atomic_store_explicit(&field->recall_samples, 0, memory_order_relaxed);
    return index;
}

static void retire(struct writer *writer, struct field *field, const char *why)
{
    SK_CHECK(writer->retired_indexes[field->at] == NULL);
    writer->retired_indexes[field->at] = take_away(field, why);
}

void field_give_up(struct writer *writer, struct field *field, const char *why)
{
    retire(writer, field, why);
    field_set_state(field, FIELD_FLAT);
}

void field_rebuild(struct writer *writer, struct field *field, const char *why)
{
    char path[SK_PATH_BYTES];
    struct sk_diag ignored = {0};
    retire(writer, field, why);
    /* with neither image nor deltas the load finds nothing and begins empty */
    if (checkpoint_path(field, path, &ignored) == SK_ERR_OK)
        (void)unlink(path);
    field->must_rebuild = true;
    field_set_state(field, FIELD_UNLOADED);
}

static void bury_index(struct field *field, const char *why)
{
    if (field->index == NULL)
        return;
    grave_put_index(field->shard, take_away(field, why));
    grave_put_chunks(field->shard, sk_pending_take_retired(&field->pending));
    graves_dig(field->shard, false);
}

void field_reload(struct field *field)
{
    bury_index(field, "");
    field->note[0] = '\0';
    field_set_state(field, FIELD_UNLOADED);
}

void field_scan(struct field *field)
{
    bury_index(field, "");
    field->note[0] = '\0';
    saving_forget(field);
    field->is_unlogged = false;
    field_set_state(field, FIELD_FLAT);
}

/* ---- loading ---- */

/* Applies the stored deltas from `from` on; they must follow one another without a gap. */
static enum sk_err load_deltas(struct field *field, uint64_t from, struct sk_diag *d)
{
    struct sk_store_reader *reader = field->shard->writer_reader;
    uint64_t number;
    uint64_t next = from;
    struct sk_span delta;
    enum sk_err rc;
    while ((rc = sk_store_delta_get(reader, field->at, next, &number, &delta, d)) == SK_ERR_OK) {
        if (number != next)
            return sk_fail(d, SK_ERR_INVALID, "its deltas begin at %llu, the image wants %llu",
                           (unsigned long long)number, (unsigned long long)next);
        rc = sk_index_apply_delta(field->index, delta, d);
        if (rc != SK_ERR_OK)
            return rc;
        next = number + 1;
    }
    field->delta_next = next;
    return rc == SK_ERR_NOT_FOUND ? SK_ERR_OK : rc;
}

/* One past the newest stored delta. */
static uint64_t deltas_end(struct field *field)
{
    struct sk_diag d = {0};
    uint64_t number = 0;
    struct sk_span delta;
    while (sk_store_delta_get(field->shard->writer_reader, field->at, number + 1, &number, &delta,
                              &d) == SK_ERR_OK)
        continue;
    return number + 1;
}

static enum sk_err load_stored(struct field *field, const struct sk_index_params *params,
                               const struct sk_index_source *source, struct sk_diag *d)
{
    uint64_t from = 1;
    enum sk_err rc = checkpoint_load(field, params, source, &from, d);
    if (rc == SK_ERR_NOT_FOUND)
        rc = sk_index_new(&field->index, params, source, d);
    if (rc == SK_ERR_OK && !sk_mutant("stale_index_after_restart"))
        rc = load_deltas(field, from, d);
    if (rc == SK_ERR_OK &&
        sk_index_watermark(field->index) > sk_store_lseq(field->shard->writer_reader))
        rc = sk_fail(d, SK_ERR_INVALID, "it is newer than the store");
    if (rc == SK_ERR_OK) {
        const struct sk_index_live live = {field, live_lseq};
        rc = sk_index_load_finish(
            field->index, sk_mutant("stale_index_after_restart") ? NULL : &live, d);
    }
    if (rc != SK_ERR_OK)
        sk_index_destroy(&field->index);
    return rc;
}

static enum sk_err load(struct field *field, struct sk_diag *d)
{
    const struct sk_index_params params = field_params(field);
    const struct sk_index_source source = {field, field_fetch_row};
    struct sk_diag why = {0};
    enum sk_err rc = field->must_rebuild
                         ? sk_fail(&why, SK_ERR_INVALID, "%s", field->note)
                         : load_stored(field, &params, &source, &why);
    field->must_rebuild = false;
    field->is_unlogged = false;
    field->is_image_gone = false;
    uint64_t end = deltas_end(field);
    field->delta_next = end > field->delta_next ? end : field->delta_next;
    if (rc != SK_ERR_OK) { /* the store has everything: begin again behind exact scans */
        snprintf(field->note, sizeof field->note, "rebuilt: %.140s", why.text);
        field->built_lseq = 0;
        field->delta_drop = field->delta_next;
        rc = sk_index_new(&field->index, &params, &source, d);
    }
    if (rc != SK_ERR_OK)
        return rc;
    field->built_lseq = sk_index_watermark(field->index);
    if (sk_mutant("stale_index_after_restart"))
        field->built_lseq = sk_store_lseq(field->shard->writer_reader);
    field_set_state(field, FIELD_BUILDING);
    return SK_ERR_OK;
}

/* ---- linking ---- */

bool is_slice_over(struct writer *writer, uint64_t end_us)
{
    return atomic_load_explicit(&writer->is_wanted, memory_order_relaxed) ||
           now_us(writer->worker) >= end_us;
}

enum sk_err field_link_row(struct field *field, struct sk_index *index, uint32_t row, uint64_t lseq,
                           const float *vector, struct sk_diag *d)
{
    uint64_t birth;
    bool is_live = sk_store_row_birth(field->shard->writer_reader, row, &birth) && birth == lseq;
    if (!is_live || sk_index_has(index, row, lseq)) {
        sk_index_advance(index, lseq);
        return SK_ERR_OK;
    }
    enum sk_err rc = sk_index_insert(index, row, lseq, vector, d);
    return rc == SK_ERR_EXISTS ? SK_ERR_BUSY : rc;
}

/* Links rows born above *built_lseq until the slice is over; *is_complete: none is left. */
enum sk_err field_link_births(struct writer *writer, struct field *field, struct sk_index *index,
                              uint64_t *built_lseq, uint64_t end_us, bool *is_complete,
                              struct sk_diag *d)
{
    struct shard *shard = field->shard;
    struct sk_birth births[BIRTHS_AT_ONCE];
    *is_complete = false;
    for (;;) {
        uint32_t count;
        enum sk_err rc =
            sk_store_births(shard->writer_reader, *built_lseq, births, BIRTHS_AT_ONCE, &count, d);
        if (rc != SK_ERR_OK)
            return rc;
        if (count == 0)
            break;
        for (uint32_t i = 0; i < count; i++) {
            const float *vector =
                sk_store_vector(shard->writer_reader, field->at, births[i].row);
            if (vector == NULL)
                return sk_fail(d, SK_ERR_INTERNAL, "row %u has no vector", births[i].row);
            rc = field_link_row(field, index, births[i].row, births[i].lseq, vector, d);
            if (rc != SK_ERR_OK)
                return rc;
            *built_lseq = births[i].lseq;
            shard->build_credit++;
            if (is_slice_over(writer, end_us))
                return SK_ERR_OK;
        }
    }
    sk_index_advance(index, sk_store_lseq(shard->writer_reader));
    *is_complete = true;
    return SK_ERR_OK;
}

void field_become_ready(struct writer *writer, struct field *field)
{
    field_set_state(field, FIELD_READY);
    writer->has_become_ready = true;
    atomic_store_explicit(&field->serving, field->index, memory_order_release);
}

static enum sk_err build_slice(struct writer *writer, struct field *field, uint64_t end_us,
                               struct sk_diag *d)
{
    bool is_complete;
    enum sk_err rc = field_link_births(writer, field, field->index, &field->built_lseq, end_us,
                                       &is_complete, d);
    if (rc == SK_ERR_OK && is_complete)
        field_become_ready(writer, field);
    return rc;
}

static enum sk_err link_slice(struct writer *writer, struct field *field, uint64_t end_us,
                              struct sk_diag *d)
{
    uint32_t row;
    uint64_t lseq;
    const float *vector;
    while (sk_pending_front(&field->pending, &row, &lseq, &vector)) {
        enum sk_err rc = field_link_row(field, field->index, row, lseq, vector, d);
        if (rc != SK_ERR_OK)
            return rc;
        sk_pending_pop(&field->pending);
        if (is_slice_over(writer, end_us))
            break;
    }
    return SK_ERR_OK;
}

/* ---- a slice ---- */

static bool is_idle(const struct field *field, uint64_t now)
{
    return now >= field->changed_us + INDEX_IDLE_US;
}

/* For stats, and so that upserts hear of a budget that is used. */
static void show(struct field *field, enum sk_err rc)
{
    struct sk_index_stats stats;
    if (field->index == NULL)
        return;
    sk_index_get_stats(field->index, &stats);
    uint64_t bytes = stats.memory_bytes;
    if (field->heir != NULL) { /* the progress is its own */
        sk_index_get_stats(field->heir, &stats);
        bytes += stats.memory_bytes;
    } else if (field->is_altering) {
        stats.rows = 0;
    }
    atomic_store_explicit(&field->recall_target, stats.recall_target, memory_order_relaxed);
    atomic_store_explicit(&field->recall_measured, stats.recall_measured, memory_order_relaxed);
    atomic_store_explicit(&field->recall_ef_mean, stats.recall_ef_mean, memory_order_relaxed);
    atomic_store_explicit(&field->recall_samples, stats.recall_samples, memory_order_relaxed);
    atomic_store_explicit(&field->index_bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&field->index_rows, stats.rows, memory_order_relaxed);
    if (rc == SK_ERR_NOMEM)
        atomic_store_explicit(&field->shard->is_over_budget, true, memory_order_relaxed);
    else if (rc == SK_ERR_OK)
        atomic_store_explicit(&field->shard->is_over_budget, false, memory_order_relaxed);
}

static enum sk_err ready_slice(struct writer *writer, struct field *field, uint64_t end_us,
                               struct sk_diag *d)
{
    struct sk_worker *self = writer->worker;
    bool has_pending = sk_pending_count(&field->pending) != 0;
    enum sk_err rc = SK_ERR_OK;
    if (has_pending) {
        rc = link_slice(writer, field, end_us, d);
        field->changed_us = now_us(self);
    }
    enum sk_err full = rc == SK_ERR_BUSY ? SK_ERR_OK : rc; /* a step lets go of its number */
    if (rc != SK_ERR_OK && rc != SK_ERR_BUSY && rc != SK_ERR_NOMEM)
        return rc;
    bool is_eager = rc == SK_ERR_BUSY || (field->has_dead && is_idle(field, now_us(self)));
    const struct sk_index_clock clock = {self, clock_us};
    uint64_t budget = self->config.index_slice_us / (has_pending ? 8 : 1);
    uint64_t begun_us = now_us(self);
    rc = sk_index_step(field->index, budget, &clock, is_eager ? SK_INDEX_STEP_EAGER : 0,
                       &field->has_more, d);
    uint64_t now = now_us(self);
    if (field->has_more && now < begun_us + budget / 2) /* a reader holds it up */
        field->step_rest_us = now + STEP_REST_US;
    if (is_eager && !field->has_more)
        field->has_dead = false;
    uint32_t rows[256]; /* is_let_go() asks the index itself */
    while (sk_index_reclaim_rows(field->index, rows, SK_COUNT_OF(rows)) != 0)
        continue;
    if (rc == SK_ERR_OK && field->is_checkpointing)
        rc = checkpoint_slice(field, d);
    else if (rc == SK_ERR_OK &&
             is_checkpoint_due(field, now_us(self), writer->is_stopping))
        rc = checkpoint_begin(field, d);
    if (rc == SK_ERR_OK && field->is_altering) /* also when this one is full: that may be why */
        return heir_slice(writer, field, now_us(self) + self->config.index_slice_us, d);
    return rc != SK_ERR_OK ? rc : full;
}

static enum sk_err field_slice(struct writer *writer, struct field *field, struct sk_diag *d)
{
    uint64_t end_us = now_us(writer->worker) + writer->worker->config.index_slice_us;
    switch (field->state) {
    case FIELD_UNLOADED:
        return load(field, d);
    case FIELD_BUILDING: {
        enum sk_err rc = build_slice(writer, field, end_us, d);
        if (rc != SK_ERR_BUSY && rc != SK_ERR_NOMEM)
            return rc;
        /* dead rows give back their numbers and their memory */
        const struct sk_index_clock clock = {writer->worker, clock_us};
        struct sk_diag ignored = {0};
        enum sk_err step = sk_index_step(field->index, writer->worker->config.index_slice_us, &clock,
                                         SK_INDEX_STEP_EAGER, &field->has_more, &ignored);
        return rc == SK_ERR_NOMEM ? rc : step;
    }
    case FIELD_READY:
        return ready_slice(writer, field, end_us, d);
    case FIELD_FLAT:
    case FIELD_ALTERING:
        break;
    }
    return SK_ERR_OK;
}

void turn_index(struct sk_job *job)
{
    struct writer *writer = (struct writer *)job;
    struct shard *shard = writer->shard;
    struct sk_diag *d = &writer->diag;
    enum sk_err rc = sk_store_read_begin(shard->writer_reader, 0, d);
    if (rc == SK_ERR_OK) {
        rc = bury_rows(shard, writer->reads_ended, d);
        if (rc == SK_ERR_OK && writer->field != NULL) {
            rc = field_slice(writer, writer->field, d);
            show(writer->field, rc);
        }
        sk_store_read_end(shard->writer_reader);
    }
    if (rc == SK_ERR_INVALID && writer->field != NULL) {
        /* a vector or a kind that the index refuses: scans find all the same */
        field_give_up(writer, writer->field, d->text);
        rc = SK_ERR_OK;
    }
    writer->code = rc;
}

/* ---- what wants to be done (core) ---- */

static bool is_recall_due(const struct field *field, uint64_t now)
{
    return field->is_recall_asked && now >= field->recall_due_us;
}

void indexing_recall_asked(struct shard *shard)
{
    for (unsigned f = 0; f < shard->field_count; f++) {
        struct field *field = &shard->fields[f];
        field->is_recall_asked = true;
        shard->worker->turn_us = sooner(shard->worker->turn_us, field->recall_due_us);
    }
}

static bool wants_slice(const struct field *field, uint64_t now, bool is_stopping)
{
    switch (field->state) {
    case FIELD_UNLOADED:
    case FIELD_BUILDING:
        return !is_stopping;
    case FIELD_READY:
        return (!is_stopping && (field->is_altering || is_recall_due(field, now) ||
                                 (field->has_more && now >= field->step_rest_us) ||
                                 sk_pending_count(&field->pending) != 0 ||
                                 (field->has_dead && is_idle(field, now)))) ||
               field->is_checkpointing || is_checkpoint_due(field, now, is_stopping);
    case FIELD_FLAT:
    case FIELD_ALTERING:
        break;
    }
    return false;
}

static uint64_t save_due_us(const struct shard *shard)
{
    uint64_t bytes = unsaved_bytes(shard);
    if (bytes >= SAVE_BYTES)
        return 0;
    if (bytes == 0 && !is_release_due(shard))
        return UINT64_MAX;
    if (shard->worker->is_stopping)
        return 0;
    uint64_t changed = shard->saved_us;
    for (unsigned f = 0; f < shard->field_count; f++)
        if (shard->fields[f].changed_us > changed)
            changed = shard->fields[f].changed_us;
    return changed + SAVE_IDLE_US;
}

enum turn indexing_turn(struct shard *shard, uint64_t now, struct field **out)
{
    bool is_stopping = shard->worker->is_stopping;
    *out = NULL;
    if (now < shard->index_rest_us)
        return TURN_NONE;
    if (unsaved_bytes(shard) >= SAVE_BYTES)
        return TURN_SAVE;
    for (unsigned i = 0; i < shard->field_count; i++) {
        unsigned f = (shard->field_turn + i) % shard->field_count;
        if (wants_slice(&shard->fields[f], now, is_stopping)) {
            shard->field_turn = f + 1;
            if (is_recall_due(&shard->fields[f], now)) {
                shard->fields[f].is_recall_asked = false;
                shard->fields[f].recall_due_us = now + RECALL_EVERY_US;
            }
            *out = &shard->fields[f];
            return TURN_INDEX;
        }
    }
    if (is_dying_due(shard, reads_ended_below(shard)))
        return TURN_INDEX;
    if (shard->is_loading_fields && !is_stopping)
        return TURN_FIELDS;
    return save_due_us(shard) <= now ? TURN_SAVE : TURN_NONE;
}

uint64_t indexing_next_us(const struct shard *shard, uint64_t now)
{
    if (shard->worker->is_stopping) /* what is left to do is done at once, or not */
        return UINT64_MAX;
    uint64_t next = save_due_us(shard);
    for (unsigned f = 0; f < shard->field_count; f++) {
        const struct field *field = &shard->fields[f];
        if (wants_slice(field, now, false))
            next = now;
        else if (field->state == FIELD_READY && field->is_recall_asked)
            next = sooner(next, field->recall_due_us);
        else if (field->state == FIELD_READY && field->has_more)
            next = sooner(next, field->step_rest_us);
        else if (wants_slice(field, UINT64_MAX / 2, false))
            next = sooner(next, field->changed_us + INDEX_IDLE_US > field->checkpoint_rest_us
                                    ? field->changed_us + INDEX_IDLE_US
                                    : field->checkpoint_rest_us);
    }
    if (next < shard->index_rest_us)
        next = shard->index_rest_us;
    return next < now ? now : next;
}

bool shard_is_indexed(const struct shard *shard)
{
    for (unsigned f = 0; f < shard->field_count; f++) {
        const struct field *field = &shard->fields[f];
        if (field->state == FIELD_UNLOADED || field->state == FIELD_BUILDING ||
            field->is_altering || sk_pending_count(&field->pending) != 0)
            return false;
    }
    return !shard->is_loading_fields;
}
