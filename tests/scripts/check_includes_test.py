"""scripts/check_includes.py on small trees: what it must refuse, with file and line, and what it must let pass."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_includes.py"


def check(files):
    """Runs the script over a tree of {path: text}; returns exit code, stdout, stderr."""
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = pathlib.Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


class CheckIncludes(unittest.TestCase):
    def expect_problem(self, files, where, rule):
        code, _, problems = check(files)
        self.assertEqual(code, 1, problems)
        self.assertEqual(len(problems.splitlines()), 1, problems)
        self.assertTrue(problems.startswith(where + ":"), problems)
        self.assertIn(rule, problems)

    def test_down_the_list_and_within_a_room_is_fine(self):
        code, out, problems = check({
            "include/nybble/types.h": "#include <string>\n",
            "include/nybble/gemm.h": '#include "nybble/types.h"\n',
            "include/nybble.h": "#include <stdint.h>\n",
            "src/capi/capi.cc": '#include "nybble.h"\n#include "nybble/gemm.h"\n',
            "src/base/check.h": "",
            "src/kernels/parts/epilogue.cuh": "",
            "src/kernels/gemm.cu": '#include "parts/epilogue.cuh"\n#include "base/check.h"\n#include <cuda_bf16.h>\n',
            "src/dispatch/plan.cc": '#include "nybble/gemm.h"\n#include "kernels/parts/epilogue.cuh"\n',
            "tests/unit/plan_test.cc": '#include "dispatch/missing.h"\n#include "nybble/gemm.h"\n',
        })
        self.assertEqual((code, problems), (0, ""))
        self.assertIn("9 files", out)

    def test_up_the_list(self):
        self.expect_problem({"src/pack/pack.cc": '// pack\n  #  include "dispatch/plan.h"\n', "src/dispatch/plan.h": ""},
                            "src/pack/pack.cc:2", "pack lies below dispatch")

    def test_siblings(self):
        self.expect_problem({"src/pack/pack.cc": '#include "quantize/rtn.h"\n', "src/quantize/rtn.h": ""},
                            "src/pack/pack.cc:1", "siblings")
        self.expect_problem({"cli/main.cc": '#include "tests/inputs.h"\n', "tests/inputs.h": ""},
                            "cli/main.cc:1", "siblings")

    def test_public_header_ranks_with_its_room(self):
        self.expect_problem({"src/registry/list.cc": "#include <nybble/gemm.h>\n", "include/nybble/gemm.h": ""},
                            "src/registry/list.cc:1", "registry lies below dispatch")
        self.expect_problem({"src/dispatch/plan.cc": "#include <nybble.h>\n", "include/nybble.h": ""},
                            "src/dispatch/plan.cc:1", "dispatch lies below capi")
        self.expect_problem({"include/nybble/types.h": '#include "nybble/weight.h"\n', "include/nybble/weight.h": ""},
                            "include/nybble/types.h:1", "base lies below weight")

    def test_relative_path_out_of_the_room(self):
        self.expect_problem({"src/base/check.cc": '#include "../runtime/device.h"\n', "src/runtime/device.h": ""},
                            "src/base/check.cc:1", "base lies below runtime")

    def test_checkpoint_and_reference_take_only_base_and_weight(self):
        self.expect_problem({"src/checkpoint/awq.cc": '#include "layout/packed.h"\n', "src/layout/packed.h": ""},
                            "src/checkpoint/awq.cc:1", "checkpoint takes only base and weight")
        self.expect_problem({"src/reference/gemm.cc": "#include <cuda_fp16.h>\n"},
                            "src/reference/gemm.cc:1", "reference needs no CUDA")

    def test_public_header_needs_no_cuda(self):
        self.expect_problem({"include/nybble/gemm.h": "#include <cuda_runtime_api.h>\n"},
                            "include/nybble/gemm.h:1", "a public header needs no CUDA")

    def test_room_without_a_place(self):
        self.expect_problem({"src/utils/misc.h": ""}, "src/utils/misc.h:1", "no place")
        self.expect_problem({"include/nybble/extra.h": ""}, "include/nybble/extra.h:1", "no place")

    def test_empty_tree_is_no_success(self):
        self.assertEqual(check({})[0], 1)


if __name__ == "__main__":
    unittest.main()
