"""Finds the shared libraries: SKERRY_LIB_DIR, then a build beside this tree, then where systems put them."""

from __future__ import annotations

import ctypes
import os
import sys


class LibraryNotFound(ImportError):
    """A shared library of Skerry is not where it was looked for."""


def _candidates(name: str) -> list[str]:
    file = f"lib{name}.so"
    if os.environ.get("SKERRY_LIB_DIR"):      # what the user says wins, and nothing else is tried
        return [os.path.join(os.environ["SKERRY_LIB_DIR"], file)]
    found = []
    folder = os.path.dirname(os.path.abspath(__file__))
    while folder != os.path.dirname(folder):
        found.append(os.path.join(folder, "build", "release", "lib", file))
        folder = os.path.dirname(folder)
    record = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_build_dir.txt")
    if os.path.exists(record):                # written by setup.py: where the tree stood at installation
        with open(record, encoding="utf-8") as text:
            found.append(os.path.join(text.read().strip(), file))
    versions = {"skerry": "0", "skerry_index": "0"}
    # The run-time packages of a system have the versioned name only.
    return found + [file, f"{file}.{versions.get(name, '0')}"]


def load(name: str) -> ctypes.CDLL:
    """The library lib<name>.so. LibraryNotFound says where it was looked for."""
    tried = []
    for path in _candidates(name):
        if os.path.sep in path and not os.path.exists(path):
            tried.append(path)
            continue
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            tried.append(f"{path} ({error})")
    raise LibraryNotFound(
        f"lib{name}.so was not found; looked at:\n  " + "\n  ".join(tried) +
        "\nBuild Skerry (./tools/quickstart) or set SKERRY_LIB_DIR to the folder that holds it"
        + ("" if sys.platform == "linux" else "; Skerry runs on Linux"))
