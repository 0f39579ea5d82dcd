"""shard: the ranks' parts of a small model built like Llama, put together again."""
import json
import unittest

from harness import Case, read_header, run, weights, write_safetensors

LAYERS = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.0.self_attn.o_proj": (64, 64),
          "model.layers.0.mlp.up_proj": (96, 64), "model.layers.0.mlp.down_proj": (64, 96), "model.layers.0.router": (8, 64)}


class Shard(Case):
    def setUp(self):
        super().setUp()
        dense = self.folder / "dense"
        dense.mkdir()
        tensors = {name + ".weight": weights(shape, "F16", seed) for seed, (name, shape) in enumerate(LAYERS.items())}
        tensors["model.layers.0.self_attn.q_proj.bias"] = weights((64,), "F16", 50)
        tensors["model.layers.0.mlp.down_proj.bias"] = weights((64,), "F16", 51)
        tensors["lm_head.weight"] = weights((16, 64), "F16", 52)
        write_safetensors(dense / "model.safetensors", tensors)
        (dense / "config.json").write_text(json.dumps({"num_attention_heads": 4, "num_key_value_heads": 2}))
        self.model, self.out = self.folder / "4bit", self.folder / "out"
        self.expect(run("quantize", dense, "--out", self.model, "--group", "16", "--asym"), 0)

    def shard(self, *options):
        return self.expect(run("shard", self.model, "--tp", "2", "--out", self.out, "--json", *options), 0).json

    def tensors(self, folder):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        begin, header = read_header(path)
        return {name: (entry["shape"], data[begin + entry["data_offsets"][0]:begin + entry["data_offsets"][1]])
                for name, entry in header.items()}

    def test_parts_make_the_whole(self):
        done = self.shard("--to", "dense")
        self.assertEqual(len(done["column"]), 2)
        self.assertEqual(len(done["row"]), 2)
        self.assertEqual(done["replicated"], ["lm_head", "model.layers.0.router"])
        whole = self.folder / "whole"
        self.expect(run("convert", self.model, "--to", "dense", "--out", whole), 0)
        whole, first, second = (self.tensors(folder) for folder in (whole, self.out / "rank-0-of-2", self.out / "rank-1-of-2"))
        self.assertEqual(set(first), set(whole))
        for name, (shape, data) in whole.items():
            a, b = first[name], second[name]
            if "q_proj" in name or "up_proj" in name:
                self.assertEqual(a[1] + b[1], data, name)
                self.assertEqual([a[0][0] * 2, *a[0][1:]], shape)
            elif name.endswith("down_proj.bias"):
                self.assertEqual((a[1], b[1]), (data, bytes(len(data))))
            elif "o_proj" in name or "down_proj" in name:
                rows = [half[1][r * shape[1] * 2:(r + 1) * shape[1] * 2] for r in range(shape[0]) for half in (a, b)]
                self.assertEqual(b"".join(rows), data, name)
            else:
                self.assertEqual((a, b), ((shape, data), (shape, data)), name)

    def test_four_bit_parts_are_the_parts_of_the_whole(self):
        self.shard("--to", "compressed-tensors")
        for rank in (0, 1):
            part = self.out / f"rank-{rank}-of-2"
            self.expect(run("verify", part, "--device", "cpu"), 0)
            layers = {layer["name"]: (layer["n"], layer["k"]) for layer in run("inspect", part, "--json").json["layers"]}
            self.assertEqual(layers["model.layers.0.mlp.up_proj"], (48, 64))
            self.assertEqual(layers["model.layers.0.mlp.down_proj"], (64, 48))
        again = self.shard("--to", "compressed-tensors", "--resume")
        self.assertEqual([rank["kept_shards"] for rank in again["ranks"]], [1, 1])

    def test_packed_parts_are_the_packed_forms_of_the_parts(self):
        plain = self.folder / "plain"
        done = self.shard("--to", "nybble", "--exclude", "router")
        self.assertEqual((len(done["column"]), len(done["row"])), (2, 2))
        self.expect(run("shard", self.model, "--tp", "2", "--to", "compressed-tensors", "--out", plain), 0)
        for rank in (0, 1):
            part, again = self.out / f"rank-{rank}-of-2", self.folder / f"again-{rank}"
            self.expect(run("convert", plain / part.name, "--to", "nybble", "--exclude", "router", "--out", again), 0)
            layers = json.loads((part / "manifest.json").read_text())["layers"]
            self.assertEqual({layer["name"]: (layer["n"], layer["k"]) for layer in layers},
                             {"model.layers.0.self_attn.q_proj": (32, 64), "model.layers.0.self_attn.o_proj": (64, 32),
                              "model.layers.0.mlp.up_proj": (48, 64), "model.layers.0.mlp.down_proj": (64, 48)})
            for layer in layers:
                self.assertEqual((part / layer["file"]).read_bytes(), (again / layer["file"]).read_bytes(), layer["name"])
                self.expect(run("verify", part / layer["file"], "--device", "cpu"), 0)
            self.assertEqual(self.tensors(part / "model"), self.tensors(again / "model"))
        again = self.shard("--to", "nybble", "--exclude", "router", "--resume")
        self.assertEqual([rank["kept_layers"] for rank in again["ranks"]], [4, 4])

    def test_wrong_requests(self):
        def refuse(*options):
            self.expect(run("shard", self.model, "--out", self.out, "--to", "gptq", "--scale-dtype", "fp16", *options), 2)
            self.assertFalse(self.out.exists())
            return run("shard", self.model, "--out", self.out, "--to", "gptq", "--scale-dtype", "fp16", *options).err
        self.assertIn("num_key_value_heads", refuse("--tp", "4", "--replicate", "mlp"))
        self.assertIn("96 input features", refuse("--tp", "4"))
        self.assertIn("2 to", refuse("--tp", "1"))
        self.assertIn("both kinds", refuse("--tp", "2", "--replicate", "o_proj|down_proj"))
        self.expect(run("shard", self.model, "--tp", "2", "--out", self.out, "--to", "nybble", "--exclude", "."), 2, "no 4-bit layer")
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main()
