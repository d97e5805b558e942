/* links: sk_proto */
#include "proto/link.h"
#include "tests/unit/proto_vectors.h"

static struct sk_link_header sample(void)
{
    struct sk_link_header header = {.kind = SK_LINK_REPLY,
                                    .status = SK_ERR_INTERNAL,
                                    .role = SK_ROLE_LINK,
                                    .shard = 0x0102,
                                    .worker = 0x0304,
                                    .request = 0x05060708090A0B0C,
                                    .deadline_ms = 0x0D0E0F10,
                                    .schema_version = 0x11121314,
                                    .incarnation = 0x15161718191A1B1C,
                                    .sequence = 0x1D1E1F2021222324,
                                    .map_version = 0x25262728292A2B2C,
                                    .is_part = true};
    for (size_t i = 0; i < sizeof header.collection; i++)
        header.collection[i] = (uint8_t)(0x30 + i);
    return header;
}

/* The bytes are fixed: a router and a worker of different releases meet on one node during an
 * update. */
static void the_header_has_these_bytes(void **state)
{
    (void)state;
    struct sk_link_header header = sample();
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    struct sk_span wanted = hex_bytes("534c4b31"
                                      "020f0401"
                                      "02010403"
                                      "100f0e0d"
                                      "0c0b0a0908070605"
                                      "14131211"
                                      "00000000"
                                      "303132333435363738393a3b3c3d3e3f"
                                      "1c1b1a1918171615"
                                      "24232221201f1e1d"
                                      "2c2b2a2928272625"
                                      "0000000000000000");
    sk_link_header_encode(bytes, &header);
    assert_int_equal(wanted.size, sizeof bytes);
    assert_memory_equal(bytes, wanted.bytes, sizeof bytes);
    span_free(&wanted);
}

static void look(struct sk_span bytes, bool is_cut, void *arg)
{
    (void)arg;
    struct sk_link_header header;
    struct sk_span body;
    struct sk_diag d = {0};
    enum sk_err err = sk_link_decode(&header, &body, bytes, &d);
    assert_int_equal(d.code, err);
    if (is_cut && bytes.size < SK_LINK_HEADER_BYTES)
        assert_int_equal(err, SK_ERR_INVALID);
    if (err != SK_ERR_OK) {
        assert_null(body.bytes);
        assert_int_equal(header.kind, 0);
    } else {
        assert_int_equal(body.size, bytes.size - SK_LINK_HEADER_BYTES);
        assert_true(header.kind >= SK_LINK_REQUEST && header.kind <= SK_LINK_GOODBYE);
    }
}

static void a_message_is_read_back_and_its_wounds_are_survived(void **state)
{
    (void)state;
    uint8_t message[SK_LINK_HEADER_BYTES + 4] = {0};
    struct sk_link_header header = sample(), again;
    struct sk_span body;
    sk_link_header_encode(message, &header);
    memcpy(message + SK_LINK_HEADER_BYTES, "body", 4);
    assert_int_equal(sk_link_decode(&again, &body, sk_span_of(message, sizeof message), NULL),
                     SK_ERR_OK);
    assert_true(sk_span_is(body, "body"));
    uint8_t bytes[SK_LINK_HEADER_BYTES];
    sk_link_header_encode(bytes, &again);
    assert_memory_equal(bytes, message, sizeof bytes);
    for_every_wound(sk_span_of(message, sizeof message), look, NULL);
}

static void another_magic_kind_or_role_is_refused(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint8_t value;
        enum sk_err err;
    } cases[] = {{0, 'X', SK_ERR_VERSION}, {4, 0, SK_ERR_INVALID}, {4, 7, SK_ERR_INVALID},
                 {5, 16, SK_ERR_INVALID},  {6, 5, SK_ERR_INVALID}, {7, 2, SK_ERR_INVALID},
                 {7, 0, SK_ERR_OK},        {28, 9, SK_ERR_OK} /* reserved: for a later release */};
    for (size_t i = 0; i < SK_COUNT_OF(cases); i++) {
        struct sk_link_header header = sample();
        uint8_t bytes[SK_LINK_HEADER_BYTES];
        struct sk_span body;
        sk_link_header_encode(bytes, &header);
        bytes[cases[i].at] = cases[i].value;
        assert_int_equal(sk_link_decode(&header, &body, sk_span_of(bytes, sizeof bytes), NULL),
                         cases[i].err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_header_has_these_bytes),
        cmocka_unit_test(a_message_is_read_back_and_its_wounds_are_survived),
        cmocka_unit_test(another_magic_kind_or_role_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
