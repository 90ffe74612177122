"""Adds up the shares of the context that the programs of attention.py have computed (FlashDecoding)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from .attention_config import padded
from .dependent_launch import let_next_start, wait_for_previous
from .online_softmax import LOG2E, NOTHING


@triton.jit
def _combine_pdl(
    part_sum,
    part_peak,
    part_total,
    sinks,
    out,
    QUERY_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
    SHARES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Adds up the shares of one query head of one query, and its sink."""
    zero = let_next_start(EARLY) + wait_for_previous(EARLY)
    part_sum += zero
    part_peak += zero
    part_total += zero
    out += zero
    line = tl.program_id(0).to(tl.int64)
    share = tl.arange(0, SHARES)
    d = tl.arange(0, DIM)
    part = line * SPLITS + share
    peak = tl.load(part_peak + part, mask=share < SPLITS, other=NOTHING)
    total = tl.load(part_total + part, mask=share < SPLITS, other=0.0)
    there = (share < SPLITS)[:, None] & (d < HEAD_DIM)[None, :]
    acc = tl.load(part_sum + part[:, None] * HEAD_DIM + d[None, :], mask=there, other=0.0)
    sink = tl.load(sinks + line % QUERY_HEADS).to(tl.float32) * LOG2E
    top = tl.maximum(tl.max(peak, 0), sink)
    shrink = tl.exp2(peak - top)
    denominator = tl.sum(total * shrink, 0) + tl.exp2(sink - top)
    result = tl.sum(acc * shrink[:, None], 0) / denominator
    tl.store(out + line * HEAD_DIM + d, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)


def combine(
    part_sum: torch.Tensor,
    part_peak: torch.Tensor,
    part_total: torch.Tensor,
    sinks: torch.Tensor,
    out: torch.Tensor,
    early: bool,
) -> None:
    """Write out [N, L, Hq, D] from the shares: sums [N, L, Hq, S, D], peaks and totals [N, L, Hq, S], all float32."""
    sequences, length, query_heads, splits, head_dim = part_sum.shape
    wrap_triton(_combine_pdl)[(sequences * length * query_heads,)](
        part_sum,
        part_peak,
        part_total,
        sinks,
        out,
        QUERY_HEADS=query_heads,
        HEAD_DIM=head_dim,
        SPLITS=splits,
        DIM=padded(head_dim),
        SHARES=triton.next_power_of_2(splits),
        EARLY=early,
        num_warps=1,
    )
