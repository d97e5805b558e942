/* skerry bench: searches on a live collection: closed loop (N in flight) or open loop (a fixed
 * rate, latency counted from when a request should have been sent), with the recall of the very
 * answers. */
#include "tools/skerry/commands.h"
#include "tools/skerry/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IN_FLIGHT_MAX = 1024, QUERIES_MAX = 10000, SAMPLE_QUERIES = 200, LATENCIES_MAX = 10000000 };

static struct {
    const char *file, *filter, *using;
    uint32_t limit, ef, nprobe, in_flight, seconds, query_count;
    double rate, recall;
    bool exact, no_recall, with_payload;
} options;

static const struct cli_option bench_options[] = {
    {"file", CLI_TEXT, &options.file, "Q.npy", "query vectors; else records of the collection"},
    {"query-count", CLI_U32, &options.query_count, "N", "how many different queries (200)"},
    {"limit", CLI_U32, &options.limit, "N", "neighbours a query (10)"},
    {"ef", CLI_U32, &options.ef, "N", "hnsw: the beam of the search (64)"},
    {"nprobe", CLI_U32, &options.nprobe, "N", "ivf_flat, ivf_pq, hybrid: lists looked at"},
    {"recall", CLI_DOUBLE, &options.recall, "R", "instead: the recall that is wanted"},
    {"filter", CLI_TEXT, &options.filter, "JSON", "only records for which this holds"},
    {"using", CLI_TEXT, &options.using, "NAME", "which vector field, where there are several"},
    {"exact", CLI_FLAG, &options.exact, NULL, "measure exact search"},
    {"with-payload", CLI_FLAG, &options.with_payload, NULL, "ask for payloads too"},
    {"in-flight", CLI_U32, &options.in_flight, "N",
     "closed loop: requests on their way at once (1)"},
    {"rate", CLI_DOUBLE, &options.rate, "QPS", "open loop: requests a second"},
    {"seconds", CLI_U32, &options.seconds, "S", "how long to measure (5)"},
    {"no-recall", CLI_FLAG, &options.no_recall, NULL, "do not compare with exact answers"},
    {0},
};

struct flight {
    uint64_t ticket; /* 0: free */
    double due_s;
    uint32_t query;
};

struct bench {
    struct skerry *db;
    const char *collection;
    uint32_t dim, query_count;
    float *queries;          /* query_count x dim */
    struct skerry_id *truth; /* query_count x limit; texts are owned */
    uint32_t *truth_counts;
    struct flight flights[IN_FLIGHT_MAX];
    unsigned in_flight;
    float *latencies_s;
    size_t latency_count;
    uint64_t errors;
    uint64_t found, wanted;
    char first_error[600];
};

/* ---- Queries ---- */

static int load_queries(struct bench *self)
{
    int status = CLI_DONE;
    struct matrix *file = matrix_open(options.file, &status);
    if (file == NULL)
        return status;
    uint64_t rows = matrix_rows(file);
    self->query_count = rows < options.query_count ? (uint32_t)rows : options.query_count;
    self->dim = matrix_dim(file);
    self->queries = malloc(((size_t)self->query_count * self->dim + 1) * sizeof *self->queries);
    if (self->queries == NULL)
        status = cli_failed("no memory for the queries");
    for (uint32_t i = 0; status == CLI_DONE && i < self->query_count; i++) {
        const float *row = matrix_row(file, i);
        if (row == NULL)
            status = CLI_FAILED;
        else
            memcpy(self->queries + (size_t)i * self->dim, row, self->dim * sizeof *row);
    }
    matrix_close(&file);
    return status == CLI_DONE && self->query_count == 0
               ? cli_failed("'%s' has no rows", options.file)
               : status;
}

/* Records of the collection itself: each finds itself first, which flatters recall by 1 in limit.
 */
static int sample_queries(struct bench *self)
{
    struct skerry_error error = {0};
    struct skerry_records *page = NULL;
    struct skerry_scroll request = {
        .collection = self->collection, .limit = options.query_count, .with_vector = true};
    if (skerry_scroll(self->db, &request, &page, &error) != SKERRY_OK)
        return cli_error(&error);
    int status = CLI_DONE;
    for (size_t i = 0; status == CLI_DONE && i < page->count; i++) {
        struct skerry_bytes vector = page->records[i].vector;
        if (vector.bytes == NULL) {
            status = cli_failed("the collection has named vectors: give --file and --using");
            break;
        }
        if (self->queries == NULL) {
            self->dim = (uint32_t)(vector.size / sizeof(float));
            self->queries = malloc(page->count * vector.size);
        }
        if (self->queries == NULL || vector.size != self->dim * sizeof(float))
            status = cli_failed("the sample of %zu records cannot be held", page->count);
        else
            memcpy(self->queries + (size_t)self->query_count++ * self->dim, vector.bytes,
                   vector.size);
    }
    skerry_records_free(&page);
    return status == CLI_DONE && self->query_count == 0
               ? cli_failed("collection '%s' is empty", self->collection)
               : status;
}

static struct skerry_search search_of(const struct bench *self, uint32_t query, bool is_exact)
{
    return (struct skerry_search){.collection = self->collection,
                                  .vectors = self->queries + (size_t)query * self->dim,
                                  .dim = self->dim,
                                  .vector_name = options.using,
                                  .limit = options.limit,
                                  .ef = options.ef,
                                  .nprobe = options.nprobe,
                                  .recall = options.recall,
                                  .filter = {.json = options.filter},
                                  .with_payload = options.with_payload && !is_exact,
                                  .exact = is_exact,
                                  .deadline_ms = cli_settings.deadline_ms};
}

static bool same_id(const struct skerry_id *a, const struct skerry_id *b)
{
    return (a->text == NULL) == (b->text == NULL) &&
           (a->text == NULL ? a->number == b->number : strcmp(a->text, b->text) == 0);
}

static int find_truth(struct bench *self)
{
    self->truth = calloc((size_t)self->query_count * options.limit, sizeof *self->truth);
    self->truth_counts = calloc(self->query_count, sizeof *self->truth_counts);
    if (self->truth == NULL || self->truth_counts == NULL)
        return cli_failed("no memory for the exact answers");
    for (uint32_t q = 0; q < self->query_count; q++) {
        struct skerry_error error = {0};
        struct skerry_hits *hits = NULL;
        struct skerry_search request = search_of(self, q, true);
        if (skerry_search(self->db, &request, &hits, &error) != SKERRY_OK)
            return cli_error(&error);
        for (size_t i = 0; i < hits->starts[1] && i < options.limit; i++) {
            struct skerry_id *id = &self->truth[(size_t)q * options.limit + i];
            *id = hits->hits[i].id;
            if (id->text != NULL)
                id->text = strdup(id->text);
            self->truth_counts[q]++;
        }
        skerry_hits_free(&hits);
    }
    return CLI_DONE;
}

/* ---- Measuring ---- */

static void judge(struct bench *self, uint32_t query, const struct skerry_hits *hits)
{
    if (self->truth == NULL)
        return;
    const struct skerry_id *truth = self->truth + (size_t)query * options.limit;
    for (uint32_t t = 0; t < self->truth_counts[query]; t++) {
        self->wanted++;
        for (size_t i = 0; i < hits->starts[1]; i++)
            if (same_id(&truth[t], &hits->hits[i].id)) {
                self->found++;
                break;
            }
    }
}

static void keep_error(struct bench *self, const struct skerry_error *error)
{
    if (self->errors++ == 0)
        snprintf(self->first_error, sizeof self->first_error, "%s: %s", error->name,
                 error->message);
}

static int launch(struct bench *self, double due_s, uint64_t number)
{
    struct skerry_error error = {0};
    struct flight *flight = self->flights;
    while (flight->ticket != 0)
        flight++;
    flight->query = (uint32_t)(number % self->query_count);
    flight->due_s = due_s;
    struct skerry_search request = search_of(self, flight->query, options.exact);
    if (skerry_search_submit(self->db, &request, &flight->ticket, &error) != SKERRY_OK)
        return cli_error(&error);
    self->in_flight++;
    return CLI_DONE;
}

/* One reply, or none within the time. */
static int land(struct bench *self, double wait_s)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    struct skerry_hits *hits = NULL;
    uint64_t ticket = 0;
    uint32_t wait_ms = (uint32_t)lround(wait_s * 1000);
    if (skerry_poll(self->db, wait_ms, &ticket, &reply, &error) != SKERRY_OK)
        return cli_error(&error);
    if (reply == NULL)
        return CLI_DONE;
    double now_s = cli_now_s();
    struct flight *flight = self->flights;
    while (flight < self->flights + IN_FLIGHT_MAX && flight->ticket != ticket)
        flight++;
    if (flight == self->flights + IN_FLIGHT_MAX) {
        skerry_reply_free(&reply);
        return CLI_DONE;
    }
    if (skerry_reply_hits(&reply, &hits, &error) != SKERRY_OK) {
        keep_error(self, &error);
    } else {
        if (self->latency_count < LATENCIES_MAX)
            self->latencies_s[self->latency_count++] = (float)(now_s - flight->due_s);
        judge(self, flight->query, hits);
    }
    skerry_hits_free(&hits);
    skerry_reply_free(&reply);
    flight->ticket = 0;
    self->in_flight--;
    return CLI_DONE;
}

static int run_closed(struct bench *self, double end_s)
{
    int status = CLI_DONE;
    for (uint64_t number = 0; status == CLI_DONE;) {
        while (status == CLI_DONE && self->in_flight < options.in_flight && cli_now_s() < end_s)
            status = launch(self, cli_now_s(), number++);
        if (self->in_flight == 0)
            break;
        if (status == CLI_DONE)
            status = land(self, 1);
    }
    return status;
}

static int run_open(struct bench *self, double start_s, double end_s)
{
    int status = CLI_DONE;
    uint64_t number = 0;
    while (status == CLI_DONE) {
        double now_s = cli_now_s(), due_s = start_s + (double)number / options.rate;
        bool is_over = due_s >= end_s;
        if (is_over && self->in_flight == 0)
            break;
        if (!is_over && due_s <= now_s && self->in_flight < IN_FLIGHT_MAX) {
            status = launch(self, due_s, number++);
            continue;
        }
        bool is_full = self->in_flight == IN_FLIGHT_MAX;
        if (self->in_flight == 0)
            usleep((useconds_t)((due_s - now_s) * 1e6));
        else /* whole milliseconds only: the last one before the next is due is spent looking */
            status = land(self, is_over || is_full ? 0.1 : floor((due_s - now_s) * 1e3) / 1e3);
    }
    return status;
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile_us(const struct bench *self, double q)
{
    size_t at = (size_t)(q * (double)(self->latency_count - 1) + 0.5);
    return self->latency_count == 0 ? 0 : 1e6 * (double)self->latencies_s[at];
}

static int report(struct bench *self, double elapsed_s)
{
    double qps = (double)self->latency_count / elapsed_s;
    double recall = self->wanted == 0 ? 0 : (double)self->found / (double)self->wanted;
    qsort(self->latencies_s, self->latency_count, sizeof *self->latencies_s, compare_floats);
    double p50 = quantile_us(self, 0.5), p99 = quantile_us(self, 0.99),
           p999 = quantile_us(self, 0.999);
    if (self->errors > 0)
        cli_note("skerry: %llu requests failed, the first with %s",
                 (unsigned long long)self->errors, self->first_error);
    if (cli_settings.json) {
        json_t *result = json_pack(
            "{s:s,s:s,s:f,s:I,s:I,s:f,s:f,s:f,s:f,s:i}", "collection", self->collection, "loop",
            options.rate > 0 ? "open" : "closed", "qps", qps, "requests",
            (json_int_t)self->latency_count, "errors", (json_int_t)self->errors, "p50_us", p50,
            "p99_us", p99, "p999_us", p999, "seconds", elapsed_s, "limit", (int)options.limit);
        json_object_set_new(result, "recall", self->wanted == 0 ? json_null() : json_real(recall));
        json_object_set_new(result, options.rate > 0 ? "rate" : "in_flight",
                            options.rate > 0 ? json_real(options.rate)
                                             : json_integer((json_int_t)options.in_flight));
        (void)cli_print_json(result);
    } else {
        char count[32];
        printf("%s searches, %.0f a second (%s loop)\n", cli_count_text(self->latency_count, count),
               qps, options.rate > 0 ? "open" : "closed");
        printf("p50 %.0f us   p99 %.0f us   p99.9 %.0f us\n", p50, p99, p999);
        if (self->wanted > 0)
            printf("recall@%u %.4f against exact search\n", options.limit, recall);
    }
    return self->errors > 0 ? CLI_FAILED : CLI_DONE;
}

static int measure(struct bench *self)
{
    int status = options.file != NULL ? load_queries(self) : sample_queries(self);
    if (status == CLI_DONE && !options.no_recall && !options.exact)
        status = find_truth(self);
    self->latencies_s = malloc(LATENCIES_MAX * sizeof *self->latencies_s);
    if (status == CLI_DONE && self->latencies_s == NULL)
        status = cli_failed("no memory for the latencies");
    if (status != CLI_DONE)
        return status;
    double start_s = cli_now_s(), end_s = start_s + options.seconds;
    status = options.rate > 0 ? run_open(self, start_s, end_s) : run_closed(self, end_s);
    return status == CLI_DONE ? report(self, cli_now_s() - start_s) : status;
}

static int bench(int count, char **arguments)
{
    static struct bench self;
    int status = CLI_DONE;
    (void)count;
    options.limit = options.limit == 0 ? 10 : options.limit;
    options.in_flight = options.in_flight == 0 ? 1 : options.in_flight;
    options.seconds = options.seconds == 0 ? 5 : options.seconds;
    options.query_count = options.query_count == 0 ? SAMPLE_QUERIES : options.query_count;
    if (options.in_flight > IN_FLIGHT_MAX || options.query_count > QUERIES_MAX ||
        options.rate < 0 || options.limit > 10000)
        return cli_usage(
            "--in-flight is at most %d, --query-count and --limit at most %d, --rate above 0",
            IN_FLIGHT_MAX, QUERIES_MAX);
    if (!cli_check_json("--filter", options.filter))
        return CLI_USAGE;
    self.collection = arguments[0];
    self.db = cli_connect(&status);
    if (self.db != NULL)
        status = measure(&self);
    for (size_t i = 0; self.truth != NULL && i < (size_t)self.query_count * options.limit; i++)
        free((void *)(uintptr_t)self.truth[i].text);
    free(self.truth);
    free(self.truth_counts);
    free(self.queries);
    free(self.latencies_s);
    skerry_close(&self.db);
    return status;
}

const struct cli_command cli_bench = {
    .name = "bench",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Measure searches: queries a second, latency and recall",
    .details = "Closed loop: --in-flight N requests are always on their way. Open loop: --rate QPS "
               "requests\n"
               "a second are sent whatever comes back; latency counts from when each was due.",
    .options = bench_options,
    .run = bench,
};
