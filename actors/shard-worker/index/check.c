/* The checker: what must hold between rows, lists, in-degrees and counters. */
#include "actors/shard-worker/index/ivf.h"

#include <stdlib.h>

static enum sk_err check_list(const struct sk_index *self, uint32_t row, uint32_t *in_degrees,
                              struct sk_index_check_report *report, struct sk_diag *d)
{
    uint32_t list[SK_DEGREE_MAX];
    const uint32_t length = sk_links_get(self, row, list);
    const enum sk_row_state state = sk_state(self, row);
    if (state == SK_ROW_EMPTY && length > 0)
        return sk_fail(d, SK_ERR_INTERNAL, "row %u is free and has %u edges", row, length);
    for (uint32_t i = 0; i < length; i++) {
        if (list[i] >= sk_row_count(self) || list[i] == row)
            return sk_fail(d, SK_ERR_INTERNAL, "row %u has an edge to %u", row, list[i]);
        const enum sk_row_state target = sk_state(self, list[i]);
        if (target == SK_ROW_EMPTY && state != SK_ROW_SWEPT)
            return sk_fail(d, SK_ERR_INTERNAL, "row %u has an edge to free row %u", row, list[i]);
        for (uint32_t j = 0; j < i; j++)
            if (list[j] == list[i])
                return sk_fail(d, SK_ERR_INTERNAL, "row %u has two edges to %u", row, list[i]);
        in_degrees[list[i]]++;
        report->edges++;
        report->dead_edges += target == SK_ROW_DEAD || target == SK_ROW_SWEPT;
    }
    return SK_ERR_OK;
}

/* Rows that a walk over all edges meets, in queue[0..count). */
static uint32_t walk(const struct sk_index *self, uint8_t *is_seen, uint32_t *queue)
{
    uint32_t list[SK_DEGREE_MAX], count = 0;
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        uint32_t row = atomic_load(&self->entries[at]);
        if (row != SK_NO_ROW && is_seen[row] == 0) {
            is_seen[row] = 1;
            queue[count++] = row;
        }
    }
    for (uint32_t next = 0; next < count; next++) {
        uint32_t length = sk_links_get(self, queue[next], list);
        for (uint32_t i = 0; i < length; i++)
            if (is_seen[list[i]] == 0) {
                is_seen[list[i]] = 1;
                queue[count++] = list[i];
            }
    }
    return count;
}

static enum sk_err check_counts(const struct sk_index *self, const uint32_t *in_degrees,
                                struct sk_diag *d)
{
    const uint32_t row_count = sk_row_count(self);
    uint32_t live = 0, dead = 0;
    for (uint32_t row = 0; row < row_count; row++) {
        live += sk_state(self, row) == SK_ROW_LIVE;
        dead += sk_state(self, row) > SK_ROW_LIVE;
        if (self->degree > 0 && in_degrees[row] != *sk_in_degree_of(self, row))
            return sk_fail(d, SK_ERR_INTERNAL, "row %u has in-degree %u, counted %u", row,
                           *sk_in_degree_of(self, row), in_degrees[row]);
    }
    if (live != atomic_load(&self->live_count) || dead != atomic_load(&self->dead_count))
        return sk_fail(d, SK_ERR_INTERNAL, "%u live and %u dead rows, counters say %u and %u", live,
                       dead, atomic_load(&self->live_count), atomic_load(&self->dead_count));
    for (uint32_t at = 0; at < SK_ENTRY_COUNT; at++) {
        uint32_t row = atomic_load(&self->entries[at]);
        if (row != SK_NO_ROW && (row >= row_count || sk_state(self, row) == SK_ROW_EMPTY))
            return sk_fail(d, SK_ERR_INTERNAL, "entry %u is not a row", row);
    }
    return SK_ERR_OK;
}

enum sk_err sk_index_check(struct sk_index *self, struct sk_index_check_report *report,
                           struct sk_diag *d)
{
    const size_t row_count = sk_row_count(self);
    uint32_t *in_degrees = calloc(row_count + 1, sizeof *in_degrees);
    uint32_t *queue = malloc((row_count + 1) * sizeof *queue);
    uint8_t *is_seen = calloc(row_count + 1, 1);
    enum sk_err rc = SK_ERR_OK;
    *report = (struct sk_index_check_report){0};
    if (in_degrees == NULL || queue == NULL || is_seen == NULL) {
        rc = sk_fail(d, SK_ERR_NOMEM, "no memory to check an index");
        goto out;
    }
    for (uint32_t row = 0; row < row_count && rc == SK_ERR_OK; row++)
        rc = check_list(self, row, in_degrees, report, d);
    if (rc == SK_ERR_OK)
        rc = check_counts(self, in_degrees, d);
    if (rc == SK_ERR_OK && self->ivf != NULL)
        rc = sk_ivf_verify(self, false, d);
    if (rc == SK_ERR_OK)
        rc = sk_near_check(self, d);
    if (rc != SK_ERR_OK || self->params.kind != SK_INDEX_HNSW)
        goto out;
    (void)walk(self, is_seen, queue);
    for (uint32_t row = 0; row < row_count; row++)
        report->unreachable_rows += sk_state(self, row) == SK_ROW_LIVE && is_seen[row] == 0;
out:
    free(in_degrees);
    free(queue);
    free(is_seen);
    return rc;
}
