/* links: sk_keeper sk_proto */
#include "tests/unit/keeper_world.h"

static void a_new_keeper_knows_its_node_and_its_first_key(void **state)
{
    struct world *self = *state;
    const struct sk_map *map = sk_keeper_map(self->keeper);
    assert_int_equal(map->version, 1);
    assert_true(map->node_id != 0);
    uint64_t node = map->node_id;
    assert_int_equal(map->key_count, 1);
    assert_string_equal(map->keys[0].name, "admin");
    assert_string_equal(map->keys[0].public_key, world_admin_key);
    assert_int_equal(map->keys[0].role, SK_ROLE_ADMIN);
    world_crash(self);
    self->admin = NULL;
    world_open(self);
    assert_int_equal(sk_keeper_map(self->keeper)->node_id, node);
    assert_int_equal(sk_keeper_map(self->keeper)->key_count, 1);
}

static void a_collection_is_made_and_found_again_after_a_crash(void **state)
{
    struct world *self = *state;
    struct answer answer = world_ask(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                              .collection = "docs",
                                                              .vectors = world_vectors(),
                                                              .shards = 3});
    assert_int_equal(answer.header.status, SK_ERR_OK);
    assert_int_equal(answer.header.map_version, 2);
    assert_int_equal(answer.reply.id.number, 77);
    uint8_t uuid[SK_UUID_BYTES];
    memcpy(uuid, sk_keeper_map(self->keeper)->collections[0].schema.uuid, sizeof uuid);
    world_crash(self);
    world_open(self);
    const struct sk_map *map = sk_keeper_map(self->keeper);
    assert_int_equal(map->version, 2);
    assert_int_equal(map->collection_count, 1);
    assert_string_equal(map->collections[0].schema.name, "docs");
    assert_int_equal(map->collections[0].schema.version, 1);
    assert_int_equal(map->collections[0].schema.shard_count, 3);
    assert_int_equal(map->collections[0].schema.vectors[0].dim, 8);
    assert_memory_equal(map->collections[0].schema.uuid, uuid, sizeof uuid);
    world_check(self);
}

static void nothing_is_said_before_it_is_durable(void **state)
{
    struct world *self = *state;
    struct answer answer;
    const struct question create = {
        .op = SK_OP_CREATE_COLLECTION, .collection = "docs", .vectors = world_vectors()};
    uint64_t request = world_send_question(self, &create);
    assert_non_null(self->job);
    assert_false(world_find(self, request, &answer));
    self->job->run(self->job); /* durable, and nobody knows yet */
    assert_int_equal(self->sent_count, 0);
    assert_int_equal(sk_keeper_map(self->keeper)->collection_count, 0);
    sk_keeper_on_job_done(self->keeper, self->job);
    self->job = NULL;
    assert_true(world_find(self, request, &answer));
    assert_int_equal(self->sent[self->sent_count - 1].to, SK_KEEPER_PEER_HINTS);
    struct sk_link_header hint;
    struct sk_span body;
    assert_int_equal(sk_link_decode(&hint, &body,
                                    sk_span_of(self->sent[self->sent_count - 1].bytes,
                                               self->sent[self->sent_count - 1].size),
                                    NULL),
                     SK_ERR_OK);
    assert_int_equal(hint.kind, SK_LINK_HINT);
    assert_int_equal(hint.map_version, 2);
    assert_int_equal(body.size, 0);
}

static void a_crash_at_the_commit_leaves_all_or_nothing(void **state)
{
    struct world *self = *state;
    for (int round = 0; round < 2; round++) {
        bool is_committed = round == 1;
        const struct question create = {.op = SK_OP_CREATE_COLLECTION,
                                        .collection = "docs",
                                        .vectors = world_vectors(),
                                        .sequence = 1000};
        (void)world_send_question(self, &create);
        if (is_committed)
            self->job->run(self->job);
        world_crash(self); /* before anything was answered */
        world_open(self);
        assert_int_equal(sk_keeper_map(self->keeper)->collection_count, is_committed ? 1 : 0);
        world_check(self);
    }
    /* the router sends it again: it was applied, and is not applied again */
    assert_int_equal(world_code(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                         .collection = "docs",
                                                         .vectors = world_vectors(),
                                                         .sequence = 1000}),
                     SK_ERR_OK);
    assert_int_equal(sk_keeper_map(self->keeper)->version, 2);
}

static void a_late_copy_is_answered_and_not_applied_again(void **state)
{
    struct world *self = *state;
    const struct question create = {.op = SK_OP_CREATE_COLLECTION,
                                    .collection = "docs",
                                    .vectors = world_vectors(),
                                    .sequence = 500};
    const struct question refused = {.op = SK_OP_DROP_COLLECTION, .collection = "later", .sequence = 501};
    assert_int_equal(world_code(self, &create), SK_ERR_OK);
    assert_int_equal(world_code(self, &refused), SK_ERR_NOT_FOUND);
    assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
    assert_int_equal(world_create(self, "later"), SK_ERR_OK);
    uint64_t version = sk_keeper_map(self->keeper)->version;
    assert_int_equal(world_code(self, &create), SK_ERR_OK);
    assert_int_equal(world_code(self, &refused), SK_ERR_NOT_FOUND);
    assert_int_equal(sk_keeper_map(self->keeper)->version, version);
    assert_null(sk_map_find(sk_keeper_map(self->keeper), sk_span_text("docs")));
    world_crash(self);
    world_open(self); /* the window is durable */
    assert_int_equal(world_code(self, &create), SK_ERR_OK);
    assert_null(sk_map_find(sk_keeper_map(self->keeper), sk_span_text("docs")));
    /* two copies that wait one behind the other */
    const struct question twice = {.op = SK_OP_CREATE_COLLECTION,
                                   .collection = "twice",
                                   .vectors = world_vectors(),
                                   .sequence = 502};
    (void)world_send_question(self, &twice);
    assert_int_equal(world_code(self, &twice), SK_ERR_OK);
    assert_int_equal(sk_keeper_map(self->keeper)->version, version + 1);
}

static void the_window_of_stamps_stays_bounded(void **state)
{
    struct world *self = *state;
    for (unsigned i = 0; i < SK_KEEPER_APPLIED_MAX / 2 + 20; i++) {
        assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
        assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
        world_forget_sent(self);
    }
    world_crash(self);
    world_open(self);
    const struct question last = {
        .op = SK_OP_DROP_COLLECTION, .collection = "docs", .sequence = self->sequence};
    assert_int_equal(world_code(self, &last), SK_ERR_OK); /* known still */
    const struct question first = {.op = SK_OP_DROP_COLLECTION, .collection = "docs", .sequence = 2};
    assert_int_equal(world_code(self, &first), SK_ERR_NOT_FOUND); /* forgotten by now */
    world_check(self);
}

static void what_is_there_and_what_is_not_is_said_with_the_closest_name(void **state)
{
    struct world *self = *state;
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    assert_int_equal(world_create(self, "docs"), SK_ERR_EXISTS);
    struct answer answer =
        world_ask(self, &(struct question){.op = SK_OP_DROP_COLLECTION, .collection = "doc"});
    assert_int_equal(answer.header.status, SK_ERR_NOT_FOUND);
    assert_string_equal(answer.field, "collection");
    assert_non_null(strstr(answer.message, "'docs'"));
    answer = world_ask(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                .collection = "other",
                                                .vectors = sk_span_text("\x80")});
    assert_int_equal(answer.header.status, SK_ERR_INVALID);
    assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
    assert_int_equal(world_drop(self, "docs"), SK_ERR_NOT_FOUND);
}

static void a_collection_made_again_has_another_uuid(void **state)
{
    struct world *self = *state;
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    struct sk_schema before = sk_keeper_map(self->keeper)->collections[0].schema;
    assert_int_equal(world_drop(self, "docs"), SK_ERR_OK);
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    assert_memory_not_equal(before.uuid, sk_keeper_map(self->keeper)->collections[0].schema.uuid,
                            SK_UUID_BYTES);
}

static void alter_raises_the_schema_s_version_once(void **state)
{
    struct world *self = *state;
    /* {"lang": "keyword"} */
    const struct question alter = {.op = SK_OP_ALTER_COLLECTION,
                                   .collection = "docs",
                                   .payload = sk_span_text("\x81\xa4lang\xa7keyword")};
    assert_int_equal(world_code(self, &alter), SK_ERR_NOT_FOUND);
    assert_int_equal(world_create(self, "docs"), SK_ERR_OK);
    assert_int_equal(world_code(self, &alter), SK_ERR_OK);
    assert_int_equal(world_code(self, &alter), SK_ERR_OK); /* nothing left to do */
    world_crash(self);
    world_open(self);
    const struct sk_schema *schema = &sk_keeper_map(self->keeper)->collections[0].schema;
    assert_int_equal(schema->version, 2);
    assert_int_equal(schema->field_count, 1);
    assert_string_equal(schema->fields[0].name, "lang");
    assert_int_equal(sk_keeper_map(self->keeper)->version, 3);
}

static void a_collection_can_be_made_from_a_stored_schema(void **state)
{
    struct world *self = *state;
    assert_int_equal(world_code(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                         .collection = "docs",
                                                         .vectors = world_vectors(),
                                                         .payload = sk_span_text("\x81\xa1n\xa7integer"),
                                                         .shards = 2}),
                     SK_ERR_OK);
    struct sk_schema stored = sk_keeper_map(self->keeper)->collections[0].schema;
    struct sk_buffer packed = {0};
    sk_schema_encode(&packed, &stored);
    struct question restore = {.op = SK_OP_CREATE_FROM_SCHEMA,
                               .collection = "docs",
                               .schema = sk_buffer_span(&packed)};
    assert_int_equal(world_code(self, &restore), SK_ERR_EXISTS);
    restore.collection = "again";
    restore.role = SK_ROLE_ADMIN; /* an admin asks for restore; this is the node's own */
    assert_int_equal(world_code(self, &restore), SK_ERR_FORBIDDEN);
    restore.role = SK_ROLE_LINK;
    assert_int_equal(world_code(self, &restore), SK_ERR_OK);
    const struct sk_map_collection *made =
        sk_map_find(sk_keeper_map(self->keeper), sk_span_text("again"));
    assert_non_null(made);
    assert_memory_not_equal(made->schema.uuid, stored.uuid, SK_UUID_BYTES);
    assert_int_equal(made->schema.shard_count, 2);
    assert_int_equal(made->schema.fields[0].id, stored.fields[0].id);
    /* a field that is there twice */
    restore.collection = "third";
    stored.fields[1] = stored.fields[0];
    stored.field_count = 2;
    sk_buffer_clear(&packed);
    sk_schema_encode(&packed, &stored);
    restore.schema = sk_buffer_span(&packed);
    struct answer answer = world_ask(self, &restore);
    assert_int_equal(answer.header.status, SK_ERR_INVALID);
    assert_string_equal(answer.field, "schema");
    restore.schema = sk_span_text("\x90"); /* an empty array is no schema */
    assert_int_equal(world_code(self, &restore), SK_ERR_INVALID);
    sk_buffer_deinit(&packed);
    world_check(self);
}

static void shards_go_to_the_workers_that_have_the_fewest(void **state)
{
    struct world *self = *state;
    world_crash(self);
    self->workers = 3;
    world_open(self);
    char name[16];
    for (unsigned i = 0; i < 6; i++) {
        (void)snprintf(name, sizeof name, "c%u", i);
        assert_int_equal(world_code(self, &(struct question){.op = SK_OP_CREATE_COLLECTION,
                                                             .collection = name,
                                                             .vectors = world_vectors(),
                                                             .shards = 1 + i % 3}),
                         SK_ERR_OK);
    }
    for (unsigned workers = 1; workers <= 5; workers++) {
        world_crash(self);
        self->workers = 6 - workers;
        world_open(self);
        world_check(self);
        const struct sk_map *map = sk_keeper_map(self->keeper);
        unsigned counts[SK_WORKERS_MAX] = {0}, least = 99, most = 0;
        for (uint32_t i = 0; i < map->collection_count; i++)
            for (uint32_t s = 0; s < map->collections[i].schema.shard_count; s++)
                counts[map->collections[i].workers[s]]++;
        for (unsigned w = 0; w < self->workers; w++) {
            least = counts[w] < least ? counts[w] : least;
            most = counts[w] > most ? counts[w] : most;
        }
        assert_true(most <= least + 1);
        uint64_t version = map->version;
        world_crash(self);
        world_open(self); /* the same number: nothing moves */
        assert_int_equal(sk_keeper_map(self->keeper)->version, version);
    }
}

static void there_may_be_so_many_collections_and_no_more(void **state)
{
    struct world *self = *state;
    char name[16];
    for (unsigned i = 0; i < SK_COLLECTIONS_MAX; i++) {
        (void)snprintf(name, sizeof name, "c%u", i);
        assert_int_equal(world_create(self, name), SK_ERR_OK);
        world_forget_sent(self);
    }
    assert_int_equal(world_create(self, "one-more"), SK_ERR_TOO_LARGE);
    world_crash(self);
    world_open(self);
    assert_int_equal(sk_keeper_map(self->keeper)->collection_count, SK_COLLECTIONS_MAX);
    assert_int_equal(world_drop(self, "c7"), SK_ERR_OK);
    assert_int_equal(world_create(self, "one-more"), SK_ERR_OK);
    world_check(self);
    /* all of it travels as one map */
    struct answer answer = world_ask(self, &(struct question){.op = SK_OP_MAP_GET});
    struct sk_span packed;
    struct sk_map map = {0};
    assert_true(sk_map_member(answer.reply.map, "map", &packed));
    assert_int_equal(sk_map_decode(&map, packed, NULL), SK_ERR_OK);
    assert_int_equal(map.collection_count, SK_COLLECTIONS_MAX);
    sk_map_deinit(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
        TEST(a_new_keeper_knows_its_node_and_its_first_key),
        TEST(a_collection_is_made_and_found_again_after_a_crash),
        TEST(nothing_is_said_before_it_is_durable),
        TEST(a_crash_at_the_commit_leaves_all_or_nothing),
        TEST(a_late_copy_is_answered_and_not_applied_again),
        TEST(the_window_of_stamps_stays_bounded),
        TEST(what_is_there_and_what_is_not_is_said_with_the_closest_name),
        TEST(a_collection_made_again_has_another_uuid),
        TEST(alter_raises_the_schema_s_version_once),
        TEST(a_collection_can_be_made_from_a_stored_schema),
        TEST(shards_go_to_the_workers_that_have_the_fewest),
        TEST(there_may_be_so_many_collections_and_no_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
