"""Compares the logits of one case with the oracle's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from .bounds import Bounds
from .cases import DECODED, Case
from .metric import Deviation, RowDeviation, deviation, row_deviations
from .report import Comparison, Row, Span
from .spans import ComparedRow, join_rows


class Gate(NamedTuple):
    """A deviation and its bound."""

    deviation: Deviation
    bound: Deviation

    @property
    def passed(self) -> bool:
        return self.deviation.within(self.bound)


def compare_case(
    case: Case, rows: Sequence[int], logits: torch.Tensor, bounds: Bounds, other: torch.Tensor | None
) -> Row:
    """The row of a case: the artifact's logits [n, V] at the positions `rows`, and another artifact's."""
    expected = bounds.expected(rows)
    kinds = [
        (kind, bound(len(kind)))
        for has_tie, bound in ((False, bounds.without_tie), (True, bounds.with_tie))
        if (kind := [index for index, row in enumerate(rows) if bounds.has_tie(row) == has_tie])
    ]

    def gates(actual: torch.Tensor, wanted: torch.Tensor, factor: float = 1.0) -> list[Gate]:
        """Of the rows without a near tie and of those with one, as far as there are any."""
        return [Gate(deviation(actual[kind], wanted[kind]), bound.times(factor)) for kind, bound in kinds]

    comparison = None
    if other is not None:
        # Two artifacts within the bounds differ by at most twice the bounds.
        differences = gates(logits, other, 2.0)
        comparison = Comparison(
            gated=(found := gates(other, expected))[0].deviation,
            difference=differences[0].deviation,
            top1=_agreement(logits, other),
            passed=all(gate.passed for gate in [*found, *differences]),
        )
    gate, *ties = gates(logits, expected)
    row = Row(
        label=case.label,
        rows=len(rows),
        sampled=case.sampled,
        near_ties=sum(map(bounds.has_tie, rows)),
        all=deviation(logits, expected),
        oracle=bounds.oracle_deviation(rows),
        gated=gate.deviation,
        bound=gate.bound,
        tie=ties[0].deviation if ties else None,
        tie_bound=ties[0].bound if ties else None,
        top1=_agreement(logits, expected),
        kl=_divergence(logits, expected),
        comparison=comparison,
    )
    if row.passed and not case.sampled:
        return row
    errors = [
        _errors([kind for kind, _ in kinds], actual, wanted)
        for actual, wanted in ((logits, expected), (other, expected), (logits, other))
    ]
    return replace(row, spans=_spans(case, rows, bounds, *errors))


def _errors(
    kinds: Sequence[Sequence[int]], actual: torch.Tensor | None, wanted: torch.Tensor | None
) -> dict[int, RowDeviation]:
    """Of each row, by its index, relative to the rows of its kind: together they are the deviations that are gated.

    Empty where one of the two is None.
    """
    if actual is None or wanted is None:
        return {}
    found = ((kind, row_deviations(actual[kind], wanted[kind])) for kind in kinds)
    return {index: error for kind, values in found for index, error in zip(kind, values, strict=True)}


def _spans(
    case: Case,
    rows: Sequence[int],
    bounds: Bounds,
    errors: Mapping[int, RowDeviation],
    others: Mapping[int, RowDeviation],
    differences: Mapping[int, RowDeviation],
) -> tuple[Span, ...]:
    first_decoded = len(rows) - DECODED * len(case.compared)
    compared = (
        ComparedRow(
            position=row,
            near_tie=bounds.has_tie(row),
            decoded=index >= first_decoded,
            error=errors[index],
            oracle=bounds.oracle_row(row),
            other=others.get(index),
            difference=differences.get(index),
        )
        for index, row in enumerate(rows)
    )
    return join_rows(list(compared))


def _agreement(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (expected.argmax(-1) == actual.argmax(-1)).float().mean().item()


def _divergence(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Kullback-Leibler divergence, the mean over the rows."""
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
