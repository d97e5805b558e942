/* skerry node start | stop | status: the supervisor as a child that outlives us. */
#include "tools/skerry/commands.h"
#include "tools/skerry/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <poll.h>
#include <unistd.h>

enum {
    START_TIMEOUT_S = 60,
    STOP_TIMEOUT_S = 60,
    SOCKET_PATH_BYTES_MAX = 107,
    LOG_TAIL_BYTES = 2000
};

static struct {
    const char *config;
    bool foreground;
    uint32_t timeout_s;
} options;

static const struct cli_option start_options[] = {
    {"config", CLI_TEXT, &options.config, "FILE", "settings instead of DIR/skerry.conf"},
    {"foreground", CLI_FLAG, &options.foreground, NULL, "become the node: returns when it ends"},
    {"timeout-s", CLI_U32, &options.timeout_s, "S", "how long to wait until it is ready (60)"},
    {0},
};

static const struct cli_option stop_options[] = {
    {"timeout-s", CLI_U32, &options.timeout_s, "S", "how long to wait until it has ended (60)"},
    {0},
};

static int need_dir(void)
{
    const char *dir = getenv("SKERRY_DIR");
    if (cli_settings.connect != NULL)
        return cli_usage("the commands of 'node' work on this machine: give --dir, not --connect");
    if (cli_settings.dir == NULL && dir != NULL && dir[0] != '\0')
        cli_settings.dir = dir;
    return cli_settings.dir == NULL ? cli_usage("which node? give --dir DIR") : CLI_DONE;
}

static json_t *read_node_json(void)
{
    char path[PATH_MAX];
    json_error_t problem;
    snprintf(path, sizeof path, "%s/run/node.json", cli_settings.dir);
    return json_load_file(path, 0, &problem);
}

/* The folder after --dir on the command line of a process is ours. */
static bool is_of_this_folder(pid_t pid)
{
    char path[PATH_MAX], line[2 * PATH_MAX];
    struct stat ours, theirs;
    snprintf(path, sizeof path, "/proc/%ld/cmdline", (long)pid);
    FILE *file = fopen(path, "re");
    size_t size = file == NULL ? 0 : fread(line, 1, sizeof line - 1, file);
    if (file != NULL)
        fclose(file);
    line[size] = '\0';
    const char *dir = NULL;
    for (size_t at = 0; dir == NULL && at < size; at += strlen(line + at) + 1) {
        if (strcmp(line + at, "--dir") == 0)
            dir = line + at + strlen("--dir") + 1;
        else if (strncmp(line + at, "--dir=", 6) == 0)
            dir = line + at + 6;
    }
    if (dir == NULL || dir >= line + size)
        return false;
    if (dir[0] == '/')
        snprintf(path, sizeof path, "%s", dir);
    else
        snprintf(path, sizeof path, "/proc/%ld/cwd/%.*s", (long)pid, PATH_MAX - 64, dir);
    return stat(path, &theirs) == 0 && stat(cli_settings.dir, &ours) == 0 &&
           ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

/* Neither gone, nor a dead child that nobody has collected, nor another program or another node's
 * supervisor with that number: node.json may be older than the last start of the machine. */
static bool is_supervisor(pid_t pid)
{
    char path[64], line[512] = "";
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *file = pid > 0 ? fopen(path, "re") : NULL;
    if (file == NULL)
        return false;
    bool is_read = fgets(line, sizeof line, file) != NULL;
    fclose(file);
    const char *name = strchr(line, '('), *end = strrchr(line, ')');
    return is_read && name != NULL && end != NULL && end[1] == ' ' && end[2] != 'Z' &&
           end[2] != 'X' && strncmp(name + 1, "skerry-supervis", 15) == 0 && is_of_this_folder(pid);
}

static pid_t running_pid(json_t *node)
{
    pid_t pid = (pid_t)json_integer_value(json_object_get(node, "pid"));
    return is_supervisor(pid) ? pid : 0;
}

/* ---- start ---- */

static bool find_supervisor(char *path, size_t size)
{
    static const char *const beside[] = {"skerry-supervisor", "../libexec/skerry/skerry-supervisor",
                                         "../lib/skerry/skerry-supervisor"};
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash = length > 0 ? (self[length] = '\0', strrchr(self, '/')) : NULL;
    if (slash != NULL)
        *slash = '\0';
    for (size_t i = 0; slash != NULL && i < SK_COUNT_OF(beside); i++)
        if (snprintf(path, size, "%s/%s", self, beside[i]) < (int)size && access(path, X_OK) == 0)
            return true;
    char list[PATH_MAX], *rest = NULL;
    snprintf(list, sizeof list, "%s", getenv("PATH") == NULL ? "" : getenv("PATH"));
    for (char *dir = strtok_r(list, ":", &rest); dir != NULL; dir = strtok_r(NULL, ":", &rest))
        if (snprintf(path, size, "%s/skerry-supervisor", dir) < (int)size &&
            access(path, X_OK) == 0)
            return true;
    return false;
}

/* below: "" for the node's folder itself, or "/log". */
static int make_folder(const char *below)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s%s", cli_settings.dir, below);
    for (char *c = path + 1; *c != '\0'; c++)
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(path, 0755); /* the last one tells */
            *c = '/';
        }
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return cli_failed("cannot make the folder '%s': %s", path, strerror(errno));
    return CLI_DONE;
}

/* The datagram socket on which the supervisor says READY=1 and STATUS=..., as to systemd. */
static int open_notify(char *name, size_t size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(name, size, "@skerry-start-%ld", (long)getpid());
    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s", name + 1);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, length) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static SK_PRINTF(2, 3) void child_fails(int pipe_fd, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)!write(pipe_fd, text, size < 0 ? 0 : (size_t)size);
    _exit(127);
}

static void exec_supervisor(const char *path)
{
    const char *const with_config[] = {path,       "--dir",        cli_settings.dir,
                                       "--config", options.config, NULL};
    const char *const without[] = {path, "--dir", cli_settings.dir, NULL};
    execv(path, (char *const *)(uintptr_t)(options.config != NULL ? with_config : without));
}

static pid_t spawn(const char *path, const char *notify_name, const char *log_path, int pipe_fd)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0)
        child_fails(pipe_fd, "cannot write '%s': %s", log_path, strerror(errno));
    if (setsid() < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
        child_fails(pipe_fd, "cannot detach: %s", strerror(errno));
    setenv("NOTIFY_SOCKET", notify_name, 1);
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    exec_supervisor(path);
    child_fails(pipe_fd, "cannot run '%s': %s", path, strerror(errno));
    return -1;
}

static void print_log_tail(const char *log_path, off_t from)
{
    char text[LOG_TAIL_BYTES + 1];
    int fd = open(log_path, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    if (end - from > LOG_TAIL_BYTES)
        from = end - LOG_TAIL_BYTES;
    ssize_t size = fd < 0 || end <= from ? 0 : pread(fd, text, LOG_TAIL_BYTES, from);
    if (fd >= 0)
        close(fd);
    const char *line = size > 0 && from > 0 ? memchr(text, '\n', (size_t)size) : NULL;
    line = line == NULL ? text : line + 1; /* a whole line, where it was cut */
    if (size > 0)
        fprintf(stderr, "%.*s", (int)(text + size - line), line);
}

/* true once the supervisor has said READY=1; keeps the last STATUS=. */
static bool read_notify(int fd, char *status, size_t size)
{
    char text[1024];
    bool is_ready = false;
    ssize_t got;
    while ((got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT)) > 0) {
        char *rest = NULL;
        text[got] = '\0';
        for (char *line = strtok_r(text, "\n", &rest); line != NULL;
             line = strtok_r(NULL, "\n", &rest)) {
            if (strcmp(line, "READY=1") == 0)
                is_ready = true;
            if (strncmp(line, "STATUS=", 7) == 0)
                snprintf(status, size, "%s", line + 7);
        }
    }
    return is_ready;
}

static int wait_until_ready(pid_t pid, int notify_fd, int pipe_fd, const char *log_path,
                            off_t log_from)
{
    char words[600] = "", status[300] = "";
    double give_up_s = cli_now_s() + (options.timeout_s == 0 ? START_TIMEOUT_S : options.timeout_s);
    ssize_t size = read(pipe_fd, words, sizeof words - 1); /* ends when exec has closed it */
    if (size > 0)
        return cli_failed("%s", words);
    while (cli_now_s() < give_up_s) {
        int ended = 0;
        struct pollfd item = {notify_fd, POLLIN, 0};
        poll(&item, 1, 50);
        if (read_notify(notify_fd, status, sizeof status))
            return CLI_DONE;
        if (waitpid(pid, &ended, WNOHANG) != pid)
            continue;
        if (status[0] == '\0') /* else the reason is known */
            print_log_tail(log_path, log_from);
        if (WIFSIGNALED(ended))
            return cli_failed("the node ended by signal %d before it was ready; its log is %s",
                              WTERMSIG(ended), log_path);
        return cli_failed("the node ended with status %d before it was ready%s%s; its log is %s",
                          WEXITSTATUS(ended), status[0] == '\0' ? "" : ": ", status, log_path);
    }
    print_log_tail(log_path, log_from);
    kill(pid, SIGTERM);
    return cli_failed("the node was not ready in %u s%s%s and was told to stop; its log is %s",
                      options.timeout_s == 0 ? START_TIMEOUT_S : options.timeout_s,
                      status[0] == '\0' ? "" : ": ", status, log_path);
}

static int print_started(bool was_running)
{
    json_t *node = read_node_json();
    if (node == NULL)
        return cli_failed("the node says that it is ready, but '%s/run/node.json' cannot be read",
                          cli_settings.dir);
    if (cli_settings.json)
        return cli_print_json(node);
    const json_t *endpoints = json_object_get(node, "endpoints");
    printf("%s  pid %ld\n  local  %s\n  tcp    %s\n  http   %s\n  key    %s\n",
           was_running ? "already running" : "ready",
           (long)json_integer_value(json_object_get(node, "pid")),
           cli_json_text(endpoints, "client_ipc"), cli_json_text(endpoints, "client_tcp"),
           cli_json_text(endpoints, "http"), cli_json_text(node, "public_key"));
    json_decref(node);
    return CLI_DONE;
}

static int start_detached(const char *path)
{
    char notify_name[64], log_path[PATH_MAX];
    struct stat log_status = {0};
    int pipe_fds[2], status = make_folder("/log");
    if (status != CLI_DONE)
        return status;
    snprintf(log_path, sizeof log_path, "%s/log/node.log", cli_settings.dir);
    (void)stat(log_path, &log_status);
    int notify_fd = open_notify(notify_name, sizeof notify_name);
    if (notify_fd < 0 || pipe2(pipe_fds, O_CLOEXEC) != 0)
        return cli_failed("cannot make a socket to hear from the node: %s", strerror(errno));
    pid_t pid = spawn(path, notify_name, log_path, pipe_fds[1]);
    close(pipe_fds[1]);
    status = pid < 0 ? cli_failed("cannot fork: %s", strerror(errno))
                     : wait_until_ready(pid, notify_fd, pipe_fds[0], log_path, log_status.st_size);
    close(pipe_fds[0]);
    close(notify_fd);
    return status == CLI_DONE ? print_started(false) : status;
}

static int node_start(int count, char **arguments)
{
    char path[PATH_MAX];
    (void)count;
    (void)arguments;
    int status = need_dir();
    if (status != CLI_DONE)
        return status;
    if (strlen(cli_settings.dir) + strlen("/run/keeper-pub.ipc") > SOCKET_PATH_BYTES_MAX)
        return cli_failed("the folder's socket path '%s/run/keeper-pub.ipc' would pass %d bytes: "
                          "take a shorter path, or a relative one",
                          cli_settings.dir, SOCKET_PATH_BYTES_MAX);
    json_t *node = read_node_json();
    pid_t pid = running_pid(node);
    json_decref(node);
    if (pid != 0)
        return options.foreground ? cli_failed("a node runs in '%s' already (pid %ld)",
                                               cli_settings.dir, (long)pid)
                                  : print_started(true);
    if (!find_supervisor(path, sizeof path))
        return cli_failed("no skerry-supervisor beside this command, in its libexec, or in PATH");
    status = make_folder("");
    if (status != CLI_DONE)
        return status;
    if (options.foreground) {
        exec_supervisor(path);
        return cli_failed("cannot run '%s': %s", path, strerror(errno));
    }
    return start_detached(path);
}

const struct cli_command cli_node_start = {
    .name = "node start",
    .arguments = "",
    .summary = "Start the node of a folder; returns when it is ready",
    .details =
        "The folder is made where there is none. The node goes on when this command has ended;\n"
        "what it says is in DIR/log/node.log; past log_bytes_max (16M) that becomes node.log.1.",
    .options = start_options,
    .run = node_start,
};

/* ---- stop ---- */

static int node_stop(int count, char **arguments)
{
    (void)count;
    (void)arguments;
    int status = need_dir();
    if (status != CLI_DONE)
        return status;
    json_t *node = read_node_json();
    pid_t pid = running_pid(node);
    json_decref(node);
    bool was_running = pid != 0;
    if (was_running && kill(pid, SIGTERM) != 0 && errno != ESRCH)
        return cli_failed("cannot stop the node (pid %ld): %s", (long)pid, strerror(errno));
    uint32_t timeout_s = options.timeout_s == 0 ? STOP_TIMEOUT_S : options.timeout_s;
    double started_s = cli_now_s();
    while (was_running && is_supervisor(pid)) {
        if (cli_now_s() - started_s > timeout_s)
            return cli_failed("the node (pid %ld) has not ended in %u s; it goes on stopping",
                              (long)pid, timeout_s);
        usleep(10000);
    }
    if (cli_settings.json)
        return cli_print_json(json_pack("{s:b,s:b}", "stopped", 1, "was_running", was_running));
    printf("%s\n", was_running ? "stopped" : "no node was running");
    return CLI_DONE;
}

const struct cli_command cli_node_stop = {
    .name = "node stop",
    .arguments = "",
    .summary = "Stop the node of a folder; returns when it has ended",
    .options = stop_options,
    .run = node_stop,
};

/* ---- status ---- */

static int not_running(void)
{
    if (cli_settings.json)
        printf("{\"ready\":false,\"processes\":[]}\n");
    else
        fprintf(stderr,
                "skerry: no node runs in '%s'; start one with: skerry node start --dir %s\n",
                cli_settings.dir, cli_settings.dir);
    return CLI_UNREACHABLE;
}

static void print_processes(const json_t *processes)
{
    static const char *const heads[] = {"process", "pid", "state", "restarts", "memory"};
    struct cli_table *table = cli_table_new(5, heads);
    size_t i;
    json_t *process;
    json_array_foreach(processes, i, process)
    {
        char bytes[32], name[64];
        cli_table_cell(table, "%s", watch_process_name(process, name, sizeof name));
        cli_table_cell(table, "%ld", (long)cli_json_number(process, "pid"));
        cli_table_cell(table, "%s", cli_json_text(process, "state"));
        cli_table_cell(table, "%ld", (long)cli_json_number(process, "restarts"));
        cli_table_cell(table, "%s", cli_bytes_text(cli_json_number(process, "rss_bytes"), bytes));
    }
    cli_table_print(&table);
}

static int print_status(const struct skerry_reply *reply)
{
    json_error_t problem;
    char *text = skerry_reply_json(reply);
    json_t *status = text == NULL ? NULL : json_loads(text, 0, &problem);
    skerry_text_free(&text);
    if (status == NULL)
        return cli_failed("the supervisor's reply cannot be shown as JSON");
    const json_t *endpoints = json_object_get(status, "endpoints");
    const json_t *wakeup = json_object_get(status, "wakeup");
    bool is_ready = json_is_true(json_object_get(status, "ready"));
    printf("%s  local %s  tcp %s  http %s\nkey %s\n", is_ready ? "ready" : "not ready",
           cli_json_text(endpoints, "client_ipc"), cli_json_text(endpoints, "client_tcp"),
           cli_json_text(endpoints, "http"), cli_json_text(status, "public_key"));
    if (json_is_object(wakeup))
        printf("wake-up %s (%s)\n", cli_json_text(wakeup, "mode"), cli_json_text(wakeup, "state"));
    putchar('\n');
    print_processes(json_object_get(status, "processes"));
    json_decref(status);
    return CLI_DONE;
}

static int ask_supervisor(void)
{
    char endpoint[256];
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    int status = CLI_DONE;
    snprintf(endpoint, sizeof endpoint, "ipc://%s/run/supervisor.ipc", cli_settings.dir);
    struct skerry *supervisor = sk_client_open(endpoint, NULL, false, &error);
    if (supervisor == NULL || skerry_call(supervisor, "node_status", (struct skerry_bytes){0},
                                          cli_settings.deadline_ms, &reply, &error) != SKERRY_OK)
        status = cli_error(&error);
    else
        status = cli_settings.json ? cli_print_reply(reply) : print_status(reply);
    skerry_reply_free(&reply);
    skerry_close(&supervisor);
    return status;
}

static int node_status(int count, char **arguments)
{
    (void)count;
    (void)arguments;
    int status = need_dir();
    if (status != CLI_DONE)
        return status;
    json_t *node = read_node_json();
    pid_t pid = running_pid(node);
    json_decref(node);
    return pid == 0 ? not_running() : ask_supervisor();
}

const struct cli_command cli_node_status = {
    .name = "node status",
    .arguments = "",
    .summary = "Show the processes of the node of a folder",
    .run = node_status,
};
