"""Every kind of index through a real node: made, searched with what it takes, altered in place under load and kill -9."""

import random
import threading
import time
import unittest

from harness import Client
from surface import Surface, floats

DIM, COUNT = 16, 6000
KINDS = [{"type": "flat"}, {"type": "hnsw"}, {"type": "hnsw", "profile": "speed"}, {"type": "hnsw", "profile": "memory", "m": 8},
         {"type": "ivf_flat", "nlist": 32}, {"type": "ivf_pq", "pq_m": 8, "refine": 8}, {"type": "hybrid"}]
HAS_LISTS = ("ivf_flat", "ivf_pq", "hybrid")


def vectors_of(serials):
    return [[random.Random(f"{serial}.{part}").gauss(serial % 7, 1) for part in range(DIM)] for serial in serials]


def packed(rows):
    return floats(*(number for row in rows for number in row))


class IndexTest(Surface):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.rows = vectors_of(range(COUNT))
        cls.queries = vectors_of(range(COUNT, COUNT + 20))

    def fill(self, name, index, count=COUNT):
        self.ok("create_collection", collection=name, vectors={"dim": DIM, "metric": "l2", "index": index})
        for at in range(0, count, 2000):
            self.ok("upsert", collection=name, ids=list(range(at, at + 2000)), vectors=packed(self.rows[at:at + 2000]))

    def ready(self, name):
        self.ok("wait", collection=name, deadline_ms=60000, **{"for": "indexed"})

    def recall(self, name, **fields):
        """Of ten neighbours; and whether all answers called themselves exact."""
        truth = self.ok("search", collection=name, vectors=packed(self.queries), exact=True)["hits"]
        reply = self.ok("search", collection=name, vectors=packed(self.queries), **fields)
        found = sum(len({hit["id"] for hit in got} & {hit["id"] for hit in want}) for got, want in zip(reply["hits"], truth))
        return found / (10 * len(truth)), reply["exact"]

    def test_every_kind_is_made_described_searched_and_survives_kill_9(self):
        for number, index in enumerate(KINDS):
            self.fill(f"kind{number}", index)
        for number, index in enumerate(KINDS):
            name = f"kind{number}"
            self.ready(name)
            described = self.ok("describe_collection", collection=name)
            self.assertEqual({key: described["vectors"]["index"][key] for key in index}, index)
            self.assertEqual(described["index"][0]["type"], index["type"])
            self.assertEqual(described["index"][0]["note"], "", index)
            with self.subTest(index=index):
                how = {"nprobe": 24} if index["type"] in HAS_LISTS else {"ef": 200}
                self.assertGreaterEqual(self.recall(name, **how)[0], 0.9)
                self.assertGreaterEqual(self.recall(name)[0], 0.6)
                self.assertGreaterEqual(self.recall(name, recall=0.95)[0], 0.85)
        self.node.kill_everything()
        self.node.start()
        for number, index in enumerate(KINDS):
            name = f"kind{number}"
            self.assertEqual(self.ok("count", collection=name)["count"], COUNT)
            self.ready(name)
            how = {"nprobe": 24} if index["type"] in HAS_LISTS else {"ef": 200}
            self.assertGreaterEqual(self.recall(name, **how)[0], 0.9, index)

    def test_a_parameter_of_another_index_is_refused_with_words(self):
        self.make("graph")
        self.ok("create_collection", collection="lists", vectors={"dim": 2, "metric": "l2", "index": "ivf_flat"})
        self.ok("create_collection", collection="plain", vectors={"dim": 2, "metric": "l2", "index": "flat"})
        for name in ("graph", "lists", "plain"):
            self.ok("upsert", collection=name, ids=[1], vectors=floats(0, 1))
        self.refused("invalid", ["nprobe", "hnsw", "give ef"], "search", collection="graph", vector=[0, 0], nprobe=4)
        self.refused("invalid", ["ef", "ivf_flat", "give nprobe"], "search", collection="lists", vector=[0, 0], ef=4)
        self.refused("invalid", ["nprobe", "flat"], "search", collection="plain", vector=[0, 0], nprobe=4)
        for name in ("graph", "lists", "plain"):
            self.refused("invalid", "one of ef, nprobe and recall", "search", collection=name, vector=[0, 0], ef=4, recall=0.9)
            self.refused("invalid", "0.5 to 0.999", "search", collection=name, vector=[0, 0], recall=1)
            self.assertEqual(len(self.ok("search", collection=name, vector=[0, 0], recall=0.9)["hits"]), 1)
        self.ok("search", collection="plain", vector=[0, 0], ef=4)
        self.ok("search", collection="lists", vector=[0, 0], nprobes=4)
        self.refused("invalid", ["nlist", "ivf_flat", "hnsw"], "alter_collection", collection="graph", index={"nlist": 4})
        self.refused("invalid", ["pq_m", "ivf_pq"], "alter_collection", collection="lists", index={"pq_m": 2})
        self.refused("invalid", "profile", "alter_collection", collection="lists", index={"profile": "speed"})
        self.refused("invalid", ["m", "hnsw"], "create_collection", collection="x",
                     vectors={"dim": 2, "metric": "l2", "index": {"type": "ivf_pq", "m": 8}})
        self.refused("invalid", "even", "create_collection", collection="x",
                     vectors={"dim": 8, "metric": "l2", "index": {"type": "ivf_pq", "pq_m": 3}})
        self.refused("unknown_field", "nlist", "create_collection", collection="x",
                     vectors={"dim": 2, "metric": "l2", "index": {"type": "ivf_flat", "n_list": 2}})

    def test_an_index_is_altered_in_place_while_it_is_read_and_written(self):
        self.fill("moved", "hnsw")
        self.ready("moved")
        failures, done, searches, added = [], threading.Event(), [0], []

        def search():
            client = Client(self.node.endpoint)
            try:
                while not done.is_set():
                    at = searches[0] % COUNT
                    hits = client.call("search", collection="moved", vector=self.rows[at], limit=1)["hits"]
                    if not hits or hits[0]["score"] > 1e-3:
                        failures.append((at, hits))
                    searches[0] += 1
            except Exception as error:    # pylint: disable=broad-except
                failures.append(error)
            client.close()

        def write():
            client = Client(self.node.endpoint)
            try:
                while not done.is_set():
                    serial = 100000 + len(added)
                    row = vectors_of([serial])[0]
                    client.call("upsert", collection="moved", ids=[serial], vectors=[row])
                    hits = client.call("search", collection="moved", vector=row, limit=1)["hits"]
                    if [hit["id"] for hit in hits] != [serial]:
                        failures.append((serial, hits))
                    added.append(serial)
            except Exception as error:    # pylint: disable=broad-except
                failures.append(error)
            client.close()

        threads = [threading.Thread(target=one) for one in (search, write)]
        for one in threads:
            one.start()
        try:
            for index in KINDS[1:] + [{"type": "flat"}, {"type": "hnsw", "m": 12}, {"m": 20}, {"ef_construction": 60}]:
                self.ok("alter_collection", collection="moved", index=index)
                self.ready("moved")
                state = self.ok("describe_collection", collection="moved")["index"][0]
                self.assertEqual((state["state"], state["note"]), ("flat" if index.get("type") == "flat" else "ready", ""), index)
                self.assertGreaterEqual(state["done"], COUNT)
                self.assertEqual(failures, [], index)
        finally:
            done.set()
            for one in threads:
                one.join()
        self.assertEqual(failures, [])
        self.assertGreater(searches[0], 10)
        self.assertGreater(len(added), 10)
        # in the middle of another change: a power cut
        self.ok("alter_collection", collection="moved", index="hybrid")
        time.sleep(0.05)
        self.node.kill_everything()
        self.node.start()
        self.assertEqual(self.ok("count", collection="moved")["count"], COUNT + len(added))
        self.ready("moved")
        self.assertEqual(self.ok("describe_collection", collection="moved")["vectors"]["index"]["type"], "hybrid")
        self.assertGreaterEqual(self.recall("moved", nprobe=24)[0], 0.9)

    def test_the_command_line_takes_every_index(self):
        self.node.skerry("collection", "create", "cli", "--dim", str(DIM), "--metric", "l2", "--index", "ivf_pq", "--nlist", "16",
                         "--pq-m", "8", "--refine", "3")
        index = self.ok("describe_collection", collection="cli")["vectors"]["index"]
        self.assertEqual(index, {"type": "ivf_pq", "nlist": 16, "pq_m": 8, "refine": 3})
        self.ok("upsert", collection="cli", ids=list(range(50)), vectors=packed(self.rows[:50]))
        self.assertIn("11", self.node.skerry("search", "cli", "--id", "4", "--limit", "50", "--nprobe", "16").stdout)
        self.node.skerry("search", "cli", "--id", "4", "--recall", "0.9")
        self.assertEqual(self.node.skerry("search", "cli", "--id", "4", "--ef", "9", check=False).returncode, 1)
        both = self.node.skerry("search", "cli", "--id", "4", "--ef", "9", "--recall", "0.9", check=False)
        self.assertEqual((both.returncode, "one of --ef" in both.stderr), (2, True))
        self.node.skerry("collection", "alter", "cli", "--index", "hnsw", "--profile", "memory", "--m", "8")
        index = self.ok("describe_collection", collection="cli")["vectors"]["index"]
        self.assertEqual((index["type"], index["m"], index["profile"]), ("hnsw", 8, "memory"))
        self.node.skerry("collection", "create", "cli2", "--vector", "a:4", "--vector", "b:4", "--index", "ivf_flat")
        self.node.skerry("collection", "alter", "cli2", "--vector", "b", "--nlist", "0")
        self.node.skerry("collection", "alter", "cli2", "--vector", "b", "--index", "hybrid")
        vectors = self.ok("describe_collection", collection="cli2")["vectors"]
        self.assertEqual((vectors["a"]["index"]["type"], vectors["b"]["index"]["type"]), ("ivf_flat", "hybrid"))
        self.assertEqual(self.node.skerry("collection", "alter", "cli2", check=False).returncode, 2)


if __name__ == "__main__":
    unittest.main()
