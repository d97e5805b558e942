"""What a hand-off between processes costs on this machine, by how its cores may sleep and who runs where.

A bare relay (bench/node/relay.c): client - worker is one hop, client - router - worker two; one request at
a time, 1,650-byte request, 600-byte reply, the worker busy for 0 or 60 us (a search). Variants interleaved.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import BIN, CORES, Driven, PowerRequest, machine, median, rounded, write_results    # noqa: E402

DIM = 384
RELAY = os.path.join(BIN, "bench_relay")


class Relay:
    def __init__(self, folder, hops, work_us, client_cores, node_cores):
        front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
        self.parts = [Driven([RELAY, "last", "--back", front if hops == 1 else back, "--work-us", str(work_us),
                              "--reply-bytes", "600"], node_cores)]
        if hops == 2:
            self.parts.append(Driven([RELAY, "middle", "--front", front, "--back", back], node_cores))
        self.client = Driven([RELAY, "client", "--front", front, "--queries", f"{folder}/q", "--dim", str(DIM),
                              "--request-bytes", "1650"], client_cores, ready=False)

    def end(self):
        self.client.end()
        for part in self.parts:
            part.end()


def main():
    parser = argparse.ArgumentParser(prog="bench/run handoffs")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, count = (3, 300) if options.quick else (7, 1500)
    one, other = [CORES[0]], [CORES[-1]]
    variants = [("unpinned", None, None, False), ("everything on one core, the client too", one, one, False),
                ("client on the other core", other, one, False)]
    if os.access("/dev/cpu_dma_latency", os.W_OK):
        variants += [("`/dev/cpu_dma_latency` held at 0, unpinned", None, None, True),
                     ("held, client on the other core", other, one, True),
                     ("held, everything on one core", one, one, True)]
    shapes = [(1, 0), (2, 0), (1, 60), (2, 60)]
    results = {}
    folder = tempfile.mkdtemp(prefix="skh-")
    with open(f"{folder}/q", "wb") as file:
        file.write(bytes(4 * DIM * 16))
    try:
        for round_ in range(rounds):
            for words, client_cores, node_cores, is_held in variants:
                for hops, work_us in shapes:
                    relay = Relay(folder, hops, work_us, client_cores, node_cores)
                    with PowerRequest() if is_held else contextlib.nullcontext():
                        relay.client.ask("run 100 0")
                        block = relay.client.ask(f"run {count} 0")
                    relay.end()
                    results.setdefault((words, hops, work_us), []).append((block["p50_us"], block["p99_us"]))
            print(f"round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    lines = ["| threads | 1 hop, 0 | 2 hops, 0 | 1 hop, 60 | 2 hops, 60 |", "|---|---|---|---|---|"]
    figures = []
    for words, *_ in variants:
        cells = []
        for hops, work_us in shapes:
            runs = results[(words, hops, work_us)]
            p50, p99 = median([r[0] for r in runs]), median([r[1] for r in runs])
            cells.append(f"{p50:.0f} / {p99:.0f}")
            figures.append({"name": f"{words}, {hops} hops, {work_us} us", "value": rounded(p50), "unit": "us",
                            "p99": rounded(p99), "runs": [rounded(r[0]) for r in runs]})
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    facts = machine()
    text = (f"# Hand-offs between processes on one machine\n\n{facts['cpu']}, {facts['cores']} cores, kernel "
            f"{facts['kernel']}, {facts['date']}, commit {facts['commit']}. `./bench/run handoffs`: a bare ZeroMQ relay over ipc, "
            f"one request at a time, p50 / p99 in us with the worker's 0 or 60 us included, medians of {rounds} "
            f"interleaved blocks of {count}.\n\n" + "\n".join(lines) + "\n")
    print(text)
    write_results("handoffs", {"machine": facts, "figures": figures}, text)


if __name__ == "__main__":
    main()
