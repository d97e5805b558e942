/* What the commands of `skerry` share: arguments, the connection, words and results.
 *
 * Results go to stdout, words about them to stderr. Exit status: 0 done, 1 failed, 2 wrong usage,
 * 3 the node cannot be reached. */
#ifndef SK_TOOLS_CLI_H
#define SK_TOOLS_CLI_H

#include "common/base/check.h"
#include "proto/client/internal.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum cli_status { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_UNREACHABLE = 3 };

enum cli_kind { CLI_FLAG, CLI_TEXT, CLI_U32, CLI_U64, CLI_DOUBLE, CLI_LIST, CLI_OPTIONAL };

enum { CLI_LIST_MAX = 64, CLI_ARGUMENTS_MAX = 4096 };

struct cli_list {
    const char *values[CLI_LIST_MAX];
    size_t count;
};

/* A flag that may have a value: --with-payload, --with-payload=a,b; the value may be the next word
 * once the command has all its arguments, when that word could be nothing else. */
struct cli_optional {
    bool is_given;
    const char *value;
};

/* target: bool, const char *, uint32_t, uint64_t, double, struct cli_list or struct cli_optional.
 * The last of an array has no name. */
struct cli_option {
    const char *name; /* without the dashes */
    enum cli_kind kind;
    void *target;
    const char *value; /* what stands for the value in help; NULL for flags */
    const char *help;
};

struct cli_command {
    const char *name;      /* "collection create" */
    const char *arguments; /* "NAME" */
    unsigned arguments_min, arguments_max;
    const char *summary; /* one line */
    const char *details; /* more, or NULL */
    const struct cli_option *options;
    int (*run)(int count, char **arguments);
};

/* The settings that every command takes. */
struct cli_settings {
    bool json;
    bool help;
    bool version;
    bool quiet;
    const char *dir;
    const char *connect;
    const char *server_key;
    const char *key;
    uint32_t deadline_ms;
};

extern struct cli_settings cli_settings;
extern const struct cli_option cli_global_options[];
extern const struct cli_command *const cli_commands[];

/* Fill the targets; *count and arguments get what is not an option. false: it said what is wrong.
 */
bool cli_parse(const struct cli_command *command, int argc, char **argv, int *count,
               char **arguments);
void cli_print_help(const struct cli_command *command);
void cli_print_overview(FILE *out);
void cli_print_completion(int count, char **words);
void cli_print_man(void);
/* The name of the list that is closest to word, or NULL when none is close. */
const char *cli_closest(const char *word, const char *const *names, size_t count);

/* Words on stderr: "skerry: ..."; return the status for the convenience of the caller. */
int cli_usage(const char *format, ...) SK_PRINTF(1, 2);
int cli_failed(const char *format, ...) SK_PRINTF(1, 2);
int cli_error(const struct skerry_error *error);        /* status 1 or 3 */
void cli_note(const char *format, ...) SK_PRINTF(1, 2); /* silent with --quiet */

/* The node that the settings name, NULL after it said why not and set *status. */
struct skerry *cli_connect(int *status);
/* Calls op with the JSON fields and parses the reply; with --json it is printed and *out stays
 * NULL. Returns the exit status. */
int cli_call(const char *op, json_t *fields /* taken */, json_t **out);
int cli_print_reply(const struct skerry_reply *reply); /* the reply as one line of JSON */
int cli_print_json(json_t *value /* taken */);

/* Is what was given with an option JSON? NULL is. false: it said what is wrong. */
bool cli_check_json(const char *option, const char *text);

/* Ids as typed: digits are a number, "str:5" the text 5, else a text. */
bool cli_id(const char *word, struct skerry_id *out);
const char *cli_id_text(const struct skerry_id *id, char *out, size_t size);
/* Numbers for people: "12,345", "1.2 GB", "3.4 s". Each returns out. */
const char *cli_count_text(uint64_t count, char out[32]);
const char *cli_bytes_text(double bytes, char out[32]);
const char *cli_duration_text(double seconds, char out[32]);
unsigned cli_width(void); /* of the terminal; 100 where there is none */
bool cli_is_terminal(FILE *file);
double cli_now_s(void); /* monotonic */

/* A table on stdout whose columns are as wide as their widest cell. */
struct cli_table;
struct cli_table *cli_table_new(unsigned columns, const char *const *heads);
void cli_table_cell(struct cli_table *self, const char *format, ...) SK_PRINTF(2, 3);
void cli_table_print(struct cli_table **self); /* and frees it; numbers stand right */

/* Any JSON value as indented lines of name and value. */
void cli_print_members(const json_t *value, int indent);
/* cli_call, and the reply's members so. */
int cli_show_call(const char *op, json_t *fields /* taken */);

/* Members of JSON objects that may be missing. */
double cli_json_number(const json_t *object, const char *name);
const char *cli_json_text(const json_t *object, const char *name); /* "" when missing */

#endif
