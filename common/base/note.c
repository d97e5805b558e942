#include "common/base/note.h"

const char *sk_level_name(enum sk_level level)
{
    switch (level) {
    case SK_LEVEL_DEBUG:
        return "debug";
    case SK_LEVEL_INFO:
        return "info";
    case SK_LEVEL_WARN:
        return "warn";
    case SK_LEVEL_ERROR:
        return "error";
    }
    return "error";
}
