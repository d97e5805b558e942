"""The skerry command: what it prints, what it returns, what it reads and writes."""

import csv
import gzip
import json
import os
import pty
import random
import select
import signal
import struct
import subprocess
import tempfile
import time
import unittest

from harness import SLOW, Node, binary, run, wait_until

DIM = 8


def numbers(row):
    rng = random.Random(row)
    return [round(rng.uniform(-1, 1), 3) for _ in range(DIM)]


def npy(path, kind, rows, pack):
    """rows of tuples, or plain numbers."""
    is_flat = not isinstance(rows[0], (list, tuple))
    shape = f"({len(rows)},)" if is_flat else f"({len(rows)}, {len(rows[0])})"
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for row in rows:
            file.write(struct.pack("<" + pack * (1 if is_flat else len(row)), *([row] if is_flat else row)))


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp")
        cls.state = {"XDG_STATE_HOME": os.path.join(cls.folder.name, "state")}
        cls.node = Node().start()
        cls.path("rows.npy")
        npy(cls.path("rows.npy"), "<f4", [numbers(i) for i in range(1200)], "f")
        with gzip.open(cls.path("payloads.jsonl.gz"), "wt") as file:
            for i in range(1200):
                file.write(json.dumps({"n": i, "word": f"w{i % 7}", "key": f"k{i}"}) + "\n")
        cls.skerry("collection", "create", "docs", "--dim", str(DIM), "--field", "word:keyword", "--field", "n:integer")
        cls.skerry("import", "docs", cls.path("rows.npy"), "--payload", cls.path("payloads.jsonl.gz"))

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy()
        cls.folder.cleanup()

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder.name, name)

    @classmethod
    def skerry(cls, *words, status=0, **options):
        done = run(binary("skerry"), "--dir", cls.node.dir, *words, check=False, env=cls.state, **options)
        if done.returncode != status:
            raise AssertionError(f"{' '.join(words)}: ended with {done.returncode}, not {status}:\n"
                                 f"{done.stdout}{done.stderr}")
        return done

    @classmethod
    def json(cls, *words, **options):
        lines = cls.skerry(*words, "--json", **options).stdout.splitlines()
        if len(lines) != 1:
            raise AssertionError(f"{words}: one line of JSON was expected: {lines}")
        return json.loads(lines[0])

    # ---- Status and words ----

    def test_the_exit_status_and_where_words_go(self):
        for words, status, text in ((("count", "nothing"), 1, "not_found"), (("cuont", "docs"), 2, "did you mean 'count'"),
                                    (("count",), 2, "usage: skerry count NAME"), (("count", "docs", "--fitler", "x"), 2, "--filter"),
                                    (("count", "docs", "--filter", "{"), 2, "--filter"), (("search", "docs"), 2, "--like"),
                                    (("get", "docs", "99999999"), 1, "no record 99999999"),
                                    (("search", "docs", "--like", "1", "--limit", "x"), 2, "--limit"),
                                    (("snapshot", "docs", "../x"), 2, "path"), (("delete", "docs"), 2, "--filter"),
                                    (("collection",), 2, "wants one of: create, list"),
                                    (("node", "stop", "x"), 2, "usage: skerry node stop"),
                                    (("count", "docs", "--filter"), 2, "wants a value"), (("--dir",), 2, "wants a value"),
                                    (("--connect", "tcp://127.0.0.1:1", "count", "docs"), 2, "two nodes")):
            done = self.skerry(*words, status=status)
            self.assertEqual(done.stdout, "")
            self.assertIn(text, done.stderr)
        done = run(binary("skerry"), "--dir", self.path("nowhere"), "count", "docs", check=False)
        self.assertEqual((done.returncode, done.stdout), (3, ""))
        done = self.skerry("get", "docs", "1", "99999999", "--json", status=1)
        self.assertEqual([record and record["id"] for record in json.loads(done.stdout)["records"]], [1, None])
        done = self.skerry("count", "nothing", "--json", status=1)
        error = json.loads(done.stderr)["error"]
        self.assertEqual((error["code"], error["name"], error["field"]), (12, "not_found", "collection"))

    def test_every_command_has_help_and_takes_json(self):
        overview = run(binary("skerry"), "--help").stdout
        commands = [line[2:22].strip() for line in overview.split("Commands:")[1].split("Options:")[0].splitlines() if line.strip()]
        self.assertGreater(len(commands), 25)
        for command in commands:
            text = run(binary("skerry"), *command.split(), "--help").stdout
            self.assertIn("usage: skerry", text)
            self.assertIn("--json", text)

    # ---- Records ----

    def test_search_shows_hits_and_the_chosen_members(self):
        text = self.skerry("search", "docs", "--like", "5", "--limit", "3", "--with-payload", "word,n").stdout
        self.assertIn("word", text)
        self.assertNotIn("key ", text)
        reply = self.json("search", "docs", "--file", self.path("rows.npy"), "--row", "7", "--limit", "2", "--exact",
                          "--with-payload=n")
        self.assertEqual(reply["hits"][0]["id"], 7)
        self.assertEqual(reply["hits"][0]["payload"], {"n": 7})
        self.assertTrue(reply["exact"])
        reply = self.json("search", "docs", "--id", "5", "--filter", '{"must":[{"key":"word","match":"w1"}]}',
                          "--with-payload", "--ef", "100")
        self.assertEqual({hit["payload"]["word"] for hit in reply["hits"]}, {"w1"})
        self.skerry("search", "docs", "--file", self.path("rows.npy"), "--row", "1200", status=2)

    def test_ids_are_typed_as_they_are_printed(self):
        self.skerry("collection", "create", "ids", "--dim", "2")
        with open(self.path("ids.jsonl"), "w") as file:
            for id_ in (5, "5", "a b", 18446744073709551615):
                file.write(json.dumps({"id": id_, "vector": [1, 2]}) + "\n")
        self.skerry("import", "ids", self.path("ids.jsonl"))
        self.assertEqual(self.skerry("count", "ids").stdout, "4\n")
        for word in ("5", "str:5", "a b", "18446744073709551615"):
            self.assertEqual(self.skerry("get", "ids", word).stdout.splitlines()[0], word)
        self.assertEqual(self.skerry("delete", "ids", "str:5", "18446744073709551615", "6").stdout, "2\n")
        self.skerry("get", "ids", "18446744073709551616", status=2)
        self.skerry("collection", "drop", "ids")

    def test_delete_and_count_take_filters(self):
        where = '{"must":[{"key":"n","range":{"gte":1190}}]}'
        self.assertEqual(self.json("count", "docs", "--filter", where)["count"], 10)
        self.assertEqual(self.json("delete", "docs", "--filter", where)["deleted"], 10)
        self.assertEqual(self.skerry("count", "docs", "--filter", where).stdout, "0\n")
        self.skerry("import", "docs", self.path("rows.npy"), "--payload", self.path("payloads.jsonl.gz"), "--restart")

    # ---- Files ----

    def imported(self, name, *more, rows=3):
        self.skerry("collection", "create", "file", "--dim", str(DIM))
        self.addCleanup(self.skerry, "collection", "drop", "file")
        self.skerry("import", "file", self.path(name), *more)
        text = self.skerry("export", "file", "-").stdout
        records = [json.loads(line) for line in text.splitlines()]
        self.assertEqual(len(records), rows)
        return {record["id"]: record for record in records}

    def check_vectors(self, records, ids=(0, 1, 2), places=3):
        for row, id_ in enumerate(ids):
            for wanted, got in zip(numbers(row), records[id_]["vector"]):
                self.assertAlmostEqual(wanted, got, places)

    def test_import_of_npy_in_every_kind(self):
        npy(self.path("ids.npy"), "<i8", [11, 12, 13], "q")
        for kind, pack, places in (("<f4", "f", 5), ("<f8", "d", 5), ("<f2", "e", 2)):
            with self.subTest(kind=kind):
                npy(self.path("k.npy"), kind, [numbers(i) for i in range(3)], pack)
                self.check_vectors(self.imported("k.npy", "--ids", self.path("ids.npy")), (11, 12, 13), places)
                self.doCleanups()
        npy(self.path("k.npy"), "|i1", [[i + j for j in range(DIM)] for i in range(3)], "b")
        self.assertEqual(self.imported("k.npy")[1]["vector"], [1.0 + j for j in range(DIM)])

    def test_import_of_fvecs_and_bvecs_also_packed(self):
        data = b"".join(struct.pack(f"<i{DIM}f", DIM, *numbers(i)) for i in range(3))
        with gzip.open(self.path("v.fvecs.gz"), "wb") as file:
            file.write(data)
        self.check_vectors(self.imported("v.fvecs.gz"))
        self.doCleanups()
        with open(self.path("v.bvecs"), "wb") as file:
            file.write(b"".join(struct.pack(f"<i{DIM}B", DIM, *range(i, i + DIM)) for i in range(3)))
        self.assertEqual(self.imported("v.bvecs")[2]["vector"], [2.0 + j for j in range(DIM)])

    def test_import_of_csv(self):
        with open(self.path("r.csv"), "w") as file:
            file.write("id,title,count," + ",".join(f"v{j}" for j in range(DIM)) + "\n")
            for i, title in enumerate(('"a, ""b"""', "plain", "")):
                file.write(f"x{i},{title},{i}," + ",".join(str(n) for n in numbers(i)) + "\n")
        records = self.imported("r.csv")
        self.check_vectors(records, ("x0", "x1", "x2"))
        self.assertEqual(records["x0"]["payload"], {"title": 'a, "b"', "count": 0})
        self.assertEqual(records["x2"]["payload"], {"count": 2})

    def test_a_csv_field_in_quotes_goes_over_lines(self):
        with open(self.path("lines.csv"), "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "a\nb"] + [f"v{j}" for j in range(DIM)] + ["last"])
            for i, text in enumerate(("one\ntwo\n\n\"three\"", "5\" pipe", "a,\nb")):
                writer.writerow([i, text] + numbers(i) + [f"end\n{i}"])
        records = self.imported("lines.csv")
        self.check_vectors(records)
        self.assertEqual(records[0]["payload"], {"a\nb": "one\ntwo\n\n\"three\"", "last": "end\n0"})
        self.assertEqual((records[1]["payload"]["a\nb"], records[2]["payload"]["a\nb"]), ("5\" pipe", "a,\nb"))

    def test_import_of_a_matrix_in_fortran_order(self):
        rows = [numbers(i) for i in range(3)]
        for kind, code in (("<f4", "f"), ("<f8", "d")):
            npy(self.path("f.npy"), kind, [list(column) for column in zip(*rows)], code)    # its transpose, row by row
            with open(self.path("f.npy"), "rb") as file:
                data = file.read()
            data = data.replace(b"False", b"True ").replace(f"({DIM}, 3)".encode(), f"(3, {DIM})".encode())
            with open(self.path("f.npy"), "wb") as file:
                file.write(data)
            self.check_vectors(self.imported("f.npy"))
            self.doCleanups()
            with open(self.path("f.npy"), "wb") as file:
                file.write(data[:-5])
            self.assertIn("cut", self.skerry("import", "docs", self.path("f.npy"), status=1).stderr)

    def test_what_export_writes_import_reads_again(self):
        self.skerry("collection", "create", "named", "--vector", f"a:{DIM}", "--vector", "b:2:l2")
        lines = [json.dumps({"id": i, "vector": {"a": numbers(i), "b": [i, 1]}, "payload": {"t": [i]}}) for i in range(3)]
        with open(self.path("n.jsonl"), "w") as file:
            file.write("\n".join(lines) + "\n")
        self.skerry("import", "named", self.path("n.jsonl"))
        self.skerry("export", "named", self.path("first.jsonl"))
        self.skerry("delete", "named", "0", "1", "2")
        self.skerry("import", "named", self.path("first.jsonl"))
        self.skerry("export", "named", self.path("second.jsonl"))
        with open(self.path("first.jsonl")) as first, open(self.path("second.jsonl")) as second:
            text = first.read()
            self.assertEqual(text, second.read())
        self.assertEqual(json.loads(text.splitlines()[2])["vector"]["b"], [2.0, 1.0])
        self.skerry("export", "named", self.path("b.npy"), "--using", "b", "--ids", self.path("b.ids"))
        with open(self.path("b.npy"), "rb") as file:
            self.assertEqual(file.read()[-8:], struct.pack("<2f", 2, 1))
        self.skerry("collection", "drop", "named")

    def test_a_bad_file_is_refused_with_its_place(self):
        with open(self.path("rows.npy"), "rb") as file:
            whole = file.read()
        for name, data, text in (("cut.npy", whole[:-7], "cut"),
                                 ("empty.npy", b"", "empty"), ("x.npy", b"hello, this is no numpy file", "not a .npy"),
                                 ("bad.jsonl", b'{"id":1,"vector":[1]}\n{"id":\n', "line 2"),
                                 ("bad.csv", b'id,v0\n1,"2\n', "quote"), ("x.txt", b"1", "format"),
                                 ("torn.npy.gz", gzip.compress(b"x" * 1000)[:-12], "torn.npy.gz")):
            with open(self.path(name), "wb") as file:
                file.write(data)
            self.assertIn(text, self.skerry("import", "docs", self.path(name), status=1).stderr)
        self.assertEqual(self.json("count", "docs")["count"], 1200)

    def test_an_import_that_was_killed_goes_on_where_it_was(self):
        rows = 20000
        npy(self.path("many.npy"), "<f4", [numbers(i) for i in range(rows)], "f")
        self.skerry("collection", "create", "many", "--dim", str(DIM), "--index", "flat")
        self.addCleanup(self.skerry, "collection", "drop", "many")
        command = [binary("skerry"), "--dir", self.node.dir, "import", "many", self.path("many.npy"), "--batch", "2", "--window", "2"]
        child = subprocess.Popen(command, env={**os.environ, **self.state}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        state = os.path.join(self.state["XDG_STATE_HOME"], "skerry")

        def is_begun():
            for name in os.listdir(state):
                with open(os.path.join(state, name)) as file:
                    if "many" in file.read():
                        return True
            return False
        wait_until(lambda: child.poll() is not None or (os.path.isdir(state) and is_begun()), 20, "the import has saved how far it came")
        self.assertIsNone(child.poll(), "the import ended before it could be killed")
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = self.json("count", "many")["count"]
        self.assertLess(before, rows)
        reply = self.json("import", "many", self.path("many.npy"))
        self.assertGreater(reply["resumed_from"], 0)
        self.assertLessEqual(reply["resumed_from"], before)
        self.assertEqual(reply["resumed_from"] + reply["imported"], rows)
        self.assertEqual(self.json("count", "many")["count"], rows)
        self.assertEqual(self.json("import", "many", self.path("many.npy"))["resumed_from"], 0, "it was done")

    # ---- The node ----

    def test_topology_is_a_picture_of_the_whole_node(self):
        text = self.skerry("topology").stdout
        for word in ("router", "metadata-keeper", "shard-worker 0", "gateway", "docs/0", "1,200 records", "% cpu", "MB"):
            self.assertIn(word, text)
        reply = self.json("topology")
        self.assertEqual(reply["collections"][0]["name"], "docs")
        self.assertEqual({p["name"] for p in reply["processes"]} & {"router", "gateway"}, {"router", "gateway"})

    def test_stats_info_and_describe(self):
        self.assertIn("search", self.skerry("stats").stdout + self.skerry("search", "docs", "--like", "1").stdout)
        self.assertGreater(len(self.json("stats")["latency"]), 0)
        self.assertEqual(self.json("info")["version"], run(binary("skerry"), "--version").stdout.split()[1])
        self.assertEqual(self.json("collection", "describe", "docs")["payload"], {"word": "keyword", "n": "integer"})
        self.assertIn("docs", self.skerry("collection", "list").stdout.split())

    def test_top_shows_one_look_or_lives_until_q(self):
        text = self.skerry("top", "--once", "--interval-s", "0.3").stdout
        self.assertIn("a second", text)
        self.assertIn("docs", text)
        self.assertNotIn("\033", text)
        for key in (b"q", b"\x03"):
            pid, terminal = pty.fork()
            if pid == 0:
                os.execv(binary("skerry"), ["skerry", "--dir", self.node.dir, "top", "--interval-s", "0.2"])
            shown = b""
            end = time.monotonic() + 10 * SLOW
            while b"q ends" not in shown and time.monotonic() < end:
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 65536)
            self.assertIn(b"shard-worker 0", shown)
            os.write(terminal, key)
            while True:
                try:
                    data = os.read(terminal, 65536)
                except OSError:
                    break
                shown += data
                if not data:
                    break
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
            self.assertTrue(shown.endswith(b"\033[?1049l"), "the screen is given back")
            os.close(terminal)

    def test_bench_measures_both_loops_with_recall(self):
        for more in (("--in-flight", "4"), ("--rate", "200"), ("--file", self.path("rows.npy"), "--query-count", "50")):
            reply = self.json("bench", "docs", "--seconds", "1", *more)
            self.assertGreater(reply["requests"], 20)
            self.assertEqual(reply["errors"], 0)
            self.assertGreater(reply["recall"], 0.9)
            self.assertTrue(0 < reply["p50_us"] <= reply["p99_us"] <= reply["p999_us"])
        text = self.skerry("bench", "docs", "--seconds", "1").stdout
        for word in ("p50", "p99", "p99.9", "recall@10"):
            self.assertIn(word, text)

    def test_keys_let_a_client_in_and_out_again(self):
        facts = self.node.facts()
        elsewhere = ("--connect", facts["endpoints"]["client_tcp"].replace("0.0.0.0", "127.0.0.1"),
                     "--server-key", os.path.join(self.node.dir, "keys", "node.pub"))

        def from_elsewhere(*words):
            return run(binary("skerry"), *elsewhere, *words, check=False)
        key = self.path("bob.key")
        made = self.json("keys", "make", "bob", "--role", "read", "--out", key)
        self.assertEqual(os.stat(key).st_mode & 0o777, 0o600)
        self.assertIn(made["public_key"], self.skerry("keys", "list").stdout)
        self.assertEqual(from_elsewhere("--key", key, "count", "docs").stdout, "1200\n")
        done = from_elsewhere("--key", key, "delete", "docs", "1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("forbidden", done.stderr)
        os.chmod(key, 0o644)
        self.assertIn("bob.key", from_elsewhere("--key", key, "count", "docs").stderr)
        os.chmod(key, 0o600)
        self.skerry("keys", "revoke", "bob")
        done = from_elsewhere("--key", key, "count", "docs")
        self.assertEqual(done.returncode, 3)
        self.assertIn("unauthorized", done.stderr)
        self.skerry("keys", "add", "bob", "--public", key, "--role", "write")
        self.assertEqual(from_elsewhere("--key", key, "count", "docs").stdout, "1200\n")
        self.skerry("keys", "revoke", "bob")

    def test_snapshot_restore_verify_compact_wait_and_alter(self):
        self.skerry("wait", "docs")
        self.assertIn("snapshots/one", self.skerry("snapshot", "docs", "one").stdout)
        self.assertIn("1,200 records", self.skerry("restore", "again", "one").stdout)
        self.assertEqual(self.json("verify", "again")["mended"], 0)
        self.assertIn("bytes_after", self.json("compact", "again"))
        self.skerry("collection", "alter", "again", "--drop-field", "n", "--field", "key:keyword")
        self.assertEqual(self.json("collection", "describe", "again")["payload"], {"word": "keyword", "key": "keyword"})
        self.skerry("collection", "drop", "again")
        self.skerry("restore", "again", "none", status=1)


class ResumeTest(unittest.TestCase):
    def test_rows_without_an_answer_are_sent_again_after_a_power_cut(self):
        with Node() as node, tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp") as folder:
            rows, file, state = 20000, os.path.join(folder, "rows.npy"), os.path.join(folder, "state.json")
            npy(file, "<f4", [numbers(i) for i in range(rows)], "f")
            node.skerry("collection", "create", "many", "--dim", str(DIM), "--index", "flat")
            command = [binary("skerry"), "--dir", node.dir, "import", "many", file, "--batch", "2", "--window", "2", "--state", state]
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda: os.path.exists(state) or child.poll() is not None, 20, "the import has begun")
            self.assertIsNone(child.poll(), "the import ended before it could be stopped")
            for pid in node.pids()["shard-worker"]:
                os.kill(pid, signal.SIGSTOP)
            stopped = time.time()
            wait_until(lambda: os.stat(state).st_mtime > stopped + 1, 20, "how far it came is saved while nothing answers")
            child.kill()
            child.wait()
            node.kill_everything()
            node.start()
            with open(state) as text:
                remembered = json.load(text)["rows"]
            count = json.loads(node.skerry("count", "many", "--json").stdout)["count"]
            self.assertLessEqual(remembered, count)
            self.assertLess(count, rows)
            node.skerry("import", "many", file, "--state", state)
            self.assertEqual(node.skerry("count", "many").stdout, f"{rows}\n")


class FolderTest(unittest.TestCase):
    def test_stop_leaves_the_node_of_another_folder_alone(self):
        with Node() as other, tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp") as folder:
            os.mkdir(os.path.join(folder, "run"))
            with open(os.path.join(folder, "run", "node.json"), "w") as file:
                json.dump(other.facts(), file)       # as after a restart of the machine: the number is another's now
            done = run(binary("skerry"), "node", "stop", "--dir", folder)
            self.assertIn("no node was running", done.stdout)
            self.assertTrue(other.status()["ready"])
            done = run(binary("skerry"), "node", "status", "--dir", folder, "--json", check=False)
            self.assertEqual((done.returncode, json.loads(done.stdout)["ready"]), (3, False))

    def test_start_of_a_running_node_says_so_and_stop_twice_is_fine(self):
        with Node() as node:
            again = json.loads(node.skerry("node", "start", "--json").stdout)
            self.assertEqual(again["pid"], node.facts()["pid"])
            node.stop()
            self.assertEqual(json.loads(node.skerry("node", "stop", "--json").stdout), {"stopped": True, "was_running": False})


if __name__ == "__main__":
    unittest.main()
