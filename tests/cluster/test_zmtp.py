"""ZMTP at a node's ipc sockets, byte by byte: what RFC 23 and 37 allow, what they forbid, and peers that mean harm."""

import os
import random
import resource
import select
import socket
import struct
import time
import unittest

import msgpack
import zmq

from harness import SEED, SLOW, Node, RequestError, wait_until

MORE, LONG, COMMAND = 1, 2, 4
WAIT_S = 5 * SLOW


def greeting(major=3, minor=1, mechanism=b"NULL", as_server=0, padding=bytes(8), filler=bytes(31)):
    return b"\xff" + padding + b"\x7f" + bytes((major, minor)) + mechanism.ljust(20, b"\0") + bytes((as_server,)) + filler


def frame(body, flags=0, is_long=None):
    if len(body) > 255 if is_long is None else is_long:
        return bytes((flags | LONG,)) + struct.pack(">Q", len(body)) + body
    return bytes((flags, len(body))) + body


def command(name, data=b""):
    return frame(bytes((len(name),)) + name + data, COMMAND)


def prop(name, value):
    return bytes((len(name),)) + name + struct.pack(">I", len(value)) + value


def ready(type_=b"DEALER", identity=b""):
    return command(b"READY", prop(b"Socket-Type", type_) + prop(b"Identity", identity))


def request(op="ping", id_=1, **fields):
    return msgpack.packb({"v": 1, "op": op, "id": id_, **fields}, use_bin_type=True)


class Peer:
    """One connection of bytes."""

    def __init__(self, path, hello=greeting() + ready()):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(path)
        self.came = b""
        if hello is not None:
            self.send(hello)
            self.shake()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def shake(self):
        """Reads the node's half of both handshakes."""
        theirs = self.take(64)
        assert theirs[0] == 0xff and theirs[9] == 0x7f and theirs[10] == 3 and theirs[12:32] == b"NULL".ljust(20, b"\0"), theirs
        flags, body = self.receive_frame()
        assert flags == COMMAND and body.startswith(b"\5READY") and b"Socket-Type\0\0\0\6ROUTER" in body, body

    def send(self, data):
        self.socket.sendall(data)

    def take(self, size):
        while len(self.came) < size:
            more = self.socket.recv(1 << 20)
            if not more:
                raise EOFError
            self.came += more
        taken, self.came = self.came[:size], self.came[size:]
        return taken

    def receive_frame(self):
        flags = self.take(1)[0]
        size = struct.unpack(">Q", self.take(8))[0] if flags & LONG else self.take(1)[0]
        return flags & ~LONG, self.take(size)

    def reply(self):
        flags, body = self.receive_frame()
        assert flags == 0, (flags, body)
        return msgpack.unpackb(body, raw=False, strict_map_key=False)

    def ask(self, **fields):
        self.send(frame(request(**fields)))
        return self.reply()

    def is_closed(self):
        """Whether the node ends it, whatever it says before."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionError:
            pass
        except socket.timeout:
            return False
        return True


def proc(pid, field):
    with open(f"/proc/{pid}/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith(field)))


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ZmtpTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node()
        cls.node.__enter__()
        cls.path = os.path.join(cls.node.dir, "run", "client.ipc")
        cls.pids = cls.node.pids()
        cls.router = cls.pids["router"][0]
        # those that never shake hands: looked at last, when their ten seconds are over
        cls.silent = [Peer(cls.path, hello=None) for _ in range(20)]
        for number, peer in enumerate(cls.silent):
            peer.send(b"" if number % 2 else (greeting() + ready())[:number * 3])
        cls.silent_since = time.monotonic()
        cls.client = cls.node.client()
        cls.client.call("create_collection", collection="docs", vectors={"dim": 2, "metric": "l2"}, payload={"t": "keyword"})
        cls.client.call("upsert", collection="docs", records=[
            {"id": i, "vector": [float(i), 0.0], "payload": {"t": "x" * 5000}} for i in range(200)])

    @classmethod
    def tearDownClass(cls):
        for peer in cls.silent:
            peer.socket.close()
        cls.node.destroy()

    def tearDown(self):
        self.when_not_busy("ping")
        self.assertEqual(self.node.pids(), self.pids, "a process was replaced:\n" + self.node.log())

    def when_not_busy(self, op, **fields):
        """What was asked for before by others is done first."""
        end = time.monotonic() + 20 * SLOW
        while True:
            try:
                return self.client.call(op, int(20000 * SLOW), **fields)
            except RequestError as error:
                if error.name not in ("busy", "deadline") or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def peer(self, hello=greeting() + ready(), socket_name="client.ipc"):
        peer = Peer(os.path.join(self.node.dir, "run", socket_name), hello)
        self.addCleanup(peer.socket.close)
        return peer

    def closes(self, data, what, hello=greeting() + ready()):
        with self.subTest(what):
            with Peer(self.path, hello) as peer:
                try:
                    peer.send(data)
                except ConnectionError:
                    pass
                self.assertTrue(peer.is_closed(), f"still open after {what}")

    # ---- handshake ----

    def test_a_handshake_may_be_cut_anywhere(self):
        whole = greeting() + ready() + frame(request())
        for cut in range(1, len(whole)):
            with Peer(self.path, hello=None) as peer:
                peer.send(whole[:cut])
                time.sleep(0.001)
                peer.send(whole[cut:])
                peer.shake()
                self.assertTrue(peer.reply()["ok"], f"cut at {cut}")

    def test_what_a_greeting_may_vary_in(self):
        for what, hello in (("minor 0", greeting(minor=0)), ("minor 9", greeting(minor=9)), ("major 4", greeting(major=4)),
                            ("as-server", greeting(as_server=1)), ("padding", greeting(padding=b"\0\0\0\0\0\0\0\1")),
                            ("any padding", greeting(padding=b"\xa5" * 8)), ("filler", greeting(filler=b"\xee" * 31))):
            with self.subTest(what):
                self.assertTrue(self.peer(hello + ready()).ask()["ok"])

    def test_other_versions_and_mechanisms_are_closed(self):
        for what, hello in (("ZMTP 1.0", b"\x01\x00"), ("ZMTP 1.0 with an identity", b"\x04\x00abc"),
                            ("ZMTP 2.0", b"\xff\0\0\0\0\0\0\0\1\x7f\x01\x05\x00\x00"), ("revision 0", greeting(major=0)),
                            ("PLAIN", greeting(mechanism=b"PLAIN")), ("CURVE", greeting(mechanism=b"CURVE")),
                            ("NULLX", greeting(mechanism=b"NULLX")), ("HTTP", b"GET / HTTP/1.1\r\n\r\n"),
                            ("no signature's end", b"\xff" + bytes(9) + b"\3\1")):
            self.closes(hello, what, hello=None)

    def test_ready(self):
        good = {
            "names without case": prop(b"sOCKET-tYPE", b"DEALER") + prop(b"IDENTITY", b"x"),
            "more properties": prop(b"Resource", b"r" * 300) + prop(b"Socket-Type", b"REQ") + prop(b"X-a", b""),
            "no identity": prop(b"Socket-Type", b"DEALER"),
            "an identity of 255 bytes": prop(b"Socket-Type", b"DEALER") + prop(b"Identity", b"\0" * 255),
            "ROUTER": prop(b"Socket-Type", b"ROUTER"),
        }
        for what, properties in good.items():
            with self.subTest(what):
                self.assertTrue(self.peer(greeting() + command(b"READY", properties)).ask()["ok"])
        bad = {
            "nothing": b"", "no type": prop(b"Identity", b"x"), "no such type": prop(b"Socket-Type", b"DEALE"),
            "an identity of 256 bytes": prop(b"Socket-Type", b"DEALER") + prop(b"Identity", b"x" * 256),
            "a value past the end": prop(b"Socket-Type", b"DEALER") + b"\1a\xff\xff\xff\xff",
            "half a property": prop(b"Socket-Type", b"DEALER") + b"\x05ab", "a name of no bytes": prop(b"", b"DEALER"),
            **{type_: prop(b"Socket-Type", type_.encode())
               for type_ in ("PUB", "SUB", "XPUB", "XSUB", "PULL", "PUSH", "PAIR", "REP", "")},
        }
        for what, properties in bad.items():
            self.closes(greeting() + command(b"READY", properties), what, hello=None)

    def test_what_is_no_ready_ends_the_handshake(self):
        for what, data in (("a message", frame(request())), ("ERROR", command(b"ERROR", b"\4oops")), ("PING", command(b"PING", b"\0\0")),
                           ("an unknown command", command(b"HELLO")), ("READY as a message", frame(b"\5READY")),
                           ("READY with more", bytes((COMMAND | MORE,)) + ready()[1:]), ("an empty command", frame(b"", COMMAND)),
                           ("a message of 32 MiB to come", b"\2" + struct.pack(">Q", 32 << 20))):
            self.closes(greeting() + data, what, hello=None)

    # ---- frames ----

    def test_commands_of_an_open_connection(self):
        peer = self.peer()
        for ttl, context in ((b"\0\0", b""), (b"\0\x0a", b"c"), (b"\xff\xff", bytes(range(16)))):
            peer.send(command(b"PING", ttl + context))
            self.assertEqual(peer.receive_frame(), (COMMAND, b"\4PONG" + context))
        for ignored in (command(b"PONG"), command(b"WHAT", b"x" * 200), command(b"ERROR", b"\4oops"), command(b"PING"),
                        command(b"PING", b"\0"), frame(b"", COMMAND), command(b"SUBSCRIBE", b"a"), ready(),
                        frame(b"\xff", COMMAND), frame(b"\4PINGxx", COMMAND, is_long=True)[:0]):
            peer.send(ignored)
        self.assertTrue(peer.ask()["ok"])
        self.assertTrue(self.peer().ask()["ok"])

    def test_frames_that_end_their_connection(self):
        for what, data in (
                ("a flag of the future", bytes((8, 1)) + b"x"), ("the highest flag", bytes((128, 1)) + b"x"),
                ("a command with more", bytes((COMMAND | MORE,)) + command(b"PING", b"\0\0")[1:]),
                ("a command in a message", frame(b"x", MORE) + command(b"PING", b"\0\0")),
                ("a command of 64 KiB", frame(b"\4PING" + bytes(65536), COMMAND)),
                *((f"{size:#x} bytes to come", b"\2" + struct.pack(">Q", size)) for size in (2**63 - 1, 2**63, 2**64 - 1, 2**40, 34 << 20)),
                ("parts of over 33 MiB", frame(bytes(1 << 20), MORE) * 34)):
            self.closes(data, what)

    def test_the_shape_of_messages(self):
        peer = self.peer()
        peer.send(frame(request(id_=5), is_long=True))
        self.assertEqual(peer.reply()["id"], 5)
        peer.send(frame(b""))
        self.assertEqual(peer.reply()["error"]["name"], "invalid")
        peer.send(frame(b"", MORE) + frame(request(id_=6)))       # as REQ does: the answer has its shape
        self.assertEqual(peer.receive_frame(), (MORE, b""))
        self.assertEqual(peer.reply()["id"], 6)
        for parts in ([b"", b"", request()], [b"x", request()], [request(), b""], [b""] * 500 + [b"x"], [b"a" * 300] * 5):
            peer.send(b"".join(frame(p, MORE) for p in parts[:-1]) + frame(parts[-1]))
            flags, body = peer.receive_frame()
            if flags == MORE:
                flags, body = peer.receive_frame()
            self.assertEqual((flags, msgpack.unpackb(body)["error"]["name"]), (0, "invalid"))
        self.assertEqual(peer.ask(id_=7)["id"], 7)

    def test_a_request_cut_anywhere_and_many_in_one_write(self):
        rng = random.Random(SEED)
        peer = self.peer()
        stream = b"".join(frame(request(id_=i), is_long=rng.random() < 0.3) for i in range(3000))
        peer.send(stream)       # no byte follows: what was read too early for its turn must not wait for one
        self.assertEqual([peer.reply()["id"] for _ in range(3000)], list(range(3000)))
        at = 0
        stream = stream[:40000]
        while at < len(stream):
            step = rng.choice((1, 2, 3, 9, 10, 64, 500))
            peer.send(stream[at:at + step])
            at += step
        last = 0
        while last < 900:
            last = peer.reply()["id"]

    def test_zeromq_peers(self):
        context = zmq.Context()
        self.addCleanup(context.destroy, 0)
        socks = []
        for kind, options in ((zmq.REQ, {}), (zmq.DEALER, {}), (zmq.DEALER, {zmq.ROUTING_ID: b"same"}),
                              (zmq.DEALER, {zmq.ROUTING_ID: b"same"}), (zmq.REQ, {zmq.ROUTING_ID: b"worker-0"}),
                              (zmq.DEALER, {zmq.ROUTING_ID: b"router"}), (zmq.DEALER, {zmq.ROUTING_ID: b"\x01" * 255}),
                              (zmq.DEALER, {zmq.HEARTBEAT_IVL: 50, zmq.HEARTBEAT_TIMEOUT: 2000, zmq.HEARTBEAT_TTL: 3000})):
            sock = context.socket(kind)
            for option, value in options.items():
                sock.setsockopt(option, value)
            sock.rcvtimeo = int(WAIT_S * 1000)
            sock.connect(self.node.endpoint)
            socks.append(sock)
        monitor = socks[-1].get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for round_ in range(3):
            for number, sock in enumerate(socks):
                sock.send(request(id_=round_ * 100 + number))
            for number, sock in enumerate(socks):
                self.assertEqual(msgpack.unpackb(sock.recv())["id"], round_ * 100 + number)
            time.sleep(0.2)
        self.assertEqual(monitor.poll(0), 0, "a peer that sends heartbeats was cut off")

    def test_strangers_at_the_sockets_of_links(self):
        for name in ("worker.ipc", "keeper.ipc", "supervisor.ipc"):
            for identity in (b"worker-0", b"worker-0." + b"0" * 32, b"router", b"worker-0.", b".", b"worker-99999999999"):
                peer = self.peer(greeting() + ready(identity=identity), name)
                try:
                    for _ in range(20):
                        peer.send(frame(os.urandom(100)))
                except ConnectionError:
                    pass
        self.assertEqual(self.client.call("count", collection="docs")["count"], 200)

    # ---- peers that mean harm ----

    def test_half_messages_do_not_fill_the_memory(self):
        before = proc(self.router, "VmRSS:")
        head = b"\2" + struct.pack(">Q", 30 << 20)
        peers = []
        for number in range(200):
            peer = self.peer()
            peer.socket.settimeout(10 * SLOW)
            peers.append(peer)
            try:
                peer.send(head + bytes(4 << 20))
            except ConnectionError:
                pass
        whole = self.peer()     # one who means it is heard
        whole.socket.settimeout(20 * SLOW)
        whole.send(frame(request("upsert", 9, collection="docs", ids=list(range(100)), vectors=bytes(30 << 20))))
        self.assertEqual(whole.reply()["id"], 9)
        self.assertLess(proc(self.router, "VmRSS:") - before, 500 << 10)
        for peer in peers:
            peer.socket.close()
        wait_until(lambda: proc(self.router, "VmRSS:") - before < 200 << 10, 10, "the memory is given back")

    def test_one_who_never_reads(self):
        before = proc(self.router, "VmRSS:")
        peer = self.peer()
        peer.socket.settimeout(1)
        ask = request("scroll", 1, collection="docs", limit=200, with_payload=True)
        sent, other = 0, self.peer()
        try:
            for sent in range(20000):
                peer.send(frame(ask))
                if sent % 200 == 0:
                    self.assertTrue(other.ask()["ok"])
        except socket.timeout:
            pass
        self.assertLess(proc(self.router, "VmRSS:") - before, 400 << 10)
        self.assertEqual(self.when_not_busy("count", collection="docs")["count"], 200)
        peer.socket.settimeout(WAIT_S)      # what it has missed is whole messages
        for _ in range(50):
            self.assertEqual(peer.reply()["id"], 1)
        peer.socket.close()

    def test_many_who_never_read_take_nothing_from_those_who_do(self):
        before = proc(self.router, "VmRSS:")
        ask = frame(request("scroll", 1, collection="docs", limit=200, with_payload=True)) * 500
        deaf = [self.peer() for _ in range(12)]
        for peer in deaf:
            peer.socket.setblocking(False)
            try:
                peer.socket.send(ask)
            except BlockingIOError:
                pass
        for number in range(30):
            reply = self.when_not_busy("scroll", collection="docs", limit=200, with_payload=True)
            self.assertEqual(len(reply["records"]), 200)
        self.assertLess(proc(self.router, "VmRSS:") - before, 600 << 10)

    def test_a_flood_does_not_hold_up_the_others(self):
        flood = self.peer()
        flood.socket.setblocking(False)
        other, worst = self.peer(), 0.0
        data, sent, end = frame(b"") * 50000, 0, time.monotonic() + 3
        while time.monotonic() < end:
            try:
                sent += flood.socket.send(data[sent % 2:])
            except BlockingIOError:
                pass
            try:
                flood.socket.recv(1 << 20)
            except BlockingIOError:
                pass
            started = time.monotonic()
            self.assertTrue(other.ask()["ok"])
            worst = max(worst, time.monotonic() - started)
        self.assertLess(worst, 0.25 * SLOW)

    def test_those_who_leave_in_the_middle(self):
        rng = random.Random(SEED)
        asks = [request(), request("count", 2, collection="docs"), request("search", 3, collection="docs", vector=[1.0, 2.0], limit=5),
                request("scroll", 4, collection="docs", limit=200, with_payload=True), b"", request("upsert", 5, collection="docs", ids=[7])]
        for number in range(400):
            with Peer(self.path) as peer:
                data = b"".join(frame(rng.choice(asks)) for _ in range(rng.randint(1, 40)))
                peer.send(data[:rng.randint(1, len(data))])
            if number % 4 == 0:     # the next one gets what it asked for and nothing else
                with Peer(self.path) as peer:
                    self.assertEqual(peer.ask(id_=number)["id"], number)
                    self.assertFalse(select.select([peer.socket], [], [], 0.005)[0])

    def test_zz_handshakes_without_an_end_are_ended(self):
        time.sleep(max(0.0, self.silent_since + 10.5 - time.monotonic()))
        for peer in self.silent:
            self.assertTrue(peer.is_closed())


class ZmtpNodeTest(unittest.TestCase):
    def test_without_descriptors_a_node_rests_and_comes_back(self):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if limit < 2000:
            self.skipTest(f"{limit} descriptors")
        with Node("clients_max = 100\n") as node:
            path = os.path.join(node.dir, "run", "client.ipc")
            router, client = node.pids()["router"][0], node.client()
            client.call("ping")
            peers = []
            for _ in range(1500):
                peer = socket.socket(socket.AF_UNIX)
                peer.setblocking(False)
                try:
                    peer.connect(path)
                except BlockingIOError:
                    pass        # so many wait already
                peers.append(peer)
            client.call("ping")
            time.sleep(0.5)
            before = cpu_s(router)
            time.sleep(1)
            self.assertLess(cpu_s(router) - before, 0.3 * SLOW, "the router spins")
            client.call("ping")
            tcp = node.facts()["endpoints"]["client_tcp"].rsplit(":", 1)[1]
            with socket.create_connection(("127.0.0.1", int(tcp)), timeout=WAIT_S) as remote:
                self.assertEqual(remote.recv(1), b"\xff", "descriptors are kept back for the other doors")
            self.assertEqual(node.pids()["router"][0], router)
            for peer in peers:
                peer.close()
            with Peer(path, hello=greeting() + ready()) as late:
                self.assertTrue(late.ask()["ok"])

    def test_clients_of_zeromq_find_a_node_that_was_started_again(self):
        with Node() as node:
            clients = [node.client() for _ in range(5)]
            for client in clients:
                client.call("ping")
            node.stop()
            node.start()
            for client in clients:
                client.call("ping", 10000)


if __name__ == "__main__":
    unittest.main()
