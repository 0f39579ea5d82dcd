#!/usr/bin/env python3
"""Makes the torchao fixtures in this folder with the format's own classes, and what they stand for.

    pip install torchao==0.18.0 safetensors==0.8.0 torch
    tests/data/make_torchao.py

The library finds scales and packs tiles on a GPU only, so both are done here: scales and zeros by its formulas (scale =
(max - min) / 15, zero = min + 8 scale), tiles by the layout of PyTorch's int4mm.cu. Saving is the library's own.
"""
import torch
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Int4Tensor, Int4TilePackedTo4dTensor

from fixture_folder import save_fixture


def quantized(n, k, group, seed):
    """Codes 0..15 [n, k], scales and zeros [n, k / group] in bf16."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).reshape(n, k // group, group)
    low, high = weight.amin(-1), weight.amax(-1)
    scale = ((high - low) / 15).bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    codes = ((weight - low[..., None]) / scale.float()[..., None]).round().clamp(0, 15)
    return codes.reshape(n, k).to(torch.uint8), scale, zero


def meant(codes, scale, zero, group):
    """(code - 8) * scale + zero, each step rounded to fp32."""
    wide = [numbers.float().repeat_interleave(group, dim=1) for numbers in (scale, zero)]
    return (codes.float() - 8) * wide[0] + wide[1]


def tiles(codes):
    n, k = codes.shape
    words = torch.zeros(n // 8, k // 128, 32, 4, dtype=torch.int64)
    for row in range(n):
        for column in range(k):
            tile = words[row // 8, column // 128]
            lane, word = row % 8 * 4 + column % 8 // 2, column % 128 // 32
            nibble = column % 32 // 8 + column % 2 * 4
            tile[lane, word] |= int(codes[row, column]) << 4 * nibble
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def config(group, packing):
    return {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {
        "_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": group, "int4_packing_format": packing}}}}}


def plain(n, k, group, seed):
    codes, scale, zero = quantized(n, k, group, seed)
    signed = codes ^ 8
    packed = (signed[:, ::2] | signed[:, 1::2] << 4).view(torch.int8)
    tensor = Int4Tensor(packed, scale.t().contiguous(), zero.t().contiguous(), [1, group], torch.Size((n, k)))
    return tensor, codes, meant(codes, scale, zero, group)


def tiled(n, k, group, seed):
    codes, scale, zero = quantized((n + 7) // 8 * 8, (k + 1023) // 1024 * 1024, group, seed)
    both = torch.stack((scale, zero), dim=-1).transpose(0, 1).contiguous()
    tensor = Int4TilePackedTo4dTensor(tiles(codes), both, [1, group], torch.Size((n, k)))
    return tensor, codes[:n, :k], meant(codes, scale, zero, group)[:n, :k]


for name, maker, packing, group, shapes in (
        ("torchao_plain", plain, "plain", 32, [(6, 64), (3, 96)]),
        ("torchao_plain_g64", plain, "plain", 64, [(4, 128)]),
        ("torchao_tiles", tiled, "tile_packed_to_4d", 128, [(5, 320)]),
        ("torchao_tiles_g64", tiled, "tile_packed_to_4d", 64, [(3, 256)])):
    model, expected = {"norm.weight": torch.ones(8)}, {}
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        model[f"{layer}.weight"], expected[f"{layer}.codes"], expected[f"{layer}.weight"] = maker(n, k, group, index + k)
    tensors, metadata = flatten_tensor_state_dict(model)
    save_fixture(name, tensors, expected, config(group, packing), metadata)
