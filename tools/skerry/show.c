/* How results look: numbers for people, tables, members. */
#include "tools/skerry/cli.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- Numbers for people ---- */

const char *cli_count_text(uint64_t count, char out[32])
{
    char digits[24];
    int size = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count), at = 0;
    for (int i = 0; i < size; i++) {
        if (i > 0 && (size - i) % 3 == 0)
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = '\0';
    return out;
}

const char *cli_bytes_text(double bytes, char out[32])
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    unsigned unit = 0;
    for (; bytes >= 1000 && unit + 1 < SK_COUNT_OF(units); unit++)
        bytes /= 1000;
    snprintf(out, 32, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

const char *cli_duration_text(double seconds, char out[32])
{
    if (seconds < 1e-3)
        snprintf(out, 32, "%.0f us", seconds * 1e6);
    else if (seconds < 1)
        snprintf(out, 32, "%.1f ms", seconds * 1e3);
    else if (seconds < 100)
        snprintf(out, 32, "%.1f s", seconds);
    else if (seconds < 7200)
        snprintf(out, 32, "%.0f min", seconds / 60);
    else if (seconds < 172800)
        snprintf(out, 32, "%.0f h", seconds / 3600);
    else
        snprintf(out, 32, "%.0f d", seconds / 86400);
    return out;
}

unsigned cli_width(void)
{
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40 ? size.ws_col : 100;
}

bool cli_is_terminal(FILE *file)
{
    return isatty(fileno(file)) == 1;
}

/* ---- Tables ---- */

enum { TABLE_COLUMNS_MAX = 12 };

struct cli_table {
    unsigned columns;
    size_t cell_count, capacity;
    char **cells; /* owned texts, row by row; the heads first */
};

struct cli_table *cli_table_new(unsigned columns, const char *const *heads)
{
    struct cli_table *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->columns = columns;
    for (unsigned i = 0; i < columns; i++)
        cli_table_cell(self, "%s", heads[i]);
    return self;
}

void cli_table_cell(struct cli_table *self, const char *format, ...)
{
    if (self == NULL)
        return;
    if (self->cell_count == self->capacity) {
        size_t capacity = self->capacity == 0 ? 64 : 2 * self->capacity;
        char **cells = realloc(self->cells, capacity * sizeof *cells);
        if (cells == NULL)
            return;
        self->cells = cells;
        self->capacity = capacity;
    }
    va_list args;
    va_start(args, format);
    char *text = NULL;
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    self->cells[self->cell_count++] = text;
}

static size_t shown_width(const char *text)
{
    size_t width = 0;
    for (; *text != '\0'; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80; /* not the later bytes of a character */
    return width;
}

static bool is_number(const char *text)
{
    return text[0] != '\0' && strspn(text, "0123456789") > 0 &&
           text[strspn(text, "0123456789.,%-+ eKMGTBusmhdin/")] == '\0';
}

void cli_table_print(struct cli_table **self_pointer)
{
    struct cli_table *self = *self_pointer;
    size_t widths[TABLE_COLUMNS_MAX] = {0};
    *self_pointer = NULL;
    if (self == NULL)
        return;
    for (size_t i = 0; i < self->cell_count; i++) {
        size_t width = self->cells[i] == NULL ? 0 : shown_width(self->cells[i]);
        if (width > widths[i % self->columns])
            widths[i % self->columns] = width;
    }
    for (size_t i = 0; i < self->cell_count; i++) {
        const char *text = self->cells[i] == NULL ? "" : self->cells[i];
        bool is_last = i % self->columns == self->columns - 1;
        int pad = (int)(widths[i % self->columns] - shown_width(text));
        if (is_number(text))
            printf("%*s%s", pad, "", text);
        else
            printf("%s%*s", text, is_last ? 0 : pad, "");
        fputs(is_last ? "\n" : "  ", stdout);
        free(self->cells[i]);
    }
    free(self->cells);
    free(self);
}

/* ---- Members ---- */

/* Any reply as indented lines of name and value. */
void cli_print_members(const json_t *value, int indent)
{
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)value, key, member)
    {
        if (json_is_object(member) || (json_is_array(member) && json_array_size(member) > 0 &&
                                       json_is_object(json_array_get(member, 0)))) {
            printf("%*s%s\n", indent, "", key);
            if (json_is_object(member))
                cli_print_members(member, indent + 2);
            for (size_t i = 0; i < json_array_size(member); i++) {
                printf("%*s[%zu]\n", indent + 2, "", i);
                cli_print_members(json_array_get(member, i), indent + 4);
            }
            continue;
        }
        char *text = json_dumps(member, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
        printf("%*s%-*s %s\n", indent, "", indent < 24 ? 24 - indent : 0, key,
               json_is_string(member) ? json_string_value(member)
               : text == NULL         ? ""
                                      : text);
        free(text);
    }
}

int cli_show_call(const char *op, json_t *fields)
{
    json_t *reply = NULL;
    int status = cli_call(op, fields, &reply);
    json_object_del(reply, "took_us");
    cli_print_members(reply, 0);
    json_decref(reply);
    return status;
}
