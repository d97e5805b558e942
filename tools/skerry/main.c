/* skerry: the command for people and scripts. */
#include "tools/skerry/commands.h"

#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

const struct cli_command *const cli_commands[] = {
    &cli_node_start,
    &cli_node_stop,
    &cli_node_status,
    &cli_collection_create,
    &cli_collection_list,
    &cli_collection_describe,
    &cli_collection_alter,
    &cli_collection_drop,
    &cli_import,
    &cli_export,
    &cli_search,
    &cli_get,
    &cli_delete,
    &cli_count,
    &cli_topology,
    &cli_top,
    &cli_stats,
    &cli_info,
    &cli_keys_list,
    &cli_keys_add,
    &cli_keys_make,
    &cli_keys_revoke,
    &cli_snapshot,
    &cli_restore,
    &cli_wait,
    &cli_verify,
    &cli_compact,
    &cli_bench,
    NULL,
};

/* The command whose words the arguments begin with; *words tells how many they are. */
static const struct cli_command *find(int count, char **arguments, int *words)
{
    for (const struct cli_command *const *c = cli_commands; *c != NULL; c++) {
        const char *name = (*c)->name;
        const char *space = strchr(name, ' ');
        if (space == NULL && strcmp(arguments[0], name) == 0) {
            *words = 1;
            return *c;
        }
        if (space != NULL && count > 1 && strlen(arguments[0]) == (size_t)(space - name) &&
            strncmp(arguments[0], name, (size_t)(space - name)) == 0 &&
            strcmp(arguments[1], space + 1) == 0) {
            *words = 2;
            return *c;
        }
    }
    return NULL;
}

static int unknown_command(int count, char **arguments)
{
    char typed[128], group[128] = "";
    const char *names[64];
    size_t name_count = 0;
    bool is_group = false;
    snprintf(typed, sizeof typed, "%s%s%s", arguments[0], count > 1 ? " " : "",
             count > 1 ? arguments[1] : "");
    for (const struct cli_command *const *c = cli_commands; *c != NULL; c++) {
        size_t size = strlen(arguments[0]);
        names[name_count++] = (*c)->name;
        if (strncmp((*c)->name, arguments[0], size) == 0 && (*c)->name[size] == ' ') {
            is_group = true;
            size_t used = strlen(group);
            snprintf(group + used, sizeof group - used, "%s%s", used > 0 ? ", " : "",
                     (*c)->name + size + 1);
        }
    }
    const char *closest = cli_closest(is_group ? typed : arguments[0], names, name_count);
    if (closest != NULL && (!is_group || count > 1))
        return cli_usage("no command '%s'; did you mean '%s'?", is_group ? typed : arguments[0],
                         closest);
    if (is_group)
        return cli_usage("'skerry %s' wants one of: %s", arguments[0], group);
    return cli_usage("no command '%s'; 'skerry --help' lists them", arguments[0]);
}

/* A global option whose value is the next word. */
static bool takes_next_word(const char *word)
{
    for (const struct cli_option *o = cli_global_options; o->name != NULL; o++)
        if (strncmp(word, "--", 2) == 0 && strcmp(word + 2, o->name) == 0)
            return o->kind != CLI_FLAG;
    return false;
}

static bool is_global(const char *word)
{
    for (const struct cli_option *o = cli_global_options; o->name != NULL; o++) {
        size_t size = strlen(o->name);
        if (strncmp(word, "--", 2) == 0 && strncmp(word + 2, o->name, size) == 0 &&
            (word[2 + size] == '\0' || word[2 + size] == '='))
            return true;
    }
    return strcmp(word, "-h") == 0;
}

/* The words of a command cannot be told from the values of its options before it is known; so it is
 * looked for before the first option that is not a global one. */
static const struct cli_command *locate(int argc, char **argv, int *status)
{
    char *words[3] = {0};
    int count = 0, used = 0;
    for (int i = 1; i < argc && count < 2; i++) {
        if (argv[i][0] != '-') {
            words[count++] = argv[i];
            continue;
        }
        if (count > 0 && !is_global(argv[i]))
            break;
        i += takes_next_word(argv[i]);
    }
    *status = CLI_DONE;
    if (count == 0)
        return NULL;
    const struct cli_command *command = find(count, words, &used);
    for (int i = 1; command == NULL && i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return NULL; /* the overview helps more than words about a wrong command */
    if (command == NULL)
        *status = unknown_command(count, words);
    return command;
}

static int run(const struct cli_command *command, int argc, char **argv)
{
    static char *arguments[CLI_ARGUMENTS_MAX];
    int count = 0, skipped = strchr(command->name, ' ') == NULL ? 1 : 2;
    /* Drop the words of the command, wherever they stand. */
    char **rest = calloc((size_t)argc + 1, sizeof *rest);
    if (rest == NULL)
        return cli_failed("no memory");
    int rest_count = 0;
    for (int i = 1; i < argc; i++) {
        bool is_value = i > 1 && takes_next_word(argv[i - 1]);
        if (skipped > 0 && !is_value && argv[i][0] != '-')
            skipped--;
        else
            rest[rest_count++] = argv[i];
    }
    bool is_parsed = cli_parse(command, rest_count, rest, &count, arguments);
    int status = CLI_USAGE;
    if (is_parsed && cli_settings.help) {
        cli_print_help(command);
        status = CLI_DONE;
    } else if (is_parsed) {
        status = command->run(count, arguments);
    }
    free(rest);
    return status;
}

int main(int argc, char **argv)
{
    int status = CLI_DONE, count = 0;
    static char *arguments[CLI_ARGUMENTS_MAX];
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_DFL);
    if (argc > 1 && strcmp(argv[1], "__complete") == 0) {
        cli_print_completion(argc - 2, argv + 2);
        return CLI_DONE;
    }
    if (argc > 1 && strcmp(argv[1], "__man") == 0) {
        cli_print_man();
        return CLI_DONE;
    }
    const struct cli_command *command = locate(argc, argv, &status);
    if (status != CLI_DONE)
        return status;
    if (command != NULL)
        status = run(command, argc, argv);
    else if (!cli_parse(NULL, argc - 1, argv + 1, &count, arguments))
        return CLI_USAGE;
    else if (cli_settings.version)
        printf("skerry %s\n", skerry_version());
    else
        cli_print_overview(cli_settings.help ? stdout : stderr);
    if (command == NULL && !cli_settings.version && !cli_settings.help)
        return CLI_USAGE;
    if (fflush(stdout) != 0 || ferror(stdout))
        return cli_failed("the result could not be written to standard output");
    return status;
}
