"""Draws arguments like those of real use: random weights, random routing, queries at a given position.

Times measured on other values mislead: with zeros all tokens choose one expert and stand at position 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from .. import mxfp4
from ..expert_formats import BF16, MXFP4, ExpertFormat

Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Draw:
    """What a drawing function may use: a generator, the last position of the queries, and all arguments of the call."""

    generator: torch.Generator
    position: int
    arguments: Arguments

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def uniform(self, *shape: int) -> torch.Tensor:
        """Float32 numbers between 0 and 1."""
        return torch.rand(shape, generator=self.generator, device=self.device)


def normal(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Activations, biases and norms. Raises TypeError for a dtype that is not floating point: the op has to say how
    such an argument is drawn (`Op.realistic`)."""
    if not like.is_floating_point():
        raise TypeError(
            f"no rule to draw an argument of {like.dtype}, {list(like.shape)}; add one to the op's `realistic`"
        )
    return torch.randn(like.shape, dtype=like.dtype, generator=draw.generator, device=draw.device)


def matrix(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """A weight matrix [N, K], scaled so that products with it stay near 1."""
    return normal(draw, like) * like.shape[-1] ** -0.5


def positions(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Positions [N, L] or [T] int64: of N sequences with a token each, or of one chunk, whose segments follow each
    other. The last one is near `draw.position`."""
    length = 1 if like.shape[-1] == 1 else like.numel()
    start = max(0, draw.position + 1 - length) // length * length
    row = torch.arange(start, start + length, device=draw.device)
    return row.expand(like.numel() // length, length).reshape(like.shape)


def slots(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Slots [N] int64: token n is of the sequence in slot n. The segments of a chunk are all of slot 0."""
    numbers = torch.arange(like.numel(), device=draw.device)
    return numbers if draw.arguments["positions"].shape[-1] == 1 else torch.zeros_like(numbers)


def pages(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """A table [S, X] int32 of the pages that the cache has, which lie anywhere in it. A cache with fewer pages than the
    table has entries serves several of them."""
    count = draw.arguments["k_cache"].size(0) - 1
    order = torch.rand(count, generator=draw.generator, device=draw.device).argsort() + 1
    return order.repeat(-(-like.numel() // count))[: like.numel()].view(like.shape).int()


def table(slots: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """A table [slots, count] int32 for a test case: pages 1 to slots * count, each once."""
    return torch.randperm(slots * count, generator=generator).view(slots, count).int() + 1


def places(slots: int, segments: int, shared: bool, generator: torch.Generator) -> torch.Tensor:
    """Slots [N] int64 for a test case, of so many. shared: the third segment is of the first one's sequence."""
    found = torch.randperm(slots, generator=generator)[:segments]
    return found[torch.tensor([0, 1, 0, 2])] if shared else found


def stored(
    form: ExpertFormat,
    experts: int,
    rows: int,
    columns: int,
    random: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Weight, scales and table of matrices [experts, rows, columns] for a test case (model/expert_weights.py)."""
    weights = torch.randn(experts, rows, columns, generator=random) * columns**-0.5
    if form == BF16:
        return weights.to(device, dtype), None, None
    if form == MXFP4:
        blocks, scales = mxfp4.quantize(weights)
        return blocks.to(device), scales.to(device), None
    codes, absmax, table = (tensor.shape(experts, rows, columns) for tensor in form.tensors)
    return (
        torch.randint(0, 256, codes, generator=random, dtype=torch.uint8).to(device),
        (torch.rand(absmax, generator=random) * 3 * columns**-0.5).to(device),
        (torch.rand(table, generator=random) * 2 - 1).sort().values.to(device),
    )


def expert_weight(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """The weights of experts in any format: every code, or matrices."""
    return matrix(draw, like) if like.is_floating_point() else _bytes(draw, like, 0, 256)


def expert_scales(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """The scales of experts in any format, which keep products near 1."""
    return draw.uniform(*like.shape) / 32 if like.is_floating_point() else _bytes(draw, like, 118, 123)


def expert_table(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """The values of 4-bit codes, in ascending order."""
    return torch.linspace(-1, 1, like.numel(), device=draw.device)


def _bytes(draw: Draw, like: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, like.shape, dtype=torch.uint8, generator=draw.generator, device=draw.device)


def angles(draw: Draw, like: torch.Tensor) -> torch.Tensor:
    """Cosines or sines."""
    return draw.uniform(*like.shape) * 2 - 1
