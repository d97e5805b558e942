#include "actors/metadata-keeper/state.h"
#include "proto/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, MODE = 0600 };

static const char format_key[] = "format";

struct lmdb_state {
    /* settings */
    char folder[PATH_BYTES];
    uint64_t bytes_max;
    uint64_t room_bytes;
    bool no_sync;
    /* state */
    MDB_env *env;
    MDB_dbi table;
    int owner_fd;            /* holds the lock that keeps a second keeper out */
    bool is_whole_wanted;    /* the next watch tells everything */
    struct sk_buffer told;   /* changes committed since the last watch: packed key, value, key, ... */
};

static enum sk_err fail(int rc, const char *what, struct sk_diag *d)
{
    /* a short write of LMDB's is EIO (its own rule), not ENOSPC */
    if (rc == MDB_MAP_FULL || rc == ENOSPC || rc == EDQUOT || rc == EIO || rc == EFBIG)
        return sk_fail(d, SK_ERR_DISK_FULL, "%s: %s", what,
                       rc == MDB_MAP_FULL ? "the keeper's state has reached its limit"
                                          : "no space left on the disk");
    if (rc == ENOMEM)
        return sk_fail(d, SK_ERR_NOMEM, "%s: out of memory", what);
    if (rc == MDB_VERSION_MISMATCH || rc == MDB_INVALID)
        return sk_fail(d, SK_ERR_VERSION, "%s: not a database of this LMDB: %s", what,
                       mdb_strerror(rc));
    if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND)
        return sk_fail(d, SK_ERR_INTERNAL, "%s: %s", what, mdb_strerror(rc));
    return sk_fail(d, SK_ERR_UNAVAILABLE, "%s: %s", what, mdb_strerror(rc));
}

static MDB_val val_of(struct sk_span span)
{
    /* LMDB only reads what it is given here, and its type has no const */
    return (MDB_val){span.size, (void *)(uintptr_t)span.bytes};
}

/* ---- opening ---- */

static void env_close(struct lmdb_state *self)
{
    if (self->env != NULL)
        mdb_env_close(self->env);
    self->env = NULL;
}

static enum sk_err env_open(struct lmdb_state *self, struct sk_diag *d)
{
    char what[PATH_BYTES + 32];
    (void)snprintf(what, sizeof what, "keeper state '%s'", self->folder);
    int rc = mdb_env_create(&self->env);
    if (rc == 0)
        rc = mdb_env_set_mapsize(self->env, self->bytes_max);
    /* NOTLS: the watch reads on another thread than the one that commits */
    unsigned flags = MDB_NOTLS | MDB_NORDAHEAD | (self->no_sync ? (unsigned)MDB_NOSYNC : 0U);
    if (rc == 0)
        rc = mdb_env_open(self->env, self->folder, flags, MODE);
    MDB_txn *txn = NULL;
    if (rc == 0)
        rc = mdb_txn_begin(self->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0)
        rc = mdb_dbi_open(txn, NULL, 0, &self->table);
    if (rc == 0)
        rc = mdb_txn_commit(txn); /* keeps the handle of the table */
    else if (txn != NULL)
        mdb_txn_abort(txn);
    if (rc == 0)
        return SK_ERR_OK;
    env_close(self);
    return fail(rc, what, d);
}

/* Blocks of the file beyond what is used, so that what gives room back can be committed on a full
 * disk. */
static enum sk_err room_make(struct lmdb_state *self, struct sk_diag *d)
{
    MDB_envinfo info;
    MDB_stat pages;
    struct stat file;
    int fd = -1;
    if (mdb_env_info(self->env, &info) != 0 || mdb_env_stat(self->env, &pages) != 0 ||
        mdb_env_get_fd(self->env, &fd) != 0 || fstat(fd, &file) != 0)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "keeper state: its file cannot be looked at");
    uint64_t wanted = ((uint64_t)info.me_last_pgno + 1) * pages.ms_psize + self->room_bytes;
    if (wanted > self->bytes_max)
        return fail(MDB_MAP_FULL, "keeper state", d);
    if ((uint64_t)file.st_size >= wanted)
        return SK_ERR_OK;
    /* twice the room, so that it is not made anew at every commit */
    int rc = posix_fallocate(fd, 0, (off_t)(wanted + self->room_bytes));
    return rc == 0 ? SK_ERR_OK : fail(rc == EINTR ? EIO : rc, "keeper state", d);
}

static enum sk_err read_format(struct lmdb_state *self, bool *is_new, struct sk_diag *d)
{
    MDB_txn *txn = NULL;
    MDB_stat pages = {0};
    MDB_val value, key = {sizeof format_key - 1, (void *)(uintptr_t)format_key};
    int rc = mdb_txn_begin(self->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return fail(rc, "keeper state", d);
    enum sk_err err = SK_ERR_OK;
    rc = mdb_stat(txn, self->table, &pages);
    *is_new = rc == 0 && pages.ms_entries == 0;
    if (rc == 0 && !*is_new)
        rc = mdb_get(txn, self->table, &key, &value);
    if (rc == MDB_NOTFOUND)
        err = sk_fail(d, SK_ERR_VERSION, "'%s' holds a database that is not a keeper's",
                      self->folder);
    else if (rc != 0)
        err = fail(rc, "keeper state", d);
    else if (!*is_new) {
        struct sk_reader from = sk_reader_of(sk_span_of(value.mv_data, value.mv_size));
        struct sk_value number;
        if (sk_read(&from, &number, NULL) != SK_ERR_OK || number.kind != SK_VALUE_UNSIGNED)
            err = sk_fail(d, SK_ERR_VERSION, "'%s' does not say its format", self->folder);
        else if (number.u64 != SK_STATE_FORMAT)
            err = sk_fail(d, SK_ERR_VERSION, "'%s' is of format %llu, this release reads %d: %s",
                          self->folder, (unsigned long long)number.u64, SK_STATE_FORMAT,
                          number.u64 > SK_STATE_FORMAT ? "it was written by a newer release"
                                                       : "it was written by an older release");
    }
    mdb_txn_abort(txn);
    return err;
}

static enum sk_err lock_folder(struct lmdb_state *self, struct sk_diag *d)
{
    char path[PATH_BYTES + 16];
    if (mkdir(self->folder, 0700) != 0 && errno != EEXIST)
        return sk_fail(d, errno == ENOSPC ? SK_ERR_DISK_FULL : SK_ERR_UNAVAILABLE,
                       "folder '%s' cannot be made: %s", self->folder, strerror(errno));
    (void)snprintf(path, sizeof path, "%s/owner", self->folder);
    self->owner_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, MODE);
    if (self->owner_fd < 0)
        return sk_fail(d, errno == ENOSPC ? SK_ERR_DISK_FULL : SK_ERR_UNAVAILABLE,
                       "file '%s' cannot be made: %s", path, strerror(errno));
    if (flock(self->owner_fd, LOCK_EX | LOCK_NB) != 0)
        return sk_fail(d, SK_ERR_UNAVAILABLE,
                       "'%s' is in use: another keeper runs in this folder", self->folder);
    return SK_ERR_OK;
}

/* ---- the interface ---- */

static bool holds(struct lmdb_state *self, MDB_txn *txn, const struct sk_state_pair *wanted, int *rc)
{
    MDB_val value, key = val_of(wanted->key);
    *rc = mdb_get(txn, self->table, &key, &value);
    if (*rc == MDB_NOTFOUND) {
        *rc = 0;
        return wanted->value.bytes == NULL;
    }
    return *rc == 0 && wanted->value.bytes != NULL &&
           sk_span_equals(wanted->value, sk_span_of(value.mv_data, value.mv_size));
}

static int apply(struct lmdb_state *self, MDB_txn *txn, const struct sk_state_pair *change)
{
    MDB_val value, key = val_of(change->key);
    SK_CHECK(change->key.size > 0 && change->key.size <= SK_STATE_KEY_BYTES_MAX);
    SK_CHECK(change->value.size <= SK_STATE_VALUE_BYTES_MAX);
    if (change->value.bytes == NULL) {
        int rc = mdb_del(txn, self->table, &key, NULL);
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    value = val_of(change->value);
    return mdb_put(txn, self->table, &key, &value, 0);
}

/* LMDB cannot always say whether a commit that failed is in the file; the file can. */
static enum sk_err outcome_of(struct lmdb_state *self, const struct sk_state_txn *txn, int failure,
                              bool *is_applied, struct sk_diag *d)
{
    self->is_whole_wanted = true;
    env_close(self);
    struct sk_diag ignored = {0};
    if (env_open(self, &ignored) != SK_ERR_OK)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "keeper state: %s, and it cannot be opened again: %.200s",
                       mdb_strerror(failure), ignored.text);
    MDB_txn *reader = NULL;
    int rc = mdb_txn_begin(self->env, NULL, MDB_RDONLY, &reader);
    *is_applied = rc == 0;
    for (unsigned i = 0; i < txn->change_count && rc == 0 && *is_applied; i++)
        *is_applied = holds(self, reader, &txn->changes[i], &rc);
    if (reader != NULL)
        mdb_txn_abort(reader);
    if (rc != 0)
        return sk_fail(d, SK_ERR_UNAVAILABLE, "keeper state: %s", mdb_strerror(rc));
    return *is_applied ? SK_ERR_OK : fail(failure, "keeper state", d);
}

static void remember(struct lmdb_state *self, const struct sk_state_txn *txn)
{
    for (unsigned i = 0; i < txn->change_count; i++) {
        const struct sk_state_pair *change = &txn->changes[i];
        sk_put_bin(&self->told, change->key.bytes, change->key.size);
        if (change->value.bytes == NULL)
            sk_put_nil(&self->told);
        else
            sk_put_bin(&self->told, change->value.bytes, change->value.size);
    }
    if (self->told.is_broken) /* no memory for that: the watch reads it from the file */
        self->is_whole_wanted = true;
}

static enum sk_err lmdb_commit(void *impl, const struct sk_state_txn *txn, bool *is_applied,
                               struct sk_diag *d)
{
    struct lmdb_state *self = impl;
    *is_applied = false;
    enum sk_err err = SK_ERR_OK;
    if (self->env == NULL) /* could not be opened again after a failure */
        err = env_open(self, d);
    if (err == SK_ERR_OK && !txn->is_release)
        err = room_make(self, d);
    if (err != SK_ERR_OK)
        return err;
    MDB_txn *writer = NULL;
    int rc = mdb_txn_begin(self->env, NULL, 0, &writer);
    bool holds_all = rc == 0;
    for (unsigned i = 0; i < txn->compare_count && rc == 0 && holds_all; i++)
        holds_all = holds(self, writer, &txn->compares[i], &rc);
    for (unsigned i = 0; i < txn->change_count && rc == 0 && holds_all; i++)
        rc = apply(self, writer, &txn->changes[i]);
    if (rc != 0 || !holds_all) {
        if (writer != NULL)
            mdb_txn_abort(writer);
        return rc == 0 ? SK_ERR_OK : fail(rc, "keeper state", d);
    }
    rc = mdb_txn_commit(writer);
    if (rc != 0)
        return outcome_of(self, txn, rc, is_applied, d);
    *is_applied = true;
    remember(self, txn);
    return SK_ERR_OK;
}

static enum sk_err watch_whole(struct lmdb_state *self, sk_state_visit visit, void *arg,
                               struct sk_diag *d)
{
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    enum sk_err err = SK_ERR_OK;
    if (self->env == NULL)
        err = env_open(self, d);
    if (err != SK_ERR_OK)
        return err;
    const struct sk_state_pair nothing = {0};
    int rc = mdb_txn_begin(self->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0)
        rc = mdb_cursor_open(txn, self->table, &cursor);
    if (rc == 0)
        err = visit(arg, &nothing, d);
    while (rc == 0 && err == SK_ERR_OK && (rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        const struct sk_state_pair pair = {sk_span_of(key.mv_data, key.mv_size),
                                           sk_span_of(value.mv_data, value.mv_size)};
        if (!sk_span_is(pair.key, format_key))
            err = visit(arg, &pair, d);
    }
    if (cursor != NULL)
        mdb_cursor_close(cursor);
    if (txn != NULL)
        mdb_txn_abort(txn);
    if (err != SK_ERR_OK)
        return err;
    return rc == MDB_NOTFOUND ? SK_ERR_OK : fail(rc, "keeper state", d);
}

static enum sk_err watch_news(struct lmdb_state *self, sk_state_visit visit, void *arg,
                              struct sk_diag *d)
{
    if (self->told.size == 0)
        return SK_ERR_OK;
    struct sk_reader from = sk_reader_of(sk_buffer_span(&self->told));
    enum sk_err err = SK_ERR_OK;
    while (sk_reader_left(&from) > 0 && err == SK_ERR_OK) {
        struct sk_value key, value;
        err = sk_read(&from, &key, d);
        if (err == SK_ERR_OK)
            err = sk_read(&from, &value, d);
        const struct sk_state_pair pair = {
            key.span, value.kind == SK_VALUE_NIL ? (struct sk_span){0} : value.span};
        if (err == SK_ERR_OK)
            err = visit(arg, &pair, d);
    }
    return err;
}

static enum sk_err lmdb_watch(void *impl, sk_state_visit visit, void *arg, struct sk_diag *d)
{
    struct lmdb_state *self = impl;
    enum sk_err err = self->is_whole_wanted ? watch_whole(self, visit, arg, d)
                                            : watch_news(self, visit, arg, d);
    sk_buffer_deinit(&self->told);
    self->is_whole_wanted = err != SK_ERR_OK;
    return err;
}

static void lmdb_close(void *impl)
{
    struct lmdb_state *self = impl;
    env_close(self);
    if (self->owner_fd >= 0)
        (void)close(self->owner_fd);
    sk_buffer_deinit(&self->told);
    free(self);
}

/* A new state is a state with its format in it. */
static enum sk_err write_format(struct lmdb_state *self, struct sk_diag *d)
{
    struct sk_buffer format = {0};
    bool is_applied = false;
    sk_put_u64(&format, SK_STATE_FORMAT);
    enum sk_err err = sk_buffer_check(&format, d);
    const struct sk_state_pair change = {sk_span_text(format_key), sk_buffer_span(&format)};
    const struct sk_state_txn txn = {.changes = &change, .change_count = 1};
    if (err == SK_ERR_OK)
        err = lmdb_commit(self, &txn, &is_applied, d);
    sk_buffer_deinit(&format);
    return err;
}

enum sk_err sk_state_lmdb_open(struct sk_state *out, const struct sk_state_lmdb_config *config,
                               struct sk_diag *d)
{
    bool is_new = false;
    *out = (struct sk_state){0};
    if (config->folder == NULL || strlen(config->folder) >= PATH_BYTES)
        return sk_fail(d, SK_ERR_INVALID, "the keeper's folder has no path or one over %d bytes",
                       PATH_BYTES - 1);
    struct lmdb_state *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the keeper's state");
    (void)snprintf(self->folder, sizeof self->folder, "%s", config->folder);
    self->owner_fd = -1;
    self->bytes_max = config->bytes_max != 0 ? config->bytes_max : 64ULL * 1024 * 1024;
    self->room_bytes = config->room_bytes != 0 ? config->room_bytes : 256ULL * 1024;
    self->no_sync = config->no_sync;
    self->is_whole_wanted = true;
    enum sk_err err = lock_folder(self, d);
    if (err == SK_ERR_OK)
        err = env_open(self, d);
    if (err == SK_ERR_OK)
        err = read_format(self, &is_new, d);
    if (err == SK_ERR_OK && is_new)
        err = write_format(self, d);
    if (err != SK_ERR_OK) {
        lmdb_close(self);
        return err;
    }
    *out = (struct sk_state){self, lmdb_commit, lmdb_watch, lmdb_close};
    return SK_ERR_OK;
}
