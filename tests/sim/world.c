#include "tests/sim/world.h"

#include "tests/sim/disk.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAL_US = 60000000, EVENTS_MAX = 3000000 };

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
    char question[240];
    world_say(self, "client %u asks: %s", client,
              sim_client_asks(&self->clients[client], question, sizeof(question)));
    self->is_open[client][self->clients[client].actions % ADDRESSES_MAX] = true;
    world_push_bytes(self, EVENT_FRAME, PROCESS_ROUTER, address, world_delay(self, false), bytes,
                     size);
}

static void arm_client(struct world *self, unsigned number)
{
    const struct sim_client *client = &self->clients[number];
    uint64_t at_us = client->request != 0 ? client->give_up_us : client->next_us;
    if (at_us != UINT64_MAX)
        world_push(self, (struct event){.at_us = at_us > self->mono_us ? at_us : self->mono_us + 1,
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
    case EVENT_HINT:
    case EVENT_FRAME:
        if (process->core == NULL)
            return;
        process_begin_handler(process);
        if (event->kind == EVENT_MESSAGE)
            process->kind->on_message(process->core, event->from, bytes);
        else if (event->kind == EVENT_HINT)
            process->kind->on_hint(process->core, bytes);
        else
            process->kind->on_client(process->core, event->from, bytes);
        break;
    case EVENT_UNDELIVERED:
        if (!is_current)
            return;
        process_begin_handler(process);
        process->kind->on_undelivered(process->core, event->from);
        break;
    case EVENT_REPLY:
        sim_client_on_reply(&self->clients[event->process], event->bytes, event->size);
        arm_client(self, event->process);
        return;
    case EVENT_TIMER:
        if (!is_current || process->timer_us != event->at_us)
            return;
        process->timer_us = 0;
        process_begin_handler(process);
        break;
    case EVENT_JOB_RUN:
        if (is_current)
            process_run_job(process, event->job);
        return;
    case EVENT_JOB_DONE:
        if (!is_current)
            return;
        if (event->job->lane == SK_LANE_WRITE)
            process->is_writing = false;
        process_begin_handler(process);
        process->kind->on_job_done(process->core, event->job);
        process_start_write(process);
        break;
    case EVENT_CLIENT:
        sim_client_on_time(&self->clients[event->process]);
        arm_client(self, event->process);
        return;
    case EVENT_FAULT:
        world_on_fault(self);
        return;
    case EVENT_START:
        process_start(process);
        return;
    case EVENT_DISK_ROOM:
        sim_disk.is_full = false;
        world_say(self, "the disk has room again");
        return;
    }
    process_end_handler(process);
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
        if (self->mono_us > end_us || self->stats.events > EVENTS_MAX || !world_pop(self, &event))
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
    static const unsigned order[] = {0, 1, 2, 3, 4, 5, 8, 0, 1, 2, 6, 7, 0, 2, 9};
    for (unsigned what = 0; what < SK_COUNT_OF(order); what++) {
        for (unsigned collection = 0; collection < self->model.created; collection++) {
            for (unsigned c = 0; c < self->client_count && is_fine(self); c++) {
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
    return world_check_cores(self);
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
    /* The cores work in it by relative names: its own name is not the seed's. */
    if (mkdtemp(self->dir) == NULL || chdir(self->dir) != 0)
        return false;
    static const char *const folders[] = {"data", "data/keeper", "snapshots"};
    for (unsigned i = 0; i < SK_COUNT_OF(folders); i++) {
        if (mkdir(folders[i], 0700) != 0)
            return false;
    }
    model_init(&self->model, &self->rng);
    world_draw_rates(self);
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
        world_push(self, (struct event){.at_us = self->mono_us + sim_between(&self->rng, 0, 20000),
                                        .kind = EVENT_START,
                                        .process = p});
    }
    for (unsigned c = 0; c < self->client_count; c++) {
        sim_client_init(&self->clients[c], &self->client_world, c, self->client_count);
        arm_client(self, c);
    }
    world_push(self, (struct event){.at_us = self->mono_us + 400000, .kind = EVENT_FAULT});
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
    while (world_pop(self, &event))
        free(event.bytes);
    free(self->heap);
    model_deinit(&self->model);
    sim_disk_reset();
    if (chdir("/") == 0)
        sim_disk_remove(self->dir);
}
