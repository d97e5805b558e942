"""Builds the presets that the chosen parts need and runs their tests (see tests/run)."""

import argparse
import concurrent.futures
import glob
import json
import os
import re
import signal
import shutil
import subprocess
import sys
import time
import traceback

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGS = os.path.join(TOP, "build", "test-logs")
PYTHON = "/usr/bin/python3"

# The unit tests that start threads; ThreadSanitizer runs these.
THREADED = r"unit\.(\w+_threads|shell_\w+|client_\w+|index_library)"
MUTANTS = ("ack_before_commit", "skip_fsync", "lost_delete", "stale_index_after_restart", "late_copy_applied_twice",
           "stale_places")
PROGRAMS = ("skerry_cli", "skerry-supervisor", "skerry-metadata-keeper", "skerry-router", "skerry-shard-worker",
            "skerry-gateway")


class Results:
    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.skipped = []
        self.failures = []

    def add(self, name, passed, failed, seconds, words="", log=None):
        self.passed += passed
        self.failed += failed
        state = "FAIL" if failed else "ok"
        counted = f"{passed + failed} tests, " if passed + failed != 1 else ""
        print(f"{state:5}{name:44} {counted}{seconds:.1f} s{words}", flush=True)
        if failed:
            self.failures.append(name)
            if log:
                print_tail(log)

    def skip(self, name, why):
        self.skipped.append(name)
        print(f"skip {name:44} {why}", flush=True)


def print_tail(path, lines=40):
    with open(path, errors="replace") as file:
        tail = file.read().splitlines()[-lines:]
    for line in tail:
        print("     | " + line)
    print(f"     | the whole log: {os.path.relpath(path, TOP)}", flush=True)


def run_logged(name, command, timeout_s, env=None, cwd=TOP):
    """Runs a command in a process group of its own; returns (exit status, log path, seconds)."""
    os.makedirs(LOGS, exist_ok=True)
    path = os.path.join(LOGS, name.replace("/", "_") + ".log")
    started = time.monotonic()
    with open(path, "w") as log:
        try:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd,
                                       env={**os.environ, **(env or {})}, start_new_session=True)
        except OSError as error:
            log.write(f"{command[0]} cannot be run: {error}\n")
            return 127, path, 0.0
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = 124
            log.write(f"\nended after its limit of {timeout_s} s\n")
    return status, path, time.monotonic() - started


def count_of(log, status):
    """How many tests a program's output says passed and failed; the status decides in doubt."""
    with open(log, errors="replace") as file:
        text = file.read()
    passed = sum(int(n) for n in re.findall(r"^\[  PASSED  \] (\d+) test", text, re.M))
    failed = sum(int(n) for n in re.findall(r"^\[  FAILED  \] (\d+) test", text, re.M))
    skipped = sum(int(n) for n in re.findall(r"^\[  SKIPPED \] (\d+) test", text, re.M))
    # unittest ends with "Ran 5 tests in 0.1s", then "OK (skipped=1)" or "FAILED (failures=1, errors=2)".
    ended = re.findall(r"^Ran (\d+) tests? in .*\n\n(?:OK|FAILED)(?: \((.*)\))?$", text, re.M)
    counted = re.findall(r"^(\d+) passed, (\d+) failed$", text, re.M)
    if ended:
        words = dict(re.findall(r"(\w+)=(\d+)", ended[-1][1]))
        failed = int(words.get("failures", 0)) + int(words.get("errors", 0))
        skipped = int(words.get("skipped", 0))
        passed = max(0, int(ended[-1][0]) - failed - skipped)
    elif counted and not passed and not failed:
        passed, failed = (int(n) for n in counted[-1])
    if status != 0:
        return passed, max(failed, 1)
    if not passed and not failed and not skipped:
        passed = 1      # a program that is one test
    return passed, failed


class Builder:
    """Configures each preset once and builds what a part needs of it; a failed build is a failed test."""

    def __init__(self, results):
        self.results = results
        self.configured = {}
        self.done = {}

    def configure(self, preset):
        if preset not in self.configured:
            status, log, seconds = run_logged(f"configure.{preset}", ["cmake", "--preset", preset], 300)
            if status != 0:
                self.results.add(f"configure.{preset}", 0, 1, seconds, log=log)
            self.configured[preset] = os.path.join(TOP, "build", preset) if status == 0 else None
        return self.configured[preset]

    def targets(self, preset, wanted):
        """The names of this build's targets for which wanted(name) holds."""
        folder = self.configure(preset)
        if folder is None:
            return []
        text = subprocess.run(["ninja", "-C", folder, "-t", "targets", "all"], capture_output=True, text=True,
                              check=True).stdout
        names = {line.split(":")[0] for line in text.splitlines() if line.endswith(": phony")}
        return sorted(name for name in names if "/" not in name and wanted(name))

    def build(self, preset, wanted=None):
        """Builds everything, or the targets whose names are wanted, as far as that goes: what does not build is
        one failed test, and what it leaves out fails where it is wanted. None when nothing could be built."""
        folder = self.configure(preset)
        targets = self.targets(preset, wanted) if folder and wanted else []
        key = (preset, tuple(targets))
        if folder is None or (wanted and not targets):
            return None
        if key not in self.done:
            command = ["ninja", "-k", "0", "-C", folder, *targets]
            status, log, seconds = run_logged(f"build.{preset}", command, 1800)
            self.results.add(f"build.{preset}", int(status == 0), int(status != 0), seconds, log=log)
            self.done[key] = folder
        return self.done[key]


def ctest_list(folder, pattern):
    output = subprocess.run(["ctest", "--show-only=json-v1"], cwd=folder, capture_output=True,
                            text=True, check=True).stdout
    tests = []
    for test in json.loads(output)["tests"]:
        if re.match(pattern, test["name"]) and "command" in test:
            properties = {p["name"]: p["value"] for p in test.get("properties", [])}
            environment = dict(e.split("=", 1) for e in properties.get("ENVIRONMENT", []))
            tests.append((test["name"], test["command"],
                          float(properties.get("TIMEOUT", 300)), environment,
                          properties.get("WORKING_DIRECTORY", TOP)))
    return tests


def run_ctests(run, preset, pattern, environment=None, timeout_factor=1.0):
    """Every CTest of one build whose name fits, two at a time."""
    def is_wanted(name):
        test = name.replace("test_", "unit.", 1)
        return re.match(pattern, test) and run.wants(preset, test)

    if run.builder.configure(preset) and not run.builder.targets(preset, is_wanted):
        run.results.skip(f"{preset}.{pattern}", "no such tests in this tree")
        return
    folder = run.builder.build(preset, is_wanted)
    if folder is None:
        return
    tests = [t for t in ctest_list(folder, pattern) if run.wants(preset, t[0])]
    prefix = "" if preset == "release" else preset + "."

    def one(test):
        name, command, timeout_s, own, cwd = test
        status, log, seconds = run_logged(prefix + name, command, timeout_s * timeout_factor,
                                          {**own, **(environment or {})}, cwd)
        return prefix + name, status, log, seconds

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        for name, status, log, seconds in pool.map(one, tests):
            run.results.add(name, *count_of(log, status), seconds, log=log)


ASAN = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:allocator_may_return_null=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}
TSAN = {"TSAN_OPTIONS": "halt_on_error=1:suppressions=" + os.path.join(TOP, "tests/tsan.supp")}


def part_unit(run):
    run_ctests(run, "release", r"unit\.")


def part_asan(run):
    run_ctests(run, "asan", r"unit\.", ASAN, 4)


def part_tsan(run):
    run_ctests(run, "tsan", THREADED, TSAN, 8)


def part_aarch64(run):
    run_ctests(run, "aarch64", r"unit\.", None, 20)


def is_sim(name):
    return name == "sim"


def part_sim(run):
    if run.wants("sim", "sim.seeds"):
        folder = run.builder.build("release", is_sim)
        program(run, "sim.seeds", [program_of("release", "sim", folder), "--seeds", "20000" if run.is_long else "1000"],
                3600 if run.is_long else 600)
    if run.wants("sim", "sim.asan"):
        folder = run.builder.build("asan", is_sim)
        program(run, "sim.asan", [program_of("asan", "sim", folder), "--seeds", "3000" if run.is_long else "150"],
                1800, ASAN)


def part_mutants(run):
    """Each planted bug must be found: the run of the simulator with it has to fail, and say what is wrong."""
    folder = run.builder.build("mutants", lambda name: is_sim(name) or is_node(name))
    sim = program_of("mutants", "sim", folder)
    program(run, "mutants.none", [sim, "--seeds", "20"], 600)
    for mutant in MUTANTS:
        name = f"mutants.{mutant}"
        if not run.wants("mutants", name):
            continue
        if folder is None or not os.path.exists(sim):
            run.results.add(name, 0, 1, 0.0, "  there is no simulator with the planted bugs")
            continue
        status, log, seconds = run_logged(name, [sim, "--seeds", "300", "--until-failure"], 600,
                                          {"SK_MUTANT": mutant})
        with open(log, errors="replace") as file:
            found = re.search(r"^violation: (?!the code under test|the run ended)(.*)", file.read(), re.M)
        is_caught = status == 1 and found is not None
        run.results.add(name, int(is_caught), int(not is_caught), seconds,
                        f"  caught: {found.group(1)[:100]}" if is_caught else "  NOT caught", log)
    if folder is not None:
        run_python(run, "mutants", "test_lost_fsync_mutant.py", {"SKERRY_MUTANTS_BIN": f"{folder}/bin"})


def is_node(name):
    """The targets that a test of real processes needs."""
    return name in PROGRAMS or name in ("skerry_record", "libskerry_record.so")


def program_of(preset, name, folder):
    return os.path.join(folder or os.path.join(TOP, "build", preset), "bin", name)


def program(run, name, command, timeout_s, environment=None):
    if not run.wants(name.split(".")[0], name):
        return
    if not os.path.exists(command[0]):
        run.results.add(name, 0, 1, 0.0, f"  {os.path.relpath(command[0], TOP)} was not built")
        return
    status, log, seconds = run_logged(name, command, timeout_s, environment)
    run.results.add(name, *count_of(log, status), seconds, log=log)


def run_python(run, part, file, environment=None):
    path = os.path.join(TOP, "tests", "cluster", file)
    name = f"{part}.{file[len('test_'):-len('.py')]}"
    if not run.wants(part, name):
        return
    release = os.path.join(TOP, "build", "release")
    settings = {"SKERRY_BIN": os.path.join(release, "bin"), "SKERRY_LIB_DIR": os.path.join(release, "lib"),
                **(environment or {})}
    if run.is_long:
        settings["SK_LONG"] = "1"
    status, log, seconds = run_logged(name, [PYTHON, "-m", "unittest", "-v", path], 1800, settings,
                                      os.path.join(TOP, "tests", "cluster"))
    run.results.add(name, *count_of(log, status), seconds, log=log)
    with open(log, errors="replace") as text:
        for line in re.findall(r"^(.*) \.\.\. skipped (.*)$", text.read(), re.M):
            run.results.skip(f"{name}: {line[0].split(' ')[0]}", line[1].strip("'\""))


def part_cluster(run):
    if run.builder.build("release") is None:
        return
    for path in sorted(glob.glob(os.path.join(TOP, "tests", "cluster", "test_*.py"))):
        file = os.path.basename(path)
        if not file.endswith("_mutant.py"):
            run_python(run, "cluster", file)


def part_asan_cluster(run):
    """The real processes again, under the sanitizers; what these find in a process that was started by another
    comes through a file of theirs."""
    folder = run.builder.build("asan", is_node)
    if folder is None:
        return
    reports = os.path.join(LOGS, "sanitizer")
    shutil.rmtree(reports, ignore_errors=True)
    os.makedirs(reports)
    for file in ("test_hostile.py", "test_node.py"):
        where = f":log_path={reports}/{file[:-len('.py')]}"
        run_python(run, "asan_cluster", file, {"ASAN_OPTIONS": ASAN["ASAN_OPTIONS"] + where,
                                               "UBSAN_OPTIONS": ASAN["UBSAN_OPTIONS"] + where,
                                               "SKERRY_BIN": f"{folder}/bin", "SKERRY_SLOW": "4"})
    found = sorted(glob.glob(f"{reports}/*"))
    if not run.filters or "asan_cluster" in run.filters:
        run.results.add("asan_cluster.reports", int(not found), len(found), 0.0, "  what the sanitizers found",
                        found[0] if found else None)


def part_fuzz(run):
    """Replays the kept corpus through every libFuzzer target, then fuzzes for a while."""
    folder = run.builder.build("fuzz", lambda name: name == "fuzz_targets")
    if folder is None:
        if run.builder.configured["fuzz"]:
            run.results.add("fuzz", 0, 1, 0.0, "  no target fuzz_targets could be built")
        return
    seconds_each = 120 if run.is_long else 4

    def one(binary):
        target = os.path.basename(binary)[len("fuzz_"):]
        corpus = os.path.join(TOP, "tests", "corpus", target)
        scratch = os.path.join(LOGS, "fuzz", target)
        os.makedirs(scratch, exist_ok=True)
        command = [binary, f"-max_total_time={seconds_each}", "-rss_limit_mb=2048", "-timeout=10",
                   f"-artifact_prefix={scratch}/", scratch]
        if os.path.isdir(corpus):
            command.append(corpus)
        program(run, f"fuzz.{target}", command, seconds_each + 300, ASAN)

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        list(pool.map(one, sorted(glob.glob(f"{folder}/bin/fuzz_*"))))


def part_clang(run):
    """The whole tree, warnings as errors, with the other compiler."""
    if run.is_long and run.builder.build("clang") is not None:
        run_ctests(run, "clang", r"unit\.")


PARTS = {
    "unit": (part_unit, "unit tests, gcc release"),
    "sim": (part_sim, "the real cores in one thread from one seed"),
    "cluster": (part_cluster, "real processes: kill -9, lost fsyncs, full disk, hostile frames, ..."),
    "mutants": (part_mutants, "planted bugs, each of which must be caught"),
    "asan": (part_asan, "unit tests under AddressSanitizer and UndefinedBehaviorSanitizer"),
    "asan_cluster": (part_asan_cluster, "real processes under the sanitizers"),
    "tsan": (part_tsan, "the threaded parts under ThreadSanitizer"),
    "aarch64": (part_aarch64, "kernels and index for aarch64 under qemu-user"),
    "fuzz": (part_fuzz, "libFuzzer targets: the kept corpus and a few seconds each"),
    "clang": (part_clang, "the tree built with clang and its unit tests (--long)"),
}


class Run:
    def __init__(self, filters, is_long):
        self.filters = filters
        self.is_long = is_long
        self.results = Results()
        self.builder = Builder(self.results)

    def wants_part(self, part):
        return not self.filters or any(
            f == part or f.startswith(part + ".") or self.is_release_test(part, f) for f in self.filters)

    @staticmethod
    def is_release_test(part, name):
        return part == "unit" and name.startswith("unit.")

    def wants(self, part, name):
        """Whether this one test was asked for: its part by name, or a beginning of its own name."""
        return not self.filters or any(
            f == part or name.startswith(f) or f"{part}.{name}".startswith(f) for f in self.filters)


def main():
    parser = argparse.ArgumentParser(prog="tests/run", description="Builds and runs the tests.")
    parser.add_argument("--long", action="store_true", help="also clang, long soaks, minutes of fuzzing")
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part, or the beginning of a test's name")
    options = parser.parse_args()
    if options.list:
        for name, (_, words) in PARTS.items():
            print(f"{name:14} {words}")
        return 0
    for name in options.names:
        part = name.split(".")[0]
        if part not in PARTS:
            print(f"tests/run: no part '{part}'; the parts are: {', '.join(PARTS)}", file=sys.stderr)
            return 2
    run = Run(options.names, options.long)
    started = time.monotonic()
    for name, (function, _) in PARTS.items():
        if not run.wants_part(name):
            continue
        try:
            function(run)
        except Exception as error:      # a defect of this runner must not hide the other parts
            traceback.print_exc()
            run.results.add(f"{name}.runner", 0, 1, 0.0, f"  {error!r}")
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes; skipped: {len(run.results.skipped)}")
    if run.results.failures:
        print("failed: " + " ".join(run.results.failures))
    if run.results.passed == 0 and run.results.failed == 0:
        print("nothing was run: no test has such a name")
        run.results.failed = 1
    print(f"{run.results.passed} passed, {run.results.failed} failed")
    return 1 if run.results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
