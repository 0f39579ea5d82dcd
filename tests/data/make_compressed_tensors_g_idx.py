#!/usr/bin/env python3
"""Makes the compressed-tensors fixtures with actorder "group" by the last version of the library that writes weight_g_idx, and
what that version reads in them.

    pip install compressed-tensors==0.18.0 safetensors==0.8.0 torch transformers
    tests/data/make_compressed_tensors_g_idx.py
"""
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                             QuantizationStatus)

from fixture_folder import save_fixture

N, K, GROUP = 8, 96, 32
# name: what stands in weight_g_idx, from a permutation of the input features
FIXTURES = {"ct_actorder_group": lambda order: torch.argsort(order) // GROUP,
            "ct_actorder_group_unfilled": lambda order: torch.full((K,), -1)}

for name, group_index_of in FIXTURES.items():
    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=False, actorder="group")
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(N, K, generator=generator).half()
    group_index = group_index_of(torch.randperm(K, generator=generator)).to(torch.int32)
    members = group_index if group_index[0] >= 0 else torch.arange(K) // GROUP
    scale, zero = torch.empty(N, K // GROUP), torch.empty(N, K // GROUP)
    for group in range(K // GROUP):
        part = weight[:, members == group].float()
        low, high = part.amin(-1).clamp(max=0), part.amax(-1).clamp(min=0)
        scale[:, group] = (high - low) / 15
        zero[:, group] = (-8 - low / scale[:, group]).round().clamp(-8, 7)
    state = PackedQuantizationCompressor.compress(
        {"weight": weight, "weight_scale": scale.half(), "weight_zero_point": zero.to(torch.int8),
         "weight_g_idx": group_index}, scheme)
    layer = "layers.0.proj"
    expected = {f"{layer}.codes": (unpack_from_int32(state["weight_packed"], 4, torch.Size((N, K))) + 8).to(torch.uint8),
                f"{layer}.weight": PackedQuantizationCompressor.decompress(dict(state), scheme)["weight"]}
    config = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized", ignore=["lm_head"],
                                quantization_status=QuantizationStatus.COMPRESSED)
    save_fixture(name, {f"{layer}.{key}": value for key, value in state.items()}, expected,
                 {"quantization_config": config.model_dump(mode="json")})
