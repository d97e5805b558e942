/* The disk under every file of a simulated run: this program's own write and sync calls stand
 * before libc's, for LMDB too, and can be told to fail. Real bytes go to a temporary folder.
 *
 * What was written and not yet synced is remembered with what it replaced, so that a power cut can
 * take back any part of it. Names are durable at once; tests/cluster/test_lost_fsync.py is about
 * those too. */
#ifndef SK_SIM_DISK_H
#define SK_SIM_DISK_H

#include "tests/sim/rng.h"

struct sim_disk {
    bool is_full;        /* a write that would make a file longer fails with ENOSPC */
    int64_t writes_left; /* after so many writes and syncs every further one fails; -1 never */
    bool has_failed;     /* that has come: the process died at that call */
    uint64_t writes, refused, syncs, taken_back;
};
extern struct sim_disk sim_disk;

void sim_disk_reset(void);
/* The power is gone and nothing holds a file open any more: of the writes below path that no sync
 * has covered, a part that the seed draws is taken back, sector by sector. */
void sim_disk_power_cut(const char *path, struct sim_rng *rng);
/* Removes a folder and all that is in it. */
void sim_disk_remove(const char *path);
/* Damages one file below path that is not LMDB's own: cuts it short, flips bytes, or removes it,
 * drawn from `draw`. false: there was none. */
bool sim_disk_damage(const char *path, uint64_t draw, char *what, unsigned what_size);

#endif
