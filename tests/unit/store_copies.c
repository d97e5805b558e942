/* links: sk_store sk_proto PkgConfig::LMDB */
/* Verify, compact, snapshot, restore; and stored bytes that somebody changed behind our back. */
#include "tests/unit/store_world.h"

#include <fcntl.h>
#include <lmdb.h>
#include <sys/stat.h>

enum { RECORDS = 300, DIM = 24 };

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    world_init(w, NULL, DIM);
    world_field(w, "n", SK_PAYLOAD_INTEGER);
    world_open(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    world_deinit(*state);
    free(*state);
    return 0;
}

/* RECORDS records 0.., every fifth of them written twice, every seventh deleted, one that expires. */
static void fill(struct world *w)
{
    struct sk_change change;
    world_begin(w);
    for (uint64_t id = 0; id < RECORDS; id++)
        (void)world_upsert(w, id, id);
    for (uint64_t id = 0; id < RECORDS; id += 5)
        (void)world_upsert(w, id, id + 1000);
    for (uint64_t id = 0; id < RECORDS; id += 7)
        change = world_delete(w, id);
    assert_ok(sk_store_release_row(w->store, change.old_row, &w->d));
    struct sk_row row = world_row(w, sk_id_from_u64(RECORDS), RECORDS, world_payload(w, RECORDS));
    row.has_ttl = true;
    row.ttl_s = 3600;
    assert_ok(sk_store_upsert(w->store, &row, &change, &w->d));
    assert_ok(sk_store_release_row(w->store, 0, &w->d)); /* the first life of record 0 */
    assert_ok(sk_store_applied_put(w->store, 3, 1, 1, &w->d));
    assert_ok(sk_store_delta_put(w->store, 0, 1, sk_span_text("delta"), &w->d));
    assert_ok(sk_store_watermark_put(w->store, 0, 200, &w->d));
    world_commit(w);
}

static void expect_filled(struct world *w)
{
    uint32_t row;
    struct sk_record record;
    world_read(w);
    for (uint64_t id = 0; id < RECORDS; id++) {
        if (id % 7 == 0)
            assert_false(world_find(w, id, &row, &record));
        else
            world_expect(w, id, id % 5 == 0 ? id + 1000 : id);
    }
    world_expect(w, RECORDS, RECORDS);
    sk_store_read_end(w->reader);
}

/* Rows whose n is below a bound, through the payload index. */
static uint64_t count_below(struct world *w, int64_t bound)
{
    struct sk_operand high = {.kind = SK_OPERAND_I64, .i64 = bound};
    char key[] = "n";
    struct sk_filter filter = {.kind = SK_FILTER_RANGE,
                               .key = key,
                               .u.range = {.high = SK_BOUND_OPEN, .high_value = high}};
    struct sk_selection selection;
    world_read(w);
    assert_ok(sk_store_select(w->reader, &filter, &selection, &w->d));
    assert_string_equal(selection.warning, "");
    sk_store_read_end(w->reader);
    uint64_t count = selection.count;
    sk_selection_deinit(&selection);
    return count;
}

/* ---- verify ---- */

static void verify_looks_at_everything_and_finds_nothing_wrong(void **state)
{
    struct world *w = *state;
    struct sk_store_check check;
    fill(w);
    assert_ok(sk_store_verify(w->store, w->wall_us, &check, &w->d));
    assert_int_equal(check.records, RECORDS + 1 - (RECORDS + 6) / 7);
    assert_true(check.checked > check.records);
    assert_int_equal(check.mended, 0);
    expect_filled(w);
}

enum harm { HARM_DELETE, HARM_FLIP };

/* Opens the environment behind the store's back and harms the n-th entry of a table. */
static void harm(struct world *w, const char *table, unsigned nth, enum harm how)
{
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_val key, value;
    world_close(w);
    assert_int_equal(mdb_env_create(&env), 0);
    assert_int_equal(mdb_env_set_maxdbs(env, 20), 0);
    assert_int_equal(mdb_env_set_mapsize(env, UINT64_C(64) << 30), 0);
    assert_int_equal(mdb_env_open(env, w->folder, 0, 0600), 0);
    assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, table, 0, &dbi), 0);
    assert_int_equal(mdb_cursor_open(txn, dbi, &cursor), 0);
    for (unsigned i = 0; i <= nth; i++)
        assert_int_equal(mdb_cursor_get(cursor, &key, &value, MDB_NEXT), 0);
    if (how == HARM_DELETE) {
        assert_int_equal(mdb_cursor_del(cursor, 0), 0);
    } else {
        uint8_t *copy = malloc(value.mv_size);
        memcpy(copy, value.mv_data, value.mv_size);
        copy[value.mv_size - 1] ^= 0x10;
        value.mv_data = copy;
        assert_int_equal(mdb_cursor_put(cursor, &key, &value, MDB_CURRENT), 0);
        free(copy);
    }
    mdb_cursor_close(cursor);
    assert_int_equal(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    world_open(w);
}

static void verify_names_the_table_of_an_entry_that_is_gone_or_changed(void **state)
{
    struct world *w = *state;
    struct sk_store_check check;
    static const struct {
        const char *table;
        bool can_flip;
    } tables[] = {{"ids", true},     {"records", true}, {"vectors", true}, {"log", true}, {"births", true},
                  {"tombs", true},   {"free", false},   {"limbo", false},  {"expiry", false}};
    fill(w);
    for (size_t t = 0; t < SK_COUNT_OF(tables); t++)
        for (int how = HARM_DELETE; how <= (tables[t].can_flip ? HARM_FLIP : HARM_DELETE); how++) {
            char folder[160], command[400];
            (void)snprintf(folder, sizeof folder, "%s/kept", w->folder);
            (void)snprintf(command, sizeof command, "cp '%s/data.mdb' '%s'", w->folder, folder);
            assert_int_equal(system(command), 0);
            harm(w, tables[t].table, 0, (enum harm)how);
            enum sk_err err = sk_store_verify(w->store, w->wall_us, &check, &w->d);
            if (err != SK_ERR_INTERNAL)
                fail_msg("%s %d: %s", tables[t].table, how, sk_err_name(err));
            assert_non_null(strstr(w->d.text, "table '"));
            world_close(w);
            (void)snprintf(command, sizeof command, "cp '%s' '%s/data.mdb'", folder, w->folder);
            assert_int_equal(system(command), 0);
            world_open(w);
            world_verify(w, 0);
        }
}

static void verify_mends_payload_indexes(void **state)
{
    struct world *w = *state;
    struct sk_store_check check;
    fill(w);
    uint64_t wanted = count_below(w, 100);
    assert_true(wanted > 50);
    for (unsigned nth = 0; nth < 12; nth += 2)
        for (int how = HARM_DELETE; how <= HARM_FLIP; how++) {
            harm(w, "pindex", nth, (enum harm)how);
            assert_ok(sk_store_verify(w->store, w->wall_us, &check, &w->d));
            assert_true(check.mended > 0);
            assert_int_equal(count_below(w, 100), wanted);
            world_verify(w, 0);
        }
}

/* A bitmap that is damaged is an error of the filter that needs it, not an answer. */
static void a_filter_over_damaged_bytes_says_so(void **state)
{
    struct world *w = *state;
    struct sk_selection selection;
    fill(w);
    harm(w, "pindex", 0, HARM_FLIP);
    world_read(w);
    assert_int_equal(sk_store_select(w->reader, NULL, &selection, &w->d), SK_ERR_INTERNAL);
    assert_null(selection.rows);
    assert_non_null(strstr(w->d.text, "pindex"));
    sk_store_read_end(w->reader);
}

/* One byte of a value flipped in the file itself, as a bad disk does. */
static void verify_finds_a_byte_flipped_in_the_file(void **state)
{
    struct world *w = *state;
    struct sk_store_check check;
    char path[160];
    fill(w);
    for (int what = 0; what < 2; what++) {
        float vector[DIM];
        uint8_t payload[] = {0x81, 0xA1, 'n', 0xCD, 0x01, 0x25}; /* {"n": 293} */
        world_vector(vector, DIM, 293);
        world_close(w);
        (void)snprintf(path, sizeof path, "%s/data.mdb", w->folder);
        int fd = open(path, O_RDWR);
        struct stat info;
        assert_int_equal(fstat(fd, &info), 0);
        uint8_t *bytes = malloc((size_t)info.st_size);
        assert_int_equal(read(fd, bytes, (size_t)info.st_size), info.st_size);
        const void *wanted = what == 0 ? (const void *)vector : payload;
        size_t size = what == 0 ? sizeof vector : sizeof payload;
        unsigned found = 0;
        uint8_t *at = bytes, *end = bytes + info.st_size;
        while ((at = memmem(at, (size_t)(end - at), wanted, size)) != NULL) { /* old pages too */
            uint8_t flipped = (uint8_t)(at[size - 1] ^ 1);
            assert_int_equal(pwrite(fd, &flipped, 1, at - bytes + (ptrdiff_t)size - 1), 1);
            at += size;
            found++;
        }
        assert_true(found > 0);
        (void)close(fd);
        world_open(w);
        assert_int_equal(sk_store_verify(w->store, w->wall_us, &check, &w->d), SK_ERR_INTERNAL);
        assert_non_null(strstr(w->d.text, what == 0 ? "vectors" : "payload does not have its hash"));
        world_close(w);
        fd = open(path, O_WRONLY);
        assert_int_equal(pwrite(fd, bytes, (size_t)info.st_size, 0), info.st_size);
        (void)close(fd);
        free(bytes);
        world_open(w);
        world_verify(w, 0);
    }
}

/* ---- compact ---- */

static void compact_gives_space_back_and_changes_nothing_else(void **state)
{
    struct world *w = *state;
    uint64_t before, after;
    struct sk_store_stats stats;
    fill(w);
    world_begin(w);
    for (uint64_t id = 10000; id < 20000; id++)
        (void)world_upsert(w, id, id);
    world_commit(w);
    world_begin(w);
    for (uint64_t id = 10000; id < 20000; id++)
        (void)world_delete(w, id);
    world_commit(w);
    struct sk_store_reader *other;
    assert_ok(sk_store_reader_new(&other, w->store, &w->d));
    assert_ok(sk_store_read_begin(other, w->wall_us, &w->d));
    sk_store_read_end(other);
    expect_filled(w);
    assert_ok(sk_store_compact(w->store, &before, &after, &w->d));
    assert_true(after < before);
    expect_filled(w); /* the readers of before go on */
    assert_ok(sk_store_read_begin(other, w->wall_us, &w->d));
    assert_ok(sk_store_get_stats(other, &stats, &w->d));
    assert_true(stats.file_bytes >= after);
    sk_store_read_end(other);
    sk_store_reader_destroy(&other);
    world_begin(w);
    (void)world_upsert(w, 5, 1005);
    world_commit(w);
    world_close(w);
    world_open(w);
    expect_filled(w);
    world_verify(w, 0);
}

/* ---- snapshot and restore ---- */

static void make_folder(char path[160], const struct world *w, const char *name)
{
    (void)snprintf(path, 160, "%s/%s", w->folder, name);
    assert_int_equal(mkdir(path, 0700), 0);
}

static void a_snapshot_restores_to_a_shard_of_its_own(void **state)
{
    struct world *w = *state;
    struct world other;
    char folder[160];
    uint64_t bytes, records, lseq, number, outcome;
    struct sk_schema schema;
    struct sk_span delta;
    struct sk_record record;
    struct sk_store_stats stats;
    uint32_t row;
    bool is_applied;
    fill(w);
    make_folder(folder, w, "snapshot");
    assert_ok(sk_store_snapshot(w->store, folder, &bytes, &w->d));
    assert_true(bytes > RECORDS * DIM * sizeof(float));
    world_begin(w);
    (void)world_delete(w, 1); /* after the snapshot */
    world_commit(w);
    assert_ok(sk_store_snapshot_schema(folder, &schema, &w->d));
    assert_string_equal(schema.name, "docs");
    assert_int_equal(schema.field_count, 1);

    world_init(&other, NULL, DIM);
    (void)snprintf(other.schema.name, sizeof other.schema.name, "copy");
    world_field(&other, "n", SK_PAYLOAD_INTEGER);
    other.config.actor = 99;
    world_open(&other);
    world_read(&other); /* a reader that was used before */
    sk_store_read_end(other.reader);
    if (sk_store_restore(other.store, folder, &records, &other.d) != SK_ERR_OK)
        fail_msg("%s", other.d.text);
    assert_int_equal(records, RECORDS + 1 - (RECORDS + 6) / 7);
    expect_filled(&other);
    w = &other;
    world_verify(w, 0);
    world_read(w);
    assert_ok(sk_store_watermark(w->reader, 0, &lseq, &w->d));
    assert_int_equal(lseq, 0); /* its index is made anew */
    assert_int_equal(sk_store_delta_get(w->reader, 0, 0, &number, &delta, &w->d), SK_ERR_NOT_FOUND);
    assert_ok(sk_store_get_stats(w->reader, &stats, &w->d));
    assert_int_equal(stats.limbo_rows, 0);
    assert_true(world_find(w, 1, &row, &record));
    assert_int_equal(record.actor, 7);
    uint64_t hlc = record.hlc, seq = record.seq;
    sk_store_read_end(w->reader);
    world_close(w);
    world_open(w);
    world_begin(w);
    assert_ok(sk_store_applied_get(w->store, 3, 1, &is_applied, &outcome, &w->d));
    assert_false(is_applied);
    (void)world_upsert(w, 1, 1);
    world_commit(w);
    world_read(w);
    assert_true(world_find(w, 1, &row, &record));
    assert_int_equal(record.actor, 99);
    assert_true(record.hlc > hlc && record.seq > seq);
    sk_store_read_end(w->reader);
    assert_int_equal(sk_store_restore(w->store, folder, &records, &w->d), SK_ERR_EXISTS);
    expect_filled(w);
    world_deinit(w);
}

static void write_over(const char *folder, const char *name, long at, int flip, long cut)
{
    char path[200];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    struct stat info;
    uint8_t byte;
    assert_int_equal(fstat(fd, &info), 0);
    if (cut != 0) {
        assert_int_equal(ftruncate(fd, info.st_size - cut), 0);
    } else {
        at = at < 0 ? info.st_size + at : at;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte = (uint8_t)(byte ^ flip);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    (void)close(fd);
}

static void a_damaged_snapshot_is_refused_and_the_shard_stays_as_it_was(void **state)
{
    struct world *w = *state;
    struct world other;
    char folder[160];
    uint64_t bytes, records;
    struct sk_schema schema;
    static const struct {
        const char *name;
        long at, cut;
    } damages[] = {{"data.mdb", 5000, 0}, {"data.mdb", -1, 0},  {"data.mdb", 0, 1},
                   {"manifest", 3, 0},    {"manifest", 60, 0},  {"manifest", -1, 0},
                   {"manifest", 0, 1},    {"manifest", 0, 100}, {"manifest", 0, 50}};
    fill(w);
    world_init(&other, NULL, DIM);
    world_field(&other, "n", SK_PAYLOAD_INTEGER);
    world_open(&other);
    make_folder(folder, w, "none");
    assert_int_equal(sk_store_snapshot_schema(folder, &schema, &w->d), SK_ERR_NOT_FOUND);
    assert_int_equal(sk_store_restore(other.store, folder, &records, &w->d), SK_ERR_NOT_FOUND);
    for (size_t i = 0; i < SK_COUNT_OF(damages); i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "damaged-%zu", i);
        make_folder(folder, w, name);
        assert_ok(sk_store_snapshot(w->store, folder, &bytes, &w->d));
        write_over(folder, damages[i].name, damages[i].at, 0x20, damages[i].cut);
        assert_int_equal(sk_store_snapshot_schema(folder, &schema, &w->d), SK_ERR_INVALID);
        assert_int_equal(schema.vector_count, 0);
        assert_int_equal(sk_store_restore(other.store, folder, &records, &w->d), SK_ERR_INVALID);
        assert_non_null(strstr(w->d.text, damages[i].name));
    }
    make_folder(folder, w, "whole");
    assert_ok(sk_store_snapshot(w->store, folder, &bytes, &w->d));
    assert_int_equal(sk_store_snapshot(w->store, folder, &bytes, &w->d), SK_ERR_EXISTS);
    assert_ok(sk_store_restore(other.store, folder, &records, &w->d));
    expect_filled(&other);
    world_deinit(&other);
}

static void a_snapshot_of_another_shape_is_refused(void **state)
{
    struct world *w = *state;
    struct world other;
    char folder[160];
    uint64_t bytes, records;
    fill(w);
    make_folder(folder, w, "snapshot");
    assert_ok(sk_store_snapshot(w->store, folder, &bytes, &w->d));
    world_init(&other, NULL, DIM + 1);
    world_open(&other);
    assert_int_equal(sk_store_restore(other.store, folder, &records, &w->d), SK_ERR_VERSION);
    world_deinit(&other);
    world_init(&other, NULL, DIM);
    world_field(&other, "n", SK_PAYLOAD_KEYWORD);
    world_open(&other);
    assert_int_equal(sk_store_restore(other.store, folder, &records, &w->d), SK_ERR_INVALID);
    assert_non_null(strstr(w->d.text, "'n'"));
    world_deinit(&other);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(verify_looks_at_everything_and_finds_nothing_wrong),
        TEST(verify_names_the_table_of_an_entry_that_is_gone_or_changed),
        TEST(verify_mends_payload_indexes),
        TEST(a_filter_over_damaged_bytes_says_so),
        TEST(verify_finds_a_byte_flipped_in_the_file),
        TEST(compact_gives_space_back_and_changes_nothing_else),
        TEST(a_snapshot_restores_to_a_shard_of_its_own),
        TEST(a_damaged_snapshot_is_refused_and_the_shard_stays_as_it_was),
        TEST(a_snapshot_of_another_shape_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
