/* links: sk_worker sk_store sk_index sk_proto sk_kernels Threads::Threads */
/* A shard over its life: stops, crashes, damage, changes of the schema and the map, administration. */
#include "tests/unit/worker_requests.h"

/* Share of the true ten that the graph finds. */
static double recall(struct world *w, uint64_t salt, unsigned rounds)
{
    unsigned found = 0;
    for (unsigned q = 0; q < rounds; q++) {
        uint64_t wanted[10], got[10];
        struct asked exact = search_of(0, 1000000 + q, salt, 10);
        sk_put_bool(key(&exact, "exact"), true);
        struct sk_reply reply = ask_ok(w, exact);
        assert_true(bool_of(&reply, "exact"));
        assert_int_equal(ids_of(&reply, "hits", wanted, NULL), 10);
        struct asked asked = search_of(0, 1000000 + q, salt, 10);
        sk_put_u64(key(&asked, "ef"), 100);
        reply = ask_ok(w, asked);
        assert_int_equal(ids_of(&reply, "hits", got, NULL), 10);
        for (unsigned i = 0; i < 10; i++)
            for (unsigned j = 0; j < 10; j++)
                found += got[i] == wanted[j];
    }
    return found / (10.0 * rounds);
}

static void path_of(const struct world *w, const char *below, char path[200])
{
    char text[SK_UUID_TEXT_BYTES];
    snprintf(path, 200, "%s/%s/%s", w->data, sk_uuid_text(w->map.collections[0].schema.uuid, text),
             below);
}

static void the_graph_survives_stops_crashes_and_damage(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    char state[16], path[200];
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 6000; id += 500)
        upsert(w, 0, id, 500, 1);
    wait_indexed(w, 0);
    double before = recall(w, 3, 20);
    assert_true(before >= 0.9);
    struct sk_reply reply = ask_ok(w, search_of(0, 5, 3, 10));
    assert_false(bool_of(&reply, "exact"));
    check(w);
    /* a crash: deltas only, or an early checkpoint and deltas */
    crash(w);
    start(w);
    wait_indexed(w, 0);
    check(w);
    assert_true(recall(w, 3, 20) >= 0.9);
    /* deletes and upserts, then a stop that writes a checkpoint */
    uint64_t gone[200];
    for (unsigned i = 0; i < 200; i++)
        gone[i] = i * 7;
    ask_ok(w, with_ids("delete", 0, gone, 200));
    upsert(w, 0, 3000, 500, 2);
    pass(w, 10000000);
    sk_worker_stop(w->worker);
    struct sk_worker_status status;
    for (unsigned turns = 0; turns < 1000; turns++) {
        sk_worker_get_status(w->worker, &status);
        if (status.is_stopped)
            break;
        pass(w, 10000);
    }
    assert_true(status.is_stopped);
    crash(w);
    path_of(w, "shard-0/index-0.ckpt", path);
    assert_int_equal(access(path, R_OK), 0);
    start(w);
    wait_indexed(w, 0);
    check(w);
    assert_true(recall(w, 3, 20) >= 0.9);
    assert_false(has_record(w, 0, 7, 1));
    crash(w);
    /* a torn checkpoint: exact at once, built again behind */
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, info.st_size / 2, SEEK_SET);
    fwrite("garbage garbage", 1, 15, file);
    fclose(file);
    w->is_holding = true;
    start(w);
    reply = ask_ok(w, search_of(0, 5, 3, 10));
    assert_true(bool_of(&reply, "exact"));
    state_of(w, 0, state);
    assert_string_equal(state, "loading");
    release(w);
    wait_indexed(w, 0);
    state_of(w, 0, state);
    assert_string_equal(state, "ready");
    assert_true(recall(w, 3, 20) >= 0.9);
    check(w);
    world_free(w);
}

static void writes_and_deletes_while_building_are_found(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 5000; id += 500)
        upsert(w, 0, id, 500, 1);
    crash(w); /* nothing of the index may be there: that is the hardest start */
    char path[200], state[16];
    path_of(w, "shard-0/index-0.ckpt", path);
    unlink(path);
    w->config.index_slice_us = 500;
    start(w);
    for (uint64_t id = 0; id < 40; id++) {
        upsert(w, 0, 7000 + id, 5, 1);
        uint64_t dead = id * 3, found[1];
        ask_ok(w, with_ids("delete", 0, &dead, 1));
        struct sk_reply reply = ask_ok(w, search_of(0, 7000 + id, 1, 1));
        assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
        assert_int_equal(found[0], 7000 + id);
        reply = ask_ok(w, search_of(0, dead, 1, 1));
        assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
        assert_int_not_equal(found[0], dead);
    }
    wait_indexed(w, 0);
    state_of(w, 0, state);
    assert_string_equal(state, "ready");
    check(w);
    world_free(w);
}

static void a_used_memory_budget_refuses_upserts_only(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_schema *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    schema->memory_bytes_max = 2 * 1024 * 1024;
    start(w);
    uint64_t id = 0;
    struct sk_reply reply = {0};
    for (; id < 40000; id += 500) {
        reply = ask(w, upsert_of(0, id, 500, 1));
        if (!reply.is_ok)
            break;
        pass(w, 2000000);
    }
    assert_false(reply.is_ok);
    assert_int_equal(reply.code, SK_ERR_NOMEM);
    assert_true(has_record(w, 0, id - 1, 1));
    uint64_t found[1];
    reply = ask_ok(w, search_of(0, id - 1, 1, 1));
    assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
    assert_int_equal(found[0], id - 1);
    check(w);
    /* more memory by alter */
    schema->version++;
    schema->memory_bytes_max = 64 * 1024 * 1024;
    publish(w);
    wait_indexed(w, 0);
    upsert(w, 0, id, 500, 1);
    check(w);
    world_free(w);
}

static void a_full_shard_still_answers_and_deletes(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    w->config.map_bytes_max = 6 * 1024 * 1024;
    w->config.flat_below = 16; /* repairs of the graph after deletes want room too */
    start(w);
    struct sk_reply reply = {0};
    uint64_t id = 0;
    for (; id < 40000; id += 250) {
        reply = ask(w, upsert_of(0, id, 250, 1));
        if (!reply.is_ok)
            break;
    }
    assert_int_equal(reply.code, SK_ERR_DISK_FULL);
    assert_int_equal(count_of(w, 0), id); /* all of a request or nothing */
    uint64_t found[1], gone[250];
    char path[200];
    reply = ask_ok(w, search_of(0, id - 1, 1, 1));
    assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
    assert_int_equal(found[0], id - 1);
    for (uint64_t first = 0; first < id - 250; first += 250) {
        for (unsigned i = 0; i < 250; i++)
            gone[i] = first + i;
        reply = ask_ok(w, with_ids("delete", 0, gone, 250));
        assert_int_equal(number_of(&reply, "deleted"), 250);
        pass(w, 4000000);
        if (first % 1000 == 0)
            check(w);
    }
    upsert(w, 0, 90000, 10, 1); /* the rows of the dead are used again */
    pass(w, 200000000);         /* what gave way to the deletes is written again */
    path_of(w, "shard-0/index-0.ckpt", path);
    assert_int_equal(access(path, R_OK), 0);
    check(w);
    crash(w);
    start(w);
    wait_indexed(w, 0);
    assert_true(has_record(w, 0, 90003, 1));
    check(w);
    world_free(w);
}

static void the_schema_can_be_altered(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    struct sk_schema *schema = add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    schema->field_count = 1;
    start(w);
    upsert(w, 0, 0, 200, 1);
    schema->field_count = 2; /* "size", indexed behind */
    schema->version++;
    publish(w);
    wait_indexed(w, 0);
    struct asked asked = begin("count", 0);
    sk_put_map(key(&asked, "filter"), 1);
    sk_put_text(&asked.frame, "must");
    sk_put_array(&asked.frame, 1);
    sk_put_map(&asked.frame, 2);
    sk_put_text(&asked.frame, "key");
    sk_put_text(&asked.frame, "size");
    sk_put_text(&asked.frame, "range");
    sk_put_map(&asked.frame, 1);
    sk_put_text(&asked.frame, "lt");
    sk_put_u64(&asked.frame, 50);
    struct sk_reply reply = ask_ok(w, asked);
    struct sk_span warning;
    assert_int_equal(number_of(&reply, "count"), 50);
    assert_false(sk_map_member(reply.map, "warning", &warning));
    check(w);
    world_free(w);
}

static void a_request_with_a_newer_map_waits_for_it(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    add_collection(w, "more", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    upsert(w, 1, 0, 5, 1); /* nobody sent a hint */
    assert_int_equal(count_of(w, 1), 5);
    /* a drop takes the folder away, and nothing else */
    char path[200];
    uint8_t uuid[SK_UUID_BYTES];
    memcpy(uuid, w->map.collections[0].schema.uuid, sizeof uuid);
    path_of(w, "", path);
    assert_int_equal(access(path, F_OK), 0);
    w->map.collections[0] = w->map.collections[1];
    w->map.collection_count = 1;
    publish(w);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(count_of(w, 0), 5);
    world_free(w);
}

static void verify_compact_snapshot_restore(void **unused)
{
    (void)unused;
    struct world *w = world_new();
    add_collection(w, "docs", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    start(w);
    for (uint64_t id = 0; id < 3000; id += 500)
        upsert(w, 0, id, 500, 1);
    struct asked asked = begin("verify", 0);
    asked.deadline_ms = 60000;
    struct sk_reply reply = ask_ok(w, asked);
    assert_true(number_of(&reply, "checked") >= 3000);
    assert_int_equal(number_of(&reply, "mended"), 0);
    uint64_t gone[1000];
    for (unsigned i = 0; i < 1000; i++)
        gone[i] = i * 2;
    ask_ok(w, with_ids("delete", 0, gone, 1000));
    pass(w, 20000000);
    reply = ask_ok(w, begin("compact", 0));
    assert_true(number_of(&reply, "bytes_after") <= number_of(&reply, "bytes_before"));
    assert_int_equal(count_of(w, 0), 2000);
    assert_true(has_record(w, 0, 2999, 1));
    for (unsigned round = 0; round < 2; round++) {
        asked = begin("snapshot", 0);
        sk_put_text(key(&asked, "name"), "evening");
        reply = ask(w, asked);
        assert_int_equal(reply.is_ok, round == 0);
        if (round == 1)
            assert_int_equal(reply.code, SK_ERR_EXISTS);
    }
    add_collection(w, "copy", SK_SCHEMA_HNSW, SK_SCHEMA_COSINE);
    publish(w);
    asked = begin("restore", 1);
    sk_put_text(key(&asked, "name"), "evening");
    reply = ask_ok(w, asked);
    assert_int_equal(number_of(&reply, "records"), 2000);
    wait_indexed(w, 1);
    assert_int_equal(count_of(w, 1), 2000);
    assert_true(has_record(w, 1, 2999, 1));
    uint64_t found[1];
    reply = ask_ok(w, search_of(1, 2999, 1, 1));
    assert_int_equal(ids_of(&reply, "hits", found, NULL), 1);
    assert_int_equal(found[0], 2999);
    asked = begin("restore", 1);
    sk_put_text(key(&asked, "name"), "evening");
    reply = ask(w, asked);
    assert_int_equal(reply.code, SK_ERR_EXISTS);
    asked = begin("restore", 1);
    sk_put_text(key(&asked, "name"), "morning");
    reply = ask(w, asked);
    assert_false(reply.is_ok);
    check(w);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_graph_survives_stops_crashes_and_damage),
        cmocka_unit_test(writes_and_deletes_while_building_are_found),
        cmocka_unit_test(a_used_memory_budget_refuses_upserts_only),
        cmocka_unit_test(a_full_shard_still_answers_and_deletes),
        cmocka_unit_test(the_schema_can_be_altered),
        cmocka_unit_test(a_request_with_a_newer_map_waits_for_it),
        cmocka_unit_test(verify_compact_snapshot_restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
