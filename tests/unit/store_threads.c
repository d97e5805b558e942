/* links: sk_store sk_proto Threads::Threads */
/* Readers on their own threads beside the one writer: every snapshot is a state that was committed. */
#include "tests/unit/store_world.h"

#include <pthread.h>
#include <stdatomic.h>

enum { READERS = 3, RECORDS = 64, COMMITS = 150, DIM = 32 };

struct reading {
    struct world *w;
    atomic_bool *is_over;
    unsigned snapshots;
    const char *failure; /* cmocka's asserts belong to the main thread */
};

/* In one commit every record gets the same number, or is deleted: a snapshot holds one number. */
static const char *look_once(struct world *w, struct sk_store_reader *reader)
{
    const char *failure = NULL;
    struct sk_diag d;
    struct sk_selection all = {0}, below = {0};
    float wanted[DIM];
    char key[] = "n";
    struct sk_filter filter = {.kind = SK_FILTER_EXISTS, .key = key, .u.exists = true};
    int64_t number = -1;
    uint64_t found = 0;
    if (sk_store_read_begin(reader, w->wall_us, &d) != SK_ERR_OK)
        return "read_begin";
    if (sk_store_select(reader, NULL, &all, &d) != SK_ERR_OK ||
        sk_store_select(reader, &filter, &below, &d) != SK_ERR_OK)
        failure = "select";
    else if (all.count != below.count)
        failure = "the payload index and the records are of two snapshots";
    for (uint64_t id = 0; id < RECORDS && failure == NULL; id++) {
        struct sk_id name = sk_id_from_u64(id);
        struct sk_record record;
        struct sk_span value;
        struct sk_typed typed;
        uint32_t row;
        enum sk_err err = sk_store_find(reader, &name, &row, &d);
        if (err == SK_ERR_NOT_FOUND)
            continue;
        if (err != SK_ERR_OK || sk_store_record(reader, row, &record, &d) != SK_ERR_OK ||
            !sk_payload_find(record.payload, "n", &value) ||
            !sk_typed_from(SK_PAYLOAD_INTEGER, value, &typed)) {
            failure = "find";
            break;
        }
        found++;
        if (number >= 0 && typed.i64 != number)
            failure = "two numbers in one snapshot";
        number = typed.i64;
        world_vector(wanted, DIM, (uint64_t)number);
        const float *vector = sk_store_vector(reader, 0, row);
        if (vector == NULL || memcmp(vector, wanted, sizeof wanted) != 0)
            failure = "the vector of another life";
        if (!sk_selection_has(&all, row))
            failure = "a record that no selection has";
    }
    if (failure == NULL && found != all.count)
        failure = "ids and selection differ";
    sk_selection_deinit(&all);
    sk_selection_deinit(&below);
    sk_store_read_end(reader);
    return failure;
}

static void *read_on(void *impl)
{
    struct reading *self = impl;
    struct sk_store_reader *reader = NULL;
    struct sk_diag d;
    if (sk_store_reader_new(&reader, self->w->store, &d) != SK_ERR_OK)
        self->failure = "reader_new";
    while (self->failure == NULL && !atomic_load(self->is_over)) {
        self->failure = look_once(self->w, reader);
        self->snapshots++;
    }
    sk_store_reader_destroy(&reader);
    return NULL;
}

static void every_snapshot_is_one_that_was_committed(void **state)
{
    struct world world, *w = &world;
    pthread_t threads[READERS];
    struct reading readings[READERS];
    atomic_bool is_over = false;
    bool has_more;
    (void)state;
    world_init(w, NULL, DIM);
    world_field(w, "n", SK_PAYLOAD_INTEGER);
    world_open(w);
    world_begin(w);
    for (uint64_t id = 0; id < RECORDS; id++)
        (void)world_upsert(w, id, 0);
    world_commit(w);
    world_field(w, "late", SK_PAYLOAD_KEYWORD);
    assert_ok(sk_store_set_schema(w->store, &w->schema, &w->d));
    for (unsigned i = 0; i < READERS; i++) {
        readings[i] = (struct reading){.w = w, .is_over = &is_over};
        assert_int_equal(pthread_create(&threads[i], NULL, read_on, &readings[i]), 0);
    }
    for (uint64_t number = 1; number <= COMMITS; number++) {
        world_begin(w);
        for (uint64_t id = 0; id < RECORDS; id++) {
            struct sk_change change = (id + number) % 9 == 0 ? world_delete(w, id)
                                                             : world_upsert(w, id, number);
            if (change.has_old) /* no index here that keeps it */
                assert_ok(sk_store_release_row(w->store, change.old_row, &w->d));
        }
        number % 10 == 0 ? sk_store_abort(w->store) : world_commit(w);
        assert_ok(sk_store_index_step(w->store, w->wall_us, 3, &has_more, &w->d));
    }
    atomic_store(&is_over, true);
    for (unsigned i = 0; i < READERS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        if (readings[i].failure != NULL)
            fail_msg("reader %u: %s", i, readings[i].failure);
        assert_true(readings[i].snapshots > 0);
    }
    world_verify(w, 0);
    world_deinit(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_snapshot_is_one_that_was_committed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
