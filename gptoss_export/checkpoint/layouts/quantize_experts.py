"""Experts that are no MXFP4 in a checkpoint: they are rounded to it, by the rule of model/mxfp4.py.

Layouts differ in how they store the matrices, which is an ExpertStorage. Here is what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...model import mxfp4
from .layout import LazyTensor, Rounding, mxfp4_shapes


class ExpertStorage(Protocol):
    """How the matrices [rows, columns] of all experts of a layer are stored."""

    def matrix(self, stored: Sequence[LazyTensor], expert: int) -> torch.Tensor:
        """The matrix of one expert, [rows, columns] of any float dtype. Raises CheckpointError as Converter.convert."""

    def store(self, matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The stored tensors for matrices [experts, rows, columns] float32, whose values MXFP4 holds: exactly."""


@dataclass(frozen=True)
class QuantizeExperts:
    """Converts the matrices [rows, columns] of all experts to MXFP4 blocks and scales."""

    experts: int
    rows: int
    columns: int
    storage: ExpertStorage

    def parameters(self, name: str) -> tuple[str, ...]:
        """The blocks and the scales."""
        return f"{name}_blocks", f"{name}_scales"

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
