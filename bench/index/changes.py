"""What happens to an index while its rows change: everything out and in again, and a stream."""

import time

import numpy

from libraries import EF_CONSTRUCTION, M
from sets import exact
from stats import recall_of

K = 10
PARTS = 20              # of one turnover
STREAM_QUERIES, STREAM_ROWS = 200, 40_000   # hnswlib takes back fewer than 1,000 places a second
BEAMS = (10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 96, 128, 200)


def along_the_data(base):
    """Rows in the order of the direction in which the data varies most: neighbours come and go together."""
    sample = numpy.asarray(base[:: max(1, len(base) // 4000)])
    axis = numpy.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][0]
    return numpy.argsort(base @ axis, kind="stable")


def turned_over(library, base, order, times):
    """Everything out and in again, a twentieth at a time."""
    rows = along_the_data(base) if order == "clustered" else numpy.arange(len(base))
    rng = numpy.random.default_rng(5)
    for _ in range(times):
        if order != "clustered":
            rng.shuffle(rows)
        for part in numpy.array_split(rows, PARTS):
            library.index.remove(part)
            library.index.add(part, base[part])
    library.index.compact()


class OurStream:
    def __init__(self, library, dim, metric, _):
        self.index = library.engine().Index(dim=dim, metric=metric, m=M, ef_construction=EF_CONSTRUCTION, **library.options)
        self.add, self.remove = self.index.add, self.index.remove

    def search(self, queries, ef):
        return self.index.search(queries, K, ef=ef)[0]


class HnswlibStream:
    """Deletes are marks, inserts take the places of what is marked."""

    def __init__(self, _, dim, metric, rows):
        import hnswlib
        self.index = hnswlib.Index(space="l2" if metric == "l2" else "cosine", dim=dim)
        self.index.init_index(max_elements=rows, ef_construction=EF_CONSTRUCTION, M=M, allow_replace_deleted=True)
        self.index.set_num_threads(1)

    def add(self, ids, vectors):
        self.index.add_items(vectors, ids, num_threads=1, replace_deleted=True)

    def remove(self, ids):
        for row in ids.tolist():
            self.index.mark_deleted(row)

    def search(self, queries, ef):
        self.index.set_ef(ef)
        return self.index.knn_query(queries, k=K, num_threads=1)[0]


def runbook(library, data, steps, is_ours):
    """Half of the rows in random order; then in each step a share of the others comes in, in clustered order (so
    that the data drifts), and as many of the oldest go out, with searches after each. The beam is the one that
    gives 0.95 at the beginning and stays."""
    base, queries = data.base[:STREAM_ROWS], numpy.ascontiguousarray(data.queries["in"][0][:STREAM_QUERIES])
    shuffled = numpy.random.default_rng(9).permutation(len(base))
    first, second = shuffled[:len(base) // 2], numpy.sort(shuffled[len(base) // 2:])
    second = second[along_the_data(base[second])]
    stream = (OurStream if is_ours else HnswlibStream)(library, base.shape[1], data.metric, len(base))
    stream.add(first, base[first])
    queue, told, beam = list(first), [], None
    coming, going = numpy.array_split(second, steps), len(second) // steps
    for step in range(steps + 1):
        began = time.perf_counter()
        if step > 0:
            stream.add(coming[step - 1], base[coming[step - 1]])
            queue += list(coming[step - 1])
            out, queue = numpy.array(queue[:going]), queue[going:]
            stream.remove(out)
        changed_s = time.perf_counter() - began
        live = numpy.array(queue)
        truth = live[exact(base[live], queries, data.metric, K)]

        def recall(ef):
            ids = numpy.asarray(stream.search(queries, ef)).astype(numpy.int64).tolist()
            return float(numpy.mean([recall_of(a, b) for a, b in zip(ids, truth.tolist())]))

        if beam is None:
            beam = next((ef for ef in BEAMS if recall(ef) >= 0.95), BEAMS[-1])
        found, count, began = recall(beam), 0, time.perf_counter()
        while time.perf_counter() - began < 0.2:
            stream.search(queries, beam)
            count += len(queries)
        told.append({"step": step, "rows": len(live), "ef": beam, "recall": found, "qps": count / (time.perf_counter() - began),
                     "changes_per_s": 2 * going / changed_s if step else None})
    return told
