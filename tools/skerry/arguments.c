/* Options anywhere on the line, and help, from the one table of commands. */
#include "tools/skerry/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const struct cli_option no_options[] = {{0}};

static const struct cli_option *options_of(const struct cli_command *command)
{
    return command == NULL || command->options == NULL ? no_options : command->options;
}

static const struct cli_option *find(const struct cli_option *options, const char *name,
                                     size_t size)
{
    for (; options->name != NULL; options++)
        if (strlen(options->name) == size && memcmp(options->name, name, size) == 0)
            return options;
    return NULL;
}

/* Levenshtein, words of at most 63 characters. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[64];
    size_t b_size = strlen(b) < 63 ? strlen(b) : 63;
    for (unsigned j = 0; j <= b_size; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1] != '\0'; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            unsigned change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            unsigned other = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = change < other ? change : other;
        }
    }
    return row[b_size];
}

const char *cli_closest(const char *word, const char *const *names, size_t count)
{
    const char *best = NULL;
    unsigned best_distance = strlen(word) < 4 ? 2 : 3; /* further apart is no misspelling */
    for (size_t i = 0; i < count; i++) {
        unsigned d = distance(word, names[i]);
        if (d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    return best;
}

static bool unknown_option(const struct cli_command *command, const char *word)
{
    const char *names[128];
    size_t count = 0;
    for (const struct cli_option *o = options_of(command); o->name != NULL && count < 64; o++)
        names[count++] = o->name;
    for (const struct cli_option *o = cli_global_options; o->name != NULL && count < 128; o++)
        names[count++] = o->name;
    const char *closest = cli_closest(word + 2, names, count);
    if (closest != NULL)
        (void)cli_usage("unknown option '%s'; did you mean --%s?", word, closest);
    else
        (void)cli_usage("unknown option '%s'; 'skerry %s --help' lists them", word,
                        command == NULL ? "" : command->name);
    return false;
}

static bool set_number(const struct cli_option *option, const char *value)
{
    char *end = NULL;
    errno = 0;
    if (option->kind == CLI_DOUBLE) {
        *(double *)option->target = strtod(value, &end);
    } else {
        unsigned long long number = strtoull(value, &end, 10);
        if (value[0] == '-' || (option->kind == CLI_U32 && number > UINT32_MAX))
            errno = ERANGE;
        if (option->kind == CLI_U32)
            *(uint32_t *)option->target = (uint32_t)number;
        else
            *(uint64_t *)option->target = number;
    }
    if (errno == 0 && end != value && *end == '\0')
        return true;
    (void)cli_usage("--%s: '%s' is not a number%s", option->name, value,
                    option->kind == CLI_U32 ? " of 0 to 4,294,967,295" : "");
    return false;
}

static bool set(const struct cli_option *option, const char *value)
{
    struct cli_list *list = option->target;
    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)option->target = true;
        return true;
    case CLI_TEXT:
        *(const char **)option->target = value;
        return true;
    case CLI_LIST:
        if (list->count == CLI_LIST_MAX) {
            (void)cli_usage("--%s is given more than %d times", option->name, CLI_LIST_MAX);
            return false;
        }
        list->values[list->count++] = value;
        return true;
    case CLI_OPTIONAL:
        *(struct cli_optional *)option->target = (struct cli_optional){true, value};
        return true;
    case CLI_U32:
    case CLI_U64:
    case CLI_DOUBLE:
        break;
    }
    return set_number(option, value);
}

/* word begins with "--". *at moves on when the value is a word of its own. count: arguments so far.
 */
static bool take_option(const struct cli_command *command, int argc, char **argv, int *at,
                        int count)
{
    const char *word = argv[*at], *equals = strchr(word, '=');
    size_t size = equals == NULL ? strlen(word + 2) : (size_t)(equals - word - 2);
    const struct cli_option *option = find(options_of(command), word + 2, size);
    if (option == NULL)
        option = find(cli_global_options, word + 2, size);
    if (option == NULL)
        return unknown_option(command, word);
    if (option->kind == CLI_FLAG && equals != NULL) {
        (void)cli_usage("--%s takes no value", option->name);
        return false;
    }
    if (option->kind == CLI_OPTIONAL && equals == NULL) {
        bool has_value =
            (unsigned)count >= command->arguments_max && *at + 1 < argc && argv[*at + 1][0] != '-';
        return set(option, has_value ? argv[++*at] : NULL);
    }
    if (option->kind == CLI_FLAG || equals != NULL)
        return set(option, equals == NULL ? NULL : equals + 1);
    if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0) { /* --dir=--x for such a value */
        (void)cli_usage("--%s wants a value: --%s %s", option->name, option->name, option->value);
        return false;
    }
    return set(option, argv[++*at]);
}

bool cli_parse(const struct cli_command *command, int argc, char **argv, int *count,
               char **arguments)
{
    bool is_over = false;
    *count = 0;
    for (int i = 0; i < argc; i++) {
        if (!is_over && strcmp(argv[i], "--") == 0) {
            is_over = true;
        } else if (!is_over && strcmp(argv[i], "-h") == 0) {
            cli_settings.help = true;
        } else if (!is_over && strncmp(argv[i], "--", 2) == 0) {
            if (!take_option(command, argc, argv, &i, *count))
                return false;
        } else if (!is_over && argv[i][0] == '-' && argv[i][1] != '\0') {
            (void)cli_usage("unknown option '%s' (options have two dashes; put '--' before a word "
                            "that begins with one)",
                            argv[i]);
            return false;
        } else if (*count == CLI_ARGUMENTS_MAX) {
            (void)cli_usage("more than %d arguments", CLI_ARGUMENTS_MAX);
            return false;
        } else {
            arguments[(*count)++] = argv[i];
        }
    }
    if (command == NULL || cli_settings.help)
        return true;
    if ((unsigned)*count < command->arguments_min || (unsigned)*count > command->arguments_max) {
        (void)cli_usage("usage: skerry %s%s%s", command->name,
                        command->arguments[0] == '\0' ? "" : " ", command->arguments);
        return false;
    }
    return true;
}

/* ---- Help ---- */

static void print_options(FILE *out, const struct cli_option *options)
{
    for (; options->name != NULL; options++) {
        char left[64];
        bool is_optional = options->kind == CLI_OPTIONAL;
        snprintf(left, sizeof left, "--%s%s%s%s", options->name,
                 options->value == NULL ? ""
                 : is_optional          ? "[="
                                        : " ",
                 options->value == NULL ? "" : options->value, is_optional ? "]" : "");
        fprintf(out, "  %-26s %s\n", left, options->help);
    }
}

void cli_print_help(const struct cli_command *command)
{
    printf("usage: skerry [--dir DIR | --connect tcp://HOST:PORT --server-key KEY --key FILE] "
           "%s %s%s\n\n%s.\n",
           command->name, command->arguments,
           options_of(command)->name == NULL ? "" : " [OPTION ...]", command->summary);
    if (command->details != NULL)
        printf("%s\n", command->details);
    if (options_of(command)->name != NULL) {
        printf("\nOptions:\n");
        print_options(stdout, command->options);
    }
    printf("\nOptions of every command:\n");
    print_options(stdout, cli_global_options);
}

void cli_print_overview(FILE *out)
{
    fprintf(out, "usage: skerry [OPTION ...] COMMAND [ARGUMENT ...]\n\nCommands:\n");
    for (const struct cli_command *const *c = cli_commands; *c != NULL; c++)
        fprintf(out, "  %-20s %s\n", (*c)->name, (*c)->summary);
    fprintf(out, "\nOptions:\n");
    print_options(out, cli_global_options);
    fprintf(
        out,
        "\n'skerry COMMAND --help' tells more. Ids: digits are an integer, str:5 is the text 5.\n"
        "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the node cannot be reached.\n");
}
