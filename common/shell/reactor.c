#include "common/shell/internal.h"
#include "common/shell/log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { DRAIN_MAX_DEFAULT = 64, HANDSHAKE_MS_DEFAULT = 10000 };

/* ---- struct sk_io ---- */

static uint64_t clock_us(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t sk_reactor_now_us(void)
{
    return clock_us(CLOCK_MONOTONIC);
}

static uint64_t io_mono_us(void *impl)
{
    (void)impl;
    return clock_us(CLOCK_MONOTONIC);
}

static uint64_t io_wall_us(void *impl)
{
    (void)impl;
    return clock_us(CLOCK_REALTIME);
}

static uint64_t io_random(void *impl)
{
    struct sk_reactor *self = impl;
    if (self->random_left == 0) {
        ssize_t got = getrandom(self->random, sizeof self->random, 0); /* 256 bytes: never short */
        SK_CHECK(got == (ssize_t)sizeof self->random);
        self->random_left = SK_COUNT_OF(self->random);
    }
    return self->random[--self->random_left];
}

static void io_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    sk_socket_send(impl, to, parts, part_count);
}

/* It is run here, at the end of the turn: until then the core may add to it. */
static void run_in_place(struct sk_reactor *self, struct sk_job *job)
{
    job->next = NULL;
    if (self->quick_last == NULL)
        self->quick_first = job;
    else
        self->quick_last->next = job;
    self->quick_last = job;
}

/* Also what these or their completion submit for here: a loop, not a recursion, so that a queue of a
 * thousand quick reads needs no deep stack. */
static void run_quick(struct sk_reactor *self)
{
    while (self->quick_first != NULL) {
        struct sk_job *next = self->quick_first;
        self->quick_first = next->next;
        if (self->quick_first == NULL)
            self->quick_last = NULL;
        next->next = NULL;
        sk_connections_flush_before(self, next->cost_us);
        next->run(next);
        if (self->core.on_job_done != NULL)
            self->core.on_job_done(self->core.core, next);
    }
}

static void io_submit(void *impl, struct sk_job *job)
{
    struct sk_reactor *self = impl;
    if (job->lane == SK_LANE_QUICK) {
        self->counters.jobs_quick++;
        run_in_place(self, job);
        return;
    }
    if (job->lane == SK_LANE_SLOW)
        self->counters.jobs_slow++;
    else
        self->counters.jobs_write++;
    if (!sk_jobs_submit(self->jobs, job))
        run_in_place(self, job);
}

static void io_note(void *impl, unsigned kind, uint64_t a, uint64_t b)
{
    struct sk_reactor *self = impl;
    SK_CHECK(kind < self->note_count);
    sk_log_note(&self->notes[kind], a, b);
}

/* ---- the loop's own readers ---- */

static void arm(struct sk_reactor *self, uint64_t when_us)
{
    uint64_t at_us = when_us == 0 ? 1 : when_us; /* zero would disarm */
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)(at_us / 1000000),
                                         .tv_nsec = (long)(at_us % 1000000 * 1000)}};
    timerfd_settime(self->timer.fd, TFD_TIMER_ABSTIME, &at, NULL);
    self->armed_us = when_us;
}

/* What every turn of the loop ends with: quick jobs, what it has gathered is sent, links that are gone, the
 * core's timer. */
static void turn(struct sk_reactor *self)
{
    run_quick(self);
    sk_connections_flush(self);
    for (unsigned count = self->gone_count, i = 0; i < count; i++) { /* more of them: the next turn */
        sk_peer peer = self->gone[0];
        memmove(self->gone, self->gone + 1, --self->gone_count * sizeof self->gone[0]);
        if (self->core.on_disconnected != NULL)
            self->core.on_disconnected(self->core.core, peer);
    }
    uint64_t when_us;
    do {
        run_quick(self);
        when_us = self->core.on_time != NULL ? self->core.on_time(self->core.core) : UINT64_MAX;
    } while (self->quick_first != NULL);
    if (self->ipc_next_us != UINT64_MAX) {
        uint64_t now = sk_reactor_now_us();
        if (self->ipc_next_us <= now)
            self->ipc_next_us = sk_ipc_on_time(self, now);
    }
    sk_connections_flush(self);
    sk_ipc_reap(self);
    when_us = self->ipc_next_us < when_us ? self->ipc_next_us : when_us;
    /* An armed timer that is too early is left alone: it costs one turn, re-arming it a system call for
     * each request. */
    if (when_us < self->armed_us)
        arm(self, when_us);
}

static void on_timer(void *arg, uint32_t events)
{
    struct sk_reactor *self = arg;
    uint64_t times;
    (void)events;
    (void)!read(self->timer.fd, &times, sizeof times);
    self->armed_us = UINT64_MAX;
}

static void on_jobs_done(void *arg, uint32_t events)
{
    struct sk_reactor *self = arg;
    (void)events;
    struct sk_job *job = sk_jobs_take_done(self->jobs);
    while (job != NULL) {
        struct sk_job *next = job->next;
        job->next = NULL;
        if (self->core.on_job_done != NULL)
            self->core.on_job_done(self->core.core, job);
        job = next;
    }
}

static void on_signal(void *arg, uint32_t events)
{
    struct sk_reactor *self = arg;
    struct signalfd_siginfo info;
    (void)events;
    if (read(self->signals_source.fd, &info, sizeof info) != (ssize_t)sizeof info)
        return;
    sk_log(SK_LEVEL_INFO, "signal", "number=%u sender=%u", info.ssi_signo, info.ssi_pid);
    if (self->signals++ == 0 && self->core.on_stop != NULL)
        self->core.on_stop(self->core.core);
    else
        sk_reactor_stop(self, 0);
}

/* ---- public ---- */

/* One ZeroMQ context a process, with one I/O thread. CZMQ would take SIGTERM and SIGINT for itself. */
static void context_start(void)
{
    setenv("ZSYS_SIGHANDLER", "false", 1);
    setenv("ZSYS_IO_THREADS", "1", 1);
    setenv("ZSYS_LINGER", "0", 1);
    (void)zsys_init();
}

void sk_reactor_context(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, context_start);
}

static enum sk_err open_all(struct sk_reactor *self, const struct sk_reactor_config *config,
                            struct sk_diag *d)
{
    sigset_t stopping;
    sigemptyset(&stopping);
    sigaddset(&stopping, SIGTERM);
    sigaddset(&stopping, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stopping, NULL);
    signal(SIGPIPE, SIG_IGN);
    sk_reactor_context();
    self->timer = (struct sk_source){.fn = on_timer, .arg = self};
    self->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    self->signals_source = (struct sk_source){.fn = on_signal, .arg = self};
    self->signals_source.fd = signalfd(-1, &stopping, SFD_NONBLOCK | SFD_CLOEXEC);
    if (self->timer.fd < 0 || self->signals_source.fd < 0)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot make the loop: %s", strerror(errno));
    enum sk_err rc = sk_loop_init(&self->loop, d);
    if (rc == SK_ERR_OK)
        rc = sk_returns_init(&self->returns, config->clients_open_max, io_random(self), d);
    if (rc == SK_ERR_OK)
        rc = sk_jobs_new(&self->jobs, config->search_threads == 0 ? 1 : config->search_threads, d);
    if (rc != SK_ERR_OK)
        return rc;
    self->jobs_done =
        (struct sk_source){.fd = sk_jobs_fd(self->jobs), .fn = on_jobs_done, .arg = self};
    if (!sk_loop_add(&self->loop, &self->timer, EPOLLIN) ||
        !sk_loop_add(&self->loop, &self->signals_source, EPOLLIN) ||
        !sk_loop_add(&self->loop, &self->jobs_done, EPOLLIN))
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the loop");
    return SK_ERR_OK;
}

enum sk_err sk_reactor_new(struct sk_reactor **out, const struct sk_reactor_config *config,
                           struct sk_diag *d)
{
    *out = NULL;
    struct sk_reactor *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the loop");
    const char *token = getenv("SKERRY_LINK_TOKEN");
    if (token != NULL && strlen(token) <= SK_TOKEN_BYTES_MAX)
        memcpy(self->token, token, strlen(token));
    self->handshake_ms = config->handshake_ms == 0 ? HANDSHAKE_MS_DEFAULT : config->handshake_ms;
    self->drain_max = config->drain_max == 0 ? DRAIN_MAX_DEFAULT : config->drain_max;
    self->notes = config->notes;
    self->note_count = config->note_count;
    self->armed_us = UINT64_MAX;
    self->timer.fd = self->signals_source.fd = self->loop.epoll_fd = -1;
    self->ipc_next_us = UINT64_MAX;
    self->io = (struct sk_io){.impl = self,
                              .mono_us = io_mono_us,
                              .wall_us = io_wall_us,
                              .random = io_random,
                              .send = io_send,
                              .submit = io_submit,
                              .note = io_note};
    enum sk_err rc = open_all(self, config, d);
    if (rc != SK_ERR_OK) {
        sk_reactor_destroy(&self);
        return rc;
    }
    *out = self;
    return SK_ERR_OK;
}

void sk_reactor_destroy(struct sk_reactor **self_ref)
{
    struct sk_reactor *self = *self_ref;
    if (self == NULL)
        return;
    sk_jobs_destroy(&self->jobs);
    sk_watches_deinit(self);
    sk_returns_deinit(&self->returns);
    for (unsigned i = 0; i < self->socket_count; i++)
        sk_socket_close(self->sockets[i]);
    sk_ipc_deinit(self);
    if (self->timer.fd >= 0)
        close(self->timer.fd);
    if (self->signals_source.fd >= 0)
        close(self->signals_source.fd);
    sk_loop_deinit(&self->loop);
    free(self);
    *self_ref = NULL;
}

const struct sk_io *sk_reactor_io(struct sk_reactor *self)
{
    return &self->io;
}

void sk_reactor_set_core(struct sk_reactor *self, const struct sk_reactor_core *core)
{
    self->core = *core;
}

int sk_reactor_run(struct sk_reactor *self)
{
    turn(self); /* arms the core's first timer */
    while (!self->is_stopped) {
        /* also by the last turn */
        bool has_more =
            self->held != NULL || self->gone_count != 0 || sk_sockets_are_dirty(self);
        sk_loop_once(&self->loop, !has_more);
        if (self->is_stopped)
            break;
        sk_connections_look(self);
        sk_sockets_look(self);
        turn(self);
    }
    sk_connections_flush(self);
    return self->status;
}

void sk_reactor_stop(struct sk_reactor *self, int status)
{
    if (!self->is_stopped)
        self->status = status;
    self->is_stopped = true;
}

void sk_reactor_on_up(struct sk_reactor *self, sk_peer peer, void (*fn)(void *arg), void *arg)
{
    for (unsigned i = 0; i < self->socket_count; i++)
        if (self->sockets[i]->kind == SK_SOCKET_LINK && self->sockets[i]->peer == peer) {
            self->sockets[i]->on_up = fn;
            self->sockets[i]->on_up_arg = arg;
        }
}

const struct sk_reactor_counters *sk_reactor_counters(const struct sk_reactor *self)
{
    return &self->counters;
}
