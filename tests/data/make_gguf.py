#!/usr/bin/env python3
"""Makes the GGUF fixtures in this folder with the format's own library, and what that library reads in them.

    pip install gguf==0.19.0 safetensors==0.8.0 numpy
    tests/data/make_gguf.py

One folder for each: model.gguf, and expected.safetensors with every tensor as gguf.quants.dequantize() gives it (F32),
4-bit codes (U8), scales and offsets (F16 bits as U16) of the 4-bit ones.
"""
import pathlib

import gguf
import numpy
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
TYPE = gguf.GGMLQuantizationType
LINEAR = ["blk.0.attn_q", "blk.0.ffn_down"]
SHAPES = [(24, 64), (8, 96)]
# name: (type of each linear layer, alignment)
FIXTURES = {
    "gguf_q4_0": ([TYPE.Q4_0, TYPE.Q4_0], 32),
    "gguf_q4_1": ([TYPE.Q4_1, TYPE.Q4_1], 64),
    "gguf_dense": ([TYPE.F16, TYPE.BF16], 32),
    "gguf_q8_0": ([TYPE.Q8_0, TYPE.F32], 32),
    "gguf_mixed": ([TYPE.Q4_1, TYPE.Q8_0], 128),
    "gguf_refused": ([TYPE.Q5_0, TYPE.Q4_0], 32),
}


def blocks_of(raw, kind):
    blocks = raw.reshape(-1, 18 if kind == TYPE.Q4_0 else 20)
    head, codes = (blocks[:, :2], blocks[:, 2:]) if kind == TYPE.Q4_0 else (blocks[:, :4], blocks[:, 4:])
    return head.copy().view(numpy.uint16), numpy.concatenate([codes & 15, codes >> 4], axis=1)


def make(name, kinds, alignment):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    random = numpy.random.default_rng(len(name))
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.data_alignment = alignment
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("fixture " + name)
    writer.add_block_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("test.yes", True)
    writer.add_uint8("test.u8", 255)
    writer.add_int8("test.i8", -128)
    writer.add_uint16("test.u16", 65535)
    writer.add_int16("test.i16", -32768)
    writer.add_int32("test.i32", -(1 << 31))
    writer.add_uint64("test.u64", (1 << 64) - 1)
    writer.add_int64("test.i64", -(1 << 63))
    writer.add_float64("test.f64", 1 / 3)
    writer.add_array("test.texts", ["", "a", "\u0120t", "caf\u00e9"])
    writer.add_array("test.integers", [3, -1, 7])
    writer.add_array("test.floats", [0.5, -2.0])
    expected = {}
    for layer, kind, (n, k) in zip(LINEAR, kinds, SHAPES):
        values = random.standard_normal((n, k)).astype(numpy.float32)
        values[1, :32] = 0
        raw = quantize(values, kind)
        writer.add_tensor(f"{layer}.weight", raw, raw_dtype=kind)
        expected[f"{layer}.weight"] = dequantize(raw, kind).astype(numpy.float32).reshape(n, k)
        if kind in (TYPE.Q4_0, TYPE.Q4_1):
            head, codes = blocks_of(raw, kind)
            expected[f"{layer}.codes"] = codes.reshape(n, k)
            expected[f"{layer}.scales"] = head[:, 0].reshape(n, k // 32)
            if kind == TYPE.Q4_1:
                expected[f"{layer}.offsets"] = head[:, 1].reshape(n, k // 32)
    norm = random.standard_normal(64).astype(numpy.float32)
    bias = random.standard_normal(24).astype(numpy.float32)
    writer.add_tensor("blk.0.attn_norm.weight", norm)
    writer.add_tensor("blk.0.attn_q.bias", bias)
    expected |= {"blk.0.attn_norm.weight": norm, "blk.0.attn_q.bias": bias}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({key: numpy.ascontiguousarray(value) for key, value in expected.items()}, folder / "expected.safetensors")


for fixture, (kinds, alignment) in FIXTURES.items():
    make(fixture, kinds, alignment)
