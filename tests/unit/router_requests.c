/* links: sk_router sk_proto */
#include "tests/unit/router_world.h"

static const sk_peer WORKER_0 = SK_ROUTER_PEER_WORKER_0;
static const float query[2] = {1, 2};

static struct sk_request delete_request(uint64_t id)
{
    static uint8_t packed[] = {7};
    struct sk_request request = request_on_docs(SK_OP_DELETE, id);
    request.ids = (struct sk_list){sk_span_of(packed, 1), 1, true};
    request.present |= UINT64_C(1) << SK_FIELD_ids;
    return request;
}

/* ---- the door ---- */

static void every_bad_frame_is_answered_with_its_id_where_it_could_be_read(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    static const struct {
        const char *bytes;
        size_t size;
        enum sk_err code;
        const char *words;
    } bad[] = {
        {"", 0, SK_ERR_INVALID, ""},
        {"\xc1", 1, SK_ERR_INVALID, ""},
        {"\xdf\xff\xff\xff\xff", 5, SK_ERR_INVALID, ""},
        {"\x90", 1, SK_ERR_INVALID, "one msgpack map"},
        {"\x82\xa1v\x02\xa2op\xa4ping", 12, SK_ERR_VERSION, "this node speaks 1"},
        {"\x82\xa1v\x01\xa2op\xa4pong", 12, SK_ERR_INVALID, "'ping'"},
    };
    for (size_t i = 0; i < SK_COUNT_OF(bad); i++)
        assert_error(&w,
                     world_ask_frame(&w, SK_ROLE_ADMIN, sk_span_of(bad[i].bytes, bad[i].size)),
                     bad[i].code, bad[i].words);
    static const char with_id[] = "\x83\xa2op\xa6serach\xa2id\x2a\xa1v\x01";
    sk_peer client = world_ask_frame(&w, SK_ROLE_ADMIN, sk_span_of(with_id, sizeof with_id - 1));
    assert_error(&w, client, SK_ERR_INVALID, "the closest name is 'search'");
    assert_int_equal(world_decoded(&w, client).id.number, 42);
    struct sk_router_status status;
    sk_router_get_status(w.router, &status);
    assert_int_equal(status.requests_in_flight, 0);
    assert_int_equal(status.bytes_in_flight, 0);
    world_end(&w);
}

static void roles_are_kept_and_a_key_that_is_not_known_is_told_so(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    static const struct {
        enum sk_op op;
        enum sk_role role;
        bool is_let_in;
    } cases[] = {
        {SK_OP_DROP_COLLECTION, SK_ROLE_WRITE, false}, {SK_OP_DELETE, SK_ROLE_READ, false},
        {SK_OP_COUNT, SK_ROLE_READ, true},             {SK_OP_DELETE, SK_ROLE_WRITE, true},
        {SK_OP_LIST_KEYS, SK_ROLE_WRITE, false},       {SK_OP_LIST_KEYS, SK_ROLE_ADMIN, true},
        {SK_OP_SHARD_STATS, SK_ROLE_ADMIN, false},     {SK_OP_NODE_STOP, SK_ROLE_ADMIN, false},
    };
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_buffer frame = {0};
        struct sk_request request =
            cases[i].op == SK_OP_DELETE ? delete_request(i) : request_of(cases[i].op, i);
        if (cases[i].op == SK_OP_DROP_COLLECTION || cases[i].op == SK_OP_COUNT)
            request = request_on_docs(cases[i].op, i);
        sk_request_encode(&frame, &request);
        sk_peer client = world_ask_frame(&w, cases[i].role, sk_buffer_span(&frame));
        if (!cases[i].is_let_in)
            assert_error(&w, client, SK_ERR_FORBIDDEN, sk_op_name(cases[i].op));
        else if (world_answer(&w, client) != NULL)
            assert_true(world_decoded(&w, client).is_ok);
        client = world_ask_frame(&w, SK_ROLE_NONE, sk_buffer_span(&frame));
        assert_error(&w, client, SK_ERR_UNAUTHORIZED, "key");
        assert_int_equal(world_decoded(&w, client).id.number, i);
        sk_buffer_deinit(&frame);
    }
    world_end(&w);
}

static void a_collection_that_is_not_there_is_named_with_the_closest(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_request request = request_on_docs(SK_OP_COUNT, 1);
    request.collection = sk_span_text("doc");
    assert_error(&w, world_ask(&w, &request), SK_ERR_NOT_FOUND, "the closest name is 'docs'");
    request = request_of(SK_OP_COUNT, 2);
    assert_error(&w, world_ask(&w, &request), SK_ERR_INVALID, "'collection'");
    request = request_on_docs(SK_OP_PING, 3);
    assert_error(&w, world_ask(&w, &request), SK_ERR_UNKNOWN_FIELD, "collection");
    world_end(&w);
}

static void past_its_limits_it_is_busy_and_recovers(void **state)
{
    (void)state;
    static struct world w;
    world_begin_with(&w, &(struct sk_router_config){.requests_in_flight_max = 3,
                                                    .bytes_in_flight_max = 4096});
    w.map_version = 5;
    world_add_collection(&w, "docs", 2, SK_SCHEMA_L2, 1, 1);
    world_give_map(&w);
    world_hello(&w, 0, 100);
    struct sk_request request = search_request(1, query, 2);
    sk_peer first = world_ask(&w, &request);
    world_ask(&w, &request);
    world_ask(&w, &request);
    assert_error(&w, world_ask(&w, &request), SK_ERR_BUSY, "3 requests are in flight");
    world_reply_ok(&w, world_take(&w, WORKER_0), "count", 1);
    assert_number(&w, first, "count", 1);
    sk_peer next = world_ask(&w, &request);
    assert_null(world_answer(&w, next));
    world_pass(&w, 6000000);
    assert_error(&w, next, SK_ERR_DEADLINE, "no answer of shard-worker 0");
    struct sk_buffer large = {0};
    struct sk_request ids = delete_request(5);
    for (unsigned i = 0; i < 3000; i++)
        sk_put_u64(&large, 1000 + i);
    ids.ids = (struct sk_list){sk_buffer_span(&large), 3000, true};
    assert_error(&w, world_ask(&w, &ids), SK_ERR_BUSY, "bytes are in flight");
    sk_buffer_deinit(&large);
    struct sk_router_status status;
    sk_router_get_status(w.router, &status);
    assert_int_equal(status.requests_in_flight, 0);
    assert_int_equal(status.bytes_in_flight, 0);
    world_end(&w);
}

static void replies_find_their_requests_however_long_some_of_them_take(void **state)
{
    (void)state;
    static struct world w;
    struct message *open[32] = {NULL};
    sk_peer clients[32];
    uint64_t seed = 5;
    world_begin_with(&w, &(struct sk_router_config){.requests_in_flight_max = 32});
    w.map_version = 5;
    world_add_collection(&w, "docs", 2, SK_SCHEMA_L2, 1, 1);
    world_give_map(&w);
    world_hello(&w, 0, 100);
    for (unsigned i = 0; i < 1800; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        unsigned at = (unsigned)(seed >> 40) % 32; /* the first few live long */
        if (at < 16 && i % 50 != 0)
            at += 16;
        if (open[at] != NULL) {
            world_reply_ok(&w, open[at], "count", at);
            assert_number(&w, clients[at], "count", at);
            open[at] = NULL;
        } else {
            struct sk_request request = search_request(i, query, 2);
            clients[at] = world_ask(&w, &request);
            assert_non_null(open[at] = world_take(&w, WORKER_0));
        }
    }
    world_end(&w);
}

/* ---- one shard ---- */

static void one_shard_sees_the_frame_and_the_client_the_reply_untouched(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    /* an array where our encoder would write a bin, aliases and another order of keys */
    static const char frame[] = "\x86\xa2id\xa3"
                                "abc\xa1v\x01\xa4topk\x03\xa2op\xa6search\xaa"
                                "collection\xa4"
                                "docs\xa6vector\x92\x01\x02";
    sk_peer client = world_ask_frame(&w, SK_ROLE_READ, sk_span_of(frame, sizeof frame - 1));
    struct message *sent = world_take(&w, WORKER_0);
    assert_non_null(sent);
    assert_int_equal(sent->size, sizeof frame - 1);
    assert_memory_equal(sent->bytes, frame, sizeof frame - 1);
    assert_int_equal(sent->header.kind, SK_LINK_REQUEST);
    assert_int_equal(sent->header.role, SK_ROLE_READ);
    assert_int_equal(sent->header.incarnation, 0);
    assert_int_equal(sent->header.map_version, 5);
    assert_int_equal(sent->header.schema_version, 1);
    assert_int_equal(sent->header.deadline_ms, 5000);
    assert_memory_equal(sent->header.collection, w.map.collections[0].schema.uuid, 16);
    struct sk_buffer body = {0};
    struct sk_request_id id = message_id(sent);
    struct sk_reply_writer reply;
    sk_reply_begin(&reply, &body, &id);
    sk_reply_key(&reply, "anything");
    sk_put_u64(&body, 9);
    sk_reply_end(&reply);
    world_reply(&w, sent, SK_ERR_OK, sk_buffer_span(&body), 5);
    struct message *answer = world_answer(&w, client);
    assert_non_null(answer);
    assert_int_equal(answer->size, body.size);
    assert_memory_equal(answer->bytes, body.bytes, body.size);
    /* a second copy and a late one find nobody */
    world_reply(&w, sent, SK_ERR_OK, sk_buffer_span(&body), 5);
    sk_buffer_deinit(&body);
    world_end(&w);
}

static void a_reply_that_makes_no_sense_is_an_error_and_nobody_else_s(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 2);
    struct sk_request request = search_request(1, query, 2);
    struct sk_buffer good = {0};
    sk_reply_ok(&good, &request.id);
    sk_peer client = world_ask(&w, &request);
    struct message *sent = world_take(&w, WORKER_0);
    /* from another worker, of another shard, to another request, with another stamp: unwanted */
    struct sk_link_header header = sent->header;
    header.kind = SK_LINK_REPLY;
    header.role = SK_ROLE_NONE;
    world_deliver(&w, WORKER_0 + 1, &header, sk_buffer_span(&good));
    header.shard = 3;
    world_deliver(&w, WORKER_0, &header, sk_buffer_span(&good));
    header.shard = 0;
    header.request++;
    world_deliver(&w, WORKER_0, &header, sk_buffer_span(&good));
    header.request--;
    header.sequence = 4;
    world_deliver(&w, WORKER_0, &header, sk_buffer_span(&good));
    sk_router_on_message(w.router, WORKER_0, sk_span_of("SLK1 but short", 14));
    sk_router_on_message(w.router, WORKER_0 + SK_WORKERS_MAX, sk_buffer_span(&good));
    assert_null(world_answer(&w, client));
    /* ours, but cut short; status and body that differ */
    for (size_t cut = 0; cut < good.size; cut++) {
        client = world_ask(&w, &request);
        world_reply(&w, world_take(&w, WORKER_0), SK_ERR_OK, sk_span_of(good.bytes, cut), 5);
        assert_error(&w, client, SK_ERR_INTERNAL, "makes no sense");
    }
    client = world_ask(&w, &request);
    world_reply(&w, world_take(&w, WORKER_0), SK_ERR_BUSY, sk_buffer_span(&good), 5);
    assert_error(&w, client, SK_ERR_INTERNAL, "makes no sense");
    sk_buffer_deinit(&good);
    world_end(&w);
}

/* ---- deadlines, workers that come and go ---- */

static void every_request_is_answered_at_its_deadline(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    sk_peer clients[40];
    for (uint32_t i = 0; i < 40; i++) {
        struct sk_request request = i % 2 != 0 ? search_request(i, query, 2) : delete_request(i);
        request.deadline_ms = 1 + (i * 37) % 1000;
        clients[i] = world_ask(&w, &request);
    }
    uint64_t began = w.mono_us;
    for (uint64_t ms = 1; ms <= 1001; ms++) {
        world_pass(&w, began + ms * 1000 - w.mono_us);
        for (uint32_t i = 0; i < 40; i++)
            assert_int_equal(world_answer(&w, clients[i]) != NULL, 1 + (i * 37) % 1000 <= ms);
    }
    for (uint32_t i = 2; i < 40; i++) /* (0 and its like had no time to be sent) */
        assert_error(&w, clients[i], SK_ERR_DEADLINE, i % 2 != 0 ? "within" : "outcome is unknown");
    world_end(&w);
}

static void what_was_not_sent_waits_for_its_worker(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    w.map_version = 5;
    world_add_collection(&w, "docs", 2, SK_SCHEMA_L2, 1, 1);
    world_give_map(&w);
    struct sk_request write = delete_request(1), read = search_request(2, query, 2);
    sk_peer writer = world_ask(&w, &write), reader = world_ask(&w, &read);
    assert_null(world_take(&w, WORKER_0));
    world_pass(&w, 1000000);
    world_hello(&w, 0, 55);
    struct message *first = world_take(&w, WORKER_0), *second = world_take(&w, WORKER_0);
    assert_non_null(second);
    assert_int_equal(first->header.deadline_ms, 4000);
    world_reply_ok(&w, first, "deleted", 1);
    world_reply_ok(&w, second, "count", 2);
    assert_number(&w, writer, "deleted", 1);
    assert_number(&w, reader, "count", 2);
    /* it goes and does not come back: nothing was sent, and the text says so */
    struct sk_link_header bye = {.kind = SK_LINK_GOODBYE, .incarnation = 55};
    world_deliver(&w, WORKER_0, &bye, (struct sk_span){0});
    writer = world_ask(&w, &write);
    world_pass(&w, 5000000);
    assert_error(&w, writer, SK_ERR_UNAVAILABLE, "nothing was changed");
    assert_null(world_take(&w, WORKER_0));
    world_end(&w);
}

static void a_write_is_sent_again_with_its_stamp_when_its_worker_was_replaced(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_request write = delete_request(1), snapshot = request_on_docs(SK_OP_SNAPSHOT, 2);
    snapshot.name = sk_span_text("s");
    snapshot.present |= UINT64_C(1) << SK_FIELD_name;
    sk_peer writer = world_ask(&w, &write), snapper = world_ask(&w, &snapshot);
    struct message *first = world_take(&w, WORKER_0);
    assert_non_null(world_take(&w, WORKER_0));
    assert_int_not_equal(first->header.incarnation, 0);
    assert_int_not_equal(first->header.sequence, 0);
    sk_router_on_disconnected(w.router, WORKER_0);
    world_hello(&w, 0, 101);
    struct message *again = world_take(&w, WORKER_0);
    assert_non_null(again);
    assert_int_equal(again->header.incarnation, first->header.incarnation);
    assert_int_equal(again->header.sequence, first->header.sequence);
    assert_int_equal(again->header.request, first->header.request);
    assert_null(world_take(&w, WORKER_0)); /* a snapshot is not made twice */
    assert_error(&w, snapper, SK_ERR_UNAVAILABLE, "outcome is unknown");
    world_reply_ok(&w, again, "deleted", 1);
    assert_number(&w, writer, "deleted", 1);
    /* the next write has a stamp of its own */
    world_ask(&w, &write);
    assert_true(world_take(&w, WORKER_0)->header.sequence > first->header.sequence);
    world_end(&w);
}

static void a_silent_worker_is_asked_again_and_one_that_speaks_is_not(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_request write = delete_request(1), read = search_request(2, query, 2);
    write.deadline_ms = read.deadline_ms = 60000;
    world_ask(&w, &write);
    world_ask(&w, &read);
    assert_non_null(world_take(&w, WORKER_0));
    assert_non_null(world_take(&w, WORKER_0));
    unsigned writes = 0, reads = 0;
    for (unsigned s = 0; s < 59; s++) {
        world_pass(&w, 1000000);
        for (struct message *m = world_take(&w, WORKER_0); m != NULL; m = world_take(&w, WORKER_0))
            *(m->header.incarnation != 0 ? &writes : &reads) += 1;
    }
    assert_true(writes >= 2 && writes <= 8);
    assert_int_equal(reads, 1);
    world_pass(&w, 2000000);
    /* now one that answers others all the time */
    sk_peer slow = world_ask(&w, &write);
    struct message *slow_message = world_take(&w, WORKER_0);
    for (unsigned i = 0; i < 300; i++) {
        world_ask(&w, &read);
        world_reply_ok(&w, world_take(&w, WORKER_0), NULL, 0);
        world_pass(&w, 100000);
    }
    assert_null(world_take(&w, WORKER_0));
    world_reply_ok(&w, slow_message, "deleted", 1);
    assert_number(&w, slow, "deleted", 1);
    world_end(&w);
}

static void a_stop_lets_what_is_in_flight_end_and_nothing_new_begin(void **state)
{
    (void)state;
    static struct world w;
    struct sk_router_status status;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_request write = delete_request(1);
    sk_peer first = world_ask(&w, &write), second = world_ask(&w, &write);
    struct message *sent = world_take(&w, WORKER_0);
    sk_router_stop(w.router);
    assert_error(&w, world_ask(&w, &write), SK_ERR_UNAVAILABLE, "nothing was changed");
    world_pass(&w, 1000000);
    world_reply_ok(&w, sent, "deleted", 1);
    assert_number(&w, first, "deleted", 1);
    assert_null(world_answer(&w, second));
    sk_router_get_status(w.router, &status);
    assert_false(status.is_stopped);
    world_pass(&w, 1000000);
    assert_error(&w, second, SK_ERR_UNAVAILABLE, "outcome");
    sk_router_get_status(w.router, &status);
    assert_true(status.is_stopped);
    world_end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stop_lets_what_is_in_flight_end_and_nothing_new_begin),
        cmocka_unit_test(every_bad_frame_is_answered_with_its_id_where_it_could_be_read),
        cmocka_unit_test(roles_are_kept_and_a_key_that_is_not_known_is_told_so),
        cmocka_unit_test(a_collection_that_is_not_there_is_named_with_the_closest),
        cmocka_unit_test(past_its_limits_it_is_busy_and_recovers),
        cmocka_unit_test(replies_find_their_requests_however_long_some_of_them_take),
        cmocka_unit_test(one_shard_sees_the_frame_and_the_client_the_reply_untouched),
        cmocka_unit_test(a_reply_that_makes_no_sense_is_an_error_and_nobody_else_s),
        cmocka_unit_test(every_request_is_answered_at_its_deadline),
        cmocka_unit_test(what_was_not_sent_waits_for_its_worker),
        cmocka_unit_test(a_write_is_sent_again_with_its_stamp_when_its_worker_was_replaced),
        cmocka_unit_test(a_silent_worker_is_asked_again_and_one_that_speaks_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
