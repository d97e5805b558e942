/* cmocka wants these before it, in this order; clang-format must not sort them. */
#ifndef SK_TESTS_HARNESS_H
#define SK_TESTS_HARNESS_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#endif
