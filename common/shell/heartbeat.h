/* A process tells its supervisor that it lives: a link message of kind STATS to run/supervisor.ipc,
 * routing id "<process>-<number>", on change and every second. Body: map {process, number, pid,
 * ready, status, endpoint, wakeup {mode, state}}; the last two only where they were set.
 * Where nobody listens there (a process started by hand) it does nothing.
 * Thread: the reactor's. */
#ifndef SK_HEARTBEAT_H
#define SK_HEARTBEAT_H

#include "common/shell/process.h"
#include "common/shell/reactor.h"

struct sk_heartbeat; /* opaque */

/* Connects the supervisor's socket as link `peer` of the core: what the supervisor answers there
 * (to node_status requests of the core, plain client frames) comes to its on_message(peer). reactor
 * is borrowed; destroy this after sk_reactor_run has returned, before the reactor. */
SK_CHECKED enum sk_err sk_heartbeat_new(struct sk_heartbeat **out, struct sk_reactor *reactor,
                                        const struct sk_process *process, sk_peer peer,
                                        struct sk_diag *d);
void sk_heartbeat_destroy(struct sk_heartbeat **self);
/* Each sends at once when something has changed; all may be called on every turn. */
void sk_heartbeat_set_ready(struct sk_heartbeat *self, bool is_ready);
void sk_heartbeat_set_status(struct sk_heartbeat *self, const char *format, ...) SK_PRINTF(2, 3);
void sk_heartbeat_set_endpoint(struct sk_heartbeat *self, const char *endpoint);
void sk_heartbeat_set_wakeup(struct sk_heartbeat *self, const char *mode, const char *state);

#endif
