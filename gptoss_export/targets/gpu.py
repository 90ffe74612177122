"""The GPU of this machine, as archs name it."""

from __future__ import annotations

import sys

from ..cuda.gpu import all_gpus, current_gpu


def rank_problems(ranks: int) -> list[str]:
    """Why the GPUs of this machine cannot hold so many ranks, one each."""
    names = [found.name for found in all_gpus()]
    if len(names) < ranks:
        return [f"GPUs: found {len(names)}, expected {ranks}, one for each rank of the artifact"]
    if len(set(names)) > 1:
        return [
            f"GPUs: found {', '.join(names)}, expected {ranks} of a kind; name those to use in CUDA_VISIBLE_DEVICES"
        ]
    return []


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
