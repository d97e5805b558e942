/* Prints skerry.conf(5) from the list of settings. Runs at build time only. */
#include "common/base/config.h"

#include <ctype.h>
#include <string.h>

static void print_troff(const char *text)
{
    if (*text == '.' || *text == '\'')
        fputs("\\&", stdout);
    for (; *text != '\0'; text++) {
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else
            putchar(*text);
    }
}

/* kind as in the list; min and max are the numbers that it allows. */
static void print_setting(const char *key, const char *kind, const char *initial,
                          unsigned long long min, unsigned long long max, const char *unit,
                          const char *help)
{
    printf(".TP\n.BI ");
    print_troff(key);
    printf(" \" = \" ");
    print_troff(initial);
    printf("\n");
    putchar(toupper((unsigned char)help[0]));
    print_troff(help + 1);
    printf(".\n(");
    if (strcmp(kind, "choice") == 0)
        print_troff(unit);
    else if (strcmp(kind, "text") == 0)
        printf("%s, at most %llu bytes", unit, max);
    else if (strcmp(kind, "core") == 0)
        printf("auto, off, or %llu..%llu", min, max);
    else
        printf("%llu..%llu %s", min, max, unit);
    printf(")\n");
}

/* The default stands as a number or a text in the list. */
#define INITIAL(initial) (#initial[0] == '"' ? (const char *)(uintptr_t)(initial) : #initial)

int main(void)
{
    printf(".TH SKERRY.CONF 5 \"\" \"skerry " SK_VERSION "\" \"Skerry\"\n"
           ".SH NAME\nskerry.conf \\- settings of a Skerry node\n"
           ".SH SYNOPSIS\n.I DIR/skerry.conf\n.br\n.I /etc/skerry/skerry.conf\n"
           ".SH DESCRIPTION\nLines\n.IB key \" = \" value\nof one node, read by all its processes "
           "when "
           "they start; a # begins a comment. A variable\n.BI SKERRY_ KEY\n(upper case) in the "
           "environment wins over the file. An unknown key stops the start, with the closest one "
           "named. Numbers of bytes may end with K, M, G or T.\n"
           ".B skerry\\-supervisor \\-\\-print\\-config\nshows what is in force.\n"
           ".SH SETTINGS\nEach with its default.\n");
#define PRINT(key, kind, initial, min, max, unit, help)                                            \
    print_setting(#key, #kind, INITIAL(initial), (unsigned long long)(min),                        \
                  (unsigned long long)(max), unit, help);
    SK_SETTINGS(PRINT)
    printf(".SH SEE ALSO\n.BR skerry (1),\n.BR skerry\\-supervisor (8)\n");
    return fflush(stdout) == 0 ? 0 : 1;
}
