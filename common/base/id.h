/* Record ids: an unsigned 64-bit integer, a UUID, or another string of 1 to 64 bytes.
 *
 * Canonical bytes (ordered bytewise; what LMDB keys, shard slots and tests use):
 *   01 + 8 bytes big-endian | 02 + 16 bytes | 03 + the string.   5 is not "5".
 * A string that has the form of a UUID (36 characters, hex and dashes, either case) is a UUID and is
 * given back in lower case. Pinned by test vectors (tests/vectors/ids.txt). */
#ifndef SK_ID_H
#define SK_ID_H

#include "common/base/err.h"
#include "common/base/span.h"

enum { SK_ID_BYTES_MAX = 65, SK_ID_STRING_BYTES_MAX = 64, SK_ID_TEXT_BYTES = 72, SK_SLOT_COUNT = 4096 };
enum sk_id_kind { SK_ID_U64 = 1, SK_ID_UUID = 2, SK_ID_STRING = 3 };

struct sk_id {
    uint8_t size;                   /* 0 means no id */
    uint8_t bytes[SK_ID_BYTES_MAX]; /* canonical: tag, then content */
};

struct sk_id sk_id_from_u64(uint64_t value);
/* A UUID where the text has that form, else a string. INVALID when empty, over 64 bytes or not UTF-8. */
SK_CHECKED enum sk_err sk_id_from_string(struct sk_id *out, struct sk_span text, struct sk_diag *d);
/* From canonical bytes out of a file or a peer: INVALID unless they are exactly one id. */
SK_CHECKED enum sk_err sk_id_from_canonical(struct sk_id *out, struct sk_span bytes, struct sk_diag *d);
enum sk_id_kind sk_id_kind(const struct sk_id *id);
uint64_t sk_id_u64(const struct sk_id *id); /* SK_CHECKs the kind */
struct sk_span sk_id_canonical(const struct sk_id *id); /* borrowed from id */
int sk_id_compare(const struct sk_id *a, const struct sk_id *b); /* bytewise, shorter first */
/* The id as a person reads it: digits, lower-case UUID, or the string. Returns text. */
const char *sk_id_text(const struct sk_id *id, char text[SK_ID_TEXT_BYTES]);
/* XXH3_64(canonical) >> 52: 0..4095. A shard owns slots, see proto/map.h. */
uint32_t sk_id_slot(const struct sk_id *id);

#endif
