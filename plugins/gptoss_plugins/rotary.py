"""gptoss_triton::rotary: `gptoss::rotary` for NVIDIA GPUs, one program a position.

The contract is gptoss_export/ops/rotary.py's. Angles reach 131,071 radians: cos and sin are the ones with a
full range reduction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel


@triton.jit
def _rotary(positions, inv_freq, cos, sin, CONCENTRATION: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    frequency = tl.load(inv_freq + i, mask=i < COUNT, other=0.0)
    angle = tl.load(positions + token).to(tl.float32) * frequency
    tl.store(cos + token * COUNT + i, tl.cos(angle) * CONCENTRATION, mask=i < COUNT)
    tl.store(sin + token * COUNT + i, tl.sin(angle) * CONCENTRATION, mask=i < COUNT)


@triton_op("gptoss_triton::rotary", mutates_args={})
def rotary(
    positions: torch.Tensor, inv_freq: torch.Tensor, concentration: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gptoss::rotary`, same arguments, same results."""
    tokens, count = positions.size(0), inv_freq.size(0)
    cos, sin = inv_freq.new_empty((tokens, count)), inv_freq.new_empty((tokens, count))
    wrap_triton(_rotary)[(tokens,)](
        positions.contiguous(), inv_freq, cos, sin,
        CONCENTRATION=concentration, COUNT=count, BLOCK=triton.next_power_of_2(count), num_warps=1,
    )  # fmt: skip
    return cos, sin


KERNEL = Kernel(rotary)
