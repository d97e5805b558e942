"""The data of the node benchmark as raw files that C and Python read alike.

`../shared/data/wordnet-384` beside the repository where it is there, else the sample in the tree (and
then the table says so). float16 is how the vectors are stored; they become normalised float32.
"""

import gzip
import json
import os
import struct

import msgpack
import numpy

from common import TOP, WORK

DIM = 384
PAYLOAD_FIELDS = ("words", "gloss", "lexname", "count")


def normalised(array):
    array = array.astype(numpy.float32)
    return array / numpy.linalg.norm(array, axis=1, keepdims=True)


def exact_neighbours(base, queries, k=100):
    """Row numbers, best first, ties by row: a float32 short list ordered again in double precision."""
    found = numpy.empty((len(queries), k), dtype=numpy.int32)
    for at, query in enumerate(queries):
        short = numpy.argpartition(-(base @ query), min(2 * k, len(base) - 1))[:2 * k]
        scores = base[short].astype(numpy.float64) @ query.astype(numpy.float64)
        found[at] = short[numpy.lexsort((short, -scores))][:k]
    return found


class Data:
    def __init__(self, use_sample=False):
        shared = os.path.join(TOP, "..", "shared", "data", "wordnet-384")
        self.is_sample = use_sample or not os.path.isdir(shared)
        self.name = "sample (9,000 x 384, in the tree)" if self.is_sample else "wordnet-384 (100,000 x 384)"
        self.folder = os.path.join(WORK, "sample" if self.is_sample else "wordnet-384")
        os.makedirs(self.folder, exist_ok=True)
        self.base_path, self.queries_path, self.neighbours_path, self.payloads_path = (
            os.path.join(self.folder, name) for name in ("base.f32", "queries.f32", "neighbours.i32", "payloads.bin"))
        self.image_path = os.path.join(self.folder, "index.image")
        if not os.path.exists(self.payloads_path):
            self.prepare(os.path.join(TOP, "tools", "sample") if self.is_sample else shared)
        self.base = numpy.memmap(self.base_path, numpy.float32, "r").reshape(-1, DIM)
        self.queries = numpy.fromfile(self.queries_path, numpy.float32).reshape(-1, DIM)
        self.neighbours = numpy.fromfile(self.neighbours_path, numpy.int32).reshape(-1, 100)
        self.payload_bytes = os.path.getsize(self.payloads_path) - 4 * len(self.base)
        self.raw_bytes = self.base.nbytes + self.payload_bytes

    def prepare(self, source):
        if self.is_sample:
            vectors = normalised(numpy.load(os.path.join(source, "vectors.npy")))
            queries = normalised(numpy.load(os.path.join(source, "phrases.npy")))
            neighbours = exact_neighbours(vectors, queries)
            records = os.path.join(source, "records.jsonl.gz")
        else:
            vectors = normalised(numpy.load(os.path.join(source, "base.npy")))
            queries = normalised(numpy.load(os.path.join(source, "queries.npy")))
            neighbours = numpy.load(os.path.join(source, "queries.nn.npy")).astype(numpy.int32)
            records = os.path.join(source, "base.jsonl.gz")
        vectors.tofile(self.base_path)
        queries.tofile(self.queries_path)
        neighbours.tofile(self.neighbours_path)
        with gzip.open(records, "rt") as lines, open(self.payloads_path + ".new", "wb") as out:
            for line in lines:
                record = json.loads(line)
                packed = msgpack.packb({name: record[name] for name in PAYLOAD_FIELDS if name in record})
                out.write(struct.pack("<I", len(packed)) + packed)
        os.rename(self.payloads_path + ".new", self.payloads_path)

    def payloads(self):
        found = []
        with open(self.payloads_path, "rb") as file:
            while size := file.read(4):
                found.append(msgpack.unpackb(file.read(struct.unpack("<I", size)[0])))
        return found
