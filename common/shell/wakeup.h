/* Keeps the cores awake while requests come: holds /dev/cpu_dma_latency at 0 us.
 *
 * A sleeping core costs 50 to 100 us a hand-off, more than a search. The price is power, so
 * `adaptive` lets go after an idle time; `always` holds from start to end; `off` never does.
 * Thread: the reactor's. Held by the router only: it sees every request. */
#ifndef SK_WAKEUP_H
#define SK_WAKEUP_H

#include "common/base/err.h"

#include <stdint.h>

struct sk_wakeup {
    int fd; /* -1: not held */
    bool is_adaptive;
    bool is_unavailable; /* the device could not be opened: not tried again */
    uint64_t idle_us;
    uint64_t last_us; /* the last touch */
    char mode[16];
};

/* mode: adaptive, off or always (SK_SETTING wakeup_latency). */
void sk_wakeup_init(struct sk_wakeup *self, const char *mode, uint32_t idle_ms);
void sk_wakeup_deinit(struct sk_wakeup *self);
/* A request has come, at mono_us. Cheap while it is held. */
void sk_wakeup_touch(struct sk_wakeup *self, uint64_t now_us);
/* Lets go when it is time; returns when to call it again, UINT64_MAX: not before the next touch. */
uint64_t sk_wakeup_on_time(struct sk_wakeup *self, uint64_t now_us);
/* "held", "idle" (not held now), "off", "unavailable". */
const char *sk_wakeup_state(const struct sk_wakeup *self);
bool sk_wakeup_can_be_had(void); /* whether this process may open the device */

#endif
