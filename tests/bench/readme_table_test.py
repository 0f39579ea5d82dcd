"""scripts/readme_table.py: the tables say what the result files say, and --check notices when they do not."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "readme_table.py"


def row(m, us, dense_us, **changes):
    return {"problem": f"m{m} n{changes.get('n', 4096)}", "impl": "nybble", "m": m, "n": 4096, "k": 14336,
            "act": "bf16", "format": "int4", "group_size": 128, "zero_point": "none", "kernel": "k", "pdl": True,
            "duty": "idle10" if m < 256 else "burst", "us": us,
            "floor_us": 1, "dense_us": dense_us, "spread": 0.01, "sm_mhz": 1900, **changes}


class ReadmeTable(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.readme = self.folder / "README.md"
        self.readme.write_text("before\n<!-- table:times:begin -->\nold\n<!-- table:times:end -->\nafter\n")

    def results(self, name, date, rows, **more):
        (self.folder / name).write_text(json.dumps(
            {"schema": 1, "gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "commit": "abc", "date": date,
             "command": "nybble bench --set bench/shapes.txt", "floor": {}, **more, "rows": rows}))

    def make(self, *options):
        done = subprocess.run([sys.executable, SCRIPT, self.readme, "--results", self.folder, *options], capture_output=True,
                              text=True)
        return done.returncode, done.stdout + done.stderr

    def test_writes_checks_and_notices(self):
        self.results("a.json", "2026-11-25T00:00:00Z", [row(1, 8.86, 32.0), row(4096, 602.4, 688.0)])
        self.assertEqual(self.make("--check")[0], 1)
        self.assertEqual(self.make()[0], 0)
        text = self.readme.read_text()
        self.assertIn("| 4096×14336 | 8.86 (3.61×) | 602 (1.14×) |", text)
        for word in ("before\n", "after\n", "NVIDIA H200, driver 580.1, CUDA 13.0, commit abc, 2026-11-25",
                     "`nybble bench --set bench/shapes.txt`"):
            self.assertIn(word, text)
        self.assertEqual(self.make("--check")[0], 0)
        self.results("a.json", "2026-11-25T00:00:00Z", [row(1, 8.5, 32.0)])
        self.assertEqual(self.make("--check")[0], 1)

    def test_the_newest_file_counts_and_other_rows_do_not(self):
        self.results("b.json", "2026-11-24T00:00:00Z", [row(1, 9.9, 32.0)])
        self.results("a.json", "2026-11-25T00:00:00Z", [row(1, 8.0, 32.0)])
        self.results("c.json", "2026-11-26T00:00:00Z", [row(1, 1.0, 32.0, duty="sustained"), row(1, 2.0, 32.0, pdl=False),
                                                        row(1, 3.0, 32.0, impl="cublas"), row(1, 4.0, 32.0, act="fp16"),
                                                        row(1, 5.0, 32.0, group_size=64)])
        self.make()
        self.assertIn("| 4096×14336 | 8.00 (4.00×) |", self.readme.read_text())
        self.assertNotIn("b.json", self.readme.read_text())

    def test_every_table_stands_in_its_place(self):
        self.readme.write_text("".join(f"{name}\n<!-- table:{name}:begin -->\n<!-- table:{name}:end -->\n"
                                       for name in ("floor", "dense", "humming")))
        ours, other = row(2, 5.0, 20.0, floor_us=4.0), row(2, 10.0, 20.0, n=11008)
        theirs = [row(2, us, None, impl="humming", n=n, pdl=False) for us, n in ((10.0, 4096), (80.0, 11008))]
        self.results("a.json", "2026-11-25T00:00:00Z", [ours, other, *theirs], peers={"humming": "humming-kernels 0.1.19"})
        self.results("chain.json", "2026-11-26T00:00:00Z", [row(2, 950.0, None, n=None, k=None)])
        self.results("launch_cost.json", "2026-11-27T00:00:00Z", [{"problem": "m1 n4096 k4096 bf16 g128", "launch_us": 2.1}])
        self.assertEqual(self.make()[0], 0)
        text = self.readme.read_text()
        floor, dense, humming = (text[text.index(f"{name}:begin"):text.index(f"{name}:end")]
                                 for name in ("floor", "dense", "humming"))
        self.assertIn("| 4096×14336 | 0.80 |", floor)
        self.assertIn("| 4096×14336 | 4.00× |\n| geometric mean of 2 shapes | 2.83× |", dense)
        self.assertIn("| 4096×14336 | 2.00× |\n| geometric mean of 2 shapes | 4.00× |", humming)
        self.assertIn("humming-kernels 0.1.19", humming)
        self.assertNotIn("chain.json", text)
        self.assertEqual(self.make("--check")[0], 0)

    def test_unknown_and_crossed_tables_are_refused(self):
        for text in ("<!-- table:x:begin -->\n<!-- table:x:end -->\n",
                     "<!-- table:floor:begin -->\n<!-- table:dense:end -->\n",
                     "<!-- table:floor:end -->\n<!-- table:floor:begin -->\n",
                     "<!-- table:floor:begin -->\n<!-- table:floor:end -->\n" * 2):
            self.readme.write_text(text)
            self.assertNotEqual(self.make()[0], 0, text)
            self.assertEqual(self.readme.read_text(), text)

    def test_without_results_it_says_so(self):
        self.assertEqual(self.make()[0], 0)
        self.assertIn("Not measured yet.", self.readme.read_text())

    def test_without_markers_it_refuses(self):
        self.readme.write_text("nothing here\n")
        code, text = self.make()
        self.assertNotEqual(code, 0)
        self.assertIn("table:NAME:begin", text)


if __name__ == "__main__":
    unittest.main()
