"""A package of programs, and the tensors that they take."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ...runtime.mapped_files import MappedFiles
from ...runtime.tensors import LoadedProgram, Tensors


class OpenedPackage(ABC):
    """tensors: of the device that the programs are for"""

    tensors: Tensors

    @abstractmethod
    def programs(self, mapped: MappedFiles) -> dict[str, LoadedProgram]:
        """The programs by name. Raises ArtifactError naming the one that cannot be loaded.

        mapped  the files of weights that the programs read where they are mapped
        """
