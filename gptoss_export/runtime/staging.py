"""Numbers of the host on their way to a device.

A copy to a GPU from ordinary memory waits for what the GPU does. From pinned memory it does not: the caller goes on,
and torch keeps the memory until the copy is done."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch


def on_device(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """A new tensor [n] int64 on a device."""
    if not numbers:
        return torch.empty(0, dtype=torch.int64, device=device)
    # torch.tensor would take four times as long for the tokens of a large chunk.
    tensor = torch.frombuffer(array("q", numbers), dtype=torch.int64)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
