"""Makes the data folder of this release that every later one must open: tests/compat/data-VERSION.tar.xz.

    /usr/bin/python3 tests/compat/make.py        (after a build; run once for a release, then kept)

Two collections that use what is stored: several vector fields, every payload kind, all kinds of ids,
deletes, rewrites, payload edits, a time to live, an index with its checkpoint and its log. Keys are left
out: a start makes new ones.
"""

import json
import os
import sys
import tarfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
from harness import Node, pack_vectors, vector_of    # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
GRAPH_ROWS = 1500
UUID = "6f1e5a34-0c2b-4d7e-9a80-%012x"


def write(client):
    client.call("create_collection", collection="small", vectors={"dim": 6, "metric": "l2"},
                payload={"n": "integer", "k": "keyword", "f": "float", "b": "bool", "d": "datetime", "g": "geo"})
    ids = [[i, f"text-{i}", UUID % i][i % 3] for i in range(300)]
    payloads = [{"n": i, "k": f"k{i % 7}", "f": i / 4, "b": i % 2 == 0, "d": f"2026-01-{i % 28 + 1:02d}T00:00:00Z",
                 "g": {"lat": i / 10, "lon": -i / 10}, "free": ["ä", {"x": None}]} for i in range(300)]
    client.call("upsert", collection="small", ids=ids, payloads=payloads,
                vectors=pack_vectors([vector_of(i, 6) for i in range(300)]))
    client.call("delete", collection="small", ids=ids[:30])
    client.call("upsert", collection="small", ids=ids[30:60], payloads=payloads[30:60],
                vectors=pack_vectors([vector_of(1000 + i, 6) for i in range(30, 60)]))
    client.call("set_payload", collection="small", ids=ids[60:90], payload={"k": "edited", "f": None}, mode="merge")
    client.call("upsert", collection="small", ids=["forever", "soon"], vectors=[[1.0] * 6, [2.0] * 6],
                payloads=[{"n": 1000}, {"n": 1001}], ttl_s=[4000000000 // 4, 1])
    client.call("create_collection", collection="named", vectors={"a": {"dim": 4, "metric": "cosine"},
                                                                  "b": {"dim": 3, "metric": "ip", "index": {"type": "flat"}}})
    client.call("upsert", collection="named", ids=list(range(40)),
                vectors={"a": pack_vectors([vector_of(i, 4) for i in range(40)]),
                         "b": pack_vectors([vector_of(i + 500, 3) for i in range(40)])})
    client.call("create_collection", collection="graph", vectors={"dim": 4, "metric": "cosine", "index": {"type": "hnsw", "m": 4}})
    client.call("upsert", collection="graph", ids=list(range(GRAPH_ROWS)),
                vectors=pack_vectors([vector_of(i, 4) for i in range(GRAPH_ROWS)]))
    client.call("delete", collection="graph", ids=list(range(0, GRAPH_ROWS, 50)))


def write_more(client):
    """After the checkpoint that a clean stop writes: what the next start must replay."""
    some = list(range(GRAPH_ROWS, GRAPH_ROWS + 200))
    client.call("upsert", collection="graph", ids=some, vectors=pack_vectors([vector_of(i, 4) for i in some]))
    client.call("delete", collection="graph", ids=list(range(1, GRAPH_ROWS, 50)))
    client.call("wait", 60000, collection="graph", **{"for": "indexed"})
    client.call("upsert", collection="graph", ids=[5], vectors=[vector_of(5, 4)], payloads=[{"last": True}])


def everything(client):
    """All that the folder holds, as plain values that JSON keeps."""
    found = {}
    for name in ("small", "named", "graph"):
        records, cursor = [], None
        while True:
            page = client.call("scroll", collection=name, limit=1000, with_payload=True, with_vector=True,
                               **({"cursor": cursor} if cursor is not None else {}))
            records += page["records"]
            cursor = page["cursor"]
            if cursor is None:
                break
        found[name] = {str(r["id"]): {"payload": r.get("payload"), "vector": plain(r["vector"])} for r in records
                       if r["id"] != "soon"}
    return found


def plain(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def main():
    with Node() as node:
        client = node.client()
        version = client.call("ping")["version"]
        write(client)
        client.call("wait", 60000, collection="graph", **{"for": "indexed"})
        node.stop()
        node.start()
        client = node.client()
        write_more(client)
        wanted = everything(client)
        node.kill_everything()
        with open(os.path.join(node.dir, "wanted.json"), "w") as file:
            json.dump(wanted, file, separators=(",", ":"))
        path = os.path.join(HERE, f"data-{version}.tar.xz")
        with tarfile.open(path, "w:xz", preset=9) as tar:
            tar.add(os.path.join(node.dir, "wanted.json"), "wanted.json")
            for folder, folders, files in os.walk(os.path.join(node.dir, "data")):
                folders.sort()
                for name in sorted(files):
                    if not name.startswith("lock") and name != "reserve":
                        full = os.path.join(folder, name)
                        tar.add(full, os.path.relpath(full, node.dir))
        print(path, os.path.getsize(path))


if __name__ == "__main__":
    main()
