/* skerry-metadata-keeper: sockets, loop and heartbeat around the keeper's core. */
#include "actors/metadata-keeper/keeper.h"
#include "common/shell/heartbeat.h"
#include "common/shell/keys.h"
#include "common/shell/log.h"
#include "common/shell/process.h"
#include "common/shell/reactor.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

struct shell {
    struct sk_process process;
    struct sk_reactor *reactor;
    struct sk_heartbeat *heartbeat;
    struct sk_keeper *keeper;
};

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct shell *self = core;
    if (from != SK_KEEPER_PEER_SUPERVISOR) /* it has nothing to say to a keeper */
        sk_keeper_on_message(self->keeper, from, bytes);
}

static uint64_t on_time(void *core)
{
    struct shell *self = core;
    uint64_t next = sk_keeper_on_time(self->keeper);
    struct sk_keeper_status status;
    sk_keeper_get_status(self->keeper, &status);
    sk_heartbeat_set_status(self->heartbeat, "map %llu: %u collections, %u keys%s%s",
                            (unsigned long long)status.map_version, status.collections, status.keys,
                            status.last_error[0] != '\0' ? "; last error: " : "",
                            status.last_error);
    if (status.is_stopped)
        sk_reactor_stop(self->reactor, 0);
    return next;
}

static void on_job_done(void *core, struct sk_job *job)
{
    struct shell *self = core;
    sk_keeper_on_job_done(self->keeper, job);
}

static void on_stop(void *core)
{
    struct shell *self = core;
    sk_keeper_stop(self->keeper);
}

static enum sk_err open_sockets(struct shell *self, struct sk_diag *d)
{
    char endpoint[SK_PATH_BYTES];
    struct sk_reactor_door door = {
        .endpoint = sk_process_endpoint(&self->process, endpoint, "keeper.ipc"),
        .links = {{.routing_id = "router", .count = 0, .first_peer = SK_KEEPER_PEER_ROUTER},
                  {.routing_id = "worker",
                   .count = SK_WORKERS_MAX,
                   .first_peer = SK_KEEPER_PEER_WORKER_0}},
        .link_count = 2,
    };
    enum sk_err err = sk_reactor_bind(self->reactor, &door, NULL, 0, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_bind_publisher(self->reactor, SK_KEEPER_PEER_HINTS,
                                        sk_process_endpoint(&self->process, endpoint, "keeper-pub.ipc"),
                                        d);
    if (err == SK_ERR_OK)
        err = sk_heartbeat_new(&self->heartbeat, self->reactor, &self->process,
                               SK_KEEPER_PEER_SUPERVISOR, d);
    return err;
}

/* The key that a new state begins with. Without the file local clients are admins still. */
static enum sk_err read_admin_key(const struct shell *self, struct sk_keys *out, struct sk_diag *d)
{
    char path[SK_PATH_BYTES];
    enum sk_err err =
        sk_keys_load_public(out, sk_process_path(&self->process, path, "keys/admin.pub"), d);
    if (err != SK_ERR_NOT_FOUND)
        return err;
    sk_log(SK_LEVEL_WARN, "no_admin_key", "path=\"%s\"", path);
    return SK_ERR_OK;
}

static enum sk_err open_core(struct shell *self, struct sk_diag *d)
{
    char data[SK_PATH_BYTES], folder[SK_PATH_BYTES];
    struct sk_keys admin = {0};
    (void)sk_process_path(&self->process, data, "data");
    if (mkdir(data, 0700) != 0 && errno != EEXIST)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "folder '%s' cannot be made: %s", data,
                       strerror(errno));
    enum sk_err err = read_admin_key(self, &admin, d);
    if (err != SK_ERR_OK)
        return err;
    const struct sk_keeper_config config = {
        .folder = sk_process_path(&self->process, folder, "data/keeper"),
        .worker_count = self->process.config.workers,
        .admin_public_key = admin.public_key[0] != '\0' ? admin.public_key : NULL,
    };
    return sk_keeper_new(&self->keeper, &config, sk_reactor_io(self->reactor), d);
}

int main(int argc, char **argv)
{
    static struct shell self;
    struct sk_diag d = {0};
    int status = sk_process_start(&self.process, "metadata-keeper",
                                  "keeps collections, shards and keys of a node", SK_PROCESS_IS_CHILD,
                                  argc, argv);
    if (status >= 0)
        return status;
    const struct sk_reactor_config config = {.notes = sk_keeper_notes,
                                             .note_count = SK_KEEPER_NOTE_COUNT};
    enum sk_err err = sk_reactor_new(&self.reactor, &config, &d);
    if (err == SK_ERR_OK)
        err = open_core(&self, &d);
    if (err == SK_ERR_OK) {
        sk_reactor_set_core(self.reactor, &(struct sk_reactor_core){.core = &self,
                                                                    .on_message = on_message,
                                                                    .on_time = on_time,
                                                                    .on_job_done = on_job_done,
                                                                    .on_stop = on_stop});
        err = open_sockets(&self, &d);
    }
    if (err == SK_ERR_OK) {
        sk_heartbeat_set_ready(self.heartbeat, true);
        status = sk_reactor_run(self.reactor);
    } else {
        status = sk_process_fail(&self.process, &d);
    }
    sk_heartbeat_destroy(&self.heartbeat);
    sk_reactor_destroy(&self.reactor); /* waits for the job that is running */
    sk_keeper_destroy(&self.keeper);
    return status;
}
