"""What an adapter adds to parameters of a checkpoint, and the recipe of a parameter with it added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..adapters.factors import FactorPair
from ..errors import CheckpointError
from .layouts.layout import LazyTensor, Recipe, Rounding, StoredTensor


class AdapterDelta(Protocol):
    """What is added to a parameter."""

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensors of the adapter that it is computed from."""

    def add(self, weight: torch.Tensor, stored: Sequence[torch.Tensor]) -> None:
        """Add it to the parameter in place, from the tensors in the order of `parts`. Sums are float32 and rounded
        once."""


@dataclass(frozen=True)
class AddDeltas:
    """Converts the parts of another recipe, and behind them those of some deltas, to the merged parameter."""

    base: Recipe
    deltas: tuple[AdapterDelta, ...]

    def parameters(self, name: str) -> tuple[str, ...]:
        return self.base.parameters(name)

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        count = len(self.base.parts)
        if self.base.convert is not None:
            (weight,) = self.base.convert.convert(stored[:count], rounding)
        else:
            weight = torch.cat([part[:] for part in stored[:count]])
        left = iter(stored[count:])
        for delta in self.deltas:
            delta.add(weight, [next(left)[:] for _ in delta.parts])
        return (weight,)

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """A merged weight does not tell what was merged into it. Raises CheckpointError."""
        raise CheckpointError("a merged weight cannot be divided into a weight and an adapter")


def with_deltas(recipe: Recipe, deltas: tuple[AdapterDelta, ...]) -> Recipe:
    """The recipe with the deltas added; the recipe itself where there are none."""
    if not deltas:
        return recipe
    return Recipe((*recipe.parts, *(part for delta in deltas for part in delta.parts)), AddDeltas(recipe, deltas))


def stored_parts(pair: FactorPair) -> tuple[StoredTensor, ...]:
    """The tensors of a pair of factors, as recipes name them."""
    return tuple(StoredTensor(part.name, part.shape) for part in pair.parts)
