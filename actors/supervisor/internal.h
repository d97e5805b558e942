/* Inside the supervisor's core. */
#ifndef SK_SUPERVISOR_INTERNAL_H
#define SK_SUPERVISOR_INTERNAL_H

#include "actors/supervisor/supervisor.h"

enum child_state {
    CHILD_WAITING,  /* for its back-off */
    CHILD_STARTING, /* runs, not ready */
    CHILD_READY,
    CHILD_STOPPING, /* was told to end */
    CHILD_ENDED,    /* and will not be started again */
};

/* The steps of a stop. */
enum stop_phase { STOP_NONE, STOP_DOORS, STOP_WORKERS, STOP_KEEPER, STOP_KILLED };

struct child {
    const char *name;
    uint32_t number;
    sk_peer peer;
    enum stop_phase phase; /* in which it is told to stop */
    enum child_state state;
    pid_t pid; /* 0: none */
    uint64_t started_us, ready_us, beat_us;
    uint64_t restart_us; /* of a waiting one */
    uint32_t failures;   /* in a row */
    uint32_t restarts;
    char endpoint[SK_ENDPOINT_BYTES];
};

struct sk_supervisor {
    /* settings */
    struct sk_supervisor_config config;
    struct sk_io io;
    struct sk_supervisor_hands hands;
    /* state */
    struct child children[SK_SUPERVISOR_CHILDREN_MAX];
    unsigned child_count;
    uint64_t born_us, seen_us;
    bool was_ready, is_ready;
    bool has_failed;
    enum stop_phase phase;
    uint64_t phase_us, stop_us; /* when the phase, and when the stop began */
    char words[300];
    char wakeup_mode[16], wakeup_state[16];
};

/* A request's frame, answered to `to`. supervisor_answer.c */
void supervisor_answer(struct sk_supervisor *self, sk_peer to, struct sk_span frame);
const char *supervisor_state_name(const struct child *child);
const char *supervisor_endpoint_of(const struct sk_supervisor *self, sk_peer peer);

#endif
