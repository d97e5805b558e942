/* Errors: a number, a name, a reason.
 *
 * The numbers are on the wire: append only, never reuse (the table in proto/PROTOCOL.md is made from
 * this list). Every fallible function returns enum sk_err, is SK_CHECKED and takes a struct sk_diag
 * last; on failure its outputs are NULL or 0 and the diag says what was wrong and what would be right. */
#ifndef SK_ERR_H
#define SK_ERR_H

#include "common/base/check.h"

#include <stdbool.h>
#include <stddef.h>

/* name, number, wire name, retriable, meaning */
#define SK_ERRORS(X)                                                                               \
    X(OK, 0, "ok", false, "done")                                                                  \
    X(NOMEM, 1, "out_of_memory", false, "the memory budget of the collection or process is used")  \
    X(INVALID, 2, "invalid", false, "the request is not valid")                                    \
    X(UNKNOWN_FIELD, 3, "unknown_field", false, "a field or parameter that does not exist here")   \
    X(BUSY, 4, "busy", true, "a queue is full, try later")                                         \
    X(TOO_LARGE, 5, "too_large", false, "over a limit that has a name")                            \
    X(EXISTS, 6, "exists", false, "there is one with that name already")                           \
    X(DIM_MISMATCH, 7, "dim_mismatch", false, "the vector has another dimension than its field")   \
    X(UNAUTHORIZED, 8, "unauthorized", false, "the key is not known here, or was revoked")         \
    X(FORBIDDEN, 9, "forbidden", false, "the key's role does not allow this")                      \
    X(DEADLINE, 10, "deadline", true, "the deadline passed; the outcome of a write is unknown")    \
    X(UNAVAILABLE, 11, "unavailable", true,                                                        \
      "a part of the node does not answer; the outcome of a write is unknown")                     \
    X(NOT_FOUND, 12, "not_found", false, "there is no such thing")                                 \
    X(DISK_FULL, 13, "disk_full", true, "the disk is full; deletes and compaction still work")     \
    X(VERSION, 14, "version", false, "written by or for another version")                          \
    X(INTERNAL, 15, "internal", false, "a defect of ours; the log has more")

enum sk_err {
#define SK_ERR_ENUM(name, number, text, retriable, meaning) SK_ERR_##name = number,
    SK_ERRORS(SK_ERR_ENUM)
#undef SK_ERR_ENUM
};

enum { SK_DIAG_TEXT_BYTES = 400, SK_DIAG_FIELD_BYTES = 72 };

/* Owned by the caller, zero-initialised; the callee writes it only on failure. */
struct sk_diag {
    enum sk_err code;
    char field[SK_DIAG_FIELD_BYTES]; /* the request field or config key at fault, "" where none */
    char text[SK_DIAG_TEXT_BYTES];
};

const char *sk_err_name(enum sk_err err);    /* "not_found"; "unknown" for a number not in the list */
const char *sk_err_meaning(enum sk_err err);
bool sk_err_retriable(enum sk_err err);

/* Write code and text into d (NULL is allowed) and return code. The field is cleared. */
enum sk_err sk_fail(struct sk_diag *d, enum sk_err code, const char *format, ...) SK_PRINTF(3, 4);
/* The same and name the field at fault. */
enum sk_err sk_fail_field(struct sk_diag *d, enum sk_err code, const char *field, const char *format,
                          ...) SK_PRINTF(4, 5);
/* Put context before the text that is there: "shard 3: delete: no such row". Keeps code and field. */
enum sk_err sk_wrap(struct sk_diag *d, enum sk_err code, const char *format, ...) SK_PRINTF(3, 4);

#endif
