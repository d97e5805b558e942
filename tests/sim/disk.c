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

void sim_disk_reset(void)
{
    sim_disk = (struct sim_disk){.writes_left = -1};
}

/* true: this write must fail, errno says why. end is the file's size after it. */
static bool refuses(int fd, off_t end)
{
    struct stat st;
    if (fd <= 2 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return false;
    sim_disk.writes++;
    if (sim_disk.writes_left == 0)
        sim_disk.has_failed = true;
    else if (sim_disk.writes_left > 0)
        sim_disk.writes_left--;
    bool is_refused = sim_disk.has_failed || (sim_disk.is_full && end > st.st_size);
    if (is_refused) {
        errno = sim_disk.has_failed ? EIO : ENOSPC;
        sim_disk.refused++;
    }
    return is_refused;
}

static off_t size_of(const struct iovec *parts, int count)
{
    off_t size = 0;
    for (int i = 0; i < count; i++)
        size += (off_t)parts[i].iov_len;
    return size;
}

#pragma GCC visibility push(default)

ssize_t write(int fd, const void *bytes, size_t size)
{
    if (fd > 2 && refuses(fd, lseek(fd, 0, SEEK_CUR) + (off_t)size))
        return -1;
    return syscall(SYS_write, fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (fd > 2 && refuses(fd, lseek(fd, 0, SEEK_CUR) + size_of(parts, count)))
        return -1;
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    if (refuses(fd, offset + (off_t)size))
        return -1;
    return syscall(SYS_pwrite64, fd, bytes, size, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset)
{
    return pwrite(fd, bytes, size, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (refuses(fd, offset + size_of(parts, count)))
        return -1;
    return syscall(SYS_pwritev, fd, parts, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}

/* Nothing here is about the real disk: tests/cluster/test_lost_fsync.py is. */
int fsync(int fd)
{
    (void)fd;
    return 0;
}

int fdatasync(int fd)
{
    (void)fd;
    return 0;
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

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
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
        (void)truncate(file, (off_t)(draw / 3 % (uint64_t)st.st_size));
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
