"""The compiling half of a target: what its `compile.py` implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..artifact.manifest import WeightSpec
from ..artifact.programs import Program, Sizes, default_widths
from ..compiler.export import TracedProgram
from ..compiler.lower import Implementations
from ..kernels.kernel import ConfigChooser
from ..model.config import ModelConfig
from ..model.ranks import RankConfig
from ..progress import Progress
from . import NoOptions, target_module


@dataclass(frozen=True)
class Availability:
    """Whether a target can build for a device on this machine; if not, why, and what fixes it."""

    ready: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class CompileJob:
    """What is compiled for one arch, and where the code goes. The weights lie in `folder` already and stay as they
    are.

    config       of the model, or the part of the ranks that run this code
    description  goes into the file of the code (artifact/description.py)
    """

    config: ModelConfig
    sizes: Sizes
    device: str
    arch: str
    options: Any  # of the compiler's `options_class`
    stop_tokens: tuple[int, ...]
    weights: Mapping[str, WeightSpec]
    folder: Path
    description: str
    progress: Progress

    @property
    def label(self) -> str:
        """What it compiles for, in messages."""
        of_rank = f"-rank{self.config.program_rank}" if isinstance(self.config, RankConfig) else ""
        return f"{self.arch}{of_rank}"


class Compilation(ABC):
    """The compiling of one arch's programs: each is compiled once, then `finish` is called."""

    @abstractmethod
    def compile(self, program: TracedProgram) -> None:
        """Compile one lowered program. Raises BuildError or LoweringError naming the program."""

    @abstractmethod
    def finish(self) -> list[Path]:
        """Write what all programs share; returns the files of the code, relative to the job's folder."""


class SeparateCompilation(Compilation):
    """A compilation that takes programs which were compiled elsewhere."""

    @abstractmethod
    def take(self, name: str, folder: Path) -> None:
        """Add a program that `Compiler.compile_alone` has written into a folder. It stays there until `finish`."""

    @abstractmethod
    def folder(self, name: str) -> Path:
        """Where a program lies that was added, until `finish`."""


class Compiler(ABC):
    """The compiling half of a target."""

    name: ClassVar[str]
    # device -> the dtypes it compiles for, the default first. The device that every machine has comes first.
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]]
    expert_formats: ClassVar[tuple[str, ...]] = ("mxfp4",)  # of the experts' weights, as --experts names them
    trains: ClassVar[bool] = False  # whether it compiles a training step
    options_class: ClassVar[type] = NoOptions  # a frozen dataclass; each field becomes an option of `build`

    @abstractmethod
    def available(self, device: str) -> Availability:
        """Whether `build --device <device>` can work on this machine."""

    @abstractmethod
    def current_arch(self, device: str) -> str | None:
        """The arch of this machine's `device`, such as sm_90; None where it has no such device."""

    @abstractmethod
    def archs(self, device: str) -> tuple[str, ...]:
        """The archs that this machine can compile for."""

    def default_archs(self, device: str, options: Any) -> tuple[str, ...]:
        """The archs that are compiled for unless the user names some; empty where this machine has no such device."""
        found = self.current_arch(device)
        return () if found is None else (found,)

    def default_prefill_chunks(self, device: str) -> tuple[int, ...]:
        """The prefill chunks that suit a device."""
        return default_prefill_chunks(device)

    def default_widths(self, max_batch: int) -> tuple[int, ...]:
        """The widths of the decode programs for up to `max_batch` sequences."""
        return default_widths(max_batch)

    def size_problems(self, sizes: Sizes) -> list[str]:
        """What is wrong with sizes that another target could have, each with what to do."""
        return []

    def option_problems(self, device: str, arch: str | None, options: Any) -> list[str]:
        """What is wrong with the target's own options, given --device and --arch (None: not given)."""
        return []

    def rank_problem(self, device: str) -> str | None:
        """Why the target cannot compile for several ranks that share a model, and what to do; None where it can."""
        return f"target {self.name} compiles for one rank only; leave the option out, or choose another --target"

    def adapter_problem(self, device: str) -> str | None:
        """Why the target cannot compile programs that take LoRA adapters, and what to do; None where it can."""
        return (
            f"target {self.name} compiles no programs that take adapters; leave the option out, choose another "
            "--target, or merge one adapter with --adapter"
        )

    def model_problems(self, config: ModelConfig, device: str, options: Any) -> list[str]:
        """The sizes of a model that the target cannot compile for `device`, each with what to do."""
        return []

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """The packages that a build depends on, besides torch, and their versions."""

    def compiles_many_archs(self, device: str) -> bool:
        """Whether one artifact can hold code for several archs."""
        return False

    def has_kernels(self, device: str) -> bool:
        """Whether the code is made of the project's kernels, which launch configs are for."""
        return device == "cuda"

    def compile_alone(self, program: TracedProgram, device: str, folder: Path) -> None:
        """Compile one lowered program into an empty folder, for a target whose compilation is a SeparateCompilation.

        Raises BuildError naming the program.
        """
        raise NotImplementedError(f"target {self.name} compiles programs together")

    def programs(self, all_programs: tuple[Program, ...]) -> tuple[Program, ...]:
        """Which of an artifact's programs the target compiles. It may leave out the choices of tokens."""
        return all_programs

    def largest_scale(self, device: str) -> int | None:
        """The largest scale of MXFP4 weights that the programs take; None: any scale."""
        return None

    def stores_programs(self) -> bool:
        """Whether the compiled programs are called one by one. Otherwise the target compiles a model of its own."""
        return True

    def trace_device(self, device: str) -> torch.device:
        """Where the fake tensors lie that a program is traced with."""
        return torch.device(device)

    def environment(self, device: str, arch: str) -> AbstractContextManager[None]:
        """The context in which programs for an arch are traced, lowered and compiled."""
        return nullcontext()

    @abstractmethod
    def implementations(self, device: str, chooser: ConfigChooser) -> Implementations:
        """What computes each op in the target's programs."""

    @abstractmethod
    def start(self, job: CompileJob) -> Compilation:
        """Begin to compile for one arch."""


def default_prefill_chunks(device: str) -> tuple[int, ...]:
    """The chunks of most targets. A GPU needs long ones to be busy; a prompt pays for the smallest that takes it."""
    return (128, 512, 1024, 2048, 8192) if device == "cuda" else (128,)


def compiler(name: str) -> Compiler:
    """The compiler of a target, imported now: not every target needs the same packages.

    Raises UsageError where there is no such target, or where a package that it needs is not installed.
    """
    return target_module(name, "compile").COMPILER
