/* links: sk_shell */
/* Key files, start-up, log, sd_notify, wake-up: what a shell does with files and the environment.
 */
#include "tests/harness.h"

#include "common/shell/keys.h"
#include "common/shell/log.h"
#include "common/shell/notify.h"
#include "common/shell/process.h"
#include "common/shell/wakeup.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64];

static int setup(void **state)
{
    char path[128];
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/sk-files-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/keys", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/run", dir);
    return mkdir(path, 0700);
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_text(const char *name, const char *text, mode_t mode)
{
    FILE *file = fopen(path_of(name), "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path_of(name), mode), 0);
}

/* ---- keys ---- */

static void keys_are_made_once_with_their_modes(void **state)
{
    struct sk_keys made, again, public_only;
    struct sk_diag d = {0};
    struct stat status;
    (void)state;
    assert_int_equal(sk_keys_load_or_make(&made, dir, "node", &d), SK_ERR_OK);
    assert_int_equal(strlen(made.public_key), 40);
    assert_int_equal(strlen(made.secret_key), 40);
    assert_int_equal(stat(path_of("keys/node.key"), &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_int_equal(unlink(path_of("keys/node.pub")), 0); /* written again from the secret one */
    assert_int_equal(sk_keys_load_or_make(&again, dir, "node", &d), SK_ERR_OK);
    assert_memory_equal(&made, &again, sizeof made);
    assert_int_equal(sk_keys_load_public(&public_only, path_of("keys/node.pub"), &d), SK_ERR_OK);
    assert_string_equal(public_only.public_key, made.public_key);
    assert_string_equal(public_only.secret_key, "");
    sk_keys_wipe(&made);
    assert_string_equal(made.secret_key, "");
}

static void a_key_that_others_may_read_is_refused_with_the_cure(void **state)
{
    struct sk_keys keys;
    struct sk_diag d = {0};
    (void)state;
    assert_int_equal(sk_keys_load_or_make(&keys, dir, "node", &d), SK_ERR_OK);
    static const mode_t modes[] = {0640, 0604, 0601, 0777};
    for (size_t i = 0; i < SK_COUNT_OF(modes); i++) {
        assert_int_equal(chmod(path_of("keys/node.key"), modes[i]), 0);
        assert_int_equal(sk_keys_load_or_make(&keys, dir, "node", &d), SK_ERR_FORBIDDEN);
        assert_non_null(strstr(d.text, "chmod 600"));
        assert_non_null(strstr(d.text, "keys/node.key"));
        assert_string_equal(keys.secret_key, "");
    }
}

static void a_key_file_with_other_things_in_it_is_refused(void **state)
{
    struct sk_keys keys, other;
    struct sk_diag d = {0};
    char text[256];
    (void)state;
    assert_int_equal(sk_keys_load_or_make(&keys, dir, "node", &d), SK_ERR_OK);
    assert_int_equal(sk_keys_load_or_make(&other, dir, "other", &d), SK_ERR_OK);
    static const char *const texts[] = {"", "secret-key = short\n", "secret-key\n", "\xff\xfe\n"};
    for (size_t i = 0; i < SK_COUNT_OF(texts); i++) {
        write_text("keys/node.key", texts[i], 0600);
        assert_int_equal(sk_keys_load(&keys, path_of("keys/node.key"), &d), SK_ERR_INVALID);
    }
    snprintf(text, sizeof text, "secret-key = %s\npublic-key = %s\n", other.secret_key,
             "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7");
    write_text("keys/node.key", text, 0600);
    assert_int_equal(sk_keys_load(&keys, path_of("keys/node.key"), &d), SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "not the one of the secret key"));
    snprintf(text, sizeof text, "# a comment\nsecret-key = \"%s\"\n", other.secret_key);
    write_text("keys/node.key", text, 0600);
    assert_int_equal(sk_keys_load(&keys, path_of("keys/node.key"), &d), SK_ERR_OK);
    assert_string_equal(keys.public_key,
                        other.public_key); /* derived where it does not stand there */
    assert_int_equal(sk_keys_load(&keys, dir, &d), SK_ERR_INVALID); /* a folder */
}

/* ---- start-up ---- */

struct run {
    int status;
    char out[16384];
};

/* In a process of its own, because start-up changes limits, mask and affinity. Its output and what
 * `then` returned come back. */
static struct run start(int (*then)(struct sk_process *process), unsigned flags, int argc,
                        char **argv)
{
    struct run run = {0};
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct sk_process process;
        dup2(pipe_fds[1], 1);
        dup2(pipe_fds[1], 2);
        int status = sk_process_start(&process, "router", "The node's door.", flags, argc, argv);
        status = status == -1 ? then(&process) : status;
        fflush(NULL);
        _exit(status);
    }
    close(pipe_fds[1]);
    size_t size = 0;
    ssize_t got;
    while ((got = read(pipe_fds[0], run.out + size, sizeof run.out - 1 - size)) > 0)
        size += (size_t)got;
    close(pipe_fds[0]);
    assert_int_equal(waitpid(pid, &run.status, 0), pid);
    run.status = WIFEXITED(run.status) ? WEXITSTATUS(run.status) : -WTERMSIG(run.status);
    return run;
}

#define START(then, flags, ...)                                                                    \
    start(then, flags, (int)SK_COUNT_OF(((char *[]){"skerry-router", __VA_ARGS__})),               \
          (char *[]){"skerry-router", __VA_ARGS__, NULL})

static int say_started(struct sk_process *process)
{
    char path[SK_PATH_BYTES], endpoint[SK_PATH_BYTES];
    printf("started %s port %u %s %s", process->id, process->config.client_port,
           sk_process_path(process, path, "run/x"),
           sk_process_endpoint(process, endpoint, "y.ipc"));
    return 42;
}

static void arguments_and_config_are_read(void **state)
{
    (void)state;
    write_text("skerry.conf", "client_port = 5\n", 0600);
    write_text("other.conf", "client_port = 6\n", 0600);
    char other[256], with_slash[128], wanted[256];
    snprintf(other, sizeof other, "%s", path_of("other.conf"));
    snprintf(with_slash, sizeof with_slash, "%s/", dir);
    struct run run = START(say_started, 0, "--dir", with_slash, "--number", "3", "--foreground");
    snprintf(wanted, sizeof wanted, "started router-3 port 5 %s/run/x ipc://%s/run/y.ipc", dir,
             dir);
    assert_int_equal(run.status, 42);
    assert_non_null(strstr(run.out, wanted));
    run = START(say_started, 0, "--dir", dir, "--config", other);
    assert_non_null(strstr(run.out, "port 6"));
    run = START(say_started, 0, "--dir", dir, "--print-config");
    assert_int_equal(run.status, 0);
    assert_non_null(strstr(run.out, "client_port = 5\n"));
    run = START(say_started, 0, "--help");
    assert_int_equal(run.status, 0);
    assert_non_null(strstr(run.out, "The node's door."));
    assert_non_null(strstr(run.out, "wakeup_idle_ms = 2000   (10..600000 ms)"));
    run = START(say_started, 0, "--version");
    assert_string_equal(run.out, "skerry-router " SK_VERSION "\n");
}

static void wrong_arguments_end_with_2_and_words(void **state)
{
    char long_dir[200];
    (void)state;
    assert_int_equal(START(say_started, 0, "--number", "0").status, 2);
    assert_int_equal(START(say_started, 0, "--dir", dir, "--number", "64").status, 2);
    assert_int_equal(START(say_started, 0, "--dir", dir, "--number", "-1").status, 2);
    assert_int_equal(START(say_started, 0, "--dir", dir, "--no-such").status, 2);
    assert_int_equal(START(say_started, 0, "--dir", dir, "more").status, 2);
    struct run run = START(say_started, 0, "--dir", dir, "--config", "/no/such.conf");
    assert_int_equal(run.status, 2);
    assert_non_null(strstr(run.out, "/no/such.conf"));
    memset(long_dir, 'x', sizeof long_dir);
    long_dir[0] = '/';
    long_dir[100] = '\0';
    run = START(say_started, 0, "--dir", long_dir);
    assert_int_equal(run.status, 2);
    assert_non_null(strstr(run.out, "107"));
    long_dir[100] = 'x';
    long_dir[199] = '\0';
    assert_non_null(strstr(START(say_started, 0, "--dir", long_dir).out, "107"));
    write_text("skerry.conf", "no_such_key = 1\n", 0600);
    run = START(say_started, 0, "--dir", dir);
    assert_int_equal(run.status, 2);
    assert_non_null(strstr(run.out, "no_such_key"));
}

static int count_cores(struct sk_process *process)
{
    cpu_set_t cores;
    (void)process;
    sched_getaffinity(0, sizeof cores, &cores);
    return CPU_COUNT(&cores);
}

static int count_cores_unpinned(struct sk_process *process)
{
    sk_process_unpin_thread();
    return count_cores(process);
}

static void the_query_path_shares_a_core_when_it_should(void **state)
{
    (void)state;
    int all = count_cores(NULL);
    setenv("SKERRY_WAKEUP_LATENCY", "off", 1); /* then auto pins */
    assert_int_equal(START(count_cores, SK_PROCESS_IS_QUERY_PATH, "--dir", dir).status, 1);
    assert_int_equal(START(count_cores_unpinned, SK_PROCESS_IS_QUERY_PATH, "--dir", dir).status,
                     all);
    assert_int_equal(START(count_cores, 0, "--dir", dir).status, all);
    setenv("SKERRY_QUERY_CORE", "off", 1);
    assert_int_equal(START(count_cores, SK_PROCESS_IS_QUERY_PATH, "--dir", dir).status, all);
    setenv("SKERRY_QUERY_CORE", "1023", 1); /* there is none: it runs all the same, unpinned */
    assert_int_equal(START(count_cores, SK_PROCESS_IS_QUERY_PATH, "--dir", dir).status, all);
    unsetenv("SKERRY_WAKEUP_LATENCY");
    unsetenv("SKERRY_QUERY_CORE");
}

static int say_limit(struct sk_process *process)
{
    struct rlimit limit;
    (void)process;
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur >= 4096 || limit.rlim_cur == limit.rlim_max ? 0 : 1;
}

static void open_files_are_raised_for_the_clients(void **state)
{
    struct rlimit limit, low;
    (void)state;
    getrlimit(RLIMIT_NOFILE, &limit);
    low = limit;
    low.rlim_cur = 256;
    setrlimit(RLIMIT_NOFILE, &low);
    assert_int_equal(START(say_limit, 0, "--dir", dir).status, 0);
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void a_child_of_nobody_ends_at_once(void **state)
{
    char pid[32];
    (void)state;
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    setenv("SKERRY_SUPERVISOR_PID", pid, 1);
    assert_int_equal(START(say_started, SK_PROCESS_IS_CHILD, "--dir", dir).status, 42);
    setenv("SKERRY_SUPERVISOR_PID", "1", 1); /* it has died in between */
    assert_int_equal(START(say_started, SK_PROCESS_IS_CHILD, "--dir", dir).status, 1);
    unsetenv("SKERRY_SUPERVISOR_PID");
}

static int fail_with_words(struct sk_process *process)
{
    struct sk_diag d = {0};
    (void)sk_fail(&d, SK_ERR_UNAVAILABLE, "the port is taken");
    return sk_process_fail(process, &d);
}

static void a_failed_start_leaves_its_reason(void **state)
{
    char text[64] = "";
    (void)state;
    struct run run = START(fail_with_words, 0, "--dir", dir, "--number", "2");
    assert_int_equal(run.status, 1);
    assert_non_null(strstr(run.out, "event=cannot_start"));
    FILE *file = fopen(path_of("run/router-2.reason"), "r");
    assert_non_null(file);
    assert_non_null(fgets(text, sizeof text, file));
    fclose(file);
    assert_string_equal(text, "the port is taken\n");
}

/* ---- log ---- */

static int say_often(struct sk_process *process)
{
    static const struct sk_note_kind kinds[] = {SK_NOTE_KIND(peer_gone, WARN, "peer", NULL)};
    (void)process;
    for (int i = 0; i < 50; i++)
        sk_log(SK_LEVEL_WARN, "often", "number=%d", i);
    sk_log(SK_LEVEL_DEBUG, "quiet", "a=1");
    sk_log(SK_LEVEL_INFO, "two_lines", "text=\"a\nb\"");
    sk_log_note(&kinds[0], 7, 8);
    return 0;
}

static int crash(struct sk_process *process)
{
    say_often(process);
    raise(SIGSEGV);
    return 0;
}

static unsigned count_of(const char *text, const char *what)
{
    unsigned count = 0;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at += strlen(what))
        count++;
    return count;
}

static void what_repeats_is_held_back_and_a_line_is_one_line(void **state)
{
    (void)state;
    struct run run = START(say_often, 0, "--dir", dir);
    assert_int_equal(count_of(run.out, "event=often"), 10);
    assert_int_equal(count_of(run.out, "event=quiet"), 0);
    assert_int_equal(count_of(run.out, "\n"), 12);
    assert_non_null(strstr(run.out, "level=warn process=router-0 event=peer_gone peer=7\n"));
    assert_non_null(strstr(run.out, "text=\"a b\""));
}

static void a_crash_tells_what_was_said_before(void **state)
{
    (void)state;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they take the signal */
    struct run run = START(crash, 0, "--dir", dir);
    assert_int_equal(run.status, -SIGSEGV);
    assert_int_equal(count_of(run.out, "event=often"), 60);
    assert_int_equal(count_of(run.out, "event=quiet"), 1); /* kept though not printed */
    assert_non_null(strstr(run.out, "event=crash_report_end"));
#else
    (void)crash;
    skip();
#endif
}

/* ---- systemd ---- */

static void words_reach_the_notify_socket(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[700];
    (void)state;
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%.60s/notify", dir);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    sk_notify_ready(); /* nobody is named: nothing happens */
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    sk_notify_ready();
    assert_int_equal(recv(fd, text, sizeof text, 0), 7);
    assert_memory_equal(text, "READY=1", 7);
    sk_notify_status("%s", "two\nlines");
    assert_int_equal(recv(fd, text, sizeof text, 0), 16);
    assert_memory_equal(text, "STATUS=two lines", 16);
    close(fd);
    unlink(address.sun_path);
    sk_notify_watchdog(); /* nobody listens any more */
    setenv("NOTIFY_SOCKET", "relative", 1);
    sk_notify_ready();
    unsetenv("NOTIFY_SOCKET");
    assert_int_equal(sk_notify_watchdog_us(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(sk_notify_watchdog_us(), 30000000);
    setenv("WATCHDOG_PID", "1", 1); /* meant for another process */
    assert_int_equal(sk_notify_watchdog_us(), 0);
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

/* ---- wake-up ---- */

static void wakeup_is_held_while_requests_come(void **state)
{
    struct sk_wakeup wakeup;
    (void)state;
    sk_wakeup_init(&wakeup, "off", 100);
    sk_wakeup_touch(&wakeup, 1000);
    assert_string_equal(sk_wakeup_state(&wakeup), "off");
    sk_wakeup_deinit(&wakeup);
    sk_wakeup_init(&wakeup, "adaptive", 100);
    if (!sk_wakeup_can_be_had()) {
        sk_wakeup_touch(&wakeup, 1000);
        assert_string_equal(sk_wakeup_state(&wakeup), "unavailable");
        return;
    }
    assert_string_equal(sk_wakeup_state(&wakeup), "idle");
    assert_int_equal(sk_wakeup_on_time(&wakeup, 500), UINT64_MAX);
    sk_wakeup_touch(&wakeup, 1000);
    assert_string_equal(sk_wakeup_state(&wakeup), "held");
    assert_int_equal(sk_wakeup_on_time(&wakeup, 50000), 101000);
    sk_wakeup_touch(&wakeup, 60000);
    assert_int_equal(sk_wakeup_on_time(&wakeup, 101000), 160000);
    assert_int_equal(sk_wakeup_on_time(&wakeup, 160000), UINT64_MAX);
    assert_string_equal(sk_wakeup_state(&wakeup), "idle");
    sk_wakeup_init(&wakeup, "always", 100);
    assert_string_equal(sk_wakeup_state(&wakeup), "held");
    assert_int_equal(sk_wakeup_on_time(&wakeup, UINT64_MAX - 1), UINT64_MAX);
    sk_wakeup_deinit(&wakeup);
    assert_int_equal(wakeup.fd, -1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(keys_are_made_once_with_their_modes),
        TEST(a_key_that_others_may_read_is_refused_with_the_cure),
        TEST(a_key_file_with_other_things_in_it_is_refused),
        TEST(arguments_and_config_are_read),
        TEST(wrong_arguments_end_with_2_and_words),
        TEST(the_query_path_shares_a_core_when_it_should),
        TEST(open_files_are_raised_for_the_clients),
        TEST(a_child_of_nobody_ends_at_once),
        TEST(a_failed_start_leaves_its_reason),
        TEST(what_repeats_is_held_back_and_a_line_is_one_line),
        TEST(a_crash_tells_what_was_said_before),
        TEST(words_reach_the_notify_socket),
        TEST(wakeup_is_held_while_requests_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
