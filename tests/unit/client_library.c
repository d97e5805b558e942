/* links: skerry_static PkgConfig::ZMQ */
/* libskerry against a small node of our own: a ROUTER socket in a thread, whose habits are chosen
 * by the collection's name. */
#include "proto/client/internal.h"
#include "tests/harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { HELD_MAX = 4096, RECORDED_BYTES = 65536 };

struct held {
    uint8_t routing_id[64];
    size_t routing_id_size;
    uint64_t id;
};

struct fake {
    char folder[64];
    char endpoint[128];
    void *context;
    void *router;
    void *control; /* the thread's end */
    void *handle;  /* the test's end */
    pthread_t thread;
    pthread_t zap_thread;
    void *zap;
    bool is_curve;
    atomic_bool is_key_known;
    char server_public[41], server_secret[41];
    struct held held[HELD_MAX];
    size_t held_count;
    pthread_mutex_t lock;
    char last_request[RECORDED_BYTES]; /* as JSON */
    unsigned request_count;
};

/* ---- The fake node ---- */

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void send_reply(struct fake *fake, const struct held *to, const struct sk_buffer *reply)
{
    zmq_send(fake->router, to->routing_id, to->routing_id_size, ZMQ_SNDMORE);
    zmq_send(fake->router, reply->bytes, reply->size, 0);
}

static void begin_reply(struct sk_buffer *reply, uint64_t id, bool is_ok, size_t members)
{
    sk_put_map(reply, 3 + members);
    sk_put_text(reply, "v");
    sk_put_u64(reply, 1);
    sk_put_text(reply, "id");
    sk_put_u64(reply, id);
    sk_put_text(reply, "ok");
    sk_put_bool(reply, is_ok);
}

static void put_member(struct sk_buffer *reply, const char *name, uint64_t number)
{
    sk_put_text(reply, name);
    sk_put_u64(reply, number);
}

static void reply_done(struct fake *fake, const struct held *to)
{
    struct sk_buffer reply = {0};
    begin_reply(&reply, to->id, true, 4);
    put_member(&reply, "upserted", 7);
    put_member(&reply, "deleted", 3);
    put_member(&reply, "count", to->id); /* so that a caller sees whether the reply is its own */
    put_member(&reply, "updated", 2);
    send_reply(fake, to, &reply);
    sk_buffer_deinit(&reply);
}

static void put_hit(struct sk_buffer *reply, const char *text, uint64_t number, double score,
                    bool is_whole)
{
    static const float vector[2] = {0.5F, -1.0F};
    sk_put_map(reply, is_whole ? 4 : 2);
    sk_put_text(reply, "id");
    if (text != NULL)
        sk_put_text(reply, text);
    else
        sk_put_u64(reply, number);
    sk_put_text(reply, "score");
    sk_put_f32(reply, (float)score);
    if (!is_whole)
        return;
    sk_put_text(reply, "payload");
    sk_put_map(reply, 1);
    sk_put_text(reply, "word");
    sk_put_text(reply, "heart");
    sk_put_text(reply, "vector");
    sk_put_bin(reply, vector, sizeof vector);
}

static void reply_hits(struct fake *fake, const struct held *to, bool is_many)
{
    struct sk_buffer reply = {0};
    begin_reply(&reply, to->id, true, 5);
    sk_put_text(&reply, "hits");
    if (is_many) {
        sk_put_array(&reply, 3);
        sk_put_array(&reply, 2);
        put_hit(&reply, NULL, 1, 0.75, false);
        put_hit(&reply, "one", 0, 0.5, false);
        sk_put_array(&reply, 0);
        sk_put_array(&reply, 1);
        put_hit(&reply, NULL, UINT64_MAX, 0.25, false);
    } else {
        sk_put_array(&reply, 2);
        put_hit(&reply, NULL, 42, 0.75, true);
        put_hit(&reply, "a0", 0, 0.5, false);
    }
    sk_put_text(&reply, "exact");
    sk_put_bool(&reply, true);
    sk_put_text(&reply, "shards");
    sk_put_map(&reply, 2);
    put_member(&reply, "asked", 4);
    put_member(&reply, "answered", 3);
    sk_put_text(&reply, "source");
    sk_put_text(&reply, "index");
    sk_put_text(&reply, "warning");
    sk_put_text(&reply, "by scan");
    send_reply(fake, to, &reply);
    sk_buffer_deinit(&reply);
}

static void reply_records(struct fake *fake, const struct held *to)
{
    struct sk_buffer reply = {0};
    begin_reply(&reply, to->id, true, 2);
    sk_put_text(&reply, "records");
    sk_put_array(&reply, 2);
    sk_put_map(&reply, 1);
    put_member(&reply, "id", 5);
    sk_put_nil(&reply);
    sk_put_text(&reply, "cursor");
    sk_put_text(&reply, "next");
    send_reply(fake, to, &reply);
    sk_buffer_deinit(&reply);
}

static void reply_error(struct fake *fake, const struct held *to)
{
    struct sk_buffer reply = {0};
    begin_reply(&reply, to->id, false, 1);
    sk_put_text(&reply, "error");
    sk_put_map(&reply, 5);
    put_member(&reply, "code", 12);
    sk_put_text(&reply, "name");
    sk_put_text(&reply, "not_found");
    sk_put_text(&reply, "field");
    sk_put_text(&reply, "collection");
    sk_put_text(&reply, "retriable");
    sk_put_bool(&reply, false);
    sk_put_text(&reply, "message");
    sk_put_text(&reply, "no collection 'error'; the closest name is 'errors'");
    send_reply(fake, to, &reply);
    sk_buffer_deinit(&reply);
}

static void reply_ping(struct fake *fake, const struct held *to)
{
    struct sk_buffer reply = {0};
    begin_reply(&reply, to->id, true, 2);
    sk_put_text(&reply, "node");
    sk_put_text(&reply, "the key");
    sk_put_text(&reply, "version");
    sk_put_text(&reply, "0.1.0");
    send_reply(fake, to, &reply);
    sk_buffer_deinit(&reply);
}

/* Frames that are no reply, or whose request nobody waits for; then the reply. */
static void reply_after_garbage(struct fake *fake, const struct held *to)
{
    static const char *const frames[] = {"", "\xc1", "\xdd\x7f\xff\xff\xff", "\x81\xa2id",
                                         "\x81\xa2id\xcf\xff\xff\xff\xff\xff\xff\xff\xff"};
    for (size_t i = 0; i < SK_COUNT_OF(frames); i++) {
        struct sk_buffer frame = {0};
        sk_buffer_append(&frame, frames[i], strlen(frames[i]));
        send_reply(fake, to, &frame);
        sk_buffer_deinit(&frame);
    }
    reply_done(fake, to);
}

static void release(struct fake *fake)
{
    while (fake->held_count > 0) /* the last first: out of order */
        reply_done(fake, &fake->held[--fake->held_count]);
}

static void member_text(struct sk_span frame, const char *name, char *out, size_t size)
{
    struct sk_reader scan = {frame.bytes, frame.bytes + frame.size};
    struct sk_value value;
    out[0] = '\0';
    if (!sk_scan_next(&scan, &value) || value.kind != SK_VALUE_MAP)
        return;
    for (uint32_t i = 0, count = value.count; i < count; i++) {
        struct sk_value key;
        struct sk_reader at;
        if (!sk_scan_next(&scan, &key))
            return;
        at = scan;
        if (key.kind == SK_VALUE_TEXT && sk_span_is(key.span, name) && sk_scan_next(&at, &value) &&
            value.kind == SK_VALUE_TEXT)
            snprintf(out, size, "%.*s", (int)value.span.size, (const char *)value.span.bytes);
        if (!sk_scan_skip(&scan, NULL))
            return;
    }
}

static void on_request(struct fake *fake, const struct held *from, struct sk_span frame)
{
    char op[64], collection[64], *json = NULL;
    struct held to = *from;
    member_text(frame, "op", op, sizeof op);
    member_text(frame, "collection", collection, sizeof collection);
    pthread_mutex_lock(&fake->lock);
    fake->request_count++;
    if (!sk_reply_request_id(frame, &to.id))
        snprintf(fake->last_request, sizeof fake->last_request, "a frame without an id");
    else if (skerry_msgpack_to_json((struct skerry_bytes){frame.bytes, frame.size}, &json, NULL) ==
             SKERRY_OK)
        snprintf(fake->last_request, sizeof fake->last_request, "%s", json);
    else
        snprintf(fake->last_request, sizeof fake->last_request, "not msgpack");
    pthread_mutex_unlock(&fake->lock);
    skerry_text_free(&json);
    if (strcmp(op, "ping") == 0)
        reply_ping(fake, &to);
    else if (strcmp(collection, "silent") == 0)
        return;
    else if (strcmp(collection, "hold") == 0 && fake->held_count < HELD_MAX)
        fake->held[fake->held_count++] = to;
    else if (strcmp(collection, "error") == 0)
        reply_error(fake, &to);
    else if (strcmp(collection, "garbage") == 0)
        reply_after_garbage(fake, &to);
    else if (strcmp(op, "search") == 0)
        reply_hits(fake, &to, strcmp(collection, "many") == 0);
    else if (strcmp(op, "get") == 0 || strcmp(op, "scroll") == 0)
        reply_records(fake, &to);
    else {
        if (strcmp(collection, "release") == 0)
            release(fake);
        reply_done(fake, &to);
    }
}

static void receive(struct fake *fake)
{
    struct held from = {0};
    int size = zmq_recv(fake->router, from.routing_id, sizeof from.routing_id, 0);
    if (size < 0)
        return;
    from.routing_id_size = (size_t)size;
    zmq_msg_t frame;
    int has_more = 1;
    size_t more_size = sizeof has_more;
    while (has_more) {
        zmq_msg_init(&frame);
        zmq_msg_recv(&frame, fake->router, 0);
        zmq_getsockopt(fake->router, ZMQ_RCVMORE, &has_more, &more_size);
        if (!has_more)
            on_request(fake, &from, sk_span_of(zmq_msg_data(&frame), zmq_msg_size(&frame)));
        zmq_msg_close(&frame);
    }
}

static void *run_fake(void *arg)
{
    struct fake *fake = arg;
    zmq_pollitem_t items[] = {{fake->control, 0, ZMQ_POLLIN, 0}, {fake->router, 0, ZMQ_POLLIN, 0}};
    for (;;) {
        zmq_poll(items, 2, -1);
        if (items[0].revents & ZMQ_POLLIN)
            return NULL;
        if (items[1].revents & ZMQ_POLLIN)
            receive(fake);
    }
}

static void *run_zap(void *arg)
{
    struct fake *fake = arg;
    for (;;) {
        char parts[10][256];
        int count = 0, has_more = 1;
        size_t sizes[10], more_size = sizeof has_more;
        while (has_more && count < 10) {
            int size = zmq_recv(fake->zap, parts[count], sizeof parts[count] - 1, 0);
            if (size < 0)
                return NULL; /* the context ends */
            sizes[count++] = (size_t)size;
            zmq_getsockopt(fake->zap, ZMQ_RCVMORE, &has_more, &more_size);
        }
        zmq_send(fake->zap, "1.0", 3, ZMQ_SNDMORE);
        zmq_send(fake->zap, parts[1], sizes[1], ZMQ_SNDMORE);
        zmq_send(fake->zap, fake->is_key_known ? "200" : "400", 3, ZMQ_SNDMORE);
        zmq_send(fake->zap, "", 0, ZMQ_SNDMORE);
        zmq_send(fake->zap, "user", 4, ZMQ_SNDMORE);
        zmq_send(fake->zap, "", 0, 0);
    }
}

static void fake_start(struct fake *fake)
{
    int linger = 0, one = 1;
    size_t size = sizeof fake->endpoint;
    pthread_mutex_init(&fake->lock, NULL);
    fake->context = zmq_ctx_new();
    if (fake->is_curve) {
        fake->zap = zmq_socket(fake->context, ZMQ_REP);
        assert_int_equal(zmq_bind(fake->zap, "inproc://zeromq.zap.01"), 0);
        assert_int_equal(pthread_create(&fake->zap_thread, NULL, run_zap, fake), 0);
    }
    fake->router = zmq_socket(fake->context, ZMQ_ROUTER);
    zmq_setsockopt(fake->router, ZMQ_LINGER, &linger, sizeof linger);
    if (fake->is_curve) {
        zmq_setsockopt(fake->router, ZMQ_CURVE_SERVER, &one, sizeof one);
        zmq_setsockopt(fake->router, ZMQ_CURVE_SECRETKEY, fake->server_secret, 41);
        zmq_setsockopt(fake->router, ZMQ_ZAP_DOMAIN, "test", 4);
    }
    assert_int_equal(zmq_bind(fake->router, fake->endpoint), 0);
    zmq_getsockopt(fake->router, ZMQ_LAST_ENDPOINT, fake->endpoint, &size);
    fake->control = zmq_socket(fake->context, ZMQ_PAIR);
    fake->handle = zmq_socket(fake->context, ZMQ_PAIR);
    assert_int_equal(zmq_bind(fake->control, "inproc://control"), 0);
    assert_int_equal(zmq_connect(fake->handle, "inproc://control"), 0);
    assert_int_equal(pthread_create(&fake->thread, NULL, run_fake, fake), 0);
}

static void fake_stop(struct fake *fake)
{
    if (fake->context == NULL)
        return;
    zmq_send(fake->handle, "", 0, 0);
    pthread_join(fake->thread, NULL);
    zmq_close(fake->router);
    zmq_close(fake->control);
    zmq_close(fake->handle);
    zmq_ctx_shutdown(fake->context);
    if (fake->is_curve) {
        pthread_join(fake->zap_thread, NULL);
        zmq_close(fake->zap);
    }
    zmq_ctx_term(fake->context);
    fake->context = NULL;
}

static int set_up(void **state)
{
    struct fake *fake = calloc(1, sizeof *fake);
    char run[96];
    assert_non_null(fake);
    snprintf(fake->folder, sizeof fake->folder, "/tmp/skerry-client-XXXXXX");
    assert_non_null(mkdtemp(fake->folder));
    snprintf(run, sizeof run, "%s/run", fake->folder);
    assert_int_equal(mkdir(run, 0700), 0);
    snprintf(fake->endpoint, sizeof fake->endpoint, "ipc://%s/client.ipc", run);
    fake_start(fake);
    *state = fake;
    return 0;
}

static int set_up_curve(void **state)
{
    struct fake *fake = calloc(1, sizeof *fake);
    assert_non_null(fake);
    fake->is_curve = true;
    fake->is_key_known = true;
    assert_int_equal(zmq_curve_keypair(fake->server_public, fake->server_secret), 0);
    snprintf(fake->endpoint, sizeof fake->endpoint, "tcp://127.0.0.1:*");
    fake_start(fake);
    *state = fake;
    return 0;
}

static int tear_down(void **state)
{
    struct fake *fake = *state;
    char path[128];
    fake_stop(fake);
    if (fake->folder[0] != '\0') {
        snprintf(path, sizeof path, "%s/run/client.ipc", fake->folder);
        unlink(path);
        snprintf(path, sizeof path, "%s/run", fake->folder);
        rmdir(path);
        rmdir(fake->folder);
    }
    pthread_mutex_destroy(&fake->lock);
    free(fake);
    return 0;
}

/* ---- Help for the tests ---- */

static struct skerry *connect_to(const struct fake *fake)
{
    struct skerry_error error = {0};
    struct skerry *db = skerry_connect(fake->folder, NULL, &error);
    if (db == NULL)
        fail_msg("%s: %s", error.name, error.message);
    return db;
}

static void assert_sent(struct fake *fake, const char *fields)
{
    pthread_mutex_lock(&fake->lock);
    const char *deadline = strstr(fake->last_request, "\"deadline_ms\":");
    assert_non_null(deadline);
    deadline = strchr(deadline, ',');
    assert_non_null(deadline);
    assert_string_equal(deadline, fields);
    pthread_mutex_unlock(&fake->lock);
}

static void assert_deadline(struct fake *fake, const char *words)
{
    pthread_mutex_lock(&fake->lock);
    bool is_there = strstr(fake->last_request, words) != NULL;
    pthread_mutex_unlock(&fake->lock);
    assert_true(is_there);
}

static unsigned requests_seen(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    unsigned count = fake->request_count;
    pthread_mutex_unlock(&fake->lock);
    return count;
}

/* ---- Tests ---- */

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

static void an_answer_that_never_comes_ends_at_the_deadline(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 0, started_ms = now_ms();
    assert_int_equal(skerry_count(db, "silent", NULL, 100, &count, &error), SKERRY_DEADLINE);
    assert_in_range(now_ms() - started_ms, 100, 1500);
    assert_true(error.retriable);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

static void frames_that_are_no_reply_are_dropped(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 0;
    assert_int_equal(skerry_count(db, "garbage", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

struct caller {
    struct skerry *db;
    unsigned failures;
    pthread_t thread;
};

static void *call_often(void *arg)
{
    struct caller *caller = arg;
    for (unsigned i = 0; i < 500; i++) {
        struct skerry_error error = {0};
        uint64_t count = 0;
        caller->failures += skerry_count(caller->db, i % 7 == 0 ? "garbage" : "docs", NULL, 20000,
                                         &count, &error) != SKERRY_OK ||
                            count == 0;
    }
    return NULL;
}

static void many_threads_share_a_handle(void **state)
{
    struct caller callers[8] = {0};
    struct skerry *db = connect_to(*state);
    for (unsigned i = 0; i < 8; i++) {
        callers[i].db = db;
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].failures, 0);
    }
    skerry_close(&db);
}

static void *call_held(void *arg)
{
    struct caller *caller = arg;
    uint64_t count = 0;
    caller->failures =
        skerry_count(caller->db, "hold", NULL, 20000, &count, NULL) != SKERRY_OK || count == 0;
    return NULL;
}

/* A slow request of one thread holds nobody up, and replies in another order find their callers. */
static void requests_in_flight_do_not_wait_for_each_other(void **state)
{
    struct fake *fake = *state;
    struct caller callers[6] = {0};
    struct skerry *db = connect_to(fake);
    struct skerry_error error = {0};
    uint64_t count = 0;
    for (unsigned i = 0; i < 6; i++) {
        callers[i].db = db;
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call_held, &callers[i]), 0);
    }
    for (unsigned requests = 0; requests < 7; usleep(1000))
        requests = requests_seen(fake);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    assert_int_equal(skerry_count(db, "release", NULL, 0, &count, &error), SKERRY_OK);
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].failures, 0);
    }
    skerry_close(&db);
}

static void submitted_requests_end_once_each_in_any_order(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    static const float query[2] = {1, 0};
    struct skerry_search search = {.collection = "hold", .vectors = query, .dim = 2};
    uint64_t tickets[64], ticket = 0, count = 0, seen = 0;
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(skerry_search_submit(db, &search, &tickets[i], &error), SKERRY_OK);
    assert_int_equal(skerry_in_flight(db), 64);
    assert_int_equal(skerry_poll(db, 20, &ticket, &reply, &error), SKERRY_OK);
    assert_null(reply);
    assert_int_equal(skerry_count(db, "release", NULL, 0, &count, &error), SKERRY_OK);
    for (unsigned i = 0; i < 64; i++) {
        assert_int_equal(skerry_poll(db, 5000, &ticket, &reply, &error), SKERRY_OK);
        assert_non_null(reply);
        assert_true(skerry_reply_u64(reply, "count", &count) && count == ticket);
        assert_in_range(ticket, tickets[0], tickets[63]);
        assert_false(seen >> (ticket - tickets[0]) & 1);
        seen |= UINT64_C(1) << (ticket - tickets[0]);
        skerry_reply_free(&reply);
    }
    assert_int_equal(skerry_in_flight(db), 0);
    assert_int_equal(skerry_poll(db, 5000, &ticket, &reply, &error), SKERRY_OK);
    assert_null(reply);
    skerry_close(&db);
}

static void a_submitted_request_without_an_answer_ends_with_deadline(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    uint64_t ticket = 0, ended = 0;
    struct skerry_bytes fields = {"\x81\xaa"
                                  "collection\xa6"
                                  "silent",
                                  19};
    assert_int_equal(skerry_submit(db, "count", fields, 50, &ticket, &error), SKERRY_OK);
    assert_int_equal(skerry_poll(db, 3000, &ended, &reply, &error), SKERRY_OK);
    assert_non_null(reply);
    assert_int_equal(ended, ticket);
    assert_int_equal(skerry_reply_error(reply, &error), SKERRY_DEADLINE);
    skerry_reply_free(&reply);
    skerry_close(&db);
}

static void a_node_that_ends_ends_what_is_on_its_way_and_comes_back(void **state)
{
    struct fake *fake = *state;
    struct caller caller = {.db = connect_to(fake)};
    struct skerry_error error = {0};
    uint64_t count = 0, started_ms = now_ms();
    assert_int_equal(pthread_create(&caller.thread, NULL, call_held, &caller), 0);
    for (unsigned requests = 0; requests < 2; usleep(1000))
        requests = requests_seen(fake);
    fake_stop(fake);
    pthread_join(caller.thread, NULL);
    assert_int_equal(caller.failures, 1);
    assert_in_range(now_ms() - started_ms, 0, 5000); /* not its deadline of 20 s */
    started_ms = now_ms();
    assert_int_equal(skerry_count(caller.db, "docs", NULL, 300, &count, &error),
                     SKERRY_UNAVAILABLE);
    assert_true(error.is_unreachable);
    assert_in_range(now_ms() - started_ms, 250, 2500);
    fake->request_count = 0;
    fake->held_count = 0;
    fake_start(fake);
    assert_int_equal(skerry_count(caller.db, "docs", NULL, 5000, &count, &error), SKERRY_OK);
    assert_int_equal(requests_seen(fake),
                     1); /* neither the lost nor the failed one was sent again */
    skerry_close(&caller.db);
}

static void a_node_that_is_not_there_is_named(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    struct skerry_options options = {.connect_deadline_ms = 200};
    assert_null(skerry_connect("/nowhere/at/all", NULL, &error));
    assert_int_equal(error.code, SKERRY_UNAVAILABLE);
    assert_true(error.is_unreachable);
    assert_null(skerry_connect("/tmp", NULL, &error));
    assert_non_null(strstr(error.message, "skerry node start --dir /tmp"));
    assert_null(skerry_connect("ipc:///tmp/skerry-nobody.ipc", &options, &error));
    assert_int_equal(error.code, SKERRY_UNAVAILABLE);
    assert_true(error.is_unreachable);
    assert_null(skerry_connect("tcp://127.0.0.1:1", &options, &error));
    assert_non_null(strstr(error.message, "server_key"));
    char path[400];
    memset(path, 'x', sizeof path);
    memcpy(path, "ipc:///", 7);
    path[200] = '\0';
    assert_null(skerry_connect(path, &options, &error));
    assert_int_equal(error.code, SKERRY_TOO_LARGE);
    (void)fake;
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

static void a_handle_does_not_pass_a_fork(void **state)
{
    struct skerry *db = connect_to(*state);
    struct skerry_error error = {0};
    uint64_t count = 0;
    pid_t child = fork();
    if (child == 0) {
        bool is_refused = skerry_count(db, "docs", NULL, 0, &count, &error) == SKERRY_INVALID;
        skerry_close(&db);
        _exit(is_refused && strstr(error.message, "fork") != NULL ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

/* ---- CURVE ---- */

static struct skerry *connect_curve(const struct fake *fake, const char *server_key,
                                    struct skerry_error *error)
{
    char public_key[41], secret_key[41];
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    struct skerry_options options = {.server_key = server_key,
                                     .public_key = public_key,
                                     .secret_key = secret_key,
                                     .connect_deadline_ms = 5000};
    return skerry_connect(fake->endpoint, &options, error);
}

static void a_known_key_gets_in_over_curve(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    struct skerry *db = connect_curve(fake, fake->server_public, &error);
    uint64_t count = 0;
    if (db == NULL)
        fail_msg("%s: %s", error.name, error.message);
    assert_int_equal(skerry_count(db, "docs", NULL, 0, &count, &error), SKERRY_OK);
    skerry_close(&db);
}

static void a_key_that_is_not_known_is_told_so_at_once(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    uint64_t started_ms = now_ms();
    fake->is_key_known = false;
    assert_null(connect_curve(fake, fake->server_public, &error));
    assert_int_equal(error.code, SKERRY_UNAUTHORIZED);
    assert_non_null(strstr(error.message, "not known"));
    assert_in_range(now_ms() - started_ms, 0, 3000);
}

static void a_wrong_server_key_is_told_from_a_node_that_is_not_there(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    char public_key[41], secret_key[41];
    uint64_t started_ms = now_ms();
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    assert_null(connect_curve(fake, public_key, &error));
    assert_int_equal(error.code, SKERRY_UNAUTHORIZED);
    assert_non_null(strstr(error.message, "server key"));
    assert_in_range(now_ms() - started_ms, 0, 3000);
}

static void a_key_file_that_others_may_read_is_refused(void **state)
{
    struct fake *fake = *state;
    struct skerry_error error = {0};
    char path[] = "/tmp/skerry-key-XXXXXX", public_key[41], secret_key[41];
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    dprintf(fd, "# a client\npublic-key = \"%s\"\nsecret-key = \"%s\"\n", public_key, secret_key);
    struct skerry_options options = {.server_key = fake->server_public, .key_file = path};
    struct skerry *db = skerry_connect(fake->endpoint, &options, &error);
    if (db == NULL)
        fail_msg("%s: %s", error.name, error.message);
    skerry_close(&db);
    assert_int_equal(fchmod(fd, 0640), 0);
    assert_null(skerry_connect(fake->endpoint, &options, &error));
    assert_non_null(strstr(error.message, "chmod 600"));
    assert_int_equal(fchmod(fd, 0600), 0);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_null(skerry_connect(fake->endpoint, &options, &error));
    assert_non_null(strstr(error.message, "secret-key"));
    close(fd);
    unlink(path);
}

int main(void)
{
#define LOCAL(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define CURVE(name) cmocka_unit_test_setup_teardown(name, set_up_curve, tear_down)
    const struct CMUnitTest tests[] = {
        LOCAL(connect_pings_and_tells_the_node_and_its_version),
        LOCAL(every_operation_sends_the_fields_of_the_protocol),
        LOCAL(the_deadline_travels_with_the_request),
        LOCAL(hits_of_one_query_and_of_many_are_read),
        LOCAL(records_that_are_not_there_keep_their_place),
        LOCAL(an_error_of_the_node_is_given_whole),
        LOCAL(an_answer_that_never_comes_ends_at_the_deadline),
        LOCAL(frames_that_are_no_reply_are_dropped),
        LOCAL(many_threads_share_a_handle),
        LOCAL(requests_in_flight_do_not_wait_for_each_other),
        LOCAL(submitted_requests_end_once_each_in_any_order),
        LOCAL(a_submitted_request_without_an_answer_ends_with_deadline),
        LOCAL(a_node_that_ends_ends_what_is_on_its_way_and_comes_back),
        LOCAL(a_node_that_is_not_there_is_named),
        LOCAL(bad_arguments_are_refused_with_the_field),
        LOCAL(a_handle_does_not_pass_a_fork),
        CURVE(a_known_key_gets_in_over_curve),
        CURVE(a_key_that_is_not_known_is_told_so_at_once),
        CURVE(a_wrong_server_key_is_told_from_a_node_that_is_not_there),
        CURVE(a_key_file_that_others_may_read_is_refused),
    };
    return cmocka_run_group_tests_name("client: library", tests, NULL, NULL);
}
