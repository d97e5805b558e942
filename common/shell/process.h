/* The start of every executable of a node: arguments, config, limits, core, log.
 *     skerry-<name> --dir DIR [--config FILE] [--number N] [--foreground]
 *                   | --help | --version | --print-config
 * Thread: main, first thing. */
#ifndef SK_PROCESS_H
#define SK_PROCESS_H

#include "common/base/config.h"

enum { SK_SOCKET_PATH_BYTES_MAX = 107, SK_DIR_BYTES = 128, SK_PATH_BYTES = 512 };

struct sk_process {
    char name[32];                   /* "shard-worker" */
    uint32_t number;                 /* --number, 0 by default */
    char dir[SK_DIR_BYTES];          /* as given */
    char config_path[SK_PATH_BYTES]; /* --config; "" where DIR/skerry.conf is meant */
    struct sk_config config;
    char id[48]; /* "shard-worker-0": the routing id of its heartbeats */
};

/* What sk_process_start should do besides. */
enum sk_process_flags {
    SK_PROCESS_IS_CHILD = 1,      /* dies with its parent: the supervisor */
    SK_PROCESS_IS_QUERY_PATH = 2, /* router and workers: pinned as the setting query_core says */
};

/* Returns -1 when the process may go on. Otherwise the exit status: 0 after --help, --version,
 * --print-config; 2 after wrong arguments or config, 1 after anything else, with a line on stderr.
 * Also: umask 077, SIGPIPE ignored, open files up to the hard limit, the parent's death is ours,
 * affinity set before any thread and any ZeroMQ context exists. summary: one line for --help. */
int sk_process_start(struct sk_process *self, const char *name, const char *summary, unsigned flags,
                     int argc, char **argv);
/* DIR/<below>; returns out. Too long is impossible: sk_process_start has refused such a DIR. */
const char *sk_process_path(const struct sk_process *self, char out[SK_PATH_BYTES],
                            const char *below);
/* "ipc://DIR/run/<socket>"; returns out. */
const char *sk_process_endpoint(const struct sk_process *self, char out[SK_PATH_BYTES],
                                const char *socket);
/* The affinity that the process had before it was pinned, for threads that must not share the query
 * core (the job lanes take it): applies it to the calling thread. */
void sk_process_unpin_thread(void);
/* A last line for the log and the supervisor: "router cannot start: ..."; returns 1. */
int sk_process_fail(const struct sk_process *self, const struct sk_diag *d);

#endif
