/* links: sk_gateway sk_proto */
#include "actors/gateway/gateway.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a reply to stats ---- */

static void put_text(struct sk_buffer *to, const char *key, const char *value)
{
    sk_put_text(to, key);
    sk_put_text(to, value);
}

static void put_number(struct sk_buffer *to, const char *key, uint64_t value)
{
    sk_put_text(to, key);
    sk_put_u64(to, value);
}

static void put_numbers(struct sk_buffer *to, const char *key, const uint64_t *values, size_t count)
{
    sk_put_text(to, key);
    sk_put_array(to, count);
    for (size_t i = 0; i < count; i++)
        sk_put_u64(to, values[i]);
}

static void put_request(struct sk_buffer *to, const char *op, const char *code, uint64_t count)
{
    sk_put_map(to, 3);
    put_text(to, "op", op);
    put_text(to, "code", code);
    put_number(to, "count", count);
}

static void put_latency(struct sk_buffer *to, const char *op, const uint64_t *bounds, size_t bound_count,
                        const uint64_t *counts, size_t count_count)
{
    sk_put_map(to, 5);
    put_text(to, "op", op);
    put_number(to, "count", 10);
    put_number(to, "sum_us", 1500000);
    put_numbers(to, "bounds_us", bounds, bound_count);
    put_numbers(to, "counts", counts, count_count);
}

static void put_collection(struct sk_buffer *to, const char *name, const char *vector, double recall)
{
    sk_put_map(to, 6);
    put_text(to, "name", name);
    put_number(to, "records", 100000);
    put_number(to, "disk_bytes", 9007199254740993); /* beyond what a double can tell */
    put_number(to, "index_bytes", 1024);
    put_number(to, "pending_rows", 17);
    sk_put_text(to, "indexes");
    sk_put_array(to, 1);
    sk_put_map(to, 6);
    put_text(to, "vector", vector);
    put_text(to, "type", "hnsw");
    put_text(to, "state", "building");
    put_number(to, "done", 25);
    put_number(to, "total", 100);
    sk_put_text(to, "recall");
    sk_put_map(to, 4);
    sk_put_text(to, "target");
    sk_put_f64(to, 0.9375);
    sk_put_text(to, "measured");
    sk_put_f64(to, recall);
    sk_put_text(to, "ef_mean");
    sk_put_f64(to, 40);
    put_number(to, "queries", 100);
}

static void put_process(struct sk_buffer *to, const char *name, uint64_t number, const char *state)
{
    sk_put_map(to, 7);
    put_text(to, "name", name);
    put_number(to, "number", number);
    put_number(to, "pid", 4711);
    put_text(to, "state", state);
    put_number(to, "restarts", 2);
    put_number(to, "rss_bytes", 12345678);
    sk_put_text(to, "cpu_s");
    sk_put_f64(to, 1.25);
}

static const struct sk_request_id no_id;
static const uint64_t bounds_us[] = {100, 1000, 10000};
static const uint64_t counts[] = {3, 4, 2, 1};

static void put_stats(struct sk_buffer *to, const char *collection, const char *vector)
{
    struct sk_reply_writer reply;
    const struct sk_request_id id = {.is_present = true, .number = 1};
    sk_reply_begin(&reply, to, &id);
    sk_reply_key(&reply, "uptime_s");
    sk_put_u64(to, 12);
    sk_reply_key(&reply, "requests");
    sk_put_array(to, 5);
    put_request(to, "search", "ok", 41);
    put_request(to, "search", "ok", 1); /* twice: added */
    put_request(to, "upsert", "busy", 3);
    put_request(to, "dance", "tired", 5); /* of another release */
    put_request(to, "unknown", "invalid", 6);
    sk_reply_key(&reply, "latency");
    sk_put_array(to, 4);
    put_latency(to, "search", bounds_us, 3, counts, 4);
    put_latency(to, "upsert", bounds_us, 3, counts, 3);                            /* one is missing */
    put_latency(to, "get", (const uint64_t[]){100, 100, 50}, 3, counts, 4);        /* no order */
    put_latency(to, "search", bounds_us, 3, (const uint64_t[]){9, 9, 9, 9}, 4);    /* again */
    sk_reply_key(&reply, "queue");
    sk_put_map(to, 3);
    put_number(to, "requests_in_flight", 4);
    put_number(to, "reads_in_flight", 3);
    put_number(to, "writes_queued", 2);
    sk_reply_key(&reply, "wakeup");
    sk_put_map(to, 2);
    put_text(to, "mode", "adaptive");
    put_text(to, "state", "held");
    sk_reply_key(&reply, "collections");
    sk_put_array(to, 4);
    put_collection(to, collection, vector, 0.96875);
    put_collection(to, collection, vector, 0.5); /* again */
    put_collection(to, "zoo", "", 1.5); /* not a share */
    put_collection(to, "not a name\"", "", 1);
    sk_reply_key(&reply, "processes");
    sk_put_array(to, 4);
    put_process(to, "router", 0, "running");
    put_process(to, "shard-worker", 0, "running");
    put_process(to, "shard-worker", 1, "starting");
    put_process(to, "router", 0, "running");
    sk_reply_end(&reply);
    assert_false(to->is_broken);
}

static char *render(struct sk_span reply)
{
    struct sk_buffer text = {0};
    struct sk_diag d = {0};
    if (sk_gateway_render(&text, reply, "0.1.0", &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
    sk_buffer_append(&text, "", 1);
    assert_false(text.is_broken);
    return (char *)text.bytes;
}

static char *render_sample(void)
{
    struct sk_buffer reply = {0};
    put_stats(&reply, "docs", "");
    char *text = render(sk_buffer_span(&reply));
    sk_buffer_deinit(&reply);
    return text;
}

static void has_line(const char *text, const char *line)
{
    char wanted[256];
    (void)snprintf(wanted, sizeof wanted, "\n%s\n", line);
    if (strstr(text, wanted) == NULL)
        fail_msg("no line '%s' in:\n%s", line, text);
}

static unsigned count_of(const char *text, const char *part)
{
    unsigned count = 0;
    for (const char *at = strstr(text, part); at != NULL; at = strstr(at + 1, part))
        count++;
    return count;
}

static void every_metric_of_the_surface_is_there(void **state)
{
    (void)state;
    char *text = render_sample();
    has_line(text, "skerry_build_info{version=\"0.1.0\"} 1");
    has_line(text, "skerry_uptime_seconds 12");
    has_line(text, "skerry_requests_total{op=\"search\",code=\"ok\"} 42");
    has_line(text, "skerry_requests_total{op=\"upsert\",code=\"busy\"} 3");
    has_line(text, "skerry_requests_in_flight 4");
    has_line(text, "skerry_reads_in_flight 3");
    has_line(text, "skerry_writes_queued 2");
    has_line(text, "skerry_records{collection=\"docs\"} 100000");
    has_line(text, "skerry_disk_bytes{collection=\"docs\"} 9007199254740993");
    has_line(text, "skerry_index_bytes{collection=\"docs\"} 1024");
    has_line(text, "skerry_pending_rows{collection=\"docs\"} 17");
    has_line(text, "skerry_index_state{collection=\"docs\",index=\"default\"} 2");
    has_line(text, "skerry_index_progress_ratio{collection=\"docs\",index=\"default\"} 0.25");
    has_line(text, "skerry_index_recall{collection=\"docs\",vector=\"default\"} 0.96875");
    has_line(text, "skerry_index_recall_target{collection=\"docs\",vector=\"default\"} 0.9375");
    assert_int_equal(count_of(text, "skerry_index_recall{"), 1);
    has_line(text, "skerry_process_up{process=\"router\"} 1");
    has_line(text, "skerry_process_up{process=\"shard-worker-1\"} 0");
    has_line(text, "skerry_process_resident_bytes{process=\"shard-worker-0\"} 12345678");
    has_line(text, "skerry_process_restarts_total{process=\"router\"} 2");
    has_line(text, "skerry_process_cpu_seconds_total{process=\"router\"} 1.25");
    has_line(text, "skerry_wakeup_state{state=\"held\"} 1");
    has_line(text, "skerry_wakeup_state{state=\"idle\"} 0");
    assert_int_equal(count_of(text, "# HELP "), count_of(text, "# TYPE "));
    free(text);
}

/* METRICS.md and what is rendered name the same metrics, with the same types. */
static void the_page_of_metrics_is_true(void **state)
{
    (void)state;
    char *text = render_sample(), line[512], name[80], type[16], wanted[128];
    FILE *page = fopen(SK_SOURCE_DIR "/actors/gateway/METRICS.md", "r");
    assert_non_null(page);
    unsigned named = 0;
    while (fgets(line, sizeof line, page) != NULL) {
        if (sscanf(line, "| `%79[a-z_]` | %15[a-z] |", name, type) != 2)
            continue;
        (void)snprintf(wanted, sizeof wanted, "# TYPE %s %s\n", name, type);
        if (strstr(text, wanted) == NULL)
            fail_msg("METRICS.md has %s %s, which is not rendered", name, type);
        named++;
    }
    (void)fclose(page);
    assert_int_equal(named, count_of(text, "# TYPE "));
    free(text);
}

static void a_histogram_is_cumulative_and_in_seconds(void **state)
{
    (void)state;
    char *text = render_sample();
    has_line(text, "skerry_request_seconds_bucket{op=\"search\",le=\"0.0001\"} 3");
    has_line(text, "skerry_request_seconds_bucket{op=\"search\",le=\"0.001\"} 7");
    has_line(text, "skerry_request_seconds_bucket{op=\"search\",le=\"0.01\"} 9");
    has_line(text, "skerry_request_seconds_bucket{op=\"search\",le=\"+Inf\"} 10");
    has_line(text, "skerry_request_seconds_sum{op=\"search\"} 1.5");
    has_line(text, "skerry_request_seconds_count{op=\"search\"} 10");
    assert_null(strstr(text, "op=\"get\",le"));
    assert_null(strstr(text, "op=\"upsert\",le"));
    free(text);
}

static void labels_are_bounded_and_no_sample_comes_twice(void **state)
{
    (void)state;
    char *text = render_sample();
    has_line(text, "skerry_requests_total{op=\"unknown\",code=\"unknown\"} 5");
    has_line(text, "skerry_requests_total{op=\"unknown\",code=\"invalid\"} 6");
    assert_null(strstr(text, "dance"));
    assert_null(strstr(text, "not a name"));
    assert_int_equal(count_of(text, "skerry_records{collection=\"docs\"}"), 1);
    assert_int_equal(count_of(text, "skerry_records{collection=\"zoo\"}"), 1);
    assert_int_equal(count_of(text, "skerry_process_up{process=\"router\"}"), 1);
    assert_int_equal(count_of(text, "skerry_request_seconds_count{op=\"search\"}"), 1);
    free(text);
}

static void labels_are_escaped(void **state)
{
    (void)state;
    struct sk_buffer reply = {0};
    put_stats(&reply, "docs", "a\"b\\c\nd\x01\xff");
    char *text = render(sk_buffer_span(&reply));
    has_line(text, "skerry_index_state{collection=\"docs\",index=\"a\\\"b\\\\c\\nd??\"} 2");
    free(text);
    sk_buffer_deinit(&reply);
}

static void an_empty_node_has_its_metrics_too(void **state)
{
    (void)state;
    struct sk_buffer reply = {0};
    struct sk_reply_writer writer;
    const struct sk_request_id id = {.is_present = true, .number = 1};
    sk_reply_begin(&writer, &reply, &id);
    sk_reply_key(&writer, "requests");
    sk_put_array(&reply, 0);
    sk_reply_end(&writer);
    char *text = render(sk_buffer_span(&reply));
    has_line(text, "skerry_requests_total{op=\"search\",code=\"ok\"} 0");
    has_line(text, "skerry_uptime_seconds 0");
    free(text);
    sk_buffer_deinit(&reply);
}

static void promtool_finds_nothing_to_say(void **state)
{
    (void)state;
    if (system("command -v promtool >/dev/null 2>&1") != 0) {
        print_message("promtool is not installed (package prometheus): not checked\n");
        skip();
    }
    char path[] = "/tmp/skg-XXXXXX", command[160];
    char *text = render_sample();
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(close(fd), 0);
    (void)snprintf(command, sizeof command, "test -z \"$(promtool check metrics <%s 2>&1)\"", path);
    int status = system(command);
    if (status != 0) {
        (void)snprintf(command, sizeof command, "promtool check metrics <%s", path);
        status = system(command) | 1;
    }
    (void)unlink(path);
    free(text);
    assert_int_equal(status, 0);
}

/* ---- what is wrong ---- */

static void errors_and_other_replies_are_told(void **state)
{
    (void)state;
    struct sk_buffer reply = {0}, text = {0};
    struct sk_diag d = {0};
    sk_reply_error(&reply, &no_id, SK_ERR_UNAVAILABLE, NULL);
    assert_int_equal(sk_gateway_render(&text, sk_buffer_span(&reply), "0", &d), SK_ERR_UNAVAILABLE);
    assert_non_null(strstr(d.text, "unavailable"));
    sk_buffer_clear(&reply);
    sk_reply_ok(&reply, &no_id);
    assert_int_equal(sk_gateway_render(&text, sk_buffer_span(&reply), "0", &d), SK_ERR_INVALID);
    assert_int_equal(text.size, 0);
    sk_buffer_deinit(&reply);
    sk_buffer_deinit(&text);
}

static void more_than_there_can_be_is_left_out(void **state)
{
    (void)state;
    enum { MANY = 1500 };
    static uint64_t numbers[MANY];
    struct sk_buffer reply = {0};
    struct sk_reply_writer writer;
    char name[16];
    for (unsigned i = 0; i < MANY; i++)
        numbers[i] = i;
    sk_reply_begin(&writer, &reply, &no_id);
    sk_reply_key(&writer, "requests");
    sk_put_array(&reply, 0);
    sk_reply_key(&writer, "latency");
    sk_put_array(&reply, 1);
    put_latency(&reply, "search", numbers, MANY - 1, numbers, MANY);
    sk_reply_key(&writer, "collections");
    sk_put_array(&reply, MANY);
    for (unsigned i = 0; i < MANY; i++) {
        (void)snprintf(name, sizeof name, "c%04u", i);
        put_collection(&reply, name, "", 1);
    }
    sk_reply_key(&writer, "processes");
    sk_put_array(&reply, MANY);
    for (unsigned i = 0; i < MANY; i++)
        put_process(&reply, "shard-worker", i, "ready");
    sk_reply_end(&writer);
    char *text = render(sk_buffer_span(&reply));
    assert_int_equal(count_of(text, "skerry_records{"), SK_COLLECTIONS_MAX);
    assert_int_equal(count_of(text, "skerry_process_up{"), SK_GATEWAY_PROCESSES_MAX);
    assert_null(strstr(text, "skerry_request_seconds_sum"));
    free(text);
    sk_buffer_deinit(&reply);
}

/* Cut and flipped replies, each in a buffer of its exact size; what comes out is always whole lines. */
static void hostile_replies_do_no_harm(void **state)
{
    (void)state;
    struct sk_buffer good = {0}, text = {0};
    put_stats(&good, "docs", "title");
    uint64_t random = 5;
    unsigned rendered = 0;
    for (unsigned i = 0; i < good.size + 8000; i++) {
        size_t size = i < good.size ? i : good.size;
        uint8_t *bytes = malloc(size == 0 ? 1 : size);
        assert_non_null(bytes);
        memcpy(bytes, good.bytes, size);
        for (unsigned k = 0; i >= good.size && k < 1 + i % 3; k++) {
            random = random * 6364136223846793005ULL + 1442695040888963407ULL;
            bytes[(random >> 20) % size] = (uint8_t)(random >> 50);
        }
        sk_buffer_clear(&text);
        if (sk_gateway_render(&text, sk_span_of(bytes, size), "0", NULL) == SK_ERR_OK) {
            rendered++;
            assert_int_equal(text.bytes[text.size - 1], '\n');
            assert_true(text.size < 1024 * 1024);
            assert_null(memchr(text.bytes, '\0', text.size));
        }
        char words[SK_GATEWAY_WORDS_BYTES] = "";
        (void)sk_gateway_is_ready(sk_span_of(bytes, size), words);
        assert_true(strlen(words) > 0);
        free(bytes);
    }
    assert_true(rendered > 1000); /* flips of numbers are fine */
    sk_buffer_deinit(&good);
    sk_buffer_deinit(&text);
}

/* ---- routes, readiness ---- */

static void paths_have_their_routes(void **state)
{
    (void)state;
    assert_int_equal(sk_gateway_route("GET", "/metrics"), SK_ROUTE_METRICS);
    assert_int_equal(sk_gateway_route("HEAD", "/healthz"), SK_ROUTE_HEALTH);
    assert_int_equal(sk_gateway_route("GET", "/readyz"), SK_ROUTE_READY);
    assert_int_equal(sk_gateway_route("POST", "/metrics"), SK_ROUTE_NOT_A_GET);
    assert_int_equal(sk_gateway_route("get", "/metrics"), SK_ROUTE_NOT_A_GET);
    assert_int_equal(sk_gateway_route("GET", "/metrics/"), SK_ROUTE_NONE);
    assert_int_equal(sk_gateway_route("GET", "/"), SK_ROUTE_NONE);
    assert_int_equal(sk_gateway_route("POST", "/../etc/passwd"), SK_ROUTE_NONE);
}

static bool ready(bool has_node, bool is_ready, const char *worker_state,
                  char words[SK_GATEWAY_WORDS_BYTES])
{
    struct sk_buffer reply = {0};
    struct sk_reply_writer writer;
    sk_reply_begin(&writer, &reply, &(struct sk_request_id){.is_present = true, .number = 1});
    if (has_node) {
        sk_reply_key(&writer, "node");
        sk_put_map(&reply, 1);
        sk_put_text(&reply, "ready");
        sk_put_bool(&reply, is_ready);
    }
    sk_reply_key(&writer, "processes");
    sk_put_array(&reply, 2);
    put_process(&reply, "router", 0, "running");
    put_process(&reply, "shard-worker", 0, worker_state);
    sk_reply_end(&writer);
    bool result = sk_gateway_is_ready(sk_buffer_span(&reply), words);
    sk_buffer_deinit(&reply);
    return result;
}

static void readiness_says_who_is_missing(void **state)
{
    (void)state;
    char words[SK_GATEWAY_WORDS_BYTES];
    assert_true(ready(true, true, "running", words));
    assert_string_equal(words, "ready");
    assert_false(ready(true, false, "restarting", words));
    assert_non_null(strstr(words, "shard-worker is restarting"));
    assert_false(ready(true, false, "running", words));
    assert_non_null(strstr(words, "starting"));
    assert_false(ready(false, true, "running", words));
    assert_false(sk_gateway_is_ready(sk_span_text("\xc0"), words));
    assert_non_null(strstr(words, "makes no sense"));
    struct sk_buffer reply = {0};
    sk_reply_error(&reply, &no_id, SK_ERR_BUSY, NULL);
    assert_false(sk_gateway_is_ready(sk_buffer_span(&reply), words));
    assert_non_null(strstr(words, "busy"));
    sk_buffer_deinit(&reply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_metric_of_the_surface_is_there),
        cmocka_unit_test(the_page_of_metrics_is_true),
        cmocka_unit_test(a_histogram_is_cumulative_and_in_seconds),
        cmocka_unit_test(labels_are_bounded_and_no_sample_comes_twice),
        cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(an_empty_node_has_its_metrics_too),
        cmocka_unit_test(promtool_finds_nothing_to_say),
        cmocka_unit_test(errors_and_other_replies_are_told),
        cmocka_unit_test(more_than_there_can_be_is_left_out),
        cmocka_unit_test(hostile_replies_do_no_harm),
        cmocka_unit_test(paths_have_their_routes),
        cmocka_unit_test(readiness_says_who_is_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
