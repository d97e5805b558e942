/* The graph's edges: choosing them (pruned), linking new rows, mending what deletes have hurt. */
#include "actors/shard-worker/index/internal.h"

#include <stdlib.h>

enum { REPAIR_CANDIDATES_MAX = 96 };

/* ---- choosing edges ---- */

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* From keys (distance to the node, rising): those that no nearer chosen one makes superfluous (Malkov and
 * Yashunin 2016, algorithm 4), then the nearest of the others until fill_to. Vamana's alpha (1.2) cost more
 * distances for the same recall on every set that was tried, with the list filled up as it is here. Equal vectors of a chosen one are never chosen: they
 * would crowd out the rest of the world. */
static uint32_t prune(const struct sk_index *self, const struct sk_generation *generation,
                      const uint64_t *keys, uint32_t count, uint32_t keep_max, uint32_t fill_to,
                      uint32_t *out)
{
    uint32_t kept = 0, passed_count = 0;
    uint32_t passed[SK_DEGREE_MAX];
    for (uint32_t i = 0; i < count && kept < keep_max; i++) {
        const uint32_t row = sk_key_row(keys[i]);
        const float distance = sk_key_distance(keys[i]);
        bool is_occluded = false, is_equal = false;
        for (uint32_t j = 0; j < kept && !is_occluded; j++) {
            float between = sk_distance_rows(self, generation, out[j], row);
            is_equal = between <= 0;
            is_occluded = is_equal || between < distance;
        }
        if (!is_occluded)
            out[kept++] = row;
        else if (!is_equal && passed_count < fill_to)
            passed[passed_count++] = row;
    }
    for (uint32_t i = 0; i < passed_count && kept < fill_to; i++)
        out[kept++] = passed[i];
    return kept;
}

static void prefetch_plane(const struct sk_index *self, const struct sk_generation *generation,
                           uint32_t row)
{
    if (!sk_has_planes(generation)) {
        sk_prefetch_code(self, generation, row);
        return;
    }
    sk_prefetch(sk_plane_of(self, generation, row), self->padded);
    sk_prefetch(sk_factors_of(generation, row), sizeof(struct sk_factors));
}

/* Distances of rows to `row` by the 8-bit codes, sorted. */
static void rank(const struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                 uint64_t *keys, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (i + 4 < count)
            prefetch_plane(self, generation, sk_key_row(keys[i + 4]));
        const uint32_t other = sk_key_row(keys[i]);
        keys[i] = sk_key(sk_distance_rows(self, generation, row, other), other);
    }
    qsort(keys, count, sizeof *keys, compare_keys);
}

/* ---- linking ---- */

static void add_back_edge(struct sk_index *self, const struct sk_generation *generation,
                          uint32_t node, uint32_t row)
{
    uint32_t list[SK_DEGREE_MAX + 1], chosen[SK_DEGREE_MAX + 1], final[SK_DEGREE_MAX];
    uint64_t keys[SK_DEGREE_MAX + 1];
    uint8_t mask[SK_DEGREE_MAX / 8] = {0};
    const uint32_t count = sk_links_get(self, node, list);
    for (uint32_t i = 0; i < count; i++)
        if (list[i] == row)
            return;
    if (count < self->degree) {
        sk_links_append(self, node, count, row);
        sk_delta_append(self, node, row);
        return;
    }
    list[count] = row;
    for (uint32_t i = 0; i <= count; i++)
        keys[i] = sk_key(0, list[i]);
    rank(self, generation, node, keys, count + 1);
    uint32_t chosen_count =
        prune(self, generation, keys, count + 1, self->prune_to, self->prune_to, chosen);
    bool has_row = false;
    uint32_t final_count = 0, spare = self->degree - chosen_count;
    for (uint32_t i = 0; i <= count; i++) {
        bool is_chosen = false;
        for (uint32_t j = 0; j < chosen_count && !is_chosen; j++)
            is_chosen = chosen[j] == list[i];
        /* Rows far from all others are in nobody's shortest list: what leads to them stays, or no walk
         * meets them (half of the misses on data without structure). */
        if (!is_chosen && spare > 0 && *sk_in_degree_of(self, list[i]) <= self->in_degree_kept) {
            is_chosen = true;
            spare--;
        }
        if (!is_chosen)
            continue;
        final[final_count++] = list[i];
        if (i < count)
            mask[i / 8] = (uint8_t)(mask[i / 8] | 1 << i % 8);
        else
            has_row = true;
    }
    sk_links_set(self, node, final, final_count);
    sk_delta_keep(self, node, mask, has_row ? row : SK_NO_ROW);
}

/* No neighbour wanted the row: the nearest one that can spare an edge gives it up. */
static bool force_back_edge(struct sk_index *self, uint32_t row, const uint32_t *nodes,
                            uint32_t count)
{
    uint32_t list[SK_DEGREE_MAX];
    for (uint32_t n = 0; n < count; n++) {
        uint32_t length = sk_links_get(self, nodes[n], list);
        if (length < self->degree) {
            sk_links_append(self, nodes[n], length, row);
            sk_delta_append(self, nodes[n], row);
            return true;
        }
        for (uint32_t i = length; i-- > 0;)
            if (*sk_in_degree_of(self, list[i]) > 1) {
                list[i] = row;
                sk_links_set(self, nodes[n], list, length);
                sk_delta_list(self, nodes[n]);
                return true;
            }
    }
    return false;
}

/* Fills self->candidates with the live rows near `row`, sorted by distance; returns how many. */
static SK_CHECKED enum sk_err find_candidates(struct sk_index *self,
                                              const struct sk_generation *generation, uint32_t row,
                                              uint32_t *count, struct sk_diag *d)
{
    const uint32_t ef = self->params.ef_construction;
    struct sk_beam beam = {
        .index = self, .generation = generation, .scratch = &self->scratch, .ef = ef};
    *count = 0;
    if (!sk_scratch_fit(&self->scratch, sk_row_count(self), ef, 1) ||
        !sk_scratch_fit_candidates(self, ef + SK_DEGREE_MAX + 1))
        return sk_fail(d, SK_ERR_NOMEM, "no memory to link row %u", row);
    sk_prepare_row(self, generation, row, &self->scratch.prepared);
    sk_beam_run(&beam);
    uint32_t found = 0;
    for (uint32_t i = 0; i < self->scratch.beam_count; i++) {
        uint32_t other = sk_key_row(self->scratch.beam[i]);
        if (other != row && sk_state(self, other) == SK_ROW_LIVE)
            self->candidates[found++] = sk_key(0, other);
    }
    rank(self, generation, row, self->candidates, found);
    *count = found;
    return SK_ERR_OK;
}

static void link_back(struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                      const uint32_t *chosen, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        add_back_edge(self, generation, chosen[i], row);
    if (count > 0 && *sk_in_degree_of(self, row) == 0 && !force_back_edge(self, row, chosen, count))
        self->wants_walk = true; /* tried again by the next walk */
}

/* ---- equal vectors ----
 * They are so many at one place that a beam holds nothing else. Each keeps the edges that lead away, and
 * one edge to the next of its kind: a chain, entered at the one that was found first. */

/* The first link of a row that is equal to it; the length of the list when there is none. */
static uint32_t chain_at(const struct sk_index *self, const struct sk_generation *generation,
                         uint32_t row, const uint32_t *list, uint32_t length)
{
    uint32_t at = 0;
    while (at < length && sk_distance_rows(self, generation, row, list[at]) > 0)
        at++;
    return at;
}

/* Adds the links of `first` to the candidates that are there, sorted again. */
static uint32_t add_links_of(struct sk_index *self, const struct sk_generation *generation,
                             uint32_t row, uint32_t first, uint32_t count)
{
    uint32_t list[SK_DEGREE_MAX];
    const uint32_t length = sk_links_get(self, first, list);
    const uint32_t before = count;
    for (uint32_t i = 0; i < length; i++) {
        bool is_new = list[i] != row && sk_state(self, list[i]) == SK_ROW_LIVE;
        for (uint32_t j = 0; j < before && is_new; j++)
            is_new = sk_key_row(self->candidates[j]) != list[i];
        if (is_new)
            self->candidates[count++] = sk_key(0, list[i]);
    }
    rank(self, generation, row, self->candidates, count);
    return count;
}

/* Puts row into the chain behind `first`; chosen are its links. */
static void link_chain(struct sk_index *self, const struct sk_generation *generation, uint32_t row,
                       uint32_t first, uint32_t *chosen, uint32_t count)
{
    uint32_t list[SK_DEGREE_MAX];
    uint32_t length = sk_links_get(self, first, list);
    uint32_t at = chain_at(self, generation, first, list, length);
    if (at < length) { /* the one behind it comes behind the new one */
        bool is_there = false;
        for (uint32_t i = 0; i < count && !is_there; i++)
            is_there = chosen[i] == list[at];
        if (!is_there && count == self->degree)
            chosen[count - 1] = list[at];
        else if (!is_there)
            chosen[count++] = list[at];
    } else if (length < self->degree) {
        length++;
    } else { /* the farthest of those that have another way in, else the farthest */
        at = length - 1;
        for (uint32_t i = length; i-- > 0;)
            if (*sk_in_degree_of(self, list[i]) > 1) {
                at = i;
                break;
            }
    }
    sk_links_set(self, row, chosen, count);
    sk_delta_insert(self, row);
    sk_state_set(self, row, SK_ROW_LIVE);
    list[at] = row;
    sk_links_set(self, first, list, length);
    sk_delta_list(self, first);
}

enum sk_err sk_graph_link(struct sk_index *self, uint32_t row, struct sk_diag *d)
{
    struct sk_generation *generation = sk_generation_now(self);
    uint32_t chosen[SK_DEGREE_MAX], candidate_count;
    enum sk_err rc = sk_delta_reserve(self, sk_delta_insert_bytes_max(self), d);
    if (rc == SK_ERR_OK)
        rc = find_candidates(self, generation, row, &candidate_count, d);
    if (rc != SK_ERR_OK)
        return rc;
    const bool has_equal = candidate_count > 0 && sk_key_distance(self->candidates[0]) <= 0;
    const uint32_t first = has_equal ? sk_key_row(self->candidates[0]) : SK_NO_ROW;
    if (has_equal)
        candidate_count = add_links_of(self, generation, row, first, candidate_count);
    uint32_t count = prune(self, generation, self->candidates, candidate_count, self->degree,
                           self->degree, chosen);
    if (has_equal) {
        link_chain(self, generation, row, first, chosen, count);
        return SK_ERR_OK;
    }
    sk_links_set(self, row, chosen, count);
    sk_delta_insert(self, row);
    sk_state_set(self, row, SK_ROW_LIVE);
    link_back(self, generation, row, chosen, count);
    return SK_ERR_OK;
}

/* Live links and the live links of the dead ones; true when they are enough to choose from. */
static bool repair_candidates(struct sk_index *self, uint32_t row, uint32_t *count)
{
    uint32_t list[SK_DEGREE_MAX], second[SK_DEGREE_MAX];
    const uint32_t length = sk_links_get(self, row, list);
    uint32_t found = 0;
    if (!sk_scratch_fit_candidates(self, REPAIR_CANDIDATES_MAX + SK_DEGREE_MAX) ||
        !sk_scratch_fit(&self->scratch, sk_row_count(self), 1, 1))
        return false;
    (void)sk_visit(&self->scratch, row);
    for (uint32_t i = 0; i < length; i++)
        if (sk_state(self, list[i]) == SK_ROW_LIVE && sk_visit(&self->scratch, list[i]))
            self->candidates[found++] = sk_key(0, list[i]);
    for (uint32_t i = 0; i < length; i++) {
        if (sk_state(self, list[i]) == SK_ROW_LIVE)
            continue;
        uint32_t second_length = sk_links_get(self, list[i], second);
        for (uint32_t j = 0; j < second_length && found < REPAIR_CANDIDATES_MAX; j++)
            if (sk_state(self, second[j]) == SK_ROW_LIVE && sk_visit(&self->scratch, second[j]))
                self->candidates[found++] = sk_key(0, second[j]);
    }
    sk_scratch_unvisit(&self->scratch);
    *count = found;
    return found >= self->degree / 2;
}

enum sk_err sk_graph_repair(struct sk_index *self, uint32_t row, struct sk_diag *d)
{
    struct sk_generation *generation = sk_generation_now(self);
    uint32_t old[SK_DEGREE_MAX], chosen[SK_DEGREE_MAX], count = 0;
    enum sk_err rc = sk_delta_reserve(self, sk_delta_insert_bytes_max(self), d);
    if (rc != SK_ERR_OK)
        return rc;
    if (repair_candidates(self, row, &count)) {
        rank(self, generation, row, self->candidates, count);
    } else {
        rc = find_candidates(self, generation, row, &count, d);
        if (rc != SK_ERR_OK)
            return rc;
    }
    uint32_t chosen_count =
        prune(self, generation, self->candidates, count, self->degree, self->prune_to, chosen);
    /* Old live links whose rows have no other way in stay. */
    const uint32_t old_count = sk_links_get(self, row, old);
    for (uint32_t i = 0; i < old_count && chosen_count < self->degree; i++) {
        bool is_needed =
            sk_state(self, old[i]) == SK_ROW_LIVE &&
            *sk_in_degree_of(self, old[i]) <= self->in_degree_kept;
        for (uint32_t j = 0; j < chosen_count && is_needed; j++)
            is_needed = chosen[j] != old[i];
        if (is_needed)
            chosen[chosen_count++] = old[i];
    }
    sk_links_set(self, row, chosen, chosen_count);
    sk_delta_list(self, row);
    return SK_ERR_OK;
}

/* When a walk finds nobody (tombstones are all around the entry): any live rows. */
static uint32_t any_candidates(struct sk_index *self, uint32_t row)
{
    const uint32_t row_count = sk_row_count(self);
    uint32_t found = 0;
    for (uint32_t other = 0; other < row_count && found < self->degree; other++)
        if (other != row && sk_state(self, other) == SK_ROW_LIVE)
            self->candidates[found++] = sk_key(0, other);
    return found;
}

enum sk_err sk_graph_attach(struct sk_index *self, uint32_t row, struct sk_diag *d)
{
    struct sk_generation *generation = sk_generation_now(self);
    uint32_t chosen[SK_DEGREE_MAX], near[SK_DEGREE_MAX], count, near_count = 0;
    enum sk_err rc = sk_delta_reserve(self, 2 * sk_delta_insert_bytes_max(self), d);
    if (rc == SK_ERR_OK)
        rc = find_candidates(self, generation, row, &count, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (count == 0)
        count = any_candidates(self, row);
    for (; near_count < count && near_count < self->degree; near_count++)
        near[near_count] = sk_key_row(self->candidates[near_count]);
    count = add_links_of(self, generation, row, row, count);
    uint32_t chosen_count =
        prune(self, generation, self->candidates, count, self->degree, self->prune_to, chosen);
    sk_links_set(self, row, chosen, chosen_count);
    sk_delta_list(self, row);
    bool is_linked = false;
    uint32_t list[SK_DEGREE_MAX];
    for (uint32_t i = 0; i < near_count; i++) {
        if (i < self->prune_to / 2)
            add_back_edge(self, generation, near[i], row);
        const uint32_t length = sk_links_get(self, near[i], list);
        for (uint32_t j = 0; j < length; j++)
            is_linked = is_linked || list[j] == row;
    }
    if (!is_linked && !force_back_edge(self, row, near, near_count))
        self->wants_walk = true; /* tried again by the next walk */
    return SK_ERR_OK;
}

/* An edge node -> row where there is room, or in the place of one that the walk's tree can spare. */
static bool bridge_from(struct sk_index *self, uint32_t node, uint32_t row)
{
    const struct sk_walk *walk = &self->walk;
    uint32_t list[SK_DEGREE_MAX];
    if (node >= walk->rows || walk->parents[node] == SK_NO_ROW)
        return false;
    const uint32_t length = sk_links_get(self, node, list);
    for (uint32_t i = 0; i < length; i++)
        if (list[i] == row)
            return true; /* it came after the walk was here */
    if (length < self->degree) {
        sk_links_append(self, node, length, row);
        sk_delta_append(self, node, row);
        return true;
    }
    for (uint32_t i = length; i-- > 0;)
        if (list[i] < walk->rows && walk->parents[list[i]] != SK_NO_ROW &&
            walk->parents[list[i]] != node) {
            list[i] = row;
            sk_links_set(self, node, list, length);
            sk_delta_list(self, node);
            return true;
        }
    return false;
}

enum sk_err sk_graph_bridge(struct sk_index *self, uint32_t row, uint32_t *from, struct sk_diag *d)
{
    struct sk_generation *generation = sk_generation_now(self);
    uint32_t chosen[SK_DEGREE_MAX], near[SK_DEGREE_MAX], count, near_count = 0;
    enum sk_err rc = sk_delta_reserve(self, 2 * sk_delta_insert_bytes_max(self), d);
    if (rc == SK_ERR_OK)
        rc = find_candidates(self, generation, row, &count, d);
    if (rc != SK_ERR_OK)
        return rc;
    for (; near_count < count && near_count < self->degree; near_count++)
        near[near_count] = sk_key_row(self->candidates[near_count]);
    count = add_links_of(self, generation, row, row, count);
    const uint32_t chosen_count =
        prune(self, generation, self->candidates, count, self->degree, self->prune_to, chosen);
    sk_links_set(self, row, chosen, chosen_count);
    sk_delta_list(self, row);
    for (uint32_t i = 0; i < near_count; i++)
        if (bridge_from(self, near[i], row)) {
            *from = near[i];
            return SK_ERR_OK;
        }
    /* those met last have no children in the tree: one of them always can */
    for (uint32_t i = self->walk.count; i-- > 0;)
        if (sk_state(self, self->walk.queue[i]) == SK_ROW_LIVE &&
            bridge_from(self, self->walk.queue[i], row)) {
            *from = self->walk.queue[i];
            return SK_ERR_OK;
        }
    *from = row; /* nothing was met at all: an entry is missing, and mended by the next sweep */
    return SK_ERR_OK;
}

/* ---- entries ---- */

static void entry_set(struct sk_index *self, uint32_t at, uint32_t row)
{
    atomic_store_explicit(&self->entries[at], row, memory_order_release);
    if (sk_delta_reserve(self, 16, NULL) == SK_ERR_OK)
        sk_delta_entry(self, at, row);
}

/* The first entry is the row nearest to the centre. */
void sk_entries_consider(struct sk_index *self, uint32_t row)
{
    const struct sk_generation *generation = sk_generation_now(self);
    uint32_t entry = atomic_load_explicit(&self->entries[0], memory_order_relaxed);
    if (entry == SK_NO_ROW || (sk_state(self, row) == SK_ROW_LIVE &&
                               sk_norm_sq_of(self, generation, row) <
                                   0.98F * sk_norm_sq_of(self, generation, entry)))
        entry_set(self, 0, row);
}

static uint32_t nearest_to_centre(const struct sk_index *self)
{
    const struct sk_generation *generation = sk_generation_now(self);
    const uint32_t row_count = sk_row_count(self);
    uint32_t best = SK_NO_ROW;
    for (uint32_t row = 0; row < row_count; row++)
        if (sk_state(self, row) == SK_ROW_LIVE &&
            (best == SK_NO_ROW ||
             sk_norm_sq_of(self, generation, row) < sk_norm_sq_of(self, generation, best)))
            best = row;
    return best;
}

/* Entries must not be rows that are about to go. */
void sk_entries_mend(struct sk_index *self)
{
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        uint32_t entry = atomic_load_explicit(&self->entries[at], memory_order_relaxed);
        if (entry == SK_NO_ROW || sk_state(self, entry) == SK_ROW_LIVE)
            continue;
        entry_set(self, at, at == 0 ? nearest_to_centre(self) : SK_NO_ROW);
    }
}

void sk_entries_renew(struct sk_index *self)
{
    if (self->params.kind == SK_INDEX_HNSW)
        entry_set(self, 0, nearest_to_centre(self));
}
