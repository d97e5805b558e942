/* links: sk_gateway */
/* What the router answers the gateway, on its way to Prometheus. */
#include "actors/gateway/gateway.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_buffer page = {0};
    char words[SK_GATEWAY_WORDS_BYTES];
    if (sk_gateway_render(&page, sk_span_of(bytes, size), "0.1.0", NULL) == SK_ERR_OK)
        SK_CHECK(page.size > 0 && page.bytes[page.size - 1] == '\n');
    (void)sk_gateway_is_ready(sk_span_of(bytes, size), words);
    sk_buffer_deinit(&page);
    return 0;
}
