"""Compares the logits of one case with the oracle's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .bounds import Bounds
from .cases import Case
from .metric import Deviation, deviation
from .report import Comparison, Row


def compare_case(
    case: Case, rows: Sequence[int], logits: torch.Tensor, bounds: Bounds, other: torch.Tensor | None
) -> Row:
    """The row of a case: the artifact's logits [n, V] at the positions `rows`, and another artifact's."""
    expected = bounds.expected(rows)
    no_tie = [index for index, row in enumerate(rows) if not bounds.has_tie(row)]

    def deviations(actual: torch.Tensor, wanted: torch.Tensor) -> tuple[Deviation, Deviation, Deviation]:
        """Over all rows, over those without a near tie (all where each has one), and the gated one."""
        total = deviation(actual, wanted)
        part = deviation(actual[no_tie], wanted[no_tie]) if no_tie else total
        return total, part, Deviation(part.max, total.rms if case.sampled else part.rms)

    total, part, gated = deviations(logits, expected)
    comparison = None
    if other is not None:
        comparison = Comparison(
            gated=deviations(other, expected)[2],
            difference=deviations(logits, other)[2],
            top1=_agreement(logits, other),
        )
    return Row(
        label=case.label,
        rows=len(rows),
        sampled=case.sampled,
        near_ties=len(rows) - len(no_tie),
        all=total,
        no_tie=part,
        oracle=bounds.oracle_deviation(rows),
        bound=bounds.bound(case, rows),
        gated=gated,
        top1=_agreement(logits, expected),
        kl=_divergence(logits, expected),
        comparison=comparison,
    )


def _agreement(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (expected.argmax(-1) == actual.argmax(-1)).float().mean().item()


def _divergence(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Kullback-Leibler divergence, the mean over the rows."""
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
