#!/usr/bin/env python3
"""What 4 bits cost: quantizes real models by every method and measures each against its dense form.

    scripts/fetch_chat_model.sh && scripts/fetch_text.sh        (docs/quality.md says how the second model is made)
    examples/quality.py --build build/full [--device cuda]

For each model found in .deps/models: collects statistics on the calibration text, quantizes by all methods in groups of three
sizes, and measures perplexity on the held-out text and KL divergence to the dense model, all candidates in one pass.
Writes bench/results/quality/MODEL.json and the tables of docs/quality.md. Needs numpy and safetensors.

--methods and --groups measure some alone. With --add the rows that MODEL.json has of others stay beside them, if it is of the
same model, texts and tokens and its dense form gave the same perplexity.
"""
import argparse
import concurrent.futures
import datetime
import hashlib
import json
import os
import pathlib
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Of each model: where it lies in its folder, and the groups of its table. compressed-tensors has no partial groups, and 128 does
# not divide the 576 features of SmolLM2.
MODELS = {"SmolLM2-135M-Instruct": ("model.gguf", (192, 64, 32)), "debian-llama": (".", (128, 64, 32))}
STATISTICS = "STATISTICS"  # stands for the file where a method is given it
# Of each row: method, grid, the options of `nybble quantize`.
METHODS = (
    ("RTN", "symmetric", ["--method", "rtn"]),
    ("RTN", "asymmetric", ["--method", "rtn", "--asymmetric"]),
    ("range search", "symmetric", ["--method", "range", "--norm", "2"]),
    ("range search", "asymmetric", ["--method", "range", "--norm", "2", "--asymmetric"]),
    ("range search, weighted", "symmetric", ["--method", "range", "--norm", "2", "--stats", STATISTICS]),
    ("range search, weighted", "asymmetric", ["--method", "range", "--norm", "2", "--asymmetric", "--stats", STATISTICS]),
    ("HQQ", "asymmetric", ["--method", "hqq"]),
    ("GPTQ", "symmetric", ["--method", "gptq", "--act-order", "static", "--stats", STATISTICS]),
    ("GPTQ", "asymmetric", ["--method", "gptq", "--act-order", "static", "--asymmetric", "--stats", STATISTICS]),
    ("AWQ", "symmetric", ["--method", "awq", "--stats", STATISTICS]),
    ("AWQ", "asymmetric", ["--method", "awq", "--asymmetric", "--stats", STATISTICS]),
)


class Programs:
    """nybble and nybble-llama of one build folder."""

    def __init__(self, build, threads):
        self.build, self.threads = build, threads

    def run(self, program, *arguments):
        command = [self.build / program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"quality: {' '.join(map(str, command))}\n{done.stderr}{done.stdout}")
        return done.stdout


def say(words):
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {words}", file=sys.stderr, flush=True)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gguf_q4_1(path):
    """{layer: (codes [n, k / 32, 32])} of the Q4_1 tensors in a GGUF file (ggml's docs/gguf.md)."""
    data = path.read_bytes()
    at = 24
    tensors, metadata = struct.unpack_from("<QQ", data, 8)

    def text():
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        return data[at - length:at].decode("utf-8")

    def value(kind):
        nonlocal at
        sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
        if kind == 8:
            return text()
        if kind == 9:
            element, count = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(count):
                value(element)
            return None
        at += sizes[kind]
        return int.from_bytes(data[at - sizes[kind]:at], "little")

    alignment = 32
    for _ in range(metadata):
        key = text()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        found = value(kind)
        if key == "general.alignment":
            alignment = found
    infos = []
    for _ in range(tensors):
        name = text()
        (rank,) = struct.unpack_from("<I", data, at)
        shape = struct.unpack_from(f"<{rank}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * rank)
        at += 16 + 8 * rank
        infos.append((name, shape, kind, offset))
    start = -(-at // alignment) * alignment
    found = {}
    for name, shape, kind, offset in infos:
        if kind != 3:
            continue
        k, n = shape
        blocks = numpy.frombuffer(data, numpy.uint8, n * k // 32 * 20, start + offset).reshape(n, k // 32, 20)
        quants = blocks[:, :, 4:]  # after scale and minimum, two fp16
        found[name.removesuffix(".weight")] = numpy.concatenate([quants & 15, quants >> 4], axis=2)
    return found


def codes_found_again(gguf, folder):
    """How many of the file's codes asymmetric rounding in groups of 32 finds again in the dequantized weights."""
    from safetensors import safe_open
    stored = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:  # which cannot read the scales, but need not
            stored.update({name: file.get_tensor(name) for name in file.keys() if name.endswith(".weight_packed")})
    equal = total = 0
    for layer, codes in gguf_q4_1(gguf).items():
        words = stored[layer + ".weight_packed"].view(numpy.uint32)
        ours = (words[:, :, None] >> (4 * numpy.arange(8, dtype=numpy.uint32)) & 15).reshape(codes.shape)
        equal += int((ours == codes).sum())
        total += codes.size
    return {"codes": total, "equal": equal}


def commit():
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def measure(model, name, groups, programs, options, work):
    """The result of one model. `model`: a GGUF file, or a Hugging Face folder of dense weights."""
    is_gguf = model.suffix == ".gguf"
    statistics, dense = work / "statistics.safetensors", model
    methods = [each for each in METHODS if not options.methods or each[0] in options.methods]
    if any(STATISTICS in arguments for _, _, arguments in methods):
        programs.run("nybble-llama", "collect", model, "--text", options.text / "calibration.txt", "--max-tokens",
                     options.calibration_tokens, "--context", options.context, "--out", statistics, "--threads", programs.threads)
        say(f"{name}: statistics")
    if is_gguf:
        dense = work / "dense"
        programs.run("nybble", "convert", model, "--to", "dense", "--out", dense)
    chosen = ["--include", "attn_|ffn_"] if is_gguf else []

    def quantize(group, method, grid, arguments):
        out = work / "-".join([method, grid, str(group)]).replace(", ", "-").replace(" ", "-")
        begin = time.monotonic()
        arguments = [statistics if argument == STATISTICS else argument for argument in arguments]
        printed = programs.run("nybble", "quantize", dense, "--out", out, "--group", group, "--json", *chosen, *arguments,
                               "--threads", max(1, programs.threads // options.jobs))
        say(f"{name}: {out.name}")
        return {"method": method, "grid": grid, "group_size": group, "commit": options.commit or commit(),
                "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "seconds": round(time.monotonic() - begin, 1),
                "options": " ".join(map(str, arguments)).replace(str(statistics), "FILE"),
                "warnings": json.loads(printed)["warnings"]}, out

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda job: quantize(*job), [(group, *each) for group in groups for each in methods]))
    candidates = [argument for _, out in rows for argument in ("--weights", out)]
    measured = json.loads(programs.run("nybble-llama", "perplexity", model, *candidates, "--against", model, "--text",
                                       options.text / "heldout.txt", "--max-tokens", options.tokens, "--context",
                                       options.context, "--stride", options.stride, "--device", options.device, "--threads",
                                       programs.threads, "--json"))
    say(f"{name}: measured")
    for (row, _), found in zip(rows, measured):
        row.update({key: found[key] for key in ("perplexity", "mean_kl", "top1_agreement")})
    result = {
        "schema": 1, "model": name, "files": {path.name: sha256(path) for path in sorted(
            [model] if is_gguf else model.glob("*.safetensors"))},
        "processor": processor(), "runs": measured[0]["runs"].split(";")[0],
        "protocol": {"context": options.context, "stride": options.stride, "tokens": measured[0]["tokens"],
                     "heldout_sha256": sha256(options.text / "heldout.txt"), "calibration_tokens": options.calibration_tokens,
                     "calibration_sha256": sha256(options.text / "calibration.txt")},
        "dense_perplexity": measured[0]["against_perplexity"], "rows": [row for row, _ in rows]}
    own_grid = work / "RTN-asymmetric-32"
    if is_gguf and own_grid.is_dir():
        result["own_grid"] = codes_found_again(model, own_grid)
    return result


def merged(result, path):
    """`result`, and of the file at `path` what it does not measure anew; exits where the two cannot stand in one table."""
    before = json.loads(path.read_text(encoding="utf-8"))
    for key, value in result.items():
        if key not in ("rows", "own_grid") and before.get(key) != value:
            sys.exit(f"quality: {path} has {key} = {before.get(key)}, this run {value}: measure all methods anew")

    def place(row):
        return (-row["group_size"], [each[:2] for each in METHODS].index((row["method"], row["grid"])))
    rows = {place(row): row for row in [*before["rows"], *result["rows"]]}
    return {**before, **result, "rows": [rows[at] for at in sorted(rows)]}


def write(result, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
    rows = ",".join("\n  " + json.dumps(row, separators=(",", ":")) for row in result["rows"])
    path.write_text(f'{head[:-2]},\n "rows": [{rows}\n ]\n}}\n', encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/full", help="the folder with nybble and nybble-llama")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / ".deps/models")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / ".deps/text", help="the folder that fetch_text.sh fills")
    parser.add_argument("--only", action="append", help="measure this model alone")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench/results/quality")
    parser.add_argument("--document", type=pathlib.Path, default=ROOT / "docs/quality.md")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what runs the candidates")
    parser.add_argument("--tokens", type=int, default=16384, help="of the held-out text")
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--groups", type=int, nargs="+", help="these alone")
    parser.add_argument("--methods", nargs="+", choices=sorted({method for method, _, _ in METHODS}), help="these alone")
    parser.add_argument("--add", action="store_true", help="keep the rows of others in MODEL.json")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--jobs", type=int, default=4, help="quantizations at a time")
    parser.add_argument("--commit", help="of the programs, where this is no checkout")
    options = parser.parse_args()
    programs = Programs(options.build.resolve(), options.threads)
    found = [(name, options.models / name / part, groups) for name, (part, groups) in MODELS.items()
             if (options.models / name).is_dir() and (not options.only or name in options.only)]
    if not found:
        sys.exit(f"quality: no model in {options.models}; scripts/fetch_chat_model.sh fetches one")
    for name, model, groups in found:
        work = pathlib.Path(tempfile.mkdtemp(prefix="quality."))
        try:
            result = measure(model, name, options.groups or groups, programs, options, work)
            path = options.out / f"{name}.json"
            write(merged(result, path) if options.add and path.is_file() else result, path)
        finally:
            shutil.rmtree(work)
    if options.document.is_file():
        subprocess.run([sys.executable, ROOT / "scripts/readme_table.py", options.document, "--results", options.out], check=True)


if __name__ == "__main__":
    BEGIN = time.monotonic()
    main()
