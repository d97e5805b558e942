#include "actors/supervisor/internal.h"
#include "proto/link.h"
#include "proto/reply.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum {
    START_ATTEMPTS_MAX = 5,
    BACKOFF_US = 50000,
    PROVEN_US = 1000000,     /* ready for so long: what killed it was no fault of its start */
    PAUSE_US = 5000000,      /* more than this between two looks: it was us who slept */
    DOORS_STOP_US = 3000000, /* the other phases may take what is left */
    FIRST_WORDS_BYTES = 4,
    STATUS_WRONG_ARGUMENTS = 2,
};

const struct sk_note_kind sk_supervisor_events[] = {
#define EVENT_KIND(name, level, number_name) SK_NOTE_KIND(name, level, number_name, NULL)
    SK_SUPERVISOR_EVENTS(EVENT_KIND)
#undef EVENT_KIND
};

static uint64_t now_us(const struct sk_supervisor *self)
{
    return self->io.mono_us(self->io.impl);
}

static void id_of(const struct child *child, char *out, size_t size)
{
    snprintf(out, size, "%s-%" PRIu32, child->name, child->number);
}

static void tell(const struct sk_supervisor *self, enum sk_supervisor_event event,
                 const struct child *child, uint64_t number)
{
    char id[64] = "";
    if (child != NULL)
        id_of(child, id, sizeof id);
    self->hands.tell(self->hands.impl, event, id, number);
}

static SK_PRINTF(2, 3) void say(struct sk_supervisor *self, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(self->words, sizeof self->words, format, args);
    va_end(args);
}

static struct child *child_of_peer(struct sk_supervisor *self, sk_peer peer)
{
    for (unsigned i = 0; i < self->child_count; i++)
        if (self->children[i].peer == peer)
            return &self->children[i];
    return NULL;
}

/* ---- starting ---- */

/* The port at the end of an endpoint, so that a process that is started again is found where it
 * was. */
static uint32_t port_of(const char *endpoint)
{
    const char *colon = strrchr(endpoint, ':');
    unsigned long port = colon == NULL ? 0 : strtoul(colon + 1, NULL, 10);
    return port <= UINT16_MAX ? (uint32_t)port : 0;
}

static uint64_t backoff_us(const struct sk_supervisor *self, uint32_t failures)
{
    uint64_t delay = BACKOFF_US;
    if (failures == 0)
        return 0;
    for (uint32_t i = 1; i < failures && delay < self->config.backoff_us_max; i++)
        delay *= 2;
    return delay < self->config.backoff_us_max ? delay : self->config.backoff_us_max;
}

static void wait_for_restart(struct sk_supervisor *self, struct child *child)
{
    uint64_t delay = backoff_us(self, child->failures);
    child->state = CHILD_WAITING;
    child->restart_us = now_us(self) + delay;
    tell(self, SK_SUPERVISOR_EVENT_process_restarts, child, delay);
}

static void child_start(struct sk_supervisor *self, struct child *child)
{
    /* Somebody else may have taken the port in the meantime: after some failures any one will do.
     */
    uint32_t port = child->failures < START_ATTEMPTS_MAX ? port_of(child->endpoint) : 0;
    child->pid = self->hands.start(self->hands.impl, child->name, child->number, port);
    child->started_us = child->beat_us = now_us(self);
    if (child->pid <= 0) {
        child->pid = 0;
        child->failures++;
        tell(self, SK_SUPERVISOR_EVENT_process_not_started, child, 0);
        wait_for_restart(self, child);
        return;
    }
    child->state = CHILD_STARTING;
    tell(self, SK_SUPERVISOR_EVENT_process_started, child, (uint64_t)child->pid);
}

static void child_add(struct sk_supervisor *self, const char *name, uint32_t number, sk_peer peer,
                      enum stop_phase phase)
{
    self->children[self->child_count++] =
        (struct child){.name = name, .number = number, .peer = peer, .phase = phase};
}

enum sk_err sk_supervisor_new(struct sk_supervisor **out, const struct sk_supervisor_config *config,
                              const struct sk_io *io, const struct sk_supervisor_hands *hands,
                              struct sk_diag *d)
{
    *out = NULL;
    if (config->workers < 1 || config->workers > SK_WORKERS_MAX)
        return sk_fail_field(d, SK_ERR_INVALID, "workers", "workers: %u, want 1..%d",
                             config->workers, SK_WORKERS_MAX);
    struct sk_supervisor *self = calloc(1, sizeof *self);
    if (self == NULL)
        return sk_fail(d, SK_ERR_NOMEM, "no memory for the supervisor");
    self->config = *config;
    if (self->config.start_attempts_max == 0)
        self->config.start_attempts_max = START_ATTEMPTS_MAX;
    self->io = *io;
    self->hands = *hands;
    self->born_us = self->seen_us = now_us(self);
    child_add(self, "metadata-keeper", 0, SK_SUPERVISOR_PEER_KEEPER, STOP_KEEPER);
    for (uint32_t i = 0; i < config->workers; i++)
        child_add(self, "shard-worker", i, SK_SUPERVISOR_PEER_WORKER_0 + i, STOP_WORKERS);
    child_add(self, "router", 0, SK_SUPERVISOR_PEER_ROUTER, STOP_DOORS);
    child_add(self, "gateway", 0, SK_SUPERVISOR_PEER_GATEWAY, STOP_DOORS);
    say(self, "starting");
    *out = self;
    return SK_ERR_OK;
}

void sk_supervisor_destroy(struct sk_supervisor **self)
{
    free(*self);
    *self = NULL;
}

void sk_supervisor_start(struct sk_supervisor *self)
{
    for (unsigned i = 0; i < self->child_count && self->phase == STOP_NONE; i++)
        child_start(self, &self->children[i]);
}

/* ---- readiness ---- */

static void look_at_readiness(struct sk_supervisor *self)
{
    unsigned ready = 0;
    const struct child *missing = NULL;
    if (self->phase != STOP_NONE)
        return;
    for (unsigned i = 0; i < self->child_count; i++) {
        if (self->children[i].state == CHILD_READY)
            ready++;
        else if (missing == NULL)
            missing = &self->children[i];
    }
    bool is_ready = missing == NULL;
    if (is_ready) {
        say(self, "ready: %u processes", ready);
    } else {
        say(self, "%s %" PRIu32 " is %s; %u of %u processes are ready", missing->name,
            missing->number, supervisor_state_name(missing), ready, self->child_count);
    }
    if (is_ready && !self->is_ready)
        tell(self, SK_SUPERVISOR_EVENT_node_ready, NULL, now_us(self) - self->born_us);
    else if (!is_ready && self->is_ready)
        tell(self, SK_SUPERVISOR_EVENT_node_not_ready, NULL, ready);
    self->is_ready = is_ready;
    self->was_ready |= is_ready;
}

/* ---- stopping ---- */

static bool is_left(const struct sk_supervisor *self, enum stop_phase phase)
{
    for (unsigned i = 0; i < self->child_count; i++)
        if (self->children[i].pid != 0 && self->children[i].phase == phase)
            return true;
    return false;
}

static void enter_phase(struct sk_supervisor *self, enum stop_phase phase)
{
    self->phase = phase;
    self->phase_us = now_us(self);
    for (unsigned i = 0; i < self->child_count; i++) {
        struct child *child = &self->children[i];
        if (child->pid == 0) {
            child->state = CHILD_ENDED;
        } else if (phase == STOP_KILLED) {
            tell(self, SK_SUPERVISOR_EVENT_process_killed_at_stop, child, (uint64_t)child->pid);
            self->hands.kill(self->hands.impl, child->pid, SIGKILL);
        } else if (child->phase == phase) {
            child->state = CHILD_STOPPING;
            self->hands.kill(self->hands.impl, child->pid, SIGTERM);
        }
    }
}

/* Goes on to the next phase when this one's processes have ended or had their time. */
static void go_on_stopping(struct sk_supervisor *self)
{
    uint64_t now = now_us(self);
    while (self->phase != STOP_NONE && self->phase < STOP_KEEPER) {
        bool is_late = self->phase == STOP_DOORS && now - self->phase_us >= DOORS_STOP_US;
        if (is_left(self, self->phase) && !is_late)
            break;
        enter_phase(self, self->phase + 1);
    }
    bool is_over = self->phase != STOP_NONE && now - self->stop_us >= self->config.stop_timeout_us;
    if (is_over && self->phase != STOP_KILLED)
        enter_phase(self, STOP_KILLED);
}

void sk_supervisor_stop(struct sk_supervisor *self)
{
    if (self->phase != STOP_NONE)
        return;
    tell(self, SK_SUPERVISOR_EVENT_node_stopping, NULL, 0);
    if (!self->has_failed)
        say(self, "stopping");
    self->is_ready = false;
    self->stop_us = now_us(self);
    enter_phase(self, STOP_DOORS);
    go_on_stopping(self);
}

/* ---- ends ---- */

static void give_up(struct sk_supervisor *self, const struct child *child, const char *how,
                    const char *reason)
{
    self->has_failed = true;
    say(self, "%s %" PRIu32 " cannot start: %s%s%s", child->name, child->number,
        reason[0] != '\0' ? reason : how, child->failures > 1 ? ", tried several times" : "",
        reason[0] != '\0' ? "" : "; its log says more");
    sk_supervisor_stop(self);
}

static unsigned find_pid(const struct sk_supervisor *self, pid_t pid)
{
    unsigned at = 0;
    while (at < self->child_count && (pid <= 0 || self->children[at].pid != pid))
        at++;
    return at;
}

bool sk_supervisor_process_of(const struct sk_supervisor *self, pid_t pid, char *out, size_t size)
{
    unsigned at = find_pid(self, pid);
    if (at == self->child_count)
        return false;
    id_of(&self->children[at], out, size);
    return true;
}

void sk_supervisor_on_exit(struct sk_supervisor *self, pid_t pid, int wait_status,
                           const char *reason)
{
    char how[64];
    unsigned at = find_pid(self, pid);
    if (at == self->child_count)
        return;
    struct child *child = &self->children[at];
    bool is_signal = WIFSIGNALED(wait_status);
    int status = is_signal ? WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
    snprintf(how, sizeof how, "it ended %s %d", is_signal ? "by signal" : "with status", status);
    bool was_told = child->state == CHILD_STOPPING || self->phase != STOP_NONE;
    bool was_proven = child->state == CHILD_READY && now_us(self) - child->ready_us >= PROVEN_US;
    child->pid = 0;
    if (was_told) {
        child->state = CHILD_ENDED;
        go_on_stopping(self);
        return;
    }
    tell(self, is_signal ? SK_SUPERVISOR_EVENT_process_killed : SK_SUPERVISOR_EVENT_process_exited,
         child, (uint64_t)status);
    child->failures = was_proven ? 0 : child->failures + 1;
    child->restarts++;
    wait_for_restart(self, child);
    bool is_wrong = !is_signal && status == STATUS_WRONG_ARGUMENTS;
    if (!self->was_ready && (is_wrong || child->failures >= self->config.start_attempts_max)) {
        give_up(self, child, how, reason);
        return;
    }
    look_at_readiness(self);
    (void)sk_supervisor_on_time(self); /* one that was proven starts again at once */
}

/* ---- heartbeats ---- */

static void copy_text(struct sk_span map, const char *key, char *to, size_t size)
{
    struct sk_span text;
    if (sk_map_member_text(map, key, &text) && text.size < size &&
        memchr(text.bytes, '\0', text.size) == NULL) {
        memcpy(to, text.bytes, text.size);
        to[text.size] = '\0';
    }
}

static bool on_heartbeat(struct sk_supervisor *self, struct child *child, struct sk_span body)
{
    uint64_t pid = 0;
    bool is_ready = false;
    struct sk_span wakeup;
    struct sk_reader reader = sk_reader_of(body);
    struct sk_diag ignored = {0};
    if (sk_skip(&reader, SK_PACK_DEPTH_MAX, &ignored) != SK_ERR_OK ||
        !sk_map_member_u64(body, "pid", &pid) || !sk_map_member_bool(body, "ready", &is_ready))
        return false;
    if (child->pid == 0 || pid != (uint64_t)child->pid)
        return true; /* the last words of one that was there before, or a stranger's */
    child->beat_us = now_us(self);
    copy_text(body, "endpoint", child->endpoint, sizeof child->endpoint);
    if (child->peer == SK_SUPERVISOR_PEER_ROUTER && sk_map_member(body, "wakeup", &wakeup)) {
        copy_text(wakeup, "mode", self->wakeup_mode, sizeof self->wakeup_mode);
        copy_text(wakeup, "state", self->wakeup_state, sizeof self->wakeup_state);
    }
    if (is_ready && child->state == CHILD_STARTING) {
        child->state = CHILD_READY;
        child->ready_us = child->beat_us;
        tell(self, SK_SUPERVISOR_EVENT_process_ready, child, child->ready_us - child->started_us);
    } else if (!is_ready && child->state == CHILD_READY) {
        child->state = CHILD_STARTING; /* it says so itself: a shard to open, a peer that is gone */
    }
    look_at_readiness(self);
    return true;
}

void sk_supervisor_on_message(struct sk_supervisor *self, sk_peer from, struct sk_span bytes)
{
    struct child *child = child_of_peer(self, from);
    struct sk_link_header header;
    struct sk_span body;
    struct sk_diag ignored = {0};
    static const uint8_t magic[FIRST_WORDS_BYTES] = {'S', 'L', 'K', '1'};
    bool is_link = bytes.size >= sizeof magic && memcmp(bytes.bytes, magic, sizeof magic) == 0;
    if (!is_link) {
        supervisor_answer(self, from, bytes);
        return;
    }
    if (child == NULL || sk_link_decode(&header, &body, bytes, &ignored) != SK_ERR_OK ||
        header.kind != SK_LINK_STATS || !on_heartbeat(self, child, body))
        tell(self, SK_SUPERVISOR_EVENT_message_malformed, child, bytes.size);
}

void sk_supervisor_on_client(struct sk_supervisor *self, sk_peer from, struct sk_span frame)
{
    supervisor_answer(self, from, frame);
}

/* ---- time ---- */

static void forgive_pause(struct sk_supervisor *self, uint64_t now)
{
    uint64_t pause = now - self->seen_us;
    self->seen_us = now;
    if (pause < PAUSE_US)
        return;
    for (unsigned i = 0; i < self->child_count; i++)
        self->children[i].beat_us += pause;
}

static uint64_t child_on_time(struct sk_supervisor *self, struct child *child, uint64_t now)
{
    if (child->state == CHILD_WAITING) {
        if (now < child->restart_us)
            return child->restart_us;
        child_start(self, child);
    }
    if (child->state == CHILD_WAITING) /* it could not even be started */
        return child->restart_us;
    if (child->state != CHILD_READY)
        return UINT64_MAX;
    uint64_t silent = now > child->beat_us ? now - child->beat_us : 0;
    if (silent < self->config.heartbeat_timeout_us)
        return child->beat_us + self->config.heartbeat_timeout_us;
    tell(self, SK_SUPERVISOR_EVENT_process_silent, child, silent);
    self->hands.kill(self->hands.impl, child->pid, SIGKILL);
    child->state = CHILD_STARTING; /* until its end is told */
    look_at_readiness(self);
    return UINT64_MAX;
}

uint64_t sk_supervisor_on_time(struct sk_supervisor *self)
{
    uint64_t now = now_us(self), next = UINT64_MAX;
    forgive_pause(self, now);
    if (self->phase != STOP_NONE) {
        go_on_stopping(self);
        if (self->phase == STOP_KILLED)
            return UINT64_MAX;
        uint64_t end_us = self->stop_us + self->config.stop_timeout_us;
        uint64_t doors_us = self->phase_us + DOORS_STOP_US;
        return self->phase == STOP_DOORS && doors_us < end_us ? doors_us : end_us;
    }
    for (unsigned i = 0; i < self->child_count; i++) {
        uint64_t when = child_on_time(self, &self->children[i], now);
        next = when < next ? when : next;
    }
    return next;
}

/* ---- status ---- */

const char *supervisor_endpoint_of(const struct sk_supervisor *self, sk_peer peer)
{
    for (unsigned i = 0; i < self->child_count; i++)
        if (self->children[i].peer == peer)
            return self->children[i].endpoint;
    return "";
}

void sk_supervisor_get_status(const struct sk_supervisor *self, struct sk_supervisor_status *out)
{
    memset(out, 0, sizeof *out);
    out->is_ready = self->is_ready;
    out->has_failed = self->has_failed;
    out->is_stopped = self->phase != STOP_NONE;
    for (unsigned i = 0; i < self->child_count; i++)
        out->is_stopped &= self->children[i].pid == 0;
    snprintf(out->words, sizeof out->words, "%s", self->words);
    snprintf(out->client_tcp, sizeof out->client_tcp, "%s",
             supervisor_endpoint_of(self, SK_SUPERVISOR_PEER_ROUTER));
    snprintf(out->http, sizeof out->http, "%s",
             supervisor_endpoint_of(self, SK_SUPERVISOR_PEER_GATEWAY));
}
