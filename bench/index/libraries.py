"""The libraries behind one face: the peers from PyPI, and ours with every kind and profile.

build(base, metric), set(param), search(queries, k) -> ids (n, k). params: from fast to thorough.
"""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy                        # noqa: E402
from sets import TOP, WORK          # noqa: E402

M, EF_CONSTRUCTION, DEGREE = 16, 200, 32
BEAMS = (10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 120, 150, 180, 230, 300, 400, 550, 800, 1200)
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)


class Library:
    params = BEAMS
    is_grid = False             # params are not one line from fast to thorough
    how = "one call of all queries, one thread"
    package = module = None     # of PyPI, and what is imported

    def usable(self, k):
        """Numbers of the params that can give k (a beam must be as wide), in lines from fast to thorough."""
        return [[i for i, param in enumerate(self.params) if not isinstance(param, int) or param >= k]]

    def memory_bytes(self):
        return None             # what the process has grown by

    def instructions(self):
        return ""


def wide_instructions(module):
    """What a compiled module consists of, where it cannot be asked: instructions on 512 and 256 bit registers."""
    try:
        text = subprocess.run(f"objdump -d --no-show-raw-insn '{module.__file__}' | grep -oE '%[zy]mm' | sort | uniq -c",
                              shell=True, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown (no objdump here)"
    counts = dict(zip(text[1::2], (int(n) for n in text[::2])))
    return ("AVX-512" if counts.get("%zmm", 0) > 100 else "AVX2" if counts.get("%ymm", 0) > 100 else "baseline x86-64") + (
        f" ({counts.get('%zmm', 0):,} uses of 512-bit registers in its code, {counts.get('%ymm', 0):,} of 256-bit)")


class Hnswlib(Library):
    package, module = "hnswlib", "hnswlib"

    def build(self, base, metric):
        import hnswlib
        self.index = hnswlib.Index(space="l2" if metric == "l2" else "cosine", dim=base.shape[1])
        self.index.init_index(max_elements=len(base), ef_construction=EF_CONSTRUCTION, M=M)
        self.index.set_num_threads(1)
        self.index.add_items(base, numpy.arange(len(base)), num_threads=1)

    def save(self, path):
        self.index.save_index(path)

    def load(self, path, base, metric):
        import hnswlib
        self.index = hnswlib.Index(space="l2" if metric == "l2" else "cosine", dim=base.shape[1])
        self.index.load_index(path, max_elements=len(base))
        self.index.set_num_threads(1)

    def set(self, param):
        self.index.set_ef(param)

    def search(self, queries, k):
        return self.index.knn_query(queries, k=k, num_threads=1)[0]

    def instructions(self):
        import hnswlib
        return "compiled here with -march=native: " + wide_instructions(hnswlib)


class Symqg(Library):
    """SymphonyQG as rabitqlib packages it; static."""
    package, module = "rabitqlib", "rabitqlib"

    def build(self, base, metric):
        import rabitqlib
        self.index = rabitqlib.SymqgIndex(base.shape[1], DEGREE, metric="l2")
        self.index.build(base, EF_CONSTRUCTION, 1)

    def save(self, path):
        self.index.save(path)

    def load(self, path, base, metric):
        import rabitqlib
        self.index = rabitqlib.SymqgIndex.load(path)

    def set(self, param):
        self.ef = param

    def search(self, queries, k):
        first, second = self.index.search(queries, k, self.ef, 1)
        return numpy.asarray(first if numpy.asarray(first).dtype.kind in "iu" else second)

    def instructions(self):
        from rabitqlib import _rabitqlib
        return "its wheel: " + wide_instructions(_rabitqlib)


class Faiss(Library):
    package, module = "faiss-cpu", "faiss"
    description = None

    def build(self, base, metric):
        import faiss
        faiss.omp_set_num_threads(1)
        description = self.description.format(half=base.shape[1] // 2, lists=min(1024, len(base) // 40))
        self.index = faiss.index_factory(base.shape[1], description, faiss.METRIC_L2)
        self.index.train(base)
        self.index.add(base)
        self.space = faiss.ParameterSpace()

    def save(self, path):
        import faiss
        faiss.write_index(self.index, path)

    def load(self, path, base, metric):
        import faiss
        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(path)
        self.space = faiss.ParameterSpace()

    def set(self, param):
        for name, value in param.items():
            self.space.set_index_parameter(self.index, name, value)

    def search(self, queries, k):
        return self.index.search(queries, k)[1]

    def instructions(self):
        import faiss
        return f"its wheel: {faiss.get_compile_options().strip()} (DD: chosen at run time)"


class FaissHnswSq8(Faiss):
    description = f"HNSW{M}_SQ8"
    params = tuple({"efSearch": ef} for ef in BEAMS)

    def usable(self, k):
        return [[i for i, param in enumerate(self.params) if param["efSearch"] >= k]]


class FaissGrid(Faiss):
    is_grid = True

    def usable(self, k):
        factors = sorted({param["k_factor_rf"] for param in self.params})
        return [[i for i, param in enumerate(self.params) if param["k_factor_rf"] == factor] for factor in factors]


class FaissIvfPqFs(FaissGrid):
    description = "IVF{lists},PQ{half}x4fs,RFlat"
    params = tuple({"nprobe": n, "k_factor_rf": r} for r in (4, 8, 16) for n in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024))


class FaissIvfRabitq(FaissGrid):
    description = "IVF{lists},RaBitQfs,RFlat"
    params = tuple({"nprobe": n, "k_factor_rf": r} for r in (8, 16) for n in (16, 32, 48, 64, 96, 128, 192, 256))


class Usearch(Library):
    package, module = "usearch", "usearch.index"
    params = BEAMS[:-3]

    def make(self, dim):
        from usearch.index import Index
        return Index(ndim=dim, metric="l2sq", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION)

    def build(self, base, metric):
        self.index = self.make(base.shape[1])
        self.index.add(numpy.arange(len(base)), base, threads=1)

    def save(self, path):
        self.index.save(path)

    def load(self, path, base, metric):
        self.index = self.make(base.shape[1])
        self.index.load(path)

    def set(self, param):
        self.index.expansion_search = param

    def search(self, queries, k):
        found = self.index.search(queries, k, threads=1).keys
        return found if found.ndim == 2 else found.reshape(1, -1)

    def instructions(self):
        return f"chosen at run time by its kernels: {self.index.hardware_acceleration}"


class Vsag(Library):
    package, module = "pyvsag", "pyvsag"
    how = "one call a query (its binding takes one), one thread"
    params = BEAMS[:-3]

    def make(self, dim):
        import pyvsag
        pyvsag.set_logger_off()
        return pyvsag.Index("hgraph", json.dumps({
            "dtype": "float32", "metric_type": "l2", "dim": dim,
            "index_param": {"base_quantization_type": "sq8_uniform", "max_degree": DEGREE,
                            "ef_construction": EF_CONSTRUCTION, "use_reorder": True,
                            "precise_quantization_type": "fp32", "build_thread_count": 1}}))

    def build(self, base, metric):
        self.index = self.make(base.shape[1])
        self.index.build(vectors=base.reshape(-1), ids=numpy.arange(len(base), dtype=numpy.int64),
                         num_elements=len(base), dim=base.shape[1])

    def save(self, path):
        self.index.save(path)

    def load(self, path, base, metric):
        self.index = self.make(base.shape[1])
        self.index.load(path)

    def set(self, param):
        self.parameters = json.dumps({"hgraph": {"ef_search": param}})

    def search(self, queries, k):
        found = []
        for query in queries:
            first, second = self.index.knn_search(vector=query, k=k, parameters=self.parameters)
            found.append(first if numpy.asarray(first).dtype.kind in "iu" else second)
        return numpy.asarray(found)

    def instructions(self):
        return "its wheel, chosen at run time"


class Skerry(Library):
    """profile balanced: 4-bit codes for the walk, 8-bit codes for the order; no float32 in memory."""
    options = {"profile": "balanced"}
    names = "ef"                # what a param is called in a search
    has_vectors_file = False
    is_updatable = True

    def build(self, base, metric):
        self.base, self.metric, self.how_asked = base, metric, {}
        more = {"vectors_path": self.vectors_path()} if self.has_vectors_file else {}
        self.index = self.engine().Index(dim=base.shape[1], metric=metric, m=M, ef_construction=EF_CONSTRUCTION,
                                         **self.options, **more)
        self.index.add(numpy.arange(len(base)), base)
        if self.has_vectors_file:       # it is open; nothing stays behind, however this process ends
            os.unlink(self.vectors_path())

    @staticmethod
    def engine():
        sys.path.insert(0, os.path.join(TOP, "tools", "python"))
        os.environ.setdefault("SKERRY_LIB_DIR", os.path.join(TOP, "build", "release", "lib"))
        from skerry import index
        return index

    def ids_bytes(self, rows):
        """What ids that are not the rows' numbers cost more: of small vectors, since it is the same for all."""
        sizes = []
        for first in (0, 10**12):
            index = self.engine().Index(dim=4, index="flat")
            index.add(numpy.arange(first, first + rows), numpy.ones((rows, 4), dtype=numpy.float32))
            sizes.append(index.memory_bytes)
            index.close()
        return sizes[1] - sizes[0]

    @staticmethod
    def vectors_path():
        os.makedirs(WORK, exist_ok=True)
        return os.path.join(WORK, f"vectors-{os.getpid()}.f32")

    def set(self, param):
        self.how_asked = param if isinstance(param, dict) else {self.names: param}

    def search(self, queries, k, **more):
        return self.index.search(queries, k, **self.how_asked, **more)[0]

    def memory_bytes(self):
        return self.index.memory_bytes

    def instructions(self):
        return getattr(self.index, "isa", "the best of the machine (AVX-512, AVX2, NEON), chosen at start")


class SkerryExact(Skerry):
    """The same with the float32 vectors in memory: every score exact."""
    options = {"profile": "balanced", "keep_vectors": True}


class SkerrySpeed(Skerry):
    options = {"profile": "speed"}


class SkerryMemory(Skerry):
    options = {"profile": "memory"}
    has_vectors_file = True


class SkerryIvfFlat(Skerry):
    options = {"index": "ivf_flat"}
    names, params = "nprobe", PROBES

    def usable(self, k):
        return [list(range(len(self.params)))]


class SkerryIvfPq(SkerryIvfFlat):
    options = {"index": "ivf_pq"}
    has_vectors_file = True


class SkerryHybrid(SkerryIvfPq):
    options = {"index": "hybrid"}


class SkerryFlat(Skerry):
    options = {"index": "flat"}
    params = ({},)
    is_updatable = False


LIBRARIES = {"skerry speed": SkerrySpeed, "skerry balanced": Skerry, "skerry balanced, float32 kept": SkerryExact,
             "skerry memory": SkerryMemory, "skerry ivf_flat": SkerryIvfFlat, "skerry ivf_pq": SkerryIvfPq,
             "skerry hybrid": SkerryHybrid, "skerry flat": SkerryFlat,
             "hnswlib": Hnswlib, "symqg": Symqg, "faiss hnsw-sq8": FaissHnswSq8, "faiss ivf-pq-fastscan": FaissIvfPqFs,
             "faiss ivf-rabitq": FaissIvfRabitq, "usearch bf16": Usearch, "vsag hgraph": Vsag}
OURS = tuple(name for name in LIBRARIES if name.startswith("skerry"))
PEERS = tuple(name for name in LIBRARIES if name not in OURS)
