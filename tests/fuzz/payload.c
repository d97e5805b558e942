/* links: sk_proto */
/* A payload: checked, searched, merged with itself. What was checked stays a payload. */
#include "proto/payload.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct sk_schema schema = {.field_count = 6};
    struct sk_span payload = sk_span_of(bytes, size), value, element;
    for (uint32_t i = 0; i < schema.field_count; i++) {
        schema.fields[i].kind = (enum sk_payload_kind)(i + 1);
        (void)snprintf(schema.fields[i].name, sizeof schema.fields[i].name,
                       i % 2 == 0 ? "%c" : "m.%c", (char)('a' + i));
    }
    if (sk_payload_check(payload, NULL) != SK_ERR_OK)
        return 0;
    (void)!sk_payload_check_types(&schema, payload, NULL);
    for (uint32_t i = 0; i < schema.field_count; i++) {
        struct sk_elements elements;
        struct sk_typed typed;
        if (!sk_payload_find(payload, schema.fields[i].name, &value))
            continue;
        sk_elements_begin(&elements, value);
        while (sk_elements_next(&elements, &element))
            (void)sk_typed_from(schema.fields[i].kind, element, &typed);
    }
    struct sk_buffer merged = {0};
    sk_payload_merge(&merged, payload, payload);
    if (merged.size <= SK_PAYLOAD_BYTES_MAX)
        SK_CHECK(sk_payload_check(sk_buffer_span(&merged), NULL) == SK_ERR_OK);
    sk_buffer_deinit(&merged);
    return 0;
}
