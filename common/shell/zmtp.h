/* ZMTP 3.x with the NULL mechanism: the bytes that ZeroMQ's sockets exchange over an ipc connection.
 * greeting, READY command, then messages of frames. Pure functions; every byte read here is hostile.
 * https://rfc.zeromq.org/spec/23/ (3.0) and 37 (3.1: PING, PONG). */
#ifndef SK_ZMTP_H
#define SK_ZMTP_H

#include "common/base/err.h"
#include "common/base/span.h"

enum {
    SK_ZMTP_GREETING_BYTES = 64,
    SK_ZMTP_HEAD_BYTES_MAX = 9,
    SK_ZMTP_IDENTITY_BYTES_MAX = 255,
    SK_ZMTP_READY_BYTES_MAX = 320,
    SK_ZMTP_COMMAND_BYTES_MAX = 4096,
};

void sk_zmtp_greeting(uint8_t out[SK_ZMTP_GREETING_BYTES]);
/* The first `size` bytes of a greeting; false: no ZMTP 3 peer, or it wants another mechanism. */
bool sk_zmtp_greeting_check(const uint8_t *in, size_t size);
/* The READY command with its frame; returns its bytes. socket_type: "ROUTER", "DEALER". */
size_t sk_zmtp_ready(uint8_t out[SK_ZMTP_READY_BYTES_MAX], const char *socket_type,
                     struct sk_span identity);
/* The body of a command frame; false: it is no READY of a socket that may talk to `own_type`.
 * *identity is borrowed, empty where the peer names none. */
bool sk_zmtp_ready_read(struct sk_span command, const char *own_type, struct sk_span *identity);

struct sk_zmtp_frame {
    bool has_more, is_command;
    uint8_t head_bytes;
    uint64_t size; /* of the body */
};
/* 1: read; 0: more bytes are wanted; -1: malformed. */
int sk_zmtp_head_read(struct sk_zmtp_frame *out, const uint8_t *in, size_t size);
/* Returns its bytes. */
size_t sk_zmtp_head(uint8_t out[SK_ZMTP_HEAD_BYTES_MAX], uint64_t size, bool has_more,
                    bool is_command);
/* The body of a PING: the PONG to answer with, as a whole frame; 0: it is no PING. */
size_t sk_zmtp_pong(uint8_t out[64], struct sk_span command);

#endif
