"""The public surface, in the order of its page: each name, alias, default, limit, reply field and error as a
client sees it that has nothing of ours. Search and filters: test_surface_search.py."""

import math
import os
import time
import unittest
import unittest.mock
import urllib.error
import urllib.request

import msgpack
import zmq

from harness import wait_until
from surface import Surface, floats


class SurfaceTest(Surface):
    # ---- Frames ----

    def test_ping_and_the_envelope(self):
        reply = self.ok("ping")
        self.assertEqual(reply["node"], self.node.facts()["public_key"])
        self.assertRegex(reply["version"], r"^\d+\.\d+\.\d+$")
        self.assertIsInstance(reply["took_us"], int)
        for id_ in (0, 2**64 - 1, "x", "y" * 64, None):
            self.assertEqual(self.raw(msgpack.packb({"v": 1, "op": "ping", "id": id_})),
                             {**reply, "id": id_, "took_us": unittest.mock.ANY})
        self.assertEqual(self.raw(msgpack.packb({"v": 1, "op": "ping"}))["id"], None)
        self.assertTrue(self.ok("ping", deadline_ms=100)["ok"])

    def test_with_or_without_a_delimiter(self):
        frame = msgpack.packb({"v": 1, "op": "ping", "id": 1})
        self.assertEqual(len(self.raw([frame], parts=True)), 1)
        reply = self.raw([b"", frame], parts=True)
        self.assertEqual((len(reply), reply[0]), (2, b""))
        with zmq.Context.instance().socket(zmq.REQ) as req:
            req.linger = 0
            req.connect(self.node.endpoint)
            req.send(frame)
            self.assertTrue(req.poll(5000))
            self.assertTrue(msgpack.unpackb(req.recv())["ok"])

    def test_what_is_no_request_gets_an_error_and_the_connection_lives_on(self):
        for frame, id_ in ((b"", None), (b"\xc1", None), (b"hello", None), (msgpack.packb([1, 2]), None), (msgpack.packb({}), None),
                           (msgpack.packb({"v": 1, "op": "ping", "id": -1}), None), (msgpack.packb({"v": 1, "op": "ping", "id": 1.5}), None),
                           (msgpack.packb({"v": 1, "op": "ping", "id": "x" * 65}), None),
                           (msgpack.packb({"v": 1, "op": "ping", "id": 8})[:-1], None),
                           (msgpack.packb({"v": 2, "op": "ping", "id": 9}), 9), (msgpack.packb({"op": "ping", "id": 9}), 9),
                           (msgpack.packb({"v": 1, "id": 9}), 9), (msgpack.packb({"v": 1, "op": 5, "id": 9}), 9),
                           (msgpack.packb({"v": 1, "op": "pnig", "id": 9}), 9), (msgpack.packb({"v": 1, "op": "map_get", "id": 9}), 9),
                           (msgpack.packb({"v": 1, "op": "ping", "id": 9}) + b"\x01", None)):
            reply = self.raw(frame)
            with self.subTest(frame=frame):
                self.assertFalse(reply["ok"], reply)
                self.assertIn(reply["error"]["name"], ("invalid", "version", "forbidden"))
                if id_ is not None:
                    self.assertEqual(reply["id"], id_)
        self.assertEqual(self.raw(msgpack.packb({"v": 2, "op": "ping", "id": 9}))["error"]["name"], "version")
        self.refused("invalid", "ping", "pnig")
        self.ok("ping")

    def test_unknown_fields_and_parameters_name_the_closest(self):
        self.make("unknown")
        for words, op, fields in ((("limt", "limit"), "search", {"vector": [0, 0], "limt": 3}),
                                  (("filtr", "filter"), "count", {"filtr": {}}),
                                  (("metrik", "metric"), "create_collection", {"vectors": {"dim": 2, "metrik": "l2"}}),
                                  (("mm", "'m'"), "create_collection", {"vectors": {"dim": 2, "index": {"type": "hnsw", "mm": 4}}}),
                                  (("paylod", "payload"), "upsert", {"records": [{"id": 1, "vector": [0, 0], "paylod": {}}]}),
                                  (("mst", "must"), "count", {"filter": {"mst": []}}),
                                  (("mach", "match"), "count", {"filter": {"must": [{"key": "a", "mach": 1}]}}),
                                  (("gtt", "gt"), "count", {"filter": {"must": [{"key": "a", "range": {"gtt": 1}}]}})):
            with self.subTest(op=op, fields=fields):
                self.refused("unknown_field", words, op, collection="unknown", **fields)
        self.refused("not_found", ("collection", "'unknown'"), "count", collection="unknwn")

    # ---- Collections ----

    def test_names_of_collections(self):
        for name in ("a", "0", "A.b-c_d", "z" * 64):
            self.make(name)
        for name in ("", "_a", ".a", "-a", "a/b", "a b", "ä", "..", "z" * 65):
            with self.subTest(name=name):
                reply = self.ask("create_collection", collection=name, vectors={"dim": 2, "metric": "l2"})
                self.assertIn(reply.get("error", {}).get("name"), ("invalid", "too_large"), reply)
                self.assertEqual(reply["error"]["field"], "collection")
        self.refused("exists", "collection", "create_collection", collection="a", vectors={"dim": 2, "metric": "l2"})
        listed = self.ok("list_collections")["collections"]
        self.assertLessEqual({"a", "0", "A.b-c_d", "z" * 64}, set(listed))
        self.assertEqual(listed, sorted(listed))
        self.ok("drop_collection", collection="0")
        self.assertNotIn("0", self.ok("list_collections")["collections"])
        self.refused("not_found", "collection", "drop_collection", collection="0")

    def test_aliases_of_a_vector_s_description(self):
        described = []
        for number, vectors in enumerate((
                {"dim": 3, "metric": "ip", "index": {"type": "hnsw", "m": 8, "ef_construction": 50}},
                {"size": 3, "distance": "Dot", "index": {"type": "hnsw", "M": 8, "ef_construct": 50}},
                {"dimension": 3, "distance": "dot", "index": {"type": "hnsw", "m": 8, "efConstruction": 50}})):
            self.ok("create_collection", collection=f"alias{number}", vectors=vectors)
            described.append(self.ok("describe_collection", collection=f"alias{number}")["vectors"])
        self.assertEqual(described[0]["dim"], 3)
        self.assertEqual(described[0]["metric"], "ip")
        self.assertEqual(described[0]["index"]["m"], 8)
        self.assertEqual(described[0]["index"]["ef_construction"], 50)
        self.assertEqual(described, described[:1] * 3)
        for number, (metric, kept) in enumerate((("Cosine", "cosine"), ("Euclid", "l2"), ("Dot", "ip"))):
            self.ok("create_collection", collection=f"metric{number}", vectors={"dim": 1, "distance": metric})
            self.assertEqual(self.ok("describe_collection", collection=f"metric{number}")["vectors"]["metric"], kept)
        self.refused("invalid", "dim", "create_collection", collection="twice", vectors={"dim": 2, "size": 2, "metric": "l2"})
        for name in ("dim", "size", "metric", "_x", "a b"):
            self.refused("invalid", ("vectors", name if name[0] in "dsm" else "a name has"), "create_collection", collection="namedby", vectors={name: {"dim": 2, "metric": "l2"}})

    def test_limits_of_a_collection(self):
        self.make("deep", dim=8192)
        self.ok("upsert", collection="deep", ids=[1], vectors=floats(*[1.0] * 8192))
        self.assertEqual(self.ids(collection="deep", vector=floats(*[1.0] * 8192)), [1])
        for dim, name in ((8193, "too_large"), (0, "invalid"), (-1, "invalid"), ("3", "invalid")):
            self.refused(name, "dim", "create_collection", collection="x", vectors={"dim": dim, "metric": "l2"})
        self.refused("invalid", "metric", "create_collection", collection="x", vectors={"dim": 2, "metric": "hamming"})
        self.refused("invalid", "payload", "create_collection", collection="x", vectors={"dim": 2, "metric": "l2"}, payload={"a": "text"})
        self.refused("invalid", "vectors", "create_collection", collection="x")
        self.refused("invalid", "shards", "create_collection", collection="x", vectors={"dim": 2, "metric": "l2"}, shards=0)

    def test_describe_collection(self):
        self.make("described", dim=4, payload={"a": "keyword", "b": "integer", "c": "float", "d": "bool", "e": "datetime", "f": "geo"}, shards=3)
        self.ok("upsert", collection="described", ids=list(range(1, 31)), vectors=floats(*[float(i) for i in range(120)]))
        reply = self.ok("describe_collection", collection="described")
        self.assertEqual(reply["payload"], {"a": "keyword", "b": "integer", "c": "float", "d": "bool", "e": "datetime", "f": "geo"})
        self.assertEqual((reply["records"], reply["shards"], reply["collection"]), (30, 3, "described"))
        self.assertEqual(reply["index"][0]["type"], "hnsw")
        self.assertIn(reply["index"][0]["state"], ("flat", "loading", "building", "ready"))
        self.assertEqual((reply["vectors"]["index"]["m"], reply["vectors"]["index"]["ef_construction"]), (16, 200))

    def test_alter_collection_adds_and_drops_fields(self):
        self.make("alter")
        self.ok("upsert", collection="alter", ids=[1, 2, 3], vectors=floats(0, 0, 1, 1, 2, 2), payloads=[{"w": "a"}, {"w": "b"}, {"w": 5}])
        by_w = {"must": [{"key": "w", "match": "a"}]}
        reply = self.ok("count", collection="alter", filter=by_w)
        self.assertEqual(reply["count"], 1)
        self.assertIn("w", reply["warning"])
        self.ok("alter_collection", collection="alter", payload={"w": "keyword"})
        self.assertEqual(self.ok("describe_collection", collection="alter")["payload"], {"w": "keyword"})
        wait_until(lambda: "warning" not in self.ok("count", collection="alter", filter=by_w), 5, "the field is indexed")
        self.assertEqual(self.ok("count", collection="alter", filter=by_w)["count"], 1)
        self.refused("invalid", "w", "upsert", collection="alter", ids=[4], vectors=floats(0, 0), payloads=[{"w": 7}])
        self.ok("alter_collection", collection="alter", payload={"w": None})
        self.assertEqual(self.ok("describe_collection", collection="alter")["payload"], {})
        self.assertIn("warning", self.ok("count", collection="alter", filter=by_w))
        self.ok("upsert", collection="alter", ids=[4], vectors=floats(0, 0), payloads=[{"w": 7}])
        self.ok("alter_collection", collection="alter", index={"ef_construction": 77})
        self.assertEqual(self.ok("describe_collection", collection="alter")["vectors"]["index"]["ef_construction"], 77)

    def test_a_memory_budget_is_an_answer(self):
        self.make("budget", dim=256, memory_bytes_max=2 << 20)
        self.assertEqual(self.ok("describe_collection", collection="budget")["memory_bytes_max"], 2 << 20)
        for first in range(0, 40000, 1000):
            reply = self.ask("upsert", collection="budget", ids=list(range(first, first + 1000)), vectors=floats(*[1.5] * 256) * 1000)
            if not reply["ok"]:
                break
        self.assertEqual(reply["error"]["name"], "out_of_memory", reply)
        self.ok("delete", collection="budget", ids=[0, 1, 2])
        self.ok("alter_collection", collection="budget", memory_bytes_max=1 << 30)
        self.ok("upsert", collection="budget", ids=[0], vectors=floats(*[1.5] * 256))

    # ---- Ids, upsert, get, delete ----

    def test_ids_of_all_kinds_come_back_in_their_form(self):
        self.make("ids")
        text = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
        ids = [0, 5, 2**64 - 1, "5", "x" * 64, text, "a b/ü"]
        self.ok("upsert", collection="ids", ids=ids, vectors=floats(*range(14)))
        given = [record["id"] for record in self.ok("get", collection="ids", ids=ids)["records"]]
        self.assertEqual(given, [0, 5, 2**64 - 1, "5", "x" * 64, text.lower(), "a b/ü"])
        scrolled = [record["id"] for record in self.ok("scroll", collection="ids")["records"]]
        self.assertEqual(scrolled, [0, 5, 2**64 - 1, text.lower(), "5", "a b/ü", "x" * 64])
        for id_ in ("", "x" * 65, -1, 1.5, None, True, b"bin"):
            with self.subTest(id=id_):
                self.assertFalse(self.ask("upsert", collection="ids", ids=[id_], vectors=floats(0, 0))["ok"])
        self.refused("invalid", ("ids", "row 1"), "upsert", collection="ids", ids=[9, -9], vectors=floats(0, 0, 1, 1))

    def test_columns_and_rows(self):
        self.make("forms")
        self.assertEqual(self.ok("upsert", collection="forms", ids=[1, 2], vectors=floats(1, 2, 3, 4), payloads=[{"a": 1}, None])["upserted"], 2)
        self.assertEqual(self.ok("upsert", collection="forms", ids=[3, 4], vectors=[[5, 6], [7.5, 8]])["upserted"], 2)
        self.assertEqual(self.ok("upsert", collection="forms", ids=[5], vectors=[floats(9, 10)], ttl_s=100)["upserted"], 1)
        self.assertEqual(self.ok("upsert", collection="forms", records=[{"id": 6, "vector": [1, 1], "payload": {"b": [1, "x", None, {"c": 1.5}]}},
                                                                       {"id": 7, "vector": floats(2, 2), "ttl_s": 50}])["upserted"], 2)
        self.assertEqual(self.ok("upsert", collection="forms", points=[{"id": 8, "vector": [1, 1]}])["upserted"], 1)
        records = self.ok("get", collection="forms", ids=[7, 99, 1, 6], with_payload=True, with_vectors=True)["records"]
        self.assertEqual([record and record["id"] for record in records], [7, None, 1, 6])
        self.assertEqual((records[2]["payload"], records[2]["vector"]), ({"a": 1}, floats(1, 2)))
        self.assertEqual(records[3]["payload"], {"b": [1, "x", None, {"c": 1.5}]})
        self.assertIn("version", records[0])
        plain = self.ok("get", collection="forms", ids=[1])["records"][0]
        self.assertNotIn("payload", plain)
        self.assertNotIn("vector", plain)
        self.assertEqual(self.ok("get", collection="forms", ids=[1], with_payload=["zz"])["records"][0]["payload"], {})
        self.ok("upsert", collection="forms", ids=[1], vectors=floats(0, 0))
        self.assertFalse(self.ok("get", collection="forms", ids=[1], with_payload=True)["records"][0]["payload"])
        self.assertEqual(self.ok("delete", collection="forms", ids=[1, 2, 99])["deleted"], 2)
        self.assertEqual(self.ok("delete", collection="forms", ids=[1, 2, 99])["deleted"], 0)
        self.assertEqual(self.ok("delete", collection="forms", filter={"must": [{"ids": [3, 4]}]})["deleted"], 2)
        self.assertEqual(self.ok("count", collection="forms")["count"], 4)

    def test_an_upsert_is_checked_whole_and_names_row_and_field(self):
        self.make("whole", payload={"n": "integer"}, shards=3)
        for name, words, fields in (
                ("dim_mismatch", "vectors", {"ids": [1, 2], "vectors": floats(1, 2, 3, 4, 5, 6)}),
                ("invalid", "vectors", {"ids": [1, 2], "vectors": floats(1, 2, 3)}),
                ("dim_mismatch", ("vectors", "row 1"), {"ids": [1, 2], "vectors": [[1, 2], [1, 2, 3]]}),
                ("invalid", ("vectors", "row 1"), {"ids": [1, 2], "vectors": floats(1, 2, math.nan, 1)}),
                ("invalid", ("vectors", "row 0"), {"ids": [1, 2], "vectors": [[math.inf, 1], [1, 2]]}),
                ("invalid", ("n", "payloads row 1"), {"ids": [1, 2], "vectors": floats(1, 2, 3, 4), "payloads": [{}, {"n": "x"}]}),
                ("invalid", "payloads", {"ids": [1, 2], "vectors": floats(1, 2, 3, 4), "payloads": [{}]}),
                ("invalid", "ttl_s", {"ids": [1, 2], "vectors": floats(1, 2, 3, 4), "ttl_s": [1]}),
                ("invalid", "ttl_s", {"ids": [1], "vectors": floats(1, 2), "ttl_s": -1}),
                ("invalid", "vectors", {"ids": [1]}), ("invalid", "ids", {"vectors": floats(1, 2)}), ("invalid", "records", {}),
                ("invalid", "records", {"ids": [1], "vectors": floats(1, 2), "records": [{"id": 1, "vector": [1, 2]}]}),
                ("invalid", "records row 1", {"records": [{"id": 1, "vector": [1, 2]}, {"id": 2}]}),
                ("too_large", ("payloads", "row 0"), {"ids": [1], "vectors": floats(1, 2), "payloads": [{"a": "x" * 65600}]})):
            with self.subTest(fields=str(fields)[:100]):
                self.refused(name, words, "upsert", collection="whole", **fields)
        self.assertEqual(self.ok("count", collection="whole")["count"], 0)
        self.ok("upsert", collection="whole", ids=[1], vectors=floats(1, 2), payloads=[{"a": "x" * 65000}])
        self.make("cosine", metric="cosine")
        self.refused("invalid", ("vectors", "row 1", "zero"), "upsert", collection="cosine", ids=[1, 2], vectors=floats(1, 1, 0, 0))
        self.refused("invalid", "vector", "search", collection="cosine", vector=[0, 0])
        self.refused("invalid", "vector", "search", collection="whole", vector=[math.nan, 0])

    def test_rows_of_a_request(self):
        self.make("many", dim=1)
        ids = list(range(10000))
        self.assertEqual(self.ok("upsert", collection="many", ids=ids, vectors=floats(*ids))["upserted"], 10000)
        self.refused("too_large", ("ids", "10"), "upsert", collection="many", ids=list(range(10001)), vectors=floats(*range(10001)))
        self.assertEqual(len(self.ok("get", collection="many", ids=ids)["records"]), 10000)
        self.assertEqual(len(self.ok("search", collection="many", vector=[0], limit=10000)["hits"]), 10000)
        self.refused("too_large", "limit", "search", collection="many", vector=[0], limit=10001)
        self.refused("invalid", "limit", "search", collection="many", vector=[0], limit=0)
        many = self.ok("search", collection="many", vectors=floats(*range(1024)), limit=1, exact=True)["hits"]
        self.assertEqual([hits[0]["id"] for hits in many], list(range(1024)))
        self.refused("too_large", ("vectors", "1"), "search", collection="many", vectors=floats(*range(1025)))
        seen, cursor, pages = [], None, 0
        while True:
            page = self.ok("scroll", collection="many", limit=3000, cursor=cursor)
            seen += [record["id"] for record in page["records"]]
            pages, cursor = pages + 1, page["cursor"]
            if cursor is None:
                break
        self.assertEqual(seen, ids)
        self.refused("invalid", "cursor", "scroll", collection="many", cursor=b"rubbish")

    def test_frames_of_32_mib(self):
        self.make("large", dim=8192)
        ids = list(range(1000))
        self.assertEqual(self.ok("upsert", collection="large", ids=ids, vectors=floats(*[1.0] * 8192) * 1000, deadline_ms=60000)["upserted"], 1000)
        reply = self.raw(msgpack.packb({"v": 1, "op": "upsert", "id": 77, "collection": "large", "ids": list(range(1024)),
                                        "vectors": floats(*[1.0] * 8192) * 1024}))
        self.assertEqual((reply["ok"], reply["error"]["name"]), (False, "too_large"))
        self.ok("drop_collection", collection="large")

    def test_set_payload(self):
        self.make("payload", payload={"n": "integer"})
        self.ok("upsert", collection="payload", ids=[1, 2], vectors=floats(1, 2, 3, 4), payloads=[{"n": 1, "a": "x"}, {"n": 2}])
        change = lambda **fields: self.ok("set_payload", collection="payload", **fields)["updated"]
        shown = lambda: [record["payload"] for record in self.ok("get", collection="payload", ids=[1, 2], with_payload=True)["records"]]
        self.assertEqual(change(ids=[1, 9], payload={"b": 2, "a": None}), 1)
        self.assertEqual(shown(), [{"n": 1, "b": 2}, {"n": 2}])
        self.assertEqual(change(filter={"must": [{"key": "n", "range": {"gte": 1}}]}, payload={"n": 7}, mode="merge"), 2)
        self.assertEqual(shown(), [{"n": 7, "b": 2}, {"n": 7}])
        self.assertEqual(change(ids=[1], payload={"c": 1}, mode="replace"), 1)
        self.assertEqual(shown(), [{"c": 1}, {"n": 7}])
        self.refused("invalid", "n", "set_payload", collection="payload", ids=[1], payload={"n": "seven"})
        self.refused("invalid", "mode", "set_payload", collection="payload", ids=[1], payload={}, mode="overwrite")
        self.refused("invalid", "ids", "set_payload", collection="payload", payload={})
        self.refused("invalid", "ids", "set_payload", collection="payload", payload={}, ids=[1], filter={})

    def test_time_to_live(self):
        self.make("ttl", shards=2)
        self.ok("upsert", collection="ttl", ids=[1, 2, 3], vectors=floats(1, 1, 2, 2, 3, 3), ttl_s=[1, None, 1000])
        self.ok("upsert", collection="ttl", ids=[4], vectors=floats(4, 4), ttl_s=1)
        self.ok("upsert", collection="ttl", ids=[5], vectors=floats(4, 4), ttl=1)
        self.ok("upsert", collection="ttl", ids=[5], vectors=floats(5, 5))
        self.assertEqual(self.ids(collection="ttl", vector=[0, 0]), [1, 2, 3, 4, 5])
        wait_until(lambda: self.ids(collection="ttl", vector=[0, 0]) == [2, 3, 5], 4, "expired records are gone")
        self.assertEqual(self.ok("count", collection="ttl")["count"], 3)
        self.assertEqual(self.ok("get", collection="ttl", ids=[1])["records"], [None])
        self.assertEqual([record["id"] for record in self.ok("scroll", collection="ttl")["records"]], [2, 3, 5])

    # ---- Care ----

    def test_wait_verify_compact(self):
        self.make("care", dim=8, shards=2)
        self.ok("upsert", collection="care", ids=list(range(6000)), vectors=floats(*[math.sin(i) for i in range(48000)]))
        self.ok("wait", collection="care", **{"for": "indexed"}, deadline_ms=60000)
        self.assertEqual(self.ok("describe_collection", collection="care")["pending_rows"], 0)
        reply = self.ok("verify", collection="care")
        self.assertEqual(reply["mended"], 0)
        self.assertGreaterEqual(reply["checked"], 6000)
        self.ok("delete", collection="care", ids=list(range(5500)))
        reply = self.ok("compact", collection="care", deadline_ms=60000)
        self.assertLess(reply["bytes_after"], reply["bytes_before"])
        self.assertEqual(self.ok("count", collection="care")["count"], 500)
        self.refused("invalid", "for", "wait", collection="care", **{"for": "dinner"})

    def test_snapshot_and_restore(self):
        self.make("origin", payload={"a": "keyword"}, shards=3)
        self.ok("upsert", collection="origin", ids=list(range(20)), vectors=floats(*range(40)), payloads=[{"a": str(i)} for i in range(20)])
        self.assertGreater(self.ok("snapshot", collection="origin", name="copy.1")["bytes"], 0)
        self.assertIn("copy.1", os.listdir(os.path.join(self.node.dir, "snapshots")))
        self.refused("exists", "name", "snapshot", collection="origin", name="copy.1")
        for name in ("../x", "a/b", "", "/tmp/x", "."):
            self.refused("invalid", "name", "snapshot", collection="origin", name=name)
            self.refused("invalid", "name", "restore", collection="x", name=name)
        self.refused("not_found", "name", "restore", collection="x", name="copy.2")
        self.refused("exists", "collection", "restore", collection="origin", name="copy.1")
        self.assertEqual(self.ok("restore", collection="again", name="copy.1")["records"], 20)
        self.assertEqual(self.ok("describe_collection", collection="again")["payload"], {"a": "keyword"})
        self.assertEqual(self.ids(collection="again", vector=[6, 7], limit=1), [3])

    def test_what_a_node_says_of_itself(self):
        info = self.ok("info")
        self.assertLessEqual({"node", "version", "limits", "collections", "uptime_s"}, set(info))
        stats = self.ok("stats")
        self.assertLessEqual({"uptime_s", "requests", "latency", "queue", "wakeup", "collections", "processes"}, set(stats))
        topology = self.ok("topology")
        self.assertLessEqual({"public_key", "version", "uptime_s", "ready"}, set(topology["node"]))
        for reply in (stats, topology):
            names = sorted(process["name"] for process in reply["processes"])
            self.assertEqual(names, ["gateway", "metadata-keeper", "router", "shard-worker", "shard-worker", "supervisor"])
        self.make("shown", shards=3)
        shown = next(each for each in self.ok("topology")["collections"] if each["name"] == "shown")
        self.assertEqual({shard["worker"] for shard in shown["shards"]}, {0, 1})

    # ---- Keys, deadlines ----

    def test_keys_over_curve(self):
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self.ok("create_key", name="reader", public_key=public, role="read")
        self.assertIn({"name": "reader", "public_key": public, "role": "read"}, self.ok("list_keys")["keys"])
        self.refused("exists", "name", "create_key", name="reader", public_key=zmq.curve_keypair()[0].decode(), role="read")
        self.refused("exists", "public_key", "create_key", name="other", public_key=public, role="read")
        self.refused("invalid", "role", "create_key", name="other", public_key=zmq.curve_keypair()[0].decode(), role="root")
        self.refused("invalid", "public_key", "create_key", name="other", public_key="short", role="read")
        self.make("guarded")
        facts = self.node.facts()
        with self.node.client(endpoint=facts["endpoints"]["client_tcp"].replace("0.0.0.0", "127.0.0.1"), server_key=facts["public_key"],
                              public_key=public, secret_key=secret) as client:
            self.assertEqual(client.call("count", collection="guarded")["count"], 0)
            for op, fields in (("delete", {"ids": [1]}), ("drop_collection", {})):
                client.send(op, collection="guarded", **fields)
                self.assertEqual(client.receive(5000)["error"]["code"], 9)
            self.ok("revoke_key", name="reader")
            client.send("count", collection="guarded")
            if client.socket.poll(2000):
                self.assertEqual(client.receive(0)["error"]["code"], 8)
        self.refused("not_found", "name", "revoke_key", name="reader")

    def test_deadlines(self):
        self.make("late", dim=64)
        for value in (0, -5, "soon"):
            reply = self.ask("count", collection="late", deadline_ms=value)
            self.assertIn(reply.get("error", {}).get("name"), ("invalid", "deadline"), value)
        began = time.monotonic()
        self.ok("upsert", collection="late", ids=list(range(5000)), vectors=floats(*[math.sin(i) for i in range(320000)]))
        error = self.refused("deadline", "", "wait", collection="late", deadline_ms=1)
        self.assertTrue(error["retriable"])
        self.assertLess(time.monotonic() - began, 10)

    # ---- Files and HTTP ----

    def test_files_of_the_folder(self):
        facts = self.node.facts()
        self.assertEqual(set(facts), {"endpoints", "public_key", "pid"})
        self.assertEqual(set(facts["endpoints"]), {"client_ipc", "client_tcp", "http"})
        self.assertEqual(facts["endpoints"]["client_ipc"], self.node.endpoint)
        self.assertLessEqual({"run", "data", "snapshots", "keys", "log", "skerry.conf"}, set(os.listdir(self.node.dir)))
        status = self.node.status()
        self.assertIs(status["ready"], True)
        self.assertEqual((status["endpoints"], status["public_key"]), (facts["endpoints"], facts["public_key"]))
        for process in status["processes"]:
            self.assertLessEqual({"name", "pid", "state", "restarts", "rss_bytes"}, set(process))

    def test_http(self):
        base = self.node.facts()["endpoints"]["http"]
        self.make("scraped")
        self.ok("upsert", collection="scraped", ids=[1], vectors=floats(1, 2))
        for path in ("/healthz", "/readyz"):
            self.assertEqual(urllib.request.urlopen(base + path).status, 200)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(base + "/nothing")
        self.assertEqual(caught.exception.code, 404)
        caught.exception.close()

        def metrics():
            return urllib.request.urlopen(base + "/metrics").read().decode()
        text = wait_until(lambda: 'skerry_records{collection="scraped"} 1' in metrics() and metrics(), 5, "the record is counted")
        for name in ('skerry_requests_total{op="upsert",code="ok"}', 'skerry_request_seconds_bucket{op="upsert",le="', "skerry_request_seconds_sum{op=",
                     'skerry_index_state{collection="scraped",index="', 'skerry_process_resident_bytes{process="', 'skerry_disk_bytes{collection="scraped"}'):
            self.assertIn(name, text)
        for line in text.splitlines():
            self.assertRegex(line, r"^(# (HELP|TYPE) )?skerry_")


if __name__ == "__main__":
    unittest.main()
