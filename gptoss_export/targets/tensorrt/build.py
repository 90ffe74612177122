"""Lowered programs to engines, plugins and the schedule, in an artifact's folder.

With TensorRT for RTX a program is a list of engine segments and kernels; with the full TensorRT, whose engines can
hold plugins, it is one engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError, BuildError, LoweringError, raise_all
from ...compiler.export import Program
from ...compiler.lower import plugin_parts
from .contexts import CACHE, Contexts
from .partition import Launch, Segment, cut
from .engine import build_segment, build_whole, missing_converters
from .edition import Flavour
from .memory_plan import bound, plan, program_inputs, results
from .schedule import (
    INPUT,
    NAME,
    OUTPUT,
    EngineStep,
    KernelStep,
    PluginSpec,
    ProgramSchedule,
    Reference,
    Schedule,
    save_schedule,
)  # fmt: skip

Steps = Sequence[Segment | Launch]


def build_programs(
    programs: Iterable[Program], flavour: Flavour, arch: str, on_this_gpu: bool, folder: Path
) -> list[Path]:
    """Build every program; returns the files, relative to `folder`.

    Raises LoweringError naming every node that has no converter, BuildError where TensorRT refuses.
    """
    maker, add_plugin = plugin_parts()
    made = _Made(flavour, arch, on_this_gpu, folder, maker(arch), add_plugin)
    for program in programs:
        _check_inputs(program)
        steps = cut(program.exported, program.name)
        missing = [text for step in steps if isinstance(step, Segment) for text in missing_converters(step)]
        raise_all(LoweringError, f"program {program.name}: ops that TensorRT has no converter for", missing)
        made.add(program, steps)
    save_schedule(Schedule(made.engines, made.plugins, made.schedules), folder)
    files = [Path(NAME), *(Path("engines", f"{key}.engine") for key in made.engines), *made.cache()]
    return files + [Path("plugins", name + kind) for name in made.plugins for kind in (".ptx", ".cubin")]


def _check_inputs(program: Program) -> None:
    """Raise LoweringError where tracing has made inputs of its own: inputs are bound by their place in the call.

    A tensor that an op makes of numbers becomes one (a lifted constant), and nobody would bind it.
    """
    found, expected = program_inputs(program.exported), len(program.inputs)
    if len(found) != expected:
        named = {spec.arg.name for spec in program.exported.graph_signature.input_specs if spec.kind.name != "USER_INPUT"}
        lifted = ", ".join(node.name for node in found if node.name in named) or "none of them lifted"
        raise LoweringError(f"program {program.name}: the graph has {len(found)} inputs, the call {expected}: {lifted}; "
                            "make constants of numbers, or inputs of the program")  # fmt: skip


class _Made:
    """What a build has made so far; engines and plugins that several programs or layers use are made once."""

    def __init__(self, flavour: Flavour, arch: str, on_this_gpu: bool, folder: Path, maker: Any, add_plugin: Any) -> None:
        self._flavour, self._arch, self._on_this_gpu = flavour, arch, on_this_gpu
        self._folder, self._maker, self._add_plugin = folder, maker, add_plugin
        self.engines: dict[str, str] = {}
        self.plugins: dict[str, PluginSpec] = {}
        self.schedules: dict[str, ProgramSchedule] = {}
        for name in "engines", "plugins":
            (folder / name).mkdir()

    def add(self, program: Program, steps: Steps) -> None:
        plugins = self._plugins_of(program, steps)
        if self._flavour.has_plugins:
            self.schedules[program.name] = self._whole(program, steps, plugins)
            return
        places, arena = plan(program.exported, steps)
        scheduled: list[EngineStep | KernelStep] = []
        for step in steps:
            if isinstance(step, Launch):
                references = tuple(places[step.tensors[name]] for name in plugins[step.name].arguments)
                scheduled.append(KernelStep(plugins[step.name].name, references))
                continue
            if step.key not in self.engines:
                engine = build_segment(step, self._flavour, self._arch, self._on_this_gpu)
                first, last = step.nodes[0].name, step.nodes[-1].name
                self._write_engine(step.key, engine, f"{program.name}: {first} to {last}, {len(step.nodes)} nodes")
            references, count = tuple(places[node] for node in bound(step)), len(step.inputs)
            scheduled.append(EngineStep(step.key, references[:count], references[count:]))
        self.schedules[program.name] = ProgramSchedule(arena, tuple(scheduled))

    def _whole(self, program: Program, steps: Steps, plugins: dict[str, Any]) -> ProgramSchedule:
        inputs, outputs = program_inputs(program.exported), results(program.exported)
        engine, used = build_whole(
            inputs, outputs, steps, plugins, self._add_plugin, self._flavour, self._arch, self._on_this_gpu
        )
        self._write_engine(program.name, engine, f"{program.name}, {len(steps)} parts")
        references = tuple(Reference(INPUT, inputs.index(node)) for node in used)
        step = EngineStep(program.name, references, tuple(Reference(OUTPUT, i) for i in range(len(outputs))))
        return ProgramSchedule(0, (step,))

    def _write_engine(self, key: str, engine: bytes, told: str) -> None:
        (self._folder / "engines" / f"{key}.engine").write_bytes(engine)
        self.engines[key] = told

    def cache(self) -> list[Path]:
        """The file of what loading would compile, where it can be compiled here."""
        if not (self._on_this_gpu and self._flavour.compiles_at_load):
            return []
        device = torch.device("cuda", torch.cuda.current_device())
        try:
            cache = Contexts(self._flavour, self._folder, self.engines, device).cache()
        except ArtifactError as error:  # there is no artifact yet: it is the build that fails
            raise BuildError(f"what loading compiles cannot be compiled here: {error}") from error
        (self._folder / CACHE).write_bytes(cache)
        return [Path(CACHE)]

    def _plugins_of(self, program: Program, steps: Steps) -> dict[str, Any]:
        """The plugin of every launch, by its name. Memory that an earlier step wrote holds something when a launch comes."""
        held = set(program_inputs(program.exported))
        found = {}
        for step in steps:
            if isinstance(step, Launch):
                values = {name: node.meta["val"] for name, node in step.tensors.items()}
                names = {name for name, node in step.tensors.items() if node in held}
                try:
                    plugin = self._maker.make(step.kernel, {**step.arguments, **values}, step.grid, names)
                except ValueError as error:
                    raise LoweringError(f"program {program.name}, {step.name}: no plugin: {error}") from error
                self._write_plugin(plugin)
                found[step.name] = plugin
                held |= {step.tensors[name] for name in plugin.outputs}
            else:
                held |= set(step.outputs)
        return found

    def _write_plugin(self, plugin: Any) -> None:
        if self._flavour.has_plugins or plugin.name in self.plugins:  # inside of an engine, the engine holds it
            return
        (self._folder / "plugins" / f"{plugin.name}.ptx").write_text(plugin.ptx)
        (self._folder / "plugins" / f"{plugin.name}.cubin").write_bytes(plugin.cubin)
        self.plugins[plugin.name] = PluginSpec(
            plugin.function, plugin.inputs, plugin.outputs, tuple(map(_bytes, map(plugin.tensors.get, plugin.arguments))),
            plugin.grid, plugin.threads, plugin.shared,
        )  # fmt: skip


def _bytes(tensor: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = tensor
    return math.prod(shape) * dtype.itemsize
