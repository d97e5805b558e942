"""The keeper and the gateway of a real node: what holds while one of them, or the router, is away."""

import os
import re
import signal
import socket
import time
import unittest
import urllib.error
import urllib.request

import zmq

from harness import SLOW, Client, NoAnswer, Node, RequestError, binary, is_alive, kill, pack_vectors, \
    run, vector_of, wait_until

DIM = 8
ROUNDS = 8


def page(node, path, timeout_s=5):
    """(status, text, seconds)"""
    began = time.monotonic()
    try:
        with urllib.request.urlopen(node.facts()["endpoints"]["http"] + path, timeout=timeout_s) as answer:
            return answer.status, answer.read().decode(), time.monotonic() - began
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), time.monotonic() - began


def names(client):
    return set(client.call("list_collections", 10000)["collections"])


class KeeperTest(unittest.TestCase):
    def test_no_acknowledged_collection_or_key_is_lost_to_kill_9_of_the_keeper(self):
        with Node() as node:
            sure, open_, serial = set(), set(), 0
            for number in range(ROUNDS):
                client, pid, waiting = node.client(), node.pids()["metadata-keeper"][0], {}
                for _ in range(30):
                    serial += 1
                    waiting[client.send("create_collection", collection=f"c{serial}", vectors={"dim": DIM},
                                        deadline_ms=2000)] = f"c{serial}"
                time.sleep(0.004 * number)
                kill(pid, signal.SIGKILL)
                while waiting:
                    reply = client.receive(int(5000 * SLOW))
                    name = waiting.pop(reply["id"])
                    if reply["ok"]:
                        sure.add(name)
                    else:   # outcome unknown, or known not to have been made
                        self.assertIn(reply["error"]["name"], ("deadline", "unavailable"), reply)
                        open_.add(name)
                client.close()
                fresh = node.client()
                wait_until(lambda: self.is_back(node, pid), 20, "the keeper is started again")
                have = names(fresh)
                self.assertLessEqual(sure, have)
                self.assertLessEqual(have, sure | open_)
                for name in sorted(have)[:5]:
                    fresh.call("upsert", 10000, collection=name, ids=[1], vectors=[vector_of(1, DIM)])
                    self.assertEqual(fresh.call("count", collection=name)["count"], 1)
                for name in sorted(have)[:20]:
                    fresh.call("drop_collection", 10000, collection=name)
                    sure.discard(name)
                    open_.discard(name)
                fresh.close()
            self.assertGreater(len(sure), 10, "some were acknowledged before the kill")
            node.kill_everything()
            node.start()
            self.assertLessEqual(sure, names(node.client()))

    def is_back(self, node, pid):
        now = node.status()
        return now["ready"] and all(p["pid"] != pid for p in now["processes"])

    def test_searches_and_writes_go_on_while_the_keeper_is_away(self):
        with Node() as node:
            client = node.client()
            client.call("create_collection", collection="docs", vectors={"dim": DIM})
            client.call("upsert", collection="docs", ids=list(range(100)),
                        vectors=pack_vectors([vector_of(i, DIM) for i in range(100)]))
            keeper = node.pids()["metadata-keeper"][0]
            kill(keeper, signal.SIGSTOP)
            try:
                end, answered = time.monotonic() + 3, 0
                while time.monotonic() < end:
                    hits = client.call("search", 2000, collection="docs", vector=vector_of(answered % 100, DIM))["hits"]
                    self.assertEqual(hits[0]["id"], answered % 100)
                    client.call("upsert", 2000, collection="docs", ids=[1000], vectors=[vector_of(7, DIM)])
                    answered += 1
                self.assertGreater(answered, 50 / SLOW)
                self.assertEqual(client.call("list_collections")["collections"], ["docs"])
                began = time.monotonic()
                with self.assertRaises(RequestError) as caught:
                    client.call("create_collection", 5000, collection="more", vectors={"dim": DIM}, deadline_ms=500)
                self.assertIn(caught.exception.name, ("deadline", "unavailable"))
                self.assertLess(time.monotonic() - began, 1.5 * SLOW)
            finally:
                kill(keeper, signal.SIGCONT)
            wait_until(lambda: "more" in names(client) or self.makes(client, "more"), 10, "collections can be made again")

    def makes(self, client, name):
        try:
            client.call("create_collection", 3000, collection=name, vectors={"dim": DIM}, deadline_ms=1000)
            return True
        except RequestError as error:
            return error.name == "exists"

    def test_keys_come_and_go_while_running_and_survive_a_kill(self):
        with Node() as node:
            facts, admin = node.facts(), node.client()
            endpoint = facts["endpoints"]["client_tcp"].replace("0.0.0.0", "127.0.0.1")
            pairs = {}
            for number in range(5):
                public, secret = (key.decode() for key in zmq.curve_keypair())
                pairs[f"k{number}"] = (public, secret)
                admin.call("create_key", name=f"k{number}", public_key=public, role="read")
            with self.assertRaises(RequestError) as caught:
                admin.call("create_key", name="again", public_key=pairs["k0"][0], role="admin")
            self.assertEqual(caught.exception.name, "exists")
            context = zmq.Context()
            clients = {name: Client(endpoint, facts["public_key"], *pair, context=context)
                       for name, pair in pairs.items()}
            try:
                for client in clients.values():
                    client.call("ping", int(5000 * SLOW))
                for name in ("k1", "k3"):
                    admin.call("revoke_key", name=name)
                for name, client in clients.items():
                    if name in ("k1", "k3"):
                        with self.assertRaises((RequestError, NoAnswer)):
                            client.call("ping", 1000)
                    else:
                        client.call("ping", int(5000 * SLOW))
            finally:
                for client in clients.values():
                    client.close()
                context.term()
            for name in ("admin", "k4"):    # the last admin too: local clients stay admins
                admin.call("revoke_key", name=name)
            node.kill_everything()
            node.start()
            listed = {key["name"]: key for key in node.client().call("list_keys")["keys"]}
            self.assertEqual(set(listed), {"k0", "k2"})
            self.assertEqual(listed["k0"], {"name": "k0", "public_key": pairs["k0"][0], "role": "read"})

    def test_another_number_of_workers_takes_the_shards_along(self):
        node = Node(config="workers = 2\n")
        try:
            node.start()
            client = node.client()
            client.call("create_collection", collection="docs", vectors={"dim": DIM}, shards=6)
            client.call("upsert", collection="docs", ids=list(range(500)),
                        vectors=pack_vectors([vector_of(i, DIM) for i in range(500)]))
            for workers in (3, 1):
                node.stop()
                with open(os.path.join(node.dir, "skerry.conf"), "w") as file:
                    file.write(f"client_port = 0\nhttp_port = 0\nworkers = {workers}\n")
                node.start()
                client = node.client()
                self.assertEqual(client.call("count", 20000, collection="docs", deadline_ms=15000)["count"], 500)
                shards = client.call("topology")["collections"][0]["shards"]
                at = [shard["worker"] for shard in shards]
                self.assertEqual(sorted(at), sorted(number % workers for number in range(6)))
        finally:
            node.destroy()

    def test_a_second_keeper_is_refused_and_disturbs_nobody(self):
        with Node() as node:
            second = run(binary("skerry-metadata-keeper"), "--dir", node.dir, check=False)
            self.assertNotEqual(second.returncode, 0)
            self.assertIn("another keeper", second.stderr)
            node.client().call("create_collection", collection="docs", vectors={"dim": DIM})

    def test_the_state_of_a_newer_release_is_refused_with_words(self):
        with Node() as node:
            node.stop()
            path = os.path.join(node.dir, "data", "keeper", "data.mdb")
            with open(path, "r+b") as file:
                data = bytearray(file.read())
                # the pair ("format", 1) in LMDB's leaf: the key, then its value
                places = [match.end() for match in re.finditer(b"format", bytes(data)) if data[match.end()] == 1]
                self.assertTrue(places)
                for place in places:
                    data[place] = 2
                file.seek(0)
                file.write(data)
            with self.assertRaises(AssertionError) as caught:
                node.start()
            self.assertIn("format 2", str(caught.exception) + node.log())
            with open(path, "r+b") as file:
                for place in places:
                    file.seek(place)
                    file.write(b"\x01")
            node.start()


class GatewayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node().start()
        cls.node.client().call("create_collection", collection="docs", vectors={"dim": DIM})

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy()

    def metric(self, line):
        """The value of one sample, None when it is not there."""
        text = page(self.node, "/metrics")[1]
        found = re.search(f"^{re.escape(line)} (.*)$", text, re.M)
        return None if found is None else float(found.group(1))

    def test_metrics_follow_what_happens(self):
        client = self.node.client()
        before = self.metric('skerry_requests_total{op="search",code="ok"}')
        client.call("upsert", collection="docs", ids=list(range(40)),
                    vectors=pack_vectors([vector_of(i, DIM) for i in range(40)]))
        for number in range(25):
            client.call("search", collection="docs", vector=vector_of(number, DIM))
        wait_until(lambda: self.metric('skerry_requests_total{op="search",code="ok"}') == before + 25, 5, "searches are counted")
        wait_until(lambda: self.metric('skerry_records{collection="docs"}') == 40, 15, "records are counted")
        self.assertGreaterEqual(self.metric('skerry_request_seconds_count{op="search"}'), 25)
        self.assertGreater(self.metric('skerry_disk_bytes{collection="docs"}'), 0)
        self.assertIsNotNone(self.metric('skerry_index_state{collection="docs",index="default"}'))
        for process in ("router", "metadata-keeper", "shard-worker-0", "gateway"):
            self.assertEqual(self.metric(f'skerry_process_up{{process="{process}"}}'), 1, process)
            self.assertGreater(self.metric(f'skerry_process_resident_bytes{{process="{process}"}}'), 1e6, process)

    def test_a_router_that_does_not_answer_is_a_503_in_time(self):
        router = self.node.pids()["router"][0]
        time.sleep(1.2)     # pages are kept for a second
        kill(router, signal.SIGSTOP)
        try:
            for path in ("/metrics", "/readyz"):
                status, text, seconds = page(self.node, path)
                self.assertEqual(status, 503)
                self.assertIn("router", text)
                self.assertLess(seconds, 2 * SLOW + 0.3)
            self.assertEqual(page(self.node, "/healthz")[0], 200)
        finally:
            kill(router, signal.SIGCONT)
        wait_until(lambda: page(self.node, "/readyz")[0] == 200, 15, "the node is ready again")

    def test_a_stopped_worker_s_restart_is_seen(self):
        worker = self.node.pids()["shard-worker"][0]
        before = self.metric('skerry_process_restarts_total{process="shard-worker-0"}')
        kill(worker, signal.SIGKILL)
        wait_until(lambda: not is_alive(worker), 5, "it is gone")
        wait_until(lambda: self.metric('skerry_process_restarts_total{process="shard-worker-0"}') == before + 1, 15,
                   "the restart is counted")
        wait_until(lambda: page(self.node, "/readyz")[0] == 200, 15, "the node is ready again")

    def test_connections_that_trickle_do_not_keep_others_out_for_ever(self):
        host, port = self.node.facts()["endpoints"]["http"].split("//")[1].rsplit(":", 1)
        slow = []
        try:
            for _ in range(100):
                raw = socket.create_connection((host, int(port)), timeout=5)
                raw.sendall(b"GET /heal")
                slow.append(raw)

            def served():
                for raw in slow:
                    try:
                        raw.sendall(b"x")
                    except OSError:
                        pass
                try:
                    return page(self.node, "/healthz", 1)[0] == 200
                except OSError:
                    time.sleep(0.3)
                    return False
            wait_until(served, 25, "somebody else is served")
        finally:
            for raw in slow:
                raw.close()


if __name__ == "__main__":
    unittest.main()
