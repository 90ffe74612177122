"""How far an artifact may deviate from the oracle.

Rows with and without a near tie (near_ties.py) have bounds of their own, in every case.

Rows without one deviate by rounding. A float32 artifact has TOLERANCES. For an artifact of another dtype the bound is
the oracle's own deviation: of its logits in the artifact's dtype from its logits in float32, times FACTOR.

Rows with one deviate by much more if the token went to another expert, and which ones do is chance. So their bound is
measured on both outcomes: the oracle in the artifact's dtype, and the same with every near tie decided the other way.
The larger deviation of the two counts, times FACTOR.

A token that attends to one with a near tie may move with it. Where the second outcome moves a row by more than the
bound of rounding, the row counts as one with a near tie.

Each bound has a maximum and an rms. The maximum is over all such rows of the sequence. The rms of few rows varies
more than the rms of many. So the bound of n rows is the largest rms of the oracle over n neighbouring rows of the same
kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from .metric import TOLERANCES, Deviation, RowDeviation, deviation, row_deviations

FACTOR = 1.25

Logits: TypeAlias = Mapping[int, torch.Tensor]  # position -> [V] float32


class Bounds:
    """The bounds of all cases.

    expected    the oracle's logits in float32, at every position that a case compares
    rounded     the same, computed in the artifact's dtype; None for a float32 artifact
    other_side  the same in the artifact's dtype, with near ties decided the other way; None where no token has one
    no_tie      for each position, whether the token has no near tie
    """

    def __init__(
        self, expected: Logits, rounded: Logits | None, other_side: Logits | None, no_tie: Sequence[bool]
    ) -> None:
        self._expected, self._rounded = expected, rounded
        positions = sorted(expected)
        own = {} if rounded is None else _by_row(rounded, expected, positions)
        others = {} if other_side is None else _by_row(other_side, expected, positions)
        self._own = own
        self._ties = {row for row in positions if not no_tie[row]}
        self._without = [own[row] for row in positions if row in own and row not in self._ties]
        if len(self._ties) < len(positions):
            limit = self.without_tie(1)
            moved = {row for row, found in others.items() if not Deviation(found.max, found.rms).within(limit)}
            self._ties |= moved
            self._without = [own[row] for row in positions if row in own and row not in self._ties]
        self._with = [_larger(own.get(row, others[row]), others[row]) for row in sorted(self._ties)]

    def expected(self, rows: Sequence[int]) -> torch.Tensor:
        """The oracle's logits [rows, V] in float32."""
        return _stack(self._expected, rows)

    def has_tie(self, row: int) -> bool:
        """Whether the token at this position has a near tie, or moves with one that has."""
        return row in self._ties

    def without_tie(self, count: int) -> Deviation:
        """The bound of `count` rows without a near tie."""
        return TOLERANCES[torch.float32] if self._rounded is None else _largest(self._without, count)

    def with_tie(self, count: int) -> Deviation:
        """The bound of `count` rows with a near tie."""
        return _largest(self._with, count)

    def oracle_row(self, row: int) -> RowDeviation | None:
        """The oracle's own deviation at one position; None for a float32 artifact."""
        return self._own.get(row)

    def oracle_deviation(self, rows: Sequence[int]) -> Deviation | None:
        """The oracle's own deviation over `rows`; None for a float32 artifact."""
        if self._rounded is None:
            return None
        return deviation(_stack(self._rounded, rows), _stack(self._expected, rows))


def _largest(rows: Sequence[RowDeviation], count: int) -> Deviation:
    """The largest element, and the largest rms over `count` neighbours (over all rows where they are fewer).

    NaN where the oracle has a NaN, which lets nothing pass.
    """
    largest, mean_squares = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
    windows = mean_squares.unfold(0, min(count, len(rows)), 1).mean(dim=1)
    return Deviation(largest.max().item(), windows.max().sqrt().item()).times(FACTOR)


def _larger(first: RowDeviation, second: RowDeviation) -> RowDeviation:
    larger = torch.maximum(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    return RowDeviation(*larger.tolist())


def _by_row(actual: Logits, expected: Logits, rows: Sequence[int]) -> dict[int, RowDeviation]:
    found = row_deviations(_stack(actual, rows), _stack(expected, rows)) if rows else []
    return dict(zip(rows, found, strict=True))


def _stack(logits: Logits, rows: Sequence[int]) -> torch.Tensor:
    return torch.stack([logits[row] for row in rows])
