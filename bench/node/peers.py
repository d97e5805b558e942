"""What Skerry is measured against, and Skerry itself from Python, each as a process that is driven.

    peers.py hnswlib|qdrant|zvec|skerry [--sample] [--target DIR] [--folder DIR]

Commands, one a line; each prints one line of JSON:
    load            {"load_s", "index_s", "rows"}: with payload, durable (a flush each 500 rows), then the index
    open            (embedded ones) closes and opens again: {"open_s"} until the first answer
    sweep           {"points": [[ef, recall], ...]} at k = 10 over all queries
    ef N | run COUNT FIRST      as the C clients (block.h), payload returned where the peer has any
    batch COUNT     (hnswlib) that many queries in one call, one thread: {"qps"}
"""

import argparse
import json
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy                                        # noqa: E402
from common import TOP                              # noqa: E402
from data import DIM, Data                          # noqa: E402

M, EF_CONSTRUCTION, K, FLUSH_ROWS = 16, 200, 10, 500
EFS = (10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 80, 100, 128, 180, 256)


class Peer:
    def __init__(self, data, options):
        self.data, self.options, self.ef = data, options, 64
        self.queries = numpy.ascontiguousarray(data.queries)

    def recall(self):
        found = 0
        for query, truth in zip(self.queries, self.data.neighbours):
            found += len(set(self.search(query)) & set(int(t) for t in truth[:K]))
        return found / (K * len(self.queries))

    def sweep(self):
        points = []
        for self.ef in EFS:
            self.set_ef()
            points.append([self.ef, round(self.recall(), 5)])
            if points[-1][1] >= 0.985:
                break
        return {"points": points}

    def set_ef(self):
        pass

    def run(self, count, first):
        taken, errors = [], 0
        began = time.perf_counter()
        for number in range(count):
            query = self.queries[(first + number) % len(self.queries)]
            start = time.perf_counter_ns()
            hits = self.search(query)
            taken.append(time.perf_counter_ns() - start)
            errors += len(hits) != K
        seconds = time.perf_counter() - began
        taken.sort()
        return {"count": count, "seconds": seconds, "p50_us": taken[count // 2] / 1e3,
                "p99_us": taken[count * 99 // 100] / 1e3, "errors": errors}


class Hnswlib(Peer):
    def load(self):
        import hnswlib
        began = time.perf_counter()
        self.index = hnswlib.Index(space="cosine", dim=DIM)
        self.index.init_index(max_elements=len(self.data.base), ef_construction=EF_CONSTRUCTION, M=M)
        self.index.set_num_threads(1)
        for at in range(0, len(self.data.base), 1000):
            part = numpy.asarray(self.data.base[at:at + 1000])
            self.index.add_items(part, numpy.arange(at, at + len(part)), num_threads=1)
        return {"load_s": time.perf_counter() - began, "index_s": 0, "rows": len(self.data.base)}

    def set_ef(self):
        self.index.set_ef(self.ef)

    def search(self, query):
        labels, _ = self.index.knn_query(query, k=K, num_threads=1)
        return [int(i) for i in labels[0]]

    def recall(self):
        labels, _ = self.index.knn_query(self.queries, k=K, num_threads=1)
        return sum(len(set(a) & set(b[:K])) for a, b in zip(labels.tolist(), self.data.neighbours.tolist())) / (
            K * len(self.queries))

    def batch(self, count):
        queries = numpy.concatenate([self.queries] * (count // len(self.queries) + 1))[:count]
        began = time.perf_counter()
        self.index.knn_query(queries, k=K, num_threads=1)
        return {"qps": count / (time.perf_counter() - began)}


class Qdrant(Peer):
    def config(self):
        import qdrant_edge as qe
        hnsw = qe.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10)
        return qe.EdgeConfig(vectors=qe.EdgeVectorParams(size=DIM, distance=qe.Distance.Cosine, hnsw_config=hnsw),
                             hnsw_config=hnsw,
                             optimizers=qe.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=100))

    def load(self):
        import qdrant_edge as qe
        shutil.rmtree(self.options.folder, ignore_errors=True)
        os.makedirs(self.options.folder)
        payloads = self.data.payloads()
        self.shard = qe.EdgeShard.create(self.options.folder, self.config())
        began = time.perf_counter()
        for at in range(0, len(payloads), FLUSH_ROWS):
            rows = self.data.base[at:at + FLUSH_ROWS].tolist()
            self.shard.update(qe.UpdateOperation.upsert_points(
                [qe.Point(at + i, row, payloads[at + i]) for i, row in enumerate(rows)]))
            self.shard.flush()
        loaded = time.perf_counter()
        while self.shard.optimize():
            pass
        self.shard.flush()
        return {"load_s": loaded - began, "index_s": time.perf_counter() - loaded, "rows": len(payloads)}

    def open(self):
        import qdrant_edge as qe
        self.shard.close()
        began = time.perf_counter()
        self.shard = qe.EdgeShard.load(self.options.folder)
        self.search(self.queries[0])
        return {"open_s": time.perf_counter() - began}

    def search(self, query):
        import qdrant_edge as qe
        points = self.shard.search(qe.SearchRequest(query=qe.Query.Nearest(query.tolist()), limit=K, with_payload=True,
                                                    params=qe.SearchParams(hnsw_ef=self.ef)))
        return [point.id for point in points]


class Zvec(Peer):
    def load(self):
        import zvec
        zvec.init(log_level=zvec.LogLevel.ERROR)
        shutil.rmtree(self.options.folder, ignore_errors=True)
        schema = zvec.CollectionSchema(
            name="bench",
            fields=[zvec.FieldSchema("words", zvec.DataType.STRING), zvec.FieldSchema("gloss", zvec.DataType.STRING),
                    zvec.FieldSchema("lexname", zvec.DataType.STRING)],
            vectors=zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, DIM, index_param=zvec.HnswIndexParam(
                metric_type=zvec.MetricType.COSINE, m=M, ef_construction=EF_CONSTRUCTION)))
        payloads = self.data.payloads()
        self.collection = zvec.create_and_open(self.options.folder, schema)
        began = time.perf_counter()
        for at in range(0, len(payloads), FLUSH_ROWS):
            rows = self.data.base[at:at + FLUSH_ROWS].tolist()
            self.collection.insert([zvec.Doc(id=str(at + i), vectors={"v": row},
                                             fields={"words": ",".join(payloads[at + i]["words"]),
                                                     "gloss": payloads[at + i]["gloss"],
                                                     "lexname": payloads[at + i]["lexname"]})
                                    for i, row in enumerate(rows)])
            self.collection.flush()
        loaded = time.perf_counter()
        self.collection.optimize()
        self.collection.flush()
        return {"load_s": loaded - began, "index_s": time.perf_counter() - loaded, "rows": len(payloads)}

    def open(self):
        import zvec
        self.collection.close()
        began = time.perf_counter()
        self.collection = zvec.open(self.options.folder)
        self.search(self.queries[0])
        return {"open_s": time.perf_counter() - began}

    def search(self, query):
        import zvec
        docs = self.collection.query(zvec.Query(field_name="v", vector=query.tolist(),
                                                param=zvec.HnswQueryParam(ef=self.ef)), topk=K)
        return [int(doc.id) for doc in docs]


class Skerry(Peer):
    def __init__(self, data, options):
        super().__init__(data, options)
        sys.path.insert(0, os.path.join(TOP, "tools", "python"))
        os.environ.setdefault("SKERRY_LIB_DIR", os.path.join(TOP, "build", "release", "lib"))
        import skerry
        self.db = skerry.connect(options.target)
        self.docs = None

    def load(self):
        payloads = self.data.payloads()
        began = time.perf_counter()
        self.docs = self.db.create_collection("python", dim=DIM, metric="cosine")
        for at in range(0, len(payloads), FLUSH_ROWS):
            rows = numpy.ascontiguousarray(self.data.base[at:at + FLUSH_ROWS])
            self.docs.upsert(list(range(at, at + len(rows))), rows, payloads[at:at + len(rows)])
        loaded = time.perf_counter()
        self.docs.wait(deadline_ms=60000)
        return {"load_s": loaded - began, "index_s": time.perf_counter() - loaded, "rows": len(payloads)}

    def search(self, query):
        return [hit.id for hit in self.docs.search(query, limit=K, ef=self.ef, with_payload=True)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=("hnswlib", "qdrant", "zvec", "skerry"))
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--target")
    parser.add_argument("--folder")
    options = parser.parse_args()
    kinds = {"hnswlib": Hnswlib, "qdrant": Qdrant, "zvec": Zvec, "skerry": Skerry}
    answers = os.fdopen(os.dup(1), "w")     # libraries print on stdout as they like
    os.dup2(2, 1)
    peer = kinds[options.peer](Data(options.sample), options)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "ef":
            peer.ef = int(words[1])
            peer.set_ef()
            result = {"ok": True}
        else:
            result = getattr(peer, words[0])(*(int(w) for w in words[1:]))
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
