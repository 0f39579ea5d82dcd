"""scripts/ship_tables.py: what ships is what was measured, less what no choice needs; and --check notices a difference."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts/ship_tables.py"
HEAD = {"schema": 1, "kind": "tuning table", "gpu": "NVIDIA H200", "driver": "580", "cuda": "13.0", "commit": "abc",
        "date": "2026-11-25T00:00:00Z", "command": "nybble tune", "kernels": None}


def row(problem, **kernels):
    return {"problem": problem, "kernels": [{"kernel": name, "us": us, "estimate_us": 1} for name, us in kernels.items()]}


class ShipTables(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)
        self.measured = self.root / "bench/results/h200/tune"
        self.measured.mkdir(parents=True)
        self.table = self.root / "src/dispatch/tables/h200.inc"
        self.table.parent.mkdir(parents=True)

    def run_script(self, *arguments):
        return subprocess.run([sys.executable, "-B", SCRIPT, *arguments, self.root], capture_output=True, text=True)

    def write(self, name, *rows, **head):
        (self.measured / name).write_text(json.dumps({**HEAD, **head, "rows": rows}))

    def test_groups_by_kernel_and_leaves_out_the_hopeless(self):
        self.write("bf16.json", row("m16 n64 k128 bf16 g128", a=3.14159, b=6.2), row("m1 n64 k128 bf16 g128", a=2, b=5),
                   row("m16 n32 k128 bf16 g128", a=1234.56))
        self.write("fp16.json", row("m16 n64 k128 fp16 g64 zp", c=1))
        self.assertEqual(self.run_script().returncode, 0)
        text = self.table.read_text()
        self.assertEqual(text.splitlines()[3:], [
            'FORMAT("bf16 g128")',
            "KERNEL(a)", "SHAPE(32, 128) AT(16, 1235)", "SHAPE(64, 128) AT(1, 2) AT(16, 3.142)",
            "KERNEL(b)", "SHAPE(64, 128) AT(16, 6.2)",
            'FORMAT("fp16 g64 zp")',
            "KERNEL(c)", "SHAPE(64, 128) AT(16, 1)"])
        self.assertIn("commit abc", text)
        self.assertEqual(self.run_script("--check").returncode, 0)
        self.table.write_text(text.replace("3.142", "3.141"))
        done = self.run_script("--check")
        self.assertEqual(done.returncode, 1)
        self.assertIn("h200.inc", done.stderr)

    def test_without_measurements_the_table_is_empty(self):
        self.assertEqual(self.run_script().returncode, 0)
        self.assertEqual(len(self.table.read_text().splitlines()), 1)

    def test_of_what_was_measured_twice_the_mean_counts(self):
        self.write("a.json", row("m16 n64 k128 bf16 g128", a=1, b=1.5))
        self.write("b.json", row("m16 n64 k128 bf16 g128", a=2))
        self.assertEqual(self.run_script().returncode, 0)
        self.assertEqual(self.table.read_text().splitlines()[3:], [
            'FORMAT("bf16 g128")', "KERNEL(a)", "SHAPE(64, 128) AT(16, 1.5)", "KERNEL(b)", "SHAPE(64, 128) AT(16, 1.5)"])

    def test_refuses_what_is_foreign(self):
        self.write("a.json", row("m16 n64 k128 bf16 g128", a=1), gpu="NVIDIA H100")
        self.assertIn("NVIDIA H100", self.run_script().stderr)
        self.write("a.json", row("m16 n64 k128 bf16 g128", a=1))
        self.write("b.json", kernels="stream")
        self.assertIn("--kernel stream", self.run_script().stderr)
        self.write("b.json", kind="bench")
        self.assertIn("no tuning table", self.run_script().stderr)


if __name__ == "__main__":
    unittest.main()
