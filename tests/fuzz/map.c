/* links: sk_proto */
/* The map of collections and keys, from the keeper. */
#include "proto/map.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_map map = {0}, again = {0};
    struct sk_buffer to = {0};
    const struct sk_map_collection *found;
    if (sk_map_decode(&map, sk_span_of(bytes, size), NULL) == SK_ERR_OK) {
        sk_map_encode(&to, &map);
        SK_CHECK(sk_map_decode(&again, sk_buffer_span(&to), NULL) == SK_ERR_OK);
        SK_CHECK(again.version == map.version && again.collection_count == map.collection_count);
        (void)!sk_map_collection_of(&map, sk_span_text("docs"), &found, NULL);
    }
    sk_map_deinit(&map);
    sk_map_deinit(&again);
    sk_buffer_deinit(&to);
    return 0;
}
