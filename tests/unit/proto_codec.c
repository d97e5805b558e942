/* links: sk_proto PkgConfig::MSGPACK */
/* Requests: the vectors and everything that can happen to them on the way. */
#include "proto/codec.h"
#include "proto/filter.h"
#include "proto/records.h"
#include "tests/unit/proto_vectors.h"

#include <msgpack.h>

static struct vector_file requests;

/* The request's own names, defaults and order: what sk_request_encode writes of what was decoded.
 */
static void assert_means(const struct vector *vector, struct sk_span frame)
{
    struct sk_request request, again;
    struct sk_diag d = {0};
    enum sk_err err = sk_request_decode(&request, frame, &d);
    if (err != SK_ERR_OK)
        fail_msg("%s: %s", vector->title, d.text);
    struct sk_buffer encoded = {0};
    sk_request_encode(&encoded, &request);
    assert_shows(sk_buffer_span(&encoded), vector_line(vector, "means"));
    assert_int_equal(sk_request_decode(&again, sk_buffer_span(&encoded), &d), SK_ERR_OK);
    assert_int_equal(again.op, request.op);
    assert_true(again.present == request.present);
    sk_buffer_deinit(&encoded);
}

static void assert_fault(const struct vector *vector, struct sk_span frame)
{
    struct sk_request request;
    struct sk_diag d = {0};
    unsigned code = 0;
    char name[32] = "", field[80] = "";
    assert_true(sscanf(vector_line(vector, "fault"), "%u %31s %79s", &code, name, field) >= 2);
    enum sk_err err = sk_request_decode(&request, frame, &d);
    if ((unsigned)err != code || strcmp(sk_err_name(err), name) != 0 || strcmp(d.field, field) != 0)
        fail_msg("%s: %u %s '%s' (%s), want %u %s '%s'", vector->title, (unsigned)err,
                 sk_err_name(err), d.field, d.text, code, name, field);
    assert_int_equal(d.code, err);
    assert_true(strlen(d.text) > 8);
}

static void every_vector_means_what_it_says(void **state)
{
    (void)state;
    unsigned faults = 0;
    for (size_t i = 0; i < requests.count; i++) {
        const struct vector *vector = &requests.vectors[i];
        struct sk_span frame = hex_bytes(vector_line(vector, "hex"));
        if (vector_line(vector, "means") != NULL) {
            assert_shows(frame, vector_line(vector, "sent"));
            assert_means(vector, frame);
        } else {
            assert_fault(vector, frame);
            faults++;
        }
        span_free(&frame);
    }
    assert_true(faults > 40);
}

static void every_operation_has_a_vector(void **state)
{
    (void)state;
    for (enum sk_op op = SK_OP_NONE + 1; op < SK_OPS_END; op++) {
        char wanted[64];
        bool is_there = sk_op_role(op) == SK_ROLE_LINK;
        (void)snprintf(wanted, sizeof wanted, "\"op\":\"%s\"", sk_op_name(op));
        for (size_t i = 0; i < requests.count && !is_there; i++)
            is_there = vector_line(&requests.vectors[i], "means") != NULL &&
                       strstr(vector_line(&requests.vectors[i], "means"), wanted) != NULL;
        if (!is_there)
            fail_msg("no vector of %s", sk_op_name(op));
    }
}

/* What a node does with a request that decoded: nothing here may read past the frame. */
static void use(const struct sk_request *request)
{
    static struct sk_schema schema;
    static float numbers[SK_DIM_MAX];
    struct sk_filter *filter;
    uint32_t count;
    if (request->op == SK_OP_CREATE_COLLECTION) {
        (void)!sk_schema_from_request(&schema, request, NULL);
        return;
    }
    memset(&schema, 0, sizeof schema);
    schema.vector_count = 1;
    schema.vectors[0].dim = 2;
    schema.vectors[0].metric = SK_SCHEMA_COSINE;
    schema.vectors[0].index = SK_SCHEMA_HNSW;
    if (request->op == SK_OP_ALTER_COLLECTION)
        (void)!sk_schema_alter(&schema, request, NULL);
    if (request->op == SK_OP_UPSERT)
        (void)!sk_upsert_check(&schema, request, numbers, &count, NULL);
    if (sk_request_has(request, SK_FIELD_vector) || sk_request_has(request, SK_FIELD_queries)) {
        struct sk_queries queries;
        if (sk_queries_begin(&queries, request, 2, NULL) == SK_ERR_OK)
            while (sk_queries_next(&queries, SK_SCHEMA_COSINE, numbers, NULL) == SK_ERR_OK)
                continue;
    }
    if (sk_request_has(request, SK_FIELD_filter)) {
        struct sk_arena arena;
        sk_arena_init(&arena, 1 << 20);
        (void)!sk_filter_parse(&filter, &arena, request->filter, NULL);
        sk_arena_deinit(&arena);
    }
    if (sk_request_has(request, SK_FIELD_payload))
        (void)!sk_payload_check(request->payload, NULL);
    if (sk_request_has(request, SK_FIELD_ids)) {
        struct sk_reader members = sk_reader_of(request->ids.members);
        struct sk_id id;
        uint32_t seen = 0;
        while (sk_ids_next(&members, &id))
            seen++;
        assert_int_equal(seen, request->ids.count);
    }
}

static void look(struct sk_span frame, bool is_cut, void *arg)
{
    const struct vector *vector = arg;
    struct sk_request request, again;
    struct sk_envelope envelope;
    struct sk_diag d = {0};
    enum sk_err err = sk_request_decode(&request, frame, &d);
    assert_int_equal(d.code, err);
    if (is_cut && err == SK_ERR_OK && vector_line(vector, "means") != NULL)
        fail_msg("%s: %zu bytes of it are taken as a request", vector->title, frame.size);
    enum sk_err first = sk_envelope_decode(&envelope, frame, NULL);
    if (err != SK_ERR_OK)
        return;
    assert_int_equal(first, SK_ERR_OK);
    assert_int_equal(envelope.op, request.op);
    msgpack_unpacked unpacked;
    size_t offset = 0;
    msgpack_unpacked_init(&unpacked);
    msgpack_unpack_return rc =
        msgpack_unpack_next(&unpacked, (const char *)frame.bytes, frame.size, &offset);
    assert_true(rc == MSGPACK_UNPACK_SUCCESS || rc == MSGPACK_UNPACK_EXTRA_BYTES);
    assert_int_equal(offset, frame.size);
    assert_int_equal(unpacked.data.type, MSGPACK_OBJECT_MAP);
    msgpack_unpacked_destroy(&unpacked);
    use(&request);
    struct sk_buffer encoded = {0};
    sk_request_encode(&encoded, &request);
    assert_int_equal(sk_request_decode(&again, sk_buffer_span(&encoded), NULL), SK_ERR_OK);
    sk_buffer_deinit(&encoded);
}

static void every_cut_is_refused_and_every_changed_byte_is_survived(void **state)
{
    (void)state;
    for (size_t i = 0; i < requests.count; i++) {
        struct sk_span frame = hex_bytes(vector_line(&requests.vectors[i], "hex"));
        for_every_wound(frame, look, &requests.vectors[i]);
        span_free(&frame);
    }
}

/* {"v":1,"op":op,"id":9, then the packed pairs}. */
static struct sk_span frame_of(struct sk_buffer *to, const char *op, uint32_t count,
                               struct sk_span pairs)
{
    sk_buffer_clear(to);
    sk_put_map(to, 3 + count);
    sk_put_text(to, "v");
    sk_put_u64(to, 1);
    sk_put_text(to, "op");
    sk_put_text(to, op);
    sk_put_text(to, "id");
    sk_put_u64(to, 9);
    sk_put_raw(to, pairs);
    return sk_buffer_span(to);
}

static void an_unknown_name_is_answered_with_the_closest(void **state)
{
    (void)state;
    static const struct {
        const char *op, *key, *wanted;
    } cases[] = {
        {"search", "limits", "'limit'"},        {"search", "with_payloads", "'with_payload'"},
        {"upsert", "vector", "'vectors'"},      {"search", "deadlinems", "'deadline_ms'"},
        {"count", "colection", "'collection'"}, {"search", "zzzzzzzzzz", "no field 'zzzzzzzzzz'"}};
    struct sk_buffer pairs = {0}, frame = {0};
    struct sk_request request;
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_diag d = {0};
        sk_buffer_clear(&pairs);
        sk_put_text(&pairs, cases[i].key);
        sk_put_u64(&pairs, 1);
        assert_int_equal(sk_request_decode(&request,
                                           frame_of(&frame, cases[i].op, 1, sk_buffer_span(&pairs)),
                                           &d),
                         SK_ERR_UNKNOWN_FIELD);
        assert_string_equal(d.field, cases[i].key);
        assert_non_null(strstr(d.text, cases[i].wanted));
    }
    struct sk_diag d = {0};
    assert_int_equal(
        sk_request_decode(&request, frame_of(&frame, "serach", 0, (struct sk_span){0}), &d),
        SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "the closest name is 'search'"));
    assert_true(request.id.is_present || request.op == SK_OP_NONE);
    sk_buffer_deinit(&pairs);
    sk_buffer_deinit(&frame);
}

static void the_id_is_read_also_from_what_is_refused(void **state)
{
    (void)state;
    struct sk_buffer frame = {0};
    struct sk_envelope envelope;
    sk_put_map(&frame, 3);
    sk_put_text(&frame, "op");
    sk_put_u64(&frame, 1);
    sk_put_text(&frame, "v");
    sk_put_u64(&frame, 77);
    sk_put_text(&frame, "id");
    sk_put_text(&frame, "late");
    struct sk_diag d = {0};
    assert_int_equal(sk_envelope_decode(&envelope, sk_buffer_span(&frame), &d), SK_ERR_INVALID);
    assert_string_equal(d.field, "op"); /* the first fault is the one told */
    assert_true(envelope.id.is_present && envelope.id.is_text);
    assert_true(sk_span_is(envelope.id.text, "late"));
    sk_buffer_deinit(&frame);
}

static enum sk_err decode_count(const char *op, const char *key, uint32_t count, struct sk_diag *d)
{
    struct sk_buffer pairs = {0}, frame = {0};
    struct sk_request request;
    sk_put_text(&pairs, "collection");
    sk_put_text(&pairs, "docs");
    sk_put_text(&pairs, key);
    sk_put_array(&pairs, count);
    for (uint32_t i = 0; i < count; i++)
        sk_put_u64(&pairs, i);
    enum sk_err err =
        sk_request_decode(&request, frame_of(&frame, op, 2, sk_buffer_span(&pairs)), d);
    sk_buffer_deinit(&pairs);
    sk_buffer_deinit(&frame);
    return err;
}

static void limits_hold_at_their_edge(void **state)
{
    (void)state;
    struct sk_diag d = {0};
    assert_int_equal(decode_count("get", "ids", SK_ROWS_MAX, NULL), SK_ERR_OK);
    assert_int_equal(decode_count("get", "ids", SK_ROWS_MAX + 1, &d), SK_ERR_TOO_LARGE);
    assert_string_equal(d.field, "ids");
    assert_int_equal(decode_count("upsert", "records", SK_ROWS_MAX, NULL), SK_ERR_OK);
    assert_int_equal(decode_count("upsert", "records", SK_ROWS_MAX + 1, &d), SK_ERR_TOO_LARGE);
    assert_string_equal(d.field, "records");

    struct sk_buffer pairs = {0}, frame = {0};
    struct sk_request request;
    for (unsigned over = 0; over < 2; over++) {
        sk_buffer_clear(&pairs);
        sk_put_text(&pairs, "collection");
        sk_put_text(&pairs, "docs");
        sk_put_text(&pairs, "cursor");
        sk_put_bin_head(&pairs, 256 + over * 16);
        memset(sk_buffer_grow(&pairs, 256 + over * 16), 0, 256 + over * 16);
        assert_int_equal(
            sk_request_decode(&request, frame_of(&frame, "scroll", 2, sk_buffer_span(&pairs)), &d),
            over ? SK_ERR_TOO_LARGE : SK_ERR_OK);
    }
    assert_string_equal(d.field, "cursor");
    uint8_t *large = calloc(1, SK_FRAME_BYTES_MAX + 1);
    assert_non_null(large);
    assert_int_equal(sk_request_decode(&request, sk_span_of(large, SK_FRAME_BYTES_MAX + 1), &d),
                     SK_ERR_TOO_LARGE);
    free(large);
    sk_buffer_deinit(&pairs);
    sk_buffer_deinit(&frame);
}

static void roles_and_names_are_those_of_the_list(void **state)
{
    (void)state;
    enum sk_role role;
    struct sk_diag d = {0};
    assert_int_equal(sk_role_parse(&role, sk_span_text("write"), &d), SK_ERR_OK);
    assert_int_equal(role, SK_ROLE_WRITE);
    assert_int_equal(sk_role_parse(&role, sk_span_text("link"), &d), SK_ERR_INVALID);
    assert_int_equal(role, SK_ROLE_NONE);
    assert_int_equal(sk_op_role(SK_OP_UPSERT), SK_ROLE_WRITE);
    assert_int_equal(sk_op_role(SK_OP_MAP_GET), SK_ROLE_LINK);
    assert_int_equal(sk_op_role(SK_OPS_END), SK_ROLE_LINK);
    assert_string_equal(sk_op_name(SK_OPS_END), "");
    assert_true(sk_op_is_write(SK_OP_DELETE));
    assert_false(sk_op_is_write(SK_OP_CREATE_COLLECTION));
    static const char *const words[] = {"search", "scroll"};
    assert_string_equal(sk_closest(sk_span_text("serch"), words, 2), "search");
    assert_null(sk_closest(sk_span_text("upsert"), words, 2));
    assert_int_equal(sk_name_check(sk_span_text("0-a_b.c"), "x", NULL), SK_ERR_OK);
    assert_int_equal(sk_name_check(sk_span_text("_a"), "x", &d), SK_ERR_INVALID);
    assert_int_equal(sk_name_check(sk_span_of("a\0b", 3), "x", &d), SK_ERR_INVALID);
}

static void ids_and_slots_are_those_of_the_vectors(void **state)
{
    (void)state;
    char path[512], line[512];
    unsigned count = 0;
    (void)snprintf(path, sizeof path, "%s/tests/vectors/ids.txt", SK_SOURCE_DIR);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        char json[400], hex[160];
        unsigned slot;
        if (line[0] == '#' || sscanf(line, "%399s %159s %u", json, hex, &slot) != 3)
            continue;
        struct sk_span bytes = hex_bytes(hex);
        struct sk_id id, again;
        assert_int_equal(sk_id_from_canonical(&id, bytes, NULL), SK_ERR_OK);
        assert_int_equal(sk_id_slot(&id), slot);
        struct sk_buffer packed = {0};
        sk_put_id(&packed, &id);
        struct sk_reader from = sk_reader_of(sk_buffer_span(&packed));
        assert_int_equal(sk_read_id(&from, &again, NULL), SK_ERR_OK);
        assert_int_equal(sk_id_compare(&id, &again), 0);
        if (sk_id_kind(&id) != SK_ID_UUID) /* in lower case it is given back */
            assert_shows(sk_buffer_span(&packed), json);
        sk_buffer_deinit(&packed);
        span_free(&bytes);
        count++;
    }
    (void)fclose(file);
    assert_true(count >= 18);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector_means_what_it_says),
        cmocka_unit_test(every_operation_has_a_vector),
        cmocka_unit_test(every_cut_is_refused_and_every_changed_byte_is_survived),
        cmocka_unit_test(an_unknown_name_is_answered_with_the_closest),
        cmocka_unit_test(the_id_is_read_also_from_what_is_refused),
        cmocka_unit_test(limits_hold_at_their_edge),
        cmocka_unit_test(roles_and_names_are_those_of_the_list),
        cmocka_unit_test(ids_and_slots_are_those_of_the_vectors),
    };
    vector_file_read(&requests, "requests.txt");
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    free(requests.text);
    return status;
}
