#include "common/base/metric.h"

const uint64_t sk_histogram_bounds_us[SK_HISTOGRAM_BOUNDS] = {
    25,   50,   75,    100,   150,   200,    300,    500,     750,     1000,
    2000, 5000, 10000, 25000, 50000, 100000, 250000, 1000000, 5000000, 10000000};

void sk_histogram_add(struct sk_histogram *self, uint64_t value_us)
{
    unsigned bucket = 0;
    while (bucket < SK_HISTOGRAM_BOUNDS && value_us > sk_histogram_bounds_us[bucket])
        bucket++;
    self->counts[bucket]++;
    self->count++;
    self->sum_us += value_us;
}

void sk_histogram_merge(struct sk_histogram *self, const struct sk_histogram *other)
{
    for (unsigned i = 0; i <= SK_HISTOGRAM_BOUNDS; i++)
        self->counts[i] += other->counts[i];
    self->count += other->count;
    self->sum_us += other->sum_us;
}

uint64_t sk_histogram_quantile_us(const struct sk_histogram *self, double share)
{
    if (self->count == 0)
        return 0;
    double wanted = share * (double)self->count;
    uint64_t seen = 0;
    for (unsigned i = 0; i < SK_HISTOGRAM_BOUNDS; i++) {
        seen += self->counts[i];
        if ((double)seen >= wanted && seen > 0)
            return sk_histogram_bounds_us[i];
    }
    return sk_histogram_bounds_us[SK_HISTOGRAM_BOUNDS - 1];
}
