"""Start, stop and what comes between: what the supervisor does with its processes and says to others."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import msgpack
import zmq

from harness import SLOW, Node, binary, is_alive, kill, run, vector_of, wait_until

DIM = 8


def start(node, check=False, timeout_s=60):
    return run(binary("skerry"), "node", "start", "--dir", node.dir, check=check, timeout_s=timeout_s)


def children(node):
    return {(p["name"], p["number"]): p["pid"] for p in node.status()["processes"] if p["name"] != "supervisor"}


class RefusedStartTest(unittest.TestCase):
    def refused(self, *words, config="", prepare=None):
        node = Node(config=config)
        try:
            if prepare is not None:
                prepare(node)
            began = time.monotonic()
            done = start(node)
            self.assertNotEqual(done.returncode, 0)
            for word in words:
                self.assertIn(word, done.stderr + done.stdout)
            self.assertLess(time.monotonic() - began, 20 * SLOW)
            self.assertFalse(os.path.exists(os.path.join(node.dir, "run", "node.json")))
        finally:
            node.destroy()

    def test_a_port_that_is_in_use_is_named(self):
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused(str(port), "in use", config=f"client_port = {port}\n")
            self.refused(str(port), "in use", config=f"http_port = {port}\n")

    def test_an_address_that_is_not_of_this_machine_is_named(self):
        self.refused("192.0.2.1", config="client_address = 192.0.2.1\n")
        self.refused("nonsense", config="http_address = nonsense\n")

    def test_a_config_of_garbage_is_refused_by_name(self):
        def garbage(node):
            with open(os.path.join(node.dir, "skerry.conf"), "wb") as file:
                file.write(os.urandom(3000))
        self.refused("skerry.conf", prepare=garbage)
        self.refused("workers: 0, want 1..64", config="workers = 0\n")

    def test_a_file_where_a_folder_should_be_is_named(self):
        def in_the_way(node):
            with open(os.path.join(node.dir, "data"), "w") as file:
                file.write("not a folder")
        self.refused("data' is not a folder", prepare=in_the_way)

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("mount"), "mounting needs root")
    def test_a_read_only_folder_is_refused_with_words(self):
        node = Node().start()
        node.stop()
        try:
            subprocess.run(["mount", "--bind", node.dir, node.dir], check=True)
            try:
                if subprocess.run(["mount", "-o", "remount,bind,ro", node.dir], check=False).returncode != 0:
                    self.skipTest("a bind mount cannot be made read-only here")
                done = start(node)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("Read-only", done.stderr + done.stdout)
                done = run(binary("skerry-supervisor"), "--dir", node.dir, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn("Read-only", done.stderr)
            finally:
                subprocess.run(["umount", node.dir], check=True)
            node.start()
        finally:
            node.destroy()


class WithNode(unittest.TestCase):
    config = ""

    def setUp(self):
        self.node = Node(config=self.config).start()
        self.addCleanup(self.node.destroy)


class RunningTest(WithNode):
    def ask_supervisor(self, request):
        sock = zmq.Context.instance().socket(zmq.DEALER)
        sock.linger = 0
        sock.connect("ipc://" + os.path.join(self.node.dir, "run", "supervisor.ipc"))
        try:
            sock.send(msgpack.packb({"v": 1, "id": 1, **request}))
            self.assertTrue(sock.poll(5000 * SLOW), "the supervisor answers")
            return msgpack.unpackb(sock.recv())
        finally:
            sock.close()

    def test_a_second_supervisor_is_refused_and_harms_nothing(self):
        before = children(self.node)
        done = run(binary("skerry-supervisor"), "--dir", self.node.dir, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("already", done.stderr)
        self.assertEqual(children(self.node), before)
        self.node.client().call("ping")

    def test_each_process_that_is_killed_comes_back_alone_and_where_it_was(self):
        endpoints = self.node.facts()["endpoints"]
        for child in children(self.node):
            before = children(self.node)
            kill(before[child], signal.SIGKILL)
            wait_until(lambda: children(self.node)[child] not in (0, before[child]) and self.node.status()["ready"],
                       20, f"{child} is back")
            after = children(self.node)
            self.assertEqual({c: p for c, p in after.items() if c != child},
                             {c: p for c, p in before.items() if c != child})
            self.assertEqual(self.node.facts()["endpoints"], endpoints)
            self.assertEqual([p["restarts"] for p in self.node.status()["processes"]
                              if (p["name"], p["number"]) == child], [1])

    def test_an_edited_config_counts_from_the_next_start_of_the_node(self):
        before = children(self.node)
        with open(os.path.join(self.node.dir, "skerry.conf"), "a") as file:
            file.write("workers = 3\nno_such_key = 1\n")
        kill(before[("metadata-keeper", 0)], signal.SIGKILL)
        wait_until(lambda: children(self.node)[("metadata-keeper", 0)] not in (0, before[("metadata-keeper", 0)])
                   and self.node.status()["ready"], 20, "the keeper is back")
        client = self.node.client()
        client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "l2"}, shards=4)
        self.assertEqual(client.call("count", collection="docs")["count"], 0)    # nobody waits for workers 1 and 2
        self.node.stop()
        self.assertNotEqual(start(self.node).returncode, 0)

    def test_children_die_with_their_supervisor_and_the_next_one_starts_at_once(self):
        before, pid = children(self.node), self.node.facts()["pid"]
        kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), 10, "the supervisor is dead")     # its children need not be yet
        start(self.node, check=True, timeout_s=15)
        self.assertFalse(any(is_alive(pid) for pid in before.values()))
        self.node.client().call("ping")

    def test_a_stop_leaves_neither_process_nor_socket(self):
        pids = [*children(self.node).values(), self.node.facts()["pid"]]
        self.node.stop()
        self.assertFalse(any(is_alive(pid) for pid in pids))
        left = os.listdir(os.path.join(self.node.dir, "run"))
        self.assertEqual([name for name in left if name.endswith((".ipc", ".json"))], [])

    def test_the_supervisor_answers_what_is_its_own_and_stops_when_asked(self):
        reply = self.ask_supervisor({"op": "ping"})
        self.assertEqual((reply["ok"], reply["error"]["name"]), (False, "invalid"))
        self.assertIn("client.ipc", reply["error"]["message"])
        reply = self.ask_supervisor({"op": "node_status", "limit": 3})
        self.assertEqual((reply["ok"], reply["error"]["name"]), (False, "unknown_field"))
        self.assertTrue(self.ask_supervisor({"op": "node_status"})["ready"])
        pid = self.node.facts()["pid"]
        self.assertTrue(self.ask_supervisor({"op": "node_stop"})["ok"])
        wait_until(lambda: not is_alive(pid), 20, "the node has ended")


class SeveralWorkersTest(WithNode):
    config = "workers = 3\n"

    def test_every_worker_has_shards_and_its_own_number(self):
        self.assertEqual(sorted(n for name, n in children(self.node) if name == "shard-worker"), [0, 1, 2])
        client = self.node.client()
        client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "l2"}, shards=3)
        ids = list(range(200))
        client.call("upsert", collection="docs", ids=ids, vectors=[vector_of(i, DIM) for i in ids])
        self.assertEqual(client.call("count", collection="docs")["count"], 200)


class SilentTest(WithNode):
    config = "heartbeat_timeout_ms = 1500\nstop_timeout_ms = 2000\n"

    def test_a_process_that_says_nothing_is_replaced(self):
        worker = children(self.node)[("shard-worker", 0)]
        kill(worker, signal.SIGSTOP)
        wait_until(lambda: children(self.node)[("shard-worker", 0)] not in (0, worker), 20, "the worker is replaced")
        wait_until(lambda: self.node.status()["ready"], 20, "the node is ready again")
        self.node.client().call("ping")

    def test_a_stop_is_over_in_bounded_time_when_a_process_does_not_end(self):
        worker = children(self.node)[("shard-worker", 0)]
        kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        self.node.stop()
        self.assertLess(time.monotonic() - began, 10 * SLOW)
        self.assertFalse(is_alive(worker))

    def test_a_supervisor_that_was_stopped_itself_kills_nobody(self):
        before, pid = children(self.node), self.node.facts()["pid"]
        kill(pid, signal.SIGSTOP)
        time.sleep(6)
        kill(pid, signal.SIGCONT)
        time.sleep(1)
        self.assertEqual(children(self.node), before)


class NotifyTest(unittest.TestCase):
    def test_systemd_is_told_ready_status_watchdog_and_stopping(self):
        node = Node()
        folder = tempfile.mkdtemp(prefix="skn-", dir="/tmp")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.bind(folder + "/notify")
                notify.settimeout(20 * SLOW)
                process = subprocess.Popen(
                    [binary("skerry-supervisor"), "--dir", node.dir, "--foreground"], stderr=subprocess.DEVNULL,
                    env={**os.environ, "NOTIFY_SOCKET": folder + "/notify", "WATCHDOG_USEC": "300000"})
                try:
                    heard = []
                    while heard.count("WATCHDOG=1") < 3 or "READY=1" not in heard:
                        heard.append(notify.recv(4096).decode())
                    self.assertTrue(node.facts()["public_key"], "node.json is there before READY=1")
                    self.assertTrue(any(word.startswith("STATUS=") and "ready" in word for word in heard), heard)
                    process.terminate()
                    while "STOPPING=1" not in heard:
                        heard.append(notify.recv(4096).decode())
                    self.assertEqual(process.wait(20 * SLOW), 0)
                finally:
                    process.kill()
                    process.wait()
        finally:
            shutil.rmtree(folder)
            node.destroy()


class ByHandTest(unittest.TestCase):
    def test_a_relative_folder_works(self):
        node = Node()
        process = subprocess.Popen([binary("skerry-supervisor"), "--dir", os.path.basename(node.dir)],
                                   cwd=os.path.dirname(node.dir), stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: os.path.exists(os.path.join(node.dir, "run", "node.json")), 20, "the node is ready")
            node.client().call("ping")
        finally:
            process.terminate()
            self.assertEqual(process.wait(20 * SLOW), 0)
            node.destroy()

    def test_every_executable_has_help_version_and_the_effective_config(self):
        node = Node(config="workers = 2\n")
        try:
            for name in ("supervisor", "metadata-keeper", "router", "shard-worker", "gateway"):
                command = binary("skerry-" + name)
                self.assertIn("wakeup_idle_ms = 2000   (10..600000 ms)", run(command, "--help").stdout)
                self.assertIn("0.", run(command, "--version").stdout)
                self.assertIn("workers = 2\n", run(command, "--dir", node.dir, "--print-config").stdout)
                self.assertEqual(run(command, "--no-such-option", check=False).returncode, 2)
        finally:
            node.destroy()


if __name__ == "__main__":
    unittest.main()
