"""The pages of made-up facts, as the commands write them."""

from __future__ import annotations

from gptoss_export.artifact.manifest import Manifest
from gptoss_export.bench import BenchReport
from gptoss_export.cli import bench as bench_command
from gptoss_export.cli import inspect as inspect_command
from gptoss_export.cli import verify as verify_command
from gptoss_export.pictures.inspect_page import inspect_page
from gptoss_export.pictures.page import Page
from gptoss_export.targets.base_loader import Table
from gptoss_export.verification.report import Report

ENGINES = Table(
    "engine segments",
    ("engine", "of", "bytes", "used by"),
    [(f"{index:08x}", f"part {index}", str(1000 * (index + 1)), "decode_1 x24") for index in range(30)],
)
PLUGINS = Table("plugins", ("kernel", "grid", "threads"), [("_gate_up", "132 x 1", "256")])


def page_of_bench(report: BenchReport) -> Page:
    return bench_command.page(report)


def page_of_verify(report: Report) -> Page:
    return verify_command.page(report)


def page_of_inspect(manifest: Manifest, tables: tuple[Table, ...] = (), name: str = "artifacts/20b") -> Page:
    return inspect_page(name, manifest, inspect_command.all_tables(manifest, "none", tables))
