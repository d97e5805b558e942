#include "actors/supervisor/node_log.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static bool copy(const char *from_path, const char *to_path, off_t size)
{
    int from = open(from_path, O_RDONLY | O_CLOEXEC);
    int to = open(to_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool is_good = from >= 0 && to >= 0;
    while (is_good && size > 0) {
        ssize_t more = sendfile(to, from, NULL, (size_t)size);
        is_good = more > 0;
        size -= more;
    }
    if (from >= 0)
        close(from);
    if (to >= 0 && close(to) != 0)
        is_good = false;
    return is_good;
}

bool node_log_rotate(const char *dir, int fd, uint64_t bytes_max)
{
    char path[PATH_MAX], old[PATH_MAX + 8], part[PATH_MAX + 8];
    struct stat open_file, named_file;
    int size = snprintf(path, sizeof path, "%s/log/node.log", dir);
    if (bytes_max == 0 || size < 0 || (size_t)size >= sizeof path ||
        fstat(fd, &open_file) != 0 || !S_ISREG(open_file.st_mode) ||
        (uint64_t)open_file.st_size <= bytes_max || stat(path, &named_file) != 0 ||
        named_file.st_ino != open_file.st_ino || named_file.st_dev != open_file.st_dev)
        return false;
    (void)snprintf(old, sizeof old, "%s.1", path);
    (void)snprintf(part, sizeof part, "%s.1.part", path);
    bool is_copied = copy(path, part, open_file.st_size);
    if (!is_copied && unlink(old) == 0)
        is_copied = copy(path, part, open_file.st_size);
    if (!is_copied || rename(part, old) != 0)
        (void)unlink(part);
    return ftruncate(fd, 0) == 0;
}
