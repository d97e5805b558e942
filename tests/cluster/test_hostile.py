"""Ten thousand hostile frames at every socket of a node: it answers, lives on and does not grow."""

import os
import random
import socket
import struct
import time
import unittest
import urllib.error
import urllib.request

import msgpack
import zmq

from harness import SEED, Node, NoAnswer, RequestError, pack_vectors, vector_of

FRAMES = int(os.environ.get("SK_FRAMES", "10000"))
DIM = 8


def requests():
    """Valid requests of every operation, to be broken."""
    vectors = pack_vectors([vector_of(i, DIM) for i in range(4)])
    base = {"v": 1, "id": 7, "collection": "docs"}
    yield {"v": 1, "op": "ping", "id": 1}
    yield {**base, "op": "create_collection", "vectors": {"dim": 4, "metric": "l2"},
           "payload": {"a": "keyword", "b": "geo"}, "shards": 1}
    yield {**base, "op": "upsert", "ids": [1, "a", 2, 3], "vectors": vectors,
           "payloads": [{"n": i, "t": ["x", {"y": [1.5, None]}]} for i in range(4)], "ttl_s": 5}
    yield {**base, "op": "upsert", "records": [{"id": 5, "vector": [0.5] * DIM, "payload": {"n": 2}}]}
    yield {**base, "op": "search", "vector": vectors[:4 * DIM], "limit": 5, "with_payload": True,
           "filter": {"must": [{"key": "n", "range": {"gte": 1, "lt": 3}}, {"ids": [1, 2]}],
                      "should": [{"key": "p", "geo_radius": {"center": {"lat": 1.0, "lon": 2.0}, "radius_m": 5}}],
                      "must_not": [{"key": "z", "exists": True}]}}
    yield {**base, "op": "delete", "ids": [999]}
    yield {**base, "op": "get", "ids": [1, 2], "with_vector": True}
    yield {**base, "op": "scroll", "limit": 2, "cursor": b"abc"}
    yield {**base, "op": "count", "filter": {"must": [{"key": "n", "match": 1}]}}
    yield {**base, "op": "set_payload", "ids": [1], "payload": {"n": None}, "mode": "merge"}
    for op in ("describe_collection", "verify", "stats", "topology", "info", "list_collections", "list_keys"):
        yield {**base, "op": op}
    # what only the node's own processes say to each other
    for op in ("map_get", "shard_stats", "worker_hello", "node_status"):
        yield {**base, "op": op}


BOMBS = [
    b"", b"\xc1", b"\xdd\x01\x00\x00\x00", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xfe",
    b"\x91" * 5000, b"\x81\xa1v" * 3000, b"\xdc\xff\xff" * 40, b"\xde\xff\xff" * 30, b"\x80", b"\xc0", b"\x01",
    bytes(100000), b"\xff" * 3000, b"GET / HTTP/1.1\r\n\r\n", b"\xc7\xff\x01", b"\xd9\xff", b"\xca\x7f",
]


def hostile(rng, valid):
    """One frame: a broken request, a bomb, or noise; now and then a valid one of an odd kind."""
    draw = rng.random()
    if draw < 0.1:
        return rng.choice(BOMBS)
    if draw < 0.2:
        return rng.randbytes(rng.randint(0, 300))
    frame = bytearray(rng.choice(valid))
    if draw < 0.35:
        return bytes(frame[:rng.randint(0, len(frame))])
    if draw < 0.45:
        return bytes(frame) + rng.randbytes(rng.randint(1, 9))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(frame))
        what = rng.random()
        if what < 0.5:
            frame[at] = rng.randrange(256)
        elif what < 0.7:
            frame[at] ^= 1 << rng.randrange(8)
        elif what < 0.85:
            del frame[at]
            frame.extend(b"\xc0")
        else:
            frame[at:at] = rng.choice((b"\xdd\x7f\xff\xff\xff", b"\xdf\x00\xff\xff\xff", b"\xc4\xff", b"\x90"))
    return bytes(frame)


def link_frames(rng, valid):
    """Frames as the node's own links carry them: the header of proto/link.h, then a body; both broken."""
    numbers = (0, 1, 2, 7, 255, 2**16 - 1, 2**32 - 1, 2**63)
    number = lambda size: rng.choice(numbers) & (2**(8 * size) - 1)     # noqa: E731
    head = struct.pack("<IBBBBHHIQIxxxx16sQQQQ", 0x314B4C53, rng.randint(0, 8), number(1), rng.randint(0, 5), rng.randint(0, 1),
                       number(2), number(2), number(4), number(8), number(4), rng.choice((bytes(16), rng.randbytes(16))),
                       number(8), number(8), number(8), 0)
    if rng.random() < 0.3:
        head = bytearray(head)
        head[rng.randrange(len(head))] = rng.randrange(256)
    if rng.random() < 0.1:
        return bytes(head[:rng.randint(0, len(head))])
    return bytes(head) + hostile(rng, valid)


class HostileTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().start()
        cls.client = cls.node.client()
        cls.client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "l2"},
                        payload={"n": "integer"})
        cls.kept = [5_000_000_000_000 + i for i in range(100)]     # no flip of a byte reaches these
        cls.client.call("upsert", collection="docs", ids=cls.kept,
                        vectors=pack_vectors([vector_of(i, DIM) for i in cls.kept]),
                        payloads=[{"n": i, "kept": True} for i in cls.kept])
        cls.pids = cls.node.pids()
        cls.rss = cls.memory()

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy()

    @classmethod
    def memory(cls):
        total = {}
        for name, list_ in cls.node.pids().items():
            for pid in list_:
                with open(f"/proc/{pid}/status") as file:
                    fields = dict(line.split(":", 1) for line in file if ":" in line)
                total[name] = total.get(name, 0) + int(fields["VmRSS"].split()[0])
        return total

    def still_well(self):
        """The same processes, every record that nobody may have touched, and no memory eaten."""
        self.assertEqual(self.node.pids(), self.pids, "a process was replaced:\n" + self.node.log())
        self.client.call("ping")
        records = self.client.call("get", collection="docs", ids=self.kept, with_payload=True)["records"]
        self.assertEqual([r["payload"]["n"] for r in records], self.kept)
        hits = self.client.call("search", collection="docs", vector=vector_of(self.kept[50], DIM), limit=1,
                                exact=True)["hits"]
        self.assertEqual(hits[0]["id"], self.kept[50])
        for name, kilobytes in self.memory().items():
            self.assertLess(kilobytes, self.rss[name] + 200 * 1024, f"{name} has grown")

    def attack(self, endpoint, kind, make, drain=True, parts_max=4, count=FRAMES):
        """Sends `count` messages of one or several parts; returns how many replies came."""
        rng = random.Random(SEED)
        context = zmq.Context.instance()
        sock = context.socket(kind)
        sock.linger = 0
        sock.sndtimeo = 2000
        sock.connect(endpoint)
        replies = 0
        for number in range(count):
            parts = [make(rng)]
            if rng.random() < 0.1:
                parts = [make(rng) if rng.random() < 0.5 else b"" for _ in range(rng.randint(1, parts_max))] + parts
            elif rng.random() < 0.1:
                parts = [b""] + parts       # as a REQ socket sends it
            try:
                sock.send_multipart(parts)
            except zmq.Again:
                pass
            while drain and number % 50 == 49 and sock.poll(0):
                sock.recv_multipart()
                replies += 1
        end = time.monotonic() + 2
        while drain and time.monotonic() < end and sock.poll(300):
            sock.recv_multipart()
            replies += 1
        sock.close()
        return replies

    def valid(self):
        return [msgpack.packb(r, use_bin_type=True) for r in requests()]

    def test_the_client_socket_answers_hostile_frames(self):
        valid = self.valid()
        replies = self.attack(self.node.endpoint, zmq.DEALER, lambda rng: hostile(rng, valid))
        self.assertGreater(replies, FRAMES // 4, "hostile frames are answered, not swallowed")
        self.still_well()

    def test_an_invalid_frame_gets_an_error_and_the_connection_lives_on(self):
        client = self.node.client()
        for frame in BOMBS:
            client.socket.send(frame)
            reply = client.receive(5000)
            self.assertFalse(reply["ok"])
            self.assertIsNone(reply["id"])
            self.assertIn(reply["error"]["name"], ("invalid", "too_large", "unknown_field", "version"))
            self.assertGreater(len(reply["error"]["message"]), 5)
        client.call("ping")

    def test_an_unknown_field_is_refused_by_its_name_with_the_closest(self):
        client = self.node.client()
        with self.assertRaises(RequestError) as caught:
            client.call("search", collection="docs", vector=[0.0] * DIM, limt=3)
        self.assertEqual(caught.exception.name, "unknown_field")
        self.assertIn("limt", str(caught.exception))
        self.assertIn("limit", str(caught.exception))

    def test_the_node_s_own_sockets_survive_hostile_frames(self):
        valid = self.valid()
        for name, kind in (("worker.ipc", zmq.DEALER), ("keeper.ipc", zmq.DEALER),
                           ("supervisor.ipc", zmq.DEALER), ("keeper-pub.ipc", zmq.SUB)):
            path = os.path.join(self.node.dir, "run", name)
            with self.subTest(socket=name):
                self.assertTrue(os.path.exists(path), f"no socket {path}")
                if kind == zmq.SUB:     # what a subscriber can send are subscriptions
                    context = zmq.Context.instance()
                    sock = context.socket(zmq.XSUB)
                    sock.linger = 0
                    sock.sndtimeo = 2000
                    sock.connect("ipc://" + path)
                    rng = random.Random(SEED)
                    for _ in range(FRAMES):
                        try:
                            sock.send(rng.choice((b"\x01", b"\x00", b"")) + rng.randbytes(rng.randint(0, 100)))
                        except zmq.Again:
                            pass
                    sock.close()
                else:
                    for make in (lambda rng: hostile(rng, valid), lambda rng: link_frames(rng, valid)):
                        self.attack("ipc://" + path, kind, make, count=FRAMES // 2)
                self.still_well()

    def test_a_stranger_with_the_routing_id_of_a_worker_gets_nothing_of_it(self):
        context = zmq.Context.instance()
        sock = context.socket(zmq.DEALER)
        sock.linger = 0
        sock.routing_id = b"worker-0"
        sock.connect("ipc://" + os.path.join(self.node.dir, "run", "worker.ipc"))
        for _ in range(100):
            sock.send(os.urandom(100))
        sock.close()
        self.wait_well()

    def wait_well(self):
        end = time.monotonic() + 10
        while True:
            try:
                self.client.call("count", 2000, collection="docs", deadline_ms=1500)
                return
            except (NoAnswer, RequestError):
                if time.monotonic() > end:
                    raise

    def test_raw_bytes_at_the_tcp_port_do_no_harm(self):
        endpoint = self.node.facts()["endpoints"]["client_tcp"]
        host, port = endpoint.split("//")[1].rsplit(":", 1)
        rng = random.Random(SEED)
        for number in range(300):
            with socket.create_connection((host.strip("[]").replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1"),
                                           int(port)), timeout=5) as raw:
                greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + rng.choice((b"NULL", b"CURVE", b"PLAIN")).ljust(20, b"\0")
                try:
                    raw.sendall(rng.choice((rng.randbytes(200), greeting + bytes(32) + rng.randbytes(200), b"")))
                except OSError:
                    pass
        self.still_well()

    def test_the_http_port_refuses_what_it_does_not_know(self):
        http = self.node.facts()["endpoints"]["http"]
        base = http if http.startswith("http") else "http://" + http
        for path, wanted in (("/metrics", 200), ("/healthz", 200), ("/readyz", 200), ("/", 404),
                             ("/../../etc/passwd", 404), ("/metrics/" + "a" * 3000, 404)):
            try:
                status = urllib.request.urlopen(base + path, timeout=5).status
            except urllib.error.HTTPError as error:
                status = error.code
            self.assertIn(status, (wanted, 414) if wanted == 404 else (wanted,), path[:40])
        rng = random.Random(SEED)
        host, port = base.split("//")[1].strip("/").rsplit(":", 1)
        for _ in range(300):
            with socket.create_connection((host, int(port)), timeout=5) as raw:
                try:
                    raw.sendall(rng.choice((rng.randbytes(300), b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                                            b"GET " + b"/" * 60000 + b" HTTP/1.1\r\n\r\n")))
                except OSError:
                    pass
        self.still_well()


if __name__ == "__main__":
    unittest.main()
