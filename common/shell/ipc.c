/* Doors and links over unix sockets: ZMTP spoken by the loop's own thread, so that any ZeroMQ client may
 * come, and a request crosses no I/O thread of ours. (libzmq's costs two thread hand-offs a message each
 * way; a hand-off costs more than a search.) */
#include "common/shell/internal.h"
#include "common/shell/log.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    RETRY_MS_MIN = 10,
    RETRY_MS_MAX = 500,
    LISTEN_RETRY_MS = 100, /* no descriptor was left */
    FILES_RESERVED = 160,  /* kept for files, tcp and our own processes, whoever else comes */
    FILES_OF_LINKS = 64,   /* of these: for processes that come back */
    ACCEPT_MAX = 64,
    BACKLOG = 1024,
};

static enum sk_err address_of(struct sockaddr_un *out, struct sk_socket *self,
                              const char *endpoint, struct sk_diag *d)
{
    const char *path = endpoint + strlen("ipc://");
    memset(out, 0, sizeof *out);
    out->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof out->sun_path || strlen(path) >= sizeof self->path)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "%s: a socket's path has at most %zu bytes", endpoint,
                       sizeof out->sun_path - 1);
    snprintf(out->sun_path, sizeof out->sun_path, "%s", path);
    snprintf(self->path, sizeof self->path, "%s", path);
    struct sk_reactor *reactor = self->reactor;
    if (reactor->scratch == NULL)
        reactor->scratch = malloc(SK_IPC_SCRATCH_BYTES);
    return reactor->scratch != NULL ? SK_ERR_OK : sk_fail(d, SK_ERR_NOMEM, "no memory for a socket");
}

/* Nobody can come in now: look again a little later instead of all the time. */
static void listen_later(struct sk_socket *self)
{
    sk_log(SK_LEVEL_WARN, "no_descriptors", "socket=\"%s\" connections=%u", self->path,
           self->reactor->connection_count);
    sk_loop_remove(&self->reactor->loop, &self->source);
    self->retry_us = sk_reactor_now_us() + LISTEN_RETRY_MS * 1000;
    sk_ipc_schedule(self->reactor, self->retry_us);
}

static void on_accept(void *arg, uint32_t events)
{
    struct sk_socket *self = arg;
    uint32_t most = self->reactor->connections_max + (self->door.takes_clients ? 0 : FILES_OF_LINKS);
    (void)events;
    for (unsigned i = 0; i < ACCEPT_MAX; i++) {
        if (self->reactor->connection_count >= most) {
            listen_later(self);
            return;
        }
        int fd = accept4(self->source.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            (void)sk_connection_new(self, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            listen_later(self);
        return;
    }
}

/* A file of a process that is gone is taken away; one that answers is not. */
static bool is_in_use(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool is_answered = fd >= 0 && (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ||
                                   errno == EAGAIN);
    if (fd >= 0)
        close(fd);
    return is_answered;
}

static uint32_t connections_max(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > 1 << 20)
        return 1 << 20;
    return (uint32_t)(limit.rlim_cur > 2 * FILES_RESERVED ? limit.rlim_cur - FILES_RESERVED
                                                          : limit.rlim_cur / 2);
}

enum sk_err sk_ipc_bind(struct sk_socket *self, const char *endpoint, struct sk_diag *d)
{
    struct sockaddr_un address;
    enum sk_err rc = address_of(&address, self, endpoint, d);
    if (rc != SK_ERR_OK)
        return rc;
    if (is_in_use(&address)) {
        self->path[0] = '\0'; /* not ours to take away */
        return sk_bind_failed(d, endpoint, EADDRINUSE);
    }
    (void)unlink(self->path);
    self->reactor->connections_max = connections_max();
    self->source = (struct sk_source){.fn = on_accept, .arg = self};
    self->source.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (self->source.fd < 0 ||
        bind(self->source.fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        listen(self->source.fd, BACKLOG) != 0 ||
        !sk_loop_add(&self->reactor->loop, &self->source, EPOLLIN))
        return sk_bind_failed(d, endpoint, errno);
    return SK_ERR_OK;
}

void sk_ipc_retry(struct sk_socket *self, bool was_open)
{
    unsigned longer = self->retry_ms * 2 < RETRY_MS_MAX ? self->retry_ms * 2 : RETRY_MS_MAX;
    self->retry_ms = was_open ? RETRY_MS_MIN : longer;
    self->retry_us = sk_reactor_now_us() + (uint64_t)self->retry_ms * 1000;
    sk_ipc_schedule(self->reactor, self->retry_us);
}

static void connect_now(struct sk_socket *self)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", self->path);
    self->retry_us = UINT64_MAX;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* a unix socket connects at once or not at all */
    bool is_there = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    if (!is_there && fd >= 0)
        close(fd);
    if (is_there && sk_connection_new(self, fd) != NULL)
        return;
    sk_ipc_retry(self, false);
}

enum sk_err sk_ipc_connect(struct sk_socket *self, const char *endpoint, struct sk_diag *d)
{
    struct sockaddr_un address;
    enum sk_err rc = address_of(&address, self, endpoint, d);
    if (rc != SK_ERR_OK)
        return rc;
    self->retry_ms = RETRY_MS_MIN;
    self->retry_us = 0; /* with the first turn, when the core is there */
    sk_ipc_schedule(self->reactor, 0);
    return SK_ERR_OK;
}

void sk_ipc_close(struct sk_socket *self)
{
    sk_connections_close(self);
    if (self->source.fd < 0)
        return;
    close(self->source.fd);
    if (self->path[0] != '\0')
        (void)unlink(self->path);
}

uint64_t sk_ipc_on_time(struct sk_reactor *reactor, uint64_t now_us)
{
    uint64_t next = UINT64_MAX;
    reactor->ipc_next_us = UINT64_MAX; /* what is scheduled from here on counts */
    for (unsigned i = 0; i < reactor->socket_count; i++) {
        struct sk_socket *self = reactor->sockets[i];
        if (self->zsock != NULL)
            continue;
        if (self->retry_us <= now_us && self->kind == SK_SOCKET_LINK) {
            connect_now(self);
        } else if (self->retry_us <= now_us) {
            self->retry_us = UINT64_MAX;
            if (!sk_loop_add(&reactor->loop, &self->source, EPOLLIN))
                self->retry_us = now_us + LISTEN_RETRY_MS * 1000;
        }
        next = self->retry_us < next ? self->retry_us : next;
    }
    uint64_t handshakes = sk_connections_on_time(reactor, now_us);
    next = handshakes < next ? handshakes : next;
    return next < reactor->ipc_next_us ? next : reactor->ipc_next_us;
}

void sk_ipc_deinit(struct sk_reactor *reactor)
{
    sk_ipc_reap(reactor);
    free(reactor->connections);
    free(reactor->scratch);
}
