"""The report of `verify`: one row for each case."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .metric import Deviation


@dataclass(frozen=True)
class Comparison:
    """What another artifact gave on the same tokens.

    gated       its deviation from the oracle, as `Row.gated`
    difference  the deviation of the first artifact from it, over the same rows
    top1        how often the two agree on the most likely token, 0 to 1
    passed      whether it is within the bounds of the row, and the difference within twice these bounds; on the rows
                with a near tie too
    """

    gated: Deviation
    difference: Deviation
    top1: float
    passed: bool


@dataclass(frozen=True)
class Span:
    """Compared positions of a case that lie side by side, all of one kind (spans.py).

    first, last  the positions in the sequence, from 0
    rows         how many positions were compared from `first` to `last`, of all prompts of the case
    near_tie     whether they have a near tie, or move with one that has
    decoded      whether decode steps computed them; a prefill did otherwise
    error        the artifact's deviation from the oracle
    oracle       the oracle's own deviation in the artifact's dtype; None for float32
    other        the other artifact's deviation from the oracle; None where no other artifact was given
    difference   the deviation of the first artifact from the other one; None as `other`
    """

    first: int
    last: int
    rows: int
    near_tie: bool
    decoded: bool
    error: Deviation
    oracle: Deviation | None
    other: Deviation | None
    difference: Deviation | None


@dataclass(frozen=True)
class Row:
    """The comparison of one case with the oracle.

    label         the lengths of its prompts
    rows          how many positions were compared
    sampled       whether they lie all over the prompt
    near_ties     how many of them have a near tie (near_ties.py), or move with one that has (bounds.py)
    all           the deviation over all rows
    oracle        the oracle's own deviation in the artifact's dtype, over all rows; None for float32
    gated         the deviation over the rows without a near tie; over all rows where each has one
    bound         what `gated` has to be within (bounds.py)
    tie           the deviation over the rows with a near tie; None where there are none, and where `gated` is of them
    tie_bound     what `tie` has to be within
    top1          how often artifact and oracle agree on the most likely token, 0 to 1
    kl            mean Kullback-Leibler divergence of the artifact's distribution from the oracle's, in nats
    comparison    the comparison with the other artifact, where one was given
    spans         the deviations by position, of the case that is sampled and of those that fail
    """

    label: str
    rows: int
    sampled: bool
    near_ties: int
    all: Deviation
    oracle: Deviation | None
    gated: Deviation
    bound: Deviation
    tie: Deviation | None
    tie_bound: Deviation | None
    top1: float
    kl: float
    comparison: Comparison | None
    spans: tuple[Span, ...] = ()

    @property
    def within_bounds(self) -> bool:
        """Whether the artifact itself is within its bounds, whatever another one gave."""
        ties = self.tie is None or (self.tie_bound is not None and self.tie.within(self.tie_bound))
        return self.gated.within(self.bound) and ties

    @property
    def passed(self) -> bool:
        return self.within_bounds and (self.comparison is None or self.comparison.passed)


@dataclass(frozen=True)
class Report:
    """The result of one verification.

    artifact, compare_with  folders; compare_with is None where no other artifact was given
    oracle, dtype           the oracle's name, the artifact's dtype
    near_tie                the router margin, in logits, below which a token has a near tie
    near_ties, tokens       how many of the sequence's tokens have one, and how many tokens it has
    margins                 the 0, 1, ... 100 % quantiles of the router margins of these tokens, in logits; empty where
                            every expert is chosen
    """

    artifact: str
    compare_with: str | None
    oracle: str
    dtype: str
    near_tie: float
    near_ties: int
    tokens: int
    margins: tuple[float, ...]
    rows: list[Row]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """All fields by name, and `passed` for the report and for each row."""
        rows = [asdict(row) | {"passed": row.passed} for row in self.rows]
        return {"passed": self.passed} | asdict(self) | {"rows": rows}
