/* links: sk_proto */
/* The stored form of a schema, as a damaged file or a strange snapshot has it. */
#include "proto/schema.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_schema schema, again;
    struct sk_buffer to = {0};
    struct sk_reader from = sk_reader_of(sk_span_of(bytes, size));
    if (sk_schema_decode(&schema, &from, NULL) == SK_ERR_OK) {
        sk_schema_encode(&to, &schema);
        from = sk_reader_of(sk_buffer_span(&to));
        SK_CHECK(sk_schema_decode(&again, &from, NULL) == SK_ERR_OK);
        SK_CHECK(memcmp(&schema, &again, sizeof schema) == 0);
        sk_schema_describe(&to, &schema);
    }
    sk_buffer_deinit(&to);
    return 0;
}
