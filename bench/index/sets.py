"""The data of the index benchmark: real sets where they are, generated ones everywhere.

A set has base (n x dim float32; normalised where the metric is cosine), kinds of queries with their true
neighbours (rows of base, best first), a metric, and columns: numbers of its rows to filter by. "NAME:ROWS"
is the same with the first ROWS rows only.
"""

import gzip
import hashlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy                        # noqa: E402
from common import TOP, WORK        # noqa: E402

SHARED = os.environ.get("SKERRY_BENCH_DATA", os.path.join(TOP, "..", "shared", "data"))
TRUTH = 100
BLOCK = 50_000
MILLION, MILLION_DIM = 1_000_000, 384


def normalised(array):
    array = array.astype(numpy.float32)
    return array / numpy.linalg.norm(array, axis=1, keepdims=True)


def exact(base, queries, metric, k=TRUTH):
    """A float32 short list of each block of the base, ordered again in double precision, ties by row."""
    k = min(k, len(base))
    nearest = [[] for _ in queries]
    for first in range(0, len(base), BLOCK):
        part = numpy.asarray(base[first:first + BLOCK])
        far = -(queries @ part.T)
        if metric == "l2":
            far = numpy.einsum("ij,ij->i", part, part) + 2 * far
        short = min(2 * k, len(part))
        rows = numpy.argpartition(far, short - 1, axis=1)[:, :short]
        for at, query in enumerate(queries.astype(numpy.float64)):
            exactly = part[rows[at]].astype(numpy.float64)
            scores = ((exactly - query) ** 2).sum(axis=1) if metric == "l2" else -(exactly @ query)
            nearest[at].append((scores, rows[at] + first))
    found = numpy.empty((len(queries), k), dtype=numpy.int32)
    for at, parts in enumerate(nearest):
        scores, rows = (numpy.concatenate([part[i] for part in parts]) for i in (0, 1))
        found[at] = rows[numpy.lexsort((rows, scores))][:k]
    return found


class Set:
    def __init__(self, name, metric, base, queries, columns=None, note=None):
        self.name, self.metric, self.base, self.queries, self.note = name, metric, base, queries, note
        self.dim = base.shape[1]
        rng = numpy.random.default_rng(77)
        self.columns = {"random": rng.integers(0, 1000, len(base), dtype=numpy.uint16), **(columns or {})}

    def label(self):
        return f"{self.name} ({len(self.base):,} x {self.dim}, {self.metric})"

    def first(self, rows):
        """The same queries asked of the first rows."""
        base = self.base[:rows]
        queries = {kind: (asked, kept(f"{self.name.split(' ')[0]}-{len(base)}-{kind}.nn", base, asked, self.metric))
                   for kind, (asked, _) in self.queries.items()}
        return Set(self.name, self.metric, base, queries, {name: column[:rows] for name, column in self.columns.items()},
                   f"only the first {len(base):,} rows" + (f"; {self.note}" if self.note else ""))


def kept(name, base, queries, metric):
    """True neighbours, which take a while, kept beside the builds under the name of what they were made of."""
    sign = hashlib.sha256(queries.tobytes())
    sign.update(numpy.ascontiguousarray(base[::max(1, len(base) // 1000)]).tobytes())
    path = os.path.join(WORK, "sets", f"{name}-{sign.hexdigest()[:12]}.npy")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        numpy.save(f"{path}.{os.getpid()}.npy", exact(base, queries, metric))
        os.rename(f"{path}.{os.getpid()}.npy", path)
    return numpy.load(path)


def lexnames(path, rows):
    """The kind of word of each row as a small number: a column that is correlated with the vectors."""
    numbers, names = numpy.empty(rows, dtype=numpy.uint16), {}
    with gzip.open(path, "rt") as lines:
        for row, line in zip(range(rows), lines):
            numbers[row] = names.setdefault(json.loads(line)["lexname"], len(names))
    return numbers


def wordnet():
    folder = os.path.join(SHARED, "wordnet-384")
    if os.path.isdir(folder):
        load = lambda name: numpy.load(os.path.join(folder, name))      # noqa: E731
        queries = {"in": (normalised(load("queries.npy")), load("queries.nn.npy")),
                   "ood": (normalised(load("usage.npy")), load("usage.nn.npy"))}
        base = normalised(load("base.npy"))
        return Set("wordnet-384", "cosine", base, queries, {"lexname": lexnames(os.path.join(folder, "base.jsonl.gz"), len(base))})
    folder = os.path.join(TOP, "tools", "sample")
    rows = normalised(numpy.load(os.path.join(folder, "vectors.npy")))
    phrases = normalised(numpy.load(os.path.join(folder, "phrases.npy")))
    # The rows are ordered by use: every 22nd is left out, so that queries are drawn like the base.
    is_query = numpy.arange(len(rows)) % 22 == 21
    base, left_out = rows[~is_query], rows[is_query]
    column = lexnames(os.path.join(folder, "records.jsonl.gz"), len(rows))[~is_query]
    return Set("sample-384", "cosine", base,
               {"in": (left_out, kept("sample-384-in.nn", base, left_out, "cosine")),
                "ood": (phrases, kept("sample-384-ood.nn", base, phrases, "cosine"))},
               {"lexname": column}, "wordnet-384 is not here: the sample in the tree, too small to say much")


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
    return Set("uniform-128", "l2", base, {"in": (queries, kept("uniform-128.nn", base, queries, "l2"))})


class Generator:
    """Clustered vectors of low intrinsic dimension, bent into 384: 5,000 clusters of very unequal size on 32
    latent dimensions (as an estimator finds in sentence embeddings), through two layers, with a little noise in
    every dimension. Each block has its own seed, so that any block can be made alone."""

    LATENT, HIDDEN, CLUSTERS, SPREAD, NOISE = 32, 256, 5_000, 0.55, 0.015

    def __init__(self):
        rng = numpy.random.default_rng(384)
        self.centres = rng.standard_normal((self.CLUSTERS, self.LATENT), dtype=numpy.float32)
        self.first = rng.standard_normal((self.LATENT, self.HIDDEN), dtype=numpy.float32) / self.LATENT ** 0.5
        self.second = rng.standard_normal((self.HIDDEN, MILLION_DIM), dtype=numpy.float32) / self.HIDDEN ** 0.5
        weights = 1 / numpy.arange(1, self.CLUSTERS + 1) ** 0.7
        self.weights = weights / weights.sum()

    def block(self, number, rows):
        rng = numpy.random.default_rng((384, number))
        latent = self.centres[rng.choice(self.CLUSTERS, rows, p=self.weights)]
        latent = latent + self.SPREAD * rng.standard_normal((rows, self.LATENT), dtype=numpy.float32)
        bent = numpy.tanh(1.5 * latent @ self.first) @ self.second
        return normalised(bent + self.NOISE * rng.standard_normal(bent.shape, dtype=numpy.float32))


def million_path(rows=MILLION):
    """The file of raw float32 rows, made block by block where it is not there yet."""
    path = os.path.join(WORK, "sets", f"generated-{rows}-{MILLION_DIM}.f32")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        generator = Generator()
        with open(path + ".new", "wb") as file:
            for number in range(-(-rows // BLOCK)):
                generator.block(number, min(BLOCK, rows - number * BLOCK)).tofile(file)
        os.rename(path + ".new", path)
    return path


def million(rows=MILLION):
    base = numpy.memmap(million_path(rows), numpy.float32, "r").reshape(-1, MILLION_DIM)
    queries = Generator().block(1_000_000, 1000)
    return Set(f"generated-{MILLION_DIM}", "cosine", base,
               {"in": (queries, kept(f"generated-{rows}.nn", base, queries, "cosine"))})


SETS = {"wordnet": wordnet, "sift": sift, "uniform": uniform, "million": million}


def load_set(name):
    """By its name, or NAME:ROWS; None where its data is not here."""
    name, _, rows = name.partition(":")
    if name == "million":       # generated at the size that is asked for
        return million(int(rows) if rows else MILLION)
    data = SETS[name]()
    return data.first(int(rows)) if data is not None and rows and int(rows) < len(data.base) else data


def within(column, share):
    """Values of the column whose rows together come nearest to this share of all: ([value], share reached).
    The largest value that fits is taken first, so that few are needed."""
    values, counts = numpy.unique(column, return_counts=True)
    wanted, taken = share * len(column), []
    order = numpy.argsort(-counts, kind="stable")
    for at in order:
        if counts[at] <= 1.1 * wanted:
            taken.append(int(values[at]))
            wanted -= counts[at]
            if wanted < 0.1 * share * len(column):
                break
    if not taken:       # every value has more than was asked: the smallest one
        taken = [int(values[order[-1]])]
    return taken, float(numpy.isin(column, taken).mean())
