"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Integers(click.ParamType):
    """Whole numbers separated by commas or white space."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers. Ends with a usage error that names the option."""
        if isinstance(value, list):
            return value
        try:
            return [int(word) for word in value.replace(",", " ").split()]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers, such as 1,2,3", param, ctx)


artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
hashes_option = click.option(
    "--verify-hashes/--no-verify-hashes",
    default=True,
    show_default=True,
    help="Compare the sha256 of every file with the manifest when the artifact is loaded.",
)
html_option = click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write the tables to FILE as a web page."
)


def check_new_file(option: str, path: Path | None) -> None:
    """Raise UsageError where the file that an option names cannot be made."""
    from ..errors import UsageError

    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path}: found a folder, expected a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"{option} {path}: expected a file in a folder that exists; make {path.absolute().parent} first"
        )
