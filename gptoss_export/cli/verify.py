"""gptoss-export verify"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import CHECK_FAILED, reports_errors
from .pages import check_page, html_option, terminal_table, write
from .params import Integers, artifact_argument, hashes_option, json_option, trust_option, trusted
from .progress import progress
from .tables import print_json, print_tables

if TYPE_CHECKING:
    from ..pictures.page import Page, PageTable
    from ..verification.report import Report


@click.command("verify")
@artifact_argument
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="The checkpoint that ARTIFACT was built from.",
)
@click.option(
    "--oracle",
    type=click.Choice(["transformers", "reference"]),
    default="transformers",
    show_default=True,
    help="What computes the expected logits: Hugging Face's model, or this project's model without kernels.",
)
@click.option("--lengths", type=Integers(), help="Prompt lengths.  [default: around every border of the artifact]")
@click.option(
    "--compare-with",
    type=click.Path(path_type=Path),
    metavar="ARTIFACT",
    help="Another artifact of the checkpoint, compared with the oracle and with the first one on the same tokens.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The LoRA adapter that ARTIFACT was built with, or that it loads into an adapter slot.",
)
@html_option
@hashes_option
@trust_option
@json_option
@reports_errors
def command(
    artifact: Path,
    checkpoint: Path,
    oracle: str,
    lengths: list[int] | None,
    compare_with: Path | None,
    adapter: Path | None,
    html: Path | None,
    verify_hashes: bool,
    trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare the logits of ARTIFACT with an oracle.

    The oracle runs the same checkpoint. The exit code is 1 where the logits differ by more than rounding explains.
    """
    check_page(html, artifact, checkpoint, compare_with)
    from ..verification.verify import verify

    with progress() as shown:
        report = verify(
            artifact, checkpoint, oracle, lengths, verify_hashes, shown, compare_with, trusted(trust), adapter
        )
    if as_json:
        print_json(report.to_json())
    else:
        tables = [_table(report), *([_comparison(report)] if report.compare_with else [])]
        print_tables(map(terminal_table, tables))
    if html is not None:
        write(page(report), html)
    if not report.passed:
        sys.exit(CHECK_FAILED)


def page(report: Report) -> Page:
    """The page of --html."""
    from ..pictures.verify_page import VerifyTables, verify_page

    comparison = _comparison(report) if report.compare_with else None
    return verify_page(report, VerifyTables(_table(report), comparison))


def _table(report: Report) -> PageTable:
    from ..pictures.page import Alarm, PageTable
    from ..pictures.verify_page import two_numbers

    headings = (
        "tokens",
        "rows",
        "near ties",
        "max",
        "rms",
        "bound max",
        "rms",
        "tie max",
        "rms",
        "bound max",
        "rms",
        "top-1",
        "KL",
        "",
    )
    rows = (
        (
            row.label,
            str(row.rows),
            str(row.near_ties),
            *two_numbers(row.gated),
            *two_numbers(row.bound),
            *two_numbers(row.tie),
            *two_numbers(row.tie_bound),
            f"{row.top1:.1%}",
            f"{row.kl:.1e}",
            "pass" if row.within_bounds else Alarm("FAIL"),
        )
        for row in report.rows
    )
    return PageTable(
        f"{report.artifact} ({report.dtype}) against {report.oracle} in float32",
        headings,
        tuple(rows),
        caption="A near tie is a row where rounding can change which experts a router chooses: the logits of the last "
        f"chosen expert and of the next one are less than {report.near_tie:.1e} apart. Rows without one and rows "
        "with one have columns and bounds of their own. Where every row has one, the first columns are of them. "
        f"{report.near_ties} of {report.tokens} tokens of the sequence have a near tie.",
        numbers_from=1,
    )


def _comparison(report: Report) -> PageTable:
    from ..pictures.page import Alarm, PageTable
    from ..pictures.verify_page import two_numbers

    rows = (
        (
            row.label,
            *two_numbers(row.comparison.gated),
            *two_numbers(row.comparison.difference),
            f"{row.comparison.top1:.1%}",
            "pass" if row.comparison.passed else Alarm("FAIL"),
        )
        for row in report.rows
        if row.comparison is not None
    )
    return PageTable(
        f"{report.compare_with} against {report.oracle}, and its difference from {report.artifact}",
        ("tokens", "max", "rms", "difference max", "rms", "same top-1", ""),
        tuple(rows),
        caption="All rows without a near tie; all rows where each has one. max and rms have the bounds of the table "
        "above, and the difference has twice these bounds. So have the rows with a near tie.",
        numbers_from=1,
    )
