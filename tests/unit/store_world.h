/* A shard's store in a folder of its own, and rows to put in. */
#ifndef SK_TESTS_STORE_WORLD_H
#define SK_TESTS_STORE_WORLD_H

#include "actors/shard-worker/store/store.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        enum sk_err assert_ok_err = (call);                                                        \
        if (assert_ok_err != SK_ERR_OK)                                                            \
            fail_msg("%s: %s: %s", #call, sk_err_name(assert_ok_err), w->d.text);                  \
    } while (0)

enum { WORLD_DIM_MAX = 1024 };

struct world {
    char folder[128];
    struct sk_store_config config;
    struct sk_schema schema;
    struct sk_store *store;
    struct sk_store_reader *reader;
    uint64_t wall_us;
    uint64_t random;
    float vector[WORLD_DIM_MAX];
    struct sk_buffer payload;
    struct sk_diag d;
};

static inline uint64_t world_random(struct world *w, uint64_t below)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (w->random >> 11) % below;
}

static inline void world_remove(const char *folder)
{
    char command[256];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

static inline void world_field(struct world *w, const char *name, enum sk_payload_kind kind)
{
    struct sk_payload_field *field = &w->schema.fields[w->schema.field_count++];
    (void)snprintf(field->name, sizeof field->name, "%s", name);
    field->kind = kind;
    field->id = ++w->schema.field_id_next;
    w->schema.version++;
}

static inline void world_open(struct world *w)
{
    assert_ok(sk_store_open(&w->store, &w->config, &w->schema, &w->d));
    assert_ok(sk_store_reader_new(&w->reader, w->store, &w->d));
}

static inline void world_close(struct world *w)
{
    sk_store_reader_destroy(&w->reader);
    sk_store_close(&w->store);
}

/* parent NULL: a folder under TMPDIR or /tmp. Not opened yet, so that the schema can be changed. */
static inline void world_init(struct world *w, const char *parent, uint32_t dim)
{
    const char *tmp = parent != NULL ? parent : getenv("TMPDIR");
    memset(w, 0, sizeof *w);
    (void)snprintf(w->folder, sizeof w->folder, "%s/sk-store-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(w->folder));
    const char *seed = getenv("SK_SEED");
    w->random = seed != NULL ? strtoull(seed, NULL, 0) | 1 : 88172645463325252u;
    w->config = (struct sk_store_config){.folder = w->folder, .actor = 7};
    w->wall_us = UINT64_C(1700000000000000);
    (void)snprintf(w->schema.name, sizeof w->schema.name, "docs");
    w->schema.version = 1;
    w->schema.shard_count = 1;
    w->schema.vector_count = 1;
    w->schema.vectors[0] = (struct sk_vector_field){
        .dim = dim, .metric = SK_SCHEMA_L2, .index = SK_SCHEMA_HNSW, .m = 16, .ef_construction = 200};
}

static inline void world_deinit(struct world *w)
{
    world_close(w);
    sk_buffer_deinit(&w->payload);
    world_remove(w->folder);
}

/* The vector that belongs to a number. */
static inline void world_vector(float *out, uint32_t dim, uint64_t number)
{
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (float)((number * 2654435761u + i * 40503u) % 65536) / 256.0F;
}

/* A row with the vector of `number` in every field; payload borrowed. */
static inline struct sk_row world_row(struct world *w, struct sk_id id, uint64_t number,
                                      struct sk_span payload)
{
    struct sk_row row = {.id = id, .payload = payload};
    for (uint32_t f = 0; f < w->schema.vector_count; f++) {
        uint32_t dim = w->schema.vectors[f].dim;
        world_vector(w->vector, dim, number);
        row.vector_mask |= 1u << f;
        row.vectors[f] = (struct sk_vector_view){.bin = sk_span_of(w->vector, dim * 4), .dim = dim};
    }
    return row;
}

/* {"n": value} in w->payload. */
static inline struct sk_span world_payload(struct world *w, int64_t value)
{
    sk_buffer_clear(&w->payload);
    sk_put_map(&w->payload, 1);
    sk_put_text(&w->payload, "n");
    sk_put_i64(&w->payload, value);
    return sk_buffer_span(&w->payload);
}

static inline void world_begin(struct world *w)
{
    assert_ok(sk_store_begin(w->store, w->wall_us, false, &w->d));
}

static inline void world_commit(struct world *w)
{
    assert_ok(sk_store_commit(w->store, &w->d));
}

static inline struct sk_change world_upsert(struct world *w, uint64_t id, uint64_t number)
{
    struct sk_change change;
    struct sk_row row = world_row(w, sk_id_from_u64(id), number, world_payload(w, (int64_t)number));
    assert_ok(sk_store_upsert(w->store, &row, &change, &w->d));
    return change;
}

static inline struct sk_change world_delete(struct world *w, uint64_t id)
{
    struct sk_change change;
    struct sk_id key = sk_id_from_u64(id);
    assert_ok(sk_store_delete(w->store, &key, &change, &w->d));
    return change;
}

static inline void world_read(struct world *w)
{
    assert_ok(sk_store_read_begin(w->reader, w->wall_us, &w->d));
}

static inline bool world_find(struct world *w, uint64_t id, uint32_t *row, struct sk_record *record)
{
    struct sk_id key = sk_id_from_u64(id);
    enum sk_err err = sk_store_find(w->reader, &key, row, &w->d);
    if (err == SK_ERR_NOT_FOUND)
        return false;
    assert_ok(err);
    assert_ok(sk_store_record(w->reader, *row, record, &w->d));
    assert_int_equal(sk_id_compare(&record->id, &key), 0);
    return true;
}

/* In a read: the record is there and its vector and payload are those of `number`. */
static inline void world_expect(struct world *w, uint64_t id, uint64_t number)
{
    uint32_t row;
    struct sk_record record;
    assert_true(world_find(w, id, &row, &record));
    world_vector(w->vector, w->schema.vectors[0].dim, number);
    const float *stored = sk_store_vector(w->reader, 0, row);
    assert_non_null(stored);
    assert_memory_equal(stored, w->vector, w->schema.vectors[0].dim * sizeof(float));
    struct sk_span payload = world_payload(w, (int64_t)number);
    assert_int_equal(record.payload.size, payload.size);
    assert_memory_equal(record.payload.bytes, payload.bytes, payload.size);
}

static inline void world_verify(struct world *w, uint64_t mended)
{
    struct sk_store_check check;
    assert_ok(sk_store_verify(w->store, w->wall_us, &check, &w->d));
    assert_int_equal(check.mended, mended);
}

#endif
