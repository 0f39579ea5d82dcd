#!/usr/bin/env python3
"""Compares what nybble's safetensors reader and the reference library (Rust, by its Python package) take and refuse.

    tests/fuzz/differential.py VERDICTS_PROGRAM [FOLDER...] [--mutants N] [--seed N]

The files are those of the folders (a fuzzer's corpus) and N changed ones of tests/data. Whatever nybble takes, the
reference must take. What nybble alone refuses must be one of STRICTER. Exit status: 0 where both hold, 1 where not, 77
where python3 has no safetensors.
"""
import argparse
import collections
import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"

# What nybble refuses and the reference takes: words of the refusal, and why.
STRICTER = [
    (r"stands twice|has one key twice|has \w+ twice", "of a key that stands twice the reference keeps the last"),
    (r"holds a control character", "names that would deceive whoever reads them in a log"),
    (r"name is empty", "an empty name"),
    (r"bytes; at most 4096 are allowed", "names of more than 4096 bytes"),
    (r"more than 8 dimensions", "more than 8 dimensions"),
    (r"more than 2\^53|only whole numbers up to 2\^53", "numbers that not every JSON reader agrees on"),
    (r"has the unknown key", "keys beside dtype, shape and data_offsets"),
    (r"lists more than \d+ tensors", "more than a million tensors"),
    (r"a string, a number or a run of spaces", "a token of more than 4 MiB"),
    (r"inside tensor", "an empty tensor in the midst of another"),
    (r"overflows 64 bits", "a product that overflows before a zero"),
    (r"the entry '__metadata__' is null", "metadata that is null"),
    (r"the entry '.*' is an array", "an entry as a list of its three values"),
    (r"leaves a hole|trailing bytes", "empty tensors whose offsets lie elsewhere"),
]


def mutants(count, seed):
    """Changed headers of the fixtures, as bytes."""
    chance = random.Random(seed)
    sources = [path.read_bytes() for path in sorted(DATA.glob("*/model.safetensors"))]
    values = [0, 1, -1, 2**53, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 1.0, None, True, "x", [], {}, [1], "F32", "U8", "F4"]
    for _ in range(count):
        source = chance.choice(sources)
        length = struct.unpack("<Q", source[:8])[0]
        header, data = source[8:8 + length], source[8 + length:]
        choice = chance.randrange(8)
        if choice < 2:  # some bytes
            changed = bytearray(source)
            for _ in range(chance.randint(1, 3)):
                changed[chance.randrange(min(len(changed), 8 + length + 8))] = chance.choice(b'\0\n "{}[],:019xtn\x80\xff')
            yield bytes(changed)
            continue
        if choice == 2:  # cut or longer
            yield source[:chance.randrange(len(source))] if chance.random() < .7 else source + b"\0" * chance.randint(1, 9)
            continue
        if choice == 3:  # an entry twice
            text = header.decode()
            at = text.rindex("}")
            name, entry = chance.choice([item for item in json.loads(text).items() if item[0] != "__metadata__"])
            text = text[:at] + f",{json.dumps(name)}:{json.dumps(entry)}" + text[at:]
        else:
            tree = json.loads(header)
            name = chance.choice([name for name in tree if name != "__metadata__"])
            entry = tree[name]
            kind = chance.randrange(8)
            if kind == 0:
                entry[chance.choice(["dtype", "shape", "data_offsets", "extra"])] = chance.choice(values)
            elif kind == 1:
                entry["shape"] = entry["shape"] + [chance.choice(values)]
            elif kind == 2:
                entry["shape"] = [1] * chance.randint(0, 8) + entry["shape"]
            elif kind == 3:
                entry["data_offsets"][chance.randrange(2)] += chance.choice([-8, -1, 1, 8, 2**32])
            elif kind == 4:
                del entry[chance.choice(list(entry))]
            elif kind == 5:
                tree[chance.choice(["", "a\nb", "n" * 4096, "n" * 4097, "\u00e9", "__metadata__"])] = tree.pop(name)
            elif kind == 6:
                tree["__metadata__"] = chance.choice(values + [{"a": "b"}, {"a": 1}, {"": ""}, {"a\x07": "b"}])
            else:
                at = chance.choice([0, len(data), chance.randrange(len(data) + 1)])
                tree["empty"] = {"dtype": "U8", "shape": [0], "data_offsets": [at, at]}
            text = json.dumps(tree, ensure_ascii=chance.random() < .5)
        changed = text.encode()
        yield struct.pack("<Q", len(changed)) + changed + data


def our_verdicts(program, paths):
    asked = "".join(f"{path}\n" for path in paths)
    answer = subprocess.run([program], input=asked, check=True, capture_output=True, text=True, errors="replace").stdout
    lines = answer.split("\n")[:-1]
    assert len(lines) == len(paths), f"{len(lines)} verdicts on {len(paths)} files"
    return lines


def reference_verdict(safetensors, path):
    try:
        safetensors.deserialize(path.read_bytes())
        return None
    except Exception as error:  # a refusal, whatever its class
        return str(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program")
    parser.add_argument("folders", nargs="*", type=pathlib.Path)
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        import safetensors
    except ImportError:
        print(f"{__file__}:1: Skipped\npython3 has no package safetensors to compare with")
        return 77
    paths = sorted(path for folder in arguments.folders for path in folder.iterdir() if path.is_file())
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(mutants(arguments.mutants, arguments.seed)):
            path = pathlib.Path(folder) / f"mutant-{number}"
            path.write_bytes(content)
            paths.append(path)
        counts, unexplained = collections.Counter(), []
        for path, ours in zip(paths, our_verdicts(arguments.program, paths)):
            theirs = reference_verdict(safetensors, path)
            if (ours == "accept") == (theirs is None):
                counts["both take" if theirs is None else "both refuse"] += 1
            elif ours == "accept":
                unexplained.append((path, "nybble takes it, the reference says: " + theirs))
            else:
                reason = next((why for words, why in STRICTER if re.search(words, ours)), None)
                if reason is None:
                    unexplained.append((path, "the reference takes it, nybble says: " + ours))
                else:
                    counts["nybble alone refuses: " + reason] += 1
    print(f"{len(paths)} files, safetensors {safetensors.__version__}")
    for what, count in sorted(counts.items()):
        print(f"{count:9} {what}")
    for path, words in unexplained[:20]:
        print(f"differs: {path}: {words}", file=sys.stderr)
    if unexplained:
        print(f"{len(unexplained)} differences that no rule explains", file=sys.stderr)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
