/* What every target shares: the entry point's prototype, and the input in a buffer of its exact
 * size. */
#ifndef SK_TESTS_FUZZ_H
#define SK_TESTS_FUZZ_H

#include "common/base/check.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif
