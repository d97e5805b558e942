/* Records of a file, row by row: matrices, JSON lines, csv. */
#include "tools/skerry/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { CSV_COLUMNS_MAX = 9000, CSV_RECORD_BYTES_MAX = 16 << 20, NAME_BYTES = 128 };

enum source_kind { MATRIX, JSONL, CSV };

enum column_kind { COLUMN_PAYLOAD, COLUMN_ID, COLUMN_VECTOR, COLUMN_ELEMENT, COLUMN_TTL };

struct column {
    char *name;
    enum column_kind kind;
    const char *payload_kind; /* as declared, or NULL; borrowed from kinds */
};

struct source {
    const char *path; /* borrowed */
    enum source_kind kind;
    bool is_payload;
    struct matrix *matrix;
    uint64_t row;
    struct lines *lines;
    /* of the row that was read */
    struct skerry_bytes line; /* jsonl, as msgpack; owned */
    struct sk_buffer payload;
    char *id_text;
    float *vector;
    size_t vector_size, vector_capacity;
    struct source_vector names[SOURCE_VECTORS_MAX];
    unsigned name_count;
    /* csv */
    struct column *columns;
    size_t column_count;
    const json_t *kinds;
    struct sk_buffer record; /* of several lines */
};

static bool ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), end_size = strlen(end);
    return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

static int bad_line(const struct source *self, const char *words)
{
    (void)cli_failed("'%s' line %llu: %s", self->path,
                     (unsigned long long)lines_number(self->lines), words);
    return -1;
}

static bool add_number(struct source *self, double value)
{
    if (self->vector_size == self->vector_capacity) {
        size_t capacity = self->vector_capacity == 0 ? 1024 : 2 * self->vector_capacity;
        float *vector = realloc(self->vector, capacity * sizeof *vector);
        if (vector == NULL)
            return false;
        self->vector = vector;
        self->vector_capacity = capacity;
    }
    self->vector[self->vector_size++] = (float)value;
    return true;
}

/* A payload is written behind room for the longest head; its count is known at the end. */
static void begin_payload(struct source *self)
{
    self->payload.size = 0;
    (void)sk_buffer_grow(&self->payload, 5);
}

static struct skerry_bytes finish_payload(struct source *self, uint32_t count)
{
    uint8_t *head = self->payload.bytes;
    unsigned skipped = count < 16 ? 4 : 0; /* the short head where it is enough */
    head[skipped] = count < 16 ? (uint8_t)(0x80 | count) : 0xdf;
    for (unsigned i = 0; skipped == 0 && i < 4; i++)
        head[1 + i] = (uint8_t)(count >> (8 * (3 - i)));
    return (struct skerry_bytes){head + skipped, self->payload.size - skipped};
}

/* ---- JSON lines ---- */

static int read_json_numbers(struct source *self, struct sk_reader *scan)
{
    struct sk_value list, value;
    if (!sk_scan_next(scan, &list) || list.kind != SK_VALUE_ARRAY)
        return bad_line(self, "member vector is neither an array of numbers nor an object of such");
    for (uint32_t i = 0; i < list.count; i++) {
        if (!sk_scan_next(scan, &value) ||
            (value.kind != SK_VALUE_FLOAT && value.kind != SK_VALUE_UNSIGNED &&
             value.kind != SK_VALUE_NEGATIVE))
            return bad_line(self, "member vector is not an array of numbers");
        double number = value.kind == SK_VALUE_FLOAT      ? value.f64
                        : value.kind == SK_VALUE_UNSIGNED ? (double)value.u64
                                                          : (double)value.i64;
        if (!add_number(self, number))
            return bad_line(self, "no memory");
    }
    return 1;
}

static int keep_id(struct source *self, struct source_row *row, const struct sk_value *value)
{
    row->has_id = true;
    if (value->kind == SK_VALUE_UNSIGNED) {
        row->id.number = value->u64;
        return 1;
    }
    if (value->kind != SK_VALUE_TEXT)
        return bad_line(self, "member id is neither an unsigned integer nor a text");
    free(self->id_text);
    self->id_text = strndup((const char *)value->span.bytes, value->span.size);
    row->id.text = self->id_text;
    return self->id_text == NULL ? bad_line(self, "no memory") : 1;
}

/* [..], or {"title": [..], "body": [..]}. */
static int read_json_vector(struct source *self, struct sk_span span)
{
    struct sk_reader scan = {span.bytes, span.bytes + span.size}, inside = scan;
    struct sk_value map, key;
    if (!sk_scan_next(&inside, &map) || map.kind != SK_VALUE_MAP)
        return read_json_numbers(self, &scan);
    if (map.count > SOURCE_VECTORS_MAX)
        return bad_line(self, "more than 16 named vectors");
    for (uint32_t i = 0; i < map.count; i++) {
        struct source_vector *name = &self->names[i];
        size_t before = self->vector_size;
        if (!sk_scan_next(&inside, &key) || key.kind != SK_VALUE_TEXT ||
            key.span.size >= sizeof name->name)
            return bad_line(self, "a vector's name is not a text of at most 64 bytes");
        snprintf(name->name, sizeof name->name, "%.*s", (int)key.span.size,
                 (const char *)key.span.bytes);
        if (read_json_numbers(self, &inside) != 1)
            return -1;
        name->dim = (uint32_t)(self->vector_size - before);
        self->name_count++;
    }
    return 1;
}

/* {"id": .., "vector": [..], "payload": {..}, "ttl_s": ..}; without a member payload, all members
 * but these are the payload. */
static int read_json_member(struct source *self, struct sk_reader *scan, struct source_row *row,
                            uint32_t *other_count)
{
    struct sk_value key, value;
    const uint8_t *start = scan->at;
    struct sk_span span;
    if (!sk_scan_next(scan, &key) || key.kind != SK_VALUE_TEXT || !sk_scan_skip(scan, &span))
        return bad_line(self, "not a record");
    struct sk_reader inside = {span.bytes, span.bytes + span.size};
    if (!sk_scan_next(&inside, &value))
        return bad_line(self, "not a record");
    if (sk_span_is(key.span, "id"))
        return keep_id(self, row, &value);
    if (sk_span_is(key.span, "vector"))
        return value.kind == SK_VALUE_NIL ? 1 : read_json_vector(self, span);
    if (sk_span_is(key.span, "payload") && value.kind == SK_VALUE_NIL)
        return 1;
    if (sk_span_is(key.span, "payload")) {
        row->payload = (struct skerry_bytes){span.bytes, span.size};
        return value.kind == SK_VALUE_MAP ? 1 : bad_line(self, "member payload is not an object");
    }
    if (sk_span_is(key.span, "ttl_s") && value.kind == SK_VALUE_UNSIGNED &&
        value.u64 <= UINT32_MAX) {
        row->ttl_s = (uint32_t)value.u64;
        return 1;
    }
    ++*other_count;
    sk_buffer_append(&self->payload, start, (size_t)(scan->at - start));
    return 1;
}

static int next_json(struct source *self, struct source_row *row)
{
    char *line;
    size_t size;
    struct skerry_error error = {0};
    struct sk_value map;
    int got;
    do {
        got = lines_next(self->lines, &line, &size);
    } while (got == 1 && line[strspn(line, " \t")] == '\0');
    if (got != 1)
        return got;
    skerry_bytes_free(&self->line);
    if (skerry_json_to_msgpack(line, size, &self->line, &error) != SKERRY_OK)
        return bad_line(self, error.message);
    const uint8_t *bytes = self->line.bytes;
    struct sk_reader scan = {bytes, bytes + self->line.size};
    if (!sk_scan_next(&scan, &map) || map.kind != SK_VALUE_MAP)
        return bad_line(self, "not a JSON object");
    if (self->is_payload) {
        row->payload = self->line;
        return 1;
    }
    self->vector_size = 0;
    self->name_count = 0;
    begin_payload(self);
    uint32_t other_count = 0;
    for (uint32_t i = 0, count = map.count; i < count; i++)
        if (read_json_member(self, &scan, row, &other_count) != 1)
            return -1;
    if (self->payload.is_broken)
        return bad_line(self, "no memory");
    if (row->payload.bytes == NULL && other_count > 0)
        row->payload = finish_payload(self, other_count);
    row->names = self->name_count == 0 ? NULL : self->names;
    row->name_count = self->name_count;
    row->vector = self->vector_size == 0 ? NULL : self->vector;
    row->dim = (uint32_t)self->vector_size;
    return 1;
}

/* ---- csv: RFC 4180; a field in quotes may go over several lines ---- */

/* Whether the text ends inside a quoted field; is_open: it begins inside one. */
static bool ends_in_quotes(const char *at, bool is_open)
{
    for (;;) {
        if (is_open || *at == '"') {
            for (at += !is_open; *at != '\0' && (*at != '"' || at[1] == '"'); at++)
                at += *at == '"';
            if (*at == '\0')
                return true;
        }
        is_open = false;
        at += strcspn(at, ",");
        if (*at == '\0')
            return false;
        at++;
    }
}

/* The next record as one text: a line, and those after it that its quotes go over (their ends become \n). */
static int next_record(struct source *self, char **text)
{
    char *line;
    size_t size;
    int got;
    do {
        got = lines_next(self->lines, &line, &size);
    } while (got == 1 && size == 0);
    *text = line;
    if (got != 1 || !ends_in_quotes(line, false))
        return got;
    self->record.size = 0;
    for (bool is_open = true;;) {
        sk_buffer_append(&self->record, line, size);
        sk_buffer_append(&self->record, "", 1);
        if (self->record.is_broken || self->record.size > CSV_RECORD_BYTES_MAX)
            return bad_line(self, "a quote has no end within 16 MiB");
        *text = (char *)self->record.bytes;
        if (!is_open)
            return 1;
        self->record.bytes[self->record.size - 1] = '\n';
        got = lines_next(self->lines, &line, &size);
        if (got != 1)
            return got == 0 ? bad_line(self, "a quote has no end") : got;
        is_open = ends_in_quotes(line, true);
    }
}

/* The next field of the line, unquoted in place; NULL at the end, or when a quote has no end. */
static char *next_field(char **rest, bool *is_broken)
{
    char *at = *rest, *out, *start;
    if (at == NULL)
        return NULL;
    if (*at != '"') {
        start = at;
        at += strcspn(at, ",");
        *rest = *at == '\0' ? NULL : at + 1;
        *at = '\0';
        return start;
    }
    start = out = ++at;
    while (*at != '\0' && (*at != '"' || at[1] == '"')) {
        at += *at == '"';
        *out++ = *at++;
    }
    *is_broken = *at != '"' || (at[1] != ',' && at[1] != '\0');
    *rest = *is_broken || at[1] == '\0' ? NULL : at + 2;
    *out = '\0';
    return start;
}

static enum column_kind column_kind_of(const char *name)
{
    const char *digits = name + (name[0] == 'v' || name[0] == 'x' ? 1 : 0);
    if (strcmp(name, "id") == 0)
        return COLUMN_ID;
    if (strcmp(name, "vector") == 0)
        return COLUMN_VECTOR;
    if (strcmp(name, "ttl_s") == 0)
        return COLUMN_TTL;
    return digits[0] != '\0' && digits[strspn(digits, "0123456789")] == '\0' ? COLUMN_ELEMENT
                                                                             : COLUMN_PAYLOAD;
}

static int read_csv_head(struct source *self)
{
    char *line, *field;
    bool is_broken = false;
    int got = next_record(self, &line);
    if (got != 1)
        return got == 0 ? bad_line(self, "the file is empty; its first line names the columns")
                        : -1;
    if (strncmp(line, "\xef\xbb\xbf", 3) == 0)
        line += 3; /* the byte-order mark that spreadsheets write */
    self->columns = calloc(CSV_COLUMNS_MAX, sizeof *self->columns);
    while (self->columns != NULL && (field = next_field(&line, &is_broken)) != NULL) {
        if (self->column_count == CSV_COLUMNS_MAX)
            return bad_line(self, "more than 9,000 columns");
        struct column *column = &self->columns[self->column_count++];
        column->name = strdup(field);
        if (column->name == NULL)
            return bad_line(self, "no memory");
        column->kind = column_kind_of(field);
        column->payload_kind = json_string_value(json_object_get(self->kinds, field));
    }
    return self->columns == NULL ? bad_line(self, "no memory")
           : is_broken           ? bad_line(self, "text after the end of a quote")
                                 : 1;
}

/* A declared kind decides; else what looks like a number or a truth value is one. */
static void put_csv_value(struct sk_buffer *wire, const char *text, const char *kind)
{
    char *end = NULL;
    bool is_text = kind != NULL && strcmp(kind, "keyword") == 0;
    bool is_float = kind != NULL && strcmp(kind, "float") == 0;
    errno = 0;
    long long integer = strtoll(text, &end, 10);
    if (!is_text && !is_float && *end == '\0' && errno == 0) {
        sk_put_i64(wire, integer);
        return;
    }
    errno = 0;
    double number = strtod(text, &end);
    if (!is_text && *end == '\0' && end != text && errno == 0 &&
        strspn(text, "+-.0123456789eE") == strlen(text)) {
        sk_put_f64(wire, number);
        return;
    }
    bool is_true = strcmp(text, "true") == 0;
    if (!is_text && (is_true || strcmp(text, "false") == 0))
        sk_put_bool(wire, is_true);
    else
        sk_put_text(wire, text);
}

static bool add_vector_text(struct source *self, const char *text)
{
    for (;;) {
        char *end = NULL;
        text += strspn(text, " ,;[]\t");
        if (*text == '\0')
            return true;
        double value = strtod(text, &end);
        if (end == text || !add_number(self, value))
            return false;
        text = end;
    }
}

static int read_csv_field(struct source *self, const struct column *column, const char *text,
                          struct source_row *row, uint32_t *payload_count)
{
    char *end = NULL;
    switch (column->kind) {
    case COLUMN_ID:
        free(self->id_text);
        self->id_text = strdup(text);
        if (self->id_text == NULL || !cli_id(self->id_text, &row->id))
            return bad_line(self, "column id: want an unsigned integer or a text");
        row->has_id = true;
        return 1;
    case COLUMN_VECTOR:
    case COLUMN_ELEMENT:
        return add_vector_text(self, text) ? 1 : bad_line(self, "the vector is not numbers");
    case COLUMN_TTL:
        errno = 0;
        row->ttl_s = (uint32_t)strtoul(text, &end, 10);
        return *end == '\0' && errno == 0 ? 1 : bad_line(self, "column ttl_s: want seconds");
    case COLUMN_PAYLOAD:
        if (text[0] == '\0')
            return 1; /* an empty cell is no value */
        ++*payload_count;
        sk_put_text(&self->payload, column->name);
        put_csv_value(&self->payload, text, column->payload_kind);
        return 1;
    }
    return 1;
}

static int next_csv(struct source *self, struct source_row *row)
{
    char *line, *field;
    size_t at = 0;
    bool is_broken = false;
    uint32_t payload_count = 0;
    int got = next_record(self, &line);
    if (got != 1)
        return got;
    self->vector_size = 0;
    begin_payload(self);
    for (; (field = next_field(&line, &is_broken)) != NULL; at++) {
        if (at >= self->column_count)
            return bad_line(self, "more fields than the first line has columns");
        if (read_csv_field(self, &self->columns[at], field, row, &payload_count) != 1)
            return -1;
    }
    if (is_broken)
        return bad_line(self, "text after the end of a quote");
    if (at != self->column_count)
        return bad_line(self, "fewer fields than the first line has columns");
    if (self->payload.is_broken)
        return bad_line(self, "no memory");
    if (payload_count > 0)
        row->payload = finish_payload(self, payload_count);
    row->vector = self->vector_size == 0 ? NULL : self->vector;
    row->dim = (uint32_t)self->vector_size;
    return 1;
}

/* ---- Opening ---- */

static bool open_source(struct source *self, const char *path)
{
    int status = CLI_DONE;
    bool is_csv = ends_with(path, ".csv") || ends_with(path, ".csv.gz");
    if (self->is_payload && !ends_with(path, ".jsonl") && !ends_with(path, ".jsonl.gz")) {
        (void)cli_failed("'%s': payloads come as .jsonl or .jsonl.gz", path);
        return false;
    }
    if (matrix_is_named(path)) {
        self->kind = MATRIX;
        self->matrix = matrix_open(path, &status);
        return self->matrix != NULL;
    }
    if (!is_csv && !ends_with(path, ".jsonl") && !ends_with(path, ".jsonl.gz") &&
        strcmp(path, "-") != 0) {
        (void)cli_failed(
            "'%s': its name does not tell the format; want .npy, .fvecs, .bvecs, .jsonl or "
            ".csv (each also .gz), or - for JSON lines from standard input",
            path);
        return false;
    }
    self->kind = is_csv ? CSV : JSONL;
    self->lines = lines_open(path, &status);
    return self->lines != NULL && (!is_csv || read_csv_head(self) == 1);
}

struct source *source_open(const char *path, bool is_payload, const json_t *kinds, int *status)
{
    struct source *self = calloc(1, sizeof *self);
    *status = CLI_FAILED;
    if (self == NULL)
        return NULL;
    self->path = path;
    self->kinds = kinds;
    self->is_payload = is_payload;
    if (open_source(self, path))
        *status = CLI_DONE;
    else
        source_close(&self);
    return self;
}

void source_close(struct source **self_pointer)
{
    struct source *self = *self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    matrix_close(&self->matrix);
    lines_close(&self->lines);
    skerry_bytes_free(&self->line);
    sk_buffer_deinit(&self->payload);
    sk_buffer_deinit(&self->record);
    for (size_t i = 0; i < self->column_count; i++)
        free(self->columns[i].name);
    free(self->columns);
    free(self->id_text);
    free(self->vector);
    free(self);
}

uint64_t source_rows(const struct source *self)
{
    return self->kind == MATRIX ? matrix_rows(self->matrix) : 0;
}

double source_share(const struct source *self)
{
    if (self->kind != MATRIX)
        return lines_share(self->lines);
    uint64_t rows = matrix_rows(self->matrix);
    return rows == 0 ? 1 : (double)self->row / (double)rows;
}

int source_next(struct source *self, struct source_row *row)
{
    *row = (struct source_row){0};
    if (self->kind == JSONL)
        return next_json(self, row);
    if (self->kind == CSV)
        return next_csv(self, row);
    if (self->row >= matrix_rows(self->matrix))
        return 0;
    row->dim = matrix_dim(self->matrix);
    row->vector = matrix_row(self->matrix, self->row++);
    return row->vector == NULL ? -1 : 1;
}
