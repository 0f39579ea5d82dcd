"""scripts/compile_stats.py and scripts/check_build.py on recorded ptxas output (CUDA 13.0) and a stand-in for nvcc."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z9with_smemPf' for 'sm_90a'
ptxas info    : Function properties for _Z9with_smemPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 4096 bytes smem
ptxas info    : Compile time = 1.106 ms
"""
SPILLING = """\
ptxas info    : Compiling entry function '_Z8spillingILi64EEvPfPKf' for 'sm_90a'
ptxas info    : Function properties for _Z8spillingILi64EEvPfPKf
    288 bytes stack frame, 380 bytes spill stores, 416 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 288 bytes cumulative stack size
ptxas info    : Compile time = 15.183 ms
"""
SERIALIZED = """\
ptxas info    : (C7517) warpgroup.wait is injected in around line 75 by compiler to allow use of registers defined by \
GMMA in function '_Z10serializedPfmmi'
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
register resources for the wgmma pipeline in the function '_Z10serializedPfmmi'
ptxas info    : Compiling entry function '_Z10serializedPfmmi' for 'sm_90a'
ptxas info    : Function properties for _Z10serializedPfmmi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""


class Build:
    """A build folder whose objects were made through the launcher by a stand-in for nvcc."""

    def __init__(self):
        folder = tempfile.TemporaryDirectory()
        unittest.addModuleCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.nvcc = self.root / "nvcc"
        # Prints the file it is to compile and leaves an object; the file's text is what ptxas is to have said.
        self.nvcc.write_text('#!/bin/sh\nfor source; do case "$source" in *.cu|*.cc) break;; esac; done\n'
                             'case "$*" in *-Xptxas=-v*) cat "$source" >&2;; esac\n'
                             'echo "$source(7): warning #177-D: variable was declared" >&2\n'
                             'case "$source" in *broken*) exit 3;; esac\n'
                             'while [ "$1" != -o ]; do shift; done; : > "$2"\n')
        self.nvcc.chmod(0o755)
        self.commands = []

    def compile(self, name, text, launcher=True):
        source, target = self.root / name, self.root / (name + ".o")
        source.write_text(text)
        command = [str(self.nvcc), "-O3", "-x", "cu", "-c", str(source), "-o", str(target)]
        self.commands.append({"directory": str(self.root), "file": str(source), "command": " ".join(command)})
        (self.root / "compile_commands.json").write_text(json.dumps(self.commands))
        return subprocess.run([str(SCRIPTS / "compile_stats.py")] * launcher + command, capture_output=True, text=True)

    def check(self, allow="# none\n"):
        (self.root / "allow.txt").write_text(allow)
        done = subprocess.run([sys.executable, SCRIPTS / "check_build.py", self.root, "--allow", self.root / "allow.txt"],
                              capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    def edit_record(self, name, **fields):
        path = self.root / (name + ".o.stats.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))


class Launcher(unittest.TestCase):
    def test_hides_the_report_and_passes_messages(self):
        done = Build().compile("a.cu", CLEAN + SERIALIZED)
        self.assertEqual(done.returncode, 0)
        self.assertIn("warning #177-D", done.stderr)
        self.assertIn("(C7511)", done.stderr)
        self.assertNotIn("registers", done.stderr.replace("register resources", "").replace("use of registers", ""))
        self.assertNotIn("spill", done.stderr)

    def test_failure_keeps_exit_code_and_leaves_no_record(self):
        build = Build()
        build.compile("broken.cu", CLEAN)
        (build.root / "broken.cu.o.stats.json").write_text("{}")
        self.assertEqual(build.compile("broken.cu", CLEAN).returncode, 3)
        self.assertFalse((build.root / "broken.cu.o.stats.json").exists())

    def test_other_commands_pass_untouched(self):
        done = subprocess.run([SCRIPTS / "compile_stats.py", "echo", "a", "b"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, "a b\n"))


class CheckBuild(unittest.TestCase):
    def expect_problem(self, build, text, allow="# none\n"):
        code, _, problems = build.check(allow)
        self.assertEqual(code, 1)
        self.assertIn(text, problems)

    def test_clean_build(self):
        build = Build()
        build.compile("a.cu", CLEAN)
        build.compile("b.cu", CLEAN)
        code, out, problems = build.check()
        self.assertEqual((code, problems), (0, ""))
        self.assertIn("2 kernels in 2 of 2 objects", out)
        self.assertIn("largest compiler process", out)

    def test_spill(self):
        build = Build()
        build.compile("a.cu", CLEAN + SPILLING)
        self.expect_problem(build, "spills 380 bytes of stores, 416 of loads: void spilling<64>(float*, float const*)")
        self.expect_problem(build, "415 allowed", "spilling<64> 415 one byte short\n")
        code, out, problems = build.check("spilling<64>\\(float 416 measured: nothing lost\n")
        self.assertEqual((code, problems), (0, ""))
        self.assertIn("1 excused", out)

    def test_row_that_nothing_needs_is_noted(self):
        build = Build()
        build.compile("a.cu", CLEAN)
        self.assertIn("no kernel here needs the row", build.check("gone 16 reason\n")[1])

    def test_row_without_reason(self):
        build = Build()
        build.compile("a.cu", CLEAN)
        self.expect_problem(build, "a row is: regular expression, bytes, reason", "spilling 416\n")

    def test_wgmma_notes(self):
        build = Build()
        build.compile("a.cu", SERIALIZED)
        self.expect_problem(build, "C7511: Potential Performance Loss")
        self.expect_problem(build, "C7517: warpgroup.wait is injected")

    def test_shared_memory(self):
        build = Build()
        build.compile("a.cu", CLEAN.replace("4096", str(227 * 1024)))
        self.assertEqual(build.check()[0], 0)
        build.compile("a.cu", CLEAN.replace("4096", str(227 * 1024 + 1)))
        self.expect_problem(build, "232449 bytes of shared memory, 232448 is the most")

    def test_compiler_memory(self):
        build = Build()
        build.compile("a.cu", CLEAN)
        build.edit_record("a.cu", peak_bytes=2 * 10**9 + 1)
        self.expect_problem(build, "a compiler process took 2.00 GB")

    def test_blindness_is_a_failure(self):
        build = Build()
        self.expect_problem(build, "compile_commands.json")
        build.compile("a.cc", "")
        self.expect_problem(build, "no kernel found")
        build.compile("b.cu", CLEAN, launcher=False)
        self.expect_problem(build, "b.cu: built without scripts/compile_stats.py")
        build.compile("c.cu", CLEAN)
        later = os.stat(build.root / "c.cu.o.stats.json").st_mtime + 60
        os.utime(build.root / "c.cu.o", (later, later))
        self.expect_problem(build, "c.cu: built without scripts/compile_stats.py")
        (build.root / "c.cu.o").unlink()
        self.expect_problem(build, "c.cu: not built")


if __name__ == "__main__":
    unittest.main()
