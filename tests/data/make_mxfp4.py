#!/usr/bin/env python3
"""Makes the gpt-oss fixture in this folder, and what transformers reads in it.

    pip install transformers==5.24.0 safetensors==0.8.0 torch termcolor
    tests/data/make_mxfp4.py

Codes and scales are random: what packs them needs a GPU, and any bytes are a valid model but for a scale of 255.
"""
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from fixture_folder import save_fixture, unpack_low_first

generator = torch.Generator().manual_seed(7)
saved, expected = {"norm.weight": torch.ones(8)}, {}
for projection, (n, k) in {"gate_up_proj": (8, 64), "down_proj": (6, 32)}.items():
    stored = f"model.layers.0.mlp.experts.{projection}"
    blocks = torch.randint(256, (2, n, k // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (2, n, k // 32), generator=generator, dtype=torch.uint8)
    saved |= {f"{stored}_blocks": blocks, f"{stored}_scales": scales,
              f"{stored}_bias": torch.randn(2, n, generator=generator).bfloat16()}
    dense = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    for expert in range(2):
        expected[f"{stored}.{expert}.codes"] = unpack_low_first(blocks[expert]).reshape(n, k)
        expected[f"{stored}.{expert}.weight"] = dense[expert]
save_fixture("gpt_oss_mxfp4", saved, expected, {"quantization_config": {
    "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}})
