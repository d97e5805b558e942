/* The whole world of an actor's core, and the only one.
 *
 * A core is a state machine: no sockets, clock, randomness or threads of its own. The shell
 * (common/shell/reactor.h) implements this struct over CZMQ; tests/sim implements it from one seed.
 * Thread: a core and its io are used by one thread. Jobs run elsewhere. */
#ifndef SK_IO_H
#define SK_IO_H

#include "common/base/err.h"
#include "common/base/span.h"

/* Where a message came from or goes to. Numbers below SK_PEER_FIRST_CLIENT are fixed links of the
 * process (each core's header names them); above, the shell gives one out for each client request:
 * it is a return address, good for exactly one send. */
typedef uint32_t sk_peer;
enum { SK_PEER_FIRST_CLIENT = 1 << 16 };

enum sk_lane {
    SK_LANE_QUICK, /* a read of well under a millisecond: run on the core's thread, at once or at the end
                    * of the turn, so that the core can add to it what else has come */
    SK_LANE_SLOW,  /* a read that may take long: a search thread */
    SK_LANE_WRITE, /* the one writer/indexer thread: jobs of this lane run one at a time, in order */
};

/* A unit of slow work. The core embeds this in its own struct, fills run and lane, and hands it over
 * with io->submit; run() touches only what the job holds (and state documented as shared); when it has
 * returned, the core gets it back by its on_job_done(). A core never waits for a job. */
struct sk_job {
    void (*run)(struct sk_job *job);
    enum sk_lane lane;
    uint32_t cost_us; /* what QUICK will about take; 0: not known. Ready answers do not wait for more. */
    struct sk_job *next; /* the shell's while submitted */
};

struct sk_io {
    void *impl;
    uint64_t (*mono_us)(void *impl); /* deadlines, back-off, ages */
    uint64_t (*wall_us)(void *impl); /* HLC, TTL; may jump */
    uint64_t (*random)(void *impl);
    /* Sends the parts joined as one message. Copies, never blocks, may drop. */
    void (*send)(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count);
    void (*submit)(void *impl, struct sk_job *job); /* taken until on_job_done */
    /* A fact of fixed size for the log, metrics and the simulator: see common/base/note.h. */
    void (*note)(void *impl, unsigned kind, uint64_t a, uint64_t b);
};

#endif
