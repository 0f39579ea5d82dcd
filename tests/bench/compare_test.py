"""bench/compare.py: what counts as slower, what as monotone, and the exit code."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "bench" / "compare.py"


def row(us, problem="m1 n4096 k4096 bf16 g128", spread=0.01, impl="nybble", duty="idle10", **changes):
    m, n, k = (int(word[1:]) for word in problem.split()[:3])
    return {"problem": problem, "impl": impl, "m": m, "n": n, "k": k, "act": "bf16", "format": "int4", "group_size": 128,
            "zero_point": "none", "kernel": "some", "duty": duty, "pdl": None if impl == "cublas" else True, "us": us,
            "spread": spread, **changes}


def at(m, us, **changes):
    return row(us, f"m{m} n4096 k4096 bf16 g128", **changes)


def chain(us):
    return row(us) | {"problem": "chain llama3-8b x32 m1 bf16 g128", "n": None, "k": None}


class Compare(unittest.TestCase):
    def compare(self, *files_and_options):
        """Files are lists of rows, options words; the first file is the oldest."""
        with tempfile.TemporaryDirectory() as folder:
            words = []
            for i, word in enumerate(files_and_options):
                if isinstance(word, list):
                    path = pathlib.Path(folder, f"{i}.json")
                    path.write_text(json.dumps({"schema": 1, "gpu": "NVIDIA H200", "driver": "1", "floor": {},
                                                "date": f"2026-11-25T00:00:{i:02}Z", "rows": word}))
                    word = path
                words.append(word)
            done = subprocess.run([sys.executable, "-B", SCRIPT, *words], capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr


class TwoRuns(Compare):
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

    def test_chains_compare_too(self):
        self.assertEqual(self.compare([chain(950)], [chain(1050)])[0], 1)

    def test_nothing_in_common(self):
        self.assertEqual(self.compare([row(10)], [row(10, "m3 n64 k64 bf16 g128")])[0], 2)

    def test_needs_two_files(self):
        self.assertEqual(self.compare([row(10)])[0], 2)

    def test_no_result_file(self):
        code, text = self.compare([row(10)], "nowhere.json")
        self.assertEqual(code, 1)
        self.assertIn("nowhere.json", text)


class Against(Compare):
    def test_faster_everywhere(self):
        code, text = self.compare([at(1, 4), at(1, 8, impl="humming"), at(4096, 100, duty="burst"),
                                   at(4096, 110, impl="humming", duty="burst")], "--against", "humming")
        self.assertEqual(code, 0)
        self.assertIn("m = 1 to 8: 1 rows, geometric mean 2.000 times", text)
        self.assertIn("m >= 1024: 1 rows, geometric mean 1.100 times", text)
        self.assertIn("verdict: pass", text)

    def test_one_slower_row_fails_and_is_named(self):
        code, text = self.compare([at(1, 4), at(1, 8, impl="humming"), at(2, 9), at(2, 8, impl="humming")],
                                  "--against", "humming")
        self.assertEqual(code, 1)
        self.assertIn("+12.5 %  m2 n4096 k4096 bf16 g128 idle10", text)
        self.assertIn("slower in 1, and in 0", text)

    def test_slower_within_the_spread_is_told_but_no_failure(self):
        code, text = self.compare([at(1, 8.1, spread=0.02), at(1, 8, impl="cublas")], "--against", "cublas")
        self.assertEqual(code, 0)
        self.assertIn("(within the spread)", text)

    def test_a_demanded_mean(self):
        rows = [at(1, 5), at(1, 8, impl="humming")]
        self.assertEqual(self.compare(rows, "--against", "humming", "--ranges", "1-8:1.6")[0], 0)
        code, text = self.compare(rows, "--against", "humming", "--ranges", "1-8:1.7,16-:1.0")
        self.assertEqual(code, 1)
        self.assertIn("1.7 is demanded: NOT REACHED", text)
        self.assertIn("m >= 16: no rows", text)

    def test_only_the_same_duty_and_overlapping_launches(self):
        code, text = self.compare([at(1, 4), at(1, 8, impl="humming", duty="burst")], "--against", "humming")
        self.assertEqual(code, 2)
        code, text = self.compare([at(1, 4), at(1, 9, pdl=False), at(1, 8, impl="humming")], "--against", "humming")
        self.assertEqual(code, 0)
        self.assertIn("1 rows, geometric mean 2.000", text)

    def test_rows_pair_within_their_file(self):
        code, text = self.compare([at(1, 4)], [at(1, 8, impl="humming")], "--against", "humming")
        self.assertEqual(code, 2)
        self.assertIn("no nybble row", text)

    def test_a_wrong_range_is_refused(self):
        self.assertEqual(self.compare([at(1, 4)], "--against", "humming", "--ranges", "few")[0], 2)


class Monotone(Compare):
    def test_rising_times_pass(self):
        code, text = self.compare([at(1, 4), at(2, 4.1), at(4, 4.0)], "--monotone", "5")
        self.assertEqual(code, 0)
        self.assertIn("2 times compared", text)

    def test_a_cliff_fails_also_over_several_m(self):
        code, text = self.compare([at(16, 10), at(17, 12), at(24, 12), at(32, 11)], "--monotone", "5")
        self.assertEqual(code, 1)
        self.assertIn("m = 17: 12.00 us, 9.1 % above m = 32 (11.00 us)", text)
        self.assertIn("2 exceed", text)

    def test_duty_cycles_are_not_mixed_and_it_says_so(self):
        code, text = self.compare([at(128, 30), at(256, 20, duty="burst"), at(512, 40, duty="burst")], "--monotone", "5")
        self.assertEqual(code, 0)
        self.assertIn("1 pairs of neighbouring m were measured in different duty cycles only", text)

    def test_shapes_and_implementations_are_apart(self):
        rows = [at(1, 9), row(5, "m2 n64 k64 bf16 g128"), at(2, 4, impl="cublas"), at(4, 4, pdl=False), chain(1)]
        self.assertEqual(self.compare(rows, "--monotone", "5")[0], 0)
        code, _ = self.compare([at(1, 9, impl="humming"), at(2, 5, impl="humming")], "--monotone", "5", "--impl", "humming")
        self.assertEqual(code, 1)

    def test_the_latest_file_counts(self):
        self.assertEqual(self.compare([at(1, 9), at(2, 5)], [at(1, 5)], "--monotone", "5")[0], 0)
        self.assertEqual(self.compare([at(1, 5)], [at(1, 9), at(2, 5)], "--monotone", "5")[0], 1)

    def test_nothing_to_compare(self):
        self.assertEqual(self.compare([chain(1)], "--monotone", "5")[0], 2)


if __name__ == "__main__":
    unittest.main()
