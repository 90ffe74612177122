"""How far an artifact may deviate from the oracle.

A float32 artifact is compared with TOLERANCES. For an artifact of another dtype the bound is the oracle's own
deviation: of its logits in the artifact's dtype from its logits in float32, times FACTOR.

Tokens with a near tie (near_ties.py) deviate by much, and which ones do is chance. So the maximum is taken over the
rows without a near tie. The rms is taken over all rows of the longest prompt, which are many. In the other cases it
is taken over the rows without a near tie, and the bound is the largest rms of the oracle over as many rows of the
longest prompt. A case whose every row has a near tie is compared on all of its rows, with the oracle's deviation over
all rows of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .cases import DECODED, LAST_ROWS, Case
from .metric import TOLERANCES, Deviation, deviation

FACTOR = 1.25


class Bounds:
    """The bounds of all cases.

    expected      position -> the oracle's logits [V] in float32
    rounded       the same, computed in the artifact's dtype; None for a float32 artifact
    no_tie        for each position, whether the token has no near tie
    sampled_rows  the compared positions of the longest prompt

    longest, others, only_ties: the bound of the longest prompt, of other cases, and of cases whose every row has a
    near tie.
    """

    def __init__(
        self,
        expected: Mapping[int, torch.Tensor],
        rounded: Mapping[int, torch.Tensor] | None,
        no_tie: Sequence[bool],
        sampled_rows: Sequence[int],
    ) -> None:
        self._expected, self._rounded, self._no_tie = expected, rounded, no_tie
        self.longest = self.others = self.only_ties = TOLERANCES[torch.float32]
        if rounded is None:
            return
        total = _deviation_of(rounded, expected, sampled_rows)
        self.longest = self.others = self.only_ties = total.times(FACTOR)
        size = LAST_ROWS + DECODED
        pieces = [self.without_tie(sampled_rows[start : start + size]) for start in range(0, len(sampled_rows), size)]
        if pieces := [piece for piece in pieces if piece]:
            largest = _deviation_of(rounded, expected, self.without_tie(sampled_rows)).max
            worst = max(_deviation_of(rounded, expected, piece).rms for piece in pieces)
            self.longest = Deviation(largest, total.rms).times(FACTOR)
            self.others = Deviation(largest, worst).times(FACTOR)

    def expected(self, rows: Sequence[int]) -> torch.Tensor:
        """The oracle's logits [rows, V] in float32."""
        return _stack(self._expected, rows)

    def has_tie(self, row: int) -> bool:
        """Whether the token at this position has a near tie."""
        return not self._no_tie[row]

    def without_tie(self, rows: Sequence[int]) -> list[int]:
        """The rows without a near tie."""
        return [row for row in rows if not self.has_tie(row)]

    def bound(self, case: Case, rows: Sequence[int]) -> Deviation:
        """The bound of a case that is compared at `rows`."""
        if not self.without_tie(rows):
            return self.only_ties
        return self.longest if case.sampled else self.others

    def oracle_deviation(self, rows: Sequence[int]) -> Deviation | None:
        """The oracle's own deviation over `rows`; None for a float32 artifact."""
        return None if self._rounded is None else _deviation_of(self._rounded, self._expected, rows)


def _deviation_of(
    actual: Mapping[int, torch.Tensor], expected: Mapping[int, torch.Tensor], rows: Sequence[int]
) -> Deviation:
    return deviation(_stack(actual, rows), _stack(expected, rows))


def _stack(logits: Mapping[int, torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
    return torch.stack([logits[row] for row in rows])
