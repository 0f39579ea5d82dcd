#!/usr/bin/env python3
"""Enforces the include rule: an include may only point down the list of rooms, and siblings never include each other.

    scripts/check_includes.py [ROOT]
"""
import pathlib
import re
import sys

# From the bottom up; rooms on one line are siblings. A new room gets its place here.
ROOMS = ["base", "layout runtime", "weight", "checkpoint quantize pack reference cpu kernels", "registry calibration", "dispatch",
         "capi bench", "cli python tests"]
RANK = {room: rank for rank, line in enumerate(ROOMS) for room in line.split()}
# A public header ranks with the room it fronts.
FRONTS = {"nybble/result.h": "base", "nybble/types.h": "base", "nybble/launch.h": "runtime", "nybble/weight.h": "weight",
          "nybble/checkpoint.h": "checkpoint", "nybble/gguf.h": "checkpoint", "nybble/convert.h": "checkpoint",
          "nybble/quantize.h": "quantize",
          "nybble/pack.h": "pack", "nybble/statistics.h": "calibration", "nybble/scale_folds.h": "calibration",
          "nybble/gemm.h": "dispatch", "nybble/tuning.h": "dispatch", "nybble.h": "capi"}
# Stricter for two: they build and run on a machine without CUDA.
ONLY = {"checkpoint": {"base", "weight"}, "reference": {"base", "weight"}}
NO_CUDA = {"base", "weight", *ONLY}
INCLUDE = re.compile(r'\s*#\s*include\s*["<]([^">]+)[">]')
CUDA = re.compile(r"cu(da|rand|blas|b/)|nv|thrust/|cooperative_groups")
SOURCES = {".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".cu"}


def room_of(path):
    """The room that a path relative to the root lies in; None for what has no place in the list."""
    if path.parts[0] == "include":
        return FRONTS.get("/".join(path.parts[1:]))
    return path.parts[1] if path.parts[0] == "src" and len(path.parts) > 2 else path.parts[0]


def broken_rule(path, room, target, included):
    if target is None:
        if (room in NO_CUDA or path.parts[0] == "include") and CUDA.match(included):
            return f"{'a public header' if path.parts[0] == 'include' else room} needs no CUDA"
    elif target == room:
        return None
    elif room in ONLY and target not in ONLY[room]:
        return f"{room} takes only {' and '.join(sorted(ONLY[room]))}, not {target}"
    elif RANK[target] == RANK[room]:
        return f"{room} and {target} are siblings"
    elif RANK[target] > RANK[room]:
        return f"{room} lies below {target}: an include points down only"


def check(root):
    problems, count = [], 0
    tops = ("include", "src", "cli", "python", "bench", "tests")
    for file in sorted(f for top in tops for f in (root / top).rglob("*") if f.suffix in SOURCES):
        path, count = file.relative_to(root), count + 1
        room = room_of(path)
        if room not in RANK:
            problems.append(f"{path}:1: has no place in the list of rooms; give it one in scripts/check_includes.py")
            continue
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            if not (found := INCLUDE.match(line)):
                continue
            candidates = (base / found[1] for base in (file.parent, root / "src", root / "include", root))
            inside = (c.resolve() for c in candidates if c.is_file() and c.resolve().is_relative_to(root))
            target_path = next(inside, None)
            target = room_of(target_path.relative_to(root)) if target_path else None
            if target_path and target not in RANK:
                continue  # reported at the file itself
            if rule := broken_rule(path, room, target, found[1]):
                problems.append(f'{path}:{number}: includes "{found[1]}", but {rule}')
    return problems, count


def main(root="."):
    problems, count = check(pathlib.Path(root).resolve())
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    if count == 0:
        sys.exit(f"check_includes: no source file under {root}")
    print(f"includes: {count} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
