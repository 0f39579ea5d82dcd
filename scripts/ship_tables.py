#!/usr/bin/env python3
"""Writes the tables that ship, src/dispatch/tables/GPU.inc, from all that was tuned on the GPU: bench/results/GPU/tune/*.json.

    scripts/ship_tables.py [--check] [ROOT]

Where a kernel was measured on a problem more than once, the mean counts. With --check it changes nothing and fails where a
table is not what its measurements make it.
"""
import argparse
import json
import pathlib
import re
import statistics
import sys

GPUS = {"h200": "NVIDIA H200"}
HEAD = "// Written by scripts/ship_tables.py from bench/results/{}/tune/*.json; tune and run it again rather than change it here.\n"
HOPELESS = 2  # a kernel that takes so many times as long as the best one tells nothing that a choice could need
PROBLEM = re.compile(r"m(\d+) n(\d+) k(\d+) (.+)")


def read_times(files, gpu):
    """{format: {kernel: {(n, k): {m: [us]}}}} and what the files say of themselves."""
    times, origins = {}, []
    for file in files:
        table = json.loads(file.read_text(encoding="utf-8"))
        if table.get("kind") != "tuning table" or table["schema"] != 1:
            sys.exit(f"ship_tables: {file} is no tuning table of schema 1")
        if table["gpu"] != gpu:
            sys.exit(f"ship_tables: {file} was measured on {table['gpu']}, not on {gpu}")
        if table["kernels"] is not None:
            sys.exit(f"ship_tables: {file} was measured with --kernel {table['kernels']}; plans by it would choose no other kernel, "
                     "so only tables without it ship")
        origins.append(f"// {file.name}: driver {table['driver']}, CUDA {table['cuda']}, commit {table['commit']}, {table['date']}\n")
        for row in table["rows"]:
            m, n, k, words = PROBLEM.fullmatch(row["problem"]).groups()
            limit = HOPELESS * min((kernel["us"] for kernel in row["kernels"]), default=0)
            for kernel in row["kernels"]:
                if kernel["us"] > limit:
                    continue
                shape = times.setdefault(words, {}).setdefault(kernel["kernel"], {}).setdefault((int(n), int(k)), {})
                shape.setdefault(int(m), []).append(kernel["us"])
    return times, origins


def digits(us):
    """Four that matter: finer than any measurement is repeatable."""
    return f"{us:.4g}" if us < 1000 else f"{us:.0f}"


def table_text(name, times, origins):
    lines = [HEAD.format(name), *origins]
    for words in sorted(times):
        lines.append(f'FORMAT("{words}")\n')
        for kernel in sorted(times[words]):
            lines.append(f"KERNEL({kernel})\n")
            for (n, k), by_m in sorted(times[words][kernel].items()):
                points = " ".join(f"AT({m}, {digits(statistics.mean(us))})" for m, us in sorted(by_m.items()))
                lines.append(f"SHAPE({n}, {k}) {points}\n")
    return "".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    arguments = parser.parse_args()
    stale = 0
    for name, gpu in GPUS.items():
        files = sorted((arguments.root / "bench/results" / name / "tune").glob("*.json"))
        text = table_text(name, *read_times(files, gpu))
        path = arguments.root / f"src/dispatch/tables/{name}.inc"
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not what the measurements make it; run scripts/ship_tables.py", file=sys.stderr)
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
