#include "common/base/config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum setting_kind { KIND_u32, KIND_u64, KIND_choice, KIND_text, KIND_core };

struct setting {
    const char *key;
    enum setting_kind kind;
    size_t offset;
    const char *initial;
    uint64_t min, max;
    const char *unit;
    const char *help;
};

/* A default is written as its kind wants it, a number or a word; here it is text in any case. */
#define TEXT_OF(value) #value
#define DEFAULT_u32(value) TEXT_OF(value)
#define DEFAULT_u64(value) value
#define DEFAULT_choice(value) value
#define DEFAULT_text(value) value
#define DEFAULT_core(value) value

static const struct setting settings[] = {
#define ROW(key, kind, initial, min, max, unit, help)                                              \
    {#key, KIND_##kind, offsetof(struct sk_config, key), DEFAULT_##kind(initial), min, max,        \
     unit, help},
    SK_SETTINGS(ROW)
#undef ROW
};
enum { SETTING_COUNT = SK_COUNT_OF(settings), KEY_BYTES_MAX = 64 };

/* ---- names ---- */

static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[KEY_BYTES_MAX + 1];
    size_t a_size = strlen(a), b_size = strlen(b);
    if (a_size > KEY_BYTES_MAX || b_size > KEY_BYTES_MAX)
        return KEY_BYTES_MAX;
    for (unsigned j = 0; j <= b_size; j++)
        row[j] = j;
    for (unsigned i = 1; i <= a_size; i++) {
        unsigned corner = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= b_size; j++) {
            unsigned best = corner + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            corner = row[j];
            row[j] = best;
        }
    }
    return row[b_size];
}

static const struct setting *find(const char *key, const char **closest)
{
    unsigned best = KEY_BYTES_MAX + 1;
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        if (strcmp(settings[i].key, key) == 0)
            return &settings[i];
        unsigned distance = edit_distance(key, settings[i].key);
        if (distance < best) {
            best = distance;
            *closest = settings[i].key;
        }
    }
    return NULL;
}

static void *member_of(struct sk_config *config, const struct setting *setting)
{
    return (char *)config + setting->offset;
}

static const void *value_of(const struct sk_config *config, const struct setting *setting)
{
    return (const char *)config + setting->offset;
}

/* ---- values ---- */

/* Digits, and for bytes a suffix; false for anything else and for what passes 64 bits. */
static bool read_number(const char *text, bool takes_suffix, uint64_t *out)
{
    static const char suffixes[] = "KMGT";
    if (!isdigit((unsigned char)text[0]))
        return false;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    if (takes_suffix && *end != '\0') {
        const char *at = strchr(suffixes, toupper((unsigned char)*end));
        if (at == NULL)
            return false;
        unsigned shift = 10 * (unsigned)(at - suffixes + 1);
        if (value > UINT64_MAX >> shift)
            return false;
        value <<= shift;
        end++;
    }
    *out = value;
    return *end == '\0';
}

static enum sk_err set_number(struct sk_config *self, const struct setting *setting,
                              const char *value, struct sk_diag *d)
{
    uint64_t number = 0;
    bool is_bytes = strcmp(setting->unit, "bytes") == 0;
    if (!read_number(value, is_bytes, &number) || number < setting->min || number > setting->max)
        return sk_fail_field(d, SK_ERR_INVALID, setting->key,
                             "%s: %.80s, want %" PRIu64 "..%" PRIu64 " %s%s", setting->key, value,
                             setting->min, setting->max, setting->unit,
                             is_bytes ? " (K, M, G and T are fine)" : "");
    if (setting->kind == KIND_u32)
        *(uint32_t *)member_of(self, setting) = (uint32_t)number;
    else
        *(uint64_t *)member_of(self, setting) = number;
    return SK_ERR_OK;
}

static bool is_choice(const char *choices, const char *value)
{
    size_t size = strlen(value);
    if (size == 0 || strchr(value, '|') != NULL)
        return false;
    for (const char *at = choices; at != NULL; at = strchr(at + 1, '|')) {
        const char *word = *at == '|' ? at + 1 : at;
        if (strncmp(word, value, size) == 0 && (word[size] == '|' || word[size] == '\0'))
            return true;
    }
    return false;
}

static enum sk_err set_core(struct sk_config *self, const struct setting *setting,
                            const char *value, struct sk_diag *d)
{
    uint64_t number = 0;
    int32_t *core = member_of(self, setting);
    if (strcmp(value, "auto") == 0)
        *core = SK_CORE_AUTO;
    else if (strcmp(value, "off") == 0)
        *core = SK_CORE_OFF;
    else if (read_number(value, false, &number) && number <= setting->max)
        *core = (int32_t)number;
    else
        return sk_fail_field(d, SK_ERR_INVALID, setting->key,
                             "%s: %.80s, want auto, off or the number of a core", setting->key,
                             value);
    return SK_ERR_OK;
}

enum sk_err sk_config_set(struct sk_config *self, const char *key, const char *value,
                          struct sk_diag *d)
{
    const char *closest = "";
    const struct setting *setting = find(key, &closest);
    if (setting == NULL)
        return sk_fail_field(d, SK_ERR_UNKNOWN_FIELD, key,
                             "no setting '%.64s'; the closest name is '%s'", key, closest);
    switch (setting->kind) {
    case KIND_u32:
    case KIND_u64:
        return set_number(self, setting, value, d);
    case KIND_core:
        return set_core(self, setting, value, d);
    case KIND_choice:
        if (!is_choice(setting->unit, value))
            return sk_fail_field(d, SK_ERR_INVALID, key, "%s: '%.80s', want %s", key, value,
                                 setting->unit);
        break;
    case KIND_text:
        if (strlen(value) < setting->min || strlen(value) > setting->max)
            return sk_fail_field(d, SK_ERR_INVALID, key,
                                 "%s: %zu bytes, want %" PRIu64 "..%" PRIu64, key, strlen(value),
                                 setting->min, setting->max);
        break;
    }
    snprintf(member_of(self, setting), SK_CONFIG_TEXT_BYTES, "%s", value);
    return SK_ERR_OK;
}

void sk_config_init(struct sk_config *self)
{
    memset(self, 0, sizeof *self);
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        struct sk_diag d = {0};
        SK_CHECK(sk_config_set(self, settings[i].key, settings[i].initial, &d) == SK_ERR_OK);
    }
}

/* ---- files and environment ---- */

static char *trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    size_t size = strlen(text);
    while (size > 0 && isspace((unsigned char)text[size - 1]))
        text[--size] = '\0';
    return text;
}

static enum sk_err parse_line(struct sk_config *self, char *line, struct sk_diag *d)
{
    char *comment = strchr(line, '#');
    if (comment != NULL)
        *comment = '\0';
    line = trim(line);
    if (line[0] == '\0')
        return SK_ERR_OK;
    char *equals = strchr(line, '=');
    if (equals == NULL)
        return sk_fail(d, SK_ERR_INVALID, "'%.60s' is not a line 'key = value'", line);
    *equals = '\0';
    char *value = trim(equals + 1);
    size_t size = strlen(value);
    if (size >= 2 && value[0] == '"' && value[size - 1] == '"') {
        value[size - 1] = '\0';
        value++;
    }
    return sk_config_set(self, trim(line), value, d);
}

enum sk_err sk_config_parse(struct sk_config *self, const char *name, const char *text,
                            struct sk_diag *d)
{
    char line[SK_CONFIG_TEXT_BYTES + KEY_BYTES_MAX + 256];
    for (unsigned number = 1; *text != '\0'; number++) {
        size_t size = strcspn(text, "\n");
        if (size >= sizeof line)
            return sk_fail(d, SK_ERR_TOO_LARGE, "%s:%u: a line of %zu bytes, want at most %zu",
                           name, number, size, sizeof line - 1);
        memcpy(line, text, size);
        line[size] = '\0';
        enum sk_err rc = parse_line(self, line, d);
        if (rc != SK_ERR_OK)
            return sk_wrap(d, rc, "%s:%u", name, number);
        text += size + (text[size] == '\n');
    }
    return SK_ERR_OK;
}

enum sk_err sk_config_read_file(struct sk_config *self, const char *path, struct sk_diag *d)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return sk_fail(d, errno == ENOENT ? SK_ERR_NOT_FOUND : SK_ERR_INVALID, "%s: %s", path,
                       strerror(errno));
    enum sk_err rc = SK_ERR_OK;
    char *text = malloc(SK_CONFIG_FILE_BYTES_MAX + 1);
    size_t size = 0;
    if (text == NULL)
        rc = sk_fail(d, SK_ERR_NOMEM, "%s: out of memory", path);
    else if ((size = fread(text, 1, SK_CONFIG_FILE_BYTES_MAX + 1, file)) > SK_CONFIG_FILE_BYTES_MAX)
        rc = sk_fail(d, SK_ERR_TOO_LARGE, "%s: over %d bytes", path, SK_CONFIG_FILE_BYTES_MAX);
    else if (ferror(file))
        rc = sk_fail(d, SK_ERR_INVALID, "%s: %s", path, strerror(errno));
    else if (memchr(text, '\0', size) != NULL)
        rc = sk_fail(d, SK_ERR_INVALID, "%s: a NUL byte: not a file of settings", path);
    else {
        text[size] = '\0';
        rc = sk_config_parse(self, path, text, d);
    }
    free(text);
    fclose(file);
    return rc;
}

enum { VARIABLE_BYTES = KEY_BYTES_MAX + 16 };

static void variable_of(const struct setting *setting, char name[VARIABLE_BYTES])
{
    snprintf(name, VARIABLE_BYTES, "SKERRY_%s", setting->key);
    for (char *c = name; *c != '\0'; c++)
        *c = (char)toupper((unsigned char)*c);
}

enum sk_err sk_config_read_environment(struct sk_config *self, struct sk_diag *d)
{
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        char name[VARIABLE_BYTES];
        variable_of(&settings[i], name);
        const char *value = getenv(name);
        if (value == NULL)
            continue;
        enum sk_err rc = sk_config_set(self, settings[i].key, value, d);
        if (rc != SK_ERR_OK)
            return sk_wrap(d, rc, "environment %s", name);
    }
    return SK_ERR_OK;
}

/* ---- printing ---- */

static void print_range(FILE *to, const struct setting *setting)
{
    if (setting->kind == KIND_u32 || setting->kind == KIND_u64)
        fprintf(to, "%" PRIu64 "..%" PRIu64 " %s", setting->min, setting->max, setting->unit);
    else if (setting->kind == KIND_core)
        fprintf(to, "auto, off or 0..%" PRIu64, setting->max);
    else
        fputs(setting->unit, to);
}

void sk_config_print_help(FILE *to)
{
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        fprintf(to, "  %s = %s   (", settings[i].key, settings[i].initial);
        print_range(to, &settings[i]);
        fprintf(to, ")\n      %s\n", settings[i].help);
    }
}

void sk_config_print_sample(FILE *to)
{
    fputs(
        "# Settings of a Skerry node. Every line that is commented out shows the default.\n"
        "# SKERRY_<KEY> in the environment wins over this file; an unknown key stops the start.\n",
        to);
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        fprintf(to, "\n# %s\n# ", settings[i].help);
        print_range(to, &settings[i]);
        fprintf(to, "\n#%s = %s\n", settings[i].key, settings[i].initial);
    }
}

static void value_text(const struct sk_config *self, const struct setting *setting,
                       char text[SK_CONFIG_TEXT_BYTES])
{
    const void *value = value_of(self, setting);
    switch (setting->kind) {
    case KIND_u32:
        snprintf(text, SK_CONFIG_TEXT_BYTES, "%" PRIu32, *(const uint32_t *)value);
        break;
    case KIND_u64:
        snprintf(text, SK_CONFIG_TEXT_BYTES, "%" PRIu64, *(const uint64_t *)value);
        break;
    case KIND_core: {
        int32_t core = *(const int32_t *)value;
        if (core >= 0)
            snprintf(text, SK_CONFIG_TEXT_BYTES, "%" PRId32, core);
        else
            snprintf(text, SK_CONFIG_TEXT_BYTES, "%s", core == SK_CORE_AUTO ? "auto" : "off");
        break;
    }
    case KIND_choice:
    case KIND_text:
        snprintf(text, SK_CONFIG_TEXT_BYTES, "%s", (const char *)value);
        break;
    }
}

void sk_config_print(FILE *to, const struct sk_config *self)
{
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        char text[SK_CONFIG_TEXT_BYTES];
        value_text(self, &settings[i], text);
        fprintf(to, "%s = %s\n", settings[i].key, text);
    }
}

enum sk_err sk_config_write_environment(const struct sk_config *self, struct sk_diag *d)
{
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        char name[VARIABLE_BYTES], text[SK_CONFIG_TEXT_BYTES];
        variable_of(&settings[i], name);
        value_text(self, &settings[i], text);
        if (setenv(name, text, 1) != 0)
            return sk_fail(d, SK_ERR_NOMEM, "no memory for the environment");
    }
    return SK_ERR_OK;
}
