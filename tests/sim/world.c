#include "tests/sim/world.h"

#include "tests/sim/disk.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum event_kind {
    EVENT_MESSAGE,
    EVENT_HINT,
    EVENT_FRAME,
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

enum { HEAL_US = 60000000, EVENTS_MAX = 3000000, FAULT_US = 20000, ADDRESSES_MAX = 1 << 15 };

/* ---- the queue ---- */

static bool is_before(const struct event *a, const struct event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->sequence < b->sequence;
}

static void push(struct world *self, struct event event)
{
    if (self->heap_count == self->heap_capacity) {
        self->heap_capacity = self->heap_capacity == 0 ? 256 : self->heap_capacity * 2;
        self->heap = realloc(self->heap, self->heap_capacity * sizeof(*self->heap));
        if (self->heap == NULL)
            abort();
    }
    event.sequence = ++self->sequence;
    size_t at = self->heap_count++;
    while (at > 0 && is_before(&event, &self->heap[(at - 1) / 2])) {
        self->heap[at] = self->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    self->heap[at] = event;
}

static bool pop(struct world *self, struct event *out)
{
    if (self->heap_count == 0)
        return false;
    *out = self->heap[0];
    struct event last = self->heap[--self->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= self->heap_count)
            break;
        if (child + 1 < self->heap_count && is_before(&self->heap[child + 1], &self->heap[child]))
            child++;
        if (!is_before(&self->heap[child], &last))
            break;
        self->heap[at] = self->heap[child];
        at = child;
    }
    if (self->heap_count > 0)
        self->heap[at] = last;
    return true;
}

static void push_bytes(struct world *self, enum event_kind kind, unsigned process, sk_peer from,
                       uint64_t delay_us, const void *bytes, size_t size)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    if (copy == NULL)
        abort();
    memcpy(copy, bytes, size);
    push(self, (struct event){.at_us = self->mono_us + delay_us,
                              .kind = kind,
                              .process = process,
                              .from = from,
                              .bytes = copy,
                              .size = size});
}

void world_say(void *world, const char *format, ...)
{
    struct world *self = world;
    if (self->trace == NULL)
        return;
    fprintf(self->trace, "%10llu  ", (unsigned long long)self->mono_us);
    va_list args;
    va_start(args, format);
    vfprintf(self->trace, format, args);
    va_end(args);
    fputc('\n', self->trace);
}

/* ---- what a core sees ---- */

static uint64_t io_mono(void *impl)
{
    struct process *process = impl;
    return ++process->world->mono_us; /* time passes while somebody looks at the clock */
}

static uint64_t io_wall(void *impl)
{
    struct process *process = impl;
    struct world *self = process->world;
    return (uint64_t)(1700000000000000 + (int64_t)self->mono_us + self->wall_offset_us);
}

static uint64_t io_random(void *impl)
{
    struct process *process = impl;
    return sim_next(&process->world->rng);
}

static void io_note(void *impl, unsigned kind, uint64_t a, uint64_t b)
{
    struct process *process = impl;
    uint64_t fact[3] = {kind, a, b};
    sim_digest(&process->world->digest, fact, sizeof(fact));
}

static uint64_t delay_of(struct world *self, bool can_be_late)
{
    if (self->faults_on && can_be_late && sim_chance(&self->rng, self->rates.late))
        return sim_between(&self->rng, 5000, 3000000);
    return sim_between(&self->rng, 20, sim_chance(&self->rng, 50) ? 8000 : 400);
}

static void pass(struct world *self, unsigned from, unsigned to, const void *bytes, size_t size)
{
    struct process *sender = &self->processes[from];
    sk_peer as = self->processes[to].kind->peer_of(sender->number);
    self->stats.messages++;
    if (self->faults_on && sim_chance(&self->rng, self->rates.lose)) {
        self->stats.lost++;
        return;
    }
    push_bytes(self, EVENT_MESSAGE, to, as, delay_of(self, true), bytes, size);
    if (self->faults_on && sim_chance(&self->rng, self->rates.copy)) {
        self->stats.copied++;
        push_bytes(self, EVENT_MESSAGE, to, as, delay_of(self, true), bytes, size);
    }
}

static void reply(struct world *self, sk_peer to, const void *bytes, size_t size)
{
    unsigned client = (to - SK_PEER_FIRST_CLIENT) / ADDRESSES_MAX;
    if (client >= self->client_count) {
        model_violate(&self->model, "a reply to an address that was never given out: %u", to);
        return;
    }
    if (self->faults_on && sim_chance(&self->rng, self->rates.client_lose))
        return;
    push_bytes(self, EVENT_REPLY, client, 0, delay_of(self, false), bytes, size);
}

static void io_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    struct process *process = impl;
    struct world *self = process->world;
    size_t size = 0;
    for (unsigned i = 0; i < part_count; i++)
        size += parts[i].size;
    uint8_t *joined = malloc(size == 0 ? 1 : size);
    if (joined == NULL)
        abort();
    size_t at = 0;
    for (unsigned i = 0; i < part_count; i++) {
        if (parts[i].size > 0)
            memcpy(joined + at, parts[i].bytes, parts[i].size);
        at += parts[i].size;
    }
    int target = process->kind->target_of(to);
    if (target == TARGET_CLIENT) {
        reply(self, to, joined, size);
    } else if (target == TARGET_HINTS) {
        for (unsigned p = 0; p < self->process_count; p++) {
            if (self->processes[p].kind->on_hint != NULL &&
                !sim_chance(&self->rng, self->rates.lose))
                push_bytes(self, EVENT_HINT, p, 0, delay_of(self, false), joined, size);
        }
    } else if (target >= 0 && (unsigned)target < self->process_count) {
        pass(self, process->number, (unsigned)target, joined, size);
    }
    free(joined);
}

static void start_write(struct process *process)
{
    struct world *self = process->world;
    struct sk_job *job = process->write_first;
    if (process->is_writing || job == NULL)
        return;
    process->write_first = job->next;
    process->is_writing = true;
    push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 30, 4000),
                              .kind = EVENT_JOB_RUN,
                              .process = process->number,
                              .generation = process->generation,
                              .job = job});
}

static void io_submit(void *impl, struct sk_job *job)
{
    struct process *process = impl;
    struct world *self = process->world;
    self->stats.jobs++;
    job->next = NULL;
    if (job->lane == SK_LANE_WRITE) {
        if (process->write_first == NULL)
            process->write_first = job;
        else
            process->write_last->next = job;
        process->write_last = job;
        start_write(process);
        return;
    }
    if (job->lane == SK_LANE_QUICK && self->has_inline_jobs) {
        job->run(job);
        process->kind->on_job_done(process->core, job);
        return;
    }
    push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 10, 3000),
                              .kind = EVENT_JOB_RUN,
                              .process = process->number,
                              .generation = process->generation,
                              .job = job});
}

/* ---- processes ---- */

static void arm(struct process *process)
{
    struct world *self = process->world;
    if (process->core == NULL)
        return;
    uint64_t at_us = process->kind->on_time(process->core);
    if (at_us == UINT64_MAX)
        return;
    if (at_us <= self->mono_us)
        at_us = self->mono_us + 1;
    if (process->timer_us > self->mono_us && process->timer_us <= at_us)
        return;
    process->timer_us = at_us;
    push(self, (struct event){.at_us = at_us,
                              .kind = EVENT_TIMER,
                              .process = process->number,
                              .generation = process->generation});
}

/* Both ends of every link of this process learn that it is (again) there, as sockets tell. */
static void connect_links(struct process *process)
{
    struct world *self = process->world;
    for (unsigned p = 0; p < self->process_count; p++) {
        struct process *other = &self->processes[p];
        if (other == process || other->core == NULL)
            continue;
        bool is_link = process->number < PROCESS_WORKER_0 || other->number < PROCESS_WORKER_0;
        if (is_link && other->kind->on_connected != NULL) {
            other->kind->on_connected(other->core, other->kind->peer_of(process->number));
            arm(other);
        }
        if (is_link && process->kind->on_connected != NULL)
            process->kind->on_connected(process->core, process->kind->peer_of(other->number));
    }
}

static void start_process(struct process *process)
{
    struct world *self = process->world;
    struct sk_diag d = {0};
    if (process->core != NULL)
        return;
    process->generation++;
    process->timer_us = 0;
    process->io = (struct sk_io){.impl = process,
                                 .mono_us = io_mono,
                                 .wall_us = io_wall,
                                 .random = io_random,
                                 .send = io_send,
                                 .submit = io_submit,
                                 .note = io_note};
    if (!process->kind->create(&process->core, self, process->number, &process->io, &d)) {
        process->core = NULL;
        world_say(self, "%s-%u does not start: %s", process->kind->name, process->number, d.text);
        if (!sim_disk.is_full)
            model_violate(&self->model, "%s does not start: %s", process->kind->name, d.text);
        push(self, (struct event){.at_us = self->mono_us + 200000,
                                  .kind = EVENT_START,
                                  .process = process->number});
        return;
    }
    world_say(self, "%s-%u starts", process->kind->name, process->number);
    connect_links(process);
    arm(process);
}

static void crash(struct process *process, uint64_t down_us)
{
    struct world *self = process->world;
    if (process->core == NULL)
        return;
    world_say(self, "%s-%u is killed", process->kind->name, process->number);
    process->kind->destroy(&process->core);
    process->core = NULL;
    process->generation++;
    process->write_first = process->write_last = NULL;
    process->is_writing = false;
    process->crashes++;
    self->stats.crashes++;
    push(self, (struct event){.at_us = self->mono_us + down_us,
                              .kind = EVENT_START,
                              .process = process->number});
}

static void run_job(struct process *process, struct sk_job *job)
{
    struct world *self = process->world;
    bool is_write = job->lane == SK_LANE_WRITE;
    bool is_cut = is_write && self->faults_on && sim_chance(&self->rng, self->rates.commit_cut);
    if (is_cut)
        sim_disk.writes_left = (int64_t)sim_below(&self->rng, 12);
    job->run(job);
    if (is_cut && sim_disk.has_failed) { /* the process died at that write */
        self->stats.cuts++;
        world_say(self, "%s-%u dies in the middle of a commit", process->kind->name,
                  process->number);
        crash(process, sim_between(&self->rng, 1000, 300000));
        sim_disk.writes_left = -1;
        sim_disk.has_failed = false;
        return;
    }
    sim_disk.writes_left = -1;
    push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 5, 1500),
                              .kind = EVENT_JOB_DONE,
                              .process = process->number,
                              .generation = process->generation,
                              .job = job});
}

/* ---- faults ---- */

static void draw_rates(struct world *self)
{
    struct sim_rng *rng = &self->rng;
    struct fault_rates *r = &self->rates;
    memset(r, 0, sizeof(*r));
    if (sim_chance(rng, 100))
        return; /* one run in ten has a healthy world */
    if (sim_chance(rng, 500))
        r->lose = (unsigned)sim_between(rng, 1, 60);
    if (sim_chance(rng, 500))
        r->copy = (unsigned)sim_between(rng, 1, 100);
    if (sim_chance(rng, 500))
        r->late = (unsigned)sim_between(rng, 1, 60);
    if (sim_chance(rng, 700))
        r->crash = (unsigned)sim_between(rng, 1, 40);
    if (sim_chance(rng, 400))
        r->commit_cut = (unsigned)sim_between(rng, 1, 40);
    if (sim_chance(rng, 400))
        r->damage = (unsigned)sim_between(rng, 50, 600);
    if (sim_chance(rng, 250))
        r->full = (unsigned)sim_between(rng, 1, 12);
    if (sim_chance(rng, 300))
        r->jump = (unsigned)sim_between(rng, 1, 20);
    if (sim_chance(rng, 300))
        r->client_lose = (unsigned)sim_between(rng, 1, 40);
}

static void damage_files(struct world *self)
{
    char path[PATH_MAX], what[160];
    snprintf(path, sizeof(path), "%s/data", self->dir);
    if (!sim_disk_damage(path, sim_next(&self->rng), what, sizeof(what)))
        return;
    self->stats.damaged++;
    world_say(self, "index file %s", what);
}

static void on_fault(struct world *self)
{
    struct sim_rng *rng = &self->rng;
    if (!self->faults_on)
        return;
    if (sim_chance(rng, self->rates.crash)) {
        struct process *process = &self->processes[sim_below(rng, self->process_count)];
        bool was_up = process->core != NULL;
        crash(process, sim_between(rng, 1000, 700000));
        if (was_up && process->number >= PROCESS_WORKER_0 && sim_chance(rng, self->rates.damage))
            damage_files(self);
    }
    if (!sim_disk.is_full && sim_chance(rng, self->rates.full)) {
        sim_disk.is_full = self->disk_was_full = true;
        self->stats.full_times++;
        world_say(self, "the disk is full");
        push(self, (struct event){.at_us = self->mono_us + sim_between(rng, 50000, 2000000),
                                  .kind = EVENT_DISK_ROOM});
    }
    if (sim_chance(rng, self->rates.jump)) {
        self->wall_offset_us += (int64_t)sim_below(rng, 20000000) - 10000000;
        if (self->wall_offset_us < self->model.wall_low_us)
            self->model.wall_low_us = self->wall_offset_us;
        if (self->wall_offset_us > self->model.wall_high_us)
            self->model.wall_high_us = self->wall_offset_us;
        self->stats.jumps++;
        world_say(self, "the wall clock jumps to %lld us", (long long)self->wall_offset_us);
    }
    push(self, (struct event){.at_us = self->mono_us + FAULT_US, .kind = EVENT_FAULT});
}

/* ---- clients ---- */

static uint64_t client_now(void *impl)
{
    return ((struct world *)impl)->mono_us;
}

static uint64_t client_tick(void *impl)
{
    return ++((struct world *)impl)->tick;
}

static bool client_may_be_full(void *impl)
{
    return ((struct world *)impl)->disk_was_full;
}

static void client_send(void *impl, unsigned client, const void *bytes, size_t size)
{
    struct world *self = impl;
    if (self->faults_on && sim_chance(&self->rng, self->rates.client_lose))
        return;
    sk_peer address = SK_PEER_FIRST_CLIENT + client * ADDRESSES_MAX +
                      (sk_peer)(self->clients[client].actions % ADDRESSES_MAX);
    push_bytes(self, EVENT_FRAME, PROCESS_ROUTER, address, delay_of(self, false), bytes, size);
}

static void arm_client(struct world *self, unsigned number)
{
    const struct sim_client *client = &self->clients[number];
    uint64_t at_us = client->request != 0 ? client->give_up_us : client->next_us;
    if (at_us != UINT64_MAX)
        push(self, (struct event){.at_us = at_us > self->mono_us ? at_us : self->mono_us + 1,
                                  .kind = EVENT_CLIENT,
                                  .process = number});
}

/* ---- the run ---- */

static void digest_event(struct world *self, const struct event *event)
{
    uint64_t facts[5] = {self->mono_us, event->kind, event->process, event->from, event->size};
    sim_digest(&self->digest, facts, sizeof(facts));
    if (event->bytes != NULL)
        sim_digest(&self->digest, event->bytes, event->size);
}

static void handle(struct world *self, struct event *event)
{
    struct process *process =
        event->process < self->process_count ? &self->processes[event->process] : NULL;
    struct sk_span bytes = sk_span_of(event->bytes, event->size);
    bool is_current =
        process != NULL && process->core != NULL && event->generation == process->generation;
    switch (event->kind) {
    case EVENT_MESSAGE:
        if (process->core != NULL)
            process->kind->on_message(process->core, event->from, bytes);
        break;
    case EVENT_HINT:
        if (process->core != NULL)
            process->kind->on_hint(process->core, bytes);
        break;
    case EVENT_FRAME:
        if (process->core != NULL)
            process->kind->on_client(process->core, event->from, bytes);
        break;
    case EVENT_REPLY:
        sim_client_on_reply(&self->clients[event->process], event->bytes, event->size);
        arm_client(self, event->process);
        return;
    case EVENT_TIMER:
        if (!is_current || process->timer_us != event->at_us)
            return;
        process->timer_us = 0;
        break;
    case EVENT_JOB_RUN:
        if (is_current)
            run_job(process, event->job);
        return;
    case EVENT_JOB_DONE:
        if (!is_current)
            return;
        if (event->job->lane == SK_LANE_WRITE)
            process->is_writing = false;
        process->kind->on_job_done(process->core, event->job);
        start_write(process);
        break;
    case EVENT_CLIENT:
        sim_client_on_time(&self->clients[event->process]);
        arm_client(self, event->process);
        return;
    case EVENT_FAULT:
        on_fault(self);
        return;
    case EVENT_START:
        start_process(process);
        return;
    case EVENT_DISK_ROOM:
        sim_disk.is_full = false;
        world_say(self, "the disk has room again");
        return;
    }
    arm(process);
}

static bool is_fine(const struct world *self)
{
    return self->model.violation[0] == '\0';
}

/* Handles what is due until the condition holds; false: the time or the number of events ran out.
 */
static bool run_until(struct world *self, uint64_t end_us, bool (*is_done)(struct world *self))
{
    struct event event;
    while (is_fine(self) && !is_done(self)) {
        if (self->mono_us > end_us || self->stats.events > EVENTS_MAX || !pop(self, &event))
            return false;
        if (event.at_us > self->mono_us)
            self->mono_us = event.at_us;
        self->stats.events++;
        digest_event(self, &event);
        handle(self, &event);
        free(event.bytes);
    }
    return is_fine(self);
}

static uint64_t actions_of(const struct world *self)
{
    uint64_t sum = 0;
    for (unsigned c = 0; c < self->client_count; c++)
        sum += self->clients[c].actions;
    return sum;
}

static uint64_t actions_wanted;

static bool have_acted(struct world *self)
{
    return actions_of(self) >= actions_wanted;
}

static bool is_quiet(struct world *self)
{
    for (unsigned c = 0; c < self->client_count; c++) {
        if (self->clients[c].request != 0)
            return false;
    }
    for (unsigned p = 0; p < self->process_count; p++) {
        const struct process *process = &self->processes[p];
        if (process->core == NULL ||
            (process->kind->is_ready != NULL && !process->kind->is_ready(process->core)))
            return false;
    }
    return true;
}

static bool check_cores(struct world *self)
{
    for (unsigned p = 0; p < self->process_count; p++) {
        struct process *process = &self->processes[p];
        struct sk_diag d = {0};
        if (process->is_writing || process->core == NULL || process->kind->check == NULL)
            continue;
        if (process->kind->check(process->core, &d) != SK_ERR_OK)
            model_violate(&self->model, "%s-%u: %s", process->kind->name, process->number, d.text);
    }
    return is_fine(self);
}

static bool no_client_waits(struct world *self)
{
    for (unsigned c = 0; c < self->client_count; c++) {
        if (self->clients[c].request != 0)
            return false;
    }
    return true;
}

/* Everything is mended; what was asked must be answered, and everything must be there. */
static bool heal_and_look(struct world *self)
{
    self->faults_on = false;
    sim_disk.is_full = false;
    world_say(self, "everything heals");
    for (unsigned c = 0; c < self->client_count; c++)
        self->clients[c].next_us = UINT64_MAX;
    if (!run_until(self, self->mono_us + HEAL_US, is_quiet)) {
        model_violate(&self->model, "after a minute without faults the node is not ready");
        return false;
    }
    for (unsigned what = 0; what <= 8; what++) {
        for (unsigned collection = 0; collection < self->model.created; collection++) {
            for (unsigned c = 0; c < self->client_count && is_fine(self); c++) {
                static const unsigned order[] = {0, 1, 2, 3, 4, 5, 0, 1, 2};
                self->clients[c].is_healed = true;
                if (!sim_client_final(&self->clients[c], collection, order[what]))
                    model_violate(&self->model, "a client that has nothing open waits");
                arm_client(self, c);
            }
            if (!run_until(self, self->mono_us + HEAL_US, no_client_waits)) {
                model_violate(&self->model, "the healed node does not answer");
                return false;
            }
        }
    }
    return check_cores(self);
}

static bool set_up(struct world *self, const struct world_options *options)
{
    memset(self, 0, sizeof(*self));
    self->seed = options->seed;
    self->rng.state = sim_mix(options->seed + 1);
    self->trace = options->is_verbose ? stdout : NULL;
    self->digest = 14695981039346656037U;
    self->mono_us = 1000000;
    sim_disk_reset();
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(self->dir, sizeof(self->dir), "%s/skerry-sim-%ld-XXXXXX", base, (long)getpid());
    if (mkdtemp(self->dir) == NULL)
        return false;
    static const char *const folders[] = {"data", "data/keeper", "snapshots"};
    for (unsigned i = 0; i < SK_COUNT_OF(folders); i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof(path), "%s/%s", self->dir, folders[i]);
        if (mkdir(path, 0700) != 0)
            return false;
    }
    model_init(&self->model, &self->rng);
    draw_rates(self);
    self->worker_count = (unsigned)sim_between(&self->rng, 1, 2);
    self->process_count = PROCESS_WORKER_0 + self->worker_count;
    self->client_count = (unsigned)sim_between(&self->rng, 1, WORLD_CLIENTS_MAX - 1);
    self->has_inline_jobs = sim_chance(&self->rng, 500);
    self->client_world = (struct client_world){.impl = self,
                                               .model = &self->model,
                                               .rng = &self->rng,
                                               .now_us = client_now,
                                               .tick = client_tick,
                                               .send = client_send,
                                               .may_be_full = client_may_be_full,
                                               .say = world_say};
    for (unsigned p = 0; p < self->process_count; p++) {
        self->processes[p] = (struct process){.world = self,
                                              .number = p,
                                              .kind = p == PROCESS_ROUTER   ? &core_router
                                                      : p == PROCESS_KEEPER ? &core_keeper
                                                                            : &core_worker};
        push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 0, 20000),
                                  .kind = EVENT_START,
                                  .process = p});
    }
    for (unsigned c = 0; c < self->client_count; c++) {
        sim_client_init(&self->clients[c], &self->client_world, c, self->client_count);
        arm_client(self, c);
    }
    push(self, (struct event){.at_us = self->mono_us + 400000, .kind = EVENT_FAULT});
    self->faults_on = true;
    return true;
}

bool world_run(struct world *self, const struct world_options *options)
{
    if (!set_up(self, options)) {
        model_violate(&self->model, "no temporary folder can be made");
        return false;
    }
    actions_wanted = options->actions;
    uint64_t limit_us = self->mono_us + (uint64_t)options->actions * 3000000 + HEAL_US;
    if (!run_until(self, limit_us, have_acted))
        model_violate(&self->model, "the clients do not get on: %llu actions in %llu s",
                      (unsigned long long)actions_of(self),
                      (unsigned long long)(self->mono_us / 1000000));
    return is_fine(self) && heal_and_look(self);
}

void world_end(struct world *self)
{
    struct event event;
    for (unsigned p = 0; p < self->process_count; p++) {
        if (self->processes[p].core != NULL)
            self->processes[p].kind->destroy(&self->processes[p].core);
    }
    while (pop(self, &event))
        free(event.bytes);
    free(self->heap);
    model_deinit(&self->model);
    sim_disk_reset();
    sim_disk_remove(self->dir);
}
