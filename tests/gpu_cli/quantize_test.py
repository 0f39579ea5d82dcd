"""`nybble quantize --device cuda` writes the files that the CPU writes, byte for byte, and tells of them in the same words.

Without a Hopper GPU the test is skipped (exit status 77).
"""
import filecmp
import json
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["NYBBLE_SOURCE_DIR"]) / "tests/cli"))
from harness import Case, run, weights, write_safetensors, write_statistics  # noqa: E402  (it lies with the other tests)

HIDDEN, INNER, BLOCKS = 256, 448, 2
SHAPES = {f"model.layers.{block}.{name}": shape for block in range(BLOCKS) for name, shape in {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER)}.items()}


def run_with_gpu(*arguments):
    return run(*arguments, CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", "0"))


class OnTheGpu(Case):
    def setUp(self):
        super().setUp()
        self.model = self.folder / "model"
        self.model.mkdir()
        tensors = {name + ".weight": weights(shape, "BF16", seed) for seed, (name, shape) in enumerate(SHAPES.items())}
        for block in range(BLOCKS):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{block}.{norm}.weight"] = weights((HIDDEN,), "BF16", 100 + block)
        write_safetensors(self.model / "model.safetensors", tensors)
        (self.model / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN}))
        self.stats = {kind: write_statistics(self.folder / f"{kind}.safetensors", dict.fromkeys(SHAPES, kind), SHAPES)
                      for kind in ("hessian", "mean_square", "dead")}

    def quantize(self, device, *options):
        out = self.folder / device
        done = self.expect(run_with_gpu("quantize", self.model, "--out", out, "--force", "--json", "--group", "64", "--device",
                                        device, *options), 0).json
        return out, {key: value for key, value in done.items() if not key.startswith("seconds") and key != "out"}

    def test_the_same_files_and_words(self):
        for options in (["--method", "rtn"],
                        ["--method", "gptq", "--stats", self.stats["hessian"], "--report-errors"],
                        ["--method", "gptq", "--stats", self.stats["dead"], "--act-order", "static", "--asymmetric"],
                        ["--method", "awq", "--stats", self.stats["hessian"], "--report-errors"],
                        ["--method", "awq", "--stats", self.stats["mean_square"], "--report-errors"],
                        ["--method", "awq", "--stats", self.stats["dead"], "--awq-rows", "64", "--asymmetric"]):
            with self.subTest(options=options):
                (cpu, of_cpu), (cuda, of_cuda) = self.quantize("cpu", *options), self.quantize("cuda", *options)
                self.assertEqual(of_cuda, of_cpu)
                files = sorted(path.name for path in cpu.iterdir())
                self.assertEqual(sorted(path.name for path in cuda.iterdir()), files)
                same, different, failed = filecmp.cmpfiles(cpu, cuda, files, shallow=False)
                self.assertEqual((different, failed), ([], []))


def main():
    doctor = run_with_gpu("doctor", "--json").json
    if doctor["gpu"] is None:
        print(f"{__file__}:1: Skipped\n{doctor['gpu_error']}")
        return 77
    unittest.main()


if __name__ == "__main__":
    sys.exit(main())
