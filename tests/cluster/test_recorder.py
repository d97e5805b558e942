"""The power cut itself is tested: what was synced is always there, what was not is sometimes not."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

from harness import BIN, TOP

sys.path.insert(0, os.path.join(TOP, "tests", "cluster", "fsync"))
import replay    # noqa: E402

RECORDER = os.path.join(os.path.dirname(BIN), "lib", "libskerry_record.so")
PROGRAM = """
import os, sys
d = sys.argv[1]
a = os.open(d + "/synced", os.O_CREAT | os.O_RDWR)
os.pwrite(a, b"x" * 5000, 0)
os.fdatasync(a)
os.pwrite(a, b"y" * 5000, 2500)
b = os.open(d + "/direct", os.O_CREAT | os.O_WRONLY)
os.pwrite(b, b"base", 0)
os.fsync(b)
c = os.open(d + "/direct", os.O_WRONLY | os.O_DSYNC)
os.pwrite(c, b"META", 0)
os.mkdir(d + "/folder")
t = os.open(d + "/folder/new.tmp", os.O_CREAT | os.O_WRONLY)
os.write(t, b"whole")
os.fsync(t)
os.rename(d + "/folder/new.tmp", d + "/folder/new")
u = os.open(d + "/never", os.O_CREAT | os.O_WRONLY)
os.write(u, b"z" * 2000)
"""


class RecorderTest(unittest.TestCase):
    def setUp(self):
        self.assertTrue(os.path.exists(RECORDER), f"{RECORDER} was not built")
        self.folder = tempfile.mkdtemp(prefix="skr-", dir="/tmp")
        self.log = self.folder + ".log"
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.addCleanup(lambda: os.path.exists(self.log) and os.unlink(self.log))

    def images(self, count):
        records = replay.read_log(self.log)
        disk = replay.Disk(self.folder)
        for record in records:
            disk.play(record)
        self.disk = disk
        for seed in range(count):
            with tempfile.TemporaryDirectory(prefix="skr-") as target:
                disk.image(target, random.Random(seed))
                found = {}
                for folder, _, files in os.walk(target):
                    for name in files:
                        with open(os.path.join(folder, name), "rb") as file:
                            found[os.path.relpath(os.path.join(folder, name), target)] = file.read()
                yield found

    def record(self, program):
        subprocess.run([sys.executable, "-c", program, self.folder], check=True,
                       env={**os.environ, "LD_PRELOAD": RECORDER, "SKERRY_RECORD_DIR": self.folder,
                            "SKERRY_RECORD_LOG": self.log})

    def test_what_was_synced_is_always_there_and_the_rest_only_sometimes(self):
        self.record(PROGRAM)
        images = list(self.images(60))
        for image in images:
            self.assertEqual(image["synced"][:2500], b"x" * 2500)
            self.assertEqual(set(image["synced"][2500:5000]) - set(b"xy"), set())
            self.assertEqual(image["direct"], b"META")
            kept = [name for name in image if name.startswith("folder/")]
            self.assertEqual(len(kept), 1, "a synced file has one of its two names")
            self.assertEqual(image[kept[0]], b"whole")
        for what, condition in (("an unsynced write survives", lambda i: b"y" in i["synced"]),
                                ("an unsynced write is lost", lambda i: b"y" not in i["synced"]),
                                ("a write is torn", lambda i: 0 < i["synced"].count(b"y") < 5000),
                                ("a rename is lost", lambda i: "folder/new.tmp" in i),
                                ("a rename survives", lambda i: "folder/new" in i),
                                ("a file that was never synced is lost", lambda i: "never" not in i)):
            self.assertTrue(any(condition(i) for i in images), f"in 60 cuts, never: {what}")

    def test_a_cut_in_the_middle_sees_only_what_came_before(self):
        self.record(PROGRAM)
        disk = replay.Disk(self.folder)
        for record in replay.read_log(self.log)[:2]:    # created and written, not synced
            disk.play(record)
        sizes = set()
        for seed in range(40):
            with tempfile.TemporaryDirectory(prefix="skr-") as target:
                disk.image(target, random.Random(seed))
                path = os.path.join(target, "synced")
                sizes.add(os.path.getsize(path) if os.path.exists(path) else None)
        self.assertIn(None, sizes)
        self.assertGreater(len(sizes), 1)

    def test_what_it_cannot_see_it_says(self):
        self.record("import ctypes, sys\nlibc = ctypes.CDLL(None)\nlibc.fopen((sys.argv[1] + '/f').encode(), b'w')\n")
        list(self.images(1))
        self.assertEqual(len(self.disk.unseen), 1)
        self.assertIn("fopen", self.disk.unseen[0])


if __name__ == "__main__":
    unittest.main()
