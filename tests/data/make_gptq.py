#!/usr/bin/env python3
"""Makes the GPTQ fixtures in this folder with the packers of GPTQModel and AutoGPTQ, and what the first reads in them.

    pip install --no-deps gptqmodel==7.7.0 auto-gptq==0.7.1
    pip install accelerate datasets defuser device-smi logbar pypcre safetensors==0.8.0 threadpoolctl tokenicer torch transformers
    tests/data/make_gptq.py
"""
import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing here is worth compiling

import torch
from fixture_folder import GridLayer, enter_package, save_fixture, tensors_of

from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.config import FORMAT, QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module

enter_package("auto_gptq")
from auto_gptq.nn_modules.qlinear import qlinear_cuda, qlinear_cuda_old  # noqa: E402

ANY_ZERO = tuple(range(16))
# name: (format, group, what varies in the layers, their shapes)
GPTQMODEL = {
    "gptq_v2_symmetric_g32": ("gptq_v2", 32, dict(bias=True), [(16, 64), (8, 96)]),
    "gptq_v2_asymmetric_g64": ("gptq_v2", 64, dict(zeros=ANY_ZERO), [(24, 128), (8, 64)]),
    "gptq_v2_act_order_g32": ("gptq_v2", 32, dict(shuffled=True), [(16, 128)]),
    "gptq_v2_tails": ("gptq_v2", 32, dict(zeros=ANY_ZERO), [(13, 45), (7, 61)]),
    "gptq_v2_act_order_tails": ("gptq_v2", 16, dict(zeros=ANY_ZERO, shuffled=True), [(11, 45)]),
    "gptq_v2_row_bf16": ("gptq_v2", -1, dict(dtype=torch.bfloat16, zeros=ANY_ZERO, bias=True), [(16, 80)]),
    "gptq_v2_mixed_groups": ("gptq_v2", 64, dict(), [(16, 64), (8, 128), (8, 64)]),
    "gptq_v1_symmetric_g128": ("gptq", 128, dict(), [(8, 256)]),
    "gptq_v1_asymmetric_g32": ("gptq", 32, dict(zeros=ANY_ZERO), [(16, 64), (8, 96)]),
    "gptq_v1_act_order_g64": ("gptq", 64, dict(zeros=ANY_ZERO, shuffled=True, bias=True), [(16, 128)]),
}
# name: (group, what varies in the layers, their shapes). Its packer loses zero points where one is 0.
AUTOGPTQ = {
    "autogptq_symmetric_g128": (128, dict(), [(32, 128)]),
    "autogptq_asymmetric_g32": (32, dict(zeros=ANY_ZERO[1:], bias=True), [(32, 64)]),
    "autogptq_act_order_row": (-1, dict(zeros=ANY_ZERO[1:]), [(32, 96)]),
    "autogptq_act_order_g32": (32, dict(zeros=ANY_ZERO[1:], shuffled=True), [(32, 96)]),
}
OTHER_GROUPS = {"layers.1.proj": 32, "layers.2.proj": -1}  # of gptq_v2_mixed_groups


def gptqmodel(name, stored, group, kind, shapes):
    saved, expected = {"norm.weight": torch.ones(8)}, {}
    dynamic = {}
    symmetric, act_order = kind.get("zeros", (8,)) == (8,), kind.get("shuffled", False)
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        own = OTHER_GROUPS.get(layer, group) if name == "gptq_v2_mixed_groups" else group
        if own != group:
            dynamic[f"+:.*\\.{index}\\.proj$"] = {"group_size": own}
        grid = GridLayer(n, k, own, seed=index, **kind)
        module = TorchLinear(bits=4, group_size=own, sym=symmetric, desc_act=act_order, in_features=k, out_features=n,
                             bias=grid.linear.bias is not None, pack_dtype=torch.int32, register_buffers=True)
        module.pack_original(grid.linear, grid.scales, grid.zeros, grid.g_idx)
        module.to(kind.get("dtype", torch.float16))
        module.post_init()
        assert torch.equal(module.dequantize_weight().T.float(), (grid.weight).to(module.scales.dtype).float())
        if stored == "gptq":
            true = module.qzeros.clone()
            convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=4, group_size=own))
            saved |= tensors_of(layer, module)
            saved[f"{layer}.qzeros"] = module.qzeros.clone()
            convert_gptq_v1_to_v2_format_module(module, 4, torch.int32)
            assert torch.equal(module.qzeros, true)
        else:
            saved |= tensors_of(layer, module)
        expected |= grid.expected(layer)
    config = QuantizeConfig(bits=4, group_size=group, sym=symmetric, desc_act=act_order, dynamic=dynamic or None,
                            format=FORMAT(stored), offload_to_disk=False)
    config.meta_set_versionable("quantizer", ["gptqmodel:7.7.0"])
    save_fixture(name, saved, expected, {"quantization_config": config.to_dict()})


def autogptq(name, group, kind, shapes):
    saved, expected = {"norm.weight": torch.ones(8)}, {}
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        grid = GridLayer(n, k, group, seed=index, **kind)
        packer = qlinear_cuda if "act_order" in name else qlinear_cuda_old
        module = packer.QuantLinear(4, group, k, n, grid.linear.bias is not None)
        module.pack(grid.linear.half(), grid.scales, grid.zeros.clone(), grid.g_idx)
        saved |= tensors_of(layer, module)
        expected |= grid.expected(layer)
    save_fixture(name, saved, expected, {"quantization_config": {
        "bits": 4, "group_size": group, "damp_percent": 0.01, "desc_act": "act_order" in name, "static_groups": False,
        "sym": kind.get("zeros", (8,)) == (8,), "true_sequential": True, "model_name_or_path": None,
        "model_file_base_name": "model", "quant_method": "gptq", "checkpoint_format": "gptq"}})


for name, (stored, group, kind, shapes) in GPTQMODEL.items():
    gptqmodel(name, stored, group, kind, shapes)
for name, (group, kind, shapes) in AUTOGPTQ.items():
    autogptq(name, group, kind, shapes)
