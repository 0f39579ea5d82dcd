#!/usr/bin/env python3
"""Writes the measured table of README.md from the result files of the bench.

    scripts/readme_table.py [--check] [--results bench/results/h200] [README.md]

The table stands between the lines <!-- table:begin --> and <!-- table:end -->. --check changes nothing and fails when the
README does not say what the result files say.
"""
import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
# The layers of Llama-3-8B and Llama-3-70B that differ in size, as n x k.
SHAPES = ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (57344, 8192), (8192, 28672))


def duty_of(m):
    return "idle10" if m < 256 else "burst"


def wanted(row):
    """What the table shows: bf16, groups of 128, symmetric, overlapping launches, the chip rested as its m needs."""
    return (row["impl"] == "nybble" and row["act"] == "bf16" and row["format"] == "int4" and row["group_size"] == 128
            and row["zero_point"] == "none" and row["pdl"] is not False and row["duty"] == duty_of(row["m"])
            and row["us"] is not None)


def newest_rows(folder):
    """{(n, k, m): (row, file)}; where several files measured one problem, the latest counts."""
    files = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("schema") != 1:
            sys.exit(f"readme_table: {path}: schema is {result.get('schema')!r}, not 1")
        files.append((result["date"], path.name, result))
    rows = {}
    for _, name, result in sorted(files, key=lambda file: file[:2]):
        for row in filter(wanted, result["rows"]):
            rows[row["n"], row["k"], row["m"]] = (row, name, result)
    return rows


def digits(us):
    return f"{us:.2f}" if us < 9.995 else f"{us:.1f}" if us < 99.95 else f"{us:.0f}"


def cell(row):
    text = digits(row["us"])
    if row["dense_us"]:
        text += f" ({row['dense_us'] / row['us']:.2f}×)"
    return text


def table(folder):
    rows = newest_rows(folder)
    tokens = [m for m in TOKENS if any((n, k, m) in rows for n, k in SHAPES)]
    if not tokens:
        return "Not measured yet.\n"
    lines = ["| n×k | " + " | ".join(f"m = {m}" for m in tokens) + " |", "|---|" + "---|" * len(tokens)]
    used = {}
    for n, k in SHAPES:
        cells = [rows.get((n, k, m)) for m in tokens]
        if not any(cells):
            continue
        lines.append(f"| {n}×{k} | " + " | ".join(cell(found[0]) if found else "" for found in cells) + " |")
        used.update({found[1]: found[2] for found in cells if found})
    sources = [f"`{name}`: {result['gpu']}, driver {result['driver']}, CUDA {result['cuda']}, commit {result['commit']}, "
               f"{result['date'][:10]}, `{result['command']}`" for name, result in sorted(used.items())]
    intro = ("Microseconds a launch (in brackets: times as fast as dense cuBLAS, measured between the same replays), bf16 "
             "activations, int4 weights in groups of 128; below m = 256 with 10 ms of idle before each replay of about 4 ms, "
             "from 256 on with 100 ms.")
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return "\n".join([intro, "", *lines, "", f"From `{where}`: " + "; ".join(sources) + ".", ""])


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readme", nargs="?", default=ROOT / "README.md", type=pathlib.Path)
    parser.add_argument("--results", default=ROOT / "bench/results/h200", type=pathlib.Path)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the table is not up to date")
    options = parser.parse_args(arguments)

    text = options.readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        sys.exit(f"readme_table: {options.readme} needs one {BEGIN} and, after it, one {END}")
    head, rest = text.split(BEGIN)
    made = f"{head}{BEGIN}\n{table(options.results.resolve())}{END}{rest.split(END)[1]}"
    if made == text:
        print("readme_table: up to date")
        return 0
    if options.check:
        print(f"readme_table: the table in {options.readme} is not what {options.results} says; run: "
              "scripts/readme_table.py", file=sys.stderr)
        return 1
    options.readme.write_text(made, encoding="utf-8")
    print(f"readme_table: wrote {options.readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
