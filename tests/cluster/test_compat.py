"""The data folder of every release opens with this build, and holds what it held."""

import glob
import json
import os
import shutil
import sys
import tarfile
import tempfile
import unittest

from harness import TOP, Node, vector_of

sys.path.insert(0, os.path.join(TOP, "tests", "compat"))
import make    # noqa: E402


class CompatTest(unittest.TestCase):
    def test_the_folder_of_each_release_opens_and_is_whole(self):
        folders = sorted(glob.glob(os.path.join(TOP, "tests", "compat", "data-*.tar.xz")))
        self.assertTrue(folders, "no kept data folder")
        for path in folders:
            with self.subTest(folder=os.path.basename(path)):
                folder = tempfile.mkdtemp(prefix="sko-", dir="/tmp")
                try:
                    with tarfile.open(path) as tar:
                        tar.extractall(folder)
                    self.check(folder)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)

    def check(self, folder):
        with open(os.path.join(folder, "wanted.json")) as file:
            wanted = json.load(file)
        for _ in range(2):      # and again after this build has written to it
            with Node(folder=folder) as node:
                client = node.client()
                found = make.everything(client)
                for name in wanted:
                    self.assertEqual(found[name], wanted[name], name)
                    client.call("verify", 60000, collection=name)
                hits = client.call("search", collection="graph", vector=vector_of(77, 4), limit=3, exact=True)["hits"]
                self.assertEqual(hits[0]["id"], 77)
                count = client.call("count", collection="small", filter={"must": [{"key": "k", "match": "edited"}]})
                self.assertEqual(count["count"], 30)
                client.call("upsert", collection="small", ids=["new"], vectors=[[9.0] * 6], payloads=[{"n": 5}])
                client.call("delete", collection="small", ids=["new"])


if __name__ == "__main__":
    unittest.main()
