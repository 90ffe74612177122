"""gptoss-export bench"""

from __future__ import annotations

from pathlib import Path

import click

from .output import (
    Integers, artifact_argument, hashes_option, json_option, print_json, print_table, progress, reports_errors, size,
)  # fmt: skip


@click.command("bench")
@artifact_argument
@click.option("--batch", "batches", type=Integers(), default="1", show_default=True, help="Sequences at a time.")
@click.option("--context", "contexts", type=Integers(), default="1024", show_default=True, help="Prompt lengths.")
@click.option("--profile", is_flag=True, help="List the kernels of a decode step at the first context (CUDA).")
@hashes_option
@json_option
@reports_errors
def command(artifact: Path, batches, contexts, profile, verify_hashes, as_json) -> None:
    """Time ARTIFACT: start-up, prefill, first token, decode, and the share of what the memory allows."""
    from ..bench import bench

    with progress() as steps:
        report = bench(artifact, batches, contexts, verify_hashes, profile, steps, own_process=True)
    if as_json:
        print_json(report.to_json())
        return
    print_table(_table(report))
    print_table(_startup(report), *([_kernels(report)] if report.kernels else []))
    click.echo(f"bandwidth: {report.bandwidth / 1e12:.2f} TB/s read; weights and cache {size(report.weights_and_cache)}")
    if report.memory:
        above = report.memory / report.weights_and_cache - 1
        click.echo(f"GPU memory in use, by all processes: {size(report.memory)}, {above:.2%} above weights and cache")


def _startup(report):
    from rich.table import Table

    table = Table("start-up", "seconds", "at")
    passed = 0.0
    for name, seconds in report.startup_s.items():
        passed += seconds
        table.add_row(name, f"{seconds:.2f}", f"{passed:.2f}")
    return table


def _kernels(report):
    from rich.table import Table

    total = sum(row.us for row in report.kernels)
    table = Table("kernel", "launches a step", "us a step", "us each", "share", title=f"decode step, {total:,.0f} us")
    for row in report.kernels:
        table.add_row(
            row.name[:70], f"{row.launches:g}", f"{row.us:.1f}", f"{row.us / row.launches:.2f}", f"{row.us / total:.1%}"
        )
    return table


def _table(report):
    from rich.table import Table

    table = Table(title=f"{report.artifact} on {report.machine}")
    headings = ("batch", "context", "prefill tok/s", "first token ms", "step ms", "decode tok/s", "floor ms", "of floor")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in report.measurements:
        table.add_row(
            str(row.batch), str(row.context), f"{row.prefill_tok_s:,.0f}", f"{row.ttft_s * 1e3:.1f}",
            f"{row.decode_step_s * 1e3:.3f}", f"{row.decode_tok_s:,.1f}", f"{row.floor_s * 1e3:.3f}",
            f"{row.share_of_floor:.0%}",
        )  # fmt: skip
    return table
