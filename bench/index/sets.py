"""The data of the index benchmark: real sets where they are, generated ones everywhere.

A set has base (n x dim float32; normalised where the metric is cosine), kinds of queries with their true
neighbours (rows of base, best first), and a metric.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy                        # noqa: E402
from common import TOP, WORK        # noqa: E402

SHARED = os.path.join(TOP, "..", "shared", "data")


def normalised(array):
    array = array.astype(numpy.float32)
    return array / numpy.linalg.norm(array, axis=1, keepdims=True)


def exact(base, queries, metric, k=100):
    """A float32 short list ordered again in double precision, ties by row."""
    found = numpy.empty((len(queries), k), dtype=numpy.int32)
    norms = numpy.einsum("ij,ij->i", base, base) if metric == "l2" else None
    for at, query in enumerate(queries):
        far = norms - 2 * (base @ query) if metric == "l2" else -(base @ query)
        short = numpy.argpartition(far, 2 * k)[:2 * k]
        rows, query = base[short].astype(numpy.float64), query.astype(numpy.float64)
        far = ((rows - query) ** 2).sum(axis=1) if metric == "l2" else -(rows @ query)
        found[at] = short[numpy.lexsort((short, far))][:k]
    return found


class Set:
    def __init__(self, name, metric, base, queries):
        self.name, self.metric, self.base, self.queries = name, metric, base, queries
        self.dim = base.shape[1]

    def label(self):
        return f"{self.name} ({len(self.base):,} x {self.dim}, {self.metric})"


def kept(name, make):
    """An array that takes a while to make, kept beside the builds."""
    os.makedirs(os.path.join(WORK, "sets"), exist_ok=True)
    path = os.path.join(WORK, "sets", name + ".npy")
    if not os.path.exists(path):
        numpy.save(path + ".new.npy", make())
        os.rename(path + ".new.npy", path)
    return numpy.load(path, mmap_mode="r")


def wordnet():
    folder = os.path.join(SHARED, "wordnet-384")
    if os.path.isdir(folder):
        load = lambda name: numpy.load(os.path.join(folder, name))      # noqa: E731
        queries = {"in": (normalised(load("queries.npy")), load("queries.nn.npy")),
                   "ood": (normalised(load("usage.npy")), load("usage.nn.npy"))}
        return Set("wordnet-384", "cosine", normalised(load("base.npy")), queries)
    folder = os.path.join(TOP, "tools", "sample")
    rows = normalised(numpy.load(os.path.join(folder, "vectors.npy")))
    phrases = normalised(numpy.load(os.path.join(folder, "phrases.npy")))
    base, left_out = rows[:8600], rows[8600:]
    return Set("sample-384 (in the tree: wordnet-384 is not here)", "cosine", base,
               {"in": (left_out, exact(base, left_out, "cosine")), "ood": (phrases, exact(base, phrases, "cosine"))})


def sift():
    folder = os.path.join(SHARED, "sift-128")
    if not os.path.isdir(folder):
        return None
    load = lambda name: numpy.load(os.path.join(folder, name))          # noqa: E731
    return Set("sift-128", "l2", load("base.npy").astype(numpy.float32),
               {"in": (load("queries.npy").astype(numpy.float32), load("queries.nn.npy"))})


def uniform():
    rng = numpy.random.default_rng(128)
    base = rng.random((100_000, 128), dtype=numpy.float32)
    queries = rng.random((1000, 128), dtype=numpy.float32)
    return Set("uniform-128", "l2", base, {"in": (queries, kept("uniform-128.nn", lambda: exact(base, queries, "l2")))})


SETS = {"wordnet": wordnet, "sift": sift, "uniform": uniform}
