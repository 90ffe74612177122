"""Lowered programs to engines, plugins and the schedule, in an artifact's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import LoweringError, raise_all
from ...export import Program
from ...lower import plugin_maker
from .cut import Launch, Segment, cut
from .engine import build_engine, missing_converters
from .flavour import Flavour
from .plan import bound, plan
from .schedule import NAME, EngineStep, KernelStep, PluginSpec, ProgramSchedule, Schedule, save_schedule


def build_programs(
    programs: Iterable[Program], flavour: Flavour, arch: str, on_this_gpu: bool, folder: Path
) -> list[Path]:
    """Build every program; returns the files, relative to `folder`.

    Raises LoweringError naming every node that has no converter, BuildError where TensorRT refuses.
    """
    maker = plugin_maker()(arch)
    for name in "engines", "plugins":
        (folder / name).mkdir()
    engines: dict[str, str] = {}
    plugins: dict[str, PluginSpec] = {}
    schedules: dict[str, ProgramSchedule] = {}
    for program in programs:
        steps = cut(program.exported, program.name)
        missing = [text for step in steps if isinstance(step, Segment) for text in missing_converters(step)]
        raise_all(LoweringError, f"program {program.name}: ops that TensorRT has no converter for", missing)
        places, arena = plan(program.exported, steps)
        scheduled: list[EngineStep | KernelStep] = []
        for step in steps:
            references = tuple(places[node] for node in bound(step))
            if isinstance(step, Segment):
                if step.key not in engines:
                    engine = build_engine(step, flavour, arch, on_this_gpu)
                    (folder / "engines" / f"{step.key}.engine").write_bytes(engine)
                    engines[step.key] = f"{program.name}: {step.nodes[0].name} to {step.nodes[-1].name}, {len(step.nodes)} nodes"
                count = len(step.inputs)
                scheduled.append(EngineStep(step.key, references[:count], references[count:]))
            else:
                scheduled.append(_kernel_step(step, references, maker, plugins, folder))
        schedules[program.name] = ProgramSchedule(arena, tuple(scheduled))
    save_schedule(Schedule(engines, plugins, schedules), folder)
    files = [Path(NAME), *(Path("engines", f"{key}.engine") for key in engines)]
    return files + [Path("plugins", name + kind) for name in plugins for kind in (".ptx", ".cubin")]


def _kernel_step(launch: Launch, references, maker, plugins, folder) -> KernelStep:
    arguments = {name: value.meta["val"] if name in launch.tensors else value for name, value in launch.arguments.items()}
    try:
        plugin = maker.make(launch.kernel, arguments, launch.grid)
    except ValueError as error:
        raise LoweringError(f"{launch.name}: cannot be a plugin: {error}") from error
    if plugin.name not in plugins:
        (folder / "plugins" / f"{plugin.name}.ptx").write_text(plugin.ptx)
        (folder / "plugins" / f"{plugin.name}.cubin").write_bytes(plugin.cubin)
        plugins[plugin.name] = PluginSpec(
            plugin.function, plugin.arguments, plugin.written, plugin.grid, plugin.threads, plugin.shared
        )
    by_name = dict(zip(launch.tensors, references, strict=True))
    return KernelStep(plugin.name, tuple(by_name[name] for name in plugin.arguments))
