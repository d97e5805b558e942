/* links: sk_keeper sk_proto PkgConfig::LMDB */
#include "actors/metadata-keeper/internal.h"
#include "tests/unit/keeper_world.h"

#include <lmdb.h>

/* ---- what is on the disk ---- */

/* Writes one pair behind the keeper's back. */
static void write_behind(struct world *self, const char *key, const char *value, size_t size)
{
    MDB_env *env = NULL;
    MDB_txn *txn = NULL;
    MDB_dbi table;
    MDB_val k = {strlen(key), (void *)(uintptr_t)key}, v = {size, (void *)(uintptr_t)value};
    assert_int_equal(mdb_env_create(&env), 0);
    assert_int_equal(mdb_env_open(env, self->state, 0, 0600), 0);
    assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, NULL, 0, &table), 0);
    assert_int_equal(value == NULL ? mdb_del(txn, table, &k, NULL) : mdb_put(txn, table, &k, &v, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
}

static void another_format_is_refused_with_words(void **state)
{
    struct world *self = *state;
    struct sk_diag d = {0};
    world_crash(self);
    write_behind(self, "format", "\x02", 1);
    assert_int_equal(world_try_open(self, &d), SK_ERR_VERSION);
    assert_non_null(strstr(d.text, "format 2"));
    assert_non_null(strstr(d.text, "newer"));
    write_behind(self, "format", "\x00", 1);
    assert_int_equal(world_try_open(self, &d), SK_ERR_VERSION);
    assert_non_null(strstr(d.text, "older"));
    write_behind(self, "format", "\xff", 1);
    assert_int_equal(world_try_open(self, &d), SK_ERR_VERSION);
    write_behind(self, "format", NULL, 0);
    assert_int_equal(world_try_open(self, &d), SK_ERR_VERSION);
    write_behind(self, "format", "\x01", 1);
    world_open(self);
}

static void a_file_that_is_no_database_is_refused(void **state)
{
    struct world *self = *state;
    struct sk_diag d = {0};
    char path[128];
    world_crash(self);
    (void)snprintf(path, sizeof path, "%s/data.mdb", self->state);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < 20000; i++)
        (void)fputc(i * 37 & 0xff, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(world_try_open(self, &d), SK_ERR_VERSION);
    assert_null(self->keeper);
}

static void damaged_records_are_named_and_stop_the_start(void **state)
{
    struct world *self = *state;
    struct sk_diag d = {0};
    world_crash(self);
    static const char *const damaged[] = {"c/docs", "k/who", "a/0000000000000001", "version", "what", "x/y",
                                          "a/zz", "workers"};
    for (size_t i = 0; i < SK_COUNT_OF(damaged); i++) {
        write_behind(self, damaged[i], "\x93\x01\x02", 3);
        assert_int_equal(world_try_open(self, &d), SK_ERR_INTERNAL);
        assert_non_null(strstr(d.text, damaged[i]));
        assert_null(self->keeper);
        if (strcmp(damaged[i], "version") == 0)
            write_behind(self, "version", "\x01", 1);
        else if (strcmp(damaged[i], "workers") == 0)
            write_behind(self, "workers", "\x01", 1);
        else
            write_behind(self, damaged[i], NULL, 0);
    }
    world_open(self);
}

static void a_second_keeper_in_the_same_folder_is_refused(void **state)
{
    struct world *self = *state;
    struct sk_diag d = {0};
    struct sk_keeper *first = self->keeper;
    assert_int_equal(world_try_open(self, &d), SK_ERR_UNAVAILABLE);
    assert_non_null(strstr(d.text, "another keeper"));
    self->keeper = first;
}

static void a_state_that_is_full_refuses_what_is_new_and_still_drops(void **state)
{
    struct world *self = *state;
    struct sk_diag d = {0};
    world_crash(self);
    (void)snprintf(self->state, sizeof self->state, "%s/small", self->folder);
    const struct sk_keeper_config config = {
        .folder = self->state, .worker_count = 1, .no_sync = true, .state_bytes_max = 352 * 1024};
    assert_int_equal(sk_keeper_new(&self->keeper, &config, &self->io, &d), SK_ERR_OK);
    char name[16];
    enum sk_err code = SK_ERR_OK;
    unsigned made = 0;
    while (code == SK_ERR_OK && made < 3000) {
        (void)snprintf(name, sizeof name, "c%u", made);
        code = world_create(self, name);
        made += code == SK_ERR_OK;
        world_forget_sent(self);
    }
    assert_int_equal(code, SK_ERR_DISK_FULL);
    assert_true(made > 10);
    struct answer answer = world_ask(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                              .collection = "no",
                                                              .vectors = world_vectors()});
    assert_int_equal(answer.header.status, SK_ERR_DISK_FULL);
    assert_true(answer.reply.is_retriable);
    assert_int_equal(sk_keeper_map(self->keeper)->collection_count, made);
    for (unsigned i = 0; i < made; i++) {
        (void)snprintf(name, sizeof name, "c%u", i);
        assert_int_equal(world_drop(self, name), SK_ERR_OK);
        world_forget_sent(self);
    }
}

static size_t stored_pairs(struct world *self)
{
    MDB_env *env = NULL;
    MDB_stat info;
    assert_int_equal(mdb_env_create(&env), 0);
    assert_int_equal(mdb_env_open(env, self->state, MDB_RDONLY, 0600), 0);
    assert_int_equal(mdb_env_stat(env, &info), 0);
    mdb_env_close(env);
    return info.ms_entries;
}

static void stamps_do_not_pile_up_on_the_disk(void **state)
{
    struct world *self = *state;
    for (unsigned i = 0; i < SK_KEEPER_APPLIED_MAX / 2 + 100; i++) {
        assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
        assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
        world_forget_sent(self);
    }
    world_crash(self);
    size_t pairs = stored_pairs(self);
    assert_in_range(pairs, SK_KEEPER_APPLIED_MAX, SK_KEEPER_APPLIED_MAX + 8);
    world_open(self);
}

/* ---- the interface ---- */

struct told {
    unsigned resets, pairs, removed;
};

static enum sk_err count_pair(void *arg, const struct sk_state_pair *pair, struct sk_diag *d)
{
    struct told *told = arg;
    (void)d;
    told->resets += pair->key.bytes == NULL;
    told->pairs += pair->key.bytes != NULL && pair->value.bytes != NULL;
    told->removed += pair->key.bytes != NULL && pair->value.bytes == NULL;
    return SK_ERR_OK;
}

static void a_transaction_applies_whole_when_its_compares_hold_and_is_told_once(void **state)
{
    struct world *self = *state;
    struct sk_state engine;
    struct sk_diag d = {0};
    char folder[128];
    (void)snprintf(folder, sizeof folder, "%s/engine", self->folder);
    const struct sk_state_lmdb_config config = {.folder = folder, .no_sync = true};
    assert_int_equal(sk_state_lmdb_open(&engine, &config, &d), SK_ERR_OK);
    struct told told = {0};
    assert_int_equal(engine.watch(engine.impl, count_pair, &told, &d), SK_ERR_OK);
    assert_int_equal(told.resets, 1);
    assert_int_equal(told.pairs, 0);
    const struct sk_state_pair absent = {sk_span_text("a"), {0}};
    const struct sk_state_pair changes[] = {{sk_span_text("a"), sk_span_text("1")},
                                            {sk_span_text("b"), sk_span_text("")}};
    const struct sk_state_txn txn = {&absent, 1, changes, 2, false};
    bool is_applied = false;
    assert_int_equal(engine.commit(engine.impl, &txn, &is_applied, &d), SK_ERR_OK);
    assert_true(is_applied);
    assert_int_equal(engine.commit(engine.impl, &txn, &is_applied, &d), SK_ERR_OK);
    assert_false(is_applied); /* a is there now */
    told = (struct told){0};
    assert_int_equal(engine.watch(engine.impl, count_pair, &told, &d), SK_ERR_OK);
    assert_int_equal(told.pairs, 2);
    assert_int_equal(told.resets, 0);
    told = (struct told){0};
    assert_int_equal(engine.watch(engine.impl, count_pair, &told, &d), SK_ERR_OK);
    assert_int_equal(told.pairs + told.resets + told.removed, 0);
    const struct sk_state_pair compares[] = {{sk_span_text("a"), sk_span_text("1")},
                                             {sk_span_text("b"), sk_span_text("x")}};
    const struct sk_state_pair removal = {sk_span_text("a"), {0}};
    const struct sk_state_txn other = {compares, 2, &removal, 1, false};
    assert_int_equal(engine.commit(engine.impl, &other, &is_applied, &d), SK_ERR_OK);
    assert_false(is_applied); /* one of the two does not hold */
    const struct sk_state_pair turned[] = {compares[1], compares[0]};
    const struct sk_state_txn again = {turned, 2, &removal, 1, false};
    assert_int_equal(engine.commit(engine.impl, &again, &is_applied, &d), SK_ERR_OK);
    assert_false(is_applied); /* whichever comes first */
    const struct sk_state_txn third = {compares, 1, &removal, 1, false};
    assert_int_equal(engine.commit(engine.impl, &third, &is_applied, &d), SK_ERR_OK);
    assert_true(is_applied);
    told = (struct told){0};
    assert_int_equal(engine.watch(engine.impl, count_pair, &told, &d), SK_ERR_OK);
    assert_int_equal(told.removed, 1);
    engine.close(engine.impl);
}

/* An engine between the keeper and LMDB that does what the test wants. */
struct moody {
    struct sk_state under;
    enum { MOOD_GOOD, MOOD_FAIL, MOOD_CONFLICT, MOOD_APPLIED_AND_DEAF } mood;
    unsigned left; /* so many times */
};

static enum sk_err moody_commit(void *impl, const struct sk_state_txn *txn, bool *is_applied,
                                struct sk_diag *d)
{
    struct moody *self = impl;
    bool is_moody = self->mood != MOOD_GOOD && self->left > 0;
    *is_applied = false;
    if (is_moody && self->mood != MOOD_APPLIED_AND_DEAF)
        self->left--;
    if (is_moody && self->mood == MOOD_FAIL)
        return sk_fail(d, SK_ERR_DISK_FULL, "moody");
    if (is_moody && self->mood == MOOD_CONFLICT)
        return SK_ERR_OK;
    return self->under.commit(self->under.impl, txn, is_applied, d);
}

static enum sk_err moody_watch(void *impl, sk_state_visit visit, void *arg, struct sk_diag *d)
{
    struct moody *self = impl;
    if (self->mood == MOOD_APPLIED_AND_DEAF && self->left > 0) {
        self->left--;
        return sk_fail(d, SK_ERR_UNAVAILABLE, "deaf");
    }
    return self->under.watch(self->under.impl, visit, arg, d);
}

static void moody_close(void *impl)
{
    struct moody *self = impl;
    self->under.close(self->under.impl);
}

static void moods_of_the_engine_are_told_as_they_are(void **state)
{
    struct world *self = *state;
    struct moody moody = {.under = self->keeper->state};
    self->keeper->state = (struct sk_state){&moody, moody_commit, moody_watch, moody_close};
    moody.mood = MOOD_FAIL, moody.left = 1;
    assert_int_equal(world_create(self, "docs"), SK_ERR_DISK_FULL);
    assert_int_equal(sk_keeper_map(self->keeper)->collection_count, 0);
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    moody.mood = MOOD_CONFLICT, moody.left = 3; /* planned anew until it fits */
    assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
    moody.mood = MOOD_CONFLICT, moody.left = 1000;
    assert_int_equal(world_create(self, "docs"), SK_ERR_BUSY);
    moody.mood = MOOD_APPLIED_AND_DEAF, moody.left = 2;
    assert_int_equal(world_create(self, "docs"), SK_ERR_UNAVAILABLE); /* outcome unknown */
    assert_null(self->job);
    uint64_t next = sk_keeper_on_time(self->keeper); /* deaf once more */
    assert_true(next <= self->now_us + 1000000);
    (void)sk_keeper_on_time(self->keeper);
    assert_int_equal(sk_keeper_map(self->keeper)->collection_count, 1);
    assert_int_equal(world_create(self, "docs"), SK_ERR_EXISTS);
    world_check(self);
    world_crash(self);
    world_open(self);
}

/* ---- messages ---- */

static void the_map_is_given_when_it_is_newer(void **state)
{
    struct world *self = *state;
    struct sk_span packed;
    struct answer answer = world_ask(
        self, &(struct question){.op = SK_OP_MAP_GET, .from = SK_KEEPER_PEER_WORKER_0 + 3});
    assert_int_equal(self->sent[self->sent_count - 1].to, SK_KEEPER_PEER_WORKER_0 + 3);
    assert_true(sk_map_member(answer.reply.map, "map", &packed) && packed.size > 1);
    assert_int_equal(answer.header.map_version, 1);
    answer = world_ask(
        self, &(struct question){.op = SK_OP_MAP_GET, .has_map_version = true, .map_version = 1});
    assert_true(sk_map_member(answer.reply.map, "map", &packed) && packed.size == 1); /* nil */
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    answer = world_ask(
        self, &(struct question){.op = SK_OP_MAP_GET, .has_map_version = true, .map_version = 1});
    struct sk_map map = {0};
    assert_true(sk_map_member(answer.reply.map, "map", &packed));
    assert_int_equal(sk_map_decode(&map, packed, NULL), SK_ERR_OK);
    assert_int_equal(map.version, 2);
    assert_int_equal(map.node_id, sk_keeper_map(self->keeper)->node_id);
    assert_int_equal(map.collection_count, 1);
    sk_map_deinit(&map);
}

static void hints_come_by_themselves(void **state)
{
    struct world *self = *state;
    uint64_t next = sk_keeper_on_time(self->keeper);
    world_forget_sent(self);
    assert_true(next > self->now_us && next <= self->now_us + SK_KEEPER_HINT_US);
    self->now_us = next;
    next = sk_keeper_on_time(self->keeper);
    assert_int_equal(self->sent_count, 1);
    assert_int_equal(self->sent[0].to, SK_KEEPER_PEER_HINTS);
    assert_true(next > self->now_us);
}

static void changes_wait_in_a_bounded_queue_until_their_deadline(void **state)
{
    struct world *self = *state;
    char name[16];
    uint64_t last = 0;
    struct answer answer;
    for (unsigned i = 0; i < SK_KEEPER_QUEUE_MAX; i++) {
        (void)snprintf(name, sizeof name, "c%u", i);
        last = world_send_question(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                            .collection = name,
                                                            .vectors = world_vectors(),
                                                            .deadline_ms = i == 7 ? 100 : 5000});
    }
    assert_int_equal(self->sent_count, 0);
    uint64_t over = world_send_question(
        self, &(struct question){.op = SK_OP_DROP_COLLECTION, .collection = "docs"});
    assert_true(world_find(self, over, &answer));
    assert_int_equal(answer.header.status, SK_ERR_BUSY);
    self->now_us += 200000;
    (void)sk_keeper_on_time(self->keeper);
    assert_true(world_find(self, last - SK_KEEPER_QUEUE_MAX + 8, &answer));
    assert_int_equal(answer.header.status, SK_ERR_DEADLINE);
    self->now_us += 5000000;
    (void)sk_keeper_on_time(self->keeper);
    assert_true(world_find(self, last, &answer));
    assert_int_equal(answer.header.status, SK_ERR_DEADLINE);
    world_run_jobs(self); /* the one that was being committed */
    assert_true(world_find(self, last - SK_KEEPER_QUEUE_MAX + 1, &answer));
    assert_int_equal(answer.header.status, SK_ERR_OK);
    assert_int_equal(sk_keeper_map(self->keeper)->collection_count, 1);
}

static void a_stop_finishes_what_is_being_committed_and_refuses_the_rest(void **state)
{
    struct world *self = *state;
    struct answer answer;
    struct sk_keeper_status status;
    const struct question create = {
        .op = SK_OP_CREATE_COLLECTION, .collection = "docs", .vectors = world_vectors()};
    uint64_t first = world_send_question(self, &create), second = world_send_question(self, &create);
    sk_keeper_stop(self->keeper);
    sk_keeper_get_status(self->keeper, &status);
    assert_false(status.is_stopped);
    world_run_jobs(self);
    assert_true(world_find(self, first, &answer));
    assert_int_equal(answer.header.status, SK_ERR_OK);
    assert_true(world_find(self, second, &answer));
    assert_int_equal(answer.header.status, SK_ERR_UNAVAILABLE);
    assert_int_equal(world_code(self, &create), SK_ERR_UNAVAILABLE);
    sk_keeper_get_status(self->keeper, &status);
    assert_true(status.is_stopped);
}

static void hostile_frames_do_no_harm(void **state)
{
    struct world *self = *state;
    struct sk_keeper_status status;
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    uint64_t random = 99;
    /* every cut and many flips of one good request, then noise */
    struct sk_link_header header = {.kind = SK_LINK_REQUEST, .role = SK_ROLE_READ, .incarnation = 5, .deadline_ms = 100};
    struct sk_buffer good = {0};
    sk_link_header_encode(sk_buffer_grow(&good, SK_LINK_HEADER_BYTES), &header);
    struct sk_request request = {.op = SK_OP_CREATE_COLLECTION,
                                 .collection = sk_span_text("evil"),
                                 .vector_schema = world_vectors(),
                                 .present = world_bit(SK_FIELD_collection) |
                                            world_bit(SK_FIELD_vector_schema)};
    sk_request_encode(&good, &request);
    for (unsigned i = 0; i < 6000; i++) {
        size_t size = i < good.size ? i : i % 3 == 0 ? 80 + i % 200 : good.size;
        uint8_t *exact = malloc(size == 0 ? 1 : size); /* so that a sanitizer sees one byte too many */
        for (size_t k = 0; k < size; k++) {
            random = random * 6364136223846793005ULL + 1442695040888963407ULL;
            exact[k] = k < good.size && !(i % 3 == 0 && k >= 80) ? good.bytes[k] : (uint8_t)(random >> 40);
        }
        if (i >= good.size) {
            size_t at = (size_t)(random >> 33) % size;
            if (at != 6 || exact[at] < SK_ROLE_ADMIN) /* not the role: that would be an admin */
                exact[at] = at == 6 ? SK_ROLE_READ : (uint8_t)(random >> 20);
        }
        sk_peer from = i % 5 == 0 ? SK_KEEPER_PEER_WORKER_0 + i % 80 : i % 7 == 0 ? i : SK_KEEPER_PEER_ROUTER;
        sk_keeper_on_message(self->keeper, from, sk_span_of(exact, size));
        free(exact);
        assert_null(self->job); /* a reader changes nothing, whatever it sends */
        world_forget_sent(self);
    }
    sk_buffer_deinit(&good);
    sk_keeper_get_status(self->keeper, &status);
    assert_true(status.malformed > 100);
    assert_true(status.refused > 100);
    assert_int_equal(sk_keeper_map(self->keeper)->version, 2);
    world_check(self);
    assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
        TEST(another_format_is_refused_with_words),
        TEST(a_file_that_is_no_database_is_refused),
        TEST(damaged_records_are_named_and_stop_the_start),
        TEST(a_second_keeper_in_the_same_folder_is_refused),
        TEST(a_state_that_is_full_refuses_what_is_new_and_still_drops),
        TEST(stamps_do_not_pile_up_on_the_disk),
        TEST(a_transaction_applies_whole_when_its_compares_hold_and_is_told_once),
        TEST(moods_of_the_engine_are_told_as_they_are),
        TEST(the_map_is_given_when_it_is_newer),
        TEST(hints_come_by_themselves),
        TEST(changes_wait_in_a_bounded_queue_until_their_deadline),
        TEST(a_stop_finishes_what_is_being_committed_and_refuses_the_rest),
        TEST(hostile_frames_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
