#include "common/shell/log.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { IS_SANITIZED = 1 }; /* sanitizers report a crash better than we do */
#else
enum { IS_SANITIZED = 0 };
#endif
enum { KEPT_BYTES = 240, EVENTS_WATCHED = 64, BURST_LINES = 10, BURST_MS = 10000 };

/* One event's recent lines: what comes too often is held back and counted. */
struct repeat {
    const char *event; /* its address is its identity: a literal, or of a table of notes */
    uint64_t since_ms;
    uint64_t lines, held_back;
};

static struct {
    pthread_mutex_t mutex;
    char process[48];
    enum sk_level level;
    struct repeat repeats[EVENTS_WATCHED];
    uint64_t written;
    char kept[SK_LOG_KEPT][KEPT_BYTES];
} state = {.mutex = PTHREAD_MUTEX_INITIALIZER, .level = SK_LEVEL_INFO, .process = "skerry"};

/* ---- crash report ---- */

static void write_all(const char *text, size_t size)
{
    (void)!write(STDERR_FILENO, text, size);
}

/* Only what a signal handler may do: no lock (the crash may hold it), no stdio. */
static void on_crash(int number)
{
    static const char head[] = "level=fatal event=crash_report what=\"the last events follow\"\n";
    write_all(head, sizeof head - 1);
    uint64_t end = state.written;
    for (uint64_t at = end > SK_LOG_KEPT ? end - SK_LOG_KEPT : 0; at < end; at++) {
        const char *line = state.kept[at % SK_LOG_KEPT];
        write_all("kept ", 5);
        write_all(line, strnlen(line, KEPT_BYTES));
    }
    static const char tail[] = "level=fatal event=crash_report_end\n";
    write_all(tail, sizeof tail - 1);
    raise(number); /* SA_RESETHAND has put the default action back */
}

static void catch_crashes(void)
{
    static char stack_bytes[32768];
    static const int signals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    stack_t stack = {.ss_sp = stack_bytes, .ss_size = sizeof stack_bytes};
    struct sigaction action = {.sa_handler = on_crash,
                               .sa_flags = (int)(SA_RESETHAND | SA_ONSTACK | SA_NODEFER)};
    sigaltstack(&stack, NULL);
    for (size_t i = 0; i < SK_COUNT_OF(signals); i++)
        sigaction(signals[i], &action, NULL);
}

/* ---- lines ---- */

void sk_log_start(const char *process, enum sk_level level)
{
    pthread_mutex_lock(&state.mutex);
    snprintf(state.process, sizeof state.process, "%s", process);
    state.level = level;
    pthread_mutex_unlock(&state.mutex);
    if (!IS_SANITIZED)
        catch_crashes();
}

enum sk_level sk_log_level_parse(const char *name)
{
    for (int level = SK_LEVEL_DEBUG; level <= SK_LEVEL_ERROR; level++)
        if (strcmp(name, sk_level_name((enum sk_level)level)) == 0)
            return (enum sk_level)level;
    return SK_LEVEL_INFO;
}

static struct repeat *repeat_of(const char *event, uint64_t now_ms)
{
    struct repeat *oldest = &state.repeats[0];
    for (unsigned i = 0; i < EVENTS_WATCHED; i++) {
        struct repeat *repeat = &state.repeats[i];
        if (repeat->event == event)
            return repeat;
        if (repeat->event == NULL) {
            oldest = repeat;
            break;
        }
        if (repeat->since_ms < oldest->since_ms)
            oldest = repeat;
    }
    *oldest = (struct repeat){.event = event, .since_ms = now_ms};
    return oldest;
}

/* Whether to print it now; *held_back: how many of it were not, since the last one. */
static bool may_print(const char *event, uint64_t now_ms, uint64_t *held_back)
{
    struct repeat *repeat = repeat_of(event, now_ms);
    if (now_ms - repeat->since_ms > BURST_MS) {
        repeat->since_ms = now_ms;
        repeat->lines = 0;
    }
    if (++repeat->lines > BURST_LINES) {
        repeat->held_back++;
        return false;
    }
    *held_back = repeat->held_back;
    repeat->held_back = 0;
    return true;
}

static size_t write_head(char *line, size_t size, enum sk_level level, const char *event)
{
    struct timespec now;
    struct tm day;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &day);
    size_t used = strftime(line, size, "time=%Y-%m-%dT%H:%M:%S", &day);
    int more = snprintf(line + used, size - used, ".%03ldZ level=%s process=%s event=%s",
                        now.tv_nsec / 1000000, sk_level_name(level), state.process, event);
    return used + (size_t)more < size ? used + (size_t)more : size - 1;
}

/* A line is one line, whatever a file name or a peer has put into its values. */
static void flatten(char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = ' ';
}

static void put_line(enum sk_level level, const char *event, const char *values)
{
    char line[SK_LOG_LINE_BYTES + 200], kept[KEPT_BYTES];
    struct timespec mono;
    uint64_t held_back = 0;
    clock_gettime(CLOCK_MONOTONIC, &mono);
    uint64_t now_ms = (uint64_t)mono.tv_sec * 1000 + (uint64_t)mono.tv_nsec / 1000000;
    pthread_mutex_lock(&state.mutex);
    size_t used = write_head(line, sizeof line, level, event);
    bool is_printed = level >= state.level && may_print(event, now_ms, &held_back);
    used += (size_t)snprintf(line + used, sizeof line - used, "%s%s", values[0] == '\0' ? "" : " ",
                             values);
    if (used < sizeof line && held_back > 0)
        used += (size_t)snprintf(line + used, sizeof line - used, " held_back=%" PRIu64, held_back);
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used] = '\0';
    flatten(line);
    snprintf(kept, sizeof kept - 1, "%.*s", KEPT_BYTES - 2, line);
    strcat(kept, "\n");
    memcpy(state.kept[state.written % SK_LOG_KEPT], kept, sizeof kept);
    state.written++;
    pthread_mutex_unlock(&state.mutex);
    line[used++] = '\n';
    if (is_printed)
        write_all(line, used); /* one write: lines of several processes do not mix */
}

void sk_log(enum sk_level level, const char *event, const char *format, ...)
{
    char values[SK_LOG_LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(values, sizeof values, format, args);
    va_end(args);
    put_line(level, event, values);
}

void sk_log_note(const struct sk_note_kind *kind, uint64_t a, uint64_t b)
{
    char values[SK_LOG_LINE_BYTES] = "";
    size_t used = 0;
    if (kind->a_name != NULL)
        used = (size_t)snprintf(values, sizeof values, "%s=%" PRIu64, kind->a_name, a);
    if (kind->b_name != NULL && used < sizeof values)
        snprintf(values + used, sizeof values - used, "%s%s=%" PRIu64, used > 0 ? " " : "",
                 kind->b_name, b);
    put_line(kind->level, kind->name, values);
}
