/* The log file that `skerry node start` gives to all processes of a node, kept within a size. Under systemd
 * there is none: the journal has a limit of its own. */
#ifndef SK_NODE_LOG_H
#define SK_NODE_LOG_H

#include <stdbool.h>
#include <stdint.h>

/* When the file behind fd is DIR/log/node.log and has more than bytes_max (0: no limit), its text becomes
 * node.log.1, in place of the one before, and it begins again empty; every process goes on writing to the
 * file that it has open (O_APPEND). Lines that are written in between are lost. On a disk without room for
 * the copy the older text goes, the newer is kept where that is enough. True: it began again. */
bool node_log_rotate(const char *dir, int fd, uint64_t bytes_max);

#endif
