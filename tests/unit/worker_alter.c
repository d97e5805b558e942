/* links: sk_worker sk_store sk_index sk_proto sk_kernels Threads::Threads */
/* An index that is altered while the shard is read and written. */
#include "tests/unit/worker_requests.h"

/* Found of the true ten, over some queries. */
static double recall(struct world *w, bool *was_exact)
{
    unsigned found = 0;
    enum { QUERIES = 10 };
    *was_exact = true;
    for (unsigned q = 0; q < QUERIES; q++) {
        uint64_t wanted[10], got[10];
        struct asked exact = search_of(0, 1000000 + q, 3, 10);
        sk_put_bool(key(&exact, "exact"), true);
        struct sk_reply reply = ask_ok(w, exact);
        assert_int_equal(ids_of(&reply, "hits", wanted, NULL), 10);
        reply = ask_ok(w, search_of(0, 1000000 + q, 3, 10));
        *was_exact = *was_exact && bool_of(&reply, "exact");
        assert_int_equal(ids_of(&reply, "hits", got, NULL), 10);
        for (unsigned i = 0; i < 10; i++)
            for (unsigned j = 0; j < 10; j++)
                found += got[i] == wanted[j];
    }
    return found / (10.0 * QUERIES);
}

static struct world *filled_world(struct sk_schema **schema)
{
    struct world *w = world_new();
    w->config.flat_below = 100;
    w->config.index_slice_us = 200;
    *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 3000; id += 500)
        upsert(w, 0, id, 500, 1);
    wait_indexed(w, 0);
    return w;
}

/* One job of the writer lane. */
static void step(struct world *w)
{
    struct sk_job *job = w->held;
    if (job == NULL)
        pass(w, 1000);
    job = w->held;
    if (job == NULL)
        return;
    w->held = NULL;
    job->run(job);
    sk_worker_on_job_done(w->worker, job);
}

/* Answered while index work goes on in between: a job of the writer lane at a time. */
static struct sk_reply ask_between(struct world *w, struct asked asked)
{
    struct sk_reply reply = {0};
    uint64_t request = post(w, &asked);
    for (unsigned i = 0; i < 100 && !reply_of(w, request, &reply); i++)
        step(w);
    assert_true(reply.is_ok);
    return reply;
}

static void assert_state(struct world *w, const char *wanted)
{
    char state[16];
    state_of(w, 0, state);
    assert_string_equal(state, wanted);
}

static void alter(struct world *w, struct sk_schema *schema)
{
    schema->version++;
    publish(w);
}

static uint64_t index_bytes(const struct world *w)
{
    struct sk_worker_status status;
    sk_worker_get_status(w->worker, &status);
    return status.index_bytes;
}

static void the_index_before_serves_until_its_heir_is_whole(void **unused)
{
    (void)unused;
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    bool was_exact;
    uint64_t before = index_bytes(w);
    w->is_holding = true;
    schema->vectors[0].m = 24;
    alter(w, schema);
    assert_state(w, "altering");
    assert_true(recall(w, &was_exact) >= 0.8);
    assert_false(was_exact); /* through the graph */
    for (unsigned i = 0; i < 3; i++)
        step(w);
    assert_state(w, "altering");
    assert_true(recall(w, &was_exact) >= 0.8);
    assert_false(was_exact);
    /* written, replaced and deleted while it is built */
    unsigned rounds = 0;
    for (uint64_t id = 0; id < 40; id++) {
        char state[16];
        uint64_t dead = id * 3, found[1];
        ask_between(w, upsert_of(0, 7000 + id, 5, 1));
        ask_between(w, upsert_of(0, 200 + id * 2, 2, 5));
        ask_between(w, with_ids("delete", 0, &dead, 1));
        struct sk_reply reply = ask_ok(w, search_of(0, 7000 + id, 1, 1));
        assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
        assert_int_equal(found[0], 7000 + id);
        reply = ask_ok(w, search_of(0, dead, 1, 1));
        assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
        assert_int_not_equal(found[0], dead);
        state_of(w, 0, state);
        rounds += strcmp(state, "altering") == 0;
        check(w); /* the held job has not begun */
    }
    assert_true(rounds > 5);
    release(w);
    wait_indexed(w, 0);
    assert_state(w, "ready");
    assert_true(recall(w, &was_exact) >= 0.9);
    assert_false(was_exact);
    check(w);
    assert_true(index_bytes(w) > before); /* three times the links */
    pass(w, 20000000);
    check(w);
    /* the image that a start reads is the new one's */
    crash(w);
    w->is_holding = true;
    start(w);
    assert_true(recall(w, &was_exact) == 1.0);
    assert_true(was_exact);
    release(w);
    wait_indexed(w, 0);
    assert_true(recall(w, &was_exact) >= 0.9);
    check(w);
    world_free(w);
}

static void a_crash_in_the_middle_begins_again_behind_scans(void **unused)
{
    (void)unused;
    struct sk_schema *schema;
    for (unsigned turns = 0; turns < 60; turns += 12) {
        struct world *w = filled_world(&schema);
        bool was_exact;
        w->is_holding = true;
        schema->vectors[0].m = 20;
        alter(w, schema);
        for (unsigned i = 0; i < turns; i++)
            step(w);
        assert_true(recall(w, &was_exact) >= 0.8);
        crash(w);
        start(w);
        assert_true(has_record(w, 0, 2999, 1));
        wait_indexed(w, 0);
        assert_state(w, "ready");
        assert_true(recall(w, &was_exact) >= 0.9);
        check(w);
        world_free(w);
    }
}

static void an_index_may_become_flat_and_a_graph_again(void **unused)
{
    (void)unused;
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    bool was_exact;
    schema->vectors[0].index = SK_SCHEMA_FLAT;
    alter(w, schema);
    wait_indexed(w, 0);
    assert_state(w, "flat");
    assert_true(recall(w, &was_exact) == 1.0);
    assert_true(was_exact);
    assert_true(index_bytes(w) == 0);
    uint64_t dead = 7;
    ask_ok(w, with_ids("delete", 0, &dead, 1));
    upsert(w, 0, 9000, 10, 1);
    crash(w);
    start(w);
    wait_indexed(w, 0);
    assert_state(w, "flat");
    schema->vectors[0].index = SK_SCHEMA_HNSW;
    alter(w, schema);
    wait_indexed(w, 0);
    assert_state(w, "ready");
    assert_true(recall(w, &was_exact) >= 0.9);
    assert_false(was_exact);
    assert_false(has_record(w, 0, 7, 1));
    check(w);
    world_free(w);
}

static void altering_again_begins_again(void **unused)
{
    (void)unused;
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    bool was_exact;
    for (uint32_t m = 10; m < 18; m++) {
        schema->vectors[0].m = m;
        if (m == 14)
            schema->vectors[0].ef_construction = 80; /* alone it would change the index in place */
        alter(w, schema);
        upsert(w, 0, 9000 + m, 1, 1);
    }
    schema->vectors[0].ef_construction = 90;
    alter(w, schema);
    wait_indexed(w, 0);
    assert_state(w, "ready");
    assert_true(recall(w, &was_exact) >= 0.9);
    check(w);
    /* and now it does: the graph stays */
    schema->vectors[0].ef_construction = 100;
    pass(w, 20000000);
    alter(w, schema);
    wait_indexed(w, 0);
    assert_true(recall(w, &was_exact) >= 0.9);
    check(w);
    world_free(w);
}

/* Codes and rows of a profile come from the image of any other: nothing is built again. */
static void a_profile_changes_in_place(void **unused)
{
    (void)unused;
    static const enum sk_schema_profile profiles[] = {SK_SCHEMA_SPEED,    SK_SCHEMA_MEMORY,
                                                      SK_SCHEMA_BALANCED, SK_SCHEMA_MEMORY,
                                                      SK_SCHEMA_SPEED,    SK_SCHEMA_BALANCED};
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    bool was_exact;
    for (size_t i = 0; i < SK_COUNT_OF(profiles); i++) {
        char note[160];
        upsert(w, 0, 3000 + i * 50, 50, 1); /* in deltas or pending, not in the image */
        uint64_t dead = i;
        ask_ok(w, with_ids("delete", 0, &dead, 1));
        if (i % 2 == 0)
            pass(w, 20000000);
        schema->vectors[0].profile = profiles[i];
        alter(w, schema);
        wait_indexed(w, 0);
        assert_state(w, "ready");
        index_text_of(w, 0, "note", note, sizeof note);
        assert_string_equal(note, "");
        assert_true(recall(w, &was_exact) >= 0.8);
        assert_false(was_exact);
        check(w);
        if (i == 3) {
            crash(w);
            start(w);
            wait_indexed(w, 0);
            check(w);
        }
    }
    world_free(w);
}

/* Every kind into every next one, written and crashed on the way. */
static void every_kind_of_index_becomes_the_next(void **unused)
{
    (void)unused;
    static const enum sk_schema_index kinds[] = {SK_SCHEMA_IVF_FLAT, SK_SCHEMA_IVF_PQ,
                                                 SK_SCHEMA_HYBRID,   SK_SCHEMA_HNSW,
                                                 SK_SCHEMA_HYBRID,   SK_SCHEMA_FLAT,
                                                 SK_SCHEMA_IVF_FLAT, SK_SCHEMA_HNSW};
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    bool was_exact;
    for (size_t i = 0; i < SK_COUNT_OF(kinds); i++) {
        char note[160];
        uint64_t dead = i;
        schema->vectors[0].index = kinds[i];
        schema->vectors[0].refine = kinds[i] == SK_SCHEMA_IVF_PQ ? 8 : 0;
        alter(w, schema);
        upsert(w, 0, 3000 + i * 50, 50, 1);
        ask_ok(w, with_ids("delete", 0, &dead, 1));
        wait_indexed(w, 0);
        pass(w, 20000000);
        assert_state(w, kinds[i] == SK_SCHEMA_FLAT ? "flat" : "ready");
        index_text_of(w, 0, "note", note, sizeof note);
        assert_string_equal(note, "");
        assert_true(recall(w, &was_exact) >= 0.6); /* as many lists as it takes by itself */
        check(w);
        if (i % 2 == 0) {
            crash(w);
            start(w);
            wait_indexed(w, 0);
            index_text_of(w, 0, "note", note, sizeof note);
            assert_string_equal(note, ""); /* from its image, not made again */
            check(w);
        }
        assert_true(has_record(w, 0, 3000 + i * 50, 1));
        assert_false(has_record(w, 0, dead, 1));
    }
    world_free(w);
}

/* A search that was submitted before the heir took over and runs after that, with what it kept of the
 * index from before. */
static void a_search_waits_while_the_heir_takes_over(void **unused)
{
    (void)unused;
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    for (unsigned turn = 0; turn < 3; turn++) {
        unsigned rounds = 0;
        char state[16] = "altering";
        w->is_holding = true;
        schema->vectors[0].m = 20 + turn;
        alter(w, schema);
        assert_state(w, "altering");
        for (; strcmp(state, "altering") == 0; rounds++) {
            struct sk_reply reply = {0};
            uint64_t requests[2], found[1];
            const unsigned count = 1 + turn % 2; /* alone, and answered together */
            w->is_gathering = true;
            for (unsigned i = 0; i < count; i++) {
                struct asked asked = search_of(0, rounds % 3000, 1, 1);
                requests[i] = post(w, &asked);
            }
            step(w);
            assert_int_equal(run_gathered(w), 1);
            w->is_gathering = false;
            for (unsigned i = 0; i < count; i++) {
                assert_true(reply_of(w, requests[i], &reply) && reply.is_ok);
                assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
                assert_int_equal(found[0], rounds % 3000);
            }
            state_of(w, 0, state);
        }
        assert_true(rounds > 5);
        release(w);
        wait_indexed(w, 0);
        assert_state(w, "ready");
        check(w);
    }
    world_free(w);
}

/* Both do not fit into the budget: the one before goes, searches are scans until the heir is whole. */
static void a_budget_holds_for_both_together(void **unused)
{
    (void)unused;
    struct sk_schema *schema;
    struct world *w = filled_world(&schema);
    bool was_exact;
    schema->memory_bytes_max = index_bytes(w) + 300 * 1024;
    alter(w, schema);
    wait_indexed(w, 0);
    assert_state(w, "ready");
    w->is_holding = true;
    schema->vectors[0].m = 10;
    alter(w, schema);
    assert_state(w, "altering");
    bool was_building = false;
    for (unsigned i = 0; i < 4000 && !was_building; i++) {
        char state[16];
        step(w);
        state_of(w, 0, state);
        was_building = was_building || strcmp(state, "building") == 0;
        assert_true(index_bytes(w) <= schema->memory_bytes_max + 64 * 1024);
    }
    assert_true(was_building);
    assert_true(recall(w, &was_exact) == 1.0);
    assert_true(was_exact);
    release(w);
    wait_indexed(w, 0);
    assert_state(w, "ready");
    assert_true(recall(w, &was_exact) >= 0.9);
    check(w);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_index_before_serves_until_its_heir_is_whole),
        cmocka_unit_test(a_crash_in_the_middle_begins_again_behind_scans),
        cmocka_unit_test(an_index_may_become_flat_and_a_graph_again),
        cmocka_unit_test(altering_again_begins_again),
        cmocka_unit_test(a_profile_changes_in_place),
        cmocka_unit_test(every_kind_of_index_becomes_the_next),
        cmocka_unit_test(a_search_waits_while_the_heir_takes_over),
        cmocka_unit_test(a_budget_holds_for_both_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
