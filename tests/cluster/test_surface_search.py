"""The public surface: scores, order, thresholds, names and aliases of a search, and filters of every kind."""

import math
import re
import unittest

from surface import Surface, floats


class SurfaceSearchTest(Surface):
    # ---- Search ----

    def test_scores_order_ties_and_thresholds(self):
        vectors = {1: (1, 0.5), 2: (0, 2), 3: (4, 3), 4: (1, 0.5), "b": (1, 0.5), 6: (-1, 0)}
        query = (2.0, 1.0)
        length = math.hypot(*query)
        scorers = {"l2": lambda v: math.dist(v, query), "ip": lambda v: v[0] * query[0] + v[1] * query[1],
                   "cosine": lambda v: (v[0] * query[0] + v[1] * query[1]) / math.hypot(*v) / length}
        order = [1, 4, 6, 2, 3, "b"]
        rank_of_id = lambda id_: (isinstance(id_, str), id_)
        for metric, score in scorers.items():
            self.make(f"score_{metric}", metric=metric, shards=3)
            self.ok("upsert", collection=f"score_{metric}", ids=order, vectors=floats(*[x for id_ in order for x in vectors[id_]]))
            wanted = sorted(vectors, key=lambda id_: (score(vectors[id_]) * (1 if metric == "l2" else -1), rank_of_id(id_)))
            for exact in (True, False):
                reply = self.ok("search", collection=f"score_{metric}", vector=list(query), exact=exact)
                self.assertEqual([hit["id"] for hit in reply["hits"]], wanted, metric)
                for hit in reply["hits"]:
                    self.assertAlmostEqual(hit["score"], score(vectors[hit["id"]]), 6)
                self.assertEqual(reply["shards"], {"asked": 3, "answered": 3})
                self.assertEqual(reply["source"], "index")
                self.assertIs(reply["exact"], True)
            worst = score(vectors[wanted[3]])
            self.assertNotAlmostEqual(score(vectors[wanted[4]]), worst)
            threshold = worst + (1e-6 if metric == "l2" else -1e-6)
            reply = self.ok("search", collection=f"score_{metric}", vector=list(query), score_threshold=threshold)
            self.assertEqual([hit["id"] for hit in reply["hits"]], wanted[:4])
            self.assertIs(reply["more"], False)
            reply = self.ok("search", collection=f"score_{metric}", vector=list(query), score_threshold=threshold, limit=2)
            self.assertEqual([hit["id"] for hit in reply["hits"]], wanted[:2])
            self.assertIs(reply["more"], True)

    def test_aliases_and_defaults_of_a_search(self):
        self.make("words", dim=1)
        self.ok("upsert", collection="words", ids=list(range(30)), vectors=floats(*range(30)), payloads=[{"n": i, "m": 1} for i in range(30)])
        reply = self.ok("search", collection="words", vector=[0.0])
        self.assertEqual([hit["id"] for hit in reply["hits"]], list(range(10)))
        self.assertEqual(set(reply["hits"][0]), {"id", "score"})
        for alias in ("limit", "k", "top", "topk"):
            self.assertEqual(len(self.ids(collection="words", vector=[0], **{alias: 3})), 3)
        for alias in ("ef", "hnsw_ef", "ef_search"):
            self.assertEqual(len(self.ids(collection="words", vector=[0], **{alias: 200})), 10)
        for alias in ("with_vector", "with_vectors"):
            self.assertEqual(self.ok("search", collection="words", vector=[7], limit=1, **{alias: True})["hits"][0]["vector"], floats(7))
        self.assertEqual(self.ok("search", collection="words", vector=[7], limit=1, with_payload=True)["hits"][0]["payload"], {"n": 7, "m": 1})
        self.assertEqual(self.ok("search", collection="words", vector=[7], limit=1, with_payload=["n"])["hits"][0]["payload"], {"n": 7})
        self.assertEqual(len(self.ok("scroll", collection="words")["records"]), 10)
        self.refused("invalid", "limit", "search", collection="words", vector=[0], limit=3, k=3)
        many = self.ok("search", collection="words", vectors=[[3.0], floats(5)], limit=1)["hits"]
        self.assertEqual([[hit["id"] for hit in hits] for hits in many], [[3], [5]])
        self.assertEqual(self.ids(collection="words", like=5, limit=3), [4, 6, 3])
        self.refused("not_found", "like", "search", collection="words", like=99)
        self.refused("dim_mismatch", "vector", "search", collection="words", vector=[1, 2])
        self.refused("dim_mismatch", "row 1", "search", collection="words", vectors=[[1], [1, 2]])
        self.refused("invalid", "vector", "search", collection="words")
        self.refused("invalid", "vector", "search", collection="words", vector=[1], like=1)
        self.assertEqual(self.ids(collection="words", vector=[0], filter={"must": [{"key": "n", "range": {"gte": 20}}]}, limit=2), [20, 21])

    def test_few_dimensions_are_searched_exactly(self):
        """A graph over 8-bit codes cannot tell thousands of rows on a line apart."""
        count = 6000
        self.make("line", dim=1)
        place = [(row * 7919) % count / count for row in range(count)]
        self.ok("upsert", collection="line", ids=list(range(count)), vectors=floats(*place))
        self.ok("wait", collection="line", **{"for": "indexed"})
        rows = list(range(0, count, 97))
        reply = self.ok("search", collection="line", vectors=floats(*[place[row] for row in rows]), limit=1)
        self.assertEqual([hits[0]["id"] for hits in reply["hits"]], rows)
        self.assertIs(reply["exact"], True)

    def test_several_named_vectors(self):
        self.ok("create_collection", collection="named", vectors={"text": {"dim": 2, "metric": "cosine"}, "image": {"size": 1, "distance": "Euclid", "index": "flat"}}, shards=2)
        self.ok("upsert", collection="named", ids=[1, 2], vectors={"text": floats(1, 0, 0, 1), "image": [[5], [6]]})
        self.ok("upsert", collection="named", records=[{"id": 3, "vector": {"text": [1, 1], "image": floats(9)}}])
        self.assertEqual(self.ids(collection="named", vector=[1, 0], using="text"), [1, 3, 2])
        self.assertEqual(self.ids(collection="named", vector=[6], using="image"), [2, 1, 3])
        self.assertEqual(self.ids(collection="named", like=1, using="image"), [2, 3])
        self.assertEqual(self.ok("get", collection="named", ids=[3], with_vector=True)["records"][0]["vector"], {"text": floats(1, 1), "image": floats(9)})
        self.refused("invalid", "using", "search", collection="named", vector=[1, 0])
        self.refused("not_found", ("using", "text"), "search", collection="named", vector=[1, 0], using="txet")
        self.refused("dim_mismatch", "vector", "search", collection="named", vector=[1, 0], using="image")
        self.refused("invalid", "image", "upsert", collection="named", ids=[4], vectors={"text": floats(1, 0)})
        self.assertFalse(self.ask("upsert", collection="named", ids=[4], vectors=floats(1, 0))["ok"])
        described = self.ok("describe_collection", collection="named")
        self.assertEqual(set(described["vectors"]), {"text", "image"})
        self.assertEqual({index["vector"] for index in described["index"]}, {"text", "image"})

    # ---- Filters ----

    def test_filters_of_every_kind(self):
        fields = {"word": "keyword", "count": "integer", "price": "float", "on": "bool", "at": "datetime", "place": "geo"}
        day = 86400 * 10**6
        payloads = [{"word": "a", "count": 1, "price": 1.5, "on": True, "at": "1970-01-02T00:00:00Z", "place": {"lat": 60.1, "lon": 24.9}},
                    {"word": ["a", "b"], "count": [5, 50], "price": 2, "on": False, "at": 2 * day, "place": {"lat": 60.1, "lon": 24.95}},
                    {"word": "c", "count": -3, "at": "1970-01-04T02:00:00+02:00", "place": [{"lat": 0, "lon": 179}, {"lat": 1, "lon": 1}], "note": None},
                    {"note": "x", "deep": {"er": 4}}, None]
        cases = [({"key": "word", "match": "a"}, [0, 1]), ({"key": "word", "any": ["b", "c"]}, [1, 2]), ({"key": "word", "any": []}, []),
                 ({"key": "count", "match": 1}, [0]), ({"key": "count", "match": 1.0}, [0]), ({"key": "count", "any": [50, -3]}, [1, 2]),
                 ({"key": "count", "range": {"gte": 1, "lt": 5}}, [0]), ({"key": "count", "range": {"gt": 1, "lte": 5}}, [1]),
                 ({"key": "count", "range": {"lt": 0}}, [2]), ({"key": "count", "range": {"gte": 0.5, "lt": 1.5}}, [0]),
                 ({"key": "price", "match": 1.5}, [0]), ({"key": "price", "range": {"gt": 1.5}}, [1]), ({"key": "price", "match": 2}, [1]),
                 ({"key": "on", "match": True}, [0]), ({"key": "on", "match": False}, [1]),
                 ({"key": "at", "range": {"gte": "1970-01-03T00:00:00Z"}}, [1, 2]), ({"key": "at", "range": {"lt": 2 * day}}, [0]),
                 ({"key": "at", "match": 3 * day}, [2]), ({"key": "at", "match": "1970-01-02T00:00:00Z"}, [0]),
                 ({"key": "place", "geo_radius": {"center": {"lat": 60.1, "lon": 24.9}, "radius_m": 500}}, [0]),
                 ({"key": "place", "geo_radius": {"center": {"lat": 60.1, "lon": 24.9}, "radius_m": 3000}}, [0, 1]),
                 ({"key": "place", "geo_box": {"min": {"lat": 60, "lon": 24}, "max": {"lat": 61, "lon": 25}}}, [0, 1]),
                 ({"key": "place", "geo_box": {"min": {"lat": -1, "lon": 170}, "max": {"lat": 1, "lon": -170}}}, [2]),
                 ({"key": "word", "exists": True}, [0, 1, 2]), ({"key": "note", "exists": True}, [3]), ({"key": "note", "exists": False}, [0, 1, 2, 4]),
                 ({"key": "deep.er", "match": 4}, [3]), ({"ids": [1, 4, "zz"]}, [1, 4]),
                 ({"must_not": [{"key": "word", "match": "a"}]}, [2, 3, 4])]
        groups = [({"must": [{"key": "word", "match": "a"}], "should": [{"key": "on", "match": False}, {"key": "price", "match": 9}]}, [1]),
                  ({"should": [{"key": "word", "match": "c"}, {"key": "note", "match": "x"}]}, [2, 3]), ({"should": [], "must": []}, [0, 1, 2, 3, 4]), ({}, [0, 1, 2, 3, 4]),
                  ({"must": {"key": "word", "match": "c"}}, [2]), ({"must_not": [{"key": "count", "range": {"gte": 0}}], "must": [{"ids": [0, 2, 4]}]}, [2, 4]),
                  ({"must": [{"should": [{"must_not": [{"key": "word", "exists": True}]}, {"key": "word", "match": "b"}]}]}, [1, 3, 4])]
        for name, more in (("declared", {"payload": fields}), ("free", {})):
            self.make(name, shards=2, **more)
            self.ok("upsert", collection=name, ids=list(range(5)), vectors=floats(*range(10)), payloads=payloads)
            for condition, wanted in [({"must": [condition]}, wanted) for condition, wanted in cases] + groups:
                if name == "free" and any(kind in str(condition) for kind in ("'at'", "geo")):
                    continue    # a text is a date only where it is declared as one
                with self.subTest(collection=name, filter=condition):
                    reply = self.ok("search", collection=name, vector=[0, 0], filter=condition)
                    self.assertEqual(sorted(hit["id"] for hit in reply["hits"]), wanted)
                    self.assertEqual(self.ok("count", collection=name, filter=condition)["count"], len(wanted))
                    self.assertEqual([record["id"] for record in self.ok("scroll", collection=name, filter=condition)["records"]], wanted)
                    self.assertEqual("warning" in reply, any(key not in (fields if name == "declared" else {}) for key in
                                                             re.findall(r"'key': '([a-z.]+)'", str(condition))), reply.get("warning"))

    def test_filters_that_are_refused(self):
        self.make("strict", payload={"word": "keyword", "count": "integer", "place": "geo", "at": "datetime"})
        nested = {"key": "word", "match": "a"}
        for _ in range(8):
            nested = {"must": [nested]}
        self.ok("count", collection="strict", filter=nested)
        self.refused("too_large", "filter", "count", collection="strict", filter={"must": [nested]})
        for words, condition in (("word", {"key": "word", "match": 5}), ("count", {"key": "count", "match": "x"}), ("word", {"key": "word", "range": {"gt": 1}}),
                                 ("range", {"key": "count", "range": {}}), ("filter.must[0]", {"key": "count"}), ("filter.must[0]", {}),
                                 ("lat", {"key": "place", "geo_radius": {"center": {"lat": 91, "lon": 0}, "radius_m": 5}}),
                                 ("radius_m", {"key": "place", "geo_radius": {"center": {"lat": 1, "lon": 0}, "radius_m": -5}}),
                                 ("at", {"key": "at", "range": {"gt": "yesterday"}}), ("filter.must[0]", {"key": "word", "match": "a", "any": ["b"]})):
            with self.subTest(condition=condition):
                self.refused("invalid", words, "count", collection="strict", filter={"must": [condition]})
        for field, value in (("word", 5), ("word", ["a", 5]), ("count", 1.5), ("count", "1"), ("place", {"lat": 91, "lon": 0}), ("place", {"lat": 1}), ("at", "soon")):
            with self.subTest(field=field, value=value):
                self.refused("invalid", (field, "payloads row 0"), "upsert", collection="strict", ids=[1], vectors=floats(0, 0), payloads=[{field: value}])


if __name__ == "__main__":
    unittest.main()
