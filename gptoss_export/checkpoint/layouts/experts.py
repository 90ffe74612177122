"""The weights of experts that a build has in another format than the checkpoint: rounded to MXFP4 by the rule of
model/mxfp4.py, or as plain matrices.

Layouts differ in how they store the matrices, which is an ExpertStorage. Here is what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...model import mxfp4
from ...model.config import ModelConfig
from ...model.expert_formats import BF16, MXFP4
from .layout import FLOATS, PACKED, ExpertMatrix, LazyTensor, Recipe, Rounding, StoredTensor, mxfp4_shapes


class ExpertStorage(Protocol):
    """How the matrices [rows, columns] of all experts of a layer are stored."""

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        """The matrix of one expert, [rows, columns] of any float dtype. Raises CheckpointError as Converter.convert."""

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The stored tensors for matrices [experts, rows, columns] float32, whose values MXFP4 holds: exactly."""


def expert_recipe(
    config: ModelConfig, parts: Sequence[StoredTensor], matrix: ExpertMatrix, storage: ExpertStorage
) -> Recipe:
    """The recipe of a matrix of all experts, in the format of the config: MXFP4, or plain matrices."""
    experts, (_, rows, columns) = config.num_local_experts, matrix
    if config.expert_format == MXFP4:
        return Recipe(tuple(parts), QuantizeExperts(experts, rows, columns, storage))
    assert config.expert_format == BF16, config.experts_format
    plain = parts[0].dtypes == FLOATS
    return Recipe(tuple(parts), PlainExperts(experts, rows, columns, storage, None if plain else torch.bfloat16))


def mxfp4_recipes(config: ModelConfig, stem: str, matrix: ExpertMatrix, names: tuple[str, str]) -> dict[str, Recipe]:
    """The recipes of the matrix `stem` of all experts, whose MXFP4 blocks and scales the checkpoint calls `names`."""
    shapes = mxfp4_shapes(config.num_local_experts, matrix.rows, matrix.columns)
    parts = [StoredTensor(name, shape, PACKED) for name, shape in zip(names, shapes, strict=True)]
    if config.expert_format == MXFP4:
        return dict(zip(MXFP4.names(stem), (Recipe((part,)) for part in parts), strict=True))
    return {stem: expert_recipe(config, parts, matrix, Packed())}


@dataclass(frozen=True)
class QuantizeExperts:
    """Converts the matrices [rows, columns] of all experts to MXFP4 blocks and scales."""

    experts: int
    rows: int
    columns: int
    storage: ExpertStorage

    def parameters(self, name: str) -> tuple[str, ...]:
        """The blocks and the scales."""
        return MXFP4.names(name)

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        """Quantize an expert at a time. Values that MXFP4 holds stay the same."""
        shapes = mxfp4_shapes(self.experts, self.rows, self.columns)
        blocks, scales = (torch.empty(shape, dtype=torch.uint8) for shape in shapes)
        for expert in range(self.experts):
            matrix = self.storage.matrix(stored, expert).float()
            blocks[expert], scales[expert] = mxfp4.quantize(matrix)
            if rounding is not None:
                rounding.add(matrix, mxfp4.dequantize(blocks[expert], scales[expert]))
        return blocks, scales

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        blocks, scales = parameters
        return self.storage.store(mxfp4.dequantize(blocks, scales))


@dataclass(frozen=True)
class PlainExperts:
    """Stacks the matrices [rows, columns] of all experts.

    dtype  what they become; None: what they are stored in
    """

    experts: int
    rows: int
    columns: int
    storage: ExpertStorage
    dtype: torch.dtype | None

    def parameters(self, name: str) -> tuple[str, ...]:
        return BF16.names(name)

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        """Stack an expert at a time."""
        first = self.storage.matrix(stored, 0)
        matrices = torch.empty((self.experts, self.rows, self.columns), dtype=self.dtype or first.dtype)
        for expert, target in enumerate(matrices):
            target.copy_(self.storage.matrix(stored, expert) if expert else first)
        return (matrices,)

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (matrices,) = parameters
        return self.storage.store(matrices.float())


@dataclass(frozen=True)
class Packed:
    """MXFP4 blocks and scales of all experts."""

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        blocks, scales = stored
        return mxfp4.dequantize(blocks[expert], scales[expert])

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return mxfp4.quantize(matrices)


@dataclass(frozen=True)
class Stacked:
    """All experts in one tensor, in bfloat16 where it is written, which holds MXFP4 values.

    inputs_first  [experts, columns, rows], as a product x @ W has it; else [experts, rows, columns]
    """

    inputs_first: bool

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        (matrices,) = stored
        return matrices[expert].T if self.inputs_first else matrices[expert]

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        matrices = matrices.to(torch.bfloat16)
        return (matrices.mT if self.inputs_first else matrices,)


@dataclass(frozen=True)
class Separate:
    """A tensor [rows, columns] for each expert, in bfloat16 where it is written."""

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        return stored[expert][:]

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return matrices.to(torch.bfloat16).unbind()


@dataclass(frozen=True)
class Stack:
    """Converts a tensor for each expert to one tensor of all: the experts' biases."""

    def parameters(self, name: str) -> tuple[str, ...]:
        return (name,)

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        return (torch.stack([part[:] for part in stored]),)

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (whole,) = parameters
        return whole.unbind()
