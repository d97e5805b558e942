/* Inside kernels/ only: the sets that the build has. */
#ifndef SK_KERNELS_SET_H
#define SK_KERNELS_SET_H

#include "kernels/kernels.h"

extern const struct sk_kernels sk_kernels_scalar;
#if defined(__x86_64__)
extern const struct sk_kernels sk_kernels_avx2;
extern const struct sk_kernels sk_kernels_avx512;
#endif
#if defined(__aarch64__)
extern const struct sk_kernels sk_kernels_neon;
#endif

static inline void sk_prefetch_row(const uint8_t *base, size_t row_bytes, const uint32_t *rows,
                                   size_t count, size_t at)
{
    if (at < count)
        sk_prefetch(base + rows[at] * row_bytes, row_bytes);
}

#endif
