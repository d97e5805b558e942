#include "common/shell/keys.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { KEY_FILE_BYTES_MAX = 4096, KEY_PATH_BYTES = 600, KEY_CHARS = SK_KEY_TEXT_BYTES - 1 };

void sk_keys_wipe(struct sk_keys *self)
{
    explicit_bzero(self, sizeof *self);
}

static bool is_key(const char *text)
{
    uint8_t raw[32];
    bool is_z85 = strlen(text) == KEY_CHARS && zmq_z85_decode(raw, text) != NULL;
    explicit_bzero(raw, sizeof raw);
    return is_z85;
}

/* Over blanks and quotes at both ends; changes the text. */
static char *trim(char *text)
{
    while (*text == '"' || isspace((unsigned char)*text))
        text++;
    size_t size = strlen(text);
    while (size > 0 && (text[size - 1] == '"' || isspace((unsigned char)text[size - 1])))
        text[--size] = '\0';
    return text;
}

/* The value of the first line "name = value" that is a key; changes the text no more than strtok.
 */
static void parse(struct sk_keys *out, char *text)
{
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        char *value = strchr(line, '=');
        if (line[0] == '#' || value == NULL)
            continue;
        *value++ = '\0';
        line = trim(line);
        value = trim(value);
        if (!is_key(value))
            continue;
        if (strcmp(line, "public-key") == 0)
            memcpy(out->public_key, value, SK_KEY_TEXT_BYTES);
        else if (strcmp(line, "secret-key") == 0)
            memcpy(out->secret_key, value, SK_KEY_TEXT_BYTES);
    }
}

static enum sk_err read_keys(struct sk_keys *out, const char *path, bool is_secret,
                             struct sk_diag *d)
{
    char text[KEY_FILE_BYTES_MAX + 1];
    struct stat status;
    memset(out, 0, sizeof *out);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return sk_fail(d, errno == ENOENT ? SK_ERR_NOT_FOUND : SK_ERR_FORBIDDEN,
                       "key file '%s': %s", path, strerror(errno));
    enum sk_err rc = SK_ERR_OK;
    ssize_t size = 0;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
        rc = sk_fail(d, SK_ERR_INVALID, "key file '%s' is not a file", path);
    else if (is_secret && (status.st_mode & 077) != 0)
        rc = sk_fail(d, SK_ERR_FORBIDDEN,
                     "key file '%s' has mode %03o and others could read the secret: want 600 "
                     "(chmod 600 '%s')",
                     path, status.st_mode & 0777U, path);
    else if ((size = read(fd, text, KEY_FILE_BYTES_MAX)) < 0)
        rc = sk_fail(d, SK_ERR_INVALID, "key file '%s': %s", path, strerror(errno));
    close(fd);
    text[size < 0 ? 0 : size] = '\0';
    if (rc == SK_ERR_OK)
        parse(out, text);
    explicit_bzero(text, sizeof text);
    return rc;
}

enum sk_err sk_keys_load(struct sk_keys *out, const char *path, struct sk_diag *d)
{
    char derived[SK_KEY_TEXT_BYTES];
    enum sk_err rc = read_keys(out, path, true, d);
    if (rc == SK_ERR_OK && out->secret_key[0] == '\0')
        rc = sk_fail(d, SK_ERR_INVALID,
                     "key file '%s' has no line 'secret-key = ...' with a key of %d "
                     "Z85 characters",
                     path, KEY_CHARS);
    else if (rc == SK_ERR_OK && zmq_curve_public(derived, out->secret_key) != 0)
        rc = sk_fail(d, SK_ERR_INVALID, "key file '%s': that is no Curve secret key", path);
    else if (rc == SK_ERR_OK && out->public_key[0] != '\0' && strcmp(out->public_key, derived) != 0)
        rc = sk_fail(d, SK_ERR_INVALID,
                     "key file '%s': the public key is not the one of the secret key", path);
    if (rc != SK_ERR_OK) {
        sk_keys_wipe(out);
        return rc;
    }
    memcpy(out->public_key, derived, sizeof derived);
    return SK_ERR_OK;
}

enum sk_err sk_keys_load_public(struct sk_keys *out, const char *path, struct sk_diag *d)
{
    enum sk_err rc = read_keys(out, path, false, d);
    explicit_bzero(out->secret_key, sizeof out->secret_key);
    if (rc == SK_ERR_OK && out->public_key[0] == '\0')
        rc = sk_fail(d, SK_ERR_INVALID,
                     "key file '%s' has no line 'public-key = ...' with a key of %d "
                     "Z85 characters",
                     path, KEY_CHARS);
    return rc;
}

/* Whole or not at all: written beside, synced, renamed. */
static enum sk_err write_file(const char *path, mode_t mode, const char *text, struct sk_diag *d)
{
    char beside[KEY_PATH_BYTES];
    snprintf(beside, sizeof beside, "%s.new", path);
    (void)unlink(beside);
    int fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    bool is_written = fd >= 0 && fchmod(fd, mode) == 0 &&
                      write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fsync(fd) == 0 &&
                      rename(beside, path) == 0;
    int reason = errno;
    if (fd >= 0)
        close(fd);
    if (is_written)
        return SK_ERR_OK;
    (void)unlink(beside);
    return sk_fail(d, reason == ENOSPC ? SK_ERR_DISK_FULL : SK_ERR_UNAVAILABLE,
                   "cannot write key file '%s': %s", path, strerror(reason));
}

static enum sk_err write_public(const struct sk_keys *keys, const char *path, struct sk_diag *d)
{
    char text[128];
    snprintf(text, sizeof text, "public-key = \"%s\"\n", keys->public_key);
    return write_file(path, 0644, text, d);
}

static enum sk_err make(struct sk_keys *out, const char *path, const char *public_path,
                        struct sk_diag *d)
{
    char text[256];
    memset(out, 0, sizeof *out);
    if (zmq_curve_keypair(out->public_key, out->secret_key) != 0)
        return sk_fail(d, SK_ERR_INTERNAL, "this libzmq has no CURVE");
    snprintf(text, sizeof text, "public-key = \"%s\"\nsecret-key = \"%s\"\n", out->public_key,
             out->secret_key);
    enum sk_err rc = write_file(path, 0600, text, d);
    explicit_bzero(text, sizeof text);
    if (rc == SK_ERR_OK)
        rc = write_public(out, public_path, d);
    if (rc != SK_ERR_OK)
        sk_keys_wipe(out);
    return rc;
}

static enum sk_err sync_folder(const char *path, struct sk_diag *d)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool is_synced = fd >= 0 && fsync(fd) == 0;
    int reason = errno;
    if (fd >= 0)
        close(fd);
    return is_synced
               ? SK_ERR_OK
               : sk_fail(d, SK_ERR_UNAVAILABLE, "cannot sync '%s': %s", path, strerror(reason));
}

enum sk_err sk_keys_load_or_make(struct sk_keys *out, const char *dir, const char *name,
                                 struct sk_diag *d)
{
    char folder[KEY_PATH_BYTES / 2], path[KEY_PATH_BYTES - 8], public_path[KEY_PATH_BYTES - 8];
    if (snprintf(folder, sizeof folder, "%s/keys", dir) >= (int)sizeof folder)
        return sk_fail(d, SK_ERR_TOO_LARGE, "the path '%s' is too long", dir);
    snprintf(path, sizeof path, "%s/%s.key", folder, name);
    snprintf(public_path, sizeof public_path, "%s/%s.pub", folder, name);
    enum sk_err rc = sk_keys_load(out, path, d);
    if (rc == SK_ERR_NOT_FOUND)
        rc = make(out, path, public_path, d);
    else if (rc == SK_ERR_OK && access(public_path, F_OK) != 0)
        rc = write_public(out, public_path, d);
    if (rc == SK_ERR_OK)
        rc = sync_folder(folder, d);
    if (rc != SK_ERR_OK)
        sk_keys_wipe(out);
    return rc;
}
