/* links: sk_supervisor */
/* The supervisor's core with processes and a clock that are only told of. */
#include "tests/harness.h"

#include "actors/supervisor/supervisor.h"
#include "proto/link.h"
#include "proto/reply.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { WORKERS = 2, CHILDREN = 3 + WORKERS, MS = 1000, S = 1000 * MS };

struct process {
    char name[32];
    uint32_t number, port;
    pid_t pid; /* 0: does not run */
    unsigned starts, terms, kills;
    sk_peer peer;
};

struct world {
    struct sk_supervisor *core;
    uint64_t now_us;
    pid_t next_pid;
    bool cannot_start;
    struct process processes[CHILDREN];
    unsigned process_count;
    struct sk_buffer reply;
    sk_peer replied_to;
    unsigned events[SK_SUPERVISOR_EVENT_COUNT];
};

/* ---- hands and io ---- */

static struct process *process_of(struct world *self, const char *name, uint32_t number)
{
    for (unsigned i = 0; i < self->process_count; i++)
        if (strcmp(self->processes[i].name, name) == 0 && self->processes[i].number == number)
            return &self->processes[i];
    return NULL;
}

static pid_t start(void *impl, const char *name, uint32_t number, uint32_t port)
{
    struct world *self = impl;
    struct process *process = process_of(self, name, number);
    if (process == NULL) {
        process = &self->processes[self->process_count++];
        snprintf(process->name, sizeof process->name, "%s", name);
        process->number = number;
        process->peer = strcmp(name, "router") == 0            ? SK_SUPERVISOR_PEER_ROUTER
                        : strcmp(name, "metadata-keeper") == 0 ? SK_SUPERVISOR_PEER_KEEPER
                        : strcmp(name, "gateway") == 0         ? SK_SUPERVISOR_PEER_GATEWAY
                                                       : SK_SUPERVISOR_PEER_WORKER_0 + number;
    }
    process->starts++;
    process->port = port;
    assert_int_equal(process->pid, 0); /* never two of one */
    if (self->cannot_start)
        return -1;
    process->pid = ++self->next_pid;
    return process->pid;
}

static void kill_process(void *impl, pid_t pid, int signal_number)
{
    struct world *self = impl;
    for (unsigned i = 0; i < self->process_count; i++)
        if (self->processes[i].pid == pid) {
            self->processes[i].terms += signal_number == SIGTERM;
            self->processes[i].kills += signal_number == SIGKILL;
            return;
        }
    fail_msg("signal %d to a process that is not there", signal_number);
}

static struct sk_supervisor_usage usage(void *impl, pid_t pid)
{
    (void)impl;
    return (struct sk_supervisor_usage){(uint64_t)pid * 1000, 0.5};
}

static uint64_t mono_us(void *impl)
{
    return ((struct world *)impl)->now_us;
}

static void send_reply(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    struct world *self = impl;
    sk_buffer_clear(&self->reply);
    for (unsigned i = 0; i < part_count; i++)
        sk_buffer_append(&self->reply, parts[i].bytes, parts[i].size);
    self->replied_to = to;
}

static void count_event(void *impl, enum sk_supervisor_event event, const char *process,
                        uint64_t number)
{
    (void)process;
    (void)number;
    ((struct world *)impl)->events[event]++;
}

/* ---- doing ---- */

static void beat_as(struct world *self, sk_peer from, pid_t pid, bool is_ready,
                    const char *endpoint)
{
    struct sk_link_header header = {.kind = SK_LINK_STATS};
    struct sk_buffer message = {0};
    uint8_t *head = sk_buffer_grow(&message, SK_LINK_HEADER_BYTES);
    sk_link_header_encode(head, &header);
    sk_put_map(&message, 4);
    sk_put_text(&message, "pid");
    sk_put_u64(&message, (uint64_t)pid);
    sk_put_text(&message, "ready");
    sk_put_bool(&message, is_ready);
    sk_put_text(&message, "endpoint");
    sk_put_text(&message, endpoint);
    sk_put_text(&message, "wakeup");
    sk_put_map(&message, 2);
    sk_put_text(&message, "mode");
    sk_put_text(&message, "adaptive");
    sk_put_text(&message, "state");
    sk_put_text(&message, "held");
    sk_supervisor_on_message(self->core, from, sk_buffer_span(&message));
    sk_buffer_deinit(&message);
}

static void beat(struct world *self, const struct process *process, bool is_ready)
{
    static const char *endpoint;
    endpoint = strcmp(process->name, "router") == 0    ? "tcp://0.0.0.0:7420"
               : strcmp(process->name, "gateway") == 0 ? "http://127.0.0.1:7421"
                                                       : "";
    beat_as(self, process->peer, process->pid, is_ready, endpoint);
}

static void all_beat(struct world *self)
{
    for (unsigned i = 0; i < self->process_count; i++)
        if (self->processes[i].pid != 0)
            beat(self, &self->processes[i], true);
}

static void dies(struct world *self, struct process *process, int wait_status, const char *reason)
{
    pid_t pid = process->pid;
    process->pid = 0;
    sk_supervisor_on_exit(self->core, pid, wait_status, reason);
}

/* Time goes on in steps, with heartbeats of whoever runs where beats is true. */
static void pass(struct world *self, uint64_t us, bool beats)
{
    uint64_t end_us = self->now_us + us;
    while (self->now_us < end_us) {
        uint64_t next = sk_supervisor_on_time(self->core), step = self->now_us + 500 * MS;
        self->now_us = next < step && next > self->now_us ? next : step;
        if (self->now_us > end_us)
            self->now_us = end_us;
        if (beats)
            all_beat(self);
    }
    (void)sk_supervisor_on_time(self->core);
}

static struct sk_supervisor_status status_of(const struct world *self)
{
    struct sk_supervisor_status status;
    sk_supervisor_get_status(self->core, &status);
    return status;
}

static int setup(void **state)
{
    struct world *self = calloc(1, sizeof *self);
    struct sk_diag d = {0};
    struct sk_io io = {.impl = self, .mono_us = mono_us, .send = send_reply};
    struct sk_supervisor_hands hands = {self, start, kill_process, count_event, usage};
    struct sk_supervisor_config config = {.workers = WORKERS,
                                          .heartbeat_timeout_us = 10 * S,
                                          .backoff_us_max = 1 * S,
                                          .stop_timeout_us = 8 * S,
                                          .own_pid = 7,
                                          .public_key = "key",
                                          .client_ipc = "ipc:///d/run/client.ipc"};
    self->now_us = 1000;
    self->next_pid = 100;
    assert_int_equal(sk_supervisor_new(&self->core, &config, &io, &hands, &d), SK_ERR_OK);
    sk_supervisor_start(self->core);
    assert_int_equal(self->process_count, CHILDREN);
    *state = self;
    return 0;
}

static int teardown(void **state)
{
    struct world *self = *state;
    sk_supervisor_destroy(&self->core);
    assert_null(self->core);
    sk_buffer_deinit(&self->reply);
    free(self);
    return 0;
}

/* ---- tests ---- */

static void a_node_is_ready_when_every_process_has_said_so(void **state)
{
    struct world *self = *state;
    for (unsigned i = 0; i < CHILDREN; i++) {
        assert_false(status_of(self).is_ready);
        beat(self, &self->processes[i], false);
        assert_false(status_of(self).is_ready);
        beat(self, &self->processes[i], true);
    }
    struct sk_supervisor_status status = status_of(self);
    assert_true(status.is_ready);
    assert_string_equal(status.client_tcp, "tcp://0.0.0.0:7420");
    assert_string_equal(status.http, "http://127.0.0.1:7421");
    beat(self, &self->processes[1], false); /* one says that it is not any more */
    assert_false(status_of(self).is_ready);
    beat(self, &self->processes[1], true);
    assert_true(status_of(self).is_ready);
}

static void a_killed_process_is_started_again_at_once_and_alone(void **state)
{
    struct world *self = *state;
    struct process *router = process_of(self, "router", 0);
    all_beat(self);
    pass(self, 3 * S, true);
    assert_int_equal(router->port, 0);
    dies(self, router, SIGKILL, "");
    assert_int_equal(router->starts, 2);
    assert_int_equal(router->port, 7420); /* where clients look for it */
    assert_false(status_of(self).is_ready);
    assert_int_equal(process_of(self, "shard-worker", 0)->starts, 1);
    beat(self, router, true);
    assert_true(status_of(self).is_ready);
    assert_int_equal(self->events[SK_SUPERVISOR_EVENT_process_killed], 1);
}

static void a_process_that_keeps_ending_is_started_with_back_off_for_ever(void **state)
{
    struct world *self = *state;
    struct process *worker = process_of(self, "shard-worker", 1);
    all_beat(self);
    pass(self, 3 * S, true);
    uint64_t before_us = self->now_us, delays[12];
    dies(self, worker, SIGSEGV, "");
    for (unsigned i = 0; i < SK_COUNT_OF(delays); i++) {
        unsigned starts = worker->starts;
        before_us = self->now_us;
        dies(self, worker, SIGSEGV, "");
        while (worker->starts == starts) {
            uint64_t next = sk_supervisor_on_time(self->core);
            if (worker->starts == starts) {
                assert_true(next > self->now_us && next < UINT64_MAX);
                self->now_us = next < self->now_us + S ? next : self->now_us + S;
                all_beat(self);
                worker->pid = worker->starts == starts ? 0 : worker->pid;
            }
        }
        delays[i] = self->now_us - before_us;
    }
    assert_int_equal(delays[0], 50 * MS);
    assert_int_equal(delays[1], 100 * MS);
    assert_int_equal(delays[2], 200 * MS);
    assert_int_equal(delays[11], 1 * S); /* the longest */
    assert_false(status_of(self).has_failed);
    pass(self, 3 * S, true); /* proven: the next time at once */
    unsigned starts = worker->starts;
    dies(self, worker, SIGKILL, "");
    assert_int_equal(worker->starts, starts + 1);
}

static void a_first_start_that_fails_several_times_ends_with_its_reason(void **state)
{
    struct world *self = *state;
    struct process *router = process_of(self, "router", 0);
    for (unsigned i = 0; i < 4; i++) {
        dies(self, router, 1 << 8, "tcp://0.0.0.0:7420 is in use by another program");
        assert_false(status_of(self).has_failed);
        pass(self, 2 * S, false);
        assert_int_not_equal(router->pid, 0);
    }
    dies(self, router, 1 << 8, "tcp://0.0.0.0:7420 is in use by another program");
    struct sk_supervisor_status status = status_of(self);
    assert_true(status.has_failed);
    assert_false(status.is_stopped);
    assert_non_null(strstr(status.words, "router 0 cannot start: tcp://0.0.0.0:7420 is in use"));
    for (unsigned i = 0; i < CHILDREN; i++) /* in the order in which they are told */
        for (unsigned j = 0; j < CHILDREN; j++)
            if (self->processes[j].pid != 0 && self->processes[j].terms > 0)
                dies(self, &self->processes[j], 0, "");
    status = status_of(self);
    assert_true(status.is_stopped);
    assert_non_null(strstr(status.words, "in use"));
}

static void wrong_arguments_end_the_first_start_at_once(void **state)
{
    struct world *self = *state;
    dies(self, process_of(self, "gateway", 0), 2 << 8, "");
    assert_true(status_of(self).has_failed);
    assert_non_null(
        strstr(status_of(self).words, "gateway 0 cannot start: it ended with status 2"));
}

static void a_process_that_cannot_even_be_started_is_tried_again(void **state)
{
    struct world *self = *state;
    struct process *router = process_of(self, "router", 0);
    all_beat(self);
    pass(self, 2 * S, true);
    self->cannot_start = true;
    dies(self, router, SIGKILL, "");
    pass(self, 2 * S, true);
    assert_true(router->starts > 3);
    self->cannot_start = false;
    pass(self, 2 * S, true);
    assert_true(status_of(self).is_ready);
}

static void a_ready_process_that_falls_silent_is_killed(void **state)
{
    struct world *self = *state;
    struct process *worker = process_of(self, "shard-worker", 0);
    all_beat(self);
    for (unsigned i = 0; i < 19; i++) { /* 9.5 s */
        pass(self, 500 * MS, false);
        for (unsigned j = 0; j < CHILDREN; j++)
            if (&self->processes[j] != worker)
                beat(self, &self->processes[j], true);
    }
    assert_int_equal(worker->kills, 0);
    pass(self, 1 * S, false);
    assert_int_equal(worker->kills, 1);
    assert_int_equal(process_of(self, "router", 0)->kills, 0);
    assert_false(status_of(self).is_ready);
    pass(self, 1 * S, true);
    assert_int_equal(worker->kills, 1);
    dies(self, worker, SIGKILL, "");
    pass(self, 1 * S, true);
    assert_true(status_of(self).is_ready);
}

static void a_process_that_opens_its_shards_for_long_is_left_alone(void **state)
{
    struct world *self = *state;
    pass(self, 100 * S, false);
    for (unsigned i = 0; i < CHILDREN; i++)
        assert_int_equal(self->processes[i].kills + self->processes[i].terms, 0);
}

static void a_pause_of_the_supervisor_itself_kills_nobody(void **state)
{
    struct world *self = *state;
    all_beat(self);
    pass(self, 2 * S, true);
    self->now_us += 3600 * (uint64_t)S; /* stopped, or the machine slept */
    pass(self, 2 * S, true);
    for (unsigned i = 0; i < CHILDREN; i++)
        assert_int_equal(self->processes[i].kills, 0);
    assert_true(status_of(self).is_ready);
}

static void a_stop_goes_from_the_doors_to_the_keeper(void **state)
{
    struct world *self = *state;
    struct process *router = process_of(self, "router", 0),
                   *gateway = process_of(self, "gateway", 0),
                   *keeper = process_of(self, "metadata-keeper", 0),
                   *one = process_of(self, "shard-worker", 0),
                   *two = process_of(self, "shard-worker", 1);
    all_beat(self);
    sk_supervisor_stop(self->core);
    assert_int_equal(router->terms + gateway->terms, 2);
    assert_int_equal(one->terms + two->terms + keeper->terms, 0);
    dies(self, router, 0, "");
    dies(self, gateway, SIGTERM, "");
    assert_int_equal(one->terms + two->terms, 2);
    assert_int_equal(keeper->terms, 0);
    dies(self, one, 0, "");
    dies(self, two, 0, "");
    assert_int_equal(keeper->terms, 1);
    assert_false(status_of(self).is_stopped);
    dies(self, keeper, 0, "");
    assert_true(status_of(self).is_stopped);
    assert_false(status_of(self).has_failed);
    for (unsigned i = 0; i < CHILDREN; i++) {
        assert_int_equal(self->processes[i].starts, 1);
        assert_int_equal(self->processes[i].kills, 0);
    }
    assert_int_equal(sk_supervisor_on_time(self->core) > self->now_us, true);
}

static void a_stop_is_over_in_bounded_time(void **state)
{
    struct world *self = *state;
    all_beat(self);
    sk_supervisor_stop(self->core);
    pass(self, 4 * S, true); /* a router that does not end holds up nobody */
    assert_int_equal(process_of(self, "shard-worker", 0)->terms, 1);
    assert_int_equal(process_of(self, "shard-worker", 0)->kills, 0);
    pass(self, 4 * S, true);
    for (unsigned i = 0; i < CHILDREN; i++) {
        assert_int_equal(self->processes[i].kills, 1);
        dies(self, &self->processes[i], SIGKILL, "");
    }
    assert_true(status_of(self).is_stopped);
}

static void a_process_that_waits_is_not_started_by_a_stop(void **state)
{
    struct world *self = *state;
    struct process *router = process_of(self, "router", 0);
    all_beat(self);
    dies(self, router, SIGSEGV, ""); /* was ready for no time: waits 50 ms */
    assert_int_equal(router->starts, 1);
    sk_supervisor_stop(self->core);
    pass(self, 1 * S, false);
    assert_int_equal(router->starts, 1);
}

/* ---- requests ---- */

static struct sk_reply ask(struct world *self, const char *op)
{
    struct sk_buffer frame = {0};
    struct sk_reply reply;
    struct sk_diag d = {0};
    sk_put_map(&frame, 3);
    sk_put_text(&frame, "v");
    sk_put_u64(&frame, 1);
    sk_put_text(&frame, "op");
    sk_put_text(&frame, op);
    sk_put_text(&frame, "id");
    sk_put_u64(&frame, 9);
    sk_supervisor_on_client(self->core, SK_PEER_FIRST_CLIENT + 5, sk_buffer_span(&frame));
    sk_buffer_deinit(&frame);
    assert_int_equal(self->replied_to, SK_PEER_FIRST_CLIENT + 5);
    assert_int_equal(sk_reply_decode(&reply, sk_buffer_span(&self->reply), &d), SK_ERR_OK);
    assert_int_equal(reply.id.number, 9);
    return reply;
}

static void status_tells_every_process(void **state)
{
    struct world *self = *state;
    bool is_ready = false;
    struct sk_list processes;
    struct sk_span wakeup, text, first;
    uint64_t rss = 0;
    all_beat(self);
    struct sk_reply reply = ask(self, "node_status");
    assert_true(reply.is_ok);
    assert_true(sk_map_member_bool(reply.map, "ready", &is_ready) && is_ready);
    assert_true(sk_map_member(reply.map, "wakeup", &wakeup));
    assert_true(sk_map_member_text(wakeup, "state", &text) && sk_span_is(text, "held"));
    assert_true(sk_map_member_list(reply.map, "processes", &processes));
    assert_int_equal(processes.count, CHILDREN + 1);
    struct sk_reader reader = sk_reader_of(processes.members);
    struct sk_diag d = {0};
    for (unsigned i = 0; i <= CHILDREN; i++) {
        assert_int_equal(sk_read_raw(&reader, 4, &first, &d), SK_ERR_OK);
        assert_true(sk_map_member_u64(first, "rss_bytes", &rss) && rss > 0);
        assert_true(sk_map_member_text(first, "state", &text) && sk_span_is(text, "ready"));
    }
}

static void a_request_to_stop_is_answered_first(void **state)
{
    struct world *self = *state;
    all_beat(self);
    assert_true(ask(self, "node_stop").is_ok);
    assert_int_equal(process_of(self, "router", 0)->terms, 1);
}

static void anything_else_is_an_error_with_words(void **state)
{
    struct world *self = *state;
    struct sk_reply reply = ask(self, "ping");
    assert_false(reply.is_ok);
    assert_int_equal(reply.code, SK_ERR_INVALID);
    assert_non_null(memmem(reply.error_message.bytes, reply.error_message.size, "client.ipc", 10));
    assert_false(ask(self, "no_such_op").is_ok);
}

static void hostile_messages_change_nothing(void **state)
{
    struct world *self = *state;
    unsigned seed = 1;
    uint8_t bytes[300];
    all_beat(self);
    for (unsigned round = 0; round < 20000; round++) {
        size_t size = (size_t)rand_r(&seed) % sizeof bytes;
        struct sk_link_header header = {.kind = SK_LINK_STATS};
        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)rand_r(&seed);
        if (size >= SK_LINK_HEADER_BYTES && round % 2 == 0)
            sk_link_header_encode(bytes, &header);
        sk_peer from = (sk_peer)rand_r(&seed) % 100;
        sk_supervisor_on_message(self->core, from, sk_span_of(bytes, size));
        sk_supervisor_on_client(self->core, SK_PEER_FIRST_CLIENT, sk_span_of(bytes, size));
    }
    /* a stranger under a routing id of ours, with another pid */
    beat_as(self, SK_SUPERVISOR_PEER_ROUTER, 4242, false, "tcp://elsewhere:1");
    assert_true(status_of(self).is_ready);
    assert_string_equal(status_of(self).client_tcp, "tcp://0.0.0.0:7420");
    assert_true(self->events[SK_SUPERVISOR_EVENT_message_malformed] > 1000);
    for (unsigned i = 0; i < CHILDREN; i++)
        assert_int_equal(self->processes[i].kills + self->processes[i].terms, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_node_is_ready_when_every_process_has_said_so),
        TEST(a_killed_process_is_started_again_at_once_and_alone),
        TEST(a_process_that_keeps_ending_is_started_with_back_off_for_ever),
        TEST(a_first_start_that_fails_several_times_ends_with_its_reason),
        TEST(wrong_arguments_end_the_first_start_at_once),
        TEST(a_process_that_cannot_even_be_started_is_tried_again),
        TEST(a_ready_process_that_falls_silent_is_killed),
        TEST(a_process_that_opens_its_shards_for_long_is_left_alone),
        TEST(a_pause_of_the_supervisor_itself_kills_nobody),
        TEST(a_stop_goes_from_the_doors_to_the_keeper),
        TEST(a_stop_is_over_in_bounded_time),
        TEST(a_process_that_waits_is_not_started_by_a_stop),
        TEST(status_tells_every_process),
        TEST(a_request_to_stop_is_answered_first),
        TEST(anything_else_is_an_error_with_words),
        TEST(hostile_messages_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
