"""AOTInductor: the programs of an artifact as a package of shared libraries for each arch, `programs-<arch>.pt2`.

On CPU the ops are their references, fused by Inductor into C++. On CUDA they are Triton kernels, whose
cubins are embedded in the libraries; running them takes neither Triton nor a compiler.

Weights and caches are inputs of every program, not constants of it. So the package holds code alone (a few
MB whatever the model's size), the programs share one copy of the weights, and what is bound to them is
checked against the manifest by the runner: AOTInductor itself checks neither shapes nor strides.

Code for a GPU that the machine does not have is compiled with a stand-in for it (stand_in.py). With the GPU itself Inductor
times the configurations of the small kernels that it makes; with the stand-in it takes the first of each. What torch wants to know
of our kernels is found once a kind of call (kernel_accesses.py), which is a third of the time.

Code that runs on a CPU uses the instructions of a level (cpu_isa.py), not all that the building machine has.

The loader unpacks the libraries into the temporary folder,
which must not be mounted noexec.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...errors import ArtifactError, BuildError
from ...artifact.manifest import Manifest
from ..aoti import cpu_isa
from ...compat import mutation_analysis as kernel_accesses, fake_gpu as stand_in
from ..target import Availability, Callables, Plan, Target, gpu_arch

if TYPE_CHECKING:
    from ...compiler.export import Program
    from ...compiler.lower import Implementations


# Packages of 2.11 and 2.13 were seen to run under each other's runtime; 2.12 lies between them.
_TORCH_VERSIONS = ("2.11", "2.12", "2.13")
_ENTRY = b"AOTInductorModelContainerCreateWithDevice"  # what a loader calls first


class Aoti(Target):
    name = "aoti"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}

    def available(self, device: str) -> Availability:
        if not _supported(torch.__version__):
            return Availability(
                False, f"torch {torch.__version__}; tested with {', '.join(_TORCH_VERSIONS)}",
                f"pip install 'torch>={_TORCH_VERSIONS[0]},<2.14'",
            )  # fmt: skip
        if shutil.which("g++") is None or shutil.which("strip") is None:
            return Availability(False, "g++ or strip not found; AOTInductor compiles C++", "apt-get install g++ binutils")
        if device == "cpu":
            return Availability(True, f"torch {torch.__version__}, {self.here('cpu')}")
        if importlib.util.find_spec("triton") is None:
            return Availability(False, "triton not found", "pip install 'gptoss-export[cuda]'")
        here, elsewhere = self.here("cuda"), stand_in.problems()
        if here is None and elsewhere:
            return Availability(False, "; ".join(["no CUDA GPU found by torch", *elsewhere]), "pip install 'gptoss-export[cuda]'")
        detail = f"torch {torch.__version__}, {torch.cuda.get_device_name() if here else 'no GPU, which it does not need'}"
        return Availability(True, f"{detail}; archs {', '.join(self.archs('cuda'))}", "; ".join(elsewhere))

    def here(self, device: str) -> str | None:
        return cpu_isa.here() if device == "cpu" else gpu_arch()

    def archs(self, device: str) -> tuple[str, ...]:
        if device == "cpu":
            return cpu_isa.archs()
        here, elsewhere = self.here(device), () if stand_in.problems() else tuple(stand_in.GPUS)
        return tuple(dict.fromkeys((here, *elsewhere) if here else elsewhere))

    def many_archs(self, device: str) -> bool:
        return True

    @contextmanager
    def compiling(self, device: str, arch: str) -> Iterator[None]:
        with ExitStack() as stack:
            if device == "cuda" and arch != self.here(device):
                stack.enter_context(stand_in.stand_in(arch))
            if device == "cuda":
                stack.enter_context(kernel_accesses.asked_once())
            stack.enter_context(cpu_isa.instructions(cpu_isa.GLUE if device == "cuda" else arch.partition("-")[2]))
            yield

    def versions(self) -> dict[str, str]:
        try:
            return {"triton": version("triton")}
        except PackageNotFoundError:
            return {}

    def implementations(self, plan: Plan) -> Implementations:
        from ...compiler.lower import kernel_ops, references

        return references() if plan.device == "cpu" else kernel_ops(plan.arch, plan.tables)

    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        from torch.export.pt2_archive._package import package_pt2

        options: dict[str, Any] = {"aot_inductor.package": True}
        if plan.device == "cuda":
            options["aot_inductor.embed_kernel_binary"] = True
            options["memory_planning"] = True  # intermediates in one allocation, whose parts are used again
            options["aot_inductor.compile_wrapper_opt_level"] = "O0"  # it only launches; optimizing it takes g++ longest
        package = _package(plan.arch)
        with TemporaryDirectory(prefix="gptoss-export-") as scratch:
            compiled = {name: _without_sources(files, Path(scratch, name)) for name, files in _compiled(programs, options)}
            package_pt2(plan.folder / package, aoti_files=compiled)
        return [Path(package)]

    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found = [f"files: {_package(arch)} is missing from the manifest" for arch in manifest.archs
                 if _package(arch) not in manifest.files]  # fmt: skip
        built_with, torch_here = manifest.versions["torch"], torch.__version__
        if not (_supported(built_with) and _supported(torch_here)) and _minor(built_with) != _minor(torch_here):
            found.append(
                f"torch: artifact built with {built_with}, found {torch_here}; packages run across "
                f"{', '.join(_TORCH_VERSIONS)} only: install torch {_minor(built_with)} or build again"
            )
        if manifest.provenance.machine != platform.machine():
            found.append(f"machine: artifact was built on {manifest.provenance.machine}, this machine is {platform.machine()}; "
                         "build it on such a machine")
        if manifest.device == "cuda" and not torch.cuda.is_available():
            found.append(f"device: artifact is for a CUDA GPU ({manifest.arch}), torch finds none here")
        elif self._own(manifest) is None:
            here = self.here(manifest.device)
            found.append(f"arch: artifact has code for {', '.join(manifest.archs)}, this machine is {here}; build with --arch {here}")
        return found

    def _own(self, manifest: Manifest) -> str | None:
        """The arch of the artifact that this machine runs."""
        here = self.here(manifest.device)
        runs = cpu_isa.runs if manifest.device == "cpu" else str.__eq__
        return max((arch for arch in manifest.archs if runs(arch, here)), key=cpu_isa.rank, default=None)

    def load(self, manifest: Manifest, folder: Path, device: torch.device) -> Callables:
        index = device.index or 0 if device.type == "cuda" else -1
        programs: Callables = {}
        package = folder / _package(self._own(manifest))
        for name in manifest.programs:
            try:
                loader = torch._C._aoti.AOTIModelPackageLoader(str(package), name, True, 1, index)
            except RuntimeError as error:
                raise ArtifactError(f"{package}: program {name} cannot be loaded: {error}") from error
            programs[name] = partial(_run, loader)
        return programs


def _compiled(programs: Iterable[Program], options: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The files of each program, in Inductor's cache, where they have to stay as they are."""
    from torch._inductor import aot_compile

    for program in programs:
        arguments, _ = program.exported.example_inputs
        module = program.exported.module(check_guards=False)
        try:
            files = aot_compile(module, arguments, options=options)
        except Exception as error:  # Inductor raises any kind; the user needs the program's name
            raise BuildError(f"AOTInductor failed on program {program.name}: {error}") from error
        _check_linked(program.name, files)
        yield program.name, files


def _check_linked(program: str, files: Sequence[Any]) -> None:
    """A library with a C++ runtime of its own inside crashes in the process that loads it, which has torch's."""
    for library in (Path(file) for file in files if str(file).endswith(".so")):
        code = library.read_bytes()
        if _ENTRY not in code:
            raise BuildError(f"program {program}: {library} has no {_ENTRY.decode()}; Inductor's cache is damaged, remove it")
        if not any(name in code for name in (b"libstdc++.so", b"libc++.so")):
            raise BuildError(
                f"the C++ compiler ({os.environ.get('CXX', 'g++')}) links its standard library statically, and "
                "such code crashes when it is loaded; set CXX to a compiler that does not, such as CXX=/usr/bin/g++"
            )


def _without_sources(files: Sequence[Any], folder: Path) -> list[Any]:
    """Copies of what loading needs: the library, without its debug information, and its description. Sources, and the paths
    of the machine that they were compiled on, stay here; but torch 2.11 looks for a source's name, so an empty one goes along."""
    folder.mkdir()
    kept = [shutil.copy(file, folder) for file in files if str(file).endswith((".so", ".wrapper_metadata.json"))]
    for library in [file for file in kept if file.endswith(".so")]:
        done = subprocess.run(["strip", "--strip-debug", "--remove-section=.comment", library], capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"strip failed on {library}: {done.stderr.strip()}")
        source = Path(library).with_suffix(".cpp")
        source.touch()
        kept.append(str(source))
    return kept


def _package(arch: str) -> str:
    """The file of an arch's programs."""
    return f"programs-{arch}.pt2"


def _run(loader: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return loader.run(list(inputs))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _supported(version: str) -> bool:
    return _minor(version) in _TORCH_VERSIONS
