"""quantize, inspect and verify on a tiny model: round trip, choice of layers, resumption, damage."""
import json
import os
import pty
import shutil
import subprocess
import unittest

from harness import (LAYERS, NYBBLE, Case, float_bytes, read_header, run, weights, write_model, write_safetensors,
                     write_statistics)


class Quantize(Case):
    def setUp(self):
        super().setUp()
        self.model = write_model(self.folder / "model")
        self.out = self.folder / "out"

    def quantize(self, *options):
        return self.expect(run("quantize", self.model, "--out", self.out, "--json", *options), 0).json

    def test_round_trip(self):
        written = self.quantize("--group", "64")
        self.assertEqual(sorted(written["quantized"]), sorted(LAYERS))
        self.assertLess(written["bytes_out"], written["bytes_in"])
        found = self.expect(run("inspect", self.out, "--json"), 0).json
        self.assertEqual(found["format"], "compressed-tensors")
        layers = {layer["name"]: layer for layer in found["layers"] if layer["quantized"]}
        self.assertEqual({name: (layer["n"], layer["k"]) for name, layer in layers.items()}, LAYERS)
        for layer in layers.values():
            self.assertEqual((layer["group_size"], layer["zero_point"], layer["scale_dtype"]), (64, "none", "bf16"))
        verified = self.expect(run("verify", self.out, "--against", self.model, "--device", "cpu", "--json"), 0).json
        self.assertTrue(verified["ok"])
        self.assertEqual(len(verified["layers"]), 3)
        for layer in verified["layers"]:
            self.assertEqual([one["m"] for one in layer["runs"]], [1, 16, 256])
            for one in layer["runs"]:
                self.assertLessEqual(one["of_allowed"], 1)
                self.assertGreater(one["cosine"], 0.9999)
                self.assertEqual(one["outputs_checked"], one["m"] * layer["n"])
            # Round to nearest of Gaussian weights in groups of 64: a step is about a seventh of the group's largest.
            self.assertLess(0.05, layer["weight_error"]["relative"])
            self.assertLess(layer["weight_error"]["relative"], 0.15)

    def test_zero_points_range_search_and_per_column(self):
        written = self.quantize("--group", "col", "--asym", "--range-search", "--scale-dtype", "fp16")
        self.assertEqual(len(written["quantized"]), 3)
        layers = [layer for layer in self.expect(run("inspect", self.out, "--json"), 0).json["layers"] if layer["quantized"]]
        for layer in layers:
            self.assertEqual((layer["group_size"], layer["zero_point"], layer["scale_dtype"]), (0, "int", "fp16"))
        self.expect(run("verify", self.out), 0)

    def test_fp16_models_get_fp16_scales(self):
        self.model = write_model(self.folder / "half", "F16")
        self.quantize()
        layers = [layer for layer in run("inspect", self.out, "--json").json["layers"] if layer["quantized"]]
        self.assertEqual({layer["scale_dtype"] for layer in layers}, {"fp16"})
        self.assertEqual({layer["act"] for layer in run("verify", self.out, "--json").json["layers"]}, {"fp16"})

    def test_include_and_exclude(self):
        written = self.quantize("--include", r"layer\.[01]\.dense", "--exclude", r"layer\.1\.")
        self.assertEqual(written["quantized"], ["encoder.layer.0.dense"])
        verified = run("verify", self.out, "--json").json
        self.assertEqual([layer["name"] for layer in verified["layers"]], ["encoder.layer.0.dense"])

    def test_wrong_requests(self):
        self.expect(run("quantize", self.model, "--out", self.out, "--group", "100"), 2, "--group", "multiple of 16")
        self.expect(run("quantize", self.model, "--out", self.out, "--include", "("), 2, "(")
        self.expect(run("quantize", self.model, "--out", self.out, "--group", "96"), 2, "encoder.layer")  # divides no k here
        self.assertFalse((self.out / "config.json").exists())
        self.expect(run("verify", self.model), 2, "quantized")
        self.quantize()
        self.expect(run("verify", self.out, "--layers", "nothing_like_it"), 2, "nothing_like_it")

    def test_a_used_folder_is_refused_unless_forced_or_resumed(self):
        shutil.rmtree(self.model)
        write_model(self.model, shards=2)
        self.assertEqual(self.quantize()["kept_shards"], 0)
        self.expect(run("quantize", self.model, "--out", self.out), 2, "force", "resume")
        self.assertEqual(self.quantize("--resume")["kept_shards"], 2)
        self.assertEqual(self.quantize("--force")["kept_shards"], 0)
        self.expect(run("verify", self.out), 0)

    def test_silent_in_a_pipe_and_a_bar_on_a_terminal(self):
        self.assertEqual(run("quantize", self.model, "--out", self.out).err, "")
        ours, theirs = pty.openpty()
        done = subprocess.run([NYBBLE, "quantize", str(self.model), "--out", str(self.out), "--force", "--json"], stderr=theirs,
                              stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        os.close(theirs)
        shown = os.read(ours, 1 << 16).decode()
        os.close(ours)
        self.assertEqual(done.returncode, 0)
        self.assertIn("100 %", shown)
        json.loads(done.stdout)

    def test_text_names_what_was_done(self):
        done = self.expect(run("quantize", self.model, "--out", self.out), 0)
        self.assertIn("3 layers", done.out)


class Methods(Case):
    def setUp(self):
        super().setUp()
        self.model = write_model(self.folder / "model")
        self.stats = write_statistics(self.folder / "stats.safetensors", dict.fromkeys(LAYERS, "hessian"))

    def quantize(self, name, *options):
        out = self.folder / name
        done = self.expect(run("quantize", self.model, "--out", out, "--json", "--group", "64", *options), 0).json
        self.expect(run("verify", out, "--against", self.model, "--json"), 0)
        return done

    def errors(self, name, *options):
        done = self.quantize(name, "--stats", self.stats, "--report-errors", *options)
        self.assertEqual(sorted(done["output_errors"]), sorted(LAYERS))
        return done["output_errors"]

    def test_calibrated_methods_lessen_the_output_error(self):
        plain = self.errors("rtn")
        for name, options in {"gptq": ["--method", "gptq"],
                              "static": ["--method", "gptq", "--act-order", "static"],
                              "aware": ["--method", "gptq", "--act-order", "group-aware", "--range", "shrink", "--weighted-range"],
                              "range": ["--method", "range", "--norm", "2"],
                              "percentile": ["--method", "range", "--range", "percentile", "--norm", "2"]}.items():
            better = self.errors(name, *options)
            for layer in LAYERS:
                self.assertLess(better[layer], plain[layer], f"{name} {layer}")

    def test_hqq_has_integer_zeros(self):
        self.quantize("hqq", "--method", "hqq")
        layers = [layer for layer in run("inspect", self.folder / "hqq", "--json").json["layers"] if layer["quantized"]]
        self.assertEqual({layer["zero_point"] for layer in layers}, {"int"})

    def test_awq_refuses_other_architectures_and_clips_where_no_scale_fits(self):
        self.expect(run("quantize", self.model, "--out", self.folder / "x", "--method", "awq", "--stats", self.stats), 2, "'bert'")
        (self.model / "config.json").write_text("{}")
        done = self.quantize("awq", "--method", "awq", "--include", "dense", "--stats", self.stats)
        self.assertEqual(len(done["quantized"]), 2)

    def test_warnings_say_what_was_not_done(self):
        kinds = {"encoder.layer.0.query": "dead", "encoder.layer.0.dense": "mean_square"}
        done = self.quantize("out", "--method", "gptq", "--stats", write_statistics(self.folder / "some", kinds))
        warnings = "\n".join(done["warnings"])
        self.assertEqual(len(done["warnings"]), 3, warnings)
        self.assertIn("encoder.layer.0.query: 1 of 128 inputs", warnings)
        self.assertIn("encoder.layer.0.dense: the statistics file has mean squares only", warnings)
        self.assertIn("encoder.layer.1.dense: the statistics file lacks this layer", warnings)
        again = self.quantize("out", "--method", "gptq", "--stats", self.folder / "some", "--resume")
        self.assertGreater(again["kept_shards"], 0)
        self.assertEqual(len(again["warnings"]), 1, again["warnings"])
        self.assertIn(f"{again['kept_shards']} shards were kept from an earlier run", again["warnings"][0])

    def test_damping_that_was_raised_is_told(self):
        kinds = {layer: "indefinite" for layer in LAYERS}
        stats = write_statistics(self.folder / "some", kinds)
        warnings = sorted(self.quantize("out", "--method", "gptq", "--stats", stats)["warnings"])
        self.assertEqual(len(warnings), 3, warnings)
        self.assertIn("encoder.layer.0.dense: the Hessian is not positive definite even with damping 1;", warnings[0])
        self.assertIn("encoder.layer.0.query: the Hessian needed damping 0.32 instead of 0.01", warnings[1])
        self.assertIn("encoder.layer.1.dense: the Hessian needed damping 0.32 instead of 0.01", warnings[2])
        done = run("quantize", self.model, "--out", self.folder / "text", "--group", "64", "--method", "gptq", "--stats", stats)
        for warning in warnings:
            self.assertIn("warning: " + warning, self.expect(done, 0).out)

    def test_resume_asks_for_the_same_method_and_statistics(self):
        options = ["--method", "gptq", "--stats", self.stats]
        self.assertEqual(self.quantize("out", *options)["kept_shards"], 0)
        self.assertEqual(self.quantize("out", *options, "--resume")["kept_shards"], 1)
        self.assertEqual(self.quantize("out", *options, "--resume", "--damping", "0.1")["kept_shards"], 0)
        write_statistics(self.stats, dict.fromkeys(LAYERS, "mean_square"))
        self.assertEqual(self.quantize("out", *options, "--resume", "--damping", "0.1")["kept_shards"], 0)

    def test_wrong_requests(self):
        def refuse(*options):
            return self.expect(run("quantize", self.model, "--out", self.folder / "out", *options), 2).err
        self.assertIn("--stats", refuse("--method", "gptq"))
        self.assertIn("--stats", refuse("--report-errors"))
        self.assertIn("--report-errors", refuse("--stats", self.stats))
        self.assertIn("--damping", refuse("--method", "rtn", "--damping", "0.1"))
        self.assertIn("gptq", refuse("--method", "range", "--act-order", "static"))
        for method in ("hqq", "range"):
            self.assertIn("rtn, gptq and awq", refuse("--method", method, "--device", "cuda"))
        broken = run("quantize", self.model, "--out", self.folder / "out", "--method", "gptq", "--stats", self.model / "model.safetensors")
        self.expect(broken, 3, "no statistics file")

    def test_without_a_gpu_cuda_is_refused(self):
        for method in ("rtn", "gptq", "awq"):
            options = [] if method == "rtn" else ["--stats", self.stats]
            done = run("quantize", self.model, "--out", self.folder / "out", "--method", method, "--device", "cuda", *options)
            self.expect(done, 3, "CPU")
            self.assertFalse((self.folder / "out").exists(), method)


def peak_bytes(*arguments):
    """The most memory that `nybble ARGUMENTS` had resident."""
    process = subprocess.Popen([NYBBLE, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return usage.ru_maxrss * 1024


@unittest.skipUnless(os.environ.get("NYBBLE_FAILING_CALLS"), "built with a sanitizer, which keeps memory that was freed")
class Memory(Case):
    """Many layers take no more memory than a few."""
    SIDE, FEW, MANY, MOST_MORE = 512, 4, 40, 8 << 20  # 36 layers more are 36 MiB

    def write_layers(self, name, count):
        folder = self.folder / name
        folder.mkdir()
        data = self.SIDE * weights((1, self.SIDE), "F32")[2]
        write_safetensors(folder / "model.safetensors",
                          {f"layers.{i}.proj.weight": ("F32", [self.SIDE, self.SIDE], data) for i in range(count)})
        (folder / "config.json").write_text("{}")
        return folder

    def test_is_bounded_by_a_layer(self):
        few, many = self.write_layers("few", self.FEW), self.write_layers("many", self.MANY)
        for options in (["--method", "rtn"], ["--method", "hqq"]):
            peaks = [peak_bytes("quantize", model, "--out", self.folder / f"{model.name}-{options[1]}", *options) for model in (few, many)]
            self.assertLess(peaks[1] - peaks[0], self.MOST_MORE, options)
        for to in ("dense", "gptq", "nybble"):
            peaks = [peak_bytes("convert", self.folder / f"{model.name}-rtn", "--to", to, "--scale-dtype" if to == "gptq" else "--dtype",
                                "fp16", "--out", self.folder / f"{model.name}-{to}") for model in (few, many)]
            self.assertLess(peaks[1] - peaks[0], self.MOST_MORE, to)


class Damage(Case):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "out"
        self.expect(run("quantize", write_model(self.folder / "model"), "--out", self.out), 0)
        self.file = self.out / "model.safetensors"

    def test_a_nan_scale_is_named(self):
        begin, header = read_header(self.file)
        name = "encoder.layer.0.dense.weight_scale"
        data = bytearray(self.file.read_bytes())
        offset = begin + header[name]["data_offsets"][0]
        data[offset:offset + 2] = b"\xc0\x7f"  # a bf16 NaN
        self.file.write_bytes(data)
        for verb in ("inspect", "verify"):
            self.expect(run(verb, self.out), 1, "encoder.layer.0.dense")
        done = run("inspect", self.out, "--json")
        self.assertEqual((done.code, done.json["ok"], done.json["error"]["code"]), (1, False, "invalid_data"))

    def test_a_truncated_file(self):
        self.file.write_bytes(self.file.read_bytes()[:-100])
        for verb in ("inspect", "verify"):
            self.expect(run(verb, self.out), 1, "model.safetensors")

    def test_an_empty_folder_is_no_model(self):
        empty = self.folder / "empty"
        empty.mkdir()
        done = run("inspect", empty)
        self.assertIn(done.code, (1, 2, 3), done.err)
        self.assertIn("safetensors", done.err)


if __name__ == "__main__":
    unittest.main()
