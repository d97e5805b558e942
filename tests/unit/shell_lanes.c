/* links: sk_shell */
/* The loop at work: jobs, time, signals, and clients that are a burden. */
#include "tests/unit/shell_server.h"

static void quick_jobs_run_in_place_without_recursion(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "quick"), "submitted");
    assert_true(waits_for(&self->jobs_done, 8));
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(self->order[i], i);
        assert_true(pthread_equal(self->jobs[i].ran_on, self->thread));
    }
    zmq_close(sock);
}

static void slow_jobs_run_beside_the_loop(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "slow"), "submitted");
    assert_true(waits_for(&self->jobs_done, 8));
    for (unsigned i = 0; i < 8; i++)
        assert_false(pthread_equal(self->jobs[i].ran_on, self->thread));
    /* two threads: the slow first one did not hold up the others */
    assert_int_equal(self->order[7], 0);
    zmq_close(sock);
}

static void write_jobs_run_one_at_a_time_in_order(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "write"), "submitted");
    assert_true(waits_for(&self->jobs_done, 8));
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(self->order[i], i);
        assert_true(pthread_equal(self->jobs[i].ran_on, self->jobs[0].ran_on));
        assert_false(pthread_equal(self->jobs[i].ran_on, self->thread));
    }
    zmq_close(sock);
}

static void the_timer_fires_once_at_its_time_and_an_idle_loop_sleeps(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    uint64_t began = (uint64_t)zclock_usecs();
    assert_string_equal(ask(sock, "timer"), "time");
    uint64_t took_us = (uint64_t)zclock_usecs() - began;
    assert_true(took_us >= 30000);
    assert_true(took_us < 2000000);
    unsigned before = atomic_load(&self->on_times);
    usleep(200000);
    assert_true(atomic_load(&self->on_times) - before <= 1);
    zmq_close(sock);
}

static void a_client_that_does_not_read_is_not_read_and_stops_nobody(void **state)
{
    struct server *self = *state;
    int one = 1;
    unsigned sent = 0;
    void *lazy = zmq_socket(context, ZMQ_DEALER), *sock = client(ZMQ_DEALER, self->ipc, NULL);
    zmq_setsockopt(lazy, ZMQ_RCVHWM, &one, sizeof one);
    zmq_setsockopt(lazy, ZMQ_LINGER, &(int){0}, sizeof(int));
    zmq_setsockopt(lazy, ZMQ_SNDTIMEO, &(int){500}, sizeof(int));
    assert_int_equal(zmq_connect(lazy, self->ipc), 0);
    while (sent < 500000 && zmq_send(lazy, "big", 3, 0) == 3)
        sent++;
    assert_in_range(sent, 1, 499999); /* it is the one that waits */
    for (int i = 0; i < 100; i++)
        assert_string_equal(ask(sock, "a"), "echo a");
    assert_string_equal(ask(sock, "counters"), "counted");
    assert_in_range(self->counters.received, 1, sent + 101);
    zmq_close(lazy);
    zmq_close(sock);
}

static void a_client_that_floods_is_told_busy_and_the_others_are_not(void **state)
{
    struct server *self = *state;
    struct sk_diag d = {0};
    char frame[256];
    struct sk_reply reply;
    void *greedy = client(ZMQ_DEALER, self->ipc, NULL), *sock = client(ZMQ_DEALER, self->ipc, NULL);
    for (int i = 0; i < 21; i++)
        say(greedy, "keep");
    int size = zmq_recv(greedy, frame, sizeof frame, 0);
    assert_true(size > 0);
    assert_int_equal(sk_reply_decode(&reply, sk_span_of(frame, (size_t)size), &d), SK_ERR_OK);
    assert_int_equal(reply.code, SK_ERR_BUSY);
    assert_true(reply.is_retriable);
    for (int i = 0; i < 100; i++) /* answered ones do not count */
        assert_string_equal(ask(sock, "a"), "echo a");
    assert_int_equal(self->kept, 20);
    zmq_close(greedy);
    zmq_close(sock);
}

static void a_send_to_a_link_that_is_gone_is_told_to_the_core(void **state)
{
    struct server *self = *state;
    void *one = client(ZMQ_DEALER, self->worker_ipc, "worker-1"),
         *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(one, "hello"), "peer 11: hello");
    assert_string_equal(ask(sock, "worker"), "sent");
    assert_string_equal(hear(one), "to worker");
    assert_int_equal(atomic_load(&self->disconnected), 0);
    zmq_close(one);
    for (int i = 0; i < WAIT_MS && atomic_load(&self->disconnected) == 0; i++) {
        assert_string_equal(ask(sock, "worker"), "sent");
        usleep(1000);
    }
    assert_int_equal(atomic_load(&self->disconnected), PEER_WORKER_0 + 1);
    zmq_close(sock);
}

static void an_oversized_frame_ends_that_connection_only(void **state)
{
    struct server *self = *state;
    static char bytes[5000];
    void *fat = client(ZMQ_DEALER, self->ipc, NULL), *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(fat, "a"), "echo a");
    assert_int_equal(zmq_send(fat, bytes, sizeof bytes, 0), (int)sizeof bytes);
    hears_nothing(fat);
    assert_string_equal(ask(sock, "b"), "echo b");
    assert_string_equal(ask(fat, "c"), "echo c"); /* it has connected again */
    zmq_close(fat);
    zmq_close(sock);
}

static void a_stop_signal_comes_to_the_core_and_the_loop_goes_on(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "a"), "echo a");
    assert_int_equal(kill(getpid(), SIGTERM), 0);
    assert_true(waits_for(&self->stops, 1));
    assert_string_equal(ask(sock, "b"), "echo b"); /* until the core says so */
    zmq_close(sock);
}

static void two_at_one_port_are_refused_with_words(void **state)
{
    struct server *self = *state;
    struct sk_reactor *second = NULL;
    struct sk_diag d = {0};
    struct sk_reactor_config config = {0};
    assert_int_equal(sk_reactor_new(&second, &config, &d), SK_ERR_OK);
    struct sk_reactor_door door = {.endpoint = self->tcp, .takes_clients = true};
    assert_int_equal(sk_reactor_bind(second, &door, NULL, 0, &d), SK_ERR_UNAVAILABLE);
    assert_non_null(strstr(d.text, "in use"));
    assert_non_null(strstr(d.text, self->tcp));
    door.endpoint = "ipc:///nowhere/at/all.ipc";
    assert_int_equal(sk_reactor_bind(second, &door, NULL, 0, &d), SK_ERR_UNAVAILABLE);
    assert_non_null(strstr(d.text, "/nowhere/at/all.ipc"));
    sk_reactor_destroy(&second);
}

int main(void)
{
#define TEST(name, start) cmocka_unit_test_setup_teardown(name, start, teardown)
    const struct CMUnitTest tests[] = {
        TEST(quick_jobs_run_in_place_without_recursion, setup),
        TEST(slow_jobs_run_beside_the_loop, setup),
        TEST(write_jobs_run_one_at_a_time_in_order, setup),
        TEST(the_timer_fires_once_at_its_time_and_an_idle_loop_sleeps, setup),
        TEST(a_client_that_does_not_read_is_not_read_and_stops_nobody, setup),
        TEST(a_client_that_floods_is_told_busy_and_the_others_are_not, setup),
        TEST(a_send_to_a_link_that_is_gone_is_told_to_the_core, setup),
        TEST(an_oversized_frame_ends_that_connection_only, setup_small),
        TEST(a_stop_signal_comes_to_the_core_and_the_loop_goes_on, setup),
        TEST(two_at_one_port_are_refused_with_words, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
