#!/usr/bin/env python3
"""The objects compiled for one instruction set (src/cpu/*_avx2.cc, *_avx512.cc) offer the linker no weak function but
Eigen's, under the object's own name for it: any other could replace the plain copy that the rest of the program calls.

    isa_symbols_test.py OBJECT...
"""
import pathlib
import re
import subprocess
import sys

WEAK = re.compile(r"^[0-9a-f]* +([WVu]) +(.*)$")


def weak_symbols(path):
    listing = subprocess.run(["nm", "--demangle", str(path)], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        if found := WEAK.match(line):
            yield found[2]


def main():
    objects = {path: found[1] for path in map(pathlib.Path, sys.argv[1:]) if (found := re.search(r"_(avx\w+)\.cc\.o", path.name))}
    if set(objects.values()) != {"avx2", "avx512"}:
        sys.exit(f"isa_symbols_test: expected objects for avx2 and avx512, found {sorted(set(objects.values()))}")
    problems = 0
    for path, isa in objects.items():
        names = list(weak_symbols(path))
        for name in names:
            if f"nybble_eigen_{isa}::" not in name and not name.startswith("DW.ref."):
                print(f"{path.name}: {name} may be picked for plain code", file=sys.stderr)
                problems += 1
        print(f"{path.name}: {len(names)} weak symbols looked at")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
