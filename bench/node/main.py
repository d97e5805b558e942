"""One node, measured side by side with what it stands on and what it stands beside (bench/run node).

Everything is of one configuration, the one that ships. What is compared is interleaved block by block, and
a ratio is the median of the ratios of neighbouring blocks.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import BIN, CORES, TOP, Driven, PowerRequest, machine, median, rounded, write_results    # noqa: E402
from data import Data                                                                               # noqa: E402
from node import Node, binaries_bytes                                                               # noqa: E402

RELAY = os.path.join(BIN, "bench_relay")
PEERS = [sys.executable, os.path.join(TOP, "bench", "node", "peers.py")]
RECALL = 0.95

# name, unit, must, aim, whether smaller is better
TARGETS = {
    "raw_qps95_over_hnswlib": ("ratio", 1.0, 2, False),
    "ipc_p50_over_floor": ("ratio", 0.8, 0.4, True),
    "curve_p50_over_floor": ("ratio", 0.8, 0.45, True),
    "ipc_p50_over_same_floor": ("ratio", 1.15, 1.05, True),
    "saturated_qps_share": ("ratio", 0.7, 0.9, False),
    "durable_ingest_over_hnswlib": ("ratio", 0.8, 1.5, False),
    "p99_under_ingest_over_idle": ("ratio", 2, 1.2, True),
    "first_answer_after_kill_s": ("s", 1, 0.2, True),
    "full_speed_after_kill_s": ("s", 3, 1, True),
    "idle_pss_mb": ("MB", 60, 25, True),
    "binaries_mb": ("MB", 10, 3, True),
    "disk_bytes_per_record": ("ratio to raw", None, 1.3, True),
    "ram_bytes_per_record": ("ratio to raw", None, 1.5, True),
    "python_p50_over_qdrant_edge": ("ratio", 0.8, 0.5, True),
    "durable_load_over_qdrant_edge": ("ratio", 1.5, 4, False),
}


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def ef_for(points, recall=RECALL):
    """The smallest beam that reaches the recall."""
    for ef, found in points:
        if found >= recall:
            return ef, found
    raise RuntimeError(f"recall {recall} is not reached: {points[-3:]}")


class Bench:
    def __init__(self, options):
        self.options = options
        self.data = Data(options.sample)
        self.rounds = options.runs or (5 if options.quick else 9)
        self.loads = options.loads or (1 if options.quick else 5)
        self.block = 200 if options.quick else 1000
        self.figures = {}
        self.tables = []
        self.node = None
        self.hnsw_rates = []
        self.scratch = tempfile.mkdtemp(prefix="skf-")

    def figure(self, name, runs, value=None, note=None, **more):
        unit, must, aim, _ = TARGETS[name]
        self.figures[name] = {"name": name, "value": rounded(median(runs) if value is None else value), "unit": unit,
                              "runs": [rounded(r) for r in runs], "must": must, "aim": aim,
                              **({"note": note} if note else {}), **more}
        say(f"{name} = {self.figures[name]['value']}  {note or ''}")

    def wants(self, *names):
        return not self.options.only or any(n in self.options.only for n in names)

    # ---- the index alone ----

    def raw(self):
        """Our index and hnswlib in process, one thread each on one core, at the same recall."""
        core = [CORES[-1]]
        self.raw_client = Driven([RELAY, "raw", "--vectors", self.data.base_path, "--queries", self.data.queries_path,
                                  "--image", self.data.image_path, "--neighbours", self.data.neighbours_path,
                                  "--k", "10"], core)
        build_s = self.raw_client.ready["build_s"]
        points = []
        while "sweep" not in (line := self.raw_client.line()):
            points.append((line["ef"], line["recall"]))
        self.ef, recall = ef_for(points)
        self.raw_client.send(f"ef {self.ef}")
        say(f"index: ef {self.ef} gives recall {recall:.4f}" + (f", built in {build_s:.1f} s" if build_s else ""))
        if not self.wants("raw_qps95_over_hnswlib", "durable_ingest_over_hnswlib"):
            return
        self.hnswlib = Driven([*PEERS, "hnswlib", *self.sample()], core)
        done = self.hnswlib.ask("load")
        self.hnsw_rates.append(done["rows"] / done["load_s"])
        hnsw_ef, hnsw_recall = ef_for(self.hnswlib.ask("sweep")["points"])
        self.hnswlib.ask(f"ef {hnsw_ef}")
        count, ratios, ours, theirs = max(self.block, 1000), [], [], []
        for _ in range(self.rounds):
            theirs.append(self.hnswlib.ask(f"batch {count}")["qps"])
            block = self.raw_client.ask(f"run {count} 0")
            ours.append(block["count"] / block["seconds"])
            ratios.append(ours[-1] / theirs[-1])
        self.figure("raw_qps95_over_hnswlib", ratios, note=f"{median(ours):.0f} / {median(theirs):.0f} QPS, recall {recall:.4f} "
                    f"(ef {self.ef}) / {hnsw_recall:.4f} (ef {hnsw_ef})")

    def sample(self):
        return ["--sample"] if self.data.is_sample else []

    # ---- loading ----

    def load_once(self, node_cores, client_cores):
        if self.node is not None:
            self.node.destroy()
        self.node = Node(self.data).start(node_cores)
        self.node.create()
        self.empty_pss = self.node.pss_bytes()
        client = self.node.client(cores=client_cores, with_base=True, ef=self.ef)
        done = client.ask(f"load 0 {len(self.data.base)} 500 8")
        return client, done

    def ingest(self):
        """The whole node on one core, its client on the other, against hnswlib's inserts on one core."""
        rates, ratios, durable = [], [], []
        for number in range(self.loads):
            client, done = self.load_once([CORES[0]], [CORES[-1]])
            rates.append(done["count"] / done["indexed_s"])
            durable.append(done["count"] / done["durable_s"])
            recall = self.settle_ef(client)
            if number < self.loads - 1 and len(self.hnsw_rates) < self.loads:
                say("hnswlib builds again")
                again = Driven([*PEERS, "hnswlib", *self.sample()], [CORES[0]])
                result = again.ask("load")
                again.end()
                self.hnsw_rates.append(result["rows"] / result["load_s"])
            ratios.append(rates[-1] / self.hnsw_rates[min(number, len(self.hnsw_rates) - 1)])
            say(f"loaded: {rates[-1]:.0f} records/s until indexed, {durable[-1]:.0f} until durable, recall {recall:.4f}")
        self.figure("durable_ingest_over_hnswlib", ratios,
                    note=f"{median(rates):.0f} / {median(self.hnsw_rates):.0f} records/s; durable after {median(durable):.0f}/s; "
                         f"recall {recall:.4f} at ef {self.ef}; median of {len(ratios)}")

    def settle_ef(self, client):
        """The beam that gives the recall in the node (its graph has another order of inserts)."""
        while True:
            client.ask(f"ef {self.ef}")
            recall = client.ask("recall")["recall"]
            if recall >= RECALL or self.ef >= 400:
                return recall
            self.ef += 2

    def serve(self):
        """The loaded node started anew, unpinned, as it ships."""
        if self.node is None:
            client, done = self.load_once(None, None)
            say(f"loaded in {done['indexed_s']:.1f} s, recall {self.settle_ef(client):.4f}")
        self.node.stop()
        self.node.start()
        client = self.node.client(ef=self.ef)
        client.ask("wait")
        self.node.drop_client(client)
        raw = len(self.data.base)
        per_record = self.data.raw_bytes / raw
        warm = self.node.client(ef=self.ef)
        warm.ask("run 1000 0")
        self.node.drop_client(warm)
        disk, ram = self.node.data_bytes(), self.node.pss_bytes() - getattr(self, "empty_pss", 0)
        self.figure("disk_bytes_per_record", [disk / self.data.raw_bytes],
                    note=f"{disk / raw:.0f} bytes a record; raw vector and payload {per_record:.0f}")
        self.figure("ram_bytes_per_record", [ram / self.data.raw_bytes],
                    note=f"{ram / raw:.0f} bytes a record, PSS of the whole node after 1,000 searches less the empty node's")

    # ---- latency ----

    def frame_bytes(self):
        """The sizes of the node's own frames for this request, as its plain wire shows them."""
        import msgpack
        import zmq
        request = msgpack.packb({"v": 1, "op": "search", "id": 1, "collection": "bench", "deadline_ms": 60000,
                                 "vector": self.data.queries[0].tobytes(), "limit": 10, "ef": self.ef}, use_bin_type=True)
        sock = zmq.Context.instance().socket(zmq.DEALER)
        sock.linger = 0
        sock.connect(self.node.facts()["endpoints"]["client_ipc"])
        sock.send(request)
        if not sock.poll(10000):
            raise RuntimeError("the node does not answer")
        size = len(sock.recv())
        sock.close()
        return len(request), size

    def open_floor(self):
        request, reply = self.frame_bytes()
        front, back = f"ipc://{self.scratch}/front", f"ipc://{self.scratch}/back"
        last = Driven([RELAY, "last", "--back", back, "--vectors", self.data.base_path, "--image", self.data.image_path,
                       "--k", "10", "--ef", str(self.ef), "--reply-bytes", str(reply)])
        middle = Driven([RELAY, "middle", "--front", front, "--back", back])
        client = Driven([RELAY, "client", "--front", front, "--queries", self.data.queries_path,
                         "--request-bytes", str(request)], ready=False)
        client.ask("run 100 0")
        self.floor = (client, middle, last)
        self.sizes = f"request {request} bytes, reply {reply}"

    def latency(self):
        self.open_floor()
        floor = self.floor[0]
        ipc, curve = self.node.client(ef=self.ef), self.node.client(curve=True, ef=self.ef)
        rows = {"ipc": [], "curve": []}
        let_go = True
        for _ in range(self.rounds):
            let_go = self.node.wait_let_go() and let_go
            base = floor.ask(f"run {self.block} 0")
            for name, client in (("ipc", ipc), ("curve", curve)):
                client.ask("run 50 0")
                rows[name].append((client.ask(f"run {self.block} 0"), base))
        if not let_go:
            say("the node never lets go of its power request: the floor ran under it")
        for name in rows:
            ratios = [block["p50_us"] / base["p50_us"] for block, base in rows[name]]
            blocks = [block for block, _ in rows[name]]
            bases = [base["p50_us"] for _, base in rows[name]]
            self.figure(f"{name}_p50_over_floor", ratios,
                        note=f"{median([b['p50_us'] for b in blocks]):.0f} us (p99 {median([b['p99_us'] for b in blocks]):.0f}) / "
                             f"{median(bases):.0f} us [{min(bases):.0f}-{max(bases):.0f}]; {self.sizes}"
                             + ("" if let_go else "; the node's power request was never let go"),
                        interval=[rounded(min(ratios)), rounded(max(ratios))])
        ratios, ours, theirs = [], [], []
        if os.access("/dev/cpu_dma_latency", os.W_OK):
            with PowerRequest():
                for _ in range(self.rounds):
                    base = floor.ask(f"run {self.block} 0")
                    ipc.ask("run 20 0")
                    block = ipc.ask(f"run {self.block} 0")
                    ratios.append(block["p50_us"] / base["p50_us"])
                    ours.append(block["p50_us"])
                    theirs.append(base["p50_us"])
            self.figure("ipc_p50_over_same_floor", ratios, interval=[rounded(min(ratios)), rounded(max(ratios))],
                        note=f"{median(ours):.0f} / {median(theirs):.0f} us, both unpinned with the power request held")
        self.node.drop_client(ipc)
        self.node.drop_client(curve)

    def close_floor(self):
        for part in self.floor:
            part.end()

    # ---- throughput ----

    def saturated(self):
        """Raw QPS of one thread while the other core passes frames as a client does; then the node."""
        seconds = 1 if self.options.quick else 3
        front = f"ipc://{self.scratch}/echo"
        echo = Driven([RELAY, "last", "--back", front, "--reply-bytes", "600"], [CORES[0]])
        passer = Driven([RELAY, "client", "--front", front, "--queries", self.data.queries_path,
                         "--request-bytes", "1650"], [CORES[0]], ready=False)
        # The same beam as the node's, whose graph may have needed a wider one.
        raw = Driven([RELAY, "raw", "--vectors", self.data.base_path, "--queries", self.data.queries_path,
                      "--image", self.data.image_path, "--k", "10", "--ef", str(self.ef)], [CORES[-1]])
        client = self.node.client(ef=self.ef)
        shares, ours, theirs = [], [], []
        block, passed = raw.ask("run 1000 0"), passer.ask("run 2000 0")
        raw_count = int(seconds * block["count"] / block["seconds"])
        pass_count = int(1.3 * seconds * passed["count"] / passed["seconds"])
        for _ in range(self.rounds):
            passer.send(f"run {pass_count} 0")
            block = raw.ask(f"run {raw_count} 0")
            theirs.append(block["count"] / block["seconds"])
            passer.line()
            ours.append(client.ask(f"saturate {seconds} 32")["qps"])
            shares.append(ours[-1] / theirs[-1])
        for part in (passer, echo, raw):
            part.end()
        self.node.drop_client(client)
        self.figure("saturated_qps_share", shares, note=f"{median(ours):.0f} / {median(theirs):.0f} QPS, 32 in flight")

    def under_ingest(self):
        count = 1000 if self.options.quick else 3000
        reader = self.node.client(ef=self.ef)
        writer = self.node.client(with_base=True)
        first, ratios, idle, busy = 10_000_000, [], [], []
        for _ in range(self.rounds):
            reader.ask("run 100 0")
            idle.append(reader.ask(f"run {count} 0")["p99_us"])
            seconds = max(1.0, count * idle[-1] / 1e6)
            writer.send(f"trickle 500 {seconds:.1f} 10 {first}")
            time.sleep(0.2)
            busy.append(reader.ask(f"run {count} 0")["p99_us"])
            done = writer.line()
            first += done["count"] + 1000
            if done["errors"]:
                raise RuntimeError(f"{done['errors']} writes failed under 500 a second")
            ratios.append(busy[-1] / idle[-1])
        self.node.drop_client(reader)
        self.node.drop_client(writer)
        self.node.skerry("delete", "bench", *[str(10_000_000)])
        self.figure("p99_under_ingest_over_idle", ratios, note=f"{median(busy):.0f} / {median(idle):.0f} us")

    # ---- starting again ----

    def after_kill(self):
        count = 3 if self.options.quick else 5
        reader = self.node.client(ef=self.ef)
        normal = median([reader.ask("run 200 0")["p50_us"] for _ in range(5)])
        firsts, fulls = [], []
        for _ in range(count):
            self.node.kill_everything()
            subprocess.run(["sync"], check=True)
            try:
                with open("/proc/sys/vm/drop_caches", "w") as file:
                    file.write("3\n")
                dropped = ""
            except OSError:
                dropped = "; the page cache could not be dropped here"
            began = time.monotonic()
            starter = threading.Thread(target=self.node.start)
            starter.start()
            first = self.node.first_exact(self.data.queries[0], began)
            starter.join()
            client = self.node.client(ef=self.ef)
            while client.ask("run 100 0")["p50_us"] > 1.25 * normal:
                if time.monotonic() - began > 120:
                    raise RuntimeError("full speed does not come back in two minutes")
            firsts.append(first)
            fulls.append(time.monotonic() - began)
            say(f"first exact answer after {first:.2f} s, full speed after {fulls[-1]:.2f} s")
        self.figure("first_answer_after_kill_s", firsts, note=f"from `node start`, cold page cache{dropped}")
        self.figure("full_speed_after_kill_s", fulls, note=f"p50 of 100 queries within 1.25 of {normal:.0f} us")

    # ---- size ----

    def idle(self):
        node = Node(self.data).start()
        time.sleep(1)
        self.figure("idle_pss_mb", [node.pss_bytes() / 1e6 for _ in range(5)], note="all processes of a node without data")
        node.destroy()
        self.figure("binaries_mb", [binaries_bytes() / 1e6])

    # ---- beside embedded databases, from Python ----

    def embedded(self):
        loads, rows = {}, []
        peers = {}
        node = Node(self.data).start()
        others = ["qdrant"] if self.options.quick else ["qdrant", "zvec"]
        number_of_loads = self.options.embedded_loads or (1 if self.options.quick else 5)
        try:
            for number in range(number_of_loads):
                for name in ["skerry", *others]:
                    if name == "zvec" and number > 0:
                        continue
                    if name in peers:
                        peers.pop(name).end()
                    if name == "skerry" and number > 0:
                        node.skerry("collection", "drop", "python")
                    peers[name] = Driven([*PEERS, name, *self.sample(), "--target", node.dir, "--folder",
                                          os.path.join("/var/tmp", f"skb-{name}-{os.getpid()}")])
                    done = peers[name].ask("load")
                    loads.setdefault(name, []).append((done["load_s"], done["index_s"]))
                    say(f"{name}: loaded in {done['load_s']:.1f} s, indexed in {done['index_s']:.1f} s more")
            blocks, beams = {}, {}
            for name, peer in peers.items():
                beams[name] = ef_for(peer.ask("sweep")["points"])
                peer.ask(f"ef {beams[name][0]}")
            for _ in range(self.rounds):
                for name, peer in peers.items():
                    peer.ask("run 50 0")
                    blocks.setdefault(name, []).append(peer.ask(f"run {self.block} 0"))
            opens = {name: peers[name].ask("open")["open_s"] for name in others}
            for name in peers:
                total = [a + b for a, b in loads[name]]
                rows.append(f"| {name} | {median([a for a, _ in loads[name]]):.1f} | {median([b for _, b in loads[name]]):.1f} | "
                            f"{len(self.data.base) / median(total):.0f} | {median([b['p50_us'] for b in blocks[name]]):.0f} / "
                            f"{median([b['p99_us'] for b in blocks[name]]):.0f} at {beams[name][1]:.3f} (ef {beams[name][0]}) | "
                            f"{opens.get(name, float('nan')):.2f} |")
            ratios = [a["p50_us"] / b["p50_us"] for a, b in zip(blocks["skerry"], blocks["qdrant"])]
            self.figure("python_p50_over_qdrant_edge", ratios,
                        note=f"{median([b['p50_us'] for b in blocks['skerry']]):.0f} / {median([b['p50_us'] for b in blocks['qdrant']]):.0f} us "
                             "with payload, one client")
            ratios = [sum(theirs) / sum(ours) for ours, theirs in zip(loads["skerry"], loads["qdrant"])]
            self.figure("durable_load_over_qdrant_edge", ratios,
                        note=f"records per s, load and index together; median of {len(ratios)}")
            self.tables.append("### From Python, beside embedded databases in the caller's own process\n\n"
                               "| | load s, durable each 500 rows | index s more | records/s together | p50 / p99 us with payload at recall | "
                               "open and first answer s |\n|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n")
        finally:
            for peer in peers.values():
                peer.end()
            node.destroy()
            for name in others:
                shutil.rmtree(os.path.join("/var/tmp", f"skb-{name}-{os.getpid()}"), ignore_errors=True)

    # ---- all of it ----

    def run(self):
        """Stage by stage; what is known is written after each, so that an end in the middle loses only the rest."""
        latency = ("ipc_p50_over_floor", "curve_p50_over_floor", "ipc_p50_over_same_floor")
        on_a_full_node = ("saturated_qps_share", "p99_under_ingest_over_idle", "first_answer_after_kill_s",
                          "full_speed_after_kill_s", "disk_bytes_per_record", "ram_bytes_per_record")
        stages = [(self.raw, None), (self.idle, ("idle_pss_mb", "binaries_mb")),
                  (self.ingest, ("durable_ingest_over_hnswlib",)), (self.end_raw, None),
                  (self.serve, (*latency, *on_a_full_node)), (self.latency, latency), (self.close_floor, latency),
                  (self.saturated, ("saturated_qps_share",)),
                  (self.after_kill, ("first_answer_after_kill_s", "full_speed_after_kill_s")),
                  (self.under_ingest, ("p99_under_ingest_over_idle",)), (self.end_node, None),
                  (self.embedded, ("python_p50_over_qdrant_edge", "durable_load_over_qdrant_edge"))]
        try:
            for stage, names in stages:
                if names is None or self.wants(*names):
                    stage()
                    self.write()
        finally:
            self.end_node()
            shutil.rmtree(self.scratch, ignore_errors=True)
        print(self.write())

    def end_raw(self):
        for attribute in ("hnswlib", "raw_client"):
            if hasattr(self, attribute):
                getattr(self, attribute).end()

    def end_node(self):
        if self.node is not None:
            self.node.destroy()
            self.node = None

    def verdict(self, figure):
        _, must, aim, is_smaller = TARGETS[figure["name"]]
        value = figure["value"]
        reaches = (lambda goal: value <= goal) if is_smaller else (lambda goal: value >= goal)
        if aim is not None and reaches(aim):
            return "aim"
        if must is None:
            return "reported"
        return "must" if reaches(must) else "**short**"

    def write(self):
        facts = machine()
        lines = ["| figure | value | spread | must | aim | reaches | of what |", "|---|---|---|---|---|---|---|"]
        for name in TARGETS:
            if name not in self.figures:
                continue
            f = self.figures[name]
            spread = f"{min(f['runs']):.4g} - {max(f['runs']):.4g} ({len(f['runs'])})"
            lines.append(f"| `{name}` | {f['value']} | {spread} | {f['must'] if f['must'] is not None else '-'} | {f['aim']} | "
                         f"{self.verdict(f)} | {f.get('note', '')} |")
        text = (f"# One node\n\n{facts['cpu']} (family {facts['family']}, model {facts['model']}), {facts['cores']} cores, "
                f"{'/'.join(facts['simd'])}, {facts['memory_mb']} MB, kernel {facts['kernel']}, {facts['date']}, commit "
                f"{facts['commit']}. `./bench/run node{' --quick' if self.options.quick else ''}`, data: {self.data.name}, one "
                f"collection, one shard, hnsw m 16, ef_construction 200, recall@10 >= {RECALL}. Medians of interleaved blocks; "
                "spread is the smallest and largest run.\n\n" + "\n".join(lines) + "\n\n" + "\n".join(self.tables))
        write_results("node" if not self.options.only else "node-partial",
                      {"machine": facts, "data": self.data.name, "figures": list(self.figures.values())}, text)
        return text


def main():
    parser = argparse.ArgumentParser(prog="bench/run node")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter blocks, one load")
    parser.add_argument("--runs", type=int, help="interleaved blocks a figure (9; quick 5)")
    parser.add_argument("--loads", type=int, help="how often everything is loaded anew (5; quick 1)")
    parser.add_argument("--embedded-loads", type=int, help="the same beside the embedded databases (5; quick 1)")
    parser.add_argument("--only", type=lambda s: s.split(","), help="only these figures; written to node-partial")
    parser.add_argument("--sample", action="store_true", help="the sample in the tree, whatever else is there")
    options = parser.parse_args()
    unknown = [n for n in options.only or [] if n not in TARGETS]
    if unknown:
        parser.error(f"no figure {unknown[0]}; there are: {', '.join(TARGETS)}")
    Bench(options).run()


if __name__ == "__main__":
    main()
