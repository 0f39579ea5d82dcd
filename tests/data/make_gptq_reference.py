#!/usr/bin/env python3
"""Writes gptq_reference.json: codes that llm-compressor's GPTQ gives for one weight and one Hessian.

    pip install llmcompressor==0.14.0.1
    tests/data/make_gptq_reference.py

Its groups are static (scales from the weights as they are), so GptqOptions::static_groups is what to compare with. The
Hessian's elements are multiples of 1/256, the weights' of 2^-12, so that the file holds them exactly.
"""
import json
import pathlib

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

N, K, TOKENS, DEAD = 24, 96, 256, 17
SETTINGS = [(32, True, None), (32, False, None), (32, True, "weight"), (16, False, "weight"), (0, True, None), (48, False, "weight")]


def inputs():
    """[TOKENS, K] whole numbers that lean on their neighbours; every 13th is larger, one is always zero."""
    x = torch.randn(TOKENS, K)
    for i in range(1, K):
        x[:, i] += 0.7 * x[:, i - 1]
    x = torch.round(2 * x)
    x[:, ::13] *= 4
    x[:, DEAD] = 0
    return x


def main():
    torch.manual_seed(7)
    while True:  # until no two inputs are equally large: in which order those go is anybody's choice
        x = inputs()
        hessian = x.T @ x / TOKENS
        if len(set(hessian.diagonal().tolist())) == K:
            break
    weight = torch.round(torch.randn(N, K) * 0.05 * 4096) / 4096
    cases = []
    for group_size, symmetric, order in SETTINGS:
        size = group_size or K
        arguments = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group" if group_size else "channel",
                                     group_size=group_size or None, actorder=order)
        # The weights of dead inputs become zero before anything else here, in llm-compressor after the scales.
        alive = weight.clone()
        alive[:, DEAD] = 0
        groups = alive.reshape(N, K // size, size)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
        quantized, _, fell_back = quantize_weight(weight.clone()[None], hessian.clone()[None], scale[None], zero[None], None,
                                                  arguments, blocksize=32)
        assert not fell_back.any()
        zero = torch.zeros_like(scale) if symmetric else zero.float()
        levels = quantized[0].float().reshape(N, K // size, size) / scale[..., None] + zero[..., None]
        codes = torch.round(levels) + 8
        assert (levels + 8 - codes).abs().max() < 1e-3 and codes.min() >= 0 and codes.max() <= 15
        cases.append({"group_size": group_size, "symmetric": symmetric, "act_order": order is not None,
                      "scales": scale.flatten().tolist(), "codes": codes.int().flatten().tolist()})
    reference = {"n": N, "k": K, "weight": weight.flatten().tolist(), "hessian": hessian.flatten().tolist(), "cases": cases}
    path = pathlib.Path(__file__).with_name("gptq_reference.json")
    path.write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
