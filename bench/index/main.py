"""Our indexes beside the libraries of today, one thread, one core, equal recall (bench/run index).

Every library is built in a process of its own, pinned to the same core, and swept over its parameters on one
half of the queries. Then the points around each recall are timed in turn, round after round; QPS at exactly
that recall is interpolated between the two points around it (log QPS over the recall of the other half of
the queries); a ratio is the median of the ratios of one round, with the smallest and the largest beside it.
"""

import argparse
import math
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import CORES, RESULTS, Driven, machine, median, rounded, write_results     # noqa: E402
from libraries import LIBRARIES, OURS                                                  # noqa: E402
from sets import SETS                                                                  # noqa: E402

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libraries.py")
RECALLS = (0.90, 0.95, 0.99)
QUICK = ("skerry balanced", "hnswlib", "symqg", "faiss ivf-pq-fastscan")
NOT_MEASURED = {
    "speed_*, memory_*, ivf_pq_*": "these profiles and index kinds are not built yet",
    "filtered_*, recall_target_shortfall": "the library's C ABI has no filter and no recall target yet",
    "durable_insert_over_hnswlib, p99_under_ingest_*, first_answer_s, full_speed_s": "bench/run node measures them on a whole node",
    "1,000,000 x 384": "not run",
}


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Swept:
    """One library on one set: built, its sweep, and what the rounds measured."""

    def __init__(self, name, set_name, core):
        self.name = name
        self.driven = Driven([sys.executable, WORKER, name, set_name], [core],
                             env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
        self.built = self.driven.ask("build")
        self.frontier = {}      # kind -> [(recall on the tuning half, param)], rising
        self.recalls = {}       # (kind, param) -> the other half's {"recall", "p5"}
        self.times = {}         # (kind, param) -> [{"qps", ...}] a round each

    def sweep(self, kind):
        points = []
        for param in range(self.built["params"]):
            recall = self.driven.ask(f"tune {kind} {param}")["recall"]
            if recall >= 0.85:
                points.append((recall, self.driven.ask(f"time {kind} {param}")["qps"], param))
            if recall >= 0.998 and self.name not in ("faiss ivf-pq-fastscan", "faiss ivf-rabitq"):
                break
        best = 0
        frontier = []
        for recall, qps, param in sorted(points, reverse=True):    # only what nothing beats in both
            if qps > best:
                best = qps
                frontier.append((recall, param))
        self.frontier[kind] = frontier[::-1]

    def around(self, kind, target):
        """The parameters whose recalls stand around the target: (below or None, above), or None."""
        above = [param for recall, param in self.frontier[kind] if recall >= target]
        below = [param for recall, param in self.frontier[kind] if recall < target]
        return (below[-1] if below else None, above[0]) if above else None

    def time(self, kind, params):
        for param in params:
            if (kind, param) not in self.recalls:
                self.recalls[kind, param] = self.driven.ask(f"recall {kind} {param}")
            self.times.setdefault((kind, param), []).append(self.driven.ask(f"time {kind} {param}"))

    def at(self, kind, target, round_):
        """QPS at exactly this recall in one round, or None."""
        pair = self.around(kind, target)
        if pair is None:
            return None
        below, above = pair
        high, high_qps = self.recalls[kind, above]["recall"], self.times[kind, above][round_]["qps"]
        if below is None:
            return high_qps if high >= target - 0.005 else None
        low, low_qps = self.recalls[kind, below]["recall"], self.times[kind, below][round_]["qps"]
        if high - low < 1e-6:
            return high_qps
        share = min(max((target - low) / (high - low), -0.5), 1.5)     # the other half differs a little
        return math.exp(math.log(low_qps) + share * (math.log(high_qps) - math.log(low_qps)))

    def summary(self, kind, target):
        pair = self.around(kind, target)
        if pair is None:
            return None
        rounds = range(len(self.times[kind, pair[1]]))
        runs = [self.at(kind, target, r) for r in rounds]
        if any(run is None for run in runs):
            return None
        blocks = self.times[kind, pair[1]]
        return {"qps": median(runs), "runs": runs, "p5": self.recalls[kind, pair[1]]["p5"],
                "p50_us": median([b["p50_us"] for b in blocks]), "p99_us": median([b["p99_us"] for b in blocks])}


def measure(set_name, names, rounds):
    data = SETS[set_name]()
    if data is None:
        say(f"{set_name}: its data is not here")
        return None, {}
    swept = {}
    for name in names:
        say(f"{data.name}: {name}")
        try:
            swept[name] = Swept(name, set_name, CORES[-1])
            for kind in data.queries:
                swept[name].sweep(kind)
        except RuntimeError as error:
            say(f"{name}: left out: {error}")
            swept.pop(name, None)
    for round_ in range(rounds):
        for library in swept.values():
            for kind in data.queries:
                wanted = {p for target in RECALLS for p in (library.around(kind, target) or ()) if p is not None}
                library.time(kind, sorted(wanted))
        say(f"{data.name}: round {round_ + 1} of {rounds}")
    return data, swept


def table(data, swept):
    lines = []
    for kind in data.queries:
        lines += [f"### {data.label()}, queries {kind}", "",
                  "| library | build CPU s | MB | QPS @0.90 | @0.95 (p50 / p99 us, p5 of the recall) | @0.99 |", "|---|---|---|---|---|---|"]
        rows = []
        for name, library in swept.items():
            cells = []
            for target in RECALLS:
                found = library.summary(kind, target)
                text = "-"
                if found:
                    text = f"{found['qps']:,.0f} [{min(found['runs']):,.0f} - {max(found['runs']):,.0f}]"
                    if target == 0.95:
                        text += f" ({found['p50_us']:.0f} / {found['p99_us']:.0f}, {found['p5']:.1f})"
                cells.append(text)
            at95 = library.summary(kind, 0.95)
            rows.append((-(at95["qps"] if at95 else 0),
                         f"| {name} | {library.built['cpu_s']:.1f} | {library.built['mb']:.0f} | " + " | ".join(cells) + " |"))
        lines += [row for _, row in sorted(rows)] + [""]
    return "\n".join(lines)


def plot(data, swept, path):
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, len(data.queries), figsize=(7 * len(data.queries), 5), squeeze=False)
    for axis, kind in zip(axes[0], data.queries):
        for name, library in swept.items():
            points = sorted((library.recalls[k, p]["recall"], median([t["qps"] for t in library.times[k, p]]))
                            for k, p in library.times if k == kind)
            if points:
                axis.plot(*zip(*points), marker="o", linewidth=2 if name in OURS else 1, label=name)
        axis.set(xlabel="recall@10", ylabel="queries/s, one thread", yscale="log", title=f"{data.name}, queries {kind}")
        axis.grid(True, which="both", alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


class Figures:
    def __init__(self):
        self.list = []

    def add(self, name, runs, must, aim, is_smaller=False, note=""):
        if not runs:
            return
        self.list.append({"name": name, "value": rounded(median(runs)), "unit": "ratio", "runs": [rounded(r) for r in runs],
                          "must": must, "aim": aim, "note": note, "is_smaller": is_smaller})

    def ratio(self, name, ours, theirs, kind, target, must, aim):
        a, b = (library.summary(kind, target) if library else None for library in (ours, theirs))
        if a and b:
            self.add(name, [x / y for x, y in zip(a["runs"], b["runs"])], must, aim,
                     note=f"{a['qps']:,.0f} ({ours.name}) / {b['qps']:,.0f} QPS ({theirs.name})")

    def table(self):
        lines = ["| figure | value | spread | must | aim | reaches | of what |", "|---|---|---|---|---|---|---|"]
        for f in self.list:
            reaches = (lambda goal, f=f: f["value"] <= goal if f["is_smaller"] else f["value"] >= goal)
            verdict = "aim" if reaches(f["aim"]) else "must" if reaches(f["must"]) else "**short**"
            lines.append(f"| `{f['name']}` | {f['value']} | {min(f['runs'])} - {max(f['runs'])} ({len(f['runs'])}) | {f['must']} | "
                         f"{f['aim']} | {verdict} | {f['note']} |")
        return "\n".join(lines)


def best(swept, kind, target, names):
    found = [(library.summary(kind, target)["qps"], library) for name, library in swept.items()
             if name in names and library.summary(kind, target)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def turnover(figures, swept, kind):
    """The very index that was timed, after everything went out and in again five times."""
    library = swept.get("skerry balanced")
    if library is None:
        return
    for order in ("random", "clustered"):
        pair = library.around(kind, 0.95)
        fresh = library.driven.ask(f"recall {kind} {pair[1]}")["recall"]
        fresh_qps = [library.driven.ask(f"time {kind} {pair[1]}")["qps"] for _ in range(5)]
        fresh_mb = library.built["mb"]
        say(f"turnover, {order} order")
        after = library.driven.ask(f"turnover {order}")
        recall = library.driven.ask(f"recall {kind} {pair[1]}")["recall"]
        qps = [library.driven.ask(f"time {kind} {pair[1]}")["qps"] for _ in range(5)]
        figures.add(f"turnover_recall_loss_{order}", [fresh - recall], 0.01, 0.003, True,
                    f"recall {fresh:.4f} before, {recall:.4f} after; QPS x {median(qps) / median(fresh_qps):.2f}, "
                    f"bytes x {after['mb'] / fresh_mb:.2f}, {after['cpu_s']:.0f} CPU s")


def main():
    parser = argparse.ArgumentParser(prog="bench/run index")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)} on the first set, 5 rounds")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (7; quick 5)")
    parser.add_argument("--sets", default=None, help=f"of {', '.join(SETS)}, divided by commas")
    parser.add_argument("--no-turnover", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 7)
    set_names = options.sets.split(",") if options.sets else (["wordnet"] if options.quick else list(SETS))
    for name in set_names:
        if name not in SETS:
            parser.error(f"no set {name}; there are: {', '.join(SETS)}")
    figures, tables = Figures(), []
    for set_name in set_names:
        data, swept = measure(set_name, QUICK if options.quick else tuple(LIBRARIES), rounds)
        if data is None:
            continue
        peers = [name for name in swept if name not in OURS]
        ours, hnswlib, symqg = (swept.get(n) for n in ("skerry balanced", "hnswlib", "symqg"))
        if set_name == "wordnet":
            for target, must, aim in ((0.95, 4, 6), (0.99, 4, 6)):
                figures.ratio(f"balanced_qps{round(100 * target)}_over_hnswlib", ours, hnswlib, "in", target, must, aim)
            figures.ratio("balanced_ood_qps95_over_hnswlib", ours, hnswlib, "ood", 0.95, 4, 6)
            figures.ratio("balanced_qps95_over_best_peer", ours, best(swept, "in", 0.95, peers), "in", 0.95, 1.0, 1.5)
            if ours and hnswlib:
                figures.add("balanced_ram_over_hnswlib", [ours.built["mb"] / hnswlib.built["mb"]], 0.7, 0.5, True,
                            f"{ours.built['mb']:.0f} / {hnswlib.built['mb']:.0f} MB; its own, id maps within")
                figures.add("build_over_hnswlib", [ours.built["cpu_s"] / hnswlib.built["cpu_s"]], 0.5, 0.2, True,
                            f"{ours.built['cpu_s']:.1f} / {hnswlib.built['cpu_s']:.1f} CPU s")
            if ours and symqg:
                figures.add("build_over_symqg", [ours.built["cpu_s"] / symqg.built["cpu_s"]], 1.0, 0.5, True,
                            f"{ours.built['cpu_s']:.1f} / {symqg.built['cpu_s']:.1f} CPU s")
        else:
            name, aim = ("sift", 1.4) if set_name == "sift" else ("uniform", 1.5)
            figures.ratio(f"{name}_qps95_over_best_peer", best(swept, "in", 0.95, OURS),
                          best(swept, "in", 0.95, peers), "in", 0.95, 1.0, aim)
        tables.append(table(data, swept))
        plot(data, swept, os.path.join(RESULTS, f"index-{set_name}.png"))
        if set_name == "wordnet" and not options.no_turnover and not options.quick:
            turnover(figures, swept, "in")
        for library in swept.values():
            library.driven.end()
    facts = machine()
    gaps = "\n".join(f"- {names}: {why}" for names, why in NOT_MEASURED.items())
    text = (f"# Indexes\n\n{facts['cpu']} (family {facts['family']}, model {facts['model']}), one core of {facts['cores']}, "
            f"{'/'.join(facts['simd'])}, kernel {facts['kernel']}, {facts['date']}, commit {facts['commit']}. `./bench/run index"
            f"{' --quick' if options.quick else ''}`: k = 10, m 16 or degree 32, construction 200, {rounds} interleaved rounds, QPS "
            f"interpolated at the recall, medians with smallest and largest. hnswlib is compiled here with -march=native, the others "
            f"are PyPI's packages.\n\n{figures.table()}\n\nNot measured:\n{gaps}\n\n" + "\n".join(tables))
    print(text)
    write_results("index" if not (options.quick or options.sets) else "index-partial",
                  {"machine": facts, "figures": figures.list, "not_measured": NOT_MEASURED}, text)


if __name__ == "__main__":
    main()
