/* The one source of chance of a simulated run, and the digest that shows two runs to be the same.
 */
#ifndef SK_SIM_RNG_H
#define SK_SIM_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim_rng {
    uint64_t state;
};

static inline uint64_t sim_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
}

static inline uint64_t sim_next(struct sim_rng *rng)
{
    rng->state += 0x9e3779b97f4a7c15U;
    return sim_mix(rng->state);
}

/* 0..bound-1; bound is not 0 */
static inline uint64_t sim_below(struct sim_rng *rng, uint64_t bound)
{
    return sim_next(rng) % bound;
}

static inline uint64_t sim_between(struct sim_rng *rng, uint64_t low, uint64_t high)
{
    return low + sim_below(rng, high - low + 1);
}

static inline bool sim_chance(struct sim_rng *rng, unsigned per_mille)
{
    return sim_below(rng, 1000) < per_mille;
}

static inline void sim_digest(uint64_t *digest, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    uint64_t h = *digest;
    for (size_t i = 0; i < size; i++)
        h = (h ^ at[i]) * 0x100000001b3U;
    *digest = sim_mix(h);
}

#endif
