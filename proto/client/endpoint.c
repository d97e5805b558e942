/* What a target names: a node's folder, a socket, or an address with its keys. */
#include "proto/client/internal.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SOCKET_PATH_BYTES_MAX = 107 };

static enum skerry_code resolve_folder(struct sk_endpoint *self, const char *folder,
                                       struct skerry_error *error)
{
    char path[SK_ENDPOINT_BYTES - 6];
    struct stat status;
    if (stat(folder, &status) != 0)
        return sk_client_unreachable(
            error, SKERRY_UNAVAILABLE, "no folder '%s': %s%s", folder, strerror(errno),
            strchr(folder, ':') == NULL ? "" : " (an address begins with tcp://)");
    int size = S_ISSOCK(status.st_mode) ? snprintf(path, sizeof path, "%s", folder)
                                        : snprintf(path, sizeof path, "%s/run/client.ipc", folder);
    if (size < 0 || size > SOCKET_PATH_BYTES_MAX)
        return sk_client_unreachable(
            error, SKERRY_TOO_LARGE,
            "the path of the socket, '%s/run/client.ipc', passes %d bytes: "
            "give a shorter one (a relative path, or a link)",
            folder, SOCKET_PATH_BYTES_MAX);
    if (stat(path, &status) != 0)
        return errno == EACCES
                   ? sk_client_unreachable(error, SKERRY_UNAUTHORIZED,
                                           "'%s' may not be opened by this user", path)
                   : sk_client_unreachable(error, SKERRY_UNAVAILABLE,
                                           "no node runs in '%s' (there is no %s); start one with: "
                                           "skerry node start --dir %s",
                                           folder, path, folder);
    if (access(path, R_OK | W_OK) != 0)
        return sk_client_unreachable(error, SKERRY_UNAUTHORIZED,
                                     "'%s' may not be opened by this user: %s", path,
                                     strerror(errno));
    snprintf(self->text, sizeof self->text, "ipc://%s", path);
    return SKERRY_OK;
}

static enum skerry_code take_keys(struct sk_endpoint *self, const struct skerry_options *options,
                                  struct skerry_error *error)
{
    if (options->server_key == NULL)
        return sk_client_unreachable(error, SKERRY_INVALID,
                                     "'%s' needs the node's public key (server_key, --server-key): "
                                     "it is in run/node.json of the node, member public_key",
                                     self->text);
    enum skerry_code code = sk_keyfile_public(options->server_key, self->server_key, error);
    if (code != SKERRY_OK)
        return code;
    self->is_curve = true;
    if (options->key_file != NULL)
        return sk_keyfile_secret(options->key_file, self->public_key, self->secret_key, error);
    if (options->public_key == NULL || options->secret_key == NULL ||
        strlen(options->public_key) != SK_Z85_KEY_CHARS ||
        strlen(options->secret_key) != SK_Z85_KEY_CHARS)
        return sk_client_unreachable(
            error, SKERRY_INVALID,
            "'%s' needs the client's keys: a key file (key_file, --key), or "
            "public_key and secret_key of %d characters each",
            self->text, SK_Z85_KEY_CHARS);
    memcpy(self->public_key, options->public_key, SK_Z85_KEY_CHARS + 1);
    memcpy(self->secret_key, options->secret_key, SK_Z85_KEY_CHARS + 1);
    return SKERRY_OK;
}

enum skerry_code sk_endpoint_resolve(struct sk_endpoint *self, const char *target,
                                     const struct skerry_options *options,
                                     struct skerry_error *error)
{
    bool is_tcp = strncmp(target, "tcp://", 6) == 0;
    if (!is_tcp && strncmp(target, "ipc://", 6) != 0)
        return resolve_folder(self, target, error);
    if (strlen(target) >= sizeof self->text)
        return sk_client_unreachable(error, SKERRY_TOO_LARGE, "the endpoint passes %d bytes",
                                     SK_ENDPOINT_BYTES - 1);
    if (!is_tcp && strlen(target + 6) > SOCKET_PATH_BYTES_MAX)
        return sk_client_unreachable(error, SKERRY_TOO_LARGE, "the path in '%s' passes %d bytes",
                                     target, SOCKET_PATH_BYTES_MAX);
    snprintf(self->text, sizeof self->text, "%s", target);
    return is_tcp ? take_keys(self, options, error) : SKERRY_OK;
}
