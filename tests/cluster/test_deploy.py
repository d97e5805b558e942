"""The units, the package and the quickstart."""

import glob
import os
import shutil
import subprocess
import tempfile
import unittest

from harness import IS_LONG, TOP, run


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

    @unittest.skipUnless(IS_LONG and os.geteuid() == 0, "installing the package: with --long, as root")
    def test_the_debian_package_installs_and_removes_cleanly(self):
        folder = tempfile.mkdtemp(prefix="skp-")
        try:
            run("cpack", "--config", os.path.join(TOP, "build/release/CPackConfig.cmake"), "-B", folder, timeout_s=300)
            packages = glob.glob(os.path.join(folder, "*.deb"))
            self.assertTrue(packages)
            run("dpkg", "-i", *packages, timeout_s=120)
            try:
                run("/usr/bin/skerry", "--help")
            finally:
                names = [run("dpkg-deb", "-f", p, "Package").stdout.strip() for p in packages]
                run("dpkg", "--purge", *names, timeout_s=120)
            self.assertFalse(os.path.exists("/usr/bin/skerry"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    unittest.main()
