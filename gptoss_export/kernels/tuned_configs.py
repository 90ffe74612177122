"""Tables of cuts that were measured: how the launches of a kernel are cut, by its shape and the GPU's arch.

`gptoss-export tune` writes one, for one arch; the kernel package ships those of the GPUs that it was run on, and
`build --table` takes a user's own before them. A file is JSON:

    {"schema": 1, "arch": "sm_90", "gpu": "NVIDIA H200", "versions": {"torch": ..., "triton": ...},
     "entries": [{"name": "unembed", "shape": {"rows": 1, ...}, "tiles": {"logits": {"rows": 16, ...}},
                  "us": 255.6, "default_us": 255.6}, ...]}

An entry counts for its own shape, and for one whose `Cut.sizes` are at most twice or half as large: the nearest wins.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError, raise_all
from .kernel import Cut, Tiles

SCHEMA = 1
_TUNE_AGAIN = "it is of another version of the kernels: run gptoss-export tune again"
NEAR = 2.0  # how many times larger or smaller a size may be


@dataclass(frozen=True)
class Entry:
    """One measured cut: microseconds of a call with it, and with the kernel's own guess."""

    name: str
    shape: dict[str, int | str]
    tiles: dict[str, dict[str, int]]
    us: float
    default_us: float

    def far(self, cut: Cut) -> float | None:
        """How far its shape is from the cut's, 0 for the same; None where it does not count for it."""
        if self.name != cut.name or self.shape.keys() != cut.shape.keys():
            return None
        distance = 0.0
        for key, value in cut.shape.items():
            own = self.shape[key]
            if key in cut.sizes and value and type(own) is int and own:
                away = abs(math.log(value / own))
                if away > math.log(NEAR) + 1e-9:
                    return None
                distance += away
            elif value != own:
                return None
        return distance

    def fits(self, cut: Cut) -> bool:
        """Whether the kernels can be cut so; one of a near shape need not."""
        return all(
            value in cut.options[part].get(number, ()) or value == getattr(cut.default[part], number)
            for part, numbers in self.tiles.items() for number, value in numbers.items()
        )  # fmt: skip


@dataclass(frozen=True)
class CutTable:
    """The measured cuts of one GPU. `label` says where it comes from: GPU, versions, a digest of its file."""

    arch: str
    gpu: str
    versions: dict[str, str]
    entries: tuple[Entry, ...]
    path: Path | None = None

    @property
    def label(self) -> str:
        digest = hashlib.sha256(_text(self).encode()).hexdigest()[:12]
        versions = " ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.gpu}, {versions}, {digest}"

    def find(self, cut: Cut) -> Tiles | None:
        """The tiles of the nearest entry. Raises UsageError where the kernel has no such numbers."""
        near = [(distance, entry) for entry in self.entries if (distance := entry.far(cut)) is not None]
        expected = {part: tiles._fields for part, tiles in cut.default.items()}
        for distance, entry in sorted(near, key=lambda item: item[0]):
            found = {part: tuple(numbers) for part, numbers in entry.tiles.items()}
            if found != expected:
                raise UsageError(f"table {self.path or self.gpu}: entry {cut.name} has the tiles {found}, expected {expected}; "
                                 f"{_TUNE_AGAIN}")  # fmt: skip
            if entry.fits(cut):
                return {part: type(tiles)(**entry.tiles[part]) for part, tiles in cut.default.items()}
            if distance == 0:
                raise UsageError(f"table {self.path or self.gpu}: entry {cut.name} has the tiles {entry.tiles}, expected of "
                                 f"{cut.options}; {_TUNE_AGAIN}")  # fmt: skip
        return None

    def with_entries(self, entries: list[Entry]) -> CutTable:
        """This table with `entries` in place of those of the same shapes."""
        new = {(entry.name, json.dumps(entry.shape)): entry for entry in entries}
        kept = [entry for entry in self.entries if (entry.name, json.dumps(entry.shape)) not in new]
        return replace(self, entries=(*kept, *entries))


def write_table(table: CutTable, path: Path) -> None:
    """Whole or not at all. Raises OSError where it cannot be written."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(_text(table))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _text(table: CutTable) -> str:
    """JSON with a line an entry, so that a change of one is a change of one line."""
    head = json.dumps({"schema": SCHEMA, "arch": table.arch, "gpu": table.gpu, "versions": table.versions})
    lines = ",\n".join(f"  {json.dumps(asdict(entry), allow_nan=False)}" for entry in sorted(table.entries, key=lambda e: (e.name, str(e.shape))))
    return f'{head[:-1]}, "entries": [\n{lines}\n]}}\n'


def read_table(path: Path) -> CutTable:
    """Raises UsageError naming the file and all that is wrong with it."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"table {path}: cannot be read ({error})") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise UsageError(f"table {path}: expected a table of schema {SCHEMA}, as gptoss-export tune writes")
    problems = [
        f"{key}: found {value.get(key)!r}, expected {kind.__name__}"
        for key, kind in {"arch": str, "gpu": str, "versions": dict, "entries": list}.items()
        if not isinstance(value.get(key), kind)
    ]
    if not problems and not all(isinstance(version, str) for version in value["versions"].values()):
        problems.append(f"versions: found {value['versions']!r}, expected text by name")
    raise_all(UsageError, f"table {path}", problems)
    entries = []
    for index, item in enumerate(value["entries"]):
        if wrong := _wrong(item):
            problems.append(f"entries[{index}]: {wrong}")
        else:
            entries.append(Entry(**item))
    raise_all(UsageError, f"table {path}", problems)
    return CutTable(value["arch"], value["gpu"], value["versions"], tuple(entries), path)


def _wrong(item: Any) -> str | None:
    """What is wrong with an entry."""
    fields = Entry.__dataclass_fields__
    if not isinstance(item, dict) or item.keys() != fields.keys():
        return f"expected an object with {', '.join(fields)}"
    if not isinstance(item["name"], str):
        return f"name: found {item['name']!r}, expected text"
    if not isinstance(item["shape"], dict) or not all(type(v) is str or type(v) is int and v >= 0 for v in item["shape"].values()):
        return f"shape: found {item['shape']!r}, expected numbers from 0 and text by name"
    tiles = item["tiles"]
    if not isinstance(tiles, dict) or not all(
        isinstance(part, dict) and all(type(v) is int and v > 0 for v in part.values()) for part in tiles.values()
    ):
        return f"tiles: found {tiles!r}, expected numbers from 1 by name for each part"
    if not all(type(item[key]) in (int, float) and 0 < item[key] < math.inf for key in ("us", "default_us")):
        return "us, default_us: expected microseconds above 0"
    return None
