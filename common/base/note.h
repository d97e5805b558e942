/* What a core has to say: facts of fixed size. The core calls io->note(kind, a, b); the shell
 * prints one line, counts it and keeps it for a crash report; the simulator may assert on it.
 *
 * Each core has a list of its own in its header:
 *     #define SK_ROUTER_NOTES(SK_NOTE) SK_NOTE(reply_late, WARN, "request", "us")  ...
 *     enum sk_router_note { SK_ROUTER_NOTES(SK_NOTE_ENUM_OF) ... };
 * and a table of struct sk_note_kind that its shell hands to the reactor. Never a key, a vector or
 * a payload in a note. */
#ifndef SK_NOTE_H
#define SK_NOTE_H

#include <stddef.h>

enum sk_level { SK_LEVEL_DEBUG, SK_LEVEL_INFO, SK_LEVEL_WARN, SK_LEVEL_ERROR };

struct sk_note_kind {
    const char *name; /* "reply_late" */
    enum sk_level level;
    const char *a_name, *b_name; /* NULL: that number means nothing */
};

/* One row of the table from one row of the list. */
#define SK_NOTE_KIND(name, level, a_name, b_name) {#name, SK_LEVEL_##level, a_name, b_name},

const char *sk_level_name(enum sk_level level); /* "warn" */

#endif
