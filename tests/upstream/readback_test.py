"""What nybble writes, read back by the libraries of the formats: bit for bit what `nybble convert --to dense` says.

    readback_test.py compressed-tensors|gptq|awq

Needs the packages of requirements.txt; without them the test is skipped (exit status 77).
"""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

NYBBLE, SOURCE_DIR = os.environ["NYBBLE"], pathlib.Path(os.environ["NYBBLE_SOURCE_DIR"])
NEEDED = {"compressed-tensors": ["torch", "safetensors", "transformers", "compressed_tensors"],
          "gptq": ["torch", "safetensors", "transformers", "gptqmodel"],
          "awq": ["torch", "safetensors", "transformers", "awq"]}


def run(*words):
    subprocess.run([NYBBLE, *map(str, words)], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def make_models(folder):
    """4-bit forms of a tiny Llama in fp16: symmetric and with zero points; and a fixture whose features are reordered."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=64, tie_word_embeddings=False)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder / "model")
    run("quantize", folder / "model", "--out", folder / "symmetric", "--group", "32")
    run("quantize", folder / "model", "--out", folder / "asymmetric", "--group", "32", "--asym")
    return {"symmetric": folder / "symmetric", "asymmetric": folder / "asymmetric",
            "actorder": SOURCE_DIR / "tests" / "data" / "ct_actorder_group"}


def tensors_of(folder):
    from safetensors.torch import load_file
    return load_file(folder / "model.safetensors")


def expect_equal(read, dense, what):
    """Every layer that the library read, to the last bit."""
    import torch
    assert read, f"{what}: nothing was read"
    for name, weight in read.items():
        expected = dense[name]
        assert weight.dtype == expected.dtype and weight.shape == expected.shape, f"{what}: {name}"
        different = weight.contiguous().view(torch.int16) != expected.view(torch.int16)
        assert not different.any(), f"{what}: {name}: {int(different.sum())} of {weight.numel()} weights differ"
    print(f"{what}: {len(read)} layers equal")


def read_compressed_tensors(folder):
    """The whole model as transformers loads it. With zero points it wants dequantize=True: docs/formats.md says why."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float16",
                                                 quantization_config=CompressedTensorsConfig(dequantize=True))
    return {name: weight for name, weight in model.state_dict().items() if name.endswith("_proj.weight")}


def expect_same_logits(folder, dense):
    """As it is loaded without further settings: the layers stay packed until they run."""
    import torch
    from transformers import AutoModelForCausalLM
    tokens = torch.arange(16)[None]
    logits = [AutoModelForCausalLM.from_pretrained(path, dtype="float16")(tokens).logits for path in (folder, dense)]
    assert torch.equal(*logits), "the packed model's logits are not those of its dense form"
    print("logits equal")


def read_gptq(folder):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["checkpoint_format"] == "gptq_v2"  # so that GPTQModel takes zero points as they are
    tensors, read = tensors_of(folder), {}
    for name in [name[:-len(".qweight")] for name in tensors if name.endswith(".qweight")]:
        parts = {part: tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        layer = TorchLinear(bits=settings["bits"], group_size=settings["group_size"], sym=settings["sym"],
                            desc_act=settings["desc_act"], in_features=parts["g_idx"].shape[0],
                            out_features=parts["scales"].shape[1])
        for part, tensor in parts.items():
            assert getattr(layer, part).shape == tensor.shape, f"{name}.{part}"
            setattr(layer, part, tensor)
        layer.eval()
        read[name + ".weight"] = layer.dequantize_weight().T
    return read


def read_awq(folder):
    # The package's own imports need an older transformers; this one file does not.
    (package,) = importlib.util.find_spec("awq").submodule_search_locations
    spec = importlib.util.spec_from_file_location("awq_packing", pathlib.Path(package) / "utils" / "packing_utils.py")
    packing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing)
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors, read = tensors_of(folder), {}
    for name in [name[:-len(".qweight")] for name in tensors if name.endswith(".qweight")]:
        parts = [tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")]
        read[name + ".weight"] = packing.dequantize_gemm(*parts, settings["bits"], settings["group_size"]).T
    return read


def main(target):
    for package in NEEDED[target]:
        if importlib.util.find_spec(package) is None:
            print(f"{__file__}:1: Skipped\nthe Python package {package} is missing (tests/upstream/requirements.txt)")
            return 77
    read = {"compressed-tensors": read_compressed_tensors, "gptq": read_gptq, "awq": read_awq}[target]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for kind, model in make_models(folder).items():
            if kind == "actorder" and target != "gptq":
                continue  # AWQ has no place for it, compressed-tensors dropped it with 0.19
            out, dense = folder / f"{kind}-{target}", folder / f"{kind}-dense"
            run("convert", model, "--to", target, "--scale-dtype", "fp16", "--out", out)
            run("convert", out, "--to", "dense", "--dtype", "fp16", "--out", dense)
            expect_equal(read(out), tensors_of(dense), f"{target} {kind}")
            if target == "compressed-tensors" and kind == "symmetric":
                expect_same_logits(out, dense)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
