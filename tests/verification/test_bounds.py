"""How far an artifact may deviate: the bounds of a case, and which rows they are for."""

from __future__ import annotations

import pytest
import torch

from gptoss_export.verification.bounds import Bounds
from gptoss_export.verification.cases import Case
from gptoss_export.verification.compare import compare_case
from gptoss_export.verification.metric import TOLERANCES, Deviation
from gptoss_export.verification.report import Comparison, Row


def ten_rows(no_tie: list[bool]) -> Bounds:
    """Bounds of ten rows. The oracle deviates by 0.1 where the row has no near tie, by 0.4 where it has one."""
    expected = {row: torch.ones(8) for row in range(10)}
    rounded = {row: torch.full((8,), 1.1 if no_tie[row] else 1.4) for row in range(10)}
    return Bounds(expected, rounded, no_tie, list(range(10)))


def compared(bounds: Bounds, rows: list[int], off: float, sampled: bool = False) -> Row:
    """The row of a case whose logits are all off by `off`."""
    case = Case("test", (1,), sampled=sampled)
    return compare_case(case, rows, torch.full((len(rows), 8), 1 + off), bounds, None)


def test_tolerances() -> None:
    """Their values, so that nobody widens them by accident."""
    assert {
        torch.float32: Deviation(max=1e-4, rms=2e-5),
        torch.float16: Deviation(max=1e-2, rms=1e-3),
        torch.bfloat16: Deviation(max=2e-2, rms=4e-3),
    } == TOLERANCES


def test_a_float32_artifact_has_the_tolerances_of_float32() -> None:
    bounds = Bounds({0: torch.ones(8), 1: torch.ones(8)}, None, [True, True], [0, 1])
    assert bounds.longest == bounds.others == bounds.only_ties == Deviation(max=1e-4, rms=2e-5)
    assert bounds.oracle_deviation([0]) is None
    assert compared(bounds, [0], 1e-5).passed and not compared(bounds, [0], 5e-4).passed
    assert not compared(bounds, [0], 5e-5).passed  # by the rms


def test_a_case_of_near_ties_only_has_the_bound_of_all_rows() -> None:
    bounds = ten_rows([row < 8 for row in range(10)])
    assert bounds.others.max == pytest.approx(0.125, rel=1e-3)
    only_ties = compared(bounds, [8, 9], 0.2)
    assert only_ties.near_ties == 2 and only_ties.bound == bounds.only_ties
    assert only_ties.bound.max == pytest.approx(0.5, rel=1e-3)
    assert only_ties.bound.rms == pytest.approx(1.25 * ((8 * 0.1**2 + 2 * 0.4**2) / 10) ** 0.5, rel=1e-3)
    assert only_ties.passed and not compared(bounds, [8, 9], 0.3).passed
    assert not compared(bounds, [7, 8], 0.2).passed  # row 7 has none
    every = ten_rows([False] * 10)
    assert every.longest == every.others == every.only_ties
    assert compared(every, [1], 0.45, sampled=True).passed


def test_the_longest_prompt_is_known_by_its_case() -> None:
    """Another case may compare as many rows."""
    bounds = ten_rows([row < 8 for row in range(10)])
    rows = list(range(10))
    assert compared(bounds, rows, 0.0).bound == bounds.others
    assert compared(bounds, rows, 0.0, sampled=True).bound == bounds.longest
    assert bounds.others.rms < bounds.longest.rms


def test_what_is_gated() -> None:
    """The maximum of the rows without a near tie, and the rms of these rows or, for the longest prompt, of all rows."""
    bounds = ten_rows([row < 8 for row in range(10)])
    logits = torch.full((10, 8), 1.0)
    logits[8:] = 1.3
    for sampled in (False, True):
        row = compare_case(Case("test", (10,), sampled=sampled), list(range(10)), logits, bounds, None)
        assert (row.rows, row.near_ties, row.sampled) == (10, 2, sampled)
        assert row.all.max == pytest.approx(0.3) and row.no_tie == Deviation(0.0, 0.0)
        assert row.gated == Deviation(0.0, row.all.rms if sampled else 0.0)


def test_another_artifact_has_the_bound_and_the_difference_twice_the_bound() -> None:
    bound = Deviation(0.1, 0.1)
    inside, outside, double = Deviation(0.1, 0.1), Deviation(0.11, 0.1), Deviation(0.2, 0.2)
    assert Comparison(inside, double, 1.0).within(bound)
    assert not Comparison(outside, double, 1.0).within(bound)
    assert not Comparison(inside, Deviation(0.2, 0.21), 1.0).within(bound)
