#!/usr/bin/env -S python3 -SE
"""Compiler launcher (CMAKE_<LANG>_COMPILER_LAUNCHER): runs one compilation and writes OBJECT.stats.json beside its object.

The record holds wall time, the peak memory of the largest process in the compilation, and what ptxas said about each
kernel; scripts/check_build.py judges it. nvcc is asked for ptxas's report here, so that the report and its reader are
switched on together; the report itself is kept off the terminal, all other messages go through.
"""
import json
import os
import re
import resource
import subprocess
import sys
import time

# Lines of `ptxas -v`; those with a code, such as (C7510), are news for the person at the terminal and stay.
REPORT = re.compile(r"ptxas info\s+: (?!\(C\d)|\s+\d+ bytes stack frame, ")


def main(command):
    objects = [value for flag, value in zip(command, command[1:]) if flag == "-o"]
    if "-c" not in command or not objects:
        os.execvp(command[0], command)
    record_path = objects[0] + ".stats.json"
    if os.path.exists(record_path):
        os.remove(record_path)
    is_cuda = os.path.basename(command[0]).startswith("nvcc")
    start = time.time()
    done = subprocess.run(command[:1] + ["-Xptxas=-v"] * is_cuda + command[1:], stderr=subprocess.PIPE)
    seconds = time.time() - start
    lines = done.stderr.decode(errors="replace").splitlines(keepends=True)
    sys.stderr.write("".join(line for line in lines if not REPORT.match(line)))
    if done.returncode == 0:
        record = {
            "object": objects[0],
            "source": command[command.index("-c") + 1],
            "start": start,
            "seconds": seconds,
            "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            "ptxas": "".join(line for line in lines if is_cuda and "ptxas" in line or REPORT.match(line)),
        }
        with open(record_path, "w") as out:
            json.dump(record, out, indent=1)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
