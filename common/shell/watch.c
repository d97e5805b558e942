/* What shells add to the loop besides sockets: periods and file descriptors. */
#include "common/shell/internal.h"

static struct sk_watch *watch_new(struct sk_reactor *reactor, void (*fn)(void *arg), void *arg, int fd)
{
    for (unsigned i = 0; i < SK_WATCHES_MAX; i++)
        if (reactor->watches[i].fn == NULL) {
            reactor->watches[i] = (struct sk_watch){reactor, fn, arg, fd};
            return &reactor->watches[i];
        }
    return NULL;
}

static int on_period(zloop_t *loop, int timer_id, void *arg)
{
    struct sk_watch *self = arg;
    (void)loop;
    (void)timer_id;
    self->fn(self->arg);
    return sk_reactor_turn(self->reactor);
}

static int on_fd(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    struct sk_watch *self = arg;
    struct sk_reactor *reactor = self->reactor;
    (void)loop;
    (void)item;
    if (self->fn != NULL) /* else it was unwatched by what ran before it in this turn */
        self->fn(self->arg);
    return sk_reactor_turn(reactor);
}

enum sk_err sk_reactor_every(struct sk_reactor *self, unsigned interval_ms, void (*fn)(void *arg),
                             void *arg, struct sk_diag *d)
{
    struct sk_watch *watch = watch_new(self, fn, arg, -1);
    if (watch == NULL || zloop_timer(self->loop, interval_ms, 0, on_period, watch) < 0)
        return sk_fail(d, SK_ERR_TOO_LARGE, "over %d periods and files watched", SK_WATCHES_MAX);
    return SK_ERR_OK;
}

enum sk_err sk_reactor_watch(struct sk_reactor *self, int fd, void (*fn)(void *arg), void *arg,
                             struct sk_diag *d)
{
    zmq_pollitem_t item = {.fd = fd, .events = ZMQ_POLLIN};
    struct sk_watch *watch = watch_new(self, fn, arg, fd);
    if (watch == NULL || zloop_poller(self->loop, &item, on_fd, watch) != 0)
        return sk_fail(d, SK_ERR_TOO_LARGE, "over %d periods and files watched", SK_WATCHES_MAX);
    zloop_poller_set_tolerant(self->loop, &item);
    return SK_ERR_OK;
}

void sk_reactor_unwatch(struct sk_reactor *self, int fd)
{
    for (unsigned i = 0; i < SK_WATCHES_MAX; i++)
        if (self->watches[i].fn != NULL && self->watches[i].fd == fd) {
            zmq_pollitem_t item = {.fd = fd, .events = ZMQ_POLLIN};
            zloop_poller_end(self->loop, &item);
            self->watches[i] = (struct sk_watch){.reactor = self, .fd = -1};
        }
}
