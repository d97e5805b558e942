"""The arithmetic of the index benchmark, apart so that a test can hold it: no numpy, no clock, no process."""

import math
import statistics


def frontier(points):
    """Of [(recall, qps, param)] what nothing beats in both, recall rising: [(recall, qps, param)]."""
    best, kept = 0.0, []
    for recall, qps, param in sorted(points, key=lambda p: (-p[0], -p[1])):
        if qps > best:
            best = qps
            kept.append((recall, qps, param))
    return kept[::-1]


def around(points, target, each=2):
    """The params of a frontier next to a recall, `each` below it and `each` at or above; [] if it is not reached."""
    below = [param for recall, _, param in points if recall < target]
    above = [param for recall, _, param in points if recall >= target]
    return below[-each:] + above[:each] if above else []


def at_recall(points, target, slack=0.005):
    """The rate at exactly this recall: log(rate) on the straight line between the two of [(recall, rate)] that
    stand around it. Outside of them a line may be drawn on for `slack` of recall; further is None."""
    rising = frontier([(recall, rate, None) for recall, rate in points if rate > 0])
    if not rising:
        return None
    recalls = [recall for recall, _, _ in rising]
    if target < recalls[0]:        # what is better than asked at its fastest counts as what it is, never faster
        return rising[0][1]
    if target > recalls[-1] + slack:
        return None
    if len(rising) == 1:
        return rising[0][1]
    high = next((i for i, recall in enumerate(recalls) if recall >= target), len(recalls) - 1)
    low = max(high - 1, 0)
    high = max(high, low + 1)
    share = (target - recalls[low]) / (recalls[high] - recalls[low])
    return math.exp((1 - share) * math.log(rising[low][1]) + share * math.log(rising[high][1]))


def ratio(ours, theirs):
    """The ratio of each round; rounds that either side lacks are left out."""
    return [a / b for a, b in zip(ours, theirs) if a is not None and b]


def percentile(values, percent):
    """On the straight line between the two nearest of the sorted values, as numpy's default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def recall_of(found, truth):
    """The share of the true neighbours that was found; 1 where there are none."""
    wanted = set(truth)
    return len(wanted & set(found)) / len(wanted) if wanted else 1.0


def median(values):
    return statistics.median(values)
