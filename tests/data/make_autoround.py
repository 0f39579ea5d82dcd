#!/usr/bin/env python3
"""Makes the AutoRound fixtures in this folder with the library's packers, and what its own layers read in them.

    pip install auto-round==0.16.1 safetensors==0.8.0 torch transformers
    tests/data/make_autoround.py
"""
import torch
from fixture_folder import GridLayer, save_fixture, tensors_of

from auto_round.export.export_to_autoround.export import pack_layer
from auto_round.export.export_to_autoround.export_to_nvfp_mx import pack_layer as pack_float_layer
from auto_round.export.export_to_awq.export import pack_layer as pack_awq_layer
from auto_round.export.export_to_awq.utils import dequantize_gemm

ANY_ZERO = tuple(range(16))
E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
# name: (packing_format, group, what varies in the layers, their shapes). Zero points less 1 cannot hold a 0.
FIXTURES = {
    "autoround_gptq_symmetric": ("auto_round:auto_gptq", 32, dict(bias=True), [(32, 64)]),
    "autoround_gptq_asymmetric": ("auto_round:auto_gptq", 32, dict(zeros=ANY_ZERO[1:]), [(32, 64)]),
    "autoround_gptqmodel": ("auto_round:gptqmodel", 32, dict(zeros=ANY_ZERO), [(32, 64)]),
    "autoround_plain": ("auto_round", 64, dict(zeros=ANY_ZERO, bias=True), [(32, 64)]),
    "autoround_awq": ("auto_round:auto_awq", 32, dict(zeros=ANY_ZERO, bias=True), [(32, 64)]),
    "autoround_mixed_groups": ("auto_round:auto_gptq", 64, dict(), [(32, 64), (32, 32), (32, 32)]),
}
OTHER_GROUPS = {"layers.1.proj": 32, "layers.2.proj": -1}  # of autoround_mixed_groups


def settings(packing, group, symmetric, more):
    return {"quantization_config": {
        "bits": 4, "group_size": group, "sym": symmetric, "data_type": "int", "autoround_version": "0.16.1",
        "block_name_to_quantize": "layers", "quant_method": "auto-round", "packing_format": packing} | more}


def with_scheme(linear, **scheme):
    for key, value in scheme.items():
        setattr(linear, key, value)
    return torch.nn.ModuleDict({"proj": linear})


def read_by_library(module, grid):
    """The weight [n, k] that the packed layer multiplies with."""
    if not hasattr(module, "wf"):
        return dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, grid.group).T
    module.bias, module.scales = None, module.scales.float()
    return module(torch.eye(grid.k)).T


for name, (packing, group, kind, shapes) in FIXTURES.items():
    saved, expected, extra = {"norm.weight": torch.ones(8)}, {}, {}
    symmetric = "zeros" not in kind
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        own = OTHER_GROUPS.get(layer, group) if name == "autoround_mixed_groups" else group
        if own != group:
            extra[layer] = {"group_size": own}
        grid = GridLayer(n, k, own, seed=index, **kind)
        holder = with_scheme(grid.linear, bits=4, group_size=own, sym=symmetric, act_bits=16, scale=grid.scales,
                             zp=grid.zeros)
        (pack_awq_layer if "awq" in packing else pack_layer)("proj", holder, packing)
        saved |= tensors_of(layer, holder["proj"])
        expected |= grid.expected(layer)
        assert torch.equal(read_by_library(holder["proj"], grid), grid.weight)
    save_fixture(name, saved, expected, settings(packing, group, symmetric, {"extra_config": extra} if extra else {}))

for name, data_type, group in (("autoround_mxfp4", "mx_fp", 32), ("autoround_nvfp4", "nv_fp", 16)):
    n, k = 8, 64
    random = torch.Generator().manual_seed(group)
    codes = torch.randint(0, 16, (n, k), generator=random)
    if data_type == "mx_fp":
        scale, more = torch.randint(-6, 3, (n, k // group), generator=random).float(), {}
        wide = 2.0 ** scale
    else:
        scale = (1 + 400 * torch.rand(n, k // group, generator=random)).to(torch.float8_e4m3fn).float()
        more = {"weight_global_scale": torch.tensor([1000.0])}
        wide = scale / more["weight_global_scale"]
    weight = E2M1[codes] * wide.repeat_interleave(group, dim=1)
    linear = torch.nn.Linear(k, n, bias=False)
    linear.weight.data = weight
    holder = with_scheme(linear, bits=4, group_size=group, sym=True, data_type=data_type, act_bits=16,
                         act_data_type="float", scale=scale, **more)
    pack_float_layer("proj", holder, "auto_round:llm_compressor")
    packed = tensors_of("layers.0.proj", holder["proj"]) | {"norm.weight": torch.ones(8)}
    if data_type == "nv_fp":  # whose packer keeps no sign of zero
        codes = torch.where(codes == 8, 0, codes)
    save_fixture(name, packed, {"layers.0.proj.codes": codes.to(torch.uint8), "layers.0.proj.weight": weight}, settings(
        "auto_round:llm_compressor", group, True, {"data_type": data_type}))
