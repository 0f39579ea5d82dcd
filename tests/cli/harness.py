"""Runs the built command and makes tiny models for it."""
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import unittest

NYBBLE = os.environ["NYBBLE"]
SOURCE_DIR = pathlib.Path(os.environ["NYBBLE_SOURCE_DIR"])


class Done:
    """A finished run of the command."""

    def __init__(self, finished):
        self.code, self.out, self.err = finished.returncode, finished.stdout, finished.stderr

    @property
    def json(self):
        return json.loads(self.out)


def run(*arguments, **environment):
    """Runs `nybble ARGUMENTS` in pipes, without a GPU unless CUDA_VISIBLE_DEVICES is given."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return Done(subprocess.run([NYBBLE, *map(str, arguments)], capture_output=True, text=True, env=env,
                               stdin=subprocess.DEVNULL))


def float_bytes(dtype, values):
    if dtype == "F32":
        return struct.pack(f"<{len(values)}f", *values)
    if dtype == "F16":
        return struct.pack(f"<{len(values)}e", *values)
    # bf16: the upper half of an f32, which truncates; good enough to make a model.
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)}."""
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def read_header(path):
    """(where the data begins, {name: entry})."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return 8 + size, {name: entry for name, entry in json.loads(data[8:8 + size]).items() if name != "__metadata__"}


def weights(shape, dtype="F32", seed=0):
    source = random.Random(seed)
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return dtype, list(shape), float_bytes(dtype, [source.gauss(0, 0.05) for _ in range(count)])


LAYERS = {"encoder.layer.0.query": (96, 128), "encoder.layer.0.dense": (64, 256), "encoder.layer.1.dense": (80, 128)}


def write_model(folder, dtype="F32", shards=1, seed=0):
    """A model of three linear layers, one of them with a bias, an embedding and a norm."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"embeddings.word_embeddings.weight": weights((32, 128), dtype, seed + 1),
               "encoder.layer.0.norm.weight": weights((128,), dtype, seed + 2),
               "encoder.layer.0.query.bias": weights((96,), dtype, seed + 3)}
    for i, (name, shape) in enumerate(LAYERS.items(), 10):
        tensors[name + ".weight"] = weights(shape, dtype, seed + i)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 128}))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        weight_map.update({name: file for name in part})
    total = sum(len(data) for _, _, data in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_statistics(path, kinds, shapes=LAYERS):
    """kinds: {layer: "hessian", "mean_square", "dead" or "indefinite"}, of inputs of which every fifth is nine times as large;
    shapes: {layer: (n, k)}."""
    tensors, metadata = {}, {"nybble.statistics": "1"}
    for layer, kind in kinds.items():
        k = shapes[layer][1]
        squares = [0.0 if kind == "dead" and i == 3 else 81.0 if i % 5 == 0 else 1.0 for i in range(k)]
        metadata["tokens." + layer] = "100"
        if kind == "mean_square":
            tensors[layer + ".mean_square"] = ("F32", [k], float_bytes("F32", squares))
        elif kind == "indefinite":  # its least eigenvalue is 1 - 0.01 (k - 1)
            rows = [1.0 if i == j else -0.01 for i in range(k) for j in range(k)]
            tensors[layer + ".hessian"] = ("F32", [k, k], float_bytes("F32", rows))
        else:
            rows = [squares[i] if i == j else 0.4 * (squares[i] * squares[j]) ** 0.5 for i in range(k) for j in range(k)]
            tensors[layer + ".hessian"] = ("F32", [k, k], float_bytes("F32", rows))
    write_safetensors(path, tensors, metadata)
    return path


class Case(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def expect(self, done, code, *words):
        """The run ended with this code, and stderr holds these words; nothing at all when it went well."""
        self.assertEqual(done.code, code, done.out + done.err)
        if code == 0:
            self.assertEqual(done.err, "")
        for word in words:
            self.assertIn(word, done.err)
        return done
