"""The options of this target. Imports nothing heavy: the command line reads it for `--help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """portable: standard operators alone, so that any runtime of the opset can run the model (cpu only)."""

    portable: bool = field(
        default=False, metadata={"help": "Standard operators alone, for any runtime of the opset (cpu)."}
    )


def read_options(values: Mapping[str, Any]) -> Options:
    """The options that a manifest stores. Raises ValueError where they are not those of this target."""
    try:
        options = Options(**values)
    except TypeError:
        options = None
    if options is None or type(options.portable) is not bool:
        raise ValueError(f"target_options: found {dict(values)}, expected portable: true or false")
    return options
