#!/usr/bin/python3
"""Writes the corpora that come from tests/vectors. What fuzzing found and index images are kept beside them as they are."""

import json
import os
import sys

import msgpack

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "vectors"))
import make as vectors    # noqa: E402


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


def schema(name, fields):
    """The stored form, see proto/schema_stored.c."""
    return [name, bytes(range(16)), 1, 2, 0, len(fields), [["text", 8, 3, 2, 16, 200], ["image", 4, 1, 1, 16, 200]],
            [[path, kind, number + 1] for number, (path, kind) in enumerate(fields)]]


def corpora():
    stored = schema("docs", [("lexname", 1), ("n", 2), ("place", 6)])
    payloads = [{"a": "text", "c": 1.5, "m": {"b": 7, "d": True, "f": {"lat": 60.1, "lon": 24.9}}},
                {"e": "2026-11-23T08:00:00.25+02:00", "x": [None, 1, [2, {"y": b"z"}]]}, {}, {"k%d" % i: i for i in range(12)}]
    yield "request", [pack(sent) for _, sent in vectors.GOOD] + [data for _, data, _, _ in vectors.RAW]
    yield "filter", [pack(given) + pack(records[0][0]) for _, _, given, records in vectors.FILTERS]
    yield "payload", [pack(one) for one in payloads]
    lists = schema("lists", [("n", 2)])    # what 0.2 added to a vector field
    lists[6] = [["text", 8, 3, 4, 16, 200, 0, 64, 4, 3], ["image", 4, 1, 2, 8, 100, 2, 0, 0, 0]]
    yield "schema", [pack(stored), pack(schema("a", [])), pack(lists)]
    yield "manifest", [pack({"kind": "skerry-store-snapshot", "format": 1, "bytes": 0, "hash": 0x2d06800538d394c2, "records": 3,
                             "schema": stored})]
    yield "map", [pack({"version": 3, "node_id": 2**63, "collections": [{"schema": stored, "workers": [0, 1]}],
                        "keys": [{"name": "admin", "public_key": "k" * 40, "role": "admin"}]}),
                  pack({"version": 1, "node_id": 1, "collections": [], "keys": []})]
    yield "link", [b"SLK1" + bytes([kind, 0, 3, 1]) + bytes(range(72)) + b"body" for kind in range(1, 7)]
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
    req = b"\4\x19\5READY\x0bSocket-Type\0\0\0\3REQ"
    worker = b"\4\x31\5READY\x0bSocket-Type\0\0\0\6DEALER\x08Identity\0\0\0\x08worker-1"
    yield "zmtp", [b"\0" + greeting + req + b"\1\0\0\5hello", b"\0" + greeting + worker + b"\0\5hello",
                   b"\1" + b"\4\x0a\4PINGxxabc\0\5hello" * 3, b"\3\2\0\0\0\0\0\0\0\3you\1\0\1\1a\0\0",
                   b"\5" + b"\0\1x" * 40, b"\7\2\x7f" + b"\xff" * 7]
    yield "reply", [pack(says) for _, says in vectors.REPLIES] + [
        json.dumps({"must": [{"key": "a", "match": "\u00e9"}], "n": [1, -2.5e3, None, True]}).encode()]
    yield "config", [b"client_port = 0\nhttp_port = 0\n", b"# all\nworkers = 2\nmemory_bytes_max = 4G\nquery_core = auto\n"
                     b"wakeup_latency = off\nlog_level = debug\n", b"no_such_key = 1\n", b"workers\n"]
    yield "gateway", [pack({"v": 1, "id": 1, "ok": True, "uptime_s": 5, "requests": [{"op": "search", "code": "ok", "count": 3}],
                            "latency": [{"op": "search", "count": 3, "sum_us": 300, "bounds_us": [100, 1000], "counts": [1, 2, 0]}],
                            "queue": {"requests_in_flight": 1, "reads_in_flight": 1, "writes_queued": 0},
                            "wakeup": {"mode": "adaptive", "state": "held"},
                            "collections": [{"name": "docs", "records": 9, "disk_bytes": 1, "index_bytes": 2, "pending_rows": 0,
                                             "indexes": [{"vector": "", "type": "hnsw", "state": "ready", "done": 9, "total": 9}]}],
                            "processes": [{"name": "router", "number": 0, "pid": 7, "state": "ready", "restarts": 0,
                                           "rss_bytes": 1000}]}),
                      pack({"v": 1, "id": 1, "ok": True, "node": {"ready": True}, "processes": [], "collections": []})]


def steps(*parts):
    """The input of router and keeper: what, size, bytes."""
    return b"".join(bytes([what]) + len(data).to_bytes(2, "little") + data for what, data in parts)


def sessions():
    """A map, then requests and their replies; the numbers are those of the targets' step kinds."""
    stored = schema("docs", [("n", 2)])
    stored[6] = [["", 2, 3, 2, 16, 200]]    # what most of the requests are for
    world = pack({"v": 1, "id": None, "ok": True, "map": {"version": 3, "node_id": 1, "collections": [
        {"schema": stored, "workers": [0, 1]}], "keys": []}})
    hello = pack({"number": 0, "pid": 7, "incarnation": 9})
    shard = pack({"v": 1, "id": 1, "ok": True, "upserted": 1, "deleted": 1, "updated": 1, "count": 1, "hits": [{"id": 1, "score": 0.5}], "exact": True, "shards": {"asked": 1, "answered": 1}, "source": "index",
                  "records": [{"id": 1, "payload": {}, "vector": b"12345678"}], "cursor": None, "warning": "slow", "bytes": 5})
    failed = pack({"v": 1, "id": 1, "ok": False, "error": {"code": 13, "name": "disk_full", "field": None, "retriable": True,
                                                           "message": "the disk is full"}})
    yield "router", [steps((1, world), (6, hello), (14, hello), (48, pack(sent)), (1, answer), (9, other))    # 48: an admin's
                     for _, sent in vectors.GOOD for answer, other in ((shard, shard), (shard, failed))]
    changes = [sent for _, sent in vectors.GOOD if sent["op"] in ("create_collection", "alter_collection", "drop_collection",
                                                                  "create_key", "revoke_key", "list_keys")]
    made = vectors.request("create_from_schema", collection="again", schema=stored)
    yield "keeper", [steps((7, pack(sent)), (7, pack(sent))) for sent in changes] + [
        steps(*((7, pack(sent)) for sent in changes)), steps((9, pack(made))),
        steps((9, pack(vectors.request("map_get", map_version=0))))]


def work():
    """Records, then a request about them; what 4 is a request of an admin (1 + 4 / 2 % 4 = 3)."""
    fill = pack(vectors.request("upsert", collection="docs", ids=[1, 2, 3, "a", vectors.UUID, 7, 8, 9],
                                vectors=vectors.floats(*range(1, 17)),
                                payloads=[{"n": 1, "lexname": "noun.animal"}, {"n": 4, "place": {"lat": 60.1, "lon": 24.9}}] * 4))
    done = ("upsert", "delete", "set_payload", "get", "search", "scroll", "count", "verify", "compact")
    yield "worker", [steps((4, fill), (4, pack(sent)), (4, pack(vectors.request("search", collection="docs", vector=[1, 2]))))
                     for _, sent in vectors.GOOD if sent["op"] in done] + [
        steps((4, fill), (4, pack(vectors.request("count", collection="docs", filter=given)))) for _, _, given, _ in vectors.FILTERS]


for target, inputs in [*work(), *corpora(), *sessions()]:
    folder = os.path.join(HERE, target)
    os.makedirs(folder, exist_ok=True)
    for number, data in enumerate(inputs):
        with open(os.path.join(folder, f"vector-{number:03}"), "wb") as file:
            file.write(data)
