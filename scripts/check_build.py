#!/usr/bin/env python3
"""Kernel build guards over one build folder, from the records that scripts/compile_stats.py left beside the objects.

    scripts/check_build.py [BUILD_DIR] [--allow SPILL_ALLOW_TXT]

Fails on: a spill that no row of spill_allow.txt covers, a note that wgmma was serialized or that waits were put into its
pipeline (C7510..C7519), static shared memory above 227 KiB (what a kernel takes at launch is a unit test's matter),
a compiler process above 2 GB, and on anything that would leave it blind: no kernel, an object without a fresh record.
"""
import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys

MAX_SMEM_BYTES = 227 * 1024  # what one block may use on sm_90
MAX_COMPILER_BYTES = 2 * 10**9

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
FUNCTION = re.compile(r"Function properties for (\S+)")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
SMEM = re.compile(r"Used \d+ registers.*?(\d+) bytes smem")
SERIALIZED = re.compile(r"\((C751\d)\) (.*)")


def parse_ptxas(text):
    """What `ptxas -v` said: {kernel: arch}, [(function, stack, stores, loads)], [(kernel, smem)], [(code, note)]."""
    kernels, frames, smem, notes = {}, [], [], []
    kernel = function = None
    for line in text.splitlines():
        if found := SERIALIZED.search(line):
            notes.append(found.groups())
        elif found := ENTRY.search(line):
            kernel, arch = found.groups()
            kernels[kernel] = arch
        elif found := FUNCTION.search(line):
            function = found.group(1)
        elif found := SPILL.search(line):
            frames.append((function, *map(int, found.groups())))
        elif found := SMEM.search(line):
            smem.append((kernel, int(found.group(1))))
    return kernels, frames, smem, notes


def read_allowed(path):
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            fields = line.split(None, 2)
            if len(fields) < 3 or not fields[1].isdigit():
                sys.exit(f"{path}:{number}: a row is: regular expression, bytes, reason")
            rows.append((re.compile(fields[0]), int(fields[1])))
    return rows


def demangle(names):
    names = sorted(set(names))
    try:
        shown = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return {name: name for name in names}
    return dict(zip(names, shown.splitlines()))


def read_records(build, problems):
    """The record of every object that the build system knows of; a missing or outdated one is a problem."""
    commands = build / "compile_commands.json"
    if not commands.exists():
        sys.exit(f"check_build: no {commands}; configure with CMAKE_EXPORT_COMPILE_COMMANDS=ON, as the presets do")
    records = []
    for entry in json.loads(commands.read_text()):
        words = shlex.split(entry["command"])
        target = pathlib.Path(entry["directory"], words[words.index("-o") + 1])
        record = target.with_name(target.name + ".stats.json")
        if not target.exists():
            problems.append(f"{entry['file']}: not built; run: make build")
        elif not record.exists() or record.stat().st_mtime < target.stat().st_mtime - 1:
            problems.append(f"{entry['file']}: built without scripts/compile_stats.py as its compiler launcher")
        else:
            records.append(json.loads(record.read_text()))
    return records


def busy_seconds(records):
    """Time in which at least one compiler ran: the length of the union of all [start, start + seconds)."""
    total = end = 0.0
    for begin, seconds in sorted((record["start"], record["seconds"]) for record in records):
        total += max(0.0, begin + seconds - max(begin, end))
        end = max(end, begin + seconds)
    return total


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("build", nargs="?", default="build/full", type=pathlib.Path)
    arguments.add_argument("--allow", default=pathlib.Path(__file__).with_name("spill_allow.txt"), type=pathlib.Path)
    arguments = arguments.parse_args()

    problems = []
    allowed = read_allowed(arguments.allow)
    records = read_records(arguments.build, problems)
    parsed = [(record["source"], *parse_ptxas(record["ptxas"])) for record in records]
    shown = demangle([name for _, kernels, frames, _, _ in parsed for name in [*kernels, *(f[0] for f in frames)]])
    kernel_count = sum(len(kernels) for _, kernels, *_ in parsed)
    if kernel_count == 0:
        problems.append(f"no kernel found in {arguments.build}: the guards have nothing to judge")

    excused, frames_only, used = 0, 0, set()
    for source, kernels, frames, smem, notes in parsed:
        for name, stack, stores, loads in frames:
            if stores or loads:
                rows = [row for row in allowed if row[0].search(shown[name]) or row[0].search(name)]
                used.update(rows)
                if any(max(stores, loads) <= limit for _, limit in rows):
                    excused += 1
                else:
                    more = f", {max(limit for _, limit in rows)} allowed" if rows else ""
                    problems.append(f"{source}: spills {stores} bytes of stores, {loads} of loads{more}: {shown[name]}")
            elif stack:
                frames_only += 1
        for name, size in smem:
            if size > MAX_SMEM_BYTES:
                problems.append(f"{source}: {size} bytes of shared memory, {MAX_SMEM_BYTES} is the most: {shown[name]}")
        for code, note in notes:
            problems.append(f"{source}: {code}: {note}")
    for record in records:
        if record["peak_bytes"] > MAX_COMPILER_BYTES:
            problems.append(f"{record['source']}: a compiler process took {record['peak_bytes'] / 1e9:.2f} GB, 2 GB is the most")

    print(f"build: {kernel_count} kernels in {sum(bool(kernels) for _, kernels, *_ in parsed)} of {len(records)} objects, "
          f"{excused} excused spills, {frames_only} functions with a stack frame")
    for row in allowed:
        if row not in used:
            print(f"build: note: no kernel here needs the row of {arguments.allow.name}: {row[0].pattern}")
    if records:
        largest = max(records, key=lambda record: record["peak_bytes"])
        print(f"build: largest compiler process {largest['peak_bytes'] / 1e9:.2f} GB ({largest['source']})")
        slowest = max(records, key=lambda record: record["seconds"])
        print(f"build: compilers ran for {busy_seconds(records):.0f} s, {sum(r['seconds'] for r in records):.0f} s one "
              f"after the other, longest {slowest['seconds']:.0f} s ({slowest['source']})")
    for problem in dict.fromkeys(problems):
        print(f"check_build: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
