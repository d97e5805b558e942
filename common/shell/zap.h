/* Who is let in by CURVE: a ZAP handler of our own (inproc://zeromq.zap.01) and the live set of
 * keys.
 *
 * CZMQ's zauth can miss a revocation, and without a handler libzmq lets in every key. So: one set
 * in memory, asked at each handshake by the handler's thread and for each message by the reactor; a
 * revoked key is out at its next message. Make it before any socket is bound. Until the first
 * sk_zap_set nobody is answered and handshakes wait (a client that was refused once would not come
 * back by itself); anything that is not CURVE, or malformed, is refused.
 * Thread: any; a lock inside. One a process. */
#ifndef SK_ZAP_H
#define SK_ZAP_H

#include "proto/map.h"

struct sk_zap; /* opaque */

/* UNAVAILABLE: there is a handler already. *out is owned by the caller. */
SK_CHECKED enum sk_err sk_zap_new(struct sk_zap **out, struct sk_diag *d);
void sk_zap_destroy(struct sk_zap **self); /* after the reactor */
/* Replaces the set; keys are copied. NOMEM leaves the old one. */
SK_CHECKED enum sk_err sk_zap_set(struct sk_zap *self, const struct sk_map_key *keys,
                                  uint32_t count, struct sk_diag *d);
/* The role of a public key (40 characters of Z85); SK_ROLE_NONE when it is not in the set. */
enum sk_role sk_zap_role(struct sk_zap *self, const char *public_key);
uint64_t sk_zap_refused(struct sk_zap *self); /* handshakes refused since the start */

#endif
