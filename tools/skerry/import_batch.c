/* Batches of an import: rows with their ids, vectors and payloads. */
#include "tools/skerry/import.h"

#include <stdlib.h>
#include <string.h>

enum { BATCH_BYTES = 4 << 20 }; /* of vectors and payloads: a frame stays far below its limit */

void batch_clear(struct batch *self)
{
    for (size_t i = 0; i < self->count; i++) {
        free(self->texts[i]);
        self->texts[i] = NULL;
        free((void *)(uintptr_t)self->payloads[i].bytes);
        self->payloads[i] = (struct skerry_bytes){0};
    }
    self->count = self->bytes = 0;
    self->retries = 0;
    self->is_used = self->has_payloads = self->has_ttl = false;
}

bool batch_init(struct batch *self)
{
    self->numbers = calloc(import_options.batch, sizeof *self->numbers);
    self->texts = calloc(import_options.batch, sizeof *self->texts);
    self->payloads = calloc(import_options.batch, sizeof *self->payloads);
    self->ttl_s = calloc(import_options.batch, sizeof *self->ttl_s);
    return self->numbers != NULL && self->texts != NULL && self->payloads != NULL &&
           self->ttl_s != NULL;
}

void batch_deinit(struct batch *self)
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
        size_t capacity = (size_t)import_options.batch * row->dim;
        float *vectors = realloc(self->vectors, capacity * sizeof *vectors);
        if (vectors == NULL)
            return false;
        self->vectors = vectors;
        self->vectors_capacity = capacity;
    }
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
            return cli_failed("'%s' has %llu ids, and '%s' has more rows", import_options.ids,
                              (unsigned long long)self->id_count, self->path);
        id.number = self->ids[self->row];
    } else if (self->id_lines != NULL) {
        int got = lines_next(self->id_lines, &line, &size);
        if (got != 1 || !cli_id(line, &id))
            return got == 1
                       ? cli_failed("'%s' line %llu is not an id", import_options.ids,
                                    (unsigned long long)self->row + 1)
                       : cli_failed("'%s' has %llu ids, and '%s' has more rows", import_options.ids,
                                    (unsigned long long)self->row, self->path);
        text = id.text == NULL ? NULL : strdup(id.text);
    } else if (import_options.id_field != NULL) {
        if (!id_from_payload(payload, import_options.id_field, &id, &text))
            return cli_failed(
                "row %llu: its payload has no member '%s' that is an unsigned integer or "
                "a text",
                (unsigned long long)self->row, import_options.id_field);
    } else if (row->has_id) {
        id = row->id;
        text = id.text == NULL ? NULL : strdup(id.text);
    }
    batch->numbers[batch->count] = id.number;
    batch->texts[batch->count] = text;
    return CLI_DONE;
}

static bool has_shape_of(const struct batch *self, const struct source_row *row)
{
    bool is_alike = row->dim == self->dim && row->name_count == self->name_count;
    for (unsigned i = 0; is_alike && i < row->name_count; i++)
        is_alike = row->names[i].dim == self->names[i].dim &&
                   strcmp(row->names[i].name, self->names[i].name) == 0;
    return is_alike;
}

static void take_shape(struct batch *self, const struct source_row *row)
{
    self->dim = row->dim;
    self->name_count = row->name_count;
    for (unsigned i = 0; i < row->name_count; i++)
        self->names[i] = row->names[i];
}

/* The next row with its payload beside it: 1, or 0 at the end, or -1. */
static int next_row(struct importer *self, struct source_row *row)
{
    struct source_row beside;
    if (self->is_held) {
        *row = self->held;
        self->is_held = false;
        return 1;
    }
    int got = source_next(self->source, row);
    if (got != 1 || self->payloads == NULL)
        return got;
    got = source_next(self->payloads, &beside);
    if (got == 0)
        (void)cli_failed("'%s' ends after %llu lines, and '%s' has more rows",
                         import_options.payload, (unsigned long long)self->row, self->path);
    row->payload = beside.payload;
    return got == 1 ? 1 : -1;
}

static int add_row(struct importer *self, struct batch *batch, const struct source_row *row)
{
    if (row->vector == NULL)
        return cli_failed("row %llu has no vector", (unsigned long long)self->row);
    if (row->name_count > 0 && import_options.using != NULL)
        return cli_usage("row %llu names its vectors: leave --using away",
                         (unsigned long long)self->row);
    int status = set_id(self, batch, row, row->payload);
    if (status != CLI_DONE)
        return status;
    if (!batch_set_vector(batch, row))
        return cli_failed("no memory for a batch");
    batch->count++; /* from here on batch_clear frees what the row owns */
    batch->ttl_s[batch->count - 1] = row->ttl_s;
    batch->has_ttl = batch->has_ttl || row->ttl_s != 0;
    if (row->payload.bytes != NULL) {
        void *copy = malloc(row->payload.size);
        if (copy == NULL)
            return cli_failed("no memory for a batch");
        memcpy(copy, row->payload.bytes, row->payload.size);
        batch->payloads[batch->count - 1] = (struct skerry_bytes){copy, row->payload.size};
        batch->has_payloads = true;
    }
    batch->bytes += row->payload.size + row->dim * sizeof(float);
    self->row++;
    return CLI_DONE;
}

int batch_fill(struct importer *self, struct batch *batch, bool *is_at_end)
{
    batch_clear(batch);
    batch->first_row = self->row;
    while (batch->count < import_options.batch && batch->bytes < BATCH_BYTES) {
        struct source_row row;
        bool is_over = import_options.limit != 0 && self->row >= import_options.limit;
        int got = is_over ? 0 : next_row(self, &row);
        if (got < 0)
            return CLI_FAILED;
        if (got == 0) {
            *is_at_end = true;
            break;
        }
        if (batch->count == 0)
            take_shape(batch, &row);
        if (!has_shape_of(batch, &row)) { /* goes alone: the node says what is wrong with it */
            self->held = row;
            self->is_held = true;
            break;
        }
        int status = add_row(self, batch, &row);
        if (status != CLI_DONE)
            return status;
    }
    return CLI_DONE;
}

bool batch_columns(const struct batch *self, struct skerry_vectors columns[SOURCE_VECTORS_MAX],
                   size_t *count, float **values)
{
    size_t offset = 0;
    *values = NULL;
    *count = self->name_count == 0 ? 1 : self->name_count;
    columns[0] = (struct skerry_vectors){import_options.using, self->vectors, self->dim};
    if (self->name_count == 0)
        return true;
    float *to = *values = malloc(self->count * self->dim * sizeof *to);
    for (unsigned k = 0; to != NULL && k < self->name_count; k++) {
        uint32_t dim = self->names[k].dim;
        columns[k] = (struct skerry_vectors){self->names[k].name, to, dim};
        for (size_t i = 0; i < self->count; i++, to += dim)
            memcpy(to, self->vectors + i * self->dim + offset, dim * sizeof *to);
        offset += dim;
    }
    return to != NULL;
}
