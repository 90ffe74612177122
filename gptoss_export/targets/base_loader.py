"""The running half of a target: what its `load.py` implements. Neither imports the compiling half.

Imports no torch, which not every artifact needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..artifact.manifest import Manifest
from ..errors import ArtifactError
from ..progress import Progress
from ..runtime.executor import Executor
from ..runtime.tensors import LoadedProgram, Tensor
from . import target_module


@dataclass(frozen=True)
class Table:
    """A table that a target shows of an artifact (`inspect`). A column `bytes` is whole numbers, and is drawn too."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class LoadSettings:
    """What the user chooses when an artifact is loaded.

    tune_process  settings of the whole process may be changed to save GPU memory
    kv_memory     bytes of the KV cache; None: the target chooses
    agreed        the pages that a rank has room for, to the pages that all ranks have room for
    places        where ranks share the model: model/places.py
    """

    tune_process: bool
    kv_memory: int | None
    agreed: Callable[[int], int] = int
    places: tuple[int, ...] = ()


class Loader(ABC):
    """The running half of a target."""

    @abstractmethod
    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        """Why this machine cannot run the artifact; empty where it can. Opens no compiled code."""

    def begin(self, manifest: Manifest, settings: LoadSettings) -> None:  # noqa: B027
        """Begin, beside the checks of an artifact, what takes time and opens none of its files. Raises nothing: what
        goes wrong is an error of `problems` or `load`."""

    @abstractmethod
    def load(self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings) -> Executor:
        """Load an artifact for which `problems` found nothing. Raises ArtifactError, and UsageError for settings that
        the target or the machine cannot meet."""

    def load_training(
        self, manifest: Manifest, folder: Path, progress: Progress, settings: LoadSettings
    ) -> tuple[LoadedProgram, Mapping[str, Tensor]]:
        """The training step of an artifact for which `problems` found nothing, and the weights. Imports torch. Raises
        as `load`."""
        raise ArtifactError(f"{folder}: target {manifest.target} has no training steps; build the artifact again")

    def tables(self, manifest: Manifest, folder: Path) -> list[Table]:
        """What `inspect` shows besides the manifest. Opens no compiled code."""
        return []


def loader(name: str) -> Loader:
    """The loader of a target, imported now. Raises UsageError as `base_compiler.compiler`."""
    return target_module(name, "load").LOADER
