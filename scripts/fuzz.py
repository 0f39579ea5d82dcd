#!/usr/bin/env python3
"""Fuzzes the parsers: builds the fuzzer of tests/fuzz (preset `fuzz`, clang), runs its targets, adds up the executions.

    scripts/fuzz.py                                    # every target for a minute
    scripts/fuzz.py --minutes 30 --jobs 16 --targets gguf,reader-gptq
    scripts/fuzz.py --executions 2000                  # of each target
    scripts/fuzz.py --program build/fuzz/nybble_fuzz   # on a machine without clang: nothing is built
    scripts/fuzz.py --total                            # the sum of the ledger; with --add FILE another machine's runs

Corpora, logs and what was found lie in --corpus (build/fuzz/corpus). --ledger FILE (tests/fuzz/ledger.json) keeps the
executions per target and commit. Exit status: 0, 1 where something was found, 77 where clang is missing.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEDGER = ROOT / "tests" / "fuzz" / "ledger.json"


def build():
    """The program, built with the preset `fuzz`."""
    for command in (["cmake", "--preset", "fuzz"], ["cmake", "--build", "build/fuzz", "--parallel", str(os.cpu_count())]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"fuzz: {' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return ROOT / "build" / "fuzz" / "nybble_fuzz"


def run_target(program, target, corpus, arguments, number):
    """One run of one target; its entry for the ledger."""
    folder, found = corpus / target, corpus / "found" / target
    found.mkdir(parents=True, exist_ok=True)
    limit = [f"-runs={arguments.executions}"] if arguments.executions else \
        [f"-max_total_time={max(1, int(arguments.minutes * 60))}"]
    log = corpus / "logs" / f"{target}-{number}.log"
    log.parent.mkdir(exist_ok=True)
    # Where an allocation was made is recorded shortly: found again, an input tells it in full.
    environment = os.environ | {"ASAN_OPTIONS": "malloc_context_size=1:quarantine_size_mb=1"}
    started = time.monotonic()
    with log.open("w") as out:
        status = subprocess.run(
            [program, f"--target={target}", folder, f"-artifact_prefix={found}/", *limit, "-len_control=0", "-entropic=0",
             "-max_len=16384", "-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=128", "-print_final_stats=1",
             f"-seed={arguments.seed + number if arguments.seed else 0}"], stdout=out, stderr=out, check=False, env=environment).returncode
    text = log.read_text(errors="replace")
    units = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    seen = re.findall(r"^#(\d+)", text, re.M)  # where it ended too early for its statistics
    cover = re.findall(r"cov: (\d+)", text)
    return {"target": target, "executions": int(units[-1] if units else seen[-1] if seen else 0),
            "seconds": round(time.monotonic() - started, 1), "edges": int(cover[-1]) if cover else 0,
            "found": 1 if status else 0, "log": str(log)}


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read_ledger(path):
    return json.loads(path.read_text()) if path.exists() else {"runs": []}


def add_up(runs):
    """The runs with those of one target and commit made one; `found` counts what was found."""
    merged = {}
    for run in runs:
        one = merged.setdefault((run["commit"], run["target"]),
                                {"commit": run["commit"], "target": run["target"], "executions": 0, "seconds": 0,
                                 "edges": 0, "found": 0})
        for key in ("executions", "found"):
            one[key] += run[key]
        one["seconds"] = round(one["seconds"] + run["seconds"], 1)
        one["edges"] = max(one["edges"], run["edges"])
    return [merged[key] for key in sorted(merged)]


def write_ledger(path, runs):
    runs = add_up(runs)
    lines = ",\n".join("  " + json.dumps(run) for run in runs)
    path.write_text('{"executions": %d, "runs": [\n%s\n]}\n' % (sum(run["executions"] for run in runs), lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--targets", help="names, with commas between; all when not given")
    parser.add_argument("--minutes", type=float, default=1, help="of each target")
    parser.add_argument("--executions", type=int, default=0, help="of each target, instead of minutes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--processes", type=int, default=1, help="of each target, over one corpus")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--program", type=pathlib.Path, help="a built fuzzer; without it, it is built")
    parser.add_argument("--corpus", type=pathlib.Path, default=ROOT / "build" / "fuzz" / "corpus")
    parser.add_argument("--ledger", type=pathlib.Path, help="write what was done into this file, too")
    parser.add_argument("--add", type=pathlib.Path, help="another ledger, to be added to --ledger")
    parser.add_argument("--total", action="store_true", help="run nothing; print the ledger's sum")
    arguments = parser.parse_args()
    if arguments.total or arguments.add:
        path = arguments.ledger or LEDGER
        runs = read_ledger(path)["runs"]
        if arguments.add:
            runs += read_ledger(arguments.add)["runs"]
            write_ledger(path, runs)
        print(f"{sum(run['executions'] for run in runs)} executions, {sum(run['found'] for run in runs)} findings")
        return 0
    if arguments.program is None and shutil.which("clang++") is None:
        print(f"{__file__}:1: Skipped\nclang++ is missing, which the fuzzer is built with; scripts/setup.sh installs it")
        return 77
    program = (arguments.program or build()).resolve()
    corpus = arguments.corpus.resolve()
    subprocess.run([program, f"--write-seeds={corpus}", f"--data={ROOT / 'tests' / 'data'}"], check=True)
    targets = arguments.targets.split(",") if arguments.targets else \
        subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    work = [(target, number) for number in range(arguments.processes) for target in targets]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(lambda one: run_target(program, one[0], corpus, arguments, one[1]), work))
    for run in runs:
        rate = run["executions"] / max(run["seconds"], .1)
        words = f", FOUND something: {run['log']}" if run["found"] else ""
        print(f"{run['target']:28} {run['executions']:12} executions {rate:9.0f} a second {run['edges']:6} edges{words}")
    print(f"{sum(run['executions'] for run in runs)} executions in total")
    if arguments.ledger:
        write_ledger(arguments.ledger, read_ledger(arguments.ledger)["runs"] + [run | {"commit": commit()} for run in runs])
    return 1 if any(run["found"] for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
