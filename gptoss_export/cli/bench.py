"""gptoss-export bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..shown_text import size
from .errors import reports_errors
from .pages import check_page, html_option, terminal_table, write
from .params import Integers, artifact_argument, hashes_option, json_option, kv_memory_option, trust_option, trusted
from .progress import progress
from .tables import print_json, print_tables

if TYPE_CHECKING:
    from ..bench import BenchReport
    from ..pictures.page import Page, PageTable
    from ..workload import Spread, WorkloadReport

_LONGEST_NAME = 70  # characters of a kernel's name that the terminal shows


@click.command("bench")
@artifact_argument
@click.option("--batch", "batches", type=Integers(), help="Sequences at a time.  [default: 1]")
@click.option("--context", "contexts", type=Integers(), help="Prompt lengths.  [default: 1024]")
@click.option(
    "--workload",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Serve many requests: a JSON file {"name": "day", "seed": 7, "requests": [{"prompt": 400, "output": 120}]}. '
    "Without --batch and --context nothing else is timed.",
)
@click.option(
    "--profile", is_flag=True, help="List the kernels of a decode step, at the first batch and context (CUDA only)."
)
@html_option
@kv_memory_option
@hashes_option
@trust_option
@json_option
@reports_errors
def command(
    artifact: Path,
    batches: list[int] | None,
    contexts: list[int] | None,
    workload: Path | None,
    profile: bool,
    html: Path | None,
    kv_memory: int | None,
    verify_hashes: bool,
    trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure the speed of ARTIFACT.

    Times start-up, prefill, the first token and decode steps. The floor of a decode step is the time to read its
    weights and KV caches once, at the memory bandwidth measured here.
    """
    from ..bench import bench

    check_page(html, artifact)
    alone = workload is not None and batches is None and contexts is None and not profile
    if batches is None:
        batches = [] if alone else [1]
    if contexts is None:
        contexts = [] if alone else [1024]
    with progress() as shown:
        report = bench(
            artifact,
            batches,
            contexts,
            verify_hashes,
            profile,
            shown,
            tune_process=True,
            trust=trusted(trust),
            workload=workload,
            kv_memory=kv_memory,
        )
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if html is not None:
        write(page(report), html)


def page(report: BenchReport) -> Page:
    """The page of --html."""
    from ..pictures.bench_page import BenchTables, bench_page

    measurements = _measurements(report) if report.measurements else None
    workload = None if report.workload is None else _workload(report.workload)
    kernels = _kernels(report) if report.kernels else None
    return bench_page(report, BenchTables(measurements, workload, _startup(report), kernels))


def _print(report: BenchReport) -> None:
    tables = [_measurements(report)] if report.measurements else []
    tables += [] if report.workload is None else [_workload(report.workload)]
    tables += [_startup(report), *([_kernels(report, _LONGEST_NAME)] if report.kernels else [])]
    print_tables(map(terminal_table, tables))
    bandwidth = report.bandwidth / 1e12
    click.echo(f"memory bandwidth: {bandwidth:.2f} TB/s read; weights and KV caches: {size(report.weights_and_cache)}")
    if report.memory:
        above = report.memory / report.weights_and_cache - 1
        click.echo(
            f"GPU memory in use by all processes: {size(report.memory)}, {above:.2%} above weights and KV caches"
        )


def _measurements(report: BenchReport) -> PageTable:
    from ..pictures.page import PageTable

    headings = (
        "batch",
        "context",
        "prefill tok/s",
        "first token ms",
        "step ms",
        "decode tok/s",
        "floor ms",
        "of floor",
    )
    rows = (
        (
            str(row.batch),
            str(row.context),
            f"{row.prefill_tok_s:,.0f}",
            f"{row.ttft_s * 1e3:.1f}",
            f"{row.decode_step_s * 1e3:.3f}",
            f"{row.decode_tok_s:,.1f}",
            f"{row.floor_s * 1e3:.3f}",
            f"{row.share_of_floor:.0%}",
        )
        for row in report.measurements
    )
    return PageTable(f"{report.artifact} on {report.machine}", headings, tuple(rows), numbers_from=0)


def _workload(report: WorkloadReport) -> PageTable:
    from ..pictures.page import PageTable

    rows = {
        "requests": f"{report.requests:,}",
        "prompt tokens": f"{report.prompt_tokens:,}",
        "output tokens": f"{report.output_tokens:,}",
        "seconds": f"{report.seconds:.2f}",
        "output tokens a second": f"{report.output_tok_s:,.1f}",
        "first token ms, p50 and p99": _spread(report.first_token_s),
        "between tokens ms, p50 and p99": _spread(report.between_tokens_s),
        "keys and values held at most": size(report.kv_cache_bytes),
    }
    return PageTable("", ("workload", report.name), tuple(rows.items()), numbers_from=1)


def _spread(spread: Spread) -> str:
    return f"{spread.p50 * 1e3:,.1f}   {spread.p99 * 1e3:,.1f}"


def _startup(report: BenchReport) -> PageTable:
    from ..pictures.page import PageTable

    rows, passed = [], 0.0
    for name, seconds in report.startup_s.items():
        passed += seconds
        rows.append((name, f"{seconds:.2f}", f"{passed:.2f}"))
    return PageTable("", ("start-up", "seconds", "since the start"), tuple(rows), numbers_from=1)


def _kernels(report: BenchReport, longest: int | None = None) -> PageTable:
    """longest: characters of a name that are shown; None: all."""
    from ..pictures.page import PageTable

    total = sum(row.us for row in report.kernels)
    rows = (
        (
            row.name[:longest],
            f"{row.launches:g}",
            f"{row.us:.1f}",
            f"{row.us / row.launches:.2f}",
            f"{row.us / total:.1%}",
        )
        for row in report.kernels
    )
    headings = ("kernel", "launches a step", "us a step", "us each", "share")
    return PageTable(f"decode step, {total:,.0f} us", headings, tuple(rows), numbers_from=1)
