"""One set: every library built and swept over its parameters, then timed in turn, round after round.

Parameters are chosen on one half of the queries; recall and QPS are those of the other. QPS at exactly a recall
is interpolated (stats.at_recall), so that equal recall is compared; a ratio is the median of the rounds' ratios.
"""

import os
import sys
import time

from common import CORES, Driven, median
from libraries import LIBRARIES, OURS, PEERS
from stats import around, at_recall, frontier, ratio

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
RECALLS = (0.90, 0.95, 0.99)
HUNDRED_ROUNDS = 3                  # of k = 100, which is no figure
LOWEST, ENOUGH = 0.80, 0.998        # of recall: nothing below is timed, nothing more thorough is tried
ALONE = OURS + ("hnswlib", "symqg")     # their building time is a figure: nothing else runs beside it


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Refused(RuntimeError):
    """A library said no; the table says so."""


class Swept:
    def __init__(self, name, set_name, core=None):
        self.name, self.set_name = name, set_name
        self.driven = Driven([sys.executable, WORKER, name, set_name], [CORES[-1] if core is None else core],
                             env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
        self.built, self.frontier, self.facts, self.times, self.singles, self.highest = None, {}, {}, {}, {}, {}

    def took(self, result):
        if "error" in result:
            raise Refused(result["error"])
        return result

    def ask(self, command):
        return self.took(self.driven.ask(command))

    def pin(self, core):
        for thread in os.listdir(f"/proc/{self.driven.process.pid}/task"):
            os.sched_setaffinity(int(thread), {core})

    def sweep(self, kind):
        """Lines of parameters, each from fast to thorough; a line ends where more gains nothing."""
        points = []
        for line in self.ask(f"params {kind}")["lines"]:
            before = 0
            for param in line:
                found = self.ask(f"sweep {kind} {param}")
                self.highest[kind] = max(self.highest.get(kind, 0), found["recall"])
                if found["tune"] >= LOWEST:
                    points.append((found["tune"], found["qps"], param))
                    self.facts[kind, param] = found
                if found["tune"] >= ENOUGH or (self.built["is_grid"] and found["tune"] >= LOWEST and found["tune"] - before < 0.0005):
                    break
                before = found["tune"]
        # Which parameters of a grid are worth it is said by the half that tunes, and a beam always is.
        self.frontier[kind] = frontier(points) if self.built["is_grid"] else sorted(points)

    def wanted(self, kind):
        """The parameters around each recall of the half that reports."""
        targets = (0.95,) if "@" in kind else (0.90, 0.95) if self.set_name.startswith("uniform") else RECALLS
        points = sorted((self.facts[kind, param]["recall"], 0, param) for _, _, param in self.frontier[kind])
        return sorted({p for target in targets for p in around(points, target, 2 if target > 0.9 and "@" not in kind else 1)})

    def round(self, kind):
        if "@" in kind and self.rounds(kind) >= HUNDRED_ROUNDS:
            return
        for param in self.wanted(kind):
            self.times.setdefault((kind, param), []).append(self.ask(f"time {kind} {param}")["qps"])
        if "@" not in kind:
            points = sorted((self.facts[kind, param]["recall"], 0, param) for _, _, param in self.frontier[kind])
            for param in around(points, 0.95, 1):
                self.singles.setdefault((kind, param), []).append(self.ask(f"single {kind} {param}"))

    def rounds(self, kind):
        return min((len(runs) for (k, _), runs in self.times.items() if k == kind), default=0)

    def points(self, kind, round_):
        return [(self.facts[k, p]["recall"], runs[round_]) for (k, p), runs in self.times.items() if k == kind]

    def runs(self, kind, target):
        return [at_recall(self.points(kind, r), target) for r in range(self.rounds(kind))]

    def single_us(self, kind, which):
        """p50 or p99 of queries one at a time at 0.95, interpolated as rates are, a round each."""
        pairs = [(self.facts[k, p]["recall"], blocks) for (k, p), blocks in self.singles.items() if k == kind]
        count = min((len(blocks) for _, blocks in pairs), default=0)
        found = [at_recall([(recall, 1e6 / blocks[r][which]) for recall, blocks in pairs], 0.95, 0.05) for r in range(count)]
        return [1e6 / rate for rate in found if rate]

    def summary(self, kind, target):
        """What the tables need at this recall, or None where it is not reached."""
        runs = self.runs(kind, target) if kind in self.frontier else []
        if not runs or any(run is None for run in runs):
            return None
        nearest = min((abs(self.facts[k, p]["recall"] - target), p) for k, p in self.times if k == kind)[1]
        singles = {w: self.single_us(kind, w) for w in ("p50_us", "p99_us")} if target == 0.95 else {}
        return {"qps": median(runs), "runs": runs, "p5": self.facts[kind, nearest]["p5"],
                **{which: median(values) for which, values in singles.items() if values}}

    def record(self):
        """Everything of it that the results keep."""
        kinds = {}
        for kind in self.frontier:
            curve = sorted((self.facts[k, p]["recall"], median(runs)) for (k, p), runs in self.times.items() if k == kind)
            at = {f"{target:.2f}": self.summary(kind, target) for target in RECALLS}
            kinds[kind] = {"at": at, "curve": curve, "highest_recall": self.highest.get(kind)}
        return {"built": self.built, "kinds": kinds, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}

    def end(self):
        self.driven.end()


def build(names, set_name, may_keep, refused):
    """The libraries, built; those whose building time is no figure two at a time. -> {name: Swept}"""
    swept, pending = {}, [name for name in names if name not in ALONE]
    for name in (name for name in names if name in ALONE):
        say(f"{set_name}: {name} builds")
        start(name, set_name, CORES[-1], may_keep, swept, refused)
        finish(name, swept, refused)
    while pending:
        pair, pending = pending[:len(CORES)], pending[len(CORES):]
        say(f"{set_name}: {' and '.join(pair)} build" + ("s" if len(pair) == 1 else ""))
        for name, core in zip(pair, reversed(CORES)):
            start(name, set_name, core, may_keep, swept, refused)
        for name in pair:
            finish(name, swept, refused)
    return {name: swept[name] for name in names if name in swept}


def start(name, set_name, core, may_keep, swept, refused):
    try:
        swept[name] = Swept(name, set_name, core)
        swept[name].driven.send(f"build {int(may_keep)}")
    except (RuntimeError, OSError) as error:
        refused[name] = str(error)
        swept.pop(name, None)


def finish(name, swept, refused):
    if name not in swept:
        return
    try:
        swept[name].built = swept[name].took(swept[name].driven.line())
        swept[name].pin(CORES[-1])
    except (RuntimeError, OSError) as error:
        refused[name] = str(error)
        say(f"{name} is left out: {error}")
        swept.pop(name).end()


def measure(data, set_name, names, rounds, may_keep, refused, on_round=lambda swept: None):
    """Builds, sweeps and times; what fails on the way is left out and named in refused. -> {name: Swept}"""
    swept = build(names, set_name, may_keep, refused)
    kinds = [*data.queries, *(["in@100"] if set_name.startswith("wordnet") else [])]

    def without(name, error):
        refused[name] = str(error)
        say(f"{name} is left out: {error}")
        swept.pop(name).end()

    for name in list(swept):
        began = time.monotonic()
        try:
            for kind in kinds:
                swept[name].sweep(kind)
        except RuntimeError as error:
            without(name, error)
        else:
            best = max((recall for recall, _, _ in swept[name].frontier["in"]), default=0)
            say(f"{set_name}: {name} swept in {time.monotonic() - began:.0f} s, recall to {best:.4f}")
    for round_ in range(rounds):
        for kind in kinds:      # all libraries one after the other, so that a ratio is of neighbours in time
            for name in list(swept):
                try:
                    swept[name].round(kind)
                except RuntimeError as error:
                    without(name, error)
        say(f"{set_name}: round {round_ + 1} of {rounds}")
        on_round(swept)
    return swept


def best(swept, kind, target, names):
    found = [(summary["qps"], swept[name]) for name in names if name in swept
             for summary in [swept[name].summary(kind, target)] if summary]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def add_ratio(results, part, name, ours, theirs, kind, target):
    a, b = (library.summary(kind, target) if library else None for library in (ours, theirs))
    if a and b:
        results.add(name, part, ratio(a["runs"], b["runs"]),
                    f"{a['qps']:,.0f} ({ours.name}) / {b['qps']:,.0f} QPS ({theirs.name})")
    elif ours and theirs:
        short = [library.name for library, summary in ((ours, a), (theirs, b)) if not summary]
        results.lack(name, f"{' and '.join(short)} did not reach recall {target}")


def wordnet_figures(results, swept):
    hnswlib, symqg = swept.get("hnswlib"), swept.get("symqg")
    speed, balanced, memory, ivf_pq = (swept.get(f"skerry {name}") for name in ("speed", "balanced", "memory", "ivf_pq"))
    for kind, target, name in (("in", 0.95, "qps95"), ("in", 0.99, "qps99"), ("ood", 0.95, "ood_qps95")):
        add_ratio(results, "wordnet", f"speed_{name}_over_best_peer", speed, best(swept, kind, target, PEERS), kind, target)
        add_ratio(results, "wordnet", f"balanced_{name}_over_hnswlib", balanced, hnswlib, kind, target)
    for name, ours in (("memory", memory), ("ivf_pq", ivf_pq)):
        add_ratio(results, "wordnet", f"{name}_qps95_over_hnswlib", ours, hnswlib, "in", 0.95)
    for name, ours in (("speed", speed), ("balanced", balanced), ("memory", memory), ("ivf_pq", ivf_pq)):
        if ours and hnswlib:
            results.add(f"{name}_ram_over_hnswlib", "wordnet", [ours.built["mb"] / hnswlib.built["mb"]],
                        f"{ours.built['mb']:.1f} (its own account {ours.built['own_mb']:.1f}, its process grew by "
                        f"{ours.built['grown_mb']:.1f}) / {hnswlib.built['mb']:.1f} MB (its process grew by); ids are row numbers, any "
                        f"others add {ours.built['ids_mb']:.1f} MB")
    graphs = [library for library in (speed, balanced, memory) if library]
    for name, peer in (("build_over_hnswlib", hnswlib), ("build_over_symqg", symqg)):
        if graphs and peer:
            worst = max(graphs, key=lambda library: library.built["cpu_s"])
            each = ", ".join(f"{library.name} {library.built['cpu_s']:.1f}" for library in graphs)
            kept = f", built at {peer.built['date']}" if peer.built["is_kept"] else ""
            results.add(name, "wordnet", [worst.built["cpu_s"] / peer.built["cpu_s"]],
                        f"{each} / {peer.built['cpu_s']:.1f} CPU s{kept}; the slowest counts")


def figures(results, set_name, swept):
    if set_name == "wordnet":
        wordnet_figures(results, swept)
    elif set_name in ("sift", "uniform"):
        add_ratio(results, set_name, f"{set_name}_qps95_over_best_peer", best(swept, "in", 0.95, OURS),
                  best(swept, "in", 0.95, PEERS), "in", 0.95)


assert set(ALONE) <= set(LIBRARIES)
