"""kernels and doctor: text for people, JSON for programs, no GPU needed."""
import unittest

from harness import Case, run

PROBLEM = "m16 n4096 k4096 bf16 g128"


class Kernels(Case):
    def test_lists_all(self):
        listed = self.expect(run("kernels", "--json"), 0).json["kernels"]
        self.assertEqual({row["device"] for row in listed}, {"cuda", "cpu"})
        self.assertEqual(len({row["name"] for row in listed}), len(listed))
        text = self.expect(run("kernels"), 0).out
        for row in listed:
            self.assertIn(row["name"], text)

    def test_why_judges_every_row_for_an_h200(self):
        names = {row["name"] for row in run("kernels", "--json").json["kernels"]}
        why = self.expect(run("kernels", "--why", PROBLEM, "--device", "h200", "--json"), 0).json
        self.assertEqual(why["problem"], PROBLEM)
        self.assertEqual({row["kernel"] for row in why["kernels"]}, names)
        for row in why["kernels"]:
            self.assertEqual(row["fits"], row["reason"] == "", row)
        self.assertEqual([row["kernel"] for row in why["kernels"] if row["chosen"]], [why["chosen"]])
        self.assertTrue(why["chosen"].startswith("sm90"), why["chosen"])

    def test_why_on_the_cpu_gives_reasons_in_words(self):
        done = self.expect(run("kernels", "--why", PROBLEM, "--device", "cpu"), 0)
        self.assertIn("chosen", done.out)
        self.assertIn("GPU", done.out)
        chosen = run("kernels", "--why", PROBLEM, "--device", "cpu", "--json").json["chosen"]
        self.assertIn(chosen, done.out)

    def test_a_malformed_problem_is_exit_2_and_shows_a_good_one(self):
        self.expect(run("kernels", "--why", "m16 bananas"), 2, "bananas", PROBLEM)


class Doctor(Case):
    def test_without_a_gpu_it_says_so_and_is_content(self):
        done = self.expect(run("doctor"), 0)
        for word in ("GPU           none", "everything runs on the CPU", "CPU  ", "built with", "On the CPU:"):
            self.assertIn(word, done.out)

    def test_json(self):
        found = self.expect(run("doctor", "--json"), 0).json
        self.assertIsNone(found["gpu"])
        self.assertTrue(found["on_cpu"])
        for row in found["on_cpu"]:
            self.assertIsNotNone(row["kernel"], row)


if __name__ == "__main__":
    unittest.main()
