#include "actors/supervisor/node_folder.h"

#include "common/base/config.h"
#include "common/shell/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LOCK_WAIT_MS = 10000,
    LOCK_POLL_MS = 20,
    PROGRAM_NAME_BYTES = 15 /* what the kernel keeps */
};

static const char *path_of(char out[SK_PATH_BYTES], const char *dir, const char *below)
{
    snprintf(out, SK_PATH_BYTES, "%s/%s", dir, below);
    return out;
}

static enum sk_err cannot(struct sk_diag *d, const char *what, const char *path)
{
    int reason = errno;
    return sk_fail(d, reason == ENOSPC ? SK_ERR_DISK_FULL : SK_ERR_UNAVAILABLE,
                   "cannot %s '%s': %s", what, path, strerror(reason));
}

/* ---- layout ---- */

static enum sk_err make_one(const char *path, struct sk_diag *d)
{
    struct stat status;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return cannot(d, "make the folder", path);
    if (stat(path, &status) != 0)
        return cannot(d, "look at", path);
    if (!S_ISDIR(status.st_mode))
        return sk_fail(d, SK_ERR_UNAVAILABLE, "'%s' is not a folder", path);
    if (access(path, R_OK | W_OK | X_OK) != 0)
        return cannot(d, "write in the folder", path);
    return SK_ERR_OK;
}

/* Every folder above DIR that is missing, like mkdir -p. */
static void make_above(const char *dir)
{
    char path[SK_PATH_BYTES];
    snprintf(path, sizeof path, "%s", dir);
    for (char *c = path + 1; *c != '\0'; c++)
        if (*c == '/') {
            *c = '\0';
            (void)mkdir(path, 0755); /* the last one tells */
            *c = '/';
        }
}

/* Where there is none: every setting with its default, commented out. A file that cannot be made is
 * no reason to stop: it sets nothing. */
static void write_sample(const char *dir)
{
    char path[SK_PATH_BYTES];
    int fd = open(path_of(path, dir, "skerry.conf"), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    if (file == NULL)
        return;
    sk_config_print_sample(file);
    fclose(file);
}

enum sk_err node_folder_make(const char *dir, struct sk_diag *d)
{
    static const char *const folders[] = {"run", "data", "data/keeper", "snapshots", "keys", "log"};
    char path[SK_PATH_BYTES];
    make_above(dir);
    enum sk_err rc = make_one(dir, d);
    for (size_t i = 0; rc == SK_ERR_OK && i < SK_COUNT_OF(folders); i++)
        rc = make_one(path_of(path, dir, folders[i]), d);
    if (rc == SK_ERR_OK)
        write_sample(dir);
    return rc;
}

/* ---- lock ---- */

static bool is_supervisor(long pid)
{
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%ld/comm", pid);
    FILE *file = pid > 0 && pid != (long)getpid() ? fopen(path, "re") : NULL;
    if (file == NULL)
        return false;
    bool is_read = fgets(name, sizeof name, file) != NULL;
    fclose(file);
    return is_read && strncmp(name, "skerry-supervisor", PROGRAM_NAME_BYTES) == 0;
}

static long pid_in(int fd)
{
    char text[32] = "";
    ssize_t size = pread(fd, text, sizeof text - 1, 0);
    return size > 0 ? strtol(text, NULL, 10) : 0;
}

/* The descriptor is left open over exec on purpose: a lock belongs to the open file, so that it
 * ends with the last child. Two workers never have one shard open, whatever became of their
 * supervisors. */
enum sk_err node_folder_lock(const char *dir, struct sk_diag *d)
{
    char path[SK_PATH_BYTES], text[32];
    int fd = open(path_of(path, dir, "run/lock"), O_RDWR | O_CREAT, 0600);
    if (fd < 0)
        return cannot(d, "open", path);
    for (int waited_ms = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; waited_ms += LOCK_POLL_MS) {
        long pid = pid_in(fd);
        enum sk_err rc = SK_ERR_OK;
        if (errno != EWOULDBLOCK && errno != EINTR)
            rc = cannot(d, "lock", path);
        else if (is_supervisor(pid))
            rc = sk_fail(d, SK_ERR_EXISTS, "a node runs in '%s' already (pid %ld)", dir, pid);
        else if (waited_ms >= LOCK_WAIT_MS)
            rc = sk_fail(d, SK_ERR_EXISTS,
                         "processes of an earlier node still hold '%s': the one that was pid %ld",
                         path, pid);
        if (rc != SK_ERR_OK) {
            close(fd);
            return rc;
        }
        usleep(LOCK_POLL_MS * 1000);
    }
    int size = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)size, 0) != size) {
        enum sk_err rc = cannot(d, "write", path);
        close(fd);
        return rc;
    }
    return SK_ERR_OK;
}

/* ---- what others read ---- */

static bool ends_with(const char *name, const char *end)
{
    size_t size = strlen(name), end_size = strlen(end);
    return size > end_size && strcmp(name + size - end_size, end) == 0;
}

void node_folder_clean(const char *dir)
{
    char path[SK_PATH_BYTES];
    DIR *run = opendir(path_of(path, dir, "run"));
    if (run == NULL)
        return;
    for (const struct dirent *entry; (entry = readdir(run)) != NULL;)
        if (ends_with(entry->d_name, ".ipc") || ends_with(entry->d_name, ".reason") ||
            strncmp(entry->d_name, "node.json", 9) == 0)
            (void)unlinkat(dirfd(run), entry->d_name, 0);
    closedir(run);
}

static void put_json(FILE *to, const char *text)
{
    fputc('"', to);
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(to, "\\%c", *c);
        else if (*c < ' ')
            fprintf(to, "\\u%04x", *c);
        else
            fputc(*c, to);
    }
    fputc('"', to);
}

enum sk_err node_folder_write_facts(const char *dir, const struct node_facts *facts,
                                    struct sk_diag *d)
{
    char path[SK_PATH_BYTES], beside[SK_PATH_BYTES];
    path_of(path, dir, "run/node.json");
    FILE *file = fopen(path_of(beside, dir, "run/node.json.new"), "we");
    if (file == NULL)
        return cannot(d, "write", beside);
    fputs("{\"endpoints\": {\"client_ipc\": ", file);
    put_json(file, facts->client_ipc);
    fputs(", \"client_tcp\": ", file);
    put_json(file, facts->client_tcp);
    fputs(", \"http\": ", file);
    put_json(file, facts->http);
    fputs("}, \"public_key\": ", file);
    put_json(file, facts->public_key);
    fprintf(file, ", \"pid\": %ld}\n", (long)facts->pid);
    bool is_written = ferror(file) == 0;
    is_written &= fclose(file) == 0;
    if (!is_written || rename(beside, path) != 0)
        return cannot(d, "write", path);
    return SK_ERR_OK;
}
