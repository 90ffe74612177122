"""Prints the outcomes of `make fuzz` as a table: python fuzz_report.py FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fuzz_worker import Kind


def table(counts: dict[str, dict[str, int]]) -> str:
    """A row for each kind of input, and one for all."""
    total = {kind: sum(found.get(kind, 0) for found in counts.values()) for kind in Kind}
    rows = [["input", "cases", *Kind]]
    for name, found in [*sorted(counts.items()), ("all", total)]:
        rows.append([name, str(sum(found.values())), *(str(found.get(kind, 0)) for kind in Kind)])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table({path.stem: json.loads(path.read_bytes()) for path in Path(sys.argv[1]).glob("*.json")}))
