/* links: sk_base */
#include "common/base/arena.h"
#include "common/base/id.h"
#include "common/base/utf8.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static void ids_are_canonical_and_read_back(void **state)
{
    (void)state;
    char text[SK_ID_TEXT_BYTES];
    struct sk_id id = sk_id_from_u64(258);
    assert_memory_equal(id.bytes, "\x01\0\0\0\0\0\0\x01\x02", 9);
    assert_string_equal(sk_id_text(&id, text), "258");
    assert_int_equal(sk_id_u64(&id), 258);

    assert_int_equal(sk_id_from_string(&id, sk_span_text("5"), NULL), SK_ERR_OK);
    assert_int_equal(sk_id_kind(&id), SK_ID_STRING);
    struct sk_id five = sk_id_from_u64(5);
    assert_true(sk_id_compare(&five, &id) < 0);

    struct sk_span upper = sk_span_text("0191F2A0-7B3C-7000-8000-00000000ABCD");
    assert_int_equal(sk_id_from_string(&id, upper, NULL), SK_ERR_OK);
    assert_int_equal(sk_id_kind(&id), SK_ID_UUID);
    assert_string_equal(sk_id_text(&id, text), "0191f2a0-7b3c-7000-8000-00000000abcd");
}

static void ids_over_a_limit_or_malformed_are_refused(void **state)
{
    (void)state;
    struct sk_diag d = {0};
    struct sk_id id;
    char long_text[66];
    memset(long_text, 'a', 65);
    long_text[65] = '\0';
    assert_int_equal(sk_id_from_string(&id, sk_span_text(long_text), &d), SK_ERR_TOO_LARGE);
    assert_non_null(strstr(d.text, "65 bytes"));
    long_text[64] = '\0';
    assert_int_equal(sk_id_from_string(&id, sk_span_text(long_text), &d), SK_ERR_OK);
    assert_int_equal(sk_id_from_string(&id, sk_span_of("", 0), &d), SK_ERR_INVALID);
    assert_int_equal(id.size, 0);
    assert_int_equal(sk_id_from_string(&id, sk_span_of("\xff", 1), &d), SK_ERR_INVALID);
    assert_int_equal(sk_id_from_canonical(&id, sk_span_of("\x01\0\0", 3), &d), SK_ERR_INVALID);
    assert_int_equal(sk_id_from_canonical(&id, sk_span_of("\x07""abcdefgh", 9), &d), SK_ERR_INVALID);
    assert_int_equal(sk_id_from_canonical(&id, sk_span_of("\x03" "a", 2), &d), SK_ERR_OK);
}

static void utf8_refuses_overlong_surrogate_and_cut_forms(void **state)
{
    (void)state;
    assert_true(sk_utf8_valid(sk_span_text("h\xc3\xa9llo \xf0\x9f\x90\x8b")));
    assert_false(sk_utf8_valid(sk_span_of("\xc0\x80", 2)));
    assert_false(sk_utf8_valid(sk_span_of("\xed\xa0\x80", 3)));
    assert_false(sk_utf8_valid(sk_span_of("\xe2\x82", 2)));
    assert_false(sk_utf8_valid(sk_span_of("a\0b", 3)));
    assert_false(sk_utf8_valid(sk_span_of("\xf4\x90\x80\x80", 4)));
}

static void arena_keeps_its_limit_and_forgets_on_reset(void **state)
{
    (void)state;
    struct sk_arena arena;
    sk_arena_init(&arena, 1024 * 1024);
    assert_non_null(sk_arena_alloc(&arena, 100));
    assert_non_null(sk_arena_alloc(&arena, 700 * 1024));
    assert_null(sk_arena_alloc(&arena, 700 * 1024));
    assert_null(sk_arena_alloc(&arena, SIZE_MAX));
    assert_null(sk_arena_zalloc(&arena, SIZE_MAX / 2, 3));
    sk_arena_reset(&arena);
    uint8_t *bytes = sk_arena_zalloc(&arena, 1000, 1);
    assert_non_null(bytes);
    assert_int_equal(bytes[999], 0);
    sk_arena_deinit(&arena);
}

static void errors_keep_their_numbers_and_wrap_their_texts(void **state)
{
    (void)state;
    assert_int_equal(SK_ERR_INTERNAL, 15);
    assert_int_equal(SK_ERR_DISK_FULL, 13);
    assert_string_equal(sk_err_name(SK_ERR_NOT_FOUND), "not_found");
    assert_true(sk_err_retriable(SK_ERR_BUSY));
    assert_false(sk_err_retriable(SK_ERR_INVALID));
    struct sk_diag d = {0};
    enum sk_err err = sk_fail_field(&d, SK_ERR_NOT_FOUND, "ids", "no record %d", 7);
    assert_int_equal(sk_wrap(&d, err, "shard %d", 3), SK_ERR_NOT_FOUND);
    assert_string_equal(d.text, "shard 3: no record 7");
    assert_string_equal(d.field, "ids");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_canonical_and_read_back),
        cmocka_unit_test(ids_over_a_limit_or_malformed_are_refused),
        cmocka_unit_test(utf8_refuses_overlong_surrogate_and_cut_forms),
        cmocka_unit_test(arena_keeps_its_limit_and_forgets_on_reset),
        cmocka_unit_test(errors_keep_their_numbers_and_wrap_their_texts),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
