"""Runs examples/ray_serve.py with less patience, for tests that ask, kill and end replicas.

    python serve_replicas.py ARTIFACT [OPTION ...]

The arguments are those of the example.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gptoss_export.replicas import running
from gptoss_export.replicas.cluster import Place
from gptoss_export.replicas.options import Patience, ReplicaOptions
from gptoss_export.replicas.running import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"
PATIENCE = Patience(beat=0.5, silence=8.0, check=1.0, health=5.0)


def impatient(options: ReplicaOptions, place: Place, ready: Callable[[str], None]) -> int:
    """In place of `run`."""
    return run(replace(options, patience=PATIENCE), place, ready)


if __name__ == "__main__":
    running.run = impatient
    sys.argv[0] = str(EXAMPLE)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
