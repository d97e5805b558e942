#include "common/shell/loop.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum sk_err sk_loop_init(struct sk_loop *self, struct sk_diag *d)
{
    self->batch_count = self->batch_at = 0;
    self->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll_fd < 0)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot make the loop: %s", strerror(errno));
    return SK_ERR_OK;
}

void sk_loop_deinit(struct sk_loop *self)
{
    if (self->epoll_fd >= 0)
        close(self->epoll_fd);
    self->epoll_fd = -1;
}

bool sk_loop_add(struct sk_loop *self, struct sk_source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    source->is_added = epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) == 0;
    return source->is_added;
}

void sk_loop_change(struct sk_loop *self, struct sk_source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    SK_CHECK(source->is_added);
    SK_CHECK(epoll_ctl(self->epoll_fd, EPOLL_CTL_MOD, source->fd, &event) == 0);
}

void sk_loop_remove(struct sk_loop *self, struct sk_source *source)
{
    if (!source->is_added)
        return;
    (void)epoll_ctl(self->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->is_added = false;
    for (int i = self->batch_at; i < self->batch_count; i++)
        if (self->batch[i].data.ptr == source)
            self->batch[i].data.ptr = NULL;
}

void sk_loop_once(struct sk_loop *self, bool is_blocking)
{
    int count = epoll_wait(self->epoll_fd, self->batch, SK_LOOP_BATCH, is_blocking ? -1 : 0);
    self->batch_count = count > 0 ? count : 0; /* interrupted: the next turn */
    for (self->batch_at = 0; self->batch_at < self->batch_count;) {
        struct epoll_event *event = &self->batch[self->batch_at++];
        struct sk_source *source = event->data.ptr;
        if (source != NULL)
            source->fn(source->arg, event->events);
    }
    self->batch_count = self->batch_at = 0;
}
