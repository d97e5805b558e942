#include "tools/skerry/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct cli_settings cli_settings;

const struct cli_option cli_global_options[] = {
    {"dir", CLI_TEXT, &cli_settings.dir, "DIR", "the node's folder (also SKERRY_DIR)"},
    {"connect", CLI_TEXT, &cli_settings.connect, "ENDPOINT", "tcp://HOST:PORT of a node elsewhere"},
    {"server-key", CLI_TEXT, &cli_settings.server_key, "KEY", "the node's public key, or its file"},
    {"key", CLI_TEXT, &cli_settings.key, "FILE", "this client's key file (mode 600)"},
    {"deadline-ms", CLI_U32, &cli_settings.deadline_ms, "MS", "how long to wait for the node"},
    {"json", CLI_FLAG, &cli_settings.json, NULL, "the result as JSON, one line"},
    {"quiet", CLI_FLAG, &cli_settings.quiet, NULL, "no words beside the result"},
    {"help", CLI_FLAG, &cli_settings.help, NULL, "this text"},
    {"version", CLI_FLAG, &cli_settings.version, NULL, "the version of this command"},
    {0},
};

/* ---- Words ---- */

static SK_PRINTF(2, 0) void say(const char *name, const char *format, va_list args)
{
    char text[1024];
    vsnprintf(text, sizeof text, format, args);
    if (cli_settings.json) {
        json_t *error = json_pack("{s:{s:s,s:s}}", "error", "name", name, "message", text);
        if (error != NULL)
            json_dumpf(error, stderr, JSON_COMPACT);
        fputc('\n', stderr);
        json_decref(error);
        return;
    }
    fprintf(stderr, "skerry: %s\n", text);
}

int cli_usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("usage", format, args);
    va_end(args);
    return CLI_USAGE;
}

int cli_failed(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("failed", format, args);
    va_end(args);
    return CLI_FAILED;
}

void cli_note(const char *format, ...)
{
    va_list args;
    if (cli_settings.quiet)
        return;
    fflush(stdout); /* what was said about a result stands behind it */
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

int cli_error(const struct skerry_error *error)
{
    if (cli_settings.json) {
        json_t *value = json_pack("{s:{s:i,s:s,s:s,s:b,s:s}}", "error", "code", (int)error->code,
                                  "name", error->name, "field", error->field, "retriable",
                                  error->retriable, "message", error->message);
        if (value != NULL)
            json_dumpf(value, stderr, JSON_COMPACT);
        fputc('\n', stderr);
        json_decref(value);
    } else {
        fprintf(stderr, "skerry: %s%s%s: %s\n", error->name, error->field[0] == '\0' ? "" : " in ",
                error->field, error->message);
    }
    if (!error->is_unreachable)
        return CLI_FAILED;
    return error->code == SKERRY_INVALID ? CLI_USAGE : CLI_UNREACHABLE;
}

/* ---- The node ---- */

static const char *default_dir(void)
{
    const char *dir = getenv("SKERRY_DIR");
    struct stat status;
    if (dir != NULL && dir[0] != '\0')
        return dir;
    return stat("run/node.json", &status) == 0 ? "." : NULL;
}

struct skerry *cli_connect(int *status)
{
    struct skerry_error error = {0};
    const char *target = cli_settings.connect != NULL ? cli_settings.connect
                         : cli_settings.dir != NULL   ? cli_settings.dir
                                                      : default_dir();
    if (cli_settings.connect != NULL && cli_settings.dir != NULL) {
        *status = cli_usage("--dir and --connect name two nodes: give one of them");
        return NULL;
    }
    if (target == NULL) {
        *status = cli_usage("which node? --dir DIR, or --connect tcp://HOST:PORT --server-key KEY "
                            "--key FILE");
        return NULL;
    }
    struct skerry_options options = {.server_key = cli_settings.server_key,
                                     .key_file = cli_settings.key,
                                     .deadline_ms = cli_settings.deadline_ms};
    struct skerry *db = skerry_connect(target, &options, &error);
    *status = db == NULL ? cli_error(&error) : CLI_DONE;
    return db;
}

int cli_print_reply(const struct skerry_reply *reply)
{
    char *text = skerry_reply_json(reply);
    if (text == NULL)
        return cli_failed("no memory for the reply, or it holds what JSON cannot");
    puts(text);
    skerry_text_free(&text);
    return CLI_DONE;
}

int cli_print_json(json_t *value)
{
    if (value == NULL)
        return cli_failed("no memory for the result");
    int rc = json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(value);
    return rc == 0 ? CLI_DONE : CLI_FAILED;
}

static int show_reply(const struct skerry_reply *reply, json_t **out)
{
    json_error_t problem;
    if (cli_settings.json)
        return cli_print_reply(reply);
    char *text = skerry_reply_json(reply);
    *out = text == NULL ? NULL : json_loads(text, 0, &problem);
    skerry_text_free(&text);
    return *out == NULL ? cli_failed("the reply cannot be shown as JSON") : CLI_DONE;
}

int cli_call(const char *op, json_t *fields, json_t **out)
{
    struct skerry_error error = {0};
    struct skerry_reply *reply = NULL;
    int status = CLI_FAILED;
    char *text = fields == NULL ? NULL : json_dumps(fields, JSON_COMPACT);
    bool is_broken = fields != NULL && text == NULL;
    json_decref(fields);
    *out = NULL;
    if (is_broken)
        return cli_failed("no memory for the request");
    struct skerry *db = cli_connect(&status);
    if (db != NULL) {
        if (skerry_call_json(db, op, text, cli_settings.deadline_ms, &reply, &error) != SKERRY_OK)
            status = cli_error(&error);
        else
            status = show_reply(reply, out);
    }
    free(text);
    skerry_reply_free(&reply);
    skerry_close(&db);
    return status;
}

bool cli_check_json(const char *option, const char *text)
{
    struct skerry_error error = {0};
    struct skerry_bytes bytes = {0};
    enum skerry_code code =
        text == NULL ? SKERRY_OK : skerry_json_to_msgpack(text, strlen(text), &bytes, &error);
    skerry_bytes_free(&bytes);
    if (code != SKERRY_OK)
        (void)cli_usage("%s: %s", option, error.message);
    return code == SKERRY_OK;
}

/* ---- Ids ---- */

bool cli_id(const char *word, struct skerry_id *out)
{
    char *end = NULL;
    *out = (struct skerry_id){0};
    if (strncmp(word, "str:", 4) == 0) {
        out->text = word + 4;
        return true;
    }
    if (word[0] == '\0' || word[strspn(word, "0123456789")] != '\0') {
        out->text = word;
        return word[0] != '\0';
    }
    errno = 0;
    out->number = strtoull(word, &end, 10);
    return errno == 0; /* 2^64 and above are no id; as a text they would be another one */
}

const char *cli_id_text(const struct skerry_id *id, char *out, size_t size)
{
    if (id->text == NULL)
        snprintf(out, size, "%llu", (unsigned long long)id->number);
    else if (id->text[strspn(id->text, "0123456789")] == '\0' || strncmp(id->text, "str:", 4) == 0)
        snprintf(out, size, "str:%s", id->text); /* as it would have to be typed */
    else
        snprintf(out, size, "%s", id->text);
    return out;
}

/* ---- Time and JSON ---- */

double cli_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double cli_json_number(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

const char *cli_json_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text == NULL ? "" : text;
}
