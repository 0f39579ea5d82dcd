"""bench and demo on the CPU: the schema of results, resumption, one row a layer."""
import json
import unittest

from harness import LAYERS, Case, run, write_model

KEYS = ["problem", "impl", "m", "n", "k", "act", "format", "group_size", "zero_point", "kernel", "pdl", "duty", "us",
        "floor_us", "dense_us", "spread", "sm_mhz"]
QUICK = ("--device", "cpu", "--duty", "idle10", "--replays", "2")


class Bench(Case):
    def test_schema_on_stdout(self):
        done = self.expect(run("bench", "--shape", "256x256,192x320", "--m", "1,16", "--json", *QUICK), 0).json
        self.assertEqual(list(done), ["schema", "gpu", "cpu", "driver", "cuda", "commit", "date", "command", "floor", "duty_cycles",
                                      "rows"])
        self.assertEqual(done["schema"], 1)
        self.assertIsNone(done["gpu"])
        self.assertEqual(done["duty_cycles"]["idle10"], {"idle_ms": 10, "replay_ms": 4.0, "replays": 15})
        self.assertTrue(done["command"].startswith("nybble bench --shape 256x256,192x320"), done["command"])
        self.assertRegex(done["date"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        ours = [row for row in done["rows"] if row["impl"] == "nybble"]
        self.assertEqual([(row["n"], row["k"], row["m"]) for row in ours],
                         [(256, 256, 1), (256, 256, 16), (192, 320, 1), (192, 320, 16)])
        for row in done["rows"]:
            self.assertEqual(list(row), KEYS)
            self.assertGreater(row["us"], 0)
            self.assertEqual(row["duty"], "idle10")
        for row in ours:
            self.assertEqual((row["act"], row["format"], row["group_size"], row["zero_point"]), ("bf16", "int4", 128, "none"))
            self.assertEqual(row["problem"], f"m{row['m']} n{row['n']} k{row['k']} bf16 g128")
            dense = [other for other in done["rows"] if other["problem"] == row["problem"] and other["impl"] == "eigen"]
            self.assertEqual([other["us"] for other in dense], [row["dense_us"]])
            self.assertIsNone(dense[0]["format"])

    def test_formats_and_a_kernel_by_name(self):
        done = self.expect(run("bench", "--shape", "128x256", "--m", "2", "--act", "fp16", "--group", "64", "--zero-point", "int",
                               "--no-dense", "--kernel", "cpu_reference", "--json", *QUICK), 0).json
        (row,) = done["rows"]
        self.assertEqual((row["act"], row["group_size"], row["zero_point"]), ("fp16", 64, "int"))
        self.assertEqual(row["kernel"], "cpu_reference")
        self.assertIsNone(row["dense_us"])

    def test_outputs_in_fp32(self):
        done = self.expect(run("bench", "--shape", "128x256", "--m", "2", "--fp32-out", "--no-dense", "--json", *QUICK), 0).json
        (row,) = done["rows"]
        self.assertEqual((row["problem"], row["act"]), ("m2 n128 k256 bf16 out=fp32 g128", "bf16"))

    def test_an_unknown_kernel_is_exit_2(self):
        self.expect(run("bench", "--shape", "128x128", "--m", "1", "--kernel", "bananas", *QUICK), 2, "bananas", "nybble kernels")

    def test_resume_measures_only_what_is_missing(self):
        file = self.folder / "rows.json"
        self.expect(run("bench", "--shape", "128x128", "--m", "1", "--resume", file, *QUICK), 0)
        first = json.loads(file.read_text())
        self.expect(run("bench", "--shape", "128x128", "--m", "1,2", "--resume", file, *QUICK), 0)
        second = json.loads(file.read_text())
        self.assertEqual(second["rows"][:len(first["rows"])], first["rows"])
        self.assertEqual(sorted({row["m"] for row in second["rows"]}), [1, 2])
        second["commit"] = "another"
        file.write_text(json.dumps(second))
        self.expect(run("bench", "--shape", "128x128", "--m", "4", "--resume", file, *QUICK), 2, "commit", "another")

    def test_a_time_limit_leaves_the_rest_to_the_next_run(self):
        file = self.folder / "rows.json"
        words = ("bench", "--shape", "128x128,128x256", "--m", "1", "--resume", file, *QUICK)
        self.expect(run(*words, "--time-limit", "0.000001"), 0)
        self.assertEqual(json.loads(file.read_text())["rows"], [])
        self.expect(run(*words, "--time-limit", "1000"), 0)
        self.assertEqual({row["k"] for row in json.loads(file.read_text())["rows"]}, {128, 256})

    def test_a_chain_needs_a_gpu_and_layers_that_follow_each_other(self):
        self.expect(run("bench", "--chain", "--shape", "128x64,64x128", "--device", "cpu"), 2, "GPU")
        self.expect(run("bench", "--chain", "--shape", "128x64,64x256", "--device", "cpu"), 2, "reads 256 features")
        self.expect(run("bench", "--layers", "4", "--device", "cpu"), 2, "--chain")
        self.expect(run("bench", "--chain", "--no-pdl", "--device", "cpu"), 2, "--no-pdl")

    def test_wrong_words(self):
        self.expect(run("bench", "--shape", "128", *QUICK), 2, "28672x4096")
        self.expect(run("bench", "--shape", "128x128", "--m", "0", *QUICK), 2, "from 1")
        self.expect(run("bench", "--model", "gpt-17", *QUICK), 2, "llama3-8b")
        self.expect(run("bench", "--set", self.folder / "none.txt", *QUICK), 3, "none.txt")
        broken = self.folder / "broken.json"
        broken.write_text("{")
        self.expect(run("bench", "--shape", "128x128", "--resume", broken, *QUICK), 3, "broken.json")


class Demo(Case):
    def test_one_row_a_layer(self):
        model = write_model(self.folder / "model")
        out = self.folder / "kept"
        done = self.expect(run("demo", model, "--out", out, "--device", "cpu", "--json"), 0).json
        self.assertTrue(done["ok"])
        self.assertEqual({layer["name"]: (layer["n"], layer["k"]) for layer in done["layers"]}, LAYERS)
        for layer in done["layers"]:
            self.assertLess(layer["bytes_after"], layer["bytes_before"])
            self.assertLess(layer["error"], 0.2)
            self.assertEqual([time["m"] for time in layer["times"]], [1, 16])
            for time in layer["times"]:
                self.assertGreater(time["us"], 0)
        self.assertEqual(self.expect(run("inspect", out, "--json"), 0).json["format"], "compressed-tensors")

    def test_text(self):
        done = self.expect(run("demo", write_model(self.folder / "model"), "--device", "cpu", "--m", "1"), 0)
        for word in (*LAYERS, "96 x 128", "error", "m=1", "3 layers: every result agrees"):
            self.assertIn(word, done.out)


if __name__ == "__main__":
    unittest.main()
