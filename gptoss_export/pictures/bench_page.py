"""The page of `bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..shown_text import size
from .decode_floor import floor_picture
from .decode_speed import speed_over_context, speed_over_width
from .page import Cell, Page, PageTable, Section
from .prompts import prompts_picture
from .startup import startup_picture
from .step_kernels import kernels_picture

if TYPE_CHECKING:
    from ..bench import BenchReport


@dataclass(frozen=True)
class BenchTables:
    """The tables of a report, as the terminal shows them; None for what was not measured."""

    measurements: PageTable | None
    workload: PageTable | None
    startup: PageTable
    kernels: PageTable | None


def bench_page(report: BenchReport, tables: BenchTables) -> Page:
    """The pictures of a report with its tables."""
    sections = [_start(report, tables.startup)]
    if tables.kernels is not None:
        sections.insert(0, _kernels(report, tables.kernels))
    if tables.workload is not None:
        sections.insert(0, Section("Workload", tables=(tables.workload,)))
    if tables.measurements is not None:
        sections.insert(0, _decode(report, tables.measurements))
    return Page(report.artifact, "gptoss-export bench", _facts(report), tuple(sections))


def _facts(report: BenchReport) -> tuple[tuple[str, Cell], ...]:
    facts: list[tuple[str, Cell]] = [
        ("machine", report.machine),
        ("memory bandwidth, read", _bandwidth(report.bandwidth)),
        ("weights and KV caches", size(report.weights_and_cache)),
    ]
    if report.memory:
        above = report.memory / report.weights_and_cache - 1
        facts.append(("GPU memory in use by all processes", f"{size(report.memory)}, {above:.2%} above"))
    facts.append(("built with", ", ".join(f"{name} {version}" for name, version in report.versions.items())))
    return tuple(facts)


def _bandwidth(bytes_s: float) -> str:
    return f"{bytes_s / 1e12:.2f} TB/s" if bytes_s >= 1e11 else f"{bytes_s / 1e9:.1f} GB/s"


def _decode(report: BenchReport, table: PageTable) -> Section:
    rows = report.measurements
    text = (
        "The floor of a decode step is the time to read what it cannot avoid, at the memory bandwidth of this run: "
        "the weights outside of the experts, the experts that the tokens reach where they choose at random, and the "
        "keys and values that the positions see.",
    )
    found = (speed_over_width(rows), speed_over_context(rows), floor_picture(rows), prompts_picture(rows))
    return Section("Decode and prefill", text, tuple(picture for picture in found if picture is not None), (table,))


def _start(report: BenchReport, table: PageTable) -> Section:
    return Section("Start-up", pictures=(startup_picture(report.startup_s),), tables=(table,))


def _kernels(report: BenchReport, table: PageTable) -> Section:
    text = (
        "Kernels overlap. Each one counts from the end of the kernel before it to its own end, so that they sum to the "
        "step. It is the step of the first batch and context, under the profiler.",
    )
    return Section("Kernels of a step", text, (kernels_picture(report.kernels),), (table,))
