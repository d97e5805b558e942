/* links: sk_keeper sk_proto */
#include "tests/unit/keeper_world.h"

static const char key_one[] = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
static const char key_two[] = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";

static enum sk_err add_key(struct world *self, const char *name, const char *public_key,
                           const char *role)
{
    return world_code(self, &(struct question){.op = SK_OP_CREATE_KEY,
                                               .name = name,
                                               .public_key = public_key,
                                               .role_name = role});
}

static enum sk_err revoke_key(struct world *self, const char *name)
{
    return world_code(self, &(struct question){.op = SK_OP_REVOKE_KEY, .name = name});
}

static void keys_come_and_go_and_survive_a_crash(void **state)
{
    struct world *self = *state;
    assert_int_equal(add_key(self, "reader", key_one, "read"), SK_ERR_OK);
    assert_int_equal(add_key(self, "writer", key_two, "write"), SK_ERR_OK);
    world_crash(self);
    world_open(self);
    const struct sk_map *map = sk_keeper_map(self->keeper);
    assert_int_equal(map->key_count, 3);
    assert_string_equal(map->keys[1].name, "reader");
    assert_string_equal(map->keys[1].public_key, key_one);
    assert_int_equal(map->keys[1].role, SK_ROLE_READ);
    assert_int_equal(revoke_key(self, "reader"), SK_ERR_OK);
    assert_int_equal(revoke_key(self, "reader"), SK_ERR_NOT_FOUND);
    assert_int_equal(revoke_key(self, "admin"), SK_ERR_OK); /* local clients are admins still */
    world_crash(self);
    world_open(self); /* and it does not come back from the config */
    map = sk_keeper_map(self->keeper);
    assert_int_equal(map->key_count, 1);
    assert_string_equal(map->keys[0].name, "writer");
}

static void a_key_must_be_one(void **state)
{
    struct world *self = *state;
    static const char *const wrong[] = {
        "", "short", "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hI\"", "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hI ",
        "#####w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID" /* ##### is above 2^32 */,
        "0000000000000000000000000000000000000000"};
    for (size_t i = 0; i < SK_COUNT_OF(wrong); i++) {
        struct answer answer = world_ask(self, &(struct question){.op = SK_OP_CREATE_KEY,
                                                                  .name = "x",
                                                                  .public_key = wrong[i],
                                                                  .role_name = "read"});
        assert_int_equal(answer.header.status, SK_ERR_INVALID);
        assert_string_equal(answer.field, "public_key");
    }
    struct sk_diag d = {0};
    assert_int_equal(sk_public_key_check(sk_span_of("abcd\0bcdeabcdeabcdeabcdeabcdeabcdeabcde", 40), &d),
                     SK_ERR_INVALID);
    assert_int_equal(add_key(self, "x", key_one, "root"), SK_ERR_INVALID);
    assert_int_equal(add_key(self, "bad name", key_one, "read"), SK_ERR_INVALID);
    assert_int_equal(sk_keeper_map(self->keeper)->key_count, 1);
}

static void names_and_keys_are_unique(void **state)
{
    struct world *self = *state;
    assert_int_equal(add_key(self, "reader", key_one, "read"), SK_ERR_OK);
    struct answer answer = world_ask(self, &(struct question){.op = SK_OP_CREATE_KEY,
                                                              .name = "reader",
                                                              .public_key = key_two,
                                                              .role_name = "read"});
    assert_int_equal(answer.header.status, SK_ERR_EXISTS);
    assert_string_equal(answer.field, "name");
    answer = world_ask(self, &(struct question){.op = SK_OP_CREATE_KEY,
                                                .name = "other",
                                                .public_key = key_one,
                                                .role_name = "admin"});
    assert_int_equal(answer.header.status, SK_ERR_EXISTS);
    assert_string_equal(answer.field, "public_key");
    assert_non_null(strstr(answer.message, "'reader'"));
    answer = world_ask(self, &(struct question){.op = SK_OP_REVOKE_KEY, .name = "raeder"});
    assert_int_equal(answer.header.status, SK_ERR_NOT_FOUND);
    assert_non_null(strstr(answer.message, "'reader'"));
    world_check(self);
}

static void a_late_copy_of_a_grant_does_not_undo_a_revocation(void **state)
{
    struct world *self = *state;
    const struct question grant = {.op = SK_OP_CREATE_KEY,
                                   .name = "leaver",
                                   .public_key = key_one,
                                   .role_name = "write",
                                   .sequence = 900};
    assert_int_equal(world_code(self, &grant), SK_ERR_OK);
    assert_int_equal(revoke_key(self, "leaver"), SK_ERR_OK);
    world_crash(self);
    world_open(self);
    assert_int_equal(world_code(self, &grant), SK_ERR_OK);
    assert_int_equal(sk_keeper_map(self->keeper)->key_count, 1);
}

static void roles_are_held_here_too(void **state)
{
    struct world *self = *state;
    static const enum sk_op admin_ops[] = {SK_OP_CREATE_COLLECTION, SK_OP_DROP_COLLECTION,
                                           SK_OP_CREATE_KEY, SK_OP_REVOKE_KEY, SK_OP_LIST_KEYS};
    for (size_t i = 0; i < SK_COUNT_OF(admin_ops); i++) {
        for (enum sk_role role = SK_ROLE_READ; role <= SK_ROLE_WRITE; role++) {
            struct question question = {.op = admin_ops[i], .role = role};
            if (admin_ops[i] == SK_OP_CREATE_COLLECTION || admin_ops[i] == SK_OP_DROP_COLLECTION)
                question.collection = "docs";
            if (admin_ops[i] == SK_OP_CREATE_COLLECTION)
                question.vectors = world_vectors();
            if (admin_ops[i] == SK_OP_CREATE_KEY || admin_ops[i] == SK_OP_REVOKE_KEY)
                question.name = "admin";
            if (admin_ops[i] == SK_OP_CREATE_KEY)
                question.public_key = key_one, question.role_name = "admin";
            assert_int_equal(world_code(self, &question), SK_ERR_FORBIDDEN);
        }
    }
    assert_int_equal(world_code(self, &(struct question){.op = SK_OP_MAP_GET, .role = SK_ROLE_ADMIN}),
                     SK_ERR_FORBIDDEN);
    assert_int_equal(world_code(self, &(struct question){.op = SK_OP_LIST_COLLECTIONS, .role = SK_ROLE_READ}),
                     SK_ERR_OK);
    assert_int_equal(world_code(self, &(struct question){.op = SK_OP_REVOKE_KEY,
                                                         .name = "admin",
                                                         .role = SK_ROLE_LINK,
                                                         .from = SK_KEEPER_PEER_WORKER_0}),
                     SK_ERR_FORBIDDEN);
    assert_int_equal(sk_keeper_map(self->keeper)->version, 1);
}

static void lists_tell_what_there_is(void **state)
{
    struct world *self = *state;
    assert_int_equal(world_create(self, "zoo"), SK_ERR_OK);
    assert_int_equal(world_create(self, "art"), SK_ERR_OK);
    struct answer answer = world_ask(self, &(struct question){.op = SK_OP_LIST_COLLECTIONS});
    struct sk_list list;
    struct sk_value value;
    assert_true(sk_map_member_list(answer.reply.map, "collections", &list));
    assert_int_equal(list.count, 2);
    struct sk_reader from = sk_reader_of(list.members);
    assert_int_equal(sk_read(&from, &value, NULL), SK_ERR_OK);
    assert_true(sk_span_is(value.span, "art"));
    answer = world_ask(self, &(struct question){.op = SK_OP_LIST_KEYS});
    assert_true(sk_map_member_list(answer.reply.map, "keys", &list));
    assert_int_equal(list.count, 1);
    struct sk_span text;
    assert_true(sk_map_member_text(list.members, "name", &text) && sk_span_is(text, "admin"));
    assert_true(sk_map_member_text(list.members, "public_key", &text) &&
                sk_span_is(text, world_admin_key));
    assert_true(sk_map_member_text(list.members, "role", &text) && sk_span_is(text, "admin"));
}

static void there_may_be_so_many_keys_and_no_more(void **state)
{
    struct world *self = *state;
    char name[16], key[SK_Z85_KEY_BYTES];
    memcpy(key, key_one, sizeof key);
    for (unsigned i = 1; i < SK_KEYS_MAX; i++) {
        (void)snprintf(name, sizeof name, "k%u", i);
        key[1] = (char)('0' + i % 10);
        key[2] = (char)('0' + i / 10 % 10);
        key[3] = (char)('0' + i / 100 % 10);
        key[4] = (char)('0' + i / 1000);
        assert_int_equal(add_key(self, name, key, "read"), SK_ERR_OK);
        world_forget_sent(self);
    }
    assert_int_equal(add_key(self, "more", key_two, "read"), SK_ERR_TOO_LARGE);
    assert_int_equal(revoke_key(self, "k1000"), SK_ERR_OK);
    assert_int_equal(add_key(self, "more", key_two, "read"), SK_ERR_OK);
    world_crash(self);
    world_open(self);
    assert_int_equal(sk_keeper_map(self->keeper)->key_count, SK_KEYS_MAX);
}

static void a_wrong_admin_key_is_refused_when_the_state_is_made(void **state)
{
    struct world *self = *state;
    struct sk_diag d = {0};
    world_crash(self);
    (void)snprintf(self->state, sizeof self->state, "%s/other", self->folder);
    self->admin = "nonsense";
    assert_int_equal(world_try_open(self, &d), SK_ERR_INVALID);
    assert_non_null(strstr(d.text, "admin"));
    assert_null(self->keeper);
    self->admin = world_admin_key;
    world_open(self); /* nothing half made was left behind */
    assert_int_equal(sk_keeper_map(self->keeper)->key_count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
        TEST(keys_come_and_go_and_survive_a_crash),
        TEST(a_key_must_be_one),
        TEST(names_and_keys_are_unique),
        TEST(a_late_copy_of_a_grant_does_not_undo_a_revocation),
        TEST(roles_are_held_here_too),
        TEST(lists_tell_what_there_is),
        TEST(there_may_be_so_many_keys_and_no_more),
        TEST(a_wrong_admin_key_is_refused_when_the_state_is_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
