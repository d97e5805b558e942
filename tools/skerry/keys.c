/* skerry keys ...: who may come in over CURVE. */
#include "tools/skerry/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

static struct {
    const char *public_key, *role, *out;
} options;

static const struct cli_option add_options[] = {
    {"public", CLI_TEXT, &options.public_key, "KEY", "the client's public key, or a file with it"},
    {"role", CLI_TEXT, &options.role, "ROLE", "admin, write (default) or read"},
    {0},
};

static const struct cli_option make_options[] = {
    {"role", CLI_TEXT, &options.role, "ROLE", "admin, write (default) or read"},
    {"out", CLI_TEXT, &options.out, "FILE", "where the key file goes (NAME.key)"},
    {0},
};

static int list(int count, char **arguments)
{
    static const char *const heads[] = {"name", "role", "public key"};
    json_t *reply = NULL, *key;
    size_t i;
    (void)count;
    (void)arguments;
    int status = cli_call("list_keys", NULL, &reply);
    if (reply == NULL)
        return status;
    struct cli_table *table = cli_table_new(3, heads);
    json_array_foreach(json_object_get(reply, "keys"), i, key)
    {
        cli_table_cell(table, "%s", cli_json_text(key, "name"));
        cli_table_cell(table, "%s", cli_json_text(key, "role"));
        cli_table_cell(table, "%s", cli_json_text(key, "public_key"));
    }
    cli_table_print(&table);
    json_decref(reply);
    return status;
}

const struct cli_command cli_keys_list = {
    .name = "keys list",
    .arguments = "",
    .summary = "List the keys that may connect",
    .run = list,
};

static json_t *key_fields(const char *name, const char *public_key)
{
    return json_pack("{s:s,s:s,s:s}", "name", name, "public_key", public_key, "role",
                     options.role == NULL ? "write" : options.role);
}

static int add(int count, char **arguments)
{
    char public_key[SK_Z85_KEY_CHARS + 1];
    struct skerry_error error = {0};
    json_t *reply = NULL;
    (void)count;
    if (options.public_key == NULL)
        return cli_usage("--public KEY is needed (to make a new pair: skerry keys make %s)",
                         arguments[0]);
    if (sk_keyfile_public(options.public_key, public_key, &error) != SKERRY_OK)
        return cli_usage("--public: %s", error.message);
    int status = cli_call("create_key", key_fields(arguments[0], public_key), &reply);
    if (reply != NULL)
        printf("added %s\n", arguments[0]);
    json_decref(reply);
    return status;
}

const struct cli_command cli_keys_add = {
    .name = "keys add",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Let a client's public key in",
    .options = add_options,
    .run = add,
};

static int write_key_file(const char *path, const char *name, const char *public_key,
                          const char *secret_key)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return cli_failed("cannot make the key file '%s': %s", path, strerror(errno));
    bool is_written = dprintf(fd,
                              "# Skerry client key '%s': keep it secret\npublic-key = %s\n"
                              "secret-key = %s\n",
                              name, public_key, secret_key) > 0 &&
                      fsync(fd) == 0;
    if (close(fd) != 0 || !is_written) {
        unlink(path);
        return cli_failed("cannot write the key file '%s': %s", path, strerror(errno));
    }
    return CLI_DONE;
}

/* The pair is made here and its secret half never leaves this machine. */
static int make(int count, char **arguments)
{
    char public_key[SK_Z85_KEY_CHARS + 1], secret_key[SK_Z85_KEY_CHARS + 1], path[4096];
    json_t *reply = NULL;
    (void)count;
    snprintf(path, sizeof path, "%s%s", options.out == NULL ? arguments[0] : options.out,
             options.out == NULL ? ".key" : "");
    if (zmq_curve_keypair(public_key, secret_key) != 0)
        return cli_failed("cannot make a key pair: %s", zmq_strerror(errno));
    int status = write_key_file(path, arguments[0], public_key, secret_key);
    explicit_bzero(secret_key, sizeof secret_key);
    if (status != CLI_DONE)
        return status;
    bool wants_json = cli_settings.json;
    cli_settings.json = false;
    status = cli_call("create_key", key_fields(arguments[0], public_key), &reply);
    cli_settings.json = wants_json;
    json_decref(reply);
    if (status != CLI_DONE) {
        unlink(path); /* a key that nobody lets in helps nobody */
        return status;
    }
    if (wants_json)
        return cli_print_json(json_pack("{s:s,s:s,s:s}", "name", arguments[0], "public_key",
                                        public_key, "file", path));
    printf("%s  public key %s\n", path, public_key);
    return CLI_DONE;
}

const struct cli_command cli_keys_make = {
    .name = "keys make",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Make a key pair for a client, write its file, and let it in",
    .options = make_options,
    .run = make,
};

static int revoke_key(int count, char **arguments)
{
    json_t *reply = NULL;
    (void)count;
    int status = cli_call("revoke_key", json_pack("{s:s}", "name", arguments[0]), &reply);
    if (reply != NULL)
        printf("revoked %s\n", arguments[0]);
    json_decref(reply);
    return status;
}

const struct cli_command cli_keys_revoke = {
    .name = "keys revoke",
    .arguments = "NAME",
    .arguments_min = 1,
    .arguments_max = 1,
    .summary = "Shut a key out at its next message",
    .run = revoke_key,
};
