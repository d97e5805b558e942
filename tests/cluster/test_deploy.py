"""The units, the package and the quickstart."""

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request

from harness import BIN, IS_LONG, TOP, Node, binary, run, wait_until

BUILD = os.path.dirname(BIN)
PROGRAMS = ["/usr/bin/skerry"] + ["/usr/libexec/skerry/skerry-" + name for name in
                                  ("supervisor", "router", "metadata-keeper", "shard-worker", "gateway")]


def system_calls(group):
    """The names in one of systemd's groups of system calls, its members too."""
    found = set()
    for line in run("systemd-analyze", "syscall-filter", group).stdout.splitlines()[1:]:
        name = line.strip()
        if name and not name.startswith("#"):
            found |= system_calls(name) if name.startswith("@") else {name}
    return found


@contextlib.contextmanager
def package():
    """The path of the package of this build."""
    with tempfile.TemporaryDirectory(prefix="skp-") as folder:
        run("cpack", "--config", os.path.join(BUILD, "CPackConfig.cmake"), "-B", folder, timeout_s=300)
        found = glob.glob(os.path.join(folder, "*.deb"))
        if len(found) != 1:
            raise AssertionError(f"one package was expected: {found}")
        yield found[0]


class DeployTest(unittest.TestCase):
    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    def test_the_units_verify_and_are_hardened(self):
        units = glob.glob(os.path.join(TOP, "deploy", "*.service"))
        self.assertTrue(units)
        folder = tempfile.mkdtemp(prefix="sku-")
        try:
            for unit in units:
                copy = os.path.join(folder, os.path.basename(unit))
                with open(unit) as file:
                    text = file.read()
                for line in text.splitlines():     # the binaries need not be installed here
                    if line.startswith(("ExecStart", "ExecReload", "ExecStop")):
                        program = line.split("=", 1)[1].lstrip("-+!@:").split()[0]
                        if not os.path.exists(program):
                            text = text.replace(program, "/bin/true", 1)
                with open(copy, "w") as file:
                    file.write(text)
                done = run("systemd-analyze", "verify", "--man=no", copy, check=False)
                noise = [line for line in (done.stderr + done.stdout).splitlines()
                         if os.path.basename(unit) in line or folder in line]
                self.assertEqual(noise, [])
                self.assertEqual(done.returncode, 0, done.stderr)
                done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", copy, check=False)
                self.assertEqual(done.returncode, 0, "exposure over 2.0:\n" + done.stdout[-600:])
        finally:
            shutil.rmtree(folder)

    @unittest.skipUnless(shutil.which("systemd-analyze") and shutil.which("strace"), "systemd or strace is not installed")
    def test_the_unit_allows_every_system_call_of_a_node(self):
        with open(os.path.join(TOP, "deploy", "skerry.service")) as file:
            lists = re.findall(r"^SystemCallFilter=(~?)(.*)$", file.read(), re.M)
        allowed = set()
        for is_denied, names in lists:
            for name in names.split():
                calls = system_calls(name) if name.startswith("@") else {name}
                allowed = allowed - calls if is_denied else allowed | calls
        with tempfile.TemporaryDirectory(prefix="sks-", dir="/tmp") as folder:
            trace = os.path.join(folder, "trace")
            with open(os.path.join(folder, "skerry.conf"), "w") as file:
                file.write("client_port = 0\nhttp_port = 0\n")
            child = subprocess.Popen(["strace", "-f", "-qq", "-o", trace, binary("skerry-supervisor"), "--dir", folder],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                facts = os.path.join(folder, "run", "node.json")
                wait_until(lambda: os.path.exists(facts) or child.poll() is not None, 60, "the traced node is ready")
                if child.poll() is not None:
                    self.skipTest("strace cannot trace here: " + child.stderr.read().decode()[-200:])

                def skerry(*words):
                    return run(binary("skerry"), "--dir", folder, *words, timeout_s=120)
                skerry("collection", "create", "docs", "--dim", "384", "--field", "lexname:keyword")
                skerry("import", "docs", os.path.join(TOP, "tools/sample/vectors.npy"), "--limit", "1500", "--restart",
                       "--payload", os.path.join(TOP, "tools/sample/records.jsonl.gz"), "--state", os.path.join(folder, "state"))
                skerry("search", "docs", "--like", "5")
                skerry("snapshot", "docs", "one")
                skerry("restore", "again", "one")
                skerry("verify", "again")
                skerry("compact", "again")
                skerry("collection", "drop", "again")
                with open(facts) as file:
                    facts = json.load(file)
                http = facts["endpoints"]["http"]
                urllib.request.urlopen((http if http.startswith("http") else "http://" + http) + "/metrics", timeout=30).read()
                run(binary("skerry"), "--connect", facts["endpoints"]["client_tcp"].replace("0.0.0.0", "127.0.0.1"), "--server-key",
                    os.path.join(folder, "keys/node.pub"), "--key", os.path.join(folder, "keys/admin.key"), "count", "docs")
                skerry("node", "stop")
            finally:
                child.terminate()
                child.wait()
                child.stderr.close()
            with open(trace) as file:
                used = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", file.read(), re.M))
        self.assertLess({"execve", "epoll_wait", "fdatasync"}, used)
        self.assertEqual(used - allowed, set(), "calls that the unit would refuse")

    @unittest.skipUnless(shutil.which("promtool"), "promtool is not installed (package prometheus)")
    def test_the_scrape_configuration_is_good(self):
        for path in glob.glob(os.path.join(TOP, "deploy", "prometheus", "*-scrape.yml")):
            run("promtool", "check", "config", path)

    def test_every_script_is_readable_by_its_shell(self):
        for script in ("tests/run", ".ci/run", "tools/setup", "tools/quickstart", "bench/run"):
            run("bash", "-n", os.path.join(TOP, script))

    def test_the_quickstart_runs_twice(self):
        folder = tempfile.mkdtemp(prefix="skq-", dir="/tmp")
        try:
            for _ in range(2):
                done = run(os.path.join(TOP, "tools", "quickstart"), "--dir", folder, timeout_s=900)
                self.assertIn("heart", done.stdout, "the organ that pumps blood")
                self.assertIn("recall", done.stdout.lower())
                self.assertIn("p99", done.stdout.lower())
        finally:
            subprocess.run([os.path.join(TOP, "build/release/bin/skerry"), "node", "stop", "--dir", folder],
                           capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)

    def test_the_manual_pages_are_read_without_a_warning(self):
        pages = glob.glob(os.path.join(BUILD, "tools", "man", "*.[158]"))
        self.assertEqual({os.path.basename(page) for page in pages},
                         {"skerry.1", "skerry.conf.5", "skerry-supervisor.8"})
        if shutil.which("man") is None:
            self.skipTest("man is not installed (package man-db)")
        for page in pages:
            done = run("man", "--warnings=w", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
            self.assertEqual(done.stderr, "", page)
        with open(os.path.join(BUILD, "tools", "man", "skerry.1")) as file:
            text = file.read().replace("\\-", "-")
        for line in run(binary("skerry"), "--help").stdout.split("Commands:")[1].split("Options:")[0].splitlines():
            self.assertIn(".SS skerry " + line[2:22].strip(), text)
        with open(os.path.join(BUILD, "tools", "man", "skerry.conf.5")) as file:
            text = file.read()
        for line in run(binary("skerry-supervisor"), "--help").stdout.splitlines():
            if line.startswith("  ") and " = " in line:
                self.assertIn(line.split(" = ")[0].strip(), text)

    def test_completion_offers_commands_options_and_collections(self):
        def complete(*words):
            script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _skerry; '
                      'printf "%s\n" "${COMPREPLY[@]}"')
            return run("bash", "-c", script, "bash", os.path.join(TOP, "tools", "skerry", "skerry.bash"),
                       binary("skerry"), *words).stdout.split()
        self.assertEqual(complete("collection", "de"), ["describe"])
        self.assertIn("topology", complete(""))
        self.assertEqual(complete("search", "docs", "--with-p"), ["--with-payload"])
        self.assertEqual(complete("--di"), ["--dir"])
        self.assertEqual(complete("--dir", ""), [], "a folder is wanted: the shell completes it")
        with Node() as node:
            node.skerry("collection", "create", "docs", "--dim", "2")
            self.assertEqual(complete("--dir", node.dir, "count", "d"), ["docs"])

    def test_the_debian_package_holds_a_whole_node(self):
        with package() as path:
            names = [line.split()[5] for line in run("dpkg-deb", "-c", path).stdout.splitlines()]
            for name in (*PROGRAMS, "/usr/include/skerry.h", "/usr/lib/pkgconfig/skerry.pc", "/usr/lib/libskerry.so.0",
                         "/usr/lib/libskerry.a", "/usr/share/man/man1/skerry.1", "/usr/share/man/man5/skerry.conf.5",
                         "/usr/share/man/man8/skerry-supervisor.8", "/usr/share/bash-completion/completions/skerry",
                         "/usr/lib/systemd/system/skerry.service", "/usr/lib/sysusers.d/skerry.conf",
                         "/usr/lib/tmpfiles.d/skerry.conf", "/etc/skerry/skerry.conf"):
                self.assertIn("." + name, names)
            self.assertEqual([n for n in names if "/usr/local" in n or "/bin/skerry-" in n], [])
            self.assertIn("libzmq5", run("dpkg-deb", "-f", path, "Depends").stdout)

    @unittest.skipUnless(IS_LONG and os.geteuid() == 0, "installing the package: with --long, as root")
    def test_the_debian_package_installs_and_removes_cleanly(self):
        with package() as path, tempfile.TemporaryDirectory(prefix="skd-", dir="/tmp") as folder:
            run("dpkg", "-i", path, timeout_s=120)
            try:
                for program in PROGRAMS:
                    run(program, "--help")
                with open(os.path.join(folder, "skerry.conf"), "w") as file:
                    file.write("client_port = 0\nhttp_port = 0\n")
                run("/usr/bin/skerry", "node", "start", "--dir", folder)
                run("/usr/bin/skerry", "node", "stop", "--dir", folder)
                self.assertEqual(run("pkg-config", "--modversion", "skerry").stdout,
                                 run("dpkg-deb", "-f", path, "Version").stdout)
                files = [f for f in run("dpkg", "-L", "skerry").stdout.splitlines() if "skerry" in f]
            finally:
                run("dpkg", "--purge", "skerry", timeout_s=120)
            self.assertEqual([f for f in files if os.path.lexists(f)], [])
            for path in ("/etc/skerry", "/var/lib/skerry"):
                self.assertFalse(os.path.exists(path), path)
            self.assertNotEqual(subprocess.run(["getent", "passwd", "skerry"], check=False,
                                               capture_output=True).returncode, 0)


if __name__ == "__main__":
    unittest.main()
