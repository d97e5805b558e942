/* links: sk_router sk_proto */
/* Several shards: what is split and merged is compared with one brute-force model of all records. The
 * shards are played by the same model, each over its own part. */
#include "tests/unit/router_model.h"

/* ---- the node ---- */

static void begin(enum sk_schema_metric metric)
{
    world_begin_node(&w, DIM, metric, SHARDS, WORKERS);
    memset(&model, 0, sizeof model);
    model.metric = metric;
    model.schema = &w.map.collections[0].schema;
}

/* All that was sent to workers is answered, newest first (order must not matter), until nothing is. */
static unsigned serve(void)
{
    unsigned served = 0;
    for (;;) {
        struct message *open[64];
        unsigned count = 0;
        for (unsigned worker = 0; worker < WORKERS; worker++)
            for (struct message *m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker); m != NULL;
                 m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker))
                open[count++] = m;
        if (count == 0)
            return served;
        while (count > 0) {
            struct sk_buffer body = {0};
            struct message *m = open[--count];
            assert_int_equal(m->to, SK_ROUTER_PEER_WORKER_0 + m->header.shard % WORKERS);
            model_answer(&body, message_span(m), m->header.shard);
            world_reply(&w, m, SK_ERR_OK, sk_buffer_span(&body), w.map_version);
            sk_buffer_deinit(&body);
            served++;
        }
    }
}

/* The same packed member in the router's answer and in that of a model that holds everything. */
static void assert_like_model(const struct sk_request *request, const char *const *members)
{
    struct sk_buffer frame = {0}, wanted = {0};
    sk_request_encode(&frame, request);
    model_answer(&wanted, sk_buffer_span(&frame), -1);
    sk_peer client = world_ask(&w, request);
    serve();
    struct sk_reply reply = world_decoded(&w, client);
    if (!reply.is_ok)
        fail_msg("%.*s", (int)reply.error_message.size, (const char *)reply.error_message.bytes);
    for (; *members != NULL; members++) {
        struct sk_span got, want;
        assert_true(sk_map_member(reply.map, *members, &got));
        assert_true(sk_map_member(sk_buffer_span(&wanted), *members, &want));
        assert_true(sk_span_equals(got, want));
    }
    sk_buffer_deinit(&frame);
    sk_buffer_deinit(&wanted);
}

/* Columns or rows, bins or arrays of integers. Vectors on a small grid: many ties. */
static void upsert(unsigned first, unsigned count)
{
    struct sk_buffer ids = {0}, vectors = {0}, payloads = {0}, rows = {0};
    struct sk_request request = request_on_docs(SK_OP_UPSERT, first);
    sk_put_bin_head(&vectors, count * DIM * sizeof(float));
    for (unsigned i = 0; i < count; i++) {
        struct sk_id id = id_of(first + i);
        float vector[DIM] = {(float)draw(5), (float)draw(4) + 1};
        sk_put_id(&ids, &id);
        sk_buffer_append(&vectors, vector, sizeof vector);
        sk_put_map(&payloads, 1);
        sk_put_text(&payloads, "n");
        sk_put_u64(&payloads, first + i);
        sk_put_map(&rows, 4);
        sk_put_text(&rows, "id");
        sk_put_id(&rows, &id);
        sk_put_text(&rows, "vector");
        sk_put_array(&rows, DIM);
        for (unsigned k = 0; k < DIM; k++)
            sk_put_u64(&rows, (uint64_t)vector[k]);
        sk_put_text(&rows, "payload");
        sk_put_map(&rows, 1);
        sk_put_text(&rows, "n");
        sk_put_u64(&rows, first + i);
        sk_put_text(&rows, "ttl_s");
        sk_put_u64(&rows, 3);
    }
    if (first % 2 == 0) {
        request.ids = (struct sk_list){sk_buffer_span(&ids), count, true};
        request.vectors = sk_buffer_span(&vectors);
        request.payloads = (struct sk_list){sk_buffer_span(&payloads), count, true};
        request.present |= UINT64_C(1) << SK_FIELD_ids | UINT64_C(1) << SK_FIELD_vectors |
                           UINT64_C(1) << SK_FIELD_payloads;
    } else {
        request.records = (struct sk_list){sk_buffer_span(&rows), count, true};
        request.present |= UINT64_C(1) << SK_FIELD_records;
    }
    sk_peer client = world_ask(&w, &request);
    serve();
    assert_number(&w, client, "upserted", count);
    sk_buffer_deinit(&ids);
    sk_buffer_deinit(&vectors);
    sk_buffer_deinit(&payloads);
    sk_buffer_deinit(&rows);
}

static struct sk_request ids_request(enum sk_op op, struct sk_buffer *members, unsigned count)
{
    struct sk_request request = request_on_docs(op, 9);
    sk_buffer_clear(members);
    for (unsigned i = 0; i < count; i++) {
        struct sk_id id = id_of(draw(260)); /* some twice, some that are not there */
        sk_put_id(members, &id);
    }
    request.ids = (struct sk_list){sk_buffer_span(members), count, true};
    request.present |= UINT64_C(1) << SK_FIELD_ids;
    return request;
}

static void check_searches(void)
{
    static const char *const hits[] = {"hits", "exact", NULL}, *const radius[] = {"hits", "more", NULL};
    struct sk_buffer many = {0};
    for (unsigned round = 0; round < 12; round++) {
        float query[DIM] = {(float)draw(5), (float)draw(5)};
        if (query[1] == 0)
            query[1] = 1;
        struct sk_request request = search_request(round, query, DIM);
        request.limit = (uint32_t)(1 + draw(20));
        request.present |= UINT64_C(1) << SK_FIELD_limit;
        request.exact = round % 2 == 0;
        request.with_payload.is_wanted = round % 3 == 0;
        request.with_vector = round % 4 == 0;
        request.present |= UINT64_C(1) << SK_FIELD_exact | UINT64_C(1) << SK_FIELD_with_payload |
                           UINT64_C(1) << SK_FIELD_with_vector;
        assert_like_model(&request, hits);
        request.score_threshold = (double)draw(4);
        request.present |= UINT64_C(1) << SK_FIELD_score_threshold;
        assert_like_model(&request, radius);
        request.present &= ~(UINT64_C(1) << SK_FIELD_vector);
        struct sk_request like = request;
        like.like = id_of(1 + draw(60));
        like.present |= UINT64_C(1) << SK_FIELD_like;
        struct record *record = model_find(&like.like);
        if (round % 2 == 0) { /* few: all of them may be of the record's own shard */
            like.limit = (uint32_t)(1 + draw(3));
            like.present &= ~(UINT64_C(1) << SK_FIELD_score_threshold);
        }
        if (record != NULL && record->is_there)
            assert_like_model(&like, round % 2 == 0 ? hits : radius);
        unsigned count = (unsigned)(1 + draw(6));
        sk_buffer_clear(&many);
        sk_put_bin_head(&many, count * sizeof query);
        for (unsigned q = 0; q < count; q++) {
            query[0] = (float)draw(5);
            sk_buffer_append(&many, query, sizeof query);
        }
        request.queries = sk_buffer_span(&many);
        request.present |= UINT64_C(1) << SK_FIELD_queries;
        assert_like_model(&request, hits);
    }
    sk_buffer_deinit(&many);
}

static void answers_of_three_shards_equal_those_of_one(void **state)
{
    (void)state;
    static const char *const records[] = {"records", NULL}, *const count[] = {"count", NULL};
    static const enum sk_schema_metric metrics[] = {SK_SCHEMA_L2, SK_SCHEMA_IP, SK_SCHEMA_COSINE};
    for (unsigned m = 0; m < SK_COUNT_OF(metrics); m++) {
        struct sk_buffer members = {0};
        begin(metrics[m]);
        struct sk_request counting = request_on_docs(SK_OP_COUNT, 1);
        assert_like_model(&counting, count); /* nothing there yet */
        for (unsigned first = 0; first < 200; first += 25)
            upsert(first, 25);
        upsert(30, 25);
        assert_like_model(&counting, count);
        for (unsigned round = 0; round < 6; round++) {
            struct sk_request get = ids_request(SK_OP_GET, &members, (unsigned)(1 + draw(50)));
            get.with_payload.is_wanted = true;
            get.present |= UINT64_C(1) << SK_FIELD_with_payload;
            assert_like_model(&get, records);
        }
        check_searches();
        struct sk_request delete = ids_request(SK_OP_DELETE, &members, 60);
        world_ask(&w, &delete);
        serve();
        assert_like_model(&counting, count);
        check_searches();
        sk_buffer_deinit(&members);
        world_end(&w);
    }
}

static void a_scroll_shows_every_record_once_in_id_order(void **state)
{
    (void)state;
    begin(SK_SCHEMA_L2);
    for (unsigned first = 0; first < 100; first += 10)
        upsert(first, 10);
    static const uint32_t limits[] = {1, 3, 7, 64, 1000};
    for (size_t l = 0; l < SK_COUNT_OF(limits); l++) {
        struct sk_request request = request_on_docs(SK_OP_SCROLL, 1);
        struct sk_buffer cursor = {0};
        struct sk_id last = {0};
        unsigned seen = 0;
        request.limit = limits[l];
        request.present |= UINT64_C(1) << SK_FIELD_limit;
        for (unsigned page = 0;; page++) {
            assert_true(page < 200);
            sk_peer client = world_ask(&w, &request);
            serve();
            struct sk_reply reply = world_decoded(&w, client);
            struct sk_list list;
            struct sk_span record, packed;
            assert_true(sk_map_member_list(reply.map, "records", &list));
            assert_true(list.count <= limits[l]);
            struct sk_reader from = sk_reader_of(list.members);
            for (uint32_t i = 0; i < list.count; i++) {
                struct sk_id id;
                assert_int_equal(sk_read_raw(&from, 8, &record, NULL), SK_ERR_OK);
                assert_true(sk_map_member(record, "id", &packed));
                struct sk_reader at = sk_reader_of(packed);
                assert_int_equal(sk_read_id(&at, &id, NULL), SK_ERR_OK);
                assert_true(last.size == 0 || sk_id_compare(&last, &id) < 0);
                last = id;
                seen++;
            }
            assert_true(sk_map_member(reply.map, "cursor", &packed));
            if (packed.bytes[0] == 0xC0)
                break;
            sk_buffer_clear(&cursor);
            sk_put_raw(&cursor, packed);
            request.cursor = sk_buffer_span(&cursor);
            request.present |= UINT64_C(1) << SK_FIELD_cursor;
        }
        assert_int_equal(seen, 100);
        sk_buffer_deinit(&cursor);
    }
    world_end(&w);
}

/* ---- what goes wrong ---- */

static void nothing_is_sent_when_one_row_is_wrong(void **state)
{
    (void)state;
    begin(SK_SCHEMA_COSINE);
    struct sk_buffer vectors = {0}, ids = {0};
    float zero[DIM * 8] = {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1};
    struct sk_request request = request_on_docs(SK_OP_UPSERT, 1);
    sk_put_bin(&vectors, zero, sizeof zero);
    for (unsigned i = 0; i < 8; i++)
        sk_put_u64(&ids, i);
    request.ids = (struct sk_list){sk_buffer_span(&ids), 8, true};
    request.vectors = sk_buffer_span(&vectors);
    request.present |= UINT64_C(1) << SK_FIELD_ids | UINT64_C(1) << SK_FIELD_vectors;
    assert_error(&w, world_ask(&w, &request), SK_ERR_INVALID, "vectors row 4");
    struct sk_request search = search_request(2, zero, DIM);
    search.using = sk_span_text("other");
    search.present |= UINT64_C(1) << SK_FIELD_using;
    assert_error(&w, world_ask(&w, &search), SK_ERR_NOT_FOUND, "other");
    search.like = sk_id_from_u64(1);
    search.present |= UINT64_C(1) << SK_FIELD_like;
    assert_error(&w, world_ask(&w, &search), SK_ERR_INVALID, "exactly one of");
    assert_int_equal(serve(), 0);
    sk_buffer_deinit(&vectors);
    sk_buffer_deinit(&ids);
    world_end(&w);
}

/* Four ids on all three shards; *messages by shard. */
static sk_peer ask_delete(struct message *messages[SHARDS])
{
    static struct sk_buffer members;
    struct sk_request request = request_on_docs(SK_OP_DELETE, 1);
    sk_buffer_clear(&members);
    for (unsigned i = 0; i < 12; i++)
        sk_put_u64(&members, i);
    request.ids = (struct sk_list){sk_buffer_span(&members), 12, true};
    request.present |= UINT64_C(1) << SK_FIELD_ids;
    sk_peer client = world_ask(&w, &request);
    sk_buffer_deinit(&members);
    for (unsigned worker = 0; worker < WORKERS; worker++)
        for (struct message *m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker); m != NULL;
             m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker)) {
            assert_true(m->header.is_part);
            messages[m->header.shard] = m;
        }
    for (unsigned s = 0; s < SHARDS; s++)
        assert_non_null(messages[s]);
    assert_int_not_equal(messages[0]->header.sequence, messages[1]->header.sequence);
    return client;
}

static void assert_shards(sk_peer client, const char *name, unsigned mask)
{
    struct sk_span error;
    struct sk_list list;
    unsigned got = 0;
    assert_true(sk_map_member(world_decoded(&w, client).map, "error", &error));
    assert_true(sk_map_member_list(error, name, &list));
    struct sk_reader from = sk_reader_of(list.members);
    for (uint32_t i = 0; i < list.count; i++) {
        struct sk_value value;
        assert_int_equal(sk_read(&from, &value, NULL), SK_ERR_OK);
        got |= 1U << value.u64;
    }
    assert_int_equal(got, mask);
}

static void an_error_over_several_shards_lists_which_applied(void **state)
{
    (void)state;
    struct message *messages[SHARDS];
    begin(SK_SCHEMA_L2);
    sk_peer client = ask_delete(messages);
    world_reply_ok(&w, messages[0], "deleted", 4);
    world_reply_ok(&w, messages[2], "deleted", 5);
    assert_null(world_answer(&w, client));
    world_reply_ok(&w, messages[1], "deleted", 3);
    assert_number(&w, client, "deleted", 12);

    client = ask_delete(messages);
    world_reply_ok(&w, messages[0], "deleted", 4);
    world_reply_error(&w, messages[1], SK_ERR_DISK_FULL, "the disk is full");
    world_reply_ok(&w, messages[2], "deleted", 5);
    assert_error(&w, client, SK_ERR_DISK_FULL, "applied in shards 0, 2; not in shards 1");
    assert_shards(client, "shards_applied", 5);
    assert_shards(client, "shards_failed", 2);
    assert_shards(client, "shards_unknown", 0);

    client = ask_delete(messages);
    world_reply_error(&w, messages[1], SK_ERR_DISK_FULL, "the disk is full");
    world_reply_ok(&w, messages[2], "deleted", 5);
    world_pass(&w, 5000000);
    assert_error(&w, client, SK_ERR_DEADLINE, "outcome unknown in shards 0");
    assert_shards(client, "shards_applied", 4);
    assert_shards(client, "shards_unknown", 1);

    client = ask_delete(messages);
    for (unsigned s = 0; s < SHARDS; s++)
        world_reply_error(&w, messages[s], s == 1 ? SK_ERR_BUSY : SK_ERR_INVALID, "no");
    assert_error(&w, client, SK_ERR_INVALID, "no"); /* nothing applied: as one shard says it */
    world_end(&w);
}

static void a_partial_search_says_so_and_a_partial_count_is_an_error(void **state)
{
    (void)state;
    begin(SK_SCHEMA_L2);
    for (unsigned first = 0; first < 60; first += 10)
        upsert(first, 10);
    const float query[DIM] = {1, 2};
    struct sk_request search = search_request(1, query, DIM), count = request_on_docs(SK_OP_COUNT, 2);
    sk_peer searcher = world_ask(&w, &search), counter = world_ask(&w, &count);
    for (unsigned worker = 0; worker < WORKERS; worker++)
        for (struct message *m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker); m != NULL;
             m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker)) {
            struct sk_buffer body = {0};
            model_answer(&body, message_span(m), m->header.shard);
            if (m->header.shard != 2)
                world_reply(&w, m, SK_ERR_OK, sk_buffer_span(&body), 5);
            sk_buffer_deinit(&body);
        }
    world_pass(&w, 5000000);
    struct sk_span shards = {0}, warning;
    uint64_t asked = 0, answered = 0;
    struct sk_reply reply = world_decoded(&w, searcher);
    assert_true(reply.is_ok && sk_map_member(reply.map, "shards", &shards));
    assert_true(sk_map_member_u64(shards, "asked", &asked) && asked == 3);
    assert_true(sk_map_member_u64(shards, "answered", &answered) && answered == 2);
    assert_true(sk_map_member_text(reply.map, "warning", &warning));
    assert_error(&w, counter, SK_ERR_DEADLINE, "shard-worker 0");
    world_end(&w);
}

static void neighbours_of_nobody_are_not_found(void **state)
{
    (void)state;
    begin(SK_SCHEMA_L2);
    struct sk_request like = request_on_docs(SK_OP_SEARCH, 1);
    like.like = sk_id_from_u64(12345);
    like.present |= UINT64_C(1) << SK_FIELD_like;
    sk_peer client = world_ask(&w, &like);
    assert_int_equal(serve(), 1);
    assert_error(&w, client, SK_ERR_NOT_FOUND, "'12345'");
    like.limit = SK_LIMIT_MAX;
    like.present |= UINT64_C(1) << SK_FIELD_limit;
    assert_error(&w, world_ask(&w, &like), SK_ERR_TOO_LARGE, "9999");
    world_end(&w);
}

/* Every cut of a good reply, and every byte of it changed, from one shard of three: an answer or an
 * error, nothing else (sanitizers watch). */
static void replies_of_a_shard_that_make_no_sense_hurt_nobody(void **state)
{
    (void)state;
    begin(SK_SCHEMA_L2);
    for (unsigned first = 0; first < 10; first += 5)
        upsert(first, 5);
    const float query[DIM] = {1, 2};
    struct sk_buffer members = {0};
    struct sk_request requests[4] = {search_request(1, query, DIM), request_on_docs(SK_OP_SCROLL, 1),
                                     request_on_docs(SK_OP_COUNT, 1),
                                     ids_request(SK_OP_GET, &members, 8)};
    requests[0].limit = requests[1].limit = 3;
    requests[0].present |= UINT64_C(1) << SK_FIELD_limit;
    requests[1].present |= UINT64_C(1) << SK_FIELD_limit;
    unsigned answers = 0, errors = 0;
    for (unsigned r = 0; r < 4; r++)
        for (size_t at = 0, is_more = 1; is_more != 0; at++) {
            is_more = 0;
            world_end(&w); /* messages are kept: begin anew, the model stays */
            world_begin_node(&w, DIM, SK_SCHEMA_L2, SHARDS, WORKERS);
            sk_peer client = world_ask(&w, &requests[r]);
            for (unsigned worker = 0; worker < WORKERS; worker++)
                for (struct message *m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker);
                     m != NULL; m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker)) {
                    struct sk_buffer body = {0};
                    model_answer(&body, message_span(m), m->header.shard);
                    if (m->header.shard == 1) {
                        is_more = at < body.size * 3;
                        if (at < body.size)
                            body.size = at;
                        else if (at / body.size - 1 < 1)
                            body.bytes[at % body.size] ^= (uint8_t)(1U << draw(8));
                        else
                            body.bytes[at % body.size] = (uint8_t)draw(256);
                    }
                    world_reply(&w, m, SK_ERR_OK, sk_buffer_span(&body), 5);
                    sk_buffer_deinit(&body);
                }
            *(world_decoded(&w, client).is_ok ? &answers : &errors) += 1;
        }
    assert_true(answers > 20 && errors > 200);
    sk_buffer_deinit(&members);
    world_end(&w);
}

static void describe_adds_up_the_shards(void **state)
{
    (void)state;
    begin(SK_SCHEMA_L2);
    struct sk_request describe = request_on_docs(SK_OP_DESCRIBE_COLLECTION, 1);
    sk_peer client = world_ask(&w, &describe);
    for (unsigned worker = 0; worker < WORKERS; worker++)
        for (struct message *m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker); m != NULL;
             m = world_take(&w, SK_ROUTER_PEER_WORKER_0 + worker)) {
            struct sk_request decoded;
            assert_int_equal(sk_request_decode(&decoded, message_span(m), NULL), SK_ERR_OK);
            assert_int_equal(decoded.op, SK_OP_SHARD_STATS);
            world_reply_ok(&w, m, "records", 10 + m->header.shard);
        }
    assert_number(&w, client, "records", 33);
    assert_number(&w, client, "shards", 3);
    struct sk_span vectors;
    uint64_t dim;
    assert_true(sk_map_member(world_decoded(&w, client).map, "vectors", &vectors));
    assert_true(sk_map_member_u64(vectors, "dim", &dim) && dim == DIM);
    world_end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_of_three_shards_equal_those_of_one),
        cmocka_unit_test(a_scroll_shows_every_record_once_in_id_order),
        cmocka_unit_test(nothing_is_sent_when_one_row_is_wrong),
        cmocka_unit_test(an_error_over_several_shards_lists_which_applied),
        cmocka_unit_test(a_partial_search_says_so_and_a_partial_count_is_an_error),
        cmocka_unit_test(neighbours_of_nobody_are_not_found),
        cmocka_unit_test(replies_of_a_shard_that_make_no_sense_hurt_nobody),
        cmocka_unit_test(describe_adds_up_the_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
