/* Declared payload fields over time: which of them have a whole index, and the work behind the rest. */
#include "actors/shard-worker/store/internal.h"

void sk_states_load(const struct sk_store *self, MDB_txn *txn, struct field_states *out)
{
    MDB_val key = sk_val("fields", 6), value;
    out->count = 0;
    if (mdb_get(txn, self->tables[T_META], &key, &value) != 0 || value.mv_size > sizeof out->at ||
        value.mv_size % sizeof out->at[0] != 0)
        return;
    memcpy(out->at, value.mv_data, value.mv_size);
    out->count = (unsigned)(value.mv_size / sizeof out->at[0]);
}

static enum sk_err states_put(struct sk_store *self, struct sk_diag *d)
{
    return sk_store_meta_put(self, "fields", self->states.at,
                             self->states.count * sizeof self->states.at[0], d);
}

enum sk_err sk_states_save(struct sk_store *self, struct sk_diag *d)
{
    struct sk_buffer packed = {0};
    sk_schema_encode(&packed, &self->schema);
    enum sk_err err = sk_buffer_check(&packed, d);
    if (err == SK_ERR_OK)
        err = sk_store_meta_put(self, "schema", packed.bytes, packed.size, d);
    sk_buffer_deinit(&packed);
    return err == SK_ERR_OK ? states_put(self, d) : err;
}

const struct field_state *sk_states_find(const struct field_states *self, uint16_t id)
{
    for (unsigned i = 0; i < self->count; i++)
        if (self->at[i].id == id)
            return &self->at[i];
    return NULL;
}

static void remove_at(struct field_states *self, unsigned at)
{
    self->count--;
    memmove(&self->at[at], &self->at[at + 1], (self->count - at) * sizeof self->at[0]);
}

/* Fields that are new get a state (ready where there are no records yet), those gone are dropped. */
void sk_states_follow(struct sk_store *self)
{
    struct field_states *states = &self->states;
    for (unsigned s = 0; s < states->count; s++) {
        bool is_declared = false;
        for (uint32_t i = 0; i < self->schema.field_count; i++)
            is_declared = is_declared || self->schema.fields[i].id == states->at[s].id;
        states->at[s].is_dropping = !is_declared;
    }
    for (uint32_t i = 0; i < self->schema.field_count; i++) {
        const struct sk_payload_field *field = &self->schema.fields[i];
        if (sk_states_find(states, field->id) != NULL || states->count == SK_COUNT_OF(states->at))
            continue;
        struct field_state fresh = {.id = field->id,
                                    .kind = (uint8_t)field->kind,
                                    .is_ready = self->counters.record_count == 0};
        memcpy(&states->at[states->count++], &fresh, sizeof fresh);
    }
}

enum sk_err sk_store_set_schema(struct sk_store *self, const struct sk_schema *schema,
                                struct sk_diag *d)
{
    enum sk_err err = sk_store_check_shape(self, schema, d);
    if (err == SK_ERR_OK)
        err = sk_store_begin(self, self->wall_us, true, d);
    if (err != SK_ERR_OK)
        return err;
    struct sk_schema before = self->schema;
    struct field_states states = self->states;
    self->schema = *schema;
    sk_states_follow(self);
    err = sk_states_save(self, d);
    if (err == SK_ERR_OK)
        err = sk_store_commit(self, d);
    if (err != SK_ERR_OK) {
        sk_store_abort(self);
        self->schema = before;
        self->states = states;
    }
    return err;
}

/* ---- the work behind ---- */

static bool needs_work(const struct field_state *state)
{
    return state->is_dropping || !state->is_ready;
}

static unsigned first_of_work(const struct field_states *self)
{
    unsigned at = 0;
    while (at < self->count && !needs_work(&self->at[at]))
        at++;
    return at;
}

static enum sk_err drop_some(struct sk_store *self, unsigned at, uint32_t budget, struct sk_diag *d)
{
    enum sk_err err = sk_index_drop_field(self, self->states.at[at].id, &budget, d);
    if (err == SK_ERR_OK && budget > 0) {
        remove_at(&self->states, at);
        sk_states_follow(self); /* one that waited for a place among the states */
    }
    return err;
}

static enum sk_err build_some(struct sk_store *self, unsigned at, uint32_t rows_max, struct sk_diag *d)
{
    struct field_state *state = &self->states.at[at];
    const struct sk_payload_field *field = NULL;
    MDB_cursor *cursor = NULL;
    MDB_val value, key = sk_val(&state->next_row, sizeof state->next_row);
    uint32_t row = state->next_row;
    for (uint32_t i = 0; i < self->schema.field_count; i++)
        if (self->schema.fields[i].id == state->id)
            field = &self->schema.fields[i];
    SK_CHECK(field != NULL); /* else it would be dropping */
    int rc = mdb_cursor_open(self->txn, self->tables[T_RECORDS], &cursor);
    if (rc != 0)
        return sk_store_fail(self, rc, "records", d);
    enum sk_err err = SK_ERR_OK;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (uint32_t n = 0; rc == 0 && n < rows_max && err == SK_ERR_OK; n++) {
        struct record_view view;
        memcpy(&row, key.mv_data, sizeof row);
        err = sk_record_parse(&view, value, row, d);
        if (err == SK_ERR_OK)
            err = sk_index_row_field(self, field, row, view.payload, true, d);
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    if (err != SK_ERR_OK)
        return err;
    if (rc != 0 && rc != MDB_NOTFOUND)
        return sk_store_fail(self, rc, "records", d);
    state->is_ready = rc == MDB_NOTFOUND;
    state->next_row = row + 1;
    return SK_ERR_OK;
}

enum sk_err sk_store_index_step(struct sk_store *self, uint64_t wall_us, uint32_t rows_max,
                                bool *has_more, struct sk_diag *d)
{
    unsigned at = first_of_work(&self->states);
    *has_more = false;
    if (at == self->states.count)
        return SK_ERR_OK;
    enum sk_err err = sk_store_begin(self, wall_us, true, d);
    if (err != SK_ERR_OK)
        return err;
    struct field_states before = self->states;
    uint32_t budget = rows_max == 0 ? 1 : rows_max;
    err = self->states.at[at].is_dropping ? drop_some(self, at, budget, d)
                                          : build_some(self, at, budget, d);
    if (err == SK_ERR_OK)
        err = states_put(self, d);
    if (err == SK_ERR_OK)
        err = sk_store_commit(self, d);
    if (err != SK_ERR_OK) {
        sk_store_abort(self);
        self->states = before;
        return err;
    }
    *has_more = first_of_work(&self->states) < self->states.count;
    return SK_ERR_OK;
}
