/* Threads run jobs; an eventfd brings the loop back to what is done. The eventfd is written only when
 * the list of done jobs was empty, so that a burst of completions wakes the loop once. */
#include "common/shell/internal.h"
#include "common/shell/log.h"
#include "common/shell/process.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

enum { LANE_THREADS_MAX = 64, LANE_COUNT = 2, WRITE_LANE_NICE = 5 };

struct lane {
    struct sk_jobs *jobs;
    const char *name;
    pthread_mutex_t mutex;
    pthread_cond_t is_wanted;
    struct sk_job *first, *last; /* waiting */
    pthread_t threads[LANE_THREADS_MAX];
    unsigned thread_count, threads_max;
    unsigned idle_count, waiting_count;
    bool is_ended;
};

struct sk_jobs {
    struct lane lanes[LANE_COUNT];
    pthread_mutex_t done_mutex;
    struct sk_job *done_first, *done_last;
    int fd;
};

static void append(struct sk_job **first, struct sk_job **last, struct sk_job *job)
{
    job->next = NULL;
    if (*last == NULL)
        *first = job;
    else
        (*last)->next = job;
    *last = job;
}

static void give_back(struct sk_jobs *self, struct sk_job *job)
{
    uint64_t one = 1;
    pthread_mutex_lock(&self->done_mutex);
    bool was_empty = self->done_first == NULL;
    append(&self->done_first, &self->done_last, job);
    pthread_mutex_unlock(&self->done_mutex);
    if (was_empty)
        (void)!write(self->fd, &one, sizeof one); /* cannot be full: it is read before it is taken */
}

static void *run_lane(void *arg)
{
    struct lane *lane = arg;
    sk_process_unpin_thread();
    /* a search that wakes up while rows are linked gets the core at once */
    if (lane == &lane->jobs->lanes[1])
        (void)setpriority(PRIO_PROCESS, (id_t)gettid(), WRITE_LANE_NICE);
    pthread_mutex_lock(&lane->mutex);
    for (;;) {
        while (lane->first == NULL && !lane->is_ended) {
            lane->idle_count++;
            pthread_cond_wait(&lane->is_wanted, &lane->mutex);
            lane->idle_count--;
        }
        if (lane->is_ended)
            break;
        struct sk_job *job = lane->first;
        lane->first = job->next;
        lane->waiting_count--;
        if (lane->first == NULL)
            lane->last = NULL;
        pthread_mutex_unlock(&lane->mutex);
        job->run(job);
        give_back(lane->jobs, job);
        pthread_mutex_lock(&lane->mutex);
    }
    pthread_mutex_unlock(&lane->mutex);
    return NULL;
}

/* Signals stay with the loop: a thread is born with all of them blocked. Holds the lane's mutex. */
static void start_thread(struct lane *lane)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&lane->threads[lane->thread_count], NULL, run_lane, lane);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        sk_log(SK_LEVEL_ERROR, "no_thread", "lane=%s threads=%u reason=\"%s\"", lane->name,
               lane->thread_count, strerror(rc));
        return;
    }
    pthread_setname_np(lane->threads[lane->thread_count], lane->name);
    lane->thread_count++;
}

bool sk_jobs_submit(struct sk_jobs *self, struct sk_job *job)
{
    struct lane *lane = &self->lanes[job->lane == SK_LANE_WRITE ? 1 : 0];
    pthread_mutex_lock(&lane->mutex);
    if (lane->waiting_count >= lane->idle_count && lane->thread_count < lane->threads_max)
        start_thread(lane);
    bool is_taken = lane->thread_count > 0;
    if (is_taken) {
        append(&lane->first, &lane->last, job);
        lane->waiting_count++;
        pthread_cond_signal(&lane->is_wanted);
    }
    pthread_mutex_unlock(&lane->mutex);
    return is_taken;
}

int sk_jobs_fd(const struct sk_jobs *self)
{
    return self->fd;
}

struct sk_job *sk_jobs_take_done(struct sk_jobs *self)
{
    uint64_t count;
    (void)!read(self->fd, &count, sizeof count);
    pthread_mutex_lock(&self->done_mutex);
    struct sk_job *first = self->done_first;
    self->done_first = self->done_last = NULL;
    pthread_mutex_unlock(&self->done_mutex);
    return first;
}

enum sk_err sk_jobs_new(struct sk_jobs **out, unsigned search_threads, struct sk_diag *d)
{
    static const char *const names[LANE_COUNT] = {"sk-search", "sk-write"};
    *out = NULL;
    struct sk_jobs *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the job lanes");
    self->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self->fd < 0) {
        free(self);
        return sk_fail(d, SK_ERR_UNAVAILABLE, "eventfd: %s", strerror(errno));
    }
    if (search_threads > LANE_THREADS_MAX)
        search_threads = LANE_THREADS_MAX;
    pthread_mutex_init(&self->done_mutex, NULL);
    for (unsigned i = 0; i < LANE_COUNT; i++) {
        struct lane *lane = &self->lanes[i];
        lane->jobs = self;
        lane->name = names[i];
        lane->threads_max = i == 0 ? search_threads : 1;
        pthread_mutex_init(&lane->mutex, NULL);
        pthread_cond_init(&lane->is_wanted, NULL);
    }
    *out = self;
    return SK_ERR_OK;
}

void sk_jobs_destroy(struct sk_jobs **self_ref)
{
    struct sk_jobs *self = *self_ref;
    if (self == NULL)
        return;
    for (unsigned i = 0; i < LANE_COUNT; i++) {
        struct lane *lane = &self->lanes[i];
        pthread_mutex_lock(&lane->mutex);
        lane->is_ended = true;
        pthread_cond_broadcast(&lane->is_wanted);
        pthread_mutex_unlock(&lane->mutex);
        for (unsigned t = 0; t < lane->thread_count; t++)
            pthread_join(lane->threads[t], NULL);
        pthread_cond_destroy(&lane->is_wanted);
        pthread_mutex_destroy(&lane->mutex);
    }
    pthread_mutex_destroy(&self->done_mutex);
    close(self->fd);
    free(self);
    *self_ref = NULL;
}
