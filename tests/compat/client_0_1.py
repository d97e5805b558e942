"""The wire client of release 0.1, frozen: plain pyzmq and msgpack, nothing of ours.

Later releases must keep serving it unchanged, so do not edit it: a newer protocol gets a file of its own
beside this one, and the tests run both against one node.
"""

import struct
import threading

import msgpack
import zmq


class RequestError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['name']}: {error['message']}")
        self.code, self.name, self.retriable = error["code"], error["name"], error["retriable"]
        self.field = error.get("field")


class NoAnswer(Exception):
    """Nothing came in the time given: for a write the outcome is unknown."""


class Client:
    def __init__(self, endpoint, server_key=None, public_key=None, secret_key=None, context=None):
        self.context = context or zmq.Context.instance()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if server_key:
            self.socket.curve_serverkey = server_key.encode()
            self.socket.curve_publickey = public_key.encode()
            self.socket.curve_secretkey = secret_key.encode()
        self.socket.connect(endpoint)
        self.number = 0
        self.lock = threading.Lock()

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, op, **fields):
        self.number += 1
        self.socket.send(msgpack.packb({"v": 1, "op": op, "id": self.number, **fields}, use_bin_type=True))
        return self.number

    def receive(self, timeout_ms):
        """The next reply, whichever request it answers."""
        if not self.socket.poll(timeout_ms):
            raise NoAnswer(f"no answer in {timeout_ms} ms")
        return msgpack.unpackb(self.socket.recv(), raw=False, strict_map_key=False)

    def call(self, op, timeout_ms=10000, **fields):
        with self.lock:
            number = self.send(op, **fields)
            while True:
                reply = self.receive(timeout_ms)
                if reply["id"] == number:
                    break
        if not reply["ok"]:
            raise RequestError(reply["error"])
        return reply


def pack_vectors(rows):
    """Rows of floats as one bin of little-endian float32."""
    return b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
