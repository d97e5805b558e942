"""The Python package: the index engine in process, filters as expressions, and the client against a real node."""

import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import uuid

import numpy

from harness import BIN, TOP, Node, kill, wait_until

sys.path.insert(0, os.path.join(TOP, "tools", "python"))
os.environ.setdefault("SKERRY_LIB_DIR", os.path.join(os.path.dirname(BIN), "lib"))
import skerry    # noqa: E402

DIM = 16


def rows(count, seed=1, dim=DIM):
    return numpy.random.default_rng(seed).standard_normal((count, dim), dtype=numpy.float32)


def nearest(vectors, query, count):
    """Row numbers by cosine, best first."""
    scores = vectors @ query / numpy.linalg.norm(vectors, axis=1) / numpy.linalg.norm(query)
    return numpy.argsort(-scores)[:count].tolist()


class IndexTest(unittest.TestCase):
    """No node is needed."""

    def test_neighbours_are_those_of_a_full_comparison(self):
        vectors, queries = rows(3000, dim=32), rows(20, 2, dim=32)
        for metric in ("l2", "ip", "cosine"):
            for kind in ("flat", "hnsw"):
                with self.subTest(metric=metric, index=kind), skerry.Index(dim=32, metric=metric, index=kind) as index:
                    index.add(numpy.arange(3000), vectors)
                    ids, scores = index.search(queries, k=10, ef=200)
                    if metric == "l2":
                        wanted = numpy.linalg.norm(vectors[None] - queries[:, None], axis=2)
                    else:
                        wanted = -(queries @ vectors.T)
                        if metric == "cosine":
                            wanted /= numpy.linalg.norm(vectors, axis=1)[None] * numpy.linalg.norm(queries, axis=1)[:, None]
                    best = numpy.argsort(wanted, axis=1)[:, :10]
                    found = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(ids, best))
                    self.assertGreaterEqual(found, 190)
                    exact = numpy.take_along_axis(wanted, best, 1) * (1 if metric == "l2" else -1)
                    numpy.testing.assert_allclose(scores[:, 0], exact[:, 0], rtol=0.02, atol=0.02)

    def test_rows_are_replaced_and_removed_and_missing_ones_show(self):
        with skerry.Index(dim=4, index="flat") as index:
            index.add([1, 2], [[1, 0, 0, 0], [0, 1, 0, 0]])
            index.add([2], [[0, 0, 1, 0]])
            self.assertEqual(len(index), 2)
            self.assertEqual(index.remove([1, 99]), 1)
            ids, scores = index.search([0, 0, 1, 0], k=3)
            self.assertEqual(ids.tolist(), [[2, skerry.NO_ID, skerry.NO_ID]])
            self.assertTrue(numpy.isnan(scores[0, 1]))
            self.assertGreater(index.memory_bytes, 0)

    def test_a_saved_index_is_loaded_as_it_was(self):
        vectors = rows(1000)
        with tempfile.TemporaryDirectory() as folder, skerry.Index(dim=DIM, metric="cosine", m=8) as index:
            path = os.path.join(folder, "index")
            index.add(numpy.arange(1000), vectors)
            index.save(path)
            with skerry.Index.load(path) as again:
                self.assertEqual((again.dim, again.metric, again.kind, len(again)), (DIM, "cosine", "hnsw", 1000))
                numpy.testing.assert_array_equal(index.search(vectors[:5], k=3)[0], again.search(vectors[:5], k=3)[0])
            with open(path, "r+b") as file:
                file.seek(os.path.getsize(path) // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))
            with self.assertRaises((ValueError, skerry.IndexEngineError)):
                skerry.Index.load(path)

    def test_a_filter_is_a_list_of_ids_or_a_mask_and_never_short(self):
        vectors, queries = rows(2000, dim=32), rows(5, 2, dim=32)
        for first in (0, 10**12):    # ids that are rows, and others
            with skerry.Index(dim=32, metric="l2", keep_vectors=True) as index:
                index.add(numpy.arange(2000) + first, vectors)
                allowed = numpy.arange(0, 2000, 7)
                wanted = allowed[numpy.argsort(numpy.linalg.norm(vectors[allowed][None] - queries[:, None], axis=2))[:, :10]]
                prepared = index.filter(allowed + first)
                self.assertEqual(len(prepared), len(allowed))
                for given in (allowed + first, prepared, (allowed + first).astype(numpy.uint64)):
                    numpy.testing.assert_array_equal(index.search(queries, filter=given)[0], wanted + first)
                if first == 0:
                    mask = numpy.zeros(2000, dtype=bool)
                    mask[allowed] = True
                    numpy.testing.assert_array_equal(index.search(queries, filter=mask)[0], wanted)
                index.remove(allowed[:-3] + first)    # the prepared one follows
                self.assertEqual(len(prepared), 3)
                ids = index.search(queries, filter=prepared)[0]
                self.assertEqual(set(ids[0].tolist()), {int(i) + first for i in allowed[-3:]} | {int(skerry.NO_ID)})
                self.assertEqual(index.search(queries, filter=[])[0][0, 0], skerry.NO_ID)
                with skerry.Index(dim=32) as other, self.assertRaisesRegex(ValueError, "another index"):
                    other.search(queries, filter=prepared)

    def test_vectors_in_a_file_make_scores_exact_and_are_found_again(self):
        vectors = rows(1000)
        with tempfile.TemporaryDirectory() as folder:
            path, vectors_path = os.path.join(folder, "index"), os.path.join(folder, "vectors")
            with skerry.Index(dim=DIM, vectors_path=vectors_path) as index:
                index.add(numpy.arange(1000), vectors)
                index.save(path)
                with self.assertRaisesRegex(skerry.IndexEngineError, "open in another index"):
                    skerry.Index.load(path)
                bytes_without = index.memory_bytes
            with skerry.Index(dim=DIM, keep_vectors=True) as index:
                index.add(numpy.arange(1000), vectors)
                self.assertGreater(index.memory_bytes, bytes_without + 900 * DIM * 4)
            with self.assertRaisesRegex(skerry.IndexEngineError, "not empty"):
                skerry.Index(dim=DIM, vectors_path=vectors_path)
            os.rename(vectors_path, vectors_path + "2")
            with self.assertRaisesRegex(skerry.IndexEngineError, "No such file"):
                skerry.Index.load(path)
            with skerry.Index.load(path, vectors_path=vectors_path + "2") as index:
                scores = index.search(vectors[:5], k=2)[1]
                exact = numpy.sort(numpy.linalg.norm(vectors[None] - vectors[:5, None], axis=2), axis=1)[:, 1]
                numpy.testing.assert_allclose(scores[:, 1], exact, rtol=1e-5)

    def test_what_is_not_there_is_said_by_name(self):
        with self.assertRaisesRegex(ValueError, '"ivf", want flat, hnsw, ivf_flat, ivf_pq or hybrid'):
            skerry.Index(dim=8, index="ivf")
        with self.assertRaisesRegex(ValueError, '"quick", want balanced, speed or memory'):
            skerry.Index(dim=8, profile="quick")
        with self.assertRaises(ValueError):
            skerry.Index(dim=0)
        with skerry.Index(dim=4) as index:
            with self.assertRaisesRegex(ValueError, r"want \(n, 4\)"):
                index.add([1], [[1, 2, 3]])
            with self.assertRaises(ValueError):
                index.add([-1], [[1, 2, 3, 4]])
            with self.assertRaises(ValueError):
                index.add([1], [[1, 2, 3, float("nan")]])


class FilterTest(unittest.TestCase):
    def test_expressions_are_filters_of_the_protocol(self):
        a, b = skerry.field("a"), skerry.field("b.c")
        match_a = {"key": "a", "match": 1}
        for condition, wanted in (
                (a == 1, {"must": [match_a]}),
                (a != 1, {"must_not": [match_a]}),
                ((a == 1) & (b > 2) & (b <= 5), {"must": [match_a, {"key": "b.c", "range": {"gt": 2}},
                                                           {"key": "b.c", "range": {"lte": 5}}]}),
                ((a == 1) | a.any([2, 3]), {"should": [match_a, {"key": "a", "any": [2, 3]}]}),
                (~((a == 1) | b.exists()), {"must_not": [{"should": [match_a, {"key": "b.c", "exists": True}]}]}),
                ((a == 1) & ~(a == 1), {"must": [match_a, {"must_not": [match_a]}]}),
                (skerry.ids([1, "x"]) & b.range(gte=1, lt=2), {"must": [{"ids": [1, "x"]},
                                                                        {"key": "b.c", "range": {"gte": 1, "lt": 2}}]}),
                (a.geo_radius(60.1, 24.9, 500), {"must": [{"key": "a", "geo_radius": {
                    "center": {"lat": 60.1, "lon": 24.9}, "radius_m": 500}}]}),
                (a.geo_box((1, 2), (3, 4)), {"must": [{"key": "a", "geo_box": {
                    "min": {"lat": 1, "lon": 2}, "max": {"lat": 3, "lon": 4}}}]})):
            self.assertEqual(condition.to_dict(), wanted)

    def test_python_s_own_and_is_refused_rather_than_misread(self):
        with self.assertRaises(TypeError):
            bool((skerry.field("a") == 1) and (skerry.field("b") == 2))
        with self.assertRaises(TypeError):
            (skerry.field("a") == 1) & 5


class PackageTest(unittest.TestCase):
    def test_it_installs_from_the_tree_without_a_network(self):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "tree", "tools", "python")
            shutil.copytree(os.path.join(TOP, "tools", "python"), source,
                            ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
            environment = os.path.join(folder, "venv")
            subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", environment], check=True,
                           capture_output=True, timeout=120)
            python = os.path.join(environment, "bin", "python")
            done = subprocess.run([python, "-m", "pip", "install", "--no-build-isolation", "--no-index", "--no-deps", source],
                                  capture_output=True, text=True, timeout=180, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            code = ("import skerry, os; print(os.path.dirname(skerry.__file__)); "
                    "print(open(os.path.join(os.path.dirname(skerry.__file__), '_build_dir.txt')).read().strip()); "
                    "assert os.path.exists(os.path.join(os.path.dirname(skerry.__file__), 'py.typed')); "
                    "print(len(skerry.Index(dim=4)))")
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=folder)
            self.assertEqual(done.returncode, 0, done.stderr)
            where, remembered, count = done.stdout.split()
            self.assertTrue(where.startswith(environment), where)
            self.assertEqual(remembered, os.path.join(folder, "tree", "build", "release", "lib"))
            self.assertEqual(count, "0")

    def test_a_library_that_is_not_there_is_looked_for_in_words(self):
        done = subprocess.run([sys.executable, "-c", "import skerry; skerry.Index(dim=4)"], capture_output=True, text=True,
                              env={**os.environ, "SKERRY_LIB_DIR": "/nowhere",
                                   "PYTHONPATH": os.path.join(TOP, "tools", "python")}, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/nowhere/libskerry_index.so", done.stderr)
        self.assertIn("SKERRY_LIB_DIR", done.stderr)

    def test_a_folder_without_a_node_is_unreachable(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaises(skerry.Unreachable) as caught:
                skerry.connect(folder, connect_deadline_ms=300)
            self.assertIsInstance(caught.exception, ConnectionError)


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().start()
        cls.db = skerry.connect(cls.node.dir)
        cls.vectors = rows(500)
        cls.docs = cls.db.create_collection("docs", dim=DIM, metric="cosine", payload={"kind": "keyword", "n": "integer",
                                                                                       "at": "datetime"})
        began = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
        cls.docs.upsert(numpy.arange(500), cls.vectors,
                        [{"kind": "even" if n % 2 == 0 else "odd", "n": n, "at": began + datetime.timedelta(days=n)}
                         for n in range(500)])

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, "db"):
            cls.db.close()
        cls.node.destroy()

    def made(self, name, **settings):
        collection = self.db.create_collection(name, **{"dim": DIM, "metric": "l2", **settings})
        self.addCleanup(lambda: collection.drop())
        return collection

    def test_a_search_finds_the_nearest_with_their_payloads(self):
        hits = self.docs.search(self.vectors[7], limit=10, exact=True)
        self.assertEqual([hit.id for hit in hits], nearest(self.vectors, self.vectors[7], 10))
        self.assertAlmostEqual(hits[0].score, 1.0, places=3)
        self.assertEqual(hits[0].payload["n"], 7)
        self.assertIsNone(hits[0].vector)
        hit = self.docs.search(self.vectors[7].tolist(), limit=1, with_payload=["kind"], with_vector=True)[0]
        self.assertEqual(hit.payload, {"kind": "odd"})
        numpy.testing.assert_array_equal(hit.vector, self.vectors[7])
        like = self.docs.search(like=7, limit=9, exact=True, with_payload=False)
        self.assertEqual([one.id for one in like], [one.id for one in hits[1:]])
        self.assertIsNone(like[0].payload)

    def test_many_queries_give_arrays(self):
        ids, scores = self.docs.search_many(self.vectors[:40], limit=5, exact=True)
        self.assertEqual((ids.shape, scores.shape, ids.dtype), ((40, 5), (40, 5), numpy.uint64))
        self.assertEqual(ids[:, 0].tolist(), list(range(40)))
        few, few_scores = self.docs.search_many(self.vectors[:2], limit=5, filter=skerry.ids([3, 4]), exact=True)
        self.assertEqual(sorted(few[0, :2].tolist()), [3, 4])
        self.assertTrue(numpy.isnan(few_scores[0, 2:]).all())
        self.assertEqual(few[0, 2], skerry.NO_ID)

    def test_filters_choose(self):
        kind, n = skerry.field("kind"), skerry.field("n")
        for condition, wanted in ((kind == "even", 250), ((kind == "odd") & (n < 10), 5), ((n < 3) | (n >= 498), 5),
                                  (~(kind == "even") & n.any([1, 2, 3]), 2), (n.range(gte=5, lt=7), 2),
                                  (skerry.field("none").exists(), 0), (skerry.field("at") < datetime.date(2026, 1, 3), 2),
                                  ({"must_not": [{"key": "n", "range": {"gte": 1}}]}, 1)):
            self.assertEqual(self.docs.count(condition), wanted, condition)
        hits = self.docs.search(self.vectors[4], limit=3, filter=kind == "odd")
        self.assertTrue(all(hit.payload["kind"] == "odd" for hit in hits))

    def test_ids_of_every_kind_come_back(self):
        collection = self.made("ids")
        key = uuid.UUID("0191F2A0-7B3C-7000-8000-00000000ABCD")
        ids = [5, "5", "caf\u00e9", key, 2**64 - 1]
        self.assertEqual(collection.upsert(ids, rows(5), [{"n": n} for n in range(5)]), 5)
        wanted = [5, "5", "caf\u00e9", str(key), 2**64 - 1]
        self.assertEqual([record.id for record in collection.get(ids)], wanted)
        self.assertEqual(collection.get(key).payload, {"n": 3})
        self.assertIsNone(collection.get("nobody"))
        self.assertEqual({record.id for record in collection.scroll(page=2)}, set(wanted))
        found, _ = collection.search_many(rows(5), limit=5, exact=True)
        self.assertEqual(found.dtype, object)
        self.assertEqual([row[0] for row in found], wanted)
        self.assertEqual(collection.delete([key, "5", "none"]), 2)
        self.assertEqual(len(collection), 3)
        self.assertTrue(self.db.collection("not made yet"))

    def test_a_large_upsert_is_sent_in_parts(self):
        collection = self.made("large", metric="l2", index="flat")
        vectors = rows(23456, 5)
        self.assertEqual(collection.upsert(numpy.arange(23456), vectors), 23456)
        self.assertEqual(collection.count(), 23456)
        record = collection.get(23455, with_vector=True)
        numpy.testing.assert_array_equal(record.vector, vectors[-1])
        vectors[22222, 3] = numpy.inf
        with self.assertRaises(skerry.Invalid) as caught:
            collection.upsert(numpy.arange(23456), vectors)
        self.assertEqual(caught.exception.field, "vectors")
        self.assertEqual(caught.exception.done, 20000)

    def test_scroll_gives_each_record_once_in_order(self):
        self.assertEqual([record.id for record in self.docs.scroll(page=37)], list(range(500)))
        odd = [record.payload["n"] for record in self.docs.scroll(filter=skerry.field("kind") == "odd", page=100)]
        self.assertEqual(odd, list(range(1, 500, 2)))
        first = next(self.docs.scroll(with_payload=False, with_vector=True))
        self.assertIsNone(first.payload)
        numpy.testing.assert_array_equal(first.vector, self.vectors[0])

    def test_payloads_are_changed_without_their_vectors(self):
        collection = self.made("payloads")
        collection.upsert([1, 2], rows(2), [{"a": 1, "b": 2}, {"a": 5}])
        self.assertEqual(collection.set_payload({"b": None, "c": numpy.int64(3)}, ids=1), 1)
        self.assertEqual(collection.get(1).payload, {"a": 1, "c": 3})
        self.assertEqual(collection.set_payload({"z": True}, filter=skerry.field("a") == 5, mode="replace"), 1)
        self.assertEqual(collection.get(2).payload, {"z": True})

    def test_several_vector_fields(self):
        collection = self.db.create_collection("two", vectors={"text": {"dim": 4, "metric": "cosine"},
                                                               "image": {"dim": 2, "metric": "l2", "index": "flat"}})
        self.addCleanup(collection.drop)
        text, image = rows(10, 1, 4), rows(10, 2, 2)
        collection.upsert(range(10), {"text": text, "image": image})
        self.assertEqual(collection.search(image[3], using="image", limit=1, exact=True)[0].id, 3)
        record = collection.get(4, with_vector=True)
        numpy.testing.assert_array_equal(record.vector["text"], text[4])
        with self.assertRaises(skerry.Invalid):
            collection.search(image[3])

    def test_a_record_with_a_time_to_live_goes(self):
        collection = self.made("ttl")
        collection.upsert([1, 2, 3], rows(3), ttl_s=[1, None, 3600])
        self.assertEqual(collection.count(), 3)
        wait_until(lambda: collection.get(1) is None, 5, "a record is gone after its time")
        self.assertEqual(collection.count(), 2)

    def test_errors_are_classes_with_code_and_field(self):
        with self.assertRaises(skerry.NotFound) as caught:
            self.db.collection("dosc").count()
        self.assertEqual((caught.exception.code, caught.exception.name, caught.exception.field),
                         (12, "not_found", "collection"))
        self.assertIn("'docs'", str(caught.exception))
        with self.assertRaises(skerry.Exists):
            self.db.create_collection("docs", dim=4)
        with self.assertRaises(skerry.DimMismatch):
            self.docs.search([1, 2, 3])
        with self.assertRaises(skerry.UnknownField) as caught:
            self.db.call("count", collection="docs", filtre={})
        self.assertIn("'filter'", str(caught.exception))
        with self.assertRaises(ValueError):
            self.docs.upsert([1, 2], rows(3))
        with self.assertRaises(ValueError):
            self.docs.delete()
        with self.assertRaises(skerry.TooLarge):
            self.docs.search(self.vectors[0], limit=10001)

    def test_a_write_without_an_answer_is_of_unknown_outcome(self):
        workers = self.node.pids()["shard-worker"]
        for pid in workers:
            kill(pid, signal.SIGSTOP)
        try:
            with self.assertRaises(skerry.OutcomeUnknown) as caught:
                self.docs.upsert([1], self.vectors[1:2], [{"kind": "odd", "n": 1}], deadline_ms=400)
            self.assertIsInstance(caught.exception, (skerry.Deadline, skerry.Unavailable))
            with self.assertRaises((skerry.Deadline, skerry.Unavailable)) as caught:
                self.docs.count(deadline_ms=400)
            self.assertNotIsInstance(caught.exception, skerry.OutcomeUnknown)
        finally:
            for pid in workers:
                kill(pid, signal.SIGCONT)
        began = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
        wait_until(lambda: self.serves(), 15, "the node serves again")
        self.docs.upsert([1], self.vectors[1:2], [{"kind": "odd", "n": 1, "at": began}])

    def serves(self):
        try:
            return self.docs.count(deadline_ms=1000) == 500
        except (skerry.Deadline, skerry.Unavailable):
            return False

    def test_threads_share_a_client(self):
        collection = self.made("threads", index="flat")
        wrong = []

        def work(number):
            try:
                for turn in range(20):
                    id_ = number * 1000 + turn
                    collection.upsert(id_, rows(1, id_ + 1)[0], {"n": id_})
                    hits = collection.search(rows(1, id_ + 1)[0], limit=1, exact=True)
                    if hits[0].id != id_ or hits[0].payload["n"] != id_:
                        wrong.append((id_, hits))
            except Exception as error:    # pylint: disable=broad-except
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertEqual(len(collection), 120)

    def test_a_node_is_looked_at_and_keys_are_kept(self):
        self.assertEqual(self.db.node_key, self.node.facts()["public_key"])
        self.assertEqual(self.db.ping()["version"], self.db.node_version)
        self.assertIn("docs", str(self.db.list_collections()))
        self.assertEqual(self.docs.describe()["records"], 500)
        self.docs.wait()
        import zmq
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self.db.create_key("python", public, "read")
        endpoint = self.node.facts()["endpoints"]["client_tcp"].replace("0.0.0.0", "127.0.0.1").replace("*", "127.0.0.1")
        with skerry.connect(endpoint, server_key=self.db.node_key, key=(public, secret)) as reader:
            self.assertEqual(reader.collection("docs").count(), 500)
            with self.assertRaises(skerry.Forbidden):
                reader.collection("docs").delete([1])
        self.assertIn("python", [key["name"] for key in self.db.list_keys()])
        self.db.revoke_key("python")

    def test_a_snapshot_is_restored(self):
        collection = self.made("kept")
        collection.upsert(range(20), rows(20))
        collection.snapshot("python")
        collection.drop()
        self.assertEqual(self.db.restore("kept", "python").count(), 20)

    def test_a_closed_client_says_so(self):
        db = skerry.connect(self.node.dir)
        db.close()
        db.close()
        began = time.monotonic()
        with self.assertRaises(skerry.Invalid):
            db.ping()
        self.assertLess(time.monotonic() - began, 1)


if __name__ == "__main__":
    unittest.main()
