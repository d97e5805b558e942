/* links: sk_shell */
/* A real loop in a thread of its own, with a core that tells what it was given; clients are plain
 * libzmq sockets in a context of theirs. */
#include "tests/harness.h"

#include "common/shell/keys.h"
#include "common/shell/reactor.h"
#include "common/shell/zap.h"
#include "proto/reply.h"

#include <czmq.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { PEER_WORKER_0 = 10, PEER_NODE = 1, PEER_HINTS = 2, WAIT_MS = 5000, SILENCE_MS = 300 };

struct job {
    struct sk_job base; /* first: a job is cast back */
    unsigned number;
    pthread_t ran_on;
    struct server *server;
};

struct server {
    char dir[64];
    char ipc[128], worker_ipc[128], tcp[128], hints_ipc[128];
    struct sk_keys keys;
    struct sk_zap *zap;
    struct sk_reactor *reactor;
    const struct sk_io *io;
    pthread_t thread;
    pthread_barrier_t is_up;
    size_t message_bytes_max;
    /* what the core saw; read by the test after a reply or at the end */
    atomic_uint connected, disconnected, on_times, stops, jobs_done;
    struct sk_reactor_counters counters;
    struct job jobs[8];
    unsigned order[8];
    uint64_t timer_at_us;
    sk_peer last;
    unsigned kept;
    int status;
};

static void *context;
static atomic_uint
    spoken; /* a reply over a socket is no order that ThreadSanitizer sees: this is */

/* ---- the core ---- */

static void send_text(struct server *self, sk_peer to, const char *text)
{
    struct sk_span part = sk_span_text(text);
    atomic_fetch_add(&spoken, 1);
    self->io->send(self->io->impl, to, &part, 1);
}

static void run_job(struct sk_job *base)
{
    struct job *job = (struct job *)base;
    job->ran_on = pthread_self();
    if (job->number == 0)
        usleep(20000); /* the first one of a lane is slow: order must hold all the same */
}

static void on_job_done(void *core, struct sk_job *base)
{
    struct server *self = core;
    struct job *job = (struct job *)base;
    self->order[atomic_load(&self->jobs_done)] = job->number;
    atomic_fetch_add(&self->jobs_done, 1);              /* after it: the test waits for this */
    if (base->lane == SK_LANE_QUICK && job->number < 7) /* a chain: the next one from here */
        self->io->submit(self->io->impl, &self->jobs[job->number + 1].base);
}

static void start_jobs(struct server *self, enum sk_lane lane, unsigned count)
{
    atomic_store(&self->jobs_done, 0);
    for (unsigned i = 0; i < 8; i++)
        self->jobs[i] = (struct job){.base = {.run = run_job, .lane = lane}, .number = i};
    for (unsigned i = 0; i < count; i++)
        self->io->submit(self->io->impl, &self->jobs[i].base);
}

static void on_client(void *core, sk_peer from, enum sk_role role, const char *key,
                      struct sk_span frame)
{
    struct server *self = core;
    (void)atomic_load(&spoken);
    if (sk_span_is(frame, "role")) {
        char text[64];
        snprintf(text, sizeof text, "%s %.40s", sk_role_name(role), key);
        send_text(self, from, text);
    } else if (sk_span_is(frame, "worker")) {
        send_text(self, PEER_WORKER_0 + 1, "to worker");
        send_text(self, from, "sent");
    } else if (sk_span_is(frame, "publish")) {
        send_text(self, PEER_HINTS, "hint");
        send_text(self, from, "published");
    } else if (sk_span_is(frame, "twice")) {
        send_text(self, from, "once");
        send_text(self, from, "never");
    } else if (sk_span_is(frame, "big")) {
        static char bytes[100000];
        struct sk_span part = sk_span_of(bytes, sizeof bytes);
        self->io->send(self->io->impl, from, &part, 1);
    } else if (sk_span_is(frame, "timer")) {
        self->timer_at_us = self->io->mono_us(self->io->impl) + 30000;
        self->last = from;
    } else if (sk_span_is(frame, "counters")) {
        self->counters = *sk_reactor_counters(self->reactor);
        send_text(self, from, "counted");
    } else if (sk_span_is(frame, "quick") || sk_span_is(frame, "slow") ||
               sk_span_is(frame, "write")) {
        enum sk_lane lane = frame.bytes[0] == 'q'   ? SK_LANE_QUICK
                            : frame.bytes[0] == 's' ? SK_LANE_SLOW
                                                    : SK_LANE_WRITE;
        start_jobs(self, lane, lane == SK_LANE_QUICK ? 1 : 8);
        send_text(self, from, "submitted");
    } else if (sk_span_is(frame, "keep")) {
        self->kept++; /* no answer */
    } else if (sk_span_is(frame, "stop")) {
        sk_reactor_stop(self->reactor, 7);
    } else {
        struct sk_span parts[] = {sk_span_text("echo "), frame};
        atomic_fetch_add(&spoken, 1);
        self->io->send(self->io->impl, from, parts, 2);
    }
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct server *self = core;
    char text[64];
    snprintf(text, sizeof text, "peer %u: %.*s", from, (int)bytes.size, (const char *)bytes.bytes);
    send_text(self, from, text);
}

static void on_connected(void *core, sk_peer peer)
{
    struct server *self = core;
    (void)peer;
    atomic_fetch_add(&self->connected, 1);
}

static void on_disconnected(void *core, sk_peer peer)
{
    struct server *self = core;
    atomic_store(&self->disconnected, peer);
}

static uint64_t on_time(void *core)
{
    struct server *self = core;
    atomic_fetch_add(&self->on_times, 1);
    if (self->timer_at_us == 0)
        return UINT64_MAX;
    if (self->io->mono_us(self->io->impl) < self->timer_at_us)
        return self->timer_at_us;
    self->timer_at_us = 0;
    send_text(self, self->last, "time");
    return UINT64_MAX;
}

static void on_stop(void *core)
{
    struct server *self = core;
    atomic_fetch_add(&self->stops, 1);
}

/* ---- the loop's thread ---- */

static void open_doors(struct server *self)
{
    struct sk_diag d = {0};
    struct sk_reactor_door local = {.endpoint = self->ipc,
                                    .takes_clients = true,
                                    .role = SK_ROLE_ADMIN,
                                    .client_open_max = 20,
                                    .message_bytes_max = self->message_bytes_max};
    struct sk_reactor_door workers = {
        .endpoint = self->worker_ipc, .links = {{"worker", 4, PEER_WORKER_0}}, .link_count = 1};
    struct sk_reactor_door remote = {.endpoint = "tcp://127.0.0.1:0",
                                     .takes_clients = true,
                                     .keys = &self->keys,
                                     .zap = self->zap};
    assert_int_equal(sk_reactor_bind(self->reactor, &local, NULL, 0, &d), SK_ERR_OK);
    assert_int_equal(sk_reactor_bind(self->reactor, &workers, NULL, 0, &d), SK_ERR_OK);
    assert_int_equal(sk_reactor_bind(self->reactor, &remote, self->tcp, sizeof self->tcp, &d),
                     SK_ERR_OK);
    assert_int_equal(sk_reactor_bind_publisher(self->reactor, PEER_HINTS, self->hints_ipc, &d),
                     SK_ERR_OK);
}

static void *run_server(void *arg)
{
    struct server *self = arg;
    struct sk_diag d = {0};
    struct sk_reactor_config config = {.search_threads = 2};
    assert_int_equal(sk_reactor_new(&self->reactor, &config, &d), SK_ERR_OK);
    self->io = sk_reactor_io(self->reactor);
    sk_reactor_set_core(self->reactor, &(struct sk_reactor_core){.core = self,
                                                                 .on_message = on_message,
                                                                 .on_client = on_client,
                                                                 .on_connected = on_connected,
                                                                 .on_disconnected = on_disconnected,
                                                                 .on_time = on_time,
                                                                 .on_job_done = on_job_done,
                                                                 .on_stop = on_stop});
    open_doors(self);
    pthread_barrier_wait(&self->is_up);
    self->status = sk_reactor_run(self->reactor);
    sk_reactor_destroy(&self->reactor);
    assert_null(self->reactor);
    return NULL;
}

/* ---- clients ---- */

static void *client(int type, const char *endpoint, const char *routing_id)
{
    int linger = 0, timeout_ms = WAIT_MS;
    void *sock = zmq_socket(context, type);
    zmq_setsockopt(sock, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(sock, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_setsockopt(sock, ZMQ_SNDTIMEO, &timeout_ms, sizeof timeout_ms);
    if (routing_id != NULL)
        zmq_setsockopt(sock, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
    assert_int_equal(zmq_connect(sock, endpoint), 0);
    return sock;
}

static void *curve_client(const struct server *server, const char *public_key,
                          const char *secret_key)
{
    int linger = 0, timeout_ms = WAIT_MS;
    void *sock = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(sock, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(sock, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_setsockopt(sock, ZMQ_CURVE_SERVERKEY, server->keys.public_key, SK_KEY_TEXT_BYTES);
    zmq_setsockopt(sock, ZMQ_CURVE_PUBLICKEY, public_key, SK_KEY_TEXT_BYTES);
    zmq_setsockopt(sock, ZMQ_CURVE_SECRETKEY, secret_key, SK_KEY_TEXT_BYTES);
    assert_int_equal(zmq_connect(sock, server->tcp), 0);
    return sock;
}

static void set_timeout(void *sock, int timeout_ms)
{
    zmq_setsockopt(sock, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
}

static void say(void *sock, const char *text)
{
    atomic_fetch_add(&spoken, 1);
    assert_int_equal(zmq_send(sock, text, strlen(text), 0), (int)strlen(text));
}

/* The next frame as text; fails the test after the socket's timeout. */
static const char *hear(void *sock)
{
    static char text[256];
    int size = zmq_recv(sock, text, sizeof text - 1, 0);
    if (size < 0)
        fail_msg("no answer: %s", zmq_strerror(errno));
    (void)atomic_load(&spoken);
    text[size < (int)sizeof text ? size : (int)sizeof text - 1] = '\0';
    return text;
}

static const char *ask(void *sock, const char *text)
{
    say(sock, text);
    return hear(sock);
}

static void hears_nothing(void *sock)
{
    char text[256];
    set_timeout(sock, SILENCE_MS);
    assert_int_equal(zmq_recv(sock, text, sizeof text, 0), -1);
    assert_int_equal(errno, EAGAIN);
    set_timeout(sock, WAIT_MS);
}

static bool waits_for(atomic_uint *number, unsigned wanted)
{
    for (int i = 0; i < WAIT_MS && atomic_load(number) < wanted; i++)
        usleep(1000);
    return atomic_load(number) >= wanted;
}

/* ---- fixture ---- */

static int server_start(void **state, size_t message_bytes_max)
{
    struct server *self = calloc(1, sizeof *self);
    struct sk_diag d = {0};
    sigset_t stopping;
    sigemptyset(&stopping);
    sigaddset(&stopping, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &stopping, NULL);
    setenv("ZSYS_SIGHANDLER", "false", 1);
    snprintf(self->dir, sizeof self->dir, "/tmp/sk-shell-XXXXXX");
    assert_non_null(mkdtemp(self->dir));
    snprintf(self->ipc, sizeof self->ipc, "ipc://%s/client.ipc", self->dir);
    snprintf(self->worker_ipc, sizeof self->worker_ipc, "ipc://%s/worker.ipc", self->dir);
    snprintf(self->hints_ipc, sizeof self->hints_ipc, "ipc://%s/hints.ipc", self->dir);
    self->message_bytes_max = message_bytes_max;
    zmq_curve_keypair(self->keys.public_key, self->keys.secret_key);
    assert_int_equal(sk_zap_new(&self->zap, &d), SK_ERR_OK);
    pthread_barrier_init(&self->is_up, NULL, 2);
    context = zmq_ctx_new();
    pthread_create(&self->thread, NULL, run_server, self);
    pthread_barrier_wait(&self->is_up);
    *state = self;
    return 0;
}

static int setup(void **state)
{
    return server_start(state, 0);
}

static int setup_token(void **state)
{
    setenv("SKERRY_LINK_TOKEN", "secret", 1);
    return server_start(state, 0);
}

static int setup_small(void **state)
{
    return server_start(state, 1000);
}

static int teardown(void **state)
{
    struct server *self = *state;
    char command[128];
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    say(sock, "stop");
    pthread_join(self->thread, NULL);
    zmq_close(sock);
    zmq_ctx_term(context);
    sk_zap_destroy(&self->zap);
    assert_null(self->zap);
    assert_int_equal(self->status, 7);
    pthread_barrier_destroy(&self->is_up);
    snprintf(command, sizeof command, "rm -r %s", self->dir);
    assert_int_equal(system(command), 0);
    free(self);
    unsetenv("SKERRY_LINK_TOKEN");
    return 0;
}

/* ---- tests ---- */

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

static void quick_jobs_run_in_place_without_recursion(void **state)
{
    struct server *self = *state;
    void *sock = client(ZMQ_DEALER, self->ipc, NULL);
    assert_string_equal(ask(sock, "quick"), "submitted");
    assert_int_equal(atomic_load(&self->jobs_done), 8); /* all were done before submit returned */
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

static void a_client_that_does_not_read_loses_its_answers_and_stops_nobody(void **state)
{
    struct server *self = *state;
    int one = 1;
    void *lazy = zmq_socket(context, ZMQ_DEALER), *sock = client(ZMQ_DEALER, self->ipc, NULL);
    zmq_setsockopt(lazy, ZMQ_RCVHWM, &one, sizeof one);
    zmq_setsockopt(lazy, ZMQ_LINGER, &(int){0}, sizeof(int));
    assert_int_equal(zmq_connect(lazy, self->ipc), 0);
    for (int i = 0; i < 3000; i++)
        say(lazy, "big");
    assert_string_equal(ask(sock, "a"), "echo a");
    for (int i = 0; i < WAIT_MS; i++) {
        assert_string_equal(ask(sock, "counters"), "counted");
        if (self->counters.received >= 3000)
            break;
        usleep(1000);
    }
    assert_true(self->counters.dropped_slow > 100);
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_comes_back_in_its_own_shape),
        cmocka_unit_test(more_than_one_frame_is_refused_with_words),
        cmocka_unit_test(a_return_address_is_good_for_one_send),
        cmocka_unit_test(a_curve_client_has_the_role_of_its_key_and_none_when_revoked),
        cmocka_unit_test(a_curve_port_answers_no_plain_client),
        cmocka_unit_test(links_are_known_by_their_routing_id),
        cmocka_unit_test(a_stranger_who_names_a_link_without_the_token_takes_nothing),
        cmocka_unit_test(what_is_published_reaches_a_subscriber),
        cmocka_unit_test(quick_jobs_run_in_place_without_recursion),
        cmocka_unit_test(slow_jobs_run_beside_the_loop),
        cmocka_unit_test(write_jobs_run_one_at_a_time_in_order),
        cmocka_unit_test(the_timer_fires_once_at_its_time_and_an_idle_loop_sleeps),
        cmocka_unit_test(a_client_that_does_not_read_loses_its_answers_and_stops_nobody),
        cmocka_unit_test(a_client_that_floods_is_told_busy_and_the_others_are_not),
        cmocka_unit_test(a_send_to_a_link_that_is_gone_is_told_to_the_core),
        cmocka_unit_test(an_oversized_frame_ends_that_connection_only),
        cmocka_unit_test(a_stop_signal_comes_to_the_core_and_the_loop_goes_on),
        cmocka_unit_test(two_at_one_port_are_refused_with_words),
        cmocka_unit_test(a_link_tells_when_it_is_up_and_its_first_message_arrives),
    };
    struct CMUnitTest all[SK_COUNT_OF(tests)];
    for (size_t i = 0; i < SK_COUNT_OF(tests); i++) {
        CMUnitTestFunction test = tests[i].test_func;
        all[i] = tests[i];
        all[i].setup_func = setup;
        if (test == an_oversized_frame_ends_that_connection_only)
            all[i].setup_func = setup_small;
        if (test == a_stranger_who_names_a_link_without_the_token_takes_nothing)
            all[i].setup_func = setup_token;
        all[i].teardown_func = teardown;
    }
    return cmocka_run_group_tests(all, NULL, NULL);
}
