#!/usr/bin/env python3
"""Writes the measured tables of README.md, or of another document, from the result files of the bench.

    scripts/readme_table.py [--check] [--results bench/results/h200] [README.md]

A table stands between the lines <!-- table:NAME:begin --> and <!-- table:NAME:end -->:
    times    microseconds, and how many times as fast as dense cuBLAS
    floor    share of the speed that memory or tensor cores allow
    dense    how many times as fast as dense cuBLAS, and the geometric mean of all shapes measured
    humming  the same against humming-kernels, as bench/peers/humming.py measures it
    quality_smollm2, quality_debian
             perplexity, divergence from the dense model and agreement of each way to quantize that model (--results
             bench/results/quality, which examples/quality.py writes)
A document has one of each at most. --check changes nothing and fails when a document does not say what the result files
say.
"""
import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import result_files  # noqa: E402  (it lies with the bench)

MARKER = re.compile(r"<!-- table:(\w+):(begin|end) -->")
FEW_TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
MANY_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192)
# The layers of Llama-3-8B and Llama-3-70B that differ in size, as n x k.
SHAPES = ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (57344, 8192), (8192, 28672))


def duty_of(m):
    return "idle10" if m < 256 else "burst"


def wanted(row):
    """What the table shows: bf16, groups of 128, symmetric, overlapping launches, the chip rested as its m needs."""
    return (row.get("impl") == "nybble" and result_files.is_layer(row) and row["act"] == "bf16"
            and row["format"] == "int4" and row["group_size"] == 128
            and row["zero_point"] == "none" and row["pdl"] is not False and row["duty"] == duty_of(row["m"])
            and row["us"] is not None)


def newest(folder, found_in):
    """{(n, k, m): (value, file's name, file)} of what found_in(file) lists as (row, value); where several files have one
    problem, the latest counts."""
    files = sorted(((result_files.load(path), path.name) for path in folder.glob("*.json")),
                   key=lambda file: (file[0]["date"], file[1]))
    return {(row["n"], row["k"], row["m"]): (value, name, result) for result, name in files
            for row, value in found_in(result) if wanted(row)}


def digits(us):
    return f"{us:.2f}" if us < 9.995 else f"{us:.1f}" if us < 99.95 else f"{us:.0f}"


def time_cell(row):
    text = digits(row["us"])
    if row["dense_us"]:
        text += f" ({row['dense_us'] / row['us']:.2f}×)"
    return text


def table(found, tokens, intro, cell, folder, with_mean=False):
    tokens = [m for m in tokens if any((n, k, m) in found for n, k in SHAPES)]
    if not tokens:
        return "Not measured yet.\n"
    lines = ["| n×k | " + " | ".join(f"m = {m}" for m in tokens) + " |", "|---|" + "---|" * len(tokens)]
    used = {}
    for n, k in SHAPES:
        cells = [found.get((n, k, m)) for m in tokens]
        if not any(cells):
            continue
        lines.append(f"| {n}×{k} | " + " | ".join(cell(one[0]) if one else "" for one in cells) + " |")
        used.update({one[1]: one[2] for one in cells if one})
    if with_mean:
        columns = [[one for (_, _, m), one in found.items() if m == token] for token in tokens]
        shapes = len({(n, k) for n, k, m in found if m in tokens})
        lines.append(f"| geometric mean of {shapes} shapes | " +
                     " | ".join(cell(result_files.geomean(one[0] for one in column)) for column in columns) + " |")
        used.update({one[1]: one[2] for column in columns for one in column})
    sources = [f"`{name}`: {result['gpu']}, driver {result['driver']}, CUDA {result['cuda']}, commit {result['commit']}, "
               f"{result['date'][:10]}, `{result['command']}`" for name, result in sorted(used.items())]
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return "\n".join([intro, "", *lines, "", f"From `{where}`: " + "; ".join(sources) + ".", ""])


SETTING = ("bf16 activations, int4 weights in groups of 128; below m = 256 with 10 ms of idle before each replay of about "
           "4 ms, from 256 on with 100 ms.")


def times_table(folder):
    found = newest(folder, lambda file: [(row, row) for row in file["rows"]])
    return table(found, FEW_TOKENS, "Microseconds a launch (in brackets: times as fast as dense cuBLAS, measured between "
                 "the same replays), " + SETTING, time_cell, folder)


def floor_table(folder):
    found = newest(folder, lambda file: [(row, row["floor_us"] / row["us"]) for row in file["rows"] if row.get("floor_us")])
    return table(found, MANY_TOKENS, "Share of the floor's speed, the floor being what memory at 4.73 TB/s or tensor cores "
                 "at 860 TFLOP/s need; " + SETTING, "{:.2f}".format, folder)


def dense_table(folder):
    found = newest(folder, lambda file: [(row, row["dense_us"] / row["us"]) for row in file["rows"] if row.get("dense_us")])
    return table(found, MANY_TOKENS, "Times as fast as dense cuBLAS, measured between the same replays; " + SETTING,
                 "{:.2f}×".format, folder, with_mean=True)


def humming_table(folder):
    def pairs(file):
        return [(ours, other["us"] / ours["us"]) for ours, other in result_files.against(file["rows"], "humming")]

    found = newest(folder, pairs)
    peers = {file["peers"]["humming"] for _, _, file in found.values()}
    return table(found, MANY_TOKENS, f"Times as fast as {' and '.join(sorted(peers))}, measured in the same run on the same "
                 "chip; " + SETTING, "{:.2f}×".format, folder, with_mean=True)


def quality_table(folder, model):
    path = folder / f"{model}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    result = result_files.load(path)
    groups = sorted({row["group_size"] for row in result["rows"]}, reverse=True)
    found = {(row["method"], row["grid"], row["group_size"]): row for row in result["rows"]}
    shown = (("KL", "mean_kl", "{:.4f}"), ("perplexity", "perplexity", "{:.3f}"), ("top-1", "top1_agreement", "{:.3f}"))
    lines = ["| method | grid | " + " | ".join(f"{title} g{group}" for title, _, _ in shown for group in groups) + " |",
             "|---|---|" + "---|" * (len(shown) * len(groups))]
    for method, grid in dict.fromkeys((row["method"], row["grid"]) for row in result["rows"]):
        cells = [form.format(found[method, grid, group][key]) if (method, grid, group) in found else ""
                 for _, key, form in shown for group in groups]
        lines.append(f"| {method} | {grid} | " + " | ".join(cells) + " |")
    protocol = result["protocol"]
    words = [f"Dense perplexity {result['dense_perplexity']:.3f}; {protocol['tokens']} tokens scored in windows of "
             f"{protocol['context']} every {protocol['stride']}; calibrated on {protocol['calibration_tokens']} tokens. KL in "
             "nats a token.", "", *lines, ""]
    if "own_grid" in result:
        grid = result["own_grid"]
        words += [f"Asymmetric RTN at 32 finds {grid['equal']} of the file's own {grid['codes']} codes again "
                  f"({100 * grid['equal'] / grid['codes']:.3f} %).", ""]
    commits, dates = ([*dict.fromkeys(of(row) for row in sorted(result["rows"], key=lambda row: row["date"]))]
                      for of in (lambda row: row["commit"], lambda row: row["date"][:10]))
    return "\n".join([*words, f"From `{path.name}`: {result['runs']}; {result['processor']}, commit "
                      f"{' and '.join(commits)}, {' and '.join(dates)}.", ""])


def quality_smollm2_table(folder):
    return quality_table(folder, "SmolLM2-135M-Instruct")


def quality_debian_table(folder):
    return quality_table(folder, "debian-llama")


TABLES = {"times": times_table, "floor": floor_table, "dense": dense_table, "humming": humming_table,
          "quality_smollm2": quality_smollm2_table, "quality_debian": quality_debian_table}


def with_tables(text, document, folder):
    """The text with every table in it made anew."""
    marks = [(mark.group(1), mark.group(2), mark) for mark in MARKER.finditer(text)]
    names = [name for name, which, _ in marks if which == "begin"]
    if not names or [mark[:2] for mark in marks] != [(name, which) for name in names for which in ("begin", "end")]:
        sys.exit(f"readme_table: {document} needs <!-- table:NAME:begin --> and, after it, <!-- table:NAME:end -->, one "
                 "pair after the other")
    for name in names:
        if name not in TABLES or names.count(name) > 1:
            sys.exit(f"readme_table: {document}: table '{name}' is unknown or stands there twice; known are "
                     f"{', '.join(TABLES)}")
    made, end = "", 0
    for (name, _, begin), (_, _, close) in zip(marks[::2], marks[1::2]):
        made += f"{text[end:begin.end()]}\n{TABLES[name](folder)}"
        end = close.start()
    return made + text[end:]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readme", nargs="?", default=ROOT / "README.md", type=pathlib.Path)
    parser.add_argument("--results", default=ROOT / "bench/results/h200", type=pathlib.Path)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table is not up to date")
    options = parser.parse_args(arguments)

    text = options.readme.read_text(encoding="utf-8")
    made = with_tables(text, options.readme, options.results.resolve())
    if made == text:
        print("readme_table: up to date")
        return 0
    if options.check:
        print(f"readme_table: a table in {options.readme} is not what {options.results} says; run: "
              "scripts/readme_table.py", file=sys.stderr)
        return 1
    options.readme.write_text(made, encoding="utf-8")
    print(f"readme_table: wrote {options.readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
