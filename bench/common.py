"""What every benchmark here shares: the machine, processes that are driven line by line, results."""

import json
import os
import platform
import statistics
import struct
import subprocess
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.environ.get("SKERRY_BIN", os.path.join(TOP, "build", "release", "bin"))
WORK = os.path.join(TOP, "build", "bench")
RESULTS = os.path.join(TOP, "bench", "results")
CORES = sorted(os.sched_getaffinity(0))


def machine():
    """What a reader must know to compare: processor, cores, memory, kernel, packages, commit."""
    with open("/proc/cpuinfo") as file:
        info = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {k.strip(): v.strip() for k, v in info.items()}
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) // 1024
    simd = [s for s in ("avx2", "avx512f", "fma", "asimd") if s in (fields.get("flags", "") + fields.get("Features", "")).split()]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=TOP, capture_output=True, text=True,
                            check=False).stdout.strip()
    return {"cpu": fields.get("model name", platform.machine()), "family": fields.get("cpu family"),
            "model": fields.get("model"), "mhz": fields.get("cpu MHz"), "cores": len(CORES), "simd": simd,
            "memory_mb": memory, "kernel": platform.release(), "commit": commit,
            "cpu_dma_latency": os.access("/dev/cpu_dma_latency", os.W_OK),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


class PowerRequest:
    """Asks the kernel to keep cores awake, as the node does, for blocks that compare under it."""

    def __enter__(self):
        self.fd = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
        os.write(self.fd, struct.pack("<i", 0))
        return self

    def __exit__(self, *_):
        os.close(self.fd)


class Driven:
    """A process that reads a command a line and prints a line of JSON for each."""

    def __init__(self, command, cores=None, ready=True, env=None):
        if cores is not None:
            command = ["taskset", "-c", ",".join(str(c) for c in cores), *command]
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        cwd=TOP, env={**os.environ, **(env or {})})
        self.ready = self.line() if ready else None

    def line(self):
        text = self.process.stdout.readline()
        if not text:
            raise RuntimeError(f"{' '.join(self.command[:4])} ended with {self.process.wait()}")
        return json.loads(text) if text.startswith("{") else text.strip()

    def send(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command):
        self.send(command)
        return self.line()

    def end(self):
        """Clients end at the end of their input; what serves (and reads none) is killed."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        if "last" in self.command or "middle" in self.command:
            self.process.kill()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def median(values):
    return statistics.median(values)


def rounded(value):
    return float(f"{value:.4g}")


def write_results(name, document, markdown):
    os.makedirs(RESULTS, exist_ok=True)
    with open(os.path.join(RESULTS, name + ".json"), "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
    with open(os.path.join(RESULTS, name + ".md"), "w") as file:
        file.write(markdown)
