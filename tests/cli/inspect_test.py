"""inspect and verify on models of other formats: what was found, and what cannot be multiplied yet."""
import os
import pathlib
import unittest

from harness import Case, run

DATA = pathlib.Path(os.environ["NYBBLE_SOURCE_DIR"]) / "tests" / "data"


class Inspect(Case):
    def test_tables_are_shown_with_the_way_out(self):
        done = self.expect(run("inspect", DATA / "ct_mixed"), 0)
        for word in ("1 layers of 4-bit integers", "4-bit g16 sfp32 table", "int4 g32 zp", "2 of these layers are codes into a "
                     "table", "nybble convert --to dense", "checked: all 3 layers are sound"):
            self.assertIn(word, done.out)
        found = self.expect(run("inspect", DATA / "bnb_nf4", "--json"), 0).json
        self.assertEqual(found["format"], "bitsandbytes")
        self.assertEqual({layer["zero_point"] for layer in found["layers"]}, {"table"})
        self.assertNotIn("codes into a table", self.expect(run("inspect", DATA / "hqq_fp16"), 0).out)

    def test_verify_refuses_tables(self):
        self.expect(run("verify", DATA / "ct_nvfp4", "--device", "cpu"), 2, "has no packed form yet; dequantize it")

    def test_verify_multiplies_float_zeros_and_offsets(self):
        for name in ("hqq_fp16", "torchao_tiles", "ct_experts", "ct_actorder_group"):
            self.expect(run("verify", DATA / name, "--device", "cpu"), 0)


if __name__ == "__main__":
    unittest.main()
