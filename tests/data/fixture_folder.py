"""What the scripts that make fixtures share: the folder that a model is saved into, and what its own library reads there.

model.safetensors and config.json are as the library saves them. expected.safetensors holds, for each quantized layer, LAYER.codes
(U8, 0..15) and LAYER.weight as the library dequantizes it; in another type than F32 where it rounds to that type.
"""
import importlib.util
import json
import pathlib
import sys
import types

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


def enter_package(name):
    """Makes a package's modules importable without running its __init__, which may want what packing does not need."""
    package = types.ModuleType(name)
    package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = package


class GridLayer:
    """A linear layer whose weights are (code - zero) * scale, exactly, so that a packer finds these codes again.

    codes U8 [n, k], zeros and scales [n, groups] in fp32, the scales being numbers of `dtype`; `g_idx` [k] is the group of
    each input feature.
    """

    def __init__(self, n, k, group, zeros=(8,), dtype=torch.float16, bias=False, shuffled=False, seed=0):
        random = torch.Generator().manual_seed(seed + 1000 * n + k)
        self.n, self.k, self.group = n, k, k if group == -1 else group
        groups = -(-k // self.group)
        self.codes = torch.randint(0, 16, (n, k), generator=random)
        self.scales = (0.01 + 0.1 * torch.rand(n, groups, generator=random)).to(dtype).float()
        self.zeros = torch.tensor(zeros)[torch.randint(0, len(zeros), (n, groups), generator=random)].float()
        place = torch.randperm(k, generator=random) if shuffled else torch.arange(k)
        self.g_idx = (place // self.group).to(torch.int32)
        self.weight = (self.codes - self.zeros[:, self.g_idx]) * self.scales[:, self.g_idx]
        self.linear = torch.nn.Linear(k, n, bias=bias)
        self.linear.weight.data = self.weight.clone()
        if bias:
            self.linear.bias.data = torch.randn(n, generator=random).to(dtype).float()

    def expected(self, name):
        return {f"{name}.codes": self.codes.to(torch.uint8), f"{name}.weight": self.weight}


def tensors_of(name, module):
    """What a model that holds `module` under this name saves of it."""
    return {f"{name}.{key}": value.detach() for key, value in module.state_dict().items()}
