"""The compiling half: a traced decode program to an ONNX model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch

from ...artifact.programs import Decode, Program, Sizes
from ...compat.versions import version_problem
from ...compiler.export import TracedProgram
from ...compiler.lower import Implementations, unchanged_implementations
from ...kernels.kernel import ConfigChooser
from ...model.config import ModelConfig
from ..base_compiler import Availability, Compilation, CompileJob, Compiler
from ..gpu import current_gpu_arch
from .limits import size_problems
from .model_files import ANY_ARCH, MODEL
from .options import Options
from .requirements import INSTALL, import_problem, runtime_edition, runtime_problems


class OnnxCompiler(Compiler):
    name = "onnx"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32",), "cuda": ("bfloat16",)}
    options_class = Options

    def available(self, device: str) -> Availability:
        if problem := import_problem("onnx"):
            return Availability(False, problem, INSTALL[device])
        if problem := version_problem("torch"):
            return Availability(False, problem, "install a supported version")
        detail, problems = f"onnx {version('onnx')}", runtime_problems(device)
        return Availability(True, detail + (f"; to run it: {'; '.join(problems)}" if problems else ""))

    def current_arch(self, device: str) -> str | None:
        return ANY_ARCH if device == "cpu" or current_gpu_arch() is not None else None

    def archs(self, device: str) -> tuple[str, ...]:
        return (ANY_ARCH,)

    def default_archs(self, device: str, options: Options) -> tuple[str, ...]:
        return (ANY_ARCH,)

    def default_prefill_chunks(self, device: str) -> tuple[int, ...]:
        """On CUDA one chunk alone: when a model is loaded, onnxruntime times kernels for each size."""
        return (2048,) if device == "cuda" else (128,)

    def default_widths(self, max_batch: int) -> tuple[int, ...]:
        """One: a call of the model computes every slot."""
        return (max_batch,)

    def size_problems(self, sizes: Sizes) -> list[str]:
        if sizes.widths == (sizes.max_batch,):
            return []
        found = ",".join(map(str, sizes.widths))
        return [f"--widths {found}: onnx computes every slot in each step; leave it out"]

    def option_problems(self, device: str, arch: str | None, options: Options) -> list[str]:
        if options.portable and device != "cpu":
            return [f"--portable: is for --device cpu, found --device {device}; leave it out"]
        return []

    def model_problems(self, config: ModelConfig, device: str, options: Options) -> list[str]:
        return size_problems(config, device, options.portable)

    def versions(self) -> dict[str, str]:
        return {"onnx": version("onnx")} | runtime_edition()

    def has_kernels(self, device: str) -> bool:
        return False

    def programs(self, all_programs: tuple[Program, ...]) -> tuple[Program, ...]:
        """The decode program alone: its nodes serve any number of tokens."""
        return tuple(program for program in all_programs if isinstance(program, Decode))

    def stores_programs(self) -> bool:
        return False

    def trace_device(self, device: str) -> torch.device:
        return torch.device("cpu")  # no node of the graph names a device

    def implementations(self, device: str, chooser: ConfigChooser) -> Implementations:
        return unchanged_implementations()

    def start(self, job: CompileJob) -> Compilation:
        return _ModelCompilation(job)


class _ModelCompilation(Compilation):
    """Imports what needs the package onnx only now, so that `available` can say what is wrong with that package."""

    def __init__(self, job: CompileJob) -> None:
        self._job = job
        self._weight_files: list[Path] = []

    def compile(self, program: TracedProgram) -> None:
        from .export import check_operators, export_model
        from .writer import Writer
        from .writer_cpu import CpuWriter, PortableWriter
        from .writer_cuda import CudaWriter

        check_operators(program)
        kind: type[Writer] = CudaWriter
        if self._job.device == "cpu":
            kind = PortableWriter if self._job.options.portable else CpuWriter
        self._weight_files = export_model(program, self._job, kind(self._job))

    def finish(self) -> list[Path]:
        from .genai import write_genai_config
        from .probe import write_probe

        files = [*self._weight_files, Path(MODEL), write_genai_config(self._job)]
        if self._job.device == "cuda":
            files.append(write_probe(self._job.folder))
        return files


COMPILER = OnnxCompiler()
