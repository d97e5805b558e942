/* The floor under a node's latency: a bare ZeroMQ relay, written for this purpose only.
 *
 *   bench_relay last   --back ENDPOINT [--vectors F --image F --dim N --m N --ef-construction N]
 *   bench_relay middle --front ENDPOINT --back ENDPOINT
 *   bench_relay client --front ENDPOINT --queries FILE --dim N --request-bytes N [--k N --ef N]
 *
 * One hop: the client connects to `last` itself. Default options of libzmq, one I/O thread a
 * process, nobody pins or holds anything (the driver may, with taskset or /dev/cpu_dma_latency).
 * The request is the query's float32, then padding up to the node's own request size; the reply has
 * --reply-bytes. The last process searches the index when it is given one, else it is busy for
 * --work-us. bench_relay raw ... is the index alone in process, one thread: answers as a client
 * would, no socket. */
#include "bench/node/block.h"
#include "bench/node/floor_index.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { FRAME_BYTES_MAX = 1 << 20, K_MAX = 1000 };

struct options {
    const char *front, *back, *queries, *vectors, *image, *neighbours;
    unsigned dim, k, ef, m, ef_construction, work_us, request_bytes, reply_bytes;
};

struct relay_client {
    void *socket;
    uint8_t *frame;
    size_t request_bytes;
    size_t vector_bytes;
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "bench_relay: %s: %s\n", what, zmq_strerror(zmq_errno()));
    exit(1);
}

static void *open_socket(void *context, int type, const char *endpoint, bool binds)
{
    void *socket = zmq_socket(context, type);
    if (socket == NULL || endpoint == NULL ||
        (binds ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint)) != 0)
        die(endpoint == NULL ? "an endpoint is missing" : endpoint);
    return socket;
}

/* Passes one message on, part by part, as a router of frames must. */
static void pass_on(void *from, void *to)
{
    for (;;) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, from, 0) < 0)
            die("receive");
        int has_more = zmq_msg_more(&part);
        if (zmq_msg_send(&part, to, has_more ? ZMQ_SNDMORE : 0) < 0)
            die("send");
        if (!has_more)
            return;
    }
}

static int run_middle(void *context, const struct options *o)
{
    void *front = open_socket(context, ZMQ_ROUTER, o->front, true);
    void *back = open_socket(context, ZMQ_DEALER, o->back, false);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        zmq_pollitem_t items[] = {{front, 0, ZMQ_POLLIN, 0}, {back, 0, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 2, -1) < 0)
            die("poll");
        if (items[0].revents & ZMQ_POLLIN)
            pass_on(front, back);
        if (items[1].revents & ZMQ_POLLIN)
            pass_on(back, front);
    }
}

static void be_busy(unsigned us)
{
    uint64_t end = sk_bench_now_ns() + (uint64_t)us * 1000;
    while (sk_bench_now_ns() < end)
        ;
}

static int run_last(void *context, const struct options *o)
{
    struct sk_floor_index index;
    if (o->vectors != NULL)
        sk_floor_index_open(&index, o->vectors, o->dim, o->m, o->ef_construction, o->image);
    void *socket = open_socket(context, ZMQ_ROUTER, o->back, true);
    uint8_t *request = malloc(FRAME_BYTES_MAX), *reply = calloc(1, FRAME_BYTES_MAX);
    float *query = calloc(o->dim, sizeof(*query));
    struct sk_floor_hit *hits = calloc(K_MAX, sizeof(*hits));
    if (request == NULL || reply == NULL || query == NULL || hits == NULL)
        return 1;
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        /* Routing ids of one or two hops go back as they came; the last part is the request. */
        zmq_msg_t envelope[4];
        unsigned parts = 0;
        int has_more = 1;
        size_t size = 0;
        while (has_more && parts < 4) {
            zmq_msg_init(&envelope[parts]);
            if (zmq_msg_recv(&envelope[parts], socket, 0) < 0)
                die("receive");
            has_more = zmq_msg_more(&envelope[parts]);
            parts++;
        }
        size = zmq_msg_size(&envelope[parts - 1]);
        memcpy(request, zmq_msg_data(&envelope[parts - 1]),
               size < FRAME_BYTES_MAX ? size : FRAME_BYTES_MAX);
        zmq_msg_close(&envelope[--parts]);
        size_t used = 0;
        if (o->vectors != NULL && size >= o->dim * sizeof(float)) {
            memcpy(query, request, o->dim * sizeof(float));
            used = sk_floor_index_search(&index, query, o->k, o->ef, hits) * sizeof(*hits);
            memcpy(reply, hits, used);
        } else {
            be_busy(o->work_us);
        }
        for (unsigned i = 0; i < parts; i++) {
            if (zmq_msg_send(&envelope[i], socket, ZMQ_SNDMORE) < 0)
                die("send");
        }
        if (zmq_send(socket, reply, used > o->reply_bytes ? used : o->reply_bytes, 0) < 0)
            die("send");
    }
}

static bool ask(void *context, const float *query, size_t at)
{
    struct relay_client *self = context;
    (void)at;
    memcpy(self->frame, query, self->vector_bytes);
    if (zmq_send(self->socket, self->frame, self->request_bytes, 0) < 0)
        return false;
    return zmq_recv(self->socket, self->frame, FRAME_BYTES_MAX, 0) > 0;
}

static int run_client(void *context, const struct options *o)
{
    struct sk_queries queries;
    sk_queries_load(&queries, o->queries, o->dim);
    struct relay_client self = {.socket = open_socket(context, ZMQ_DEALER, o->front, false),
                                .frame = calloc(1, FRAME_BYTES_MAX),
                                .request_bytes = o->request_bytes,
                                .vector_bytes = o->dim * sizeof(float)};
    if (self.request_bytes < self.vector_bytes)
        self.request_bytes = self.vector_bytes;
    if (self.frame == NULL || self.request_bytes > FRAME_BYTES_MAX)
        return 1;
    return sk_bench_serve(&queries, ask, NULL, &self);
}

struct raw {
    struct sk_floor_index index;
    unsigned k, ef;
    struct sk_floor_hit hits[K_MAX];
};

static bool search_raw(void *context, const float *query, size_t at)
{
    struct raw *self = context;
    (void)at;
    return sk_floor_index_search(&self->index, query, self->k, self->ef, self->hits) > 0;
}

/* neighbours: int32, queries x 100, as the data's *.nn.npy without their header. */
static double recall_of(struct raw *self, const struct sk_queries *queries, const char *neighbours)
{
    FILE *file = fopen(neighbours, "rb");
    int32_t *truth = malloc(queries->count * 100 * sizeof(*truth));
    if (file == NULL || truth == NULL ||
        fread(truth, 100 * sizeof(*truth), queries->count, file) != queries->count) {
        fprintf(stderr, "bench_relay: %s is not %zu x 100 int32\n", neighbours, queries->count);
        exit(1);
    }
    fclose(file);
    size_t found = 0;
    for (size_t q = 0; q < queries->count; q++) {
        uint32_t n = sk_floor_index_search(&self->index, queries->values + q * queries->dim,
                                           self->k, self->ef, self->hits);
        for (uint32_t i = 0; i < n; i++) {
            for (unsigned t = 0; t < self->k; t++)
                found += self->hits[i].row == (uint32_t)truth[q * 100 + t];
        }
    }
    free(truth);
    return (double)found / (double)(queries->count * self->k);
}

/* Commands: "ef N" sets the beam and prints the recall; then blocks as every client runs them. */
static int run_raw(const struct options *o)
{
    struct sk_queries queries;
    sk_queries_load(&queries, o->queries, o->dim);
    struct raw *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return 1;
    self->k = o->k;
    self->ef = o->ef;
    sk_floor_index_open(&self->index, o->vectors, o->dim, o->m, o->ef_construction, o->image);
    printf("{\"build_s\":%.3f,\"rows\":%u}\n", self->index.build_s, self->index.count);
    fflush(stdout);
    if (o->neighbours != NULL) {
        for (unsigned ef = o->k; ef <= 400; ef += ef < 40 ? 2 : ef < 100 ? 5 : 20) {
            self->ef = ef;
            double recall = recall_of(self, &queries, o->neighbours);
            printf("{\"ef\":%u,\"recall\":%.5f}\n", ef, recall);
            if (recall >= 0.99)
                break;
        }
        printf("{\"sweep\":\"done\"}\n");
        fflush(stdout);
        char line[64];
        if (fgets(line, sizeof(line), stdin) == NULL || sscanf(line, "ef %u", &self->ef) != 1)
            return 2;
    }
    return sk_bench_serve(&queries, search_raw, NULL, self);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"front", 1, NULL, 'f'},
                                          {"back", 1, NULL, 'b'},
                                          {"queries", 1, NULL, 'q'},
                                          {"vectors", 1, NULL, 'v'},
                                          {"image", 1, NULL, 'i'},
                                          {"dim", 1, NULL, 'd'},
                                          {"k", 1, NULL, 'k'},
                                          {"ef", 1, NULL, 'e'},
                                          {"m", 1, NULL, 'm'},
                                          {"ef-construction", 1, NULL, 'c'},
                                          {"work-us", 1, NULL, 'w'},
                                          {"request-bytes", 1, NULL, 'r'},
                                          {"reply-bytes", 1, NULL, 'y'},
                                          {"neighbours", 1, NULL, 'n'},
                                          {NULL, 0, NULL, 0}};
    struct options o = {
        .dim = 384, .k = 10, .ef = 64, .m = 16, .ef_construction = 200, .reply_bytes = 600};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        unsigned number = optarg != NULL ? (unsigned)strtoul(optarg, NULL, 10) : 0;
        switch (c) {
        case 'f':
            o.front = optarg;
            break;
        case 'b':
            o.back = optarg;
            break;
        case 'q':
            o.queries = optarg;
            break;
        case 'v':
            o.vectors = optarg;
            break;
        case 'i':
            o.image = optarg;
            break;
        case 'n':
            o.neighbours = optarg;
            break;
        case 'd':
            o.dim = number;
            break;
        case 'k':
            o.k = number;
            break;
        case 'e':
            o.ef = number;
            break;
        case 'm':
            o.m = number;
            break;
        case 'c':
            o.ef_construction = number;
            break;
        case 'w':
            o.work_us = number;
            break;
        case 'r':
            o.request_bytes = number;
            break;
        case 'y':
            o.reply_bytes = number;
            break;
        default:
            return 2;
        }
    }
    if (o.dim == 0 || o.dim > SK_INDEX_DIM_MAX || o.k == 0 || o.k > K_MAX ||
        o.reply_bytes > FRAME_BYTES_MAX) {
        fprintf(stderr, "bench_relay: dim, k or reply-bytes out of range\n");
        return 2;
    }
    const char *role = optind < argc ? argv[optind] : "";
    void *context = zmq_ctx_new();
    if (strcmp(role, "last") == 0)
        return run_last(context, &o);
    if (strcmp(role, "middle") == 0)
        return run_middle(context, &o);
    if (strcmp(role, "client") == 0)
        return run_client(context, &o);
    if (strcmp(role, "raw") == 0)
        return run_raw(&o);
    fprintf(stderr, "usage: bench_relay last|middle|client|raw ...\n");
    return 2;
}
