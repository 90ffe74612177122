"""Runs examples/ray_serve.py with less patience and other limits, for tests that ask, kill and end replicas.

    python serve_replicas.py ARTIFACT [OPTION ...]

The arguments are those of the example, which listens at any free port.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gptoss_export.replicas import running
from gptoss_export.replicas.options import Patience, ReplicaOptions
from gptoss_export.replicas.running import Place, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"
PATIENCE = Patience(beat=0.5, silence=8.0, check=1.0, health=5.0)


def impatient(options: ReplicaOptions, place: Place, ready: Callable[[str], None]) -> int:
    """In place of `run`."""
    settings = replace(options.settings, max_body=100_000, queue_seconds=60.0, drain_seconds=60.0)
    return run(replace(options, settings=settings, patience=PATIENCE), replace(place, port=0), ready)


if __name__ == "__main__":
    running.run = impatient
    sys.argv[0] = str(EXAMPLE)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
