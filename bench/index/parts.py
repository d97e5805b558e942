"""What is measured of the wordnet set beside its sweep: recall as a target, filters, changes."""

from common import CORES, median
from stats import at_recall, ratio
from sweep import Refused, Swept, say

SHARES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.10, 0.20, 0.50)
TARGET = 0.95


def recall_target(results, swept, rounds):
    """`recall: 0.95` on queries that the index has never seen, beside the best fixed beam on the same queries."""
    ours = swept.get("skerry balanced")
    if ours is None:
        return
    names = ("recall_target_shortfall", "recall_target_qps_over_fixed")
    rows, shortfalls, shares = [], {}, {}
    try:
        spent = ours.ask(f"calibrate {TARGET}")["cpu_s"]
        for kind in [kind for kind in ours.frontier if "@" not in kind]:
            found = ours.ask(f"sweep {kind} recall:{TARGET}")
            targeted, fixed, equal = [], [], []
            for _ in range(rounds):
                targeted.append(ours.ask(f"time {kind} recall:{TARGET}")["qps"])
                points = [(ours.facts[kind, p]["recall"], ours.ask(f"time {kind} {p}")["qps"]) for p in ours.wanted(kind)]
                fixed.append(at_recall(points, TARGET))
                equal.append(at_recall(points, found["recall"]))
            shortfalls[kind], shares[kind] = max(0.0, TARGET - found["recall"]), ratio(targeted, fixed)
            if shares[kind]:
                rows.append(f"| {kind} | {found['recall']:.4f} | {found['p5']:.2f} | {median(targeted):,.0f} | "
                            f"{median([f for f in fixed if f]):,.0f} | {median(shares[kind]):.2f} | " +
                            (f"{median(ratio(targeted, equal)):.2f} |" if ratio(targeted, equal) else "- |"))
    except RuntimeError as error:
        for name in names:
            results.lack(name, str(error))
        return
    worst = max(shortfalls, key=shortfalls.get)
    results.add(names[0], "recall", [shortfalls[worst]], "; ".join(f"{kind}: recall {TARGET - short:.4f}" if short else
                f"{kind}: at least {TARGET}" for kind, short in shortfalls.items()))
    slowest = min((kind for kind in shares if shares[kind]), key=lambda kind: median(shares[kind]), default=None)
    if slowest:
        results.add(names[1], "recall", shares[slowest], f"queries {slowest}: QPS with the target / QPS of the best fixed beam at exactly {TARGET}")
    results.table("recall", f"### A recall of {TARGET} as the target, `skerry balanced`\n\nCalibrated in {spent:.1f} CPU s on queries that it makes "
                  "itself and on the half of the first kind that is not reported.\n\n| queries | recall | 5th percentile | QPS | QPS of the "
                  f"best fixed beam at exactly {TARGET} | share | share of the best fixed beam at the recall that was reached |\n"
                  "|---|---|---|---|---|---|---|\n" + "\n".join(rows))


def filters(results, swept, rounds):
    """One beam for every selectivity; the bitmap is made of a column within the time; hnswlib is unfiltered."""
    ours, hnswlib = swept.get("skerry balanced"), swept.get("hnswlib")
    if ours is None or hnswlib is None:
        return
    names = ("filtered_recall_min", "filtered_latency_over_hnswlib")
    params = ours.wanted("in")
    if not params:
        for name in names:
            results.lack(name, "skerry balanced does not reach recall 0.95 unfiltered")
        return
    cells = [(column, share) for share in SHARES for column in ("random", "lexname")]
    try:
        beam, found = None, {}
        for beam in (16, 20, 24, 28, 32, 40, 48, 64, 96, 128):
            found = {cell: ours.ask(f"filtered {cell[0]} {cell[1]} {beam}") for cell in cells}
            if min(f["recall"] for f in found.values()) >= 0.955:
                break
        blocks, bases, tails = {cell: [] for cell in cells}, [], {cell: [] for cell in cells}
        for _ in range(rounds):
            for param in hnswlib.wanted("in"):
                hnswlib.singles.setdefault(("in", param), []).append(hnswlib.ask(f"single in {param}"))
            pairs = [(hnswlib.facts["in", p]["recall"], 1e6 / hnswlib.singles["in", p][-1]["p50_us"]) for p in hnswlib.wanted("in")]
            bases.append(1e6 / at_recall(pairs, 0.95, 0.05))
            for cell in cells:
                block = ours.ask(f"filtered {cell[0]} {cell[1]} {beam}")
                blocks[cell].append(block["p50_us"])
                tails[cell].append(block["p99_us"])
    except RuntimeError as error:
        for name in names:
            results.lack(name, str(error))
        return
    worst = min(cells, key=lambda cell: found[cell]["recall"])
    slowest = max(cells, key=lambda cell: median(blocks[cell]))
    results.add(names[0], "filters", [found[worst]["recall"]], f"ef {beam} for all; worst: {worst[0]} {100 * worst[1]:g} %")
    results.add(names[1], "filters", ratio(blocks[slowest], bases), f"slowest of all: {slowest[0]} {100 * slowest[1]:g} %: p50 "
                f"{median(blocks[slowest]):.0f} us at ef {beam}, making the bitmap within / {median(bases):.0f} us (hnswlib unfiltered at 0.95)")
    rows = [f"| {column} | {100 * found[column, share]['share']:.2f} % | {found[column, share]['recall']:.4f} | "
            f"{found[column, share]['p5']:.2f} | {median(blocks[column, share]):.0f} | {median(tails[column, share]):.0f} | "
            f"{median(ratio(blocks[column, share], bases)):.2f} |" for column, share in sorted(cells)]
    results.table("filters", f"### Filtered searches, `skerry balanced`, ef {beam}\n\nQueries one at a time; `lexname` goes along with the vectors "
                  "(kinds of words whose rows together make the share), `random` does not. The bitmap is made of the column "
                  "within the time.\n\n| filter by | lets through | recall@10 | 5th percentile | p50 us | p99 us | p50 over hnswlib's unfiltered at 0.95 |\n"
                  "|---|---|---|---|---|---|---|\n" + "\n".join(rows))


def turnover(results, set_name, fresh, rounds, refused):
    """The index after everything went out and in again five times, beside the one that was just built."""
    names = ("turnover_recall_loss", "turnover_qps_over_fresh", "turnover_bytes_over_fresh")
    own = fresh is None
    turned, orders = {}, ("random", "clustered")
    try:
        if own:
            fresh = Swept("skerry balanced", set_name)
            fresh.built = fresh.ask("build")
            fresh.sweep("in")
        param = next((p for recall, _, p in fresh.frontier["in"] if recall >= 0.95), None)
        if param is None:
            raise Refused("skerry balanced does not reach recall 0.95")
        for order, core in zip(orders, (CORES[-1], CORES[0])):
            turned[order] = Swept("skerry balanced", set_name, core)
            turned[order].driven.send("build")
        for library in turned.values():
            library.built = library.took(library.driven.line())
        say("turnover: five times everything, in random and in clustered order")
        for order, library in turned.items():
            library.driven.send(f"turnover {order}")
        after = {order: library.took(library.driven.line()) for order, library in turned.items()}
        for library in turned.values():
            library.pin(CORES[-1])
        rows, losses, speeds, sizes = [], {}, {}, {}
        before = fresh.ask(f"sweep in {param}")
        before_recall = (before["recall"] + before["tune"]) / 2
        base, rates = [], {order: [] for order in orders}
        for _ in range(rounds):
            base.append(fresh.ask(f"time in {param}")["qps"])
            for order, library in turned.items():
                rates[order].append(library.ask(f"time in {param}")["qps"])
        for order, library in turned.items():
            found = library.ask(f"sweep in {param}")
            recall = (found["recall"] + found["tune"]) / 2
            losses[order], speeds[order] = before_recall - recall, ratio(rates[order], base)
            sizes[order] = after[order]["mb"] / fresh.built["own_mb"]
            rows.append(f"| {order} | {before_recall:.4f} | {recall:.4f} | {losses[order]:.4f} | {median(speeds[order]):.2f} | "
                        f"{sizes[order]:.2f} | {after[order]['cpu_s']:.0f} |")
        worst, slowest, largest = (max(losses, key=losses.get), min(orders, key=lambda order: median(speeds[order])),
                                   max(sizes, key=sizes.get))
        results.add(names[0], "turnover", [losses[worst]], "; ".join(f"{order}: {loss:.4f}" for order, loss in losses.items()) +
                    f"; the same ef as the fresh build's {before_recall:.4f}")
        results.add(names[1], "turnover", speeds[slowest], f"{slowest} order, the slower")
        results.add(names[2], "turnover", [sizes[largest]], f"{largest} order, the larger")
        results.table("turnover", "### After five turnovers, `skerry balanced`\n\nEverything out and in again, a twentieth at a time; `clustered` goes "
                      "along the direction in which the data varies most.\n\n| order | recall fresh | recall after | loss | QPS over fresh | "
                      "bytes over fresh | CPU s of the turnovers |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows))
    except (RuntimeError, OSError) as error:
        refused["turnover"] = str(error)
        for name in names:
            results.lack(name, str(error))
    finally:
        for library in [*turned.values(), *([fresh] if own and fresh is not None else [])]:
            library.end()


def runbook(results, set_name, names, steps, refused):
    """A stream of inserts and deletes with searches between, recall against what is exact at that moment."""
    streams, rows = {}, {}
    for name, core in zip(names, reversed(CORES * len(names))):
        streams[name] = Swept(name, set_name, core)
        streams[name].driven.send(f"runbook {steps}")
    for name, stream in streams.items():
        try:
            rows[name] = stream.took(stream.driven.line())["steps"]
        except RuntimeError as error:
            refused[f"runbook: {name}"] = str(error)
        stream.end()
    if not rows:
        return
    head = " | ".join(f"{name} recall | QPS | changes/s" for name in rows)
    lines = [f"| step | rows | {head} |", "|" + "---|" * (2 + 3 * len(rows))]
    for step in range(steps + 1):
        each = [told[step] for told in rows.values()]
        cells = [f"{one['recall']:.4f} | {one['qps']:,.0f} | " + (f"{one['changes_per_s']:,.0f}" if one["changes_per_s"] else "-") for one in each]
        lines.append(f"| {step} | {each[0]['rows']:,} | " + " | ".join(cells) + " |")
    beams = ", ".join(f"{name} ef {told[0]['ef']}" for name, told in rows.items())
    results.table("runbook", "### A stream: inserts, deletes and searches between them\n\nHalf of the rows at first; then in each step a share of "
                  "the others comes in, in clustered order, so that the data drifts, and as many of the oldest go out. Recall@10 of 200 "
                  f"queries against what is exact at that moment; the beam is the one that gives 0.95 at the beginning ({beams}). hnswlib "
                  "marks deletes and gives their places to inserts. The libraries ran side by side, a core each.\n\n" + "\n".join(lines))
