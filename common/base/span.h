/* A run of bytes that somebody else owns. The holder says until when it is borrowed. */
#ifndef SK_SPAN_H
#define SK_SPAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <stdbool.h>

struct sk_span {
    const uint8_t *bytes; /* NULL means absent; an empty run has size 0 and bytes not NULL */
    size_t size;
};

static inline struct sk_span sk_span_of(const void *bytes, size_t size)
{
    return (struct sk_span){bytes, size};
}

static inline struct sk_span sk_span_text(const char *text)
{
    return (struct sk_span){(const uint8_t *)text, strlen(text)};
}

static inline bool sk_span_equals(struct sk_span a, struct sk_span b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.bytes, b.bytes, a.size) == 0);
}

static inline bool sk_span_is(struct sk_span a, const char *text)
{
    return sk_span_equals(a, sk_span_text(text));
}

#endif
