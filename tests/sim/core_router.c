#include "actors/router/router.h"
#include "tests/sim/world.h"

static bool create(void **core, struct world *world, unsigned process, const struct sk_io *io,
                   struct sk_diag *d)
{
    (void)world;
    (void)process;
    struct sk_router_config config = {.public_key = "simulated-node-key-of-forty-characters--",
                                      .version = SK_VERSION,
                                      .supervisor_wait_ms = 20}; /* there is none here */
    return sk_router_new((struct sk_router **)core, &config, io, d) == SK_ERR_OK;
}

static void destroy(void **core)
{
    sk_router_destroy((struct sk_router **)core);
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    sk_router_on_message(core, from, bytes);
}

static void on_client(void *core, sk_peer from, struct sk_span frame)
{
    sk_router_on_client(core, from, SK_ROLE_ADMIN, frame);
}

static void on_connected(void *core, sk_peer peer)
{
    sk_router_on_connected(core, peer);
}

static void on_undelivered(void *core, sk_peer peer)
{
    sk_router_on_disconnected(core, peer);
}

static void on_hint(void *core, struct sk_span bytes)
{
    sk_router_on_message(core, SK_ROUTER_PEER_HINTS, bytes);
}

static uint64_t on_time(void *core)
{
    return sk_router_on_time(core);
}

static enum sk_err check_limits(void *core, struct sk_diag *d)
{
    struct sk_router_status status;
    sk_router_get_status(core, &status);
    if (status.requests_in_flight > WORLD_CLIENTS_MAX * 64U || status.malformed > 0)
        return sk_fail(d, SK_ERR_INTERNAL,
                       "%u requests in flight of %u clients, %llu malformed messages",
                       status.requests_in_flight, (unsigned)WORLD_CLIENTS_MAX,
                       (unsigned long long)status.malformed);
    return SK_ERR_OK;
}

static bool is_ready(void *core)
{
    struct sk_router_status status;
    sk_router_get_status(core, &status);
    return status.is_ready;
}

static int target_of(sk_peer peer)
{
    if (peer >= SK_PEER_FIRST_CLIENT)
        return TARGET_CLIENT;
    if (peer == SK_ROUTER_PEER_KEEPER)
        return PROCESS_KEEPER;
    return peer >= SK_ROUTER_PEER_WORKER_0 && peer < SK_ROUTER_PEER_WORKER_0 + WORLD_WORKERS_MAX
               ? (int)(peer - SK_ROUTER_PEER_WORKER_0) + PROCESS_WORKER_0
               : TARGET_NONE;
}

static sk_peer peer_of(unsigned process)
{
    return process == PROCESS_KEEPER ? SK_ROUTER_PEER_KEEPER
                                     : SK_ROUTER_PEER_WORKER_0 + (process - PROCESS_WORKER_0);
}

const struct core_kind core_router = {.name = "router",
                                      .create = create,
                                      .destroy = destroy,
                                      .on_message = on_message,
                                      .on_client = on_client,
                                      .on_connected = on_connected,
                                      .on_undelivered = on_undelivered,
                                      .on_hint = on_hint,
                                      .on_time = on_time,
                                      .check_limits = check_limits,
                                      .is_ready = is_ready,
                                      .target_of = target_of,
                                      .peer_of = peer_of};
