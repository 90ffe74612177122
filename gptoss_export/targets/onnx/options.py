"""The options of this target. Imports nothing heavy: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """portable: standard operators alone, so that any runtime of the opset can run the model (cpu only)."""

    portable: bool = field(default=False, metadata={"help": "Standard operators alone, for any runtime of the opset (cpu)."})
