/* What the files of libskerry share. Not installed. */
#ifndef SK_CLIENT_INTERNAL_H
#define SK_CLIENT_INTERNAL_H

#include "common/base/err.h"
#include "common/base/span.h"
#include "proto/client/skerry.h"
#include "proto/codec.h"

/* ---- Errors (error.c) ---- */

/* Fill error and return its code; the forms of sk_fail for the public struct. */
enum skerry_code sk_client_fail(struct skerry_error *error, enum skerry_code code,
                                const char *format, ...) SK_PRINTF(3, 4);
enum skerry_code sk_client_fail_field(struct skerry_error *error, enum skerry_code code,
                                      const char *field, const char *format, ...) SK_PRINTF(4, 5);
enum skerry_code sk_client_unreachable(struct skerry_error *error, enum skerry_code code,
                                       const char *format, ...) SK_PRINTF(3, 4);

/* ---- Writing a frame (frame.c) ---- */

/* A request being written: the head of fixed size is patched when it is sent, so that the fields
 * are written once and never copied. */
struct sk_frame {
    struct sk_buffer wire;
    size_t id_at;
    size_t deadline_at;
    uint32_t field_count; /* beside the head's own */
};

void sk_frame_begin(struct sk_frame *self, const char *op);
void sk_frame_deinit(struct sk_frame *self);
void sk_frame_key(struct sk_frame *self,
                  const char *name); /* a field's name; its value comes next */
/* The members of a msgpack map, as fields. */
enum skerry_code sk_frame_fields(struct sk_frame *self, struct skerry_bytes map,
                                 struct skerry_error *error);

/* ---- Reading ---- */

/* The next value's head; what exactly is wrong with a reply's bytes is told to nobody. */
static inline bool sk_scan_next(struct sk_reader *self, struct sk_value *out)
{
    return sk_read(self, out, NULL) == SK_ERR_OK;
}

/* Steps over one whole value; out, if not NULL, gets its bytes. */
static inline bool sk_scan_skip(struct sk_reader *self, struct sk_span *out)
{
    struct sk_span bytes;
    if (sk_read_raw(self, SK_PACK_DEPTH_MAX, &bytes, NULL) != SK_ERR_OK)
        return false;
    if (out != NULL)
        *out = bytes;
    return true;
}

/* ---- The connection (connection.c) ---- */

/* skerry_connect, or the same without the ping (the supervisor's own socket answers none). */
struct skerry *sk_client_open(const char *target, const struct skerry_options *options,
                              bool is_greeted, struct skerry_error *error);

/* Takes the frame's bytes (also when it fails). */
enum skerry_code sk_connection_call(struct skerry *self, struct sk_frame *frame,
                                    uint32_t deadline_ms, struct skerry_reply **out,
                                    struct skerry_error *error);
enum skerry_code sk_connection_submit(struct skerry *self, struct sk_frame *frame,
                                      uint32_t deadline_ms, uint64_t *ticket,
                                      struct skerry_error *error);

/* ---- Replies (reply.c) ---- */

/* Takes the bytes: memory is what free() ends, or NULL when the reply has no frame but an error. */
struct skerry_reply *sk_reply_new_error(const struct skerry_error *error);
struct skerry_reply *sk_reply_new_message(void *zmq_message); /* a zmq_msg_t, taken */
/* The request id of a reply frame; false where it is nil, text or unreadable. */
bool sk_reply_request_id(struct sk_span frame, uint64_t *id);
/* A member of the reply's map as its whole msgpack value; bytes NULL where there is none. */
struct sk_span sk_reply_member(const struct skerry_reply *self, const char *name);

/* ---- Keys (keyfile.c) ---- */

enum { SK_Z85_KEY_CHARS = 40 };
/* Z85 text, or a file that holds a public key. out gets 41 bytes. */
enum skerry_code sk_keyfile_public(const char *key_or_path, char *out, struct skerry_error *error);
/* Both keys of a client; the file's mode must not let others in. */
enum skerry_code sk_keyfile_secret(const char *path, char *public_key, char *secret_key,
                                   struct skerry_error *error);

/* ---- Where a node is (endpoint.c) ---- */

enum { SK_ENDPOINT_BYTES = 300 };

struct sk_endpoint {
    char text[SK_ENDPOINT_BYTES]; /* what ZeroMQ connects to */
    bool is_curve;
    char server_key[SK_Z85_KEY_CHARS + 1];
    char public_key[SK_Z85_KEY_CHARS + 1];
    char secret_key[SK_Z85_KEY_CHARS + 1]; /* the holder wipes it */
};

enum skerry_code sk_endpoint_resolve(struct sk_endpoint *self, const char *target,
                                     const struct skerry_options *options,
                                     struct skerry_error *error);

#endif
