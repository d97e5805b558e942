/* An index whose collection was altered: what of it can stay, and what is made anew behind. */
#include "actors/shard-worker/internal.h"

/* Neither a graph nor lists: the store is scanned. */
bool field_is_scanned(const struct field *field)
{
    return field->schema.index == SK_SCHEMA_FLAT || field->schema.dim < SK_INDEX_GRAPH_DIM_MIN;
}

static bool is_same_index(const struct sk_vector_field *a, const struct sk_vector_field *b)
{
    return a->index == b->index && a->m == b->m && a->ef_construction == b->ef_construction &&
           a->profile == b->profile && a->nlist == b->nlist && a->pq_m == b->pq_m &&
           a->refine == b->refine;
}

/* Links or codes of another kind: nothing of the index can stay. A profile is derived from an image of any
 * other, and what is left changes no row. */
static bool wants_heir(const struct sk_vector_field *a, const struct sk_vector_field *b)
{
    return a->index != b->index || a->m != b->m || a->nlist != b->nlist || a->pq_m != b->pq_m;
}

void field_take_schema(struct field *field, const struct sk_vector_field *next, bool has_other_budget)
{
    const struct sk_vector_field before = field->schema;
    bool was_altering = field->is_altering;
    field->schema = *next;
    if (is_same_index(&before, next) && !has_other_budget)
        return;
    if (field_is_scanned(field)) {
        field_scan(field);
    } else if (field->state == FIELD_READY &&
               (was_altering || field->is_image_gone || wants_heir(&before, next))) {
        sk_index_destroy(&field->heir); /* no reader has seen it */
        field->heir_lseq = 0;
        field->is_altering = true;
        field->note[0] = '\0';
        saving_forget(field); /* a start after a crash begins with what the schema says then */
        field_set_state(field, FIELD_READY);
    } else {
        field_reload(field);
    }
}

/* ---- the heir ---- */

/* Nobody has both for long where memory is short: scans serve until the heir is complete. */
static bool is_over_budget(const struct field *field)
{
    struct sk_index_stats old, new;
    uint64_t budget = field_params(field).memory_bytes_max;
    sk_index_get_stats(field->index, &old);
    sk_index_get_stats(field->heir, &new);
    return budget != 0 && old.memory_bytes + new.memory_bytes > budget;
}

/* The index from before waits for the reads that hold it. */
static void put_aside(struct writer *writer, struct field *field)
{
    SK_CHECK(writer->retired_indexes[field->at] == NULL);
    atomic_store_explicit(&field->serving, NULL, memory_order_release);
    sk_pending_clear(&field->pending); /* the heir has these rows, or will have them before it serves */
    writer->retired_indexes[field->at] = field->index;
    field->index = field->heir;
    field->heir = NULL;
    field->is_altering = false;
    field->has_more = true;
    field->has_dead = true;
    field->checkpoint_rest_us = 0; /* until there is one a start builds it again */
    field->changed_us = now_us(writer->worker);
}

static enum sk_err heir_begin(struct field *field, struct sk_diag *d)
{
    const struct sk_index_params params = field_params(field);
    const struct sk_index_source source = {field, field_fetch_row};
    field->heir_lseq = 0;
    return sk_index_new(&field->heir, &params, &source, d);
}

/* Nothing of it is kept on disk before it serves; the first image has it all. */
static void forget_changes(struct field *field)
{
    struct sk_span delta;
    uint64_t watermark;
    uint32_t rows[256]; /* is_let_go() asks the index itself */
    while (sk_index_reclaim_rows(field->heir, rows, SK_COUNT_OF(rows)) != 0)
        continue;
    sk_index_take_delta(field->heir, &delta, &watermark);
}

static uint64_t clock_us(void *impl)
{
    return now_us(impl);
}

enum sk_err heir_slice(struct writer *writer, struct field *field, uint64_t end_us, struct sk_diag *d)
{
    const struct sk_index_clock clock = {writer->worker, clock_us};
    bool is_complete = false, has_more = false;
    enum sk_err rc = field->heir != NULL ? SK_ERR_OK : heir_begin(field, d);
    if (rc == SK_ERR_OK)
        rc = field_link_births(writer, field, field->heir, &field->heir_lseq, end_us, &is_complete,
                               d);
    if (field->heir == NULL)
        return rc;
    if (rc == SK_ERR_OK || rc == SK_ERR_BUSY) { /* BUSY: a number that a step lets go of */
        uint64_t budget_us = writer->worker->config.index_slice_us / 8;
        const unsigned flags = (rc == SK_ERR_BUSY ? SK_INDEX_STEP_EAGER : 0U) |
                               (is_complete ? 0U : SK_INDEX_STEP_BULK);
        rc = sk_index_step(field->heir, budget_us, &clock, flags, &has_more, d);
    }
    forget_changes(field);
    if (rc == SK_ERR_NOMEM || (rc == SK_ERR_OK && !is_complete && is_over_budget(field))) {
        put_aside(writer, field);
        field->built_lseq = field->heir_lseq;
        field_set_state(field, FIELD_BUILDING);
        return SK_ERR_OK;
    }
    if (rc == SK_ERR_OK && is_complete) {
        put_aside(writer, field);
        field_become_ready(writer, field);
    }
    return rc;
}
