"""Where in a sequence a case deviates, in a bounded size: rows are joined with their neighbours where they are many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .metric import Deviation, RowDeviation
from .report import Span

MOST_SPANS = 200  # of a case


class ComparedRow(NamedTuple):
    """One compared position of a case. The deviations are those that `Span` has, of this row alone."""

    position: int
    near_tie: bool
    decoded: bool
    error: RowDeviation
    oracle: RowDeviation | None
    other: RowDeviation | None
    difference: RowDeviation | None


def join_rows(rows: Sequence[ComparedRow]) -> tuple[Span, ...]:
    """The rows in the order of their positions, at most MOST_SPANS spans.

    A span holds as many neighbours as that takes, all of them decoded or none, all with a near tie or none.
    """
    kinds = [(near_tie, decoded) for near_tie in (False, True) for decoded in (False, True)]
    most = MOST_SPANS - len(kinds) + 1  # a kind may have one span that is not full
    size = max(1, -(-len(rows) // most))
    spans: list[Span] = []
    for kind in kinds:
        same = sorted((row for row in rows if (row.near_tie, row.decoded) == kind), key=lambda row: row.position)
        spans += [_span(same[start : start + size]) for start in range(0, len(same), size)]
    return tuple(sorted(spans, key=lambda span: (span.first, span.last)))


def _span(rows: Sequence[ComparedRow]) -> Span:
    first = rows[0]
    return Span(
        first=first.position,
        last=rows[-1].position,
        rows=len(rows),
        near_tie=first.near_tie,
        decoded=first.decoded,
        error=_joined([row.error for row in rows]),
        oracle=_joined_if_any(row.oracle for row in rows),
        other=_joined_if_any(row.other for row in rows),
        difference=_joined_if_any(row.difference for row in rows),
    )


def _joined_if_any(found: Iterable[RowDeviation | None]) -> Deviation | None:
    present = [row for row in found if row is not None]
    return _joined(present) if present else None


def _joined(found: Sequence[RowDeviation]) -> Deviation:
    """The deviation over these rows; NaN, as `deviation` has it, where one of them has a NaN or an infinity."""
    largest, mean_square = max(row.max for row in found), sum(row.mean_square for row in found) / len(found)
    if not all(math.isfinite(number) for row in found for number in row):
        return Deviation(math.nan, math.nan)
    return Deviation(largest, mean_square**0.5)
