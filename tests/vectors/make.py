#!/usr/bin/python3
"""Writes the test vectors of this folder. It uses the msgpack package and libxxhash, nothing of ours, so that a
mistake in our codec cannot hide in them.

    tests/vectors/make.py           writes requests.txt, replies.txt, filters.txt and ids.txt
    tests/vectors/make.py --check   says whether they are what it would write

The lists are append only: what a released node understood, every later one understands.
"""

import ctypes
import json
import os
import re
import struct
import sys
import uuid

import msgpack

HERE = os.path.dirname(os.path.abspath(__file__))
SCHEMA = os.path.join(HERE, "..", "..", "proto", "messages.def")
ERRORS = os.path.join(HERE, "..", "..", "common", "base", "err.h")

UUID = "0191f2a0-7b3c-7000-8000-00000000abcd"


def floats(*numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


def shown(value):
    """JSON, with bin as {"$bin": "hex"}."""
    if isinstance(value, bytes):
        return {"$bin": value.hex()}
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(one) for one in value]
    return value


def text_of(value):
    return json.dumps(shown(value), ensure_ascii=True, separators=(",", ":"))


def schema():
    """The fields in their order: (member, wire name, aliases), and the members of each operation."""
    with open(SCHEMA) as file:
        text = file.read()
    fields = [(m, n, a.split()) for m, n, a in
              re.findall(r'^SK_FIELD\((\w+), "(\w+)", \w+, \d+, "([^"]*)"', text, re.M)]
    ops = {n: (r + " " + o).split() for n, r, o in
           re.findall(r'^SK_OP\(\w+, "(\w+)", \w+, "([^"]*)", "([^"]*)"', text, re.M)}
    return fields, ops


FIELDS, OPS = schema()
with open(ERRORS) as source:
    ERROR_NAMES = {n: int(c) for c, n in re.findall(r'X\(\w+, (\d+), "(\w+)"', source.read())}


def meaning(sent):
    """The request under its own names, in the order of messages.def, with its deadline."""
    means = {"v": 1, "op": sent["op"], "id": sent.get("id"), "deadline_ms": sent.get("deadline_ms", 5000)}
    for member, name, aliases in FIELDS:
        if member not in OPS[sent["op"]]:
            continue
        for key in (name, *aliases):
            if sent.get(key) is not None:
                means[name] = sent[key]
    if isinstance(means.get("like"), str):
        means["like"] = lower_uuid(means["like"])
    if isinstance(means.get("score_threshold"), int):
        means["score_threshold"] = float(means["score_threshold"])
    return means


def lower_uuid(text):
    return text.lower() if re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text) else text


# ---- requests: (title, what is sent) is understood; (title, what is sent, error, field) is refused ----

def request(op, number=1, **fields):
    return {"v": 1, "op": op, "id": number, **fields}


GOOD = [
    ("ping", request("ping")),
    ("an id of text", request("ping", "abc-1")),
    ("the largest id", request("ping", 2**64 - 1)),
    ("no id", {"v": 1, "op": "ping"}),
    ("an id of nil", {"v": 1, "op": "ping", "id": None}),
    ("keys in any order", {"id": 4, "op": "count", "collection": "docs", "v": 1}),
    ("a deadline", request("ping", deadline_ms=250)),
    ("info", request("info")),
    ("stats", request("stats")),
    ("topology", request("topology")),
    ("create a collection", request("create_collection", collection="docs", vectors={"dim": 384, "metric": "cosine"},
                                    payload={"lexname": "keyword"})),
    ("create with every setting", request(
        "create_collection", collection="a.b-c_1",
        vectors={"dim": 2, "metric": "l2", "index": {"type": "hnsw", "m": 32, "ef_construction": 400}},
        payload={"k": "keyword", "i": "integer", "f": "float", "b": "bool", "t": "datetime", "g": "geo"},
        shards=4, memory_bytes_max=1 << 30)),
    ("create with several vector fields", request(
        "create_collection", collection="docs", vectors={"text": {"dim": 4, "metric": "ip", "index": "flat"},
                                                         "image": {"dim": 8, "metric": "cosine"}})),
    ("create in the words of another system", request(
        "create_collection", collection_name="docs",
        vectors={"size": 4, "distance": "Dot", "index": {"M": 8, "efConstruction": 100}}, shard_number=2)),
    ("list_collections", request("list_collections")),
    ("describe_collection", request("describe_collection", collection="docs")),
    ("drop_collection", request("drop_collection", collection="docs")),
    ("alter_collection", request("alter_collection", collection="docs", payload={"old": None, "new": "integer"},
                                 index={"ef_construction": 300}, memory_bytes_max=0)),
    ("upsert columns, vectors as bin", request("upsert", collection="docs", ids=[1, "a", UUID],
                                               vectors=floats(1, 0, 0, 1, 0.5, 0.5))),
    ("upsert columns, vectors as arrays", request("upsert", collection="docs", ids=[1, 2],
                                                  vectors=[[1, 0.5], [0.25, -1]], payloads=[{"n": 1}, None],
                                                  ttl_s=[60, None])),
    ("upsert columns, vectors as an array of bins", request("upsert", collection="docs", ids=[1, 2],
                                                            vectors=[floats(1, 2), floats(3, 4)], ttl_s=3600)),
    ("upsert columns by vector name", request("upsert", collection="docs", ids=[7],
                                              vectors={"text": floats(1, 2), "image": [[1, 2, 3]]})),
    ("upsert rows", request("upsert", collection="docs", records=[
        {"id": 1, "vector": [1, 0.5], "payload": {"lexname": "noun.animal", "n": 3}, "ttl_s": 60},
        {"id": "b", "vector": floats(2, 3)}])),
    ("upsert rows in the words of another system", request(
        "upsert", collection="docs", points=[{"id": 1, "vector": {"text": [1, 2], "image": floats(3)}, "payload": None}])),
    ("upsert of nothing", request("upsert", collection="docs", ids=[], vectors=b"")),
    ("delete by ids", request("delete", collection="docs", ids=[1, 2**64 - 1, UUID.upper(), "x" * 64])),
    ("delete by filter", request("delete", collection="docs", filter={"must": [{"key": "n", "match": 1}]})),
    ("set_payload merges", request("set_payload", collection="docs", ids=[1], payload={"a": 1, "b": None})),
    ("set_payload replaces", request("set_payload", collection="docs", filter={"must": []}, payload={}, mode="replace")),
    ("get", request("get", collection="docs", ids=[3, "a"], with_payload=True, with_vector=True)),
    ("get chosen keys", request("get", collection="docs", ids=[3], with_payload=["a", "b"], with_vectors=False)),
    ("search with a bin", request("search", 7, collection="docs", vector=floats(0.5, 0.25), limit=10)),
    ("search with an array", request("search", collection="docs", vector=[0.5, 1, -2])),
    ("search with many", request("search", collection="docs", vectors=floats(1, 2, 3, 4), ef=128, exact=False)),
    ("search with many arrays", request("search", collection="docs", vectors=[[1, 2], [3, 4]], exact=True)),
    ("search like a record", request("search", collection="docs", like=UUID.upper(), using="text")),
    ("search like a numbered record", request("search", collection="docs", like=5, with_vector=True)),
    ("search by radius", request("search", collection="docs", vector=[1, 2], score_threshold=0.75, limit=10000)),
    ("search by radius, an integer", request("search", collection="docs", vector=[1, 2], score_threshold=2)),
    ("search with a filter", request("search", collection="docs", vector=[1, 2], with_payload=["lexname"], filter={
        "must": [{"key": "lexname", "match": "noun.animal"}, {"key": "count", "range": {"gte": 3, "lt": 10}}],
        "should": [{"key": "place", "geo_radius": {"center": {"lat": 60.1, "lon": 24.9}, "radius_m": 500}},
                   {"ids": [1, 2, "a"]}],
        "must_not": [{"key": "note", "exists": True}]})),
    *[(f"search, {alias} for {name}", request("search", collection="docs", vector=[1], **{alias: 3}))
      for name, alias in (("limit", "k"), ("limit", "top"), ("limit", "topk"), ("ef", "hnsw_ef"), ("ef", "ef_search"))],
    ("a field of nil is not there", request("search", collection="docs", vector=[1], limit=None, filter=None, like=None)),
    ("scroll", request("scroll", collection="docs", limit=100, with_payload=True)),
    ("scroll on", request("scroll", collection="docs", cursor=17, filter={"must_not": [{"key": "a", "exists": True}]})),
    ("scroll from the beginning", request("scroll", collection="docs", cursor=None)),
    ("count", request("count", collection="docs")),
    ("count with a filter", request("count", collection="docs", filter={"should": [{"key": "a", "any": [1, 2]}]})),
    ("wait", request("wait", collection="docs", **{"for": "indexed"})),
    ("verify", request("verify", collection="docs")),
    ("compact", request("compact", collection="docs")),
    ("snapshot", request("snapshot", collection="docs", name="monday-1")),
    ("restore", request("restore", collection="docs", name="monday-1")),
    ("create_key", request("create_key", name="laptop", public_key="rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", role="read")),
    ("revoke_key", request("revoke_key", name="laptop")),
    ("list_keys", request("list_keys")),
    ("create with a profile", request(
        "create_collection", collection="docs", vectors={"dim": 384, "metric": "ip", "index": {"type": "hnsw", "profile": "speed"}})),
    ("create with lists", request(
        "create_collection", collection="docs",
        vectors={"text": {"dim": 64, "metric": "cosine", "index": {"type": "ivf_pq", "nlist": 1024, "pq_m": 16, "refine": 4}},
                 "image": {"dim": 8, "metric": "l2", "index": {"type": "ivf_flat", "nlist": 0}},
                 "sound": {"dim": 8, "metric": "l2", "index": "hybrid"}})),
    ("create with lists in the words of another system", request(
        "create_collection", collection="docs",
        vectors={"dim": 64, "metric": "l2", "index": {"index_type": "IVF_PQ", "num_partitions": 100, "num_sub_vectors": 8,
                                                      "refine_factor": 3}})),
    ("alter an index to another type", request("alter_collection", collection="docs", index={"type": "ivf_flat", "nlist": 64})),
    ("alter an index by its name alone", request("alter_collection", collection="docs", index="flat")),
    ("alter a profile of one vector field", request("alter_collection", collection="docs", index={"text": {"profile": "memory"}})),
    ("search with nprobe", request("search", collection="docs", vector=[1, 0.5], nprobe=32)),
    ("search with nprobe in the words of another system", request("search", collection="docs", vector=[1, 0.5], nprobes=32)),
    ("search with a recall", request("search", collection="docs", vectors=floats(1, 2), recall=0.95)),
    ("search with a recall in other words", request("search", collection="docs", vector=[1, 0.5], recall_target=0.5)),
]

BAD = [
    ("no version", {"op": "ping", "id": 1}, "version", "v"),
    ("another version", {"v": 2, "op": "ping", "id": 1}, "version", "v"),
    ("no operation", {"v": 1, "id": 1}, "invalid", "op"),
    ("an operation that does not exist", request("serach"), "invalid", "op"),
    ("an id of a wrong kind", {"v": 1, "op": "ping", "id": [1]}, "invalid", "id"),
    ("an id that is too long", request("ping", "x" * 65), "invalid", "id"),
    ("a negative id", request("ping", -1), "invalid", "id"),
    ("a deadline of zero", request("ping", deadline_ms=0), "invalid", "deadline_ms"),
    ("a deadline of ten minutes and more", request("ping", deadline_ms=600001), "invalid", "deadline_ms"),
    ("an unknown field", request("search", collection="docs", vector=[1], limits=3), "unknown_field", "limits"),
    ("a field of another operation", request("count", collection="docs", vector=[1]), "unknown_field", "vector"),
    ("a required field is missing", request("count"), "invalid", "collection"),
    ("a required field is nil", request("set_payload", collection="docs", ids=[1], payload=None), "invalid", "payload"),
    ("the same field under two names", request("search", collection="docs", vector=[1], limit=3, k=3), "invalid", "limit"),
    ("a collection's name of a wrong kind", request("count", collection=7), "invalid", "collection"),
    ("a collection's name with a slash", request("count", collection="a/b"), "invalid", "collection"),
    ("a collection's name that is too long", request("count", collection="x" * 65), "too_large", "collection"),
    ("an empty name", request("snapshot", collection="docs", name=""), "invalid", "name"),
    ("a name that begins with a dot", request("snapshot", collection="docs", name="."), "invalid", "name"),
    ("a limit of zero", request("search", collection="docs", vector=[1], limit=0), "invalid", "limit"),
    ("a limit over the limit", request("search", collection="docs", vector=[1], limit=10001), "too_large", "limit"),
    ("a limit that is not an integer", request("search", collection="docs", vector=[1], limit=1.5), "invalid", "limit"),
    ("a flag that is not a bool", request("search", collection="docs", vector=[1], exact=1), "invalid", "exact"),
    ("a threshold that is not finite", request("search", collection="docs", vector=[1], score_threshold=float("nan")),
     "invalid", "score_threshold"),
    ("ids that are no array", request("get", collection="docs", ids=5), "invalid", "ids"),
    ("an id of a record of a wrong kind", request("get", collection="docs", ids=[1, 1.5]), "invalid", "ids"),
    ("an empty id of a record", request("get", collection="docs", ids=[""]), "invalid", "ids"),
    ("an id of a record that is too long", request("get", collection="docs", ids=["x" * 65]), "too_large", "ids"),
    ("with_payload of a wrong kind", request("get", collection="docs", ids=[1], with_payload=[1]), "invalid", "with_payload"),
    ("like of a wrong kind", request("search", collection="docs", like=True), "invalid", "like"),
    ("two kinds of query", request("search", collection="docs", vector=[1], like=1), "invalid", "vector"),
    ("no query", request("search", collection="docs"), "invalid", "vector"),
    ("delete of nothing named", request("delete", collection="docs"), "invalid", "ids"),
    ("delete by both", request("delete", collection="docs", ids=[1], filter={}), "invalid", "ids"),
    ("rows and columns", request("upsert", collection="docs", ids=[1], records=[]), "invalid", "records"),
    ("no rows and no columns", request("upsert", collection="docs"), "invalid", "ids"),
    ("payloads for other ids", request("upsert", collection="docs", ids=[1], payloads=[]), "invalid", "payloads"),
    ("a mode that does not exist", request("set_payload", collection="docs", ids=[1], payload={}, mode="add"), "invalid", "mode"),
    ("waiting for what does not exist", request("wait", collection="docs", **{"for": "rain"}), "invalid", "for"),
    ("ef and nprobe", request("search", collection="docs", vector=[1], ef=64, nprobe=8), "invalid", "recall"),
    ("ef and a recall", request("search", collection="docs", vector=[1], hnsw_ef=64, recall=0.9), "invalid", "recall"),
    ("nprobe and a recall", request("search", collection="docs", vector=[1], nprobe=8, recall=0.9), "invalid", "recall"),
    ("a recall that is too low", request("search", collection="docs", vector=[1], recall=0.4), "invalid", "recall"),
    ("a recall of all", request("search", collection="docs", vector=[1], recall=1), "invalid", "recall"),
    ("nprobe of zero", request("search", collection="docs", vector=[1], nprobe=0), "invalid", "nprobe"),
    ("nprobe over the limit", request("search", collection="docs", vector=[1], nprobe=65537), "too_large", "nprobe"),
]

def map_of(*parts):
    """A map of already packed keys and values."""
    return bytes([0x80 | len(parts) // 2]) + b"".join(parts)


COUNT_DOCS = (pack("v"), pack(1), pack("op"), pack("count"), pack("collection"), pack("docs"))

# Frames that a msgpack library does not make: (title, bytes, error, field)
RAW = [
    ("no bytes at all", b"", "invalid", ""),
    ("not a map", pack([1, 2]), "invalid", ""),
    ("a byte that begins no value", b"\xc1", "invalid", ""),
    ("an array that claims 4,294,967,295 members", b"\xdd\xff\xff\xff\xff", "invalid", ""),
    ("a map that claims more than there is", b"\xdf\x01\x00\x00\x00", "invalid", ""),
    ("a text that claims more than there is", b"\x81\xdb\xff\xff\xff\xffv", "invalid", ""),
    ("an extension type", map_of(pack("v"), pack(1), pack("op"), b"\xd4\x01\x00"), "invalid", "op"),
    ("a key that is not text", map_of(pack(1), pack(1)), "invalid", ""),
    ("the version twice", map_of(*COUNT_DOCS, pack("v"), pack(1)), "invalid", "v"),
    ("a collection twice", map_of(*COUNT_DOCS, pack("collection"), pack("docs")), "invalid", "collection"),
    ("a filter twice, once nil", map_of(*COUNT_DOCS, pack("filter"), pack(None), pack("filter"), pack({})), "invalid", "filter"),
    ("bytes after the request", pack(request("ping")) + b"\xc0", "invalid", ""),
    ("text that is not UTF-8", map_of(pack("v"), pack(1), pack("op"), pack("wait"), pack("collection"), pack("docs"),
                                      pack("for"), b"\xa2\xff\xfe"), "invalid", "for"),
    ("nested 40 deep", map_of(*COUNT_DOCS, pack("filter"), b"\x91" * 40 + b"\xc0"), "invalid", "filter"),
]

REPLIES = [
    ("ping", {"v": 1, "id": 1, "ok": True, "node": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "version": "0.1.0",
              "took_us": 38}),
    ("hits", {"v": 1, "id": 7, "ok": True, "hits": [{"id": 1, "score": 0.5, "payload": {"a": "b"}},
                                                    {"id": UUID, "score": 0.25, "payload": None}],
              "exact": False, "shards": {"asked": 1, "answered": 1}, "source": "index", "took_us": 96}),
    ("hits of many queries", {"v": 1, "id": "q", "ok": True, "hits": [[{"id": "x", "score": 1.0}], []], "exact": True,
                              "shards": {"asked": 2, "answered": 1}, "source": "index", "took_us": 9}),
    ("records", {"v": 1, "id": 2, "ok": True, "records": [{"id": 3, "payload": {"n": 1}, "vector": floats(1, 2),
                                                           "version": 9}, None]}),
    ("a page and its cursor", {"v": 1, "id": 2, "ok": True, "records": [], "cursor": None}),
    ("upserted", {"v": 1, "id": 3, "ok": True, "upserted": 2}),
    ("an error that names a field", {"v": 1, "id": 1, "ok": False, "error": {
        "code": 12, "name": "not_found", "field": "collection", "retriable": False,
        "message": "no collection 'doc'; the closest name is 'docs'"}}),
    ("an error without a field, id unknown", {"v": 1, "id": None, "ok": False, "error": {
        "code": 4, "name": "busy", "field": None, "retriable": True, "message": "a queue is full, try later"}}),
]
BAD_REPLIES = [
    ("not a map", pack([1])), ("no ok", pack({"v": 1, "id": 1})), ("ok of a wrong kind", pack({"v": 1, "id": 1, "ok": 1})),
    ("an error without an error", pack({"v": 1, "id": 1, "ok": False})),
    ("an error without a code", pack({"v": 1, "id": 1, "ok": False, "error": {}})),
    ("an error of code 0", pack({"v": 1, "id": 1, "ok": False, "error": {"code": 0}})),
    ("bytes after it", pack({"v": 1, "id": 1, "ok": True}) + b"\x00"),
]

# ---- filters: (title, declared fields, filter, [(payload, id, matches)]) ----

PLACE = {"key": "place", "geo_radius": {"center": {"lat": 60.17, "lon": 24.94}, "radius_m": 1000}}
FILTERS = [
    ("an empty filter lets everything in", {}, {}, [({}, 1, True), ({"a": 1}, 2, True)]),
    ("match text", {"k": "keyword"}, {"must": [{"key": "k", "match": "a"}]},
     [({"k": "a"}, 1, True), ({"k": "b"}, 1, False), ({}, 1, False), ({"k": None}, 1, False), ({"k": ["b", "a"]}, 1, True),
      ({"k": []}, 1, False)]),
    ("match an integer, a float is equal where it is", {}, {"must": [{"key": "n", "match": 3}]},
     [({"n": 3}, 1, True), ({"n": 3.0}, 1, True), ({"n": 3.5}, 1, False), ({"n": "3"}, 1, False), ({"n": True}, 1, False)]),
    ("integers beyond what a float holds", {"n": "integer"}, {"must": [{"key": "n", "match": 2**53 + 1}]},
     [({"n": 2**53 + 1}, 1, True), ({"n": 2**53}, 1, False), ({"n": 2**53 + 2}, 1, False)]),
    ("match a bool", {"b": "bool"}, {"must": [{"key": "b", "match": True}]},
     [({"b": True}, 1, True), ({"b": False}, 1, False), ({"b": 1}, 1, False)]),
    ("any of", {}, {"must": [{"key": "k", "any": ["a", "b"]}]},
     [({"k": "b"}, 1, True), ({"k": "c"}, 1, False), ({"k": ["c", "a"]}, 1, True)]),
    ("any of nothing", {}, {"must": [{"key": "k", "any": []}]}, [({"k": "b"}, 1, False)]),
    ("a range", {"n": "integer"}, {"must": [{"key": "n", "range": {"gte": 3, "lt": 10}}]},
     [({"n": 3}, 1, True), ({"n": 9}, 1, True), ({"n": 10}, 1, False), ({"n": 2}, 1, False), ({"n": [1, 12]}, 1, False),
      ({"n": [1, 5]}, 1, True), ({}, 1, False)]),
    ("a range between integers and floats", {}, {"must": [{"key": "n", "range": {"gt": 2.5, "lte": 4}}]},
     [({"n": 2.5}, 1, False), ({"n": 3}, 1, True), ({"n": 4.0}, 1, True), ({"n": 4.5}, 1, False)]),
    ("a range of datetimes", {"t": "datetime"}, {"must": [{"key": "t", "range": {"gte": "2026-11-23T08:00:00Z",
                                                                                "lt": "2026-11-24"}}]},
     [({"t": "2026-11-23T08:00:00Z"}, 1, True), ({"t": "2026-11-23T09:59:59.999999+02:00"}, 1, False),
      ({"t": "2026-11-23T10:00:00+02:00"}, 1, True), ({"t": 1795420800000000}, 1, True), ({"t": "2026-11-24"}, 1, False)]),
    ("match a datetime written otherwise", {"t": "datetime"}, {"must": [{"key": "t", "match": "1970-01-01T01:00:00+01:00"}]},
     [({"t": 0}, 1, True), ({"t": "1970-01-01"}, 1, True), ({"t": 1}, 1, False)]),
    ("geo radius", {"place": "geo"}, {"must": [PLACE]},
     [({"place": {"lat": 60.17, "lon": 24.94}}, 1, True), ({"place": {"lat": 60.1789, "lon": 24.94}}, 1, True),
      ({"place": {"lat": 60.1791, "lon": 24.94}}, 1, False), ({"place": "Helsinki"}, 1, False),
      ({"place": [{"lat": 0, "lon": 0}, {"lat": 60.17, "lon": 24.95}]}, 1, True)]),
    ("geo box over the date line", {"place": "geo"}, {"must": [{"key": "place", "geo_box": {
        "min": {"lat": -20, "lon": 170}, "max": {"lat": 20, "lon": -170}}}]},
     [({"place": {"lat": 0, "lon": 175}}, 1, True), ({"place": {"lat": 0, "lon": -175}}, 1, True),
      ({"place": {"lat": 0, "lon": 0}}, 1, False), ({"place": {"lat": 21, "lon": 175}}, 1, False)]),
    ("exists", {}, {"must": [{"key": "a", "exists": True}]}, [({"a": 0}, 1, True), ({"a": None}, 1, False), ({}, 1, False)]),
    ("does not exist", {}, {"must": [{"key": "a", "exists": False}]}, [({"a": 0}, 1, False), ({}, 1, True)]),
    ("ids", {}, {"must": [{"ids": [1, "a", UUID.upper()]}]},
     [({}, 1, True), ({}, "a", True), ({}, UUID, True), ({}, "1", False), ({}, 2, False)]),
    ("must_not lets a record without the field in", {}, {"must_not": [{"key": "k", "match": "a"}]},
     [({"k": "a"}, 1, False), ({"k": "b"}, 1, True), ({}, 1, True)]),
    ("should wants one, also beside must", {}, {"must": [{"key": "a", "match": 1}],
                                                "should": [{"key": "b", "match": 1}, {"key": "c", "match": 1}]},
     [({"a": 1}, 1, False), ({"a": 1, "c": 1}, 1, True), ({"b": 1, "c": 1}, 1, False)]),
    ("nested", {}, {"must": [{"should": [{"key": "a", "match": 1}, {"must_not": [{"key": "b", "match": 1}]}]}]},
     [({"a": 1, "b": 1}, 1, True), ({"b": 1}, 1, False), ({"b": 2}, 1, True)]),
    ("a path into maps, the whole key first", {}, {"must": [{"key": "a.b", "match": 1}]},
     [({"a": {"b": 1}}, 1, True), ({"a.b": 1}, 1, True), ({"a.b": 2, "a": {"b": 1}}, 1, False), ({"a": 1}, 1, False)]),
    ("one condition without its array", {}, {"must": {"key": "a", "match": 1}}, [({"a": 1}, 1, True), ({}, 1, False)]),
]
BAD_FILTERS = [
    ("not a map", {}, [1], "invalid", "filter"),
    ("an unknown part", {}, {"musst": []}, "unknown_field", "filter"),
    ("a condition without a key", {}, {"must": [{"match": 1}]}, "invalid", "filter.must[0]"),
    ("a condition without a test", {}, {"must": [{"key": "a"}]}, "invalid", "filter.must[0]"),
    ("a condition with two tests", {}, {"must": [{"key": "a", "match": 1, "exists": True}]}, "invalid", "filter.must[0]"),
    ("an unknown test", {}, {"must": [{"key": "a", "like": 1}]}, "unknown_field", "filter.must[0].like"),
    ("an unknown bound", {}, {"should": [{"key": "a", "range": {"ge": 1}}]}, "unknown_field", "filter.should[0].range"),
    ("a range without a bound", {}, {"must": [{"key": "a", "range": {}}]}, "invalid", "filter.must[0].range"),
    ("a range of text", {}, {"must": [{"key": "a", "range": {"gt": "b"}}]}, "invalid", "filter.must[0].range"),
    ("a center that is nowhere", {}, {"must": [{"key": "a", "geo_radius": {"center": {"lat": 91, "lon": 0}, "radius_m": 1}}]},
     "invalid", "filter.must[0].geo_radius"),
    ("an empty key", {}, {"must": [{"key": "", "match": 1}]}, "invalid", "filter.must[0]"),
    ("another type than declared", {"n": "integer"}, {"must": [{"key": "n", "match": "a"}]}, "invalid", "filter"),
    ("a range on a keyword", {"k": "keyword"}, {"must": [{"key": "k", "range": {"gt": 1}}]}, "invalid", "filter"),
]


def nested(depth):
    """The filter of a match inside depth maps of must."""
    inner = {"key": "a", "match": 1}
    for _ in range(depth):
        inner = {"must": [inner]}
    return inner


FILTERS.append(("nested 8 deep", {}, nested(8), [({"a": 1}, 1, True), ({}, 1, False)]))
BAD_FILTERS.append(("nested 9 deep", {}, nested(9), "too_large", "filter.must[0].must[0].must[0].must[0].must[0].must[0].must[0].must[0]"[:71]))

IDS = [0, 1, 5, 258, 2**32, 2**63, 2**64 - 1, "5", "a", "docs/1", "x" * 64, "h\u00e9llo", "\U0001f40b",
       UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
       "0191f2a0-7b3c-7000-8000-00000000abcg", "0191f2a07b3c70008000-00000000abcd0000"]


def canonical(id_):
    if isinstance(id_, int):
        return b"\x01" + struct.pack(">Q", id_)
    if lower_uuid(id_) != id_ or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id_):
        return b"\x02" + uuid.UUID(id_).bytes
    return b"\x03" + id_.encode()


def slot(data):
    library = ctypes.CDLL("libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library.XXH3_64bits(data, len(data)) >> 52


def requests_text():
    lines = ["# Requests: what is on the wire (hex), what was sent, and what it means (its own names, the deadline filled in)",
             "# or the fault that answers it: number, name, field. See README.md.", ""]
    for title, sent in GOOD:
        lines += [f"[{title}]", f"hex   {pack(sent).hex()}", f"sent  {text_of(sent)}", f"means {text_of(meaning(sent))}", ""]
    for title, sent, error, field in BAD:
        data = pack(sent)
        lines += [f"[{title}]", f"hex   {data.hex()}"]
        lines += [f"sent  {text_of(sent)}"] if "NaN" not in text_of(sent) else []
        lines += [f"fault {ERROR_NAMES[error]} {error} {field}".rstrip(), ""]
    for title, data, error, field in RAW:
        lines += [f"[{title}]", f"hex   {data.hex()}".rstrip(), f"fault {ERROR_NAMES[error]} {error} {field}".rstrip(), ""]
    return "\n".join(lines)


def replies_text():
    lines = ["# Replies: what is on the wire (hex) and what it says; `none` is no reply at all. See README.md.", ""]
    for title, says in REPLIES:
        lines += [f"[{title}]", f"hex   {pack(says).hex()}", f"says  {text_of(says)}", ""]
    for title, data in BAD_REPLIES:
        lines += [f"[{title}]", f"hex   {data.hex()}", "none", ""]
    return "\n".join(lines)


def filters_text():
    lines = ["# Filters: declared fields, the filter (hex and JSON), then records (payload as hex and JSON, id) and whether",
             "# they match; or the fault. See README.md.", ""]
    for title, declared, given, records in FILTERS:
        lines += [f"[{title}]", f"declared {text_of(declared)}", f"hex      {pack(given).hex()}", f"filter   {text_of(given)}"]
        for payload, id_, matches in records:
            lines.append(f"{'match   ' if matches else 'no      '} {pack(payload).hex()} {pack(id_).hex()} {text_of(payload)} {text_of(id_)}")
        lines.append("")
    for title, declared, given, error, field in BAD_FILTERS:
        lines += [f"[{title}]", f"declared {text_of(declared)}", f"hex      {pack(given).hex()}", f"filter   {text_of(given)}",
                  f"fault    {ERROR_NAMES[error]} {error} {field}", ""]
    return "\n".join(lines)


def ids_text():
    lines = ["# Ids: as JSON, canonical bytes (hex), slot (XXH3_64 of the canonical bytes, its upper 12 bits). See README.md.", ""]
    lines += [f"{json.dumps(one)} {canonical(one).hex()} {slot(canonical(one))}" for one in IDS]
    return "\n".join(lines) + "\n"


def main():
    is_check = sys.argv[1:] == ["--check"]
    is_good = True
    for name, text in (("requests.txt", requests_text()), ("replies.txt", replies_text()),
                       ("filters.txt", filters_text()), ("ids.txt", ids_text())):
        path = os.path.join(HERE, name)
        if is_check:
            with open(path) as file:
                if file.read() != text:
                    print(f"{name} is not what make.py writes", file=sys.stderr)
                    is_good = False
        else:
            with open(path, "w") as file:
                file.write(text)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
