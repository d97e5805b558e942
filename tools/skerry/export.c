/* skerry export: every record, page by page in id order, to JSON lines or to a matrix of its
 * vectors. */
#include "tools/skerry/commands.h"
#include "tools/skerry/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE_ROWS = 1000, NPY_HEADER_BYTES = 128 };

static struct {
    const char *filter, *using, *ids;
    bool no_vectors;
} options;

static const struct cli_option export_options[] = {
    {"filter", CLI_TEXT, &options.filter, "JSON", "only records for which this holds"},
    {"using", CLI_TEXT, &options.using, "NAME", "npy: which vector field, where there are several"},
    {"ids", CLI_TEXT, &options.ids, "FILE", "npy: write the ids here, one a line"},
    {"no-vectors", CLI_FLAG, &options.no_vectors, NULL, "jsonl: leave the vectors out"},
    {0},
};

struct exporter {
    const char *collection, *path;
    bool is_npy;
    struct skerry *db;
    FILE *out;
    FILE *ids;
    uint64_t rows;
    size_t vector_bytes;
    double shown_s;
};

/* The header's size is fixed, so that the count can be put right at the end. */
static bool write_npy_header(FILE *out, uint64_t rows, size_t dim)
{
    char header[NPY_HEADER_BYTES];
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(sizeof header - 10);
    header[9] = 0;
    int size = snprintf(header + 10, sizeof header - 10,
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (%llu, %zu), }",
                        (unsigned long long)rows, dim);
    header[10 + size] = ' ';
    header[sizeof header - 1] = '\n';
    return fwrite(header, sizeof header, 1, out) == 1;
}

/* The vector that is meant, of a record that has one or a map of them. */
static struct skerry_bytes vector_of(const struct skerry_record *record)
{
    const uint8_t *bytes = record->vector_map.bytes;
    struct sk_reader scan = {bytes, bytes + record->vector_map.size};
    struct sk_value map, key, value;
    if (bytes == NULL || options.using == NULL)
        return record->vector;
    if (!sk_scan_next(&scan, &map) || map.kind != SK_VALUE_MAP)
        return (struct skerry_bytes){0};
    for (uint32_t i = 0; i < map.count; i++)
        if (sk_scan_next(&scan, &key) && sk_scan_next(&scan, &value) &&
            value.kind == SK_VALUE_BIN && sk_span_is(key.span, options.using))
            return (struct skerry_bytes){value.span.bytes, value.span.size};
    return (struct skerry_bytes){0};
}

static int write_vector(struct exporter *self, const struct skerry_record *record)
{
    struct skerry_bytes vector = vector_of(record);
    char id[80];
    if (vector.bytes == NULL)
        return cli_failed("record %s has no vector%s%s", cli_id_text(&record->id, id, sizeof id),
                          options.using == NULL ? "; name the field with --using" : " ",
                          options.using == NULL ? "" : options.using);
    if (self->rows == 0) {
        self->vector_bytes = vector.size;
        if (!write_npy_header(self->out, 0, vector.size / sizeof(float)))
            return cli_failed("'%s': %s", self->path, strerror(errno));
    }
    if (vector.size != self->vector_bytes)
        return cli_failed("record %s has another dimension",
                          cli_id_text(&record->id, id, sizeof id));
    if (fwrite(vector.bytes, vector.size, 1, self->out) != 1)
        return cli_failed("'%s': %s", self->path, strerror(errno));
    if (self->ids != NULL)
        fprintf(self->ids, "%s\n", cli_id_text(&record->id, id, sizeof id));
    return CLI_DONE;
}

/* The record as the node gave it, without its version: what import reads. */
static int write_line(struct exporter *self, const struct skerry_record *record)
{
    struct sk_buffer map = {0};
    char *text = NULL;
    bool has_vector = record->vector.bytes != NULL || record->vector_map.bytes != NULL;
    sk_put_map(&map, 1U + has_vector + (record->payload.bytes != NULL));
    sk_put_text(&map, "id");
    if (record->id.text != NULL)
        sk_put_text(&map, record->id.text);
    else
        sk_put_u64(&map, record->id.number);
    if (has_vector)
        sk_put_text(&map, "vector");
    if (record->vector.bytes != NULL)
        sk_put_bin(&map, record->vector.bytes, record->vector.size);
    else if (has_vector)
        sk_buffer_append(&map, record->vector_map.bytes, record->vector_map.size);
    if (record->payload.bytes != NULL) {
        sk_put_text(&map, "payload");
        sk_buffer_append(&map, record->payload.bytes, record->payload.size);
    }
    bool is_written = !map.is_broken &&
                      skerry_msgpack_to_json((struct skerry_bytes){map.bytes, map.size}, &text,
                                             NULL) == SKERRY_OK &&
                      fprintf(self->out, "%s\n", text) > 0;
    skerry_text_free(&text);
    sk_buffer_deinit(&map);
    return is_written ? CLI_DONE : cli_failed("'%s': %s", self->path, strerror(errno));
}

static int write_page(struct exporter *self, const struct skerry_records *page)
{
    int status = CLI_DONE;
    for (size_t i = 0; status == CLI_DONE && i < page->count; i++) {
        status = self->is_npy ? write_vector(self, &page->records[i])
                              : write_line(self, &page->records[i]);
        self->rows += status == CLI_DONE;
    }
    if (!cli_settings.quiet && cli_is_terminal(stderr) && cli_now_s() - self->shown_s > 0.1) {
        char count[32];
        fprintf(stderr, "\r\033[K%s records", cli_count_text(self->rows, count));
        self->shown_s = cli_now_s();
    }
    return status;
}

static int scroll_all(struct exporter *self)
{
    struct skerry_error error = {0};
    struct skerry_records *page = NULL, *next = NULL;
    struct skerry_scroll request = {.collection = self->collection,
                                    .limit = PAGE_ROWS,
                                    .filter = {.json = options.filter},
                                    .with_payload = !self->is_npy,
                                    .with_vector = self->is_npy || !options.no_vectors,
                                    .deadline_ms = cli_settings.deadline_ms};
    int status = CLI_DONE;
    do {
        if (skerry_scroll(self->db, &request, &next, &error) != SKERRY_OK)
            status = cli_error(&error);
        skerry_records_free(&page); /* the cursor of the request was in it */
        page = next;
        if (status == CLI_DONE)
            status = write_page(self, page);
        request.cursor = page == NULL ? (struct skerry_bytes){0} : page->cursor;
    } while (status == CLI_DONE && request.cursor.bytes != NULL);
    skerry_records_free(&page);
    return status;
}

static int finish(struct exporter *self, int status)
{
    if (status == CLI_DONE && self->is_npy &&
        (fseek(self->out, 0, SEEK_SET) != 0 ||
         !write_npy_header(self->out, self->rows, self->vector_bytes / sizeof(float))))
        status = cli_failed("'%s': %s", self->path, strerror(errno));
    if (self->ids != NULL && fclose(self->ids) != 0 && status == CLI_DONE)
        status = cli_failed("'%s': %s", options.ids, strerror(errno));
    if (self->out != NULL && self->out != stdout &&
        (fflush(self->out) != 0 || fsync(fileno(self->out)) != 0) && status == CLI_DONE)
        status = cli_failed("'%s': %s", self->path, strerror(errno));
    if (self->out != NULL && self->out != stdout && fclose(self->out) != 0 && status == CLI_DONE)
        status = cli_failed("'%s': %s", self->path, strerror(errno));
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), end_size = strlen(end);
    return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

static int open_outputs(struct exporter *self)
{
    self->is_npy = ends_with(self->path, ".npy");
    if (!self->is_npy && !ends_with(self->path, ".jsonl") && strcmp(self->path, "-") != 0)
        return cli_usage(
            "'%s': its name does not tell the format; want .jsonl, .npy, or - for JSON "
            "lines to standard output",
            self->path);
    if (options.ids != NULL && !self->is_npy)
        return cli_usage("--ids goes with .npy; JSON lines hold their ids");
    self->out = strcmp(self->path, "-") == 0 ? stdout : fopen(self->path, "w");
    if (self->out == NULL)
        return cli_failed("'%s': %s", self->path, strerror(errno));
    if (options.ids != NULL && (self->ids = fopen(options.ids, "w")) == NULL)
        return cli_failed("'%s': %s", options.ids, strerror(errno));
    return CLI_DONE;
}

static int export_records(int count, char **arguments)
{
    struct exporter self = {.collection = arguments[0], .path = arguments[1]};
    int status = CLI_DONE;
    char text[32];
    (void)count;
    if (!cli_check_json("--filter", options.filter))
        return CLI_USAGE;
    self.db = cli_connect(&status);
    if (status == CLI_DONE)
        status = open_outputs(&self);
    if (status == CLI_DONE)
        status = scroll_all(&self);
    status = finish(&self, status);
    skerry_close(&self.db);
    if (status != CLI_DONE)
        return status;
    if (!cli_settings.quiet && cli_is_terminal(stderr))
        fprintf(stderr, "\r\033[K");
    if (self.out == stdout)
        cli_note("%s records", cli_count_text(self.rows, text));
    else if (cli_settings.json)
        return cli_print_json(json_pack("{s:s,s:I,s:s}", "collection", self.collection, "exported",
                                        (json_int_t)self.rows, "file", self.path));
    else
        printf("%s records to %s\n", cli_count_text(self.rows, text), self.path);
    return CLI_DONE;
}

const struct cli_command cli_export = {
    .name = "export",
    .arguments = "NAME FILE",
    .arguments_min = 2,
    .arguments_max = 2,
    .summary = "Write all records of a collection to a file",
    .details =
        "FILE: .jsonl (what import reads again), .npy (the vectors, float32), or - for JSON lines\n"
        "to standard output.",
    .options = export_options,
    .run = export_records,
};
