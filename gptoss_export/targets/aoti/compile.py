"""AOTInductor: the programs of an artifact as a package of shared libraries for each arch, `programs-<arch>.pt2`.

On a CPU the ops are their references, which Inductor fuses into C++. On CUDA they are Triton kernels, whose cubins are
embedded in the libraries: running them takes neither Triton nor a compiler.

Weights and caches are inputs of every program, not constants of it. So a package holds code only, a few megabytes
whatever the model's size, and the programs share one copy of the weights. AOTInductor checks neither shapes nor
strides, so the runner compares every tensor with the manifest when it binds them.

Code for a GPU that the machine does not have is compiled with a fake GPU (cross_compile.py). With the GPU itself
Inductor times the configs of the small kernels that it makes; with the fake GPU it takes the first of each.

Code that runs on a CPU uses the instructions of a level (cpu_isa.py), not all that the building machine has.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...compat.cpp_flags import without_paths
from ...compat.cpu_instructions import cpu_instructions
from ...compat.mutation_analysis import cached_mutation_analysis
from ...compat.process_group import group_to_compile
from ...compat.pytorch import compile_to_files, write_package
from ...compat.toolchain import links_dynamically, toolchain_problem
from ...compat.versions import installed, version_problem
from ...compiler.export import TracedProgram
from ...compiler.lower import Implementations, kernel_implementations, reference_implementations
from ...errors import BuildError
from ...kernels.kernel import ConfigChooser
from ...model.expert_formats import EXPERTS
from ...model.mxfp4 import LARGEST_OF_GPU_KERNELS
from ...model.ranks import GROUP
from ...temporary_folder import TemporaryFolder
from ..base_compiler import Availability, Compilation, CompileJob, Compiler, SeparateCompilation
from ..gpu import current_gpu_arch
from . import cpu_isa, cross_compile
from .options import Options
from .package import DESCRIPTION, package_name

_ENTRY_SYMBOL = b"AOTInductorModelContainerCreateWithDevice"  # what a loader calls first
# Ops without a kernel on a GPU. Inductor fuses the reference, a scatter in place, with the operators before it.
_FUSED_BY_INDUCTOR = ("kv_write",)
_CPU_LEVELS = {"portable": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}


class AotiCompiler(Compiler):
    name = "aoti"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
    expert_formats = EXPERTS
    trains = True
    options_class = Options

    def available(self, device: str) -> Availability:
        if problem := version_problem("torch"):
            return Availability(False, problem, "install a supported version")
        current = None if device == "cpu" else self.current_arch(device)
        lacking = toolchain_problem(gpu=device != "cpu", triton_compiles=current is not None)
        if lacking is not None:
            return Availability(False, *lacking)
        if device == "cpu":
            return Availability(True, f"torch {torch.__version__}, {self.current_arch('cpu')}")
        if importlib.util.find_spec("triton") is None:
            return Availability(False, "triton: not installed", "pip install 'gptoss-export[cuda]'")
        if problem := version_problem("triton"):
            return Availability(False, problem, "install a supported version")
        problems = cross_compile.problems()
        if current is None and problems:
            detail = "; ".join(["torch finds no CUDA GPU", *problems])
            return Availability(False, detail, "pip install 'gptoss-export[cuda]'")
        gpu = torch.cuda.get_device_name() if current else "no GPU, which a build does not need"
        detail = f"torch {torch.__version__}, {gpu}; archs {', '.join(self.archs('cuda'))}"
        return Availability(True, detail, "; ".join(problems))

    def current_arch(self, device: str) -> str | None:
        return cpu_isa.current_arch() if device == "cpu" else current_gpu_arch()

    def archs(self, device: str) -> tuple[str, ...]:
        if device == "cpu":
            return cpu_isa.archs()
        current, others = self.current_arch(device), () if cross_compile.problems() else tuple(cross_compile.GPUS)
        return tuple(dict.fromkeys((current, *others) if current else others))

    def default_archs(self, device: str, options: Options) -> tuple[str, ...]:
        if options.cpu_isa is not None:
            return (f"{cpu_isa.X86}-{_CPU_LEVELS[options.cpu_isa]}",)
        return super().default_archs(device, options)

    def option_problems(self, device: str, arch: str | None, options: Options) -> list[str]:
        if options.cpu_isa is None:
            return []
        found = []
        if device != "cpu":
            found.append(f"--cpu-isa {options.cpu_isa}: is for --device cpu, found --device {device}; leave it out")
        expected = ",".join(self.default_archs(device, options))
        if arch not in (None, expected):
            found.append(f"--cpu-isa {options.cpu_isa}: is arch {expected}, found --arch {arch}; give one of them")
        machine = cpu_isa.current_arch().partition("-")[0]
        if machine != cpu_isa.X86:
            found.append(f"--cpu-isa {options.cpu_isa}: is for {cpu_isa.X86}, this machine is {machine}; leave it out")
        return found

    def rank_problem(self, device: str) -> str | None:
        return None

    def adapter_problem(self, device: str) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {name: found for name in ("triton",) if (found := installed(name)) is not None}

    def largest_scale(self, device: str) -> int | None:
        return LARGEST_OF_GPU_KERNELS if device == "cuda" else None

    def compiles_many_archs(self, device: str) -> bool:
        return True

    @contextmanager
    def environment(self, device: str, arch: str) -> Iterator[None]:
        with ExitStack() as stack:
            if device == "cuda" and arch != self.current_arch(device):
                stack.enter_context(cross_compile.cross_compile(arch))
            if device == "cuda":
                stack.enter_context(cached_mutation_analysis())
            level = cpu_isa.HOST_LEVEL if device == "cuda" else arch.partition("-")[2]
            stack.enter_context(cpu_instructions(level))
            stack.enter_context(without_paths())
            yield

    def implementations(self, device: str, chooser: ConfigChooser) -> Implementations:
        references = reference_implementations()
        if device == "cpu":
            return references
        return {**kernel_implementations(chooser), **{name: references[name] for name in _FUSED_BY_INDUCTOR}}

    def compile_alone(self, program: TracedProgram, device: str, folder: Path) -> None:
        arguments, _ = program.exported.example_inputs
        module = program.exported.module(check_guards=False)
        options: dict[str, Any] = {
            "aot_inductor.package": True,
            "aot_inductor.compile_wrapper_opt_level": "O0",  # the wrapper only calls kernels, which are compiled apart
        }
        if device == "cpu" and program.ranks > 1:  # which share the cores
            options["cpp.threads"] = max(1, torch.get_num_threads() // program.ranks)
        if program.program.in_order:
            options["reorder_for_peak_memory"] = False  # it would allocate what kernels write long before they run
        if device == "cuda":
            options |= {
                "aot_inductor.embed_kernel_binary": True,
                "memory_planning": True,  # intermediates share one allocation
            }
        try:
            with group_to_compile(GROUP, program.ranks) if program.ranks > 1 else nullcontext():
                files = compile_to_files(module, arguments, options)
        except Exception as error:  # Inductor raises any kind; the user needs the program's name
            raise BuildError(f"AOTInductor failed on program {program.name}: {error}") from error
        _check_linked(program.name, files)
        _copy_without_sources(files, folder)

    def start(self, job: CompileJob) -> Compilation:
        return _Package(job)


class _Package(SeparateCompilation):
    """The package of one arch."""

    def __init__(self, job: CompileJob) -> None:
        self._job = job
        self._scratch = TemporaryFolder()  # removed with this object
        self._folders: dict[str, Path] = {}

    def compile(self, program: TracedProgram) -> None:
        folder = self._scratch.path / program.name
        folder.mkdir()
        COMPILER.compile_alone(program, self._job.device, folder)
        self.take(program.name, folder)

    def take(self, name: str, folder: Path) -> None:
        self._folders[name] = folder

    def folder(self, name: str) -> Path:
        return self._folders[name]

    def finish(self) -> list[Path]:
        package = package_name(self._job.arch, self._job.config)
        with self._scratch:
            files = {name: [str(path) for path in sorted(found.iterdir())] for name, found in self._folders.items()}
            write_package(self._job.folder / package, files, {DESCRIPTION: self._job.description})
        return [Path(package)]


def _check_linked(program: str, files: Sequence[Any]) -> None:
    """Refuse a library with its own C++ runtime inside: it crashes in the process that loads it, which has torch's."""
    for library in (Path(file) for file in files if str(file).endswith(".so")):
        code = library.read_bytes()
        if _ENTRY_SYMBOL not in code:
            symbol = _ENTRY_SYMBOL.decode()
            raise BuildError(f"program {program}: {library} has no {symbol}; Inductor's cache is damaged, remove it")
        if not links_dynamically(code):
            raise BuildError(
                f"the C++ compiler ({os.environ.get('CXX', 'g++')}) links its standard library statically: such "
                "code crashes when it is loaded. Use one that links libstdc++ dynamically, such as CXX=/usr/bin/g++"
            )


def _copy_without_sources(files: Sequence[Any], folder: Path) -> None:
    """Copy what loading needs: the library without debug information, and its description.

    Sources stay out, with the paths of the building machine in them. torch 2.11 looks for the name of a source, so
    that an empty file of that name is added."""
    kept = [str(shutil.copy(file, folder)) for file in files if str(file).endswith((".so", ".wrapper_metadata.json"))]
    for library in [file for file in kept if file.endswith(".so")]:
        command = ["strip", "--strip-debug", "--remove-section=.comment", library]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            raise BuildError(f"strip failed on {library}: {done.stderr.strip()}")
        Path(library).with_suffix(".cpp").touch()


COMPILER = AotiCompiler()
