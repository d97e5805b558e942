/* The graph, one layer: the scratch of a walk, and walking. */
#include "actors/shard-worker/index/recall.h"

#include <stdlib.h>

enum { DEADLINE_HOPS = 32 };

/* ---- scratch ---- */

bool sk_scratch_init(struct sk_scratch *self, const struct sk_index *index)
{
    const uint32_t n = index->padded;
    *self = (struct sk_scratch){0};
    self->prepared.vector = malloc(n * sizeof *self->prepared.vector);
    self->prepared.narrow = malloc(n * sizeof *self->prepared.narrow);
    self->prepared.wide = malloc(n * sizeof *self->prepared.wide);
    self->raw = malloc(n * sizeof *self->raw);
    if (index->ivf != NULL && !sk_ivf_scratch_init(self, index)) {
        sk_scratch_deinit(self);
        return false;
    }
    if (self->prepared.vector != NULL && self->prepared.narrow != NULL &&
        self->prepared.wide != NULL && self->raw != NULL)
        return true;
    sk_scratch_deinit(self);
    return false;
}

void sk_scratch_deinit(struct sk_scratch *self)
{
    free(self->visited);
    free(self->touched);
    free(self->beam);
    free(self->heap);
    free(self->keys);
    free(self->values);
    free(self->prepared.vector);
    free(self->prepared.narrow);
    free(self->prepared.wide);
    free(self->raw);
    free(self->luts);
    free(self->ivf_luts);
    free(self->ivf_tables);
    *self = (struct sk_scratch){0};
}

static bool fit_visited(struct sk_scratch *self, uint32_t row_count)
{
    uint32_t words = row_count / 64 + 1;
    if (words <= self->visited_words)
        return true;
    words += words / 4;
    uint64_t *visited = calloc(words, sizeof *visited);
    uint32_t *touched = malloc((words + 1) * sizeof *touched); /* sk_gather writes one ahead */
    if (visited == NULL || touched == NULL) {
        free(visited);
        free(touched);
        return false;
    }
    free(self->visited);
    free(self->touched);
    self->visited = visited;
    self->touched = touched;
    self->visited_words = words;
    self->touched_count = 0;
    return true;
}

static bool fit_u64(uint64_t **array, uint32_t *capacity, uint32_t wanted)
{
    if (wanted <= *capacity)
        return true;
    uint64_t *grown = realloc(*array, (size_t)wanted * sizeof **array);
    if (grown == NULL)
        return false;
    *array = grown;
    *capacity = wanted;
    return true;
}

bool sk_scratch_fit(struct sk_scratch *self, uint32_t row_count, uint32_t beam, uint32_t keys)
{
    if (keys > self->keys_capacity) {
        float *values = realloc(self->values, (size_t)keys * sizeof *values);
        if (values == NULL)
            return false;
        self->values = values;
    }
    return fit_visited(self, row_count) && fit_u64(&self->beam, &self->beam_capacity, beam + 1) &&
           fit_u64(&self->keys, &self->keys_capacity, keys);
}

bool sk_scratch_fit_heap(struct sk_scratch *self, uint32_t count)
{
    return count <= self->heap_capacity ||
           fit_u64(&self->heap, &self->heap_capacity, count + count / 2);
}

bool sk_scratch_fit_candidates(struct sk_index *self, uint32_t count)
{
    return fit_u64(&self->candidates, &self->candidates_capacity, count);
}

void sk_scratch_unvisit(struct sk_scratch *self)
{
    for (uint32_t i = 0; i < self->touched_count; i++)
        self->visited[self->touched[i]] = 0;
    self->touched_count = 0;
}

bool sk_deadline_passed(const struct sk_deadline *deadline)
{
    return deadline->clock != NULL && deadline->clock->mono_us != NULL &&
           deadline->clock->mono_us(deadline->clock->impl) > deadline->at_us;
}

/* ---- walking ---- */

/* Puts the key where it belongs among the ef best; returns its place, ef when it is too far. */
static inline uint32_t beam_insert(struct sk_scratch *scratch, uint32_t ef, uint64_t key)
{
    uint64_t *beam = scratch->beam;
    uint32_t count = scratch->beam_count;
    if (count == ef) {
        if (key >= beam[ef - 1])
            return ef;
        count--;
    } else {
        scratch->beam_count++;
    }
    /* Where it goes cannot be predicted: halves are taken by arithmetic, not by branches. */
    uint32_t low = 0;
    for (uint32_t left = count; left > 0;) {
        const uint32_t half = (left + 1) / 2;
        low += beam[low + half - 1] < key ? half : 0;
        left -= half;
    }
    memmove(beam + low + 1, beam + low, (count - low) * sizeof *beam);
    beam[low] = key;
    return low;
}

void sk_beam_push(struct sk_scratch *scratch, uint32_t ef, uint64_t key)
{
    (void)beam_insert(scratch, ef, key);
}

static inline void prefetch_links(const struct sk_index *self, uint32_t row)
{
    sk_prefetch(self->links.base + (size_t)row * self->links_stride * sizeof(uint32_t),
                self->degree * sizeof(uint32_t));
}

/* The neighbours of a row that were not seen before. Whether one was cannot be predicted (about two in
 * three were), so every id is written and only the count decides whether it stays. */
uint32_t sk_gather(const struct sk_index *self, const struct sk_generation *generation,
                   struct sk_scratch *scratch, uint32_t row, uint32_t *fresh)
{
    const _Atomic uint32_t *links = sk_links_of(self, row);
    const uint32_t visited_rows = scratch->visited_words * 64;
    uint64_t *visited = scratch->visited;
    uint32_t *touched = scratch->touched;
    uint32_t touched_count = scratch->touched_count, count = 0;
    for (uint32_t i = 0; i < self->degree; i++) {
        const uint32_t id = atomic_load_explicit(&links[i], memory_order_acquire);
        if (id >= visited_rows) { /* the end, or a row newer than this search's scratch */
            if (id == SK_NO_ROW)
                break;
            continue;
        }
        const uint64_t word = visited[id / 64], bit = 1ULL << id % 64;
        touched[touched_count] = id / 64;
        touched_count += word == 0;
        visited[id / 64] = word | bit;
        fresh[count] = id;
        count += (word & bit) == 0;
    }
    scratch->touched_count = touched_count;
    for (uint32_t i = 0; i < count; i++)
        sk_prefetch_first(self, generation, fresh[i]);
    return count;
}

/* The node that is expanded next, its links asked for: the nearest that was not. */
static void pick(struct sk_beam *self)
{
    const struct sk_scratch *scratch = self->scratch;
    uint32_t end;
    self->row = SK_NO_ROW;
    do {
        end = self->level == 0 || self->level > scratch->beam_count ? scratch->beam_count : self->level;
        while (self->cursor < end && (scratch->beam[self->cursor] & 1) != 0)
            self->cursor++;
    } while (self->cursor >= end && self->recall != NULL && sk_recall_widen(self));
    if (self->cursor >= end)
        return;
    if (++self->counters.hops % DEADLINE_HOPS == 0 && sk_deadline_passed(&self->deadline)) {
        self->is_truncated = true;
        return;
    }
    self->row = sk_key_row(scratch->beam[self->cursor]);
    scratch->beam[self->cursor] |= 1;
}

void sk_beam_begin(struct sk_beam *self)
{
    struct sk_scratch *scratch = self->scratch;
    sk_scratch_unvisit(scratch);
    scratch->beam_count = 0;
    self->next = SK_BEAM_LINKS;
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        uint32_t row = atomic_load_explicit(&self->index->entries[at], memory_order_acquire);
        if (row == SK_NO_ROW || row / 64 >= scratch->visited_words || !sk_visit(scratch, row))
            continue;
        self->counters.distances++;
        beam_insert(scratch, self->ef,
                    sk_key(sk_distance_short(self->index, self->generation, &scratch->prepared, row),
                           row));
    }
    pick(self);
    if (self->row != SK_NO_ROW)
        prefetch_links(self->index, self->row);
}

static void take(struct sk_beam *self)
{
    float distances[SK_DEGREE_MAX];
    sk_distances_short(self->index, self->generation, &self->scratch->prepared, self->fresh,
                       self->fresh_count, distances);
    for (uint32_t i = 0; i < self->fresh_count; i++) {
        const uint32_t at =
            beam_insert(self->scratch, self->ef, sk_key(distances[i], self->fresh[i]));
        if (at == self->ef)
            continue;
        prefetch_links(self->index, self->fresh[i]);
        if (at < self->cursor)
            self->cursor = at;
    }
}

void sk_beam_turn(struct sk_beam *self)
{
    const struct sk_scratch *scratch = self->scratch;
    switch (self->next) {
    case SK_BEAM_LINKS:
        self->fresh_count =
            sk_gather(self->index, self->generation, self->scratch, self->row, self->fresh);
        self->counters.distances += self->fresh_count;
        self->next = self->index->part_bytes[SK_PART_SKETCHES] > 0 ? SK_BEAM_SKETCHES : SK_BEAM_CODES;
        break;
    case SK_BEAM_SKETCHES:
        self->fresh_count = sk_sift(self->index, self->generation, &scratch->prepared, self->fresh,
                                    self->fresh_count, sk_beam_worst(scratch, self->ef));
        self->next = SK_BEAM_CODES;
        break;
    case SK_BEAM_CODES:
        take(self);
        pick(self);
        self->next = SK_BEAM_LINKS;
        break;
    }
}

void sk_beam_end(struct sk_beam *self)
{
    sk_scratch_unvisit(self->scratch);
}

void sk_beam_run(struct sk_beam *self)
{
    sk_beam_begin(self);
    while (self->row != SK_NO_ROW)
        sk_beam_turn(self);
    sk_beam_end(self);
}
