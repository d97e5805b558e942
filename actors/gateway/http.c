#include "actors/gateway/http.h"
#include "common/shell/log.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { URL_BYTES = 160, IDLE_S = 10, CONNECTION_BYTES = 16 * 1024, RUNS_MAX = 32 };

/* A connection and since when it owes us a request. */
struct client {
    struct client *next, *before;
    int fd;
    uint64_t since_us;
};

struct sk_http_request {
    struct sk_http_request *next, *before;
    struct sk_http *http;
    struct MHD_Connection *connection;
    struct MHD_Response *response; /* owned; NULL: not answered yet */
    unsigned status;
    bool is_suspended;
};

struct sk_http {
    /* settings */
    struct sk_http_config config;
    char url[URL_BYTES];
    /* state */
    struct MHD_Daemon *daemon;
    int epoll_fd;
    struct client *clients;
    struct sk_http_request *requests;
    uint64_t now_us;
    uint64_t sweep_us;
    bool is_resumed; /* something waits for the next turn of libmicrohttpd */
};

/* ---- answers ---- */

static enum MHD_Result queue(struct sk_http_request *request)
{
    struct MHD_Response *response = request->response;
    request->response = NULL;
    enum MHD_Result result = MHD_queue_response(request->connection, request->status, response);
    MHD_destroy_response(response);
    return result;
}

void sk_http_answer(struct sk_http_request *request, unsigned status, const char *content_type,
                    struct sk_span body)
{
    SK_CHECK(request->response == NULL);
    /* the library's type has no const; MUST_COPY only reads */
    request->response = MHD_create_response_from_buffer(
        body.size, (void *)(uintptr_t)body.bytes, MHD_RESPMEM_MUST_COPY);
    request->status = status;
    if (request->response != NULL) {
        (void)MHD_add_response_header(request->response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
        (void)MHD_add_response_header(request->response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
        (void)MHD_add_response_header(request->response, "X-Content-Type-Options", "nosniff");
        if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
            (void)MHD_add_response_header(request->response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    }
    if (request->is_suspended) {
        request->is_suspended = false;
        request->http->is_resumed = true;
        MHD_resume_connection(request->connection); /* without a response it is closed */
    }
}

static bool has_body(struct MHD_Connection *connection)
{
    const char *length =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                       MHD_HTTP_HEADER_TRANSFER_ENCODING) != NULL ||
           (length != NULL && strcmp(length, "0") != 0);
}

static enum MHD_Result begin_request(struct sk_http *self, struct MHD_Connection *connection,
                                     const char *path, const char *method, void **context)
{
    struct sk_http_request *request = calloc(1, sizeof *request);
    if (request == NULL)
        return MHD_NO;
    request->http = self;
    request->connection = connection;
    request->next = self->requests;
    if (request->next != NULL)
        request->next->before = request;
    self->requests = request;
    *context = request;
    bool is_get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    if (is_get && has_body(connection)) /* other methods are refused anyway, whatever they bring */
        sk_http_answer(request, MHD_HTTP_CONTENT_TOO_LARGE, "text/plain; charset=utf-8",
                       sk_span_text("no body is taken here\n"));
    else
        self->config.on_request(self->config.arg, request, method, path);
    if (request->response != NULL)
        return queue(request);
    MHD_suspend_connection(connection);
    request->is_suspended = true;
    return MHD_YES;
}

/* Called when the headers are there, and again after a resume. */
static enum MHD_Result on_access(void *arg, struct MHD_Connection *connection, const char *path,
                                 const char *method, const char *version, const char *upload,
                                 size_t *upload_size, void **context)
{
    (void)version, (void)upload;
    if (*context == NULL)
        return begin_request(arg, connection, path, method, context);
    struct sk_http_request *request = *context;
    *upload_size = 0;
    return request->response != NULL ? queue(request) : MHD_NO;
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode code)
{
    struct sk_http *self = arg;
    struct sk_http_request *request = *context;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    (void)code;
    if (info != NULL && info->socket_context != NULL)
        ((struct client *)info->socket_context)->since_us = self->now_us;
    if (request == NULL)
        return;
    *context = NULL;
    if (request->response != NULL)
        MHD_destroy_response(request->response);
    if (request->before != NULL)
        request->before->next = request->next;
    else
        self->requests = request->next;
    if (request->next != NULL)
        request->next->before = request->before;
    free(request);
}

/* ---- connections ---- */

static void on_connection(void *arg, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct sk_http *self = arg;
    struct client *client = *context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        client = calloc(1, sizeof *client);
        if (client == NULL || info == NULL) { /* it goes on without our deadline */
            free(client);
            return;
        }
        client->fd = info->connect_fd;
        client->since_us = self->now_us;
        client->next = self->clients;
        if (client->next != NULL)
            client->next->before = client;
        self->clients = client;
        *context = client;
    } else if (client != NULL) {
        if (client->before != NULL)
            client->before->next = client->next;
        else
            self->clients = client->next;
        if (client->next != NULL)
            client->next->before = client->before;
        *context = NULL;
        free(client);
    }
}

/* The library's own timeout counts silence only; one byte now and then would hold a place for ever. */
static void sweep(struct sk_http *self)
{
    uint64_t most_us = (uint64_t)self->config.request_ms_max * 1000;
    if (self->now_us < self->sweep_us)
        return;
    self->sweep_us = self->now_us + 1000000;
    for (struct client *client = self->clients; client != NULL; client = client->next)
        if (self->now_us - client->since_us > most_us)
            (void)shutdown(client->fd, SHUT_RDWR); /* the library sees the end and cleans up */
}

int sk_http_fd(const struct sk_http *self)
{
    return self->epoll_fd;
}

uint64_t sk_http_run(struct sk_http *self, uint64_t now_us)
{
    MHD_UNSIGNED_LONG_LONG wait_ms = 0;
    self->now_us = now_us;
    sweep(self);
    enum MHD_Result is_due = MHD_YES;
    for (unsigned turn = 0; turn < RUNS_MAX && is_due == MHD_YES && wait_ms == 0; turn++) {
        self->is_resumed = false;
        (void)MHD_run(self->daemon);
        is_due = MHD_get_timeout(self->daemon, &wait_ms);
        if (self->is_resumed)
            is_due = MHD_YES, wait_ms = 0;
    }
    uint64_t next = is_due == MHD_YES ? (uint64_t)wait_ms * 1000 : UINT64_MAX;
    if (self->clients != NULL && next > 1000000)
        next = 1000000; /* for the sweep */
    return next;
}

const char *sk_http_url(const struct sk_http *self)
{
    return self->url;
}

/* ---- life ---- */

static void on_log(void *arg, const char *format, va_list args) SK_PRINTF(2, 0);
static void on_log(void *arg, const char *format, va_list args)
{
    char text[200];
    (void)arg;
    (void)vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\r\n")] = '\0';
    sk_log(SK_LEVEL_DEBUG, "http", "text=\"%s\"", text);
}

static void make_url(struct sk_http *self, const char *address, int fd)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof bound;
    uint16_t port = self->config.port;
    if (getsockname(fd, (struct sockaddr *)&bound, &size) == 0) {
        if (bound.ss_family == AF_INET6)
            port = ntohs(((const struct sockaddr_in6 *)(const void *)&bound)->sin6_port);
        else
            port = ntohs(((const struct sockaddr_in *)(const void *)&bound)->sin_port);
    }
    bool is_v6 = strchr(address, ':') != NULL;
    (void)snprintf(self->url, sizeof self->url, "http://%s%s%s:%u", is_v6 ? "[" : "", address,
                   is_v6 ? "]" : "", port);
}

/* The socket is made here: the library's default is every address there is. */
static enum sk_err listen_at(struct sk_http *self, int *out, struct sk_diag *d)
{
    const char *address = self->config.address;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char port[8];
    int yes = 1;
    *out = -1;
    (void)snprintf(port, sizeof port, "%u", self->config.port);
    int rc = getaddrinfo(address, port, &hints, &found);
    if (rc != 0)
        return sk_fail_field(d, SK_ERR_UNAVAILABLE, "http_address",
                             "http_address '%s' is no numeric address: %s", address,
                             gai_strerror(rc));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool is_bound = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
                    bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 64) == 0;
    int error = errno;
    freeaddrinfo(found);
    if (!is_bound) {
        if (fd >= 0)
            (void)close(fd);
        return sk_fail_field(d, SK_ERR_UNAVAILABLE, "http_port",
                             "http_address %s, http_port %u cannot be had: %s%s", address,
                             self->config.port, strerror(error),
                             error == EADDRINUSE ? " (another process has it; 0 takes a free one)"
                                                 : "");
    }
    make_url(self, address, fd);
    *out = fd;
    return SK_ERR_OK;
}

enum sk_err sk_http_new(struct sk_http **out, const struct sk_http_config *config, struct sk_diag *d)
{
    int fd = -1;
    *out = NULL;
    struct sk_http *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the HTTP server");
    self->config = *config;
    if (self->config.connections_max == 0)
        self->config.connections_max = 64;
    if (self->config.request_ms_max == 0)
        self->config.request_ms_max = 10000;
    enum sk_err err = listen_at(self, &fd, d);
    if (err != SK_ERR_OK) {
        free(self);
        return err;
    }
    self->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_access, self,
        MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, (MHD_socket)fd,
        MHD_OPTION_CONNECTION_LIMIT, self->config.connections_max, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, self, MHD_OPTION_NOTIFY_CONNECTION, on_connection,
        self, MHD_OPTION_END);
    const union MHD_DaemonInfo *info =
        self->daemon == NULL ? NULL : MHD_get_daemon_info(self->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (info == NULL) {
        if (self->daemon == NULL)
            (void)close(fd);
        sk_http_destroy(&self);
        return sk_fail(d, SK_ERR_UNAVAILABLE, "the HTTP server cannot be started: %s",
                       strerror(errno));
    }
    self->epoll_fd = info->epoll_fd;
    *out = self;
    return SK_ERR_OK;
}

void sk_http_destroy(struct sk_http **self_at)
{
    struct sk_http *self = *self_at;
    if (self == NULL)
        return;
    *self_at = NULL;
    /* a suspended connection would be left behind */
    for (struct sk_http_request *request = self->requests; request != NULL; request = request->next)
        if (request->is_suspended)
            sk_http_answer(request, MHD_HTTP_SERVICE_UNAVAILABLE, "text/plain; charset=utf-8",
                           sk_span_text("the gateway is stopping\n"));
    if (self->daemon != NULL) {
        (void)MHD_run(self->daemon);
        MHD_stop_daemon(self->daemon); /* closes the socket that it listens at */
    }
    free(self);
}
