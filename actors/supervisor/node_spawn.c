#include "actors/supervisor/node_spawn.h"

#include "common/shell/log.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

enum { ENVIRONMENT_MAX = 1024, OWN_VARIABLES = 2, VARIABLE_BYTES = 64, EXEC_FAILED = 127 };

/* ---- where the executables are ---- */

static void executable_path(const struct node_spawn *self, const char *name, char *out, size_t size)
{
    snprintf(out, size, "%s/skerry-%s", self->folder, name);
}

enum sk_err node_spawn_init(struct node_spawn *self, const struct sk_process *process,
                            struct sk_diag *d)
{
    static const char *const names[] = {"metadata-keeper", "shard-worker", "router", "gateway"};
    char path[2 * SK_PATH_BYTES];
    memset(self, 0, sizeof *self);
    self->process = process;
    ssize_t size = readlink("/proc/self/exe", self->folder, sizeof self->folder - 1);
    char *slash = size > 0 ? strrchr(self->folder, '/') : NULL;
    if (slash == NULL)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot find out where this executable is: %s",
                       strerror(errno));
    *slash = '\0';
    for (size_t i = 0; i < SK_COUNT_OF(names); i++) {
        executable_path(self, names[i], path, sizeof path);
        if (access(path, X_OK) != 0)
            return sk_fail(d, SK_ERR_UNAVAILABLE, "cannot run '%s': %s", path, strerror(errno));
    }
    return SK_ERR_OK;
}

/* ---- starting ---- */

/* Ours minus what is meant for us alone, plus what the child must know. */
static void make_environment(const char **out, char own[OWN_VARIABLES][VARIABLE_BYTES],
                             const char *name, uint32_t port)
{
    static const char *const kept_back[] = {
        "NOTIFY_SOCKET=", "WATCHDOG_USEC=", "WATCHDOG_PID=", "SKERRY_SUPERVISOR_PID="};
    size_t count = 0;
    snprintf(own[0], VARIABLE_BYTES, "SKERRY_SUPERVISOR_PID=%ld", (long)getpid());
    out[count++] = own[0];
    if (port != 0) {
        const char *key = strcmp(name, "gateway") == 0 ? "SKERRY_HTTP_PORT" : "SKERRY_CLIENT_PORT";
        snprintf(own[1], VARIABLE_BYTES, "%s=%" PRIu32, key, port);
        out[count++] = own[1];
    }
    for (char **at = environ; *at != NULL && count < ENVIRONMENT_MAX - 1; at++) {
        bool is_kept_back = port != 0 && strncmp(*at, own[1], strcspn(own[1], "=") + 1) == 0;
        for (size_t i = 0; i < SK_COUNT_OF(kept_back); i++)
            is_kept_back |= strncmp(*at, kept_back[i], strlen(kept_back[i])) == 0;
        if (!is_kept_back)
            out[count++] = *at;
    }
    out[count] = NULL;
}

/* Between fork and exec, in a process that had threads: only what is safe there. */
static void become(const char *path, const char *const *arguments, const char *const *environment)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL); /* we have SIGTERM, SIGINT and SIGCHLD blocked */
    signal(SIGPIPE, SIG_DFL);
    execve(path, (char *const *)(uintptr_t)arguments, (char *const *)(uintptr_t)environment);
    _exit(EXEC_FAILED);
}

pid_t node_spawn_start(void *impl, const char *name, uint32_t number, uint32_t port)
{
    struct node_spawn *self = impl;
    const struct sk_process *process = self->process;
    static const char *environment[ENVIRONMENT_MAX];
    char own[OWN_VARIABLES][VARIABLE_BYTES], path[2 * SK_PATH_BYTES], number_text[16], id[64];
    const char *arguments[] = {path, "--dir", process->dir, "--number", number_text, NULL};
    char ignored[8];
    executable_path(self, name, path, sizeof path);
    snprintf(number_text, sizeof number_text, "%" PRIu32, number);
    snprintf(id, sizeof id, "%s-%" PRIu32, name, number);
    node_spawn_reason(self, id, ignored, sizeof ignored); /* of an earlier one */
    make_environment(environment, own, name, port);
    pid_t pid = fork();
    if (pid == 0)
        become(path, arguments, environment);
    if (pid < 0)
        sk_log(SK_LEVEL_ERROR, "cannot_fork", "process=%s reason=\"%s\"", id, strerror(errno));
    return pid;
}

void node_spawn_kill(void *impl, pid_t pid, int signal_number)
{
    (void)impl;
    SK_CHECK(pid > 0); /* 0 and -1 mean groups */
    (void)kill(pid, signal_number);
}

void node_spawn_reason(const struct node_spawn *self, const char *id, char *out, size_t size)
{
    char path[SK_PATH_BYTES], below[96];
    snprintf(below, sizeof below, "run/%s.reason", id);
    FILE *file = fopen(sk_process_path(self->process, path, below), "re");
    out[0] = '\0';
    if (file == NULL)
        return;
    if (fgets(out, (int)size, file) != NULL)
        out[strcspn(out, "\n")] = '\0';
    fclose(file);
    (void)unlink(path);
}

/* ---- looking ---- */

struct sk_supervisor_usage node_spawn_usage(void *impl, pid_t pid)
{
    struct sk_supervisor_usage usage = {0};
    char path[64], line[1024];
    unsigned long long user = 0, system = 0;
    long long pages = 0;
    (void)impl;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return usage;
    const char *rest = fgets(line, sizeof line, file) != NULL ? strrchr(line, ')') : NULL;
    fclose(file);
    /* Behind the name: 3 state ... 14 utime, 15 stime ... 24 rss (proc(5)). */
    if (rest == NULL || sscanf(rest + 1,
                               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d "
                               "%*d %*d %*d %*u %*u %lld",
                               &user, &system, &pages) != 3)
        return usage;
    usage.cpu_s = (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
    usage.rss_bytes = (uint64_t)(pages > 0 ? pages : 0) * (uint64_t)sysconf(_SC_PAGESIZE);
    return usage;
}
