/* One simulated node: the real cores of router, keeper and workers, the links between them, their
 * jobs, clocks and disk, and the faults, all driven from one seed in one thread.
 *
 * A crash destroys a core without a word to it. Its LMDB files stay as they are: what was not
 * committed is gone. Messages that were on their way may still come, to the one that took its
 * place. */
#ifndef SK_SIM_WORLD_H
#define SK_SIM_WORLD_H

#include "common/base/io.h"
#include "tests/sim/client.h"
#include "tests/sim/model.h"
#include "tests/sim/rng.h"

#include <limits.h>
#include <stdio.h>

enum { WORLD_WORKERS_MAX = 3, WORLD_PROCESSES_MAX = 2 + WORLD_WORKERS_MAX, WORLD_CLIENTS_MAX = 4 };
enum { PROCESS_ROUTER = 0, PROCESS_KEEPER = 1, PROCESS_WORKER_0 = 2 }; /* numbers of processes */
enum { TARGET_NONE = -1, TARGET_CLIENT = -2, TARGET_HINTS = -3 };

struct world;

/* What the world needs to know of a kind of core; one file each, because their peers have like
 * names. */
struct core_kind {
    const char *name;
    bool (*create)(void **core, struct world *world, unsigned process, const struct sk_io *io,
                   struct sk_diag *d);
    void (*destroy)(void **core);
    void (*on_message)(void *core, sk_peer from, struct sk_span bytes);
    void (*on_client)(void *core, sk_peer from, struct sk_span frame); /* the router's */
    void (*on_connected)(void *core, sk_peer peer);                    /* NULL: it need not know */
    void (*on_undelivered)(void *core, sk_peer peer);  /* NULL: its sends just get lost */
    void (*on_hint)(void *core, struct sk_span bytes); /* NULL: it does not subscribe */
    uint64_t (*on_time)(void *core);
    void (*on_job_done)(void *core, struct sk_job *job); /* NULL: it has no jobs */
    enum sk_err (*check)(void *core, struct sk_diag *d); /* NULL: nothing to look at */
    enum sk_err (*check_limits)(void *core,
                                struct sk_diag *d); /* cheap, after every step; or NULL */
    bool (*is_ready)(void *core);
    /* Its peers, as process numbers or TARGET_..., and back. */
    int (*target_of)(sk_peer peer);
    sk_peer (*peer_of)(unsigned process);
};
extern const struct core_kind core_router, core_keeper, core_worker;

enum event_kind {
    EVENT_MESSAGE,
    EVENT_HINT,
    EVENT_FRAME,
    EVENT_UNDELIVERED,
    EVENT_REPLY,
    EVENT_TIMER,
    EVENT_JOB_RUN,
    EVENT_JOB_DONE,
    EVENT_CLIENT,
    EVENT_FAULT,
    EVENT_START,
    EVENT_DISK_ROOM
};

struct event {
    uint64_t at_us, sequence;
    enum event_kind kind;
    unsigned process; /* or client */
    uint64_t generation;
    sk_peer from;
    struct sk_job *job;
    uint8_t *bytes; /* owned */
    size_t size;
};

struct fault_rates { /* per mille, of one run */
    unsigned lose, copy, late, crash, commit_cut, power, damage, full, jump, client_lose;
};

struct process {
    struct world *world;
    const struct core_kind *kind;
    unsigned number;
    void *core; /* NULL while it is down */
    uint64_t generation;
    uint64_t timer_us;
    struct sk_io io;
    struct sk_job *write_first, *write_last; /* the lane runs one at a time, in order */
    bool is_writing;
    unsigned crashes;
};

struct world_stats {
    uint64_t events, messages, lost, copied, crashes, cuts, power_cuts, taken_back, jobs, jumps,
        full_times, damaged;
};

enum { ADDRESSES_MAX = 1 << 15 }; /* of one client; each is good for one reply */

struct world {
    uint64_t seed;
    struct sim_rng rng;
    char dir[PATH_MAX / 2];
    FILE *trace; /* NULL: silent */
    uint64_t mono_us, tick, sequence, digest;
    int64_t wall_offset_us;
    struct event *heap;
    size_t heap_count, heap_capacity;
    unsigned worker_count, process_count, client_count;
    struct process processes[WORLD_PROCESSES_MAX];
    struct sim_client clients[WORLD_CLIENTS_MAX];
    struct client_world client_world;
    struct model model;
    struct fault_rates rates;
    bool faults_on, disk_was_full, has_inline_jobs;
    struct world_stats stats;
    bool is_open[WORLD_CLIENTS_MAX][ADDRESSES_MAX];
};

struct world_options {
    uint64_t seed;
    unsigned actions; /* how long the clients go on with faults */
    bool is_verbose;
};

/* Runs one seed to its end; true: nothing was violated. *out holds what happened until world_end.
 */
bool world_run(struct world *out, const struct world_options *options);
void world_end(struct world *self);
__attribute__((format(printf, 2, 3))) void world_say(void *world, const char *format, ...);

/* ---- between the files of the world ---- */
void world_push(struct world *self, struct event event); /* at_us is set, bytes are taken */
void world_push_bytes(struct world *self, enum event_kind kind, unsigned process, sk_peer from,
                      uint64_t delay_us, const void *bytes, size_t size); /* copied */
bool world_pop(struct world *self, struct event *out);

uint64_t world_delay(struct world *self, bool can_be_late);
void process_start(struct process *process);
void process_arm(struct process *process); /* its one timer */
void process_crash(struct process *process, uint64_t down_us);
/* From here to process_end_handler the core runs; the seed may let it die at one of its writes. */
void process_begin_handler(struct process *process);
void process_end_handler(struct process *process);
void process_run_job(struct process *process, struct sk_job *job);
void process_start_write(struct process *process);

void world_draw_rates(struct world *self);
void world_on_fault(struct world *self);
/* Every process is dead, and of what no sync has covered a part is gone. */
void world_cut_power(struct world *self);
bool world_check_cores(struct world *self);

#endif
