/* Writes the tables of PROTOCOL.md that are made from messages.def, err.h and the limits of the
 * headers, each between its two markers; --check only compares.
 *
 *   sk_protodoc FILE          writes the tables into FILE
 *   sk_protodoc --check FILE  0 when they are there already, else 1 and a line on stderr */
#include "proto/filter.h"
#include "proto/payload.h"
#include "proto/schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct field {
    const char *member, *name, *kind, *aliases, *help;
    unsigned long long limit;
};
struct op {
    const char *name, *role, *required, *optional, *reply, *help;
};

static const struct field fields[] = {
#define SK_FIELD(member, name, kind, limit, aliases, help)                                         \
    {#member, name, #kind, aliases, help, limit},
#include "proto/messages.def"
#undef SK_FIELD
};
static const struct op ops[] = {
#define SK_OP(NAME, name, role, required, optional, reply, help)                                   \
    {name, #role, required, optional, reply, help},
#include "proto/messages.def"
#undef SK_OP
};

/* ---- text that grows ---- */

struct text {
    char *bytes;
    size_t size;
};

static void add(struct text *to, const char *format, ...) SK_PRINTF(2, 3);
static void add(struct text *to, const char *format, ...)
{
    char line[2000];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    SK_CHECK(size >= 0 && (size_t)size < sizeof line);
    to->bytes = realloc(to->bytes, to->size + (size_t)size + 1);
    SK_CHECK(to->bytes != NULL);
    memcpy(to->bytes + to->size, line, (size_t)size + 1);
    to->size += (size_t)size;
}

static const struct field *field_of(const char *member, size_t size)
{
    for (size_t i = 0; i < SK_COUNT_OF(fields); i++)
        if (strlen(fields[i].member) == size && memcmp(fields[i].member, member, size) == 0)
            return &fields[i];
    fprintf(stderr, "messages.def: no field '%.*s'\n", (int)size, member);
    exit(2);
}

/* The words of list as `a`, `b`; as wire names of fields where they are members. */
static void add_words(struct text *to, const char *list, bool are_members)
{
    const char *between = "";
    while (*list != '\0') {
        size_t size = strcspn(list, " ");
        const char *word = are_members ? field_of(list, size)->name : list;
        add(to, "%s`%.*s`", between, (int)(are_members ? strlen(word) : size), word);
        between = ", ";
        list += size;
        list += *list == ' ';
    }
}

static bool takes(const struct op *op, const struct field *field)
{
    const char *lists[] = {op->required, op->optional};
    for (size_t i = 0; i < 2; i++)
        for (const char *at = lists[i]; *at != '\0'; at += strcspn(at, " "), at += *at == ' ')
            if (field_of(at, strcspn(at, " ")) == field)
                return true;
    return false;
}

/* ---- the tables ---- */

static bool is_public(const struct op *op)
{
    return strcmp(op->role, "LINK") != 0;
}

static void add_role(struct text *to, const char *role)
{
    for (const char *at = role; *at != '\0'; at++)
        add(to, "%c", *at - 'A' + 'a');
}

static void make_operations(struct text *to)
{
    add(to,
        "| op | role | required | optional | reply | what it does |\n|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < SK_COUNT_OF(ops); i++) {
        if (!is_public(&ops[i]))
            continue;
        add(to, "| `%s` | ", ops[i].name);
        add_role(to, ops[i].role);
        add(to, " | ");
        add_words(to, ops[i].required, true);
        add(to, " | ");
        add_words(to, ops[i].optional, true);
        add(to, " | ");
        add_words(to, ops[i].reply, false);
        add(to, " | %s |\n", ops[i].help);
    }
}

static const char *kind_text(const char *kind)
{
    static const char *const texts[][2] = {{"name", "name"},
                                           {"text", "text"},
                                           {"u32", "integer, 1 or more"},
                                           {"u64", "unsigned integer"},
                                           {"number", "number"},
                                           {"flag", "bool"},
                                           {"flag_or_names", "bool, or array of text"},
                                           {"id", "record id"},
                                           {"ids", "array of record ids"},
                                           {"list", "array"},
                                           {"raw", "see its section"}};
    for (size_t i = 0; i < SK_COUNT_OF(texts); i++)
        if (strcmp(texts[i][0], kind) == 0)
            return texts[i][1];
    return kind;
}

static void add_limit(struct text *to, const struct field *field)
{
    if (field->limit == 0)
        return;
    const char *unit = strcmp(field->kind, "u32") == 0 ? "" : " bytes";
    if (strcmp(field->kind, "ids") == 0 || strcmp(field->kind, "list") == 0 ||
        strcmp(field->kind, "flag_or_names") == 0)
        unit = " members";
    add(to, "%llu%s", field->limit, unit);
}

static void make_fields(struct text *to)
{
    add(to, "| field | of | kind | at most | aliases | meaning |\n|---|---|---|---|---|---|\n");
    for (size_t f = 0; f < SK_COUNT_OF(fields); f++) {
        const char *between = "";
        struct text users = {0};
        for (size_t i = 0; i < SK_COUNT_OF(ops); i++) {
            if (!is_public(&ops[i]) || !takes(&ops[i], &fields[f]))
                continue;
            add(&users, "%s`%s`", between, ops[i].name);
            between = ", ";
        }
        if (users.size > 0) {
            bool is_collection = strcmp(fields[f].member, "collection") == 0;
            add(to, "| `%s` | %s | %s | ", fields[f].name,
                is_collection ? "every operation on a collection" : users.bytes,
                kind_text(fields[f].kind));
            add_limit(to, &fields[f]);
            add(to, " | ");
            add_words(to, fields[f].aliases, false);
            add(to, " | %s |\n", fields[f].help);
        }
        free(users.bytes);
    }
}

static void make_errors(struct text *to)
{
    add(to, "| code | name | retriable | meaning |\n|---|---|---|---|\n");
#define ROW(NAME, number, text, retriable, meaning)                                                \
    if ((number) != 0)                                                                             \
        add(to, "| %d | `%s` | %s | %s |\n", number, text, (retriable) ? "yes" : "", meaning);
    SK_ERRORS(ROW)
#undef ROW
}

static void make_limits(struct text *to)
{
    static const struct {
        const char *what;
        long value;
        const char *unit;
    } rows[] = {{"a request's frame", SK_FRAME_BYTES_MAX, "bytes"},
                {"nesting of a request", SK_REQUEST_DEPTH_MAX, "levels"},
                {"rows or ids of a request", SK_ROWS_MAX, ""},
                {"queries of a search", SK_QUERIES_MAX, ""},
                {"`limit`", SK_LIMIT_MAX, ""},
                {"`limit` where none is given", SK_LIMIT_DEFAULT, ""},
                {"`ef` where none is given", SK_EF_DEFAULT, ""},
                {"`deadline_ms`", SK_DEADLINE_MS_MAX, "ms"},
                {"`deadline_ms` where none is given", SK_DEADLINE_MS_DEFAULT, "ms"},
                {"a name", SK_NAME_BYTES_MAX, "bytes"},
                {"a record id that is a string", SK_ID_STRING_BYTES_MAX, "bytes"},
                {"a request's `id` that is a string", 64, "bytes"},
                {"dimension of a vector", SK_DIM_MAX, ""},
                {"vector fields of a collection", SK_VECTOR_FIELDS_MAX, ""},
                {"declared payload fields of a collection", SK_PAYLOAD_FIELDS_MAX, ""},
                {"shards of a collection", SK_SHARDS_MAX, ""},
                {"`m`", SK_M_MAX, ", at least 4, default 16"},
                {"`ef_construction`", SK_EF_CONSTRUCTION_MAX, ", at least 8, default 200"},
                {"`nlist` and `nprobe`", SK_NLIST_MAX, ""},
                {"`pq_m`", SK_PQ_M_MAX, ", at least 2, even, not over the dimension"},
                {"`refine`", SK_REFINE_MAX, ""},
                {"`ttl_s`", SK_TTL_S_MAX, "s, above 0"},
                {"payload of a record", SK_PAYLOAD_BYTES_MAX, "bytes"},
                {"nesting of a payload", SK_PAYLOAD_DEPTH_MAX, "levels, the map itself is one"},
                {"keys of one map in a payload", 1024, ""},
                {"nesting of a filter", SK_FILTER_DEPTH_MAX, "levels"},
                {"conditions of a filter", SK_FILTER_NODES_MAX, "with the groups"},
                {"a `key` of a condition", SK_FILTER_KEY_BYTES_MAX, "bytes"}};
    add(to, "| what | at most |\n|---|---|\n");
    for (size_t i = 0; i < SK_COUNT_OF(rows); i++)
        add(to, "| %s | %ld%s%s |\n", rows[i].what, rows[i].value,
            rows[i].unit[0] == '\0' || rows[i].unit[0] == ',' ? "" : " ", rows[i].unit);
}

static const struct {
    const char *name;
    void (*make)(struct text *to);
} tables[] = {{"operations", make_operations},
              {"fields", make_fields},
              {"errors", make_errors},
              {"limits", make_limits}};

/* ---- the file ---- */

static struct text read_file(const char *path)
{
    struct text text = {0};
    char part[4096];
    size_t size;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    while ((size = fread(part, 1, sizeof part - 1, file)) > 0) {
        part[size] = '\0';
        text.bytes = realloc(text.bytes, text.size + size + 1);
        SK_CHECK(text.bytes != NULL);
        memcpy(text.bytes + text.size, part, size + 1);
        text.size += size;
    }
    (void)fclose(file);
    if (text.bytes == NULL)
        exit(2);
    return text;
}

/* The text with each table between its markers. */
static struct text with_tables(const char *path, const char *from)
{
    struct text out = {0};
    for (size_t i = 0; i < SK_COUNT_OF(tables); i++) {
        char begin[80], end[80];
        (void)snprintf(begin, sizeof begin, "<!-- %s: made by sk_protodoc -->\n", tables[i].name);
        (void)snprintf(end, sizeof end, "<!-- end of %s -->", tables[i].name);
        const char *at = strstr(from, begin), *after = at == NULL ? NULL : strstr(at, end);
        if (after == NULL) {
            fprintf(stderr, "%s: no place for the table of %s (after the one before it)\n", path,
                    tables[i].name);
            exit(2);
        }
        for (; from < at + strlen(begin); from++)
            add(&out, "%c", *from);
        tables[i].make(&out);
        from = after;
    }
    while (*from != '\0')
        add(&out, "%c", *from++);
    return out;
}

int main(int argc, char **argv)
{
    bool is_check = argc == 3 && strcmp(argv[1], "--check") == 0;
    if (argc != 2 && !is_check) {
        fprintf(stderr, "usage: sk_protodoc [--check] proto/PROTOCOL.md\n");
        return 2;
    }
    const char *path = argv[argc - 1];
    struct text old = read_file(path), new = with_tables(path, old.bytes);
    int status = 0;
    bool is_same = strcmp(old.bytes, new.bytes) == 0;
    if (is_check && !is_same) {
        fprintf(stderr, "%s: its tables are not those of messages.def; run: sk_protodoc %s\n", path,
                path);
        status = 1;
    } else if (!is_check && !is_same) {
        FILE *file = fopen(path, "wb");
        if (file == NULL || fwrite(new.bytes, 1, new.size, file) != new.size || fclose(file) != 0) {
            perror(path);
            status = 2;
        }
    }
    free(old.bytes);
    free(new.bytes);
    return status;
}
