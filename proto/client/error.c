#include "proto/client/internal.h"

#include <stdarg.h>
#include <stdio.h>

const char *skerry_version(void)
{
    return SK_VERSION;
}

const char *skerry_code_name(enum skerry_code code)
{
    return sk_err_name((enum sk_err)code);
}

static void fill(struct skerry_error *error, enum skerry_code code, const char *field,
                 const char *format, va_list args) SK_PRINTF(4, 0);
static void fill(struct skerry_error *error, enum skerry_code code, const char *field,
                 const char *format, va_list args)
{
    if (error == NULL)
        return;
    *error = (struct skerry_error){.code = code, .retriable = sk_err_retriable((enum sk_err)code)};
    snprintf(error->name, sizeof error->name, "%s", sk_err_name((enum sk_err)code));
    snprintf(error->field, sizeof error->field, "%s", field);
    vsnprintf(error->message, sizeof error->message, format, args);
}

enum skerry_code sk_client_fail(struct skerry_error *error, enum skerry_code code,
                                const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(error, code, "", format, args);
    va_end(args);
    return code;
}

enum skerry_code sk_client_fail_field(struct skerry_error *error, enum skerry_code code,
                                      const char *field, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(error, code, field, format, args);
    va_end(args);
    return code;
}

enum skerry_code sk_client_unreachable(struct skerry_error *error, enum skerry_code code,
                                       const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(error, code, "", format, args);
    va_end(args);
    if (error != NULL)
        error->is_unreachable = true;
    return code;
}
