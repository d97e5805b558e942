/* links: sk_proto */
#include "proto/payload.h"
#include "tests/unit/proto_vectors.h"

#include <math.h>
#include <time.h>

static void datetimes_are_those_of_the_calendar(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t us;
    } good[] = {{"1970-01-01", 0},
                {"1970-01-01T00:00:00Z", 0},
                {"1969-12-31T23:59:59.999999z", -1},
                {"2000-02-29t12:00:00Z", INT64_C(951825600000000)},
                {"2026-11-23T08:00:00.5+00:00", INT64_C(1795420800500000)},
                {"2026-11-23 10:00:00-01:30", INT64_C(1795433400000000)},
                {"2026-11-23T08:00:00.1234567Z", INT64_C(1795420800123456)},
                {"2016-12-31T23:59:60Z", INT64_C(1483228800000000)},
                {"0000-01-01", INT64_C(-62167219200000000)},
                {"9999-12-31T23:59:59Z", INT64_C(253402300799000000)}};
    static const char *const wrong[] = {"",
                                        "1970",
                                        "1970-1-1",
                                        "1970-13-01",
                                        "1970-00-01",
                                        "1970-01-00",
                                        "2026-02-29",
                                        "2026-02-31T23:59:60Z",
                                        "1900-02-29",
                                        "2026-04-31",
                                        "1970-01-01T00:00:00",
                                        "1970-01-01T24:00:00Z",
                                        "1970-01-01T00:60:00Z",
                                        "1970-01-01T00:00:61Z",
                                        "1970-01-01T00:00:00.Z",
                                        "1970-01-01T00:00:00+24:00",
                                        "1970-01-01T00:00:00+0100",
                                        "1970-01-01T00:00:00Zx",
                                        "1970-01-01x"};
    int64_t us;
    for (size_t i = 0; i < SK_COUNT_OF(good); i++) {
        assert_true(sk_datetime_parse(sk_span_text(good[i].text), &us));
        if (us != good[i].us)
            fail_msg("%s is %lld", good[i].text, (long long)us);
    }
    for (size_t i = 0; i < SK_COUNT_OF(wrong); i++)
        if (sk_datetime_parse(sk_span_text(wrong[i]), &us))
            fail_msg("%s is taken", wrong[i]);
    for (int64_t day = -800000; day < 800000; day += 97) { /* years -220 to 4160, against libc */
        time_t seconds = (time_t)(day * 86400);
        struct tm tm;
        char text[32];
        assert_non_null(gmtime_r(&seconds, &tm));
        if (tm.tm_year < -1900)
            continue;
        (void)snprintf(text, sizeof text, "%04d-%02d-%02d", tm.tm_year + 1900, tm.tm_mon + 1,
                       tm.tm_mday);
        assert_true(sk_datetime_parse(sk_span_text(text), &us));
        assert_true(us == day * INT64_C(86400000000));
    }
}

static void put_keys(struct sk_buffer *to, uint32_t count, uint32_t repeated)
{
    char key[16];
    sk_put_map(to, count);
    for (uint32_t i = 0; i < count; i++) {
        (void)snprintf(key, sizeof key, "k%u", i == repeated ? 0 : i);
        sk_put_text(to, key);
        sk_put_u64(to, i);
    }
}

static void a_key_given_twice_is_found_in_maps_of_any_size(void **state)
{
    (void)state;
    struct sk_buffer to = {0};
    for (uint32_t count = 1; count <= 1024; count += count < 20 ? 1 : 251) {
        struct sk_diag d = {0};
        sk_buffer_clear(&to);
        put_keys(&to, count, UINT32_MAX);
        assert_int_equal(sk_payload_check(sk_buffer_span(&to), &d), SK_ERR_OK);
        if (count == 1)
            continue;
        sk_buffer_clear(&to);
        sk_put_map(&to, 1); /* also one level down */
        sk_put_text(&to, "inner");
        put_keys(&to, count, count - 1);
        assert_int_equal(sk_payload_check(sk_buffer_span(&to), &d), SK_ERR_INVALID);
        assert_non_null(strstr(d.text, "'k0' is given twice"));
    }
    sk_buffer_clear(&to);
    put_keys(&to, 1025, UINT32_MAX);
    assert_int_equal(sk_payload_check(sk_buffer_span(&to), NULL), SK_ERR_TOO_LARGE);
    sk_buffer_deinit(&to);
}

/* 1,023 keys beside one value of 60,000 members: what used to take a second must not. */
static void hostile_keys_cost_little(void **state)
{
    (void)state;
    struct sk_buffer to = {0};
    char key[16];
    sk_put_map(&to, 1024);
    sk_put_text(&to, "big");
    sk_put_array(&to, 58000);
    for (uint32_t i = 0; i < 58000; i++)
        sk_put_nil(&to);
    for (uint32_t i = 1; i < 1024; i++) {
        (void)snprintf(key, sizeof key, "%u", i);
        sk_put_text(&to, key);
        sk_put_nil(&to);
    }
    assert_true(to.size < SK_PAYLOAD_BYTES_MAX);
    clock_t began = clock();
    for (unsigned round = 0; round < 10; round++)
        assert_int_equal(sk_payload_check(sk_buffer_span(&to), NULL), SK_ERR_OK);
    assert_true((double)(clock() - began) / CLOCKS_PER_SEC < 2.0); /* pair by pair: 10 s */
    sk_buffer_deinit(&to);
}

static void form_is_checked(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        enum sk_err err;
    } cases[] = {{"\x80", 1, SK_ERR_OK},
                 {"\x90", 1, SK_ERR_INVALID},             /* not a map */
                 {"\x80\xc0", 2, SK_ERR_INVALID},         /* bytes after it */
                 {"\x81\x01\x01", 3, SK_ERR_INVALID},     /* a key that is a number */
                 {"\x81\xa1\xff\x01", 4, SK_ERR_INVALID}, /* ... that is not UTF-8 */
                 {"\x81\xa1"
                  "a\xa1\xff",
                  5, SK_ERR_INVALID}, /* a text that is not UTF-8 */
                 {"\x81\xa1"
                  "a\xca\x7f\x80\x00\x00",
                  8, SK_ERR_INVALID}, /* infinity */
                 {"\x81\xa1"
                  "a\xd4\x01\x00",
                  6, SK_ERR_INVALID}, /* an extension */
                 {"\x81\xa1"
                  "a\xc4\x02\xff\xfe",
                  7, SK_ERR_OK}}; /* bin is anything */
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_span exact = exact_copy(sk_span_of(cases[i].bytes, cases[i].size), cases[i].size);
        if (sk_payload_check(exact, NULL) != cases[i].err)
            fail_msg("case %zu", i);
        span_free(&exact);
    }
    for (unsigned depth = 7; depth <= 8; depth++) { /* the map itself is one level */
        uint8_t bytes[16] = {0x81, 0xA1, 'a'};
        memset(bytes + 3, 0x91, depth);
        bytes[3 + depth] = 0xC0;
        assert_int_equal(sk_payload_check(sk_span_of(bytes, 4 + depth), NULL),
                         depth < SK_PAYLOAD_DEPTH_MAX ? SK_ERR_OK : SK_ERR_TOO_LARGE);
    }
    struct sk_buffer to = {0};
    sk_put_map(&to, 1);
    sk_put_text(&to, "a");
    sk_put_bin_head(&to, SK_PAYLOAD_BYTES_MAX);
    memset(sk_buffer_grow(&to, SK_PAYLOAD_BYTES_MAX), 1, SK_PAYLOAD_BYTES_MAX);
    assert_int_equal(sk_payload_check(sk_buffer_span(&to), NULL), SK_ERR_TOO_LARGE);
    sk_buffer_deinit(&to);
}

static void a_declared_field_wants_its_kind(void **state)
{
    (void)state;
    static const struct {
        enum sk_payload_kind kind;
        const char *good[4];
        size_t good_size[4];
        const char *wrong[3];
        size_t wrong_size[3];
    } cases[] = {
        {SK_PAYLOAD_KEYWORD,
         {"\xa1"
          "a",
          "\x92\xa1"
          "a\xa1"
          "b",
          "\xc0", "\x90"},
         {2, 5, 1, 1},
         {"\x01", "\xc3", "\x91\x01"},
         {1, 1, 2}},
        {SK_PAYLOAD_INTEGER,
         {"\x05", "\xff", "\x91\x01", "\xc0"},
         {1, 1, 2, 1},
         {"\xa1"
          "1",
          "\xca\x3f\x80\x00\x00", "\xcf\xff\xff\xff\xff\xff\xff\xff\xff"},
         {2, 5, 9}},
        {SK_PAYLOAD_FLOAT,
         {"\x05", "\xca\x3f\x80\x00\x00", "\x91\x01", "\xc0"},
         {1, 5, 2, 1},
         {"\xa1"
          "1",
          "\xc2", "\x80"},
         {2, 1, 1}},
        {SK_PAYLOAD_BOOL,
         {"\xc2", "\xc3", "\x91\xc3", "\xc0"},
         {1, 1, 2, 1},
         {"\x01",
          "\xa1"
          "t",
          "\x80"},
         {1, 2, 1}},
        {SK_PAYLOAD_DATETIME,
         {"\xaa"
          "2026-11-23",
          "\x05", "\xff", "\xc0"},
         {11, 1, 1, 1},
         {"\xa3"
          "now",
          "\xc3", "\xca\x3f\x80\x00\x00"},
         {4, 1, 5}},
        {SK_PAYLOAD_GEO,
         {"\x82\xa3lat\x01\xa3lon\x02", "\x90", "\xc0", "\x91\xc0"},
         {11, 1, 1, 2},
         {"\x81\xa3lat\x01", "\x82\xa3lat\x5b\xa3lon\x02", "\x01"},
         {6, 11, 1}},
    };
    struct sk_schema schema = {.field_count = 1, .fields = {{.name = "f", .id = 1}}};
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        schema.fields[0].kind = cases[i].kind;
        for (size_t k = 0; k < 7; k++) {
            bool is_good = k < 4;
            struct sk_buffer to = {0};
            struct sk_diag d = {0};
            sk_put_map(&to, 1);
            sk_put_text(&to, "f");
            sk_put_raw(&to, is_good
                                ? sk_span_of(cases[i].good[k], cases[i].good_size[k])
                                : sk_span_of(cases[i].wrong[k - 4], cases[i].wrong_size[k - 4]));
            enum sk_err err = sk_payload_check_types(&schema, sk_buffer_span(&to), &d);
            if (err != (is_good ? SK_ERR_OK : SK_ERR_INVALID))
                fail_msg("%s, case %zu: %s", sk_payload_kind_name(cases[i].kind), k, d.text);
            if (!is_good)
                assert_string_equal(d.field, "f");
            sk_buffer_deinit(&to);
        }
    }
}

static void paths_reach_into_maps(void **state)
{
    (void)state;
    struct sk_buffer to = {0};
    struct sk_span value;
    sk_put_map(&to, 2);
    sk_put_text(&to, "a");
    sk_put_map(&to, 1);
    sk_put_text(&to, "b.c");
    sk_put_map(&to, 1);
    sk_put_text(&to, "d");
    sk_put_u64(&to, 7);
    sk_put_text(&to, "a.x");
    sk_put_nil(&to);
    assert_true(sk_payload_find(sk_buffer_span(&to), "a.b.c.d", &value));
    assert_int_equal(value.bytes[0], 7);
    assert_false(sk_payload_find(sk_buffer_span(&to), "a.x", &value)); /* nil is missing */
    assert_false(sk_payload_find(sk_buffer_span(&to), "a.b", &value));
    assert_false(sk_payload_find((struct sk_span){0}, "a", &value));
    sk_buffer_deinit(&to);
}

static void merge_puts_in_and_nil_takes_out(void **state)
{
    (void)state;
    struct sk_buffer old = {0}, change = {0}, to = {0};
    sk_put_map(&old, 3);
    for (const char *key = "abc"; *key != '\0'; key++) {
        sk_put_text_of(&old, sk_span_of(key, 1));
        sk_put_u64(&old, 1);
    }
    sk_put_map(&change, 3);
    sk_put_text(&change, "b");
    sk_put_nil(&change);
    sk_put_text(&change, "c");
    sk_put_u64(&change, 2);
    sk_put_text(&change, "d");
    sk_put_u64(&change, 3);
    sk_payload_merge(&to, sk_buffer_span(&old), sk_buffer_span(&change));
    assert_shows(sk_buffer_span(&to), "{\"a\":1,\"c\":2,\"d\":3}");
    sk_buffer_clear(&to);
    sk_payload_merge(&to, (struct sk_span){0}, sk_buffer_span(&change));
    assert_shows(sk_buffer_span(&to), "{\"c\":2,\"d\":3}");
    struct sk_list names = {.members = sk_span_of("\xa1"
                                                  "d\xa1"
                                                  "x\xa1"
                                                  "c",
                                                  6),
                            .count = 3,
                            .is_present = true};
    struct sk_buffer chosen = {0};
    sk_payload_select(&chosen, sk_buffer_span(&to), &names);
    assert_shows(sk_buffer_span(&chosen), "{\"d\":3,\"c\":2}");
    sk_buffer_clear(&chosen);
    sk_payload_select(&chosen, (struct sk_span){0}, &names);
    assert_shows(sk_buffer_span(&chosen), "{}");
    sk_buffer_deinit(&old);
    sk_buffer_deinit(&change);
    sk_buffer_deinit(&to);
    sk_buffer_deinit(&chosen);
}

static void distances_are_those_of_the_globe(void **state)
{
    (void)state;
    assert_true(fabs(sk_geo_distance_m(60.1699, 24.9384, 59.4370, 24.7536) - 82160) <
                200); /* Helsinki-Tallinn */
    assert_true(fabs(sk_geo_distance_m(0, 179.5, 0, -179.5) - 111195) < 10);
    assert_true(fabs(sk_geo_distance_m(90, 0, -90, 0) - 20015115) < 100);
    assert_true(sk_geo_distance_m(1, 2, 1, 2) == 0);
}

static void look(struct sk_span payload, bool is_cut, void *arg)
{
    const struct sk_schema *schema = arg;
    struct sk_diag d = {0};
    struct sk_buffer to = {0};
    struct sk_span value;
    enum sk_err err = sk_payload_check_types(schema, payload, &d);
    assert_int_equal(d.code, err);
    if (is_cut)
        assert_int_not_equal(err, SK_ERR_OK);
    /* These are given checked payloads only, and must stay inside what is given whatever it is. */
    (void)sk_payload_find(payload, "a.b", &value);
    sk_payload_merge(&to, payload, payload);
    sk_buffer_deinit(&to);
}

static void every_cut_is_refused_and_every_changed_byte_is_survived(void **state)
{
    (void)state;
    struct sk_schema schema = {.field_count = 2,
                               .fields = {{.name = "a.b", .kind = SK_PAYLOAD_GEO},
                                          {.name = "t", .kind = SK_PAYLOAD_DATETIME}}};
    struct sk_buffer to = {0};
    sk_put_map(&to, 3);
    sk_put_text(&to, "a");
    sk_put_map(&to, 1);
    sk_put_text(&to, "b");
    sk_put_array(&to, 1);
    sk_put_map(&to, 2);
    sk_put_text(&to, "lat");
    sk_put_f64(&to, 60.5);
    sk_put_text(&to, "lon");
    sk_put_f32(&to, 24.5F);
    sk_put_text(&to, "t");
    sk_put_text(&to, "2026-11-23T08:00:00.25+02:00");
    sk_put_text(&to, "x");
    sk_put_bin(&to, "\x01\x02", 2);
    assert_int_equal(sk_payload_check_types(&schema, sk_buffer_span(&to), NULL), SK_ERR_OK);
    for_every_wound(sk_buffer_span(&to), look, &schema);
    sk_buffer_deinit(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(datetimes_are_those_of_the_calendar),
        cmocka_unit_test(a_key_given_twice_is_found_in_maps_of_any_size),
        cmocka_unit_test(hostile_keys_cost_little),
        cmocka_unit_test(form_is_checked),
        cmocka_unit_test(a_declared_field_wants_its_kind),
        cmocka_unit_test(paths_reach_into_maps),
        cmocka_unit_test(merge_puts_in_and_nil_takes_out),
        cmocka_unit_test(distances_are_those_of_the_globe),
        cmocka_unit_test(every_cut_is_refused_and_every_changed_byte_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
