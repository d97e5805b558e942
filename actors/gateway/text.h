/* Writing the Prometheus text format. */
#ifndef SK_GATEWAY_TEXT_H
#define SK_GATEWAY_TEXT_H

#include "proto/pack.h"

struct sk_label {
    const char *name;
    struct sk_span value; /* any bytes: escaped, and what is not UTF-8 is replaced */
};

/* # HELP and # TYPE. */
void sk_text_head(struct sk_buffer *to, const char *name, const char *type, const char *help);
/* name + suffix, labels, value. */
void sk_text_u64(struct sk_buffer *to, const char *name, const char *suffix,
                 const struct sk_label *labels, unsigned label_count, uint64_t value);
void sk_text_f64(struct sk_buffer *to, const char *name, const char *suffix,
                 const struct sk_label *labels, unsigned label_count, double value);

#endif
