/* Runs seeds of the simulated node, each in a process of its own, so that a crash of the code under
 * test is one failed seed.
 *
 *   sim [--seeds N] [--first N] [--actions N] [--jobs N] [--until-failure]
 *   SK_SEED=n sim        that seed only, and every step of it
 *   SK_MUTANT=name sim   with a planted bug (builds with SK_MUTANTS only)
 *
 * The seeds in tests/corpus/seeds always run first. Every tenth seed runs twice: the digests must
 * be the same. The last line is "N passed, N failed"; the exit status is 1 when one failed. */
#include "tests/sim/world.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { JOBS_MAX = 16, SEED_LIMIT_S = 120, ACTIONS = 260, CORPUS_MAX = 1000 };

struct result {
    uint64_t seed, digest;
    bool is_ok;
    struct world_stats stats;
    uint64_t mono_us, checked, missed, answered, errors[16];
    char violation[400];
};

struct totals {
    uint64_t passed, failed, answered, checked, missed, mono_us, errors[16];
    struct world_stats stats;
};

static void run_seed(struct result *out, uint64_t seed, unsigned actions, bool is_verbose)
{
    static struct world world;
    struct world_options options = {.seed = seed, .actions = actions, .is_verbose = is_verbose};
    memset(out, 0, sizeof(*out));
    out->seed = seed;
    out->is_ok = world_run(&world, &options);
    out->digest = world.digest;
    out->stats = world.stats;
    out->mono_us = world.mono_us;
    out->checked = world.model.checked;
    out->missed = world.model.missed;
    for (unsigned c = 0; c < world.client_count; c++) {
        out->answered += world.clients[c].answered;
        for (unsigned e = 0; e < 16; e++)
            out->errors[e] += world.clients[c].failed_kinds[e];
    }
    memcpy(out->violation, world.model.violation, sizeof(out->violation));
    world_end(&world);
}

static void run_child(int to, uint64_t seed, unsigned actions, bool twice)
{
    struct result first, second;
    alarm(SEED_LIMIT_S);
    run_seed(&first, seed, actions, false);
    if (twice && first.is_ok) {
        run_seed(&second, seed, actions, false);
        if (second.digest != first.digest) {
            first.is_ok = false;
            snprintf(first.violation, sizeof(first.violation),
                     "the same seed gave two digests: %016llx, %016llx",
                     (unsigned long long)first.digest, (unsigned long long)second.digest);
        }
    }
    ssize_t done = write(to, &first, sizeof(first));
    exit(done == (ssize_t)sizeof(first) ? 0 : 1); /* exit, not _exit: leaks are looked for */
}

static void add(struct totals *totals, const struct result *r)
{
    const struct world_stats *s = &r->stats;
    totals->answered += r->answered;
    totals->checked += r->checked;
    totals->missed += r->missed;
    totals->mono_us += r->mono_us;
    totals->stats.events += s->events;
    totals->stats.messages += s->messages;
    totals->stats.lost += s->lost;
    totals->stats.copied += s->copied;
    totals->stats.crashes += s->crashes;
    totals->stats.cuts += s->cuts;
    totals->stats.power_cuts += s->power_cuts;
    totals->stats.taken_back += s->taken_back;
    totals->stats.jumps += s->jumps;
    totals->stats.full_times += s->full_times;
    totals->stats.damaged += s->damaged;
    for (unsigned e = 0; e < 16; e++)
        totals->errors[e] += r->errors[e];
}

static void tell_failure(uint64_t seed, const char *words)
{
    printf("seed %llu failed (SK_SEED=%llu replays it)\nviolation: %s\n", (unsigned long long)seed,
           (unsigned long long)seed, words);
    fflush(stdout);
}

struct child {
    pid_t pid;
    int from;
    uint64_t seed;
};

static void reap(struct child *children, unsigned *count, struct totals *totals)
{
    int status = 0;
    pid_t pid = wait(&status);
    for (unsigned i = 0; i < *count; i++) {
        if (children[i].pid != pid)
            continue;
        struct result result;
        char words[120];
        bool has_result =
            read(children[i].from, &result, sizeof(result)) == (ssize_t)sizeof(result);
        close(children[i].from);
        if (has_result)
            add(totals, &result);
        if (has_result && result.is_ok && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            totals->passed++;
        } else {
            if (WIFSIGNALED(status))
                snprintf(words, sizeof(words), "the code under test ended with signal %d%s",
                         WTERMSIG(status), WTERMSIG(status) == SIGALRM ? " (it hangs)" : "");
            else
                snprintf(words, sizeof(words), "the run ended with status %d", WEXITSTATUS(status));
            tell_failure(children[i].seed, has_result && !result.is_ok ? result.violation : words);
            totals->failed++;
        }
        children[i] = children[--*count];
        return;
    }
}

static unsigned load_corpus(uint64_t *seeds)
{
    unsigned count = 0;
    char line[256];
    FILE *file = fopen(SK_SOURCE_DIR "/tests/corpus/seeds", "r");
    while (file != NULL && count < CORPUS_MAX && fgets(line, sizeof(line), file) != NULL) {
        unsigned long long seed;
        if (line[0] != '#' && sscanf(line, "%llu", &seed) == 1)
            seeds[count++] = seed;
    }
    if (file != NULL)
        fclose(file);
    return count;
}

static void tell_totals(const struct totals *t, double seconds)
{
    printf("%.1f simulated minutes in %.1f s; %llu events, %llu messages (%llu lost, %llu copied), "
           "%llu "
           "kills, %llu deaths at a write, %llu power cuts (%llu sectors taken back), %llu clock "
           "jumps, %llu full disks, %llu damaged files\n",
           (double)t->mono_us / 60e6, seconds, (unsigned long long)t->stats.events,
           (unsigned long long)t->stats.messages, (unsigned long long)t->stats.lost,
           (unsigned long long)t->stats.copied, (unsigned long long)t->stats.crashes,
           (unsigned long long)t->stats.cuts, (unsigned long long)t->stats.power_cuts,
           (unsigned long long)t->stats.taken_back, (unsigned long long)t->stats.jumps,
           (unsigned long long)t->stats.full_times, (unsigned long long)t->stats.damaged);
    printf("%llu answers, %llu comparisons with the model, %llu records missed by approximate "
           "searches; errors: %llu deadline, %llu "
           "unavailable, %llu "
           "busy, %llu disk_full, %llu without an answer\n",
           (unsigned long long)t->answered, (unsigned long long)t->checked,
           (unsigned long long)t->missed, (unsigned long long)t->errors[10],
           (unsigned long long)t->errors[11], (unsigned long long)t->errors[4],
           (unsigned long long)t->errors[13], (unsigned long long)t->errors[0]);
}

static int run_many(uint64_t first, uint64_t count, unsigned actions, unsigned jobs,
                    bool until_failure)
{
    struct child children[JOBS_MAX];
    static uint64_t corpus[CORPUS_MAX];
    unsigned running = 0, corpus_count = load_corpus(corpus);
    struct totals totals = {0};
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (uint64_t i = 0; i < corpus_count + count; i++) {
        uint64_t seed = i < corpus_count ? corpus[i] : first + i - corpus_count;
        int ends[2];
        if (until_failure && totals.failed > 0)
            break;
        while (running == jobs)
            reap(children, &running, &totals);
        fflush(stdout);
        if (pipe(ends) != 0)
            return 2;
        pid_t pid = fork();
        if (pid == 0) {
            close(ends[0]);
            run_child(ends[1], seed, actions, seed % 10 == 0);
        }
        close(ends[1]);
        if (pid < 0)
            return 2;
        children[running++] = (struct child){pid, ends[0], seed};
    }
    while (running > 0)
        reap(children, &running, &totals);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    tell_totals(&totals, (double)(ended.tv_sec - began.tv_sec) +
                             (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
    printf("%llu passed, %llu failed\n", (unsigned long long)totals.passed,
           (unsigned long long)totals.failed);
    return totals.failed == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"seeds", 1, NULL, 's'},         {"first", 1, NULL, 'f'},
                                          {"actions", 1, NULL, 'a'},       {"jobs", 1, NULL, 'j'},
                                          {"until-failure", 0, NULL, 'u'}, {NULL, 0, NULL, 0}};
    uint64_t seeds = 300, first = 1;
    unsigned actions = ACTIONS;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned jobs = cores < 1 ? 1 : cores > JOBS_MAX ? JOBS_MAX : (unsigned)cores;
    bool until_failure = false;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's':
            seeds = strtoull(optarg, NULL, 10);
            break;
        case 'f':
            first = strtoull(optarg, NULL, 10);
            break;
        case 'a':
            actions = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'j':
            jobs = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'u':
            until_failure = true;
            break;
        default:
            return 2;
        }
    }
    if (jobs == 0 || jobs > JOBS_MAX || actions == 0) {
        fprintf(stderr, "sim: --jobs is 1 to %d, --actions at least 1\n", JOBS_MAX);
        return 2;
    }
    const char *one = getenv("SK_SEED");
    if (one != NULL) {
        struct result result;
        run_seed(&result, strtoull(one, NULL, 10), actions, true);
        if (!result.is_ok)
            tell_failure(result.seed, result.violation);
        printf("digest %016llx\n", (unsigned long long)result.digest);
        return result.is_ok ? 0 : 1;
    }
    return run_many(first, seeds, actions, jobs, until_failure);
}
