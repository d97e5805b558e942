"""Profile `memory` in a control group whose memory, page cache within, is a share of what hnswlib needs.

    capped.py build SET FOLDER         the index and its file of vectors
    capped.py serve FOLDER [GROUP]     joins the group, then, driven: load, "qps EF SECONDS", "recall EF"

The two that are compared have files of their own, so that none finds the other's pages in the cache. The
interpreter's own memory (measured before the index is loaded) is added to the limit.
"""

import atexit
import json
import os
import resource
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
SHARE = 0.35
BEAMS = (10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 96, 128)


class Group:
    """A memory control group below the one of this process, of either version."""

    def __init__(self):
        with open("/proc/self/cgroup") as file:
            lines = [line.strip().split(":", 2) for line in file]
        old = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
        new = next((path for number, controllers, path in lines if number == "0" and not controllers), "/")
        self.is_old = old is not None
        top = "/sys/fs/cgroup/memory" + old if self.is_old else "/sys/fs/cgroup" + new
        self.path = os.path.join(top.rstrip("/"), f"skerry-bench-{os.getpid()}")
        os.mkdir(self.path)
        atexit.register(self.remove)
        if not os.path.exists(os.path.join(self.path, self.limit_name())):
            self.remove()
            raise OSError(f"the control group {top} hands no memory limit down")

    def limit_name(self):
        return "memory.limit_in_bytes" if self.is_old else "memory.max"

    def limit(self, size):
        with open(os.path.join(self.path, self.limit_name()), "w") as file:
            file.write(str(size))

    def peak_bytes(self):
        name = "memory.max_usage_in_bytes" if self.is_old else "memory.peak"
        try:
            with open(os.path.join(self.path, name)) as file:
                return int(file.read())
        except OSError:
            return None

    def remove(self):
        for _ in range(50):
            try:
                os.rmdir(self.path)
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)


def forget(path):
    """What the page cache holds of a file goes, so that the next reader is charged for what it reads."""
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def build(set_name, folder):
    import numpy
    from libraries import EF_CONSTRUCTION, M, Skerry
    from sets import load_set
    data = load_set(set_name)
    for name in ("capped", "free"):
        os.makedirs(os.path.join(folder, name))
    vectors, image = (os.path.join(folder, "free", name) for name in ("vectors.f32", "index.image"))
    index = Skerry.engine().Index(dim=data.dim, metric=data.metric, m=M, ef_construction=EF_CONSTRUCTION, profile="memory",
                                  vectors_path=vectors)
    index.add(numpy.arange(len(data.base)), data.base)
    index.save(image)
    index.close()
    numpy.save(os.path.join(folder, "queries.npy"), data.queries["in"][0])
    numpy.save(os.path.join(folder, "truth.npy"), data.queries["in"][1])
    for path in (vectors, image):
        shutil.copy(path, path.replace("/free/", "/capped/"))
        forget(path)
        forget(path.replace("/free/", "/capped/"))


def read_bytes():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


class Server:
    def __init__(self, folder):
        import numpy
        from libraries import Skerry
        self.engine, self.folder = Skerry.engine(), folder
        top = os.path.dirname(folder)
        self.queries = numpy.ascontiguousarray(numpy.load(os.path.join(top, "queries.npy")))
        self.truth = numpy.load(os.path.join(top, "truth.npy"))

    def load(self):
        self.index = self.engine.Index.load(os.path.join(self.folder, "index.image"),
                                            vectors_path=os.path.join(self.folder, "vectors.f32"))
        return {"rows": len(self.index)}

    def recall(self, ef):
        from stats import recall_of
        ids = self.index.search(self.queries, 10, ef=int(ef))[0].tolist()
        return {"recall": sum(recall_of(a, b) for a, b in zip(ids, self.truth[:, :10].tolist())) / len(ids)}

    def qps(self, ef, seconds):
        count, began, before, faults = 0, time.perf_counter(), read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        while time.perf_counter() - began < float(seconds):
            for at in range(0, len(self.queries), 50):
                self.index.search(self.queries[at:at + 50], 10, ef=int(ef))
                count += len(self.queries[at:at + 50])
                if time.perf_counter() - began >= float(seconds):
                    break
        taken = time.perf_counter() - began
        return {"qps": count / taken, "read_bytes": (read_bytes() - before) / count,
                "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults) / count}


def serve(folder, group):
    if group:
        with open(os.path.join(group, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    from worker import anonymous_bytes
    server = Server(folder)
    print(json.dumps({"anonymous": anonymous_bytes()}), flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        try:
            result = getattr(server, command)(*words)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


def measure(results, set_name, hnswlib_mb, rounds):
    """memory_capped_qps_share, or why not."""
    import subprocess
    from common import CORES, WORK, Driven, median
    from stats import ratio
    name, folder = "memory_capped_qps_share", os.path.join(WORK, f"capped-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    processes, group = {}, None

    def ask(how, command):
        result = processes[how].ask(command)
        if "error" in result:
            raise RuntimeError(f"{how}: {command}: {result['error']}")
        return result

    try:
        group = Group()
        done = subprocess.run([sys.executable, os.path.abspath(__file__), "build", set_name, folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().split("\n")[-1])
        for how in ("free", "capped"):
            processes[how] = Driven([sys.executable, os.path.abspath(__file__), "serve", os.path.join(folder, how),
                                     *([group.path] if how == "capped" else [])], [CORES[-1]])
        index_bytes = int(SHARE * hnswlib_mb * 1e6)
        group.limit(processes["capped"].ready["anonymous"] + index_bytes)
        for how in processes:
            ask(how, "load")
        beam, recall = next(((ef, found) for ef in BEAMS for found in [ask("free", f"recall {ef}")["recall"]] if found >= 0.95), (None, 0))
        if beam is None:
            raise RuntimeError("profile memory does not reach recall 0.95")
        ask("free", f"qps {beam} 1")
        ask("capped", f"qps {beam} 3")
        free, capped = [], []
        for _ in range(rounds):
            free.append(ask("free", f"qps {beam} 1"))
            capped.append(ask("capped", f"qps {beam} 3"))
        results.add(name, "capped", ratio([c["qps"] for c in capped], [f["qps"] for f in free]),
                    f"{median([c['qps'] for c in capped]):,.0f} / {median([f['qps'] for f in free]):,.0f} QPS at recall {recall:.4f}; "
                    f"{median([c['read_bytes'] for c in capped]) / 1024:,.1f} KiB and {median([c['faults'] for c in capped]):.1f} faults read from "
                    f"disk a query (not limited: {median([f['read_bytes'] for f in free]) / 1024:.1f} KiB); limit {index_bytes / 1e6:.1f} MB for "
                    f"index and page cache (beside {processes['capped'].ready['anonymous'] / 1e6:.0f} MB of the interpreter), cgroup v{1 if group.is_old else 2}")
    except (RuntimeError, OSError) as error:
        results.lack(name, f"{error}")
    finally:
        for process in processes.values():
            process.process.kill()
            process.process.wait()
        if group is not None:
            group.remove()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(sys.argv[2], sys.argv[3])
    else:
        serve(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
