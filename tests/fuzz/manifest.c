/* links: sk_store */
/* The manifest of a snapshot, with its checksum made to fit. Beside it lies an empty data file. */
#include "actors/shard-worker/store/store.h"
#include "tests/fuzz/fuzz.h"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

static char folder[] = "/tmp/fuzz-manifest-XXXXXX";
static char manifest[300], data[300];

static void clean(void)
{
    (void)unlink(manifest);
    (void)unlink(data);
    (void)rmdir(folder);
}

static void write_file(const char *path, const void *bytes, size_t size, const void *more,
                       size_t more_size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    SK_CHECK(fd >= 0);
    SK_CHECK(write(fd, bytes, size) == (ssize_t)size &&
             write(fd, more, more_size) == (ssize_t)more_size);
    (void)close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sk_schema schema;
    struct sk_diag d = {0};
    if (manifest[0] == '\0') {
        SK_CHECK(mkdtemp(folder) != NULL);
        (void)snprintf(manifest, sizeof manifest, "%s/manifest", folder);
        (void)snprintf(data, sizeof data, "%s/data.mdb", folder);
        write_file(data, "", 0, "", 0);
        atexit(clean);
    }
    const uint64_t hash = XXH3_64bits(bytes, size);
    write_file(manifest, bytes, size, &hash, sizeof hash);
    enum sk_err err = sk_store_snapshot_schema(folder, &schema, &d);
    SK_CHECK(d.code == err);
    if (err == SK_ERR_OK)
        SK_CHECK(schema.vector_count > 0);
    return 0;
}
