"""Numbers of the host on their way to a device.

A copy to a GPU from ordinary memory waits for what the GPU does. From pinned memory it does not: the caller goes on,
and torch keeps the memory until the copy is done."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def on_device(numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """A new tensor [n] on a device."""
    pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=pinned).to(device, non_blocking=True)
