#include "common/shell/process.h"

#include "common/shell/log.h"
#include "common/shell/wakeup.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, FILES_OF_OUR_OWN = 256 };

static cpu_set_t cores_at_start;
static bool is_pinned;

void sk_process_unpin_thread(void)
{
    if (is_pinned)
        (void)sched_setaffinity(0, sizeof cores_at_start, &cores_at_start);
}

const char *sk_process_path(const struct sk_process *self, char out[SK_PATH_BYTES],
                            const char *below)
{
    snprintf(out, SK_PATH_BYTES, "%s/%s", self->dir, below);
    return out;
}

const char *sk_process_endpoint(const struct sk_process *self, char out[SK_PATH_BYTES],
                                const char *socket)
{
    snprintf(out, SK_PATH_BYTES, "ipc://%s/run/%s", self->dir, socket);
    return out;
}

int sk_process_fail(const struct sk_process *self, const struct sk_diag *d)
{
    char path[SK_PATH_BYTES], below[sizeof self->id + 16];
    sk_log(SK_LEVEL_ERROR, "cannot_start", "code=%s reason=\"%s\"", sk_err_name(d->code), d->text);
    /* Where the supervisor finds it and can say it to whoever waits for the node. */
    snprintf(below, sizeof below, "run/%s.reason", self->id);
    FILE *file = fopen(sk_process_path(self, path, below), "we");
    if (file != NULL) {
        fprintf(file, "%s\n", d->text);
        fclose(file);
    }
    return EXIT_FAILURE;
}

/* ---- arguments ---- */

static void print_help(const struct sk_process *self, const char *summary)
{
    printf("Usage: skerry-%s --dir DIR [--config FILE] [--number N]\n"
           "%s\n\n"
           "  --dir DIR       the node's folder\n"
           "  --config FILE   settings instead of DIR/skerry.conf\n"
           "  --number N      which one of its kind, from 0\n"
           "  --foreground    accepted: it always stays in the foreground\n"
           "  --print-config  the effective settings, and end\n"
           "  --version, --help\n\n"
           "Settings: lines `key = value` in the file; SKERRY_<KEY> in the environment wins.\n",
           self->name, summary);
    sk_config_print_help(stdout);
}

static int wrong(const struct sk_process *self, const char *text)
{
    fprintf(stderr, "skerry-%s: %s; see skerry-%s --help\n", self->name, text, self->name);
    return EXIT_USAGE;
}

static int parse_number(struct sk_process *self, const char *text)
{
    char *end = NULL;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno != 0 || *end != '\0' || number > 63)
        return wrong(self, "--number wants 0..63");
    self->number = (uint32_t)number;
    return -1;
}

/* -1: go on. *prints_config: --print-config was there. */
static int parse_arguments(struct sk_process *self, const char *summary, int argc, char **argv,
                           bool *prints_config)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'},    {"config", required_argument, NULL, 'c'},
        {"number", required_argument, NULL, 'n'}, {"foreground", no_argument, NULL, 'f'},
        {"print-config", no_argument, NULL, 'p'}, {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},      {NULL, 0, NULL, 0}};
    int option, status = -1;
    while (status == -1 && (option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == 'd' || option == 'c') {
            char *to = option == 'd' ? self->dir : self->config_path;
            size_t size = option == 'd' ? sizeof self->dir : sizeof self->config_path;
            if (strlen(optarg) >= size)
                status = wrong(self, "the path is too long: a socket's may have 107 bytes");
            else
                memcpy(to, optarg, strlen(optarg) + 1);
        } else if (option == 'n') {
            status = parse_number(self, optarg);
        } else if (option == 'p') {
            *prints_config = true;
        } else if (option == 'h') {
            print_help(self, summary);
            status = EXIT_SUCCESS;
        } else if (option == 'v') {
            printf("skerry-%s %s\n", self->name, SK_VERSION);
            status = EXIT_SUCCESS;
        } else if (option != 'f') {
            status = wrong(self, "wrong arguments"); /* getopt has said which */
        }
    }
    if (status == -1 && optind < argc)
        return wrong(self, "it takes options only");
    if (status == -1 && self->dir[0] == '\0' && !(*prints_config && self->config_path[0] != '\0'))
        return wrong(self, "which node? give --dir DIR");
    return status;
}

static void cut_slashes(char *dir)
{
    size_t size = strlen(dir);
    while (size > 1 && dir[size - 1] == '/')
        dir[--size] = '\0';
}

/* ---- config ---- */

static enum sk_err read_config(struct sk_process *self, struct sk_diag *d)
{
    char path[SK_PATH_BYTES];
    sk_config_init(&self->config);
    if (getenv("SKERRY_SUPERVISOR_PID") != NULL) /* it has put what it has read there */
        return sk_config_read_environment(&self->config, d);
    bool is_named = self->config_path[0] != '\0';
    enum sk_err rc = sk_config_read_file(
        &self->config, is_named ? self->config_path : sk_process_path(self, path, "skerry.conf"),
        d);
    if (rc == SK_ERR_NOT_FOUND && !is_named)
        rc = SK_ERR_OK; /* every setting has a default */
    return rc == SK_ERR_OK ? sk_config_read_environment(&self->config, d) : rc;
}

/* ---- limits, cores ---- */

static void allow_files(const struct sk_process *self)
{
    struct rlimit limit;
    rlim_t wanted = self->config.clients_max + FILES_OF_OUR_OWN;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

/* Router and workers on one core, where a hand-off between cores would wake a sleeping one. The
 * core is the last one we may use: the first is where interrupts and other programs tend to be. */
static void pin(const struct sk_config *config)
{
    cpu_set_t cores;
    int32_t core = config->query_core;
    if (sched_getaffinity(0, sizeof cores_at_start, &cores_at_start) != 0 || core == SK_CORE_OFF)
        return;
    if (core == SK_CORE_AUTO) {
        bool is_held_awake = strcmp(config->wakeup_latency, "off") != 0 && sk_wakeup_can_be_had();
        if (is_held_awake)
            return;
        for (int32_t i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET((size_t)i, &cores_at_start))
                core = i;
    }
    CPU_ZERO(&cores);
    CPU_SET((size_t)core, &cores);
    is_pinned = sched_setaffinity(0, sizeof cores, &cores) == 0;
    if (!is_pinned)
        sk_log(SK_LEVEL_WARN, "not_pinned", "query_core=%d reason=\"%s\"", core, strerror(errno));
}

/* The kernel kills us when our parent dies, also when it did so before we could ask for it. */
static bool dies_with_parent(void)
{
    const char *parent = getenv("SKERRY_SUPERVISOR_PID");
    if (parent == NULL)
        return true; /* started by hand */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    return strtol(parent, NULL, 10) == (long)getppid();
}

int sk_process_start(struct sk_process *self, const char *name, const char *summary, unsigned flags,
                     int argc, char **argv)
{
    struct sk_diag d = {0};
    bool prints_config = false;
    memset(self, 0, sizeof *self);
    snprintf(self->name, sizeof self->name, "%s", name);
    int status = parse_arguments(self, summary, argc, argv, &prints_config);
    if (status != -1)
        return status;
    cut_slashes(self->dir);
    snprintf(self->id, sizeof self->id, "%s-%" PRIu32, self->name, self->number);
    enum sk_err rc = read_config(self, &d);
    if (rc != SK_ERR_OK) {
        fprintf(stderr, "skerry-%s: %s\n", self->name, d.text);
        return EXIT_USAGE;
    }
    if (prints_config) {
        sk_config_print(stdout, &self->config);
        return EXIT_SUCCESS;
    }
    size_t longest = strlen(self->dir) + strlen("/run/keeper-pub.ipc");
    if (longest > SK_SOCKET_PATH_BYTES_MAX) {
        fprintf(stderr,
                "skerry-%s: the folder's socket path '%s/run/keeper-pub.ipc' would pass %d bytes: "
                "take a shorter path, or a relative one\n",
                self->name, self->dir, SK_SOCKET_PATH_BYTES_MAX);
        return EXIT_USAGE;
    }
    if ((flags & SK_PROCESS_IS_CHILD) != 0 && !dies_with_parent())
        return EXIT_FAILURE;
    umask(077);
    signal(SIGPIPE, SIG_IGN);
    sk_log_start(self->id, sk_log_level_parse(self->config.log_level));
    allow_files(self);
    if ((flags & SK_PROCESS_IS_QUERY_PATH) != 0)
        pin(&self->config);
    return -1;
}
