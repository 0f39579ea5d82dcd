#!/usr/bin/env python3
"""Makes the HQQ fixtures in this folder with the format's own library, and what that library reads in them.

    pip install hqq==0.2.8.post1 safetensors==0.8.0 torch
    tests/data/make_hqq.py
"""
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

from fixture_folder import save_fixture

# name: (group, type of scales and zeros, bytes viewed as floats, shapes of the layers)
FIXTURES = {
    "hqq_fp16": (64, torch.float16, False, [(6, 128), (4, 64)]),
    "hqq_bf16": (32, torch.bfloat16, False, [(5, 64)]),
    "hqq_viewed_as_floats": (64, torch.bfloat16, True, [(4, 192)]),
    "hqq_fp32": (16, torch.float32, False, [(3, 32)]),
    "hqq_fp32_positive": (16, torch.float32, False, [(8, 64)]),
}
# Weights of one sign have zero points near 0, which code - zero rounds in fp32.
POSITIVE = {"hqq_fp32_positive"}

for name, (group, dtype, as_float, shapes) in FIXTURES.items():
    torch.manual_seed(len(name))
    saved, expected = {"norm.weight": torch.ones(8)}, {}
    settings = BaseQuantizeConfig(nbits=4, group_size=group, axis=1, view_as_float=as_float)
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        dense = torch.nn.Linear(k, n, bias=index == 0)
        if name in POSITIVE:
            dense.weight.data.abs_()
        linear = HQQLinear(dense, settings, compute_dtype=dtype, device="cpu")
        state = linear.state_dict()
        saved |= {f"{layer}.{key}": value.detach() for key, value in state.items() if value is not None}
        # With fp32 as its type for computing the library rounds each step to fp32.
        meta = {key: value.float() if key in ("scale", "zero") else value for key, value in linear.meta.items()}
        meta["compute_dtype"] = torch.float32
        expected[f"{layer}.weight"] = Quantizer.dequantize(linear.W_q.data, meta)
        packed = linear.W_q.data.view(torch.uint8)
        expected[f"{layer}.codes"] = Quantizer.unpack["4bit_u8"](packed).reshape(n, k)
    save_fixture(name, saved, expected, {"quantization_config": {
        "quant_method": "hqq", "quant_config": {"weight_quant_params": settings["weight_quant_params"]},
        "skip_modules": ["lm_head"]}})
