"""libskerry as its users meet it: installed, found with pkg-config, from a program of twenty lines."""

import os
import shlex
import subprocess
import tempfile
import unittest

from harness import BIN, Node, binary, run

PROGRAM = r"""
#include <skerry.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct skerry_error error;
    struct skerry *db = skerry_connect(argc > 1 ? argv[1] : ".", NULL, &error);
    struct skerry_vector_field field = {.dim = 2};
    struct skerry_collection_options options = {.name = "c", .vectors = &field, .vector_count = 1};
    float rows[] = {1, 0, 0, 1, 1, 1};
    struct skerry_vectors column = {.values = rows, .dim = 2};
    struct skerry_upsert upsert = {.collection = "c", .ids = {3, (uint64_t[]){10, 20, 30}, NULL},
                                   .vectors = &column, .vector_count = 1};
    struct skerry_search search = {.collection = "c", .vectors = rows, .dim = 2, .limit = 2};
    struct skerry_hits *hits = NULL;
    if (db == NULL || skerry_create_collection(db, &options, &error) != SKERRY_OK ||
        skerry_upsert(db, &upsert, NULL, &error) != SKERRY_OK ||
        skerry_search(db, &search, &hits, &error) != SKERRY_OK)
        return fprintf(stderr, "%s: %s\n", error.name, error.message), 1;
    for (size_t i = 0; i < hits->starts[1]; i++)
        printf("%llu %.3f\n", (unsigned long long)hits->hits[i].id.number, hits->hits[i].score);
    skerry_hits_free(&hits);
    skerry_close(&db);
    return 0;
}
"""


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="skc-")
        cls.prefix = os.path.join(cls.folder.name, "prefix")
        for component in ("library", "development"):
            run("cmake", "--install", os.path.dirname(BIN), "--prefix", cls.prefix, "--component", component)
        found = [folder for folder, _, files in os.walk(cls.prefix) if "skerry.pc" in files]
        cls.environment = {"PKG_CONFIG_PATH": os.pathsep.join(found)}
        cls.source = os.path.join(cls.folder.name, "program.c")
        with open(cls.source, "w") as file:
            file.write(PROGRAM)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def pkg_config(self, *words):
        return shlex.split(run("pkg-config", *words, "skerry", env=self.environment).stdout)

    def build(self, name, *link):
        program = os.path.join(self.folder.name, name)
        run("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *self.pkg_config("--cflags"), "-o", program,
            self.source, *link)
        return program

    def check(self, program, **environment):
        with Node() as node:
            done = run(program, node.dir, env=environment)
            self.assertEqual(done.stdout, "10 1.000\n30 0.707\n")
            done = run(program, node.dir, env=environment, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("exists: ", done.stderr)
        done = run(program, os.path.join(self.folder.name, "nothing"), env=environment, check=False)
        self.assertIn("unavailable: ", done.stderr)

    def test_a_program_is_built_with_pkg_config_and_runs_against_a_node(self):
        library = self.pkg_config("--variable=libdir")[0]
        self.check(self.build("shared", *self.pkg_config("--libs")), LD_LIBRARY_PATH=library)

    def test_a_program_is_linked_statically_with_the_library(self):
        libraries = [word if word != "-lskerry" else "-l:libskerry.a" for word in self.pkg_config("--static", "--libs")]
        self.check(self.build("static", *libraries))

    def test_the_shared_library_gives_away_nothing_but_its_names(self):
        library = os.path.join(self.pkg_config("--variable=libdir")[0], "libskerry.so")
        text = run("nm", "-D", "--defined-only", library).stdout
        names = [line.split()[-1] for line in text.splitlines()]
        self.assertIn("skerry_search", [name.split("@")[0] for name in names])
        self.assertEqual([name for name in names if not name.lower().startswith("skerry")], [])

    def test_the_header_is_good_in_cpp(self):
        source = os.path.join(self.folder.name, "header.cc")
        with open(source, "w") as file:
            file.write("#include <skerry.h>\nint main() { return skerry_version() == nullptr; }\n")
        compilers = [c for c in ("g++", "clang++") if subprocess.run(["which", c], capture_output=True,
                                                                     check=False).returncode == 0]
        if not compilers:
            self.skipTest("no C++ compiler is installed")
        run(compilers[0], "-Wall", "-Werror", "-fsyntax-only", *self.pkg_config("--cflags"), source)

    def test_the_version_of_the_library_is_that_of_the_command(self):
        version = run("pkg-config", "--modversion", "skerry", env=self.environment).stdout.strip()
        self.assertEqual(run(binary("skerry"), "--version").stdout.strip(), "skerry " + version)


if __name__ == "__main__":
    unittest.main()
