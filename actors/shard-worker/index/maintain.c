/* Maintenance in slices: sweeping tombstones out of all lists, letting go of rows when no reader
 * can hold them, renewing the codes' centre, attaching orphans. */
#include "actors/shard-worker/index/ivf.h"
#include "actors/shard-worker/index/recall.h"

#include <stdlib.h>

enum {
    SLICE_STATES = 65536, /* rows of one quantum that only looks at states */
    SLICE_LISTS = 128,    /* rows of one quantum that looks at lists */
    QUANTA_WITHOUT_CLOCK = 64,
    ORPHANS_AT_ONCE = 64,
    WALK_ROUNDS_MAX = 8,
};

/* ---- epochs ----
 * A reader notes the epoch it entered in and looks again, so that either it sees the bump (and with
 * it every list that was changed before), or the writer sees the reader. */
uint64_t sk_epoch_enter(const struct sk_index *self, uint32_t slot)
{
    struct sk_index *shared = (struct sk_index *)(uintptr_t)self;
    uint64_t epoch = atomic_load(&shared->epoch), seen;
    do {
        seen = epoch;
        atomic_store(&shared->readers[slot].epoch, seen);
        epoch = atomic_load(&shared->epoch);
    } while (epoch != seen);
    return epoch;
}

void sk_epoch_leave(const struct sk_index *self, uint32_t slot)
{
    struct sk_index *shared = (struct sk_index *)(uintptr_t)self;
    atomic_store_explicit(&shared->readers[slot].epoch, 0, memory_order_release);
}

uint64_t sk_epoch_next(struct sk_index *self)
{
    return atomic_fetch_add(&self->epoch, 1) + 1;
}

bool sk_epoch_has_passed(const struct sk_index *self, uint64_t wanted)
{
    for (uint32_t slot = 0; slot < SK_INDEX_READERS_MAX; slot++) {
        uint64_t epoch = atomic_load(&self->readers[slot].epoch);
        if (epoch != 0 && epoch < wanted)
            return false;
    }
    return true;
}

static void epoch_bump(struct sk_index *self)
{
    self->wait_epoch = sk_epoch_next(self);
}

static bool epoch_has_passed(const struct sk_index *self)
{
    return sk_epoch_has_passed(self, self->wait_epoch);
}

/* ---- sweeping ---- */

static void enter_stage(struct sk_index *self, enum sk_maintain_stage stage)
{
    self->stage = stage;
    self->cursor = 0;
    atomic_store_explicit(&self->is_sweeping, stage != SK_STAGE_IDLE, memory_order_relaxed);
}

static void mark_slice(struct sk_index *self)
{
    const uint32_t row_count = sk_row_count(self);
    for (uint32_t n = 0; n < SLICE_STATES && self->cursor < row_count; n++, self->cursor++)
        if (sk_state(self, self->cursor) == SK_ROW_DEAD)
            sk_state_set(self, self->cursor, SK_ROW_SWEPT);
    if (self->cursor == row_count)
        enter_stage(self, SK_STAGE_LINKS);
}

/* A tombstone that came after the sweep began only drops its edges to swept rows. */
static enum sk_err drop_swept(struct sk_index *self, uint32_t row, struct sk_diag *d)
{
    uint32_t list[SK_DEGREE_MAX];
    const uint32_t length = sk_links_get(self, row, list);
    uint32_t kept = 0;
    enum sk_err rc = sk_delta_reserve(self, sk_delta_insert_bytes_max(self), d);
    if (rc != SK_ERR_OK)
        return rc;
    for (uint32_t i = 0; i < length; i++)
        if (sk_state(self, list[i]) != SK_ROW_SWEPT)
            list[kept++] = list[i];
    sk_links_set(self, row, list, kept);
    sk_delta_list(self, row);
    return SK_ERR_OK;
}

static bool has_swept_link(const struct sk_index *self, uint32_t row)
{
    const _Atomic uint32_t *links = sk_links_of(self, row);
    for (uint32_t i = 0; i < self->degree; i++) {
        uint32_t id = atomic_load_explicit(&links[i], memory_order_relaxed);
        if (id == SK_NO_ROW)
            return false;
        if (sk_state(self, id) == SK_ROW_SWEPT)
            return true;
    }
    return false;
}

static enum sk_err links_slice(struct sk_index *self, struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    for (uint32_t n = 0; n < SLICE_LISTS && self->cursor < row_count; n++, self->cursor++) {
        const enum sk_row_state state = sk_state(self, self->cursor);
        if ((state != SK_ROW_LIVE && state != SK_ROW_DEAD) || !has_swept_link(self, self->cursor))
            continue;
        n += 16; /* a repair costs as much as looking at many rows */
        enum sk_err rc = state == SK_ROW_LIVE ? sk_graph_repair(self, self->cursor, d)
                                              : drop_swept(self, self->cursor, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    if (self->cursor < row_count)
        return SK_ERR_OK;
    sk_entries_mend(self);
    epoch_bump(self);
    enter_stage(self, SK_STAGE_WAIT);
    return SK_ERR_OK;
}

/* The same for kinds with lists. */
static enum sk_err lists_slice(struct sk_index *self, struct sk_diag *d)
{
    bool is_done;
    enum sk_err rc = sk_ivf_sweep_slice(self, &is_done, d);
    if (rc != SK_ERR_OK || !is_done)
        return rc;
    epoch_bump(self);
    enter_stage(self, SK_STAGE_WAIT);
    return SK_ERR_OK;
}

static void walk_begin(struct sk_index *self);

static enum sk_err free_slice(struct sk_index *self, struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    for (uint32_t n = 0; n < SLICE_STATES && self->cursor < row_count; n++, self->cursor++) {
        if (sk_state(self, self->cursor) != SK_ROW_SWEPT)
            continue;
        n += 64;
        enum sk_err rc = sk_delta_reserve(self, 16, d);
        if (rc != SK_ERR_OK)
            return rc;
        if (!sk_row_list_push(&self->reclaimed, self->cursor))
            return sk_fail(d, SK_ERR_NOMEM, "no memory to list reclaimed rows");
        sk_links_set(self, self->cursor, NULL, 0);
        sk_state_set(self, self->cursor, SK_ROW_EMPTY);
        sk_delta_row(self, true, self->cursor);
        atomic_fetch_sub_explicit(&self->dead_count, 1, memory_order_relaxed);
    }
    if (self->cursor == row_count)
        walk_begin(self);
    return SK_ERR_OK;
}

/* ---- renewing the codes ---- */

/* From the vector itself where the owner has it and the codes are coarse, else from the codes. */
static void encode_again(struct sk_index *self, uint32_t row)
{
    const struct sk_generation *from = sk_generation_now(self);
    float *x = self->scratch.raw;
    const bool has_planes = sk_has_planes(from);
    if (!has_planes && self->source.fetch != NULL &&
        self->source.fetch(self->source.impl, row, self->scratch.prepared.vector)) {
        sk_rotate(self, self->scratch.prepared.vector, x);
    } else {
        sk_decode(self, from, row, x);
        for (uint32_t i = 0; i < self->padded; i++)
            x[i] += from->mean[i];
    }
    sk_encode(self, self->next, row, x, sk_raw_norm_sq_of(from, row),
              has_planes ? sk_factors_of(from, row)->plane_error : 0);
}

/* Starts a renewal unless memory does not allow two sets of codes. */
static void renew_begin(struct sk_index *self)
{
    const struct sk_generation *now = sk_generation_now(self);
    uint64_t used = atomic_load_explicit(&self->memory_bytes, memory_order_relaxed);
    uint64_t more = sk_generation_committed(now);
    if (self->params.memory_bytes_max > 0 && used + more > self->params.memory_bytes_max)
        return;
    struct sk_generation *next = sk_generation_new(self, now->number + 1);
    if (next == NULL)
        return;
    for (uint32_t i = 0; i < self->padded; i++)
        next->mean[i] = (float)(self->sum[i] / (double)self->sum_count);
    if (!sk_generation_commit(self, next, sk_row_count(self))) {
        sk_generation_destroy(&next);
        return;
    }
    self->next = next;
    enter_stage(self, SK_STAGE_ENCODE);
}

static void encode_slice(struct sk_index *self)
{
    const uint32_t row_count = sk_row_count(self);
    for (uint32_t n = 0; n < SLICE_LISTS && self->cursor < row_count; n++, self->cursor++)
        if (sk_state(self, self->cursor) != SK_ROW_EMPTY)
            encode_again(self, self->cursor);
    if (self->cursor == row_count)
        enter_stage(self, SK_STAGE_PUBLISH);
}

static void publish(struct sk_index *self)
{
    self->old = sk_generation_now(self);
    atomic_store_explicit(&self->generation, self->next, memory_order_release);
    atomic_store_explicit(&self->generation_number, self->next->number, memory_order_relaxed);
    self->next = NULL;
    epoch_bump(self);
}

static enum sk_err publish_slice(struct sk_index *self, struct sk_diag *d)
{
    if (self->checkpoint.is_running)
        return SK_ERR_OK;
    enum sk_err rc = sk_delta_reserve(self, 16 + self->padded * sizeof(float), d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_delta_mean(self, self->next->number, self->next->mean);
    publish(self);
    sk_near_restart(self);
    sk_entries_renew(self);
    enter_stage(self, SK_STAGE_DISCARD);
    return SK_ERR_OK;
}

static void discard(struct sk_index *self)
{
    atomic_fetch_sub_explicit(&self->memory_bytes, sk_generation_committed(self->old),
                              memory_order_relaxed);
    sk_generation_destroy(&self->old);
    enter_stage(self, SK_STAGE_IDLE);
}

/* ---- steps ---- */

/* Each is tried once; what they push out in turn waits for the next call, and a walk finds the rest. */
enum sk_err sk_attach_orphans(struct sk_index *self, struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    uint32_t left = self->orphans.count < ORPHANS_AT_ONCE ? self->orphans.count : ORPHANS_AT_ONCE;
    for (; left > 0 && rc == SK_ERR_OK; left--) {
        const uint32_t row = self->orphans.rows[--self->orphans.count];
        if (sk_state(self, row) != SK_ROW_LIVE || *sk_in_degree_of(self, row) > 0 ||
            atomic_load_explicit(&self->live_count, memory_order_relaxed) < 2)
            continue;
        rc = sk_graph_attach(self, row, d);
        if (rc != SK_ERR_OK)
            self->orphans.count++;
    }
    return rc;
}

/* ---- reaching every row ---- */

void sk_walk_end(struct sk_index *self)
{
    free(self->walk.parents);
    free(self->walk.queue);
    self->walk = (struct sk_walk){.parents = NULL};
}

static void walk_meet(struct sk_walk *walk, uint32_t row, uint32_t parent)
{
    if (row >= walk->rows || walk->parents[row] != SK_NO_ROW)
        return;
    walk->parents[row] = parent;
    walk->queue[walk->count++] = row;
}

static void walk_from_entries(struct sk_index *self)
{
    struct sk_walk *walk = &self->walk;
    memset(walk->parents, 0xFF, walk->rows * sizeof *walk->parents);
    walk->next = walk->count = walk->attached = 0;
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        uint32_t row = atomic_load_explicit(&self->entries[at], memory_order_relaxed);
        walk_meet(walk, row, row);
    }
    enter_stage(self, SK_STAGE_REACH);
}

/* Without memory for it nothing is walked: it is tried again after the next sweep. */
static void walk_begin(struct sk_index *self)
{
    struct sk_walk *walk = &self->walk;
    const uint32_t rows = sk_row_count(self);
    self->wants_walk = false;
    walk->parents = malloc((rows + 1) * sizeof *walk->parents);
    walk->queue = malloc((rows + 1) * sizeof *walk->queue);
    walk->rows = rows;
    walk->rounds = 0;
    if (walk->parents == NULL || walk->queue == NULL || self->params.kind != SK_INDEX_HNSW) {
        sk_walk_end(self);
        enter_stage(self, SK_STAGE_IDLE);
        return;
    }
    walk_from_entries(self);
}

static enum sk_err walk_slice(struct sk_index *self, struct sk_diag *d)
{
    struct sk_walk *walk = &self->walk;
    uint32_t list[SK_DEGREE_MAX];
    for (unsigned n = 0; n < SLICE_LISTS && walk->next < walk->count; n++) {
        const uint32_t row = walk->queue[walk->next++];
        const uint32_t length = sk_links_get(self, row, list);
        for (uint32_t i = 0; i < length; i++)
            walk_meet(walk, list[i], row);
    }
    if (walk->next < walk->count)
        return SK_ERR_OK;
    /* everything that can be reached was met: the next live row that was not is an island's */
    for (unsigned n = 0; n < SLICE_STATES && self->cursor < walk->rows; n++, self->cursor++) {
        const uint32_t row = self->cursor;
        uint32_t from = SK_NO_ROW;
        if (walk->parents[row] != SK_NO_ROW || sk_state(self, row) != SK_ROW_LIVE)
            continue;
        enum sk_err rc = sk_graph_bridge(self, row, &from, d);
        if (rc == SK_ERR_OK)
            walk_meet(walk, row, from);
        walk->attached++;
        return rc;
    }
    if (self->cursor == walk->rows) {
        /* inserts between the slices may have taken edges of the tree: look again */
        if (walk->attached > 0 && ++walk->rounds < WALK_ROUNDS_MAX) {
            walk_from_entries(self);
            return SK_ERR_OK;
        }
        sk_walk_end(self);
        enter_stage(self, SK_STAGE_IDLE);
    }
    return SK_ERR_OK;
}

static bool has_near_work(const struct sk_index *self, unsigned flags)
{
    return (flags & SK_INDEX_STEP_BULK) == 0 && sk_near_has_work(self);
}

static void start_something(struct sk_index *self, unsigned flags)
{
    if (has_near_work(self, flags))
        sk_near_slice(self);
    const uint64_t dead = atomic_load_explicit(&self->dead_count, memory_order_relaxed);
    const uint64_t live = atomic_load_explicit(&self->live_count, memory_order_relaxed);
    if (sk_mean_wants_renewal(self)) /* seldom; first, because tombstones never cease to come */
        renew_begin(self);
    if (self->stage == SK_STAGE_IDLE && dead > 0 &&
        (dead * 100 >= live || (flags & SK_INDEX_STEP_EAGER) != 0))
        enter_stage(self, SK_STAGE_MARK);
    if (self->stage == SK_STAGE_IDLE && self->wants_walk && (flags & SK_INDEX_STEP_EAGER) != 0)
        walk_begin(self);
}

static enum sk_err quantum(struct sk_index *self, unsigned flags, struct sk_diag *d)
{
    switch (self->stage) {
    case SK_STAGE_IDLE:
        start_something(self, flags);
        if (self->ivf != NULL && self->stage == SK_STAGE_IDLE)
            return sk_ivf_work(self, flags, &self->ivf->has_work, d);
        if (self->stage == SK_STAGE_IDLE && sk_recall_is_due(self))
            sk_recall_quantum(self);
        return SK_ERR_OK;
    case SK_STAGE_MARK:
        mark_slice(self);
        return SK_ERR_OK;
    case SK_STAGE_LINKS:
        return self->ivf != NULL ? lists_slice(self, d) : links_slice(self, d);
    case SK_STAGE_WAIT:
        if (epoch_has_passed(self))
            enter_stage(self, SK_STAGE_FREE);
        return SK_ERR_OK;
    case SK_STAGE_FREE:
        return free_slice(self, d);
    case SK_STAGE_REACH:
        return walk_slice(self, d);
    case SK_STAGE_ENCODE:
        encode_slice(self);
        return SK_ERR_OK;
    case SK_STAGE_PUBLISH:
        return publish_slice(self, d);
    case SK_STAGE_DISCARD:
        if (epoch_has_passed(self))
            discard(self);
        return SK_ERR_OK;
    }
    return SK_ERR_OK;
}

static bool is_waiting(struct sk_index *self)
{
    return ((self->stage == SK_STAGE_WAIT || self->stage == SK_STAGE_DISCARD) &&
            !epoch_has_passed(self)) ||
           (self->stage == SK_STAGE_PUBLISH && self->checkpoint.is_running);
}

enum sk_err sk_index_step(struct sk_index *self, uint64_t budget_us,
                          const struct sk_index_clock *clock, unsigned flags, bool *has_more,
                          struct sk_diag *d)
{
    const bool has_clock = clock != NULL && clock->mono_us != NULL;
    const uint64_t start_us = has_clock ? clock->mono_us(clock->impl) : 0;
    enum sk_err rc = SK_ERR_OK;
    *has_more = true;
    for (unsigned n = 0; rc == SK_ERR_OK; n++) {
        rc = quantum(self, flags, d);
        if (rc == SK_ERR_OK) /* at once: no search between may miss them */
            rc = sk_attach_orphans(self, d);
        if (self->stage == SK_STAGE_IDLE && self->orphans.count == 0 && !has_near_work(self, flags) &&
            !sk_recall_is_due(self) && (self->ivf == NULL || !self->ivf->has_work)) {
            *has_more = false;
            break;
        }
        if (is_waiting(self) || (has_clock ? clock->mono_us(clock->impl) - start_us >= budget_us
                                           : n + 1 >= QUANTA_WITHOUT_CLOCK))
            break;
    }
    if (rc != SK_ERR_OK)
        *has_more = false;
    return rc;
}

/* ---- at once, while no reader exists ---- */

enum sk_err sk_sweep_now(struct sk_index *self, struct sk_diag *d)
{
    enum sk_err rc = SK_ERR_OK;
    enter_stage(self, SK_STAGE_LINKS);
    while (self->stage != SK_STAGE_IDLE && rc == SK_ERR_OK)
        rc = quantum(self, 0, d);
    return rc == SK_ERR_OK ? sk_attach_orphans(self, d) : rc;
}

enum sk_err sk_renew_now(struct sk_index *self, uint32_t number, const float *mean,
                         struct sk_diag *d)
{
    struct sk_generation *next = sk_generation_new(self, number);
    if (next == NULL || !sk_generation_commit(self, next, sk_row_count(self))) {
        sk_generation_destroy(&next);
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a second set of codes");
    }
    memcpy(next->mean, mean, self->padded * sizeof *mean);
    self->next = next;
    enter_stage(self, SK_STAGE_ENCODE);
    while (self->stage == SK_STAGE_ENCODE)
        encode_slice(self);
    publish(self);
    discard(self);
    return SK_ERR_OK;
}
