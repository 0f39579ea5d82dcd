"""What holds for every verb: help with an example, exit codes, words that say what to do, no library that may be missing."""
import re
import subprocess
import unittest

from harness import NYBBLE, Case, run

VERBS = ("quantize", "inspect", "verify", "bench", "kernels", "doctor", "demo")


class Main(Case):
    def test_help_names_every_verb_and_the_exit_codes(self):
        done = self.expect(run("--help"), 0)
        for word in (*VERBS, "Exit codes", "3 file, disk or GPU failed"):
            self.assertIn(word, done.out)

    def test_every_verb_has_help_with_an_example(self):
        for verb in VERBS:
            done = self.expect(run(verb, "--help"), 0)
            self.assertIn(f"Example:\n  nybble {verb}", done.out)
            self.assertIn("--json", done.out)

    def test_version(self):
        self.assertRegex(self.expect(run("--version"), 0).out, r"^nybble \d+\.\d+\.\d+ \(\w+\)\n$")

    def test_a_wrong_command_line_is_exit_2_and_points_to_help(self):
        for arguments in ((), ("frobnicate",), ("quantize",), ("quantize", "in"), ("inspect", "x", "--frob"),
                          ("bench", "--act", "fp8"), ("verify", "x", "--device", "tpu")):
            done = self.expect(run(*arguments), 2, "--help")
            self.assertEqual(done.out, "", arguments)

    def test_a_wrong_command_line_with_json(self):
        done = self.expect(run("inspect", "--json", "somewhere", "--frob"), 2, "--frob")
        self.assertEqual(done.json["error"]["code"], "invalid_argument")

    def test_a_missing_file_is_exit_3_and_named(self):
        for verb in ("inspect", "verify", "demo"):
            self.expect(run(verb, self.folder / "nowhere"), 3, "nowhere")
        self.expect(run("quantize", self.folder / "nowhere", "--out", self.folder / "out"), 3, "nowhere")

    def test_a_missing_gpu_is_exit_3_and_says_what_works(self):
        self.expect(run("bench", "--device", "cuda", "--shape", "64x64"), 3, "CPU")

    def test_starts_without_driver_or_cuda_libraries(self):
        needed = subprocess.run(["ldd", NYBBLE], capture_output=True, text=True, check=True).stdout
        self.assertIn("libc.so", needed)
        self.assertIsNone(re.search(r"libcuda|libcudart|libcublas|libnvidia", needed), needed)


if __name__ == "__main__":
    unittest.main()
