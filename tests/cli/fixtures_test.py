"""convert --to dense of every fixture in tests/data: bit for bit what the format's own library reads.

Each folder holds a model that the format's own library packed and, in expected.safetensors, the weights that it reads
there (tests/data/fixture_folder.py): fp32, or the 16-bit type that it rounds them to.
"""
import array
import struct
import unittest

from harness import SOURCE_DIR, Case, float_bytes, read_header, run

DATA = SOURCE_DIR / "tests" / "data"
NEGATIVE_ZERO = 0x80000000
NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}

# Fixtures that were lost would not be missed otherwise.
AT_LEAST = 60

# The file holds a layer in five bits beside one in four: refused by name.
REFUSED = {"gguf_refused": "Q5_0"}

# E2M1 has a negative zero. AutoRound's packer drops its sign, ModelOpt's reader, too: there alone it is not compared.
NO_SIGNED_ZEROS = {"autoround_nvfp4", "modelopt_nvfp4", "modelopt_nvfp4_own_file"}


def tensors(path):
    """{name: (dtype, shape, bytes)} of a safetensors file."""
    begin, entries = read_header(path)
    data = memoryview(path.read_bytes())[begin:]
    return {name: (entry["dtype"], entry["shape"], bytes(data[slice(*entry["data_offsets"])]))
            for name, entry in entries.items()}


def fp32_words(dtype, data):
    """The numbers as bits of fp32; widening is exact."""
    if dtype == "F32":
        return array.array("I", data)
    halves = array.array("H", data)
    if dtype == "BF16":
        return array.array("I", [half << 16 for half in halves])
    return array.array("I", float_bytes("F32", struct.unpack(f"<{len(halves)}e", data)))


def rounded(dtype, words):
    """fp32 numbers, given as bits, as fp32 bits of their nearest number of another type, ties to even."""
    if dtype == "F32":
        return words
    if dtype == "BF16":
        return array.array("I", [(word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000 for word in words])
    return fp32_words("F16", struct.pack(f"<{len(words)}e", *struct.unpack(f"<{len(words)}f", words.tobytes())))


def fixtures():
    """(folder, {name: tensor}) of every fixture whose library's weights are known."""
    for path in sorted(DATA.glob("*/expected.safetensors")):
        expected = {name: tensor for name, tensor in tensors(path).items() if name.endswith(".weight")}
        if expected:
            yield path.parent, expected


class Fixtures(Case):
    def convert(self, fixture, dtype):
        """(the run's report, the tensors written)."""
        model = fixture / "model.gguf" if (fixture / "model.gguf").exists() else fixture
        out = self.folder / f"{fixture.name}-{dtype}"
        done = self.expect(run("convert", model, "--to", "dense", "--dtype", dtype, "--out", out, "--json"), 0).json
        written = {}
        for shard in out.glob("*.safetensors"):
            written.update(tensors(shard))
        return done, written

    def compare(self, fixture, written, expected):
        for name, (dtype, shape, data) in expected.items():
            got_dtype, got_shape, got = written[name]
            self.assertEqual(got_shape, shape, name)
            got, want = rounded(dtype, fp32_words(got_dtype, got)), fp32_words(dtype, data)
            if fixture.name in NO_SIGNED_ZEROS:
                got, want = ([0 if word == NEGATIVE_ZERO else word for word in words] for words in (got, want))
            self.assertEqual(len(got), len(want), name)
            different = [i for i in range(len(want)) if got[i] != want[i]]
            self.assertEqual(len(different), 0, f"{name}: of {len(want)} elements, {different[:3]} the first")

    def test_every_fixture(self):
        seen = 0
        for fixture, expected in fixtures():
            if fixture.name in REFUSED:
                continue
            with self.subTest(fixture.name):
                done, written = self.convert(fixture, "fp32")
                for layer in done["converted"]:
                    self.assertEqual(written[layer + ".weight"][0], "F32", layer)
                    self.assertIn(layer + ".weight", expected)
                self.compare(fixture, written, expected)
                seen += len(done["converted"]) > 0
        print(f"{seen} fixtures with 4-bit layers")
        self.assertGreaterEqual(seen, AT_LEAST)

    def test_in_the_type_that_the_library_rounds_to(self):
        seen = 0
        for fixture, expected in fixtures():
            types = {dtype for dtype, _, _ in expected.values()}
            if types == {"F32"} or fixture.name in REFUSED:
                continue
            with self.subTest(fixture.name):
                self.assertEqual(len(types), 1)
                done, written = self.convert(fixture, NAMES[types.pop()])
                for layer in done["converted"]:
                    self.assertEqual(written[layer + ".weight"][0], expected[layer + ".weight"][0], layer)
                self.compare(fixture, written, expected)
                seen += 1
        self.assertGreater(seen, 0)

    def test_what_is_refused(self):
        for name, word in REFUSED.items():
            out = self.folder / "out"
            self.expect(run("convert", DATA / name / "model.gguf", "--to", "dense", "--out", out), 2, word)
            self.assertFalse(out.exists())


if __name__ == "__main__":
    unittest.main()
