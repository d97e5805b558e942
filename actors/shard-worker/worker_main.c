/* skerry-shard-worker: sockets, loop, threads and heartbeat around the worker's core. */
#include "actors/shard-worker/worker.h"
#include "common/shell/heartbeat.h"
#include "common/shell/process.h"
#include "common/shell/reactor.h"

#include <errno.h>
#include <malloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PEER_SUPERVISOR = SK_PEER_HINTS + 1, TELL_EVERY_US = 250 * 1000 };

struct shell {
    struct sk_process process;
    struct sk_reactor *reactor;
    struct sk_heartbeat *heartbeat;
    struct sk_worker *worker;
    bool is_ready, is_stopping;
    uint64_t told_us; /* when the heartbeat was given the status */
};

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct shell *self = core;
    if (from != PEER_SUPERVISOR) /* it has nothing to say to a worker */
        sk_worker_on_message(self->worker, from, bytes);
}

static void on_connected(void *core, sk_peer peer)
{
    struct shell *self = core;
    if (peer != PEER_SUPERVISOR)
        sk_worker_on_connected(self->worker, peer);
}

static uint64_t on_time(void *core)
{
    struct shell *self = core;
    uint64_t next = sk_worker_on_time(self->worker);
    const struct sk_io *io = sk_reactor_io(self->reactor);
    uint64_t now = io->mono_us(io->impl);
    if (self->is_ready && !self->is_stopping && now < self->told_us + TELL_EVERY_US)
        return next; /* not on every search */
    struct sk_worker_status status;
    sk_worker_get_status(self->worker, &status);
    self->told_us = now;
    self->is_ready = status.is_ready;
    sk_heartbeat_set_ready(self->heartbeat, status.is_ready);
    sk_heartbeat_set_status(self->heartbeat, "map %llu: %u shards, %u failed%s%s",
                            (unsigned long long)status.map_version, status.shards,
                            status.shards_failed, status.last_error[0] != '\0' ? "; last error: " : "",
                            status.last_error);
    if (status.is_stopped)
        sk_reactor_stop(self->reactor, 0);
    return next;
}

static void on_job_done(void *core, struct sk_job *job)
{
    struct shell *self = core;
    sk_worker_on_job_done(self->worker, job);
}

static void on_stop(void *core)
{
    struct shell *self = core;
    self->is_stopping = true;
    sk_worker_stop(self->worker);
}

static enum sk_err open_sockets(struct shell *self, struct sk_diag *d)
{
    const struct sk_process *process = &self->process;
    char endpoint[SK_PATH_BYTES], routing_id[24];
    (void)snprintf(routing_id, sizeof routing_id, "worker-%u", process->number);
    enum sk_err err = sk_heartbeat_new(&self->heartbeat, self->reactor, process, PEER_SUPERVISOR, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_connect(self->reactor, SK_PEER_ROUTER,
                                 sk_process_endpoint(process, endpoint, "worker.ipc"), routing_id, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_connect(self->reactor, SK_PEER_KEEPER,
                                 sk_process_endpoint(process, endpoint, "keeper.ipc"), routing_id, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_subscribe(self->reactor, SK_PEER_HINTS,
                                   sk_process_endpoint(process, endpoint, "keeper-pub.ipc"), d);
    return err;
}

static uint64_t half_of_the_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes / 2 : 0;
}

static enum sk_err open_core(struct shell *self, struct sk_diag *d)
{
    const struct sk_config *settings = &self->process.config;
    char data[SK_PATH_BYTES], snapshots[SK_PATH_BYTES];
    (void)sk_process_path(&self->process, snapshots, "snapshots");
    if (mkdir(sk_process_path(&self->process, data, "data"), 0700) != 0 && errno != EEXIST)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "folder '%s' cannot be made: %s", data,
                       strerror(errno));
    const struct sk_worker_config config = {
        .data_dir = data,
        .snapshot_dir = snapshots,
        .number = self->process.number,
        .process_id = (uint32_t)getpid(),
        .memory_bytes_max = settings->memory_bytes_max != 0 ? settings->memory_bytes_max
                                                            : half_of_the_memory(),
        .kernels = strcmp(settings->kernels, "auto") == 0 ? NULL : settings->kernels,
    };
    return sk_worker_new(&self->worker, &config, sk_reactor_io(self->reactor), d);
}

int main(int argc, char **argv)
{
    static struct shell self;
    struct sk_diag d = {0};
    int status = sk_process_start(&self.process, "shard-worker",
                                  "keeps and searches the records of some shards of a node",
                                  SK_PROCESS_IS_CHILD | SK_PROCESS_IS_QUERY_PATH, argc, argv);
    if (status >= 0)
        return status;
    /* large frames and buffers go back to the system at once, and two threads need no eight arenas */
    (void)mallopt(M_ARENA_MAX, 2);
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 20);
    const struct sk_reactor_config config = {.search_threads = self.process.config.search_threads,
                                             .notes = sk_worker_notes,
                                             .note_count = SK_WORKER_NOTE_COUNT};
    enum sk_err err = sk_reactor_new(&self.reactor, &config, &d);
    if (err == SK_ERR_OK)
        err = open_core(&self, &d);
    if (err == SK_ERR_OK) {
        sk_reactor_set_core(self.reactor, &(struct sk_reactor_core){.core = &self,
                                                                    .on_message = on_message,
                                                                    .on_connected = on_connected,
                                                                    .on_time = on_time,
                                                                    .on_job_done = on_job_done,
                                                                    .on_stop = on_stop});
        err = open_sockets(&self, &d);
    }
    status = err == SK_ERR_OK ? sk_reactor_run(self.reactor) : sk_process_fail(&self.process, &d);
    sk_heartbeat_destroy(&self.heartbeat);
    sk_reactor_destroy(&self.reactor); /* waits for the job that is running */
    sk_worker_destroy(&self.worker);
    return status;
}
