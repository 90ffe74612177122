"""Loads engines and kernels. Needs TensorRT's Python runtime, cuda-bindings (for kernels between engines) and torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from ...artifact.manifest import Manifest
from ...artifact.programs import model_programs
from ...errors import ArtifactError
from ...model.mxfp4 import interleave_words
from ...progress import Progress
from ...runtime.interleaving import interleave_weights
from ...runtime.page_memory import allocate_pages
from ...runtime.program_executor import ProgramExecutor
from ...runtime.weights import load_weights
from ...runtime.with_torch.choices import IN_TORCH
from ...runtime.with_torch.process_memory import reduce_process_memory
from ...runtime.with_torch.tensors import TorchTensors
from ..base_loader import Loader, LoadSettings, Table
from ..gpu import current_gpu_arch
from .check import load_schedule
from .edition import INSTALL, RTX, Edition, edition_problem, installed_edition
from .run import load_programs
from .schedule import EngineStep


class TensorRTLoader(Loader):
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        missing = manifest.missing_programs(model_programs(manifest.sizes))
        found = [f"programs: {name} is missing from the manifest" for name in missing]
        found += _edition_problems(manifest)
        if _built_with(manifest) == RTX and not _is_installed("cuda.bindings"):
            found.append("cuda-bindings: not installed, it launches the kernels; run: pip install cuda-bindings")
        current = current_gpu_arch()
        if current is None:
            found.append(f"device: artifact is for a CUDA GPU ({manifest.arch}), torch finds none here")
        elif current != manifest.arch:
            found.append(f"arch: artifact is for {manifest.arch}, this GPU is {current}; build with --arch {current}")
        try:
            load_schedule(folder, manifest)
        except ArtifactError as error:
            found.append(str(error))
        return found

    def load(self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings) -> ProgramExecutor:
        edition = _edition(manifest, folder)
        if settings.tune_process:
            reduce_process_memory()
        device = torch.device("cuda", torch.cuda.current_device())
        tensors = TorchTensors(device)
        with progress.stage("load weights"), tensors.working():
            with load_weights(manifest, folder, tensors) as loading:
                loading.wait()
            weights = loading.tensors
            interleave_weights(weights, interleave_words, tensors)
        with progress.stage("load programs"):
            programs = load_programs(manifest, folder, device, edition)
        with progress.stage("allocate and warm up"):
            with tensors.working():
                memory = allocate_pages(manifest, tensors, settings.kv_memory)
            return ProgramExecutor(manifest, folder, tensors, weights, programs, memory, IN_TORCH)

    def tables(self, manifest: Manifest, folder: Path) -> list[Table]:
        schedule = load_schedule(folder, manifest)
        used: dict[str, dict[str, int]] = {}  # engine or plugin -> program -> how often
        for name, program in schedule.programs.items():
            for step in program.steps:
                key = step.engine if isinstance(step, EngineStep) else step.plugin
                uses = used.setdefault(key, {})
                uses[name] = uses.get(name, 0) + 1

        def users(key: str) -> str:
            return ", ".join(f"{name} x{count}" for name, count in used.get(key, {}).items())

        programs: list[tuple[str, ...]] = []
        for name, program in schedule.programs.items():
            engines = sum(isinstance(step, EngineStep) for step in program.steps)
            programs.append((name, str(engines), str(len(program.steps) - engines), str(program.arena)))
        segments: list[tuple[str, ...]] = [
            (key, label, str(manifest.files[f"engines/{key}.engine"].bytes), users(key))
            for key, label in schedule.engines.items()
        ]
        plugins: list[tuple[str, ...]] = [
            (name, " x ".join(map(str, spec.grid)), str(spec.threads), str(spec.shared), users(name))
            for name, spec in schedule.plugins.items()
        ]
        return [
            Table("schedule", ("program", "engines run", "kernels launched", "scratch bytes"), programs),
            Table("engine segments", ("engine", "of", "bytes", "used by"), segments),
            Table("plugins", ("kernel", "grid", "threads", "shared bytes", "used by"), plugins),
        ]


def _built_with(manifest: Manifest) -> str | None:
    """The TensorRT that an artifact needs, by the versions in its manifest."""
    return next((name for name in INSTALL if name in manifest.versions), None)


def _edition(manifest: Manifest, folder: Path) -> Edition:
    name = _built_with(manifest)
    edition = None if name is None else installed_edition(name)
    if edition is None:
        problems = "; ".join(_edition_problems(manifest))
        raise ArtifactError(f"{folder}: {problems}")
    return edition


def _edition_problems(manifest: Manifest) -> list[str]:
    name = _built_with(manifest)
    if name is None:
        return ["versions: the manifest names no TensorRT; build the artifact again"]
    wanted, edition = manifest.versions[name], installed_edition(name)
    if edition is not None and edition.version == wanted:
        return []
    found = str(edition)
    if edition is None:
        other, problem = installed_edition(), edition_problem(name)
        found = f"{problem}" if other is None else f"{other} ({problem})"
    return [
        f"{name}: artifact built with {wanted}, found {found}; engines load in the version that built them: "
        f"{INSTALL[name]}, version {wanted}, or build again"
    ]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not installed either
        return False


LOADER = TensorRTLoader()
