/* Replies: one map {v, id, ok, ...}. Encoding opens a map of five-byte head, puts fields, closes it. */
#ifndef SK_REPLY_H
#define SK_REPLY_H

#include "proto/codec.h"

/* In all of them id may be NULL: the reply's id is nil. */
struct sk_reply_writer {
    struct sk_buffer *to;
    size_t at;
    uint32_t count;
};

/* {v, id, ok: true, ...: put fields with sk_reply_key and a value, then sk_reply_end. */
void sk_reply_begin(struct sk_reply_writer *self, struct sk_buffer *to,
                    const struct sk_request_id *id);
void sk_reply_key(struct sk_reply_writer *self, const char *name);
void sk_reply_end(struct sk_reply_writer *self);
/* The whole reply of an operation that has no fields. */
void sk_reply_ok(struct sk_buffer *to, const struct sk_request_id *id);
/* The whole error reply. d may be NULL or empty (then the meaning of the code is the text). */
void sk_reply_error(struct sk_buffer *to, const struct sk_request_id *id, enum sk_err code,
                    const struct sk_diag *d);
/* ... and with further members (packed pairs) inside `error`, e.g. which shards applied. */
void sk_reply_error_with(struct sk_buffer *to, const struct sk_request_id *id, enum sk_err code,
                         const struct sk_diag *d, uint32_t extra_count, struct sk_span extra_pairs);

/* A decoded reply; everything is borrowed from the frame. */
struct sk_reply {
    struct sk_request_id id;
    bool is_ok;
    enum sk_err code;
    struct sk_span error_field, error_message;
    bool is_retriable;
    struct sk_span map; /* the whole packed map */
};
SK_CHECKED enum sk_err sk_reply_decode(struct sk_reply *out, struct sk_span frame, struct sk_diag *d);
/* A member of a packed map by key: its packed value; false when missing. Also for nested maps. */
bool sk_map_member(struct sk_span packed_map, const char *key, struct sk_span *out);
/* The same, read; false when missing or of another kind. */
bool sk_map_member_u64(struct sk_span packed_map, const char *key, uint64_t *out);
bool sk_map_member_number(struct sk_span packed_map, const char *key, double *out); /* finite */
bool sk_map_member_text(struct sk_span packed_map, const char *key, struct sk_span *out);
bool sk_map_member_bool(struct sk_span packed_map, const char *key, bool *out);
bool sk_map_member_list(struct sk_span packed_map, const char *key, struct sk_list *out);

#endif
