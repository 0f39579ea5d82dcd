"""convert: from what quantize writes to every format and to plain weights, and what is refused."""
import json
import unittest

from harness import LAYERS, Case, read_header, run, write_model


class Convert(Case):
    def setUp(self):
        super().setUp()
        self.model = self.folder / "4bit"
        self.expect(run("quantize", write_model(self.folder / "model", "F16", shards=2), "--out", self.model, "--group", "64"), 0)
        self.out = self.folder / "out"

    def convert(self, to, *options):
        return self.expect(run("convert", self.model, "--to", to, "--out", self.out, "--json", *options), 0).json

    def settings(self):
        return json.loads((self.out / "config.json").read_text()).get("quantization_config")

    def test_every_target(self):
        suffixes = {"dense": {".weight"}, "compressed-tensors": {".weight_packed", ".weight_scale", ".weight_shape"},
                    "gptq": {".qweight", ".qzeros", ".scales", ".g_idx"}, "awq": {".qweight", ".qzeros", ".scales"}}
        for to, expected in suffixes.items():
            done = self.convert(to, "--force")
            self.assertEqual(sorted(done["converted"]), sorted(LAYERS))
            tensors = {}
            for shard in self.out.glob("*.safetensors"):
                tensors.update(read_header(shard)[1])
            for layer in LAYERS:
                found = {name[len(layer):] for name in tensors if name.startswith(layer + ".") and not name.endswith(".bias")}
                self.assertEqual(found, expected, f"{to} {layer}")
            self.assertIn("encoder.layer.0.query.bias", tensors)
            method = (self.settings() or {}).get("quant_method", "dense")
            self.assertEqual(method, to)

    def test_the_default_target(self):
        self.assertEqual(self.expect(run("convert", self.model, "--out", self.out, "--json"), 0).json["to"], "compressed-tensors")
        self.assertEqual(self.settings()["quant_method"], "compressed-tensors")

    def test_dense_is_what_was_quantized(self):
        self.convert("dense", "--dtype", "bf16")
        again = self.folder / "again"
        self.expect(run("quantize", self.out, "--out", again, "--group", "64"), 0)
        self.expect(run("verify", again, "--against", self.out), 0)
        self.expect(run("convert", self.out, "--to", "awq", "--out", self.folder / "x"), 2, "nybble quantize")

    def test_exclude_shards_and_resume(self):
        done = self.convert("gptq", "--exclude", "layer.1", "--shard-size", "20KB")
        self.assertIn("encoder.layer.1.dense", done["dense"])
        self.assertGreater(len(list(self.out.glob("*.safetensors"))), 1)
        again = self.convert("gptq", "--exclude", "layer.1", "--shard-size", "20KB", "--resume")
        self.assertEqual(again["kept_shards"], len(list(self.out.glob("*.safetensors"))))

    def test_packed_files(self):
        done = self.convert("nybble", "--exclude", "layer.1")
        self.assertEqual(sorted(done["converted"]), ["encoder.layer.0.dense", "encoder.layer.0.query"])
        self.assertEqual(done["dense"], ["encoder.layer.1.dense"])
        manifest = json.loads((self.out / "manifest.json").read_text())
        for layer in manifest["layers"]:
            self.assertEqual((layer["n"], layer["k"]), LAYERS[layer["name"]])
            self.assertEqual((self.out / layer["file"]).stat().st_size, layer["bytes"])
            self.expect(run("verify", self.out / layer["file"], "--device", "cpu"), 0)
        tensors = {}
        for shard in (self.out / manifest["model"]).glob("*.safetensors"):
            tensors.update(read_header(shard)[1])
        self.assertIn("encoder.layer.0.query.bias", tensors)
        self.assertIn("encoder.layer.1.dense.weight", tensors)
        self.assertEqual(self.convert("nybble", "--exclude", "layer.1", "--resume")["kept_layers"], 2)
        self.expect(run("convert", self.model, "--to", "nybble", "--out", self.out), 2, "is not empty")

    def test_packed_models_are_inspected(self):
        self.convert("nybble", "--exclude", "layer.1")
        found = self.expect(run("inspect", self.out, "--json"), 0).json
        self.assertEqual((found["ok"], found["format"]), (True, "nybble-packed-model"))
        self.assertEqual({layer["name"]: (layer["n"], layer["k"]) for layer in found["layers"]},
                         {name: LAYERS[name] for name in ("encoder.layer.0.dense", "encoder.layer.0.query")})
        text = self.expect(run("inspect", self.out, "--list"), 0).out
        for word in ("a model of 2 packed weights", "layers/00000-", "all 2 packed layers are sound, and the rest"):
            self.assertIn(word, text)

        manifest = self.out / "manifest.json"
        whole = manifest.read_text()
        first, second = (self.out / layer["file"] for layer in json.loads(whole)["layers"])
        packed = first.read_bytes()
        first.write_bytes(packed[:-1] + bytes([packed[-1] ^ 1]))
        done = self.expect(run("inspect", self.out, "--json"), 1, first.name)
        self.assertFalse(done.json["ok"])
        first.write_bytes(second.read_bytes())
        self.expect(run("inspect", self.out), 1, "manifest.json says")
        first.unlink()
        self.expect(run("inspect", self.out), 3, first.name)
        first.write_bytes(packed)
        for broken, word in ((whole.replace('"layers/00000', '"layers/../00000'), "layer 0 has no name, file below layers/"),
                             (whole.replace('"n":', '"rows":', 1), "layer 0 has no name"),
                             (whole.replace('"model": "model"', '"model": "/"'), "is no manifest of a packed model"),
                             (whole[:-4], "manifest.json")):
            self.assertNotEqual(broken, whole)
            manifest.write_text(broken)
            self.expect(run("inspect", self.out), 1, word)
        manifest.write_text(whole)
        rest = next((self.out / "model").glob("*.safetensors"))
        rest.write_bytes(rest.read_bytes()[:-1])
        self.expect(run("inspect", self.out), 1, rest.name)

    def test_a_refusal_leaves_the_packed_model_as_it_was(self):
        self.convert("nybble", "--exclude", "layer.1")
        (self.out / "model" / "foreign.safetensors").write_bytes(b"")
        before = {path: path.read_bytes() for path in self.out.rglob("*") if path.is_file()}
        self.assertIn(self.out / "manifest.json", before)
        self.expect(run("convert", self.model, "--to", "nybble", "--out", self.out, "--force"), 2, "foreign.safetensors")
        self.assertEqual({path: path.read_bytes() for path in self.out.rglob("*") if path.is_file()}, before)

    def test_paths_that_cannot_be_folders(self):
        loop, file = self.folder / "loop", self.folder / "file"
        loop.symlink_to(loop)
        file.write_text("")
        for out in (loop, loop / "x", file, file / "x"):
            for to in ("nybble", "dense"):
                done = self.expect(run("convert", self.model, "--to", to, "--out", out), 3, str(out))
                self.assertRegex(done.err, "mkdir failed|open directory failed")

    def test_wrong_requests(self):
        self.expect(run("convert", self.model, "--to", "nothing", "--out", self.out), 2, "--to")
        self.expect(run("convert", self.model, "--to", "dense", "--out", self.model), 2, "input folder")
        self.expect(run("convert", self.model, "--to", "dense", "--out", self.out, "--scale-dtype", "bf16"), 2, "dense")
        self.convert("dense")
        self.expect(run("convert", self.model, "--to", "dense", "--out", self.out), 2, "is not empty")


if __name__ == "__main__":
    unittest.main()
