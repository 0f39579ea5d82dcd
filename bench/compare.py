#!/usr/bin/env python3
"""Compares two result files of `nybble bench`, row by row, and ends in a verdict.

    bench/compare.py OLD.json NEW.json [--threshold PERCENT] [--impl nybble]

A row is slower (or faster) when it differs by more than the threshold and by more than both runs' spread. Prints the rows
that differ, the geometric mean of all, and a verdict. Exit code: 0 no row is slower, 1 at least one is, 2 nothing to
compare.
"""
import argparse
import json
import math
import sys


def rows_of(path, impl):
    """{key: row} of one file; the key is the question that a row answers."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if result.get("schema") != 1:
        sys.exit(f"{path}: schema is {result.get('schema')!r}, not 1")
    rows = {(row["problem"], row["impl"], row["duty"], row["pdl"]): row for row in result["rows"]
            if impl in (row["impl"], "all")}
    return result, rows


def judge(old, new, threshold):
    """The ratio new / old, and "slower", "faster" or "same"."""
    ratio = new["us"] / old["us"]
    noise = max(threshold, old["spread"], new["spread"])
    return ratio, "slower" if ratio > 1 + noise else "faster" if ratio < 1 / (1 + noise) else "same"


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--threshold", type=float, default=3, metavar="PERCENT", help="differences below do not count (3)")
    parser.add_argument("--impl", default="nybble", help="rows of this implementation, or all (nybble)")
    options = parser.parse_args(arguments)

    old_file, old_rows = rows_of(options.old, options.impl)
    new_file, new_rows = rows_of(options.new, options.impl)
    for what in ("gpu", "driver", "floor"):
        if old_file.get(what) != new_file.get(what):
            print(f"note: {what} differs: {old_file.get(what)} and {new_file.get(what)}")
    common = [key for key in old_rows if key in new_rows]
    if not common:
        print("no row stands in both files", file=sys.stderr)
        return 2

    counts = {"slower": 0, "faster": 0, "same": 0}
    for key in common:
        ratio, verdict = judge(old_rows[key], new_rows[key], options.threshold / 100)
        counts[verdict] += 1
        if verdict != "same":
            problem, impl, duty, pdl = key
            name = problem + ("" if impl == "nybble" else f" {impl}") + (" no pdl" if pdl is False else "")
            print(f"{verdict:>6}  {old_rows[key]['us']:10.2f} -> {new_rows[key]['us']:10.2f} us  {(ratio - 1) * 100:+6.1f} %  "
                  f"{name} {duty}")
    mean = math.exp(sum(math.log(new_rows[key]["us"] / old_rows[key]["us"]) for key in common) / len(common))
    for what, missing in (("old", len(new_rows) - len(common)), ("new", len(old_rows) - len(common))):
        if missing:
            print(f"{missing} rows are not in the {what} file")
    print(f"{len(common)} rows compared: {counts['faster']} faster, {counts['slower']} slower, {counts['same']} the same; "
          f"geometric mean of time {(mean - 1) * 100:+.1f} %")
    print("verdict: SLOWER" if counts["slower"] else "verdict: faster" if counts["faster"] else "verdict: the same")
    return 1 if counts["slower"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
