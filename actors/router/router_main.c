/* skerry-router: doors, loop, allow-list, power request and heartbeat around the router's core. */
#include "actors/router/router.h"
#include "common/shell/heartbeat.h"
#include "common/shell/keys.h"
#include "common/shell/log.h"
#include "common/shell/process.h"
#include "common/shell/reactor.h"
#include "common/shell/wakeup.h"
#include "common/shell/zap.h"

#include <malloc.h>
#include <string.h>

struct shell {
    struct sk_process process;
    struct sk_reactor *reactor;
    struct sk_heartbeat *heartbeat;
    struct sk_router *router;
    struct sk_zap *zap;
    struct sk_keys keys;
    struct sk_wakeup wakeup;
    const char *wakeup_state; /* as it was told last */
    bool was_ready, is_stopping;
    uint64_t keys_version; /* of the map whose keys are let in */
    char bound[128];       /* tcp://HOST:PORT with its real port */
};

static uint64_t now_us(const struct shell *self)
{
    const struct sk_io *io = sk_reactor_io(self->reactor);
    return io->mono_us(io->impl);
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    struct shell *self = core;
    sk_router_on_message(self->router, from, bytes);
}

static void on_client(void *core, sk_peer from, enum sk_role role, const char *key,
                      struct sk_span frame)
{
    struct shell *self = core;
    (void)key;
    sk_wakeup_touch(&self->wakeup, now_us(self));
    sk_router_on_client(self->router, from, role, frame);
}

static void on_connected(void *core, sk_peer peer)
{
    struct shell *self = core;
    sk_router_on_connected(self->router, peer);
}

static void on_disconnected(void *core, sk_peer peer)
{
    struct shell *self = core;
    sk_router_on_disconnected(self->router, peer);
}

/* A key that was revoked is out with the map that says so. */
static void let_in(struct shell *self, const struct sk_map *map)
{
    struct sk_diag d = {0};
    if (sk_zap_set(self->zap, map->keys, map->key_count, &d) == SK_ERR_OK)
        self->keys_version = map->version;
    else
        sk_log(SK_LEVEL_ERROR, "keys_not_taken", "reason=\"%s\"", d.text);
}

static uint64_t on_time(void *core)
{
    struct shell *self = core;
    uint64_t next = sk_router_on_time(self->router);
    const struct sk_map *map = sk_router_get_map(self->router);
    if (map->version != self->keys_version)
        let_in(self, map);
    uint64_t wakeup_next = sk_wakeup_on_time(&self->wakeup, now_us(self));
    const char *state = sk_wakeup_state(&self->wakeup); /* one of a few literals */
    if (state != self->wakeup_state) {
        self->wakeup_state = state;
        sk_router_set_wakeup(self->router, self->wakeup.mode, state);
        sk_heartbeat_set_wakeup(self->heartbeat, self->wakeup.mode, state);
    }
    if (self->is_stopping || !self->was_ready) {
        struct sk_router_status status;
        sk_router_get_status(self->router, &status);
        if (status.is_stopped)
            sk_reactor_stop(self->reactor, 0);
        /* else the first request after `node start` might meet a worker that has not come yet */
        self->was_ready = self->was_ready ||
                          (status.is_ready && status.workers_up >= status.workers_wanted);
        sk_heartbeat_set_ready(self->heartbeat, self->was_ready);
    }
    return wakeup_next < next ? wakeup_next : next;
}

static void on_stop(void *core)
{
    struct shell *self = core;
    self->is_stopping = true;
    sk_router_stop(self->router);
}

/* For people: what `status` shows. */
static void tell(void *arg)
{
    struct shell *self = arg;
    struct sk_router_status status;
    sk_router_get_status(self->router, &status);
    sk_heartbeat_set_status(self->heartbeat, "map %llu: %u of %u workers, %u requests in flight",
                            (unsigned long long)status.map_version, status.workers_up,
                            status.workers_wanted, status.requests_in_flight);
}

static enum sk_err open_doors(struct shell *self, struct sk_diag *d)
{
    const struct sk_config *settings = &self->process.config;
    char endpoint[SK_PATH_BYTES];
    const struct sk_reactor_door workers = {
        .endpoint = sk_process_endpoint(&self->process, endpoint, "worker.ipc"),
        .links = {{.routing_id = "worker",
                   .count = SK_WORKERS_MAX,
                   .first_peer = SK_ROUTER_PEER_WORKER_0}},
        .link_count = 1,
    };
    enum sk_err err = sk_reactor_bind(self->reactor, &workers, NULL, 0, d);
    if (err != SK_ERR_OK)
        return err;
    const struct sk_reactor_door local = {
        .endpoint = sk_process_endpoint(&self->process, endpoint, "client.ipc"),
        .takes_clients = true,
        .role = SK_ROLE_ADMIN, /* whoever may open the socket file owns the node */
    };
    err = sk_reactor_bind(self->reactor, &local, NULL, 0, d);
    if (err != SK_ERR_OK)
        return err;
    char tcp[SK_PATH_BYTES], port[12] = "*"; /* a free one */
    const char *address = settings->client_address;
    bool is_v6 = strchr(address, ':') != NULL && address[0] != '[';
    if (settings->client_port != 0)
        (void)snprintf(port, sizeof port, "%u", settings->client_port);
    (void)snprintf(tcp, sizeof tcp, is_v6 ? "tcp://[%s]:%s" : "tcp://%s:%s", address, port);
    const struct sk_reactor_door remote = {
        .endpoint = tcp, .takes_clients = true, .keys = &self->keys, .zap = self->zap};
    return sk_reactor_bind(self->reactor, &remote, self->bound, sizeof self->bound, d);
}

static enum sk_err open_links(struct shell *self, struct sk_diag *d)
{
    char endpoint[SK_PATH_BYTES];
    enum sk_err err = sk_heartbeat_new(&self->heartbeat, self->reactor, &self->process,
                                       SK_ROUTER_PEER_SUPERVISOR, d);
    if (err == SK_ERR_OK)
        err = sk_reactor_connect(self->reactor, SK_ROUTER_PEER_KEEPER,
                                 sk_process_endpoint(&self->process, endpoint, "keeper.ipc"),
                                 "router", d);
    if (err == SK_ERR_OK)
        err = sk_reactor_subscribe(self->reactor, SK_ROUTER_PEER_HINTS,
                                   sk_process_endpoint(&self->process, endpoint, "keeper-pub.ipc"),
                                   d);
    if (err == SK_ERR_OK)
        err = sk_reactor_every(self->reactor, 1000, tell, self, d);
    if (err == SK_ERR_OK)
        sk_heartbeat_set_endpoint(self->heartbeat, self->bound);
    return err;
}

static enum sk_err open_core(struct shell *self, struct sk_diag *d)
{
    char path[SK_PATH_BYTES];
    enum sk_err err =
        sk_keys_load(&self->keys, sk_process_path(&self->process, path, "keys/node.key"), d);
    if (err != SK_ERR_OK)
        return err;
    const struct sk_router_config config = {
        .public_key = self->keys.public_key,
        .version = SK_VERSION,
        .requests_in_flight_max = self->process.config.requests_in_flight_max,
    };
    return sk_router_new(&self->router, &config, sk_reactor_io(self->reactor), d);
}

int main(int argc, char **argv)
{
    static struct shell self = {.wakeup = {.fd = -1}};
    struct sk_diag d = {0};
    int status = sk_process_start(&self.process, "router",
                                  "the door of a node: takes requests, asks the workers, answers",
                                  SK_PROCESS_IS_CHILD | SK_PROCESS_IS_QUERY_PATH, argc, argv);
    if (status >= 0)
        return status;
    /* large frames go back to the system at once */
    (void)mallopt(M_ARENA_MAX, 2);
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 20);
    const struct sk_reactor_config config = {.notes = sk_router_notes,
                                             .note_count = SK_ROUTER_NOTE_COUNT};
    enum sk_err err = sk_reactor_new(&self.reactor, &config, &d);
    if (err == SK_ERR_OK)
        err = sk_zap_new(&self.zap, &d); /* before any door */
    if (err == SK_ERR_OK)
        err = open_core(&self, &d);
    if (err == SK_ERR_OK) {
        const struct sk_config *settings = &self.process.config;
        sk_wakeup_init(&self.wakeup, settings->wakeup_latency, settings->wakeup_idle_ms);
        sk_reactor_set_core(self.reactor, &(struct sk_reactor_core){
                                              .core = &self,
                                              .on_message = on_message,
                                              .on_client = on_client,
                                              .on_connected = on_connected,
                                              .on_disconnected = on_disconnected,
                                              .on_time = on_time,
                                              .on_stop = on_stop,
                                          });
        err = open_doors(&self, &d);
    }
    if (err == SK_ERR_OK)
        err = open_links(&self, &d);
    status = err == SK_ERR_OK ? sk_reactor_run(self.reactor) : sk_process_fail(&self.process, &d);
    sk_heartbeat_destroy(&self.heartbeat);
    sk_reactor_destroy(&self.reactor);
    sk_zap_destroy(&self.zap);
    sk_router_destroy(&self.router);
    sk_wakeup_deinit(&self.wakeup);
    sk_keys_wipe(&self.keys);
    return status;
}
