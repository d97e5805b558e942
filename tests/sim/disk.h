/* The disk under every file of a simulated run: this program's own write calls stand before libc's,
 * for LMDB too, and can be told to fail. Real bytes go to a temporary folder. */
#ifndef SK_SIM_DISK_H
#define SK_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>

struct sim_disk {
    bool is_full;        /* a write that would make a file longer fails with ENOSPC */
    int64_t writes_left; /* after so many writes the power is gone: every write fails; -1 never */
    bool has_failed;     /* the power went */
    uint64_t writes, refused;
};
extern struct sim_disk sim_disk;

void sim_disk_reset(void);
/* Removes a folder and all that is in it. */
void sim_disk_remove(const char *path);
/* Damages one file below path that is not LMDB's own: cuts it short, flips bytes, or removes it,
 * drawn from `draw`. false: there was none. */
bool sim_disk_damage(const char *path, uint64_t draw, char *what, unsigned what_size);

#endif
