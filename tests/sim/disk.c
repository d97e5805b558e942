#include "tests/sim/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct sim_disk sim_disk = {.writes_left = -1};

/* One write that no sync has covered yet: what it put there and what was there before. */
struct unsynced {
    ino_t inode;
    off_t at, size_before; /* of the file */
    size_t size, old_size; /* old_size is less where the write made the file longer */
    uint8_t *bytes, *old;  /* owned */
};
static struct unsynced *pending;
static size_t pending_count, pending_capacity;

static void forget(size_t index)
{
    free(pending[index].bytes);
    free(pending[index].old);
}

/* Drops what is remembered of one file, or of all. */
static void settle(ino_t inode, bool all)
{
    size_t kept = 0;
    for (size_t i = 0; i < pending_count; i++) {
        if (all || pending[i].inode == inode)
            forget(i);
        else
            pending[kept++] = pending[i];
    }
    pending_count = kept;
}

void sim_disk_reset(void)
{
    settle(0, true);
    sim_disk = (struct sim_disk){.writes_left = -1};
}

static bool power_is_gone(void)
{
    if (sim_disk.writes_left == 0)
        sim_disk.has_failed = true;
    else if (sim_disk.writes_left > 0)
        sim_disk.writes_left--;
    return sim_disk.has_failed;
}

/* true: this write must fail, errno says why. at is where it would go. */
static bool refuses(int fd, off_t at, size_t size, struct stat *st)
{
    if (fd <= 2 || fstat(fd, st) != 0 || !S_ISREG(st->st_mode)) {
        st->st_mode = 0;
        return false;
    }
    sim_disk.writes++;
    bool is_gone = power_is_gone();
    bool is_refused = is_gone || (sim_disk.is_full && at + (off_t)size > st->st_size);
    if (is_refused) {
        errno = is_gone ? EIO : ENOSPC;
        sim_disk.refused++;
    }
    return is_refused;
}

static void remember(int fd, off_t at, const struct iovec *parts, int count, size_t size,
                     const struct stat *st)
{
    if (!S_ISREG(st->st_mode) || (fcntl(fd, F_GETFL) & O_DSYNC) != 0)
        return;
    if (pending_count == pending_capacity) {
        pending_capacity = pending_capacity == 0 ? 64 : pending_capacity * 2;
        pending = realloc(pending, pending_capacity * sizeof(*pending));
    }
    if (pending == NULL)
        abort();
    if (st->st_size == 0) /* a new file may have got the number of an old one */
        settle(st->st_ino, false);
    struct unsynced *one = &pending[pending_count++];
    *one =
        (struct unsynced){.inode = st->st_ino, .at = at, .size_before = st->st_size, .size = size};
    one->bytes = malloc(size + 1);
    one->old = malloc(size + 1);
    if (one->bytes == NULL || one->old == NULL)
        abort();
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        memcpy(one->bytes + used, parts[i].iov_base, parts[i].iov_len);
        used += parts[i].iov_len;
    }
    /* The descriptor may be open for writing only: read through one of our own. */
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    int own = open(link, O_RDONLY | O_CLOEXEC);
    ssize_t got = own < 0 ? 0 : pread(own, one->old, size, at);
    one->old_size = got > 0 ? (size_t)got : 0;
    if (own >= 0)
        close(own);
}

static size_t size_of(const struct iovec *parts, int count)
{
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    return size;
}

static bool may_write(int fd, const struct iovec *parts, int count, off_t at)
{
    struct stat st;
    size_t size = size_of(parts, count);
    if (refuses(fd, at, size, &st))
        return false;
    remember(fd, at, parts, count, size, &st);
    return true;
}

#pragma GCC visibility push(default)

ssize_t write(int fd, const void *bytes, size_t size)
{
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    if (fd > 2 && !may_write(fd, &part, 1, lseek(fd, 0, SEEK_CUR)))
        return -1;
    return syscall(SYS_write, fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (fd > 2 && !may_write(fd, parts, count, lseek(fd, 0, SEEK_CUR)))
        return -1;
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    if (!may_write(fd, &part, 1, offset))
        return -1;
    return syscall(SYS_pwrite64, fd, bytes, size, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset)
{
    return pwrite(fd, bytes, size, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (!may_write(fd, parts, count, offset))
        return -1;
    return syscall(SYS_pwritev, fd, parts, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}

/* Nothing goes to the real disk: what a sync means here is that a power cut cannot take it back. */
int fsync(int fd)
{
    struct stat st;
    sim_disk.syncs++;
    if (power_is_gone()) {
        errno = EIO;
        return -1;
    }
    if (fstat(fd, &st) == 0)
        settle(st.st_ino, false);
    return 0;
}

int fdatasync(int fd)
{
    return fsync(fd);
}

#pragma GCC visibility pop

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
    (void)st;
    (void)kind;
    (void)walk;
    return remove(path);
}

void sim_disk_remove(const char *path)
{
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The names of the files below a path, in order: the order of a folder is not the seed's. */
enum { CANDIDATES_MAX = 64 };
static char candidates[CANDIDATES_MAX][PATH_MAX];
static unsigned candidate_count;

static int collect(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
    const char *name = path + walk->base;
    if (kind == FTW_F && st->st_size > 0 && strstr(name, ".mdb") == NULL &&
        strstr(path, "/keeper/") == NULL && candidate_count < CANDIDATES_MAX)
        snprintf(candidates[candidate_count++], PATH_MAX, "%s", path);
    return 0;
}

static struct sim_rng *cut_rng;
static uint64_t cut_share; /* per mille of the sectors that had reached the disk */

/* Back to what the last sync left, then forward with the part that had reached the disk. */
static void cut_file(const char *path, ino_t inode)
{
    int fd = -1;
    for (size_t i = pending_count; i-- > 0;) {
        const struct unsynced *one = &pending[i];
        if (one->inode != inode)
            continue;
        if (fd < 0)
            fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            abort();
        (void)syscall(SYS_pwrite64, fd, one->old, one->old_size, one->at);
        if (ftruncate(fd, one->size_before) != 0)
            abort();
    }
    for (size_t i = 0; i < pending_count; i++) {
        const struct unsynced *one = &pending[i];
        if (one->inode != inode)
            continue;
        for (size_t from = 0, end; from < one->size; from = end) {
            end = from + 512 - (size_t)(one->at + (off_t)from) % 512;
            end = end < one->size ? end : one->size;
            if (sim_below(cut_rng, 1000) < cut_share)
                (void)syscall(SYS_pwrite64, fd, one->bytes + from, end - from,
                              one->at + (off_t)from);
            else
                sim_disk.taken_back++;
        }
    }
    if (fd >= 0)
        close(fd);
}

static char files[512][PATH_MAX];
static size_t file_count;

static int collect_all(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
    (void)st;
    (void)walk;
    if (kind == FTW_F && file_count < sizeof(files) / sizeof(files[0]))
        snprintf(files[file_count++], PATH_MAX, "%s", path);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

void sim_disk_power_cut(const char *path, struct sim_rng *rng)
{
    static const uint64_t shares[] = {0, 100, 500, 900, 1000};
    cut_rng = rng;
    cut_share = shares[sim_below(rng, 5)];
    file_count = 0;
    (void)nftw(path, collect_all, 16, FTW_PHYS);
    qsort(files, file_count, PATH_MAX, by_name);
    for (size_t i = 0; i < file_count; i++) {
        struct stat st;
        if (stat(files[i], &st) == 0)
            cut_file(files[i], st.st_ino);
    }
    settle(0, true);
}

bool sim_disk_damage(const char *path, uint64_t draw, char *what, unsigned what_size)
{
    candidate_count = 0;
    (void)nftw(path, collect, 16, FTW_PHYS);
    if (candidate_count == 0)
        return false;
    qsort(candidates, candidate_count, PATH_MAX,
          by_name); /* the order of a folder is not the seed's */
    const char *file = candidates[draw % candidate_count];
    draw /= candidate_count;
    struct stat st;
    if (stat(file, &st) != 0)
        return false;
    const char *how = "removed";
    switch (draw % 3) {
    case 0:
        (void)remove(file);
        break;
    case 1:
        how = "cut short";
        if (truncate(file, (off_t)(draw / 3 % (uint64_t)st.st_size)) != 0)
            return false;
        break;
    default: {
        how = "a byte flipped";
        int fd = open(file, O_RDWR | O_CLOEXEC);
        off_t at = (off_t)(draw / 3 % (uint64_t)st.st_size);
        uint8_t byte = 0;
        if (fd >= 0 && pread(fd, &byte, 1, at) == 1) {
            byte ^= 0x5a;
            (void)syscall(SYS_pwrite64, fd, &byte, 1, at);
        }
        close(fd);
    }
    }
    const char *name = strrchr(file, '/');
    snprintf(what, what_size, "%s %s", name == NULL ? file : name + 1, how);
    return true;
}
