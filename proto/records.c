#include "proto/records.h"
#include "proto/payload.h"

#include <math.h>

/* ---- one vector ---- */

enum sk_err sk_vector_view_read(struct sk_reader *from, struct sk_vector_view *out,
                                struct sk_diag *d)
{
    struct sk_value value;
    memset(out, 0, sizeof *out);
    enum sk_err err = sk_read(from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_BIN) {
        if (value.span.size % 4 != 0)
            return sk_fail(d, SK_ERR_INVALID, "a vector of %zu bytes is not float32 numbers of 4",
                           value.span.size);
        out->bin = value.span;
        out->dim = (uint32_t)(value.span.size / 4);
        return SK_ERR_OK;
    }
    if (value.kind != SK_VALUE_ARRAY)
        return sk_fail(d, SK_ERR_INVALID,
                       "a vector is %s, want bin of float32 or an array of numbers",
                       sk_value_kind_name(value.kind));
    if (value.count > SK_DIM_MAX)
        return sk_fail(d, SK_ERR_TOO_LARGE, "a vector has %u numbers, want at most %d", value.count,
                       SK_DIM_MAX);
    const uint8_t *begin = from->at;
    out->dim = value.count;
    for (uint32_t i = 0; i < out->dim; i++) {
        double number;
        err = sk_read(from, &value, d);
        if (err != SK_ERR_OK)
            return err;
        if (!sk_value_number(&value, &number))
            return sk_fail(d, SK_ERR_INVALID, "element %u of a vector is %s, want a number", i,
                           sk_value_kind_name(value.kind));
    }
    out->values = sk_span_of(begin, (size_t)(from->at - begin));
    return SK_ERR_OK;
}

/* Exponent all ones is NaN or infinity; a reduction that compilers vectorise. */
static bool all_finite(const float *x, size_t count)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (uint32_t)((bits & 0x7F800000U) == 0x7F800000U);
    }
    return bad == 0;
}

static bool all_zero(const float *x, size_t count)
{
    uint32_t bits = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t one;
        memcpy(&one, &x[i], sizeof one);
        bits |= one & 0x7FFFFFFFU;
    }
    return bits == 0;
}

bool sk_vector_view_copy(const struct sk_vector_view *view, float *out)
{
    if (view->bin.bytes != NULL) {
        memcpy(out, view->bin.bytes,
               view->bin.size); /* little-endian hosts only, as is the build */
    } else {
        struct sk_reader from = sk_reader_of(view->values);
        for (uint32_t i = 0; i < view->dim; i++) {
            struct sk_value value;
            double number = 0;
            if (sk_read(&from, &value, NULL) != SK_ERR_OK || !sk_value_number(&value, &number))
                return false;
            out[i] = (float)number;
        }
    }
    return all_finite(out, view->dim);
}

/* ---- rows ---- */

static enum sk_err fail_row(struct sk_diag *d, enum sk_err err, const char *field, uint32_t row)
{
    err = sk_wrap(d, err, "%s row %u", field, row);
    if (d != NULL)
        (void)snprintf(d->field, sizeof d->field, "%s", field);
    return err;
}

/* One vector field's column: a matrix, or an array of vectors. */
static enum sk_err begin_column(struct sk_rows *self, uint32_t f, struct sk_span packed,
                                struct sk_diag *d)
{
    uint32_t dim = self->schema->vectors[f].dim;
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value value;
    enum sk_err err = sk_read(&from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    self->columns[f].is_given = true;
    if (value.kind == SK_VALUE_BIN) {
        size_t wanted = (size_t)self->count * dim * 4;
        if (value.span.size != wanted) {
            size_t row_bytes = (size_t)(self->count == 0 ? 1 : self->count) * 4;
            bool is_even = value.span.size % row_bytes == 0;
            return sk_fail_field(d, is_even ? SK_ERR_DIM_MISMATCH : SK_ERR_INVALID, "vectors",
                                 "vectors has %zu bytes for %u ids of dimension %u, want %zu",
                                 value.span.size, self->count, dim, wanted);
        }
        self->columns[f].is_matrix = true;
        self->columns[f].matrix = value.span;
        return SK_ERR_OK;
    }
    if (value.kind != SK_VALUE_ARRAY)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors",
                             "vectors is %s, want bin, an array or a map",
                             sk_value_kind_name(value.kind));
    if (value.count != self->count)
        return sk_fail_field(d, SK_ERR_INVALID, "vectors", "%u vectors for %u ids", value.count,
                             self->count);
    self->columns[f].rows = from;
    return SK_ERR_OK;
}

static enum sk_err begin_columns(struct sk_rows *self, struct sk_diag *d)
{
    struct sk_span packed = self->request->vectors;
    struct sk_reader from = sk_reader_of(packed);
    struct sk_value head;
    enum sk_err err = sk_read(&from, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_MAP) {
        uint32_t field = 0;
        err = sk_schema_vector(self->schema, (struct sk_span){0}, &field, d);
        if (err != SK_ERR_OK)
            return sk_fail_field(d, SK_ERR_INVALID, "vectors",
                                 "this collection has several vector fields: vectors wants a map "
                                 "name -> column");
        return begin_column(self, field, packed, d);
    }
    for (uint32_t i = 0; i < head.count && err == SK_ERR_OK; i++) {
        struct sk_span key, column;
        uint32_t field = 0;
        err = sk_read_key(&from, &key, d);
        if (err == SK_ERR_OK)
            err = sk_schema_vector(self->schema, key, &field, d);
        if (err == SK_ERR_OK && self->columns[field].is_given)
            err = sk_fail_field(d, SK_ERR_INVALID, "vectors", "vector field '%s' is given twice",
                                self->schema->vectors[field].name);
        if (err == SK_ERR_OK)
            err = sk_read_raw(&from, SK_PACK_DEPTH_MAX, &column, d);
        if (err == SK_ERR_OK)
            err = begin_column(self, field, column, d);
    }
    if (err != SK_ERR_OK && d != NULL)
        (void)snprintf(d->field, sizeof d->field, "vectors");
    return err;
}

static enum sk_err begin_ttl(struct sk_rows *self, struct sk_diag *d)
{
    struct sk_reader from = sk_reader_of(self->request->ttl_s);
    struct sk_value value;
    enum sk_err err = sk_read(&from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    self->ttl_is_one = sk_value_number(&value, &self->ttl_one);
    if (self->ttl_is_one)
        return SK_ERR_OK;
    if (value.kind != SK_VALUE_ARRAY || value.count != self->count)
        return sk_fail_field(d, SK_ERR_INVALID, "ttl_s",
                             "ttl_s wants one number or one for each of the %u ids", self->count);
    self->ttls = from;
    return SK_ERR_OK;
}

enum sk_err sk_rows_begin(struct sk_rows *self, const struct sk_schema *schema,
                          const struct sk_request *request, struct sk_diag *d)
{
    memset(self, 0, sizeof *self);
    self->schema = schema;
    self->request = request;
    if (sk_request_has(request, SK_FIELD_records)) {
        self->count = request->records.count;
        self->records = sk_reader_of(request->records.members);
        return SK_ERR_OK;
    }
    self->count = request->ids.count;
    self->ids = sk_reader_of(request->ids.members);
    if (sk_request_has(request, SK_FIELD_payloads))
        self->payloads = sk_reader_of(request->payloads.members);
    enum sk_err err = SK_ERR_OK;
    if (sk_request_has(request, SK_FIELD_ttl_s))
        err = begin_ttl(self, d);
    if (err == SK_ERR_OK && sk_request_has(request, SK_FIELD_vectors))
        err = begin_columns(self, d);
    return err;
}

static enum sk_err take_ttl(const struct sk_value *value, struct sk_row *out, struct sk_diag *d)
{
    if (value->kind == SK_VALUE_NIL)
        return SK_ERR_OK;
    if (!sk_value_number(value, &out->ttl_s) || !isfinite(out->ttl_s) || out->ttl_s <= 0 ||
        out->ttl_s > (double)SK_TTL_S_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "ttl_s",
                             "ttl_s wants seconds, above 0 and up to 1e10");
    out->has_ttl = true;
    return SK_ERR_OK;
}

static enum sk_err take_payload(struct sk_reader *from, struct sk_row *out, struct sk_diag *d)
{
    struct sk_span packed;
    enum sk_err err = sk_read_raw(from, SK_PACK_DEPTH_MAX, &packed, d);
    if (err == SK_ERR_OK && packed.bytes[0] != 0xC0)
        out->payload = packed;
    return err;
}

static enum sk_err next_of_columns(struct sk_rows *self, struct sk_row *out, struct sk_diag *d)
{
    uint32_t row = self->at;
    enum sk_err err = sk_read_id(&self->ids, &out->id, d);
    if (err != SK_ERR_OK)
        return fail_row(d, err, "ids", row);
    for (uint32_t f = 0; f < self->schema->vector_count; f++) {
        if (!self->columns[f].is_given)
            continue;
        out->vector_mask |= 1U << f;
        if (self->columns[f].is_matrix) {
            size_t bytes = (size_t)self->schema->vectors[f].dim * 4;
            out->vectors[f].dim = self->schema->vectors[f].dim;
            out->vectors[f].bin = sk_span_of(self->columns[f].matrix.bytes + row * bytes, bytes);
        } else {
            err = sk_vector_view_read(&self->columns[f].rows, &out->vectors[f], d);
            if (err != SK_ERR_OK)
                return fail_row(d, err, "vectors", row);
        }
    }
    if (self->payloads.at != NULL) {
        err = take_payload(&self->payloads, out, d);
        if (err != SK_ERR_OK)
            return fail_row(d, err, "payloads", row);
    }
    struct sk_value ttl = {.kind = SK_VALUE_FLOAT, .f64 = self->ttl_one};
    if (!self->ttl_is_one) {
        if (self->ttls.at == NULL)
            return SK_ERR_OK;
        err = sk_read(&self->ttls, &ttl, d);
    }
    if (err == SK_ERR_OK)
        err = take_ttl(&ttl, out, d);
    return err == SK_ERR_OK ? err : fail_row(d, err, "ttl_s", row);
}

static enum sk_err record_vectors(struct sk_rows *self, struct sk_reader *from, struct sk_row *out,
                                  struct sk_diag *d)
{
    struct sk_reader peek = *from;
    struct sk_value head;
    uint32_t field = 0;
    enum sk_err err = sk_read(&peek, &head, d);
    if (err != SK_ERR_OK)
        return err;
    if (head.kind != SK_VALUE_MAP) {
        err = sk_schema_vector(self->schema, (struct sk_span){0}, &field, d);
        if (err == SK_ERR_OK)
            err = sk_vector_view_read(from, &out->vectors[field], d);
        out->vector_mask |= 1U << field;
        return err;
    }
    *from = peek;
    for (uint32_t i = 0; i < head.count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        err = sk_read_key(from, &key, d);
        if (err == SK_ERR_OK)
            err = sk_schema_vector(self->schema, key, &field, d);
        if (err == SK_ERR_OK && (out->vector_mask >> field & 1) != 0)
            err = sk_fail(d, SK_ERR_INVALID, "vector field '%s' is given twice",
                          self->schema->vectors[field].name);
        if (err == SK_ERR_OK)
            err = sk_vector_view_read(from, &out->vectors[field], d);
        out->vector_mask |= 1U << field;
    }
    return err;
}

static enum sk_err next_of_records(struct sk_rows *self, struct sk_row *out, struct sk_diag *d)
{
    static const char *const known[] = {"id", "vector", "payload", "ttl_s"};
    struct sk_value value;
    unsigned seen = 0;
    enum sk_err err = sk_read(&self->records, &value, d);
    if (err == SK_ERR_OK && value.kind != SK_VALUE_MAP)
        err = sk_fail(d, SK_ERR_INVALID, "a record is %s, want {id, vector, payload, ttl_s}",
                      sk_value_kind_name(value.kind));
    uint32_t count = err == SK_ERR_OK ? value.count : 0;
    for (uint32_t i = 0; i < count && err == SK_ERR_OK; i++) {
        struct sk_span key;
        unsigned bit;
        err = sk_read_key(&self->records, &key, d);
        if (err != SK_ERR_OK)
            break;
        if (sk_span_is(key, "id")) {
            bit = 1;
            err = sk_read_id(&self->records, &out->id, d);
        } else if (sk_span_is(key, "vector") || sk_span_is(key, "vectors")) {
            bit = 2;
            err = record_vectors(self, &self->records, out, d);
        } else if (sk_span_is(key, "payload")) {
            bit = 4;
            err = take_payload(&self->records, out, d);
        } else if (sk_span_is(key, "ttl_s") || sk_span_is(key, "ttl")) {
            bit = 8;
            err = sk_read(&self->records, &value, d);
            if (err == SK_ERR_OK)
                err = take_ttl(&value, out, d);
        } else {
            const char *closest = sk_closest(key, known, SK_COUNT_OF(known));
            return sk_fail_field(d, SK_ERR_UNKNOWN_FIELD, "records",
                                 "records row %u: a record has no field '%.*s'%s%s", self->at,
                                 (int)(key.size > 64 ? 64 : key.size), (const char *)key.bytes,
                                 closest != NULL ? "; the closest name is " : "",
                                 closest != NULL ? closest : "");
        }
        if (err == SK_ERR_OK && (seen & bit) != 0)
            err = sk_fail(d, SK_ERR_INVALID, "a field of the record is given twice");
        seen |= bit;
    }
    if (err == SK_ERR_OK && (seen & 1) == 0)
        err = sk_fail(d, SK_ERR_INVALID, "the record has no id");
    return err == SK_ERR_OK ? err : fail_row(d, err, "records", self->at);
}

bool sk_rows_next(struct sk_rows *self, struct sk_row *out, enum sk_err *err, struct sk_diag *d)
{
    *err = SK_ERR_OK;
    if (self->at == self->count)
        return false;
    out->id.size = 0;
    out->vector_mask = 0;
    out->payload = (struct sk_span){0};
    out->has_ttl = false;
    out->ttl_s = 0;
    *err = self->records.at != NULL ? next_of_records(self, out, d) : next_of_columns(self, out, d);
    self->at++;
    return *err == SK_ERR_OK;
}

/* ---- the whole upsert ---- */

static enum sk_err check_vector(const struct sk_vector_field *field,
                                const struct sk_vector_view *view, float *scratch,
                                struct sk_diag *d)
{
    const char *space = field->name[0] != '\0' ? " " : "";
    if (view->dim != field->dim)
        return sk_fail(d, SK_ERR_DIM_MISMATCH, "the vector has %u numbers, the field%s%s wants %u",
                       view->dim, space, field->name, field->dim);
    if (!sk_vector_view_copy(view, scratch))
        return sk_fail(d, SK_ERR_INVALID, "the vector%s%s has a NaN or an infinity", space,
                       field->name);
    if (field->metric == SK_SCHEMA_COSINE && all_zero(scratch, field->dim))
        return sk_fail(d, SK_ERR_INVALID,
                       "the vector%s%s is all zeros, which has no direction for cosine", space,
                       field->name);
    return SK_ERR_OK;
}

enum sk_err sk_upsert_check(const struct sk_schema *schema, const struct sk_request *request,
                            float *scratch, uint32_t *count, struct sk_diag *d)
{
    struct sk_rows rows;
    struct sk_row row;
    bool is_rows = sk_request_has(request, SK_FIELD_records);
    *count = 0;
    enum sk_err err = sk_rows_begin(&rows, schema, request, d);
    if (err != SK_ERR_OK)
        return err;
    while (sk_rows_next(&rows, &row, &err, d)) {
        uint32_t at = rows.at - 1;
        for (uint32_t f = 0; f < schema->vector_count; f++) {
            if ((row.vector_mask >> f & 1) == 0)
                err =
                    sk_fail(d, SK_ERR_INVALID, "no vector is given for the field%s%s",
                            schema->vectors[f].name[0] != '\0' ? " " : "", schema->vectors[f].name);
            else
                err = check_vector(&schema->vectors[f], &row.vectors[f], scratch, d);
            if (err != SK_ERR_OK)
                return fail_row(d, err, is_rows ? "records" : "vectors", at);
        }
        if (row.payload.bytes != NULL) {
            err = sk_payload_check_types(schema, row.payload, d);
            if (err != SK_ERR_OK) {
                char inner[SK_DIAG_FIELD_BYTES] = "";
                if (d != NULL)
                    memcpy(inner, d->field, sizeof inner);
                err = fail_row(d, err, is_rows ? "records" : "payloads", at);
                if (d != NULL && inner[0] != '\0')
                    memcpy(d->field, inner, sizeof inner);
                return err;
            }
        }
    }
    if (err == SK_ERR_OK)
        *count = rows.count;
    return err;
}

/* ---- queries ---- */

static enum sk_err wrong_dim(uint32_t got, uint32_t dim, const char *field, struct sk_diag *d)
{
    return sk_fail_field(d, SK_ERR_DIM_MISMATCH, field,
                         "the query has %u numbers, the field wants %u", got, dim);
}

enum sk_err sk_queries_begin(struct sk_queries *self, const struct sk_request *request,
                             uint32_t dim, struct sk_diag *d)
{
    memset(self, 0, sizeof *self);
    self->dim = dim;
    self->count = 1;
    if (!sk_request_has(request, SK_FIELD_queries)) {
        self->rows = sk_reader_of(request->vector);
        struct sk_reader peek = self->rows;
        struct sk_vector_view view;
        enum sk_err err = sk_vector_view_read(&peek, &view, d);
        if (err == SK_ERR_OK && view.dim != dim)
            return wrong_dim(view.dim, dim, "vector", d);
        if (err != SK_ERR_OK && d != NULL)
            (void)snprintf(d->field, sizeof d->field, "vector");
        return err;
    }
    self->is_many = true;
    struct sk_reader from = sk_reader_of(request->queries);
    struct sk_value value;
    enum sk_err err = sk_read(&from, &value, d);
    if (err != SK_ERR_OK)
        return err;
    if (value.kind == SK_VALUE_BIN) {
        if (value.span.size % ((size_t)dim * 4) != 0)
            return sk_fail_field(d, SK_ERR_DIM_MISMATCH, "vectors",
                                 "vectors has %zu bytes, want a multiple of %u x 4",
                                 value.span.size, dim);
        self->matrix = value.span;
        self->count = (uint32_t)(value.span.size / ((size_t)dim * 4));
    } else if (value.kind == SK_VALUE_ARRAY) {
        self->rows = from;
        self->count = value.count;
    } else {
        return sk_fail_field(d, SK_ERR_INVALID, "vectors", "vectors is %s, want bin or an array",
                             sk_value_kind_name(value.kind));
    }
    if (self->count == 0 || self->count > SK_QUERIES_MAX)
        return sk_fail_field(d, self->count == 0 ? SK_ERR_INVALID : SK_ERR_TOO_LARGE, "vectors",
                             "%u queries, want 1 to %d", self->count, SK_QUERIES_MAX);
    return SK_ERR_OK;
}

enum sk_err sk_queries_next(struct sk_queries *self, enum sk_schema_metric metric, float *out,
                            struct sk_diag *d)
{
    const char *field = self->is_many ? "vectors" : "vector";
    struct sk_vector_view view = {.dim = self->dim};
    if (self->at == self->count)
        return sk_fail(d, SK_ERR_NOT_FOUND, "no more queries");
    if (self->matrix.bytes != NULL) {
        size_t bytes = (size_t)self->dim * 4;
        view.bin = sk_span_of(self->matrix.bytes + self->at * bytes, bytes);
    } else {
        enum sk_err err = sk_vector_view_read(&self->rows, &view, d);
        if (err != SK_ERR_OK)
            return self->is_many ? fail_row(d, err, field, self->at) : err;
        if (view.dim != self->dim) {
            err = wrong_dim(view.dim, self->dim, field, d);
            return self->is_many ? fail_row(d, err, field, self->at) : err;
        }
    }
    self->at++;
    enum sk_err err = SK_ERR_OK;
    if (!sk_vector_view_copy(&view, out))
        err = sk_fail_field(d, SK_ERR_INVALID, field, "the query has a NaN or an infinity");
    else if (metric == SK_SCHEMA_COSINE && all_zero(out, self->dim))
        err = sk_fail_field(d, SK_ERR_INVALID, field,
                            "the query is all zeros, which has no direction for cosine");
    if (err != SK_ERR_OK && self->is_many)
        return fail_row(d, err, field, self->at - 1);
    return err;
}
