/* The requests in flight: found by number, woken by time, bounded by count and bytes. */
#include "actors/router/internal.h"

#include <stdlib.h>
#include <string.h>

uint64_t now_us(const struct sk_router *self)
{
    return self->io->mono_us(self->io->impl);
}

enum sk_err flight_init(struct sk_router *self, struct sk_diag *d)
{
    uint32_t slots = 64;
    while (slots < self->config.requests_in_flight_max * 2)
        slots *= 2;
    self->table_mask = slots - 1;
    self->table = calloc(slots, sizeof(struct request *));
    self->heap = calloc(self->config.requests_in_flight_max, sizeof(struct request *));
    if (self->table == NULL || self->heap == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for %u requests in flight",
                       self->config.requests_in_flight_max);
    return SK_ERR_OK;
}

void flight_deinit(struct sk_router *self)
{
    while (self->requests != NULL)
        request_free(self, self->requests);
    free(self->table);
    free(self->heap);
}

/* ---- by number ---- */

/* Numbers are given out in sequence, so that the low bits spread them well enough. */
static void table_put(struct sk_router *self, struct request *request)
{
    uint32_t at = (uint32_t)request->number & self->table_mask;
    while (self->table[at] != NULL)
        at = (at + 1) & self->table_mask;
    self->table[at] = request;
}

static void table_remove(struct sk_router *self, const struct request *request)
{
    uint32_t hole = (uint32_t)request->number & self->table_mask;
    while (self->table[hole] != request)
        hole = (hole + 1) & self->table_mask;
    for (uint32_t at = hole;;) {
        at = (at + 1) & self->table_mask;
        struct request *other = self->table[at];
        if (other == NULL)
            break;
        /* it may move into the hole unless its home lies after the hole */
        uint32_t home = (uint32_t)other->number & self->table_mask;
        if (((at - home) & self->table_mask) >= ((at - hole) & self->table_mask)) {
            self->table[hole] = other;
            hole = at;
        }
    }
    self->table[hole] = NULL;
}

struct request *request_find(const struct sk_router *self, uint64_t number)
{
    uint32_t at = (uint32_t)number & self->table_mask;
    while (self->table[at] != NULL && self->table[at]->number != number)
        at = (at + 1) & self->table_mask;
    return self->table[at];
}

void request_renumber(struct sk_router *self, struct request *request)
{
    table_remove(self, request);
    request->number = self->number_next++;
    table_put(self, request);
}

/* ---- by time ---- */

static void heap_set(struct sk_router *self, uint32_t at, struct request *request)
{
    self->heap[at] = request;
    request->heap_at = at;
}

static void heap_up(struct sk_router *self, uint32_t at)
{
    struct request *request = self->heap[at];
    while (at > 0 && self->heap[(at - 1) / 2]->wake_us > request->wake_us) {
        heap_set(self, at, self->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_set(self, at, request);
}

static void heap_down(struct sk_router *self, uint32_t at)
{
    struct request *request = self->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= self->request_count)
            break;
        if (child + 1 < self->request_count &&
            self->heap[child + 1]->wake_us < self->heap[child]->wake_us)
            child++;
        if (self->heap[child]->wake_us >= request->wake_us)
            break;
        heap_set(self, at, self->heap[child]);
        at = child;
    }
    heap_set(self, at, request);
}

void request_wake_at(struct sk_router *self, struct request *request, uint64_t wake_us)
{
    uint64_t before = request->wake_us;
    request->wake_us = wake_us;
    if (wake_us < before)
        heap_up(self, request->heap_at);
    else if (wake_us > before)
        heap_down(self, request->heap_at);
}

uint64_t flight_next_us(const struct sk_router *self)
{
    return self->request_count != 0 ? self->heap[0]->wake_us : UINT64_MAX;
}

struct request *flight_due(const struct sk_router *self, uint64_t now)
{
    return self->request_count != 0 && self->heap[0]->wake_us <= now ? self->heap[0] : NULL;
}

/* ---- life ---- */

/* The same span in the copy of the frame. */
static struct sk_span moved(struct sk_span span, const uint8_t *from, const uint8_t *to)
{
    return span.bytes != NULL ? sk_span_of(to + (span.bytes - from), span.size) : span;
}

enum sk_err request_new(struct sk_router *self, struct request **out, sk_peer from,
                        enum sk_role role, const struct sk_envelope *envelope,
                        struct sk_span frame, struct sk_diag *d)
{
    *out = NULL;
    if (self->request_count >= self->config.requests_in_flight_max)
        return sk_fail(d, SK_ERR_BUSY, "%u requests are in flight, the most is %u",
                       self->request_count, self->config.requests_in_flight_max);
    if (self->bytes + frame.size > self->config.bytes_in_flight_max)
        return sk_fail(d, SK_ERR_BUSY, "requests of %llu bytes are in flight, the most is %llu",
                       (unsigned long long)self->bytes,
                       (unsigned long long)self->config.bytes_in_flight_max);
    struct request *request = malloc(sizeof *request + frame.size);
    if (request == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for a request of %zu bytes", frame.size);
    memset(request, 0, sizeof *request);
    memcpy(request->frame, frame.bytes, frame.size);
    request->size = frame.size;
    request->number = self->number_next++;
    request->client = from;
    request->op = envelope->op;
    request->role = role;
    request->id = envelope->id;
    request->id.text = moved(envelope->id.text, frame.bytes, request->frame);
    request->collection = moved(envelope->collection, frame.bytes, request->frame);
    request->deadline_ms = envelope->deadline_ms;
    request->arrived_us = now_us(self);
    request->deadline_us = request->arrived_us + (uint64_t)envelope->deadline_ms * 1000;
    request->wake_us = request->deadline_us;
    request->before = self->requests_last;
    if (request->before != NULL)
        request->before->after = request;
    else
        self->requests = request;
    self->requests_last = request;
    table_put(self, request);
    self->heap[self->request_count] = request;
    heap_up(self, self->request_count++);
    request_charge(self, request, frame.size);
    *out = request;
    return SK_ERR_OK;
}

static void parts_free(struct request *request)
{
    for (uint32_t p = 0; p < request->part_count; p++) {
        sk_buffer_deinit(&request->parts[p].frame);
        sk_buffer_deinit(&request->parts[p].body);
    }
    if (request->parts != &request->one)
        free(request->parts);
    request->parts = NULL;
    request->part_count = 0;
}

void request_free(struct sk_router *self, struct request *request)
{
    table_remove(self, request);
    if (request->before != NULL)
        request->before->after = request->after;
    else
        self->requests = request->after;
    if (request->after != NULL)
        request->after->before = request->before;
    else
        self->requests_last = request->before;
    struct request *last = self->heap[--self->request_count];
    if (last != request) {
        heap_set(self, request->heap_at, last);
        heap_up(self, last->heap_at);
        heap_down(self, last->heap_at);
    }
    SK_CHECK(self->bytes >= request->charged);
    self->bytes -= request->charged;
    parts_free(request);
    sk_buffer_deinit(&request->kept);
    free(request->decoded);
    free(request);
}

bool request_make_parts(struct sk_router *self, struct request *request, uint32_t count)
{
    (void)self;
    parts_free(request);
    request->parts = count == 1 ? &request->one : calloc(count, sizeof *request->parts);
    if (request->parts == NULL)
        return false;
    memset(&request->one, 0, sizeof request->one);
    request->part_count = count;
    request->pending = 0;
    return true;
}

void request_charge(struct sk_router *self, struct request *request, size_t bytes)
{
    request->charged += bytes;
    self->bytes += bytes;
}
