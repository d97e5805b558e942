"""Figures of a whole node that holds the set: durable inserts, searches while rows come and go, starting again."""

import os
import subprocess
import sys
import threading
import time

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "node"))
import numpy                                            # noqa: E402
from common import CORES, WORK, median                  # noqa: E402
from node import Node                                   # noqa: E402
from sets import load_set, million_path                 # noqa: E402
from stats import ratio                                 # noqa: E402
from sweep import Swept, say                            # noqa: E402

RECALL = 0.95
RATE_IN, BATCH_IN, OUT_OF_BATCH = 500, 10, 2            # 500 rows a second in, 100 out
BLOCK_S = 4                                             # of searches, so that a p99 stands on tens of thousands
FIRST_NEW = 10_000_000                                  # ids of what is inserted beside the set


class RawData:
    """A set as the raw files that the node's client reads; no payloads."""

    payloads_path = None

    def __init__(self, set_name):
        self.set_name, data = set_name, load_set(set_name)
        self.label, self.dim = data.label(), data.dim
        folder = os.path.join(WORK, "sets")
        os.makedirs(folder, exist_ok=True)
        stem = os.path.join(folder, "raw-" + set_name.replace(":", "-") + f"-{len(data.base)}")
        self.queries, truth = data.queries["in"]
        self.queries = numpy.ascontiguousarray(self.queries)
        self.count = len(data.base)
        self.queries_path, self.neighbours_path = stem + ".queries.f32", stem + ".neighbours.i32"
        self.queries.tofile(self.queries_path)
        numpy.ascontiguousarray(truth[:, :100], dtype=numpy.int32).tofile(self.neighbours_path)
        if set_name.startswith("million"):
            self.base_path = million_path(self.count)
        else:
            self.base_path = stem + ".base.f32"
            data.base.tofile(self.base_path)


class Served:
    def __init__(self, results, part, data, is_quick):
        self.results, self.part, self.data, self.is_quick = results, part, data, is_quick
        self.node, self.ef = None, 16

    def loaded(self, cores, client_cores, batch, in_flight):
        """A fresh node with everything in it: what the client said about the load."""
        self.end()
        self.node = Node(self.data).start(cores)
        self.node.create()
        client = self.node.client(cores=client_cores, with_base=True, ef=self.ef)
        return client, client.ask(f"load 0 {self.data.count} {batch} {in_flight}")

    def settle(self, client):
        """The beam that gives the recall in this node's graph."""
        while True:
            client.ask(f"ef {self.ef}")
            recall = client.ask("recall")["recall"]
            if recall >= RECALL or self.ef >= 400:
                return recall
            self.ef += 2

    def durable_insert(self, hnswlib_built):
        """One record a request, 64 requests in flight, each acknowledged after its fsync; the whole node on one
        core, its client on the other."""
        rates, packed, theirs = [], [], self.data.count / hnswlib_built["cpu_s"]
        for _ in range(1 if self.is_quick else 3):
            client, done = self.loaded([CORES[0]], [CORES[-1]], 1, 64)
            rates.append(done["count"] / done["indexed_s"])
            say(f"node: {rates[-1]:,.0f} records/s, 64 requests of one record in flight")
        client, done = self.loaded([CORES[0]], [CORES[-1]], 500, 8)
        packed = done["count"] / done["indexed_s"]
        recall = self.settle(client)
        self.results.add("durable_insert_over_hnswlib", self.part, [rate / theirs for rate in rates],
                         f"{median(rates):,.0f} / {theirs:,.0f} records/s, one record a request, 64 in flight, until the index has caught "
                         f"up (vectors without payload, the node on one core); 500 a request, 8 in flight: {packed:,.0f} "
                         f"({packed / theirs:.2f}); recall {recall:.4f} at ef {self.ef}; hnswlib in memory, one thread"
                         + (f", built at {hnswlib_built['date']}" if hnswlib_built["is_kept"] else ""))

    def starts(self, names):
        """Everything is killed; seconds until the first exact answer and until full speed, cold and warm."""
        if self.node is None:
            client, done = self.loaded(None, None, 500, 8)
            say(f"node: {self.data.count:,} records in {done['indexed_s']:.0f} s")
            self.settle(client)
        self.node.stop()
        self.node.start()
        reader = self.node.client(ef=self.ef)
        reader.ask("wait")
        reader.ask("run 1000 0")
        normal = median([reader.ask("run 200 0")["p50_us"] for _ in range(5)])
        found = {"cold": ([], []), "warm": ([], [])}
        for _ in range(1 if self.is_quick else 3):
            for how, (firsts, fulls) in found.items():
                self.node.kill_everything()
                if how == "cold" and not drop_caches():
                    continue
                began = time.monotonic()
                starter = threading.Thread(target=self.node.start)
                starter.start()
                firsts.append(self.node.first_exact(self.data.queries[0], began))
                starter.join()
                client = self.node.client(ef=self.ef)
                while client.ask("run 100 0")["p50_us"] > 1.25 * normal:
                    if time.monotonic() - began > 300:
                        raise RuntimeError("full speed does not come back in five minutes")
                fulls.append(time.monotonic() - began)
                say(f"node, {how}: first exact answer after {firsts[-1]:.2f} s, full speed after {fulls[-1]:.2f} s")
        for at, name in enumerate(names):
            each = {how: runs[at] for how, runs in found.items() if runs[at]}
            larger = max(each, key=lambda how: median(each[how]))
            told = ", ".join(f"{how} {median(runs):.2f}" for how, runs in each.items())
            missing = "" if "cold" in each else "; the page cache could not be dropped here: cold is not measured"
            self.results.add(name, self.part, each[larger], f"{self.data.count:,} vectors: {told} s from `node start` after a kill; the larger counts"
                             + ("" if at == 0 else f"; p50 of 100 queries within 1.25 of {normal:.0f} us") + missing)

    def under_ingest(self, rounds):
        """Search p99 while the stream goes into the searched collection, and while it goes into another of the
        same process."""
        self.node.create("control")
        client = self.node.client("control", with_base=True)
        client.ask(f"load 0 {self.data.count} 500 8")
        self.node.drop_client(client)
        reader = self.node.client(ef=self.ef)
        writers = {name: self.node.client(name, with_base=True) for name in ("bench", "control")}
        reader.ask("run 2000 0")
        count = int(BLOCK_S * 1e6 / reader.ask("run 2000 0")["p50_us"])
        p99, first = {"idle": [], "bench": [], "control": []}, FIRST_NEW
        for number in range(rounds):
            p99["idle"].append(reader.ask(f"run {count} 0")["p99_us"])
            for name in (("bench", "control"), ("control", "bench"))[number % 2]:
                writers[name].send(f"trickle {RATE_IN} {1.5 * BLOCK_S} {BATCH_IN} {first} {OUT_OF_BATCH}")
                time.sleep(0.3)
                p99[name].append(reader.ask(f"run {count} 0")["p99_us"])
                done = writers[name].line()
                if done["errors"]:
                    raise RuntimeError(f"{done['errors']} writes failed under {RATE_IN} a second")
                writers[name].ask("wait")
            first += 1_000_000
        said = f"{median(p99['bench']):.0f} us; control {median(p99['control']):.0f} us, idle {median(p99['idle']):.0f} us"
        self.results.add("p99_under_ingest_over_control", self.part, ratio(p99["bench"], p99["control"]),
                         f"{said}; {RATE_IN} vectors/s in and {RATE_IN * OUT_OF_BATCH // BATCH_IN} out, each request of {BATCH_IN}, durable; "
                         "the control is a collection of the same rows in the same process")
        self.results.add("p99_under_ingest_over_idle", self.part, ratio(p99["bench"], p99["idle"]), said)

    def end(self):
        if self.node is not None:
            self.node.destroy()
            self.node = None


def drop_caches():
    subprocess.run(["sync"], check=True)
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3\n")
        return True
    except OSError:
        return False


def measure(results, part, set_name, is_quick, rounds, hnswlib_built, wanted, may_keep):
    """The node's figures of this set; hnswlib_built is what the sweep said of it, None where there was none."""
    served = Served(results, part, RawData(set_name), is_quick)
    starts = ("first_answer_million_s", "full_speed_million_s") if part == "million-node" else ("first_answer_s", "full_speed_s")
    stages = [(starts, lambda: served.starts(starts))]
    if part == "node":
        def insert():
            built = hnswlib_built
            if built is None:
                hnswlib = Swept("hnswlib", set_name)
                built = hnswlib.ask(f"build {int(may_keep)}")
                hnswlib.end()
            served.durable_insert(built)
        stages = [(("durable_insert_over_hnswlib",), insert), *stages,
                  (("p99_under_ingest_over_control", "p99_under_ingest_over_idle"), lambda: served.under_ingest(rounds))]
    try:
        for names, stage in stages:
            if not wanted(names):
                continue
            try:
                if names[0].startswith("p99") and served.node is None:
                    client, _ = served.loaded(None, None, 500, 8)
                    served.settle(client)
                stage()
                results.write()
            except (RuntimeError, OSError) as error:
                for name in names:
                    results.lack(name, str(error))
                say(f"{names[0]}: {error}")
    finally:
        served.end()
