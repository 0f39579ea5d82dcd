#!/usr/bin/env python3
"""Makes the compressed-tensors fixtures in this folder with the format's own library, and what that library reads in them.

    pip install compressed-tensors==0.20.0 safetensors==0.8.0 torch transformers
    tests/data/make_compressed_tensors.py

One model folder for each scheme: model.safetensors and config.json as the library saves them, expected.safetensors with the
codes, zero points and weights that the library unpacks from them.
"""
import json
import pathlib

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                             QuantizationStatus)
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
# name: (arguments of the weights, shapes of the layers, type of the scales)
FIXTURES = {
    "ct_group_symmetric": (dict(strategy="group", group_size=32, symmetric=True), [(24, 64), (8, 96)], torch.bfloat16),
    "ct_group_asymmetric": (dict(strategy="group", group_size=16, symmetric=False), [(20, 48), (9, 32)], torch.float16),
    "ct_channel_symmetric": (dict(strategy="channel", symmetric=True), [(16, 40), (7, 13)], torch.bfloat16),
    "ct_channel_asymmetric": (dict(strategy="channel", symmetric=False), [(16, 40), (11, 21)], torch.float32),
}


def make(name, arguments, shapes, dtype):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    args = QuantizationArgs(num_bits=4, type="int", **arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    generator = torch.Generator().manual_seed(len(name))
    saved, expected = {}, {}
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        group = args.group_size or k
        weight = torch.randn(n, k, generator=generator).to(dtype)
        grouped = weight.float().reshape(n, k // group, group)
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        if args.symmetric:
            scale, zero = torch.maximum(-low, high) / 7.5, torch.zeros(n, k // group)
        else:
            scale = (high - low) / 15
            zero = (-8 - low / scale).round().clamp(-8, 7)
        state = PackedQuantizationCompressor.compress(
            {"weight": weight, "weight_scale": scale.to(dtype), "weight_zero_point": zero.to(torch.int8)}, scheme)
        saved |= {f"{layer}.{key}": value for key, value in state.items()}
        expected[f"{layer}.codes"] = unpack_from_int32(state["weight_packed"], 4, torch.Size((n, k))).contiguous()
        if not args.symmetric:
            expected[f"{layer}.zeros"] = unpack_from_int32(state["weight_zero_point"], 4,
                                                           torch.Size((n, k // group)), packed_dim=0).contiguous()
        expected[f"{layer}.weight"] = PackedQuantizationCompressor.decompress(state, scheme)["weight"].contiguous()
    saved["norm.weight"] = torch.ones(8, dtype=dtype)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized", ignore=["lm_head"],
                                quantization_status=QuantizationStatus.COMPRESSED)
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, folder / "expected.safetensors")
    settings = {"architectures": ["LlamaForCausalLM"], "quantization_config": config.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    assert load_file(folder / "model.safetensors").keys() == saved.keys()


for fixture, (arguments, shapes, dtype) in FIXTURES.items():
    make(fixture, arguments, shapes, dtype)
