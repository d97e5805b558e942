/* links: sk_proto */
/* Two values one after the other: a filter, then the payload that it is held against. */
#include "proto/filter.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const struct sk_schema schema = {.field_count = 3,
                                            .fields = {{.name = "n", .kind = SK_PAYLOAD_INTEGER},
                                                       {.name = "t", .kind = SK_PAYLOAD_DATETIME},
                                                       {.name = "place", .kind = SK_PAYLOAD_GEO}}};
    struct sk_reader from = sk_reader_of(sk_span_of(bytes, size));
    struct sk_span packed, payload = {0};
    if (sk_read_raw(&from, SK_PACK_DEPTH_MAX, &packed, NULL) != SK_ERR_OK)
        packed = sk_span_of(bytes, size);
    else
        payload = sk_span_of(from.at, sk_reader_left(&from));
    struct sk_arena arena;
    struct sk_filter *filter;
    struct sk_id id = sk_id_from_u64(1);
    sk_arena_init(&arena, 4 << 20);
    bool is_payload = payload.size > 0 && sk_payload_check(payload, NULL) == SK_ERR_OK;
    if (sk_filter_parse(&filter, &arena, packed, NULL) == SK_ERR_OK) {
        (void)sk_filter_matches(filter, NULL, &id, is_payload ? payload : (struct sk_span){0});
        if (sk_filter_check(&schema, filter, NULL) == SK_ERR_OK)
            (void)sk_filter_matches(filter, &schema, &id,
                                    is_payload ? payload : (struct sk_span){0});
        (void)sk_filter_undeclared(filter, &schema);
    }
    sk_arena_deinit(&arena);
    return 0;
}
