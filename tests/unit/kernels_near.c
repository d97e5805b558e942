/* links: sk_kernels */
/* The kernels of neighbour rows on every instruction set, against sums written out here. Plain C: it also
 * runs where cmocka is not, under qemu. */
#include "kernels/kernels.h"

#include <math.h>
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

enum { N_MAX = 1024, CAPACITY_MAX = 240 };
static uint64_t state = 88172645463325252U;

static uint32_t next(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % below;
}

static void tables_hold_sums_of_signs(const struct sk_kernels *set)
{
    static int8_t q[N_MAX];
    static uint8_t luts[4 * N_MAX + 1];
    for (size_t n = 64; n <= N_MAX; n += 64) {
        for (size_t i = 0; i < n; i++)
            q[i] = (int8_t)(n == 64 ? (i % 2 == 0 ? SK_NEAR_Q_MAX : -SK_NEAR_Q_MAX)
                                    : (int)next(2 * SK_NEAR_Q_MAX + 1) - SK_NEAR_Q_MAX);
        luts[4 * n] = 0xAB;
        set->luts_signs(q, n, luts);
        for (size_t segment = 0; segment < n / 4; segment++)
            for (unsigned entry = 0; entry < 16; entry++) {
                int want = 4 * SK_NEAR_Q_MAX;
                for (unsigned j = 0; j < 4; j++)
                    want += (entry >> j & 1) != 0 ? q[4 * segment + j] : -q[4 * segment + j];
                EXPECT(luts[16 * segment + entry] == want, "%s: segment %zu, entry %u", set->isa,
                       segment, entry);
            }
        EXPECT(luts[4 * n] == 0xAB, "%s: wrote past the tables", set->isa);
    }
}

static void bits_are_signs_of_differences(const struct sk_kernels *set)
{
    static float a[N_MAX], b[N_MAX];
    static uint8_t bits[N_MAX / 8 + 1];
    for (size_t n = 64; n <= N_MAX; n += 64) {
        for (size_t i = 0; i < n; i++) {
            a[i] = (float)next(9) - 4;
            b[i] = (float)next(9) - 4; /* equal now and then */
        }
        bits[n / 8] = 0xAB;
        set->signs_f32(a, b, n, bits);
        for (size_t i = 0; i < n; i++)
            EXPECT((bits[i / 8] >> i % 8 & 1) == (a[i] >= b[i]), "%s: %zu of %zu", set->isa, i, n);
        EXPECT(bits[n / 8] == 0xAB, "%s: wrote past the bits", set->isa);
    }
}

static void near_ones_are_those_under_the_limit(const struct sk_kernels *set)
{
    int16_t adds[SK_SCAN_BLOCK];
    uint8_t factors[SK_SCAN_BLOCK];
    uint32_t ids[SK_SCAN_BLOCK];
    uint16_t sums[SK_SCAN_BLOCK];
    for (unsigned n = 0; n < 3000; n++) {
        struct sk_near_block block = {.count = n % (SK_SCAN_BLOCK + 1),
                                      .adds = adds,
                                      .factors = factors,
                                      .ids = ids,
                                      .base = (float)next(1000) / 300,
                                      .add_scale = (float)next(1000) * 1e-7F,
                                      .factor_scale = (float)next(1000) * 1e-8F,
                                      .bias = -(float)next(20000)};
        block.limit = n % 7 == 0   ? INFINITY
                      : n % 7 == 1 ? -INFINITY
                                   : block.base + ((float)next(1000) - 500) * 1e-3F;
        for (unsigned k = 0; k < SK_SCAN_BLOCK; k++) {
            adds[k] = (int16_t)((int)next(65535) - 32767);
            factors[k] = (uint8_t)next(256);
            ids[k] = k >= block.count ? UINT32_MAX : next(0x7FFFFFFF);
            sums[k] = (uint16_t)next(65536);
        }
        uint64_t want[SK_SCAN_BLOCK], keys[SK_NEAR_KEYS_MAX];
        size_t want_count = 0;
        for (unsigned k = 0; k < block.count; k++) {
            volatile float far = block.add_scale * (float)adds[k];
            far = block.base + far;
            volatile float factor = block.factor_scale * (float)factors[k];
            volatile float dot = (float)sums[k] + block.bias;
            dot = factor * dot;
            const float distance = far - dot;
            if (distance < block.limit)
                want[want_count++] =
                    (uint64_t)sk_float_ordered(distance) << 32 | (uint64_t)ids[k] << 1;
        }
        const size_t count = set->near_x32(&block, sums, keys);
        EXPECT(count == want_count, "%s: %zu are near, want %zu", set->isa, count, want_count);
        for (size_t i = 0; i < count && i < want_count; i++)
            EXPECT(keys[i] == want[i], "%s: key %zu is %llx, want %llx", set->isa, i,
                   (unsigned long long)keys[i], (unsigned long long)want[i]);
    }
}

static int compare(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void a_merged_list_holds_the_smallest(const struct sk_kernels *set)
{
    uint64_t list[CAPACITY_MAX + 1], all[CAPACITY_MAX + SK_NEAR_KEYS_MAX], keys[SK_NEAR_KEYS_MAX];
    for (size_t capacity = 8; capacity <= CAPACITY_MAX; capacity += 8)
        for (unsigned n = 0; n < 60; n++) {
            const size_t filled = n == 0 ? 0 : next((uint32_t)capacity + 1);
            const size_t count = next(SK_NEAR_KEYS_MAX + 1);
            for (size_t i = 0; i < capacity; i++)
                list[i] = i < filled ? (uint64_t)next(1000) << (n % 2 == 0 ? 53 : 0) : UINT64_MAX;
            qsort(list, filled, sizeof *list, compare);
            for (size_t i = 0; i < count; i++)
                keys[i] = (uint64_t)next(1000) << (n % 2 == 0 ? 53 : 0);
            memcpy(all, list, capacity * sizeof *all);
            memcpy(all + capacity, keys, count * sizeof *all);
            qsort(all, capacity + count, sizeof *all, compare);
            list[capacity] = 0xAB;
            set->merge_keys(list, capacity, keys, count);
            EXPECT(memcmp(list, all, capacity * sizeof *all) == 0, "%s: %zu into %zu of %zu",
                   set->isa, count, filled, capacity);
            EXPECT(list[capacity] == 0xAB, "%s: wrote past the list", set->isa);
        }
}

int main(void)
{
    const char *name;
    for (unsigned at = 0; (name = sk_kernels_name(at)) != NULL; at++) {
        tables_hold_sums_of_signs(sk_kernels_get(name));
        bits_are_signs_of_differences(sk_kernels_get(name));
        near_ones_are_those_under_the_limit(sk_kernels_get(name));
        a_merged_list_holds_the_smallest(sk_kernels_get(name));
    }
    printf("%u checks, %u failed\n", checked_count, failed_count);
    return failed_count == 0 ? 0 : 1;
}
