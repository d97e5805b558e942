/* sd_notify is one datagram; its library would cost each process half a megabyte. */
#include "common/shell/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void notify(const char *words)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t size = name == NULL ? 0 : strlen(name);
    if (size < 2 || size >= sizeof address.sun_path || (name[0] != '/' && name[0] != '@'))
        return;
    memcpy(address.sun_path, name, size);
    if (name[0] == '@')
        address.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    /* Nobody may be listening any more, as after `skerry node start` has returned: not our matter.
     */
    (void)!sendto(fd, words, strlen(words), MSG_NOSIGNAL | MSG_DONTWAIT,
                  (struct sockaddr *)&address,
                  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size));
    close(fd);
}

void sk_notify_ready(void)
{
    notify("READY=1");
}

void sk_notify_stopping(void)
{
    notify("STOPPING=1");
}

void sk_notify_watchdog(void)
{
    notify("WATCHDOG=1");
}

void sk_notify_status(const char *format, ...)
{
    char words[600] = "STATUS=";
    va_list args;
    va_start(args, format);
    vsnprintf(words + 7, sizeof words - 7, format, args);
    va_end(args);
    for (char *c = words; *c != '\0'; c++)
        if (*c == '\n')
            *c = ' ';
    notify(words);
}

uint64_t sk_notify_watchdog_us(void)
{
    const char *period = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    if (period == NULL || (pid != NULL && strtol(pid, NULL, 10) != (long)getpid()))
        return 0;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(period, &end, 10);
    return errno == 0 && *end == '\0' ? value : 0;
}
