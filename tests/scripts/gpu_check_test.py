"""scripts/gpu_check.sh over a folder of stand-in test programs: what it counts, what it writes, how it ends."""
import json
import os
import pathlib
import stat
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"

# Speaks gtest's options; each test does what its name says.
PROGRAM = r"""#!/usr/bin/env bash
filter=""
for option in "$@"; do
  case "$option" in --gtest_filter=*) filter="${option#*=}" ;; esac
done
if [[ "$1" == --gtest_list_tests ]]; then
  echo "Running main()"
  echo "%s."
  for test in %s; do echo "  $test"; done
  exit 0
fi
echo "$NYBBLE_TEST_REDUCED $filter" >> "$CALLS"
case "$filter" in
  *Passes) exit 0 ;;
  *Fails) echo "the reason"; exit 1 ;;
  *Skips) echo "x.cc:1: Skipped"; echo "no \"GPU\""; echo "[  SKIPPED ] 1 test."; exit 0 ;;
  *Hangs) sleep 60 ;;
esac
"""


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        (self.root / "build" / "tests").mkdir(parents=True)

    def program(self, name, suite, *tests):
        path = self.root / "build" / "tests" / name
        path.write_text(PROGRAM.replace("%s", suite, 1).replace("%s", " ".join(tests), 1))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run_script(self, *parts, **settings):
        environment = {**os.environ, "OUT": str(self.root / "out"), "CALLS": str(self.root / "calls"),
                       "NYBBLE_TEST_REDUCED": "", **settings}
        done = subprocess.run([SCRIPT, str(self.root / "build"), *parts], capture_output=True, text=True, env=environment)
        summary = self.root / "out" / "summary.json"
        return done, json.loads(summary.read_text()) if summary.exists() else None

    def test_counts_and_fails(self):
        self.program("test_gpu_kernels", "Suite", "Passes", "Fails", "Skips", "Hangs")
        done, summary = self.run_script("check", TEST_TIMEOUT="1")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual([summary["passed"], summary["failed"], summary["skipped"]], [1, 2, 1])
        status = {row["name"]: row["status"] for row in summary["results"]}
        self.assertEqual(status, {f"test_gpu_kernels/Suite.{name}": verdict for name, verdict in
                                  [("Passes", "passed"), ("Fails", "failed"), ("Skips", "skipped"), ("Hangs", "timeout")]})
        self.assertIn("the reason", done.stdout)
        self.assertIn('no "GPU"', done.stdout)
        self.assertTrue((self.root / "out" / summary["results"][0]["log"]).exists())

    def test_passes(self):
        self.program("test_gpu_kernels", "Suite", "Passes")
        self.program("test_gpu_pack", "Other", "Passes")
        done, summary = self.run_script("check")
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        self.assertEqual(summary["passed"], 2)

    def test_skips_alone_are_no_success(self):
        self.program("test_gpu_kernels", "Suite", "Skips")
        done, summary = self.run_script()
        self.assertEqual(done.returncode, 1)
        self.assertEqual(summary["passed"], 0)

    def test_sanitizer_runs_each_test_reduced(self):
        self.program("test_gpu_kernels", "Suite", "Passes")
        sanitizer = self.root / "sanitizer"
        sanitizer.write_text('#!/usr/bin/env bash\necho "sanitizer $*" >> "$CALLS"\nshift 4\nexec "$@"\n')
        sanitizer.chmod(0o755)
        done, _ = self.run_script("sanitize", SANITIZER=str(sanitizer), SANITIZER_TOOLS="memcheck synccheck")
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        calls = (self.root / "calls").read_text()
        self.assertIn("--tool memcheck --error-exitcode 9", calls)
        self.assertIn("--tool synccheck", calls)
        self.assertIn("1 Suite.Passes", calls)

    def test_wrong_requests(self):
        for arguments in (["bananas"], ["exact"], ["bench"]):
            done, summary = self.run_script(*arguments)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIsNone(summary)
        self.assertEqual(subprocess.run([SCRIPT], capture_output=True).returncode, 2)
        self.assertEqual(subprocess.run([SCRIPT, "/no/such/folder"], capture_output=True).returncode, 2)


if __name__ == "__main__":
    unittest.main()
