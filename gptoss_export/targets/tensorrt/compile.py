"""TensorRT: the aten parts of a program as engines, its kernels as plugins.

The kernels of `plugins/` (attention with sinks, MXFP4 experts, cache writes) are launched; everything else is
TensorRT's own layers, made from the traced graph by the table in converters.py. The graph is cut at each kernel
into engine segments (cut.py), whose tensors are bound by address: weights are inputs, so that engines are small,
decode and prefill share one copy, and layers of a kind share one engine.

    engines/<key>.engine            a segment; layers of equal structure share it
    plugins/<name>.ptx, .cubin      a kernel, without Triton's scratch parameters (where engines hold none)
    schedule.json                   the steps of each program and what they are bound to

Running needs TensorRT's Python runtime, cuda-bindings and torch (for memory): no Triton.

Limits: an engine loads in the TensorRT version that built it, on the arch it was built for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from ...errors import ArtifactError
from ...artifact.manifest import Manifest
from ..target import Availability, Callables, Plan, Table, Target, gpu_arch
from .edition import FULL, INSTALL, RTX, Flavour, installed

if TYPE_CHECKING:
    from ...compiler.export import Program
    from ...compiler.lower import Implementations

_ELSEWHERE = ("sm_80", "sm_86", "sm_89", "sm_120")  # what TensorRT for RTX builds for without that GPU


class TensorRT(Target):
    name = "tensorrt"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cuda": ("bfloat16",)}

    def available(self, device: str) -> Availability:
        flavour = installed()
        if flavour is None:
            return Availability(False, "neither tensorrt nor tensorrt_rtx is installed", INSTALL[RTX])
        if importlib.util.find_spec("triton") is None:
            return Availability(False, f"{_spell(flavour)}; triton not found", "pip install 'gptoss-export[cuda]'")
        if not self.archs(device):
            return Availability(False, f"{_spell(flavour)} builds on a GPU only, and torch finds none", INSTALL[RTX])
        builds = f"builds {', '.join(self.archs(device))}"
        if flavour.has_plugins:
            return Availability(True, f"{_spell(flavour)}, kernels inside of engines (never yet executed); {builds}")
        other = f"for kernels inside of engines, in place of {RTX}: {INSTALL[FULL]}"
        return Availability(True, f"{_spell(flavour)}, kernels between engines; {builds}", other)

    def here(self, device: str) -> str | None:
        return gpu_arch()

    def archs(self, device: str) -> tuple[str, ...]:
        flavour, here = installed(), self.here(device)
        elsewhere = _ELSEWHERE if flavour is not None and flavour.name == RTX else ()
        if here is None or flavour is None or not flavour.supports(here):
            return elsewhere
        return here, *(arch for arch in elsewhere if arch != here)

    def versions(self) -> dict[str, str]:
        flavour = installed()
        return {flavour.name: flavour.version, "triton": version("triton")}

    def trace_device(self, device: str) -> torch.device:
        return torch.device("cpu")  # the graph names no device, and torch for CPU alone knows no other

    def implementations(self, plan: Plan) -> Implementations:
        from ...compiler.lower import launches, references

        return references() | launches(plan.arch, plan.tables, "sink_attention", "mxfp4_experts", "kv_write")

    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        from .build import build_programs

        return build_programs(programs, installed(), plan.arch, plan.arch == self.here(plan.device), plan.folder)

    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        from .schedule import load_schedule

        found = []
        built_with = _built_with(manifest)
        if built_with is None:
            found.append("versions: the manifest names no TensorRT; build the artifact again")
        else:
            flavour, wanted = installed(built_with), manifest.versions[built_with]
            if flavour is None or flavour.version != wanted:
                found.append(
                    f"{built_with}: artifact built with {wanted}, found {_spell(flavour or installed())}; engines load in "
                    f"the version that built them: {INSTALL[built_with]}, version {wanted}, or build again"
                )
        if built_with == RTX and not _found("cuda.bindings"):
            found.append("cuda-bindings: not found, it launches the kernels; run: pip install cuda-bindings")
        here = self.here(manifest.device)
        if here is None:
            found.append(f"device: artifact is for a CUDA GPU ({manifest.arch}), torch finds none here")
        elif here != manifest.arch:
            found.append(f"arch: artifact is for {manifest.arch}, this GPU is {here}; build with --arch {here}")
        try:
            load_schedule(folder, manifest)
        except ArtifactError as error:
            found.append(str(error))
        return found

    def load(self, manifest: Manifest, folder: Path, device: torch.device) -> Callables:
        from .run import load_programs

        return load_programs(manifest, folder, device, installed(_built_with(manifest)))

    def tables(self, manifest: Manifest, folder: Path) -> list[Table]:
        from .schedule import EngineStep, load_schedule

        schedule = load_schedule(folder, manifest)
        used: dict[str, dict[str, int]] = {}
        for name, program in schedule.programs.items():
            for step in program.steps:
                key = step.engine if isinstance(step, EngineStep) else step.plugin
                used.setdefault(key, {}).setdefault(name, 0)
                used[key][name] += 1

        def uses(key: str) -> str:
            return ", ".join(f"{name} x{count}" for name, count in used.get(key, {}).items())

        segments = [(key, spelled, str(manifest.files[f"engines/{key}.engine"].bytes), uses(key))
                    for key, spelled in schedule.engines.items()]  # fmt: skip
        plugins = [
            (name, " x ".join(map(str, spec.grid)), str(spec.threads), str(spec.shared), uses(name))
            for name, spec in schedule.plugins.items()
        ]
        programs = []
        for name, program in schedule.programs.items():
            engines = sum(isinstance(step, EngineStep) for step in program.steps)
            programs.append((name, str(engines), str(len(program.steps) - engines), str(program.arena)))
        return [
            Table("steps", ("program", "engines run", "kernels launched", "scratch bytes"), programs),
            Table("engine segments", ("engine", "of", "bytes", "used by"), segments),
            Table("plugins", ("kernel", "grid", "threads", "shared bytes", "used by"), plugins),
        ]


def _built_with(manifest: Manifest) -> str | None:
    """The TensorRT that an artifact needs, by the versions that its manifest names."""
    return next((name for name in INSTALL if name in manifest.versions), None)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


def _spell(flavour: Flavour | None) -> str:
    if flavour is None:
        return "no TensorRT"
    seen = f" (its engines ran on {', '.join(flavour.seen_on)} in trials)" if flavour.seen_on else ""
    return f"{flavour.name} {flavour.version}{seen}"

