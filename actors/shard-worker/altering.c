/* An index whose collection was altered: what of it can stay, and what is made anew behind. */
#include "actors/shard-worker/internal.h"

#include <string.h>

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

void field_take_schema(struct field *field, const struct sk_vector_field *next, bool has_other_budget)
{
    bool is_same = is_same_index(&field->schema, next);
    field->schema = *next;
    if (is_same && !has_other_budget)
        return;
    if (field_is_scanned(field))
        field_scan(field);
    else
        field_reload(field);
}
