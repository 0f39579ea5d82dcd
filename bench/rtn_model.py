#!/usr/bin/env python3
"""Times `nybble quantize --method rtn` over a model-sized file beside `cp` and `sync` of the same files.

    bench/rtn_model.py build/full/nybble [--folder DIR] [--repeats N] [--json FILE]

Makes a bf16 model of 2 GB in four shards (kept in DIR, made once), reads it so that it lies in the page cache, and runs
both in turns. Exit status 1 where rtn took more than twice as long, or more memory than one shard and 256 MiB. Beside
the wall time stands the processors' (user and system), which tells how much of it other work on the machine took.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import struct
import subprocess
import sys
import time

HIDDEN, INTERMEDIATE, KEYS, BLOCKS, VOCABULARY, SHARDS = 2048, 8192, 512, 16, 32000, 4
MOST_TIMES, SPARE_BYTES = 2, 256 << 20


def shapes():
    """{tensor: shape} of each shard."""
    shards = [{} for _ in range(SHARDS)]
    shards[0]["model.embed_tokens.weight"] = (VOCABULARY, HIDDEN)
    for block in range(BLOCKS):
        shard = shards[block * SHARDS // BLOCKS]
        for name, shape in {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN),
                            "self_attn.v_proj": (KEYS, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
                            "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
                            "mlp.down_proj": (HIDDEN, INTERMEDIATE), "input_layernorm": (HIDDEN,),
                            "post_attention_layernorm": (HIDDEN,)}.items():
            shard[f"model.layers.{block}.{name}.weight"] = shape
    shards[-1]["model.norm.weight"] = (HIDDEN,)
    return shards


def size_of(shape):
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)


def make_model(folder):
    """Gaussian weights: a few million of them, over and over, so that no two groups of a row are alike."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    source = random.Random(1)
    numbers = b"".join(struct.pack("<f", source.gauss(0, 0.02))[2:] for _ in range((1 << 20) + 7))
    weight_map, total, at = {}, 0, 0
    for i, tensors in enumerate(shapes()):
        name = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape in tensors.items():
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size_of(shape)]}
            end += size_of(shape)
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(part / name, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            left = end
            while left > 0:
                piece = numbers[at:at + left]
                out.write(piece)
                left -= len(piece)
                at = (at + len(piece)) % len(numbers)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
              "intermediate_size": INTERMEDIATE, "num_hidden_layers": BLOCKS, "vocab_size": VOCABULARY,
              "tie_word_embeddings": True}
    (part / "config.json").write_text(json.dumps(config))
    part.rename(folder)


def fill_page_cache(folder):
    for path in folder.iterdir():
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def timed(command):
    """Wall seconds, processor seconds, and the most resident bytes of any one process."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit status {process.returncode}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nybble", type=pathlib.Path, help="the command to time")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("rtn_model"), help="where the model lies, "
                        "and what is written; on the disk that is meant (default: ./rtn_model)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    arguments = parser.parse_args()

    model, copy, out = (arguments.folder / name for name in ("model", "copy", "out"))
    if not model.is_dir():
        make_model(model)
    fill_page_cache(model)
    runs = {"copy": [], "rtn": []}
    for _ in range(arguments.repeats):
        for folder in (copy, out):
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["sync"], check=True)  # what others left to write is not to be paid for here
        runs["copy"].append(timed(["sh", "-c", 'cp -r "$1" "$2" && sync "$2"/*', "sh", model, copy]))
        shutil.rmtree(copy)
        subprocess.run(["sync"], check=True)
        runs["rtn"].append(timed([arguments.nybble.resolve(), "quantize", model, "--out", out, "--method", "rtn"]))
    shutil.rmtree(out)

    most = max(path.stat().st_size for path in model.glob("*.safetensors")) + SPARE_BYTES
    middle = {name: {key: statistics.median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}
    peak = max(run["peak_bytes"] for run in runs["rtn"])
    times = middle["rtn"]["seconds"] / middle["copy"]["seconds"]
    for name, title in {"copy": "cp and sync", "rtn": "nybble quantize"}.items():
        seconds = sorted(run["seconds"] for run in runs[name])
        print(f"{title:16} {middle[name]['seconds']:6.2f} s (of {len(seconds)}: {seconds[0]:.2f} to {seconds[-1]:.2f}), "
              f"processors {middle[name]['cpu_seconds']:.2f} s")
    print(f"{times:.2f} times as long (at most {MOST_TIMES}); {peak / 2**20:.0f} MiB resident (at most {most / 2**20:.0f})")
    figures = {"cores": len(os.sched_getaffinity(0)), "times": times, "peak_bytes": peak, "most_bytes": most, **runs}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if times <= MOST_TIMES and peak <= most else 1


if __name__ == "__main__":
    sys.exit(main())
