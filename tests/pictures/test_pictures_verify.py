"""The pictures of `verify`: shares of the bound, errors by position, near ties, and what fails."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from made_pages import page_of_verify
from parsed_page import ParsedPage, Shown, wide
from picture_facts import verify_report, with_nan

from gptoss_export.pictures.error_by_length import comparison_picture, length_picture
from gptoss_export.pictures.error_by_position import position_picture
from gptoss_export.pictures.log_axis import log_range, log_text
from gptoss_export.pictures.page import Alarm, html
from gptoss_export.pictures.router_margins import margins_picture
from gptoss_export.verification.metric import Deviation
from gptoss_export.verification.report import Report


def names(report: Report) -> set[str]:
    """Of the pictures on a page."""
    return {picture.name for section in page_of_verify(report).sections for picture in section.pictures}


def positions(report: Report, index: int = 0) -> Shown:
    return wide(position_picture(report.rows[index], index, report.oracle))


def marks(picture: Shown, colour: str, hollow: bool = False) -> list[tuple[float, float]]:
    """The places of the points of a colour, without that of the key, which is drawn last. Red has no key."""
    fill = "fill-opacity: 0" if hollow else f"fill: var(--{colour})"
    found, inherited = [], ""
    for tag, attributes in picture.elements:
        style = attributes.get("style", "")
        if tag == "g":
            inherited = style
        style = style or inherited
        if tag == "use" and fill in style and f"stroke: var(--{colour})" in style:
            found.append((float(attributes["x"]), float(attributes["y"])))
    return found if colour == "red" else found[:-1]


def test_each_case_lies_at_its_share_of_the_bound() -> None:
    report = verify_report(ties=False, compared=False)
    picture = wide(length_picture(report))
    points = marks(picture, "blue")
    assert len(points) == 2 * len(report.rows)
    for plot, name in ((0, "max"), (1, "rms")):
        zero, full = picture.across("0%")[plot], picture.across("100%")[plot]
        found = points[plot * len(report.rows) : (plot + 1) * len(report.rows)]
        for (x, _), row in zip(found, report.rows, strict=True):
            share = getattr(row.gated, name) / getattr(row.bound, name)
            assert (x - zero) / (full - zero) == pytest.approx(share, abs=0.002)
    assert {row.label for row in report.rows} <= set(picture.texts)
    assert "All pass." in picture.description and marks(picture, "red") == []


def test_what_fails_is_red_and_written_out() -> None:
    report = verify_report()
    rows = list(report.rows)
    rows[0] = replace(rows[0], gated=rows[0].bound.times(56.0))
    rows[1] = replace(rows[1], tie=Deviation(0.0, 1.5 * rows[1].tie_bound.rms))
    report = with_nan(replace(report, rows=rows), 2)
    picture = wide(length_picture(report))
    assert picture.texts.count("56 times") == 2 and picture.texts.count("not a number") == 2
    assert len(marks(picture, "red")) == 4 and len(marks(picture, "red", hollow=True)) == 1
    assert "3 fail: 1, 63, 129." in picture.description
    page = page_of_verify(report)
    assert page.facts[0] == ("result", Alarm("FAIL: 3 of 5 cases"))
    titles = [section.title for section in page.sections]
    assert [title for title in titles if title.startswith("Error by position")] == [
        f"Error by position: {label}" for label in ("1", "63", "129", "4097")
    ]
    assert page_of_verify(verify_report()).facts[0] == ("result", "pass")


def test_an_artifact_that_passes_beside_one_that_fails() -> None:
    """Its own case is no failure: the comparison is."""
    report = verify_report()
    rows = list(report.rows)
    assert rows[0].comparison is not None
    rows[0] = replace(rows[0], comparison=replace(rows[0].comparison, passed=False))
    report = replace(report, rows=rows)
    assert not report.passed and "All pass." in wide(length_picture(report)).description
    assert "The comparison fails at 1." in wide(comparison_picture(report)).description
    tables = [table for section in page_of_verify(report).sections for table in section.tables]
    own, comparison = (table for table in tables if not table.title.startswith(("errors by", "router")))
    assert [row[-1] for row in own.rows] == ["pass"] * len(rows)
    assert [row[-1] for row in comparison.rows] == [Alarm("FAIL"), *["pass"] * (len(rows) - 1)]


def test_the_bound_of_a_case_with_near_ties_alone() -> None:
    report = verify_report()
    sampled = next(row for row in report.rows if row.sampled)
    assert "without a near tie and" in wide(position_picture(sampled, 0, report.oracle)).description
    alone = replace(sampled, near_ties=sampled.rows, tie=None, tie_bound=None)
    assert wide(position_picture(alone, 0, report.oracle)).description.endswith(
        f"{alone.bound.max:.1e} with a near tie."
    )


def test_both_artifacts_and_their_difference() -> None:
    report = verify_report()
    picture = wide(comparison_picture(report))
    zero, full = picture.across("0%")[0], picture.across("100%")[0]
    row = report.rows[0]
    assert row.comparison is not None
    for points, share in (
        (marks(picture, "blue"), row.gated.max / row.bound.max),
        (marks(picture, "orange", hollow=True), row.comparison.gated.max / row.bound.max),
        (marks(picture, "teal"), row.comparison.difference.max / row.bound.max / 2),
    ):
        assert len(points) == 2 * len(report.rows)
        assert (points[0][0] - zero) / (full - zero) == pytest.approx(share, abs=0.002)
    assert "comparison" not in names(verify_report(compared=False))


def test_the_error_of_each_position() -> None:
    report = verify_report(compared=False)
    index = next(index for index, row in enumerate(report.rows) if row.sampled)
    row = report.rows[index]
    picture = positions(report, index)
    for colour, near_tie in (("blue", False), ("purple", True)):
        for hollow, decoded in ((False, False), (True, True)):
            spans = [span for span in row.spans if (span.near_tie, span.decoded) == (near_tie, decoded)]
            points = marks(picture, colour, hollow)
            assert len(points) == 2 * len(spans) > 0
            found = points[: len(spans)]
            order = sorted(range(len(spans)), key=lambda at: spans[at].error.max)
            assert [y for _, y in (found[at] for at in order)] == sorted((y for _, y in found), reverse=True)
            assert [x for x, _ in found] == sorted(x for x, _ in found)
    # two positions of a logarithmic axis tell the scale of all others
    prefill = [span for span in row.spans if not span.near_tie and not span.decoded]
    heights = [y for _, y in marks(picture, "blue")[: len(prefill)]]
    logs = [math.log(span.error.max) for span in prefill]
    scale = (heights[0] - heights[1]) / (logs[1] - logs[0])
    assert [heights[0] - scale * (log - logs[0]) for log in logs] == pytest.approx(heights, abs=0.1)
    assert {"1.6e-01", "1.3e+00", "2.9e-02", "prefill", "decode, near tie", "bound"} <= set(picture.texts)
    assert len(marks(picture, "grey")) == 2 * len(row.spans)


def test_positions_above_their_bound_are_red() -> None:
    report = verify_report([129], compared=False)
    row = report.rows[0]
    assert row.tie_bound is not None
    wrong = {at: row.bound.times(1.1) for at in (3, 4, 30)}  # 105 + 3 has a near tie, whose bound is larger
    assert [row.spans[at].near_tie for at in wrong] == [True, False, False]
    spans = tuple(replace(span, error=wrong.get(at, span.error)) for at, span in enumerate(row.spans))
    picture = positions(replace(report, rows=[replace(row, spans=spans)]))
    assert len(marks(picture, "red")) == 1 and len(marks(picture, "red", hollow=True)) == 1
    assert marks(positions(report), "red") == []


def test_positions_that_are_no_numbers_or_exact() -> None:
    report = with_nan(verify_report([129], ties=False, compared=False), 0)
    picture = positions(report)
    bad = sum(math.isnan(span.error.max) for span in report.rows[0].spans)
    assert len(marks(picture, "red")) == 2 * bad and picture.texts.count("not a number") == 2
    exact = verify_report([129], rounded=False, ties=False, compared=False)
    spans = tuple(replace(span, error=Deviation(0.0, 0.0)) for span in exact.rows[0].spans)
    picture = positions(replace(exact, rows=[replace(exact.rows[0], spans=spans)]))
    places = {y for _, y in marks(picture, "blue")}
    assert len(places) == 2  # the lower ends of the two plots
    cells = ParsedPage(html(page_of_verify(replace(exact, rows=[replace(exact.rows[0], spans=spans)])), "")).cells
    assert "0.0e+00" in cells


def test_near_ties_are_the_part_of_the_curve_below_the_margin() -> None:
    report = verify_report()
    picture = wide(margins_picture(report))
    drawn = {}
    for tag, attributes in picture.elements:
        style = attributes.get("style", "")
        if tag == "path" and "stroke-width: 2" in style and "var(--blue)" in style:
            drawn["all"] = re.findall(r"[ML] ([\d.]+) ([\d.]+)", attributes["d"])
        if tag == "path" and "stroke-width: 4" in style and "var(--purple)" in style:
            drawn["below"] = re.findall(r"[ML] ([\d.]+) ([\d.]+)", attributes["d"])
    assert len(drawn["below"]) > 1 and float(drawn["below"][-1][0]) < float(drawn["all"][-1][0])
    assert drawn["below"][0] == drawn["all"][0]
    assert "near ties below 3.1e-02: 49.9%" in picture.texts
    none = wide(margins_picture(verify_report(ties=False)))
    assert "near ties below 3.1e-02: 0.0%" in none.texts
    assert "margins" not in names(replace(report, margins=()))
    assert not any(
        text.startswith("near ties") for text in wide(margins_picture(replace(report, near_tie=math.inf))).texts
    )


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.05, "0.05"), (1e-4, "10⁻⁴"), (2e-6, "2·10⁻⁶"), (1e12, "10¹²"), (2000.0, "2,000")]
)
def test_numbers_of_a_logarithmic_axis(value: float, text: str) -> None:
    assert log_text(value) == text


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, math.nan, math.inf], [3e-7, 1e-4], [1e-3, 0.9], [1e-300, 1e300], [0.11, 0.19]]
)
def test_a_logarithmic_axis_holds_its_values_and_has_numbers(values: list[float]) -> None:
    found = log_range(values)
    assert 0 < found.low < found.high < math.inf
    assert 1 <= len(found.ticks) <= 9 and all(found.low <= tick <= found.high for tick in found.ticks)
    highest = max([value for value in values if 0 < value < math.inf], default=1.0)
    assert found.low < highest < found.high and found.clipped(0.0) == found.low
