"""Power cuts that kill -9 cannot show: what was not synced may be gone, in any mixture.

A real node runs under load with fsync/record.c in front of libc. Then its files are rebuilt as of many
points of that history (what was synced, and a random part of what was not), opened with the real
binaries, and compared with the ledger that was written into the same history.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import unittest

from harness import BIN, IS_LONG, SEED, TOP, Ledger, NoAnswer, Node, RequestError

sys.path.insert(0, os.path.join(TOP, "tests", "cluster", "fsync"))
import replay    # noqa: E402

DIM = 16
CUTS = 300 if IS_LONG else 50
WRITE_SECONDS = 4
RECORDER = os.path.join(os.path.dirname(BIN), "lib", "libskerry_record.so")


class MarkedLedger(Ledger):
    """A ledger that also writes itself into the recorded history."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def sent(self, ids, serial):
        replay.mark(self.log, json.dumps(["sent", ids, serial]))
        super().sent(ids, serial)

    def acknowledged(self, ids, serial):
        super().acknowledged(ids, serial)
        replay.mark(self.log, json.dumps(["acknowledged", ids, serial]))

    def refused(self, ids, serial):
        super().refused(ids, serial)
        replay.mark(self.log, json.dumps(["refused", ids, serial]))


def ledger_of(marks):
    ledger = Ledger()
    for text in marks:
        what, ids, serial = json.loads(text)
        getattr(ledger, what)(ids, serial)
    return ledger


def write_under_load(node, log):
    """Two writers, small and large requests; the collection exists in the history from its mark on."""
    client = node.client()
    client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "cosine"},
                payload={"n": "integer"})
    replay.mark(log, json.dumps(["acknowledged", [], 0]))
    end = time.monotonic() + WRITE_SECONDS
    failures = []

    def writer(number):
        try:
            own = node.client()
            ledger = MarkedLedger(log)
            rng = random.Random(SEED * 77 + number)
            ids = [number * 10000 + i for i in range(300)]
            serial = number * 1000000
            while time.monotonic() < end:
                serial += 1
                some = rng.sample(ids, rng.choice((1, 1, 3, 60)))
                if rng.random() < 0.2:
                    outcome = ledger.delete(own, "docs", some)
                else:
                    outcome = ledger.upsert(own, "docs", some, serial, DIM)
                if outcome != "ok":
                    failures.append(outcome)
                time.sleep(rng.uniform(0, 0.01))
        except Exception as error:  # a thread's failure must fail the test
            failures.append(repr(error))

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def record_history(folder, log, env=None):
    if not os.path.exists(RECORDER):
        raise FileNotFoundError(f"{RECORDER} was not built")
    node = Node(folder=folder,
                env={"LD_PRELOAD": RECORDER, "SKERRY_RECORD_DIR": folder, "SKERRY_RECORD_LOG": log,
                     **(env or {})})
    try:
        node.start()
        failures = write_under_load(node, log)
        return failures
    finally:
        node.destroy()


def check_cut(image, marks, env=None):
    """Opens one image with the real binaries; returns what is wrong, as words."""
    ledger = ledger_of(marks)
    node = Node(folder=image, env=env)
    try:
        node.start()
    except AssertionError as error:
        return [f"does not start: {str(error)[-300:]}\n{node.log()[-1500:]}"]
    try:
        client = node.client()
        if not marks:
            client.call("list_collections")     # whatever is there, it must be told
            return []
        ids = sorted({*ledger.sure, *ledger.open})
        wrong = ledger.check(client, "docs", ids, settle=True) if ids else []
        if wrong:
            return wrong
        wanted = {i for i, serial in ledger.sure.items() if serial}
        hits = client.call("search", collection="docs", vector=[0.5] * DIM, limit=10000, exact=True)["hits"]
        if {hit["id"] for hit in hits} != wanted:
            wrong.append(f"exact search shows {len(hits)} records, get shows {len(wanted)}")
        client.call("verify", 30000, collection="docs")
        outcome = ledger.upsert(client, "docs", [1, 2, 3], 99, DIM)
        if outcome != "ok":
            wrong.append(f"a write after the cut: {outcome}")
        return wrong
    except (RequestError, NoAnswer) as error:
        return [f"after the cut: {error}"]
    finally:
        node.destroy()


def run_cuts(records, folder, count, env=None, until_wrong=False):
    """Returns [(cut, words)] of the cuts that showed something wrong, and how many were looked at."""
    rng = random.Random(SEED)
    disk = replay.Disk(folder)
    wrong, played = [], 0
    points = replay.cuts(records, count, rng)
    for number, point in enumerate(points):
        while played < point:
            disk.play(records[played])
            played += 1
        image = tempfile.mkdtemp(prefix="skc-", dir="/tmp")
        try:
            disk.image(image, rng)
            for name in ("run", "log"):
                shutil.rmtree(os.path.join(image, name), ignore_errors=True)
            words = check_cut(image, disk.marks, env)
        finally:
            shutil.rmtree(image, ignore_errors=True)
        if words:
            wrong.append((point, words))
            if until_wrong:
                return wrong, number + 1, disk
    while played < len(records):
        disk.play(records[played])
        played += 1
    return wrong, len(points), disk


class LostFsyncTest(unittest.TestCase):
    def test_what_was_acknowledged_survives_every_power_cut(self):
        folder = tempfile.mkdtemp(prefix="skf-", dir="/tmp")
        log = folder + ".log"
        try:
            failures = record_history(folder, log)
            self.assertEqual(failures[:3], [], "writes failed on a healthy node")
            records = replay.read_log(log)
            wrong, looked_at, disk = run_cuts(records, folder, CUTS)
            kinds = {kind: sum(r[0] == kind for r in records) for kind in range(1, 12)}
            print(f"{len(records)} records {kinds}, {disk.syncs} syncs, {looked_at} cuts, "
                  f"{len(disk.marks)} lines of the ledger")
            self.assertEqual(disk.unseen, [], "writes that the recorder cannot see")
            self.assertGreater(disk.syncs, 50, "a load that never syncs shows nothing")
            self.assertGreater(sum("acknowledged" in m for m in disk.marks), 100)
            self.assertEqual([(p, w[:3]) for p, w in wrong[:3]], [], f"{len(wrong)} of {looked_at} cuts")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if os.path.exists(log):
                os.unlink(log)


if __name__ == "__main__":
    unittest.main()
