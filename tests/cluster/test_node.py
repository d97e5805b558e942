"""One node from outside: what a user, an operator and a stranger see."""

import glob
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import msgpack
import zmq

from harness import BIN, SLOW, TOP, Client, Ledger, NoAnswer, Node, RequestError, binary, kill, \
    pack_vectors, run, vector_of, wait_until

DIM = 16


def fill(client, name="docs", count=300, metric="cosine", **more):
    client.call("create_collection", collection=name, vectors={"dim": DIM, "metric": metric},
                payload={"n": "integer"}, **more)
    client.call("upsert", collection=name, ids=list(range(count)),
                vectors=pack_vectors([vector_of(i, DIM) for i in range(count)]),
                payloads=[{"n": i} for i in range(count)])


class NodeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().start()
        fill(cls.node.client())

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy()

    def curve_client(self, public, secret):
        facts = self.node.facts()
        endpoint = facts["endpoints"]["client_tcp"].replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
        context = zmq.Context()
        client = Client(endpoint, facts["public_key"], public, secret, context=context)
        self.addCleanup(context.term)
        self.addCleanup(client.close)
        return client

    def add_key(self, name, role):
        public, secret = (k.decode() for k in zmq.curve_keypair())
        admin = self.node.client()
        admin.call("create_key", name=name, public_key=public, role=role)
        return public, secret, admin

    def test_status_tells_every_process(self):
        status = self.node.status()
        self.assertTrue(status["ready"])
        self.assertEqual(status["public_key"], self.node.facts()["public_key"])
        self.assertEqual(len(status["public_key"]), 40)
        names = {p["name"] for p in status["processes"]}
        self.assertLessEqual({"router", "metadata-keeper", "shard-worker", "gateway"}, names)
        for process in status["processes"]:
            self.assertGreater(process["rss_bytes"], 0, process)

    def test_secrets_and_sockets_are_the_owner_s_alone(self):
        for path in glob.glob(os.path.join(self.node.dir, "keys", "*")):
            if not path.endswith(".pub"):
                self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600, path)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.node.dir, "run")).st_mode) & 0o077, 0)

    def test_a_key_file_that_others_may_read_is_refused(self):
        with_loose_key = Node()
        try:
            with_loose_key.start()
            with_loose_key.stop()
            os.chmod(os.path.join(with_loose_key.dir, "keys", "node.key"), 0o644)
            done = run(binary("skerry"), "node", "start", "--dir", with_loose_key.dir, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("node.key", done.stderr + done.stdout)
        finally:
            with_loose_key.destroy()

    def test_a_folder_with_too_long_a_path_is_refused_with_words(self):
        base = tempfile.mkdtemp(prefix="skl-", dir="/tmp")
        try:
            folder = os.path.join(base, "x" * 100)
            os.mkdir(folder)
            done = run(binary("skerry"), "node", "start", "--dir", folder, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("107", done.stderr + done.stdout)
        finally:
            shutil.rmtree(base)

    def test_the_client_in_ten_lines_runs_as_it_is_printed(self):
        with open(os.path.join(TOP, "proto", "PROTOCOL.md")) as file:
            text = file.read()
        section = text[text.lower().index("client in ten lines"):]
        code = re.search(r"```python\n(.*?)```", section, re.S).group(1)
        folder = self.node.dir
        code = re.sub(r"ipc://[^\"']*client\.ipc", self.node.endpoint, code)
        self.assertIn(self.node.endpoint, code, "the example connects to DIR/run/client.ipc")
        lines = [line for line in code.splitlines() if line.strip()]
        self.assertLessEqual(len(lines), 14, "ten lines, they said")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              timeout=30 * SLOW, cwd=folder, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.strip(), "it prints what it found")

    def test_a_req_socket_gets_the_shape_it_sends(self):
        sock = zmq.Context.instance().socket(zmq.REQ)
        sock.linger = 0
        sock.connect(self.node.endpoint)
        for number in range(3):
            sock.send(msgpack.packb({"v": 1, "op": "ping", "id": f"r{number}"}))
            self.assertTrue(sock.poll(5000))
            reply = msgpack.unpackb(sock.recv())
            self.assertTrue(reply["ok"])
            self.assertEqual(reply["id"], f"r{number}")
        sock.close()

    def test_a_repeated_request_has_the_effect_of_one(self):
        client = self.node.client()
        for _ in range(3):
            client.call("upsert", collection="docs", ids=[7], vectors=[vector_of(7, DIM)], payloads=[{"n": 7}])
        self.assertEqual(client.call("count", collection="docs")["count"], 300)

    def test_a_revoked_key_is_out_at_its_next_message(self):
        public, secret, admin = self.add_key("leaver", "read")
        client = self.curve_client(public, secret)
        client.call("count", collection="docs")
        admin.call("revoke_key", name="leaver")
        with self.assertRaises((RequestError, NoAnswer)) as caught:
            client.call("count", 3000, collection="docs")
        if isinstance(caught.exception, RequestError):
            self.assertEqual(caught.exception.name, "unauthorized")

    def test_an_unknown_key_gets_no_answer_and_a_new_one_is_let_in_while_running(self):
        public, secret = (k.decode() for k in zmq.curve_keypair())
        stranger = self.curve_client(public, secret)
        with self.assertRaises((NoAnswer, RequestError)):
            stranger.call("ping", 1500)
        self.node.client().call("create_key", name="late", public_key=public, role="read")
        wait_until(lambda: self.answers(public, secret), 5, "a key that was added is let in")

    def answers(self, public, secret):
        try:
            self.curve_client(public, secret).call("ping", 1000)
            return True
        except NoAnswer:
            return False

    def test_roles_are_kept(self):
        reader = self.curve_client(*self.add_key("reader", "read")[:2])
        reader.call("search", collection="docs", vector=vector_of(1, DIM))
        for op, fields in (("upsert", {"ids": [1], "vectors": [vector_of(1, DIM)]}), ("delete", {"ids": [1]}),
                           ("drop_collection", {}), ("set_payload", {"ids": [1], "payload": {}})):
            with self.assertRaises(RequestError) as caught:
                reader.call(op, collection="docs", **fields)
            self.assertEqual(caught.exception.name, "forbidden", op)
        writer = self.curve_client(*self.add_key("writer", "write")[:2])
        writer.call("upsert", collection="docs", ids=[5], vectors=[vector_of(5, DIM)], payloads=[{"n": 5}])
        with self.assertRaises(RequestError) as caught:
            writer.call("create_key", name="x", public_key=zmq.curve_keypair()[0].decode(), role="admin")
        self.assertEqual(caught.exception.name, "forbidden")

    def test_a_client_that_stops_reading_does_not_stop_the_others(self):
        lazy = self.node.client()
        lazy.socket.rcvhwm = 1
        before = self.rss("router")
        for _ in range(20000):
            try:
                lazy.socket.send(msgpack.packb({"v": 1, "op": "search", "id": 1, "collection": "docs", "limit": 100,
                                                "with_payload": True, "vector": pack_vectors([vector_of(1, DIM)])},
                                               use_bin_type=True), zmq.NOBLOCK)
            except zmq.Again:
                break
        other = self.node.client()
        slowest = 0.0
        for _ in range(50):
            began = time.monotonic()
            other.call("search", collection="docs", vector=vector_of(2, DIM))
            slowest = max(slowest, time.monotonic() - began)
        self.assertLess(slowest, 4 * SLOW)
        self.assertLess(self.rss("router"), before + 300 * 1024 * 1024)
        lazy.close()

    def rss(self, name):
        return sum(p["rss_bytes"] for p in self.node.status()["processes"] if p["name"] == name)

    def test_a_thousand_clients_are_served(self):
        context = zmq.Context()
        context.max_sockets = 4000
        clients = [Client(self.node.endpoint, context=context) for _ in range(1000)]
        try:
            for client in clients:
                client.send("search", collection="docs", vector=vector_of(3, DIM), limit=1, deadline_ms=20000)
            for client in clients:
                reply = client.receive(int(20000 * SLOW))
                self.assertTrue(reply["ok"], reply)
                self.assertEqual(reply["hits"][0]["id"], 3)
        finally:
            for client in clients:
                client.close()
            context.term()

    def test_a_stopped_worker_gives_a_deadline_error_not_a_hang(self):
        client = self.node.client()
        for pid in self.node.pids()["shard-worker"]:
            kill(pid, signal.SIGSTOP)
        try:
            for op, fields in (("search", {"vector": vector_of(1, DIM)}), ("upsert", {"ids": [1], "vectors": [vector_of(1, DIM)],
                                                                                      "payloads": [{"n": 1}]})):
                began = time.monotonic()
                with self.assertRaises(RequestError) as caught:
                    client.call(op, 5000, collection="docs", deadline_ms=500, **fields)
                self.assertIn(caught.exception.name, ("deadline", "unavailable"))
                self.assertLess(time.monotonic() - began, 1.5 * SLOW)
            client.call("ping")
        finally:
            for pid in self.node.pids()["shard-worker"]:
                kill(pid, signal.SIGCONT)
        wait_until(lambda: self.serves(), 15, "the node serves again")

    def serves(self):
        with self.node.client() as client:
            try:
                client.call("count", 1500, collection="docs", deadline_ms=1000)
                return True
            except (RequestError, NoAnswer):
                return False

    def test_metrics_pass_promtool(self):
        http = self.node.facts()["endpoints"]["http"]
        base = http if http.startswith("http") else "http://" + http
        text = urllib.request.urlopen(base + "/metrics", timeout=10).read().decode()
        for name in ("skerry_requests_total", "skerry_request_seconds_bucket", "skerry_records",
                     "skerry_index_state", "skerry_process_resident_bytes", "skerry_disk_bytes"):
            self.assertIn(name, text)
        if shutil.which("promtool") is None:
            self.skipTest("promtool is not installed (package prometheus)")
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True,
                              timeout=30, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_a_snapshot_can_be_restored(self):
        client = self.node.client()
        fill(client, "kept", 50)
        client.call("snapshot", 30000, collection="kept", name="one")
        client.call("delete", collection="kept", ids=list(range(25)))
        client.call("drop_collection", collection="kept")
        client.call("restore", 30000, collection="kept", name="one")
        self.assertEqual(client.call("count", collection="kept")["count"], 50)
        records = client.call("get", collection="kept", ids=list(range(50)), with_vector=True, with_payload=True)["records"]
        for number, record in enumerate(records):
            self.assertEqual(record["payload"], {"n": number})
            self.assertEqual(record["vector"], pack_vectors([vector_of(number, DIM)]))
        client.call("upsert", collection="kept", ids=[1], vectors=[vector_of(9, DIM)], payloads=[{"n": 9}])
        for name in ("../one", "a/b", "", "."):
            with self.assertRaises(RequestError):
                client.call("snapshot", collection="kept", name=name)
        client.call("drop_collection", collection="kept")

    def test_a_dropped_collection_made_again_never_meets_its_old_records(self):
        client = self.node.client()
        for _ in range(5):
            fill(client, "again", 20)
            self.assertEqual(client.call("count", collection="again")["count"], 20)
            client.call("drop_collection", collection="again")
            with self.assertRaises(RequestError) as caught:
                client.call("count", collection="again")
            self.assertEqual(caught.exception.name, "not_found")

    def test_two_versions_of_the_client_are_served_side_by_side(self):
        libraries = {"wire 0.1": self.node.client()}
        ids = {"wire 0.1": 90001}
        sys.path.insert(0, os.path.join(TOP, "tools", "python"))
        os.environ.setdefault("SKERRY_LIB_DIR", os.path.join(os.path.dirname(BIN), "lib"))
        import skerry
        with skerry.connect(self.node.dir) as db:
            docs = db.collection("docs")
            libraries["wire 0.1"].call("upsert", collection="docs", ids=[ids["wire 0.1"]],
                                       vectors=[vector_of(1, DIM)], payloads=[{"n": 1}])
            import numpy
            docs.upsert([90002], numpy.array([vector_of(2, DIM)], dtype=numpy.float32), [{"n": 2}])
            hits = docs.search(numpy.array(vector_of(1, DIM), dtype=numpy.float32), limit=2)
            self.assertIn(90001, [hit.id for hit in hits])
        records = libraries["wire 0.1"].call("get", collection="docs", ids=[90001, 90002])["records"]
        self.assertEqual([r["id"] for r in records], [90001, 90002])
        libraries["wire 0.1"].call("delete", collection="docs", ids=[90001, 90002])


class RestartTest(unittest.TestCase):
    """What a start finds on the disk."""

    def index_files(self, node):
        return [path for path in glob.glob(os.path.join(node.dir, "data", "*", "shard-*", "**"), recursive=True)
                if os.path.isfile(path) and not path.endswith(".mdb")]

    def test_a_torn_missing_or_strange_index_file_never_stops_a_start(self):
        with Node() as node:
            client = node.client()
            fill(client, count=6000)
            client.call("wait", 60000, collection="docs", **{"for": "indexed"})
            wanted = client.call("search", collection="docs", vector=vector_of(77, DIM), exact=True)["hits"]
            for how in ("torn", "missing", "garbage", "empty", "a byte flipped"):
                node.stop()
                files = self.index_files(node)
                if how == "torn":
                    self.assertTrue(files, "no index file is written at a clean stop")
                for path in files:
                    size = os.path.getsize(path)
                    if how == "missing":
                        os.unlink(path)
                    elif how == "torn":
                        os.truncate(path, size // 2)
                    elif how == "empty":
                        os.truncate(path, 0)
                    elif how == "garbage":
                        with open(path, "wb") as file:
                            file.write(os.urandom(max(size, 100)))
                    else:
                        with open(path, "r+b") as file:
                            file.seek(size // 3)
                            byte = file.read(1)
                            file.seek(size // 3)
                            file.write(bytes([byte[0] ^ 0x10]) if byte else b"")
                node.start()
                client = node.client()
                with self.subTest(index=how):
                    for exact in (True, False):
                        hits = client.call("search", collection="docs", vector=vector_of(77, DIM), exact=exact)["hits"]
                        self.assertEqual(hits[0]["id"], 77)
                        if exact:
                            self.assertEqual(hits, wanted)
                    client.call("wait", 60000, collection="docs", **{"for": "indexed"})
                    hits = client.call("search", collection="docs", vector=vector_of(78, DIM), ef=200)["hits"]
                    self.assertEqual(hits[0]["id"], 78)
                    client.call("verify", 60000, collection="docs")

    def test_a_start_after_a_kill_in_the_middle_of_a_load_serves_at_once(self):
        with Node() as node:
            client = node.client()
            client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "l2"})
            ledger, stop = Ledger(), threading.Event()

            def load():
                own = node.client()
                serial = 0
                while not stop.is_set():
                    serial += 1
                    if ledger.upsert(own, "docs", list(range(serial * 100, serial * 100 + 100)), serial, DIM,
                                     timeout_ms=2000) != "ok":
                        time.sleep(0.05)

            thread = threading.Thread(target=load)
            thread.start()
            time.sleep(2)
            node.kill_everything()
            stop.set()
            thread.join()
            node.start()
            client = node.client()
            hits = client.call("search", collection="docs", vector=vector_of(1, DIM), exact=True)["hits"]
            self.assertEqual(len(hits), 10)
            self.assertEqual(ledger.check(client, "docs", list(ledger.open))[:5], [])
            client.call("wait", 60000, collection="docs", **{"for": "indexed"})
            client.call("verify", 60000, collection="docs")

    def test_the_log_is_kept_within_its_size(self):
        with Node("log_bytes_max = 64K\n") as node:
            path = os.path.join(node.dir, "log", "node.log")

            def size(name):
                return os.path.getsize(name) if os.path.exists(name) else 0

            for mark in ("first", "second"):
                with open(path, "a") as file:
                    file.write(f"{mark} {'x' * 1000}\n" * 80)
                wait_until(lambda: size(path) < 65536, 30, "the log begins again")
                with open(path + ".1") as file:
                    self.assertIn(mark, file.read(), "what was there is in node.log.1")
            kill(node.pids()["router"][0], signal.SIGKILL)    # every process goes on writing to the same file
            wait_until(lambda: "child=router" in node.log(), 20, "the restart is in the log")
            self.assertEqual(sorted(os.listdir(os.path.dirname(path))), ["node.log", "node.log.1"])

    def test_an_unknown_key_in_the_config_is_refused_by_name(self):
        node = Node(config="no_such_key = 1\n")
        try:
            done = run(binary("skerry"), "node", "start", "--dir", node.dir, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("no_such_key", done.stderr + done.stdout)
        finally:
            node.destroy()

    def test_sigterm_ends_every_process_and_leaves_no_socket(self):
        with Node() as node:
            pids = node.pids()
            kill(pids["supervisor"][0], signal.SIGTERM)
            wait_until(lambda: not any(os.path.exists(f"/proc/{p}") for l in pids.values() for p in l), 15,
                       "all processes are gone after SIGTERM")
            done = run(binary("skerry"), "--dir", node.dir, "count", "docs", check=False)
            self.assertEqual(done.returncode, 3)


if __name__ == "__main__":
    unittest.main()
