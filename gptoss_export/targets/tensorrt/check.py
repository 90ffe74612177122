"""Compares a schedule with itself, with the artifact's manifest and with its engines.

Engines and kernels take bare addresses and check nothing. With a wrong offset, or a tensor too few, they would read and
write memory that is not theirs. So everything that is bound is compared here before anything runs: the arguments of a
kernel with the bytes that the build stored, the tensors of an engine with what the loaded engine says of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...artifact.calls import Role, Signature, TensorSpec
from ...artifact.description import check_description
from ...artifact.manifest import Manifest
from ...errors import ArtifactError, raise_all
from ...json_file import read_object
from ...model.dtypes import torch_dtype
from ...values import shown
from .schedule import (
    ALIGNMENT,
    ARENA,
    INPUT,
    NAME,
    PLACES,
    EngineStep,
    PluginSpec,
    ProgramSchedule,
    Reference,
    Schedule,
    ScheduleStep,
    parse_schedule,
)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
_MAX_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # CUDA's limits for every GPU since sm_30
_MAX_THREADS = 1024
_MAX_SHARED = 227 << 10  # of sm_90, which has most


def load_schedule(folder: Path, manifest: Manifest) -> Schedule:
    """Read and check `folder`/schedule.json.

    Raises ArtifactError naming everything in it that no build writes, and code that was compiled for something else
    than the manifest says.
    """
    path = folder / NAME
    try:
        schedule = parse_schedule(read_object(path, ArtifactError, advice="build the artifact again"))
        if not isinstance(schedule.description, str):
            raise TypeError(f"description: found {shown(schedule.description)}, expected a string")
        problems = list(violations(schedule, manifest))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: malformed ({type(error).__name__}: {error}); build the artifact again") from None
    check_description(manifest, manifest.arch, schedule.description, path)
    raise_all(ArtifactError, f"{path}: not what a build writes; build the artifact again", problems)
    return schedule


def violations(schedule: Schedule, manifest: Manifest) -> Iterator[str]:
    """What no build writes, except for the tensors of engines, which only a loaded engine knows."""
    yield from _file_violations(schedule, manifest)
    for name, spec in schedule.plugins.items():
        yield from _plugin_violations(name, spec)
    if schedule.programs.keys() != manifest.programs.keys():
        yield f"programs: found {', '.join(schedule.programs)}, expected {', '.join(manifest.programs)}"
        return
    for name, program in schedule.programs.items():
        if not _is_count(program.arena):
            yield f"program {name}: arena is {program.arena!r}, expected a number of bytes"
            continue
        for index, step in enumerate(program.steps):
            for problem in _step_violations(step, program, schedule, manifest.programs[name]):
                yield f"program {name}, schedule step {index}: {problem}"


def binding_violations(schedule: Schedule, manifest: Manifest, engines: Mapping[str, Any]) -> Iterator[str]:
    """Where loaded engines have other tensors than their steps bind, or of another size than the memory bound to
    them."""
    for name, program in schedule.programs.items():
        for index, step in enumerate(program.steps):
            if isinstance(step, EngineStep):
                for problem in _engine_violations(step, engines[step.engine], program, manifest.programs[name]):
                    yield f"program {name}, schedule step {index}: engines/{step.engine}.engine: {problem}"


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _file_violations(schedule: Schedule, manifest: Manifest) -> Iterator[str]:
    """Names become paths, and every file must be one whose hash was compared."""
    files = [NAME]
    for kind, names, suffix in ("engine", schedule.engines, ".engine"), ("plugin", schedule.plugins, ".cubin"):
        for name in names:
            if _PLAIN_NAME.fullmatch(name):
                files.append(f"{kind}s/{name}{suffix}")
            else:
                yield f"{kind} {name!r}: expected a plain file name (letters, digits, - and _)"
    for file in files:
        if file not in manifest.files:
            yield f"{file}: not among the manifest's files"
    for key, label in schedule.engines.items():
        if not isinstance(label, str):
            yield f"engine {key}: {label!r}, expected a string"


def _plugin_violations(name: str, spec: PluginSpec) -> Iterator[str]:
    if not isinstance(spec.function, str) or not spec.function:
        yield f"plugin {name}: function is {spec.function!r}, expected a name"
    if not all(isinstance(argument, str) for argument in (*spec.inputs, *spec.outputs)):
        yield f"plugin {name}: arguments are {(*spec.inputs, *spec.outputs)}, expected names"
    if len(spec.bytes) != len(spec.inputs) + len(spec.outputs) or not all(map(_is_count, spec.bytes)):
        yield f"plugin {name}: bytes are {spec.bytes}, expected a number for each of its arguments"
    grid_is_valid = len(spec.grid) == 3 and all(
        _is_count(count) and 1 <= count <= most for count, most in zip(spec.grid, _MAX_GRID, strict=True)
    )
    if not grid_is_valid:
        yield f"plugin {name}: grid is {spec.grid}, expected three numbers from 1 to {_MAX_GRID}"
    for field, value, least, most in (
        ("threads", spec.threads, 1, _MAX_THREADS),
        ("shared", spec.shared, 0, _MAX_SHARED),
    ):
        if not _is_count(value) or not least <= value <= most:
            yield f"plugin {name}: {field} is {value!r}, expected {least} to {most}"


def _step_violations(
    step: ScheduleStep, program: ProgramSchedule, schedule: Schedule, signature: Signature
) -> Iterator[str]:
    if isinstance(step, EngineStep):
        if step.engine not in schedule.engines:
            yield f"unknown engine {step.engine!r}"
        for reference in (*step.inputs, *step.outputs):
            yield from _reference_violations(reference, None, program, signature)
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
        if len(plugin.bytes) == count and all(map(_is_count, plugin.bytes)):
            for reference, size in zip(step.arguments, plugin.bytes, strict=True):
                yield from _reference_violations(reference, size, program, signature)
        written = step.arguments[len(plugin.inputs) :]
    for reference in written:
        if reference.place == INPUT and _is_count(reference.value) and reference.value < len(signature.inputs):
            item = signature.inputs[reference.value]
            if item.role != Role.CACHE:
                yield f"writes input {item.name}, which is a {item.role}; only caches are written"


def _engine_violations(step: EngineStep, engine: Any, program: ProgramSchedule, signature: Signature) -> Iterator[str]:
    bound = {f"in{index}": reference for index, reference in enumerate(step.inputs)}
    bound |= {f"out{index}": reference for index, reference in enumerate(step.outputs)}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if set(names) != bound.keys():
        yield f"has tensors {', '.join(sorted(names))}, the schedule binds {', '.join(sorted(bound))}"
        return
    for name in names:
        mode, expected = engine.get_tensor_mode(name).name, "INPUT" if name.startswith("in") else "OUTPUT"
        if mode != expected:
            yield f"{name} is an {mode.lower()}, expected an {expected.lower()}"
        shape = tuple(engine.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            yield f"{name} has shape {list(shape)}, expected a static one"
            continue
        size = math.prod(shape) * engine.get_tensor_dtype(name).itemsize
        for problem in _reference_violations(bound[name], size, program, signature):
            yield f"{name}: {problem}"


def _reference_violations(
    reference: Reference, size: int | None, program: ProgramSchedule, signature: Signature
) -> Iterator[str]:
    """Where a tensor of `size` bytes is not the memory that the reference names. None: a size that only a loaded engine
    knows.

    A step reads and writes inputs and results as a whole: views of them have as many bytes.
    """
    place, value = reference.place, reference.value
    if place not in PLACES or not _is_count(value):
        yield f"{place!r} {value!r}, expected {', '.join(PLACES)} and a number from 0"
    elif place == ARENA:
        if value % ALIGNMENT:
            yield f"arena offset {value}, expected a multiple of {ALIGNMENT}"
        if value + (size or 1) > program.arena:
            yield f"{size or 1} bytes at {value} are outside of the arena of {program.arena} bytes"
    else:
        items = signature.inputs if place == INPUT else signature.outputs
        if value >= len(items):
            yield f"{place} {value}: the program has {len(items)}"
        elif size not in (None, held := _bytes(items[value])):
            yield f"{place} {value} ({items[value].name}) has {held} bytes, a step takes it for {size}"


def _bytes(item: TensorSpec) -> int:
    """Of a cache: those of one page. How many there are is chosen at load."""
    return math.prod(item.sizes(free=1)) * torch_dtype(item.dtype).itemsize
