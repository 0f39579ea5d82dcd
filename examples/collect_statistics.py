#!/usr/bin/env python3
"""Collects the statistics that `nybble quantize --stats` reads, from any transformers model that torch can run.

    pip install torch transformers safetensors
    examples/collect_statistics.py models/llama --text calibration.txt --out stats.safetensors

Every linear layer but the output head gets its Hessian, the mean over the tokens of x x^T ([k, k] in fp32), or with --squares
its mean squares ([k]). Layers that are given the same tensor (q, k and v; gate and up) share one. The calibration text should
look like what the model will read; some 128 sequences of 2048 tokens are usual.
"""
import argparse
import pathlib

import torch
from safetensors.torch import save_file


class Collector:
    """Sums over everything that runs through a model's linear layers."""

    def __init__(self, model, squares, skip):
        self.squares = squares
        self.sums, self.tokens, self.leader_of = {}, {}, {}
        self.last_input, self.last_leader = None, None
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and not any(part in name for part in skip):
                module.register_forward_pre_hook(lambda module, inputs, name=name: self.see(name, inputs[0]))

    def see(self, name, x):
        if x is not self.last_input:
            self.last_input, self.last_leader = x, name
        leader = self.leader_of.setdefault(name, self.last_leader)
        if leader != self.last_leader:
            raise SystemExit(f"layer {name} had its input from {leader} and now from {self.last_leader}: its statistics cannot be shared")
        if leader != name:
            return
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not torch.isfinite(rows).all():
            raise SystemExit(f"layer {name}: an input is NaN or infinite")
        added = rows.square().sum(0) if self.squares else rows.T @ rows
        self.sums[name] = added if name not in self.sums else self.sums[name].add_(added)
        self.tokens[name] = self.tokens.get(name, 0) + rows.shape[0]

    def save(self, path):
        suffix = ".mean_square" if self.squares else ".hessian"
        tensors = {name + suffix: (total / self.tokens[name]).cpu().contiguous() for name, total in self.sums.items()}
        metadata = {"format": "pt", "nybble.statistics": "1"}
        metadata.update({f"tokens.{name}": str(count) for name, count in self.tokens.items()})
        metadata.update({f"same_input.{name}": leader for name, leader in self.leader_of.items() if name != leader})
        save_file(tensors, path, metadata)


def collect(model, sequences, squares=False, skip=("lm_head",)):
    """A Collector that has seen `sequences`, an iterable of token tensors [batch, length]."""
    collector = Collector(model, squares, skip)
    with torch.no_grad():
        for tokens in sequences:
            model(tokens.to(model.device), use_cache=False)
            collector.last_input = None  # whose address the next sequence may get
    return collector


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or hub name")
    parser.add_argument("--text", required=True, type=pathlib.Path, help="calibration text, UTF-8")
    parser.add_argument("--out", required=True, help="the statistics file to write")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="tokens a sequence")
    parser.add_argument("--squares", action="store_true", help="mean squares only: small, but not enough for GPTQ")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype="auto").to(arguments.device).eval()
    tokens = tokenizer(arguments.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    count = min(arguments.sequences, len(tokens) // arguments.length)
    if count == 0:
        raise SystemExit(f"{arguments.text}: has {len(tokens)} tokens, fewer than one sequence of {arguments.length}")
    sequences = tokens[:count * arguments.length].reshape(count, 1, arguments.length)
    collect(model, sequences, arguments.squares).save(arguments.out)
    print(f"{arguments.out}: {count} sequences of {arguments.length} tokens")


if __name__ == "__main__":
    main()
