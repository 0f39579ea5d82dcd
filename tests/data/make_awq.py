#!/usr/bin/env python3
"""Makes the AWQ fixtures in this folder with the packers of AutoAWQ and GPTQModel.

    pip install --no-deps autoawq==0.2.9 gptqmodel==7.7.0
    pip install accelerate datasets defuser device-smi logbar pypcre safetensors==0.8.0 threadpoolctl tokenicer torch transformers
    tests/data/make_awq.py

Both multiply in other versions than gemm on a GPU only, so that what they read is known by what was packed.
"""
import torch
from fixture_folder import GridLayer, enter_package, save_fixture, tensors_of

enter_package("awq")
from awq.modules.linear.gemm import WQLinear_GEMM  # noqa: E402
from awq.modules.linear.gemv import WQLinear_GEMV  # noqa: E402
from awq.modules.linear.gemv_fast import WQLinear_GEMVFast  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm  # noqa: E402
from gptqmodel.nn_modules.qlinear.gemm_awq import AwqGEMMLinear  # noqa: E402
from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear  # noqa: E402
from gptqmodel.nn_modules.qlinear.gemv_fast_awq import LLMAwqLinear  # noqa: E402

ANY_ZERO = tuple(range(16))
# name: (version, packer, group, what varies in the layers, their shapes)
FIXTURES = {
    "awq_gemm_g128": ("gemm", WQLinear_GEMM, 128, dict(zeros=ANY_ZERO), [(32, 128)]),
    "awq_gemm_g32": ("gemm", WQLinear_GEMM, 32, dict(zeros=ANY_ZERO, bias=True), [(32, 64)]),
    "awq_gemm_bf16": ("gemm", AwqGEMMLinear, 64, dict(zeros=ANY_ZERO, dtype=torch.bfloat16, bias=True), [(16, 128)]),
    "awq_gemm_row": ("gemm", AwqGEMMLinear, -1, dict(), [(16, 48)]),
    "awq_gemv_g128": ("gemv", WQLinear_GEMV, 128, dict(zeros=ANY_ZERO), [(8, 256), (16, 128)]),
    "awq_gemv_g64": ("gemv", AwqGEMVLinear, 64, dict(zeros=ANY_ZERO, bias=True), [(8, 192)]),
    "awq_gemv_g32": ("gemv", WQLinear_GEMV, 32, dict(zeros=ANY_ZERO), [(8, 288)]),
    "awq_gemv_fast_g128": ("gemv_fast", WQLinear_GEMVFast, 128, dict(zeros=ANY_ZERO), [(8, 256), (16, 128)]),
    "awq_gemv_fast_g32": ("gemv_fast", WQLinear_GEMVFast, 32, dict(zeros=ANY_ZERO, bias=True), [(16, 128)]),
    "awq_llm_awq": ("llm-awq", LLMAwqLinear, 64, dict(zeros=ANY_ZERO), [(8, 128)]),
}


def packed(packer, group, grid, dtype):
    n, k, linear = grid.n, grid.k, grid.linear
    if packer.__name__.startswith("WQ"):
        scales, zeros = (grid.scales.T.contiguous(), grid.zeros.T.contiguous()) if packer is WQLinear_GEMM else (
            grid.scales, grid.zeros)
        module = packer.from_linear(linear, 4, group, scales=scales, zeros=zeros)
    else:
        module = packer.__new__(packer)  # its constructor demands a GPU, its packer does not
        torch.nn.Module.__init__(module)
        module.bits, module.group_size, module.interleave = 4, grid.group, 4
        module.in_features, module.out_features = k, n
        scales = grid.scales.to(dtype)
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.to(scales.dtype)
        module.pack(linear, scales, grid.zeros)
    return module


for name, (version, packer, group, kind, shapes) in FIXTURES.items():
    saved, expected = {"norm.weight": torch.ones(8)}, {}
    for index, (n, k) in enumerate(shapes):
        layer = f"layers.{index}.proj"
        grid = GridLayer(n, k, group, seed=index, **kind)
        module = packed(packer, group, grid, kind.get("dtype", torch.float16))
        saved |= tensors_of(layer, module)
        expected |= grid.expected(layer)
        if version == "gemm":
            read = dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, grid.group)
            assert torch.equal(read.T, grid.weight)
        elif version != "gemv":  # the product of scale and zero point is rounded when it is stored
            stored = module.scaled_zeros if version == "llm-awq" else module.qzeros
            groups = grid.scales.shape[1]
            assert stored.dtype == torch.float16 and not stored[groups:].any()
            offsets = stored[:groups].T.double().repeat_interleave(grid.group, dim=1)
            exact = grid.codes.double() * grid.scales.double().repeat_interleave(grid.group, dim=1) + offsets
            expected[f"{layer}.weight"] = exact.float()
    settings = {"quant_method": "awq", "zero_point": True, "group_size": group, "bits": 4, "version": version,
                "modules_to_not_convert": None}
    save_fixture(name, saved, expected, {"quantization_config": settings})
