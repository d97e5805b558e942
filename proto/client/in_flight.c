/* Requests in flight and the threads that wait for them. */
#include "proto/client/connection.h"

#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

uint64_t sk_client_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static struct timespec timespec_of(uint64_t us)
{
    return (struct timespec){.tv_sec = (time_t)(us / 1000000),
                             .tv_nsec = (long)(us % 1000000) * 1000};
}

/* ---- Waiting ---- */

void sk_waiter_init(struct waiter *self)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    *self = (struct waiter){0};
    pthread_cond_init(&self->wake, &attributes);
    pthread_condattr_destroy(&attributes);
}

void sk_waiter_deinit(struct waiter *self)
{
    pthread_cond_destroy(&self->wake);
}

static void waiter_list(struct skerry *self, struct waiter *waiter)
{
    waiter->next = self->waiters;
    waiter->previous = NULL;
    if (self->waiters != NULL)
        self->waiters->previous = waiter;
    self->waiters = waiter;
    waiter->is_listed = true;
}

static void waiter_unlist(struct skerry *self, struct waiter *waiter)
{
    if (waiter->previous != NULL)
        waiter->previous->next = waiter->next;
    else
        self->waiters = waiter->next;
    if (waiter->next != NULL)
        waiter->next->previous = waiter->previous;
    waiter->is_listed = false;
}

static void wake_reader(struct skerry *self)
{
    uint64_t one = 1;
    while (write(self->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void wake(struct skerry *self, struct waiter *waiter)
{
    if (waiter == self->reader)
        wake_reader(self);
    else if (waiter->is_listed)
        pthread_cond_signal(&waiter->wake);
}

void sk_waiters_wake(struct skerry *self)
{
    if (self->reader != NULL)
        wake_reader(self);
    for (struct waiter *waiter = self->waiters; waiter != NULL; waiter = waiter->next)
        pthread_cond_signal(&waiter->wake);
}

/* ---- Requests in flight ---- */

void sk_pending_add(struct skerry *self, struct pending *pending)
{
    struct pending **bucket = &self->buckets[pending->id % BUCKET_COUNT];
    pending->next = *bucket;
    pending->previous = NULL;
    if (*bucket != NULL)
        (*bucket)->previous = pending;
    *bucket = pending;
    self->in_flight++;
    if (pending->waiter == NULL) {
        pending->previous_sent = self->sent_last;
        pending->next_sent = NULL;
        if (self->sent_last != NULL)
            self->sent_last->next_sent = pending;
        else
            self->sent_first = pending;
        self->sent_last = pending;
    }
}

void sk_pending_remove(struct skerry *self, struct pending *pending)
{
    if (pending->previous != NULL)
        pending->previous->next = pending->next;
    else
        self->buckets[pending->id % BUCKET_COUNT] = pending->next;
    if (pending->next != NULL)
        pending->next->previous = pending->previous;
    self->in_flight--;
    if (pending->waiter == NULL) {
        if (pending->previous_sent != NULL)
            pending->previous_sent->next_sent = pending->next_sent;
        else
            self->sent_first = pending->next_sent;
        if (pending->next_sent != NULL)
            pending->next_sent->previous_sent = pending->previous_sent;
        else
            self->sent_last = pending->previous_sent;
    }
}

struct pending *sk_pending_find(struct skerry *self, uint64_t id)
{
    struct pending *pending = self->buckets[id % BUCKET_COUNT];
    while (pending != NULL && pending->id != id)
        pending = pending->next;
    return pending;
}

void sk_pending_end(struct skerry *self, struct pending *pending, struct skerry_reply *reply,
                    const struct skerry_error *error)
{
    sk_pending_remove(self, pending);
    pending->is_done = true;
    pending->reply = reply;
    if (reply == NULL)
        pending->error = *error;
    if (pending->waiter != NULL) {
        wake(self, pending->waiter);
        return;
    }
    pending->next_done = NULL;
    if (self->done_last != NULL)
        self->done_last->next_done = pending;
    else
        self->done_first = pending;
    self->done_last = pending;
    sk_waiters_wake(self); /* one of them may be polling */
}

void sk_pending_end_all(struct skerry *self, const struct skerry_error *error)
{
    for (unsigned i = 0; i < BUCKET_COUNT && self->in_flight > 0; i++)
        while (self->buckets[i] != NULL)
            sk_pending_end(self, self->buckets[i], NULL, error);
}

void sk_pending_expire(struct skerry *self, uint64_t now)
{
    struct pending *next = NULL;
    for (struct pending *pending = self->sent_first; pending != NULL; pending = next) {
        next = pending->next_sent;
        if (now < pending->expires_us)
            continue;
        struct skerry_error error;
        (void)sk_client_fail(&error, SKERRY_DEADLINE,
                             "the node did not answer in time; the outcome of a write is unknown");
        sk_pending_end(self, pending, NULL, &error);
    }
}

/* ---- Sleeping ---- */

void sk_waiter_sleep(struct skerry *self, struct waiter *waiter, uint64_t until_us)
{
    uint64_t now = sk_client_now_us();
    if (now >= until_us)
        return;
    if (self->reader != NULL) {
        struct timespec until = timespec_of(until_us);
        waiter_list(self, waiter);
        pthread_cond_timedwait(&waiter->wake, &self->lock, &until);
        waiter_unlist(self, waiter);
        return;
    }
    struct pollfd fds[3] = {
        {self->wake_fd, POLLIN, 0}, {self->socket_fd, POLLIN, 0}, {self->monitor_fd, POLLIN, 0}};
    struct timespec timeout = timespec_of(until_us - now);
    self->reader = waiter;
    pthread_mutex_unlock(&self->lock);
    int ready = ppoll(fds, 3, &timeout, NULL);
    pthread_mutex_lock(&self->lock);
    self->reader = NULL;
    if (ready > 0 && fds[0].revents != 0) {
        uint64_t count;
        (void)!read(self->wake_fd, &count, sizeof count);
    }
    sk_socket_drain(self);
}

void sk_waiters_hand_over(struct skerry *self)
{
    if (self->reader == NULL && self->waiters != NULL)
        pthread_cond_signal(&self->waiters->wake);
}
