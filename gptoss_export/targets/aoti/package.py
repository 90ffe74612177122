"""The package of an arch's programs, `programs-<arch>.pt2`: its name, and which archs a machine runs."""

from __future__ import annotations

from ...artifact.manifest import Manifest
from . import cpu_isa


def package_name(arch: str) -> str:
    return f"programs-{arch}.pt2"


def runnable_arch(manifest: Manifest, current: str | None) -> str | None:
    """Which of the artifact's archs a machine of arch `current` runs: of several the one with the most instructions."""
    if current is None:
        return None
    runs = cpu_isa.runs if manifest.device == "cpu" else str.__eq__
    return max((arch for arch in manifest.archs if runs(arch, current)), key=cpu_isa.rank, default=None)
