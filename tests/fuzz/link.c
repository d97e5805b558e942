/* links: sk_proto */
/* A message between two processes of a node. */
#include "proto/link.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_link_header header, again;
    struct sk_span body;
    uint8_t encoded[SK_LINK_HEADER_BYTES];
    if (sk_link_decode(&header, &body, sk_span_of(bytes, size), NULL) != SK_ERR_OK)
        return 0;
    SK_CHECK(body.size == size - SK_LINK_HEADER_BYTES);
    sk_link_header_encode(encoded, &header);
    SK_CHECK(sk_link_decode(&again, &body, sk_span_of(encoded, sizeof encoded), NULL) == SK_ERR_OK);
    SK_CHECK(again.request == header.request && again.sequence == header.sequence &&
             again.role == header.role);
    return 0;
}
