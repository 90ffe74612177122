"""Holds a schedule against itself, the artifact's manifest and its engines.

Engines and kernels get bare addresses and check nothing: a wrong offset or a missing tensor would read and write
memory of others. So all that is bound is compared here, before anything runs: kernels by the bytes that the build
wrote down, engines by what they say of their tensors once they are loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...artifact.manifest import Manifest, ProgramSpec, TensorSpec
from .schedule import (
    ALIGNMENT,
    ARENA,
    INPUT,
    NAME,
    PLACES,
    EngineStep,
    KernelStep,
    PluginSpec,
    ProgramSchedule,
    Reference,
    Schedule,
)

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # CUDA's limits, of every GPU since sm_30
_THREADS = 1024
_SHARED = 227 << 10  # of the largest, sm_90


def violations(schedule: Schedule, manifest: Manifest) -> Iterator[str]:
    """What no build writes, but for the tensors of engines, which only an engine knows."""
    yield from _file_violations(schedule, manifest)
    for name, spec in schedule.plugins.items():
        yield from _plugin_violations(name, spec)
    if schedule.programs.keys() != manifest.programs.keys():
        yield f"programs: found {', '.join(schedule.programs)}, expected {', '.join(manifest.programs)}"
        return
    for name, program in schedule.programs.items():
        if not _whole(program.arena):
            yield f"program {name}: arena is {program.arena!r}, expected its bytes"
            continue
        for index, step in enumerate(program.steps):
            for problem in _step_violations(step, program, schedule, manifest.programs[name]):
                yield f"program {name}, step {index}: {problem}"


def binding_violations(schedule: Schedule, manifest: Manifest, engines: Mapping[str, Any]) -> Iterator[str]:
    """Where engines, loaded, have other tensors than their steps bind, or larger ones than the memory they are bound to."""
    for name, program in schedule.programs.items():
        for index, step in enumerate(program.steps):
            if isinstance(step, EngineStep):
                for problem in _engine_violations(step, engines[step.engine], program, manifest.programs[name]):
                    yield f"program {name}, step {index}: engines/{step.engine}.engine: {problem}"


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _file_violations(schedule: Schedule, manifest: Manifest) -> Iterator[str]:
    """Names become paths, and every file has to be one whose hash was compared."""
    files = [NAME]
    for kind, names, ending in ("engine", schedule.engines, ".engine"), ("plugin", schedule.plugins, ".cubin"):
        for name in names:
            if _PLAIN.fullmatch(name):
                files.append(f"{kind}s/{name}{ending}")
            else:
                yield f"{kind} {name!r}: expected a plain file name (letters, digits, - and _)"
    yield from (f"{file}: not among the manifest's files" for file in files if file not in manifest.files)
    yield from (f"engine {key}: {told!r}, expected a string" for key, told in schedule.engines.items()
                if not isinstance(told, str))  # fmt: skip


def _plugin_violations(name: str, spec: PluginSpec) -> Iterator[str]:
    if not isinstance(spec.function, str) or not spec.function:
        yield f"plugin {name}: function is {spec.function!r}, expected a name"
    if not all(isinstance(argument, str) for argument in (*spec.inputs, *spec.outputs)):
        yield f"plugin {name}: arguments are {(*spec.inputs, *spec.outputs)}, expected names"
    if len(spec.bytes) != len(spec.inputs) + len(spec.outputs) or not all(map(_whole, spec.bytes)):
        yield f"plugin {name}: bytes are {spec.bytes}, expected a number for each of its arguments"
    if len(spec.grid) != 3 or not all(_whole(n) and 1 <= n <= top for n, top in zip(spec.grid, _GRID, strict=False)):
        yield f"plugin {name}: grid is {spec.grid}, expected three numbers from 1 to {_GRID}"
    for what, value, least, most in ("threads", spec.threads, 1, _THREADS), ("shared", spec.shared, 0, _SHARED):
        if not _whole(value) or not least <= value <= most:
            yield f"plugin {name}: {what} is {value!r}, expected {least} to {most}"


def _step_violations(
    step: EngineStep | KernelStep, program: ProgramSchedule, schedule: Schedule, spec: ProgramSpec
) -> Iterator[str]:
    if isinstance(step, EngineStep):
        if step.engine not in schedule.engines:
            yield f"unknown engine {step.engine!r}"
        for reference in (*step.inputs, *step.outputs):
            yield from _place_violations(reference, 1, program, spec)
        written = step.outputs
    else:
        if step.plugin not in schedule.plugins:
            yield f"unknown plugin {step.plugin!r}"
            return
        plugin = schedule.plugins[step.plugin]
        count = len(plugin.inputs) + len(plugin.outputs)
        if len(step.arguments) != count:
            yield f"{step.plugin} is given {len(step.arguments)} arguments, it takes {count}"
            return
        if len(plugin.bytes) == count and all(map(_whole, plugin.bytes)):
            for reference, size in zip(step.arguments, plugin.bytes, strict=True):
                yield from _place_violations(reference, size, program, spec)
        written = step.arguments[len(plugin.inputs) :]
    for reference in written:
        if reference.place == INPUT and _whole(reference.value) and reference.value < len(spec.inputs):
            item = spec.inputs[reference.value]
            if item.role != "cache":
                yield f"writes input {item.name}, which is a {item.role}; only caches are written"


def _engine_violations(step: EngineStep, engine: Any, program: ProgramSchedule, spec: ProgramSpec) -> Iterator[str]:
    bound = {f"in{index}": reference for index, reference in enumerate(step.inputs)}
    bound |= {f"out{index}": reference for index, reference in enumerate(step.outputs)}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if set(names) != bound.keys():
        yield f"has tensors {', '.join(sorted(names))}, the schedule binds {', '.join(sorted(bound))}"
        return
    for name in names:
        mode, expected = engine.get_tensor_mode(name).name, "INPUT" if name.startswith("in") else "OUTPUT"
        if mode != expected:
            yield f"{name} is an {mode.lower()}"
        shape = tuple(engine.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            yield f"{name} has shape {list(shape)}, expected a static one"
            continue
        size = math.prod(shape) * engine.get_tensor_dtype(name).itemsize
        for problem in _place_violations(bound[name], size, program, spec):
            yield f"{name}: {problem}"


def _place_violations(reference: Reference, size: int, program: ProgramSchedule, spec: ProgramSpec) -> Iterator[str]:
    """Where `size` bytes do not lie within what the reference names."""
    place, value = reference.place, reference.value
    if place not in PLACES or not _whole(value):
        yield f"{place!r} {value!r}, expected {', '.join(PLACES)} and a number from 0"
    elif place == ARENA:
        if value % ALIGNMENT:
            yield f"arena offset {value}, expected a multiple of {ALIGNMENT}"
        if value + size > program.arena:
            yield f"{size} bytes at {value} are outside of the arena of {program.arena} bytes"
    else:
        items = spec.inputs if place == INPUT else spec.outputs
        if value >= len(items):
            yield f"{place} {value}: the program has {len(items)}"
        elif size > (held := _bytes(items[value])):
            yield f"{place} {value} ({items[value].name}) has {held} bytes, {size} are read or written there"


def _bytes(item: TensorSpec) -> int:
    return math.prod(item.shape) * getattr(torch, item.dtype).itemsize
