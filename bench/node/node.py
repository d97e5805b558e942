"""A node for the benchmark: a folder of its own, started, killed and looked at from outside."""

import glob
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

from common import BIN, Driven

SKERRY = os.path.join(BIN, "skerry")


def words(command, cores=None, check=True):
    if cores is not None:
        command = ["taskset", "-c", ",".join(str(c) for c in cores), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


class Node:
    def __init__(self, data):
        self.data = data
        self.dir = tempfile.mkdtemp(prefix="skb-", dir="/var/tmp")     # a real disk: durable means fsync
        with open(os.path.join(self.dir, "skerry.conf"), "w") as file:
            file.write("client_port = 0\nhttp_port = 0\n")             # the rest is what ships
        self.clients = []

    def start(self, cores=None):
        words([SKERRY, "node", "start", "--dir", self.dir], cores)
        return self

    def stop(self):
        for client in self.clients:
            client.end()
        self.clients = []
        words([SKERRY, "node", "stop", "--dir", self.dir])

    def destroy(self):
        for client in self.clients:
            client.end()
        words([SKERRY, "node", "stop", "--dir", self.dir], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def skerry(self, *more):
        return words([SKERRY, "--dir", self.dir, *more])

    def facts(self):
        with open(os.path.join(self.dir, "run", "node.json")) as file:
            return json.load(file)

    def pids(self):
        status = json.loads(words([SKERRY, "node", "status", "--dir", self.dir, "--json"]))
        found = {"supervisor": self.facts()["pid"]}
        for process in status["processes"]:
            found.setdefault(process["name"], process["pid"])
        return found

    def client(self, collection="bench", curve=False, cores=None, with_base=False, ef=64):
        command = [os.path.join(BIN, "bench_client"), "--collection", collection, "--queries", self.data.queries_path,
                   "--neighbours", self.data.neighbours_path, "--dim", "384", "--ef", str(ef)]
        if curve:
            facts = self.facts()
            endpoint = facts["endpoints"]["client_tcp"].replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
            command += ["--target", endpoint, "--server-key", facts["public_key"],
                        "--key", os.path.join(self.dir, "keys", "admin.key")]
        else:
            command += ["--target", self.dir]
        if with_base:
            command += ["--base", self.data.base_path]
            if self.data.payloads_path is not None:
                command += ["--payloads", self.data.payloads_path]
        client = Driven(command, cores)
        self.clients.append(client)
        return client

    def drop_client(self, client):
        self.clients.remove(client)
        client.end()

    def create(self, collection="bench"):
        self.skerry("collection", "create", collection, "--dim", "384", "--metric", "cosine", "--index", "hnsw",
                    "--m", "16", "--ef-construction", "200")

    def first_exact(self, query, began, collection="bench", seconds=60):
        """Seconds since `began` until a plain wire client has its first exact answer."""
        import msgpack
        import zmq
        request = msgpack.packb({"v": 1, "op": "search", "id": 1, "collection": collection, "exact": True, "limit": 10,
                                 "vector": query.tobytes()}, use_bin_type=True)
        path = os.path.join(self.dir, "run", "client.ipc")
        while time.monotonic() - began < seconds:
            sock = zmq.Context.instance().socket(zmq.DEALER)
            sock.linger = 0
            sock.reconnect_ivl = 5
            sock.connect("ipc://" + path)
            sock.send(request)
            while sock.poll(500):
                reply = msgpack.unpackb(sock.recv(), strict_map_key=False)
                if reply["ok"] and len(reply["hits"]) == 10 and reply["exact"]:
                    sock.close()
                    return time.monotonic() - began
                time.sleep(0.01)
                sock.send(request)
            sock.close()
        raise RuntimeError(f"no exact answer within {seconds} s after a start")

    def kill_everything(self):
        for client in self.clients:
            client.end()
        self.clients = []
        for pid in self.pids().values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        end = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}") for pid in self.last_pids()) and time.monotonic() < end:
            time.sleep(0.01)

    def last_pids(self):
        found = []
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(path, "rb") as file:
                    if self.dir.encode() in file.read():
                        pid = int(path.split("/")[2])
                        if pid != os.getpid():
                            found.append(pid)
            except OSError:
                pass
        return found

    def holds_power_request(self):
        for pid in self.last_pids():
            for path in glob.glob(f"/proc/{pid}/fd/*"):
                try:
                    if os.readlink(path) == "/dev/cpu_dma_latency":
                        return True
                except OSError:
                    pass
        return False

    def wait_let_go(self, seconds=15):
        """Until no process of the node asks for awake cores; false: it never lets go."""
        end = time.monotonic() + seconds
        while self.holds_power_request():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def pss_bytes(self, only=None):
        total = 0
        for name, pid in self.pids().items():
            if only is None or name == only:
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    for line in file:
                        if line.startswith("Pss:"):
                            total += int(line.split()[1]) * 1024
        return total

    def data_bytes(self):
        total = 0
        for folder, _, files in os.walk(os.path.join(self.dir, "data")):
            if os.path.basename(folder) == "keeper":
                continue
            for name in files:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
        return total


def binaries_bytes():
    """Our own executables and libraries, stripped, all of them."""
    total, folder = 0, tempfile.mkdtemp(prefix="skb-")
    try:
        for path in glob.glob(os.path.join(BIN, "skerry*")) + glob.glob(os.path.join(BIN, "..", "lib", "libskerry*.so*")):
            if os.path.islink(path) or "record" in path:
                continue
            copy = os.path.join(folder, os.path.basename(path))
            shutil.copy(path, copy)
            words(["strip", copy])
            total += os.path.getsize(copy)
    finally:
        shutil.rmtree(folder)
    return total
