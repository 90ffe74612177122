"""TensorRT: the plain operators of a program as engines, its kernels as plugins.

Ops that TensorRT does badly (`Op.as_kernel`) are launches of the kernels that installed packages offer. Everything else
is made of TensorRT's own layers, from the traced graph, by the table in converters.py. The graph is partitioned at each
launch into engine segments (partition.py). Their tensors are bound by address: weights are inputs, so that engines are
small, decode and prefill share one copy of the weights, and layers of one kind share one engine.

    engines/<key>.engine            a segment; layers of equal structure share it
    engines/runtime.cache           what loading would compile, from a build on the GPU itself (contexts.py)
    plugins/<name>.ptx, .cubin      a kernel, without Triton's scratch parameters
    schedule.json                   the schedule steps of each program, and the memory that is bound to them

Running needs TensorRT's Python runtime, cuda-bindings and torch (for memory), and no Triton.

Limits: an engine loads in the TensorRT version that built it, on the arch that it was built for.

Experimental (`--experimental-full-tensorrt`): the full TensorRT builds one engine for each program, with the kernels
inside. Such an engine was never executed.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from typing import ClassVar

import torch

from ...artifact.programs import Choose, Interleave, Program
from ...compat.versions import version_problem
from ...compiler.lower import Implementations, launch_implementations
from ...errors import BuildError
from ...kernels.kernel import ConfigChooser
from ...model.mxfp4 import LARGEST_OF_GPU_KERNELS
from ..base_compiler import Availability, Compilation, CompileJob, Compiler
from ..gpu import current_gpu_arch
from .build import EngineCompilation
from .edition import FULL, INSTALL, RTX, Edition, edition_problem, installed_edition
from .options import FULL_OPTION, Options
from .plugins import plugin_support

_OTHER_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_120")  # what TensorRT for RTX builds for without that GPU


class TensorRTCompiler(Compiler):
    name = "tensorrt"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cuda": ("bfloat16",)}
    options_class = Options

    def available(self, device: str) -> Availability:
        edition = installed_edition()
        if edition is None:
            return Availability(False, edition_problem() or "", INSTALL[RTX])
        if importlib.util.find_spec("triton") is None:
            return Availability(False, f"{edition}; triton: not installed", "pip install 'gptoss-export[cuda]'")
        if problem := version_problem("torch") or version_problem("triton"):
            return Availability(False, problem, "install a supported version")
        archs = self.archs(device)
        if not archs:
            return Availability(False, f"{edition} builds on a GPU only, and torch finds none", INSTALL[RTX])
        if edition.has_plugins:
            detail = f"{edition} needs {FULL_OPTION} (its engines with kernels inside were never executed)"
            return Availability(True, f"{detail}; archs {', '.join(archs)}", f"without the option: {INSTALL[RTX]}")
        ran_on = f" (its engines ran on {', '.join(edition.ran_on)})" if edition.ran_on else ""
        return Availability(True, f"{edition}{ran_on}, kernels between engines; archs {', '.join(archs)}")

    def current_arch(self, device: str) -> str | None:
        return current_gpu_arch()

    def archs(self, device: str) -> tuple[str, ...]:
        edition, current = installed_edition(), self.current_arch(device)
        others = _OTHER_ARCHS if edition is not None and edition.name == RTX else ()
        if current is None or edition is None or not edition.supports(current):
            return others
        return current, *(arch for arch in others if arch != current)

    def option_problems(self, device: str, arch: str | None, options: Options) -> list[str]:
        edition = installed_edition()
        if edition is None:  # `available` says why
            return []
        if edition.has_plugins and not options.experimental_full_tensorrt:
            return [
                f"{FULL_OPTION}: needed to build with {edition} (its engines with kernels inside were never executed); "
                f"without the option: {INSTALL[RTX]}"
            ]
        if options.experimental_full_tensorrt and not edition.has_plugins:
            return [
                f"{FULL_OPTION}: found {edition}, which is used wherever it is installed and puts no kernels inside of "
                f"engines; leave the option out, or uninstall it and {INSTALL[FULL]}"
            ]
        return []

    def versions(self) -> dict[str, str]:
        edition = _edition()
        return {edition.name: edition.version, "triton": version("triton")}

    def largest_scale(self, device: str) -> int | None:
        return LARGEST_OF_GPU_KERNELS

    def programs(self, all_programs: tuple[Program, ...]) -> tuple[Program, ...]:
        """Those that compute the model. TensorRT sorts no row as long as a vocabulary, and its engines have static
        shapes: torch's operators choose the tokens and interleave the weights."""
        return tuple(program for program in all_programs if not isinstance(program, (Choose, Interleave)))

    def trace_device(self, device: str) -> torch.device:
        return torch.device("cpu")  # the graph names no device, and torch for CPU alone knows no other

    def implementations(self, device: str, chooser: ConfigChooser) -> Implementations:
        return launch_implementations(chooser)

    def start(self, job: CompileJob) -> Compilation:
        support = plugin_support()
        on_this_gpu = job.arch == self.current_arch(job.device)
        maker = support.maker(job.arch)
        return EngineCompilation(_edition(), job.arch, on_this_gpu, job.folder, maker, support.add, job.description)


def _edition() -> Edition:
    edition = installed_edition()
    if edition is None:
        raise BuildError(f"{edition_problem()}; {INSTALL[RTX]}")
    return edition


COMPILER = TensorRTCompiler()
