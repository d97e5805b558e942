/* Messages between the processes of a node: a fixed header, then a body.
 * Little-endian; 80 bytes. The body of a request is the client's frame, untouched unless it had to be
 * split; the body of a reply is the whole reply map for the client. */
#ifndef SK_LINK_H
#define SK_LINK_H

#include "proto/codec.h"

enum { SK_LINK_HEADER_BYTES = 80, SK_LINK_MAGIC = 0x314B4C53 /* "SLK1" */ };

enum sk_link_kind {
    SK_LINK_REQUEST = 1,
    SK_LINK_REPLY = 2,
    SK_LINK_HELLO = 3, /* worker -> router: body {number, pid, incarnation}; its shards are open */
    SK_LINK_STATS = 4, /* worker -> router: body is a stats map; router -> worker, no body: tell them now,
                        * with this number in `request` */
    SK_LINK_HINT = 5,  /* keeper's PUB: map_version only */
    SK_LINK_GOODBYE = 6,
};

struct sk_link_header {
    enum sk_link_kind kind;
    enum sk_err status;     /* of a reply */
    enum sk_role role;      /* of the caller */
    uint16_t shard;
    uint16_t worker;        /* number of the worker that speaks */
    uint64_t request;       /* the router's number, echoed by the reply */
    uint32_t deadline_ms;   /* what is left, 0 = past */
    uint32_t schema_version;
    uint8_t collection[16]; /* uuid, zero where none is meant */
    uint64_t incarnation;   /* stamp of a write; 0 = a read */
    uint64_t sequence;
    uint64_t map_version;   /* keeper's replies and hints */
    bool is_part;           /* one of several shards: the body was re-encoded for this shard */
};

void sk_link_header_encode(uint8_t out[SK_LINK_HEADER_BYTES], const struct sk_link_header *header);
/* body is borrowed from bytes. INVALID: too short, another magic, a kind that does not exist. */
SK_CHECKED enum sk_err sk_link_decode(struct sk_link_header *out, struct sk_span *body,
                                      struct sk_span bytes, struct sk_diag *d);

#endif
