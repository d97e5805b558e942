/* What systemd (or `skerry node start`) is told over NOTIFY_SOCKET; silent where nobody listens.
 * Thread: one. */
#ifndef SK_NOTIFY_H
#define SK_NOTIFY_H

#include "common/base/check.h"

#include <stdint.h>

void sk_notify_ready(void);
void sk_notify_stopping(void);
void sk_notify_status(const char *format, ...) SK_PRINTF(1, 2);
void sk_notify_watchdog(void);        /* alive; call it every sk_notify_watchdog_us() / 3 */
uint64_t sk_notify_watchdog_us(void); /* 0: no watchdog is wanted of this process */

#endif
