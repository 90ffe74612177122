"""Tuned configs: the launch configs that were the fastest when measured, by shape, for one GPU.

`gptoss-export tune` writes a file for the GPU it runs on. The kernel package ships the files of the GPUs that it was
measured on, and `build --tuned-configs FILE` takes a user's own before them. A file is JSON:

    {"schema": 2, "arch": "sm_90", "gpu": "NVIDIA H200", "versions": {"torch": ..., "triton": ...},
     "entries": [{"name": "unembed", "shape": {"rows": 1, ...}, "config": {"logits": {"rows": 16, ...}},
                  "us": 255.6, "default_us": 255.6}, ...]}

An entry serves its own shape, and shapes whose scaled keys (`ConfigSpace.scaled`) are at most twice or half of its
own. Of several entries the one with the nearest shape is used."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..artifact.atomic_folder import replace_file
from ..errors import UsageError, raise_all
from ..json_file import read_object
from .launch_config import ConfigSpace, LaunchConfig

SCHEMA = 2
NEAR = 2.0  # how many times larger or smaller a scaled key may be
_TUNE_AGAIN = "it belongs to another version of the kernels: run gptoss-export tune again"


@dataclass(frozen=True)
class TunedConfig:
    """One measured launch config: the microseconds of a call with it, and with the kernel's own guess."""

    name: str
    shape: dict[str, int | str]
    config: dict[str, dict[str, int]]
    us: float
    default_us: float

    def distance(self, space: ConfigSpace) -> float | None:
        """How far the shape is from that of `space`: 0 for the same shape, None where the entry does not serve it."""
        if self.name != space.name or self.shape.keys() != space.shape.keys():
            return None
        total = 0.0
        for key, value in space.shape.items():
            own = self.shape[key]
            if key in space.scaled and isinstance(value, int) and value and isinstance(own, int) and own:
                apart = abs(math.log(value / own))
                if apart > math.log(NEAR) + 1e-9:
                    return None
                total += apart
            elif value != own:
                return None
        return total

    def is_valid(self, space: ConfigSpace) -> bool:
        """Whether the kernels accept these numbers. Those of a near shape may not be."""
        return all(
            value in space.options[part].get(number, ()) or value == getattr(space.default[part], number)
            for part, numbers in self.config.items()
            for number, value in numbers.items()
        )


@dataclass(frozen=True)
class TunedConfigs:
    """The tuned configs of one GPU, as a file holds them."""

    arch: str
    gpu: str
    versions: dict[str, str]
    entries: tuple[TunedConfig, ...]
    path: Path | None = None

    @property
    def label(self) -> str:
        """Where they come from: the GPU, the versions, a digest of the contents."""
        digest = hashlib.sha256(_text(self).encode()).hexdigest()[:12]
        versions = " ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.gpu}, {versions}, {digest}"

    def find(self, space: ConfigSpace) -> LaunchConfig | None:
        """The launch config of the nearest entry, None where no entry serves `space`.

        Raises UsageError where an entry has numbers that the kernel does not have.
        """
        near = [(distance, entry) for entry in self.entries if (distance := entry.distance(space)) is not None]
        expected = {part: numbers._fields for part, numbers in space.default.items()}
        for distance, entry in sorted(near, key=lambda item: item[0]):
            found = {part: tuple(numbers) for part, numbers in entry.config.items()}
            if found != expected:
                raise UsageError(f"{self._where(space)} has the parts {found}, expected {expected}; {_TUNE_AGAIN}")
            if entry.is_valid(space):
                return {part: type(numbers)(**entry.config[part]) for part, numbers in space.default.items()}
            if distance == 0:
                raise UsageError(
                    f"{self._where(space)} has the numbers {entry.config}, expected numbers of {space.options}; "
                    f"{_TUNE_AGAIN}"
                )
        return None

    def with_entries(self, entries: list[TunedConfig]) -> TunedConfigs:
        """A copy in which `entries` replace those of the same names and shapes."""
        new = {(entry.name, json.dumps(entry.shape)) for entry in entries}
        kept = [entry for entry in self.entries if (entry.name, json.dumps(entry.shape)) not in new]
        return replace(self, entries=(*kept, *entries))

    def _where(self, space: ConfigSpace) -> str:
        return f"tuned configs {self.path or self.gpu}: entry {space.name}"


def write_tuned_configs(configs: TunedConfigs, path: Path) -> None:
    """Write the file whole or not at all. Raises OSError where it cannot be written."""
    with replace_file(path) as partial:
        partial.write_text(_text(configs), encoding="utf-8")


def read_tuned_configs(path: Path) -> TunedConfigs:
    """Read a file. Raises UsageError naming the file and everything that is wrong with it."""
    again = "measure them again with gptoss-export tune"
    value = read_object(path, UsageError, subject=f"tuned configs {path}", advice=again)
    if value.get("schema") != SCHEMA:
        raise UsageError(f"tuned configs {path}: schema is {value.get('schema')!r}, expected {SCHEMA}; {again}")
    problems = [
        f"{key}: found {value.get(key)!r}, expected {kind.__name__}"
        for key, kind in {"arch": str, "gpu": str, "versions": dict, "entries": list}.items()
        if not isinstance(value.get(key), kind)
    ]
    if not problems and not all(isinstance(version, str) for version in value["versions"].values()):
        problems.append(f"versions: found {value['versions']!r}, expected strings by name")
    raise_all(UsageError, f"tuned configs {path}", problems)
    entries = []
    for index, item in enumerate(value["entries"]):
        if problem := _entry_problem(item):
            problems.append(f"entries[{index}]: {problem}")
        else:
            entries.append(TunedConfig(**item))
    raise_all(UsageError, f"tuned configs {path}", problems)
    return TunedConfigs(value["arch"], value["gpu"], value["versions"], tuple(entries), path)


def _text(configs: TunedConfigs) -> str:
    """JSON with one line an entry, so that a change of an entry is a change of one line."""
    head = json.dumps({"schema": SCHEMA, "arch": configs.arch, "gpu": configs.gpu, "versions": configs.versions})
    ordered = sorted(configs.entries, key=lambda entry: (entry.name, str(entry.shape)))
    lines = ",\n".join(f"  {json.dumps(asdict(entry), allow_nan=False)}" for entry in ordered)
    return f'{head[:-1]}, "entries": [\n{lines}\n]}}\n'


def _entry_problem(item: Any) -> str | None:
    fields = TunedConfig.__dataclass_fields__
    if not isinstance(item, dict) or item.keys() != fields.keys():
        return f"expected an object with {', '.join(fields)}"
    if not isinstance(item["name"], str):
        return f"name: found {item['name']!r}, expected a string"
    shape = item["shape"]
    if not isinstance(shape, dict) or not all(type(v) is str or (type(v) is int and v >= 0) for v in shape.values()):
        return f"shape: found {shape!r}, expected strings and numbers from 0 by name"
    config = item["config"]
    if not isinstance(config, dict) or not all(
        isinstance(part, dict) and all(type(v) is int and v > 0 for v in part.values()) for part in config.values()
    ):
        return f"config: found {config!r}, expected numbers from 1 by name for each part"
    if not all(type(item[key]) in (int, float) and 0 < item[key] < math.inf for key in ("us", "default_us")):
        return "us, default_us: expected microseconds above 0"
    return None
