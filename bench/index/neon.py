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


PROFILES = ("balanced", "speed", "memory")


def searched(command, isa, profile):
    """Lines of neighbours; isa None: the best of this machine."""
    done = subprocess.run(command, env={**os.environ, "SK_PROFILE": profile, **({"SK_ISA": isa} if isa else {})}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:1])}: {done.stderr.strip()}")
    if isa and done.stderr.split() != [isa]:
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
        shares, told = [], []
        for profile in PROFILES:
            arguments = [*paths, str(data.dim), os.path.join(folder, f"image-{profile}"), str(K), str(EF)]
            searched([os.path.join(BIN, "bench_same"), *arguments], None, profile)      # builds it; both then load it
            scalar = searched([os.path.join(BIN, "bench_same"), *arguments], "scalar", profile)
            say(f"neon: the image of {profile} is built, qemu searches it")
            neon = searched([*EMULATOR, os.path.join(CROSS, "bin", "bench_same"), *arguments], "neon", profile)
            same = sum(a == b for a, b in zip(scalar, neon))
            if not scalar or len(scalar) != len(neon):
                raise RuntimeError(f"{profile}: {len(scalar)} and {len(neon)} answers")
            shares.append(same / len(scalar))
            told.append(f"{profile} {same} of {len(scalar)}")
        results.add(name, "neon", shares, f"queries with the same {K} rows in the same order: {', '.join(told)}; one image of "
                    f"{min(ROWS, len(data.base)):,} rows for each, scalar kernels on this processor and NEON under qemu-user; instructions are "
                    "not counted: Debian's qemu has no plugins, and hnswlib is not built for aarch64 here", min(shares))
    except (RuntimeError, OSError) as error:
        results.lack(name, str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
