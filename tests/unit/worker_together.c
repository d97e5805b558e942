/* links: sk_worker sk_store sk_index sk_proto sk_kernels Threads::Threads */
/* Searches that wait at the same time are answered by one job, each as if it were alone. */
#include "tests/unit/worker_requests.h"

enum { ROWS = 1500, ASKED = 48, HITS_MAX = 32 };

struct found {
    bool is_ok;
    int code;
    size_t count;
    uint64_t ids[HITS_MAX];
    double scores[HITS_MAX];
};

static struct world *indexed_world(void)
{
    struct world *w = world_new();
    w->config.flat_below = 4; /* the graph is walked */
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    start(w);
    for (uint64_t first = 0; first < ROWS; first += 500)
        upsert(w, 0, first, 500, 1);
    wait_indexed(w, 0);
    return w;
}

/* Of every form; most of them plain. */
static struct asked search_number(unsigned i)
{
    struct asked asked;
    if (i % 16 == 5) {
        asked = begin("search", 0);
        sk_put_u64(key(&asked, "like"), i);
        sk_put_u64(key(&asked, "limit"), 3);
        return asked;
    }
    if (i % 16 == 9) { /* of another dimension than the field's */
        float vector[DIM] = {1};
        asked = begin("search", 0);
        sk_put_bin(key(&asked, "vector"), vector, 4 * 7);
        return asked;
    }
    asked = search_of(0, i * 31, 1, 1 + i % 20);
    if (i % 3 == 0)
        sk_put_u64(key(&asked, "ef"), 20 + i);
    if (i % 5 == 0)
        sk_put_f64(key(&asked, "score_threshold"), 2.9);
    if (i % 16 == 11)
        sk_put_bool(key(&asked, "exact"), true);
    if (i % 7 == 0)
        sk_put_bool(key(&asked, "with_payload"), true);
    return asked;
}

static struct found found_of(const struct sk_reply *reply)
{
    struct found found = {.is_ok = reply->is_ok, .code = (int)reply->code};
    if (reply->is_ok)
        found.count = ids_of(reply, "hits", found.ids, found.scores);
    return found;
}

static void searches_together_are_answered_as_each_alone(void **unused)
{
    (void)unused;
    struct world *w = indexed_world();
    struct found alone[ASKED], together;
    uint64_t requests[ASKED];
    struct sk_reply reply;
    for (unsigned i = 0; i < ASKED; i++) {
        reply = ask(w, search_number(i));
        alone[i] = found_of(&reply);
        assert_int_equal(alone[i].is_ok, i % 16 != 9);
    }
    w->is_gathering = true;
    for (unsigned i = 0; i < ASKED; i++) {
        struct asked asked = search_number(i);
        requests[i] = post(w, &asked);
        assert_false(reply_of(w, requests[i], &reply));
    }
    unsigned jobs = run_gathered(w);
    assert_in_range(jobs, ASKED / 8, ASKED / 2);
    for (unsigned i = 0; i < ASKED; i++) {
        assert_true(reply_of(w, requests[i], &reply));
        together = found_of(&reply);
        assert_int_equal(together.is_ok, alone[i].is_ok);
        assert_int_equal(together.code, alone[i].code);
        assert_int_equal(together.count, alone[i].count);
        assert_memory_equal(together.ids, alone[i].ids, alone[i].count * sizeof alone[i].ids[0]);
        assert_memory_equal(together.scores, alone[i].scores,
                            alone[i].count * sizeof alone[i].scores[0]);
    }
    world_free(w);
}

/* What was committed before the job began to run is found by all of it, the one that came first
 * too. */
static void a_write_acknowledged_before_they_run_is_seen(void **unused)
{
    (void)unused;
    struct world *w = indexed_world();
    uint64_t requests[6], ids[HITS_MAX];
    for (unsigned round = 0; round < 40; round++) {
        uint64_t id = round * 17, salt = 100 + round, other = 1400 - round;
        w->is_gathering = true;
        for (unsigned i = 0; i < 6; i++) {
            struct asked asked = i == 5 ? search_of(0, other, 1, 1) : search_of(0, id, salt, 1);
            requests[i] = post(w, &asked);
        }
        struct asked write = upsert_of(0, id, 1, salt), gone = with_ids("delete", 0, &other, 1);
        struct sk_reply reply;
        uint64_t written = post(w, &write), deleted = post(w, &gone);
        while (!reply_of(w, written, &reply) || !reply_of(w, deleted, &reply))
            pass(w, 100);
        assert_true(reply.is_ok);
        assert_int_equal(run_gathered(w), 1);
        w->is_gathering = false;
        for (unsigned i = 0; i < 6; i++) {
            assert_true(reply_of(w, requests[i], &reply) && reply.is_ok);
            assert_int_equal(ids_of(&reply, "hits", ids, NULL), 1);
            if (i == 5)
                assert_int_not_equal(ids[0], other);
            else
                assert_int_equal(ids[0], id);
        }
        pass(w, 5000); /* the index follows, rows die */
    }
    check(w);
    world_free(w);
}

static void one_that_is_late_holds_up_nobody(void **unused)
{
    (void)unused;
    struct world *w = indexed_world();
    uint64_t requests[5];
    struct sk_reply reply;
    w->is_gathering = true;
    for (unsigned i = 0; i < 5; i++) {
        struct asked asked = search_of(0, i, 1, 1);
        asked.deadline_ms = i == 2 ? 20 : DEADLINE_MS;
        requests[i] = post(w, &asked);
    }
    w->mono += 30000;
    assert_int_equal(run_gathered(w), 1);
    for (unsigned i = 0; i < 5; i++) {
        assert_true(reply_of(w, requests[i], &reply));
        assert_int_equal(reply.is_ok, i != 2);
        if (i == 2)
            assert_int_equal(reply.code, SK_ERR_DEADLINE);
    }
    world_free(w);
}

static void a_collection_is_dropped_while_they_wait(void **unused)
{
    (void)unused;
    struct world *w = indexed_world();
    uint64_t requests[20];
    struct sk_reply reply;
    w->is_gathering = true;
    for (unsigned i = 0; i < 20; i++) {
        struct asked asked = search_of(0, i, 1, 1);
        sk_put_u64(key(&asked, "ef"), 20);
        requests[i] = post(w, &asked);
    }
    w->map.collection_count--;
    publish(w);
    assert_int_equal(run_gathered(w), 1); /* the others were refused when it was dropped */
    for (unsigned i = 0; i < 20; i++) {
        assert_true(reply_of(w, requests[i], &reply));
        assert_int_equal(reply.is_ok, i < 8);
        assert_int_equal(reply.code, i < 8 ? SK_ERR_OK : SK_ERR_NOT_FOUND);
    }
    w->map.collection_count++;
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(searches_together_are_answered_as_each_alone),
        cmocka_unit_test(a_write_acknowledged_before_they_run_is_seen),
        cmocka_unit_test(one_that_is_late_holds_up_nobody),
        cmocka_unit_test(a_collection_is_dropped_while_they_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
