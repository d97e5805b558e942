/* links: sk_store sk_proto */
/* Random payloads and filters: what the indexes select is what the reference evaluator says, record by
 * record. SK_SEED replays, SK_FILTERS sets the number of filters. */
#include "tests/unit/store_world.h"

#include <math.h>

enum { IDS = 160, TEXTS = 12 };

/* What the store must hold. */
struct model {
    struct world w;
    struct sk_buffer payloads[IDS];
    bool is_there[IDS];
    uint64_t expiry_us[IDS];
    struct sk_arena arena;
    unsigned filters, scans;
};

static const char *const texts[TEXTS] = {"", "a", "b", "ab", "noun.animal", "noun.food", "2024-02-29",
                                         "2024-02-29T12:00:00Z", "2024-02-29T13:00:00+01:00",
                                         "1969-12-31T23:59:59.999999Z", "tr\303\274be", "\x01"};
static const double floats[] = {0, -0.0, 0.5, -0.5, 1, 2.5, 3, 1e300, -1e300, 9007199254740992.0,
                                9007199254740994.0, 4.9e-324, 9223372036854775807.0, -9223372036854775808.0};
static const int64_t integers[] = {0, 1, -1, 2, 3, 5, 100, 9007199254740992, 9007199254740993,
                                   -9007199254740993, INT64_MAX, INT64_MIN, 1709208000000000};
static const char *const keys[] = {"kw", "n", "x", "b", "t", "g", "deep.kw", "late", "undeclared"};

static void put_long_text(struct model *m, struct sk_buffer *to)
{
    char text[600];
    size_t size = 380 + world_random(&m->w, 4) * 60; /* around the limit of plain keys */
    memset(text, 'x', size);
    text[size - 1] = (char)('a' + world_random(&m->w, 2));
    sk_put_text_of(to, sk_span_of(text, size));
}

static void put_text(struct model *m, struct sk_buffer *to)
{
    if (world_random(&m->w, 8) == 0)
        put_long_text(m, to);
    else
        sk_put_text(to, texts[world_random(&m->w, TEXTS)]);
}

static void put_integer(struct model *m, struct sk_buffer *to)
{
    if (world_random(&m->w, 2) == 0)
        sk_put_i64(to, (int64_t)world_random(&m->w, 20) - 5);
    else
        sk_put_i64(to, integers[world_random(&m->w, SK_COUNT_OF(integers))]);
}

static void put_float(struct model *m, struct sk_buffer *to)
{
    if (world_random(&m->w, 2) == 0)
        sk_put_f64(to, (double)world_random(&m->w, 40) / 4 - 2);
    else
        sk_put_f64(to, floats[world_random(&m->w, SK_COUNT_OF(floats))]);
}

static double degrees(struct model *m, double most)
{
    switch (world_random(&m->w, 6)) {
    case 0:
        return world_random(&m->w, 2) == 0 ? most : -most;
    case 1:
        return 0;
    case 2:
        return (double)world_random(&m->w, 5) * most / 4;
    default:
        return ((double)world_random(&m->w, 2000001) / 1000000 - 1) * most;
    }
}

static void put_point(struct sk_buffer *to, double lat, double lon)
{
    sk_put_map(to, 2);
    sk_put_text(to, "lat");
    sk_put_f64(to, lat);
    sk_put_text(to, "lon");
    sk_put_f64(to, lon);
}

/* A point; half of them near one place, so that small circles hold some. */
static void put_geo(struct model *m, struct sk_buffer *to)
{
    if (world_random(&m->w, 2) == 0)
        put_point(to, 60.17 + degrees(m, 0.05), 24.94 + degrees(m, 0.1));
    else
        put_point(to, degrees(m, 90), degrees(m, 180));
}

static void put_value(struct model *m, struct sk_buffer *to, enum sk_payload_kind kind)
{
    switch (kind) {
    case SK_PAYLOAD_KEYWORD:
        put_text(m, to);
        break;
    case SK_PAYLOAD_INTEGER:
        put_integer(m, to);
        break;
    case SK_PAYLOAD_FLOAT:
        world_random(&m->w, 3) == 0 ? put_integer(m, to) : put_float(m, to);
        break;
    case SK_PAYLOAD_BOOL:
        sk_put_bool(to, world_random(&m->w, 2) == 0);
        break;
    case SK_PAYLOAD_DATETIME:
        if (world_random(&m->w, 2) == 0)
            sk_put_text(to, texts[6 + world_random(&m->w, 4)]);
        else
            put_integer(m, to);
        break;
    case SK_PAYLOAD_GEO:
        put_geo(m, to);
        break;
    }
}

static enum sk_payload_kind any_kind(struct model *m)
{
    return (enum sk_payload_kind)(1 + world_random(&m->w, 6));
}

static enum sk_payload_kind kind_of(struct model *m, const char *key)
{
    const struct sk_payload_field *field = sk_schema_field(&m->w.schema, key);
    return field != NULL ? field->kind : any_kind(m);
}

static void put_member(struct model *m, struct sk_buffer *to, const char *name,
                       enum sk_payload_kind kind)
{
    sk_put_text(to, name);
    uint64_t shape = world_random(&m->w, 8);
    if (shape == 0) {
        sk_put_nil(to);
    } else if (shape < 6) {
        put_value(m, to, kind);
    } else {
        uint64_t count = world_random(&m->w, 4);
        sk_put_array(to, count);
        for (uint64_t i = 0; i < count; i++)
            put_value(m, to, kind);
    }
}

static void make_payload(struct model *m, struct sk_buffer *to)
{
    uint32_t count = 0;
    sk_buffer_clear(to);
    size_t at = sk_put_map_open(to);
    for (size_t k = 0; k < SK_COUNT_OF(keys); k++) {
        if (world_random(&m->w, 3) == 0)
            continue;
        count++;
        if (strcmp(keys[k], "deep.kw") != 0 || world_random(&m->w, 3) == 0) {
            put_member(m, to, keys[k], kind_of(m, keys[k]));
        } else {
            sk_put_text(to, "deep");
            sk_put_map(to, 1);
            put_member(m, to, "kw", kind_of(m, keys[k]));
        }
    }
    sk_put_count_at(to, at, count);
}

/* ---- filters ---- */

static void put_operand(struct model *m, struct sk_buffer *to, enum sk_payload_kind kind)
{
    if (kind == SK_PAYLOAD_INTEGER && world_random(&m->w, 3) == 0)
        put_float(m, to);
    else if (kind == SK_PAYLOAD_GEO)
        put_text(m, to);
    else
        put_value(m, to, kind);
}

static void put_range(struct model *m, struct sk_buffer *to, enum sk_payload_kind kind)
{
    static const char *const bounds[] = {"gt", "gte", "lt", "lte"};
    uint64_t which = 1 + world_random(&m->w, 3);
    sk_put_text(to, "range");
    sk_put_map(to, (which & 1) + (which >> 1));
    for (unsigned end = 0; end < 2; end++)
        if ((which >> end & 1) != 0) {
            sk_put_text(to, bounds[2 * end + world_random(&m->w, 2)]);
            put_operand(m, to, kind);
        }
}

static void put_geo_condition(struct model *m, struct sk_buffer *to)
{
    static const double radii[] = {1, 500, 5000, 20000, 2e6, 9e6, 2.1e7};
    if (world_random(&m->w, 2) == 0) {
        sk_put_text(to, "geo_radius");
        sk_put_map(to, 2);
        sk_put_text(to, "center");
        put_geo(m, to);
        sk_put_text(to, "radius_m");
        sk_put_f64(to, radii[world_random(&m->w, SK_COUNT_OF(radii))]);
        return;
    }
    double a = degrees(m, 90), b = degrees(m, 90);
    sk_put_text(to, "geo_box");
    sk_put_map(to, 2);
    sk_put_text(to, "min");
    put_point(to, fmin(a, b), degrees(m, 180));
    sk_put_text(to, "max");
    put_point(to, fmax(a, b), degrees(m, 180));
}

static void put_group(struct model *m, struct sk_buffer *to, unsigned depth);

static void put_ids(struct model *m, struct sk_buffer *to)
{
    uint64_t count = 1 + world_random(&m->w, 20);
    sk_put_map(to, 1);
    sk_put_text(to, "ids");
    sk_put_array(to, count);
    for (uint64_t i = 0; i < count; i++)
        sk_put_u64(to, world_random(&m->w, 2 * IDS));
}

static void put_condition(struct model *m, struct sk_buffer *to, unsigned depth)
{
    uint64_t which = world_random(&m->w, depth > 0 ? 10 : 8);
    if (which >= 8) {
        put_group(m, to, depth - 1);
        return;
    }
    if (which == 7) {
        put_ids(m, to);
        return;
    }
    const char *key = keys[world_random(&m->w, SK_COUNT_OF(keys))];
    enum sk_payload_kind kind = kind_of(m, key);
    sk_put_map(to, 2);
    sk_put_text(to, "key");
    sk_put_text(to, key);
    if (which == 0) {
        sk_put_text(to, "exists");
        sk_put_bool(to, world_random(&m->w, 2) == 0);
    } else if (kind == SK_PAYLOAD_GEO) {
        put_geo_condition(m, to);
    } else if (which < 3) {
        sk_put_text(to, "match");
        put_operand(m, to, kind);
    } else if (which == 3 || kind == SK_PAYLOAD_KEYWORD || kind == SK_PAYLOAD_BOOL) {
        uint64_t count = 1 + world_random(&m->w, 4);
        sk_put_text(to, "any");
        sk_put_array(to, count);
        for (uint64_t i = 0; i < count; i++)
            put_operand(m, to, kind);
    } else {
        put_range(m, to, kind);
    }
}

static void put_group(struct model *m, struct sk_buffer *to, unsigned depth)
{
    static const char *const names[] = {"must", "should", "must_not"};
    uint64_t which = 1 + world_random(&m->w, 7);
    sk_put_map(to, (which & 1) + (which >> 1 & 1) + (which >> 2));
    for (unsigned list = 0; list < 3; list++)
        if ((which >> list & 1) != 0) {
            uint64_t count = 1 + world_random(&m->w, 3);
            sk_put_text(to, names[list]);
            sk_put_array(to, count);
            for (uint64_t i = 0; i < count; i++)
                put_condition(m, to, depth);
        }
}

/* ---- the model and the store side by side ---- */

static struct sk_row row_for(struct model *m, uint64_t id)
{
    struct sk_row row = world_row(&m->w, sk_id_from_u64(id), id, sk_buffer_span(&m->payloads[id]));
    m->expiry_us[id] = 0;
    if (world_random(&m->w, 6) == 0) {
        row.has_ttl = true;
        row.ttl_s = 1 + (double)world_random(&m->w, 5);
        m->expiry_us[id] = m->w.wall_us + (uint64_t)(row.ttl_s * 1e6);
    }
    return row;
}

static bool is_live(const struct model *m, uint64_t id)
{
    return m->is_there[id] && (m->expiry_us[id] == 0 || m->expiry_us[id] > m->w.wall_us);
}

static void change_one(struct model *m)
{
    struct world *w = &m->w;
    struct sk_change change;
    struct sk_buffer made = {0}, merged = {0};
    uint64_t number = world_random(w, IDS), what = world_random(w, 10);
    struct sk_id id = sk_id_from_u64(number);
    bool was_there, is_replace = what == 8;
    if (what < 6) {
        make_payload(m, &m->payloads[number]);
        struct sk_row row = row_for(m, number);
        assert_ok(sk_store_upsert(w->store, &row, &change, &w->d));
        m->is_there[number] = true;
    } else if (what < 8) {
        assert_ok(sk_store_delete(w->store, &id, &change, &w->d));
        assert_int_equal(change.has_old, m->is_there[number]);
        assert_int_equal(change.was_live, is_live(m, number));
        m->is_there[number] = false;
    } else {
        make_payload(m, &made);
        assert_ok(sk_store_set_payload(w->store, &id, sk_buffer_span(&made), is_replace, &was_there,
                                       &w->d));
        assert_int_equal(was_there, is_live(m, number));
        if (was_there) {
            sk_payload_merge(&merged,
                             is_replace ? (struct sk_span){0} : sk_buffer_span(&m->payloads[number]),
                             sk_buffer_span(&made));
            sk_buffer_deinit(&m->payloads[number]);
            m->payloads[number] = merged;
        }
    }
    if (what < 8 && change.has_old && world_random(w, 2) == 0)
        assert_ok(sk_store_release_row(w->store, change.old_row, &w->d));
    sk_buffer_deinit(&made);
}

static struct sk_filter *next_filter(struct model *m)
{
    struct sk_buffer packed = {0};
    struct sk_filter *filter = NULL;
    struct sk_diag d;
    sk_arena_reset(&m->arena);
    do { /* what a door would refuse does not come here */
        sk_buffer_clear(&packed);
        put_group(m, &packed, 2);
        uint8_t *kept = sk_arena_alloc(&m->arena, packed.size);
        memcpy(kept, packed.bytes, packed.size);
        if (sk_filter_parse(&filter, &m->arena, sk_span_of(kept, packed.size), &d) != SK_ERR_OK)
            fail_msg("%s: %s", d.field, d.text);
    } while (sk_filter_check(&m->w.schema, filter, &d) != SK_ERR_OK);
    sk_buffer_deinit(&packed);
    return filter;
}

static void compare_one(struct model *m)
{
    struct world *w = &m->w;
    struct sk_selection selection;
    const struct sk_filter *filter = next_filter(m);
    uint64_t wanted = 0;
    assert_ok(sk_store_select(w->reader, filter, &selection, &w->d));
    m->scans += selection.warning[0] != '\0';
    for (uint64_t number = 0; number < IDS; number++) {
        struct sk_id id = sk_id_from_u64(number);
        uint32_t row;
        enum sk_err err = sk_store_find(w->reader, &id, &row, &w->d);
        assert_int_equal(err, is_live(m, number) ? SK_ERR_OK : SK_ERR_NOT_FOUND);
        if (err != SK_ERR_OK)
            continue;
        bool matches = sk_filter_matches(filter, &w->schema, &id, sk_buffer_span(&m->payloads[number]));
        wanted += matches;
        if (matches != sk_selection_has(&selection, row))
            fail_msg("filter %u: record %llu is %s", m->filters, (unsigned long long)number,
                     matches ? "missing" : "too much");
    }
    assert_int_equal(selection.count, wanted);
    if (sk_filter_undeclared(filter, &w->schema) != NULL)
        assert_string_not_equal(selection.warning, "");
    sk_selection_deinit(&selection);
    m->filters++;
}

/* The same sets in a write transaction, with changes that are not committed. */
static void compare_in_write(struct model *m)
{
    struct world *w = &m->w;
    struct sk_id *ids;
    uint32_t count, wanted = 0;
    const struct sk_filter *filter = next_filter(m);
    assert_ok(sk_store_write_select(w->store, filter, &ids, &count, &w->d));
    for (uint64_t number = 0; number < IDS; number++) {
        struct sk_id id = sk_id_from_u64(number);
        wanted += is_live(m, number) &&
                  sk_filter_matches(filter, &w->schema, &id, sk_buffer_span(&m->payloads[number]));
    }
    assert_int_equal(count, wanted);
    for (uint32_t i = 0; i < count; i++)
        assert_true(sk_filter_matches(filter, &w->schema, &ids[i],
                                      sk_buffer_span(&m->payloads[sk_id_u64(&ids[i])])));
    free(ids);
}

static void some_rounds(struct model *m, unsigned rounds)
{
    struct world *w = &m->w;
    for (unsigned round = 0; round < rounds; round++) {
        world_begin(w);
        for (unsigned n = 0; n < 60; n++)
            change_one(m);
        compare_in_write(m);
        for (unsigned n = 0; n < 10; n++)
            change_one(m);
        world_commit(w);
        w->wall_us += world_random(w, 3000000);
        world_read(w);
        for (unsigned n = 0; n < 100; n++)
            compare_one(m);
        sk_store_read_end(w->reader);
    }
    world_verify(w, 0);
}

static int setup(void **state)
{
    struct model *m = calloc(1, sizeof *m);
    world_init(&m->w, NULL, 4);
    sk_arena_init(&m->arena, 16 << 20);
    for (size_t k = 0; k < 6; k++)
        world_field(&m->w, keys[k], (enum sk_payload_kind)(k + 1));
    world_field(&m->w, "deep.kw", SK_PAYLOAD_KEYWORD);
    world_open(&m->w);
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    struct model *m = *state;
    for (unsigned i = 0; i < IDS; i++)
        sk_buffer_deinit(&m->payloads[i]);
    sk_arena_deinit(&m->arena);
    world_deinit(&m->w);
    free(m);
    return 0;
}

static unsigned rounds_wanted(void)
{
    const char *filters = getenv("SK_FILTERS");
    return filters != NULL ? (unsigned)strtoul(filters, NULL, 10) / 100 : 30;
}

static void every_filter_selects_what_the_reference_says(void **state)
{
    struct model *m = *state;
    some_rounds(m, rounds_wanted());
    assert_true(m->scans > 0 && m->scans < m->filters); /* both ways were taken */
}

/* alter_collection: filters are right before, between and after the steps that index old records. */
static void fields_declared_and_dropped_later_are_indexed_behind(void **state)
{
    struct model *m = *state;
    struct world *w = &m->w;
    struct sk_store_stats stats;
    bool has_more = true;
    unsigned steps = 0;
    for (unsigned kind = 1; kind <= 6; kind++) {
        some_rounds(m, 2);
        /* away with the first, and `late` as another kind each time */
        memmove(&w->schema.fields[0], &w->schema.fields[1],
                --w->schema.field_count * sizeof w->schema.fields[0]);
        if (kind > 1)
            w->schema.field_count--;
        world_field(w, "late", (enum sk_payload_kind)kind);
        assert_ok(sk_store_set_schema(w->store, &w->schema, &w->d));
        world_read(w);
        assert_ok(sk_store_get_stats(w->reader, &stats, &w->d));
        assert_true(stats.fields_building >= 1);
        sk_store_read_end(w->reader);
        for (has_more = true; has_more; steps++) {
            some_rounds(m, 1);
            if (steps % 5 == 4) {
                world_close(w);
                world_open(w);
            }
            assert_ok(sk_store_index_step(w->store, w->wall_us, 29, &has_more, &w->d));
        }
        world_read(w);
        assert_ok(sk_store_get_stats(w->reader, &stats, &w->d));
        assert_int_equal(stats.fields_building, 0);
        sk_store_read_end(w->reader);
        some_rounds(m, 2);
    }
    assert_true(steps > 20);
    assert_ok(sk_store_index_step(w->store, w->wall_us, 29, &has_more, &w->d));
    assert_false(has_more);
}

/* A worker that starts with a newer schema than the shard has seen. */
static void a_schema_that_changed_while_the_shard_was_closed_is_followed(void **state)
{
    struct model *m = *state;
    struct world *w = &m->w;
    bool has_more = true;
    some_rounds(m, 2);
    world_close(w);
    w->schema.field_count--;
    world_field(w, "late", SK_PAYLOAD_INTEGER);
    world_open(w);
    some_rounds(m, 1);
    while (has_more)
        assert_ok(sk_store_index_step(w->store, w->wall_us, 50, &has_more, &w->d));
    m->scans = 0;
    some_rounds(m, 2);
}

static void other_vector_fields_than_the_shard_has_are_refused(void **state)
{
    struct model *m = *state;
    struct sk_schema other = m->w.schema;
    other.vectors[0].dim = 5;
    assert_int_equal(sk_store_set_schema(m->w.store, &other, &m->w.d), SK_ERR_VERSION);
    some_rounds(m, 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(every_filter_selects_what_the_reference_says),
        TEST(fields_declared_and_dropped_later_are_indexed_behind),
        TEST(a_schema_that_changed_while_the_shard_was_closed_is_followed),
        TEST(other_vector_fields_than_the_shard_has_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
