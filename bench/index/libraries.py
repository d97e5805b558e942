"""Every library behind one face, each in a process of its own that is driven line by line.

    libraries.py NAME SET        then, one command a line, one line of JSON each:
    build                {"cpu_s", "mb"}: CPU seconds of one thread to the index that is searched, memory it took
    recall KIND PARAM    {"recall", "p5"}: k = 10, over the half of the queries that tuning does not see
    tune KIND PARAM      {"recall"}: over the other half
    time KIND PARAM      {"qps", "p50_us", "p99_us"}: the queries one after the other, one thread, in one call
                         where the library takes many (p50 and p99: one call each)
    turnover ORDER       (skerry) deletes and inserts everything five times; {"cpu_s", "mb"}
"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy                        # noqa: E402
from sets import SETS, TOP          # noqa: E402

K, M, EF_CONSTRUCTION, DEGREE = 10, 16, 200, 32
BEAMS = (10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 120, 150, 180, 230, 300, 400, 550, 800, 1200)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Library:
    """build(base, metric), set(param), search(queries, k) -> ids (n, k). params: from fast to thorough."""
    params = BEAMS
    takes_many = True

    def memory_bytes(self):
        return None     # what the process has grown by


class Hnswlib(Library):
    def build(self, base, metric):
        import hnswlib
        self.index = hnswlib.Index(space="l2" if metric == "l2" else "cosine", dim=base.shape[1])
        self.index.init_index(max_elements=len(base), ef_construction=EF_CONSTRUCTION, M=M)
        self.index.set_num_threads(1)
        self.index.add_items(base, numpy.arange(len(base)), num_threads=1)

    def set(self, param):
        self.index.set_ef(param)

    def search(self, queries, k):
        return self.index.knn_query(queries, k=k, num_threads=1)[0]


class Symqg(Library):
    """SymphonyQG as rabitqlib packages it; static."""

    def build(self, base, metric):
        import rabitqlib
        self.index = rabitqlib.SymqgIndex(base.shape[1], DEGREE, metric="l2")
        self.index.build(base, EF_CONSTRUCTION, 1)

    def set(self, param):
        self.ef = param

    def search(self, queries, k):
        first, second = self.index.search(queries, k, self.ef, 1)
        ids = first if numpy.asarray(first).dtype.kind in "iu" else second
        return numpy.asarray(ids)


class Faiss(Library):
    description = None

    def build(self, base, metric):
        import faiss
        faiss.omp_set_num_threads(1)
        self.faiss = faiss
        description = self.description.format(half=base.shape[1] // 2)
        self.index = faiss.index_factory(base.shape[1], description, faiss.METRIC_L2)
        self.index.train(base)
        self.index.add(base)
        self.space = faiss.ParameterSpace()

    def set(self, param):
        for name, value in param.items():
            self.space.set_index_parameter(self.index, name, value)

    def search(self, queries, k):
        return self.index.search(queries, k)[1]


class FaissHnswSq8(Faiss):
    description = f"HNSW{M}_SQ8"
    params = tuple({"efSearch": ef} for ef in BEAMS)


class FaissIvfPqFs(Faiss):
    description = "IVF1024,PQ{half}x4fs,RFlat"
    params = tuple({"nprobe": n, "k_factor_rf": r} for r in (4, 8, 16) for n in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024))


class FaissIvfRabitq(Faiss):
    description = "IVF1024,RaBitQfs,RFlat"
    params = tuple({"nprobe": n, "k_factor_rf": r} for r in (8, 16) for n in (16, 32, 48, 64, 96, 128, 192, 256))


class Usearch(Library):
    params = BEAMS[:-3]

    def build(self, base, metric):
        from usearch.index import Index
        self.index = Index(ndim=base.shape[1], metric="l2sq", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION)
        self.index.add(numpy.arange(len(base)), base, threads=1)

    def set(self, param):
        self.index.expansion_search = param

    def search(self, queries, k):
        found = self.index.search(queries, k, threads=1).keys
        return found if found.ndim == 2 else found.reshape(1, -1)


class Vsag(Library):
    takes_many = False
    params = BEAMS[:-3]

    def build(self, base, metric):
        import pyvsag
        pyvsag.set_logger_off()
        self.index = pyvsag.Index("hgraph", json.dumps({
            "dtype": "float32", "metric_type": "l2", "dim": base.shape[1],
            "index_param": {"base_quantization_type": "sq8_uniform", "max_degree": DEGREE,
                            "ef_construction": EF_CONSTRUCTION, "use_reorder": True,
                            "precise_quantization_type": "fp32", "build_thread_count": 1}}))
        self.index.build(vectors=base.reshape(-1), ids=numpy.arange(len(base), dtype=numpy.int64),
                         num_elements=len(base), dim=base.shape[1])

    def set(self, param):
        self.parameters = json.dumps({"hgraph": {"ef_search": param}})

    def search(self, queries, k):
        found = []
        for query in queries:
            first, second = self.index.knn_search(vector=query, k=k, parameters=self.parameters)
            found.append(first if numpy.asarray(first).dtype.kind in "iu" else second)
        return numpy.asarray(found)


class Skerry(Library):
    """profile balanced: 4-bit codes for the walk, 8-bit codes for the order; no float32 in memory."""

    def build(self, base, metric):
        sys.path.insert(0, os.path.join(TOP, "tools", "python"))
        from skerry.index import Index
        self.base = base
        self.index = Index(dim=base.shape[1], metric=metric, m=M, ef_construction=EF_CONSTRUCTION)
        self.index.add(numpy.arange(len(base)), base)

    def set(self, param):
        self.ef = param

    def search(self, queries, k):
        return self.index.search(queries, k, self.ef)[0]

    def memory_bytes(self):
        return self.index.memory_bytes

    def turnover(self, order):
        """Everything out and in again, five times, a twentieth at a time."""
        rows = numpy.arange(len(self.base))
        if order == "clustered":        # along the direction in which the data varies most
            sample = self.base[:: max(1, len(self.base) // 4000)]
            axis = numpy.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][0]
            rows = numpy.argsort(self.base @ axis)
        rng = numpy.random.default_rng(5)
        for _ in range(5):
            if order != "clustered":
                rng.shuffle(rows)
            for part in numpy.array_split(rows, 20):
                self.index.remove(part)
                self.index.add(part, self.base[part])
        self.index.compact()


class SkerryExact(Skerry):
    """The same with the float32 vectors in memory: every score exact."""

    def build(self, base, metric):
        sys.path.insert(0, os.path.join(TOP, "tools", "python"))
        from skerry.index import Index
        self.base = base
        self.index = Index(dim=base.shape[1], metric=metric, m=M, ef_construction=EF_CONSTRUCTION, keep_vectors=True)
        self.index.add(numpy.arange(len(base)), base)


class SkerryFlat(SkerryExact):
    params = (0,)

    def build(self, base, metric):
        sys.path.insert(0, os.path.join(TOP, "tools", "python"))
        from skerry.index import Index
        self.index = Index(dim=base.shape[1], metric=metric, index="flat")
        self.index.add(numpy.arange(len(base)), base)


LIBRARIES = {"skerry balanced": Skerry, "skerry balanced, float32 kept": SkerryExact, "skerry flat": SkerryFlat,
             "hnswlib": Hnswlib, "symqg": Symqg, "faiss hnsw-sq8": FaissHnswSq8, "faiss ivf-pq-fastscan": FaissIvfPqFs,
             "faiss ivf-rabitq": FaissIvfRabitq, "usearch bf16": Usearch, "vsag hgraph": Vsag}
OURS = tuple(name for name in LIBRARIES if name.startswith("skerry"))


class Driver:
    def __init__(self, library, data):
        self.library, self.data = library, data

    def build(self):
        before, began = resident_bytes(), time.process_time()
        self.library.build(numpy.ascontiguousarray(self.data.base), self.data.metric)
        spent = time.process_time() - began
        own = self.library.memory_bytes()
        return {"cpu_s": spent, "mb": (own if own is not None else resident_bytes() - before) / 1e6,
                "params": len(self.library.params)}

    def found(self, kind, param, half):
        queries, truth = self.data.queries[kind]
        self.library.set(self.library.params[param])
        ids = self.library.search(numpy.ascontiguousarray(queries[half::2]), K).astype(numpy.int64)
        return [len(set(a) & set(b)) / K for a, b in zip(ids.tolist(), truth[half::2, :K].tolist())]

    def tune(self, kind, param):
        return {"recall": float(numpy.mean(self.found(kind, int(param), 0)))}

    def recall(self, kind, param):
        each = self.found(kind, int(param), 1)
        return {"recall": float(numpy.mean(each)), "p5": float(numpy.percentile(each, 5))}

    def time(self, kind, param):
        queries = numpy.ascontiguousarray(self.data.queries[kind][0])
        self.library.set(self.library.params[int(param)])
        began = time.perf_counter()
        self.library.search(queries, K)
        seconds, taken = time.perf_counter() - began, []
        for at in range(0, len(queries), 4):
            start = time.perf_counter_ns()
            self.library.search(queries[at:at + 1], K)
            taken.append((time.perf_counter_ns() - start) / 1e3)
        return {"qps": len(queries) / seconds, "p50_us": float(numpy.percentile(taken, 50)),
                "p99_us": float(numpy.percentile(taken, 99))}

    def turnover(self, order):
        began = time.process_time()
        self.library.turnover(order)
        return {"cpu_s": time.process_time() - began, "mb": self.library.memory_bytes() / 1e6}


def main():
    answers = os.fdopen(os.dup(1), "w")     # libraries print on stdout as they like
    os.dup2(2, 1)
    driver = Driver(LIBRARIES[sys.argv[1]](), SETS[sys.argv[2]]())
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        print(json.dumps(getattr(driver, command)(*words)), file=answers, flush=True)


if __name__ == "__main__":
    main()
