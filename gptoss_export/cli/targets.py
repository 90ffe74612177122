"""gptoss-export targets"""

from __future__ import annotations

from typing import Any

import click

from .errors import missing_package, reports_errors
from .params import json_option
from .tables import make_table, print_json, print_tables


@click.command("targets")
@json_option
@reports_errors
def command(as_json: bool) -> None:
    """List what this machine can build.

    For what it cannot build, the columns found and fix say what is missing.
    """
    from ..targets import TARGETS

    rows = [row for name in TARGETS for row in _rows(name)]
    if as_json:
        print_json({"targets": rows})
        return
    headings = ("target", "device", "dtypes", "here", "found", "fix")
    cells = [
        (
            row["target"],
            row["device"],
            ", ".join(row["dtypes"]),
            "ready" if row["ready"] else "no",
            row["detail"],
            row["fix"],
        )
        for row in rows
    ]
    print_tables([make_table(headings, cells)])


def _rows(name: str) -> list[dict[str, Any]]:
    """One row for each device of a target; one alone where a package that its compiler needs is missing."""
    from ..errors import UsageError

    try:
        from ..targets.base_compiler import compiler  # needs torch

        target = compiler(name)
    except UsageError as error:
        return [_not_ready(name, str(error), "")]
    except ModuleNotFoundError as error:
        package = missing_package(error)
        if package is None:
            raise
        return [_not_ready(name, f"package {package} is not installed", f"pip install {package}")]
    return [
        {"target": name, "device": device, "dtypes": list(dtypes)} | vars(target.available(device))
        for device, dtypes in target.dtypes.items()
    ]


def _not_ready(name: str, detail: str, fix: str) -> dict[str, Any]:
    return {"target": name, "device": "", "dtypes": [], "ready": False, "detail": detail, "fix": fix}
