/* links: sk_proto */
#include "proto/reply.h"
#include "tests/unit/proto_vectors.h"

static struct vector_file replies;

static void every_vector_says_what_it_says(void **state)
{
    (void)state;
    unsigned errors = 0;
    for (size_t i = 0; i < replies.count; i++) {
        const struct vector *vector = &replies.vectors[i];
        struct sk_span frame = hex_bytes(vector_line(vector, "hex"));
        const char *says = vector_line(vector, "says");
        struct sk_reply reply;
        struct sk_diag d = {0};
        enum sk_err err = sk_reply_decode(&reply, frame, &d);
        assert_int_equal(d.code, err);
        if (says == NULL) {
            if (err == SK_ERR_OK)
                fail_msg("%s: is taken as a reply", vector->title);
        } else {
            assert_int_equal(err, SK_ERR_OK);
            assert_shows(frame, says);
            assert_int_equal(reply.is_ok, strstr(says, "\"ok\":true") != NULL);
            errors += !reply.is_ok;
        }
        if (says != NULL && !reply.is_ok) { /* written again it has the same bytes */
            struct sk_diag told = {.code = reply.code};
            struct sk_buffer again = {0};
            memcpy(told.field,
                   reply.error_field.size > 0 ? reply.error_field.bytes : (const uint8_t *)"",
                   reply.error_field.size);
            memcpy(told.text, reply.error_message.bytes, reply.error_message.size);
            assert_int_equal(reply.is_retriable, sk_err_retriable(reply.code));
            sk_reply_error(&again, &reply.id, reply.code, &told);
            assert_true(sk_span_equals(sk_buffer_span(&again), frame));
            sk_buffer_deinit(&again);
        }
        span_free(&frame);
    }
    assert_true(errors >= 2);
}

static void look(struct sk_span frame, bool is_cut, void *arg)
{
    (void)arg;
    struct sk_reply reply;
    struct sk_diag d = {0};
    enum sk_err err = sk_reply_decode(&reply, frame, &d);
    assert_int_equal(d.code, err);
    if (is_cut)
        assert_int_not_equal(err, SK_ERR_OK);
    if (err != SK_ERR_OK)
        return;
    struct sk_list list;
    uint64_t number;
    struct sk_span member;
    (void)sk_map_member_list(reply.map, "hits", &list);
    (void)sk_map_member_u64(reply.map, "took_us", &number);
    (void)sk_map_member(reply.map, "cursor", &member);
    assert_true(reply.is_ok || reply.code != SK_ERR_OK);
}

static void every_cut_is_refused_and_every_changed_byte_is_survived(void **state)
{
    (void)state;
    for (size_t i = 0; i < replies.count; i++) {
        struct sk_span frame = hex_bytes(vector_line(&replies.vectors[i], "hex"));
        if (vector_line(&replies.vectors[i], "says") != NULL)
            for_every_wound(frame, look, NULL);
        span_free(&frame);
    }
}

static void a_reply_is_written_field_by_field(void **state)
{
    (void)state;
    struct sk_buffer to = {0};
    struct sk_reply_writer writer;
    struct sk_request_id id = {.is_present = true, .is_text = true, .text = sk_span_text("q")};
    sk_reply_begin(&writer, &to, &id);
    sk_reply_key(&writer, "count");
    sk_put_u64(&to, 3);
    sk_reply_end(&writer);
    assert_shows(sk_buffer_span(&to), "{\"v\":1,\"id\":\"q\",\"ok\":true,\"count\":3}");
    uint64_t count;
    bool is_ok;
    struct sk_span text;
    assert_true(sk_map_member_u64(sk_buffer_span(&to), "count", &count) && count == 3);
    assert_true(sk_map_member_bool(sk_buffer_span(&to), "ok", &is_ok) && is_ok);
    assert_true(sk_map_member_text(sk_buffer_span(&to), "id", &text) && sk_span_is(text, "q"));
    assert_false(sk_map_member_text(sk_buffer_span(&to), "count", &text));
    assert_false(sk_map_member_u64(sk_buffer_span(&to), "more", &count));
    sk_buffer_clear(&to);
    sk_reply_ok(&to, &(struct sk_request_id){0});
    assert_shows(sk_buffer_span(&to), "{\"v\":1,\"id\":null,\"ok\":true}");
    sk_buffer_deinit(&to);
}

static void error_texts_are_utf8_whatever_they_quote(void **state)
{
    (void)state;
    struct sk_buffer to = {0};
    struct sk_reply reply;
    struct sk_diag d = {0};
    (void)sk_fail_field(&d, SK_ERR_UNKNOWN_FIELD,
                        "a\xff"
                        "b",
                        "no field '%s'", "h\xc3\xa9\xe2\x82\xf0\x9f\x90\x8b\x80");
    sk_reply_error(&to, &(struct sk_request_id){0}, d.code, &d);
    assert_int_equal(sk_reply_decode(&reply, sk_buffer_span(&to), NULL), SK_ERR_OK);
    assert_true(sk_span_is(reply.error_field, "a?b"));
    assert_true(sk_span_is(reply.error_message, "no field 'h\xc3\xa9??\xf0\x9f\x90\x8b?'"));
    sk_buffer_clear(&to);
    memset(d.text, 0, sizeof d.text); /* cut in the middle of a character */
    for (size_t i = 0; i + 1 < sizeof d.text; i++)
        d.text[i] = i % 2 == 0 ? '\xc3' : '\xa9';
    sk_reply_error(&to, &(struct sk_request_id){0}, d.code, &d);
    assert_int_equal(sk_reply_decode(&reply, sk_buffer_span(&to), NULL), SK_ERR_OK);
    assert_true(reply.error_message.size > 390);
    sk_buffer_clear(&to);
    sk_reply_error(&to, NULL, SK_ERR_BUSY, NULL);
    assert_int_equal(sk_reply_decode(&reply, sk_buffer_span(&to), NULL), SK_ERR_OK);
    assert_true(sk_span_is(reply.error_message, "a queue is full, try later"));
    assert_true(reply.is_retriable);
    sk_buffer_deinit(&to);
}

static void an_error_may_carry_more(void **state)
{
    (void)state;
    struct sk_buffer to = {0}, pairs = {0};
    struct sk_reply reply;
    struct sk_span error;
    struct sk_list applied;
    sk_put_text(&pairs, "applied");
    sk_put_array(&pairs, 1);
    sk_put_u64(&pairs, 3);
    struct sk_request_id id = {.is_present = true, .number = 5};
    sk_reply_error_with(&to, &id, SK_ERR_UNAVAILABLE, NULL, 1, sk_buffer_span(&pairs));
    assert_int_equal(sk_reply_decode(&reply, sk_buffer_span(&to), NULL), SK_ERR_OK);
    assert_true(sk_map_member(reply.map, "error", &error));
    assert_true(sk_map_member_list(error, "applied", &applied));
    assert_int_equal(applied.count, 1);
    sk_buffer_deinit(&to);
    sk_buffer_deinit(&pairs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector_says_what_it_says),
        cmocka_unit_test(every_cut_is_refused_and_every_changed_byte_is_survived),
        cmocka_unit_test(a_reply_is_written_field_by_field),
        cmocka_unit_test(error_texts_are_utf8_whatever_they_quote),
        cmocka_unit_test(an_error_may_carry_more),
    };
    vector_file_read(&replies, "replies.txt");
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    free(replies.text);
    return status;
}
