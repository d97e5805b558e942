"""Our indexes beside the libraries of today, one thread, one core, equal recall (bench/run index).

Each part is measured and written by itself, and joins what earlier runs have measured: a run that is cut off
keeps its finished parts (and a sweep its finished rounds), and a run in pieces (--sets wordnet, then --sets sift)
fills the same index.json, with the machine, the commit and the time of each part in it.

Parts, about how long on two cores at 2.6 GHz (peers kept from an earlier run of the same boot save 9 minutes of the first):
  wordnet       24 min  every library and peer: building, sweep over its parameters, rounds; RAM, building time
  recall         1 min  recall: 0.95 as a target
  filters        2 min  selectivities 0.1 % to 50 %, random and correlated
  turnover       4 min  five turnovers in random and in clustered order
  runbook        2 min  a stream of inserts, deletes and searches, hnswlib beside
  capped         2 min  profile memory in a control group
  node           6 min  durable inserts, p99 under ingest, starting again
  neon           2 min  the same neighbours under qemu
  sift          15 min  every library on sift-128
  uniform       18 min  every library on uniform 100,000 x 128
  million      2 hours  1,000,000 x 384 generated (--sets million; hnswlib alone builds 25 minutes)
  million-node  10 min  starting again with 1,000,000 vectors (--sets million)
"""

import argparse
import shlex
import signal
import sys
import time

import os
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import capped                                           # noqa: E402
import neon                                             # noqa: E402
import parts                                            # noqa: E402
import served                                           # noqa: E402
import sweep                                            # noqa: E402
from libraries import LIBRARIES, OURS, PEERS            # noqa: E402
from report import Results                              # noqa: E402
from sets import SETS, load_set                         # noqa: E402
from sweep import say                                   # noqa: E402
from targets import TARGETS                             # noqa: E402

OF_WORDNET = ("wordnet", "recall", "filters", "turnover", "runbook", "capped", "node", "neon")
OF_MILLION = ("million", "million-node")
PARTS = (*OF_WORDNET, "sift", "uniform", *OF_MILLION)
QUICK_PEERS = ("hnswlib", "symqg", "faiss ivf-pq-fastscan")
MILLION_LIBRARIES = ("skerry speed", "skerry balanced", "skerry memory", "skerry ivf_pq", "skerry hybrid", "hnswlib", "symqg",
                     "faiss ivf-pq-fastscan")
QUICK_ROWS, QUICK_STEPS, STEPS = 20_000, 4, 10
CLOSED_AFTER = ("recall", "filters")    # parts that ask the libraries of the sweep


def names(known, what):
    def split(text):
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {what} {name!r}; there are: {', '.join(known)}")
        return chosen
    return split


def arguments():
    parser = argparse.ArgumentParser(prog="bench/run index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = (*TARGETS, *PARTS, *LIBRARIES)
    parser.add_argument("--sets", type=names(SETS, "set"), help=f"of {', '.join(SETS)}, divided by commas; all but million. wordnet is all "
                        "the parts on it")
    parser.add_argument("--parts", type=names(PARTS, "part"), help="only these")
    parser.add_argument("--only", type=names(only, "figure, part or library"), help="only these figures, parts or libraries, with what they need")
    parser.add_argument("--peers", type=names(PEERS, "peer"), help="only these peers; figures against the best are against the best of these, and say so")
    parser.add_argument("--libraries", type=names(OURS, "library of ours"), help="only these of ours")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (5)")
    parser.add_argument("--rows", type=int, help="only the first rows of each set; written to index-partial")
    parser.add_argument("--quick", action="store_true", help=f"about 6 minutes: {QUICK_ROWS:,} rows of wordnet and its parts, peers "
                        f"{', '.join(QUICK_PEERS)}, 3 rounds; written to index-partial")
    parser.add_argument("--build-peers", action="store_true", help="peers are built anew, whatever was built in this boot")
    parser.add_argument("--forget", action="store_true", help="results of earlier runs are not joined")
    parser.add_argument("--list", action="store_true", help="figures and the part that measures each")
    return parser, parser.parse_args()


class Run:
    def __init__(self, options):
        self.options = options
        self.rows = options.rows or (QUICK_ROWS if options.quick else None)
        self.rounds = options.rounds or (3 if options.quick else 5)
        self.parts = self.chosen_parts()
        name = "index-partial" if self.rows or load_set("wordnet").note else "index"
        self.results = Results(name, shlex.join(["./bench/run", "index", *sys.argv[1:]]), options.forget)
        self.refused = {}

    def chosen_parts(self):
        options = self.options
        if options.parts:
            return [part for part in PARTS if part in options.parts]
        sets = options.sets or (["wordnet"] if options.quick else [name for name in SETS if name != "million"])
        chosen = [part for part in PARTS if part in sets or ("wordnet" in sets and part in OF_WORDNET) or
                  ("million" in sets and part in OF_MILLION)]
        wanted = {TARGETS[name].part for name in options.only or [] if name in TARGETS} | {p for p in options.only or [] if p in PARTS}
        if any(name in LIBRARIES for name in options.only or []):
            wanted |= {part for part in chosen if part in SETS}
        if not options.only:
            return chosen
        return [part for part in PARTS if part in wanted and (part in chosen or not options.sets)]

    def wants(self, figures):
        """Of a part that measures several things: whether one of them was asked for."""
        only = [name for name in self.options.only or [] if name in TARGETS]
        return not only or any(name in only for name in figures) or any(TARGETS[name].part in (self.options.only or []) for name in figures)

    def libraries(self, part):
        options = self.options
        ours = list(options.libraries or OURS)
        peers = list(options.peers or (QUICK_PEERS if options.quick else PEERS))
        if part == "million" and not options.libraries and not options.peers:
            return list(MILLION_LIBRARIES)
        if options.only:
            named = [name for name in options.only if name in LIBRARIES]
            targets = [TARGETS[name] for name in options.only if name in TARGETS and TARGETS[name].part in (part, *CLOSED_AFTER)]
            if part in options.only or any(t.libraries is None for t in targets):
                named += ours
            if part in options.only or any(t.peers is None for t in targets):
                named += peers
            for target in targets:
                named += [*(target.libraries or ()), *(target.peers or ())]
            if part == "wordnet" and any(name in options.only for name in CLOSED_AFTER):
                named += ["skerry balanced", "hnswlib"]
            return [name for name in LIBRARIES if name in named]
        return [name for name in LIBRARIES if name in ours or name in peers]

    def set_name(self, part):
        name = part if part in SETS else "million" if part == "million-node" else "wordnet"
        return f"{name}:{self.rows}" if self.rows else name

    # ---- the parts ----

    def swept(self, part):
        """Builds, sweeps and times; the libraries stay open for what comes after."""
        set_name, refused = self.set_name(part), {}
        data = load_set(set_name)
        if data is None:
            say(f"{part}: its data is not here")
            for name, target in TARGETS.items():
                if target.part == part:
                    self.results.lack(name, f"the set {part} is not here")
            return {}
        if data.note:
            say(f"{data.label()}: {data.note}")
        if part not in self.parts:      # only for the parts that ask its libraries: swept, no rounds, nothing kept
            chosen = [name for name in LIBRARIES if any(name in (*TARGETS[figure].libraries, *TARGETS[figure].peers) for figure in TARGETS
                                                        if TARGETS[figure].part in self.parts and TARGETS[figure].part in CLOSED_AFTER)]
            swept = sweep.measure(data, set_name, chosen, 0, not self.options.build_peers, refused)
            self.why_not(part, chosen, swept, refused)
            return swept
        self.results.document["data"] = data.label() if part == "wordnet" else self.results.document["data"]
        self.results.begin(part)

        def keep(swept):
            self.results.sweep(part, data, max(library.rounds("in") for library in swept.values()) if swept else 0, swept, refused)
            sweep.figures(self.results, part, swept)
            self.results.write()

        chosen = self.libraries(part)
        swept = sweep.measure(data, set_name, chosen, self.rounds, not self.options.build_peers, refused, keep)
        keep(swept)
        self.why_not(part, chosen, swept, refused)
        return swept

    def why_not(self, part, chosen, swept, refused):
        """A figure whose library was asked for and refused is not measured, and its reason stands in the table."""
        for name, target in TARGETS.items():
            needed = [*(target.libraries or ()), *(target.peers or ())]
            failed = [library for library in needed if library in chosen and library in refused]
            if failed and target.part in self.parts and (target.part == part or target.part in CLOSED_AFTER) and not any(
                    library in swept for library in needed if library in failed):
                if name in ("build_over_hnswlib", "build_over_symqg") and name in self.results.figures and not set(failed) & set(PEERS):
                    continue        # of the profiles that there are
                self.results.lack(name, "; ".join(f"{library}: {refused[library]}" for library in failed))

    def after(self, part, swept):
        """A part that stands on the sweep of wordnet, or on nothing."""
        set_name, results = self.set_name(part), self.results
        results.begin(part)
        built = {name: library.built for name, library in swept.items()}
        if part == "recall":
            parts.recall_target(results, swept, self.rounds)
        elif part == "filters":
            parts.filters(results, swept, self.rounds)
        elif part == "turnover":
            parts.turnover(results, set_name, swept.get("skerry balanced"), self.rounds, self.refused)
        elif part == "runbook":
            parts.runbook(results, set_name, ["skerry balanced", "hnswlib"], QUICK_STEPS if self.options.quick else STEPS, self.refused)
        elif part == "capped":
            capped.measure(results, set_name, self.hnswlib(built)["mb"], self.rounds)
        elif part in ("node", "million-node"):
            served.measure(results, part, set_name, self.options.quick, self.rounds, built.get("hnswlib"), self.wants, not self.options.build_peers)
        elif part == "neon":
            neon.measure(results, set_name)

    def hnswlib(self, built):
        """What building hnswlib took, from this run's sweep or by building it now."""
        if "hnswlib" not in built:
            library = sweep.Swept("hnswlib", self.set_name("wordnet"))
            built["hnswlib"] = library.ask(f"build {int(not self.options.build_peers)}")
            library.end()
        return built["hnswlib"]

    def run(self):
        swept = {}
        needs_sweep = [part for part in self.parts if part in CLOSED_AFTER]
        order = list(self.parts)
        if needs_sweep and "wordnet" not in order:
            order.insert(0, "wordnet")
        try:
            for part in order:
                began = time.monotonic()
                if part not in OF_WORDNET:
                    self.close(swept)
                if part in SETS:
                    swept = self.swept(part)
                    if part != "wordnet":
                        self.close(swept)
                else:
                    if part in ("capped", "node", "neon"):
                        self.close(swept)
                    self.after(part, swept)
                self.results.write()
                say(f"{part}: {time.monotonic() - began:.0f} s")
        finally:
            self.close(swept)
        print(self.results.write())

    def close(self, swept):
        for library in swept.values():
            if library.driven.process.poll() is None:
                library.end()


def main():
    parser, options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # ends what it has started, as ^C does
    if options.list:
        for name, target in TARGETS.items():
            print(f"{name:36} {target.part}")
        return
    if options.quick and options.sets not in (None, ["wordnet"]):
        parser.error("--quick is of wordnet")
    Run(options).run()


if __name__ == "__main__":
    main()
