/* Between envelope.c and codec.c only. */
#ifndef SK_CODEC_INTERNAL_H
#define SK_CODEC_INTERNAL_H

#include "proto/codec.h"

enum { ENVELOPE_V = 1, ENVELOPE_OP = 2, ENVELOPE_ID = 4, ENVELOPE_DEADLINE = 8, ENVELOPE_COLLECTION = 16 };

/* The bit of a member of the envelope; 0 for other keys. */
unsigned sk_codec_envelope_bit(struct sk_span key);
/* The head of the request's map. */
enum sk_err sk_codec_read_head(struct sk_reader *from, struct sk_span frame, uint32_t *count,
                               struct sk_diag *d);
/* An error from deep inside a field names that field, unless it names a closer one. Returns err. */
enum sk_err sk_codec_name_field(struct sk_diag *d, enum sk_err err, struct sk_span name);

#endif
