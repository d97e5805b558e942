/* The files of a shard: data.mdb and lock.mdb of LMDB, a reserve for a full disk, and a folder where a new
 * data.mdb is made (a new shard, compact, restore) until one rename puts it in place. */
#include "actors/shard-worker/store/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { LOCK_BYTES = 16384, PATH_MORE_BYTES = 32 };

/* Beyond map_bytes_max: so that deletes of a shard that has reached it find pages to copy to. */
static const uint64_t map_slack_bytes = UINT64_C(256) << 20;

static const uint64_t reserve_bytes_most = UINT64_C(32) << 20;

static const struct {
    const char *name;
    unsigned flags;
} tables[TABLE_COUNT] = {
    [T_META] = {"meta", 0},
    [T_IDS] = {"ids", 0},
    [T_RECORDS] = {"records", MDB_INTEGERKEY},
    [T_VECTORS] = {"vectors", MDB_INTEGERKEY},
    [T_LOG] = {"log", MDB_INTEGERKEY},
    [T_BIRTHS] = {"births", MDB_INTEGERKEY},
    [T_TOMBS] = {"tombs", 0},
    [T_FREE] = {"free", MDB_INTEGERKEY},
    [T_LIMBO] = {"limbo", MDB_INTEGERKEY},
    [T_PINDEX] = {"pindex", 0},
    [T_EXPIRY] = {"expiry", 0},
    [T_APPLIED] = {"applied", 0},
    [T_GRAPH] = {"graph", 0},
};

static void path_of(const struct sk_store *self, const char *name,
                    char path[PATH_BYTES + PATH_MORE_BYTES])
{
    (void)snprintf(path, PATH_BYTES + PATH_MORE_BYTES, "%s/%s", self->folder, name);
}

uint64_t sk_files_bytes(const struct sk_store *self, const char *name)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    struct stat info;
    path_of(self, name, path);
    return stat(path, &info) == 0 ? (uint64_t)info.st_blocks * 512 : 0;
}

bool sk_files_exist(const struct sk_store *self)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    path_of(self, "data.mdb", path);
    return access(path, F_OK) == 0;
}

enum sk_err sk_files_sync_folder(const char *folder, struct sk_diag *d)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        int error = errno;
        if (fd >= 0)
            (void)close(fd);
        return sk_fail(d, SK_ERR_UNAVAILABLE, "folder '%s' cannot be synced: %s", folder,
                       strerror(error));
    }
    (void)close(fd);
    return SK_ERR_OK;
}

/* ---- the reserve ---- */

/* Makes name at least `bytes` long with blocks of its own behind every byte, or leaves it as it was. */
static int allocate(const struct sk_store *self, const char *name, uint64_t bytes)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    struct stat info;
    path_of(self, name, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    int rc = fstat(fd, &info) == 0 ? 0 : errno;
    if (rc == 0 && (uint64_t)info.st_blocks * 512 < bytes) {
        rc = posix_fallocate(fd, 0, (off_t)bytes);
        if (rc != 0 && ftruncate(fd, info.st_size) != 0)
            rc = errno;
    }
    (void)close(fd);
    return rc;
}

static uint64_t map_bytes(struct sk_store *self)
{
    MDB_envinfo info;
    return mdb_env_info(self->env, &info) == 0
               ? ((uint64_t)info.me_last_pgno + 1) * self->page_bytes
               : 0;
}

/* A thousand deletes at random places copy some thousand pages: more of them in a larger shard. */
static uint64_t reserve_wanted(struct sk_store *self)
{
    uint64_t share = map_bytes(self) / 16;
    share = share < reserve_bytes_most ? share : reserve_bytes_most;
    return share > self->config.reserve_bytes ? share : self->config.reserve_bytes;
}

/* Blocks that belong to nobody else, given up when the disk is full so that deletes and index work still
 * commit; other writes wait until it could be made again. */
bool sk_files_reserve_make(struct sk_store *self)
{
    uint64_t wanted = reserve_wanted(self);
    self->reserve_map_bytes = map_bytes(self);
    return sk_files_bytes(self, "reserve") >= wanted || allocate(self, "reserve", wanted) == 0;
}

bool sk_files_reserve_is_small(struct sk_store *self)
{
    return map_bytes(self) >= 2 * self->reserve_map_bytes;
}

void sk_files_reserve_give_up(struct sk_store *self)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    path_of(self, "reserve", path);
    if (truncate(path, 0) == 0)
        atomic_store(&self->is_reserve_used, true);
}

/* ---- free pages ---- */

/* The free list of LMDB: a list of pages for each transaction that let go of some. */
static uint64_t free_bytes(struct sk_store *self)
{
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    uint64_t pages = 0;
    if (mdb_txn_begin(self->env, NULL, MDB_RDONLY, &txn) != 0)
        return 0;
    if (mdb_cursor_open(txn, 0, &cursor) == 0) {
        while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
            size_t count = 0;
            if (value.mv_size >= sizeof count)
                memcpy(&count, value.mv_data, sizeof count);
            pages += count;
        }
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
    return pages * self->page_bytes;
}

bool sk_files_has_free_pages(struct sk_store *self)
{
    return free_bytes(self) >= self->config.reserve_bytes / 2; /* the rest is for deletes */
}

bool sk_files_map_is_full(struct sk_store *self)
{
    return map_bytes(self) >= self->config.map_bytes_max;
}

bool sk_files_disk_has(const struct sk_store *self, uint64_t bytes)
{
    struct statvfs info;
    return statvfs(self->folder, &info) == 0 && (uint64_t)info.f_bavail * info.f_frsize >= bytes;
}

/* ---- the environment ---- */

/* A file cut short would be a SIGBUS when the missing part is read; zeros there are an error of LMDB's.
 * Pages at the end that were never written are missing in good files too. */
static int cover_map(struct sk_store *self)
{
    char path[PATH_BYTES + PATH_MORE_BYTES];
    MDB_envinfo info;
    MDB_stat pages;
    struct stat file;
    int rc = mdb_env_info(self->env, &info);
    if (rc == 0)
        rc = mdb_env_stat(self->env, &pages);
    if (rc != 0)
        return rc;
    self->page_bytes = pages.ms_psize;
    uint64_t wanted = ((uint64_t)info.me_last_pgno + 1) * self->page_bytes;
    path_of(self, "data.mdb", path);
    if (stat(path, &file) != 0)
        return errno;
    if ((uint64_t)file.st_size >= wanted)
        return 0;
    return truncate(path, (off_t)wanted) == 0 ? 0 : errno;
}

static int open_tables(struct sk_store *self)
{
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(self->env, NULL, 0, &txn);
    for (int t = 0; rc == 0 && t < TABLE_COUNT; t++)
        rc = mdb_dbi_open(txn, tables[t].name, tables[t].flags | MDB_CREATE, &self->tables[t]);
    if (rc == 0)
        return mdb_txn_commit(txn);
    if (txn != NULL)
        mdb_txn_abort(txn);
    return rc;
}

enum sk_err sk_files_open(struct sk_store *self, struct sk_diag *d)
{
    int dead = 0;
    /* LMDB maps its lock file: on a full disk a hole in it would be a SIGBUS */
    int rc = allocate(self, "lock.mdb", LOCK_BYTES);
    if (rc == 0)
        rc = mdb_env_create(&self->env);
    if (rc == 0)
        rc = mdb_env_set_maxdbs(self->env, TABLE_COUNT + 3);
    if (rc == 0)
        rc = mdb_env_set_mapsize(self->env, (size_t)(self->config.map_bytes_max + map_slack_bytes));
    /* default flags are the durable ones; NOTLS because readers belong to jobs, not to threads */
    unsigned flags = MDB_NOTLS;
    if (self->config.no_sync || sk_mutant("skip_fsync"))
        flags |= MDB_NOSYNC;
    if (rc == 0)
        rc = mdb_env_open(self->env, self->folder, flags, 0600);
    if (rc == 0)
        rc = cover_map(self);
    if (rc == 0)
        rc = mdb_reader_check(self->env, &dead);
    if (rc == 0)
        rc = open_tables(self);
    if (rc == 0)
        return SK_ERR_OK;
    if (self->env != NULL)
        mdb_env_close(self->env);
    self->env = NULL;
    return sk_store_fail(self, rc, self->folder, d);
}

/* ---- a new data.mdb ---- */

void sk_files_making_drop(const struct sk_store *self)
{
    static const char *const names[] = {"making/data.mdb", "making/lock.mdb", "making/reserve"};
    char path[PATH_BYTES + PATH_MORE_BYTES];
    for (size_t i = 0; i < SK_COUNT_OF(names); i++) {
        path_of(self, names[i], path);
        (void)unlink(path);
    }
    path_of(self, "making", path);
    (void)rmdir(path);
}

enum sk_err sk_files_making(const struct sk_store *self, char path[PATH_BYTES], struct sk_diag *d)
{
    sk_files_making_drop(self); /* what a crash left */
    int size = snprintf(path, PATH_BYTES, "%s/making", self->folder);
    if (size < 0 || size >= PATH_BYTES)
        return sk_fail(d, SK_ERR_INVALID, "the path of shard '%s' is too long", self->folder);
    if (mkdir(path, 0700) != 0)
        return sk_store_fail(NULL, errno, path, d);
    return SK_ERR_OK;
}

enum sk_err sk_files_replace(struct sk_store *self, struct sk_diag *d)
{
    char from[PATH_BYTES + PATH_MORE_BYTES], to[PATH_BYTES + PATH_MORE_BYTES];
    path_of(self, "making/data.mdb", from);
    path_of(self, "data.mdb", to);
    if (self->env != NULL) {
        sk_readers_let_go(self, false);
        mdb_env_close(self->env);
        self->env = NULL;
    }
    enum sk_err err = SK_ERR_OK;
    if (rename(from, to) != 0)
        err = sk_store_fail(self, errno, to, d);
    if (err == SK_ERR_OK)
        err = sk_files_sync_folder(self->folder, d);
    sk_files_making_drop(self);
    /* whatever happened: what is there now must be served */
    enum sk_err opened = sk_files_open(self, err == SK_ERR_OK ? d : NULL);
    return err == SK_ERR_OK ? opened : err;
}
