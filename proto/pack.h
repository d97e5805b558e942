/* Reading and writing msgpack.
 *
 * Writing goes through msgpack-c's packer into a growing buffer. Reading does not: msgpack-c 4.0
 * answers five hostile bytes with a 512 MiB malloc. This reader allocates nothing, compares what a
 * value claims with what is left before it touches a byte, and bounds depth and counts.
 * Thread: none of these share anything. */
#ifndef SK_PACK_H
#define SK_PACK_H

#include "common/base/err.h"
#include "common/base/span.h"

enum { SK_PACK_DEPTH_MAX = 32 };

/* A growing run of bytes. Once memory is out is_broken stays true and writes do nothing, so that one
 * check at the end is enough. */
struct sk_buffer {
    uint8_t *bytes; /* owned */
    size_t size;
    size_t capacity;
    bool is_broken;
};

void sk_buffer_deinit(struct sk_buffer *self);
void sk_buffer_clear(struct sk_buffer *self); /* keeps the memory */
/* Room for `more` bytes at the end, which now belong to the buffer; NULL when broken. */
uint8_t *sk_buffer_grow(struct sk_buffer *self, size_t more);
void sk_buffer_append(struct sk_buffer *self, const void *bytes, size_t size);
SK_CHECKED enum sk_err sk_buffer_check(const struct sk_buffer *self, struct sk_diag *d); /* NOMEM */
static inline struct sk_span sk_buffer_span(const struct sk_buffer *self)
{
    return sk_span_of(self->bytes, self->size);
}

void sk_put_nil(struct sk_buffer *to);
void sk_put_bool(struct sk_buffer *to, bool value);
void sk_put_u64(struct sk_buffer *to, uint64_t value);
void sk_put_i64(struct sk_buffer *to, int64_t value);
void sk_put_f32(struct sk_buffer *to, float value);
void sk_put_f64(struct sk_buffer *to, double value);
void sk_put_text(struct sk_buffer *to, const char *text);
void sk_put_text_of(struct sk_buffer *to, struct sk_span text);
void sk_put_bin(struct sk_buffer *to, const void *bytes, size_t size);
/* The head of a bin of size bytes; the caller grows the buffer by them. */
void sk_put_bin_head(struct sk_buffer *to, size_t size);
void sk_put_array(struct sk_buffer *to, size_t count);
void sk_put_map(struct sk_buffer *to, size_t count);
void sk_put_raw(struct sk_buffer *to, struct sk_span packed); /* one value, packed already */
/* A map or array whose count is known only at its end: five bytes that sk_put_count_at fills. */
size_t sk_put_map_open(struct sk_buffer *to);
size_t sk_put_array_open(struct sk_buffer *to);
void sk_put_count_at(struct sk_buffer *to, size_t at, uint32_t count);

enum sk_value_kind {
    SK_VALUE_NIL,
    SK_VALUE_BOOL,
    SK_VALUE_UNSIGNED, /* u64 */
    SK_VALUE_NEGATIVE, /* i64 below 0 */
    SK_VALUE_FLOAT,    /* f64; float32 widened */
    SK_VALUE_TEXT,     /* span; UTF-8 is not checked here */
    SK_VALUE_BIN,      /* span */
    SK_VALUE_ARRAY,    /* count values follow */
    SK_VALUE_MAP,      /* count pairs follow */
};

struct sk_value {
    enum sk_value_kind kind;
    bool boolean;
    uint32_t count;
    uint64_t u64;
    int64_t i64;
    double f64;
    struct sk_span span;
};

/* at..end is borrowed. */
struct sk_reader {
    const uint8_t *at;
    const uint8_t *end;
};

static inline struct sk_reader sk_reader_of(struct sk_span bytes)
{
    /* a span that is absent reads as an empty one */
    return (struct sk_reader){bytes.bytes, bytes.size == 0 ? bytes.bytes : bytes.bytes + bytes.size};
}
static inline size_t sk_reader_left(const struct sk_reader *self)
{
    return (size_t)(self->end - self->at);
}

const char *sk_value_kind_name(enum sk_value_kind kind); /* "an array", for error texts */
/* The head of the next value. INVALID: cut short, an extension type, a byte that begins no value, a
 * count of more values than there are bytes left. */
SK_CHECKED enum sk_err sk_read(struct sk_reader *self, struct sk_value *out, struct sk_diag *d);
/* A key of a map: INVALID unless it is text. */
SK_CHECKED enum sk_err sk_read_key(struct sk_reader *self, struct sk_span *out, struct sk_diag *d);
/* Over one whole value, `depth` levels at most. */
SK_CHECKED enum sk_err sk_skip(struct sk_reader *self, unsigned depth, struct sk_diag *d);
/* The same, and the bytes of it. */
SK_CHECKED enum sk_err sk_read_raw(struct sk_reader *self, unsigned depth, struct sk_span *out,
                                   struct sk_diag *d);
/* What is left must be nothing. */
SK_CHECKED enum sk_err sk_read_end(const struct sk_reader *self, struct sk_diag *d);
/* Numbers as a double; false for anything else. */
bool sk_value_number(const struct sk_value *value, double *out);
bool sk_value_i64(const struct sk_value *value, int64_t *out); /* integers in range only */

#endif
