"""The arithmetic of the index benchmark, against values worked out by hand."""

import math
import os
import sys
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "bench", "index"))
import stats        # noqa: E402
import targets      # noqa: E402


class Statistics(unittest.TestCase):
    def test_a_frontier_keeps_what_nothing_beats_in_both(self):
        points = [(0.90, 100, "a"), (0.95, 80, "b"), (0.93, 70, "beaten by b"), (0.99, 20, "c"), (0.85, 90, "beaten by a")]
        self.assertEqual([param for _, _, param in stats.frontier(points)], ["a", "b", "c"])

    def test_of_equal_recall_the_faster_stays(self):
        self.assertEqual(stats.frontier([(0.9, 10, "slow"), (0.9, 20, "fast")]), [(0.9, 20, "fast")])

    def test_the_params_around_a_recall_stand_on_both_sides(self):
        points = [(0.90, 9, 1), (0.92, 8, 2), (0.94, 7, 3), (0.95, 6, 4), (0.97, 5, 5), (0.99, 4, 6)]
        self.assertEqual(stats.around(points, 0.95), [2, 3, 4, 5])
        self.assertEqual(stats.around(points, 0.95, 1), [3, 4])
        self.assertEqual(stats.around(points, 0.90, 1), [1])
        self.assertEqual(stats.around(points, 0.995), [])

    def test_between_two_points_the_logarithm_of_the_rate_is_straight(self):
        points = [(0.94, 4000.0), (0.96, 1000.0)]
        self.assertAlmostEqual(stats.at_recall(points, 0.95), 2000.0)
        self.assertAlmostEqual(stats.at_recall(points, 0.945), math.exp(0.75 * math.log(4000) + 0.25 * math.log(1000)))
        self.assertAlmostEqual(stats.at_recall(points, 0.94), 4000.0)
        self.assertAlmostEqual(stats.at_recall(points, 0.96), 1000.0)

    def test_the_points_next_to_the_recall_count_not_the_outer_ones(self):
        points = [(0.80, 9000.0), (0.94, 4000.0), (0.96, 1000.0), (0.999, 1.0)]
        self.assertAlmostEqual(stats.at_recall(points, 0.95), 2000.0)

    def test_nobody_gets_a_rate_that_was_not_reached(self):
        points = [(0.94, 4000.0), (0.96, 1000.0)]
        self.assertIsNone(stats.at_recall(points, 0.97))
        self.assertIsNone(stats.at_recall([], 0.9))
        self.assertIsNone(stats.at_recall([(0.9, 5.0)], 0.95))
        self.assertLess(stats.at_recall(points, 0.962), 1000.0)     # a line drawn on is slower, never faster
        self.assertEqual(stats.at_recall(points, 0.90), 4000.0)     # its fastest counts as what it is

    def test_a_ratio_is_of_the_same_round(self):
        self.assertEqual(stats.ratio([10, 30, 20], [5, 10, 20]), [2, 3, 1])
        self.assertEqual(stats.median(stats.ratio([10, 30, 20], [5, 10, 20])), 2)
        self.assertEqual(stats.ratio([10, None, 20], [5, 10, None]), [2])

    def test_a_percentile_lies_on_the_line_between_two_values(self):
        self.assertEqual(stats.percentile([4, 1, 3, 2], 50), 2.5)
        self.assertEqual(stats.percentile([1, 2], 100), 2)
        self.assertAlmostEqual(stats.percentile(range(101), 5), 5)

    def test_recall_counts_each_true_neighbour_once(self):
        self.assertEqual(stats.recall_of([1, 1, 1, 9], [1, 2]), 0.5)
        self.assertEqual(stats.recall_of([], [1]), 0.0)
        self.assertEqual(stats.recall_of([5], []), 1.0)


class Verdicts(unittest.TestCase):
    def test_larger_and_smaller_goals_are_read_the_right_way(self):
        self.assertEqual(targets.reaches("balanced_qps95_over_hnswlib", 6), "aim")
        self.assertEqual(targets.reaches("balanced_qps95_over_hnswlib", 4.5), "must")
        self.assertEqual(targets.reaches("balanced_qps95_over_hnswlib", 3.9), "**short**")
        self.assertEqual(targets.reaches("speed_ram_over_hnswlib", 1.3), "aim")
        self.assertEqual(targets.reaches("speed_ram_over_hnswlib", 2.1), "**short**")
        self.assertEqual(targets.reaches("turnover_qps_over_fresh", 0.95), "must")
        self.assertEqual(targets.reaches("turnover_bytes_over_fresh", 1.2), "**short**")
        self.assertEqual(targets.reaches("p99_under_ingest_over_idle", 9), "reported")


if __name__ == "__main__":
    unittest.main()
