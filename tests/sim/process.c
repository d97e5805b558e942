/* A simulated process: what its core sees of the world, its jobs, its death and its start. */
#include "tests/sim/world.h"

#include "proto/link.h"
#include "tests/sim/disk.h"

#include <stdlib.h>
#include <string.h>

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

uint64_t world_delay(struct world *self, bool can_be_late)
{
    if (self->faults_on && can_be_late && sim_chance(&self->rng, self->rates.late))
        return sim_between(&self->rng, 5000, 3000000);
    return sim_between(&self->rng, 20, sim_chance(&self->rng, 50) ? 8000 : 400);
}

static void tell_message(struct world *self, unsigned from, unsigned to, struct sk_span bytes,
                         const char *fate)
{
    static const char *const kinds[] = {"?",     "request", "reply",  "hello",
                                        "stats", "hint",    "goodbye"};
    struct sk_link_header h;
    struct sk_span body;
    struct sk_diag d = {0};
    if (self->trace == NULL || sk_link_decode(&h, &body, bytes, &d) != SK_ERR_OK)
        return;
    world_say(self,
              "    %s-%u -> %s-%u: %s %llu, shard %u, stamp %llx/%llu, map %llu, %s, %zu bytes%s",
              self->processes[from].kind->name, from, self->processes[to].kind->name, to,
              kinds[h.kind], (unsigned long long)h.request, h.shard,
              (unsigned long long)h.incarnation, (unsigned long long)h.sequence,
              (unsigned long long)h.map_version, sk_err_name(h.status), body.size, fate);
}

static void pass(struct world *self, unsigned from, unsigned to, const void *bytes, size_t size)
{
    struct process *sender = &self->processes[from];
    sk_peer as = self->processes[to].kind->peer_of(sender->number);
    self->stats.messages++;
    if (self->processes[to].core == NULL && sender->kind->on_undelivered != NULL &&
        sim_chance(&self->rng, 600)) /* as a socket tells that knows nobody of that name */
        world_push(self, (struct event){.at_us = self->mono_us + 1,
                                        .kind = EVENT_UNDELIVERED,
                                        .process = from,
                                        .generation = sender->generation,
                                        .from = sender->kind->peer_of(to)});
    if (self->faults_on && sim_chance(&self->rng, self->rates.lose)) {
        self->stats.lost++;
        tell_message(self, from, to, sk_span_of(bytes, size), " (lost)");
        return;
    }
    uint64_t delay_us = world_delay(self, true);
    tell_message(self, from, to, sk_span_of(bytes, size), delay_us > 10000 ? " (late)" : "");
    world_push_bytes(self, EVENT_MESSAGE, to, as, delay_us, bytes, size);
    if (self->faults_on && sim_chance(&self->rng, self->rates.copy)) {
        self->stats.copied++;
        world_push_bytes(self, EVENT_MESSAGE, to, as, world_delay(self, true), bytes, size);
    }
}

static void reply(struct world *self, sk_peer to, const void *bytes, size_t size)
{
    unsigned client = (to - SK_PEER_FIRST_CLIENT) / ADDRESSES_MAX;
    bool *is_open = client < self->client_count
                        ? &self->is_open[client][(to - SK_PEER_FIRST_CLIENT) % ADDRESSES_MAX]
                        : NULL;
    if (is_open == NULL || !*is_open) {
        model_violate(&self->model, "a second reply to one request, or one that nobody waits for");
        return;
    }
    *is_open = false;
    if (self->faults_on && sim_chance(&self->rng, self->rates.client_lose))
        return;
    world_push_bytes(self, EVENT_REPLY, client, 0, world_delay(self, false), bytes, size);
}

static void io_send(void *impl, sk_peer to, const struct sk_span *parts, unsigned part_count)
{
    struct process *process = impl;
    struct world *self = process->world;
    size_t size = 0;
    if (sim_disk.has_failed)
        return; /* it died some lines before */
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
                world_push_bytes(self, EVENT_HINT, p, 0, world_delay(self, false), joined, size);
        }
    } else if (target >= 0 && (unsigned)target < self->process_count) {
        pass(self, process->number, (unsigned)target, joined, size);
    }
    free(joined);
}

void process_start_write(struct process *process)
{
    struct world *self = process->world;
    struct sk_job *job = process->write_first;
    if (process->is_writing || job == NULL)
        return;
    process->write_first = job->next;
    process->is_writing = true;
    world_push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 30, 4000),
                                    .kind = EVENT_JOB_RUN,
                                    .process = process->number,
                                    .generation = process->generation,
                                    .job = job});
}

static void io_submit(void *impl, struct sk_job *job)
{
    struct process *process = impl;
    struct world *self = process->world;
    if (sim_disk.has_failed)
        return;
    self->stats.jobs++;
    job->next = NULL;
    if (job->lane == SK_LANE_WRITE) {
        if (process->write_first == NULL)
            process->write_first = job;
        else
            process->write_last->next = job;
        process->write_last = job;
        process_start_write(process);
        return;
    }
    if (job->lane == SK_LANE_QUICK && self->has_inline_jobs) {
        job->run(job);
        process->kind->on_job_done(process->core, job);
        return;
    }
    world_push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 10, 3000),
                                    .kind = EVENT_JOB_RUN,
                                    .process = process->number,
                                    .generation = process->generation,
                                    .job = job});
}

/* ---- processes ---- */

void process_arm(struct process *process)
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
    world_push(self, (struct event){.at_us = at_us,
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
            process_arm(other);
        }
        if (is_link && process->kind->on_connected != NULL)
            process->kind->on_connected(process->core, process->kind->peer_of(other->number));
    }
}

/* The seed may let the process die at one of the writes that it is going to make. */
static void may_die(struct process *process, unsigned writes_max)
{
    struct world *self = process->world;
    if (self->faults_on && sim_chance(&self->rng, self->rates.commit_cut))
        sim_disk.writes_left = (int64_t)sim_below(&self->rng, writes_max);
}

/* true: it has died at a write. */
static bool has_died(struct process *process)
{
    struct world *self = process->world;
    sim_disk.writes_left = -1;
    if (!sim_disk.has_failed)
        return false;
    self->stats.cuts++;
    world_say(self, "%s-%u dies at a write", process->kind->name, process->number);
    if (sim_chance(&self->rng, self->rates.power * 10))
        world_cut_power(self);
    else
        process_crash(process, sim_between(&self->rng, 1000, 300000));
    return true;
}

void process_begin_handler(struct process *process)
{
    may_die(process, 6);
}

void process_end_handler(struct process *process)
{
    struct sk_diag d = {0};
    if (process->core == NULL)
        return;
    if (!sim_disk.has_failed)
        process_arm(process); /* on_time() may work, too */
    if (has_died(process))
        return;
    if (process->kind->check_limits != NULL &&
        process->kind->check_limits(process->core, &d) != SK_ERR_OK)
        model_violate(&process->world->model, "%s-%u: %s", process->kind->name, process->number,
                      d.text);
}

void process_start(struct process *process)
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
    may_die(process, 10);
    bool is_made = process->kind->create(&process->core, self, process->number, &process->io, &d);
    bool is_dead = sim_disk.has_failed;
    sim_disk.writes_left = -1;
    sim_disk.has_failed = false;
    if (!is_made) {
        process->core = NULL;
        world_say(self, "%s-%u does not start: %s", process->kind->name, process->number, d.text);
        if (!sim_disk.is_full && !is_dead)
            model_violate(&self->model, "%s does not start: %s", process->kind->name, d.text);
        world_push(self, (struct event){.at_us = self->mono_us + 200000,
                                        .kind = EVENT_START,
                                        .process = process->number});
        return;
    }
    if (is_dead) {
        process_crash(process, 100000);
        return;
    }
    world_say(self, "%s-%u starts", process->kind->name, process->number);
    connect_links(process);
    process_arm(process);
}

void process_crash(struct process *process, uint64_t down_us)
{
    struct world *self = process->world;
    if (process->core == NULL)
        return;
    world_say(self, "%s-%u is killed", process->kind->name, process->number);
    sim_disk.has_failed = true; /* a killed process writes nothing any more */
    process->kind->destroy(&process->core);
    sim_disk.has_failed = false;
    sim_disk.writes_left = -1;
    process->core = NULL;
    process->generation++;
    process->write_first = process->write_last = NULL;
    process->is_writing = false;
    process->crashes++;
    if (process->number >= PROCESS_WORKER_0)
        model_forget_refusals(&self->model, self->mono_us);
    self->stats.crashes++;
    world_push(self, (struct event){.at_us = self->mono_us + down_us,
                                    .kind = EVENT_START,
                                    .process = process->number});
}

void process_run_job(struct process *process, struct sk_job *job)
{
    struct world *self = process->world;
    if (job->lane == SK_LANE_WRITE)
        may_die(process, 12);
    job->run(job);
    if (has_died(process))
        return;
    world_push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 5, 1500),
                                    .kind = EVENT_JOB_DONE,
                                    .process = process->number,
                                    .generation = process->generation,
                                    .job = job});
}
