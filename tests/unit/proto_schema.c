/* links: sk_proto | wraps: calloc */
/* Schemas, and the map that carries them: from requests, stored, altered, hostile. */
#include "proto/map.h"
#include "tests/unit/proto_vectors.h"

static unsigned fail_at; /* the call of calloc that fails; 0: none */
static unsigned calloc_calls;
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);

void *__wrap_calloc(size_t count, size_t size)
{
    calloc_calls++;
    return calloc_calls == fail_at ? NULL : __real_calloc(count, size);
}

/* A request of one text of msgpack for each field, borrowed. */
static struct sk_request request_of(const char *vectors, size_t vectors_size, const char *payload,
                                    size_t payload_size)
{
    struct sk_request request = {.op = SK_OP_CREATE_COLLECTION, .collection = sk_span_text("docs")};
    request.vector_schema = sk_span_of(vectors, vectors_size);
    request.present = UINT64_C(1) << SK_FIELD_vector_schema;
    if (payload != NULL) {
        request.payload_schema = sk_span_of(payload, payload_size);
        request.present |= UINT64_C(1) << SK_FIELD_payload_schema;
    }
    return request;
}

#define CREATE(out, text, d)                                                                       \
    sk_schema_from_request(                                                                        \
        out, &(struct sk_request[]){request_of(text, sizeof(text) - 1, NULL, 0)}[0], d)

static void defaults_and_aliases_of_a_vector_field(void **state)
{
    (void)state;
    struct sk_schema schema;
    assert_int_equal(CREATE(&schema,
                            "\x81\xa3"
                            "dim\x04",
                            NULL),
                     SK_ERR_OK);
    assert_int_equal(schema.vectors[0].metric, SK_SCHEMA_COSINE);
    assert_int_equal(schema.vectors[0].index, SK_SCHEMA_HNSW);
    assert_int_equal(schema.vectors[0].m, 16);
    assert_int_equal(schema.vectors[0].ef_construction, 200);
    assert_int_equal(schema.shard_count, 1);
    static const struct {
        const char *name;
        enum sk_schema_metric metric;
    } metrics[] = {{"l2", SK_SCHEMA_L2},         {"Euclid", SK_SCHEMA_L2},
                   {"euclidean", SK_SCHEMA_L2},  {"ip", SK_SCHEMA_IP},
                   {"Dot", SK_SCHEMA_IP},        {"dot", SK_SCHEMA_IP},
                   {"cosine", SK_SCHEMA_COSINE}, {"COSINE", SK_SCHEMA_COSINE}};
    for (size_t i = 0; i < SK_COUNT_OF(metrics); i++) {
        struct sk_buffer to = {0};
        sk_put_map(&to, 2);
        sk_put_text(&to, i % 2 == 0 ? "size" : "dimension");
        sk_put_u64(&to, 3);
        sk_put_text(&to, i % 2 == 0 ? "distance" : "metric");
        sk_put_text(&to, metrics[i].name);
        struct sk_request request = request_of((const char *)to.bytes, to.size, NULL, 0);
        assert_int_equal(sk_schema_from_request(&schema, &request, NULL), SK_ERR_OK);
        assert_int_equal(schema.vectors[0].metric, metrics[i].metric);
        assert_int_equal(schema.vectors[0].dim, 3);
        sk_buffer_deinit(&to);
    }
}

static void what_is_wrong_with_a_vector_field_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        enum sk_err err;
        const char *field;
    } cases[] = {
        {"\x01", 1, SK_ERR_INVALID, "vectors"},
        {"\x80", 1, SK_ERR_INVALID, "vectors"},
        {"\x81\x01\x01", 3, SK_ERR_INVALID, ""},
        {"\x81\xa3"
         "dim\x00",
         6, SK_ERR_INVALID, "dim"},
        {"\x81\xa3"
         "dim\xcd\x20\x01",
         8, SK_ERR_TOO_LARGE, "dim"},
        {"\x82\xa3"
         "dim\x01\xa4"
         "size\x01",
         12, SK_ERR_INVALID, "vectors"},
        {"\x82\xa3"
         "dim\x01\xa6metric\xa2xx",
         16, SK_ERR_INVALID, "metric"},
        {"\x81\xa6metric\xa2l2", 11, SK_ERR_INVALID, "dim"},
        {"\x82\xa3"
         "dim\x01\xa5index\xa3ivf",
         16, SK_ERR_INVALID, "index"},
        {"\x82\xa3"
         "dim\x01\xa5index\x81\xa1m\x03",
         16, SK_ERR_INVALID, "m"},
        {"\x82\xa3"
         "dim\x01\xa5index\x81\xa1m\x41",
         16, SK_ERR_TOO_LARGE, "m"},
        {"\x82\xa3"
         "dim\x01\xa5index\x82\xa1m\x08\xa1M\x08",
         19, SK_ERR_INVALID, "index"},
        {"\x82\xa3"
         "dim\x01\xa5index\x81\xa5nlist\x08",
         20, SK_ERR_INVALID, "nlist"},
        {"\x82\xa3"
         "dim\x01\xa5index\x81\xa5nlost\x08",
         20, SK_ERR_UNKNOWN_FIELD, "index"},
        {"\x81\xa1"
         "a\x81\xa4"
         "dims\x01",
         10, SK_ERR_UNKNOWN_FIELD, "vectors"},
        {"\x82\xa1"
         "a\x81\xa3"
         "dim\x01\xa1"
         "a\x81\xa3"
         "dim\x01",
         17, SK_ERR_INVALID, "vectors"},
        {"\x82\xa1"
         "a\x81\xa3"
         "dim\x01\xa6metric\x81\xa3"
         "dim\x01",
         22, SK_ERR_INVALID, "vectors"},
        {"\x81\xa3"
         "a/b\x81\xa3"
         "dim\x01",
         11, SK_ERR_INVALID, "vectors"},
    };
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_schema schema;
        struct sk_diag d = {0};
        struct sk_request request = request_of(cases[i].bytes, cases[i].size, NULL, 0);
        enum sk_err err = sk_schema_from_request(&schema, &request, &d);
        if (err != cases[i].err || strcmp(d.field, cases[i].field) != 0)
            fail_msg("case %zu: %s '%s' %s", i, sk_err_name(err), d.field, d.text);
        assert_int_equal(schema.vector_count, 0);
    }
}

static void sample(struct sk_schema *schema)
{
    struct sk_buffer vectors = {0}, payload = {0};
    sk_put_map(&vectors, 2);
    sk_put_text(&vectors, "text");
    sk_put_map(&vectors, 3);
    sk_put_text(&vectors, "dim");
    sk_put_u64(&vectors, 384);
    sk_put_text(&vectors, "metric");
    sk_put_text(&vectors, "ip");
    sk_put_text(&vectors, "index");
    sk_put_map(&vectors, 2);
    sk_put_text(&vectors, "m");
    sk_put_u64(&vectors, 24);
    sk_put_text(&vectors, "efConstruction");
    sk_put_u64(&vectors, 300);
    sk_put_text(&vectors, "image");
    sk_put_map(&vectors, 2);
    sk_put_text(&vectors, "dim");
    sk_put_u64(&vectors, 8);
    sk_put_text(&vectors, "index");
    sk_put_text(&vectors, "flat");
    sk_put_map(&payload, 2);
    sk_put_text(&payload, "lexname");
    sk_put_text(&payload, "keyword");
    sk_put_text(&payload, "where.place");
    sk_put_text(&payload, "geo");
    struct sk_request request = request_of((const char *)vectors.bytes, vectors.size,
                                           (const char *)payload.bytes, payload.size);
    request.shards = 3;
    request.present |= UINT64_C(1) << SK_FIELD_shards;
    assert_int_equal(sk_schema_from_request(schema, &request, NULL), SK_ERR_OK);
    memset(schema->uuid, 7, sizeof schema->uuid);
    schema->version = 1;
    sk_buffer_deinit(&vectors);
    sk_buffer_deinit(&payload);
}

static void a_schema_is_stored_described_and_read_back(void **state)
{
    (void)state;
    struct sk_schema schema, again;
    struct sk_buffer stored = {0}, described = {0};
    char text[SK_UUID_TEXT_BYTES];
    sample(&schema);
    assert_int_equal(schema.shard_count, 3);
    sk_schema_encode(&stored, &schema);
    struct sk_reader from = sk_reader_of(sk_buffer_span(&stored));
    assert_int_equal(sk_schema_decode(&again, &from, NULL), SK_ERR_OK);
    assert_int_equal(sk_reader_left(&from), 0);
    assert_memory_equal(&schema, &again, sizeof schema);
    assert_string_equal(sk_uuid_text(schema.uuid, text), "07070707-0707-0707-0707-070707070707");
    sk_put_map(&described, 2);
    sk_schema_describe(&described, &schema);
    assert_shows(sk_buffer_span(&described),
                 "{\"vectors\":{\"text\":{\"dim\":384,\"metric\":\"ip\",\"index\":{\"type\":"
                 "\"hnsw\",\"m\":24,"
                 "\"ef_construction\":300,\"profile\":\"balanced\"}},\"image\":{\"dim\":8,\"metric\":\"cosine\",\"index\":{"
                 "\"type\":\"flat\"}}},"
                 "\"payload\":{\"lexname\":\"keyword\",\"where.place\":\"geo\"}}");
    sk_buffer_deinit(&stored);
    sk_buffer_deinit(&described);
}

static void look(struct sk_span bytes, bool is_cut, void *arg)
{
    (void)arg;
    struct sk_schema schema;
    struct sk_diag d = {0};
    struct sk_reader from = sk_reader_of(bytes);
    enum sk_err err = sk_schema_decode(&schema, &from, &d);
    assert_int_equal(d.code, err);
    if (is_cut)
        assert_int_not_equal(err, SK_ERR_OK);
    if (err != SK_ERR_OK)
        return;
    assert_true(schema.vector_count >= 1 && schema.vector_count <= SK_VECTOR_FIELDS_MAX);
    assert_int_equal(sk_name_check(sk_span_text(schema.name), "name", NULL), SK_ERR_OK);
    struct sk_buffer again = {0};
    sk_schema_encode(&again, &schema);
    sk_buffer_deinit(&again);
}

static void hostile_stored_schemas_are_survived(void **state)
{
    (void)state;
    struct sk_schema schema;
    struct sk_buffer stored = {0};
    sample(&schema);
    sk_schema_encode(&stored, &schema);
    for_every_wound(sk_buffer_span(&stored), look, NULL);
    (void)snprintf(schema.fields[1].name, sizeof schema.fields[1].name,
                   "lexname"); /* given twice */
    sk_buffer_clear(&stored);
    sk_schema_encode(&stored, &schema);
    struct sk_schema again;
    struct sk_reader from = sk_reader_of(sk_buffer_span(&stored));
    assert_int_equal(sk_schema_decode(&again, &from, NULL), SK_ERR_INVALID);
    sk_buffer_deinit(&stored);
}

static enum sk_err alter(struct sk_schema *schema, enum sk_field field, const char *bytes,
                         size_t size, struct sk_diag *d)
{
    struct sk_request request = {.op = SK_OP_ALTER_COLLECTION, .present = UINT64_C(1) << field};
    request.payload_schema = request.index_schema = sk_span_of(bytes, size);
    return sk_schema_alter(schema, &request, d);
}

static void altering_is_whole_or_nothing_and_twice_is_once(void **state)
{
    (void)state;
    struct sk_schema schema, before;
    struct sk_diag d = {0};
    sample(&schema);
    assert_int_equal(
        alter(&schema, SK_FIELD_payload_schema, "\x82\xa7lexname\xc0\xa1n\xa7integer", 20, &d),
        SK_ERR_OK);
    assert_int_equal(schema.version, 2);
    assert_int_equal(schema.field_count, 2);
    assert_int_equal(schema.fields[1].id, 3); /* an id is never used again */
    before = schema;
    assert_int_equal(alter(&schema, SK_FIELD_payload_schema, "\x81\xa1n\xa7integer", 11, &d),
                     SK_ERR_OK);
    assert_memory_equal(&schema, &before, sizeof schema);
    assert_int_equal(alter(&schema, SK_FIELD_payload_schema,
                           "\x82\xa1z\xa4"
                           "bool\xa1n\xa5"
                           "float",
                           16, &d),
                     SK_ERR_EXISTS);
    assert_int_equal(alter(&schema, SK_FIELD_payload_schema, "\x81\xa7lexname\xc0", 10, &d),
                     SK_ERR_NOT_FOUND);
    assert_memory_equal(&schema, &before, sizeof schema);

    struct sk_buffer index = {0};
    sk_put_map(&index, 1);
    sk_put_text(&index, "text");
    sk_put_map(&index, 1);
    sk_put_text(&index, "ef_construct");
    sk_put_u64(&index, 500);
    for (unsigned times = 0; times < 2; times++)
        assert_int_equal(
            alter(&schema, SK_FIELD_index_schema, (const char *)index.bytes, index.size, &d),
            SK_ERR_OK);
    assert_int_equal(schema.version, 3);
    assert_int_equal(schema.vectors[0].ef_construction, 500);
    assert_int_equal(alter(&schema, SK_FIELD_index_schema, "\x81\xa4text\x81\xa1m\x08", 10, &d),
                     SK_ERR_OK);
    assert_int_equal(schema.version, 4);
    assert_int_equal(schema.vectors[0].m, 8);
    assert_int_equal(schema.vectors[0].ef_construction, 500); /* the rest stays */
    assert_int_equal(alter(&schema, SK_FIELD_index_schema, "\x81\xa4none\x80", 7, &d),
                     SK_ERR_NOT_FOUND);
    assert_int_equal(alter(&schema, SK_FIELD_index_schema, "\xa4hnsw", 5, &d), SK_ERR_INVALID);
    sk_buffer_deinit(&index);
}

/* A request with one vector field of dimension 32 whose index is the packed value. */
static enum sk_err create_index(struct sk_schema *schema, const struct sk_buffer *index,
                                struct sk_diag *d)
{
    struct sk_buffer to = {0};
    sk_put_map(&to, 2);
    sk_put_text(&to, "dim");
    sk_put_u64(&to, 32);
    sk_put_text(&to, "index");
    sk_put_raw(&to, sk_buffer_span(index));
    struct sk_request request = request_of((const char *)to.bytes, to.size, NULL, 0);
    enum sk_err err = sk_schema_from_request(schema, &request, d);
    sk_buffer_deinit(&to);
    return err;
}

/* type, then pairs of a name and a number; NULL ends. */
static void pack_index(struct sk_buffer *to, const char *type, const char *profile, const char *key,
                       uint64_t value, const char *key2, uint64_t value2)
{
    sk_buffer_clear(to);
    sk_put_map(to, (size_t)(type != NULL) + (profile != NULL) + (key != NULL) + (key2 != NULL));
    if (key != NULL) { /* before the type: the order says nothing */
        sk_put_text(to, key);
        sk_put_u64(to, value);
    }
    if (type != NULL) {
        sk_put_text(to, "type");
        sk_put_text(to, type);
    }
    if (profile != NULL) {
        sk_put_text(to, "profile");
        sk_put_text(to, profile);
    }
    if (key2 != NULL) {
        sk_put_text(to, key2);
        sk_put_u64(to, value2);
    }
}

static void every_index_takes_its_own_parameters_and_no_other(void **state)
{
    (void)state;
    enum { A = 1 << SK_SCHEMA_IVF_FLAT, B = 1 << SK_SCHEMA_IVF_PQ | 1 << SK_SCHEMA_HYBRID };
    static const struct {
        const char *name;
        unsigned types;
    } parameters[] = {{"m", 1 << SK_SCHEMA_HNSW},       {"ef_construction", 1 << SK_SCHEMA_HNSW},
                      {"max_neighbors", 1 << SK_SCHEMA_HNSW}, {"nlist", A | B},
                      {"num_partitions", A | B},        {"centroids", A | B},
                      {"pq_m", B},                      {"num_sub_vectors", B},
                      {"refine", B},                    {"refine_factor", B}};
    struct sk_buffer index = {0};
    struct sk_schema schema;
    for (unsigned type = SK_SCHEMA_FLAT; type <= SK_SCHEMA_HYBRID; type++) {
        const char *name = sk_schema_index_name((enum sk_schema_index)type);
        for (size_t i = 0; i < SK_COUNT_OF(parameters); i++) {
            struct sk_diag d = {0};
            pack_index(&index, name, NULL, parameters[i].name, 16, NULL, 0);
            enum sk_err err = create_index(&schema, &index, &d);
            bool is_taken = (parameters[i].types >> type & 1) != 0;
            assert_int_equal(err, is_taken ? SK_ERR_OK : SK_ERR_INVALID);
            if (!is_taken)
                assert_non_null(strstr(d.text, name));
        }
        pack_index(&index, name, "speed", NULL, 0, NULL, 0);
        assert_int_equal(create_index(&schema, &index, NULL),
                         type == SK_SCHEMA_HNSW ? SK_ERR_OK : SK_ERR_INVALID);
    }
    static const struct {
        const char *name;
        uint64_t value;
        enum sk_err err;
    } limits[] = {{"nlist", 65536, SK_ERR_OK}, {"nlist", 65537, SK_ERR_TOO_LARGE},
                  {"pq_m", 32, SK_ERR_OK},     {"pq_m", 34, SK_ERR_INVALID}, /* over the dimension */
                  {"pq_m", 7, SK_ERR_INVALID}, {"pq_m", 0, SK_ERR_OK},
                  {"refine", 100, SK_ERR_OK},  {"refine", 101, SK_ERR_TOO_LARGE}};
    for (size_t i = 0; i < SK_COUNT_OF(limits); i++) {
        pack_index(&index, "IVF_PQ", NULL, limits[i].name, limits[i].value, NULL, 0);
        assert_int_equal(create_index(&schema, &index, NULL), limits[i].err);
    }
    pack_index(&index, "ivf_pq", NULL, "nlist", 8, "centroids", 8);
    assert_int_equal(create_index(&schema, &index, NULL), SK_ERR_INVALID); /* given twice */
    pack_index(&index, NULL, "fast", NULL, 0, NULL, 0);
    assert_int_equal(create_index(&schema, &index, NULL), SK_ERR_INVALID);
    sk_buffer_deinit(&index);
}

static void describe_and_store(const struct sk_schema *schema, size_t members, const char *shown)
{
    struct sk_buffer stored = {0}, described = {0};
    struct sk_schema again, named = *schema;
    struct sk_value value;
    (void)snprintf(named.name, sizeof named.name, "docs");
    sk_schema_encode(&stored, &named);
    struct sk_reader from = sk_reader_of(sk_buffer_span(&stored));
    assert_int_equal(sk_schema_decode(&again, &from, NULL), SK_ERR_OK);
    assert_memory_equal(&named, &again, sizeof again);
    from = sk_reader_of(sk_buffer_span(&stored));
    for (unsigned i = 0; i < 9; i++) /* the head, six members, the list, its first field */
        assert_int_equal(sk_read(&from, &value, NULL), SK_ERR_OK);
    assert_int_equal(value.count, members);
    sk_put_map(&described, 2);
    sk_schema_describe(&described, &named);
    assert_shows(sk_buffer_span(&described), shown);
    sk_buffer_deinit(&stored);
    sk_buffer_deinit(&described);
}

static void an_index_is_altered_in_place(void **state)
{
    (void)state;
    struct sk_buffer index = {0};
    struct sk_schema schema;
    struct sk_diag d = {0};
    pack_index(&index, NULL, NULL, "m", 32, NULL, 0);
    assert_int_equal(create_index(&schema, &index, &d), SK_ERR_OK);
    /* what 0.1 knows is stored as 0.1 stored it */
    describe_and_store(&schema, 6,
                       "{\"vectors\":{\"dim\":32,\"metric\":\"cosine\",\"index\":{\"type\":"
                       "\"hnsw\",\"m\":32,\"ef_construction\":200,\"profile\":\"balanced\"}},"
                       "\"payload\":{}}");
    pack_index(&index, NULL, "memory", NULL, 0, NULL, 0);
    assert_int_equal(
        alter(&schema, SK_FIELD_index_schema, (const char *)index.bytes, index.size, &d), SK_ERR_OK);
    assert_int_equal(schema.version, 1);
    describe_and_store(&schema, 10,
                       "{\"vectors\":{\"dim\":32,\"metric\":\"cosine\",\"index\":{\"type\":"
                       "\"hnsw\",\"m\":32,\"ef_construction\":200,\"profile\":\"memory\"}},"
                       "\"payload\":{}}");
    pack_index(&index, "ivf_pq", NULL, "nlist", 64, "pq_m", 8);
    for (unsigned times = 0; times < 2; times++)
        assert_int_equal(
            alter(&schema, SK_FIELD_index_schema, (const char *)index.bytes, index.size, &d),
            SK_ERR_OK);
    assert_int_equal(schema.version, 2);
    describe_and_store(&schema, 10,
                       "{\"vectors\":{\"dim\":32,\"metric\":\"cosine\",\"index\":{\"type\":"
                       "\"ivf_pq\",\"nlist\":64,\"pq_m\":8}},\"payload\":{}}");
    pack_index(&index, NULL, NULL, "m", 8, NULL, 0); /* it has lists now */
    assert_int_equal(
        alter(&schema, SK_FIELD_index_schema, (const char *)index.bytes, index.size, &d),
        SK_ERR_INVALID);
    assert_string_equal(d.field, "m");
    assert_non_null(strstr(d.text, "which takes pq_m"));
    /* another type begins with its defaults */
    assert_int_equal(alter(&schema, SK_FIELD_index_schema, "\xa4hnsw", 5, &d), SK_ERR_OK);
    assert_int_equal(schema.vectors[0].m, 16);
    assert_int_equal(schema.vectors[0].profile, SK_SCHEMA_BALANCED);
    assert_int_equal(schema.vectors[0].nlist, 0);
    assert_int_equal(schema.version, 3);
    sk_buffer_deinit(&index);
}

static void a_search_parameter_goes_with_its_index(void **state)
{
    (void)state;
    static const struct {
        enum sk_schema_index index;
        enum sk_field field;
        enum sk_err err;
    } cases[] = {
        {SK_SCHEMA_HNSW, SK_FIELD_ef, SK_ERR_OK},
        {SK_SCHEMA_HNSW, SK_FIELD_nprobe, SK_ERR_INVALID},
        {SK_SCHEMA_FLAT, SK_FIELD_ef, SK_ERR_OK},
        {SK_SCHEMA_FLAT, SK_FIELD_nprobe, SK_ERR_INVALID},
        {SK_SCHEMA_FLAT, SK_FIELD_recall, SK_ERR_OK},
        {SK_SCHEMA_IVF_FLAT, SK_FIELD_ef, SK_ERR_INVALID},
        {SK_SCHEMA_IVF_FLAT, SK_FIELD_nprobe, SK_ERR_OK},
        {SK_SCHEMA_IVF_PQ, SK_FIELD_recall, SK_ERR_OK},
        {SK_SCHEMA_HYBRID, SK_FIELD_nprobe, SK_ERR_OK},
        {SK_SCHEMA_HYBRID, SK_FIELD_ef, SK_ERR_INVALID},
    };
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_diag d = {0};
        const struct sk_vector_field field = {.dim = 4, .index = cases[i].index};
        const struct sk_request request = {.op = SK_OP_SEARCH,
                                           .present = UINT64_C(1) << cases[i].field};
        assert_int_equal(sk_schema_check_search(&field, &request, &d), cases[i].err);
        if (cases[i].err != SK_ERR_OK)
            assert_non_null(strstr(d.text, sk_schema_index_name(cases[i].index)));
    }
}

static void a_vector_field_is_found_by_name(void **state)
{
    (void)state;
    struct sk_schema schema;
    struct sk_diag d = {0};
    uint32_t at;
    sample(&schema);
    assert_int_equal(sk_schema_vector(&schema, sk_span_text("image"), &at, NULL), SK_ERR_OK);
    assert_int_equal(at, 1);
    assert_int_equal(sk_schema_vector(&schema, (struct sk_span){0}, &at, &d), SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "text, image"));
    assert_int_equal(sk_schema_vector(&schema, sk_span_text("txt"), &at, &d), SK_ERR_NOT_FOUND);
    schema.vector_count = 1;
    assert_int_equal(sk_schema_vector(&schema, (struct sk_span){0}, &at, &d), SK_ERR_OK);
}

/* ---- the map ---- */

static void map_of(struct sk_map *map)
{
    *map =
        (struct sk_map){.version = 9, .node_id = UINT64_MAX, .collection_count = 2, .key_count = 1};
    map->collections = calloc(2, sizeof *map->collections);
    map->keys = calloc(1, sizeof *map->keys);
    assert_non_null(map->collections);
    assert_non_null(map->keys);
    for (uint32_t i = 0; i < 2; i++) {
        sample(&map->collections[i].schema);
        map->collections[i].workers[2] = 5;
    }
    (void)snprintf(map->collections[1].schema.name, 8, "other");
    map->collections[1].schema.uuid[0] = 1;
    (void)snprintf(map->keys[0].name, 8, "admin");
    memset(map->keys[0].public_key, 'k', 40);
    map->keys[0].role = SK_ROLE_ADMIN;
}

static void look_map(struct sk_span bytes, bool is_cut, void *arg)
{
    (void)arg;
    struct sk_map map = {0};
    struct sk_diag d = {0};
    enum sk_err err = sk_map_decode(&map, bytes, &d);
    assert_int_equal(d.code, err);
    if (is_cut)
        assert_int_not_equal(err, SK_ERR_OK);
    if (err != SK_ERR_OK)
        assert_null(map.collections);
    sk_map_deinit(&map);
}

static void a_map_is_written_read_searched_and_survived(void **state)
{
    (void)state;
    struct sk_map map, again = {0};
    struct sk_buffer packed = {0};
    const struct sk_map_collection *found;
    struct sk_diag d = {0};
    map_of(&map);
    sk_map_encode(&packed, &map);
    assert_int_equal(sk_map_decode(&again, sk_buffer_span(&packed), &d), SK_ERR_OK);
    assert_true(again.node_id == UINT64_MAX && again.version == 9);
    assert_memory_equal(&again.collections[1], &map.collections[1], sizeof map.collections[1]);
    assert_memory_equal(&again.keys[0], &map.keys[0], sizeof map.keys[0]);
    assert_non_null(sk_map_find_uuid(&again, map.collections[1].schema.uuid));
    assert_int_equal(sk_map_collection_of(&again, sk_span_text("othr"), &found, &d),
                     SK_ERR_NOT_FOUND);
    assert_non_null(strstr(d.text, "'other'"));
    assert_string_equal(d.field, "collection");
    assert_int_equal(sk_map_collection_of(&again, sk_span_text("docs"), &found, &d), SK_ERR_OK);
    assert_int_equal(found->workers[2], 5);
    assert_int_equal(sk_shard_of_slot(&found->schema, 4095), 0);
    for (unsigned n = 1; n <= 2; n++) { /* without memory the old copy stays */
        calloc_calls = 0;
        fail_at = n;
        assert_int_equal(sk_map_decode(&again, sk_buffer_span(&packed), &d), SK_ERR_NOMEM);
        fail_at = 0;
        assert_int_equal(again.collection_count, 2);
    }
    for_every_wound(sk_buffer_span(&packed), look_map, NULL);
    for (size_t at = 0; at + 4 < packed.size; at++) { /* a worker too few for three shards */
        if (memcmp(packed.bytes + at, "\x93\x00\x00\x05", 4) != 0)
            continue;
        memcpy(packed.bytes + at, "\x92\xcc\x00\x05", 4);
        assert_int_equal(sk_map_decode(&again, sk_buffer_span(&packed), &d), SK_ERR_INVALID);
        assert_non_null(strstr(d.text, "2 workers"));
        break;
    }
    sk_map_deinit(&map);
    sk_map_deinit(&again);
    sk_buffer_deinit(&packed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_and_aliases_of_a_vector_field),
        cmocka_unit_test(what_is_wrong_with_a_vector_field_is_named),
        cmocka_unit_test(a_schema_is_stored_described_and_read_back),
        cmocka_unit_test(hostile_stored_schemas_are_survived),
        cmocka_unit_test(altering_is_whole_or_nothing_and_twice_is_once),
        cmocka_unit_test(every_index_takes_its_own_parameters_and_no_other),
        cmocka_unit_test(an_index_is_altered_in_place),
        cmocka_unit_test(a_search_parameter_goes_with_its_index),
        cmocka_unit_test(a_vector_field_is_found_by_name),
        cmocka_unit_test(a_map_is_written_read_searched_and_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
