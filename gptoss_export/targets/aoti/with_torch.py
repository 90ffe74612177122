"""Programs of a package, loaded by torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...artifact.manifest import Manifest
from ...compat.packaged_program import PackagedProgram
from ...errors import ArtifactError, RunError
from ...machine_limits import writes
from ...runtime.mapped_files import MappedFiles
from ...runtime.tensors import LoadedProgram
from ...runtime.with_torch.process_memory import reduce_process_memory
from ...runtime.with_torch.tensors import TorchTensors
from ...temporary_folder import TemporaryFolder, check_executable
from .opened_package import OpenedPackage
from .package import archive, checked_members, package_name


class TorchPackage(OpenedPackage):
    """For torch's current GPU, or the CPU."""

    def __init__(self, manifest: Manifest, folder: Path, arch: str, tune_process: bool) -> None:
        device = torch.device(manifest.device)
        if device.type == "cuda":
            if tune_process:
                reduce_process_memory()
            device = torch.device("cuda", torch.cuda.current_device())
        self._manifest, self._folder, self._arch, self._device = manifest, folder, arch, device
        self.tensors = TorchTensors(device)

    def programs(self, mapped: MappedFiles) -> dict[str, LoadedProgram]:
        data = archive(checked_members(self._manifest, self._folder, self._arch))
        name = package_name(self._arch, self._manifest.model)
        programs: dict[str, LoadedProgram] = {}
        # Code stays mapped when its files are removed.
        with TemporaryFolder() as temporary:
            check_executable(temporary.path, ArtifactError)
            package = temporary.path / name
            with writes(package):
                package.write_bytes(data)
            for program in self._manifest.programs:
                try:
                    opened = PackagedProgram(package, self._manifest.files[name].sha256, program, self._device)
                except RuntimeError as error:
                    raise ArtifactError(
                        f"{self._folder / name}: program {program} cannot be loaded: {_first_line(error)}"
                    ) from error
                programs[program] = partial(_run, opened, program, mapped)
        return programs


def _run(opened: PackagedProgram, name: str, mapped: MappedFiles, inputs: Sequence[Any]) -> list[torch.Tensor]:
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
