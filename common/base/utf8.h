#ifndef SK_UTF8_H
#define SK_UTF8_H

#include "common/base/span.h"

/* RFC 3629: no overlong forms, no surrogates, at most U+10FFFF; NUL bytes are refused too, because
 * names and ids end up in C strings and logs. */
bool sk_utf8_valid(struct sk_span text);

#endif
