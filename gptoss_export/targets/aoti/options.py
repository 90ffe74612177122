"""The options of this target. Imports nothing heavy: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Options:
    """cpu_isa: the CPU instructions that code for cpu may use; None: this machine's level."""

    cpu_isa: Literal["portable", "avx2", "avx512"] | None = field(
        default=None,
        metadata={
            "help": "CPU instructions that code for cpu may use, in place of this machine's. portable: any 64-bit x86."
        },
    )
