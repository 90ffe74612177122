"""What a target is: where it can be built and run, what it compiles, how it is loaded. Imports no torch, which not every
artifact needs to run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..model.config import ModelConfig
from ..artifact.manifest import Manifest, WeightSpec
from ..progress import Steps

if TYPE_CHECKING:  # the runtime loads artifacts without the exporter
    import torch

    from ..compiler.export import Program, Shapes
    from ..compiler.lower import Implementations
    from ..kernels.tuned_configs import CutTable

# Loaded programs: tensors in, tensors out, in the manifest's order.
Callables = dict[str, Callable[[Sequence[Any]], list[Any]]]


@dataclass(frozen=True)
class Availability:
    """Whether a target can build for a device here, and if not, why and what mends it."""

    ready: bool
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Table:
    """What a target tells of an artifact, for people."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Plan:
    """What is built: the model and its sizes, for what, how kernels are cut, and the folder, in which the weights lie
    already."""

    config: ModelConfig
    shapes: Shapes
    device: str
    arch: str
    tables: tuple[CutTable, ...]
    stop_tokens: tuple[int, ...]
    weights: dict[str, WeightSpec]
    folder: Path
    steps: Steps


class Target(ABC):
    """One way to compile the programs of an artifact and to run them."""

    name: ClassVar[str]
    dtypes: ClassVar[dict[str, tuple[str, ...]]]  # device -> dtypes it builds for, the default first

    @abstractmethod
    def available(self, device: str) -> Availability:
        """Whether `build --device <device>` can work on this machine."""

    @abstractmethod
    def here(self, device: str) -> str | None:
        """Name of this machine's code for `device`, such as sm_90; None where it has no such device."""

    @abstractmethod
    def archs(self, device: str) -> tuple[str, ...]:
        """Names of the machine codes that a build for `device` can make here."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Packages besides torch that a build here depends on, and their versions."""

    def trace_device(self, device: str) -> torch.device:
        """Where the fake tensors lie that programs for `device` are traced with."""
        import torch

        return torch.device(device)

    def runs(self, device: str) -> str:
        """What an artifact holds and which runner runs it (runtime/runner.py): "programs", or one model, of which the
        manifest tells no programs: "host_session", "device_session"."""
        return "programs"

    def takes(self, program: str) -> bool:
        """Whether it compiles the program of that name; the others are not traced."""
        return True

    def many_archs(self, device: str) -> bool:
        """Whether one artifact can hold code for several archs, of which a machine runs its own."""
        return False

    def compiling(self, device: str, arch: str) -> AbstractContextManager[None]:
        """What programs for an arch are traced, lowered and compiled in."""
        return nullcontext()

    def has_kernels(self, device: str) -> bool:
        """Whether programs for `device` are made of the kernels, which tables of cuts are for."""
        return device == "cuda"

    @abstractmethod
    def implementations(self, plan: Plan) -> Implementations:
        """What stands for each op in its programs."""

    @abstractmethod
    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        """Compile lowered programs into `plan.folder`; returns the files, relative to it. The weights that lie there stay as they
        are: they are being hashed."""

    @abstractmethod
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        """Why this machine cannot run the artifact; empty where it can. Opens no compiled code."""

    @abstractmethod
    def load(self, manifest: Manifest, folder: Path, device: Any) -> Any:
        """The artifact's code, ready to call; `problems` came back empty before. Callables where it is programs, otherwise
        what the runner named by `runs` calls. device: a torch.device; None for a host session."""

    def tables(self, manifest: Manifest, folder: Path) -> list[Table]:
        """What `inspect` tells beyond the manifest. Opens no compiled code."""
        return []


def gpu_arch() -> str | None:
    """sm_<number> of torch's current GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
