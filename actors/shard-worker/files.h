/* Folders and files of a shard: made, written so that a power cut leaves the old or the new one,
 * removed. Errors: DISK_FULL (no space, quota), UNAVAILABLE (anything else the system says, with
 * its words). Thread: any. */
#ifndef SK_WORKER_FILES_H
#define SK_WORKER_FILES_H

#include "common/base/err.h"
#include "common/base/span.h"

#include <stdio.h>

enum { SK_PATH_BYTES = 1024 };

/* False unless it is 8-4-4-4-12 hex digits, lower case: what sk_uuid_text of proto writes. */
bool sk_uuid_parse(const char *text, uint8_t uuid[16]);

/* Fails with TOO_LARGE when the text does not fit. */
SK_CHECKED enum sk_err sk_path(char out[SK_PATH_BYTES], struct sk_diag *d, const char *format, ...)
    SK_PRINTF(3, 4);
/* Makes the last component (mode 0700); its parent is synced. Fine when it is there already. */
SK_CHECKED enum sk_err sk_folder_make(const char *path, struct sk_diag *d);
/* Removes a folder with what is in it, 4 levels deep; never follows a link. Fine when absent. */
SK_CHECKED enum sk_err sk_folder_remove(const char *path, struct sk_diag *d);
SK_CHECKED enum sk_err sk_folder_sync(const char *path, struct sk_diag *d);
/* What a failed call of the system means, with errno's words. */
enum sk_err sk_fail_errno(struct sk_diag *d, int number, const char *what, const char *path);

/* A file that appears whole or not at all: written as NAME.tmp, synced, renamed, the folder synced.
 */
struct sk_file_writer {
    FILE *stream;
    char path[SK_PATH_BYTES];
    char temporary[SK_PATH_BYTES + 8];
    int error; /* errno of the first write that failed */
};
SK_CHECKED enum sk_err sk_file_begin(struct sk_file_writer *self, const char *path,
                                     struct sk_diag *d);
/* What was written so far is on its way to the disk; nothing waits for it. */
void sk_file_flush(struct sk_file_writer *self);
/* False when it (or an earlier one) failed; commit tells why. */
bool sk_file_write(struct sk_file_writer *self, const void *bytes, size_t size);
SK_CHECKED enum sk_err sk_file_commit(struct sk_file_writer *self, struct sk_diag *d);
void sk_file_abort(struct sk_file_writer *self); /* after begin; nothing when committed */

#endif
