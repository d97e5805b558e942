/* skerry topology, stats, info: what the node is made of. */
#include "tools/skerry/commands.h"
#include "tools/skerry/watch.h"

#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOAD_INTERVAL_US = 250 * 1000, BAR_CELLS = 10 };

struct strokes {
    const char *branch, *last, *pipe, *space, *full, *empty;
};

static const struct strokes *strokes(void)
{
    static const struct strokes unicode = {"├─ ", "└─ ", "│  ", "   ", "█", "░"};
    static const struct strokes ascii = {"+- ", "`- ", "|  ", "   ", "#", "."};
    return strcmp(nl_langinfo(CODESET), "UTF-8") == 0 ? &unicode : &ascii;
}

/* ---- Load ---- */

double watch_cpu_share(const json_t *process, const json_t *before, double seconds)
{
    json_t *earlier;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)before, i, earlier)
    {
        if (cli_json_number(earlier, "pid") != cli_json_number(process, "pid"))
            continue;
        double used_s = cli_json_number(process, "cpu_s") - cli_json_number(earlier, "cpu_s");
        return seconds > 0 && used_s > 0 ? used_s / seconds : 0;
    }
    return 0;
}

const char *watch_process_name(const json_t *process, char *out, size_t size)
{
    const json_t *number = json_object_get(process, "number");
    if (strcmp(cli_json_text(process, "name"), "shard-worker") == 0 && number != NULL)
        snprintf(out, size, "shard-worker %lld", (long long)json_integer_value(number));
    else
        snprintf(out, size, "%s", cli_json_text(process, "name"));
    return out;
}

void watch_print_bar(double share)
{
    const struct strokes *s = strokes();
    int full = share <= 0 ? 0 : share >= 1 ? BAR_CELLS : (int)(share * BAR_CELLS + 0.5);
    for (int i = 0; i < BAR_CELLS; i++)
        fputs(i < full ? s->full : s->empty, stdout);
}

/* ---- The picture ---- */

const char *watch_index_text(const json_t *index, char *out, size_t size)
{
    const char *state = cli_json_text(index, "state"), *vector = cli_json_text(index, "vector");
    double done = cli_json_number(index, "done"), total = cli_json_number(index, "total");
    int used = snprintf(out, size, "%s%s%s %s", vector, vector[0] == '\0' ? "" : ": ",
                        cli_json_text(index, "type"), state);
    if (used > 0 && (size_t)used < size && total > 0 && done < total)
        snprintf(out + used, size - (size_t)used, " %.0f %%", 100 * done / total);
    return out;
}

static void draw_shard(const char *collection, const json_t *shard, const char *prefix,
                       const char *branch)
{
    char records[32], disk[32], memory[32];
    const char *state = cli_json_text(shard, "state");
    double pending = cli_json_number(shard, "pending_rows");
    json_t *index;
    size_t i;
    printf("%s%s%s/%lld   %s records   %s on disk   %s index", prefix, branch, collection,
           (long long)cli_json_number(shard, "number"),
           cli_count_text((uint64_t)cli_json_number(shard, "records"), records),
           cli_bytes_text(cli_json_number(shard, "disk_bytes"), disk),
           cli_bytes_text(cli_json_number(shard, "index_bytes"), memory));
    json_array_foreach(json_object_get(shard, "indexes"), i, index)
    {
        char text[160];
        printf("   %s", watch_index_text(index, text, sizeof text));
    }
    if (pending > 0)
        printf("   %s pending", cli_count_text((uint64_t)pending, records));
    if (state[0] != '\0' && strcmp(state, "ok") != 0)
        printf("   %s %s", state, cli_json_text(shard, "error"));
    putchar('\n');
}

static bool is_of_worker(const json_t *shard, const json_t *process)
{
    return cli_json_number(shard, "worker") == cli_json_number(process, "number");
}

static void draw_worker_shards(const json_t *topology, const json_t *process, const char *prefix)
{
    json_t *collection, *shard;
    size_t i, k, count = 0, at = 0;
    for (int pass = 0; pass < 2; pass++) /* the last one is known after they were counted */
        json_array_foreach(json_object_get(topology, "collections"), i, collection)
            json_array_foreach(json_object_get(collection, "shards"), k, shard)
        {
            if (!is_of_worker(shard, process))
                continue;
            if (pass == 0)
                count++;
            else
                draw_shard(cli_json_text(collection, "name"), shard, prefix,
                           ++at == count ? strokes()->last : strokes()->branch);
        }
}

static void draw_process(const json_t *topology, const json_t *process, const json_t *before,
                         double seconds, bool is_last)
{
    char name[64], memory[32];
    const struct strokes *s = strokes();
    double share = watch_cpu_share(process, before, seconds);
    long restarts = (long)cli_json_number(process, "restarts");
    printf("%s%-18s ", is_last ? s->last : s->branch,
           watch_process_name(process, name, sizeof name));
    watch_print_bar(share);
    printf(" %3.0f %% cpu   %8s   pid %-7ld %s", 100 * share,
           cli_bytes_text(cli_json_number(process, "rss_bytes"), memory),
           (long)cli_json_number(process, "pid"), cli_json_text(process, "state"));
    if (restarts > 0)
        printf(", restarted %ld %s", restarts, restarts == 1 ? "time" : "times");
    putchar('\n');
    if (strcmp(cli_json_text(process, "name"), "shard-worker") == 0)
        draw_worker_shards(topology, process, is_last ? s->space : s->pipe);
}

void watch_vectors_text(const json_t *vectors, char *out, size_t size)
{
    const char *name;
    json_t *field;
    size_t used = 0;
    out[0] = '\0';
    if (json_object_get(vectors, "dim") != NULL) {
        snprintf(out, size, "%.0f x %s  %s", cli_json_number(vectors, "dim"),
                 cli_json_text(vectors, "metric"),
                 cli_json_text(json_object_get(vectors, "index"), "type"));
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)vectors, name, field)
    {
        int more = snprintf(out + used, size - used, "%s%s: %.0f x %s  %s", used > 0 ? "; " : "",
                            name, cli_json_number(field, "dim"), cli_json_text(field, "metric"),
                            cli_json_text(json_object_get(field, "index"), "type"));
        used += more < 0 ? 0 : (size_t)more;
        if (used >= size)
            return;
    }
}

static void draw_collections(const json_t *topology)
{
    static const char *const heads[] = {"collection", "vectors", "records", "shards"};
    const json_t *collections = json_object_get(topology, "collections");
    json_t *collection;
    size_t i;
    putchar('\n');
    if (json_array_size(collections) == 0) {
        puts("no collections yet: skerry collection create NAME --dim N");
        return;
    }
    struct cli_table *table = cli_table_new(4, heads);
    json_array_foreach((json_t *)(uintptr_t)collections, i, collection)
    {
        char vectors[256], records[32];
        watch_vectors_text(json_object_get(collection, "vectors"), vectors, sizeof vectors);
        cli_table_cell(table, "%s", cli_json_text(collection, "name"));
        cli_table_cell(table, "%s", vectors);
        cli_table_cell(table, "%s",
                       cli_count_text((uint64_t)cli_json_number(collection, "records"), records));
        cli_table_cell(table, "%zu", json_array_size(json_object_get(collection, "shards")));
    }
    cli_table_print(&table);
}

void watch_print_head(const json_t *topology)
{
    const json_t *node = json_object_get(topology, "node");
    const json_t *wakeup = json_object_get(node, "wakeup");
    char up[32];
    printf("node %s, up %s   version %s",
           json_is_true(json_object_get(node, "ready")) ? "ready" : "not ready",
           cli_duration_text(cli_json_number(node, "uptime_s"), up),
           cli_json_text(node, "version"));
    if (json_is_object(wakeup))
        printf("   wake-up %s (%s)", cli_json_text(wakeup, "mode"), cli_json_text(wakeup, "state"));
    printf("\nkey  %s\n", cli_json_text(node, "public_key"));
}

static void draw(const json_t *topology, const json_t *before, double seconds)
{
    const json_t *processes = json_object_get(topology, "processes");
    size_t count = json_array_size(processes);
    watch_print_head(topology);
    for (size_t i = 0; i < count; i++)
        draw_process(topology, json_array_get(processes, i), json_object_get(before, "processes"),
                     seconds, i + 1 == count);
    draw_collections(topology);
}

enum skerry_code watch_fetch(struct skerry *db, const char *op, json_t **out,
                             struct skerry_error *error)
{
    struct skerry_reply *reply = NULL;
    json_error_t problem;
    *out = NULL;
    enum skerry_code code =
        skerry_call(db, op, (struct skerry_bytes){0}, cli_settings.deadline_ms, &reply, error);
    char *text = code == SKERRY_OK ? skerry_reply_json(reply) : NULL;
    *out = text == NULL ? NULL : json_loads(text, 0, &problem);
    if (code == SKERRY_OK && *out == NULL) {
        *error = (struct skerry_error){.code = SKERRY_VERSION, .name = "version"};
        snprintf(error->message, sizeof error->message, "the reply of '%s' is no JSON", op);
        code = error->code;
    }
    skerry_text_free(&text);
    skerry_reply_free(&reply);
    return code;
}

/* Load is what was used between two looks. */
static int topology(int count, char **arguments)
{
    json_t *before = NULL, *now = NULL;
    int status = CLI_DONE;
    (void)count;
    (void)arguments;
    if (cli_settings.json)
        return cli_show_call("topology", NULL);
    struct skerry *db = cli_connect(&status);
    struct skerry_error error = {0};
    bool is_asked = db != NULL && watch_fetch(db, "topology", &before, &error) == SKERRY_OK;
    double asked_s = cli_now_s();
    if (is_asked)
        usleep(LOAD_INTERVAL_US);
    if (is_asked && watch_fetch(db, "topology", &now, &error) == SKERRY_OK)
        draw(now, before, cli_now_s() - asked_s);
    else if (db != NULL)
        status = cli_error(&error);
    json_decref(before);
    json_decref(now);
    skerry_close(&db);
    return status;
}

const struct cli_command cli_topology = {
    .name = "topology",
    .arguments = "",
    .summary = "Draw the node: its processes and their load, its shards, records and memory",
    .run = topology,
};

/* ---- stats, info ---- */

static int stats(int count, char **arguments)
{
    (void)count;
    (void)arguments;
    json_t *reply = NULL;
    int status = cli_call("stats", NULL, &reply);
    if (reply == NULL)
        return status;
    watch_print_requests(reply, NULL, 0);
    json_object_del(reply, "requests");
    json_object_del(reply, "latency");
    json_object_del(reply, "took_us");
    putchar('\n');
    cli_print_members(reply, 0);
    json_decref(reply);
    return status;
}

const struct cli_command cli_stats = {
    .name = "stats",
    .arguments = "",
    .summary = "Show the node's counters since it was started",
    .run = stats,
};

static int info(int count, char **arguments)
{
    (void)count;
    (void)arguments;
    return cli_show_call("info", NULL);
}

const struct cli_command cli_info = {
    .name = "info",
    .arguments = "",
    .summary = "Show the node's version, key and limits",
    .run = info,
};
