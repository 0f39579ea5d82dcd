#!/usr/bin/env python3
"""Makes the ModelOpt fixture in this folder with the format's own library, and what that library reads in it.

    pip install nvidia-modelopt==0.47.0 safetensors==0.8.0 torch
    tests/data/make_modelopt.py
"""
import json

import torch
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

from fixture_folder import HERE, save_fixture, unpack_low_first

# name: whether the settings stand in config.json; else in hf_quant_config.json
for name, in_config in {"modelopt_nvfp4": True, "modelopt_nvfp4_own_file": False}.items():
    saved, expected = {"norm.weight": torch.ones(8)}, {}
    for index, (n, k) in enumerate([(6, 64), (5, 48)]):
        layer = f"layers.{index}.proj"
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(index))
        tensor, scale, scale_2 = NVFP4QTensor.quantize(weight.clone(), 16)
        saved |= {f"{layer}.weight": tensor._quantized_data, f"{layer}.weight_scale": scale,
                  f"{layer}.weight_scale_2": scale_2}
        if in_config:
            saved[f"{layer}.input_scale"] = torch.tensor(0.25)
        expected[f"{layer}.codes"] = unpack_low_first(tensor._quantized_data)
        expected[f"{layer}.weight"] = tensor.dequantize(torch.float32, scale=scale, double_scale=scale_2,
                                                        block_sizes={-1: 16})
    settings = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"], "kv_cache_quant_algo": None}
    save_fixture(name, saved, expected, {"quantization_config": settings | {"quant_method": "modelopt"}} if in_config else {})
    if not in_config:
        own = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": settings}
        (HERE / name / "hf_quant_config.json").write_text(json.dumps(own, indent=2) + "\n")
