#!/usr/bin/env python3
"""Makes the bitsandbytes fixtures in this folder with the format's own library, and what that library reads in them.

    pip install bitsandbytes==0.50.2 safetensors==0.8.0 torch
    tests/data/make_bitsandbytes.py
"""
import torch
from bitsandbytes import functional

from fixture_folder import save_fixture

# name: (type of the codes, block, scales quantized in turn, type that the bytes are stored under, shapes of the layers)
FIXTURES = {
    "bnb_nf4": ("nf4", 64, False, torch.uint8, [(6, 128), (3, 64)]),
    "bnb_nf4_nested": ("nf4", 64, True, torch.uint8, [(12, 128), (5, 64)]),
    "bnb_nf4_stored_as_bf16": ("nf4", 64, True, torch.bfloat16, [(4, 192)]),
    "bnb_fp4": ("fp4", 128, False, torch.uint8, [(4, 256)]),
    "bnb_fp4_nested": ("fp4", 64, True, torch.uint8, [(4, 128)]),
}

for name, (kind, block, nested, storage, shapes) in FIXTURES.items():
    generator = torch.Generator().manual_seed(len(name))
    saved, expected = {"norm.weight": torch.ones(8)}, {}
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        weight = torch.randn(n, k, generator=generator)
        packed, state = functional.quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type=kind,
                                                 quant_storage=storage)
        saved[f"{layer}.weight"] = packed
        saved |= {f"{layer}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        flat = packed.view(torch.uint8).flatten()
        expected[f"{layer}.codes"] = torch.stack((flat >> 4, flat & 15), dim=-1).reshape(n, k)
        expected[f"{layer}.weight"] = functional.dequantize_4bit(packed, state)
    save_fixture(name, saved, expected, {"quantization_config": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": str(storage).removeprefix("torch."),
        "bnb_4bit_compute_dtype": "float32"}})
