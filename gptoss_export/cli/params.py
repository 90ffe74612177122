"""Arguments and options that several commands have."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
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


class Biases(click.ParamType):
    """ID=NUMBER, separated by commas."""

    name = "ID=B,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[int, float]:
        """Biases by token id. Ends with a usage error that names the option."""
        if isinstance(value, dict):
            return value
        try:
            pairs = [pair.split("=") for pair in value.split(",")]
            return {int(token): float(bias) for token, bias in pairs}
        except ValueError:
            self.fail(f"{value!r} is not a list of biases by token id, such as 11=-5,42=1.5", param, ctx)


class Bytes(click.ParamType):
    """An amount of memory: bytes, or a number with a unit of 1,000 bytes and its powers."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes. Ends with a usage error that names the option."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no amount of memory, such as 8GB, 500MB or 8000000000", param, ctx)
        return int(float(match["number"]) * _UNITS[match["unit"].upper()])


class NamedFolder(click.ParamType):
    """NAME=FOLDER."""

    name = "NAME=FOLDER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        """The name and the folder. Ends with a usage error that names the option."""
        if isinstance(value, tuple):
            return value
        name, separator, folder = os.fsencode(value).decode("utf-8").partition("=")
        if not (name and separator and folder):
            self.fail(f"{value!r} is no name and folder, such as mine=adapters/mine", param, ctx)
        return name, Path(folder)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(?P<number>\d{1,15}(\.\d{1,9})?) ?(?P<unit>(?:[kKmMgGtT]?[bB])?)")


class UTF8Text(click.ParamType):
    """Text in UTF-8, whatever the locale. Python leaves surrogates where the locale has no such bytes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text. `check_utf8` has checked the arguments before."""
        return os.fsencode(value).decode("utf-8")


def check_utf8(arguments: Sequence[str], ctx: click.Context | None = None) -> None:
    """End with a usage error that names the first argument that is not UTF-8, and its option."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        try:
            raw = os.fsencode(argument)
            raw.decode("utf-8")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            raw = argument.encode("utf-8", "backslashreplace")
        except UnicodeDecodeError:
            pass
        else:
            continue
        shown = repr(raw)[2:-1]
        option = f"{before} " if before.startswith("--") and "=" not in before and not shown.startswith("-") else ""
        raise click.UsageError(f"{option}{shown}: found text that is not UTF-8; give it in UTF-8", ctx)


artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
hashes_option = click.option(
    "--verify-hashes/--no-verify-hashes",
    default=True,
    show_default=True,
    help="Compare the sha256 of every file with the manifest when the artifact is loaded. Some targets compare "
    "those of their code in any case.",
)
kv_memory_option = click.option(
    "--kv-memory",
    type=Bytes(),
    help="Memory of the KV cache, such as 8GB.  "
    "[default: what all sequences can use, or nine tenths of what the GPU has left]",
)
trust_option = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PUBLICKEY",
    help="Open the artifact only if this key signed it. May be repeated: one of the keys must have.",
)


def trusted(paths: Sequence[Path]) -> list[Path] | None:
    """The files that --trust names; None without the option, which asks for no signature."""
    return list(paths) or None


def check_new_file(option: str, path: Path | None, *inputs: Path | None) -> None:
    """Raise UsageError where the file that an option names cannot be made, or is something else than a file, or lies in
    one of the folders that the command reads, whose files it could replace."""
    from ..errors import UsageError

    if path is None:
        return
    try:
        _check_new_file(option, path, inputs)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from None


def _check_new_file(option: str, path: Path, inputs: Sequence[Path | None]) -> None:
    from ..errors import UsageError

    real = _real(path)
    if real.is_symlink():
        raise UsageError(f"{option} {path}: is a link that leads to itself, expected a file or a new name")
    if path.is_dir():
        raise UsageError(f"{option} {path}: found a folder, expected a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"{option} {path}: expected a file in a folder that exists; make {path.absolute().parent} first"
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path}: found a device, a pipe or a socket, expected a file or a new name")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(f"{option} {path}: no permission to write it")
    if not os.access(real.parent, os.W_OK):  # the file is written beside `path`, then replaces it
        raise UsageError(f"{option} {path}: no permission to write in its folder")
    for folder in inputs:
        if folder is not None and _real(folder) in real.parents:
            raise UsageError(f"{option} {path}: is in {folder}, which the command reads; name a file outside of it")


def _real(path: Path) -> Path:
    """The path without links. Path.resolve raises RuntimeError for a link that leads to itself, before Python 3.13."""
    return Path(os.path.realpath(path))


def read_text(option: str, path: Path) -> str:
    """The text of the file that an option names, in UTF-8 whatever the locale; `-` is standard input.

    Raises UsageError where it cannot be read or is not UTF-8.
    """
    from ..errors import UsageError

    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} {path}: byte {error.start} is not UTF-8 ({error.reason}); give the text in UTF-8"
        ) from None
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
