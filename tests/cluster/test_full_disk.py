"""A full disk is an answer: writes get disk_full, nothing is lost, deletes still work, and it heals."""

import os
import shutil
import subprocess
import tempfile
import time
import unittest

from harness import Ledger, NoAnswer, Node, RequestError

DIM = 384
MEBIBYTES = 48


@unittest.skipUnless(os.geteuid() == 0, "mounting a small tmpfs needs root")
class FullDiskTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="skd-", dir="/tmp")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", self.folder],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(self.folder)
            self.skipTest(f"no tmpfs can be mounted here: {done.stderr.strip()}")

    def tearDown(self):
        subprocess.run(["umount", "-l", self.folder], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def fill(self, ledger, client, first):
        """Upserts until the disk says no; returns the ids written and the name of the refusal."""
        at = first
        for _ in range(2000):
            ids = list(range(at, at + 100))
            outcome = ledger.upsert(client, "docs", ids, at + 1, DIM, timeout_ms=30000, deadline_ms=20000)
            if outcome == "busy":
                time.sleep(0.05)
                continue
            if outcome != "ok":
                return at, outcome
            at += 100
        self.fail("the disk does not fill")

    def test_a_full_disk_is_an_answer(self):
        with Node(folder=self.folder) as node:
            client = node.client()
            client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "cosine"},
                        payload={"n": "integer"})
            ledger = Ledger()
            pids = node.pids()
            last, outcome = self.fill(ledger, client, 0)
            self.assertEqual(outcome, "disk_full")
            self.assertGreater(last, 500, "it was full before anything fitted")
            with self.assertRaises(RequestError) as caught:
                client.call("upsert", 30000, collection="docs", ids=[10**9],
                            vectors=[[0.5] * DIM], payloads=[{"n": 1, "pad": "x" * 60000}])
            if caught.exception.name == "disk_full":
                self.assertTrue(caught.exception.retriable)
            self.assertEqual(ledger.check(client, "docs", list(ledger.open)), [])
            hits = client.call("search", 30000, collection="docs", vector=[0.5] * DIM, limit=10, exact=True)["hits"]
            self.assertEqual(len(hits), 10)
            self.assertEqual(node.pids(), pids, "a process was replaced:\n" + node.log())

            # Deletes work, and give room for writes again.
            gone = list(range(0, last, 2))
            for at in range(0, len(gone), 100):
                self.assertEqual(ledger.delete(client, "docs", gone[at:at + 100], timeout_ms=30000), "ok",
                                 "a delete on a full disk")
            self.assertEqual(ledger.check(client, "docs", list(ledger.open)), [])
            written = 0
            for at in range(0, len(gone) // 2, 100):
                end = time.monotonic() + 20
                outcome = ""
                while time.monotonic() < end:
                    outcome = ledger.upsert(client, "docs", gone[at:at + 20], last + at + 2, DIM, timeout_ms=30000)
                    if outcome == "ok":
                        written += 1
                        break
                    self.assertIn(outcome, ("disk_full", "busy"))
                    client.call("compact", 30000, collection="docs")
                if outcome != "ok":
                    break
            self.assertGreater(written, 0, "room given back is not used again")

            # And all of it is there after a start, on the same full disk.
            node.kill_everything()
            node.start()
            client = node.client()
            wrong = ledger.check(client, "docs", list(ledger.open))
            self.assertEqual(wrong[:5], [])
            client.call("verify", 30000, collection="docs")

    def test_a_write_that_was_refused_leaves_nothing_behind(self):
        with Node(folder=self.folder) as node:
            client = node.client()
            client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "l2"})
            ledger = Ledger()
            last, outcome = self.fill(ledger, client, 0)
            self.assertEqual(outcome, "disk_full")
            try:
                count = client.call("count", 30000, collection="docs")["count"]
            except NoAnswer:
                self.fail("count has no answer on a full disk")
            self.assertEqual(count, last)


if __name__ == "__main__":
    unittest.main()
