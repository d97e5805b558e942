/* One line a fact: `time=... level=warn process=router event=peer_gone peer=3`, on stderr.
 *
 * A line that repeats (same event) more than 10 times in 10 s is held back and counted; the next
 * one that is printed says held_back=N. The last 1,024 lines, printed or not, are kept and written
 * on a crash signal (SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL), before the default action. Never
 * log a key, a vector or a payload. Thread: any. */
#ifndef SK_LOG_H
#define SK_LOG_H

#include "common/base/check.h"
#include "common/base/note.h"

#include <stdint.h>

enum { SK_LOG_LINE_BYTES = 400, SK_LOG_KEPT = 1024 };

/* process: "shard-worker-0"; copied. Lines below `level` are kept, not printed. Sets up the crash
 * handler. */
void sk_log_start(const char *process, enum sk_level level);
/* format gives `key=value key=value ...`; put text values in quotes. event: a literal. */
void sk_log(enum sk_level level, const char *event, const char *format, ...) SK_PRINTF(3, 4);
/* A core's note. */
void sk_log_note(const struct sk_note_kind *kind, uint64_t a, uint64_t b);
enum sk_level sk_log_level_parse(const char *name); /* "info" where it is no level */

#endif
