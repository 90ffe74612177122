"""Compiles lowered programs to engines, plugins and the schedule, in an artifact's folder.

With TensorRT for RTX a program becomes a list of engine segments and kernels. With the full TensorRT, whose engines can
hold plugins, it becomes one engine (experimental).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...compiler.export import TracedProgram
from ...errors import ArtifactError, BuildError, LoweringError, raise_all
from ...machine_limits import writes
from ..base_compiler import Compilation
from .contexts import CACHE, Contexts
from .edition import Edition
from .engine import build_segment, build_whole, missing_converters
from .memory_plan import bound_tensors, plan_memory, program_inputs
from .partition import Launch, Part, Segment, fixed_shape, partition, program_results
from .plugins import AddPlugin, Plugin, PluginMaker
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
    ScheduleStep,
    save_schedule,
)


class EngineCompilation(Compilation):
    """What a build has made so far. An engine or plugin that several programs or layers use is made once.

    on_this_gpu  `arch` is that of this machine's GPU
    folder       of the artifact
    description  of the code (artifact/description.py)
    """

    def __init__(
        self,
        edition: Edition,
        arch: str,
        on_this_gpu: bool,
        folder: Path,
        maker: PluginMaker,
        add_plugin: AddPlugin,
        description: str,
    ) -> None:
        self._edition, self._arch, self._on_this_gpu = edition, arch, on_this_gpu
        self._folder, self._maker, self._add_plugin = folder, maker, add_plugin
        self.schedule = Schedule(description, {}, {}, {})
        for name in "engines", "plugins":
            (folder / name).mkdir()

    def compile(self, program: TracedProgram) -> None:
        """Compile one lowered program.

        Raises LoweringError naming every node that has no converter, or the kernel that cannot be a plugin. Raises
        BuildError where TensorRT refuses.
        """
        _check_inputs(program)
        parts = partition(program.exported, program.name)
        missing = [line for part in parts if isinstance(part, Segment) for line in missing_converters(part)]
        raise_all(LoweringError, f"program {program.name}: ops that TensorRT has no converter for", missing)
        plugins = self._plugins_of(program, parts)
        compile_parts = self._as_one_engine if self._edition.has_plugins else self._as_segments
        self.schedule.programs[program.name] = compile_parts(program, parts, plugins)

    def finish(self) -> list[Path]:
        save_schedule(self.schedule, self._folder)
        files = [Path(NAME), *(Path("engines", f"{key}.engine") for key in self.schedule.engines), *self._write_cache()]
        return files + [
            Path("plugins", name + suffix) for name in self.schedule.plugins for suffix in (".ptx", ".cubin")
        ]

    def _as_segments(
        self, program: TracedProgram, parts: Sequence[Part], plugins: Mapping[str, Plugin]
    ) -> ProgramSchedule:
        plan = plan_memory(program.exported, parts)
        steps: list[ScheduleStep] = []
        for part in parts:
            if isinstance(part, Launch):
                plugin = plugins[part.name]
                self._write_plugin(plugin)
                arguments = tuple(plan.references[part.tensors[name]] for name in plugin.arguments)
                steps.append(KernelStep(plugin.name, arguments))
                continue
            if part.key not in self.schedule.engines:
                engine = build_segment(part, self._edition, self._arch, self._on_this_gpu)
                first, last = part.nodes[0].name, part.nodes[-1].name
                self._write_engine(part.key, engine, f"{program.name}: {first} to {last}, {len(part.nodes)} nodes")
            references, count = tuple(plan.references[node] for node in bound_tensors(part)), len(part.inputs)
            steps.append(EngineStep(part.key, references[:count], references[count:]))
        return ProgramSchedule(plan.arena, tuple(steps))

    def _as_one_engine(
        self, program: TracedProgram, parts: Sequence[Part], plugins: Mapping[str, Plugin]
    ) -> ProgramSchedule:
        """Experimental: the engine holds the kernels, so that no plugin is written."""
        inputs, outputs = program_inputs(program.exported), program_results(program.exported)
        engine, used = build_whole(
            inputs, outputs, parts, plugins, self._add_plugin, self._edition, self._arch, self._on_this_gpu
        )
        self._write_engine(program.name, engine, f"{program.name}, {len(parts)} parts")
        references = tuple(Reference(INPUT, inputs.index(node)) for node in used)
        results = tuple(Reference(OUTPUT, index) for index in range(len(outputs)))
        return ProgramSchedule(0, (EngineStep(program.name, references, results),))

    def _plugins_of(self, program: TracedProgram, parts: Sequence[Part]) -> dict[str, Plugin]:
        """The plugin of every launch, by the name of the launch."""
        written = set(program_inputs(program.exported))  # tensors whose memory holds data so far
        plugins: dict[str, Plugin] = {}
        for part in parts:
            if isinstance(part, Segment):
                written |= set(part.outputs)
                continue
            values = {
                name: torch.empty(fixed_shape(node), dtype=node.meta["val"].dtype, device="meta")
                for name, node in part.tensors.items()
            }
            written_before = {name for name, node in part.tensors.items() if node in written}
            try:
                plugin = self._maker.make(part.kernel, {**part.arguments, **values}, part.grid, written_before)
            except ValueError as error:
                raise LoweringError(f"program {program.name}, {part.name}: no plugin: {error}") from error
            plugins[part.name] = plugin
            written |= {part.tensors[name] for name in plugin.outputs}
        return plugins

    def _write_engine(self, key: str, engine: bytes, label: str) -> None:
        self._write(f"engines/{key}.engine", engine)
        self.schedule.engines[key] = label

    def _write_plugin(self, plugin: Plugin) -> None:
        if plugin.name in self.schedule.plugins:
            return
        self._write(f"plugins/{plugin.name}.ptx", plugin.ptx.encode("utf-8"))
        self._write(f"plugins/{plugin.name}.cubin", plugin.cubin)
        self.schedule.plugins[plugin.name] = PluginSpec(
            function=plugin.function,
            inputs=plugin.inputs,
            outputs=plugin.outputs,
            bytes=tuple(_bytes(*plugin.tensors[name]) for name in plugin.arguments),
            grid=plugin.grid,
            threads=plugin.threads,
            shared=plugin.shared,
        )

    def _write_cache(self) -> list[Path]:
        """Write what loading would compile, where this machine's GPU can compile it; returns the file."""
        if not (self._on_this_gpu and self._edition.compiles_at_load):
            return []
        device = torch.device("cuda", torch.cuda.current_device())
        try:
            cache = Contexts(self._edition, self._folder, self.schedule.engines, device).cache()
        except ArtifactError as error:  # there is no artifact yet: it is the build that fails
            raise BuildError(f"what loading compiles cannot be compiled here: {error}") from error
        if cache is None:  # a build without engines
            return []
        self._write(CACHE, cache)
        return [Path(CACHE)]

    def _write(self, name: str, data: bytes) -> None:
        with writes(self._folder / name):
            (self._folder / name).write_bytes(data)


def _check_inputs(program: TracedProgram) -> None:
    """Raise LoweringError where tracing has added inputs of its own.

    Inputs are bound by their position in the call. A tensor that an op makes of numbers becomes one more input (a
    lifted constant), which nobody would bind.
    """
    found, expected = program_inputs(program.exported), len(program.signature.inputs)
    if len(found) != expected:
        specs = program.exported.graph_signature.input_specs
        lifted = {spec.arg.name for spec in specs if spec.kind.name != "USER_INPUT"}
        names = ", ".join(node.name for node in found if node.name in lifted) or "none of them lifted"
        raise LoweringError(
            f"program {program.name}: the graph has {len(found)} inputs, the call {expected}: {names}; "
            "make the op use plain numbers, or make the tensor an input of the program"
        )


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
