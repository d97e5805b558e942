/* Drives a node through libskerry for the benchmark; see block.h for how it is told what to do.
 *
 *   bench_client --target DIR|ipc://..|tcp://.. [--server-key K --key FILE] --collection NAME
 *                --queries FILE --dim N [--k N --ef N] [--base FILE --payloads FILE --neighbours
 *                FILE]
 *
 * Commands beside `run`:
 * - load FIRST COUNT BATCH INFLIGHT: upserts rows of --base as ids FIRST.., waits for the index
 * - trickle RATE SECONDS BATCH FIRST [OUT]: upserts at a fixed rate, open loop; after each batch
 *   the OUT oldest ids that this call has written and not yet deleted go out again
 * - saturate SECONDS INFLIGHT: searches, that many in flight: {"qps":..}
 * - ef N, payload 0|1, exact 0|1: how the next searches are asked
 * - recall: of --k over all queries against --neighbours (queries x 100 int32)
 * - wait: until the index has caught up */
#include "bench/node/block.h"

#include "proto/client/skerry.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH_MAX = 10000, IN_FLIGHT_MAX = 256, LONG_MS = 60000, K_MAX = 1000 };

struct client {
    struct skerry *db;
    const char *collection;
    struct sk_queries queries;
    struct sk_queries base;
    struct skerry_bytes *payloads; /* one for each row of base, or NULL */
    int32_t *neighbours;
    unsigned k, ef;
    bool with_payload, is_exact;
    uint64_t ids[BATCH_MAX];
};

static bool failed(const char *what, const struct skerry_error *e)
{
    fprintf(stderr, "bench_client: %s: %s: %s\n", what, e->name, e->message);
    return false;
}

static struct skerry_search search_of(const struct client *self, const float *query)
{
    return (struct skerry_search){.collection = self->collection,
                                  .vectors = query,
                                  .dim = (uint32_t)self->queries.dim,
                                  .limit = self->k,
                                  .ef = self->ef,
                                  .exact = self->is_exact,
                                  .with_payload = self->with_payload,
                                  .deadline_ms = LONG_MS};
}

static bool ask(void *context, const float *query, size_t at)
{
    struct client *self = context;
    struct skerry_search search = search_of(self, query);
    struct skerry_hits *hits = NULL;
    struct skerry_error e;
    (void)at;
    if (skerry_search(self->db, &search, &hits, &e) != SKERRY_OK)
        return failed("search", &e);
    bool is_full = hits->starts[1] == self->k;
    skerry_hits_free(&hits);
    return is_full;
}

static struct skerry_upsert rows_of(struct client *self, size_t first, size_t count,
                                    struct skerry_vectors *column)
{
    for (size_t i = 0; i < count; i++)
        self->ids[i] = first + i;
    size_t at = first % self->base.count;
    *column = (struct skerry_vectors){.values = self->base.values + at * self->base.dim,
                                      .dim = (uint32_t)self->base.dim};
    return (struct skerry_upsert){.collection = self->collection,
                                  .ids = {.count = count, .numbers = self->ids},
                                  .vectors = column,
                                  .vector_count = 1,
                                  .payloads = self->payloads == NULL ? NULL : self->payloads + at,
                                  .deadline_ms = LONG_MS};
}

/* How many rows from `first` one batch may take: it must not pass the end of the base. */
static size_t batch_of(const struct client *self, size_t first, size_t left, size_t batch)
{
    size_t until_end = self->base.count - first % self->base.count;
    size_t count = left < batch ? left : batch;
    return count < until_end ? count : until_end;
}

static bool wait_one(struct client *self, size_t *done)
{
    uint64_t ticket = 0;
    struct skerry_reply *reply = NULL;
    struct skerry_error e;
    if (skerry_poll(self->db, LONG_MS, &ticket, &reply, &e) != SKERRY_OK)
        return failed("poll", &e);
    if (reply == NULL || skerry_reply_error(reply, &e) != SKERRY_OK) {
        bool is_busy = reply != NULL && e.code == SKERRY_BUSY;
        if (!is_busy)
            failed("reply", &e);
        skerry_reply_free(&reply);
        return false;
    }
    skerry_reply_free(&reply);
    (*done)++;
    return true;
}

static bool wait_indexed(struct client *self)
{
    struct skerry_error e;
    for (;;) {
        enum skerry_code rc = skerry_wait_indexed(self->db, self->collection, LONG_MS, &e);
        if (rc == SKERRY_OK)
            return true;
        if (rc != SKERRY_DEADLINE)
            return failed("wait", &e);
    }
}

static bool load(struct client *self, size_t first, size_t count, size_t batch, size_t in_flight)
{
    uint64_t began = sk_bench_now_ns();
    size_t sent = 0, requests = 0, done = 0;
    struct skerry_error e;
    while (sent < count || done < requests) {
        if (sent < count && requests - done < in_flight) {
            struct skerry_vectors column;
            size_t rows = batch_of(self, first + sent, count - sent, batch);
            struct skerry_upsert upsert = rows_of(self, first + sent, rows, &column);
            uint64_t ticket;
            if (skerry_upsert_submit(self->db, &upsert, &ticket, &e) != SKERRY_OK)
                return failed("upsert", &e);
            sent += rows;
            requests++;
        } else if (!wait_one(self, &done)) {
            return false;
        }
    }
    double durable_s = (double)(sk_bench_now_ns() - began) / 1e9;
    if (!wait_indexed(self))
        return false;
    double indexed_s = (double)(sk_bench_now_ns() - began) / 1e9;
    printf("{\"count\":%zu,\"durable_s\":%.3f,\"indexed_s\":%.3f}\n", count, durable_s, indexed_s);
    return true;
}

/* The ids FIRST.. of `count` rows; an error is counted, not fatal. */
static size_t delete_rows(struct client *self, size_t first, size_t count)
{
    struct skerry_error e;
    for (size_t i = 0; i < count; i++)
        self->ids[i] = first + i;
    struct skerry_ids ids = {.count = count, .numbers = self->ids};
    return skerry_delete(self->db, self->collection, &ids, LONG_MS, NULL, &e) != SKERRY_OK;
}

static bool trickle(struct client *self, double rate, double seconds, size_t batch, size_t first,
                    size_t out)
{
    uint64_t began = sk_bench_now_ns();
    size_t sent = 0, deleted = 0, errors = 0;
    double worst_late_s = 0;
    for (;;) {
        double due_s = (double)sent / rate, now_s = (double)(sk_bench_now_ns() - began) / 1e9;
        if (due_s >= seconds)
            break;
        if (now_s < due_s) {
            double gap_s = due_s - now_s;
            struct timespec gap = {(time_t)gap_s, (long)((gap_s - (double)(time_t)gap_s) * 1e9)};
            nanosleep(&gap, NULL);
        } else if (now_s - due_s > worst_late_s) {
            worst_late_s = now_s - due_s;
        }
        struct skerry_vectors column;
        struct skerry_error e;
        size_t rows = batch_of(self, first + sent, batch, batch);
        struct skerry_upsert upsert = rows_of(self, first + sent, rows, &column);
        if (skerry_upsert(self->db, &upsert, NULL, &e) != SKERRY_OK)
            errors++;
        sent += rows;
        if (out > 0 && deleted + out <= sent) {
            errors += delete_rows(self, first + deleted, out);
            deleted += out;
        }
    }
    printf("{\"count\":%zu,\"deleted\":%zu,\"seconds\":%.3f,\"worst_late_s\":%.3f,"
           "\"errors\":%zu}\n",
           sent, deleted, (double)(sk_bench_now_ns() - began) / 1e9, worst_late_s, errors);
    return true;
}

static bool saturate(struct client *self, double seconds, size_t in_flight)
{
    uint64_t began = sk_bench_now_ns(), end = began + (uint64_t)(seconds * 1e9);
    size_t sent = 0, done = 0;
    struct skerry_error e;
    while (sk_bench_now_ns() < end) {
        while (sent - done < in_flight) {
            const float *query =
                self->queries.values + sent % self->queries.count * self->queries.dim;
            struct skerry_search search = search_of(self, query);
            uint64_t ticket;
            if (skerry_search_submit(self->db, &search, &ticket, &e) != SKERRY_OK)
                return failed("search", &e);
            sent++;
        }
        if (!wait_one(self, &done))
            return false;
    }
    double taken_s = (double)(sk_bench_now_ns() - began) / 1e9;
    size_t counted = done;
    while (done < sent) {
        if (!wait_one(self, &done))
            return false;
    }
    printf("{\"count\":%zu,\"seconds\":%.3f,\"qps\":%.1f}\n", counted, taken_s,
           (double)counted / taken_s);
    return true;
}

static bool recall(struct client *self)
{
    size_t found = 0;
    if (self->neighbours == NULL)
        return false;
    for (size_t q = 0; q < self->queries.count; q++) {
        struct skerry_search search = search_of(self, self->queries.values + q * self->queries.dim);
        struct skerry_hits *hits = NULL;
        struct skerry_error e;
        if (skerry_search(self->db, &search, &hits, &e) != SKERRY_OK)
            return failed("search", &e);
        for (size_t i = 0; i < hits->starts[1]; i++) {
            for (unsigned t = 0; t < self->k; t++)
                found += hits->hits[i].id.number == (uint64_t)self->neighbours[q * 100 + t];
        }
        skerry_hits_free(&hits);
    }
    printf("{\"recall\":%.5f}\n", (double)found / (double)(self->queries.count * self->k));
    return true;
}

static bool command(void *context, const char *line)
{
    struct client *self = context;
    size_t a = 0, b = 0, c = 0, d = 0;
    double x = 0, y = 0;
    unsigned n = 0;
    if (sscanf(line, "load %zu %zu %zu %zu", &a, &b, &c, &d) == 4)
        return self->base.count > 0 && c > 0 && c <= BATCH_MAX && d > 0 && d <= IN_FLIGHT_MAX &&
               load(self, a, b, c, d);
    if (sscanf(line, "trickle %lf %lf %zu %zu %zu", &x, &y, &a, &b, &c) >= 4)
        return self->base.count > 0 && x > 0 && a > 0 && a <= BATCH_MAX && c <= BATCH_MAX &&
               trickle(self, x, y, a, b, c);
    if (sscanf(line, "saturate %lf %zu", &x, &a) == 2)
        return a > 0 && a <= IN_FLIGHT_MAX && saturate(self, x, a);
    if (sscanf(line, "ef %u", &n) == 1) {
        self->ef = n;
    } else if (sscanf(line, "payload %u", &n) == 1) {
        self->with_payload = n != 0;
    } else if (sscanf(line, "exact %u", &n) == 1) {
        self->is_exact = n != 0;
    } else if (strncmp(line, "recall", 6) == 0) {
        return recall(self);
    } else if (strncmp(line, "wait", 4) == 0) {
        if (!wait_indexed(self))
            return false;
    } else {
        return false;
    }
    printf("{\"ok\":true}\n");
    return true;
}

/* Each payload as uint32 little-endian size and that many bytes of msgpack. */
static void load_payloads(struct client *self, const char *path)
{
    FILE *file = fopen(path, "rb");
    self->payloads = calloc(self->base.count, sizeof(*self->payloads));
    for (size_t i = 0; file != NULL && self->payloads != NULL && i < self->base.count; i++) {
        uint32_t size = 0;
        void *bytes = NULL;
        if (fread(&size, sizeof(size), 1, file) != 1 || (bytes = malloc(size)) == NULL ||
            fread(bytes, 1, size, file) != size) {
            fprintf(stderr, "bench_client: %s ends before row %zu\n", path, i);
            exit(1);
        }
        self->payloads[i] = (struct skerry_bytes){bytes, size};
    }
    if (file == NULL) {
        fprintf(stderr, "bench_client: %s cannot be read\n", path);
        exit(1);
    }
    fclose(file);
}

static void load_neighbours(struct client *self, const char *path)
{
    FILE *file = fopen(path, "rb");
    self->neighbours = malloc(self->queries.count * 100 * sizeof(*self->neighbours));
    if (file == NULL || self->neighbours == NULL ||
        fread(self->neighbours, 100 * sizeof(*self->neighbours), self->queries.count, file) !=
            self->queries.count) {
        fprintf(stderr, "bench_client: %s is not %zu x 100 int32\n", path, self->queries.count);
        exit(1);
    }
    fclose(file);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"target", 1, NULL, 't'},   {"server-key", 1, NULL, 's'}, {"key", 1, NULL, 'K'},
        {"queries", 1, NULL, 'q'},  {"collection", 1, NULL, 'C'}, {"base", 1, NULL, 'b'},
        {"payloads", 1, NULL, 'p'}, {"neighbours", 1, NULL, 'n'}, {"dim", 1, NULL, 'd'},
        {"k", 1, NULL, 'k'},        {"ef", 1, NULL, 'e'},         {NULL, 0, NULL, 0}};
    static struct client self = {.k = 10, .ef = 64, .collection = "bench"};
    struct skerry_options options = {.connect_deadline_ms = 10000};
    const char *target = NULL, *queries = NULL, *base = NULL, *payloads = NULL, *neighbours = NULL;
    size_t dim = 384;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 't':
            target = optarg;
            break;
        case 's':
            options.server_key = optarg;
            break;
        case 'K':
            options.key_file = optarg;
            break;
        case 'q':
            queries = optarg;
            break;
        case 'C':
            self.collection = optarg;
            break;
        case 'b':
            base = optarg;
            break;
        case 'p':
            payloads = optarg;
            break;
        case 'n':
            neighbours = optarg;
            break;
        case 'd':
            dim = strtoul(optarg, NULL, 10);
            break;
        case 'k':
            self.k = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'e':
            self.ef = (unsigned)strtoul(optarg, NULL, 10);
            break;
        default:
            return 2;
        }
    }
    if (target == NULL || queries == NULL || self.k == 0 || self.k > K_MAX) {
        fprintf(stderr, "usage: bench_client --target T --queries FILE ...\n");
        return 2;
    }
    sk_queries_load(&self.queries, queries, dim);
    if (base != NULL)
        sk_queries_load(&self.base, base, dim);
    if (payloads != NULL)
        load_payloads(&self, payloads);
    if (neighbours != NULL)
        load_neighbours(&self, neighbours);
    struct skerry_error e;
    self.db = skerry_connect(target, &options, &e);
    if (self.db == NULL) {
        failed(target, &e);
        return 3;
    }
    printf("{\"connected\":true}\n");
    fflush(stdout);
    int rc = sk_bench_serve(&self.queries, ask, command, &self);
    skerry_close(&self.db);
    return rc;
}
