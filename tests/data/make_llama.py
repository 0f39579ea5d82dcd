#!/usr/bin/env python3
"""Makes tests/data/llama_tiny: a Llama-family model of random weights, and what a forward pass in double precision says
of it; and what the tokenizers library makes of awkward texts, with this model's vocabulary and with SmolLM2's.

    pip install gguf==0.19.0 safetensors==0.8.0 numpy torch tokenizers
    tests/data/make_llama.py [SMOLLM2.gguf]

model.gguf has a byte-level BPE vocabulary, 2 blocks of Q4_1 and Q4_0 layers, and a Q8_0 embedding that is the LM head,
too. expected.safetensors: tokens [24], logits [8, vocabulary] of the last 8 (F32, rounded once from F64), hessians of two inputs.
"""
import json
import pathlib
import sys

import gguf
import numpy
import torch
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "llama_tiny"
TYPE = gguf.GGMLQuantizationType
WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, BLOCKS, VOCABULARY = 32, 4, 2, 8, 64, 2, 384
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EPSILON, BASE = 1e-5, 10000.0
TEXTS = [
    "", " ", "  ", "a", "Hello, world!", " leading", "trailing ", "two  spaces   three", "tab\tand\nnew\r\nline\n\n\n",
    "It's we've I'll they'd 'tis don't DON'T 's", "12345 1,234.56 3.14e-10", "a1b22c333", "x = y ** 2; // comment",
    "naïve café Ünïcödé ß", "Ελληνικά Кириллица עברית العربية", "日本語のテキスト 中文", "한국어 조선말",
    "👩‍👩‍👧‍👦 family 🇩🇪 👍🏽", "½ ¾ Ⅷ ٣٤٥ ५६ ²", "a\u00a0b\u2003c\u3000d\u200be\u180ef\ufefff", "\u0301combining e\u0301",
    "\x00\x01\x7f", "\U0001d4d0\U0001d7d8", "<|im_start|>user\nhi<|im_end|>", "<|im_start", "<|endoftext|><|endoftext|>",
    "word" * 50, "!?!?...---___", "https://example.org/a?b=c&d=%20#e", "    indented\n        more\n", "\u2028\u2029\u0085x",
    "The quick brown fox jumps over the lazy dog.", "supercalifragilisticexpialidocious", "\t\t x", "e\u0301'\u017f's",
]


def pre_tokenizer():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def cases(tokenizer):
    return [{"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS]


def write_cases(path, tokenizer):
    rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases(tokenizer))
    path.write_text(f"[\n{rows}\n]\n")


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPSILON) * weight


def rotate(x):  # [tokens, heads, dim]: neighbours are turned together
    tokens, _, dim = x.shape
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * BASE ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2)


def forward(w, tokens, seen):
    x = w["token_embd.weight"][tokens]
    count = len(tokens)
    mask = torch.full((count, count), float("-inf"), dtype=torch.float64).triu(1)
    for i in range(BLOCKS):
        at = f"blk.{i}."
        h = rms_norm(x, w[at + "attn_norm.weight"])
        seen[at + "attn_q"] = h
        q = rotate((h @ w[at + "attn_q.weight"].T).reshape(count, HEADS, HEAD_DIM))
        k = rotate((h @ w[at + "attn_k.weight"].T).reshape(count, KV_HEADS, HEAD_DIM))
        v = (h @ w[at + "attn_v.weight"].T).reshape(count, KV_HEADS, HEAD_DIM)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM ** 0.5 + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(count, -1)
        seen[at + "attn_output"] = mixed
        x = x + mixed @ w[at + "attn_output.weight"].T
        h = rms_norm(x, w[at + "ffn_norm.weight"])
        seen[at + "ffn_gate"] = h
        h = torch.nn.functional.silu(h @ w[at + "ffn_gate.weight"].T) * (h @ w[at + "ffn_up.weight"].T)
        seen[at + "ffn_down"] = h
        x = x + h @ w[at + "ffn_down.weight"].T
    return rms_norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T


def main():
    FOLDER.mkdir(exist_ok=True)
    tokenizer = train()
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary = [token for token, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    random = numpy.random.default_rng(7)
    writer = gguf.GGUFWriter(FOLDER / "model.gguf", "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(BASE)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
                             "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
                             "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    weights = {}

    def add(name, shape, kind, spread):
        values = (random.standard_normal(shape) * spread).astype(numpy.float32)
        raw = values if kind == TYPE.F32 else quantize(values, kind)
        writer.add_tensor(name, raw, raw_dtype=None if kind == TYPE.F32 else kind)
        read = values if kind == TYPE.F32 else dequantize(raw, kind)
        weights[name] = torch.from_numpy(read.astype(numpy.float64).reshape(shape))

    add("token_embd.weight", (len(vocabulary), WIDTH), TYPE.Q8_0, 1)
    for i, kind in enumerate([TYPE.Q4_1, TYPE.Q4_0]):
        at = f"blk.{i}."
        add(at + "attn_norm.weight", (WIDTH,), TYPE.F32, 1)
        add(at + "attn_q.weight", (HEADS * HEAD_DIM, WIDTH), kind, .4)
        add(at + "attn_k.weight", (KV_HEADS * HEAD_DIM, WIDTH), kind, .4)
        add(at + "attn_v.weight", (KV_HEADS * HEAD_DIM, WIDTH), kind, .4)
        add(at + "attn_output.weight", (WIDTH, HEADS * HEAD_DIM), kind, .4)
        add(at + "ffn_norm.weight", (WIDTH,), TYPE.F32, 1)
        add(at + "ffn_gate.weight", (FEED_FORWARD, WIDTH), kind, .4)
        add(at + "ffn_up.weight", (FEED_FORWARD, WIDTH), kind, .4)
        add(at + "ffn_down.weight", (WIDTH, FEED_FORWARD), kind, .3)
    add("output_norm.weight", (WIDTH,), TYPE.F32, 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tokens = random.integers(3, len(vocabulary), 24)
    seen = {}
    logits = forward(weights, torch.from_numpy(tokens), seen)
    expected = {"tokens": tokens.astype(numpy.int32), "logits": logits[-8:].numpy().astype(numpy.float32)}
    for layer in ("blk.0.attn_q", "blk.1.ffn_down"):
        expected[f"{layer}.hessian"] = (seen[layer].T @ seen[layer] / len(tokens)).numpy().astype(numpy.float32)
    save_file({key: numpy.ascontiguousarray(value) for key, value in expected.items()}, FOLDER / "expected.safetensors")
    write_cases(FOLDER / "tokenizer_cases.json", tokenizer)
    if len(sys.argv) > 1:
        write_cases(HERE / "smollm2_tokenizer_cases.json", smollm2(sys.argv[1]))


def smollm2(path):
    fields = gguf.GGUFReader(path).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type"))
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                                     merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token, kind in zip(tokens, types) if kind == 3])
    return tokenizer


if __name__ == "__main__":
    main()
