/* A small node of our own for tests of libskerry: a ROUTER socket in a thread, whose habits are chosen by
 * the collection's name. */
#ifndef SK_TESTS_CLIENT_FAKE_H
#define SK_TESTS_CLIENT_FAKE_H

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

static inline uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline void send_reply(struct fake *fake, const struct held *to, const struct sk_buffer *reply)
{
    zmq_send(fake->router, to->routing_id, to->routing_id_size, ZMQ_SNDMORE);
    zmq_send(fake->router, reply->bytes, reply->size, 0);
}

static inline void begin_reply(struct sk_buffer *reply, uint64_t id, bool is_ok, size_t members)
{
    sk_put_map(reply, 3 + members);
    sk_put_text(reply, "v");
    sk_put_u64(reply, 1);
    sk_put_text(reply, "id");
    sk_put_u64(reply, id);
    sk_put_text(reply, "ok");
    sk_put_bool(reply, is_ok);
}

static inline void put_member(struct sk_buffer *reply, const char *name, uint64_t number)
{
    sk_put_text(reply, name);
    sk_put_u64(reply, number);
}

static inline void reply_done(struct fake *fake, const struct held *to)
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

static inline void put_hit(struct sk_buffer *reply, const char *text, uint64_t number, double score,
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

static inline void reply_hits(struct fake *fake, const struct held *to, bool is_many)
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

static inline void reply_records(struct fake *fake, const struct held *to)
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

static inline void reply_error(struct fake *fake, const struct held *to)
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

static inline void reply_ping(struct fake *fake, const struct held *to)
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
static inline void reply_after_garbage(struct fake *fake, const struct held *to)
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

static inline void release(struct fake *fake)
{
    while (fake->held_count > 0) /* the last first: out of order */
        reply_done(fake, &fake->held[--fake->held_count]);
}

static inline void member_text(struct sk_span frame, const char *name, char *out, size_t size)
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

static inline void on_request(struct fake *fake, const struct held *from, struct sk_span frame)
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

static inline void receive(struct fake *fake)
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

static inline void *run_fake(void *arg)
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

static inline void *run_zap(void *arg)
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

static inline void fake_start(struct fake *fake)
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

static inline void fake_stop(struct fake *fake)
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

static inline int set_up(void **state)
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

static inline int set_up_curve(void **state)
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

static inline int tear_down(void **state)
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

static inline struct skerry *connect_to(const struct fake *fake)
{
    struct skerry_error error = {0};
    struct skerry *db = skerry_connect(fake->folder, NULL, &error);
    if (db == NULL)
        fail_msg("%s: %s", error.name, error.message);
    return db;
}

static inline void assert_sent(struct fake *fake, const char *fields)
{
    pthread_mutex_lock(&fake->lock);
    const char *deadline = strstr(fake->last_request, "\"deadline_ms\":");
    assert_non_null(deadline);
    deadline = strchr(deadline, ',');
    assert_non_null(deadline);
    assert_string_equal(deadline, fields);
    pthread_mutex_unlock(&fake->lock);
}

static inline void assert_deadline(struct fake *fake, const char *words)
{
    pthread_mutex_lock(&fake->lock);
    bool is_there = strstr(fake->last_request, words) != NULL;
    pthread_mutex_unlock(&fake->lock);
    assert_true(is_there);
}

static inline unsigned requests_seen(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    unsigned count = fake->request_count;
    pthread_mutex_unlock(&fake->lock);
    return count;
}

#endif
