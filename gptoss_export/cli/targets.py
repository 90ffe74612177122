"""gptoss-export targets"""

from __future__ import annotations

import click

from .output import json_option, print_json, print_table, reports_errors


@click.command("targets")
@json_option
@reports_errors
def command(as_json) -> None:
    """List what can be built on this machine, and what is missing for the rest."""
    from rich.table import Table

    from ..errors import UsageError
    from ..targets import TARGETS

    rows = []
    for name in TARGETS:
        try:
            target = TARGETS[name]
        except UsageError as error:  # a package that its module needs
            rows.append({"target": name, "device": "", "dtypes": [], "ready": False, "detail": str(error), "mend": ""})
            continue
        rows += [
            {"target": name, "device": device, "dtypes": list(dtypes)} | vars(target.available(device))
            for device, dtypes in target.dtypes.items()
        ]
    if as_json:
        print_json({"targets": rows})
        return
    table = Table()
    for heading in ("target", "device", "dtypes", "here", "what was found", "to mend it"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["target"], row["device"], ", ".join(row["dtypes"]), "ready" if row["ready"] else "no",
                      row["detail"], row["mend"])  # fmt: skip
    print_table(table)
