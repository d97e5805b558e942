/* Counters are plain uint64_t; this is the histogram of latencies.
 * Bounds are fixed, in us, so that histograms of processes and times can be added.
 * Thread: one. */
#ifndef SK_METRIC_H
#define SK_METRIC_H

#include <stdint.h>

enum { SK_HISTOGRAM_BOUNDS = 20 };
/* Upper bounds (inclusive): 25, 50, 75, 100, 150, 200, 300, 500, 750, 1 ms ... 10 s, in us. */
extern const uint64_t sk_histogram_bounds_us[SK_HISTOGRAM_BOUNDS];

struct sk_histogram {
    uint64_t count;
    uint64_t sum_us;
    uint64_t counts[SK_HISTOGRAM_BOUNDS + 1]; /* not cumulative; the last one: above every bound */
};

void sk_histogram_add(struct sk_histogram *self, uint64_t value_us);
void sk_histogram_merge(struct sk_histogram *self, const struct sk_histogram *other);
/* The upper bound of the bucket in which that share (0..1) of the values ends; 0 when empty, and
 * the largest bound for what lies above it. */
uint64_t sk_histogram_quantile_us(const struct sk_histogram *self, double share);

#endif
