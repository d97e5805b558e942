/* skerry top: the node live: rates, latency, processes, collections. */
#include "tools/skerry/commands.h"
#include "tools/skerry/watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum { BOUNDS_MAX = 64 };

static struct {
    double interval_s;
    bool once;
} options;

static const struct cli_option top_options[] = {
    {"interval-s", CLI_DOUBLE, &options.interval_s, "S", "seconds between two looks (1)"},
    {"once", CLI_FLAG, &options.once, NULL, "show one interval and end"},
    {0},
};

/* ---- Operations ---- */

static const json_t *member_named(const json_t *list, const char *op)
{
    json_t *member;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)list, i,
                       member) if (strcmp(cli_json_text(member, "op"), op) == 0) return member;
    return NULL;
}

/* Requests of op: all of them, or those that ended with an error. */
static double requests_of(const json_t *stats, const char *op, bool is_failed)
{
    json_t *member;
    size_t i;
    double count = 0;
    json_array_foreach(json_object_get(stats, "requests"), i, member)
    {
        const char *code = cli_json_text(member, "code");
        if (strcmp(cli_json_text(member, "op"), op) == 0 && (!is_failed || strcmp(code, "ok") != 0))
            count += cli_json_number(member, "count");
    }
    return count;
}

/* The time below which a share q of the requests stayed, from the counts in their buckets. */
static double quantile_us(const json_t *latency, const json_t *before, double q)
{
    const json_t *bounds = json_object_get(latency, "bounds_us");
    const json_t *counts = json_object_get(latency, "counts");
    const json_t *earlier = json_object_get(before, "counts");
    size_t size = json_array_size(counts) < BOUNDS_MAX ? json_array_size(counts) : BOUNDS_MAX;
    double in_bucket[BOUNDS_MAX], total = 0, seen = 0, low_us = 0;
    for (size_t i = 0; i < size; i++) {
        in_bucket[i] = json_number_value(json_array_get(counts, i)) -
                       json_number_value(json_array_get(earlier, i));
        total += in_bucket[i];
    }
    for (size_t i = 0; i < size && total > 0; i++) {
        double high_us = i < json_array_size(bounds) ? json_number_value(json_array_get(bounds, i))
                                                     : low_us; /* the last bucket has no end */
        if (in_bucket[i] > 0 && seen + in_bucket[i] >= q * total)
            return low_us + (high_us - low_us) * (q * total - seen) / in_bucket[i];
        seen += in_bucket[i];
        low_us = high_us;
    }
    return low_us;
}

void watch_print_requests(const json_t *stats, const json_t *before, double seconds)
{
    const char *const heads[] = {"operation", before == NULL ? "requests" : "a second", "errors",
                                 "p50", "p99"};
    struct cli_table *table = cli_table_new(SK_COUNT_OF(heads), heads);
    json_t *latency;
    size_t i;
    json_array_foreach(json_object_get(stats, "latency"), i, latency)
    {
        char count[32], errors[32], p50[32], p99[32];
        const char *op = cli_json_text(latency, "op");
        const json_t *earlier = member_named(json_object_get(before, "latency"), op);
        double requests = requests_of(stats, op, false) - requests_of(before, op, false);
        double failed = requests_of(stats, op, true) - requests_of(before, op, true);
        if (requests <= 0)
            continue;
        cli_table_cell(table, "%s", op);
        if (before == NULL)
            cli_table_cell(table, "%s", cli_count_text((uint64_t)requests, count));
        else
            cli_table_cell(table, "%.0f", requests / seconds);
        cli_table_cell(table, "%s", cli_count_text((uint64_t)(failed < 0 ? 0 : failed), errors));
        cli_table_cell(table, "%s",
                       cli_duration_text(1e-6 * quantile_us(latency, earlier, 0.5), p50));
        cli_table_cell(table, "%s",
                       cli_duration_text(1e-6 * quantile_us(latency, earlier, 0.99), p99));
    }
    cli_table_print(&table);
}

/* ---- Processes and collections ---- */

static void print_processes(const json_t *topology, const json_t *before, double seconds)
{
    static const char *const heads[] = {"process", "pid", "state", "cpu", "memory", "restarts"};
    struct cli_table *table = cli_table_new(SK_COUNT_OF(heads), heads);
    json_t *process;
    size_t i;
    json_array_foreach(json_object_get(topology, "processes"), i, process)
    {
        char name[64], memory[32];
        double share = watch_cpu_share(process, json_object_get(before, "processes"), seconds);
        cli_table_cell(table, "%s", watch_process_name(process, name, sizeof name));
        cli_table_cell(table, "%ld", (long)cli_json_number(process, "pid"));
        cli_table_cell(table, "%s", cli_json_text(process, "state"));
        cli_table_cell(table, "%.0f %%", 100 * share);
        cli_table_cell(table, "%s", cli_bytes_text(cli_json_number(process, "rss_bytes"), memory));
        cli_table_cell(table, "%ld", (long)cli_json_number(process, "restarts"));
    }
    cli_table_print(&table);
}

static void print_collections(const json_t *stats)
{
    static const char *const heads[] = {"collection", "records",      "pending",
                                        "disk",       "index memory", "index"};
    const json_t *collections = json_object_get(stats, "collections");
    json_t *collection, *index;
    size_t i, k;
    if (json_array_size(collections) == 0)
        return;
    struct cli_table *table = cli_table_new(SK_COUNT_OF(heads), heads);
    json_array_foreach((json_t *)(uintptr_t)collections, i, collection)
    {
        char text[64], state[160] = "";
        cli_table_cell(table, "%s", cli_json_text(collection, "name"));
        cli_table_cell(table, "%s",
                       cli_count_text((uint64_t)cli_json_number(collection, "records"), text));
        cli_table_cell(table, "%s",
                       cli_count_text((uint64_t)cli_json_number(collection, "pending_rows"), text));
        cli_table_cell(table, "%s",
                       cli_bytes_text(cli_json_number(collection, "disk_bytes"), text));
        cli_table_cell(table, "%s",
                       cli_bytes_text(cli_json_number(collection, "index_bytes"), text));
        json_array_foreach(json_object_get(collection, "indexes"), k,
                           index) if (k == 0 || strcmp(cli_json_text(index, "state"), "ready") != 0)
            watch_index_text(index, state, sizeof state);
        cli_table_cell(table, "%s", state);
    }
    putchar('\n');
    cli_table_print(&table);
}

/* ---- One look after another ---- */

struct look {
    json_t *topology, *stats;
    double at_s;
};

static void look_deinit(struct look *self)
{
    json_decref(self->topology);
    json_decref(self->stats);
    *self = (struct look){0};
}

static enum skerry_code look_init(struct look *self, struct skerry *db, struct skerry_error *error)
{
    *self = (struct look){.at_s = cli_now_s()};
    enum skerry_code code = watch_fetch(db, "topology", &self->topology, error);
    if (code == SKERRY_OK)
        code = watch_fetch(db, "stats", &self->stats, error);
    if (code != SKERRY_OK)
        look_deinit(self);
    return code;
}

static void show(const struct look *now, const struct look *before)
{
    const json_t *queue = json_object_get(now->stats, "queue");
    double seconds = now->at_s - before->at_s;
    if (cli_settings.json) {
        (void)cli_print_json(json_pack("{s:f,s:O,s:O}", "seconds", seconds, "topology",
                                       now->topology, "stats", now->stats));
        return;
    }
    watch_print_head(now->topology);
    printf("in flight: %.0f requests, %.0f reads; %.0f writes queued\n\n",
           cli_json_number(queue, "requests_in_flight"), cli_json_number(queue, "reads_in_flight"),
           cli_json_number(queue, "writes_queued"));
    watch_print_requests(now->stats, before->stats, seconds);
    putchar('\n');
    print_processes(now->topology, before->topology, seconds);
    print_collections(now->stats);
}

/* ---- The terminal ---- */

static volatile sig_atomic_t is_interrupted;

static void on_signal(int number)
{
    (void)number;
    is_interrupted = 1;
}

static void watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: a wait ends at once */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Keys one by one and unseen; false where stdin is no terminal. */
static bool enter_keys(struct termios *saved)
{
    if (!cli_is_terminal(stdin) || tcgetattr(STDIN_FILENO, saved) != 0)
        return false;
    struct termios raw = *saved;
    raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
    return tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
}

/* false: q was typed, or it was interrupted. */
static bool wait_interval(bool has_keys)
{
    double end_s = cli_now_s() + options.interval_s;
    while (is_interrupted == 0) {
        double left_s = end_s - cli_now_s();
        struct pollfd keys = {STDIN_FILENO, POLLIN, 0};
        char key = 0;
        if (left_s <= 0)
            return true;
        if (poll(&keys, has_keys ? 1 : 0, (int)(left_s * 1000) + 1) > 0 &&
            (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q'))
            return false;
    }
    return false;
}

static int watch(struct skerry *db, bool is_screen, bool has_keys)
{
    struct skerry_error error = {0};
    struct look before, now;
    int status = look_init(&before, db, &error) == SKERRY_OK ? CLI_DONE : cli_error(&error);
    while (status == CLI_DONE && wait_interval(has_keys)) {
        bool is_answered = look_init(&now, db, &error) == SKERRY_OK;
        if (is_screen)
            fputs("\033[H\033[J", stdout);
        if (is_answered) {
            show(&now, &before);
            look_deinit(&before);
            before = now;
        } else if (options.once || !is_screen) {
            status = cli_error(&error);
        } else { /* a node that starts again comes back */
            printf("%s: %s\n", error.name, error.message);
        }
        if (is_screen)
            printf("\nq ends\n");
        else if (!cli_settings.json && !options.once)
            putchar('\n');
        fflush(stdout);
        if (options.once)
            break;
    }
    look_deinit(&before);
    return status;
}

static int top(int count, char **arguments)
{
    struct termios saved;
    int status = CLI_DONE;
    (void)count;
    (void)arguments;
    if (options.interval_s == 0)
        options.interval_s = 1;
    if (!(options.interval_s >= 0.1 && options.interval_s <= 3600))
        return cli_usage("--interval-s %g: want 0.1 to 3600", options.interval_s);
    struct skerry *db = cli_connect(&status);
    if (db == NULL)
        return status;
    bool is_screen = !options.once && !cli_settings.json && cli_is_terminal(stdout);
    bool has_keys = enter_keys(&saved);
    watch_signals();
    if (is_screen)
        fputs("\033[?1049h\033[?25l", stdout); /* a screen of its own, no cursor */
    status = watch(db, is_screen, has_keys);
    if (is_screen)
        fputs("\033[?25h\033[?1049l", stdout);
    if (has_keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    skerry_close(&db);
    return status;
}

const struct cli_command cli_top = {
    .name = "top",
    .arguments = "",
    .summary = "Watch the node live: requests, latency, processes, collections; q or Ctrl-C ends",
    .options = top_options,
    .run = top,
};
