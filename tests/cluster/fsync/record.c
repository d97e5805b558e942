/* Records what a process writes below one folder, and when it is synced, for tests/cluster/fsync.
 *
 * Loaded with LD_PRELOAD. SKERRY_RECORD_DIR names the folder, SKERRY_RECORD_LOG the file that all
 * recorded processes append to: one record a call, so that their order in the log is the order in
 * which they happened. A file is known by its inode number, names are records of their own; so a
 * rename moves nothing. fsync/replay.py reads the log; the two define the format together.
 *
 * run/ and log/ below that folder are left out: a power cut may empty them.
 *
 * What it cannot see it reports as UNSEEN, and the test fails with those words: stdio streams
 * opened for writing (libc writes them without passing here) and writable shared mappings other
 * than LMDB's lock. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Its whole point is to be found before libc. */
#pragma GCC visibility push(default)

enum record_kind {
    RECORD_CREATE = 1,   /* inode, name: a file that was not there */
    RECORD_MKDIR = 2,    /* inode, name */
    RECORD_WRITE = 3,    /* inode, offset, bytes */
    RECORD_TRUNCATE = 4, /* inode, offset = new size */
    RECORD_RENAME = 5,   /* inode, from '\0' to */
    RECORD_UNLINK = 6,   /* inode, name */
    RECORD_SYNC_BEGIN = 7,
    RECORD_SYNC_END = 8,   /* inode: what came before the BEGIN is durable */
    RECORD_WRITE_SYNC = 9, /* like WRITE, through an O_SYNC or O_DSYNC descriptor */
    RECORD_UNSEEN = 10,    /* name, and why */
    RECORD_MARK = 11,      /* the ledger's own (fsync/replay.py writes these) */
};

struct record_header {
    uint32_t magic;
    uint32_t kind;
    uint64_t inode;
    uint64_t offset;
    uint32_t process;
    uint32_t size; /* bytes that follow */
};

static struct {
    char dir[PATH_MAX];
    size_t dir_size;
    int log; /* -1: nothing is recorded */
} self = {.log = -1};

#define REAL(name)                                                                                 \
    static __typeof__(name) *real;                                                                 \
    if (real == NULL)                                                                              \
    *(void **)&real = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void)
{
    const char *dir = getenv("SKERRY_RECORD_DIR");
    const char *log = getenv("SKERRY_RECORD_LOG");
    if (dir == NULL || log == NULL || realpath(dir, self.dir) == NULL)
        return;
    self.dir_size = strlen(self.dir);
    self.log =
        (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    /* Out of the way of the low numbers that programs expect. */
    int high = self.log < 0 ? -1 : fcntl(self.log, F_DUPFD_CLOEXEC, 900);
    if (high >= 0) {
        syscall(SYS_close, self.log);
        self.log = high;
    }
}

static void record(enum record_kind kind, uint64_t inode, uint64_t offset,
                   const struct iovec *parts, int part_count)
{
    struct iovec all[2 + IOV_MAX / 8];
    struct record_header header = {0x534b5243, kind, inode, offset, (uint32_t)getpid(), 0};
    all[0] = (struct iovec){&header, sizeof(header)};
    for (int i = 0; i < part_count; i++) {
        all[1 + i] = parts[i];
        header.size += (uint32_t)parts[i].iov_len;
    }
    int kept = errno;
    ssize_t wanted = (ssize_t)(sizeof(header) + header.size);
    if (syscall(SYS_writev, self.log, all, 1 + part_count) != wanted) {
        static const char words[] = "skerry_record: the log cannot be written\n";
        syscall(SYS_write, 2, words, sizeof(words) - 1);
        abort();
    }
    errno = kept;
}

static void record_text(enum record_kind kind, uint64_t inode, const char *a, const char *b)
{
    struct iovec parts[2] = {{(void *)(uintptr_t)a, strlen(a) + (b != NULL)},
                             {(void *)(uintptr_t)b, b == NULL ? 0 : strlen(b)}};
    record(kind, inode, 0, parts, 2);
}

static bool is_recorded(const char *path)
{
    if (strncmp(path, self.dir, self.dir_size) != 0)
        return false;
    const char *rest = path + self.dir_size;
    return strncmp(rest, "/run/", 5) != 0 && strncmp(rest, "/log/", 5) != 0 &&
           (rest[0] == '/' || rest[0] == '\0');
}

/* The absolute path of name below the recorded folder; false when it lies elsewhere. */
static bool inside(int at, const char *name, char out[PATH_MAX])
{
    if (self.log < 0 || name == NULL)
        return false;
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        if (at == AT_FDCWD) {
            if (syscall(SYS_getcwd, base, sizeof(base)) < 0)
                return false;
        } else {
            char link[64];
            snprintf(link, sizeof(link), "/proc/self/fd/%d", at);
            ssize_t size = readlink(link, base, sizeof(base) - 1);
            if (size < 0)
                return false;
            base[size] = '\0';
        }
    }
    char joined[2 * PATH_MAX];
    snprintf(joined, sizeof(joined), "%s%s%s", base, base[0] != '\0' ? "/" : "", name);
    /* The folder part is resolved; the last name is kept (it may not exist yet). */
    char *slash = strrchr(joined, '/');
    if (slash == NULL)
        return false;
    const char *last = slash + 1;
    char folder[PATH_MAX];
    *slash = '\0';
    if (realpath(joined[0] == '\0' ? "/" : joined, folder) == NULL)
        return false;
    int size = snprintf(out, PATH_MAX, "%s/%s", folder, last);
    return size > 0 && size < PATH_MAX && is_recorded(out) && out[self.dir_size] == '/';
}

/* The inode behind a descriptor of a recorded file or folder, 0 for anything else. */
static uint64_t inode_of(int fd)
{
    if (self.log < 0 || fd == self.log)
        return 0;
    struct stat st;
    int kept = errno;
    bool is_ours = false;
    if (fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        ssize_t size = readlink(link, path, sizeof(path) - 1);
        if (size > 0) {
            path[size] = '\0';
            is_ours = is_recorded(path);
        }
    }
    errno = kept;
    return is_ours ? (uint64_t)st.st_ino : 0;
}

static uint64_t inode_at(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 ? (uint64_t)st.st_ino : 0;
}

static void wrote(int fd, uint64_t inode, uint64_t offset, const struct iovec *parts, int count,
                  ssize_t done)
{
    if (inode == 0 || done <= 0)
        return;
    struct iovec kept[IOV_MAX / 8];
    int used = 0;
    size_t left = (size_t)done;
    for (int i = 0; i < count && left > 0 && used < IOV_MAX / 8; i++) {
        kept[used] = parts[i];
        if (kept[used].iov_len > left)
            kept[used].iov_len = left;
        left -= kept[used++].iov_len;
    }
    if (left > 0)
        record_text(RECORD_UNSEEN, inode, "writev", "too many parts in one call");
    int flags = fcntl(fd, F_GETFL);
    bool is_synced = (flags & O_DSYNC) != 0;
    record(is_synced ? RECORD_WRITE_SYNC : RECORD_WRITE, inode, offset, kept, used);
}

static int open_recorded(int at, const char *name, int flags, mode_t mode)
{
    char path[PATH_MAX];
    bool is_writer = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
    bool is_ours = is_writer && inside(at, name, path);
    bool was_there = is_ours && inode_at(path) != 0;
    int fd = (int)syscall(SYS_openat, at, name, flags, mode);
    if (fd >= 0 && is_ours) {
        uint64_t inode = inode_of(fd);
        if (inode != 0 && !was_there)
            record_text(RECORD_CREATE, inode, path, NULL);
        else if (inode != 0 && (flags & O_TRUNC) != 0)
            record(RECORD_TRUNCATE, inode, 0, NULL, 0);
    }
    return fd;
}

static mode_t mode_of(int flags, va_list args)
{
    return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(args, mode_t) : 0;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return open_recorded(AT_FDCWD, path, flags, mode);                                         \
    }
#define OPENAT(name)                                                                               \
    int name(int at, const char *path, int flags, ...)                                             \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return open_recorded(at, path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode)
{
    return open_recorded(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int mkstemp(char *name)
{
    REAL(mkstemp);
    int fd = real(name);
    char path[PATH_MAX];
    if (fd >= 0 && inside(AT_FDCWD, name, path))
        record_text(RECORD_CREATE, inode_of(fd), path, NULL);
    return fd;
}

static FILE *stream(FILE *(*real)(const char *, const char *), const char *name, const char *mode)
{
    char path[PATH_MAX];
    if (strpbrk(mode, "wa+") != NULL && inside(AT_FDCWD, name, path))
        record_text(RECORD_UNSEEN, 0, path, "opened for writing by fopen");
    return real(name, mode);
}

FILE *fopen(const char *name, const char *mode)
{
    REAL(fopen);
    return stream(real, name, mode);
}

FILE *fopen64(const char *name, const char *mode)
{
    REAL(fopen64);
    return stream(real, name, mode);
}

ssize_t write(int fd, const void *bytes, size_t size)
{
    uint64_t inode = inode_of(fd);
    ssize_t done = syscall(SYS_write, fd, bytes, size);
    if (inode != 0 && done > 0) {
        off_t end = lseek(fd, 0, SEEK_CUR);
        struct iovec part = {(void *)(uintptr_t)bytes, size};
        wrote(fd, inode, (uint64_t)(end - done), &part, 1, done);
    }
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    uint64_t inode = inode_of(fd);
    ssize_t done = syscall(SYS_writev, fd, parts, count);
    if (inode != 0 && done > 0)
        wrote(fd, inode, (uint64_t)(lseek(fd, 0, SEEK_CUR) - done), parts, count, done);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, size, offset);
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    wrote(fd, done > 0 ? inode_of(fd) : 0, (uint64_t)offset, &part, 1, done);
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset)
{
    return pwrite(fd, bytes, size, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t done = syscall(SYS_pwritev, fd, parts, count, offset, 0);
    wrote(fd, done > 0 ? inode_of(fd) : 0, (uint64_t)offset, parts, count, done);
    return done;
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}

int ftruncate(int fd, off_t size)
{
    int rc = (int)syscall(SYS_ftruncate, fd, size);
    uint64_t inode = rc == 0 ? inode_of(fd) : 0;
    if (inode != 0)
        record(RECORD_TRUNCATE, inode, (uint64_t)size, NULL, 0);
    return rc;
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

static int sync_recorded(int fd, long call)
{
    uint64_t inode = inode_of(fd);
    if (inode != 0)
        record(RECORD_SYNC_BEGIN, inode, 0, NULL, 0);
    int rc = (int)syscall(call, fd);
    if (inode != 0 && rc == 0)
        record(RECORD_SYNC_END, inode, 0, NULL, 0);
    return rc;
}

int fsync(int fd)
{
    return sync_recorded(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return sync_recorded(fd, SYS_fdatasync);
}

static int rename_recorded(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    char old[PATH_MAX], new[PATH_MAX];
    bool is_ours = inside(from_at, from, old) && inside(to_at, to, new);
    int rc = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (rc == 0 && is_ours)
        record_text(RECORD_RENAME, inode_at(new), old, new);
    return rc;
}

int rename(const char *from, const char *to)
{
    return rename_recorded(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return rename_recorded(from_at, from, to_at, to, 0);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    return rename_recorded(from_at, from, to_at, to, flags);
}

static int unlink_recorded(int at, const char *name, int flags)
{
    char path[PATH_MAX];
    bool is_ours = inside(at, name, path);
    uint64_t inode = is_ours ? inode_at(path) : 0;
    int rc = (int)syscall(SYS_unlinkat, at, name, flags);
    if (rc == 0 && is_ours)
        record_text(RECORD_UNLINK, inode, path, NULL);
    return rc;
}

int unlink(const char *name)
{
    return unlink_recorded(AT_FDCWD, name, 0);
}

int unlinkat(int at, const char *name, int flags)
{
    return unlink_recorded(at, name, flags);
}

int rmdir(const char *name)
{
    return unlink_recorded(AT_FDCWD, name, AT_REMOVEDIR);
}

int remove(const char *name)
{
    int rc = unlink_recorded(AT_FDCWD, name, 0);
    return rc != 0 && errno == EISDIR ? unlink_recorded(AT_FDCWD, name, AT_REMOVEDIR) : rc;
}

int mkdirat(int at, const char *name, mode_t mode)
{
    char path[PATH_MAX];
    bool is_ours = inside(at, name, path);
    int rc = (int)syscall(SYS_mkdirat, at, name, mode);
    if (rc == 0 && is_ours)
        record_text(RECORD_MKDIR, inode_at(path), path, NULL);
    return rc;
}

int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}

static void check_mapping(int protection, int flags, int fd)
{
    if (fd < 0 || (protection & PROT_WRITE) == 0 || (flags & MAP_SHARED) == 0 || inode_of(fd) == 0)
        return;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof(path) - 1);
    path[size < 0 ? 0 : size] = '\0';
    if (strstr(path, "lock.mdb") == NULL && strstr(path, "-lock") == NULL)
        record_text(RECORD_UNSEEN, 0, path, "mapped shared and writable");
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    check_mapping(protection, flags, fd);
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset)
{
    return mmap(at, size, protection, flags, fd, offset);
}
