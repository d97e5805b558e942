/* links: sk_proto */
/* What an upsert carries, as columns and as rows, and the queries of a search. */
#include "proto/records.h"
#include "tests/unit/proto_vectors.h"

#include <math.h>

static struct sk_buffer frame; /* of the request under test */
static float scratch[SK_DIM_MAX];

static struct sk_schema schema_of(unsigned vectors, uint32_t dim, enum sk_schema_metric metric)
{
    struct sk_schema schema = {.vector_count = vectors, .shard_count = 1};
    for (unsigned i = 0; i < vectors; i++) {
        schema.vectors[i].dim = dim + i;
        schema.vectors[i].metric = metric;
        schema.vectors[i].index = SK_SCHEMA_HNSW;
        if (vectors > 1)
            (void)snprintf(schema.vectors[i].name, sizeof schema.vectors[i].name, "v%u", i);
    }
    return schema;
}

/* Begins {"v":1,"op":op,"collection":"docs", and `more` pairs to follow. */
static void begin(const char *op, uint32_t more)
{
    sk_buffer_clear(&frame);
    sk_put_map(&frame, 3 + more);
    sk_put_text(&frame, "v");
    sk_put_u64(&frame, 1);
    sk_put_text(&frame, "op");
    sk_put_text(&frame, op);
    sk_put_text(&frame, "collection");
    sk_put_text(&frame, "docs");
}

static void put_ids(uint32_t count)
{
    sk_put_text(&frame, "ids");
    sk_put_array(&frame, count);
    for (uint32_t i = 0; i < count; i++)
        sk_put_u64(&frame, i);
}

static void put_floats(uint32_t count, float first)
{
    sk_put_bin_head(&frame, count * 4);
    for (uint32_t i = 0; i < count; i++) {
        float value = first + (float)i;
        sk_buffer_append(&frame, &value, sizeof value);
    }
}

static struct sk_request decoded(void)
{
    struct sk_request request;
    struct sk_diag d = {0};
    if (sk_request_decode(&request, sk_buffer_span(&frame), &d) != SK_ERR_OK)
        fail_msg("%s", d.text);
    return request;
}

static enum sk_err check(const struct sk_schema *schema, struct sk_diag *d)
{
    struct sk_request request = decoded();
    uint32_t count = 99;
    memset(d, 0, sizeof *d);
    enum sk_err err = sk_upsert_check(schema, &request, scratch, &count, d);
    assert_int_equal(d->code, err);
    if (err != SK_ERR_OK)
        assert_int_equal(count, 0);
    return err;
}

/* Every row of the request under test as text: id, vectors, payload, ttl. */
static const char *rows_text(const struct sk_schema *schema)
{
    static char text[2000];
    struct sk_request request = decoded();
    struct sk_rows rows;
    struct sk_row row;
    struct sk_diag d = {0};
    enum sk_err err;
    char id[SK_ID_TEXT_BYTES];
    size_t used = 0;
    text[0] = '\0';
    assert_int_equal(sk_rows_begin(&rows, schema, &request, &d), SK_ERR_OK);
    while (sk_rows_next(&rows, &row, &err, &d)) {
        used += (size_t)snprintf(text + used, sizeof text - used, "%s", sk_id_text(&row.id, id));
        for (uint32_t f = 0; f < schema->vector_count; f++) {
            if ((row.vector_mask >> f & 1) == 0)
                continue;
            used += (size_t)snprintf(text + used, sizeof text - used, " [");
            assert_true(sk_vector_view_copy(&row.vectors[f], scratch));
            for (uint32_t i = 0; i < row.vectors[f].dim; i++)
                used += (size_t)snprintf(text + used, sizeof text - used, "%s%g", i > 0 ? "," : "",
                                         (double)scratch[i]);
            used += (size_t)snprintf(text + used, sizeof text - used, "]");
        }
        used += (size_t)snprintf(text + used, sizeof text - used, " %zu", row.payload.size);
        if (row.has_ttl)
            used += (size_t)snprintf(text + used, sizeof text - used, " %gs", row.ttl_s);
        used += (size_t)snprintf(text + used, sizeof text - used, "; ");
    }
    if (err != SK_ERR_OK)
        fail_msg("%s", d.text);
    return text;
}

static void columns_come_out_row_by_row(void **state)
{
    (void)state;
    struct sk_schema one = schema_of(1, 2, SK_SCHEMA_L2), two = schema_of(2, 1, SK_SCHEMA_L2);
    begin("upsert", 4);
    put_ids(2);
    sk_put_text(&frame, "vectors");
    put_floats(4, 1);
    sk_put_text(&frame, "payloads");
    sk_put_raw(&frame, sk_span_of("\x92\x81\xa1"
                                  "a\x01\xc0",
                                  6));
    sk_put_text(&frame, "ttl_s");
    sk_put_raw(&frame, sk_span_of("\x92\xc0\x05", 3));
    assert_string_equal(rows_text(&one), "0 [1,2] 4; 1 [3,4] 0 5s; ");

    begin("upsert", 3);
    put_ids(2);
    sk_put_text(&frame, "vectors");
    sk_put_map(&frame, 2);
    sk_put_text(&frame, "v1");
    sk_put_array(&frame, 2);
    put_floats(2, 5);
    sk_put_raw(&frame, sk_span_of("\x92\x07\xca\x3f\x00\x00\x00", 7));
    sk_put_text(&frame, "v0");
    put_floats(2, 1);
    sk_put_text(&frame, "ttl");
    sk_put_f64(&frame, 1.5);
    assert_string_equal(rows_text(&two), "0 [1] [5,6] 0 1.5s; 1 [2] [7,0.5] 0 1.5s; ");
}

static void records_come_out_as_they_stand(void **state)
{
    (void)state;
    struct sk_schema one = schema_of(1, 2, SK_SCHEMA_L2);
    begin("upsert", 1);
    sk_put_text(&frame, "records");
    sk_put_array(&frame, 2);
    sk_put_map(&frame, 4);
    sk_put_text(&frame, "ttl_s");
    sk_put_u64(&frame, 9);
    sk_put_text(&frame, "payload");
    sk_put_map(&frame, 0);
    sk_put_text(&frame, "vector");
    put_floats(2, 1);
    sk_put_text(&frame, "id");
    sk_put_text(&frame, "a");
    sk_put_map(&frame, 2);
    sk_put_text(&frame, "id");
    sk_put_u64(&frame, 3);
    sk_put_text(&frame, "vector");
    sk_put_raw(&frame, sk_span_of("\x92\x01\xff", 3));
    assert_string_equal(rows_text(&one), "a [1,2] 1 9s; 3 [1,-1] 0; ");
}

static void upsert_of(const char *key, const char *bytes, size_t size)
{
    begin("upsert", 2);
    put_ids(2);
    sk_put_text(&frame, key);
    sk_put_raw(&frame, sk_span_of(bytes, size));
}

static void wrong_columns_name_the_row_and_the_field(void **state)
{
    (void)state;
    struct sk_schema schema = schema_of(1, 2, SK_SCHEMA_COSINE),
                     two = schema_of(2, 2, SK_SCHEMA_L2);
    struct sk_diag d;
    static const struct {
        const char *bytes;
        size_t size;
        enum sk_err err;
        const char *text;
    } cases[] = {
        {"\xc4\x0c\x01\x02\x03\x04\x01\x02\x03\x04\x01\x02\x03\x04", 14, SK_ERR_INVALID,
         "12 bytes"},
        {"\xc4\x08\x01\x02\x03\x04\x01\x02\x03\x04", 10, SK_ERR_DIM_MISMATCH, "want 16"},
        {"\x91\x92\x01\x02", 4, SK_ERR_INVALID, "1 vectors for 2 ids"},
        {"\x92\x92\x01\x02\x93\x01\x02\x03", 8, SK_ERR_DIM_MISMATCH, "row 1"},
        {"\x92\x92\x01\x02\x92\x01\xc0", 7, SK_ERR_INVALID, "row 1"},
        {"\x92\x92\x01\x02\x92\x00\x00", 7, SK_ERR_INVALID, "all zeros"},
        {"\x92\x92\x01\x02\x92\x01\xca\x7f\xc0\x00\x00", 11, SK_ERR_INVALID, "NaN"},
        {"\x92\x92\x01\x02\x92\x01\xcb\x7f\xe0\x00\x00\x00\x00\x00\x00", 15, SK_ERR_INVALID,
         "infinity"}, /* 9e307 */
        {"\x92\x92\x01\x02\xc4\x03\x01\x02\x03", 9, SK_ERR_INVALID, "float32"},
        {"\x92\x92\x01\x02\x05", 5, SK_ERR_INVALID, "row 1"},
        {"\x81\xa1x\x92\x92\x01\x02\x92\x01\x02", 10, SK_ERR_NOT_FOUND, "without a name"},
        {"\x05", 1, SK_ERR_INVALID, "an integer"},
    };
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        upsert_of("vectors", cases[i].bytes, cases[i].size);
        enum sk_err err = check(&schema, &d);
        if (err != cases[i].err || strstr(d.text, cases[i].text) == NULL ||
            strcmp(d.field, "vectors") != 0)
            fail_msg("case %zu: %s '%s' %s", i, sk_err_name(err), d.field, d.text);
    }
    upsert_of("vectors", "\x92\x92\x01\x02\x92\x01\x02", 7);
    assert_int_equal(check(&schema, &d), SK_ERR_OK);
    assert_int_equal(check(&two, &d), SK_ERR_INVALID); /* wants a map */
    assert_non_null(strstr(d.text, "several vector fields"));
    upsert_of("vectors", "\x81\xa2v0\x92\x92\x01\x02\x92\x01\x02", 11);
    assert_int_equal(check(&two, &d), SK_ERR_INVALID); /* v1 is missing */
    assert_non_null(strstr(d.text, "v1"));
    upsert_of("vectors", "\x82\xa2v0\x92\x92\x01\x02\x92\x01\x02\xa2v0\x92\x92\x01\x02\x92\x01\x02",
              21);
    assert_int_equal(check(&two, &d), SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "given twice"));
    upsert_of("ttl_s", "\x91\x01", 2);
    assert_int_equal(check(&schema, &d), SK_ERR_INVALID);
    assert_string_equal(d.field, "ttl_s");
    for (unsigned i = 0; i < 3; i++) {
        static const char *const wrong[] = {"\x92\x01\x00", "\x92\x01\xff", "\x92\x01\xa0"};
        upsert_of("ttl_s", wrong[i], 3);
        assert_int_equal(check(&schema, &d), SK_ERR_INVALID);
    }
    upsert_of("payloads", "\x92\xc0\x01", 3);
    assert_int_equal(check(&schema, &d), SK_ERR_INVALID); /* no vectors at all */
    assert_string_equal(d.field, "vectors");
}

static enum sk_err check_record(const struct sk_schema *schema, const char *bytes, size_t size,
                                struct sk_diag *d)
{
    begin("upsert", 1);
    sk_put_text(&frame, "records");
    sk_put_array(&frame, 2);
    sk_put_raw(&frame, sk_span_of("\x82\xa2id\x01\xa6vector\x92\x01\x02", 15));
    sk_put_raw(&frame, sk_span_of(bytes, size));
    return check(schema, d);
}

static void wrong_records_name_the_row_and_the_field(void **state)
{
    (void)state;
    struct sk_schema schema = schema_of(1, 2, SK_SCHEMA_COSINE);
    struct sk_diag d;
    schema.field_count = 1;
    schema.fields[0] = (struct sk_payload_field){.name = "n", .kind = SK_PAYLOAD_INTEGER, .id = 1};
    static const struct {
        const char *bytes;
        size_t size;
        enum sk_err err;
        const char *text, *field;
    } cases[] = {
        {"\x05", 1, SK_ERR_INVALID, "records row 1", "records"},
        {"\x81\xa6vector\x92\x01\x02", 11, SK_ERR_INVALID, "no id", "records"},
        {"\x81\xa2id\x01", 5, SK_ERR_INVALID, "no vector", "records"},
        {"\x81\xa2id\xc3", 5, SK_ERR_INVALID, "row 1", "records"},
        {"\x82\xa2id\x01\xa2id\x01", 9, SK_ERR_INVALID, "given twice", "records"},
        {"\x82\xa2id\x01\xa3vec\x92\x01\x02", 12, SK_ERR_UNKNOWN_FIELD, "'vec'", "records"},
        {"\x82\xa2id\x01\x05\x01", 7, SK_ERR_INVALID, "row 1", "records"},
        {"\x83\xa2id\x01\xa6vector\x92\x01\x02\xa7payload\x81\xa1n\xa1x", 28, SK_ERR_INVALID,
         "records row 1", "n"},
        {"\x83\xa2id\x01\xa6vector\x92\x01\x02\xa7payload\x81\xa1n\x07", 27, SK_ERR_OK, "", ""},
        {"\x83\xa2id\x01\xa6vector\x92\x01\x02\xa3ttl\x00", 20, SK_ERR_INVALID, "ttl_s", "records"},
        {"\x82\xa2id\x01\xa6vector\x81\xa1x\x92\x01\x02", 18, SK_ERR_NOT_FOUND, "row 1", "records"},
        {"\x82\xa2id\x01\xa6vector\xc0", 13, SK_ERR_INVALID, "row 1", "records"},
    };
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        enum sk_err err = check_record(&schema, cases[i].bytes, cases[i].size, &d);
        if (err != cases[i].err || strstr(d.text, cases[i].text) == NULL ||
            strcmp(d.field, cases[i].field) != 0)
            fail_msg("case %zu: %s '%s' %s", i, sk_err_name(err), d.field, d.text);
    }
    struct sk_schema two = schema_of(2, 2, SK_SCHEMA_L2);
    begin("upsert", 1);
    sk_put_text(&frame, "records");
    sk_put_array(&frame, 1);
    sk_put_raw(&frame,
               sk_span_of("\x82\xa2id\x01\xa6vector\x82\xa2v0\x92\x01\x02\xa2v0\x92\x01\x02", 25));
    assert_int_equal(check(&two, &d), SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "'v0' is given twice"));
}

static uint32_t queries_of(const char *key, const char *bytes, size_t size, uint32_t dim,
                           enum sk_err *err, struct sk_diag *d)
{
    struct sk_queries queries;
    uint32_t count = 0;
    begin("search", 1);
    sk_put_text(&frame, key);
    sk_put_raw(&frame, sk_span_of(bytes, size));
    struct sk_request request = decoded();
    *err = sk_queries_begin(&queries, &request, dim, d);
    while (*err == SK_ERR_OK && count < queries.count) {
        *err = sk_queries_next(&queries, SK_SCHEMA_COSINE, scratch, d);
        count += *err == SK_ERR_OK;
    }
    if (*err == SK_ERR_OK)
        assert_int_equal(sk_queries_next(&queries, SK_SCHEMA_COSINE, scratch, NULL),
                         SK_ERR_NOT_FOUND);
    return count;
}

static void queries_are_read_in_every_form(void **state)
{
    (void)state;
    enum sk_err err;
    struct sk_diag d = {0};
    assert_int_equal(queries_of("vector", "\x92\x01\x02", 3, 2, &err, &d), 1);
    assert_true(scratch[0] == 1.0F && scratch[1] == 2.0F);
    assert_int_equal(queries_of("vector", "\xc4\x04\x00\x00\x00\x3f", 6, 1, &err, &d), 1);
    assert_true(scratch[0] == 0.5F);
    assert_int_equal(
        queries_of("vectors", "\xc4\x08\x00\x00\x00\x3f\x00\x00\x00\x3f", 10, 1, &err, &d), 2);
    assert_int_equal(queries_of("vectors", "\x92\x91\x01\xc4\x04\x00\x00\x00\x3f", 9, 1, &err, &d),
                     2);
    static const struct {
        const char *key, *bytes;
        size_t size;
        enum sk_err err;
        uint32_t before;
    } cases[] = {{"vector", "\x91\x01", 2, SK_ERR_DIM_MISMATCH, 0},
                 {"vector", "\x92\x00\x00", 3, SK_ERR_INVALID, 0},
                 {"vector", "\x92\x01\xa1x", 4, SK_ERR_INVALID, 0},
                 {"vector", "\x80", 1, SK_ERR_INVALID, 0},
                 {"vectors", "\x90", 1, SK_ERR_INVALID, 0},
                 {"vectors", "\xc4\x00", 2, SK_ERR_INVALID, 0},
                 {"vectors", "\xc4\x04\x00\x00\x00\x3f", 6, SK_ERR_DIM_MISMATCH, 0},
                 {"vectors", "\x92\x92\x01\x02\x91\x01", 6, SK_ERR_DIM_MISMATCH, 1},
                 {"vectors", "\x92\x92\x01\x02\x92\x00\x00", 7, SK_ERR_INVALID, 1},
                 {"vectors", "\x80", 1, SK_ERR_INVALID, 0}};
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        memset(&d, 0, sizeof d);
        uint32_t count = queries_of(cases[i].key, cases[i].bytes, cases[i].size, 2, &err, &d);
        if (err != cases[i].err || count != cases[i].before || strcmp(d.field, cases[i].key) != 0)
            fail_msg("case %zu: %s '%s' %s", i, sk_err_name(err), d.field, d.text);
        if (cases[i].before > 0)
            assert_non_null(strstr(d.text, "row 1"));
    }
    for (uint32_t count = SK_QUERIES_MAX; count <= SK_QUERIES_MAX + 1; count++) {
        begin("search", 1);
        sk_put_text(&frame, "vectors");
        put_floats(count, 1);
        struct sk_request request = decoded();
        struct sk_queries queries;
        assert_int_equal(sk_queries_begin(&queries, &request, 1, &d),
                         count <= SK_QUERIES_MAX ? SK_ERR_OK : SK_ERR_TOO_LARGE);
    }
}

static void a_vector_over_the_largest_dimension_is_refused(void **state)
{
    (void)state;
    struct sk_buffer packed = {0};
    struct sk_vector_view view;
    sk_put_array(&packed, SK_DIM_MAX + 1);
    for (unsigned i = 0; i <= SK_DIM_MAX; i++)
        sk_put_u64(&packed, 1);
    struct sk_reader from = sk_reader_of(sk_buffer_span(&packed));
    assert_int_equal(sk_vector_view_read(&from, &view, NULL), SK_ERR_TOO_LARGE);
    sk_buffer_deinit(&packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_come_out_row_by_row),
        cmocka_unit_test(records_come_out_as_they_stand),
        cmocka_unit_test(wrong_columns_name_the_row_and_the_field),
        cmocka_unit_test(wrong_records_name_the_row_and_the_field),
        cmocka_unit_test(queries_are_read_in_every_form),
        cmocka_unit_test(a_vector_over_the_largest_dimension_is_refused),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    sk_buffer_deinit(&frame);
    return status;
}
