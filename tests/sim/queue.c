/* What is going to happen, in order of its time; what is due at the same time in order of its
 * making. */
#include "tests/sim/world.h"

#include <stdlib.h>
#include <string.h>

static bool is_before(const struct event *a, const struct event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->sequence < b->sequence;
}

void world_push(struct world *self, struct event event)
{
    if (self->heap_count == self->heap_capacity) {
        self->heap_capacity = self->heap_capacity == 0 ? 256 : self->heap_capacity * 2;
        self->heap = realloc(self->heap, self->heap_capacity * sizeof(*self->heap));
        if (self->heap == NULL)
            abort();
    }
    event.sequence = ++self->sequence;
    size_t at = self->heap_count++;
    while (at > 0 && is_before(&event, &self->heap[(at - 1) / 2])) {
        self->heap[at] = self->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    self->heap[at] = event;
}

bool world_pop(struct world *self, struct event *out)
{
    if (self->heap_count == 0)
        return false;
    *out = self->heap[0];
    struct event last = self->heap[--self->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= self->heap_count)
            break;
        if (child + 1 < self->heap_count && is_before(&self->heap[child + 1], &self->heap[child]))
            child++;
        if (!is_before(&self->heap[child], &last))
            break;
        self->heap[at] = self->heap[child];
        at = child;
    }
    if (self->heap_count > 0)
        self->heap[at] = last;
    return true;
}

void world_push_bytes(struct world *self, enum event_kind kind, unsigned process, sk_peer from,
                      uint64_t delay_us, const void *bytes, size_t size)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    if (copy == NULL)
        abort();
    memcpy(copy, bytes, size);
    world_push(self, (struct event){.at_us = self->mono_us + delay_us,
                                    .kind = kind,
                                    .process = process,
                                    .from = from,
                                    .bytes = copy,
                                    .size = size});
}
