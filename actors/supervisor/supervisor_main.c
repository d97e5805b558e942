/* skerry-supervisor: the one process of a node that is started from outside. */
#include "actors/supervisor/node_folder.h"
#include "actors/supervisor/node_log.h"
#include "actors/supervisor/node_spawn.h"
#include "actors/supervisor/supervisor.h"
#include "common/shell/keys.h"
#include "common/shell/log.h"
#include "common/shell/notify.h"
#include "common/shell/process.h"
#include "common/shell/reactor.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

struct node {
    struct sk_process process;
    struct node_spawn spawn;
    struct sk_reactor *reactor;
    struct sk_supervisor *core;
    int child_fd; /* SIGCHLD */
    char public_key[SK_KEY_TEXT_BYTES];
    char client_ipc[SK_PATH_BYTES];
    struct sk_supervisor_status shown; /* what was said last */
    bool was_ready;
    uint64_t log_next_us;
};

enum { LOG_LOOK_US = 2 * 1000 * 1000 };

/* ---- children that have ended ---- */

static void on_child_signal(void *arg)
{
    struct node *self = arg;
    struct signalfd_siginfo info;
    int status;
    pid_t pid;
    while (read(self->child_fd, &info, sizeof info) == (ssize_t)sizeof info)
        ; /* one signal may stand for several ends */
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        char id[64], reason[SK_DIAG_TEXT_BYTES] = "";
        if (sk_supervisor_process_of(self->core, pid, id, sizeof id))
            node_spawn_reason(&self->spawn, id, reason, sizeof reason);
        sk_supervisor_on_exit(self->core, pid, status, reason);
    }
}

/* ---- what others are told ---- */

static void write_facts(struct node *self, const struct sk_supervisor_status *status)
{
    struct sk_diag d = {0};
    struct node_facts facts = {self->client_ipc, status->client_tcp, status->http, self->public_key,
                               getpid()};
    if (node_folder_write_facts(self->process.dir, &facts, &d) != SK_ERR_OK)
        sk_log(SK_LEVEL_ERROR, "facts_not_written", "reason=\"%s\"", d.text);
}

static void tell(struct node *self)
{
    struct sk_supervisor_status status;
    sk_supervisor_get_status(self->core, &status);
    bool has_moved = strcmp(status.client_tcp, self->shown.client_tcp) != 0 ||
                     strcmp(status.http, self->shown.http) != 0;
    bool is_first = status.is_ready && !self->was_ready;
    if (status.is_ready && (is_first || has_moved || !self->shown.is_ready))
        write_facts(self, &status);
    if (strcmp(status.words, self->shown.words) != 0)
        sk_notify_status("%s", status.words);
    if (is_first) {
        self->was_ready = true;
        sk_log(SK_LEVEL_INFO, "ready", "client_tcp=%s http=%s", status.client_tcp, status.http);
        sk_notify_ready();
    }
    if (status.is_stopped)
        sk_reactor_stop(self->reactor, status.has_failed ? EXIT_FAILURE : EXIT_SUCCESS);
    self->shown = status;
}

static void log_event(void *impl, enum sk_supervisor_event event, const char *process,
                      uint64_t number)
{
    const struct sk_note_kind *kind = &sk_supervisor_events[event];
    char values[64] = "";
    (void)impl;
    if (kind->a_name != NULL)
        snprintf(values, sizeof values, "%s=%" PRIu64, kind->a_name, number);
    sk_log(kind->level, kind->name, "%s%s%s%s", process[0] != '\0' ? "child=" : "", process,
           process[0] != '\0' && values[0] != '\0' ? " " : "", values);
}

/* ---- the core behind the loop ---- */

static void on_message(void *arg, sk_peer from, struct sk_span bytes)
{
    struct node *self = arg;
    sk_supervisor_on_message(self->core, from, bytes);
}

static void on_client(void *arg, sk_peer from, enum sk_role role, const char *key,
                      struct sk_span frame)
{
    struct node *self = arg;
    (void)role; /* whoever may open run/supervisor.ipc */
    (void)key;
    sk_supervisor_on_client(self->core, from, frame);
}

/* Looked at now and then, when something else has woken this process: what has nothing to say writes no
 * log. */
static void keep_log_small(struct node *self)
{
    const struct sk_io *io = sk_reactor_io(self->reactor);
    uint64_t now = io->mono_us(io->impl);
    if (now < self->log_next_us)
        return;
    self->log_next_us = now + LOG_LOOK_US;
    if (node_log_rotate(self->process.dir, STDERR_FILENO, self->process.config.log_bytes_max))
        sk_log(SK_LEVEL_INFO, "log_begins_again", "before=node.log.1");
}

static uint64_t on_time(void *arg)
{
    struct node *self = arg;
    uint64_t next = sk_supervisor_on_time(self->core);
    tell(self);
    keep_log_small(self);
    return next;
}

static void on_stop(void *arg)
{
    struct node *self = arg;
    sk_notify_stopping();
    sk_supervisor_stop(self->core);
}

static void on_watchdog(void *arg)
{
    (void)arg;
    sk_notify_watchdog();
}

/* ---- start ---- */

static enum sk_err open_folder(struct node *self, struct sk_diag *d)
{
    struct sk_keys keys;
    const char *dir = self->process.dir;
    enum sk_err rc = node_folder_make(dir, d);
    if (rc == SK_ERR_OK)
        rc = node_folder_lock(dir, d);
    if (rc != SK_ERR_OK)
        return rc;
    node_folder_clean(dir);
    rc = sk_keys_load_or_make(&keys, dir, "node", d);
    memcpy(self->public_key, keys.public_key, sizeof self->public_key);
    sk_keys_wipe(&keys);
    if (rc == SK_ERR_OK) {
        rc = sk_keys_load_or_make(&keys, dir, "admin", d);
        sk_keys_wipe(&keys);
    }
    return rc;
}

/* Before the ZeroMQ context makes its thread: SIGCHLD must be blocked in every thread. */
static enum sk_err watch_children(struct node *self, struct sk_diag *d)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    self->child_fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    return self->child_fd >= 0 ? SK_ERR_OK
                               : sk_fail(d, SK_ERR_UNAVAILABLE, "signalfd: %s", strerror(errno));
}

/* What the links of this node, and of this start of it, know each other by
 * (common/shell/reactor.h). */
static enum sk_err make_token(struct sk_diag *d)
{
    uint8_t bytes[16];
    char text[2 * sizeof bytes + 1];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "getrandom: %s", strerror(errno));
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    setenv("SKERRY_LINK_TOKEN", text, 1);
    return SK_ERR_OK;
}

static enum sk_err make_core(struct node *self, struct sk_diag *d)
{
    const struct sk_config *config = &self->process.config;
    struct sk_supervisor_config settings = {
        .workers = config->workers,
        .heartbeat_timeout_us = (uint64_t)config->heartbeat_timeout_ms * 1000,
        .backoff_us_max = (uint64_t)config->restart_backoff_ms_max * 1000,
        .stop_timeout_us = (uint64_t)config->stop_timeout_ms * 1000,
        .own_pid = getpid()};
    struct sk_supervisor_hands hands = {&self->spawn, node_spawn_start, node_spawn_kill, log_event,
                                        node_spawn_usage};
    memcpy(settings.public_key, self->public_key, sizeof settings.public_key);
    snprintf(settings.client_ipc, sizeof settings.client_ipc, "ipc://%s/run/client.ipc",
             self->process.dir);
    return sk_supervisor_new(&self->core, &settings, sk_reactor_io(self->reactor), &hands, d);
}

static enum sk_err open_sockets(struct node *self, struct sk_diag *d)
{
    char endpoint[SK_PATH_BYTES];
    struct sk_reactor_door door = {
        .links = {{"metadata-keeper", 1, SK_SUPERVISOR_PEER_KEEPER},
                  {"router", 1, SK_SUPERVISOR_PEER_ROUTER},
                  {"gateway", 1, SK_SUPERVISOR_PEER_GATEWAY},
                  {"shard-worker", self->process.config.workers, SK_SUPERVISOR_PEER_WORKER_0}},
        .link_count = 4,
        .takes_clients = true,
        .role = SK_ROLE_LINK,
        .message_bytes_max = 65536};
    door.endpoint = sk_process_endpoint(&self->process, endpoint, "supervisor.ipc");
    return sk_reactor_bind(self->reactor, &door, NULL, 0, d);
}

static enum sk_err open_node(struct node *self, struct sk_diag *d)
{
    struct sk_reactor_config config = {0};
    uint64_t watchdog_us = sk_notify_watchdog_us();
    enum sk_err rc = make_token(d);
    if (rc == SK_ERR_OK)
        rc = sk_config_write_environment(&self->process.config, d);
    if (rc == SK_ERR_OK)
        rc = watch_children(self, d);
    if (rc == SK_ERR_OK)
        rc = sk_reactor_new(&self->reactor, &config, d);
    if (rc == SK_ERR_OK)
        rc = make_core(self, d);
    if (rc == SK_ERR_OK)
        rc = open_sockets(self, d);
    if (rc == SK_ERR_OK)
        rc = sk_reactor_watch(self->reactor, self->child_fd, on_child_signal, self, d);
    if (rc == SK_ERR_OK && watchdog_us > 0)
        rc = sk_reactor_every(self->reactor, (unsigned)(watchdog_us / 3000) + 1, on_watchdog, self,
                              d);
    if (rc != SK_ERR_OK)
        return rc;
    sk_reactor_set_core(self->reactor, &(struct sk_reactor_core){.core = self,
                                                                 .on_message = on_message,
                                                                 .on_client = on_client,
                                                                 .on_time = on_time,
                                                                 .on_stop = on_stop});
    return SK_ERR_OK;
}

static int fail(const struct sk_diag *d)
{
    sk_log(SK_LEVEL_ERROR, "cannot_start", "code=%s reason=\"%s\"", sk_err_name(d->code), d->text);
    sk_notify_status("%s", d->text);
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    static struct node self;
    struct sk_diag d = {0};
    int status = sk_process_start(&self.process, "supervisor",
                                  "Starts and watches the processes of a node.", 0, argc, argv);
    if (status != -1)
        return status;
    sk_process_endpoint(&self.process, self.client_ipc, "client.ipc");
    self.child_fd = -1;
    enum sk_err rc = node_spawn_init(&self.spawn, &self.process, &d);
    if (rc == SK_ERR_OK)
        rc = open_folder(&self, &d);
    if (rc == SK_ERR_OK)
        rc = open_node(&self, &d);
    if (rc == SK_ERR_OK) {
        sk_log(SK_LEVEL_INFO, "starting", "dir=\"%s\" version=%s", self.process.dir, SK_VERSION);
        sk_supervisor_start(self.core);
        status = sk_reactor_run(self.reactor);
        if (status != EXIT_SUCCESS)
            sk_log(SK_LEVEL_ERROR, "cannot_start", "reason=\"%s\"", self.shown.words);
        sk_log(SK_LEVEL_INFO, "stopped", "status=%d", status);
    } else {
        status = fail(&d);
    }
    sk_supervisor_destroy(&self.core);
    sk_reactor_destroy(&self.reactor);
    if (rc == SK_ERR_OK)
        node_folder_clean(self.process.dir);
    return status;
}
