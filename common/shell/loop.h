/* The wait of a process: one epoll over sources that say what to do when they are ready.
 *
 * CZMQ's zloop asks every ZeroMQ socket for its state several times a turn (a getpid and a poll each):
 * 125 system calls a search in the router, where its work needs six. Here only what fired is touched.
 * Thread: one. */
#ifndef SK_LOOP_H
#define SK_LOOP_H

#include "common/base/err.h"

#include <stdint.h>
#include <sys/epoll.h>

enum { SK_LOOP_BATCH = 64 };

/* Embedded by value in its owner; fd, fn and arg are filled before it is added. */
struct sk_source {
    int fd;
    void (*fn)(void *arg, uint32_t events);
    void *arg;
    bool is_added;
};

struct sk_loop {
    int epoll_fd;
    struct epoll_event batch[SK_LOOP_BATCH];
    int batch_count, batch_at;
};

SK_CHECKED enum sk_err sk_loop_init(struct sk_loop *self, struct sk_diag *d);
void sk_loop_deinit(struct sk_loop *self);
/* Level-triggered. False: no memory in the kernel, or too many. */
SK_CHECKED bool sk_loop_add(struct sk_loop *self, struct sk_source *source, uint32_t events);
void sk_loop_change(struct sk_loop *self, struct sk_source *source, uint32_t events);
/* Its fn is not called any more, also when it fired in this turn; the fd stays the owner's. */
void sk_loop_remove(struct sk_loop *self, struct sk_source *source);
/* Waits (is_blocking) or looks, and calls what is ready; returns after one batch. */
void sk_loop_once(struct sk_loop *self, bool is_blocking);

#endif
