"""Loads AOTInductor packages: with torch where the process has imported it, without torch's Python elsewhere. Needs no
Triton and no compiler.

The libraries of a package are written into a temporary folder, which must not be mounted noexec. It is removed as soon
as they are loaded.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from ...artifact.manifest import Manifest
from ...artifact.programs import Interleave, programs_of
from ...compat.versions import SUPPORTED, is_supported, minor
from ...errors import ArtifactError, MachineError
from ...libtorch.installation import installation
from ...model.ranks import program_configs
from ...progress import Progress
from ...runtime.adapter_memory import AdapterMemory
from ...runtime.interleaving import interleave_weights
from ...runtime.mapped_files import MappedFiles
from ...runtime.page_memory import allocate_pages
from ...runtime.program_executor import ProgramExecutor
from ...runtime.tensors import LoadedProgram, Tensor, Tensors
from ...runtime.weights import Weights, load_weights
from ..base_loader import Loader, LoadSettings
from ..gpu import current_gpu_arch, rank_problems
from . import cpu_isa
from .opened_package import OpenedPackage
from .package import package_name, runnable_arch


class AotiLoader(Loader):
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        missing = manifest.missing_programs(programs_of(manifest.sizes, manifest.device))
        found = [f"programs: {name} is missing from the manifest" for name in missing]
        found += [
            f"files: {name} is missing from the manifest"
            for config in program_configs(manifest.model, manifest.sizes.sharing)
            for arch in manifest.archs
            if (name := package_name(arch, config)) not in manifest.files
        ]
        built_with = manifest.versions["torch"]
        try:
            installed = _installed_torch()
        except MachineError as error:
            return [*found, str(error)]
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
        if manifest.device == "cuda" and current is not None and manifest.sizes.ranks > 1:
            found += rank_problems(manifest.sizes.ranks)
        if manifest.device == "cuda" and current is None:
            found.append(f"device: artifact is for a CUDA GPU ({manifest.arch}), found none here")
        elif runnable_arch(manifest, current) is None:
            archs = ", ".join(manifest.archs)
            found.append(f"arch: artifact has code for {archs}, this machine is {current}; build with --arch {current}")
        return found

    def begin(self, manifest: Manifest, settings: LoadSettings) -> None:
        if "torch" not in sys.modules:
            from .without_torch import begin

            begin(manifest, settings.tune_process)

    def load(self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings) -> ProgramExecutor:
        with progress.stage("open the device"):
            package, mapped = _opened_with_files(manifest, folder, settings)
        tensors = package.tensors
        with progress.stage("begin to load weights"), tensors.working():
            loading = load_weights(manifest, folder, tensors, settings.places)
        with loading as weights:
            with progress.stage("load programs"):
                programs = package.programs(mapped)

            def finish_weights() -> None:
                with progress.stage("wait for the weights"):
                    _finish(weights, programs, tensors)

            if not tensors.captures_at_first:  # programs run before they are captured, with the weights
                finish_weights()
            with progress.stage("allocate and capture" if tensors.on_gpu else "allocate"):
                with tensors.working():
                    # Before the pool, which takes what the GPU has left.
                    adapters = AdapterMemory(manifest, tensors) if manifest.sizes.adapter_slots else None
                    memory = allocate_pages(manifest, tensors, settings.kv_memory, settings.agreed)
                executor = ProgramExecutor(
                    manifest, folder, tensors, weights.tensors, programs, memory, choices={}, adapters=adapters
                )
                if tensors.captures_at_first:
                    executor.capture_while(weights.on_their_way)
            if tensors.captures_at_first:
                finish_weights()
        return executor

    def load_training(
        self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings
    ) -> tuple[LoadedProgram, Mapping[str, Tensor]]:
        import torch  # noqa: F401  (so that the package is opened by it)

        package, mapped = _opened_with_files(manifest, folder, settings)
        tensors = package.tensors
        with tensors.working():
            loading = load_weights(manifest, folder, tensors)
        with loading as weights:
            with progress.stage("load programs"):
                programs = package.programs(mapped)
            with progress.stage("wait for the weights"):
                _finish(weights, programs, tensors)
        (step,) = (program.name for program in programs_of(manifest.sizes, "cpu"))
        return programs[step], weights.tensors


def _finish(weights: Weights, programs: Mapping[str, LoadedProgram], tensors: Tensors) -> None:
    """Wait for the weights, and bring them into the form that the kernels of a GPU take."""
    weights.wait()
    if tensors.on_gpu:
        interleave = programs[Interleave().name]
        interleave_weights(weights.tensors, lambda words: interleave([words])[0], tensors)


def _opened_with_files(manifest: Manifest, folder: Path, settings: LoadSettings) -> tuple[OpenedPackage, MappedFiles]:
    """The package for this machine, and the files whose bytes its programs read. Raises ArtifactError where there is no
    code for this machine."""
    arch = runnable_arch(manifest, _current_arch(manifest))
    if arch is None:
        raise ArtifactError(f"{folder}: has no code for this machine")
    package = _opened(manifest, folder, arch, settings.tune_process)
    on_gpu = package.tensors.on_gpu  # where the weights are copied to it
    return package, MappedFiles(folder / name for name in manifest.weight_files() if not on_gpu)


def _opened(manifest: Manifest, folder: Path, arch: str, tune_process: bool) -> OpenedPackage:
    """The package for `arch`, in the way that suits this process."""
    if manifest.sizes.ranks > 1 and manifest.device == "cpu":
        from .with_collectives import CollectivePackage

        return CollectivePackage(manifest, folder, arch)
    if "torch" in sys.modules:
        from .with_torch import TorchPackage

        return TorchPackage(manifest, folder, arch, tune_process)
    from .without_torch import LibtorchPackage

    return LibtorchPackage(manifest, folder, arch, tune_process)


def _current_arch(manifest: Manifest) -> str | None:
    return cpu_isa.current_arch() if manifest.device == "cpu" else current_gpu_arch()


def _installed_torch() -> str:
    torch = sys.modules.get("torch")
    return installation().version if torch is None else torch.__version__


LOADER = AotiLoader()
