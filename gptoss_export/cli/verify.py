"""gptoss-export verify"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .output import (
    CHECK_FAILED, Integers, artifact_argument, check_parent, hashes_option, json_option, print_json, print_table, progress,
    reports_errors,
)  # fmt: skip


@click.command("verify")
@artifact_argument
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="What ARTIFACT was built from.")
@click.option("--oracle", type=click.Choice(["transformers", "reference"]), default="transformers", show_default=True)
@click.option("--lengths", type=Integers(), help="Prompt lengths; default: around every border of the artifact.")
@click.option("--beside", type=click.Path(path_type=Path), help="Another artifact of the checkpoint to run on the same tokens.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the table as a page.")
@hashes_option
@json_option
@reports_errors
def command(artifact, checkpoint, oracle, lengths, beside, html, verify_hashes, as_json) -> None:
    """Compare ARTIFACT's logits with an oracle's on the same checkpoint; exit code 1 where they differ."""
    from ..verify.parity import verify

    check_parent("--html", html)
    with progress() as steps:
        report = verify(artifact, checkpoint, oracle, lengths, verify_hashes, steps, beside)
    if as_json:
        print_json(report.to_json())
    if html is not None or not as_json:
        print_table(*_tables(report), html=html, quiet=as_json)
    if not report.passed:
        sys.exit(CHECK_FAILED)


def _tables(report):
    return [_table(report), *([_beside(report)] if report.beside else [])]


def _beside(report):
    from rich.table import Table

    table = Table(
        title=f"beside {report.beside}",
        caption="Errors as they are judged: the other artifact's own, to the bar above, and the two's difference, to twice that.",
    )
    for heading in ("tokens", "max", "rms", "difference max", "rms", "same top-1"):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for row in report.rows:
        errors = (row.beside.judged, row.beside.difference)
        table.add_row(
            row.label, *(f"{value:.1e}" for item in errors for value in (item.max, item.rms)), f"{row.beside.top1:.1%}"
        )
    return table


def _table(report):
    from rich.table import Table

    table = Table(
        title=f"{report.artifact} ({report.dtype}) against {report.oracle} in float32",
        caption=f"Near ties: rows where a router's choice is within rounding ({report.near_tie:.1e}); max is judged on the "
                f"rows without. {report.near_ties} of {report.tokens} tokens of the sequence have one.",
    )  # fmt: skip
    headings = ("tokens", "rows", "max", "rms", "near ties", "max without", "rms", "oracle's max", "rms",
                "bar max", "rms", "top-1", "KL", "")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for row in report.rows:
        errors = (row.oracle, row.bound)
        table.add_row(
            row.label, str(row.rows), f"{row.error.max:.1e}", f"{row.error.rms:.1e}", str(row.near_ties),
            f"{row.clear.max:.1e}", f"{row.clear.rms:.1e}",
            *(text for item in errors for text in ((f"{item.max:.1e}", f"{item.rms:.1e}") if item else ("-", "-"))),
            f"{row.top1:.1%}", f"{row.kl:.1e}", "pass" if row.passed else "[bold red]FAIL[/]",
        )  # fmt: skip
    return table
