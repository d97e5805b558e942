/* The folder of a node: its layout, who owns it, and what it says to others. */
#ifndef SK_NODE_FOLDER_H
#define SK_NODE_FOLDER_H

#include "common/base/err.h"

#include <sys/types.h>

struct node_facts { /* run/node.json */
    const char *client_ipc, *client_tcp, *http, *public_key;
    pid_t pid;
};

/* Makes DIR and what is missing in it, each 0700, and a skerry.conf that shows every setting.
 * UNAVAILABLE: cannot be made or written, with the path. */
SK_CHECKED enum sk_err node_folder_make(const char *dir, struct sk_diag *d);
/* Takes the folder for this process and its children, until the last of them has ended. EXISTS: a
 * node runs there. Waits a while for the processes of one whose supervisor has died. */
SK_CHECKED enum sk_err node_folder_lock(const char *dir, struct sk_diag *d);
/* Sockets, node.json and reasons of an earlier run, or of this one at its end. */
void node_folder_clean(const char *dir);
/* Written beside, then renamed: a reader sees all of it or none. */
SK_CHECKED enum sk_err node_folder_write_facts(const char *dir, const struct node_facts *facts,
                                               struct sk_diag *d);

#endif
