"""gptoss_triton::rotary: `gptoss::rotary` for NVIDIA GPUs, one program a position.

The contract is in gptoss_export/model/ops/rotary.py. Angles reach 131,071 radians, so `tl.cos` and `tl.sin` are used:
they reduce the full range of float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel


@triton.jit
def _rotary(positions, inv_freq, cos, sin, CONCENTRATION: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """COUNT cosines and sines of one position."""
    token = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    frequency = tl.load(inv_freq + i, mask=i < COUNT, other=0.0)
    angle = tl.load(positions + token).to(tl.float32) * frequency
    tl.store(cos + token * COUNT + i, tl.cos(angle) * CONCENTRATION, mask=i < COUNT)
    tl.store(sin + token * COUNT + i, tl.sin(angle) * CONCENTRATION, mask=i < COUNT)


@triton_op("gptoss_triton::rotary", mutates_args={})
def rotary(positions: torch.Tensor, inv_freq: torch.Tensor, concentration: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`gptoss::rotary`: same arguments, same results."""
    tokens, count = positions.size(0), inv_freq.size(0)
    cos, sin = inv_freq.new_empty((tokens, count)), inv_freq.new_empty((tokens, count))
    wrap_triton(_rotary)[(tokens,)](
        positions.contiguous(),
        inv_freq,
        cos,
        sin,
        CONCENTRATION=concentration,
        COUNT=count,
        BLOCK=triton.next_power_of_2(count),
        num_warps=1,
    )
    return cos, sin


KERNEL = Kernel(rotary)
