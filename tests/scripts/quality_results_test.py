"""The results that docs/quality.md is made of: whole tables for both models, in which calibration beats rounding."""
import json
import pathlib
import unittest

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "bench" / "results" / "quality"
# 128 does not divide SmolLM2's 576 features.
GROUPS = {"SmolLM2-135M-Instruct": {192, 64, 32}, "debian-llama": {128, 64, 32}}
METHODS = {"RTN", "range search", "range search, weighted", "HQQ", "GPTQ", "AWQ"}


class QualityResults(unittest.TestCase):
    def setUp(self):
        self.results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in GROUPS}

    def rows(self, name):
        return {(row["method"], row["grid"], row["group_size"]): row for row in self.results[name]["rows"]}

    def test_every_method_at_every_group_size(self):
        for name, groups in GROUPS.items():
            rows = self.rows(name)
            self.assertEqual({group for _, _, group in rows}, groups, name)
            for group in groups:
                self.assertEqual({method for method, _, size in rows if size == group}, METHODS, f"{name} {group}")
            for row in rows.values():
                self.assertGreater(row["perplexity"], 0.9 * self.results[name]["dense_perplexity"])
                self.assertGreater(row["mean_kl"], 0)

    def test_gptq_and_awq_beat_symmetric_rounding(self):
        for name, groups in GROUPS.items():
            rows = self.rows(name)
            for group in groups:
                plain = rows["RTN", "symmetric", group]
                for method in ("GPTQ", "AWQ"):
                    for grid in ("symmetric", "asymmetric"):
                        for measure in ("mean_kl", "perplexity"):
                            self.assertLess(rows[method, grid, group][measure], plain[measure], f"{name} {method} {grid} {group}")

    def test_rounding_finds_the_files_own_grid(self):
        grid = self.results["SmolLM2-135M-Instruct"]["own_grid"]
        self.assertEqual(grid["codes"], 106168320)
        self.assertGreater(grid["equal"], 0.98 * grid["codes"])


if __name__ == "__main__":
    unittest.main()
