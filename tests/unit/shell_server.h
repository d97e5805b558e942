/* A real loop in a thread of its own, with a core that tells what it was given; clients are plain
 * libzmq sockets in a context of theirs. For the tests of common/shell/reactor.h. */
#ifndef SK_TESTS_SHELL_SERVER_H
#define SK_TESTS_SHELL_SERVER_H

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

static inline void send_text(struct server *self, sk_peer to, const char *text)
{
    struct sk_span part = sk_span_text(text);
    atomic_fetch_add(&spoken, 1);
    self->io->send(self->io->impl, to, &part, 1);
}

static inline void run_job(struct sk_job *base)
{
    struct job *job = (struct job *)base;
    job->ran_on = pthread_self();
    if (job->number == 0)
        usleep(20000); /* the first one of a lane is slow: order must hold all the same */
}

static inline void on_job_done(void *core, struct sk_job *base)
{
    struct server *self = core;
    struct job *job = (struct job *)base;
    self->order[atomic_load(&self->jobs_done)] = job->number;
    atomic_fetch_add(&self->jobs_done, 1);              /* after it: the test waits for this */
    if (base->lane == SK_LANE_QUICK && job->number < 7) /* a chain: the next one from here */
        self->io->submit(self->io->impl, &self->jobs[job->number + 1].base);
}

static inline void start_jobs(struct server *self, enum sk_lane lane, unsigned count)
{
    atomic_store(&self->jobs_done, 0);
    for (unsigned i = 0; i < 8; i++)
        self->jobs[i] = (struct job){.base = {.run = run_job, .lane = lane}, .number = i};
    for (unsigned i = 0; i < count; i++)
        self->io->submit(self->io->impl, &self->jobs[i].base);
}

static inline void on_client(void *core, sk_peer from, enum sk_role role, const char *key,
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

static inline void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct server *self = core;
    char text[64];
    snprintf(text, sizeof text, "peer %u: %.*s", from, (int)bytes.size, (const char *)bytes.bytes);
    send_text(self, from, text);
}

static inline void on_connected(void *core, sk_peer peer)
{
    struct server *self = core;
    (void)peer;
    atomic_fetch_add(&self->connected, 1);
}

static inline void on_disconnected(void *core, sk_peer peer)
{
    struct server *self = core;
    atomic_store(&self->disconnected, peer);
}

static inline uint64_t on_time(void *core)
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

static inline void on_stop(void *core)
{
    struct server *self = core;
    atomic_fetch_add(&self->stops, 1);
}

/* ---- the loop's thread ---- */

static inline void open_doors(struct server *self)
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

static inline void *run_server(void *arg)
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

static inline void *client(int type, const char *endpoint, const char *routing_id)
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

static inline void *curve_client(const struct server *server, const char *public_key,
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

static inline void set_timeout(void *sock, int timeout_ms)
{
    zmq_setsockopt(sock, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
}

static inline void say(void *sock, const char *text)
{
    atomic_fetch_add(&spoken, 1);
    assert_int_equal(zmq_send(sock, text, strlen(text), 0), (int)strlen(text));
}

/* The next frame as text; fails the test after the socket's timeout. */
static inline const char *hear(void *sock)
{
    static char text[256];
    int size = zmq_recv(sock, text, sizeof text - 1, 0);
    if (size < 0)
        fail_msg("no answer: %s", zmq_strerror(errno));
    (void)atomic_load(&spoken);
    text[size < (int)sizeof text ? size : (int)sizeof text - 1] = '\0';
    return text;
}

static inline const char *ask(void *sock, const char *text)
{
    say(sock, text);
    return hear(sock);
}

static inline void hears_nothing(void *sock)
{
    char text[256];
    set_timeout(sock, SILENCE_MS);
    assert_int_equal(zmq_recv(sock, text, sizeof text, 0), -1);
    assert_int_equal(errno, EAGAIN);
    set_timeout(sock, WAIT_MS);
}

static inline bool waits_for(atomic_uint *number, unsigned wanted)
{
    for (int i = 0; i < WAIT_MS && atomic_load(number) < wanted; i++)
        usleep(1000);
    return atomic_load(number) >= wanted;
}

/* ---- fixture ---- */

static inline int server_start(void **state, size_t message_bytes_max)
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
    /* the name of the one before is free some time after it was closed */
    enum sk_err zap = sk_zap_new(&self->zap, &d);
    for (int i = 0; i < WAIT_MS && zap == SK_ERR_UNAVAILABLE; i++) {
        usleep(1000);
        zap = sk_zap_new(&self->zap, &d);
    }
    assert_int_equal(zap, SK_ERR_OK);
    pthread_barrier_init(&self->is_up, NULL, 2);
    context = zmq_ctx_new();
    pthread_create(&self->thread, NULL, run_server, self);
    pthread_barrier_wait(&self->is_up);
    *state = self;
    return 0;
}

static inline int setup(void **state)
{
    return server_start(state, 0);
}

static inline int setup_token(void **state)
{
    setenv("SKERRY_LINK_TOKEN", "secret", 1);
    return server_start(state, 0);
}

static inline int setup_small(void **state)
{
    return server_start(state, 1000);
}

static inline int teardown(void **state)
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

#endif
