"""The same image searched with NEON under qemu and by the scalar kernels of this processor."""

import os
import shutil
import subprocess

import numpy
from common import BIN, TOP, WORK
from sets import load_set
from sweep import say

ROWS, QUERIES, K, EF = 8000, 200, 10, 48
CROSS = os.path.join(TOP, "build", "aarch64")
EMULATOR = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]


def searched(command, isa):
    done = subprocess.run(command, env={**os.environ, "SK_ISA": isa}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:1])}: {done.stderr.strip()}")
    if done.stderr.split() != [isa]:
        raise RuntimeError(f"asked for {isa}, ran {done.stderr.strip()}")
    return done.stdout.splitlines()


def measure(results, set_name):
    name = "neon_same_neighbours"
    if shutil.which(EMULATOR[0]) is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        results.lack(name, "qemu-aarch64-static and aarch64-linux-gnu-gcc are not installed (./tools/setup)")
        return
    folder = os.path.join(WORK, "neon")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    try:
        for command in (["cmake", "--preset", "aarch64"], ["cmake", "--build", "--preset", "aarch64", "--target", "bench_same"]):
            done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        data = load_set(set_name)
        paths = [os.path.join(folder, file) for file in ("base.f32", "queries.f32")]
        numpy.ascontiguousarray(data.base[:ROWS]).tofile(paths[0])
        numpy.ascontiguousarray(data.queries["in"][0][:QUERIES]).tofile(paths[1])
        arguments = [*paths, str(data.dim), os.path.join(folder, "image"), str(K), str(EF)]
        lines = {"scalar": searched([os.path.join(BIN, "bench_same"), *arguments], "scalar")}
        say("neon: the image is built, qemu searches it")
        lines["neon"] = searched([*EMULATOR, os.path.join(CROSS, "bin", "bench_same"), *arguments], "neon")
        same = sum(a == b for a, b in zip(lines["scalar"], lines["neon"]))
        if not lines["scalar"] or len(lines["scalar"]) != len(lines["neon"]):
            raise RuntimeError(f"{len(lines['scalar'])} and {len(lines['neon'])} answers")
        results.add(name, "neon", [same / len(lines["scalar"])],
                    f"{same} of {len(lines['scalar'])} queries with the same {K} rows in the same order, one image of {min(ROWS, len(data.base)):,} rows, "
                    "scalar on this processor and NEON under qemu-user; instructions are not counted: Debian's qemu has no plugins, and hnswlib "
                    "is not built for aarch64 here")
    except (RuntimeError, OSError) as error:
        results.lack(name, str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
