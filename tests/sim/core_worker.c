#include "actors/shard-worker/worker.h"
#include "tests/sim/world.h"

static bool create(void **core, struct world *world, unsigned process, const struct sk_io *io,
                   struct sk_diag *d)
{
    struct sk_worker_config config = {.data_dir = "data",
                                      .snapshot_dir = "snapshots",
                                      .number = process - PROCESS_WORKER_0,
                                      .process_id = process + 1,
                                      .pending_rows_max = 24, /* so that the bound is met */
                                      .flat_below =
                                          world->seed % 2 != 0 ? 4 : 0, /* the graph too */
                                      .map_bytes_max = 64 << 20};
    return sk_worker_new((struct sk_worker **)core, &config, io, d) == SK_ERR_OK;
}

static void destroy(void **core)
{
    sk_worker_destroy((struct sk_worker **)core);
}

static void on_message(void *core, sk_peer from, struct sk_span bytes)
{
    sk_worker_on_message(core, from, bytes);
}

static void on_connected(void *core, sk_peer peer)
{
    sk_worker_on_connected(core, peer);
}

static void on_hint(void *core, struct sk_span bytes)
{
    sk_worker_on_message(core, SK_PEER_HINTS, bytes);
}

static uint64_t on_time(void *core)
{
    return sk_worker_on_time(core);
}

static void on_job_done(void *core, struct sk_job *job)
{
    sk_worker_on_job_done(core, job);
}

static enum sk_err check(void *core, struct sk_diag *d)
{
    return sk_worker_check(core, d);
}

static bool is_ready(void *core)
{
    struct sk_worker_status status;
    sk_worker_get_status(core, &status);
    return status.is_ready && status.shards_failed == 0;
}

static int target_of(sk_peer peer)
{
    return peer == SK_PEER_ROUTER   ? PROCESS_ROUTER
           : peer == SK_PEER_KEEPER ? PROCESS_KEEPER
                                    : TARGET_NONE;
}

static sk_peer peer_of(unsigned process)
{
    return process == PROCESS_ROUTER ? SK_PEER_ROUTER : SK_PEER_KEEPER;
}

const struct core_kind core_worker = {.name = "worker",
                                      .create = create,
                                      .destroy = destroy,
                                      .on_message = on_message,
                                      .on_connected = on_connected,
                                      .on_hint = on_hint,
                                      .on_time = on_time,
                                      .on_job_done = on_job_done,
                                      .check = check,
                                      .is_ready = is_ready,
                                      .target_of = target_of,
                                      .peer_of = peer_of};
