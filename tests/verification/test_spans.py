"""The deviations by position: of every row, in a bounded number of spans, and together those that are gated."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from gptoss_export.verification.bounds import Bounds
from gptoss_export.verification.cases import DECODED, Case
from gptoss_export.verification.compare import compare_case
from gptoss_export.verification.metric import Deviation, RowDeviation
from gptoss_export.verification.near_ties import Routing, margin_quantiles
from gptoss_export.verification.report import Span
from gptoss_export.verification.spans import MOST_SPANS, ComparedRow, join_rows


def compared(position: int, near_tie: bool = False, decoded: bool = False, error: float = 0.5) -> ComparedRow:
    return ComparedRow(position, near_tie, decoded, RowDeviation(error, error**2 / 4), None, None, None)


def test_a_few_rows_are_spans_of_their_own_in_order() -> None:
    rows = [compared(3, error=0.4), compared(1, near_tie=True), compared(9, decoded=True), compared(3, error=0.2)]
    found = join_rows(rows)
    assert [(span.first, span.last, span.rows) for span in found] == [(1, 1, 1), (3, 3, 1), (3, 3, 1), (9, 9, 1)]
    assert [(span.near_tie, span.decoded) for span in found] == [
        (True, False),
        (False,) * 2,
        (False,) * 2,
        (False, True),
    ]
    assert [span.error for span in found[1:3]] == [Deviation(0.4, 0.2), Deviation(0.2, 0.1)]
    assert all((span.oracle, span.other, span.difference) == (None, None, None) for span in found)


@pytest.mark.parametrize("count", [1, MOST_SPANS - 3, MOST_SPANS - 2, MOST_SPANS, 1359, 131_072])
def test_many_rows_are_joined_with_their_neighbours(count: int) -> None:
    """With near ties here and there, and the last rows decoded."""
    rows = [compared(at, at % 7 == 0, at >= count - 8, error=1e-3 * (1 + at)) for at in range(count)]
    found = join_rows(rows)
    assert len(found) <= MOST_SPANS and len(found) >= min(count, MOST_SPANS) / 2 - 1
    assert sum(span.rows for span in found) == count
    assert max(span.error.max for span in found) == 1e-3 * count
    for near_tie in (False, True):
        for decoded in (False, True):
            same = [span for span in found if (span.near_tie, span.decoded) == (near_tie, decoded)]
            assert all(earlier.last < later.first for earlier, later in pairwise(same))
    total = sum(span.rows * span.error.rms**2 for span in found)
    assert total == pytest.approx(sum(row.error.mean_square for row in rows))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_number_makes_its_span_none(bad: float) -> None:
    rows = [compared(at) for at in range(1000)]
    rows[500] = rows[500]._replace(error=RowDeviation(bad, bad))
    found = join_rows(rows)
    nan = [span for span in found if math.isnan(span.error.max) and math.isnan(span.error.rms)]
    assert len(nan) == 1 and nan[0].first <= 500 <= nan[0].last


def joined(spans: list[Span], name: str) -> Deviation:
    """The deviation over all rows of the spans."""
    found = [(getattr(span, name), span.rows) for span in spans]
    mean = sum(rows * deviation.rms**2 for deviation, rows in found) / sum(rows for _, rows in found)
    return Deviation(max(deviation.max for deviation, _ in found), mean**0.5)


def test_the_spans_of_a_case_are_together_what_is_gated() -> None:
    generator = torch.Generator().manual_seed(1)
    count, vocabulary = 40, 16
    expected = torch.randn(count, vocabulary, generator=generator)
    rounded, moved, actual, other = (
        expected + scale * torch.randn(count, vocabulary, generator=generator) for scale in (0.1, 0.1, 0.05, 0.06)
    )
    moved[30] += 9
    no_tie = [row not in (5, 30) for row in range(count)]
    bounds = Bounds(*(dict(enumerate(logits)) for logits in (expected, rounded, moved)), no_tie)
    rows = list(range(count))
    found = compare_case(Case("32", (32,), sampled=True), rows, actual, bounds, other)
    ties = [span for span in found.spans if span.near_tie]
    without = [span for span in found.spans if not span.near_tie]
    assert len(ties) == found.near_ties >= 2 and len(without) + len(ties) == count
    assert [span.first for span in found.spans if span.decoded] == rows[-DECODED:]

    def same(first: Deviation | None, second: Deviation) -> bool:
        return first is not None and (first.max, first.rms) == pytest.approx((second.max, second.rms), rel=1e-6)

    assert found.comparison is not None
    assert same(found.gated, joined(without, "error")) and same(found.tie, joined(ties, "error"))
    assert same(found.comparison.gated, joined(without, "other"))
    assert same(found.comparison.difference, joined(without, "difference"))
    assert same(found.oracle, joined(list(found.spans), "oracle"))


def test_spans_of_a_float32_artifact_alone_have_its_own_error_only() -> None:
    bounds = Bounds({0: torch.ones(8), 1: torch.ones(8)}, None, None, [True, True])
    found = compare_case(Case("1", (1,), sampled=True), [0, 1], torch.full((2, 8), 1 + 1e-5), bounds, None)
    assert [(span.first, span.oracle, span.other, span.difference) for span in found.spans] == [
        (0, None, None, None),
        (1, None, None, None),
    ]


@pytest.mark.parametrize(("off", "sampled", "kept"), [(1e-5, False, 0), (1e-5, True, 2), (1e-2, False, 2)])
def test_the_case_that_is_sampled_and_those_that_fail_keep_their_spans(off: float, sampled: bool, kept: int) -> None:
    bounds = Bounds({0: torch.ones(8), 1: torch.ones(8)}, None, None, [True, True])
    found = compare_case(Case("1", (1,), sampled), [0, 1], torch.full((2, 8), 1 + off), bounds, None)
    assert found.passed == (off == 1e-5) and len(found.spans) == kept


def test_quantiles_of_the_margins() -> None:
    margins = torch.linspace(0, 2, 201).flip(0)
    found = margin_quantiles(Routing(margins, torch.zeros(201, dtype=torch.int64)))
    assert found == pytest.approx([index / 50 for index in range(101)])
    every = Routing(torch.full((4,), torch.inf), torch.zeros(4, dtype=torch.int64))
    assert margin_quantiles(every) == ()
