/* skerry import: rows of a file in batches, several on their way at once.
 *
 * Resuming: a small file remembers how many rows from the beginning are acknowledged, and of which
 * file, node and collection. It lies in $XDG_STATE_HOME/skerry, not beside the data, which may be
 * read-only. A batch whose outcome is unknown is not sent again by this run; the next run sends it,
 * as one request with the same effect. `busy` and `disk_full` mean refused: those are tried again.
 */
#include "tools/skerry/commands.h"
#include "tools/skerry/import.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    BATCH_ROWS = 500,
    BATCH_ROWS_MAX = 10000,
    WINDOW = 4,
    RETRY_MAX = 200,
    IMPORT_DEADLINE_MS = 60000,
    QUIET_PROGRESS_S = 10, /* between lines of progress where there is no terminal */
};

struct import_options import_options;

static const struct cli_option option_table[] = {
    {"ids", CLI_TEXT, &import_options.ids, "FILE",
     "ids: .npy of integers, or one a line; else 0, 1, 2, ..."},
    {"payload", CLI_TEXT, &import_options.payload, "FILE",
     "payloads: JSON lines, in the order of the rows"},
    {"id-field", CLI_TEXT, &import_options.id_field, "NAME",
     "take each id from this payload member"},
    {"using", CLI_TEXT, &import_options.using, "NAME",
     "which vector field, where there are several"},
    {"ttl-s", CLI_U32, &import_options.ttl_s, "S", "records expire after this many seconds"},
    {"create", CLI_FLAG, &import_options.create, NULL, "make the collection if there is none"},
    {"metric", CLI_TEXT, &import_options.metric, "NAME",
     "with --create: cosine (default), ip or l2"},
    {"field", CLI_LIST, &import_options.fields, "NAME:KIND",
     "with --create: an indexed payload field"},
    {"limit", CLI_U32, &import_options.limit, "N", "only the first N rows"},
    {"batch", CLI_U32, &import_options.batch, "N", "rows a request (500)"},
    {"window", CLI_U32, &import_options.window, "N", "requests on their way at once (4)"},
    {"restart", CLI_FLAG, &import_options.restart, NULL, "begin again, do not resume"},
    {"state", CLI_TEXT, &import_options.state, "FILE", "where to remember how far it came"},
    {0},
};

/* ---- Requests ---- */

static int submit(struct importer *self, struct batch *batch)
{
    struct skerry_error error = {0};
    struct skerry_vectors columns[SOURCE_VECTORS_MAX];
    size_t column_count;
    float *values;
    if (!batch_columns(batch, columns, &column_count, &values))
        return cli_failed("no memory for a batch");
    struct skerry_upsert request = {
        .collection = self->collection,
        .ids = {batch->count, batch->numbers, (const char *const *)batch->texts},
        .vectors = columns,
        .vector_count = column_count,
        .payloads = batch->has_payloads ? batch->payloads : NULL,
        .ttl_s = batch->has_ttl ? batch->ttl_s : NULL,
        .ttl_s_all = import_options.ttl_s,
        .deadline_ms =
            cli_settings.deadline_ms == 0 ? IMPORT_DEADLINE_MS : cli_settings.deadline_ms,
    };
    enum skerry_code code = skerry_upsert_submit(self->db, &request, &batch->ticket, &error);
    free(values);
    batch->is_used = code == SKERRY_OK;
    return code == SKERRY_OK ? CLI_DONE : cli_error(&error);
}

static int fill_and_submit(struct importer *self, struct batch *batch, bool *is_at_end)
{
    int status = batch_fill(self, batch, is_at_end);
    return status != CLI_DONE || batch->count == 0 ? status : submit(self, batch);
}

/* ---- Progress ---- */

static double share_done(const struct importer *self)
{
    uint64_t rows = self->acknowledged + self->resumed_from;
    if (self->total > 0)
        return (double)rows / (double)self->total;
    return self->row == 0 ? 0 : source_share(self->source) * (double)rows / (double)self->row;
}

static void show_progress(struct importer *self, bool is_last)
{
    char count[32], rate[32], left[32], bar[31];
    bool is_terminal = cli_is_terminal(stderr);
    double now_s = cli_now_s(), elapsed_s = now_s - self->started_s, share = share_done(self);
    if (cli_settings.quiet || (is_last && !is_terminal) ||
        (!is_last && now_s - self->shown_s < (is_terminal ? 0.1 : QUIET_PROGRESS_S)))
        return;
    self->shown_s = now_s;
    double rows_a_second = elapsed_s > 0 ? (double)self->acknowledged / elapsed_s : 0;
    double begun = self->total > 0 ? (double)self->resumed_from / (double)self->total : 0;
    double left_s = share > begun ? elapsed_s * (1 - share) / (share - begun) : 0;
    unsigned filled = share >= 1 ? 30 : share <= 0 ? 0 : (unsigned)(share * 30);
    memset(bar, '.', 30);
    memset(bar, '#', filled);
    bar[30] = '\0';
    fprintf(stderr, "%s[%s] %3.0f %%  %s records  %s/s  %s%s", is_terminal ? "\r\033[K" : "", bar,
            100 * share, cli_count_text(self->acknowledged + self->resumed_from, count),
            cli_count_text((uint64_t)rows_a_second, rate),
            is_last ? "" : cli_duration_text(left_s, left),
            is_last       ? "\n"
            : is_terminal ? " left"
                          : " left\n");
}

/* ---- Running ---- */

static struct batch *batch_of(struct importer *self, uint64_t ticket)
{
    for (unsigned i = 0; i < self->window; i++)
        if (self->batches[i].is_used && self->batches[i].ticket == ticket)
            return &self->batches[i];
    return NULL;
}

/* One reply. Refused batches (busy, disk_full) are sent again after a while. */
static int receive(struct importer *self)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    uint64_t ticket = 0;
    if (skerry_poll(self->db, 200, &ticket, &reply, &error) != SKERRY_OK)
        return cli_error(&error);
    if (reply == NULL)
        return CLI_DONE;
    struct batch *batch = batch_of(self, ticket);
    enum skerry_code code = skerry_reply_error(reply, &error);
    skerry_reply_free(&reply);
    if (batch == NULL)
        return cli_failed("a reply for a batch that was not sent");
    if (code == SKERRY_OK) {
        self->acknowledged += batch->count;
        batch_clear(batch);
        return CLI_DONE;
    }
    if ((code == SKERRY_BUSY || code == SKERRY_DISK_FULL) && batch->retries < RETRY_MAX) {
        usleep(batch->retries < 5 ? 5000 : 100000);
        batch->retries++;
        return submit(self, batch);
    }
    if (!cli_settings.json)
        fprintf(stderr, "%srows %llu to %llu: ", cli_is_terminal(stderr) ? "\n" : "",
                (unsigned long long)batch->first_row,
                (unsigned long long)(batch->first_row + batch->count - 1));
    return cli_error(&error);
}

static int run_import(struct importer *self)
{
    bool is_at_end = false;
    int status = CLI_DONE;
    while (status == CLI_DONE) {
        unsigned used = 0;
        for (unsigned i = 0; i < self->window && status == CLI_DONE; i++) {
            if (!self->batches[i].is_used && !is_at_end)
                status = fill_and_submit(self, &self->batches[i], &is_at_end);
            used += self->batches[i].is_used;
        }
        if (status != CLI_DONE || (used == 0 && is_at_end))
            break;
        status = receive(self);
        show_progress(self, false);
        if (cli_now_s() - self->saved_s > 0.5)
            import_save_state(self);
    }
    while (status != CLI_DONE && skerry_in_flight(self->db) > 0) { /* what still is on its way */
        uint64_t ticket = 0;
        struct skerry_reply *reply = NULL;
        if (skerry_poll(self->db, 1000, &ticket, &reply, NULL) != SKERRY_OK)
            break;
        struct batch *batch = reply == NULL ? NULL : batch_of(self, ticket);
        if (batch != NULL && skerry_reply_error(reply, NULL) == SKERRY_OK) {
            self->acknowledged += batch->count;
            batch_clear(batch);
        }
        skerry_reply_free(&reply);
    }
    return status;
}

/* ---- Before and after ---- */

static int create_collection(struct importer *self, uint32_t dim)
{
    struct skerry_error error = {0};
    struct skerry_payload_field fields[CLI_LIST_MAX];
    char names[CLI_LIST_MAX][80];
    struct skerry_vector_field vector = {
        .name = import_options.using, .dim = dim, .metric = import_options.metric};
    struct skerry_collection_options wanted = {.name = self->collection,
                                               .vectors = &vector,
                                               .vector_count = 1,
                                               .fields = fields,
                                               .field_count = import_options.fields.count};
    for (size_t i = 0; i < import_options.fields.count; i++) {
        const char *text = import_options.fields.values[i], *colon = strrchr(text, ':');
        if (colon == NULL || colon == text || colon - text >= 80)
            return cli_usage("--field %s: want NAME:KIND, for instance lexname:keyword", text);
        snprintf(names[i], sizeof names[i], "%.*s", (int)(colon - text), text);
        fields[i] = (struct skerry_payload_field){names[i], colon + 1};
    }
    if (skerry_create_collection(self->db, &wanted, &error) != SKERRY_OK)
        return cli_error(&error);
    cli_note("created collection %s: dim %u, %s", self->collection, dim,
             import_options.metric == NULL ? "cosine" : import_options.metric);
    return CLI_DONE;
}

/* The first row's dimension, for --create; the source is opened again afterwards. */
static int first_dim(const char *path, uint32_t *dim)
{
    int status = CLI_DONE;
    struct source_row row;
    struct source *source = source_open(path, false, NULL, &status);
    if (source == NULL)
        return status;
    int got = source_next(source, &row);
    *dim = got == 1 && row.name_count == 0 ? row.dim : 0;
    source_close(&source);
    return got < 0     ? CLI_FAILED
           : *dim == 0 ? cli_failed("'%s' has no vectors, or named ones: make the "
                                    "collection first",
                                    path)
                       : CLI_DONE;
}

/* Declared fields of the description, wherever the schema stands in it. */
static json_t *declared_kinds(const json_t *description)
{
    json_t *payload = json_object_get(description, "payload");
    if (payload == NULL)
        payload = json_object_get(json_object_get(description, "schema"), "payload");
    return json_incref(payload);
}

static int describe(struct importer *self)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    enum skerry_code code = skerry_describe_collection(self->db, self->collection, &reply, &error);
    if (code == SKERRY_NOT_FOUND && import_options.create) {
        uint32_t dim = 0;
        int status = strcmp(self->path, "-") == 0
                         ? cli_usage("--create cannot look ahead into standard input")
                         : first_dim(self->path, &dim);
        if (status == CLI_DONE)
            status = create_collection(self, dim);
        if (status != CLI_DONE)
            return status;
        code = skerry_describe_collection(self->db, self->collection, &reply, &error);
    }
    if (code != SKERRY_OK) {
        int status = cli_error(&error);
        if (code == SKERRY_NOT_FOUND)
            cli_note("make it first (skerry collection create), or add --create to this command");
        return status;
    }
    json_error_t problem;
    char *text = skerry_reply_json(reply);
    json_t *description = text == NULL ? NULL : json_loads(text, 0, &problem);
    self->kinds = declared_kinds(description);
    self->identity = import_identity(self, description);
    json_decref(description);
    skerry_text_free(&text);
    skerry_reply_free(&reply);
    return self->identity == NULL ? cli_failed("no memory") : CLI_DONE;
}

static int open_ids(struct importer *self)
{
    int status = CLI_DONE;
    if (import_options.ids == NULL)
        return CLI_DONE;
    if (import_options.id_field != NULL)
        return cli_usage("give --ids or --id-field, not both");
    if (matrix_is_integers(import_options.ids))
        self->ids = integers_load(import_options.ids, &self->id_count, &status);
    else
        self->id_lines = lines_open(import_options.ids, &status);
    return status;
}

static int open_files(struct importer *self)
{
    int status = open_ids(self);
    if (status == CLI_DONE)
        self->source = source_open(self->path, false, self->kinds, &status);
    if (status == CLI_DONE && import_options.payload != NULL)
        self->payloads = source_open(import_options.payload, true, NULL, &status);
    if (status != CLI_DONE)
        return status;
    self->total = source_rows(self->source);
    if (import_options.limit != 0 && (self->total == 0 || import_options.limit < self->total))
        self->total = import_options.limit;
    return CLI_DONE;
}

static int skip_rows(struct importer *self, uint64_t rows)
{
    struct source_row row;
    char *line;
    size_t size;
    for (; self->row < rows; self->row++) {
        if (source_next(self->source, &row) != 1 ||
            (self->payloads != NULL && source_next(self->payloads, &row) != 1) ||
            (self->id_lines != NULL && lines_next(self->id_lines, &line, &size) != 1))
            return cli_failed(
                "cannot go on at row %llu: the files are shorter; --restart begins again",
                (unsigned long long)rows);
    }
    self->resumed_from = rows;
    cli_note("going on at row %llu (--restart begins again)", (unsigned long long)rows);
    return CLI_DONE;
}

static int report(struct importer *self, int status)
{
    char count[32], rate[32], time[32];
    double elapsed_s = cli_now_s() - self->started_s;
    double rows_a_second = elapsed_s > 0 ? (double)self->acknowledged / elapsed_s : 0;
    show_progress(self, true);
    if (status != CLI_DONE) {
        import_save_state(self);
        if (self->state_path[0] != '\0' && self->acknowledged + self->resumed_from > 0)
            cli_note("%llu records were acknowledged; the same command goes on from there",
                     (unsigned long long)(self->acknowledged + self->resumed_from));
        return status;
    }
    if (self->state_path[0] != '\0')
        (void)unlink(self->state_path);
    if (cli_settings.json)
        return cli_print_json(json_pack("{s:s,s:I,s:I,s:f,s:f}", "collection", self->collection,
                                        "imported", (json_int_t)self->acknowledged, "resumed_from",
                                        (json_int_t)self->resumed_from, "seconds", elapsed_s,
                                        "records_per_s", rows_a_second));
    printf("%s records in %s, %s a second\n", cli_count_text(self->acknowledged, count),
           cli_duration_text(elapsed_s, time), cli_count_text((uint64_t)rows_a_second, rate));
    return CLI_DONE;
}

static void importer_deinit(struct importer *self)
{
    for (unsigned i = 0; i < self->window; i++)
        batch_deinit(&self->batches[i]);
    source_close(&self->source);
    source_close(&self->payloads);
    lines_close(&self->id_lines);
    free(self->ids);
    json_decref(self->kinds);
    json_decref(self->identity);
    skerry_close(&self->db);
}

static int import(int count, char **arguments)
{
    static struct importer self;
    int status = CLI_DONE;
    (void)count;
    import_options.batch = import_options.batch == 0 ? BATCH_ROWS : import_options.batch;
    import_options.window = import_options.window == 0 ? WINDOW : import_options.window;
    if (import_options.batch > BATCH_ROWS_MAX || import_options.window > IMPORT_WINDOW_MAX)
        return cli_usage("--batch is at most %d rows and --window at most %d requests",
                         BATCH_ROWS_MAX, IMPORT_WINDOW_MAX);
    self.collection = arguments[0];
    self.path = arguments[1];
    self.window = import_options.window;
    for (unsigned i = 0; i < self.window && status == CLI_DONE; i++)
        if (!batch_init(&self.batches[i]))
            status = cli_failed("no memory for the batches");
    if (status == CLI_DONE)
        self.db = cli_connect(&status);
    if (status == CLI_DONE)
        status = describe(&self);
    if (status == CLI_DONE)
        status = open_files(&self);
    if (status == CLI_DONE) {
        uint64_t rows = 0;
        import_choose_state_path(&self);
        if (strcmp(self.path, "-") != 0)
            rows = import_load_state(&self);
        else
            self.state_path[0] = '\0'; /* a stream has no place to go on from */
        if (rows > 0)
            status = skip_rows(&self, rows);
        self.started_s = self.saved_s = self.shown_s = cli_now_s();
        if (status == CLI_DONE)
            status = report(&self, run_import(&self));
    }
    importer_deinit(&self);
    return status;
}

const struct cli_command cli_import = {
    .name = "import",
    .arguments = "NAME FILE",
    .arguments_min = 2,
    .arguments_max = 2,
    .summary = "Load records from a file; goes on where it was left off",
    .details =
        "FILE: .npy (float16, float32, float64, int8, uint8), .fvecs, .bvecs, .jsonl or .csv, "
        "each\n"
        "also .gz; or - for JSON lines from standard input. A JSON line is\n"
        "  {\"id\":..,\"vector\":[..],\"payload\":{..},\"ttl_s\":..}\n"
        "with {\"NAME\":[..], ..} as the vector where there are several; without payload, all "
        "other\n"
        "members are the payload. A csv file's first line names its columns: id, vector (numbers\n"
        "with spaces between) or v0, v1, ..., ttl_s; the rest is payload.\n"
        "Example: skerry import docs vectors.npy --payload records.jsonl.gz --id-field id --create",
    .options = option_table,
    .run = import,
};
