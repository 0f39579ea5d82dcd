#!/usr/bin/env python3
"""Makes tests/data/llama3: a Hugging Face folder's tokenizer of Llama 3's kind, and what the libraries make of it.

    pip install tokenizers==0.23.3 transformers==5.24.0 torch
    tests/data/make_llama3.py

tokenizer.json has Llama 3's pattern, its post_processor that begins every text with a token, and a vocabulary whose whole
words come before merges (ignore_merges); cases.json holds texts with the tokens of the tokenizers library. chats.json: chat
templates of the two kinds that the example knows, written here, and the tokens of transformers' apply_chat_template.
rope.json: settings of rotary embeddings and the frequencies of transformers.
"""
import json
import pathlib

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "llama3"
TEXTS = [case["text"] for case in json.loads((HERE / "llama_tiny" / "tokenizer_cases.json").read_text())]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<|im_start|>", "<|im_end|>"]

HEADER = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
LLAMA3 = ("{{ bos_token }}{% for message in messages %}{{ " + HEADER + " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = ("{{ bos_token }}{% set words = '' %}{% if messages[0]['role'] == 'system' %}{% set words = messages[0]['content'] | trim %}"
           "{% set messages = messages[1:] %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
           "{{ 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + words + '<|eot_id|>' }}"
           "{% for message in messages %}{{ " + HEADER + " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
CHAT_ML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def train():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[AddedToken(name, special=True) for name in SPECIAL],
                                  show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    # A word that no merge makes: only ignore_merges finds it.
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"]["Ġlazy"] = len(content["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(content))
    begin = tokenizer.token_to_id(SPECIAL[0])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A {SPECIAL[0]} $B",
                                      special_tokens=[(SPECIAL[0], begin)])])
    return tokenizer


def write(name, value):
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
    (FOLDER / name).write_text(f"[\n{rows}\n]\n")


FOLDER.mkdir(exist_ok=True)
tokenizer = train()
tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)
ends = [tokenizer.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")]
(FOLDER / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": ends}) + "\n")
assert tokenizer.encode("a").ids[0] == tokenizer.token_to_id(SPECIAL[0])
write("cases.json", [{"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS])

fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL[0])
chats = []
for text in (LLAMA3, LLAMA31, CHAT_ML):
    for system in (None, " Be brief.\n"):
        user = "  The lazy dog?\n It's 1234 "
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": user}]
        rendered = fast.apply_chat_template(messages, chat_template=text, add_generation_prompt=True, tokenize=False)
        tokens = fast(rendered, add_special_tokens=False)["input_ids"]
        chats.append({"template": text, "system": system, "user": user, "tokens": tokens})
write("chats.json", chats)

ropes = []
for head_dim, base, scaling in (
        (64, 500000.0, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192}),
        (128, 500000.0, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192}),
        (16, 10000.0, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0,
                       "original_max_position_embeddings": 64}),
        (64, 10000.0, {"rope_type": "linear", "factor": 2.5})):
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=131072,
                         rope_parameters=scaling | {"rope_theta": base})
    ropes.append({"head_dim": head_dim, "rope_theta": base, "rope_scaling": scaling,
                  "frequencies": LlamaRotaryEmbedding(config).inv_freq.to(torch.float64).tolist()})
write("rope.json", ropes)
