"""What the scripts that make fixtures share: the folder that a model is saved into, and what its own library reads there.

model.safetensors and config.json are as the library saves them. expected.safetensors holds, for each quantized layer, LAYER.codes
(U8, 0..15) and LAYER.weight as the library dequantizes it; in another type than F32 where it rounds to that type.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def save_fixture(name, tensors, expected, config, metadata=None):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    plain = {key: value.contiguous() for key, value in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"} | (metadata or {}))
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | config, indent=2) + "\n")


def unpack_low_first(packed):
    """Codes [n, 2 b] of bytes [n, b], the low four bits first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
