/* Key files: lines of  public-key = Z85  and  secret-key = Z85  (quotes and '_' for '-' are fine,
 * '#' begins a comment line), as the node writes them into keys/. */
#include "proto/client/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { KEYFILE_BYTES_MAX = 4096 };

static bool is_key(const char *text)
{
    uint8_t raw[32];
    if (strlen(text) != SK_Z85_KEY_CHARS)
        return false;
    bool is_z85 = zmq_z85_decode(raw, text) != NULL;
    explicit_bzero(raw, sizeof raw);
    return is_z85;
}

static char *trim(char *text)
{
    while (*text == ' ' || *text == '\t' || *text == '"')
        text++;
    size_t size = strlen(text);
    while (size > 0 && strchr(" \t\r\"", text[size - 1]) != NULL)
        text[--size] = '\0';
    return text;
}

/* The keys that are in the text; the outputs stay "" where there is none. Changes the text. */
static void parse(char *text, char *public_key, char *secret_key)
{
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        line = trim(line);
        if (is_key(line)) { /* a file of the public key alone */
            memcpy(public_key, line, SK_Z85_KEY_CHARS + 1);
            continue;
        }
        char *value = strchr(line, '=');
        if (line[0] == '#' || value == NULL)
            continue;
        *value++ = '\0';
        const char *name = trim(line);
        value = trim(value);
        bool is_public = strncmp(name, "public", 6) == 0,
             is_secret = strncmp(name, "secret", 6) == 0;
        if ((is_public || is_secret) && is_key(value))
            memcpy(is_public ? public_key : secret_key, value, SK_Z85_KEY_CHARS + 1);
    }
}

static enum skerry_code read_file(const char *path, char *text, bool is_secret,
                                  struct skerry_error *error)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, &status) != 0) {
        int reason = errno;
        if (fd >= 0)
            close(fd);
        return sk_client_unreachable(error, SKERRY_INVALID, "key file '%s': %s", path,
                                     strerror(reason));
    }
    enum skerry_code code = SKERRY_OK;
    ssize_t size = 0;
    if (!S_ISREG(status.st_mode))
        code = sk_client_unreachable(error, SKERRY_INVALID, "key file '%s' is not a file", path);
    else if (is_secret && (status.st_mode & 077) != 0)
        code =
            sk_client_unreachable(error, SKERRY_INVALID,
                                  "key file '%s' has mode %03o and others could read the secret: "
                                  "want 600 (chmod 600 '%s')",
                                  path, (unsigned)status.st_mode & 0777U, path);
    else if ((size = read(fd, text, KEYFILE_BYTES_MAX)) < 0)
        code = sk_client_unreachable(error, SKERRY_INVALID, "key file '%s': %s", path,
                                     strerror(errno));
    close(fd);
    text[size < 0 ? 0 : size] = '\0';
    return code;
}

enum skerry_code sk_keyfile_public(const char *key_or_path, char *out, struct skerry_error *error)
{
    char text[KEYFILE_BYTES_MAX + 1],
        public_key[SK_Z85_KEY_CHARS + 1] = "", secret_key[SK_Z85_KEY_CHARS + 1] = "";
    out[0] = '\0';
    if (is_key(key_or_path)) {
        memcpy(out, key_or_path, SK_Z85_KEY_CHARS + 1);
        return SKERRY_OK;
    }
    if (access(key_or_path, F_OK) != 0)
        return sk_client_unreachable(error, SKERRY_INVALID,
                                     "the public key is neither a key of %d Z85 characters nor a "
                                     "file: '%s'",
                                     SK_Z85_KEY_CHARS, key_or_path);
    enum skerry_code code = read_file(key_or_path, text, false, error);
    if (code == SKERRY_OK)
        parse(text, public_key, secret_key);
    explicit_bzero(text, sizeof text);
    explicit_bzero(secret_key, sizeof secret_key);
    if (code == SKERRY_OK && public_key[0] == '\0')
        code = sk_client_unreachable(error, SKERRY_INVALID,
                                     "'%s' holds no line 'public-key = ...' with a key of %d Z85 "
                                     "characters",
                                     key_or_path, SK_Z85_KEY_CHARS);
    if (code == SKERRY_OK)
        memcpy(out, public_key, SK_Z85_KEY_CHARS + 1);
    return code;
}

enum skerry_code sk_keyfile_secret(const char *path, char *public_key, char *secret_key,
                                   struct skerry_error *error)
{
    char text[KEYFILE_BYTES_MAX + 1];
    public_key[0] = secret_key[0] = '\0';
    enum skerry_code code = read_file(path, text, true, error);
    if (code == SKERRY_OK)
        parse(text, public_key, secret_key);
    explicit_bzero(text, sizeof text);
    if (code == SKERRY_OK && secret_key[0] == '\0')
        code = sk_client_unreachable(error, SKERRY_INVALID,
                                     "'%s' holds no line 'secret-key = ...' with a key of %d Z85 "
                                     "characters (make one with: skerry keys make NAME)",
                                     path, SK_Z85_KEY_CHARS);
    if (code == SKERRY_OK) {
        char derived[SK_Z85_KEY_CHARS + 1];
        if (zmq_curve_public(derived, secret_key) != 0)
            code =
                sk_client_unreachable(error, SKERRY_INVALID, "'%s': not a Curve secret key", path);
        else if (public_key[0] != '\0' && strcmp(public_key, derived) != 0)
            code = sk_client_unreachable(error, SKERRY_INVALID,
                                         "'%s': the public key is not the one of the secret key",
                                         path);
        else
            memcpy(public_key, derived, sizeof derived);
    }
    return code;
}
