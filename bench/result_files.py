"""Result files of `nybble bench` (schema 1, bench/results.h), for the scripts that read and write them."""
import json
import math
import os
import pathlib
import sys

SCHEMA = 1


def load(path):
    """The file as a dictionary; ends the program in words where it is none."""
    try:
        result = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        sys.exit(f"{path}: schema is {result.get('schema') if isinstance(result, dict) else None!r}, not {SCHEMA}")
    return result


def save(result, path):
    """Atomically, one row a line, as `nybble bench` writes it."""
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
    rows = ",".join("\n  " + json.dumps(row, separators=(",", ":")) for row in result["rows"])
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(f'{head[:-2]},\n "rows": [{rows}\n ]\n}}\n', encoding="utf-8")
    os.replace(part, path)


def key(row):
    """Two rows with the same key answer the same question."""
    return row["problem"], row["impl"], row["duty"], row["pdl"]


def is_layer(row):
    """A row of one layer, not of a chain of several."""
    return row["n"] is not None


def geomean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def against(rows, impl):
    """[(nybble's row, the other implementation's)] for every problem and duty that both have, in nybble's order. The kernels
    as they are used: with overlapping launches."""
    others = {(row["problem"], row["duty"]): row for row in rows if row.get("impl") == impl}
    ours = [row for row in rows if row.get("impl") == "nybble" and row["pdl"] is not False and is_layer(row)]
    return [(row, others[row["problem"], row["duty"]]) for row in ours if (row["problem"], row["duty"]) in others]
