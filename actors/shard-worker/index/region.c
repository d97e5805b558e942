/* Arrays that never move: address space is reserved once, memory is committed as rows come. */
#include "actors/shard-worker/index/internal.h"

#include <sys/mman.h>

#ifndef MADV_COLLAPSE /* Linux 6.1; before that it is refused, and the kernel does it by and by */
#define MADV_COLLAPSE 25
#endif
#define HUGE_BYTES ((size_t)2 << 20)
#define SMALL_STEP_BYTES ((size_t)64 << 10)
#define HUGE_FROM_BYTES ((size_t)8 << 20) /* smaller arrays are not worth huge pages */
/* Up to here an array grows by less than a huge page at a time, so that nothing is committed in vain, and
 * small pages are made a huge one when they fill it. */
#define FINE_BELOW_BYTES ((size_t)64 << 20)
#define FINE_STEP_BYTES ((size_t)256 << 10)

bool sk_region_reserve(struct sk_region *self, size_t bytes)
{
    size_t reserved = (bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    size_t mapped_bytes = reserved + HUGE_BYTES;
    *self = (struct sk_region){0};
    uint8_t *mapped =
        mmap(NULL, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED)
        return false;
    size_t before = (HUGE_BYTES - (uintptr_t)mapped % HUGE_BYTES) % HUGE_BYTES;
    if (before > 0)
        munmap(mapped, before);
    if (before < HUGE_BYTES)
        munmap(mapped + before + reserved, HUGE_BYTES - before);
    self->base = mapped + before;
    self->reserved = reserved;
    return true;
}

void sk_region_release(struct sk_region *self)
{
    if (self->base != NULL)
        munmap(self->base, self->reserved);
    *self = (struct sk_region){0};
}

void sk_region_empty(struct sk_region *self)
{
    if (self->committed == 0)
        return;
    (void)madvise(self->base, self->committed, MADV_DONTNEED);
    (void)mprotect(self->base, self->committed, PROT_NONE); /* it stays usable where this fails */
    self->committed = 0;
}

/* Nothing moves when it grows, so steps may be small: little is committed in vain. */
static size_t target(const struct sk_region *self, size_t bytes)
{
    size_t wanted = self->committed + self->committed / 64;
    if (wanted < bytes)
        wanted = bytes;
    const size_t step = wanted >= FINE_BELOW_BYTES  ? HUGE_BYTES
                        : wanted >= HUGE_FROM_BYTES ? FINE_STEP_BYTES
                                                    : SMALL_STEP_BYTES;
    wanted = (wanted + step - 1) / step * step;
    return wanted < self->reserved ? wanted : self->reserved;
}

size_t sk_region_growth(const struct sk_region *self, size_t bytes)
{
    return bytes <= self->committed ? 0 : target(self, bytes) - self->committed;
}

bool sk_region_commit(struct sk_region *self, size_t bytes)
{
    if (bytes <= self->committed)
        return true;
    if (bytes > self->reserved)
        return false;
    size_t wanted = target(self, bytes);
    if (mprotect(self->base + self->committed, wanted - self->committed, PROT_READ | PROT_WRITE) !=
        0)
        return false;
    if (wanted >= HUGE_FROM_BYTES) {
        (void)madvise(self->base, wanted, MADV_HUGEPAGE); /* everything works without */
        /* those that were in use as small pages before and are whole now */
        size_t from = self->committed < HUGE_FROM_BYTES ? 0 : self->committed / HUGE_BYTES * HUGE_BYTES;
        size_t to = (self->committed + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
        if (self->committed > 0 && to > wanted)
            to = wanted / HUGE_BYTES * HUGE_BYTES;
        if (self->committed > 0 && to > from)
            (void)madvise(self->base + from, to - from, MADV_COLLAPSE);
    }
    self->committed = wanted;
    return true;
}
