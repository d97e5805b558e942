/* What goes wrong, as far as it does not go wrong on a link (process.c). */
#include "tests/sim/world.h"

#include "tests/sim/disk.h"

#include <string.h>

enum { FAULT_US = 20000 };

void world_draw_rates(struct world *self)
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
        r->power = (unsigned)sim_between(rng, 1, 20);
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
    char what[160];
    if (!sim_disk_damage("data", sim_next(&self->rng), what, sizeof(what)))
        return;
    self->stats.damaged++;
    world_say(self, "index file %s", what);
}

void world_cut_power(struct world *self)
{
    world_say(self, "the power is cut");
    for (unsigned p = 0; p < self->process_count; p++)
        process_crash(&self->processes[p], sim_between(&self->rng, 1000, 300000));
    uint64_t before = sim_disk.taken_back;
    sim_disk_power_cut("data", &self->rng);
    self->stats.power_cuts++;
    self->stats.taken_back += sim_disk.taken_back - before;
}

bool world_check_cores(struct world *self)
{
    for (unsigned p = 0; p < self->process_count; p++) {
        struct process *process = &self->processes[p];
        struct sk_diag d = {0};
        if (process->is_writing || process->core == NULL || process->kind->check == NULL)
            continue;
        if (process->kind->check(process->core, &d) != SK_ERR_OK)
            model_violate(&self->model, "%s-%u: %s", process->kind->name, process->number, d.text);
    }
    return self->model.violation[0] == '\0';
}

void world_on_fault(struct world *self)
{
    struct sim_rng *rng = &self->rng;
    if (!self->faults_on)
        return;
    if (sim_chance(rng, 30))
        (void)world_check_cores(self);
    if (sim_chance(rng, self->rates.power))
        world_cut_power(self);
    if (sim_chance(rng, self->rates.crash)) {
        struct process *process = &self->processes[sim_below(rng, self->process_count)];
        bool was_up = process->core != NULL;
        process_crash(process, sim_between(rng, 1000, 700000));
        if (was_up && process->number >= PROCESS_WORKER_0 && sim_chance(rng, self->rates.damage))
            damage_files(self);
    }
    if (!sim_disk.is_full && sim_chance(rng, self->rates.full)) {
        sim_disk.is_full = self->disk_was_full = true;
        self->stats.full_times++;
        world_say(self, "the disk is full");
        world_push(self, (struct event){.at_us = self->mono_us + sim_between(rng, 50000, 2000000),
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
    world_push(self, (struct event){.at_us = self->mono_us + FAULT_US, .kind = EVENT_FAULT});
}
