#include "actors/shard-worker/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 4, STREAM_BYTES = 256 * 1024 };

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool sk_uuid_parse(const char *text, uint8_t uuid[16])
{
    if (strlen(text) != 36)
        return false;
    for (unsigned i = 0; i < 16; i++) {
        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        int high = hex_value(text[0]);
        int low = hex_value(text[1]);
        if (high < 0 || low < 0)
            return false;
        uuid[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    return true;
}

enum sk_err sk_path(char out[SK_PATH_BYTES], struct sk_diag *d, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int size = vsnprintf(out, SK_PATH_BYTES, format, args);
    va_end(args);
    if (size < 0 || size >= SK_PATH_BYTES) {
        out[0] = '\0';
        return sk_fail(d, SK_ERR_TOO_LARGE, "a path is longer than %d bytes", SK_PATH_BYTES - 1);
    }
    return SK_ERR_OK;
}

enum sk_err sk_fail_errno(struct sk_diag *d, int number, const char *what, const char *path)
{
    enum sk_err code = number == ENOSPC || number == EDQUOT || number == EFBIG ? SK_ERR_DISK_FULL
                       : number == ENOMEM                                      ? SK_ERR_NOMEM
                                                                               : SK_ERR_UNAVAILABLE;
    char text[128];
    return sk_fail(d, code, "%s %s: %s", what, path, strerror_r(number, text, sizeof text));
}

enum sk_err sk_folder_sync(const char *path, struct sk_diag *d)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return sk_fail_errno(d, errno, "cannot open folder", path);
    int rc = fsync(fd);
    int number = errno;
    close(fd);
    return rc == 0 ? SK_ERR_OK : sk_fail_errno(d, number, "cannot sync folder", path);
}

static enum sk_err sync_parent(const char *path, struct sk_diag *d)
{
    char parent[SK_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    size_t size = slash == NULL ? 0 : (size_t)(slash - path);
    if (size == 0)
        return sk_folder_sync(slash == NULL ? "." : "/", d);
    if (size >= sizeof parent)
        return sk_fail(d, SK_ERR_TOO_LARGE, "a path is longer than %d bytes", SK_PATH_BYTES - 1);
    memcpy(parent, path, size);
    parent[size] = '\0';
    return sk_folder_sync(parent, d);
}

enum sk_err sk_folder_make(const char *path, struct sk_diag *d)
{
    if (mkdir(path, 0700) != 0) {
        if (errno != EEXIST)
            return sk_fail_errno(d, errno, "cannot make folder", path);
        struct stat info;
        if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
            return sk_fail(d, SK_ERR_UNAVAILABLE, "%s is not a folder", path);
        return SK_ERR_OK;
    }
    return sync_parent(path, d);
}

static int remove_below(int parent, const char *name, unsigned depth)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return errno;
    if (depth == DEPTH_MAX)
        return ELOOP;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    DIR *folder = fdopendir(fd);
    if (folder == NULL) {
        int number = errno;
        close(fd);
        return number;
    }
    int result = 0;
    for (const struct dirent *entry = readdir(folder); entry != NULL && result == 0;
         entry = readdir(folder))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            result = remove_below(dirfd(folder), entry->d_name, depth + 1);
    closedir(folder);
    if (result == 0 && unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        result = errno;
    return result;
}

enum sk_err sk_folder_remove(const char *path, struct sk_diag *d)
{
    int number = remove_below(AT_FDCWD, path, 0);
    return number == 0 ? SK_ERR_OK : sk_fail_errno(d, number, "cannot remove", path);
}

enum sk_err sk_file_begin(struct sk_file_writer *self, const char *path, struct sk_diag *d)
{
    memset(self, 0, sizeof *self);
    enum sk_err rc = sk_path(self->path, d, "%s", path);
    if (rc != SK_ERR_OK)
        return rc;
    snprintf(self->temporary, sizeof self->temporary, "%s.tmp", path);
    int fd = open(self->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return sk_fail_errno(d, errno, "cannot create", self->temporary);
    self->stream = fdopen(fd, "wb");
    if (self->stream == NULL) {
        close(fd);
        unlink(self->temporary);
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the file %s", self->temporary);
    }
    (void)setvbuf(self->stream, NULL, _IOFBF, STREAM_BYTES);
    return SK_ERR_OK;
}

bool sk_file_write(struct sk_file_writer *self, const void *bytes, size_t size)
{
    if (self->error == 0 && size != 0 && fwrite(bytes, 1, size, self->stream) != size)
        self->error = errno != 0 ? errno : EIO;
    return self->error == 0;
}

void sk_file_flush(struct sk_file_writer *self)
{
    if (self->error == 0 && fflush(self->stream) != 0)
        self->error = errno;
    if (self->error == 0) /* advice only: what fails here fails again at the commit */
        (void)sync_file_range(fileno(self->stream), 0, 0, SYNC_FILE_RANGE_WRITE);
}

enum sk_err sk_file_commit(struct sk_file_writer *self, struct sk_diag *d)
{
    if (self->error == 0 && (fflush(self->stream) != 0 || fsync(fileno(self->stream)) != 0))
        self->error = errno;
    if (fclose(self->stream) != 0 && self->error == 0)
        self->error = errno;
    self->stream = NULL;
    if (self->error == 0 && rename(self->temporary, self->path) != 0)
        self->error = errno;
    if (self->error == 0)
        return sync_parent(self->path, d);
    unlink(self->temporary);
    return sk_fail_errno(d, self->error, "cannot write", self->path);
}

void sk_file_abort(struct sk_file_writer *self)
{
    if (self->stream == NULL)
        return;
    fclose(self->stream);
    self->stream = NULL;
    unlink(self->temporary);
}
