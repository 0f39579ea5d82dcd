"""tune on the CPU: the table it writes, resumption, plans made by it, and the judgement of choices."""
import json
import unittest

from harness import Case, run

QUICK = ("--device", "cpu", "--threads", "2", "--replays", "2")
SHAPES = ("--shape", "256x256,192x320", "--m", "1,16")


class Tune(Case):
    def tuned(self, *arguments):
        file = self.folder / "table.json"
        self.expect(run("tune", *SHAPES, *QUICK, "--out", file, *arguments), 0)
        return file

    def test_writes_every_kernel_it_tried_the_quickest_first(self):
        file = self.tuned("--all")
        table = json.loads(file.read_text())
        self.assertEqual(list(table), ["schema", "kind", "gpu", "cpu", "driver", "cuda", "commit", "date", "command", "threads",
                                       "duty_cycles", "kernels", "rows"])
        self.assertEqual((table["schema"], table["kind"], table["gpu"], table["threads"]), (1, "tuning table", None, 2))
        self.assertEqual([row["problem"] for row in table["rows"]],
                         [f"m{m} n{n} k{k} bf16 g128" for n, k in ((256, 256), (192, 320)) for m in (1, 16)])
        for row in table["rows"]:
            why = run("kernels", "--why", row["problem"], "--device", "cpu", "--json").json
            self.assertEqual({kernel["kernel"] for kernel in row["kernels"]},
                             {kernel["kernel"] for kernel in why["kernels"] if kernel["fits"]})
            times = [kernel["us"] for kernel in row["kernels"]]
            self.assertEqual(times, sorted(times))
            for kernel in row["kernels"]:
                self.assertEqual(list(kernel), ["kernel", "us", "estimate_us", "spread"])
                self.assertGreater(kernel["us"], 0)
        # One row a line, so that a diff shows which problem moved.
        self.assertEqual(sum('{"problem":' in line for line in file.read_text().splitlines()), 4)

    def test_resume_measures_only_what_is_missing(self):
        file = self.tuned("--top", "2")
        first = json.loads(file.read_text())
        done = self.expect(run("tune", "--shape", "256x256", "--m", "1,4,16", *QUICK, "--resume", file, "--json"), 0).json
        self.assertEqual((done["measured"], done["kept"]), (1, 2))
        second = json.loads(file.read_text())
        self.assertEqual(second["rows"][:4], first["rows"])
        self.assertEqual(second["rows"][4]["problem"], "m4 n256 k256 bf16 g128")
        for key, word in (("commit", "commit"), ("cpu", "another")):
            file.write_text(json.dumps({**second, key: "another"}))
            self.expect(run("tune", *SHAPES, *QUICK, "--resume", file), 2, word, "another")
        file.write_text("{")
        self.expect(run("tune", *SHAPES, *QUICK, "--resume", file), 3, "table.json")

    def test_tries_the_kernels_that_are_asked_for(self):
        file = self.tuned("--kernel", "gemv|reference", "--within", "1e6")
        table = json.loads(file.read_text())
        self.assertEqual(table["kernels"], "gemv|reference")
        for row in table["rows"]:
            names = [kernel["kernel"] for kernel in row["kernels"]]
            self.assertIn("cpu_reference", names)
            self.assertTrue(all("gemv" in name or name == "cpu_reference" for name in names), names)
        self.expect(run("tune", *SHAPES, *QUICK, "--resume", file), 2, "gemv|reference", "another")
        for row in json.loads(self.tuned("--within", "1").read_text())["rows"]:
            estimates = {kernel["estimate_us"] for kernel in row["kernels"]}
            self.assertEqual(len(estimates), 1, row)
        self.expect(run("tune", *SHAPES, *QUICK, "--out", self.folder / "a", "--kernel", "no_such"), 2, "no_such")
        self.expect(run("tune", *SHAPES, *QUICK, "--out", self.folder / "a", "--kernel", "("), 2, "regular expression")
        self.expect(run("tune", *SHAPES, *QUICK, "--out", self.folder / "a", "--within", "0.5"), 2, "--within")
        self.assertFalse((self.folder / "a").exists())
        self.expect(run("tune", *SHAPES, *QUICK, "--out", self.folder / "a", "--kernel", "sm90"), 2, "'sm90'", "kernels --why")

    def test_a_time_limit_leaves_the_rest_to_the_next_run(self):
        file = self.folder / "table.json"
        words = ("tune", *SHAPES, *QUICK, "--resume", file, "--json")
        done = self.expect(run(*words, "--time-limit", "0.000001"), 0).json
        self.assertEqual((done["measured"], done["left"]), (0, 4))
        done = self.expect(run(*words, "--time-limit", "1000"), 0).json
        self.assertEqual((done["measured"], done["left"]), (4, 0))

    def test_plans_are_made_by_the_table(self):
        file = self.tuned("--all")
        table = json.loads(file.read_text())
        row = table["rows"][0]
        # The reference never wins honestly on this problem.
        row["kernels"] = [{"kernel": "cpu_reference", "us": 1.5}, {"kernel": "a_kernel_of_tomorrow", "us": 1.0}]
        table["threads"] = self.default_threads()
        file.write_text(json.dumps(table))
        why = self.expect(run("kernels", "--why", row["problem"], "--device", "cpu", "--table", file, "--json"), 0).json
        self.assertEqual(why["chosen"], "cpu_reference")
        self.assertIn("measured 1.5 us", why["why"])
        self.assertEqual(why["table"]["problems"], 4)
        self.assertEqual(why["table"]["unknown_kernels"], ["a_kernel_of_tomorrow"])
        for kernel in why["kernels"]:
            self.assertEqual(kernel["measured_us"], 1.5 if kernel["kernel"] == "cpu_reference" else None)
            self.assertEqual(kernel["expected_us"] is not None, kernel["fits"])
        text = self.expect(run("kernels", "--why", row["problem"], "--device", "cpu", "--table", file), 0).out
        self.assertIn("1 of its kernels are not in this library", text)
        without = self.expect(run("kernels", "--why", row["problem"], "--device", "cpu", "--table", "none", "--json"), 0).json
        self.assertNotEqual(without["chosen"], "cpu_reference")
        self.assertIsNone(without["table"])
        bench = self.expect(run("bench", "--shape", "256x256", "--m", "1", "--device", "cpu", "--replays", "2", "--no-dense",
                                "--table", file, "--json"), 0).json
        self.assertEqual(bench["rows"][0]["kernel"], "cpu_reference")
        self.expect(run("kernels", "--why", row["problem"], "--device", "h200", "--table", file), 2, "NVIDIA H200")
        doctor = self.expect(run("doctor", "--table", file, "--json"), 0).json
        self.assertEqual(doctor["table"]["unknown_kernels"], ["a_kernel_of_tomorrow"])
        self.expect(run("kernels", "--table", self.folder / "none.json"), 3, "none.json")

    def default_threads(self):
        return run("doctor", "--json").json["cpu"]["threads"]

    def test_evaluate_judges_every_way_to_choose(self):
        file = self.tuned("--all")
        before = file.read_text()
        (bf16,) = self.expect(run("tune", "--evaluate", file, "--json"), 0).json["formats"]
        self.assertEqual((bf16["format"], bf16["problems"], bf16["foreign_kernels"]), ("bf16 g128", 4, 0))
        ways = {way["choice"]: way for way in bf16["choices"]}
        self.assertEqual(set(ways), {"the cost model alone", "with this table", "with this table, but for the problem",
                                     "with this table, but for the shape"})
        self.assertEqual(ways["with this table"]["worst"], 1)
        for way in ways.values():
            self.assertGreaterEqual(way["geomean"], 1)
            self.assertGreaterEqual(way["worst"], way["geomean"])
        self.assertIn("the cost model alone", self.expect(run("tune", "--evaluate", file), 0).out)
        self.assertEqual(file.read_text(), before)

    def test_wrong_words(self):
        self.expect(run("tune", *SHAPES, *QUICK), 2, "--out")
        self.expect(run("tune", *SHAPES, *QUICK, "--out", self.folder / "a", "--resume", self.folder / "b"), 2, "--out")
        self.expect(run("tune", *SHAPES, *QUICK, "--out", self.folder / "no" / "table.json"), 3, str(self.folder / "no"))
        self.expect(run("tune", "--evaluate", self.folder / "none.json"), 3, "none.json")


if __name__ == "__main__":
    unittest.main()
