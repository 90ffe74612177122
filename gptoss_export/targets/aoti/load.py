"""Loads AOTInductor packages. Needs torch alone: no Triton, no compiler.

torch's loader unpacks the libraries into the temporary folder, which must not be mounted noexec.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...artifact.manifest import Manifest
from ...compat.pytorch import open_package
from ...compat.versions import SUPPORTED, is_supported, minor
from ...errors import ArtifactError
from ...progress import Progress
from ...runtime.cuda.memory import reduce_process_memory
from ...runtime.program_executor import LoadedProgram, ProgramExecutor
from ...runtime.weights import load_weights
from ..base_loader import Loader
from ..gpu import current_gpu_arch
from . import cpu_isa
from .package import package_name, runnable_arch


class AotiLoader(Loader):
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found = [f"programs: {name} is missing from the manifest" for name in manifest.missing_programs()]
        found += [
            f"files: {package_name(arch)} is missing from the manifest"
            for arch in manifest.archs
            if package_name(arch) not in manifest.files
        ]
        built_with, installed = manifest.versions["torch"], torch.__version__
        supported = is_supported("torch", built_with) and is_supported("torch", installed)
        if not supported and minor(built_with) != minor(installed):
            found.append(
                f"torch: artifact built with {built_with}, found {installed}; packages run across "
                f"{', '.join(SUPPORTED['torch'])} only: install torch {minor(built_with)} or build again"
            )
        if manifest.provenance.machine != platform.machine():
            found.append(
                f"machine: artifact was built on {manifest.provenance.machine}, this machine is {platform.machine()}; "
                "build it on such a machine"
            )
        current = _current_arch(manifest)
        if manifest.device == "cuda" and current is None:
            found.append(f"device: artifact is for a CUDA GPU ({manifest.arch}), torch finds none here")
        elif runnable_arch(manifest, current) is None:
            archs = ", ".join(manifest.archs)
            found.append(f"arch: artifact has code for {archs}, this machine is {current}; build with --arch {current}")
        return found

    def load(self, manifest: Manifest, folder: Path, progress: Progress, tune_process: bool) -> ProgramExecutor:
        device = torch.device(manifest.device)
        if device.type == "cuda":
            if tune_process:
                reduce_process_memory()
            device = torch.device("cuda", torch.cuda.current_device())
        with progress.stage("load weights"):
            weights = load_weights(manifest, folder, device)
        with progress.stage("load programs"):
            programs = load_programs(manifest, folder, device)
        with progress.stage("allocate and warm up"):
            return ProgramExecutor(manifest, folder, device, weights, programs)


def load_programs(manifest: Manifest, folder: Path, device: torch.device) -> dict[str, LoadedProgram]:
    """The programs of the package that this machine runs. Raises ArtifactError naming the one that cannot be loaded."""
    arch = runnable_arch(manifest, _current_arch(manifest))
    if arch is None:
        raise ArtifactError(f"{folder}: has no code for this machine")
    package = folder / package_name(arch)
    programs: dict[str, LoadedProgram] = {}
    for name in manifest.programs:
        try:
            opened = open_package(package, name, device)
        except RuntimeError as error:
            raise ArtifactError(f"{package}: program {name} cannot be loaded: {error}") from error
        programs[name] = partial(_run, opened)
    return programs


def _current_arch(manifest: Manifest) -> str | None:
    return cpu_isa.current_arch() if manifest.device == "cpu" else current_gpu_arch()


def _run(opened: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return opened.run(list(inputs))


LOADER = AotiLoader()
