"""The planted bug `skip_fsync` must be found by the power cuts (run by the part `mutants`)."""

import os
import shutil
import tempfile
import unittest

BIN = os.environ.get("SKERRY_MUTANTS_BIN")
if BIN:
    os.environ["SKERRY_BIN"] = BIN
import test_lost_fsync as cuts    # noqa: E402
from harness import Node          # noqa: E402,F401
import replay                     # noqa: E402


@unittest.skipUnless(BIN, "SKERRY_MUTANTS_BIN names no build with the planted bugs")
class SkippedFsyncTest(unittest.TestCase):
    def test_a_store_that_skips_its_fsync_is_found(self):
        folder = tempfile.mkdtemp(prefix="skf-", dir="/tmp")
        log = folder + ".log"
        try:
            cuts.record_history(folder, log, {"SK_MUTANT": "skip_fsync"})
            records = replay.read_log(log)
            wrong, looked_at, _ = cuts.run_cuts(records, folder, 50, until_wrong=True)
            self.assertTrue(wrong, f"{looked_at} cuts, and none of them shows that fsync was skipped")
            print(f"caught by cut {looked_at}: {str(wrong[0][1][0])[:200]}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if os.path.exists(log):
                os.unlink(log)


if __name__ == "__main__":
    unittest.main()
