/* The keeper's state: keys and values that change only together, in compare-and-set transactions, and
 * are told to a watcher in the order in which they changed. This is all that the keeper knows of its
 * storage. The engine here is LMDB for a keeper of one; an engine for three or more keepers implements
 * the same four functions.
 *
 * Keys are 1 to 255 bytes, values at most 1 MiB.
 * Thread: commit may run in another thread than the rest, but never at the same time as them. */
#ifndef SK_KEEPER_STATE_H
#define SK_KEEPER_STATE_H

#include "common/base/err.h"
#include "common/base/span.h"

enum { SK_STATE_KEY_BYTES_MAX = 255, SK_STATE_VALUE_BYTES_MAX = 1024 * 1024, SK_STATE_FORMAT = 1 };

struct sk_state_pair {
    struct sk_span key;
    struct sk_span value; /* bytes NULL: there is none (compare), remove it (change) */
};

/* All of it borrowed for the call. */
struct sk_state_txn {
    const struct sk_state_pair *compares; /* all must hold, or nothing changes */
    unsigned compare_count;
    const struct sk_state_pair *changes;
    unsigned change_count;
    bool is_release; /* it gives room back: may use what is kept for a full disk */
};

/* One pair, borrowed for the call; value.bytes NULL: removed; key.bytes NULL: forget everything, all
 * pairs follow. An error ends the watch, which begins anew with everything next time. */
typedef enum sk_err (*sk_state_visit)(void *arg, const struct sk_state_pair *pair, struct sk_diag *d);

struct sk_state {
    void *impl;
    /* Durable when it returns OK. *is_applied false with OK: a compare did not hold. DISK_FULL, NOMEM:
     * nothing changed. UNAVAILABLE: the outcome could not be learned; the next watch tells it. */
    enum sk_err (*commit)(void *impl, const struct sk_state_txn *txn, bool *is_applied,
                          struct sk_diag *d);
    /* What changed since the last call, in order; the first call tells everything. */
    enum sk_err (*watch)(void *impl, sk_state_visit visit, void *arg, struct sk_diag *d);
    void (*close)(void *impl);
};

struct sk_state_lmdb_config {
    const char *folder;  /* made when it is not there (its parent must be); 0700 */
    uint64_t bytes_max;  /* the most that the state can grow to; 0 = 64 MiB */
    uint64_t room_bytes; /* kept back for a full disk; 0 = 256 KiB */
    bool no_sync;        /* tests/sim only */
};

/* UNAVAILABLE: the folder cannot be used, or another keeper uses it. VERSION: of another format, older
 * or newer, or not a database. DISK_FULL. On success out->close frees everything. */
SK_CHECKED enum sk_err sk_state_lmdb_open(struct sk_state *out,
                                          const struct sk_state_lmdb_config *config,
                                          struct sk_diag *d);

#endif
