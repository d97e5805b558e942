/* Completion and the manual page, from the one table of commands. */
#include "tools/skerry/cli.h"

#include <string.h>

/* ---- Completion: the words that may come after those given ---- */

static const struct cli_option no_options[] = {{0}};

static const struct cli_option *options_of(const struct cli_command *command)
{
    return command == NULL || command->options == NULL ? no_options : command->options;
}

static void print_names(const struct cli_option *options)
{
    for (; options->name != NULL; options++)
        printf("--%s\n", options->name);
}

static const struct cli_option *option_named(const struct cli_command *command, const char *word)
{
    const struct cli_option *lists[] = {options_of(command), cli_global_options};
    for (size_t i = 0; i < SK_COUNT_OF(lists); i++)
        for (const struct cli_option *o = lists[i]; o->name != NULL; o++)
            if (strncmp(word, "--", 2) == 0 && strcmp(word + 2, o->name) == 0)
                return o;
    return NULL;
}

static bool takes_word(const struct cli_option *option)
{
    return option != NULL && option->kind != CLI_FLAG && option->kind != CLI_OPTIONAL;
}

static const struct cli_command *command_named(const char *typed)
{
    for (const struct cli_command *const *c = cli_commands; *c != NULL; c++)
        if (strcmp((*c)->name, typed) == 0)
            return *c;
    return NULL;
}

/* The names of collections, where the words before say which node; silent where it is not there. */
static void print_collections(int count, char **words)
{
    static const struct {
        const char *option;
        const char **to;
    } places[] = {{"--dir", &cli_settings.dir},
                  {"--connect", &cli_settings.connect},
                  {"--server-key", &cli_settings.server_key},
                  {"--key", &cli_settings.key}};
    json_t *reply = NULL, *name;
    size_t i;
    int status;
    for (int at = 0; at + 1 < count; at++)
        for (size_t p = 0; p < SK_COUNT_OF(places); p++)
            if (strcmp(words[at], places[p].option) == 0)
                *places[p].to = words[at + 1];
    cli_settings.deadline_ms = 500;
    status = cli_call("list_collections", NULL, &reply);
    json_array_foreach(json_object_get(reply, "collections"), i, name) if (status == CLI_DONE)
        printf("%s\n",
               json_is_string(name) ? json_string_value(name) : cli_json_text(name, "name"));
    json_decref(reply);
}

/* What may begin a command after the words of it that were typed. */
static void print_next_words(const char *typed)
{
    const char *last = "";
    size_t size = strlen(typed);
    for (const struct cli_command *const *c = cli_commands; *c != NULL; c++) {
        const char *name = (*c)->name;
        if (size > 0 && (strncmp(name, typed, size) != 0 || name[size] != ' '))
            continue;
        name += size > 0 ? size + 1 : 0;
        size_t word = strcspn(name, " ");
        if (strncmp(last, name, word) != 0 || last[word] != name[word])
            printf("%.*s\n", (int)word, name);
        last = name;
    }
}

void cli_print_completion(int count, char **words)
{
    char typed[128] = "";
    const struct cli_command *command = NULL;
    int arguments = 0;
    for (int i = 0; i < count; i++) {
        const struct cli_option *option = option_named(command, words[i]);
        if (takes_word(option) && ++i == count)
            return; /* a value is wanted */
        if (option != NULL || words[i][0] == '-')
            continue;
        if (command != NULL) {
            arguments++;
            continue;
        }
        size_t used = strlen(typed);
        snprintf(typed + used, sizeof typed - used, "%s%s", used == 0 ? "" : " ", words[i]);
        command = command_named(typed);
    }
    if (command == NULL)
        print_next_words(typed);
    else if (arguments == 0 && strncmp(command->arguments, "NAME", 4) == 0 &&
             strncmp(command->name, "keys", 4) != 0 && strcmp(command->name, "restore") != 0 &&
             strcmp(command->name, "collection create") != 0)
        print_collections(count, words);
    print_names(options_of(command));
    print_names(cli_global_options);
}

/* ---- The manual page ---- */

static void print_troff(const char *text)
{
    bool is_start = true;
    for (const char *c = text; *c != '\0'; c++) {
        if (is_start && (*c == '.' || *c == '\''))
            printf("\\&");
        if (*c == '\\')
            printf("\\e");
        else if (*c == '-')
            printf("\\-");
        else
            putchar(*c);
        is_start = *c == '\n';
    }
}

static void print_man_options(const struct cli_option *options)
{
    for (; options->name != NULL; options++) {
        printf(".TP\n.B \\-\\-");
        print_troff(options->name);
        if (options->value != NULL) {
            printf(options->kind == CLI_OPTIONAL ? "\\fR[=\\fI" : " \\fI");
            print_troff(options->value);
            printf(options->kind == CLI_OPTIONAL ? "\\fR]" : "\\fR");
        }
        printf("\n");
        print_troff(options->help);
        printf("\n");
    }
}

void cli_print_man(void)
{
    printf(
        ".TH SKERRY 1 \"\" \"skerry %s\" \"Skerry\"\n.SH NAME\nskerry \\- talk to a Skerry vector "
        "database\n.SH SYNOPSIS\n.B skerry\n[\\fIoption\\fR ...] \\fIcommand\\fR [\\fIargument\\fR "
        "...]\n.SH DESCRIPTION\nStarts and watches a node, and works on its collections. A node is "
        "named by its folder (local socket) or by an address and keys (CURVE). Results go to "
        "standard output, words about them to standard error.\nIds: digits are an integer, "
        "\\fBstr:5\\fR is the text 5.\n.SH OPTIONS\n",
        skerry_version());
    print_man_options(cli_global_options);
    printf(".SH COMMANDS\n");
    for (const struct cli_command *const *c = cli_commands; *c != NULL; c++) {
        printf(".SS skerry ");
        print_troff((*c)->name);
        printf(" ");
        print_troff((*c)->arguments);
        printf("\n");
        print_troff((*c)->summary);
        printf(".\n");
        if ((*c)->details != NULL) {
            printf(".PP\n.nf\n");
            print_troff((*c)->details);
            printf("\n.fi\n");
        }
        print_man_options(options_of(*c));
    }
    printf(".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage, 3 the node cannot be reached.\n"
           ".SH ENVIRONMENT\n.TP\n.B SKERRY_DIR\nThe folder of the node where neither --dir nor "
           "--connect is given.\n.SH SEE ALSO\n.BR skerry\\-supervisor (8),\n.BR skerry.conf "
           "(5)\n");
}
