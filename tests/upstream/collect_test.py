"""examples/collect_statistics.py on a tiny model of transformers: its numbers against a forward pass in double precision, its
file through `nybble quantize`.

Needs torch, transformers and safetensors (requirements.txt); without them the test is skipped (exit status 77).
"""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

NYBBLE, SOURCE_DIR = os.environ["NYBBLE"], pathlib.Path(os.environ["NYBBLE_SOURCE_DIR"])
SEQUENCES, LENGTH = 3, 24


def quantize(model, out, *options):
    done = subprocess.run([NYBBLE, "quantize", str(model), "--out", str(out), "--group", "32", "--json", *map(str, options)],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expect_close(got, want, what):
    assert got.shape == want.shape, what
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error < 1e-5, f"{what}: differs by {error:.1e} of the largest element"


def inputs_in_double(model, sequences):
    """{layer: [tokens, k]}, what goes into each linear layer in a forward pass in double precision."""
    import torch
    seen = {}
    hooks = [module.register_forward_hook(lambda module, inputs, output, name=name: seen.setdefault(name, []).append(
        inputs[0].flatten(0, -2))) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for tokens in sequences:
            model(tokens)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def run_program(model, folder):
    """The program as a user runs it, with a tokenizer of 26 words; its statistics file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a").save_pretrained(model)
    (folder / "text").write_text(" ".join(3 * letters))
    subprocess.run([sys.executable, SOURCE_DIR / "examples" / "collect_statistics.py", model, "--text", folder / "text", "--out",
                    folder / "program.safetensors", "--sequences", "2", "--length", "32", "--device", "cpu"], check=True)
    return folder / "program.safetensors"


def main():
    for package in ("torch", "safetensors", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"{__file__}:1: Skipped\nthe Python package {package} is missing (tests/upstream/requirements.txt)")
            return 77
    import torch
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM
    spec = importlib.util.spec_from_file_location("collect_statistics", SOURCE_DIR / "examples" / "collect_statistics.py")
    collector = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(collector)

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=64, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    sequences = torch.randint(0, 64, (SEQUENCES, 1, LENGTH))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model.save_pretrained(folder / "model")
        files = {squares: folder / f"squares-{squares}.safetensors" for squares in (False, True)}
        for squares, path in files.items():
            collector.collect(model, sequences, squares).save(str(path))
        with safe_open(run_program(folder / "model", folder), "pt") as program, safe_open(files[False], "pt") as called:
            assert set(program.keys()) == set(called.keys())
            assert {count for key, count in program.metadata().items() if key.startswith("tokens.")} == {"64"}
        inputs = inputs_in_double(model.double(), sequences)
        leaders = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        for squares, path in files.items():
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata(), set(file.keys())
                assert metadata["nybble.statistics"] == "1"
                for layer, x in inputs.items():
                    kind, suffix = layer.rsplit(".", 1)[-1], ".mean_square" if squares else ".hessian"
                    if kind == "lm_head":
                        assert not any(name.startswith(layer) for name in names), "the head needs no statistics"
                        continue
                    if kind in leaders:
                        assert metadata[f"same_input.{layer}"] == layer.replace(kind, leaders[kind])
                        assert layer + suffix not in names
                        continue
                    assert metadata[f"tokens.{layer}"] == str(SEQUENCES * LENGTH) and f"same_input.{layer}" not in metadata
                    hessian = x.T @ x / len(x)
                    expect_close(file.get_tensor(layer + suffix), hessian.diagonal() if squares else hessian, layer)
        print(f"{len(inputs) - 1} layers' statistics are those of a forward pass in double precision")

        plain = quantize(folder / "model", folder / "rtn", "--stats", files[False], "--report-errors")["output_errors"]
        for method, squares in (("gptq", False), ("awq", False), ("awq", True), ("range", True)):
            done = quantize(folder / "model", folder / f"{method}-{squares}", "--method", method, "--stats", files[squares],
                            "--report-errors")
            # With grouped queries AWQ leaves v and o without scales, and says so.
            assert not any("statistics" in warning for warning in done["warnings"]), done["warnings"]
            assert done["output_errors"].keys() == plain.keys() and len(plain) == len(inputs) - 1
            if method == "gptq":
                assert all(error < plain[layer] for layer, error in done["output_errors"].items())
        print("nybble quantize takes them: gptq, awq, range")
    return 0


if __name__ == "__main__":
    sys.exit(main())
