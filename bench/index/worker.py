"""One library on one set, in a process of its own that is driven line by line.

    worker.py NAME SET           then, one command a line, one line of JSON each ({"error"}: why not):
    build [KEEP]            {"cpu_s", "mb", ...}: CPU seconds of one thread to the index that is searched, memory
                            it took; KEEP 1: a peer's index may come from (and goes to) the folder of built ones
    params KIND             {"lines"}: numbers of the params that can be used, in lines from fast to thorough; KIND is
                            a kind of queries, or KIND@K
    sweep KIND PARAM        {"tune", "recall", "p5", "qps"}: all queries once; recall of the half that tunes
                            and of the half that reports
    time KIND PARAM         {"qps"}: the half that reports, over and over for a tenth of a second
    single KIND PARAM       {"p50_us", "p99_us"}: queries one at a time
    calibrate RECALL        (ours) {"cpu_s"}: queries of the first kind, of the half that tunes, are asked with the
                            recall as a target; then the maintenance that a node does by itself
    filtered COLUMN SHARE EF    (ours) {"recall", "p50_us", "p99_us", "share"}: queries of one at a time, the
                            bitmap made of the column within the time
    turnover ORDER          (ours) deletes and inserts everything five times: {"cpu_s", "mb"}
    runbook STEPS           a stream of inserts and deletes with searches between: {"steps"}
    PARAM "recall:0.95" is a recall as a target (ours).
"""

import ctypes
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy                                            # noqa: E402
from libraries import LIBRARIES, OURS                  # noqa: E402
from sets import WORK, load_set, within                 # noqa: E402
from stats import recall_of                             # noqa: E402

K = 10
TURNOVERS = 5
FILTER_QUERIES = 300


def anonymous_bytes():
    """Memory of this process that is no file's, after the allocator gave back what is free."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(("RssAnon:", "RssShmem:")))


def boot():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{platform.node()} {file.read().strip()}"


class Worker:
    def __init__(self, name, data):
        self.name, self.data, self.library = name, data, LIBRARIES[name]()
        self.is_ours = name in OURS
        self.truths = {}

    # ---- building ----

    def build(self, may_keep="0"):
        base = numpy.ascontiguousarray(self.data.base)
        path = self.kept_path(base) if may_keep == "1" and not self.is_ours and hasattr(self.library, "save") else None
        facts = self.take_kept(path, base) if path else None
        if facts is None:
            if self.is_ours:
                self.library.engine()
            else:
                importlib.import_module(self.library.module)
            before, began = anonymous_bytes(), time.process_time()
            self.library.build(base, self.data.metric)
            spent = time.process_time() - began
            grown, own = anonymous_bytes() - before, self.library.memory_bytes()
            # Ours is charged with the larger of its own account and what the process has grown by.
            facts = {"cpu_s": spent, "mb": max(grown, own or 0) / 1e6, "grown_mb": grown / 1e6,
                     "own_mb": own / 1e6 if own is not None else None, "machine": boot(),
                     "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "is_kept": False}
            if self.is_ours:
                facts["ids_mb"] = self.library.ids_bytes(len(base)) / 1e6
            if path:
                self.library.save(path)
                with open(path + ".json", "w") as file:
                    json.dump({**facts, "is_kept": True}, file)
        package = self.library.package
        return {**facts, "version": importlib.metadata.version(package) if package else "this commit",
                "instructions": self.library.instructions(), "how": self.library.how, "is_grid": self.library.is_grid}

    def kept_path(self, base):
        """A built peer serves again only for the same data, package and boot of the same machine: the time
        and the memory that its building took are kept with it."""
        sign = hashlib.sha256(base[::max(1, len(base) // 1000)].tobytes())
        sign.update(f"{self.name} {base.shape} {importlib.metadata.version(self.library.package)} {boot()}".encode())
        folder = os.path.join(WORK, "built")
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, f"{self.name.replace(' ', '-')}-{sign.hexdigest()[:16]}")

    def take_kept(self, path, base):
        if not os.path.exists(path + ".json"):
            return None
        self.library.load(path, base, self.data.metric)
        with open(path + ".json") as file:
            return json.load(file)

    # ---- searching ----

    def asked(self, kind):
        kind, _, k = kind.partition("@")
        queries, truth = self.data.queries[kind]
        return numpy.ascontiguousarray(queries), truth, int(k or K)

    def set(self, param):
        name, _, value = param.partition(":")
        self.library.set({name: float(value)} if value else self.library.params[int(param)])

    def params(self, kind):
        return {"lines": self.library.usable(self.asked(kind)[2])}

    def sweep(self, kind, param):
        queries, truth, k = self.asked(kind)
        self.set(param)
        began = time.perf_counter()
        ids = self.library.search(queries, k)
        seconds = time.perf_counter() - began
        ids = numpy.asarray(ids).astype(numpy.int64)
        each = [recall_of(a, b) for a, b in zip(ids.tolist(), truth[:, :k].tolist())]
        return {"tune": float(numpy.mean(each[0::2])), "recall": float(numpy.mean(each[1::2])),
                "p5": float(numpy.percentile(each[1::2], 5)), "qps": len(queries) / seconds}

    def time(self, kind, param):
        queries, _, k = self.asked(kind)
        queries = numpy.ascontiguousarray(queries[1::2])
        self.set(param)
        count, began = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - began < 0.1:
            self.library.search(queries, k)
            count += len(queries)
        return {"qps": count / (time.perf_counter() - began)}

    def single(self, kind, param):
        queries, _, k = self.asked(kind)
        self.set(param)
        taken = []
        for at in range(1, len(queries), 2):
            start = time.perf_counter_ns()
            self.library.search(queries[at:at + 1], k)
            taken.append((time.perf_counter_ns() - start) / 1e3)
        return {"p50_us": float(numpy.percentile(taken, 50)), "p99_us": float(numpy.percentile(taken, 99))}

    def calibrate(self, recall):
        queries = numpy.ascontiguousarray(next(iter(self.data.queries.values()))[0][0::2])
        began = time.process_time()
        for _ in range(2):
            self.set(f"recall:{recall}")
            self.library.search(queries, K)
            self.library.index.compact()
        return {"cpu_s": time.process_time() - began}

    # ---- ours: filters ----

    def matching(self, column, share):
        """A function that makes the bitmap from the column, as an index of payloads would have to."""
        values = self.data.columns[column]
        if column == "random":
            return lambda: values < share * 1000
        taken, _ = within(values, share)

        def mask():
            found = values == taken[0]
            for value in taken[1:]:
                found |= values == value
            return found
        return mask

    def filtered(self, column, share, ef):
        make = self.matching(column, float(share))
        queries = numpy.ascontiguousarray(self.data.queries["in"][0][-FILTER_QUERIES:])
        rows = numpy.flatnonzero(make())
        if (column, share) not in self.truths:
            from sets import exact
            self.truths[column, share] = rows[exact(self.data.base[rows], queries, self.data.metric, K)]
        truth, taken, each, strangers = self.truths[column, share], [], [], 0
        allowed = set(rows.tolist())
        self.library.set(int(ef))
        for at in range(len(queries)):
            start = time.perf_counter_ns()
            ids = self.library.search(queries[at:at + 1], K, filter=make())
            taken.append((time.perf_counter_ns() - start) / 1e3)
            found = [int(i) for i in ids[0] if i != numpy.uint64(2**64 - 1)]
            strangers += any(i not in allowed for i in found)
            each.append(recall_of(found, truth[at].tolist()))
        if strangers:
            raise RuntimeError(f"{strangers} answers hold rows that the filter does not let through")
        return {"recall": float(numpy.mean(each)), "p5": float(numpy.percentile(each, 5)), "share": len(rows) / len(self.data.base),
                "p50_us": float(numpy.percentile(taken, 50)), "p99_us": float(numpy.percentile(taken, 99))}

    # ---- changes ----

    def turnover(self, order):
        from changes import turned_over
        began = time.process_time()
        turned_over(self.library, self.data.base, order, TURNOVERS)
        return {"cpu_s": time.process_time() - began, "mb": self.library.memory_bytes() / 1e6}

    def runbook(self, steps):
        from changes import runbook
        return {"steps": runbook(self.library, self.data, int(steps), self.is_ours)}

    def save(self, path):
        """(ours) The index as a file, for a process that loads it."""
        self.library.index.save(path)
        return {"bytes": os.path.getsize(path)}


def main():
    answers = os.fdopen(os.dup(1), "w")     # libraries print on stdout as they like
    os.dup2(2, 1)
    worker = Worker(sys.argv[1], load_set(sys.argv[2]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        try:
            result = getattr(worker, command)(*words)
        except Exception as error:      # what is refused is told, and the table says so
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
