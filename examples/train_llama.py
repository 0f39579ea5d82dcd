#!/usr/bin/env python3
"""Trains a small Llama decoder from scratch and writes it as a Hugging Face folder: a model in full precision to quantize.

    pip install torch tokenizers safetensors numpy
    scripts/fetch_text.sh --training
    examples/train_llama.py tokens --text .deps/text/training.txt --out tokens
    examples/train_llama.py train --tokens tokens --out .deps/models/debian-llama

26 million parameters, some minutes on a data-centre GPU. Documents in the text are separated by NUL characters. The weights are
kept in fp32 while training (products in bf16) and stored in bf16, in shards of at most 15 MiB.
"""
import argparse
import json
import lzma
import math
import pathlib
import shutil
import time

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

END_OF_TEXT = "<|endoftext|>"
SHARD_BYTES = 15 << 20
# LlamaConfig's names. Widths are multiples of 128, so that groups of 128 fit every layer.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
    "hidden_size": 512, "intermediate_size": 1280, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}


class Block(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads, self.dim = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))

        def linear(n, k):
            return torch.nn.Linear(k, n, bias=False)

        self.input_layernorm = torch.nn.RMSNorm(width, eps=config["rms_norm_eps"])
        self.self_attn = torch.nn.ModuleDict({
            "q_proj": linear(self.heads * self.dim, width), "k_proj": linear(self.kv_heads * self.dim, width),
            "v_proj": linear(self.kv_heads * self.dim, width), "o_proj": linear(width, self.heads * self.dim)})
        self.post_attention_layernorm = torch.nn.RMSNorm(width, eps=config["rms_norm_eps"])
        self.mlp = torch.nn.ModuleDict({
            "gate_proj": linear(inner, width), "up_proj": linear(inner, width), "down_proj": linear(width, inner)})

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        normed = self.input_layernorm(x)

        def heads_of(name, heads):
            return self.self_attn[name](normed).view(batch, length, heads, self.dim).transpose(1, 2)

        query = rotate(heads_of("q_proj", self.heads), cos, sin)
        key = rotate(heads_of("k_proj", self.kv_heads), cos, sin)
        value = heads_of("v_proj", self.kv_heads)
        key, value = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(batch, length, -1))
        normed = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed))


def rotate(x, cos, sin):
    """Rotary embedding as Hugging Face lays it out: feature i turns with i + dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Llama(torch.nn.Module):
    """Parameters are named as in Hugging Face's checkpoints; the LM head is the embedding."""

    def __init__(self, config):
        super().__init__()
        self.model = torch.nn.ModuleDict({
            "embed_tokens": torch.nn.Embedding(config["vocab_size"], config["hidden_size"]),
            "layers": torch.nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"])),
            "norm": torch.nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])})
        half = config["head_dim"] // 2
        frequencies = config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(config["max_position_embeddings"], dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = math.sqrt(2 * config["num_hidden_layers"]) if into_residual else 1
                torch.nn.init.normal_(parameter, std=0.02 / depth)

    def forward(self, tokens):
        """Logits [batch, length, vocabulary] of tokens [batch, length]."""
        length = tokens.shape[1]
        x = self.model["embed_tokens"](tokens)
        for block in self.model["layers"]:
            x = block(x, self.cos[:length], self.sin[:length])
        return F.linear(self.model["norm"](x), self.model["embed_tokens"].weight)

    def loss(self, tokens):
        """Mean nats of each token but the first of every row."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def make_tokens(arguments):
    """Byte-level BPE, cut into words by GPT-2's rule, trained on the text; then the text in its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    with (lzma.open if arguments.text.suffix == ".xz" else open)(arguments.text, "rt", encoding="utf-8", newline="\n") as file:
        documents = file.read().split("\0")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(documents[::4], trainers.BpeTrainer(
        vocab_size=arguments.vocabulary, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = []
    for at in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch(documents[at:at + 256]):
            pieces += [numpy.array(encoding.ids, dtype=numpy.uint16), numpy.array([end], dtype=numpy.uint16)]
    tokens = numpy.concatenate(pieces)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    (arguments.out / "tokens.bin").write_bytes(tokens.astype("<u2").tobytes())
    print(f"{len(documents)} documents, {tokens.size} tokens of {tokenizer.get_vocab_size()}")


def rate_at(progress):
    """Share of the highest learning rate: 2 % warm-up, then a cosine down to a twentieth."""
    return progress / 0.02 if progress < 0.02 else 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


def train(arguments):
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device(arguments.device)
    tokens = numpy.fromfile(arguments.tokens / "tokens.bin", dtype="<u2")
    tokens = torch.from_numpy(tokens.astype(numpy.int32)).to(device)
    vocabulary = json.loads((arguments.tokens / "tokenizer.json").read_text())["model"]["vocab"]
    end = vocabulary.get(END_OF_TEXT, 0)
    config = dict(CONFIG, vocab_size=len(vocabulary), bos_token_id=end, eos_token_id=end)
    model = Llama(config).to(device)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}],
                                  lr=arguments.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")
    loss_of = torch.compile(model.loss) if arguments.compile else model.loss
    offsets = torch.arange(arguments.context + 1, device=device)
    generator = torch.Generator(device=device).manual_seed(arguments.seed)
    losses = []
    begin, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate_at(progress)
        starts = torch.randint(tokens.numel() - arguments.context - 1, (arguments.batch,), device=device, generator=generator)
        batch = tokens[starts[:, None] + offsets].long()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0 or step <= 3:  # reading the loss waits for the GPU, so that the clock is right here
            losses.append((step, loss.item()))
            if step == 1:
                begin = time.monotonic()  # torch.compile has done its work
            seconds = max(time.monotonic() - begin, 1e-3)
            seen = step * arguments.batch * arguments.context
            print(f"step {step}: loss {loss.item():.4f}, {seen / 1e6:.0f} M tokens, {seen / seconds / 1e3:.0f} k tokens/s, "
                  f"{seconds:.0f} s", flush=True)
        progress = max(step / arguments.steps, (time.monotonic() - begin) / arguments.seconds)
    seconds = time.monotonic() - begin
    save(model, config, arguments, {
        "steps": step, "tokens": step * arguments.batch * arguments.context, "seconds": round(seconds, 1),
        "unique_tokens": tokens.numel(), "loss": sum(loss for _, loss in losses[-10:]) / len(losses[-10:]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__})


def save(model, config, arguments, training):
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, tensors in zip(names, shards):
        save_file(tensors, out / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensors in shards for tensor in tensors.values())},
             "weight_map": {name: file for file, tensors in zip(names, shards) for name in tensors}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    shutil.copyfile(arguments.tokens / "tokenizer.json", out / "tokenizer.json")
    print(f"{out}: {sum(parameter.numel() for parameter in model.parameters())} parameters, {training}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("tokens", help="train the tokenizer and put the text into tokens")
    verb.add_argument("--text", type=pathlib.Path, required=True, help="UTF-8, plain or as .xz")
    verb.add_argument("--vocabulary", type=int, default=8192)
    verb.set_defaults(run=make_tokens)
    verb.add_argument("--out", type=pathlib.Path, required=True)
    verb = verbs.add_parser("train", help="train the model; the first limit reached ends it, and the schedule fits it")
    verb.add_argument("--tokens", type=pathlib.Path, required=True)
    verb.add_argument("--out", type=pathlib.Path, required=True)
    verb.add_argument("--steps", type=int, default=10000)
    verb.add_argument("--seconds", type=float, default=300)
    verb.add_argument("--batch", type=int, default=64, help="sequences a step")
    verb.add_argument("--context", type=int, default=CONFIG["max_position_embeddings"], help="tokens a sequence")
    verb.add_argument("--learning-rate", type=float, default=3e-3)
    verb.add_argument("--device", default="cuda")
    verb.add_argument("--compile", action="store_true", help="through torch.compile, which needs a C compiler")
    verb.add_argument("--seed", type=int, default=1)
    verb.set_defaults(run=train)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
