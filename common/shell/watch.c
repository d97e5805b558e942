/* What shells add to the loop besides sockets: periods and file descriptors. */
#include "common/shell/internal.h"

#include <sys/timerfd.h>
#include <unistd.h>

static void on_ready(void *arg, uint32_t events)
{
    struct sk_watch *self = arg;
    uint64_t times;
    (void)events;
    if (self->is_period)
        (void)!read(self->source.fd, &times, sizeof times);
    self->fn(self->arg);
}

static enum sk_err watch(struct sk_reactor *reactor, int fd, bool is_period, void (*fn)(void *arg),
                         void *arg, struct sk_diag *d)
{
    for (unsigned i = 0; i < SK_WATCHES_MAX; i++) {
        struct sk_watch *self = &reactor->watches[i];
        if (self->fn != NULL)
            continue;
        *self = (struct sk_watch){.reactor = reactor, .fn = fn, .arg = arg, .is_period = is_period};
        self->source = (struct sk_source){.fd = fd, .fn = on_ready, .arg = self};
        if (sk_loop_add(&reactor->loop, &self->source, EPOLLIN))
            return SK_ERR_OK;
        self->fn = NULL;
        return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot watch file descriptor %d", fd);
    }
    return sk_fail(d, SK_ERR_TOO_LARGE, "over %d periods and files watched", SK_WATCHES_MAX);
}

enum sk_err sk_reactor_every(struct sk_reactor *self, unsigned interval_ms, void (*fn)(void *arg),
                             void *arg, struct sk_diag *d)
{
    struct timespec interval = {.tv_sec = interval_ms / 1000,
                                .tv_nsec = (long)(interval_ms % 1000) * 1000000};
    struct itimerspec period = {.it_interval = interval, .it_value = interval};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0 || timerfd_settime(fd, 0, &period, NULL) != 0) {
        if (fd >= 0)
            close(fd);
        return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot make a timer");
    }
    enum sk_err rc = watch(self, fd, true, fn, arg, d);
    if (rc != SK_ERR_OK)
        close(fd);
    return rc;
}

enum sk_err sk_reactor_watch(struct sk_reactor *self, int fd, void (*fn)(void *arg), void *arg,
                             struct sk_diag *d)
{
    return watch(self, fd, false, fn, arg, d);
}

static void unwatch(struct sk_watch *self)
{
    sk_loop_remove(&self->reactor->loop, &self->source);
    if (self->is_period)
        close(self->source.fd);
    self->fn = NULL;
}

void sk_reactor_unwatch(struct sk_reactor *self, int fd)
{
    for (unsigned i = 0; i < SK_WATCHES_MAX; i++)
        if (self->watches[i].fn != NULL && self->watches[i].source.fd == fd)
            unwatch(&self->watches[i]);
}

void sk_watches_deinit(struct sk_reactor *self)
{
    for (unsigned i = 0; i < SK_WATCHES_MAX; i++)
        if (self->watches[i].fn != NULL)
            unwatch(&self->watches[i]);
}
