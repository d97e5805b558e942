/* links: sk_kernels */
/* The look-up scan of 32 codes at a time, on every instruction set, against sums written out here. Plain
 * C: it also runs where cmocka is not, under qemu. */
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned failed_count, checked_count;

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        checked_count++;                                                                           \
        if (!(condition) && failed_count++ < 20) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

enum { SEGMENTS_MAX = 1024, ODD_MAX = 3 };
static uint64_t state = 88172645463325252U;

static uint8_t next_byte(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint8_t)(state >> 40);
}

static void want_sums(const uint8_t *codes, const uint8_t *luts, size_t segments, uint32_t *want)
{
    for (size_t k = 0; k < SK_SCAN_BLOCK; k++) {
        want[k] = 0;
        for (size_t segment = 0; segment < segments; segment++) {
            uint8_t pair = codes[segment / 2 * SK_SCAN_BLOCK + k];
            want[k] += luts[segment * 16 + (segment % 2 == 0 ? pair & 15U : pair >> 4)];
        }
    }
}

/* Blocks end exactly where they are said to, so that a sanitizer sees a read past them. */
static void one(const struct sk_kernels *set, size_t segments, size_t odd, int code, int lut)
{
    const size_t size = segments * 16;
    uint8_t *codes = malloc(size + odd), *luts = malloc(size + odd);
    uint16_t *out = malloc((SK_SCAN_BLOCK + 1) * sizeof *out);
    uint32_t want[SK_SCAN_BLOCK], wide[SK_SCAN_BLOCK];
    if (codes == NULL || luts == NULL || out == NULL)
        abort();
    for (size_t i = 0; i < size; i++) {
        codes[odd + i] = code < 0 ? next_byte() : (uint8_t)code;
        luts[odd + i] = lut < 0 ? next_byte() : (uint8_t)lut;
    }
    want_sums(codes + odd, luts + odd, segments, want);
    out[SK_SCAN_BLOCK] = 0xBEEF;
    if (segments <= SK_SCAN_SEGMENTS_MAX) {
        set->scan_u4x32(codes + odd, luts + odd, segments, out);
        for (size_t k = 0; k < SK_SCAN_BLOCK; k++)
            EXPECT(out[k] == want[k], "%s: %zu segments, vector %zu: %u, want %u", set->isa, segments, k,
                   out[k], want[k]);
    }
    EXPECT(out[SK_SCAN_BLOCK] == 0xBEEF, "%s: wrote past its block", set->isa);
    sk_scan_u4x32(set, codes + odd, luts + odd, segments, wide);
    EXPECT(memcmp(wide, want, sizeof want) == 0, "%s: %zu segments, wide", set->isa, segments);
    free(codes);
    free(luts);
    free(out);
}

static void sums_are_those_of_a_plain_loop(const struct sk_kernels *set)
{
    for (size_t segments = 0; segments <= 260; segments += 2)
        for (size_t odd = 0; odd <= ODD_MAX; odd++)
            one(set, segments, odd, -1, -1);
    for (size_t segments = 510; segments <= SEGMENTS_MAX; segments += 514)
        one(set, segments, 1, -1, -1);
}

static void the_largest_sums_do_not_overflow(const struct sk_kernels *set)
{
    static const int codes[] = {0x00, 0xFF, 0x0F, 0xF0, -1};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        one(set, SK_SCAN_SEGMENTS_MAX, 1, codes[i], 255);
        one(set, SK_SCAN_SEGMENTS_MAX, 1, codes[i], 0);
        one(set, SEGMENTS_MAX, 1, codes[i], 255);
    }
}

int main(void)
{
    const char *name;
    for (unsigned at = 0; (name = sk_kernels_name(at)) != NULL; at++) {
        sums_are_those_of_a_plain_loop(sk_kernels_get(name));
        the_largest_sums_do_not_overflow(sk_kernels_get(name));
    }
    printf("%u checks, %u failed\n", checked_count, failed_count);
    return failed_count == 0 ? 0 : 1;
}
