/* skerry import: rows of a file in batches, several on their way at once.
 *
 * Resuming: a small file remembers how many rows from the beginning are acknowledged, and of which
 * file, node and collection. It lies in $XDG_STATE_HOME/skerry, not beside the data, which may be
 * read-only. A batch whose outcome is unknown is not sent again by this run; the next run sends it,
 * as one request with the same effect. `busy` and `disk_full` mean refused: those are tried again.
 */
#include "tools/skerry/commands.h"
#include "tools/skerry/files.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BATCH_ROWS = 500,
    BATCH_ROWS_MAX = 10000,
    BATCH_BYTES = 4 << 20, /* of vectors and payloads: a frame stays far below its limit */
    WINDOW = 4,
    WINDOW_MAX = 64,
    RETRY_MAX = 200,
    IMPORT_DEADLINE_MS = 60000,
};

static struct {
    const char *ids, *payload, *id_field, *using, *metric, *state;
    uint32_t batch, window, limit, ttl_s;
    bool create, restart;
    struct cli_list fields;
} options;

static const struct cli_option import_options[] = {
    {"ids", CLI_TEXT, &options.ids, "FILE",
     "ids: .npy of integers, or one a line; else 0, 1, 2, ..."},
    {"payload", CLI_TEXT, &options.payload, "FILE",
     "payloads: JSON lines, in the order of the rows"},
    {"id-field", CLI_TEXT, &options.id_field, "NAME", "take each id from this payload member"},
    {"using", CLI_TEXT, &options.using, "NAME", "which vector field, where there are several"},
    {"ttl-s", CLI_U32, &options.ttl_s, "S", "records expire after this many seconds"},
    {"create", CLI_FLAG, &options.create, NULL, "make the collection if there is none"},
    {"metric", CLI_TEXT, &options.metric, "NAME", "with --create: cosine (default), ip or l2"},
    {"field", CLI_LIST, &options.fields, "NAME:KIND", "with --create: an indexed payload field"},
    {"limit", CLI_U32, &options.limit, "N", "only the first N rows"},
    {"batch", CLI_U32, &options.batch, "N", "rows a request (500)"},
    {"window", CLI_U32, &options.window, "N", "requests on their way at once (4)"},
    {"restart", CLI_FLAG, &options.restart, NULL, "begin again, do not resume"},
    {"state", CLI_TEXT, &options.state, "FILE", "where to remember how far it came"},
    {0},
};

struct batch {
    bool is_used;
    uint64_t ticket;
    uint64_t first_row;
    size_t count;
    size_t bytes;
    uint32_t dim;
    unsigned retries;
    uint64_t *numbers;
    char **texts; /* owned each */
    float *vectors;
    size_t vectors_capacity;
    struct skerry_bytes *payloads; /* owned each: malloc */
    uint32_t *ttl_s;
    bool has_payloads, has_ttl, has_vectors;
};

struct importer {
    const char *collection, *path;
    struct skerry *db;
    struct source *source;
    struct source *payloads; /* beside the vectors; or NULL */
    uint64_t *ids;           /* from --ids .npy */
    uint64_t id_count;
    struct lines *id_lines; /* from --ids text */
    json_t *kinds;          /* declared payload fields */
    struct batch batches[WINDOW_MAX];
    unsigned window;
    uint64_t row;          /* the next one to be read */
    uint64_t acknowledged; /* rows, in this run */
    uint64_t total;        /* 0: not known */
    uint64_t resumed_from;
    double started_s, shown_s, saved_s;
    char state_path[PATH_MAX];
    json_t *identity;
};

/* ---- Where it was left ---- */

static json_t *file_identity(const char *path)
{
    struct stat status;
    char whole[PATH_MAX];
    if (path == NULL || stat(path, &status) != 0)
        return json_null();
    const char *shown = realpath(path, whole) == NULL ? path : whole;
    return json_pack("{s:s,s:I,s:I,s:I}", "path", shown, "size", (json_int_t)status.st_size,
                     "modified_ns",
                     (json_int_t)(status.st_mtim.tv_sec * 1000000000LL + status.st_mtim.tv_nsec),
                     "inode", (json_int_t)status.st_ino);
}

/* What a remembered position belongs to; a dropped and newly made collection has another uuid. */
static json_t *make_identity(struct importer *self, json_t *description)
{
    json_t *uuid = json_object_get(description, "uuid");
    return json_pack("{s:s,s:s,s:o,s:o,s:o,s:o}", "node", skerry_node_key(self->db), "collection",
                     self->collection, "uuid", uuid == NULL ? json_null() : json_incref(uuid),
                     "file", file_identity(self->path), "ids", file_identity(options.ids),
                     "payload", file_identity(options.payload));
}

static uint32_t hash_text(const char *text)
{
    uint32_t hash = 2166136261U; /* FNV-1a: a name for a file, no more */
    for (; *text != '\0'; text++)
        hash = (hash ^ (uint8_t)*text) * 16777619U;
    return hash;
}

static void choose_state_path(struct importer *self)
{
    const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char folder[PATH_MAX - 64], named[PATH_MAX], whole[PATH_MAX];
    if (options.state != NULL) {
        snprintf(self->state_path, sizeof self->state_path, "%s", options.state);
        return;
    }
    if ((base == NULL || base[0] == '\0') && home == NULL)
        return;
    if (base != NULL && base[0] != '\0')
        snprintf(folder, sizeof folder, "%s/skerry", base);
    else
        snprintf(folder, sizeof folder, "%s/.local/state/skerry", home);
    for (char *c = folder + 1; *c != '\0'; c++)
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(folder, 0755);
            *c = '/';
        }
    (void)mkdir(folder, 0700);
    const char *path = realpath(self->path, whole) == NULL ? self->path : whole;
    snprintf(named, sizeof named, "%.1500s %.100s %.2000s", skerry_node_key(self->db),
             self->collection, path);
    snprintf(self->state_path, sizeof self->state_path, "%s/import-%08x.json", folder,
             hash_text(named));
}

/* The rows from the beginning that a run before this one has acknowledged. */
static uint64_t load_state(struct importer *self)
{
    json_error_t problem;
    json_t *state =
        self->state_path[0] == '\0' ? NULL : json_load_file(self->state_path, 0, &problem);
    uint64_t rows = 0;
    if (state == NULL)
        return 0;
    if (json_equal(json_object_get(state, "identity"), self->identity) == 0)
        cli_note(
            "skerry: the import of this file that was left off was of another state of the file or "
            "collection: beginning again");
    else if (!options.restart)
        rows = (uint64_t)json_integer_value(json_object_get(state, "rows"));
    json_decref(state);
    return rows;
}

/* All rows before this one are acknowledged. */
static uint64_t acknowledged_to(const struct importer *self)
{
    uint64_t row = self->row;
    for (unsigned i = 0; i < self->window; i++)
        if (self->batches[i].is_used && self->batches[i].first_row < row)
            row = self->batches[i].first_row;
    return row;
}

static void save_state(struct importer *self)
{
    char path[PATH_MAX + 8];
    if (self->state_path[0] == '\0')
        return;
    snprintf(path, sizeof path, "%s.new", self->state_path);
    json_t *state = json_pack("{s:O,s:I}", "identity", self->identity, "rows",
                              (json_int_t)acknowledged_to(self));
    if (state == NULL || json_dump_file(state, path, JSON_COMPACT) != 0 ||
        rename(path, self->state_path) != 0) {
        cli_note("skerry: cannot remember how far the import came in '%s': %s", self->state_path,
                 strerror(errno));
        self->state_path[0] = '\0';
    }
    json_decref(state);
    self->saved_s = cli_now_s();
}

/* ---- Batches ---- */

static void batch_clear(struct batch *self)
{
    for (size_t i = 0; i < self->count; i++) {
        free(self->texts[i]);
        self->texts[i] = NULL;
        free((void *)(uintptr_t)self->payloads[i].bytes);
        self->payloads[i] = (struct skerry_bytes){0};
    }
    self->count = self->bytes = 0;
    self->retries = 0;
    self->is_used = self->has_payloads = self->has_ttl = self->has_vectors = false;
}

static bool batch_init(struct batch *self)
{
    self->numbers = calloc(options.batch, sizeof *self->numbers);
    self->texts = calloc(options.batch, sizeof *self->texts);
    self->payloads = calloc(options.batch, sizeof *self->payloads);
    self->ttl_s = calloc(options.batch, sizeof *self->ttl_s);
    return self->numbers != NULL && self->texts != NULL && self->payloads != NULL &&
           self->ttl_s != NULL;
}

static void batch_deinit(struct batch *self)
{
    if (self->texts != NULL && self->payloads != NULL)
        batch_clear(self);
    free(self->numbers);
    free(self->texts);
    free(self->payloads);
    free(self->ttl_s);
    free(self->vectors);
}

static bool batch_set_vector(struct batch *self, const struct source_row *row)
{
    size_t wanted = (self->count + 1) * row->dim;
    if (self->vectors_capacity < wanted) {
        size_t capacity = (size_t)options.batch * row->dim;
        float *vectors = realloc(self->vectors, capacity * sizeof *vectors);
        if (vectors == NULL)
            return false;
        self->vectors = vectors;
        self->vectors_capacity = capacity;
    }
    self->dim = row->dim;
    self->has_vectors = true;
    memcpy(self->vectors + self->count * row->dim, row->vector, row->dim * sizeof(float));
    return true;
}

/* The member of a payload as an id. */
static bool id_from_payload(struct skerry_bytes payload, const char *name, struct skerry_id *id,
                            char **text)
{
    const uint8_t *bytes = payload.bytes;
    struct sk_reader scan = {bytes, bytes + payload.size};
    struct sk_value map, key, value;
    if (bytes == NULL || !sk_scan_next(&scan, &map) || map.kind != SK_VALUE_MAP)
        return false;
    for (uint32_t i = 0; i < map.count; i++) {
        if (!sk_scan_next(&scan, &key))
            return false;
        struct sk_reader at = scan;
        if (!sk_scan_skip(&scan, NULL))
            return false;
        if (key.kind != SK_VALUE_TEXT || !sk_span_is(key.span, name) || !sk_scan_next(&at, &value))
            continue;
        if (value.kind == SK_VALUE_UNSIGNED)
            id->number = value.u64;
        else if (value.kind == SK_VALUE_TEXT)
            *text = strndup((const char *)value.span.bytes, value.span.size);
        return value.kind == SK_VALUE_UNSIGNED || *text != NULL;
    }
    return false;
}

static int set_id(struct importer *self, struct batch *batch, const struct source_row *row,
                  struct skerry_bytes payload)
{
    struct skerry_id id = {.number = self->row};
    char *line, *text = NULL;
    size_t size;
    if (self->ids != NULL) {
        if (self->row >= self->id_count)
            return cli_failed("'%s' has %llu ids, and '%s' has more rows", options.ids,
                              (unsigned long long)self->id_count, self->path);
        id.number = self->ids[self->row];
    } else if (self->id_lines != NULL) {
        int got = lines_next(self->id_lines, &line, &size);
        if (got != 1 || !cli_id(line, &id))
            return got == 1 ? cli_failed("'%s' line %llu is not an id", options.ids,
                                         (unsigned long long)self->row + 1)
                            : cli_failed("'%s' has %llu ids, and '%s' has more rows", options.ids,
                                         (unsigned long long)self->row, self->path);
        text = id.text == NULL ? NULL : strdup(id.text);
    } else if (options.id_field != NULL) {
        if (!id_from_payload(payload, options.id_field, &id, &text))
            return cli_failed(
                "row %llu: its payload has no member '%s' that is an unsigned integer or "
                "a text",
                (unsigned long long)self->row, options.id_field);
    } else if (row->has_id) {
        id = row->id;
        text = id.text == NULL ? NULL : strdup(id.text);
    }
    batch->numbers[batch->count] = id.number;
    batch->texts[batch->count] = text;
    return CLI_DONE;
}

/* 1: a row was added; 0: the end; -1: failed. A row of another dimension ends the batch before it:
 * the node names it. */
static int add_row(struct importer *self, struct batch *batch)
{
    struct source_row row, beside = {0};
    int got = source_next(self->source, &row);
    if (got != 1)
        return got;
    if (self->payloads != NULL) {
        got = source_next(self->payloads, &beside);
        if (got == 0)
            (void)cli_failed("'%s' ends after %llu lines, and '%s' has more rows", options.payload,
                             (unsigned long long)self->row, self->path);
        if (got != 1)
            return -1;
    }
    struct skerry_bytes payload = self->payloads == NULL ? row.payload : beside.payload;
    if (batch->has_vectors && row.vector != NULL && row.dim != batch->dim) {
        (void)cli_failed("row %llu has dimension %u, the one before it %u",
                         (unsigned long long)self->row, row.dim, batch->dim);
        return -1;
    }
    if (row.vector == NULL) {
        (void)cli_failed("row %llu has no vector", (unsigned long long)self->row);
        return -1;
    }
    if (set_id(self, batch, &row, payload) != CLI_DONE)
        return -1;
    if (!batch_set_vector(batch, &row))
        return cli_failed("no memory for a batch"), -1;
    batch->count++; /* from here on batch_clear frees what the row owns */
    batch->ttl_s[batch->count - 1] = row.ttl_s;
    batch->has_ttl = batch->has_ttl || row.ttl_s != 0;
    if (payload.bytes != NULL) {
        void *copy = malloc(payload.size);
        if (copy == NULL)
            return cli_failed("no memory for a batch"), -1;
        memcpy(copy, payload.bytes, payload.size);
        batch->payloads[batch->count - 1] = (struct skerry_bytes){copy, payload.size};
        batch->has_payloads = true;
    }
    batch->bytes += payload.size + row.dim * sizeof(float);
    self->row++;
    return 1;
}

static int submit(struct importer *self, struct batch *batch)
{
    struct skerry_error error = {0};
    struct skerry_vectors column = {options.using, batch->vectors, batch->dim};
    struct skerry_upsert request = {
        .collection = self->collection,
        .ids = {batch->count, batch->numbers, (const char *const *)batch->texts},
        .vectors = &column,
        .vector_count = 1,
        .payloads = batch->has_payloads ? batch->payloads : NULL,
        .ttl_s = batch->has_ttl ? batch->ttl_s : NULL,
        .ttl_s_all = options.ttl_s,
        .deadline_ms =
            cli_settings.deadline_ms == 0 ? IMPORT_DEADLINE_MS : cli_settings.deadline_ms,
    };
    if (skerry_upsert_submit(self->db, &request, &batch->ticket, &error) != SKERRY_OK)
        return cli_error(&error);
    batch->is_used = true;
    return CLI_DONE;
}

static int fill_and_submit(struct importer *self, struct batch *batch, bool *is_at_end)
{
    batch_clear(batch);
    batch->first_row = self->row;
    while (batch->count < options.batch && batch->bytes < BATCH_BYTES) {
        if (options.limit != 0 && self->row >= options.limit) {
            *is_at_end = true;
            break;
        }
        int got = add_row(self, batch);
        if (got < 0)
            return CLI_FAILED;
        if (got == 0) {
            *is_at_end = true;
            break;
        }
    }
    return batch->count == 0 ? CLI_DONE : submit(self, batch);
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
    double now_s = cli_now_s(), elapsed_s = now_s - self->started_s, share = share_done(self);
    if (cli_settings.quiet || !cli_is_terminal(stderr) || (!is_last && now_s - self->shown_s < 0.1))
        return;
    self->shown_s = now_s;
    double rows_a_second = elapsed_s > 0 ? (double)self->acknowledged / elapsed_s : 0;
    double begun = self->total > 0 ? (double)self->resumed_from / (double)self->total : 0;
    double left_s = share > begun ? elapsed_s * (1 - share) / (share - begun) : 0;
    unsigned filled = share >= 1 ? 30 : share <= 0 ? 0 : (unsigned)(share * 30);
    memset(bar, '.', 30);
    memset(bar, '#', filled);
    bar[30] = '\0';
    fprintf(stderr, "\r\033[K[%s] %3.0f %%  %s records  %s/s  %s%s", bar, 100 * share,
            cli_count_text(self->acknowledged + self->resumed_from, count),
            cli_count_text((uint64_t)rows_a_second, rate),
            is_last ? "" : cli_duration_text(left_s, left), is_last ? "\n" : " left");
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
            save_state(self);
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
        .name = options.using, .dim = dim, .metric = options.metric};
    struct skerry_collection_options wanted = {.name = self->collection,
                                               .vectors = &vector,
                                               .vector_count = 1,
                                               .fields = fields,
                                               .field_count = options.fields.count};
    for (size_t i = 0; i < options.fields.count; i++) {
        const char *text = options.fields.values[i], *colon = strrchr(text, ':');
        if (colon == NULL || colon == text || colon - text >= 80)
            return cli_usage("--field %s: want NAME:KIND, for instance lexname:keyword", text);
        snprintf(names[i], sizeof names[i], "%.*s", (int)(colon - text), text);
        fields[i] = (struct skerry_payload_field){names[i], colon + 1};
    }
    if (skerry_create_collection(self->db, &wanted, &error) != SKERRY_OK)
        return cli_error(&error);
    cli_note("created collection %s: dim %u, %s", self->collection, dim,
             options.metric == NULL ? "cosine" : options.metric);
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
    *dim = got == 1 ? row.dim : 0;
    source_close(&source);
    return got < 0 ? CLI_FAILED : *dim == 0 ? cli_failed("'%s' has no vectors", path) : CLI_DONE;
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
    if (code == SKERRY_NOT_FOUND && options.create) {
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
    self->identity = make_identity(self, description);
    json_decref(description);
    skerry_text_free(&text);
    skerry_reply_free(&reply);
    return self->identity == NULL ? cli_failed("no memory") : CLI_DONE;
}

static int open_ids(struct importer *self)
{
    int status = CLI_DONE;
    if (options.ids == NULL)
        return CLI_DONE;
    if (options.id_field != NULL)
        return cli_usage("give --ids or --id-field, not both");
    if (matrix_is_integers(options.ids))
        self->ids = integers_load(options.ids, &self->id_count, &status);
    else
        self->id_lines = lines_open(options.ids, &status);
    return status;
}

static int open_files(struct importer *self)
{
    int status = open_ids(self);
    if (status == CLI_DONE)
        self->source = source_open(self->path, false, self->kinds, &status);
    if (status == CLI_DONE && options.payload != NULL)
        self->payloads = source_open(options.payload, true, NULL, &status);
    if (status != CLI_DONE)
        return status;
    self->total = source_rows(self->source);
    if (options.limit != 0 && (self->total == 0 || options.limit < self->total))
        self->total = options.limit;
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
        save_state(self);
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
    options.batch = options.batch == 0 ? BATCH_ROWS : options.batch;
    options.window = options.window == 0 ? WINDOW : options.window;
    if (options.batch > BATCH_ROWS_MAX || options.window > WINDOW_MAX)
        return cli_usage("--batch is at most %d rows and --window at most %d requests",
                         BATCH_ROWS_MAX, WINDOW_MAX);
    self.collection = arguments[0];
    self.path = arguments[1];
    self.window = options.window;
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
        choose_state_path(&self);
        if (strcmp(self.path, "-") != 0)
            rows = load_state(&self);
        else
            self.state_path[0] = '\0'; /* a stream has no place to go on from */
        if (rows > 0)
            status = skip_rows(&self, rows);
        self.started_s = self.saved_s = cli_now_s();
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
        "FILE: .npy (float16, float32, float64, int8, uint8), .fvecs, .bvecs, .jsonl, .csv (the "
        "last two\n"
        "also .gz), or - for JSON lines from standard input. A JSON line is "
        "{\"id\":..,\"vector\":[..],\n"
        "\"payload\":{..},\"ttl_s\":..}; without payload, all other members are the payload. A csv "
        "file's\n"
        "first line names its columns: id, vector (numbers with spaces between) or v0, v1, ..., "
        "and the\n"
        "rest is payload.\n"
        "Example: skerry import docs vectors.npy --payload records.jsonl.gz --id-field id --create",
    .options = import_options,
    .run = import,
};
