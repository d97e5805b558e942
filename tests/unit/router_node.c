/* links: sk_router sk_proto */
/* What the router knows of the node: the map, changes that the keeper makes, restore, stats. */
#include "tests/unit/router_world.h"

#include <math.h>

static const sk_peer WORKER_0 = SK_ROUTER_PEER_WORKER_0;
static const float query[2] = {1, 2};

/* ---- the map and the keeper ---- */

static void requests_wait_for_the_first_map_and_ping_does_not(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    struct sk_request ping = request_of(SK_OP_PING, 1), read = search_request(2, query, 2);
    assert_true(world_decoded(&w, world_ask(&w, &ping)).is_ok);
    sk_peer late = world_ask(&w, &read);
    world_pass(&w, 5000000);
    assert_error(&w, late, SK_ERR_UNAVAILABLE, "keeper");
    unsigned asked = 0;
    while (world_take(&w, SK_ROUTER_PEER_KEEPER) != NULL)
        asked++;
    assert_in_range(asked, 4, 7); /* and the keeper is asked again every second */
    sk_peer waiting = world_ask(&w, &read);
    world_hello(&w, 0, 9);
    world_pass(&w, 1000000);
    w.map_version = 5;
    world_add_collection(&w, "docs", 2, SK_SCHEMA_L2, 1, 1);
    world_give_map(&w);
    world_reply_ok(&w, world_take(&w, WORKER_0), "count", 1);
    assert_number(&w, waiting, "count", 1);
    world_end(&w);
}

static void an_older_map_or_another_node_s_is_refused(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    sk_router_on_map_hint(w.router, 6);
    struct message *ask = world_take(&w, SK_ROUTER_PEER_KEEPER);
    assert_non_null(ask);
    for (unsigned kind = 0; kind < 3; kind++) {
        struct sk_map map = w.map;
        struct sk_buffer body = {0};
        struct sk_request_id id = {0};
        struct sk_reply_writer reply;
        map.version = kind == 0 ? 4 : 9;
        map.node_id = kind == 1 ? 78 : 77;
        sk_reply_begin(&reply, &body, &id);
        sk_reply_key(&reply, "map");
        sk_map_encode(&body, &map);
        sk_reply_end(&reply);
        if (kind == 2)
            body.bytes[body.size / 2] = 0xc1;
        world_reply(&w, ask, SK_ERR_OK, sk_buffer_span(&body), 9);
        sk_buffer_deinit(&body);
        assert_int_equal(sk_router_get_map(w.router)->version, 5);
    }
    world_end(&w);
}

static void a_change_is_answered_when_our_own_map_has_it(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_request drop = request_on_docs(SK_OP_DROP_COLLECTION, 1);
    struct sk_request count = request_on_docs(SK_OP_COUNT, 2);
    sk_peer client = world_ask(&w, &drop);
    struct message *sent = world_take(&w, SK_ROUTER_PEER_KEEPER);
    assert_int_not_equal(sent->header.incarnation, 0);
    assert_int_not_equal(sent->header.sequence, 0);
    assert_int_equal(sent->header.role, SK_ROLE_ADMIN);
    w.map_version = 6;
    world_reply_ok(&w, sent, NULL, 0);
    assert_null(world_answer(&w, client));
    w.map.collection_count = 0;
    world_give_map(&w);
    assert_true(world_decoded(&w, client).is_ok);
    assert_error(&w, world_ask(&w, &count), SK_ERR_NOT_FOUND, "docs");
    /* an error needs no map */
    client = world_ask(&w, &drop);
    world_reply_error(&w, world_take(&w, SK_ROUTER_PEER_KEEPER), SK_ERR_NOT_FOUND, "no such thing");
    assert_error(&w, client, SK_ERR_NOT_FOUND, "no such thing");
    /* a keeper that says nothing is asked again with the same stamp; then the outcome is unknown */
    client = world_ask(&w, &drop);
    sent = world_take(&w, SK_ROUTER_PEER_KEEPER);
    world_pass(&w, 2000000);
    struct message *again = world_take(&w, SK_ROUTER_PEER_KEEPER);
    assert_non_null(again);
    assert_int_equal(again->header.sequence, sent->header.sequence);
    world_pass(&w, 3000000);
    assert_error(&w, client, SK_ERR_DEADLINE, "outcome is unknown");
    world_end(&w);
}

static void hints_that_come_while_the_keeper_answers_are_not_lost(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_link_header hint = {.kind = SK_LINK_HINT, .map_version = 6};
    world_deliver(&w, SK_ROUTER_PEER_HINTS, &hint, (struct sk_span){0});
    struct message *ask = world_take(&w, SK_ROUTER_PEER_KEEPER);
    assert_non_null(ask);
    hint.map_version = 7;
    world_deliver(&w, SK_ROUTER_PEER_HINTS, &hint, (struct sk_span){0});
    assert_null(world_take(&w, SK_ROUTER_PEER_KEEPER));
    world_reply_ok(&w, ask, NULL, 0); /* nothing newer, it said, before 7 was made */
    assert_non_null(ask = world_take(&w, SK_ROUTER_PEER_KEEPER));
    world_reply_ok(&w, ask, NULL, 0); /* a hint that was wrong does not make us ask for ever */
    assert_null(world_take(&w, SK_ROUTER_PEER_KEEPER));
    world_end(&w);
}

/* ---- restore ---- */

static struct sk_request restore_request(void)
{
    struct sk_request request = request_of(SK_OP_RESTORE, 3);
    request.collection = sk_span_text("kept");
    request.name = sk_span_text("one");
    request.present =
        UINT64_C(1) << SK_FIELD_collection | UINT64_C(1) << SK_FIELD_name;
    return request;
}

/* Up to the point where both shards were asked. */
static sk_peer restore_to_the_shards(struct world *w, struct message *asked[2])
{
    struct sk_request restore = restore_request();
    sk_peer client = world_ask(w, &restore);
    struct message *manifest = world_take(w, WORKER_0);
    static const uint8_t zero[16];
    assert_memory_equal(manifest->header.collection, zero, 16);
    struct sk_buffer body = {0};
    struct sk_reply_writer reply;
    struct sk_request_id id = message_id(manifest);
    struct sk_map_collection *kept = world_add_collection(w, "kept", 2, SK_SCHEMA_L2, 2, 2);
    sk_reply_begin(&reply, &body, &id);
    sk_reply_key(&reply, "schema");
    sk_schema_encode(&body, &kept->schema);
    sk_reply_key(&reply, "shards");
    sk_put_u64(&body, 2);
    sk_reply_end(&reply);
    world_reply(w, manifest, SK_ERR_OK, sk_buffer_span(&body), 5);
    sk_buffer_deinit(&body);
    struct message *create = world_take(w, SK_ROUTER_PEER_KEEPER);
    struct sk_request decoded;
    assert_int_equal(sk_request_decode(&decoded, message_span(create), NULL), SK_ERR_OK);
    assert_int_equal(decoded.op, SK_OP_CREATE_FROM_SCHEMA);
    assert_int_equal(create->header.role, SK_ROLE_LINK);
    assert_true(sk_span_is(decoded.collection, "kept"));
    w->map_version = 6;
    world_reply_ok(w, create, NULL, 0);
    assert_null(world_take(w, WORKER_0));
    world_give_map(w);
    asked[0] = world_take(w, WORKER_0);
    asked[1] = world_take(w, WORKER_0 + 1);
    for (unsigned s = 0; s < 2; s++) {
        assert_non_null(asked[s]);
        assert_int_equal(asked[s]->header.shard, s);
        assert_memory_equal(asked[s]->header.collection, w->map.collections[1].schema.uuid, 16);
        assert_int_equal(sk_request_decode(&decoded, message_span(asked[s]), NULL), SK_ERR_OK);
        assert_int_equal(decoded.op, SK_OP_RESTORE);
    }
    return client;
}

static void a_snapshot_is_restored_in_three_steps(void **state)
{
    (void)state;
    static struct world w;
    struct message *asked[2];
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 2);
    world_hello(&w, 1, 101);
    sk_peer client = restore_to_the_shards(&w, asked);
    world_reply_ok(&w, asked[1], "records", 30);
    assert_null(world_answer(&w, client));
    world_reply_ok(&w, asked[0], "records", 12);
    assert_number(&w, client, "records", 42);
    struct sk_request restore = restore_request();
    assert_error(&w, world_ask(&w, &restore), SK_ERR_EXISTS, "'kept'");
    world_end(&w);
}

static void a_restore_that_fails_takes_its_collection_away_again(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 3; how++) {
        static struct world w;
        struct message *asked[2];
        world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 2);
        world_hello(&w, 1, 101);
        sk_peer client = restore_to_the_shards(&w, asked);
        world_reply_ok(&w, asked[0], "records", 12);
        if (how == 0)
            world_reply_error(&w, asked[1], SK_ERR_DISK_FULL, "the disk is full");
        else if (how == 1)
            world_hello(&w, 1, 999); /* its worker died */
        else
            world_pass(&w, 5000000);
        assert_error(&w, client,
                     how == 0   ? SK_ERR_DISK_FULL
                     : how == 1 ? SK_ERR_UNAVAILABLE
                                : SK_ERR_DEADLINE,
                     "nothing of it is kept");
        struct message *drop = world_take(&w, SK_ROUTER_PEER_KEEPER);
        struct sk_request decoded;
        assert_non_null(drop);
        assert_int_equal(sk_request_decode(&decoded, message_span(drop), NULL), SK_ERR_OK);
        assert_int_equal(decoded.op, SK_OP_DROP_COLLECTION);
        assert_true(sk_span_is(decoded.collection, "kept"));
        world_reply_ok(&w, drop, NULL, 0);
        struct sk_router_status status;
        sk_router_get_status(w.router, &status);
        assert_int_equal(status.requests_in_flight, 0);
        world_end(&w);
    }
}

/* ---- stats ---- */

static void put_recall(struct sk_buffer *to, double measured, double ef_mean, uint64_t queries)
{
    sk_put_text(to, "recall");
    sk_put_map(to, 4);
    sk_put_text(to, "target");
    sk_put_f64(to, 0.9);
    sk_put_text(to, "measured");
    sk_put_f64(to, measured);
    sk_put_text(to, "ef_mean");
    sk_put_f64(to, ef_mean);
    sk_put_text(to, "queries");
    sk_put_u64(to, queries);
}

/* number: of the question that it answers, 0 for none. */
static void give_stats_for(struct world *w, uint32_t worker, uint64_t records, uint64_t number)
{
    struct sk_buffer body = {0};
    struct sk_link_header header = {
        .kind = SK_LINK_STATS, .incarnation = 100 + worker, .request = number};
    sk_put_map(&body, 2);
    sk_put_text(&body, "reads_in_flight");
    sk_put_u64(&body, 3);
    sk_put_text(&body, "shards");
    sk_put_array(&body, 1);
    sk_put_map(&body, 5);
    sk_put_text(&body, "collection");
    sk_put_bin(&body, w->map.collections[0].schema.uuid, 16);
    sk_put_text(&body, "shard");
    sk_put_u64(&body, worker);
    sk_put_text(&body, "state");
    sk_put_text(&body, "ok");
    sk_put_text(&body, "records");
    sk_put_u64(&body, records);
    sk_put_text(&body, "indexes");
    sk_put_array(&body, 1);
    sk_put_map(&body, 5);
    put_recall(&body, worker == 0 ? 0.8 : 1, worker == 0 ? 10 : 30, worker == 0 ? 100 : 300);
    sk_put_text(&body, "vector");
    sk_put_text(&body, "");
    sk_put_text(&body, "state");
    sk_put_text(&body, worker == 0 ? "ready" : "building");
    sk_put_text(&body, "done");
    sk_put_u64(&body, 7);
    sk_put_text(&body, "total");
    sk_put_u64(&body, records);
    world_deliver(w, WORKER_0 + worker, &header, sk_buffer_span(&body));
    sk_buffer_deinit(&body);
}

static void give_stats(struct world *w, uint32_t worker, uint64_t records)
{
    give_stats_for(w, worker, records, 0);
}

/* The answer to the last of the router's questions. */
static void tell_stats(struct world *w, uint32_t worker, uint64_t records)
{
    struct message *last = NULL;
    for (struct message *m = world_take(w, WORKER_0 + worker); m != NULL;
         m = world_take(w, WORKER_0 + worker))
        last = m;
    assert_non_null(last);
    assert_int_equal(last->header.kind, SK_LINK_STATS);
    assert_true(last->header.request != 0 && last->size == 0);
    give_stats_for(w, worker, records, last->header.request);
}

static void give_node_status(struct world *w, struct message *ask)
{
    struct sk_buffer body = {0};
    struct sk_reply_writer reply;
    struct sk_request_id id = message_id(ask);
    sk_reply_begin(&reply, &body, &id);
    sk_reply_key(&reply, "ready");
    sk_put_bool(&body, true);
    sk_reply_key(&reply, "processes");
    sk_put_array(&body, 1);
    sk_put_map(&body, 1);
    sk_put_text(&body, "name");
    sk_put_text(&body, "router");
    sk_reply_end(&reply);
    sk_router_on_message(w->router, SK_ROUTER_PEER_SUPERVISOR, sk_buffer_span(&body));
    sk_buffer_deinit(&body);
}

static void stats_add_up_what_workers_and_supervisor_have_told(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 2, 2);
    give_stats(&w, 0, 40);
    give_stats(&w, 1, 2);
    sk_router_on_message(w.router, WORKER_0, sk_span_of("noise", 5));
    struct sk_request stats = request_of(SK_OP_STATS, 1), topology = request_of(SK_OP_TOPOLOGY, 2);
    sk_peer one = world_ask(&w, &stats), two = world_ask(&w, &topology);
    struct message *ask = world_take(&w, SK_ROUTER_PEER_SUPERVISOR);
    assert_null(world_take(&w, SK_ROUTER_PEER_SUPERVISOR)); /* one question for both */
    give_node_status(&w, ask);
    assert_null(world_answer(&w, one)); /* the workers are asked what they have now */
    tell_stats(&w, 0, 40);
    give_stats(&w, 1, 3); /* its own beat says nothing about when */
    assert_null(world_answer(&w, one));
    tell_stats(&w, 1, 2);
    struct sk_span member;
    struct sk_list list;
    uint64_t value;
    struct sk_reply reply = world_decoded(&w, one);
    assert_true(sk_map_member_list(reply.map, "processes", &list) && list.count == 1);
    assert_false(sk_map_member(reply.map, "warning", &member));
    assert_true(sk_map_member(reply.map, "queue", &member));
    assert_true(sk_map_member_u64(member, "reads_in_flight", &value) && value == 6);
    assert_true(sk_map_member_list(reply.map, "collections", &list) && list.count == 1);
    assert_true(sk_map_member_u64(list.members, "records", &value) && value == 42);
    assert_true(sk_map_member_list(list.members, "indexes", &list) && list.count == 1);
    assert_true(sk_map_member_text(list.members, "state", &member));
    assert_true(sk_span_is(member, "building"));
    double share; /* weighed by the queries */
    assert_true(sk_map_member(list.members, "recall", &member));
    assert_true(sk_map_member_u64(member, "queries", &value) && value == 400);
    assert_true(sk_map_member_number(member, "measured", &share) && fabs(share - 0.95) < 1e-9);
    assert_true(sk_map_member_number(member, "ef_mean", &share) && fabs(share - 25) < 1e-9);
    assert_true(sk_map_member_number(member, "target", &share) && share == 0.9);
    reply = world_decoded(&w, two);
    assert_true(sk_map_member_list(reply.map, "collections", &list) && list.count == 1);
    assert_true(sk_map_member_list(list.members, "shards", &list) && list.count == 2);
    assert_true(sk_map_member_u64(list.members, "records", &value) && value == 40);
    world_end(&w);
}

static void stats_say_so_when_the_supervisor_does_not_answer(void **state)
{
    (void)state;
    static struct world w;
    world_begin_node(&w, 2, SK_SCHEMA_L2, 1, 1);
    struct sk_request stats = request_of(SK_OP_STATS, 1);
    sk_peer client = world_ask(&w, &stats);
    struct message *ask = world_take(&w, SK_ROUTER_PEER_SUPERVISOR);
    world_pass(&w, 499000);
    assert_null(world_answer(&w, client));
    world_pass(&w, 2000);
    struct sk_span warning;
    assert_true(sk_map_member_text(world_decoded(&w, client).map, "warning", &warning));
    give_node_status(&w, ask); /* too late: it is nobody's answer now */
    client = world_ask(&w, &stats);
    assert_null(world_answer(&w, client));
    sk_router_on_message(w.router, SK_ROUTER_PEER_SUPERVISOR, sk_span_of("\xc1", 1));
    give_node_status(&w, world_take(&w, SK_ROUTER_PEER_SUPERVISOR));
    tell_stats(&w, 0, 1);
    assert_false(sk_map_member_text(world_decoded(&w, client).map, "warning", &warning));
    world_end(&w);
}

static void lists_come_from_the_map(void **state)
{
    (void)state;
    static struct world w;
    world_begin(&w);
    w.map_version = 5;
    world_add_collection(&w, "alpha", 2, SK_SCHEMA_L2, 1, 1);
    world_add_collection(&w, "beta", 2, SK_SCHEMA_L2, 1, 1);
    world_add_key(&w, "admin", SK_ROLE_ADMIN);
    world_give_map(&w);
    struct sk_list list;
    struct sk_span role;
    struct sk_request ask = request_of(SK_OP_LIST_COLLECTIONS, 1);
    assert_true(sk_map_member_list(world_decoded(&w, world_ask(&w, &ask)).map, "collections",
                                   &list));
    assert_int_equal(list.count, 2);
    ask = request_of(SK_OP_LIST_KEYS, 2);
    assert_true(sk_map_member_list(world_decoded(&w, world_ask(&w, &ask)).map, "keys", &list));
    assert_int_equal(list.count, 1);
    assert_true(sk_map_member_text(list.members, "role", &role) && sk_span_is(role, "admin"));
    ask = request_of(SK_OP_INFO, 3);
    assert_number(&w, world_ask(&w, &ask), "collections", 2);
    world_end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_wait_for_the_first_map_and_ping_does_not),
        cmocka_unit_test(an_older_map_or_another_node_s_is_refused),
        cmocka_unit_test(a_change_is_answered_when_our_own_map_has_it),
        cmocka_unit_test(hints_that_come_while_the_keeper_answers_are_not_lost),
        cmocka_unit_test(a_snapshot_is_restored_in_three_steps),
        cmocka_unit_test(a_restore_that_fails_takes_its_collection_away_again),
        cmocka_unit_test(stats_add_up_what_workers_and_supervisor_have_told),
        cmocka_unit_test(stats_say_so_when_the_supervisor_does_not_answer),
        cmocka_unit_test(lists_come_from_the_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
