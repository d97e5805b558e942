/* links: sk_proto PkgConfig::MSGPACK | wraps: realloc */
/* The bounded reader against msgpack-c's own unpacker, which is independent of it. */
#include "tests/unit/proto_vectors.h"

#include <math.h>
#include <msgpack.h>

static unsigned fail_at; /* the call of realloc that fails; 0: none */
static unsigned realloc_calls;
void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_realloc(void *old, size_t size)
{
    realloc_calls++;
    return realloc_calls == fail_at ? NULL : __real_realloc(old, size);
}

static void every_kind_of_value_is_written_and_read_back(void **state)
{
    (void)state;
    struct sk_buffer to = {0};
    sk_put_array(&to, 12);
    sk_put_nil(&to);
    sk_put_bool(&to, true);
    sk_put_u64(&to, UINT64_MAX);
    sk_put_i64(&to, INT64_MIN);
    sk_put_i64(&to, 5);
    sk_put_f32(&to, 0.5F);
    sk_put_f64(&to, 0.1);
    sk_put_text(&to, "h\xc3\xa9");
    sk_put_bin(&to, "\x00\xff", 2);
    sk_put_map(&to, 1);
    sk_put_text(&to, "k");
    sk_put_array(&to, 0);
    size_t map = sk_put_map_open(&to);
    sk_put_text(&to, "late");
    sk_put_u64(&to, 1);
    sk_put_count_at(&to, map, 1);
    sk_put_raw(&to, sk_span_of("\x93\x01\x02\x03", 4));
    assert_int_equal(sk_buffer_check(&to, NULL), SK_ERR_OK);
    assert_shows(sk_buffer_span(&to),
                 "[null,true,18446744073709551615,-9223372036854775808,5,0.5,0.1,\"h\\u00e9\","
                 "{\"$bin\":\"00ff\"},{\"k\":[]},{\"late\":1},[1,2,3]]");
    sk_buffer_deinit(&to);
}

/* Every form of every number, also those that a packer never writes. */
static void numbers_of_every_width_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        const char *json;
    } cases[] = {{"\x7f", 1, "127"},
                 {"\xcc\x05", 2, "5"},
                 {"\xcd\x01\x00", 3, "256"},
                 {"\xce\xff\xff\xff\xff", 5, "4294967295"},
                 {"\xcf\x80\0\0\0\0\0\0\0", 9, "9223372036854775808"},
                 {"\xe0", 1, "-32"},
                 {"\xd0\x80", 2, "-128"},
                 {"\xd0\x05", 2, "5"},
                 {"\xd1\x80\x00", 3, "-32768"},
                 {"\xd2\x80\x00\x00\x00", 5, "-2147483648"},
                 {"\xd3\x80\0\0\0\0\0\0\0", 9, "-9223372036854775808"},
                 {"\xca\xbf\x00\x00\x00", 5, "-0.5"},
                 {"\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a", 9, "0.1"},
                 {"\xd9\x01"
                  "a",
                  3, "\"a\""},
                 {"\xda\x00\x01"
                  "a",
                  4, "\"a\""},
                 {"\xc5\x00\x01"
                  "a",
                  4, "{\"$bin\":\"61\"}"},
                 {"\xdc\x00\x01\x01", 4, "[1]"},
                 {"\xde\x00\x01\x01\x02", 5, "{1:2}"}};
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++)
        assert_shows(sk_span_of(cases[i].bytes, cases[i].size), cases[i].json);
}

static void assert_same(struct sk_reader *from, const msgpack_object *wanted)
{
    struct sk_value got;
    assert_int_equal(sk_read(from, &got, NULL), SK_ERR_OK);
    switch (wanted->type) {
    case MSGPACK_OBJECT_NIL:
        assert_int_equal(got.kind, SK_VALUE_NIL);
        break;
    case MSGPACK_OBJECT_BOOLEAN:
        assert_int_equal(got.kind, SK_VALUE_BOOL);
        assert_int_equal(got.boolean, wanted->via.boolean);
        break;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        assert_int_equal(got.kind, SK_VALUE_UNSIGNED);
        assert_true(got.u64 == wanted->via.u64);
        break;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        assert_int_equal(got.kind, SK_VALUE_NEGATIVE);
        assert_true(got.i64 == wanted->via.i64);
        break;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        assert_int_equal(got.kind, SK_VALUE_FLOAT);
        assert_true(got.f64 == wanted->via.f64 || (isnan(got.f64) && isnan(wanted->via.f64)));
        break;
    case MSGPACK_OBJECT_STR:
        assert_int_equal(got.kind, SK_VALUE_TEXT);
        assert_true(
            sk_span_equals(got.span, sk_span_of(wanted->via.str.ptr, wanted->via.str.size)));
        break;
    case MSGPACK_OBJECT_BIN:
        assert_int_equal(got.kind, SK_VALUE_BIN);
        assert_true(
            sk_span_equals(got.span, sk_span_of(wanted->via.bin.ptr, wanted->via.bin.size)));
        break;
    case MSGPACK_OBJECT_ARRAY:
        assert_int_equal(got.kind, SK_VALUE_ARRAY);
        assert_int_equal(got.count, wanted->via.array.size);
        for (uint32_t i = 0; i < got.count; i++)
            assert_same(from, &wanted->via.array.ptr[i]);
        break;
    case MSGPACK_OBJECT_MAP:
        assert_int_equal(got.kind, SK_VALUE_MAP);
        assert_int_equal(got.count, wanted->via.map.size);
        for (uint32_t i = 0; i < got.count; i++) {
            assert_same(from, &wanted->via.map.ptr[i].key);
            assert_same(from, &wanted->via.map.ptr[i].val);
        }
        break;
    default:
        fail_msg("the reader let an extension type through");
    }
}

static bool has_extension(const msgpack_object *object)
{
    if (object->type == MSGPACK_OBJECT_EXT)
        return true;
    if (object->type == MSGPACK_OBJECT_ARRAY)
        for (uint32_t i = 0; i < object->via.array.size; i++)
            if (has_extension(&object->via.array.ptr[i]))
                return true;
    if (object->type == MSGPACK_OBJECT_MAP)
        for (uint32_t i = 0; i < object->via.map.size; i++)
            if (has_extension(&object->via.map.ptr[i].key) ||
                has_extension(&object->via.map.ptr[i].val))
                return true;
    return false;
}

static struct {
    unsigned both, neither;
} seen;

/* Both readers take it and see the same, or ours refuses what msgpack-c refuses or what is an
 * extension. msgpack-c is asked only about what ours takes whole or what is short, because of its
 * mallocs. */
static void compare_with_msgpack_c(struct sk_span bytes, bool is_cut, void *arg)
{
    (void)is_cut;
    (void)arg;
    struct sk_reader from = sk_reader_of(bytes);
    struct sk_diag d = {0};
    enum sk_err err = sk_skip(&from, SK_PACK_DEPTH_MAX, &d);
    if (err == SK_ERR_OK)
        err = sk_read_end(&from, &d);
    assert_true((err == SK_ERR_OK) == (d.code == SK_ERR_OK));
    bool claims_much = memchr(bytes.bytes, 0xDD, bytes.size) != NULL ||
                       memchr(bytes.bytes, 0xDF, bytes.size) != NULL ||
                       memchr(bytes.bytes, 0xDC, bytes.size) != NULL ||
                       memchr(bytes.bytes, 0xDE, bytes.size) != NULL;
    if (err != SK_ERR_OK && claims_much)
        return;
    msgpack_unpacked unpacked;
    size_t offset = 0;
    msgpack_unpacked_init(&unpacked);
    msgpack_unpack_return rc =
        msgpack_unpack_next(&unpacked, (const char *)bytes.bytes, bytes.size, &offset);
    bool is_whole =
        (rc == MSGPACK_UNPACK_SUCCESS || rc == MSGPACK_UNPACK_EXTRA_BYTES) && offset == bytes.size;
    if (err == SK_ERR_OK) {
        assert_true(is_whole);
        from = sk_reader_of(bytes);
        assert_same(&from, &unpacked.data);
        seen.both++;
    } else {
        if (is_whole)
            assert_true(has_extension(&unpacked.data));
        seen.neither++;
    }
    msgpack_unpacked_destroy(&unpacked);
}

static void put_random(msgpack_packer *to, uint64_t *random, unsigned depth)
{
    char text[300];
    uint64_t kind = next_random(random) % (depth == 0 ? 8 : 11);
    size_t size = next_random(random) % (next_random(random) % 8 == 0 ? 300 : 12);
    memset(text, 'x', sizeof text);
    switch (kind) {
    case 0:
        msgpack_pack_nil(to);
        break;
    case 1:
        (void)(next_random(random) % 2 == 0 ? msgpack_pack_true(to) : msgpack_pack_false(to));
        break;
    case 2:
        msgpack_pack_uint64(to, next_random(random) >> next_random(random) % 64);
        break;
    case 3:
        msgpack_pack_int64(to, (int64_t)next_random(random) >> next_random(random) % 64);
        break;
    case 4:
        msgpack_pack_double(to, (double)(int64_t)next_random(random) / 7);
        break;
    case 5:
        msgpack_pack_float(to, (float)next_random(random) / 3);
        break;
    case 6:
        msgpack_pack_str(to, size);
        msgpack_pack_str_body(to, text, size);
        break;
    case 7:
        msgpack_pack_bin(to, size);
        msgpack_pack_bin_body(to, text, size);
        break;
    case 8:
    case 9:
        msgpack_pack_array(to, size % 20);
        for (size_t i = 0; i < size % 20; i++)
            put_random(to, random, depth - 1);
        break;
    default:
        msgpack_pack_map(to, size % 9);
        for (size_t i = 0; i < 2 * (size % 9); i++)
            put_random(to, random, depth - 1);
        break;
    }
}

static void random_values_read_as_msgpack_c_reads_them(void **state)
{
    (void)state;
    uint64_t random = test_seed();
    memset(&seen, 0, sizeof seen);
    for (unsigned round = 0; round < 3000; round++) {
        msgpack_sbuffer buffer;
        msgpack_packer packer;
        msgpack_sbuffer_init(&buffer);
        msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
        put_random(&packer, &random, 4);
        struct sk_span whole = sk_span_of(buffer.data, buffer.size);
        compare_with_msgpack_c(whole, false, NULL);
        for (unsigned i = 0; i < 8; i++) {
            struct sk_span changed = exact_copy(whole, 1 + next_random(&random) % whole.size);
            for (unsigned k = 0; k < 1 + i / 3; k++)
                ((uint8_t *)(uintptr_t)changed.bytes)[next_random(&random) % changed.size] =
                    (uint8_t)next_random(&random);
            compare_with_msgpack_c(changed, false, NULL);
            span_free(&changed);
        }
        msgpack_sbuffer_destroy(&buffer);
    }
    assert_true(seen.both > 3000);
    assert_true(seen.neither > 3000);
}

static void every_first_byte_is_read_as_msgpack_c_reads_it(void **state)
{
    (void)state;
    for (unsigned first = 0; first < 256; first++) {
        uint8_t bytes[40] = {(uint8_t)first};
        for (size_t size = 1; size <= sizeof bytes; size++) {
            struct sk_span exact = exact_copy(sk_span_of(bytes, size), size);
            compare_with_msgpack_c(exact, false, NULL);
            span_free(&exact);
        }
    }
}

static void depth_is_bounded(void **state)
{
    (void)state;
    uint8_t bytes[40];
    for (unsigned depth = 1; depth <= 36; depth++) {
        struct sk_span span;
        memset(bytes, 0x91, depth);
        bytes[depth] = 0xC0;
        for (unsigned most = 1; most <= 36; most++) {
            struct sk_reader from = sk_reader_of(sk_span_of(bytes, depth + 1));
            unsigned bound = most < SK_PACK_DEPTH_MAX ? most : SK_PACK_DEPTH_MAX;
            assert_int_equal(sk_read_raw(&from, most, &span, NULL),
                             depth <= bound ? SK_ERR_OK : SK_ERR_INVALID);
            assert_int_equal(span.size, depth <= bound ? depth + 1 : 0);
        }
    }
}

static void a_claim_is_compared_with_what_is_left_at_once(void **state)
{
    (void)state;
    struct sk_value value;
    struct sk_reader from =
        sk_reader_of(sk_span_of("\x82\xc0\xc0\xc0", 4)); /* two pairs are four values */
    assert_int_equal(sk_read(&from, &value, NULL), SK_ERR_INVALID);
    from = sk_reader_of(sk_span_of("\x94\xc0\xc0\xc0", 4));
    assert_int_equal(sk_read(&from, &value, NULL), SK_ERR_INVALID);
    from = sk_reader_of(sk_span_of("\x82\xc0\xc0\xc0\xc0", 5));
    assert_int_equal(sk_read(&from, &value, NULL), SK_ERR_OK);
}

static void keys_are_text(void **state)
{
    (void)state;
    struct sk_diag d = {0};
    struct sk_span key;
    struct sk_reader from = sk_reader_of(sk_span_of("\xa1"
                                                    "a\xc4\x01"
                                                    "a",
                                                    5));
    assert_int_equal(sk_read_key(&from, &key, &d), SK_ERR_OK);
    assert_true(sk_span_is(key, "a"));
    assert_int_equal(sk_read_key(&from, &key, &d), SK_ERR_INVALID);
    assert_null(key.bytes);
    assert_non_null(strstr(d.text, "bin"));
}

static void numbers_convert_only_where_they_fit(void **state)
{
    (void)state;
    struct sk_value value = {.kind = SK_VALUE_UNSIGNED, .u64 = (uint64_t)INT64_MAX + 1};
    int64_t integer;
    double number;
    assert_false(sk_value_i64(&value, &integer));
    value.u64 = INT64_MAX;
    assert_true(sk_value_i64(&value, &integer));
    assert_true(integer == INT64_MAX);
    value = (struct sk_value){.kind = SK_VALUE_NEGATIVE, .i64 = -3};
    assert_true(sk_value_number(&value, &number));
    assert_true(number == -3.0);
    value.kind = SK_VALUE_TEXT;
    assert_false(sk_value_number(&value, &number));
    assert_false(sk_value_i64(&value, &integer));
}

static void without_memory_a_buffer_is_broken_and_says_so_once(void **state)
{
    (void)state;
    for (unsigned n = 1;; n++) {
        struct sk_buffer to = {0};
        fail_at = n;
        realloc_calls = 0;
        sk_put_array(&to, 3);
        for (unsigned i = 0; i < 3; i++) {
            sk_put_bin_head(&to, 1000);
            uint8_t *room = sk_buffer_grow(&to, 1000);
            if (room != NULL)
                memset(room, 1, 1000);
        }
        size_t at = sk_put_array_open(&to);
        sk_put_count_at(&to, at, 0);
        bool is_done = realloc_calls < fail_at;
        fail_at = 0;
        struct sk_diag d = {0};
        assert_int_equal(sk_buffer_check(&to, &d), is_done ? SK_ERR_OK : SK_ERR_NOMEM);
        assert_int_equal(d.code, is_done ? SK_ERR_OK : SK_ERR_NOMEM);
        sk_buffer_clear(&to);
        assert_int_equal(sk_buffer_check(&to, NULL), SK_ERR_OK);
        sk_buffer_deinit(&to);
        if (is_done)
            break;
        assert_true(n < 20);
    }
    struct sk_buffer huge = {0};
    assert_null(sk_buffer_grow(&huge, SIZE_MAX / 2));
    assert_true(huge.is_broken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_value_is_written_and_read_back),
        cmocka_unit_test(numbers_of_every_width_are_read),
        cmocka_unit_test(random_values_read_as_msgpack_c_reads_them),
        cmocka_unit_test(every_first_byte_is_read_as_msgpack_c_reads_it),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(a_claim_is_compared_with_what_is_left_at_once),
        cmocka_unit_test(keys_are_text),
        cmocka_unit_test(numbers_convert_only_where_they_fit),
        cmocka_unit_test(without_memory_a_buffer_is_broken_and_says_so_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
