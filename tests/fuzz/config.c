/* links: sk_base */
/* The text of a skerry.conf. */
#include "common/base/config.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_config config;
    struct sk_diag d = {0};
    char *text = malloc(size + 1);
    if (text == NULL)
        return 0;
    memcpy(text, bytes, size);
    text[size] = '\0';
    sk_config_init(&config);
    enum sk_err err = sk_config_parse(&config, "fuzz", text, &d);
    SK_CHECK(d.code == err);
    free(text);
    return 0;
}
