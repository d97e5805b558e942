/* The supervisor's hands: processes. */
#ifndef SK_NODE_SPAWN_H
#define SK_NODE_SPAWN_H

#include "actors/supervisor/supervisor.h"
#include "common/shell/process.h"

struct node_spawn {
    const struct sk_process *process; /* borrowed: folder and config of the node */
    char folder[SK_PATH_BYTES];       /* where the executables are: beside this one */
};

/* UNAVAILABLE: an executable of the node is missing; names it. */
SK_CHECKED enum sk_err node_spawn_init(struct node_spawn *self, const struct sk_process *process,
                                       struct sk_diag *d);
/* As struct sk_supervisor_hands; impl is a struct node_spawn. */
pid_t node_spawn_start(void *impl, const char *name, uint32_t number, uint32_t port);
void node_spawn_kill(void *impl, pid_t pid, int signal);
struct sk_supervisor_usage node_spawn_usage(void *impl, pid_t pid);
/* The last words of a process that could not start ("" where it left none); forgets them. */
void node_spawn_reason(const struct node_spawn *self, const char *id, char *out, size_t size);

#endif
