/* links: sk_proto */
/* A client's frame, and all that a node reads out of one: rows, queries, filters, schemas. */
#include "proto/filter.h"
#include "proto/records.h"
#include "proto/reply.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>

static struct sk_schema schema_of(enum sk_op op)
{
    struct sk_schema schema = {
        .name = "docs", .shard_count = 1, .vector_count = op == SK_OP_SEARCH ? 1 : 2};
    for (uint32_t i = 0; i < schema.vector_count; i++) {
        schema.vectors[i] = (struct sk_vector_field){.dim = 2,
                                                     .metric = SK_SCHEMA_COSINE,
                                                     .index = SK_SCHEMA_HNSW,
                                                     .m = 16,
                                                     .ef_construction = 200};
        if (schema.vector_count > 1)
            (void)snprintf(schema.vectors[i].name, sizeof schema.vectors[i].name, "%s",
                           i == 0 ? "text" : "image");
    }
    schema.field_count = 1;
    schema.fields[0] = (struct sk_payload_field){.name = "n", .kind = SK_PAYLOAD_INTEGER, .id = 1};
    schema.field_id_next = 1;
    return schema;
}

static void read_rows(const struct sk_request *request, float *numbers)
{
    struct sk_schema schema = schema_of(request->op);
    for (unsigned fields = 1; fields <= 2; fields++) { /* one without a name, then two by name */
        uint32_t count;
        struct sk_schema tried = schema;
        if (fields == 1) {
            tried.vector_count = 1;
            tried.vectors[0].name[0] = '\0';
        }
        if (sk_upsert_check(&tried, request, numbers, &count, NULL) == SK_ERR_OK)
            SK_CHECK(count <= SK_ROWS_MAX);
    }
}

static void read_parts(const struct sk_request *request)
{
    static float numbers[SK_DIM_MAX];
    struct sk_schema schema = schema_of(request->op);
    if (request->op == SK_OP_UPSERT)
        read_rows(request, numbers);
    if (request->op == SK_OP_CREATE_COLLECTION &&
        sk_schema_from_request(&schema, request, NULL) == SK_ERR_OK) {
        struct sk_buffer stored = {0};
        struct sk_schema again;
        sk_schema_encode(&stored, &schema);
        struct sk_reader from = sk_reader_of(sk_buffer_span(&stored));
        SK_CHECK(sk_schema_decode(&again, &from, NULL) ==
                 SK_ERR_OK); /* what a keeper stores, it can read */
        sk_buffer_deinit(&stored);
    }
    if (request->op == SK_OP_ALTER_COLLECTION)
        (void)!sk_schema_alter(&schema, request, NULL);
    if (sk_request_has(request, SK_FIELD_vector) || sk_request_has(request, SK_FIELD_queries)) {
        struct sk_queries queries;
        if (sk_queries_begin(&queries, request, 2, NULL) == SK_ERR_OK)
            while (sk_queries_next(&queries, SK_SCHEMA_COSINE, numbers, NULL) == SK_ERR_OK)
                continue;
    }
    if (sk_request_has(request, SK_FIELD_filter)) {
        struct sk_arena arena;
        struct sk_filter *filter;
        sk_arena_init(&arena, 4 << 20);
        if (sk_filter_parse(&filter, &arena, request->filter, NULL) == SK_ERR_OK)
            (void)!sk_filter_check(&schema, filter, NULL);
        sk_arena_deinit(&arena);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_request request, again;
    struct sk_diag d = {0};
    struct sk_buffer to = {0};
    enum sk_err err = sk_request_decode(&request, sk_span_of(bytes, size), &d);
    SK_CHECK(d.code == err);
    if (err == SK_ERR_OK) {
        sk_request_encode(&to, &request);
        SK_CHECK(sk_request_decode(&again, sk_buffer_span(&to), NULL) == SK_ERR_OK);
        SK_CHECK(again.op == request.op && again.present == request.present);
        read_parts(&request);
    } else {
        struct sk_envelope envelope; /* an error reply can be made of it, and read */
        struct sk_reply reply;
        (void)!sk_envelope_decode(&envelope, sk_span_of(bytes, size), NULL);
        sk_reply_error(&to, &envelope.id, err, &d);
        SK_CHECK(sk_reply_decode(&reply, sk_buffer_span(&to), NULL) == SK_ERR_OK);
    }
    sk_buffer_deinit(&to);
    return 0;
}
