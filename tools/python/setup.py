"""Only what pyproject.toml cannot say: the package remembers the tree it was installed from, so that it finds the libraries
that were built there (see skerry/_library.py)."""

import os

from setuptools import setup
from setuptools.command.build_py import build_py

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class BuildAndRemember(build_py):
    def run(self):
        super().run()
        folder = os.path.join(self.build_lib, "skerry")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "_build_dir.txt"), "w", encoding="utf-8") as file:
            file.write(os.path.join(TREE, "build", "release", "lib") + "\n")


setup(cmdclass={"build_py": BuildAndRemember})
