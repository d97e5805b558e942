/* links: sk_shell */
/* The loop and who comes through its doors: clients, roles, links. */
#include "tests/unit/shell_server.h"

static void a_request_comes_back_in_its_own_shape(void **state)
{
    struct server *self = *state;
    void *dealer = client(ZMQ_DEALER, self->ipc, NULL), *req = client(ZMQ_REQ, self->ipc, NULL);
    assert_string_equal(ask(req, "a"), "echo a");
    assert_string_equal(ask(dealer, "b"), "echo b");
    zmq_send(dealer, "", 0, ZMQ_SNDMORE);
    say(dealer, "c");
    assert_string_equal(hear(dealer), "");
    int has_more = 0;
    size_t size = sizeof has_more;
    zmq_getsockopt(dealer, ZMQ_RCVMORE, &has_more, &size);
    assert_true(has_more);
    assert_string_equal(hear(dealer), "echo c");
    assert_string_equal(ask(dealer, ""),
                        "echo "); /* an empty frame is a frame: the core judges it */
    assert_string_equal(ask(dealer, "role"), "admin ");
    zmq_close(req);
    zmq_close(dealer);
}

static void more_than_one_frame_is_refused_with_words(void **state)
{
    struct server *self = *state;
    struct sk_diag d = {0};
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    for (int i = 0; i < 5; i++)
        zmq_send(sock, "x", 1, ZMQ_SNDMORE);
    say(sock, "y");
    char frame[256];
    int size = zmq_recv(sock, frame, sizeof frame, 0);
    assert_true(size > 0 && size <= (int)sizeof frame);
    struct sk_reply reply;
    assert_int_equal(sk_reply_decode(&reply, sk_span_of(frame, (size_t)size), &d), SK_ERR_OK);
    assert_false(reply.is_ok);
    assert_int_equal(reply.code, SK_ERR_INVALID);
    assert_non_null(memmem(reply.error_message.bytes, reply.error_message.size, "had 6", 5));
    assert_string_equal(ask(sock, "z"), "echo z"); /* the connection lives on */
    zmq_close(sock);
}

static void a_return_address_is_good_for_one_send(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "twice"), "once");
    hears_nothing(sock);
    assert_string_equal(ask(sock, "counters"), "counted");
    assert_int_equal(self->counters.dropped_unknown, 1);
    zmq_close(sock);
}

static void a_curve_client_has_the_role_of_its_key_and_none_when_revoked(void **state)
{
    struct server *self = *state;
    struct sk_diag d = {0};
    struct sk_map_key keys[2] = {{.name = "reader", .role = SK_ROLE_READ},
                                 {.name = "writer", .role = SK_ROLE_WRITE}};
    char secrets[2][SK_KEY_TEXT_BYTES], wanted[64], stranger[2][SK_KEY_TEXT_BYTES];
    zmq_curve_keypair(keys[0].public_key, secrets[0]);
    zmq_curve_keypair(keys[1].public_key, secrets[1]);
    zmq_curve_keypair(stranger[0], stranger[1]);
    /* Before the first set nobody is answered, and nobody is turned away. */
    void *reader = curve_client(self, keys[0].public_key, secrets[0]);
    say(reader, "role");
    hears_nothing(reader);
    assert_int_equal(sk_zap_set(self->zap, keys, 2, &d), SK_ERR_OK);
    snprintf(wanted, sizeof wanted, "read %s", keys[0].public_key);
    assert_string_equal(hear(reader), wanted);
    void *writer = curve_client(self, keys[1].public_key, secrets[1]);
    snprintf(wanted, sizeof wanted, "write %s", keys[1].public_key);
    assert_string_equal(ask(writer, "role"), wanted);
    void *other = curve_client(self, stranger[0], stranger[1]);
    say(other, "role");
    hears_nothing(other);
    assert_true(sk_zap_refused(self->zap) >= 1);
    /* Revoked: the next message on the live connection. */
    assert_int_equal(sk_zap_set(self->zap, &keys[1], 1, &d), SK_ERR_OK);
    snprintf(wanted, sizeof wanted, "none %s", keys[0].public_key);
    assert_string_equal(ask(reader, "role"), wanted);
    snprintf(wanted, sizeof wanted, "write %s", keys[1].public_key);
    assert_string_equal(ask(writer, "role"), wanted);
    assert_int_equal(sk_zap_role(self->zap, stranger[0]), SK_ROLE_NONE);
    zmq_close(reader);
    zmq_close(writer);
    zmq_close(other);
}

static void a_curve_port_answers_no_plain_client(void **state)
{
    struct server *self = *state;
    struct sk_diag d = {0};
    assert_int_equal(sk_zap_set(self->zap, NULL, 0, &d), SK_ERR_OK);
    void *sock = client(ZMQ_DEALER, self->tcp, NULL);
    say(sock, "role");
    hears_nothing(sock);
    zmq_close(sock);
}

static void links_are_known_by_their_routing_id(void **state)
{
    struct server *self = *state;
    static const char *const strangers[] = {"worker",    "worker-",   "worker-4",
                                            "worker-01", "worker-1x", "worker-4294967297",
                                            "router",    "workers-1"};
    void *one = client(ZMQ_DEALER, self->worker_ipc, "worker-1");
    assert_string_equal(ask(one, "hello"), "peer 11: hello");
    for (size_t i = 0; i < SK_COUNT_OF(strangers); i++) {
        void *sock = client(ZMQ_DEALER, self->worker_ipc, strangers[i]);
        char text[32];
        say(sock, "hello");
        set_timeout(sock, 50);
        assert_int_equal(zmq_recv(sock, text, sizeof text, 0), -1);
        zmq_close(sock);
    }
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "worker"), "sent");
    assert_string_equal(hear(one), "to worker");
    /* Started again under the same id: it takes over. */
    void *again = client(ZMQ_DEALER, self->worker_ipc, "worker-1");
    assert_string_equal(ask(again, "hello"), "peer 11: hello");
    zmq_close(one);
    zmq_close(again);
    zmq_close(sock);
}

static void a_stranger_who_names_a_link_without_the_token_takes_nothing(void **state)
{
    struct server *self = *state;
    void *one = client(ZMQ_DEALER, self->worker_ipc, "worker-1.secret");
    assert_string_equal(ask(one, "hello"), "peer 11: hello");
    static const char *const strangers[] = {"worker-1",        "worker-1.",      "worker-1.secre",
                                            "worker-1.Secret", "worker-1secret", ".secret",
                                            "secret"};
    for (size_t i = 0; i < SK_COUNT_OF(strangers); i++) {
        void *sock = client(ZMQ_DEALER, self->worker_ipc, strangers[i]);
        char text[32];
        say(sock, "hello");
        set_timeout(sock, 50);
        assert_int_equal(zmq_recv(sock, text, sizeof text, 0), -1);
        zmq_close(sock);
    }
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "worker"), "sent");
    assert_string_equal(hear(one), "to worker");
    assert_string_equal(ask(one, "hello"), "peer 11: hello");
    zmq_close(one);
    zmq_close(sock);
}

static void what_is_published_reaches_a_subscriber(void **state)
{
    struct server *self = *state;
    void *hints = client(ZMQ_SUB, self->hints_ipc, NULL),
         *sock = client(ZMQ_DEALER, self->ipc, NULL);
    zmq_setsockopt(hints, ZMQ_SUBSCRIBE, "", 0);
    set_timeout(hints, 50);
    char text[16];
    int size = -1;
    for (int i = 0; size < 0 && i < 100; i++) { /* until the subscription has arrived */
        assert_string_equal(ask(sock, "publish"), "published");
        size = zmq_recv(hints, text, sizeof text, 0);
    }
    assert_int_equal(size, 4);
    assert_memory_equal(text, "hint", 4);
    zmq_close(hints);
    zmq_close(sock);
}

/* ---- a loop that connects ---- */

struct caller {
    struct sk_reactor *reactor;
    const struct sk_io *io;
    unsigned connected, heard;
};

static void caller_connected(void *core, sk_peer peer)
{
    struct caller *self = core;
    struct sk_span part = sk_span_text("hello");
    assert_int_equal(peer, PEER_NODE);
    self->connected++;
    self->io->send(self->io->impl, peer, &part, 1);
}

static void caller_heard(void *core, sk_peer from, struct sk_span bytes)
{
    struct caller *self = core;
    assert_int_equal(from, PEER_NODE);
    assert_true(sk_span_is(bytes, "peer 12: hello"));
    self->heard++;
    sk_reactor_stop(self->reactor, 0);
}

static void a_link_tells_when_it_is_up_and_its_first_message_arrives(void **state)
{
    struct server *self = *state;
    struct sk_diag d = {0};
    struct sk_reactor_config config = {0};
    for (int round = 0; round < 20; round++) { /* a race would show now and then only */
        struct caller caller = {0};
        assert_int_equal(sk_reactor_new(&caller.reactor, &config, &d), SK_ERR_OK);
        caller.io = sk_reactor_io(caller.reactor);
        sk_reactor_set_core(caller.reactor,
                            &(struct sk_reactor_core){.core = &caller,
                                                      .on_connected = caller_connected,
                                                      .on_message = caller_heard});
        assert_int_equal(
            sk_reactor_connect(caller.reactor, PEER_NODE, self->worker_ipc, "worker-2", &d),
            SK_ERR_OK);
        assert_int_equal(sk_reactor_run(caller.reactor), 0);
        assert_int_equal(caller.connected, 1);
        assert_int_equal(caller.heard, 1);
        sk_reactor_destroy(&caller.reactor);
    }
}

int main(void)
{
#define TEST(name, start) cmocka_unit_test_setup_teardown(name, start, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_request_comes_back_in_its_own_shape, setup),
        TEST(more_than_one_frame_is_refused_with_words, setup),
        TEST(a_return_address_is_good_for_one_send, setup),
        TEST(a_curve_client_has_the_role_of_its_key_and_none_when_revoked, setup),
        TEST(a_curve_port_answers_no_plain_client, setup),
        TEST(links_are_known_by_their_routing_id, setup),
        TEST(a_stranger_who_names_a_link_without_the_token_takes_nothing, setup_token),
        TEST(what_is_published_reaches_a_subscriber, setup),
        TEST(a_link_tells_when_it_is_up_and_its_first_message_arrives, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
