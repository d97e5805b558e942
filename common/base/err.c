#include "common/base/err.h"

#include <stdarg.h>
#include <string.h>

static const struct {
    enum sk_err code;
    bool retriable;
    const char *name;
    const char *meaning;
} errors[] = {
#define SK_ERR_ROW(name, number, text, retriable, meaning)                                         \
    {SK_ERR_##name, retriable, text, meaning},
    SK_ERRORS(SK_ERR_ROW)
#undef SK_ERR_ROW
};

const char *sk_err_name(enum sk_err err)
{
    for (size_t i = 0; i < SK_COUNT_OF(errors); i++)
        if (errors[i].code == err)
            return errors[i].name;
    return "unknown";
}

const char *sk_err_meaning(enum sk_err err)
{
    for (size_t i = 0; i < SK_COUNT_OF(errors); i++)
        if (errors[i].code == err)
            return errors[i].meaning;
    return "an error number of a later version";
}

bool sk_err_retriable(enum sk_err err)
{
    for (size_t i = 0; i < SK_COUNT_OF(errors); i++)
        if (errors[i].code == err)
            return errors[i].retriable;
    return false;
}

enum sk_err sk_fail(struct sk_diag *d, enum sk_err code, const char *format, ...)
{
    if (d == NULL)
        return code;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(d->text, sizeof d->text, format, args);
    va_end(args);
    d->code = code;
    d->field[0] = '\0';
    return code;
}

enum sk_err sk_fail_field(struct sk_diag *d, enum sk_err code, const char *field, const char *format,
                          ...)
{
    if (d == NULL)
        return code;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(d->text, sizeof d->text, format, args);
    va_end(args);
    d->code = code;
    (void)snprintf(d->field, sizeof d->field, "%s", field);
    return code;
}

enum sk_err sk_wrap(struct sk_diag *d, enum sk_err code, const char *format, ...)
{
    if (d == NULL)
        return code;
    char before[SK_DIAG_TEXT_BYTES];
    char joined[2 * SK_DIAG_TEXT_BYTES + 2];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(before, sizeof before, format, args);
    va_end(args);
    (void)snprintf(joined, sizeof joined, "%s: %s", before, d->text);
    memcpy(d->text, joined, sizeof d->text - 1);
    d->text[sizeof d->text - 1] = '\0';
    d->code = code;
    return code;
}

#ifdef SK_MUTANTS
bool sk_mutant(const char *name)
{
    const char *chosen = getenv("SK_MUTANT");
    return chosen != NULL && strcmp(chosen, name) == 0;
}
#endif
