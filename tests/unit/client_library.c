/* links: skerry_static PkgConfig::ZMQ */
/* libskerry: what it sends and how it reads what comes back. */
#include "tests/unit/client_fake.h"

static void connect_pings_and_tells_the_node_and_its_version(void **state)
{
    struct skerry *db = connect_to(*state);
    assert_string_equal(skerry_node_key(db), "the key");
    assert_string_equal(skerry_node_version(db), "0.1.0");
    skerry_close(&db);
    assert_null(db);
    skerry_close(&db);
}

static void every_operation_sends_the_fields_of_the_protocol(void **state)
{
    static const float rows[4] = {1, 0, 0, 0.5F};
    static const uint64_t numbers[2] = {5, UINT64_MAX};
    static const char *const texts[2] = {NULL, "b"};
    static const uint32_t ttl_s[2] = {60, 0};
    struct fake *fake = *state;
    struct skerry *db = connect_to(fake);
    struct skerry_error error = {0};
    uint64_t number = 0;
    struct skerry_vectors column = {.values = rows, .dim = 2};
    struct skerry_bytes payloads[2] = {{"\x81\xa1k\x01", 4}, {NULL, 0}};
    struct skerry_upsert upsert = {.collection = "docs",
                                   .ids = {2, numbers, texts},
                                   .vectors = &column,
                                   .vector_count = 1,
                                   .payloads = payloads,
                                   .ttl_s = ttl_s};
    assert_int_equal(skerry_upsert(db, &upsert, &number, &error), SKERRY_OK);
    assert_int_equal(number, 7);
    assert_sent(
        fake, ",\"collection\":\"docs\",\"ids\":[5,\"b\"],\"vectors\":\"AACAPwAAAAAAAAAAAAAAPw==\","
              "\"payloads\":[{\"k\":1},null],\"ttl_s\":[60,null]}");

    struct skerry_ids ids = {2, numbers, NULL};
    assert_int_equal(skerry_delete(db, "docs", &ids, 0, &number, &error), SKERRY_OK);
    assert_int_equal(number, 3);
    assert_sent(fake, ",\"collection\":\"docs\",\"ids\":[5,18446744073709551615]}");

    struct skerry_filter filter = {.json = "{\"must\":[{\"key\":\"pos\",\"match\":\"noun\"}]}"};
    assert_int_equal(skerry_count(db, "docs", &filter, 0, &number, &error), SKERRY_OK);
    assert_sent(
        fake,
        ",\"collection\":\"docs\",\"filter\":{\"must\":[{\"key\":\"pos\",\"match\":\"noun\"}]}}");

    assert_int_equal(
        skerry_set_payload(db, "docs", &ids, NULL, "{\"a\":null}", "merge", 0, &number, &error),
        SKERRY_OK);
    assert_int_equal(number, 2);
    assert_sent(fake, ",\"collection\":\"docs\",\"ids\":[5,18446744073709551615],"
                      "\"payload\":{\"a\":null},\"mode\":\"merge\"}");

    struct skerry_vector_field fields[2] = {{.name = "text", .dim = 384, .m = 16},
                                            {.name = "image", .dim = 512, .metric = "l2"}};
    struct skerry_payload_field payload_fields[1] = {{"pos", "keyword"}};
    struct skerry_collection_options options = {.name = "docs",
                                                .vectors = fields,
                                                .vector_count = 2,
                                                .fields = payload_fields,
                                                .field_count = 1,
                                                .shards = 2};
    assert_int_equal(skerry_create_collection(db, &options, &error), SKERRY_OK);
    assert_sent(
        fake, ",\"collection\":\"docs\",\"vectors\":{\"text\":{\"dim\":384,\"metric\":\"cosine\","
              "\"index\":{\"type\":\"hnsw\",\"m\":16}},\"image\":{\"dim\":512,\"metric\":\"l2\"}},"
              "\"payload\":{\"pos\":\"keyword\"},\"shards\":2}");
    const char *const keys[2] = {"words", "gloss"};
    struct skerry_search search = {.collection = "docs",
                                   .like = &(struct skerry_id){.number = 4},
                                   .payload_keys = keys,
                                   .payload_key_count = 2};
    struct skerry_hits *hits = NULL;
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_OK);
    skerry_hits_free(&hits);
    assert_sent(fake,
                ",\"collection\":\"docs\",\"like\":4,\"with_payload\":[\"words\",\"gloss\"]}");
    skerry_close(&db);
}

static void indexes_and_how_hard_to_look_are_sent_as_they_were_given(void **state)
{
    static const float rows[2] = {1, 0};
    struct fake *fake = *state;
    struct skerry *db = connect_to(fake);
    struct skerry_error error = {0};
    struct skerry_vector_field field = {
        .dim = 64, .index = "ivf_pq", .nlist = 100, .pq_m = 16, .refine = 3};
    struct skerry_collection_options options = {
        .name = "docs", .vectors = &field, .vector_count = 1};
    assert_int_equal(skerry_create_collection(db, &options, &error), SKERRY_OK);
    assert_sent(fake,
                ",\"collection\":\"docs\",\"vectors\":{\"dim\":64,\"metric\":\"cosine\",\"index\":"
                "{\"type\":\"ivf_pq\",\"nlist\":100,\"pq_m\":16,\"refine\":3}}}");
    field = (struct skerry_vector_field){.dim = 64, .profile = "speed"};
    assert_int_equal(skerry_create_collection(db, &options, &error), SKERRY_OK);
    assert_sent(fake, ",\"collection\":\"docs\",\"vectors\":{\"dim\":64,\"metric\":\"cosine\","
                      "\"index\":{\"type\":\"hnsw\",\"profile\":\"speed\"}}}");
    field.reserved_u32 = 1;
    assert_int_equal(skerry_create_collection(db, &options, &error), SKERRY_INVALID);

    struct skerry_search search = {.collection = "docs", .vectors = rows, .dim = 2, .nprobe = 9};
    struct skerry_hits *hits = NULL;
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_OK);
    skerry_hits_free(&hits);
    assert_sent(fake, ",\"collection\":\"docs\",\"vector\":[1.0,0.0],\"nprobe\":9}");
    search = (struct skerry_search){.collection = "docs", .vectors = rows, .dim = 2, .recall = 0.75};
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_OK);
    skerry_hits_free(&hits);
    assert_sent(fake, ",\"collection\":\"docs\",\"vector\":[1.0,0.0],\"recall\":0.75}");
    search.reserved_u32 = 1;
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_INVALID);
    skerry_close(&db);
}

static void the_deadline_travels_with_the_request(void **state)
{
    struct fake *fake = *state;
    struct skerry *db = connect_to(fake);
    struct skerry_error error = {0};
    uint64_t count = 0;
    assert_int_equal(skerry_count(db, "docs", NULL, 1234, &count, &error), SKERRY_OK);
    assert_deadline(fake, "\"deadline_ms\":1234,");
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    assert_deadline(fake, "\"deadline_ms\":5000,");
    skerry_close(&db);
}

static void hits_of_one_query_and_of_many_are_read(void **state)
{
    static const float query[6] = {1, 2, 3, 4, 5, 6};
    float threshold = 0.25F, vector[2];
    struct fake *fake = *state;
    struct skerry *db = connect_to(fake);
    struct skerry_error error = {0};
    struct skerry_hits *hits = NULL;
    struct skerry_search search = {.collection = "docs",
                                   .vectors = query,
                                   .dim = 2,
                                   .limit = 3,
                                   .score_threshold = &threshold,
                                   .with_payload = true};
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_OK);
    assert_sent(fake,
                ",\"collection\":\"docs\",\"vector\":[1.0,2.0],\"limit\":3,\"with_payload\":true,"
                "\"score_threshold\":0.25}");
    assert_int_equal(hits->query_count, 1);
    assert_int_equal(hits->starts[1], 2);
    assert_null(hits->hits[0].id.text);
    assert_int_equal(hits->hits[0].id.number, 42);
    assert_true(hits->hits[0].score == 0.75F);
    assert_int_equal(hits->hits[0].payload.size, 12);
    assert_int_equal(hits->hits[0].vector.size, sizeof vector);
    memcpy(vector, hits->hits[0].vector.bytes, sizeof vector);
    assert_true(vector[0] == 0.5F && vector[1] == -1.0F);
    assert_string_equal(hits->hits[1].id.text, "a0");
    assert_null(hits->hits[1].payload.bytes);
    assert_true(hits->exact);
    assert_int_equal(hits->shards_asked, 4);
    assert_int_equal(hits->shards_answered, 3);
    assert_string_equal(hits->source, "index");
    assert_string_equal(hits->warning, "by scan");
    skerry_hits_free(&hits);
    assert_null(hits);

    search =
        (struct skerry_search){.collection = "many", .vectors = query, .query_count = 3, .dim = 2};
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_OK);
    assert_int_equal(hits->query_count, 3);
    assert_int_equal(hits->starts[1], 2);
    assert_int_equal(hits->starts[2], 2);
    assert_int_equal(hits->starts[3], 3);
    assert_string_equal(hits->hits[1].id.text, "one");
    assert_true(hits->hits[2].id.number == UINT64_MAX);
    skerry_hits_free(&hits);
    skerry_close(&db);
}

static void records_that_are_not_there_keep_their_place(void **state)
{
    static const uint64_t numbers[2] = {5, 6};
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    struct skerry_ids ids = {2, numbers, NULL};
    struct skerry_records *records = NULL;
    assert_int_equal(skerry_get(db, "docs", &ids, true, false, 0, &records, &error), SKERRY_OK);
    assert_int_equal(records->count, 2);
    assert_true(records->records[0].is_found);
    assert_int_equal(records->records[0].id.number, 5);
    assert_false(records->records[1].is_found);
    skerry_records_free(&records);

    struct skerry_scroll scroll = {.collection = "docs"};
    assert_int_equal(skerry_scroll(db, &scroll, &records, &error), SKERRY_OK);
    assert_memory_equal(records->cursor.bytes, "\xa4next", 5);
    scroll.cursor = records->cursor;
    struct skerry_records *next = NULL;
    assert_int_equal(skerry_scroll(db, &scroll, &next, &error), SKERRY_OK);
    assert_sent(*state, ",\"collection\":\"docs\",\"cursor\":\"next\"}");
    skerry_records_free(&records);
    skerry_records_free(&next);
    skerry_close(&db);
}

static void an_error_of_the_node_is_given_whole(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 99;
    assert_int_equal(skerry_count(db, "error", NULL, 0, &count, &error), SKERRY_NOT_FOUND);
    assert_int_equal(count, 0);
    assert_int_equal(error.code, SKERRY_NOT_FOUND);
    assert_string_equal(error.name, "not_found");
    assert_string_equal(error.field, "collection");
    assert_non_null(strstr(error.message, "closest name"));
    assert_false(error.retriable);
    assert_false(error.is_unreachable);
    assert_int_equal(skerry_count(db, "error", NULL, 0, &count, NULL), SKERRY_NOT_FOUND);
    skerry_close(&db);
}

static void bad_arguments_are_refused_with_the_field(void **state)
{
    static const float rows[2] = {1, 0};
    static const uint64_t numbers[1] = {1};
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    struct skerry_hits *hits = NULL;
    uint64_t number = 0;
    struct skerry_search search = {.collection = "docs"};
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_INVALID);
    assert_string_equal(error.field, "vector");
    search = (struct skerry_search){.collection = "docs", .vectors = rows, .dim = 9000};
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_INVALID);
    search = (struct skerry_search){.collection = "docs", .vectors = rows, .dim = 2};
    search.filter.json = "{\"must\":[}";
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_INVALID);
    assert_string_equal(error.field, "filter");
    assert_non_null(strstr(error.message, "byte 9"));
    search.filter.json = NULL;
    search.reserved[0] = 1;
    assert_int_equal(skerry_search(db, &search, &hits, &error), SKERRY_INVALID);
    struct skerry_upsert upsert = {.collection = "docs", .ids = {10001, numbers, NULL}};
    assert_int_equal(skerry_upsert(db, &upsert, &number, &error), SKERRY_TOO_LARGE);
    assert_int_equal(skerry_delete_where(db, "docs", NULL, 0, &number, &error), SKERRY_INVALID);
    assert_int_equal(skerry_count(db, NULL, NULL, 0, &number, &error), SKERRY_INVALID);
    struct skerry_reply *reply = NULL;
    assert_int_equal(skerry_call(db, "x", (struct skerry_bytes){"\x81\xa1", 2}, 0, &reply, &error),
                     SKERRY_INVALID);
    assert_null(reply);
    assert_int_equal(requests_seen(*state), 1); /* the ping: nothing else was sent */
    skerry_close(&db);
}

int main(void)
{
#define LOCAL(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        LOCAL(connect_pings_and_tells_the_node_and_its_version),
        LOCAL(every_operation_sends_the_fields_of_the_protocol),
        LOCAL(indexes_and_how_hard_to_look_are_sent_as_they_were_given),
        LOCAL(the_deadline_travels_with_the_request),
        LOCAL(hits_of_one_query_and_of_many_are_read),
        LOCAL(records_that_are_not_there_keep_their_place),
        LOCAL(an_error_of_the_node_is_given_whole),
        LOCAL(bad_arguments_are_refused_with_the_field),
    };
    return cmocka_run_group_tests_name("client: library", tests, NULL, NULL);
}
