/* links: sk_worker sk_store sk_index sk_proto sk_kernels Threads::Threads */
/* The same core with real lanes: searches on threads of their own while one thread writes, links,
 * sweeps and saves. Meant for TSan; what it asserts holds everywhere. */
#include "tests/unit/worker_requests.h"

enum { ROWS = 5200, ROUNDS = 150 };

/* Many queries and exact ones go to the SLOW lane. */
static uint64_t post_search(struct world *w, uint64_t id, uint64_t salt, bool is_exact)
{
    float vectors[8 * DIM];
    struct asked asked = begin("search", 0);
    for (unsigned q = 0; q < 8; q++)
        vector_of(id, salt, vectors + (size_t)q * DIM);
    sk_put_bin(key(&asked, "vectors"), vectors, sizeof vectors);
    sk_put_u64(key(&asked, "limit"), 1);
    if (is_exact)
        sk_put_bool(key(&asked, "exact"), true);
    return post(w, &asked);
}

static struct sk_reply await(struct world *w, uint64_t request)
{
    struct sk_reply reply = {0};
    for (unsigned turns = 0; turns < 100000 && !reply_of(w, request, &reply); turns++)
        pass(w, 100);
    assert_true(reply.is_ok);
    return reply;
}

/* The first hit of each of its eight lists is this id. */
static void finds(struct world *w, uint64_t request, uint64_t id)
{
    struct sk_reply reply = await(w, request);
    struct sk_list lists;
    assert_true(sk_map_member_list(reply.map, "hits", &lists));
    assert_int_equal(lists.count, 8);
    struct sk_reader from = sk_reader_of(lists.members);
    for (unsigned q = 0; q < 8; q++) {
        struct sk_value head;
        struct sk_span hit;
        struct sk_diag d = {0};
        uint64_t found = 0;
        assert_int_equal(sk_read(&from, &head, &d), SK_ERR_OK);
        assert_int_equal(head.count, 1);
        assert_int_equal(sk_read_raw(&from, 8, &hit, &d), SK_ERR_OK);
        assert_true(sk_map_member_u64(hit, "id", &found));
        assert_int_equal(found, id);
    }
}

static void acknowledged_writes_are_found_by_searches_on_other_threads(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    w->config.quick_cost_max_us = 60;
    w->config.pending_rows_max = 200;
    start(w);
    start_threads(w);
    for (uint64_t id = 0; id < ROWS; id += 400)
        upsert(w, 0, id, 400, 1);
    wait_indexed(w, 0);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t base = round * 31 % ROWS, running[6];
        /* searches for what does not change run beside a replacement and a delete */
        for (unsigned i = 0; i < 6; i++)
            running[i] = post_search(w, 3000 + i, 1, i == 5);
        upsert(w, 0, 10000 + round * 10, 10, 1);
        upsert(w, 0, base < 2900 ? base : 17, 5, 2 + round);
        for (unsigned i = 0; i < 6; i++)
            finds(w, running[i], 3000 + i);
        finds(w, post_search(w, 10000 + round * 10 + 3, 1, false), 10000 + round * 10 + 3);
        finds(w, post_search(w, base < 2900 ? base : 17, 2 + round, round % 2 == 0),
              base < 2900 ? base : 17);
        uint64_t gone[5];
        for (unsigned i = 0; i < 5; i++)
            gone[i] = 10000 + round * 10 + i;
        ask_ok(w, with_ids("delete", 0, gone, 5));
    }
    pass(w, 20000000);
    while (w->in_flight != 0)
        take_done(w);
    check(w);
    end_threads(w);
    crash(w);
    start(w);
    wait_indexed(w, 0);
    assert_int_equal(count_of(w, 0), (uint64_t)ROWS + ROUNDS * 5);
    check(w);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(acknowledged_writes_are_found_by_searches_on_other_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
