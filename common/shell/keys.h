/* Curve keys in files: lines `public-key = "Z85"` and `secret-key = "Z85"`. */
#ifndef SK_KEYS_H
#define SK_KEYS_H

#include "common/base/err.h"

enum { SK_KEY_TEXT_BYTES = 41 }; /* 40 characters of Z85 and NUL */

struct sk_keys {
    char public_key[SK_KEY_TEXT_BYTES];
    char secret_key[SK_KEY_TEXT_BYTES]; /* "" where only the public one was read */
};

/* FORBIDDEN: others could read the file ("... chmod 600 'DIR/keys/node.key'"); NOT_FOUND, INVALID.
 */
SK_CHECKED enum sk_err sk_keys_load(struct sk_keys *out, const char *path, struct sk_diag *d);
/* The public key alone, from a .pub or a .key file. */
SK_CHECKED enum sk_err sk_keys_load_public(struct sk_keys *out, const char *path,
                                           struct sk_diag *d);
/* Loads DIR/keys/<name>.key, or makes it (0600) and <name>.pub (0644) where there is none; durable
 * before it returns. A missing .pub is written again. */
SK_CHECKED enum sk_err sk_keys_load_or_make(struct sk_keys *out, const char *dir, const char *name,
                                            struct sk_diag *d);
void sk_keys_wipe(struct sk_keys *self);

#endif
