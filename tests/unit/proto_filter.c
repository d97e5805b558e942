/* links: sk_proto | wraps: malloc */
/* Filters: what they mean, by the vectors; limits, memory, hostile bytes. */
#include "proto/filter.h"
#include "tests/unit/proto_vectors.h"

static unsigned fail_at; /* the call of malloc that fails; 0: none */
static unsigned malloc_calls;
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
    malloc_calls++;
    return malloc_calls == fail_at ? NULL : __real_malloc(size);
}

static struct vector_file filters;

/* {"n":"integer"}: at most one field a vector. */
static void declared_of(struct sk_schema *schema, const char *json)
{
    char name[32], kind[32];
    memset(schema, 0, sizeof *schema);
    if (sscanf(json, "{\"%31[^\"]\":\"%31[^\"]\"}", name, kind) != 2)
        return;
    schema->field_count = 1;
    (void)snprintf(schema->fields[0].name, sizeof schema->fields[0].name, "%s", name);
    assert_int_equal(sk_payload_kind_parse(sk_span_text(kind), &schema->fields[0].kind, NULL),
                     SK_ERR_OK);
}

static enum sk_err parse(struct sk_filter **out, struct sk_arena *arena,
                         const struct sk_schema *schema, struct sk_span packed, struct sk_diag *d)
{
    enum sk_err err = sk_filter_parse(out, arena, packed, d);
    return err == SK_ERR_OK && schema != NULL ? sk_filter_check(schema, *out, d) : err;
}

static void assert_record(const struct vector *vector, const struct sk_filter *filter,
                          const struct sk_schema *schema, const char *line, bool wanted)
{
    struct sk_span payload = hex_bytes(line);
    struct sk_span packed_id = hex_bytes(line + payload.size * 2 + 1);
    struct sk_reader from = sk_reader_of(packed_id);
    struct sk_id id;
    assert_int_equal(sk_read_id(&from, &id, NULL), SK_ERR_OK);
    assert_int_equal(sk_payload_check(payload, NULL), SK_ERR_OK);
    if (sk_filter_matches(filter, schema, &id, payload) != wanted)
        fail_msg("%s: %s", vector->title, line);
    span_free(&payload);
    span_free(&packed_id);
}

static void every_vector_matches_what_it_says(void **state)
{
    (void)state;
    unsigned records = 0, faults = 0;
    for (size_t i = 0; i < filters.count; i++) {
        const struct vector *vector = &filters.vectors[i];
        struct sk_schema schema;
        struct sk_arena arena;
        struct sk_filter *filter;
        struct sk_diag d = {0};
        struct sk_span packed = hex_bytes(vector_line(vector, "hex"));
        declared_of(&schema, vector_line(vector, "declared"));
        sk_arena_init(&arena, 1 << 20);
        enum sk_err err = parse(&filter, &arena, &schema, packed, &d);
        if (vector_line(vector, "fault") != NULL) {
            unsigned code = 0;
            char name[32] = "", field[80] = "";
            assert_int_equal(
                sscanf(vector_line(vector, "fault"), "%u %31s %79s", &code, name, field), 3);
            if ((unsigned)err != code || strcmp(d.field, field) != 0)
                fail_msg("%s: %u '%s' %s", vector->title, (unsigned)err, d.field, d.text);
            faults++;
        } else if (err != SK_ERR_OK) {
            fail_msg("%s: %s", vector->title, d.text);
        }
        for (size_t k = 0; k < vector->line_count; k++) {
            bool is_match = strcmp(vector->keys[k], "match") == 0;
            if (!is_match && strcmp(vector->keys[k], "no") != 0)
                continue;
            assert_record(vector, filter, &schema, vector->rest[k], is_match);
            records++;
        }
        sk_arena_deinit(&arena);
        span_free(&packed);
    }
    assert_true(records > 70);
    assert_true(faults > 10);
}

static void look(struct sk_span packed, bool is_cut, void *arg)
{
    static const uint8_t payload[] = {0x83, 0xA1, 'a',  0x01, 0xA1, 'n', 0x93, 1,
                                      0xC0, 0xCB, 0x40, 0,    0,    0,   0,    0,
                                      0,    0,    0xA1, 'k',  0xA1, 'a'};
    struct sk_schema *schema = arg;
    struct sk_arena arena;
    struct sk_filter *filter;
    struct sk_diag d = {0};
    struct sk_id id = sk_id_from_u64(1);
    sk_arena_init(&arena, 1 << 20);
    enum sk_err err = parse(&filter, &arena, schema, packed, &d);
    assert_int_equal(d.code, err);
    if (is_cut)
        assert_int_not_equal(err, SK_ERR_OK);
    if (err == SK_ERR_OK) {
        (void)sk_filter_matches(filter, schema, &id, sk_span_of(payload, sizeof payload));
        (void)sk_filter_undeclared(filter, schema);
    } else {
        assert_true(strncmp(d.field, "filter", 6) == 0);
    }
    sk_arena_deinit(&arena);
}

static void every_cut_is_refused_and_every_changed_byte_is_survived(void **state)
{
    (void)state;
    for (size_t i = 0; i < filters.count; i++) {
        struct sk_schema schema;
        struct sk_span packed = hex_bytes(vector_line(&filters.vectors[i], "hex"));
        declared_of(&schema, vector_line(&filters.vectors[i], "declared"));
        for_every_wound(packed, look, &schema);
        span_free(&packed);
    }
}

static void put_match(struct sk_buffer *to, const char *key)
{
    sk_put_map(to, 2);
    sk_put_text(to, "key");
    sk_put_text(to, key);
    sk_put_text(to, "match");
    sk_put_u64(to, 1);
}

static void conditions_are_counted(void **state)
{
    (void)state;
    for (uint32_t count = SK_FILTER_NODES_MAX - 1; count <= SK_FILTER_NODES_MAX; count++) {
        struct sk_buffer packed = {0};
        struct sk_arena arena;
        struct sk_filter *filter;
        struct sk_diag d = {0};
        sk_put_map(&packed, 1);
        sk_put_text(&packed, "must");
        sk_put_array(&packed, count);
        for (uint32_t i = 0; i < count; i++)
            put_match(&packed, "a");
        sk_arena_init(&arena, 1 << 20);
        assert_int_equal(sk_filter_parse(&filter, &arena, sk_buffer_span(&packed), &d),
                         count < SK_FILTER_NODES_MAX ? SK_ERR_OK
                                                     : SK_ERR_TOO_LARGE); /* the group is one too */
        sk_arena_deinit(&arena);
        sk_buffer_deinit(&packed);
    }
}

static void an_arena_that_is_full_is_an_error(void **state)
{
    (void)state;
    struct sk_buffer packed = {0};
    sk_put_map(&packed, 1);
    sk_put_text(&packed, "must");
    sk_put_array(&packed, 600);
    for (uint32_t i = 0; i < 600; i++)
        put_match(&packed, "a.long.path");
    bool is_done = false;
    for (size_t size = 64; !is_done; size *= 2) {
        struct sk_arena arena;
        struct sk_filter *filter;
        sk_arena_init(&arena, size);
        enum sk_err err = sk_filter_parse(&filter, &arena, sk_buffer_span(&packed), NULL);
        assert_true(err == SK_ERR_OK || (err == SK_ERR_NOMEM && filter == NULL));
        is_done = err == SK_ERR_OK;
        sk_arena_deinit(&arena);
        assert_true(size < 1 << 24);
    }
    for (unsigned n = 1;; n++) { /* and with malloc failing, one call after the other */
        struct sk_arena arena;
        struct sk_filter *filter;
        sk_arena_init(&arena, 1 << 20);
        malloc_calls = 0;
        fail_at = n;
        enum sk_err err = sk_filter_parse(&filter, &arena, sk_buffer_span(&packed), NULL);
        fail_at = 0;
        sk_arena_deinit(&arena);
        if (err == SK_ERR_OK)
            break;
        assert_int_equal(err, SK_ERR_NOMEM);
        assert_null(filter);
        assert_true(n < 1000);
    }
    sk_buffer_deinit(&packed);
}

static void the_first_undeclared_key_is_named(void **state)
{
    (void)state;
    struct sk_buffer packed = {0};
    struct sk_arena arena;
    struct sk_filter *filter;
    struct sk_schema schema;
    declared_of(&schema, "{\"n\":\"integer\"}");
    sk_put_map(&packed, 2);
    sk_put_text(&packed, "must");
    sk_put_array(&packed, 1);
    put_match(&packed, "n");
    sk_put_text(&packed, "must_not");
    put_match(&packed, "other");
    sk_arena_init(&arena, 1 << 16);
    assert_int_equal(sk_filter_parse(&filter, &arena, sk_buffer_span(&packed), NULL), SK_ERR_OK);
    assert_string_equal(sk_filter_undeclared(filter, &schema), "other");
    assert_non_null(sk_schema_field(&schema, "n"));
    assert_null(sk_schema_field(NULL, "n"));
    sk_arena_deinit(&arena);
    sk_buffer_deinit(&packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector_matches_what_it_says),
        cmocka_unit_test(every_cut_is_refused_and_every_changed_byte_is_survived),
        cmocka_unit_test(conditions_are_counted),
        cmocka_unit_test(an_arena_that_is_full_is_an_error),
        cmocka_unit_test(the_first_undeclared_key_is_named),
    };
    vector_file_read(&filters, "filters.txt");
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    free(filters.text);
    return status;
}
