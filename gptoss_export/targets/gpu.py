"""The GPU of this machine, as archs name it."""

from __future__ import annotations

from ..cuda.gpu import current_gpu


def current_gpu_arch() -> str | None:
    """sm_<number> of the current GPU; None where there is none."""
    if (gpu := current_gpu()) is None:
        return None
    major, minor = gpu.capability
    return f"sm_{major}{minor}"
