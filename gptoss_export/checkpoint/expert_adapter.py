"""The part of a LoRA adapter that belongs to experts, merged into their matrices.

The matrices must be plain: 4-bit weights would lose the adapter when they are rounded again. How PEFT stores the
factors stands in adapters/expert_factors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..adapters.factors import FactorPair
from .adapter_deltas import stored_parts
from .layouts.layout import StoredTensor


@dataclass(frozen=True)
class ExpertDelta:
    """What an adapter adds to the matrix of one expert, or of all."""

    pair: FactorPair

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors."""
        return stored_parts(self.pair)

    def add(self, weight: torch.Tensor, stored: Sequence[torch.Tensor]) -> None:
        """As AdapterDelta.add, to the matrices [E, out, in]."""
        (a, b), count = stored, len(weight)
        if self.pair.expert is not None:
            self._add(weight[self.pair.expert], a, b)
            return
        for expert, (matrix, of_expert) in enumerate(zip(weight, a.chunk(count), strict=True)):
            self._add(matrix, of_expert, b[:, expert::count])

    def _add(self, matrix: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        delta = (b.float() @ a.float()) * self.pair.scale
        matrix.copy_(matrix.float() + (delta.T if self.pair.swapped else delta))
