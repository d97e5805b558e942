#include "common/shell/wakeup.h"

#include "common/shell/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char device[] = "/dev/cpu_dma_latency";

bool sk_wakeup_can_be_had(void)
{
    return access(device, W_OK) == 0;
}

/* The kernel holds the request as long as the file is open. */
static void hold(struct sk_wakeup *self)
{
    int32_t latency_us = 0;
    self->fd = open(device, O_WRONLY | O_CLOEXEC);
    if (self->fd >= 0 && write(self->fd, &latency_us, sizeof latency_us) == sizeof latency_us)
        return;
    int reason = errno;
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
    self->is_unavailable = true;
    sk_log(SK_LEVEL_WARN, "wakeup_unavailable", "device=%s reason=\"%s\"", device,
           strerror(reason));
}

static void let_go(struct sk_wakeup *self)
{
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
}

void sk_wakeup_init(struct sk_wakeup *self, const char *mode, uint32_t idle_ms)
{
    memset(self, 0, sizeof *self);
    self->fd = -1;
    self->idle_us = (uint64_t)idle_ms * 1000;
    self->is_adaptive = strcmp(mode, "adaptive") == 0;
    snprintf(self->mode, sizeof self->mode, "%s", mode);
    if (strcmp(mode, "always") == 0)
        hold(self);
    else if (self->is_adaptive)
        self->is_unavailable =
            !sk_wakeup_can_be_had(); /* so that the state is true from the start */
}

void sk_wakeup_deinit(struct sk_wakeup *self)
{
    let_go(self);
}

void sk_wakeup_touch(struct sk_wakeup *self, uint64_t now_us)
{
    self->last_us = now_us;
    if (self->is_adaptive && self->fd < 0 && !self->is_unavailable)
        hold(self);
}

uint64_t sk_wakeup_on_time(struct sk_wakeup *self, uint64_t now_us)
{
    if (!self->is_adaptive || self->fd < 0)
        return UINT64_MAX;
    if (now_us - self->last_us < self->idle_us)
        return self->last_us + self->idle_us;
    let_go(self);
    return UINT64_MAX;
}

const char *sk_wakeup_state(const struct sk_wakeup *self)
{
    if (self->fd >= 0)
        return "held";
    if (strcmp(self->mode, "off") == 0)
        return "off";
    return self->is_unavailable ? "unavailable" : "idle";
}
