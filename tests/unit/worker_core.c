/* links: sk_worker sk_store sk_index sk_proto sk_kernels Threads::Threads */
/* Requests in, replies out: what a shard answers, and what it refuses. */
#include "tests/unit/worker_requests.h"

static void records_are_written_found_and_deleted(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_FLAT, SK_SCHEMA_COSINE);
    start(w);
    upsert(w, 0, 0, 300, 1);
    assert_int_equal(count_of(w, 0), 300);
    assert_true(has_record(w, 0, 17, 1));
    uint64_t ids[10];
    double scores[10];
    struct sk_reply reply = ask_ok(w, search_of(0, 17, 1, 5));
    assert_int_equal(ids_of(&reply, "hits", ids, scores), 5);
    assert_int_equal(ids[0], 17);
    assert_true(scores[0] > 0.9999 && scores[1] <= scores[0]);
    assert_true(bool_of(&reply, "exact"));
    const uint64_t gone[2] = {17, 1000};
    reply = ask_ok(w, with_ids("delete", 0, gone, 2));
    assert_int_equal(number_of(&reply, "deleted"), 1);
    assert_false(has_record(w, 0, 17, 1));
    reply = ask_ok(w, search_of(0, 17, 1, 5));
    assert_int_equal(ids_of(&reply, "hits", ids, NULL), 5);
    assert_int_not_equal(ids[0], 17);
    upsert(w, 0, 17, 1, 2); /* again, and another vector */
    assert_true(has_record(w, 0, 17, 2));
    assert_int_equal(count_of(w, 0), 300);
    pass(w, 10000000);
    check(w);
    world_free(w);
}

static void a_replaced_vector_is_found_where_it_is_now(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    start(w);
    upsert(w, 0, 0, 500, 1);
    wait_indexed(w, 0);
    upsert(w, 0, 100, 100, 2);
    uint64_t ids[4];
    double scores[4];
    for (uint64_t id = 100; id < 200; id += 7) {
        struct sk_reply reply = ask_ok(w, search_of(0, id, 2, 1));
        assert_int_equal(ids_of(&reply, "hits", ids, scores), 1);
        assert_int_equal(ids[0], id);
        assert_true(scores[0] == 0);
        reply = ask_ok(w, search_of(0, id, 1, 1)); /* its old place is empty */
        assert_int_equal(ids_of(&reply, "hits", ids, scores), 1);
        assert_true(scores[0] > 0);
    }
    wait_indexed(w, 0);
    pass(w, 20000000);
    check(w);
    world_free(w);
}

static void payloads_filters_and_scrolls_work(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_IP);
    start(w);
    upsert(w, 0, 0, 90, 1);
    struct asked asked = begin("set_payload", 0);
    sk_put_array(key(&asked, "ids"), 2);
    sk_put_u64(&asked.frame, 3);
    sk_put_u64(&asked.frame, 5000);
    sk_put_map(key(&asked, "payload"), 2);
    sk_put_text(&asked.frame, "color");
    sk_put_text(&asked.frame, "gold");
    sk_put_text(&asked.frame, "size");
    sk_put_nil(&asked.frame);
    struct sk_reply reply = ask_ok(w, asked);
    assert_int_equal(number_of(&reply, "updated"), 1);

    const char *const gold = "gold";
    for (unsigned round = 0; round < 2; round++) { /* 0: search, 1: count and delete by filter */
        asked = round == 0 ? search_of(0, 1, 1, 50) : begin("count", 0);
        sk_put_map(key(&asked, "filter"), 1);
        sk_put_text(&asked.frame, "must");
        sk_put_array(&asked.frame, 1);
        sk_put_map(&asked.frame, 2);
        sk_put_text(&asked.frame, "key");
        sk_put_text(&asked.frame, "color");
        sk_put_text(&asked.frame, "match");
        sk_put_text(&asked.frame, round == 0 ? gold : "green");
        reply = ask_ok(w, asked);
        uint64_t ids[50];
        if (round == 0) {
            assert_int_equal(ids_of(&reply, "hits", ids, NULL), 1);
            assert_int_equal(ids[0], 3);
        } else {
            assert_int_equal(number_of(&reply, "count"), 30);
        }
    }
    /* pages cover everything once */
    uint64_t seen = 0, cursor = 0;
    for (bool has_cursor = false;;) {
        uint64_t ids[32];
        asked = begin("scroll", 0);
        sk_put_u64(key(&asked, "limit"), 25);
        if (has_cursor)
            sk_put_u64(key(&asked, "cursor"), cursor);
        reply = ask_ok(w, asked);
        size_t count = ids_of(&reply, "records", ids, NULL);
        for (size_t i = 0; i < count; i++)
            assert_int_equal(ids[i], seen++);
        has_cursor = sk_map_member_u64(reply.map, "cursor", &cursor);
        if (!has_cursor)
            break;
    }
    assert_int_equal(seen, 90);
    asked = begin("delete", 0);
    sk_put_map(key(&asked, "filter"), 1);
    sk_put_text(&asked.frame, "must_not");
    sk_put_array(&asked.frame, 1);
    sk_put_map(&asked.frame, 2);
    sk_put_text(&asked.frame, "key");
    sk_put_text(&asked.frame, "color");
    sk_put_text(&asked.frame, "match");
    sk_put_text(&asked.frame, "gold");
    reply = ask_ok(w, asked);
    assert_int_equal(number_of(&reply, "deleted"), 89);
    assert_int_equal(count_of(w, 0), 1);
    check(w);
    world_free(w);
}

static void nothing_is_acknowledged_before_its_commit(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_reply reply;
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    upsert(w, 0, 0, 10, 1);
    pass(w, 1000000);
    w->is_holding = true;
    struct asked first = upsert_of(0, 100, 5, 1), second = upsert_of(0, 200, 5, 1);
    uint64_t a = post(w, &first), b = post(w, &second);
    pass(w, 100000);
    assert_false(reply_of(w, a, &reply));
    assert_false(reply_of(w, b, &reply));
    assert_int_equal(count_of(w, 0), 10); /* reads go on, and see what is committed */
    crash(w);
    start(w);
    assert_int_equal(count_of(w, 0), 10);
    /* several requests share a commit */
    w->is_holding = true;
    struct sk_worker_status before, after;
    first = upsert_of(0, 100, 1, 1);
    post(w, &first);
    uint64_t posted[20];
    for (unsigned i = 0; i < 20; i++) {
        first = upsert_of(0, 300 + i, 1, 1);
        posted[i] = post(w, &first);
    }
    sk_worker_get_status(w->worker, &before);
    assert_int_equal(before.writes_queued, 20);
    release(w);
    pass(w, 10000);
    sk_worker_get_status(w->worker, &after);
    assert_true(after.commits - before.commits <= 3);
    for (unsigned i = 0; i < 20; i++)
        assert_true(reply_of(w, posted[i], &reply) && reply.is_ok);
    crash(w);
    start(w);
    assert_int_equal(count_of(w, 0), 31);
    check(w);
    world_free(w);
}

static void a_late_copy_of_a_write_is_answered_and_not_applied(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    struct asked asked = upsert_of(0, 1, 1, 1);
    asked.sequence = w->sequence = 10;
    ask_ok(w, asked);
    upsert(w, 0, 1, 1, 2); /* newer */
    for (unsigned round = 0; round < 2; round++) {
        asked = upsert_of(0, 1, 1, 1);
        asked.sequence = 10;
        struct sk_reply reply = ask_ok(w, asked);
        assert_int_equal(number_of(&reply, "upserted"), 1);
        assert_true(has_record(w, 0, 1, 2));
        crash(w); /* the window is in the store */
        start(w);
    }
    world_free(w);
}

static void a_full_pending_buffer_makes_writes_wait_and_then_busy(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    w->config.pending_rows_max = 8;
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 64; id++)
        upsert(w, 0, id, 1, 1);
    upsert(w, 0, 100, 50, 1); /* larger than the bound: alone, when nothing waits */
    assert_int_equal(count_of(w, 0), 114);
    /* while the lane does not move the queue fills, up to its bound */
    crash(w);
    w->config.writes_queued_max = 4;
    start(w);
    w->is_holding = true;
    struct asked asked = upsert_of(0, 500, 1, 1);
    post(w, &asked);
    uint64_t posted[5];
    for (unsigned i = 0; i < 5; i++) {
        asked = upsert_of(0, 501 + i, 1, 1);
        posted[i] = post(w, &asked);
    }
    struct sk_reply reply;
    assert_true(reply_of(w, posted[4], &reply));
    assert_int_equal(reply.code, SK_ERR_BUSY);
    assert_false(reply_of(w, posted[3], &reply));
    pass(w, 6000000); /* those that wait are told at their deadline */
    assert_true(reply_of(w, posted[3], &reply));
    assert_false(reply.is_ok);
    release(w);
    pass(w, 1000000);
    assert_int_equal(count_of(w, 0), 115);
    check(w);
    world_free(w);
}

static void records_expire(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    upsert(w, 0, 0, 20, 1);
    struct asked asked = upsert_of(0, 100, 20, 1);
    sk_put_u64(key(&asked, "ttl_s"), 30);
    ask_ok(w, asked);
    pass(w, 29000000);
    assert_true(has_record(w, 0, 105, 1));
    w->wall += 2000000;
    assert_false(has_record(w, 0, 105, 1)); /* at once, whenever the sweep comes */
    uint64_t ids[40];
    struct sk_reply reply = ask_ok(w, search_of(0, 105, 1, 40));
    assert_int_equal(ids_of(&reply, "hits", ids, NULL), 20);
    pass(w, 70000000);
    struct sk_worker_status status;
    sk_worker_get_status(w->worker, &status);
    assert_int_equal(status.records, 20);
    check(w);
    world_free(w);
}

static void like_thresholds_and_many_queries(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    start(w);
    upsert(w, 0, 0, 400, 1);
    uint64_t ids[64];
    double scores[64];
    struct asked asked = begin("search", 0);
    sk_put_u64(key(&asked, "like"), 7);
    sk_put_u64(key(&asked, "limit"), 20);
    struct sk_reply reply = ask_ok(w, asked);
    assert_int_equal(ids_of(&reply, "hits", ids, scores), 20);
    for (unsigned i = 0; i < 20; i++)
        assert_int_not_equal(ids[i], 7);
    double radius = scores[9];
    for (unsigned limit = 5; limit <= 20; limit += 15) {
        asked = begin("search", 0);
        sk_put_u64(key(&asked, "like"), 7);
        sk_put_u64(key(&asked, "limit"), limit);
        sk_put_f64(key(&asked, "score_threshold"), radius);
        reply = ask_ok(w, asked);
        assert_int_equal(ids_of(&reply, "hits", ids, scores), limit == 5 ? 5 : 10);
        assert_int_equal(bool_of(&reply, "more"), limit == 5);
    }
    asked = begin("search", 0);
    sk_put_u64(key(&asked, "like"), 99999);
    reply = ask(w, asked);
    assert_int_equal(reply.code, SK_ERR_NOT_FOUND);
    float queries[3 * DIM];
    for (unsigned q = 0; q < 3; q++)
        vector_of(40 + q, 1, queries + (size_t)q * DIM);
    asked = begin("search", 0);
    sk_put_bin(key(&asked, "vectors"), queries, sizeof queries);
    sk_put_u64(key(&asked, "limit"), 2);
    reply = ask_ok(w, asked);
    struct sk_list lists;
    assert_true(sk_map_member_list(reply.map, "hits", &lists));
    assert_int_equal(lists.count, 3);
    asked = begin("search", 0);
    sk_put_bin(key(&asked, "vector"), queries, 4 * 7);
    reply = ask(w, asked);
    assert_int_equal(reply.code, SK_ERR_DIM_MISMATCH);
    world_free(w);
}

static void named_vectors_are_searched_by_name(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_schema *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_L2);
    schema->vector_count = 2;
    schema->vectors[1] = schema->vectors[0];
    schema->vectors[1].index = SK_SCHEMA_FLAT;
    snprintf(schema->vectors[0].name, 8, "text");
    snprintf(schema->vectors[1].name, 8, "image");
    start(w);
    struct asked asked = begin("upsert", 0);
    sk_put_array(key(&asked, "ids"), 50);
    for (unsigned i = 0; i < 50; i++)
        sk_put_u64(&asked.frame, i);
    sk_put_map(key(&asked, "vectors"), 2);
    for (unsigned f = 0; f < 2; f++) {
        sk_put_text(&asked.frame, f == 0 ? "text" : "image");
        sk_put_bin_head(&asked.frame, 50 * DIM * sizeof(float));
        for (unsigned i = 0; i < 50; i++) {
            float vector[DIM];
            vector_of(f == 0 ? i : 49 - i, 1, vector);
            sk_buffer_append(&asked.frame, vector, sizeof vector);
        }
    }
    ask_ok(w, asked);
    for (unsigned f = 0; f < 2; f++) {
        uint64_t id;
        asked = search_of(0, 10, 1, 1);
        sk_put_text(key(&asked, "using"), f == 0 ? "text" : "image");
        struct sk_reply reply = ask_ok(w, asked);
        assert_int_equal(ids_of(&reply, "hits", &id, NULL), 1);
        assert_int_equal(id, f == 0 ? 10 : 39);
    }
    struct sk_reply reply = ask(w, search_of(0, 10, 1, 1));
    assert_int_equal(reply.code, SK_ERR_INVALID);
    check(w);
    world_free(w);
}

static void messages_that_make_no_sense_are_dropped_or_answered(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_reply reply;
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    uint8_t noise[300];
    for (unsigned round = 0; round < 2000; round++) {
        for (unsigned i = 0; i < sizeof noise; i++)
            noise[i] = (uint8_t)io_random(w);
        const struct sk_link_header header = {.kind = 1 + round % 6, .request = 9, .deadline_ms = 50};
        if (round % 2 == 0)
            sk_link_header_encode(noise, &header);
        sk_worker_on_message(w->worker, round % 3 + 1, sk_span_of(noise, io_random(w) % 300));
    }
    assert_true(reply_of(w, 9, &reply));
    assert_false(reply.is_ok);
    pass(w, 100000);
    upsert(w, 0, 0, 5, 1);
    assert_int_equal(count_of(w, 0), 5);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_written_found_and_deleted),
        cmocka_unit_test(a_replaced_vector_is_found_where_it_is_now),
        cmocka_unit_test(payloads_filters_and_scrolls_work),
        cmocka_unit_test(nothing_is_acknowledged_before_its_commit),
        cmocka_unit_test(a_late_copy_of_a_write_is_answered_and_not_applied),
        cmocka_unit_test(a_full_pending_buffer_makes_writes_wait_and_then_busy),
        cmocka_unit_test(records_expire),
        cmocka_unit_test(like_thresholds_and_many_queries),
        cmocka_unit_test(named_vectors_are_searched_by_name),
        cmocka_unit_test(messages_that_make_no_sense_are_dropped_or_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
