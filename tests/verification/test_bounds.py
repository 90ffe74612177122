"""How far an artifact may deviate: the bounds of a case, and which rows they are for."""

from __future__ import annotations

import pytest
import torch

from gptoss_export.verification.bounds import Bounds
from gptoss_export.verification.cases import Case
from gptoss_export.verification.compare import compare_case
from gptoss_export.verification.metric import TOLERANCES, Deviation, deviation, row_deviations
from gptoss_export.verification.report import Row

TIES_LAST = [row < 8 for row in range(10)]


def ten_rows(no_tie: list[bool], moved: int | None = 9) -> Bounds:
    """Bounds of ten rows of an artifact in bfloat16.

    The oracle deviates by 0.1 where the row has no near tie, and by 0.2 where it has one. With near ties decided the
    other way it deviates by 0.4 in row `moved`.
    """
    expected = {row: torch.ones(8) for row in range(10)}
    rounded = {row: torch.full((8,), 1.1 if no_tie[row] else 1.2) for row in range(10)}
    other_side = {row: torch.full((8,), 1.4 if row == moved else 1.1) for row in range(10)}
    return Bounds(expected, rounded, other_side, no_tie)


def compared(bounds: Bounds, rows: list[int], off: float) -> Row:
    """The row of a case whose logits are all off by `off`."""
    return compare_case(Case("test", (1,)), rows, torch.full((len(rows), 8), 1 + off), bounds, None)


def near(found: Deviation | None, largest: float, rms: float) -> bool:
    return found is not None and (found.max, found.rms) == pytest.approx((largest, rms), rel=1e-3)


def test_tolerances() -> None:
    """Their values, so that nobody widens them by accident."""
    assert {
        torch.float32: Deviation(max=1e-4, rms=2e-5),
        torch.float16: Deviation(max=1e-2, rms=1e-3),
        torch.bfloat16: Deviation(max=2e-2, rms=4e-3),
    } == TOLERANCES


def test_deviations_of_rows() -> None:
    """Relative to the root mean square of all rows, so that together they are the deviation of all rows."""
    expected = torch.tensor([[3.0, -4.0, 0.0, 1.0], [10.0, 0.5, 2.0, -6.0]])
    actual = expected + torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.0, 0.4, -0.1, 0.0]])
    rows, whole = row_deviations(actual, expected), deviation(actual, expected)
    floor = expected.square().mean().sqrt().item()
    assert rows[0].max == pytest.approx(0.3 / floor) and rows[1].max == pytest.approx(0.4 / floor)
    assert whole.max == pytest.approx(rows[1].max)
    assert whole.rms**2 == pytest.approx((rows[0].mean_square + rows[1].mean_square) / 2)


def test_a_float32_artifact_has_the_tolerances_of_float32() -> None:
    bounds = Bounds({0: torch.ones(8), 1: torch.ones(8)}, None, None, [True, True])
    assert bounds.without_tie(1) == bounds.without_tie(2) == Deviation(max=1e-4, rms=2e-5)
    assert bounds.oracle_deviation([0]) is None
    assert compared(bounds, [0], 1e-5).passed and not compared(bounds, [0], 5e-4).passed
    assert not compared(bounds, [0], 5e-5).passed  # by the rms


def test_a_near_tie_in_float32_has_the_bound_of_its_other_side() -> None:
    expected = {0: torch.ones(8), 1: torch.ones(8)}
    bounds = Bounds(expected, None, {0: torch.ones(8), 1: torch.full((8,), 1.2)}, [True, False])
    assert near(bounds.with_tie(1), 0.25, 0.25)
    row = compared(bounds, [0, 1], 1e-5)
    assert row.passed and row.near_ties == 1 and row.tie is not None and row.tie.max < 2e-5
    logits = torch.ones(2, 8)
    logits[1] = 1.2
    case = Case("test", (2,))
    assert compare_case(case, [0, 1], logits, bounds, None).passed
    assert not compare_case(case, [1, 0], logits, bounds, None).passed  # the other row has none
    logits[1] = 1.3
    assert not compare_case(case, [0, 1], logits, bounds, None).passed


def test_a_row_that_moves_with_a_near_tie_counts_as_one() -> None:
    """Where deciding near ties the other way moves it by more than the bound of rounding."""
    expected = {row: torch.ones(8) for row in range(4)}
    rounded = {row: torch.full((8,), 1.1) for row in range(4)}
    other_side = {row: torch.full((8,), 1 + off) for row, off in enumerate((0.4, 0.12, 0.13, 0.1))}
    bounds = Bounds(expected, rounded, other_side, [False, True, True, True])
    assert [bounds.has_tie(row) for row in range(4)] == [True, False, True, False]  # the bound is 0.125
    assert near(bounds.without_tie(1), 0.125, 0.125) and near(bounds.with_tie(1), 0.5, 0.5)
    exact = Bounds(expected, None, other_side, [False, True, True, True])
    assert [exact.has_tie(row) for row in range(4)] == [True] * 4
    still = Bounds(expected, None, other_side | {1: torch.ones(8)}, [False, True, True, True])
    assert [still.has_tie(row) for row in range(4)] == [True, False, True, True]


def test_rows_with_and_without_a_near_tie_have_their_own_bounds() -> None:
    bounds = ten_rows(TIES_LAST)
    row = compared(bounds, list(range(10)), 0.12)
    assert near(row.bound, 0.125, 0.125) and near(row.tie_bound, 0.5, 1.25 * ((0.2**2 + 0.4**2) / 2) ** 0.5)
    assert near(row.gated, 0.12, 0.12) and near(row.tie, 0.12, 0.12)
    assert (row.rows, row.near_ties, row.passed) == (10, 2, True)
    assert not compared(bounds, [7, 8], 0.2).passed  # row 7 has none
    logits = torch.full((10, 8), 1.1)
    for off, passes in ((0.35, True), (0.42, False)):  # the rms of the two is bound by 0.395
        logits[8:] = 1 + off
        assert compare_case(Case("test", (10,)), list(range(10)), logits, bounds, None).passed == passes
    logits[8:], logits[3] = 1.1, 1.2
    assert not compare_case(Case("test", (10,)), list(range(10)), logits, bounds, None).passed


def test_a_case_of_near_ties_only() -> None:
    bounds = ten_rows(TIES_LAST)
    row = compared(bounds, [8, 9], 0.3)
    assert row.near_ties == 2 and row.tie is None and row.tie_bound is None
    assert near(row.gated, 0.3, 0.3) and row.bound == bounds.with_tie(2)
    assert row.passed and not compared(bounds, [8, 9], 0.4).passed
    assert compared(bounds, [8], 0.45).passed and not compared(bounds, [8], 0.55).passed
    every = ten_rows([False] * 10, moved=None)
    assert near(every.with_tie(1), 0.25, 0.25)
    assert compared(every, [1], 0.24).passed and not compared(every, [1], 0.26).passed


def test_few_rows_have_the_largest_rms_over_as_many_neighbours() -> None:
    expected = {row: torch.ones(8) for row in range(6)}
    rounded = {row: torch.full((8,), 1 + off) for row, off in enumerate((0.1, 0.1, 0.3, 0.2, 0.1, 0.1))}
    bounds = Bounds(expected, rounded, None, [True] * 6)
    squares = [0.01, 0.01, 0.09, 0.04, 0.01, 0.01]
    for count, window in ((1, [2]), (2, [2, 3]), (3, [1, 2, 3]), (6, range(6)), (9, range(6))):
        rms = (sum(squares[row] for row in window) / len(window)) ** 0.5
        assert near(bounds.without_tie(count), 1.25 * 0.3, 1.25 * rms), count


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [3, 9])
def test_a_logit_that_is_not_finite_fails(value: float, row: int) -> None:
    """In a row with a near tie too."""
    logits = torch.ones(10, 8)
    logits[row, 5] = value
    assert not compare_case(Case("test", (10,)), list(range(10)), logits, ten_rows(TIES_LAST), None).passed


@pytest.mark.parametrize("row", [3, 9])
def test_nothing_passes_where_the_oracle_has_a_nan(row: int) -> None:
    expected = {row: torch.ones(8) for row in range(10)}
    rounded = {row: torch.full((8,), 1.1) for row in range(10)}
    rounded[row] = torch.full((8,), torch.nan)
    bounds = Bounds(expected, rounded, rounded, TIES_LAST)
    assert not compared(bounds, list(range(10)), 0.0).passed


def test_another_artifact_has_the_bounds_and_the_difference_twice_the_bounds() -> None:
    bounds = ten_rows(TIES_LAST)  # 0.125 without a near tie; 0.5 and, as rms, 0.395 with one
    rows = list(range(10))

    def passes(first: tuple[float, float], second: tuple[float, float]) -> bool:
        """Artifacts that are off by so much without and with a near tie."""
        one, two = (torch.tensor([1 + off[row >= 8] for row in rows])[:, None].repeat(1, 8) for off in (first, second))
        row = compare_case(Case("test", (10,)), rows, one, bounds, two)
        assert row.comparison is not None and row.passed == row.comparison.passed
        assert row.comparison.gated.max == pytest.approx(abs(second[0]), abs=1e-6)
        return row.passed

    assert passes((0.1, 0.3), (0.1, 0.3)) and passes((0.1, 0.3), (-0.1, -0.2))
    assert not passes((0.1, 0.3), (0.13, 0.3))
    assert not passes((0.1, 0.3), (0.1, 0.4))
