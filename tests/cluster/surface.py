"""What the tests of the public surface share: a client that has nothing of ours, only pyzmq and msgpack."""

import struct
import unittest

import msgpack
import zmq

from harness import Node

ERRORS = {name: number for number, name in enumerate(
    ("out_of_memory invalid unknown_field busy too_large exists dim_mismatch unauthorized forbidden deadline"
     " unavailable not_found disk_full version internal").split(), 1)}


def floats(*numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


class Surface(unittest.TestCase):
    """One node with two workers for all tests of a class; each test has collections of its own."""

    @classmethod
    def setUpClass(cls):
        cls.node = Node("workers = 2\n").start()
        cls.socket = zmq.Context.instance().socket(zmq.DEALER)
        cls.socket.linger = 0
        cls.socket.connect(cls.node.endpoint)
        cls.number = 0

    @classmethod
    def tearDownClass(cls):
        cls.socket.close()
        cls.node.destroy()

    @classmethod
    def raw(cls, frame, parts=False):
        """The reply to one frame as it stands, whatever it is."""
        cls.socket.send_multipart(frame if parts else [frame])
        if not cls.socket.poll(20000):
            raise AssertionError(f"no reply to {frame[:80]!r}")
        reply = cls.socket.recv_multipart()
        return msgpack.unpackb(reply[-1], strict_map_key=False) if not parts else reply

    @classmethod
    def ask(cls, op, **fields):
        cls.number += 1
        reply = cls.raw(msgpack.packb({"v": 1, "op": op, "id": cls.number, **fields}))
        if reply["id"] != cls.number or reply["v"] != 1:
            raise AssertionError(f"{op}: a reply to something else: {reply}")
        return reply

    def ok(self, op, **fields):
        reply = self.ask(op, **fields)
        self.assertTrue(reply["ok"], f"{op} {str(fields)[:200]}: {reply.get('error')}")
        return reply

    def refused(self, error_name, words, op, **fields):
        """The error has that name and number, and all of `words` (parts of its field or message)."""
        reply = self.ask(op, **fields)
        self.assertFalse(reply["ok"], f"{op} {str(fields)[:200]} is let in: {str(reply)[:300]}")
        error = reply["error"]
        self.assertEqual((error["name"], error["code"]), (error_name, ERRORS[error_name]), f"{op} {str(fields)[:200]}: {error}")
        self.assertLessEqual({"code", "name", "field", "retriable", "message"}, set(error))
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, f"{error['field']}: {error['message']}", f"{op} {str(fields)[:200]}")
        return error

    def make(self, name, metric="l2", dim=2, **more):
        self.ok("create_collection", collection=name, vectors={"dim": dim, "metric": metric}, **more)
        return name

    def ids(self, **fields):
        return [hit["id"] for hit in self.ok("search", **fields)["hits"]]
