"""Every figure of the index benchmark: its unit, what it must reach and aims at, and which part measures it."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Target:
    part: str                   # the part of main.PARTS that measures it
    must: Optional[float]       # None: reported beside another
    aim: Optional[float]
    is_smaller: bool = False
    unit: str = "ratio"
    libraries: tuple = ()       # of ours; () = none by name
    peers: Optional[tuple] = ()     # None = all of them: the best is sought


HNSWLIB, SYMQG = ("hnswlib",), ("symqg",)
SPEED, BALANCED, MEMORY, IVF_PQ = (("skerry speed",), ("skerry balanced",), ("skerry memory",), ("skerry ivf_pq",))
GRAPHS = SPEED + BALANCED + MEMORY

TARGETS = {
    "speed_qps95_over_best_peer": Target("wordnet", 1.0, 1.5, libraries=SPEED, peers=None),
    "speed_qps99_over_best_peer": Target("wordnet", 1.0, 1.5, libraries=SPEED, peers=None),
    "speed_ood_qps95_over_best_peer": Target("wordnet", 1.0, 1.5, libraries=SPEED, peers=None),
    "speed_ram_over_hnswlib": Target("wordnet", 2.0, 1.4, True, libraries=SPEED, peers=HNSWLIB),
    "balanced_qps95_over_hnswlib": Target("wordnet", 4, 6, libraries=BALANCED, peers=HNSWLIB),
    "balanced_qps99_over_hnswlib": Target("wordnet", 4, 6, libraries=BALANCED, peers=HNSWLIB),
    "balanced_ood_qps95_over_hnswlib": Target("wordnet", 4, 6, libraries=BALANCED, peers=HNSWLIB),
    "balanced_ram_over_hnswlib": Target("wordnet", 0.7, 0.5, True, libraries=BALANCED, peers=HNSWLIB),
    "memory_qps95_over_hnswlib": Target("wordnet", 2, 3, libraries=MEMORY, peers=HNSWLIB),
    "memory_ram_over_hnswlib": Target("wordnet", 0.25, 0.2, True, libraries=MEMORY, peers=HNSWLIB),
    "memory_capped_qps_share": Target("capped", 0.1, 0.3, libraries=MEMORY, peers=HNSWLIB),
    "ivf_pq_ram_over_hnswlib": Target("wordnet", 0.1, 0.05, True, libraries=IVF_PQ, peers=HNSWLIB),
    "ivf_pq_qps95_over_hnswlib": Target("wordnet", 0.5, 1, libraries=IVF_PQ, peers=HNSWLIB),
    "sift_qps95_over_best_peer": Target("sift", 1.0, 1.4, libraries=None, peers=None),
    "uniform_qps95_over_best_peer": Target("uniform", 1.0, 1.5, libraries=None, peers=None),
    "build_over_hnswlib": Target("wordnet", 0.5, 0.2, True, libraries=GRAPHS, peers=HNSWLIB),
    "build_over_symqg": Target("wordnet", 1.0, 0.5, True, libraries=GRAPHS, peers=SYMQG),
    "durable_insert_over_hnswlib": Target("node", 0.8, 1.5),
    "p99_under_ingest_over_control": Target("node", 1.2, 1.05, True),
    "p99_under_ingest_over_idle": Target("node", None, None, True),
    "turnover_recall_loss": Target("turnover", 0.01, 0.003, True, "recall"),
    "turnover_qps_over_fresh": Target("turnover", 0.9, None),
    "turnover_bytes_over_fresh": Target("turnover", 1.1, None, True),
    "filtered_recall_min": Target("filters", 0.95, 0.98, False, "recall", BALANCED, HNSWLIB),
    "filtered_latency_over_hnswlib": Target("filters", 1.5, 1, True, libraries=BALANCED, peers=HNSWLIB),
    "first_answer_s": Target("node", 1, 0.2, True, "s"),
    "full_speed_s": Target("node", 5, 2, True, "s"),
    "first_answer_million_s": Target("million-node", 1, 0.2, True, "s"),
    "full_speed_million_s": Target("million-node", 5, 2, True, "s"),
    "recall_target_shortfall": Target("recall", 0.02, 0.005, True, "recall", BALANCED),
    "recall_target_qps_over_fixed": Target("recall", 0.8, None, libraries=BALANCED),
    "neon_same_neighbours": Target("neon", 1, 1, False, "share of queries"),
}


def reaches(name, value):
    """"aim", "must", "**short**", or "reported" where nothing is asked."""
    target = TARGETS[name]
    is_reached = (lambda goal: value <= goal) if target.is_smaller else (lambda goal: value >= goal)
    if target.aim is not None and is_reached(target.aim):
        return "aim"
    if target.must is None:
        return "reported"
    return "must" if is_reached(target.must) else "**short**"
