"""AOTInductor: the programs of an artifact as one package of shared libraries, `programs.pt2`.

On CPU the ops are their references, fused by Inductor into C++. On CUDA they are Triton kernels, whose
cubins are embedded in the libraries; running them takes neither Triton nor a compiler.

Weights and caches are inputs of every program, not constants of it. So the package holds code alone (a few
MB whatever the model's size), the programs share one copy of the weights, and what is bound to them is
checked against the manifest by the runner: AOTInductor itself checks neither shapes nor strides.

Limits: compiles for the machine it runs on. The loader unpacks the libraries into the temporary folder,
which must not be mounted noexec.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..errors import ArtifactError, BuildError
from ..manifest import Manifest
from .target import Availability, Callables, Plan, Target, gpu_arch

if TYPE_CHECKING:
    from ..export import Program
    from ..lower import Implementations

PACKAGE = "programs.pt2"

# Packages of 2.11 and 2.13 were seen to run under each other's runtime; 2.12 lies between them.
_TORCH_VERSIONS = ("2.11", "2.12", "2.13")

# CPU code uses what the building machine has; a machine runs code of its own level and those before it.
_CPU_LEVELS = ("DEFAULT", "AVX2", "AVX512")


class Aoti(Target):
    name = "aoti"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}

    def available(self, device: str) -> Availability:
        if not _supported(torch.__version__):
            return Availability(
                False, f"torch {torch.__version__}; tested with {', '.join(_TORCH_VERSIONS)}",
                f"pip install 'torch>={_TORCH_VERSIONS[0]},<2.14'",
            )  # fmt: skip
        if shutil.which("g++") is None:
            return Availability(False, "g++ not found; AOTInductor compiles C++", "apt-get install g++")
        if device == "cpu":
            return Availability(True, f"torch {torch.__version__}, {self.here('cpu')}")
        if importlib.util.find_spec("triton") is None:
            return Availability(False, "triton not found", "pip install 'gptoss-export[cuda]'")
        if not torch.cuda.is_available():
            return Availability(False, "no CUDA GPU found by torch", "build on a machine with the GPU")
        return Availability(True, f"torch {torch.__version__}, {torch.cuda.get_device_name()} ({self.here('cuda')})")

    def here(self, device: str) -> str | None:
        if device == "cpu":
            return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
        return gpu_arch()

    def archs(self, device: str) -> tuple[str, ...]:
        here = self.here(device)
        return () if here is None else (here,)

    def versions(self) -> dict[str, str]:
        try:
            return {"triton": version("triton")}
        except PackageNotFoundError:
            return {}

    def implementations(self, device: str) -> Implementations:
        from ..lower import kernels, references

        return references() if device == "cpu" else kernels()

    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        from torch._inductor import aot_compile
        from torch.export.pt2_archive._package import package_pt2

        options: dict[str, Any] = {"aot_inductor.package": True}
        if plan.device == "cuda":
            options["aot_inductor.embed_kernel_binary"] = True
            options["memory_planning"] = True  # intermediates in one allocation, whose parts are used again
        compiled: dict[str, Any] = {}
        for program in programs:
            arguments, _ = program.exported.example_inputs
            module = program.exported.module(check_guards=False)
            try:
                compiled[program.name] = aot_compile(module, arguments, options=options)
            except Exception as error:  # Inductor raises any kind; the user needs the program's name
                raise BuildError(f"AOTInductor failed on program {program.name}: {error}") from error
            _check_linked(compiled[program.name])
        package_pt2(plan.folder / PACKAGE, aoti_files=compiled)
        return [Path(PACKAGE)]

    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found = [] if PACKAGE in manifest.files else [f"files: {PACKAGE} is missing from the manifest"]
        built_with, torch_here = manifest.versions["torch"], torch.__version__
        if not (_supported(built_with) and _supported(torch_here)) and _minor(built_with) != _minor(torch_here):
            found.append(
                f"torch: artifact built with {built_with}, found {torch_here}; packages run across "
                f"{', '.join(_TORCH_VERSIONS)} only: install torch {_minor(built_with)} or build again"
            )
        if manifest.device == "cuda" and not torch.cuda.is_available():
            found.append(f"device: artifact is for a CUDA GPU ({manifest.arch}), torch finds none here")
        elif not self._runs(manifest.arch, here := self.here(manifest.device)):
            found.append(
                f"arch: artifact is for {manifest.arch}, this machine is {here}; "
                "build it for this machine"
            )
        return found

    def _runs(self, built_for: str, here: str) -> bool:
        machine, _, level = built_for.partition("-")
        machine_here, _, level_here = here.partition("-")
        if level in _CPU_LEVELS and level_here in _CPU_LEVELS:
            return machine == machine_here and _CPU_LEVELS.index(level) <= _CPU_LEVELS.index(level_here)
        return built_for == here

    def load(self, manifest: Manifest, folder: Path, device: torch.device) -> Callables:
        index = device.index or 0 if device.type == "cuda" else -1
        programs: Callables = {}
        for name in manifest.programs:
            try:
                loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / PACKAGE), name, True, 1, index)
            except RuntimeError as error:
                raise ArtifactError(f"{folder / PACKAGE}: program {name} cannot be loaded: {error}") from error
            programs[name] = partial(_run, loader)
        return programs


def _check_linked(files: Sequence[Any]) -> None:
    """A library with a C++ runtime of its own inside crashes in the process that loads it, which has torch's."""
    for library in (Path(file) for file in files if str(file).endswith(".so")):
        if not any(name in library.read_bytes() for name in (b"libstdc++.so", b"libc++.so")):
            raise BuildError(
                f"the C++ compiler ({os.environ.get('CXX', 'g++')}) links its standard library statically, and "
                "such code crashes when it is loaded; set CXX to a compiler that does not, such as CXX=/usr/bin/g++"
            )


def _run(loader: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return loader.run(list(inputs))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _supported(version: str) -> bool:
    return _minor(version) in _TORCH_VERSIONS
