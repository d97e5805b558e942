/* links: sk_shell */
/* The ipc doors from the other end of the socket, byte by byte; ZeroMQ's own clients meet them in
 * shell_reactor.c and in the cluster tests. The core echoes. */
#include "tests/harness.h"

#include "common/shell/reactor.h"
#include "common/shell/zmtp.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

enum { PEER_WORKER_0 = 10, HANDSHAKE_MS = 300, BYTES_MAX = 1 << 20, WAIT_MS = 5000 };

struct server {
    struct sk_reactor *reactor;
    pthread_t thread;
    char dir[64], client[96], worker[96];
    struct sk_job job; /* of QUICK: waits until the test lets it go on */
    atomic_bool may_go_on;
    sk_peer told; /* who is sent a short and a long message when it is done; 0: nobody */
};

static struct server *waiting_server;
static char large[100000];

static void wait_to_go_on(struct sk_job *job)
{
    (void)job;
    for (unsigned i = 0; i < 2 * WAIT_MS && !atomic_load(&waiting_server->may_go_on); i++)
        usleep(1000);
}

static void on_client(void *core, sk_peer from, enum sk_role role, const char *key,
                      struct sk_span frame)
{
    struct server *self = core;
    const struct sk_io *io = sk_reactor_io(self->reactor);
    struct sk_span part = sk_span_is(frame, "large") ? sk_span_of(large, sizeof large) : frame;
    uint64_t writes = sk_reactor_counters(self->reactor)->writes;
    if (sk_span_is(frame, "writes"))
        part = sk_span_of(&writes, sizeof writes);
    (void)role;
    (void)key;
    if (sk_span_is(frame, "stop"))
        sk_reactor_stop(self->reactor, 0);
    bool is_telling = sk_span_is(frame, "tell worker-1");
    if (sk_span_is(frame, "job") || sk_span_is(frame, "long job") || is_telling) {
        waiting_server = self;
        self->told = is_telling ? PEER_WORKER_0 + 1 : 0;
        self->job = (struct sk_job){
            .run = wait_to_go_on, .lane = SK_LANE_QUICK, .cost_us = frame.size == 3 ? 0 : 200};
        io->submit(io->impl, &self->job);
    }
    io->send(io->impl, from, &part, 1);
}

static void on_job_done(void *core, struct sk_job *job)
{
    struct server *self = core;
    const struct sk_io *io = sk_reactor_io(self->reactor);
    struct sk_span small = sk_span_text("small"), long_one = sk_span_of(large, sizeof large);
    (void)job;
    if (self->told == 0)
        return;
    io->send(io->impl, self->told, &small, 1);
    io->send(io->impl, self->told, &long_one, 1);
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct server *self = core;
    const struct sk_io *io = sk_reactor_io(self->reactor);
    io->send(io->impl, from, &bytes, 1);
}

static void *run(void *arg)
{
    struct server *self = arg;
    (void)sk_reactor_run(self->reactor);
    return NULL;
}

static void server_start(struct server *self)
{
    struct sk_diag d = {0};
    const struct sk_reactor_config config = {.handshake_ms = HANDSHAKE_MS};
    snprintf(self->dir, sizeof self->dir, "/tmp/sk-ipc-XXXXXX");
    assert_non_null(mkdtemp(self->dir));
    snprintf(self->client, sizeof self->client, "ipc://%s/client.ipc", self->dir);
    snprintf(self->worker, sizeof self->worker, "ipc://%s/worker.ipc", self->dir);
    assert_int_equal(sk_reactor_new(&self->reactor, &config, &d), SK_ERR_OK);
    sk_reactor_set_core(self->reactor,
                        &(struct sk_reactor_core){.core = self,
                                                  .on_client = on_client,
                                                  .on_message = on_message,
                                                  .on_job_done = on_job_done});
    struct sk_reactor_door door = {.endpoint = self->client,
                                   .takes_clients = true,
                                   .role = SK_ROLE_ADMIN,
                                   .message_bytes_max = BYTES_MAX};
    assert_int_equal(sk_reactor_bind(self->reactor, &door, NULL, 0, &d), SK_ERR_OK);
    door = (struct sk_reactor_door){.endpoint = self->worker,
                                    .links = {{"worker", 4, PEER_WORKER_0}},
                                    .link_count = 1,
                                    .message_bytes_max = BYTES_MAX};
    assert_int_equal(sk_reactor_bind(self->reactor, &door, NULL, 0, &d), SK_ERR_OK);
    assert_int_equal(pthread_create(&self->thread, NULL, run, self), 0);
}

/* ---- a peer of bytes ---- */

static int peer_open(const char *endpoint)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", endpoint + 6);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void put(int fd, const void *bytes, size_t size)
{
    assert_int_equal(send(fd, bytes, size, MSG_NOSIGNAL), size);
}

/* Exactly that many bytes; false: the connection was closed first. */
static bool get(int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        struct pollfd item = {.fd = fd, .events = POLLIN};
        if (poll(&item, 1, WAIT_MS) != 1)
            fail_msg("nothing came within %d ms", WAIT_MS);
        ssize_t got = recv(fd, (uint8_t *)bytes + at, size - at, 0);
        if (got <= 0)
            return false;
        at += (size_t)got;
    }
    return true;
}

static bool is_closed(int fd)
{
    uint8_t byte;
    for (;;) {
        if (!get(fd, &byte, 1))
            return true;
    }
}

static size_t ready_of(uint8_t out[SK_ZMTP_READY_BYTES_MAX], const char *identity)
{
    return sk_zmtp_ready(out, "DEALER", sk_span_text(identity));
}

/* A connection after both handshakes. */
static int peer_ready(const char *endpoint, const char *identity)
{
    uint8_t greeting[SK_ZMTP_GREETING_BYTES], bytes[SK_ZMTP_READY_BYTES_MAX];
    struct sk_zmtp_frame frame;
    struct sk_span theirs;
    int fd = peer_open(endpoint);
    sk_zmtp_greeting(greeting);
    put(fd, greeting, sizeof greeting);
    put(fd, bytes, ready_of(bytes, identity));
    assert_true(get(fd, greeting, sizeof greeting));
    assert_true(sk_zmtp_greeting_check(greeting, sizeof greeting));
    assert_true(get(fd, bytes, 2));
    assert_int_equal(sk_zmtp_head_read(&frame, bytes, 2), 1);
    assert_true(frame.is_command && get(fd, bytes, frame.size));
    assert_true(sk_zmtp_ready_read(sk_span_of(bytes, frame.size), "DEALER", &theirs));
    return fd;
}

static void put_frame(int fd, const char *text, bool has_more, bool is_command)
{
    uint8_t head[SK_ZMTP_HEAD_BYTES_MAX];
    put(fd, head, sk_zmtp_head(head, strlen(text), has_more, is_command));
    put(fd, text, strlen(text));
}

static void want_frame(int fd, const char *text, bool is_command)
{
    uint8_t head[2];
    char bytes[256];
    assert_true(get(fd, head, 2));
    assert_int_equal(head[0], is_command ? 4 : 0);
    assert_int_equal(head[1], strlen(text));
    assert_true(get(fd, bytes, head[1]));
    assert_memory_equal(bytes, text, head[1]);
}

static void still_serves(const struct server *self)
{
    int fd = peer_ready(self->client, "");
    put_frame(fd, "hello", false, false);
    want_frame(fd, "hello", false);
    close(fd);
}

static void server_end(struct server *self)
{
    int fd = peer_ready(self->client, "");
    put_frame(fd, "stop", false, false);
    assert_int_equal(pthread_join(self->thread, NULL), 0);
    close(fd);
    sk_reactor_destroy(&self->reactor);
    assert_int_equal(access(self->client + 6, F_OK), -1); /* the files are taken away */
    assert_int_equal(rmdir(self->dir), 0);
}

/* ---- tests ---- */

static void a_message_in_single_bytes_is_a_message(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    uint8_t all[SK_ZMTP_GREETING_BYTES + SK_ZMTP_READY_BYTES_MAX + 64];
    size_t size = SK_ZMTP_GREETING_BYTES;
    sk_zmtp_greeting(all);
    size += ready_of(all + size, "");
    memcpy(all + size, "\1\0\0\5hello\2\0\0\0\0\0\0\0\3you", 21); /* delimiter, short; long */
    size += 21;
    int fd = peer_open(self.client);
    for (size_t i = 0; i < size; i++) {
        put(fd, all + i, 1);
        if (i % 7 == 0)
            usleep(200);
    }
    uint8_t head[SK_ZMTP_GREETING_BYTES + 2], answer[11];
    assert_true(get(fd, head, sizeof head));
    assert_true(get(fd, all, head[sizeof head - 1]));
    assert_true(get(fd, answer, 11 + 0));
    assert_memory_equal(answer, "\1\0\0\5hello\0\3", 11);
    close(fd);
    server_end(&self);
}

static void every_cut_of_a_handshake_and_garbage_hurt_nobody(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    uint8_t good[SK_ZMTP_GREETING_BYTES + SK_ZMTP_READY_BYTES_MAX + 8], bad[sizeof good];
    size_t size = SK_ZMTP_GREETING_BYTES;
    sk_zmtp_greeting(good);
    size += ready_of(good + size, "worker-1");
    memcpy(good + size, "\0\5hello", 7);
    size += 7;
    for (size_t cut = 0; cut < size; cut += 3) {
        int fd = peer_open(cut % 2 != 0 ? self.client : self.worker);
        put(fd, good, cut);
        close(fd);
    }
    srand(7);
    for (unsigned i = 0; i < 400; i++) {
        int fd = peer_open(i % 2 != 0 ? self.client : self.worker);
        memcpy(bad, good, size);
        if (i < 100)
            for (size_t k = 0; k < size; k++)
                bad[k] = (uint8_t)rand();
        else
            bad[(size_t)rand() % size] ^= (uint8_t)(1 << rand() % 8);
        (void)!send(fd, bad, size, MSG_NOSIGNAL);
        close(fd);
    }
    still_serves(&self);
    server_end(&self);
}

static void a_handshake_that_does_not_end_is_ended(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    uint8_t greeting[SK_ZMTP_GREETING_BYTES];
    int silent = peer_open(self.client), half = peer_open(self.client),
        open = peer_ready(self.client, "");
    sk_zmtp_greeting(greeting);
    put(half, greeting, sizeof greeting);
    assert_true(is_closed(silent));
    assert_true(is_closed(half));
    put_frame(open, "hello", false, false); /* one that is open may be silent for ever */
    want_frame(open, "hello", false);
    close(silent);
    close(half);
    close(open);
    server_end(&self);
}

static void what_is_too_large_or_no_frame_ends_that_connection_only(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
    } bad[] = {
        {"\2\0\0\0\0\0\x20\0\0", 9},             /* 2 MiB */
        {"\2\x7f\xff\xff\xff\xff\xff\xff\xff", 9}, /* as much as can be said */
        {"\2\xff\xff\xff\xff\xff\xff\xff\xff", 9},
        {"\x08\1x", 3},                          /* a flag that does not exist */
        {"\5\1x", 3},                            /* a command with more to come */
        {"\1\1x\4\5\4PING", 10},                 /* a command inside a message */
        {"\6\0\0\0\0\0\1\0\0", 9},               /* a command of 64 KiB */
    };
    struct server self;
    server_start(&self);
    for (size_t i = 0; i < SK_COUNT_OF(bad); i++) {
        int fd = peer_ready(self.client, "");
        uint8_t bytes[7 + 10] = "\0\5hello"; /* what came before, even in the same read, is answered */
        memcpy(bytes + 7, bad[i].bytes, bad[i].size);
        put(fd, bytes, 7 + bad[i].size);
        want_frame(fd, "hello", false);
        assert_true(is_closed(fd));
        close(fd);
    }
    /* many small parts: together they may not be larger than one message */
    int fd = peer_ready(self.client, "");
    char part[1002] = "";
    memset(part, 'x', sizeof part - 1);
    uint8_t head[SK_ZMTP_HEAD_BYTES_MAX];
    size_t head_size = sk_zmtp_head(head, sizeof part - 1, true, false);
    bool is_open = true;
    for (unsigned i = 0; i < 3000 && is_open; i++)
        is_open = send(fd, head, head_size, MSG_NOSIGNAL) > 0 &&
                  send(fd, part, sizeof part - 1, MSG_NOSIGNAL) > 0;
    assert_false(is_open);
    close(fd);
    still_serves(&self);
    server_end(&self);
}

static void a_ping_is_answered_with_its_context(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    int fd = peer_ready(self.client, "");
    put(fd, "\4\x0a\4PINGxxabc", 12);
    want_frame(fd, "\4PONGabc", true);
    put_frame(fd, "hello", false, false);
    want_frame(fd, "hello", false);
    close(fd);
    server_end(&self);
}

static void the_second_under_one_name_takes_the_place_of_the_first(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    int first = peer_ready(self.worker, "worker-1");
    put_frame(first, "hello", false, false);
    want_frame(first, "hello", false);
    int second = peer_ready(self.worker, "worker-1");
    put_frame(second, "again", false, false);
    want_frame(second, "again", false);
    assert_true(is_closed(first)); /* closed, not left in silence */
    put_frame(second, "still", false, false);
    want_frame(second, "still", false);
    int stranger = peer_ready(self.worker, "stranger");
    put_frame(stranger, "hello", false, false);
    put_frame(second, "more", false, false);
    want_frame(second, "more", false);
    close(first);
    close(second);
    close(stranger);
    server_end(&self);
}

/* Both ends write before they read: a process must go on reading while its own mail waits. */
static void links_that_write_at_the_same_time_do_not_wait_for_ever(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    int fd = peer_ready(self.worker, "worker-2");
    enum { SIZE = 60000, COUNT = 200 };
    uint8_t *message = calloc(1, SIZE + SK_ZMTP_HEAD_BYTES_MAX);
    size_t size = sk_zmtp_head(message, SIZE, false, false) + SIZE;
    struct timeval limit = {.tv_sec = 5};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit), 0);
    for (unsigned i = 0; i < COUNT; i++)
        for (size_t at = 0; at < size;) {
            ssize_t sent = send(fd, message + at, size - at, MSG_NOSIGNAL);
            if (sent <= 0)
                fail_msg("message %u could not be sent: %s", i, strerror(errno));
            at += (size_t)sent;
        }
    for (unsigned i = 0; i < COUNT; i++)
        assert_true(get(fd, message, size));
    free(message);
    close(fd);
    server_end(&self);
}

/* 500 answers of 100,000 bytes while the client only asks: all of them are there when it reads. */
static void a_client_that_reads_late_loses_nothing(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    void *context = zmq_ctx_new(), *sock = zmq_socket(context, ZMQ_DEALER);
    int linger = 0, timeout_ms = WAIT_MS, queue = 2;
    zmq_setsockopt(sock, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(sock, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_setsockopt(sock, ZMQ_RCVHWM, &queue, sizeof queue);
    assert_int_equal(zmq_connect(sock, self.client), 0);
    for (unsigned i = 0; i < 500; i++)
        assert_int_equal(zmq_send(sock, "large", 5, 0), 5);
    usleep(200000);
    still_serves(&self);
    char *answer = malloc(100000);
    for (unsigned i = 0; i < 500; i++)
        assert_int_equal(zmq_recv(sock, answer, 100000, 0), 100000);
    free(answer);
    zmq_close(sock);
    zmq_ctx_term(context);
    server_end(&self);
}

static uint64_t writes_of(int fd)
{
    uint64_t writes;
    uint8_t head[2];
    put_frame(fd, "writes", false, false);
    assert_true(get(fd, head, sizeof head) && get(fd, &writes, sizeof writes));
    return writes;
}

/* Short and long frames, with more than one turn's and one buffer's worth of them. */
static void answers_of_one_turn_leave_together_and_in_order(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    enum { COUNT = 60, LONG = 9000 };
    static uint8_t all[COUNT * (LONG + SK_ZMTP_HEAD_BYTES_MAX)], back[sizeof all];
    size_t size = 0;
    int fd = peer_ready(self.client, "");
    uint64_t writes = writes_of(fd);
    for (unsigned i = 0; i < COUNT; i++) {
        size += sk_zmtp_head(all + size, 200, false, false);
        memset(all + size, (int)i, 200);
        size += 200;
    }
    put(fd, all, size);
    assert_true(get(fd, back, size));
    assert_memory_equal(back, all, size);
    assert_in_range(writes_of(fd) - writes, 2, COUNT / 4); /* two, where nothing stops the loop */
    size = 0;
    for (unsigned i = 0; i < COUNT; i++) { /* those that are not gathered keep their place */
        size_t length = i % 3 == 1 ? LONG : 100;
        size += sk_zmtp_head(all + size, length, false, false);
        memset(all + size, (int)i, length);
        size += length;
    }
    put(fd, all, size);
    assert_true(get(fd, back, size));
    assert_memory_equal(back, all, size);
    close(fd);
    server_end(&self);
}

/* What is ready does not wait for a job that may take long. */
static void ready_answers_do_not_wait_for_work(void **state)
{
    (void)state;
    struct server self;
    for (unsigned is_long = 0; is_long < 2; is_long++) {
        server_start(&self);
        atomic_store(&self.may_go_on, false);
        int fd = peer_ready(self.client, "");
        const char *both = is_long ? "\0\5hello\0\10long job" : "\0\5hello\0\3job";
        put(fd, both, is_long ? 17 : 12);
        want_frame(fd, "hello", false);
        want_frame(fd, is_long ? "long job" : "job", false);
        atomic_store(&self.may_go_on, true);
        still_serves(&self);
        close(fd);
        server_end(&self);
    }
}

/* It is found gone by what was gathered for it, while the next message is on its way. */
static void a_worker_that_dies_before_a_short_and_a_long_message_hurts_nobody(void **state)
{
    (void)state;
    struct server self;
    server_start(&self);
    atomic_store(&self.may_go_on, false);
    int fd = peer_ready(self.client, ""), worker = peer_ready(self.worker, "worker-1");
    put_frame(worker, "hello", false, false);
    want_frame(worker, "hello", false);
    put_frame(fd, "tell worker-1", false, false);
    want_frame(fd, "tell worker-1", false); /* the loop waits in the job */
    close(worker);
    atomic_store(&self.may_go_on, true);
    still_serves(&self);
    close(fd);
    server_end(&self);
}

static void an_ipc_door_wants_no_curve_and_says_so_by_closing(void **state)
{
    (void)state;
    uint8_t greeting[SK_ZMTP_GREETING_BYTES];
    struct server self;
    server_start(&self);
    sk_zmtp_greeting(greeting);
    memcpy(greeting + 12, "CURVE", 5);
    int fd = peer_open(self.client);
    put(fd, greeting, sizeof greeting);
    assert_true(is_closed(fd));
    close(fd);
    server_end(&self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_in_single_bytes_is_a_message),
        cmocka_unit_test(every_cut_of_a_handshake_and_garbage_hurt_nobody),
        cmocka_unit_test(a_handshake_that_does_not_end_is_ended),
        cmocka_unit_test(what_is_too_large_or_no_frame_ends_that_connection_only),
        cmocka_unit_test(a_ping_is_answered_with_its_context),
        cmocka_unit_test(the_second_under_one_name_takes_the_place_of_the_first),
        cmocka_unit_test(links_that_write_at_the_same_time_do_not_wait_for_ever),
        cmocka_unit_test(a_client_that_reads_late_loses_nothing),
        cmocka_unit_test(answers_of_one_turn_leave_together_and_in_order),
        cmocka_unit_test(ready_answers_do_not_wait_for_work),
        cmocka_unit_test(a_worker_that_dies_before_a_short_and_a_long_message_hurts_nobody),
        cmocka_unit_test(an_ipc_door_wants_no_curve_and_says_so_by_closing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
