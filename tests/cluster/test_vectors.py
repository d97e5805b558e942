"""The test vectors of tests/vectors as a client in another language would read them: msgpack and JSON, nothing of ours."""

import json
import os
import subprocess
import sys
import unittest

import msgpack

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VECTORS = os.path.join(TOP, "tests", "vectors")


def read(name):
    """[(title, {first word of a line: what follows})]"""
    vectors = []
    with open(os.path.join(VECTORS, name)) as file:
        for line in file.read().splitlines():
            if line.startswith("["):
                vectors.append((line[1:-1], {}))
            elif line and not line.startswith("#"):
                word, _, rest = line.partition(" ")
                vectors[-1][1].setdefault(word, rest.strip())
    return vectors


def revived(value):
    if isinstance(value, dict):
        if list(value) == ["$bin"]:
            return bytes.fromhex(value["$bin"])
        return {key: revived(one) for key, one in value.items()}
    return [revived(one) for one in value] if isinstance(value, list) else value


class VectorsTest(unittest.TestCase):
    def test_hex_and_json_say_the_same(self):
        for name, key in (("requests.txt", "sent"), ("replies.txt", "says"), ("filters.txt", "filter")):
            compared = 0
            for title, lines in read(name):
                if key in lines:
                    with self.subTest(vector=title):
                        packed = msgpack.unpackb(bytes.fromhex(lines["hex"]), raw=False, strict_map_key=False)
                        self.assertEqual(packed, revived(json.loads(lines[key])))
                        compared += 1
            self.assertGreater(compared, 7, name)

    def test_the_files_are_what_their_maker_writes(self):
        done = subprocess.run([sys.executable, os.path.join(VECTORS, "make.py"), "--check"], capture_output=True,
                              text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
