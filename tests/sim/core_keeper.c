#include "actors/metadata-keeper/keeper.h"
#include "tests/sim/world.h"

static bool create(void **core, struct world *world, unsigned process, const struct sk_io *io,
                   struct sk_diag *d)
{
    (void)process;
    struct sk_keeper_config config = {
        .folder = "data/keeper", .worker_count = world->worker_count, .state_bytes_max = 16 << 20};
    return sk_keeper_new((struct sk_keeper **)core, &config, io, d) == SK_ERR_OK;
}

static void destroy(void **core)
{
    sk_keeper_destroy((struct sk_keeper **)core);
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    sk_keeper_on_message(core, from, bytes);
}

static uint64_t on_time(void *core)
{
    return sk_keeper_on_time(core);
}

static void on_job_done(void *core, struct sk_job *job)
{
    sk_keeper_on_job_done(core, job);
}

static enum sk_err check(void *core, struct sk_diag *d)
{
    return sk_keeper_check(core, d);
}

static enum sk_err check_limits(void *core, struct sk_diag *d)
{
    struct sk_keeper_status status;
    sk_keeper_get_status(core, &status);
    if (status.queued > SK_KEEPER_QUEUE_MAX || status.collections > SK_COLLECTIONS_MAX)
        return sk_fail(d, SK_ERR_INTERNAL, "over its limits: %u changes wait, %u collections",
                       status.queued, status.collections);
    return SK_ERR_OK;
}

static int target_of(sk_peer peer)
{
    if (peer == SK_KEEPER_PEER_ROUTER)
        return PROCESS_ROUTER;
    if (peer == SK_KEEPER_PEER_HINTS)
        return TARGET_HINTS;
    return peer >= SK_KEEPER_PEER_WORKER_0 && peer < SK_KEEPER_PEER_WORKER_0 + WORLD_WORKERS_MAX
               ? (int)(peer - SK_KEEPER_PEER_WORKER_0) + PROCESS_WORKER_0
               : TARGET_NONE;
}

static sk_peer peer_of(unsigned process)
{
    return process == PROCESS_ROUTER ? SK_KEEPER_PEER_ROUTER
                                     : SK_KEEPER_PEER_WORKER_0 + (process - PROCESS_WORKER_0);
}

const struct core_kind core_keeper = {.name = "keeper",
                                      .create = create,
                                      .destroy = destroy,
                                      .on_message = on_message,
                                      .on_time = on_time,
                                      .on_job_done = on_job_done,
                                      .check = check,
                                      .check_limits = check_limits,
                                      .target_of = target_of,
                                      .peer_of = peer_of};
