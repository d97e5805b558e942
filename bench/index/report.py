"""The results: kept as they come, merged with what earlier runs measured, written as JSON, tables and plots."""

import json
import os
import time

from common import RESULTS, machine, median, rounded, write_results
from libraries import LIBRARIES, OURS
from targets import TARGETS, reaches

# The same colour for a library in every plot, dark enough on white; ours are drawn through, peers dashed.
COLOURS = dict(zip(LIBRARIES, ("#d62728", "#1f4e9c", "#4a90d9", "#2a7f3f", "#8c5a2b", "#7b3fa0", "#c2388a", "#555555",
                               "#000000", "#b35900", "#5f7f00", "#00767a", "#4d6680", "#86610f", "#83505f")))


class Results:
    def __init__(self, name, command, is_fresh=False):
        self.name, self.command, self.machine = name, command, machine()
        self.document = {"machine": self.machine, "data": "", "figures": [], "parts": {}, "sweeps": {}, "tables": {}, "not_measured": {}}
        path = os.path.join(RESULTS, name + ".json")
        if os.path.exists(path) and not is_fresh:
            with open(path) as file:
                old = json.load(file)
            self.document.update({key: old[key] for key in self.document if key in old})
        self.document["machine"] = self.machine
        self.figures = {figure["name"]: figure for figure in self.document["figures"] if figure["name"] in TARGETS}

    def now(self):
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())

    def add(self, name, part, runs, note="", value=None, **more):
        target, runs = TARGETS[name], [run for run in runs if run is not None]
        if not runs:
            return
        self.figures[name] = {"name": name, "value": rounded(median(runs) if value is None else value), "unit": target.unit,
                              "runs": [rounded(run) for run in runs], "must": target.must, "aim": target.aim,
                              "note": note, "part": part, "date": self.now(), "commit": self.machine["commit"], **more}
        self.document["not_measured"].pop(name, None)

    def lack(self, name, why):
        """Asked for in this run and not measured; a value of an earlier run does not stand for it."""
        self.figures.pop(name, None)
        self.document["not_measured"][name] = why

    def begin(self, part):
        self.document["parts"][part] = {"machine": self.machine, "date": self.now(), "command": self.command}

    def sweep(self, set_name, data, rounds, swept, refused):
        kept = self.document["sweeps"].setdefault(set_name, {"libraries": {}})
        kept.update({"label": data.label(), "note": data.note, "kinds": list(data.queries), "rounds": rounds})
        kept["libraries"].update({name: library.record() for name, library in swept.items()})
        for name in refused:
            kept["libraries"].pop(name, None)
        kept["refused"] = {**{name: why for name, why in kept.get("refused", {}).items() if name not in swept}, **refused}

    def table(self, part, text):
        self.document["tables"][part] = text

    def write(self):
        self.larger("first_answer_s", "first_answer_million_s")
        self.larger("full_speed_s", "full_speed_million_s")
        self.document["figures"] = [self.figures[name] for name in TARGETS if name in self.figures]
        for name in TARGETS:
            if name not in self.figures:
                self.document["not_measured"].setdefault(name, "not run yet")
        text = self.markdown()
        write_results(self.name, self.document, text)
        self.plots()
        return text

    def larger(self, name, other):
        """The first of two sizes takes the value of the second where that is larger: both must hold."""
        a, b = self.figures.get(name), self.figures.get(other)
        if a and b and b["value"] > a["value"]:
            self.figures[name] = {**a, "value": b["value"], "runs": b["runs"], "note": f"{b['note']}; {a['note']}"}

    # ---- tables ----

    def markdown(self):
        facts, document = self.machine, self.document
        head = (f"# Indexes\n\n{facts['cpu']} (family {facts['family']}, model {facts['model']}), one core of {facts['cores']}, "
                f"{'/'.join(facts['simd'])}, {facts['memory_mb']} MB, kernel {facts['kernel']}, commit {facts['commit']}. "
                f"`{self.command}`, {self.now()}: m 16 or degree 32, construction 200, k = 10 where nothing else is said. Parameters "
                "are chosen on one half of the queries, recall is that of the other half, QPS is interpolated at exactly the "
                "recall; libraries take turns, round after round, on one core; a value is the median of the rounds' ratios, with "
                "the smallest and the largest beside it. RAM is what the library's process grew by while building (memory of no "
                "file, after the allocator gave back what was free), for ours the larger of that and its own account: graphs, "
                "codes, vectors that are kept, id tables; page cache is not counted.")
        parts = ["| part | measured | commit | by |", "|---|---|---|---|",
                 *(f"| {name} | {part['date']}, {part['machine']['cpu']}, kernel {part['machine']['kernel']} | "
                   f"{part['machine']['commit']} | `{part['command']}` |" for name, part in document["parts"].items())]
        gaps = [f"- `{name}`: {why}" for name, why in document["not_measured"].items()]
        blocks = [head, self.figure_table(), *(["Not measured:\n" + "\n".join(gaps)] if gaps else []),
                  *(block for name, sweep in document["sweeps"].items() for block in self.sweep_tables(name, sweep)),
                  self.library_table(), *document["tables"].values(), "### When and where\n\n" + "\n".join(parts)]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def figure_table(self):
        lines = ["| figure | value | spread | must | aim | reaches | of what |", "|---|---|---|---|---|---|---|"]
        for f in self.document["figures"]:
            goals = " | ".join("-" if f[goal] is None else str(f[goal]) for goal in ("must", "aim"))
            lines.append(f"| `{f['name']}` | {f['value']} | {min(f['runs']):.4g} - {max(f['runs']):.4g} ({len(f['runs'])}) | {goals} | "
                         f"{reaches(f['name'], f['value'])} | {f['note']} |")
        return "\n".join(lines)

    def sweep_tables(self, set_name, sweep):
        note = f" **{sweep['note']}.**" if sweep.get("note") else ""
        for kind in sweep["kinds"]:
            lines = [f"### {sweep['label']}, queries `{kind}`", "", f"{sweep['rounds']} rounds.{note}", "",
                     "| library | build CPU s | MB | QPS @0.90 | QPS @0.95 | one at a time @0.95: p50 / p99 us | 5th percentile of the "
                     "recall @0.95 | QPS @0.99 | highest recall |", "|---|---|---|---|---|---|---|---|---|"]
            lines += self.rows(sweep, kind)
            yield "\n".join(lines)
        hundred = [(name, library["kinds"]["in@100"]) for name, library in sweep["libraries"].items() if "in@100" in library["kinds"]]
        if hundred:
            lines = [f"### {sweep['label']}, queries `in`, k = 100", "", "| library | QPS at recall@100 0.95 | highest recall@100 |", "|---|---|---|"]
            rows = sorted(((found["at"]["0.95"] or {"qps": 0})["qps"], name, found) for name, found in hundred)[::-1]
            lines += [f"| {name} | {spread(found['at']['0.95'])} | {found['highest_recall']:.4f} |" for _, name, found in rows]
            yield "\n".join(lines)
        plots = f"![recall against QPS](index-{set_name}.svg)" if self.name == "index" else ""
        refused = [f"- left out: {name}: {why}" for name, why in sweep.get("refused", {}).items()]
        yield "\n".join([plots, *refused]).strip()

    @staticmethod
    def rows(sweep, kind):
        rows = []
        for name, library in sweep["libraries"].items():
            if kind not in library["kinds"]:
                continue
            at, built = library["kinds"][kind]["at"], library["built"]
            middle = at["0.95"] or {}
            single = f"{middle['p50_us']:.0f} / {middle['p99_us']:.0f}" if "p50_us" in middle else "-"
            p5 = f"{middle['p5']:.2f}" if middle else "-"
            label = f"**{name}**" if name in OURS else name
            rows.append((-middle.get("qps", 0), f"| {label} | {built['cpu_s']:.1f}{'*' if built['is_kept'] else ''} | {built['mb']:.1f} | "
                         f"{spread(at['0.90'])} | {spread(middle)} | {single} | {p5} | {spread(at['0.99'])} | "
                         f"{library['kinds'][kind]['highest_recall']:.4f} |"))
        return [row for _, row in sorted(rows)]

    def library_table(self):
        found = {}
        for sweep in self.document["sweeps"].values():
            found.update({name: library["built"] for name, library in sweep["libraries"].items()})
        if not found:
            return ""
        lines = ["### The libraries", "", "`*` at a building time: built (and its time and memory measured) earlier in the same boot of "
                 "the same machine, then loaded.", "", "| library | version | QPS is measured by | instruction set |", "|---|---|---|---|"]
        lines += [f"| {name} | {built['version']} | {built['how']} | {built['instructions']} |" for name, built in found.items()]
        return "\n".join(lines)

    # ---- plots ----

    def plots(self):
        if self.name != "index":
            return
        import matplotlib
        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "skerry"
        matplotlib.rcParams["svg.fonttype"] = "none"
        for set_name, sweep in self.document["sweeps"].items():
            plot(sweep, os.path.join(RESULTS, f"index-{set_name}.svg"))


def spread(found):
    if not found:
        return "-"
    return f"{found['qps']:,.0f} [{min(found['runs']):,.0f} - {max(found['runs']):,.0f}]"


def plot(sweep, path):
    from matplotlib import pyplot, ticker
    kinds = sweep["kinds"]
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(8 * len(kinds), 6), squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        for name in (name for name in LIBRARIES if name in sweep["libraries"]):
            points = [p for p in sweep["libraries"][name]["kinds"].get(kind, {}).get("curve", []) if p[0] >= 0.8]
            if not points:
                continue
            is_ours = name in OURS
            axis.plot(*zip(*points), marker="o" if is_ours else "s", markersize=5 if is_ours else 3, linewidth=2.2 if is_ours else 1.1,
                      linestyle="-" if is_ours else "--", color=COLOURS[name], label=name)
            axis.annotate(name, points[-1], fontsize=7, xytext=(4, 0), textcoords="offset points", color=COLOURS[name], va="center")
        axis.set(xlabel="recall@10 of the reporting half", ylabel="queries/s, one thread", yscale="log",
                 title=f"{sweep['label']}, queries {kind}")
        axis.set_xlim(right=axis.get_xlim()[1] + 0.015)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8, loc="lower left")
    figure.suptitle("Up and to the right is better. One thread, libraries in turns, medians of the rounds.", fontsize=9)
    figure.patch.set_facecolor("white")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
