"""Loads AOTInductor packages. Needs torch alone: no Triton, no compiler.

torch's loader unpacks the libraries into a temporary folder, which must not be mounted noexec. It is removed as soon as
they are loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ...artifact.manifest import Manifest
from ...artifact.programs import Interleave, programs_of
from ...compat.packaged_program import PackagedProgram
from ...compat.versions import SUPPORTED, is_supported, minor
from ...errors import ArtifactError, RunError
from ...machine_limits import writes
from ...progress import Progress
from ...runtime.cuda.interleaving import interleave_weights
from ...runtime.cuda.memory import reduce_process_memory
from ...runtime.mapped_files import MappedFiles
from ...runtime.page_memory import allocate_pages
from ...runtime.program_executor import LoadedProgram, ProgramExecutor
from ...runtime.weights import load_weights
from ...temporary_folder import TemporaryFolder, check_executable
from ..base_loader import Loader, LoadSettings
from ..gpu import current_gpu_arch
from . import cpu_isa
from .package import checked_package, package_name, runnable_arch


class AotiLoader(Loader):
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        missing = manifest.missing_programs(programs_of(manifest.sizes, manifest.device))
        found = [f"programs: {name} is missing from the manifest" for name in missing]
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

    def load(self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings) -> ProgramExecutor:
        device = torch.device(manifest.device)
        if device.type == "cuda":
            if settings.tune_process:
                reduce_process_memory()
            device = torch.device("cuda", torch.cuda.current_device())
        with progress.stage("load weights"):
            # On CUDA the weights are copied to the GPU.
            mapped = MappedFiles(folder / name for name in manifest.weight_files() if device.type == "cpu")
            weights = load_weights(manifest, folder, device)
        with progress.stage("load programs"):
            programs = load_programs(manifest, folder, device, mapped)
        with progress.stage("allocate and warm up"):
            if device.type == "cuda":
                interleave = programs[Interleave().name]
                interleave_weights(weights, lambda words: interleave([words])[0])
            memory = allocate_pages(manifest, device, settings.kv_memory)
            return ProgramExecutor(manifest, folder, device, weights, programs, memory)


def load_programs(
    manifest: Manifest, folder: Path, device: torch.device, mapped: MappedFiles
) -> dict[str, LoadedProgram]:
    """The programs of the package that this machine runs.

    mapped  the files of weights that the programs read where they are mapped

    Raises ArtifactError naming the program that cannot be loaded.
    """
    arch = runnable_arch(manifest, _current_arch(manifest))
    if arch is None:
        raise ArtifactError(f"{folder}: has no code for this machine")
    data = checked_package(manifest, folder, arch)
    programs: dict[str, LoadedProgram] = {}
    # Code stays mapped when its files are removed.
    with TemporaryFolder() as temporary:
        check_executable(temporary.path, ArtifactError)
        package = temporary.path / package_name(arch)
        with writes(package):
            package.write_bytes(data)
        for name in manifest.programs:
            try:
                opened = PackagedProgram(package, manifest.files[package.name].sha256, name, device)
            except RuntimeError as error:
                raise ArtifactError(
                    f"{folder / package.name}: program {name} cannot be loaded: {_first_line(error)}"
                ) from error
            programs[name] = partial(_run, opened, name, mapped)
    return programs


def _current_arch(manifest: Manifest) -> str | None:
    return cpu_isa.current_arch() if manifest.device == "cpu" else current_gpu_arch()


def _run(opened: PackagedProgram, name: str, mapped: MappedFiles, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    mapped.check()
    try:
        return opened.run(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RunError(f"program {name} failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """An error of torch without the stack of its C++."""
    return next(iter(str(error).splitlines()), type(error).__name__)


LOADER = AotiLoader()
