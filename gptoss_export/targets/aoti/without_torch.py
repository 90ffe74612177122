"""Programs of a package, loaded by libtorch's C interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ...artifact.manifest import Manifest
from ...cuda.gpu import current_gpu, gpu
from ...cuda.process_memory import set_small_workspaces
from ...errors import ArtifactError, MachineError
from ...libtorch.installation import Installation, installation
from ...libtorch.interface import Libtorch
from ...libtorch.program import Program
from ...machine_limits import writes
from ...runtime.mapped_files import MappedFiles
from ...runtime.tensors import LoadedProgram
from ...runtime.without_torch.array import Array
from ...runtime.without_torch.base import ArrayTensors
from ...runtime.without_torch.on_cpu import CpuArrays
from ...runtime.without_torch.on_gpu import GpuArrays
from ...temporary_folder import TemporaryFolder, check_executable
from .opened_package import OpenedPackage
from .package import ADVICE, checked_members, package_name, program_of

Result = TypeVar("Result")
_GPU = 0  # the first of those that the process sees


def begin(manifest: Manifest, tune_process: bool) -> None:
    """Begin to load libtorch, and to make the context of the GPU. Both take as long as a fifth of the weights."""
    on_gpu = manifest.device == "cuda"
    if on_gpu and tune_process:  # now, since no other thread may read the environment meanwhile
        set_small_workspaces()
    with suppress(MachineError):  # which the checks of the machine report
        _loading(installation(), on_gpu)
        if on_gpu and (found := current_gpu()) is not None:
            _in_background(found.open)


@cache
def _loading(found: Installation, on_gpu: bool) -> Future[Libtorch]:
    """libtorch, once for the process."""
    return _in_background(partial(Libtorch, found, on_gpu))


def _in_background(work: Callable[[], Result]) -> Future[Result]:
    thread = ThreadPoolExecutor(1)
    future = thread.submit(work)
    thread.shutdown(wait=False)
    return future


class LibtorchPackage(OpenedPackage):
    """For the first GPU that the process sees, or the CPU."""

    tensors: ArrayTensors

    def __init__(self, manifest: Manifest, folder: Path, arch: str, tune_process: bool) -> None:
        self._manifest, self._folder, self._arch = manifest, folder, arch
        on_gpu = manifest.device == "cuda"
        libtorch = _loading(installation(), on_gpu)
        if on_gpu:
            if tune_process:
                gpu(_GPU).limit_stack()
            self.tensors = GpuArrays(libtorch, gpu(_GPU))
        else:
            self.tensors = CpuArrays(libtorch)

    def programs(self, mapped: MappedFiles) -> dict[str, LoadedProgram]:
        return {name: partial(_run, opened, self.tensors, mapped) for name, opened in self.opened_programs().items()}

    def opened_programs(self) -> dict[str, Program]:
        """The programs by name. Raises as `programs`."""
        members = checked_members(self._manifest, self._folder, self._arch)
        name = package_name(self._arch, self._manifest.model)
        device = "cpu" if self.tensors.gpu_index is None else f"cuda:{self.tensors.gpu_index}"
        programs: dict[str, Program] = {}
        # Code stays mapped when its files are removed.
        with TemporaryFolder() as temporary, self.tensors.working():
            check_executable(temporary.path, ArtifactError)
            libraries = _write_libraries(members, temporary.path)
            for program, signature in self._manifest.programs.items():
                if program not in libraries:
                    raise ArtifactError(f"{self._folder / name}: program {program} has no library; {ADVICE}")
                try:
                    programs[program] = Program(
                        self.tensors.libtorch, libraries[program], self._manifest.files[name].sha256, program, device,
                        len(signature.outputs),
                    )  # fmt: skip
                except ArtifactError as error:
                    raise ArtifactError(f"{self._folder / name}: program {program} {error}") from error
        return programs


def _write_libraries(members: dict[str, bytes], folder: Path) -> dict[str, Path]:
    """The library of each program, in a folder of its own with what else the package has for it."""
    libraries = {}
    for member, data in members.items():
        if (program := program_of(member)) is not None:
            path = folder / program / PurePosixPath(member).name
            path.parent.mkdir(exist_ok=True)
            with writes(path):
                path.write_bytes(data)
            if path.suffix == ".so":
                libraries[program] = path
    return libraries


def _run(opened: Program, tensors: ArrayTensors, mapped: MappedFiles, inputs: Sequence[Any]) -> list[Array]:
    mapped.check()
    stream = tensors.stream if isinstance(tensors, GpuArrays) else None
    return [Array.of_handle(tensors, handle) for handle in opened.run([found.handle for found in inputs], stream)]
