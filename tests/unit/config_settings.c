/* Settings: ranges, words, files, environment, and the sample in deploy/. */
#include "tests/harness.h"

#include "common/base/config.h"
#include "common/base/metric.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct sk_diag parse(struct sk_config *config, const char *text, enum sk_err wanted)
{
    struct sk_diag d = {0};
    sk_config_init(config);
    assert_int_equal(sk_config_parse(config, "skerry.conf", text, &d), wanted);
    return d;
}

static void defaults_are_what_the_list_says(void **state)
{
    struct sk_config config;
    (void)state;
    sk_config_init(&config);
    assert_int_equal(config.client_port, 7420);
    assert_int_equal(config.http_port, 7421);
    assert_string_equal(config.http_address, "127.0.0.1");
    assert_string_equal(config.wakeup_latency, "adaptive");
    assert_int_equal(config.query_core, SK_CORE_AUTO);
    assert_int_equal(config.memory_bytes_max, 0);
}

static void a_file_is_read_with_comments_blanks_and_quotes(void **state)
{
    struct sk_config config;
    (void)state;
    parse(&config,
          "# a comment\n\n  client_port=0  # any\r\nhttp_address = \"::1\"\nquery_core = 3\n"
          "memory_bytes_max = 2G\nwakeup_latency =off",
          SK_ERR_OK);
    assert_int_equal(config.client_port, 0);
    assert_string_equal(config.http_address, "::1");
    assert_int_equal(config.query_core, 3);
    assert_int_equal(config.memory_bytes_max, 2ULL << 30);
    assert_string_equal(config.wakeup_latency, "off");
    assert_int_equal(config.workers, 1);
}

static void an_unknown_key_is_refused_with_its_line_and_the_closest(void **state)
{
    struct sk_config config;
    (void)state;
    struct sk_diag d = parse(&config, "workers = 2\nhttp_prot = 1\n", SK_ERR_UNKNOWN_FIELD);
    assert_non_null(strstr(d.text, "skerry.conf:2"));
    assert_non_null(strstr(d.text, "http_prot"));
    assert_non_null(strstr(d.text, "'http_port'"));
    assert_string_equal(d.field, "http_prot");
}

static void what_is_out_of_range_is_refused_with_the_range(void **state)
{
    static const struct {
        const char *line, *words;
    } cases[] = {
        {"client_port = 70000", "client_port: 70000, want 0..65535 port"},
        {"client_port = -1", "want 0..65535"},
        {"client_port = 1x", "want 0..65535"},
        {"client_port = 99999999999999999999999", "want 0..65535"},
        {"client_port =", "want 0..65535"},
        {"client_port = 1K", "want 0..65535"},
        {"memory_bytes_max = 99999999T", "want 0.."},
        {"memory_bytes_max = 1KK", "want 0.."},
        {"wakeup_latency = adapt", "want adaptive|off|always"},
        {"wakeup_latency = ", "want adaptive|off|always"},
        {"wakeup_latency = adaptive|off", "want adaptive|off|always"},
        {"query_core = some", "want auto, off or"},
        {"query_core = 5000", "want auto, off or"},
        {"http_address = ", "0 bytes, want 1..64"},
        {"just words", "key = value"},
    };
    struct sk_config config;
    (void)state;
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_diag d = parse(&config, cases[i].line, SK_ERR_INVALID);
        if (strstr(d.text, cases[i].words) == NULL)
            fail_msg("%s: %s", cases[i].line, d.text);
    }
}

static void a_file_that_is_none_is_refused_and_never_crashes(void **state)
{
    char path[] = "/tmp/sk-config-XXXXXX";
    struct sk_config config;
    struct sk_diag d = {0};
    (void)state;
    int fd = mkstemp(path);
    static char bytes[SK_CONFIG_FILE_BYTES_MAX + 10];
    unsigned seed = 1;
    for (int round = 0; round < 200; round++) {
        size_t size = (size_t)rand_r(&seed) % 4000;
        for (size_t i = 0; i < size; i++)
            bytes[i] = (char)rand_r(&seed);
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, bytes, size, 0), (ssize_t)size);
        sk_config_init(&config);
        if (size > 100)
            assert_int_not_equal(sk_config_read_file(&config, path, &d), SK_ERR_OK);
    }
    memset(bytes, '\n', sizeof bytes);
    assert_int_equal(pwrite(fd, bytes, sizeof bytes, 0), (ssize_t)sizeof bytes);
    assert_int_equal(sk_config_read_file(&config, path, &d), SK_ERR_TOO_LARGE);
    memset(bytes, 'a', 3000);
    assert_int_equal(pwrite(fd, bytes, 3000, 0), 3000);
    assert_int_equal(ftruncate(fd, 4000), 0);
    assert_int_not_equal(sk_config_read_file(&config, path, &d), SK_ERR_OK);
    close(fd);
    unlink(path);
    assert_int_equal(sk_config_read_file(&config, path, &d), SK_ERR_NOT_FOUND);
    assert_int_not_equal(sk_config_read_file(&config, "/tmp", &d), SK_ERR_OK);
}

static void the_environment_wins_over_the_file(void **state)
{
    struct sk_config config;
    struct sk_diag d = {0};
    (void)state;
    parse(&config, "workers = 2\n", SK_ERR_OK);
    setenv("SKERRY_WORKERS", "3", 1);
    setenv("SKERRY_DIR", "not a setting", 1);
    assert_int_equal(sk_config_read_environment(&config, &d), SK_ERR_OK);
    assert_int_equal(config.workers, 3);
    setenv("SKERRY_WORKERS", "none", 1);
    assert_int_equal(sk_config_read_environment(&config, &d), SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "SKERRY_WORKERS"));
    unsetenv("SKERRY_WORKERS");
    unsetenv("SKERRY_DIR");
}

static char *print_to_text(void (*print)(FILE *to, const struct sk_config *config),
                           const struct sk_config *config)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    print(to, config);
    fclose(to);
    return text;
}

static void print_sample(FILE *to, const struct sk_config *config)
{
    (void)config;
    sk_config_print_sample(to);
}

static void print_help(FILE *to, const struct sk_config *config)
{
    (void)config;
    sk_config_print_help(to);
}

static void what_is_printed_is_read_again_as_the_same(void **state)
{
    struct sk_config config, again;
    struct sk_diag d = {0};
    (void)state;
    parse(&config, "client_port = 1\nquery_core = off\nlog_level = debug\nmemory_bytes_max = 3K\n",
          SK_ERR_OK);
    char *text = print_to_text(sk_config_print, &config);
    memset(&again, 0, sizeof again); /* nothing is left to a default */
    assert_int_equal(sk_config_parse(&again, "printed", text, &d), SK_ERR_OK);
    assert_memory_equal(&config, &again, sizeof config);
    free(text);
}

static void what_is_put_into_the_environment_is_read_again_as_the_same(void **state)
{
    struct sk_config config, again;
    struct sk_diag d = {0};
    (void)state;
    parse(&config, "workers = 3\nquery_core = 1\nhttp_address = ::1\nmemory_bytes_max = 1T\n",
          SK_ERR_OK);
    assert_int_equal(sk_config_write_environment(&config, &d), SK_ERR_OK);
    memset(&again, 0, sizeof again);
    assert_int_equal(sk_config_read_environment(&again, &d), SK_ERR_OK);
    char *text = print_to_text(sk_config_print, &config);
    char *text_again = print_to_text(sk_config_print, &again);
    assert_string_equal(text, text_again);
    free(text);
    free(text_again);
    sk_config_init(&config);
    assert_int_equal(sk_config_write_environment(&config, &d), SK_ERR_OK);
}

static void the_sample_in_deploy_is_the_one_of_the_list(void **state)
{
    (void)state;
    char *text = print_to_text(print_sample, NULL);
    size_t size = strlen(text);
    char *file_text = calloc(1, size + 2);
    FILE *file = fopen(SK_SOURCE_DIR "/deploy/skerry.conf", "r");
    assert_non_null(file);
    (void)!fread(file_text, 1, size + 1, file);
    fclose(file);
    assert_string_equal(file_text, text); /* make it with: test_config_settings --print-sample */
    free(file_text);
    free(text);
}

static void the_sample_with_its_comments_taken_off_is_the_default(void **state)
{
    struct sk_config config, defaults;
    (void)state;
    char *text = print_to_text(print_sample, NULL);
    for (char *c = text; *c != '\0'; c++) /* "#key = value" is a setting, "# words" is not */
        if (*c == '#' && c[1] != ' ')
            *c = ' ';
    parse(&config, text, SK_ERR_OK);
    sk_config_init(&defaults);
    assert_memory_equal(&config, &defaults, sizeof config);
    free(text);
}

static void help_names_every_key_with_default_and_range(void **state)
{
    (void)state;
    char *text = print_to_text(print_help, NULL);
#define IS_NAMED(key, ...) assert_non_null(strstr(text, "  " #key " = "));
    SK_SETTINGS(IS_NAMED)
#undef IS_NAMED
    assert_non_null(strstr(text, "client_port = 7420   (0..65535 port)"));
    free(text);
}

static void a_histogram_puts_values_under_their_bound(void **state)
{
    struct sk_histogram one = {0}, two = {0};
    (void)state;
    for (unsigned i = 1; i < SK_HISTOGRAM_BOUNDS; i++)
        assert_true(sk_histogram_bounds_us[i] > sk_histogram_bounds_us[i - 1]);
    assert_int_equal(sk_histogram_quantile_us(&one, 0.5), 0);
    sk_histogram_add(&one, 25); /* inclusive */
    sk_histogram_add(&one, 26);
    sk_histogram_add(&two, UINT32_MAX); /* above every bound */
    sk_histogram_merge(&one, &two);
    assert_int_equal(one.counts[0], 1);
    assert_int_equal(one.counts[1], 1);
    assert_int_equal(one.counts[SK_HISTOGRAM_BOUNDS], 1);
    assert_int_equal(one.count, 3);
    assert_int_equal(one.sum_us, 51ULL + UINT32_MAX);
    assert_int_equal(sk_histogram_quantile_us(&one, 0.01), 25);
    assert_int_equal(sk_histogram_quantile_us(&one, 0.5), 50);
    assert_int_equal(sk_histogram_quantile_us(&one, 1.0), 10000000);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_what_the_list_says),
        cmocka_unit_test(a_file_is_read_with_comments_blanks_and_quotes),
        cmocka_unit_test(an_unknown_key_is_refused_with_its_line_and_the_closest),
        cmocka_unit_test(what_is_out_of_range_is_refused_with_the_range),
        cmocka_unit_test(a_file_that_is_none_is_refused_and_never_crashes),
        cmocka_unit_test(the_environment_wins_over_the_file),
        cmocka_unit_test(what_is_printed_is_read_again_as_the_same),
        cmocka_unit_test(what_is_put_into_the_environment_is_read_again_as_the_same),
        cmocka_unit_test(the_sample_in_deploy_is_the_one_of_the_list),
        cmocka_unit_test(the_sample_with_its_comments_taken_off_is_the_default),
        cmocka_unit_test(help_names_every_key_with_default_and_range),
        cmocka_unit_test(a_histogram_puts_values_under_their_bound),
    };
    if (argc == 2 && strcmp(argv[1], "--print-sample") == 0) {
        sk_config_print_sample(stdout);
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
