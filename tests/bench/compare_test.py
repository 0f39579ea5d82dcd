"""bench/compare.py: what counts as slower, and the exit code."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "bench" / "compare.py"


def row(us, problem="m1 n4096 k4096 bf16 g128", spread=0.01, impl="nybble"):
    return {"problem": problem, "impl": impl, "duty": "idle10", "pdl": True if impl == "nybble" else None, "us": us,
            "spread": spread}


class Compare(unittest.TestCase):
    def compare(self, old, new, *options):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, rows in (("old.json", old), ("new.json", new)):
                paths.append(pathlib.Path(folder, name))
                paths[-1].write_text(json.dumps({"schema": 1, "gpu": "NVIDIA H200", "driver": "1", "floor": {}, "rows": rows}))
            done = subprocess.run([sys.executable, SCRIPT, *paths, *options], capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr

    def test_the_same(self):
        code, text = self.compare([row(10)], [row(10.2)])
        self.assertEqual(code, 0)
        self.assertIn("verdict: the same", text)

    def test_slower(self):
        code, text = self.compare([row(10), row(20, "m2 n64 k64 bf16 g128")], [row(11), row(20, "m2 n64 k64 bf16 g128")])
        self.assertEqual(code, 1)
        self.assertIn("verdict: SLOWER", text)
        self.assertIn("+10.0 %", text)

    def test_faster(self):
        code, text = self.compare([row(10)], [row(9)])
        self.assertEqual(code, 0)
        self.assertIn("verdict: faster", text)

    def test_noise_is_no_verdict(self):
        self.assertEqual(self.compare([row(10, spread=0.2)], [row(11)])[0], 0)
        self.assertEqual(self.compare([row(10)], [row(11)], "--threshold", "15")[0], 0)

    def test_other_implementations_do_not_count(self):
        code, _ = self.compare([row(10), row(10, impl="cublas")], [row(10), row(20, impl="cublas")])
        self.assertEqual(code, 0)
        code, _ = self.compare([row(10), row(10, impl="cublas")], [row(10), row(20, impl="cublas")], "--impl", "all")
        self.assertEqual(code, 1)

    def test_nothing_in_common(self):
        self.assertEqual(self.compare([row(10)], [row(10, "m3 n64 k64 bf16 g128")])[0], 2)


if __name__ == "__main__":
    unittest.main()
