"""schedule.json: how an artifact's engines and kernels make its programs. Both ends of the format are in this file.

A program is a list of steps, each an engine or a kernel with the addresses it is bound to. An address is a
reference: an input of the program, a place in the arena (scratch memory that steps of one call hand results
through), or a result of the call.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ...errors import ArtifactError, raise_all
from ...artifact.manifest import Manifest

NAME = "schedule.json"
INPUT, ARENA, OUTPUT = "input", "arena", "output"
PLACES = (INPUT, ARENA, OUTPUT)
ALIGNMENT = 256  # bytes, of places in the arena; kernels are compiled for pointers aligned to 16


@dataclass(frozen=True)
class Reference:
    """place `input` or `output`: the index; `arena`: the offset in bytes."""

    place: str
    value: int


@dataclass(frozen=True)
class EngineStep:
    """Runs engines/<key>.engine with its inputs in0, in1, ... and outputs out0, out1, ..."""

    engine: str
    inputs: tuple[Reference, ...]
    outputs: tuple[Reference, ...]


@dataclass(frozen=True)
class KernelStep:
    """Launches a plugin's kernel; the arguments are all pointers: its inputs, then its outputs."""

    plugin: str
    arguments: tuple[Reference, ...]


@dataclass(frozen=True)
class PluginSpec:
    """plugins/<name>.cubin, and the PTX that it was assembled from beside it."""

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: tuple[int, ...]  # of each argument: inputs, then outputs
    grid: tuple[int, int, int]
    threads: int
    shared: int


@dataclass(frozen=True)
class ProgramSchedule:
    arena: int  # bytes
    steps: tuple[EngineStep | KernelStep, ...]


@dataclass(frozen=True)
class Schedule:
    """engines: by key, the names of nodes it was built from, for people."""

    engines: dict[str, str]
    plugins: dict[str, PluginSpec]
    programs: dict[str, ProgramSchedule]


def save_schedule(schedule: Schedule, folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(dataclasses.asdict(schedule), separators=(",", ":")) + "\n")


def load_schedule(folder: Path, manifest: Manifest) -> Schedule:
    """Read `folder`/schedule.json, and hold it against itself and the artifact's manifest (check.py).

    Raises ArtifactError naming all that no build writes.
    """
    from .check import violations  # which knows the format

    path = folder / NAME
    try:
        data = json.loads(path.read_text())
        schedule = Schedule(
            engines=dict(data["engines"]),
            plugins={name: _plugin(spec) for name, spec in data["plugins"].items()},
            programs={name: _program(spec) for name, spec in data["programs"].items()},
        )
        problems = list(violations(schedule, manifest))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: malformed ({type(error).__name__}: {error}); build the artifact again") from None
    raise_all(ArtifactError, f"{path}: not what a build writes; build the artifact again", problems)
    return schedule


def _plugin(spec: dict) -> PluginSpec:
    tuples = {name: tuple(spec[name]) for name in ("inputs", "outputs", "bytes", "grid")}
    return PluginSpec(**spec | tuples)


def _program(spec: dict) -> ProgramSchedule:
    def references(items: list[dict]) -> tuple[Reference, ...]:
        return tuple(Reference(**item) for item in items)

    steps = tuple(
        EngineStep(step["engine"], references(step["inputs"]), references(step["outputs"]))
        if "engine" in step
        else KernelStep(step["plugin"], references(step["arguments"]))
        for step in spec["steps"]
    )
    return ProgramSchedule(spec["arena"], steps)
