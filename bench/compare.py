#!/usr/bin/env python3
"""Judges result files of `nybble bench`: two runs, nybble and another implementation of one run, or times over m.

    bench/compare.py OLD.json NEW.json [--threshold PERCENT] [--impl nybble]
    bench/compare.py FILE.json... --against cublas|humming [--ranges 1-8:1.6,16-64:1.4,128-512:1.15,1024-:1.04]
    bench/compare.py FILE.json... --monotone PERCENT

Two runs: a row is slower (or faster) when it differs by more than the threshold and by more than both runs' spread. Prints
the rows that differ, the geometric mean of all, and a verdict.

--against: within each file, every nybble row beside the other implementation's row of the same problem and duty cycle.
Prints the geometric mean of how many times as fast nybble is, for each range of m, and every row where it is slower; a row
that is slower by less than both spreads is marked as within them, and counts as no failure. A range may demand a geometric
mean: 1-8:1.6. Rows of one problem in several files are each counted.

--monotone: a time may not exceed by more than PERCENT the time of any larger m of the same shape, kernel options and duty
cycle. Times of different duty cycles are never compared with each other, since the chip's clock differs between them: how
many neighbouring m a change of duty cycle leaves uncompared is said. Where one problem was measured in several files, the
latest counts.

Exit code: 0 all is well, 1 the verdict is bad, 2 nothing to compare.
"""
import argparse
import sys

import result_files


def judge(old, new, threshold):
    """The ratio new / old, and "slower", "faster" or "same"."""
    ratio = new["us"] / old["us"]
    noise = max(threshold, old["spread"], new["spread"])
    return ratio, "slower" if ratio > 1 + noise else "faster" if ratio < 1 / (1 + noise) else "same"


def two_runs(old_file, new_file, options):
    def rows_of(file):
        return {result_files.key(row): row for row in file["rows"] if options.impl in (row["impl"], "all")}

    old_rows, new_rows = rows_of(old_file), rows_of(new_file)
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
    mean = result_files.geomean(new_rows[key]["us"] / old_rows[key]["us"] for key in common)
    for what, missing in (("old", len(new_rows) - len(common)), ("new", len(old_rows) - len(common))):
        if missing:
            print(f"{missing} rows are not in the {what} file")
    print(f"{len(common)} rows compared: {counts['faster']} faster, {counts['slower']} slower, {counts['same']} the same; "
          f"geometric mean of time {(mean - 1) * 100:+.1f} %")
    print("verdict: SLOWER" if counts["slower"] else "verdict: faster" if counts["faster"] else "verdict: the same")
    return 1 if counts["slower"] else 0


class Range:
    """Token counts from first to last, and the geometric mean that is demanded there, if any."""

    def __init__(self, text):
        span, _, demand = text.partition(":")
        first, dash, last = span.partition("-")
        self.first = int(first)
        self.last = (int(last) if last else None) if dash else self.first
        self.demand = float(demand) if demand else None

    def __contains__(self, m):
        return m >= self.first and (self.last is None or m <= self.last)

    def __str__(self):
        if self.last == self.first:
            return f"m = {self.first}"
        return f"m >= {self.first}" if self.last is None else f"m = {self.first} to {self.last}"


def ranges_of(text):
    try:
        return [Range(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of ranges such as 1-8:1.6,16-64,1024-") from None


def against(files, options):
    pairs = [pair for file in files for pair in result_files.against(file["rows"], options.against)]
    if not pairs:
        print(f"no nybble row has a row of {options.against} beside it", file=sys.stderr)
        return 2
    bad = False
    by_duty = {}
    for ours, other in pairs:
        by_duty.setdefault(ours["duty"], []).append((ours["m"], other["us"] / ours["us"]))
    for duty, rows in by_duty.items():
        print(f"{duty}: {len(rows)} rows, nybble {result_files.geomean(times for _, times in rows):.3f} times as fast as "
              f"{options.against} (geometric mean)")
    for span in options.ranges:
        times = [other["us"] / ours["us"] for ours, other in pairs if ours["m"] in span]
        if not times:
            print(f"{span}: no rows")
            bad |= span.demand is not None
            continue
        mean, verdict = result_files.geomean(times), ""
        if span.demand is not None:
            fails = mean < span.demand
            bad |= fails
            verdict = f", {span.demand:g} is demanded: {'NOT REACHED' if fails else 'reached'}"
        print(f"{span}: {len(times)} rows, geometric mean {mean:.3f} times, least {min(times):.3f}{verdict}")
    slower = within = 0
    for ours, other in sorted(pairs, key=lambda pair: pair[1]["us"] / pair[0]["us"]):
        ratio, verdict = judge(other, ours, 0)
        if ratio <= 1:
            break
        slower += verdict == "slower"
        within += verdict != "slower"
        print(f"slower  {ours['us']:10.2f} us, {options.against} {other['us']:10.2f} us  {(ratio - 1) * 100:+6.1f} %  "
              f"{ours['problem']} {ours['duty']}{'' if verdict == 'slower' else ' (within the spread)'}")
    print(f"{len(pairs)} rows: nybble is slower in {slower}, and in {within} by less than the spread")
    bad |= slower > 0
    print("verdict: FAIL" if bad else "verdict: pass")
    return 1 if bad else 0


def monotone(files, options):
    series = {}  # {(the problem without its first word, which is m; with PDL or without): {duty: {m: row}}}
    for file in sorted(files, key=lambda file: file["date"]):
        for row in file["rows"]:
            if row["impl"] == options.impl and result_files.is_layer(row):
                shape = row["problem"].partition(" ")[2], row["pdl"]
                series.setdefault(shape, {}).setdefault(row["duty"], {})[row["m"]] = row
    if not series:
        print(f"no row of {options.impl}", file=sys.stderr)
        return 2
    bad = compared = uncompared = 0
    for duties in series.values():
        for duty, rows in duties.items():
            for m, row in rows.items():
                larger = [other for other in rows.values() if other["m"] > m]
                if not larger:
                    continue
                compared += 1
                fastest = min(larger, key=lambda other: other["us"])
                excess = row["us"] / fastest["us"] - 1
                if excess > options.monotone / 100:
                    bad += 1
                    print(f"m = {m}: {row['us']:.2f} us, {excess * 100:.1f} % above m = {fastest['m']} "
                          f"({fastest['us']:.2f} us)  n{row['n']} k{row['k']} {duty}; spreads {row['spread'] * 100:.1f} and "
                          f"{fastest['spread'] * 100:.1f} %; {row['kernel']} and {fastest['kernel']}")
        # Neighbours over all m that no duty cycle has both of.
        all_m = sorted({m for rows in duties.values() for m in rows})
        uncompared += sum(not any(a in rows and b in rows for rows in duties.values()) for a, b in zip(all_m, all_m[1:]))
    print(f"{len(series)} shapes, {compared} times compared with those of larger m: {bad} exceed one by more than "
          f"{options.monotone:g} %")
    if uncompared:
        print(f"{uncompared} pairs of neighbouring m were measured in different duty cycles only, and not compared")
    print("verdict: FAIL" if bad else "verdict: pass")
    return 1 if bad else 0


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--threshold", type=float, default=3, metavar="PERCENT",
                        help="of two runs: differences below do not count (3)")
    parser.add_argument("--impl", default="nybble", help="rows of this implementation, of two runs also all (nybble)")
    parser.add_argument("--against", metavar="IMPL", help="compare nybble with this implementation in the same files")
    parser.add_argument("--ranges", type=ranges_of, default="1-8,9-15,16-64,65-127,128-512,513-1023,1024-",
                        help="of m, each with its geometric mean, and after a colon what that must reach (%(default)s)")
    parser.add_argument("--monotone", type=float, metavar="PERCENT", help="times may exceed those of larger m by this much")
    options = parser.parse_args(arguments)
    if options.against and options.monotone is not None:
        parser.error("--against and --monotone are two questions: ask one at a time")
    files = [result_files.load(path) for path in options.files]
    if options.against:
        return against(files, options)
    if options.monotone is not None:
        return monotone(files, options)
    if len(files) != 2:
        parser.error(f"two runs are compared, {len(files)} files were given; --against and --monotone take any number")
    return two_runs(*files, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
