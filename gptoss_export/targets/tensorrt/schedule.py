"""schedule.json: how an artifact's engines and kernels make its programs. This file writes and parses it.

A program is a list of schedule steps. Each runs an engine or launches a kernel, and names the memory that is bound to
it. A reference names a piece of memory: an input of the program, an offset in the arena (scratch memory for what one
step writes and a later step reads), or a result of the call.

Engines and kernels hold sizes and constants of the model and say nothing of them. So the schedule says what all of it
was compiled for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...json_file import elements, members
from ...machine_limits import writes

NAME = "schedule.json"
INPUT, ARENA, OUTPUT = "input", "arena", "output"
PLACES = (INPUT, ARENA, OUTPUT)
ALIGNMENT = 256  # bytes, of offsets in the arena; kernels are compiled for pointers aligned to 16


@dataclass(frozen=True)
class Reference:
    """A piece of memory. `value` is an index for place `input` or `output`, and an offset in bytes for `arena`."""

    place: str
    value: int

    def __str__(self) -> str:
        return f"{self.place} {self.value}"


@dataclass(frozen=True)
class EngineStep:
    """Runs engines/<engine>.engine with its inputs in0, in1, ... and outputs out0, out1, ..."""

    engine: str
    inputs: tuple[Reference, ...]
    outputs: tuple[Reference, ...]


@dataclass(frozen=True)
class KernelStep:
    """Launches a plugin's kernel. The arguments are all pointers: its inputs, then its outputs."""

    plugin: str
    arguments: tuple[Reference, ...]


ScheduleStep: TypeAlias = EngineStep | KernelStep


@dataclass(frozen=True)
class PluginSpec:
    """The launch of plugins/<name>.cubin. The PTX lies in the same folder that it was assembled from.

    bytes    of each argument: inputs, then outputs
    threads  of a block
    shared   bytes of shared memory of a block
    """

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: tuple[int, ...]
    grid: tuple[int, int, int]
    threads: int
    shared: int


@dataclass(frozen=True)
class ProgramSchedule:
    """arena: the bytes that it needs."""

    arena: int
    steps: tuple[ScheduleStep, ...]


@dataclass(frozen=True)
class Schedule:
    """description: what all of it was compiled for (artifact/description.py). engines: by key, a label for people that
    names the nodes it was built from."""

    description: str
    engines: dict[str, str]
    plugins: dict[str, PluginSpec]
    programs: dict[str, ProgramSchedule]


def save_schedule(schedule: Schedule, folder: Path) -> None:
    text = json.dumps(dataclasses.asdict(schedule), separators=(",", ":")) + "\n"
    with writes(folder / NAME):
        (folder / NAME).write_text(text, encoding="utf-8")


def parse_schedule(data: Mapping[str, Any]) -> Schedule:
    """The schedule in the JSON of `save_schedule`. Values are not checked (check.py does that).

    Raises LookupError, TypeError, ValueError or AttributeError for JSON of another structure.
    """
    description, engines, plugins, programs = members(data, "description", "engines", "plugins", "programs")
    return Schedule(
        description=description,
        engines=dict(engines),
        plugins={name: _plugin(spec) for name, spec in plugins.items()},
        programs={name: _program(spec) for name, spec in programs.items()},
    )


def _plugin(spec: dict[str, Any]) -> PluginSpec:
    tuples = {name: elements(spec[name]) for name in ("inputs", "outputs", "bytes", "grid")}
    return PluginSpec(**spec | tuples)


def _program(spec: dict[str, Any]) -> ProgramSchedule:
    arena, steps = members(spec, "arena", "steps")
    return ProgramSchedule(arena, tuple(map(_step, elements(steps))))


def _step(step: dict[str, Any]) -> ScheduleStep:
    if "engine" in step:
        engine, inputs, outputs = members(step, "engine", "inputs", "outputs")
        return EngineStep(engine, _references(inputs), _references(outputs))
    plugin, arguments = members(step, "plugin", "arguments")
    return KernelStep(plugin, _references(arguments))


def _references(items: Any) -> tuple[Reference, ...]:
    return tuple(Reference(**item) for item in elements(items))
