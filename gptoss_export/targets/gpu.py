"""The GPU of this machine, as archs name it."""

from __future__ import annotations


def current_gpu_arch() -> str | None:
    """sm_<number> of torch's current GPU; None where torch finds none, or where there is no torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
