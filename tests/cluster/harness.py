"""Real nodes in folders of their own, for the tests in this folder."""

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("SKERRY_BIN", os.path.join(TOP, "build", "release", "bin"))
IS_LONG = os.environ.get("SK_LONG") == "1"
SLOW = float(os.environ.get("SKERRY_SLOW", "1"))     # sanitizers need more time
SEED = int(os.environ.get("SK_SEED", "1"))
sys.path.insert(0, os.path.join(TOP, "tests", "compat"))
from client_0_1 import Client, NoAnswer, RequestError, pack_vectors    # noqa: E402

# A thousand clients here need more descriptors than a login gets; the node must see to its own.
LOGIN_FILES = (min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (LOGIN_FILES[1], LOGIN_FILES[1]))

CONFIG = "client_port = 0\nhttp_port = 0\n"


def binary(name):
    path = os.path.join(BIN, name)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} was not built")
    return path


def run(*command, timeout_s=60, check=True, env=None, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s * SLOW,
                          env={**os.environ, **(env or {})}, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def wait_until(condition, seconds, what):
    """Polls until condition() is true or returns something; fails with the words of `what`."""
    end = time.monotonic() + seconds * SLOW
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds * SLOW:.0f} s: {what}")
        time.sleep(0.02)


class Node:
    def __init__(self, config="", folder=None, env=None):
        self.is_own_folder = folder is None
        self.dir = folder or tempfile.mkdtemp(prefix="skt-", dir="/tmp")
        self.env = env or {}
        with open(os.path.join(self.dir, "skerry.conf"), "w") as file:
            file.write(CONFIG + config)
        self.clients = []

    def skerry(self, *words, **options):
        return run(binary("skerry"), "--dir", self.dir, *words, **options)

    def start(self, timeout_s=30):
        run(binary("skerry"), "node", "start", "--dir", self.dir, env=self.env, timeout_s=timeout_s,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, LOGIN_FILES))
        return self

    def stop(self):
        run(binary("skerry"), "node", "stop", "--dir", self.dir, timeout_s=30)

    def status(self):
        done = run(binary("skerry"), "node", "status", "--dir", self.dir, "--json")
        return json.loads(done.stdout)

    def pids(self):
        """{name: [pid]} of the processes, the supervisor too."""
        found = {"supervisor": [self.facts()["pid"]]}
        for process in self.status()["processes"]:
            if process.get("pid") and process["pid"] not in found["supervisor"]:
                found.setdefault(process["name"], []).append(process["pid"])
        return found

    def facts(self):
        with open(os.path.join(self.dir, "run", "node.json")) as file:
            return json.load(file)

    @property
    def endpoint(self):
        return "ipc://" + os.path.join(self.dir, "run", "client.ipc")

    def client(self, **keys):
        client = Client(keys.pop("endpoint", self.endpoint), **keys)
        self.clients.append(client)
        return client

    def log(self):
        text = ""
        folder = os.path.join(self.dir, "log")
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            with open(os.path.join(folder, name), errors="replace") as file:
                text += f"--- {name}\n" + file.read()[-4000:]
        return text

    def kill_everything(self):
        """kill -9 of the supervisor and of every process of this node, as a power cut does."""
        pids = [pid for list_ in self.pids().values() for pid in list_]
        for pid in pids:
            kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in pids), 10, "killed processes are gone")

    def destroy(self):
        for client in self.clients:
            client.close()
        try:
            pid = self.facts()["pid"]
        except (OSError, ValueError, KeyError):
            pid = None      # it never came up
        try:
            if pid and self.owns(pid):
                run(binary("skerry"), "node", "stop", "--dir", self.dir, timeout_s=30, check=False)
                if self.owns(pid):
                    kill(pid, signal.SIGKILL)
        finally:
            if self.is_own_folder:
                shutil.rmtree(self.dir, ignore_errors=True)

    def owns(self, pid):
        """Whether that number is still a process of this node: another may have got it since."""
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return self.dir.encode() in file.read().split(b"\0") and is_alive(pid)
        except OSError:
            return False

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            sys.stderr.write(self.log())
            self.destroy()
            raise

    def __exit__(self, kind, *_):
        if kind is not None:
            sys.stderr.write(self.log())
        self.destroy()


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def vector_of(serial, dim):
    rng = random.Random(serial)
    return [rng.uniform(-1, 1) for _ in range(dim)]


def floats(data):
    return list(struct.unpack(f"<{len(data) // 4}f", data))


class Ledger:
    """What was sent and acknowledged for each id, one writer an id; what a read may show follows.

    A value is a serial number, 0 means that the record is gone. A write without an answer may take effect
    at any later time until a newer one is acknowledged that was sent after it was seen.
    """

    def __init__(self):
        self.sure = {}      # id -> the last acknowledged serial
        self.open = {}      # id -> serials sent since then, or before without an answer

    def sent(self, ids, serial):
        for id_ in ids:
            self.open.setdefault(id_, []).append(serial)

    def acknowledged(self, ids, serial):
        for id_ in ids:
            self.sure[id_] = serial
            self.open[id_] = [s for s in self.open[id_] if s != serial]

    def refused(self, ids, serial):
        for id_ in ids:
            self.open[id_].remove(serial)

    def allowed(self, id_):
        return {self.sure.get(id_, 0), *self.open.get(id_, [])}

    def settle(self, id_, serial):
        """After a restart, with nothing in flight: what is there now is what counts from now on."""
        self.sure[id_] = serial
        self.open[id_] = []

    def check(self, client, collection, ids, settle=False):
        """Reads every id; returns the words of what is wrong, [] when nothing is."""
        wrong = []
        ids = sorted(ids)
        for at in range(0, len(ids), 500):
            part = ids[at:at + 500]
            records = client.call("get", collection=collection, ids=part, with_payload=True,
                                  with_vector=True)["records"]
            for id_, record in zip(part, records):
                shown = 0 if record is None else record["payload"]["n"]
                if shown not in self.allowed(id_):
                    wrong.append(f"id {id_}: shows {shown}, acknowledged was {self.sure.get(id_, 0)}"
                                 f" (open: {self.open.get(id_, [])})")
                elif record is not None:
                    wanted = struct.pack(f"<{len(record['vector']) // 4}f",
                                         *vector_of(shown * 1000003 + id_, len(record["vector"]) // 4))
                    if record["vector"] != wanted:
                        wrong.append(f"id {id_}: another vector than was written with n={shown}")
                if settle:
                    self.settle(id_, shown)
        return wrong

    def upsert(self, client, collection, ids, serial, dim, timeout_ms=10000, **more):
        """Writes and keeps the ledger; returns "ok", the name of the error, or "no answer"."""
        self.sent(ids, serial)
        try:
            client.call("upsert", timeout_ms, collection=collection, ids=ids,
                        vectors=pack_vectors([vector_of(serial * 1000003 + i, dim) for i in ids]),
                        payloads=[{"n": serial} for _ in ids], **more)
        except RequestError as error:
            if error.name not in ("deadline", "unavailable"):
                self.refused(ids, serial)
            return error.name
        except NoAnswer:
            return "no answer"
        self.acknowledged(ids, serial)
        return "ok"

    def delete(self, client, collection, ids, timeout_ms=10000, **more):
        self.sent(ids, 0)
        try:
            client.call("delete", timeout_ms, collection=collection, ids=ids, **more)
        except RequestError as error:
            if error.name not in ("deadline", "unavailable"):
                self.refused(ids, 0)
            return error.name
        except NoAnswer:
            return "no answer"
        self.acknowledged(ids, 0)
        return "ok"
