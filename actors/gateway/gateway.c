#include "actors/gateway/gateway.h"
#include "actors/gateway/stats.h"
#include "actors/gateway/text.h"

#include <stdio.h>

enum sk_route sk_gateway_route(const char *method, const char *path)
{
    static const struct {
        const char *path;
        enum sk_route route;
    } routes[] = {{"/metrics", SK_ROUTE_METRICS},
                  {"/healthz", SK_ROUTE_HEALTH},
                  {"/readyz", SK_ROUTE_READY}};
    for (size_t i = 0; i < SK_COUNT_OF(routes); i++) {
        if (strcmp(path, routes[i].path) != 0)
            continue;
        bool is_get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
        return is_get ? routes[i].route : SK_ROUTE_NOT_A_GET;
    }
    return SK_ROUTE_NONE;
}

/* ---- metrics ---- */

static void put_plain(struct sk_buffer *to, const char *name, const char *help, uint64_t value)
{
    sk_text_head(to, name, "gauge", help);
    sk_text_u64(to, name, "", NULL, 0, value);
}

static void put_requests(struct sk_buffer *to, const struct stats *stats)
{
    static const char name[] = "skerry_requests_total";
    sk_text_head(to, name, "counter", "Requests answered, by operation and error code (ok: none).");
    for (unsigned op = 0; op < STATS_OPS; op++) {
        for (unsigned code = 0; code < STATS_CODES; code++) {
            const struct sk_label labels[] = {{"op", sk_span_text(stats_op_name(op))},
                                              {"code", sk_span_text(stats_code_name(code))}};
            /* what was never asked is left out, but not what is always looked for */
            if (stats->has_requests[op][code] || (op == SK_OP_SEARCH && code == SK_ERR_OK))
                sk_text_u64(to, name, "", labels, 2, stats->requests[op][code]);
        }
    }
}

static void put_latency(struct sk_buffer *to, const struct stats *stats)
{
    static const char name[] = "skerry_request_seconds";
    sk_text_head(to, name, "histogram",
                 "Time from a request's arrival at the router to its answer, by operation.");
    for (unsigned op = 0; op < STATS_OPS; op++) {
        const struct stats_histogram *histogram = &stats->latency[op];
        struct sk_label labels[2] = {{"op", sk_span_text(stats_op_name(op))}, {"le", {0}}};
        uint64_t below = 0;
        if (!histogram->is_present)
            continue;
        for (uint32_t b = 0; b <= histogram->bound_count; b++) {
            char bound[32] = "+Inf";
            uint64_t count = histogram->counts[b];
            below = below > UINT64_MAX - count ? UINT64_MAX : below + count;
            if (b < histogram->bound_count)
                (void)snprintf(bound, sizeof bound, "%.12g", (double)histogram->bounds_us[b] / 1e6);
            labels[1].value = sk_span_text(bound);
            sk_text_u64(to, name, "_bucket", labels, 2, below);
        }
        sk_text_f64(to, name, "_sum", labels, 1, (double)histogram->sum_us / 1e6);
        sk_text_u64(to, name, "_count", labels, 1, below);
    }
}

static void put_collections(struct sk_buffer *to, const struct stats *stats)
{
    static const struct {
        const char *name, *help;
        size_t at;
    } metrics[] = {
        {"skerry_records", "Records of a collection.", offsetof(struct stats_collection, records)},
        {"skerry_disk_bytes", "Disk that a collection takes, indexes included.",
         offsetof(struct stats_collection, disk_bytes)},
        {"skerry_index_bytes", "Memory that the indexes of a collection take.",
         offsetof(struct stats_collection, index_bytes)},
        {"skerry_pending_rows", "Rows that are durable and found by searches, not yet in their index.",
         offsetof(struct stats_collection, pending_rows)},
    };
    for (size_t m = 0; m < SK_COUNT_OF(metrics); m++) {
        sk_text_head(to, metrics[m].name, "gauge", metrics[m].help);
        for (uint32_t i = 0; i < stats->collection_count; i++) {
            const struct stats_collection *collection = &stats->collections[i];
            const struct sk_label label = {"collection", collection->name};
            uint64_t value;
            memcpy(&value, (const uint8_t *)collection + metrics[m].at, sizeof value);
            sk_text_u64(to, metrics[m].name, "", &label, 1, value);
        }
    }
}

static double progress(const struct stats_index *index)
{
    if (index->total == 0 || index->done >= index->total)
        return 1;
    return (double)index->done / (double)index->total;
}

static void put_indexes(struct sk_buffer *to, const struct stats *stats)
{
    static const char *const names[] = {"skerry_index_state", "skerry_index_progress_ratio"};
    for (unsigned m = 0; m < SK_COUNT_OF(names); m++) {
        sk_text_head(to, names[m], "gauge",
                     m == 0 ? "State of an index, by vector field: 0 flat (exact), 1 loading, "
                              "2 building (searches are exact), 3 ready, 4 altering (another one is "
                              "built, the one before serves)."
                            : "Share of the rows that an index has taken in, 0 to 1.");
        for (uint32_t i = 0; i < stats->collection_count; i++) {
            const struct stats_collection *collection = &stats->collections[i];
            for (uint32_t k = 0; k < collection->index_count; k++) {
                const struct stats_index *index = &collection->indexes[k];
                const struct sk_label labels[] = {
                    {"collection", collection->name},
                    {"index", index->vector.size > 0 ? index->vector : sk_span_text("default")}};
                if (m == 0)
                    sk_text_u64(to, names[m], "", labels, 2, index->state);
                else
                    sk_text_f64(to, names[m], "", labels, 2, progress(index));
            }
        }
    }
}

/* Only where searches ask for a recall: others are not held against exact answers. */
static void put_recall(struct sk_buffer *to, const struct stats *stats)
{
    static const char *const names[] = {"skerry_index_recall", "skerry_index_recall_target"};
    for (unsigned m = 0; m < SK_COUNT_OF(names); m++) {
        bool has_head = false;
        for (uint32_t i = 0; i < stats->collection_count; i++) {
            const struct stats_collection *collection = &stats->collections[i];
            for (uint32_t k = 0; k < collection->index_count; k++) {
                const struct stats_index *index = &collection->indexes[k];
                const struct sk_label labels[] = {
                    {"collection", collection->name},
                    {"vector", index->vector.size > 0 ? index->vector : sk_span_text("default")}};
                if (!index->has_recall)
                    continue;
                if (!has_head)
                    sk_text_head(to, names[m], "gauge",
                                 m == 0 ? "Share of the true nearest that searches with a recall "
                                          "target found, measured against exact answers."
                                        : "The recall that searches asked for last.");
                has_head = true;
                sk_text_f64(to, names[m], "", labels, 2,
                            m == 0 ? index->recall : index->recall_target);
            }
        }
    }
}

static void put_processes(struct sk_buffer *to, const struct stats *stats)
{
    static const struct {
        const char *name, *type, *help;
    } metrics[] = {
        {"skerry_process_up", "gauge", "1 while a process of the node is running and ready."},
        {"skerry_process_resident_bytes", "gauge", "Resident memory of a process of the node."},
        {"skerry_process_restarts_total", "counter",
         "How often the supervisor has started a process again."},
        {"skerry_process_cpu_seconds_total", "counter", "CPU time of a process of the node."},
    };
    for (unsigned m = 0; m < SK_COUNT_OF(metrics); m++) {
        const char *name = metrics[m].name;
        sk_text_head(to, name, metrics[m].type, metrics[m].help);
        for (uint32_t i = 0; i < stats->process_count; i++) {
            const struct stats_process *process = &stats->processes[i];
            const struct sk_label label = {"process", sk_span_text(process->name)};
            if (m == 3 && process->has_cpu)
                sk_text_f64(to, name, "", &label, 1, process->cpu_s);
            else if (m < 3)
                sk_text_u64(to, name, "", &label, 1,
                            m == 0   ? process->is_up
                            : m == 1 ? process->rss_bytes
                                     : process->restarts);
        }
    }
}

static void put_wakeup(struct sk_buffer *to, const struct stats *stats)
{
    static const char *const states[] = {"held", "idle", "off", "unavailable"};
    static const char name[] = "skerry_wakeup_state";
    sk_text_head(to, name, "gauge",
                 "1 for the state that the request to keep cores awake (/dev/cpu_dma_latency) is in.");
    for (unsigned i = 0; i < SK_COUNT_OF(states); i++) {
        const struct sk_label label = {"state", sk_span_text(states[i])};
        sk_text_u64(to, name, "", &label, 1, sk_span_is(stats->wakeup_state, states[i]));
    }
}

enum sk_err sk_gateway_render(struct sk_buffer *out, struct sk_span stats_reply, const char *version,
                              struct sk_diag *d)
{
    struct stats *stats = NULL;
    enum sk_err err = stats_read(&stats, stats_reply, d);
    if (err != SK_ERR_OK)
        return err;
    const struct sk_label label = {"version", sk_span_text(version)};
    sk_text_head(out, "skerry_build_info", "gauge", "1; the version is in its label.");
    sk_text_u64(out, "skerry_build_info", "", &label, 1, 1);
    put_plain(out, "skerry_uptime_seconds", "Time since the router was started.", stats->uptime_s);
    put_requests(out, stats);
    put_latency(out, stats);
    put_plain(out, "skerry_requests_in_flight", "Requests that the router has not answered yet.",
              stats->requests_in_flight);
    put_plain(out, "skerry_reads_in_flight", "Searches and reads that workers are busy with.",
              stats->reads_in_flight);
    put_plain(out, "skerry_writes_queued", "Writes that wait for their commit.", stats->writes_queued);
    put_collections(out, stats);
    put_indexes(out, stats);
    put_recall(out, stats);
    put_processes(out, stats);
    put_wakeup(out, stats);
    stats_free(&stats);
    return sk_buffer_check(out, d);
}

/* ---- readiness ---- */

/* The first process that is not ready, by name; false: all are. */
static bool find_unready(struct sk_span topology, char *name, size_t size)
{
    struct sk_list processes;
    if (!sk_map_member_list(topology, "processes", &processes))
        return false;
    struct sk_reader from = sk_reader_of(processes.members);
    for (uint32_t i = 0; i < processes.count && i < SK_GATEWAY_PROCESSES_MAX; i++) {
        struct sk_span process, text, state;
        if (sk_read_raw(&from, SK_PACK_DEPTH_MAX, &process, NULL) != SK_ERR_OK)
            return false;
        if (!sk_map_member_text(process, "name", &text) ||
            !sk_map_member_text(process, "state", &state) ||
            sk_name_check(text, "name", NULL) != SK_ERR_OK ||
            sk_name_check(state, "state", NULL) != SK_ERR_OK)
            continue;
        if (!sk_span_is(state, "ready") && !sk_span_is(state, "running")) {
            (void)snprintf(name, size, "%.*s is %.*s", (int)text.size, (const char *)text.bytes,
                           (int)state.size, (const char *)state.bytes);
            return true;
        }
    }
    return false;
}

bool sk_gateway_is_ready(struct sk_span topology_reply, char words[SK_GATEWAY_WORDS_BYTES])
{
    struct sk_reply reply;
    struct sk_span node;
    bool is_ready = false;
    char unready[160];
    if (sk_reply_decode(&reply, topology_reply, NULL) != SK_ERR_OK) {
        (void)snprintf(words, SK_GATEWAY_WORDS_BYTES, "not ready: the router's answer makes no sense");
        return false;
    }
    if (!reply.is_ok) {
        (void)snprintf(words, SK_GATEWAY_WORDS_BYTES, "not ready: the router says %s",
                       sk_err_name(reply.code));
        return false;
    }
    if (sk_map_member(topology_reply, "node", &node))
        (void)sk_map_member_bool(node, "ready", &is_ready);
    if (is_ready)
        (void)snprintf(words, SK_GATEWAY_WORDS_BYTES, "ready");
    else if (find_unready(topology_reply, unready, sizeof unready))
        (void)snprintf(words, SK_GATEWAY_WORDS_BYTES, "not ready: %s", unready);
    else
        (void)snprintf(words, SK_GATEWAY_WORDS_BYTES, "not ready: the node is starting");
    return is_ready;
}
