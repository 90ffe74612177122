"""The page of `verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .error_by_length import comparison_picture, length_picture
from .error_by_position import position_picture
from .page import Alarm, Cell, Page, PageTable, Section
from .router_margins import margins_picture

if TYPE_CHECKING:
    from ..verification.metric import Deviation
    from ..verification.report import Report, Row, Span

_FAILING = 4  # cases that fail whose positions are shown


@dataclass(frozen=True)
class VerifyTables:
    """The tables of a report, as the terminal shows them; `comparison` is None without another artifact."""

    rows: PageTable
    comparison: PageTable | None


def verify_page(report: Report, tables: VerifyTables) -> Page:
    """The pictures of a report with its tables."""
    sections = [_by_length(report, tables.rows)]
    if tables.comparison is not None and any(row.comparison is not None for row in report.rows):
        text = (
            "Two artifacts that are within the bounds differ from each other by at most twice the bounds.",
            "The points are of the rows without a near tie; of all rows where each has one.",
        )
        sections.append(
            Section("Both artifacts", text, (comparison_picture(report),) if report.rows else (), (tables.comparison,))
        )
    sections += [_by_position(report, row) for row in _shown(report)]
    sections.append(_near_ties(report))
    return Page(report.artifact, "gptoss-export verify", _facts(report), tuple(sections))


def _facts(report: Report) -> tuple[tuple[str, Cell], ...]:
    failed = sum(not row.passed for row in report.rows)
    facts: list[tuple[str, Cell]] = [
        ("result", "pass" if report.passed else Alarm(f"FAIL: {failed} of {len(report.rows)} cases")),
        ("cases", str(len(report.rows))),
        ("compared with", f"{report.oracle} in float32"),
        ("dtype", report.dtype),
        ("tokens of the sequence", f"{report.tokens:,}"),
        ("tokens with a near tie", f"{report.near_ties:,}"),
    ]
    if report.compare_with is not None:
        facts.append(("other artifact", report.compare_with))
    return tuple(facts)


def _by_length(report: Report, table: PageTable) -> Section:
    text = (
        "The error of a logit is relative to its expected magnitude, or to the root mean square of the expected logits "
        "where that is larger. A case passes where the largest error and the rms are within their bounds: left of the "
        "line.",
    )
    return Section("Error by length", text, (length_picture(report),) if report.rows else (), (table,))


def _shown(report: Report) -> list[Row]:
    """The case whose positions lie all over its prompt, and some that fail."""
    failing = [row for row in report.rows if not row.passed and not row.sampled][:_FAILING]
    return [row for row in report.rows if row.spans and (row.sampled or row in failing)]


def _by_position(report: Report, row: Row) -> Section:
    text = (
        "A position passes where its largest error is below the bound of its kind. Neighbouring positions are joined "
        "where a case has many of them: then the largest error and the rms are over all of these.",
    )
    index = report.rows.index(row)
    picture = position_picture(row, index, report.oracle)
    return Section(f"Error by position: {row.label}", text, (picture,), (_positions(row),))


def _positions(row: Row) -> PageTable:
    spans = row.spans
    columns = [("error", True), ("oracle", any(span.oracle for span in spans)), ("other", any(s.other for s in spans))]
    columns.append(("difference", any(span.difference for span in spans)))
    names = {"error": "", "oracle": "the oracle's own ", "other": "the other's ", "difference": "difference "}
    shown = [name for name, there in columns if there]
    headings = [f"{names[name]}{number}" for name in shown for number in ("max", "rms")]

    def cells(span: Span) -> tuple[str, ...]:
        where = str(span.first) if span.first == span.last else f"{span.first} to {span.last}"
        kind = f"{'decode' if span.decoded else 'prefill'}{', near tie' if span.near_tie else ''}"
        numbers = (number for name in shown for number in two_numbers(getattr(span, name)))
        return (where, kind, str(span.rows), *numbers)

    return PageTable(
        f"errors by position, prompt of {row.label} tokens",
        ("position", "of", "rows", *headings),
        tuple(map(cells, spans)),
        numbers_from=2,
    )


def _near_ties(report: Report) -> Section:
    text = (
        "A token has a near tie where the router logits of the last chosen expert and of the next one are so near, in "
        "one of the layers, that rounding can change which experts are chosen.",
    )
    if not report.margins:
        return Section("Near ties", (*text, "Every expert is chosen, so there are none."))
    last = len(report.margins) - 1
    rows = tuple((f"{index / last:.0%}", f"{margin:.2e}") for index, margin in enumerate(report.margins))
    table = PageTable("router margins, in logits", ("tokens", "at most"), rows, numbers_from=0)
    return Section("Near ties", text, (margins_picture(report),), (table,))


def two_numbers(deviation: Deviation | None) -> tuple[str, str]:
    """The largest and the rms, as the tables show them."""
    return ("-", "-") if deviation is None else (f"{deviation.max:.1e}", f"{deviation.rms:.1e}")
