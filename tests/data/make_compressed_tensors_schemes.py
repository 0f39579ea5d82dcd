#!/usr/bin/env python3
"""Makes the compressed-tensors fixtures beyond one scheme of integers with the format's own library, and what that library
reads in them.

    pip install compressed-tensors==0.20.0 safetensors==0.8.0 torch transformers
    tests/data/make_compressed_tensors_schemes.py
"""
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                             QuantizationStatus)
from compressed_tensors.quantization.quant_scheme import MXFP4A16, NVFP4, NVFP4A16, W4A16, W4A16_ASYM

from fixture_folder import save_fixture, unpack_low_first

INT4_ASYM = dict(weights=QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, symmetric=False))
INT4_STATIC = dict(weights=QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True,
                                            actorder="static"))
INT4_TENSOR = {symmetric: dict(weights=QuantizationArgs(num_bits=4, type="int", strategy="tensor", symmetric=symmetric))
               for symmetric in (True, False)}
INT4, NVFP4_PACKED, MXFP4_PACKED = "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"


def scheme_of(preset, form, targets):
    return QuantizationScheme(**preset, targets=targets, format=form)


def integer_state(weight, args):
    *rows, k = weight.shape
    group = args.group_size or k
    grouped = weight.float().reshape((1, -1) if args.strategy == "tensor" else (*rows, k // group, group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if args.symmetric:
        return torch.maximum(-low, high) / 7.5, torch.zeros_like(low)
    scale = (high - low) / 15
    return scale, (-8 - low / scale).round().clamp(-8, 7)


def state_of(weight, scheme):
    """The state that the library compresses: the weight with scales found here by its rules."""
    args = scheme.weights
    if scheme.format == INT4:
        scale, zero = integer_state(weight, args)
        return {"weight": weight, "weight_scale": scale.to(weight.dtype), "weight_zero_point": zero.to(torch.int8)}
    largest = weight.float().reshape(weight.shape[0], -1, args.group_size).abs().amax(-1)
    if scheme.format == MXFP4_PACKED:
        return {"weight": weight, "weight_scale": torch.exp2(torch.floor(torch.log2(largest)) - 2).to(weight.dtype)}
    global_scale = (448 * 6 / weight.float().abs().amax()).reshape(1)
    scale = (global_scale * largest / 6).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": scale.float(), "weight_global_scale": global_scale}


def expected_of(layer, packed, scheme, dense):
    shape = dense.shape
    if scheme.format == INT4:
        codes = (unpack_from_int32(packed["weight_packed"], 4, shape) + 8).to(torch.uint8)
    else:
        codes = unpack_low_first(packed["weight_packed"])
    if dense.ndim == 2:
        return {f"{layer}.codes": codes, f"{layer}.weight": dense}
    return {f"{layer}.{expert}.{key}": value[expert] for expert in range(shape[0])
            for key, value in (("codes", codes), ("weight", dense))}


def make(name, layers, form, ignore=("lm_head",)):
    """layers: {layer: (scheme, shape)}"""
    saved, expected, groups = {"norm.weight": torch.ones(8, dtype=torch.bfloat16)}, {}, {}
    for index, (layer, (scheme, shape)) in enumerate(layers.items()):
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(index)).bfloat16()
        packed = compressor.compress(state_of(weight, scheme), scheme)
        dense = compressor.decompress(dict(packed), scheme)["weight"]
        saved |= {f"{layer}.{key}": value.detach() for key, value in packed.items()}
        if scheme.input_activations is not None:
            saved[f"{layer}.input_global_scale"] = torch.tensor([3.0])
        expected |= expected_of(layer, packed, scheme, dense)
        if scheme not in groups.values():
            groups[f"group_{len(groups)}"] = scheme
    config = QuantizationConfig(config_groups=groups, format=form, ignore=list(ignore),
                                quantization_status=QuantizationStatus.COMPRESSED)
    save_fixture(name, saved, expected, {"quantization_config": config.model_dump(mode="json")})


linear = ["Linear"]
nvfp4, mxfp4 = scheme_of(NVFP4A16, NVFP4_PACKED, linear), scheme_of(MXFP4A16, MXFP4_PACKED, linear)
make("ct_nvfp4", {"layers.0.proj": (nvfp4, (6, 64)), "layers.1.proj": (nvfp4, (5, 48))}, NVFP4_PACKED)
make("ct_nvfp4_activations", {"layers.0.proj": (scheme_of(NVFP4, NVFP4_PACKED, linear), (4, 64))}, NVFP4_PACKED)
make("ct_mxfp4", {"layers.0.proj": (mxfp4, (6, 64)), "layers.1.proj": (mxfp4, (3, 96))}, MXFP4_PACKED)
make("ct_preset", {"layers.0.proj": (scheme_of(W4A16, INT4, linear), (8, 256))}, INT4)
make("ct_preset_asymmetric", {"layers.0.proj": (scheme_of(W4A16_ASYM, INT4, linear), (8, 128))}, INT4)
make("ct_tensor", {"layers.0.proj": (scheme_of(INT4_TENSOR[True], INT4, linear), (9, 40))}, INT4)
make("ct_tensor_asymmetric", {"layers.0.proj": (scheme_of(INT4_TENSOR[False], INT4, linear), (9, 40))}, INT4)
static = scheme_of(INT4_STATIC, INT4, linear)
make("ct_actorder_static", {f"layers.0.experts.{expert}.up_proj": (static, (8, 64)) for expert in range(2)}, INT4,
     ["lm_head", "layers.0.router"])
make("ct_experts", {"layers.0.experts.up_proj": (scheme_of(INT4_ASYM, INT4, ["re:.*experts.*"]), (3, 10, 64))}, INT4)
make("ct_mixed", {"layers.0.q_proj": (scheme_of(INT4_ASYM, INT4, ["re:.*q_proj$"]), (9, 64)),
                  "layers.0.up_proj": (scheme_of(NVFP4A16, NVFP4_PACKED, ["re:.*up_proj$"]), (6, 64)),
                  "layers.0.down_proj": (scheme_of(MXFP4A16, MXFP4_PACKED, ["layers.0.down_proj"]), (4, 64))},
     "mixed-precision")
