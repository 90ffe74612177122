"""The GPU of this machine, as archs name it."""

from __future__ import annotations

import sys

from ..cuda.gpu import current_gpu


def current_gpu_arch() -> str | None:
    """sm_<number> of torch's current GPU where the process has imported torch, else of the first GPU. None where there
    is no GPU."""
    if (torch := sys.modules.get("torch")) is not None:
        if not torch.cuda.is_available():
            return None
        major, minor = torch.cuda.get_device_capability()
    elif (gpu := current_gpu()) is None:
        return None
    else:
        major, minor = gpu.capability
    return f"sm_{major}{minor}"
