/* Checks that stay on in release builds. For our own bugs only: anything that a peer, an operator or a
 * disk can say is an error (err.h), never a check. */
#ifndef SK_CHECK_H
#define SK_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define SK_CHECK(condition)                                                                        \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "level=fatal event=check_failed file=%s line=%d check=\"%s\"\n",       \
                    __FILE__, __LINE__, #condition);                                               \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define SK_CHECKED __attribute__((warn_unused_result))
#define SK_PRINTF(format_at, args_at) __attribute__((format(printf, format_at, args_at)))
#define SK_LIKELY(x) __builtin_expect(!!(x), 1)
#define SK_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define SK_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* A planted bug: true only in builds with SK_MUTANTS when the variable SK_MUTANT names it. The tests
 * show that each one is caught; release builds compile it away. */
#ifdef SK_MUTANTS
#include <stdbool.h>
bool sk_mutant(const char *name);
#else
#define sk_mutant(name) (false)
#endif

#endif
