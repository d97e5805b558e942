/* Requests: from bytes to struct sk_request and back, driven by messages.def.
 *
 * Decoding allocates nothing and trusts nothing: depth, counts, lengths, limits, duplicates (by alias
 * too), unknown fields and trailing bytes are errors that name the field. Spans are borrowed from the
 * frame. Composite fields are checked for form here and read by the iterators of records.h, filter.h
 * and payload.h. Thread: any. */
#ifndef SK_CODEC_H
#define SK_CODEC_H

#include "common/base/id.h"
#include "proto/pack.h"

enum {
    SK_PROTOCOL_VERSION = 1,
    SK_NAME_BYTES_MAX = 64,
    SK_FRAME_BYTES_MAX = 32 * 1024 * 1024,
    SK_ROWS_MAX = 10000,
    SK_QUERIES_MAX = 1024,
    SK_LIMIT_MAX = 10000,
    SK_LIMIT_DEFAULT = 10,
    SK_EF_DEFAULT = 64,
    SK_DEADLINE_MS_DEFAULT = 5000,
    SK_DEADLINE_MS_MAX = 600000,
    SK_REQUEST_DEPTH_MAX = 24,
};
#define SK_TTL_S_MAX 10000000000L /* some 317 years */
#define SK_RECALL_MIN 0.5
#define SK_RECALL_MAX 0.999

enum sk_role { SK_ROLE_NONE = 0, SK_ROLE_READ = 1, SK_ROLE_WRITE = 2, SK_ROLE_ADMIN = 3, SK_ROLE_LINK = 4 };

enum sk_op {
    SK_OP_NONE = 0,
#define SK_OP(NAME, ...) SK_OP_##NAME,
#include "proto/messages.def"
#undef SK_OP
    SK_OPS_END
};

enum sk_field_kind {
    SK_KIND_name,          /* struct sk_span: text, see sk_name_check */
    SK_KIND_text,          /* struct sk_span: UTF-8 */
    SK_KIND_u32,           /* uint32_t, 1..limit */
    SK_KIND_u64,           /* uint64_t */
    SK_KIND_number,        /* double, finite */
    SK_KIND_flag,          /* bool */
    SK_KIND_flag_or_names, /* struct sk_selector */
    SK_KIND_id,            /* struct sk_id */
    SK_KIND_ids,           /* struct sk_list, every member checked to be an id */
    SK_KIND_list,          /* struct sk_list of any values */
    SK_KIND_raw,           /* struct sk_span: one packed value, well formed */
};

/* Members of an array, packed one after the other. */
struct sk_list {
    struct sk_span members;
    uint32_t count;
    bool is_present;
};

/* with_payload: false, true, or a list of top-level keys. */
struct sk_selector {
    bool is_wanted;
    struct sk_list names; /* is_present: only these */
};

struct sk_request_id {
    bool is_present;
    bool is_text;
    uint64_t number;
    struct sk_span text;
};

#define SK_TYPE_name struct sk_span
#define SK_TYPE_text struct sk_span
#define SK_TYPE_u32 uint32_t
#define SK_TYPE_u64 uint64_t
#define SK_TYPE_number double
#define SK_TYPE_flag bool
#define SK_TYPE_flag_or_names struct sk_selector
#define SK_TYPE_id struct sk_id
#define SK_TYPE_ids struct sk_list
#define SK_TYPE_list struct sk_list
#define SK_TYPE_raw struct sk_span

enum sk_field {
#define SK_FIELD(member, ...) SK_FIELD_##member,
#include "proto/messages.def"
#undef SK_FIELD
    SK_FIELD_COUNT
};

struct sk_request {
    enum sk_op op;
    struct sk_request_id id;
    uint32_t deadline_ms; /* the default where absent */
    uint64_t present;     /* bit of enum sk_field: the field was there (and not nil) */
#define SK_FIELD(member, name, kind, limit, aliases, help) SK_TYPE_##kind member;
#include "proto/messages.def"
#undef SK_FIELD
};

static inline bool sk_request_has(const struct sk_request *request, enum sk_field field)
{
    return (request->present >> field & 1) != 0;
}

/* What a door must know before it looks at the rest. */
struct sk_envelope {
    enum sk_op op;
    struct sk_request_id id;
    uint32_t deadline_ms;
    struct sk_span collection; /* bytes NULL where absent */
};

/* id is filled wherever it could be read, also on failure. VERSION for another v, INVALID for an
 * unknown op (with the closest name), UNKNOWN_FIELD is left to sk_request_decode. */
SK_CHECKED enum sk_err sk_envelope_decode(struct sk_envelope *out, struct sk_span frame,
                                          struct sk_diag *d);
/* Whole. Defaults are filled in (limit, ef, deadline_ms, mode). */
SK_CHECKED enum sk_err sk_request_decode(struct sk_request *out, struct sk_span frame,
                                         struct sk_diag *d);
/* Appends the request as one map: fields whose bit in `present` is set. */
void sk_request_encode(struct sk_buffer *to, const struct sk_request *request);

const char *sk_op_name(enum sk_op op);
enum sk_role sk_op_role(enum sk_op op);
bool sk_op_is_write(enum sk_op op); /* upsert, delete, set_payload */
const char *sk_role_name(enum sk_role role);
SK_CHECKED enum sk_err sk_role_parse(enum sk_role *out, struct sk_span text, struct sk_diag *d);
/* Collections, vectors, keys, snapshots: 1 to 64 of letters, digits, _ - . beginning with a letter or digit. */
SK_CHECKED enum sk_err sk_name_check(struct sk_span name, const char *field, struct sk_diag *d);
/* The candidate nearest to name (edit distance at most a third of it), or NULL. */
const char *sk_closest(struct sk_span name, const char *const *candidates, size_t count);

/* One id value: unsigned integer or text. */
SK_CHECKED enum sk_err sk_read_id(struct sk_reader *from, struct sk_id *out, struct sk_diag *d);
void sk_put_id(struct sk_buffer *to, const struct sk_id *id);
/* Next member of a list of ids that sk_request_decode has checked; false at the end. */
bool sk_ids_next(struct sk_reader *members, struct sk_id *out);
/* nil where there is none; id may be NULL. */
void sk_put_request_id(struct sk_buffer *to, const struct sk_request_id *id);

#endif
