"""gptoss_triton::rotate: `gptoss::rotate` for NVIDIA GPUs, one program a token and a few heads.

The contract is in gptoss_export/model/ops/rotate.py. The kernel reads and writes each number once, which is all of its
time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from gptoss_export.kernels.kernel import Kernel

_HEADS = 16  # of a program: 1,024 numbers where a head has 64


@triton.jit
def _rotate(
    x,
    cos,
    sin,
    out,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """EACH heads of one token."""
    token = tl.program_id(0)
    head = tl.program_id(1) * EACH + tl.arange(0, EACH)
    i = tl.arange(0, BLOCK)
    c = tl.load(cos + token * HALF + i, mask=i < HALF, other=0.0)[None, :]
    s = tl.load(sin + token * HALF + i, mask=i < HALF, other=0.0)[None, :]
    cells = (token.to(tl.int64) * HEADS + head)[:, None] * (2 * HALF) + i[None, :]
    there = (head < HEADS)[:, None] & (i < HALF)[None, :]
    first = tl.load(x + cells, mask=there, other=0.0).to(tl.float32)
    second = tl.load(x + cells + HALF, mask=there, other=0.0).to(tl.float32)
    tl.store(out + cells, (first * c - second * s).to(out.dtype.element_ty), mask=there)
    tl.store(out + cells + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=there)


@triton_op("gptoss_triton::rotate", mutates_args={})
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`gptoss::rotate`: same arguments, same results."""
    tokens, heads, dim = x.shape
    out = x.new_empty((tokens, heads, dim))
    each = min(_HEADS, triton.next_power_of_2(heads))
    wrap_triton(_rotate)[(tokens, triton.cdiv(heads, each))](
        x.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        out,
        HEADS=heads,
        HALF=dim // 2,
        EACH=each,
        BLOCK=triton.next_power_of_2(dim // 2),
        num_warps=4,
    )
    return out


KERNEL = Kernel(rotate)
